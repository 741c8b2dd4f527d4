"""Loading a bundle: as a module, as tensors, or as a runtime session.

The order is the law: manifest, verdict, headers, the digest of the very bytes that are used, and
only then a tensor. While the digests are computed on all cores the module is rebuilt.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict

from persistlib.compat import check_manifest, here, standing
from persistlib.compat.facts import Facts
from persistlib.compat.verdicts import verdict_of
from persistlib.dtypes import DType
from persistlib.errors import Code, PersistlibError, Severity, error, error_of, tell, warn
from persistlib.formats import by_content
from persistlib.patterns import select

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    import torch
    from torch import nn
    from typing_extensions import Unpack

    from persistlib.bundle import Bundle
    from persistlib.errors import Finding
    from persistlib.files import StrPath
    from persistlib.manifest.schema import Graph, Lineage, Manifest
    from persistlib.model_notes import ModelNote
    from persistlib.patterns import Patterns
    from persistlib.runtime.session import Session

# Seconds that a run may take where the caller says nothing. Only in a graph with loops do values
# say how long it runs; elsewhere no run is endless, and a large one may take a slow machine long.
_LOOP_SECONDS = 60.0
_RUN_SECONDS = 600.0


class Reading(NamedTuple):
    """How the bytes are read: mapped or copied, compared with their digests or not."""

    mapped: bool
    verify: bool


class SessionWishes(TypedDict, total=False):
    """How a session is opened; each as `runtime.session.open_session` explains it.

    Attributes:
        providers: in order of preference.
        require: the provider that must compute.
        min_share: the part of all operators that it must be given.
        threads: that one operator may use.
        timeout: seconds that opening and each run may take.
        profile: the beginning of the path of a profile.
    """

    providers: Sequence[Any] | None
    require: str | None
    min_share: float | None
    threads: int | None
    timeout: float | None
    profile: str | None


_WARNING = Severity.WARNING.value
_CHECKED = Reading(mapped=True, verify=True)


def require_compatible(bundle: Bundle, *runtimes: str, allow_withdrawn: bool = False) -> None:
    """Refuse what cannot be used here; warn once of what is degraded.

    Args:
        bundle: that shall be used.
        *runtimes: by which of "torch" and "onnxruntime"; by each of them where both are named.
        allow_withdrawn: whether a withdrawn model is warned of instead of refused.

    Raises:
        CompatibilityError: the verdict is "refused".
    """
    target = here()
    found = [
        one
        for runtime in runtimes
        for one in check_manifest(
            bundle.manifest, target, source=bundle.path, runtime=runtime
        ).findings
    ]
    _act_on(dict.fromkeys(found), allow_withdrawn=allow_withdrawn)


def _act_on(found: Iterable[Finding], *, allow_withdrawn: bool) -> None:
    """Refuse what the findings refuse, and warn of the rest.

    Raises:
        CompatibilityError: the verdict is "refused".
    """
    if allow_withdrawn:
        status = Code.STATUS.identifier
        found = [f if f.code != status else replace(f, severity=_WARNING) for f in found]
    report = verdict_of(found)
    if not report.ok:
        raise error_of(report.findings)
    tell(report.findings)


def load_tensors(bundle: Bundle, patterns: Patterns, reading: Reading) -> dict[str, torch.Tensor]:
    """Return the selected tensors of the state_dict; only their bytes are read.

    Raises:
        PersistlibError: a pattern matches nothing, or the bytes differ from the manifest.
    """
    from persistlib.architecture.module_state import tensor_of, with_strides

    manifest = bundle.manifest
    records = {record.name: record for record in manifest.weights.tensors}
    aliases = manifest.weights.aliases
    chosen = select(patterns, [*records, *aliases])
    stored = dict.fromkeys(aliases.get(name, name) for name in chosen)
    views = bundle.tensors(stored, mapped=reading.mapped, verify=reading.verify)
    tensors = {
        name: with_strides(
            tensor_of(view, DType[records[name].dtype], records[name].shape),
            manifest.state.strides.get(name),
        )
        for name, view in views.items()
    }
    return {name: tensors[aliases.get(name, name)] for name in chosen}


def load_module(
    bundle: Bundle,
    reading: Reading,
    *,
    strict: bool | Literal["report"],
    trust: Collection[str],
    adapt: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Return the module that was saved, on the CPU, every tensor compared with its digest.

    Raises:
        PersistlibError: it cannot be rebuilt here, its bytes differ from the manifest, or it cannot
            be adapted as asked.
    """
    from persistlib.adaptation.wishes import parse
    from persistlib.architecture.fitting import fitted
    from persistlib.architecture.module_state import assign, restore_training
    from persistlib.architecture.recipe import descend
    from persistlib.architecture.restoring import refuse_meta, restore_unsaved
    from persistlib.architecture.skeleton import skeleton
    from persistlib.architecture.structure import is_as_saved

    manifest, wishes = bundle.manifest, parse(adapt)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(bundle.tensors, mapped=reading.mapped, verify=reading.verify)
        unsaved = pool.submit(bundle.unsaved, mapped=reading.mapped, verify=reading.verify)
        recipe = fitted(manifest.architecture, manifest.environment.packages)
        model = skeleton(recipe, trust=trust)
        has_drifted = not is_as_saved(model, manifest)
        views = future.result()
    if has_drifted:
        _tell_drift(manifest, strict=strict is True)
    tensors = _state_tensors(manifest, views)
    if adapt is not None or strict == "report":
        from persistlib.adaptation.bundles import Stored, adapted

        stored = Stored(tensors, unsaved.result(), bundle.path)
        return adapted(model, manifest, stored, wishes, partly=strict == "report", trust=trust)
    assign(model, tensors)
    restore_unsaved(model, manifest.state, unsaved.result(), strict=strict is True)
    refuse_meta(model)
    restore_training(model, manifest.state.training, manifest.state.frozen_modules_in_eval)
    descend(model, _parent(bundle), manifest.lineage)
    return model


def _parent(bundle: Bundle) -> Lineage:
    """Return a bundle as the ancestor of what is trained on from it."""
    from persistlib.manifest.schema import Lineage

    manifest = bundle.manifest
    name = manifest.name or os.path.basename(os.path.abspath(bundle.path))
    return Lineage(
        relation="fine-tuned-from", id=manifest.bundle_id, source=name, license=manifest.license
    )


def _state_tensors(manifest: Manifest, views: Mapping[str, memoryview]) -> dict[str, Any]:
    """Return every tensor of the state_dict by every name, ties as one value."""
    from persistlib.architecture.module_state import StateTensor, tensor_of, with_strides

    made: dict[str, Any] = {}
    for record in manifest.weights.tensors:
        tensor = tensor_of(views[record.name], DType[record.dtype], record.shape)
        tensor = with_strides(tensor, manifest.state.strides.get(record.name))
        is_parameter = record.role == "parameter"
        if is_parameter and not record.frozen:
            tensor.requires_grad_()
        made[record.name] = StateTensor(record.name, tensor, is_parameter)
    return made | {alias: made[name] for alias, name in manifest.weights.aliases.items()}


def _tell_drift(manifest: Manifest, *, strict: bool) -> None:
    """Refuse a module that is configured otherwise, or warn of it.

    Under the very versions that saved it this is another model, and an error; under others, whose
    modules may hold attributes that older ones lacked, it is a warning.
    """
    from persistlib.architecture.restoring import SAME_VERSIONS
    from persistlib.installed import package_version

    saved = manifest.environment.packages
    same = all(package_version(p) == saved.get(p) for p in ("torch", "torchvision"))
    builder = manifest.architecture.builder
    reason = "what the recipe builds here is configured otherwise than what was saved"
    if strict and same:
        raise error(Code.STRUCTURE_DRIFT, builder, reason, SAME_VERSIONS)
    warn(
        Code.STRUCTURE_DRIFT,
        builder,
        f"{reason} (with torch {saved.get('torch')})",
        "persistlib verify --behaviour BUNDLE compares the outputs",
    )


def load_session(
    bundle: Bundle, reading: Reading, *, graph: str | None = None, **wishes: Unpack[SessionWishes]
) -> Session:
    """Return a runtime session over the bundle's graph, every byte compared with its digest.

    Args:
        bundle: whose graph it is.
        reading: how its bytes are read.
        graph: which one, by its precision, such as "f16" or "int8"; by default the first.
        **wishes: as `open_session`.

    Raises:
        PersistlibError: there is no graph, its bytes differ, or the runtime refuses it.
    """
    return _ending(open_graph(bundle, chosen_graph(bundle, graph), reading, **wishes))


def open_graph(
    bundle: Bundle,
    graph: Graph,
    reading: Reading = _CHECKED,
    **wishes: Unpack[SessionWishes],
) -> Session:
    """Return a runtime session over one of a bundle's graphs.

    Raises:
        PersistlibError: its bytes differ, or the runtime refuses it.
    """
    from persistlib.runtime.session import open_session

    model, *external = graph.files
    training = bundle.manifest.training
    return open_session(
        bundle.whole(model, mapped=reading.mapped, verify=reading.verify),
        external={
            entry.path: bundle.whole(entry, mapped=reading.mapped, verify=reading.verify)
            for entry in external
        },
        interface=bundle.manifest.interface,
        task=None if training is None else training.strategy.get("task"),
        **wishes,
    )


def chosen_graph(bundle: Bundle, name: str | None) -> Graph:
    """Return the graph of a bundle that is of a precision: "f32", "float16", "int8"; or the first.

    Raises:
        SessionError: there is none.
    """
    graphs = bundle.manifest.graphs
    if not graphs:
        remedy = "save it with onnx=True"
        raise error(Code.GRAPH_ABSENT, bundle.path, "it was saved without a graph", remedy)
    if name is None:
        return graphs[0]
    known = {graph.precision: graph for graph in reversed(graphs)}
    word = name.casefold()
    for precision, graph in known.items():
        row = DType.__members__.get(precision)
        if word in {precision.casefold(), row.value.numpy if row else ""}:
            return graph
    reason = f"its graphs are {', '.join(graph.precision for graph in graphs)}"
    remedy = f"persistlib convert {bundle.path} BUNDLE --dtype f16, or --quantize, adds one"
    raise error(Code.GRAPH_ABSENT, f"graph={name}", reason, remedy)


def load_graph_file(
    path: StrPath,
    reading: Reading,
    *,
    graph: str | None = None,
    allow_withdrawn: bool = False,
    **wishes: Unpack[SessionWishes],
) -> Session:
    """Return a runtime session over an ONNX file that stands in no bundle.

    Raises:
        CompatibilityError: the file notes that its model was withdrawn.
        UsageError: a graph is chosen, of which a file has one.
        PersistlibError: it is none, its bytes differ from what it says of them, it refers to what
            is never read, or the runtime refuses it.
    """
    from persistlib.runtime.graph_files import read_graph_file
    from persistlib.runtime.session import open_session

    if graph is not None:
        remedy = "leave it out, or name the bundle that has several"
        raise error(Code.USAGE, f"graph={graph}", "an ONNX file has one graph", remedy)

    def accept(note: ModelNote) -> None:
        facts = Facts(source=os.fspath(path), format="onnx", note=note)
        _act_on(standing.status(facts, here()), allow_withdrawn=allow_withdrawn)

    file = read_graph_file(path, mapped=reading.mapped, verify=reading.verify, accept=accept)
    session = open_session(
        file.model, external=file.external, interface=file.interface, location=path, **wishes
    )
    return _ending(session)


def no_module(path: StrPath) -> PersistlibError:
    """Return the error for a file that was to be opened as a module."""
    name = os.fspath(path)
    remedy = f"persistlib identify {name} --bundle DIR makes a bundle of a weights file"
    if by_content(path).name == "onnx":
        remedy = f'runtime="onnxruntime" opens it; or make a bundle: persistlib convert {name} DIR'
    return error(Code.NOT_A_BUNDLE, path, "a file, which is no module by itself", remedy)


def _ending(session: Session) -> Session:
    """Return the session with a limit for its runs where the caller said none."""
    if session.timeout is None:
        session.timeout = _LOOP_SECONDS if session.facts.has_loops else _RUN_SECONDS
    return session
