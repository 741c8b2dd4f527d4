"""The pages made from the code are what the code says."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from persistlib.canonical import encode, parse

if TYPE_CHECKING:
    from types import ModuleType

DOCS = Path(__file__).parents[1] / "docs"


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PAGES = generator().PAGES


@pytest.mark.parametrize("page", PAGES)
def test_a_page_made_from_the_code_is_current(page: str) -> None:
    made, found = PAGES[page](), (DOCS / page).read_text(encoding="utf-8")
    if page.endswith(".json"):
        made, found = json.loads(made), json.loads(found)
    assert found == made, "run `make docs` and commit what it wrote"


def test_the_canonical_lines_of_the_manifest_page_are_canonical() -> None:
    page = (DOCS / "manifest.md").read_text(encoding="utf-8")
    lines = re.findall(r"```json canonical\n(.*?)```", page, re.DOTALL)
    assert lines
    for line in lines:
        assert encode(parse(line.encode(), "page")).decode() == line


def test_every_link_between_pages_leads_somewhere() -> None:
    root = DOCS.parent
    pages = [*root.glob("*.md"), *DOCS.glob("*.md"), *root.glob("fixtures/**/*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.relative_to(root)} -> {target}"


def python_blocks(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", ["README.md"])
def test_the_examples_of_a_page_run(page: str, tmp_path: Path) -> None:
    code = "\n".join(python_blocks(DOCS.parent / page))
    assert code
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
