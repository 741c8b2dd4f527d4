"""What `save` refuses, by name: modules in a state that a file cannot hold."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from persistlib.architecture.module_state import unsaved_tensors
from persistlib.dtypes import of_torch
from persistlib.errors import Code, error, finding

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from persistlib.architecture.module_state import StateTensor
    from persistlib.errors import Finding

# Wrappers by qualified name, so that none of their packages is imported; each with what to save.
_WRAPPERS = {
    "torch._dynamo.eval_frame.OptimizedModule": "the compiled model's `_orig_mod`",
    "torch.nn.parallel.distributed.DistributedDataParallel": "the wrapper's `module`",
    "torch.nn.parallel.data_parallel.DataParallel": "the wrapper's `module`",
    "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel": (
        "the wrapper's `module` inside FSDP.summon_full_params"
    ),
    "torch.jit._script.ScriptModule": "the module that was scripted or traced",
    "torch.fx.graph_module.GraphModule": "the module that was traced",
}
_SAVE_FLOAT = "save the float model, and quantise what is loaded or exported"
_PLAIN_CLASSES = (torch.Tensor, nn.Parameter, nn.Buffer)


def refusals(model: nn.Module, named: tuple[StateTensor, ...]) -> Iterator[Finding]:
    """Yield every reason why a module cannot be saved as it is."""
    wrapped = tuple(_wrapped(model))
    yield from wrapped
    if wrapped:
        return
    if not named:
        yield finding(Code.MODEL_EMPTY, "model", "no parameter and no buffer", "save a model")
    for item in named:
        if (refusal := _refusal(item.tensor)) is not None:
            code, reason, remedy = refusal
            yield finding(code, item.name, reason, remedy)
    yield from _quantised_modules(model)
    yield from _names(item.name for item in named)
    yield from _unsaved(tuple(unsaved_tensors(model)))
    yield from _hidden_state(model, {item.name for item in named})


def _wrapped(model: nn.Module) -> Iterator[Finding]:
    for path, module in model.named_modules():
        for kind in type(module).__mro__:
            if inner := _WRAPPERS.get(f"{kind.__module__}.{kind.__qualname__}"):
                yield finding(
                    Code.MODEL_WRAPPED,
                    path or "model",
                    f"a {type(module).__name__} around the model",
                    f"save {inner}",
                )
                break


def _refusal(tensor: torch.Tensor) -> tuple[Code, str, str] | None:
    """Return why a tensor cannot be kept, and the remedy; the first reason decides."""
    keeps = of_torch(str(tensor.dtype)) is not None
    kind = type(tensor).__name__
    reasons = (
        (is_lazy(tensor), Code.MODEL_UNINITIALISED, "has no shape yet", "run the model once"),
        (tensor.is_quantized, Code.MODEL_QUANTISED, f"is {tensor.dtype}", _SAVE_FLOAT),
        (
            tensor.layout is not torch.strided,
            Code.MODEL_LAYOUT,
            f"has the layout {tensor.layout}",
            "save its to_dense()",
        ),
        (
            type(tensor) not in _PLAIN_CLASSES,
            Code.MODEL_SUBCLASS,
            f"is a {kind}",
            "save the plain tensor that it stands for",
        ),
        (tensor.is_meta, Code.MODEL_META, "has no values: it is on meta", "load the weights first"),
        (not keeps, Code.MODEL_DTYPE, f"is {tensor.dtype}, which no file keeps", "cast it"),
    )
    return next((reason[1:] for reason in reasons if reason[0]), None)


def _unsaved(named: tuple[tuple[str, torch.Tensor], ...]) -> Iterator[Finding]:
    """Yield what is wrong with tensors outside the state_dict, which have a file of their own."""
    for name, tensor in named:
        if (refusal := _refusal(tensor)) is not None:
            code, reason, remedy = refusal
            yield finding(code, name, reason, remedy)
        elif tensor.requires_grad and tensor.is_leaf:
            yield finding(
                Code.MODEL_STATE,
                name,
                "trains, but is no parameter of any module",
                "assign it as a torch.nn.Parameter, or keep it in a torch.nn.ParameterList",
            )
    yield from _names(name for name, _ in named)


def _quantised_modules(model: nn.Module) -> Iterator[Finding]:
    for path, module in model.named_modules():
        name = type(module).__module__
        if type(module).__name__ == "FloatFunctional":  # computes in float; prepares for quantising
            continue
        if name.startswith(("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")):
            yield finding(
                Code.MODEL_QUANTISED,
                path or "model",
                f"a quantised {type(module).__name__}",
                _SAVE_FLOAT,
            )


def _names(names: Iterable[str]) -> Iterator[Finding]:
    seen: dict[str, str] = {}
    for name in names:
        try:
            folded = unicodedata.normalize("NFC", name).casefold()
            name.encode()
        except UnicodeEncodeError:
            yield finding(Code.MODEL_NAMES, ascii(name), "is not valid Unicode", "rename it")
            continue
        if "\0" in name:
            yield finding(Code.MODEL_NAMES, name, "holds a NUL character", "rename it")
        if folded in seen:
            yield finding(
                Code.MODEL_NAMES,
                name,
                "stands twice"
                if name == seen[folded]
                else f"differs from {seen[folded]} by letter case or Unicode form alone",
                "rename one of the two",
            )
        seen[folded] = name


def _hidden_state(model: nn.Module, names: set[str]) -> Iterator[Finding]:
    """Yield what the module's own state_dict has more, less or otherwise named."""
    for path, module in model.named_modules():
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            yield finding(
                Code.MODEL_STATE,
                path or "model",
                "keeps extra state that is no tensor (get_extra_state)",
                "keep it in buffers",
            )
            return
    try:
        reported = set(model.state_dict(keep_vars=True))
    except Exception as fault:
        raise error(
            Code.MODEL_STATE,
            "state_dict()",
            f"raised {type(fault).__name__}: {fault}",
            "remove the hook that raises",
        ) from fault
    for name in sorted(reported ^ names)[:10]:
        yield finding(
            Code.MODEL_STATE,
            name,
            "state_dict() and the module's own tensors disagree about it",
            "remove the hook that renames or hides tensors",
        )
