"""What a bundle is, from its manifest alone."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from persistlib.canonical import SIZE_LIMIT
from persistlib.compat import check_manifest, here
from persistlib.errors import IntegrityError
from persistlib.gap import open_folder
from persistlib.manifest import light
from persistlib.manifest.consistency import NAME

if TYPE_CHECKING:
    from persistlib.errors import Finding
    from persistlib.files import StrPath
    from persistlib.manifest.schema import Manifest


@dataclass(frozen=True)
class Summary:
    """What a bundle is, from its manifest.

    Attributes:
        path: the folder.
        manifest: its manifest.
        size: bytes of all files that the manifest vouches for, its own included.
        parameters: elements of all parameters.
        trainable: elements of those that train.
        findings: the compatibility check's.
    """

    path: str
    manifest: Manifest
    size: int
    parameters: int
    trainable: int
    findings: tuple[Finding, ...]


def summarize(path: str, manifest: Manifest, size: int) -> Summary:
    """Return the summary of the bundle at `path`, whose files have `size` bytes."""
    records = [record for record in manifest.weights.tensors if record.role == "parameter"]
    return Summary(
        path=path,
        manifest=manifest,
        size=size,
        parameters=sum(prod(record.shape) for record in records),
        trainable=sum(prod(record.shape) for record in records if not record.frozen),
        findings=check_manifest(manifest, here(), source=path).findings,
    )


def glance(path: StrPath) -> Summary | None:
    """Return what `persistlib.inspect` does in a third of the time, or None where it must be asked.

    The manifest then is one that pydantic would accept; it has its attributes, not its class.

    Raises:
        TargetError: nothing stands at `path`, or no folder.
    """
    with open_folder(path) as folder:
        try:
            data = folder.read(NAME, limit=SIZE_LIMIT)
        except IntegrityError:
            return None
        manifest = light.read(data)
        if manifest is None:
            return None
        size = len(data) + sum(entry.size for entry in manifest.verified_files())
        return summarize(folder.path, manifest, size)
