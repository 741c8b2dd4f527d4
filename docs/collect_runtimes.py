"""Write `persistlib/compat/runtimes.xz`: what every release of ONNX Runtime can load.

`make runtimes` fetches each release's wheel in turn from the package index, asks it, and removes it
again. Releases that the table has are left alone: one command adds a release that has appeared.

- Maximum IR and opset by domain: sessions of one `Identity`, tried up from 1.
- Operators' schemas and the CPU provider's kernels: the release's own lists (1.16 and newer).
- Kernels of 1.15, which has no list: each row of 1.16.0, for each type, is tried as a model of one
  node, whose types alone are known. What is refused as not implemented, or has its type cast, has
  no kernel; what cannot be tried so is taken to be as in 1.16.0. `--prove` tries it on 1.16.0,
  where the list is known.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import onnx
from onnx import helper
from packaging.version import Version

from persistlib.compat.names import type_of

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "persistlib" / "compat" / "runtimes.xz"
CHILD = Path(__file__).parent / "runtime_child.py"
FIRST = Version("1.15")
NEEDS = ("flatbuffers", "protobuf", "packaging")
OLD_NUMPY = Version("1.19")  # the first release that is built for numpy 2
LISTS_KERNELS = Version("1.16")
DOMAINS = ("", "ai.onnx.ml", "com.microsoft", "ai.onnx.training", "ai.onnx.preview.training")
HIGHEST = 40  # of the versions that are tried
GRAPHS = {"If", "Loop", "Scan", "SequenceMap"}  # no single node is a model of these


class Wheel(NamedTuple):
    """An unpacked release and what it needs beside it."""

    version: str
    path: str

    def ask(self, *arguments: str, probe: bool = False) -> subprocess.CompletedProcess[str]:
        """Return what the release's own process answered."""
        env = {**os.environ, "PYTHONPATH": self.path}
        if probe:
            env["PERSISTLIB_PROBE"] = "1"
        command = [sys.executable, "-S", str(CHILD), *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=env, check=False)

    def facts(self) -> dict[str, Any]:
        """Return version, kernels and schemas as the release lists them."""
        done = self.ask("facts")
        if done.returncode:
            raise SystemExit(f"onnxruntime {self.version}: {done.stderr}")
        facts: dict[str, Any] = json.loads(done.stdout)
        return facts

    def outcomes(self, folder: Path, *, probe: bool = False) -> dict[str, str | None]:
        """Return what the release made of each model of a folder; null where it took it."""
        names = sorted(name for name in os.listdir(folder) if name.endswith(".onnx"))
        found: dict[str, str | None] = {}
        while len(found) < len(names):
            done = self.ask("outcomes", str(folder), str(len(found)), probe=probe)
            found |= dict(json.loads(line) for line in done.stdout.splitlines() if line)
            if len(found) < len(names):
                found[names[len(found)]] = f"died: {done.stderr[-200:]}"
        return found


def fetched(version: str, folder: Path, cache: Path | None) -> Wheel:
    """Return a release's wheel, unpacked below a folder, or where it lies already."""
    install = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    beside = folder / "beside"
    old = Version(version) < OLD_NUMPY
    numpy = folder / ("numpy1" if old else "numpy2")
    if not beside.exists():
        subprocess.run([*install, "--target", str(beside), "--no-deps", *NEEDS], check=True)
    if not numpy.exists():
        wanted = "numpy<2" if old else "numpy>=2"
        subprocess.run([*install, "--target", str(numpy), "--no-deps", wanted], check=True)
    own = (cache or folder) / version
    if not own.exists():
        wanted = f"onnxruntime=={version}"
        subprocess.run([*install, "--target", str(own), "--no-deps", wanted], check=True)
    return Wheel(version, os.pathsep.join(map(str, (own, numpy, beside))))


def published() -> list[str]:
    """Return every release on the package index from the first on, oldest first."""
    command = [sys.executable, "-m", "pip", "index", "versions", "onnxruntime"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    line = next(line for line in text.splitlines() if line.startswith("Available versions:"))
    versions = {Version(word.strip()) for word in line.partition(":")[2].split(",")}
    return [str(version) for version in sorted(versions) if version >= FIRST]


def ceilings(wheel: Wheel) -> dict[str, Any]:
    """Return the highest IR and the highest version of each domain that the release takes."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for number in range(1, HIGHEST):
            _identity(folder / f"ir-{number:02}.onnx", number, {"": 7})
            for domain in DOMAINS:
                opsets = {"": 7} | {domain: number}
                _identity(folder / f"{domain or 'onnx'}-{number:02}.onnx", 3, opsets)
        outcomes = wheel.outcomes(folder)
    # A domain without a ceiling takes any version.
    names = {domain: domain or "onnx" for domain in DOMAINS}
    highest = {domain: _highest(outcomes, name) for domain, name in names.items()}
    bounded = {domain: top for domain, top in highest.items() if top < HIGHEST - 1}
    return {"ir": _highest(outcomes, "ir"), "opsets": bounded}


def _highest(outcomes: dict[str, str | None], name: str) -> int:
    taken = [n for n in range(1, HIGHEST) if outcomes[f"{name}-{n:02}.onnx"] is None]
    return max(taken, default=0)


def _identity(path: Path, ir: int, opsets: dict[str, int]) -> None:
    x, y = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y])
    _write(path, graph, ir, opsets)


def _write(path: Path, graph: onnx.GraphProto, ir: int, opsets: dict[str, int]) -> None:
    imports = [helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    model = helper.make_model(graph, opset_imports=imports)
    model.ir_version = ir
    path.write_bytes(model.SerializeToString(deterministic=True))


class Case(NamedTuple):
    """One type of one constraint of a kernel's row."""

    row: int
    constraint: str
    type: str


def probed(wheel: Wheel, kernels: list[Any], schemas: list[Any], top: dict[str, Any]) -> list[Any]:
    """Return those of some rows that a release has, with those of their types that it has."""
    by_name: dict[tuple[str, str], list[Any]] = {}
    for schema in schemas:
        by_name.setdefault((schema[0], schema[1]), []).append(schema)
    cases: list[Case] = []
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for number, (_, domain, op, start, end, types) in enumerate(kernels):
            known = by_name.get((domain, op), [])
            schema = max(
                (s for s in known if s[2] <= end and s[2] <= top["opsets"].get(domain, HIGHEST)),
                key=lambda s: s[2],
                default=None,
            )
            if schema is None or schema[2] < start or op in GRAPHS:
                continue
            for constraint, names in types.items() or {"": [""]}.items():
                for name in names:
                    case = Case(number, constraint, name)
                    later = [s[2] for s in known if s[2] > schema[2]]
                    if _probe(folder / f"{len(cases):05}.onnx", schema, case, types, later, top):
                        cases.append(case)
        outcomes = list(wheel.outcomes(folder, probe=True).values())
        has = [
            not _lacks(outcome, folder / f"{index:05}.onnx.seen")
            for index, outcome in enumerate(outcomes)
        ]
    return _rows(kernels, cases, has, top)


def _lacks(outcome: str | None, seen: Path) -> bool:
    """Return whether a one-node model shows that the release has no kernel for it."""
    if outcome is not None:
        # A type that the schema forbids cannot be tried, and no model can ask for it.
        refusals = ("NOT_IMPLEMENTED", "NotImplemented", "is not a registered")
        return any(word in outcome for word in refusals)
    nodes = onnx.load(seen, load_external_data=False).graph.node
    return any(node.name.startswith("InsertedPrecisionFreeCast") for node in nodes)


def _rows(kernels: list[Any], cases: list[Case], has: list[bool], top: dict[str, Any]) -> list[Any]:
    lacking = {case for case, is_there in zip(cases, has, strict=True) if not is_there}
    rows = []
    for number, (provider, domain, op, start, end, types) in enumerate(kernels):
        kept = {
            constraint: [name for name in names if Case(number, constraint, name) not in lacking]
            for constraint, names in types.items()
        }
        exists = all(kept.values()) and Case(number, "", "") not in lacking
        if exists and start <= top["opsets"].get(domain, HIGHEST):
            rows.append([provider, domain, op, start, end, kept])
    return rows


_VALUES: dict[str, Any] = {
    "INT": 1,
    "INTS": [1],
    "FLOAT": 1.0,
    "FLOATS": [1.0],
    "STRING": "x",
    "STRINGS": ["x"],
}


def _probe(
    path: Path, schema: Any, case: Case, types: dict[str, list[str]], later: list[int], top: Any
) -> bool:
    """Write a model of one node with a type; return whether one can be made."""
    domain, op, since, inputs, outputs, constraints, _, _, attributes, deprecated = schema
    if deprecated:
        return False
    given: dict[str, Any] = {}
    for name, kind in attributes.items():
        if kind.endswith("!"):
            if kind[:-1] not in _VALUES:
                return False
            given[name] = _VALUES[kind[:-1]]

    def type_for(parameter: list[Any]) -> str:
        name, kind = parameter[0], parameter[1]
        for key in (kind, name):
            if key == case.constraint:
                return case.type
            if key in types:
                return types[key][0]
        allowed = constraints.get(kind, [kind])
        return "tensor(float)" if "tensor(float)" in allowed else str(allowed[0])

    taken = [i for i in inputs if i[2] != "O" or case.constraint in i[:2]]
    ends = [helper.make_value_info(f"x{n}", type_of(type_for(i))) for n, i in enumerate(taken)]
    names = iter(value.name for value in ends)
    places = [next(names) if i in taken else "" for i in inputs]
    results = [helper.make_value_info(f"y{n}", onnx.TypeProto()) for n, _ in enumerate(outputs)]
    node = helper.make_node(op, places, [r.name for r in results], domain=domain, **given)
    graph = helper.make_graph([node], "g", ends, [])
    for number, (value, o) in enumerate(zip(results, outputs, strict=True)):
        if o[2] != "O" or case.constraint in o[:2]:
            value.type.CopyFrom(type_of(type_for(o)))
            graph.output.append(value)
        else:
            node.output[number] = ""
    opset = min([v - 1 for v in later] + [top["opsets"].get(domain, since)])
    opsets = {"": opset} if domain == "" else {"": 17, domain: max(since, 1)}
    _write(path, graph, 8, opsets)
    return True


def read_table() -> dict[str, Any]:
    """Return the table as it is shipped, or an empty one."""
    if not TABLE.exists():
        return {"format": 1, "releases": [], "ceilings": [], "kernels": [], "schemas": []}
    table: dict[str, Any] = json.loads(lzma.decompress(TABLE.read_bytes()))
    return table


def add(table: dict[str, Any], version: str, top: dict[str, Any], facts: dict[str, Any]) -> None:
    """Put what a release says into the table; the releases stay in order."""
    releases: list[str] = table["releases"]
    place = sum(Version(other) < Version(version) for other in releases)
    releases.insert(place, version)
    table["ceilings"].insert(place, top)
    for name in ("kernels", "schemas"):
        low = (1 << place) - 1
        rows = {
            json.dumps(row, sort_keys=True): (mask & low) | ((mask & ~low) << 1)
            for mask, row in ((int(mask, 16), row) for mask, row in table[name])
        }
        for row in facts[name]:
            text = json.dumps(row, sort_keys=True)
            rows[text] = rows.get(text, 0) | (1 << place)
        table[name] = [[f"{rows[text]:x}", json.loads(text)] for text in sorted(rows)]


def write_table(table: dict[str, Any]) -> None:
    """Write the table; the same facts give the same bytes."""
    text = json.dumps(table, sort_keys=True, separators=(",", ":"))
    TABLE.write_bytes(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))


def main() -> None:
    """Add every release that the table lacks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("versions", nargs="*", help="these alone; default: all on the index")
    parser.add_argument("--cache", type=Path, help="where unpacked wheels lie by version; kept")
    parser.add_argument("--prove", action="store_true", help="probe 1.16.0 and compare its list")
    arguments = parser.parse_args()
    if arguments.prove:
        prove(arguments.cache)
        return
    table = read_table()
    with tempfile.TemporaryDirectory() as made:
        wanted = arguments.versions or published()
        model: dict[str, Any] = {}
        for version in sorted(set(wanted) - set(table["releases"]), key=Version, reverse=True):
            wheel = fetched(version, Path(made), arguments.cache)
            top, facts = ceilings(wheel), wheel.facts()
            if facts["kernels"] is None:
                model = model or fetched("1.16.0", Path(made), arguments.cache).facts()
                facts["schemas"] = model["schemas"]
                facts["kernels"] = probed(wheel, model["kernels"], model["schemas"], top)
            add(table, version, top, facts)
            print(version, top, len(facts["kernels"]), "kernels")
    write_table(table)


def prove(cache: Path | None) -> None:
    """Say where probing 1.16.0 finds other kernels than it lists."""
    with tempfile.TemporaryDirectory() as made:
        wheel = fetched("1.16.0", Path(made), cache)
        facts, top = wheel.facts(), ceilings(wheel)
        found = probed(wheel, facts["kernels"], facts["schemas"], top)
    missed = [row for row in facts["kernels"] if row not in found]
    print(f"{len(facts['kernels'])} listed, {len(found)} found")
    for _, domain, op, start, end, types in missed:
        print("not found whole:", domain, op, start, end, types)


if __name__ == "__main__":
    main()
