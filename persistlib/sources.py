"""Opening whatever holds weights: a bundle, or a file of any format, told by its content."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeVar

from persistlib import formats
from persistlib.bundle import reading
from persistlib.checkpoint import CheckpointReader, Entry, MemoryCheckpoint
from persistlib.dtypes import DType
from persistlib.errors import Code, error
from persistlib.selection import wrapper_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from persistlib.bundle import Bundle
    from persistlib.files import StrPath

_T = TypeVar("_T")
BUNDLE = "bundle"
_INDEX = ".index.json"  # behind the ending of the shards


def is_folder(source: StrPath) -> bool:
    """Return whether a source is a bundle rather than a file, or a checkpoint in pieces."""
    if os.path.isdir(source):
        return not formats.is_pieces(source)
    return not os.path.exists(source)


def bundle_checkpoint(bundle: Bundle) -> CheckpointReader:
    """Return the verified weights of a bundle, in the order of its state_dict.

    Raises:
        IntegrityError: a byte differs from the manifest.
    """
    weights = bundle.manifest.weights
    entries = tuple(Entry(t.name, DType[t.dtype], t.shape) for t in weights.tensors)
    made = MemoryCheckpoint(entries, bundle.tensors(), dict(weights.aliases), {"format": "pt"})
    made.format, made.container = BUNDLE, f"manifest {bundle.manifest.manifest_version}"
    return made


def wrapper_note(prefix: str) -> str:
    """Return what a reader notes of names that all have what a wrapper put before them."""
    return f"every name begins with {prefix}: --rename '{prefix}*=*' takes it off"


def open_file(source: StrPath, **options: object) -> CheckpointReader:
    """Return a reader of a weights file, of the format that its content shows.

    Args:
        source: the file.
        **options: those of its format (`formats.Format.reads_with`); None counts as not given.

    Raises:
        UsageError: the format has no such option.
        FormatError: the file is not well-formed.
        TargetError: it cannot be read.
    """
    row = formats.by_content(source)
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        if name not in row.reads_with:
            fits = ", ".join(r.title for r in formats.FORMATS.values() if name in r.reads_with)
            reason = f"means nothing for {row.title}, only for {fits}"
            raise error(Code.USAGE, f"{name}=", reason, "leave it out")
    reader: CheckpointReader = row.module().open_file(source, **given)
    if prefix := wrapper_of((*reader.tensors, *reader.aliases)):
        reader.notes = (*reader.notes, wrapper_note(prefix))
    suffix = formats.ending(os.fspath(source).removesuffix(_INDEX))
    known = formats.FORMATS[reader.format].suffixes
    if suffix and suffix not in known and not os.path.isdir(source):
        note = f"the name ends in {suffix}, the content is {formats.FORMATS[reader.format].title}"
        reader.notes = (*reader.notes, note)
    return reader


def with_checkpoint(
    source: StrPath, work: Callable[[CheckpointReader], _T], **options: object
) -> _T:
    """Return what `work` makes of the weights in a bundle or a file, closed afterwards.

    Raises:
        PersistlibError: as `open_file`, as `bundle.reading`, and as `work`.
    """
    if is_folder(source):
        if given := [name for name, value in options.items() if value is not None]:
            raise error(Code.USAGE, f"{given[0]}=", "means nothing for a bundle", "leave it out")
        return reading(source, lambda bundle: work(bundle_checkpoint(bundle)))
    with open_file(source, **options) as checkpoint:
        return work(checkpoint)
