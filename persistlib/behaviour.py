"""Recomputing the stored example outputs, in every runtime that is here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from persistlib.errors import Code, Severity, finding, missing_extra
from persistlib.installed import is_importable
from persistlib.loading import Reading, load_module, open_graph

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from persistlib.bundle import Bundle
    from persistlib.errors import Finding
    from persistlib.manifest.schema import Graph
    from persistlib.runtime.session import Session

_READING = Reading(mapped=True, verify=True)
_INPUT, _OUTPUT = "input.", "output."
_SIZES = (1, 3)
# Of an int8 graph's measured difference: other processors have other kernels.
_MEASURED = 2.0


def behaviour_findings(bundle: Bundle, *, trust: Collection[str]) -> tuple[Finding, ...]:
    """Return all that computes otherwise than when it was saved.

    The stored outputs are computed again by the module, where torch is, and by every graph; the
    proof of a graph is repeated against the module, that of a derived graph against its source.
    Nothing stored is a warning, and so are a graph that was never proved, and stored outputs that
    nothing here can compute; a note where only the module cannot.
    """
    stored = _stored(bundle)
    found: list[Finding] = []
    if stored is None:
        reason = "no example inputs were stored, so nothing can be recomputed"
        remedy = "save it with example_inputs="
        found.append(finding(Code.BEHAVIOUR, bundle.path, reason, remedy, Severity.WARNING))
    has_torch = is_importable("torch")
    if stored is not None and has_torch:
        computed = _by_torch(bundle, stored.inputs, trust)
        found += _differences("torch", computed, stored.outputs, stored.tolerance)
    elif stored is not None:
        found.append(_without_torch(has_graph=bool(bundle.manifest.graphs)))
    for index, graph in enumerate(bundle.manifest.graphs):
        name = "onnxruntime" if index == 0 else f"onnxruntime, {graph.precision}"
        if graph.proof and not graph.proof.get("proved"):
            reason = f"was never proved: {graph.proof.get('reason')}"
            found.append(finding(Code.BEHAVIOUR, name, reason, severity=Severity.WARNING))
            continue
        found += _of_graph(bundle, graph, name, stored)
        if has_torch and graph.derived_from is None and graph.proof:
            from persistlib.export.proving_again import proof_findings

            model = load_module(bundle, _READING, strict=True, trust=trust)
            found += proof_findings(bundle, graph, model, name)
    return tuple(found)


def _without_torch(*, has_graph: bool) -> Finding:
    """Return that the module was not run: a note where a graph was, else nothing was computed."""
    reason = "is not installed, so the module was not run"
    remedy = missing_extra("torch", "torch", "running the module").remedy
    severity = Severity.NOTE if has_graph else Severity.WARNING
    return finding(Code.BEHAVIOUR, "torch", reason, remedy, severity)


class _Stored(NamedTuple):
    """Example inputs and outputs by name, and how closely the outputs are to be met."""

    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]
    tolerance: Mapping[str, float]


def _stored(bundle: Bundle) -> _Stored | None:
    examples = bundle.manifest.examples
    if examples is None:
        return None
    reader = bundle.reader(examples.files[0])
    names = [entry.name for entry in reader.entries]
    stored = {name: reader.read(name) for name in names}
    inputs = {n.removeprefix(_INPUT): a for n, a in stored.items() if n.startswith(_INPUT)}
    expected = {n.removeprefix(_OUTPUT): a for n, a in stored.items() if n.startswith(_OUTPUT)}
    return _Stored(inputs, expected, examples.tolerance)


def _of_graph(bundle: Bundle, graph: Graph, name: str, stored: _Stored | None) -> Iterator[Finding]:
    """Yield what a graph computes otherwise than the stored outputs, or than its source."""
    session = open_graph(bundle, graph)
    if graph.derived_from is not None:
        yield from _derived_findings(bundle, graph, name, session)
    if stored is None:
        return
    # An input that has the name of a weight is called otherwise in the graph.
    order = [spec.name for spec in bundle.manifest.interface.inputs] or [*stored.inputs]
    given = session.run([stored.inputs[own] for own in order])
    outputs = [spec.name for spec in bundle.manifest.interface.outputs] or [*stored.outputs]
    computed = dict(zip(outputs, given.values(), strict=True))
    limits = stored.tolerance if graph.derived_from is None else _own_limits(graph, outputs)
    yield from _differences(name, computed, stored.outputs, limits)


def _own_limits(graph: Graph, names: Sequence[str]) -> dict[str, float]:
    """Return how far each output of a derived graph may be off: as its own proof says."""
    rows = graph.proof.get("outputs")
    measured: list[Any] = [*rows.values()] if isinstance(rows, dict) else []
    return {
        name: float(row.get("tolerance") or _MEASURED * row.get("error", 0.0))
        for name, row in zip(names, measured, strict=False)
    }


def _derived_findings(
    bundle: Bundle, graph: Graph, name: str, session: Session
) -> Iterator[Finding]:
    """Yield where a derived graph is further from its source than its proof says."""
    from persistlib.quantization.agreement import compare
    from persistlib.quantization.bundles import stored_inputs
    from persistlib.quantization.samples import Labelled, drawn

    sources = {source.files[0].blake3: source for source in bundle.manifest.graphs}
    source = sources.get(graph.derived_from)
    if source is None:
        reason = "the graph that it was derived from is not in the bundle"
        yield finding(Code.BEHAVIOUR, name, reason, severity=Severity.WARNING)
        return
    rows: Any = graph.proof.get("outputs")
    limits = {output: row.get("tolerance") for output, row in rows.items()}
    if not any(limits.values()):
        return  # int8: noise is not what its ranges were taken from
    inputs = drawn(session.inputs, stored_inputs(bundle), _SIZES)
    for one in compare(open_graph(bundle, source), session, [Labelled(run) for run in inputs]):
        limit = limits.get(one.seen.name) or 0.0
        if one.seen.relative > limit:
            reason = f"is off its source by {one.seen.relative:.2g}, at most {limit:g} is allowed"
            yield finding(Code.BEHAVIOUR, f"{name}: {one.seen.name}", reason, _DERIVE)


_DERIVE = "derive it again: persistlib convert BUNDLE BUNDLE2"


def _by_torch(
    bundle: Bundle, inputs: Mapping[str, np.ndarray], trust: Collection[str]
) -> dict[str, np.ndarray]:
    from persistlib import examples
    from persistlib.architecture.module_state import tensor_bytes, tensor_of
    from persistlib.dtypes import by_name, of_torch

    model = load_module(bundle, _READING, strict=True, trust=trust)
    order = [spec.name for spec in bundle.manifest.interface.inputs]
    tensors = {}
    for name in sorted(inputs, key=lambda n: order.index(n) if n in order else len(order)):
        array = inputs[name]
        dtype = by_name("numpy", array.dtype.name)
        assert dtype is not None
        data = memoryview(bytearray(np.ascontiguousarray(array).tobytes()))
        tensors[name] = tensor_of(data, dtype, array.shape)
    computed = examples.run(model, tensors)
    arrays = {}
    names = examples.output_names(bundle.manifest.interface, computed)
    for name, tensor in zip(names, computed.values(), strict=True):
        dtype = of_torch(str(tensor.dtype))
        assert dtype is not None
        flat = np.frombuffer(tensor_bytes(tensor), np.uint8)
        arrays[name] = flat.view(dtype.numpy).reshape(tuple(tensor.shape))
    return arrays


def _differences(
    runtime: str,
    computed: Mapping[str, np.ndarray],
    expected: Mapping[str, np.ndarray],
    tolerance: Mapping[str, float],
) -> Iterator[Finding]:
    for name, wanted in expected.items():
        location = f"{runtime}: {name}"
        given = computed.get(name)
        if given is None or given.shape != wanted.shape:
            shape = None if given is None else given.shape
            yield finding(Code.BEHAVIOUR, location, f"shape {shape}, stored {wanted.shape}")
            continue
        difference = relative_difference(given, wanted)
        if not difference <= tolerance.get(name, 0.0):
            yield finding(
                Code.BEHAVIOUR,
                location,
                f"differs by {difference:.2g} of the outputs' scale, "
                f"at most {tolerance.get(name, 0.0):.2g} is allowed",
                "load it with the versions it was saved with",
            )


def relative_difference(given: np.ndarray, wanted: np.ndarray) -> float:
    """Return the largest absolute difference over the largest magnitude wanted; NaN equals NaN."""
    kind = np.complex128 if np.iscomplexobj(wanted) else np.float64
    one, other = given.astype(kind), wanted.astype(kind)
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    if same.all():
        return 0.0
    scale = np.abs(other[np.isfinite(other)]).max(initial=0.0)
    gap = float(np.abs(np.where(same, 0, one - other)).max())
    return gap / float(scale) if scale else float("inf")
