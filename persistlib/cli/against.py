"""A model held against another one, as a person reads it: a sentence and what differs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from persistlib.cli.answer import Fields, Line, Span, Table
from persistlib.cli.manifest_text import PARTS
from persistlib.cli.task_figures import WHOLE
from persistlib.cli.text import number, percent
from persistlib.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from persistlib.cli.answer import Block
    from persistlib.evaluation.comparing import Against, Comparison, Difference

_CHANCE = 0.05
_LEAST = 1e-4  # smaller p-values are told to be smaller
_NUMBERS = {"MSE", "MAE", "R2"}  # no shares of one
# Why an interval and a test of the same samples may part: the one of shares, the other of numbers.
_APART = {
    True: "the interval is Tango's and approximate, the test is exact",
    False: "the interval is of the mean, the test of ranks, which large errors move less",
}
_RIGHT = {"accuracy": "is right on", "subset accuracy": "has every label right on"}


def report(against: Against, *, show_all: bool) -> Iterator[Block]:
    """Yield what differs between the two models, head by head."""
    for head in against.heads:
        yield Line((Span(""),))
        yield Fields(tuple(_sentences(against, head)))
        yield Line((Span(""),))
        yield _figures(against, head)
        if head.parts:
            yield Line((Span(""),))
            yield _parts(head, show_all=show_all)


def _sentences(against: Against, head: Comparison) -> Iterator[tuple[str, str]]:
    first, second = against.models
    yield "against", f"{second}, on the same samples"
    if head.head:
        yield "head", head.head
    tested = head.overall[0]
    if not head.test or tested.better is None:
        return
    count = counted(tested.better[0], "sample")
    does = _RIGHT.get(tested.name)
    if tested.p_value is None:
        same = "right on the same samples" if does else "equally far off everywhere"
        yield head.test, f"no difference to test: both are {same}"
    elif does:
        fails = f"fails on {number(tested.better[1])} that it gets right"
        yield (
            head.test,
            f"{first} {does} {count} that {second} gets wrong, and {fails}: {_p(tested.p_value)}",
        )
    else:
        other = f"{second} on {number(tested.better[1])}"
        yield head.test, f"{first} is nearer on {count}, {other}: {_p(tested.p_value)}"
    if _disagree(tested):
        yield "close call", f"{_APART[does is not None]}; it may be chance where either says so"
    if sum(part.p_value is not None for part in head.parts) > 1:
        yield "p below", "allow for how many there are (Holm), which the intervals do not"


def _disagree(found: Difference) -> bool:
    """Return whether one of interval and test says that it may be chance, and the other not."""
    if found.p_value is None or found.interval is None:
        return False
    low, high = found.interval
    return (low <= 0 <= high) != (found.p_value >= _CHANCE)


def _p(value: float) -> str:
    shown = f"p < {_LEAST:.4f}" if value < _LEAST else f"p = {value:.2g}"
    return f"{shown}, which may be chance" if value >= _CHANCE else shown


def _figures(against: Against, head: Comparison) -> Table:
    """Return the figures of all samples, of both and their difference."""
    rows = tuple(
        (
            found.name,
            *(_figure(found.name, value) for value in (found.first, found.second)),
            _difference(found, found.name),
        )
        for found in head.overall
    )
    return Table(("", *against.models, "difference"), rows, frozenset({1, 2, 3}))


def _parts(head: Comparison, *, show_all: bool) -> Table:
    """Return classes, labels or outputs, those that differ most surely first where many are."""
    parts, title = list(head.parts), f"{PARTS.get(head.task, 'part')}"
    if len(parts) > WHOLE and not show_all:
        parts.sort(key=lambda part: 1.0 if part.p_value is None else part.p_value)
        parts, title = parts[:WHOLE], f"{title} ({WHOLE} of {len(head.parts)})"
    figure = "MAE" if head.overall[0].name == "MAE" else "recall"
    rows = tuple(
        (
            part.name,
            number(part.samples),
            *(number(count) for count in part.better or ()),
            _difference(part, figure),
            "-" if part.adjusted is None else f"{part.adjusted:.2g}",
        )
        for part in parts
    )
    tests = sum(part.p_value is not None for part in head.parts)
    tested = f"p, of {counted(tests, 'test')}" if tests else "p"
    columns = (title, "samples", "better", "worse", "difference", tested)
    return Table(columns, rows, frozenset(range(1, len(columns))))


def _figure(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if name in _NUMBERS else percent(value)


def _difference(found: Difference, figure: str) -> str:
    """Return a difference with its interval: +1.9 % (-0.4 to +4.4)."""
    if found.difference is None:
        return "-"
    values = (found.difference, *(found.interval or ()))
    if figure in _NUMBERS:
        shown = [f"{value:+.3g}" for value in values]
        unit = ""
    else:
        shown = [f"{100 * value:+.1f}" for value in values]
        unit = " %"
    bounds = f" ({shown[1]} to {shown[2]})" if found.interval is not None else ""
    return f"{shown[0]}{unit}{bounds}"
