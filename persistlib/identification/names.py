"""Tensor names as a model has them: what training loops put around them, looked through.

Law: a view maps names of the file to names of the model one to one.

What is looked through: wrappers (`module.`, `_orig_mod.`), any prefix that all names share, the
names that torchvision itself gave the same tensors before, and optimizer state that lies beside.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from persistlib.selection import wrapper_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

# Names of tensors, and of values, that optimizers and training loops keep.
_OPTIMIZER = frozenset(
    {
        *("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "square_avg", "acc_delta"),
        *("momentum_buffer", "grad_avg", "exp_avg_sq_row", "exp_avg_sq_col"),
        *("optimizer", "optimizers", "optimizer_state", "optimizer_states", "optim"),
        *("optimizer_state_dict", "optim_state", "optim_state_dict"),
    }
)
# Torch writes the old names no more; torchvision's own weights still have them. Each: what the old
# name ends in, and what stands there now.
_OLD_NAMES = (
    # densenet, until 0.2.2
    (r"(denselayer\d+\.(?:norm|conv))\.([12]\.\w+)", r"\1\2"),
    # vision transformers, until 0.13
    (r"(mlp)\.linear_1\.(weight|bias)", r"\1.0.\2"),
    (r"(mlp)\.linear_2\.(weight|bias)", r"\1.3.\2"),
    # detection, until 0.13
    (r"(rpn\.head\.conv)\.(weight|bias)", r"\1.0.0.\2"),
    (r"(fpn\.(?:inner|layer)_blocks\.\d)\.(weight|bias)", r"\1.0.\2"),
    (r"(mask_head)\.mask_fcn1\.(weight|bias)", r"\1.0.0.\2"),
    (r"(mask_head)\.mask_fcn2\.(weight|bias)", r"\1.1.0.\2"),
    (r"(mask_head)\.mask_fcn3\.(weight|bias)", r"\1.2.0.\2"),
    (r"(mask_head)\.mask_fcn4\.(weight|bias)", r"\1.3.0.\2"),
    (r"(head\.(?:classification|regression)_head\.conv)\.0\.(weight|bias)", r"\1.0.0.\2"),
    (r"(head\.(?:classification|regression)_head\.conv)\.2\.(weight|bias)", r"\1.1.0.\2"),
    (r"(head\.(?:classification|regression)_head\.conv)\.4\.(weight|bias)", r"\1.2.0.\2"),
    (r"(head\.(?:classification|regression)_head\.conv)\.6\.(weight|bias)", r"\1.3.0.\2"),
)
_OLD = tuple((re.compile(f"(?<![^.]){old}$"), new) for old, new in _OLD_NAMES)
# No old name is told by more of its characters.
_TAIL = 64
# A part of the names that is this large may be the model, and the rest lie beside it.
_LARGE = 0.6
# Modules that are looked through; deeper ones are a model's own.
_DEPTH = 8


class View(NamedTuple):
    """Names of a file as a model has them.

    Attributes:
        names: of each name of the model, the name in the file.
        prefix: what was taken off in front of every name.
        old: how many names were those of an older torchvision.
        beside: names of the file that are no part of the view.
    """

    names: Mapping[str, str]
    prefix: str
    old: int
    beside: tuple[str, ...]


def views(names: Collection[str]) -> Iterator[View]:
    """Yield the ways to see the names of a file, the plainest first."""
    today = {name: _today(name) for name in names}
    yield from _renamed(today, "", ())
    prefix = ""
    for prefix in common_prefixes(names):
        yield from _renamed(today, prefix, ())
    if (largest := _largest_part(names, prefix)) is None:
        return
    inside = {name: new for name, new in today.items() if name.startswith(largest)}
    beside = tuple(name for name in names if name not in inside)
    for longer in common_prefixes(inside):
        if longer.startswith(largest):
            yield from _renamed(inside, longer, beside)


def _renamed(today: Mapping[str, str], prefix: str, beside: tuple[str, ...]) -> Iterator[View]:
    """Yield the view without a prefix, and where some names are old ones, with those of today."""
    yield View({name[len(prefix) :]: name for name in today}, prefix, 0, beside)
    changed = sum(name != new for name, new in today.items())
    new = {new[len(prefix) :]: name for name, new in today.items()}
    if changed and len(new) == len(today):
        yield View(new, prefix, changed, beside)


def _today(name: str) -> str:
    """Return what a name of an older torchvision is now; any other as it is."""
    head, tail = name[:-_TAIL], name[-_TAIL:]
    for pattern, new in _OLD:
        found, count = pattern.subn(new, tail)
        if count:
            return head + found
    return name


def common_prefixes(names: Collection[str]) -> Iterator[str]:
    """Yield the dotted prefixes that all names share and that leave something, growing."""
    prefix = wrapper_of(names)
    if prefix:
        yield prefix
    for _ in range(_DEPTH):
        heads = {name[len(prefix) :].partition(".")[:2] for name in names}
        if len(heads) != 1 or not (head := heads.pop())[1]:
            return
        prefix += "".join(head)
        if any(len(name) == len(prefix) for name in names):
            return
        yield prefix


def _largest_part(names: Collection[str], prefix: str) -> str | None:
    """Return the prefix of most names, where it is not that of all."""
    counts: dict[str, int] = {}
    for name in names:
        head, dot, rest = name[len(prefix) :].partition(".")
        if dot and rest:
            counts[head] = counts.get(head, 0) + 1
    largest = max(counts, key=counts.__getitem__, default="")
    if largest and _LARGE * len(names) <= counts[largest] < len(names):
        return f"{prefix}{largest}."
    return None


def is_optimizer(name: str) -> bool:
    """Return whether a dotted name is one of an optimizer's."""
    return not _OPTIMIZER.isdisjoint(re.split(r"[./]", name))
