"""From a bundle or a weights file to a weights file, without torch.

Law: `identity(open(convert(x))) == identity(x)`; what a format does not keep is in `losses`, and an
error unless it was allowed.

A conversion streams: it holds a window of a tensor, not the model. What was written is read back
and compared before it takes its name, so a conversion that fails leaves what stood there.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from persistlib import publish
from persistlib.casting import Cast
from persistlib.checkpoint import CheckpointReader, expand, joined, tensor_rows
from persistlib.digests import RunningDigest, weights_identity
from persistlib.errors import Code, error
from persistlib.patterns import renamed, select
from persistlib.selection import Selection
from persistlib.sources import with_checkpoint

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sized

    from persistlib.casting import CastError
    from persistlib.digests import TensorRow
    from persistlib.dtypes import DType
    from persistlib.files import StrPath
    from persistlib.formats import Format
    from persistlib.patterns import Patterns, Rules

# Below this a thread costs more than it saves.
_THREADED = 1 << 20


@dataclass(frozen=True)
class ConvertedTensor:
    """What became of one tensor.

    Attributes:
        name: its name in the written file.
        source: its name in the source.
        dtype: as written.
        shape: as written.
        before: BLAKE3 of its bytes in the source.
        after: BLAKE3 of its bytes in the written file; the same unless it was cast.
        cast: what a cast changed, None where there was none.
    """

    name: str
    source: str
    dtype: str
    shape: tuple[int, ...]
    before: str
    after: str
    cast: CastError | None = None


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did.

    Attributes:
        source: what was read.
        destination: what was written.
        format: the written format's name.
        tensors: how many tensors were written, ties included.
        identity: the weights identity of what was written; of a graph, that of the weights it is
            made of.
        losses: what the written file does not keep; empty when nothing was lost.
        proof: of a graph, how its outputs were compared.
        source_format: the format that was read, and its variant.
        source_identity: the weights identity of the source; the same as `identity` unless tensors
            were left out, renamed or cast. None where no part of the source was left to compare.
        kept: what was kept, in words of `formats.PROMISES`.
        rows: of each tensor, ties included, what became of it.
        notes: what should be known of the source, a sentence each.
        ir_version: of a graph, the version of its file format, as read back.
        opsets: of a graph, its operator sets by domain, as read back.
    """

    source: str
    destination: str
    format: str
    tensors: int
    identity: str
    losses: tuple[str, ...] = ()
    proof: Mapping[str, Any] = field(default_factory=dict)
    source_format: str = ""
    source_identity: str | None = None
    kept: tuple[str, ...] = ()
    rows: tuple[ConvertedTensor, ...] = ()
    notes: tuple[str, ...] = ()
    ir_version: int | None = None
    opsets: Mapping[str, int] = field(default_factory=dict)


class ToldGraph(NamedTuple):
    """What a report says of a graph that was written.

    Attributes:
        proof: how its outputs were compared.
        ir_version: the version of its file format, as read back.
        opsets: its operator sets by domain, as read back.
        notes: what should be known of it, a sentence each.
    """

    proof: Mapping[str, Any]
    ir_version: int
    opsets: Mapping[str, int]
    notes: tuple[str, ...] = ()

    def report(
        self, entries: Sized, aliases: Sized, identity: str, way: tuple[StrPath, StrPath, str]
    ) -> ConversionReport:
        """Return the report on a graph that was written.

        Args:
            entries: the tensors that it holds, or is made of.
            aliases: their second names.
            identity: of these weights.
            way: what was read, what was written, and the written format's name.
        """
        source, destination, written = way
        return ConversionReport(
            source=os.fspath(source),
            destination=os.fspath(destination),
            format=written,
            tensors=len(entries) + len(aliases),
            identity=identity,
            proof=self.proof,
            notes=self.notes,
            ir_version=self.ir_version,
            opsets=self.opsets,
        )


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What is asked of a conversion beside its two ends.

    Attributes:
        only: patterns of the names to write; None for all.
        rename: patterns and what takes their place.
        dtype: what floating-point tensors are cast to.
        allow_loss: what may be lost.
        reading: options of the source's format.
        writing: options of the target's format.
        verify: whether the written file is read back and compared.
        overwrite: whether a file that stands there is replaced.
    """

    only: Patterns | None = None
    rename: Rules | None = None
    dtype: DType | None = None
    allow_loss: Collection[str] = ()
    reading: Mapping[str, Any] = field(default_factory=dict)
    writing: Mapping[str, Any] = field(default_factory=dict)
    verify: bool = True
    overwrite: bool = False


def convert_weights(
    source: StrPath, destination: StrPath, target: Format, wishes: Wishes
) -> ConversionReport:
    """Write the weights of a bundle or file as another file, and read them back.

    Raises:
        LossError: the target does not keep something that was not allowed to be lost.
        PersistlibError: reading or writing failed; what stood at `destination` stands unchanged.
    """

    def work(checkpoint: CheckpointReader) -> ConversionReport:
        return _Conversion(checkpoint, source, destination, target, wishes).run()

    return with_checkpoint(source, work, **wishes.reading)


class _Conversion:
    """One conversion: what is read, through which names and dtypes, into which file."""

    def __init__(
        self,
        checkpoint: CheckpointReader,
        source: StrPath,
        destination: StrPath,
        target: Format,
        wishes: Wishes,
    ) -> None:
        self.checkpoint = checkpoint
        self.source, self.destination = os.fspath(source), os.fspath(destination)
        self.target, self.wishes = target, wishes

    def run(self) -> ConversionReport:
        """Carry it out."""
        renames = self._renames()
        chosen = Selection(self.checkpoint, renames)
        losses = self._losses(chosen)
        with _Watched(chosen) as seen:
            cast = None if self.wishes.dtype is None else Cast(seen, self.wishes.dtype, self.source)
            with seen if cast is None else _Watched(cast) as written:
                self._require_dtypes(written)
                self._write(written)
                before, after = expand(seen, seen.digests), expand(written, written.digests)
        names = {new: old for old, new in renames.items()}
        ledger = {} if cast is None else cast.ledger
        rows = tuple(
            ConvertedTensor(
                new.name,
                names[new.name],
                new.dtype.name,
                new.shape,
                old.blake3,
                new.blake3,
                ledger.get(written.aliases.get(new.name, new.name)),
            )
            for old, new in zip(before, after, strict=True)
        )
        return self._report(rows, before, after, losses, names)

    def _renames(self) -> dict[str, str]:
        """Return the names to convert, each with its new name."""
        names = (*self.checkpoint.tensors, *self.checkpoint.aliases)
        chosen = names if self.wishes.only is None else select(self.wishes.only, names)
        rules = self.wishes.rename
        return {name: name for name in chosen} if rules is None else renamed(rules, chosen)

    def _report(
        self,
        rows: tuple[ConvertedTensor, ...],
        before: tuple[TensorRow, ...],
        after: tuple[TensorRow, ...],
        losses: tuple[str, ...],
        names: Mapping[str, str],
    ) -> ConversionReport:
        whole = len(self.checkpoint.entries) + len(self.checkpoint.aliases)
        origin = weights_identity(row._replace(name=names[row.name]) for row in before)
        return ConversionReport(
            source=self.source,
            destination=self.destination,
            format=self.target.name,
            tensors=len(rows),
            identity=weights_identity(after),
            losses=losses,
            source_format=self.checkpoint.format,
            source_identity=origin if len(rows) == whole else None,
            kept=tuple(sorted(self.target.keeps - {"graph"})),
            rows=rows,
            notes=self.checkpoint.notes,
        )

    def _losses(self, checkpoint: CheckpointReader) -> tuple[str, ...]:
        """Return what the target does not keep.

        Raises:
            LossError: it was not allowed to be lost.
        """
        losses = list(checkpoint.losses)
        if "ties" not in self.target.keeps:
            losses += [f"alias {alias} -> {name}" for alias, name in checkpoint.aliases.items()]
        if "metadata" not in self.target.keeps:
            losses += [f"metadata {key}" for key in checkpoint.metadata if key != "format"]
        allowed = set(self.wishes.allow_loss)
        refused = [loss for loss in losses if not {"all", _kind(loss)} & allowed]
        if refused:
            kinds = sorted({_kind(loss) for loss in refused})
            more = f" and {len(refused) - _SHOWN} more" if len(refused) > _SHOWN else ""
            raise error(
                Code.LOSS,
                self.destination,
                f"{self.target.title} does not keep: {'; '.join(refused[:_SHOWN])}{more}",
                f"--allow-loss {' '.join(kinds)}",
            )
        return tuple(losses)

    def _require_dtypes(self, checkpoint: CheckpointReader) -> None:
        for entry in checkpoint.entries:
            if not self.target.holds(entry.dtype):
                raise error(
                    Code.FORMAT_DTYPE,
                    f"{self.source}: {entry.name}",
                    f"{self.target.title} cannot hold {entry.dtype.name}",
                    "cast it (--dtype), leave it out (--only), or choose another format",
                )

    def _write(self, checkpoint: _Watched) -> None:
        """Write the file and what lies beside it, all of it compared before any of it is there."""
        staged: dict[str, str] = {}
        with ExitStack() as files:
            beside = _Beside(self.destination, files, staged, overwrite=self.wishes.overwrite)
            out = files.enter_context(
                publish.file(self.destination, overwrite=self.wishes.overwrite)
            )
            offered = {"beside": beside.create} | dict(self.wishes.writing)
            options = {k: v for k, v in offered.items() if k in self.target.writes_with}
            self.target.module().write_to(checkpoint, out, **options)
            if self.wishes.verify:
                reading = {"external": staged} if "external" in self.target.reads_with else {}
                with self.target.module().open_file(out.path, **reading) as read:
                    self._compare(checkpoint, read)

    def _compare(self, written: _Watched, read: CheckpointReader) -> None:
        """Refuse what does not read back as it was written."""
        expected = {row.name: row for row in expand(written, written.digests)}
        found = {row.name: row for row in tensor_rows(read)}
        for name, row in expected.items():
            if found.get(name) != row:
                reason = f"reads back as {found.get(name)}, written was {row}"
                raise error(Code.READBACK, f"{self.destination}: {name}", reason, _AGAIN)
        if "ties" in self.target.keeps and dict(read.aliases) != dict(written.aliases):
            raise error(Code.READBACK, self.destination, "other names are tied", _AGAIN)


class _Watched(CheckpointReader):
    """Another checkpoint, each tensor digested on another thread while it passes.

    Attributes:
        digests: BLAKE3 of each entry that has passed.
    """

    def __init__(self, source: CheckpointReader) -> None:
        super().__init__(source.entries, source.aliases, source.metadata)
        self._source = source
        self._pool = ThreadPoolExecutor(1)
        # Of a tensor without bytes nothing passes, and a writer need not ask for it.
        nothing = RunningDigest().hexdigest()
        self.digests = {entry.name: nothing for entry in source if not entry.nbytes}

    def read_bytes(self, name: str) -> memoryview:
        """Return the bytes of an entry."""
        return joined(self.windows(name))

    def windows(self, name: str) -> Iterator[memoryview]:
        """Yield the bytes of an entry."""
        running = RunningDigest(alone=True)
        for window in self._source.windows(name):
            if window.nbytes < _THREADED:
                running.update(window)
                yield window
            else:
                busy = self._pool.submit(running.update, window)
                yield window
                busy.result()
        self.digests[name] = running.hexdigest()

    def close(self) -> None:
        """End the thread."""
        self._pool.shutdown()


class _Beside:
    """Files that appear together with the destination, in its folder."""

    def __init__(
        self, destination: str, files: ExitStack, staged: dict[str, str], *, overwrite: bool
    ) -> None:
        self._folder = os.path.dirname(os.path.abspath(destination))
        self._files, self._staged, self._overwrite = files, staged, overwrite

    def create(self, name: str) -> publish.OutFile:
        """Return a new file `name`, published when all is."""
        path = os.path.join(self._folder, name)
        out = self._files.enter_context(publish.file(path, overwrite=self._overwrite))
        self._staged[name] = out.path
        return out


_SHOWN = 5
_AGAIN = "check the disk and convert again; nothing was left there"


def _kind(loss: str) -> str:
    """Return the word by which a loss is allowed."""
    return loss.partition(" ")[0]
