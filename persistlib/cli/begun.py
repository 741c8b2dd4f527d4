"""What a run was begun with, noted so that `--resume` goes on from any folder.

Paths are noted whole: a run folder is of one machine. Where the bundle goes and what may be
imported are never taken from a file.
"""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING, Any

from persistlib import versions
from persistlib.cli.command import said
from persistlib.errors import Code, error, error_of, finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    import click

    from persistlib.errors import Finding

RUN = ".run"
NUMBERS = (
    *("epochs", "lr", "seed", "batch_size", "optimizer", "weight_decay", "schedule"),
    *("label_smoothing", "patience", "accumulate", "clip", "precision", "workers"),
    *("checkpoint_every", "keep", "augment"),
)
# What a run is begun with, and goes on with.
_NOTED = (
    *("builder", "data", "split", "fraction", "target", "task", "weights", "freeze"),
    *("strategy", "rate_decay", "balanced", "resize", "name", "onnx", *NUMBERS),
)
# How what may be a path is given again.
_GIVEN = {
    "builder": "name the bundle before --resume",
    "data": "give --data",
    "split": "give --split",
    "weights": "give --weights",
}


def note(asked: dict[str, Any]) -> dict[str, Any]:
    """Return what a run is begun with, every path whole."""
    noted = {name: _plain(asked[name]) for name in _NOTED}
    for name in _GIVEN:
        prefix, path = _path(name, noted[name])
        if path:
            noted[name] = prefix + os.path.abspath(path)
    return noted


def options(context: click.Context, given: dict[str, Any]) -> dict[str, Any]:
    """Return the options that a run was begun with, but for those that are given again.

    The bundle's place follows from the run folder's; packages are trusted anew.

    Raises:
        TargetError: no run stands there, or a path that it was begun with is gone; each is named.
        TrainingError: the note of it is damaged.
    """
    from persistlib.training import run_folder

    run = given["resume"]
    beside = os.fspath(run).rstrip(os.sep) + RUN
    noted = [os.path.exists(os.path.join(place, versions.RUN)) for place in (run, beside)]
    if noted == [False, True]:
        remedy = f"go on with that: --resume {shlex.quote(beside)}"
        raise error(Code.SOURCE_MISSING, run, f"no run; its run stands at {beside}", remedy)
    begun = run_folder.command(run)
    asked, taken, given_again = dict(given), list[str](), said(context)
    for parameter in context.command.params:
        name = str(parameter.name)
        if name in _NOTED and name in begun and name not in given_again:
            asked[name] = parameter.type_cast_value(context, begun[name])
            taken.append(name)
    if faults := list(_missing(asked, taken, os.path.join(run, versions.RUN))):
        raise error_of(faults)
    stem = os.fspath(run).rstrip(os.sep)
    if asked["out"] is None and stem.endswith(RUN):
        asked["out"] = stem.removesuffix(RUN)
    return {**asked, "run": run}


def _missing(asked: dict[str, Any], taken: list[str], source: str) -> Iterator[Finding]:
    """Yield what a run was begun with and is no longer where it was."""
    for name, how in _GIVEN.items():
        path = _path(name, asked[name])[1] if name in taken else ""
        if path and not os.path.exists(path):
            reason = f"is not there; {source} says that the run was begun with it"
            yield finding(Code.SOURCE_MISSING, path, reason, f"{how} again, where it stands now")


def _path(name: str, value: Any) -> tuple[str, str]:
    """Return what stands before the path in an option's value, and the path; empty without one."""
    if not isinstance(value, str):
        return "", ""
    if name == "data":
        from persistlib.training.data_sources import placed

        return placed(value)
    if name == "builder":
        from persistlib.training.beginnings import is_bundle

        return "", value if is_bundle(value) else ""
    if name == "weights":
        from persistlib.architecture.recipe import checkpoint_path

        return "", checkpoint_path(value) or ""
    return "", value


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
