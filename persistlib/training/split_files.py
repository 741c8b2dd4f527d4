"""A file that says which images of a folder train, and which are held out.

A line is `path,part`, with the part train, valid (or val, validation) or test; the first line may
be a header, `path,part`. Or every line is a path alone, and these images are held out. Paths are
relative to the folder of the images, with forward slashes. Empty lines, and such as begin with
`#`, are passed over.

Law: nothing is opened that a line names. A path is looked up among the images that were found, so
that none can lead elsewhere.
"""

from __future__ import annotations

import csv
import os
from typing import TYPE_CHECKING

from persistlib.errors import Code, Finding, Severity, finding
from persistlib.training.raw_files import text_of
from persistlib.training.splits import PARTS, TRAIN, VALID, Division

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_HEADER = ("path", "part")
_MOST = 64 << 20
_SHOWN = 20  # faults of one kind


def read_listing(path: str, names: Sequence[str]) -> tuple[Division, list[Finding]]:
    """Return the part of each image, and what is wrong with the file.

    Images that a file of paths does not name train; images that a file of paths and parts does not
    name are left out, with a warning.

    Args:
        path: the file, UTF-8.
        names: paths of the images below their folder.

    Raises:
        TrainingError: the file cannot be read.
    """
    rows = [*_rows(text_of(path, _MOST).split("\n"))]
    is_list = bool(rows) and all(len(row) == 1 for _, row in rows)
    known = set(names)
    parts: dict[str, str] = {}
    faults: list[Finding] = []
    for number, row in rows:
        name = row[0].removeprefix("./")
        reason = _row_fault(row, name, known, parts, is_list=is_list)
        if reason is None:
            parts[name] = VALID if is_list else PARTS[row[1]]
        else:
            faults.append(_fault(f"{path}:{number}", reason))
    if more := len(faults) - _SHOWN:
        del faults[_SHOWN:]
        faults += [_fault(path, f"{more} more such lines")] if more > 0 else []
    if not rows:
        faults.append(_fault(path, "names no image"))
    rest = TRAIN if is_list else ""
    division = Division(
        tuple(parts.get(name, rest) for name in names), f"{os.path.basename(path)} says"
    )
    if (left := len(names) - len(parts)) and not is_list and not faults:
        reason = f"{left} images are not named: they are left out"
        faults.append(finding(Code.DATA_INVALID, path, reason, severity=Severity.WARNING))
    return division, faults


def _rows(lines: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of each line and its fields."""
    is_first = True
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        row = _fields(line.rstrip("\r"))
        if not (is_first and tuple(row) == _HEADER):
            yield number, row
        is_first = False


def _fields(line: str) -> list[str]:
    """Return the fields of a line; what is no line of such a file is one field as it stands."""
    try:
        (row,) = csv.reader([line], skipinitialspace=True, strict=True)
    except (csv.Error, ValueError):  # quotes without an end, a field of more than 128 KiB
        return [line]
    return [field.strip() for field in row]


def _row_fault(
    row: Sequence[str], name: str, known: set[str], parts: dict[str, str], *, is_list: bool
) -> str | None:
    if len(row) != (1 if is_list else len(_HEADER)):
        return f"{len(row)} fields; a path and a part are expected, or paths alone in every line"
    if name not in known:
        return f"{name}: no such image in the folder"
    if name in parts:
        return f"{name}: named a second time"
    if not is_list and row[1] not in PARTS:
        return f"{row[1]}: no part; there are {', '.join(PARTS)}"
    return None


def _fault(location: str, reason: str) -> Finding:
    return finding(Code.DATA_INVALID, location, reason, "correct the split file")
