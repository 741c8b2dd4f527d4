"""Which shared libraries a provider's own needs, and which of them this machine lacks.

ELF files are read, not loaded: the loader names only the first library that it misses. Elsewhere
than on Linux nothing is known, and nothing is said to be missing.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

_MAGIC = b"\x7fELF\x02\x01"  # 64 bits, little-endian: what ONNX Runtime is built for
_PROGRAM = struct.Struct("<IIQQQQQQ")
_ENTRY = struct.Struct("<qQ")
_LOADED, _DYNAMIC = 1, 2  # kinds of segments
_END, _NEEDED, _STRINGS, _RPATH, _RUNPATH = 0, 1, 5, 15, 29  # tags of the dynamic segment
_NAME_LIMIT = 4096
# What pip installs to give a library; `{}` is "-cu12" where CUDA's own packages still say it.
_PIP = {
    "libcudnn": "nvidia-cudnn-cu{major}",
    "libcublas": "nvidia-cublas{suffix}",
    "libcublasLt": "nvidia-cublas{suffix}",
    "libcudart": "nvidia-cuda-runtime{suffix}",
    "libcufft": "nvidia-cufft{suffix}",
    "libcurand": "nvidia-curand{suffix}",
    "libnvrtc": "nvidia-cuda-nvrtc{suffix}",
    "libnvinfer": "tensorrt",
    "libnvonnxparser": "tensorrt",
    "libopenvino": "openvino",
    "libtbb": "tbb",
}
_DRIVERS = {
    "libcuda": "the NVIDIA driver (in a container: start it with the GPU, docker run --gpus all)",
    "libamdhip64": "AMD's ROCm",
    "libmigraphx_c": "AMD's MIGraphX",
    "libqnn": "Qualcomm's AI Engine Direct",
}
_UNNUMBERED = 13  # the version of CUDA from which on its packages have no number in their names


class Needs(NamedTuple):
    """What a library says of others.

    Attributes:
        names: of the libraries that it needs.
        folders: where it says to look for them first.
    """

    names: tuple[str, ...]
    folders: tuple[str, ...]


def missing(path: str) -> tuple[str, ...]:
    """Return the libraries that the one at `path` needs and the loader does not find.

    What is found is loaded into this process, as the runtime itself would load it.
    """
    if not sys.platform.startswith("linux"):
        return ()
    needs = needs_of(path)
    return tuple(name for name in needs.names if not _is_found(name, needs.folders))


def needs_of(path: str) -> Needs:
    """Return what a shared library needs; nothing where it is none of this kind, or damaged."""
    try:
        with open(path, "rb") as file:
            return _parsed(file.fileno())
    except (OSError, struct.error, ValueError, KeyError):
        return Needs((), ())


def cure_of(names: Sequence[str], cuda: str = "") -> str:
    """Return what to do to get missing libraries.

    Args:
        names: of the libraries.
        cuda: the version of CUDA that the build was made for; empty where it does not say.
    """
    major = cuda.partition(".")[0]
    suffix = f"-cu{major or 12}" if not major.isdigit() or int(major) < _UNNUMBERED else ""
    stems = [name.partition(".so")[0] for name in names]
    drivers = [f"install {_DRIVERS[stem]}" for stem in stems if stem in _DRIVERS]
    packages = [
        _PIP[stem].format(major=major or 12, suffix=suffix) for stem in stems if stem in _PIP
    ]
    pip = [f"pip install {' '.join(dict.fromkeys(packages))}"] if packages else []
    rest = [
        f"install what has {name}"
        for name, stem in zip(names, stems, strict=True)
        if stem not in _PIP and stem not in _DRIVERS
    ]
    return "; ".join(dict.fromkeys((*drivers, *pip, *rest)))


def is_there(name: str) -> bool:
    """Return whether the loader finds a library."""
    return _is_found(name, ())


def _is_found(name: str, folders: tuple[str, ...]) -> bool:
    for place in (name, *(os.path.join(folder, name) for folder in folders)):
        try:
            ctypes.CDLL(place)
        except OSError:
            continue
        return True
    return False


def _parsed(fd: int) -> Needs:
    head = os.pread(fd, 64, 0)
    if not head.startswith(_MAGIC):
        return Needs((), ())
    (start,) = struct.unpack_from("<Q", head, 32)
    size, count = struct.unpack_from("<HH", head, 54)
    segments = [
        _PROGRAM.unpack(os.pread(fd, _PROGRAM.size, start + size * index)) for index in range(count)
    ]
    dynamic = next(s for s in segments if s[0] == _DYNAMIC) if segments else None
    if dynamic is None:
        return Needs((), ())
    table = os.pread(fd, min(dynamic[5], 1 << 20), dynamic[2])
    entries = list(_ENTRY.iter_unpack(table[: len(table) // _ENTRY.size * _ENTRY.size]))
    if _END in (tags := [tag for tag, _ in entries]):
        entries = entries[: tags.index(_END)]
    address = dict(entries)[_STRINGS]
    # The address is where it will lie in memory; a loaded segment says where that is in the file.
    strings = next(
        address - s[3] + s[2] for s in segments if s[0] == _LOADED and 0 <= address - s[3] < s[5]
    )
    origin = os.path.dirname(os.path.realpath(f"/proc/self/fd/{fd}"))
    paths = [_string(fd, strings + at) for tag, at in entries if tag in (_RPATH, _RUNPATH)]
    folders = [
        folder.replace("${ORIGIN}", origin).replace("$ORIGIN", origin)
        for path in paths
        for folder in path.split(":")
        if folder
    ]
    names = [_string(fd, strings + at) for tag, at in entries if tag == _NEEDED]
    return Needs(tuple(names), tuple(folders))


def _string(fd: int, at: int) -> str:
    return os.pread(fd, _NAME_LIMIT, at).partition(b"\0")[0].decode()
