"""New names by rules: what a rule means, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

import persistlib
from persistlib.errors import Code, PersistlibError
from persistlib.patterns import renamed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

NAMES = ("module.layer1.0.conv.weight", "module.layer1.1.conv.weight", "module.fc.bias")


@pytest.mark.parametrize(
    ("rules", "wanted"),
    [
        (["module.*=*"], ("layer1.0.conv.weight", "layer1.1.conv.weight", "fc.bias")),
        (
            {"module.layer1.?.*": "blocks.*.*"},
            ("blocks.0.conv.weight", "blocks.1.conv.weight", "module.fc.bias"),
        ),
        ({"module.layer1.[0].conv": "c"}, ("c.weight", *NAMES[1:])),
        ({"module.layer1.[!0].conv": "c"}, (NAMES[0], "c.weight", NAMES[2])),
        ({"module.fc": "head"}, (*NAMES[:2], "head.bias")),
        ({"module.fc.bias": "b"}, (*NAMES[:2], "b")),
        ("module.fc=head", (*NAMES[:2], "head.bias")),
        ([("module.fc", "head=1")], (*NAMES[:2], "head=1.bias")),
        ({"module.*": "*", "module.fc": "head"}, (*(n[7:] for n in NAMES[:2]), "head.bias")),
        (["module.fc=a=b"], None),
    ],
)
def test_a_rule_gives_the_names_that_it_says(
    rules: Mapping[str, str] | Sequence[str] | str, wanted: tuple[str, ...] | None
) -> None:
    if wanted is None:  # the last = divides, so the pattern is one that matches nothing
        with pytest.raises(PersistlibError, match="matches no tensor"):
            renamed(rules, NAMES)
        return
    assert tuple(renamed(rules, NAMES).values()) == wanted


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        ("module.*", Code.USAGE),
        ("=x", Code.USAGE),
        ("", Code.USAGE),
        ("module.*=*.*", Code.USAGE),
        ("nothing.*=*", Code.PATTERN_UNMATCHED),
        ("module.(.*)=*", Code.PATTERN_UNMATCHED),
        ("[!z-a]*=*", Code.USAGE),
    ],
)
def test_what_is_no_rule_is_refused(rule: str, code: Code) -> None:
    with pytest.raises(PersistlibError) as caught:
        renamed([rule], NAMES)
    assert caught.value.code == code.identifier


def saved(path: Path) -> Path:
    shared = torch.arange(6.0).reshape(2, 3)
    state = {"module.a.w": shared, "module.b.w": shared, "module.c": torch.ones(2)}
    torch.save(state, path)
    return path


def test_a_conversion_renames_and_keeps_ties_and_bytes(tmp_path: Path) -> None:
    source = saved(tmp_path / "in.pt")
    report = persistlib.convert(source, tmp_path / "out.pt", rename=["module.*=*", "module.a=z"])
    state = torch.load(tmp_path / "out.pt", weights_only=True)
    assert set(state) == {"z.w", "b.w", "c"}
    assert state["z.w"].data_ptr() == state["b.w"].data_ptr()
    assert torch.equal(state["z.w"], torch.arange(6.0).reshape(2, 3))
    assert {row.name: row.source for row in report.rows} == {
        "z.w": "module.a.w",
        "b.w": "module.b.w",
        "c": "module.c",
    }
    assert all(row.before == row.after for row in report.rows)
    assert report.source_identity not in {None, report.identity}


def test_renaming_back_gives_the_same_weights(tmp_path: Path) -> None:
    source = saved(tmp_path / "in.pt")
    one = persistlib.convert(source, tmp_path / "one.safetensors", rename={"module.*": "*"})
    two = persistlib.convert(
        tmp_path / "one.safetensors", tmp_path / "two.pt", rename=["*=module.*"]
    )
    assert two.identity == one.source_identity
    assert persistlib.diff(source, tmp_path / "two.pt").same


def test_names_that_would_be_one_leave_no_file(tmp_path: Path) -> None:
    source = saved(tmp_path / "in.pt")
    for rules in (["module.a.w=x", "module.c=x"], ["module.a.w=module.c"], ["*=x"]):
        with pytest.raises(PersistlibError) as caught:
            persistlib.convert(source, tmp_path / "out.pt", rename=rules)
        assert caught.value.code == Code.FORMAT_NAME.identifier
        assert "module.c" in f"{caught.value.location} {caught.value.reason}"
        assert not (tmp_path / "out.pt").exists()


def test_rules_see_what_was_chosen(tmp_path: Path) -> None:
    source = saved(tmp_path / "in.pt")
    report = persistlib.convert(
        source, tmp_path / "out.pt", only=["module.a"], rename=["module.*=*"]
    )
    assert [row.name for row in report.rows] == ["a.w"]
    with pytest.raises(PersistlibError, match="matches no tensor"):
        persistlib.convert(source, tmp_path / "no.pt", only=["module.a"], rename=["module.b=x"])
