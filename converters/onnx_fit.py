"""Whether weights fit the graph of a template, tensor by tensor, before a byte is written.

Law: a fit names every tensor of the checkpoint once, and every initializer of the template is
either replaced by the tensor of its name or kept for a reason that `write_to` promises.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from persistlib.converters.onnx_model import INITIALIZER
from persistlib.converters.onnx_weights import place, weights_of
from persistlib.dtypes import DType
from persistlib.errors import Code, error
from persistlib.graph_notes import Notes
from persistlib.wording import with_rest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from persistlib.checkpoint import CheckpointReader, Entry
    from persistlib.converters.onnx_model import OnnxModel
    from persistlib.converters.onnx_weights import Weights

_SHOWN = 5
# Operators take their shapes, axes and indices as these.
_ARGUMENTS = {DType.I64, DType.BOOL}


class Placed(NamedTuple):
    """A tensor to write.

    Attributes:
        name: of the initializer.
        source: what it shares its values with: its own name, or the first of those it is tied to.
        number: ONNX's number of its dtype, as it stands in the graph.
        dims: its extents there.
        nbytes: of its values.
        span: begin and end of the template's tensor; None where the template has none.
        windows: gives its values.
    """

    name: str
    source: str
    number: int
    dims: tuple[int, ...]
    nbytes: int
    span: tuple[int, int] | None
    windows: Callable[[], Iterator[memoryview]]


class Fit(NamedTuple):
    """How weights go into a template.

    Attributes:
        placed: the tensors to write, those of the checkpoint first and in its order.
        kept: begin and end of the initializers that stay as they are, tags included.
        notes: what the written file notes of its weights.
    """

    placed: list[Placed]
    kept: list[tuple[int, int]]
    notes: Notes


def fit(checkpoint: CheckpointReader, model: OnnxModel) -> Fit:
    """Return how the weights of a checkpoint go into a template.

    Raises:
        FormatError: a name, dtype or shape does not fit.
    """
    weights = weights_of(model, whole=False)
    return _Fitting(checkpoint, model, weights).run()


class _Fitting:
    """One comparison of a checkpoint with a template."""

    def __init__(self, checkpoint: CheckpointReader, model: OnnxModel, weights: Weights) -> None:
        self.checkpoint, self.model, self.weights = checkpoint, model, weights
        self.own = dict(model.initializers())
        self.views = set(weights.notes.views if weights.notes else ())

    def run(self) -> Fit:
        """Compare names, then each tensor, then see to what is left."""
        names = (*self.checkpoint.tensors, *self.checkpoint.aliases)
        models = self._models()
        self._require_all(set(names))
        self._require_inside()
        placed = [self._placed(name, models[name]) for name in names]
        kept, moved = self._left(set(names))
        views = tuple(sorted(name for name in names if models[name] in self.views))
        notes = Notes(names, dict(self.checkpoint.aliases), views)
        return Fit(placed + moved, kept, notes)

    def _models(self) -> dict[str, str]:
        """Return for each tensor the template's initializer that it is written like."""
        groups = {name: [name] for name in self.checkpoint.tensors}
        for alias, name in self.checkpoint.aliases.items():
            groups[name].append(alias)
        models: dict[str, str] = {}
        lacking: list[str] = []
        for names in groups.values():
            there = [name for name in names if name in self.own]
            lacking += [] if there else names
            models |= {name: name if name in self.own else there[0] for name in names if there}
        if lacking:
            self._refuse(
                f"has no initializer {_shown(lacking)}",
                "leave them out (--only), rename them (--rename), or take another template",
            )
        return models

    def _placed(self, name: str, model: str) -> Placed:
        owner = self.checkpoint.aliases.get(name, name)
        entry, found = self.checkpoint.tensors[owner], self.weights.tensors.get(model)
        if found is None or (found.entry.dtype, found.entry.shape) != (entry.dtype, entry.shape):
            there = "text" if found is None else _described(found.entry)
            same_dtype = found is not None and found.entry.dtype is entry.dtype
            raise error(
                Code.FORMAT_SHAPE if same_dtype else Code.FORMAT_DTYPE,
                f"{self.model.location}: {model}",
                f"the template has {there}, the weights have {_described(entry)}",
                "take the template that was made for these weights",
            )
        own = self.own[model]
        span = own.span if model == name else None
        read = partial(self.checkpoint.windows, owner)
        return Placed(name, owner, own.number, own.dims, entry.nbytes, span, read)

    def _require_all(self, given: set[str]) -> None:
        """Refuse weights that leave out what the template's own values must not stand in for."""
        notes = self.weights.notes
        missing = [
            name
            for name, found in self.weights.tensors.items()
            if name not in given
            and (
                name in notes.state
                if notes is not None and notes.state is not None
                else found.entry.dtype not in _ARGUMENTS or len(found.entry.shape) > 1
            )
        ]
        if missing:
            self._refuse(
                f"has initializers that the weights lack: {_shown(missing)}",
                "give all of its weights, so that those of two models are never mixed",
            )

    def _require_inside(self) -> None:
        """Refuse data files that the written graph would still name from elsewhere."""
        main = {tensor.span for tensor in self.own.values()}
        for span, tensor in self.model.everywhere.items():
            if tensor.place is not None and span not in main:
                self._refuse(
                    f"has external data in a node or function ({tensor.name!r})",
                    "load the template with onnx and save it with all data inside",
                )

    def _left(self, given: set[str]) -> tuple[list[tuple[int, int]], list[Placed]]:
        """Return what stays as it stands, and what must be moved out of the template's files."""
        kept: list[tuple[int, int]] = []
        moved: list[Placed] = []
        first: dict[object, str] = {}
        for field in self.model.inside(self.model.span):
            if field.number != INITIALIZER or (name := self.model.tensor(field).name) in given:
                continue
            own = self.own[name]
            if own.place is None:
                kept.append((field.tag, field.end))
                continue
            values = self.weights.tensors[name]
            source = first.setdefault(place(values) or name, name)
            nbytes = values.entry.nbytes
            read = values.values.windows
            moved.append(Placed(name, source, own.number, own.dims, nbytes, own.span, read))
        return kept, moved

    def _refuse(self, reason: str, remedy: str) -> NoReturn:
        raise error(Code.FORMAT_NAME, self.model.location, f"the template {reason}", remedy)


def _shown(names: list[str]) -> str:
    return with_rest([*map(repr, names)], _SHOWN)


def _described(entry: Entry) -> str:
    return f"{entry.dtype.name} {entry.shape}"
