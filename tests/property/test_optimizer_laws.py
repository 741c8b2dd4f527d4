"""States of optimizers and schedulers: by name, and with nothing lost on the way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from persistlib.training import optimizers
from persistlib.training.optimizers import OPTIMIZERS
from persistlib.training.schedules import SCHEDULES, Length, Scheduler

# Those of torch that take a step on any gradient, without a closure and without a condition.
NAMES = sorted(name for name in OPTIMIZERS if name != "muon")
OURS = ("cosine", "constant")


def stepped(name: str, seed: int, steps: int, *, is_turned: bool = False) -> tuple[Any, Any]:
    """Return an optimizer that took some steps, and its parameters by name."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a.weight": (3, 2), "b": (), "c.bias": (4,)}
    named = {n: nn.Parameter(torch.randn(s, generator=generator)) for n, s in shapes.items()}
    order = [*named.values()][:: -1 if is_turned else 1]
    made = optimizers.make(name, [{"params": order}], lr=0.01, decay=0.01, options={})
    for _ in range(steps):
        for item in named.values():
            item.grad = torch.randn(item.shape, generator=generator)
        made.step()
    return made, named


def slots(optimizer: Any, named: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    return optimizers.take_state(optimizer, {id(item): name for name, item in named.items()})


@settings(deadline=None)
@given(st.sampled_from(NAMES), st.integers(0, 99), st.integers(1, 4), st.booleans())
def test_a_state_that_is_put_back_by_name_changes_no_bit_whatever_the_order(
    name: str, seed: int, steps: int, is_turned: bool
) -> None:
    made, named = stepped(name, seed, steps)
    tensors, plain = slots(made, named)
    assert tensors or plain
    other, others = stepped(name, seed + 1, 0, is_turned=is_turned)
    optimizers.put_state(other, others, tensors, plain)
    back, rest = slots(other, others)
    assert rest == plain
    assert back.keys() == tensors.keys()
    assert all(back[key].equal(tensors[key]) for key in tensors)
    assert all(back[key] is not tensors[key] for key in tensors)


@pytest.mark.parametrize("name", sorted({*SCHEDULES} - {*OURS}))
@settings(deadline=None)
@given(done=st.integers(0, 8), more=st.integers(1, 6), loss=st.floats(0.1, 9))
def test_a_scheduler_that_is_given_a_state_gives_the_rates_that_the_other_would_have_given(
    name: str, done: int, more: int, loss: float
) -> None:
    def begun() -> tuple[Scheduler, Any]:
        made = optimizers.make(
            "sgd", [{"params": [nn.Parameter(torch.ones(2))]}], lr=0.1, decay=0, options={}
        )
        return Scheduler(name, made, Length(epochs=20, steps=20, rates=[0.1]), {}), made

    def rates(scheduler: Scheduler, optimizer: Any, count: int) -> list[float]:
        found: list[float] = []
        for number in range(count):
            optimizer.step()
            scheduler.after_step()
            scheduler.after_epoch(loss + number)
            found.append(optimizer.param_groups[0]["lr"])
        return found

    one, optimizer = begun()
    rates(one, optimizer, done)
    other, again = begun()
    other.restore(one.state())
    optimizers.put_group_numbers(again, optimizers.group_numbers(optimizer))
    assert rates(other, again, more) == rates(one, optimizer, more)
