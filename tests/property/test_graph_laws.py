"""Laws of reading graphs: whatever the bytes, facts or our own error, and in bounded time."""

from __future__ import annotations

import numpy as np
import onnx
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import helper

from graph_assembly import branches, function, model, of, outside, weight
from persistlib.errors import PersistlibError
from persistlib.runtime.predictions import ranked
from persistlib.runtime.structure import check_graph
from persistlib.wire import measure


def rich() -> bytes:
    """Return a graph with a bit of everything that is walked."""
    inner = onnx.GraphProto(name="i", initializer=[outside("w.data", "inner", offset="0")])
    nodes = [
        helper.make_node("f", ["x"], ["h"], domain="own"),
        helper.make_node("Constant", [], ["c"], value=weight("k")),
        *branches(inner, 2).node,
        helper.make_node("Add", ["h", "w"], ["y"]),
    ]
    functions = [function("f", ["g", "g"]), function("g", ["Identity"])]
    tensors = [outside("w.data", offset="8", length="8")]
    return of(model(nodes, tensors, functions=functions))


RICH = rich()
GIVEN = {"w.data": memoryview(bytes(16))}


def facts_or_our_error(data: bytes) -> None:
    try:
        facts = check_graph(data, external=GIVEN)
    except PersistlibError:
        return
    assert set(facts.external) <= set(GIVEN)


def test_the_graph_that_is_mutated_is_accepted() -> None:
    assert check_graph(RICH, external=GIVEN).external == ("w.data",)


@given(st.binary(max_size=300))
def test_any_bytes_give_facts_or_our_error(data: bytes) -> None:
    facts_or_our_error(data)


@given(
    st.lists(st.tuples(st.integers(0, len(RICH) - 1), st.integers(0, 255)), min_size=1, max_size=4)
)
def test_any_mutant_gives_facts_or_our_error(changes: list[tuple[int, int]]) -> None:
    data = bytearray(RICH)
    for place, byte in changes:
        data[place] = byte
    facts_or_our_error(bytes(data))


@given(st.integers(0, len(RICH) - 1))
def test_a_graph_cut_off_anywhere_gives_facts_or_our_error(end: int) -> None:
    facts_or_our_error(RICH[:end])


@given(st.integers(0, len(RICH)), st.binary(max_size=20))
def test_a_graph_with_anything_put_in_gives_facts_or_our_error(place: int, more: bytes) -> None:
    facts_or_our_error(RICH[:place] + more + RICH[place:])


@given(st.binary(max_size=200))
def test_what_the_walk_accepts_the_parser_accepts(data: bytes) -> None:
    try:
        count = measure(memoryview(data), onnx.GraphProto.DESCRIPTOR, "graph")
    except PersistlibError:
        return
    parsed = onnx.GraphProto()
    try:
        parsed.ParseFromString(data)
    except Exception:  # noqa: BLE001 - a string that is not UTF-8 is for the parser to refuse
        return
    assert count >= len(parsed.ListFields())


@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 5), st.integers(1, 8)),
        elements=st.floats(-(2.0**99), 2.0**99, width=32),
    ),
    st.integers(1, 9),
)
def test_predictions_are_shares_of_one_the_best_first(scores: np.ndarray, top: int) -> None:
    for row, prediction in zip(scores, ranked(scores, None, top=top), strict=True):
        shares = [share for _, share in prediction.top]
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) <= 1 + 1e-9
        assert row[prediction.index] == row.max()
        assert len(shares) == min(top, len(row))
