"""Where a graph that is not proved departs: the operator that was changed is the one named."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from persistlib.errors import Code, PersistlibError
from persistlib.export import bisection
from persistlib.export.bisection import ALONE, REWRITTEN, TOGETHER, Departure, Graph, locate
from persistlib.export.comparison import TOLERANCE, deviation
from persistlib.export.conditioning import own_rounding
from persistlib.export.excerpt import excerpt, producers, type_number
from persistlib.export.onnx_export import Exported, ExportedFile, export
from persistlib.export.proof import prove
from persistlib.export.reference_values import ModuleValues
from persistlib.runtime.session import open_session

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray


class Convolutional(nn.Module):
    """Branches, a residual sum, BatchNorm with statistics, pooling and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.left = nn.Conv2d(6, 6, 1)
        self.right = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, groups=2), nn.LeakyReLU(0.2))
        self.head = nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = torch.relu(self.norm(self.first(x)))
        joined = torch.cat([hidden + self.left(hidden), self.right(hidden)], 1)
        scores = self.head(joined.mean((2, 3)))
        return torch.softmax(scores, -1), scores.argmax(-1)


class Recurrent(nn.Module):
    """Tokens, an LSTM, attention over its steps, and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(9, 6)
        self.steps = nn.LSTM(6, 4, batch_first=True, bidirectional=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        steps, _ = self.steps(self.tokens(x))
        found, _ = self.attention(steps, steps, steps)
        result: torch.Tensor = self.norm(steps + found).mean(1)
        return result


class Chaotic(nn.Module):
    """A sum, and a map that doubles the last bit of it at every step."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.first = nn.Linear(64, 4)
        self.steps = steps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value = torch.sigmoid(self.first(x))
        for _ in range(self.steps):
            value = 3.875 * value * (1 - value)
        return value


class Case(NamedTuple):
    model: nn.Module
    exported: Exported
    proto: onnx.ModelProto
    reference: ModuleValues
    feeds: dict[str, NDArray[Any]]
    names: dict[str, str]


@cache
def case(which: Any) -> Case:
    torch.manual_seed(0)
    model = which()
    shown = torch.randn(3, 2, 6, 6) if which is Convolutional else torch.randint(0, 9, (3, 5))
    if which is Convolutional:
        model.train()(torch.randn(8, 2, 6, 6))
    exported = export(model.eval(), (shown,), input_names=("x",))
    assert exported.program is not None
    proto: onnx.ModelProto = onnx.ModelProto.FromString(bytes(exported.files[0].data))
    reference = ModuleValues(model, exported.program, exported.examples)
    outputs = [value.name for value in proto.graph.output]
    names = dict(zip(outputs, reference.outputs, strict=True))
    return Case(model, exported, proto, reference, {"x": shown.numpy()}, names)


def located(made: Case, proto: onnx.ModelProto, limit: float = 1e-4) -> Departure | None:
    return locate(Graph(proto, {}, made.names, limit), made.feeds, made.reference)


def copied(made: Case) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    proto.CopyFrom(made.proto)
    return proto


SWAPS = {
    "Relu": "Sigmoid",
    "LeakyRelu": "Elu",
    "Add": "Sub",
    "Mul": "Div",
    "Softmax": "LogSoftmax",
    "ArgMax": "ArgMin",
    "Div": "Mul",
    "Sub": "Add",
    "Sigmoid": "Tanh",
    "ReduceMean": "ReduceMax",
}
CHANGES = {"epsilon": 0.7, "alpha": 0.9, "beta": 0.5, "axis": 0, "keepdims": 0, "group": 1}


def sabotage(proto: onnx.ModelProto, index: int, how: str) -> str:
    """Change an operator; return its name, or nothing where it cannot be changed so."""
    node = proto.graph.node[index]
    if how == "swap" and node.op_type in SWAPS:
        node.op_type = SWAPS[node.op_type]
        return str(node.name)
    if how == "attribute":
        for attribute in node.attribute:
            if attribute.name in CHANGES:
                value = CHANGES[attribute.name]
                node.attribute.remove(attribute)
                node.attribute.append(onnx.helper.make_attribute(attribute.name, value))
                return str(node.name)
    if how == "perturb" and node.output[0]:
        wrong, right = f"{node.output[0]}.wrong", node.output[0]
        node.output[0] = wrong
        more = onnx.helper.make_node("Add", [wrong, wrong], [right], name=f"{node.name}.double")
        proto.graph.node.insert(index + 1, more)
        return str(node.name)
    if how == "weight":
        tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
        readers = [n for n in proto.graph.node if set(n.input) & tensors.keys()]
        for name in (n for n in node.input if n in tensors):
            values = onnx.numpy_helper.to_array(tensors[name])
            if values.dtype == np.float32 and sum(name in n.input for n in readers) == 1:
                tensors[name].raw_data = (values + 1).astype(np.float32).tobytes()
                return str(node.name)
    return ""


def outputs_of(made: Case, proto: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    return open_session(proto.SerializeToString()).run(made.feeds)


@settings(max_examples=30)
@given(
    which=st.sampled_from([Convolutional, Recurrent]),
    index=st.integers(0, 200),
    how=st.sampled_from(["swap", "attribute", "perturb", "weight"]),
)
def test_the_operator_that_was_changed_is_the_one_named(which: Any, index: int, how: str) -> None:
    made = case(which)
    proto = copied(made)
    name = sabotage(proto, index % len(proto.graph.node), how)
    assume(name)
    try:
        given_outputs = outputs_of(made, proto)
    except PersistlibError:
        assume(False)  # the runtime refuses it: no proof is begun
    right = outputs_of(made, made.proto)
    assume(any(deviation(right[n], given_outputs[n]) > 1e-3 for n in right))
    found = located(made, proto)
    assert found is not None
    assert found.how == ALONE
    assert name in found.among
    assert found.deviation > found.limit
    assert found.value in producers(proto)
    # What leads to the value from agreed ones alone holds nothing that the module names itself.
    assert not {n for n in found.among if n != found.node} & {
        node.name for v, node in producers(made.proto).items() if made.reference.known(v)
    } - {name}


@pytest.mark.parametrize("which", [Convolutional, Recurrent])
def test_a_graph_as_it_was_exported_departs_nowhere(which: Any) -> None:
    made = case(which)
    assert located(made, made.proto) is None


@pytest.mark.parametrize("which", [Convolutional, Recurrent])
def test_the_values_of_torchs_program_are_those_of_the_graph(which: Any) -> None:
    made = case(which)
    names = [name for name in producers(made.proto) if made.reference.known(name)]
    assert len(names) >= 3
    expected = made.reference(names)
    part = excerpt(made.proto, list(expected), cut=())
    types = {n: type_number(a) for n, a in expected.items()}
    proto = part.proto(made.feeds, types)
    computed = open_session(proto.SerializeToString()).run(made.feeds)
    for name, array in expected.items():
        assert deviation(array, computed[name]) < 1e-5


def replaced(made: Case, proto: onnx.ModelProto) -> Exported:
    file = ExportedFile(made.exported.files[0].name, proto.SerializeToString())
    return dataclasses.replace(made.exported, files=(file,))


def test_a_failed_proof_names_operator_module_and_deviation() -> None:
    made = case(Convolutional)
    proto = copied(made)
    index = next(i for i, n in enumerate(proto.graph.node) if n.op_type == "LeakyRelu")
    name = sabotage(proto, index, "attribute")
    with pytest.raises(PersistlibError) as caught:
        prove(made.model, replaced(made, proto))
    assert caught.value.code == Code.EXPORT_MISMATCH.identifier
    for said in (name, "(LeakyRelu)", "of right.1", "inputs that agree", "of its spread"):
        assert said in caught.value.reason


def test_a_graph_without_its_program_is_exported_again_to_name_the_operator() -> None:
    made = case(Convolutional)
    proto = copied(made)
    index = next(i for i, n in enumerate(proto.graph.node) if n.op_type == "BatchNormalization")
    name = sabotage(proto, index, "attribute")
    with pytest.raises(PersistlibError, match=f"{name} .BatchNormalization. of norm"):
        prove(made.model, dataclasses.replace(replaced(made, proto), program=None))


def test_errors_that_only_add_up_are_said_to_do_so() -> None:
    made = case(Convolutional)
    proto = copied(made)
    for kind in ("Relu", "LeakyRelu", "Concat", "ReduceMean"):
        index = next(i for i, n in enumerate(proto.graph.node) if n.op_type == kind)
        node = proto.graph.node[index]
        inner, right = f"{node.output[0]}.inner", node.output[0]
        node.output[0] = inner
        proto.graph.initializer.append(
            onnx.numpy_helper.from_array(np.array(1 + 8e-5, np.float32), f"scale.{kind}")
        )
        proto.graph.node.insert(
            index + 1, onnx.helper.make_node("Mul", [inner, f"scale.{kind}"], [right])
        )
    found = located(made, proto)
    assert found is not None
    assert found.how == TOGETHER
    assert "no operator departs by itself" in str(found)


def test_what_the_runtime_makes_wrong_by_rewriting_is_said_to_be_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = case(Convolutional)
    right = next(n for n in made.proto.graph.node if n.op_type == "LeakyRelu")

    class Fusing:
        """A runtime that errs where it may join the two operators."""

        def __init__(self, data: bytes, **given: Any) -> None:
            proto = onnx.ModelProto.FromString(data)
            inner = {name for node in proto.graph.node for name in node.output}
            inner -= {value.name for value in proto.graph.output}
            names = {node.name for node in proto.graph.node}
            self._joins = right.name in names and right.input[0] in inner
            self._session = open_session(data, **given)
            self.inputs = self._session.inputs

        def run(self, feeds: Any) -> dict[str, Any]:
            scale = 1.5 if self._joins else 1
            return {n: a * np.array(scale, a.dtype) for n, a in self._session.run(feeds).items()}

    monkeypatch.setattr(bisection, "open_session", Fusing)
    monkeypatch.setattr(bisection, "_STEP", 10_000)
    found = located(made, made.proto)
    assert found is not None
    assert found.how == REWRITTEN
    assert found.node == right.name


def test_a_reference_whose_values_are_no_tensors_is_computed_past() -> None:
    made = case(Convolutional)
    proto = copied(made)
    index = next(i for i, n in enumerate(proto.graph.node) if n.op_type == "Concat")
    name = sabotage(proto, index, "perturb")

    class Partial:
        """Knows every value by name, and has no array for one."""

        def known(self, name: str) -> bool:
            return made.reference.known(name)

        def module(self, name: str) -> str:
            return made.reference.module(name)

        def __call__(self, names: Collection[str]) -> dict[str, NDArray[Any]]:
            found = made.reference(names)
            return {n: a for n, a in found.items() if n != "relu"}

    found = locate(Graph(proto, {}, made.names, 1e-4), made.feeds, Partial())
    assert found is not None
    assert name in found.among


def test_tolerances_grow_with_the_rounding_step() -> None:
    assert TOLERANCE["F64"] < TOLERANCE["F32"] < TOLERANCE["F16"] < TOLERANCE["BF16"]


@pytest.mark.parametrize(
    ("expected", "found", "off"),
    [
        (np.array([0.0, 2.0]), np.array([0.0, 1.0]), 0.5),
        (np.array([0.0, 2.0]), np.array([0.0, 2.0], np.float32), 0.0),
        (np.array([-np.inf, 2.0, 0.0]), np.array([-np.inf, 2.0, 0.0]), 0.0),
        (np.array([-np.inf, 2.0, 0.0]), np.array([0.0, 2.0, 0.0]), np.inf),
        (np.array([np.nan, 2.0, 0.0]), np.array([np.nan, 1.0, 0.0]), 0.5),
        (np.array([1.0, 2.0]), np.array([np.nan, 2.0]), np.inf),
        (np.array([3.0, 3.0]), np.array([3.0, 6.0]), 1.0),
        (np.array([0.0, 0.0]), np.array([0.0, 1.0]), np.inf),
        (np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5]), 0.25),
        (np.array([1, 2]), np.array([1.0, 2.0]), np.inf),
        (np.zeros((2, 0)), np.zeros((2, 0)), 0.0),
        (np.zeros((2, 1)), np.zeros((1, 2)), np.inf),
    ],
)
def test_a_deviation_is_relative_to_the_spread(expected: Any, found: Any, off: float) -> None:
    assert deviation(expected, found) == off


def test_a_module_whose_own_rounding_departs_is_named_instead_of_an_operator() -> None:
    torch.manual_seed(0)
    model = Chaotic(30).eval()
    exported = export(model, (torch.randn(8, 64),), input_names=("x",))
    with pytest.raises(PersistlibError) as found:
        prove(model, exported)
    assert found.value.code == Code.EXPORT_MISMATCH.identifier
    assert "the module itself is" in found.value.reason
    assert "double precision" in found.value.remedy
    double = model.double()
    exported = export(double, (torch.randn(8, 64).double(),), input_names=("x",))
    assert prove(double, exported, tolerance={"F64": 1e-4})["proved"]


@given(steps=st.integers(0, 12), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_own_rounding_grows_with_what_a_module_amplifies(steps: int, seed: int) -> None:
    torch.manual_seed(seed)
    model = Chaotic(steps).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    calm, wild = (
        max(own_rounding(m, [torch.randn(16, 64)]) for _ in range(3))
        for m in (model, Chaotic(steps + 20).eval())
    )
    assert calm < wild / 8
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, before[name])
