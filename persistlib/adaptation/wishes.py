"""What an adaptation asks for, read from `adapt={...}` and refused where it can mean nothing."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from persistlib.errors import Code, error
from persistlib.preprocessing import Size

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypedDict

    from persistlib.patterns import Rules

    class Adapt(TypedDict, total=False):
        """What `adapt=` may hold.

        Attributes:
            classes: how many, their labels, or either of these by the path of a last layer.
            channels: how many an image has.
            image_size: edge of square images in pixels, or height and width.
            rename: new names of stored tensors, by patterns as `convert` takes them.
            seed: of the values of rows for new classes; 0 without.
            example_inputs: what goes in, as `save` takes it, where nothing else says it.
        """

        classes: int | list[str] | tuple[str, ...] | Mapping[str, Any]
        channels: int
        image_size: int | tuple[int, int] | list[int]
        rename: Rules
        seed: int
        example_inputs: Any


_MOST_CLASSES = 1 << 24
_MOST_CHANNELS = 4096
_MOST_PIXELS = 8192
_SEEDS = 1 << 63


class Classes(NamedTuple):
    """Classes of one last layer.

    Attributes:
        number: how many.
        labels: their names, in the order of the outputs; None where only the number is known.
    """

    number: int
    labels: tuple[str, ...] | None


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """An adaptation that was asked for.

    Attributes:
        classes: by the path of the last layer; under "" of the one that is found.
        channels: of an image.
        size: of an image, in pixels.
        rename: rules for the names of stored tensors.
        seed: of the rows of new classes.
        example_inputs: what goes in, where the model's interface does not say it.
    """

    classes: Mapping[str, Classes] | None = None
    channels: int | None = None
    size: Size | None = None
    rename: Rules | None = None
    seed: int = 0
    example_inputs: Any = None


def parse(adapt: Any) -> Wishes:
    """Return what `adapt=` asks for.

    Raises:
        UsageError: it is no mapping, a key is unknown, or a value impossible.
    """
    if adapt is None:
        return Wishes()
    if not isinstance(adapt, Mapping):
        raise error(Code.USAGE, "adapt", f"a {type(adapt).__name__}", 'say {"classes": 20}')
    values: dict[str, Any] = {}
    for key, raw in adapt.items():
        if key not in _READERS:
            near = difflib.get_close_matches(str(key), _READERS, 1)
            known = f"did you mean {near[0]}?" if near else f"there are {', '.join(_READERS)}"
            raise error(Code.USAGE, f"adapt.{key}", "is no adaptation", known)
        field, read = _READERS[key]
        values[field] = read(raw)
    return Wishes(**values)


def _classes(raw: Any) -> dict[str, Classes]:
    if isinstance(raw, Mapping):
        if not raw or not all(isinstance(path, str) and path for path in raw):
            raise _refused("classes", raw, 'name layers: {"classes": {"fc": 20}}')
        return {path: _one(value) for path, value in raw.items()}
    return {"": _one(raw)}


def _one(raw: Any) -> Classes:
    if isinstance(raw, (list, tuple)):
        labels = tuple(raw)
        if not labels or not all(isinstance(label, str) and label for label in labels):
            raise _refused("classes", raw, "give a name for each class")
        if twice := [label for label in dict.fromkeys(labels) if labels.count(label) > 1]:
            raise error(Code.USAGE, "adapt.classes", f"{twice[0]!r} stands twice", "name it once")
        return Classes(len(labels), labels)
    return Classes(
        _number("classes", raw, _MOST_CLASSES, "give a number of classes or names"), None
    )


def _size(raw: Any) -> Size:
    remedy = "give the edge of a square in pixels, or height and width"
    if isinstance(raw, (list, tuple)):
        if len(raw) != len(Size._fields):
            raise _refused("image_size", raw, remedy)
        return Size(*(_number("image_size", edge, _MOST_PIXELS, remedy) for edge in raw))
    edge = _number("image_size", raw, _MOST_PIXELS, remedy)
    return Size(edge, edge)


def _number(key: str, raw: Any, most: int, remedy: str) -> int:
    if isinstance(raw, bool) or not isinstance(raw, int) or not 1 <= raw <= most:
        raise _refused(key, raw, f"{remedy}: 1 to {most:,}")
    return raw


def _seed(raw: Any) -> int:
    if isinstance(raw, bool) or not isinstance(raw, int) or not 0 <= raw < _SEEDS:
        raise _refused("seed", raw, "give a whole number from 0 on")
    return raw


def _rules(raw: Any) -> Rules:
    pairs = raw.items() if isinstance(raw, Mapping) else [raw] if isinstance(raw, str) else raw
    remedy = 'give rules such as {"module.*": "*"} or ["module.*=*"]'
    if not isinstance(raw, (Mapping, list, tuple, str)) or not all(map(_is_rule, pairs)):
        raise _refused("rename", raw, remedy)
    rules: Rules = raw
    return rules


def _is_rule(rule: Any) -> bool:
    if isinstance(rule, (list, tuple)):
        return len(rule) == 2 and all(isinstance(part, str) for part in rule)
    return isinstance(rule, str)


def _refused(key: str, raw: Any, remedy: str) -> Exception:
    return error(Code.USAGE, f"adapt.{key}", f"{raw!r} means nothing", remedy)


# The one list of keys: the field of `Wishes`, and what reads a value.
_READERS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "classes": ("classes", _classes),
    "channels": ("channels", lambda raw: _number("channels", raw, _MOST_CHANNELS, "give a number")),
    "image_size": ("size", _size),
    "rename": ("rename", _rules),
    "seed": ("seed", _seed),
    "example_inputs": ("example_inputs", lambda raw: raw),
}
