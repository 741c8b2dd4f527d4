"""What a verdict is, and how findings make one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from persistlib.errors import Finding, Severity

if TYPE_CHECKING:
    from collections.abc import Iterable

_ORDER = [severity.value for severity in (Severity.ERROR, Severity.WARNING, Severity.NOTE)]
VERDICTS = ("ok", "ok-after-upgrade", "degraded", "refused")


@dataclass(frozen=True)
class Report:
    """A verdict and what led to it.

    Attributes:
        verdict: "ok", "ok-after-upgrade", "degraded" or "refused".
        findings: every finding, also notes; what decides the verdict stands first.
    """

    verdict: str
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether the model can be used, perhaps degraded."""
        return self.verdict != "refused"


def verdict_of(findings: Iterable[Finding], *, upgraded: bool = False) -> Report:
    """Return the verdict that follows from findings: the worst of them decides.

    Args:
        findings: all of them; one that stands twice counts once.
        upgraded: whether the manifest was of an older version.
    """
    found = tuple(sorted(dict.fromkeys(findings), key=lambda one: _ORDER.index(one.severity)))
    severities = {f.severity for f in found}
    if Severity.ERROR.value in severities:
        verdict = "refused"
    elif Severity.WARNING.value in severities:
        verdict = "degraded"
    else:
        verdict = "ok-after-upgrade" if upgraded else "ok"
    return Report(verdict, found)
