"""The promise table: every file format, the module that speaks it, and what it keeps.

The core names converters only here, as strings, and loads one when it is first used.
"""

from __future__ import annotations

import importlib
import os
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from persistlib.errors import Code, error
from persistlib.files import read_fault

if TYPE_CHECKING:
    from persistlib.files import StrPath


class Format(NamedTuple):
    """One file format.

    Attributes:
        name: what `--to` calls it.
        title: what people call it.
        suffixes: file name endings, the usual one first.
        speaker: the module with `open_file` and `write`; empty for a graph, which is exported.
        keeps: what a file of the format keeps of a model.
    """

    name: str
    title: str
    suffixes: tuple[str, ...]
    speaker: str
    keeps: frozenset[str]

    def module(self) -> Any:
        """Return the module that speaks the format."""
        return _module(self.speaker)


_HEAD = 16
# A zip archive; pickles of protocols 2 to 5, with which torch's older stream begins.
_TORCH_STARTS = (b"PK\3\4", b"\x80\2", b"\x80\3", b"\x80\4", b"\x80\5")
WEIGHTS = frozenset({"dtypes", "bits", "names", "ties"})
FORMATS = {
    row.name: row
    for row in (
        Format(
            "safetensors",
            "safetensors",
            (".safetensors",),
            "persistlib.converters.safetensors_file",
            WEIGHTS | {"metadata"},
        ),
        Format(
            "torch",
            "PyTorch state_dict",
            (".pt", ".pth", ".bin", ".ckpt"),
            "persistlib.converters.torch_file",
            WEIGHTS | {"order"},
        ),
        Format("onnx", "ONNX graph", (".onnx",), "", frozenset({"graph", "interface"})),
    )
}


@cache
def _module(name: str) -> Any:
    return importlib.import_module(name)


def by_suffix(path: StrPath) -> Format:
    """Return the format that a path's ending stands for.

    Raises:
        FormatError: no format has that ending.
    """
    suffix = os.path.splitext(os.fspath(path))[1].lower()
    for row in FORMATS.values():
        if suffix in row.suffixes:
            return row
    raise error(
        Code.FORMAT_UNKNOWN,
        path,
        f"the ending {suffix!r} stands for no format",
        f"use one of {', '.join(s for row in FORMATS.values() for s in row.suffixes)}, or --to",
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
    """Return the format that a file's first bytes show.

    Raises:
        FormatError: they show none that is read here.
        TargetError: the file cannot be read.
    """
    try:
        with open(path, "rb") as handle:
            head = handle.read(_HEAD)
    except OSError as fault:
        raise read_fault(fault, path) from fault
    if head.startswith(_TORCH_STARTS):
        return FORMATS["torch"]
    if head[8:9] == b"{":
        return FORMATS["safetensors"]
    raise error(
        Code.FORMAT_UNKNOWN,
        path,
        "its first bytes show no format that is read here",
        "give a bundle, a safetensors file or a PyTorch checkpoint",
    )
