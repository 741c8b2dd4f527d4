"""Intervals: how often they hold what is true, and against what others compute."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from persistlib.evaluation.averages import averages
from persistlib.evaluation.bootstrap import bootstrap
from persistlib.evaluation.figures import bounded
from persistlib.evaluation.intervals import QUANTILE, f1_interval, paired_interval
from persistlib.evaluation.metrics import measure
from persistlib.evaluation.outcomes import Outcomes
from persistlib.evaluation.task_metrics import measure_labels, measure_numbers, measure_pixels

if TYPE_CHECKING:
    from numpy.typing import NDArray

pytest.importorskip("sklearn")

# How often each true class is taken for each: rows and all sum to 1 and shares are uneven.
CELLS = np.array([[0.38, 0.05, 0.02], [0.04, 0.24, 0.04], [0.03, 0.05, 0.15]])


def macro_f1(cells: NDArray[Any]) -> float:
    both = cells.sum(axis=0) + cells.sum(axis=1)
    return float(np.mean(2 * np.diagonal(cells) / both))


def test_an_average_lies_in_its_interval_as_often_as_is_said() -> None:
    generator = np.random.default_rng(7)
    truth = macro_f1(CELLS)
    held = low_misses = 0
    for _ in range(400):
        cells = generator.multinomial(150, CELLS.ravel()).reshape(3, 3)
        rows, columns = np.nonzero(cells)
        bounds = bootstrap(cells[rows, columns], averages(rows, columns), draws=600)[2]
        assert bounds is not None
        held += bounds[0] <= truth <= bounds[1]
        low_misses += truth < bounds[0]
    assert 0.92 <= held / 400 <= 0.98
    # What is missed is missed on both sides.
    assert 0.2 <= low_misses / (400 - held) <= 0.8


def test_a_class_f1_lies_in_its_interval_as_often_as_is_said() -> None:
    generator = np.random.default_rng(8)
    truth = 2 * CELLS[2, 2] / (CELLS[2].sum() + CELLS[:, 2].sum())
    held = 0
    for _ in range(400):
        cells = generator.multinomial(150, CELLS.ravel()).reshape(3, 3)
        right = int(cells[2, 2])
        bounds = f1_interval(right, int(cells[2].sum() + cells[:, 2].sum()) - right)
        assert bounds is not None
        held += bounds[0] <= truth <= bounds[1]
    assert 0.92 <= held / 400 <= 0.98


def numbers(generator: np.random.Generator, count: int) -> Outcomes:
    """Numbers whose errors have a variance of 0.25, the truth one of 1."""
    truth = generator.normal(size=(count, 2))
    answers = truth + 0.5 * generator.normal(size=truth.shape)
    return Outcomes("", "regression", ("a", "b"), truth, answers)


def pictures(generator: np.random.Generator, count: int) -> Outcomes:
    """Pictures of 100 pixels in two classes; how many are wrong differs from picture to picture."""
    truth = generator.multinomial(100, [0.6, 0.4], size=count)
    share = generator.beta(8, 2, size=(count, 1))
    right = generator.binomial(truth, share)
    return Outcomes("", "segmentation", ("a", "b"), truth, right + (truth - right)[:, ::-1], right)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("drawn", "count", "name", "part", "truth"),
    [
        (numbers, 100, "MSE", "", 0.25),
        (numbers, 100, "MAE", "b", 0.5 * math.sqrt(2 / math.pi)),
        (numbers, 100, "R2", "", 0.75),
        # Of 100 pixels 48 and 32 are right, of 60 and 40; 12 and 8 were taken for the other class.
        (pictures, 60, "mean IoU", "", (48 / 68 + 32 / 52) / 2),
        (pictures, 60, "recall", "b", 0.8),
    ],
)
def test_figures_of_other_tasks_lie_in_their_intervals_as_often_as_is_said(
    drawn: Any, count: int, name: str, part: str, truth: float
) -> None:
    generator = np.random.default_rng(11)
    held = 0
    for _ in range(300):
        found = bounded(drawn(generator, count))
        interval = next(item.interval for item in found if (item.name, item.part) == (name, part))
        assert interval is not None
        held += interval[0] <= truth <= interval[1]
    assert 0.91 <= held / 300 <= 0.98


def test_every_figure_of_every_task_has_an_interval_that_holds_it() -> None:
    generator = np.random.default_rng(2)
    images = pictures(generator, 50)
    assert images.right is not None
    # All that is wrong of one class was taken for the other.
    wrong = (images.truth - images.right).sum(axis=0)
    confusion = np.diag(images.right.sum(axis=0)) + np.diag(wrong)[:, ::-1]
    truth = generator.random((80, 3)) < 0.4
    flags = truth ^ (generator.random((80, 3)) < 0.2)
    labels = measure_labels(Outcomes("", "multilabel", ("a", "b", "c"), truth, flags))
    regression, regions = measure_numbers(numbers(generator, 80)), measure_pixels(images, confusion)
    parts: list[Any] = [regression.mean, *regression.outputs, regions, *regions.classes]
    parts += [labels.micro, labels.macro, *labels.labels]
    assert regions.accuracy == pytest.approx(images.right.sum() / images.truth.sum())
    seen = 0
    for part in parts:
        for name, interval in part.intervals.items():
            low, high = interval
            assert low <= getattr(part, name) + 1e-12
            assert getattr(part, name) - 1e-12 <= high
            assert low < high
            seen += 1
    assert seen == 3 * 4 + 2 + 2 * 3 + 2 * 3 + 3 * 3


@pytest.mark.parametrize(
    ("gained", "lost", "count"), [(0.12, 0.05, 80), (0.03, 0.03, 120), (0.3, 0.1, 40)]
)
def test_a_difference_lies_in_its_interval_as_often_as_is_said(
    gained: float, lost: float, count: int
) -> None:
    generator = np.random.default_rng(9)
    held = 0
    for _ in range(2000):
        b, c, _rest = generator.multinomial(count, [gained, lost, 1 - gained - lost])
        low, high = paired_interval(int(b), int(c), count)
        held += low <= gained - lost <= high
    assert 0.935 <= held / 2000 <= 0.975


@pytest.mark.parametrize("pair", [(9, 3, 40), (0, 0, 25), (5, 0, 30), (0, 7, 9), (40, 30, 200)])
def test_bounds_of_a_difference_are_where_the_likelihood_says(pair: tuple[int, int, int]) -> None:
    gained, lost, count = pair
    for bound in paired_interval(gained, lost, count):
        # The likeliest shares among those that differ by the bound, by trying them all.
        least, most = max(0.0, -bound), (1 - bound) / 2
        shares = np.linspace(least, most, 400_001)[1:-1]
        chance = (
            gained * np.log(np.maximum(shares + bound, 1e-300))
            + lost * np.log(np.maximum(shares, 1e-300))
            + (count - gained - lost) * np.log(np.maximum(1 - 2 * shares - bound, 1e-300))
        )
        share = shares[np.argmax(chance)]
        spread = math.sqrt(count * (2 * share + bound - bound**2))
        score = (gained - lost - count * bound) / spread
        assert abs(score) == pytest.approx(QUANTILE, abs=2e-3)


def test_no_discordant_pair_bounds_the_difference_by_how_many_there_were() -> None:
    z2 = QUANTILE**2
    assert paired_interval(0, 0, 50) == pytest.approx((-z2 / (50 + z2), z2 / (50 + z2)))


def test_bounds_are_those_of_drawing_samples_one_by_one() -> None:
    from scipy.stats import bootstrap as known

    generator = np.random.default_rng(3)
    cells = generator.multinomial(120, CELLS.ravel()).reshape(3, 3)
    truth, answers = (np.repeat(side, cells.ravel()) for side in np.indices((3, 3)).reshape(2, -1))

    def statistic(places: NDArray[Any]) -> float:
        drawn = np.zeros((3, 3))
        chosen = places.astype(np.int64)
        np.add.at(drawn, (truth[chosen], answers[chosen]), 1)
        return macro_f1(drawn)

    places = (np.arange(120),)
    found = known(places, statistic, vectorized=False, n_resamples=6000, method="BCa", rng=1)
    rows, columns = np.nonzero(cells)
    ours = bootstrap(cells[rows, columns], averages(rows, columns), draws=6000)[2]
    assert ours is not None
    low, high = found.confidence_interval
    assert ours == pytest.approx((low, high), abs=0.15 * (high - low) / 2)


def mean_and_deviation(values: NDArray[np.float64]) -> Any:
    def figures(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        count = weights.sum(axis=1)
        mean = weights @ values / count
        return np.stack([mean, np.sqrt(weights @ values**2 / count - mean**2)], axis=1)

    return figures


@pytest.mark.parametrize("count", [60, 3000], ids=["each left out", "groups left out"])
def test_figures_of_numbers_are_bounded_as_elsewhere(count: int) -> None:
    from scipy.stats import bootstrap as known

    values = np.random.default_rng(4).gamma(1.5, size=count)
    ours = bootstrap(np.ones(count, np.int64), mean_and_deviation(values))
    for place, statistic in enumerate([np.mean, np.std]):
        found = known((values,), statistic, n_resamples=4000, method="BCa", rng=1)
        low, high = found.confidence_interval
        bounds = ours[place]
        assert bounds is not None
        assert bounds == pytest.approx((low, high), abs=0.15 * (high - low) / 2)


def test_many_samples_and_classes_are_bounded_in_seconds_and_little_memory() -> None:
    import tracemalloc

    generator = np.random.default_rng(5)
    truth = generator.integers(1000, size=20_000)
    answers = np.where(generator.random(20_000) < 0.7, truth, generator.integers(1000, size=20_000))
    tracemalloc.start()
    found = measure(truth, answers, [str(index) for index in range(1000)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    bounds = found.macro.intervals["f1"]
    assert bounds is not None
    assert 0.005 < bounds[1] - bounds[0] < 0.03
    assert peak < 500e6
    told: dict[str, Any] = found.to_dict()
    assert told["confusion"] is None
    assert told["classes"][0]["intervals"] is None
