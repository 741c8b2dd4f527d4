"""Recomputing the stored example outputs, in every runtime that is here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from persistlib.errors import Code, Severity, finding
from persistlib.installed import is_importable
from persistlib.loading import Reading, load_module, load_session

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from persistlib.bundle import Bundle
    from persistlib.errors import Finding

_READING = Reading(mapped=True, verify=True)
_INPUT, _OUTPUT = "input.", "output."


def behaviour_findings(bundle: Bundle, *, trust: Collection[str]) -> tuple[Finding, ...]:
    """Return every stored output that a runtime computes otherwise; nothing stored is a warning."""
    examples = bundle.manifest.examples
    if examples is None:
        reason = "no example inputs were stored, so nothing can be recomputed"
        remedy = "save it with example_inputs="
        return (finding(Code.BEHAVIOUR, bundle.path, reason, remedy, Severity.WARNING),)
    reader = bundle.reader(examples.files[0])
    names = [entry.name for entry in reader.entries]
    stored = {name: reader.read(name) for name in names}
    inputs = {n.removeprefix(_INPUT): a for n, a in stored.items() if n.startswith(_INPUT)}
    expected = {n.removeprefix(_OUTPUT): a for n, a in stored.items() if n.startswith(_OUTPUT)}
    found: tuple[Finding, ...] = ()
    if is_importable("torch"):
        computed = _by_torch(bundle, inputs, trust)
        found += tuple(_differences("torch", computed, expected, examples.tolerance))
    if bundle.manifest.graphs:
        session = load_session(bundle, _READING, providers=None, require=None, threads=None)
        computed = session.run(inputs)
        found += tuple(_differences("onnxruntime", computed, expected, examples.tolerance))
    return found


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
    for name, tensor in computed.items():
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
