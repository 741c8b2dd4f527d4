"""The three containers of torch: the zip archive, the archive of TorchScript, the older stream.

Each gives what its pickle describes and where its storages stand. Nothing but the pickle, the
directory and the headers is read here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from persistlib.converters.torch_pickle import Walk
from persistlib.converters.torch_values import Instance, Mapping
from persistlib.converters.torch_zip import Record, audit, content
from persistlib.errors import Code, FormatError, error

if TYPE_CHECKING:
    from persistlib.converters.file_bytes import FileBytes
    from persistlib.errors import PersistlibError

_PICKLE, _CONSTANTS, _ORDER, _VERSION = "data.pkl", "constants.pkl", "byteorder", "version"
_VERSIONS = {str(number).encode() for number in range(1, 11)}  # caffe2/serialize/versions.h
_ZIP, _PROTO = b"PK\3\4", 0x80
_TAR, _TAR_AT = b"ustar", 257
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
# How much of a stream is read to find the end of its pickles: more when it was not enough.
_HEADS = (1 << 20, 16 << 20, 128 << 20)
# Of torch.export's archives, which hold code and pickles of their own.
_EXPORTED = ("archive_format", "archive_version", "serialized_exported_program.json")
_AGAIN = "fetch or save the file again"
_CONVERT = "save the state_dict with torch.save, where the file is trusted"


class Contents(NamedTuple):
    """What a file of torch holds.

    Attributes:
        root: what its pickle describes.
        storages: where the bytes of each storage stand.
        container: the container in words.
        is_big_endian: whether elements have their highest byte first.
        is_script: whether there is code beside the tensors.
    """

    root: object
    storages: dict[str, Record]
    container: str
    is_big_endian: bool = False
    is_script: bool = False


def contents(data: FileBytes) -> Contents:
    """Return what a file of torch holds.

    Raises:
        FormatError: the file breaks a rule, or names what is never read.
        IntegrityError: the pickle differs from its CRC-32.
    """
    if data[:4] == _ZIP:
        return _archive(data)
    if data[_TAR_AT : _TAR_AT + len(_TAR)] == _TAR:
        raise _unknown(data, "a tar archive, which torch wrote before 0.1.10")
    if data[:1] == bytes([_PROTO]):
        return _stream(data)
    raise _unknown(data, "neither a zip archive nor a stream of torch.save")


def _unknown(data: FileBytes, reason: str) -> PersistlibError:
    return error(Code.FORMAT_UNKNOWN, data.location, reason, _CONVERT)


def _archive(data: FileBytes) -> Contents:
    """Return what a zip archive holds."""
    location = data.location
    records = audit(data, location)
    if exported := next((name for name in _EXPORTED if name in records), None):
        reason = f"an archive of torch.export ({exported}), which holds code"
        raise error(Code.FORMAT_UNSAFE, location, reason, _CONVERT)
    if _PICKLE not in records:
        raise _unknown(data, f"a zip archive without {_PICKLE}")

    def read(name: str) -> bytes:
        return content(data, records[name], name, f"{location}: {name}")

    version = read(_VERSION).rstrip(b"\n") if _VERSION in records else b""
    if version and version not in _VERSIONS:
        raise _unknown(data, "an archive of a version that is not 1 to 10")
    order = read(_ORDER) if _ORDER in records else b"little"
    if order not in (b"little", b"big"):
        raise error(Code.FORMAT_HEADER, location, f"the byte order {order[:16]!r}", _AGAIN)
    root = _pickled(read(_PICKLE), location, "data")
    is_script = _CONSTANTS in records
    if isinstance(root, Instance) and is_script:
        constants = _pickled(read(_CONSTANTS), location, "constants")
        if isinstance(constants, tuple) and constants:
            named = Mapping([(f"c{index}", value) for index, value in enumerate(constants)])
            root.state = Mapping([*root.state.items, ("CONSTANTS", named)])
    kind = "TorchScript archive" if is_script else "zip archive"
    numbered = f", version {version.decode()}" if version else ""
    container = f"{kind}{numbered}, {order.decode()}-endian"
    return Contents(root, records, container, order == b"big", is_script)


def _pickled(data: bytes, location: str, folder: str) -> object:
    walk = Walk(memoryview(data), location, folder=folder)
    root = walk.run()
    if walk.position != len(data):
        raise error(Code.FORMAT_HEADER, location, "bytes after the end of the pickle", _AGAIN)
    return root


def _stream(data: FileBytes) -> Contents:
    """Return what a file of torch before 1.6 holds: five pickles, then the storages."""
    *few, most = (min(size, data.size) for size in _HEADS)
    for size in few:
        if size == data.size:
            break
        try:
            return _parsed(data, memoryview(data[:size]))
        except FormatError:  # where the head ends inside a pickle, any fault can show
            continue
    return _parsed(data, memoryview(data[:most]))


def _parsed(data: FileBytes, head: memoryview) -> Contents:
    """Return what a stream holds, given its head with all the pickles.

    The storages are little-endian whatever machine wrote them (torch/csrc/serialization.cpp).
    """
    location = data.location
    walk = Walk(head, location)
    if walk.run() != _MAGIC:
        raise _unknown(data, "a bare pickle, which is never read")
    walk = Walk(head, location, position=walk.position)
    if walk.run() != _PROTOCOL:
        raise _unknown(data, "a stream of an unknown protocol")
    walk = Walk(head, location, position=walk.position)
    walk.run()  # sizes of C types on the writing machine, which nothing depends on
    pickled = Walk(head, location, position=walk.position)
    root = pickled.run()
    walk = Walk(head, location, position=pickled.position)
    keys = walk.run()
    if not isinstance(keys, list) or any(type(key) is not str for key in keys):
        raise error(Code.FORMAT_HEADER, location, "a malformed list of storages", _AGAIN)
    if len(keys) != len(pickled.storages) or set(keys) != set(pickled.storages):
        reason = "the list of storages is not that of the pickle"
        raise error(Code.FORMAT_HEADER, location, reason, _AGAIN)
    storages: dict[str, Record] = {}
    at = walk.position
    for name in keys:
        storage = pickled.storages[name]
        count = int.from_bytes(data[at : at + 8], "little")
        size = count * storage.itemsize
        if count != storage.numel or at + 8 + size > data.size:
            reason = f"the storage {name} is cut off"
            raise error(Code.FORMAT_TRUNCATED, location, reason, _AGAIN)
        storages[name] = Record(at + 8, size, None)
        at += 8 + size
    if at != data.size:
        raise error(Code.FORMAT_TRUNCATED, location, "bytes after the last storage", _AGAIN)
    return Contents(root, storages, "stream of torch before 1.6")
