"""`persistlib run` on graphs of any kind: arrays in, outputs out, and what ran where."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper

from command_line import invoke, told
from graph_assembly import model, of, value
from persistlib.errors import Code
from persistlib.runtime.array_files import read_arrays, read_file, write_arrays
from refusing import refused

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

X = np.arange(10, dtype=np.float32).reshape(5, 2)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """Return a graph that adds one, beside `x.npy`."""
    np.save(tmp_path / "x.npy", X)
    path = tmp_path / "m.onnx"
    path.write_bytes(of(model()))
    return path


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """Return a graph of two inputs that gives their sum and, as bfloat16, twice the first."""
    nodes = [
        helper.make_node("Add", ["a", "b"], ["sum"]),
        helper.make_node("Add", ["a", "a"], ["wide"]),
        helper.make_node("Cast", ["wide"], ["twice"], to=TensorProto.BFLOAT16),
    ]
    outputs = [value("sum"), value("twice", TensorProto.BFLOAT16)]
    made = helper.make_graph(nodes, "g", [value("a"), value("b")], outputs)
    path = tmp_path / "pair.onnx"
    path.write_bytes(
        of(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    )
    return path


@pytest.mark.parametrize("word", ["x.npy", "x=x.npy", "x.npz", "x=x.npz", "x=odd.npz"])
def test_an_input_comes_from_a_file(graph: Path, word: str) -> None:
    folder = graph.parent
    np.savez(folder / "x.npz", x=X)
    np.savez(folder / "odd.npz", other=X)
    name, equals, file = word.rpartition("=")
    envelope, code = told("run", graph, "--input", f"{name}{equals}{folder / file}")
    (output,) = envelope["data"]["outputs"]
    assert (code, output["name"], output["dtype"], output["shape"]) == (0, "y", "F32", [5, 2])
    assert output["values"] == (X + 1).tolist()
    assert (output["lowest"], output["highest"]) == (1, 10)
    assert envelope["data"]["placement"] == {"cpu": 1}


def test_people_see_each_outputs_shape_and_range(graph: Path) -> None:
    result = invoke("run", graph, "--input", graph.with_name("x.npy"))
    assert result.exit_code == 0
    assert "F32 [5, 2]" in result.stdout
    assert "1, 2, 3, 4 …" in result.stdout
    assert "--out outputs.npz" in result.stderr


def test_several_inputs_come_by_name_and_outputs_go_into_a_file(pair: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", X)
    np.save(tmp_path / "b.npy", X * 10)
    out = tmp_path / "out.npz"
    words = ["--input", f"a={tmp_path / 'a.npy'}", "--input", f"b={tmp_path / 'b.npy'}"]
    envelope, code = told("run", pair, *words, "--out", out)
    assert (code, envelope["data"]["out"]) == (0, str(out))
    assert envelope["data"]["widened"] == ["twice"]
    with np.load(out) as found:
        assert np.array_equal(found["sum"], X * 11)
        assert found["twice"].dtype == np.float32
        assert np.array_equal(found["twice"], X * 2)
    before = out.read_bytes()
    envelope, code = told("run", pair, *words, "--out", out)
    assert (code, envelope["findings"][0]["code"]) == (1, "PL401")
    assert told("run", pair, *words, "--out", out, "--overwrite")[1] == 0
    assert out.read_bytes() == before
    assert invoke("run", pair, *words, "-q").stdout.split() == ["sum", "twice"]


def test_samples_are_computed_some_at_a_time(graph: Path) -> None:
    envelope, code = told("run", graph, "--input", graph.with_name("x.npy"), "--batch", "2")
    assert code == 0
    assert envelope["data"]["outputs"][0]["values"] == (X + 1).tolist()


def test_a_graph_of_a_fixed_number_takes_any(tmp_path: Path) -> None:
    node = helper.make_node("Neg", ["x"], ["y"])
    made = helper.make_graph([node], "g", [value("x", shape=(3, 2))], [value("y", shape=(3, 2))])
    path = tmp_path / "m.onnx"
    opsets = [helper.make_opsetid("", 17)]
    path.write_bytes(of(helper.make_model(made, opset_imports=opsets, ir_version=8)))
    np.save(tmp_path / "x.npy", X)
    envelope, code = told("run", path, "--input", tmp_path / "x.npy")
    assert code == 0
    assert envelope["data"]["outputs"][0]["values"] == (-X).tolist()


def test_a_report_says_what_was_asked_for_and_what_ran(graph: Path) -> None:
    words = ("run", graph, "--input", graph.with_name("x.npy"), "--report")
    envelope, code = told(*words, "--providers", "cpu:use_arena=1", "--require", "cpu")
    report = envelope["data"]["report"]
    assert code == 0
    assert report["asked"] == ["cpu:use_arena=1"]
    assert report["created"] == ["cpu"]
    assert "cpu" in report["available"]
    assert report["assigned"] == {"cpu": {"Add": 1}}
    assert report["spent"]["cpu"]["calls"] == 1
    assert all(seconds > 0 for seconds in report["seconds"].values())
    shown = invoke(*words).stdout
    for text in ("asked for", "created", "100.0 %", "Add 1"):
        assert text in shown
    assert not list(graph.parent.glob("*profile*"))


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ((), "PL901"),
        (("--input", "{x}", "picture.png"), "PL901"),
        (("picture.png",), "PL708"),
        (("--input", "y={x}"), "PL702"),
        (("--input", "{x}", "--input", "{x}"), "PL901"),
        (("--input", "x={x}", "--input", "x={x}"), "PL702"),
        (("--input", "absent.npy"), "PL412"),
        (("--input", "{x}", "--require", "cuda"), "PL704"),
        (("--input", "{x}", "--providers", "cuda:device_id=1,cpu"), "PL704"),
        (("--input", "{x}", "--providers", "nonsense"), "PL703"),
        (("--input", "{x}", "--providers", "device_id=1"), "PL901"),
        (("--input", "{x}", "--min-share", "0.5"), "PL901"),
        (("--input", "{x}", "--min-share", "2"), "PL901"),
        (("--input", "{x}", "--timeout", "0"), "PL901"),
        (("--input", "{x}", "--runtime", "torch"), "PL901"),
        (("--input", "{x}", "--graph", "f16"), "PL901"),
    ],
)
def test_what_cannot_be_done_is_refused(graph: Path, words: tuple[str, ...], code: str) -> None:
    x = str(graph.with_name("x.npy"))
    envelope, exit_code = told("run", graph, *(word.format(x=x) for word in words))
    assert (envelope["findings"][0]["code"], exit_code) == (code, 2 if code == "PL901" else 1)


@pytest.mark.parametrize("dtype", [np.float64, np.int32, bool])
def test_an_input_of_another_dtype_is_told_how_to_change(graph: Path, dtype: Any) -> None:
    path = graph.with_name("other.npy")
    np.save(path, X.astype(dtype))
    envelope, code = told("run", graph, "--input", path)
    assert (code, envelope["findings"][0]["code"]) == (1, "PL702")
    assert "astype('float32')" in envelope["findings"][0]["remedy"]


# files of arrays


def pickled(path: Path) -> None:
    np.save(path, np.array([{}], object), allow_pickle=True)


def pickled_in_archive(path: Path) -> None:
    np.savez(path, x=np.array([{}], object))
    path.with_name(path.name + ".npz").rename(path)


def cut(path: Path) -> None:
    np.save(path, X)
    path.with_name(path.name + ".npy").rename(path)
    path.write_bytes(path.read_bytes()[:-4])


def absurd(path: Path) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1152921504606846976,), }"
    header = header.ljust(117) + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)


def bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for index in range(3):
            archive.writestr(f"{index}.npy", b"")
    data = bytearray(path.read_bytes())
    at = data.find(b"PK\x01\x02")
    while at >= 0:
        data[at + 24 : at + 28] = (0xFFFFFFF0).to_bytes(4, "little")
        at = data.find(b"PK\x01\x02", at + 1)
    path.write_bytes(data)


def no_array(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"text")


def garbage(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04 no archive")


def nothing(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    "write", [pickled_in_archive, cut, absurd, bomb, no_array, garbage, nothing]
)
def test_a_file_without_plain_arrays_is_our_error(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    path = tmp_path / "file"
    write(path)
    refused(Code.SESSION_INPUT, lambda: read_file(path))


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    pickled(tmp_path / "x.npy")
    refused(Code.SESSION_INPUT, lambda: read_file(tmp_path / "x.npy"))
    refused(Code.SOURCE_READ, lambda: read_file(tmp_path))


def test_arrays_that_are_written_are_read_the_same(tmp_path: Path) -> None:
    arrays: dict[str, np.ndarray[Any, Any]] = {
        "file": X + 1,
        "allow_pickle": X + 2,
        "a": X,
        "b": np.array(3, np.int64),
        "c": np.array([True, False]),
        "d/e": np.zeros((0, 3), np.float16),
    }
    assert write_arrays(tmp_path / "o.npz", arrays) == ()
    found = read_file(tmp_path / "o.npz")
    assert isinstance(found, dict)
    assert {n: (a.dtype, a.tobytes()) for n, a in found.items()} == {
        n: (a.dtype, a.tobytes()) for n, a in arrays.items()
    }
    small = np.array([0.5, -2], ml_dtypes.float8_e4m3fn)
    assert write_arrays(tmp_path / "s.npz", {"s": small}) == ("s",)


def test_a_path_with_an_equals_sign_is_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("a=b.npy", X)
    (found,) = read_arrays(["a=b.npy"])
    assert np.array_equal(found, X)
    refused(Code.SESSION_INPUT, lambda: read_arrays(["z=m.npz"]) if _two("m.npz") else None)


def _two(path: str) -> bool:
    np.savez(path, a=X, b=X)
    return True
