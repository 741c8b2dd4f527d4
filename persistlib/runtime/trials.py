"""Whether a provider really works here: tried on a small graph, in a process of its own.

A provider's library may print, change the process for good, or end it; what it says while it fails
is the cause that a person needs, and it says it to the standard error of its process.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from persistlib import errors
from persistlib.runtime.providers import CPU, Provider, short
from persistlib.runtime.refusals import message

if TYPE_CHECKING:
    from collections.abc import Mapping

_MAIN = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop()); "
    "from persistlib.runtime.trials import main; main()"
)
_SECONDS = 60  # engines are built for the small graph too, and a device may have to wake up
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_PLACES = re.compile(
    r"^\S+ \S+ \[\w:\w+:[^\]]*\] |\S+\.(?:cc|cpp|h):\d+ [^|]*?\) ?"
    r"|\[ONNXRuntimeError\] : \d+ : \w+ : "
)
_LIMIT = 400  # characters of a cause


class Trial(NamedTuple):
    """How a provider did.

    Attributes:
        is_created: whether a session has it.
        is_used: whether it was given an operator, and the sum came out right.
        reason: why not, as the runtime said it; empty where it works.
    """

    is_created: bool
    is_used: bool
    reason: str


def trial(provider: Provider) -> Trial:
    """Return how a provider of this build does on a small graph.

    Args:
        provider: its full name, and options.
    """
    root = os.path.dirname(os.path.dirname(os.path.abspath(errors.__file__)))
    path = [root, *(folder for folder in sys.path if os.path.isabs(folder))]
    task = json.dumps([provider.name, dict(provider.options)])
    try:
        done = subprocess.run(  # noqa: S603 - this interpreter, with our own program
            [sys.executable, "-I", "-c", _MAIN, task, json.dumps(path)],
            capture_output=True,
            timeout=_SECONDS,
            check=False,
            cwd=os.sep,
        )
    except subprocess.TimeoutExpired:
        return Trial(False, False, f"opening a session took longer than {_SECONDS} s")
    except OSError as fault:
        return Trial(False, False, f"it could not be tried: {fault}")
    said = done.stderr.decode(errors="replace")
    if done.returncode < 0:
        reason = f"its process died of signal {-done.returncode}"
        return Trial(False, False, f"{reason}: {cause}" if (cause := _cause(said)) else reason)
    answer = _answer(done.stdout)
    if answer is None:
        return Trial(False, False, _cause(said) or f"its process ended with {done.returncode}")
    made, used = answer["created"], answer["used"]
    return Trial(made, used, "" if used else answer["fault"] or _cause(said) or _UNUSED)


_UNUSED = "the runtime made a session without it and does not say why"


def _answer(output: bytes) -> Mapping[str, Any] | None:
    """Return the child's last line; libraries may have printed others before."""
    lines = output.decode(errors="replace").strip().splitlines()
    try:
        answer: Mapping[str, Any] = json.loads(lines[-1]) if lines else {}
    except ValueError:
        return None
    return answer if {"created", "used", "fault"} <= set(answer) else None


def _cause(said: str) -> str:
    """Return what a runtime's log says went wrong: its first errors, without places and colours."""
    lines = [_COLOURS.sub("", line) for line in said.splitlines()]
    marked = [line for line in lines if re.search(r"\[E:|\[W:|rror", line)]
    texts = [_PLACES.sub("", line).strip() for line in marked or lines[-1:]]
    return "; ".join(dict.fromkeys(filter(None, texts)))[:_LIMIT]


def main() -> None:
    """Try one provider and print the outcome as a line of JSON; the child's whole work."""
    import onnxruntime

    name, options = json.loads(sys.argv.pop())
    answer: dict[str, Any] = {"created": False, "used": False, "fault": ""}
    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()
    try:
        answer |= _tried(name, options)
    except Exception as fault:  # noqa: BLE001 - whatever it is, it is the answer
        answer["fault"] = message(fault)
    print(json.dumps(answer), flush=True)  # noqa: T201 - the child's answer
    os._exit(0)  # a library that cannot be unloaded cleanly has no say any more


def _tried(name: str, options: Mapping[str, str]) -> dict[str, Any]:
    import numpy as np
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 2
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    providers = [(name, dict(options))] + ([] if name == CPU else [(CPU, {})])
    session = onnxruntime.InferenceSession(
        small_graph(), settings, providers=providers, enable_fallback=0
    )
    made = short(name) in map(short, session.get_providers())
    given = np.arange(32, dtype=np.float32).reshape(2, 16) / 8
    found: Any = session.run(None, {"x": given})[0]
    right = bool(np.allclose(found, np.maximum(given @ weight(), 0), rtol=1e-2, atol=1e-2))
    used = made
    if made and hasattr(session, "get_provider_graph_assignment_info"):
        given_to = {short(part.ep_name) for part in session.get_provider_graph_assignment_info()}
        used = short(name) in given_to
    fault = "" if right else "it computed a wrong product"
    if made and not used:
        fault = fault or "a session has it, but gave it no operator of a small graph"
    return {"created": made, "used": used and right, "fault": fault}


def weight() -> Any:
    """Return the weight of the small graph, 16 x 8 float32."""
    import numpy as np

    return (np.arange(128, dtype=np.float32).reshape(16, 8) % 7 - 3) / 8


def small_graph() -> bytes:
    """Return an ONNX file that computes relu(x @ weight) of x (2, 16)."""
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 16])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 8])]
    tensors = [numpy_helper.from_array(weight(), "w")]
    graph = helper.make_graph(nodes, "small", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    data: bytes = model.SerializeToString()
    return data
