"""What a module holds: reading it for a save, and putting it back on a load.

Law: `restore(skeleton, capture(model)) == model` for tensors, ties, strides, `requires_grad`,
training flags, frozen modules, and the tensors that a state_dict leaves out.
"""

from __future__ import annotations

import functools
import itertools
import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from persistlib.architecture.freezing import keep_in_eval, kept_in_eval
from persistlib.checkpoint import CheckpointReader, Entry, check_booleans
from persistlib.digests import digest, encode_name
from persistlib.dtypes import DType, of_torch
from persistlib.errors import Code, Severity, error, error_of, finding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from persistlib.errors import Finding


_ALIGNMENT = 64  # bytes: c10/core/alignment.h


class StateTensor(NamedTuple):
    """A tensor of the state_dict, with its role and whether it trains."""

    name: str
    tensor: torch.Tensor
    is_parameter: bool

    @property
    def frozen(self) -> bool:
        """Whether it is a parameter that does not train."""
        return self.is_parameter and not self.tensor.requires_grad


@dataclass(frozen=True)
class ModuleState:
    """Everything that a module holds.

    Attributes:
        tensors: the state_dict in its order, each memory once.
        aliases: second names of tied tensors, each to the smallest name.
        unsaved: non-persistent buffers and tensor attributes, by dotted name.
        training: paths whose training flag differs from their parent's.
        kept_in_eval: paths that `freeze` keeps in evaluation.
        strides: of tensors that are dense but not row-major.
        findings: what a save has to tell.
    """

    tensors: tuple[StateTensor, ...]
    aliases: Mapping[str, str]
    unsaved: Mapping[str, torch.Tensor]
    training: tuple[str, ...]
    kept_in_eval: tuple[str, ...]
    strides: Mapping[str, tuple[int, ...]]
    findings: tuple[Finding, ...]


class TensorCheckpoint(CheckpointReader):
    """Torch tensors as a checkpoint; those of an accelerator are copied to the host one by one."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], aliases: Mapping[str, str]) -> None:
        entries = tuple(
            Entry(name, dtype_of(tensor), tuple(tensor.shape)) for name, tensor in tensors.items()
        )
        super().__init__(entries, aliases, {"format": "pt"})
        self._tensors = tensors

    def read_bytes(self, name: str) -> memoryview:
        """Return the row-major bytes of a tensor, a view where it is already so."""
        view = tensor_bytes(self._tensors[name])
        return check_booleans(view, name) if self.tensors[name].dtype is DType.BOOL else view


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """Return the row-major little-endian bytes of a strided tensor."""
    dense = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return dense.reshape(-1).view(torch.uint8).numpy().data


def tensor_of(view: memoryview, dtype: DType, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a tensor over writable bytes; copied only where they lie as torch never lays them.

    Kernels sum in another order on memory of another alignment, and outputs would differ in the
    last bits from those of the tensor that was saved.
    """
    if dtype is DType.BOOL:
        check_booleans(view, "tensor")
    if not view.nbytes:
        return torch.empty(shape, dtype=dtype.torch)
    placed = torch.frombuffer(view, dtype=torch.uint8)
    aligned = placed if placed.data_ptr() % _ALIGNMENT == 0 else placed.clone()
    return aligned.view(dtype.torch).reshape(shape)


def with_strides(tensor: torch.Tensor, strides: tuple[int, ...] | None) -> torch.Tensor:
    """Return the tensor laid out with the given strides, or as it is for None."""
    if strides is None:
        return tensor
    laid_out = torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype)
    return laid_out.copy_(tensor)


def dtype_of(tensor: torch.Tensor) -> DType:
    """Return a tensor's dtype.

    Raises:
        ModelError: no file keeps that dtype.
    """
    dtype = of_torch(str(tensor.dtype))
    if dtype is None:
        raise error(Code.MODEL_DTYPE, str(tensor.dtype), "no file keeps it", "cast the tensor")
    return dtype


def state_tensors(model: nn.Module) -> Iterator[StateTensor]:
    """Yield the parameters and persistent buffers in the order of the state_dict, ties repeated."""
    for path, module in model.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        for name, parameter in module._parameters.items():  # noqa: SLF001 - has no public form
            if parameter is not None:
                yield StateTensor(prefix + name, parameter, is_parameter=True)
        transient = module._non_persistent_buffers_set  # noqa: SLF001 - as above
        for name, buffer in module._buffers.items():  # noqa: SLF001 - as above
            if buffer is not None and name not in transient:
                yield StateTensor(prefix + name, buffer, is_parameter=False)


def require_savable(model: nn.Module) -> None:
    """Refuse a module that holds what a file cannot.

    Raises:
        ModelError: every such place is in `findings`.
    """
    from persistlib.architecture.refusals import refusals

    if findings := tuple(refusals(model, tuple(state_tensors(model)))):
        raise error_of(findings)


def capture(model: nn.Module) -> ModuleState:
    """Return everything that a module holds.

    Raises:
        ModelError: as `require_savable`.
    """
    require_savable(model)
    named = tuple(state_tensors(model))
    aliases = _ties(named)
    by_tensor_name = {item.name: item for item in named}
    order = dict.fromkeys(aliases.get(item.name, item.name) for item in named)
    tensors = tuple(by_tensor_name[name] for name in order)
    unsaved = dict(unsaved_tensors(model))
    kept = (*tensors, *(StateTensor(name, t, is_parameter=False) for name, t in unsaved.items()))
    return ModuleState(
        tensors=tensors,
        aliases=aliases,
        unsaved=unsaved,
        training=training_toggles(model),
        kept_in_eval=kept_in_eval(model),
        strides={item.name: s for item in kept if (s := _odd_strides(item.tensor)) is not None},
        findings=tuple(_overlaps(tensors)),
    )


def _ties(named: tuple[StateTensor, ...]) -> dict[str, str]:
    groups: dict[tuple[Any, ...], list[str]] = {}
    for name, tensor, _ in named:
        storage = tensor.untyped_storage()
        place = (storage.data_ptr(), tensor.storage_offset()) if tensor.numel() else id(tensor)
        key = (tensor.device, place, tensor.dtype, tuple(tensor.shape), tensor.stride())
        groups.setdefault(key, []).append(name)
    smallest = {name: min(group, key=encode_name) for group in groups.values() for name in group}
    return {name: kept for name, kept in smallest.items() if name != kept}


def _overlaps(tensors: tuple[StateTensor, ...]) -> Iterator[Finding]:
    spans = sorted(
        (t.device.type, t.data_ptr(), t.data_ptr() + _extent(t), name)
        for name, t, _ in tensors
        if t.numel()
    )
    for (device, _, end, name), (other_device, begin, _, other) in itertools.pairwise(spans):
        if device == other_device and begin < end:
            yield finding(
                Code.MODEL_OVERLAP,
                other,
                f"lies in the same memory as {name}; both are saved as copies of their own",
                severity=Severity.WARNING,
            )


def _extent(tensor: torch.Tensor) -> int:
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


def _odd_strides(tensor: torch.Tensor) -> tuple[int, ...] | None:
    """Return the strides of a dense tensor that is not plainly row-major."""
    strides = tuple(tensor.stride())
    expected = 1
    plain: list[int] = []
    for extent in reversed(tensor.shape):
        plain.append(expected)
        expected *= max(extent, 1)
    dense = tensor.numel() and _extent(tensor) == tensor.numel() * tensor.element_size()
    return strides if dense and strides != tuple(reversed(plain)) and 0 not in strides else None


def unsaved_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors that the state_dict leaves out, by dotted name.

    They are non-persistent buffers, and tensors in the module's plain attributes, also inside
    lists, tuples and dicts; an attribute that only repeats a state tensor is none.
    """
    for place in _unsaved_places(model):
        yield place.name, place.tensor


class _Place(NamedTuple):
    """Where a tensor stands that is no part of the state_dict, and what puts another there."""

    name: str
    tensor: torch.Tensor
    put: Callable[[Any], object]


def _unsaved_places(model: nn.Module) -> Iterator[_Place]:
    known = {id(item.tensor) for item in state_tensors(model)}
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        transient = module._non_persistent_buffers_set  # noqa: SLF001 - has no public form
        places: dict[str, Any] = {
            name: buffer
            for name, buffer in module._buffers.items()  # noqa: SLF001 - as above
            if name in transient
        }
        plain = {k: v for k, v in vars(module).items() if k not in _MODULE_INTERNALS}
        for name, value in {**places, **plain}.items():
            put = functools.partial(setattr, module, name)
            yield from (
                p for p in _places_in(value, prefix + name, put) if id(p.tensor) not in known
            )


def _places_in(value: Any, name: str, put: Callable[[Any], object]) -> Iterator[_Place]:
    if isinstance(value, torch.Tensor):
        yield _Place(name, value, put)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _places_in(
                item, f"{name}.{key}", functools.partial(operator.setitem, value, key)
            )
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _places_in(
                item, f"{name}.{index}", functools.partial(operator.setitem, value, index)
            )
    elif isinstance(value, tuple):
        items = list(value)
        for index, item in enumerate(value):
            changed = functools.partial(_put_in_tuple, type(value), items, index, put)
            yield from _places_in(item, f"{name}.{index}", changed)


def _put_in_tuple(
    kind: type[Any], items: list[Any], index: int, put: Callable[[Any], object], item: Any
) -> None:
    items[index] = item
    put(kind(*items) if hasattr(kind, "_fields") else tuple(items))


def training_toggles(model: nn.Module) -> tuple[str, ...]:
    """Return the paths of modules whose training flag differs from their parent's."""
    flags = {path: module.training for path, module in model.named_modules()}
    return tuple(path for path, flag in flags.items() if flag != _parent_flag(flags, path))


def _parent_flag(flags: Mapping[str, bool], path: str) -> bool:
    return flags[path.rpartition(".")[0]] if path else False


def restore_training(model: nn.Module, toggles: tuple[str, ...], kept: tuple[str, ...]) -> None:
    """Set every training flag as it was, and keep in evaluation what `freeze` kept there."""
    switched = set(toggles)
    flags: dict[str, bool] = {}
    for path, module in model.named_modules():
        flags[path] = _parent_flag(flags, path) ^ (path in switched)
        module.training = flags[path]
    for path in kept:
        keep_in_eval(model.get_submodule(path))


def assign(model: nn.Module, tensors: Mapping[str, StateTensor]) -> None:
    """Give a module its tensors, without copying: every name or none.

    Args:
        model: a skeleton; plain attributes that repeat a parameter are given the new one.
        tensors: by every name, ties as one and the same value.

    Raises:
        ArchitectureError: names or shapes differ; nothing was changed.
    """
    old = {item.name: item.tensor for item in state_tensors(model)}
    if findings := tuple(_mismatches(old, tensors)):
        raise error_of(findings)
    made: dict[int, torch.Tensor] = {}
    replaced: dict[int, torch.Tensor] = {}
    for name, before in old.items():
        given = tensors[name]
        key = id(given.tensor)
        if key not in made:
            made[key] = (
                nn.Parameter(given.tensor.detach(), requires_grad=given.tensor.requires_grad)
                if given.is_parameter
                else given.tensor
            )
        path, _, attribute = name.rpartition(".")
        owner = model.get_submodule(path)
        setattr(owner, attribute, made[key])
        replaced[id(before)] = made[key]
    for module in model.modules():
        plain = vars(module)
        for attribute in plain.keys() - _MODULE_INTERNALS:
            plain[attribute] = _with_replaced(plain[attribute], replaced)
        _run_weight_hooks(module)


def _mismatches(
    old: Mapping[str, torch.Tensor], new: Mapping[str, StateTensor]
) -> Iterator[Finding]:
    for name in sorted(old.keys() | new.keys()):
        if name not in new:
            reason = "the rebuilt module has it, the weights do not"
        elif name not in old:
            reason = "the weights have it, the rebuilt module does not"
        elif old[name].shape != new[name].tensor.shape:
            reason = f"rebuilt as {tuple(old[name].shape)}, stored {tuple(new[name].tensor.shape)}"
        else:
            continue
        yield finding(
            Code.TENSOR_MISMATCH, name, reason, "load it with the versions it was saved with"
        )


def _with_replaced(value: Any, replaced: Mapping[int, torch.Tensor]) -> Any:
    """Return a plain attribute with old tensors replaced by the new ones, also in containers."""
    if isinstance(value, torch.Tensor):
        return replaced.get(id(value), value)
    if type(value) is list:
        value[:] = [_with_replaced(item, replaced) for item in value]
    elif type(value) is dict:
        for key in value:
            value[key] = _with_replaced(value[key], replaced)
    elif type(value) is tuple and any(isinstance(item, torch.Tensor) for item in value):
        return tuple(_with_replaced(item, replaced) for item in value)
    return value


def _run_weight_hooks(module: nn.Module) -> None:
    """Let old-style weight_norm and spectral_norm compute their weight from its parts once.

    In training spectral_norm would also move its vectors, which are the caller's at a save.
    """
    mode, module.training = module.training, False
    for hook in module._forward_pre_hooks.values():  # noqa: SLF001 - has no public form
        if type(hook).__module__ in _WEIGHT_HOOKS:
            hook(module, ())
    module.training = mode


def set_unsaved(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put tensors that are no part of the state_dict back in their places.

    Places that share one tensor share the new one too, where it has the same bits.

    Raises:
        ArchitectureError: the module has no such place.
    """
    places = {place.name: place for place in _unsaved_places(model)}
    given: dict[int, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if name not in places:
            raise error(
                Code.TENSOR_MISMATCH,
                name,
                "the rebuilt module has no such place",
                "load it with the versions it was saved with",
            )
        first = given.setdefault(id(places[name].tensor), tensor)
        places[name].put(first if same_bits(first, tensor) else tensor)


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two tensors have one dtype, one shape and the same bytes."""
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and not one.is_meta
        and not other.is_meta
        and digest(tensor_bytes(one)) == digest(tensor_bytes(other))
    )


def left_on_meta(model: nn.Module) -> tuple[str, ...]:
    """Return the names of all tensors of a module that have no values."""
    named = ((item.name, item.tensor) for item in state_tensors(model))
    return tuple(name for name, t in (*named, *unsaved_tensors(model)) if t.is_meta)


# torch keeps these in every module; none holds configuration of the model's own.
_MODULE_INTERNALS = frozenset(vars(nn.Module()))
_WEIGHT_HOOKS = {"torch.nn.utils.weight_norm", "torch.nn.utils.spectral_norm"}
