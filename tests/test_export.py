"""Exporting and proving: the whole state under its own names, and no false proof."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
import torchvision
from google.protobuf import text_format
from torch import nn

import persistlib
from persistlib.dtypes import DType
from persistlib.errors import Code, UsageError
from persistlib.export import proof as proof_module
from persistlib.export.comparison import Observed
from persistlib.export.onnx_export import DATA, MODEL, Exported, ExportedFile, export
from persistlib.export.proof import prove
from persistlib.runtime.session import open_session
from persistlib.runtime.structure import check_graph
from refusing import refused

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

EDGE = 48


def with_statistics(model: nn.Module, *shape: int) -> nn.Module:
    """Return the model with weights that matter and the statistics of real batches.

    With those a new module has, folding BatchNorm changes nothing and proves nothing.
    """
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # averages over the batches
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    model.train()
    with torch.no_grad():
        for _ in range(2):
            model(torch.randn(8, *shape))
    return model.eval()


class Everything(nn.Module):
    """Ties, a gate at zero, two inputs, outputs of any nesting, and names that clash."""

    turn: torch.Tensor
    scale: torch.Tensor
    calls: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(11, 6)
        self.logits = nn.Linear(6, 11, bias=False)
        self.logits.weight = self.tokens.weight
        self.gate = nn.Parameter(torch.zeros(()))
        self.mask = nn.Parameter(torch.randn(6))  # named like a forward argument
        self.linear = nn.Parameter(torch.randn(6))  # named like a value of torch's graph
        self.val_0 = nn.Parameter(torch.randn(6))
        self.auxiliary = nn.Linear(6, 2)  # not used
        self.register_buffer("turn", torch.randn(6, dtype=torch.complex64))
        self.register_buffer("scale", torch.randn(6), persistent=False)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.constant = torch.randn(6)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> dict[str, Any]:
        self.calls += 1
        hidden = self.tokens(tokens) * self.mask + self.constant * self.scale
        hidden = hidden + self.gate * self.val_0 + mask[..., None] * self.linear
        turned = torch.view_as_real(hidden * self.turn).flatten(-2)
        logits = self.logits(torch.relu(hidden))
        return {"logits": logits, "more": [logits.argmax(-1), (turned, None)], "tokens": tokens}


class Sequence(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 5, batch_first=True, bidirectional=True)
        self.norm = nn.GroupNorm(2, 10)
        self.head = nn.utils.parametrizations.weight_norm(nn.Linear(10, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        steps, _ = self.lstm(x)
        scores: torch.Tensor = self.head(self.norm(steps[:, -1]))
        return scores


def resnet() -> tuple[nn.Module, tuple[torch.Tensor, ...], tuple[str, ...]]:
    model = with_statistics(torchvision.models.resnet18(num_classes=5), 3, EDGE, EDGE)
    return model, (torch.randn(1, 3, EDGE, EDGE),), ("input",)


def mobilenet() -> tuple[nn.Module, tuple[torch.Tensor, ...], tuple[str, ...]]:
    model = with_statistics(torchvision.models.mobilenet_v2(num_classes=5), 3, EDGE, EDGE)
    return model, (torch.zeros(2, 3, EDGE, EDGE),), ("input",)


def sequence() -> tuple[nn.Module, tuple[torch.Tensor, ...], tuple[str, ...]]:
    torch.manual_seed(0)
    return Sequence(), (torch.randn(2, 7, 4),), ("x",)


def everything() -> tuple[nn.Module, tuple[torch.Tensor, ...], tuple[str, ...]]:
    torch.manual_seed(0)
    return Everything(), (torch.arange(8).reshape(2, 4), torch.rand(2, 4)), ("tokens", "mask")


Made = tuple[nn.Module, Exported]


@pytest.fixture(scope="module", params=[resnet, mobilenet, sequence, everything])
def made(request: pytest.FixtureRequest) -> Made:
    model, examples, names = request.param()
    return model, export(model, examples, input_names=names)


@pytest.fixture(scope="module")
def linear() -> Made:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    return model, export(model, (torch.randn(2, 4),), input_names=("x",))


def parsed(exported: Exported) -> onnx.ModelProto:
    proto: onnx.ModelProto = onnx.ModelProto.FromString(bytes(exported.files[0].data))
    return proto


def small(model: nn.Module, *examples: torch.Tensor, **wishes: Any) -> Exported:
    names = tuple(f"in{index}" for index in range(len(examples)))
    return export(model, examples, input_names=names, **wishes)


def test_every_tensor_of_the_state_stands_under_its_own_name_bit_for_bit(made: Made) -> None:
    model, exported = made
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in parsed(exported).graph.initializer}
    state = model.state_dict()
    assert set(state) <= set(stored)
    for name, tensor in state.items():
        real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        assert stored[name].shape == tuple(real.shape)
        assert stored[name].tobytes() == real.contiguous().numpy().tobytes()


def test_the_graph_is_proved_at_two_batch_sizes(made: Made) -> None:
    model, exported = made
    proof = prove(model, exported)
    assert json.loads(json.dumps(proof)) == proof
    assert proof["proved"] is True
    assert proof["batch_sizes"] == [1, 3]
    rows: Any = proof["outputs"]
    assert set(rows) == {spec.name for spec in exported.outputs}
    assert all(row["error"] <= 1e-5 for row in rows.values())
    assert prove(model, exported) == proof


def test_the_file_is_well_formed_and_says_nothing_of_the_machine(made: Made) -> None:
    _, exported = made
    data = bytes(exported.files[0].data)
    onnx.checker.check_model(onnx.ModelProto.FromString(data), full_check=True)
    facts = check_graph(data)
    assert (facts.ir_version, facts.opsets) == (exported.ir_version, exported.opsets)
    assert (facts.inputs, facts.outputs) == (exported.inputs, exported.outputs)
    bare = onnx.ModelProto.FromString(data)
    for tensor in bare.graph.initializer:  # random weights spell any short word
        tensor.ClearField("raw_data")
    text = text_format.MessageToString(bare)
    for trace in ("/", "site-packages", ".py", "stack_trace"):
        assert trace not in text


def test_a_wrong_weight_has_no_proof(made: Made) -> None:
    model, exported = made
    used = {name for node in parsed(exported).graph.node for name in node.input}
    for name in sorted(used & {name for name, _ in model.named_parameters()})[:3]:
        proto = parsed(exported)
        tensor = next(t for t in proto.graph.initializer if t.name == name)
        values = onnx.numpy_helper.to_array(tensor)
        wrong = values + 0.05 * (np.abs(values).max() or 1)
        tensor.raw_data = wrong.astype(values.dtype).tobytes()
        changed = with_bytes(exported, proto.SerializeToString())
        refused(Code.EXPORT_MISMATCH, lambda changed=changed: prove(model, changed))  # type: ignore[misc]


def with_bytes(exported: Exported, data: bytes) -> Exported:
    return dataclasses.replace(exported, files=(ExportedFile(MODEL, data), *exported.files[1:]))


def test_names_clash_with_nothing_and_ties_and_views_are_written_down() -> None:
    model, examples, names = everything()
    exported = export(model, examples, input_names=names)
    proto = parsed(exported)
    assert [spec.name for spec in exported.inputs] == ["tokens", "mask_input"]
    assert [s.name for s in exported.outputs] == ["logits", "more_0", "more_1_0", "tokens_output"]
    assert exported.names == {"mask": "mask_input", "tokens": "tokens_output"}
    notes = {item.key: json.loads(item.value) for item in proto.metadata_props}
    assert notes["persistlib.aliases"] == {"tokens.weight": "logits.weight"}
    assert notes["persistlib.complex"] == ["turn"]
    assert int(model.calls) == 0  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [sequence, everything])
def test_the_same_module_gives_the_same_bytes(
    make: Callable[[], tuple[nn.Module, tuple[torch.Tensor, ...], tuple[str, ...]]],
) -> None:
    first, again = (
        export(model, examples, input_names=names) for model, examples, names in (make(), make())
    )
    assert first.files[0].data == again.files[0].data


def test_nothing_of_the_module_or_the_caller_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(), nn.Flatten())
    model.train()
    model[1].eval()
    flags = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    with torch.enable_grad():
        exported = small(model, torch.randn(2, 1, 5, 5, generator=torch.Generator()))
        prove(model, exported)
        assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def test_a_failed_export_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Odd(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - torch's own name
            if input.sum() > 0:  # depends on values: no graph
                return input[:, :2]
            return super().forward(input)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    model = Odd(3, 2).train()
    refused(Code.EXPORT_FAILED, lambda: small(model, torch.ones(2, 3)))
    assert model.training
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def test_a_module_that_cannot_be_called_so_is_refused() -> None:
    fault = refused(Code.EXPORT_FAILED, lambda: small(nn.Linear(3, 2), torch.randn(2, 4)))
    assert "example inputs" in fault.reason


def test_one_example_for_several_arguments_does_not_make_them_one() -> None:
    torch.manual_seed(0)
    model = nn.MultiheadAttention(4, 2, batch_first=True)
    exported = small(model, *[torch.randn(2, 3, 4)] * 3)
    assert prove(model, exported)["proved"]


def test_a_module_that_fixes_its_batch_is_refused_unless_that_is_asked_for() -> None:
    class Fixed(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - torch's own name
            return super().forward(input).reshape(4, 2)

    model = Fixed(3, 2)
    refused(Code.EXPORT_FAILED, lambda: small(model, torch.randn(4, 3)))
    exported = small(model, torch.randn(4, 3), dynamic=("none",))
    assert exported.inputs[0].shape == (4, 3)
    assert prove(model, exported)["batch_sizes"] == []


def test_names_are_one_for_each_tensor(linear: Made) -> None:
    model, _ = linear
    inputs = (torch.randn(2, 4),)
    for names in ((), ("a", "b"), ("",)):
        refused(Code.USAGE, lambda names=names: export(model, inputs, input_names=names))  # type: ignore[misc]
    refused(Code.USAGE, lambda: export(model, inputs, input_names=("x",), output_names=("a", "a")))


def test_a_large_state_goes_to_one_file_beside_ties_once(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(32, 32)
            self.second = nn.Linear(32, 32)
            self.second.weight = self.first.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.second(self.first(x).relu())
            return result

    model = Tied()
    exported = small(model, torch.randn(2, 32), external_above=4096)
    assert [file.name for file in exported.files] == [MODEL, DATA]
    assert memoryview(exported.files[1].data).nbytes == 32 * 32 * 4
    assert prove(model, exported)["proved"]
    for file in exported.files:
        (tmp_path / file.name).write_bytes(file.data)
    stored = {t.name: t for t in onnx.load(str(tmp_path / MODEL)).graph.initializer}
    for name, tensor in model.state_dict().items():
        assert onnx.numpy_helper.to_array(stored[name]).tobytes() == tensor.numpy().tobytes()
    onnx.checker.check_model(str(tmp_path / MODEL))


def test_the_opset_is_what_the_file_says() -> None:
    exported = small(nn.Linear(3, 2), torch.randn(2, 3), opset=18)
    written = {item.domain: item.version for item in parsed(exported).opset_import}
    assert exported.opsets == written
    assert written[""] == 18


def test_metadata_of_the_caller_stands_in_the_file(linear: Made) -> None:
    model, _ = linear
    exported = small(model, torch.randn(2, 4), metadata={"labels": "[]"})
    assert ("labels", "[]") in {(p.key, p.value) for p in parsed(exported).metadata_props}


@pytest.mark.parametrize(
    ("dtype", "precision"),
    [(torch.float64, "F64"), (torch.float16, "F16"), (torch.bfloat16, "BF16")],
)
def test_other_dtypes_are_proved_by_their_own_tolerance_or_said_to_be_unproved(
    dtype: torch.dtype, precision: str
) -> None:
    torch.manual_seed(0)
    model = nn.Linear(8, 3).to(dtype)
    exported = small(model, torch.randn(2, 8).to(dtype))
    assert exported.precision == precision
    proof = prove(model, exported)
    if precision == "BF16":  # this runtime has no such operators on the CPU
        assert proof["proved"] is False
        assert proof["reason"]
    else:
        assert proof["proved"] is True


class Given(nn.Module):
    """A module that computes what a test says, with a parameter that it needs."""

    def __init__(self, compute: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.compute = compute
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> Any:
        return self.compute(x * self.weight)


@pytest.mark.parametrize(
    "compute", [lambda x: x / 0, lambda x: (x, x * 0), lambda x: x * 1e-6 + torch.arange(4.0)]
)
def test_outputs_that_would_hide_a_difference_are_refused(
    compute: Callable[[torch.Tensor], Any],
) -> None:
    model = Given(compute)
    exported = small(model, torch.randn(2, 4))
    refused(Code.EXPORT_DEGENERATE, lambda: prove(model, exported))


ROW = np.array([[1.0, -2.0, 3.0, -4.0]])


@pytest.mark.parametrize(
    ("expected", "other", "given", "code"),
    [
        (ROW, -ROW, ROW, None),
        (ROW, -ROW, ROW + 5e-4, None),
        (ROW, -ROW, ROW + 1e-3, Code.EXPORT_MISMATCH),
        (ROW, -ROW, ROW * np.nan, Code.EXPORT_MISMATCH),
        (ROW, -ROW, ROW.T, Code.EXPORT_MISMATCH),
        (ROW, -ROW, ROW.astype(np.int64), Code.EXPORT_MISMATCH),
        (ROW * 0, ROW * 0, ROW * 0, Code.EXPORT_DEGENERATE),
        (ROW * 0 + 3, ROW * 0 + 3, ROW * 0 + 3, Code.EXPORT_DEGENERATE),
        (ROW, ROW, ROW, Code.EXPORT_DEGENERATE),
        (ROW, ROW + 1e-4, ROW, Code.EXPORT_DEGENERATE),
        (ROW * 1e-15, -ROW * 1e-15, ROW * 1e-15, Code.EXPORT_DEGENERATE),
        (1000 + ROW * 1e-4, 1000 - ROW * 1e-4, 1000 + ROW * 1e-4, Code.EXPORT_DEGENERATE),
        (ROW[:, :0], ROW[:, :0], ROW[:, :0], Code.EXPORT_DEGENERATE),
        (ROW, ROW[:, :2], ROW, None),
    ],
)
def test_an_output_is_judged_by_its_spread_and_by_what_inputs_do_to_it(
    expected: Any, other: Any, given: Any, code: Code | None
) -> None:
    seen = Observed("y", DType.F32)
    arrays = [a if a.dtype == np.int64 else a.astype(np.float32) for a in (expected, other, given)]

    def judged() -> None:
        seen.add(*arrays)
        seen.judge(1e-4)

    if code is None:
        judged()
    else:
        refused(code, judged)


def test_a_module_that_takes_only_its_kind_of_input_is_proved_close_to_the_example() -> None:
    model = Given(torch.log)
    exported = small(model, torch.exp(2 * torch.randn(2, 4)))
    proof = prove(model, exported)
    assert proof["inputs"]["drawn"] == "close"  # type: ignore[index, call-overload]


def test_whole_numbers_are_drawn_from_the_example() -> None:
    class Columns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.few, self.many = nn.Embedding(3, 4), nn.Embedding(50, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.few(x[:, 0]) + self.many(x[:, 1])
            return result

    model = Columns()
    exported = small(model, torch.tensor([[0, 49], [2, 7], [1, 30]]))
    assert prove(model, exported)["proved"]


def test_the_module_that_is_proved_is_the_one_given(linear: Made) -> None:
    model, exported = linear
    other = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    refused(Code.EXPORT_MISMATCH, lambda: prove(other, exported))
    refused(Code.EXPORT_MISMATCH, lambda: prove(nn.Linear(4, 5), exported))
    assert prove(model, exported, seed=1) != prove(model, exported)


def test_a_graph_that_fails_where_the_module_does_not_has_no_proof(linear: Made) -> None:
    model, exported = linear
    fixed = export(model, (torch.randn(2, 4),), input_names=("x",), dynamic=("none",))
    claimed = dataclasses.replace(fixed, inputs=exported.inputs)
    assert "(1, 4)" in refused(Code.EXPORT_MISMATCH, lambda: prove(model, claimed)).reason


def test_an_error_of_the_tolerance_alone_decides(
    linear: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, exported = linear

    class Off:
        def __init__(self, *given: Any, **more: Any) -> None:
            self._session = open_session(*given, **more)
            self.outputs, self.providers = self._session.outputs, self._session.providers

        def run(self, inputs: Any) -> dict[str, Any]:
            return {name: array * 1.001 for name, array in self._session.run(inputs).items()}

    monkeypatch.setattr(proof_module, "open_session", Off)
    refused(Code.EXPORT_MISMATCH, lambda: prove(model, exported))
    assert prove(model, exported, tolerance={"F32": 1e-2})["proved"]


class Told(nn.Module):
    """A linear layer, with its own tensors and one made of them beside what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)
        self.scale = nn.Parameter(torch.randn(3))
        self.register_buffer("places", torch.arange(6.0))

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(x), self.scale, self.places, self.head.weight, self.scale.exp(), x


def test_an_output_may_be_a_tensor_of_the_state_and_needs_not_change_with_the_inputs() -> None:
    torch.manual_seed(0)
    model = Told().eval()
    exported = small(model, torch.randn(2, 4))
    graph = parsed(exported).graph
    assert set(model.state_dict()) == {tensor.name for tensor in graph.initializer}
    rows: Any = prove(model, exported)["outputs"]
    assert [row["error"] for row in rows.values()][1:4] == [0.0, 0.0, 0.0]


class Dead(nn.Module):
    """Gives beside its output one that no input moves, for all that comes to it is cut off."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(x), (self.head(x).abs() - 1000).relu() + torch.arange(3.0)


def test_an_output_that_inputs_reach_and_do_not_move_proves_nothing() -> None:
    torch.manual_seed(0)
    model = Dead().eval()
    exported = small(model, torch.randn(2, 4))
    fault = refused(Code.EXPORT_DEGENERATE, lambda: prove(model, exported))
    assert fault.location == "output_1"


class Chance(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(self.head(x), 0.5, training=True)


def test_a_module_that_draws_random_numbers_is_told_so() -> None:
    torch.manual_seed(0)
    model = Chance().eval()
    fault = refused(Code.EXPORT_MISMATCH, lambda: prove(model, small(model, torch.randn(2, 4))))
    assert fault.reason.startswith("it draws random numbers: two calls with the same inputs are ")
    assert "self.training" in fault.remedy


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.view_as_complex(self.head(x).reshape(-1, 2, 2))


def test_a_complex_output_is_refused_by_its_name() -> None:
    fault = refused(Code.EXPORT_FAILED, lambda: small(Complex().eval(), torch.randn(2, 4)))
    assert (fault.location, fault.reason) == ("output", "torch.complex64 has no place in a graph")
    assert "view_as_real" in fault.remedy


class Either(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        truth: torch.Tensor = (self.head(x) > 0) + (x > 0)
        return truth


def test_a_graph_that_the_runtime_refuses_is_told_as_not_made() -> None:
    torch.manual_seed(0)
    model = Either().eval()
    fault = refused(Code.EXPORT_FAILED, lambda: prove(model, small(model, torch.randn(2, 4))))
    assert "the graph made of the module" in fault.reason
    assert "tensor(bool)" in fault.reason


class Keyed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 3)
        self.other = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> Any:
        return {"a.b": self.one(x), "a": {"b": self.other(x)}}


def test_two_outputs_of_one_name_are_refused_and_none_is_lost(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        persistlib.save(Keyed().eval(), tmp_path / "b", example_inputs=torch.randn(2, 4))
    assert (caught.value.location, "have this name" in caught.value.reason) == ("a.b", True)
    assert not (tmp_path / "b").exists()


def test_a_module_that_takes_no_single_sample_is_told_so_and_how_to_export_it() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 3)).eval()
    free = small(model, torch.randn(4, 4))
    fault = refused(Code.EXPORT_DEGENERATE, lambda: prove(model, free))
    assert fault.reason.startswith("the module raised with batch 1: ValueError: Expected more than")
    assert "--dynamic none" in fault.remedy
    assert prove(model, small(model, torch.randn(4, 4), dynamic=("none",)))["proved"]
