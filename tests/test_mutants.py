"""One changed byte anywhere is noticed: by `verify` always, by `load` wherever it uses the byte."""

from __future__ import annotations

import collections
import contextlib
import itertools
import os
import random
import shutil
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import torch

import persistlib
import saved_models
from persistlib.converters import safetensors_file
from persistlib.converters.safetensors_reader import SafetensorsReader
from persistlib.errors import IntegrityError, PersistlibError
from portrait import differences, settle, state

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from pathlib import Path

    from torch import nn

CARD = "README.md"
MANIFEST = "manifest.json"
GRAPH = "model.onnx"
# What each way of opening a bundle reads.
USED = {
    "module": (MANIFEST, "model", "state.safetensors"),
    "session": (MANIFEST, GRAPH),
}
LEAST = 2_000  # mutants that `verify` sees
EACH = 24  # positions drawn in each region that has so many


class Bundle(NamedTuple):
    """A saved bundle, and what it holds."""

    path: Path
    model: nn.Module
    portrait: dict[str, Any]
    inputs: torch.Tensor

    def files(self) -> list[str]:
        return sorted(os.listdir(self.path))


class Region(NamedTuple):
    """Bytes of one kind in one file."""

    file: str
    name: str
    positions: range


def make(path: Path, seed: int = 0, **told: Any) -> Bundle:
    torch.manual_seed(seed)
    inputs = torch.randn(3, 2, 6)
    model = settle(saved_models.Small(), inputs)
    persistlib.save(model, path, example_inputs=inputs, **told)
    return Bundle(path, model, state(model), inputs)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make(tmp_path_factory.mktemp("whole") / "bundle", onnx=True)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("sharded") / "bundle"
    return make(path, shard_bytes=120, sha256=True)


@pytest.fixture
def bundle(tmp_path: Path, request: pytest.FixtureRequest) -> Bundle:
    """Return a copy that a test may spoil."""
    source: Bundle = request.getfixturevalue(getattr(request, "param", "whole"))
    shutil.copytree(source.path, tmp_path / "bundle")
    return source._replace(path=tmp_path / "bundle")


def regions(bundle: Bundle) -> Iterator[Region]:
    for name in bundle.files():
        size = (bundle.path / name).stat().st_size
        if not name.endswith(".safetensors"):
            yield Region(name, "first byte", range(1))
            yield Region(name, "body", range(1, size - 1))
            yield Region(name, "last byte", range(size - 1, size))
            continue
        with safetensors_file.open_file(bundle.path / name) as reader:
            assert isinstance(reader, SafetensorsReader)
            header = reader.header
        text = (bundle.path / name).read_bytes()[8 : header.length]
        used = 8 + len(text.rstrip(b" "))
        yield Region(name, "length", range(8))
        yield Region(name, "header", range(8, used))
        yield Region(name, "padding", range(used, header.length))
        for tensor, (begin, end) in header.spans.items():
            if end > begin:
                yield Region(name, f"first byte of {tensor}", range(begin, begin + 1))
                yield Region(name, f"body of {tensor}", range(begin, end))
                yield Region(name, f"last byte of {tensor}", range(end - 1, end))


def mutants(bundle: Bundle, each: int) -> Iterator[tuple[Region, int, int]]:
    """Yield regions, positions in the file, and what the byte there is changed by."""
    chance = random.Random(2)
    for region in regions(bundle):
        count = min(each, len(region.positions))
        for position in chance.sample(region.positions, count):
            yield region, position, 1 << chance.randrange(8)
            yield region, position, chance.randrange(1, 256)


@contextlib.contextmanager
def mutated(file: Path, position: int, change: int) -> Generator[None]:
    """Change one byte in place, and change it back."""
    fd = os.open(file, os.O_RDWR)
    try:
        before = os.pread(fd, 1, position)
        os.pwrite(fd, bytes([before[0] ^ change]), position)
        try:
            yield
        finally:
            os.pwrite(fd, before, position)
    finally:
        os.close(fd)


def verified(path: Path) -> list[str]:
    """Return the places that `verify` finds faults in; it raises nothing but our errors."""
    report = persistlib.verify(path)
    assert report.ok == (not any(f.severity == "error" for f in report.findings))
    for finding in report.findings:
        assert "\n" not in str(finding)
        assert finding.remedy or finding.severity != "error", finding
    return [f.location for f in report.findings if f.severity == "error"]


def load_module(path: Path) -> nn.Module:
    model = persistlib.load(path, trust={"saved_models"})
    assert isinstance(model, torch.nn.Module)
    return model


def refusal(opened: Callable[..., object], *arguments: object) -> str:
    """Return the place that a refusal names, empty where there was none."""
    try:
        opened(*arguments)
    except PersistlibError as fault:
        return "" if "\n" in str(fault) else fault.location
    return ""


def run_session(bundle: Bundle) -> np.ndarray[Any, Any]:
    session: Any = persistlib.load(bundle.path, runtime="onnxruntime")
    (output,) = session.run({"x": bundle.inputs.numpy()}).values()
    result: np.ndarray[Any, Any] = output
    return result


def uses(kind: str, name: str) -> bool:
    return (name.startswith(USED[kind]) and not name.endswith((".index.json", ".onnx"))) or (
        kind == "session" and name == GRAPH
    )


@pytest.mark.parametrize("bundle", ["whole", "sharded"], indirect=True)
def test_verify_refuses_every_mutant_of_every_file_but_the_card(bundle: Bundle) -> None:
    assert verified(bundle.path) == []
    seen = collections.Counter[str]()
    for region, position, change in mutants(bundle, EACH):
        with mutated(bundle.path / region.file, position, change):
            faults = verified(bundle.path)
        place = f"{region.file}: {region.name} at {position} ^ {change}"
        if region.file == CARD:
            assert faults == [], place
        else:
            assert faults, place
            assert all(f"/{region.file}" in fault for fault in faults), (place, faults)
        seen[region.file] += 1
    assert verified(bundle.path) == []
    assert sum(seen.values()) >= LEAST / 2
    assert sorted(seen) == bundle.files()


@pytest.mark.parametrize("bundle", ["whole", "sharded"], indirect=True)
def test_load_refuses_every_mutant_of_what_it_uses_and_sees_no_other(bundle: Bundle) -> None:
    seen = collections.Counter[bool]()
    for region, position, change in mutants(bundle, 4):
        place = f"{region.file}: {region.name} at {position} ^ {change}"
        used = uses("module", region.file)
        with mutated(bundle.path / region.file, position, change):
            if used:
                assert region.file in refusal(load_module, bundle.path), place
            else:
                assert not differences(bundle.portrait, state(load_module(bundle.path))), place
        seen[used] += 1
    assert seen[True] > 200
    assert seen[False] > 40


def test_a_session_refuses_every_mutant_of_what_it_uses_and_sees_no_other(bundle: Bundle) -> None:
    expected = run_session(bundle)
    with torch.no_grad():
        wanted = bundle.model(bundle.inputs).numpy()
    assert np.abs(expected - wanted).max() <= 1e-4 * np.abs(wanted).max()
    for region, position, change in mutants(bundle, 3):
        place = f"{region.file}: {region.name} at {position} ^ {change}"
        with mutated(bundle.path / region.file, position, change):
            if uses("session", region.file):
                assert refusal(run_session, bundle), place
            elif not region.name.startswith("body"):
                assert np.array_equal(run_session(bundle), expected), place


def test_every_single_byte_of_the_manifest_counts(bundle: Bundle) -> None:
    """Not a sample: a manifest has no byte that is free to differ."""
    file = bundle.path / MANIFEST
    data = file.read_bytes()
    for position in range(0, len(data), 7):
        with mutated(file, position, 1 << (position % 8)):
            for opened in (persistlib.inspect, load_module):
                with pytest.raises(PersistlibError):
                    opened(bundle.path)
            assert persistlib.check(bundle.path).verdict == "refused"


def test_a_partial_load_refuses_mutants_of_its_tensors_and_sees_no_other(bundle: Bundle) -> None:
    name = "first.weight"
    whole: Any = persistlib.load(bundle.path, only=[name])
    for region, position, change in mutants(bundle, 2):
        is_header = region.name in {"length", "header", "padding"}
        used = region.file == MANIFEST or (
            region.file == "model.safetensors" and (is_header or region.name.endswith(f" {name}"))
        )
        with mutated(bundle.path / region.file, position, change):
            if used:
                with pytest.raises(PersistlibError):
                    persistlib.load(bundle.path, only=[name])
            else:
                part: Any = persistlib.load(bundle.path, only=[name])
                assert list(part) == [name]
                assert torch.equal(part[name], whole[name])


# -- larger changes --------------------------------------------------------------------------------


def refused(bundle: Bundle, *, loads: bool) -> None:
    """Assert that `verify` says so, and that `load` refuses or gives the same model."""
    with contextlib.suppress(PersistlibError):
        assert verified(bundle.path)
    if loads:
        assert not differences(bundle.portrait, state(load_module(bundle.path)))
        return
    with pytest.raises(PersistlibError) as caught:
        load_module(bundle.path)
    assert "\n" not in str(caught.value)
    assert caught.value.remedy


SIZES: dict[str, Callable[[bytes], bytes]] = {
    "cut by one": lambda data: data[:-1],
    "cut to half": lambda data: data[: len(data) // 2],
    "cut to eight bytes": lambda data: data[:8],
    "emptied": lambda _data: b"",
    "longer by a zero": lambda data: data + b"\0",
    "longer by a space": lambda data: data + b" ",
    "longer by itself": lambda data: data * 2,
    "all zeros": lambda data: bytes(len(data)),
}


@pytest.mark.parametrize("change", SIZES)
@pytest.mark.parametrize("bundle", ["whole", "sharded"], indirect=True)
def test_a_file_of_another_length_is_refused(bundle: Bundle, change: str) -> None:
    for name in bundle.files():
        file = bundle.path / name
        data = file.read_bytes()
        file.write_bytes(SIZES[change](data))
        if name == CARD:
            assert verified(bundle.path) == []
        else:
            refused(bundle, loads=not uses("module", name))
        file.write_bytes(data)
    assert verified(bundle.path) == []


@pytest.mark.parametrize("bundle", ["whole", "sharded"], indirect=True)
def test_a_file_that_is_gone_renamed_or_no_file_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    for name in bundle.files():
        if name == CARD:
            continue
        file, aside = bundle.path / name, tmp_path / name
        file.rename(aside)
        refused(bundle, loads=not uses("module", name))
        (bundle.path / f"x{name}").write_bytes(aside.read_bytes())
        refused(bundle, loads=not uses("module", name))
        (bundle.path / f"x{name}").unlink()
        file.mkdir()
        refused(bundle, loads=not uses("module", name))
        file.rmdir()
        os.mkfifo(file)
        refused(bundle, loads=not uses("module", name))
        file.unlink()
        file.symlink_to("nowhere")
        refused(bundle, loads=not uses("module", name))
        file.unlink()
        aside.rename(file)
    assert verified(bundle.path) == []


def test_a_card_that_is_gone_is_told_and_hurts_nothing(bundle: Bundle) -> None:
    (bundle.path / CARD).unlink()
    report = persistlib.verify(bundle.path)
    assert report.ok
    assert [f.code for f in report.findings] == ["PL119"]
    assert not differences(bundle.portrait, state(load_module(bundle.path)))


@pytest.mark.parametrize("name", ["more.bin", ".hidden", "model.bin", "Model.safetensors"])
def test_a_file_that_is_not_listed_is_told_and_never_read(bundle: Bundle, name: str) -> None:
    (bundle.path / name).write_bytes(b"\x80\x04\x95")
    assert verified(bundle.path) == [str(bundle.path / name)]
    assert not differences(bundle.portrait, state(load_module(bundle.path)))
    (bundle.path / name).unlink()
    (bundle.path / name).mkdir()
    assert verified(bundle.path) == [str(bundle.path / name)]


def test_files_of_another_bundle_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    """Files with the same names and sizes, whole in themselves."""
    other = make(tmp_path / "other", seed=1, onnx=True)
    for name in bundle.files():
        if name == CARD:
            continue
        data = (bundle.path / name).read_bytes()
        shutil.copyfile(other.path / name, bundle.path / name)
        refused(bundle, loads=not uses("module", name))
        (bundle.path / name).write_bytes(data)


@pytest.mark.parametrize("bundle", ["sharded"], indirect=True)
def test_files_that_changed_places_are_refused(bundle: Bundle) -> None:
    shards = [name for name in bundle.files() if name.startswith("model-")]
    assert len(shards) > 2
    for one, other in itertools.pairwise(shards):
        ours, theirs = ((bundle.path / name).read_bytes() for name in (one, other))
        (bundle.path / one).write_bytes(theirs)
        (bundle.path / other).write_bytes(ours)
        refused(bundle, loads=False)
        (bundle.path / one).write_bytes(ours)
        (bundle.path / other).write_bytes(theirs)
    assert verified(bundle.path) == []


def test_tensors_of_equal_shape_that_changed_places_are_refused(bundle: Bundle) -> None:
    file = bundle.path / "model.safetensors"
    data = bytearray(file.read_bytes())
    with safetensors_file.open_file(file) as reader:
        assert isinstance(reader, SafetensorsReader)
        spans = reader.header.spans
    (a, b), (c, d) = spans["first.weight"], spans["second.weight"]
    data[a:b], data[c:d] = data[c:d], data[a:b]
    file.write_bytes(data)
    with pytest.raises(IntegrityError) as caught:
        load_module(bundle.path)
    assert caught.value.location.endswith(("first.weight", "second.weight"))
    faults = verified(bundle.path)
    assert sorted(fault.rpartition(" ")[2] for fault in faults) == ["first.weight", "second.weight"]


def test_names_that_changed_places_in_a_header_are_refused(bundle: Bundle) -> None:
    file = bundle.path / "model.safetensors"
    data = file.read_bytes()
    swapped = data.replace(b'"first.w', b'"\0').replace(b'"second.w', b'"first.w')
    swapped = swapped.replace(b'"\0', b'"second.w')
    assert len(swapped) == len(data) != 0
    assert swapped != data
    file.write_bytes(swapped)
    refused(bundle, loads=False)
