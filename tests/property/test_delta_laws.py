"""The laws of `persistlib.bases`, `materializing` and `versions`, on runs of every shape."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import persistlib
from crash_shim import Disk, Killed, Tape, descriptors_closed, kinds, lost, quiet, recorded
from persistlib.errors import PersistlibError

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

LAYERS = 3
PAIRS = {"inputs": [{"name": "input", "dtype": "F32", "shape": ["batch", 2]}]}


class Step(NamedTuple):
    """A version: the layers that moved since the one before, and which version it is saved over."""

    moved: frozenset[int]
    base: int | None
    accuracy: float


layers = st.frozensets(st.integers(0, LAYERS - 1))
steps = st.lists(
    st.builds(Step, layers, st.none() | st.integers(0, 9), st.sampled_from([0.1, 0.5, 0.9])),
    min_size=1,
    max_size=5,
)


@contextmanager
def run_of(plan: Sequence[Step]) -> Generator[tuple[Path, list[dict[str, torch.Tensor]]]]:
    """Yield a folder with the versions of a plan, and the state that each was saved with."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(LAYERS)))
    states: list[dict[str, torch.Tensor]] = []
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        for number, step in enumerate(plan):
            with torch.no_grad():
                for layer in step.moved:
                    for item in model[layer].parameters():
                        item.add_(torch.randn_like(item))
            base = None if step.base is None or not number else run / f"{step.base % number}"
            training = {"metrics": {"accuracy": step.accuracy}}
            persistlib.save(model, run / f"{number}", base=base, interface=PAIRS, training=training)
            states.append({name: item.clone() for name, item in model.state_dict().items()})
        yield run, states


def opens_as(path: Path, state: dict[str, torch.Tensor]) -> bool:
    loaded = persistlib.load(path).state_dict()
    return all(torch.equal(loaded[name], state[name]) for name in state)


@given(steps)
@settings(max_examples=12)
def test_a_delta_costs_the_tensors_that_changed_and_its_manifest(plan: list[Step]) -> None:
    with run_of(plan) as (run, states):
        for number, state in enumerate(states):
            path = run / f"{number}"
            weights = persistlib.inspect(path).manifest.weights
            own = {record.name for record in weights.tensors if record.file is not None}
            over = weights.base.hint if weights.base else None
            base = states[int(over)] if over is not None else {}
            assert own == {n for n in state if n not in base or not torch.equal(state[n], base[n])}
            held = sum(entry.size for entry in weights.files)
            assert held <= sum(state[name].nbytes for name in own) + 1024 * len(weights.files)
            sizes = {name: (path / name).stat().st_size for name in os.listdir(path)}
            assert sum(sizes.values()) == held + sizes["manifest.json"] + sizes["README.md"]
            assert opens_as(path, state)


@given(steps)
@settings(max_examples=12)
def test_made_whole_it_has_the_same_identity_and_bits(plan: list[Step]) -> None:
    with run_of(plan) as (run, states):
        before = [persistlib.inspect(run / f"{n}").manifest for n in range(len(states))]
        for number in range(len(states)):
            made = persistlib.materialize(run / f"{number}", run.parent / f"{number}")
            assert made.bundle_id == before[number].bundle_id
            assert made.weights.base is None
            assert made.model_dump(exclude={"weights", "digest"}) == before[number].model_dump(
                exclude={"weights", "digest"}
            )
        shutil.rmtree(run)
        for number, state in enumerate(states):
            assert persistlib.verify(run.parent / f"{number}").ok
            assert opens_as(run.parent / f"{number}", state)


@given(steps, st.integers(1, 3))
@settings(max_examples=12)
def test_pruning_never_leaves_a_bundle_that_does_not_verify(plan: list[Step], keep: int) -> None:
    with run_of(plan) as (run, states):
        best = persistlib.log(run).best
        done = persistlib.prune(run, keep=keep)
        left = {int(name) for name in os.listdir(run)}
        assert left >= {*range(max(0, len(states) - keep), len(states))}
        assert best is not None
        assert int(best.name) in left
        assert left == {int(version.name) for version in done.kept}
        for number in left:
            assert persistlib.verify(run / f"{number}").ok
            assert opens_as(run / f"{number}", states[number])
        assert {*done.needed} <= {version.base for version in done.kept}


# -- crashes -----------------------------------------------------------------------------------

CHAIN = [
    Step(frozenset(), None, 0.1),
    Step(frozenset({0}), 0, 0.1),
    Step(frozenset({1}), 0, 0.1),
    Step(frozenset({0, 1, 2}), None, 0.9),
    Step(frozenset({1}), 3, 0.9),
]


def assert_whole(run: Path, states: list[dict[str, torch.Tensor]]) -> None:
    for name in os.listdir(run):
        if not name.startswith("."):
            assert persistlib.verify(run / name).ok, name
            assert opens_as(run / name, states[int(name)])


def prune_until(run: Path, tape: Tape) -> None:
    with quiet(), recorded(tape), descriptors_closed():
        try:
            persistlib.prune(run)
        except (Killed, PersistlibError):
            assert tape.at


def test_a_prune_that_dies_at_any_call_leaves_whole_bundles_and_the_next_ends_it() -> None:
    with run_of(CHAIN) as (made, states):
        at, ended = 0, False
        while not ended:
            at += 1
            run = made.parent / "trial"
            shutil.copytree(made, run)
            tape = Tape(at=at, action="die")
            prune_until(run, tape)
            ended = len(tape.calls) < at
            assert_whole(run, states)
            with quiet():
                persistlib.prune(run)
            assert sorted(os.listdir(run)) == ["3", "4"]
            shutil.rmtree(run)
        assert at > 20


@pytest.mark.parametrize("seed", [0, 1])
def test_a_power_cut_while_pruning_leaves_whole_bundles(seed: int) -> None:
    with run_of(CHAIN) as (run, states):
        tape = Tape()
        disk = Disk.of(str(run), tape)
        prune_until(run, tape)
        chance, seen = random.Random(seed), set[str]()
        for upto in range(len(tape.operations) + 1):
            left = lost(disk, tape, upto, chance)
            if (state := left.state()) not in seen:
                seen.add(state)
                where = run.parent / "left"
                left.write(str(where), kinds(tape.operations))
                assert_whole(where, states)
                shutil.rmtree(where)
        assert len(seen) > 5
