"""The one table of dtypes agrees with every library that it names."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from persistlib.dtypes import DType, by_name
from persistlib.errors import FormatError

EVERY = pytest.mark.parametrize("dtype", DType)


@EVERY
def test_a_dtype_is_found_by_each_of_its_names(dtype: DType) -> None:
    for column in ("safetensors", "numpy", "torch", "onnx", "torch_pairs"):
        if name := getattr(dtype.value, column):
            assert by_name(column, name) is dtype
    assert dtype.value.safetensors in (dtype.name, "")


def test_an_unknown_name_is_no_dtype() -> None:
    for name in ("", "f32", "F5", "object", "qint8", "STRING"):
        assert by_name("safetensors", name) is None
        assert by_name("onnx", name) is None


@EVERY
def test_numpy_has_it_in_the_width_of_the_table(dtype: DType) -> None:
    assert dtype.numpy.itemsize == dtype.itemsize == -(-dtype.value.bits // 8)
    assert dtype.numpy.name == dtype.value.numpy
    assert dtype.numpy.byteorder in "<=|"
    assert np.dtype(dtype.value.hdf5).itemsize == dtype.itemsize


@EVERY
def test_onnx_has_it(dtype: DType) -> None:
    onnx = pytest.importorskip("onnx")
    if not dtype.value.onnx:
        pytest.skip("ONNX has no such dtype")
    if not hasattr(onnx.TensorProto, dtype.value.onnx):
        pytest.skip("this onnx is older than the dtype")
    kind = onnx.TensorProto.DataType.Value(dtype.value.onnx)
    assert onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize == dtype.itemsize


@EVERY
@pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed")
def test_torch_has_it_and_agrees_about_every_bit(dtype: DType) -> None:
    import torch

    if not dtype.value.torch:
        assert not dtype.value.torch_pairs or hasattr(torch, dtype.value.torch_pairs)
        pytest.skip("modules do not compute in it")
    assert str(dtype.torch) == f"torch.{dtype.value.torch}"
    assert torch.empty((), dtype=dtype.torch).element_size() == dtype.itemsize
    if dtype in {DType.BOOL, DType.C64, DType.C128}:
        return
    patterns = np.arange(256, dtype=np.uint8).repeat(dtype.itemsize)
    ours = patterns.view(dtype.numpy).astype(np.float64)
    theirs = torch.from_numpy(patterns.copy()).view(dtype.torch).to(torch.float64).numpy()
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed")
def test_a_dtype_that_this_torch_lacks_is_an_error_of_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    monkeypatch.delattr(torch, DType.F8_E8M0.value.torch, raising=False)
    with pytest.raises(FormatError) as caught:
        _ = DType.F8_E8M0.torch
    assert caught.value.code == "PL505"
    assert "upgrade torch" in caught.value.remedy


@pytest.mark.skipif(find_spec("safetensors") is None, reason="safetensors is not installed")
@EVERY
def test_safetensors_reads_it_in_the_width_of_the_table(dtype: DType) -> None:
    import safetensors

    if not dtype.value.safetensors:
        pytest.skip("safetensors has no such dtype")
    size = dtype.nbytes((4,))
    record = {"dtype": dtype.name, "shape": [4], "data_offsets": [0, size]}
    header = json.dumps({"x": record}).encode()
    data = len(header).to_bytes(8, "little") + header + bytes(size)
    deserialize: Any = safetensors.deserialize
    [(_, read)] = deserialize(data)
    assert read["dtype"] == dtype.name


@given(st.sampled_from(list(DType)), st.lists(st.integers(0, 1 << 62), max_size=20).map(tuple))
def test_sizes_are_exact_for_any_integers(dtype: DType, shape: tuple[int, ...]) -> None:
    product = 1
    for extent in reversed(shape):
        product *= extent
    assert dtype.nbytes(shape) == math.ceil(Fraction(product * dtype.value.bits, 8))
    assert dtype.nbytes(()) == dtype.itemsize


@given(st.sampled_from(list(DType)), st.integers(0, 40), st.data())
def test_packing_is_the_inverse_of_unpacking(dtype: DType, count: int, data: st.DataObject) -> None:
    raw = bytearray(data.draw(st.binary(min_size=(n := dtype.nbytes((count,))), max_size=n)))
    if used := count * dtype.value.bits % 8:
        raw[-1] &= (1 << used) - 1
    if dtype is DType.BOOL:
        raw = bytearray(byte & 1 for byte in raw)
    array = dtype.unpack(memoryview(raw), count)
    assert array.dtype == dtype.numpy
    assert array.shape == (count,)
    assert bytes(dtype.pack(array)) == bytes(raw)


def test_the_first_of_packed_elements_is_in_the_lowest_bits() -> None:
    assert DType.U4.unpack(memoryview(b"\x21\x03"), 3).astype(int).tolist() == [1, 2, 3]
    assert DType.I2.unpack(memoryview(b"\xe4"), 4).astype(int).tolist() == [0, 1, -2, -1]
