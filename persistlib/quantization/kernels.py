"""Which operators a runtime's provider computes in bfloat16, so that a graph may ask for that.

The CPU's kernels are the shipped table's (`compat.releases`): up to now none does arithmetic in it.
CUDA's are below, for what this project's graphs hold: which versions of an operator from
https://github.com/microsoft/onnxruntime/blob/main/docs/OperatorKernels.md, and since which release
from the names of the classes in the wheels of onnxruntime-gpu 1.17.1 to 1.31.1, of which every
second or third minor release was looked at: an operator may have come a release earlier.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

import onnx
from packaging.version import InvalidVersion, Version

from persistlib.casting import cast_target
from persistlib.compat import releases
from persistlib.compat.describing import parse_target
from persistlib.compat.operators import Signature, computed
from persistlib.dtypes import DType
from persistlib.errors import Code, error
from persistlib.quantization.signatures import signature
from persistlib.runtime.releases import release_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from persistlib.compat.targets import Target
    from persistlib.graph_wishes import GraphWishes

_GPU, _CPU = "onnxruntime-gpu", "onnxruntime"
_BF16, _SPELLED = DType.BF16, "tensor(bfloat16)"
# Of newer operator sets CUDA has few kernels, and the rest of a graph would run on the CPU.
_CUDA_OPSET = 23


class _Since(NamedTuple):
    """From which release on CUDA computes which versions of an operator in bfloat16."""

    release: str
    versions: tuple[int, ...]


_CUDA: Mapping[str, _Since] = {
    **dict.fromkeys(("Add", "Div", "Mul", "Sub", "Relu"), _Since("1.17", (13, 14))),
    **dict.fromkeys(
        ("Gemm", "MatMul", "Neg", "ReduceSum", "Sigmoid", "Softmax", "Tanh"), _Since("1.17", (13,))
    ),
    "LayerNormalization": _Since("1.17", (17,)),
    "Where": _Since("1.17", (16,)),
    "Max": _Since("1.17", (12, 13)),
    "Min": _Since("1.17", (12, 13)),
    "Sum": _Since("1.17", (8, 13)),
    **dict.fromkeys(("Erf", "Exp", "Sqrt"), _Since("1.20", (13,))),
    **dict.fromkeys(("Abs", "Sign"), _Since("1.22", (13,))),
    "Gelu": _Since("1.22", (20,)),
    **dict.fromkeys(("AveragePool", "Conv", "HardSigmoid", "HardSwish"), _Since("1.24", (22,))),
    **dict.fromkeys(("RMSNormalization", "RotaryEmbedding"), _Since("1.24", (23,))),
    "Attention": _Since("1.25", (23, 24)),
}
# What only moves values, which CUDA does for every dtype of a fixed size.
_MOVES: Mapping[str, tuple[int, ...]] = {
    "Concat": (4, 11, 13),
    "Expand": (8, 13),
    "Flatten": (9, 11, 13),
    "Gather": (11, 13),
    "GatherElements": (11, 13),
    "Identity": (13, 14, 19),
    "Reshape": (13, 14, 19, 21, 23),
    "ScatterElements": (11, 13, 16, 18),
    "ScatterND": (11, 13, 16, 18),
    "Slice": (10, 11, 13),
    "Split": (11, 13, 18),
    "Squeeze": (11, 13, 21, 23),
    "Transpose": (13, 21, 23),
    "Trilu": (14,),
    "Unsqueeze": (11, 13, 21, 23),
}


class Kernels(Protocol):
    """What a provider of a release computes in bfloat16."""

    @property
    def told(self) -> str:
        """The provider and the release, for a person."""
        ...

    @property
    def opset(self) -> int | None:
        """The newest operator set that it is worth writing; None where any will do."""
        ...

    def has(self, node: onnx.NodeProto, opset: int) -> bool:
        """Return whether it computes an operator, whose schema takes bfloat16, in that."""
        ...


class CudaKernels(NamedTuple):
    """CUDA's, of a release."""

    release: str

    @property
    def told(self) -> str:
        """See `Kernels`."""
        return f"CUDA of {_GPU} {self.release}"

    @property
    def opset(self) -> int | None:
        """See `Kernels`."""
        return min(_CUDA_OPSET, release_of(self.release).opset)

    def has(self, node: onnx.NodeProto, opset: int) -> bool:
        """See `Kernels`."""
        version = onnx.defs.get_schema(node.op_type, opset, "").since_version
        if (row := _CUDA.get(node.op_type)) is None:
            return version in _MOVES.get(node.op_type, ())
        return version in row.versions and Version(self.release) >= Version(row.release)


class CpuKernels(NamedTuple):
    """The CPU's, of a release as the nearest one that the table has."""

    wanted: str

    @property
    def release(self) -> releases.Release:
        """What the table says of it."""
        return releases.release(releases.nearest(self.wanted))

    @property
    def told(self) -> str:
        """See `Kernels`."""
        known = self.release.version
        judged = "" if Version(known) == Version(self.wanted) else f" (judged as {known})"
        return f"the CPU of {_CPU} {self.wanted}{judged}"

    @property
    def opset(self) -> int | None:
        """See `Kernels`."""
        return None

    def has(self, node: onnx.NodeProto, opset: int) -> bool:
        """See `Kernels`."""
        form = signature(node, opset, _BF16)
        schema = self.release.schema("", node.op_type, opset)
        if form is None or schema is None:
            return False
        names = Signature(*([_SPELLED if moves else "" for moves in side] for side in form))
        return computed(self.release, ("", node.op_type), schema, names)


def kernels_of(wishes: GraphWishes) -> Kernels | None:
    """Return the kernels that a graph in pure bfloat16 is made for; None where none is wished for.

    Raises:
        UsageError: another dtype is wished for, or no target whose kernels are known.
    """
    if not wishes.pure:
        return None
    if wishes.dtype is None or cast_target(wishes.dtype) is not _BF16:
        reason = "only bf16 is stored in one dtype and computed in another"
        raise error(Code.USAGE, "pure", reason, "use it with dtype bf16 (--dtype bf16 --pure)")
    if wishes.target is None:
        reason = "nothing says which runtime is to compute in bfloat16"
        raise error(Code.USAGE, "pure", reason, f"name it: --target {_GPU}==1.31.1")
    return _kernels(parse_target(wishes.target))


def _kernels(target: Target) -> Kernels:
    try:
        if (gpu := _oldest(target, _GPU)) is not None:
            Version(gpu)
            return CudaKernels(gpu)
        if (cpu := _oldest(target, _CPU)) is not None:
            Version(cpu)
            return CpuKernels(cpu)
    except InvalidVersion as fault:
        raise error(Code.USAGE, "target", str(fault), f"write {_GPU}==1.31.1") from fault
    reason = f"bfloat16 kernels are known of {_GPU} and {_CPU} alone"
    raise error(Code.USAGE, "target", reason, f"name one: --target {_GPU}==1.31.1")


def _oldest(target: Target, name: str) -> str | None:
    """Return the oldest release of a distribution that a target admits."""
    return target.choices[name][0] if name in target.choices else target.packages.get(name)


class Split(NamedTuple):
    """The operators of a graph that bfloat16 concerns, by type with how many of each.

    Attributes:
        half: that compute in it.
        moved: that move values of it.
        single: that the provider has no kernel for, or whose operator set knows no bfloat16; they
            stay in float32.
    """

    half: Mapping[str, int]
    moved: Mapping[str, int]
    single: Mapping[str, int]


def split(nodes: Iterable[onnx.NodeProto], opset: int, kernels: Kernels) -> Split:
    """Return which operators of a graph a provider computes in bfloat16.

    Args:
        nodes: of the graph.
        opset: version of its default operator set.
        kernels: the provider's.
    """
    found: tuple[dict[str, int], ...] = ({}, {}, {})
    for node in nodes:
        form = signature(node, opset, DType.F16)  # which every operator on floats takes
        if form is not None and any((*form.inputs, *form.outputs)):
            is_half = signature(node, opset, _BF16) is not None and kernels.has(node, opset)
            place = int(node.op_type in _MOVES) if is_half else 2
            found[place][node.op_type] = found[place].get(node.op_type, 0) + 1
    return Split(*found)
