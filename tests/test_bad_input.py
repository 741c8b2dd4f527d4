"""Every bad input gets a code of its own, one line and a remedy, before anything is written."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

import persistlib
from persistlib import publish
from persistlib.canonical import encode
from persistlib.errors import Code, DurabilityError, PersistlibError, PersistlibWarning
from persistlib.manifest import document
from persistlib.manifest.schema import TensorRecord

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from persistlib.manifest.schema import Manifest

INPUTS = torch.linspace(-1, 1, 8).reshape(2, 4)


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    persistlib.save(net(), tmp_path / "site" / "model", example_inputs=INPUTS)
    return tmp_path / "site" / "model"


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def refusal(call: Callable[..., object], *arguments: Any, **told: Any) -> PersistlibError:
    """Return the error of a call that must fail, after looking at what all errors promise."""
    with pytest.raises(PersistlibError) as caught:
        call(*arguments, **told)
    fault = caught.value
    for finding in fault.findings:
        assert "\n" not in str(finding)
        assert finding.message
        assert finding.remedy, finding
        assert finding.location, finding
    assert str(fault).startswith(fault.code)
    return fault


# -- models that a file cannot hold ----------------------------------------------------------------


def partly_on_meta() -> nn.Module:
    model = net()
    model[0].weight = nn.Parameter(torch.empty(3, 4, device="meta"))  # type: ignore[index]
    return model


def compiled() -> nn.Module:
    wrapper = torch.compile(net())  # compiles when it is first run, which is never
    assert isinstance(wrapper, nn.Module)
    return wrapper


def sparse() -> nn.Module:
    model = net()
    model.register_buffer("graph", torch.eye(3).to_sparse())
    return model


def quantised() -> nn.Module:
    return with_buffer("small", torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8))


def with_buffer(name: str, tensor: torch.Tensor, *, persistent: bool = True) -> nn.Module:
    model = net()
    model.register_buffer(name, tensor, persistent=persistent)
    return model


def twins() -> nn.Module:
    model = nn.Module()
    model.Weight = nn.Parameter(torch.ones(1))
    model.weight = nn.Parameter(torch.ones(1))
    return model


class Marked(torch.Tensor):
    pass


class Extra(nn.Linear):
    def get_extra_state(self) -> object:
        return {"step": 3}


class Renaming(nn.Linear):
    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return {f"other.{k}": v for k, v in super().state_dict(*args, **kwargs).items()}


def hooked() -> nn.Module:
    model = nn.Linear(2, 2)
    hook: Callable[..., object] = lambda _m, state, _p, _l: state.pop("bias") and None  # noqa: E731
    model._register_state_dict_hook(hook)  # type: ignore[no-untyped-call]
    return model


MODELS: dict[str, tuple[Code, Callable[[], nn.Module]]] = {
    "partly on meta": (Code.MODEL_META, partly_on_meta),
    "unsaved buffer on meta": (
        Code.MODEL_META,
        lambda: with_buffer("far", torch.ones(2, device="meta"), persistent=False),
    ),
    "compiled": (Code.MODEL_WRAPPED, compiled),
    "compiled inside": (Code.MODEL_WRAPPED, lambda: nn.Sequential(compiled())),
    "DataParallel": (Code.MODEL_WRAPPED, lambda: nn.DataParallel(net())),
    "scripted": (Code.MODEL_WRAPPED, lambda: torch.jit.script(net())),
    "traced": (Code.MODEL_WRAPPED, lambda: torch.fx.symbolic_trace(net())),
    "sparse": (Code.MODEL_LAYOUT, sparse),
    "sparse and unsaved": (
        Code.MODEL_LAYOUT,
        lambda: with_buffer("graph", torch.eye(3).to_sparse(), persistent=False),
    ),
    "quantised": (Code.MODEL_QUANTISED, quantised),
    "lazy": (Code.MODEL_UNINITIALISED, lambda: nn.Sequential(nn.LazyLinear(3))),
    "lazy buffer": (Code.MODEL_UNINITIALISED, lambda: nn.Sequential(nn.LazyBatchNorm1d())),
    "empty": (Code.MODEL_EMPTY, lambda: nn.Sequential(nn.ReLU())),
    "twins": (Code.MODEL_NAMES, twins),
    "subclass": (
        Code.MODEL_SUBCLASS,
        lambda: with_buffer("mark", torch.ones(2).as_subclass(Marked)),
    ),
    "complex128": (Code.MODEL_DTYPE, lambda: with_buffer("z", torch.ones(2).to(torch.complex128))),
    "complex128, unsaved": (
        Code.MODEL_DTYPE,
        lambda: with_buffer("z", torch.ones(2).to(torch.complex128), persistent=False),
    ),
    "extra state": (Code.MODEL_STATE, lambda: nn.Sequential(Extra(2, 2))),
    "renaming state_dict": (Code.MODEL_STATE, lambda: Renaming(2, 2)),
    "state_dict hook": (Code.MODEL_STATE, hooked),
}
# torch tells users of some of these that better ways exist.
OLD_WAYS = pytest.mark.filterwarnings(
    "ignore:.*deprecated:", "ignore::DeprecationWarning", "ignore:Lazy:UserWarning"
)


@OLD_WAYS
@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_no_file_holds_is_refused_by_name(saved: Path, name: str) -> None:
    code, make = MODELS[name]
    model, before = make(), contents(saved)
    fresh = saved.parent / "fresh"
    assert refusal(persistlib.save, model, fresh).code == code.identifier
    assert refusal(persistlib.save, model, fresh, example_inputs=INPUTS).code == code.identifier
    assert refusal(persistlib.save, model, saved, overwrite=True).code == code.identifier
    assert contents(saved) == before
    assert os.listdir(saved.parent) == ["model"]


def test_a_model_wrapped_for_training_on_several_machines_is_refused(saved: Path) -> None:
    from torch.nn.parallel import DistributedDataParallel

    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{saved.parent / 'meeting'}", rank=0, world_size=1
    )
    try:
        model = DistributedDataParallel(net())
        fault = refusal(persistlib.save, model, saved.parent / "fresh")
        assert fault.code == Code.MODEL_WRAPPED.identifier
        assert "module" in fault.remedy
        persistlib.save(model.module, saved.parent / "fresh", example_inputs=INPUTS)
    finally:
        torch.distributed.destroy_process_group()


def test_a_model_that_nothing_rebuilds_is_refused(saved: Path) -> None:
    class Local(nn.Linear):
        pass

    fault = refusal(persistlib.save, Local(2, 2), saved.parent / "fresh")
    assert fault.code in {Code.NO_ARCHITECTURE.identifier, Code.UNTRUSTED.identifier}
    assert os.listdir(saved.parent) == ["model"]


@pytest.mark.filterwarnings("ignore:PL307")
def test_a_graph_of_which_nothing_says_the_inputs_is_refused(saved: Path) -> None:
    fault = refusal(persistlib.save, net(), saved.parent / "fresh", onnx=True)
    assert fault.code == Code.EXPORT_INPUTS.identifier
    assert os.listdir(saved.parent) == ["model"]


# -- bundles that are not what they say ------------------------------------------------------------


def reseal(path: Path, change: Callable[[Manifest], Manifest]) -> None:
    """Write a changed manifest whose identities and digest all agree with what it now says."""
    manifest = change(document.read((path / document.NAME).read_bytes()))
    weights = manifest.weights
    weights = weights.model_copy(update={"identity": document.identity_of_weights(weights)})
    manifest = document.seal(manifest.model_copy(update={"weights": weights}))
    (path / document.NAME).write_bytes(document.write(manifest))


def with_tensor(**update: Any) -> Callable[[Manifest], Manifest]:
    def change(manifest: Manifest) -> Manifest:
        first, *rest = manifest.weights.tensors
        tensors = (first.model_copy(update=update), *rest)
        weights = manifest.weights.model_copy(update={"tensors": tensors})
        return manifest.model_copy(update={"weights": weights})

    return change


def with_recipe(**update: Any) -> Callable[[Manifest], Manifest]:
    def change(manifest: Manifest) -> Manifest:
        architecture = manifest.architecture.model_copy(update={"edits": (), **update})
        return manifest.model_copy(update={"architecture": architecture})

    return change


def with_extra_tensor(manifest: Manifest) -> Manifest:
    extra = TensorRecord(
        name="9.bias", dtype="F32", shape=(0,), blake3="0" * 64, file=0, role="buffer"
    )
    tensors = (*manifest.weights.tensors, extra)
    return manifest.model_copy(
        update={"weights": manifest.weights.model_copy(update={"tensors": tensors})}
    )


FORGED: dict[str, tuple[Code, Callable[[Manifest], Manifest]]] = {
    "another shape": (Code.HEADER_MISMATCH, with_tensor(shape=(4, 3))),
    "another dtype": (Code.HEADER_MISMATCH, with_tensor(dtype="I32")),
    "another name": (Code.HEADER_MISMATCH, with_tensor(name="0.wait")),
    "a tensor more": (Code.HEADER_MISMATCH, with_extra_tensor),
    "another module's tensors": (
        Code.STRUCTURE_DRIFT,
        with_recipe(builder="torch.nn:Linear", arguments={"in_features": 4, "out_features": 3}),
    ),
    "an unknown builder": (Code.UNKNOWN_BUILDER, with_recipe(builder="torch.nn:Linnear")),
    "an untrusted module": (Code.UNTRUSTED, with_recipe(builder="os:system")),
    "a function of torch": (Code.UNTRUSTED, with_recipe(builder="torch:load")),
    "a builder that raises": (
        Code.BUILDER_FAILED,
        with_recipe(builder="torch.nn:Linear", arguments={"in_features": -1, "out_features": 3}),
    ),
    "arguments that it does not take": (
        Code.BUILDER_FAILED,
        with_recipe(builder="torch.nn:Linear", arguments={"width": 3}),
    ),
    "a package that is not here": (
        Code.PACKAGE_ABSENT,
        lambda m: m.model_copy(update={"requires": {**m.requires, "no-such-package": ">=1"}}),
    ),
    "a newer package": (
        Code.PACKAGE_VERSION,
        lambda m: m.model_copy(update={"requires": {"torch": ">=99"}}),
    ),
    "a newer Python": (
        Code.PYTHON_VERSION,
        lambda m: m.model_copy(update={"requires": {"python": ">=9"}}),
    ),
    "a model that was withdrawn": (
        Code.STATUS,
        lambda m: m.model_copy(
            update={"status": m.status.model_copy(update={"state": "withdrawn"})}
        ),
    ),
}


@pytest.mark.parametrize("name", FORGED)
@pytest.mark.parametrize("verify", [True, False])
def test_a_sealed_manifest_that_says_other_than_the_files_is_refused(
    saved: Path, name: str, *, verify: bool
) -> None:
    code, change = FORGED[name]
    reseal(saved, change)
    assert refusal(persistlib.load, saved, verify=verify).code == code.identifier
    if code is Code.HEADER_MISMATCH:
        assert persistlib.verify(saved).findings[0].code == code.identifier


def test_tensors_that_do_not_fit_are_refused_also_where_drift_is_allowed(saved: Path) -> None:
    reseal(saved, FORGED["another module's tensors"][1])
    with pytest.warns(PersistlibWarning, match="PL205"):
        fault = refusal(persistlib.load, saved, strict=False)
    assert fault.code == Code.TENSOR_MISMATCH.identifier


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_a_manifest_of_another_major_version_is_refused_by_name(saved: Path, runtime: str) -> None:
    raw = json.loads((saved / document.NAME).read_bytes()) | {"manifest_version": "2.0"}
    (saved / document.NAME).write_bytes(encode(raw))
    fault = refusal(persistlib.load, saved, runtime=runtime)
    assert fault.code == Code.MANIFEST_MAJOR.identifier
    assert "2.0" in fault.reason
    assert persistlib.check(saved).verdict == "refused"
    assert persistlib.check(saved).findings[0].code == fault.code
    assert persistlib.verify(saved).findings[0].code == fault.code
    assert refusal(persistlib.inspect, saved).code == fault.code


OPENED: dict[str, Callable[[Any], object]] = {
    "load": persistlib.load,
    "verify": persistlib.verify,
    "check": persistlib.check,
    "inspect": persistlib.inspect,
    "convert": lambda path: persistlib.convert(path, str(path) + ".pt"),
}


@pytest.mark.parametrize("opened", OPENED)
def test_a_path_that_is_no_bundle_is_refused(tmp_path: Path, opened: str) -> None:
    call = OPENED[opened]
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_bytes(b"hello, this is no weights file")
    kinds = {
        "nothing": Code.SOURCE_MISSING,
        "empty": Code.NOT_A_BUNDLE,
        "file": Code.FORMAT_UNKNOWN if opened in {"convert", "load"} else Code.NOT_A_BUNDLE,
    }
    if opened == "check":  # any file has a verdict
        del kinds["file"]
        report = persistlib.check(tmp_path / "file")
        assert report.verdict == "refused"
        assert [found.code for found in report.findings] == [Code.FORMAT_UNKNOWN.identifier]
    for name, code in kinds.items():
        assert refusal(call, tmp_path / name).code == code.identifier
    for path in ("", "a\0b", "x" * 300, "\udcff\udcfe"):
        assert refusal(call, path).location is not None
    assert sorted(os.listdir(tmp_path)) == ["empty", "file"]


def test_missing_and_unlisted_files_are_told_apart(saved: Path) -> None:
    (saved / "more.bin").write_bytes(b"x")
    assert persistlib.verify(saved).findings[0].code == Code.FILE_UNLISTED.identifier
    fault = refusal(persistlib.save, net(), saved, overwrite=True, example_inputs=INPUTS)
    assert fault.code == Code.TARGET_FOREIGN.identifier
    (saved / "more.bin").unlink()
    (saved / "model.safetensors").unlink()
    assert persistlib.verify(saved).findings[0].code == Code.FILE_MISSING.identifier
    assert refusal(persistlib.load, saved).code == Code.FILE_MISSING.identifier


# -- targets ---------------------------------------------------------------------------------------


def save_over(path: Path, **told: Any) -> Manifest:
    return persistlib.save(net(1), path, example_inputs=INPUTS, **told)


def test_what_stands_there_is_replaced_only_when_asked(saved: Path) -> None:
    before = contents(saved)
    assert refusal(save_over, saved).code == Code.TARGET_EXISTS.identifier
    assert contents(saved) == before
    (saved.parent / "file").write_text("mine")
    for told in ({}, {"overwrite": True}):
        fault = refusal(save_over, saved.parent / "file", **told)
        assert fault.code == Code.TARGET_KIND.identifier
    assert (saved.parent / "file").read_text() == "mine"
    save_over(saved, overwrite=True)
    assert contents(saved) != before


def test_a_folder_that_is_not_to_be_written_to_is_refused(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may write anywhere, so the system's answer is simulated where this runs as root."""
    before = contents(saved)
    if os.geteuid() == 0:
        mkdir = os.mkdir

        def refuse(path: Any, *arguments: Any, **told: Any) -> None:
            if ".new-" in os.fspath(path):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
            mkdir(path, *arguments, **told)

        monkeypatch.setattr(os, "mkdir", refuse)
    else:
        saved.parent.chmod(0o500)
    try:
        for path in (saved, saved.parent / "fresh"):
            fault = refusal(save_over, path, overwrite=True)
            assert fault.code == Code.TARGET_PERMISSION.identifier
    finally:
        saved.parent.chmod(0o700)
    assert contents(saved) == before
    assert os.listdir(saved.parent) == ["model"]


def test_a_lock_that_is_held_is_respected(saved: Path) -> None:
    before = contents(saved)
    lock = saved.parent / ".model.lock"
    holder = json.dumps({"pid": 4321, "host": socket.gethostname()})
    lock.write_text(holder)
    with lock.open("r+") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        fault = refusal(save_over, saved, overwrite=True)
        assert fault.code == Code.LOCK_HELD.identifier
        assert "4321" in fault.reason
        assert contents(saved) == before
        assert persistlib.verify(saved).ok  # readers need no lock
    assert lock.read_text() == holder


def test_a_lock_left_by_a_dead_process_is_taken_over_and_told(saved: Path) -> None:
    script = (
        "import fcntl, json, os, signal, socket, sys\n"
        "f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX)\n"
        "json.dump({'pid': os.getpid(), 'host': socket.gethostname()}, f); f.flush()\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    lock = saved.parent / ".model.lock"
    subprocess.run([sys.executable, "-I", "-c", script, lock], check=False)
    assert lock.exists()
    with pytest.warns(PersistlibWarning) as told:
        save_over(saved, overwrite=True)
    assert [w.message.finding.code for w in told] == [Code.LOCK_TAKEN_OVER.identifier]  # type: ignore[union-attr]
    assert persistlib.verify(saved).ok
    assert os.listdir(saved.parent) == ["model"]


def test_a_sync_that_fails_after_the_commit_is_its_own_error(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(saved)

    def failing(folder_fd: int, path: str) -> None:
        def sync_folder(_fd: int) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        with monkeypatch.context() as patch:
            patch.setattr(publish, "sync_folder", sync_folder)
            make_durable(folder_fd, path)

    make_durable = publish.make_durable
    monkeypatch.setattr(publish, "make_durable", failing)
    fault = refusal(save_over, saved, overwrite=True)
    assert isinstance(fault, DurabilityError)
    assert fault.code == Code.DURABILITY.identifier
    monkeypatch.undo()
    assert contents(saved) != before
    assert persistlib.verify(saved).ok


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errno.EIO, Code.TARGET_WRITE),
        (errno.ENOSPC, Code.TARGET_SPACE),
        (errno.EROFS, Code.TARGET_PERMISSION),
    ],
)
def test_a_disk_that_fails_leaves_the_old_bundle(
    saved: Path, monkeypatch: pytest.MonkeyPatch, error: int, code: Code
) -> None:
    before = contents(saved)

    def fail(_fd: int) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "fsync", fail)
    assert refusal(save_over, saved, overwrite=True).code == code.identifier
    monkeypatch.undo()
    assert contents(saved) == before
    assert os.listdir(saved.parent) == ["model"]


# -- calls -----------------------------------------------------------------------------------------

CALLS: dict[str, Callable[[Path], object]] = {
    "runtime": lambda p: persistlib.load(p, runtime="tensorflow"),
    "target": lambda p: persistlib.check(p, "torch>="),
    "interface": lambda p: persistlib.save(net(), p / "x", interface={"inputs": 3}),
    "examples": lambda p: persistlib.save(net(), p / "x", example_inputs="image"),
    "too many examples": lambda p: persistlib.save(net(), p / "x", example_inputs=[INPUTS] * 3),
    "examples that do not fit": lambda p: persistlib.save(
        net(), p / "x", example_inputs=torch.ones(2, 9)
    ),
    "shards of nothing": lambda p: persistlib.save(
        net(), p / "x", example_inputs=INPUTS, shard_bytes=0
    ),
    "training": lambda p: persistlib.save(
        net(), p / "x", example_inputs=INPUTS, training={"epochs": -1}
    ),
    "lineage": lambda p: persistlib.save(
        net(), p / "x", example_inputs=INPUTS, lineage=[{"id": 3}]
    ),
    "architecture": lambda p: persistlib.save(
        net(), p / "x", example_inputs=INPUTS, architecture={"bilder": "torch.nn:Linear"}
    ),
    "name": lambda p: persistlib.save(net(), p / "x", example_inputs=INPUTS, name=3),  # type: ignore[arg-type]
    "no module": lambda p: persistlib.save({"a": 1}, p / "x"),  # type: ignore[arg-type]
    "a state_dict": lambda p: persistlib.save(net().state_dict(), p / "x"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_means_nothing_is_refused_before_anything_is_written(
    saved: Path, name: str
) -> None:
    before = contents(saved)
    refusal(CALLS[name], saved)
    assert contents(saved) == before
    assert os.listdir(saved.parent) == ["model"]


def test_every_code_of_the_last_paragraph_is_another() -> None:
    """Missing, unlisted, wrong tensors, builders, versions, targets, locks, models, graphs."""
    codes = [
        Code.FILE_MISSING,
        Code.FILE_UNLISTED,
        Code.HEADER_MISMATCH,
        Code.UNKNOWN_BUILDER,
        Code.UNTRUSTED,
        Code.MANIFEST_MAJOR,
        Code.NOT_A_BUNDLE,
        Code.TARGET_EXISTS,
        Code.TARGET_PERMISSION,
        Code.LOCK_HELD,
        Code.LOCK_TAKEN_OVER,
        Code.DURABILITY,
        Code.EXPORT_INPUTS,
        *(code for code, _ in MODELS.values()),
    ]
    found = {code.identifier for code in codes}
    assert len(found) == len(set(codes))
