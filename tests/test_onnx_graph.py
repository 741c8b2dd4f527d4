"""ONNX files of any writer, read tensor by tensor, and weights put into a given graph."""

from __future__ import annotations

import hashlib
import math
import os
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import graph_assembly
import persistlib
import saved_models
from graph_assembly import branches, field, function, varint
from onnx_assembly import model_of, number_of, outside_of, save, template_for, tensor_of
from persistlib import publish
from persistlib.checkpoint import (
    WINDOW,
    CheckpointReader,
    Entry,
    MemoryCheckpoint,
    identity,
    tensor_rows,
)
from persistlib.converters import onnx_graph
from persistlib.converters.onnx_model import TENSORS_LIMIT
from persistlib.converters.onnx_tensors import PARTS_LIMIT
from persistlib.dtypes import DType, by_name
from persistlib.errors import Code, LossError, PersistlibError
from persistlib.export.onnx_export import ExportedFile, export
from persistlib.graph_notes import ALIASES, COMPLEX, STATE
from persistlib.wire import FIELDS_LIMIT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

HELD = [dtype for dtype in DType if dtype.value.onnx]
PAIR_OF = (DType.F32, (2,))
PAIR = Entry("w", *PAIR_OF)
CANARY = b"never read this "


def values(dtype: DType, shape: tuple[int, ...]) -> memoryview:
    """Return bytes of a tensor that differ from element to element."""
    data = bytearray((7 * index + 3) % 251 for index in range(dtype.nbytes(shape)))
    if dtype is DType.BOOL:
        data = bytearray(byte & 1 for byte in data)
    if data and (used := math.prod(shape) * dtype.value.bits % 8):
        data[-1] &= (1 << used) - 1
    return memoryview(data)


def checkpoint_of(
    *entries: Entry,
    aliases: Mapping[str, str] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> MemoryCheckpoint:
    buffers = {entry.name: values(entry.dtype, entry.shape) for entry in entries}
    return MemoryCheckpoint(entries, buffers, dict(aliases or {}), dict(metadata or {}))


def text_tensor(name: str) -> TensorProto:
    return TensorProto(name=name, dims=[1], data_type=TensorProto.STRING, string_data=[b"a"])


def read(path: Path, **options: Any) -> dict[str, tuple[DType, tuple[int, ...], bytes]]:
    with onnx_graph.open_file(path, **options) as checkpoint:
        return {
            e.name: (e.dtype, e.shape, bytes(checkpoint.read_bytes(e.name))) for e in checkpoint
        }


def refused(path: Path, code: Code, **options: Any) -> PersistlibError:
    """Return the error by which a file is refused, when it is opened or when it is read."""
    with pytest.raises(PersistlibError) as caught:
        read(path, **options)
    assert caught.value.code == code.identifier, caught.value
    assert str(path.parent) in caught.value.location
    assert caught.value.remedy
    return caught.value


def write(
    checkpoint: CheckpointReader, path: Path, template: Path, external_above: int = 10**9
) -> Path:
    with ExitStack() as files:
        out = files.enter_context(publish.file(path))

        def beside(name: str) -> publish.OutFile:
            return files.enter_context(publish.file(path.parent / name))

        onnx_graph.write_to(
            checkpoint, out, template=template, beside=beside, external_above=external_above
        )
    return path


# -- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", HELD, ids=lambda dtype: dtype.name)
def test_raw_values_of_every_dtype_are_read_as_they_stand(dtype: DType, tmp_path: Path) -> None:
    entries = [Entry(f"t{i}", dtype, s) for i, s in enumerate([(), (0,), (1,), (7,), (3, 5)])]
    wanted = {e.name: (dtype, e.shape, bytes(values(dtype, e.shape))) for e in entries}
    save(model_of(*(tensor_of(e, wanted[e.name][2]) for e in entries)), tmp_path / "m.onnx")
    assert read(tmp_path / "m.onnx") == wanted


def typed(dtype: DType, shape: tuple[int, ...]) -> TensorProto:
    """Return a tensor whose values stand in the field of their type, as onnx puts them there."""
    tensor = TensorProto(name="w", dims=shape, data_type=number_of(Entry("w", dtype, shape)))
    data = bytes(values(dtype, shape))
    if dtype in {DType.F32, DType.C64}:
        tensor.float_data.extend(np.frombuffer(data, "<f4").tolist())
    elif dtype in {DType.F64, DType.C128}:
        tensor.double_data.extend(np.frombuffer(data, "<f8").tolist())
    elif dtype is DType.I64:
        tensor.int64_data.extend(np.frombuffer(data, "<i8").tolist())
    elif dtype in {DType.U64, DType.U32}:
        tensor.uint64_data.extend(np.frombuffer(data, f"<u{dtype.itemsize}").tolist())
    else:
        kind = "i" if dtype in {DType.I32, DType.I16, DType.I8} else "u"
        tensor.int32_data.extend(np.frombuffer(data, f"<{kind}{dtype.itemsize}").tolist())
    return tensor


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (100, 100)])
@pytest.mark.parametrize("dtype", HELD, ids=lambda dtype: dtype.name)
def test_typed_fields_hold_the_values_that_onnx_reads_there(
    dtype: DType, shape: tuple[int, ...], tmp_path: Path
) -> None:
    tensor = typed(dtype, shape)
    save(model_of(tensor), tmp_path / "m.onnx")
    (found,) = read(tmp_path / "m.onnx").values()
    assert found == (dtype, shape, bytes(values(dtype, shape)))
    if not dtype.is_packed:  # onnx unpacks them into a byte each
        assert numpy_helper.to_array(tensor).tobytes() == found[2]


def test_negative_numbers_and_the_largest_ones_survive_their_encoding(tmp_path: Path) -> None:
    extremes = {
        name: np.array([np.iinfo(name).min, -1, 0, 1, np.iinfo(name).max], name)
        for name in ("int8", "int16", "int32", "int64")
    } | {name: np.array([0, 1, np.iinfo(name).max], name) for name in ("uint32", "uint64")}
    tensors = [
        helper.make_tensor(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape, a.tolist())
        for n, a in extremes.items()
    ]
    assert not any(tensor.raw_data for tensor in tensors)
    save(model_of(*tensors), tmp_path / "m.onnx")
    found = read(tmp_path / "m.onnx")
    assert {n: data for n, (_, _, data) in found.items()} == {
        n: a.tobytes() for n, a in extremes.items()
    }


OWN_FIELDS = (
    (DType.F32, b"".join(b"\x25" + np.float32(x).tobytes() for x in (1, 2, 3)), [1, 2, 3]),
    (DType.I64, b"".join(b"\x38" + varint(x) for x in (1, 300, 2**40)), [1, 300, 2**40]),
    (DType.U16, b"\x28\x01" + field(5, varint(300) + varint(65535)), [1, 300, 65535]),
)


@pytest.mark.parametrize(("dtype", "parts", "wanted"), OWN_FIELDS)
def test_numbers_that_each_have_a_field_of_their_own_are_read_too(
    dtype: DType, parts: bytes, wanted: list[int], tmp_path: Path
) -> None:
    head = field(8, b"w") + b"\x08\x03\x10" + varint(number_of(Entry("w", dtype, (3,))))
    (tmp_path / "m.onnx").write_bytes(around(field(5, head + parts)))
    assert read(tmp_path / "m.onnx")["w"][2] == np.array(wanted, dtype.numpy).tobytes()


def test_large_values_come_in_windows_and_do_not_differ_from_small_ones(tmp_path: Path) -> None:
    count = WINDOW // 4 + 1000
    numbers = np.arange(count, dtype=np.int32) - 1000
    tensor = TensorProto(name="typed", dims=[count], data_type=TensorProto.INT32)
    tensor.int32_data.extend(numbers.tolist())
    raw = TensorProto(name="raw", dims=[count], data_type=TensorProto.INT32)
    raw.raw_data = numbers.tobytes()
    save(model_of(tensor, raw), tmp_path / "m.onnx")
    with onnx_graph.open_file(tmp_path / "m.onnx") as checkpoint:
        for name in ("typed", "raw"):
            sizes = [window.nbytes for window in checkpoint.windows(name)]
            assert len(sizes) > 1
            assert max(sizes) <= WINDOW
            assert bytes(checkpoint.read_bytes(name)) == numbers.tobytes()


def raw_bytes(tensor: TensorProto) -> bytes:
    dtype = by_name("onnx", TensorProto.DataType.Name(tensor.data_type))
    assert dtype is not None
    return bytes(dtype.pack(numpy_helper.to_array(tensor)))


def test_every_model_that_onnx_ships_is_read_as_onnx_reads_it() -> None:
    models = sorted(Path(onnx.__path__[0]).glob("backend/test/data/**/*.onnx"))
    seen = 0
    for path in models:
        stored = onnx.load(path, load_external_data=False).graph.initializer
        wanted = {t.name: (tuple(t.dims), raw_bytes(t)) for t in stored if t.data_type != t.STRING}
        assert {n: found[1:] for n, found in read(path).items()} == wanted, path
        seen += len(wanted)
        read(path, key="")
    assert seen > 100


def test_the_tensors_that_onnx_ships_for_its_tests_are_read_as_onnx_reads_them(
    tmp_path: Path,
) -> None:
    seen = 0
    for path in sorted(Path(onnx.__path__[0]).glob("backend/test/data/**/*.pb")):
        tensor = TensorProto()
        try:
            tensor.ParseFromString(path.read_bytes())
            wanted = raw_bytes(tensor)
        except Exception:  # noqa: BLE001 - some hold sequences, which parse as anything
            continue
        tensor.name = "w"
        save(model_of(tensor), tmp_path / "m.onnx")
        assert read(tmp_path / "m.onnx")["w"][1:] == (tuple(tensor.dims), wanted)
        seen += 1
    assert seen > 50


# -- what stands where ---------------------------------------------------------------------------


def test_a_file_says_its_versions_who_wrote_it_and_what_is_not_kept(tmp_path: Path) -> None:
    model = model_of(tensor_of(PAIR, bytes(8)), metadata={"license": "MIT"}, producer="py\ntorch")
    model.producer_version = "2.14"
    save(model, tmp_path / "m.onnx")
    with onnx_graph.open_file(tmp_path / "m.onnx") as checkpoint:
        assert checkpoint.container == "IR 10, opset 20, by py\\ntorch 2.14"
        assert checkpoint.losses == ("graph the network itself",)
        assert dict(checkpoint.metadata) == {"license": "MIT"}
        (note,) = checkpoint.notes
        assert "py\\ntorch 2.14" in note
        assert "state_dict" in note


def test_text_is_no_tensor_and_is_told_of(tmp_path: Path) -> None:
    words = text_tensor("words")
    save(model_of(words, tensor_of(PAIR, bytes(8))), tmp_path / "m.onnx")
    with onnx_graph.open_file(tmp_path / "m.onnx") as checkpoint:
        assert [entry.name for entry in checkpoint] == ["w"]
        assert "value words, which is no tensor" in checkpoint.losses


def test_a_sparse_initializer_is_refused_by_its_name(tmp_path: Path) -> None:
    model = model_of()
    sparse = model.graph.sparse_initializer.add(dims=[4])
    sparse.values.CopyFrom(tensor_of(Entry("s", DType.F32, (2,)), bytes(8)))
    sparse.indices.CopyFrom(tensor_of(Entry("", DType.I64, (2,)), bytes(16)))
    save(model, tmp_path / "m.onnx")
    fault = refused(tmp_path / "m.onnx", Code.FORMAT_DTYPE)
    assert fault.location.endswith(": s")
    assert "sparse" in fault.reason


def everywhere() -> onnx.ModelProto:
    """Return a model with tensors of one name wherever tensors stand."""
    inner = onnx.GraphProto(name="i", initializer=[tensor_of(PAIR, b"inner...")])
    inner.node.add(op_type="Constant", output=["c"]).attribute.append(
        helper.make_attribute("value_ints", [1, -2, 3])
    )
    nodes = [
        helper.make_node("Constant", [], ["c"], value=tensor_of(PAIR, b"constant")),
        helper.make_node("Constant", [], ["f"], value_float=1.5),
        helper.make_node("Constant", [], ["n"], value_int=-7),
        helper.make_node("Constant", [], ["fs"], value_floats=[1.0, 2.0]),
        helper.make_node("Constant", [], ["s"], value_string="text"),
        *branches(inner, 2).node,
    ]
    body = function("f", ["Identity"], attribute=tensor_of(PAIR, b"function"))
    model = model_of(tensor_of(PAIR, b"the main"), tensor_of(Entry("c", *PAIR_OF), b"the c..."))
    model.graph.node.extend(nodes)
    model.functions.append(body)
    return model


def test_the_whole_file_has_constants_branches_and_functions_by_names_of_their_places(
    tmp_path: Path,
) -> None:
    save(everywhere(), tmp_path / "m.onnx")
    assert list(read(tmp_path / "m.onnx")) == ["w", "c"]
    found = read(tmp_path / "m.onnx", key="")
    nested = "b.then_branch.b.then_branch."
    assert {name: data for name, (_, _, data) in found.items()} == {
        "w": b"the main",
        "c": b"the c...",
        "c_1": b"constant",
        "f": np.float32(1.5).tobytes(),
        "n": np.int64(-7).tobytes(),
        "fs": np.array([1, 2], "<f4").tobytes(),
        f"{nested}w": b"inner...",
        f"{nested}c": np.array([1, -2, 3]).tobytes(),
        "own:f.c": b"function",
    }
    assert found["f"][:2] == (DType.F32, ())
    assert found[f"{nested}c"][:2] == (DType.I64, (3,))
    with onnx_graph.open_file(tmp_path / "m.onnx", key="") as checkpoint:
        assert any(note.startswith("7 tensors stand in") for note in checkpoint.notes)


def test_a_part_of_a_graph_has_no_key(tmp_path: Path) -> None:
    save(model_of(), tmp_path / "m.onnx")
    with pytest.raises(PersistlibError, match="PL901"):
        onnx_graph.open_file(tmp_path / "m.onnx", key="graph")


def test_a_closed_reader_says_so(tmp_path: Path) -> None:
    save(model_of(tensor_of(PAIR, bytes(8))), tmp_path / "m.onnx")
    checkpoint = onnx_graph.open_file(tmp_path / "m.onnx")
    before = len(os.listdir("/proc/self/fd"))
    checkpoint.close()
    checkpoint.close()
    assert len(os.listdir("/proc/self/fd")) == before - 2
    with pytest.raises(PersistlibError, match="PL901"):
        checkpoint.read_bytes("w")


# -- external data -------------------------------------------------------------------------------


def beside(tmp_path: Path, *places: Mapping[str, str], data: bytes = CANARY) -> Path:
    """Return a model whose tensors lie in `w.data`, which holds the canary."""
    tensors = [outside_of(Entry(f"w{i}", *PAIR_OF), place) for i, place in enumerate(places)]
    save(model_of(*tensors), tmp_path / "m.onnx")
    (tmp_path / "w.data").write_bytes(data)
    return tmp_path / "m.onnx"


def test_external_data_is_read_from_its_place(tmp_path: Path) -> None:
    path = beside(
        tmp_path,
        {"location": "w.data"},
        {"location": "w.data", "offset": "8", "length": "8"},
    )
    assert [found[2] for found in read(path).values()] == [CANARY[:8], CANARY[8:]]


def test_a_data_file_may_lie_elsewhere_when_the_caller_says_so(tmp_path: Path) -> None:
    path = beside(tmp_path, {"location": "other.data"})
    (tmp_path / "staged").write_bytes(b"12345678")
    found = read(path, external={"other.data": os.fspath(tmp_path / "staged")})
    assert found["w0"][2] == b"12345678"


def test_tensors_in_the_same_bytes_are_tied(tmp_path: Path) -> None:
    path = beside(tmp_path, {"location": "w.data"}, {"location": "w.data", "length": "8"})
    with onnx_graph.open_file(path) as checkpoint:
        assert [entry.name for entry in checkpoint] == ["w0"]
        assert dict(checkpoint.aliases) == {"w1": "w0"}


@pytest.mark.parametrize(
    "places",
    [
        ({"location": "w.data"}, {"location": "w.data", "offset": "4"}),
        ({"location": "w.data", "offset": "4"}, {"location": "w.data"}),
    ],
)
def test_tensors_that_share_part_of_their_bytes_are_refused(
    places: tuple[dict[str, str], ...], tmp_path: Path
) -> None:
    assert "bytes of" in refused(beside(tmp_path, *places), Code.GRAPH_INVALID).reason


@pytest.mark.parametrize(
    "location",
    [
        "../w.data", "a/../w.data", "./w.data", "a/b", "a\\b", "", ".", "..", ".hidden", "w.data/",
        "*/_ORT_MEM_ADDR_/*", "_ORT_MEM_ADDR_*", "*/_ORT_NATIVE_ENDIAN_MEM_ADDR_/*", "C:w", "w\n",
    ],
)  # fmt: skip
def test_external_data_has_one_plain_name(location: str, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "w.data").write_bytes(CANARY)
    path = beside(tmp_path / "sub", {"location": location})
    refused(path, Code.GRAPH_UNSAFE)
    absolute = beside(tmp_path / "sub", {"location": os.fspath(tmp_path / "w.data")})
    refused(absolute, Code.GRAPH_UNSAFE)


def symbolic(there: Path, name: Path) -> None:
    name.symlink_to(there)


def hard(there: Path, name: Path) -> None:
    name.hardlink_to(there)


def pipe(_there: Path, name: Path) -> None:
    os.mkfifo(name)


def folder(_there: Path, name: Path) -> None:
    name.mkdir()


@pytest.mark.parametrize("make", [symbolic, hard, pipe, folder])
@pytest.mark.parametrize("key", [None, ""])
def test_external_data_is_a_file_with_one_name(
    make: Callable[[Path, Path], None], key: str | None, tmp_path: Path
) -> None:
    path = beside(tmp_path, {"location": "w.data"})
    canary = tmp_path / "canary"
    (tmp_path / "w.data").rename(canary)
    before = canary.stat().st_atime_ns
    make(canary, tmp_path / "w.data")
    refused(path, Code.GRAPH_UNSAFE, key=key)
    assert canary.stat().st_atime_ns == before


def test_a_model_is_not_its_own_data(tmp_path: Path) -> None:
    path = beside(tmp_path, {"location": "m.onnx"})
    assert "itself" in refused(path, Code.GRAPH_UNSAFE).reason


def test_data_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = beside(tmp_path, {"location": "gone.data"})
    assert "gone.data" in refused(path, Code.SOURCE_MISSING).location


@pytest.mark.parametrize(
    ("place", "code"),
    [
        ({"offset": "-8"}, Code.GRAPH_UNSAFE),
        ({"offset": "0x8"}, Code.GRAPH_UNSAFE),
        ({"offset": "9" * 5000}, Code.GRAPH_UNSAFE),
        ({"offset": "\u0661"}, Code.GRAPH_UNSAFE),
        ({"length": ""}, Code.GRAPH_UNSAFE),
        ({"basepath": "/"}, Code.GRAPH_UNSAFE),
        ({"__class__": "x"}, Code.GRAPH_UNSAFE),
        ({"length": "4"}, Code.FORMAT_SHAPE),
        ({"length": "16"}, Code.FORMAT_SHAPE),
        ({"offset": "9"}, Code.FORMAT_TRUNCATED),
        ({"offset": str(2**63 - 1)}, Code.FORMAT_TRUNCATED),
    ],
)
def test_external_data_lies_inside_its_file(
    place: dict[str, str], code: Code, tmp_path: Path
) -> None:
    refused(beside(tmp_path, {"location": "w.data"} | place), code)


def test_a_place_is_said_once(tmp_path: Path) -> None:
    tensor = outside_of(PAIR, {"location": "w.data"})
    tensor.external_data.add(key="location", value="other.data")
    save(model_of(tensor), tmp_path / "m.onnx")
    refused(tmp_path / "m.onnx", Code.GRAPH_UNSAFE)


def test_a_checksum_that_is_said_is_compared(tmp_path: Path) -> None:
    right = {"location": "w.data", "checksum": hashlib.sha1(CANARY).hexdigest()}
    assert read(beside(tmp_path, right))["w0"][2] == CANARY[:8]
    refused(beside(tmp_path, right, data=CANARY[::-1]), Code.FILE_DIGEST)
    refused(beside(tmp_path, right | {"checksum": "none"}), Code.FILE_DIGEST)


def test_no_tensor_anywhere_names_a_file_elsewhere(tmp_path: Path) -> None:
    bad = outside_of(PAIR, {"location": "../w.data"})
    attribute = model_of()
    attribute.graph.node[0].attribute.append(helper.make_attribute("any", bad))
    many = model_of()
    many.graph.node[0].attribute.append(helper.make_attribute("many", [bad]))
    branch = model_of()
    branch.graph.node.extend(branches(onnx.GraphProto(name="i", initializer=[bad]), 3).node)
    body = model_of()
    body.functions.append(function("f", ["Identity"], attribute=bad))
    sparse = model_of()
    sparse.graph.sparse_initializer.add(dims=[4]).values.CopyFrom(bad)
    training = model_of()
    training.training_info.add().algorithm.initializer.append(bad)
    for model in (attribute, many, branch, body, sparse, training):
        save(model, tmp_path / "m.onnx")
        refused(tmp_path / "m.onnx", Code.GRAPH_UNSAFE)


# -- what is refused -----------------------------------------------------------------------------


def around(graph: bytes) -> bytes:
    """Return a model's bytes around a graph's."""
    return b"\x08\x0a" + field(8, b"\x10\x14") + field(7, graph)


def changed(change: Callable[[TensorProto], object]) -> bytes:
    tensor = tensor_of(PAIR, bytes(8))
    change(tensor)
    data: bytes = model_of(tensor).SerializeToString()
    return data


def with_dims(*dims: int) -> Callable[[TensorProto], object]:
    return lambda tensor: (tensor.ClearField("dims"), tensor.dims.extend(dims))


def as_typed(dtype: int, name: str, *numbers: float) -> Callable[[TensorProto], object]:
    def change(tensor: TensorProto) -> None:
        tensor.ClearField("raw_data")
        tensor.data_type = dtype
        getattr(tensor, name).extend(numbers)

    return change


def as_raw(dtype: int, data: bytes, *dims: int) -> Callable[[TensorProto], object]:
    def change(tensor: TensorProto) -> None:
        with_dims(*dims)(tensor)
        tensor.data_type, tensor.raw_data = dtype, data

    return change


def said_outside(tensor: TensorProto) -> None:
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="w.data")


P = TensorProto
PACKED = field(8, b"w") + b"\x08\x02\x10\x07"  # two int64 named w
FLOATS = field(8, b"w") + b"\x08\x02\x10\x01"


def noting(key: str, text: bytes) -> bytes:
    return around(b"") + field(14, field(1, key.encode()) + field(2, text))


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (changed(lambda t: t.float_data.extend([1, 2])), Code.GRAPH_INVALID),
        (changed(said_outside), Code.GRAPH_INVALID),
        (changed(lambda t: t.external_data.add(key="location", value="w")), Code.GRAPH_INVALID),
        (changed(lambda t: t.segment.CopyFrom(P.Segment(begin=0))), Code.GRAPH_INVALID),
        (changed(with_dims(-2)), Code.GRAPH_INVALID),
        (changed(with_dims(3)), Code.FORMAT_SHAPE),
        (changed(with_dims(1)), Code.FORMAT_SHAPE),
        (changed(with_dims(*[1] * 65, 2)), Code.FORMAT_SHAPE),
        (changed(with_dims(*[1] * 5000)), Code.FORMAT_SHAPE),
        (changed(with_dims(2**62, 2**62)), Code.FORMAT_SHAPE),
        (changed(as_raw(P.FLOAT, b"", 0, 2**62, 2**62)), Code.FORMAT_SHAPE),
        (changed(lambda t: t.ClearField("raw_data")), Code.FORMAT_SHAPE),
        (changed(lambda t: t.ClearField("data_type")), Code.FORMAT_DTYPE),
        (changed(as_raw(12345, bytes(8), 2)), Code.FORMAT_DTYPE),
        (changed(as_raw(P.BOOL, b"\1\2", 2)), Code.FORMAT_VALUE),
        (changed(as_raw(P.INT4, b"\x12\xf3", 3)), Code.FORMAT_VALUE),
        (changed(as_typed(P.UINT8, "int32_data", 1, 256)), Code.FORMAT_VALUE),
        (changed(as_typed(P.UINT8, "int32_data", 1, -1)), Code.FORMAT_VALUE),
        (changed(as_typed(P.INT8, "int32_data", 1, 128)), Code.FORMAT_VALUE),
        (changed(as_typed(P.BOOL, "int32_data", 1, 2)), Code.FORMAT_VALUE),
        (changed(as_typed(P.FLOAT16, "int32_data", 1, 65536)), Code.FORMAT_VALUE),
        (changed(as_typed(P.UINT32, "uint64_data", 1, 2**32)), Code.FORMAT_VALUE),
        (changed(as_typed(P.INT64, "int64_data", 1)), Code.FORMAT_SHAPE),
        (changed(as_typed(P.INT64, "int64_data", 1, 2, 3)), Code.FORMAT_SHAPE),
        (changed(as_typed(P.INT64, "int32_data", 1, 2)), Code.GRAPH_INVALID),
        (changed(as_typed(P.INT32, "int64_data", 1, 2)), Code.GRAPH_INVALID),
        (changed(as_typed(P.DOUBLE, "float_data", 1, 2)), Code.GRAPH_INVALID),
        (changed(as_typed(P.INT64, "uint64_data", 1, 2)), Code.GRAPH_INVALID),
        (changed(lambda t: t.string_data.append(b"x")), Code.GRAPH_INVALID),
        (changed(as_typed(P.INT64, "string_data", b"x", b"y")), Code.GRAPH_INVALID),  # type: ignore[arg-type]
        (changed(lambda t: setattr(t, "name", "a\0b")), Code.FORMAT_NAME),
        (changed(lambda t: setattr(t, "name", "a" * (2 << 20))), Code.FORMAT_LIMIT),
        (model_of(*[tensor_of(PAIR, bytes(8))] * 2).SerializeToString(), Code.FORMAT_NAME),
        (around(field(5, PACKED + field(7, b"\x01\x80"))), Code.GRAPH_INVALID),
        (around(field(5, PACKED + field(7, b"\x80" * 12 + b"\1\1"))), Code.GRAPH_INVALID),
        (around(field(5, FLOATS + field(4, bytes(5)) + field(4, bytes(3)))), Code.GRAPH_INVALID),
        (around(field(5, b"\x10\x01" + field(8, b"\xff"))), Code.GRAPH_INVALID),
        (around(field(5, b"\x10\x01\x10\x01")), Code.GRAPH_INVALID),
        (around(b"") + field(7, b""), Code.GRAPH_INVALID),
        (around(b"") + field(99, b"x"), Code.GRAPH_INVALID),
        (around(b"")[:-1], Code.GRAPH_INVALID),
        (b"\x08\x0a", Code.GRAPH_INVALID),
        (field(7, b""), Code.GRAPH_INVALID),
        (b"", Code.GRAPH_INVALID),
        (around(b"") + 2 * field(14, field(1, b"a")), Code.GRAPH_INVALID),
        (noting(ALIASES, b"[]"), Code.FORMAT_HEADER),
        (noting(STATE, b'["a","a"]'), Code.FORMAT_HEADER),
        (noting(STATE, b'["a"],"b":[]'), Code.FORMAT_HEADER),
        (noting(COMPLEX, b"[1]"), Code.FORMAT_HEADER),
        (noting(COMPLEX, b"[" * 9000), Code.FORMAT_HEADER),
    ],
)  # fmt: skip
def test_what_is_ambiguous_or_does_not_add_up_is_refused(
    data: bytes, code: Code, tmp_path: Path
) -> None:
    (tmp_path / "w.data").write_bytes(CANARY)
    (tmp_path / "m.onnx").write_bytes(data)
    refused(tmp_path / "m.onnx", code)


def nested(depth: int) -> bytes:
    content = b""
    for _ in range(depth):  # a graph holds a node, it an attribute, that a graph
        content = field(1, field(5, field(6, content)))
    return around(content)


def many_tensors() -> bytes:
    return around(b"".join(field(5, field(8, str(i).encode())) for i in range(TENSORS_LIMIT + 1)))


def many_parts() -> bytes:
    return around(field(5, field(8, b"w") + b"\x10\x01" + b"\x25\0\0\0\0" * (PARTS_LIMIT + 1)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: around(b"\x0a\x00" * (5 * FIELDS_LIMIT)), lambda: nested(64), lambda: nested(5000),
        many_tensors, many_parts,
    ],
)  # fmt: skip
def test_what_is_larger_than_well_meant_is_refused(
    make: Callable[[], bytes], tmp_path: Path
) -> None:
    (tmp_path / "m.onnx").write_bytes(make())
    refused(tmp_path / "m.onnx", Code.FORMAT_LIMIT)
    refused(tmp_path / "m.onnx", Code.FORMAT_LIMIT, key="")


def test_a_file_beyond_protobuf_is_refused_unread(tmp_path: Path) -> None:
    with open(tmp_path / "m.onnx", "wb") as file:
        file.write(around(b""))
        file.truncate(1 << 31)
    refused(tmp_path / "m.onnx", Code.FORMAT_LIMIT)


def test_functions_that_double_at_each_call_are_not_expanded(tmp_path: Path) -> None:
    doubling = [function(f"f{i}", [f"f{i + 1}"] * 2) for i in range(30)]
    model = model_of(tensor_of(PAIR, bytes(8)))
    model.functions.extend([*doubling, function("f30", ["Identity"])])
    model.graph.node.append(helper.make_node("f0", ["in"], ["y"], domain="own"))
    save(model, tmp_path / "m.onnx")
    assert list(read(tmp_path / "m.onnx", key="")) == ["w"]


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, code in {
        "pipe": Code.SOURCE_READ,
        ".": Code.SOURCE_READ,
        "x": Code.SOURCE_MISSING,
    }.items():
        with pytest.raises(PersistlibError) as caught:
            onnx_graph.open_file(tmp_path / name)
        assert caught.value.code == code.identifier


def test_nothing_stays_open_after_a_refusal(tmp_path: Path) -> None:
    path = beside(tmp_path, {"location": "w.data", "offset": "9"})
    before = os.listdir("/proc/self/fd")
    refused(path, Code.FORMAT_TRUNCATED)
    assert os.listdir("/proc/self/fd") == before


# -- persistlib's own graphs ---------------------------------------------------------------------


@cache
def made_of(name: str) -> tuple[torch.nn.Module, torch.Tensor]:
    """Return a model and an input."""
    torch.manual_seed(5)
    if name == "tied":
        return saved_models.Tied(), torch.arange(15).reshape(3, 5) % 11
    if name == "kinds":
        return saved_models.Kinds(), torch.randn(3, 6)
    return saved_models.Small(), torch.randn(3, 2, 6)


@cache
def exported_files(name: str, external_above: int) -> tuple[ExportedFile, ...]:
    model, inputs = made_of(name)
    return export(model, (inputs,), input_names=("input",), external_above=external_above).files


def exported(name: str, path: Path, external_above: int = 10**9) -> None:
    """Write persistlib's graph of a model, under a name."""
    graph, *data = exported_files(name, external_above)
    path.write_bytes(graph.data)
    for file in data:
        (path.parent / file.name).write_bytes(bytes(file.data))


def state_bytes(model: torch.nn.Module) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {
        name: (
            str(tensor.dtype),
            tuple(tensor.shape),
            tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes(),
        )
        for name, tensor in model.state_dict().items()
    }


@pytest.mark.parametrize(
    ("name", "external_above"),
    [("tied", 10**9), ("tied", 0), ("kinds", 10**9), ("small", 10**9)],
)
def test_an_exported_graph_gives_back_the_state_dict_to_the_bit(
    name: str, external_above: int, tmp_path: Path
) -> None:
    model, _ = made_of(name)
    exported(name, tmp_path / "model.onnx", external_above)
    wanted = state_bytes(model)
    with onnx_graph.open_file(tmp_path / "model.onnx") as checkpoint:
        owners = {e.name: e.name for e in checkpoint} | dict(checkpoint.aliases)
        found = {
            alias: (
                f"torch.{(entry := checkpoint.tensors[owner]).dtype.value.torch}",
                entry.shape,
                bytes(checkpoint.read_bytes(owner)),
            )
            for alias, owner in owners.items()
        }
        assert found == wanted
        order = [n for n in wanted if n not in checkpoint.aliases]
        assert [entry.name for entry in checkpoint] == order
        shared = {
            n for n, t in model.state_dict().items() for m, u in model.state_dict().items()
            if n != m and t.data_ptr() == u.data_ptr() != 0
        }  # fmt: skip
        assert set(checkpoint.aliases) | set(checkpoint.aliases.values()) == shared
        assert not checkpoint.notes
        assert not {ALIASES, COMPLEX, STATE} & set(checkpoint.metadata)
    whole = read(tmp_path / "model.onnx", key="")
    assert set(order) <= set(whole)


def without_notes(path: Path, *keys: str, **others: str) -> None:
    model = onnx.load(path)
    notes = {item.key: item.value for item in model.metadata_props}
    del model.metadata_props[:]
    kept = {key: text for key, text in (notes | others).items() if key not in keys}
    helper.set_model_props(model, kept)
    save(model, path)


def test_a_graph_of_an_older_release_gives_its_ties_and_complex_tensors(tmp_path: Path) -> None:
    exported("kinds", tmp_path / "model.onnx")
    with onnx_graph.open_file(tmp_path / "model.onnx") as checkpoint:
        wanted = {row.name: row for row in tensor_rows(checkpoint)}
    without_notes(tmp_path / "model.onnx", STATE)
    with onnx_graph.open_file(tmp_path / "model.onnx") as checkpoint:
        found = {row.name: row for row in tensor_rows(checkpoint)}
        assert wanted.items() <= found.items()


def test_notes_that_another_tool_left_behind_are_told_of_and_not_believed(tmp_path: Path) -> None:
    entries = [Entry("a", *PAIR_OF), Entry("b", *PAIR_OF), Entry("c", DType.F32, (3,))]
    tensors = [tensor_of(e, values(e.dtype, e.shape)) for e in entries]
    for notes in (
        {STATE: '["a","gone"]'}, {ALIASES: '{"a":"gone"}'}, {ALIASES: '{"a":"c"}'},
        {COMPLEX: '["c"]'}, {ALIASES: '{"a":"b"}', STATE: '["a"]'}, {COMPLEX: '["gone"]'},
        {ALIASES: '{"a":"b"}', COMPLEX: '["a"]'}, {ALIASES: '{"a":"b","b":"a"}'},
    ):  # fmt: skip
        save(model_of(*tensors, metadata=notes), tmp_path / "m.onnx")
        with onnx_graph.open_file(tmp_path / "m.onnx") as checkpoint:
            assert [entry.name for entry in checkpoint] == ["a", "b", "c"]
            assert checkpoint.notes[0].startswith("another tool changed the graph")
            assert dict(checkpoint.metadata) == notes


def test_a_tie_that_is_none_is_refused_when_it_is_read(tmp_path: Path) -> None:
    one, other = (Entry(name, *PAIR_OF) for name in "ab")
    for data, is_tied in ((b"12345678", True), (b"1234567X", False)):
        tensors = [tensor_of(one, b"12345678"), tensor_of(other, data)]
        save(model_of(*tensors, metadata={ALIASES: '{"b":"a"}'}), tmp_path / "m.onnx")
        if is_tied:
            assert list(read(tmp_path / "m.onnx")) == ["a"]
        else:
            assert "'a'" in refused(tmp_path / "m.onnx", Code.GRAPH_INVALID).reason


# -- into a template -----------------------------------------------------------------------------


def test_weights_of_every_dtype_go_into_a_graph_and_come_back(tmp_path: Path) -> None:
    shapes = [(), (0,), (1,), (7,), (3, 5), (40, 41)]
    entries = [Entry(f"{d.name}.{i}", d, s) for d in HELD for i, s in enumerate(shapes)]
    made = checkpoint_of(
        *entries, aliases={"tie": "F32.4", "BF16.tie": "BF16.5"}, metadata={"license": "MIT"}
    )
    template_for(made, tmp_path / "t.onnx")
    onnx.checker.check_model(os.fspath(tmp_path / "t.onnx"))
    for above in (10**9, 0):
        path = write(made, tmp_path / "m.onnx", tmp_path / "t.onnx", above)
        onnx.checker.check_model(os.fspath(path))
        with onnx_graph.open_file(path) as checkpoint:
            assert identity(checkpoint) == identity(made)
            assert checkpoint.entries == made.entries
            assert dict(checkpoint.aliases) == dict(made.aliases)
            assert dict(checkpoint.metadata) == {"license": "MIT"}
    theirs = {
        t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "m.onnx").graph.initializer
    }
    for entry in entries:
        assert bytes(entry.dtype.pack(theirs[entry.name])) == made.buffers[entry.name]
    assert sorted(os.listdir(tmp_path)) == ["m.onnx", "m.onnx.data", "t.onnx"]


def test_the_same_weights_in_the_same_graph_are_the_same_bytes(tmp_path: Path) -> None:
    made = checkpoint_of(Entry("a", DType.F32, (3000,)), Entry("b", DType.I8, (3,)))
    template_for(made, tmp_path / "t.onnx")
    for above in (10**9, 0):
        written = []
        for name in ("one", "two"):
            (tmp_path / name).mkdir(exist_ok=True)
            write(made, tmp_path / name / "m.onnx", tmp_path / "t.onnx", above)
            written.append({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()})
        assert written[0] == written[1]
        assert len(written[0]) == (1 if above else 2)


def test_large_values_lie_at_pages_of_their_own_and_ties_once(tmp_path: Path) -> None:
    entries = [
        Entry("a", DType.F32, (1000,)),
        Entry("b", DType.F32, (2,)),
        Entry("c", DType.I8, (5000,)),
    ]
    made = checkpoint_of(*entries, aliases={"z": "a"})
    template_for(made, tmp_path / "t.onnx")
    write(made, tmp_path / "m.onnx", tmp_path / "t.onnx", 0)
    places = {
        tensor.name: {item.key: item.value for item in tensor.external_data}
        for tensor in onnx.load(tmp_path / "m.onnx", load_external_data=False).graph.initializer
    }
    first = {"location": "m.onnx.data", "offset": "0", "length": "4000"}
    assert places == {
        "a": first, "b": {}, "z": first, "c": first | {"offset": "4096", "length": "5000"}
    }  # fmt: skip
    assert (tmp_path / "m.onnx.data").stat().st_size == 9096


def template(tmp_path: Path, **options: Any) -> Path:
    """Return a graph that computes with `w` and `b`, and has constants beside them."""
    tensors = [
        tensor_of(Entry("w", DType.F32, (2, 2)), bytes(16)),
        tensor_of(Entry("b", DType.F32, (2,)), bytes(8)),
        tensor_of(Entry("shape", DType.I64, (2,)), np.array([-1, 2]).tobytes()),
    ]
    tensors[0].doc_string = "the weight"
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["r"]),
        helper.make_node("Gemm", ["r", "w", "b"], ["y"]),
    ]
    made = graph_assembly.model(nodes, tensors)
    helper.set_model_props(made, options.pop("metadata", {"author": "someone"}))
    made.graph.initializer.extend(options.pop("more", []))
    save(made, tmp_path / "t.onnx")
    return tmp_path / "t.onnx"


WEIGHTS = (Entry("w", DType.F32, (2, 2)), Entry("b", DType.F32, (2,)))


def gemm(w: object, b: object) -> MemoryCheckpoint:
    arrays = {"w": np.array(w, "<f4"), "b": np.array(b, "<f4")}
    return MemoryCheckpoint(WEIGHTS, {n: memoryview(a.tobytes()) for n, a in arrays.items()})


def test_a_graph_computes_with_the_weights_that_were_put_into_it(tmp_path: Path) -> None:
    import onnxruntime

    checkpoint = gemm([[1, 2], [3, 4]], [10, 20])
    for above in (10**9, 0):
        path = write(checkpoint, tmp_path / "m.onnx", template(tmp_path), above)
        session = onnxruntime.InferenceSession(path)
        (given,) = session.run(None, {"x": np.array([[1, 1]], np.float32)})
        assert np.asarray(given).tolist() == [[14, 26]]


def test_the_template_stands_in_the_file_but_for_its_weights(tmp_path: Path) -> None:
    path = write(gemm([[1, 2], [3, 4]], [5, 6]), tmp_path / "m.onnx", template(tmp_path))
    before, after = onnx.load(tmp_path / "t.onnx"), onnx.load(path)
    kept = {tensor.name: tensor for tensor in after.graph.initializer}
    assert kept["shape"] == before.graph.initializer[2]
    assert kept["w"].doc_string == "the weight"
    notes = {item.key: item.value for item in after.metadata_props}
    assert notes == {"author": "someone", STATE: '["w", "b"]'}
    for model in (before, after):
        del model.graph.initializer[:]
        del model.metadata_props[:]
    assert before == after
    assert list(read(path)) == ["w", "b"]
    assert list(read(path, key="")) == ["w", "b", "shape"]
    again = write(gemm([[7, 7], [7, 7]], [5, 6]), tmp_path / "again.onnx", path)
    assert list(read(again)) == ["w", "b"]


def unfit(checkpoint: CheckpointReader, path: Path, code: Code) -> PersistlibError:
    target = path.with_name("out.onnx")
    with pytest.raises(PersistlibError) as caught:
        write(checkpoint, target, path)
    assert caught.value.code == code.identifier, caught.value
    assert caught.value.remedy
    assert not target.exists()
    return caught.value


def test_weights_that_do_not_fit_the_template_are_refused_by_name(tmp_path: Path) -> None:
    path = template(tmp_path)
    w, b = WEIGHTS
    fault = unfit(checkpoint_of(w, b, Entry("extra", DType.F32, ())), path, Code.FORMAT_NAME)
    assert "'extra'" in fault.reason
    assert "'b'" in unfit(checkpoint_of(w), path, Code.FORMAT_NAME).reason
    fault = unfit(checkpoint_of(w, Entry("b", DType.F32, (3,))), path, Code.FORMAT_SHAPE)
    assert fault.location.endswith(": b")
    assert "F32 (2,)" in fault.reason
    assert "F32 (3,)" in fault.reason
    fault = unfit(checkpoint_of(w, Entry("b", DType.F16, (2,))), path, Code.FORMAT_DTYPE)
    assert "F16 (2,)" in fault.reason
    words = text_tensor("words")
    texts = template(tmp_path, more=[words])
    unfit(checkpoint_of(w, b, Entry("words", DType.F32, (1,))), texts, Code.FORMAT_DTYPE)
    write(checkpoint_of(w, b), tmp_path / "m.onnx", texts)
    assert onnx.load(tmp_path / "m.onnx").graph.initializer[1] == words


def test_what_a_graph_notes_as_no_weight_may_be_left_out(tmp_path: Path) -> None:
    scale = tensor_of(Entry("scale", DType.F32, ()), np.float32(0.5).tobytes())
    unfit(checkpoint_of(*WEIGHTS), template(tmp_path, more=[scale]), Code.FORMAT_NAME)
    noted = template(tmp_path, more=[scale], metadata={STATE: '["b", "w"]'})
    path = write(checkpoint_of(*WEIGHTS), tmp_path / "m.onnx", noted)
    assert read(path, key="")["scale"][2] == np.float32(0.5).tobytes()
    part = template(tmp_path, more=[scale], metadata={STATE: '["b", "shape", "w"]'})
    assert "'shape'" in unfit(checkpoint_of(*WEIGHTS), part, Code.FORMAT_NAME).reason


def test_a_tie_of_which_the_graph_has_one_name_is_kept(tmp_path: Path) -> None:
    w, b = WEIGHTS
    for owner, alias in (("b", "head.b"), ("a.b", "b")):
        made = checkpoint_of(w, Entry(owner, b.dtype, b.shape), aliases={alias: owner})
        path = write(made, tmp_path / "m.onnx", template(tmp_path))
        with onnx_graph.open_file(path) as checkpoint:
            assert dict(checkpoint.aliases) == {alias: owner}
            assert identity(checkpoint) == identity(made)


def test_data_files_of_the_template_are_moved_into_the_written_one(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    big, twin = (Entry(name, DType.I64, (300,)) for name in ("big", "twin"))
    more = [
        outside_of(big, {"location": "t.data"}),
        outside_of(Entry("n", DType.I64, (2,)), {"location": "t.data", "offset": "4000"}),
        outside_of(twin, {"location": "t.data"}),
    ]
    path = template(tmp_path / "old", more=more)
    data = bytes(values(DType.I64, (502,)))
    (tmp_path / "old" / "t.data").write_bytes(data)
    for above in (10**9, 0):
        written = write(checkpoint_of(*WEIGHTS), tmp_path / "m.onnx", path, above)
        found = read(written, key="")
        assert found["big"][2] == data[:2400]
        assert found["n"][2] == data[4000:4016]
        assert "twin" in found if above else found.keys().isdisjoint({"twin"})
        theirs = onnx.load(written).graph.initializer
        stored = {tensor.name: tensor.raw_data for tensor in theirs}
        assert stored["big"] == stored["twin"] == data[:2400]
    assert (tmp_path / "m.onnx.data").stat().st_size == 2400


def test_a_template_whose_nodes_have_data_files_is_refused(tmp_path: Path) -> None:
    made = onnx.load(template(tmp_path))
    tensor = outside_of(Entry("k", *PAIR_OF), {"location": "k.data"})
    made.graph.node.append(helper.make_node("Constant", [], ["k"], value=tensor))
    save(made, tmp_path / "t.onnx")
    (tmp_path / "k.data").write_bytes(bytes(8))
    assert "'k'" in unfit(checkpoint_of(*WEIGHTS), tmp_path / "t.onnx", Code.FORMAT_NAME).reason


def test_a_hostile_template_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.onnx").write_bytes(nested(5000))
    unfit(checkpoint_of(*WEIGHTS), tmp_path / "t.onnx", Code.FORMAT_LIMIT)
    save(model_of(outside_of(PAIR, {"location": "../x"})), tmp_path / "t.onnx")
    unfit(checkpoint_of(PAIR), tmp_path / "t.onnx", Code.GRAPH_UNSAFE)


@pytest.mark.parametrize("key", [ALIASES, STATE, "ort_config", "author"])
def test_metadata_that_means_something_else_in_the_graph_is_refused(
    key: str, tmp_path: Path
) -> None:
    unfit(checkpoint_of(*WEIGHTS, metadata={key: "{}"}), template(tmp_path), Code.FORMAT_NAME)
    same = checkpoint_of(*WEIGHTS, metadata={"author": "someone", "format": "pt"})
    path = write(same, tmp_path / "m.onnx", template(tmp_path))
    with onnx_graph.open_file(path) as checkpoint:
        assert dict(checkpoint.metadata) == {"author": "someone", "format": "pt"}


def test_complex_weights_go_into_the_views_of_an_exported_graph(tmp_path: Path) -> None:
    exported("kinds", tmp_path / "t.onnx")
    with onnx_graph.open_file(tmp_path / "t.onnx") as checkpoint:
        assert any(entry.dtype is DType.C64 for entry in checkpoint)
        other = checkpoint_of(*checkpoint.entries, aliases=checkpoint.aliases)
    path = write(other, tmp_path / "m.onnx", tmp_path / "t.onnx")
    with onnx_graph.open_file(path) as checkpoint:
        assert identity(checkpoint) == identity(other)
        assert checkpoint.entries == other.entries


# -- through the hub -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tied", "small"])
def test_a_graph_becomes_a_weights_file_and_weights_a_graph(name: str, tmp_path: Path) -> None:
    import onnxruntime

    model, inputs = made_of(name)
    exported(name, tmp_path / "x.onnx")
    with pytest.raises(LossError, match="graph"):
        persistlib.convert(tmp_path / "x.onnx", tmp_path / "x.safetensors")
    there = persistlib.convert(
        tmp_path / "x.onnx", tmp_path / "x.safetensors", allow_loss=["graph"]
    )
    assert there.losses == ("graph the network itself",)
    assert there.tensors == len(model.state_dict())
    back = persistlib.convert(
        tmp_path / "x.safetensors", tmp_path / "y.onnx", template=tmp_path / "x.onnx"
    )
    assert there.identity == back.identity == there.source_identity
    outputs = []
    for path in ("x.onnx", "y.onnx"):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(tmp_path / path, options)
        outputs.append(session.run(None, {"input": inputs.numpy()})[0])
    assert np.array_equal(*outputs)
    pt = persistlib.convert(tmp_path / "y.onnx", tmp_path / "y.pt", allow_loss=["graph"])
    assert pt.identity == there.identity
    model.load_state_dict(torch.load(tmp_path / "y.pt", weights_only=True))


def test_the_hub_reads_back_what_lies_beside_a_graph_before_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = checkpoint_of(Entry("a", DType.F32, (3000,)), aliases={"z": "a"})
    template_for(made, tmp_path / "t.onnx")
    write(made, tmp_path / "a.onnx", tmp_path / "t.onnx")
    defaults = onnx_graph.write_to.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "external_above", 0)
    report = persistlib.convert(
        tmp_path / "a.onnx", tmp_path / "b.onnx", template=tmp_path / "t.onnx", allow_loss=["graph"]
    )
    assert report.identity == identity(made)
    assert (tmp_path / "b.onnx.data").stat().st_size == 12000
    assert read(tmp_path / "b.onnx")["a"][2] == made.buffers["a"]
    assert sorted(os.listdir(tmp_path)) == ["a.onnx", "b.onnx", "b.onnx.data", "t.onnx"]
    with pytest.raises(PersistlibError) as caught:
        persistlib.convert(
            tmp_path / "a.onnx", tmp_path / "b.c", to="onnx", template=tmp_path / "absent.onnx",
            allow_loss=["graph"],
        )  # fmt: skip
    assert caught.value.code == Code.SOURCE_MISSING.identifier
    assert not list(tmp_path.glob("b.c*"))


def test_a_name_that_no_reader_would_open_gets_no_data_file(tmp_path: Path) -> None:
    made = checkpoint_of(Entry("a", DType.F32, (3000,)))
    template_for(made, tmp_path / "t.onnx")
    with pytest.raises(PersistlibError) as caught:
        write(made, tmp_path / ".m.onnx", tmp_path / "t.onnx", 0)
    assert caught.value.code == Code.NAME_UNSAFE.identifier
    assert os.listdir(tmp_path) == ["t.onnx"]


def test_names_made_of_long_places_are_refused_before_they_fill_the_memory(tmp_path: Path) -> None:
    inner = helper.make_graph(
        [], "inner", [], [], [helper.make_tensor(f"w{n}", 1, [], [0.0]) for n in range(2_000)]
    )
    node = helper.make_node("If", ["c"], ["y"], name="N" * 100_000, then_branch=inner)
    path = tmp_path / "m.onnx"
    path.write_bytes(
        graph_assembly.of(helper.make_model(helper.make_graph([node], "g", [], []), ir_version=8))
    )
    with onnx_graph.open_file(path) as reader:
        assert not reader.entries
    with pytest.raises(PersistlibError) as caught:
        onnx_graph.open_file(path, key="")
    assert caught.value.code == Code.FORMAT_LIMIT.identifier


def test_spellings_of_one_checksum_are_compared_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from persistlib.converters import onnx_data

    (tmp_path / "w.bin").write_bytes(b"abcdefgh")
    said = hashlib.sha1(b"abcdefgh").hexdigest()
    entry = Entry("w", DType.U8, (4,))
    tensors = []
    for name, offset, spelt in (("v", "0", said.lower()), ("w", "4", said.upper())):
        place = {"location": "w.bin", "offset": offset, "length": "4", "checksum": spelt}
        tensors.append(outside_of(Entry(name, entry.dtype, entry.shape), place))
    save(model_of(*tensors), tmp_path / "m.onnx")
    count = 0
    compare = onnx_data.DataFolder._compare

    def counted(*arguments: Any) -> None:
        nonlocal count
        count += 1
        compare(*arguments)

    monkeypatch.setattr(onnx_data.DataFolder, "_compare", counted)
    with onnx_graph.open_file(tmp_path / "m.onnx") as reader:
        for one in reader:
            assert len(reader.read_bytes(one.name)) == 4
    assert count == 1
