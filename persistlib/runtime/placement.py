"""Which provider computes what, and whether that is what was asked for.

Law: a session that comes out of `require_placed` has every provider that was asked for, and gave
the required one its share; a session of the CPU alone never passes for another.
"""

from __future__ import annotations

import importlib
from collections import Counter
from typing import TYPE_CHECKING, Any

from persistlib.errors import Code, PersistlibError, error
from persistlib.runtime import builds, libraries
from persistlib.runtime.providers import CPU, absent, available, resolve, short
from persistlib.runtime.refusals import operator_dtypes
from persistlib.runtime.trials import trial
from persistlib.wording import first_line

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from persistlib.runtime.providers import Provider

Assigned = dict[str, Counter[str]]
_NAMED = 6  # operators to name in a message
_LIBRARY = "libonnxruntime_providers_{}.so"


def assigned(opened: Any) -> Assigned | None:
    """Return the operators that each provider was given, by short name; None where not told."""
    if not hasattr(opened, "get_provider_graph_assignment_info"):
        return None
    given: Assigned = {}
    for part in opened.get_provider_graph_assignment_info():
        counts = given.setdefault(short(part.ep_name), Counter())
        counts.update(node.op_type for node in part.get_nodes())
    return given


def require_runtime() -> None:
    """Refuse to go on where ONNX Runtime cannot be imported.

    Raises:
        SessionError: it is not installed, or what is installed is broken; with the cause.
    """
    try:
        importlib.import_module("onnxruntime")
    except Exception as fault:
        installed = builds.installed()
        reason = f"{builds.told(installed)}, and cannot be imported: {first_line(fault)}"
        code = Code.PROVIDER_CLASH if len(installed) > 1 else Code.SESSION_FAILED
        raise error(code, "onnxruntime", reason, builds.repair(installed)) from fault


def require_loadable(providers: Sequence[Provider]) -> None:
    """Refuse a provider whose libraries this machine lacks, before the runtime tries them.

    Raises:
        SessionError: it lacks some; all are named.
    """
    import onnxruntime

    for provider in providers:
        name = short(provider.name)
        if name in ("cuda", "tensorrt") and hasattr(onnxruntime, "preload_dlls"):
            builds.quietly(onnxruntime.preload_dlls)
        if lacking := libraries.missing(library_of(name)):
            raise _lacking(name, lacking)


def library_of(name: str) -> str:
    """Return the path of a provider's own library, by its short name; nothing need stand there."""
    return builds.library(_LIBRARY.format(name))


def _lacking(name: str, lacking: tuple[str, ...]) -> PersistlibError:
    version = builds.cuda_version()
    reason = f"its library needs {', '.join(lacking)}, which this machine does not have"
    reason += f" (this build is made for CUDA {version})" if version else ""
    cure = libraries.cure_of(lacking, version)
    installed = builds.installed()
    if len(installed) > 1:
        reason = f"{builds.told(installed)}; {reason}"
        return error(
            Code.PROVIDER_CLASH, name, reason, f"{builds.cure(name, installed)}; then {cure}"
        )
    return error(Code.PROVIDER_BROKEN, name, reason, f"{cure}; or ask for the cpu")


def require_placed(
    opened: Any,
    providers: Sequence[Provider],
    require: str | None = None,
    min_share: float | None = None,
    model: bytes = b"",
) -> None:
    """Refuse a session that is not what was asked for.

    Args:
        opened: the session.
        providers: that were asked for.
        require: the provider that must compute.
        min_share: the part of all operators that it must be given, from 0 to 1; None for one.
        model: the graph, from which a message takes dtypes.

    Raises:
        SessionError: a provider was left out, or the required one got less; with the cause.
    """
    has = {short(name) for name in opened.get_providers()}
    for provider in providers:
        if short(provider.name) not in has:
            raise left_out(provider)
    if require is None:
        return
    wanted = short(resolve(require))
    given = assigned(opened)
    if given is None:
        if wanted != short(CPU) and CPU in {provider.name for provider in providers}:
            reason = "this release of ONNX Runtime does not tell which operators it was given"
            remedy = f"pip install --upgrade it, or ask for {wanted} without the cpu beside it"
            raise error(Code.PROVIDER_UNUSED, wanted, reason, remedy)
        return
    total, own = _counted(given), sum(given.get(wanted, Counter()).values())
    if not total and wanted == short(CPU):  # folding left nothing to compute, on any provider
        return
    if not own or (min_share is not None and own < min_share * total):
        raise _too_little(wanted, given, min_share, model)


def _counted(given: Assigned) -> int:
    return sum(sum(counts.values()) for counts in given.values())


def require_share(min_share: object, require: str | None) -> None:
    """Refuse a share that cannot mean anything.

    Raises:
        UsageError: it is no part of a whole, or nobody's.
    """
    if min_share is None:
        return
    if isinstance(min_share, bool) or not isinstance(min_share, (int, float)):
        raise error(Code.USAGE, "min_share", f"{min_share!r} is no number", "give 0 to 1")
    if not 0 <= min_share <= 1:
        raise error(Code.USAGE, "min_share", f"{min_share} is no part of 1", "give 0 to 1")
    if require is None:
        reason = "it does not say of which provider"
        raise error(Code.USAGE, "min_share", reason, "name it with require")


def _too_little(
    wanted: str, given: Assigned, min_share: float | None, model: bytes
) -> PersistlibError:
    total = _counted(given)
    own = sum(given.get(wanted, Counter()).values())
    dtypes = operator_dtypes(model)
    others = "; ".join(f"{n} has {_shown(c, dtypes)}" for n, c in given.items() if n != wanted)
    others = others or "folding constants left nothing to compute"
    reason = f"it was given {own} of {total} operators"
    if min_share is not None and own:
        reason += f", less than {min_share:.0%}"
    lacks = f"{wanted} has no kernel for them, or none of these dtypes"
    remedy = f"use a graph without what {wanted} lacks, or drop require"
    if own:
        remedy = f"lower min_share, or use a graph without what {wanted} lacks"
    return error(Code.PROVIDER_UNUSED, wanted, f"{reason}: {others} ({lacks})", remedy)


def _shown(counts: Mapping[str, int], dtypes: Mapping[str, Sequence[str]]) -> str:
    """Return operators with their dtypes and how many there are of each, the most first."""
    most = Counter(counts).most_common()
    told = ", ".join(
        f"{count} {name}" + (f" of {', '.join(dtypes[name])}" if dtypes.get(name) else "")
        for name, count in most[:_NAMED]
    )
    return told + (f" and {len(most) - _NAMED} kinds more" if len(most) > _NAMED else "")


def left_out(provider: Provider) -> PersistlibError:
    """Return the error for a provider that the runtime did not put into a session, with the cause.

    The runtime says it to the standard error alone; so it is asked again, in another process.
    """
    name = short(provider.name)
    if provider.name not in available():
        return absent(name)
    installed = builds.installed()
    if len(installed) > 1:
        reason = builds.told(installed)
        return error(Code.PROVIDER_CLASH, name, reason, builds.cure(name, installed))
    tried = trial(provider)
    if not tried.is_created:
        return error(Code.PROVIDER_BROKEN, name, tried.reason, broken_cure(name, tried.reason))
    reason = tried.reason or "the runtime left it out of this session, and does not say why"
    remedy = 'see "persistlib providers", and whether its options fit this graph'
    return error(Code.PROVIDER_UNUSED, name, reason, remedy)


def broken_cure(name: str, reason: str) -> str:
    """Return what to do where a provider of this build does not work."""
    if name in ("cuda", "tensorrt"):
        if not libraries.is_there("libcuda.so.1"):
            return (
                "install the NVIDIA driver (this machine has no libcuda.so.1; in a container, start"
                " it with the GPU: docker run --gpus all), or ask for the cpu"
            )
        if "driver" in reason.casefold():
            return f"update the NVIDIA driver: CUDA {builds.cuda_version()} needs a newer one"
    return f'mend what it names, or ask for the cpu; "persistlib providers" tries {name} again'


def not_alone(
    providers: Sequence[Provider], given: Assigned | None, model: bytes
) -> PersistlibError:
    """Return the error for providers that were asked for alone and do not compute the whole graph.

    Args:
        providers: those that were asked for.
        given: what they and the CPU are given together; None where not known.
        model: the graph, from which the message takes dtypes.
    """
    dtypes = operator_dtypes(model)
    names = [short(provider.name) for provider in providers]
    rest = "; ".join(
        _shown(counts, dtypes) for name, counts in (given or {}).items() if name not in names
    )
    reason = f"no kernel, or none of these dtypes, for {rest or 'some operators'}"
    remedy = 'add "cpu" to the providers: it computes those'
    return error(Code.PROVIDER_UNUSED, ", ".join(names), reason, remedy)


def at_fault(providers: Sequence[Provider], reason: str) -> PersistlibError:
    """Return the error for providers that fail on a graph that the CPU opens.

    Args:
        providers: those that were asked for.
        reason: what the runtime says.
    """
    names = ", ".join(short(provider.name) for provider in providers)
    options = [
        f"{key}={value}" for provider in providers for key, value in provider.options.items()
    ]
    remedy = "the cpu opens this graph: ask for it, or for another release of the provider"
    if options:
        remedy = f"see whether these options are right: {', '.join(options)}; {remedy}"
    return error(Code.PROVIDER_UNUSED, names, reason, remedy)
