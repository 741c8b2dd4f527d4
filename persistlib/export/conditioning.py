"""Whether a module's own rounding moves its outputs as far as a proof would let a graph's.

A deep network of random weights can amplify the last bit of a product into the third digit of an
output. Then no two runtimes agree, and a departure says nothing against the graph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from persistlib.export.calling import call
from persistlib.export.comparison import deviation
from persistlib.export.state import array_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch


def own_rounding(model: torch.nn.Module, inputs: Sequence[torch.Tensor]) -> float:
    """Return how far a module's outputs are from those that it computes in double precision.

    Args:
        model: left as it is.
        inputs: of one call, in the precision that the module takes.

    Returns:
        The largest difference of a float output over its spread.

    Raises:
        Exception: whatever the module raises, which need not compute in double precision.
    """
    state = dict((*model.named_parameters(), *model.named_buffers()))
    single = call(model, inputs)
    double = call(
        model,
        [_widened(tensor) for tensor in inputs],
        {name: _widened(tensor) for name, tensor in state.items()},
    )
    return max(
        (
            deviation(array_of(double[name], name), array_of(tensor, name))
            for name, tensor in single.items()
            if tensor.is_floating_point()
        ),
        default=0.0,
    )


def own_chance(model: torch.nn.Module, inputs: Sequence[torch.Tensor]) -> float:
    """Return how far two calls with the same inputs lie apart, for the random numbers they draw.

    Args:
        model: left as it is.
        inputs: of both calls.

    Returns:
        The largest difference of an output over its spread; of whole numbers the share.

    Raises:
        Exception: whatever the module raises.
    """
    first, second = (call(model, inputs, random=number) for number in range(2))
    return max(
        deviation(array_of(tensor, name), array_of(second[name], name))
        for name, tensor in first.items()
    )


def _widened(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor.clone()
