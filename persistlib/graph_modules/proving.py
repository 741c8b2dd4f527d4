"""The proof that a module made from a graph computes what ONNX Runtime computes from it.

Law: outputs that differ by more than the tolerance have no proof, and neither have outputs that
would hide a difference. Every output is compared over several draws and, where the batch is free,
over two batch sizes.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from importlib.metadata import version
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from persistlib import examples
from persistlib.digests import PREFIX, digest
from persistlib.dtypes import DType
from persistlib.errors import Code, ExportError, SessionError, UsageError, error
from persistlib.export.comparison import INTEGERS, TOLERANCE, Observed, degenerate
from persistlib.export.proof import REASON
from persistlib.export.state import array_of, bytes_of
from persistlib.graph_modules.module import GraphModule
from persistlib.graph_modules.structure import parse, text
from persistlib.graph_modules.trials import Drawing, draw, drawings, is_accepted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydantic import JsonValue
    from torch import Tensor, nn

    from persistlib.runtime.session import Session

_FLOAT, _DOUBLE = 1, 11  # ONNX's numbers
_BATCHES = (1, 3)
# ONNX Runtime's sigmoid is off by some 1e-7 wherever it is, also where it is 1e-5.
_FAINT, _BLUR = 1e-2, 1e-6
# Ways of drawing that the runtime takes; those beyond would tell no more.
_WAYS = 9
# Draws of each batch size: an output of one number tells nothing by a single one.
_DRAWS = 3


class Proved(NamedTuple):
    """What was tried last, and what it proves."""

    shown: examples.Examples
    proof: dict[str, JsonValue]


def prove(module: nn.Module, session: Session, location: object) -> Proved:
    """Return the proof, with inputs found by trying.

    Args:
        module: in evaluation; left as it is.
        session: of the graph.
        location: what to name in an error.

    Raises:
        ExportError: no inputs were found that prove anything, or the outputs differ.
    """
    fault: ExportError | None = None
    ways = (w for w in drawings(session.inputs) if is_accepted(session, session.inputs, w))
    for way in itertools.islice(ways, _WAYS):
        try:
            return _proved(module, session, way)
        except ExportError as found:  # noqa: PERF203 - it says to try the next way
            if found.code != Code.EXPORT_DEGENERATE.identifier:
                raise
            fault = fault or found
    reason = "no inputs were found that it takes" if fault is None else fault.reason
    remedy = "name the architecture of the file (--architecture)"
    raise error(Code.EXPORT_DEGENERATE, location, reason, remedy) from fault


def _proved(module: nn.Module, session: Session, way: Drawing) -> Proved:
    """Return the proof by inputs drawn in one way.

    Raises:
        ExportError: the outputs differ, or prove nothing.
    """
    ways = list(_sizes(session, way))
    observed: list[Observed] = []
    hashes = ""
    for one in ways:
        for seed in range(_DRAWS):
            inputs = draw(session.inputs, one, seed)
            hashes += "".join(digest(bytes_of(tensor)) for tensor in inputs)
            other = draw(session.inputs, one, seed + _DRAWS)
            _observe(module, session, observed, (inputs, other))
    rows: dict[str, JsonValue] = {}

    def judge(seen: Observed, limit: float) -> None:
        try:
            seen.judge(limit)
        except ExportError as fault:
            if fault.code == Code.EXPORT_MISMATCH.identifier and (
                _is_faint(seen) or _is_shaky(module, session, ways, limit)
            ):
                raise degenerate(seen.name, "rounding alone moves it by more") from fault
            raise

    for seen in observed:
        limit = TOLERANCE.get(seen.dtype.name, TOLERANCE["BF16"]) if seen.is_float else INTEGERS
        judge(seen, limit)
        rows[seen.name] = {
            "error": _rounded(seen.relative),
            "tolerance": limit,
            "dtype": seen.dtype.name,
        }
    if not any(seen.response for seen in observed):
        raise degenerate("outputs", "no output changes with the inputs")
    named = _named(session, draw(session.inputs, way, 0))
    proof: dict[str, JsonValue] = {
        "proved": True,
        "seed": 0,
        "inputs": {"drawn": way.kind, "digest": PREFIX + digest(hashes.encode())},
        "batch_sizes": [one.batch for one in ways] if len(ways) > 1 else [],
        "outputs": rows,
        "reason": REASON,
        "provider": session.providers[0],
        "versions": {p: version(p) for p in ("onnx", "onnxruntime", "torch")},
    }
    return Proved(examples.Examples(named, examples.run(module, named)), proof)


def _is_faint(seen: Observed) -> bool:
    """Return whether an output lies so near one value that the runtime's own functions blur it."""
    return seen.is_float and seen.spread < _FAINT and seen.error < _BLUR


def _is_shaky(module: nn.Module, session: Session, ways: Sequence[Drawing], limit: float) -> bool:
    """Return whether the module in doubles departs from itself by a quarter of a limit.

    Of a sum that cancels little is left but rounding: there two right runtimes differ. A wrong
    operator is as wrong in doubles, and stays a difference.
    """
    double = in_doubles(module)
    for way in ways:
        inputs = draw(session.inputs, way, 0)
        wide = [t.double() if t.is_floating_point() else t for t in inputs]
        try:
            exact = examples.run(double, _named(session, tuple(wide))).values()
        except UsageError:  # something in the graph insists on floats
            return False
        given = examples.run(module, _named(session, inputs)).values()
        for wanted, found in zip(exact, given, strict=True):
            if wanted.shape == found.shape and wanted.is_floating_point() and wanted.numel():
                spread = float(wanted.max() - wanted.min())
                off = float((wanted - found.double()).abs().max())
                if spread and off > limit / 4 * spread:
                    return True
    return False


def in_doubles(module: nn.Module) -> nn.Module:
    """Return a copy of the module that computes in doubles where it computed in floats."""
    whole = parse(module.config)  # type: ignore[arg-type] # a GraphModule's text
    graphs = tuple(
        dataclasses.replace(
            graph,
            nodes=tuple(
                dataclasses.replace(node, attributes={**node.attributes, "to": _DOUBLE})
                if node.operator == "Cast" and node.attributes.get("to") == _FLOAT
                else node
                for node in graph.nodes
            ),
        )
        for graph in whole.graphs
    )
    double = GraphModule(text(dataclasses.replace(whole, graphs=graphs)))
    double.load_state_dict(module.state_dict())
    return double.double().eval()


def _sizes(session: Session, way: Drawing) -> Iterator[Drawing]:
    """Yield the way with other batch sizes, as far as the graph takes them; or as it is."""
    shapes = [tensor.shape for tensor in draw(session.inputs, way, 0, on_meta=True)]
    found = False
    for batch in _BATCHES:
        other = way._replace(batch=batch)
        drawn = [tensor.shape for tensor in draw(session.inputs, other, 0, on_meta=True)]
        is_other = drawn != shapes or batch == way.batch
        if is_other and is_accepted(session, session.inputs, other):
            found = True
            yield other
    if not found:
        yield way


def _observe(
    module: nn.Module,
    session: Session,
    observed: list[Observed],
    pair: tuple[tuple[Tensor, ...], tuple[Tensor, ...]],
) -> None:
    """Take in what both make of the first inputs, and the module of the second."""
    names = [spec.name for spec in session.outputs]
    try:
        expected, other = (
            list(examples.run(module, _named(session, inputs)).values()) for inputs in pair
        )
    except UsageError as fault:
        # A runtime makes nothing of a picture smaller than a kernel, where torch refuses.
        raise degenerate("inputs", fault.reason) from fault
    try:
        given = session.run([array_of(tensor, "inputs") for tensor in pair[0]])
    except SessionError as fault:
        raise degenerate("inputs", f"the runtime takes only some draws: {fault.reason}") from fault
    for index, name in enumerate(names):
        if index == len(observed):
            observed.append(Observed(name, _dtype(session, index)))
        arrays = (array_of(expected[index], name), array_of(other[index], name))
        if not all(np.all(np.isfinite(a.astype(np.complex128))) for a in arrays):
            raise degenerate(name, "holds NaN or infinity")
        observed[index].add(*arrays, given[name])


def _rounded(error: float) -> float:
    """Return an error rounded up to a power of ten: what stands below depends on the machine."""
    return float(10.0 ** math.ceil(math.log10(error))) if error else 0.0


def _dtype(session: Session, index: int) -> DType:
    return DType[session.outputs[index].dtype]


def _named(session: Session, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    return {spec.name: tensor for spec, tensor in zip(session.inputs, inputs, strict=True)}
