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
    from collections.abc import Mapping
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


def legacy_owner(model: Layer, group: str, weight: str, location: object) -> Owner:
    """Return the owner of a weight of an `.h5` file.

    Args:
        model: the configuration.
        group: the layer of the model that the file puts it under.
        weight: its name in that group, such as "conv1/kernel:0".
        location: what to name in an error.

    Raises:
        FormatError: the configuration has no such layer, or the name says too little.
    """
    search = _Names(f"{location}: {group}/{weight}")
    layer = search.only([p for p in model.parts.values() if p.name == group], group, model)
    path = tuple(plain(weight).split("/"))
    # The group tells the layer: scopes of the program that built it say no more.
    owner = search.owner(layer, path if layer.parts else path[-1:])
    name = _KERAS_1.get(owner.variable, owner.variable)
    kind = search.leaf(owner).kind
    return owner._replace(variable=_RENAMED.get((kind, name), name))


def stored_owner(model: Layer, path: Path, names: Mapping[Path, str], location: object) -> Owner:
    """Return the owner of a weight of a `.weights.h5` file.

    Args:
        model: the configuration.
        path: where it stands, such as ("layers", "conv2d", "vars", "0").
        names: layers' own names by where they stand, as far as the file has them.
        location: what to name in an error.

    Raises:
        FormatError: the configuration has no such layer, or its class no such variable.
    """
    search = _Names(f"{location}: {'/'.join(path)}")
    layer, rest = model, path[:-2]
    while rest and (layer.is_model or layer.kind == "TimeDistributed"):
        layer, rest = search.stored_part(layer, path, rest, names)
    owner, leaf, place = layer, layer, rest
    while rest:
        leaf, rest = search.stored_part(leaf, path, rest, names)
    variables = variable_names(leaf.kind, leaf.config)
    number = int(path[-1]) if re.fullmatch("[0-9]{1,6}", path[-1]) else len(variables)
    if number >= len(variables):
        search.refuse(f"no rule is known for variable {path[-1]} of {leaf}")
    return Owner(owner, tuple(part.lstrip("_") for part in place), variables[number])


class _Names:
    """The search for the owner of one weight.

    Attributes:
        where: the weight, for messages.
    """

    def __init__(self, where: str) -> None:
        self.where = where

    def owner(self, layer: Layer, path: Path) -> Owner:
        """Return the owner of the weight that stands at `path` under a layer."""
        path = self._without_scope(layer, path)
        if layer.kind == "TimeDistributed":
            return self.owner(layer.parts["layer",], path)
        if layer.is_model:
            found = [p for p in layer.parts.values() if p.name == path[0] and len(path) > 1]
            if not found:  # Keras 2 leaves out the names of the models between
                inner = (part for part in layer.walk() if not part.is_model and part is not layer)
                found = [p for p in inner if _is_scope(p.name, path)]
            return self.owner(self.only(found, path[0], layer), path)
        return self._in_layer(layer, path)

    def leaf(self, owner: Owner) -> Layer:
        """Return the innermost layer that has the variable."""
        layer, place = owner.layer, owner.place
        while place:
            step = next(at for at in layer.parts if place[: len(at)] == at)
            layer, place = layer.parts[step], place[len(step) :]
        return layer

    def _in_layer(self, layer: Layer, path: Path) -> Owner:
        """Return the owner of a weight of a layer that is no model."""
        place: Path = ()
        inner = layer
        while inner.parts:
            if len(inner.parts) == 1 and ("cell",) in inner.parts:
                step: Path = ("cell",)
                is_named = len(path) > 1 and not (
                    inner.parts[step].parts and path[0] != inner.parts[step].name
                )
                path = path[1:] if is_named else path
            else:
                found = [at for at, part in inner.parts.items() if _is_scope(part.name, path)]
                if len(found) != 1:
                    self.refuse(f"{inner} has no part, or several, called {path[0]}")
                step, path = found[0], path[1:]
            inner, place = inner.parts[step], (*place, *step)
        if len(path) != 1:
            self.refuse(f"no rule is known for {'/'.join(path)} of {layer}")
        return Owner(layer, place, path[-1])

    @staticmethod
    def _without_scope(layer: Layer, path: Path) -> Path:
        """Return a path without the layer's own name at its head, where that stands there.

        TensorFlow 1 numbers it (`conv1_3/kernel`), Keras 1 joins it to the variable (`conv1_W`).
        """
        if len(path) > 1 and re.fullmatch(re.escape(layer.name) + r"(_\d+)?", path[0]):
            return path[1:]
        if len(path) == 1 and path[0].startswith(f"{layer.name}_"):
            return (path[0][len(layer.name) + 1 :],)
        return path

    def stored_part(
        self, layer: Layer, path: Path, rest: Path, names: Mapping[Path, str]
    ) -> tuple[Layer, Path]:
        """Return the part of a layer where the rest of a path begins, and what is left of it."""
        head = "layers" if rest[0] == _LEGACY_LAYERS else rest[0]
        if layer.is_model and head == "layers" and len(rest) > 1:
            here = path[: len(path) - len(rest)]
            if (name := names.get(here)) is not None:
                found = [part for part in layer.parts.values() if part.name == name]
                return self.only(found, name, layer), rest[2:]
        for step in ((head,), (head.lstrip("_"),), (head, *rest[1:2])):
            if step in layer.parts:
                return layer.parts[step], rest[len(step) :]
        return self.refuse(f"no rule is known for {'/'.join(rest)} of {layer}")

    def only(self, found: list[Layer], name: str, inside: Layer) -> Layer:
        """Return the one layer that was found."""
        if len(found) != 1:
            self.refuse(f"{len(found) or 'no'} layers of {inside} are called {name}")
        return found[0]

    def refuse(self, reason: str) -> NoReturn:
        """Raise the error for a weight whose owner cannot be told."""
        raise error(Code.FORMAT_LAYOUT, self.where, reason, REMEDY)


def _is_scope(name: str, path: Path) -> bool:
    """Return whether a path begins with a layer's name."""
    return path[0] == name if len(path) > 1 else path[0].startswith(f"{name}_")
