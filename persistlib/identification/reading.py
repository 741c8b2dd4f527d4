"""What a weights file is: its format, its tensors, and the model that they belong to.

Law: no byte of a tensor is read. Of a bundle the manifest is asked, and no file but that.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from persistlib.architecture import zoo_forms
from persistlib.checkpoint import Entry
from persistlib.errors import Code, Severity, finding
from persistlib.identification.matching import COUNTER, Match, by_shapes, matches
from persistlib.identification.names import View, is_optimizer, views
from persistlib.selection import wrapper_of
from persistlib.sources import wrapper_note

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from persistlib.architecture.zoo_forms import Form
    from persistlib.bundle import Bundle
    from persistlib.checkpoint import CheckpointReader
    from persistlib.errors import Finding
    from persistlib.files import StrPath

# Candidates and differing tensors that are told; more of them say nothing more.
_CANDIDATES, _DIFFERING = 5, 6
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class DTypeCount:
    """How much of a file is of one dtype.

    Attributes:
        dtype: name of the dtype.
        tensors: how many tensors; ties count once.
        size: their bytes.
    """

    dtype: str
    tensors: int
    size: int


@dataclass(frozen=True)
class Mismatch:
    """One tensor in which a candidate and the file differ.

    Attributes:
        name: the tensor's.
        found: its shape in the file; None where the file has none.
        expected: its shape in the candidate; None where that has none.
    """

    name: str
    found: tuple[int, ...] | None
    expected: tuple[int, ...] | None


@dataclass(frozen=True)
class Ranked:
    """A builder that may have made the weights.

    Attributes:
        builder: `package:function`.
        arguments: its arguments, as in a manifest.
        edits: what makes its model the file's, as in a manifest; None where that cannot be said.
        releases: the first and the last release of its package that gave these tensors.
        shared: tensors with the same name and shape.
        missing: how many tensors the file lacks or has in another shape.
        extra: how many tensors the builder lacks or has in another shape.
        differing: some of those.
        by: "names", or "shapes" where no name is known and only kernels were compared.
    """

    builder: str
    arguments: Mapping[str, Any]
    edits: tuple[Mapping[str, Any], ...] | None
    releases: tuple[str, str]
    shared: int
    missing: int
    extra: int
    differing: tuple[Mismatch, ...]
    by: str


@dataclass(frozen=True, kw_only=True)
class Identification:
    """What a weights file is.

    Attributes:
        path: the file, or the bundle.
        verdict: the answer in one line.
        format: name of the format; "bundle" for a bundle.
        container: its variant and version, in words.
        wrapper: what wrappers put in front of every name, such as "module."; mostly empty.
        prefix: what was taken off in front of every name to find the model, wrappers included.
        tensors: how many tensors; ties count once.
        parameters: how many numbers in tensors that are no buffers.
        buffers: how many numbers in BatchNorm's statistics, and other buffers where known.
        size: bytes of all tensors.
        dtypes: how much is of each dtype, the most bytes first.
        ties: second names of tensors, each to the first.
        optimizer: names of what looks like optimizer state.
        notes: what else there is to know, a sentence each.
        builder: `module:function`; None where nothing is claimed.
        arguments: the builder's, as in a manifest.
        edits: what the model differs in from the builder's, as in a manifest.
        candidates: the builders that come closest, best first.
        findings: what stands in the way of certainty.
        names: of each tensor of the model, its name in the file; empty where nothing is claimed.
        is_whole: whether a file holds the network itself beside its weights.
    """

    path: str
    verdict: str
    format: str
    container: str
    wrapper: str = ""
    prefix: str = ""
    tensors: int
    parameters: int
    buffers: int
    size: int
    dtypes: tuple[DTypeCount, ...]
    ties: Mapping[str, str]
    optimizer: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    builder: str | None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    edits: tuple[Mapping[str, Any], ...] = ()
    candidates: tuple[Ranked, ...] = ()
    findings: tuple[Finding, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    is_whole: bool = False


def identify_file(path: StrPath, *, key: str | None = None, timm: bool = False) -> Identification:
    """Return what the weights file at `path` is.

    Raises:
        PersistlibError: see `persistlib.identify`.
    """
    from persistlib.sources import open_file

    with open_file(path, key=key) as reader:
        if not timm:
            return identify_checkpoint(os.fspath(path), reader, zoo_forms.forms())
        from persistlib.identification.timm_zoo import timm_forms

        shapes = {name: shape for name, shape in _shapes(reader).items() if not is_optimizer(name)}
        known = (*zoo_forms.forms(), *timm_forms(shapes))
        return identify_checkpoint(os.fspath(path), reader, known)


def identify_checkpoint(
    path: str, reader: CheckpointReader, known: Iterable[Form]
) -> Identification:
    """Return what an open checkpoint is, told by the models that are known."""
    shapes = _shapes(reader)
    model = [name for name in shapes if not is_optimizer(name)] or [*shapes]
    found = _found(model, shapes, [*known])
    best = found[0] if found and found[0].is_claimed else None
    others = getattr(reader, "others", ())
    kept = set(model)
    # Of a known model the prefix is looked through, so nobody has to take it off.
    spare = {wrapper_note(wrapper_of((*reader.tensors, *reader.aliases)))} if best else set()
    optimizer = (*(n for n in shapes if n not in kept), *(n for n in others if is_optimizer(n)))
    return Identification(
        path=path,
        verdict=_verdict(found),
        format=reader.format,
        container=reader.container,
        wrapper=wrapper_of(model),
        prefix=best.view.prefix if best else "",
        **_counts(reader.entries),
        ties=dict(reader.aliases),
        optimizer=optimizer,
        notes=(*(note for note in reader.notes if note not in spare), *_notes(found[:1])),
        builder=best.form.builder if best else None,
        arguments=best.form.arguments if best else {},
        edits=best.edits or () if best else (),
        candidates=tuple(_ranked(match, shapes) for match in found[: _told(found)]),
        findings=_twins(found) if best else (),
        names=best.view.names if best else {},
        is_whole=any(loss.startswith("graph ") for loss in reader.losses),
    )


def identify_bundle(bundle: Bundle) -> Identification:
    """Return what a bundle's manifest says that it is."""
    manifest = bundle.manifest
    from persistlib.dtypes import DType

    tensors = [t for t in manifest.weights.tensors if t.name not in manifest.weights.aliases]
    entries = tuple(Entry(t.name, DType[t.dtype], t.shape) for t in tensors)
    counts = _counts(entries, {t.name for t in tensors if t.role == "buffer"})
    recipe = manifest.architecture
    edits = tuple(edit.model_dump(mode="json", exclude_defaults=True) for edit in recipe.edits)
    changes = f", {_counted(len(edits), 'edit')}" if edits else ""
    return Identification(
        path=str(bundle.path),
        verdict=f"a bundle of {_title(recipe.builder, recipe.arguments)}{changes}",
        format="bundle",
        container=f"manifest {manifest.manifest_version}",
        **counts,
        ties=dict(manifest.weights.aliases),
        notes=("the manifest says so; nothing had to be found out",),
        builder=recipe.builder,
        arguments=dict(recipe.arguments),
        edits=edits,
        names={entry.name: entry.name for entry in entries},
    )


def _shapes(reader: CheckpointReader) -> dict[str, tuple[int, ...]]:
    """Return the shape of each name of a checkpoint, second names among them."""
    shapes = {entry.name: entry.shape for entry in reader.entries}
    return shapes | {alias: shapes[name] for alias, name in reader.aliases.items()}


def _counts(entries: Iterable[Entry], buffers: Iterable[str] | None = None) -> dict[str, Any]:
    known = None if buffers is None else set(buffers)
    tensors: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    numbers = [0, 0]
    for entry in entries:
        tensors[entry.dtype.name] += 1
        sizes[entry.dtype.name] += entry.nbytes
        is_buffer = entry.name.endswith(_BUFFERS) if known is None else entry.name in known
        numbers[is_buffer] += math.prod(entry.shape)
    order = sorted(tensors, key=lambda name: (-sizes[name], name))
    return {
        "tensors": tensors.total(),
        "parameters": numbers[0],
        "buffers": numbers[1],
        "size": sizes.total(),
        "dtypes": tuple(DTypeCount(name, tensors[name], sizes[name]) for name in order),
    }


def _found(
    model: list[str], shapes: Mapping[str, tuple[int, ...]], known: list[Form]
) -> list[Match]:
    found = matches(known, views(model), shapes)
    if found or not model:
        return found
    plain = View({name: name for name in model}, "", 0, ())
    return by_shapes(known, plain, {name: shapes[name] for name in model})


def _told(found: list[Match]) -> int:
    """Return how many candidates are told: the first few, and all that fit like the best."""
    return max(_CANDIDATES, sum(match.fit == found[0].fit for match in found)) if found else 0


def _ranked(match: Match, shapes: Mapping[str, tuple[int, ...]]) -> Ranked:
    names = sorted({*match.missing, *match.extra})[:_DIFFERING]
    expected = {name: shape for name, _, shape in match.form.rows}
    return Ranked(
        match.form.builder,
        match.form.arguments,
        match.edits,
        (match.form.first, match.form.last),
        match.shared,
        len(match.missing),
        len(match.extra),
        tuple(
            Mismatch(name, shapes.get(match.view.names.get(name, "")), expected.get(name))
            for name in names
            if match.by == "names"
        ),
        match.by,
    )


def _title(builder: str, arguments: Mapping[str, Any]) -> str:
    package, _, function = builder.partition(":")
    given = ", ".join(f"{name}={value}" for name, value in arguments.items())
    return f"{function} of {package}" + (f" with {given}" if given else "")


def _verdict(found: list[Match]) -> str:
    if not found:
        return "no model that is known has such tensors"
    best = found[0]
    title = _title(best.form.builder, best.form.arguments)
    if best.by == "shapes":
        return f"not claimed: foreign names, but the kernels of {title}"
    if best.view.beside:
        beside = _counted(len(best.view.beside), "tensor")
        return f"not claimed: {beside} beside {best.view.prefix!r}, which is like {title}"
    if best.edits is None:
        total = max(len(best.form.rows), best.shared + len(best.extra))
        return f"not claimed: {best.shared} of {total} tensors are those of {title}"
    return ", ".join([title, *_changes(best)])


def _changes(match: Match) -> Iterable[str]:
    """Yield what the edits change, in words, each thing once."""
    texts = []
    for kind, path, found, usual in match.changes:
        if kind == "classes":
            texts.append(f"{_counted(found, 'class')} instead of {usual:,}")
        elif kind == "channels":
            texts.append(f"{_counted(found, 'input channel')} instead of {usual:,}")
        elif kind == "removed":
            texts.append(f"without {path}")
        else:
            texts.append(f"{path} {'with' if found else 'without'} bias")
    return dict.fromkeys(texts)


def _notes(found: Iterable[Match]) -> Iterable[str]:
    """Yield how the best match was found."""
    for match in found:
        if match.by == "shapes":
            yield "no tensor's name is known; kernels are compared, in any order of their axes"
            return
        if match.view.prefix and not match.view.beside:
            yield f"every name begins with {match.view.prefix!r}, which was looked through"
        elif match.view.prefix:
            yield f"most names begin with {match.view.prefix!r}, which was looked through"
        if match.view.beside:
            beside = ", ".join(match.view.beside[:_DIFFERING])
            yield f"beside it, and no part of it: {beside}"
        if match.view.old:
            yield f"{_counted(match.view.old, 'name')} of an older torchvision, told by today's"
        if match.counters:
            yield (
                f"no {COUNTER[1:]}: written before 2018, or with BatchNorm that was frozen for good"
            )


def _counted(count: int, noun: str) -> str:
    plural = "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{'' if count == 1 else plural}"


def _twins(found: list[Match]) -> tuple[Finding, ...]:
    """Return the finding that names the builders that fit as well as the best one."""
    best, *others = (match.form.builder for match in found if match.fit == found[0].fit)
    return (
        ()
        if not others
        else (
            finding(
                Code.TWINS,
                best,
                f"names and shapes cannot tell it from {', '.join(others)}",
                "the plainest is taken; persistlib.build another where you know better",
                severity=Severity.NOTE,
            ),
        )
    )
