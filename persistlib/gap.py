"""Opening a folder that a writer may be replacing.

Law: `open_folder` gives one whole version, and no writer sweeps it while it is open.

Where two names cannot be exchanged (see `publish`) there is a moment at which the path names
nothing: the old version has stepped aside. A reader that meets it puts the old version back if the
writer is dead, and reads it where it is if the writer lives or may.
"""

from __future__ import annotations

import os
import time

from persistlib.errors import Code, PersistlibError, PersistlibWarning, error
from persistlib.files import Folder, StrPath, leads_to, read_fault
from persistlib.lock import locked, pin
from persistlib.place import FOLDER_FLAGS, Place, close

# How long to go on when every look meets a writer at work, and how often nothing must be seen to
# stand there before it is believed: one listing is no snapshot of a very large folder.
_SECONDS = 5.0
_PAUSE = 0.0005
_ABSENCES = 3


def open_folder(path: StrPath) -> Folder:
    """Return the folder at `path`, pinned: no writer sweeps it while it is open.

    Raises:
        TargetError: nothing stands there, or no folder, or it cannot be read.
    """
    location = os.fspath(path)
    fd = _open_pinned(location, location)
    if fd is None and location:
        fd = _across_gap(location)
    if fd is None:
        raise error(
            Code.SOURCE_MISSING,
            location or "an empty path",
            "nothing stands there",
            "check the path",
        )
    return Folder(location, fd)


def _across_gap(location: str) -> int | None:
    """Return a descriptor of what stands where nothing did a moment ago, None if nothing does."""
    try:
        place = Place(os.path.realpath(location))
        place.open()
    except (OSError, PersistlibError):
        return None
    deadline = time.monotonic() + _SECONDS
    absences = 0
    try:
        while absences < _ABSENCES and time.monotonic() < deadline:
            names = os.listdir(place.fd)
            aside = place.leftovers("old", among=names)
            fd = None
            if place.name in names:
                fd = _open_pinned(place.name, location, place.fd)
            elif not aside:
                absences += 1
            elif not _mend(place):
                fd = _open_pinned(aside[-1], location, place.fd)
            if fd is not None:
                return fd
            time.sleep(_PAUSE)
    except OSError as fault:
        raise read_fault(fault, location) from fault
    finally:
        place.close()
    return None


def _open_pinned(name: str, location: str, folder_fd: int | None = None) -> int | None:
    """Return a descriptor of the folder, or None where nothing stands, or not any longer.

    The pin counts once the name is seen to lead to the pinned folder still: a writer sweeps only
    what has lost its name.
    """
    try:
        fd = os.open(name, FOLDER_FLAGS, dir_fd=folder_fd)
    except FileNotFoundError:
        return None
    except NotADirectoryError as fault:
        raise error(
            Code.NOT_A_BUNDLE,
            location,
            "not a folder",
            "name the folder that save made; what a file is says persistlib identify",
        ) from fault
    except ValueError as fault:
        raise error(Code.NAME_UNSAFE, ascii(location), str(fault), "check the path") from fault
    except OSError as fault:
        raise read_fault(fault, location) from fault
    pin(fd)
    if leads_to(name, fd, folder_fd=folder_fd, follow=folder_fd is None):
        return fd
    close(fd)
    return None


def _mend(place: Place) -> bool:
    """Put back what stepped aside, unless its writer is at work or may be, or it cannot be done."""
    try:
        with locked(place.fd, place.lock, place.path):
            place.undo_gap()
    except (OSError, PersistlibError, PersistlibWarning):
        return False
    return True
