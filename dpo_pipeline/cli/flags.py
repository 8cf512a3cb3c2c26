"""The options of the commands, in groups that a command takes.

An option's name in Python is that on the command line, so that the environment
(`DPO_PIPELINE_EVALUATE_BETA`) and the settings of a file have it too. `cli_arguments` says what
options mean for the library. Polars is not imported here, so that `--help` does not pay for it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

import click

from dpo_pipeline import defaults
from dpo_pipeline.cli.settings import SettingOption, config_option
from dpo_pipeline.columns import PAIR_ID, ROLES
from dpo_pipeline.sources import FORMATS

if TYPE_CHECKING:
    # A generic class for the type checker, and in newer versions of click only.
    _ParamType = click.ParamType[Any]
else:
    _ParamType = click.ParamType

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])
Decorator: TypeAlias = Callable[[_Decorated], _Decorated]


option: Final = partial(click.option, cls=SettingOption)
"""Makes an option of a command that takes settings."""


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


def complete_loss(_ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the losses that begin so, for a shell."""
    return [name for name in defaults.LOSS_NAMES if name.startswith(incomplete)]


def complete_role(_ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the roles that begin so, for a shell."""
    return [f"{name}=" for name in ROLES if name.startswith(incomplete)]


def taking(*options: Decorator[Any]) -> Decorator[Any]:
    """Return what adds options to a command, in the order of its help."""

    def decorate(command: _Decorated) -> _Decorated:
        for each in reversed(options):
            command = each(command)
        return command

    return decorate


def format_option(name: str, of: str) -> Decorator[Any]:
    """Return the option of the format that something is in."""
    return option(
        name,
        type=click.Choice(tuple(FORMATS)),
        show_default="by the ending of the name, else parquet",
        help=f"The format of {of}.",
    )


def on_invalid_option(choices: tuple[str, ...]) -> Decorator[Any]:
    """Return the option of what to do with invalid pairs."""
    return option(
        "--on-invalid",
        type=click.Choice(choices),
        default=choices[0],
        show_default=True,
        help="What to do with pairs that break the contract.",
    )


COLUMN: Final = option(
    "--column",
    multiple=True,
    metavar="ROLE=NAME",
    shell_complete=complete_role,
    help=f"The input column of a role ({', '.join(ROLES)}). Repeatable.",
)
OVERWRITE: Final = option("--overwrite", is_flag=True, help="Replace outputs that exist.")
QUIET: Final = option("--quiet", "-q", is_flag=True, help="No progress and no warnings.")

PAIRS: Final = (
    COLUMN,
    option(
        "--reference",
        type=click.Path(),
        help="The reference's log-probs, if PAIRS has the policy's alone.",
    ),
    option(
        "--on",
        default=PAIR_ID.name,
        show_default=True,
        metavar="COLUMN",
        help="The key that joins PAIRS and --reference.",
    ),
    option(
        "--reference-column",
        multiple=True,
        metavar="ROLE=NAME",
        shell_complete=complete_role,
        help="As --column, for --reference. Repeatable.",
    ),
    option(
        "--max-logp",
        type=float,
        default=defaults.MAX_LOGP,
        show_default=True,
        help="Largest log-probability accepted, in nats; bf16 exports can reach 0.125.",
    ),
    option(
        "--contract",
        metavar="MODULE:NAME",
        help="A pandera schema or model whose checks are added to the contract's.",
    ),
    option(
        "--max-invalid",
        type=_Share(),
        help="Fail if more pairs are invalid: a count (10) or a share (0.01, 1%).",
    ),
)
"""What every command that checks pairs takes."""

_FORMATS = "; ".join(f"{row.name}: {row.description}" for row in FORMATS.values())
FORMATS_READ: Final = (
    format_option("--format", f"PAIRS. {_FORMATS}"),
    format_option("--reference-format", "--reference"),
)
"""The formats of what a command reads, if it reads more than Parquet."""

_LOSS: Final = (
    option(
        "--loss-arg",
        multiple=True,
        metavar="NAME=VALUE",
        help="An argument of the loss: label_smoothing=0.1, per_token=true. Repeatable.",
    ),
    option(
        "--dialect",
        type=click.Choice(defaults.DIALECT_NAMES),
        help="The conventions of a system, where systems disagree.",
    ),
)
_BETA_DEFAULT = f"{defaults.BETA:g}, or the dialect's"

SWEPT: Final = (
    option(
        "--beta",
        type=float,
        multiple=True,
        show_default=_BETA_DEFAULT,
        help="KL strength of the losses, at least 0. Repeatable.",
    ),
    option(
        "--loss",
        multiple=True,
        metavar="NAME",
        show_default=defaults.LOSS_NAME,
        shell_complete=complete_loss,
        help="A loss (`dpo-pipeline losses` lists them). Repeatable.",
    ),
    *_LOSS,
)
"""What a sweep computes."""

OBJECTIVE: Final = (
    option(
        "--beta",
        type=float,
        show_default=_BETA_DEFAULT,
        help="KL strength of the loss, at least 0.",
    ),
    option(
        "--loss",
        multiple=True,
        metavar="NAME[=WEIGHT]",
        show_default=defaults.LOSS_NAME,
        shell_complete=complete_loss,
        help="A loss (`dpo-pipeline losses` lists them). Repeated: their weighted sum.",
    ),
    *_LOSS,
)
"""What is computed of a pair."""

BY: Final = option("--by", multiple=True, metavar="COLUMN", help="Figures by subset. Repeatable.")

FIGURES: Final = (
    *OBJECTIVE,
    BY,
    option("--histogram", is_flag=True, help="Also the histogram of margins (with --json)."),
    option("--batch-size", type=int, help="Means of so many consecutive rows."),
    option("--batch-by", metavar="COLUMN", help="Means by the value of a column."),
    option(
        "--batches",
        type=click.Path(),
        help="Write the batch means to this Parquet file; needed beyond "
        f"{defaults.MAX_BATCHES_HELD:,} batches.",
    ),
    option("--summary", type=click.Path(), help="Keep the JSON document in this file."),
    OVERWRITE,
)
"""What is computed, and where it is written."""

STATISTICS: Final = (
    option(
        "--statistics",
        is_flag=True,
        help="Also intervals, baselines, calibration, length and findings. Pairs of one prompt_id "
        "are taken as one sample, pairs without it as independent.",
    ),
    option(
        "--level",
        type=float,
        show_default=f"{defaults.CONFIDENCE_LEVEL:g}",
        help="Of the intervals. Asks for statistics, as do the next four.",
    ),
    option(
        "--judge",
        multiple=True,
        metavar="COLUMN",
        help="A judge's score of chosen less rejected, or (twice) the two scores, chosen first.",
    ),
    option(
        "--weight",
        multiple=True,
        metavar="SUBSET=NUMBER",
        help="What a subset of --by counts in the weighted mean; of several columns "
        "VALUE,VALUE=NUMBER. Repeatable, for every subset.",
    ),
    option(
        "--sections",
        metavar="BENCHMARK",
        help="Score the sections of rewardbench, or rewardbench-with-prior-sets, from its subsets "
        "(--by).",
    ),
    option(
        "--report",
        type=click.Path(),
        help="Write the report, an HTML page that opens without a network, to this file. Asks for "
        "statistics; needs the extra `report`.",
    ),
)
"""What is asked of statistics."""

GATE: Final = (
    option(
        "--fail-under",
        multiple=True,
        metavar="NAME=VALUE",
        help="Exit code 4 if a figure is smaller, after all is printed and written. Names are "
        "TRL's (rewards/accuracies) or the library's (reward_accuracy, advantage/longer, macro). "
        "Repeatable.",
    ),
    option(
        "--fail-over",
        multiple=True,
        metavar="NAME=VALUE",
        help="The same if a figure is larger (loss, n_invalid). Repeatable.",
    ),
    option(
        "--fail-on-interval",
        is_flag=True,
        help="Compare the end of the interval that is nearer to failing, not the value.",
    ),
)
"""What makes a run fail by its figures."""

KEPT: Final = (
    option(
        "--invalid",
        type=click.Path(),
        help="Where quarantined pairs go. [default: beside OUT, with .invalid before the ending]",
    ),
    option(
        "--keep", multiple=True, metavar="COLUMN", help="Input columns to carry along. Repeatable."
    ),
    option("--replace", is_flag=True, help="Overwrite input columns named like an output's."),
    option(
        "--part-rows",
        type=int,
        help="Cut inputs, between row groups, into parts of at most so many rows: OUT is a folder.",
    ),
)
"""What scored pairs are made of."""

STORE: Final = (
    option(
        "--storage-option",
        multiple=True,
        metavar="NAME=VALUE",
        help="What Polars is to know of an object store: aws_region=us-east-1. Repeatable; keys "
        "and tokens are better in the environment, or from --credential-provider.",
    ),
    option(
        "--credential-provider",
        metavar="MODULE:NAME",
        help="A function that gives credentials of the store, as in Polars.",
    ),
)
"""How object stores (s3://, gs://, az://, hf://) are reached."""

ENGINE: Final = (
    option(
        "--engine",
        type=click.Choice(defaults.ENGINES),
        default=defaults.ENGINES[0],
        show_default=True,
        help="Where the work is done; what is computed does not depend on it.",
    ),
    option(
        "--ray-address",
        metavar="ADDRESS",
        show_default="RAY_ADDRESS, or a cluster that is started here",
        help="The Ray cluster of --engine ray.",
    ),
)
"""Where the work is done."""

DRY_RUN: Final = option(
    "--dry-run",
    is_flag=True,
    help="Say what would be read, computed and written, reading no more than footers.",
)
JSON: Final = option("--json", is_flag=True, help="Print one JSON document.")
RUN: Final = (DRY_RUN, config_option, JSON, QUIET)
"""How a command runs and prints."""
