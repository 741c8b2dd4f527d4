"""Which form of a model explains the names and shapes of a checkpoint.

Law: a builder is claimed only if every tensor is explained: `build(builder, edits=edits)` has the
checkpoint's names and shapes, all of them, and no others (BatchNorm's counter of batches, which
checkpoints older than 2018 lack, excepted).

Names and shapes say nothing of what has no tensor: a stride, a dropout, the value of an epsilon. So
an edit is claimed only for a module of which the index knows the whole configuration, and only
where the checkpoint differs in what follows from a number of classes or of input channels.
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from persistlib.architecture.zoo_forms import CHANNELS, CLASSES, COUNT

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from persistlib.architecture.zoo_forms import Form, Step
    from persistlib.identification.names import View

COUNTER = ".num_batches_tracked"
Shape = tuple[int, ...]
Edit = dict[str, Any]
# Where a model without its last layer is something that people keep.
_TASKS = ("torchvision.models:", "torchvision.models.quantization:", "torchvision.models.video:")
_DETECTION = "torchvision.models.detection:"
_IDENTITY = "torch.nn:Identity"
# Of a candidate's tensors, the part that the checkpoint must share, or it tells nothing.
_SHARED = 0.5
_SHARED_SHAPES = 0.8


class Change(NamedTuple):
    """What an edit changes, in words that a verdict is made of.

    Attributes:
        kind: "classes", "channels", "removed" or "bias".
        path: of the module.
        found: the number in the checkpoint; 0 where nothing is counted.
        usual: the number of the builder.
    """

    kind: str
    path: str
    found: int
    usual: int


class Match(NamedTuple):
    """A form beside a checkpoint.

    Attributes:
        form: the form.
        view: how the checkpoint's names are seen.
        edits: what makes the form what the view shows; None where that cannot be said.
        changes: what the edits change.
        shared: tensors with the same name and shape.
        missing: names of the form that the checkpoint lacks or has in another shape.
        extra: names of the checkpoint that the form lacks or has in another shape.
        counters: whether all of BatchNorm's counters are lacking, which changes nothing.
        by: "names", or "shapes" where no name is known.
    """

    form: Form
    view: View
    edits: tuple[Edit, ...] | None
    changes: tuple[Change, ...]
    shared: int
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    counters: bool
    by: str = "names"

    @property
    def is_claimed(self) -> bool:
        """Whether every tensor of the checkpoint is explained."""
        return self.edits is not None and not self.view.beside

    @property
    def rank(self) -> tuple[Any, ...]:
        """What candidates are sorted by; the plainest builder of those that fit equally first."""
        builder = self.form.builder
        plain = builder.startswith("torchvision.") and "quantization" not in builder
        function = builder.partition(":")[2]
        return (*self.fit, not plain, "quantization" in builder, len(function), builder)

    @property
    def fit(self) -> tuple[Any, ...]:
        """How well the form fits: builders that agree in it cannot be told apart."""
        edits = len(self.edits or ())
        differing = len({*self.missing, *self.extra})
        return (
            not self.is_claimed,
            self.edits is None,
            edits,
            len(self.view.beside) + differing,
            self.view.prefix,
        )


def matches(
    forms: Iterable[Form], seen: Iterable[View], shapes: Mapping[str, Shape]
) -> list[Match]:
    """Return the forms that share at least half of their tensors, the best view of each.

    Args:
        forms: the models that are known.
        seen: the ways to see the checkpoint's names.
        shapes: of each name of the file, the tensor's shape.
    """
    given = [(view, {name: shapes[file] for name, file in view.names.items()}) for view in seen]
    items = [(view, named, frozenset(named.items())) for view, named in given]
    best: dict[tuple[str, str], Match] = {}
    for form in forms:
        theirs = _items(form.rows)
        for view, named, pairs in items:
            shared = len(pairs & theirs)
            if shared < _SHARED * max(len(theirs), 1):
                continue
            match = _match(form, view, named, shared)
            key = (form.builder, repr(form.arguments))
            if key not in best or match.rank < best[key].rank:
                best[key] = match
    return sorted(best.values(), key=lambda match: match.rank)


@cache
def _items(rows: frozenset[Any]) -> frozenset[tuple[str, Shape]]:
    return frozenset((name, shape) for name, _, shape in rows)


def _match(form: Form, view: View, given: Mapping[str, Shape], shared: int) -> Match:
    theirs = dict(_items(form.rows))
    differing = {name for name in theirs if given.get(name, ()) != theirs[name]}
    missing = {name for name in theirs if name not in given} | differing
    extra = {name for name in given if name not in theirs or name in differing}
    counters = {name for name in theirs if name.endswith(COUNTER)}
    old = bool(counters) and counters <= missing
    if old:
        missing -= counters
    found = _Explaining(form, theirs, given).explain(missing | extra)
    return Match(
        form,
        view,
        None if found is None else tuple(found[0]),
        () if found is None else tuple(found[1]),
        shared,
        tuple(sorted(missing)),
        tuple(sorted(extra)),
        old,
    )


class _Unexplained(Exception):  # noqa: N818 - an outcome, caught where it is raised
    """A difference that no edit says."""


class _Explaining:
    """The edits that make a form what a checkpoint shows."""

    def __init__(self, form: Form, theirs: Mapping[str, Shape], given: Mapping[str, Shape]) -> None:
        self._form = form
        self._theirs = theirs
        self._given = given
        self._edits: list[Edit] = []
        self._changes: list[Change] = []

    def explain(self, differing: Collection[str]) -> tuple[list[Edit], list[Change]] | None:
        """Return edits for all of the differing names, and what they change; None if some stay."""
        waiting = set(differing)
        try:
            counts = self._counts()
            for step in self._form.steps:
                if step.kind == COUNT:
                    self._count(step, counts)
                    continue
                own = {f"{step.path}.weight", f"{step.path}.bias"} & waiting
                if not own:
                    continue
                if step.kind == CLASSES and f"{step.path}.weight" not in self._given:
                    own = self._remove(step)
                else:
                    self._replace(step)
                waiting -= own
        except _Unexplained:
            return None
        return None if waiting else (self._edits, self._changes)

    def _counts(self) -> tuple[int, int] | None:
        """Return the number of classes in the checkpoint and in the form, where it must be one."""
        is_one = any(step.kind == COUNT for step in self._form.steps)
        if not is_one and not self._form.builder.startswith(_DETECTION):
            return None
        found = {self._outputs(step) for step in self._form.steps if step.kind == CLASSES}
        if len(found) != 1:
            raise _Unexplained
        return found.pop()

    def _outputs(self, step: Step) -> tuple[int, int]:
        """Return for how many classes a module has outputs in the checkpoint, and in the form."""
        name = f"{step.path}.weight"
        usual = self._theirs[name]
        found = self._given.get(name, ())
        if (
            len(found) != len(usual)
            or found[1:] != usual[1:]
            or found[0] % step.per
            or not found[0]
        ):
            raise _Unexplained
        return found[0] // step.per, usual[0] // step.per

    def _count(self, step: Step, counts: tuple[int, int] | None) -> None:
        if counts is not None and counts[0] != counts[1]:
            edit = {"op": "set", "path": step.path, "attribute": step.what, "value": counts[0]}
            self._edits.append(edit)

    def _replace(self, step: Step) -> None:
        """Add the edit for a module with another number of outputs or inputs, or another bias."""
        arguments = dict(step.arguments)
        if step.kind == CLASSES:
            found, usual = self._outputs(step)
            key = "out_features" if "out_features" in arguments else "out_channels"
            arguments[key] = found * step.per
        else:
            found, usual = self._channels()
            arguments["in_channels"] = found
        if found != usual:
            self._changes.append(Change(step.kind, step.path, found, usual))
        name = f"{step.path}.bias"
        if (name in self._given) != (name in self._theirs):
            arguments.pop("bias", None)
            if name not in self._given:
                arguments["bias"] = False
            self._changes.append(Change("bias", step.path, int(name in self._given), 0))
        outputs = self._given[f"{step.path}.weight"][:1]
        if self._given.get(name, outputs) != outputs:
            raise _Unexplained
        self._edits.append(
            {"op": "replace", "path": step.path, "builder": step.what, "arguments": arguments}
        )

    def _channels(self) -> tuple[int, int]:
        """Return how many channels the input has in the checkpoint, and in the form."""
        both = set()
        for other in self._form.steps:
            if other.kind == CHANNELS:
                name = f"{other.path}.weight"
                usual, found = self._theirs[name], self._given.get(name, ())
                if len(found) != len(usual) or found[:1] + found[2:] != usual[:1] + usual[2:]:
                    raise _Unexplained
                both.add((found[1], usual[1]))
        if len(both) != 1 or not min(both)[0]:
            raise _Unexplained
        return both.pop()

    def _remove(self, step: Step) -> set[str]:
        """Add the edit for a last layer that is not there, and return the names that it explains.

        The layers before it that are gone too go with it, as far as they share a module with it.
        """
        if not self._form.builder.startswith(_TASKS):
            raise _Unexplained
        path = step.path
        for above in _above(path):
            if not self._below(above).isdisjoint(self._given):
                break
            if self._below(above) != self._below(path):
                path = above
        own = self._below(path)
        if not own.isdisjoint(self._given):
            raise _Unexplained
        self._edits.append({"op": "replace", "path": path, "builder": _IDENTITY, "arguments": {}})
        self._changes.append(Change("removed", path, 0, 0))
        return own

    def _below(self, path: str) -> set[str]:
        return {name for name in self._theirs if name.startswith(f"{path}.")}


def _above(path: str) -> list[str]:
    """Return the modules above a path, the nearest first and the root left out."""
    parts = path.split(".")
    return [".".join(parts[:count]) for count in range(len(parts) - 1, 0, -1)]


def by_shapes(forms: Iterable[Form], view: View, shapes: Mapping[str, Shape]) -> list[Match]:
    """Return the forms whose kernels have a checkpoint's extents, whatever order those stand in.

    For files that name tensors otherwise: other frameworks, and graphs that were optimised.
    """
    ours = _kernels(shapes.values())
    total = sum(ours.values())
    found = []
    for form in forms:
        theirs = _kernels(shape for _, shape in _items(form.rows))
        shared = sum((ours & theirs).values())
        largest = max(total, sum(theirs.values()))
        if largest and shared >= _SHARED_SHAPES * largest:
            missing, extra = _names(theirs - ours), _names(ours - theirs)
            found.append(Match(form, view, None, (), shared, missing, extra, False, "shapes"))
    return sorted(found, key=lambda match: match.rank)


def _kernels(shapes: Iterable[Shape]) -> Counter[Shape]:
    return Counter(tuple(sorted(shape)) for shape in shapes if len(shape) > 1)


def _names(kernels: Counter[Shape]) -> tuple[str, ...]:
    return tuple(f"a kernel of {sorted(shape)}" for shape in sorted(kernels.elements()))
