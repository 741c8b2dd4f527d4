"""Products of matrices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from persistlib.errors import Code, error
from persistlib.graph_modules.operators.arithmetic import aligned
from persistlib.graph_modules.registry import Call, operator
from persistlib.graph_modules.sizes import broadcast, require_size

if TYPE_CHECKING:
    from torch import Tensor

_LETTERS = 52


def multiplied(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Return a product of matrices, leading axes broadcast; whole numbers exactly."""
    if a.ndim > 1 and b.ndim > 1:
        leading = broadcast(a.shape[:-2], b.shape[:-2])
        require_size(call, (*leading, a.shape[-2], b.shape[-1]), a, b)
    if a.is_floating_point():
        return torch.matmul(a, b)
    # Doubles hold sums of products of bytes exactly, and have the faster kernel.
    return torch.matmul(a.double(), b.double()).to(a.dtype)


@operator("MatMul")
def mat_mul(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Return a product of matrices."""
    return multiplied(call, a, b)


@operator("Gemm")
def gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """Return alpha A B + beta C, each matrix transposed where the node says so."""
    a = a.T if call.get("transA", 0) else a
    b = b.T if call.get("transB", 0) else b
    product = multiplied(call, a, b)
    alpha, beta = call.get("alpha", 1.0), call.get("beta", 1.0)
    product = product if alpha == 1 else (alpha * product).to(product.dtype)
    if c is None or beta == 0:
        return product
    c = aligned(call, product, c)
    return product + (c if beta == 1 else (beta * c).to(c.dtype))


@operator("Einsum")
def einsum(call: Call, *inputs: Tensor) -> Tensor:
    """Return the sum of products that an equation says."""
    equation = call.get("equation").replace(" ", "")
    terms, arrow, result = equation.partition("->")
    if arrow and "." not in equation:
        extents: dict[str, int] = {}
        for term, value in zip(terms.split(","), inputs, strict=True):
            for letter, extent in zip(term, value.shape, strict=True):
                extents[letter] = max(extents.get(letter, 0), extent)
        if set(result) - set(extents):
            raise error(Code.GRAPH_INVALID, call.location, f"the equation {equation!r}")
        require_size(call, (extents[letter] for letter in result), *inputs)
    return torch.einsum(equation, *inputs)
