"""Tensors of torch in and out of ONNX Runtime, without a copy where both can see the memory.

torch is imported only where a caller asks for its tensors or gives some.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from persistlib.dtypes import by_name
from persistlib.errors import missing_extra
from persistlib.installed import is_importable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import TypeGuard

    import torch
    from numpy.typing import NDArray

    from persistlib.manifest.schema import TensorSpec


def is_tensor(value: object) -> TypeGuard[torch.Tensor]:
    """Return whether a value is a tensor of torch; torch is not imported for it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def is_on_device(value: object) -> bool:
    """Return whether a value is a tensor that lies where the processor cannot read it."""
    return is_tensor(value) and value.device.type not in ("cpu", "meta")


def dtype_name(tensor: torch.Tensor) -> str:
    """Return what numpy calls a tensor's dtype, and where it has no name, torch."""
    name = str(tensor.dtype).removeprefix("torch.")
    row = by_name("torch", name)
    return name if row is None else row.value.numpy


def to_array(tensor: torch.Tensor) -> NDArray[Any]:
    """Return a tensor's values as an array over the same memory where that is the processor's.

    Raises:
        TypeError: its dtype is none that a graph takes.
    """
    import numpy as np
    import torch

    row = by_name("torch", str(tensor.dtype).removeprefix("torch."))
    if row is None:
        raise TypeError(f"dtype {tensor.dtype}")
    dense = tensor.detach().cpu().contiguous().resolve_conj().resolve_neg()
    if not row.value.extension:
        array: NDArray[Any] = dense.numpy()
        return array
    # torch gives numpy no array of these; their bits it gives.
    bits = dense.reshape(-1).view(torch.uint8).numpy()
    return np.asarray(bits.view(row.numpy).reshape(tuple(tensor.shape)))


def to_tensor(array: NDArray[Any]) -> torch.Tensor:
    """Return an array as a tensor over the same memory.

    Raises:
        FormatError: the installed torch has no such dtype.
        MissingExtra: torch is not installed.
    """
    if not is_importable("torch"):
        raise missing_extra("torch", "torch", "giving tensors of torch")
    import numpy as np
    import torch

    row = by_name("numpy", array.dtype.name)
    assert row is not None
    dense = np.require(array, requirements=["C", "W"])
    if not row.value.extension:
        return torch.from_numpy(dense)
    flat = torch.from_numpy(dense.reshape(-1).view(np.uint8))
    return flat.view(row.torch).reshape(array.shape)


def run_bound(
    opened: Any,
    feeds: Mapping[str, Any],
    outputs: Sequence[TensorSpec],
    device: tuple[str, int],
    options: Any,
) -> list[torch.Tensor]:
    """Return the outputs as tensors that stay on the device where they were computed.

    Args:
        opened: ONNX Runtime's session.
        feeds: its values by name.
        outputs: what to compute.
        device: kind and number, as torch names them: ("cuda", 0).
        options: of the run.
    """
    binding = opened.io_binding()
    for name, value in feeds.items():
        binding.bind_ortvalue_input(name, value)
    for spec in outputs:
        binding.bind_output(spec.name, *device)
    binding.synchronize_inputs()
    opened.run_with_iobinding(binding, options)
    binding.synchronize_outputs()
    from torch.utils.dlpack import from_dlpack

    return [from_dlpack(value) for value in binding.get_outputs()]


def as_tensors(
    arrays: Mapping[str, NDArray[Any]], outputs: Sequence[TensorSpec]
) -> dict[str, torch.Tensor]:
    """Return outputs as tensors over the memory of the arrays."""
    return {spec.name: to_tensor(arrays[spec.name]) for spec in outputs}
