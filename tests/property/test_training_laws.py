"""Laws of training over random nets and patterns."""

from __future__ import annotations

import copy
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from persistlib.errors import PersistlibError
from persistlib.patterns import matches
from persistlib.training.loop import finetune

NORMS: tuple[Any, ...] = (
    lambda: nn.BatchNorm1d(5),
    lambda: nn.BatchNorm1d(5, momentum=None),
    lambda: nn.BatchNorm1d(5, affine=False),
    lambda: nn.LayerNorm(5),
    nn.Identity,
)


@st.composite
def nets(draw: st.DrawFn) -> nn.Module:
    depth = draw(st.integers(1, 3))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw(st.integers(0, 99)))
        blocks = [
            nn.Sequential(nn.Linear(5, 5), draw(st.sampled_from(NORMS))(), nn.ReLU())
            for _ in range(depth)
        ]
        return nn.Sequential(*blocks, nn.Dropout(0.5), nn.Linear(5, 3))


PATTERNS = st.lists(
    st.sampled_from(["*", "0.*", "1", "0.0.*", "*.bias", "*.1.*", "!0.*", "!*.weight", "!*.1.*"]),
    max_size=4,
)


def run(model: nn.Module, patterns: list[str], **how: Any) -> str | None:
    """Train; return what was run in each epoch, where that was not the whole."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(11, 5, generator=generator)
    labels = torch.arange(11) % 3
    how = {"epochs": 2, "lr": 0.1, "batch_size": 4, **how}
    done = finetune(model, (inputs, labels), freeze=patterns, **how).training.strategy
    return None if done["cached_before"] is None else str(done["cached_before"])


@settings(max_examples=60, deadline=None)
@given(nets(), PATTERNS)
def test_frozen_tensors_and_buffers_are_bit_equal_after_training(
    model: nn.Module, patterns: list[str]
) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = {name for name, _ in model.named_parameters() if not matches(patterns, name)}
    try:
        run(model, patterns)
    except PersistlibError as fault:
        # A pattern may match nothing, or all: then nothing at all has changed.
        assert fault.code in {"PL804", "PL805"}  # noqa: PT017 - either outcome is right
        trained = set()
        before_names = set(before)
    else:
        before_names = {name for name in before if matches(patterns, name)}
    for name in before_names:
        assert before[name].equal(model.state_dict()[name]), name
    for name in trained:
        assert not before[name].isnan().any()


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_two_runs_end_with_the_same_bits(data: st.DataObject) -> None:
    model = data.draw(nets())
    twin = copy.deepcopy(model)
    run(model, [])
    torch.rand(3)
    run(twin, [])
    for name, value in model.state_dict().items():
        assert value.equal(twin.state_dict()[name]), name


@settings(max_examples=20, deadline=None)
@given(nets(), st.integers(0, 2))
def test_training_with_and_without_features_gives_the_same_weights(
    model: nn.Module, frozen: int
) -> None:
    twin = copy.deepcopy(model)
    patterns = [f"{number}.*" for number in range(min(frozen, len([*model.children()]) - 2))]
    # Adam would make steps of the rounding of gradients that are 0, as a bias has before BatchNorm.
    path = run(model, patterns, optimizer="sgd")
    assert run(twin, patterns, optimizer="sgd", cache=False) is None
    assert (path is None) == (not patterns)
    for name, value in model.state_dict().items():
        assert torch.allclose(value, twin.state_dict()[name], rtol=1e-4, atol=1e-5), name
