"""From a bundle to an ONNX file: the graph it holds, or one made and proved now."""

from __future__ import annotations

import itertools
import os
import re
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from persistlib import publish
from persistlib.bundle import reading
from persistlib.checkpoint import identity
from persistlib.conversion import ToldGraph
from persistlib.errors import Code, PersistlibError, error, missing_extra
from persistlib.formats import FORMATS, by_content, by_suffix, ending
from persistlib.graph_wishes import GraphWishes
from persistlib.installed import is_importable
from persistlib.loading import Reading, load_module
from persistlib.model_notes import render
from persistlib.runtime.structure import check_graph
from persistlib.sources import BUNDLE, is_folder

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from typing_extensions import Buffer

    from persistlib.bundle import Bundle
    from persistlib.conversion import ConversionReport
    from persistlib.files import StrPath

_READING = Reading(mapped=True, verify=True)


class Made(NamedTuple):
    """A graph of a bundle's model.

    Attributes:
        files: the model first, then its external data when it has any.
        told: what a report says of it.
    """

    files: Mapping[str, Buffer]
    told: ToldGraph


def convert_graph(
    bundle: Bundle,
    destination: StrPath,
    wishes: GraphWishes,
    *,
    trust: Collection[str],
    overwrite: bool = True,
) -> ConversionReport:
    """Write a bundle's model as an ONNX file, its external data beside it when it has any.

    Args:
        bundle: what is written.
        destination: the file.
        wishes: what is asked of the graph; a graph that the bundle holds will do where nothing is.
        trust: packages that may be imported to rebuild the module.
        overwrite: whether a file that stands there is replaced.

    Raises:
        ExportError: no graph could be made or proved; nothing is written.
        PersistlibError: the bundle differs from its manifest, or writing failed.
    """
    manifest = bundle.manifest
    base = _base(wishes)
    if manifest.graphs and base == GraphWishes():
        graph = manifest.graphs[0]
        stored = {e.path: bundle.whole(e) for e in graph.files}
        made = Made(stored, ToldGraph(graph.proof, graph.ir_version, graph.opsets))
    else:
        made = _export(bundle, base, trust)
    if wishes.derives:
        from persistlib.quantization.bundles import derived_from, told

        derived = derived_from(bundle, made.files, wishes)
        made = Made({file.name: file.data for file in derived.files}, told(derived))
    write_graph(made.files, destination, overwrite=overwrite)
    weights, way = manifest.weights, (bundle.path, destination, "onnx")
    if wishes.derives:
        return replace(_derived(made.told, wishes, way), source_identity=weights.identity)
    return made.told.report(weights.tensors, weights.aliases, weights.identity, way)


def _derived(
    told: ToldGraph, wishes: GraphWishes, way: tuple[StrPath, StrPath, str]
) -> ConversionReport:
    """Return the report on a derived graph that was written: of the tensors that it holds."""
    rounded = "int8" if wishes.quantize else wishes.dtype
    with FORMATS["onnx"].module().open_file(way[1]) as reader:
        report = told.report(reader.entries, reader.aliases, identity(reader), way)
    return replace(report, losses=(f"value weights, which are rounded to {rounded}",))


def _base(wishes: GraphWishes) -> GraphWishes:
    """Return what is asked of the graph that the wished one is derived from, or that is it."""
    if not wishes.derives:
        return wishes
    from persistlib.quantization.kernels import kernels_of

    kernels = kernels_of(wishes)
    newest = None if kernels is None else kernels.opset
    return replace(wishes.base, opset=wishes.opset or newest)


def convert_derived(
    source: StrPath, destination: StrPath, wishes: GraphWishes, *, to: str | None, overwrite: bool
) -> ConversionReport | None:
    """Write a bundle with one more graph, or a graph derived from one in an ONNX file.

    Args:
        source: a bundle, or a file of any format.
        destination: the folder or file to write.
        wishes: `dtype`, or `quantize` and `calibration`.
        to: a format's name, where one was given.
        overwrite: whether what stands there is replaced.

    Returns:
        What was done; None where neither is meant.

    Raises:
        PersistlibError: as `quantization.bundles.add_graph` or `convert_file`.
    """
    is_whole = to == BUNDLE or (to is None and not ending(destination))
    if is_folder(source) and is_whole:
        from persistlib.quantization.bundles import add_graph

        _require_derivable(wishes)
        return reading(
            source, lambda bundle: add_graph(bundle, destination, wishes, overwrite=overwrite)
        )
    if is_folder(source) or is_whole or (to or by_suffix(destination).name) != "onnx":
        return None
    if by_content(source).name != "onnx":
        return None
    _require_derivable(wishes)
    return convert_file(source, destination, wishes, overwrite=overwrite)


def _require_derivable(wishes: GraphWishes) -> None:
    """Raise for what a graph that is there already cannot be given any more.

    Raises:
        UsageError: something of its versions or axes is asked.
    """
    target = ("target",) if wishes.pure else ()
    said = ("dtype", "quantize", "calibration", "pure", *target)
    wishes.require_unsaid("a graph derived from one that is there", but=said)


def convert_file(
    source: StrPath, destination: StrPath, wishes: GraphWishes, *, overwrite: bool
) -> ConversionReport:
    """Write a graph that is derived from one in an ONNX file.

    Args:
        source: the file.
        destination: the file to write.
        wishes: `dtype`, or `quantize` and `calibration`.
        overwrite: whether a file that stands there is replaced.

    Raises:
        PersistlibError: the file cannot be used, or no graph can be derived from it.
    """
    from persistlib.quantization.bundles import derived_from_file, told

    derived = derived_from_file(source, wishes)
    files = {file.name: file.data for file in derived.files}
    write_graph(files, destination, overwrite=overwrite)
    return _derived(told(derived), wishes, (source, destination, "onnx"))


def write_graph(files: Mapping[str, Buffer], destination: StrPath, *, overwrite: bool) -> None:
    """Write a model, the first of the files, and its external data beside it, named after it.

    The model takes its name last. No file that stands is written over but the model itself: new
    data has a name of its own until the new model is there, so that an old model keeps its data
    whatever happens; data that the old model had is deleted afterwards.

    Raises:
        TargetError: writing failed, or something stands there; what stood there stands unchanged,
            and nothing new is left.
    """
    model, *external = files
    target = os.path.abspath(destination)
    names = dict(zip(external, _data_names(target, overwrite=overwrite), strict=False))
    replaced = _old_data(target)
    ours: list[int] = []
    with ExitStack() as undo:
        for name, fresh in names.items():
            beside = os.path.join(os.path.dirname(target), fresh)
            undo.callback(_take_back, beside, target, ours)
            with publish.file(beside, overwrite=False) as out:
                out.write(files[name])
                ours.append(os.fstat(out.fd).st_ino)
        with publish.file(destination, overwrite=overwrite) as out:
            out.write(_referring(files[model], names))
            ours.append(os.fstat(out.fd).st_ino)
        undo.pop_all()
    for name in replaced:
        with suppress(OSError):
            os.unlink(os.path.join(os.path.dirname(target), name))


def _data_names(target: str, *, overwrite: bool) -> Iterator[str]:
    """Yield names for data beside a model that nothing has.

    Raises:
        TargetError: the first has something standing there, and that may not be so.
    """
    for count in itertools.count():
        name = os.path.basename(target) + (f".{count}.data" if count else ".data")
        path = os.path.join(os.path.dirname(target), name)
        if not os.path.lexists(path):
            yield name
        elif not overwrite:
            remedy = "pass overwrite=True (--overwrite), or move it away"
            raise error(Code.TARGET_EXISTS, path, "something stands there", remedy)


def _old_data(target: str) -> tuple[str, ...]:
    """Return the data of a model that stands there, as far as it is named after it."""
    ours = re.compile(re.escape(os.path.basename(target)) + r"(\.\d+)?\.data")
    try:
        beside = [name for name in os.listdir(os.path.dirname(target)) if ours.fullmatch(name)]
        if not beside or not os.path.isfile(target):
            return ()
        with open(target, "rb") as file:
            known = check_graph(file.read()).external
    except (OSError, PersistlibError):
        return ()
    return tuple(name for name in beside if name in known)


def _take_back(path: str, target: str, ours: Sequence[int]) -> None:
    """Remove data of ours whose model did not come, even if only the last fsync of it failed."""
    with suppress(OSError):
        is_there = os.path.lexists(target) and os.lstat(target).st_ino in ours
        if not is_there and os.lstat(path).st_ino in ours:
            os.unlink(path)


def _referring(model: Buffer, names: Mapping[str, str]) -> Buffer:
    """Return a model that calls its data by other names."""
    if all(name == fresh for name, fresh in names.items()):
        return model
    import onnx

    serialized: Any = model  # protobuf parses any buffer, and says bytes
    proto = onnx.ModelProto.FromString(serialized)
    waiting: list[Any] = [proto.graph, *proto.functions]
    while waiting:
        for field, value in waiting.pop().ListFields():
            if field.message_type is None:
                continue
            parts = (value,) if hasattr(value, "ListFields") else value
            if field.message_type is onnx.StringStringEntryProto.DESCRIPTOR:
                for entry in parts if field.name == "external_data" else ():
                    if entry.key == "location":
                        entry.value = names[entry.value]
            else:
                waiting.extend(parts)
    referring: bytes = proto.SerializeToString(deterministic=True)
    return referring


def _export(bundle: Bundle, wishes: GraphWishes, trust: Collection[str]) -> Made:
    if not is_importable("torch"):
        raise missing_extra("torch", "torch", "making a graph")
    from persistlib import examples
    from persistlib.export.noting import inputs_of_bundle, note_of_bundle
    from persistlib.export.proof import prove
    from persistlib.export.targeted import export_wished

    interface = bundle.manifest.interface
    if not interface.inputs:
        raise error(
            Code.EXPORT_INPUTS,
            bundle.path,
            "the bundle does not say what goes into the model",
            "save it with example_inputs= or interface=",
        )
    model = load_module(bundle, _READING, strict=True, trust=trust)
    inputs = inputs_of_bundle(bundle)
    outputs = examples.output_names(interface, examples.run(model, inputs))
    metadata = render(note_of_bundle(bundle, inputs))
    exported = export_wished(model, inputs, wishes, outputs=outputs, metadata=metadata)
    proof = prove(model, exported)
    files = {file.name: file.data for file in exported.files}
    return Made(files, ToldGraph(proof, exported.ir_version, exported.opsets))
