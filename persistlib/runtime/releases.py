"""What each release of ONNX Runtime reads: the newest operator set, and the newest file format.

Of the releases that the shipped table has it is the table's (`compat.releases`). Those before were
measured on their own wheels for Linux: a graph of one Identity in every version is given to a
session of the CPU provider, and a version counts where the session opens.
"""

from __future__ import annotations

from typing import NamedTuple

from packaging.version import InvalidVersion, Version

from persistlib.compat import releases
from persistlib.errors import Code, error


class Release(NamedTuple):
    """A release of ONNX Runtime.

    Attributes:
        version: its own, or that of the nearest release before it that is known.
        opset: the newest default operator set.
        ir: the newest version of the file format.
    """

    version: str
    opset: int
    ir: int


# Major and minor: no patch changed it.
OLDER: tuple[Release, ...] = (
    Release("1.10", 15, 8),
    Release("1.11", 16, 8),
    Release("1.12", 17, 8),
    Release("1.13", 17, 8),
    Release("1.14", 18, 8),
)
# 1.15 has the schemas of operator set 19 and no kernels for it.
_KERNELS_END: dict[tuple[int, ...], int] = {(1, 15): 18}


def release_of(version: str) -> Release:
    """Return what a release reads; for one that is newer than all, what the newest known does.

    Raises:
        UsageError: it is no version, or older than all that are known.
    """
    try:
        wanted = Version(version)
    except InvalidVersion as fault:
        reason = "is no version"
        raise error(Code.USAGE, f"onnxruntime=={version}", reason, "write 1.17.3") from fault
    if wanted >= Version(releases.versions()[0]):
        return _in_table(releases.nearest(version))
    known = [row for row in OLDER if Version(row.version) <= wanted]
    if not known:
        reason = f"is older than {OLDER[0].version}, the oldest release that is known"
        remedy = "give opset= and ir= (--opset, --ir) instead"
        raise error(Code.USAGE, f"onnxruntime=={version}", reason, remedy)
    return known[-1]


def _in_table(version: str) -> Release:
    ir, opset = releases.ceiling(version)
    return Release(version, _KERNELS_END.get(Version(version).release[:2], opset), ir)
