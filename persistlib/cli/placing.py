"""What ran where, and for how long: `persistlib run --report`."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from persistlib.cli.answer import Fields, Table
from persistlib.cli.text import number, percent
from persistlib.runtime import profiles, providers
from persistlib.wording import counted

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from persistlib.cli.answer import JSON, Block
    from persistlib.runtime.profiles import Spent
    from persistlib.runtime.session import Session

_KINDS = 6  # of operators that a row names


class Report:
    """What is measured of one session.

    Attributes:
        prefix: the beginning of the path of the runtime's profile.
        opening: seconds until the session was open.
        running: seconds of all runs, preparation of images included.
        spent: what each provider did.
    """

    def __init__(self, folder: str) -> None:
        self.prefix = os.path.join(folder, "profile")
        self.opening = self.running = 0.0
        self.spent: Mapping[str, Spent] = {}
        self._start = time.perf_counter()

    def opened(self) -> None:
        """Note that the session is open."""
        self.opening = time.perf_counter() - self._start
        self._start = time.perf_counter()

    def ran(self, session: Session) -> None:
        """Note that everything was computed, and read what the runtime measured."""
        self.running = time.perf_counter() - self._start
        self.spent = profiles.read_profile(session.end_profile())

    def data(self, session: Session, asked: object) -> JSON:
        """Return the report as JSON."""
        return {
            "asked": [*_names(asked)],
            "available": [providers.short(name) for name in providers.available()],
            "created": [*session.providers],
            "assigned": None
            if session.assigned is None
            else {name: dict(counts) for name, counts in session.assigned.items()},
            "seconds": {"open": self.opening, "run": self.running},
            "spent": {
                name: {"kernels": s.kernels, "calls": s.calls, "seconds": s.seconds}
                for name, s in self.spent.items()
            },
        }

    def blocks(self, session: Session, asked: object) -> tuple[Block, ...]:
        """Return the report for people."""
        available = ", ".join(map(providers.short, providers.available()))
        times = f"{self.opening:.3f} s to open, {self.running:.3f} s to prepare and run"
        rows = tuple(self._row(name, session) for name in session.providers)
        head = ("provider", "operators", "share", "kernels", "time", "which")
        return (
            Fields(
                (
                    ("asked for", ", ".join(_names(asked))),
                    ("available", available),
                    ("created", ", ".join(session.providers)),
                    ("time", times),
                )
            ),
            Table(head, rows, frozenset({1, 2, 3, 4})),
        )

    def _row(self, name: str, session: Session) -> tuple[str, ...]:
        placement = session.placement
        spent = self.spent.get(name)
        if placement is None or session.assigned is None:
            operators = share = "not told"
            which = ""
        else:
            own, total = placement.get(name, 0), sum(placement.values())
            operators, share = number(own), percent(own / total) if total else ""
            most = Counter(session.assigned.get(name)).most_common()
            which = ", ".join(f"{kind} {count}" for kind, count in most[:_KINDS])
            which += " …" if len(most) > _KINDS else ""
        kernels = "" if spent is None else number(spent.kernels)
        return (name, operators, share, kernels, _time(spent), which)


def _names(asked: Any) -> list[str]:
    return [providers.render([wish]) for wish in asked]


def _time(spent: Spent | None) -> str:
    if spent is None:
        return ""
    calls = counted(spent.calls, "call")
    return f"{spent.seconds * 1000:,.1f} ms, {calls}"


@contextmanager
def measured(is_wanted: bool) -> Generator[Report | None]:
    """Yield what measures a session, where that is wanted; nothing of it is left on the disk."""
    if not is_wanted:
        yield None
        return
    folder = tempfile.mkdtemp(prefix="persistlib-")
    try:
        yield Report(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
