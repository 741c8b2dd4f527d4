"""The attacks of THREATS T1 to T4 on `.pt` files: each refused with its code, nothing executed."""

from __future__ import annotations

import io
import os
import pickle  # noqa: TID251 - writes attacks, reads nothing
import struct
import subprocess
import sys
import time
import unicodedata
import warnings
import zipfile
import zlib
from typing import TYPE_CHECKING, Any

import pytest

import torch_assembly as asm
from persistlib.converters import torch_file, torch_zip
from persistlib.errors import Code, PersistlibError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

GOOD = asm.dictionary(asm.text("w"), asm.tensor())


class Runs:
    """Unpickled, it calls."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def body(value: Any, protocol: int) -> bytes:
    return pickle.dumps(value, protocol)


def reads(path: Path) -> None:
    reader = torch_file.open_file(path)
    for entry in reader:
        reader.read_bytes(entry.name)


def refused(path: Path) -> PersistlibError:
    started = time.monotonic()
    with pytest.raises(PersistlibError) as caught:
        reads(path)
    assert time.monotonic() - started < 20
    assert "\n" not in str(caught.value)
    return caught.value


CALLS = {
    "os.system": Runs(vars(os)["system"], "touch CANARY"),
    "builtins.eval": Runs(eval, "open('CANARY', 'w')"),
    "builtins.exec": Runs(exec, "open('CANARY', 'w')"),
    "subprocess.Popen": Runs(subprocess.Popen, ["touch", "CANARY"]),
    "builtins.open": Runs(open, "CANARY", "w"),
    "builtins.__import__": Runs(__import__, "this"),
}


def hostile_pickles() -> list[bytes]:
    """Return each call under each protocol, as an archive, a stream and a bare pickle."""
    files: list[bytes] = []
    for attack in CALLS.values():
        bodies = [body(attack, protocol) for protocol in (0, 1, 2, 4, 5)]
        files += [asm.archive({"data.pkl": raw}) for raw in bodies]
        files += [asm.stream(raw.removeprefix(b"\x80\x02")[:-1], (), b"") for raw in bodies]
        files += bodies
    files += [
        asm.checkpoint(b"cos\nsystem\n" + asm.text("touch CANARY") + b"\x85R"),
        asm.checkpoint(b"(" + asm.text("touch CANARY") + b"ios\nsystem\n"),
        asm.checkpoint(b"(cos\nsystem\n" + asm.text("touch CANARY") + b"o"),
        asm.checkpoint(asm.text("os") + asm.text("system") + b"\x93" + asm.text("x") + b"\x85R"),
        asm.checkpoint(b"cos\nsystem\n" + asm.text("x") + b"\x85\x81"),
        asm.checkpoint(b"c__torch__.os\nsystem\n" + asm.text("x") + b"\x85R"),
    ]
    return files


def test_no_pickle_executes_anything(tmp_path: Path) -> None:
    files = hostile_pickles()
    assert len(files) > 80
    for index, data in enumerate(files):
        asm.placed(tmp_path, data, f"{index}.pt")
    trial = """
import os, sys
import numpy
from persistlib.converters import torch_file, torch_zip
from persistlib.errors import PersistlibError
folder, seen = sys.argv[1], []
def hook(event, arguments):
    if event == "open" and str(arguments[0]).startswith(folder):
        return
    if event not in ("mmap.__new__", "os.listdir", "object.__getattr__", "open"):
        seen.append((event, arguments))
paths = [os.path.join(folder, name) for name in sorted(os.listdir(folder))]
sys.addaudithook(hook)
for path in paths:
    try:
        torch_file.open_file(path)
    except PersistlibError as fault:
        continue
    raise SystemExit(f"{path} was read")
if seen:
    raise SystemExit(repr(seen))
"""
    subprocess.run([sys.executable, "-c", trial, tmp_path], check=True, cwd=tmp_path)
    assert not (tmp_path / "CANARY").exists()


@pytest.mark.parametrize("call", CALLS)
def test_a_hidden_call_is_named_with_the_place_where_it_hides(tmp_path: Path, call: str) -> None:
    raw = body({"model": {"w": 1, "conv.weight": CALLS[call]}}, 2)
    fault = refused(asm.placed(tmp_path, asm.archive({"data.pkl": raw})))
    assert fault.code == Code.FORMAT_UNSAFE.identifier
    assert f".{call.rsplit('.', 1)[1]}: a global that is never read" in fault.reason
    assert "model.conv.weight" in fault.location


LAYER = b"}(" + b"".join(asm.text(str(i)) + b"h\x00" for i in range(60)) + b"uq\x00"
LAUGHS = b"(}q\x00" + LAYER * 30 + b"t"
LEVELS = b"}" + (asm.text("k") + b"}") * 200 + b"s" * 200
# A list of 50,000 pairs in the memo, made a dict of 5,000 times.
ORDERED = b"ccollections\nOrderedDict\nh\x00\x85R"
COPIES = b"](" + b"NN\x86" * 50_000 + b"eq\x00\x85(" + ORDERED * 5_000 + b"t"
INNER = asm.dictionary(asm.text("b"), asm.tensor())
TWICE = asm.dictionary(asm.text("a.b"), asm.tensor(), asm.text("a"), INNER)
HUGE = asm.number(1 << 36)
BARE = "torch.storage\nUntypedStorage"

PICKLES: dict[str, tuple[bytes, Code]] = {
    "a bytearray of 64 GiB": (
        b"cbuiltins\nbytearray\n" + HUGE + b"\x85R",
        Code.FORMAT_UNSAFE,
    ),
    "the same of Python 2": (
        b"c__builtin__\nbytearray\n" + HUGE + b"\x85R",
        Code.FORMAT_UNSAFE,
    ),
    "a FloatTensor by size": (
        b"ctorch\nFloatTensor\n" + HUGE + b"\x85R",
        Code.FORMAT_UNSAFE,
    ),
    "a storage by size": (b"ctorch\nFloatStorage\n" + HUGE + b"\x85R", Code.FORMAT_UNSAFE),
    "a broadcast of one element": (asm.tensor((1 << 20, 1 << 20), (0, 0)), Code.FORMAT_LIMIT),
    "a broadcast of four": (asm.tensor((5, 4), (0, 1)), Code.FORMAT_LIMIT),
    "a view one too long": (asm.tensor((5,), (1,)), Code.FORMAT_SHAPE),
    "a view one too late": (asm.tensor((4,), (1,), 1), Code.FORMAT_SHAPE),
    "an empty view outside": (asm.tensor((0,), (1,), 5), Code.FORMAT_SHAPE),
    "a stride too wide": (asm.tensor((2, 2), (3, 1)), Code.FORMAT_SHAPE),
    "a negative offset": (asm.tensor((1,), (1,), -1), Code.FORMAT_UNSAFE),
    "a negative stride": (asm.tensor((2,), (-1,), 3), Code.FORMAT_UNSAFE),
    "a negative extent": (asm.tensor((-1,), (1,)), Code.FORMAT_UNSAFE),
    "one stride too few": (asm.tensor((2, 2), (1,)), Code.FORMAT_UNSAFE),
    "extents beyond 64 bits": (asm.tensor((0, 1 << 62, 1 << 62), (1, 1, 1)), Code.FORMAT_LIMIT),
    "33 dimensions": (asm.tensor((1,) * 33, (1,) * 33), Code.FORMAT_LIMIT),
    "65 dimensions": (asm.tensor((1,) * 65, (1,) * 65), Code.FORMAT_UNSAFE),
    "a storage of other size": (asm.tensor(held=asm.storage(numel=5)), Code.FORMAT_SHAPE),
    "a storage of overflowing size": (
        asm.tensor(held=asm.storage(numel=(1 << 62) + 4)),
        Code.FORMAT_SHAPE,
    ),
    "a negative storage": (asm.tensor(held=asm.storage(numel=-4)), Code.FORMAT_HEADER),
    "a storage that is not there": (asm.tensor(held=asm.storage("7")), Code.FORMAT_TRUNCATED),
    "a storage outside its folder": (
        asm.tensor(held=asm.storage("../data.pkl")),
        Code.FORMAT_TRUNCATED,
    ),
    "a storage of no class": (
        asm.tensor(held=asm.storage(kind="torch\nfloat32")),
        Code.FORMAT_UNSAFE,
    ),
    "bytes without a dtype": (
        asm.tensor(held=asm.storage(numel=16, kind=BARE)),
        Code.FORMAT_UNSAFE,
    ),
    "a persistent id of another kind": (asm.text("module") + b"\x85Q", Code.FORMAT_UNSAFE),
    "a text persistent id": (b"Pstorage\n", Code.FORMAT_UNSAFE),
    "an extension": (b"\x82\x01", Code.FORMAT_UNSAFE),
    "a pop": (GOOD + b"0", Code.FORMAT_UNSAFE),
    "a dup": (GOOD + b"2", Code.FORMAT_UNSAFE),
    "a text integer": (b"I1\n", Code.FORMAT_UNSAFE),
    "an item set on a list": (b"]" + asm.text("a") + b"Ns", Code.FORMAT_HEADER),
    "an item set on a tensor": (asm.tensor() + asm.text("a") + b"Ns", Code.FORMAT_HEADER),
    "an item appended to a dict": (b"}Na", Code.FORMAT_HEADER),
    "an odd number of items": (b"}(" + asm.text("a") + b"u", Code.FORMAT_HEADER),
    "a state given to a tensor": (asm.tensor() + b"}b", Code.FORMAT_UNSAFE),
    "a call of a value": (b"N)R", Code.FORMAT_HEADER),
    "an unfinished container": (b"(N", Code.FORMAT_HEADER),
    "two values": (b"NN", Code.FORMAT_HEADER),
    "no value": (b"", Code.FORMAT_HEADER),
    "a pop below the mark": (b"N(a", Code.FORMAT_TRUNCATED),
    "a memo never filled": (b"h\x05", Code.FORMAT_HEADER),
    "a protocol of tomorrow": (b"\x80\x06N", Code.FORMAT_HEADER),
    "a string beyond the end": (b"X\xff\xff\xff\xffab", Code.FORMAT_TRUNCATED),
    "a frame beyond the end": (b"\x95" + struct.pack("<Q", 1 << 60) + b"N", Code.FORMAT_TRUNCATED),
    "bad UTF-8": (b"X\x01\0\0\0\xff", Code.FORMAT_HEADER),
    "an endless global": (b"c" + b"a" * 2000, Code.FORMAT_HEADER),
    "a mark in a mark in a mark": (b"(" * 1000, Code.FORMAT_LIMIT),
    "too many opcodes": (b"N\x85" * (1 << 21) + b"\x85", Code.FORMAT_LIMIT),
    "nested laughs": (LAUGHS, Code.FORMAT_LIMIT),
    "a dict in itself": (b"}q\x00" + asm.text("a") + b"h\x00s", Code.FORMAT_LIMIT),
    "a list in itself": (b"]q\x00h\x00a", Code.FORMAT_LIMIT),
    "two hundred levels": (LEVELS, Code.FORMAT_LIMIT),
    "one list copied many times": (COPIES, Code.FORMAT_LIMIT),
    "a name that stands twice": (TWICE, Code.FORMAT_NAME),
    "the same key twice": (asm.dictionary(*(asm.text("w"), asm.tensor()) * 2), Code.FORMAT_NAME),
    "a name with NUL": (asm.dictionary(asm.text("a\0b"), asm.tensor()), Code.FORMAT_NAME),
    "a name that is no text": (asm.dictionary(asm.text("a\ud800"), asm.tensor()), Code.FORMAT_NAME),
    "a key that is no name": (asm.dictionary(b"N", asm.tensor()), Code.FORMAT_NAME),
    "bytes after the pickle": (GOOD + b".N", Code.FORMAT_HEADER),
    "a tensor subclass": (b"ctorch._utils\n_rebuild_wrapper_subclass\n)R", Code.FORMAT_UNSAFE),
    "a quantised tensor": (b"ctorch._utils\n_rebuild_qtensor\n)R", Code.FORMAT_UNSAFE),
}


@pytest.mark.parametrize("attack", PICKLES)
def test_a_hostile_pickle_is_refused(tmp_path: Path, attack: str) -> None:
    raw, code = PICKLES[attack]
    assert refused(asm.placed(tmp_path, asm.checkpoint(raw))).code == code.identifier


def test_a_thousand_views_of_one_storage_are_refused(tmp_path: Path) -> None:
    views = [asm.text(str(i)) + asm.tensor((2, 2), (1, 2 - i % 2)) for i in range(2)]
    assert torch_file.open_file(
        asm.placed(tmp_path, asm.checkpoint(asm.dictionary(*views)))
    ).tensors
    many = [
        asm.text(f"{i}.{j}.{k}") + asm.tensor((4 - i, j, k), (1, 0, 0))
        for i in range(3)
        for j in range(1, 3)
        for k in range(1, 3)
        if (4 - i) * j * k <= 4
    ]
    many += [asm.text(f"x{i}") + asm.tensor((1,) * i + (4,), (1,) * (i + 1)) for i in range(20)]
    fault = refused(asm.placed(tmp_path, asm.checkpoint(asm.dictionary(*many))))
    assert fault.code == Code.FORMAT_LIMIT.identifier


def test_the_assembled_checkpoint_itself_is_read(tmp_path: Path) -> None:
    reads(asm.placed(tmp_path, asm.checkpoint(GOOD)))


# Archives.

RECORDS = {"data.pkl": asm.pickled(GOOD), "data/0": bytes(16), "version": b"3\n"}
PLAIN = asm.archive(RECORDS)


def with_twins(*names: str) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return named([*(f"x/{name}" for name in RECORDS), *names])


def named(names: list[str]) -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as out:
        for name in names:
            out.writestr(zipfile.ZipInfo(name), RECORDS.get(name.split("/", 1)[-1], b"evil"))
    return raw.getvalue()


def patched(signature: bytes, at: int, value: bytes, data: bytes = PLAIN, which: int = 0) -> bytes:
    """Return the archive with bytes of its `which`-th header changed."""
    start = -1
    for _ in range(which + 1):
        start = data.index(signature, start + 1)
    return data[: start + at] + value + data[start + at + len(value) :]


LOCAL, CENTRAL, END = b"PK\3\4", b"PK\1\2", b"PK\5\6"


def both(at_local: int, at_central: int, value: bytes, data: bytes = PLAIN) -> bytes:
    return patched(CENTRAL, at_central, value, patched(LOCAL, at_local, value, data))


def moved(data: bytes, before: int, inserted: bytes) -> bytes:
    """Return the archive with bytes put before the directory's start, its end record following."""
    end = data.index(END)
    start = struct.unpack_from("<I", data, end + 16)[0]
    raw = data[:before] + inserted + data[before:]
    return patched(END, 16, struct.pack("<I", start + len(inserted)), raw)


def deflated() -> bytes:
    return asm.archive({**RECORDS, "data/0": bytes(1 << 20)}, method=zipfile.ZIP_DEFLATED)


def overlapping() -> bytes:
    first = struct.unpack_from("<I", PLAIN, PLAIN.index(CENTRAL) + 42)[0]
    return patched(CENTRAL, 42, struct.pack("<I", first), which=1)


def hidden(index: int) -> bytes:
    """Return an archive with a record that its directory does not list."""
    data = asm.archive({"a": b"evil", "b": b"evil", **RECORDS})
    rows = data[data.index(CENTRAL) : data.index(END)].split(CENTRAL)[1:]
    del rows[index]
    listed = b"".join(CENTRAL + row for row in rows)
    end = struct.pack("<2HI", len(rows), len(rows), len(listed))
    return patched(END, 8, end, data[: data.index(CENTRAL)] + listed + data[data.index(END) :])


ARCHIVES: dict[str, Callable[[], bytes]] = {
    "twin names": lambda: with_twins("x/data.pkl"),
    "twins by case": lambda: with_twins("x/DATA.PKL"),
    "twins by case in the folder": lambda: with_twins("x/Data/0"),
    "twins by form": lambda: with_twins("x/\u00e9", "x/" + unicodedata.normalize("NFD", "\u00e9")),
    "only another case": lambda: named(["x/DATA.PKL", "x/data/0"]),
    "two roots": lambda: with_twins("y/data.pkl"),
    "no root": lambda: with_twins("data.pkl"),
    "a slip": lambda: with_twins("x/../../evil"),
    "an absolute name": lambda: with_twins("/x/evil"),
    "a backslash": lambda: with_twins("x/..\\evil"),
    "a folder": lambda: with_twins("x/data/"),
    "a prefix": lambda: b"#!/bin/sh\n" + PLAIN,
    "a hidden record first": lambda: hidden(0),
    "a hidden record between": lambda: hidden(1),
    "a zip prefix": lambda: PLAIN + PLAIN,
    "a suffix": lambda: PLAIN + b"junk",
    "a comment": lambda: PLAIN[:-2] + b"\4\0junk",
    "a comment cut off": lambda: PLAIN[:-2] + b"\4\0",
    "bytes before the directory": lambda: moved(PLAIN, PLAIN.index(CENTRAL), b"junk"),
    "bytes after the directory": lambda: (
        PLAIN[: PLAIN.index(END)] + b"junk" + PLAIN[PLAIN.index(END) :]
    ),
    "compressed records": deflated,
    "a local name of its own": lambda: patched(LOCAL, 30, b"y"),
    "a local flag of its own": lambda: patched(LOCAL, 6, b"\1"),
    "a local method of its own": lambda: patched(LOCAL, 8, b"\x08"),
    "a local size of its own": lambda: patched(LOCAL, 22, b"\1"),
    "a local checksum of its own": lambda: patched(LOCAL, 14, b"\1"),
    "an encrypted record": lambda: both(6, 8, b"\1"),
    "a patch record": lambda: both(6, 8, b"\x20"),
    "another disk": lambda: patched(CENTRAL, 34, b"\1"),
    "a local name longer": lambda: patched(LOCAL, 26, b"\xff"),
    "an offset beyond the file": lambda: patched(CENTRAL, 42, b"\xff\xff\xff\x7f"),
    "records on one place": overlapping,
    "a record fewer": lambda: patched(END, 8, b"\2\0\2"),
    "a record more": lambda: patched(END, 8, b"\4\0\4"),
    "the end record of another disk": lambda: patched(END, 4, b"\1"),
    "an empty archive": lambda: b"PK\5\6" + bytes(18),
    "a cut archive": lambda: PLAIN[:-30],
    "a wrong checksum": lambda: both(14, 16, b"\0\0\0\0"),
    "a changed weight": lambda: PLAIN.replace(bytes(16), bytes(15) + b"\1", 1),
    "a changed pickle": lambda: PLAIN.replace(asm.text("w"), asm.text("v"), 1),
    "a storage too short": lambda: asm.archive({**RECORDS, "data/0": bytes(15)}),
    "a storage too long": lambda: asm.archive({**RECORDS, "data/0": bytes(17)}),
    "no pickle": lambda: asm.archive({"data/0": bytes(16)}),
    "a version of tomorrow": lambda: asm.archive({**RECORDS, "version": b"99\n"}),
    "an unknown byte order": lambda: asm.archive({**RECORDS, "byteorder": b"middle"}),
}


@pytest.mark.parametrize("attack", ARCHIVES)
def test_a_hostile_archive_is_refused(tmp_path: Path, attack: str) -> None:
    data = ARCHIVES[attack]()
    assert data != PLAIN
    code = refused(asm.placed(tmp_path, data)).code
    assert code in {f"PL5{n:02}" for n in range(1, 10)} | {"PL114", "PL117"}


@pytest.mark.parametrize("at", [0, 4, 16, 20, 24, 32, 40, 48])
def test_the_two_end_records_must_agree(tmp_path: Path, at: int) -> None:
    path = tmp_path / "x.pt"
    torch_file.write(torch_file.open_file(asm.placed(tmp_path, PLAIN)), path)
    data = path.read_bytes()
    reads(path)
    found = data[data.index(b"PK\6\6") + at]
    changed = patched(b"PK\6\6", at, bytes([found ^ 1]), data)
    assert refused(asm.placed(tmp_path, changed)).code == Code.FORMAT_HEADER.identifier
    for field, shape in ((8, "<H"), (10, "<H"), (12, "<I"), (16, "<I")):
        start = data.rindex(END) + field
        value = struct.unpack_from(shape, data, start)[0] + 1
        near = data[:start] + struct.pack(shape, value) + data[start + struct.calcsize(shape) :]
        assert refused(asm.placed(tmp_path, near)).code == Code.FORMAT_HEADER.identifier


def described(crc: int, size: int, *, tail: bytes = b"", extra: bytes = b"") -> bytes:
    """Return an archive of one record with a descriptor, as torch writes them."""
    data, name = asm.pickled(asm.dictionary()), b"x/data.pkl"
    local = struct.pack("<4s5H3I2H", LOCAL, 0, 8, 0, 0, 0, 0, 0, 0, len(name), len(extra))
    first = local + name + extra + data + b"PK\7\x08" + struct.pack("<3I", crc, size, size) + tail
    true = zlib.crc32(data), len(data), len(data)
    row = struct.pack("<4s6H3I5H2I", CENTRAL, 0, 0, 8, 0, 0, 0, *true, len(name), 0, 0, 0, 0, 0, 0)
    end = struct.pack("<4s4H2IH", END, 0, 0, 1, 1, len(row + name), len(first), 0)
    return first + row + name + end


def test_a_descriptor_must_say_what_the_directory_says(tmp_path: Path) -> None:
    data = asm.pickled(asm.dictionary())
    crc, size = zlib.crc32(data), len(data)
    padding = struct.pack("<2H", 0x4246, 5) + b"ZZZZZ"
    for good in (described(crc, size), described(crc, size, extra=padding)):
        reader = torch_file.open_file(asm.placed(tmp_path, good))
        assert reader.notes == ("the state_dict is empty",)
    unicode_name = struct.pack("<2HBI", 0x7075, 5, 1, 0)
    for wrong in (
        described(crc ^ 1, size),
        described(crc, size + 1),
        described(crc, size, tail=b"\0"),
        described(crc, size, extra=unicode_name),
        described(crc, size, extra=padding[:-1]),
        described(crc, size, extra=padding * 2),
    ):
        assert refused(asm.placed(tmp_path, wrong)).code == Code.FORMAT_HEADER.identifier


STREAM = asm.stream(GOOD, ("0",), struct.pack("<q4f", 4, 1, 2, 3, 4))
STREAMS = {
    "one byte more": STREAM + b"\0",
    "one byte fewer": STREAM[:-1],
    "another count": STREAM.replace(struct.pack("<q", 4), struct.pack("<q", 3)),
    "a storage that nothing lists": asm.stream(GOOD, (), b""),
    "a storage listed twice": asm.stream(GOOD, ("0", "0"), struct.pack("<q4f", 4, 1, 2, 3, 4) * 2),
    "a storage that nothing names": asm.stream(
        GOOD, ("0", "1"), struct.pack("<q4f", 4, 1, 2, 3, 4)
    ),
    "two sizes of one storage": asm.stream(
        asm.dictionary(
            asm.text("a"), asm.tensor(), asm.text("b"), asm.tensor((3,), held=asm.storage(numel=3))
        ),
        ("0",),
        struct.pack("<q4f", 4, 1, 2, 3, 4),
    ),
    "a bare pickle": asm.pickled(GOOD),
    "another protocol": STREAM.replace(asm.number(1001), asm.number(1002)),
    "a tar": b"storages".ljust(257, b"\0") + b"ustar\x0000".ljust(255, b"\0"),
    "nothing": b"",
    "text": b"weights",
    "html": b"<!DOCTYPE html><html>404</html>",
}


@pytest.mark.parametrize("attack", STREAMS)
def test_a_hostile_stream_is_refused(tmp_path: Path, attack: str) -> None:
    assert refused(asm.placed(tmp_path, STREAMS[attack])).code.startswith("PL5")


def test_the_assembled_stream_itself_is_read(tmp_path: Path) -> None:
    reads(asm.placed(tmp_path, STREAM))


def test_a_boolean_that_is_neither_is_refused(tmp_path: Path) -> None:
    held = asm.storage(kind="torch\nBoolStorage")
    records = {"data.pkl": asm.pickled(asm.dictionary(asm.text("w"), asm.tensor(held=held)))}
    reads(asm.placed(tmp_path, asm.archive({**records, "data/0": b"\0\1\1\0"})))
    fault = refused(asm.placed(tmp_path, asm.archive({**records, "data/0": b"\0\1\2\0"})))
    assert fault.code == Code.FORMAT_VALUE.identifier


def colliding(count: int) -> bytes:
    """Return as many tensors of one element, whose strides all have one hash as numbers."""
    prime = sys.hash_info.modulus
    signs = [[sign >> place & 1 for place in range(12)] for sign in range(count)]
    strides = [tuple(1 + prime * bit for bit in bits) for bits in signs]
    assert len({hash(stride) for stride in strides}) == 1
    views = [asm.tensor((1,) * 12, stride) for stride in strides]
    return asm.dictionary(*(asm.text(f"w{n}") + view for n, view in enumerate(views)))


def test_views_whose_numbers_have_one_hash_are_no_more_work_than_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from persistlib.converters.torch_layout import View

    compared = 0

    def equal(one: View, other: object) -> bool:
        nonlocal compared
        compared += 1
        return tuple.__eq__(one, other)

    monkeypatch.setattr(View, "__eq__", equal)
    path = asm.placed(tmp_path, asm.checkpoint(colliding(1_000)))
    with pytest.raises(PersistlibError) as caught:  # a thousand views of one storage
        torch_file.open_file(path)
    assert caught.value.code == Code.FORMAT_LIMIT.identifier
    assert compared < 10_000


def test_a_stride_that_no_memory_has_is_refused(tmp_path: Path) -> None:
    body = asm.dictionary(asm.text("w"), asm.tensor((1, 4), (1 << 63, 1)))
    with pytest.raises(PersistlibError) as caught:
        torch_file.open_file(asm.placed(tmp_path, asm.checkpoint(body)))
    assert caught.value.code == Code.FORMAT_LIMIT.identifier


@pytest.mark.parametrize(
    "opcodes",
    [
        b"}",
        b"]",
        b"(t(t",
        b"\x94",
    ],
    ids=["dicts", "lists", "tuples", "kept values"],
)
def test_a_pickle_of_empty_containers_is_refused_before_it_takes_much_memory(
    tmp_path: Path, opcodes: bytes
) -> None:
    import tracemalloc

    count = (1 << 19) // len(opcodes)
    body = b"N" + opcodes * count
    path = asm.placed(tmp_path, asm.checkpoint(body))
    tracemalloc.start()
    try:
        with pytest.raises(PersistlibError) as caught:
            torch_file.open_file(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.code == Code.FORMAT_LIMIT.identifier
    assert peak < 60 * len(body)


def test_a_checkpoint_of_many_small_containers_is_read(tmp_path: Path) -> None:
    pairs = b"(" + b"K\1K\2\x86" * 100_000 + b"t"
    body = asm.dictionary(asm.text("pairs"), pairs, asm.text("w"), asm.tensor())
    with torch_file.open_file(asm.placed(tmp_path, asm.checkpoint(body))) as reader:
        assert [entry.name for entry in reader.entries] == ["w"]


def test_a_directory_of_many_records_is_not_read_to_tell_the_format(tmp_path: Path) -> None:
    import tracemalloc

    from persistlib import formats

    rows = b"".join(
        torch_zip.CENTRAL.pack(b"PK\1\2", *(0,) * 9, 6, *(0,) * 6) + b"%06d" % number
        for number in range(60_000)
    )
    head = torch_zip.LOCAL.pack(b"PK\3\4", *(0,) * 8, 6, 0) + b"000000"
    end = torch_zip.END.pack(b"PK\5\6", 0, 0, 60_000, 60_000, len(rows), len(head), 0)
    path = asm.placed(tmp_path, head + rows + end)
    assert len(zipfile.ZipFile(path).namelist()) == 60_000
    tracemalloc.start()
    try:
        assert formats.by_content(path).name == "torch"
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20
