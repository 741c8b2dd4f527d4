"""The one table of dtypes: a row each, every lookup derived from it.

A row names a dtype as safetensors, numpy (with ml_dtypes), torch, ONNX and HDF5 do. A format that
cannot hold a dtype has an empty name in its column. HDF5 has no name for the small floats: they are
stored as unsigned integers of the same width, and the dtype's safetensors name beside them.

Elements narrower than a byte are packed without gaps, the first in the lowest bits, and what is
left of the last byte is zero. numpy gives each a byte of its own: `unpack` and `pack` are inverse.
"""

from __future__ import annotations

import math
from enum import Enum
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from persistlib.errors import Code, error

if TYPE_CHECKING:
    import numpy as np
    import torch


_BYTE = 8


class Row(NamedTuple):
    """How each library names one dtype.

    Attributes:
        safetensors: name in safetensors headers and in manifests; empty where it has none.
        numpy: numpy's name, or ml_dtypes' where `extension` is true.
        torch: attribute of `torch`.
        onnx: member of `onnx.TensorProto`.
        hdf5: little-endian numpy type string of the dataset.
        bits: width of one element in bits.
        extension: whether numpy needs ml_dtypes for it.
        torch_pairs: attribute of `torch` whose element is two of these, side by side in a byte;
            modules do not compute in it, checkpoints hold it.
    """

    safetensors: str
    numpy: str
    torch: str
    onnx: str
    hdf5: str
    bits: int
    extension: bool = False
    torch_pairs: str = ""


class DType(Enum):
    """Every dtype that persistlib keeps."""

    F64 = Row("F64", "float64", "float64", "DOUBLE", "<f8", 64)
    F32 = Row("F32", "float32", "float32", "FLOAT", "<f4", 32)
    F16 = Row("F16", "float16", "float16", "FLOAT16", "<f2", 16)
    BF16 = Row("BF16", "bfloat16", "bfloat16", "BFLOAT16", "<u2", 16, extension=True)
    F8_E4M3 = Row("F8_E4M3", "float8_e4m3fn", "float8_e4m3fn", "FLOAT8E4M3FN", "|u1", 8, True)
    F8_E5M2 = Row("F8_E5M2", "float8_e5m2", "float8_e5m2", "FLOAT8E5M2", "|u1", 8, True)
    F8_E8M0 = Row("F8_E8M0", "float8_e8m0fnu", "float8_e8m0fnu", "FLOAT8E8M0", "|u1", 8, True)
    F8_E4M3FNUZ = Row(
        "F8_E4M3FNUZ", "float8_e4m3fnuz", "float8_e4m3fnuz", "FLOAT8E4M3FNUZ", "|u1", 8, True
    )
    F8_E5M2FNUZ = Row(
        "F8_E5M2FNUZ", "float8_e5m2fnuz", "float8_e5m2fnuz", "FLOAT8E5M2FNUZ", "|u1", 8, True
    )
    I64 = Row("I64", "int64", "int64", "INT64", "<i8", 64)
    I32 = Row("I32", "int32", "int32", "INT32", "<i4", 32)
    I16 = Row("I16", "int16", "int16", "INT16", "<i2", 16)
    I8 = Row("I8", "int8", "int8", "INT8", "|i1", 8)
    U64 = Row("U64", "uint64", "uint64", "UINT64", "<u8", 64)
    U32 = Row("U32", "uint32", "uint32", "UINT32", "<u4", 32)
    U16 = Row("U16", "uint16", "uint16", "UINT16", "<u2", 16)
    U8 = Row("U8", "uint8", "uint8", "UINT8", "|u1", 8)
    BOOL = Row("BOOL", "bool", "bool", "BOOL", "|b1", 8)
    C64 = Row("C64", "complex64", "complex64", "COMPLEX64", "<c8", 64)
    C128 = Row("", "complex128", "complex128", "COMPLEX128", "<c16", 128)
    F6_E2M3 = Row("F6_E2M3", "float6_e2m3fn", "", "", "|u1", 6, True)
    F6_E3M2 = Row("F6_E3M2", "float6_e3m2fn", "", "", "|u1", 6, True)
    F4 = Row("F4", "float4_e2m1fn", "", "FLOAT4E2M1", "|u1", 4, True, "float4_e2m1fn_x2")
    I4 = Row("", "int4", "", "INT4", "|u1", 4, True)
    U4 = Row("", "uint4", "", "UINT4", "|u1", 4, True)
    I2 = Row("", "int2", "", "INT2", "|u1", 2, True)
    U2 = Row("", "uint2", "", "UINT2", "|u1", 2, True)

    @property
    def itemsize(self) -> int:
        """Bytes of one element in numpy, which packs nothing."""
        return max(self.value.bits // 8, 1)

    @property
    def is_packed(self) -> bool:
        """Whether an element is narrower than a byte."""
        return self.value.bits < _BYTE

    @property
    def is_float(self) -> bool:
        """Whether the elements are real floating-point numbers."""
        return self.value.numpy.startswith(("float", "bfloat"))

    @property
    def numpy(self) -> np.dtype:
        """The little-endian numpy dtype."""
        return _numpy_dtype(self)

    @property
    def torch(self) -> torch.dtype:
        """The torch dtype.

        Raises:
            FormatError: the installed torch is older than this dtype.
        """
        import torch

        dtype: torch.dtype | None = getattr(torch, self.value.torch, None)
        if dtype is None:
            raise error(
                Code.FORMAT_DTYPE,
                self.name,
                f"torch {torch.__version__} has no such dtype",
                "pip install --upgrade torch",
            )
        return dtype

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a dense tensor of `shape`; exact for any integers."""
        return -(-math.prod(shape) * self.value.bits // _BYTE)

    def unpack(self, data: memoryview, count: int) -> np.ndarray:
        """Return the first `count` elements of packed or plain bytes, as an array of them."""
        import numpy as np

        raw: np.ndarray = np.frombuffer(data, np.uint8)
        if not self.is_packed:
            return raw.view(self.numpy)[:count]
        bits = np.unpackbits(raw, bitorder="little")[: count * self.value.bits]
        whole = np.zeros((count, _BYTE), np.uint8)
        whole[:, : self.value.bits] = bits.reshape(count, self.value.bits)
        return np.packbits(whole, axis=1, bitorder="little").reshape(-1).view(self.numpy)

    def pack(self, array: np.ndarray) -> memoryview:
        """Return the little-endian row-major bytes of an array of these elements."""
        import numpy as np

        raw = np.ascontiguousarray(array, self.numpy).reshape(-1).view(np.uint8)
        if not self.is_packed:
            return raw.data
        bits = np.unpackbits(raw.reshape(-1, 1), axis=1, bitorder="little")[:, : self.value.bits]
        return np.packbits(bits.reshape(-1), bitorder="little").data


def by_name(column: str, name: str) -> DType | None:
    """Return the dtype whose `column` ("safetensors", "numpy", "torch" and so on) is `name`."""
    return _BY[column].get(name)


def of_torch(name: str) -> DType | None:
    """Return the dtype of a module's tensors that a bundle keeps, by `str(tensor.dtype)`."""
    found = by_name("torch", name.removeprefix("torch."))
    return found if found is not None and found.value.safetensors else None


_BY: dict[str, dict[str, DType]] = {
    column: {name: dtype for dtype in DType if (name := getattr(dtype.value, column))}
    for column in ("safetensors", "numpy", "torch", "onnx", "torch_pairs")
}


@cache
def _numpy_dtype(dtype: DType) -> np.dtype:
    import numpy as np

    made: np.dtype
    if dtype.value.extension:
        import ml_dtypes

        made = np.dtype(getattr(ml_dtypes, dtype.value.numpy))
    else:
        made = np.dtype(dtype.value.numpy).newbyteorder("<")
    return made
