"""Laws of tasks, of nests of tensors, and of figures that are summed over batches."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from persistlib.evaluation.collecting import collector
from persistlib.training import nests
from persistlib.training.batch import Batch
from persistlib.training.tallies import Tally
from persistlib.training.tasks import TASKS, Head, heads_of, record

NAMES = st.text(min_size=1, max_size=5)
NAMED = st.builds(
    Head,
    NAMES,
    st.sampled_from(TASKS),
    st.floats(1e-6, 1e6),
    st.sampled_from([None, "huber", "mse"]),
)


@given(
    st.one_of(
        st.sampled_from(TASKS).map(lambda task: (Head("", task),)),
        st.lists(NAMED, min_size=1, max_size=4, unique_by=lambda head: head.name).map(tuple),
    )
)
def test_heads_of_a_record_are_the_heads(heads: tuple[Head, ...]) -> None:
    said: Any = record(heads)
    assert heads_of(said) == heads


def forms(rows: int) -> st.SearchStrategy[Any]:
    """Draw nests of tensors with so many rows."""
    leaf = st.lists(st.integers(1, 3), max_size=2).map(
        lambda extents: torch.arange(rows * int(np.prod(extents))).reshape(rows, *extents)
    )
    several = st.recursive(
        leaf,
        lambda inner: st.one_of(
            st.dictionaries(NAMES, inner, min_size=1, max_size=3),
            st.lists(inner, min_size=1, max_size=3).map(tuple),
        ),
        max_leaves=5,
    )
    whole: st.SearchStrategy[Any] = several
    return whole


@given(st.integers(1, 6).flatmap(forms), st.data())
def test_what_is_cut_and_joined_is_the_same_nest(nest: Any, data: st.DataObject) -> None:
    rows = nests.count(nest)
    cut = data.draw(st.integers(0, rows))
    parts = [nests.each(lambda item: item[:cut], nest), nests.each(lambda item: item[cut:], nest)]
    assert nests.equal(nests.joined(parts), nest)
    assert [path for path, _ in nests.leaves(parts[0])] == [path for path, _ in nests.leaves(nest)]
    other = nests.each(lambda item: item + 1, nest)
    assert not nests.equal(other, nest)


def drawn(task: str, rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return outputs and targets of a task."""
    generator = torch.Generator().manual_seed(seed)
    if task == "segmentation":
        masks = torch.randint(0, 4, (rows, 3, 2), generator=generator)
        return torch.randn(rows, 3, 3, 2, generator=generator), masks.where(masks < 3, 255)
    outputs = torch.randn(rows, 3, generator=generator)
    if task == "classification":
        return outputs, torch.randint(0, 3, (rows,), generator=generator)
    if task == "multilabel":
        return outputs, torch.randint(0, 2, (rows, 3), generator=generator)
    return outputs, torch.randn(rows, 3, generator=generator)


CUTS = st.tuples(st.sampled_from(TASKS), st.integers(2, 9), st.integers(0, 99)).flatmap(
    lambda drawn: st.tuples(st.just(drawn), st.integers(1, drawn[1] - 1))
)


@settings(max_examples=60, deadline=None)
@given(CUTS)
def test_a_tally_that_goes_on_comes_to_what_one_of_all_batches_comes_to(
    given: tuple[tuple[str, int, int], int],
) -> None:
    (task, rows, seed), cut = given
    outputs, targets = drawn(task, rows, seed)
    heads = (Head("", task),)
    parts, again, whole = Tally(heads), Tally(heads), Tally(heads)
    for start, stop in ((0, cut), (cut, rows)):
        again = Tally(heads, again.state())
        for tally in (parts, again):
            tally.add(0.5, outputs[start:stop], Batch(None, targets[start:stop]))
    whole.add(0.5, outputs, Batch(None, targets))
    assert parts.result() == again.result()
    assert parts.result() == pytest.approx(whole.result(), rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(CUTS)
def test_what_is_kept_does_not_depend_on_how_samples_are_divided(
    given: tuple[tuple[str, int, int], int],
) -> None:
    pytest.importorskip("sklearn")
    (task, rows, seed), cut = given
    outputs, targets = (item.numpy() for item in drawn(task, rows, seed))
    if task == "segmentation":
        targets[0, 0, 0] = 1  # one pixel counts
    results = []
    for cuts in ((0, rows), (0, cut, rows)):
        one = collector(Head("", task), "runtime", "data", ())
        for start, stop in itertools.pairwise(cuts):
            one.add(outputs[start:stop], targets[start:stop])
        found = one.result()
        results.append((found.outcomes, found.metrics.to_dict(), one.same, one.difference))
    first, second = results
    assert np.array_equal(first[0].truth, second[0].truth)
    assert np.array_equal(first[0].answers, second[0].answers)
    assert first[1:] == second[1:]
