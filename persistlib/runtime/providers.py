"""Execution providers by name: what was asked for, with which options, and what this build has.

Law: `parse(render(wish)) == wish` for every wish whose options hold no comma.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from persistlib.errors import Code, PersistlibError, error
from persistlib.runtime import builds

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import TypeGuard

CPU = "CPUExecutionProvider"
_SUFFIX = "ExecutionProvider"
# What else people call a provider; the right names are those of ONNX Runtime itself.
_OTHER_NAMES = {
    "directml": "dml",
    "trt": "tensorrt",
    "onednn": "dnnl",
}


class Provider(NamedTuple):
    """A provider to open a session with.

    Attributes:
        name: ONNX Runtime's full name.
        options: the provider's own, as texts.
    """

    name: str
    options: Mapping[str, str] = {}


def short(name: str) -> str:
    """Return the short form of a provider's name: `CUDAExecutionProvider` is `cuda`."""
    lowered = name.removesuffix(_SUFFIX).casefold()
    return _OTHER_NAMES.get(lowered, lowered)


def known() -> dict[str, str]:
    """Return every provider that this release of ONNX Runtime knows, short name to full name."""
    import onnxruntime

    every = (*onnxruntime.get_all_providers(), *onnxruntime.get_available_providers())
    return {short(full): full for full in every}


def available() -> tuple[str, ...]:
    """Return the full names of the providers that this build has, whether they work or not."""
    import onnxruntime

    return tuple(onnxruntime.get_available_providers())


def resolve(name: str) -> str:
    """Return the full name of a provider that this build of ONNX Runtime has.

    Raises:
        SessionError: there is no such provider, or this build lacks it.
    """
    names = known()
    wanted = short(name)
    if wanted not in names:
        close = difflib.get_close_matches(wanted, [*names, *_OTHER_NAMES], n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"one of {', '.join(sorted(names))}"
        raise error(Code.PROVIDER_UNKNOWN, name, "no provider of ONNX Runtime", hint)
    if names[wanted] not in available():
        raise absent(wanted)
    return names[wanted]


def absent(wanted: str) -> PersistlibError:
    """Return the error for a provider that this build lacks: a clash of builds where there is one.

    Args:
        wanted: its short name.
    """
    has = ", ".join(map(short, available()))
    installed = builds.installed()
    cure = builds.cure(wanted, installed)
    if len(installed) > 1:
        reason = f"{builds.told(installed)}; what is left of them has {has}"
        return error(Code.PROVIDER_CLASH, wanted, reason, cure)
    reason = f"this build ({builds.told(installed)}) was made without it; it has {has}"
    return error(Code.PROVIDER_ABSENT, wanted, reason, cure)


def resolve_all(wishes: object, require: str | None) -> tuple[Provider, ...]:
    """Return the providers to open a session with, in order of preference.

    Without a wish it is the CPU, so that a build with more providers gives the same answers. A
    required provider is asked for before the CPU when nothing else was said.

    Args:
        wishes: names, or pairs of a name and a mapping of options; one alone will do.
        require: a provider that must be among them.

    Raises:
        SessionError: as `resolve`.
        UsageError: the wishes are empty, name one twice, or leave out the required one.
    """
    if wishes is None:
        names = (require, CPU) if require is not None else (CPU,)
        return tuple(Provider(name) for name in dict.fromkeys(resolve(name) for name in names))
    made = tuple(Provider(resolve(name), options) for name, options in _pairs(wishes))
    if not made or len({provider.name for provider in made}) != len(made):
        raise error(Code.USAGE, "providers", "empty, or one stands twice", "name each one once")
    if require is not None and resolve(require) not in {provider.name for provider in made}:
        reason = f"{require} is required but not among the providers"
        raise error(Code.USAGE, "providers", reason, "add it to the providers")
    return made


def _pairs(wishes: object) -> list[tuple[str, dict[str, str]]]:
    """Return every wish as a name and options."""
    if isinstance(wishes, str) or _is_pair(wishes):
        wishes = (wishes,)
    if not isinstance(wishes, Sequence):
        raise _misshapen(wishes)
    return [_pair(wish) for wish in wishes]


def _pair(wish: object) -> tuple[str, dict[str, str]]:
    if isinstance(wish, str):
        return wish, {}
    if not _is_pair(wish):
        raise _misshapen(wish)
    return wish[0], {str(key): _text(value) for key, value in wish[1].items()}


def _is_pair(wish: object) -> TypeGuard[tuple[str, Mapping[Any, Any]]]:
    return (
        isinstance(wish, (tuple, list))
        and len(wish) == 2
        and isinstance(wish[0], str)
        and isinstance(wish[1], Mapping)
    )


def _text(value: Any) -> str:
    """Return an option's value as the runtime reads it: it spells truth as 1 and 0."""
    return str(int(value)) if isinstance(value, bool) else str(value)


def _misshapen(wish: object) -> PersistlibError:
    remedy = 'give names, or pairs as ("cuda", {"device_id": 1})'
    return error(Code.USAGE, "providers", f"{wish!r} names no provider", remedy)


def parse(text: str) -> list[tuple[str, dict[str, str]]]:
    """Return what `cuda:device_id=1,gpu_mem_limit=9,cpu` asks for: names, each with its options.

    Raises:
        UsageError: an option stands before every name, or is no KEY=VALUE.
    """
    wishes: list[tuple[str, dict[str, str]]] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, colon, option = part.partition(":")
        if "=" in name:  # another option of the provider before; its value may hold a colon
            name, option = "", part
        elif colon and not option:
            raise _no_option(part)
        if name:
            wishes.append((name, {}))
        if option:
            key, equals, value = option.partition("=")
            if not wishes or not equals or not key:
                raise _no_option(part)
            wishes[-1][1][key] = value
    return wishes


def render(wishes: Iterable[tuple[str, Mapping[str, str]]]) -> str:
    """Return wishes as `parse` reads them."""
    parts: list[str] = []
    for name, options in wishes:
        said = [f"{key}={value}" for key, value in options.items()]
        parts += [f"{name}:{said[0]}", *said[1:]] if said else [name]
    return ",".join(parts)


def _no_option(part: str) -> PersistlibError:
    remedy = "give NAME or NAME:KEY=VALUE, as in cuda:device_id=1,cpu"
    return error(Code.USAGE, "--providers", f"{part!r} is no provider with options", remedy)
