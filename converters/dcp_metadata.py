"""What the `.metadata` of torch.distributed.checkpoint says, read without unpickling.

The pickle names a few classes of torch, and dtypes: `_Walk` describes those and refuses every other
one. What it describes is held to the form that torch gives it, and all faults are told together.

Law: reading takes time and memory proportional to the bytes of the metadata, whatever it holds.

Source: torch/distributed/checkpoint/metadata.py and filesystem.py of torch 2.14; the classes of a
tensor's properties stood in torch/distributed/_shard/sharded_tensor/metadata.py before 2.3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, NamedTuple, TypeVar

from persistlib.converters.dcp_tiling import Box
from persistlib.converters.torch_calls import CALLS, SIZE, naturals
from persistlib.converters.torch_pickle import Walk
from persistlib.converters.torch_values import DTYPES, Global, Inert, Instance, Mapping
from persistlib.errors import Code, error, error_of, finding

if TYPE_CHECKING:
    from collections.abc import Callable

    from persistlib.converters.torch_calls import Arguments, Calls
    from persistlib.errors import Finding

AGAIN = "copy the folder again from where it was saved"
# Bytes and opcodes of the metadata: a piece of a tensor has about 250 and 90.
LIMIT = 256 << 20
_OPCODES = 1 << 25
_HERE = "torch.distributed.checkpoint.metadata."
_BEFORE = "torch.distributed._shard.sharded_tensor.metadata."
_METADATA, _TENSOR, _BYTES = (
    f"{_HERE}{name}" for name in ("Metadata", "TensorStorageMetadata", "BytesStorageMetadata")
)
_CHUNK, _INDEX = f"{_HERE}ChunkStorageMetadata", f"{_HERE}MetadataIndex"
_PLACE = "torch.distributed.checkpoint.filesystem._StorageInfo"
_PROPERTIES = {f"{_HERE}TensorProperties", f"{_BEFORE}TensorProperties"}
_ENCODINGS = {f"{_HERE}_MEM_FORMAT_ENCODING", f"{_BEFORE}MEM_FORMAT_ENCODING"}
_OBJECTS = {_METADATA, _TENSOR, _BYTES, _CHUNK, _INDEX, _PLACE, f"{_HERE}StorageMeta"}
_PATHS = tuple(
    f"{module}.{kind}Path"
    for module in ("pathlib", "pathlib._local")
    for kind in ("Posix", "Windows", "PurePosix", "PureWindows")
)
_FIELDS = 8  # the most that a class of these has
_DEPTH = 64
_FAULTS = 100  # that are told

_T = TypeVar("_T")


class Place(NamedTuple):
    """Where a piece stands.

    Attributes:
        file: name of the file, as it is said.
        begin: its first byte.
        size: in bytes.
    """

    file: str
    begin: int
    size: int


class Piece(NamedTuple):
    """A part of a tensor that has elements.

    Attributes:
        box: which.
        place: where it stands.
    """

    box: Box
    place: Place


class Stored(NamedTuple):
    """A tensor as the metadata says it, nothing compared yet.

    Attributes:
        dtype: torch's name of the element type.
        shape: extents.
        pieces: its parts.
    """

    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


class Held(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        values: each value by its flat name: a tensor, or None of what is none.
        paths: the keys that lead to a value in the state that was saved, by its flat name.
        places: where all of it stands.
    """

    values: dict[str, Stored | None]
    paths: dict[str, tuple[str | int, ...]]
    places: tuple[Place, ...]


def _member(arguments: Arguments) -> Inert | None:
    match arguments:
        case (Global(name), str()) if name in _ENCODINGS:
            return Inert()
        case _:
            return None


class _Walk(Walk):
    """A walk over metadata."""

    opcodes: ClassVar[int] = _OPCODES
    spelling: ClassVar[int] = 8
    calls: ClassVar[Calls] = {
        **{name: CALLS[name] for name in (SIZE, "torch.serialization._get_layout")},
        **dict.fromkeys(_PATHS, lambda _: Inert()),
        **dict.fromkeys(_ENCODINGS, lambda _: Inert()),
        # As Python 3.11 began to pickle members of an enumeration.
        "builtins.getattr": _member,
    }

    def _knows(self, full: str) -> bool:
        return full in self.calls or full in DTYPES or self._makes(full)

    def _makes(self, kind: str) -> bool:
        return kind in _OBJECTS or kind in _PROPERTIES

    def _takes(self, kind: str, state: object) -> Mapping | None:
        if kind in _PROPERTIES and type(state) is tuple and len(state) == 5:
            return Mapping([("dtype", state[0])])
        return state if type(state) is Mapping and len(state.items) <= _FIELDS else None


def parse(data: bytes, location: str) -> Held:
    """Return what the bytes of a `.metadata` say.

    Raises:
        FormatError: they are no such pickle, name what is never read, or contradict themselves.
    """
    if len(data) > LIMIT:
        raise error(Code.FORMAT_LIMIT, location, f"more than {LIMIT} bytes", "save fewer values")
    walk = _Walk(memoryview(data), location)
    root = walk.run()
    if walk.position != len(data):
        raise error(Code.FORMAT_HEADER, location, "bytes after the end of the pickle", AGAIN)
    if not isinstance(root, Instance) or root.kind != _METADATA:
        reason = "no metadata of torch.distributed.checkpoint"
        raise error(Code.FORMAT_UNKNOWN, location, reason, AGAIN)
    return _Reading(location).held(_fields(root, _METADATA))


class _MalformedError(Exception):
    """A description has not the form that torch gives it."""


def _fields(value: object, kind: str) -> dict[object, object]:
    """Return the fields of an object of a class."""
    if not isinstance(value, Instance) or value.kind != kind:
        raise _MalformedError(f"no {kind.rpartition('.')[2]}")
    return {key: item for key, item in value.state.items if type(key) is str}


def _extents(value: object) -> tuple[int, ...]:
    """Return a size, or offsets."""
    found = naturals(value) if isinstance(value, tuple) else None
    if found is None:
        raise _MalformedError("a size that is none")
    return found


def _dtype(properties: object) -> str:
    """Return torch's name of the dtype among a tensor's properties."""
    if isinstance(properties, Instance) and properties.kind in _PROPERTIES:
        match properties.state.items:
            case [("dtype", Global(name)), *_] if name in DTYPES:
                return name.removeprefix("torch.")
            case _:
                pass
    raise _MalformedError("its dtype is not said")


class _Reading:
    """The parts of the metadata, compared with each other; faults are collected."""

    def __init__(self, location: str) -> None:
        self._location = location
        self._faults: list[Finding] = []
        # Offsets as text: the numbers of a file could be made to collide.
        self._places: dict[tuple[str, str], Place] = {}
        self._lists: set[int] = set()

    def held(self, fields: dict[object, object]) -> Held:
        """Return what the metadata says.

        Raises:
            FormatError: it contradicts itself.
        """
        for key, value in self._pairs(fields, "storage_data"):
            self._try("a place", self._place, key, value)
        places = tuple(self._places.values())
        values: dict[str, Stored | None] = {}
        for name, value in self._pairs(fields, "state_dict_metadata"):
            if type(name) is not str or name in values:
                self._fault(repr(name)[:99], "a name that is no text, or stands twice")
            else:
                values[name] = self._try(name, self._value, name, value)
        for name, offsets in self._places:
            self._fault(name, f"a piece at {offsets} that no value has")
        said: dict[str, tuple[str | int, ...]] = {}
        if fields.get("planner_data") is not None:
            for name, keys in self._pairs(fields, "planner_data"):
                if type(name) is not str or name not in values or name in said:
                    self._fault(repr(name)[:99], "a path to no value, or a second one")
                else:
                    said[name] = self._try(name, self._path, name, keys) or (name,)
        paths: dict[str, tuple[str | int, ...]] = {name: (name,) for name in values} | said
        self._require_apart(paths)
        if self._faults:
            raise error_of(self._faults)
        return Held(values, paths, places)

    def _pairs(self, fields: dict[object, object], name: str) -> list[tuple[object, object]]:
        found = fields.get(name)
        if isinstance(found, Mapping):
            return found.items
        self._fault(name, "missing, or no dict")
        return []

    def _try(self, name: str, work: Callable[..., _T], *arguments: object) -> _T | None:
        try:
            return work(*arguments)
        except _MalformedError as fault:
            self._fault(name, str(fault))
            return None

    def _fault(self, name: str, reason: str) -> None:
        where = f"{self._location}: {name}"
        self._faults.append(finding(Code.FORMAT_HEADER, where, reason, AGAIN))
        if len(self._faults) == _FAULTS:
            raise error_of(self._faults)

    def _require_apart(self, paths: dict[str, tuple[str | int, ...]]) -> None:
        """Refuse a value that others stand inside of."""
        # Looked up and not kept: all beginnings of a deep path are many times the path.
        whole = {tuple(map(str, path)): name for name, path in paths.items()}
        holders = {
            name: None
            for path in whole
            for depth in range(1, len(path))
            if (name := whole.get(path[:depth])) is not None
        }
        for name in holders:
            self._fault(name, "a value, and a part that holds others")

    def _place(self, key: object, value: object) -> None:
        """Keep where a piece stands."""
        index, said = _fields(key, _INDEX), _fields(value, _PLACE)
        name, offset = index.get("fqn"), index.get("offset")
        if type(name) is not str:
            raise _MalformedError("a piece of a value without a name")
        match [said.get(field) for field in ("relative_path", "offset", "length")]:
            case [str(file), int(begin), int(size)] if naturals((begin, size)) and size:
                pass
            case _:
                raise _MalformedError(f"{name} stands nowhere")
        if said.get("transform_descriptors"):
            raise _MalformedError(f"{name} was transformed when it was saved, as by compression")
        where = (name, "None" if offset is None else str(_extents(offset)))
        if where in self._places:
            raise _MalformedError(f"{name} at {where[1]} stands in two places")
        self._places[where] = Place(file, begin, size)

    def _value(self, name: str, value: object) -> Stored | None:
        """Return a tensor; None of what is none."""
        if isinstance(value, Instance) and value.kind == _BYTES:
            if self._places.pop((name, "None"), None) is None:
                raise _MalformedError("its place is not said")
            return None
        said = _fields(value, _TENSOR)
        shape, chunks = _extents(said.get("size")), said.get("chunks")
        dtype = _dtype(said.get("properties"))
        # A list that is recalled again and again would cost the square of the metadata.
        if not isinstance(chunks, list) or id(chunks) in self._lists:
            raise _MalformedError("its pieces are not said")
        self._lists.add(id(chunks))
        pieces = [self._piece(name, chunk, len(shape)) for chunk in chunks]
        kept = tuple(piece for piece in pieces if piece is not None)
        return Stored(dtype, shape, kept)

    def _piece(self, name: str, chunk: object, rank: int) -> Piece | None:
        """Return a piece; None of one without elements, as a process has that got none."""
        said = _fields(chunk, _CHUNK)
        offsets, sizes = _extents(said.get("offsets")), _extents(said.get("sizes"))
        place = self._places.pop((name, str(offsets)), None)
        if len(offsets) != rank or len(sizes) != rank:
            raise _MalformedError("a piece of another number of dimensions")
        if 0 in sizes:
            return None
        if place is None:
            raise _MalformedError(f"the piece at {offsets} stands nowhere, or is said twice")
        return Piece(Box(offsets, sizes), place)

    @staticmethod
    def _path(name: str, keys: object) -> tuple[str | int, ...]:
        """Return the keys that lead to a value; joined with dots they are its name."""
        if not isinstance(keys, tuple) or not 0 < len(keys) <= _DEPTH:
            raise _MalformedError("a path that is none")
        path = tuple(key for key in keys if type(key) in (str, int))
        texts = [str(key) for key in path]
        length = sum(map(len, texts)) + len(texts) - 1
        if len(path) != len(keys) or length != len(name) or ".".join(texts) != name:
            raise _MalformedError("a path that leads elsewhere")
        return path
