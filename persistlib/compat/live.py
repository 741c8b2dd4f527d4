"""What the ONNX Runtime that is installed here says of itself, as rows of the table.

Releases before 1.16 do not tell; `fixtures/make_runtimes.py` tries those.
"""

from __future__ import annotations

import importlib
from typing import Any

_MANY = 1 << 30


def version() -> str:
    """Return the version of ONNX Runtime here."""
    import onnxruntime

    return str(onnxruntime.__version__)


def _native() -> Any:
    """Return the compiled part, whose stubs do not name it."""
    return importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")


def providers() -> tuple[str, ...] | None:
    """Return the providers of the ONNX Runtime here; None where there is none that imports."""
    try:
        import onnxruntime
    except (ImportError, OSError):  # not installed, or a library of its build is missing
        return None
    return tuple(onnxruntime.get_available_providers())


def kernels() -> list[list[Any]] | None:
    """Return a row for each kernel of the default provider; None where the release is silent."""
    listed = getattr(_native(), "get_all_opkernel_def", None)
    if listed is None:
        return None
    return [_kernel(one) for one in listed() if one.provider == "CPUExecutionProvider"]


def schemas() -> list[list[Any]]:
    """Return a row for each version of each operator; none where the release is silent."""
    listed = getattr(_native(), "get_all_operator_schema", None)
    return [] if listed is None else [_schema(one) for one in listed()]


def takes(model: bytes) -> str | None:
    """Return None where a session of a model can be made here, or why not."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as fault:  # noqa: BLE001 - whatever it raises is its answer
        return f"{type(fault).__name__}: {fault}"
    return None


def _kernel(kernel: Any) -> list[Any]:
    types = {name: sorted(names) for name, names in kernel.type_constraints.items()}
    start, end = kernel.version_range
    return [kernel.provider, kernel.domain, kernel.op_name, start, end, types]


def _schema(schema: Any) -> list[Any]:
    return [
        schema.domain,
        schema.name,
        schema.since_version,
        [_parameter(one) for one in schema.inputs],
        [_parameter(one) for one in schema.outputs],
        {one.type_param_str: sorted(one.allowed_type_strs) for one in schema.type_constraints},
        [schema.min_input, min(schema.max_input, _MANY), schema.min_output],
        min(schema.max_output, _MANY),
        {name: _attribute(attribute) for name, attribute in sorted(schema.attributes.items())},
        bool(schema.deprecated),
    ]


def _parameter(parameter: Any) -> list[Any]:
    option = str(parameter.option).rsplit(".", 1)[-1][0]
    return [parameter.name, parameter.typeStr, option, int(parameter.isHomogeneous)]


def _attribute(attribute: Any) -> str:
    return str(attribute.type).rsplit(".", 1)[-1] + ("!" if attribute.required else "")
