"""HDF5 files: the layout as it is documented, other people's files, and hostile ones."""

from __future__ import annotations

import errno
import os
import random
import re
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest

from hdf5_assembly import CANARY, HOSTILE, SECRET, own
from persistlib import publish
from persistlib.checkpoint import WINDOW, Entry, MemoryCheckpoint, identity
from persistlib.conversion import Wishes, convert_weights
from persistlib.converters import hdf5_file, hdf5_names, hdf5_write, safetensors_file
from persistlib.dtypes import DType
from persistlib.errors import FormatError, IntegrityError, PersistlibError, UsageError
from persistlib.formats import FORMATS, by_content

if TYPE_CHECKING:
    from collections.abc import Iterator

    from persistlib.checkpoint import CheckpointReader

ROOT = Path(__file__).parents[1]
HDF5 = FORMATS["hdf5"]
HELD = [dtype for dtype in DType if HDF5.holds(dtype)]
SHAPES = [(), (0,), (1,), (3, 0, 5), (7, 11, 13), (601, 1009), (2, 1, 3, 2, 5), (1,) * 40]
NAMES = [
    *("a", "a.b", "a.b.c", "", ".", "..", "/", "a/b", "%", "%00", "a%2Eb", "\u00e9", "e\u0301"),
    *("\u202eabc", "a\nb", " ", "b." * 40 + "w", "x" * 70_000, "layer." * 200, "a.", ".a"),
]


def checkpoint(*tensors: tuple[str, DType, tuple[int, ...]], **rest: Any) -> MemoryCheckpoint:
    """A checkpoint of random bytes."""
    entries = tuple(Entry(*tensor) for tensor in tensors)
    seeded = random.Random(0)
    buffers = {}
    for entry in entries:
        data = bytearray(seeded.randbytes(entry.nbytes))
        if entry.dtype is DType.BOOL:
            data = bytearray(byte & 1 for byte in data)
        buffers[entry.name] = memoryview(data)
    return MemoryCheckpoint(entries, buffers, **rest)


def same(reader: CheckpointReader, made: MemoryCheckpoint) -> bool:
    """Whether a file holds exactly a checkpoint."""
    return (
        reader.entries == made.entries
        and dict(reader.aliases) == dict(made.aliases)
        and dict(reader.metadata) == dict(made.metadata)
        and not reader.losses
        and all(bytes(reader.read_bytes(e.name)) == bytes(made.buffers[e.name]) for e in made)
        and identity(reader) == identity(made)
    )


@pytest.mark.parametrize("compression", [None, "gzip", "lzf"])
def test_every_dtype_of_every_shape_comes_back_bit_for_bit(
    tmp_path: Path, compression: str | None
) -> None:
    dtypes = [DType.F32, DType.BF16, DType.I4] if compression else HELD
    tensors = [(f"{dtype.name}.{shape}", dtype, shape) for dtype in dtypes for shape in SHAPES]
    random.Random(1).shuffle(tensors)
    made = checkpoint(*tensors, metadata={"k": "v", "\0": "\u00e9" * 40_000})
    hdf5_file.write(made, tmp_path / "x.h5", compression=compression)
    with hdf5_file.open_file(tmp_path / "x.h5") as reader:
        assert reader.format == by_content(tmp_path / "x.h5").name == "hdf5"
        assert reader.container == "persistlib layout 1.0"
        assert same(reader, made)


def test_odd_names_and_ties_come_back(tmp_path: Path) -> None:
    aliases = {f"{name}#": name for name in NAMES} | {"a.b.c.d": "a", "zz": "a", "0": "a"}
    made = checkpoint(*((name, DType.F32, (3,)) for name in NAMES), aliases=aliases)
    hdf5_file.write(made, tmp_path / "x.h5")
    with hdf5_file.open_file(tmp_path / "x.h5") as reader:
        assert same(reader, made)


def test_a_checkpoint_without_tensors_comes_back(tmp_path: Path) -> None:
    hdf5_file.write(made := checkpoint(), tmp_path / "x.h5")
    with hdf5_file.open_file(tmp_path / "x.h5") as reader:
        assert same(reader, made)


@pytest.mark.parametrize("name", NAMES)
def test_a_path_is_one_spelling_of_one_name(name: str) -> None:
    for is_marked in (False, True):
        path = hdf5_names.path_of(name, is_marked=is_marked)
        assert hdf5_names.name_of(path) == name
        assert all(part not in {"", ".", ".."} for part in path.split("/"))


@pytest.mark.parametrize("path", ["%77", "a%2e", "%2Eb", "a%00/b", "a%", "a.b", "%25%"])
def test_another_spelling_is_no_name(path: str) -> None:
    assert hdf5_names.name_of(path) is None


def test_the_documented_lines_read_the_layout_with_h5py_alone(tmp_path: Path) -> None:
    made = checkpoint(
        ("a", DType.F32, (3, 4)),
        ("a.b", DType.BF16, (2,)),
        ("n%/", DType.I64, ()),
        ("", DType.C64, (2, 2)),
        ("flag", DType.BOOL, (5,)),
        aliases={"tied.w": "a"},
    )
    hdf5_file.write(made, tmp_path / "model.h5")
    text = (ROOT / "docs" / "hdf5.md").read_text(encoding="utf-8")
    program = next(p for p in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "h5py" in p)
    known: dict[str, Any] = {"path": str(tmp_path / "model.h5")}
    exec(program, known)
    found = known["tensors"]
    assert list(found) == ["a", "a.b", "n%/", "", "flag"]
    for entry in made:
        assert found[entry.name].tobytes() == bytes(made.buffers[entry.name])
        assert found[entry.name].shape == entry.shape


def test_two_writes_are_byte_identical_whenever_they_are_made(tmp_path: Path) -> None:
    made = checkpoint(("g.h.w", DType.F32, (300, 1000)), ("s", DType.I64, ()), aliases={"t.w": "s"})
    hdf5_file.write(made, tmp_path / "x.h5")
    time.sleep(1.1)  # HDF5's times are in seconds
    hdf5_file.write(made, tmp_path / "y.h5")
    assert (tmp_path / "x.h5").read_bytes() == (tmp_path / "y.h5").read_bytes()


def test_the_size_of_what_was_written_is_known(tmp_path: Path) -> None:
    made = checkpoint(("w", DType.F32, (300, 1000)), ("s", DType.F16, ()))
    with publish.file(tmp_path / "x.h5") as out:
        hdf5_file.write_to(made, out)
        size = out.size
        assert os.fstat(out.fd).st_size == size
    assert (tmp_path / "x.h5").stat().st_size == size


def test_the_windows_of_a_source_may_be_cut_anywhere(tmp_path: Path) -> None:
    class Crumbs(MemoryCheckpoint):
        def windows(self, name: str) -> Iterator[memoryview]:
            data, at, step = self.buffers[name], 0, 1
            while at < len(data):
                yield data[at : at + step]
                at, step = at + step, step * 3 + 1

    made = checkpoint(("w", DType.F64, (3, 700, 301)), ("v", DType.U8, (5,)))
    hdf5_file.write(Crumbs(made.entries, made.buffers), tmp_path / "x.h5")
    with hdf5_file.open_file(tmp_path / "x.h5") as reader:
        assert same(reader, made)


def test_a_tensor_larger_than_a_window_streams(tmp_path: Path) -> None:
    made = checkpoint(("w", DType.U8, (3, WINDOW // 2 + 5)))
    hdf5_file.write(made, tmp_path / "x.h5")
    with hdf5_file.open_file(tmp_path / "x.h5") as reader:
        windows = [bytes(window) for window in reader.windows("w")]
    assert max(map(len, windows)) <= WINDOW
    assert b"".join(windows) == bytes(made.buffers["w"])


@pytest.mark.parametrize("shape", [(1,), (5, 3), (3, 1 << 21), (1 << 21, 3), (5, 7, 300_007)])
def test_chunks_are_runs_of_whole_rows_of_about_a_megabyte(shape: tuple[int, ...]) -> None:
    chunk = hdf5_write.chunk_of(shape, 4)
    size = int(np.prod(chunk)) * 4
    assert size <= 1 << 20
    assert all(0 < part <= extent for part, extent in zip(chunk, shape, strict=True))
    assert size * 2 > min(1 << 20, int(np.prod(shape)) * 4)
    axis = next(n for n, part in enumerate(chunk) if part > 1 or n == len(chunk) - 1)
    assert chunk[axis + 1 :] == shape[axis + 1 :]


def test_a_byte_that_changed_in_any_chunk_is_found_and_its_tensor_named(tmp_path: Path) -> None:
    made = checkpoint(("whole", DType.F32, (400, 1000)), ("g.scalar", DType.F64, ()))
    hdf5_file.write(made, path := tmp_path / "x.h5")
    data = path.read_bytes()
    for name in made.tensors:
        wanted = bytes(made.buffers[name])
        for at in {0, len(wanted) // 2, len(wanted) - 1}:
            # What surrounds a byte says where it is; chunks are larger than that.
            near = max(0, min(at, len(wanted) - 8))
            place = data.index(wanted[near : near + 8]) + at - near
            path.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
            with hdf5_file.open_file(path) as reader:
                with pytest.raises(IntegrityError, match=f"{name}.*checksum"):
                    reader.read_bytes(name)
                for other in set(made.tensors) - {name}:
                    assert bytes(reader.read_bytes(other)) == bytes(made.buffers[other])


def test_a_full_disk_is_the_disks_error_and_leaves_nothing(tmp_path: Path) -> None:
    class Full(publish.OutFile):
        def write(self, data: Any) -> int:
            if self.size > 2 << 20:
                raise OSError(errno.ENOSPC, "full")
            return super().write(data)

    made = checkpoint(*((f"t{n}", DType.U8, (1 << 20,)) for n in range(5)))
    with open(tmp_path / "x.h5", "w+b", buffering=0) as file:
        with pytest.raises(OSError, match="full"):
            hdf5_file.write_to(made, Full(file.fileno(), "x.h5", "x.h5"))
        size = os.fstat(file.fileno()).st_size
        assert size < 4 << 20


def test_a_source_that_fails_stops_the_writing(tmp_path: Path) -> None:
    class Failing(MemoryCheckpoint):
        def windows(self, name: str) -> Iterator[memoryview]:
            yield self.buffers[name][:3]
            raise KeyError("gone")

    made = checkpoint(("w", DType.U8, (10,)))
    with pytest.raises(KeyError, match="gone"):
        hdf5_file.write(Failing(made.entries, made.buffers), tmp_path / "x.h5")
    assert os.listdir(tmp_path) == []


def test_an_unknown_compression_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="gzip or lzf"):
        hdf5_file.write(checkpoint(), tmp_path / "x.h5", compression="zip")


def test_a_layout_is_for_keras_files_alone(tmp_path: Path) -> None:
    hdf5_file.write(checkpoint(("w", DType.U8, (3,))), tmp_path / "x.h5")
    with pytest.raises(UsageError, match="Keras"):
        hdf5_file.open_file(tmp_path / "x.h5", layout="torch")


def test_conversion_there_and_back_keeps_identity_ties_and_metadata(tmp_path: Path) -> None:
    tensors = [(f"l.{d.name}", d, (5, 8)) for d in HELD if FORMATS["safetensors"].holds(d)]
    made = checkpoint(*tensors, aliases={"tie": "l.F32"}, metadata={"by": "us"})
    safetensors_file.write(made, tmp_path / "a.safetensors")
    wishes = Wishes()
    there = convert_weights(tmp_path / "a.safetensors", tmp_path / "b.h5", HDF5, wishes)
    back = convert_weights(
        tmp_path / "b.h5", tmp_path / "c.safetensors", FORMATS["safetensors"], wishes
    )
    assert there.identity == back.identity == identity(made)
    assert (there.losses, back.losses) == ((), ())
    one, other = (tmp_path / "a.safetensors"), (tmp_path / "c.safetensors")
    assert one.read_bytes() == other.read_bytes()


# -- files of other writers ----------------------------------------------------------------------


def test_plain_datasets_of_any_writer_are_tensors_by_path(tmp_path: Path) -> None:
    values = {
        "net/0/w": np.arange(12, dtype=">f4").reshape(3, 4),
        "net/0/b": np.arange(4, dtype="<f8"),
        "half": np.array(1.5, ">f2"),
        "counts": np.arange(-3, 3, dtype=">i8"),
        "small": np.arange(250, 256, dtype="u1"),
        "mask": np.array([[True], [False]]),
        "z": np.array([1 + 2j, -3.5j], ">c16"),
        "none": np.zeros((0, 4), "<i2"),
    }
    with h5py.File(tmp_path / "x.h5", "w", userblock_size=512) as file:
        for path, value in values.items():
            file[path] = value
        file["net/tied"] = file["net/0/w"]
        file["text"] = "a name"
        file["empty"] = h5py.Empty("f4")
        file["kind"] = np.dtype("f4")
        file.attrs["author"] = "somebody"
        file.attrs["epoch"] = 3
        file["net"].attrs["class"] = "Linear"
        file["half"].attrs["unit"] = np.array([1.0, 2.0])
    with hdf5_file.open_file(tmp_path / "x.h5") as reader:
        names = {path.replace("/", "."): value for path, value in values.items()}
        assert set(reader.tensors) == set(names)
        for name, value in names.items():
            read = reader.read(name)
            assert read.dtype == value.dtype.newbyteorder("<")
            assert read.shape == value.shape
            assert np.array_equal(read, value)
        assert dict(reader.aliases) == {"net.tied": "net.0.w"}
        assert dict(reader.metadata) == {"author": "somebody"}
        assert set(reader.losses) == {
            "value text, which is no tensor",
            "value empty, which is no tensor",
            "value kind, which is no tensor",
            "metadata epoch",
            "metadata net@class",
            "metadata half@unit",
        }
        assert reader.notes


def test_values_are_not_converted_on_the_way(tmp_path: Path) -> None:
    bits = np.array([0x7FA00001, 0xFFC12345, 0x80000000, 1], "<u4")  # NaN payloads among them
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for name, kind in (("little", "<f4"), ("big", ">f4")):
            file[name] = bits.astype(kind.replace("f", "u")).view(kind)
        kind = h5py.h5t.IEEE_F16LE.copy()
        kind.set_fields(15, 7, 8, 0, 7)
        kind.set_ebias(127)
        space = h5py.h5s.create_simple((2,))
        brain = h5py.h5d.create(file.id, b"brain", kind, space)
        brain.write(h5py.h5s.ALL, h5py.h5s.ALL, np.array([0x3F80, 0x7FC1], "<u2"), kind)
    with hdf5_file.open_file(tmp_path / "x.h5") as reader:
        assert (
            bytes(reader.read_bytes("little")) == bytes(reader.read_bytes("big")) == bits.tobytes()
        )
        assert reader.tensors["brain"].dtype is DType.BF16
        assert bytes(reader.read_bytes("brain")) == bytes.fromhex("803fc17f")


@pytest.mark.parametrize(
    ("shape", "chunk"),
    [
        ((1000, 50), (7, 50)),
        ((1000, 50), (7, 13)),
        ((9, 11, 13), (2, 3, 4)),
        ((3, 1 << 20), (3, 1000)),
        ((1 << 13, 1200), (1 << 12, 512)),
        ((2, 5, 1 << 19), (2, 5, 1 << 15)),
        pytest.param((1 << 16, 300), (1 << 16, 3), marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("filters", [{}, {"compression": "gzip", "compression_opts": 1}])
def test_chunks_of_any_shape_are_read_in_the_order_of_the_rows(
    tmp_path: Path, shape: tuple[int, ...], chunk: tuple[int, ...], filters: dict[str, Any]
) -> None:
    values = (np.arange(np.prod(shape), dtype="<u4") % 1009).reshape(shape)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("w", data=values, chunks=chunk, **filters)
    with hdf5_file.open_file(tmp_path / "x.h5") as reader:
        assert b"".join(map(bytes, reader.windows("w"))) == values.tobytes()


@pytest.mark.parametrize("libver", ["earliest", "v108", "v110", "v112", "v114", "latest"])
def test_every_version_of_the_file_format_is_read(tmp_path: Path, libver: str) -> None:
    with h5py.File(tmp_path / "x.h5", "w", libver=(libver, "latest"), track_order=True) as file:
        for number in range(20):
            file.create_dataset(f"g{number}/w", data=np.arange(9.0), chunks=(4,), maxshape=(None,))
    with hdf5_file.open_file(tmp_path / "x.h5") as reader:
        assert len(reader.entries) == 20
        assert reader.read("g7.w").tolist() == list(range(9))


def test_a_newer_minor_version_is_read_and_what_it_adds_is_a_loss(tmp_path: Path) -> None:
    own(tmp_path / "x.h5", root_persistlib_version="1.7", root_more="m", quantiles=[1.0])
    with hdf5_file.open_file(tmp_path / "x.h5") as reader:
        assert reader.entries == (Entry("w", DType.F32, (6,)),)
        assert set(reader.losses) == {"metadata @more", "metadata w@quantiles"}


# -- hostile files -------------------------------------------------------------------------------


def read_all(path: Path) -> None:
    with hdf5_file.open_file(path) as reader:
        for entry in reader:
            reader.read_bytes(entry.name)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    HOSTILE[name].make(path := tmp_path / "x.h5")
    with pytest.raises(PersistlibError) as caught:
        read_all(path)
    assert caught.value.code in {code.identifier for code in HOSTILE[name].codes}
    assert caught.value.location.startswith(str(path))
    assert SECRET.decode() not in str(caught.value)


@pytest.mark.parametrize("name", ["external_link", "external_storage", "virtual_dataset"])
def test_what_lies_outside_is_not_even_opened(tmp_path: Path, name: str) -> None:
    HOSTILE[name].make(path := tmp_path / "x.h5")
    # Whoever opens a pipe to read it wakes whoever waits to write.
    opened: list[str] = []
    pipes = [CANARY, f"{CANARY}.h5"]
    waiting = []
    for pipe in pipes:
        (tmp_path / pipe).unlink()
        os.mkfifo(tmp_path / pipe)

        def wait(pipe: str = pipe) -> None:
            os.close(os.open(tmp_path / pipe, os.O_WRONLY))
            opened.append(pipe)

        waiting.append(threading.Thread(target=wait, daemon=True))
        waiting[-1].start()
    with pytest.raises(FormatError):
        hdf5_file.open_file(path)
    assert opened == []
    for pipe, thread in zip(pipes, waiting, strict=True):
        os.close(os.open(tmp_path / pipe, os.O_RDONLY))
        thread.join()
    assert sorted(opened) == sorted(pipes)
