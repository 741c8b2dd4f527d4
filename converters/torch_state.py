"""Which part of a checkpoint is the state_dict, and what its tensors are called.

A `.pt` holds a state_dict, or a training checkpoint with one inside beside optimizer and epoch.
The part taken is the only one under a well-known key, else the only one under a key for averaged
weights, else the checkpoint itself when it has tensors of its own, else the only part that has.
More than one is an error that lists them: a guess between generator and discriminator helps nobody.
"""

from __future__ import annotations

from typing import NamedTuple

from persistlib.converters.torch_values import Instance, Mapping, Tensor
from persistlib.digests import encode_name
from persistlib.errors import Code, PersistlibError, error

_MODEL = (
    "model",
    "state_dict",
    "model_state_dict",
    "model_state",
    "net",
    "network",
    "module",
    "params",
    "weights",
)
_AVERAGED = (
    "model_ema",
    "state_dict_ema",
    "ema_state_dict",
    "model_ema_state_dict",
    "ema",
    "ema_model",
    "params_ema",
)
_OPTIMIZER = "param_groups"
_DEPTH = 64
VISITS = 1 << 19  # values that are looked at
_RENAME = "rename the tensor, and save the file again"
LONE = "tensor"  # the name of a tensor that was saved alone


class State(NamedTuple):
    """A state_dict found.

    Attributes:
        tensors: the tensors by name, in the file's order.
        others: dotted names of what is no tensor, and of the parts that were not taken.
        path: the dotted path of the part that was taken; empty for the whole.
        candidates: the paths of other parts that have tensors.
        is_chosen: whether the part was found rather than named, and something was left out.
    """

    tensors: dict[str, Tensor]
    others: tuple[str, ...]
    path: str
    candidates: tuple[str, ...]
    is_chosen: bool


def find(root: object, key: str | None, location: str) -> State:
    """Return the state_dict in what a checkpoint's pickle describes.

    Args:
        root: what the pickle describes.
        key: which part, by its dotted path; empty for the whole, as it stands; None to search.
        location: what errors name.

    Raises:
        FormatError: there is no tensor, more than one candidate, or names that clash.
    """
    search = _Search(location)
    others: list[str] = []
    part, path = (root, "") if not key else (search.follow(root, key), key)
    if key != "":
        part, path = search.settle(part, path, others)
    tensors, inner = search.flatten(part)
    is_empty = isinstance(part, Mapping) and not part.items
    if not tensors and not is_empty:
        listed = ", ".join(search.candidates(root)) or "none"
        raise error(
            Code.FORMAT_UNKNOWN,
            location,
            f"no tensors at {path or 'the root'}; parts that have some: {listed}",
            "name one of them as key" if listed != "none" else "give the file that holds weights",
        )
    for name in tensors:
        encode_name(name, location)
    is_chosen = not key and bool(path)
    parts = search.candidates(root) if is_chosen else []
    rest = tuple(name for name in parts if name != path and not path.startswith(f"{name}."))
    return State(tensors, (*others, *inner), path, rest, is_chosen and bool(others))


class _Search:
    """A walk that visits a bounded number of values: a pickle can name one value many times."""

    def __init__(self, location: str) -> None:
        self._location = location
        self._visits = 0

    def follow(self, root: object, key: str) -> object:
        """Return the part at a dotted path; a key that holds dots itself is tried first."""
        part, rest = root, key
        while rest:
            pairs = self._named(part)
            fits = [k for k, _ in pairs if k == rest or rest.startswith(f"{k}.")]
            if not fits:
                listed = ", ".join(self.candidates(root)) or "none"
                raise error(
                    Code.FORMAT_UNKNOWN,
                    self._location,
                    f"nothing at the key {key}; parts that have tensors: {listed}",
                    "name one of them as key",
                )
            longest = max(fits, key=len)
            part = next(value for name, value in pairs if name == longest)
            rest = rest[len(longest) + 1 :]
        return part

    def settle(self, part: object, path: str, others: list[str]) -> tuple[object, str]:
        """Return the state_dict in `part`, adding what lies beside its path to `others`."""
        while isinstance(part, Mapping) and (name := self._inside(part, path)) is not None:
            others += [
                _join(path, label) for key, _ in part.items if (label := _label(key)) != name
            ]
            part, path = dict(self._named(part))[name], _join(path, name)
        return part, path

    def _inside(self, part: Mapping, path: str) -> str | None:
        """Return the key under which the state_dict is, or None when `part` is the one."""
        named = dict(self._named(part))
        holders = [name for name, value in named.items() if self._holds(value)]
        has_own = any(isinstance(value, Tensor) for _, value in part.items)
        for known in (_MODEL, _AVERAGED):
            if found := [name for name in holders if name in known]:
                break
        else:
            found = [] if has_own else holders
        same = {id(named[name]) for name in found}
        if len(same) > 1:
            listed = ", ".join(_join(path, name) for name in found)
            raise error(
                Code.FORMAT_UNKNOWN,
                self._location,
                f"more than one state_dict: {listed}",
                "name one of them as key, or an empty key for all of them",
            )
        return found[0] if found else None

    def candidates(self, root: object) -> list[str]:
        """Return the paths, two levels deep, of the parts that have tensors of their own."""
        found: list[str] = []
        for name, value in self._named(root):
            found += [name] if self._holds(value) else []
            inside = self._named(value)
            found += [_join(name, inner) for inner, part in inside if self._holds(part)]
        return found

    def _holds(self, value: object, depth: int = 0) -> bool:
        """Return whether a mapping that is no optimizer has tensors of its own, or a part has."""
        if isinstance(value, Instance):
            return True
        if not isinstance(value, Mapping):
            return False
        self._spend(1 + len(value.items))
        if any(key == _OPTIMIZER for key, _ in value.items if type(key) is str):
            return False
        if any(isinstance(item, Tensor) for _, item in value.items):
            return True
        return depth < 4 and any(self._holds(item, depth + 1) for _, item in value.items)

    def _named(self, value: object) -> list[tuple[str, object]]:
        """Return the parts of a mapping that have text for a key."""
        mapping = value.state if isinstance(value, Instance) else value
        if not isinstance(mapping, Mapping):
            return []
        self._spend(len(mapping.items))
        return [(key, item) for key, item in mapping.items if isinstance(key, str)]

    def flatten(self, part: object) -> tuple[dict[str, Tensor], list[str]]:
        """Return the tensors of a part by dotted name, and the names of what holds none."""
        tensors: dict[str, Tensor] = {}
        others: list[str] = []
        self._collect(part, [], tensors, others)
        return tensors, others

    def _collect(
        self, value: object, path: list[str], tensors: dict[str, Tensor], others: list[str]
    ) -> None:
        name = ".".join(path)
        self._spend(1 + len(name) // 64)
        if len(path) > _DEPTH:
            raise self._limit(f"more than {_DEPTH} levels")
        if isinstance(value, Tensor):
            if name in tensors:
                where = f"{self._location}: {name}"
                raise error(Code.FORMAT_NAME, where, "the name stands twice", _RENAME)
            tensors[name if path else LONE] = value
            return
        had, said = len(tensors), len(others)
        for key, item in _pairs(value):
            before = len(tensors)
            self._collect(item, [*path, _label(key)], tensors, others)
            if len(tensors) > before and type(key) not in (str, int):
                where = f"{self._location}: {name}"
                reason = "a tensor's key is neither text nor a number"
                raise error(Code.FORMAT_NAME, where, reason, _RENAME)
        if len(tensors) == had:
            others[said:] = [name] if path else []

    def _spend(self, visits: int) -> None:
        self._visits += visits
        if self._visits > VISITS:
            raise self._limit(f"more than {VISITS} values")

    def _limit(self, reason: str) -> PersistlibError:
        return error(Code.FORMAT_LIMIT, self._location, reason, "save the state_dict alone")


def _pairs(value: object) -> list[tuple[object, object]]:
    """Return the parts of a container with their keys."""
    if isinstance(value, Instance):
        value = value.state
    if isinstance(value, Mapping):
        return value.items
    if isinstance(value, (list, tuple)):
        items: list[object] = [*value]
        return [*enumerate(items)]
    return []


def _label(key: object) -> str:
    """Return a key as text; of one that is neither text nor a number, only what it is."""
    return str(key) if type(key) in (str, int) else f"({type(key).__name__})"


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
