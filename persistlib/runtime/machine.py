"""What this machine can compute with: the builds that are installed, and how each provider does."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from persistlib.errors import Code, Finding, PersistlibError, Severity, finding
from persistlib.runtime import builds, libraries
from persistlib.runtime.placement import (
    broken_cure,
    library_of,
    require_loadable,
    require_runtime,
)
from persistlib.runtime.providers import Provider, available, known, short
from persistlib.runtime.trials import trial


class State(NamedTuple):
    """How a provider does here.

    Attributes:
        name: its short name.
        is_available: whether this build has it.
        is_created: whether a session really has it.
        is_used: whether it was given an operator of a small graph and computed it rightly.
        reason: why not, as far as known.
        remedy: what to do about it.
        missing: libraries that its own library needs and this machine lacks.
    """

    name: str
    is_available: bool
    is_created: bool = False
    is_used: bool = False
    reason: str = ""
    remedy: str = ""
    missing: tuple[str, ...] = ()


class Machine(NamedTuple):
    """The machine's truth.

    Attributes:
        builds: the installed builds of ONNX Runtime.
        version: of the one that is imported.
        cuda: the version of CUDA that it was made for; empty where it was for none.
        providers: every provider that this release knows, those of this build first.
        findings: what is wrong: builds that clash, providers of this build that do not work.
    """

    builds: tuple[builds.Build, ...]
    version: str
    cuda: str
    providers: tuple[State, ...]
    findings: tuple[Finding, ...]


def machine() -> Machine:
    """Return the machine's truth; every provider of this build is tried, in processes of their own.

    Raises:
        SessionError: ONNX Runtime cannot be imported.
    """
    require_runtime()
    import onnxruntime

    installed = builds.installed()
    names = available()
    with ThreadPoolExecutor() as pool:
        tried = tuple(pool.map(_state, names))
    elsewhere = tuple(
        State(name, False, remedy=builds.cure(name, installed))
        for name, full in sorted(known().items())
        if full not in names
    )
    return Machine(
        builds=installed,
        version=onnxruntime.__version__,
        cuda=builds.cuda_version(),
        providers=(*tried, *elsewhere),
        findings=(*_clash(installed), *(_finding(s) for s in tried if not s.is_created)),
    )


def _state(full: str) -> State:
    """Return how a provider of this build does."""
    name = short(full)
    try:
        require_loadable((Provider(full),))
    except PersistlibError as fault:
        lacking = libraries.missing(library_of(name))
        return State(name, True, reason=fault.reason, remedy=fault.remedy, missing=lacking)
    tried = trial(Provider(full))
    remedy = "" if tried.is_created else broken_cure(name, tried.reason)
    return State(name, True, tried.is_created, tried.is_used, tried.reason, remedy)


def _finding(state: State) -> Finding:
    return finding(Code.PROVIDER_BROKEN, state.name, state.reason, state.remedy, Severity.WARNING)


def _clash(installed: tuple[builds.Build, ...]) -> tuple[Finding, ...]:
    if len(installed) < 2:
        return ()
    cure = builds.repair(installed)
    told = builds.told(installed)
    return (finding(Code.PROVIDER_CLASH, "onnxruntime", told, cure, Severity.WARNING),)
