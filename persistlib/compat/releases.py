"""What each release of ONNX Runtime knows: versions of files, operators, the CPU's kernels.

The table is shipped (`runtimes.xz`, from the releases' own wheels by `fixtures/make_runtimes.py`);
the running release is asked itself. It holds for x86-64: elsewhere a release may have a few
kernels more.
"""

from __future__ import annotations

import importlib.resources
import json
import lzma
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from packaging.version import Version

from persistlib.compat.names import canonical

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

UNLIMITED = (1 << 31) - 1  # the last version of a kernel that the table gives no end
_Name = tuple[str, str]


class Parameter(NamedTuple):
    """An input or output as an operator's schema has it.

    Attributes:
        name: its own.
        kind: the name of a type constraint, or a type.
        option: "S" for one, "O" for one or none, "V" for any number.
        alike: whether all that stand in its place have one type.
    """

    name: str
    kind: str
    option: str
    alike: int


class Schema(NamedTuple):
    """One version of an operator.

    Attributes:
        since: the first operator set that has it.
        inputs: its parameters.
        outputs: likewise.
        constraints: the types that each constraint allows.
        counts: least and most inputs, least outputs.
        most_outputs: that may stand.
        attributes: their types, with "!" where one must stand.
        deprecated: whether it may no longer be used.
    """

    since: int
    inputs: tuple[Parameter, ...]
    outputs: tuple[Parameter, ...]
    constraints: Mapping[str, frozenset[str]]
    counts: tuple[int, int, int]
    most_outputs: int
    attributes: Mapping[str, str]
    deprecated: bool


class Kernel(NamedTuple):
    """An implementation of an operator.

    Attributes:
        start: the operator's first version that it computes.
        end: the last one.
        types: what each constraint of the operator may be.
    """

    start: int
    end: int
    types: Mapping[str, frozenset[str]]


@dataclass(frozen=True)
class Release:
    """A release of ONNX Runtime, its default provider.

    Attributes:
        version: of the package.
        ir: the newest version of the file format that it reads.
        opsets: the newest operator set by domain; a domain that is not named has no limit.
        unknown: elements that no value may have, such as "int4".
        rows: kernels and schemas as the table has them.
    """

    version: str
    ir: int
    opsets: Mapping[str, int]
    unknown: frozenset[str]
    rows: Mapping[str, Sequence[Sequence[Any]]]

    @cached_property
    def number(self) -> Version:
        """The version, to be compared."""
        return Version(self.version)

    @cached_property
    def kernels(self) -> Mapping[_Name, list[Kernel]]:
        """Kernels by domain and operator."""
        found: dict[_Name, list[Kernel]] = {}
        for _, domain, op, start, end, types in self.rows["kernels"]:
            row = Kernel(start, end, {name: _types(names) for name, names in types.items()})
            found.setdefault((domain, op), []).append(row)
        return found

    @cached_property
    def _read(self) -> dict[tuple[str, str, int], Schema | None]:
        return {}

    @cached_property
    def _schemas(self) -> Mapping[_Name, list[Sequence[Any]]]:
        found: dict[_Name, list[Sequence[Any]]] = {}
        for row in self.rows["schemas"]:
            found.setdefault((row[0], row[1]), []).append(row)
        return found

    def schema(self, domain: str, op: str, opset: int) -> Schema | None:
        """Return the version of an operator that an operator set has, or None."""
        key = (domain, op, opset)
        if key not in self._read:
            rows = [row for row in self._schemas.get((domain, op), ()) if row[2] <= opset]
            newest = max(rows, key=lambda row: int(row[2]), default=None)
            self._read[key] = None if newest is None else _schema(newest[2:])
        return self._read[key]

    def knows(self, domain: str, op: str) -> bool:
        """Return whether some operator set has the operator."""
        return (domain, op) in self._schemas

    def newest(self, domain: str) -> int:
        """Return the newest operator set of a domain, 0 where the release has none of it."""
        if domain in self.opsets:
            return self.opsets[domain]
        return max((row[2] for row in self.rows["schemas"] if row[0] == domain), default=0)


def _types(names: Sequence[str]) -> frozenset[str]:
    return frozenset(map(canonical, names))


def _schema(row: Sequence[Any]) -> Schema:
    since, inputs, outputs, constraints, counts, most, attributes, deprecated = row
    return Schema(
        since,
        tuple(Parameter(*one) for one in inputs),
        tuple(Parameter(*one) for one in outputs),
        {name: _types(names) for name, names in constraints.items()},
        tuple(counts),
        most,
        attributes,
        deprecated,
    )


@cache
def _table() -> Mapping[str, Any]:
    packed = importlib.resources.files("persistlib.compat").joinpath("runtimes.xz").read_bytes()
    table: Mapping[str, Any] = json.loads(lzma.decompress(packed))
    return table


def versions() -> tuple[str, ...]:
    """Return every release that the table has, oldest first."""
    return tuple(_table()["releases"])


def nearest(version: str) -> str:
    """Return the newest release of the table that is not newer than a version; or the oldest."""
    wanted = Version(version)
    older = [known for known in versions() if Version(known) <= wanted]
    return older[-1] if older else versions()[0]


def ceiling(version: str) -> tuple[int, int]:
    """Return the newest file format and the newest default operator set of a release.

    Raises:
        KeyError: the table says nothing of it.
    """
    table = _table()
    if version not in table["releases"]:
        raise KeyError(version)
    row = table["ceilings"][table["releases"].index(version)]
    return row["ir"], row["opsets"][""]


@cache
def release(version: str) -> Release:
    """Return what the table says of a release.

    Raises:
        KeyError: it says nothing.
    """
    table = _table()
    if version not in table["releases"]:
        raise KeyError(version)
    place = table["releases"].index(version)
    ceiling = table["ceilings"][place]
    rows = {
        name: [row for mask, row in table[name] if int(mask, 16) >> place & 1]
        for name in ("kernels", "schemas")
    }
    unknown = frozenset(ceiling["unknown"])
    return Release(version, ceiling["ir"], ceiling["opsets"], unknown, rows)
