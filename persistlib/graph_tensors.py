"""Where the values of an ONNX tensor lie when they lie outside its file, read and said.

Law: `place_of(pairs_of(place), where) == place`. A place is one plain file name in the model's own
folder, and a part of that file; nothing else is ever named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from persistlib.errors import Code, error
from persistlib.files import name_fault

if TYPE_CHECKING:
    from collections.abc import Iterable

# protobuf ends at 2 GiB; what is not the state (constants, the graph) needs room beside it.
EXTERNAL_ABOVE = 1_500_000_000
EXTERNAL_TENSOR = 1024  # bytes; smaller ones stay in the file, as onnx's own writer does
ALIGNMENT = 4096  # of a tensor in the data file: the page size, so that it can be mapped
_KEYS = frozenset({"location", "offset", "length", "checksum"})
_DIGITS = 19  # of 2**63
_REMEDY = "do not use this file; export the model again"


class ExternalPlace(NamedTuple):
    """A part of a file beside the model.

    Attributes:
        name: of the file.
        offset: where the values begin.
        length: how many bytes they have; None where only their dtype and shape say so.
        checksum: the SHA-1 of the whole file in hexadecimal; empty where none is said.
    """

    name: str
    offset: int
    length: int | None
    checksum: str = ""


def place_of(pairs: Iterable[tuple[str, str]], where: str) -> ExternalPlace:
    """Return the place that a tensor's `external_data` says.

    Raises:
        FormatError: a key that is unknown or stands twice, a name that is no plain file name in
            the model's own folder, or what is no number.
    """
    said: dict[str, str] = {}
    for key, text in pairs:
        if key in said or key not in _KEYS:
            reason = "external data with an unknown key, or one twice"
            raise error(Code.GRAPH_UNSAFE, where, reason, _REMEDY)
        said[key] = text
    name = said.get("location", "")
    if fault := name_fault(name):
        raise error(Code.GRAPH_UNSAFE, where, f"external data in {name!r}: {fault}", _REMEDY)
    length = _number(said["length"], where) if "length" in said else None
    offset = _number(said.get("offset", "0"), where)
    return ExternalPlace(name, offset, length, said.get("checksum", ""))


def pairs_of(place: ExternalPlace) -> list[tuple[str, str]]:
    """Return what a tensor's `external_data` says of a place."""
    said = [("location", place.name), ("offset", str(place.offset))]
    said += [] if place.length is None else [("length", str(place.length))]
    return said + ([("checksum", place.checksum)] if place.checksum else [])


def aligned(end: int) -> int:
    """Return where the next tensor of a data file begins."""
    return -(-end // ALIGNMENT) * ALIGNMENT


def dtype_name(number: int) -> str:
    """Return what ONNX calls a dtype; empty for a number that it does not know."""
    import onnx

    values = onnx.TensorProto.DataType.DESCRIPTOR.values_by_number
    return values[number].name if number in values else ""


def _number(text: str, where: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _DIGITS):
        reason = f"external data at {text[:40]!r}, which is no number"
        raise error(Code.GRAPH_UNSAFE, where, reason, _REMEDY)
    return int(text)
