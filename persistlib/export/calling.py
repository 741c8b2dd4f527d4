"""Calling a module without leaving a trace on it, its caller's random state, or the log.

Law: after `evaluation(model)` every training flag, the random state and the grad mode are what they
were, whatever happened inside.
"""

from __future__ import annotations

import dataclasses
import logging
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeGuard

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

# The exporter's libraries; each logs tracebacks and advice for faults that we report ourselves.
_LOUD = ("torch", "onnxscript", "onnx_ir")
Named = dict[str, torch.Tensor]


@contextmanager
def evaluation(model: torch.nn.Module) -> Iterator[None]:
    """Put every module in evaluation, without gradients, for a while.

    The flags are set directly: a class's own `train` or `eval` may do more than that.
    """
    flags = [(module, module.training) for module in model.modules()]
    cuda = list(range(torch.cuda.device_count())) if device_of(model).type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), torch.no_grad():
        try:
            for module, _ in flags:
                module.training = False
            yield
        finally:
            for module, training in flags:
                module.training = training


@contextmanager
def silence() -> Iterator[None]:
    """Keep the exporter's warnings and log lines from the caller; faults still raise."""
    names = [
        name
        for name in (*_LOUD, *logging.Logger.manager.loggerDict)
        if name.split(".", maxsplit=1)[0] in _LOUD
    ]
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def device_of(model: torch.nn.Module) -> torch.device:
    """Return where the module's first tensor lies; the CPU for a module without tensors."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def call(model: torch.nn.Module, inputs: Sequence[torch.Tensor]) -> Named:
    """Return the outputs by name, on the CPU; buffers that the call changes are changed in copies.

    Raises:
        Exception: whatever the module raises.
    """
    device = device_of(model)
    copies = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with evaluation(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outputs = torch.func.functional_call(
            model, copies, tuple(tensor.to(device) for tensor in inputs)
        )
        return {name: tensor.detach().cpu() for name, tensor in flatten(outputs).items()}


def flatten(outputs: object) -> Named:
    """Return the tensors in a module's outputs under names that say where they stood.

    A lone tensor is `output`; mapping keys and field names are themselves, positions are numbers,
    and deeper ones are joined by dots. What is no tensor is left out.
    """
    if isinstance(outputs, torch.Tensor):
        return {"output": outputs}
    named: Named = {}
    for path, tensor in _leaves(outputs, ()):
        name = ".".join(path)
        name = f"output_{name}" if name[:1].isdigit() else name
        while name in named:
            name += "_"
        named[name] = tensor
    return named


def _leaves(value: object, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield path, value
        return
    for key, item in _members(value).items():
        yield from _leaves(item, (*path, str(key)))


def _members(value: object) -> Mapping[Any, Any]:
    """Return what a container holds, by key, field or position; nothing for any other value."""
    if hasattr(value, "items") and hasattr(value, "keys"):
        return dict(value.items())
    if _is_named_tuple(value):
        return dict(zip(value._fields, value, strict=True))  # type: ignore[attr-defined]
    if isinstance(value, (list, tuple)):
        return dict(enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    return {}


def _is_named_tuple(value: object) -> TypeGuard[tuple[Any, ...]]:
    return isinstance(value, tuple) and hasattr(value, "_fields")
