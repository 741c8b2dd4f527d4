"""Strict JSON in, canonical JSON out.

Laws: `parse(encode(value)) == value`, and `encode(parse(data)) == data` for every canonical `data`.

The canonical form is UTF-8 with keys sorted by code point, the separators `,` and `:`, no ASCII
escaping, integers within plus or minus 2**63, floats by Python's `repr`, no negative zero, and a
final newline. A reader that accepts only canonical bytes leaves no byte free to differ.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import TYPE_CHECKING, Any

from persistlib.errors import Code, error

if TYPE_CHECKING:
    from typing import NoReturn

# A manifest of 100,000 tensors is about 20 MB; larger ones are not well meant.
SIZE_LIMIT = 64 << 20
DEPTH_LIMIT = 64
INTEGER_LIMIT = 1 << 63
_DIGITS_LIMIT = 20  # of 2**63 with its sign
_SHOWN = 80  # characters of a name, and parts of a path, in a message

JSONObject = dict[str, Any]


def encode(value: object) -> bytes:
    """Return the canonical bytes of a JSON value.

    Raises:
        ManifestError: the value is outside what the canonical form can say.
    """
    try:
        _check(value)
    except _NotCanonicalError as fault:
        raise error(
            Code.MANIFEST_FIELD, "manifest", str(fault), "give plain JSON values"
        ) from fault
    return encode_parsed(value)


def encode_parsed(value: object) -> bytes:
    """Return the canonical bytes of a value made of what `parse` returned."""
    text = json.dumps(
        value, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")
    )
    return text.encode() + b"\n"


def parse(
    data: bytes, location: object, *, code: Code = Code.MANIFEST_SYNTAX, limit: int = SIZE_LIMIT
) -> JSONObject:
    """Return the JSON object that `data` holds, canonical or not.

    Args:
        data: the whole file.
        location: what to name in an error.
        code: the code of every refusal.
        limit: the most bytes that are read.

    Raises:
        PersistlibError: of the code's class: too large or deep, not UTF-8, a byte order mark, a
            name twice in one object, a number outside the canonical range, or no JSON object.
    """

    def refuse(reason: str, cause: Exception | None = None) -> NoReturn:
        raise error(code, location, reason, "fetch the file again from where it came") from cause

    if len(data) > limit:
        refuse(f"{len(data)} bytes, at most {limit} are read")
    try:
        text = data.decode()
    except UnicodeDecodeError as fault:
        refuse(f"not UTF-8 at byte {fault.start}", fault)
    if text.startswith("\ufeff"):
        refuse("begins with a byte order mark")
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_float,
            parse_constant=_constant,
        )
        _check(value)
    except json.JSONDecodeError as fault:
        refuse(f"no JSON: {fault.msg} at character {fault.pos}", fault)
    except _NotCanonicalError as fault:
        refuse(str(fault), fault)
    except RecursionError as fault:
        refuse(f"nested deeper than {DEPTH_LIMIT}", fault)
    if not isinstance(value, dict):
        refuse("not a JSON object")
    return value


class _NotCanonicalError(ValueError):
    """A value that the canonical form cannot hold.

    Attributes:
        path: where it stands, innermost first; filled in on the way out.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.path: list[str | int] = []

    def __str__(self) -> str:
        # A hostile file has no say in how long a message grows.
        place = ".".join(str(part)[:_SHOWN] for part in reversed(self.path[-_SHOWN:]))
        return f"{place}: {self.reason}" if place else self.reason


def _object(pairs: list[tuple[str, Any]]) -> JSONObject:
    result = dict(pairs)
    if len(result) != len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise _NotCanonicalError(f"the name {twice[:_SHOWN]!r} stands twice in one object")
    return result


def _integer(text: str) -> int:
    if len(text) > _DIGITS_LIMIT:
        raise _NotCanonicalError(f"an integer of {len(text)} digits")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _NotCanonicalError(f"the number {text[:_SHOWN]} is not finite")
    return value


def _constant(text: str) -> NoReturn:
    raise _NotCanonicalError(f"{text} is no JSON value")


def _check(value: Any, depth: int = 0) -> None:
    """Raise where a value cannot be said canonically, naming the place."""
    if depth > DEPTH_LIMIT:
        raise _NotCanonicalError(f"nested deeper than {DEPTH_LIMIT}")
    if isinstance(value, dict):
        for name, item in value.items():
            if type(name) is not str:
                raise _NotCanonicalError(f"a {type(name).__name__} is no name in an object")
            _check_text(name)
            _check_member(item, name, depth)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _check_member(item, index, depth)
    else:
        _check_scalar(value)


def _check_member(value: Any, name: str | int, depth: int) -> None:
    try:
        _check(value, depth + 1)
    except _NotCanonicalError as fault:
        fault.path.append(name)
        raise


def _check_scalar(value: Any) -> None:
    """Raise for what is no canonical scalar: subclasses are none, an IntEnum prints otherwise."""
    kind = type(value)
    if kind is str:
        _check_text(value)
    elif kind is int:
        if not -INTEGER_LIMIT <= value <= INTEGER_LIMIT:
            raise _NotCanonicalError("an integer beyond 2**63")
    elif kind is float:
        _check_float(value)
    elif value is not None and kind is not bool:
        raise _NotCanonicalError(f"a {kind.__name__} is no JSON value")


def _check_text(text: str) -> None:
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as fault:
        raise _NotCanonicalError("an unpaired surrogate") from fault


def _check_float(value: float) -> None:
    if not math.isfinite(value):
        raise _NotCanonicalError(f"{value} is not finite")
    if value == 0 and math.copysign(1, value) < 0:
        raise _NotCanonicalError("negative zero")
