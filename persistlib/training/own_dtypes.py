"""A model's own dtype, and arrays of floats in it; what is no float stays."""

from __future__ import annotations

from typing import Any

import torch

from persistlib.training import nests


def own_dtype(model: torch.nn.Module) -> torch.dtype | None:
    """Return the dtype of a model's floating parameters; None where there are several or none."""
    found = {item.dtype for item in model.parameters() if item.is_floating_point()}
    return found.pop() if len(found) == 1 else None


def cast_inputs(inputs: Any, dtype: torch.dtype | None) -> Any:
    """Return inputs in a dtype; None leaves them."""
    return inputs if dtype is None else nests.each(lambda item: _cast(item, dtype), inputs)


def cast_targets(targets: Any, own: torch.dtype | None) -> Any:
    """Return targets in the model's dtype, but at least in float32; None leaves them."""
    if own is None:
        return targets
    wide = torch.promote_types(own, torch.float32)  # in bfloat16 1001 would become 1000
    return nests.each(lambda item: item if item.dtype == own else _cast(item, wide), targets)


def _cast(item: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return item.to(dtype) if item.is_floating_point() else item
