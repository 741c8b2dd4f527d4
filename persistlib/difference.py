"""What differs between two sets of weights, and what in the manifests of two bundles.

Law: two sources are the same exactly when their weights identities are equal and, of two bundles,
nothing that matters in their manifests differs.

Both are read side by side, a window of each at a time. Tensors of one dtype are compared as bytes;
only those that differ are read again as numbers.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from persistlib import deviation, formats
from persistlib.blocks import arrays, recut
from persistlib.bundle import reading
from persistlib.checkpoint import expand
from persistlib.digests import RunningDigest, weights_identity
from persistlib.errors import Code, error
from persistlib.manifest.comparison import compare_manifests
from persistlib.patterns import renamed, select
from persistlib.selection import Selection
from persistlib.sources import bundle_checkpoint, is_folder, open_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from persistlib.checkpoint import CheckpointReader, Entry
    from persistlib.deviation import Deviation
    from persistlib.files import StrPath
    from persistlib.manifest.comparison import ManifestRow
    from persistlib.manifest.schema import Manifest
    from persistlib.patterns import Patterns, Rules

_T = TypeVar("_T")
_STEP = 4 << 20  # bytes that are compared at a time


class Shown(NamedTuple):
    """A tensor as a row says it.

    Attributes:
        name: its name.
        dtype: its dtype's name.
        shape: its extents.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ChangedTensor:
    """A tensor that both have and that is not the same in both.

    Attributes:
        name: in the first, and in the second after `rename`.
        before: dtype and shape in the first.
        after: dtype and shape in the second.
        kind: "shape", "dtype", "values", or "bits" where all values are equal and some bits differ.
        deviation: how far the values lie apart; None where the shapes differ.
    """

    name: str
    before: Shown
    after: Shown
    kind: str
    deviation: Deviation | None


class Tie(NamedTuple):
    """Names that share one tensor in one of the two alone.

    Attributes:
        names: in order.
        where: "before" or "after".
    """

    names: tuple[str, ...]
    where: str


@dataclass(frozen=True)
class Side:
    """One of the two.

    Attributes:
        source: its path.
        format: name of its format, or "bundle".
        container: the format's variant and version, in words.
        identity: weights identity of what was compared, which is all of it by default.
        tensors: how many were compared, ties included.
        notes: what should be known of it, a sentence each.
    """

    source: str
    format: str
    container: str
    identity: str
    tensors: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Difference:
    """What differs between two sources.

    Attributes:
        before: the first.
        after: the second.
        added: tensors that the second alone has.
        removed: tensors that the first alone has.
        changed: tensors that differ, the largest change first.
        identical: how many tensors are the same in both.
        ties: names that are tied in one of the two alone; the weights are the same.
        manifest: of two bundles, what differs in their manifests and matters.
    """

    before: Side
    after: Side
    added: tuple[Shown, ...]
    removed: tuple[Shown, ...]
    changed: tuple[ChangedTensor, ...]
    identical: int
    ties: tuple[Tie, ...]
    manifest: tuple[ManifestRow, ...]

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return self.before.identity == self.after.identity and not self.manifest


def compare(
    before: StrPath,
    after: StrPath,
    *,
    only: Patterns | None = None,
    rename: Rules | None = None,
    reading_with: Mapping[str, str | None] | None = None,
) -> Difference:
    """Return what differs between two of: bundle, weights file of any format.

    Args:
        before: the first.
        after: the second.
        only: patterns of the names to compare, as the first has them.
        rename: rules that give the names of the second those of the first.
        reading_with: options of those formats that have them.

    Raises:
        PersistlibError: one of the two cannot be read, or an option means nothing for either.
    """
    given = {name: value for name, value in (reading_with or {}).items() if value is not None}
    for name in given:
        if not any(name in _options(source) for source in (before, after)):
            raise error(Code.USAGE, f"{name}=", "means nothing for either", "leave it out")

    def with_both(left: _Opened, right: _Opened) -> Difference:
        first, second = _chosen(left.checkpoint, right.checkpoint, only, rename)
        with ThreadPoolExecutor(1) as pool:
            return _Comparison(
                _Reading(first, left.digests, pool), _Reading(second, right.digests, pool)
            ).result(left, right)

    return _opened(before, given, lambda left: _opened(after, given, lambda r: with_both(left, r)))


class _Opened(NamedTuple):
    """An open source: its weights, and of a bundle its manifest and the verified digests."""

    source: str
    checkpoint: CheckpointReader
    manifest: Manifest | None
    digests: Mapping[str, str]


def _options(source: StrPath) -> frozenset[str]:
    return frozenset() if is_folder(source) else formats.by_content(source).reads_with


def _opened(source: StrPath, given: Mapping[str, str], work: Callable[[_Opened], _T]) -> _T:
    """Return what `work` makes of an open source."""
    path = os.fspath(source)
    if is_folder(source):
        return reading(
            source,
            lambda bundle: work(
                _Opened(
                    path,
                    bundle_checkpoint(bundle),
                    bundle.manifest,
                    {t.name: t.blake3 for t in bundle.manifest.weights.tensors},
                )
            ),
        )
    options = {name: value for name, value in given.items() if name in _options(source)}
    with open_file(source, **options) as checkpoint:
        return work(_Opened(path, checkpoint, None, {}))


def _chosen(
    left: CheckpointReader, right: CheckpointReader, only: Patterns | None, rename: Rules | None
) -> tuple[Selection, Selection]:
    """Return what is compared of both, under the first one's names."""
    first = {name: name for name in (*left.tensors, *left.aliases)}
    others = (*right.tensors, *right.aliases)
    second = {name: name for name in others} if rename is None else renamed(rename, others)
    if only is not None:
        wanted = set(select(only, dict.fromkeys((*first.values(), *second.values()))))
        first = {old: new for old, new in first.items() if new in wanted}
        second = {old: new for old, new in second.items() if new in wanted}
    return Selection(left, first), Selection(right, second)


class _Reading:
    """One side while it is read: what is known of its tensors' digests."""

    def __init__(
        self, checkpoint: Selection, known: Mapping[str, str], pool: ThreadPoolExecutor
    ) -> None:
        self.checkpoint, self._pool = checkpoint, pool
        self.names = tuple(sorted((*checkpoint.tensors, *checkpoint.aliases)))
        self.digests = {
            name: known[origin] for name, origin in checkpoint.origins.items() if origin in known
        }

    def owner(self, name: str) -> Entry:
        """Return the entry that a name stands for."""
        return self.checkpoint.tensors[self.checkpoint.aliases.get(name, name)]

    def shown(self, name: str) -> Shown:
        """Return a tensor as a row says it."""
        entry = self.owner(name)
        return Shown(name, entry.dtype.name, entry.shape)

    def windows(self, entry: Entry) -> Iterator[memoryview]:
        """Yield the bytes of an entry, digested meanwhile on another thread."""
        if entry.name in self.digests:
            yield from self.checkpoint.windows(entry.name)
            return
        running = RunningDigest()
        for window in self.checkpoint.windows(entry.name):
            busy = self._pool.submit(running.update, window)
            yield window
            busy.result()
        self.digests[entry.name] = running.hexdigest()

    def digest(self, entry: Entry) -> str:
        """Return the digest of an entry, read now where it was not before."""
        for _ in () if entry.name in self.digests else self.windows(entry):
            pass
        return self.digests[entry.name]

    def identity(self) -> str:
        """Return the weights identity of the side."""
        for entry in self.checkpoint.entries:
            self.digest(entry)
        return weights_identity(expand(self.checkpoint, self.digests))


class _Comparison:
    """Two sides, each pair of tensors compared once however many names it has."""

    def __init__(self, left: _Reading, right: _Reading) -> None:
        self._left, self._right = left, right
        self._known: dict[tuple[str, str], tuple[str, Deviation | None] | None] = {}

    def result(self, left: _Opened, right: _Opened) -> Difference:
        """Return all that differs."""
        names = set(self._left.names), set(self._right.names)
        both = [name for name in self._left.names if name in names[1]]
        changed = [row for name in both if (row := self._changed(name)) is not None]
        manifests = [side.manifest for side in (left, right) if side.manifest is not None]
        return Difference(
            before=self._side(self._left, left),
            after=self._side(self._right, right),
            added=tuple(self._right.shown(n) for n in self._right.names if n not in names[0]),
            removed=tuple(self._left.shown(n) for n in self._left.names if n not in names[1]),
            changed=tuple(sorted(changed, key=_rank)),
            identical=len(both) - len(changed),
            ties=self._ties(both),
            manifest=compare_manifests(*manifests) if len(manifests) == len(names) else (),
        )

    @staticmethod
    def _side(reading: _Reading, opened: _Opened) -> Side:
        checkpoint = opened.checkpoint
        return Side(
            source=opened.source,
            format=checkpoint.format,
            container=checkpoint.container,
            identity=reading.identity(),
            tensors=len(reading.names),
            notes=checkpoint.notes,
        )

    def _changed(self, name: str) -> ChangedTensor | None:
        pair = self._left.owner(name), self._right.owner(name)
        key = pair[0].name, pair[1].name
        if key not in self._known:
            self._known[key] = self._compared(*pair)
        if (found := self._known[key]) is None:
            return None
        return ChangedTensor(name, self._left.shown(name), self._right.shown(name), *found)

    def _compared(self, x: Entry, y: Entry) -> tuple[str, Deviation | None] | None:
        """Return how a tensor of the first differs from one of the second; None if it does not."""
        if x.shape != y.shape:
            return "shape", None
        if x.dtype is y.dtype and self._are_equal(x, y):
            return None
        found = deviation.deviation(
            arrays(self._left.windows(x), x, deviation.COUNT),
            arrays(self._right.windows(y), y, deviation.COUNT),
            x.shape,
        )
        if x.dtype is not y.dtype:
            return "dtype", found
        return "values" if found.differing else "bits", found

    def _are_equal(self, x: Entry, y: Entry) -> bool:
        """Return whether two tensors have the same bytes: then one digest is that of both."""
        left, right = self._left.digests, self._right.digests
        known = left.get(x.name) or right.get(y.name)
        if x.name in left and y.name in right:
            return left[x.name] == right[y.name]
        mine = self._left.windows(x) if known is None else self._left.checkpoint.windows(x.name)
        other = self._right.checkpoint.windows(y.name)
        pairs = zip(recut(mine, _STEP, x.nbytes), recut(other, _STEP, y.nbytes), strict=True)
        if not all(_have_same_bytes(*pair) for pair in pairs):
            return False
        left[x.name] = right[y.name] = known or left[x.name]
        return True

    def _ties(self, both: Iterable[str]) -> tuple[Tie, ...]:
        """Return the groups of names that are tied on one side alone."""
        groups = []
        for side in (self._left, self._right):
            found: dict[str, list[str]] = {}
            for name in both:
                found.setdefault(side.owner(name).name, []).append(name)
            groups.append({tuple(names) for names in found.values() if len(names) > 1})
        first, second = groups
        return tuple(sorted(Tie(g, "before" if g in first else "after") for g in first ^ second))


def _rank(row: ChangedTensor) -> tuple[Any, ...]:
    """Return the place of a row: other shapes and dtypes, then the largest change, first."""
    found = row.deviation
    if found is None:
        return (0, 0.0, row.name)
    change = float("inf") if found.change is None or found.nan or found.infinite else found.change
    return (1, -change, -found.relative, row.name)


def _have_same_bytes(x: memoryview, y: memoryview) -> bool:
    """Return whether two buffers of one size are equal, at the speed of memory."""
    import numpy as np

    whole = x.nbytes & ~7
    one, two = (np.frombuffer(part[:whole], np.uint64) for part in (x, y))
    return bool((one == two).all()) and x[whole:] == y[whole:]
