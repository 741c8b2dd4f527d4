"""Fourier transforms and windows of signals; complex numbers are a last axis of two."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from persistlib.graph_modules.dtypes import torch_dtype
from persistlib.graph_modules.registry import Call, operator
from persistlib.graph_modules.sizes import ints, require_size

if TYPE_CHECKING:
    from torch import Tensor

_AXIS_INPUT = 20


@operator("DFT", numbers=(1, 2))
def dft(call: Call, x: Tensor, length: Tensor | None = None, axis: Tensor | None = None) -> Tensor:
    """Return the Fourier transform along an axis, or its inverse."""
    if call.version < _AXIS_INPUT:
        along = call.get("axis", 1) % x.ndim
    else:
        along = (-2 if axis is None else ints(axis)[0]) % x.ndim
    is_inverse, is_half = bool(call.get("inverse", 0)), bool(call.get("onesided", 0))
    whole = 2 * (x.shape[along] - 1) if is_inverse and is_half else x.shape[along]
    count = whole if length is None else ints(length)[0]
    require_size(call, (x.numel() // max(x.shape[along], 1), count), x)
    values = torch.view_as_complex(x.contiguous()) if x.shape[-1] == 2 else x.squeeze(-1)
    if is_inverse and is_half:
        real: Tensor = torch.fft.irfft(values, count, along)
        return real.unsqueeze(-1).to(x.dtype)
    made = (torch.fft.ifft if is_inverse else torch.fft.fft)(values, count, along)
    if is_half:
        made = made.narrow(along, 0, count // 2 + 1)
    return torch.view_as_real(made).to(x.dtype)


@operator("STFT", numbers=(1, 2, 3))
def stft(
    call: Call,
    signal: Tensor,
    step: Tensor,
    window: Tensor | None = None,
    length: Tensor | None = None,
) -> Tensor:
    """Return the Fourier transform of overlapping frames: (batch, frames, bins, 2)."""
    values = signal if signal.ndim == 3 else signal.unsqueeze(-1)
    total = values.shape[1]
    count = ints(length)[0] if length is not None else len(window) if window is not None else total
    frames = values.unfold(1, count, ints(step)[0]).movedim(-1, 2)
    if window is not None:
        frames = frames * window.reshape(1, 1, -1, 1)
    numbers = (
        torch.view_as_complex(frames.contiguous()) if values.shape[-1] == 2 else frames[..., 0]
    )
    made = torch.fft.fft(numbers, dim=2)
    if call.get("onesided", 1):
        made = made.narrow(2, 0, count // 2 + 1)
    return torch.view_as_real(made).to(signal.dtype)


_WINDOWS = {
    "HannWindow": (0.5, 0.5, 0.0),
    "HammingWindow": (25 / 46, 21 / 46, 0.0),
    "BlackmanWindow": (0.42, 0.5, 0.08),
}


@operator(*_WINDOWS, numbers=(0,))
def window_of(call: Call, size: Tensor) -> Tensor:
    """Return a window of cosines, periodic or symmetric."""
    count = ints(size)[0]
    require_size(call, (count,), size)
    span = count if call.get("periodic", 1) else count - 1
    angle = torch.arange(count, dtype=torch.float64) * (2 * math.pi / max(span, 1))
    a, b, c = _WINDOWS[call.operator]
    made = a - b * angle.cos() + c * (2 * angle).cos()
    return made.to(torch_dtype(call.get("output_datatype", 1)) or torch.float32)


@operator("MelWeightMatrix", numbers=range(5))
def mel_weight_matrix(call: Call, *given: Tensor) -> Tensor:
    """Return the weights of triangular bands on the mel scale: (bins, bands)."""
    bands, length, rate = (ints(value)[0] for value in given[:3])
    low, high = (2595 * math.log10(1 + float(value.reshape(())) / 700) for value in given[3:])
    bins = length // 2 + 1
    require_size(call, (bins, bands), *given)
    step = (high - low) / (bands + 2)
    hertz = [700 * (10 ** ((low + at * step) / 2595) - 1) for at in range(bands + 2)]
    places = torch.tensor([math.floor((length + 1) * value / rate) for value in hertz])
    at = torch.arange(bins)[:, None]
    left, middle, right = places[:-2], places[1:-1], places[2:]
    rising = (at - left) / (middle - left).clamp(min=1)
    falling = (right - at) / (right - middle).clamp(min=1)
    made = torch.where(
        (at >= left) & (at < middle),
        rising,
        torch.where((at >= middle) & (at < right), falling, torch.zeros(())),
    )
    made = torch.where(at == middle, torch.ones(()), made)
    return made.to(torch_dtype(call.get("output_datatype", 1)) or torch.float32)
