"""`persistlib upgrade`: older manifests brought to this release's version, in place."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import click

import persistlib
from persistlib.cli.answer import Answer, Exit, Findings, Line, Span, Style, Table, verdict
from persistlib.cli.command import Verb
from persistlib.cli.text import clip
from persistlib.cli.text import command as words
from persistlib.manifest import consistency
from persistlib.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from persistlib.cli.answer import JSON, Block
    from persistlib.manifest.comparison import ManifestRow
    from persistlib.upgrading import BundleUpgrade, UpgradeReport

_SHOWN = 20  # changed fields of a bundle; all stand in the envelope
_VALUE = 36  # columns of a value


@click.command("upgrade", cls=Verb)
@click.argument("path", metavar="BUNDLE|FOLDER")
@click.option("--dry-run", is_flag=True, help="Say what would change and write nothing.")
@click.option("--check", "is_check", is_flag=True, help="As --dry-run; exit with 1 if it would.")
def command(path: str, *, dry_run: bool, is_check: bool) -> Answer:
    """Bring the manifest of BUNDLE, or of every bundle below FOLDER, to this release's version.

    The model stays what it is, and so does every other file; the old manifest is kept in the bundle
    as manifest-VERSION.json. Exits with 1 when a bundle could not be upgraded.
    """
    is_dry = dry_run or is_check
    report = persistlib.upgrade(path, dry_run=is_dry)
    older = [bundle for bundle in report.bundles if bundle.is_older]
    outcome = Exit.OK if report.ok and not (is_check and older) else Exit.FAILED
    blocks: list[Block] = [verdict(_verdict(report, is_dry=is_dry), outcome)]
    for bundle in older:
        blocks += _blocks(bundle)
    if report.findings:
        blocks.append(Findings(report.findings))
    return Answer(
        data={
            "path": path,
            "dry_run": is_dry,
            "bundles": [_data(bundle) for bundle in report.bundles],
        },
        report=tuple(blocks),
        brief=tuple(bundle.path for bundle in older),
        findings=report.findings,
        hints=_hints(path, is_dry=is_dry) if older else (),
        exit=outcome,
    )


def _verdict(report: UpgradeReport, *, is_dry: bool) -> str:
    older = sum(bundle.is_older for bundle in report.bundles)
    rest = len(report.bundles) - older
    said = f"{counted(older, 'bundle')} {'to upgrade' if is_dry else 'upgraded'}"
    facts = [
        *([said] if older else []),
        *([f"{counted(rest, 'bundle')} up to date"] if rest or not report.findings else []),
        *([f"{len(report.findings)} not readable or writable"] if report.findings else []),
    ]
    return ", ".join(facts)


def _blocks(bundle: BundleUpgrade) -> Iterator[Block]:
    kept = f", the old manifest in {bundle.kept}" if bundle.kept else ""
    yield Line((Span(bundle.path, Style.STRONG), Span(f"  {bundle.before} → {bundle.after}{kept}")))
    rows = [_row(row) for row in bundle.changes[:_SHOWN]]
    yield Table(("field", "before", "after"), tuple(rows))
    if len(bundle.changes) > _SHOWN:
        rest = f"and {len(bundle.changes) - _SHOWN} more: --json shows them"
        yield Line((Span(rest, Style.FAINT),))


def _row(row: ManifestRow) -> tuple[str, str, str]:
    return row.field, _value(row.before), _value(row.after)


def _value(value: Any) -> str:
    return "" if value is None else clip(json.dumps(value, ensure_ascii=False), _VALUE)


def _data(bundle: BundleUpgrade) -> dict[str, JSON]:
    return {
        "path": bundle.path,
        "before": bundle.before,
        "after": bundle.after,
        "bundle_id": bundle.bundle_id,
        "kept": bundle.kept,
        "changes": [
            {"field": row.field, "before": row.before, "after": row.after} for row in bundle.changes
        ],
    }


def _hints(path: str, *, is_dry: bool) -> tuple[str, ...]:
    if is_dry:
        return (words("persistlib", "upgrade", path),)
    is_bundle = os.path.exists(os.path.join(path, consistency.NAME))
    return (words("persistlib", "verify", path),) if is_bundle else ()
