"""`persistlib status`: whether a model may be used, shown or set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

import persistlib
from persistlib.cli.answer import Answer, Exit, Fields, verdict
from persistlib.cli.command import Verb
from persistlib.cli.text import command as words
from persistlib.errors import Code, error
from persistlib.summary import glance

if TYPE_CHECKING:
    from persistlib.manifest.schema import Manifest

_EXIT = {
    "active": Exit.OK,
    "superseded-by": Exit.DEGRADED,
    "withdrawn": Exit.FAILED,
}


@click.command("status", cls=Verb)
@click.argument("bundle")
@click.option("--withdraw", metavar="REASON", help="Nobody shall use it any more: load refuses it.")
@click.option(
    "--superseded-by",
    metavar="ID|BUNDLE",
    help="Another shall be used: load warns and names it. A bundle_id, or the path of a bundle.",
)
@click.option("--reason", metavar="TEXT", help="Why it was superseded.")
@click.option("--activate", is_flag=True, help="It may be used, whatever was said before.")
def command(bundle: str, **options: Any) -> Answer:
    """Show whether the model of BUNDLE may be used, or say so for all who load it.

    The manifest alone changes; the model and its bundle_id stay what they are. Exits with 0 when
    the model is active or its status was set, 3 when it is superseded, 1 when it is withdrawn.
    """
    wished = _wished(options)
    manifest = persistlib.set_status(bundle, **wished) if wished else _shown(bundle)
    status = manifest.status
    outcome = Exit.OK if wished else _EXIT[status.state]
    facts = (
        ("since", status.date),
        ("reason", status.reason),
        ("successor", status.successor),
        ("bundle", manifest.bundle_id),
    )
    return Answer(
        data={"path": bundle, "bundle_id": manifest.bundle_id, **status.model_dump(mode="json")},
        report=(
            verdict(f"{manifest.name or bundle}: {status.state}", outcome),
            Fields(tuple((label, value) for label, value in facts if value)),
        ),
        brief=(status.state,),
        hints=(words("persistlib", "check", bundle),) if wished else (),
        exit=outcome,
    )


def _shown(bundle: str) -> Manifest:
    return (glance(bundle) or persistlib.inspect(bundle)).manifest


def _wished(options: dict[str, Any]) -> dict[str, Any]:
    """Return what `set_status` is called with; empty where the status is only to be shown.

    Raises:
        UsageError: two of them contradict each other.
    """
    reason, successor = options["reason"], options["superseded_by"]
    made: list[dict[str, Any]] = []
    if options["withdraw"] is not None:
        made.append({"state": "withdrawn", "reason": options["withdraw"]})
    if successor is not None:
        made.append({"state": "superseded-by", "successor": successor, "reason": reason})
    if options["activate"]:
        made.append({"state": "active"})
    if len(made) > 1 or (reason is not None and successor is None):
        text = "these options do not go together"
        raise error(Code.USAGE, "status", text, "give one of them; --reason with --superseded-by")
    return made[0] if made else {}
