"""How the learning rate goes: our own two, and torch's schedulers by name."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

from torch.optim import lr_scheduler

from persistlib.errors import Code, error

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch.optim import Optimizer

    from persistlib.errors import PersistlibError

_STEP, _EPOCH, _LOSS = "step", "epoch", "loss"


class Length(NamedTuple):
    """How long a run is.

    Attributes:
        epochs: of the whole run.
        steps: of the whole run; None where only going through it tells.
        rates: the learning rate of each group at the start.
    """

    epochs: int
    steps: int | None
    rates: list[float]


class _Row(NamedTuple):
    """One of torch's schedulers.

    Attributes:
        kind: its class.
        after: what it counts: steps, epochs, or epochs with their held-out loss.
        usual: its arguments where the caller gives none.
    """

    kind: Any
    after: str
    usual: Callable[[Length], dict[str, Any]]


def _third(length: Length) -> int:
    return -(-length.epochs // 3)


def _one_cycle(length: Length) -> dict[str, Any]:
    return {"max_lr": length.rates, "total_steps": length.steps}


def _cyclic(length: Length) -> dict[str, Any]:
    return {
        "base_lr": [rate / 10 for rate in length.rates],
        "max_lr": length.rates,
        "step_size_up": max((length.steps or 2000) // 4, 1),
        "cycle_momentum": False,
    }


_ROWS = (
    _Row(lr_scheduler.ConstantLR, _EPOCH, lambda _: {}),
    _Row(lr_scheduler.CosineAnnealingLR, _EPOCH, lambda length: {"T_max": length.epochs}),
    _Row(lr_scheduler.CosineAnnealingWarmRestarts, _EPOCH, lambda length: {"T_0": _third(length)}),
    _Row(lr_scheduler.CyclicLR, _STEP, _cyclic),
    _Row(lr_scheduler.ExponentialLR, _EPOCH, lambda _: {"gamma": 0.9}),
    _Row(lr_scheduler.LinearLR, _EPOCH, lambda length: {"total_iters": length.epochs}),
    _Row(
        lr_scheduler.MultiStepLR,
        _EPOCH,
        lambda length: {"milestones": [max(length.epochs // 2, 1), max(length.epochs * 3 // 4, 1)]},
    ),
    _Row(lr_scheduler.OneCycleLR, _STEP, _one_cycle),
    _Row(lr_scheduler.PolynomialLR, _EPOCH, lambda length: {"total_iters": length.epochs}),
    _Row(lr_scheduler.ReduceLROnPlateau, _LOSS, lambda _: {}),
    _Row(lr_scheduler.StepLR, _EPOCH, lambda length: {"step_size": _third(length)}),
)
_BY_NAME = {row.kind.__name__.lower(): row for row in _ROWS}
# Those of our own have no class: `Settings.lr_at` is all there is to them.
SCHEDULES: dict[str, type[Any] | None] = {
    "cosine": None,
    "constant": None,
    **{name: row.kind for name, row in _BY_NAME.items()},
}


class Scheduler:
    """One of torch's schedulers at work.

    Law: a new one that is given `state` gives the rates that this one would have given.
    """

    def __init__(
        self, name: str, optimizer: Optimizer, length: Length, options: Mapping[str, Any]
    ) -> None:
        """Raise UsageError where torch refuses the arguments."""
        self._row = _BY_NAME[name]
        given = self._row.usual(length) | dict(options)
        if given.get("total_steps", 1) is None:
            reason = "needs to know how many batches there are, and these have no length"
            raise error(Code.USAGE, f"schedule {name}", reason, "give schedule_options total_steps")
        try:
            self._torchs = self._row.kind(optimizer, **given)
        except (TypeError, ValueError) as fault:
            raise self._refused(fault) from fault

    def after_step(self) -> None:
        """Go on after a step of the optimizer."""
        if self._row.after == _STEP:
            self._step()

    def after_epoch(self, loss: float) -> None:
        """Go on after an epoch, whose loss was this."""
        if self._row.after == _EPOCH:
            self._step()
        elif self._row.after == _LOSS:
            self._step(loss)

    def state(self) -> dict[str, Any]:
        """Return what it remembers, as plain values."""
        return dict(self._torchs.state_dict())

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of one with the same arguments.

        Raises:
            KeyError: the state has other members.
        """
        own = self._torchs.state_dict()
        if own.keys() != state.keys():
            raise KeyError(", ".join(sorted(own.keys() ^ state.keys())))
        self._torchs.load_state_dict(dict(state))

    def _refused(self, fault: Exception) -> PersistlibError:
        name = self._row.kind.__name__.lower()
        return error(Code.USAGE, f"schedule {name}", f"{fault}", "see torch.optim.lr_scheduler")

    def _step(self, *loss: float) -> None:
        with warnings.catch_warnings():
            # A step that was left out because its gradients overflowed looks to torch like a fault.
            warnings.filterwarnings("ignore", "Detected call of", UserWarning)
            try:
                self._torchs.step(*loss)
            except (TypeError, ValueError) as fault:
                raise self._refused(fault) from fault
