"""A delta made whole: every tensor stored, none referred to; no torch.

Laws: the `bundle_id`, every tensor's bits and every other file stay as they are; the weights file
is the one that `save` without a base would have written; a whole bundle stays as it is.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from persistlib import publish
from persistlib.bundle import SHARD_BYTES, WEIGHTS, reading
from persistlib.manifest import document
from persistlib.parents import require_unneeded
from persistlib.sources import bundle_checkpoint
from persistlib.upkeep import foreign_files
from persistlib.verification import require_intact
from persistlib.writing import write_tensors

if TYPE_CHECKING:
    from persistlib.bundle import Bundle
    from persistlib.files import StrPath
    from persistlib.manifest.schema import Manifest, Weights
    from persistlib.publish import NewFolder

_DOCUMENT_LIMIT = 64 << 20


def materialize(
    path: StrPath,
    destination: StrPath | None = None,
    *,
    base: StrPath | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Write a bundle with every tensor in it, and return its manifest.

    Args:
        path: the bundle, a delta as a rule.
        destination: where to; None for in its own place.
        base: where the bundle is that the delta stands on, when it is not beside it.
        overwrite: whether a bundle at `destination` is replaced; its own place always is.

    Raises:
        IntegrityError: the base is missing or another, or a byte differs.
        TargetError: the place cannot be written; what stood there stands unchanged.
    """
    is_own = destination is None or os.path.realpath(destination) == os.path.realpath(path)
    target = os.path.realpath(path) if destination is None else destination

    def work(bundle: Bundle) -> Manifest:
        if is_own and bundle.manifest.weights.base is None:
            return bundle.manifest
        return _written(bundle, target, overwrite=overwrite or is_own)

    return reading(path, work, base=base)


def whole_weights(folder: NewFolder, bundle: Bundle) -> Weights:
    """Write all tensors of a bundle into a new folder, and return what its manifest says of them.

    The files of a whole bundle are written as they are.

    Raises:
        IntegrityError: a byte differs from the manifest.
    """
    weights = bundle.manifest.weights
    if weights.base is None:
        for entry in (*((weights.index,) if weights.index else ()), *weights.files):
            _copy(folder, bundle.mapped(entry), entry.path)
        return weights
    files = (*weights.files, *bundle.base().manifest.weights.files)
    written = write_tensors(
        folder,
        bundle_checkpoint(bundle),
        stem=WEIGHTS,
        limit=SHARD_BYTES,
        sha256=any(entry.sha256 for entry in files),
    )
    records = [row.model_copy(update={"file": written.placed[row.name]}) for row in weights.tensors]
    changes = {"base": None, "index": written.index, "files": written.files}
    return weights.model_copy(update={**changes, "tensors": tuple(records)})


def _written(bundle: Bundle, target: StrPath, *, overwrite: bool) -> Manifest:
    require_intact(bundle)
    if overwrite:
        require_unneeded(target)
    manifest = bundle.manifest
    own = {entry.path for entry in manifest.weights.files}
    own |= {manifest.weights.index.path} if manifest.weights.index else set()
    with publish.folder(target, overwrite=overwrite, foreign=foreign_files) as folder:
        weights = whole_weights(folder, bundle)
        for entry in manifest.verified_files():
            if entry.path not in own:
                _copy(folder, bundle.mapped(entry), entry.path)
        present = set(bundle.folder.names())
        for name in manifest.documents:
            if name in present:
                _copy(folder, bundle.folder.read(name, limit=_DOCUMENT_LIMIT), name)
        made = document.seal(manifest.model_copy(update={"weights": weights}))
        data = document.write(made)
        document.read(data)  # what no reader would accept is not published
        _copy(folder, data, document.NAME)
    return made


def _copy(folder: NewFolder, data: bytes | memoryview, name: str) -> None:
    with folder.create(name) as out:
        out.write(data)
