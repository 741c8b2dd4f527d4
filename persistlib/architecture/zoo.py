"""The index of torchvision's models: which builder gives which class, tensors and input sizes.

Needs no torch. The shipped index covers every release since 0.15 (`fixtures/make_zoo.py` makes it
from the real wheels); `python -m persistlib.architecture.zoo` adds the installed torchvision to the
user's cache, which is read when it is newer. An index only proposes: what it names is rebuilt and
compared before anything is claimed.

The file is LZMA of canonical JSON::

    {"format": 1, "releases": ["0.15.1", ...], "names": [...], "shapes": [[...], ...],
     "rows": [[[name, shape, dtype], ...], ...],
     "entries": [{"builder": ..., "root": ..., "rows": ..., "inputs": [[...]], "releases": [a, b]}]}

Names, shapes, rows and releases are referred to by position; groups of rows
are shared by the builders that agree. `releases` is the first and the last that gave these rows.
What else `zoo_forms` describes stands in the same file, under a key of its own.
"""

from __future__ import annotations

import json
import lzma
import os
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from persistlib.canonical import encode

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

FORMAT = 1
# The shipped index unpacks to about 5 MB; a cache file that unpacks to more is not well meant.
_MEMORY_LIMIT = 128 << 20
_SIZE_LIMIT = 64 << 20

Row = tuple[str, str, tuple[int, ...]]


class ZooEntry(NamedTuple):
    """What one builder gave in a span of releases.

    Attributes:
        builder: `package:function`.
        root: qualified name of the root class.
        rows: name, dtype and shape of each tensor of the state_dict.
        inputs: shapes of small inputs that the model runs on; empty when none is known.
        first: the first torchvision release that gave this.
        last: the last release.
    """

    builder: str
    root: str
    rows: frozenset[Row]
    inputs: tuple[tuple[int, ...], ...]
    first: str
    last: str


class Candidate(NamedTuple):
    """A builder that may have made a checkpoint.

    Attributes:
        entry: the builder and what it gives.
        shared: rows that the entry and the checkpoint have in common.
        missing: rows of the entry that the checkpoint lacks or has otherwise.
        extra: rows of the checkpoint that the entry lacks or has otherwise.
    """

    entry: ZooEntry
    shared: int
    missing: int
    extra: int


def candidates(root: str | None, rows: Iterable[Row]) -> list[Candidate]:
    """Return the builders that share at least half of their tensors with a checkpoint, best first.

    Args:
        root: qualified name of the root class; None where only tensors are known.
        rows: name, dtype (safetensors' name) and shape of each tensor; casts are disregarded.
    """
    given = frozenset((name, shape) for name, _, shape in rows)
    found: dict[str, Candidate] = {}
    for entry in entries():
        if root is not None and entry.root != root:
            continue
        theirs = frozenset((name, shape) for name, _, shape in entry.rows)
        shared = len(given & theirs)
        candidate = Candidate(entry, shared, len(theirs) - shared, len(given) - shared)
        best = found.get(entry.builder)
        if 2 * shared >= max(len(theirs), 1) and (best is None or _rank(candidate) < _rank(best)):
            found[entry.builder] = candidate
    return sorted(found.values(), key=_rank)


def inputs_of(builder: str) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of small inputs for a builder; empty when none is known."""
    module, _, name = builder.partition(":")
    for entry in reversed(entries()):
        package, _, other = entry.builder.partition(":")
        if other == name and (module == package or module.startswith(f"{package}.")):
            return entry.inputs
    return ()


@cache
def entries() -> tuple[ZooEntry, ...]:
    """Return every entry of the shipped index, and of the user's cache where that is newer."""
    return tuple(entry for index in indexes() for entry in read_entries(index))


def indexes() -> tuple[dict[str, Any], ...]:
    """Return the shipped index, and the one in the user's cache where that is newer."""
    index = unpack(shipped())
    try:
        cached = unpack(cache_path().read_bytes())
    except (OSError, ValueError):
        return (index,)
    newer = _number(cached["releases"][-1]) > _number(index["releases"][-1])
    return (index, cached) if newer else (index,)


def shipped() -> bytes:
    """Return the shipped index as it is packed."""
    return resources.files("persistlib.architecture").joinpath("zoo.xz").read_bytes()


def read_entries(index: Mapping[str, Any]) -> tuple[ZooEntry, ...]:
    """Return the entries of an index."""
    groups, releases = read_groups(index), index["releases"]
    return tuple(
        ZooEntry(
            item["builder"],
            item["root"],
            groups[item["rows"]],
            tuple(tuple(shape) for shape in item["inputs"]),
            releases[item["releases"][0]],
            releases[item["releases"][1]],
        )
        for item in index["entries"]
    )


def read_groups(index: Mapping[str, Any]) -> list[frozenset[Row]]:
    """Return the groups of rows that entries and forms refer to."""
    names, shapes = index["names"], [tuple(shape) for shape in index["shapes"]]
    return [
        frozenset((names[name], dtype, shapes[shape]) for name, shape, dtype in group)
        for group in index["rows"]
    ]


def index_of(found: Iterable[ZooEntry], releases: Iterable[str]) -> dict[str, Any]:
    """Return the index that `read_entries` reads back, each name, shape and group once."""
    listed = list(found)
    order = list(releases)
    groups = sorted({tuple(sorted(entry.rows)) for entry in listed})
    names = sorted({row[0] for group in groups for row in group})
    shapes = sorted({row[2] for group in groups for row in group})
    name_at = {name: at for at, name in enumerate(names)}
    shape_at = {shape: at for at, shape in enumerate(shapes)}
    group_at = {group: at for at, group in enumerate(groups)}
    return {
        "format": FORMAT,
        "releases": order,
        "names": names,
        "shapes": [list(shape) for shape in shapes],
        "rows": [[[name_at[n], shape_at[s], d] for n, d, s in group] for group in groups],
        "entries": [
            {
                "builder": entry.builder,
                "root": entry.root,
                "rows": group_at[tuple(sorted(entry.rows))],
                "inputs": [list(shape) for shape in entry.inputs],
                "releases": [order.index(entry.first), order.index(entry.last)],
            }
            for entry in listed
        ],
    }


def pack(index: Mapping[str, Any]) -> bytes:
    """Return an index as it is shipped: the same index, the same bytes."""
    return lzma.compress(encode(index), preset=9 | lzma.PRESET_EXTREME)


def unpack(data: bytes) -> dict[str, Any]:
    """Return the index that `pack` packed.

    Raises:
        ValueError: it is damaged, or of another format.
    """
    try:
        stream = lzma.LZMADecompressor(memlimit=_MEMORY_LIMIT)
        text = stream.decompress(data, max_length=_SIZE_LIMIT)
        index = json.loads(text)
        if index["format"] != FORMAT:
            raise ValueError(f"format {index['format']}")
    except (lzma.LZMAError, KeyError, TypeError, EOFError) as fault:
        raise ValueError(f"not an index: {fault}") from fault
    assert isinstance(index, dict)
    return index


def cache_path() -> Path:
    """Return where the index of a newer torchvision is kept."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "persistlib" / "zoo.xz"


def _rank(candidate: Candidate) -> tuple[Any, ...]:
    newest = tuple(-part for part in _number(candidate.entry.last))
    return (candidate.missing, candidate.extra, newest, candidate.entry.builder)


def _number(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in release.split("+", maxsplit=1)[0].split(".")[:3])


if __name__ == "__main__":
    from persistlib.architecture.zoo_scan import extend_cache

    extend_cache()
