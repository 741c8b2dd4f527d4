"""Which outputs of a model answer, and which targets they answer to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from persistlib.training import nests
from persistlib.training.tasks import ANSWERS

if TYPE_CHECKING:
    from persistlib.training.tasks import Head


def primary(outputs: Any) -> torch.Tensor:
    """Return the tensor that answers: the outputs, or the first where there are several.

    Of named ones it is `logits` or `out` where there is one. Auxiliary heads (googlenet,
    inception) come after it and take no part.

    Raises:
        TypeError: there is no tensor.
    """
    if isinstance(outputs, torch.Tensor):
        return outputs
    if isinstance(outputs := _named(outputs), Mapping):
        known = (outputs[name] for name in ANSWERS if name in outputs)
        outputs = next(known, next(iter(outputs.values()), None))
    elif isinstance(outputs, Sequence) and outputs:
        outputs = outputs[0]
    if not isinstance(outputs, torch.Tensor):
        raise TypeError(f"the model returned no tensor but {type(outputs).__name__}")
    return outputs


def of_heads(outputs: Any, heads: Sequence[Head]) -> list[torch.Tensor]:
    """Return what each head answered: by name, or by place where outputs have none.

    Raises:
        TypeError: a head has no tensor.
    """
    if not heads[0].name:
        return [primary(outputs)]
    return _parts(outputs, heads, "the model returned")


def targets_of(targets: Any, heads: Sequence[Head]) -> list[torch.Tensor]:
    """Return the targets of each head, found as `of_heads` finds outputs.

    Raises:
        TypeError: a head has no tensor, or there are several and none is named.
    """
    if heads[0].name:
        return _parts(targets, heads, "targets are")
    if not isinstance(targets, torch.Tensor):
        form = "a mapping" if isinstance(targets, Mapping) else "several tensors"
        raise TypeError(
            f"targets are {form}: name each head in task=, such as {{'a': 'regression'}}"
        )
    return [targets]


def left_out(outputs: Any, targets: Any, heads: Sequence[Head]) -> list[str]:
    """Return the outputs that have targets, by name or by place, and no head: they do not train."""
    if not heads[0].name:
        return []
    given, wanted = _named(outputs), _named(targets)
    if isinstance(given, Mapping) and isinstance(wanted, Mapping):
        names = {head.name for head in heads}
        return [str(name) for name in given if name in wanted and name not in names]
    if isinstance(given, (list, tuple)) and isinstance(wanted, (list, tuple)):
        return [f"[{place}]" for place in range(len(heads), min(len(given), len(wanted)))]
    return []


def _named(nest: Any) -> Any:
    """Return a nest whose parts have names as a mapping, and any other as it is."""
    if hasattr(nest, "_fields"):
        return nest._asdict()
    own = nests.fields_of(nest)
    return nest if own is None else own


def _parts(nest: Any, heads: Sequence[Head], what: str) -> list[torch.Tensor]:
    """Return the tensor of each head in a nest of one level."""
    names = [head.name for head in heads]
    nest = _named(nest)
    if isinstance(nest, Mapping):
        if absent := [name for name in names if name not in nest]:
            raise TypeError(f"{what} {', '.join(map(str, nest))}, and no {absent[0]!r}")
        parts = [nest[name] for name in names]
    elif isinstance(nest, (list, tuple)) and len(nest) >= len(names):
        parts = [*nest[: len(names)]]
    else:
        count = f"{len(nest)} tensors" if isinstance(nest, (list, tuple)) else "one tensor"
        raise TypeError(f"{what} {count}, for {len(names)} heads: {', '.join(names)}")
    for name, part in zip(names, parts, strict=True):
        if not isinstance(part, torch.Tensor):
            raise TypeError(f"{what} a {type(part).__name__} for {name!r}")
    return parts
