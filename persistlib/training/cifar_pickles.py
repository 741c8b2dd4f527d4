"""Batches of CIFAR's version for Python, which are pickles, read without unpickling.

The standard library's disassembler splits the bytes into opcodes and executes none. What is built
here are lists, texts and the descriptions of numpy arrays; every opcode and every global beyond
those that describe them is refused by name.

Law: time and memory are proportional to the file, whatever it holds, and nothing is imported or
called.
"""

from __future__ import annotations

import math
import pickletools
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from persistlib.training.raw_files import invalid

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

_OPCODES = 1 << 20
_REMEDY = "fetch the binary version, which holds no pickles"
_FAULTS = (
    *(ArithmeticError, AttributeError, EOFError, LookupError, TypeError, ValueError),
    *(RecursionError, struct.error),
)
# As the releases of numpy call them, and what text is made bytes with where Python 2 reads it.
_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric")
_GLOBALS = {
    **{f"{module} _reconstruct": "array" for module in _MODULES[:2]},
    **{f"{module} _frombuffer": "frombuffer" for module in (_MODULES[2], "numpy._core.numeric")},
    "numpy ndarray": "ndarray",
    "numpy dtype": "dtype",
    "_codecs encode": "encode",
}
_KINDS = "iu"
_PLAIN = frozenset(
    {
        *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "INT", "LONG", "BINFLOAT", "FLOAT"),
        *("SHORT_BINSTRING", "BINSTRING", "STRING", "BINUNICODE", "SHORT_BINUNICODE", "UNICODE"),
        *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BINUNICODE8", "BYTEARRAY8"),
    }
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_IGNORED = frozenset({"PROTO", "FRAME"})


@dataclass(slots=True)
class _Array:
    """The description of an array."""

    shape: tuple[int, ...] = ()
    dtype: str = ""
    order: str = "C"
    data: bytes = b""

    def value(self) -> NDArray[Any]:
        kind = np.dtype(self.dtype)
        if kind.kind not in _KINDS or math.prod(self.shape) * kind.itemsize != len(self.data):
            raise ValueError("an array's extents and bytes disagree")
        flat = np.frombuffer(self.data, kind)
        return flat.reshape(self.shape, order="F" if self.order == "F" else "C")


@dataclass(slots=True)
class _Global:
    """A name that was allowed; never the object that it names."""

    name: str


@dataclass(slots=True)
class _Dtype:
    """The name of a dtype, and the order of its bytes."""

    name: str
    order: str = "="


@dataclass(slots=True)
class _Walk:
    """The stack of one pass over one pickle."""

    stack: list[Any] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def step(self, name: str, argument: Any) -> None:
        """Do what an opcode says, to descriptions.

        Raises:
            ValueError: it is one that no batch needs.
        """
        if name in _PLAIN:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _HANDLERS:
            _HANDLERS[name](self, argument)
        elif name not in _IGNORED:
            raise ValueError(f"the opcode {name} is never read")

    def marked(self) -> list[Any]:
        """Take what stands above the last mark."""
        begin = self.marks.pop()
        items = self.stack[begin:]
        del self.stack[begin:]
        return items

    def put(self, argument: Any) -> None:
        """Keep the top under a number, or the next one."""
        self.memo[len(self.memo) if argument is None else int(argument)] = self.stack[-1]

    def get(self, argument: Any) -> None:
        """Recall what was kept."""
        self.stack.append(self.memo[int(argument)])

    def mark(self, _: Any) -> None:
        """Begin the items of a container."""
        self.marks.append(len(self.stack))

    def items(self, _: Any) -> None:
        """Add the marked items, or pairs, to the container below them."""
        found = self.marked()
        self._add(self.stack[-1], found)

    def one(self, _: Any) -> None:
        """Add the top item to a list."""
        item = self.stack.pop()
        self._add(self.stack[-1], [item])

    def pair(self, _: Any) -> None:
        """Add the top pair to a dict."""
        value, key = self.stack.pop(), self.stack.pop()
        self._add(self.stack[-1], [key, value])

    @staticmethod
    def _add(container: Any, found: list[Any]) -> None:
        if isinstance(container, dict):
            keys = [key.decode() if isinstance(key, bytes) else str(key) for key in found[::2]]
            container.update(zip(keys, found[1::2], strict=True))
        else:
            container.extend(found)

    def new_list(self, _: Any) -> None:
        """Begin a list."""
        self.stack.append([])

    def new_dict(self, _: Any) -> None:
        """Begin a dict."""
        self.stack.append({})

    def tuple_of(self, count: int | None) -> None:
        """Close a tuple of so many items, or of the marked ones."""
        if count is None:
            self.stack.append(tuple(self.marked()))
            return
        items = tuple(self.stack[-count:])
        del self.stack[-count:]
        self.stack.append(items)

    def name(self, argument: Any) -> None:
        """Note a global that is allowed."""
        if argument is None:
            name, module = self.stack.pop(), self.stack.pop()
            argument = f"{module} {name}"
        if argument not in _GLOBALS:
            raise ValueError(f"the global {argument} is never read")
        self.stack.append(_Global(_GLOBALS[argument]))

    def reduce(self, _: Any) -> None:
        """Describe what a call would give."""
        arguments, called = self.stack.pop(), self.stack.pop()
        made: Any
        if called.name == "array":
            made = _Array()
        elif called.name == "dtype":
            made = _Dtype(_text(arguments[0]))
        elif called.name == "encode":
            made = arguments[0].encode("latin-1")
        elif called.name == "frombuffer":
            data, dtype, shape, order = arguments
            made = _Array(shape, dtype.name, order, bytes(data))
        else:
            raise ValueError(f"{called.name} is never called")
        self.stack.append(made)

    def build(self, _: Any) -> None:
        """Complete the description of an array or a dtype."""
        state, made = self.stack.pop(), self.stack[-1]
        if isinstance(made, _Dtype):
            made.order = _text(state[1])
            return
        _, made.shape, dtype, is_fortran, data = state
        made.dtype = dtype.order.strip("|=") + dtype.name
        made.order = "F" if is_fortran else "C"
        made.data = data.encode("latin-1") if isinstance(data, str) else bytes(data)


_HANDLERS: dict[str, Callable[[_Walk, Any], None]] = {
    **dict.fromkeys(("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"), _Walk.put),
    **dict.fromkeys(("BINGET", "LONG_BINGET", "GET"), _Walk.get),
    **dict.fromkeys(("APPENDS", "SETITEMS"), _Walk.items),
    **dict.fromkeys(("GLOBAL", "STACK_GLOBAL"), _Walk.name),
    "MARK": _Walk.mark,
    "APPEND": _Walk.one,
    "SETITEM": _Walk.pair,
    "EMPTY_LIST": _Walk.new_list,
    "EMPTY_DICT": _Walk.new_dict,
    "TUPLE": lambda walk, _: walk.tuple_of(None),
    "TUPLE1": lambda walk, _: walk.tuple_of(1),
    "TUPLE2": lambda walk, _: walk.tuple_of(2),
    "TUPLE3": lambda walk, _: walk.tuple_of(3),
    "REDUCE": _Walk.reduce,
    "BUILD": _Walk.build,
}


def read_batch(data: bytes, path: str, key: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the rows of pixels of a batch, uint8, and its labels.

    Args:
        data: the pickle.
        path: what errors name.
        key: of the labels.

    Raises:
        TrainingError: it is no such batch, or names what is never read.
    """

    def take(found: dict[str, Any]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        pixels, labels = found["data"].value(), found[key]
        given = labels.value() if isinstance(labels, _Array) else np.array(labels)
        if pixels.dtype != np.uint8 or given.dtype.kind not in _KINDS or given.ndim != 1:
            raise ValueError("pixels or labels of another kind")
        return pixels, given.astype(np.int64)

    found: tuple[NDArray[np.uint8], NDArray[np.int64]] = _read(data, path, take)
    return found


def read_names(data: bytes, path: str, key: str) -> list[str]:
    """Return the names of the classes.

    Raises:
        TrainingError: as `read_batch`.
    """
    names: list[str] = _read(data, path, lambda found: [_text(name) for name in found[key]])
    return names


def _read(data: bytes, path: str, take: Callable[[dict[str, Any]], Any]) -> Any:
    walk = _Walk()
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if count > _OPCODES:
                raise ValueError(f"more than {_OPCODES} opcodes")
            if opcode.name == "STOP":
                break
            walk.step(opcode.name, argument)
        (found,) = walk.stack
        return take(found)
    except _FAULTS as fault:
        reason = f"no batch of CIFAR for Python: {type(fault).__name__} {fault}"
        raise invalid(path, reason, _REMEDY) from fault


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
