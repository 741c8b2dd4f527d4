"""The one table of rules: what is held against a target, in which order, and which codes it gives.

A rule is a function `(Facts, Target) -> Iterable[Finding]` with a row here, in the words of its
module: it is imported when the row is first used, so that a cheap verb stays cheap. It yields
findings of its row's codes alone; their severities make the verdict (`verdicts.verdict_of`): an
error refuses, a warning degrades, a note is only said. What a target does not say it asks nothing
of. `judging.findings_of` carries the rows out, once more for the oldest release where a target
leaves a choice. What a code means at length stands in `stories`, which `persistlib check --explain`
and docs/compatibility.md show.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from functools import cache
from typing import NamedTuple

from persistlib.compat.facts import Facts
from persistlib.compat.targets import Target
from persistlib.errors import Code, Finding

Judge = Callable[[Facts, Target], Iterable[Finding]]


class Rule(NamedTuple):
    """A row of the table.

    Attributes:
        judge: `module:function`, the module one of `persistlib.compat`.
        codes: of the findings that it may give.
        walks: whether it reads more than the manifest: the graphs' structure, or a table of
            releases; `load` leaves that to what runs here, which is then asked itself.
    """

    judge: str
    codes: tuple[Code, ...]
    walks: bool = False

    @property
    def call(self) -> Judge:
        """The function."""
        return _resolved(self.judge)


@cache
def _resolved(name: str) -> Judge:
    module, _, function = name.partition(":")
    judge: Judge = getattr(importlib.import_module(f"persistlib.compat.{module}"), function)
    return judge


RULES: tuple[Rule, ...] = (
    Rule("standing:schema", (Code.MANIFEST_OLDER, Code.MANIFEST_NEWER)),
    Rule("standing:status", (Code.STATUS,)),
    Rule("licensing:terms", (Code.LICENSE,)),
    Rule(
        "manifests:requirements",
        (Code.PYTHON_VERSION, Code.PACKAGE_VERSION, Code.PACKAGE_ABSENT),
    ),
    Rule("manifests:drift", (Code.PACKAGE_DRIFT,)),
    Rule("machines:room", (Code.MEMORY, Code.BYTE_ORDER)),
    Rule("machines:unknown", (Code.FRAMEWORK_UNKNOWN,), walks=True),
    Rule("machines:partners", (Code.PARTNERS,), walks=True),
    Rule("machines:builds", (Code.NO_BUILD,), walks=True),
    Rule("tensors:numbers", (Code.DTYPE_ABSENT, Code.DEVICE_DTYPE), walks=True),
    Rule("tensors:loading", (Code.TORCH_LOAD,), walks=True),
    Rule(
        "offers:recipe",
        (
            *(Code.BUILDER_ABSENT, Code.ARGUMENT_ABSENT, Code.DEFAULT_DRIFT),
            Code.SOURCE_DRIFT,
        ),
        walks=True,
    ),
    Rule("building:structure", (Code.BUILDER_ABSENT, Code.STRUCTURE_DRIFT), walks=True),
    Rule("own_sources:drift", (Code.BUILDER_ABSENT, Code.SOURCE_DRIFT), walks=True),
    Rule("coverage:silent", (Code.TARGET_SILENT, Code.PACKAGE_ABSENT)),
    Rule("graphs:absent", (Code.GRAPH_ABSENT,)),
    Rule(
        "graphs:kernels",
        (
            *(Code.GRAPH_VERSION, Code.RUNTIME_OPERATOR, Code.RUNTIME_KERNEL),
            *(Code.RUNTIME_TYPES, Code.RUNTIME_UNKNOWN),
        ),
        walks=True,
    ),
)
