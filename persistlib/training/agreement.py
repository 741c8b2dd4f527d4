"""What several processes must be given alike before they train as one.

Law: after `reach` the models of all processes hold the same bits.

Models built in each process differ where their fresh values were drawn without a seed, as they
often are. So the first process' values go to all, and that is said; names, shapes, settings and
samples that differ are errors.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import torch

from persistlib.errors import Code, warn
from persistlib.training.snapshots import digests
from persistlib.wording import with_rest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from persistlib.processes import Group

_SHOWN = 5
# What may differ between machines that train together.
_FREE = ("workers", "torch", "threads")


def reach(group: Group, model: torch.nn.Module, plan: Mapping[str, Any]) -> None:
    """Compare models, settings and samples; give every process the first one's values.

    Args:
        group: the processes, each of which calls this.
        model: what is to be trained.
        plan: what a run is known by (`loop`).

    Raises:
        UsageError: something is not the same in every process.
    """
    if group.is_alone:
        return
    said = {**plan["settings"], **plan["context"], **plan["data"]}
    given = {name: _brief(value) for name, value in said.items() if name not in _FREE}
    tensors = _tensors(model)
    form = {
        f"model {name}": [str(item.dtype), list(item.shape), item.requires_grad]
        for name, item in tensors.items()
    }
    remedy = "call finetune with the same arguments in every process, or with alone=True in each"
    group.require_same({**form, **given}, remedy)
    _take_values(group, tensors)


def _tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@torch.no_grad()
def _take_values(group: Group, tensors: Mapping[str, torch.Tensor]) -> None:
    """Give the first process' values to all."""
    first, *others = group.told(digests(tensors), "the model's values")
    names = [name for name in tensors if any(other[name] != first[name] for other in others)]
    wanted = {name: tensors[name] for name in names}
    for name, value in group.tensors_from_first(wanted, "the model's values").items():
        tensors[name].copy_(value)
    if names and group.is_first:
        reason = "the processes' models hold other values; the first one's were taken"
        remedy = "seed before the model is built, or load the same weights"
        warn(Code.PROCESSES_DIFFER, with_rest(names, _SHOWN), reason, remedy)


def _brief(value: Any) -> str:
    """Return what differs where values do."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
