"""A graph derived from a graph, and measured against it.

Laws: the source is left as it is; a derived graph has the source's inputs and outputs, and a proof
that says from what it was derived and how far it is from that; in half precision it is within the
limit of its dtype or there is none; in int8 it says whether it agrees as far as it should; in pure
bfloat16, which nothing here computes, it says that it was not proved.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from persistlib import graph_notes
from persistlib.casting import cast_target
from persistlib.digests import digest
from persistlib.dtypes import DType
from persistlib.errors import Code, error
from persistlib.export.bisection import Graph, locate
from persistlib.export.comparison import TOLERANCE
from persistlib.export.excerpt import value_types
from persistlib.manifest.schema import Interface
from persistlib.quantization import agreement, samples
from persistlib.quantization.folding import fold_constants, fold_norms
from persistlib.quantization.halving import HalfWishes, halved
from persistlib.quantization.inner_values import GraphValues, reach
from persistlib.quantization.integers import OPERATORS, STATIC, is_quantized, quantized
from persistlib.quantization.kernels import split
from persistlib.quantization.noting import noted
from persistlib.quantization.parts import GraphFile, Parts, assemble, take_apart
from persistlib.runtime.session import open_session
from persistlib.runtime.structure import check_graph

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pydantic import JsonValue
    from typing_extensions import Buffer

    from persistlib.casting import CastError
    from persistlib.files import StrPath
    from persistlib.quantization.kernels import Kernels, Split
    from persistlib.quantization.samples import Arrays, Labelled
    from persistlib.runtime.session import Session

# Where int8 falls below these it is marked: of the best class in rows of scores whose classes are
# named, and else of the cosine between centred rows, and between indices scaled to their own size.
TOP1_FLOOR, COSINE_FLOOR = 0.9, 0.95
INT8 = "I8"
_HALVES = (DType.F16, DType.BF16)
_SIZES = (1, 3)
_ATTEMPTS = 8  # operators that are kept in float32 one after the other
_ROUNDS = 5  # of timing, of which the shortest counts


@dataclass(frozen=True, kw_only=True)
class Source:
    """A graph that others are derived from.

    Attributes:
        files: the model first, then its external data.
        precision: dtype that it computes in.
        shown: example inputs by name; empty where none are known.
        interface: preprocessing and class names, for images.
        location: what to name in an error.
    """

    files: Mapping[str, Buffer]
    precision: str
    shown: Arrays = field(default_factory=dict)
    interface: Interface = field(default_factory=Interface)
    location: str = graph_notes.MODEL

    @property
    def digest(self) -> str:
        """BLAKE3 of the model's own file."""
        return digest(memoryview(next(iter(self.files.values()))).cast("B"))

    @property
    def external(self) -> dict[str, memoryview]:
        """The external data by name."""
        _, *names = self.files
        return {name: memoryview(self.files[name]).cast("B") for name in names}

    def proto(self) -> onnx.ModelProto:
        """Return the graph as it stands in its file."""
        data: Any = next(iter(self.files.values()))
        proto: onnx.ModelProto = onnx.ModelProto.FromString(bytes(data))
        return proto


@dataclass(frozen=True, kw_only=True)
class Derived:
    """A derived graph.

    Attributes:
        files: the model first, then its external data.
        ir_version: as read back from the file.
        opsets: domain to version, as read back from the file.
        precision: dtype of its weights; "I8" where they are quantized.
        source: BLAKE3 of the graph that it was derived from.
        proof: how far it is from that.
        casts: by tensor of the state, what a cast changed.
        sizes: bytes of the source and of this one.
        seconds: that a run takes in the source and in this one, of the same inputs; None where it
            cannot be run here.
        rows: how many samples these inputs are.
        remarks: what else should be known of it, a sentence each.
    """

    files: tuple[GraphFile, ...]
    ir_version: int
    opsets: dict[str, int]
    precision: str
    source: str
    proof: dict[str, JsonValue]
    casts: Mapping[str, CastError]
    sizes: tuple[int, int]
    seconds: tuple[float, float] | None = None
    rows: int = 0
    remarks: tuple[str, ...] = ()

    @property
    def measured(self) -> dict[str, dict[str, Any]]:
        """What the proof says of each floating-point output."""
        rows: Any = self.proof.get("outputs", {})
        return {name: row for name, row in rows.items() if "cosine" in row}

    @property
    def external(self) -> dict[str, memoryview]:
        """The external data by name."""
        return {file.name: memoryview(file.data).cast("B") for file in self.files[1:]}


def derive(
    source: Source,
    *,
    dtype: str | None = None,
    quantize: str | None = None,
    calibration: StrPath | None = None,
    kernels: Kernels | None = None,
) -> Derived:
    """Return a graph derived from another one.

    Args:
        source: a graph in float32.
        dtype: "f16" or "bf16".
        quantize: "dynamic" or "static", in place of `dtype`.
        calibration: a folder of images; by default the source's examples.
        kernels: what is to compute in "bf16"; None where its arithmetic stays in float32.

    Raises:
        UsageError: the wishes contradict each other or mean nothing for this graph.
        CompatibilityError: no operator of the graph has a kernel among these.
        ExportError: the derived graph is too far from its source, or cannot be made.
        LossError: a weight has no place in the dtype.
    """
    if (dtype is None) == (quantize is None):
        raise error(Code.USAGE, "dtype, quantize", "give one of the two", "leave one out")
    if source.precision != DType.F32.name:
        reason = f"the graph computes in {source.precision}; others are derived from F32"
        raise error(Code.USAGE, source.location, reason, "derive it from the float32 model")
    if calibration is not None and quantize is None:
        raise error(Code.USAGE, "calibration", "means nothing without quantize", "leave it out")
    work = _Deriving(source, calibration)
    if quantize is not None:
        return work.in_integers(quantize)
    assert dtype is not None
    target = cast_target(dtype)
    if target not in _HALVES:
        raise error(Code.USAGE, f"dtype={dtype}", "no graph is derived in it", "use f16 or bf16")
    return work.in_half(target) if kernels is None else work.in_pure(target, kernels)


class _Deriving:
    """One source, its session, and the inputs that it is measured with."""

    def __init__(self, source: Source, calibration: StrPath | None) -> None:
        self.source = source
        data = next(iter(source.files.values()))
        self.session = open_session(memoryview(data).cast("B"), external=source.external)
        self.proto = source.proto()
        if is_quantized(self.proto):
            reason = "the graph is quantized already"
            raise error(Code.USAGE, source.location, reason, "derive it from the float32 graph")
        self.types = value_types(self.proto)
        notes = {item.key: item.value for item in self.proto.metadata_props}
        self.notes = graph_notes.parse(notes, source.location)
        self.real = self._real(calibration)

    def _real(self, calibration: StrPath | None) -> list[Labelled]:
        """Return inputs that are no noise: the images of a folder, and the examples."""
        shown = self.source.shown
        names = [spec.name for spec in self.session.inputs]
        runs = [samples.Labelled({n: shown[n] for n in names})] if {*names} <= {*shown} else []
        if calibration is None:
            return runs
        if len(names) != 1:
            reason = f"the graph takes {', '.join(names)}; a folder of images gives one input"
            raise error(Code.USAGE, "calibration", reason, "save the bundle with examples of all")
        return samples.images(calibration, self.source.interface, names[0])

    def in_half(self, dtype: DType) -> Derived:
        """Return the graph in half precision.

        Operators are kept in float32 where they alone are too far off; where that does not help,
        only the weights are of half the width.
        """
        inputs = samples.drawn(self.session.inputs, self.source.shown, _SIZES)
        runs = [*map(samples.Labelled, inputs), *self.real]
        limit = TOLERANCE[dtype.name]
        wishes = HalfWishes(
            dtype=dtype,
            computes=dtype is DType.F16,
            state=self._state(),
            types=self.types,
            reach=reach(self.proto, self.source.external, [run.arrays for run in runs]),
        )
        for _ in range(_ATTEMPTS if wishes.computes else 1):
            made, casts = self._half(wishes)
            found = self._compared(made, runs)
            agreement.require_telling_outputs(found, limit)
            if all(one.seen.relative <= limit for one in found):
                return self._derived(made, dtype.name, runs, found, (limit, casts))
            if (worst := self._worst(made, runs, limit)) is None or worst in wishes.kept:
                break
            wishes = replace(wishes, kept=(*wishes.kept, worst))
        wishes = replace(wishes, computes=False)
        made, casts = self._half(wishes)
        found = self._compared(made, runs)
        for one in found:
            if one.seen.relative > limit:
                reason = f"off by {one.seen.relative:.2g} of its spread, at most {limit:g} is"
                remedy = "keep the model in float32, or try --dtype bf16 or --quantize"
                raise error(Code.EXPORT_MISMATCH, one.seen.name, reason, remedy)
        return self._derived(made, dtype.name, runs, found, (limit, casts))

    def in_pure(self, dtype: DType, kernels: Kernels) -> Derived:
        """Return the graph with arithmetic in a dtype that only another machine computes in."""
        opset = take_apart(self.source.files, self.source.location).opset
        parted = split(self.proto.graph.node, opset, kernels)
        if not parted.half:
            names = ", ".join(parted.single) or "any operator of it"
            reason = f"{kernels.told} has no {dtype.value.numpy} kernel for {names} (opset {opset})"
            remedy = "leave pure out: the weights are stored in bf16, and computed with in float32"
            raise error(Code.RUNTIME_KERNEL, self.source.location, reason, remedy)
        wishes = HalfWishes(
            dtype=dtype,
            computes=True,
            state=self._state(),
            types=self.types,
            operators={*parted.half, *parted.moved},
        )
        made, casts = self._half(wishes)
        noted(made, self.source.files, holds_state=True, where=self.source.location)
        files = assemble(made, f"model.{dtype.name.lower()}.onnx")
        facts = check_graph(files[0].data, location=self.source.location)
        return Derived(
            files=files,
            ir_version=facts.ir_version,
            opsets=dict(facts.opsets),
            precision=dtype.name,
            source=self.source.digest,
            proof=agreement.unproved(self.source.digest, f"nothing here runs it: {kernels.told}"),
            casts=casts,
            sizes=(_size(self.source.files.values()), _size(f.data for f in files)),
            remarks=tuple(_said(parted, kernels, dtype)),
        )

    def in_integers(self, mode: str) -> Derived:
        """Return the graph in int8: of the ways to do it the first that agrees, or the best."""
        if mode not in OPERATORS:
            raise error(
                Code.USAGE, f"quantize={mode}", "is no way to", f"use {', '.join(OPERATORS)}"
            )
        if mode == STATIC:
            samples.require_telling([run.arrays for run in self.real], "calibration")
        inputs = samples.drawn(self.session.inputs, self.source.shown, _SIZES)
        runs = self.real or list(map(samples.Labelled, inputs))
        parts = take_apart(self.source.files, self.source.location)
        fold_constants(parts)
        fold_norms(parts)
        best: tuple[float, Parts, list[agreement.Agreement]] | None = None
        for operators in OPERATORS[mode]:
            made = quantized(parts, mode, operators, [run.arrays for run in self.real])
            if not is_quantized(made.proto):
                continue
            found = self._compared(made, runs)
            score = min((self._over(one)[0] for one in found if one.seen.is_float), default=0.0)
            if best is None or score > best[0]:
                best = (score, made, found)
            if score >= 0:
                break
        if best is None:
            reason = "it has no operator with weights that are quantized so"
            raise error(Code.QUANTIZATION, self.source.location, reason, "try --dtype f16")
        return self._derived(best[1], INT8, runs, best[2], (None, {}))

    def _over(self, one: agreement.Agreement) -> tuple[float, str]:
        """Return by how much an output is above its floor, and which floor it is held to."""
        labels = self.source.interface.labels
        if labels is not None and one.top1 is not None:
            return one.top1 - TOP1_FLOOR, f"top-1 agreement {one.top1:.3g}, at least {TOP1_FLOOR}"
        scaled = one.columns.cosine
        word, cosine = "cosine", one.cosine
        if scaled is not None and scaled < cosine:
            word, cosine = "cosine of parts scaled to their own size", scaled
        return cosine - COSINE_FLOOR, f"{word} {cosine:.3g}, at least {COSINE_FLOOR}"

    def _state(self) -> frozenset[str]:
        names = self.notes.state
        if names is None:
            names = tuple(tensor.name for tensor in self.proto.graph.initializer)
        return frozenset(names) - {*self.notes.views}

    def _half(self, wishes: HalfWishes) -> tuple[Parts, dict[str, CastError]]:
        made = take_apart(self.source.files, self.source.location)
        casts = halved(made, wishes)
        return made, casts

    def _compared(self, made: Parts, runs: Sequence[Labelled]) -> list[agreement.Agreement]:
        return agreement.compare(self.session, _session(assemble(made, _NAME)), runs)

    def _worst(self, made: Parts, runs: Sequence[Labelled], limit: float) -> str | None:
        """Return the first operator that is too far off by itself."""
        files = assemble(made, _NAME)
        proto = onnx.ModelProto.FromString(bytes(files[0].data))
        external = {file.name: memoryview(file.data).cast("B") for file in files[1:]}
        values = GraphValues(self.proto, self.source.external, runs[0].arrays)
        own = {node.name for node in self.proto.graph.node}
        found = locate(Graph(proto, external, {}, limit), runs[0].arrays, values)
        return found.node if found is not None and found.node in own else None

    def _derived(
        self,
        made: Parts,
        precision: str,
        runs: Sequence[Labelled],
        found: Sequence[agreement.Agreement],
        given: tuple[float | None, Mapping[str, CastError]],
    ) -> Derived:
        limit, casts = given
        noted(made, self.source.files, holds_state=precision != INT8, where=self.source.location)
        files = assemble(made, f"model.{precision.lower()}.onnx")
        rows = agreement.rows_of(found, limit)
        session = _session(files)
        proof = agreement.record(runs, self.source.digest, rows, session.providers[0])
        below = [self._over(one) for one in found if one.seen.is_float]
        if limit is None and (faults := [text for over, text in below if over < 0]):
            proof |= {"proved": False, "reason": faults[0]}
        return Derived(
            files=files,
            ir_version=session.facts.ir_version,
            opsets=dict(session.facts.opsets),
            precision=precision,
            source=self.source.digest,
            proof=proof,
            casts=casts,
            sizes=(_size(self.source.files.values()), _size(f.data for f in files)),
            seconds=(_shortest(self.session, runs[0].arrays), _shortest(session, runs[0].arrays)),
            rows=max((len(a) for a in runs[0].arrays.values() if a.ndim), default=1),
        )


def _said(parted: Split, kernels: Kernels, dtype: DType) -> Iterator[str]:
    sides = (
        (f"in {dtype.value.numpy} by {kernels.told}", parted.half),
        ("in float32, for want of a kernel there", parted.single),
    )
    for text, counts in sides:
        if counts:
            each = (f"{name} ({count})" for name, count in sorted(counts.items()))
            yield f"{text}: {', '.join(each)}"


_NAME = "derived.onnx"


def _session(files: Sequence[GraphFile]) -> Session:
    model, *external = files
    views = {file.name: memoryview(file.data).cast("B") for file in external}
    return open_session(model.data, external=views)


def _size(buffers: Any) -> int:
    return sum(memoryview(buffer).nbytes for buffer in buffers)


def _shortest(session: Session, arrays: Arrays) -> float:
    taken: list[float] = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        session.run(dict(arrays))
        taken.append(time.perf_counter() - start)
    return float(np.min(taken))
