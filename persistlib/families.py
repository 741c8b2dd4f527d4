"""The classes of the one error family, which `persistlib.errors` gives out with their codes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from persistlib.errors import Finding


class PersistlibError(Exception):
    """Some finding of severity "error" stands in the way.

    Attributes:
        findings: every finding collected before giving up; the first is the reason for the class.
    """

    def __init__(self, findings: tuple[Finding, ...]) -> None:
        super().__init__(findings)
        self.findings = findings

    @property
    def finding(self) -> Finding:
        """The finding that decided."""
        return self.findings[0]

    @property
    def code(self) -> str:
        """The stable code of the deciding finding, such as "PL120"."""
        return self.finding.code

    @property
    def location(self) -> str:
        """Where the fault lies: a path, a tensor, a manifest field."""
        return self.finding.location

    @property
    def reason(self) -> str:
        """What was seen and what was expected."""
        return self.finding.message

    @property
    def remedy(self) -> str:
        """What to do about it."""
        return self.finding.remedy

    def __str__(self) -> str:
        more = len(self.findings) - 1
        return f"{self.finding}" + (f" (and {more} more)" if more else "")

    def __reduce__(self) -> tuple[type[PersistlibError], tuple[tuple[Finding, ...]]]:
        return type(self), (self.findings,)


class ManifestError(PersistlibError):
    """The manifest is not one that this release can read."""


class IntegrityError(PersistlibError):
    """Bytes differ from the digest, size or list that was recorded for them."""


class CompatibilityError(PersistlibError):
    """This environment, or the asked-for target, cannot hold the model."""


class ArchitectureError(PersistlibError):
    """The module cannot be rebuilt from a recipe, or is not what the recipe builds."""


class ModelError(PersistlibError):
    """The module given to `save` is in a state that a file cannot hold."""


class TargetError(PersistlibError):
    """The place to write to, or to read from, cannot be used; what stood there stands unchanged."""


class LockedError(TargetError):
    """Another writer holds the target, or a dead one left its lock."""


class DurabilityError(TargetError):
    """The new version is in place, but whether it survives a power cut is unknown."""


class FormatError(PersistlibError):
    """A file is not a well-formed member of its format, or uses what is never read."""


class LossError(PersistlibError):
    """A conversion would lose something that the caller did not allow to be lost."""


class ExportError(PersistlibError):
    """No graph could be made from the module, or it could not be proved to be the same function."""


class SessionError(PersistlibError):
    """A runtime session could not be made, or cannot run what it was given."""


class TrainingError(PersistlibError):
    """Fine-tuning, or evaluating, cannot start or go on."""


class MissingExtra(PersistlibError):  # noqa: N818 - names the cure, as `pip install` spells it
    """A package of an optional extra is not installed."""


class UsageError(PersistlibError):
    """The call itself cannot mean anything: an argument is unknown, contradictory or missing."""


class PersistlibWarning(UserWarning):
    """A finding that does not stop the work.

    Attributes:
        finding: the finding as data.
    """

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding)
        self.finding = finding

    def __str__(self) -> str:
        return str(self.finding)
