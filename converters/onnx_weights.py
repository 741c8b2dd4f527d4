"""The weights among the tensors of an ONNX file: which they are, and which are tied.

Law: where the file notes its state_dict (`graph_notes`) and the notes fit the tensors that are
there, the weights are that, in its order; otherwise they are all initializers as they stand.

Two tensors are tied when that is noted, or when both lie in the same bytes of the same file beside
the model. Tensors that share only part of their bytes are refused: a small file could otherwise
claim any amount.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from persistlib.checkpoint import Entry
from persistlib.converters.onnx_tensors import Outside, Stored, stored
from persistlib.dtypes import DType
from persistlib.errors import Code, error
from persistlib.graph_notes import KEYS, Notes, parse

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from persistlib.converters.onnx_model import OnnxModel

# A real dtype, and the complex one whose parts it is.
VIEWS = {DType.F32: DType.C64, DType.F64: DType.C128}
_PARTS = 2


class Weights(NamedTuple):
    """The tensors of a file that a checkpoint can hold.

    Attributes:
        tensors: all by name, in the file's order, noted views as the complex tensors they are.
        names: those that are the checkpoint's, in its order, aliases among them.
        aliases: second names among these, each to the first.
        notes: what the file notes of them; None where it notes nothing that fits.
        texts: names of tensors of strings.
        inner: how many tensors do not stand among the main graph's initializers.
        misfit: why what is noted does not fit; empty when it does.
    """

    tensors: Mapping[str, Stored]
    names: tuple[str, ...]
    aliases: Mapping[str, str]
    notes: Notes | None
    texts: tuple[str, ...]
    inner: int
    misfit: str


def weights_of(model: OnnxModel, *, whole: bool) -> Weights:
    """Return the weights in a file.

    Args:
        model: the file.
        whole: whether constants, subgraphs and functions are looked at, and what is not the noted
            state is among the names.

    Raises:
        FormatError: a tensor's values are not there to the byte, or a note is malformed.
    """
    named = model.tensors() if whole else model.initializers()
    tensors = {
        name: stored(tensor, name, model.data, model.folder, model.location)
        for name, tensor in named
        if not tensor.is_text
    }
    noted = parse(model.metadata, model.location) if KEYS & set(model.metadata) else None
    misfit = "" if noted is None else _misfit(noted, tensors)
    notes = None if misfit else noted
    aliases: Mapping[str, str] = {}
    names = tuple(tensors)
    if notes is not None:
        aliases = notes.aliases
        for name in notes.views:
            tensors[name] = _as_complex(tensors[name])
        if notes.state is not None:
            rest = (n for n in tensors if n not in set(notes.state)) if whole else ()
            names = (*notes.state, *rest)
    aliases = _tied(tensors, names, aliases)
    _require_apart(model.location, tensors.values())
    texts = tuple(name for name, tensor in named if tensor.is_text)
    inner = len(named) - len(model.initializers()) if whole else 0
    return Weights(tensors, names, aliases, notes, texts, inner, misfit)


def place(found: Stored) -> tuple[object, ...] | None:
    """Return what two tensors have in common that lie in the same bytes beside the model."""
    if not isinstance(found.values, Outside) or not found.values.nbytes:
        return None
    where = found.values.place
    return where.name, where.offset, found.values.nbytes, found.entry.dtype.name, found.entry.shape


def _misfit(notes: Notes, tensors: Mapping[str, Stored]) -> str:
    """Return why notes do not fit the tensors that are there."""
    state = tensors.keys() if notes.state is None else set(notes.state)
    for name in (*(notes.state or ()), *notes.views, *notes.aliases, *notes.aliases.values()):
        if name not in tensors or name not in state:
            return f"{name!r} is not among the tensors"
    for name in notes.views:
        entry = tensors[name].entry
        if entry.dtype not in VIEWS or entry.shape[-1:] != (_PARTS,):
            return f"{name!r} is no view of a complex tensor"
    for alias, name in notes.aliases.items():
        one, other = tensors[alias].entry, tensors[name].entry
        if name in notes.aliases or (one.dtype, one.shape) != (other.dtype, other.shape):
            return f"{alias!r} is not the same tensor as {name!r}"
        if (alias in notes.views) != (name in notes.views):
            return f"one of {alias!r} and {name!r} is complex"
    return ""


def _as_complex(found: Stored) -> Stored:
    name, dtype, shape = found.entry.name, found.entry.dtype, found.entry.shape
    return found._replace(entry=Entry(name, VIEWS[dtype], shape[:-1]))


def _tied(
    tensors: Mapping[str, Stored], names: Iterable[str], noted: Mapping[str, str]
) -> dict[str, str]:
    """Return the second names among some, those noted and those that lie in the same bytes."""
    first: dict[tuple[object, ...], str] = {}
    aliases: dict[str, str] = {}
    chosen = set(names)
    for name in sorted(chosen - noted.keys()):
        there = place(tensors[name])
        if there is not None and (kept := first.setdefault(there, name)) != name:
            aliases[name] = kept
    noted = {alias: aliases.get(name, name) for alias, name in noted.items() if alias in chosen}
    return noted | aliases


def _require_apart(location: str, chosen: Iterable[Stored]) -> None:
    """Refuse tensors beside the model that share bytes and are not the same tensor."""
    parts: dict[tuple[str, int, int, str, tuple[int, ...]], str] = {}
    for entry, values in chosen:
        if isinstance(values, Outside) and values.nbytes:
            begin = values.place.offset
            end = begin + values.nbytes
            key = (values.place.name, begin, end, entry.dtype.name, entry.shape)
            parts.setdefault(key, entry.name)
    for (one, name), (other, twin) in pairwise(sorted(parts.items())):
        if one[0] == other[0] and other[1] < one[2]:
            raise error(
                Code.GRAPH_INVALID,
                f"{location}: {twin}",
                f"lies partly in the bytes of {name!r}",
                "do not use this file; export the model again",
            )
