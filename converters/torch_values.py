"""What a checkpoint's pickle can name: values that describe and never do.

The walk over a pickle builds these and nothing else. A global is its name; calling it gives a
description of what torch would have made.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from persistlib.dtypes import DType

# The typed storages of torch, by the name of their dtype; those that persistlib cannot keep too,
# so that such a tensor can stand unused beside the weights, and is refused by its own name.
STORAGES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
    "complex64": "ComplexFloatStorage",
    "complex128": "ComplexDoubleStorage",
    "qint32": "QInt32Storage",
    "qint8": "QInt8Storage",
    "quint8": "QUInt8Storage",
    "quint4x2": "QUInt4x2Storage",
    "quint2x4": "QUInt2x4Storage",
}
UNTYPED = ("torch.storage.UntypedStorage", "torch.storage._UntypedStorage", "torch.UntypedStorage")
# Storage class -> dtype name; empty for bare bytes. CUDA's stood in files of torch 0.x.
STORAGE_DTYPES = (
    {f"torch.{kind}": dtype for dtype, kind in STORAGES.items()}
    | {f"torch.cuda.{kind}": dtype for dtype, kind in STORAGES.items()}
    | dict.fromkeys(UNTYPED, "")
)
DTYPES = frozenset(
    {f"torch.{dtype.value.torch}" for dtype in DType}
    | {f"torch.{dtype}" for dtype in STORAGES}
    | {"torch.complex32", "torch.float4_e2m1fn_x2"}
)


@dataclass(frozen=True, slots=True)
class Global:
    """A name that a pickle refers to: `module.name`."""

    name: str


@dataclass(frozen=True, slots=True)
class Inert:
    """A value that is no tensor and holds none, such as a dtype, a device or a set."""


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of elements in the file.

    Attributes:
        key: which storage of the file.
        dtype: torch's name of the element type; empty when the elements are bytes.
        numel: elements of the whole storage.
        start: first element of this view of it; files before torch 1.6 have such views.
        length: elements of this view.
    """

    key: str
    dtype: str
    numel: int
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class Tensor:
    """A strided view of a storage, all as the file says it, nothing compared yet.

    Attributes:
        storage: where the elements are.
        dtype: torch's name of the element type.
        offset: first element, in elements from the storage's start.
        shape: extents.
        strides: steps in elements.
        is_lazy: whether a conjugation or a sign is still to be applied to the elements.
    """

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    is_lazy: bool


@dataclass(eq=False, slots=True)
class Mapping:
    """A dict, as its pairs in order: no key is hashed, so none can be made to collide."""

    items: list[tuple[object, object]] = field(default_factory=list)

    def get(self, key: str) -> object:
        """Return the last value of a key, or None."""
        return next((value for name, value in reversed(self.items) if name == key), None)


@dataclass(eq=False, slots=True)
class Instance:
    """A TorchScript object: its class is a name in the archive, its state a mapping."""

    kind: str
    state: Mapping = field(default_factory=Mapping)
