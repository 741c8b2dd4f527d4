"""One model in several runtimes: a batch of inputs in, outputs by name out.

Law: both runtimes are given the same bytes, and as many threads.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from persistlib.dtypes import DType
from persistlib.errors import Code, error
from persistlib.evaluation.inputs import count, cut, filled
from persistlib.wording import first_line

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    import torch
    from numpy.typing import NDArray
    from pydantic import JsonValue

    from persistlib.evaluation.inputs import Inputs
    from persistlib.runtime.session import Session

_MESSAGE = 300


@dataclass(frozen=True, slots=True)
class Runner:
    """A model that is open in a runtime.

    Attributes:
        name: of the runtime.
        run: gives the outputs of a batch, by name and in order.
        facts: versions, and what computes.
    """

    name: str
    run: Callable[[Inputs], Mapping[str, NDArray[Any]]]
    facts: Mapping[str, JsonValue]


def session_runner(session: Session, precision: str | None = None) -> Runner:
    """Return a session as a runner; where its batch is fixed, batches are cut and filled up.

    Args:
        session: that runs the graph.
        precision: of the graph, to be told.
    """
    from persistlib.installed import package_version

    extents = {spec.shape[0] if spec.shape else None for spec in session.inputs}
    fixed = next((extent for extent in extents if isinstance(extent, int)), None)

    def run(inputs: Inputs) -> dict[str, NDArray[Any]]:
        given = _for_session(inputs, session)
        total = count(given)
        if fixed is None or total == fixed:
            return session.run(given)
        parts = (
            filled(cut(given, start, start + fixed), fixed) for start in range(0, total, fixed)
        )
        outputs = [session.run(part) for part in parts]
        rows = [name for name, array in outputs[0].items() if array.ndim]
        return {name: np.concatenate([some[name] for some in outputs])[:total] for name in rows}

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

    def tensor(array: NDArray[Any]) -> torch.Tensor:
        made = torch.from_numpy(array).to(device)
        return made.to(dtype) if made.is_floating_point() else made

    def run(inputs: Inputs) -> dict[str, NDArray[Any]]:
        with torch.inference_mode():
            if isinstance(inputs, Mapping):
                outputs = _outputs(model, {name: tensor(array) for name, array in inputs.items()})
            else:
                outputs = _outputs(model, tensor(inputs))
            return {name: _as_array(value) for name, value in outputs.items()}

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    facts: dict[str, JsonValue] = {"version": torch.__version__, "device": str(device)}
    try:
        with evaluation(model):
            yield Runner("torch", run, facts)
    finally:
        torch.set_num_threads(before)


def _for_session(inputs: Inputs, session: Session) -> dict[str, NDArray[Any]]:
    """Return inputs by the names and in the floating-point dtypes of a graph.

    Raises:
        TrainingError: the graph takes others, or more than one and none is named.
    """
    names = [spec.name for spec in session.inputs]
    if not isinstance(inputs, Mapping) and len(names) == 1:
        inputs = {names[0]: inputs}
    if not isinstance(inputs, Mapping) or {*inputs} != {*names}:
        given = f"; {', '.join(inputs)} were given" if isinstance(inputs, Mapping) else ""
        reason = f"the graph takes {len(names)} inputs: {', '.join(names)}{given}"
        raise error(Code.NO_SCORES, "inputs", reason, "give each by its name")
    made: dict[str, NDArray[Any]] = {}
    for spec in session.inputs:
        array, wanted = inputs[spec.name], DType[spec.dtype].numpy
        is_other = array.dtype != wanted and array.dtype.kind == "f"
        made[spec.name] = array.astype(wanted) if is_other else array
    return made


def _outputs(model: torch.nn.Module, inputs: Any) -> dict[str, torch.Tensor]:
    from persistlib.examples import named_outputs
    from persistlib.training.batches import call

    try:
        return named_outputs(call(model, inputs))
    except Exception as fault:
        # A module is anybody's code and raises what it likes.
        remedy = "see whether the inputs, or the recorded preprocessing, fit the model"
        raise error(Code.RUN_FAILED, "forward", first_line(fault)[:_MESSAGE], remedy) from fault


def _as_array(value: torch.Tensor) -> NDArray[Any]:
    import torch

    array: NDArray[Any] = (value.float() if value.dtype == torch.bfloat16 else value).cpu().numpy()
    return array
