"""What a derived graph notes of its model: what the source noted, as far as it still holds."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING

import onnx

from persistlib import graph_notes, model_notes
from persistlib.checkpoint import identity
from persistlib.digests import TensorRow, digest, weights_identity
from persistlib.dtypes import DType
from persistlib.formats import FORMATS
from persistlib.manifest.schema import Lineage
from persistlib.quantization.parts import Parts, assemble, dtype_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Buffer

RELATION = "derived-from"


def noted(
    parts: Parts, source: Mapping[str, Buffer], *, holds_state: bool, where: str
) -> dict[str, str]:
    """Put the source's notes into a derived graph, and return them.

    Args:
        parts: the derived graph.
        source: the files that it was derived from.
        holds_state: whether the state stands in it, cast; else what was noted of it is left out.
        where: what to name in an error.

    Raises:
        FormatError: a note of the source is malformed.
    """
    model = onnx.ModelProto.FromString(bytes(memoryview(next(iter(source.values())))))
    metadata = {item.key: item.value for item in model.metadata_props}
    kept = dict(metadata)
    if not holds_state:
        for key in (graph_notes.STATE, graph_notes.ALIASES, graph_notes.COMPLEX):
            kept.pop(key, None)
        onnx.helper.set_model_props(parts.proto, dict(sorted(kept.items())))
    note = model_notes.parse(metadata, where)
    if note is not None:
        origin = Lineage(relation=RELATION, id=note.weights)
        weights = (
            _identity(parts, graph_notes.parse(metadata, where)) if holds_state else _read(parts)
        )
        changed = {"lineage": (origin, *note.lineage), "weights": weights}
        kept |= model_notes.render(note.model_copy(update=changed))
    onnx.helper.set_model_props(parts.proto, dict(sorted(kept.items())))
    return kept


def _read(parts: Parts) -> str:
    """Return the identity of the weights that our own reader finds in a graph."""
    with tempfile.TemporaryDirectory(prefix="persistlib-") as folder:
        bare = Parts(onnx.ModelProto.FromString(parts.proto.SerializeToString()), parts.data)
        del bare.proto.metadata_props[:]
        for name, data in assemble(bare, _NAME):
            with open(os.path.join(folder, name), "wb") as file:
                file.write(data)
        with FORMATS["onnx"].module().open_file(os.path.join(folder, _NAME)) as reader:
            return identity(reader)


_NAME = "derived.onnx"


def _identity(parts: Parts, notes: graph_notes.Notes) -> str:
    """Return the weights identity of the state as it stands in a graph."""
    tensors = parts.initializers()
    rows: list[TensorRow] = []
    for name in notes.state or ():
        tensor = tensors[notes.aliases.get(name, name)]
        dtype, shape = dtype_of(tensor), tuple(tensor.dims)
        if name in notes.views:
            dtype, shape = DType.C64, shape[:-1]
        raw = parts.data.get(tensor.name)
        data = parts.array(tensor).tobytes() if raw is None else raw
        rows.append(TensorRow(name, dtype, shape, digest(data)))
    return weights_identity(rows)
