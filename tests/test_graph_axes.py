"""Free axes: which they are, what torch says against one, and the proof at two extents of each."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import onnx
import pytest
import torch
from torch import nn

from persistlib.errors import Code
from persistlib.export.axes import free_axes
from persistlib.export.drawing import CLOSE, SPREAD, draw, extents_of_runs
from persistlib.export.onnx_export import Exported, export
from persistlib.export.proof import prove
from persistlib.manifest.schema import TensorSpec
from refusing import refused

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

NAMES = ("tokens", "mask", "scale")
SHAPES = ((2, 7), (2, 7, 4), ())


@pytest.mark.parametrize(
    ("dynamic", "expected"),
    [
        ((), ({0: "batch"}, {0: "batch"}, {})),
        (("none",), ({}, {}, {})),
        (("tokens:1=length",), ({0: "batch", 1: "length"}, {0: "batch"}, {})),
        (("none", "mask:-1=width"), ({}, {2: "width"}, {})),
        (("tokens:0=rows",), ({0: "rows"}, {0: "rows"}, {})),
        (("tokens:0=rows", "mask:0=others"), ({0: "rows"}, {0: "others"}, {})),
        (("tokens:1=batch", "mask:1=batch"), ({1: "batch"}, {1: "batch"}, {})),
    ],
)
def test_the_batch_is_free_unless_the_texts_say_where_it_lies(
    dynamic: Collection[str], expected: tuple[Mapping[int, str], ...]
) -> None:
    assert free_axes(dynamic, NAMES, SHAPES) == expected


@pytest.mark.parametrize(
    ("dynamic", "word"),
    [
        (("tokens",), "INPUT:AXIS=NAME"),
        (("tokens:one=length",), "INPUT:AXIS=NAME"),
        (("tokens:1=",), "no name"),
        (("tokens:1=a b",), "no name"),
        (("tokns:1=length",), "there are tokens, mask"),
        (("tokens:2=length",), "has 2 axes, 0 to 1"),
        (("tokens:-3=length",), "has 2 axes"),
        (("scale:0=length",), "has no axes"),
        (("tokens:1=length", "tokens:-1=steps"), "also called length"),
        (("tokens:1=length", "mask:2=length"), "has 4 in the example inputs"),
        ("tokens:1=length", "one text"),
    ],
)
def test_a_text_that_names_no_axis_is_refused_with_what_there_is(
    dynamic: Collection[str], word: str
) -> None:
    fault = refused(Code.USAGE, lambda: free_axes(dynamic, NAMES, SHAPES))
    assert word in f"{fault.reason} {fault.remedy}"


def spec(*shape: int | str) -> TensorSpec:
    return TensorSpec(name="x", dtype="F32", shape=shape)


@pytest.mark.parametrize("kind", [SPREAD, CLOSE])
def test_inputs_are_drawn_at_any_extent_of_a_free_axis(kind: str) -> None:
    examples = (torch.arange(8).reshape(2, 4), torch.randn(2, 4, 3), torch.randn(5))
    specs = (spec("batch", "length"), spec("batch", "length", 3), spec(5))
    extents = {"batch": 3, "length": 9}
    tokens, mask, scale = draw(examples, specs, kind=kind, extents=extents, seed=(0,))
    assert (tokens.shape, mask.shape, scale.shape) == ((3, 9), (3, 9, 3), (5,))
    assert set(tokens.flatten().tolist()) <= set(range(8))
    again = draw(examples, specs, kind=kind, extents=extents, seed=(0,))
    assert all(map(torch.equal, again, (tokens, mask, scale)))
    shorter = draw(examples, specs, kind=kind, extents={"length": 2}, seed=(0,))
    assert [tuple(tensor.shape) for tensor in shorter] == [(2, 2), (2, 2, 3), (5,)]


def test_every_free_axis_is_tried_at_two_extents_that_the_module_takes() -> None:
    examples, specs = (torch.randn(7, 2, 4),), (spec("length", "batch", "width"),)

    def attempt(extents: Mapping[str, int]) -> None:
        if extents["length"] > 7 or extents["width"] % 4:
            raise ValueError(extents)

    assert extents_of_runs(examples, specs, (1, 3), attempt) == [
        {"batch": 1, "length": 7, "width": 4},
        {"batch": 3, "length": 6, "width": 8},
    ]
    assert extents_of_runs(examples, (spec(7, 2, 4),), (), attempt) == [{}]

    def fixed(extents: Mapping[str, int]) -> None:
        if extents["width"] != 4:
            raise ValueError("the width is 4")

    fault = refused(Code.EXPORT_FAILED, lambda: extents_of_runs(examples, specs, (1,), fixed))
    assert "the width is 4" in fault.reason
    assert fault.location == "width"


class Tokens(nn.Module):
    """A model of at most 16 tokens, summed where a mask says so."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(30, 8)
        self.places = nn.Parameter(torch.randn(16, 8))
        self.head = nn.Linear(8, 4)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden = self.tokens(tokens) + self.places[: tokens.shape[1]]
        sums: torch.Tensor = self.head(torch.relu(hidden * mask[..., None])).sum(1)
        return sums


class Given(nn.Module):
    """A module that computes what a test says, with a parameter that it needs."""

    def __init__(self, compute: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.compute = compute
        self.head = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.compute(x))
        return result


def free(model: nn.Module, *examples: torch.Tensor, names: str, dynamic: str) -> Exported:
    return export(model.eval(), examples, input_names=tuple(names.split()), dynamic=dynamic.split())


def test_axes_of_one_name_are_one_and_the_proof_tries_two_of_its_extents() -> None:
    torch.manual_seed(0)
    model = Tokens()
    examples = (torch.randint(0, 30, (2, 16)), torch.rand(2, 16))
    dynamic = "tokens:1=length mask:1=length"
    exported = free(model, *examples, names="tokens mask", dynamic=dynamic)
    assert [item.shape for item in exported.inputs] == [("batch", "length")] * 2
    proof = prove(model, exported)
    assert (proof["batch_sizes"], proof["extents"]) == ([1, 3], {"length": [16, 15]})
    assert prove(model, exported) == proof


def test_an_axis_that_the_module_fixes_is_refused_in_torchs_words() -> None:
    cases: list[tuple[Callable[[torch.Tensor], torch.Tensor], str]] = [
        (lambda x: x.reshape(x.shape[0], 8, 4), "length is always 8. You marked length"),
        (lambda x: x.reshape(x.shape[0], -1, 2, 4), "length is always 2*n"),
    ]
    for compute, words in cases:
        fault = refused(
            Code.EXPORT_FAILED,
            lambda compute=compute: free(  # type: ignore[misc]
                Given(compute), torch.randn(2, 8, 4), names="x", dynamic="x:1=length"
            ),
        )
        assert words in fault.reason
        assert fault.location == "x:1=length"
    two = (torch.randint(0, 30, (2, 8)), torch.rand(2, 8))
    apart = "tokens:1=length mask:1=other"
    fault = refused(
        Code.EXPORT_FAILED, lambda: free(Tokens(), *two, names="tokens mask", dynamic=apart)
    )
    assert "must always be equal" in fault.reason
    assert "free" not in fault.reason


class Recurrent(nn.Module):
    def __init__(self, kind: Callable[..., nn.Module], **options: Any) -> None:
        super().__init__()
        self.body = kind(4, 5, num_layers=2, **options)
        self.head = nn.Linear(10 if options.get("bidirectional") else 5, 3)

    def forward(self, steps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        outputs, last = self.body(steps)
        return self.head(outputs), last[0] if isinstance(last, tuple) else last


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (nn.LSTM, {"bidirectional": True, "batch_first": True}),
        (nn.LSTM, {"bidirectional": True}),
        (nn.GRU, {"batch_first": True, "dropout": 0.5}),
        (nn.RNN, {"bidirectional": True, "bias": False, "nonlinearity": "relu"}),
    ],
)
def test_a_recurrence_is_one_operator_a_layer_and_of_any_length(
    kind: type[nn.Module], options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    model = Recurrent(kind, **options)
    length, batch = (1, 0) if options.get("batch_first") else (0, 1)
    dynamic = f"x:{length}=length x:{batch}=batch"
    exported = free(model, torch.randn(6, 7, 4), names="x", dynamic=dynamic)
    proto = onnx.ModelProto.FromString(bytes(exported.files[0].data))
    kinds = [node.op_type for node in proto.graph.node]
    assert kinds.count(kind.__name__) == 2
    assert "Loop" not in kinds
    proof = prove(model, exported)
    assert (proof["batch_sizes"], list(proof["extents"])) == ([1, 3], ["length"])  # type: ignore[arg-type]


def test_a_recurrence_that_onnx_cannot_say_is_left_to_torch() -> None:
    torch.manual_seed(0)
    model = nn.LSTM(4, 5, proj_size=3, batch_first=True)
    exported = free(model, torch.randn(2, 3, 4), names="x", dynamic="")
    assert prove(model, exported)["proved"]


class Asking(nn.Module):
    """A module that goes one way or another, as the extents of its input say."""

    def __init__(self, ask: Callable[[torch.Tensor], bool]) -> None:
        super().__init__()
        self.ask = ask
        self.one = nn.Linear(4, 3)
        self.other = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = (self.one if self.ask(x) else self.other)(x)
        return result


@pytest.mark.parametrize(
    ("ask", "place", "words"),
    [
        (lambda x: x.shape[0] > 4, "x:0=batch", "with batch 5 .* batch <= 4"),
        (lambda x: x.shape[1] > 6, "x:1=length", "with length 6 .* length >= 7"),
        (lambda x: x.shape[0] == 6, "x:0=batch", "with batch 6 "),
        (lambda x: x.shape[0] % 4 == 0, "x:0=batch", "with batch 4 "),
        (lambda x: x.shape[0] * x.shape[1] > 30, "x:0=batch", r"with batch 5 .*batch\*length"),
    ],
)
def test_a_module_that_goes_by_extents_is_refused_with_the_one_that_the_graph_does_not_know(
    ask: Callable[[torch.Tensor], bool], place: str, words: str
) -> None:
    torch.manual_seed(0)
    model = Asking(ask)
    exported = free(model, torch.randn(3, 7, 4), names="x", dynamic="x:1=length")
    fault = refused(Code.EXPORT_FAILED, lambda: prove(model, exported))
    assert fault.location == place
    assert re.search(words, fault.reason), fault.reason
    assert "is off by" in fault.reason


def test_a_module_that_computes_in_pieces_gives_all_of_them_or_is_refused() -> None:
    torch.manual_seed(0)
    model = Given(lambda x: torch.cat([piece * 2 for piece in torch.split(x, 16)]))
    exported = free(model, torch.randn(3, 4), names="x", dynamic="")
    fault = refused(Code.EXPORT_FAILED, lambda: prove(model, exported))
    assert "output has shape (16, 4), the module's (17, 4)" in fault.reason
    assert prove(model, free(model, torch.randn(3, 4), names="x", dynamic="none"))["proved"]


class Placed(nn.Module):
    """A module that knows as many places as it has rows, and convolves along them."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(20, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.body = nn.Conv1d(8, 8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.places[: x.shape[1]]
        result: torch.Tensor = self.body(self.attention(x, x, x)[0].transpose(1, 2))
        return result


def test_what_the_module_itself_does_not_take_the_graph_need_not() -> None:
    torch.manual_seed(0)
    model = Placed()
    exported = free(model, torch.randn(2, 6, 8), names="x", dynamic="x:1=length")
    assert prove(model, exported)["proved"]


def test_an_extent_that_would_fill_the_memory_is_told_and_not_tried() -> None:
    torch.manual_seed(0)
    model = Asking(lambda x: x.shape[0] > 5000)
    exported = free(model, torch.randn(3, 4), names="x", dynamic="")
    assert prove(model, exported)["untried"] == ["batch <= 5000"]
    plain = Given(lambda x: x)
    assert "untried" not in prove(plain, free(plain, torch.randn(3, 4), names="x", dynamic=""))
