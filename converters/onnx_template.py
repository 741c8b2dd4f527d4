"""Weights put into the graph of a given ONNX file.

Law: every byte of the template stands in the written file as it stood, except the initializers
that are replaced and the notes of which they are; the same weights into the same template give the
same bytes.

The file is written in one pass, window by window. Above `EXTERNAL_ABOVE` bytes of weights the
larger tensors lie in one file beside it, each at its own page, ties once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from persistlib.converters.onnx_fit import Fit, Placed, fit
from persistlib.converters.onnx_model import (
    GRAPH,
    INITIALIZER,
    METADATA,
    MODEL_LIMIT,
    OnnxModel,
    open_model,
)
from persistlib.converters.onnx_tensors import (
    DIMS,
    DTYPE,
    EXTERNAL,
    LOCATION,
    NAME,
    RAW,
    VALUES,
    Spans,
)
from persistlib.digests import encode_name
from persistlib.errors import Code, error
from persistlib.files import name_fault
from persistlib.graph_notes import KEYS, SESSION_OPTIONS, render
from persistlib.graph_tensors import (
    EXTERNAL_ABOVE,
    EXTERNAL_TENSOR,
    ExternalPlace,
    aligned,
    pairs_of,
)
from persistlib.wire import FileBytes, bytes_field, field_head, number_field

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from persistlib.checkpoint import CheckpointReader
    from persistlib.files import StrPath
    from persistlib.publish import OutFile

_DATA = ".data"
_IN_ANOTHER_FILE = 1  # TensorProto.EXTERNAL
_REPLACED = VALUES | {DIMS, DTYPE, NAME, EXTERNAL, LOCATION}
_KEY, _VALUE = 1, 2


class _Written(NamedTuple):
    """A tensor of the written file: its message, whose values follow or lie elsewhere."""

    tensor: Placed
    head: bytes
    inside: int  # bytes of values that end the message
    place: ExternalPlace | None


def write_to(
    checkpoint: CheckpointReader,
    out: OutFile,
    *,
    template: StrPath,
    beside: Callable[[str], OutFile],
    external_above: int = EXTERNAL_ABOVE,
) -> None:
    """Write the graph of an ONNX file with the weights of a checkpoint.

    Every tensor of the checkpoint replaces the initializer of its name, whose dtype and shape must
    be its own; of names that are tied one at least must be there, and the others are added. Every
    initializer of the template must be replaced, except: what its notes leave out of its
    state_dict; where it has no notes, integers (INT64) and booleans of at most one axis, which are
    shapes, axes and indices; and strings. These keep the template's values.

    Args:
        checkpoint: the weights.
        out: the file.
        template: an ONNX file; its own data files lie beside it.
        beside: makes a file of a given name that appears together with `out`.
        external_above: bytes of weights above which they go to such a file.

    Raises:
        FormatError: weights and template do not fit, or the template is not well-formed.
        TargetError: it cannot be read.
        OSError: writing failed.
    """
    with open_model(template, {}) as model:
        plan = fit(checkpoint, model)
        metadata = _metadata(checkpoint, model, plan)
        name = out.name + _DATA
        is_external = sum(tensor.nbytes for tensor in plan.placed) > external_above
        written = list(_laid_out(model, plan, name if is_external else ""))
        rest = [f for f in model.inside(model.span) if f.number != INITIALIZER]
        kept = [(f.tag, f.end) for f in rest] + plan.kept
        _write_model(out, model, sorted(kept), written, metadata)
        if any(item.place is not None for item in written):
            if fault := name_fault(name):
                remedy = "choose another name for the graph"
                raise error(Code.NAME_UNSAFE, name, fault, remedy)
            _write_data(beside(name), written)


def _laid_out(model: OnnxModel, plan: Fit, data: str) -> Iterator[_Written]:
    """Yield the messages of the tensors; the larger ones' values in a file `data` if it has a name.

    A tied tensor in that file has the place of the first one.
    """
    places: dict[str, ExternalPlace] = {}
    end = 0
    for tensor in plan.placed:
        head = b"".join(number_field(DIMS, extent) for extent in tensor.dims)
        head += number_field(DTYPE, tensor.number) + bytes_field(NAME, encode_name(tensor.name))
        head += b"".join(_remarks(model, tensor))
        if not data or tensor.nbytes < EXTERNAL_TENSOR:
            yield _Written(tensor, head + field_head(RAW, tensor.nbytes), tensor.nbytes, None)
            continue
        if tensor.source not in places:
            places[tensor.source] = ExternalPlace(data, aligned(end), tensor.nbytes)
            end = places[tensor.source].offset + tensor.nbytes
        place = places[tensor.source]
        head += b"".join(bytes_field(EXTERNAL, _pair(*pair)) for pair in pairs_of(place))
        yield _Written(tensor, head + number_field(LOCATION, _IN_ANOTHER_FILE), 0, place)


def _remarks(model: OnnxModel, tensor: Placed) -> Iterator[bytes]:
    """Yield what the template says of the tensor beside what it is, as it stands."""
    if tensor.span is not None:
        for field in model.inside(tensor.span):
            if field.number not in _REPLACED:
                yield model.data[field.tag : field.end]


def _pair(key: str, value: str) -> bytes:
    return bytes_field(_KEY, key.encode()) + bytes_field(_VALUE, value.encode())


def _metadata(checkpoint: CheckpointReader, model: OnnxModel, plan: Fit) -> bytes:
    """Return the fields of the written file's metadata that the template does not have.

    Raises:
        FormatError: a key of the checkpoint's is the template's, with another value, or means
            something.
    """
    added: dict[str, str] = {}
    for key, value in sorted(checkpoint.metadata.items()):
        if key in KEYS or key == SESSION_OPTIONS:
            reason = "a metadata key that means something in a graph"
            raise error(Code.FORMAT_NAME, key, reason, "drop it")
        if model.metadata.get(key, value) != value:
            reason = f"the metadata key stands in {model.location} with another value"
            raise error(Code.FORMAT_NAME, key, reason, "drop it here, or from the template")
        if key not in model.metadata:
            added[key] = value
    added |= render(plan.notes)
    return b"".join(bytes_field(METADATA, _pair(*item)) for item in added.items())


def _write_model(
    out: OutFile,
    model: OnnxModel,
    kept: list[tuple[int, int]],
    written: list[_Written],
    metadata: bytes,
) -> None:
    length = sum(end - start for start, end in kept)
    for item in written:
        message = len(item.head) + item.inside
        length += len(field_head(INITIALIZER, message)) + message
    around = model.data.size - (model.span[1] - model.span[0]) + len(metadata)
    if around + length > MODEL_LIMIT:
        reason = "the graph would be larger than 2 GiB, where protobuf ends"
        remedy = "move the template's own constants to external data first"
        raise error(Code.FORMAT_LIMIT, model.location, reason, remedy)
    for field in model.fields:
        if field.number == GRAPH:
            out.write(field_head(GRAPH, length))
            _copy(out, model.data, kept)
            _write_tensors(out, written)
        elif field.number != METADATA or model.entry(field)[0] not in KEYS:
            _copy(out, model.data, [(field.tag, field.end)])
    out.write(metadata)


def _copy(out: OutFile, data: FileBytes, spans: Iterable[tuple[int, int]]) -> None:
    """Copy parts of a file, those that touch in one piece."""
    merged: list[tuple[int, int]] = []
    for start, end in spans:
        begin = merged.pop()[0] if merged and merged[-1][1] == start else start
        merged.append((begin, end))
    for window in Spans(data, tuple(merged)).windows():
        out.write(window)


def _write_tensors(out: OutFile, written: list[_Written]) -> None:
    """Write the tensors' messages; a tied one's values are copied from the first one's."""
    begun: dict[str, int] = {}
    for item in written:
        out.write(field_head(INITIALIZER, len(item.head) + item.inside) + item.head)
        if not item.inside:
            continue
        start = begun.setdefault(item.tensor.source, out.size)
        if start == out.size:
            for window in item.tensor.windows():
                out.write(window)
        else:
            _copy(out, FileBytes(out.fd, out.size, out.path), [(start, start + item.inside)])


def _write_data(out: OutFile, written: list[_Written]) -> None:
    """Write the values that lie outside the model, zeros between them."""
    for item in written:
        if item.place is not None and item.place.offset >= out.size:
            out.write(bytes(item.place.offset - out.size))
            for window in item.tensor.windows():
                out.write(window)
