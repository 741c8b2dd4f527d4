"""All that can be seen of a module and of what it computes, and a process that loads and looks.

What is said here is read from torch alone, so that it judges persistlib's own reading of a module.
`python portrait.py` answers requests on its standard input, each in a process of its own that has
never seen the module that was saved.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import random
import subprocess
import sys
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from blake3 import blake3
from torch import nn
from torch.utils import _pytree

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

Portrait = dict[str, Any]
# Attributes of torch's own, and persistlib's note of where a module came from.
_INTERNAL = frozenset(vars(nn.Module()))


def bits(tensor: torch.Tensor) -> str:
    """Return the digest of a tensor's values in row-major order."""
    flat = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    values: Any = flat.view(torch.uint8).numpy()
    return blake3(memoryview(values)).hexdigest() if len(flat) else ""


def draw(model: nn.Module, inputs: Sequence[torch.Tensor]) -> Portrait:
    """Return everything that can be seen of a module: state first, then what it computes.

    The module is a little trained afterwards, so it is of no further use.
    """
    torch.set_num_threads(1)
    portrait = state(model)
    portrait["outputs"] = [leaf.clone() for leaf in _outputs(model.eval(), inputs)]
    portrait["training again"] = _train_once(model, inputs)
    return portrait


def state(model: nn.Module) -> Portrait:
    """Return what a module holds: names, order, flags, ties, layout and every value."""
    modules = list(model.named_modules(remove_duplicate=False))
    rows = list(_rows(modules))
    return {
        "modules": [(path, _class(module), module.training) for path, module in modules],
        "tensors": [_row(*row) for row in rows],
        "ties": _groups((name, id(tensor)) for name, _, tensor in rows),
        "memory": _groups((name, _memory(tensor)) for name, _, tensor in rows if tensor.numel()),
        "state_dict": list(model.state_dict()),
        "parameters": [name for name, _ in model.named_parameters()],
    }


def differences(one: Portrait, other: Portrait) -> list[str]:
    """Return where two portraits differ, a line each."""
    found = []
    for key in sorted(one.keys() | other.keys()):
        ours: Any = one.get(key)
        theirs: Any = other.get(key)
        if key == "outputs":
            found += [f"output {n}" for n, pair in enumerate(zip(ours, theirs, strict=True))
                      if not _same(*pair)]  # fmt: skip
        elif ours != theirs:
            rows = [(a, b) for a, b in zip(ours or (), theirs or (), strict=False) if a != b]
            found.append(f"{key}: {rows[:2] or (ours, theirs)}")
    return found


def tells(portrait: Portrait) -> bool:
    """Return whether the outputs could show a difference: finite, no constants, no row twice."""
    for output in portrait["outputs"]:
        values = output.float()
        rows = values.reshape(values.shape[0], -1)
        if not values.isfinite().all() or values.std() < 1e-4 * values.abs().mean():
            return False
        if len({bits(row) for row in rows}) < len(rows):
            return False
    return bool(portrait["outputs"])


def settle(model: nn.Module, *inputs: torch.Tensor, batches: int = 3) -> nn.Module:
    """Give BatchNorm statistics that are its data's, and put the module in evaluation."""
    model.train()
    generator = torch.Generator().manual_seed(99)
    with torch.no_grad():
        for norm in model.modules():
            if isinstance(norm, nn.modules.batchnorm._NormBase) and norm.affine:
                norm.weight.uniform_(0.5, 1.5, generator=generator)
                norm.bias.uniform_(-0.5, 0.5, generator=generator)
        for _ in range(batches):
            noise = [torch.rand(i.shape, generator=generator).to(i) for i in inputs]
            model(*(i + n for i, n in zip(inputs, noise, strict=True)))
    return model.eval()


def world() -> Portrait:
    """Return what belongs to the caller: random states, default dtype, modes, filters."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002 - what a caller may rely on
    return {
        "torch": bits(torch.get_rng_state()),
        "numpy": (name, hashlib.sha256(np.asarray(keys).tobytes()).hexdigest(), tuple(rest)),
        "python": hash(random.getstate()),
        "dtype": str(torch.get_default_dtype()),
        "device": str(torch.get_default_device()),
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "filters": [str(f) for f in warnings.filters],
        "folder": os.getcwd(),
        "environment": sorted(os.environ.items()),
        "handlers": len(sys.meta_path),
    }


def _class(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _rows(modules: Sequence[tuple[str, nn.Module]]) -> Iterator[tuple[str, str, torch.Tensor]]:
    for path, module in modules:
        for name, parameter in module._parameters.items():
            if parameter is not None:
                yield f"{path}.{name}", "parameter", parameter
        for name, buffer in module._buffers.items():
            if buffer is not None:
                kept = name not in module._non_persistent_buffers_set
                yield f"{path}.{name}", "buffer" if kept else "transient", buffer
        for name, value in vars(module).items():
            if name not in _INTERNAL:
                yield from _held(f"{path}.{name}", value)


def _held(name: str, value: Any) -> Iterator[tuple[str, str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield name, f"attribute {type(value).__name__}", value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _held(f"{name}[{key!r}]", item)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _held(f"{name}[{index}]", item)


def _row(name: str, role: str, tensor: torch.Tensor) -> tuple[Any, ...]:
    shape = tuple(tensor.shape)
    # Of a plain attribute it says only how the last forward was called.
    is_trained = tensor.requires_grad and role == "parameter"
    return name, role, str(tensor.dtype), shape, tensor.stride(), is_trained, bits(tensor)


def _memory(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride()


def _groups(named: Iterator[tuple[str, Any]] | Any) -> list[list[str]]:
    groups: dict[Any, list[str]] = {}
    for name, key in named:
        groups.setdefault(key, []).append(name)
    return sorted(group for group in groups.values() if len(group) > 1)


def _outputs(model: nn.Module, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    with torch.no_grad():
        return _tensors(model(*(value.clone() for value in inputs)))


def _tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in _pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def _train_once(model: nn.Module, inputs: Sequence[torch.Tensor]) -> list[Any]:
    """Return what one step of training sees and leaves: gradients, statistics, flags."""
    torch.manual_seed(5)
    model.zero_grad()
    flags = [module.training for module in model.train().modules()]
    outputs = _tensors(model(*(value.clone() for value in inputs)))
    loss = sum((output.float() ** 2).mean() for output in outputs)
    if isinstance(loss, torch.Tensor) and loss.requires_grad:
        torch.autograd.backward(loss)
    gradients = [
        (name, None if p.grad is None else bits(p.grad)) for name, p in model.named_parameters()
    ]
    return [flags, gradients, [(name, bits(b)) for name, b in model.named_buffers()]]


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and bits(one) == bits(other)


class Loader:
    """A process that loads bundles, each in a fork of its own."""

    def __init__(self) -> None:
        here = str(Path(__file__).parent)
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error::UserWarning", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": here, "OMP_NUM_THREADS": "1"},
            text=True,
        )

    def load(
        self,
        bundle: Path,
        inputs: Sequence[torch.Tensor],
        *,
        path: Sequence[str] = (),
        call: str = "persistlib:load",
        **arguments: Any,
    ) -> Portrait:
        """Return the portrait of what a bundle loads as, drawn where it was never seen.

        Args:
            bundle: what to load.
            inputs: what to run it on.
            path: folders to import own modules from.
            call: what is called with the bundle.
            **arguments: of that call; sets as lists.
        """
        passed, answer = bundle.with_suffix(".in"), bundle.with_suffix(".out")
        torch.save(list(inputs), passed)
        request = [str(bundle), str(passed), str(answer), list(path), call, arguments]
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        outcome = self._process.stdout.readline()
        if outcome != "done\n":
            raise AssertionError(outcome.replace("\\n", "\n") or "the process died")
        portrait: Portrait = torch.load(answer, weights_only=True)
        return portrait

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()


def _answer(request: list[Any]) -> str:
    bundle, passed, answer, path, call, arguments = request
    sys.path[:0] = path
    module, _, function = call.partition(":")
    loading = getattr(importlib.import_module(module), function)
    inputs = torch.load(passed, weights_only=True)
    torch.manual_seed(77)
    before = world()
    model = loading(bundle, **arguments)
    after = world()
    if before != after:
        return f"the caller's world changed: {_changed(before, after)}"
    torch.save(draw(model, inputs), answer)
    return "done"


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    return "; ".join(f"{k}: {before[k]} -> {after[k]}" for k in before if before[k] != after[k])


def _serve() -> None:
    importlib.import_module("torchvision.models")  # once, for every fork

    for line in sys.stdin:
        if (child := os.fork()) == 0:
            try:
                outcome = _answer(json.loads(line))
            except BaseException:  # noqa: BLE001 - told to who asked
                outcome = traceback.format_exc()
            sys.stdout.write(outcome.replace("\n", "\\n") + "\n")
            sys.stdout.flush()
            os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    _serve()
