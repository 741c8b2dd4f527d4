"""Graphs derived from a bundle's graph: as a file, or beside it in a bundle.

Law: a bundle that is given a derived graph has the `bundle_id`, the weights and every other file
that it had; nothing of it is read without being compared.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from persistlib import publish
from persistlib.bundle import GRAPH
from persistlib.canonical import SIZE_LIMIT
from persistlib.conversion import ToldGraph
from persistlib.dtypes import DType
from persistlib.errors import Code, PersistlibError, error
from persistlib.manifest import document
from persistlib.manifest.schema import Graph, Interface
from persistlib.materializing import whole_weights
from persistlib.parents import require_unneeded
from persistlib.quantization.deriving import Derived, Source, derive
from persistlib.quantization.kernels import kernels_of
from persistlib.quantization.noting import RELATION
from persistlib.quantization.parts import dtype_of, take_apart
from persistlib.runtime.graph_files import read_graph_file
from persistlib.verification import require_intact
from persistlib.writing import write_file

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Buffer

    from persistlib.bundle import Bundle
    from persistlib.conversion import ConversionReport
    from persistlib.files import Folder, StrPath
    from persistlib.graph_wishes import GraphWishes
    from persistlib.manifest.schema import Manifest

_INPUT = "input."
_CARD_LIMIT = 1 << 26


def derived_from(bundle: Bundle, files: Mapping[str, Buffer], wishes: GraphWishes) -> Derived:
    """Return the graph that is wished for, derived from a graph of a bundle's model.

    Args:
        bundle: which tells examples, preprocessing and class names.
        files: the graph: the model first, then its external data.
        wishes: `dtype`, or `quantize` and `calibration`.

    Raises:
        PersistlibError: as `deriving.derive`.
    """
    source = Source(
        files=files,
        precision=_precision(bundle.manifest),
        shown=stored_inputs(bundle),
        interface=bundle.manifest.interface,
        location=bundle.path,
    )
    return _derived(source, wishes)


def derived_from_file(path: StrPath, wishes: GraphWishes) -> Derived:
    """Return the graph that is wished for, derived from one in an ONNX file.

    Raises:
        PersistlibError: as `runtime.graph_files.read_graph_file` and `deriving.derive`.
    """
    file = read_graph_file(path)
    files = {GRAPH: file.model, **file.external}
    dtypes = (dtype_of(t) for t in take_apart(files, path).graph.initializer)
    floats = [dtype for dtype in dtypes if dtype.is_float]
    source = Source(
        files=files,
        precision=min(floats, key=lambda dtype: dtype.itemsize, default=DType.F32).name,
        interface=file.interface or Interface(),
        location=os.fspath(path),
    )
    return _derived(source, wishes)


def _derived(source: Source, wishes: GraphWishes) -> Derived:
    return derive(
        source,
        dtype=wishes.dtype,
        quantize=wishes.quantize,
        calibration=wishes.calibration,
        kernels=kernels_of(wishes),
    )


def add_graph(
    bundle: Bundle, destination: StrPath, wishes: GraphWishes, *, overwrite: bool
) -> ConversionReport:
    """Write a bundle with one more graph, derived from the one that it has.

    A graph of the same precision is replaced.

    Args:
        bundle: what is written again.
        destination: the folder; the bundle's own too, where it may be overwritten.
        wishes: as `derived_from`.
        overwrite: whether a bundle that stands there is replaced.

    Raises:
        PersistlibError: the bundle has no graph or differs from its manifest, no graph can be
            derived, or writing failed; what stood there stands unchanged.
    """
    manifest = bundle.manifest
    first = next((graph for graph in manifest.graphs if graph.derived_from is None), None)
    if first is None:
        remedy = "save it with onnx=True"
        raise error(Code.GRAPH_ABSENT, bundle.path, "it was saved without a graph", remedy)
    require_intact(bundle)
    if overwrite and os.path.realpath(destination) != os.path.realpath(bundle.path):
        require_unneeded(destination)
    derived = derived_from(bundle, {e.path: bundle.whole(e) for e in first.files}, wishes)
    with publish.folder(destination, overwrite=overwrite, foreign=_foreign) as folder:
        kept = tuple(g for g in manifest.graphs if g.precision != derived.precision or g is first)
        dropped = {e.path for g in manifest.graphs if g not in kept for e in g.files}
        index = (manifest.weights.index,) if manifest.weights.index else ()
        own = {entry.path for entry in (*index, *manifest.weights.files)}
        weights = whole_weights(folder, bundle)
        for entry in manifest.verified_files():
            if entry.path not in dropped | own:
                with folder.create(entry.path) as out:
                    out.write(bundle.mapped(entry))
        for name in manifest.documents:
            with folder.create(name) as out:
                out.write(bundle.folder.read(name, limit=_CARD_LIMIT))
        written = tuple(write_file(folder, file.name, file.data) for file in derived.files)
        graph = Graph(
            files=written,
            ir_version=derived.ir_version,
            opsets=dict(derived.opsets),
            weights_identity=manifest.weights.identity,
            precision=derived.precision,
            derived_from=derived.source,
            proof=derived.proof,
        )
        changes = {"graphs": (*kept, graph), "weights": weights}
        data = document.write(document.seal(manifest.model_copy(update=changes)))
        document.read(data)  # what no reader would accept is not published
        with folder.create(document.NAME) as out:
            out.write(data)
    way = (bundle.path, destination, "bundle")
    return told(derived).report(weights.tensors, weights.aliases, weights.identity, way)


def told(derived: Derived) -> ToldGraph:
    """Return what a report says of a derived graph."""
    before, after = derived.sizes
    notes = [
        f"{RELATION} the F32 graph {derived.source[:12]}, in {derived.precision}",
        f"{after / before:.0%} of its size: {before:,} bytes became {after:,}",
        *derived.remarks,
    ]
    if derived.seconds is not None:
        slow, fast = (1000 * seconds for seconds in derived.seconds)
        took = f"took {slow:,.3f} ms, and takes {fast:,.3f} ms now, here"
        rows = "1 row" if derived.rows == 1 else f"{derived.rows} rows"
        notes.append(f"a run of {rows} {took}")
    for name, row in sorted(derived.measured.items()):
        words = ("cosine", "scaled_cosine", "top1")
        parts = [f"{word.replace('_', ' ')} {row[word]:.4g}" for word in words if word in row]
        if "accuracy" in row:
            parts.append("accuracy {:.4g}, was {:.4g}".format(*reversed(row["accuracy"])))
        notes.append(f"{name}: differs by {row['error']:.2g} of its spread; " + ", ".join(parts))
    return ToldGraph(derived.proof, derived.ir_version, derived.opsets, tuple(notes))


def stored_inputs(bundle: Bundle) -> dict[str, NDArray[np.generic]]:
    """Return a bundle's example inputs by name; nothing where it has none.

    Raises:
        IntegrityError: they differ from the manifest.
    """
    examples = bundle.manifest.examples
    if examples is None:
        return {}
    reader = bundle.reader(examples.files[0])
    return {
        entry.name.removeprefix(_INPUT): reader.read(entry.name)
        for entry in reader.entries
        if entry.name.startswith(_INPUT)
    }


def _precision(manifest: Manifest) -> str:
    """Return the narrowest floating-point dtype of the weights."""
    floats = [d for r in manifest.weights.tensors if (d := DType[r.dtype]).is_float]
    return min(floats, key=lambda dtype: dtype.itemsize, default=DType.F32).name


def _foreign(folder: Folder) -> list[str]:
    """Return the names in an old bundle that are not persistlib's to delete."""
    names = set(folder.names()) - {document.NAME}
    try:
        manifest = document.read(folder.read(document.NAME, limit=SIZE_LIMIT))
    except PersistlibError:
        return sorted(names)
    own = {entry.path for entry in manifest.verified_files()} | {*manifest.documents}
    return sorted(names - own)
