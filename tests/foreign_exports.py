"""ONNX files as other people's programs write them; run as a script, in a process of its own.

    python foreign_exports.py FOLDER MODEL EXPORTER ...

The TorchScript-based exporter is deprecated and warns; its process is nobody else's.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from own_networks import trained
from persistlib.architecture.recipe import build

FOLDED, PRESERVED, OLD, DYNAMO = "folded", "preserved", "old", "dynamo"
EXPORTERS = (FOLDED, PRESERVED, OLD, DYNAMO)
_VIT = {"image_size": 32, "patch_size": 16, "num_layers": 2, "num_heads": 2}
_TINY = "torchvision.models"
# Builder, arguments, shape of the input.
MODELS: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "squeezenet": (f"{_TINY}:squeezenet1_1", {"num_classes": 7}, (2, 3, 64, 64)),
    "densenet": (
        f"{_TINY}.densenet:DenseNet",
        {"growth_rate": 4, "block_config": [2, 2], "num_init_features": 8, "num_classes": 5},
        (2, 3, 64, 64),
    ),
    "transformer": (
        f"{_TINY}.vision_transformer:VisionTransformer",
        {**_VIT, "hidden_dim": 16, "mlp_dim": 32, "num_classes": 4},
        (2, 3, 32, 32),
    ),
    "resnet18": (f"{_TINY}:resnet18", {}, (2, 3, 64, 64)),
    "small_resnet": (f"{_TINY}:resnet18", {"num_classes": 10}, (2, 3, 40, 40)),
    "separate": ("own_networks:Separate", {}, (2, 5, 8)),
    "packed": ("own_networks:Packed", {}, (2, 5, 8)),
}
for _name, _size in {
    **dict.fromkeys(("resnet50", "mobilenet_v2", "densenet121", "squeezenet1_0"), 64),
    **dict.fromkeys(("mobilenet_v3_large", "shufflenet_v2_x0_5", "mnasnet0_5"), 64),
    **dict.fromkeys(("efficientnet_b0", "regnet_y_400mf", "convnext_tiny", "swin_t"), 64),
    "googlenet": 96,
    "inception_v3": 299,  # its auxiliary head takes no less
    **dict.fromkeys(("vgg16", "alexnet", "vit_b_16"), 224),
}.items():
    _arguments: dict[str, Any] = (
        {"init_weights": True} if _name in {"googlenet", "inception_v3"} else {}
    )
    MODELS[_name] = (f"{_TINY}:{_name}", _arguments, (2, 3, _size, _size))


def export(folder: Path, model: str, exporter: str) -> None:
    """Write MODEL.EXPORTER.onnx, and the state_dict as MODEL.pt."""
    builder, arguments, shape = MODELS[model]
    torch.manual_seed(0)
    module = build(builder, trust={"own_networks"}, **arguments)
    trained(module, *shape)
    torch.save(module.state_dict(), folder / f"{model}.pt")
    torch.manual_seed(1)
    example, path = torch.randn(shape), str(folder / f"{model}.{exporter}.onnx")
    if exporter == DYNAMO:
        batch = ({0: torch.export.Dim("batch")},)
        torch.onnx.export(module, (example,), path, dynamo=True, dynamic_shapes=batch)
        return
    choices: dict[str, dict[str, Any]] = {
        FOLDED: {},
        OLD: {"opset_version": 14},
        PRESERVED: {
            "training": torch.onnx.TrainingMode.PRESERVE,
            "do_constant_folding": False,
        },
    }
    options = choices[exporter]
    axes = {"input": {0: "n"}, "output": {0: "n"}}
    names: dict[str, Any] = {"input_names": ["input"], "output_names": ["output"]}
    torch.onnx.export(module, (example,), path, dynamo=False, dynamic_axes=axes, **names, **options)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for pair in sys.argv[2:]:
        export(Path(sys.argv[1]), *pair.split("."))
