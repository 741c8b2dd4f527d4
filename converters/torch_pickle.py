"""A symbolic walk over the pickle of a checkpoint: nothing is imported, called or allocated.

The walk knows the opcodes and the globals that `torch.save` needs for tensors, containers and
plain values; every other one is refused by name. What it builds are the descriptions of
`torch_values`. A container takes a hundred times the byte that spells an empty one, so there may
only be as many as a pickle of that length has that somebody means; a small file stays small.

Law: the walk of a pickle takes time and memory proportional to its length, whatever it holds.
"""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar, NoReturn, TypeVar

from persistlib.converters.torch_calls import CALLS, REFUSED, SIZE, is_known
from persistlib.converters.torch_cursor import I32, U8, U16, U32, U64, Cursor
from persistlib.converters.torch_values import (
    STORAGE_DTYPES,
    Global,
    Inert,
    Instance,
    Mapping,
    Storage,
)
from persistlib.errors import Code, PersistlibError, error

if TYPE_CHECKING:
    from collections.abc import Callable

    from persistlib.converters.torch_calls import Calls

_MARKS = 256
_FEW = 1 << 17  # containers, and values kept, that any pickle may have
_SCRIPT = "__torch__."
_INERT = Inert()
_REMEDY = "load it with the code that made it, and save the state_dict alone"

_T = TypeVar("_T")


class Walk(Cursor):
    """One pass over one pickle; after `run`, `position` is the first byte behind it.

    What a walk knows is said by `calls`, `opcodes`, and what a subclass has for `_knows`, `_makes`
    and `_takes`.

    Attributes:
        storages: a view of each storage that was named, by its key.
        calls: what calling each global is described by.
        opcodes: the most that are read.
        spelling: bytes of the pickle, at least, for each container and each value kept.
    """

    calls: ClassVar[Calls] = CALLS
    opcodes: ClassVar[int] = 1 << 22  # about 100,000 tensors
    spelling: ClassVar[int] = 6

    def __init__(
        self, data: memoryview, location: str, *, position: int = 0, folder: str | None = None
    ) -> None:
        """Begin at `position`.

        Args:
            data: the pickle, and what may follow it.
            location: what errors name.
            position: where the pickle begins.
            folder: the archive's folder that storage keys are names in; None in the stream of
                torch before 1.6, where keys may come with a view.
        """
        super().__init__(data, position)
        self._location = location
        self._folder = folder
        self._stack: list[object] = []
        self._marks: list[list[object]] = []
        self._memo: dict[int, object] = {}
        self._copied = self._made = 0
        self._room = _FEW + len(data) // self.spelling
        self.storages: dict[str, Storage] = {}

    def run(self) -> object:
        """Return the description of the pickled value.

        Raises:
            FormatError: the pickle is malformed, too large, or names what is never read.
        """
        handlers = _HANDLERS
        try:
            for _ in range(self.opcodes):
                opcode = self.data[self.position]
                self.position += 1
                if opcode == _STOP:
                    break
                handlers[opcode](self)
            else:
                self._refuse(Code.FORMAT_LIMIT, f"more than {self.opcodes} pickle opcodes")
            (value,) = self._stack
        except (IndexError, struct.error) as fault:
            raise self._error(Code.FORMAT_TRUNCATED, "the pickle is cut off") from fault
        except KeyError as fault:
            raise self._error(
                Code.FORMAT_HEADER, "the pickle recalls what it never kept"
            ) from fault
        except (ValueError, TypeError) as fault:
            raise self._error(Code.FORMAT_HEADER, "the pickle is malformed") from fault
        if self._marks:
            self._refuse(Code.FORMAT_HEADER, "the pickle ends inside a container")
        return value

    # What the opcodes do.

    def unknown(self) -> None:
        """Refuse an opcode that no checkpoint needs."""
        opcode = self.data[self.position - 1]
        self._refuse(Code.FORMAT_UNSAFE, f"the pickle opcode {opcode:#04x} is never read")

    def protocol(self) -> None:
        """Accept the protocols that torch.save has written or was told to write."""
        if not 2 <= self.number(U8) <= 5:
            self._refuse(Code.FORMAT_HEADER, "a pickle protocol that is not 2 to 5")

    def frame(self) -> None:
        """Skip the hint of how much to read ahead, which must be true."""
        size = self.number(U64)
        if size > len(self.data) - self.position:
            self._refuse(Code.FORMAT_TRUNCATED, "a pickle frame is cut off")

    def mark(self) -> None:
        """Begin the items of a container."""
        if len(self._marks) == _MARKS:
            self._refuse(Code.FORMAT_LIMIT, f"more than {_MARKS} containers inside each other")
        self._marks.append(self._stack)
        self._stack = []

    def push_tuple(self) -> None:
        """Close a tuple."""
        items = tuple(self._items())
        self._hold(items)

    def append(self) -> None:
        """Add one item to a list."""
        item = self._stack.pop()
        self._top(list).append(item)

    def appends(self) -> None:
        """Add the marked items to a list."""
        items = self._items()
        self._top(list).extend(items)

    def set_item(self) -> None:
        """Add one pair to a dict."""
        value, key = self._stack.pop(), self._stack.pop()
        self._top(Mapping).items.append((key, value))

    def set_items(self) -> None:
        """Add the marked pairs to a dict."""
        items = self._items()
        self._top(Mapping).items.extend(zip(items[::2], items[1::2], strict=True))

    def add_items(self) -> None:
        """Add the marked items to a set, whose items nobody will ask for."""
        self._items()
        self._top(Inert)

    def remember(self, index: int) -> None:
        """Keep the top of the stack under `index`."""
        self._memo[index] = self._stack[-1]
        if len(self._memo) > self._room:
            self._refuse(Code.FORMAT_LIMIT, f"more than {self._room} values are kept")

    def recall(self, index: int) -> None:
        """Push what was kept under `index`."""
        self._stack.append(self._memo[index])

    def global_lines(self) -> None:
        """Push the global named by two lines."""
        module, name = self.line(), self.line()
        self._push_global(module, name)

    def global_stack(self) -> None:
        """Push the global named by two strings on the stack."""
        name, module = self._stack.pop(), self._stack.pop()
        if type(name) is not str or type(module) is not str:
            raise TypeError
        self._push_global(module, name)

    def new_object(self) -> None:
        """Make an object without its state, or a size."""
        arguments, kind = self._stack.pop(), self._stack.pop()
        if type(kind) is not Global or type(arguments) is not tuple:
            raise TypeError
        if kind.name == SIZE:
            self._stack.append(self._call(kind.name, (arguments[0],)))
        elif self._makes(kind.name) and not arguments:
            self._hold(Instance(kind.name))
        else:
            self._refuse(Code.FORMAT_UNSAFE, f"an object of {kind.name} is never made")

    def build(self) -> None:
        """Give an object its state; that of an OrderedDict is only metadata."""
        state = self._stack.pop()
        target = self._stack[-1]
        if type(target) is Instance and (taken := self._takes(target.kind, state)) is not None:
            target.state = taken
        elif type(target) is not Mapping:
            what = target.kind if isinstance(target, Instance) else type(target).__name__
            self._refuse(Code.FORMAT_UNSAFE, f"a state that is never read is given to {what}")

    def reduce(self) -> None:
        """Describe the result of a call."""
        arguments = self._stack.pop()
        function = self._stack.pop()
        if type(function) is not Global or type(arguments) is not tuple:
            raise TypeError
        self._hold(self._call(function.name, arguments))

    def persistent(self) -> None:
        """Push the storage that a persistent id names."""
        match self._stack.pop():
            case ("storage", Global(kind), str(key), str(), int(numel), *rest):
                view: object = rest[0] if rest else None
            case _:
                kind, key, numel, rest, view = "", "", 0, [], None
        if kind not in STORAGE_DTYPES or len(rest) > (self._folder is None):
            self._refuse(Code.FORMAT_UNSAFE, "a persistent id that is no storage")
        match view:
            case None:
                numbers = (numel, 0, numel)
            case (_, int(start), int(length)):
                numbers = (numel, start, length)
            case _:
                raise TypeError
        if any(type(n) is not int or n < 0 for n in numbers) or sum(numbers[1:]) > numel:
            raise ValueError
        name = key if self._folder is None else f"{self._folder}/{key}"
        storage = Storage(name, STORAGE_DTYPES[kind], *numbers)
        known = self.storages.setdefault(name, storage)
        if (known.dtype, known.numel) != (storage.dtype, numel):
            self._refuse(Code.FORMAT_SHAPE, f"the storage {name} has two dtypes or sizes")
        self._stack.append(storage)

    def long(self) -> None:
        """Push an integer of any width up to 255 bytes."""
        self._stack.append(int.from_bytes(self.take(self.number(U8)), "little", signed=True))

    def push(self, value: object) -> None:
        """Push a value."""
        self._stack.append(value)

    def pack(self, count: int) -> None:
        """Push a tuple of the last `count` values."""
        items = tuple(self._stack[-count:])
        if len(items) != count:
            raise IndexError
        del self._stack[-count:]
        self._hold(items)

    def wrap(self) -> None:
        """Push a tuple of the last value."""
        self._hold((self._stack.pop(),))

    def make_list(self) -> None:
        """Push an empty list."""
        self._hold([])

    def make_mapping(self) -> None:
        """Push an empty dict."""
        self._hold(Mapping())

    def skip(self, size: int) -> None:
        """Push a bytes object, which nobody will ask for."""
        self.take(size)
        self._stack.append(_INERT)

    @property
    def memo_size(self) -> int:
        """The memo index that protocol 4 leaves unsaid."""
        return len(self._memo)

    # What a walk knows.

    def _knows(self, full: str) -> bool:
        """Return whether a global may be named."""
        return is_known(full) or (self._folder is not None and full.startswith(_SCRIPT))

    def _makes(self, kind: str) -> bool:
        """Return whether objects of a class are described."""
        return kind.startswith(_SCRIPT)

    def _takes(self, kind: str, state: object) -> Mapping | None:  # noqa: ARG002 - a subclass asks
        """Return what is kept of the state that an object is given; None when it is refused."""
        return state if type(state) is Mapping else None

    # What they have in common.

    def _hold(self, value: object) -> None:
        """Push a value that takes memory of its own, of which there are not too many."""
        self._made += 1
        if self._made > self._room:
            self._refuse(Code.FORMAT_LIMIT, f"more than {self._room} containers")
        self._stack.append(value)

    def _items(self) -> list[object]:
        items = self._stack
        self._stack = self._marks.pop()
        return items

    def _top(self, kind: type[_T]) -> _T:
        top = self._stack[-1]
        if type(top) is not kind:
            raise TypeError
        return top

    def _push_global(self, module: str, name: str) -> None:
        module = "builtins" if module == "__builtin__" else module
        full = f"{module}.{name}"
        if not self._knows(full):
            what = REFUSED.get(full, "a global that is never read")
            self._refuse(Code.FORMAT_UNSAFE, f"{full}: {what}")
        self._stack.append(Global(full))

    def _call(self, name: str, arguments: tuple[object, ...]) -> object:
        # A call copies what it is given at most once; a list recalled and copied again and again
        # would cost the square of its length.
        self._copied += sum(len(part) for part in arguments if type(part) is list)
        if self._copied > self.opcodes:
            self._refuse(Code.FORMAT_LIMIT, f"more than {self.opcodes} items are copied")
        described = self.calls[name](arguments) if name in self.calls else None
        if described is None:
            self._refuse(Code.FORMAT_UNSAFE, f"{name} is called as torch.save never does")
        return described

    def _refuse(self, code: Code, reason: str) -> NoReturn:
        raise self._error(code, reason)

    def _error(self, code: Code, reason: str) -> PersistlibError:
        path = ".".join(self._path())
        return error(code, f"{self._location}: {path}" if path else self._location, reason, _REMEDY)

    def _path(self) -> list[str]:
        """Return the keys under which the walk stands: the name of the tensor in the making."""
        path: list[object] = []
        above: object = None
        for level in [*self._marks, self._stack]:
            if type(above) is Mapping:
                path += level[(len(level) - 1) // 2 * 2 :][:1]
            else:
                pairs = pairwise(level)
                path += [key for holder, key in pairs if type(holder) is Mapping]
            above = level[-1] if level else None
        return [key for key in path if type(key) is str]


def _get(shape: struct.Struct) -> Callable[[Walk], None]:
    return lambda walk: walk.recall(walk.number(shape))


def _put(shape: struct.Struct) -> Callable[[Walk], None]:
    return lambda walk: walk.remember(walk.number(shape))


_STOP = ord(".")
# https://github.com/python/cpython/blob/main/Lib/pickletools.py describes them all.
_OPCODE_HANDLERS: dict[bytes, Callable[[Walk], None]] = {
    b"\x80": Walk.protocol,
    b"\x95": Walk.frame,
    b"(": Walk.mark,
    b"N": lambda walk: walk.push(None),
    b"\x88": lambda walk: walk.push(True),
    b"\x89": lambda walk: walk.push(False),
    b"J": lambda walk: walk.push(walk.number(I32)),
    b"K": lambda walk: walk.push(walk.number(U8)),
    b"M": lambda walk: walk.push(walk.number(U16)),
    b"G": lambda walk: walk.push(walk.real()),
    b"\x8a": Walk.long,
    b"X": lambda walk: walk.push(walk.text(walk.number(U32))),
    b"\x8c": lambda walk: walk.push(walk.text(walk.number(U8))),
    b"\x8d": lambda walk: walk.push(walk.text(walk.number(U64))),
    b"T": lambda walk: walk.push(walk.text(walk.number(U32))),
    b"U": lambda walk: walk.push(walk.text(walk.number(U8))),
    b"B": lambda walk: walk.skip(walk.number(U32)),
    b"C": lambda walk: walk.skip(walk.number(U8)),
    b"\x8e": lambda walk: walk.skip(walk.number(U64)),
    b")": lambda walk: walk.push(()),
    b"t": Walk.push_tuple,
    b"\x85": Walk.wrap,
    b"\x86": lambda walk: walk.pack(2),
    b"\x87": lambda walk: walk.pack(3),
    b"]": Walk.make_list,
    b"a": Walk.append,
    b"e": Walk.appends,
    b"}": Walk.make_mapping,
    b"s": Walk.set_item,
    b"u": Walk.set_items,
    b"\x8f": lambda walk: walk.push(_INERT),
    b"\x90": Walk.add_items,
    b"c": Walk.global_lines,
    b"\x93": Walk.global_stack,
    b"R": Walk.reduce,
    b"\x81": Walk.new_object,
    b"b": Walk.build,
    b"Q": Walk.persistent,
    b"h": _get(U8),
    b"j": _get(U32),
    b"q": _put(U8),
    b"r": _put(U32),
    b"\x94": lambda walk: walk.remember(walk.memo_size),
}
_HANDLERS = [_OPCODE_HANDLERS.get(bytes([opcode]), Walk.unknown) for opcode in range(256)]
