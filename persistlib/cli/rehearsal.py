"""Failing at once, not after long work, where a bundle cannot be put in its place."""

from __future__ import annotations

from contextlib import suppress


class _RehearsedError(Exception):
    """The bundle could be put in its place."""


def rehearse(out: str, *, overwrite: bool) -> None:
    """Refuse a place where a bundle cannot be put; nothing is left there.

    Raises:
        TargetError: something stands there, or the place cannot be used.
    """
    from persistlib import publish, upkeep

    with (
        suppress(_RehearsedError),
        publish.folder(out, overwrite=overwrite, foreign=upkeep.foreign_files),
    ):
        raise _RehearsedError
