"""Computing in half precision where that is safe, by torch's own autocast and gradient scaling.

Not through `accelerate`: its state is one for the whole process, so that a second run in another
precision is refused until the process is started again, and it replaces the `forward` of the
caller's module.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from contextlib import AbstractContextManager

_DTYPES = {"f32": None, "bf16": torch.bfloat16, "f16": torch.float16}
PRECISIONS = tuple(_DTYPES)


class Precision:
    """What a model computes in; weights, gradients and steps stay in the weights' own dtype.

    Attributes:
        name: one of `PRECISIONS`.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.name = name
        self._dtype = _DTYPES[name]
        self._device = device.type
        # The gradients of half precision vanish below 6e-8; those of bfloat16 do not.
        self._scaler = torch.amp.GradScaler(device.type) if name == "f16" else None

    def computing(self) -> AbstractContextManager[Any]:
        """Return the context in which the model and its loss run."""
        if self._dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self._device, dtype=self._dtype)

    def scaled(self, loss: torch.Tensor) -> torch.Tensor:
        """Return a loss whose gradients do not vanish in what it was computed in."""
        return loss if self._scaler is None else self._scaler.scale(loss)

    def step(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: Iterable[torch.nn.Parameter],
        clip: float | None,
    ) -> None:
        """Let the optimizer step, gradients clipped; a step that overflowed is left out."""
        if self._scaler is not None:
            self._scaler.unscale_(optimizer)
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(parameters, clip)
        if self._scaler is None:
            optimizer.step()
            return
        self._scaler.step(optimizer)
        self._scaler.update()

    def state(self) -> dict[str, Any]:
        """Return what the scaler remembers; empty without one."""
        return {} if self._scaler is None else dict(self._scaler.state_dict())

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of the same precision."""
        if self._scaler is not None and state:
            self._scaler.load_state_dict(dict(state))
