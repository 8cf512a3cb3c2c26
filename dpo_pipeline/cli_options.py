"""The options of the commands, and what they mean for the library.

Polars is not imported here, so that `--help` does not pay for it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from dpo_pipeline import defaults
from dpo_pipeline.columns import PAIR_ID, ROLES
from dpo_pipeline.errors import UsageError
from dpo_pipeline.formats import FORMATS, guess

if TYPE_CHECKING:
    from dpo_pipeline.rules import Schema

    # A generic class for the type checker, and in newer versions of click only.
    _ParamType = click.ParamType[Any]
else:
    _ParamType = click.ParamType

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


class _Share(_ParamType):
    """A count (`10`) or a share (`0.01`, `1%`)."""

    name = "count|share"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | float:
        """Return an int for a count and a float for a share."""
        if isinstance(value, (int, float)):
            return value
        try:
            if value.endswith("%"):
                return float(value[:-1]) / 100
            return float(value) if "." in value or "e" in value.lower() else int(value)
        except ValueError:
            self.fail(f"{value!r} is neither a count (10) nor a share (0.01 or 1%)", param, ctx)


column_option: Final = click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="ROLE=NAME",
    help=f"The input column of a role ({', '.join(ROLES)}). Repeatable.",
)


def pairs_options(command: Decorated) -> Decorated:
    """Add what every command on pairs takes."""
    for option in reversed(
        (
            click.argument("pairs", type=click.Path()),
            column_option,
            click.option(
                "--reference",
                type=click.Path(),
                help="The reference's log-probs, if PAIRS has the policy's alone.",
            ),
            click.option(
                "--on",
                default=PAIR_ID.name,
                show_default=True,
                metavar="COLUMN",
                help="The key that joins PAIRS and --reference.",
            ),
            click.option(
                "--reference-column",
                "reference_columns",
                multiple=True,
                metavar="ROLE=NAME",
                help="As --column, for --reference. Repeatable.",
            ),
            click.option(
                "--max-logp",
                type=float,
                default=defaults.MAX_LOGP,
                show_default=True,
                help="Largest log-probability accepted, in nats; bf16 exports can reach 0.125.",
            ),
            click.option(
                "--contract",
                metavar="MODULE:NAME",
                help="A pandera schema or model whose checks are added to the contract's.",
            ),
            click.option(
                "--max-invalid",
                type=_Share(),
                help="Fail if more pairs are invalid: a count (10) or a share (0.01, 1%).",
            ),
            click.option("--json", "as_json", is_flag=True, help="Print one JSON document."),
            click.option("--quiet", "-q", is_flag=True, help="No progress and no warnings."),
        )
    ):
        command = option(command)
    return command


_FORMATS = "; ".join(f"{row.name}: {row.description}" for row in FORMATS.values())


def format_option(name: str, of: str) -> Callable[[Decorated], Decorated]:
    """Return the option of the format that something is in."""
    return click.option(
        name,
        type=click.Choice(tuple(FORMATS)),
        show_default="by the ending of the name, else parquet",
        help=f"The format of {of}.",
    )


def formats_options(command: Decorated) -> Decorated:
    """Add the formats of what a command reads, if it reads more than Parquet."""
    of_pairs = format_option("--format", f"PAIRS. {_FORMATS}")
    return of_pairs(format_option("--reference-format", "--reference")(command))


_LOSS_OPTIONS = (
    click.option(
        "--loss-arg",
        "loss_args",
        multiple=True,
        metavar="NAME=VALUE",
        help="An argument of the loss: label_smoothing=0.1, per_token=true. Repeatable.",
    ),
    click.option(
        "--dialect",
        type=click.Choice(defaults.DIALECT_NAMES),
        help="The conventions of a system, where systems disagree.",
    ),
)
_BETA_DEFAULT = f"{defaults.BETA:g}, or the dialect's"


def sweep_options(command: Decorated) -> Decorated:
    """Add what a sweep takes instead of `figures_options`."""
    for option in reversed(
        (
            click.option(
                "--beta",
                "betas",
                type=float,
                multiple=True,
                show_default=_BETA_DEFAULT,
                help="KL strength of the losses, at least 0. Repeatable.",
            ),
            click.option(
                "--loss",
                "losses",
                multiple=True,
                metavar="NAME",
                show_default=defaults.LOSS_NAME,
                help="A loss (`dpo-pipeline losses` lists them). Repeatable.",
            ),
            *_LOSS_OPTIONS,
        )
    ):
        command = option(command)
    return command


def figures_options(command: Decorated) -> Decorated:
    """Add what a command that computes figures takes."""
    for option in reversed(
        (
            click.option(
                "--beta",
                type=float,
                show_default=_BETA_DEFAULT,
                help="KL strength of the loss, at least 0.",
            ),
            click.option(
                "--loss",
                "weights",
                multiple=True,
                metavar="NAME[=WEIGHT]",
                show_default=defaults.LOSS_NAME,
                help="A loss (`dpo-pipeline losses` lists them). Repeated: their weighted sum.",
            ),
            *_LOSS_OPTIONS,
            click.option(
                "--by", multiple=True, metavar="COLUMN", help="Figures by subset. Repeatable."
            ),
            click.option(
                "--histogram", is_flag=True, help="Also the histogram of margins (with --json)."
            ),
            click.option("--batch-size", type=int, help="Means of so many consecutive rows."),
            click.option("--batch-by", metavar="COLUMN", help="Means by the value of a column."),
            click.option(
                "--batches",
                type=click.Path(),
                help="Write the batch means to this Parquet file; needed beyond "
                f"{defaults.MAX_BATCHES_HELD:,} batches.",
            ),
            click.option(
                "--summary", type=click.Path(), help="Keep the JSON document in this file."
            ),
            click.option("--overwrite", is_flag=True, help="Replace outputs that exist."),
        )
    ):
        command = option(command)
    return command


def on_invalid_option(choices: tuple[str, ...]) -> Callable[[Decorated], Decorated]:
    """Return the option of what to do with invalid pairs."""
    return click.option(
        "--on-invalid",
        type=click.Choice(choices),
        default=choices[0],
        show_default=True,
        help="What to do with pairs that break the contract.",
    )


def library_arguments(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the library's arguments for what the command line gave.

    Raises:
        UsageError: A text is not of the form that its option has.
    """
    arguments = dict(options)
    arguments["columns"] = mapping_of("--column", arguments["columns"])
    reference_columns = mapping_of("--reference-column", arguments["reference_columns"])
    arguments["reference_columns"] = reference_columns or None
    if "weights" in arguments:
        arguments["loss"] = _weights(arguments.pop("weights"))
    if "losses" in arguments:
        arguments["loss"] = list(arguments.pop("losses")) or defaults.LOSS_NAME
        arguments["beta"] = list(arguments.pop("betas")) or None
    if "loss_args" in arguments:
        pairs = [_loss_argument(text) for text in arguments["loss_args"]]
        arguments["loss_args"] = dict(pairs)
        if len(arguments["loss_args"]) < len(pairs):
            raise UsageError("--loss-arg: an argument is there twice")
    if "by" in arguments:
        arguments["by"] = list(arguments["by"]) or None
    if arguments["contract"] is not None:
        arguments["contract"] = _imported(arguments["contract"])
    return arguments


def with_settings(pairs: str, arguments: dict[str, Any]) -> None:
    """Put in what gives the figures of a format's own tool, where nothing else was asked for.

    Raises:
        UsageError: The command has no loss, and the format has too little without one.
    """
    found = FORMATS[arguments["format"] or guess(pairs)]
    if not found.has_reference and "loss" not in arguments:
        raise UsageError(
            f"{pairs}: {found.name} has scores and no log-probs, which are what the contract is "
            "of: use evaluate or sweep"
        )
    given = click.get_current_context().get_parameter_source
    if given("max_logp") is click.core.ParameterSource.DEFAULT:
        arguments["max_logp"] = found.settings.get("max_logp", arguments["max_logp"])
    if "dialect" in arguments and arguments["dialect"] is None:
        arguments["dialect"] = found.settings.get("dialect")
    if arguments.get("loss") in (defaults.LOSS_NAME, {defaults.LOSS_NAME: 1.0}):
        arguments["loss_args"] = {**found.settings.get("loss_args", {}), **arguments["loss_args"]}


def mapping_of(option: str, texts: Sequence[str]) -> dict[str, str]:
    """Return role to column, from ROLE=NAME."""
    mapping = {}
    for text in texts:
        role, equals, name = text.partition("=")
        if not equals or not name:
            raise UsageError(f"{option} takes ROLE=NAME, found {text!r}")
        mapping[role] = name
    return mapping


def _weights(texts: Sequence[str]) -> str | dict[str, float]:
    weights: dict[str, float] = {}
    for text in texts or (defaults.LOSS_NAME,):
        name, equals, weight = text.partition("=")
        if name in weights:
            raise UsageError(f"--loss {name} is there twice")
        try:
            weights[name] = float(weight) if equals else 1.0
        except ValueError:
            raise UsageError(f"--loss takes NAME or NAME=WEIGHT, found {text!r}") from None
    return weights


def _loss_argument(text: str) -> tuple[str, float | bool | str]:
    name, equals, value = text.partition("=")
    if not equals or not value:
        raise UsageError(f"--loss-arg takes NAME=VALUE, found {text!r}")
    if value.lower() in ("true", "false"):
        return name, value.lower() == "true"
    try:
        return name, float(value)
    except ValueError:
        return name, value


def _imported(place: str) -> Schema:
    from importlib import import_module

    module, colon, name = place.partition(":")
    if not colon:
        raise UsageError(f"--contract takes MODULE:NAME, found {place!r}")
    sys.path.insert(0, os.getcwd())
    try:
        found: Schema = getattr(import_module(module), name)
    except Exception as error:  # whatever the user's module raises
        raise UsageError(f"--contract {place}: {type(error).__name__}: {error}") from error
    return found
