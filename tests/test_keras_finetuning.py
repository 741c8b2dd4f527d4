"""A Keras model on its torch backend is fine-tuned, saved and loaded like any other module."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

import persistlib
from persistlib.keras_models import as_module, backend

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(find_spec("keras") is None, reason="keras is not installed")

FRESH = """
import sys
import numpy as np
import torch
import persistlib
model = persistlib.load(sys.argv[1])
state = {name: item.numpy() for name, item in model.state_dict().items()}
outputs = model(torch.from_numpy(np.load(sys.argv[2]))).detach().numpy()
np.savez(sys.argv[3], **{"outputs of it": outputs}, **state)
"""


def keras_model(*, trainable: bool = True) -> Any:
    keras = backend()
    layers = keras.layers
    keras.utils.set_random_seed(3)
    taken = keras.Input((8, 8, 3), name="picture")
    x = layers.Conv2D(4, 3, padding="same", name="stem")(taken)
    x = layers.BatchNormalization(name="norm", momentum=0.5, trainable=trainable)(x)
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(x))
    return keras.Model(taken, layers.Dense(3, name="head")(x))


def samples(count: int = 24) -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(count) % 3
    drawn = np.random.default_rng(0).normal(size=(count, 8, 8, 3))
    return (drawn + labels[:, None, None, None]).astype(np.float32), labels


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: item.clone() for name, item in model.state_dict().items()}


def changed(before: dict[str, torch.Tensor], model: nn.Module) -> set[str]:
    return {
        name for name, item in model.state_dict().items() if not torch.equal(item, before[name])
    }


HOW: dict[str, Any] = {"epochs": 2, "lr": 0.05, "batch_size": 8}


def test_a_live_model_is_trained_saved_and_loaded_in_a_fresh_process_to_the_bit(
    tmp_path: Path,
) -> None:
    model = keras_model()
    images, labels = samples()
    before = state(as_module(model))
    result = persistlib.finetune(
        model, (images, labels), (images, labels), **HOW, out=tmp_path / "bundle"
    )
    assert changed(before, result.model) == set(before)
    np.save(tmp_path / "images.npy", images)
    words = [str(tmp_path / name) for name in ("bundle", "images.npy", "found.npz")]
    subprocess.run([sys.executable, "-c", FRESH, *words], check=True)
    found = dict(np.load(tmp_path / "found.npz"))
    outputs = result.model(torch.from_numpy(images)).detach().numpy()
    assert found.pop("outputs of it").tobytes() == outputs.tobytes()
    assert outputs.std() > 0.01
    assert found.keys() == before.keys()
    for name, item in result.model.state_dict().items():
        assert found[name].tobytes() == item.numpy().tobytes()
    live = model(images, training=False).detach().numpy()
    np.testing.assert_array_equal(live, outputs)
    assert persistlib.verify(tmp_path / "bundle", behaviour=True).ok


def test_what_is_loaded_goes_on_training(tmp_path: Path) -> None:
    persistlib.save(keras_model(), tmp_path / "first", example_inputs=torch.ones(2, 8, 8, 3))
    model = persistlib.load(tmp_path / "first")
    before = state(model)
    persistlib.finetune(model, samples(), samples(), **HOW, keep="last", out=tmp_path / "second")
    again = persistlib.load(tmp_path / "second")
    assert changed(before, again) == set(before)
    assert not changed(state(model), again)
    (ancestor,) = persistlib.inspect(tmp_path / "second").manifest.lineage
    assert ancestor.id == persistlib.inspect(tmp_path / "first").manifest.bundle_id


def test_frozen_means_frozen_batch_statistics_too() -> None:
    model = as_module(keras_model())
    before = state(model)
    patterns = ["*", "!weights.head.*"]
    persistlib.finetune(model, samples(), samples(), **HOW, freeze=patterns, keep="last")
    assert changed(before, model) == {"weights.head.kernel", "weights.head.bias"}


def test_a_frozen_norm_computes_from_its_statistics_while_the_rest_trains() -> None:
    images = torch.from_numpy(samples()[0])
    model = as_module(keras_model())
    judged = model.eval()(images)
    moving = model.train()(images)
    assert (moving - judged).abs().max() > 0.1 * judged.std()
    persistlib.freeze(model, "weights.norm.*")
    judged = model.eval()(images)
    before = state(model)
    assert torch.equal(model.train()(images), judged)
    assert not changed(before, model)
    persistlib.unfreeze(model, "weights.norm.*")
    model.train()(images)
    assert changed(before, model) == {
        f"weights.norm.moving_{word}" for word in ("mean", "variance")
    }


def test_a_frozen_layer_keeps_whatever_else_it_counts() -> None:
    keras = backend()
    keras.utils.set_random_seed(3)
    taken = keras.Input((4,))
    normed = keras.layers.SpectralNormalization(keras.layers.Dense(3, name="inner"), name="normed")
    model = as_module(keras.Model(taken, keras.layers.Dense(2, name="head")(normed(taken))))
    before, inputs = state(model), torch.ones(2, 4)
    model.train()(inputs)
    counted = changed(before, model)
    assert counted
    persistlib.freeze(model, ["*", "!weights.head.*"])
    before = state(model)
    model.train()(inputs)
    assert not changed(before, model)


def test_what_keras_was_told_not_to_train_stays() -> None:
    model = as_module(keras_model(trainable=False))
    frozen = {name for name, item in model.named_parameters() if not item.requires_grad}
    assert frozen == {"weights.norm.gamma", "weights.norm.beta"}
    before = state(model)
    persistlib.finetune(model, samples(), samples(), **HOW, keep="last")
    assert not {name for name in changed(before, model) if ".norm." in name}


def test_other_modules_are_taken_as_they_are() -> None:
    backend()
    module = nn.Linear(2, 3)
    assert as_module(module) is module
