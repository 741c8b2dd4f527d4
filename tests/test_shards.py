"""Checkpoints in several files: read and written with their index, and refused when they differ."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest
import safetensors.torch
import torch

import persistlib
from persistlib.converters import safetensors_file, torch_file
from persistlib.errors import Code, FormatError, PersistlibError, UsageError
from persistlib.sources import open_file

if TYPE_CHECKING:
    from pathlib import Path

NAME = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def state() -> dict[str, torch.Tensor]:
    return {"a": torch.arange(6.0), "b": torch.ones(2, 3, dtype=torch.bfloat16)}


def sharded(folder: Path, **changes: Any) -> Path:
    """Write two shards with the library and an index; `changes` are put into the index."""
    tensors = state()
    safetensors.torch.save_file({"a": tensors["a"]}, folder / FIRST, {"format": "pt", "t": "a"})
    safetensors.torch.save_file({"b": tensors["b"]}, folder / SECOND, {"format": "pt"})
    index = {"metadata": {"total_size": 36}, "weight_map": {"a": FIRST, "b": SECOND}} | changes
    path = folder / NAME
    path.write_text(json.dumps(index, indent=2))
    return path


def test_shards_read_as_one_checkpoint_with_their_ties(tmp_path: Path) -> None:
    with open_file(sharded(tmp_path)) as reader:
        assert [entry.name for entry in reader] == ["a", "b"]
        assert dict(reader.aliases) == {"t": "a"}
        assert reader.metadata == {"format": "pt"}
        assert reader.container == "index of 2 shards, each safetensors"
        assert reader.notes == ()
        for name, tensor in state().items():
            expected = tensor.view(torch.uint8).numpy().tobytes()
            assert bytes(reader.read_bytes(name)) == expected
            assert b"".join(map(bytes, reader.windows(name))) == expected


def test_an_index_of_torch_shards_reads_as_one_checkpoint(tmp_path: Path) -> None:
    tensors = state()
    torch.save({"a": tensors["a"], "t": tensors["a"]}, tmp_path / "p-1.bin")
    torch.save({"b": tensors["b"]}, tmp_path / "p-2.bin", _use_new_zipfile_serialization=False)
    weight_map = {"a": "p-1.bin", "t": "p-1.bin", "b": "p-2.bin"}
    path = tmp_path / "pytorch_model.bin.index.json"
    for total in (36, 60, 36.0):  # ties counted once, or twice, or as older libraries spelt it
        metadata = {"total_size": total, "total_parameters": 12}
        path.write_text(json.dumps({"metadata": metadata, "weight_map": weight_map}))
        with open_file(path) as reader:
            assert reader.format == "torch"
            assert dict(reader.aliases) == {"t": "a"}
            assert reader.losses == reader.notes == ()
    report = persistlib.convert(path, tmp_path / "whole.pt")
    loaded = torch.load(tmp_path / "whole.pt", weights_only=True)
    assert report.tensors == 3
    assert torch.equal(loaded["b"], tensors["b"])
    assert loaded["t"].data_ptr() == loaded["a"].data_ptr()


def test_what_was_sharded_opens_in_the_library_and_converts_back(tmp_path: Path) -> None:
    tensors = {f"layer.{index}.weight": torch.randn(5, 7) for index in range(9)}
    tensors["tied"] = tensors["layer.4.weight"]
    torch.save(tensors, tmp_path / "a.pt")
    index = tmp_path / "out" / NAME
    report = persistlib.convert(tmp_path / "a.pt", index, shard_bytes=300)
    assert len(os.listdir(index.parent)) == 6
    weight_map = json.loads(index.read_text())["weight_map"]
    for name in sorted(set(weight_map.values())):
        held = safetensors.torch.load_file(index.parent / name)
        assert sum(t.nbytes for t in held.values()) <= 300
        assert all(torch.equal(tensor, tensors[key]) for key, tensor in held.items())
    again = persistlib.convert(index, tmp_path / "b.pt")
    assert again.identity == report.identity == again.source_identity
    loaded = torch.load(tmp_path / "b.pt", weights_only=True)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    first = {p.name: p.read_bytes() for p in index.parent.iterdir()}
    persistlib.convert(tmp_path / "a.pt", index, shard_bytes=300, overwrite=True)
    assert {p.name: p.read_bytes() for p in index.parent.iterdir()} == first


def test_an_index_without_a_size_has_one_shard_beside_it(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "a.pt")
    persistlib.convert(tmp_path / "a.pt", tmp_path / NAME)
    assert sorted(os.listdir(tmp_path)) == ["a.pt", "model-00001-of-00001.safetensors", NAME]


@pytest.mark.parametrize(("name", "size"), [("m.safetensors", 100), (NAME, 0)])
def test_shards_that_make_no_sense_are_refused_and_leave_nothing(
    tmp_path: Path, name: str, size: int
) -> None:
    torch.save(state(), tmp_path / "a.pt")
    with pytest.raises(UsageError):
        persistlib.convert(tmp_path / "a.pt", tmp_path / name, shard_bytes=size)
    assert os.listdir(tmp_path) == ["a.pt"]


def test_a_conversion_that_fails_midway_leaves_no_shard(tmp_path: Path) -> None:
    torch.save({f"w{i}": torch.randn(400) for i in range(4)}, tmp_path / "a.pt")
    data = bytearray((tmp_path / "a.pt").read_bytes())
    with torch_file.open_file(tmp_path / "a.pt") as reader:
        last = bytes(reader.read_bytes("w3"))
    data[data.index(last)] ^= 1
    (tmp_path / "a.pt").write_bytes(data)
    with pytest.raises(PersistlibError) as caught:
        persistlib.convert(tmp_path / "a.pt", tmp_path / NAME, shard_bytes=1600)
    assert caught.value.code == Code.TENSOR_DIGEST.identifier
    assert os.listdir(tmp_path) == ["a.pt"]


def test_a_shard_that_stands_there_is_not_replaced_unasked(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "a.pt")
    (tmp_path / "model-00001-of-00001.safetensors").write_bytes(b"mine")
    with pytest.raises(PersistlibError) as caught:
        persistlib.convert(tmp_path / "a.pt", tmp_path / NAME)
    assert caught.value.code == Code.TARGET_EXISTS.identifier
    assert (tmp_path / "model-00001-of-00001.safetensors").read_bytes() == b"mine"
    assert not (tmp_path / NAME).exists()


BOTH = {"a": FIRST, "b": SECOND}
WRONG: dict[str, tuple[dict[str, Any], str, Code]] = {
    "missing in its shard": (
        {"weight_map": BOTH | {"c": FIRST}},
        f"c: missing in {FIRST}",
        Code.FORMAT_HEADER,
    ),
    "not in the index": ({"weight_map": {"a": FIRST} | {"t": SECOND}}, "t: ", Code.FORMAT_HEADER),
    "in another shard": (
        {"weight_map": {"a": SECOND, "b": SECOND}},
        "a: missing in",
        Code.FORMAT_HEADER,
    ),
    "no such shard": (
        {"weight_map": BOTH | {"c": "model-3.safetensors"}},
        "not there",
        Code.FORMAT_HEADER,
    ),
    "another size": ({"metadata": {"total_size": 37}}, "total_size is 37", Code.FORMAT_HEADER),
    "size no number": ({"metadata": {"total_size": "36"}}, "total_size", Code.FORMAT_HEADER),
    "a path": (
        {"weight_map": BOTH | {"c": "../x.safetensors"}},
        "begins with a dot",
        Code.FORMAT_UNSAFE,
    ),
    "an absolute path": ({"weight_map": {"a": "/etc/passwd"}}, "separator", Code.FORMAT_UNSAFE),
    "a hidden name": ({"weight_map": {"a": ".x"}}, "with a dot", Code.FORMAT_UNSAFE),
    "no map": ({"weight_map": []}, "no map", Code.FORMAT_HEADER),
    "an empty map": ({"weight_map": {}}, "no map", Code.FORMAT_HEADER),
    "a shard that is no name": ({"weight_map": {"a": 1}}, "no name", Code.FORMAT_HEADER),
    "more fields": ({"more": 1}, "nothing else", Code.FORMAT_HEADER),
    "itself": ({"weight_map": {"a": NAME}}, "", Code.FORMAT_TRUNCATED),
}


@pytest.mark.parametrize("kind", WRONG)
def test_an_index_that_differs_from_its_shards_is_refused(tmp_path: Path, kind: str) -> None:
    changes, said, code = WRONG[kind]
    path = sharded(tmp_path, **changes)
    with pytest.raises(FormatError) as caught:
        open_file(path)
    assert caught.value.code == code.identifier
    assert said in str(caught.value)


def test_a_tensor_that_stands_in_two_shards_is_refused(tmp_path: Path) -> None:
    path = sharded(tmp_path)
    safetensors.torch.save_file(state(), tmp_path / SECOND)
    with pytest.raises(FormatError) as caught:
        open_file(path)
    assert caught.value.reason == f"stands in {SECOND}, the index says {FIRST}"
    assert caught.value.location.endswith(f"{NAME}: a")


def test_a_tensor_beside_those_of_the_index_is_refused(tmp_path: Path) -> None:
    path = sharded(tmp_path)
    safetensors.torch.save_file(state() | {"c": torch.ones(1)}, tmp_path / SECOND)
    (tmp_path / FIRST).unlink()
    path.write_text(json.dumps({"weight_map": {"a": SECOND, "b": SECOND}}))
    with pytest.raises(FormatError) as caught:
        open_file(path)
    assert caught.value.reason == f"stands in {SECOND}, the index does not name it"


def test_ties_and_metadata_that_shards_say_otherwise_show(tmp_path: Path) -> None:
    path = sharded(tmp_path, metadata={"total_size": 36, "made": "by hand"})
    tensors = state()
    safetensors.torch.save_file({"b": tensors["b"]}, tmp_path / SECOND, {"format": "np"})
    with open_file(path) as reader:
        assert reader.losses == ("metadata made", f"metadata format of {SECOND}")
    safetensors.torch.save_file({"b": tensors["b"]}, tmp_path / SECOND, {"t": "b"})
    with pytest.raises(FormatError, match="tied otherwise"):
        open_file(path)


def test_shards_of_two_formats_are_refused(tmp_path: Path) -> None:
    path = sharded(tmp_path)
    torch.save({"b": state()["b"]}, tmp_path / SECOND)
    with pytest.raises(FormatError, match="two formats"):
        open_file(path)


def test_a_shard_behind_a_link_is_read_as_the_hubs_cache_has_it(tmp_path: Path) -> None:
    path = sharded(tmp_path)
    (tmp_path / "blobs").mkdir()
    (tmp_path / FIRST).rename(tmp_path / "blobs" / "0123")
    (tmp_path / FIRST).symlink_to("blobs/0123")
    with safetensors_file.open_file(path) as reader:
        assert len(reader.entries) == 2
    (tmp_path / FIRST).unlink()
    os.mkfifo(tmp_path / FIRST)
    with pytest.raises(PersistlibError):
        safetensors_file.open_file(path)
