"""What a graph notes of its model reads back, and whatever else stands there is refused by name."""

from __future__ import annotations

import json
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import persistlib
from persistlib.errors import PersistlibError, PersistlibWarning
from persistlib.graph_notes import MODEL
from persistlib.manifest.schema import Lineage, Status
from persistlib.model_notes import ModelNote, NotedInput, NotedState, noted_tensors, parse, render
from property.strategies import digests, floats, identities, integers, json_values, manifests, texts

if TYPE_CHECKING:
    from pathlib import Path

    from persistlib.manifest.schema import Manifest

counts = st.integers(0, 1 << 40)
names = texts.filter(lambda name: "\0" not in name)


@st.composite
def noted_inputs(draw: st.DrawFn) -> NotedInput:
    ends = draw(st.none() | st.lists(integers | floats, min_size=2, max_size=2).map(sorted))
    low, high = ends or (None, None)
    return NotedInput(
        shape=tuple(draw(st.lists(counts, max_size=4))),
        low=low,
        high=high,
        mean=draw(st.none() | floats),
        deviation=draw(st.none() | floats.map(abs)),
    )


@st.composite
def notes(draw: st.DrawFn) -> ModelNote:
    manifest: Manifest = draw(manifests())
    unsaved = noted_tensors({})
    state = NotedState(
        frozen=tuple(draw(st.lists(names, max_size=3))),
        training=manifest.state.training,
        frozen_modules_in_eval=manifest.state.frozen_modules_in_eval,
        unsaved=unsaved,
        strides=manifest.state.strides,
    )
    return ModelNote(
        name=draw(st.none() | texts),
        license=draw(st.none() | texts),
        status=draw(st.builds(Status, reason=st.none() | texts, successor=st.none() | identities)),
        architecture=manifest.architecture,
        interface=manifest.interface,
        weights=draw(identities),
        state=state,
        inputs=tuple(draw(st.lists(noted_inputs(), max_size=3))),
        requires=draw(st.dictionaries(texts, texts, max_size=2)),
        lineage=tuple(draw(st.lists(st.builds(Lineage, relation=texts, source=texts), max_size=2))),
        left_out=tuple(draw(st.lists(texts, max_size=3))),
    )


@given(notes())
def test_a_note_that_was_rendered_parses_back_the_same(note: ModelNote) -> None:
    said = render(note)
    assert parse(said, "m.onnx") == note
    assert render(parse(said, "m.onnx") or note) == said


@given(st.dictionaries(names, st.binary(max_size=9), max_size=4), digests)
def test_values_outside_the_state_dict_are_noted_whatever_their_order(
    values: dict[str, bytes], digest: str
) -> None:
    from persistlib.model_notes import Unsaved

    tensors = {n: Unsaved("U8", (len(v),), digest, memoryview(v)) for n, v in values.items()}
    assert noted_tensors(tensors) == noted_tensors(dict(reversed(tensors.items())))


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graph")
    torch.manual_seed(5)
    module = persistlib.build("torch.nn:Linear", in_features=2, out_features=2)
    persistlib.save(
        module,
        folder / "saved",
        example_inputs=torch.randn(2, 2),
        interface={"labels": ["a", "b"]},
        lineage=[{"relation": "fine-tuned-from"}],
        onnx=True,
    )
    persistlib.convert(folder / "saved", folder / "m.onnx")
    return folder / "m.onnx"


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of everything inside a JSON value."""
    if isinstance(value, dict):
        inside = list(value.items())
    else:
        inside = list(enumerate(value)) if isinstance(value, list) else []
    found = [path] if path else []
    for key, item in inside:
        found += places(item, (*path, key))
    return found


def test_a_note_of_inputs_that_fill_the_memory_is_refused(graph: Path) -> None:
    model = onnx.load(graph)
    item = next(item for item in model.metadata_props if item.key == MODEL)
    note = json.loads(item.value)
    note["interface"]["inputs"][0]["shape"][0] = 1 << 40
    item.value = json.dumps(note, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    other = graph.with_name("large.onnx")
    other.write_bytes(model.SerializeToString())
    with pytest.raises(PersistlibError, match="more than are drawn"):
        persistlib.convert(other, graph.with_name("large"))


@settings(
    max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(data=st.data())
def test_any_other_value_anywhere_in_a_note_is_refused_or_harmless(
    graph: Path, data: st.DataObject
) -> None:
    model = onnx.load(graph)
    item = next(item for item in model.metadata_props if item.key == MODEL)
    note = json.loads(item.value)
    *path, last = data.draw(st.sampled_from(places(note)))
    place = note
    for part in path:
        place = place[part]
    place[last] = data.draw(json_values)
    item.value = json.dumps(note, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    other = graph.with_name("other.onnx")
    other.write_bytes(model.SerializeToString())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PersistlibWarning)
        with suppress(PersistlibError):
            persistlib.convert(other, graph.with_name("back"), overwrite=True)
            assert persistlib.verify(graph.with_name("back")).ok
