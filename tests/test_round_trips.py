"""The round-trip matrix: every ordered pair of formats, every dtype that both hold, odd shapes and
names, ties: bit for bit, under one identity. What a format does not promise is a loss that is told.

The table of formats is the matrix: a new row, or a new dtype, is tried by standing there.
"""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import persistlib
from onnx_assembly import template_for
from persistlib.checkpoint import CheckpointReader, Entry, MemoryCheckpoint, identity
from persistlib.dtypes import DType
from persistlib.errors import FormatError, LossError, PersistlibError
from persistlib.formats import FORMATS
from persistlib.publish import file
from persistlib.sources import open_file
from property.strategies import checkpoints, held_by

if TYPE_CHECKING:
    from pathlib import Path

    from persistlib.formats import Format

WRITTEN = [row for row in FORMATS.values() if row.is_written]
PAIRS = pytest.mark.parametrize(
    ("first", "second"),
    [pytest.param(a, b, id=f"{a.name}-{b.name}") for a, b in itertools.product(WRITTEN, WRITTEN)],
)
SHAPES = ((), (0,), (3, 0, 5), (1,), (7,), (13, 11), (2, 3, 1, 5, 4), (2,))
ODD_NAMES = (
    "layer.0.weight",
    "layer.0",  # a tensor where others have a module
    "a/b",
    "/",
    "..",
    ".",
    "a..b",
    ".a",
    "a.",
    "\u00e9",
    "e\u0301",  # the same letter in another Unicode form
    "\U0001d54f \u202eabc\n\t",
    "__metadata__x",
    "%2E",
    "weight:0",
    "x" * 1500,
    "y." * 700 + "z",
)


# A name that a format keeps for itself: in a graph, the empty one means "left out".
RESERVED = {"safetensors": "__metadata__", "onnx": ""}


def fits(dtype: DType, shape: tuple[int, ...]) -> bool:
    """Return whether packed elements fill their bytes, as safetensors and torch want it."""
    return not dtype.is_packed or (bool(shape) and shape[-1] * dtype.value.bits % 8 == 0)


def filled(dtype: DType, shape: tuple[int, ...], random: np.random.Generator) -> memoryview:
    data = random.integers(0, 256, dtype.nbytes(shape), dtype=np.uint8)
    if dtype is DType.BOOL:
        data &= 1
    return memoryview(bytearray(data))


def sample(dtypes: list[DType]) -> MemoryCheckpoint:
    """Return a checkpoint with every dtype in every shape, odd names, ties and a large tensor."""
    random = np.random.default_rng(0)
    wanted = [(f"{d.name}.{i}", d, s) for d in dtypes for i, s in enumerate(SHAPES) if fits(d, s)]
    wanted += [(name, DType.F32, (2, 3)) for name in ODD_NAMES]
    wanted += [("large", DType.F32, (1013, 1031)), ("large.half", DType.F16, (3, 700_001))]
    entries = tuple(Entry(name, dtype, shape) for name, dtype, shape in wanted)
    buffers = {e.name: filled(e.dtype, e.shape, random) for e in entries}
    aliases = {"tied/to.large": "large", "z.tied": "large", "zz": "x" * 1500}
    return MemoryCheckpoint(entries, buffers, aliases)


def written(checkpoint: CheckpointReader, row: Format, path: Path) -> Path:
    """Write a checkpoint in a format, into a graph made for it where the format needs one."""
    told = {"template": template(checkpoint, path)} if "template" in row.writes_with else {}
    with file(path) as out:
        row.module().write_to(checkpoint, out, **told, **beside(row))
    return path


def beside(row: Format) -> dict[str, Any]:
    def refuse(name: str) -> Any:
        raise AssertionError(name)

    return {"beside": refuse} if "beside" in row.writes_with else {}


def template(checkpoint: CheckpointReader, path: Path) -> Path:
    graph = path.with_name(f"{path.name}.template.onnx")
    template_for(checkpoint, graph)
    return graph


def read(checkpoint: CheckpointReader) -> dict[str, tuple[DType, tuple[int, ...], bytes]]:
    owners = {entry.name: entry.name for entry in checkpoint} | dict(checkpoint.aliases)
    return {
        name: (
            (entry := checkpoint.tensors[owner]).dtype,
            entry.shape,
            bytes(checkpoint.read_bytes(owner)),
        )
        for name, owner in owners.items()
    }


def ties(checkpoint: CheckpointReader) -> set[frozenset[str]]:
    groups: dict[str, set[str]] = {}
    for alias, name in checkpoint.aliases.items():
        groups.setdefault(name, {name}).add(alias)
    return {frozenset(group) for group in groups.values()}


def convert(source: Path, destination: Path, row: Format, **told: Any) -> Any:
    if row.name == "onnx":
        with open_file(source) as checkpoint:
            told["template"] = template(checkpoint, destination)
    return persistlib.convert(source, destination, to=row.name, overwrite=True, **told)


@PAIRS
def test_every_dtype_shape_name_and_tie_comes_through_bit_for_bit(
    first: Format, second: Format, tmp_path: Path
) -> None:
    common = [d for d in DType if first.holds(d) and second.holds(d)]
    assert len(common) > 15
    origin = sample(common)
    source = written(origin, first, tmp_path / f"one{first.suffixes[0]}")
    destination = tmp_path / f"two{second.suffixes[0]}"
    report = convert(source, destination, second, allow_loss=["graph"])
    assert report.identity == report.source_identity == identity(origin)
    assert all(row.before == row.after and row.name == row.source for row in report.rows)
    assert report.tensors == len(origin.entries) + len(origin.aliases)
    with open_file(destination) as result:
        assert result.format == second.name
        assert read(result) == read(origin)
        assert ties(result) == ties(origin)
        if "order" in first.keeps & second.keeps:
            assert [e.name for e in result] == sorted(
                (e.name for e in result), key=[e.name for e in origin].index
            )


@PAIRS
def test_metadata_is_kept_or_told(first: Format, second: Format, tmp_path: Path) -> None:
    if "metadata" not in first.keeps:
        pytest.skip(f"{first.title} holds none")
    entries = (Entry("w", DType.F32, (2,)),)
    origin = MemoryCheckpoint(entries, {"w": memoryview(bytes(8))}, {}, {"made": "by hand"})
    source = written(origin, first, tmp_path / f"one{first.suffixes[0]}")
    destination = tmp_path / f"two{second.suffixes[0]}"
    if "metadata" in second.keeps:
        convert(source, destination, second, allow_loss=["graph"])
        with open_file(destination) as result:
            assert result.metadata["made"] == "by hand"
        return
    with pytest.raises(LossError) as caught:
        convert(source, destination, second, allow_loss=["graph"])
    assert "metadata made" in caught.value.reason
    assert not destination.exists()
    report = convert(source, destination, second, allow_loss=["graph", "metadata"])
    assert "metadata made" in report.losses


@PAIRS
def test_a_dtype_that_the_target_cannot_hold_is_refused_by_name(
    first: Format, second: Format, tmp_path: Path
) -> None:
    foreign = [d for d in DType if first.holds(d) and not second.holds(d) and not d.is_packed]
    foreign += [d for d in DType if first.holds(d) and not second.holds(d) and d.is_packed]
    if not foreign:
        pytest.skip("the target holds every dtype of the source")
    for dtype in foreign:
        entries = (Entry("odd.one", dtype, (8,)),)
        origin = MemoryCheckpoint(entries, {"odd.one": memoryview(bytes(dtype.nbytes((8,))))})
        source = written(origin, first, tmp_path / f"one{first.suffixes[0]}")
        with pytest.raises(FormatError) as caught:
            persistlib.convert(
                source,
                tmp_path / f"two{second.suffixes[0]}",
                to=second.name,
                allow_loss=["graph"],
                template=source if second.name == "onnx" else None,
            )
        assert caught.value.code == "PL505"
        assert "odd.one" in caught.value.location
        assert dtype.name in caught.value.reason
        assert not [n for n in os.listdir(tmp_path) if n.startswith("two")]


@pytest.mark.parametrize("name", RESERVED)
def test_a_name_that_the_format_keeps_for_itself_is_refused(name: str, tmp_path: Path) -> None:
    entries = (Entry(RESERVED[name], DType.F32, (2,)),)
    origin = MemoryCheckpoint(entries, {RESERVED[name]: memoryview(bytes(8))})
    source = written(origin, FORMATS["torch"], tmp_path / "one.pt")
    (tmp_path / "graph.onnx").write_bytes(b"")
    graph = tmp_path / "graph.onnx" if name == "onnx" else None
    with pytest.raises(PersistlibError):
        persistlib.convert(source, tmp_path / "two", to=name, template=graph)
    assert not (tmp_path / "two").exists()


def test_the_graph_is_a_loss_that_is_told(tmp_path: Path) -> None:
    source = written(sample([DType.F32]), FORMATS["onnx"], tmp_path / "one.onnx")
    with pytest.raises(LossError, match="graph"):
        persistlib.convert(source, tmp_path / "two.safetensors")
    assert not (tmp_path / "two.safetensors").exists()


@PAIRS
@settings(max_examples=3)
@given(data=st.data())
def test_reading_what_was_written_gives_back_what_both_formats_keep(
    first: Format, second: Format, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("law")
    drawn = data.draw(checkpoints(of=held_by(first.name, second.name)))
    origin = MemoryCheckpoint(drawn.entries, drawn.buffers, drawn.aliases)
    if any(not fits(entry.dtype, entry.shape) for entry in origin):
        return
    names = {*origin.tensors, *origin.aliases}
    if any(RESERVED.get(row.name) in names for row in (first, second)):
        return
    source = written(origin, first, folder / f"one{first.suffixes[0]}")
    report = convert(source, folder / f"two{second.suffixes[0]}", second, allow_loss=["graph"])
    assert report.identity == identity(origin)
    with open_file(folder / f"two{second.suffixes[0]}") as result:
        assert read(result) == read(origin)
        assert ties(result) == ties(origin)
