"""The objects of an HDF5 file, reached by hard links alone: the one accessor.

Law: every object of the tree was reached from the root by hard links and is met once, and nothing
of it was read; a file with a link of any other kind has no tree.

Soft and external links, user-defined ones, groups with two paths (a cycle is one) and names that
are no plain path component are refused. Everything that reads HDF5 here goes through this module
and `hdf5_dataset`: none subscripts an `h5py.File`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from persistlib.converters.limits import go_on
from persistlib.converters.listing import refusal
from persistlib.errors import Code

if TYPE_CHECKING:
    from collections.abc import Mapping

_low: Any = h5py  # the compiled modules have no types
h5a, h5g, h5l = _low.h5a, _low.h5g, _low.h5l
h5o, h5s, h5t = _low.h5o, _low.h5s, _low.h5t

DEPTH_LIMIT = 64
OBJECT_LIMIT = 100_000
ATTRIBUTE_LIMIT = 1_000
TEXT_LIMIT = 16 << 20
# All attributes may have this many times the bytes of their file, and a few texts more: one
# text of the heap can be the attribute of every object.
_ATTRIBUTE_TIMES, _ATTRIBUTES_FREE = 4, 4 * TEXT_LIMIT
_OBJECT_BYTES = 64  # of a file, at least, for each object
_FEW = 1_000


@dataclass
class Room:
    """What may still be read of a file's attributes.

    Attributes:
        left: in bytes.
    """

    left: int

    def take(self, size: int, where: str) -> None:
        """Count some bytes that were read, or are to be.

        Raises:
            FormatError: they are too many.
        """
        self.left -= size
        if self.left < 0:
            reason = "attributes out of proportion to the file: many are one and the same text"
            raise refusal(Code.FORMAT_LIMIT, where, reason)


@dataclass
class Item:
    """One object: a group, a dataset or a named datatype.

    Attributes:
        paths: its paths from the root, joined by slashes, sorted; the root's is empty.
        root: the root group of h5py's low-level interface.
        room: that of all attributes of the file.
    """

    paths: list[str]
    root: Any
    room: Room

    @property
    def id(self) -> Any:
        """The object, opened anew: an open one costs memory, and a file may hold 100,000."""
        go_on()
        return h5o.open(self.root, self.path.encode()) if self.path else self.root

    @property
    def path(self) -> str:
        """The first path."""
        return self.paths[0]


@dataclass
class Tree:
    """All objects of a file, each kind in the order of their first paths.

    Attributes:
        groups: the groups by path, the root's empty path among them.
        datasets: the datasets by first path.
        others: paths of named datatypes, which hold no values.
    """

    groups: dict[str, Item] = field(default_factory=dict)
    datasets: dict[str, Item] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)


def survey(file: Any, size: int) -> Tree:
    """Return the tree of an open `h5py.File` whose file has `size` bytes; parents come first.

    Raises:
        FormatError: a link is no hard link, or the tree is deeper or larger than it may be.
    """
    most = min(OBJECT_LIMIT, _FEW + size // _OBJECT_BYTES)
    return _Survey(file, most, Room(_ATTRIBUTES_FREE + _ATTRIBUTE_TIMES * size)).run()


class _Survey:
    def __init__(self, file: Any, most: int, room: Room) -> None:
        self._tree, self._most, self._room = Tree(), most, room
        self._met: dict[int, Item] = {}
        self._waiting: list[tuple[Item, int]] = []
        self._links = 0
        self._root = h5g.open(file.id, b"/")
        self._add("", self._root, b".", 0)

    def run(self) -> Tree:
        while self._waiting:
            group, depth = self._waiting.pop()
            if depth > DEPTH_LIMIT:
                raise refusal(Code.FORMAT_LIMIT, group.path[:80], f"deeper than {DEPTH_LIMIT}")
            opened = group.id
            for name in self._names(group, opened):
                path = f"{group.path}/{name}" if group.path else name
                self._add(path, opened, name.encode(), depth + 1)
        return self._sorted()

    def _sorted(self) -> Tree:
        """Return the tree, of which nothing depends on the order of the walk."""
        items = self._tree.datasets.values()
        for item in items:
            item.paths.sort()
        datasets = {item.path: item for item in sorted(items, key=lambda item: item.path)}
        return Tree(dict(sorted(self._tree.groups.items())), datasets, sorted(self._tree.others))

    def _names(self, group: Item, opened: Any) -> list[str]:
        """Return the names of a group's links, all hard, in the order of their bytes."""
        found: list[tuple[bytes, int]] = []

        def note(name: bytes, info: Any) -> bool | None:
            found.append((name, info.type))
            return True if len(found) + self._links > self._most else None

        opened.links.iterate(note, info=True)
        self._links += len(found)
        if self._links > self._most:
            raise refusal(Code.FORMAT_LIMIT, group.path, f"more than {self._most} links")
        for raw, kind in found:
            go_on()
            if kind != h5l.TYPE_HARD:
                said = {h5l.TYPE_SOFT: "a soft link", h5l.TYPE_EXTERNAL: "an external link"}
                where = f"{group.path}/{raw.decode('utf-8', 'replace')}".lstrip("/")
                what = said.get(kind, "a link of an unknown kind")
                raise refusal(Code.FORMAT_UNSAFE, where, f"{what}, which is never followed")
        return [_component(raw, group.path) for raw, _ in sorted(found)]

    def _add(self, path: str, folder: Any, name: bytes, depth: int) -> None:
        info = h5o.get_info(folder, name)
        if (known := self._met.get(info.addr)) is not None:
            if info.type == h5o.TYPE_GROUP:
                reason = f"the same group as {known.path or 'the root'!r}"
                raise refusal(Code.FORMAT_UNSAFE, path, reason)
            known.paths.append(path)
            return
        self._met[info.addr] = item = Item([path], self._root, self._room)
        if info.type == h5o.TYPE_GROUP:
            self._tree.groups[path] = item
            self._waiting.append((item, depth))
        elif info.type == h5o.TYPE_DATASET:
            self._tree.datasets[path] = item
        else:
            self._tree.others.append(path)


def _component(raw: bytes, folder: str) -> str:
    try:
        name = raw.decode()
    except UnicodeDecodeError as fault:
        raise refusal(Code.FORMAT_NAME, folder, f"holds the name {raw[:80]!r}") from fault
    if name in {"", ".", ".."} or "/" in name:
        raise refusal(Code.FORMAT_NAME, folder, f"holds the name {name!r}")
    return name


def attributes(item: Item) -> Mapping[str, Any]:
    """Return the attributes of an object that are text or numbers, by name in byte order.

    Text is `str`, or a list of `str`; numbers are numpy arrays, of rank 0 for one. Others (NULL,
    references, compounds) are None.

    Raises:
        FormatError: there are too many, or one is too large, or its name is not UTF-8.
    """
    names: list[bytes] = []

    def note(name: bytes) -> bool | None:
        names.append(name)
        return True if len(names) > ATTRIBUTE_LIMIT else None

    opened = item.id
    h5a.iterate(opened, note)
    if len(names) > ATTRIBUTE_LIMIT:
        raise refusal(Code.FORMAT_LIMIT, item.path, f"more than {ATTRIBUTE_LIMIT} attributes")
    return {_text(raw, item.path): _value(item, opened, raw) for raw in sorted(names)}


def _value(item: Item, owner: Any, name: bytes) -> Any:
    opened = h5a.open(owner, name)
    kind, space = opened.get_type(), opened.get_space()
    where = f"{item.path}@{name.decode('utf-8', 'replace')}"
    count = space.get_simple_extent_npoints()
    if count * kind.get_size() > TEXT_LIMIT:
        raise refusal(
            Code.FORMAT_LIMIT, where, f"an attribute of {count} x {kind.get_size()} bytes"
        )
    if space.get_simple_extent_type() not in {h5s.SCALAR, h5s.SIMPLE}:
        return None
    item.room.take(count * kind.get_size(), where)
    if isinstance(kind, h5t.TypeStringID):
        raw = np.empty(opened.shape, opened.dtype)
        opened.read(raw)
        length = sum(len(value) for value in raw.flat)
        item.room.take(length, where)
        if length > TEXT_LIMIT:
            raise refusal(Code.FORMAT_LIMIT, where, f"more than {TEXT_LIMIT} bytes of text")
        texts = [_text(value, where) for value in raw.flat]
        return texts if opened.shape else texts[0]
    if isinstance(kind, (h5t.TypeIntegerID, h5t.TypeFloatID)) and kind.get_size() <= 8:
        numbers = np.empty(opened.shape, opened.dtype)
        opened.read(numbers)
        return numbers
    return None


def _text(raw: Any, where: str) -> str:
    if isinstance(raw, str):
        return raw
    try:
        return bytes(raw).decode()
    except UnicodeDecodeError as fault:
        raise refusal(Code.FORMAT_HEADER, where, "text that is not UTF-8") from fault
