"""Law: whatever bytes a reader is given, it ends in a checkpoint or in one of our errors.

Seeds are small files of real writers; what is tried are their mutants: flipped, inserted, deleted,
repeated and cut bytes, numbers of 1 to 8 bytes set to what breaks arithmetic, halves of two files
put together. The mutant is told by content like any file, and every tensor of it is read.
"""

from __future__ import annotations

import resource
import struct
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from persistlib import sources
from persistlib.checkpoint import Entry, MemoryCheckpoint
from persistlib.converters import hdf5_file, onnx_graph, safetensors_file, torch_file
from persistlib.dtypes import DType
from persistlib.errors import Code, PersistlibError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from persistlib.checkpoint import CheckpointReader

WORDS = (0, 1, 2, 4, 7, 8, 16, 127, 128, 255, 256, 65535, 1 << 31, (1 << 32) - 1, 1 << 62, 1 << 63)
# Seconds of processor time for one mutant: files of some kilobytes, and HDF5 may loop until the
# kernel ends it.
SECONDS = 8
MEMORY = 512 << 20
ARRAYS = {
    "layer.weight": np.arange(12, dtype="<f4").reshape(3, 4),
    "layer.bias": np.zeros(3, "<f2"),
    "step": np.array(7, "<i8"),
    "mask": np.array([True, False]),
    "none": np.zeros((0, 3), "<f8"),
}


def checkpoint() -> MemoryCheckpoint:
    """Return what persistlib's own writers are given."""
    entries = tuple(Entry(n, DType.F32, (2, 3)) for n in ("a.b", "c"))
    buffers = {e.name: memoryview(struct.pack("<6f", *range(6))) for e in entries}
    return MemoryCheckpoint(entries, buffers, {"tied": "c"}, {"note": "text"})


def torch_zip(folder: Path) -> list[bytes]:
    return [*_saved(as_zip=True), _ours(folder, torch_file)]


def torch_stream(_: Path) -> list[bytes]:
    return _saved(as_zip=False)


def _saved(*, as_zip: bool) -> list[bytes]:
    import io

    import torch

    base = torch.arange(6.0).reshape(2, 3)
    nested = {"model": {"w": base, "t": base.t(), "h": base.half()}, "epoch": 3, "optimizer": {}}
    made: list[bytes] = []
    for value in (nested, {"w": base, "tied": base, "flags": torch.tensor([True])}):
        held = io.BytesIO()
        torch.save(value, held, _use_new_zipfile_serialization=as_zip)
        made.append(held.getvalue())
    if as_zip:
        held = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), held)
        made.append(held.getvalue())
    return made


def _ours(folder: Path, module: object) -> bytes:
    path = folder / "ours"
    module.write(checkpoint(), path)  # type: ignore[attr-defined]
    data = path.read_bytes()
    path.unlink()
    return data


def tensors(folder: Path) -> list[bytes]:
    made = safetensors.numpy.save(dict(ARRAYS), {"format": "np", "note": "text"})
    return [made, _ours(folder, safetensors_file)]


def index(_: Path) -> list[bytes]:
    return [
        b'{"metadata": {"total_size": 24}, "weight_map": {"a.b": "one.safetensors"}}',
        b'{"weight_map": {"a.b": "one.safetensors", "c": "two.safetensors"}}',
    ]


def graphs(_: Path) -> list[bytes]:
    value = helper.make_tensor_value_info
    held = [numpy_helper.from_array(a, n) for n, a in ARRAYS.items()]
    held += [TensorProto(name="i", data_type=TensorProto.INT8, dims=[3], int32_data=[1, -2, 3])]
    away = TensorProto(name="x", data_type=TensorProto.FLOAT, dims=[2])
    away.data_location = TensorProto.EXTERNAL
    away.external_data.add(key="location", value="one.safetensors")
    away.external_data.add(key="offset", value="8")
    constant = helper.make_node("Constant", [], ["k"], value_ints=[1, 2])
    branch = helper.make_graph([constant], "b", [], [], [held[0]])
    nodes = [constant, helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch)]
    graph = helper.make_graph(nodes, "g", [value("c", TensorProto.BOOL, [])], [], [*held, away])
    return [helper.make_model(graph).SerializeToString()]


def hdf5(folder: Path) -> list[bytes]:
    made = [_ours(folder, hdf5_file)]
    for version in ("earliest", "latest"):
        with h5py.File(folder / "h5", "w", libver=version) as file:
            file.attrs["note"] = "text"
            for name, array in ARRAYS.items():
                file[name.replace(".", "/")] = array
            packed = {"chunks": (4, 4), "compression": "gzip", "shuffle": True, "fletcher32": True}
            file.create_dataset("packed", data=np.arange(64.0).reshape(8, 8), **packed)
        made.append((folder / "h5").read_bytes())
    return made


def keras(folder: Path) -> list[bytes]:
    import zipfile

    config = (
        '{"class_name": "Sequential", "config": {"name": "s", "layers": [{"class_name": "Dense", '
        '"config": {"name": "d", "units": 2}}]}}'
    )
    with h5py.File(folder / "h5", "w") as file:
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = np.array([b"d"])
        group["d/d/kernel:0"], group["d/d/bias:0"] = np.ones((3, 2), "<f4"), np.zeros(2, "<f4")
        group["d"].attrs["weight_names"] = np.array([b"d/kernel:0", b"d/bias:0"])
        file.attrs["model_config"] = config
    legacy = (folder / "h5").read_bytes()
    with h5py.File(folder / "h5", "w") as file:
        file["layers/dense/vars/0"], file["layers/dense/vars/1"] = np.ones((3, 2)), np.zeros(2)
    path = folder / "x.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", '{"keras_version": "3.15.1"}')
        archive.writestr("config.json", config)
        archive.writestr("model.weights.h5", (folder / "h5").read_bytes())
    return [legacy, path.read_bytes()]


SEEDS: dict[str, Callable[[Path], list[bytes]]] = {
    "torch_zip": torch_zip,
    "torch_stream": torch_stream,
    "safetensors": tensors,
    "index": index,
    "onnx": graphs,
    "hdf5": hdf5,
    "keras": keras,
}
ISOLATED = ("hdf5", "keras")
# What opens mutants that no longer show their format, as `persistlib.sources` would not.
OPENERS: dict[str, Callable[[Path], CheckpointReader]] = {
    "torch_zip": torch_file.open_file,
    "torch_stream": torch_file.open_file,
    "safetensors": safetensors_file.open_file,
    "index": safetensors_file.open_file,
    "onnx": onnx_graph.open_file,
    "hdf5": hdf5_file.open_file,
}


@cache
def seeds(kind: str) -> tuple[bytes, ...]:
    with tempfile.TemporaryDirectory() as folder:
        return tuple(SEEDS[kind](Path(folder)))


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        shard = safetensors.numpy.save({"a.b": np.zeros((2, 3), "<f4")})
        (Path(folder) / "one.safetensors").write_bytes(shard)
        yield Path(folder) / "mutant"


@st.composite
def mutants(draw: st.DrawFn, kind: str) -> bytes:
    """Return a seed after one to five mutations."""
    data = bytearray(draw(st.sampled_from(seeds(kind))))
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, len(data)))
        count = draw(st.sampled_from([1, 1, 1, 2, 4, 8, 40]))
        match draw(
            st.sampled_from(
                ["flip", "flip", "word", "word", "insert", "delete", "copy", "cut", "splice"]
            )
        ):
            case "flip":
                data[at : at + 1] = bytes(
                    b ^ (1 << draw(st.integers(0, 7))) for b in data[at : at + 1]
                )
            case "word":
                width, word = draw(st.sampled_from([1, 2, 4, 8])), draw(st.sampled_from(WORDS))
                order = draw(st.sampled_from(["little", "big"]))
                data[at : at + width] = (word % (1 << 8 * width)).to_bytes(width, order)  # type: ignore[arg-type]
            case "insert":
                data[at:at] = draw(st.binary(min_size=count, max_size=count))
            case "delete":
                del data[at : at + count]
            case "copy":
                start = draw(st.integers(0, len(data)))
                data[at : at + count] = data[start : start + count]
            case "cut":
                del data[at:]
            case _:
                other = draw(st.sampled_from(seeds(kind)))
                data[at:] = other[draw(st.integers(0, len(other))) :]
    return bytes(data)


def spent() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def peak() -> int:
    """Return the most bytes that this process or a child of it has held.

    A child that is forked begins with what this process holds.
    """
    both = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(who).ru_maxrss for who in both) << 10


def read(path: Path, kind: str) -> None:
    """Read all of a file: as whatever it shows, and in any case as what it was."""
    for opened in (sources.open_file, OPENERS.get(kind)):
        if opened is None:
            continue
        fault: PersistlibError | None = None
        try:
            with opened(path) as reader:
                for entry in reader:
                    assert sum(w.nbytes for w in reader.windows(entry.name)) == entry.nbytes
        except PersistlibError as refusal:
            fault = refusal
        if fault is not None:
            assert fault.code != Code.INTERNAL.identifier, fault
            assert str(fault).isprintable()
            assert fault.remedy
        if kind in ISOLATED:  # one child is enough
            return


def tried(scratch: Path, data: bytes, kind: str) -> None:
    scratch.write_bytes(data)
    started, before = spent(), peak()
    read(scratch, kind)
    assert spent() - started < SECONDS
    # What other suites started in this process counts into the peak as well.
    assert peak() - before <= MEMORY


@pytest.mark.parametrize("kind", SEEDS)
def test_every_seed_is_read(scratch: Path, kind: str) -> None:
    for data in seeds(kind):
        scratch.write_bytes(data)
        if kind == "index" and b"two" in data:
            continue
        if kind == "onnx":
            (scratch.parent / "one.safetensors").write_bytes(bytes(96))
        with sources.open_file(scratch) as reader:
            assert [reader.read(entry.name) for entry in reader]


@pytest.mark.parametrize("kind", [kind for kind in SEEDS if kind not in ISOLATED])
@given(data=st.data())
@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
def test_a_mutant_is_read_or_refused(scratch: Path, kind: str, data: st.DataObject) -> None:
    tried(scratch, data.draw(mutants(kind)), kind)


@pytest.mark.parametrize("kind", ISOLATED)
@given(data=st.data())
@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
def test_a_mutant_of_a_format_that_a_child_parses_is_read_or_refused(
    scratch: Path, kind: str, data: st.DataObject
) -> None:
    tried(scratch, data.draw(mutants(kind)), kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SEEDS)
@given(data=st.data())
@settings(max_examples=1_000, suppress_health_check=[HealthCheck.too_slow])
def test_a_thousand_mutants_are_read_or_refused(
    scratch: Path, kind: str, data: st.DataObject
) -> None:
    tried(scratch, data.draw(mutants(kind)), kind)
