"""HDF5 files that no well-meant writer makes, each a function that writes one at a path.

`HOSTILE` says of each what it is refused for. A file that refers to something outside refers to
`canary`, which stands beside it.
"""

from __future__ import annotations

import re
import struct
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

import h5py
import numpy as np

from persistlib.errors import Code

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_low: Any = h5py  # the compiled modules have no types
CANARY = "canary"
SECRET = b"never to be read" * 4
MIB = 1 << 20


class Hostile(NamedTuple):
    """How a file is made, and the codes it may be refused with."""

    make: Callable[[Path], None]
    codes: tuple[Code, ...]


HOSTILE: dict[str, Hostile] = {}


def hostile(*codes: Code) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    def note(make: Callable[[Path], None]) -> Callable[[Path], None]:
        HOSTILE[make.__name__] = Hostile(make, codes)
        return make

    return note


def canary(beside: Path) -> Path:
    """Write what is never to be read: bytes, and an HDF5 file of them."""
    path = beside.parent / CANARY
    path.write_bytes(SECRET)
    with h5py.File(beside.parent / f"{CANARY}.h5", "w") as file:
        file["w"] = np.frombuffer(SECRET, "u1")
    return path


# -- T9: what lies outside, or goes in circles ---------------------------------------------------


@hostile(Code.FORMAT_UNSAFE)
def external_link(path: Path) -> None:
    canary(path)
    with h5py.File(path, "w") as file:
        file["w"] = h5py.ExternalLink(f"{CANARY}.h5", "/w")


@hostile(Code.FORMAT_UNSAFE)
def external_link_in_a_group(path: Path) -> None:
    canary(path)
    with h5py.File(path, "w") as file:
        file["a/b/w"] = np.zeros(3)
        file["a/b/x"] = h5py.ExternalLink(str(path.parent / f"{CANARY}.h5"), "/w")


@hostile(Code.FORMAT_UNSAFE)
def soft_link(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["v"] = np.zeros(3)
        file["w"] = h5py.SoftLink("/v")


@hostile(Code.FORMAT_UNSAFE)
def soft_link_to_itself(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["w"] = h5py.SoftLink("/w")


@hostile(Code.FORMAT_UNSAFE)
def external_storage(path: Path) -> None:
    secret = canary(path)
    with h5py.File(path, "w") as file:
        file.create_dataset("w", (64,), "u1", external=[(str(secret), 0, 64)])


@hostile(Code.FORMAT_UNSAFE)
def virtual_dataset(path: Path) -> None:
    canary(path)
    layout = h5py.VirtualLayout((64,), "u1")
    layout[:] = h5py.VirtualSource(f"{CANARY}.h5", "w", (64,))
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("w", layout)


@hostile(Code.FORMAT_UNSAFE)
def object_references(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["v"] = np.zeros(3)
        file.create_dataset("w", data=[file["v"].ref], dtype=h5py.ref_dtype)


@hostile(Code.FORMAT_UNSAFE)
def region_references(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["v"] = np.zeros(3)
        file.create_dataset("w", data=[file["v"].regionref[:2]], dtype=h5py.regionref_dtype)


@hostile(Code.FORMAT_UNSAFE)
def cycle_of_groups(path: Path) -> None:
    with h5py.File(path, "w") as file:
        group = file.create_group("a/b")
        group["again"] = file["a"]
        group["root"] = file["/"]


@hostile(Code.FORMAT_UNSAFE)
def doubling_groups(path: Path) -> None:
    with h5py.File(path, "w") as file:
        group: Any = file
        for _ in range(40):
            below = group.create_group("l")
            group["r"] = below
            group = below
        group["w"] = np.zeros(3)


@hostile(Code.FORMAT_NAME)
def name_that_is_no_unicode(path: Path) -> None:
    with h5py.File(path, "w") as file:
        kind, space = _low.h5t.NATIVE_FLOAT, _low.h5s.create_simple((3,))
        _low.h5d.create(file.id, b"\xff\xfe", kind, space)


# -- T9: what is no number -----------------------------------------------------------------------


@hostile(Code.FORMAT_DTYPE)
def rows_of_varying_length(path: Path) -> None:
    with h5py.File(path, "w") as file:
        rows = file.create_dataset("w", (2,), h5py.vlen_dtype("f4"))
        rows[0] = [1, 2, 3]


@hostile(Code.FORMAT_DTYPE)
def opaque_bytes(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["w"] = np.zeros(3, "V2")


@hostile(Code.FORMAT_DTYPE)
def compound_values(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["w"] = np.zeros(3, [("r", "f4"), ("i", "f8")])


@hostile(Code.FORMAT_DTYPE)
def long_doubles(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["w"] = np.zeros(3, np.longdouble)


@hostile(Code.FORMAT_DTYPE)
def enumeration(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("w", (3,), h5py.enum_dtype({"A": 0, "B": 7}, "i1"))


@hostile(Code.FORMAT_DTYPE)
def array_elements(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("w", (3,), "(2,2)f4")


@hostile(Code.FORMAT_DTYPE)
def narrow_integers(path: Path) -> None:
    with h5py.File(path, "w") as file:
        kind = _low.h5t.STD_I32LE.copy()
        kind.set_precision(20)
        _low.h5d.create(file.id, b"w", kind, _low.h5s.create_simple((3,)))


@hostile(Code.FORMAT_VALUE)
def boolean_that_is_two(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["w"] = np.array([True, False])
        file["w"].id.write(
            _low.h5s.ALL, _low.h5s.ALL, np.array([1, 2], "i1"), file["w"].id.get_type()
        )


# -- T10: more than there is ---------------------------------------------------------------------


@hostile(Code.FORMAT_LIMIT)
def shape_bomb(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("w", (1 << 20, 1 << 20), "f4", chunks=(1 << 10, 1 << 10))


@hostile(Code.FORMAT_LIMIT)
def contiguous_shape_bomb(path: Path) -> None:
    with h5py.File(path, "w", libver="latest") as file:
        plan = _low.h5p.create(_low.h5p.DATASET_CREATE)
        plan.set_alloc_time(_low.h5d.ALLOC_TIME_LATE)
        space = _low.h5s.create_simple((1 << 40,))
        _low.h5d.create(file.id, b"w", _low.h5t.NATIVE_FLOAT, space, plan)


@hostile(Code.FORMAT_LIMIT)
def deflate_bomb(path: Path) -> None:
    packed = zlib.compress(bytes(16 * MIB), 9)
    with h5py.File(path, "w") as file:
        data = file.create_dataset("w", (64, 16 * MIB), "u1", chunks=(1, 16 * MIB), compression=9)
        for row in range(64):
            data.id.write_direct_chunk((row, 0), packed)


@hostile(Code.FORMAT_LIMIT)
def many_deflate_bombs(path: Path) -> None:
    packed = zlib.compress(bytes(16 * MIB), 9)
    with h5py.File(path, "w") as file:
        for number in range(64):
            data = file.create_dataset(
                f"w{number}", (16 * MIB,), "u1", chunks=(16 * MIB,), compression=9
            )
            data.id.write_direct_chunk((0,), packed)


@hostile(Code.FORMAT_LIMIT)
def huge_chunk(path: Path) -> None:
    with h5py.File(path, "w") as file:
        plan = _low.h5p.create(_low.h5p.DATASET_CREATE)
        plan.set_chunk((1 << 29,))
        space = _low.h5s.create_simple((1,), (_low.h5s.UNLIMITED,))
        _low.h5d.create(file.id, b"w", _low.h5t.NATIVE_FLOAT, space, plan)


@hostile(Code.FORMAT_LIMIT)
def chunks_of_a_byte(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("w", (1 << 25,), "u1", chunks=(1,))


@hostile(Code.FORMAT_UNSAFE)
def unknown_filter(path: Path) -> None:
    """Write LZF's data, and say that it is filter 32,015 (a plugin that many have)."""
    with h5py.File(path, "w") as file:
        file.create_dataset("w", data=np.zeros(1000), compression="lzf")
    data = path.read_bytes()
    at = data.index((32_000).to_bytes(2, "little") + b"\x08\0")  # its name has padding to 8 bytes
    path.write_bytes(data[:at] + (32_015).to_bytes(2, "little") + data[at + 2 :])


@hostile(Code.FORMAT_UNSAFE)
def filter_of_lossy_bits(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("w", data=np.arange(1000), chunks=(1000,), scaleoffset=4)


@hostile(Code.FORMAT_LIMIT)
def many_links(path: Path) -> None:
    with h5py.File(path, "w", libver="latest") as file:
        file["w"] = np.zeros(3)
        for number in range(3000):
            _low.h5o.link(file["w"].id, file.id, b"%d" % number)


@hostile(Code.FORMAT_LIMIT)
def deep_groups(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_group("/".join("a" * 100))


@hostile(Code.FORMAT_LIMIT)
def many_attributes(path: Path) -> None:
    with h5py.File(path, "w", libver="latest") as file:
        for number in range(1500):
            file.attrs[str(number)] = number


@hostile(Code.FORMAT_LIMIT)
def large_attribute(path: Path) -> None:
    with h5py.File(path, "w", libver="latest") as file:
        space = _low.h5s.create_simple((1 << 23,))
        _low.h5a.create(file.id, b"a", _low.h5t.NATIVE_FLOAT, space)


@hostile(Code.FORMAT_LIMIT)
def one_text_as_every_attribute(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.attrs["long"] = "x" * (2 * MIB)
        for number in range(64):
            file.create_dataset(f"w{number}", data=np.float32(number)).attrs["short"] = "y"
    data = path.read_bytes()

    def references(length: int) -> set[bytes]:
        """Return length, heap and index of texts of that length, as attributes say them."""
        found = re.finditer(re.escape(struct.pack("<I", length)) + b"(?s:.{12})", data)
        heaps = {hit[0]: int.from_bytes(hit[0][4:12], "little") for hit in found}
        return {said for said, heap in heaps.items() if data[heap : heap + 4] == b"GCOL"}

    (long,) = references(2 * MIB)
    for short in references(1):
        data = data.replace(short, long)
    path.write_bytes(data)


@hostile(Code.FORMAT_SHAPE)
def impossible_extents(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("w", (1 << 40, 0, 1 << 40), "f4", maxshape=(1 << 40, 1, 1 << 40))


# -- T11: broken ---------------------------------------------------------------------------------


@hostile(Code.FORMAT_HEADER)
def signature_alone(path: Path) -> None:
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(2000))


@hostile(Code.FORMAT_TRUNCATED)
def cut_off(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["w"] = np.zeros(10_000)
    path.write_bytes(path.read_bytes()[:5_000])


# -- lies in persistlib's own layout -------------------------------------------------------------


def own(path: Path, **changed: Any) -> None:
    """Write one tensor of the layout with some attributes changed, None to leave one out.

    A name with `root_` stands at the root.
    """
    root = {"persistlib_format": "weights", "persistlib_version": "1.0", "metadata": "{}"}
    said: dict[str, Any] = {"dtype": "F32", "index": 0}
    for name, value in changed.items():
        where = root if name.startswith("root_") else said
        where[name.removeprefix("root_")] = value
    with h5py.File(path, "w") as file:
        file["w"] = np.zeros(6, "f4")
        for owner, found in ((file, root), (file["w"], said)):
            for name, value in found.items():
                if value is not None:
                    owner.attrs[name] = value


@hostile(Code.FORMAT_UNKNOWN)
def another_major_version(path: Path) -> None:
    own(path, root_persistlib_version="2.0")


@hostile(Code.FORMAT_UNKNOWN)
def another_kind(path: Path) -> None:
    own(path, root_persistlib_format="graph")


@hostile(Code.FORMAT_HEADER)
def metadata_that_is_no_map(path: Path) -> None:
    own(path, root_metadata='{"a": 1}')


@hostile(Code.FORMAT_HEADER)
def metadata_named_twice(path: Path) -> None:
    own(path, root_metadata='{"a": "1", "a": "2"}')


@hostile(Code.FORMAT_HEADER)
def unknown_dtype(path: Path) -> None:
    own(path, dtype="F33")


@hostile(Code.FORMAT_DTYPE)
def dtype_of_other_bits(path: Path) -> None:
    own(path, dtype="BF16")


@hostile(Code.FORMAT_SHAPE)
def shape_of_other_bytes(path: Path) -> None:
    own(path, shape=np.array([2, 4]))


@hostile(Code.FORMAT_SHAPE)
def negative_shape(path: Path) -> None:
    own(path, shape=np.array([-2, -3]))


@hostile(Code.FORMAT_HEADER)
def order_with_a_gap(path: Path) -> None:
    own(path, index=1)


@hostile(Code.FORMAT_HEADER)
def order_that_is_text(path: Path) -> None:
    own(path, index="0")


@hostile(Code.FORMAT_HEADER)
def primary_name_that_is_none(path: Path) -> None:
    own(path, primary=1)


@hostile(Code.FORMAT_NAME)
def name_of_another_spelling(path: Path) -> None:
    own(path)
    with h5py.File(path, "a") as file:
        file.move("w", "%77")
