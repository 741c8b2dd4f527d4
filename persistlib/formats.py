"""The promise table: every file format, the module that speaks it, and what it keeps.

The core names converters only here, as strings, and loads one when it is first used. The
round-trip tests, the loss report, `persistlib formats` and the table in README.md derive from it.
"""

from __future__ import annotations

import importlib
import io
import os
import stat
import zipfile
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from persistlib.errors import Code, error
from persistlib.files import read_fault
from persistlib.manifest import consistency

if TYPE_CHECKING:
    from persistlib.dtypes import DType
    from persistlib.files import StrPath


class Format(NamedTuple):
    """One file format.

    Attributes:
        name: what `--to` calls it.
        title: what people call it.
        suffixes: file name endings, the usual one first.
        speaker: the module with `open_file`, and `write_to` where it is written.
        keeps: what a file of the format keeps of a checkpoint, in words of `PROMISES`.
        dtypes: the column of `dtypes.Row` that says which dtypes it can hold; empty for none.
        reads_with: options of the speaker's `open_file` beside the path.
        writes_with: options of its `write_to` beside the checkpoint and the file.
        is_written: whether persistlib writes it.
        remark: what else there is to know, a clause.
    """

    name: str
    title: str
    suffixes: tuple[str, ...]
    speaker: str
    keeps: frozenset[str]
    dtypes: tuple[str, ...] = ()
    reads_with: frozenset[str] = frozenset()
    writes_with: frozenset[str] = frozenset()
    is_written: bool = True
    remark: str = ""

    def module(self) -> Any:
        """Return the module that speaks the format."""
        return _module(self.speaker)

    def holds(self, dtype: DType) -> bool:
        """Return whether a file of the format can hold a dtype."""
        return any(getattr(dtype.value, column) for column in self.dtypes)


PROMISES = {
    "bits": "every byte of every tensor",
    "names": "every tensor's name",
    "ties": "which names share one tensor",
    "order": "the order of the tensors",
    "metadata": "string metadata",
    "graph": "the network itself",
}
# The first word of a loss, by which `--allow-loss` allows it.
LOSSES = {
    "value": "what a file holds beside its tensors, such as an epoch or an optimizer's settings",
    "metadata": "string metadata that the other format has no place for",
    "alias": "that two names are one tensor; each gets a copy",
    "graph": "the network itself; the weights are kept",
}
_WEIGHTS = frozenset({"bits", "names", "ties"})
FORMATS = {
    row.name: row
    for row in (
        Format(
            "safetensors",
            "safetensors",
            (".safetensors", ".safetensors.index.json"),
            "persistlib.converters.safetensors_file",
            _WEIGHTS | {"metadata"},
            ("safetensors",),
            reads_with=frozenset({"external"}),
            writes_with=frozenset({"beside", "shard_bytes"}),
        ),
        Format(
            "torch",
            "PyTorch state_dict",
            (".pt", ".pth", ".bin", ".ckpt"),
            "persistlib.converters.torch_file",
            _WEIGHTS | {"order"},
            ("torch", "torch_pairs"),
            reads_with=frozenset({"key"}),
        ),
        Format(
            "dcp",
            "torch.distributed.checkpoint",
            (".distcp",),
            "persistlib.converters.dcp_file",
            frozenset({"bits", "names", "order"}),
            ("torch",),
            reads_with=frozenset({"key"}),
            is_written=False,
            remark="a folder of pieces, read only",
        ),
        Format(
            "hdf5",
            "HDF5",
            (".hdf5", ".h5"),
            "persistlib.converters.hdf5_file",
            _WEIGHTS | {"order", "metadata"},
            ("hdf5",),
            reads_with=frozenset({"layout"}),
            writes_with=frozenset({"compression"}),
        ),
        Format(
            "keras",
            "Keras",
            (".keras", ".weights.h5", ".h5", ".hdf5"),
            "persistlib.converters.keras_file",
            _WEIGHTS | {"graph"},
            ("hdf5",),
            reads_with=frozenset({"layout"}),
            is_written=False,
            remark="read only",
        ),
        Format(
            "onnx",
            "ONNX graph",
            (".onnx",),
            "persistlib.converters.onnx_graph",
            _WEIGHTS | {"order", "metadata", "graph"},
            ("onnx",),
            reads_with=frozenset({"key", "external"}),
            writes_with=frozenset({"template", "beside"}),
            remark="written from a bundle, or into a given graph (--template)",
        ),
    )
}

_HEAD = 64
_ZIP = b"PK\3\4"
# Pickles of protocols 2 to 5, with which torch's older stream begins.
_PICKLES = (b"\x80\2", b"\x80\3", b"\x80\4", b"\x80\5")
_HDF5 = b"\x89HDF\r\n\x1a\n"
# An HDF5 file may begin with a block of the user's (the superblock is at 0, 512, 1024, ...).
_HDF5_PLACES = tuple([0] + [512 << shift for shift in range(12)])
_DCP = ".metadata"
_DIRECTORY = 1 << 20  # bytes; that of a Keras archive has some hundred, assets take more
_KERAS = {"config.json", "model.weights.h5"}
_MAP = b'"weight_map"'
_INDEX_HEAD = 1 << 16
# Fields of ModelProto by number: the wire types that they have.
_MODEL_FIELDS = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}
_IR_VERSION = 0x08


@cache
def _module(name: str) -> Any:
    return importlib.import_module(name)


def ending(path: StrPath) -> str:
    """Return the longest ending of a path that stands for a format, or its last one."""
    name = os.path.basename(os.fspath(path)).lower()
    known = [s for row in FORMATS.values() for s in row.suffixes if name.endswith(s)]
    return max(known, key=len, default=os.path.splitext(name)[1])


def by_suffix(path: StrPath) -> Format:
    """Return the format that a path's ending stands for.

    Raises:
        FormatError: no format has that ending.
    """
    suffix = ending(path)
    for row in FORMATS.values():
        if suffix in row.suffixes:
            return row
    endings = (s for row in FORMATS.values() if row.is_written for s in row.suffixes)
    raise error(
        Code.FORMAT_UNKNOWN,
        path,
        f"the ending {suffix!r} stands for no format" if suffix else "no ending tells its format",
        f"use one of {', '.join(dict.fromkeys(endings))}, or --to",
    )


def by_name(name: str) -> Format:
    """Return the format called `name`.

    Raises:
        UsageError: there is none.
    """
    if name not in FORMATS:
        raise error(Code.USAGE, name, "is no format", f"use one of {', '.join(sorted(FORMATS))}")
    return FORMATS[name]


def by_content(path: StrPath) -> Format:
    """Return the format that a file's own bytes show, or a folder's files, whatever it is called.

    Raises:
        FormatError: they show none that is read here.
        TargetError: the file cannot be read.
    """
    if is_pieces(path):
        return FORMATS["dcp"]
    try:
        with open(path, "rb", opener=_opened) as handle:
            if not stat.S_ISREG(os.fstat(handle.fileno()).st_mode):
                raise error(Code.SOURCE_READ, path, "not a regular file", "name a file")
            head = handle.read(_INDEX_HEAD)
            handle.seek(0)
            name = _shown(head) or ("hdf5" if _has_superblock(handle) else "")
    except OSError as fault:
        raise read_fault(fault, path) from fault
    if name == "torch" and head.startswith(_ZIP) and _is_keras(path):
        name = "keras"
    if name:
        return FORMATS[name]
    raise error(
        Code.FORMAT_UNKNOWN,
        path,
        "its first bytes show no format that is read here",
        f"give a bundle, or a file of {', '.join(row.title for row in FORMATS.values())}",
    )


def is_pieces(path: StrPath) -> bool:
    """Return whether a folder is one of torch.distributed.checkpoint, and no bundle."""
    return os.path.isfile(os.path.join(path, _DCP)) and not os.path.lexists(
        os.path.join(path, consistency.NAME)
    )


def _opened(path: str, flags: int) -> int:
    """Open a file; a pipe is opened too, without waiting for whoever writes into it."""
    return os.open(path, flags | os.O_NONBLOCK)


def _shown(head: bytes) -> str:
    """Return the name of the format that the first bytes show, or nothing."""
    if head.startswith((_ZIP, *_PICKLES)):
        return "torch"
    if head.startswith(_HDF5):
        return "hdf5"
    if head[8:9] == b"{" or (head.lstrip()[:1] == b"{" and _MAP in head):
        return "safetensors"
    return "onnx" if _is_model(head[:_HEAD]) else ""


def _has_superblock(handle: Any) -> bool:
    for place in _HDF5_PLACES:
        handle.seek(place)
        if handle.read(len(_HDF5)) == _HDF5:
            return True
    return False


class _Glance(io.FileIO):
    """A file of which no more than the directory of an archive of few records is read at once."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Return some bytes, fewer where more are asked for than a Keras model needs."""
        return super().read(min(size, _DIRECTORY) if size is not None and size >= 0 else _DIRECTORY)


def _is_keras(path: StrPath) -> bool:
    """Return whether a zip archive is a Keras model; what is odd is left to the strict audit."""
    try:
        with _Glance(path, opener=_opened) as handle, zipfile.ZipFile(handle) as archive:
            return set(archive.namelist()) >= _KERAS
    except Exception:  # noqa: BLE001 - a hostile archive may make the library raise anything
        return False


def _is_model(head: bytes) -> bool:
    """Return whether bytes begin as an `onnx.ModelProto` does: known fields, well encoded."""
    at = 0
    seen = 0
    while at < len(head) and seen < 3:
        tag = head[at]
        at += 1
        if tag & 0x80:  # fields from 16 on take two bytes, and come last
            break
        if _MODEL_FIELDS.get(tag >> 3) != tag & 7 or (not seen and tag not in {_IR_VERSION, 0x3A}):
            return False
        value = shift = 0
        while at < len(head):
            byte = head[at]
            value |= (byte & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if byte < 0x80:
                break
        at += value if tag & 7 else 0
        seen += 1
    return seen > 0
