"""The versions of operator set and file format in which a graph is written.

Law: what was asked for is what the file says, or an error says why not. Torch builds graphs from
operator set 18 on and converts upwards; below that its conversion fails without a word, so
`lowering` does it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import onnx

from persistlib.compat.describing import parse_target
from persistlib.compat.known import known
from persistlib.errors import Code, error
from persistlib.export.lowering import LOWEST, lower
from persistlib.runtime.releases import release_of

if TYPE_CHECKING:
    from persistlib.graph_wishes import GraphWishes

# What torch translates to, and what its converter goes up to.
TRACED = 18
HIGHEST = 25
# Since when the file format has element types that are newer than the oldest format written.
_TYPES = {
    "FLOAT8E4M3FN": 9,
    "FLOAT8E4M3FNUZ": 9,
    "FLOAT8E5M2": 9,
    "FLOAT8E5M2FNUZ": 9,
    "UINT4": 10,
    "INT4": 10,
    "FLOAT4E2M1": 11,
    "FLOAT8E8M0": 12,
    "UINT2": 13,
    "INT2": 13,
}


class Versions(NamedTuple):
    """What is asked of a graph's versions; None for what torch chooses.

    Attributes:
        opset: of the default operator set.
        ir: of the file format.
    """

    opset: int | None = None
    ir: int | None = None

    @property
    def traced(self) -> int | None:
        """The operator set to ask torch for."""
        return None if self.opset is None else max(self.opset, TRACED)


def asked(wishes: GraphWishes) -> Versions:
    """Return the versions that wishes come to: those given, or else the newest the target reads.

    Of a target that leaves a choice, the oldest release counts: what it takes the newer ones take.

    Raises:
        UsageError: the target is no release of ONNX Runtime that is known.
        ExportError: the target does not read what is asked for.
    """
    if wishes.target is None:
        return Versions(wishes.opset, wishes.ir)
    release = release_of(runtime_version(wishes.target))
    chosen = Versions(
        wishes.opset or min(release.opset, HIGHEST), wishes.ir or min(release.ir, onnx.IR_VERSION)
    )
    limits = (("opset", chosen.opset, release.opset), ("IR", chosen.ir, release.ir))
    for kind, wanted, most in limits:
        if wanted is not None and wanted > most:
            reason = f"onnxruntime {release.version} reads {kind} {most} at most"
            raise error(Code.EXPORT_VERSION, f"{kind} {wanted}", reason, f"ask for {most} or less")
    return chosen


def runtime_version(target: str) -> str:
    """Return the oldest release of ONNX Runtime that a target admits.

    Raises:
        UsageError: it names none.
    """
    described = parse_target(target)
    pinned = described.oldest("onnxruntime")
    if pinned is None or described.choices.get("onnxruntime") == known("onnxruntime"):
        reason = f"{target!r} names no release of onnxruntime"
        raise error(Code.USAGE, "target", reason, "write onnxruntime==1.17.3")
    return pinned


def versions(opset: int | None, ir: int | None) -> Versions:
    """Return the versions, which are known to exist and to go together.

    Raises:
        ExportError: they do not.
    """
    if opset is not None and not LOWEST <= opset <= HIGHEST:
        reason = f"graphs are written in operator sets {LOWEST} to {HIGHEST}"
        raise error(Code.EXPORT_VERSION, f"opset {opset}", reason, "ask for one of them")
    if ir is not None and ir > onnx.IR_VERSION:
        reason = f"the installed onnx knows IR {onnx.IR_VERSION} at most"
        raise error(Code.EXPORT_VERSION, f"IR {ir}", reason, f"ask for {onnx.IR_VERSION} or less")
    if ir is not None and opset is not None:
        _require_ir(ir, _oldest({"": opset}), f"opset {opset}")
    return Versions(opset, ir)


def write_versions(proto: onnx.ModelProto, wanted: Versions) -> None:
    """Bring a graph to the versions, in place.

    Args:
        proto: as torch made it; the state is among its inputs.
        wanted: of `versions`.

    Raises:
        ExportError: an operator or dtype of it does not exist in them, or torch did not convert it.
    """
    found = _opsets(proto).get("", 0)
    if wanted.opset is not None and found > wanted.opset:
        lower(proto, wanted.opset)
        found = wanted.opset
    if wanted.opset not in {None, found}:
        reason = f"torch left the graph at opset {found}"
        remedy = f"ask for opset {found}"
        raise error(Code.EXPORT_VERSION, f"opset {wanted.opset}", reason, remedy)
    _drop_unused(proto)
    oldest, cause = _needed(proto)
    if wanted.ir is not None:
        _require_ir(wanted.ir, oldest, cause)
    proto.ir_version = oldest if wanted.ir is None else wanted.ir


def _require_ir(ir: int, oldest: int, cause: str) -> None:
    if ir < oldest:
        reason = f"{cause} needs IR {oldest} or newer"
        raise error(Code.EXPORT_VERSION, f"IR {ir}", reason, f"ask for IR {oldest}")


def _needed(proto: onnx.ModelProto) -> tuple[int, str]:
    """Return the oldest file format that can hold a graph, and what makes it so."""
    opsets = _opsets(proto)
    known = {domain: version for domain, version in opsets.items() if domain in {"", "ai.onnx.ml"}}
    oldest, cause = _oldest(known), ", ".join(f"opset {v}" for v in known.values())
    values = (*proto.graph.input, *proto.graph.output)
    kinds = [value.type.tensor_type.elem_type for value in values]
    kinds += [tensor.data_type for tensor in proto.graph.initializer]
    for kind in kinds:
        name = onnx.TensorProto.DataType.Name(kind)
        if _TYPES.get(name, 0) > oldest:
            oldest, cause = _TYPES[name], name
    return oldest, cause


def _oldest(opsets: dict[str, int]) -> int:
    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    oldest: Any = onnx.helper.find_min_ir_version_for(imports)
    return int(oldest)


def _opsets(proto: onnx.ModelProto) -> dict[str, int]:
    return {opset.domain: opset.version for opset in proto.opset_import}


def _drop_unused(proto: onnx.ModelProto) -> None:
    """Remove the operator sets that no node is of; the default one stays."""
    from persistlib.runtime.walking import graphs_within

    nodes = [node for graph in graphs_within(proto.graph) for node in graph.node]
    nodes += [node for function in proto.functions for node in function.node]
    used = {node.domain for node in nodes} | {""}
    kept = [opset for opset in proto.opset_import if opset.domain in used]
    del proto.opset_import[:]
    proto.opset_import.extend(kept)
