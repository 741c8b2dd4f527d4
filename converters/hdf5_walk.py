"""HDF5 weights in the process that parses them: persistlib's own layout, and anybody's datasets.

Law: every dataset of the file is a tensor, an alias or a loss; none is left out in silence.

The layout is `docs/hdf5.md`. A file without its mark is read as it is: a tensor's name is its
dataset's path with dots for slashes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from persistlib.canonical import parse as parse_json
from persistlib.checkpoint import Entry
from persistlib.converters.hdf5_dataset import Dataset, judge
from persistlib.converters.hdf5_layout import (
    DTYPE,
    FORMAT,
    KIND,
    METADATA,
    NUMBER,
    ORDER,
    PRIMARY,
    SHAPE,
    VERSION,
)
from persistlib.converters.hdf5_names import name_of
from persistlib.converters.hdf5_tree import attributes
from persistlib.converters.listing import Listing, refusal
from persistlib.dtypes import DType
from persistlib.errors import Code, error

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from persistlib.converters.hdf5_tree import Item, Tree
    from persistlib.converters.isolated import Opened

_MAJOR = NUMBER.partition(".")[0]


def claims(source: Opened) -> bool:
    """Return whether the file is HDF5."""
    return source.hdf5 is not None


def walk(source: Opened, options: Mapping[str, str]) -> Listing:
    """Return what the file holds.

    Raises:
        FormatError: it breaks a rule.
        UsageError: an option that means something for Keras files alone.
    """
    if options.get("layout"):
        reason = "the layout option is for Keras files, and this is none"
        raise error(Code.USAGE, "", reason, "leave it out")
    tree = source.tree
    root = attributes(tree.groups[""])
    if FORMAT in root:
        return _Own(tree, root, source.size).listing()
    return _foreign(tree, root, source.size)


class _Tensor(NamedTuple):
    """A tensor of the layout: its place in the order, its names, and where its bytes are."""

    order: int
    entry: Entry
    aliases: tuple[str, ...]
    dataset: Dataset


class _Own:
    """A file of persistlib's layout."""

    def __init__(self, tree: Tree, root: Mapping[str, Any], size: int) -> None:
        self._tree, self._root, self._size = tree, root, size
        self._losses: list[str] = []

    def listing(self) -> Listing:
        version = self._version()
        metadata = self._metadata()
        self._lose("", self._root, {FORMAT, VERSION, METADATA})
        for path, group in self._tree.groups.items():
            if path:
                self._lose(path, attributes(group), set())
        self._losses += [f"value {path}, which is no tensor" for path in self._tree.others]
        tensors = sorted(
            (self._tensor(item) for item in self._tree.datasets.values()), key=lambda t: t.order
        )
        if [tensor.order for tensor in tensors] != list(range(len(tensors))):
            raise refusal(Code.FORMAT_HEADER, "", f"the attributes {ORDER!r} do not count up")
        datasets = {tensor.entry.name: tensor.dataset for tensor in tensors}
        aliases = {a: tensor.entry.name for tensor in tensors for a in tensor.aliases}
        return Listing(
            "hdf5",
            f"persistlib layout {version}",
            tuple(tensor.entry for tensor in tensors),
            dict(sorted(aliases.items())),
            metadata,
            tuple(self._losses),
            windows=lambda name: datasets[name].windows(),
        )

    def _version(self) -> str:
        version = self._root.get(VERSION)
        if self._root[FORMAT] != KIND or not isinstance(version, str):
            raise refusal(Code.FORMAT_UNKNOWN, "", f"not {FORMAT} {KIND!r} with a {VERSION}")
        if version.partition(".")[0] != _MAJOR:
            reason = f"version {version} of persistlib's HDF5 layout, this release reads {_MAJOR}"
            raise error(Code.FORMAT_UNKNOWN, "", reason, "pip install --upgrade persistlib")
        return version

    def _metadata(self) -> dict[str, str]:
        text = self._root.get(METADATA, "{}")
        if not isinstance(text, str):
            raise refusal(Code.FORMAT_HEADER, METADATA, "is no text")
        metadata = parse_json(text.encode(), METADATA, code=Code.FORMAT_HEADER)
        if any(type(value) is not str for value in metadata.values()):
            raise refusal(Code.FORMAT_HEADER, METADATA, "is no map from string to string")
        return metadata

    def _lose(self, path: str, found: Mapping[str, Any], known: set[str]) -> None:
        self._losses += [f"metadata {path}@{name}" for name in found if name not in known]

    def _tensor(self, item: Item) -> _Tensor:
        said = attributes(item)
        self._lose(item.path, said, {DTYPE, SHAPE, ORDER, PRIMARY})
        names = sorted(_name(path) for path in item.paths)
        primary = _integer(said.get(PRIMARY, np.array(0)), item.path)
        dtype = DType.__members__.get(said[DTYPE]) if isinstance(said.get(DTYPE), str) else None
        if dtype is None or primary >= len(names):
            raise refusal(Code.FORMAT_HEADER, item.path, f"no {DTYPE} or {PRIMARY} that is known")
        dataset = judge(item, self._size)
        if dataset is None or dataset.dtype.numpy.str != np.dtype(dtype.value.hdf5).str:
            stored = "no numbers" if dataset is None else dataset.dtype.name
            reason = f"{dtype.name} is not stored as {stored}"
            raise refusal(Code.FORMAT_DTYPE, item.path, reason)
        entry = Entry(names[primary], dtype, _shape(said.get(SHAPE), dataset))
        if entry.nbytes != dataset.nbytes:
            reason = f"{dataset.nbytes} bytes are stored, its shape needs {entry.nbytes}"
            raise refusal(Code.FORMAT_SHAPE, item.path, reason)
        rest = (*names[:primary], *names[primary + 1 :])
        return _Tensor(_integer(said.get(ORDER), item.path), entry, rest, dataset)


def _name(path: str) -> str:
    if (name := name_of(path)) is None:
        raise refusal(Code.FORMAT_NAME, path, "not how a tensor's name is spelled as a path")
    return name


def _integer(value: Any, path: str) -> int:
    if isinstance(value, np.ndarray) and value.shape == () and value.dtype.kind in "iu":
        number = int(value)
        if number >= 0:
            return number
    raise refusal(Code.FORMAT_HEADER, path, f"no {ORDER} or {PRIMARY} that is a count")


def _shape(value: Any, dataset: Dataset) -> tuple[int, ...]:
    """Return the shape that the attribute gives a flat dataset, or else the dataset's."""
    if value is None:
        return dataset.shape
    if (
        not isinstance(value, np.ndarray)
        or value.ndim != 1
        or value.dtype.kind not in "iu"
        or len(dataset.shape) != 1
        or any(int(extent) < 0 for extent in value)
    ):
        raise refusal(Code.FORMAT_SHAPE, dataset.item.path, f"a malformed attribute {SHAPE}")
    return tuple(int(extent) for extent in value)


def _foreign(tree: Tree, root: Mapping[str, Any], size: int) -> Listing:
    """Return what a file of another writer holds."""
    metadata = {name: value for name, value in root.items() if isinstance(value, str)}
    losses = [f"metadata {name}" for name in root if name not in metadata]
    groups = ((path, item) for path, item in tree.groups.items() if path)
    for path, item in (*groups, *tree.datasets.items()):
        losses += [f"metadata {path}@{name}" for name in attributes(item)]
    datasets: dict[str, Dataset] = {}
    aliases: dict[str, str] = {}
    for path, item in tree.datasets.items():
        name = path.replace("/", ".")
        if (dataset := judge(item, size)) is None:
            losses.append(f"value {name}, which is no tensor")
            continue
        if name in datasets:
            raise refusal(Code.FORMAT_NAME, path, f"two datasets would be called {name!r}")
        datasets[name] = dataset
        aliases |= {other.replace("/", "."): name for other in item.paths[1:]}
    losses += [f"value {path}, which is no tensor" for path in tree.others]

    def windows(name: str) -> Iterator[memoryview]:
        return datasets[name].windows()

    return Listing(
        "hdf5",
        "plain datasets",
        tuple(Entry(name, dataset.dtype, dataset.shape) for name, dataset in datasets.items()),
        aliases,
        metadata,
        tuple(losses),
        ("the names are the datasets' paths, with dots for slashes",),
        windows,
    )
