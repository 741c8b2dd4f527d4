"""Names for the weights of a graph that people can read.

Law: no two names are equal, equal but for case, or a prefix of each other, and every part of one
can be an attribute of a module.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from persistlib.graph_modules.structure import Node

# What an exporter makes up; the node that uses the tensor says more.
_MADE_UP = re.compile(
    r"\d+|val_\d+|onnx::.*|.*[Cc]onstant.*|const(_.*|\d*)|(p2o|Parameter|tensor)[.\d_].*|t\d+|"
    r".*__\d+|ortshared.*|.*::.*"
)
_PLAIN = re.compile(r"[^A-Za-z0-9_-]+")
_PARTS = re.compile(r"[./:]+")
_LENGTH = 120
_DEPTH = 32
_RESERVED = frozenset(dir(nn.Module())) | {"config"}
_NORMAL = {1: "weight", 2: "bias"}
_RECURRENT = {1: "weight_ih", 2: "weight_hh", 3: "bias", 7: "peepholes"}
_SLOTS = {
    "Add": {0: "bias", 1: "bias"},
    "BatchNormalization": {**_NORMAL, 3: "running_mean", 4: "running_var"},
    "DequantizeLinear": {0: "weight", 1: "scale", 2: "zero_point"},
    "GRU": _RECURRENT,
    "Gather": {0: "weight"},
    "LSTM": _RECURRENT,
    "MatMul": {0: "weight", 1: "weight"},
    "Mul": {0: "scale", 1: "scale"},
    "RNN": _RECURRENT,
    "QLinearConv": {3: "weight", 8: "bias"},
}


class Names:
    """Gives every weight of a graph its name."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._folders: set[str] = set()

    def name(self, value: str, user: tuple[Node, int] | None) -> str:
        """Return a free name for a weight.

        Args:
            value: what the graph calls it.
            user: the first node that uses it, and as which input.
        """
        parts = _parts(value)
        if (_MADE_UP.fullmatch(value) or not parts) and user is not None:
            node, position = user
            parts = [*_scope(node), _slot(node, position)]
        parts = [part + "_" if part in _RESERVED else part for part in parts or ["tensor"]]
        *folders, leaf = parts[-_DEPTH:]
        leaf, count = leaf[-_LENGTH:], 0
        while not self._is_free(path := ".".join([*folders, f"{leaf}_{count}" if count else leaf])):
            count += 1
            if count == 1 and any(
                ".".join(folders[: n + 1]).casefold() in self._taken for n in range(len(folders))
            ):
                folders = ["_".join(folders)[-_LENGTH:] + "_"]
        self._taken.add(path.casefold())
        pieces = path.casefold().split(".")
        self._folders |= {".".join(pieces[: n + 1]) for n in range(len(pieces) - 1)}
        return path

    def _is_free(self, path: str) -> bool:
        pieces = path.casefold().split(".")
        above = (".".join(pieces[: n + 1]) for n in range(len(pieces) - 1))
        whole = path.casefold()
        return (
            whole not in self._taken
            and whole not in self._folders
            and not any(folder in self._taken for folder in above)
        )


def _parts(value: str) -> list[str]:
    plain = (_PLAIN.sub("_", part).strip("_") for part in _PARTS.split(value))
    return [part[-_LENGTH:] for part in plain if part]


def _scope(node: Node) -> list[str]:
    """Return where a node stands: `/layer1/layer1.0/conv1/Conv` is in layer1.0.conv1."""
    scope: list[str] = []
    for step in [step for step in node.name.split("/") if step][:-1]:
        while scope and (step == scope[-1] or step.startswith(f"{scope[-1]}.")):
            del scope[-1]
        scope.append(step)
    return _parts("/".join(scope)) or _parts(node.name) or [node.operator.lower()]


def _slot(node: Node, position: int) -> str:
    slots = _SLOTS.get(node.operator, _NORMAL)
    return slots.get(position, f"input_{position}")
