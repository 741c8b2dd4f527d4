"""The zip archives of Keras 3, `.keras`: audited, and the weights in them as a file of their own.

Law: as `torch_zip`: an archive that two readers could read differently is not read. What is used
was compared with its CRC-32; records are never unpacked, since Keras stores them as they are.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, NamedTuple

from persistlib.canonical import parse
from persistlib.checkpoint import WINDOW
from persistlib.converters.keras_config import CONFIG_LIMIT
from persistlib.converters.listing import Source, refusal
from persistlib.converters.torch_zip import KERAS, audit
from persistlib.errors import Code

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Buffer

    from persistlib.converters.torch_zip import Record

_ZIP = b"PK\3\4"
_CONFIG, _METADATA, _WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
_RECORDS = {_CONFIG, _METADATA, _WEIGHTS}
_VERSION, _SAVED = "keras_version", "date_saved"
_METADATA_LIMIT = 1 << 16


class Archive(NamedTuple):
    """What a `.keras` archive holds.

    Attributes:
        weights: the HDF5 file in it.
        config: the model's configuration, text.
        version: Keras' version.
        saved: when it was saved, as Keras says it; empty if it does not.
        losses: what is in it beside.
    """

    weights: Part
    config: str
    version: str
    saved: str
    losses: tuple[str, ...]


class Part(Source):
    """A stretch of another source, as a file of its own."""

    def __init__(self, source: Source, start: int, size: int) -> None:
        super().__init__(source.fd, size)
        self._source, self._start = source, start

    def readinto(self, into: Buffer) -> int:
        """Fill a buffer from the position; what lies past the end of the stretch is zero."""
        view = memoryview(into).cast("B")
        inside = max(min(len(view), self.size - self._at), 0)
        self._source.seek(self._start + self._at)
        self._source.readinto(view[:inside])
        view[inside:] = bytes(len(view) - inside)
        self._at += len(view)
        return len(view)


def is_zip(source: Source) -> bool:
    """Return whether a file begins as an archive does."""
    return _Bytes(source)[: len(_ZIP)] == _ZIP


def audited(source: Source) -> Archive:
    """Return what an archive holds.

    Raises:
        FormatError: it breaks a rule, or is no Keras model in one file.
        IntegrityError: a record differs from its CRC-32.
    """
    records = audit(_Bytes(source), "", KERAS)
    if missing := sorted(_RECORDS - records.keys()):
        raise refusal(
            Code.FORMAT_UNKNOWN,
            "",
            f"a Keras archive without {', '.join(missing)}",
            "save the model with Keras 3 as one .keras file, its weights as HDF5 and not sharded",
        )
    data = _content(source, records, _METADATA, _METADATA_LIMIT)
    said = parse(data, _METADATA, code=Code.FORMAT_HEADER)
    try:
        config = _content(source, records, _CONFIG, CONFIG_LIMIT).decode()
    except UnicodeDecodeError as fault:
        raise refusal(Code.FORMAT_HEADER, _CONFIG, "text that is not UTF-8") from fault
    weights = Part(source, records[_WEIGHTS].start, records[_WEIGHTS].size)
    _check(weights, records[_WEIGHTS], _WEIGHTS)
    told = {key: said[key] for key in (_VERSION, _SAVED) if isinstance(said.get(key), str)}
    losses = [f"metadata {key}" for key in said if key not in told]
    losses += [f"value {name}, which is no weight" for name in records if name not in _RECORDS]
    return Archive(weights, config, told.get(_VERSION, ""), told.get(_SAVED, ""), tuple(losses))


def _content(source: Source, records: Mapping[str, Record], name: str, limit: int) -> bytes:
    """Return a record's bytes, compared with their CRC-32."""
    record = records[name]
    if record.size > limit:
        raise refusal(Code.FORMAT_LIMIT, name, f"{record.size} bytes, at most {limit} are read")
    part = Part(source, record.start, record.size)
    _check(part, record, name)
    part.seek(0)
    return bytes(part.read(record.size) or b"")


def _check(part: Part, record: Record, name: str) -> None:
    """Compare a record's bytes with their CRC-32.

    Raises:
        IntegrityError: they differ.
    """
    buffer = memoryview(bytearray(min(WINDOW, record.size)))
    found = 0
    for start in range(0, record.size, WINDOW):
        window = buffer[: min(WINDOW, record.size - start)]
        part.readinto(window)
        found = zlib.crc32(window, found)
    if found != record.crc:
        reason = f"the record has CRC-32 {found:08x}, not {record.crc:08x}"
        raise refusal(Code.FILE_DIGEST, name, reason)


class _Bytes:
    """A source as the audit of archives wants to see it."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def __len__(self) -> int:
        return self._source.size

    def __getitem__(self, span: slice, /) -> bytes:
        begin, end, _ = span.indices(self._source.size)
        self._source.seek(begin)
        data = bytearray(max(end - begin, 0))
        self._source.readinto(data)
        return bytes(data)
