"""The test vectors that any implementation can read hold for this one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from persistlib.canonical import encode, parse
from persistlib.digests import PREFIX, TensorRow, digest, weights_identity
from persistlib.dtypes import DType
from persistlib.errors import ManifestError

VECTORS = Path(__file__).parents[1] / "fixtures" / "vectors"


def cases(name: str, part: str) -> list[Any]:
    document = json.loads((VECTORS / name).read_text(encoding="utf-8"))
    return [pytest.param(case, id=case["case"]) for case in document[part]]


@pytest.mark.parametrize("case", cases("canonical.json", "encode"))
def test_a_value_has_one_canonical_text(case: dict[str, str]) -> None:
    canonical = case["canonical"].encode()
    assert encode(parse(case["json"].encode(), "vector")) == canonical
    assert encode(parse(canonical, "vector")) == canonical
    assert digest(canonical) == case["blake3"]


@pytest.mark.parametrize("case", cases("canonical.json", "refuse"))
def test_what_has_no_canonical_text_is_refused(case: dict[str, str]) -> None:
    with pytest.raises(ManifestError):
        parse(bytes.fromhex(case["hex"]), "vector")


@pytest.mark.parametrize("case", cases("weights_identity.json", "cases"))
def test_weights_have_one_identity(case: dict[str, Any]) -> None:
    rows: list[TensorRow] = []
    for tensor in case["tensors"]:
        data = bytes.fromhex(tensor["bytes"])
        dtype, shape = DType[tensor["dtype"]], tuple(tensor["shape"])
        assert dtype.nbytes(shape) == len(data)
        assert digest(data) == tensor["blake3"]
        rows.append(TensorRow(tensor["name"], dtype, shape, tensor["blake3"]))
    assert weights_identity(rows) == case["identity"]
    assert weights_identity(reversed(rows)) == case["identity"]
    assert PREFIX + digest(bytes.fromhex(case["rows"])) == case["identity"]


def test_no_two_cases_share_an_identity() -> None:
    document = json.loads((VECTORS / "weights_identity.json").read_text(encoding="utf-8"))
    identities = [case["identity"] for case in document["cases"]]
    assert len(set(identities)) == len(identities)
