"""ONNX graphs for modules: made by hand, and onnx's own tests of its operators."""

from __future__ import annotations

import warnings
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from persistlib.graph_modules.bundle import module_of
from persistlib.graph_modules.module import GraphModule
from persistlib.graph_modules.reading import imported
from persistlib.graph_modules.tensors import tensor_from

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
_FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16}
Node = onnx.NodeProto


def value(name: str, shape: Sequence[int | str], dtype: int = FLOAT) -> onnx.ValueInfoProto:
    made: onnx.ValueInfoProto = helper.make_tensor_value_info(name, dtype, list(shape))
    return made


def model(
    nodes: Sequence[Node],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    tensors: Mapping[str, Any] | None = None,
    *,
    opset: int = 17,
    ir_version: int = 8,
) -> onnx.ModelProto:
    """Return a model; tensors are arrays by name."""
    stored = [numpy_helper.from_array(np.asarray(a), n) for n, a in (tensors or {}).items()]
    graph = helper.make_graph(list(nodes), "g", list(inputs), list(outputs), stored)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    made: onnx.ModelProto = helper.make_model(graph, opset_imports=imports, ir_version=ir_version)
    return made


def module(proto: onnx.ModelProto) -> GraphModule:
    """Return the module of a model."""
    made = module_of(imported(proto, {}, "model.onnx"))
    assert isinstance(made, GraphModule)
    return made


def outputs(made: torch.nn.Module, *inputs: Any) -> list[np.ndarray]:
    """Return what a module gives, as arrays."""
    given = [torch.from_numpy(np.asarray(array).copy()) for array in inputs]
    with torch.no_grad():
        result = made(*given)
    values = result.values() if isinstance(result, dict) else [result]
    return [tensor.numpy() for tensor in values]


def by_runtime(proto: onnx.ModelProto, *inputs: Any) -> list[np.ndarray]:
    """Return what ONNX Runtime gives."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [item.name for item in session.get_inputs()]
    given = {n: np.asarray(a) for n, a in zip(names, inputs, strict=True)}
    results: Any = session.run(None, given)
    return list(results)


def departure(proto: onnx.ModelProto, *inputs: Any) -> float:
    """Return the largest difference between both, of the outputs' spread; shapes must agree."""
    worst = 0.0
    for ours, theirs in zip(
        outputs(module(proto), *inputs), by_runtime(proto, *inputs), strict=True
    ):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        wanted = theirs.astype(np.float64)
        spread = float(np.ptp(wanted))
        assert spread > 0
        worst = max(worst, float(np.abs(ours.astype(np.float64) - wanted).max()) / spread)
    return worst


def _element(kind: onnx.TypeProto) -> int:
    field = kind.WhichOneof("value")
    if field == "tensor_type":
        return int(kind.tensor_type.elem_type)
    if field in {"sequence_type", "optional_type"}:
        return _element(getattr(kind, field).elem_type)
    return 0


@cache
def node_cases() -> dict[str, Any]:
    """Return onnx's tests of operators that have floats among their inputs or outputs, by name."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        cases: list[Any] = load_model_tests(kind="node")
    return {
        case.name: case
        for case in cases
        if any(
            _element(v.type) in _FLOATS for v in (*case.model.graph.input, *case.model.graph.output)
        )
    }


def tensor(given: Any) -> Any:
    """Return a value of a node test as a module takes it."""
    if given is None:
        return None
    if isinstance(given, list):
        return [tensor(item) for item in given]
    if not isinstance(given, onnx.TensorProto):
        given = numpy_helper.from_array(np.asarray(given), "value")
    return tensor_from(given, {}, "value")


def case_fault(case: Any) -> str:
    """Return what is wrong with a module's answer to a node test; empty where nothing is."""
    made = module(case.model)
    names = [item.name for item in case.model.graph.output]
    for inputs, expected in case.data_sets:
        with torch.no_grad():
            result = made(*(tensor(item) for item in inputs))
        given = result if isinstance(result, dict) else {names[0]: result}
        for name, wanted in zip(names, expected, strict=True):
            if fault := _fault(given[name], tensor(wanted), case):
                return f"{name}: {fault}"
    return ""


def _fault(ours: Any, wanted: Any, case: Any) -> str:
    if isinstance(wanted, list):
        if not isinstance(ours, list) or len(ours) != len(wanted):
            return "no such sequence"
        pairs = zip(ours, wanted, strict=True)
        return next((fault for a, b in pairs if (fault := _fault(a, b, case))), "")
    if wanted is None:
        return "" if ours is None else "a value for none"
    if (ours.dtype, ours.shape) != (wanted.dtype, wanted.shape):
        return f"{ours.dtype} {tuple(ours.shape)} for {wanted.dtype} {tuple(wanted.shape)}"
    if not wanted.is_floating_point():
        return "" if bool((ours == wanted).all()) else "other numbers"
    rtol, atol = case.rtol, max(case.atol, 1e-6)
    is_close = torch.allclose(ours.double(), wanted.double(), rtol, atol, equal_nan=True)
    return "" if is_close else "other values"


def operators_of(case: Any) -> Iterator[str]:
    """Yield the operators of a node test's graph."""
    for node in case.model.graph.node:
        yield node.op_type if not node.domain else f"{node.domain}:{node.op_type}"
