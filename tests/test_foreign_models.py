"""Seven torchvision models, as both of torch's exporters write them, come back into torch.

Each file goes through the command line twice: into the architecture that it is named, and, without
one, into a module that is the graph itself and learns.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner

import persistlib
from foreign_exports import DYNAMO, FOLDED, MODELS
from persistlib.cli.main import cli
from persistlib.graph_modules.proving import in_doubles
from persistlib.graph_modules.registry import OPERATORS
from persistlib.runtime.walking import nodes_within
from test_alignment import written
from test_graph_modules import FLAT, LARGE, smallest

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import nn

SEVEN = (
    *("resnet18", "resnet50", "mobilenet_v2", "densenet121", "vgg16", "squeezenet1_0"),
    "vit_b_16",
)
LIMIT = 1e-4
ENTRIES = 5  # parameters whose derivatives are compared, the first and the last among them
MOVED = 1e-7  # part of the sum by which a step moves it: far above rounding, and far from a kink

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=[f"{m}.{e}" for m in SEVEN for e in (FOLDED, DYNAMO)])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Yield the name of a model and its file, which is deleted when the next one is made."""
    folder = tmp_path_factory.mktemp("seven")
    pair: str = request.param
    written(folder, pair)
    yield pair.partition(".")[0], folder / f"{pair}.onnx"
    for path in folder.iterdir():
        path.unlink()


def converted(*words: object) -> dict[str, Any]:
    done = CliRunner().invoke(cli, ["convert", *map(str, words), "--json"])
    assert done.exit_code == 0, done.output
    data: dict[str, Any] = json.loads(done.stdout)["data"]
    return data


def require_alike(module: nn.Module, path: Path) -> None:
    """Compare with ONNX Runtime on the file, for inputs and a batch that no proof has seen."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    x = np.random.default_rng(99).standard_normal((2, *given.shape[1:])).astype(np.float32)
    expected = np.asarray(session.run(None, {given.name: x})[0])
    with torch.no_grad():
        ours = module(torch.from_numpy(x)).numpy()
    assert np.ptp(expected, axis=0).max() > LIMIT * np.ptp(expected)
    assert np.abs(ours - expected).max() <= LIMIT * np.ptp(expected)


def test_a_file_comes_back_into_the_architecture_that_is_named(
    exported: tuple[str, Path], tmp_path: Path
) -> None:
    model, path = exported
    builder, arguments, _ = MODELS[model]
    assert not arguments
    told = converted(path, tmp_path / "out", "--architecture", builder)
    assert told["proof"]["proved"] is True
    assert max(row["error"] for row in told["proof"]["outputs"].values()) <= LIMIT
    assert any(note.endswith("tensors are the file's own bits") for note in told["notes"])
    module: Any = persistlib.load(tmp_path / "out")
    assert type(module).__module__.startswith("torchvision.models")
    require_alike(module, path)


def test_a_file_becomes_a_module_that_learns(exported: tuple[str, Path], tmp_path: Path) -> None:
    model, path = exported
    told = converted(path, tmp_path / "out")
    assert told["proof"]["proved"] is True
    module: Any = persistlib.load(tmp_path / "out")
    require_alike(module, path)
    require_gradients(in_doubles(module), MODELS[model][2][1:])


def require_gradients(module: nn.Module, shape: tuple[int, ...]) -> None:
    """Compare derivatives by autograd with differences, where each parameter moves the sum most."""
    drawn = np.random.default_rng(7)
    x = torch.from_numpy(drawn.standard_normal((1, *shape)))
    weights: NDArray[np.float64] | None = None

    def total() -> torch.Tensor:
        nonlocal weights
        scores = module(x)
        weights = drawn.standard_normal(scores.shape) if weights is None else weights
        result: torch.Tensor = (scores * torch.from_numpy(weights)).sum()
        return result

    before = total()
    before.backward()  # type: ignore[no-untyped-call] # torch says no types of it
    trained = [p for p in module.parameters() if p.requires_grad]
    places = np.linspace(0, len(trained) - 1, ENTRIES).round().astype(int)
    for parameter in (trained[place] for place in places):
        gradient = parameter.grad
        assert gradient is not None
        at = int(gradient.abs().argmax())
        expected = float(gradient.view(-1)[at])
        assert expected
        step = MOVED * abs(float(before.detach()) / expected)
        flat = parameter.detach().view(-1)
        sums = []
        for side in (step, -step):
            flat[at] += side
            with torch.no_grad():
                sums.append(float(total()))
            flat[at] -= side
        found = (sums[0] - sums[1]) / (2 * step)
        assert abs(found - expected) <= 1e-3 * abs(expected), (found, expected)


def test_every_operator_of_the_models_is_computed_and_its_gradient_checked(
    exported: tuple[str, Path],
) -> None:
    _, path = exported
    proto = onnx.load(path, load_external_data=False)
    bodies = (proto.graph.node, *(function.node for function in proto.functions))
    found = {node.op_type for node in nodes_within(*bodies)}
    assert {("", operator) for operator in found} <= OPERATORS.keys()
    assert found <= {*smallest(), *LARGE, *FLAT}
