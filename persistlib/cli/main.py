"""The entry point: which verbs there are, and how every fault becomes an answer.

A verb's module is imported when the verb is used; help needs none of them.
"""

from __future__ import annotations

import importlib
import sys
import traceback
import warnings
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TextIO

import click

from persistlib.cli.answer import Exit
from persistlib.cli.command import Shown, mode_of, shared_options
from persistlib.cli.output import Output
from persistlib.errors import Code, PersistlibError, PersistlibWarning, UsageError, finding

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from persistlib.cli.answer import Answer


class Entry(NamedTuple):
    """A verb as help lists it: its group and what it does."""

    group: str
    summary: str


VERBS = {
    "finetune": Entry("Make", "Train a model's last layers on your images and save it."),
    "adapt": Entry("Make", "Change a model for other classes, channels or image sizes."),
    "convert": Entry("Make", "Write a model in another format and say what would be lost."),
    "inspect": Entry("Look", "Show what a bundle holds, on one screen."),
    "identify": Entry("Look", "Say what a weights file is, and which model it belongs to."),
    "diff": Entry("Look", "Show what differs between two models."),
    "formats": Entry("Look", "List the file formats, and what each keeps."),
    "run": Entry("Look", "Name what is on images, or compute outputs from arrays."),
    "providers": Entry("Look", "Show what ONNX Runtime can compute with here, and why not more."),
    "environment": Entry("Look", "Describe this machine, so that another can check for it."),
    "evaluate": Entry("Look", "Measure how often a model is right, and how fast it is."),
    "compare": Entry("Look", "Rank models as beginnings for your images, nothing trained."),
    "log": Entry("Look", "List the versions in a folder, how they did and what they cost."),
    "verify": Entry("Trust", "Compare every byte with what was saved."),
    "check": Entry("Trust", "Say whether a model will work here, or elsewhere."),
    "status": Entry("Trust", "Show whether a model may be used, withdraw or supersede it."),
    "upgrade": Entry("Trust", "Bring older bundles to this release's manifest, in place."),
    "materialize": Entry("Trust", "Make a bundle that stands on another one whole."),
    "prune": Entry("Trust", "Remove older versions, and none that others stand on."),
}

# What other tools call it.
_OTHER_NAMES = {
    "train": "finetune",
    "fit": "finetune",
    "export": "convert",
    "show": "inspect",
    "info": "inspect",
    "recognise": "identify",
    "detect": "identify",
    "rank": "compare",
    "predict": "run",
    "infer": "run",
    "validate": "verify",
    "test": "evaluate",
    "score": "evaluate",
    "benchmark": "evaluate",
    "doctor": "check",
    "devices": "providers",
    "withdraw": "status",
    "migrate": "upgrade",
    "versions": "log",
    "history": "log",
    "flatten": "materialize",
    "clean": "prune",
}

_TOUR = (
    "persistlib finetune mobilenet_v2 --weights DEFAULT --data sklearn:digits --out digits",
    "persistlib inspect digits",
    "persistlib verify digits",
    "persistlib evaluate digits --data sklearn:digits --held-out",
    "persistlib run digits photo.png",
)


class Verbs(click.Group):
    """The bare command."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the verbs in the order of help."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Return a verb, imported now."""
        if cmd_name not in VERBS:
            return None
        command: click.Command = importlib.import_module(f"persistlib.cli.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the verb and what is left for it; to an unknown word, name the nearest."""
        word = args[0]
        if word in VERBS or word.startswith("-"):
            return super().resolve_command(ctx, args)
        import difflib

        names = {verb: verb for verb in VERBS} | _OTHER_NAMES
        near = difflib.get_close_matches(word.lower(), names, n=1)
        tail = f" Did you mean '{names[near[0]]}'?" if near else ""
        raise click.UsageError(f"No such verb '{word}'.{tail}", ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the verbs in their groups, and the tour."""
        for group in dict.fromkeys(entry.group for entry in VERBS.values()):
            with formatter.section(group):
                formatter.write_dl(
                    [
                        (f"{verb:11}", entry.summary)
                        for verb, entry in VERBS.items()
                        if entry.group == group
                    ]
                )
        with formatter.section("A short tour"):
            for line in _TOUR:
                formatter.write(f"{'':{formatter.current_indent}}{line}\n")

    def invoke(self, ctx: click.Context) -> Any:
        """Carry out the verb; whatever it or its libraries print cannot reach stdout."""
        with _captured(ctx.obj):
            return super().invoke(ctx)

    def main(  # type: ignore[override] # click's overloads tell modes apart that are one here
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        **_: Any,
    ) -> NoReturn:
        """Carry out a command line and leave with its exit code."""
        words = list(sys.argv[1:] if args is None else args)
        output = Output(mode_of(words), stdout=sys.stdout, stderr=sys.stderr)
        first = next((word for word in words if not word.startswith("-")), None)
        output.verb = first if first in VERBS else None
        try:
            outcome: Answer = super().main(
                words,
                prog_name or "persistlib",
                complete_var or "_PERSISTLIB_COMPLETE",
                standalone_mode=False,
                obj=output,
            )
        except Shown as shown:
            sys.exit(output.text(shown.text))
        except (Exception, KeyboardInterrupt) as fault:  # noqa: BLE001 - every fault is an answer
            sys.exit(_failure(output, fault))
        sys.exit(output.answer(outcome))


def _failure(output: Output, fault: BaseException) -> int:
    """Print a fault as findings and return the exit code."""
    if output.debug:
        traceback.print_exception(fault, file=sys.stderr)
    if isinstance(fault, PersistlibError):
        is_usage = isinstance(fault, UsageError)
        return output.failure(fault.findings, Exit.USAGE if is_usage else Exit.FAILED)
    if isinstance(fault, click.ClickException):
        context = getattr(fault, "ctx", None)
        path = context.command_path if context else "persistlib"
        found = finding(Code.USAGE, path, fault.format_message(), f"{path} --help")
        return output.failure((found,), Exit.USAGE)
    verb = f"persistlib {output.verb}" if output.verb else "persistlib"
    if isinstance(fault, (click.Abort, KeyboardInterrupt)):
        return output.failure((finding(Code.INTERRUPTED, verb, "interrupted"),), Exit.INTERRUPTED)
    if isinstance(fault, MemoryError):
        found = finding(Code.NO_MEMORY, verb, "not enough memory", "close other programs")
        return output.failure((found,), Exit.FAILED)
    message = f"{type(fault).__name__}: {fault}"
    remedy = "a fault of persistlib's own: report it with what PERSISTLIB_DEBUG=1 shows"
    return output.failure((finding(Code.INTERNAL, verb, message, remedy),), Exit.FAILED)


@contextmanager
def _captured(output: Output) -> Generator[None]:
    """Turn our warnings into findings, quieten those of libraries, and keep stdout ours."""

    def show(  # noqa: PLR0917 - the standard library's signature
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,  # noqa: ARG001 - as above
        line: str | None = None,
    ) -> None:
        if isinstance(message, PersistlibWarning):
            output.warn(message.finding)
        else:
            output.note(warnings.formatwarning(message, category, filename, lineno, line).strip())

    with warnings.catch_warnings(), redirect_stdout(sys.stderr):
        warnings.simplefilter("default" if output.debug else "ignore")
        warnings.simplefilter("always", PersistlibWarning)
        warnings.showwarning = show
        yield


def _show_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib.metadata import version

        raise Shown(f"persistlib {version('persistlib')}")


@click.pass_context
def _show_tour(ctx: click.Context) -> None:
    if ctx.invoked_subcommand is None:
        raise Shown(ctx.get_help())


_version = click.Option(
    ["--version"],
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version.",
)

cli = Verbs(
    "persistlib",
    help="Save, verify and run fine-tuned models.",
    callback=_show_tour,
    invoke_without_command=True,
    add_help_option=False,
    params=[*shared_options(), _version],
    subcommand_metavar="VERB ...",
    context_settings={"max_content_width": 100},
)


def main() -> NoReturn:
    """Carry out the process's own command line."""
    cli.main()
