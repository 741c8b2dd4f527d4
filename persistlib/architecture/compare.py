"""Whether a rebuilt module is the live one in all but values; every difference by place.

Law: `differences(model, copy) == []` means that both have the same paths, classes, sharing, order
of children, tensor rows (up to a cast of the whole module) and configuration.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from persistlib.architecture.parametrized import is_parametrized, plain_class
from persistlib.architecture.structure import (
    children,
    module_class_name,
    outlines,
    paths,
    places,
    rows,
)
from persistlib.architecture.values import kind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import nn

_NOTHING = "nothing"


class Difference(NamedTuple):
    """Something that the live module has otherwise.

    Attributes:
        path: of the module; empty for the root.
        attribute: the plain attribute, tensor or child; empty for the module itself.
        live: what the live module has.
        rebuilt: what the rebuilt one has.
    """

    path: str
    attribute: str
    live: str
    rebuilt: str

    @property
    def location(self) -> str:
        """Module and attribute as one dotted name."""
        return ".".join(part for part in (self.path, self.attribute) if part) or "the module itself"

    def __str__(self) -> str:
        return f"{self.live} here, {self.rebuilt} when rebuilt"


def differences(live: nn.Module, rebuilt: nn.Module) -> list[Difference]:
    """Return every difference between two module trees, in the order of the live paths."""
    return list(_differences(live, rebuilt))


def _differences(live: nn.Module, rebuilt: nn.Module) -> Iterator[Difference]:
    ours, theirs = dict(paths(live)), dict(paths(rebuilt))
    known, rebuilt_known = places(live), places(rebuilt)
    for path in (*ours, *(path for path in theirs if path not in ours)):
        one, other = ours.get(path), theirs.get(path)
        if one is None or other is None:
            yield Difference(path, "", _class(one), _class(other))
            continue
        yield from own_differences(path, (one, known), (other, rebuilt_known))


def own_differences(
    path: str,
    live: tuple[nn.Module, Mapping[int, str]],
    rebuilt: tuple[nn.Module, Mapping[int, str]],
) -> Iterator[Difference]:
    """Yield the differences of two modules, their children's insides left aside.

    Args:
        path: where both stand.
        live: the module, and the places in its tree.
        rebuilt: the same of the other.
    """
    (one, known), (other, rebuilt_known) = live, rebuilt
    if plain_class(one) is not plain_class(other) or is_parametrized(one) != is_parametrized(other):
        same_name = _class(one) == _class(other)
        suffix = " of another definition" if same_name else ""
        yield Difference(path, "", _class(one) + suffix, _class(other))
        return
    if known[id(one)] != rebuilt_known[id(other)]:
        first, second = known[id(one)], rebuilt_known[id(other)]
        yield Difference(path, "", f"shared with {first!r}", f"shared with {second!r}")
    names, others = list(children(one)), list(children(other))
    if names != others:
        yield Difference(path, "children", ", ".join(names), ", ".join(others))
    yield from _rows(path, one, other)
    yield from _attributes(path, live, rebuilt)


def _rows(path: str, one: nn.Module, other: nn.Module) -> Iterator[Difference]:
    ours = {row.name: row for row in rows(one)}
    theirs = {row.name: row for row in rows(other)}
    for name in sorted(ours.keys() | theirs.keys()):
        texts = [
            f"{row.role} {kind(row.tensor)} {list(row.tensor.shape)}" if row else _NOTHING
            for row in (ours.get(name), theirs.get(name))
        ]
        if texts[0] != texts[1]:
            yield Difference(path, name, *texts)


def _attributes(
    path: str,
    live: tuple[nn.Module, Mapping[int, str]],
    rebuilt: tuple[nn.Module, Mapping[int, str]],
) -> Iterator[Difference]:
    ours, theirs = outlines(*live), outlines(*rebuilt)
    for name in sorted(ours.keys() | theirs.keys()):
        one, other = ours.get(name), theirs.get(name)
        if one is None or other is None or not one.same(other):
            texts = [str(found.data) if found else _NOTHING for found in (one, other)]
            if texts[0] == texts[1]:
                texts = ["a function or tensor", "another of that name"]
            yield Difference(path, name, *texts)


def _class(module: nn.Module | None) -> str:
    return _NOTHING if module is None else module_class_name(module)
