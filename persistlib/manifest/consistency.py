"""Where two fields of a manifest cannot both be true.

The schema sees one field at a time; what is said here holds between them, so that nobody who reads
a manifest meets an index without its file or a tensor larger than the file it lies in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from persistlib.dtypes import DType
from persistlib.errors import Code, Finding, finding
from persistlib.manifest.identity import bundle_id, identity_of_weights

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from persistlib.manifest.schema import (
        FileEntry,
        Manifest,
        TensorRecord,
        UnsavedTensor,
    )

NAME = "manifest.json"
REFETCH = "fetch the bundle again from where it came"
_RANK_LIMIT = 64  # numpy's own
_HEADER = 10  # bytes of the shortest safetensors header: its length, and {}


def contradictions(manifest: Manifest, location: object) -> Iterator[Finding]:
    """Yield every place where two fields of the manifest cannot both be true."""
    faults = [*_name_faults(manifest), *_file_faults(manifest)]
    faults += [*_tensor_faults(manifest), *_layout_faults(manifest), *_recipe_faults(manifest)]
    faults += _base_faults(manifest)
    for field, reason in faults:
        yield finding(Code.MANIFEST_FIELD, f"{location}: {field}", reason, REFETCH)
    if faults:
        return
    derived = {
        "weights.identity": (manifest.weights.identity, identity_of_weights(manifest.weights)),
        "bundle_id": (manifest.bundle_id, bundle_id(manifest)),
    }
    for field, (recorded, found) in derived.items():
        if recorded != found:
            reason = f"says {recorded}, its parts make {found}"
            yield finding(Code.MANIFEST_IDENTITY, f"{location}: {field}", reason, REFETCH)


def _name_faults(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield the tensor names that stand twice, or for what is not there."""
    weights, state = manifest.weights, manifest.state
    names = {record.name for record in weights.tensors}
    if len(names) != len(weights.tensors):
        yield "weights.tensors", "a name stands twice"
    for alias, name in weights.aliases.items():
        if alias in names or name not in names:
            yield f"weights.aliases.{alias}", f"is no second name of the tensor {name}"
    for name in state.unsaved_buffers:
        if name in names or name in weights.aliases:
            yield f"state.unsaved_buffers.{name}", "is the name of a saved tensor"


def _file_faults(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield the file entries that cannot all stand in one folder, or lack their digest."""
    files = manifest.verified_files()
    names = [NAME, *(entry.path for entry in files), *manifest.documents]
    if len({name.casefold() for name in names}) != len(names):
        yield "files", "a file name stands twice, or is the manifest's own"
    for entry in files:
        if (entry.header_blake3 is None) == (entry.blake3 is None):
            yield entry.path, "needs one digest, of its header or of all its bytes"


def _tensor_faults(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield the tensors that lie in no file, or do not fit into theirs."""
    weights, state = manifest.weights, manifest.state
    stored = [(f"weights.tensors.{i}", tensor) for i, tensor in enumerate(weights.tensors)]
    yield from _misplaced("weights.files", weights.files, stored)
    unsaved = [
        (f"state.unsaved_buffers.{n}", tensor) for n, tensor in state.unsaved_buffers.items()
    ]
    yield from _misplaced("state.files", state.files, unsaved)


def _base_faults(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield the tensors that no file holds where there is no base, and a base without any."""
    weights = manifest.weights
    lent = [index for index, record in enumerate(weights.tensors) if record.file is None]
    if weights.base is None:
        for index in lent:
            yield f"weights.tensors.{index}.file", "is null, and there is no base"
    elif not lent:
        yield "weights.base", "every tensor is stored here"


def _misplaced(
    field: str,
    files: Sequence[FileEntry],
    tensors: Sequence[tuple[str, TensorRecord | UnsavedTensor]],
) -> Iterator[tuple[str, str]]:
    needed = [_HEADER] * len(files)
    for place, tensor in tensors:
        if len(tensor.shape) > _RANK_LIMIT:
            yield f"{place}.shape", f"has more than {_RANK_LIMIT} dimensions"
        elif tensor.file is not None and tensor.file >= len(files):
            yield f"{place}.file", "there is no such file"
        elif tensor.file is not None:
            needed[tensor.file] += DType[tensor.dtype].nbytes(tensor.shape)
    for index, (entry, least) in enumerate(zip(files, needed, strict=True)):
        if entry.size < least:
            yield f"{field}.{index}.size", f"{entry.size}, its tensors need at least {least}"


def _layout_faults(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield the strides that do not lay a tensor out in its own bytes, each once."""
    weights, state = manifest.weights, manifest.state
    shapes = {record.name: record.shape for record in weights.tensors}
    shapes |= {alias: shapes[name] for alias, name in weights.aliases.items() if name in shapes}
    shapes |= {name: tensor.shape for name, tensor in state.unsaved_buffers.items()}
    for name, strides in state.strides.items():
        shape = shapes.get(name, ())
        if len(strides) != len(shape) or not strides:
            yield f"state.strides.{name}", "does not go with the tensor's shape"
        elif not is_dense(shape, strides):
            yield f"state.strides.{name}", "leaves or repeats bytes of the tensor"


def is_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Return whether strides lay a tensor of a shape out in its own bytes, each once."""
    if 0 in shape:
        return True
    step = 1
    for stride, extent in sorted(zip(strides, shape, strict=True)):
        if extent > 1 and stride != step:
            return False
        step *= extent
    return True


def _recipe_faults(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield the edits that lack what they are to be carried out with."""
    for index, edit in enumerate(manifest.architecture.edits):
        if (edit.builder is not None) != (edit.op in {"replace", "insert", "parametrize"}):
            yield f"architecture.edits.{index}.builder", f"does not go with {edit.op}"
        needed = edit.op in {"set", "parametrize"}
        if edit.op != "remove" and (edit.attribute is not None) != needed:
            yield f"architecture.edits.{index}.attribute", f"does not go with {edit.op}"
