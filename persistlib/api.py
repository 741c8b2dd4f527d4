"""The public functions: each composes what the other modules do."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, overload

from persistlib.adaptation.record import Adaptation
from persistlib.adaptation.record import adaptation_of as adaptation_of  # noqa: PLC0414 - public
from persistlib.bundle import SHARD_BYTES, Bundle, reading
from persistlib.calls import require_module, require_saving, require_torch, save_trained, section
from persistlib.casting import cast_target
from persistlib.compat import Report
from persistlib.conversion import ConversionReport, Wishes, convert_weights
from persistlib.difference import Difference
from persistlib.difference import compare as compare_weights
from persistlib.errors import (
    Code,
    Finding,
    PersistlibError,
    Severity,
    TargetError,
    UsageError,
    error,
)
from persistlib.formats import FORMATS, by_name, by_suffix, ending
from persistlib.graph_wishes import GraphWishes, graph_wishes
from persistlib.manifest.schema import Interface, Lineage, Manifest, Training
from persistlib.materializing import materialize as materialize  # noqa: PLC0414 - public here
from persistlib.parents import with_parent
from persistlib.probing import cross_validate as cross_validate  # noqa: PLC0414 - public here
from persistlib.probing import fit_classifier as fit_classifier  # noqa: PLC0414 - public here
from persistlib.sources import BUNDLE, is_folder
from persistlib.standing import set_status as set_status  # noqa: PLC0414 - public here
from persistlib.standing import tell_status
from persistlib.summary import Summary, summarize
from persistlib.training.batch import Batch as Batch  # noqa: PLC0414 - public here
from persistlib.upgrading import upgrade as upgrade  # noqa: PLC0414 - public here
from persistlib.verification import FileState, verify_files
from persistlib.versions import log as log  # noqa: PLC0414 - public here
from persistlib.versions import prune as prune  # noqa: PLC0414 - public here
from persistlib.whole_models import convert_whole

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from typing import Literal

    import torch
    from torch import nn
    from typing_extensions import Unpack

    from persistlib.adaptation.wishes import Adapt
    from persistlib.architecture.freezing import Frozen
    from persistlib.calls import Judging, Opening
    from persistlib.compat.targets import Target
    from persistlib.evaluation.judging import Evaluation
    from persistlib.evaluation.ranking import Ranking
    from persistlib.files import StrPath
    from persistlib.graph_wishes import GraphOptions
    from persistlib.identification.reading import Identification
    from persistlib.manifest.schema import Architecture
    from persistlib.parents import Parent
    from persistlib.patterns import Patterns, Rules
    from persistlib.runtime.session import Session
    from persistlib.training.loop import FinetuneResult


_RUNTIMES = ("torch", "onnxruntime")


def build(
    builder: str,
    *,
    weights: str | os.PathLike[str] | None = None,
    edits: Sequence[Any] = (),
    trust: Collection[str] = (),
    strict: bool | Literal["report"] = True,
    adapt: Adapt | None = None,
    **arguments: Any,
) -> nn.Module:
    """Build a module by name and remember how, so that it can be saved and rebuilt.

    Args:
        builder: `package.module:callable`, such as "torchvision.models:resnet50".
        weights: None for fresh values; a name that the builder knows, such as "DEFAULT"; or the
            path of a checkpoint whose tensors fit by name, shape and dtype.
        edits: changes after building, as in the manifest.
        trust: packages beyond torchvision.models and torch.nn that may be imported.
        strict: "report" takes the tensors of a checkpoint that fit, leaves the others at their
            initial values, and warns; `adaptation_of` lists them.
        adapt: changes such as `{"classes": 20}`; see docs/adaptation.md. Rules of `rename` are for
            the names in a checkpoint.
        **arguments: the builder's own.

    Raises:
        ArchitectureError: the builder is unknown, not trusted, or raised; or the model cannot be
            adapted as asked.
        TrainingError: the weights do not fit.
    """
    require_torch("building a model")
    if adapt is not None or strict != True:  # noqa: E712 - "report" is true, too
        from persistlib.adaptation import building

        return building.build(
            *(builder, weights, adapt), strict=strict, edits=edits, trust=trust, arguments=arguments
        )
    from persistlib.architecture import recipe

    return recipe.build(builder, weights=weights, edits=edits, trust=trust, **arguments)


def save(
    model: nn.Module,
    path: StrPath,
    *,
    architecture: Architecture | Mapping[str, Any] | str | None = None,
    example_inputs: Any = None,
    interface: Interface | Mapping[str, Any] | None = None,
    training: Training | Mapping[str, Any] | None = None,
    lineage: Sequence[Lineage | Mapping[str, Any]] = (),
    name: str | None = None,
    license: str | None = None,
    onnx: bool | GraphOptions = False,
    base: StrPath | None = None,
    sha256: bool = False,
    shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
    together: bool = True,
) -> Manifest:
    """Save a module as a bundle: weights, manifest, and what is needed to open it anywhere.

    After a crash at any moment `path` is the whole old bundle or the whole new one; when this
    returns, the new one survives a power cut. The module and the random state are untouched.

    Args:
        model: any module, a Keras model on its torch backend among them; its architecture is found
            when `architecture` is not given.
        path: the folder to make.
        architecture: a builder's name or a recipe, when the module was built by other means.
        example_inputs: a tensor, a sequence of tensors in the order of forward's arguments, or a
            mapping by name; stored with the outputs, and compared by `verify(behaviour=True)`.
        interface: inputs, outputs, preprocessing, labels, as far as known; without, those of an
            adapted model.
        training: how the weights came about.
        lineage: what it was made from; that of an adapted model comes after it.
        name: the model's name.
        license: SPDX identifier.
        onnx: whether an ONNX graph is made too, proved to compute the same; or what is asked of
            it, such as `{"opset": 17}`, see `GraphOptions`.
        base: a bundle whose tensors are referred to where they are the same, bit for bit; only the
            others are stored. It is found again where it stands beside `path`, elsewhere by
            `load(..., base=)`. Of a delta, its own base is taken.
        sha256: whether every file's SHA-256 is recorded beside its BLAKE3.
        shard_bytes: weights above this many bytes are written as shards.
        overwrite: whether an old bundle at `path` is replaced.
        together: whether the processes of a group, each of which calls this, save one bundle, each
            writing its part; else this one saves all that it holds.

    Returns:
        The manifest that was written.

    Raises:
        ModelError: the module is in a state that a file cannot hold.
        ArchitectureError: no recipe rebuilds the module, or what it rebuilds differs.
        ExportError: no graph could be made or proved; nothing was written.
        TargetError: `path` cannot be written; what stood there stands unchanged.
    """
    require_torch("saving a module")
    from persistlib import divided, examples, processes, saving
    from persistlib.architecture.module_state import require_savable
    from persistlib.keras_models import as_module

    model = as_module(model)
    require_saving(model, name=name, license=license, shard_bytes=shard_bytes)
    wishes = graph_wishes(onnx)
    is_shared = together and processes.stands()
    require_savable(divided.hollow(model) if is_shared else model)
    done = adaptation_of(model) or Adaptation()
    given = section(Interface, interface) or done.interface
    ancestors = [made for item in lineage if (made := section(Lineage, item)) is not None]
    shown = None
    if example_inputs is not None:
        inputs = examples.name_inputs(model, example_inputs)
        shown = examples.Examples(inputs, examples.run(model, inputs))
        given = examples.describe_interface(given, shown)
    asked = saving.Plan(
        interface=given,
        examples=shown,
        training=section(Training, training),
        lineage=tuple(dict.fromkeys((*ancestors, *done.lineage))),
        name=name,
        license=license,
        sha256=sha256,
        shard_bytes=shard_bytes,
    )

    def work(parent: Parent | None) -> Manifest:
        plan = replace(asked, parent=parent)
        how: dict[str, Any] = {"onnx": wishes, "overwrite": overwrite}
        if is_shared:
            from persistlib.saving_together import save_together

            return save_together(model, path, plan, architecture=architecture, **how)
        return saving.save_module(model, path, plan, architecture=architecture, **how)

    return with_parent(base, path, work)


@overload
def load(path: StrPath, *, runtime: Literal["onnxruntime"], **how: Unpack[Opening]) -> Session: ...


@overload
def load(
    path: StrPath,
    *,
    runtime: Literal["torch"] = ...,
    only: Patterns,
    **how: Unpack[Opening],
) -> dict[str, torch.Tensor]: ...


@overload
def load(
    path: StrPath, *, runtime: Literal["torch"] = ..., only: None = ..., **how: Unpack[Opening]
) -> nn.Module: ...


@overload
def load(
    path: StrPath,
    *,
    runtime: str = ...,
    only: Patterns | None = ...,
    **how: Unpack[Opening],
) -> nn.Module | dict[str, torch.Tensor] | Session: ...


def load(
    path: StrPath,
    *,
    runtime: str = "torch",
    device: str | torch.device = "cpu",
    train: bool | None = None,
    only: Patterns | None = None,
    mmap: bool = True,
    verify: bool = True,
    strict: bool | Literal["report"] = True,
    trust: Collection[str] = (),
    allow_withdrawn: bool = False,
    adapt: Adapt | None = None,
    base: StrPath | None = None,
    providers: Sequence[Any] | None = None,
    require: str | None = None,
    min_share: float | None = None,
    threads: int | None = None,
    timeout: float | None = None,
    graph: str | None = None,
) -> nn.Module | dict[str, torch.Tensor] | Session:
    """Open a bundle, every byte that is used compared with its digest.

    Args:
        path: the folder that `save` made; for `runtime="onnxruntime"` also any ONNX file.
        runtime: "torch" for a module, "onnxruntime" for a session that needs no torch.
        device: where the module's tensors go.
        train: None restores every module's mode as saved; True or False calls `train(...)`.
        only: patterns of tensor names; then a dict of just those tensors is returned.
        mmap: whether tensors lie in a private mapping of the file, in which later changes made in
            place by others may show, or in a private copy (always so on remote file systems).
        verify: whether digests are compared.
        strict: whether a module configured otherwise than the saved one is an error or a warning;
            "report" also takes the tensors that fit, leaves the others at their initial values, and
            warns; `adaptation_of` lists them.
        trust: packages beyond torchvision.models and torch.nn that may be imported.
        allow_withdrawn: whether a model that was withdrawn is opened all the same, with a warning.
        adapt: changes such as `{"classes": 20}`; see docs/adaptation.md.
        base: where the bundle is that a delta was saved over, when it does not stand beside it; it
            is held to the weights identity that the delta names.
        providers: ONNX Runtime execution providers in order, such as ["cuda", "cpu"], or
            [("cuda", {"device_id": 1}), "cpu"] with options; by default the CPU.
        require: the provider that must be given operators.
        min_share: the part of all operators that the required provider must be given, 0 to 1.
        threads: how many threads ONNX Runtime may use for one operator.
        timeout: seconds that opening and each run of a session may take, infinity for as long as
            they like; by default a run has 600, or 60 where the graph has loops.
        graph: which of a bundle's graphs a session runs, by its precision, such as "f16" or "int8";
            by default the first.

    Returns:
        A module, a dict of tensors with `only`, or a session with `runtime="onnxruntime"`.

    Raises:
        ManifestError: the manifest cannot be read by this release.
        CompatibilityError: this environment cannot hold the model, or it was withdrawn.
        IntegrityError: a byte differs from what was saved.
        ArchitectureError: the module cannot be rebuilt here.
        SessionError: the runtime refuses the graph or a provider.
    """
    if runtime not in _RUNTIMES:
        raise error(Code.USAGE, f"runtime={runtime!r}", "is no runtime", "use torch or onnxruntime")
    require_module(runtime, only, adapted=adapt is not None or strict == "report")
    from persistlib import loading

    how = loading.Reading(mmap, verify)
    wishes: loading.SessionWishes = {
        "providers": providers,
        "require": require,
        "min_share": min_share,
        "threads": threads,
        "timeout": timeout,
    }
    if not is_folder(path):
        if runtime != "onnxruntime":
            raise loading.no_module(path)
        return loading.load_graph_file(
            path, how, graph=graph, allow_withdrawn=allow_withdrawn, **wishes
        )

    def work(bundle: Bundle) -> nn.Module | dict[str, torch.Tensor] | Session:
        loading.require_compatible(bundle, runtime, allow_withdrawn=allow_withdrawn)
        if runtime == "onnxruntime":
            return loading.load_session(bundle, how, graph=graph, **wishes)
        if only is not None:
            tensors = loading.load_tensors(bundle, only, how)
            return {name: tensor.to(device) for name, tensor in tensors.items()}
        model = loading.load_module(bundle, how, strict=strict, trust=trust, adapt=adapt)
        model = model.to(device)
        return model if train is None else model.train(train)

    if runtime == "torch":
        require_torch("loading a module")
    return reading(path, work, base=base)


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found.

    Attributes:
        files: each file that the manifest vouches for, and whether it is intact.
        findings: every fault.
    """

    files: tuple[FileState, ...]
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether no fault was found."""
        return all(f.severity != Severity.ERROR.value for f in self.findings)


def verify(
    path: StrPath,
    *,
    behaviour: bool = False,
    trust: Collection[str] = (),
    base: StrPath | None = None,
) -> VerifyReport:
    """Compare every byte of every file of a bundle with its manifest; of a delta, of its base too.

    Args:
        path: the folder that `save` made.
        behaviour: whether the stored example outputs are also computed again and compared, in every
            runtime that is installed here.
        trust: packages that may be imported to rebuild the module.
        base: as `load`.

    Raises:
        TargetError: nothing stands at `path`, or no bundle.
    """

    def work(bundle: Bundle) -> VerifyReport:
        result = verify_files(bundle)
        findings = result.findings
        if behaviour and VerifyReport((), findings).ok:
            from persistlib.behaviour import behaviour_findings

            findings += behaviour_findings(bundle, trust=trust)
        return VerifyReport(result.files, findings)

    try:
        return reading(path, work, base=base)
    except TargetError:
        raise
    except PersistlibError as fault:
        return VerifyReport((), fault.findings)


def environment() -> Target:
    """Return this environment as a target for `check`: versions, machine, memory, providers.

    Torch is not imported. `persistlib environment --json` writes it for another machine.
    """
    from persistlib.compat.environments import environment as found

    return found()


def check(
    source: StrPath,
    target: StrPath | Target | None = None,
    *,
    build: bool = False,
    trust: Collection[str] = (),
    forbid_licenses: Collection[str] = (),
) -> Report:
    """Say, before the weights are read, whether a model loads and runs here or on a target.

    Of a bundle the manifest decides, and its graphs, node by node; of a bare file its header, or
    its graph (docs/compatibility.md).

    Args:
        source: the folder that `save` made, an ONNX file or a weights file.
        target: versions such as "onnxruntime==1.17.3" or "torch==2.6,python==3.10"; the path of a
            requirements file, a lock file or what `persistlib environment --json` wrote elsewhere;
            or an environment. None for this one.
        build: also build a bundle's recipe here, with the torch that is installed, and compare its
            structure with the saved one; nothing is imported otherwise.
        trust: packages, or dotted prefixes, that may be imported for that.
        forbid_licenses: SPDX identifiers, such as "CC-BY-NC-4.0" or "CC-BY-NC-*", under which
            neither the model nor what it was made from may stand.

    Raises:
        TargetError: nothing stands at `source`, or no bundle; or the target's file is not there.
        UsageError: the target cannot be read, or a licence is no name of one.
    """
    from persistlib.compat import licensing
    from persistlib.compat.checking import check_source
    from persistlib.compat.describing import parse_target

    described, forbidden = parse_target(target), licensing.forbidden(forbid_licenses)
    try:
        trusted = trust if build else None
        return check_source(source, described, forbidden=forbidden, trusted=trusted)
    except (TargetError, UsageError):
        raise
    except PersistlibError as fault:
        return Report("refused", fault.findings)


def inspect(path: StrPath) -> Summary:
    """Return what a bundle is; its weights are not read.

    Raises:
        TargetError: nothing stands at `path`, or no bundle.
        ManifestError: the manifest cannot be read by this release.
        IntegrityError: the manifest differs from its digest.
    """
    return reading(path, lambda bundle: summarize(bundle.path, bundle.manifest, bundle.size()))


def identify(path: StrPath, *, key: str | None = None, zoo: str = "torchvision") -> Identification:
    """Return what a weights file or a bundle is, and which model its tensors belong to.

    Only headers are read, nothing in the file is executed, and torch is not needed.

    Args:
        path: a safetensors, PyTorch, HDF5, Keras or ONNX file, or a bundle.
        key: of a PyTorch file, which part of a training checkpoint, by its dotted path.
        zoo: "torchvision" for the index that persistlib brings along, or "timm" to ask an
            installed timm too, in a process of its own.

    Raises:
        FormatError: the file is not well-formed.
        TargetError: nothing stands at `path`, or it cannot be read.
        MissingExtra: timm was asked for and is not installed.
    """
    if zoo not in {"torchvision", "timm"}:
        raise error(Code.USAGE, f"zoo={zoo!r}", "is no zoo", "use torchvision or timm")
    from persistlib.identification import reading as headers

    if is_folder(path):
        if key is not None:
            raise error(Code.USAGE, "key=", "means nothing for a bundle", "leave it out")
        return reading(path, headers.identify_bundle)
    return headers.identify_file(path, key=key, timm=zoo == "timm")


def convert(
    source: StrPath,
    destination: StrPath,
    *,
    to: str | None = None,
    allow_loss: Collection[str] = (),
    dtype: str | None = None,
    only: Patterns | None = None,
    rename: Rules | None = None,
    key: str | None = None,
    layout: str | None = None,
    template: StrPath | None = None,
    compression: str | None = None,
    shard_bytes: int | None = None,
    architecture: str | None = None,
    trust: Collection[str] = (),
    verify: bool = True,
    overwrite: bool = False,
    **graph: Unpack[GraphOptions],
) -> ConversionReport:
    """Write a bundle or a weights file in another format.

    The source's format is told by its content. What was written is read back and compared before
    it stands at `destination`.

    Args:
        source: a bundle, a safetensors, PyTorch, HDF5, Keras or ONNX file, or a folder of
            torch.distributed.checkpoint.
        destination: the file to write.
        to: the name of a format in `persistlib formats`; by default what the ending says. A whole
            Keras model also becomes a "bundle", which a destination without an ending stands for,
            and a bundle becomes one with another graph beside its own (`dtype`, `quantize`).
        allow_loss: what may be lost, by the first word of the loss, or "all".
        dtype: what floating-point tensors are cast to, such as "f16" or "bf16"; by default nothing
            is cast.
        only: patterns of tensor names to write.
        rename: pattern to replacement, or texts `PATTERN=REPLACEMENT`; each `*` of a replacement is
            what the pattern's wildcard of the same number matched.
        key: of a PyTorch file or such a folder, which part of a training checkpoint, by its dotted
            path; of an ONNX file, "" for constants and subgraphs too.
        layout: of a Keras file, "torch" for torch's names and axes.
        template: an ONNX file whose graph the weights are put into.
        compression: of an HDF5 file that is written, "gzip" or "lzf".
        shard_bytes: where `destination` is an index (`MODEL.safetensors.index.json`), the most
            bytes of tensors in one of the files beside it; 5 GB by default.
        architecture: of an ONNX file that becomes a bundle, the builder whose module it is, such as
            "torchvision.models:resnet18"; by default what persistlib noted in the file, or else the
            graph itself as a module.
        trust: packages that may be imported to rebuild the module for a graph.
        verify: whether the written file is read back and compared.
        overwrite: whether a file at `destination` is replaced.
        **graph: of a graph that is made: opset, ir, target, dynamic, quantize, calibration,
            pure; see `GraphOptions`.

    Raises:
        LossError: the format does not keep something that was not allowed to be lost.
        PersistlibError: reading or writing failed; what stood at `destination` stands unchanged.
    """
    asked = GraphWishes(dtype=dtype, **graph)
    tell_status(source)
    if asked.derives and template is None:
        from persistlib.graphs import convert_derived

        if done := convert_derived(source, destination, asked, to=to, overwrite=overwrite):
            return done
    if to == BUNDLE or (to is None and not ending(destination) and not is_folder(source)):
        asked.require_unsaid("a bundle")
        return convert_whole(
            source,
            destination,
            BUNDLE,
            asked,
            architecture=architecture,
            trust=trust,
            overwrite=overwrite,
        )
    target = by_name(to) if to is not None else by_suffix(destination)
    if not target.is_written:
        written = ", ".join(row.name for row in FORMATS.values() if row.is_written)
        raise error(Code.USAGE, target.name, "is read and not written", f"write one of {written}")
    if os.path.lexists(destination) and not overwrite:
        raise error(
            Code.TARGET_EXISTS,
            destination,
            "something stands there",
            "pass overwrite=True (--overwrite)",
        )
    writing = {"template": template, "compression": compression, "shard_bytes": shard_bytes}
    given = {name: value for name, value in writing.items() if value is not None}
    for name in given:
        if name not in target.writes_with:
            raise error(Code.USAGE, f"{name}=", f"means nothing for {target.title}", "leave it out")
    if target.name == "onnx" and template is None:
        from persistlib.graphs import convert_graph

        if not is_folder(source):
            return convert_whole(
                source, destination, "onnx", asked, trust=trust, overwrite=overwrite
            )

        return reading(
            source,
            lambda bundle: convert_graph(
                bundle, destination, asked, trust=trust, overwrite=overwrite
            ),
        )
    asked.require_unsaid(target.title, but=("dtype",))
    wishes = Wishes(
        only=only,
        rename=rename,
        dtype=None if dtype is None else cast_target(dtype),
        allow_loss=allow_loss,
        reading={"key": key, "layout": layout},
        writing=given,
        verify=verify,
        overwrite=overwrite,
    )
    return convert_weights(source, destination, target, wishes)


def diff(
    a: StrPath,
    b: StrPath,
    *,
    only: Patterns | None = None,
    rename: Rules | None = None,
    key: str | None = None,
    layout: str | None = None,
) -> Difference:
    """Return what differs between two of: bundle, weights file of any format; torch-free.

    Args:
        a: a bundle or a weights file.
        b: another one.
        only: patterns of the tensor names to compare, as `a` has them.
        rename: rules, as of `convert`, that give the names of `b` those of `a`.
        key: as `convert`, for each of the two whose format has parts.
        layout: as `convert`, for each of the two that is a Keras file.

    Raises:
        PersistlibError: one of the two cannot be read.
    """
    return compare_weights(
        a, b, only=only, rename=rename, reading_with={"key": key, "layout": layout}
    )


def finetune(
    model: nn.Module,
    train: Any,
    valid: Any = None,
    *,
    epochs: int,
    lr: float,
    freeze: Patterns = (),
    seed: int = 0,
    run: StrPath | None = None,
    resume: bool | StrPath = False,
    out: StrPath | None = None,
    name: str | None = None,
    license: str | None = None,
    onnx: bool | GraphOptions = False,
    overwrite: bool = False,
    **settings: Any,
) -> FinetuneResult:
    """Train a model in place on labelled samples, and save it when `out` is given.

    Processes that torchrun or `accelerate launch` started train as one (docs/fine-tuning.md).

    Args:
        model: trained in place; ends in evaluation mode. Of a Keras model on its torch backend the
            result has a module that holds the same values (docs/keras.md).
        train: (inputs, targets) as arrays, tensors or lists, or mappings of arrays by name: floats
            are cast to the model's dtype (targets to float32 at least); a data set of such pairs;
            or a DataLoader. Targets have the outputs' shape: (N, 1), not (N,), beside (N, 1).
        valid: held-out samples in the same forms.
        epochs: how often all training samples are gone through.
        lr: learning rate at the start.
        freeze: globs over dotted names; `["*", "!fc.*"]` trains `fc` alone. What is frozen stays
            bit for bit, BatchNorm statistics included.
        seed: of the order of samples, their augmentation and dropout; the same seed gives the same
            weights.
        run: the folder that keeps the run's checkpoints, history and plots; None for none.
        resume: whether a run that stands there is gone on with; or the folder of that run. Where
            none stands yet, it begins.
        out: the bundle to save; what would refuse it is found before the first epoch, and that of a
            run which is complete and gone on with stays as it is.
        name: as `save`.
        license: as `save`.
        onnx: as `save`; where no graph can be made or proved the bundle is saved without, and a
            warning says why.
        overwrite: as `save`; and whether a run that stands at `run` is removed.
        **settings: as `persistlib.training.loop.finetune`: task, loss, metrics, strategy, keep,
            batch_size, optimizer, device, interface, progress and more (docs/fine-tuning.md).

    Returns:
        The model, its history and metrics, and what the manifest says of the run.

    Raises:
        TrainingError: the samples, patterns or numbers cannot be trained with, the loss is not
            finite, or a run cannot be gone on with.
        TargetError: a run stands at `run` and is neither to be resumed nor removed.
        PersistlibError: saving failed, as `save`.
    """
    require_torch("fine-tuning")
    from persistlib import run_versions, trained_bundles
    from persistlib.keras_models import as_module
    from persistlib.training import loop

    model = as_module(model)
    lineage = origin(model)
    if (done := adaptation_of(model)) is not None:
        settings.setdefault("interface", done.interface)
    place = run if isinstance(resume, bool) else resume
    if resume is True and run is None:
        raise error(Code.USAGE, "resume", "nothing says which run", "give run=, its folder")
    own = loop.Folder(path=place, resume=resume is not False, overwrite=overwrite)
    known = section(Interface, settings.get("interface"))
    folder = run_versions.kept_in(
        settings.get("folder") or own, known, lineage, name=name, license=license
    )
    settings = {**settings, "folder": folder, "interface": known}
    how = {"overwrite": overwrite, "alone": settings.get("alone", False)}
    if out is not None:
        trained_bundles.require(model, out, folder, epochs=epochs, **how)
    result = loop.finetune(
        model, train, valid, freeze=freeze, epochs=epochs, lr=lr, seed=seed, **settings
    )
    if out is not None:
        saving = partial(
            save,
            lineage=lineage,
            name=name,
            license=license,
            overwrite=overwrite,
            together=False,
        )
        work = partial(save_trained, saving, result, out, onnx=onnx)
        trained_bundles.keep_or(work, result, out, **how)
    return result


def evaluate(
    model: nn.Module | Session | StrPath,
    data: Any,
    *,
    runtime: str | Sequence[str] | None = None,
    interface: Interface | Mapping[str, Any] | None = None,
    against: nn.Module | Session | StrPath | None = None,
    save: bool = False,
    **how: Unpack[Judging],
) -> Evaluation:
    """Judge a model on labelled data, in several runtimes side by side.

    Args:
        model: a bundle, an ONNX file, a module, or a session.
        data: a folder with one folder of images a class; an `.npz` file with `labels` and `images`
            or `inputs`; "sklearn:digits"; or a pair (inputs, labels) of arrays. Of other tasks an
            `.npz` file with `inputs` and `targets`, or a pair of arrays, each one or several by
            name. Numbers of (N,) and (N, 1) are the same here, where no loss could broadcast.
        runtime: "torch", "onnxruntime", both in a sequence or with a comma between; the second is
            compared with the first. None takes all in which the model runs here.
        interface: classes and preprocessing where the model does not say them, or says others.
        against: another model of the same classes, to be judged on the same samples: the result
            says what differs, and whether chance alone could do it.
        save: whether the result joins the evaluations in the bundle's manifest.
        **how: task (where the manifest does not say it, or says otherwise), held_out, part, split,
            batch_size, calls, threads, providers, require, graph, trust, allow_withdrawn, progress;
            see `measurement.Wishes`.

    Returns:
        Metrics, times and answers of each runtime, and how alike the answers are.

    Raises:
        TrainingError: the data cannot be used or does not fit the model, or its outputs are no
            scores of classes; every fault of the data is reported.
        SessionError: a runtime refuses or fails, or nothing says how images are prepared.
        MissingExtra: scikit-learn, or torch where it is asked for, is not installed.
        PersistlibError: the model cannot be loaded, or the manifest not be written.
    """
    from persistlib import measurement, pairwise

    given = section(Interface, interface)
    names = measurement.runtimes(runtime)
    wishes = measurement.Wishes(runtimes=names, interface=given, **how)
    if against is not None:
        return pairwise.evaluate(model, against, data, wishes, save=save)
    return measurement.evaluate(measurement.opened(model, wishes), data, wishes, save=save)


def compare(
    candidates: Sequence[StrPath], data: StrPath, *, save: bool = False, **how: Any
) -> Ranking:
    """Rank models as beginnings for fine-tuning on labelled images; see `contenders.compare`."""
    from persistlib import contenders

    return contenders.compare(candidates, data, save=save, **how)


def origin(model: nn.Module) -> tuple[Lineage, ...]:
    """Return where a model's weights came from, when `build` or `load` made it; nearest first."""
    if (done := adaptation_of(model)) is not None:
        return done.lineage
    from persistlib.architecture import recipe

    return recipe.ancestry(model)


def freeze(model: nn.Module, patterns: Patterns) -> Frozen:
    """Freeze parameters and the statistics of their modules; see `architecture.freezing.freeze`."""
    require_torch("freezing a model")
    from persistlib.architecture import freezing

    return freezing.freeze(model, patterns)


def unfreeze(model: nn.Module, patterns: Patterns) -> tuple[str, ...]:
    """Let parameters train again; see `architecture.freezing.unfreeze`."""
    require_torch("unfreezing a model")
    from persistlib.architecture import freezing

    return freezing.unfreeze(model, patterns)
