"""Networks that others published as ONNX files: as modules they compute what the runtime does.

The files come in packages; a package that is not installed is skipped (`make third-party` installs
them all).
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import torch

import persistlib
from persistlib.behaviour import behaviour_findings
from persistlib.bundle import open_bundle
from persistlib.graph_modules.bundle import convert_foreign

if TYPE_CHECKING:
    from torch import nn


class Published(NamedTuple):
    """A file that a package carries, the smallest of its kind first."""

    package: str
    version: str
    path: str


FILES = (
    Published("openwakeword", "0.4.0", "openwakeword/resources/models/alexa_v0.1.onnx"),
    Published("openwakeword", "0.4.0", "openwakeword/resources/models/embedding_model.onnx"),
    Published("openwakeword", "0.4.0", "openwakeword/resources/models/hey_jarvis_v0.1.onnx"),
    Published("openwakeword", "0.4.0", "openwakeword/resources/models/melspectrogram.onnx"),
    Published("openwakeword", "0.4.0", "openwakeword/resources/models/silero_vad.onnx"),
    Published("silero-vad", "6.2.3", "silero_vad/data/silero_vad.onnx"),
    Published("silero-vad", "6.2.3", "silero_vad/data/silero_vad_16k_op15.onnx"),
    Published("silero-vad", "6.2.3", "silero_vad/data/silero_vad_16k_sequence.onnx"),
    Published("faster-whisper", "1.2.1", "faster_whisper/assets/silero_vad_v6.onnx"),
    Published("basic-pitch", "0.4.0", "basic_pitch/saved_models/icassp_2022/nmp.onnx"),
    Published("magika", "1.0.3", "magika/models/standard_v3_3/model.onnx"),
    Published("nudenet", "3.4.2", "nudenet/320n.onnx"),
    Published("atspm-detector", "1.1.0", "atspm_detector/weights/funcnet/x100_w32full_pair.onnx"),
    Published("caustic-nmr", "0.4.1", "caustic/data/best_v2_carbons.onnx"),
    Published("captcha-whisperer", "0.1.0", "captcha_whisperer/models/captcha_crnn.onnx"),
    Published(
        "arabic-name-romanizer", "0.2.0", "arabic_name_romanizer/resources/persian/encoder.onnx"
    ),
    Published("arabic-name-romanizer", "0.2.0", "arabic_name_romanizer/resources/decoder.onnx"),
    Published(
        "brainmaze-eeg-models", "0.1.0", "brainmaze_eeg_models/seizure/_models/modelA_paper.onnx"
    ),
    Published(
        "rapidocr-onnxruntime",
        "1.3.24",
        "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
    ),
    Published(
        "rapidocr-onnxruntime", "1.3.24", "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx"
    ),
    Published(
        "rapidocr-onnxruntime", "1.3.24", "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx"
    ),
    Published("ddddocr", "1.6.1", "ddddocr/common_det.onnx"),
    Published("ddddocr", "1.6.1", "ddddocr/common.onnx"),
)
TOLERANCE = 1e-4


def file_of(published: Published) -> Path:
    """Return the path of a file, or skip where its package is not here."""
    try:
        here = metadata.distribution(published.package)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{published.package} is not installed")
    if here.version != published.version:
        pytest.skip(f"{published.package} is {here.version}, not {published.version}")
    return Path(str(here.locate_file(published.path)))


def loss_of(module: nn.Module, inputs: list[torch.Tensor]) -> torch.Tensor:
    """Return how far the float outputs are from nothing."""
    made = module(*inputs)
    values = made.values() if isinstance(made, dict) else [made]
    means = [(v * v).mean() for v in values if v.is_floating_point() and v.requires_grad]
    return torch.stack(means).sum()


def learns(module: nn.Module, inputs: list[torch.Tensor]) -> bool:
    """Return whether some size of step along the gradient lowers the loss."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    for rate in (1e-2, 1e-4, 1e-6, 1e-8):
        before = [p.detach().clone() for p in parameters]
        first = loss_of(module, inputs)
        for _ in range(3):
            module.zero_grad()
            torch.autograd.backward(loss_of(module, inputs))
            norm = torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm()
            with torch.no_grad():
                for p in parameters:
                    if p.grad is not None:
                        p.sub_(p.grad / norm, alpha=rate)
        if bool(loss_of(module, inputs) < first):
            return True
        with torch.no_grad():
            for p, old in zip(parameters, before, strict=True):
                p.copy_(old)
    return False


@pytest.mark.slow
@pytest.mark.parametrize("published", FILES, ids=lambda p: Path(p.path).name)
def test_published_networks_compute_the_same_as_modules_and_learn(
    published: Published, tmp_path: Path
) -> None:
    source = file_of(published)
    report = convert_foreign(source, tmp_path / "out", trust=(), overwrite=False)
    assert report.proof["proved"]
    rows: Any = report.proof["outputs"]
    assert all(row["error"] <= TOLERANCE for row in rows.values() if row["dtype"] == "F32")
    module: Any = persistlib.load(tmp_path / "out")
    with open_bundle(tmp_path / "out") as bundle:
        assert not behaviour_findings(bundle, trust=())
        examples = bundle.manifest.examples
        assert examples is not None
        stored = bundle.reader(examples.files[0])
        names = [spec.name for spec in bundle.manifest.interface.inputs]
        inputs = [torch.from_numpy(np.array(stored.read(f"input.{name}"))) for name in names]
    assert learns(module.train(), inputs)
