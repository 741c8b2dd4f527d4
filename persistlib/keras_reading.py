"""What Keras itself makes of a Keras file, in a process of its own.

Law: every weight that comes back stands, bit for bit, in the file as persistlib's own reader reads
it, and the configuration was held to be harmless before Keras saw the file.

Keras opens the file in safe mode, in a child process; what leaves it is text and safetensors, which
are read as strictly as those of strangers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from persistlib.canonical import parse
from persistlib.checkpoint import CheckpointReader, Entry, MemoryCheckpoint, tensor_rows
from persistlib.dtypes import DType, by_name
from persistlib.errors import Code, error, printable
from persistlib.formats import FORMATS
from persistlib.keras_models import (
    backend,
    built,
    custom_classes,
    rebuilt_weights,
    require_harmless,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from persistlib.files import StrPath

_CONFIG, _WEIGHTS, _EXAMPLES = "config.json", "weights.safetensors", "examples.safetensors"
_LIMIT = 16 << 20
_BATCH = 2
_SEED = 0
_TOLD = 1e-3  # of an output's size: a smaller change tells nothing
# What a free extent is tried with: an image's sides, then steps of a sequence.
_EXTENTS = (8, 32, 64, 96, 128, 224, 299)
_CHILD = """
import sys
sys.path[:] = {path!r}
from persistlib.keras_reading import main
main()
"""


class KerasContents(NamedTuple):
    """What Keras read.

    Attributes:
        config: the model's configuration, as Keras writes it today.
        custom: classes of trusted packages that the configuration names.
        weights: every weight, by its path with dots for slashes.
        inputs: example inputs, by the names of the model's inputs.
        outputs: what Keras computes from them, by position.
    """

    config: str
    custom: Mapping[str, Any]
    weights: CheckpointReader
    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]


def read(path: StrPath, file: CheckpointReader, trust: Collection[str]) -> KerasContents:
    """Return what Keras reads from the file at `path`.

    Args:
        path: a whole model, `.keras` or `.h5`.
        file: the same file, open in persistlib's own reader, which has audited it.
        trust: packages whose classes may be imported.

    Raises:
        FormatError: the file holds no whole model, names code, or Keras reads other weights.
        ArchitectureError: it names classes that are not trusted.
        MissingExtra: Keras is not installed.
    """
    backend()
    text: str | None = getattr(file, "config", None)
    location = os.fspath(path)
    if text is None:
        raise error(
            Code.FORMAT_UNKNOWN,
            location,
            "weights without a model's configuration",
            "give the file of the whole model (model.save)",
        )
    config = parse(text.encode(), f"{location}: model_config", code=Code.FORMAT_HEADER)
    require_harmless(config, set(custom_classes(config, trust)))
    with tempfile.TemporaryDirectory(prefix="persistlib-") as folder:
        _run(location, folder, text, trust)
        with open(os.path.join(folder, _CONFIG), "rb") as handle:
            written = handle.read(_LIMIT + 1)
        rebuilt = parse(written, f"{location}: config", code=Code.FORMAT_HEADER, limit=_LIMIT)
        custom = custom_classes(rebuilt, trust)
        require_harmless(rebuilt, set(custom))
        weights = _opened(os.path.join(folder, _WEIGHTS))
        examples = _opened(os.path.join(folder, _EXAMPLES))
    _require_same(weights, file, location)
    return KerasContents(
        written.decode(), custom, weights, _group(examples, "input"), _group(examples, "output")
    )


def _opened(path: str) -> CheckpointReader:
    reader: CheckpointReader = FORMATS["safetensors"].module().open_file(path, mapped=False)
    return reader


def _group(examples: CheckpointReader, kind: str) -> dict[str, np.ndarray]:
    prefix = f"{kind}."
    named = {e.name.removeprefix(prefix): e.name for e in examples if e.name.startswith(prefix)}
    order = sorted(named, key=lambda name: int(name.partition(".")[0]))
    return {name.partition(".")[2]: examples.read(named[name]) for name in order}


def _run(path: str, folder: str, config: str, trust: Collection[str]) -> None:
    """Let a child read the file and write what it read into a folder.

    Raises:
        FormatError: it could not.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "HDF5", "KERAS"))}
    environment = kept | {"KERAS_BACKEND": "torch", "HDF5_PLUGIN_PRELOAD": "::"}
    job = {"path": os.path.abspath(path), "folder": folder, "config": config, "trust": [*trust]}
    done = subprocess.run(  # noqa: S603 - our own interpreter and code; the file is data
        [sys.executable, "-I", "-c", _CHILD.format(path=[p for p in sys.path if p])],
        env=environment,
        input=json.dumps(job),
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = lines[-1] if lines else f"it ended with {done.returncode}"
        raise error(
            Code.FORMAT_HEADER,
            path,
            f"Keras cannot open it: {printable(reason)[:300]}",
            "open it with the Keras that wrote it, and save it again",
        )


def _require_same(weights: CheckpointReader, file: CheckpointReader, location: str) -> None:
    """Raise unless every weight that Keras read is one that our own reader reads.

    Raises:
        FormatError: Keras read something else.
    """
    ours = {(row.dtype, row.shape, row.blake3) for row in tensor_rows(file)}
    for row in tensor_rows(weights):
        if (row.dtype, row.shape, row.blake3) not in ours:
            raise error(
                Code.FORMAT_VALUE,
                f"{location}: {row.name}",
                "Keras reads a weight that does not stand in the file like that",
                "convert the weights alone (--layout torch)",
            )


def main() -> None:
    """Read the file that standard input names, and write what was read; the child's whole job."""
    job = json.load(sys.stdin)
    keras = backend()
    path, folder = job["path"], job["folder"]
    config = parse(job["config"].encode(), "config", code=Code.FORMAT_HEADER)
    custom = custom_classes(config, job["trust"])
    with keras.device("cpu"):
        model = keras.saving.load_model(path, custom_objects=custom, compile=False, safe_mode=True)
        inputs, outputs = _examples(model)
    written = model.to_json()
    with open(os.path.join(folder, _CONFIG), "w", encoding="utf-8") as handle:
        handle.write(written)
    weights = rebuilt_weights(model, built(written, custom))
    _write(os.path.join(folder, _WEIGHTS), {name: v.numpy() for name, v in weights.items()})
    named = {f"input.{index}.{name}": v for index, (name, v) in enumerate(inputs.items())}
    named |= {f"output.{index}.{name}": v for index, (name, v) in enumerate(outputs.items())}
    _write(os.path.join(folder, _EXAMPLES), named)


def _write(path: str, arrays: Mapping[str, np.ndarray]) -> None:
    entries: list[Entry] = []
    buffers: dict[str, memoryview] = {}
    for name, array in arrays.items():
        dtype = by_name("numpy", array.dtype.name)
        assert dtype is not None
        entries.append(Entry(name, dtype, array.shape))
        buffers[name] = dtype.pack(array)
    FORMATS["safetensors"].module().write(MemoryCheckpoint(tuple(entries), buffers), path)


def _examples(model: Any) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return inputs that the model takes, and what it gives for them.

    Of several kinds the first is taken that changes the most outputs from row to row: a softmax
    that noise has filled proves nothing.
    """
    fault: Exception | None = None
    for extent in _EXTENTS:
        try:
            tried = [_tried(model, extent, drawing) for drawing in _DRAWINGS]
        except Exception as raised:  # noqa: BLE001 - a model raises anything on extents it cannot take
            fault = raised
            continue
        return max(tried, key=lambda pair: _telling(pair[1]))
    raise RuntimeError(f"no input was found that the model takes: {fault}")


def _tried(
    model: Any, extent: int, drawing: Callable[..., np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    from persistlib.examples import named_outputs

    inputs = _drawn(model, extent, drawing)
    result = model([*inputs.values()] if len(inputs) > 1 else next(iter(inputs.values())))
    return inputs, {name: t.detach().cpu().numpy() for name, t in named_outputs(result).items()}


def _telling(outputs: Mapping[str, np.ndarray]) -> float:
    """Return the least share of an output's elements that differ from row to row."""
    shares = [
        float(np.mean(np.abs(np.diff(o.astype(np.float64), axis=0)) > _TOLD * np.abs(o).max()))
        for o in outputs.values()
        if o.size and o.ndim and len(o) > 1 and np.isfinite(o).all()
    ]
    return min(shares, default=0.0)


def _drawn(model: Any, extent: int, drawing: Callable[..., np.ndarray]) -> dict[str, np.ndarray]:
    """Return inputs from a seed; whole numbers are below the smallest vocabulary of the model."""
    generator = np.random.default_rng(_SEED)
    sizes = [layer.input_dim for layer in model._flatten_layers() if hasattr(layer, "input_dim")]  # noqa: SLF001
    drawn: dict[str, np.ndarray] = {}
    for tensor in model.inputs:
        shape = [_BATCH, *(extent if size is None else size for size in tensor.shape[1:])]
        dtype = DType[by_name("numpy", str(tensor.dtype)).name].numpy  # type: ignore[union-attr]
        if np.issubdtype(dtype, np.integer):
            drawn[tensor.name] = generator.integers(0, min(sizes, default=2), shape).astype(dtype)
        else:
            drawn[tensor.name] = drawing(generator, shape).astype(dtype)
    return drawn


def _picture(generator: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
    """Return smooth intensities from 0 to 1, the same in every channel, as pictures have them."""
    if len(shape) != _PICTURE:
        return generator.uniform(0, 1, shape)
    rows, height, width, channels = shape
    coarse = generator.uniform(0, 1, (rows, _GRAIN, _GRAIN, 1))
    y, x = (np.arange(extent) * _GRAIN // extent for extent in (height, width))
    return np.broadcast_to(coarse[:, y][:, :, x], (rows, height, width, channels))


_PICTURE = 4  # axes: rows, height, width, channels
_GRAIN = 8  # patches along a side
# Standardised values, intensities, and bytes of pictures; noise and patches.
_DRAWINGS: tuple[Callable[..., np.ndarray], ...] = (
    lambda generator, shape: generator.standard_normal(shape),
    lambda generator, shape: generator.uniform(0, 1, shape),
    lambda generator, shape: generator.uniform(0, 255, shape),
    _picture,
    lambda generator, shape: 255 * _picture(generator, shape),
)
