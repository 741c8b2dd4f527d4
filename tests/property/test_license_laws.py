"""The laws of `persistlib.licenses`."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from persistlib.licenses import Verdict, judge, parse, parse_pattern

NAMES = ("MIT", "Apache-2.0", "GPL-3.0-only", "CC-BY-NC-4.0", "openrail", "LicenseRef-House")
names = st.sampled_from(NAMES)
expressions = st.recursive(
    names | names.map("{} WITH LLVM-exception".format),
    lambda inner: st.tuples(inner, st.sampled_from(["AND", "OR"]), inner).map(
        lambda parts: f"({parts[0]}) {parts[1]} {parts[2]}"
    ),
    max_leaves=6,
)
lists = st.sets(names)


def verdict(text: str, forbidden: set[str]) -> Verdict:
    return judge(parse(text), [parse_pattern(name) for name in sorted(forbidden)])


@given(expressions, expressions, lists)
def test_a_choice_is_as_good_as_its_best_part_and_a_sum_as_bad_as_its_worst(
    one: str, other: str, forbidden: set[str]
) -> None:
    parts = verdict(one, forbidden), verdict(other, forbidden)
    assert verdict(f"({one}) OR ({other})", forbidden) == min(parts)
    assert verdict(f"({one}) AND ({other})", forbidden) == max(parts)


@given(names, lists)
def test_an_exception_excuses_nothing(name: str, forbidden: set[str]) -> None:
    assert verdict(f"{name} WITH LLVM-exception", forbidden) == verdict(name, forbidden)


@given(expressions, lists, names)
def test_a_longer_list_never_frees_anything(text: str, forbidden: set[str], more: str) -> None:
    assert verdict(text, forbidden | {more}) >= verdict(text, forbidden)


@given(expressions)
def test_nothing_is_forbidden_by_an_empty_list_and_everything_by_all_names(text: str) -> None:
    assert verdict(text, set()) < Verdict.FORBIDDEN
    assert verdict(text, set(NAMES)) is Verdict.FORBIDDEN


@given(st.text(max_size=60))
def test_any_text_is_an_expression_or_a_value_error(text: str) -> None:
    try:
        expression = parse(text)
    except ValueError:
        return
    assert judge(expression, []) in Verdict
