"""The values inside a graph, as the runtime computes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from persistlib.export.comparison import is_float
from persistlib.export.excerpt import excerpt, producers, value_types
from persistlib.runtime.session import open_session

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    import onnx
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[Any]]

_STEP = 64  # values at once


class GraphValues:
    """What a graph computes at each of its values, by name."""

    def __init__(
        self, proto: onnx.ModelProto, external: Mapping[str, memoryview], inputs: Arrays
    ) -> None:
        """See a graph through its values for some inputs."""
        self._proto, self._external, self._inputs = proto, external, inputs
        self._types = value_types(proto)
        self._names = [name for name in producers(proto) if name in self._types]

    @property
    def names(self) -> Sequence[str]:
        """The values' names, in the graph's order."""
        return self._names

    def known(self, name: str) -> bool:
        """Return whether the graph has a value of this name."""
        return name in self._types and name in self._names

    def module(self, name: str) -> str:  # noqa: ARG002 - a graph alone does not tell
        """Return nothing: a graph does not tell its modules."""
        return ""

    def __call__(self, names: Collection[str]) -> dict[str, NDArray[Any]]:
        """Return the named values.

        Raises:
            SessionError: the runtime fails.
        """
        wanted = [name for name in names if self.known(name)]
        if not wanted:
            return {}
        part = excerpt(self._proto, wanted, cut=())
        data = part.proto(self._inputs, self._types).SerializeToString()
        session = open_session(data, external=self._external, threads=1)
        feeds = {spec.name: self._inputs[spec.name] for spec in session.inputs}
        return session.run(feeds)


def reach(
    proto: onnx.ModelProto, external: Mapping[str, memoryview], runs: Sequence[Arrays]
) -> dict[str, float]:
    """Return the largest finite magnitude that each float value has in some runs."""
    found: dict[str, float] = {}
    for run in runs:
        values = GraphValues(proto, external, run)
        for start in range(0, len(values.names), _STEP):
            for name, array in values(values.names[start : start + _STEP]).items():
                if is_float(array):
                    wide = np.abs(array.astype(np.float64))
                    largest = float(wide[np.isfinite(wide)].max(initial=0.0))
                    found[name] = max(found.get(name, 0.0), largest)
        for name, array in run.items():
            if is_float(array):
                found[name] = max(found.get(name, 0.0), float(np.abs(array).max(initial=0.0)))
    return found
