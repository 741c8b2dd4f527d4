"""What the light reader of manifests accepts, the strict one accepts, with equal fields."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hypothesis import given
from hypothesis import strategies as st

from persistlib.canonical import encode
from persistlib.digests import PREFIX, digest
from persistlib.errors import PersistlibError
from persistlib.manifest import document, identity, light
from persistlib.manifest.misfits import misfits
from property.strategies import manifests

if TYPE_CHECKING:
    from persistlib.manifest.schema import Manifest

_ODD = ("", "a", "a\n", "../x", "con", "F32", "\0", "parameter", "1" * 64, PREFIX + "0" * 64 + "\n")
_JSON: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from((None, True, False, 0, 1, -1, 1.5, 1 << 60)),
    st.sampled_from(_ODD),
    st.sampled_from(([], [1], {}, {"a": 1})),
)


def resealed(raw: dict[str, Any]) -> bytes:
    """A file whose digest is right, whatever it says."""
    content = {name: value for name, value in raw.items() if name != "digest"}
    return encode({**content, "digest": PREFIX + digest(encode(content))})


def strictly(data: bytes) -> Manifest | None:
    try:
        return document.read(data)
    except PersistlibError:
        return None


def assert_law(data: bytes) -> bool:
    fast = light.read(data)
    if fast is None:
        return False
    strict = strictly(data)
    assert strict is not None
    assert fast.model_dump(mode="json") == strict.model_dump(mode="json")
    assert identity.bundle_id(fast) == identity.bundle_id(strict)
    assert len(fast.verified_files()) == len(strict.verified_files())
    return True


@given(manifests())
def test_a_sealed_manifest_is_read_alike(manifest: Manifest) -> None:
    data = document.write(document.seal(manifest))
    is_read = assert_law(data)
    # A NUL in any text and others' extensions are left to the strict reader.
    assert is_read or manifest.extensions or b"\\u0000" in data or strictly(data) is None


@given(manifests())
def test_what_the_schema_accepts_has_no_misfits(manifest: Manifest) -> None:
    raw = json.loads(document.write(manifest))
    assert not [*misfits(raw, light.schema(), ("manifest.json",))]


@given(manifests(), st.data())
def test_what_is_accepted_here_is_accepted_strictly(
    manifest: Manifest, data: st.DataObject
) -> None:
    raw = json.loads(document.write(document.seal(manifest)))
    for _ in range(data.draw(st.integers(1, 2))):
        _mutate(raw, data)
    assert_law(resealed(raw))


def _mutate(raw: dict[str, Any], data: st.DataObject) -> None:
    """Change, add or remove something somewhere."""
    at: Any = raw
    while True:
        keys = sorted(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys:
            break
        key = data.draw(st.sampled_from(keys))
        if not isinstance(at[key], (dict, list)) or not at[key] or data.draw(st.booleans()):
            action = data.draw(st.sampled_from(["replace", "remove", "double"]))
            if action == "replace":
                at[key] = data.draw(_JSON)
            elif action == "remove":
                del at[key]
            elif isinstance(at, list):
                at.append(copy.deepcopy(at[key]))
            else:
                at[f"{key}x"] = data.draw(_JSON)
            return
        at = at[key]


@given(st.binary(max_size=60))
def test_garbage_is_left_to_the_strict_reader(data: bytes) -> None:
    assert light.read(data) is None


def test_the_shipped_schema_is_the_classes_own() -> None:
    root = Path(__file__).parent.parent.parent
    code = "import generate, sys; sys.stdout.write(generate.bare_schema())"
    made = subprocess.run(
        [sys.executable, "-c", code], cwd=root / "docs", capture_output=True, check=True
    )
    assert (root / "persistlib" / "manifest" / "schema.json").read_bytes() == made.stdout


def test_reading_lightly_needs_no_pydantic() -> None:
    code = "import persistlib.summary, sys; print('pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout.strip() == b"False"


@given(manifests(), st.sampled_from(["../x", "con", "a:b", "x "]), st.booleans())
def test_a_name_that_leaves_the_folder_is_left_to_the_strict_reader(
    manifest: Manifest, name: str, is_document: bool
) -> None:
    raw = json.loads(document.write(document.seal(manifest)))
    if is_document or not raw["weights"]["files"]:
        raw["documents"] = [name]
    else:
        raw["weights"]["files"][0]["path"] = name
    assert light.read(resealed(raw)) is None
