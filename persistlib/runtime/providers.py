"""Execution providers by name: what was asked for, whether this build has it, and the cure."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from persistlib.errors import Code, error

if TYPE_CHECKING:
    from collections.abc import Sequence

CPU = "CPUExecutionProvider"
_SUFFIX = "ExecutionProvider"
# The distribution of ONNX Runtime that has a provider; each stands in place of `onnxruntime`.
_DISTRIBUTIONS = {
    "cuda": "onnxruntime-gpu",
    "tensorrt": "onnxruntime-gpu",
    "openvino": "onnxruntime-openvino",
    "dml": "onnxruntime-directml",
    "qnn": "onnxruntime-qnn",
    "migraphx": "onnxruntime-migraphx",
}


def short(name: str) -> str:
    """Return the short form of a provider's name: `CUDAExecutionProvider` is `cuda`."""
    return name.removesuffix(_SUFFIX).casefold()


def resolve(name: str) -> str:
    """Return the full name of a provider that this build of ONNX Runtime has.

    Raises:
        SessionError: there is no such provider, or this build lacks it.
    """
    import onnxruntime

    known: dict[str, str] = {short(full): full for full in onnxruntime.get_all_providers()}
    wanted = short(name)
    if wanted not in known:
        close = difflib.get_close_matches(wanted, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"one of {', '.join(sorted(known))}"
        raise error(Code.PROVIDER_UNKNOWN, name, "no provider of ONNX Runtime", hint)
    if known[wanted] not in onnxruntime.get_available_providers():
        has = ", ".join(short(full) for full in onnxruntime.get_available_providers())
        raise error(Code.PROVIDER_ABSENT, name, f"this build has {has}", _cure(wanted))
    return known[wanted]


def resolve_all(names: Sequence[str] | None, require: str | None) -> tuple[str, ...]:
    """Return the full names of the providers to open a session with, in order of preference.

    Without a wish it is the CPU, so that a build with more providers gives the same answers. A
    required provider is asked for before the CPU when nothing else was said.

    Raises:
        SessionError: as `resolve`.
        UsageError: the wishes are empty, name one twice, or leave out the required one.
    """
    if names is None:
        wanted = (require, CPU) if require is not None else (CPU,)
        return tuple(dict.fromkeys(resolve(name) for name in wanted))
    if isinstance(names, str):
        names = (names,)
    full = tuple(resolve(name) for name in names)
    if not full or len(set(full)) != len(full):
        raise error(Code.USAGE, "providers", "empty, or one stands twice", "name each one once")
    if require is not None and resolve(require) not in full:
        reason = f"{require} is required but not among the providers"
        raise error(Code.USAGE, "providers", reason, "add it to the providers")
    return full


def _cure(name: str) -> str:
    if (distribution := _DISTRIBUTIONS.get(name)) is None:
        return f"install a build of ONNX Runtime that has {name}, or ask for another provider"
    return f"pip uninstall onnxruntime && pip install {distribution}"
