"""What one release of ONNX Runtime says of itself and of models; runs where that release lies.

Prints JSON. `facts` prints its kernels and its operators' schemas. `outcomes FOLDER` makes a session
of every model in a folder, in order, and prints a line for each: its name, and null or the message
of the refusal. A release that dies on a model is started again behind it, by who started this.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as native


def facts() -> dict[str, Any]:
    """Return version, kernels and schemas; kernels are null where the release does not tell."""
    kernels = getattr(native, "get_all_opkernel_def", None)
    return {
        "version": onnxruntime.__version__,
        "providers": onnxruntime.get_available_providers(),
        "kernels": None if kernels is None else [_kernel(kernel) for kernel in kernels()],
        "schemas": []
        if kernels is None
        else [_schema(s) for s in native.get_all_operator_schema()],
    }


def _kernel(kernel: Any) -> list[Any]:
    types = {name: sorted(names) for name, names in kernel.type_constraints.items()}
    start, end = kernel.version_range
    return [kernel.provider, kernel.domain, kernel.op_name, start, end, types]


def _schema(schema: Any) -> list[Any]:
    limit = 1 << 30
    return [
        schema.domain,
        schema.name,
        schema.since_version,
        [_parameter(one) for one in schema.inputs],
        [_parameter(one) for one in schema.outputs],
        {one.type_param_str: sorted(one.allowed_type_strs) for one in schema.type_constraints},
        [schema.min_input, min(schema.max_input, limit), schema.min_output],
        min(schema.max_output, limit),
        {name: _attribute(attribute) for name, attribute in sorted(schema.attributes.items())},
        bool(schema.deprecated),
    ]


def _parameter(parameter: Any) -> list[Any]:
    # One, Optional, Variadic; what varies need not be of one type.
    option = str(parameter.option).rsplit(".", 1)[-1][0]
    return [parameter.name, parameter.typeStr, option, int(parameter.isHomogeneous)]


def _attribute(attribute: Any) -> str:
    """Return an attribute's type, with a mark where it must stand."""
    return str(attribute.type).rsplit(".", 1)[-1] + ("!" if attribute.required else "")


def outcomes(folder: str, first: int) -> None:
    """Print for each model of a folder, from number `first` on, what a session made of it."""
    for name in sorted(os.listdir(folder))[first:]:
        print(json.dumps([name, _outcome(os.path.join(folder, name))]), flush=True)


def _outcome(path: str) -> str | None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if os.environ.get("PERSISTLIB_PROBE"):
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.optimized_model_filepath = path + ".seen"
    try:
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as fault:  # noqa: BLE001 - whatever it raises is its answer
        return f"{type(fault).__name__}: {fault}"[:600]
    return None


if __name__ == "__main__":
    if sys.argv[1] == "facts":
        print(json.dumps(facts()))
    else:
        outcomes(sys.argv[2], int(sys.argv[3]))
