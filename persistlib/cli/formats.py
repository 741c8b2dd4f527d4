"""`persistlib formats`: every file format, what it keeps, and what it cannot hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from persistlib.cli.answer import Answer, Fields, Line, Span, Style, Table
from persistlib.cli.command import Verb
from persistlib.dtypes import DType
from persistlib.formats import FORMATS, LOSSES, PROMISES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from persistlib.cli.answer import JSON, Block
    from persistlib.formats import Format

# Options of speakers that `convert` has a flag for; the others are its own business.
FLAGS = {
    "key": "--key",
    "layout": "--layout",
    "template": "--template",
    "compression": "--compression",
    "shard_bytes": "--shard-bytes",
}


@click.command("formats", cls=Verb)
def command() -> Answer:
    """List the file formats that weights are read from and written to, and what each keeps.

    A bundle is a folder of safetensors files and a manifest.
    """
    return Answer(
        data={
            "formats": [_data(row) for row in FORMATS.values()],
            "keeps": dict(PROMISES),
            "losses": dict(LOSSES),
        },
        report=tuple(_report()),
        brief=tuple(FORMATS),
    )


def _data(row: Format) -> dict[str, JSON]:
    return {
        "name": row.name,
        "title": row.title,
        "endings": [*row.suffixes],
        "written": row.is_written,
        "keeps": [word for word in PROMISES if word in row.keeps],
        "dtypes": [dtype.name for dtype in DType if row.holds(dtype)],
        "options": [*flags(row)],
        "remark": row.remark,
    }


def _report() -> Iterator[Block]:
    yield Line(
        (Span(f"{len(FORMATS)} formats", Style.STRONG), Span(", told by content, not by name"))
    )
    sometimes = [word for word in PROMISES if word not in _always()]
    rows = [
        (
            row.name,
            row.title,
            "read, written" if row.is_written else "read",
            *(_KEPT if word in row.keeps else "" for word in sometimes),
        )
        for row in FORMATS.values()
    ]
    yield Table(("format", "what it is", "", *sometimes), tuple(rows))
    yield Line((Span(""),))
    yield Fields(tuple(_facts()))


def _always() -> tuple[str, ...]:
    """Return what every format keeps."""
    return tuple(word for word in PROMISES if all(word in row.keeps for row in FORMATS.values()))


def _facts() -> Iterator[tuple[str, str]]:
    yield "all keep", "; ".join(PROMISES[word] for word in _always())
    for label, words_of in _FACTS.items():
        said = [(row.name, words) for row in FORMATS.values() if (words := words_of(row))]
        for index, (name, words) in enumerate(said):
            yield label if index == 0 else "", f"{name}: {', '.join(words)}"
    for index, (word, meaning) in enumerate(LOSSES.items()):
        yield "--allow-loss" if index == 0 else "", f"{word}: {meaning}"


def lacking(row: Format) -> tuple[str, ...]:
    """Return the dtypes that a format cannot hold."""
    return tuple(dtype.name for dtype in DType if not row.holds(dtype))


def flags(row: Format) -> tuple[str, ...]:
    """Return the options that mean something for a format."""
    options = row.reads_with | row.writes_with
    return tuple(flag for option, flag in FLAGS.items() if option in options)


_KEPT = "kept"
_FACTS: dict[str, Callable[[Format], tuple[str, ...]]] = {
    "endings": lambda row: row.suffixes,
    "cannot hold": lacking,
    "options": flags,
    "remarks": lambda row: (row.remark,) if row.remark else (),
}
