"""The layout of docs/architecture.md, held by reading the sources."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import persistlib

if sys.version_info >= (3, 11):
    import tomllib
else:  # pip's own copy: a dependency for one test is too much
    from pip._vendor import tomli as tomllib

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]

# Who may import whom: a part imports its own layer and those before it.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "families"),
    (
        *("amendment", "canonical", "clock", "digests", "dtypes", "files", "gap"),
        *("graph_notes", "graph_tensors", "images", "licenses", "lock", "patterns", "place"),
        *("publish", "wire", "wording"),
    ),
    ("checkpoint", "manifest"),
    ("formats", "installed"),
    (
        *(
            "adaptation",
            "architecture",
            "bases",
            "blocks",
            "bundle",
            "card",
            "casting",
            "compat",
            "conversion",
            "divided",
        ),
        *("deviation", "difference", "examples", "graph_wishes"),
        *("materializing", "model_notes", "noted_models", "parents"),
        *("identification", "keras_models"),
        *(
            "keras_reading",
            "preparing",
            "preprocessing",
            "processes",
            "rehearsal",
            "selection",
            "sources",
            "standing",
            "summary",
            "table_rows",
        ),
        *("upgrading", "upkeep", "verification", "versions", "writing"),
    ),
    ("export", "runtime", "training"),
    ("evaluation", "quantization"),
    (
        *(
            "alignment",
            "behaviour",
            "calls",
            "contenders",
            "graph_bundles",
            "graph_modules",
            "graphs",
        ),
        *("keras_conversion", "loading", "measurement", "pairwise", "run_versions", "saving"),
        *("saving_together", "trained_bundles", "whole_models"),
    ),
    ("api", "probing"),
    ("",),
    ("cli",),
    ("__main__",),
)
CONVERTERS_IMPORT = {*LAYERS[0], *LAYERS[1], "checkpoint", "converters"}
# The lazy root looks its names up in `api` when they are first used.
ROOT_IMPORTS = {"errors"}
HEAVY = {"torch", "torchvision", "onnx", "onnxruntime", "onnxscript", "sklearn", "PIL", "rich"}
# What comes with extras; what can do nothing without torch imports it at once.
NEED_TORCH = (
    "adaptation.channels",
    "adaptation.classes",
    "adaptation.image_size",
    "adaptation.trial",
    "alignment",
    "architecture",
    "evaluation.probing",
    "examples",
    "divided",
    "export",
    "graph_bundles",
    "graph_modules",
    "identification.adoption",
    "keras_conversion",
    "keras_models",
    "noted_models",
    "processes",
    "run_versions",
    "runtime.torch_predictions",
    "saving",
    "trained_bundles",
    "training",
)
EXTRAS = {"torch", "torchvision", "onnxscript", "accelerate", "sklearn", "tensorboard", "keras"}
BANNED_WORDS = {"util", "utils", "helper", "helpers", "common", "manager", "misc", "handle"}
# A statement or a header counts as one line, so 40 written lines are some 30 of these.
MODULE_LINES = 250
FUNCTION_LINES = 35


def sources(*folders: str) -> list[Path]:
    """Return the Python files of some folders; the link to the converters is not followed."""
    return [
        Path(folder) / name
        for top in folders
        for folder, _, names in os.walk(ROOT / top)
        for name in sorted(names)
        if name.endswith(".py")
    ]


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] == "converters":
        parts = ("persistlib", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sources("persistlib", "converters")}


def imported(path: Path, *, for_types: bool = True, in_functions: bool = True) -> Iterator[str]:
    """Yield the modules that a file imports: all, or what running it alone needs."""
    waiting: list[ast.AST] = [parsed(path)]
    while waiting:
        node = waiting.pop()
        if is_for_types(node) and not for_types:
            continue
        if not in_functions and (isinstance(node, ast.FunctionDef) or is_script(node)):
            continue
        waiting.extend(ast.iter_child_nodes(node))
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else node.module


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def is_script(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def part(module: str) -> str:
    """Return the part of persistlib that a module belongs to; empty for the root."""
    return module.split(".")[1] if "." in module else ""


def layer(of: str) -> int:
    return next(index for index, parts in enumerate(LAYERS) if of in parts)


def test_every_part_has_a_layer() -> None:
    known = {name for parts in LAYERS for name in parts} | {"", "converters"}
    assert {part(module) for module in MODULES} <= known


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module: str) -> None:
    for other in imported(MODULES[module], for_types=part(module) != ""):
        if other.split(".")[0] != "persistlib":
            assert other.split(".")[0] != "converters"
            continue
        here, there = part(module), part(other)
        if there == "converters" and here != "converters":
            continue  # the next test's matter
        if here == "converters":
            assert there in CONVERTERS_IMPORT, f"{module} imports {other}"
        elif here == "":
            assert there in ROOT_IMPORTS, f"{module} imports {other}"
        else:
            assert layer(there) <= layer(here), f"{module} imports {other}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    waiting = {
        name: set(imported(path, for_types=False, in_functions=False)) & MODULES.keys()
        for name, path in MODULES.items()
    }
    while ready := [name for name, needs in waiting.items() if not needs & waiting.keys()]:
        for name in ready:
            del waiting[name]
    assert not waiting


@pytest.mark.parametrize("module", MODULES)
def test_converters_are_named_in_the_table_of_formats_alone(module: str) -> None:
    if part(module) in ("converters", "formats"):
        return
    used = imported(MODULES[module], for_types=False)
    assert "converters" not in {part(other) for other in used if other in MODULES}
    for node in ast.walk(parsed(MODULES[module])):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert not re.match(r"(persistlib\.)?converters\.\w", node.value), module


def test_no_public_name_is_a_submodule() -> None:
    submodules = {part(module) for module in MODULES}
    public = set(getattr(persistlib, "__all__", ())) - {"errors"}
    assert not public & submodules
    for name in dir(persistlib):
        assert hasattr(persistlib, name), name


def in_child(code: str) -> str:
    """Return what a fresh interpreter prints."""
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert child.returncode == 0, child.stderr
    return child.stdout


@pytest.mark.parametrize("module", ["persistlib", "persistlib.errors", "persistlib.cli.main"])
def test_importing_loads_nothing_heavy(module: str) -> None:
    loaded = in_child(
        f"import sys, {module}; print(*{{name.split('.')[0] for name in sys.modules}})"
    )
    assert not set(loaded.split()) & (HEAVY | {"numpy", "pydantic"})


@pytest.mark.parametrize("module", MODULES)
def test_what_works_without_torch_imports_it_nowhere(module: str) -> None:
    if module.removeprefix("persistlib.").startswith(NEED_TORCH):
        return
    at_once = imported(MODULES[module], for_types=False, in_functions=False)
    assert not {name.split(".")[0] for name in at_once} & EXTRAS


def project() -> dict[str, Any]:
    with open(ROOT / "pyproject.toml", "rb") as file:
        return tomllib.load(file)


def test_the_package_list_is_the_folders() -> None:
    packages = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    assert set(project()["tool"]["setuptools"]["packages"]) == packages


def test_the_version_stands_in_one_place() -> None:
    from importlib.metadata import version

    assert project()["project"]["version"] == version("persistlib")


def test_converters_are_reached_through_a_link() -> None:
    link = ROOT / "persistlib" / "converters"
    assert link.is_symlink()
    assert os.readlink(link) == "../converters"
    assert (ROOT / "converters" / "__init__.py").is_file()


@pytest.mark.parametrize("path", sources("persistlib", "converters", "tests", "benchmarks"))
def test_names_say_what_a_module_is_for(path: Path) -> None:
    assert not set(path.stem.split("_")) & BANNED_WORDS


def code_lines(node: ast.AST) -> int:
    """Count the lines that code takes in one plain layout: no comment, docstring or blank line."""
    for child in ast.walk(node):
        match child:
            case (
                ast.Module(body=[ast.Expr(value=ast.Constant()), *rest])
                | ast.ClassDef(body=[ast.Expr(value=ast.Constant()), *rest])
                | ast.FunctionDef(body=[ast.Expr(value=ast.Constant()), *rest])
            ):
                child.body = rest or [ast.Pass()]
            case _:
                continue
    return sum(1 for line in ast.unparse(node).splitlines() if line.strip())


@pytest.mark.parametrize("module", MODULES)
def test_modules_and_functions_are_short(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    assert code_lines(tree) <= MODULE_LINES
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            node.decorator_list.clear()  # a command's options are data
            assert code_lines(node) <= FUNCTION_LINES, f"{module}.{node.name}"
            assert len(node.args.posonlyargs) + len(node.args.args) <= 6, f"{module}.{node.name}"


def tracked() -> list[Path]:
    listing = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listing.stdout.split("\0") if name]


def test_no_file_names_a_place_on_somebodys_machine() -> None:
    place = re.compile(rb"(?<![\w.:/-])/(?:home|root|work|Users|opt|mnt)/[\w.-]+")
    for path in tracked():
        if path.is_file():
            assert not (found := place.findall(path.read_bytes())), f"{path}: {found}"
