"""Keras' files in the process that parses them: which datasets are weights, and their names.

Law: every dataset and attribute of the file is a tensor, part of what the parent is told, or a
loss; none is left out in silence.

Three layouts: `.h5` as all Keras releases write it (a group a layer, names in attributes);
`.weights.h5` of Keras 3 (a group a layer's class, variables under numbers); `.keras`, a zip archive
of the latter and the configuration. The configuration is passed on as text and never looked into.
"""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from persistlib.checkpoint import Entry
from persistlib.converters import keras_archive
from persistlib.converters.hdf5_dataset import Dataset, judge
from persistlib.converters.hdf5_tree import attributes, survey
from persistlib.converters.isolated import open_hdf5
from persistlib.converters.keras_details import (
    DETAILS,
    LEGACY,
    STORED,
    Details,
    render_details,
)
from persistlib.converters.keras_names import VARIABLES, plain
from persistlib.converters.listing import Listing, Source, refusal
from persistlib.dtypes import DType
from persistlib.errors import Code

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from persistlib.converters.hdf5_tree import Tree
    from persistlib.converters.isolated import Opened

_LAYERS, _WEIGHTS = "layer_names", "weight_names"
_MODEL, _TOP = "model_weights", "top_level_model_weights"
_CONFIG, _VERSION, _BACKEND = "model_config", "keras_version", "backend"
_OWN = "persistlib_format"
# Parts of a model's state that are no weights, by the first component of their path.
_STATE = {"optimizer", "metrics", "_metrics", "compile_metrics"}
_SEED = "seed_generator"


def claims(source: Opened) -> bool:
    """Return whether the file is one that Keras writes."""
    if keras_archive.is_zip(source):
        return True
    tree = survey(source.hdf5, source.size)
    if _OWN in attributes(tree.groups[""]):
        return False
    return _legacy_base(tree) is not None or _is_stored(tree)


def walk(source: Opened, options: Mapping[str, str]) -> Listing:  # noqa: ARG001 - the parent's part
    """Return what the file holds.

    Raises:
        FormatError: it breaks a rule.
        IntegrityError: a record of the archive differs from its CRC-32.
    """
    if keras_archive.is_zip(source):
        return _archive(source)
    tree = survey(source.hdf5, source.size)
    base = _legacy_base(tree)
    walked = _Stored(tree, source.size) if base is None else _Legacy(tree, source.size, base)
    return walked.listing()


class _Weight(NamedTuple):
    """A weight: its name in the checkpoint, where it stands in the file, and its bytes."""

    name: str
    path: tuple[str, ...]
    dataset: Dataset


class _Walked:
    """A file being walked.

    Attributes:
        weights: the weights, in order.
        losses: what is no weight.
        details: what the parent is told beside tensors.
    """

    kind = ""

    def __init__(self, tree: Tree, size: int) -> None:
        self.tree, self.size = tree, size
        self.weights: list[_Weight] = []
        self.losses: list[str] = []
        self.details = Details(self.kind, (), {}, None, "", "")
        self.container = ""
        self._items = {path: item for item in tree.datasets.values() for path in item.paths}
        # By dataset: its name in the checkpoint, empty where it is no weight.
        self._names: dict[int, str] = {}
        self._taken: set[str] = set()
        self._aliases: dict[str, str] = {}

    def add(self, path: str, name: str, owner: tuple[str, ...]) -> None:
        """Take a dataset as a weight; one that was taken before gets a second name."""
        item = self._items[path]
        if name in self._taken:
            raise refusal(Code.FORMAT_NAME, path, f"two weights would be called {name!r}")
        if (first := self._names.get(id(item))) is not None:
            if first:
                self._taken.add(name)
                self._aliases[name] = first
            return
        self._taken.add(name)
        said = attributes(item)
        # What HDF5 has no type for, Keras writes as opaque bytes with a word beside them.
        is_bf16 = said.get("dtype") == "bfloat16"
        if (dataset := judge(item, self.size, DType.BF16 if is_bf16 else None)) is None:
            self.lose(path)
            return
        self.losses += [f"metadata {path}@{key}" for key in said if key != "dtype"]
        self._names[id(item)] = name
        self.weights.append(_Weight(name, owner, dataset))

    def lose(self, path: str) -> None:
        """Note a dataset that is no weight."""
        self._names[id(self._items[path])] = ""
        self.losses.append(f"value {path}, which is no weight")

    def listing(self) -> Listing:
        """Return what was found."""
        datasets = {weight.name: weight.dataset for weight in self.weights}
        details = self.details._replace(paths=tuple(weight.path for weight in self.weights))

        def windows(name: str) -> Iterator[memoryview]:
            return datasets[name].windows()

        return Listing(
            "keras",
            self.container,
            tuple(Entry(w.name, w.dataset.dtype, w.dataset.shape) for w in self.weights),
            self._aliases,
            {DETAILS: render_details(details)},
            tuple(self.losses),
            windows=windows,
        )


class _Legacy(_Walked):
    """An `.h5` file: under `base` a group a layer, each with the names of its weights."""

    kind = LEGACY

    def __init__(self, tree: Tree, size: int, base: str) -> None:
        super().__init__(tree, size)
        self._base = base

    def listing(self) -> Listing:
        """Return what the file holds."""
        root = attributes(self.tree.groups[""])
        head = {**root, **attributes(self.tree.groups[self._base])}
        self._describe(root, head)
        groups = _listed(head, _LAYERS, self._base)
        if self._group(_TOP) in self.tree.groups and _TOP not in groups:
            groups.append(_TOP)
        for group in groups:
            self._read(group)
        for item in self.tree.datasets.values():
            if id(item) not in self._names:
                self.lose(item.path)
        others = self.tree.groups.keys() - {"", self._base, *map(self._group, groups)}
        for path in sorted(others):
            self._lose_said(path, attributes(self.tree.groups[path]))
        return super().listing()

    def _describe(self, root: Mapping[str, Any], head: Mapping[str, Any]) -> None:
        version, backend = _text(head, _VERSION), _text(head, _BACKEND)
        self.details = self.details._replace(version=version, backend=backend)
        what = "whole model" if _CONFIG in root or self._base else "weights only"
        on = f" on {backend}" if backend else ""
        self.container = f"legacy HDF5 of Keras {version or '1'}{on}, {what}"
        if config := _text(root, _CONFIG):
            self.details = self.details._replace(config=config)
            self.losses.append(f"graph the network itself ({_CONFIG})")
        told = {_CONFIG, _VERSION, _BACKEND}
        self.losses += [f"metadata {k}" for k in head if k not in told and not _is_list(k, _LAYERS)]

    def _read(self, group: str) -> None:
        path = self._group(group)
        if path not in self.tree.groups:
            raise refusal(Code.FORMAT_HEADER, path, "a layer that is listed is not there")
        found = attributes(self.tree.groups[path])
        weights = _listed(found, _WEIGHTS, path)
        names = _legacy_names(group, weights)
        for weight, name in zip(weights, names, strict=True):
            place = f"{path}/{weight}"
            if place not in self._items:
                raise refusal(Code.FORMAT_HEADER, place, "a weight that is listed is not there")
            self.add(place, name, (group, weight))
        self._lose_said(path, found)

    def _lose_said(self, path: str, found: Mapping[str, Any]) -> None:
        self.losses += [f"metadata {path}@{k}" for k in found if not _is_list(k, _WEIGHTS)]

    def add(self, path: str, name: str, owner: tuple[str, ...]) -> None:
        """Take a dataset as a weight, unless it is a random generator's state."""
        if _SEED in name.rpartition(".")[2]:
            self.lose(path)
        else:
            super().add(path, name, owner)

    def _group(self, name: str) -> str:
        return f"{self._base}/{name}" if self._base else name


class _Stored(_Walked):
    """A `.weights.h5` file: variables under numbers in the `vars` of a layer's place."""

    kind = STORED

    def listing(self) -> Listing:
        """Return what the file holds."""
        self.container = self.container or "Keras weights, layers by class (.weights.h5)"
        names: dict[tuple[str, ...], str] = {}
        for path, group in self.tree.groups.items():
            self._note(path, attributes(group), names)
        self.details = self.details._replace(names=names)
        for path in sorted(self.tree.datasets, key=_natural):
            parts = path.split("/")
            is_variable = len(parts) > 1 and parts[-2] == VARIABLES
            if not is_variable or parts[0] in _STATE or _SEED in parts:
                self.lose(path)
            else:
                self.add(path, ".".join(parts), tuple(parts))
        return super().listing()

    def _note(self, path: str, found: Mapping[str, Any], names: dict[tuple[str, ...], str]) -> None:
        """Keep a layer's own name, by its place; lose all else that a group says."""
        *place, last = path.split("/")
        for key, value in found.items():
            if key == "name" and isinstance(value, str) and last == VARIABLES:
                names[tuple(place)] = value
            else:
                self.losses.append(f"metadata {path}@{key}")


def _archive(source: Source) -> Listing:
    """Return what a `.keras` archive holds."""
    archive = keras_archive.audited(source)
    walked = _Stored(survey(open_hdf5(archive.weights), archive.weights.size), archive.weights.size)
    saved = f", saved {archive.saved}" if archive.saved else ""
    walked.container = f"archive of Keras {archive.version}{saved}"
    walked.details = walked.details._replace(config=archive.config, version=archive.version)
    walked.losses = ["graph the network itself (config.json)", *archive.losses]
    return walked.listing()


def _legacy_base(tree: Tree) -> str | None:
    """Return the group of the layers of an `.h5` file, None where there is none."""
    for base in (_MODEL, ""):
        if base in tree.groups:
            found = attributes(tree.groups[base])
            if any(_is_list(key, _LAYERS) for key in found):
                return base
    return None


def _is_stored(tree: Tree) -> bool:
    """Return whether every dataset is a numbered variable of a layer."""
    is_there = any(path.rpartition("/")[2] == VARIABLES for path in tree.groups)
    return is_there and all(path.split("/")[-2:-1] == [VARIABLES] for path in tree.datasets)


def _is_list(key: str, name: str) -> bool:
    """Return whether an attribute is a list of names, or a piece of one."""
    return re.fullmatch(rf"{name}\d{{0,6}}", key) is not None


def _listed(found: Mapping[str, Any], name: str, where: str) -> list[str]:
    """Return a list of names that may stand in pieces: `name`, or `name0`, `name1` and so on."""
    if name in found:
        return _texts(found[name], f"{where}@{name}")
    pieces = (f"{name}{number}" for number in itertools.count())
    there = itertools.takewhile(found.__contains__, pieces)
    return [text for piece in there for text in _texts(found[piece], f"{where}@{piece}")]


def _texts(value: Any, where: str) -> list[str]:
    """Return a list of texts; numpy calls an empty one numbers."""
    if isinstance(value, list):
        return [str(text) for text in value]
    if isinstance(value, np.ndarray) and value.size == 0:
        return []
    raise refusal(Code.FORMAT_HEADER, where, "is no list of names")


def _text(found: Mapping[str, Any], key: str) -> str:
    value = found.get(key)
    return value if isinstance(value, str) else ""


def _legacy_names(group: str, weights: list[str]) -> list[str]:
    """Return each weight's path after the layer's name, joined by dots, the layer's name once.

    A Sequential of Keras 3 puts its own name before the layer's, in every weight.
    """
    paths = [plain(weight).split("/") for weight in weights]
    head = group.split("/")
    if group != _TOP and paths and all(_follows(path[1:], head) for path in paths):
        paths = [path[1:] for path in paths]
    return [
        ".".join(path if group == _TOP or _follows(path, head) else [*head, *path])
        for path in paths
    ]


def _follows(path: list[str], head: list[str]) -> bool:
    """Return whether a weight's path begins with its layer's."""
    return len(path) > len(head) and path[: len(head)] == head


def _natural(path: str) -> list[tuple[bool, int, str]]:
    """Return what sorts paths by their components, numbers by value."""
    parts = path.split("/")
    return [(p.isdigit(), int(p) if len(p) < 9 and p.isdecimal() else 0, p) for p in parts]
