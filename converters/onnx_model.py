"""An ONNX file opened for its weights: the structure walked, no value read.

Law: every byte of the structure is accounted for before anything of it is used (`wire.measure`),
and every tensor in it, wherever it stands, refers to nothing outside the model's folder.

Nothing of the graph is run or expanded, so operators that nobody knows do no harm here.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

from persistlib.converters.onnx_data import DataFolder, mapped
from persistlib.converters.onnx_numbers import count_numbers
from persistlib.converters.onnx_tensors import FLOATS, INT64S, TEXT_LIMIT, Tensor, tensor_at
from persistlib.errors import Code, error, printable
from persistlib.files import StrPath, read_fault
from persistlib.wire import Field, FileBytes, fields, measure, number_of, text_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from typing_extensions import Self

# protobuf's own limit; no parser reads more.
MODEL_LIMIT = (1 << 31) - 1
METADATA_LIMIT = 64 << 20
# Ten times what a large language model has; each takes some microseconds and a thousand bytes.
TENSORS_LIMIT = 50_000
# Bytes of all names that are made of places: a node's name is in the name of each tensor inside.
NAMES_LIMIT = 64 << 20
# Fields by number: of ModelProto, GraphProto, NodeProto, AttributeProto and FunctionProto.
IR_VERSION, PRODUCER, PRODUCER_VERSION, GRAPH, OPSETS, METADATA, FUNCTIONS = 1, 2, 3, 7, 8, 14, 25
NODE, INITIALIZER, SPARSE = 1, 5, 15
_OUTPUT, _NODE_NAME, _OPERATOR, _ATTRIBUTE, _DOMAIN = 2, 3, 4, 5, 7
_ATTRIBUTE_NAME, _F, _I, _TENSOR, _SUBGRAPH, _FS, _IS, _SUBGRAPHS = 1, 2, 3, 5, 6, 7, 8, 11
_FUNCTION_NAME, _FUNCTION_NODE, _FUNCTION_DOMAIN, _OVERLOAD = 1, 7, 10, 13
_STANDARD = {"", "ai.onnx"}
_SHOWN = 60
_AGAIN = "do not use this file; export the model again"


class Named(NamedTuple):
    """A tensor and the name that it has in a checkpoint of the whole file."""

    name: str
    tensor: Tensor


class OnnxModel:
    """An open ONNX file.

    Attributes:
        location: what errors name.
        data: its bytes.
        folder: the files beside it.
        span: begin and end of the main graph.
        metadata: its `metadata_props`.
        ir_version: of the file format.
        opset: of the default operators; 0 where none is said.
        producer: the program that wrote it and its version; empty where none is said.
        everywhere: every tensor in the file, by begin and end of its message.
    """

    def __init__(self, fd: int, folder: DataFolder, location: str) -> None:
        import onnx

        self.location = location
        self.folder = folder
        self._fd = fd
        size = os.fstat(fd).st_size
        if size > MODEL_LIMIT:
            reason = f"{size} bytes; protobuf ends at 2 GiB"
            raise error(Code.FORMAT_LIMIT, self.location, reason, _AGAIN)
        self.data = FileBytes(fd, size, self.location)
        spans: list[tuple[int, int]] = []
        found = {onnx.TensorProto.DESCRIPTOR.full_name: spans}
        measure(self.data, onnx.ModelProto.DESCRIPTOR, self.location, gather=found)
        if len(spans) > TENSORS_LIMIT:
            reason = f"{len(spans)} tensors, at most {TENSORS_LIMIT} are read"
            raise error(Code.FORMAT_LIMIT, self.location, reason, _AGAIN)
        self.fields = list(self.inside((0, size)))
        graph = next((f for f in self.fields if f.number == GRAPH), None)
        self.ir_version = self._number(IR_VERSION)
        if graph is None or self.ir_version < 1:
            raise error(Code.GRAPH_INVALID, self.location, "no graph or no IR version", _AGAIN)
        self.span = (graph.start, graph.end)
        self.opset = self._opset()
        self.producer = printable(f"{self._text(PRODUCER)} {self._text(PRODUCER_VERSION)}".strip())
        self.metadata = self._metadata()
        self.everywhere = {span: tensor_at(self.data, *span, self.location) for span in spans}

    @property
    def container(self) -> str:
        """The file's versions in words."""
        words = [f"IR {self.ir_version}"] + ([f"opset {self.opset}"] if self.opset else [])
        return ", ".join(words + ([f"by {self.producer[:_SHOWN]}"] if self.producer else []))

    def inside(self, span: tuple[int, int]) -> Iterator[Field]:
        """Yield the fields of the message that lies there."""
        return fields(self.data, *span, self.location)

    def entry(self, field: Field, limit: int = METADATA_LIMIT) -> tuple[str, str]:
        """Return the key and the text that a field of metadata holds."""
        said = {
            f.number: text_of(self.data, f, self.location, limit)
            for f in self.inside((field.start, field.end))
        }
        return said.get(1, ""), said.get(2, "")

    def tensor(self, field: Field) -> Tensor:
        """Return the tensor that a field holds."""
        known = self.everywhere.get((field.start, field.end))
        return known or tensor_at(self.data, field.start, field.end, self.location)

    def initializers(self) -> list[Named]:
        """Return the tensors of the main graph, in the file's order."""
        return _Tensors(self, whole=False).found

    def tensors(self) -> list[Named]:
        """Return the tensors of all graphs and functions, and the values of constants.

        The main graph's initializers come first, under their own names. A constant has the name
        of what its node puts out. Before that stand, each with a dot, the function (`domain:name`)
        and for each graph inside another the node and the attribute that hold it. A name that is
        taken gets a number.
        """
        return _Tensors(self, whole=True).found

    def mapped(self) -> dict[str, memoryview]:
        """Return the bytes of the file, then of the files beside it, each by its plain name.

        Raises:
            PersistlibError: one of them is not there, or may not be read.
        """
        own = mapped(self._fd, self.data.size, self.location)
        names = {t.place.name for t in self.everywhere.values() if t.place is not None}
        beside = {name: self.folder.mapped(name, self.location) for name in sorted(names)}
        return {os.path.basename(self.location): own} | beside

    def close(self) -> None:
        """Close the file and what is open beside it; idempotent."""
        self.folder.close()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def text(self, field: Field) -> str:
        """Return the text that a field holds."""
        return text_of(self.data, field, self.location, TEXT_LIMIT)

    def _text(self, number: int) -> str:
        return next((self.text(f) for f in self.fields if f.number == number), "")

    def _number(self, number: int) -> int:
        found = (f for f in self.fields if f.number == number)
        return next((number_of(self.data, f, self.location) for f in found), 0)

    def _opset(self) -> int:
        for field in self.fields:
            if field.number == OPSETS:
                said = {f.number: f for f in self.inside((field.start, field.end))}
                if 2 in said and (1 not in said or self.text(said[1]) in _STANDARD):
                    return number_of(self.data, said[2], self.location)
        return 0

    def _metadata(self) -> dict[str, str]:
        metadata: dict[str, str] = {}
        room = METADATA_LIMIT
        for field in (f for f in self.fields if f.number == METADATA):
            key, text = self.entry(field, room)
            room = max(room - (field.end - field.start), 0)
            if key in metadata:
                reason = f"the metadata {key!r} stands twice"
                raise error(Code.GRAPH_INVALID, self.location, reason, _AGAIN)
            metadata[key] = text
        return metadata


def open_model(path: StrPath, external: Mapping[str, StrPath]) -> OnnxModel:
    """Return the ONNX file at `path`, its structure walked.

    Args:
        path: a file; a link to one is followed, since it was named by the caller.
        external: data files that lie elsewhere than beside it, by the name the model gives them.

    Raises:
        FormatError: it is none, is larger than well meant, or refers to what is never read.
        TargetError: it cannot be read.
    """
    try:
        with ExitStack() as unused:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            unused.callback(os.close, fd)
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise error(Code.SOURCE_READ, path, "not a regular file", "name a file")
            folder = DataFolder(path, fd, external)
            unused.callback(folder.close)
            model = OnnxModel(fd, folder, os.fspath(path))
            unused.pop_all()
            return model
    except OSError as fault:
        raise read_fault(fault, path) from fault


class _Tensors:
    """One walk over graphs, nodes and functions, at a depth that `measure` has bounded."""

    def __init__(self, model: OnnxModel, *, whole: bool) -> None:
        self.model = model
        self.whole = whole
        self.found: list[Named] = []
        self._taken: Counter[str] = Counter()
        self._room = NAMES_LIMIT
        self._graph(model.span, "")
        for field in model.fields if whole else ():
            if field.number == FUNCTIONS:
                self._function((field.start, field.end))

    def _graph(self, span: tuple[int, int], prefix: str) -> None:
        model = self.model
        own: set[str] = set()
        nodes: list[tuple[int, int]] = []
        for field in model.inside(span):
            if field.number == INITIALIZER:
                tensor = model.tensor(field)
                if tensor.name in own:
                    where = f"{model.location}: {prefix}{tensor.name}"
                    raise error(Code.FORMAT_NAME, where, "the initializer stands twice", _AGAIN)
                own.add(tensor.name)
                self._add(self._joined(prefix, tensor.name), tensor)
            elif field.number == SPARSE:
                self._refuse_sparse(field, prefix)
            elif field.number == NODE and self.whole:
                nodes.append((field.start, field.end))
        for node in nodes:
            self._node(node, prefix)

    def _refuse_sparse(self, field: Field, prefix: str) -> None:
        model = self.model
        values = next((f for f in model.inside((field.start, field.end)) if f.number == 1), None)
        name = "" if values is None else model.tensor(values).name
        raise error(
            Code.FORMAT_DTYPE,
            f"{model.location}: {prefix}{name}",
            "a sparse initializer, which has no dense bytes",
            "export the model with dense weights",
        )

    def _function(self, span: tuple[int, int]) -> None:
        said = list(self.model.inside(span))
        texts = {
            f.number: self.model.text(f)
            for f in said
            if f.number in {_FUNCTION_NAME, _FUNCTION_DOMAIN, _OVERLOAD}
        }
        label = f"{texts.get(_FUNCTION_DOMAIN, '')}:{texts.get(_FUNCTION_NAME, '')}"
        label += f":{texts[_OVERLOAD]}" if texts.get(_OVERLOAD) else ""
        for field in said:
            if field.number == _FUNCTION_NODE:
                self._node((field.start, field.end), f"{label}.")

    def _node(self, span: tuple[int, int], prefix: str) -> None:
        model = self.model
        said = list(model.inside(span))
        texts = {
            f.number: model.text(f)
            for f in reversed(said)  # so that of several outputs the first is kept
            if f.number in {_OUTPUT, _NODE_NAME, _OPERATOR, _DOMAIN}
        }
        output = texts.get(_OUTPUT, "")
        is_constant = texts.get(_OPERATOR) == "Constant" and texts.get(_DOMAIN, "") in _STANDARD
        label = texts.get(_NODE_NAME) or output or texts.get(_OPERATOR, "")
        for field in said:
            if field.number != _ATTRIBUTE:
                continue
            inner = list(model.inside((field.start, field.end)))
            if is_constant:
                self._constant(inner, self._joined(prefix, output))
            name = next((model.text(f) for f in inner if f.number == _ATTRIBUTE_NAME), "")
            graphs = [f for f in inner if f.number in {_SUBGRAPH, _SUBGRAPHS}]
            for index, graph in enumerate(graphs):
                place = f"{name}.{index}" if graph.number == _SUBGRAPHS else name
                self._graph((graph.start, graph.end), self._joined(prefix, f"{label}.{place}."))

    def _constant(self, attribute: list[Field], name: str) -> None:
        """Add the value of a Constant node; one of strings is added as such, and not kept."""
        data, location = self.model.data, self.model.location
        makers: dict[int, Callable[[tuple[Field, ...]], Tensor]] = {
            _TENSOR: lambda found: self.model.tensor(found[0]),
            _F: lambda found: _literal("FLOAT", 1, FLOATS, (), found),
            _I: lambda found: _literal("INT64", 7, INT64S, (), found),
            _FS: lambda found: _literal("FLOAT", 1, FLOATS, (_length(found) // 4,), found),
            _IS: lambda found: _literal(
                "INT64",
                7,
                INT64S,
                (count_numbers(data, [(f.start, f.end) for f in found], location),),
                found,
            ),
        }
        for number, make in makers.items():
            if found := tuple(f for f in attribute if f.number == number):
                self._add(name, make(found))

    def _joined(self, prefix: str, name: str) -> str:
        """Return a name made of its place, while all such names are of a moderate size."""
        self._room -= len(prefix)
        if self._room < 0:
            reason = f"names of over {NAMES_LIMIT} characters, made of the places of tensors"
            raise error(Code.FORMAT_LIMIT, self.model.location, reason, "leave key= out")
        return prefix + name

    def _add(self, name: str, tensor: Tensor) -> None:
        unique = name
        while unique in self._taken:
            self._taken[name] += 1
            unique = f"{name}_{self._taken[name]}"
        self._taken[unique] = 0
        self.found.append(Named(unique, tensor))


def _literal(
    dtype: str, number: int, kind: int, dims: tuple[int, ...], found: tuple[Field, ...]
) -> Tensor:
    """Return what an attribute that is no tensor says, as the tensor that the node puts out."""
    values = tuple(field._replace(number=kind) for field in found)
    return Tensor("", dtype, number, dims, values, None, (0, 0))


def _length(found: tuple[Field, ...]) -> int:
    return sum(field.end - field.start for field in found)
