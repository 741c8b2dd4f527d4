"""What a model tells of images and rows, for people, programs and pipes: by the kind of answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from persistlib.cli.answer import Span, Style, Table
from persistlib.cli.text import percent
from persistlib.runtime.predictions import Labels, Numbers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from persistlib.cli.answer import JSON

_Cells: TypeAlias = "tuple[str | Span, ...]"


def data(answer: Any) -> dict[str, JSON]:
    """Return what is told of a sample as JSON."""
    match answer:
        case dict():
            return {"heads": {name: data(part) for name, part in answer.items()}}
        case Numbers():
            return {"values": dict(answer.values)}
        case Labels():
            return {"labels": [*answer.labels], "top": _shares(answer.top)}
        case _:
            return {
                "label": answer.label,
                "index": answer.index,
                "probability": answer.probability,
                "top": _shares(answer.top),
            }


def _shares(top: Sequence[tuple[str, float]]) -> list[JSON]:
    return [{"label": label, "probability": share} for label, share in top]


def brief(answer: Any) -> str:
    """Return what is told of a sample in one line, its parts in order."""
    match answer:
        case dict():
            return "; ".join(f"{name}: {brief(part)}" for name, part in answer.items())
        case Numbers():
            return " ".join(map(_number, answer.values.values()))
        case Labels():
            return ", ".join(answer.labels)
        case _:
            return str(answer.label)


def table(what: str, names: Sequence[str], answers: Sequence[Any]) -> Table:
    """Return what is told of samples as a table.

    Args:
        what: the samples are, such as "image".
        names: of each.
        answers: of each, all of one kind; at least one.
    """
    pairs = list(zip(names, answers, strict=True))
    first = answers[0]
    if isinstance(first, Numbers):
        head = (what, *first.values)
        numbers: list[_Cells] = [(name, *map(_number, one.values.values())) for name, one in pairs]
        return Table(head, tuple(numbers), frozenset(range(1, len(head))))
    if isinstance(first, dict):
        rows = tuple(row for name, answer in pairs for row in _heads(name, answer))
        return Table((what, "head", "answer", ""), rows, frozenset({3}))
    word = "label" if isinstance(first, Labels) else "class"
    rows = tuple(
        (name if place == 0 else "", *cells)
        for name, answer in pairs
        for place, cells in enumerate(_cells(answer))
    )
    return Table((what, word, "probability"), rows, frozenset({2}))


def _heads(name: str, answer: dict[str, Any]) -> Iterator[_Cells]:
    shown = name
    for head, part in answer.items():
        for place, cells in enumerate(_cells(part)):
            yield (shown, head if place == 0 else "", *cells)
            shown = ""


def _cells(answer: Any) -> Iterator[_Cells]:
    """Yield the name and the figure of each row that an answer has: what holds is strong."""
    if isinstance(answer, Numbers):
        for name, value in answer.values.items():
            yield Span(name), Span(_number(value), Style.STRONG)
        return
    for rank, (label, share) in enumerate(answer.top):
        holds = label in answer.labels if isinstance(answer, Labels) else rank == 0
        style = Style.STRONG if holds else Style.FAINT
        yield Span(label, style), Span(percent(share), style)


def _number(value: float) -> str:
    return f"{value:.6g}"
