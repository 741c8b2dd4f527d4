"""The verdict on whatever stands at a path: a bundle with its graphs, or a bare file.

Law: no value of a weight is read. Of a bundle the manifest is read, and of each graph file its
structure; of a bare file its header, or its structure.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from persistlib.bundle import reading
from persistlib.compat.graph_reading import read_structure, structure_of
from persistlib.compat.graphs import graph_findings, runtime_of
from persistlib.compat.manifests import Report, check_manifest, verdict_of
from persistlib.errors import Severity
from persistlib.formats import by_content
from persistlib.sources import is_folder, open_file

if TYPE_CHECKING:
    from persistlib.bundle import Bundle
    from persistlib.compat.manifests import Target
    from persistlib.files import StrPath

# A graph up to this size is compared with its digest before it is walked: some milliseconds.
_COMPARED = 64 << 20


def check_source(source: StrPath, target: Target) -> Report:
    """Return the verdict on a bundle, an ONNX file or a weights file.

    Raises:
        TargetError: nothing stands there, or no bundle.
        UsageError: the target's version of ONNX Runtime is none.
        PersistlibError: the file is not well-formed.
    """
    if is_folder(source) or not os.path.isfile(source):
        return reading(source, lambda bundle: check_bundle(bundle, target))
    if by_content(source).name == "onnx":
        runtime = runtime_of(target)
        model = read_structure(source)
        return verdict_of(graph_findings(model, runtime, str(source)) if runtime else ())
    with open_file(source):
        return verdict_of(())


def check_bundle(bundle: Bundle, target: Target) -> Report:
    """Return the verdict on an open bundle: its manifest and each of its graphs.

    A graph that the runtime refuses is an error where the target names a runtime and no torch; else
    the model can still be used in torch, and it is a warning.

    Raises:
        IntegrityError: a graph file is missing, or differs from the manifest.
        FormatError: a graph is not well-formed.
    """
    manifest = bundle.manifest
    report = check_manifest(manifest, target)
    runtime = runtime_of(target) if manifest.graphs else None
    if runtime is None:
        return report
    has_torch = target.version("torch") is not None
    findings = [*report.findings]
    for place, graph in enumerate(manifest.graphs):
        entry = graph.files[0]
        data = bundle.whole(entry) if entry.size <= _COMPARED else bundle.mapped(entry)
        model = structure_of(data, bundle.place(entry))
        decides = place == 0 and not has_torch
        severity = Severity.ERROR if decides else Severity.WARNING
        findings += graph_findings(model, runtime, bundle.path, severity)
    return verdict_of(dict.fromkeys(findings), upgraded=bool(manifest.upgraded_from))
