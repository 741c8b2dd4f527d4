"""A session of ONNX Runtime over verified bytes: named arrays in, named arrays out, without torch.

Laws: the runtime opens no file; a provider that was asked for by name is used, or it is an error;
no exception of the runtime's own leaves this module.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from persistlib.errors import Code, PersistlibError, error
from persistlib.runtime.providers import CPU, resolve, resolve_all, short
from persistlib.runtime.structure import LOCATION, check_graph
from persistlib.runtime.tensors import conform, from_runtime, to_runtime

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from persistlib.manifest.schema import Interface
    from persistlib.runtime.structure import GraphFacts

_FATAL = 4  # ONNX Runtime's highest log level; what fails is raised as well
_BATCH = 32  # images at once: more only costs memory
_SCORES_RANK = 2
_CONFIG = "ORT_LOAD_CONFIG_FROM_MODEL"


@dataclass(frozen=True, slots=True)
class Prediction:
    """What an image was taken for.

    Attributes:
        index: position of the best class.
        label: its name; its position in decimals where the bundle names no classes.
        probability: its share of the softmax.
        top: the best classes with their probabilities, the best first.
    """

    index: int
    label: str
    probability: float
    top: tuple[tuple[str, float], ...]


class Session:
    """An open session.

    Attributes:
        inputs: what `run` takes, in order.
        outputs: what it gives, in order.
        providers: those that the session really has, by short name.
        placement: how many operators each provider was given, where the runtime tells.
        interface: preprocessing and class names, for `predict`.
    """

    def __init__(self, opened: Any, facts: GraphFacts, interface: Interface | None) -> None:
        self._opened = opened
        self.inputs = facts.inputs
        self.outputs = facts.outputs
        self.providers = tuple(short(name) for name in opened.get_providers())
        self.placement = _placement(opened)
        self.interface = interface

    def run(self, inputs: object) -> dict[str, NDArray[Any]]:
        """Return the outputs by name.

        Args:
            inputs: arrays by name; or arrays in order, in a list or tuple; or the only array.

        Raises:
            SessionError: an input has the wrong name, dtype or shape, or the runtime failed.
        """
        arrays = conform(inputs, self.inputs)
        names = [spec.name for spec in self.outputs]
        try:
            feeds = {s.name: to_runtime(arrays[s.name], s) for s in self.inputs}
            values = self._opened.run_with_ort_values(names, feeds)
            pairs = zip(values, self.outputs, strict=True)
            return {spec.name: from_runtime(value, spec) for value, spec in pairs}
        except Exception as fault:
            reason, remedy = _message(fault), "see whether the inputs' values fit the model"
            raise error(Code.RUN_FAILED, LOCATION, reason, remedy) from fault

    def predict(self, images: Sequence[Any], *, top: int = 5) -> list[Prediction]:
        """Return what each image is taken for.

        Args:
            images: paths, Pillow images or arrays; prepared as the interface says.
            top: how many classes to name for each.

        Raises:
            SessionError: the bundle does not say how inputs are prepared, the graph does not give
                class scores, an image cannot be read, or the runtime failed.
        """
        from persistlib import preprocessing

        interface = self.interface
        if interface is None or interface.preprocessing is None:
            remedy = "prepare arrays yourself and use run()"
            raise error(Code.PREPROCESSING, "interface.preprocessing", "not recorded", remedy)
        extent = self.inputs[0].shape[0] if self.inputs[0].shape else _BATCH
        step = extent if isinstance(extent, int) else _BATCH
        predictions: list[Prediction] = []
        for start in range(0, len(images), max(step, 1)):
            batch = preprocessing.apply(
                images[start : start + max(step, 1)], interface.preprocessing
            )
            scores = next(iter(self.run([batch]).values()))
            predictions.extend(ranked(scores, interface.labels, top=top))
        return predictions


def ranked(scores: NDArray[Any], labels: Sequence[str] | None, *, top: int = 5) -> list[Prediction]:
    """Return the best classes of each row of scores, by softmax.

    Raises:
        SessionError: these are no scores of classes, or not as many classes as labels, or one is
            not finite.
    """
    if scores.ndim != _SCORES_RANK or not scores.shape[1]:
        reason = f"the first output has shape {scores.shape}, not (images, classes)"
        raise error(Code.PREPROCESSING, "outputs", reason, "use run()")
    names = labels or tuple(str(index) for index in range(scores.shape[1]))
    if len(names) != scores.shape[1]:
        reason = f"{len(names)} labels for {scores.shape[1]} classes"
        raise error(Code.PREPROCESSING, "interface.labels", reason, "use run()")
    wide = scores.astype(np.float64)
    if not np.all(np.isfinite(wide)):
        raise error(Code.RUN_FAILED, "outputs", "a score is not finite", "look at the image")
    shares = np.exp(wide - wide.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    order = np.argsort(-wide, axis=1, kind="stable")[:, : max(top, 1)]
    return [
        Prediction(
            index=int(best[0]),
            label=names[int(best[0])],
            probability=float(row[best[0]]),
            top=tuple((names[int(i)], float(row[i])) for i in best),
        )
        for row, best in zip(shares, order, strict=True)
    ]


def open_session(
    model: bytes | memoryview,
    *,
    external: Mapping[str, memoryview] | None = None,
    providers: Sequence[str] | None = None,
    require: str | None = None,
    threads: int | None = None,
    interface: Interface | None = None,
) -> Session:
    """Return a session over a graph's bytes.

    Args:
        model: the bytes of the ONNX file.
        external: its external data files by name.
        providers: by short or full name, the preferred first; by default the CPU. Operators that a
            provider lacks run on the CPU only where that is named too.
        require: a provider that must be given operators.
        threads: that one operator may use; by default the runtime's choice.
        interface: preprocessing and class names, for `Session.predict`.

    Raises:
        FormatError: the graph is not one that any runtime should see.
        CompatibilityError: the graph is newer than this runtime.
        SessionError: the runtime refuses it, or a provider is unknown, absent or not used.
        UsageError: an argument cannot mean anything.
    """
    import onnxruntime

    if os.environ.get(_CONFIG) == "1":
        reason = "with this variable set the runtime takes its options from the file"
        raise error(Code.SESSION_FAILED, _CONFIG, reason, f"unset {_CONFIG}")
    names = resolve_all(providers, require)
    facts = check_graph(model, external=external or {})
    options = _options(names, threads)
    used = {name: (external or {})[name] for name in facts.external}
    if used:
        options.add_external_initializers_from_files_in_memory(
            list(used), list(used.values()), [view.nbytes for view in used.values()]
        )
    try:
        opened = onnxruntime.InferenceSession(
            bytes(model),
            options,
            providers=list(names),
            enable_fallback=0,
            read_config_from_model=0,
        )
    except Exception as fault:
        raise _refused(fault, names) from fault
    session = Session(opened, facts, interface)
    _require_used(session, names, require)
    return session


def _options(names: Sequence[str], threads: int | None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    # Without this the runtime tells formats apart by four bytes that a hostile file can hold.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if CPU not in names:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if threads is not None:
        if type(threads) is not int or threads < 1:
            raise error(Code.USAGE, "threads", f"{threads!r} is no count", "give 1 or more")
        options.intra_op_num_threads = threads
    return options


def _refused(fault: Exception, names: Sequence[str]) -> PersistlibError:
    reason = _message(fault)
    if "IR version" in reason or "Opset" in reason:
        remedy = "pip install --upgrade onnxruntime, or export with a lower opset"
        return error(Code.GRAPH_VERSION, LOCATION, reason, remedy)
    if CPU not in names:
        remedy = 'add "cpu" to the providers, or mend the provider\'s installation'
        return error(Code.PROVIDER_UNUSED, ", ".join(map(short, names)), reason, remedy)
    return error(Code.SESSION_FAILED, LOCATION, reason, "export the model again")


def _require_used(session: Session, names: Sequence[str], require: str | None) -> None:
    """Raise where the runtime quietly left out a provider that was asked for."""
    for name in map(short, names):
        if name not in session.providers:
            reason = f"the session has {', '.join(session.providers)}"
            remedy = "mend the driver or the provider's libraries; the runtime found none to use"
            raise error(Code.PROVIDER_UNUSED, name, reason, remedy)
    if require is None or session.placement is None:
        return
    if not session.placement.get(wanted := short(resolve(require))):
        given = ", ".join(f"{name}: {count}" for name, count in session.placement.items())
        reason = f"it was given no operator ({given or 'none were given to any'})"
        raise error(Code.PROVIDER_UNUSED, wanted, reason, "use a graph that the provider can run")


def _placement(opened: Any) -> dict[str, int] | None:
    """Return the operators given to each provider; None where the runtime does not tell."""
    if not hasattr(opened, "get_provider_graph_assignment_info"):
        return None
    counts: Counter[str] = Counter()
    for part in opened.get_provider_graph_assignment_info():
        counts[short(part.ep_name)] += len(part.get_nodes())
    return dict(counts)


def _message(fault: Exception) -> str:
    """Return the runtime's message without its numbers, source paths and C++ signatures."""
    lines = str(fault).strip().splitlines()
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", lines[0] if lines else "")
    if ".cc:" in text or ".h:" in text:
        text = text.rpartition(") ")[2]
    return text[:300] or type(fault).__name__
