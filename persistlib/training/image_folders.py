"""Folders of images: a folder a class, in one place or in `train` and `valid` or `test` folders.

Law: every fault of a folder is reported at once; nothing is trained on a folder with faults.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

from blake3 import blake3

from persistlib import versions
from persistlib.errors import Code, Finding, PersistlibError, Severity, error, finding
from persistlib.images import has_image_ending, read_image
from persistlib.manifest import consistency
from persistlib.training import splits
from persistlib.training.labelled import ImageData, Survey, unknown_classes
from persistlib.training.raw_files import unusable
from persistlib.training.split_files import read_listing
from persistlib.wording import first_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from persistlib.training.labelled import Asked
    from persistlib.training.splits import Division

BY_FOLDERS = "its folders say"
# What persistlib itself puts into a folder: a file, a mark in it, and what the folder is then.
_OWN = (
    (consistency.NAME, b'"manifest_version"', "a bundle"),
    (versions.RUN, versions.RUN_SCHEMA.encode(), "the folder of a run"),
)
_MOST = 16 << 20
_SHOWN = 5


class _File(NamedTuple):
    """A file of a class: its path below the folder, and the part whose folder it is in."""

    name: str
    label: int
    part: str


class _Seen(NamedTuple):
    """An image that can be read."""

    digest: bytes
    size: tuple[int, int]


def survey(path: str, asked: Asked) -> Survey:
    """Return the images of a folder, and every fault of it.

    The folder has one folder a class, whose names sort by code point; or a `train` folder and a
    `valid`, `val` or `test` folder, or both, with one folder a class each, and nothing else. Hidden
    files are passed over; with a warning those that are no images and whose ending no image has.

    Raises:
        TrainingError: there is no such folder, it is a bundle or a run, or the split file cannot
            be read.
    """
    _require_images(path)
    parts = _parts(path)
    found = [(part, _folders(os.path.join(path, name))) for name, part in parts]
    classes = tuple(sorted({name for _, names in found for name in names}))
    findings: list[Finding] = [*_class_faults(path, classes, asked)]
    files: list[_File] = []
    others: list[str] = []
    for (name, part), (_, own) in zip(parts, found, strict=True):
        for label in own:
            inner = os.path.join(name, label)
            members, passed = _images(os.path.join(path, inner))
            others += passed
            least = 1 if part else asked.least
            findings += _member_faults(os.path.join(path, inner), len(members), least)
            place = classes.index(label)
            files += (_File(os.path.join(inner, member), place, part) for member in members)
    findings += _passed_over(path, others)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        seen = list(pool.map(_look, (os.path.join(path, file.name) for file in files)))
    findings += (item for item in seen if isinstance(item, Finding))
    division = _division(path, files, asked, findings, is_divided=bool(parts[0][1]))
    kept = [(i, item) for i, item in enumerate(seen) if not isinstance(item, Finding)]
    data = ImageData(
        name=os.path.basename(os.path.abspath(path)),
        images=tuple(os.path.join(path, files[index].name) for index, _ in kept),
        labels=tuple(files[index].label for index, _ in kept),
        classes=classes,
        digests=tuple(item.digest for _, item in kept),
        division=division
        and splits.Division(tuple(division.parts[index] for index, _ in kept), division.by),
        sizes=tuple(item.size for _, item in kept),
    )
    if asked.is_to_train:
        findings += splits.division_findings(data, path)
    return Survey(data, tuple(findings))


def _require_images(path: str) -> None:
    """Refuse a folder that persistlib wrote.

    Raises:
        TrainingError: it is a bundle, or that of a run.
    """
    for name, mark, kind in _OWN:
        try:
            with open(os.path.join(path, name), "rb") as file:
                is_own = mark in file.read(_MOST)
        except (OSError, ValueError):
            continue
        if is_own:
            reason = f"{kind}, no folder of images"
            raise error(Code.DATA_INVALID, path, reason, "give the data that the model is to see")


def _parts(path: str) -> list[tuple[str, str]]:
    """Return the folders that hold the classes, each with its part; the folder itself has none."""
    names = _folders(path)
    parts = [(name, splits.PARTS.get(name, "")) for name in names]
    found = {part for _, part in parts}
    is_divided = "" not in found and splits.TRAIN in found and len(found) > 1
    if is_divided and all(_folders(os.path.join(path, name)) for name in names):
        return parts
    return [("", "")]


def _class_faults(path: str, classes: Sequence[str], asked: Asked) -> Iterator[Finding]:
    yield from unknown_classes(classes, asked.known, path)
    if len(classes) < asked.least:
        reason = f"{len(classes)} class folders; at least {asked.least} are needed"
        yield unusable(path, reason, "put each class's images into a folder of its own")
    for name in classes:
        if not name.isprintable():
            yield unusable(os.path.join(path, name), "no printable name", "rename it")


def _member_faults(path: str, count: int, least: int) -> Iterator[Finding]:
    if count < least:
        yield unusable(path, splits.too_few(count, "image"), "add images, or remove it")


def _images(path: str) -> tuple[list[str], list[str]]:
    """Return what a class's folder holds, and files in it that are no images, nor called so."""
    members: list[str] = []
    others: list[str] = []
    for name in _names(path):
        where = os.path.join(path, name)
        is_named = has_image_ending(name) or not os.path.isfile(where)
        if is_named or not isinstance(_look(where), Finding):
            members.append(name)
        else:
            others.append(where)
    return members, others


def _passed_over(path: str, others: Sequence[str]) -> Iterator[Finding]:
    """Yield a warning of files that are no images by their names."""
    if not others:
        return
    count = "one file" if len(others) == 1 else f"{len(others):,} files"
    shown = first_of([os.path.relpath(name, path) for name in others], _SHOWN)
    reason = f"{count} that no image would be called passed over: {shown}"
    remedy = "remove them, or give images their ending"
    yield finding(Code.DATA_INVALID, path, reason, remedy, Severity.WARNING)


def _division(
    path: str, files: Sequence[_File], asked: Asked, findings: list[Finding], *, is_divided: bool
) -> Division | None:
    if asked.listing is None:
        parts = tuple(file.part for file in files)
        return splits.Division(parts, BY_FOLDERS) if is_divided else None
    if is_divided:
        remedy = "leave the split file out, or name the folder of one part"
        findings.append(unusable(path, "is divided into folders already", remedy))
    names = [file.name.replace(os.sep, "/") for file in files]
    division, faults = read_listing(asked.listing, names)
    findings += faults
    # Parts that follow from a split file with faults say nothing.
    return None if any(item.severity == "error" for item in faults) else division


def _look(path: str) -> _Seen | Finding:
    """Return a file's digest and size, or why it is no readable image."""
    try:
        height, width = read_image(path).shape[:2]
        with open(path, "rb") as file:
            return _Seen(blake3(file.read()).digest(), (height, width))
    except PersistlibError as fault:
        return unusable(path, fault.reason, "repair or remove it")
    except OSError as fault:
        return unusable(path, str(fault.strerror), "repair or remove it")


def _folders(path: str) -> list[str]:
    return [name for name in _names(path) if os.path.isdir(os.path.join(path, name))]


def _names(path: str) -> list[str]:
    try:
        return sorted(name for name in os.listdir(path) if not name.startswith("."))
    except (OSError, ValueError) as fault:
        reason = getattr(fault, "strerror", None) or str(fault)
        remedy = "give a folder with one folder a class, a file, cifar10:DIR, or sklearn:digits"
        raise error(Code.DATA_MISSING, path, reason, remedy) from fault
