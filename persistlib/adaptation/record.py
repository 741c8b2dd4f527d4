"""What an adaptation did: for the caller, and for the lineage of what is saved afterwards."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from persistlib.manifest.schema import Interface, Lineage
from persistlib.wording import with_rest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic import JsonValue

RELATION = "adapted-from"
_ATTRIBUTE = "_persistlib_adaptation"


class Change(NamedTuple):
    """One thing that was changed.

    Attributes:
        kind: "image_size", "positions", "channels" or "classes".
        location: the layer or tensor; empty where none changed.
        before: what it was, in words.
        after: what it is.
        detail: how, in words.
    """

    kind: str
    location: str
    before: str
    after: str
    detail: str

    def __str__(self) -> str:
        where = f" at {self.location}" if self.location else ""
        return f"{self.kind} {self.before} to {self.after}{where} ({self.detail})"


class Reshaped(NamedTuple):
    """A stored tensor whose shape is not the model's, and which was not taken."""

    name: str
    stored: tuple[int, ...]
    expected: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Adaptation:
    """What was done to a model while it was loaded or built.

    Attributes:
        changes: in the order in which they were made.
        missing: tensors of the model that nothing was stored for: they keep their initial values.
        unexpected: stored tensors that the model does not have.
        reshaped: stored tensors of another shape: the model's keep their initial values.
        renamed: stored names to the model's, where they differ.
        notes: what else the caller has to know.
        interface: inputs, outputs, labels and preprocessing of the adapted model.
        lineage: ancestors of the adapted model, nearest first.
    """

    changes: tuple[Change, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    reshaped: tuple[Reshaped, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    interface: Interface = field(default_factory=Interface)
    lineage: tuple[Lineage, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether every tensor was taken, and none was left over."""
        return not (self.missing or self.unexpected or self.reshaped)

    def words(self) -> Iterator[str]:
        """Yield what was done, a sentence each."""
        yield from map(str, self.changes)
        if self.renamed:
            yield f"{len(self.renamed)} tensors renamed"
        for what, names in (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("of another shape", tuple(item.name for item in self.reshaped)),
        ):
            if names:
                yield f"{len(names)} tensors {what}: {with_rest(names, _NAMED)}"

    def to_dict(self) -> dict[str, JsonValue]:
        """Return the record as data, as `--json` gives it."""
        return {
            "changes": [change._asdict() for change in self.changes],
            "missing": [*self.missing],
            "unexpected": [*self.unexpected],
            "reshaped": [
                {"name": name, "stored": [*stored], "expected": [*expected]}
                for name, stored, expected in self.reshaped
            ],
            "renamed": dict(self.renamed),
            "notes": [*self.notes],
            "lineage": [parent.model_dump(mode="json") for parent in self.lineage],
        }


def descended(
    adaptation: Adaptation, parent: Lineage, ancestors: tuple[Lineage, ...]
) -> tuple[Lineage, ...]:
    """Return the lineage of an adapted model.

    Args:
        adaptation: what was done.
        parent: the model that it was done to; its `source` is that model's name.
        ancestors: that model's own.
    """
    source = f"{parent.source}: {'; '.join(adaptation.words())}"
    return (parent.model_copy(update={"relation": RELATION, "source": source}), *ancestors)


def remember(model: Any, adaptation: Adaptation) -> None:
    """Keep the record on a module, where a save finds it."""
    vars(model)[_ATTRIBUTE] = adaptation


def adaptation_of(model: Any) -> Adaptation | None:
    """Return what was done to a module while it was loaded or built; None where nothing was."""
    found = vars(model).get(_ATTRIBUTE)
    return found if isinstance(found, Adaptation) else None


_NAMED = 4
