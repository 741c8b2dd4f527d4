"""The forms of torchvision's models: how a builder may be called, and where it may be edited.

Law: `read(extended(index, forms)) == forms`, and an index without forms gives each of its entries
as a form that nobody edits.

A form is a builder with arguments. Its steps are the edits that another number of classes or input
channels takes, with the modules' whole configuration, so that an edit can be written where torch is
not installed. In the zoo's index they stand under `forms`, beside what `zoo` describes::

    {"forms": [{"builder": ..., "arguments": {...}, "rows": ..., "releases": [a, b],
                "steps": [[kind, path, what, {...}, per], ...]}]}
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from persistlib.architecture import zoo

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# Kinds of steps.
CLASSES, COUNT, CHANNELS = "classes", "count", "channels"


class Step(NamedTuple):
    """One place that a number of classes or of input channels shows in.

    Attributes:
        kind: "classes" for a module with outputs for each class, "count" for a plain attribute that
            holds the number of classes, "channels" for a module that the input goes into.
        path: of the module.
        what: the module's builder, or the attribute's name.
        arguments: the builder's, as a recipe holds them.
        per: outputs for each class; 1 where that means nothing.
    """

    kind: str
    path: str
    what: str
    arguments: Mapping[str, Any]
    per: int


class Form(NamedTuple):
    """What a builder gives for some arguments in a span of releases.

    Attributes:
        builder: `package:function`.
        arguments: its arguments, as a recipe holds them.
        rows: name, dtype and shape of each tensor of the state_dict.
        steps: where it may be edited, in the order of the edits.
        first: the first release that gave this.
        last: the last release.
    """

    builder: str
    arguments: Mapping[str, Any]
    rows: frozenset[zoo.Row]
    steps: tuple[Step, ...]
    first: str
    last: str


@cache
def forms() -> tuple[Form, ...]:
    """Return every form of the shipped index, and of the user's cache where that is newer."""
    found = [form for index in zoo.indexes() for form in read(index)]
    seen = {(form.builder, repr(form.arguments), form.rows): form for form in reversed(found)}
    return tuple(reversed(seen.values()))


def read(index: Mapping[str, Any]) -> tuple[Form, ...]:
    """Return the forms of an index."""
    if "forms" not in index:
        return tuple(
            Form(entry.builder, {}, entry.rows, (), entry.first, entry.last)
            for entry in zoo.read_entries(index)
        )
    groups = zoo.read_groups(index)
    releases = index["releases"]
    return tuple(
        Form(
            item["builder"],
            item["arguments"],
            groups[item["rows"]],
            tuple(Step(*step) for step in item["steps"]),
            releases[item["releases"][0]],
            releases[item["releases"][1]],
        )
        for item in index["forms"]
    )


def extended(index: Mapping[str, Any], found: Iterable[Form]) -> dict[str, Any]:
    """Return an index with forms; what it held before stays where it was."""
    names, shapes = _Table(index["names"]), _Table(index["shapes"])
    groups = _Table([[tuple(row) for row in group] for group in index["rows"]])
    releases = list(index["releases"])
    items = [
        {
            "builder": form.builder,
            "arguments": dict(form.arguments),
            "rows": groups.at(
                [(names.at(n), shapes.at(list(s)), d) for n, d, s in sorted(form.rows)]
            ),
            "steps": [[*step] for step in form.steps],
            "releases": [releases.index(form.first), releases.index(form.last)],
        }
        for form in found
    ]
    rows = [[[*row] for row in group] for group in groups.items]
    return {**index, "names": names.items, "shapes": shapes.items, "rows": rows, "forms": items}


class _Table:
    """A list whose members are referred to by position."""

    def __init__(self, items: Iterable[Any]) -> None:
        self.items = list(items)
        self._at = {repr(item): at for at, item in enumerate(self.items)}

    def at(self, item: Any) -> int:
        """Return where an item stands, put last if it is new."""
        at = self._at.setdefault(repr(item), len(self.items))
        if at == len(self.items):
            self.items.append(item)
        return at
