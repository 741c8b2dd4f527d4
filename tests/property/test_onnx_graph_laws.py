"""Laws of ONNX files: what is put into a graph comes back, and no bytes raise what is not ours."""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from hypothesis import given
from hypothesis import strategies as st
from onnx import GraphProto, helper

from graph_assembly import branches, function
from onnx_assembly import model_of, outside_of, template_for, tensor_of
from persistlib import publish
from persistlib.checkpoint import Entry, identity
from persistlib.converters import onnx_graph
from persistlib.dtypes import DType
from persistlib.errors import PersistlibError
from persistlib.graph_notes import ALIASES, COMPLEX, KEYS, STATE, Notes, parse, render
from persistlib.graph_tensors import ExternalPlace, pairs_of, place_of
from property.strategies import checkpoints, held_by, tensor_names

if TYPE_CHECKING:
    from collections.abc import Generator

    from persistlib.checkpoint import MemoryCheckpoint


@contextmanager
def folder() -> Generator[Path]:
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


def needs_no_file(name: str) -> NoReturn:
    raise AssertionError(name)


@given(checkpoints(of=held_by("onnx")))
def test_writing_into_a_graph_then_reading_gives_back_the_weights(
    checkpoint: MemoryCheckpoint,
) -> None:
    with folder() as place:
        template_for(checkpoint, place / "t.onnx")
        with publish.file(place / "m.onnx") as out:
            onnx_graph.write_to(checkpoint, out, template=place / "t.onnx", beside=needs_no_file)
        with onnx_graph.open_file(place / "m.onnx") as read:
            assert read.entries == checkpoint.entries
            assert dict(read.aliases) == dict(checkpoint.aliases)
            assert dict(read.metadata) == dict(checkpoint.metadata)
            assert identity(read) == identity(checkpoint)


def rich() -> bytes:
    """Return a graph with a bit of everything that is read."""
    entries = [Entry(n, DType.F32, (2,)) for n in ("a", "b", "z")]
    packed = tensor_of(Entry("i", DType.I64, (3,)), b"")
    packed.ClearField("raw_data")
    packed.int64_data.extend([1, -2, 3 << 40])
    narrow = tensor_of(Entry("n", DType.F16, (2,)), b"")
    narrow.ClearField("raw_data")
    narrow.int32_data.extend([1, 40000])
    notes = {ALIASES: '{"z":"a"}', COMPLEX: '["b"]', STATE: '["b","a","z","i"]', "k": "v"}
    model = model_of(
        tensor_of(entries[0], b"12345678"),
        tensor_of(entries[1], b"12345678"),
        tensor_of(entries[2], b"12345678"),
        packed,
        narrow,
        outside_of(Entry("out", DType.I8, (4,)), {"location": "w.data", "offset": "8"}),
        metadata=notes,
    )
    inner = GraphProto(name="i", initializer=[tensor_of(entries[0], b"branches")])
    model.graph.node.extend(branches(inner, 1).node)
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value_ints=[1, 2]))
    model.functions.append(
        function("f", ["Identity"], attribute=tensor_of(entries[0], b"function"))
    )
    data: bytes = model.SerializeToString()
    return data


RICH = rich()


def read_whole(path: Path, key: str | None) -> None:
    with onnx_graph.open_file(path, key=key) as checkpoint:
        for entry in checkpoint:
            assert checkpoint.read_bytes(entry.name).nbytes == entry.nbytes


def read_or_our_error(data: bytes) -> None:
    with folder() as place:
        (place / "w.data").write_bytes(bytes(16))
        (place / "m.onnx").write_bytes(data)
        open_before = len(os.listdir("/proc/self/fd"))
        for key in (None, ""):
            with suppress(PersistlibError):
                read_whole(place / "m.onnx", key)
        assert len(os.listdir("/proc/self/fd")) == open_before


def test_the_graph_that_is_mutated_is_read() -> None:
    with folder() as place:
        (place / "w.data").write_bytes(bytes(16))
        (place / "m.onnx").write_bytes(RICH)
        with onnx_graph.open_file(place / "m.onnx", key="") as checkpoint:
            names = ["b", "a", "i", "n", "out", "c", "b.then_branch.a", "own:f.c"]
            assert sorted(entry.name for entry in checkpoint) == sorted(names)


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_give_our_error(data: bytes) -> None:
    read_or_our_error(data)


@given(
    st.lists(st.tuples(st.integers(0, len(RICH) - 1), st.integers(0, 255)), min_size=1, max_size=4)
)
def test_any_mutant_is_read_or_gives_our_error(changes: list[tuple[int, int]]) -> None:
    data = bytearray(RICH)
    for place, byte in changes:
        data[place] = byte
    read_or_our_error(bytes(data))


@given(st.integers(0, len(RICH) - 1))
def test_a_graph_cut_off_anywhere_is_read_or_gives_our_error(end: int) -> None:
    read_or_our_error(RICH[:end])


@given(st.integers(0, len(RICH)), st.binary(max_size=20))
def test_a_graph_with_anything_put_in_is_read_or_gives_our_error(place: int, more: bytes) -> None:
    read_or_our_error(RICH[:place] + more + RICH[place:])


@given(st.sampled_from(sorted(KEYS)), st.text(st.characters(exclude_categories=["Cs"]), max_size=9))
def test_any_note_is_read_or_gives_our_error(key: str, text: str) -> None:
    with suppress(PersistlibError):
        assert parse({key: text}, "m.onnx") is not None


@given(
    st.none() | st.lists(tensor_names, unique=True, max_size=4).map(tuple),
    st.dictionaries(tensor_names, tensor_names, max_size=3),
    st.lists(tensor_names, unique=True, max_size=3).map(tuple),
)
def test_notes_are_read_as_they_were_written(
    state: tuple[str, ...] | None, aliases: dict[str, str], views: tuple[str, ...]
) -> None:
    notes = Notes(state, aliases, views)
    assert parse(render(notes), "m.onnx") == notes


@given(
    st.integers(0, 1 << 62), st.none() | st.integers(0, 1 << 62), st.sampled_from(["", "ab" * 20])
)
def test_places_are_read_as_they_were_written(offset: int, length: int | None, sha: str) -> None:
    place = ExternalPlace("model.onnx.data", offset, length, sha)
    assert place_of(pairs_of(place), "w") == place
