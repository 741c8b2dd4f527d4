"""Laws of the values in a recipe: what is encoded comes back, with its types."""

from __future__ import annotations

import contextlib
import json
import math
from collections import OrderedDict
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from persistlib.architecture.encoding import _READERS, NotPlainError, decode, encode, text
from persistlib.canonical import encode as canonical
from persistlib.errors import PersistlibError

NAMED = [nn.BatchNorm2d, nn.Linear, nn.functional.relu, nn.functional.gelu, torch.add, torch.tanh]
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.complex_numbers(),
    st.text(),
    st.sampled_from([torch.float16, torch.bfloat16, torch.int64, torch.bool]),
    st.sampled_from([torch.device("cpu"), torch.device("cuda", 1)]),
    st.sampled_from(NAMED),
    st.lists(st.integers(0, 9)).map(torch.Size),
)
KEYS = st.one_of(st.text(), st.integers(), st.booleans(), st.tuples(st.integers(), st.text()))
SETS = st.one_of(st.integers(), st.text(), st.tuples(st.text()))


def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    mapping = st.dictionaries(KEYS, inner, max_size=4)
    return st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        mapping,
        mapping.map(OrderedDict),
        st.sets(SETS, max_size=4),
        st.frozensets(SETS, max_size=4),
        st.builds(
            lambda function, args, kw: partial(function, *args, **kw),
            st.sampled_from(NAMED),
            st.lists(inner, max_size=2),
            st.dictionaries(st.from_regex(r"[a-z]{1,5}", fullmatch=True), inner, max_size=2),
        ),
    )


VALUES = st.recursive(LEAVES, nested, max_leaves=12)


def same(one: Any, other: Any) -> bool:  # noqa: PLR0911 - a case for each kind of value
    """Compare values and their types, NaN to NaN and zero by its sign, dicts in order."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return (math.isnan(one) and math.isnan(other)) or (
            one == other and math.copysign(1, one) == math.copysign(1, other)
        )
    if isinstance(one, complex):
        return same(one.real, other.real) and same(one.imag, other.imag)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return same(list(one.items()), list(other.items()))
    if isinstance(one, partial):
        parts = [(p.func, p.args, p.keywords) for p in (one, other)]
        return same(*parts)
    return bool(one == other)


@given(VALUES)
def test_decode_gives_back_what_was_encoded(value: Any) -> None:
    data = encode(value)
    assert same(decode(json.loads(json.dumps(data))), value)


@given(VALUES)
def test_encoded_values_are_canonical_json_and_encode_to_themselves_again(value: Any) -> None:
    data = encode(value)
    assert text(json.loads(canonical({"value": data}))["value"]) == text(data)
    assert text(encode(decode(data))) == text(data)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.text(max_size=3), inner, max_size=3),
        st.dictionaries(
            st.sampled_from([*_READERS, "$other"]),
            inner,
            max_size=2,
        ),
    ),
    max_leaves=8,
)


@given(JSON)
@settings(max_examples=400)
def test_no_json_makes_decode_raise_anything_but_our_own_error(data: Any) -> None:
    with contextlib.suppress(PersistlibError):
        decode(data)


@pytest.mark.parametrize(
    "value",
    [object(), lambda x: x, torch.ones(1), nn.ReLU(), iter([1]), "\ud800", 10**4000, range(3)],
)
def test_what_no_recipe_can_say_is_refused(value: object) -> None:
    with pytest.raises(NotPlainError):
        encode([value])
