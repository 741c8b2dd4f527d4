"""What a graph notes of the model that it was made from: all of a bundle but weights and records.

Law: `parse(render(note), where) == note`. The note is canonical JSON in the graph's metadata, the
same for the same module wherever it is made: no time, no machine, no path.

The file may be a stranger's: every field is held to the manifest's schema, and what the note says
is tried against the graph and the weights before it is used (`graph_bundles`).
"""

from __future__ import annotations

import base64
import binascii
from pathlib import PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Annotated, NamedTuple

from pydantic import Field, ValidationError, model_validator
from typing_extensions import Self

from persistlib.canonical import encode
from persistlib.canonical import parse as parse_json
from persistlib.digests import digest
from persistlib.dtypes import DType
from persistlib.errors import Code, PersistlibError, error
from persistlib.graph_notes import MODEL
from persistlib.manifest.schema import (
    Architecture,
    Digest,
    DTypeName,
    Identity,
    Interface,
    Lineage,
    Section,
    Shape,
    Status,
    TensorName,
    Version,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

VERSION = "1.0"
# Of one note; a manifest's own limit is larger, since it has a row for each tensor.
SIZE_LIMIT = 32 << 20
# Of all tensors outside the state_dict together; larger ones are named and have no values here.
VALUES_LIMIT = 4 << 20
_REMEDY = "export the model again with this release"
_MAJOR = VERSION.split(".", maxsplit=1)[0]


class NotedTensor(Section):
    """A tensor outside the state_dict.

    Attributes:
        dtype: element type.
        shape: extents.
        blake3: digest of its bytes.
        values: these bytes in base64; null where building the module makes them, or where they
            were too many.
    """

    dtype: DTypeName
    shape: Shape
    blake3: Digest
    values: str | None = None


class NotedState(Section):
    """What the module remembers besides its state_dict.

    Attributes:
        frozen: parameters that do not train.
        training: as in the manifest.
        frozen_modules_in_eval: as in the manifest.
        unsaved: non-persistent buffers and tensor attributes by dotted name.
        strides: as in the manifest.
    """

    frozen: tuple[TensorName, ...] = ()
    training: tuple[str, ...] = ()
    frozen_modules_in_eval: tuple[str, ...] = ()
    unsaved: dict[TensorName, NotedTensor] = {}  # noqa: RUF012 - pydantic copies it
    strides: dict[TensorName, Shape] = {}  # noqa: RUF012 - pydantic copies it


class NotedInput(Section):
    """What one input was when the graph was made: enough to draw another like it.

    Attributes:
        shape: extents.
        low: the smallest value; null where that is no finite real number.
        high: the largest value, likewise.
        mean: of floats, likewise.
        deviation: of floats, likewise.
    """

    shape: Shape
    low: int | float | None = None
    high: int | float | None = None
    mean: float | None = None
    deviation: Annotated[float, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        low, high = self.low, self.high
        if (low is None) != (high is None) or (low is not None and high is not None and low > high):
            raise ValueError("low and high are no range")
        return self


class ModelNote(Section):
    """The model that a graph was made from.

    Attributes:
        version: major.minor of this schema.
        name: for people.
        license: SPDX identifier of the weights' licence.
        status: whether the model may be used.
        architecture: how to rebuild the module.
        interface: what goes in, what comes out, and what it means.
        weights: the weights identity of the state_dict.
        state: what the module remembers besides its state_dict.
        inputs: what the inputs were, in order.
        requires: version ranges by package, without which the module cannot be rebuilt.
        lineage: ancestors, nearest first.
        left_out: fields of the manifest that had content and are not carried.
    """

    version: Version = VERSION
    name: str | None = None
    license: str | None = None
    status: Status = Status()
    architecture: Architecture
    interface: Interface = Interface()
    weights: Identity
    state: NotedState = NotedState()
    inputs: tuple[NotedInput, ...] = ()
    requires: dict[str, str] = {}  # noqa: RUF012 - pydantic copies it
    lineage: tuple[Lineage, ...] = ()
    left_out: Annotated[tuple[str, ...], Field(max_length=64)] = ()


def render(note: ModelNote) -> dict[str, str]:
    """Return the entry of `metadata_props` that says it; fields at their default are left out."""
    said = note.model_dump(mode="json", exclude_defaults=True) | {"version": note.version}
    return {MODEL: _text(said)}


def parse(metadata: Mapping[str, str], where: str) -> ModelNote | None:
    """Return what a model's metadata notes of the module; None where it notes nothing.

    Raises:
        FormatError: the note is malformed, not canonical, or of a newer major version.
    """
    if MODEL not in metadata:
        return None
    location = f"{where}: {MODEL}"
    text = metadata[MODEL]
    raw = parse_json(text.encode(), location, code=Code.GRAPH_NOTES, limit=SIZE_LIMIT)
    version = raw.get("version", VERSION)
    if isinstance(version, str) and version.split(".", maxsplit=1)[0] != _MAJOR:
        reason = f"version {version}; this release reads {_MAJOR}.x"
        raise error(Code.GRAPH_NOTES, location, reason, "pip install --upgrade persistlib")
    if _text(raw) != text:
        raise refusal(location, "not canonical JSON")
    try:
        return ModelNote.model_validate_json(text)
    except ValidationError as fault:
        first = fault.errors(include_url=False, include_context=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise refusal(f"{location}.{field}", first["msg"]) from fault


class Unsaved(NamedTuple):
    """A tensor outside the state_dict.

    Attributes:
        dtype: element type, by its name.
        shape: extents.
        blake3: digest of its bytes.
        data: these bytes; None where building the module makes them.
    """

    dtype: str
    shape: tuple[int, ...]
    blake3: str
    data: memoryview | None


def noted_tensors(tensors: Mapping[str, Unsaved]) -> dict[str, NotedTensor]:
    """Return the notes of tensors outside the state_dict; the first ones get the room for values.

    A tensor that has neither values nor a building that makes them is noted by its digest: who
    rebuilds the module is told, and never given other values in silence.
    """
    noted: dict[str, NotedTensor] = {}
    room = VALUES_LIMIT
    for name, (dtype, shape, blake3, data) in sorted(tensors.items()):
        values = None
        if data is not None and data.nbytes <= room:
            room -= data.nbytes
            values = base64.b64encode(data).decode()
        noted[name] = NotedTensor(dtype=dtype, shape=shape, blake3=blake3, values=values)
    return noted


def noted_lineage(lineage: Iterable[Lineage]) -> tuple[Lineage, ...]:
    """Return ancestors without the folders of the machine that their sources may name."""
    return tuple(
        parent.model_copy(update={"source": PureWindowsPath(parent.source).name})
        if _is_absolute(parent.source)
        else parent
        for parent in lineage
    )


def _is_absolute(source: str) -> bool:
    return source.startswith("~") or any(
        kind(source).is_absolute() for kind in (PurePosixPath, PureWindowsPath)
    )


def values_of(noted: NotedTensor, location: str) -> memoryview | None:
    """Return a tensor's bytes, writable, compared with shape and digest; None where it has none.

    Raises:
        FormatError: they are not what the note says of them.
    """
    if noted.values is None:
        return None
    try:
        data = bytearray(base64.b64decode(noted.values, validate=True))
    except (binascii.Error, ValueError) as fault:
        raise refusal(location, "values that are not base64") from fault
    if len(data) != DType[noted.dtype].nbytes(noted.shape) or digest(data) != noted.blake3:
        raise refusal(location, "values of another size or digest")
    return memoryview(data)


def refusal(location: str, reason: str) -> PersistlibError:
    """Return the error for a note that cannot be used."""
    return error(Code.GRAPH_NOTES, location, reason, _REMEDY)


def _text(raw: object) -> str:
    return encode(raw).decode().removesuffix("\n")
