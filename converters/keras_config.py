"""A Keras model's configuration as inert data: which layer has which class, and what lies in it.

Law: nothing here imports, builds or looks up what a configuration names. A class is a text; only
texts that Keras itself gives its classes are ever compared with a rule.

Keras 1, 2 and 3 write the same tree: a model has `layers`, a wrapper its `layer`, a recurrent layer
a `cell`. What lies in a layer is found by two names: by its own (`name`), which weights in `.h5`
files carry, and by its place (`layers/conv2d_1`, `cell`), which `.weights.h5` files carry.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from persistlib.canonical import DEPTH_LIMIT, parse
from persistlib.errors import Code, error

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import NoReturn

# Bytes: the largest of Keras' own zoo needs about 1 MB.
CONFIG_LIMIT = 8 << 20
# Layers of a model and what lies in them; more are not well meant.
_LAYERS = 50_000
_REMEDY = "save the model again, or convert without layout"
# Where Keras' own classes come from; any other module's class is called by module and name.
_KERAS = {"keras", "tf_keras", "tensorflow"}
# What earlier releases called the classes of today.
_OLDER = {
    "AtrousConvolution1D": "Conv1D",
    "AtrousConvolution2D": "Conv2D",
    "BatchNormalizationV1": "BatchNormalization",
    "BatchNormalizationV2": "BatchNormalization",
    "Convolution1D": "Conv1D",
    "Convolution2D": "Conv2D",
    "Convolution3D": "Conv3D",
    "Convolution2DTranspose": "Conv2DTranspose",
    "Convolution3DTranspose": "Conv3DTranspose",
    "GRUV2": "GRU",
    "LSTMV2": "LSTM",
    "SeparableConvolution1D": "SeparableConv1D",
    "SeparableConvolution2D": "SeparableConv2D",
    "SyncBatchNormalization": "BatchNormalization",
}
_INNER = {"RNN": "cell", "TimeDistributed": "layer"}
_CELLS = {"GRU": "GRUCell", "LSTM": "LSTMCell", "SimpleRNN": "SimpleRNNCell"}
_ATTENTION = {
    "query_dense": "query",
    "key_dense": "key",
    "value_dense": "value",
    "output_dense": "attention_output",
}
_DIRECTIONS = {"forward_layer": "forward_", "backward_layer": "backward_"}
_Place = tuple[str, ...]


@dataclass(frozen=True)
class Layer:
    """A layer as its configuration says it.

    Attributes:
        name: its own name; that of the part where Keras gives it none.
        kind: Keras' name of its class, in today's spelling; another's class has its module first.
        config: its arguments.
        path: names of the models around it, and its own; what lies in a wrapper has the wrapper's.
        parts: what lies in it, by place.
        inputs: names of the layers that feed it, where the model says so.
    """

    name: str
    kind: str
    config: Mapping[str, Any]
    path: _Place
    parts: Mapping[_Place, Layer] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()

    @property
    def is_model(self) -> bool:
        """Whether it is made of layers that have names of their own."""
        return any(place[0] == "layers" for place in self.parts)

    def walk(self) -> Iterator[Layer]:
        """Yield it and all that lies in it."""
        yield self
        for part in self.parts.values():
            yield from part.walk()

    def __str__(self) -> str:
        return f"{'.'.join(self.path) or self.name} ({self.kind})"


def parse_config(data: bytes, location: object) -> Layer:
    """Return the model that a configuration's JSON describes.

    Raises:
        FormatError: it is no strict JSON, larger or deeper than a well-meant one, or no model's.
    """
    value = parse(data, location, code=Code.FORMAT_HEADER, limit=CONFIG_LIMIT)
    model = _Reading(location).layer(value, (), "model", ())
    if not model.is_model:
        raise error(
            Code.FORMAT_HEADER,
            f"{location}: {model.name}",
            f"the class {model.kind} does not say which layers it is made of",
            "convert without layout: weights are read by path",
        )
    return model


def snake_case(name: str) -> str:
    """Return a class name as Keras spells it in paths: "Conv2DTranspose" as "conv2d_transpose"."""
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


class _Reading:
    """One configuration being read."""

    def __init__(self, location: object) -> None:
        self._location = location
        self._count = 0

    def layer(self, value: Any, above: _Place, default: str, at: _Place | None = None) -> Layer:
        """Return the layer that a JSON value describes.

        Args:
            value: an object with `class_name` and `config`.
            above: names of the models around it.
            default: its name where it has none.
            at: its path where that is not `above` and its name.
        """
        self._count += 1
        if self._count > _LAYERS or len(above) > DEPTH_LIMIT:
            raise error(Code.FORMAT_LIMIT, self._location, f"more than {_LAYERS} layers", _REMEDY)
        if not isinstance(value, dict) or not isinstance(value.get("class_name"), str):
            self._refuse(default, "a layer without class_name")
        config = value.get("config")
        if isinstance(config, list):  # a Sequential model of Keras before 2.2.3
            config = {"layers": config}
        if not isinstance(config, dict):
            self._refuse(default, "a layer without config")
        name = value.get("name", config.get("name", default))
        if not isinstance(name, str) or not name:
            self._refuse(default, "a layer's name is no text")
        path = (*above, name) if at is None else at
        kind = _kind(value)
        parts = self._parts(kind, config, path)
        return Layer(name, kind, config, path, parts, _inputs(value.get("inbound_nodes")))

    def _parts(self, kind: str, config: Mapping[str, Any], path: _Place) -> dict[_Place, Layer]:
        """Return what lies in a layer, by place."""
        place = "cells" if kind == "StackedRNNCells" else "layers"
        if isinstance(inner := config.get(place), list):
            return self._named((place,), inner, path)
        if kind == "Bidirectional":
            return self._directions(config, path)
        if kind in _INNER:
            place = _INNER[kind]
            return {(place,): self.layer(config.get(place), path, place, path)}
        if kind in _CELLS:
            return {("cell",): Layer("cell", _CELLS[kind], config, path)}
        if kind != "MultiHeadAttention":
            return {}
        dense = {"bias_axes": "h" if config.get("use_bias", True) else None}
        return {(at,): Layer(name, "EinsumDense", dense, path) for at, name in _ATTENTION.items()}

    def _named(self, place: _Place, values: list[Any], path: _Place) -> dict[_Place, Layer]:
        """Return the members of a list by place: class name, and a number from the second on."""
        parts: dict[_Place, Layer] = {}
        used: dict[str, int] = {}
        for value in values:
            part = self.layer(value, path, f"layer {len(parts)}")
            if ".ops." in str(value.get("module")):  # an operation, which is no layer
                continue
            shown = snake_case(part.kind.rpartition(">")[2])
            number = used[shown] = used.get(shown, -1) + 1
            last = f"{shown}_{number}" if number else shown
            parts.update({(*place, last): part})
        return parts

    def _directions(self, config: Mapping[str, Any], path: _Place) -> dict[_Place, Layer]:
        forward = config.get("layer")
        values = {"forward_layer": forward, "backward_layer": config.get("backward_layer", forward)}
        parts: dict[_Place, Layer] = {}
        for place, value in values.items():
            part = self.layer(value, path, "layer", path)
            # Keras 2 and before keep the plain name and prefix what it makes of it.
            prefix = _DIRECTIONS[place]
            name = part.name if part.name.startswith(prefix) else prefix + part.name
            parts[place,] = Layer(name, part.kind, part.config, path, part.parts)
        return parts

    def _refuse(self, where: str, reason: str) -> NoReturn:
        raise error(Code.FORMAT_HEADER, f"{self._location}: {where}", reason, _REMEDY)


def _kind(value: Mapping[str, Any]) -> str:
    """Return what a layer's class is called, with its module or package unless it is Keras' own."""
    name: str = value["class_name"]
    module, registered = value.get("module"), value.get("registered_name")
    if isinstance(module, str) and module.split(".", 1)[0] not in _KERAS:
        return f"{module}>{name}"
    if isinstance(registered, str) and ">" in registered:
        return registered
    return _OLDER.get(name, name)


def _inputs(value: Any) -> tuple[str, ...]:
    """Return the names in a layer's `inbound_nodes`: each heads a list, two numbers after it."""
    found: dict[str, None] = {}
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            waiting.extend(item.values())
        elif isinstance(item, list):
            if len(item) >= 3 and isinstance(item[0], str) and type(item[1]) is int:
                found[item[0]] = None
            else:
                waiting.extend(item)
    return tuple(found)
