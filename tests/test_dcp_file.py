"""Folders of torch.distributed.checkpoint: read as a torch file is, or refused with all faults."""

from __future__ import annotations

import pickle  # noqa: TID251 - writes attacks, reads nothing
import random
import shutil
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
import safetensors.torch
import torch
from click.testing import CliRunner
from torch import nn
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, MetadataIndex

import persistlib
from distributed_folders import change, save, save_cut, size
from persistlib.cli.main import cli
from persistlib.errors import Code, LossError, PersistlibError
from persistlib.sources import open_file
from test_torch_file_attacks import CALLS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from distributed_folders import Cut
    from persistlib.checkpoint import CheckpointReader


def state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(6, 5, generator=generator)
    kinds = (
        torch.float64,
        torch.bfloat16,
        torch.float16,
        torch.complex64,
        torch.int8,
        torch.uint16,
    )
    return {
        "a.weight": values,
        "a.bias": values[0].clone(),
        "turned": values.t(),
        "part": values[1:4, 2:],
        "scalar": torch.tensor(7),
        "empty": torch.zeros(3, 0),
        "truth": values > 0,
        "narrow": values.to(torch.float8_e4m3fn),
        **{str(kind): (values * 9).to(kind) for kind in kinds},
    }


def trained() -> dict[str, Any]:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(5, 3)).sum().backward()
    optimizer.step()
    return {"model": model.state_dict(), "optim": optimizer.state_dict(), "step": 3, "note": "x"}


def content(reader: CheckpointReader) -> dict[str, Any]:
    """Return what a reader holds; both of its ways to read must agree."""
    held: dict[str, Any] = {}
    for entry in reader:
        values = bytes(reader.read_bytes(entry.name))
        assert b"".join(map(bytes, reader.windows(entry.name))) == values
        held[entry.name] = (entry.dtype, entry.shape, values)
    return held


def refused(folder: Path, **options: Any) -> PersistlibError:
    started = time.monotonic()
    with pytest.raises(PersistlibError) as caught, open_file(folder, **options) as reader:
        content(reader)
    assert time.monotonic() - started < 20
    assert "\n" not in str(caught.value)
    return caught.value


def codes(fault: PersistlibError) -> list[str]:
    return [one.code for one in fault.findings]


@pytest.mark.parametrize("whole", [state, trained])
@pytest.mark.parametrize("key", [None, ""])
def test_a_folder_reads_as_the_file_of_the_same_state(
    whole: Callable[[], dict[str, Any]], key: str | None, tmp_path: Path
) -> None:
    values = whole()
    torch.save(values, tmp_path / "whole.pt")
    save(values, tmp_path / "pieces")
    with open_file(tmp_path / "whole.pt", key=key) as file:
        wanted, losses, metadata = content(file), file.losses, file.metadata
        wanted |= {alias: wanted[name] for alias, name in file.aliases.items()}
    with open_file(tmp_path / "pieces", key=key) as folder:
        assert content(folder) == wanted
        assert folder.metadata == metadata
        assert {*folder.losses} == {*losses}
        assert folder.format == "dcp"
        assert not folder.aliases
    assert len(wanted) > 5


def test_a_part_is_found_by_its_key(tmp_path: Path) -> None:
    values = trained()
    save({**values, "ema": {"shadow": values["model"]}}, tmp_path / "pieces")
    with open_file(tmp_path / "pieces") as found:
        assert {entry.name for entry in found} == {*values["model"]}
        assert "value optim, which is no tensor" in found.losses
        assert "its part 'model' is read" in found.notes[0]
    with open_file(tmp_path / "pieces", key="ema.shadow") as named:
        assert {entry.name for entry in named} == {*values["model"]}
    assert codes(refused(tmp_path / "pieces", key="absent")) == [Code.FORMAT_UNKNOWN.identifier]


# A tensor of 7 x 6 x 2 in pieces: rows, columns, both, and turning around a middle.
CUTS: dict[str, list[Cut]] = {
    "whole": [((0, 0, 0), (7, 6, 2))],
    "rows": [((4, 0, 0), (3, 6, 2)), ((0, 0, 0), (4, 6, 2)), ((7, 0, 0), (0, 6, 2))],
    "columns": [((0, 0, 0), (7, 1, 2)), ((0, 1, 0), (7, 5, 2))],
    "both": [
        *[((0, 0, 0), (3, 6, 1)), ((0, 0, 1), (3, 6, 1))],
        *[((3, 0, 0), (4, 2, 2)), ((3, 2, 0), (4, 4, 2))],
    ],
    "around": [
        *[((0, 0, 0), (2, 4, 2)), ((0, 4, 0), (5, 2, 2)), ((5, 1, 0), (2, 5, 2))],
        *[((2, 0, 0), (5, 1, 2)), ((2, 1, 0), (3, 3, 2))],
    ],
}


@pytest.mark.parametrize("how", CUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.complex128])
def test_pieces_are_put_together(how: str, dtype: torch.dtype, tmp_path: Path) -> None:
    tensor = (torch.randn(7, 6, 2) * 3).round().to(dtype)
    save_cut({"w": (tensor, CUTS[how]), "b": (tensor[0, 0], [((0,), (2,))])}, tmp_path / "pieces")
    report = persistlib.convert(tmp_path / "pieces", tmp_path / "out.pt")
    assert report.losses == ()
    read = torch.load(tmp_path / "out.pt", weights_only=True)
    assert torch.equal(read["w"], tensor)
    assert torch.equal(read["b"], tensor[0, 0])


@pytest.mark.parametrize("ending", ["safetensors", "pt", "h5"])
def test_the_command_line_converts_a_folder(ending: str, tmp_path: Path) -> None:
    values = trained()
    save(values, tmp_path / "step-1.5")
    source, out = str(tmp_path / "step-1.5"), str(tmp_path / f"out.{ending}")
    lost = CliRunner().invoke(cli, ["convert", source, out])
    assert lost.exit_code != 0
    assert "value optim" in lost.output
    done = CliRunner().invoke(cli, ["convert", source, out, "--allow-loss", "value"])
    assert done.exit_code == 0, done.output
    assert not [line for line in done.output.splitlines() if "the name ends in" in line]
    assert persistlib.diff(source, out).same
    if ending == "safetensors":
        read = safetensors.torch.load_file(out)
        assert {*read} == {*values["model"]}
        assert all(torch.equal(read[name], values["model"][name]) for name in read)


def test_a_folder_becomes_a_verified_bundle(tmp_path: Path) -> None:
    from torchvision.models import squeezenet1_1

    torch.manual_seed(0)
    model = squeezenet1_1(num_classes=3).eval()
    save({"model": model.state_dict(), "step": 1}, tmp_path / "pieces")
    done = CliRunner().invoke(
        cli, ["identify", str(tmp_path / "pieces"), "--bundle", str(tmp_path / "bundle")]
    )
    assert done.exit_code == 0, done.output
    assert persistlib.verify(tmp_path / "bundle").ok
    loaded = persistlib.load(tmp_path / "bundle").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())


# What is refused.


def place(said: Any, name: str = "a.weight") -> Any:
    return next(place for index, place in said.storage_data.items() if index.fqn == name)


def tensor(said: Any, name: str = "a.weight") -> Any:
    return said.state_dict_metadata[name]


def set_shape(said: Any, extents: tuple[int, ...], chunk: tuple[int, ...] | None = None) -> None:
    tensor(said).size = size(extents)
    tensor(said).chunks[0].sizes = size(chunk or extents)


def share_place(said: Any) -> None:
    place(said).offset = place(said, "a.bias").offset


def move(said: Any) -> None:
    """Say that a piece begins elsewhere, under the same name."""
    tensor(said).chunks[0].offsets = size((1, 0))


def hide(said: Any) -> None:
    said.storage_data = {i: p for i, p in said.storage_data.items() if i.fqn != "a.weight"}


def add_place(said: Any) -> None:
    said.storage_data[MetadataIndex("unseen", (0,))] = place(said)


CHANGES: dict[str, tuple[Callable[[Any], Any], Code]] = {
    "above": (lambda s: setattr(place(s), "relative_path", "../__0_0.distcp"), Code.FORMAT_UNSAFE),
    "outside": (lambda s: setattr(place(s), "relative_path", "/etc/passwd"), Code.FORMAT_UNSAFE),
    "hidden": (lambda s: setattr(place(s), "relative_path", ".metadata"), Code.FORMAT_UNSAFE),
    "absent": (lambda s: setattr(place(s), "relative_path", "__7_0.distcp"), Code.FILE_MISSING),
    "long": (lambda s: setattr(place(s), "length", 1 << 60), Code.FORMAT_HEADER),
    "far": (lambda s: setattr(place(s), "offset", 1 << 60), Code.FORMAT_TRUNCATED),
    "negative": (lambda s: setattr(place(s), "offset", -1), Code.FORMAT_HEADER),
    "nothing": (lambda s: setattr(place(s), "length", 0), Code.FORMAT_HEADER),
    "truth": (lambda s: setattr(place(s), "offset", True), Code.FORMAT_HEADER),
    "transformed": (
        lambda s: setattr(place(s), "transform_descriptors", ["zstd"]),
        Code.FORMAT_HEADER,
    ),
    "shared": (share_place, Code.FORMAT_HEADER),
    "huge": (lambda s: set_shape(s, (1 << 40, 1 << 40)), Code.FORMAT_SHAPE),
    "hole": (lambda s: set_shape(s, (8, 5), (6, 5)), Code.FORMAT_SHAPE),
    "beyond": (lambda s: set_shape(s, (5, 6), (6, 5)), Code.FORMAT_SHAPE),
    "turned": (lambda s: set_shape(s, (5, 6)), Code.FORMAT_SHAPE),
    "rank": (lambda s: set_shape(s, (6, 5), (30,)), Code.FORMAT_HEADER),
    "moved": (move, Code.FORMAT_HEADER),
    "dtype": (
        lambda s: setattr(tensor(s).properties, "dtype", torch.int32),
        Code.FORMAT_SHAPE,
    ),
    "foreign dtype": (
        lambda s: setattr(tensor(s).properties, "dtype", torch.quint8),
        Code.FORMAT_DTYPE,
    ),
    "nowhere": (hide, Code.FORMAT_HEADER),
    "extra": (add_place, Code.FORMAT_HEADER),
    "twice": (lambda s: tensor(s).chunks.append(tensor(s).chunks[0]), Code.FORMAT_HEADER),
    "no pieces": (lambda s: tensor(s).chunks.clear(), Code.FORMAT_HEADER),
    "recalled": (
        lambda s: setattr(tensor(s), "chunks", tensor(s, "a.bias").chunks),
        Code.FORMAT_HEADER,
    ),
    "no value": (
        lambda s: s.state_dict_metadata.update({"a.weight": BytesStorageMetadata()}),
        Code.FORMAT_HEADER,
    ),
    "inside": (
        lambda s: s.planner_data.update({"a.weight": ("a.bias", "weight")}),
        Code.FORMAT_HEADER,
    ),
    "elsewhere": (lambda s: s.planner_data.update({"a.bias": ("a", "weight")}), Code.FORMAT_HEADER),
    "places": (lambda s: setattr(s, "storage_data", None), Code.FORMAT_HEADER),
    "state": (lambda s: s.state_dict_metadata, Code.FORMAT_UNKNOWN),
    "number": (lambda _: 3, Code.FORMAT_UNKNOWN),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(state(), tmp_path_factory.mktemp("good") / "pieces")


@pytest.mark.parametrize("what", CHANGES)
def test_what_contradicts_itself_or_leads_out_is_refused(
    what: str, good: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(good, tmp_path / "pieces")
    work, code = CHANGES[what]
    fault = refused(change(folder, work))
    assert codes(fault)[0] == code.identifier, fault
    with pytest.raises(PersistlibError):
        persistlib.convert(folder, tmp_path / "out.pt", allow_loss=["all"])
    assert not (tmp_path / "out.pt").exists()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_is_read(protocol: int, good: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(good, tmp_path / "pieces")
    with open_file(change(folder, lambda _: None, protocol)) as reader, open_file(good) as known:
        assert content(reader) == content(known)


@pytest.mark.parametrize("overlap", [True, False])
def test_pieces_that_do_not_tile_are_refused(overlap: bool, tmp_path: Path) -> None:
    values = torch.randn(4, 4)
    cuts: list[Cut] = [((0, 0), (2, 4)), ((1 if overlap else 2, 0), (2, 4 if overlap else 2))]
    folder = save_cut({"w": (values, cuts)}, tmp_path / "pieces")
    fault = refused(folder)
    assert codes(fault) == [Code.FORMAT_SHAPE.identifier]
    assert ("overlap" if overlap else "leave elements out") in str(fault)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_nothing_in_the_metadata_is_called(
    name: str, protocol: int, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(good, tmp_path / "pieces")
    (folder / ".metadata").write_bytes(pickle.dumps(CALLS[name], protocol))
    assert codes(refused(folder))[0] in {
        Code.FORMAT_UNSAFE.identifier,
        Code.FORMAT_HEADER.identifier,
    }

    def hide_call(said: Any) -> None:
        said.storage_meta.checkpoint_id = CALLS[name]

    shutil.copy(good / ".metadata", folder / ".metadata")
    assert codes(refused(change(folder, hide_call, max(protocol, 2)))) == [
        Code.FORMAT_UNSAFE.identifier
    ]
    assert not (tmp_path / "CANARY").exists()


def test_faults_are_told_together(tmp_path: Path) -> None:
    folder = save(state(), tmp_path / "pieces")

    def spoil(said: Any) -> None:
        set_shape(said, (5, 6))
        place(said, "a.bias").relative_path = "../x"
        place(said, "truth").relative_path = "__5_0.distcp"
        tensor(said, "narrow").properties.dtype = torch.float8_e5m2

    fault = refused(change(folder, spoil))
    assert sorted(codes(fault)) == sorted(
        code.identifier
        for code in (
            *(Code.FORMAT_SHAPE, Code.FORMAT_SHAPE, Code.FORMAT_UNSAFE, Code.FILE_MISSING),
        )
    )


def test_a_changed_or_cut_piece_is_refused(good: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(good, tmp_path / "pieces")
    path = folder / "__0_0.distcp"
    whole = path.read_bytes()
    wanted = state()["a.weight"].numpy().tobytes()
    at = whole.index(wanted)
    path.write_bytes(whole[: at + 5] + bytes([whole[at + 5] ^ 1]) + whole[at + 6 :])
    assert codes(refused(folder)) == [Code.TENSOR_DIGEST.identifier]
    path.write_bytes(whole[:-100])
    assert Code.FORMAT_TRUNCATED.identifier in codes(refused(folder))
    path.unlink()
    assert codes(refused(folder)) == [Code.FILE_MISSING.identifier]


def test_any_damage_of_the_metadata_ends_in_a_reader_or_an_error(
    good: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(good, tmp_path / "pieces")
    whole = (good / ".metadata").read_bytes()
    draw = random.Random(11)
    ended = {"read": 0, "refused": 0}
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 3)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        (folder / ".metadata").write_bytes(
            data[: draw.choice([len(data), draw.randrange(len(data))])]
        )
        try:
            with open_file(folder) as reader:
                content(reader)
            ended["read"] += 1
        except PersistlibError:
            ended["refused"] += 1
    assert ended["refused"] > 300


def test_a_list_of_pieces_is_one_tensor_s(tmp_path: Path) -> None:
    """Recalled by many tensors, it would cost the square of the metadata to read."""
    folder = save({"w": torch.ones(0)}, tmp_path / "pieces")

    def repeat(said: Any) -> None:
        one = tensor(said, "w")
        one.chunks *= 50
        said.state_dict_metadata |= {f"w{number}": one for number in range(300)}

    fault = refused(change(folder, repeat))
    assert {*codes(fault)} == {Code.FORMAT_HEADER.identifier}
    assert len(fault.findings) == 100


def test_a_value_holds_no_others(tmp_path: Path) -> None:
    folder = save({"a": torch.ones(2), "a.b": torch.ones(3)}, tmp_path / "pieces")
    with open_file(folder) as reader:
        assert [entry.name for entry in reader] == ["a", "a.b"]
    fault = refused(change(folder, lambda said: said.planner_data.update({"a.b": ("a", "b")})))
    assert codes(fault) == [Code.FORMAT_HEADER.identifier]
    assert "a value, and a part that holds others" in str(fault)


def test_a_bundle_stays_a_bundle_whatever_lies_in_it(good: Path, tmp_path: Path) -> None:
    persistlib.save(nn.Linear(2, 2), tmp_path / "bundle", example_inputs=torch.ones(1, 2))
    shutil.copy(good / ".metadata", tmp_path / "bundle")
    assert persistlib.inspect(tmp_path / "bundle").manifest.weights.tensors


def test_losing_what_is_no_tensor_must_be_allowed(tmp_path: Path) -> None:
    save(trained(), tmp_path / "pieces")
    with pytest.raises(LossError):
        persistlib.convert(tmp_path / "pieces", tmp_path / "out.pt")


def test_offsets_that_no_file_has_room_for_are_refused_before_they_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from persistlib.converters import dcp_file

    def compared(*_: object) -> None:
        pytest.fail("numbers that collide are compared")

    monkeypatch.setattr(dcp_file, "tiling_fault", compared)
    step = sys.hash_info.modulus
    folder = save_cut({"w": (torch.ones(4), [((0,), (2,)), ((2,), (2,))])}, tmp_path / "x")

    def far(said: Any) -> None:
        stored = said.state_dict_metadata["w"]
        stored.size = size((2 * step,))
        places = list(said.storage_data.values())
        said.storage_data = {}
        for number, chunk in enumerate(stored.chunks):
            chunk.offsets, chunk.sizes = size((number * step,)), size((step,))
            said.storage_data[MetadataIndex("w", chunk.offsets)] = places[number]

    assert refused(change(folder, far)).code == Code.FORMAT_SHAPE.identifier


def test_a_piece_beyond_its_file_is_told_once_for_the_file(tmp_path: Path) -> None:
    folder = save({"w": torch.ones(4), "v": torch.ones(2)}, tmp_path / "x")

    def far(said: Any) -> None:
        for place in said.storage_data.values():
            place.offset += 1 << 40

    told = refused(change(folder, far)).findings
    where = str(folder / "__0_0.distcp")
    assert [found.code for found in told if found.location == where] == [
        Code.FORMAT_TRUNCATED.identifier
    ]


def test_a_path_that_is_said_twice_is_refused_where_it_is_said_again(tmp_path: Path) -> None:
    folder = save({"a": {"b": torch.ones(2)}}, tmp_path / "x")

    def again(said: Any) -> None:
        said.planner_data["a.?"] = ("a", "?")

    path = change(folder, again) / ".metadata"
    path.write_bytes(path.read_bytes().replace(b"a.?", b"a.b").replace(b"\x01?", b"\x01b"))
    fault = refused(folder)
    assert fault.code == Code.FORMAT_HEADER.identifier
    assert "second" in fault.reason


def test_deep_paths_take_no_more_memory_than_the_parts_that_they_name(tmp_path: Path) -> None:
    import tracemalloc

    keys = ("a",) * 63
    names = {(f"{n}", *keys): n for n in range(500)}
    folder = save({"w": torch.ones(2)}, tmp_path / "x")

    def deepen(said: Any) -> None:
        place = next(iter(said.storage_data.values()))
        stored = said.state_dict_metadata["w"]
        said.state_dict_metadata = {"w": stored}
        for path in names:
            name = ".".join(path)
            said.state_dict_metadata[name] = BytesStorageMetadata()
            said.planner_data[name] = path
            said.storage_data[MetadataIndex(name)] = place

    change(folder, deepen)
    length = (folder / ".metadata").stat().st_size
    tracemalloc.start()
    try:
        refused(folder)  # all stand in one place
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 60 * length
