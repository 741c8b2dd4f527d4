"""Comparing every byte of a bundle with its manifest; no torch."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from persistlib.compat import Target, standing
from persistlib.compat.facts import Facts
from persistlib.digests import digest_all
from persistlib.dtypes import DType
from persistlib.errors import Code, Finding, PersistlibError, Severity, error_of, finding
from persistlib.manifest import document
from persistlib.upkeep import is_left_copy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from persistlib.bundle import Bundle
    from persistlib.manifest.schema import FileEntry

_REFETCH = "fetch the bundle again from where it came"


class FileState(NamedTuple):
    """What was found of one file: its name, recorded size in bytes, and whether it is intact."""

    name: str
    size: int
    ok: bool


@dataclass(frozen=True)
class Verification:
    """What comparing every byte found.

    Attributes:
        files: every file that the manifest vouches for.
        findings: every fault, also of files that it does not list.
    """

    files: tuple[FileState, ...]
    findings: tuple[Finding, ...]


def verify_files(bundle: Bundle) -> Verification:
    """Compare every byte of every file with the manifest, and the folder with its list."""
    manifest = bundle.manifest
    states = [FileState(document.NAME, len(document.write(manifest)), ok=True)]
    findings: list[Finding] = []
    for entry in manifest.verified_files():
        faults = tuple(_file_findings(bundle, entry))
        states.append(FileState(entry.path, entry.size, ok=not faults))
        findings.extend(faults)
    if manifest.weights.base is not None:
        state, lent_faults = _base_state(bundle)
        states.append(state)
        findings.extend(lent_faults)
    findings += [*_listing_findings(bundle), *_status_notes(bundle)]
    return Verification(tuple(states), tuple(findings))


def require_intact(bundle: Bundle) -> None:
    """Refuse a bundle of which `verify_files` finds a fault.

    Raises:
        IntegrityError: it finds one.
    """
    findings = verify_files(bundle).findings
    if any(found.severity == Severity.ERROR.value for found in findings):
        raise error_of(findings)


def _base_state(bundle: Bundle) -> tuple[FileState, tuple[Finding, ...]]:
    """Return what was found of the tensors that a delta's base has, down to every wrong one."""
    base, lent = bundle.manifest.weights.base, bundle.lent()
    assert base is not None
    name = f"base {base.hint or base.identity}"
    size = sum(DType[row.dtype].nbytes(row.shape) for row in lent)
    try:
        whole = bundle.base()
        views = whole.lend({row.name: row for row in lent}, mapped=True, verify=True)
    except PersistlibError as fault:
        return FileState(name, size, ok=False), fault.findings
    faults = tuple(
        finding(
            Code.TENSOR_DIGEST,
            f"{whole.path}: {row.name}",
            "the tensor's bytes differ from the digest that the delta recorded",
            _REFETCH,
        )
        for row, found in zip(lent, digest_all([*views.values()]), strict=True)
        if found != row.blake3
    )
    return FileState(name, size, ok=not faults), faults


def _status_notes(bundle: Bundle) -> Iterator[Finding]:
    """Yield the model's status: what was withdrawn may be intact, and is verified as ever."""
    for found in standing.status(Facts(source=bundle.path, manifest=bundle.manifest), Target()):
        yield replace(found, severity=Severity.NOTE.value)


def _listing_findings(bundle: Bundle) -> Iterator[Finding]:
    manifest = bundle.manifest
    files = {document.NAME, *(entry.path for entry in manifest.verified_files())}
    present = set(bundle.folder.names())
    for name in sorted(set(manifest.documents) - present):
        yield finding(
            Code.DOCUMENT_MISSING,
            os.path.join(bundle.path, name),
            "the document is gone; the model is not affected",
            severity=Severity.WARNING,
        )
    for name in sorted(present - files - set(manifest.documents)):
        place, reason = os.path.join(bundle.path, name), "the manifest does not list it"
        if is_left_copy(bundle.folder, name):
            reason = "a copy of the manifest that an interrupted upgrade left"
            remedy = f"persistlib upgrade {bundle.path}"
            yield finding(Code.FILE_UNLISTED, place, reason, remedy, Severity.WARNING)
        else:
            yield finding(Code.FILE_UNLISTED, place, reason, "move it out of the bundle")


def _file_findings(bundle: Bundle, entry: FileEntry) -> Iterator[Finding]:
    """Yield what is wrong with one file, down to every wrong tensor."""
    try:
        if entry.blake3 is not None:
            data = bundle.whole(entry)
        else:
            data = bundle.mapped(entry)
            yield from _tensor_findings(bundle, entry)
    except PersistlibError as fault:
        yield from fault.findings
        return
    if entry.sha256 is not None and hashlib.sha256(data).hexdigest() != entry.sha256:
        yield finding(
            Code.FILE_DIGEST,
            os.path.join(bundle.path, entry.path),
            "its bytes differ from its SHA-256",
            _REFETCH,
        )


def _tensor_findings(bundle: Bundle, entry: FileEntry) -> Iterator[Finding]:
    views = bundle.views(entry)
    recorded = bundle.recorded(entry)
    for name in sorted(views.keys() - recorded.keys()):
        yield finding(
            Code.HEADER_MISMATCH,
            os.path.join(bundle.path, f"{entry.path}: {name}"),
            "the manifest does not list it",
            _REFETCH,
        )
    digests = digest_all(list(views.values()))
    for name, found in zip(views, digests, strict=True):
        if name in recorded and found != recorded[name].blake3:
            yield finding(
                Code.TENSOR_DIGEST,
                os.path.join(bundle.path, f"{entry.path}: {name}"),
                "the tensor's bytes differ from its digest",
                _REFETCH,
            )
