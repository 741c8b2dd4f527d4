"""Licences are held against a list that forbids some: the model's, and its ancestors'."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import persistlib
from older_schemas import sealed
from persistlib import licenses
from persistlib.cli.main import cli
from persistlib.errors import UsageError
from persistlib.licenses import Verdict, judge, parse, parse_pattern

FIXTURES = Path(__file__).parent.parent / "fixtures" / "v1"
FREE, UNKNOWN, FORBIDDEN = Verdict


def verdict(text: str, *forbidden: str) -> Verdict:
    return judge(parse(text), [parse_pattern(name) for name in forbidden])


@pytest.mark.parametrize(
    ("text", "forbidden", "expected"),
    [
        ("MIT", ("MIT",), FORBIDDEN),
        ("mit", ("MIT",), FORBIDDEN),
        ("MIT", ("mit",), FORBIDDEN),
        ("MIT-0", ("MIT",), FREE),
        ("MIT", (), FREE),
        ("cc-by-nc-4.0", ("CC-BY-NC-*",), FORBIDDEN),
        ("CC-BY-NC-SA-4.0", ("CC-BY-NC-4.0",), FREE),
        ("CC-BY-4.0", ("CC-BY-NC-*",), FREE),
        ("MIT OR GPL-3.0-only", ("GPL-3.0-only",), FREE),
        ("MIT AND GPL-3.0-only", ("GPL-3.0-only",), FORBIDDEN),
        ("MIT OR GPL-3.0-only", ("GPL-3.0-only", "MIT"), FORBIDDEN),
        ("MIT OR Apache-2.0 AND GPL-3.0-only", ("GPL-3.0-only",), FREE),
        ("(MIT OR Apache-2.0) AND GPL-3.0-only", ("GPL-3.0-only",), FORBIDDEN),
        ("MIT or (Apache-2.0 and GPL-3.0-only)", ("MIT",), FREE),
        ("GPL-2.0-only WITH Classpath-exception-2.0", ("GPL-2.0-only",), FORBIDDEN),
        (
            "GPL-2.0-only WITH Classpath-exception-2.0",
            ("GPL-2.0-only WITH Classpath-exception-2.0",),
            FORBIDDEN,
        ),
        ("GPL-2.0-only", ("GPL-2.0-only WITH Classpath-exception-2.0",), FREE),
        ("GPL-2.0", ("GPL-2.0-only",), FORBIDDEN),
        ("GPL-2.0-only", ("GPL-2.0",), FORBIDDEN),
        ("GPL-2.0+", ("GPL-2.0-or-later",), FORBIDDEN),
        ("AGPL-3.0", ("AGPL-3.0-only",), FORBIDDEN),
        ("LGPL-2.1+", ("LGPL-2.1-only",), FREE),
        ("Apache-1.1+", ("Apache-1.1",), FORBIDDEN),
        ("Apache-1.1", ("Apache-1.1+",), FREE),
        ("LGPL-2.1-only", ("GPL-*",), FREE),
        ("AGPL-3.0-only", ("*GPL-*",), FORBIDDEN),
        ("LicenseRef-House", ("LicenseRef-House",), FORBIDDEN),
        ("LicenseRef-House", ("MIT",), FREE),
        ("DocumentRef-x:LicenseRef-House", ("MIT",), FREE),
        ("openrail", ("MIT",), UNKNOWN),
        ("openrail", ("openrail",), FORBIDDEN),
        ("openrail OR MIT", ("GPL-*",), FREE),
        ("openrail AND MIT", ("GPL-*",), UNKNOWN),
        ("openrail AND GPL-3.0-only", ("GPL-*",), FORBIDDEN),
        ("openrail OR GPL-3.0-only", ("GPL-*",), UNKNOWN),
        ("NOASSERTION", ("MIT",), UNKNOWN),
        ("NONE", ("MIT",), UNKNOWN),
    ],
)
def test_what_a_list_forbids(text: str, forbidden: tuple[str, ...], expected: Verdict) -> None:
    assert verdict(text, *forbidden) is expected


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " ",
            "MIT OR",
            "OR MIT",
            "AND",
            "MIT MIT",
            "MIT WITH",
            "(MIT",
            "MIT)",
            "()",
            "MIT,BSD",
        ),
        *("MIT WITH (A)", "(MIT) WITH A", "MIT/Apache-2.0", "CC BY-NC 4.0", "M\u0130T", "MIT\0"),
        *("MIT,BSD", "../x"),
        *("(" * 60 + "MIT" + ")" * 60, "MIT OR " * 1000 + "MIT", "(" * 1999),
    ],
)
def test_what_is_no_expression_is_told_as_that(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse(text)


def test_an_expression_of_many_parts_takes_no_long_time() -> None:
    text = " AND ".join(["(MIT OR GPL-3.0-only)"] * 60)
    assert verdict(text, "GPL-*") is FREE
    assert verdict(text, "GPL-*", "MIT") is FORBIDDEN


def test_without_the_list_of_spdx_every_name_is_taken_for_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    licenses.is_known.cache_clear()
    monkeypatch.setitem(sys.modules, "packaging.licenses", None)
    assert verdict("openrail", "MIT") is FREE
    assert verdict("NONE", "MIT") is UNKNOWN
    licenses.is_known.cache_clear()


# -- in a verdict ------------------------------------------------------------------------------


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    shutil.copytree(FIXTURES / "tied", tmp_path / "model")
    return tmp_path / "model"


def licensed(bundle: Path, own: str | None, *ancestors: str | None) -> Path:
    raw = json.loads((bundle / "manifest.json").read_bytes())
    raw["license"] = own
    raw["lineage"] = [
        {"id": None, "license": one, "relation": "fine-tuned-from", "source": f"model {place}"}
        for place, one in enumerate(ancestors)
    ]
    (bundle / "manifest.json").write_bytes(sealed(raw))
    return bundle


def judged(bundle: Path, *forbidden: str) -> tuple[str, list[tuple[str, str]]]:
    report = persistlib.check(bundle, forbid_licenses=forbidden)
    found = [(f.severity, f.location) for f in report.findings if f.code == "PL226"]
    return report.verdict, found


def test_a_forbidden_licence_refuses_the_model(bundle: Path) -> None:
    licensed(bundle, "CC-BY-NC-4.0")
    assert judged(bundle) == ("ok", [])
    assert judged(bundle, "GPL-*") == ("ok", [])
    verdict, found = judged(bundle, "CC-BY-NC-*")
    assert (verdict, [severity for severity, _ in found]) == ("refused", ["error"])


def test_an_ancestor_counts_however_far_it_is(bundle: Path) -> None:
    licensed(bundle, "MIT", "Apache-2.0", "CC-BY-NC-4.0", "MIT")
    verdict, found = judged(bundle, "CC-BY-NC-*")
    assert verdict == "refused"
    ((severity, place),) = found
    assert severity == "error"
    assert "lineage.1.license" in place
    assert "model 1" in place


@pytest.mark.parametrize("unclear", [None, "", "openrail", "CC BY-NC 4.0", "MIT OR", "x" * 3000])
def test_what_cannot_be_told_is_a_warning(bundle: Path, unclear: str | None) -> None:
    for names in ((unclear, "MIT"), ("MIT", unclear)):
        verdict, found = judged(licensed(bundle, *names), "GPL-*")
        assert (verdict, [severity for severity, _ in found]) == ("degraded", ["warning"])


def test_a_choice_that_is_left_is_a_note(bundle: Path) -> None:
    assert judged(licensed(bundle, "MIT OR GPL-3.0-only"), "GPL-*")[0] == "ok"
    report = persistlib.check(bundle, forbid_licenses=["GPL-*"])
    (found,) = [f for f in report.findings if f.code == "PL226"]
    assert (found.severity, "GPL-3.0-only" in found.message) == ("note", True)


def test_a_bare_file_has_no_licence_to_be_told(bundle: Path) -> None:
    assert judged(bundle / "model.safetensors", "GPL-*")[0] == "degraded"
    assert judged(bundle / "model.safetensors")[0] == "ok"


@pytest.mark.parametrize("name", ["", "MIT OR X", "MIT WITH", "a b c", "(MIT)", "MIT;", "[MIT]"])
def test_a_list_that_names_no_licence_is_refused(bundle: Path, name: str) -> None:
    with pytest.raises(UsageError, match="licence"):
        judged(bundle, "MIT", name)


def test_the_command_line_takes_several(bundle: Path) -> None:
    licensed(bundle, "MIT", "GPL-3.0-only")

    def told(*words: str) -> tuple[int, list[str]]:
        result = CliRunner().invoke(cli, ["check", str(bundle), "--json", *words])
        envelope: dict[str, Any] = json.loads(result.stdout)
        return result.exit_code, [f["code"] for f in envelope["findings"]]

    assert told() == (0, [])
    assert told("--forbid-license", "MIT", "GPL-*") == (1, ["PL226", "PL226"])
    assert told("--forbid-license", "BSD-*", "--forbid-license", "GPL-*") == (1, ["PL226"])
    assert told("--forbid-license", "MIT OR X") == (2, ["PL901"])


def test_inspect_shows_the_licences_of_the_whole_chain(bundle: Path) -> None:
    licensed(bundle, "MIT", "Apache-2.0", None, "GPL-3.0-only")
    shown = CliRunner().invoke(cli, ["inspect", str(bundle)]).stdout
    for text in ("license", "MIT", "model 0 · Apache-2.0", "model 1", "model 2 · GPL-3.0-only"):
        assert text in shown


def test_what_is_trained_on_from_a_bundle_names_it_and_all_its_ancestors(bundle: Path) -> None:
    torch = pytest.importorskip("torch")
    licensed(bundle, "CC-BY-NC-4.0", "Apache-2.0")
    model = persistlib.load(bundle)
    kept = persistlib.inspect(bundle).manifest
    out = bundle.parent / "child"
    data = (torch.tensor([[0, 3], [6, 1]] * 4), torch.zeros(8, 2, dtype=torch.int64))
    loss = torch.nn.CrossEntropyLoss()
    persistlib.finetune(
        model.float(),
        data,
        epochs=1,
        lr=0.1,
        out=out,
        metrics=(),
        loss=lambda scores, batch: loss(scores.flatten(0, 1), batch.targets.flatten()),
    )
    parent, *ancestors = persistlib.inspect(out).manifest.lineage
    assert (parent.relation, parent.id, parent.license) == (
        "fine-tuned-from",
        kept.bundle_id,
        "CC-BY-NC-4.0",
    )
    assert tuple(ancestors) == kept.lineage
    verdict, found = judged(out, "CC-BY-NC-*")
    assert verdict == "refused"
    assert {severity for severity, _ in found} == {"warning", "error"}
