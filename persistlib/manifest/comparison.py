"""What differs between two manifests and matters: how the model is built, used, and what it scored.

When, where and by which versions a bundle was saved makes no difference here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from pydantic import JsonValue

    from persistlib.manifest.schema import Manifest


class ManifestRow(NamedTuple):
    """A field that is not the same in two manifests.

    Attributes:
        field: its path, such as "interface.labels.2"; of a tensor's flags "frozen NAME".
        before: its value in the first; null where it is absent.
        after: its value in the second.
    """

    field: str
    before: JsonValue
    after: JsonValue


def compare_manifests(before: Manifest, after: Manifest) -> tuple[ManifestRow, ...]:
    """Return the fields that differ, in the order of the schema."""
    rows = [
        row
        for part in ("architecture", "interface", "state", "training", "license", "status")
        for row in json_rows(part, _matter(before)[part], _matter(after)[part], skip=_WHERE)
    ]
    recipe = [row for row in rows if row.field.startswith("architecture.")]
    if any(row.field != _STRUCTURE for row in recipe):
        rows = [row for row in rows if row.field != _STRUCTURE]  # it follows from the recipe
    return (*rows, *_frozen(before, after))


_STRUCTURE = "architecture.structure"
_WHERE = ("file",)  # where the bytes lie, not what they are


def _matter(manifest: Manifest) -> dict[str, JsonValue]:
    found: dict[str, JsonValue] = manifest.model_dump(
        mode="json",
        include={
            "architecture": {"builder", "arguments", "edits", "structure"},
            "interface": True,
            "state": {"training", "frozen_modules_in_eval", "unsaved_buffers"},
            "training": {"metrics"},
            "license": True,
            "status": True,
        },
    )
    found["training"] = found["training"] or {"metrics": {}}
    return found


def json_rows(
    path: str, before: JsonValue, after: JsonValue, *, skip: Collection[str] = ()
) -> Iterator[ManifestRow]:
    """Yield what differs between two JSON values, each the least value that does.

    Args:
        path: of the two, which begins every row's field; "" for whole documents.
        before: the first.
        after: the second.
        skip: names of members that do not count.
    """
    if isinstance(before, dict) and isinstance(after, dict):
        for name in dict.fromkeys((*before, *after)):
            if name not in skip:
                below = f"{path}.{name}" if path else name
                yield from json_rows(below, before.get(name), after.get(name), skip=skip)
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, pair in enumerate(zip(before, after, strict=True)):
            yield from json_rows(f"{path}.{index}", *pair, skip=skip)
    elif before != after:
        yield ManifestRow(path, before, after)


def _frozen(before: Manifest, after: Manifest) -> Iterator[ManifestRow]:
    """Yield the tensors that train in one of the two alone."""
    flags = {record.name: record.frozen for record in after.weights.tensors}
    for record in before.weights.tensors:
        if flags.get(record.name, record.frozen) != record.frozen:
            yield ManifestRow(f"frozen {record.name}", record.frozen, flags[record.name])
