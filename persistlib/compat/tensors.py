"""Rules on the tensors of a model: dtypes that torch or a device there lacks, what it loads how."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from packaging.version import Version

from persistlib.compat import frameworks
from persistlib.compat.offers import offered
from persistlib.compat.recipes import dtypes
from persistlib.compat.severities import TENSORS, torch_severity
from persistlib.dtypes import DType
from persistlib.errors import Code, Severity, finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from persistlib.compat.facts import Facts
    from persistlib.compat.frameworks import Framework
    from persistlib.compat.targets import Target
    from persistlib.errors import Finding

# What a device has no numbers of, by its name: torch's own refusals, "Cannot convert a MPS Tensor
# to float64 dtype as the MPS framework doesn't support float64" (aten/src/ATen/mps/EmptyTensor.cpp)
# and "Trying to convert Float8_e4m3fn to the MPS backend" (aten/src/ATen/native/mps/).
_LACKING = {
    "mps": {
        *(DType.F64, DType.C128, DType.F8_E4M3, DType.F8_E5M2),
        *(DType.F8_E4M3FNUZ, DType.F8_E5M2FNUZ, DType.F8_E8M0),
    }
}
# What a pickle names besides its storage, since storages have no class of their own for them.
_LATE = frozenset(
    {
        *("uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2"),
        *("float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"),
    }
)
_REBUILT = "torch._utils._rebuild_tensor_v3"
# What a release without each of these facts does.
_WITHOUT = {
    "weights_only": "torch.load runs what a pickle says, unless weights_only=True is given",
    "mmap": "torch.load has no mmap: the file is read whole",
    "assign": "load_state_dict has no assign: values are copied, in the module's own dtype",
}
# Ways around weights_only, by the first release without.
_ESCAPES = {
    "2.6": "weights_only=True can be got around by a hostile file (CVE-2025-32434)",
    "2.10": "weights_only=True can be made to write out of bounds (CVE-2026-24747)",
}


def numbers(facts: Facts, target: Target) -> Iterator[Finding]:
    """Yield dtypes of the weights, or that a recipe names, that torch or a device there has not."""
    if facts.format not in TENSORS or facts.runtime == "onnxruntime":
        return
    torch = offered(target).get("torch")
    if torch is not None:
        severity = Severity.WARNING if torch.is_newer else torch_severity(facts, target)
        for name in sorted(_named(facts) - set(torch.facts["dtypes"])):
            first = _first_with(name)
            remedy = f"pip install 'torch>={first}'" if first else _cast(facts)
            reason = f"torch {torch.wanted} has no such dtype"
            yield finding(Code.DTYPE_ABSENT, name, reason, remedy, severity)
    for device in target.accelerators or ():
        for dtype in sorted(facts.dtypes & _LACKING.get(device, set()), key=lambda one: one.name):
            reason = f"the device {device} has no such dtype: the model stays on the CPU there"
            yield finding(Code.DEVICE_DTYPE, dtype.name, reason, _cast(facts), Severity.WARNING)


def _named(facts: Facts) -> set[str]:
    """Return torch's names of all dtypes that a model needs, apart from those that it never has."""
    rows = {dtype.value for dtype in facts.dtypes}
    named = {row.torch or row.torch_pairs for row in rows}
    if facts.manifest is not None:
        unsaved = facts.manifest.state.unsaved_buffers.values()
        named |= {DType[record.dtype].value.torch for record in unsaved}
        named |= dtypes(facts.manifest.architecture)
    return named - {""}


def _first_with(dtype: str) -> str | None:
    for version in frameworks.torch_versions():
        release = frameworks.framework("torch", version)
        if release is not None and dtype in release.facts["dtypes"]:
            return version
    return None


def _cast(facts: Facts) -> str:
    return shlex.join(("persistlib", "convert", facts.source, "OUT.safetensors", "--dtype", "f32"))


def loading(facts: Facts, target: Target) -> Iterator[Finding]:
    """Yield what `torch.load` of the target does otherwise with a file that torch wrote."""
    torch = offered(target).get("torch")
    if torch is None or facts.format != "torch":
        return
    remedy = shlex.join(("persistlib", "convert", facts.source, "OUT.safetensors"))
    for severity, reason in _otherwise(facts, torch):
        yield finding(Code.TORCH_LOAD, f"torch {torch.version}", reason, remedy, severity)


def _otherwise(facts: Facts, torch: Framework) -> Iterator[tuple[Severity, str]]:
    allowed = set(torch.facts["allowed"])
    for name in sorted(dtype.value.torch for dtype in facts.dtypes):
        if name in _LATE and not {_REBUILT, f"torch.{name}"} <= allowed:
            yield Severity.WARNING, f"weights_only=True refuses {name}"
    for fact, reason in _WITHOUT.items():
        if not torch.facts[fact]:
            yield Severity.NOTE, reason
    for first, reason in _ESCAPES.items():
        if Version(torch.version) < Version(first):
            yield Severity.NOTE, reason
