"""A checkpoint seen through other names: some of its tensors, called otherwise, nothing copied.

Law: the tensors of a selection have the bytes of the tensors that they were, and two names are
tied in it exactly when they were tied before; a tied tensor stands under the smallest name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from persistlib.checkpoint import CheckpointReader, Entry
from persistlib.errors import Code, error

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping


class Selection(CheckpointReader):
    """Tensors of another checkpoint under names of their own.

    Attributes:
        origins: of each entry, the entry of the other checkpoint.
    """

    def __init__(self, source: CheckpointReader, chosen: Mapping[str, str]) -> None:
        """Select.

        Args:
            source: the other checkpoint.
            chosen: names of the other checkpoint, ties among them, to the new names.

        Raises:
            FormatError: two names become one.
        """
        self._source = source
        groups: dict[str, list[str]] = {}
        for old, new in chosen.items():
            groups.setdefault(source.aliases.get(old, old), []).append(new)
        require_distinct(chosen)
        self.origins = {min(names): owner for owner, names in groups.items()}
        aliases = {n: min(names) for names in groups.values() for n in names if n != min(names)}
        entries = tuple(
            Entry(new, source.tensors[owner].dtype, source.tensors[owner].shape)
            for new, owner in self.origins.items()
        )
        super().__init__(entries, aliases, source.metadata)
        self.format, self.container = source.format, source.container
        self.losses, self.notes = source.losses, source.notes

    def read_bytes(self, name: str) -> memoryview:
        """Return the bytes of an entry, as the other checkpoint does."""
        return self._source.read_bytes(self.origins[name])

    def close(self) -> None:
        """Close the other checkpoint."""
        self._source.close()

    def windows(self, name: str) -> Iterator[memoryview]:
        """Yield the bytes of an entry, as the other checkpoint does."""
        return self._source.windows(self.origins[name])


def require_distinct(chosen: Mapping[str, str]) -> None:
    """Refuse new names of which two are the same.

    Args:
        chosen: names to their new ones.

    Raises:
        FormatError: two names become one; the error names all three.
    """
    first: dict[str, str] = {}
    for old, new in chosen.items():
        if (other := first.setdefault(new, old)) != old:
            reason = f"the name would stand twice: {other} and {old} become it"
            raise error(Code.FORMAT_NAME, new, reason, "rename one")


# What DistributedDataParallel and torch.compile put in front of every name.
WRAPPERS = ("module.", "_orig_mod.")


def wrapper_of(names: Iterable[str]) -> str:
    """Return what wrappers put in front of every name, such as "module."; empty where nothing."""
    known, prefix = tuple(names), ""
    while known:
        longer = [p for p in (prefix + w for w in WRAPPERS) if all(_is_under(n, p) for n in known)]
        if not longer:
            break
        prefix = longer[0]
    return prefix


def _is_under(name: str, prefix: str) -> bool:
    return len(name) > len(prefix) and name.startswith(prefix)


def without_wrappers(source: CheckpointReader) -> CheckpointReader:
    """Return a checkpoint with what wrappers put in front of every name taken off."""
    names = (*source.tensors, *source.aliases)
    prefix = wrapper_of(names)
    return Selection(source, {n: n[len(prefix) :] for n in names}) if prefix else source
