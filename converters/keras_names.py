"""Which layer of a configuration each weight of a file belongs to, and which variable it is.

Law: by name, never by order. In `.h5` files a weight is called by its layer and variable
(`lstm/lstm_cell/kernel`). In `.weights.h5` files layers stand under their class
(`layers/conv2d_1`), with their own name beside them in newer releases, and variables under numbers
(`vars/0`), whose meaning the class defines. What cannot be told so is an error.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from persistlib.converters.keras_variables import variable_names
from persistlib.errors import Code, error

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import NoReturn

    from persistlib.converters.keras_config import Layer

Path = tuple[str, ...]
VARIABLES = "vars"
# What Keras 1 called variables, in today's words; an embedding's only one has another name.
_KERAS_1 = {
    "W": "kernel",
    "U": "recurrent_kernel",
    "b": "bias",
    "running_mean": "moving_mean",
    "running_std": "moving_variance",
}
# What a class calls a variable in `.h5` files of some release, and what it calls it today.
_RENAMED = {
    ("Embedding", "kernel"): "embeddings",
    ("DepthwiseConv1D", "depthwise_kernel"): "kernel",
    ("DepthwiseConv2D", "depthwise_kernel"): "kernel",
}
_LEGACY_LAYERS = "_layer_checkpoint_dependencies"
REMEDY = "convert without layout: weights keep the names they have in the file"


class Owner(NamedTuple):
    """Where a weight belongs.

    Attributes:
        layer: the layer whose rule it falls under.
        place: where in that layer, such as ("forward_layer", "cell"); empty in most.
        variable: what the layer calls it, such as "kernel".
    """

    layer: Layer
    place: Path
    variable: str


def plain(weight: str) -> str:
    """Return a weight's name without TensorFlow's output number: "conv1/kernel:0" without ":0"."""
    return weight.removesuffix(":0")


class Owners:
    """The weights' owners in one configuration; layers are looked up, never searched for.

    Attributes:
        model: the configuration.
    """

    def __init__(self, model: Layer, location: object) -> None:
        self.model = model
        self._location, self._where = location, ""
        self._parts: dict[int, dict[str, list[Layer]]] = {}
        self._inner: dict[int, dict[str, list[Layer]]] = {}

    def legacy(self, group: str, weight: str) -> Owner:
        """Return the owner of a weight of an `.h5` file.

        Args:
            group: the layer of the model that the file puts it under.
            weight: its name in that group, such as "conv1/kernel:0".

        Raises:
            FormatError: the configuration has no such layer, or the name says too little.
        """
        self._where = f"{self._location}: {group}/{weight}"
        layer = self._only(self._named(self.model).get(group, []), group, self.model)
        path = tuple(plain(weight).split("/"))
        path = self._without_scope(layer, path)
        # The group tells the layer: scopes of the program that built it say no more.
        owner = self._owner(layer, path if layer.parts else path[-1:])
        name = _KERAS_1.get(owner.variable, owner.variable)
        kind = _leaf(owner).kind
        return owner._replace(variable=_RENAMED.get((kind, name), name))

    def stored(self, path: Path, names: Mapping[Path, str]) -> Owner:
        """Return the owner of a weight of a `.weights.h5` file.

        Args:
            path: where it stands, such as ("layers", "conv2d", "vars", "0").
            names: layers' own names by where they stand, as far as the file has them.

        Raises:
            FormatError: the configuration has no such layer, or its class no such variable.
        """
        self._where = f"{self._location}: {'/'.join(path)}"
        layer, rest = self.model, path[:-2]
        while rest and (layer.is_model or layer.kind == "TimeDistributed"):
            layer, rest = self._stored_part(layer, path, rest, names)
        owner, leaf, place = layer, layer, rest
        while rest:
            leaf, rest = self._stored_part(leaf, path, rest, names)
        variables = variable_names(leaf.kind, leaf.config)
        number = int(path[-1]) if re.fullmatch("[0-9]{1,6}", path[-1]) else len(variables)
        if number >= len(variables):
            self._refuse(f"no rule is known for variable {path[-1]} of {leaf}")
        return Owner(owner, tuple(part.lstrip("_") for part in place), variables[number])

    def _owner(self, layer: Layer, path: Path) -> Owner:
        """Return the owner of a weight that stands at `path` under a layer."""
        if layer.kind == "TimeDistributed":
            inner = layer.parts["layer",]
        elif layer.is_model:
            # Keras 2 leaves out the names of the models between.
            name = "/".join(path[:1])
            found = self._named(layer).get(name, []) or self._below(layer).get(name, [])
            inner = self._only(found if len(path) > 1 else [], name, layer)
        else:
            return self._in_layer(layer, path)
        return self._owner(inner, self._without_scope(inner, path))

    def _in_layer(self, layer: Layer, path: Path) -> Owner:
        """Return the owner of a weight of a layer that is no model."""
        place: Path = ()
        inner = layer
        while inner.parts:
            step, path = self._step(inner, path)
            inner, place = inner.parts[step], (*place, *step)
        if len(path) != 1:
            self._refuse(f"no rule is known for {'/'.join(path)} of {layer}")
        return Owner(layer, place, path[-1])

    def _step(self, layer: Layer, path: Path) -> tuple[Path, Path]:
        """Return the place of the part that a path leads into, and what is left of the path."""
        cell = layer.parts.get(("cell",))
        if cell is not None:
            # A cell's name is its own affair, and older releases leave it out.
            is_said = len(path) > 1 and (not cell.parts or path[0] == cell.name)
            return ("cell",), path[1:] if is_said else path
        found = [at for at, part in layer.parts.items() if part.name == path[0]]
        if len(found) != 1 or len(path) == 1:
            self._refuse(f"{layer} has no part, or several, called {path[0]}")
        return found[0], path[1:]

    def _without_scope(self, layer: Layer, path: Path) -> Path:
        """Return a path without the layer's own name at its head, where that stands there.

        TensorFlow 1 numbers it (`conv1_3/kernel`), Keras 1 joins it to the variable (`conv1_W`),
        and a Sequential of Keras 3 puts its own before it (`sequential/conv1/kernel`).
        """
        own = layer.name.count("/") + 1
        if path[0] == self.model.name and "/".join(path[1 : own + 1]) == layer.name:
            path = path[1:]
        head = "/".join(path[:own])
        if len(path) > own and re.fullmatch(re.escape(layer.name) + r"(_\d+)?", head):
            return path[own:]
        if len(path) == 1 and head.startswith(f"{layer.name}_"):
            return (head.removeprefix(f"{layer.name}_"),)
        return path

    def _stored_part(
        self, layer: Layer, path: Path, rest: Path, names: Mapping[Path, str]
    ) -> tuple[Layer, Path]:
        """Return the part of a layer where the rest of a path begins, and what is left of it."""
        head = "layers" if rest[0] == _LEGACY_LAYERS else rest[0]
        if layer.is_model and head == "layers" and len(rest) > 1:
            here = path[: len(path) - len(rest)]
            if (name := names.get(here)) is not None:
                return self._only(self._named(layer).get(name, []), name, layer), rest[2:]
        for step in ((head,), (head.lstrip("_"),), (head, *rest[1:2])):
            if step in layer.parts:
                return layer.parts[step], rest[len(step) :]
        return self._refuse(f"no rule is known for {'/'.join(rest)} of {layer}")

    def _named(self, layer: Layer) -> Mapping[str, list[Layer]]:
        """Return the parts of a layer by name."""
        return _by_name(layer, self._parts, layer.parts.values())

    def _below(self, layer: Layer) -> Mapping[str, list[Layer]]:
        """Return the layers in a model and in the models in it, by name."""
        return _by_name(layer, self._inner, _flat(layer))

    def _only(self, found: list[Layer], name: str, inside: Layer) -> Layer:
        if len(found) != 1:
            self._refuse(f"{len(found) or 'no'} layers of {inside} are called {name}")
        return found[0]

    def _refuse(self, reason: str) -> NoReturn:
        raise error(Code.FORMAT_LAYOUT, self._where, reason, REMEDY)


def _by_name(
    layer: Layer, known: dict[int, dict[str, list[Layer]]], parts: Iterable[Layer]
) -> Mapping[str, list[Layer]]:
    if id(layer) not in known:
        index: dict[str, list[Layer]] = {}
        for part in parts:
            index.setdefault(part.name, []).append(part)
        known[id(layer)] = index
    return known[id(layer)]


def _flat(model: Layer) -> Iterator[Layer]:
    """Yield the layers of a model, and in place of models in it their layers."""
    for part in model.parts.values():
        if part.is_model:
            yield from _flat(part)
        else:
            yield part


def _leaf(owner: Owner) -> Layer:
    """Return the innermost layer that has the variable."""
    layer, place = owner.layer, owner.place
    while place:
        step = next(at for at in layer.parts if place[: len(at)] == at)
        layer, place = layer.parts[step], place[len(step) :]
    return layer
