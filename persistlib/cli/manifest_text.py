"""A manifest's sections as labelled lines for people; the JSON form is the manifest itself."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from persistlib.cli.folding import fold
from persistlib.cli.text import clip, listing, number, rounded_up, shape
from persistlib.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from pydantic import JsonValue

    from persistlib.manifest.schema import Data, Edit, Manifest, TensorSpec, Training

Row = tuple[str, str]

_FRAMEWORKS = ("torch", "torchvision", "onnx", "onnxruntime")
_COLUMNS = 60  # of an argument: a graph's module has one that is longer than a screen
_SHORT = len("blake3:") + 16
# What has a label, by task.
PARTS = {"classification": "class", "multilabel": "label", "regression": "output"}
# Of a stored result, the first that it has is shown.
_FIGURES = ("iou", "accuracy", "r2", "rmse")


def fields_of(manifest: Manifest, parameters: int, trainable: int) -> tuple[Row, ...]:
    """Return what a person asks first, from the architecture to the identities."""
    return (
        *_status(manifest),
        *_architecture(manifest),
        *_interface(manifest),
        *_trained(manifest, parameters, trainable),
        *_origin(manifest),
        *_environment(manifest),
        *_files(manifest),
    )


def labelled(manifest: Manifest) -> str:
    """Return how many classes, or other parts of an output, have labels; empty for none."""
    task = manifest.training.strategy.get("task") if manifest.training else None
    part = PARTS.get(task, "class") if isinstance(task, str) else "class"
    return counted(len(labels), part) if (labels := manifest.interface.labels) else ""


def _status(manifest: Manifest) -> Iterator[Row]:
    status = manifest.status
    if status.state != "active":
        facts = (status.state, status.reason, status.date, status.successor)
        yield "status", " · ".join(fact for fact in facts if fact)
    if manifest.upgraded_from:
        yield "written as", f"manifest {manifest.upgraded_from}, upgraded while reading"


def _architecture(manifest: Manifest) -> Iterator[Row]:
    architecture = manifest.architecture
    yield "architecture", _call(architecture.builder, architecture.arguments)
    for edit in architecture.edits:
        yield "", _edit(edit)


def _edit(edit: Edit) -> str:
    if edit.op == "set":
        owner = f"{edit.path}." if edit.path else ""
        value = clip(json.dumps(edit.value, ensure_ascii=False), _COLUMNS)
        return f"set {owner}{edit.attribute} = {value}"
    if edit.builder is None:
        return f"{edit.op} {edit.path}"
    return f"{edit.op} {edit.path} = {_call(edit.builder, edit.arguments)}"


def _call(builder: str, arguments: Mapping[str, JsonValue]) -> str:
    """Return a call in words, the middle of long arguments left out."""
    shown = {name: clip(_value(value), _COLUMNS) for name, value in arguments.items()}
    return f"{builder}({_named(shown, '=')})" if arguments else builder


def _named(values: Mapping[str, JsonValue], between: str = " ") -> str:
    return ", ".join(f"{name}{between}{_value(value)}" for name, value in values.items())


def _value(value: JsonValue) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _interface(manifest: Manifest) -> Iterator[Row]:
    interface = manifest.interface
    yield from _specs("input", interface.inputs)
    if interface.preprocessing:
        yield "preparation", _named(interface.preprocessing)
    yield from _specs("output", interface.outputs)
    if labels := interface.labels:
        yield "labels", f"{number(len(labels))}: {listing(labels)}"


def _specs(label: str, specs: tuple[TensorSpec, ...]) -> Iterator[Row]:
    for index, spec in enumerate(specs):
        yield label if index == 0 else "", f"{spec.name} {shape(spec.dtype, spec.shape)}"


def _trained(manifest: Manifest, parameters: int, trainable: int) -> Iterator[Row]:
    records = manifest.weights.tensors
    if trainable == parameters:
        yield "trained", f"all {number(parameters)} parameters"
    else:
        training = [r.name for r in records if r.role == "parameter" and not r.frozen]
        where = f" ({_folded(_owners(training))})" if training else ""
        yield "trained", f"{number(trainable)} of {number(parameters)} parameters{where}"
    if kept := manifest.state.frozen_modules_in_eval:
        means = [r.name for r in records if r.name.endswith("running_mean")]
        norms = [owner for owner in _owners(means) if _is_within(owner, kept)]
        what = f"BatchNorm statistics of {counted(len(norms), 'layer')}" if norms else "evaluation"
        yield "frozen", f"{what}: {_folded(kept)}"


def _owners(names: Iterable[str]) -> tuple[str, ...]:
    """Return the modules that own tensors, each once."""
    return tuple(dict.fromkeys(name.rpartition(".")[0] for name in names))


def _is_within(path: str, ancestors: tuple[str, ...]) -> bool:
    return any(not a or path == a or path.startswith(f"{a}.") for a in ancestors)


def _folded(paths: tuple[str, ...]) -> str:
    return listing(tuple(folded.pattern or "(root)" for folded in fold(paths)), limit=5)


def _origin(manifest: Manifest) -> Iterator[Row]:
    for index, ancestor in enumerate(manifest.lineage):
        identity = f"{ancestor.id[:_SHORT]}…" if ancestor.id else ""
        facts = (ancestor.source, identity, ancestor.license)
        shown = " · ".join(fact for fact in facts if fact)
        yield "lineage" if index == 0 else "", f"{ancestor.relation} {shown}".strip()
    if manifest.license:
        yield "license", manifest.license
    if manifest.training:
        yield from _training(manifest.training)
    for index, record in enumerate(manifest.evaluations):
        yield "evaluated" if index == 0 else "", _evaluated(record)


def _training(training: Training) -> Iterator[Row]:
    if training.data:
        yield "data", _data(training.data)
    facts = [
        counted(training.epochs, "epoch") if training.epochs is not None else "",
        f"seed {training.seed}" if training.seed is not None else "",
        _optimizer(training.optimizer),
    ]
    if any(facts):
        yield "training", " · ".join(fact for fact in facts if fact)
    if training.metrics:
        metrics = (f"{name} {value:.4g}" for name, value in training.metrics.items())
        yield "metrics", " · ".join(metrics)


def _evaluated(record: Mapping[str, Any]) -> str:
    """Return a stored result in words; it may be another program's, and is held to no form."""
    data = record.get("data")
    data = data if isinstance(data, dict) else {}
    name, images = data.get("name", ""), data.get("images", "")
    results = record.get("results")
    shown = [
        f"{result.get('runtime')} {text}"
        for result in (results if isinstance(results, list) else [])
        if isinstance(result, dict) and (text := _figure(result))
    ]
    probe = record.get("probe")
    if isinstance(probe, dict) and isinstance(probe.get("accuracy"), float):
        shown.append(f"{probe.get('name')} probe accuracy {probe['accuracy']:.4f}")
    counted_images = f"{images} images" if images else ""
    held_out = "held out" if data.get("held_out") is True else ""
    facts = (str(name), held_out, counted_images, *shown)
    return " · ".join(fact for fact in facts if fact) or "a result in another form"


def _figure(result: Mapping[str, Any]) -> str:
    """Return the figure of a stored result that says most; of several heads that of each."""
    heads = result.get("heads")
    if isinstance(heads, dict):
        parts = (f"{name} {_own(one)}" for name, one in heads.items() if isinstance(one, dict))
        return ", ".join(parts)
    return _own(result)


def _own(result: Mapping[str, Any]) -> str:
    known = ((name, result.get(name)) for name in _FIGURES)
    return next((f"{name} {value:.4f}" for name, value in known if isinstance(value, float)), "")


def _optimizer(settings: Mapping[str, JsonValue]) -> str:
    numbers = {name: value for name, value in settings.items() if name != "name"}
    return " ".join(part for part in (str(settings.get("name", "")), _named(numbers)) if part)


def _data(data: Data) -> str:
    sizes = ", ".join(f"{split} {number(count)}" for split, count in data.sizes.items())
    classes = counted(data.classes, "class") if data.classes is not None else ""
    return " · ".join(fact for fact in (data.name, classes, sizes) if fact)


def _environment(manifest: Manifest) -> Iterator[Row]:
    environment = manifest.environment
    known = [n for n in _FRAMEWORKS if n in environment.packages]
    others = [n for n in environment.packages if n not in _FRAMEWORKS]
    shown = tuple(f"{name} {environment.packages[name]}" for name in (*known, *others))
    yield "saved", f"{manifest.created} by {manifest.writer.name} {manifest.writer.version}"
    facts = (f"Python {environment.python}", environment.platform, environment.accelerator or "")
    yield "environment", ", ".join(fact for fact in (*facts, listing(shown, 4)) if fact)
    if manifest.requires:
        yield "requires", _named(manifest.requires, "")


def proof_text(proof: Mapping[str, Any]) -> str:
    """Return how a graph's outputs were compared with the module's, in a few words."""
    if not proof.get("proved"):
        return f"NOT proved: {proof.get('reason') or 'it was not run'}"
    outputs = proof.get("outputs")
    rows = list(outputs.values()) if isinstance(outputs, dict) else []
    given = [row.get("error") for row in rows if isinstance(row, dict)]
    errors = [error for error in given if isinstance(error, (int, float))]
    return f"proved, outputs differ by {rounded_up(max(errors))} at most" if errors else "proved"


def _files(manifest: Manifest) -> Iterator[Row]:
    dtypes = Counter(record.dtype for record in manifest.weights.tensors)
    kinds = ", ".join(f"{name} {number(count)}" for name, count in dtypes.most_common())
    yield "tensors", f"{number(dtypes.total())}: {kinds}"
    for graph in manifest.graphs:
        opsets = ", ".join(f"{name or 'opset'} {v}" for name, v in graph.opsets.items())
        shown = f"{graph.files[0].path}: {opsets}, IR {graph.ir_version}, {graph.precision}"
        shown += f", {proof_text(graph.proof)}" if graph.proof else ""
        is_same = graph.weights_identity == manifest.weights.identity
        yield "graph", shown if is_same else f"{shown}, of other weights"
    if manifest.examples:
        yield "examples", listing(tuple(entry.path for entry in manifest.examples.files))
    if base := manifest.weights.base:
        lent = sum(record.file is None for record in manifest.weights.tensors)
        where = base.hint or "elsewhere"
        yield "stands on", f"{where} for {counted(lent, 'tensor')} · {base.identity[:_SHORT]}…"
    yield "bundle", manifest.bundle_id
    yield "weights", manifest.weights.identity
