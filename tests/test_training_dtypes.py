"""Arrays of floats are cast to the model's dtype; what is the caller's own is left, and told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

import persistlib
from persistlib.errors import PersistlibError
from persistlib.training.batches import Batches
from persistlib.training.own_dtypes import own_dtype
from persistlib.training.rates import find_rate
from task_models import built

if TYPE_CHECKING:
    from collections.abc import Callable

DRAWN = np.random.default_rng(2)
INPUTS = DRAWN.normal(size=(48, 6))
TARGETS = INPUTS @ DRAWN.normal(size=(6, 2))
CLASSES = (INPUTS[:, 0] > 0).astype(np.int64)
QUICK: dict[str, Any] = {"epochs": 2, "lr": 0.02}


def perceptron(dtype: torch.dtype = torch.float32) -> Any:
    return built("Perceptron", inputs=6, outputs=2).to(dtype)


def weights(samples: Any, dtype: torch.dtype, **how: Any) -> dict[str, torch.Tensor]:
    model = perceptron(dtype)
    persistlib.finetune(model, samples, **QUICK, **how)
    return model.state_dict()  # type: ignore[no-any-return]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("given", [np.float16, np.float32, np.float64])
def test_arrays_train_as_if_the_caller_had_cast_them(dtype: torch.dtype, given: Any) -> None:
    inputs, targets = INPUTS.astype(given), TARGETS.astype(given)
    own = torch.from_numpy(inputs).to(dtype), torch.from_numpy(targets)
    wide = torch.promote_types(dtype, torch.float32)
    wanted = weights((own[0], own[1].to(wide)), dtype, task="regression")
    found = weights((inputs, targets), dtype, task="regression")
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    before = perceptron(dtype).state_dict()
    assert any(not torch.equal(found[name], before[name]) for name in wanted)


def read_only(given: Any) -> Any:
    given = given.copy()
    given.flags.writeable = False
    return given


@pytest.mark.parametrize(
    "way",
    [
        lambda given: given.astype(given.dtype.newbyteorder(">")),
        lambda given: given[::-1].copy()[::-1],
        np.asfortranarray,
        read_only,
    ],
)
def test_arrays_of_any_layout_are_the_same_samples(way: Callable[[Any], Any]) -> None:
    wanted = weights((INPUTS, CLASSES), torch.float32)
    found = weights((way(INPUTS), way(CLASSES)), torch.float32)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


class Frame:
    """A table of another library, as pandas' are."""

    def __init__(self, values: Any) -> None:
        self._values = values

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.array(self._values, dtype)

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, key: object) -> Any:
        raise KeyError(key)


@pytest.mark.parametrize(
    "given",
    [
        (Frame(INPUTS), Frame(CLASSES)),
        (INPUTS.tolist(), CLASSES.tolist()),
        ([*INPUTS], [*CLASSES]),
        ([*torch.from_numpy(INPUTS)], tuple(torch.from_numpy(CLASSES))),
    ],
)
def test_tables_of_other_libraries_and_lists_are_arrays(given: Any) -> None:
    wanted = weights((INPUTS, CLASSES), torch.float32)
    found = weights(given, torch.float32)
    assert all(torch.allclose(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ([(torch.ones(6), 1), (torch.ones(5), 0), (torch.ones(6), 1)], "make no batch"),
        ([(object(), 1), (object(), 0)], "make no batch"),
        (([torch.ones(6), torch.ones(5), torch.ones(6)], [0, 1, 1]), "make no array"),
    ],
)
def test_samples_that_make_no_batch_are_refused(given: Any, reason: str) -> None:
    with pytest.raises(PersistlibError, match=reason) as caught:
        persistlib.finetune(perceptron(), given, **QUICK)
    assert caught.value.code == "PL802"


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64, np.int8, bool])
def test_classes_may_be_integers_of_any_kind(dtype: Any) -> None:
    wanted = weights((INPUTS, CLASSES), torch.float32)
    found = weights((INPUTS, CLASSES.astype(dtype)), torch.float32)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_small_dtype_of_the_model_does_not_round_the_targets() -> None:
    targets = np.array([[1001.0], [1003.0]])
    pair = (np.ones((2, 1)), targets)
    made = Batches(pair, "train", 2, torch.device("cpu"), dtype=torch.bfloat16)
    (batch,) = made.in_order()
    assert batch.inputs.dtype == torch.bfloat16
    assert batch.targets.tolist() == targets.tolist()
    assert batch.targets.dtype == made.targets().dtype == torch.float32


def test_whole_numbers_and_named_inputs_keep_what_they_are() -> None:
    pair = ({"a": np.ones((2, 1)), "b": np.ones((2, 1), np.int32)}, {"k": CLASSES[:2]})
    (batch,) = Batches(pair, "train", 2, torch.device("cpu"), dtype=torch.float32).in_order()
    assert {name: item.dtype for name, item in batch.inputs.items()} == {
        "a": torch.float32,
        "b": torch.int32,
    }
    assert batch.targets["k"].dtype == torch.int64


def test_a_model_of_several_dtypes_gets_arrays_as_they_are() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2).double())
    assert own_dtype(model) is None
    assert own_dtype(torch.nn.ReLU()) is None
    assert own_dtype(perceptron(torch.float64)) == torch.float64


def test_numbers_that_the_dtype_cannot_hold_are_not_finite() -> None:
    inputs = INPUTS.copy()
    inputs[7, 3] = 1e300
    with pytest.raises(PersistlibError, match=r"1 of 288 .* the first at \[7, 3\]"):
        persistlib.finetune(torch.nn.Linear(6, 2), (inputs, CLASSES), **QUICK)


def _trained(samples: Any) -> None:
    persistlib.finetune(perceptron(), samples, **QUICK)


def _fitted(samples: Any) -> None:
    persistlib.fit_classifier(perceptron(), samples)


def test_all_that_takes_arrays_takes_those_of_numpy() -> None:
    pair = (INPUTS, CLASSES)
    _trained(pair)
    _fitted(pair)
    assert find_rate(perceptron(), pair).lrs
    wide, narrow = (
        persistlib.cross_validate(perceptron(), (inputs, CLASSES), leave_one_out=True).figures
        for inputs in (INPUTS, INPUTS.astype(np.float32))
    )
    assert wide == narrow


@pytest.mark.parametrize("work", [_trained, _fitted])
def test_a_data_set_is_left_alone_and_told_what_to_cast(work: Callable[[Any], None]) -> None:
    samples = TensorDataset(torch.from_numpy(INPUTS), torch.from_numpy(CLASSES))
    with pytest.raises(PersistlibError, match=r"torch\.float64 for a model of torch\.float32") as e:
        work(samples)
    assert "inputs.to(torch.float32)" in e.value.findings[0].remedy


def test_a_column_of_targets_is_one_number_where_no_loss_could_broadcast() -> None:
    """Of (N, 1) outputs targets of (N,) are refused by training, and judged the same."""
    model = built("Perceptron", inputs=6, outputs=1)
    flat, column = TARGETS[:, 0], TARGETS[:, :1]
    judged: list[Any] = [
        persistlib.evaluate(model, (INPUTS, targets), task="regression").to_dict()
        for targets in (flat, column)
    ]
    assert judged[0]["results"][0]["mse"] == judged[1]["results"][0]["mse"]
    fitted = [
        persistlib.cross_validate(model, (INPUTS, targets), classifier="ridge", folds=3).figures
        for targets in (flat, column)
    ]
    assert fitted[0] == fitted[1]
    with pytest.raises(PersistlibError, match=r"\(N\) for outputs of shape \(N, 1\)"):
        persistlib.finetune(model, (INPUTS, flat), **QUICK, task="regression")
    persistlib.finetune(model, (INPUTS, column), **QUICK, task="regression")
