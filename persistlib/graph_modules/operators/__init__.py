"""The operators, a module for each subject; importing this one enters them all in the table."""

from __future__ import annotations

from persistlib.graph_modules.operators import (
    arithmetic,
    arrangement,
    attention,
    contrib,
    contrib_quantized,
    control,
    convolution,
    detection,
    indexing,
    linear,
    normalization,
    pooling,
    quantization,
    randomness,
    recurrent,
    reduction,
    resizing,
    sampling,
    sequences,
    signals,
)
from persistlib.graph_modules.registry import OPERATORS

__all__ = [
    "OPERATORS",
    "arithmetic",
    "arrangement",
    "attention",
    "contrib",
    "contrib_quantized",
    "control",
    "convolution",
    "detection",
    "indexing",
    "linear",
    "normalization",
    "pooling",
    "quantization",
    "randomness",
    "recurrent",
    "reduction",
    "resizing",
    "sampling",
    "sequences",
    "signals",
]
