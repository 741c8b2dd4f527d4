"""Keras' files as they are: weights by path, what is no weight told, what is bent refused."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest

import persistlib
from keras_assembly import archive, drawn, layer, legacy, model, stored
from persistlib import sources
from persistlib.converters.keras_archive import Part
from persistlib.converters.keras_config import parse_config, snake_case
from persistlib.converters.keras_details import Details, parse_details, render_details
from persistlib.converters.keras_flatten import flattened
from persistlib.converters.listing import Source
from persistlib.errors import PersistlibError

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).parent
DENSE = {"d/kernel:0": drawn(2, 3), "d/bias:0": drawn(3)}
CONFIG = model(layer("Dense", "d"))


def names_of(path: Path) -> list[str]:
    with sources.open_file(path) as reader:
        for entry in reader:
            assert reader.read(entry.name).shape == entry.shape
        return list(reader.tensors)


def refused(path: Path, layout: str | None = None) -> str:
    with pytest.raises(PersistlibError) as caught:
        sources.open_file(path, layout=layout).close()
    return f"{caught.value.code} {caught.value.location}: {caught.value.reason}"


def test_weights_alone_are_read_by_name(tmp_path: Path) -> None:
    path = legacy(tmp_path / "w.h5", {"d": DENSE, "none": {}}, version="2.1.5")
    with sources.open_file(path) as reader:
        assert (reader.format, reader.losses, dict(reader.metadata)) == ("keras", (), {})
        assert reader.container == "legacy HDF5 of Keras 2.1.5 on tensorflow, weights only"
        assert list(reader.tensors) == ["d.kernel", "d.bias"]
        assert np.array_equal(reader.read("d.kernel"), DENSE["d/kernel:0"])
        assert reader.notes == ()


def test_a_whole_model_tells_what_is_no_weight(tmp_path: Path) -> None:
    path = legacy(tmp_path / "m.h5", {"d": DENSE}, config=CONFIG)
    with h5py.File(path, "a") as file:
        file.attrs["training_config"] = b'{"loss": "mse"}'
        momentum = file.create_group("optimizer_weights")
        momentum.attrs["weight_names"] = [b"training/SGD/iter:0"]
        momentum["training/SGD/iter:0"] = np.int64(3)
        file["model_weights/d/left_over"] = drawn(2)
        file["model_weights/d"].attrs["mine"] = b"text"
    with sources.open_file(path) as reader:
        assert reader.container == "legacy HDF5 of Keras 2.4.0 on tensorflow, whole model"
        assert set(reader.losses) == {
            "graph the network itself (model_config)",
            "metadata training_config",
            "metadata model_weights/d@mine",
            "value model_weights/d/left_over, which is no weight",
            "value optimizer_weights/training/SGD/iter:0, which is no weight",
        }
        assert list(reader.tensors) == ["d.kernel", "d.bias"]
        assert json.loads(getattr(reader, "config", "")) == CONFIG


@pytest.mark.parametrize("pieces", [1, 3])
def test_lists_in_pieces_are_joined_in_order(tmp_path: Path, pieces: int) -> None:
    layers = {f"l{n}": {f"l{n}/kernel:0": drawn(n + 1, 2)} for n in range(12)}
    path = legacy(tmp_path / "w.h5", layers, pieces=pieces)
    assert names_of(path) == [f"l{n}.kernel" for n in range(12)]


def test_names_are_the_layer_and_the_weight_s_path(tmp_path: Path) -> None:
    weights = {
        "conv": {"conv_3/kernel:0": drawn(2)},
        "model_1": {"block1_conv/kernel:0": drawn(3)},
        "old": {"old_W": drawn(4)},
        "lstm": {"lstm/lstm_cell/kernel:0": drawn(5)},
    }
    assert names_of(legacy(tmp_path / "w.h5", weights)) == [
        "conv.conv_3.kernel",
        "model_1.block1_conv.kernel",
        "old.old_W",
        "lstm.lstm_cell.kernel",
    ]


def test_the_name_of_a_sequential_before_those_of_its_layers_is_left_out(tmp_path: Path) -> None:
    weights = {
        "conv": {"net/conv/kernel": drawn(2), "net/conv/bias": drawn(2)},
        "inner": {"inner/conv/kernel": drawn(3)},
        "part": {"a/part/kernel": drawn(4), "a/kernel": drawn(4)},
        "net": {"net/net/kernel": drawn(5)},
    }
    assert names_of(legacy(tmp_path / "w.h5", weights)) == [
        "conv.kernel",
        "conv.bias",
        "inner.conv.kernel",
        "part.a.part.kernel",
        "part.a.kernel",
        "net.kernel",
    ]


def test_weights_of_the_model_itself_are_weights(tmp_path: Path) -> None:
    path = legacy(tmp_path / "w.h5", {"d": DENSE})
    with h5py.File(path, "a") as file:
        top = file.create_group("top_level_model_weights")
        top.attrs["weight_names"] = [b"scale:0"]
        top["scale:0"] = drawn(4)
    assert names_of(path) == ["d.kernel", "d.bias", "scale"]


def test_a_random_generator_s_state_is_no_weight(tmp_path: Path) -> None:
    state = np.array([1, 2], np.uint32)
    path = legacy(
        tmp_path / "w.h5", {"d": DENSE, "drop": {"drop/seed_generator/seed_generator_state": state}}
    )
    with sources.open_file(path) as reader:
        assert list(reader.tensors) == ["d.kernel", "d.bias"]
        (loss,) = reader.losses
        assert loss.startswith("value drop/drop/seed_generator/seed_generator_state")
    kept = {"layers/dense/vars/0": drawn(2, 3), "layers/dropout/seed_generator/vars/0": state}
    path = stored(tmp_path / "s.weights.h5", kept, {"layers/dropout/seed_generator": "seed"})
    with sources.open_file(path) as reader:
        assert list(reader.tensors) == ["layers.dense.vars.0"]
        (loss,) = reader.losses
        assert loss.startswith("value layers/dropout/seed_generator/vars/0")


def test_variables_stand_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    kept = {f"layers/dense/vars/{n}": drawn(n + 1) for n in range(11)}
    kept["optimizer/vars/0"] = drawn(3)
    path = stored(tmp_path / "s.weights.h5", kept, {"layers/dense": "d"})
    with sources.open_file(path) as reader:
        assert list(reader.tensors) == [f"layers.dense.vars.{n}" for n in range(11)]
        assert reader.losses == ("value optimizer/vars/0, which is no weight",)
        assert reader.container == "Keras weights, layers by class (.weights.h5)"
        assert reader.format == "keras"


def test_an_archive_tells_what_it_is_and_what_is_no_weight(tmp_path: Path) -> None:
    inner = stored(tmp_path / "in.h5", {"layers/dense/vars/0": drawn(2, 3)}, {})
    path = archive(tmp_path / "m.keras", inner, CONFIG, more={"assets/words.txt": b"a b"})
    with sources.open_file(path) as reader:
        assert (reader.format, reader.container) == ("keras", "archive of Keras 3.0.0")
        assert reader.losses == (
            "graph the network itself (config.json)",
            "value assets/words.txt, which is no weight",
        )
        assert list(reader.tensors) == ["layers.dense.vars.0"]
        assert json.loads(getattr(reader, "config", "")) == CONFIG


def test_plain_hdf5_is_not_taken_for_keras_own(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "plain.h5", "w") as file:
        file["a/kernel"] = drawn(2)
    with sources.open_file(tmp_path / "plain.h5") as reader:
        assert reader.format == "hdf5"
    source = legacy(tmp_path / "w.h5", {"d": DENSE})
    persistlib.convert(source, tmp_path / "own.h5")
    with sources.open_file(tmp_path / "own.h5") as reader:
        assert reader.format == "hdf5"
        assert list(reader.tensors) == ["d.kernel", "d.bias"]


@pytest.mark.parametrize("missing", ["layer", "weight"])
def test_what_is_listed_must_be_there(tmp_path: Path, missing: str) -> None:
    path = legacy(tmp_path / "w.h5", {"d": DENSE})
    with h5py.File(path, "a") as file:
        del file["d" if missing == "layer" else "d/d/bias:0"]
    assert f"a {missing} that is listed is not there" in refused(path)


def test_a_weight_listed_twice_is_refused(tmp_path: Path) -> None:
    path = legacy(tmp_path / "w.h5", {"d": DENSE})
    with h5py.File(path, "a") as file:
        file["d"].attrs["weight_names"] = [b"d/kernel:0", b"d/kernel:0"]
    assert "two weights would be called 'd.kernel'" in refused(path)


def test_names_that_leave_their_group_are_not_followed(tmp_path: Path) -> None:
    path = legacy(tmp_path / "w.h5", {"d": DENSE, "e": {"e/kernel:0": drawn(9)}})
    with h5py.File(path, "a") as file:
        file["d"].attrs["weight_names"] = [b"../e/e/kernel:0"]
    assert "a weight that is listed is not there" in refused(path)


@pytest.mark.parametrize(
    "link",
    [h5py.SoftLink("/e/e/kernel:0"), h5py.ExternalLink("other.h5", "/w")],
    ids=["soft", "external"],
)
def test_links_are_not_followed(tmp_path: Path, link: Any) -> None:
    path = legacy(tmp_path / "w.h5", {"d": DENSE, "e": {"e/kernel:0": drawn(9)}})
    with h5py.File(path, "a") as file:
        file["d/d/kernel:0x"] = link
        file["d"].attrs["weight_names"] = [b"d/kernel:0x"]
    assert refused(path).startswith("PL508")


# Configurations

DEEP = '{"class_name": "Sequential", "config": ' + "[" * 100_000 + "]" * 100_000 + "}"
TWICE = '{"class_name": "Sequential", "class_name": "Functional", "config": {"layers": []}}'
LONG = '{"class_name": "Sequential", "config": {"layers": [], "n": ' + "9" * 5000 + "}}"


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (DEEP, "nested deeper"),
        (TWICE, "stands twice"),
        (LONG, "an integer of 5000 digits"),
        ("[]", "not a JSON object"),
        ("{", "no JSON"),
        ('{"class_name": "Mine", "config": {}}', "does not say which layers"),
        ('{"class_name": "Sequential", "config": 3}', "a layer without config"),
        ('{"class_name": "Sequential", "config": [3]}', "a layer without class_name"),
        ('{"class_name": 1, "config": {}}', "a layer without class_name"),
        (json.dumps(model({**layer("Dense", "d"), "name": 3})), "a layer's name is no text"),
    ],
)
def test_a_bent_configuration_is_refused_where_it_is_used(
    tmp_path: Path, config: str, reason: str
) -> None:
    inner = stored(tmp_path / "in.h5", {"layers/dense/vars/0": drawn(2, 3)}, {})
    path = archive(tmp_path / "m.keras", inner, config)
    said = refused(path, "torch")
    assert said.startswith("PL502")
    assert reason in said
    assert names_of(path) == ["layers.dense.vars.0"]


def test_a_huge_configuration_is_refused(tmp_path: Path) -> None:
    inner = stored(tmp_path / "in.h5", {"layers/dense/vars/0": drawn(2, 3)}, {})
    path = archive(tmp_path / "m.keras", inner, " " * (100 << 20))
    assert refused(path).startswith("PL507")


def test_wide_and_long_models_are_read_in_time() -> None:
    """What looks through layers looks only so far; each is looked at a few times."""
    layers = [layer("Dropout", f"d{n}", f"d{n - 1}") for n in range(1, 20_000)]
    text = json.dumps(model(*layers, layer("Flatten", "flat", "d9"))).encode()
    read = parse_config(text, "config")
    assert len(list(read.walk())) == 20_001
    assert flattened(read) == ()


def test_classes_are_spelled_as_keras_spells_them() -> None:
    spelled = ["Conv2DTranspose", "PReLU", "LSTMCell", "ConvLSTM2D", "BatchNormalization", "GRU"]
    assert [snake_case(name) for name in spelled] == [
        "conv2d_transpose",
        "p_re_lu",
        "lstm_cell",
        "conv_lstm2d",
        "batch_normalization",
        "gru",
    ]


# Archives


def rewritten(path: Path, change: Callable[[bytearray], None]) -> Path:
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)
    return path


def good(folder: Path) -> Path:
    inner = stored(folder / "in.h5", {"layers/dense/vars/0": drawn(2, 3)}, {})
    return archive(folder / "m.keras", inner, CONFIG)


def flipped(data: bytearray) -> None:
    at = data.index(drawn(2, 3).tobytes())
    data[at] ^= 1


def test_a_flipped_bit_in_the_weights_is_found(tmp_path: Path) -> None:
    assert "CRC-32" in refused(rewritten(good(tmp_path), flipped))


def _slip(folder: Path) -> Path:
    inner = stored(folder / "in.h5", {"layers/dense/vars/0": drawn(2, 3)}, {})
    return archive(folder / "m.keras", inner, CONFIG, more={"../../evil": b"x"})


def _packed(folder: Path) -> Path:
    inner = stored(folder / "in.h5", {"layers/dense/vars/0": np.zeros((256, 256))}, {})
    return archive(folder / "m.keras", inner, CONFIG, method=zipfile.ZIP_DEFLATED)


def _twins(folder: Path) -> Path:
    inner = stored(folder / "in.h5", {"layers/dense/vars/0": drawn(2, 3)}, {})
    return archive(folder / "m.keras", inner, CONFIG, more={"Config.json": b"{}"})


def _prefixed(folder: Path) -> Path:
    return rewritten(good(folder), lambda data: data.__setitem__(slice(0, 0), b"PK\3\4junk"))


def _trailed(folder: Path) -> Path:
    return rewritten(good(folder), lambda data: data.extend(b"junk"))


def _local(folder: Path) -> Path:
    def change(data: bytearray) -> None:
        at = data.index(b"model.weights.h5")
        data[at : at + 5] = b"mOdel"

    return rewritten(good(folder), change)


def _overlapping(folder: Path) -> Path:
    """Let the directory say that one record begins where another does."""

    def change(data: bytearray) -> None:
        at = data.rindex(b"PK\1\2")
        struct.pack_into("<I", data, at + 42, 0)

    return rewritten(good(folder), change)


@pytest.mark.parametrize(
    "attack", [_slip, _packed, _twins, _prefixed, _trailed, _local, _overlapping]
)
def test_an_archive_that_two_readers_could_read_differently_is_refused(
    tmp_path: Path, attack: Callable[[Path], Path]
) -> None:
    path = attack(tmp_path)
    with pytest.raises(PersistlibError) as caught:
        persistlib.convert(path, tmp_path / "out.safetensors", allow_loss=("all",))
    assert caught.value.code in {"PL501", "PL502", "PL503"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.h5", "m.keras"]


def test_weights_that_are_not_in_one_hdf5_file_are_refused(tmp_path: Path) -> None:
    from persistlib.converters import keras_file

    with zipfile.ZipFile(tmp_path / "m.keras", "w") as file:
        file.writestr("metadata.json", "{}")
        file.writestr("config.json", "{}")
        file.writestr("model.weights.json", "{}")
    with pytest.raises(PersistlibError) as caught:
        keras_file.open_file(tmp_path / "m.keras")
    assert "without model.weights.h5" in caught.value.reason
    assert "not sharded" in caught.value.remedy


def test_sharded_weights_are_refused_by_name(tmp_path: Path) -> None:
    """As Keras writes them: a list of files for each layer."""
    index = {
        "metadata": {"total_size": 9},
        "weight_map": {"/layers/dense/vars": ["m_0.weights.h5"]},
    }
    (tmp_path / "m.weights.json").write_text(json.dumps(index, indent=4))
    assert "an index of Keras' sharded weights" in refused(tmp_path / "m.weights.json")


def test_the_file_in_an_archive_ends_where_the_archive_says(tmp_path: Path) -> None:
    """What an inner file asks for behind its end is zero, never the next record's bytes."""
    path = tmp_path / "outer"
    path.write_bytes(b"before|inside|after")
    with path.open("rb") as file:
        part = Part(Source(file.fileno(), path.stat().st_size), 7, 6)
        assert part.read(10) == b"inside" + bytes(4)
        assert part.seek(-2, 2) == 4
        assert part.read(3) == b"de\0"
    inner = stored(tmp_path / "in.h5", {"layers/dense/vars/0": drawn(64, 64)}, {})
    inner.write_bytes(inner.read_bytes()[:-64])
    assert refused(archive(tmp_path / "m.keras", inner, CONFIG)).startswith("PL50")


def test_nothing_in_a_file_is_executed_or_opened(tmp_path: Path) -> None:
    """Payloads of CVE-2024-3660, 2025-1550, 2025-8747 and 2025-9906, in every place for one."""
    canary = tmp_path / "canary"
    payloads = [
        layer("Lambda", "a", function=["4wAAAA==", None, None], function_type="lambda"),
        {"module": "os", "class_name": "system", "config": {"command": f"touch {canary}"}},
        {
            "module": "keras.utils",
            "class_name": "get_file",
            "registered_name": None,
            "config": {"fname": str(canary), "origin": "http://127.0.0.1:9/x", "name": "g"},
        },
        {
            "module": "keras.config",
            "class_name": "function",
            "config": "enable_unsafe_deserialization",
            "registered_name": "function",
        },
    ]
    config = model(layer("Dense", "d", activation=payloads[-1]), *payloads[:-1])
    legacy(tmp_path / "m.h5", {"d": DENSE}, config=config)
    kept = {"layers/dense/vars/0": drawn(2, 3), "layers/dense/vars/1": drawn(3)}
    archive(tmp_path / "m.keras", stored(tmp_path / "in.h5", kept, {}), config)
    watched = subprocess.run(
        [sys.executable, "-c", WATCHED, tmp_path], capture_output=True, text=True, check=False
    )
    assert watched.returncode == 0, watched.stderr
    assert json.loads(watched.stdout) == [["d.bias", "d.weight"]] * 2
    assert not canary.exists()


# Events that a reader has no need of, but for the child it starts with its own program.
WATCHED = """
import json, os, sys, tempfile
from persistlib import sources
from persistlib.converters import isolated, keras_walk, hdf5_walk, keras_file, hdf5_file

folder = sys.argv[1]
files = [os.path.join(folder, name) for name in ("m.h5", "m.keras")]
for path in files:  # what is imported at first use, is imported now
    sources.open_file(path, layout="torch").close()
seen = []

def watch(event, arguments):
    bad = {"exec", "compile", "os.system", "marshal.loads", "pickle.find_class", "import"}
    if event.startswith("socket.") or event in bad:
        seen.append([event, str(arguments)[:200]])
    if event == "open" and arguments[0] not in (*files, os.devnull) and type(arguments[0]) is str:
        seen.append([event, str(arguments)[:200]])

sys.addaudithook(watch)
names = []
for path in files:
    with sources.open_file(path, layout="torch") as reader:
        names.append(sorted(reader.tensors))
        for name in reader.tensors:
            reader.read(name)
assert not seen, seen
print(json.dumps(names))
"""


def test_details_survive_the_pipe_and_nonsense_does_not() -> None:
    details = Details("legacy", (("d", "d/kernel:0"),), {("layers", "a"): "x"}, None, "2", "")
    assert parse_details(render_details(details), 1, "f") == details
    for bent in ("{}", "[]", render_details(details).replace('"legacy"', "3")):
        with pytest.raises(PersistlibError):
            parse_details(bent, 1, "f")
    with pytest.raises(PersistlibError):
        parse_details(render_details(details), 2, "f")
