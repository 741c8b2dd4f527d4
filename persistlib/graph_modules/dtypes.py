"""ONNX's numbers for dtypes, and torch's dtypes."""

from __future__ import annotations

import torch

_BY_NUMBER = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    4: torch.uint16,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    12: torch.uint32,
    13: torch.uint64,
    14: torch.complex64,
    15: torch.complex128,
    16: torch.bfloat16,
    17: torch.float8_e4m3fn,
    18: torch.float8_e4m3fnuz,
    19: torch.float8_e5m2,
    20: torch.float8_e5m2fnuz,
}


def torch_dtype(number: int) -> torch.dtype | None:
    """Return torch's dtype for ONNX's number; None where torch has none."""
    return _BY_NUMBER.get(number)
