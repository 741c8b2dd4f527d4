"""What the verbs share: `--json`, `--quiet`, `--help`, and options that take several values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from persistlib.cli.output import Mode
from persistlib.cli.text import command

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Shown(Exception):  # noqa: N818 - no fault: it ends the command as `click.exceptions.Exit` does
    """A text was asked for instead of work."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


class Spread(click.Option):
    """An option that may be repeated or followed by several values: `--freeze A B --freeze C`."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **{**settings, "multiple": True})


class Verb(click.Command):
    """A verb: a click command that returns an `Answer`."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **{**settings, "add_help_option": False})
        self.params += shared_options()

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments, options followed by several values among them."""
        return super().parse_args(ctx, spread(args, self.params))


def said(context: click.Context) -> dict[str, click.Parameter]:
    """Return the verb's own arguments and options that stand on the command line, by name."""
    own = {str(item.name): item for item in context.command.params if item.expose_value}
    where = context.get_parameter_source
    return {name: item for name, item in own.items() if where(name) is ParameterSource.COMMANDLINE}


def again(context: click.Context, **changed: str | None) -> str:
    """Return the command line as it was said, but for some options.

    Args:
        context: of the verb that was called.
        **changed: options that have another value, or none.
    """
    line = ["persistlib", str(context.info_name)]
    values = {name: context.params[name] for name in said(context)} | changed
    for parameter in context.command.params:
        value = values.get(str(parameter.name))
        if value is None:
            continue
        option = [parameter.opts[0]] if isinstance(parameter, click.Option) else []
        several = value if isinstance(value, tuple) else () if value is True else (value,)
        line += [*option, *map(str, several)]
    return command(*line)


def shared_options() -> list[click.Parameter]:
    """Return the options of every verb and of the bare command."""
    return [
        click.Option(
            ["--json"],
            is_flag=True,
            expose_value=False,
            help="One JSON envelope on stdout, for errors too.",
        ),
        click.Option(
            ["--quiet", "-q"],
            is_flag=True,
            expose_value=False,
            help="Only names, paths and errors.",
        ),
        click.Option(
            ["--help", "-h"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_show_help,
            help="Show this text.",
        ),
    ]


trust_option = click.option(
    "--trust",
    multiple=True,
    metavar="PACKAGE",
    help="A package of your own whose code may be imported to rebuild the model.",
)

withdrawn_option = click.option(
    "--allow-withdrawn", is_flag=True, help="Use a model that was withdrawn, with a warning."
)

_CLASSIFIER = (
    click.option(
        "--classifier",
        type=click.Choice(("logistic", "svm", "ridge")),
        help="Fit scikit-learn's on what goes into the last layer, which becomes exactly that.",
    ),
    click.option(
        "--C",
        "strength",
        type=float,
        default=1.0,
        show_default=True,
        metavar="F",
        help="Of the classifier: the less, the more are large weights held back.",
    ),
    click.option(
        "--cache", metavar="DIR", help="Keep what the frozen part gives here, for another run."
    ),
)


def classifier_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a verb the options of a classifier that is fitted on features."""
    for option in reversed(_CLASSIFIER):
        function = option(function)
    return function


def _providers(
    _: click.Context, __: click.Parameter, values: tuple[str, ...]
) -> list[tuple[str, dict[str, str]]] | None:
    """Return the wishes of `--providers cuda:device_id=1,cpu` and of its repetitions."""
    from persistlib.runtime import providers

    return [wish for value in values for wish in providers.parse(value)] or None


providers_option = click.option(
    "--providers",
    multiple=True,
    callback=_providers,
    metavar="NAME[:KEY=VALUE],...",
    help="ONNX Runtime's providers, the preferred first: cuda:device_id=1,cpu.",
)

require_option = click.option(
    "--require", metavar="NAME", help="Refuse to run unless this provider computes."
)

batch_size_option = click.option(
    "--batch-size", type=click.IntRange(min=1), default=32, show_default=True, metavar="N"
)
calls_option = click.option(
    "--calls",
    type=click.IntRange(min=0),
    default=30,
    show_default=True,
    metavar="N",
    help="Calls to time for each batch size, at most; 0 times none.",
)
graph_option = click.option(
    "--graph", metavar="PRECISION", help="Which of a bundle's graphs: f16, int8."
)


def mode_of(args: Sequence[str]) -> Mode:
    """Return for whom to write, known before anything is parsed: usage errors are told alike."""
    options = set(args[: args.index("--")] if "--" in args else args)
    if "--json" in options:
        return Mode.JSON
    return Mode.QUIET if options & {"--quiet", "-q"} else Mode.HUMAN


def spread(args: Sequence[str], params: Sequence[click.Parameter]) -> list[str]:
    """Return the arguments with each further value of a `Spread` under its option's name.

    `--freeze A B` becomes `--freeze A --freeze B`. Where that would leave too few words for the
    verb's own arguments, the last such values are given back: `--freeze A BUILDER`.
    """
    options = {name: p for p in params if isinstance(p, click.Option) for name in p.opts}
    missing = sum(isinstance(p, click.Argument) for p in params)
    written: list[str] = []
    further: list[int] = []  # where the option's name was written before a further value
    current = ""
    rest = iter(args)
    for word in rest:
        if word == "--":
            tail = list(rest)
            missing -= len(tail)
            written += [word, *tail]
        elif word.startswith("-") and len(word) > 1:
            name, has_value, _ = word.partition("=")
            option = options.get(name)
            current = name if isinstance(option, Spread) else ""
            written.append(word)
            if option is not None and not option.is_flag and not has_value:
                written += [value for value in [next(rest, None)] if value is not None]
        elif current:
            further.append(len(written))
            written += [current, word]
        else:
            missing -= 1
            written.append(word)
    for index in reversed(further[max(len(further) - max(missing, 0), 0) :]):
        del written[index]
    return written


def _show_help(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        raise Shown(ctx.get_help())
