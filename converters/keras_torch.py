"""A Keras file's weights as the state of torch's layers: owners found, rules applied, names joined.

Law: every weight of the file goes into a tensor of exactly one layer, or there is an error that
names it; the tensors stand in the order of the configuration's layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from persistlib.converters import keras_layout, keras_recurrent
from persistlib.converters.keras_config import Layer, parse_config
from persistlib.converters.keras_details import LEGACY
from persistlib.converters.keras_flatten import flattened
from persistlib.converters.keras_inference import inferred
from persistlib.converters.keras_layout import Made, Weights
from persistlib.converters.keras_names import Owner, Owners, Path
from persistlib.errors import Code, error

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from persistlib.checkpoint import Entry
    from persistlib.converters.keras_details import Details

_Found = dict[tuple[Path, str], "Entry"]
# Keras on Theano computes true convolutions: its kernels are turned around in space.
_TURNED = {"theano"}
_RULES = {**keras_layout.RULES, **keras_recurrent.RULES}


def torch_tensors(
    details: Details, entries: tuple[Entry, ...], location: str
) -> tuple[Mapping[str, Made], tuple[str, ...]]:
    """Return the tensors of torch's layers by name, and what should be known of them.

    Args:
        details: what the file says about its weights.
        entries: the weights.
        location: the file, for messages.

    Raises:
        FormatError: the file does not say what its layers are, or no rule is known for a weight.
    """
    if details.backend in _TURNED:
        raise error(
            Code.FORMAT_LAYOUT,
            location,
            f"no rule is known for kernels of Keras on {details.backend}",
            "load and save the model with Keras on TensorFlow",
        )
    model, notes = _model(details, entries, location)
    if details.kind == LEGACY and not details.backend:
        notes.append(
            "the file does not say what Keras ran on; on Theano kernels of convolutions would be "
            "turned around in space"
        )
    found = _by_layer(model, details, entries, location)
    made: dict[str, Made] = {}
    for layer in _owning(model):
        if (weights := found.get(id(layer))) is not None:
            notes += _convert(layer, weights, made, location)
        elif layer.kind in _RULES:
            notes.append(f"the file has no weights of {layer}")
    return made, (*notes, *flattened(model))


def _model(details: Details, entries: tuple[Entry, ...], location: str) -> tuple[Layer, list[str]]:
    """Return the model's layers: as the configuration says, or as the weights leave no choice."""
    if details.config is not None:
        return parse_config(details.config.encode(), f"{location}: model_config"), []
    if details.kind != LEGACY:
        raise error(
            Code.FORMAT_LAYOUT,
            location,
            "the file has no configuration: nothing says which class a layer has",
            "convert the whole model's file (.keras, or .h5 of model.save), or without layout",
        )
    return inferred(details, entries, location)


def _by_layer(
    model: Layer, details: Details, entries: tuple[Entry, ...], location: str
) -> dict[int, _Found]:
    """Return the weights of each layer that has a rule, by the layer's identity."""
    found: dict[int, _Found] = {}
    owners = Owners(model, location)
    for entry, path in zip(entries, details.paths, strict=True):
        if details.kind == LEGACY:
            owner = owners.legacy(*path)
        else:
            owner = owners.stored(path, details.names)
        _keep(found.setdefault(id(owner.layer), {}), owner, entry, location)
    return found


def _keep(weights: _Found, owner: Owner, entry: Entry, location: str) -> None:
    key = owner.place, owner.variable
    if key in weights:
        reason = f"as {weights[key].name}, it would be {owner.variable} of {owner.layer}"
        raise error(Code.FORMAT_LAYOUT, f"{location}: {entry.name}", reason, "save it again")
    weights[key] = entry


def _convert(layer: Layer, found: _Found, made: dict[str, Made], location: str) -> list[str]:
    """Add the tensors of one layer and return its notes."""
    weights = Weights(layer, found, location)
    rule = _RULES.get(layer.kind)
    tensors = [] if rule is None else rule(weights)
    weights.finish()
    for tensor in tensors:
        name = ".".join((*layer.path, tensor.name)).replace("/", ".")
        if name in made:
            reason = f"two tensors would have this name; one is of {layer}"
            raise error(Code.FORMAT_LAYOUT, f"{location}: {name}", reason, "rename a layer")
        made[name] = tensor
    return weights.notes


def _owning(layer: Layer) -> Iterator[Layer]:
    """Yield the layers that weights may belong to: not models, and no parts of other layers."""
    for part in layer.parts.values():
        if part.is_model or part.kind == "TimeDistributed":
            yield from _owning(part)
        else:
            yield part
