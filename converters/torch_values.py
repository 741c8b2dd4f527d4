"""What a checkpoint's pickle can name: values that describe and never do.

The walk over a pickle builds these and nothing else. A global is its name; calling it gives a
description of what torch would have made.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from persistlib.dtypes import DType, by_name

# The typed storages of torch, by the name of their dtype.
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
}
# Those that persistlib cannot keep, with the bytes of an element: such a tensor may stand unused
# beside the weights, and is refused by its own name otherwise.
_FOREIGN = {
    "qint32": ("QInt32Storage", 4),
    "qint8": ("QInt8Storage", 1),
    "quint8": ("QUInt8Storage", 1),
    "quint4x2": ("QUInt4x2Storage", 1),
    "quint2x4": ("QUInt2x4Storage", 1),
}
UNTYPED = ("torch.storage.UntypedStorage", "torch.storage._UntypedStorage", "torch.UntypedStorage")
# Storage class -> dtype name; empty for bare bytes. CUDA's stood in files of torch 0.x.
_TYPED = STORAGES | {dtype: kind for dtype, (kind, _) in _FOREIGN.items()}
STORAGE_DTYPES = (
    {f"torch.{kind}": dtype for dtype, kind in _TYPED.items()}
    | {f"torch.cuda.{kind}": dtype for dtype, kind in _TYPED.items()}
    | dict.fromkeys(UNTYPED, "")
)
_KEPT = {name for dtype in DType for name in (dtype.value.torch, dtype.value.torch_pairs) if name}
# Bare bytes under a dtype that nothing else knows; refused by name as well.
_UNKEPT = {"complex32", "bcomplex32", "bits8", "bits16", "bits1x8", "bits2x4", "bits4x2"}
DTYPES = frozenset(f"torch.{name}" for name in (*_KEPT, *_FOREIGN, *_UNKEPT))


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

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        known = by_name("torch", self.dtype)
        return known.itemsize if known else _FOREIGN.get(self.dtype, ("", 1))[1]


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


@dataclass(eq=False, slots=True)
class Instance:
    """An object, such as TorchScript's: its class is a name, its state a mapping."""

    kind: str
    state: Mapping = field(default_factory=Mapping)
