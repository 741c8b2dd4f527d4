"""A graph in int8, by ONNX Runtime's own quantizer.

Weights are quantized by channel and to seven bits: with eight, processors without VNNI
instructions add two products in sixteen bits, which saturate, and the same file would give other
answers there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from persistlib.errors import Code, error
from persistlib.graph_tensors import EXTERNAL_ABOVE
from persistlib.quantization.child import INPUTS, JOB, RESULT, SOURCE
from persistlib.quantization.parts import Names, Parts, assemble, take_apart

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx
    from numpy.typing import NDArray
    from typing_extensions import Buffer

_CHILD = "persistlib.quantization.child"
_SECONDS = 3600
DYNAMIC, STATIC = "dynamic", "static"
# What holds weights; the rest only passes values on, or is given integers to save conversions.
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_PASSING = (
    *("Add", "Mul", "Relu", "Clip", "LeakyRelu", "Concat", "Split", "Slice", "Pad", "Resize"),
    *("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Gather"),
    *("MaxPool", "AveragePool", "GlobalAveragePool"),
)
_DYNAMIC = (*WEIGHTED, "Gather", "LSTM", "Attention", "EmbedLayerNormalization")
# The operators to try in turn, until one meets what is asked of it.
OPERATORS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    DYNAMIC: (_DYNAMIC,),
    STATIC: ((*WEIGHTED, *_PASSING), WEIGHTED),
}


def quantized(
    parts: Parts,
    mode: str,
    operators: Sequence[str],
    runs: Sequence[Mapping[str, NDArray[np.generic]]],
) -> Parts:
    """Return a graph in int8.

    Args:
        parts: the graph, of float32; operators that are excluded are named, else it stays as it is.
        mode: "dynamic" or "static".
        operators: types of those to quantize.
        runs: inputs by name, that ranges are taken from where the mode is static.

    Raises:
        ExportError: the quantizer cannot do it.
    """
    with tempfile.TemporaryDirectory(prefix="persistlib-") as folder:
        place = Path(folder)
        job = {
            "mode": mode,
            "operators": list(operators),
            "per_channel": True,
            "reduce_range": True,
            "excluded": _grouped(parts),
            "external": sum(view.nbytes for view in parts.data.values()) > EXTERNAL_ABOVE,
        }
        (place / JOB).write_text(json.dumps(job), encoding="utf-8")
        for name, data in assemble(parts, SOURCE):
            (place / name).write_bytes(data)
        if mode == STATIC:
            stored = {f"{i}:{name}": a for i, run in enumerate(runs) for name, a in run.items()}
            np.savez(place / INPUTS, allow_pickle=False, **stored)
        _run(folder)
        made = {RESULT: (place / RESULT).read_bytes()}
        beside = place / f"{RESULT}.data"
        if beside.exists():
            made[beside.name] = beside.read_bytes()
    return _tidied(made)


def _grouped(parts: Parts) -> list[str]:
    """Name the transposed convolutions in groups, and return their names.

    The quantizer takes their output channels for those of one group, and fails at the bias.
    """
    names = Names(parts.graph)
    found = [
        node
        for node in parts.graph.node
        if node.op_type == "ConvTranspose"
        and any(a.name == "group" and a.i > 1 for a in node.attribute)
    ]
    for node in found:
        node.name = node.name or names.free("transposed")
    return [node.name for node in found]


def _run(folder: str) -> None:
    command = [sys.executable, "-W", "ignore", "-m", _CHILD, folder]
    environment = {**os.environ, **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), folder)}
    try:
        child = subprocess.run(  # noqa: S603 - this interpreter, with our own program
            command, capture_output=True, timeout=_SECONDS, check=False, env=environment
        )
    except subprocess.TimeoutExpired as fault:
        reason = f"ONNX Runtime's quantizer took longer than {_SECONDS} s"
        raise error(Code.QUANTIZATION, SOURCE, reason, "give it fewer images") from fault
    if child.returncode:
        last = child.stderr.decode(errors="replace").strip().splitlines()[-1:]
        reason = f"ONNX Runtime's quantizer failed: {''.join(last) or child.returncode}"
        raise error(Code.QUANTIZATION, SOURCE, reason, "try --dtype f16, or the other --quantize")


def _tidied(files: Mapping[str, Buffer]) -> Parts:
    """Return the quantizer's graph without the notes that it leaves in it."""
    made = take_apart(files, RESULT)
    for field in ("metadata_props", "doc_string", "producer_name", "producer_version"):
        made.proto.ClearField(field)
    del made.graph.value_info[:]
    read = {name for node in made.graph.node for name in node.input}
    read |= {value.name for value in made.graph.output}
    unused = [tensor for tensor in made.graph.initializer if tensor.name not in read]
    for tensor in unused:
        made.data.pop(tensor.name, None)
        made.graph.initializer.remove(tensor)
    return made


def is_quantized(proto: onnx.ModelProto) -> bool:
    """Return whether any operator of a graph takes or gives integers for floats."""
    kinds = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "DynamicQuantizeLSTM"}
    return any(node.op_type in kinds for node in proto.graph.node)
