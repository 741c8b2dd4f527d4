"""A graph in the versions that were asked for: what the file says, and what cannot be."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from torch import nn

import persistlib
from persistlib.compat import releases as verdicts
from persistlib.errors import Code, PersistlibWarning
from persistlib.export.lowering import LOWEST, lower
from persistlib.export.onnx_export import Exported, export
from persistlib.export.proof import prove
from persistlib.export.versions import HIGHEST, TRACED, Versions, asked, versions
from persistlib.graph_wishes import GraphWishes
from persistlib.runtime.releases import OLDER, release_of
from refusing import refused

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

Arrays = dict[str, "NDArray[Any]"]
ROOM = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)


def graph(
    nodes: Sequence[onnx.NodeProto], x: NDArray[Any], constants: Mapping[str, Any], count: int = 1
) -> onnx.ModelProto:
    """Return a graph from `x` to `y0`, `y1`, ... at the operator set that torch translates to."""
    kind = onnx.helper.np_dtype_to_tensor_dtype(x.dtype)
    values = [onnx.numpy_helper.from_array(np.array(v), name) for name, v in constants.items()]
    made = make_graph(
        nodes,
        "g",
        [make_tensor_value_info("x", kind, x.shape)],
        [onnx.ValueInfoProto(name=f"y{index}") for index in range(count)],
        values,
    )
    model = make_model(made, opset_imports=[make_opsetid("", TRACED)], ir_version=8)
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    del inferred.graph.value_info[:]
    return inferred


def run(model: onnx.ModelProto, x: NDArray[Any]) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, {"x": x}))


def node(kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> onnx.NodeProto:
    return make_node(kind, ["x", *inputs], [f"y{i}" for i in range(outputs)], **attributes)


# One for each thing that an older operator set says otherwise: nodes, constants, outputs.
CASES: dict[str, tuple[onnx.NodeProto, dict[str, Any], int]] = {
    "mean": (node("ReduceMean", "axes"), {"axes": [1, -1]}, 1),
    "mean of all": (node("ReduceMean", keepdims=0), {}, 1),
    "mean of no axes": (node("ReduceMean", "axes"), {"axes": np.zeros(0, np.int64)}, 1),
    "mean of nothing": (node("ReduceMean", noop_with_empty_axes=1), {}, 1),
    "sum": (node("ReduceSum", "axes", keepdims=0), {"axes": [0]}, 1),
    "pad": (
        node("Pad", "pads", "value", "axes"),
        {"pads": [1, 2, 0, 3], "value": np.float32(7), "axes": [-1, 0]},
        1,
    ),
    "split": (node("Split", outputs=3, axis=1, num_outputs=3), {}, 3),
    "split unequally": (node("Split", outputs=3, axis=2, num_outputs=3), {}, 3),
    "split by sizes": (node("Split", "sizes", outputs=2, axis=2), {"sizes": [1, 3]}, 2),
    "normal": (
        node("LayerNormalization", "scale", "shift", axis=-2, epsilon=1e-3),
        {"scale": ROOM[0], "shift": ROOM[1]},
        1,
    ),
    "normal from the front": (
        node("LayerNormalization", "scale", axis=1, epsilon=1e-3),
        {"scale": ROOM[0]},
        1,
    ),
    "normal and its mean": (
        node("LayerNormalization", "scale", outputs=2, axis=-1),
        {"scale": ROOM[0, 0]},
        2,
    ),
    "mish": (node("Mish"), {}, 1),
    "hard swish": (node("HardSwish"), {}, 1),
    "shape": (node("Shape"), {}, 1),
    "part of a shape": (node("Shape", start=1, end=-1), {}, 1),
    "end of a shape": (node("Shape", start=-2), {}, 1),
    "cast": (node("CastLike", "like"), {"like": np.zeros(1, np.int32)}, 1),
    "reshape": (node("Reshape", "shape", allowzero=1), {"shape": [3, -1]}, 1),
    "upper": (node("Trilu", "k", upper=1), {"k": np.int64(1)}, 1),
    "lower": (node("Trilu", upper=0), {}, 1),
    "softmax inside": (node("Softmax", axis=1), {}, 1),
    "softmax": (node("LogSoftmax"), {}, 1),
    "resize": (
        node("Resize", "", "scales", mode="linear"),
        {"scales": np.array([1, 1, 2], np.float32)},
        1,
    ),
    "resize to": (
        node("Resize", "", "", "sizes", mode="nearest", nearest_mode="floor"),
        {"sizes": [2, 3, 7]},
        1,
    ),
    "squeeze": (node("Squeeze", "axes"), {"axes": np.zeros(0, np.int64)}, 1),
    "unsqueeze": (node("Unsqueeze", "axes"), {"axes": [0, -1]}, 1),
    "unsqueeze by none": (node("Unsqueeze", "axes"), {"axes": np.zeros(0, np.int64)}, 1),
    "squeeze all": (node("Squeeze"), {}, 1),
    "at least": (node("GreaterOrEqual", "limit"), {"limit": np.float32(0.1)}, 1),
    "scatter": (
        node("ScatterND", "places", "values", reduction="none"),
        {"places": [[0], [1]], "values": -ROOM},
        1,
    ),
}


@pytest.mark.parametrize("opset", [17, 16, 14, 13, 12, LOWEST])
@pytest.mark.parametrize("case", CASES)
def test_a_lowered_operator_computes_the_same(case: str, opset: int) -> None:
    single, constants, count = CASES[case]
    model = graph([single], ROOM, constants, count)
    expected = run(model, ROOM)
    lower(model, opset)
    assert [item.version for item in model.opset_import] == [opset]
    onnx.checker.check_model(model, full_check=True)
    for found, value in zip(run(model, ROOM), expected, strict=True):
        assert (found.dtype, found.shape) == (value.dtype, value.shape)
        np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_a_normalization_is_written_out_in_a_type_that_holds_its_sums(dtype: Any) -> None:
    x = ROOM.astype(dtype)
    single = node("LayerNormalization", "scale", "shift")
    model = graph([single], x, {"scale": x[0, 0], "shift": x[0, 1]})
    expected = run(model, x)
    lower(model, 16)
    np.testing.assert_allclose(run(model, x)[0], expected[0], rtol=2e-3, atol=2e-3)


def test_a_graph_within_a_graph_is_lowered_too() -> None:
    def branch(kind: str) -> onnx.GraphProto:
        axes = make_node("Constant", [], [f"axes_{kind}"], value_ints=[-1])
        inner = make_node(kind, ["x", f"axes_{kind}"], [f"z_{kind}"])
        out = make_tensor_value_info(f"z_{kind}", TensorProto.FLOAT, (2, 3, 1))
        return make_graph([axes, inner], kind, [], [out])

    choice = make_node(
        "If",
        ["yes"],
        ["y0"],
        then_branch=branch("ReduceMax"),
        else_branch=branch("ReduceMin"),
    )
    model = graph([choice], ROOM, {"yes": np.bool_(1)})
    lower(model, LOWEST)
    onnx.checker.check_model(model, full_check=True)
    np.testing.assert_array_equal(run(model, ROOM)[0], ROOM.max(-1, keepdims=True))


@pytest.mark.parametrize(
    ("single", "constants", "opset", "word"),
    [
        (node("BitwiseNot"), {}, 17, "new there"),
        (node("Reshape", "s", allowzero=1), {"s": [0, 9]}, 13, "extent of 0"),
        (node("Resize", "", "s", antialias=1), {"s": np.ones(3, np.float32)}, 17, "antialias"),
        (
            node("ScatterND", "p", "v", reduction="max"),
            {"p": [[0], [1]], "v": ROOM},
            17,
            "reduction",
        ),
        (node("Einsum", equation="abc->cba"), {}, 11, "Einsum"),
    ],
)
def test_what_an_older_set_cannot_say_is_an_error_with_the_operators_name(
    single: onnx.NodeProto, constants: dict[str, Any], opset: int, word: str
) -> None:
    x = ROOM.astype(np.int32) if single.op_type == "BitwiseNot" else ROOM
    model = graph([single], x, constants)
    fault = refused(Code.EXPORT_VERSION, lambda: lower(model, opset))
    assert single.op_type in str(fault)
    assert word in str(fault)


@pytest.mark.parametrize("opset", [17, 14])
def test_old_runtimes_are_spared_what_makes_no_difference(opset: int) -> None:
    model = graph([node("Reshape", "shape", allowzero=1)], ROOM, {"shape": [3, -1]})
    lower(model, opset)
    assert not model.graph.node[0].attribute


def test_an_element_type_that_an_older_operator_lacks_is_an_error() -> None:
    model = graph([node("Max", "low")], np.zeros(3, np.int64), {"low": np.zeros(3, np.int64)})
    lower(model, 12)
    model = graph([node("Max", "low")], np.zeros(3, np.int64), {"low": np.zeros(3, np.int64)})
    assert "Max" in str(refused(Code.EXPORT_VERSION, lambda: lower(model, 11)))


class Mixed(nn.Module):
    """Convolution, normalizations, attention and a reduction: what older sets say otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3)
        self.batch = nn.BatchNorm2d(4)
        self.norm = nn.LayerNorm(4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.lstm = nn.LSTM(4, 3, batch_first=True)
        self.head = nn.Linear(3, 2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        maps = torch.relu(self.batch(self.first(image)))
        steps = self.norm(maps.flatten(2).transpose(1, 2))
        steps = steps + self.attention(steps, steps, steps)[0]
        first, last = self.lstm(steps)[0].split([4, steps.shape[1] - 4], 1)
        scores: torch.Tensor = self.head(first.mean(1) + last.amax(1))
        return scores


@pytest.fixture(scope="module")
def mixed() -> nn.Module:
    torch.manual_seed(0)
    model = Mixed().train()
    for _ in range(3):
        model(torch.randn(8, 1, 6, 6))
    return model.eval()


def made(model: nn.Module, **wishes: Any) -> Exported:
    torch.manual_seed(0)
    return export(model, (torch.randn(2, 1, 6, 6),), input_names=("image",), **wishes)


@pytest.mark.parametrize(
    ("opset", "ir", "written"), [(None, 10, (20, 10)), (17, None, (17, 8)), (13, 8, (13, 8))]
)
def test_a_module_is_written_in_the_versions_asked_for_with_its_state_and_its_proof(
    mixed: nn.Module, opset: int | None, ir: int | None, written: tuple[int, int]
) -> None:
    exported = made(mixed, opset=opset, ir=ir)
    proto = onnx.ModelProto.FromString(bytes(exported.files[0].data))
    assert [(o.domain, o.version) for o in proto.opset_import] == [("", written[0])]
    assert (exported.opsets[""], exported.ir_version) == written == (written[0], proto.ir_version)
    onnx.checker.check_model(proto, full_check=True)
    assert prove(mixed, exported)["proved"]
    stored = {t.name: t.raw_data for t in proto.graph.initializer}
    for name, tensor in mixed.state_dict().items():
        assert stored[name] == tensor.numpy().tobytes()


@pytest.mark.parametrize(
    ("opset", "ir", "word"),
    [
        (LOWEST - 1, None, f"{LOWEST} to"),
        (HIGHEST + 1, None, f"to {HIGHEST}"),
        (None, 999, "at most"),
        (18, 7, "needs IR 8"),
        (20, 8, "needs IR 9"),
    ],
)
def test_versions_that_no_graph_can_have_are_refused(
    opset: int | None, ir: int | None, word: str
) -> None:
    assert word in str(refused(Code.EXPORT_VERSION, lambda: versions(opset, ir)))


def test_a_target_chooses_the_newest_versions_that_it_reads() -> None:
    assert asked(GraphWishes(target="onnxruntime==1.17.3")) == Versions(20, 9)
    assert asked(GraphWishes(target="onnxruntime==1.14,python==3.10")) == Versions(18, 8)
    assert asked(GraphWishes(target="onnxruntime==1.17.3", opset=13)) == Versions(13, 9)
    newest = asked(GraphWishes(target="onnxruntime==999"))
    assert newest == Versions(HIGHEST, min(release_of("999").ir, onnx.IR_VERSION))
    assert asked(GraphWishes(opset=17)) == Versions(17, None)


def test_a_target_that_says_nothing_or_too_little_is_refused() -> None:
    for target in ("onnxruntime", "torch==2.6", "onnxruntime==1.9", "1.17.3"):
        refused(Code.USAGE, lambda target=target: asked(GraphWishes(target=target)))  # type: ignore[misc]
    for wishes in (
        GraphWishes(target="onnxruntime==1.17.3", opset=21),
        GraphWishes(target="onnxruntime==1.17.3", ir=10),
    ):
        fault = refused(Code.EXPORT_VERSION, lambda wishes=wishes: asked(wishes))  # type: ignore[misc]
        assert "1.17.3 reads" in fault.reason


def test_releases_read_ever_more_and_what_is_between_them_reads_as_the_one_before() -> None:
    known = (*(row.version for row in OLDER), *verdicts.versions())
    assert [release_of(version).version for version in known] == [*known]
    for older, newer in itertools.pairwise(map(release_of, known)):
        assert release_of(f"{older.version}.post9") == older
        assert older.opset <= newer.opset
        assert older.ir <= newer.ir
    assert release_of("1.14.1") == OLDER[-1]
    assert release_of("999") == release_of(known[-1])


def test_a_release_is_given_no_operator_set_that_its_kernels_do_not_reach() -> None:
    assert [release_of(version).opset for version in ("1.14", "1.15.1", "1.16.0")] == [18, 18, 19]


def test_a_bundle_is_saved_and_converted_in_the_versions_asked_for(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 3))
    manifest = persistlib.save(
        model, tmp_path / "b", example_inputs=torch.randn(2, 4), onnx={"opset": 15}
    )
    assert (manifest.graphs[0].opsets, manifest.graphs[0].ir_version) == ({"": 15}, 8)
    copied = persistlib.convert(tmp_path / "b", tmp_path / "same.onnx")
    assert (dict(copied.opsets), copied.ir_version) == ({"": 15}, 8)
    with pytest.warns(PersistlibWarning, match="PL212"):
        report = persistlib.convert(
            tmp_path / "b", tmp_path / "old.onnx", target="onnxruntime==1.11", dynamic=["none"]
        )
    assert (dict(report.opsets), report.ir_version) == ({"": 16}, 8)
    proto = onnx.load(tmp_path / "old.onnx")
    assert [item.version for item in proto.opset_import] == [16]
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2
    for onnx_wish in ({"opsett": 15}, 17):
        refused(
            Code.USAGE,
            lambda wish=onnx_wish: persistlib.save(model, tmp_path / "c", onnx=wish),  # type: ignore[misc]
        )
