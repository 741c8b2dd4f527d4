"""Laws of intervals and of paired comparisons over random answers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persistlib.evaluation.averages import FIGURES, KINDS, average_intervals, averages
from persistlib.evaluation.bootstrap import bootstrap
from persistlib.evaluation.intervals import f1_interval, paired_interval, wilson
from persistlib.evaluation.mcnemar import Pairs, holm
from persistlib.evaluation.metrics import measure

if TYPE_CHECKING:
    from numpy.typing import NDArray

pytest.importorskip("sklearn")

SHARES = st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@st.composite
def answered(draw: st.DrawFn) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """True classes, answers, and how many classes there are."""
    classes = draw(st.integers(2, 6))
    index = st.integers(0, classes - 1)
    pairs = draw(st.lists(st.tuples(index, index), min_size=1, max_size=40))
    truth, answers = (np.array(column, np.int64) for column in zip(*pairs, strict=True))
    return truth, answers, classes


def table(truth: NDArray[np.int64], answers: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    found = np.zeros((classes, classes), np.int64)
    np.add.at(found, (truth, answers), 1)
    return found


@given(SHARES)
def test_an_interval_lies_within_what_a_share_can_be_holds_it_and_is_no_point(
    drawn: tuple[int, int],
) -> None:
    right, count = drawn
    low, high = wilson(right, count)
    assert 0 <= low <= right / count <= high <= 1
    assert low < high
    bounds = f1_interval(right, count)
    assert bounds is not None
    assert 0 <= bounds[0] <= 2 * right / (right + count) <= bounds[1] + 1e-15 <= 1 + 2e-15


@settings(max_examples=60, deadline=None)
@given(answered())
def test_the_figures_of_a_draw_are_those_of_its_samples(
    drawn: tuple[NDArray[np.int64], NDArray[np.int64], int],
) -> None:
    truth, answers, classes = drawn
    cells = table(truth, answers, classes)
    rows, columns = np.nonzero(cells)
    statistic = averages(rows, columns)
    chosen = np.random.default_rng(len(truth)).integers(len(truth), size=(5, len(truth)))
    places = np.zeros_like(cells)
    places[rows, columns] = np.arange(len(rows))
    weights = np.zeros((5, len(rows)))
    for draw, samples in enumerate(chosen):
        for sample in samples:
            weights[draw, places[truth[sample], answers[sample]]] += 1
    found = statistic(weights)
    for draw, samples in enumerate(chosen):
        known = measure(truth[samples], answers[samples], [str(i) for i in range(classes)])
        figures = [getattr(getattr(known, kind), name) for kind in KINDS for name in FIGURES]
        assert found[draw] == pytest.approx(figures, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(answered(), st.integers(0, 2**32))
def test_the_order_of_samples_is_irrelevant_and_intervals_hold_their_figures(
    drawn: tuple[NDArray[np.int64], NDArray[np.int64], int], seed: int
) -> None:
    truth, answers, classes = drawn
    order = np.random.default_rng(seed).permutation(len(truth))
    names = [str(index) for index in range(classes)]
    found = measure(truth, answers, names)
    assert measure(truth[order], answers[order], names).to_dict() == found.to_dict()
    parts: list[Any] = [found.macro, found.weighted, *found.classes]
    for part in parts:
        for name, interval in part.intervals.items():
            figure: float | None = getattr(part, name)
            assert figure is not None or interval is None
            if interval is not None and figure is not None:
                assert 0 <= interval[0] <= figure + 1e-12
                assert figure - 1e-12 <= interval[1] <= 1 + 1e-12
    assert found.weighted.intervals["recall"] == found.interval


@given(SHARES, st.integers(0, 400))
def test_a_paired_interval_holds_its_difference_and_turns_with_the_pair(
    drawn: tuple[int, int], more: int
) -> None:
    gained, discordant = drawn
    lost, count = discordant - gained, discordant + more
    low, high = paired_interval(gained, lost, count)
    assert -1 <= low <= (gained - lost) / count <= high <= 1
    assert low < high
    turned = paired_interval(lost, gained, count)
    assert (-turned[1], -turned[0]) == pytest.approx((low, high), abs=1e-9)
    # It leaves zero out just when the score test without correction rejects it.
    score = abs(gained - lost) / math.sqrt(gained + lost)
    if abs(score - 1.959963984540054) > 1e-6:
        assert (low > 0 or high < 0) == (score > 1.959963984540054)


@given(st.integers(1, 12), st.integers(1, 12))
def test_what_no_draw_changes_has_no_interval(kinds: int, each: int) -> None:
    counts = np.full(kinds, each)
    found = bootstrap(counts, lambda weights: np.ones((len(weights), 1)), draws=50)
    assert found == (None,)


def test_answers_that_are_all_right_have_no_interval_of_averages_but_of_shares() -> None:
    truth = np.arange(30) % 3
    found = measure(truth, truth, ["a", "b", "c"])
    assert average_intervals(found.confusion)["macro"] == dict.fromkeys(FIGURES)
    assert found.interval[0] == pytest.approx(0.8865, abs=1e-4)
    recall = found.classes[0].intervals["recall"]
    assert recall is not None
    assert recall[0] == pytest.approx(0.7225, abs=1e-4)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 99), st.integers(0, 99))
def test_the_p_value_is_the_same_whichever_comes_first_and_however_many_agree(
    first: int, second: int, both: int, neither: int
) -> None:
    found = Pairs(both, first, second, neither)
    if not found.count:
        return
    turned = Pairs(neither, second, first, both)
    assert (found.p_value, found.mid_p) == (turned.p_value, turned.mid_p)
    alone = Pairs(0, first, second, 1)
    assert found.p_value == alone.p_value
    if found.p_value is not None and found.mid_p is not None:
        assert 0 < found.mid_p <= found.p_value <= 1
    assert found.interval[0] <= found.difference <= found.interval[1]


@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=9))
def test_adjusted_p_values_are_no_smaller_and_keep_their_order(given_p: list[float | None]) -> None:
    adjusted = holm(given_p)
    known = [(p, q) for p, q in zip(given_p, adjusted, strict=True) if p is not None]
    assert all(q is None for p, q in zip(given_p, adjusted, strict=True) if p is None)
    ordered = [q for _, q in sorted(known, key=lambda pair: (pair[0], pair[1] or 0))]
    assert all(q is not None and p <= q <= 1 for p, q in known)
    assert ordered == sorted(ordered, key=lambda q: q or 0)
