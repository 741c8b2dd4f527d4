"""What a graph of persistlib's says of its weights: JSON in the model's `metadata_props`.

Law: `parse(render(notes), where) == notes`. So the file alone gives back the whole state_dict in
its order, ties and complex tensors among it, and nothing that the exporter made beside it.

What it says of the model that the weights belong to stands under `MODEL` (`model_notes`).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from persistlib.canonical import parse as parse_json
from persistlib.errors import Code, error

if TYPE_CHECKING:
    from collections.abc import Mapping

ALIASES = "persistlib.aliases"
COMPLEX = "persistlib.complex"
STATE = "persistlib.state"
MODEL = "persistlib.model"
KEYS = frozenset({ALIASES, COMPLEX, STATE, MODEL})
# What stands beside the weights' own notes and sets options of a session that reads it.
SESSION_OPTIONS = "ort_config"


class Notes(NamedTuple):
    """What is noted of the weights.

    Attributes:
        state: the names of the state_dict in its order, second names of tied tensors among them;
            None where an older release did not say.
        aliases: second names of tied tensors, each to the first.
        views: names of complex tensors, which stand as their real views, pairs in a last axis.
    """

    state: tuple[str, ...] | None = None
    aliases: Mapping[str, str] = {}
    views: tuple[str, ...] = ()


def render(notes: Notes) -> dict[str, str]:
    """Return the entries of `metadata_props` that say it."""
    said: dict[str, str] = {}
    if notes.aliases:
        said[ALIASES] = json.dumps(dict(notes.aliases), sort_keys=True)
    if notes.views:
        said[COMPLEX] = json.dumps(list(notes.views))
    if notes.state is not None:
        said[STATE] = json.dumps(list(notes.state))
    return said


def parse(metadata: Mapping[str, str], where: str) -> Notes:
    """Return what a model's metadata notes of its weights.

    Raises:
        FormatError: a note is malformed.
    """
    aliases = parse_json(
        metadata.get(ALIASES, "{}").encode(), f"{where}: {ALIASES}", code=Code.FORMAT_HEADER
    )
    if any(type(name) is not str for name in aliases.values()):
        _refuse(f"{where}: {ALIASES}", "not a map from name to name")
    state = _names(metadata[STATE], f"{where}: {STATE}") if STATE in metadata else None
    return Notes(state, aliases, _names(metadata.get(COMPLEX, "[]"), f"{where}: {COMPLEX}"))


def _names(text: str, where: str) -> tuple[str, ...]:
    """Return a JSON list of names, none of which stands twice."""
    document = parse_json(f'{{"names":{text}}}'.encode(), where, code=Code.FORMAT_HEADER)
    names = document["names"]
    if len(document) != 1 or not isinstance(names, list) or any(type(n) is not str for n in names):
        _refuse(where, "not a list of names")
    if len(set(names)) != len(names):
        _refuse(where, "a name stands twice")
    return tuple(names)


def _refuse(where: str, reason: str) -> NoReturn:
    raise error(Code.FORMAT_HEADER, where, reason, "export the model again")
