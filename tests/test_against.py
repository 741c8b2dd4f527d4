"""Two models on the same samples: who is right where, by how much, and whether by chance."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

import persistlib
from command_line import invoke
from digit_images import RECORD
from persistlib.cli.against import report
from persistlib.cli.layout import render
from persistlib.errors import PersistlibError, PersistlibWarning
from persistlib.evaluation.comparing import MCNEMAR, WILCOXON, Against, compared
from persistlib.evaluation.figures import bounded
from persistlib.evaluation.mcnemar import Pairs, holm
from persistlib.evaluation.outcomes import Outcomes
from persistlib.evaluation.same_samples import as_taken_by
from persistlib.evaluation.samples import open_samples
from persistlib.manifest.schema import Data, Interface
from persistlib.training.array_images import image_data
from persistlib.training.splits import Division

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from persistlib.training.labelled import ImageData

pytest.importorskip("sklearn")

QUICK: dict[str, Any] = {"calls": 0, "threads": 1}
PETS = ("cat", "dog", "owl")
PARTS_OF = ("train", "valid", "test")
GREY: dict[str, Any] = {**RECORD, "resize": [4, 4]}
OTHERS = ("owl", "cat", "dog")  # the same in another order


# -- the test ----------------------------------------------------------------------------------


def test_p_values_are_the_binomial_tests() -> None:
    from scipy.stats import binom, binomtest

    for first in range(12):
        for second in range(12):
            pairs = Pairs(both=5, first=first, second=second, neither=2)
            if not first + second:
                assert (pairs.p_value, pairs.mid_p) == (None, None)
                continue
            exact = binomtest(first, first + second).pvalue
            assert pairs.p_value == pytest.approx(exact)
            point = binom.pmf(first, first + second, 0.5)
            wanted = 1.0 if first == second else exact - point
            assert pairs.mid_p == pytest.approx(wanted)


def test_figures_are_those_that_were_published() -> None:
    # Fagerland, Lydersen and Laake (2013), table 2: airway hyper-responsiveness before and after
    # stem cell transplantation. Exact 0.070, mid-p 0.039; Tango's interval in their paper of 2014.
    pairs = Pairs(both=1, first=1, second=7, neither=12)
    assert (round(pairs.p_value or 0, 3), round(pairs.mid_p or 0, 3)) == (0.07, 0.039)
    assert pairs.interval == pytest.approx((-0.517, -0.026), abs=5e-4)


def test_many_tests_are_allowed_for() -> None:
    # Holm's procedure by hand: 4 times the least, 3 times the next, never less than the one before.
    found = holm([0.04, None, 0.01, 0.03, 0.005])
    assert [p and round(p, 9) for p in found] == [0.06, None, 0.03, 0.06, 0.02]
    assert holm([0.9, 0.8]) == (1.0, 1.0)
    assert holm([]) == ()


# -- outcomes of every task --------------------------------------------------------------------


def outcomes(task: str, truth: Any, answers: Any, **more: Any) -> Outcomes:
    names = more.pop("names", tuple(f"n{index}" for index in range(3)))
    return Outcomes("", task, names, np.asarray(truth), np.asarray(answers), **more)


def classified(seed: int, names: tuple[str, ...] = PETS) -> Outcomes:
    truth = np.random.default_rng(0).integers(3, size=200)
    generator = np.random.default_rng(seed)
    answers = np.where(generator.random(200) < 0.8, truth, generator.integers(3, size=200))
    return outcomes("classification", truth, answers, names=names)


def test_classes_are_compared_sample_by_sample() -> None:
    from sklearn.metrics import f1_score

    first, second = classified(1), classified(2)
    found = compared(first, second)
    mine, theirs = first.answers == first.truth, second.answers == second.truth
    (accuracy, *rest), parts = found.overall, found.parts
    assert found.test == MCNEMAR
    assert accuracy.pairs == Pairs(
        int(sum(mine & theirs)),
        int(sum(mine & ~theirs)),
        int(sum(~mine & theirs)),
        int(sum(~mine & ~theirs)),
    )
    assert accuracy.difference == pytest.approx(mine.mean() - theirs.mean())
    for item, kind in zip(rest, ("macro", "weighted"), strict=True):
        known = [f1_score(side.truth, side.answers, average=kind) for side in (first, second)]
        assert (item.name, item.first, item.second) == (f"{kind} F1", *map(pytest.approx, known))
    for index, part in enumerate(parts):
        chosen = first.truth == index
        assert (part.name, part.samples) == (PETS[index], chosen.sum())
        assert part.first == pytest.approx(mine[chosen].mean())
        assert part.better == (sum(mine & ~theirs & chosen), sum(~mine & theirs & chosen))
        assert part.p_value is not None
        assert part.adjusted is not None
        assert part.adjusted >= part.p_value


def test_the_order_of_classes_and_samples_changes_nothing() -> None:
    first, second = classified(1), classified(2)
    found = compared(first, second)
    table = np.array([OTHERS.index(name) for name in PETS])
    turned = outcomes("classification", table[second.truth], table[second.answers], names=OTHERS)
    assert compared(first, turned) == found
    order = np.random.default_rng(3).permutation(200)
    mixed = [
        outcomes("classification", side.truth[order], side.answers[order], names=PETS)
        for side in (first, second)
    ]
    assert compared(*mixed) == found


def test_a_model_differs_from_the_other_as_the_other_from_it() -> None:
    there, back = compared(classified(1), classified(2)), compared(classified(2), classified(1))
    for mine, theirs in zip(there.overall, back.overall, strict=True):
        assert mine.p_value == theirs.p_value
        assert mine.difference == pytest.approx(-(theirs.difference or 0))
        assert mine.interval is not None
        assert theirs.interval is not None
        # Draws fall otherwise where the models change places.
        chance = (mine.interval[1] - mine.interval[0]) / 10
        turned = [-bound for bound in theirs.interval[::-1]]
        assert mine.interval == pytest.approx(turned, abs=chance)


def test_other_samples_are_not_compared() -> None:
    first, second = classified(1), classified(2)
    moved = outcomes("classification", np.roll(second.truth, 1), second.answers, names=PETS)
    fewer = outcomes("classification", second.truth[1:], second.answers[1:], names=PETS)
    strange = outcomes("classification", second.truth, second.answers, names=("cat", "dog", "emu"))
    for other in (moved, fewer, strange):
        with pytest.raises(PersistlibError) as caught:
            compared(first, other)
        assert caught.value.code == "PL812"


def regressed(seed: int, noise: float, outputs: int = 3) -> Outcomes:
    truth = 1e4 + np.random.default_rng(0).normal(size=(150, outputs)) * [1, 2, 3][:outputs]
    answers = truth + noise * np.random.default_rng(seed).normal(size=truth.shape)
    return outcomes("regression", truth, answers, names=tuple("abc"[:outputs]))


@pytest.mark.parametrize("outputs", [1, 3])
def test_numbers_are_compared_by_how_far_off_they_are(outputs: int) -> None:
    from scipy.stats import wilcoxon
    from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

    first, second = regressed(1, 0.5, outputs), regressed(2, 0.8, outputs)
    found = compared(first, second)
    values = {item.name: (item.first, item.second) for item in found.overall}
    for name, metric in (
        ("MSE", mean_squared_error),
        ("MAE", mean_absolute_error),
        ("R2", r2_score),
    ):
        wanted = [metric(side.truth, side.answers) for side in (first, second)]
        assert values[name] == pytest.approx(wanted)
    tested = found.overall[0]
    off = [np.abs(side.answers - side.truth).mean(axis=1) for side in (first, second)]
    assert (found.test, tested.name) == (WILCOXON, "MAE")
    known: Any = wilcoxon(off[0], off[1])
    assert tested.p_value == pytest.approx(known.pvalue)
    assert tested.better == ((off[0] < off[1]).sum(), (off[0] > off[1]).sum())
    assert tested.interval is not None
    assert tested.interval[1] < 0
    assert [part.name for part in found.parts] == ([] if outputs == 1 else list("abc"))
    for index, part in enumerate(found.parts):
        errors = np.abs(first.answers - first.truth)[:, index]
        assert part.first == pytest.approx(errors.mean())


def test_equal_answers_leave_nothing_to_test() -> None:
    found = compared(regressed(1, 0.5), regressed(1, 0.5))
    assert (found.p_value, found.overall[0].interval) == (None, None)
    same = compared(classified(1), classified(1))
    assert same.p_value is None
    assert same.overall[0].interval is not None  # so many agreements bound a difference


def labelled(seed: int) -> Outcomes:
    truth = np.random.default_rng(0).random((120, 3)) < [0.5, 0.3, 0.1]
    return outcomes(
        "multilabel", truth, truth ^ (np.random.default_rng(seed).random(truth.shape) < 0.15)
    )


def test_labels_are_compared_one_by_one_and_all_together() -> None:
    from sklearn.metrics import f1_score

    first, second = labelled(1), labelled(2)
    found = compared(first, second)
    values = {item.name: (item.first, item.second) for item in found.overall}
    for name, average in (("micro F1", "micro"), ("macro F1", "macro")):
        wanted = [f1_score(side.truth, side.answers, average=average) for side in (first, second)]
        assert values[name] == pytest.approx(wanted)
    whole = [(side.truth == side.answers).all(axis=1) for side in (first, second)]
    assert found.overall[0].pairs == Pairs.of(*whole)
    for index, part in enumerate(found.parts):
        rights = [(side.truth == side.answers)[:, index] for side in (first, second)]
        assert part.pairs == Pairs.of(*rights)


def segmented(seed: int) -> tuple[Outcomes, NDArray[Any], NDArray[Any]]:
    truth = np.random.default_rng(0).integers(3, size=(40, 8, 8))
    generator = np.random.default_rng(seed)
    wrong = generator.integers(3, size=truth.shape)
    answers = np.where(generator.random(truth.shape) < 0.7, truth, wrong)
    sides = [
        np.stack([(side == index).sum(axis=(1, 2)) for index in range(3)], axis=1)
        for side in (truth, answers)
    ]
    right = [((truth == index) & (answers == index)).sum(axis=(1, 2)) for index in range(3)]
    found = outcomes("segmentation", *sides, right=np.stack(right, axis=1))
    return found, truth, answers


def test_regions_are_compared_by_drawing_images() -> None:
    from sklearn.metrics import jaccard_score

    (first, truth, answers), (second, *_) = segmented(1), segmented(2)
    found = compared(first, second)
    pixels, mean = found.overall
    assert (found.test, found.p_value) == ("", None)
    for index, part in enumerate(found.parts):
        one = jaccard_score(truth.ravel() == index, answers.ravel() == index)
        assert part.first == pytest.approx(one)
    assert len(found.parts) == 3
    assert pixels.first == pytest.approx(np.mean(truth == answers))
    wanted = jaccard_score(truth.ravel(), answers.ravel(), average="macro")
    assert mean.first == pytest.approx(wanted)
    for item in found.overall:
        assert item.interval is not None
        assert item.interval[0] <= (item.difference or 0) <= item.interval[1]


@pytest.mark.parametrize(
    "pair",
    [
        (classified(1), classified(2)),
        (regressed(1, 0.5), regressed(2, 0.6)),
        (labelled(1), labelled(2)),
        (segmented(1)[0], segmented(2)[0]),
    ],
    ids=["classification", "regression", "multilabel", "segmentation"],
)
def test_differences_are_bounded_as_by_drawing_samples_one_by_one(
    pair: tuple[Outcomes, Outcomes],
) -> None:
    def drawn(side: Outcomes, chosen: NDArray[np.int64]) -> Outcomes:
        right = None if side.right is None else side.right[chosen]
        return Outcomes("", side.task, side.names, side.truth[chosen], side.answers[chosen], right)

    def figures(*sides: Outcomes) -> Sequence[tuple[float, ...]]:
        return [item.values for item in bounded(*sides)]

    generator = np.random.default_rng(6)
    count = len(pair[0])
    rows = np.array(
        [
            figures(*(drawn(side, chosen) for side in pair))
            for chosen in generator.integers(count, size=(60, count))
        ]
    )
    spread = (rows[:, :, 0] - rows[:, :, 1]).std(axis=0)
    for place, item in enumerate(bounded(*pair)):
        assert item.interval is not None
        width = item.interval[1] - item.interval[0]
        # 60 draws tell a standard deviation to some 10 %.
        assert width / 3.92 == pytest.approx(spread[place], rel=0.35)


# -- models ------------------------------------------------------------------------------------


def network(seed: int, order: tuple[str, ...] = PETS) -> torch.nn.Module:
    """A classifier whose weights are drawn for `PETS`, its outputs in an order."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = torch.nn.Linear(6, 3)
    places = [PETS.index(name) for name in order]
    with torch.no_grad():
        model.weight.copy_(model.weight[places].clone())
        model.bias.copy_(model.bias[places].clone())
    return torch.nn.Sequential(model)


def saved(path: Path, seed: int, order: tuple[str, ...] = PETS, **more: Any) -> Path:
    labels = more.pop("labels", order)
    example = torch.arange(6.0)[None] / 7
    persistlib.save(
        network(seed, order), path, interface={"labels": labels}, example_inputs=example, **more
    )
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two bundles, one with its classes in another order, and data."""
    place = tmp_path_factory.mktemp("against")
    saved(place / "new", 1, onnx=True)
    saved(place / "old", 2, OTHERS, onnx=True)
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(160, 6)).astype(np.float32)
    with torch.no_grad():
        scores = network(1)(torch.from_numpy(inputs)) + network(2)(torch.from_numpy(inputs))
    labels = np.array(PETS)[scores.argmax(1).numpy()]
    np.savez(place / "data.npz", inputs=inputs, labels=labels)
    numbers = scores.argmax(1).numpy()
    np.savez(place / "numbers.npz", inputs=inputs, labels=numbers)
    return place


def rights(folder: Path) -> list[NDArray[np.bool_]]:
    data = np.load(folder / "data.npz")
    inputs = torch.from_numpy(data["inputs"])
    with torch.no_grad():
        answers = [np.array(PETS)[network(seed)(inputs).argmax(1)] for seed in (1, 2)]
    return [answer == data["labels"] for answer in answers]


@pytest.mark.parametrize("data", ["data.npz", "numbers.npz"])
@pytest.mark.parametrize("runtime", [None, "onnxruntime"])
def test_models_are_compared_by_the_names_of_their_classes(
    folder: Path, data: str, runtime: str | None
) -> None:
    found = persistlib.evaluate(
        folder / "new", folder / data, against=folder / "old", runtime=runtime, **QUICK
    )
    assert found.against is not None
    (head,) = found.against.heads
    pairs = Pairs.of(*rights(folder))
    assert head.overall[0].pairs == pairs
    assert min(pairs.first, pairs.second) > 3
    assert [part.name for part in head.parts] == list(PETS)
    assert found.accuracy == pytest.approx(head.overall[0].first)
    assert found.against.evaluation.accuracy == pytest.approx(head.overall[0].second)
    assert found.against.evaluation.samples.digest == found.samples.digest
    assert [item.runtime for item in found.against.evaluation.results] == [runtime or "torch"]


def test_files_modules_and_sessions_are_held_against_too(folder: Path, tmp_path: Path) -> None:
    persistlib.convert(folder / "old", tmp_path / "old.onnx")
    whole = persistlib.evaluate(
        folder / "new", folder / "data.npz", against=folder / "old", **QUICK
    )
    interface = {"labels": PETS}
    forms: tuple[tuple[Any, Any, dict[str, Any]], ...] = (
        (folder / "new", tmp_path / "old.onnx", {}),
        (folder / "new", persistlib.load(tmp_path / "old.onnx", runtime="onnxruntime"), {}),
        (network(1), network(2), {"interface": interface}),
    )
    assert whole.against is not None
    for model, other, more in forms:
        found = persistlib.evaluate(model, folder / "data.npz", against=other, **more, **QUICK)
        assert found.against is not None
        assert found.against.heads == whole.against.heads
    alone = persistlib.evaluate(
        folder / "new", folder / "data.npz", against=tmp_path / "old.onnx", **QUICK
    )
    assert alone.against is not None
    assert alone.against.other["file"] == "old.onnx"


def test_what_the_other_does_not_say_is_the_firsts_and_said(folder: Path) -> None:
    with pytest.warns(PersistlibWarning, match="names no classes; those of the first"):
        found = persistlib.evaluate(
            folder / "new", folder / "data.npz", against=network(2), **QUICK
        )
    assert found.against is not None
    assert found.against.heads[0].overall[0].pairs == Pairs.of(*rights(folder))


def test_a_model_and_itself_have_nothing_to_test(folder: Path) -> None:
    found = persistlib.evaluate(
        folder / "new", folder / "data.npz", against=folder / "new", **QUICK
    )
    assert found.against is not None
    assert found.against.heads[0].p_value is None
    assert found.against.models == ("the first", "the other")


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (("cat", "dog", "emu"), ("has no class owl", "has no class emu")),
        (("cat", "cat", "owl"), ("has no class dog", "two classes have one name")),
    ],
)
def test_other_classes_are_refused_by_name_before_anything_runs(
    folder: Path, tmp_path: Path, labels: tuple[str, ...], said: tuple[str, str]
) -> None:
    saved(tmp_path / "other", 3, labels=labels)
    with pytest.raises(PersistlibError) as caught:
        persistlib.evaluate(folder / "new", "nowhere.npz", against=tmp_path / "other", **QUICK)
    assert {item.code for item in caught.value.findings} == {"PL808"}
    assert all(any(text in str(item) for item in caught.value.findings) for text in said)


@pytest.mark.parametrize(("other", "code"), [(object(), "PL901"), ("nowhere", "PL412")])
def test_what_is_no_model_is_refused(folder: Path, other: Any, code: str) -> None:
    with pytest.raises(PersistlibError) as caught:
        persistlib.evaluate(folder / "new", folder / "data.npz", against=other, **QUICK)
    assert caught.value.code == code


def test_results_are_kept_with_the_others_identity_and_no_place(
    folder: Path, tmp_path: Path
) -> None:
    new = saved(tmp_path / "new", 1)
    for _ in range(2):
        persistlib.evaluate(
            new, folder / "data.npz", against=folder / "old", save=True, calls=1, threads=1
        )
    (kept,) = persistlib.inspect(new).manifest.evaluations
    other = persistlib.inspect(folder / "old").manifest
    record: Any = kept["against"]
    assert record["other"]["bundle_id"] == other.bundle_id
    assert record["heads"][0]["overall"][0]["pairs"]["both"] == Pairs.of(*rights(folder)).both
    assert str(folder) not in json.dumps(kept)
    assert "timings" not in json.dumps(kept)


@pytest.mark.parametrize(
    ("task", "test"), [("regression", WILCOXON), ("multilabel", MCNEMAR)], ids=["numbers", "labels"]
)
def test_models_of_other_tasks_are_compared_as_their_outcomes_are(task: str, test: str) -> None:
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(120, 6)).astype(np.float32)
    models = [network(1), network(2)]
    with torch.no_grad():
        scores = sum(model(torch.from_numpy(inputs)).numpy() for model in models)
    noisy = np.asarray(scores + generator.normal(size=(120, 3)), np.float32)
    targets = noisy if task == "regression" else (noisy > 0).astype(np.int64)
    data = (inputs, targets)
    found = persistlib.evaluate(models[0], data, task=task, against=models[1], **QUICK)
    assert found.against is not None
    (head,) = found.against.heads
    assert (head.task, head.test) == (task, test)
    assert head == compared(found.results[0].outcomes, found.against.evaluation.results[0].outcomes)
    assert head.p_value is not None
    assert len(head.parts) == 3
    assert json.dumps(found.to_dict())


def test_a_version_of_a_run_is_held_against_the_last(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(120, 6)).astype(np.float32)
    labels = (inputs[:, 0] + inputs[:, 1] > 0).astype(np.int64)
    persistlib.finetune(
        torch.nn.Sequential(torch.nn.Linear(6, 2)),
        (torch.from_numpy(inputs), torch.from_numpy(labels)),
        epochs=3,
        lr=0.1,
        run=tmp_path / "m.run",
        keep="all",
        out=tmp_path / "m",
        interface={"labels": ["no", "yes"]},
    )
    versions = sorted((tmp_path / "m.run" / "versions").iterdir())
    found = persistlib.evaluate(
        tmp_path / "m", (inputs, labels), against=versions[0], runtime="torch", **QUICK
    )
    assert found.against is not None
    assert found.against.heads[0].overall[0].samples == 120


# -- the command line --------------------------------------------------------------------------


def test_people_read_a_sentence_and_programs_every_count(folder: Path) -> None:
    words = ("evaluate", folder / "new", "--data", folder / "data.npz", "--calls", 0)
    more = ("--threads", 1, "--against", folder / "old")
    shown = invoke(*words, *more)
    assert shown.exit_code == 0, shown.output
    pairs = Pairs.of(*rights(folder))
    text = " ".join(shown.stdout.split())
    assert f"is right on {pairs.first} samples that {folder / 'old'} gets wrong" in text
    assert f"fails on {pairs.second} that it gets right: p" in text
    assert all(len(line) <= 100 for line in shown.stdout.splitlines())
    assert f"--against {folder / 'old'}" in shown.stderr
    told = json.loads(invoke(*words, *more, "--json").stdout)["data"]["against"]
    assert told["heads"][0]["overall"][0]["pairs"]["first"] == pairs.first
    assert told["result"]["accuracy"] == pytest.approx(rights(folder)[1].mean())


def test_no_difference_is_said_to_be_none(folder: Path) -> None:
    words = ("evaluate", folder / "new", "--data", folder / "data.npz", "--calls", 0)
    shown = invoke(*words, "--threads", 1, "--against", folder / "new")
    text = " ".join(shown.stdout.split())
    assert "no difference to test: both are right on the same samples" in text


@pytest.mark.parametrize(
    ("alone", "is_close"), [((4, 0), True), ((7, 1), True), ((6, 0), False), ((3, 1), False)]
)
def test_an_interval_and_a_test_that_part_are_explained(
    alone: tuple[int, int], is_close: bool
) -> None:
    """The counts are of what either model alone has right, of 48 samples."""
    truth = np.zeros(48, dtype=int)
    second = np.where(np.arange(48) < alone[0], 1, 0)
    first = np.where(np.arange(48) >= 48 - alone[1], 1, 0)
    found = compared(*(outcomes("classification", truth, row) for row in (first, second)))
    nothing: Any = None
    blocks = report(Against(("a", "b"), {}, nothing, (found,)), show_all=False)
    shown = " ".join(" ".join(line.split()) for line in render(blocks, 100, colour=False))
    assert ("close call the interval is Tango's" in shown) == is_close
    assert ("which may be chance" in shown) == (alone != (6, 0))


# -- what a model was trained on -----------------------------------------------------------------


def divided() -> ImageData:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, size=(24, 4, 4), dtype=np.uint8)
    parts = tuple(("train", "valid", "test")[index % 3] for index in range(24))
    data = image_data("three", pixels, [index // 3 % 2 for index in range(24)], ["cat", "dog"])
    return replace(data, division=Division(parts, "its folders say"))


def is_told(act: Callable[[], object]) -> bool:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        act()
    return any("PL809" in str(item.message) for item in caught)


@pytest.mark.parametrize("choice", [{}, {"held_out": True}, *({"part": p} for p in PARTS_OF)])
@pytest.mark.parametrize("other", ["given", "drawn", "another seed", "unknown", "other data"])
def test_the_other_is_judged_by_its_own_split_as_alone(choice: dict[str, Any], other: str) -> None:
    data = divided()
    splits = {
        "given": data.split(),
        "drawn": data.split(fraction=0.2, seed=0),
        "another seed": data.split(fraction=0.5, seed=7),
    }
    how = {name: dict(split.how) for name, split in splits.items()}
    digest = "blake3:0" if other == "other data" else data.digest
    trained = Data(name="three", digest=digest, split=how.get(other, {}))
    own = Data(name="three", digest=data.digest, split=how["given"])
    interface = Interface(labels=data.classes, preprocessing=GREY)
    samples = open_samples(data, interface, own if choice.get("held_out") else None, **choice)
    assert samples.held_out is choice.get("held_out", False)

    expected = other != "other data"
    if other in splits:
        chosen = samples.places if samples.places is not None else range(len(data))
        expected = any(place in splits[other].train for place in chosen)
    told = is_told(lambda: as_taken_by(samples, interface, trained, name="th"))
    assert told is expected
    if not samples.held_out:
        assert is_told(lambda: open_samples(data, interface, trained, **choice)) is told


def table_model(columns: str, weight: tuple[float, ...], out: Path) -> Path:
    """Save a regression of the columns of a table, each named by a letter."""
    layer = nn.Linear(len(columns), 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([weight]))
    width = len(columns)
    kept = {"kind": "table", "columns": [*columns], "mean": [0.0] * width, "std": [1.0] * width}
    training = {"strategy": {"task": "regression"}}
    interface = {"labels": ["y"], "preprocessing": kept}
    inputs = torch.zeros(2, width)
    persistlib.save(layer, out, example_inputs=inputs, interface=interface, training=training)
    return out


def test_tables_are_compared_by_the_names_of_their_columns(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(20, 3))
    lines = [",".join(map(repr, [*row.tolist(), float(row @ [1, 2, 3])])) for row in rows]
    data = tmp_path / "rows.csv"
    data.write_text("\n".join(["a,b,c,y", *lines]) + "\n", encoding="utf-8")
    first = table_model("abc", (1, 2, 3), tmp_path / "first")
    for columns, weight in (("cab", (3, 1, 2)), ("ca", (3, 1))):
        second = table_model(columns, weight, tmp_path / columns)
        found = persistlib.evaluate(first, data, calls=0, against=second)
        assert found.against is not None
        assert float(str(found.results[0].to_dict()["rmse"])) < 1e-6
        off = float(str(found.against.evaluation.results[0].to_dict()["rmse"]))
        assert (off < 1e-6) if columns == "cab" else (1 < off < 4)
    fewer = [",".join(line.split(",")[:1] + line.split(",")[2:]) for line in ["a,b,c,y", *lines]]
    data.write_text("\n".join(fewer) + "\n", encoding="utf-8")
    with pytest.raises(PersistlibError, match="takes columns that the first does not: b"):
        persistlib.evaluate(tmp_path / "ca", data, calls=0, against=first)
