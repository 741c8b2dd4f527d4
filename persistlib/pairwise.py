"""Two models judged on the same samples, each wherever it is, and what differs between them.

The order is the law: the classes of both are compared before either runs; one model is open at a
time; the samples are opened once, and the second is given those of the first.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from persistlib import measurement
from persistlib.bundle import reading
from persistlib.digests import digest
from persistlib.errors import Code, error
from persistlib.evaluation import recording
from persistlib.evaluation.comparing import Against, compared
from persistlib.evaluation.same_samples import as_taken_by, require_same_classes
from persistlib.installed import is_importable
from persistlib.manifest.schema import Interface
from persistlib.runtime.session import Session
from persistlib.sources import is_folder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import JsonValue

    from persistlib.evaluation.judging import Evaluation
    from persistlib.evaluation.samples import Samples
    from persistlib.manifest.schema import Data, Manifest
    from persistlib.measurement import Judged, Wishes
    from persistlib.training.tasks import Head


def evaluate(model: Any, other: Any, data: Any, wishes: Wishes, *, save: bool) -> Evaluation:
    """Judge a model on data, and hold it against another one.

    What is compared is the first runtime that was asked for; where none was, the model is judged
    as a module if it can be, or as the graph that was chosen. The other is judged there too where
    it can be.

    Args:
        model: a bundle, an ONNX file, a module or a session.
        other: likewise, of the same classes.
        data: as `open_samples`.
        wishes: how both are judged; the graph that is chosen is the first's alone.
        save: whether the result joins the first's evaluations.

    Raises:
        TrainingError: the classes of the two differ.
        PersistlibError: see `persistlib.evaluate`.
    """
    names = _names(model, other)
    mine, theirs = measurement.opened(model, wishes), _opened(other, wishes)
    measurement.require_keeper(mine, save=save)
    if wishes.interface is None:
        require_same_classes(_interface(mine).labels, _interface(theirs).labels, names)
    if wishes.runtimes is None:
        wanted = "torch" if wishes.graph is None else "onnxruntime"
        wishes = replace(wishes, runtimes=_runtimes(mine, wanted))
    first = measurement.judged(mine, measurement.sampling(data, wishes), wishes)
    second = measurement.judged(
        theirs,
        _same(first, names[1]),
        replace(
            wishes, graph=None, runtimes=_runtimes(theirs, first.evaluation.results[0].runtime)
        ),
    )
    results = first.evaluation.results[0], second.evaluation.results[0]
    against = Against(
        models=names,
        other=_known_again(other, second.manifest),
        evaluation=second.evaluation,
        heads=tuple(
            compared(a.outcomes, b.outcomes)
            for a, b in zip(results[0].heads, results[1].heads, strict=True)
        ),
    )
    found = replace(first.evaluation, against=against)
    if save and first.manifest is not None:
        recording.keep(mine, first.manifest.bundle_id, found.record())
    return found


def _names(model: Any, other: Any) -> tuple[str, str]:
    names = tuple(
        os.fspath(item) if isinstance(item, (str, os.PathLike)) else type(item).__name__
        for item in (model, other)
    )
    return ("the first", "the other") if names[0] == names[1] else (names[0], names[1])


def _opened(other: Any, wishes: Wishes) -> Any:
    """Return the other model, opened where it is an ONNX file.

    Raises:
        UsageError: it is nothing that can be judged.
        PersistlibError: as `measurement.opened`.
    """
    found = measurement.opened(other, replace(wishes, graph=None))
    if not isinstance(found, (str, os.PathLike, Session)) and not measurement.is_module(found):
        remedy = "give a bundle, an ONNX file, a module or a session"
        raise error(Code.USAGE, "against", f"a {type(found).__name__} is no model", remedy)
    return found


def _interface(model: Any) -> Interface:
    """Return what a model says of its classes; a module says nothing."""
    if isinstance(model, (str, os.PathLike)):
        return reading(model, lambda bundle: bundle.manifest.interface)
    return (model.interface if isinstance(model, Session) else None) or Interface()


def _same(first: Judged, name: str) -> measurement.Sampling:
    """Return what gives the other model the samples of the first, and its tasks."""

    def samples(interface: Interface, trained: Data | None, _: tuple[Head, ...]) -> Samples:
        return as_taken_by(first.evaluation.samples, interface, trained, name=name)

    return samples


def _runtimes(model: Any, wanted: str) -> tuple[str, ...] | None:
    """Return where a model is judged: where it is wanted, if it can run there."""
    if not isinstance(model, (str, os.PathLike)):
        return None
    has_graph = reading(model, lambda bundle: bool(bundle.manifest.graphs))
    can = {"torch": is_importable("torch"), "onnxruntime": has_graph}
    return (next((name for name in (wanted, *measurement.RUNTIMES) if can[name]), wanted),)


def _known_again(other: Any, manifest: Manifest | None) -> Mapping[str, JsonValue]:
    """Return how to know the other model again, without a place on somebody's machine."""
    if manifest is not None:
        return {"bundle_id": manifest.bundle_id, "name": manifest.name}
    if isinstance(other, (str, os.PathLike)) and not is_folder(other):
        with open(other, "rb") as file:
            return {"file": os.path.basename(other), "digest": digest(file.read())}
    return {"name": type(other).__name__}
