"""Python numbers in a module: what a graph of it multiplies by is what the module multiplies by."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from persistlib.export import capture
from persistlib.export.onnx_export import export
from persistlib.runtime.session import open_session

if TYPE_CHECKING:
    from collections.abc import Callable

DTYPES = (torch.float32, torch.float16)
NUMBERS = (3.9, 1 / 3, math.pi, 1e-60, 0.5, 16777217.0, 0.99999, 1.000001)
OPERATIONS: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "mul": lambda x, n: x * n,
    "add": lambda x, n: n - x,
    "clamp": lambda x, n: torch.clamp(x, -n, n),
    "power": lambda x, n: n**x,
    "full": lambda x, n: x + torch.full_like(x, n),
    "fill": lambda x, n: x.masked_fill(x > 0, n),
    "where": lambda x, n: torch.where(x < 0, x, n),
    "alpha": lambda x, n: torch.add(x, x.sin(), alpha=n),
    "lerp": lambda x, n: torch.lerp(x, x.sin(), n),
    "addcmul": lambda x, n: torch.addcmul(x, x, x, value=n),
    "hardtanh": lambda x, n: nn.functional.hardtanh(x, -n, n),
    "remainder": torch.remainder,
}


class Scaled(nn.Module):
    """Every operation with a number of its own, side by side."""

    def __init__(self, numbers: tuple[float, ...]) -> None:
        super().__init__()
        self.numbers = numbers

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pairs = zip(OPERATIONS.values(), self.numbers, strict=True)
        return torch.stack([operation(x, number) for operation, number in pairs])


def outputs(model: nn.Module, x: torch.Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    graph = export(model.eval(), (x,), input_names=("x",))
    (given,) = open_session(graph.files[0].data).run([x.numpy()]).values()
    return given


class Normed(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = x * 0.999995 / (x.norm(dim=-1, keepdim=True) + 1e-12) - 5e-9
        return result


def test_near_misses_hidden() -> None:
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    given = outputs(Normed(), x)
    assert np.isfinite(given).all()
    np.testing.assert_allclose(given, Normed()(x).numpy(), rtol=1e-7, atol=0)


def test_what_does_nothing_is_left_out() -> None:
    x, model = torch.randn(2, 2), Plain()
    proto = onnx.ModelProto.FromString(bytes(export(model, (x,), input_names=("x",)).files[0].data))
    assert [node.op_type for node in proto.graph.node] == ["Exp"]


class Plain(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ((x + 0.0) * 1.0).exp() / 1.0


@given(st.lists(st.floats(0.1, 4), min_size=len(OPERATIONS), max_size=len(OPERATIONS)))
@settings(max_examples=6, deadline=None, phases=(Phase.explicit, Phase.generate))
def test_keep_doubles(numbers: list[float]) -> None:
    torch.manual_seed(0)
    x, model = torch.randn(5, 3, dtype=torch.float64), Scaled(tuple(numbers))
    np.testing.assert_allclose(outputs(model, x), model(x).numpy(), rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_number_that_is_cast_is_the_module_s(number: float) -> None:
    x, model = torch.tensor([[0.7], [-1.3]], dtype=torch.float64), Times(number)
    assert outputs(model, x).tolist() == model(x).tolist()


class Times(nn.Module):
    def __init__(self, number: float) -> None:
        super().__init__()
        self.number = number

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.number


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_graph_of_less_precision_is_what_it_was(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, model = torch.randn(5, 3).to(dtype), Scaled((0.3,) * len(OPERATIONS))
    found = export(model.eval(), (x,), input_names=("x",)).files[0].data
    monkeypatch.setattr(capture, "keep_doubles", lambda *_: None)
    assert found == export(model.eval(), (x,), input_names=("x",)).files[0].data
