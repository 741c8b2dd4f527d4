"""The proof that a graph computes what the module computes, on the very bytes to be published.

Laws: a graph whose outputs differ from the module's by more than the tolerance has no proof, and a
module whose outputs would hide a difference has none either; the same module proved twice gives the
same proof.
"""

from __future__ import annotations

import math
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import onnx

from persistlib.digests import PREFIX, digest
from persistlib.dtypes import DType
from persistlib.errors import Code, ExportError, PersistlibError, SessionError, error
from persistlib.export.beyond import require_right_beyond
from persistlib.export.blame import blamed
from persistlib.export.calling import call
from persistlib.export.capture import summary
from persistlib.export.comparison import INTEGERS, TOLERANCE, Observed, degenerate
from persistlib.export.drawing import DRAWS, draw, extents_of_runs
from persistlib.export.reach import out_of_reach
from persistlib.export.state import array_of, bytes_of, dtype_of
from persistlib.runtime.refusals import LOCATION
from persistlib.runtime.session import open_session

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from pydantic import JsonValue

    from persistlib.export.calling import Named
    from persistlib.export.onnx_export import Exported
    from persistlib.runtime.session import Session

REASON = "two runtimes sum in different orders; the error grows with the dtype's rounding step"
_BATCHES = (1, 3)
_UNTAKEN = "leave the axis fixed (--dynamic none), or give example inputs that it was made for"


# What the runtime's CPU provider computes in; a graph of another precision may stay unproved.
_COMPUTED = frozenset({"F64", "F32", "F16"})
_NO_KERNEL = {Code.SESSION_FAILED.identifier, Code.OPERATOR_UNSUPPORTED.identifier}


class _Run(NamedTuple):
    """Inputs of one batch size, the module's outputs, and those for other such inputs."""

    inputs: tuple[torch.Tensor, ...]
    expected: Named
    other: Named


class _Trial(NamedTuple):
    """What is tried: a module, its graph, and with which inputs; no sizes where none is free."""

    model: torch.nn.Module
    exported: Exported
    seed: int
    sizes: tuple[int, ...]


def prove(
    model: torch.nn.Module,
    exported: Exported,
    *,
    seed: int = 0,
    batch_sizes: Sequence[int] = _BATCHES,
    tolerance: Mapping[str, float] | None = None,
    timeout: float | None = None,
) -> dict[str, JsonValue]:
    """Return the proof as the manifest holds it.

    Args:
        model: the module that was exported; left as it is.
        exported: its graph.
        seed: of the inputs, which are drawn from the exported example inputs.
        batch_sizes: each is tried, where the batch is free.
        tolerance: largest error over the spread by dtype, in place of `TOLERANCE`'s.
        timeout: seconds that one run of the graph may take.

    Returns:
        The proof; `proved` is false with a reason where this machine cannot compute in the graph's
        precision, which is no fault of the graph.

    Raises:
        ExportError: the outputs differ, or prove nothing, or the graph fails where the module
            does not.
        SessionError: the runtime refuses the graph, or a run takes too long.
    """
    try:
        session = open_session(exported.files[0].data, external=exported.external)
    except SessionError as fault:
        if fault.code not in _NO_KERNEL or exported.precision in _COMPUTED:
            raise _unmade(fault, exported) from fault.__cause__
        return {"proved": False, "reason": fault.reason, "versions": _versions()}
    session.timeout = timeout
    is_free = any(isinstance(extent, str) for spec in exported.inputs for extent in spec.shape)
    trial = _Trial(model, exported, seed, tuple(batch_sizes) if is_free else ())
    limits = {**TOLERANCE, **(tolerance or {})}
    telling, safe = DRAWS
    try:
        return _proof(session, trial, telling, limits)
    except ExportError as fault:
        if fault.code != Code.EXPORT_DEGENERATE.identifier:
            raise
    return _proof(session, trial, safe, limits)


def _unmade(fault: SessionError, exported: Exported) -> PersistlibError:
    """Return the fault; of a graph made just now, what it is to the caller."""
    is_graph = (fault.code, fault.location) == (Code.SESSION_FAILED.identifier, LOCATION)
    if not is_graph or exported.program is None:
        return fault
    reason = f"the runtime refuses the graph made of the module: {fault.reason}"
    remedy = "write the operator in another way, or save the model without a graph"
    return error(Code.EXPORT_FAILED, fault.location, reason, remedy)


def _proof(
    session: Session, trial: _Trial, kind: str, limits: Mapping[str, float]
) -> dict[str, JsonValue]:
    """Return the proof by inputs of one kind.

    Raises:
        ExportError: as `prove`.
    """
    extents = extents_of_runs(
        trial.exported.examples,
        trial.exported.inputs,
        trial.sizes,
        lambda extents: call(trial.model, _drawn(trial, kind, extents, (0, 0))),
    )
    runs = _runs(trial, kind, extents)
    try:
        rows = _judged(session, trial, runs, limits)
    except ExportError as fault:
        inner = limits.get(trial.exported.precision, limits["BF16"])
        inputs = [run.inputs for run in runs]
        if (told := blamed(fault, trial.model, trial.exported, inputs, inner)) is fault:
            raise
        raise told from fault
    untried: list[JsonValue] = require_right_beyond(
        trial.exported,
        session,
        lambda extents: _drawn(trial, kind, extents, (0, 0)),
        lambda inputs: call(trial.model, inputs),
        lambda name, values: _limit(dtype_of(values, name), trial.exported.precision, limits),
    )
    hashes = "".join(digest(bytes_of(tensor)) for run in runs for tensor in run.inputs)
    return {
        "proved": True,
        "seed": trial.seed,
        "inputs": {"drawn": kind, "digest": PREFIX + digest(hashes.encode())},
        "batch_sizes": list(trial.sizes),
        **_other_axes(extents),
        **({"untried": untried} if untried else {}),
        "outputs": rows,
        "reason": REASON,
        "provider": session.providers[0],
        "versions": _versions(),
    }


def _judged(
    session: Session, trial: _Trial, runs: Sequence[_Run], limits: Mapping[str, float]
) -> dict[str, JsonValue]:
    """Return what the manifest says of each output.

    Raises:
        ExportError: as `prove`.
    """
    observed = _observe(session, runs)
    rows: dict[str, JsonValue] = {}
    constant = _constant(observed, trial.exported)
    for seen in observed:
        limit = _limit(seen.dtype, trial.exported.precision, limits)
        if seen.name not in constant:
            seen.judge(limit)
        rows[seen.name] = _row(seen, limit)
    if not any(seen.response for seen in observed):
        raise degenerate("outputs", "no output changes with the inputs")
    return rows


def _constant(observed: Sequence[Observed], exported: Exported) -> frozenset[str]:
    """Return the outputs that no input can change, and that are the module's bit for bit."""
    still = [seen.name for seen in observed if not seen.response and not seen.error]
    if not still:
        return frozenset()
    data: Any = exported.files[0].data  # protobuf parses any buffer, and says bytes
    return out_of_reach(onnx.ModelProto.FromString(data).graph) & frozenset(still)


def _other_axes(extents: Sequence[Mapping[str, int]]) -> dict[str, JsonValue]:
    """Return what a proof says of the free axes beside the batch, which comes first in each run."""
    names = list(extents[0])[1:]
    tried: dict[str, JsonValue] = {name: [run[name] for run in extents] for name in names}
    return {"extents": tried} if tried else {}


def _runs(trial: _Trial, kind: str, sizes: Sequence[Mapping[str, int]]) -> list[_Run]:
    """Return a run for each of some extents of the free axes, every output of the module finite.

    Raises:
        ExportError: the module takes no such inputs, or an output is not finite.
    """
    runs: list[_Run] = []
    for index, extents in enumerate(sizes):
        first, second = (_drawn(trial, kind, extents, (index, take)) for take in range(2))
        try:
            run = _Run(first, call(trial.model, first), call(trial.model, second))
        except Exception as fault:
            told = ", ".join(f"{name} {extent}" for name, extent in extents.items())
            reason = f"the module raised{f' with {told}' if told else ''}: {summary(fault)}"
            raise error(Code.EXPORT_DEGENERATE, "outputs", reason, _UNTAKEN) from fault
        for name, tensor in (*run.expected.items(), *run.other.items()):
            if not np.all(np.isfinite(array_of(tensor, name).astype(np.complex128))):
                raise degenerate(name, "holds NaN or infinity")
        runs.append(run)
    return runs


def _drawn(
    trial: _Trial, kind: str, extents: Mapping[str, int], take: tuple[int, int]
) -> tuple[torch.Tensor, ...]:
    exported = trial.exported
    seed = (trial.seed, *take)
    return draw(exported.examples, exported.inputs, kind=kind, extents=extents, seed=seed)


def _observe(session: Session, runs: Sequence[_Run]) -> list[Observed]:
    """Run the graph on every input and return what was seen of each output.

    Raises:
        ExportError: the graph fails, or gives another dtype or shape.
    """
    names = [spec.name for spec in session.outputs]
    observed: list[Observed] = []
    for run in runs:
        arrays = [array_of(tensor, "inputs") for tensor in run.inputs]
        try:
            given = session.run(arrays)
        except SessionError as fault:
            if fault.code == Code.RUN_TIMEOUT.identifier:
                raise
            shapes = ", ".join(str(array.shape) for array in arrays)
            reason = f"the graph fails at {shapes}, the module does not: {fault.reason}"
            remedy = "export a fixed batch, or save the model without a graph"
            raise error(Code.EXPORT_MISMATCH, "inputs", reason, remedy) from fault
        pairs = zip(run.expected.values(), run.other.values(), strict=True)
        for index, (name, (expected, other)) in enumerate(zip(names, pairs, strict=True)):
            if index == len(observed):
                observed.append(Observed(name, dtype_of(expected, name)))
            observed[index].add(array_of(expected, name), array_of(other, name), given[name])
    return observed


def _limit(dtype: DType, precision: str, limits: Mapping[str, float]) -> float:
    """Return the tolerance of the coarser of the state's and the output's dtype."""
    if not dtype.is_float:
        return INTEGERS
    coarser = min(DType[precision], dtype, key=lambda dtype: dtype.itemsize)
    return limits.get(coarser.name, limits["BF16"])


def _row(seen: Observed, tolerance: float) -> dict[str, JsonValue]:
    """Return what the manifest says of an output.

    The error is rounded up to a power of ten: its digits below depend on the machine's mood (where
    memory was aligned), and two saves of one model are to be equal.
    """
    error = 10.0 ** math.ceil(math.log10(seen.relative)) if seen.relative else 0.0
    return {"error": error, "tolerance": tolerance, "dtype": seen.dtype.name}


def _versions() -> dict[str, JsonValue]:
    return {package: version(package) for package in ("onnx", "onnxruntime", "torch")}
