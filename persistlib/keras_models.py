"""A Keras model as a torch module: Keras computes, torch holds the values.

Law: for a file that Keras reads, the module has the weights that Keras read, bit for bit, and its
outputs on the torch backend are Keras' own.

A recipe names `persistlib.keras_models:KerasModel` and the model's configuration as text. Building
it runs Keras' own deserialisation in safe mode after the configuration was held to be harmless:
classes of Keras, and of packages that the caller trusts; never code from the file.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from persistlib.architecture import recipe, trusted
from persistlib.canonical import parse
from persistlib.errors import Code, error, missing_extra
from persistlib.installed import is_importable

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Iterator, Mapping

BUILDER = "persistlib.keras_models:KerasModel"
_BACKEND = "torch"
_KERAS = "keras"
_PLAIN = frozenset({"builtins", None})
# Where Python's own byte code stands in a configuration.
_CODE = frozenset({"__lambda__", "Lambda"})
# Classes that run what another library made, or open files that the configuration names.
_FOREIGN = frozenset({"TorchModuleWrapper", "TFSMLayer", "JaxLayer", "FlaxLayer"})
# Arguments that are values, or else the name of a file with them.
_FILES = frozenset({"vocabulary", "idf_weights"})
# Parts of Keras whose names are classes of a model. Others (utils, config, saving) have functions
# that fetch files or turn safe mode off, which releases of Keras called when a file said so.
_AREAS = frozenset(
    {
        *("activations", "constraints", "dtype_policies", "initializers", "layers", "losses"),
        *("metrics", "mixed_precision", "models", "ops", "optimizers", "quantizers", "random"),
        *("regularizers",),
    }
)
_LIMIT = 16 << 20


class KerasModel(nn.Module):
    """A Keras model on its torch backend.

    Parameters are what Keras trains, buffers are its other weights (BatchNorm statistics), each
    under its path in Keras with dots for slashes. Inputs and outputs are Keras' own: images have
    their channels last. A layer whose module is in evaluation, as `persistlib.freeze` puts it,
    computes so.
    """

    def __init__(self, config: str, custom_objects: Mapping[str, Any] | None = None) -> None:
        """Build the model.

        Args:
            config: what Keras' `to_json()` gives.
            custom_objects: classes of other packages that the configuration names, by that name.

        Raises:
            FormatError: the configuration names code, or what is neither Keras' nor given.
            ArchitectureError: Keras cannot build it.
        """
        super().__init__()
        self.config = config
        self.custom_objects = dict(custom_objects or {})
        self.weights = nn.Module()
        model = built(config, self.custom_objects)
        for path, variable in variables(model).items():
            owner, leaf = _owner(self.weights, path)
            value = variable.value.detach()
            if is_parameter(model, variable):
                trained = nn.Parameter(value, requires_grad=variable.trainable)
                owner.register_parameter(leaf, trained)
            else:
                owner.register_buffer(leaf, value)
        _MODELS[self] = model

    def forward(self, *inputs: torch.Tensor) -> Any:
        """Return what the Keras model returns.

        Args:
            *inputs: one tensor for each input of the model, in its order.
        """
        model = _MODELS.get(self)
        if model is None:  # a copy of the module that was built
            model = _MODELS[self] = built(self.config, self.custom_objects)
        owners: dict[int, nn.Module] = {}
        for path, variable in variables(model).items():
            owner, leaf = _owner(self.weights, path)
            owners[id(variable)] = owner
            value = getattr(owner, leaf)
            # What Keras assigns to what is frozen is let go of: some layers assign to any weight.
            is_still = leaf in owner._parameters or not owner.training  # noqa: SLF001 - torch's own
            is_kept = self.training and is_still and not value.requires_grad
            variable._value = value.clone() if is_kept else value  # noqa: SLF001 - what holds it
        device = next((t.device for t in inputs), torch.device("cpu"))
        with backend().device(str(device)), _evaluating(model, owners):
            return model(inputs[0] if len(inputs) == 1 else list(inputs), training=self.training)


@contextlib.contextmanager
def _evaluating(model: Any, owners: Mapping[int, nn.Module]) -> Generator[None]:
    """Let Keras' layers whose modules are in evaluation compute so, whatever the model does.

    To Keras a BatchNormalization that does not train is one in evaluation.
    """
    still: list[Any] = []
    for layer in _layers(model):
        modules = [owners[id(v)] for v in _weights_of(layer) if id(v) in owners]
        if layer._trainable and modules and not any(m.training for m in modules):  # noqa: SLF001
            still.append(layer)
    for layer in still:
        layer._trainable = False  # noqa: SLF001 - `trainable` would change the tensors too
    try:
        yield
    finally:
        for layer in still:
            layer._trainable = True  # noqa: SLF001 - as above


def as_module(model: nn.Module) -> nn.Module:
    """Return a Keras model as a module that can be saved, any other module as it is.

    The values lie in the Keras model's own memory: what trains the one trains the other.

    Raises:
        FormatError: its configuration names code.
        ArchitectureError: it names a class that is not Keras' own, or does not build the model.
    """
    keras = sys.modules.get(_KERAS)
    if keras is None or not isinstance(model, keras.Model):
        return model
    own: Any = model
    module = recipe.build(BUILDER, config=own.to_json())
    assert isinstance(module, KerasModel)
    for path, given in rebuilt_weights(model, _MODELS[module]).items():
        owner, leaf = _owner(module.weights, path)
        tensor = getattr(owner, leaf)
        tensor.data = given.value.detach()
        if isinstance(tensor, nn.Parameter):
            tensor.requires_grad_(bool(given.trainable))
    return module.train(model.training)


def rebuilt_weights(model: Any, made: Any) -> dict[str, Any]:
    """Return the weights of a Keras model by the paths of their likes in one built from it.

    The model's own paths say less: each is that of the layer in which a weight was built first,
    and a Sequential that Keras read from an `.h5` file has its own name in front.

    Args:
        model: a Keras model.
        made: what `built` makes of its configuration.

    Raises:
        ArchitectureError: layers or weights are not alike.
    """
    rows = [[_weights_of(layer) for layer in _layers(one)] for one in (model, made)]
    facts = [[[(v.name, v.shape) for v in weights] for weights in some] for some in rows]
    if facts[0] != facts[1]:
        reason = "its configuration builds other weights"
        raise error(Code.LOOKALIKE, type(model).__name__, reason, "save it as a .keras file first")
    pairs = zip(*([v for weights in some for v in weights] for some in rows), strict=True)
    held = {id(own): given for given, own in pairs}
    return {path: held[id(variable)] for path, variable in variables(made).items()}


def _weights_of(layer: Any) -> list[Any]:
    """Return the weights that are a layer's own."""
    return [*layer._trainable_variables, *layer._non_trainable_variables]  # noqa: SLF001 - as above


# Beside the modules and not on them: a Keras model is a torch module too, and its tensors would
# stand in the state_dict twice.
_MODELS: Any = WeakIdKeyDictionary()


def built(config: str, custom_objects: Mapping[str, Any]) -> Any:
    """Return the Keras model of a configuration, with fresh values.

    Raises:
        FormatError: the configuration names what is not allowed.
        ArchitectureError: Keras cannot build it.
    """
    require_harmless(parse(config.encode(), "config", limit=_LIMIT), set(custom_objects))
    keras = backend()
    try:
        with keras.device("cpu"):
            return keras.models.model_from_json(config, custom_objects=dict(custom_objects))
    except Exception as fault:
        reason = f"{type(fault).__name__}: {str(fault).strip().splitlines()[0:1]}"
        raise error(
            Code.BUILDER_FAILED, BUILDER, reason, "open it with the Keras that wrote it"
        ) from fault


def variables(model: Any) -> dict[str, Any]:
    """Return the weights of a Keras model by path, dots for slashes; a second one gets a number."""
    found: dict[str, Any] = {}
    for variable in model.weights:
        path = variable.path.replace(".", "_").replace("/", ".")
        count = 1
        name = path
        while name in found:
            name = f"{path}_{count}"
            count += 1
        found[name] = variable
    return found


def is_parameter(model: Any, variable: Any) -> bool:
    """Return whether Keras counts a weight among those that training changes, frozen or not."""
    return any(variable is own for layer in _layers(model) for own in layer._trainable_variables)  # noqa: SLF001


def _layers(model: Any) -> Iterator[Any]:
    yield model
    yield from model._flatten_layers(include_self=False)  # noqa: SLF001 - Keras has no public walk


def require_harmless(config: object, custom: Collection[str], path: str = "config") -> None:
    """Raise where a configuration names code, or a class that is neither Keras' nor allowed.

    Raises:
        FormatError: it names code; the location is the path inside the configuration.
        ArchitectureError: it names such a class.
    """
    for place, entry in _named(config, path):
        kind, module = entry.get("class_name"), entry.get("module")
        if kind in _CODE:
            raise error(
                Code.FORMAT_UNSAFE,
                place,
                f"{kind}: Python code that stands in a file is never run",
                "make the layer a class of a package, register it, and save the model again",
            )
        if kind in _FOREIGN or _names_file(entry.get("config")):
            raise error(
                Code.FORMAT_UNSAFE,
                place,
                f"{kind}: uses files, or what another library made, beside the model",
                "save the model without this layer",
            )
        if not _is_keras(module) and not {kind, entry.get("registered_name")} & set(custom):
            raise error(
                Code.UNTRUSTED,
                place,
                f"{module}:{kind} is no class of Keras",
                trusted.vouching(str(module).split(".")[0]),
            )


def custom_classes(config: object, trust: Collection[str]) -> dict[str, Any]:
    """Return the classes of trusted packages that a configuration names, by the names it uses.

    Raises:
        ArchitectureError: a trusted package has no such class.
    """
    found: dict[str, Any] = {}
    for _, entry in _named(config, "config"):
        module, kind = entry.get("module"), entry.get("class_name")
        if not _is_keras(module) and trusted.within(str(module), trust):
            resolved = trusted.resolve(f"{module}:{kind}", trust)
            names = {kind, entry.get("registered_name")} - {None}
            found |= {str(name): resolved for name in names}
    return found


def _named(config: object, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every object of a configuration that names a class, with its path."""
    if isinstance(config, list):
        for index, item in enumerate(config):
            yield from _named(item, f"{path}.{index}")
    elif isinstance(config, dict):
        if isinstance(config.get("class_name"), str):
            yield path, config
        for key, item in config.items():
            yield from _named(item, f"{path}.{key}")


def _is_keras(module: object) -> bool:
    """Return whether a class is Keras' own; configurations of Keras 1 and 2 name no module."""
    if module in _PLAIN:
        return True
    root, *parts = str(module).split(".")
    area = [part for part in parts if part != "src"][:1]
    return root == _KERAS and (not parts or bool(_AREAS & set(area)))


def _names_file(config: object) -> bool:
    """Return whether an argument that may be the name of a file is one."""
    return isinstance(config, dict) and any(isinstance(config.get(key), str) for key in _FILES)


def _owner(root: nn.Module, path: str) -> tuple[nn.Module, str]:
    """Return the module that holds a weight, made where it is not there, and the weight's name."""
    *parents, leaf = path.split(".")
    for part in parents:
        inner = root._modules.get(part)  # noqa: SLF001 - a part may be named as a method is
        if inner is None:
            inner = nn.Module()
            root.add_module(part, inner)
        root = inner
    return root, leaf


def backend() -> Any:
    """Return Keras on its torch backend.

    Raises:
        MissingExtra: Keras is not installed.
        UsageError: it runs on another backend in this process.
    """
    if not is_importable(_KERAS):
        raise missing_extra(_KERAS, _KERAS, "a whole Keras model")
    if _KERAS not in sys.modules:
        os.environ["KERAS_BACKEND"] = _BACKEND
    import keras

    if keras.backend.backend() != _BACKEND:
        raise error(
            Code.USAGE,
            "KERAS_BACKEND",
            f"Keras runs on {keras.backend.backend()} in this process",
            "set KERAS_BACKEND=torch before Keras is imported",
        )
    return keras
