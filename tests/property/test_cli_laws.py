"""The laws of the command line's text, for any names a file may hold."""

from __future__ import annotations

import itertools
import re
import shlex

from hypothesis import example, given
from hypothesis import strategies as st

from persistlib.cli.answer import Fields, Findings, Line, Span, Style, Table
from persistlib.cli.folding import Fold, depth_for, fold, truncate
from persistlib.cli.layout import render
from persistlib.cli.text import clip, percent, rounded_up, size, width, wrap, wrap_command
from persistlib.errors import Code, error

_COMPONENT = st.one_of(
    st.integers(0, 12).map(str),
    st.sampled_from(["layer", "conv1", "bn2", "weight", "block_3", "x01", "10", "a"]),
    st.text(max_size=4),
)
_NAMES = st.lists(
    st.lists(_COMPONENT, min_size=1, max_size=4).map(".".join), unique=True, max_size=40
)
_NUMBER = re.compile(r"(?<![0-9])(0|[1-9][0-9]{0,8})(?![0-9])")


def _expand(texts: tuple[str, ...], members: list[tuple[int, ...]]) -> set[str]:
    """Every name that a fold's pattern stands for: the product of the numbers of its members."""
    factors = [sorted(set(column)) for column in zip(*members, strict=True)]
    return {
        "".join(itertools.chain(*zip(texts, (*map(str, numbers), ""), strict=True)))
        for numbers in itertools.product(*factors)
    }


@given(_NAMES)
@example(["a.0.x", "a.1.y"])
@example([f"layer{i}.{j}.conv{k}" for i in range(3) for j in range(2 + i) for k in (1, 2)])
def test_patterns_stand_for_the_given_names_each_once_and_for_no_other(names: list[str]) -> None:
    folds = fold(names)
    assert sorted(m for f in folds for m in f.members) == list(range(len(names)))
    for folded in folds:
        pieces = [_NUMBER.split(names[member], maxsplit=16) for member in folded.members]
        texts = {tuple(piece[::2]) for piece in pieces}
        assert len(texts) == 1
        members = [tuple(int(number) for number in piece[1::2]) for piece in pieces]
        stands_for = _expand(texts.pop(), members)
        assert stands_for == {names[member] for member in folded.members}


@given(_NAMES, st.data())
def test_names_fold_together_only_where_their_keys_are_equal(
    names: list[str], data: st.DataObject
) -> None:
    keys = [data.draw(st.booleans()) for _ in names]
    for folded in fold(names, keys):
        assert len({keys[member] for member in folded.members}) == 1


def test_numbers_fold_to_ranges() -> None:
    names = [f"layer3.{block}.conv1" for block in (0, 1, 2, 5)]
    assert fold(names) == (Fold("layer3.[0-2,5].conv1", (0, 1, 2, 3)),)


@given(_NAMES, st.integers(1, 6))
def test_the_depth_is_the_greatest_that_fits(names: list[str], limit: int) -> None:
    def lines(depth: int) -> int:
        return len(fold(tuple(dict.fromkeys(truncate(name, depth) for name in names))))

    depth = depth_for(names, limit)
    assert depth == 1 or lines(depth) <= limit
    deepest = max((name.count(".") + 1 for name in names), default=1)
    assert all(lines(deeper) > limit for deeper in range(depth + 1, deepest + 1))


_TEXT = st.text(max_size=150)


@given(_TEXT, st.integers(8, 100))
@example("\x1b[31mred\x1b[0m", 20)
@example("模型" * 40, 21)
def test_no_wrapped_or_clipped_line_is_wider_than_asked_for(text: str, columns: int) -> None:
    for line in (*wrap(text, columns), clip(text, columns)):
        assert width(line) <= columns
        assert line.isprintable()


@given(_TEXT, st.integers(8, 100))
def test_wrapping_loses_nothing_but_blanks(text: str, columns: int) -> None:
    printable = "".join(wrap(text, 10**6))
    assert "".join(wrap(text, columns)).replace(" ", "") == printable.replace(" ", "")


@given(st.text("abcdef0123456789", min_size=64, max_size=64), st.integers(80, 100))
def test_a_digest_stays_whole_on_a_usual_terminal(digits: str, columns: int) -> None:
    value = f"blake3:{digits}"
    report = (Fields((("a long label of it", value), ("other", "short"))),)
    lines = [*render(report, columns, colour=False)]
    assert any(line.endswith(value) for line in lines)
    assert all(width(line) <= columns for line in lines)


@given(st.integers(8, 100), st.integers(1, 400))
def test_a_mark_never_stands_alone_on_its_line(columns: int, length: int) -> None:
    assert wrap(f"! {'x' * length} y", columns)[0].startswith("! x")


@given(st.floats(1e-12, 1e12))
def test_a_bound_is_never_shown_below_what_was_found(value: float) -> None:
    shown = float(rounded_up(value))
    assert value * (1 - 1e-6) <= shown <= value * 1.11


@given(st.lists(st.text("abc/-=.", min_size=1, max_size=20), max_size=9), st.integers(40, 100))
def test_a_command_in_several_lines_is_the_same_to_a_shell(words: list[str], columns: int) -> None:
    remedy = shlex.join(("persistlib", "convert", *words))
    lines = wrap_command(f"→ {remedy}", columns)
    assert all(width(line) <= columns for line in lines)
    if "'" not in remedy:
        pasted = "\n".join(lines).removeprefix("→ ").replace("\\\n", "")
        assert shlex.split(pasted) == ["persistlib", "convert", *words]


@given(st.lists(_TEXT, min_size=3, max_size=3), st.integers(40, 100), st.booleans())
def test_a_report_is_printable_and_never_wider_than_asked_for(
    texts: list[str], columns: int, colour: bool
) -> None:
    first, second, third = texts
    fault = error(Code.FILE_DIGEST, first, second, third)
    blocks = (
        Line((Span(first, Style.STRONG), Span(second)), third),
        Fields((("label", first), ("", second))),
        Table(("name", "size"), ((first, Span(second, Style.BAD)), (third, "1")), frozenset({1})),
        Findings(fault.findings),
    )
    for line in render(blocks, columns, colour=colour):
        plain = re.sub(r"\x1b\[[0-9]m|\x1b\[3[0-9]m", "", line) if colour else line
        assert plain.isprintable()
        assert width(plain) <= columns


@given(st.integers(0, 10**21))
def test_a_size_has_at_most_four_digits_before_its_unit(count: int) -> None:
    assert re.fullmatch(r"\d{1,3}(\.\d)? [kMGTPE]?B|\d{4,}\.\d EB", size(count))


@given(st.floats(0, 1))
def test_a_part_is_never_shown_as_all_nor_as_nothing(share: float) -> None:
    assert (percent(share) == "100.0 %") == (share == 1)
    assert (percent(share) == "0.0 %") == (share == 0)
