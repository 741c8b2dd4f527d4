"""A whole Keras model becomes a bundle or a graph that computes what Keras computes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import pytest
import torch

import persistlib
from persistlib.errors import ArchitectureError, Code, FormatError, PersistlibError
from persistlib.keras_models import require_harmless
from refusing import refused

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(find_spec("keras") is None, reason="keras is not installed")

# Keras runs in a process of its own, as it does for whoever wrote the file.
PRELUDE = """
import os, sys
os.environ["KERAS_BACKEND"] = "torch"
import keras, numpy as np
from keras import layers as L
keras.utils.set_random_seed(3)
random = np.random.default_rng(5)
def finish(model, name, inputs, spread=0.3):
    for layer in model._flatten_layers():
        if isinstance(layer, L.BatchNormalization):
            layer.momentum = 0.0
    model(inputs, training=True)
    head = [w for w in model.weights if w.path.endswith("kernel")][-1]
    head.assign(random.standard_normal(head.shape) * spread)
    model.save(name)
    outputs = keras.ops.convert_to_numpy(model(inputs, training=False))
    np.savez(name + ".npz", inputs=inputs, outputs=outputs)
"""
CONVOLUTIONAL = """
i = keras.Input((24, 24, 3), name="picture")
x = L.Conv2D(8, 3, padding="same", name="stem")(i)
x = L.BatchNormalization(name="norm_1")(x)
x = L.DepthwiseConv2D(3, name="depth")(L.ReLU()(x))
x = L.Dropout(0.5)(x)
o = L.Dense(5, activation="softmax", name="head")(L.GlobalAveragePooling2D()(x))
model = keras.Model(i, o)
finish(model, "cnn.keras", random.standard_normal((4, 24, 24, 3)).astype("float32"))
model.save("cnn.h5")
"""
RECURRENT = """
i = keras.Input((9,), dtype="int32", name="tokens")
x = L.Embedding(40, 8)(i)
x = L.Bidirectional(L.LSTM(6, return_sequences=True))(x)
o = L.Dense(3)(L.GRU(5)(x))
model = keras.Model(i, o)
finish(model, "rnn.keras", random.integers(0, 40, (4, 9)).astype("int32"))
"""
SEQUENTIAL = """
part = keras.Sequential([keras.Input((24, 24, 3)), L.Conv2D(8, 3, strides=2)])
model = keras.Sequential([
    keras.Input((24, 24, 3)), part, L.BatchNormalization(), L.Reshape((121, 8)),
    L.Bidirectional(L.LSTM(4)), L.Dense(5),
])
finish(model, "rows.h5", random.standard_normal((4, 24, 24, 3)).astype("float32"))
model.save("rows.keras")
"""
SEED = """
base = keras.applications.ResNet50(include_top=False, weights=None, input_shape=(96, 96, 3))
o = L.Dense(10, activation="softmax")(L.GlobalAveragePooling2D()(base.output))
model = keras.Model(base.input, o)
from sklearn.datasets import load_digits
digits = load_digits().images[:16, :, :, None] / 16
pictures = np.kron(digits, np.ones((1, 12, 12, 3))).astype("float32")
# Logits of about one: a softmax that is not full tells outputs apart.
finish(model, "my_model.h5", pictures, spread=0.03)
"""
TRUSTED = """
import own_layers
i = keras.Input((6,))
o = L.Dense(3)(own_layers.Scaled()(i))
model = keras.Model(i, o)
finish(model, "own.keras", random.standard_normal((4, 6)).astype("float32"))
"""
OWN_LAYERS = """
import keras
@keras.saving.register_keras_serializable("own")
class Scaled(keras.layers.Layer):
    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones", name="scale")
    def call(self, inputs):
        return inputs * self.scale * 2.0
"""


def written(folder: Path, script: str) -> Path:
    """Let Keras write models into a folder."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + script],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("keras"), CONVOLUTIONAL + RECURRENT + SEQUENTIAL)


def expected(path: Path) -> tuple[Any, Any]:
    stored = np.load(f"{path}.npz")
    outputs = stored["outputs"]
    assert np.ptp(outputs) > 1e-2 * np.abs(outputs).max()
    assert np.ptp(outputs, axis=0).max() > 1e-3 * np.abs(outputs).max()
    return stored["inputs"], outputs


def gap(given: Any, wanted: Any) -> float:
    return float(np.abs(given - wanted).max() / np.abs(wanted).max())


def run_graph(path: Path, inputs: Any) -> Any:
    session = onnxruntime.InferenceSession(path)
    return session.run(None, {session.get_inputs()[0].name: inputs})[0]


@pytest.mark.parametrize("name", ["cnn.keras", "rnn.keras"])
def test_a_keras_model_becomes_a_bundle_that_loads_without_being_told_anything(
    models: Path, tmp_path: Path, name: str
) -> None:
    report = persistlib.convert(models / name, tmp_path / "bundle", allow_loss=["all"])
    assert report.format == "bundle"
    inputs, outputs = expected(models / name)
    model = persistlib.load(tmp_path / "bundle")
    assert isinstance(model, torch.nn.Module)
    for size in (1, 4):
        with torch.no_grad():
            given = model.eval()(torch.from_numpy(inputs[:size])).numpy()
        assert gap(given, outputs[:size]) < 1e-6
    manifest = persistlib.inspect(tmp_path / "bundle").manifest
    assert manifest.requires["keras"]
    assert manifest.lineage[0].id == report.source_identity
    assert persistlib.verify(tmp_path / "bundle", behaviour=True).ok


def test_a_keras_model_becomes_a_graph_with_proof(models: Path, tmp_path: Path) -> None:
    report = persistlib.convert(models / "cnn.keras", tmp_path / "cnn.onnx")
    assert report.proof["proved"] is True
    inputs, outputs = expected(models / "cnn.keras")
    for size in (1, 4):
        assert gap(run_graph(tmp_path / "cnn.onnx", inputs[:size]), outputs[:size]) < 1e-4


def test_a_graph_of_a_keras_model_gives_the_bundle_back(models: Path, tmp_path: Path) -> None:
    made = persistlib.convert(models / "cnn.keras", tmp_path / "m.onnx", opset=17)
    assert made.opsets[""] == 17
    again = persistlib.convert(tmp_path / "m.onnx", tmp_path / "back")
    assert again.proof["proved"] is True
    persistlib.convert(models / "cnn.keras", tmp_path / "straight")
    one, two = (persistlib.inspect(tmp_path / name).manifest for name in ("back", "straight"))
    assert one.bundle_id == two.bundle_id
    assert one.requires == two.requires
    assert made.source_identity in {origin.id for origin in one.lineage}
    inputs, outputs = expected(models / "cnn.keras")
    model = persistlib.load(tmp_path / "back")
    assert isinstance(model, torch.nn.Module)
    with torch.no_grad():
        assert gap(model.eval()(torch.from_numpy(inputs)).numpy(), outputs) < 1e-6


def test_what_is_asked_of_a_graph_means_nothing_for_a_bundle(models: Path, tmp_path: Path) -> None:
    fault = refused(
        Code.USAGE, lambda: persistlib.convert(models / "cnn.keras", tmp_path / "b", opset=17)
    )
    assert "opset" in fault.location


@pytest.mark.parametrize("name", ["cnn", "rows"])
def test_the_weights_of_a_legacy_file_are_those_of_the_new_one(
    models: Path, tmp_path: Path, name: str
) -> None:
    for ending in ("keras", "h5"):
        persistlib.convert(models / f"{name}.{ending}", tmp_path / ending, to="bundle")
    one, two = (persistlib.inspect(tmp_path / e).manifest.weights for e in ("keras", "h5"))
    assert one.identity == two.identity


def test_resnet50_without_its_top_goes_to_onnx(tmp_path: Path) -> None:
    written(tmp_path, SEED)
    report = persistlib.convert(tmp_path / "my_model.h5", tmp_path / "model.onnx")
    assert report.proof["proved"] is True
    inputs, outputs = expected(tmp_path / "my_model.h5")
    for size in (1, 16):
        assert gap(run_graph(tmp_path / "model.onnx", inputs[:size]), outputs[:size]) < 1e-4


def rewritten(source: Path, destination: Path, change: Any) -> Path:
    """Write a `.keras` file whose configuration was changed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(destination, "w") as new:
        for member in old.namelist():
            data = old.read(member)
            if member == "config.json":
                config = json.loads(data)
                change(config)
                data = json.dumps(config).encode()
            new.writestr(member, data)
    return destination


def as_lambda(config: Any) -> None:
    config["config"]["layers"][3]["class_name"] = "Lambda"


def as_own(config: Any) -> None:
    config["config"]["layers"][3] |= {"module": "os", "class_name": "system"}


@pytest.mark.parametrize(("change", "code"), [(as_lambda, "PL508"), (as_own, "PL303")])
def test_code_and_classes_of_strangers_are_refused(
    models: Path, tmp_path: Path, change: Any, code: str
) -> None:
    file = rewritten(models / "cnn.keras", tmp_path / "bad.keras", change)
    for destination in ("bundle", "model.onnx"):
        with pytest.raises(PersistlibError) as caught:
            persistlib.convert(file, tmp_path / destination)
        assert caught.value.code == code
        assert caught.value.location.startswith("config.config.layers.3")
    assert os.listdir(tmp_path) == ["bad.keras"]


def test_a_lambda_is_refused_whatever_is_trusted() -> None:
    for kind in ("Lambda", "__lambda__"):
        with pytest.raises(FormatError):
            require_harmless([{"class_name": kind, "module": "keras.layers"}], {"Lambda"})


def test_a_class_of_a_trusted_package_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_layers.py").write_text(OWN_LAYERS)
    written(tmp_path, TRUSTED)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ArchitectureError) as caught:
        persistlib.convert(tmp_path / "own.keras", tmp_path / "bundle")
    assert "own_layers" in caught.value.remedy
    assert not (tmp_path / "bundle").exists()
    persistlib.convert(tmp_path / "own.keras", tmp_path / "bundle", trust={"own_layers"})
    inputs, outputs = expected(tmp_path / "own.keras")
    with pytest.raises(ArchitectureError):
        persistlib.load(tmp_path / "bundle")
    model = persistlib.load(tmp_path / "bundle", trust={"own_layers"})
    assert isinstance(model, torch.nn.Module)
    with torch.no_grad():
        assert gap(model.eval()(torch.from_numpy(inputs)).numpy(), outputs) < 1e-6


def test_weights_without_a_configuration_are_no_model(models: Path, tmp_path: Path) -> None:
    file = tmp_path / "only.weights.h5"
    with zipfile.ZipFile(models / "cnn.keras") as archive, archive.open("model.weights.h5") as data:
        file.write_bytes(data.read())
    with pytest.raises(FormatError) as caught:
        persistlib.convert(file, tmp_path / "bundle")
    assert "model.save" in caught.value.remedy


def test_keras_on_another_backend_is_told_how_to_run(models: Path, tmp_path: Path) -> None:
    code = f"""
import os, sys, types
keras = types.ModuleType("keras")
keras.backend = types.SimpleNamespace(backend=lambda: "jax")
sys.modules["keras"] = keras
import persistlib
try:
    persistlib.convert({os.fspath(models / "cnn.keras")!r}, {os.fspath(tmp_path / "b")!r})
except persistlib.errors.UsageError as fault:
    assert "KERAS_BACKEND=torch" in fault.remedy
else:
    sys.exit("no refusal")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "b").exists()
