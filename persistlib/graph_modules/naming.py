"""Names for the weights of a graph that people can read.

Laws: no two names are equal, equal but for case, or a prefix of each other, and every part of one
can be an attribute of a module; whatever a graph calls its weights, the work grows with their
number.
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
        self._counts: dict[str, int] = {}  # of a path that was not free, the next number to try

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
        path = ".".join([*folders, leaf[-_LENGTH:]])
        if not self._is_free(path):
            if not self._taken.isdisjoint(_above(path)):
                path = f"{self._beside(folders)}.{leaf[-_LENGTH:]}"
            path = self._numbered(path)
        self._taken.add(path.casefold())
        self._folders.update(_above(path))
        return path

    def _is_free(self, path: str) -> bool:
        whole = path.casefold()
        return (
            whole not in self._taken
            and whole not in self._folders
            and self._taken.isdisjoint(_above(path))
        )

    def _beside(self, folders: list[str]) -> str:
        """Return a folder that is no weight, for what would stand below one."""
        folder = "_".join(folders)[-_LENGTH:] + "_"
        while folder.casefold() in self._taken:  # a reserved word has an underscore too
            folder += "_"
        return folder

    def _numbered(self, path: str) -> str:
        """Return a path with the first number behind it that makes it free."""
        count = self._counts.get(path.casefold(), 1)
        while not self._is_free(f"{path}_{count}"):
            count += 1
        self._counts[path.casefold()] = count + 1
        return f"{path}_{count}"


def _above(path: str) -> list[str]:
    """Return the folders that a path lies in, as names are compared."""
    pieces = path.casefold().split(".")
    return [".".join(pieces[: n + 1]) for n in range(len(pieces) - 1)]


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
