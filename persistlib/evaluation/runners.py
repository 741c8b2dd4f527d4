"""One model in several runtimes: a batch of inputs in, scores out.

Law: both runtimes are given the same bytes, and as many threads.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from persistlib.dtypes import DType
from persistlib.errors import Code, error

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    import torch
    from numpy.typing import NDArray
    from pydantic import JsonValue

    from persistlib.runtime.session import Session

_FIRST = "logits"  # of several outputs, the one that answers; otherwise the first
_MESSAGE = 300


@dataclass(frozen=True, slots=True)
class Runner:
    """A model that is open in a runtime.

    Attributes:
        name: of the runtime.
        run: gives the scores of a batch.
        facts: versions, and what computes.
    """

    name: str
    run: Callable[[NDArray[Any]], NDArray[Any]]
    facts: Mapping[str, JsonValue]


def session_runner(session: Session, precision: str | None = None) -> Runner:
    """Return a session as a runner; where its batch is fixed, batches are cut and filled up.

    Args:
        session: that runs the graph.
        precision: of the graph, to be told.

    Raises:
        TrainingError: the graph takes more than one input.
    """
    from persistlib.installed import package_version

    if len(session.inputs) != 1:
        names = ", ".join(spec.name for spec in session.inputs)
        reason = f"the graph takes {len(session.inputs)} inputs: {names}"
        raise error(Code.NO_SCORES, "inputs", reason, "run it yourself: load(...).run()")
    spec = session.inputs[0]
    output = next((o.name for o in session.outputs if o.name == _FIRST), session.outputs[0].name)
    wanted = DType[spec.dtype].numpy
    fixed = spec.shape[0] if spec.shape and isinstance(spec.shape[0], int) else None

    def run(inputs: NDArray[Any]) -> NDArray[Any]:
        if inputs.dtype != wanted and inputs.dtype.kind == "f":
            inputs = inputs.astype(wanted)
        if fixed is None or len(inputs) == fixed:
            return session.run({spec.name: inputs})[output]
        parts = [inputs[start : start + fixed] for start in range(0, len(inputs), fixed)]
        filled = (np.resize(part, (fixed, *part.shape[1:])) for part in parts)
        scores = [session.run({spec.name: part})[output] for part in filled]
        return np.concatenate(scores)[: len(inputs)]

    facts: dict[str, JsonValue] = {
        "version": package_version("onnxruntime"),
        "providers": list(session.providers),
    }
    facts |= {} if precision is None else {"graph": precision}
    facts |= {} if fixed is None else {"batch": fixed}
    return Runner("onnxruntime", run, facts)


@contextmanager
def torch_runner(model: torch.nn.Module, threads: int) -> Generator[Runner]:
    """Yield a module as a runner, in evaluation and on so many threads until it is left."""
    import torch

    from persistlib.export.calling import device_of, evaluation

    device = device_of(model)
    floats = (p.dtype for p in model.parameters() if p.is_floating_point())
    dtype = next(floats, torch.get_default_dtype())

    def run(inputs: NDArray[Any]) -> NDArray[Any]:
        tensor = torch.from_numpy(inputs).to(device)
        with torch.inference_mode():
            scores = _scores(model, tensor.to(dtype) if tensor.is_floating_point() else tensor)
            scores = scores.float() if scores.dtype == torch.bfloat16 else scores
            return scores.cpu().numpy()

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    facts: dict[str, JsonValue] = {"version": torch.__version__, "device": str(device)}
    try:
        with evaluation(model):
            yield Runner("torch", run, facts)
    finally:
        torch.set_num_threads(before)


def _scores(model: torch.nn.Module, tensor: torch.Tensor) -> torch.Tensor:
    from persistlib.training.answers import primary

    try:
        return primary(model(tensor))
    except Exception as fault:
        # A module is anybody's code and raises what it likes.
        lines = str(fault).splitlines() or [type(fault).__name__]
        remedy = "see whether the inputs, or the recorded preprocessing, fit the model"
        raise error(Code.RUN_FAILED, "forward", lines[0][:_MESSAGE], remedy) from fault
