"""The command line: parse, call one library function, print, return a code.

Results go to stdout, all else to stderr. Polars is imported by the commands, not here, so that
`--help` does not pay for it.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from threading import Event
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dpo_pipeline import defaults
from dpo_pipeline.columns import ROLES
from dpo_pipeline.errors import (
    ContractError,
    DataWarning,
    DpoPipelineError,
    InvalidPairsError,
    StorageError,
    UsageError,
)
from dpo_pipeline.stopping import Stopped, run_stoppable

if TYPE_CHECKING:
    from dpo_pipeline.result import Evaluation
    from dpo_pipeline.rules import Schema
    from dpo_pipeline.running import ProgressCallback

    # A generic class for the type checker, and in newer versions of click only.
    _ParamType = click.ParamType[Any]
else:
    _ParamType = click.ParamType

T = TypeVar("T")
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


def _pairs_options(command: Decorated) -> Decorated:
    for option in reversed(
        (
            click.argument("pairs", type=click.Path()),
            click.option(
                "--column",
                "columns",
                multiple=True,
                metavar="ROLE=NAME",
                help=f"The input column of a role ({', '.join(ROLES)}). Repeatable.",
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


_LOSS_OPTIONS = (
    click.option(
        "--loss",
        "losses",
        multiple=True,
        metavar="NAME[=WEIGHT]",
        show_default=defaults.LOSS_NAME,
        help="A loss (`dpo-pipeline losses` lists them). Repeated: their weighted sum.",
    ),
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


def _figures_options(command: Decorated) -> Decorated:
    for option in reversed(
        (
            click.option(
                "--beta",
                type=float,
                show_default=f"{defaults.BETA:g}, or the dialect's",
                help="KL strength of the loss, at least 0.",
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


def _on_invalid_option(choices: tuple[str, ...]) -> Callable[[Decorated], Decorated]:
    return click.option(
        "--on-invalid",
        type=click.Choice(choices),
        default=choices[0],
        show_default=True,
        help="What to do with pairs that break the contract.",
    )


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="dpo_pipeline", prog_name="dpo-pipeline")
def cli() -> None:
    """Evaluate preference data offline: DPO loss, implicit rewards, reward accuracy.

    PAIRS is a Parquet file, a glob (quoted), or a folder, with one row a preference pair.

    \b
    Exit codes: 0 done; 1 the data broke its contract; 2 usage; 3 input or output;
    130 and 143 stopped by SIGINT and SIGTERM.
    """  # noqa: D301  click takes the backspace itself


@cli.command()
@_pairs_options
def check(pairs: str, *, as_json: bool, quiet: bool, **options: Any) -> int:
    """Check PAIRS against the contract.

    Exit code 1 if a pair is invalid, or more than --max-invalid are.

    \b
    Example: dpo-pipeline check pairs.parquet --max-logp 0.125
    """  # noqa: D301  click takes the backspace itself
    arguments = _library_arguments(options)
    limit = arguments.pop("max_invalid")
    arguments["max_invalid"] = 0 if limit is None else limit

    def call(cancel: Event, progress: ProgressCallback | None) -> Any:
        from dpo_pipeline.evaluation import check as library_check

        return library_check(pairs, cancel=cancel, progress=progress, **arguments)

    try:
        report = _run(call, quiet=quiet)
        broken = False
    except InvalidPairsError as error:
        report, broken = error.report, True
        if limit is not None:
            click.echo(error.reason, err=True)
    click.echo(report.to_json() if as_json else str(report))
    return ContractError.exit_code if broken else 0


@cli.command()
@_pairs_options
@_figures_options
@_on_invalid_option(defaults.ON_INVALID)
def evaluate(pairs: str, *, as_json: bool, quiet: bool, **options: Any) -> int:
    """Print the figures of PAIRS: loss, rewards, accuracy, margins, log-probs.

    \b
    Examples:
      dpo-pipeline evaluate pairs.parquet --beta 0.1 --by split
      dpo-pipeline evaluate pairs.parquet --batch-size 64 --batches means.parquet --json
    """  # noqa: D301  click takes the backspace itself
    arguments = _library_arguments(options)

    def call(cancel: Event, progress: ProgressCallback | None) -> Any:
        from dpo_pipeline.evaluation import evaluate as library_evaluate

        return library_evaluate(pairs, cancel=cancel, progress=progress, **arguments)

    return _finish(call, as_json=as_json, quiet=quiet, options=options)


@cli.command()
@_pairs_options
@click.argument("out", type=click.Path())
@_figures_options
@_on_invalid_option(defaults.ON_INVALID_JOB)
@click.option(
    "--invalid",
    type=click.Path(),
    help="Where quarantined pairs go. [default: beside OUT, with .invalid before the ending]",
)
@click.option(
    "--keep", multiple=True, metavar="COLUMN", help="Input columns to carry along. Repeatable."
)
@click.option("--replace", is_flag=True, help="Overwrite input columns named like an output's.")
def score(pairs: str, out: str, *, as_json: bool, quiet: bool, **options: Any) -> int:
    """Score PAIRS into OUT: a file for a file, a folder for a folder or a glob.

    \b
    Examples:
      dpo-pipeline score pairs.parquet scored.parquet
      dpo-pipeline score 'runs/*.parquet' scored/ --on-invalid quarantine --max-invalid 1%
    """  # noqa: D301  click takes the backspace itself
    arguments = _library_arguments(options)
    arguments["keep"] = list(options["keep"]) or None

    def call(cancel: Event, progress: ProgressCallback | None) -> Any:
        from dpo_pipeline.job import score_parquet

        return score_parquet(pairs, out, cancel=cancel, progress=progress, **arguments)

    return _finish(call, as_json=as_json, quiet=quiet, options=options)


@cli.command()
@click.argument("name", required=False)
@click.option(
    "--to", "folder", type=click.Path(file_okay=False), help="Write all of them to this folder."
)
def contract(name: str | None, folder: str | None) -> int:
    """Print a published contract.

    NAME is preference_pairs (the default), scored_pairs, invalid_pairs or batch_means, in the
    Open Data Contract Standard, or summary, a JSON Schema.
    """
    from dpo_pipeline.published import published

    texts = published()
    if folder is not None:
        os.makedirs(folder, exist_ok=True)
        for file, text in texts.items():
            with open(os.path.join(folder, file), "w", encoding="utf-8") as out:
                out.write(text)
        return 0
    by_name = {file.split(".")[0]: text for file, text in texts.items()}
    wanted = name or next(iter(by_name))
    if wanted not in by_name:
        raise UsageError(f"no contract is named {wanted!r}; there are {', '.join(by_name)}")
    click.echo(by_name[wanted], nl=False)
    return 0


@cli.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def losses(name: str | None, *, as_json: bool) -> int:
    """List the losses, or say all of the one called NAME: formula, parameters, needs, source."""
    from dpo_pipeline import loss_list

    click.echo(loss_list.as_json_text(name) if as_json else loss_list.as_text(name))
    return 0


def _library_arguments(options: Mapping[str, Any]) -> dict[str, Any]:
    arguments = dict(options)
    mapping = {}
    for text in arguments["columns"]:
        role, equals, name = text.partition("=")
        if not equals or not name:
            raise UsageError(f"--column takes ROLE=NAME, found {text!r}")
        mapping[role] = name
    arguments["columns"] = mapping
    if "losses" in arguments:
        arguments["loss"] = _weights(arguments.pop("losses"))
        arguments["loss_args"] = dict(_loss_argument(text) for text in arguments["loss_args"])
    if "by" in arguments:
        arguments["by"] = list(arguments["by"]) or None
    if arguments["contract"] is not None:
        arguments["contract"] = _imported(arguments["contract"])
    return arguments


def _weights(texts: Sequence[str]) -> str | dict[str, float]:
    weights = {}
    for text in texts or (defaults.LOSS_NAME,):
        name, equals, weight = text.partition("=")
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


def _run(call: Callable[[Event, ProgressCallback | None], T], *, quiet: bool) -> T:
    from dpo_pipeline.progress_line import ProgressLine

    with warnings.catch_warnings():
        # The data's warnings are in the result, to be printed once; numeric ones are not ours.
        warnings.simplefilter("ignore", DataWarning)
        with ProgressLine(sys.stderr, enabled=not quiet) as line:
            return run_stoppable(lambda cancel: call(cancel, line.show if line.enabled else None))


def _finish(
    call: Callable[[Event, ProgressCallback | None], Evaluation],
    *,
    as_json: bool,
    quiet: bool,
    options: Mapping[str, Any],
) -> int:
    result = _run(call, quiet=quiet)
    if result.invalid.n_invalid:
        done = "quarantined" if options["on_invalid"] == "quarantine" else "excluded"
        click.echo(f"{result.invalid}\n{done}: {result.invalid.n_invalid:,} pairs", err=True)
    if not quiet:
        for text in result.warnings:
            click.echo(f"warning: {text}", err=True)
    click.echo(result.to_json() if as_json else str(result))
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    try:
        code = cli.main(args=arguments, prog_name="dpo-pipeline", standalone_mode=False)
    except click.Abort:  # Ctrl-C before the run began
        return 130
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except DpoPipelineError as error:
        click.echo(f"error: {error}", err=True)
        return 128 + error.signum if isinstance(error, Stopped) else error.exit_code
    except BrokenPipeError:
        # The reader of stdout left; what would be flushed at exit has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception:  # noqa: BLE001  a fault of ours: the traceback is for its report
        traceback.print_exc()
        return StorageError.exit_code
    return code if isinstance(code, int) else 0
