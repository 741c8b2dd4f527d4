"""What the runtime's own profile says of a run: which provider computed for how long."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from persistlib.errors import Code, error
from persistlib.runtime.providers import short

if TYPE_CHECKING:
    from collections.abc import Iterable

    from persistlib.files import StrPath

_KERNEL = "_kernel_time"
_LIMIT = 1 << 29  # bytes; the runtime itself ends a profile after a million events


class Spent(NamedTuple):
    """What a provider did.

    Attributes:
        kernels: how many different operators it computed, after the runtime fused some.
        calls: how often it computed one.
        seconds: of all calls together; on a device, until they were handed over.
    """

    kernels: int
    calls: int
    seconds: float


def read_profile(path: StrPath) -> dict[str, Spent]:
    """Return what each provider did, by short name, the busiest first.

    Raises:
        SessionError: the file is no profile of ONNX Runtime.
    """
    try:
        with open(path, "rb") as file:
            events = json.loads(file.read(_LIMIT))
        return spent(events)
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as fault:
        reason = f"the runtime's profile cannot be read: {fault}"
        raise error(Code.RUN_FAILED, path, reason, "run without --report") from fault


def spent(events: Iterable[Any]) -> dict[str, Spent]:
    """Return what each provider did according to a profile's events."""
    names: dict[str, set[str]] = {}
    calls: dict[str, int] = {}
    micros: dict[str, int] = {}
    for event in events:
        if event.get("cat") != "Node" or not event["name"].endswith(_KERNEL):
            continue
        provider = short(event["args"].get("provider", "")) or "cpu"
        names.setdefault(provider, set()).add(event["name"])
        calls[provider] = calls.get(provider, 0) + 1
        micros[provider] = micros.get(provider, 0) + int(event["dur"])
    return {
        provider: Spent(len(names[provider]), calls[provider], micros[provider] / 1e6)
        for provider in sorted(names, key=lambda name: -micros[name])
    }
