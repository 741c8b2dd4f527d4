"""Quantizing in a process of its own: `python -m persistlib.quantization.child FOLDER`.

ONNX Runtime's quantizer logs, prints, and writes files wherever temporary files go. The folder
holds `job.json`, `model.onnx` with its data, and `inputs.npz` for static quantization; the graph
that is made is left there as `quantized.onnx`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

JOB, SOURCE, INPUTS, RESULT = "job.json", "model.onnx", "inputs.npz", "quantized.onnx"


class _Reader:
    """What calibration is fed: a row of the inputs' names with an array each, run by run."""

    def __init__(self, path: Path) -> None:
        self._runs = self._read(path)

    def _read(self, path: Path) -> Iterator[dict[str, Any]]:
        with np.load(path, allow_pickle=False) as stored:
            names = sorted({key.partition(":")[2] for key in stored.files})
            count = len(stored.files) // max(len(names), 1)
            for index in range(count):
                yield {name: stored[f"{index}:{name}"] for name in names}

    def get_next(self) -> dict[str, Any] | None:
        """Return the next run's inputs, None after the last."""
        return next(self._runs, None)


def main(folder: str) -> None:
    """Quantize what lies in a folder.

    Raises:
        Exception: whatever the quantizer raises.
    """
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_dynamic,
        quantize_static,
    )

    place = Path(folder)
    job = json.loads((place / JOB).read_text(encoding="utf-8"))
    shared: dict[str, Any] = {
        "op_types_to_quantize": job["operators"],
        "nodes_to_exclude": job["excluded"],
        "per_channel": job["per_channel"],
        "reduce_range": job["reduce_range"],
        "weight_type": QuantType.QInt8,
        "use_external_data_format": job["external"],
        "extra_options": {"MatMulConstBOnly": True},
    }
    source, result = os.fspath(place / SOURCE), os.fspath(place / RESULT)
    if job["mode"] == "dynamic":
        quantize_dynamic(source, result, **shared)
        return
    CalibrationDataReader.register(_Reader)
    reader: Any = _Reader(place / INPUTS)
    quantize_static(
        source,
        result,
        reader,
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        calibrate_method=CalibrationMethod.MinMax,
        **shared,
    )


if __name__ == "__main__":
    main(sys.argv[1])
