"""How many nodes a graph becomes when its functions are expanded.

Runtimes put a function's body in the place of each call. Thirty functions, each calling the next
twice, are 2 kB and a thousand million nodes; the count below is memoised and takes a moment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from persistlib.errors import Code, PersistlibError, error
from persistlib.runtime.walking import nodes_within

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import onnx

NODES_LIMIT = 1_000_000
# How deep calls may stand inside each other: beyond it every runtime's own recursion is at risk.
CALLS_LIMIT = 128

_Key = tuple[str, str, str]


def require_bounded(proto: onnx.ModelProto, location: object) -> int:
    """Return how many nodes the graph has after every call is expanded.

    Raises:
        FormatError: more than `NODES_LIMIT`, functions that call themselves, or calls too deep.
    """
    bodies = {(f.domain, f.name, f.overload): f for f in proto.functions}
    calls = {key: list(_calls(body.node, bodies)) for key, body in bodies.items()}
    plain = {key: sum(1 for _ in nodes_within(body.node)) for key, body in bodies.items()}
    sizes: dict[_Key, int] = {}
    depths: dict[_Key, int] = {}
    for key in _callees_first(calls, location):
        sizes[key] = plain[key] + sum(sizes[callee] for callee in calls[key])
        depths[key] = 1 + max((depths[callee] for callee in calls[key]), default=0)
    if max(depths.values(), default=0) > CALLS_LIMIT:
        raise _fault(location, f"functions call each other deeper than {CALLS_LIMIT}")
    total = sum(1 for _ in nodes_within(proto.graph.node))
    total += sum(sizes[key] for key in _calls(proto.graph.node, bodies))
    if total > NODES_LIMIT or max(sizes.values(), default=0) > NODES_LIMIT:
        raise _fault(location, f"its functions expand to more than {NODES_LIMIT} nodes")
    return total


def _callees_first(calls: dict[_Key, list[_Key]], location: object) -> Iterator[_Key]:
    """Yield every function after those that it calls."""
    done: set[_Key] = set()
    for root, called in calls.items():
        open_calls: dict[_Key, Iterator[_Key]] = {root: iter(called)}
        while open_calls and root not in done:
            key, callees = next(reversed(open_calls.items()))
            callee = next((c for c in callees if c not in done), None)
            if callee is None:
                del open_calls[key]
                done.add(key)
                yield key
            elif callee in open_calls:
                raise _fault(location, f"the function {callee[1]} calls itself")
            else:
                open_calls[callee] = iter(calls[callee])


def _calls(
    nodes: Iterable[onnx.NodeProto], bodies: dict[_Key, onnx.FunctionProto]
) -> Iterator[_Key]:
    for node in nodes_within(nodes):
        if (key := (node.domain, node.op_type, node.overload)) in bodies:
            yield key


def _fault(location: object, reason: str) -> PersistlibError:
    return error(
        Code.FORMAT_LIMIT, location, reason, "do not use this file; export the model again"
    )
