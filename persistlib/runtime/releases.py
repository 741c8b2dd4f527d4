"""What each release of ONNX Runtime reads: the newest operator set, and the newest file format.

Measured on the releases' own wheels for Linux: a graph of one Identity in every version is given to
a session of the CPU provider, and a version counts where the session opens. (1.15 knows operator
set 19, and has no kernels for it.)
"""

from __future__ import annotations

from typing import NamedTuple

from packaging.version import InvalidVersion, Version

from persistlib.errors import Code, error


class Release(NamedTuple):
    """A release of ONNX Runtime.

    Attributes:
        version: major and minor, the first that read so; no patch so far has changed it.
        opset: the newest default operator set.
        ir: the newest version of the file format.
    """

    version: str
    opset: int
    ir: int


RELEASES: tuple[Release, ...] = (
    Release("1.10", 15, 8),
    Release("1.11", 16, 8),
    Release("1.12", 17, 8),
    Release("1.13", 17, 8),
    Release("1.14", 18, 8),
    Release("1.15", 18, 9),
    Release("1.16", 19, 9),
    Release("1.17", 20, 9),
    Release("1.18", 21, 10),
    Release("1.19", 21, 10),
    Release("1.20", 21, 10),
    Release("1.21", 22, 10),
    Release("1.22", 22, 10),
    Release("1.23", 23, 11),
    Release("1.24", 25, 13),
    Release("1.25", 26, 13),
    Release("1.32", 28, 14),
)


def release_of(version: str) -> Release:
    """Return what a release reads; for one that is newer than all, what the newest known does.

    Raises:
        UsageError: it is no version, or older than all that were measured.
    """
    try:
        wanted = Version(version)
    except InvalidVersion as fault:
        reason = "is no version"
        raise error(Code.USAGE, f"onnxruntime=={version}", reason, "write 1.17.3") from fault
    known = [row for row in RELEASES if Version(row.version) <= wanted]
    if not known:
        reason = f"is older than {RELEASES[0].version}, the oldest release that is known"
        remedy = "give opset= and ir= (--opset, --ir) instead"
        raise error(Code.USAGE, f"onnxruntime=={version}", reason, remedy)
    return known[-1]
