"""The laws of `adaptation`."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

import persistlib
from adaptable_models import Clip, Net, awake
from persistlib.adaptation.adapting import Origin, adapt
from persistlib.adaptation.channels import spread_weight, ungrouped
from persistlib.adaptation.image_size import resize_positions
from persistlib.adaptation.partial import fit
from persistlib.adaptation.wishes import Wishes, parse
from persistlib.architecture.recipe import Recipe
from persistlib.errors import PersistlibError, PersistlibWarning, UsageError
from persistlib.manifest.schema import Interface

LABELS = st.lists(st.text("abcdef", min_size=1, max_size=2), min_size=1, max_size=7, unique=True)
KINDS = st.sampled_from(["linear", "bare", "conv"])


def adapted(model: nn.Module, wishes: dict[str, Any], interface: Interface | None = None) -> Any:
    """Return the model adapted in place."""
    kind = type(model)
    recipe = Recipe(f"{kind.__module__}:{kind.__qualname__}")
    given_interface = interface or Interface()
    return adapt(model, recipe, given_interface, parse(wishes), Origin(renamed={}))


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


@settings(max_examples=15)
@given(LABELS, KINDS)
def test_with_the_labels_that_it_has_a_model_is_left_bit_for_bit(
    labels: list[str], kind: str
) -> None:
    model = awake(Net(len(labels), head=kind))
    before = state(model)
    image = torch.randn(2, 3, 8, 8)
    interface = Interface(labels=tuple(labels))
    made = adapted(model, {"classes": labels, "example_inputs": image}, interface)
    assert equal(before, state(made))
    done = persistlib.adaptation_of(made)
    assert done is not None
    assert done.interface.labels == tuple(labels)


@settings(max_examples=25)
@given(LABELS, LABELS, KINDS, st.integers(0, 3), st.randoms(use_true_random=False))
def test_a_row_is_that_of_its_label_wherever_the_label_stands(
    old: list[str], new: list[str], kind: str, seed: int, random: Any
) -> None:
    image = torch.randn(2, 3, 8, 8)
    other = random.sample(new, len(new))
    rows: list[dict[str, torch.Tensor]] = []
    for labels in (new, other):
        model = awake(Net(len(old), head=kind, width=9))
        before = {label: model.last.weight[n].clone() for n, label in enumerate(old)}
        wishes = {"classes": labels, "seed": seed, "example_inputs": image}
        made = adapted(model, wishes, Interface(labels=tuple(old)))
        assert made(image).shape == (2, len(labels))
        assert made.classes == len(labels)
        rows.append(dict(zip(labels, made.last.weight, strict=True)))
        for label in {*labels} & {*old}:
            assert torch.equal(rows[-1][label], before[label])
        bound = 1 / math.sqrt(9)
        assert all(row.abs().max() <= bound for label, row in rows[-1].items() if label not in old)
        drawn = [row for label, row in rows[-1].items() if label not in old]
        assert len({tuple(row.flatten().tolist()) for row in drawn}) == len(drawn)
    assert all(torch.equal(rows[0][label], rows[1][label]) for label in new)


def same_picture(model: nn.Module, channels: int, extents: tuple[int, ...]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    plane = torch.randn(3, 1, *extents, generator=generator)
    with torch.no_grad():
        scores: torch.Tensor = model(plane.expand(-1, channels, *extents))
    return scores


@settings(max_examples=30)
@given(
    st.sampled_from([(3, 1), (3, 3), (1, 1), (4, 2), (4, 4), (2, 2), (6, 3)]),
    st.integers(1, 9),
    st.integers(0, 5),
)
def test_the_same_picture_in_every_channel_gives_the_same_outputs(
    layout: tuple[int, int], channels: int, seed: int
) -> None:
    before, groups = layout
    model = awake(Net(in_channels=before, groups=groups, width=12), seed=seed)
    expected = same_picture(model, before, (8, 8))
    made = adapted(model, {"channels": channels, "example_inputs": torch.randn(2, before, 8, 8)})
    scores = same_picture(made, channels, (8, 8))
    spread = float(expected.max() - expected.min())
    assume(spread > 1e-2)  # outputs that could differ
    assert float((scores - expected).abs().max()) < 1e-4 * spread
    # And the picture counts at all.
    assert not torch.allclose(made(torch.randn(3, channels, 8, 8)), scores, atol=1e-3 * spread)


@settings(max_examples=15)
@given(st.sampled_from([(3, 1), (3, 3), (4, 2), (2, 2), (6, 3)]), st.integers(0, 6))
def test_channels_repeated_in_turn_give_what_they_gave_before(
    layout: tuple[int, int], more: int
) -> None:
    before, groups = layout
    model = awake(Net(in_channels=before, groups=groups, width=12))
    image = torch.randn(3, before, 8, 8)
    expected = model(image)
    channels = before + more
    made = adapted(model, {"channels": channels, "example_inputs": image})
    repeated = image[:, torch.arange(channels) % before]
    assert torch.allclose(made(repeated), expected, atol=1e-4)


@pytest.mark.parametrize("axes", [1, 3])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_the_same_row_or_film_in_every_channel_gives_the_same_outputs(
    axes: int, channels: int
) -> None:
    model = awake(Clip(axes))
    extents = (6,) * axes
    expected = same_picture(model, 2, extents)
    made = adapted(model, {"channels": channels, "example_inputs": torch.randn(2, 2, *extents)})
    scores = same_picture(made, channels, extents)
    assert torch.allclose(scores, expected, atol=1e-5)
    assert float((expected.max() - expected.min()).detach()) > 1e-2


@given(st.integers(1, 6), st.integers(1, 12), st.sampled_from([torch.float64, torch.float32]))
def test_a_filter_keeps_its_sum_over_the_channels(
    before: int, after: int, dtype: torch.dtype
) -> None:
    weight = torch.randn(4, before, 3, 2, dtype=dtype)
    made = spread_weight(weight, after)
    assert made.shape == (4, after, 3, 2)
    assert made.dtype is dtype
    assert torch.allclose(made.sum(1), weight.sum(1), atol=1e-5)
    if before == after:
        assert made is weight


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3))
def test_an_ungrouped_convolution_computes_what_the_grouped_one_does(
    groups: int, inside: int, outputs: int
) -> None:
    x = torch.randn(2, groups * inside, 6, dtype=torch.float64)
    weight = torch.randn(groups * outputs, inside, 3, dtype=torch.float64)
    expected = nn.functional.conv1d(x, weight, groups=groups)
    assert torch.allclose(nn.functional.conv1d(x, ungrouped(weight, groups)), expected)


@given(st.integers(1, 6), st.integers(1, 6), st.sampled_from([0, 1, 2]), st.integers(1, 4))
def test_a_table_of_positions_keeps_tokens_size_and_what_is_constant(
    old: int, new: int, tokens: int, width: int
) -> None:
    table = torch.randn(1, tokens + old * old, width)
    assert resize_positions(table, table.shape) is table
    shape = (1, tokens + new * new, width)
    try:
        made = resize_positions(table, shape)
    except ValueError:
        pytest.fail("a square grid after tokens was refused")
    assert tuple(made.shape) == shape
    assert torch.equal(made[:, :tokens], table[:, :tokens])
    constant = table[:, :1].expand_as(table)
    assert torch.allclose(resize_positions(constant, shape), table[:, :1], atol=1e-5)


NAMES = st.dictionaries(st.sampled_from("abcdef"), st.sampled_from([(1,), (2,), (2, 3)]))


@given(NAMES, NAMES)
def test_every_name_stands_in_one_list(
    wanted: dict[str, tuple[int, ...]], stored: dict[str, tuple[int, ...]]
) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            found = fit(wanted, stored, "file")
        except PersistlibError:
            assert not any(stored.get(name) == shape for name, shape in wanted.items())
            return
    reshaped = tuple(item.name for item in found.reshaped)
    assert sorted((*found.taken, *found.missing, *reshaped)) == sorted(wanted)
    assert sorted((*found.taken, *found.unexpected, *reshaped)) == sorted(stored)
    is_whole = not (found.missing or found.unexpected or reshaped)
    assert [warning.category for warning in told] == [PersistlibWarning] * (not is_whole)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 40) | st.floats() | st.text("ab=*.", max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner),
    max_leaves=5,
)
KEYS = st.sampled_from(["classes", "channels", "image_size", "rename", "seed", "clases", "x"])


@given(st.dictionaries(KEYS, VALUES, max_size=3))
def test_whatever_is_asked_is_understood_or_refused_as_usage(asked: dict[str, Any]) -> None:
    try:
        wishes = parse(asked)
    except UsageError:
        return
    assert isinstance(wishes, Wishes)
    assert not {"clases", "x"} & {*asked}
    for value in (wishes.classes or {}).values():
        assert value.number >= 1
        assert value.labels is None or len({*value.labels}) == value.number
