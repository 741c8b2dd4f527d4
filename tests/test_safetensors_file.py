from __future__ import annotations

import json
import os
import struct
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch

from persistlib.checkpoint import Entry, MemoryCheckpoint
from persistlib.converters import file_bytes, safetensors_file
from persistlib.dtypes import DType
from persistlib.errors import Code, FormatError, PersistlibError, TargetError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

KEPT = [dtype for dtype in DType if dtype.value.safetensors]
# The library reads these, and has no name by which it would write them.
UNWRITTEN = {DType.F6_E2M3, DType.F6_E3M2}


def counted(dtype: DType, size: int) -> bytes:
    return bytes(i % (2 if dtype is DType.BOOL else 251) for i in range(size))


def checkpoint(
    entries: dict[str, tuple[DType, tuple[int, ...]]], **metadata: str
) -> MemoryCheckpoint:
    """Return a checkpoint of counted bytes."""
    rows = tuple(Entry(name, dtype, shape) for name, (dtype, shape) in entries.items())
    data = {entry.name: memoryview(counted(entry.dtype, entry.nbytes)) for entry in rows}
    return MemoryCheckpoint(rows, data, {}, metadata)


def written(folder: Path, header: Any, data: bytes = b"", *, pad: int = 0) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(text) + pad) + text + b" " * pad + data)
    return path


@pytest.mark.parametrize("dtype", KEPT)
def test_the_library_reads_what_was_written(tmp_path: Path, dtype: DType) -> None:
    path = tmp_path / "a.safetensors"
    made = checkpoint({"w": (dtype, (3, 8)), "e": (dtype, (0, 4)), "s": (dtype, (8,))}, who="me")
    safetensors_file.write(made, path)
    theirs: dict[str, Any] = dict(safetensors.deserialize(path.read_bytes()))  # type: ignore[no-untyped-call]
    assert {name: bytes(row["data"]) for name, row in theirs.items()} == {
        name: bytes(view) for name, view in made.buffers.items()
    }
    assert all(row["dtype"] == dtype.value.safetensors for row in theirs.values())
    assert {n: tuple(row["shape"]) for n, row in theirs.items()} == {
        entry.name: entry.shape for entry in made
    }
    with safetensors.safe_open(path, "numpy") as opened:
        assert opened.metadata() == {"who": "me"}
        assert opened.get_slice("w").get_dtype() == dtype.value.safetensors


@pytest.mark.parametrize("dtype", [dtype for dtype in KEPT if dtype not in UNWRITTEN])
def test_what_the_library_wrote_is_read(tmp_path: Path, dtype: DType) -> None:
    size = dtype.nbytes((3, 8))
    data = counted(dtype, size)
    array = np.frombuffer(data, np.uint8)
    shape = [3, 4] if dtype is DType.F4 else [3, 8]  # of the pairs
    spec = safetensors.TensorSpec(
        dtype=dtype.value.torch_pairs or dtype.value.torch,
        shape=shape,
        data_ptr=array.ctypes.data,
        data_len=size,
    )
    raw = safetensors.serialize({"w": spec}, {"k": "v"})
    path = tmp_path / "a.safetensors"
    path.write_bytes(raw)
    with safetensors_file.open_file(path) as reader:
        assert reader.entries == (Entry("w", dtype, (3, 8)),)
        assert reader.metadata == {"k": "v"}
        assert bytes(reader.read_bytes("w")) == data
        assert b"".join(map(bytes, reader.windows("w"))) == data


def test_the_librarys_torch_side_agrees_where_it_has_the_dtype(tmp_path: Path) -> None:
    tensors = {
        "e8m0": torch.tensor([1, 200], dtype=torch.uint8).view(torch.float8_e8m0fnu),
        "pairs": torch.arange(6, dtype=torch.uint8).reshape(3, 2).view(torch.float4_e2m1fn_x2),
        "c": torch.tensor([1 + 2j]),
        "bf16": torch.ones(3, dtype=torch.bfloat16),
    }
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file(tensors, path)
    with safetensors_file.open_file(path) as reader:
        assert reader.tensors["pairs"] == Entry("pairs", DType.F4, (3, 4))
        for name, tensor in tensors.items():
            assert bytes(reader.read_bytes(name)) == tensor.view(torch.uint8).numpy().tobytes()
        safetensors_file.write(reader, tmp_path / "b.safetensors")
    again = safetensors.torch.load_file(tmp_path / "b.safetensors")
    for name, tensor in tensors.items():
        assert again[name].dtype == tensor.dtype
        assert torch.equal(again[name].view(torch.uint8), tensor.view(torch.uint8))


@pytest.mark.parametrize(
    ("dtype", "shape", "code"),
    [
        (DType.C128, (2,), Code.FORMAT_DTYPE),
        (DType.I4, (2,), Code.FORMAT_DTYPE),
        (DType.U2, (4,), Code.FORMAT_DTYPE),
        (DType.F4, (3,), Code.FORMAT_SHAPE),
        (DType.F6_E2M3, (3, 3), Code.FORMAT_SHAPE),
    ],
)
def test_what_the_header_cannot_say_is_refused_before_a_byte_is_written(
    tmp_path: Path, dtype: DType, shape: tuple[int, ...], code: Code
) -> None:
    with pytest.raises(FormatError) as caught:
        safetensors_file.write(checkpoint({"odd.one": (dtype, shape)}), tmp_path / "a.safetensors")
    assert caught.value.code == code.identifier
    assert "odd.one" in caught.value.location
    assert caught.value.finding.remedy
    assert os.listdir(tmp_path) == []


def row(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8), **more: Any) -> Any:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets} | more


HEADERS: dict[str, tuple[Any, Code]] = {
    "twice": (b'{"a":%b,"a":%b}' % ((json.dumps(row()).encode(),) * 2), Code.FORMAT_HEADER),
    "no brace": (b" {}", Code.FORMAT_HEADER),
    "unknown field": ({"a": row(more=1)}, Code.FORMAT_HEADER),
    "missing field": ({"a": {"dtype": "F32", "shape": [2]}}, Code.FORMAT_HEADER),
    "unknown dtype": ({"a": row("F31")}, Code.FORMAT_DTYPE),
    "no dtype": ({"a": row("")}, Code.FORMAT_DTYPE),
    "dtype no text": ({"a": row(7)}, Code.FORMAT_DTYPE),
    "negative extent": ({"a": row(shape=[-2])}, Code.FORMAT_SHAPE),
    "true as extent": ({"a": row(shape=[True, 2])}, Code.FORMAT_SHAPE),
    "65 dimensions": ({"a": row(shape=[1] * 64 + [2])}, Code.FORMAT_SHAPE),
    "overflowing shape": ({"a": row(shape=[1 << 32, 1 << 32], offsets=[0, 0])}, Code.FORMAT_SHAPE),
    "empty of impossible extents": (
        {"a": row(shape=[0, 1 << 62, 4], offsets=[0, 0])},
        Code.FORMAT_SHAPE,
    ),
    "other size": ({"a": row(shape=[3])}, Code.FORMAT_SHAPE),
    "half a byte": ({"a": row("F4", [15], [0, 8])}, Code.FORMAT_SHAPE),
    "backwards": ({"a": row(offsets=[8, 0])}, Code.FORMAT_HEADER),
    "hole": ({"a": row(offsets=[4, 12])}, Code.FORMAT_HEADER),
    "overlap": ({"a": row(), "b": row(offsets=[4, 12])}, Code.FORMAT_HEADER),
    "surplus": ({}, Code.FORMAT_TRUNCATED),
    "metadata no map": ({"__metadata__": 1}, Code.FORMAT_HEADER),
    "metadata no text": ({"__metadata__": {"a": 1}}, Code.FORMAT_HEADER),
    "NUL in a name": ({"a\0": row()}, Code.FORMAT_NAME),
    "NaN": (b'{"a":NaN}', Code.FORMAT_HEADER),
    "not UTF-8": (b'{"\xff":1}', Code.FORMAT_HEADER),
    "no object": (b"{]", Code.FORMAT_HEADER),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_a_malformed_header_is_refused_by_its_code(tmp_path: Path, kind: str) -> None:
    header, code = HEADERS[kind]
    path = written(tmp_path, header, bytes(8))
    with pytest.raises(PersistlibError) as caught:
        safetensors_file.open_file(path)
    assert caught.value.code == code.identifier
    assert str(path) in caught.value.location or kind == "NUL in a name"


def test_a_header_beyond_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    size = safetensors_file.HEADER_LIMIT + 1
    path.write_bytes(struct.pack("<Q", size) + b"{")
    os.truncate(path, 8 + size)
    with pytest.raises(FormatError) as caught:
        safetensors_file.open_file(path)
    assert caught.value.code == Code.FORMAT_LIMIT.identifier


def test_a_boolean_of_two_is_refused_by_both_ways_of_reading(tmp_path: Path) -> None:
    path = written(tmp_path, {"a": row("BOOL", [3], [0, 3])}, b"\0\1\2")
    with safetensors_file.open_file(path) as reader:
        for read in (reader.read_bytes, lambda name: list(reader.windows(name))):
            with pytest.raises(FormatError) as caught:
                read("a")
            assert caught.value.code == Code.FORMAT_VALUE.identifier


def test_a_file_that_shrinks_is_an_error_and_no_signal(tmp_path: Path) -> None:
    big = 3 * file_bytes.STEP
    path = written(tmp_path, {"a": row("U8", [big], [0, big])}, bytes(big))
    with safetensors_file.open_file(path) as reader:
        windows = reader.windows("a")
        next(windows)
        os.truncate(path, 100)
        with pytest.raises(FormatError) as caught:
            list(windows)
        assert caught.value.code == Code.FORMAT_TRUNCATED.identifier
        with pytest.raises(FormatError) as caught:
            reader.read_bytes("a")
        assert caught.value.code == Code.FORMAT_TRUNCATED.identifier


def test_a_closed_reader_says_so_and_its_views_stay(tmp_path: Path) -> None:
    path = written(tmp_path, {"a": row("U8", [3], [0, 3])}, b"abc")
    with safetensors_file.open_file(path) as reader:
        view = reader.read_bytes("a")
    assert bytes(view) == b"abc"
    for read in (reader.read_bytes, lambda name: list(reader.windows(name))):
        with pytest.raises(UsageError):
            read("a")


def test_a_reader_lets_go_of_its_file_without_being_closed(tmp_path: Path) -> None:
    path = written(tmp_path, {"a": row("U8", [3], [0, 3])}, b"abc")
    before = os.listdir("/proc/self/fd")
    for _ in range(50):
        safetensors_file.open_file(path)
    assert len(os.listdir("/proc/self/fd")) <= len(before) + 1


def test_what_is_no_file_is_an_error_of_ours(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "absent", tmp_path, tmp_path / "pipe"):
        with pytest.raises(TargetError):
            safetensors_file.open_file(path)


@pytest.mark.parametrize("step", [1, 7, 16, 1 << 10])
def test_windows_are_the_bytes_whatever_their_size(tmp_path: Path, step: int) -> None:
    made = checkpoint({"a": (DType.U8, (1000,)), "b": (DType.F32, (7, 9)), "c": (DType.U8, (0,))})
    path = tmp_path / "a.safetensors"
    safetensors_file.write(made, path)
    with (
        patch.object(file_bytes, "STEP", step),
        patch.object(file_bytes, "_THREADED", 16),
        safetensors_file.open_file(path) as reader,
    ):
        for name, data in made.buffers.items():
            assert b"".join(map(bytes, reader.windows(name))) == bytes(data)


def test_two_tensors_may_be_read_at_once_and_one_left_unread(tmp_path: Path) -> None:
    size = 5 * file_bytes.STEP // 2
    arrays = [np.random.default_rng(seed).integers(0, 256, size, np.uint8) for seed in (1, 2)]
    entries = tuple(Entry(name, DType.U8, (size,)) for name in "ab")
    held = {name: array.data for name, array in zip("ab", arrays, strict=True)}
    path = tmp_path / "a.safetensors"
    safetensors_file.write(MemoryCheckpoint(entries, held), path)
    with safetensors_file.open_file(path) as reader:
        next(reader.windows("b"))
        pairs = zip(reader.windows("a"), reader.windows("b"), strict=True)
        both = [(bytes(x), bytes(y)) for x, y in pairs]
    assert b"".join(x for x, _ in both) == bytes(held["a"])
    assert b"".join(y for _, y in both) == bytes(held["b"])


def test_metadata_that_would_read_as_a_tie_is_refused(tmp_path: Path) -> None:
    made = checkpoint({"a": (DType.U8, (1,))}, b="a")
    with pytest.raises(FormatError) as caught:
        safetensors_file.write(made, tmp_path / "a.safetensors")
    assert caught.value.code == Code.FORMAT_NAME.identifier
