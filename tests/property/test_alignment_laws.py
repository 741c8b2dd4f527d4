"""The laws of `persistlib.alignment`, over networks and exporters that nobody wrote."""

from __future__ import annotations

import json
import random
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, example, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from own_networks import Branching, trained
from persistlib.alignment import steps
from persistlib.alignment.bundle import align
from persistlib.alignment.reading import read
from persistlib.alignment.steps import Constants, affine
from persistlib.architecture.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Callable

SHAPE = (2, 2, 6, 6)
_ALIVE = 0.02
units = st.tuples(st.integers(2, 3), st.sampled_from([1, 3]), st.booleans(), st.booleans())


@st.composite
def stages(draw: st.DrawFn) -> list[Any]:
    """Draw stages whose branches can be joined or summed; equal shapes are common on purpose."""
    made: list[Any] = []
    for _ in range(draw(st.integers(1, 3))):
        join = draw(st.sampled_from(["cat", "sum"]))
        branches = draw(st.lists(st.lists(units, min_size=1, max_size=2), min_size=1, max_size=3))
        if join == "sum":
            width = branches[0][-1][0]
            branches = [[*branch[:-1], (width, *branch[-1][1:])] for branch in branches]
        made.append([join, branches])
    return made


def exported(module: torch.nn.Module, path: Path, *, is_folded: bool) -> onnx.ModelProto:
    """Return what the TorchScript-based exporter makes of a module."""
    mode = torch.onnx.TrainingMode
    how = mode.EVAL if is_folded else mode.PRESERVE
    axes = {"input": {0: "n"}, "output": {0: "n"}}
    names: dict[str, Any] = {"input_names": ["input"], "output_names": ["output"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (torch.randn(SHAPE),),
            str(path),
            dynamo=False,
            training=how,
            do_constant_folding=is_folded,
            dynamic_axes=axes,
            **names,
        )
    return onnx.load(path)


def scramble(model: onnx.ModelProto, chance: random.Random) -> None:
    """Give every value and weight a name that says nothing, and shuffle the weights."""
    kept = {value.name for value in (*model.graph.input, *model.graph.output)}
    names: dict[str, str] = {}

    def other(name: str) -> str:
        fresh = f"v{len(names)}_{chance.randrange(10**6)}"
        return name if not name or name in kept else names.setdefault(name, fresh)

    for tensor in model.graph.initializer:
        tensor.name = other(tensor.name)
    for node in model.graph.node:
        node.name = ""
        node.input[:] = [other(name) for name in node.input]
        node.output[:] = [other(name) for name in node.output]
    stored = list(model.graph.initializer)
    chance.shuffle(stored)
    del model.graph.initializer[:]
    model.graph.initializer.extend(stored)
    del model.graph.value_info[:]
    shuffle(model, chance)


def shuffle(model: onnx.ModelProto, chance: random.Random) -> None:
    """Put the nodes into another order in which each still stands behind what it needs."""
    waiting = list(model.graph.node)
    made = {tensor.name for tensor in model.graph.initializer}
    made |= {value.name for value in model.graph.input} | {""}
    order: list[onnx.NodeProto] = []
    while waiting:
        ready = [node for node in waiting if made.issuperset(node.input)]
        node = chance.choice(ready)
        waiting.remove(node)
        made.update(node.output)
        order.append(node)
    del model.graph.node[:]
    model.graph.node.extend(order)


def split_gemm(model: onnx.ModelProto) -> None:
    """Write each Gemm as a product with the transposed matrix, and a sum."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.op_type != "Gemm" or node.input[1] not in weights:
            nodes.append(node)
            continue
        x, weight, bias = node.input
        array = numpy_helper.to_array(weights[weight]).T.copy()
        weights[weight].CopyFrom(numpy_helper.from_array(array, weight))
        nodes.append(onnx.helper.make_node("MatMul", [x, weight], [f"{weight}_product"]))
        # A sum commutes: the constant stands first.
        summed = onnx.helper.make_node("Add", [bias, f"{weight}_product"], list(node.output))
        nodes.append(summed)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def unfold_norms(model: onnx.ModelProto) -> None:
    """Write each BatchNormalization as a factor and a summand."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.op_type != "BatchNormalization":
            nodes.append(node)
            continue
        numbers = [numpy_helper.to_array(weights[name]) for name in node.input[1:5]]
        epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
        factor, summand = affine(
            [Constants(steps.NORMALISE, tuple(numbers), epsilon)], numbers[0].size
        )
        label = node.output[0]
        for kind, array in (("Mul", factor), ("Add", summand)):
            named = numpy_helper.from_array(
                array.astype(np.float32).reshape(1, -1, 1, 1), f"{label}_{kind}"
            )
            model.graph.initializer.append(named)
        first = onnx.helper.make_node("Mul", [node.input[0], f"{label}_Mul"], [f"{label}_m"])
        nodes += [first, onnx.helper.make_node("Add", [f"{label}_m", f"{label}_Add"], [label])]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def constants_as_nodes(model: onnx.ModelProto) -> None:
    """Put every weight into a Constant node."""
    nodes = [
        onnx.helper.make_node("Constant", [], [tensor.name], value=tensor)
        for tensor in model.graph.initializer
    ]
    nodes += list(model.graph.node)
    del model.graph.initializer[:]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


CHANGES: tuple[Callable[[onnx.ModelProto], None], ...] = (
    split_gemm,
    unfold_norms,
    constants_as_nodes,
)


@settings(
    max_examples=40,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # an example takes a second
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@example([["cat", [[(2, 1, False, True)]] * 3]] * 2, True, set(), 5)
@example([["cat", [[(2, 1, True, True), (2, 3, False, False)]] * 3]], False, set(CHANGES), 6)
@example(
    [["sum", [[(3, 3, True, False)], [(3, 3, False, False)], [(3, 1, False, True)]]]],
    False,
    {constants_as_nodes, split_gemm},
    51,
)
@given(stages(), st.booleans(), st.sets(st.sampled_from(CHANGES)), st.integers(0, 99))
def test_a_network_of_any_branches_comes_back_with_its_function(
    drawn: list[Any], is_folded: bool, changes: set[Any], seed: int
) -> None:
    plain = json.loads(json.dumps(drawn))
    module = trained(Branching(plain, 4), *SHAPE, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        tried = module(torch.randn(32, *SHAPE[1:], generator=generator))
    # Rectifiers may leave nothing alive, and such a network proves nothing.
    assume(float(tried.std(0).max()) > _ALIVE * float(tried.max() - tried.min()))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.onnx"
        model = exported(module, path, is_folded=is_folded)
        for change in CHANGES:
            if change in changes:
                change(model)
        scramble(model, random.Random(seed))
        onnx.save(model, path)
        given_ = {"builder": "own_networks:Branching", "arguments": {"stages": plain, "classes": 4}}
        found = align(read(path), Recipe.of(given_), {"own_networks"})
    x = torch.randn(5, *SHAPE[1:], generator=torch.Generator().manual_seed(seed + 1))
    with torch.no_grad():
        expected, ours = module(x), found.module(x)
    assert (expected - ours).abs().max() <= 1e-4 * (expected.max() - expected.min())
    if not is_folded and unfold_norms not in changes:
        assert not found.equivalent


kinds = st.sampled_from([steps.ADD, steps.SUBTRACT, steps.MULTIPLY, steps.DIVIDE])
numbers = st.lists(st.floats(0.5, 2, width=32), min_size=3, max_size=3)


@given(st.lists(st.tuples(kinds, numbers), max_size=5), numbers)
def test_a_chain_of_steps_is_one_factor_and_one_summand(
    drawn: list[tuple[str, list[float]]], start: list[float]
) -> None:
    chain = [Constants(kind, (np.array(row, np.float64),)) for kind, row in drawn]
    x = np.array(start)
    for step in chain:
        y = step.arrays[0]
        x = {
            steps.ADD: x + y,
            steps.SUBTRACT: x - y,
            steps.MULTIPLY: x * y,
            steps.DIVIDE: x / y,
        }[step.kind]
    factor, summand = affine(chain, 3)
    assert x == pytest.approx(np.array(start) * factor + summand)
