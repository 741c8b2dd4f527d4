from __future__ import annotations

import json
import random
import struct
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from persistlib.checkpoint import CheckpointReader, Entry, MemoryCheckpoint, identity
from persistlib.converters import file_bytes, safetensors_file
from persistlib.dtypes import DType
from persistlib.errors import PersistlibError
from persistlib.publish import file as published

if TYPE_CHECKING:
    from collections.abc import Iterator

    from persistlib.publish import OutFile

KEPT = [dtype for dtype in DType if dtype.value.safetensors]
NAMES = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=12
).filter(lambda name: name != "__metadata__")
SHAPES = st.lists(st.integers(0, 3), max_size=4).map(tuple)


@st.composite
def checkpoints(draw: st.DrawFn) -> MemoryCheckpoint:
    """Any names, dtypes, shapes, bytes, ties and metadata that the format keeps."""
    names = draw(st.lists(NAMES, min_size=0, max_size=6, unique=True))
    groups: dict[int, list[str]] = {}
    for name in names:
        groups.setdefault(draw(st.integers(0, 5)), []).append(name)
    entries: list[Entry] = []
    buffers: dict[str, memoryview] = {}
    aliases: dict[str, str] = {}
    for tied in groups.values():
        kept = min(tied)
        dtype, shape = draw(st.sampled_from(KEPT)), draw(SHAPES)
        shape = (*shape, 4 * draw(st.integers(0, 2))) if dtype.is_packed else shape
        entry = Entry(kept, dtype, shape)
        data = draw(st.binary(min_size=entry.nbytes, max_size=entry.nbytes))
        data = bytes(b & 1 for b in data) if entry.dtype is DType.BOOL else data
        entries.append(entry)
        buffers[kept] = memoryview(data)
        aliases |= {name: kept for name in tied if name not in (kept, "format")}
    taken = {*buffers, *aliases}
    texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
    metadata = draw(st.dictionaries(texts, texts, max_size=3))
    free = {k: v for k, v in metadata.items() if k not in taken and v not in taken}
    return MemoryCheckpoint(tuple(entries), buffers, aliases, free)


def facts(reader: CheckpointReader) -> tuple[dict[Entry, bytes], dict[str, str], dict[str, str]]:
    """Return all that the format keeps."""
    rows = {entry: bytes(reader.read_bytes(entry.name)) for entry in reader}
    return rows, dict(reader.aliases), dict(reader.metadata)


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "x.safetensors"


@given(checkpoints(), st.sampled_from([1, 8, 1000]))
@settings(max_examples=150)
def test_reading_what_was_written_gives_back_all_that_the_format_keeps(
    scratch: Path, checkpoint: MemoryCheckpoint, step: int
) -> None:
    safetensors_file.write(checkpoint, scratch)
    with (
        safetensors_file.open_file(scratch) as reader,
        patch.multiple(file_bytes, STEP=step, _THREADED=4),
    ):
        assert facts(reader) == facts(checkpoint)
        assert identity(reader) == identity(checkpoint)
    in_memory = safetensors_file.read_memory(memoryview(scratch.read_bytes()), "memory")
    assert facts(in_memory) == facts(checkpoint)
    assert safetensors_file.render(checkpoint) == scratch.read_bytes()


@given(checkpoints())
@settings(max_examples=60)
def test_the_library_reads_what_was_written(scratch: Path, checkpoint: MemoryCheckpoint) -> None:
    safetensors_file.write(checkpoint, scratch)
    rows: Any = safetensors.deserialize(scratch.read_bytes())  # type: ignore[no-untyped-call]
    theirs = {name: bytes(row["data"]) for name, row in rows}
    assert theirs == {name: bytes(view) for name, view in checkpoint.buffers.items()}


@given(checkpoints(), st.integers(1, 40))
@settings(max_examples=100)
def test_shards_and_their_index_give_back_the_whole(
    scratch: Path, checkpoint: MemoryCheckpoint, limit: int
) -> None:
    if not checkpoint.entries:
        return
    index = scratch.with_name("m.safetensors.index.json")
    with ExitStack() as files:

        def beside(name: str) -> OutFile:
            return files.enter_context(published(scratch.with_name(name), overwrite=True))

        safetensors_file.write_to(checkpoint, beside(index.name), beside=beside, shard_bytes=limit)
    with safetensors_file.open_file(index) as reader:
        assert facts(reader) == facts(checkpoint)
        assert identity(reader) == identity(checkpoint)


SAMPLE = MemoryCheckpoint(
    (Entry("a", DType.F32, (2, 2)), Entry("b", DType.BOOL, (3,)), Entry("c", DType.F4, (4,))),
    {"a": memoryview(bytes(range(16))), "b": memoryview(b"\0\1\0"), "c": memoryview(b"\x12\x34")},
    {"d": "a"},
    {"k": "v"},
)


def trial(path: Path, data: bytes) -> bool:
    """Read a mutant: it is read, or refused by an error of ours."""
    path.write_bytes(data)
    try:
        with safetensors_file.open_file(path) as reader:
            facts(reader)
            identity(reader)
    except PersistlibError:
        return False
    return True


def test_every_changed_byte_and_every_cut_is_read_or_refused(scratch: Path) -> None:
    data = safetensors_file.render(SAMPLE)
    assert trial(scratch, data)
    for at in range(len(data)):
        for mask in (0x01, 0x20, 0xFF):
            trial(scratch, data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :])
        assert not trial(scratch, data[:at])
    for surplus in (b"\0", b" ", data):
        assert not trial(scratch, data + surplus)


def test_random_damage_is_read_or_refused(scratch: Path) -> None:
    data = safetensors_file.render(SAMPLE)
    chance = random.Random(20261125)
    for _ in range(1500):
        mutant = bytearray(data)
        for _ in range(chance.randint(1, 5)):
            at, count = chance.randrange(len(mutant)), chance.randint(0, 4)
            start = chance.randrange(len(mutant))
            new = chance.choice([chance.randbytes(count), mutant[start : start + count], b""])
            mutant[at : at + chance.randint(0, 4)] = new
        trial(scratch, bytes(mutant))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=8,
)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "F4", "BOOL", "F6_E2M3", "x"]) | JSON,
        "shape": st.lists(st.integers(-1, 1 << 64), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(-1, 40), max_size=3) | JSON,
        "more": JSON,
    },
)
HEADERS = st.dictionaries(
    st.sampled_from(["a", "b", "__metadata__", ""]), FIELDS | JSON, max_size=3
)


@given(HEADERS, st.binary(max_size=24))
@settings(max_examples=300)
def test_any_header_is_read_or_refused(scratch: Path, header: object, data: bytes) -> None:
    text = json.dumps(header).encode()
    trial(scratch, struct.pack("<Q", len(text)) + text + data)


INDEXES = st.fixed_dictionaries(
    {},
    optional={
        "metadata": st.dictionaries(st.sampled_from(["total_size", "k"]), JSON) | JSON,
        "weight_map": st.dictionaries(
            st.sampled_from(["a", "b", "c", "d", "z"]),
            st.sampled_from(["x.safetensors", "y", "../x", "/etc/passwd", "", "a\0b"]) | JSON,
        )
        | JSON,
        "more": JSON,
    },
)


@given(INDEXES)
@settings(max_examples=300)
def test_any_index_is_read_or_refused(scratch: Path, index: object) -> None:
    safetensors_file.write(SAMPLE, scratch)
    trial(scratch.with_name("y.safetensors.index.json"), json.dumps(index).encode())
