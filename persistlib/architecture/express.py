"""The difference between a live module and a rebuilt one, said as edits.

Law: `apply(rebuilt, express(live, rebuilt))` has the structure of `live`, or `InexpressibleError`
names the place where it cannot. (Whoever uses it rebuilds and compares: what is inferred here is
never taken on trust.)

Fewest edits win: a change inside a child is said there, unless replacing the child says it shorter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from persistlib.architecture.arguments import NotRecoverableError, recover, signature
from persistlib.architecture.encoding import NotPlainError, encode, text
from persistlib.architecture.parametrized import (
    Parametrization,
    original_shape,
    parametrizations,
    plain_class,
    tensors_of,
)
from persistlib.architecture.skeleton import rebuild
from persistlib.architecture.structure import attributes, children, outlines, places, rows
from persistlib.architecture.trusted import builder_name
from persistlib.architecture.values import kind
from persistlib.errors import ArchitectureError
from persistlib.manifest.schema import Edit

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from torch import nn

_PARAMETRIZATIONS = "parametrizations"


class InexpressibleError(ValueError):
    """A difference that no edit says.

    Attributes:
        path: of the module.
        attribute: the plain attribute or tensor; empty for the module itself.
    """

    def __init__(self, path: str, attribute: str, reason: str) -> None:
        super().__init__(reason)
        self.path = path
        self.attribute = attribute

    @property
    def location(self) -> str:
        """Module and attribute as one dotted name."""
        return ".".join(part for part in (self.path, self.attribute) if part) or "the module itself"


@dataclass(frozen=True)
class _Pair:
    """A live module and the rebuilt one that stands for it.

    Attributes:
        path: where both stand in the live tree.
        live: the live module.
        rebuilt: the rebuilt module.
        known: places in the live tree.
        rebuilt_known: places in the rebuilt tree, said in paths of the live tree.
        trust: what may be imported.
    """

    path: str
    live: nn.Module
    rebuilt: nn.Module
    known: Mapping[int, str]
    rebuilt_known: Mapping[int, str]
    trust: Collection[str]

    def at(self, name: str) -> str:
        """Return the path of a child."""
        return f"{self.path}.{name}" if self.path else name


def express(live: nn.Module, rebuilt: nn.Module, trust: Collection[str]) -> tuple[Edit, ...]:
    """Return the edits that make `rebuilt` into the structure of `live`.

    Raises:
        InexpressibleError: a difference that no edit says.
    """
    if plain_class(live) is not plain_class(rebuilt):
        reason = f"a {plain_class(live).__qualname__}, not a {plain_class(rebuilt).__qualname__}"
        raise InexpressibleError("", "", reason)
    pair = _Pair("", live, rebuilt, places(live), places(rebuilt), trust)
    return tuple(_inside(pair))


def infer(module: nn.Module) -> tuple[str, dict[str, Any]]:
    """Return the builder and the encoded arguments that should build a module's class.

    Arguments at their defaults are left out.

    Raises:
        InexpressibleError: the class has no importable name, or an argument leaves no trace.
    """
    cls = plain_class(module)
    name = builder_name(cls)
    if name is None:
        raise InexpressibleError("", "", f"the class {cls.__qualname__} cannot be imported by name")
    try:
        recovered = recover(module)
    except NotRecoverableError as fault:
        raise InexpressibleError("", "", str(fault)) from fault
    defaults = {key: parameter.default for key, parameter in signature(cls).items()}
    arguments: dict[str, Any] = {}
    for key, value in recovered.items():
        try:
            arguments[key] = encode(value)
        except NotPlainError as fault:
            raise InexpressibleError("", key, str(fault)) from fault
        if key in defaults and _is_default(defaults[key], arguments[key]):
            del arguments[key]
    return name, arguments


def _is_default(default: Any, encoded: Any) -> bool:
    try:
        return text(encode(default)) == text(encoded)
    except NotPlainError:
        return False


def _replacement(op: str, pair: _Pair, index: int | None = None) -> list[Edit]:
    """Return edits that put a new module in a child's place (`pair.rebuilt` is disregarded)."""
    try:
        builder, arguments = infer(pair.live)
        built = rebuild(builder, arguments, trust=pair.trust)
    except InexpressibleError as fault:
        raise InexpressibleError(pair.path, fault.attribute, str(fault)) from fault
    except ArchitectureError as fault:
        raise InexpressibleError(pair.path, "", f"{fault.location}: {fault.reason}") from fault
    if plain_class(built) is not plain_class(pair.live):
        raise InexpressibleError(pair.path, "", f"{builder} now is another class")
    inner = {key: f"{pair.path}.{at}".strip(".") for key, at in places(built).items()}
    first = Edit(
        op=op,  # type: ignore[arg-type]  # one of the schema's operations
        path=pair.path,
        builder=builder,
        arguments=arguments,
        index=index,
    )
    rebuilt = _Pair(pair.path, pair.live, built, pair.known, inner, pair.trust)
    return [first, *_inside(rebuilt)]


def _changed(pair: _Pair) -> list[Edit]:
    """Return edits for a child that stands in both trees."""
    if plain_class(pair.live) is not plain_class(pair.rebuilt):
        return _replacement("replace", pair)
    try:
        inside = _inside(pair)
    except InexpressibleError as fault:
        try:
            return _replacement("replace", pair)
        except InexpressibleError:
            raise fault from None
    # A replacement needs an edit for itself and one for each child of a container.
    if len(inside) > 1 + len(children(pair.live)):
        try:
            return min(inside, _replacement("replace", pair), key=len)
        except InexpressibleError:
            pass
    return inside


def _inside(pair: _Pair) -> list[Edit]:
    """Return edits for all that differs below and in a module of the same class."""
    added = _added_parametrizations(pair)
    _require_rows(pair, {what.tensor for what in added})
    edits = [*_attribute_edits(pair), *_children_edits(pair)]
    for what in added:
        try:
            arguments = {name: encode(value) for name, value in what.arguments.items()}
        except NotPlainError as fault:
            raise InexpressibleError(pair.path, what.tensor, str(fault)) from fault
        edits.append(
            Edit(
                op="parametrize",
                path=pair.path,
                attribute=what.tensor,
                builder=what.builder,
                arguments=arguments,
            )
        )
    return edits


def _added_parametrizations(pair: _Pair) -> list[Parametrization]:
    try:
        ours, theirs = parametrizations(pair.live), parametrizations(pair.rebuilt)
    except NotRecoverableError as fault:
        raise InexpressibleError(pair.path, _PARAMETRIZATIONS, str(fault)) from fault
    if ours[: len(theirs)] != theirs:
        raise InexpressibleError(pair.path, _PARAMETRIZATIONS, "other parametrizations stand here")
    return ours[len(theirs) :]


def _require_rows(pair: _Pair, parametrized: set[str]) -> None:
    """Raise unless both modules own tensors of the same names, roles, kinds and shapes."""
    hidden = {name for tensor in parametrized for name in tensors_of(tensor)}
    ours = {row.name: row for row in rows(pair.live) if row.name not in hidden}
    theirs = {row.name: row for row in rows(pair.rebuilt) if row.name not in hidden}
    emptied = {name for name, value in attributes(pair.live).items() if value is None}
    for name in ours.keys() | (theirs.keys() - emptied):
        one, other = ours.get(name), theirs.get(name)
        if (
            one is None
            or other is None
            or (one.role, kind(one.tensor), one.tensor.shape)
            != (other.role, kind(other.tensor), other.tensor.shape)
        ):
            raise InexpressibleError(pair.path, name, "a tensor that the recipe does not give")
    for tensor in parametrized:
        original = getattr(pair.rebuilt, tensor, None)
        if not isinstance(original, torch.Tensor) or original.shape != original_shape(
            pair.live, tensor
        ):
            raise InexpressibleError(pair.path, tensor, "a parametrized tensor of another shape")


def _attribute_edits(pair: _Pair) -> list[Edit]:
    live, rebuilt = attributes(pair.live), attributes(pair.rebuilt)
    ours = outlines(pair.live, pair.known)
    theirs = outlines(pair.rebuilt, pair.rebuilt_known)
    edits: list[Edit] = []
    for name in sorted(ours.keys() | theirs.keys()):
        one, other = ours.get(name), theirs.get(name)
        if one is not None and other is not None and one.same(other):
            continue
        if one is None:
            if name not in children(pair.live) and name in rebuilt:
                edits += _taken_away(pair, name)
            continue
        if name not in live:
            raise InexpressibleError(pair.path, name, "differ, and no edit changes that")
        try:
            value = encode(live[name])
        except NotPlainError as fault:
            raise InexpressibleError(pair.path, name, str(fault)) from fault
        edits.append(Edit(op="set", path=pair.path, attribute=name, value=value))
    return edits


def _taken_away(pair: _Pair, name: str) -> list[Edit]:
    if name in vars(pair.rebuilt):
        return [Edit(op="remove", path=pair.path, attribute=name)]
    if name in pair.rebuilt._modules:  # noqa: SLF001 - a child that is None
        return [Edit(op="remove", path=pair.at(name))]
    raise InexpressibleError(pair.path, name, "a tensor that the recipe does not give")


def _children_edits(pair: _Pair) -> list[Edit]:
    ours, theirs = children(pair.live), children(pair.rebuilt)
    if _PARAMETRIZATIONS not in theirs:
        ours.pop(_PARAMETRIZATIONS, None)
    emptied = attributes(pair.live)
    order = [name for name in theirs if name in ours]
    gone = [name for name in theirs if name not in ours and name not in emptied]
    edits = [Edit(op="remove", path=pair.at(name)) for name in gone]
    for index, name in enumerate(ours):
        if name not in order:
            order.insert(index, name)
        last = index == len(order) - 1
        edits += _child_edits(pair, name, None if last else index)
    if order != list(ours):
        raise InexpressibleError(pair.path, "", "its children stand in another order")
    return edits


def _child_edits(pair: _Pair, name: str, index: int | None) -> list[Edit]:
    path = pair.at(name)
    live = children(pair.live)[name]
    rebuilt = children(pair.rebuilt).get(name)
    place = pair.known[id(live)]
    rebuilt_place = path if rebuilt is None else pair.rebuilt_known[id(rebuilt)]
    if place != path:
        if place == rebuilt_place:
            return []
        return [Edit(op="share", path=path, value=place)]
    child = _Pair(path, live, rebuilt or live, pair.known, pair.rebuilt_known, pair.trust)
    if rebuilt is None:
        return _replacement("insert", child, index)
    if rebuilt_place != path:
        return _replacement("replace", child)
    return _changed(child)
