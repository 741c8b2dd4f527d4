"""Words of messages: what is shown of many names, and what a fault says."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from persistlib.wording import first_line, first_of, with_rest

NAMES = st.lists(st.from_regex(r"[a-z.]{1,8}", fullmatch=True), max_size=12)
MOST = st.integers(1, 8)


@given(NAMES, MOST)
def test_what_is_shown_of_names_is_their_beginning_and_says_so_where_there_are_more(
    names: list[str], most: int
) -> None:
    shown = names[:most]
    more = len(names) - len(shown)
    assert first_of(names, most).split(", ") == ([*shown, "..."] if more else shown or [""])
    said, _, count = with_rest(names, most).partition(" and ")
    assert said.split(", ") == (shown or [""])
    assert count == (f"{more} more" if more else "")


@given(st.text())
def test_what_a_fault_says_is_one_line_and_never_empty(text: str) -> None:
    said = first_line(ValueError(text))
    assert said.splitlines() == [said]
    assert said in text or (not text.strip() and said == "ValueError")
