"""Failing at once, not after long work, where a bundle cannot be put in its place."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from persistlib import publish, upkeep

if TYPE_CHECKING:
    from persistlib.files import StrPath


class _RehearsedError(Exception):
    """The bundle could be put in its place."""


def rehearse(out: StrPath, *, overwrite: bool) -> None:
    """Refuse a place where a bundle cannot be put; nothing is left there.

    Raises:
        TargetError: something stands there, or the place cannot be used.
    """
    with (
        suppress(_RehearsedError),
        publish.folder(out, overwrite=overwrite, foreign=upkeep.foreign_files),
    ):
        raise _RehearsedError
