"""Calling a module without leaving a trace on it, its caller's random state, or the log.

Law: after `evaluation(model)` every training flag, the random state and the grad mode are what they
were, whatever happened inside.
"""

from __future__ import annotations

import io
import logging
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING

import torch

from persistlib.architecture.isolation import SEED, isolated, seed
from persistlib.examples import named_outputs

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

# The exporter's libraries; each logs tracebacks and advice for faults that we report ourselves.
_LOUD = ("torch", "onnxscript", "onnx_ir")
Named = dict[str, torch.Tensor]


@contextmanager
def evaluation(model: torch.nn.Module) -> Generator[None]:
    """Put every module in evaluation, without gradients, for a while.

    The flags are set directly: a class's own `train` or `eval` may do more than that.
    """
    flags = [(module, module.training) for module in model.modules()]
    with isolated(), torch.no_grad():
        try:
            for module, _ in flags:
                module.training = False
            yield
        finally:
            for module, training in flags:
                module.training = training


@contextmanager
def silence() -> Generator[None]:
    """Keep what the exporter logs and prints from the caller; faults still raise."""
    names = [
        name
        for name in (*_LOUD, *logging.Logger.manager.loggerDict)
        if name.split(".", maxsplit=1)[0] in _LOUD
    ]
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        # A failed trace prints the code so far.
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def device_of(model: torch.nn.Module) -> torch.device:
    """Return where the module's first tensor lies; the CPU for a module without tensors."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def call(
    model: torch.nn.Module,
    inputs: Sequence[torch.Tensor],
    state: Mapping[str, torch.Tensor] | None = None,
    *,
    random: int = SEED,
) -> Named:
    """Return the outputs by name, on the CPU; what the call writes to, it writes to copies.

    Args:
        model: left as it is.
        inputs: of its `forward`, by position.
        state: tensors by name in place of the module's; its buffers' copies where none is given.
        random: the seed of what it may draw.

    Raises:
        Exception: whatever the module raises.
    """
    device = device_of(model)
    if state is None:
        state = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with evaluation(model):
        seed(random)
        outputs = torch.func.functional_call(
            model, dict(state), tuple(tensor.to(device, copy=True) for tensor in inputs)
        )
        return {name: tensor.detach().cpu() for name, tensor in named_outputs(outputs).items()}
