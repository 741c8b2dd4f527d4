"""Verdicts on graphs: findings from what a release of ONNX Runtime refuses.

Where the target is here, the running release is asked for its kernels; any other is looked up in
the shipped table. What neither has is judged by the nearest release, and said to be so.
"""

from __future__ import annotations

import platform
from collections import defaultdict
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from packaging.version import InvalidVersion, Version

from persistlib.compat import live, releases
from persistlib.compat.remedies import converted
from persistlib.compat.walk import Cause, causes
from persistlib.errors import Code, Finding, Severity, error, finding
from persistlib.installed import is_importable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import onnx

    from persistlib.compat.facts import Facts
    from persistlib.compat.targets import Target

_PACKAGE = "onnxruntime"
_WITH_GRAPHS = ("bundle", "onnx")
_CODES = {
    "ir": Code.GRAPH_VERSION,
    "opset": Code.GRAPH_VERSION,
    "operator": Code.RUNTIME_OPERATOR,
    "kernel": Code.RUNTIME_KERNEL,
    "schema": Code.RUNTIME_TYPES,
    "types": Code.RUNTIME_TYPES,
}
# The machines for which the table was taken; others may have a few kernels more.
_MACHINES = ("x86_64", "AMD64")


class Runtime(NamedTuple):
    """A release to check against.

    Attributes:
        release: what it knows.
        wanted: the version that was asked for.
        exact: whether the release is the one that was asked for.
        is_here: whether it runs here.
    """

    release: releases.Release
    wanted: str
    exact: bool
    is_here: bool = False


def runtime_of(target: Target) -> Runtime | None:
    """Return the runtime of a target, or None where the target has none.

    Raises:
        UsageError: its version is none.
    """
    if target.is_here:
        return _here() if is_importable(_PACKAGE) else None
    wanted = target.version(_PACKAGE)
    if wanted is None:
        return None
    try:
        Version(wanted)
    except InvalidVersion as fault:
        where = f"{_PACKAGE}=={wanted}"
        raise error(Code.USAGE, where, "is no version", "write onnxruntime==1.17.3") from fault
    known = releases.nearest(wanted)
    return Runtime(releases.release(known), wanted, Version(known) == Version(wanted))


@cache
def _here() -> Runtime:
    """Return the running release: its own kernels, and its ceilings as the table has them."""
    version = live.version()
    known = releases.release(releases.nearest(version))
    exact = Version(known.version) == Version(version)
    # Listing schemas takes longer than all else, and those of a known release are in the table.
    kernels = live.kernels()
    schemas = known.rows["schemas"] if exact else live.schemas()
    if kernels is None or not schemas:
        return Runtime(known, version, exact, is_here=True)
    rows = {"kernels": kernels, "schemas": schemas}
    own = releases.Release(version, known.ir, known.opsets, known.unknown, rows)
    return Runtime(own, version, exact, is_here=True)


def kernels(facts: Facts, target: Target) -> Iterator[Finding]:
    """Yield what the target's ONNX Runtime refuses of a model's graphs.

    It is an error for a bare graph, and for the first graph of a bundle where the target has a
    runtime and no torch; else the bundle can still be used, and it is a warning.

    Raises:
        UsageError: the target's version of ONNX Runtime is none.
        PersistlibError: a graph cannot be read, or a walk would take too long.
    """
    if facts.format not in _WITH_GRAPHS or (facts.manifest and not facts.manifest.graphs):
        return
    if (runtime := runtime_of(target)) is None:
        return
    has_torch = facts.manifest is not None and target.version("torch") is not None
    for place, model in enumerate(facts.structures()):
        severity = Severity.WARNING if place or has_torch else Severity.ERROR
        yield from graph_findings(model, runtime, facts, severity)
    yield from _unproved(runtime)


def absent(facts: Facts, target: Target) -> Iterator[Finding]:
    """Yield that a model has no graph, where the target has a runtime for graphs and no torch.

    Here it is not said: what is absent is told by what the model requires.
    """
    has_graph = facts.manifest.graphs if facts.manifest is not None else facts.format == "onnx"
    version = target.version(_PACKAGE)
    if target.is_here or has_graph or version is None or target.version("torch") is not None:
        return
    reason = f"no graph, which onnxruntime {version} needs, and no torch is named"
    yield finding(Code.GRAPH_ABSENT, facts.source, reason, converted(facts, _PACKAGE, version))


def graph_findings(
    model: onnx.ModelProto, runtime: Runtime, facts: Facts, severity: Severity = Severity.ERROR
) -> list[Finding]:
    """Return why a runtime refuses a model; nothing where it makes a session of it.

    Args:
        model: its large tensors may be without values.
        runtime: to check against.
        facts: of the model that it is the graph of, for the remedy.
        severity: of what is refused.

    Raises:
        FormatError: more nodes than a walk may take, or functions that call themselves.
    """
    found = causes(model, runtime.release)
    newer = _first_that_takes(model, runtime.release.version) if found else None
    groups = [*_grouped(found)]
    return [_finding(group, runtime, facts, severity, newer=newer) for group in groups]


def _grouped(found: Sequence[Cause]) -> Iterator[list[Cause]]:
    groups: dict[tuple[str, str, str], list[Cause]] = defaultdict(list)
    for cause in found:
        groups[cause.kind, cause.operator, cause.reason].append(cause)
    yield from groups.values()


def _finding(
    group: list[Cause], runtime: Runtime, facts: Facts, severity: Severity, *, newer: str | None
) -> Finding:
    first = group[0]
    where = f"{first.node} ({first.operator})" if first.operator else first.node or "graph"
    more = f" (and {len(group) - 1} more)" if len(group) > 1 else ""
    later = f"; {newer} and later take the graph" if newer else ""
    return finding(
        _CODES[first.kind],
        f"{where}{more}",
        f"{_PACKAGE} {runtime.release.version}: {first.reason}{later}",
        _remedy(runtime, facts, newer),
        severity,
    )


def _remedy(runtime: Runtime, facts: Facts, newer: str | None) -> str:
    """Return the command that mends it: here a newer release if one will do, else a conversion."""
    if runtime.is_here and newer:
        return f"pip install '{_PACKAGE}>={newer}'"
    return converted(facts, _PACKAGE, runtime.wanted)


def _unproved(runtime: Runtime) -> Iterator[Finding]:
    if not runtime.exact:
        reason = f"{runtime.wanted} is not in the table; judged as {runtime.release.version}"
        yield finding(
            Code.RUNTIME_UNKNOWN,
            _PACKAGE,
            f"not proved: {reason}",
            "pip install --upgrade persistlib, whose table may have it",
            Severity.WARNING,
        )
    if platform.machine() not in _MACHINES:
        reason = "the table is of x86-64; here a few kernels more may be there"
        yield finding(Code.RUNTIME_UNKNOWN, platform.machine(), reason, "", Severity.NOTE)


def _first_that_takes(model: onnx.ModelProto, version: str) -> str | None:
    """Return the first release after a version from which on releases take a model, or None.

    What a release takes later ones take, apart from few; so the first is looked for by halves.
    """
    later = [known for known in releases.versions() if Version(known) > Version(version)]
    if not later or causes(model, releases.release(later[-1])):
        return None
    low, high = 0, len(later) - 1
    while low < high:
        middle = (low + high) // 2
        if causes(model, releases.release(later[middle])):
            low = middle + 1
        else:
            high = middle
    return later[high]
