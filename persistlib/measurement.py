"""Judging a model wherever it is: in a bundle, an ONNX file's session, or a module at hand.

The order is the law: what was asked for, the manifest's verdict, the data against the model's
classes, the weights, and only then a run.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from persistlib.bundle import reading
from persistlib.errors import Code, error, missing_extra
from persistlib.evaluation import recording
from persistlib.evaluation.judging import judge
from persistlib.evaluation.metrics import require_metrics
from persistlib.evaluation.runners import session_runner, torch_runner
from persistlib.evaluation.samples import open_samples
from persistlib.installed import is_importable
from persistlib.loading import (
    Reading,
    chosen_graph,
    load_module,
    load_session,
    require_compatible,
)
from persistlib.manifest.schema import Interface
from persistlib.runtime.session import Session

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from persistlib.bundle import Bundle
    from persistlib.evaluation.judging import Evaluation, Progress
    from persistlib.evaluation.runners import Runner
    from persistlib.files import StrPath

RUNTIMES = ("torch", "onnxruntime")
_READING = Reading(mapped=True, verify=True)


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """How a model is judged.

    Attributes:
        runtimes: where it runs; the others are compared with the first. None: wherever it can.
        interface: classes and preprocessing where the model does not say them, or says others.
        held_out: whether only what the training held out counts.
        batch_size: samples a batch.
        calls: calls to time for each batch size, at most; 0 times none.
        threads: for each runtime; None: as many as there are cores for this process.
        providers: as `load`.
        require: as `load`.
        graph: as `load`.
        trust: as `load`.
        allow_withdrawn: as `load`.
        progress: called with what is being done, steps done, and all steps.
    """

    runtimes: tuple[str, ...] | None = None
    interface: Interface | None = None
    held_out: bool = False
    batch_size: int = 32
    calls: int = 30
    threads: int | None = None
    providers: Sequence[Any] | None = None
    require: str | None = None
    graph: str | None = None
    trust: Collection[str] = ()
    allow_withdrawn: bool = False
    progress: Progress | None = None

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("calls", 0), ("threads", 1)):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < least):
                reason = f"{value!r} is no whole number from {least} on"
                raise error(Code.USAGE, name, reason, f"give {least} or more")
        names = self.runtimes
        if names is not None and (not names or len({*names} & {*RUNTIMES}) != len(names)):
            reason = f"{', '.join(names) or 'none'}: not each one of {', '.join(RUNTIMES)}, once"
            raise error(Code.USAGE, "runtime", reason, "use torch, onnxruntime, or both")

    @property
    def cores(self) -> int:
        """The threads that each runtime may use."""
        if self.threads is not None:
            return self.threads
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else _all_cores()


def _all_cores() -> int:
    return os.cpu_count() or 1


def runtimes(given: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """Return the runtimes that a text such as "torch,onnxruntime", or a sequence, names."""
    if given is None or not isinstance(given, str):
        return None if given is None else tuple(given)
    return tuple(name.strip() for name in given.split(",") if name.strip())


def evaluate_bundle(path: StrPath, data: Any, wishes: Wishes, *, save: bool) -> Evaluation:
    """Judge the model of a bundle, its bytes compared with their digests first.

    Args:
        path: the bundle.
        data: as `open_samples`.
        wishes: how it is judged.
        save: whether the result joins the manifest's evaluations.

    Raises:
        PersistlibError: see `persistlib.evaluate`.
    """
    require_metrics()

    def work(bundle: Bundle) -> tuple[Evaluation, str]:
        manifest = bundle.manifest
        names = _chosen(bundle, wishes)
        require_compatible(bundle, *names, allow_withdrawn=wishes.allow_withdrawn)
        interface = wishes.interface or manifest.interface
        trained = manifest.training.data if manifest.training is not None else None
        samples = open_samples(data, interface, trained, held_out=wishes.held_out)
        with ExitStack() as stack:
            runners = [_runner(bundle, name, wishes, stack) for name in names]
            return _judge(runners, samples, wishes), manifest.bundle_id

    evaluation, bundle_id = reading(path, work)
    if save:
        recording.keep(path, bundle_id, evaluation.record())
    return evaluation


def evaluate_open(model: Any, data: Any, wishes: Wishes) -> Evaluation:
    """Judge a module, or a session.

    Args:
        model: a `torch.nn.Module`, left as it is; or a `Session`.
        data: as `open_samples`.
        wishes: how it is judged; the threads of a session are its own.

    Raises:
        UsageError: it is neither, or does not run where it should.
        PersistlibError: see `persistlib.evaluate`.
    """
    require_metrics()
    own = "onnxruntime" if isinstance(model, Session) else "torch"
    if own == "torch" and not _is_module(model):
        remedy = "give a bundle, an ONNX file, a module or a session"
        raise error(Code.USAGE, "model", f"a {type(model).__name__} is no model", remedy)
    if wishes.runtimes not in {None, (own,)}:
        reason = f"what is given runs in {own} alone"
        raise error(Code.USAGE, "runtime", reason, "give the bundle to compare runtimes")
    recorded = model.interface if isinstance(model, Session) else None
    samples = open_samples(data, wishes.interface or recorded or Interface())
    with ExitStack() as stack:
        if isinstance(model, Session):
            return _judge([session_runner(model)], samples, wishes)
        return _judge([stack.enter_context(torch_runner(model, wishes.cores))], samples, wishes)


def _judge(runners: Sequence[Runner], samples: Any, wishes: Wishes) -> Evaluation:
    return judge(
        runners,
        samples,
        batch_size=wishes.batch_size,
        calls=wishes.calls,
        threads=wishes.cores,
        progress=wishes.progress,
    )


def _chosen(bundle: Bundle, wishes: Wishes) -> tuple[str, ...]:
    """Return the runtimes to use: those asked for, or all in which the bundle runs here."""
    has_torch = is_importable("torch")
    names = wishes.runtimes
    if names is None:
        able = {"torch": has_torch, "onnxruntime": bool(bundle.manifest.graphs)}
        names = tuple(name for name in RUNTIMES if able[name]) or ("torch",)
    if "torch" in names and not has_torch:
        raise missing_extra("torch", "torch", "evaluating the module of a bundle")
    return names


def _runner(bundle: Bundle, name: str, wishes: Wishes, stack: ExitStack) -> Runner:
    if name == "torch":
        model = load_module(bundle, _READING, strict=True, trust=wishes.trust)
        return stack.enter_context(torch_runner(model, wishes.cores))
    session = load_session(
        bundle,
        _READING,
        graph=wishes.graph,
        providers=wishes.providers,
        require=wishes.require,
        threads=wishes.cores,
    )
    return session_runner(session, chosen_graph(bundle, wishes.graph).precision)


def _is_module(model: object) -> bool:
    if not is_importable("torch"):
        return False
    from torch import nn

    return isinstance(model, nn.Module)
