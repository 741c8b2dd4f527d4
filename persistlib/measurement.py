"""Judging a model wherever it is: in a bundle, an ONNX file's session, or a module at hand.

The order is the law: what was asked for, the manifest's verdict, the data against the model's
classes, the weights, and only then a run.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from persistlib.bundle import reading
from persistlib.errors import Code, error, missing_extra
from persistlib.evaluation import recording
from persistlib.evaluation.judging import judge
from persistlib.evaluation.metrics import require_metrics
from persistlib.evaluation.runners import session_runner, torch_runner
from persistlib.evaluation.samples import open_samples
from persistlib.evaluation.table_samples import is_table_data, open_table_samples
from persistlib.evaluation.targets import is_named
from persistlib.evaluation.task_samples import open_task_samples
from persistlib.installed import is_importable
from persistlib.loading import (
    Reading,
    chosen_graph,
    load_graph_file,
    load_module,
    load_session,
    require_compatible,
)
from persistlib.manifest.schema import Interface
from persistlib.runtime.session import Session
from persistlib.sources import is_folder
from persistlib.training import splits
from persistlib.training.tasks import CLASSIFIER, heads_of, said_by

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from torch import nn

    from persistlib.bundle import Bundle
    from persistlib.evaluation.judging import Evaluation, Progress
    from persistlib.evaluation.runners import Runner
    from persistlib.evaluation.samples import Samples
    from persistlib.files import StrPath
    from persistlib.manifest.schema import Data, Manifest
    from persistlib.training.tasks import Head, TaskLike

RUNTIMES = ("torch", "onnxruntime")
_READING = Reading(mapped=True, verify=True)


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """How a model is judged.

    Attributes:
        runtimes: where it runs; the others are compared with the first. None: wherever it can.
        interface: classes and preprocessing where the model does not say them, or says others.
        task: what the model's outputs are for, where its manifest does not say, or says otherwise.
        held_out: whether only what the training held out counts.
        part: the only part that counts of data that come divided: train, valid or test.
        split: a file that divides a folder of images (docs/fine-tuning.md).
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
    task: TaskLike = None
    held_out: bool = False
    part: str | None = None
    split: StrPath | None = None
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
        if self.part is not None and (self.held_out or self.part not in splits.PARTS.values()):
            reason = f"{self.part!r} is none of train, valid and test, or held_out is said too"
            raise error(Code.USAGE, "part", reason, "give one of them, or held_out alone")

    @property
    def choice(self) -> dict[str, Any]:
        """Which samples count, as `open_samples` takes it."""
        return {"held_out": self.held_out, "part": self.part, "split": self.split}

    @property
    def cores(self) -> int:
        """The threads that each runtime may use."""
        if self.threads is not None:
            return self.threads
        return own_cores()


def own_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else _all_cores()


def _all_cores() -> int:
    return os.cpu_count() or 1


def runtimes(given: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """Return the runtimes that a text such as "torch,onnxruntime", or a sequence, names."""
    if given is None or not isinstance(given, str):
        return None if given is None else tuple(given)
    return tuple(name.strip() for name in given.split(",") if name.strip())


# Returns the samples that a model of this interface, trained on this, is judged on by these heads.
Sampling: TypeAlias = "Callable[[Interface, Data | None, tuple[Head, ...]], Samples]"


class Judged(NamedTuple):
    """A result, and of a bundle its manifest."""

    evaluation: Evaluation
    manifest: Manifest | None = None


def evaluate(model: Any, data: Any, wishes: Wishes, *, save: bool) -> Evaluation:
    """Judge a model on data.

    Args:
        model: a bundle, or what `opened` returns.
        data: as `open_samples`.
        wishes: how it is judged.
        save: whether the result joins the manifest's evaluations.

    Raises:
        PersistlibError: see `persistlib.evaluate`.
    """
    require_keeper(model, save=save)
    found = judged(model, sampling(data, wishes), wishes)
    if save and found.manifest is not None:
        recording.keep(model, found.manifest.bundle_id, found.evaluation.record())
    return found.evaluation


def require_keeper(model: object, *, save: bool) -> None:
    """Refuse to keep the result of what is no bundle.

    Raises:
        UsageError: it is none.
    """
    if save and not isinstance(model, (str, os.PathLike)):
        raise error(Code.USAGE, "save", "only a bundle keeps results", "give a bundle")


def opened(model: Any, wishes: Wishes) -> Any:
    """Return a bundle's path, a module or a session as it is, and an ONNX file as a session.

    Raises:
        PersistlibError: the file is none, or the runtime refuses it.
    """
    if not isinstance(model, (str, os.PathLike)) or is_folder(model):
        return model
    return load_graph_file(
        model,
        _READING,
        graph=wishes.graph,
        allow_withdrawn=wishes.allow_withdrawn,
        providers=wishes.providers,
        require=wishes.require,
        min_share=None,
        threads=wishes.cores,
        timeout=None,
    )


def sampling(data: Any, wishes: Wishes) -> Sampling:
    """Return what opens the data for a model."""

    def samples(interface: Interface, trained: Data | None, heads: tuple[Head, ...]) -> Samples:
        if is_table_data(data, interface, trained):
            return open_table_samples(data, interface, trained, heads, wishes.choice)
        if heads != CLASSIFIER or is_named(data):
            return open_task_samples(data, interface, trained, heads, wishes.choice)
        return open_samples(data, interface, trained, **wishes.choice)

    return samples


def judged(model: Any, samples: Sampling, wishes: Wishes) -> Judged:
    """Judge a model on samples, the bytes of a bundle compared with their digests first.

    Args:
        model: a bundle, or what `opened` returns.
        samples: what it is judged on.
        wishes: how it is judged; the threads of a session are its own.

    Raises:
        PersistlibError: see `persistlib.evaluate`.
    """
    require_metrics()
    if isinstance(model, (str, os.PathLike)):
        return reading(model, partial(_judged_bundle, samples=samples, wishes=wishes))
    return Judged(_judged_open(model, samples, wishes))


def _judged_bundle(bundle: Bundle, samples: Sampling, wishes: Wishes) -> Judged:
    manifest = bundle.manifest
    names = _chosen(bundle, wishes)
    require_compatible(bundle, *names, allow_withdrawn=wishes.allow_withdrawn)
    trained = manifest.training.data if manifest.training is not None else None
    interface = wishes.interface or manifest.interface
    chosen = samples(interface, trained, heads(wishes, manifest))
    with ExitStack() as stack:
        runners = [_runner(bundle, name, wishes, stack) for name in names]
        return Judged(_judge(runners, chosen, wishes), manifest)


def _judged_open(model: Any, samples: Sampling, wishes: Wishes) -> Evaluation:
    """Judge a module, which is left as it is, or a session.

    Raises:
        UsageError: it is neither, or does not run where it should.
    """
    own = "onnxruntime" if isinstance(model, Session) else "torch"
    if own == "torch" and not is_module(model):
        remedy = "give a bundle, an ONNX file, a module or a session"
        raise error(Code.USAGE, "model", f"a {type(model).__name__} is no model", remedy)
    if wishes.runtimes not in {None, (own,)}:
        reason = f"what is given runs in {own} alone"
        raise error(Code.USAGE, "runtime", reason, "give the bundle to compare runtimes")
    recorded = model.interface if isinstance(model, Session) else None
    interface = wishes.interface or recorded or Interface()
    chosen = samples(interface, None, heads(wishes, None))
    with ExitStack() as stack:
        if isinstance(model, Session):
            return _judge([session_runner(model)], chosen, wishes)
        return _judge([stack.enter_context(torch_runner(model, wishes.cores))], chosen, wishes)


def heads(wishes: Wishes, manifest: Manifest | None) -> tuple[Head, ...]:
    """Return what a model's outputs are for, as asked for or as its manifest says."""
    if wishes.task is not None or manifest is None or manifest.training is None:
        return heads_of(wishes.task)
    return said_by(manifest.training.strategy) or CLASSIFIER


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


def module_of(bundle: Bundle, *, trust: Collection[str], allow_withdrawn: bool) -> nn.Module:
    """Return the module of a bundle, every byte compared with its digest.

    Raises:
        PersistlibError: this environment cannot hold it, or it cannot be rebuilt.
    """
    require_compatible(bundle, "torch", allow_withdrawn=allow_withdrawn)
    return load_module(bundle, _READING, strict=True, trust=trust)


def is_module(model: object) -> bool:
    """Return whether this is a `torch.nn.Module`."""
    if not is_importable("torch"):
        return False
    from torch import nn

    return isinstance(model, nn.Module)
