"""Building timm's models to see their tensors, in a process of its own.

    python -m persistlib.identification.timm_child representatives
    python -m persistlib.identification.timm_child MODULE

Prints an index (`architecture.zoo`) with a form for each model. timm's code is run, as whoever asks
for its zoo wants; weights are neither fetched nor made.
"""

from __future__ import annotations

import importlib
import sys
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

from persistlib.architecture import zoo, zoo_forms
from persistlib.architecture.express import InexpressibleError, infer
from persistlib.architecture.skeleton import rebuild
from persistlib.architecture.structure import dtype_name
from persistlib.canonical import encode
from persistlib.errors import PersistlibError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

REPRESENTATIVES = "representatives"
_LARGE = 30  # models of a module: one alone shows too little of them
# Modules of which a recipe says the whole configuration.
_PLAIN = frozenset({"torch.nn:Linear", "torch.nn:Conv2d"})


def main(asked: str) -> None:
    """Print the index of one module's models, or of a few models of each module."""
    with redirect_stdout(sys.stderr):
        timm: Any = importlib.import_module("timm")
        version: str = timm.__version__
        found = [form for name in _models(timm, asked) for form in _forms(timm, name, version)]
    sys.stdout.buffer.write(encode(zoo_forms.extended(zoo.index_of([], [version]), found)))


def _models(timm: Any, asked: str) -> Iterator[str]:
    for module in timm.list_modules():
        models = timm.list_models(module=module)
        if asked == REPRESENTATIVES:
            yield from models[:1] if len(models) < _LARGE else models[:: len(models) // 3]
        elif asked == module:
            yield from models


def _forms(timm: Any, name: str, version: str) -> Iterator[zoo_forms.Form]:
    """Yield the form of a model; of one that cannot be built here, none."""
    function = timm.model_entrypoint(name)
    builder = f"{function.__module__}:{function.__name__}"
    try:
        model = rebuild(builder, {}, trust={"timm"})
    except PersistlibError:
        return
    state = model.state_dict(keep_vars=True)
    rows = frozenset((row, dtype_name(t), tuple(t.shape)) for row, t in state.items())
    yield zoo_forms.Form(builder, {}, rows, tuple(_steps(model)), version, version)


def _steps(model: nn.Module) -> Iterator[zoo_forms.Step]:
    """Yield the first convolutions and the last layers that timm itself names."""
    configuration: Any = getattr(model, "default_cfg", {})
    classes = configuration.get("num_classes") or 0
    for kind, key in ((zoo_forms.CHANNELS, "first_conv"), (zoo_forms.CLASSES, "classifier")):
        named = configuration.get(key) or ()
        for path in (named,) if isinstance(named, str) else named:
            try:
                what, arguments = infer(model.get_submodule(path))
            except (AttributeError, InexpressibleError):
                continue
            outputs = arguments.get("out_features", arguments.get("out_channels", 0))
            is_head = kind == zoo_forms.CLASSES
            if what in _PLAIN and not (is_head and (not classes or outputs % classes)):
                per = outputs // classes if is_head else 1
                yield zoo_forms.Step(kind, path, what, arguments, per)


if __name__ == "__main__":
    main(sys.argv[1])
