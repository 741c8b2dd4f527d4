"""The verdict on whatever stands at a path: a bundle with its graphs, or a bare file.

Law: no value of a weight is read. Of a bundle the manifest is read, and of each graph file its
structure; of a bare file its header, or its structure.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from persistlib.bundle import reading
from persistlib.compat.facts import Facts
from persistlib.compat.graph_reading import read_structure, structure_of
from persistlib.compat.judging import findings_of
from persistlib.compat.verdicts import verdict_of
from persistlib.errors import PersistlibError, Severity
from persistlib.formats import by_content
from persistlib.graph_notes import MODEL
from persistlib.sources import is_folder, open_file

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    import onnx

    from persistlib.bundle import Bundle
    from persistlib.compat.targets import Target
    from persistlib.compat.verdicts import Report
    from persistlib.errors import Finding
    from persistlib.files import StrPath
    from persistlib.licenses import Pattern
    from persistlib.model_notes import ModelNote

# A graph up to this size is compared with its digest before it is walked: some milliseconds.
_COMPARED = 64 << 20


def check_source(
    source: StrPath,
    target: Target,
    *,
    forbidden: tuple[Pattern, ...] = (),
    trusted: Collection[str] | None = None,
) -> Report:
    """Return the verdict on a bundle, an ONNX file or a weights file.

    Args:
        source: its path.
        target: where it shall load.
        forbidden: licences that are not to be used.
        trusted: packages that may be imported to build a bundle's recipe; None builds nothing.

    Raises:
        TargetError: nothing stands there, or no bundle.
        UsageError: the target's version of ONNX Runtime is none.
        PersistlibError: the file is not well-formed.
    """
    if is_folder(source) or not os.path.isfile(source):
        return reading(source, lambda bundle: check_bundle(bundle, target, forbidden, trusted))
    facts = replace(_file_facts(source), forbidden=forbidden)
    return verdict_of(findings_of(facts, target))


def _file_facts(source: StrPath) -> Facts:
    path, name = os.fspath(source), by_content(source).name
    if name == "onnx":
        model = read_structure(path)
        note = _note(model, path)
        return Facts(source=path, format=name, note=note, structures=lambda: (model,))
    with open_file(source) as file:
        return Facts(source=path, format=name, entries=file.entries)


def _note(model: onnx.ModelProto, path: str) -> ModelNote | None:
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    if MODEL not in metadata:
        return None
    from persistlib import model_notes  # with pydantic, which takes longer than all the rest

    return model_notes.parse(metadata, path)


def check_bundle(
    bundle: Bundle,
    target: Target,
    forbidden: tuple[Pattern, ...] = (),
    trusted: Collection[str] | None = None,
) -> Report:
    """Return the verdict on an open bundle: its manifest and each of its graphs.

    Raises:
        IntegrityError: a graph file is missing, or differs from the manifest.
        FormatError: a graph is not well-formed.
    """
    manifest = bundle.manifest
    facts = Facts(
        source=bundle.path,
        manifest=manifest,
        structures=lambda: _structures(bundle),
        forbidden=forbidden,
        trusted=trusted,
    )
    found = (*findings_of(facts, target), *_file_findings(bundle), *_base_findings(bundle))
    return verdict_of(found, upgraded=bool(manifest.upgraded_from))


def _file_findings(bundle: Bundle) -> Iterator[Finding]:
    """Yield which files are gone or cut short; with a graph, the weights can be done without."""
    needed = () if bundle.manifest.graphs else bundle.manifest.weights.files
    for entry in bundle.manifest.verified_files():
        severity = Severity.ERROR if entry in needed else Severity.WARNING
        yield from _faults(partial(bundle.expect, entry), severity)


def _base_findings(bundle: Bundle) -> Iterator[Finding]:
    """Yield that the bundle's base is not to be had; with a graph of its own it still runs."""
    if bundle.manifest.weights.base is not None:
        severity = Severity.WARNING if bundle.manifest.graphs else Severity.ERROR
        yield from _faults(bundle.base, severity)


def _faults(look: Callable[[], object], severity: Severity) -> list[Finding]:
    """Return what is found wrong by looking, as gravely as is said."""
    try:
        look()
    except PersistlibError as fault:
        return [replace(found, severity=severity.value) for found in fault.findings]
    return []


def _structures(bundle: Bundle) -> Iterator[onnx.ModelProto]:
    for graph in bundle.manifest.graphs:
        entry = graph.files[0]
        data = bundle.whole(entry) if entry.size <= _COMPARED else bundle.mapped(entry)
        yield structure_of(data, bundle.place(entry))
