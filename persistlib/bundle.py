"""An open bundle: its manifest, and its bytes, each compared before it is handed out; no torch.

Every byte that is handed out was compared with its digest in the very memory that is handed out. A
weights file is hashed once: its header's digest and its tensors' digests cover a file without
holes.
"""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from typing import TYPE_CHECKING, TypeVar

from persistlib import bases
from persistlib.canonical import SIZE_LIMIT
from persistlib.digests import digest, digest_all
from persistlib.errors import Code, IntegrityError, error
from persistlib.files import Folder, map_private, read_fault
from persistlib.formats import FORMATS
from persistlib.manifest import document
from persistlib.publish import open_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from types import TracebackType

    from typing_extensions import Self

    from persistlib.checkpoint import CheckpointReader
    from persistlib.converters.safetensors_file import Header
    from persistlib.errors import PersistlibError
    from persistlib.files import StrPath
    from persistlib.manifest.schema import FileEntry, Manifest, TensorRecord, UnsavedTensor

WEIGHTS = "model"
STATE = "state.safetensors"
EXAMPLES = "examples.safetensors"
GRAPH = "model.onnx"
CARD = "README.md"
# Weights above this are written as shards.
SHARD_BYTES = 5_000_000_000
# How often a reader begins again when a writer replaces the bundle under it.
_ATTEMPTS = 1000
_REFETCH = "fetch the bundle again from where it came"

_T = TypeVar("_T")
_Record = TypeVar("_Record", "TensorRecord", "UnsavedTensor")


class Bundle:
    """An open bundle: its folder and its manifest, checked.

    Attributes:
        folder: the open directory; every file is reached through it.
        manifest: what the manifest says.
    """

    def __init__(self, folder: Folder, manifest: Manifest, base: StrPath | None = None) -> None:
        self.folder = folder
        self.manifest = manifest
        self._base_path = base
        self._base: Bundle | None = None

    @property
    def path(self) -> str:
        """The path that it was opened by."""
        return self.folder.path

    def size(self) -> int:
        """Return the bytes of all files that the manifest vouches for, and its own."""
        own = len(document.write(self.manifest))
        return own + sum(entry.size for entry in self.manifest.verified_files())

    def base(self) -> Bundle:
        """Return the open bundle that has the tensors which this one, a delta, does not store.

        Raises:
            IntegrityError: it is not there, or is not the one.
            PersistlibError: it is no bundle that this release can read.
        """
        base = self.manifest.weights.base
        assert base is not None
        if self._base is None:
            folder = bases.open_base(self.path, base, self._base_path)
            try:
                found = _read_manifest(folder)
                bases.require_base(self.path, base, folder.path, found)
            except BaseException:
                folder.close()
                raise
            self._base = Bundle(folder, found)
        return self._base

    def lent(self) -> tuple[TensorRecord, ...]:
        """Return what the manifest says of the tensors that the base has."""
        return tuple(record for record in self.manifest.weights.tensors if record.file is None)

    def tensors(
        self, names: Iterable[str] | None = None, *, mapped: bool = True, verify: bool = True
    ) -> dict[str, memoryview]:
        """Return the bytes of stored tensors, each compared with its digest where it now lies.

        Args:
            names: names of stored tensors, ties by their smallest name; None for all.
            mapped: whether the bytes are a private mapping of the file or a private copy.
            verify: whether digests are compared; without, no link is followed.

        Raises:
            IntegrityError: a file is missing, or differs from the manifest.
        """
        weights = self.manifest.weights
        records = {record.name: record for record in weights.tensors}
        wanted = records if names is None else {name: records[name] for name in names}
        return self._read(weights.files, wanted, mapped=mapped, verify=verify)

    def lend(
        self, wanted: Mapping[str, TensorRecord | UnsavedTensor], *, mapped: bool, verify: bool
    ) -> dict[str, memoryview]:
        """Return the bytes of stored tensors for a delta that stands on this bundle; not compared.

        Args:
            wanted: what the delta says of each, by name.
            mapped: as `tensors`.
            verify: whether headers are compared with their digests; without, no link is followed.

        Raises:
            IntegrityError: there is no such tensor, or it is of another dtype or shape.
        """
        own = {record.name: record for record in self.manifest.weights.tensors}
        by_file: dict[int, dict[str, TensorRecord | UnsavedTensor]] = defaultdict(dict)
        for name, record in wanted.items():
            if name not in own:
                reason = f"it has no tensor {name}"
                raise error(Code.BASE_WRONG, self.path, reason, _REFETCH)
            file = own[name].file
            assert file is not None
            by_file[file][name] = record
        views: dict[str, memoryview] = {}
        for index, records in by_file.items():
            entry = self.manifest.weights.files[index]
            views |= self._views(entry, records, tuple(records), mapped=mapped, verify=verify)
        return views

    def unsaved(self, *, mapped: bool = True, verify: bool = True) -> dict[str, memoryview]:
        """Return the bytes of the stored tensors that are no part of the state_dict.

        Raises:
            IntegrityError: a file is missing, or differs from the manifest.
        """
        state = self.manifest.state
        stored = {n: t for n, t in state.unsaved_buffers.items() if t.file is not None}
        return self._read(state.files, stored, mapped=mapped, verify=verify)

    def whole(self, entry: FileEntry, *, mapped: bool = True, verify: bool = True) -> memoryview:
        """Return the bytes of a file whose entry has a digest of all of them.

        Raises:
            IntegrityError: the file is missing, or differs from its entry.
        """
        fd = self._open(entry, verify=verify)
        try:
            data = self._map(fd, entry, mapped=mapped)
        finally:
            os.close(fd)
        if verify and digest(data) != entry.blake3:
            raise error(
                Code.FILE_DIGEST, self.place(entry), "its bytes differ from the digest", _REFETCH
            )
        return data

    def mapped(self, entry: FileEntry) -> memoryview:
        """Return a mapping of a file's bytes, of the recorded size but not compared.

        Raises:
            IntegrityError: the file is missing, or has another size.
        """
        fd = self._open(entry, verify=True)
        try:
            return self._map(fd, entry, mapped=True)
        finally:
            os.close(fd)

    def expect(self, entry: FileEntry) -> None:
        """Look whether a file is there with the recorded size; none of it is read.

        Raises:
            IntegrityError: the file is missing, or has another size.
        """
        os.close(self._open(entry, verify=True))

    def views(self, entry: FileEntry) -> dict[str, memoryview]:
        """Return every tensor's bytes in a file whose header equals its digest; not compared.

        Raises:
            IntegrityError: the file is missing, or its header differs from the manifest.
        """
        return self._views(entry, self.recorded(entry), None, mapped=True, verify=True)

    def recorded(self, entry: FileEntry) -> dict[str, TensorRecord | UnsavedTensor]:
        """Return what the manifest says of the tensors in a file."""
        weights, state = self.manifest.weights, self.manifest.state
        if entry in weights.files:
            number = weights.files.index(entry)
            return {record.name: record for record in weights.tensors if record.file == number}
        number = state.files.index(entry)
        return {n: t for n, t in state.unsaved_buffers.items() if t.file == number}

    def reader(self, entry: FileEntry) -> CheckpointReader:
        """Return a reader of a safetensors file whose entry has a digest of all its bytes.

        Raises:
            IntegrityError: the file is missing, or differs from its entry.
        """
        safetensors = FORMATS["safetensors"].module()
        reader: CheckpointReader = safetensors.read_memory(self.whole(entry), self.place(entry))
        return reader

    def place(self, entry: FileEntry) -> str:
        """Return a file's path, for an error."""
        return os.path.join(self.path, entry.path)

    def _read(
        self,
        files: Sequence[FileEntry],
        wanted: Mapping[str, _Record],
        *,
        mapped: bool,
        verify: bool,
    ) -> dict[str, memoryview]:
        by_file: dict[int | None, dict[str, _Record]] = defaultdict(dict)
        for name, record in wanted.items():
            by_file[record.file][name] = record
        views: dict[str, memoryview] = {}
        places: dict[int | None, str] = {}
        for index, records in by_file.items():
            if index is None:
                views |= self.base().lend(records, mapped=mapped, verify=verify)
                places[index] = self.base().path
            else:
                names, places[index] = tuple(records), self.place(files[index])
                views |= self._views(files[index], records, names, mapped=mapped, verify=verify)
        if verify:
            digests = digest_all([views[name] for name in wanted])
            for (name, record), computed in zip(wanted.items(), digests, strict=True):
                if computed != record.blake3:
                    place = f"{places[record.file]}: {name}"
                    reason = "the tensor's bytes differ from its digest"
                    raise error(Code.TENSOR_DIGEST, place, reason, _REFETCH)
        return {name: views[name] for name in wanted}

    def _views(
        self,
        entry: FileEntry,
        records: Mapping[str, TensorRecord | UnsavedTensor],
        names: Sequence[str] | None,
        *,
        mapped: bool,
        verify: bool,
    ) -> dict[str, memoryview]:
        """Return views of a file's tensors after its header was compared with the manifest."""
        fd = self._open(entry, verify=verify)
        try:
            header = self._header(fd, entry, verify=verify)
            tensors = {e.name: e for e in header.entries}
            for name, record in records.items():
                found = tensors.get(name)
                if found is None or (found.dtype.name, found.shape) != (record.dtype, record.shape):
                    raise error(
                        Code.HEADER_MISMATCH,
                        f"{self.place(entry)}: {name}",
                        "the header and the manifest disagree about it",
                        _REFETCH,
                    )
            data = self._map(fd, entry, mapped=mapped)
        finally:
            os.close(fd)
        chosen = header.spans if names is None else names
        return {name: data[slice(*header.spans[name])] for name in chosen}

    def _header(self, fd: int, entry: FileEntry, *, verify: bool) -> Header:
        safetensors = FORMATS["safetensors"].module()
        try:
            raw = safetensors.header_bytes(fd, entry.size, self.place(entry))
        except OSError as fault:
            raise read_fault(fault, self.place(entry)) from fault
        if verify and digest(raw) != entry.header_blake3:
            raise error(
                Code.HEADER_DIGEST,
                self.place(entry),
                "the header differs from its digest",
                _REFETCH,
            )
        header: Header = safetensors.parse_header(raw, entry.size, self.place(entry))
        return header

    def _open(self, entry: FileEntry, *, verify: bool) -> int:
        fd = self.folder.open(entry.path, follow=verify)
        size = os.fstat(fd).st_size
        if size != entry.size:
            os.close(fd)
            raise error(
                Code.FILE_SIZE,
                self.place(entry),
                f"{size} bytes, the manifest says {entry.size}",
                _REFETCH,
            )
        return fd

    def _map(self, fd: int, entry: FileEntry, *, mapped: bool) -> memoryview:
        try:
            return map_private(fd, entry.size, mapped=mapped)
        except EOFError as fault:
            raise error(Code.FILE_SIZE, self.place(entry), "it shrank meanwhile") from fault
        except OSError as fault:
            raise read_fault(fault, self.place(entry)) from fault

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._base is not None:
            self._base.folder.close()
        self.folder.close()


def open_bundle(path: StrPath, base: StrPath | None = None) -> Bundle:
    """Return the bundle at `path` with its manifest read and checked; no weight is read.

    Args:
        path: the folder.
        base: where the bundle is that a delta stands on; None for where its manifest says. A bundle
            that is whole needs none, and looks at none.

    Raises:
        TargetError: nothing stands there, or no bundle.
        ManifestError: the manifest cannot be read by this release.
        IntegrityError: the manifest differs from its digest.
    """
    folder = open_folder(path)
    try:
        return Bundle(folder, _read_manifest(folder), base)
    except BaseException:
        folder.close()
        raise


def _read_manifest(folder: Folder) -> Manifest:
    if document.NAME not in folder.names():
        if not folder.is_current():
            raise _ReplacedError
        raise not_a_bundle(folder.path)
    data = folder.read(document.NAME, limit=SIZE_LIMIT)
    return document.read(data, location=os.path.join(folder.path, document.NAME))


def not_a_bundle(path: StrPath) -> PersistlibError:
    """Return the error for a folder that has no manifest."""
    remedy = "name the folder that persistlib.save made"
    return error(Code.NOT_A_BUNDLE, path, f"no {document.NAME} in it", remedy)


def reading(path: StrPath, work: Callable[[Bundle], _T], *, base: StrPath | None = None) -> _T:
    """Return what `work` makes of the bundle at `path`, from one whole version of it.

    A writer that replaces the bundle sweeps the old one while it may still be read: then the work
    begins again on the new one.

    Args:
        path: the bundle.
        work: what is done with it while it is open.
        base: as `open_bundle`.

    Raises:
        PersistlibError: as `open_bundle` and `work`.
    """
    for _ in range(_ATTEMPTS):
        with contextlib.suppress(_ReplacedError):
            return _attempt(path, work, base)
    raise error(Code.SOURCE_READ, path, "replaced faster than it can be read", "try again")


class _ReplacedError(Exception):
    """A writer put another version in the place of the folder that is being read."""


def _attempt(path: StrPath, work: Callable[[Bundle], _T], base: StrPath | None) -> _T:
    try:
        bundle = open_bundle(path, base)
    except IntegrityError as fault:
        if fault.code == Code.FILE_MISSING.identifier:
            raise _ReplacedError from fault
        raise
    with bundle:
        try:
            return work(bundle)
        except IntegrityError as fault:
            if fault.code == Code.FILE_MISSING.identifier and not bundle.folder.is_current():
                raise _ReplacedError from fault
            raise
