"""The command line: parse, call one library function, print, return a code.

Results go to stdout, all else to stderr. Polars is imported by the commands, not here, so that
`--help` does not pay for it.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping
from threading import Event
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dpo_pipeline import defaults
from dpo_pipeline.cli_options import (
    column_option,
    figures_options,
    format_option,
    formats_options,
    library_arguments,
    mapping_of,
    on_invalid_option,
    pairs_options,
    sweep_options,
    with_settings,
)
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
    from dpo_pipeline.running import ProgressCallback
    from dpo_pipeline.sweeping import Sweep


T = TypeVar("T")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="dpo_pipeline", prog_name="dpo-pipeline")
def cli() -> None:
    """Evaluate preference data offline: DPO loss, implicit rewards, reward accuracy.

    PAIRS is a Parquet file, a glob (quoted), or a folder, with one row a preference pair; some
    commands take other formats (--format), and convert makes Parquet of them.

    \b
    Exit codes: 0 done; 1 the data broke its contract; 2 usage; 3 input or output;
    130 and 143 stopped by SIGINT and SIGTERM.
    """  # noqa: D301  click takes the backspace itself


@cli.command()
@pairs_options
@formats_options
def check(pairs: str, *, as_json: bool, quiet: bool, **options: Any) -> int:
    """Check PAIRS against the contract.

    Exit code 1 if a pair is invalid, or more than --max-invalid are.

    \b
    Example: dpo-pipeline check pairs.parquet --max-logp 0.125
    """  # noqa: D301  click takes the backspace itself
    arguments = library_arguments(options)
    with_settings(pairs, arguments)
    limit = arguments.pop("max_invalid")
    arguments["max_invalid"] = 0 if limit is None else limit

    def call(cancel: Event, progress: ProgressCallback | None) -> Any:
        from dpo_pipeline.evaluation import check as library_check

        opened = _opened(pairs, arguments, cancel)
        return library_check(opened, cancel=cancel, progress=progress, **arguments)

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
@pairs_options
@formats_options
@figures_options
@on_invalid_option(defaults.ON_INVALID)
def evaluate(pairs: str, *, as_json: bool, quiet: bool, **options: Any) -> int:
    """Print the figures of PAIRS: loss, rewards, accuracy, margins, log-probs.

    \b
    Examples:
      dpo-pipeline evaluate pairs.parquet --beta 0.1 --by split
      dpo-pipeline evaluate pairs.parquet --batch-size 64 --batches means.parquet --json
    """  # noqa: D301  click takes the backspace itself
    arguments = library_arguments(options)
    with_settings(pairs, arguments)

    def call(cancel: Event, progress: ProgressCallback | None) -> Any:
        from dpo_pipeline.evaluation import evaluate as library_evaluate

        opened = _opened(pairs, arguments, cancel)
        return library_evaluate(opened, cancel=cancel, progress=progress, **arguments)

    return _finish(call, as_json=as_json, quiet=quiet, options=options)


@cli.command()
@pairs_options
@click.argument("out", type=click.Path())
@figures_options
@on_invalid_option(defaults.ON_INVALID_JOB)
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
    arguments = library_arguments(options)
    arguments["keep"] = list(options["keep"]) or None

    def call(cancel: Event, progress: ProgressCallback | None) -> Any:
        from dpo_pipeline.job import score_parquet

        return score_parquet(pairs, out, cancel=cancel, progress=progress, **arguments)

    return _finish(call, as_json=as_json, quiet=quiet, options=options)


@cli.command()
@click.argument("pairs", type=click.Path())
@click.argument("out", type=click.Path())
@format_option("--format", "PAIRS, which `evaluate --help` describes")
@column_option
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
def convert(pairs: str, out: str, *, quiet: bool, **options: Any) -> int:
    """Write PAIRS as Parquet under the contract's names, checking no values.

    \b
    Example: dpo-pipeline convert trained_dataset/ reference.parquet --format trl
    """  # noqa: D301  click takes the backspace itself
    columns = mapping_of("--column", options["columns"])

    def call(cancel: Event, progress: ProgressCallback | None) -> int:
        from dpo_pipeline.readers import convert as library_convert

        return library_convert(
            pairs,
            out,
            options["format"],
            columns=columns,
            overwrite=options["overwrite"],
            cancel=cancel,
            progress=progress,
        )

    click.echo(f"{out}: {_run(call, quiet=quiet):,} rows")
    return 0


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
@pairs_options
@formats_options
@sweep_options
@on_invalid_option(defaults.ON_INVALID)
def sweep(pairs: str, *, as_json: bool, quiet: bool, **options: Any) -> int:
    """Print the figures of PAIRS for every --beta with every --loss, reading it once.

    \b
    Example: dpo-pipeline sweep pairs.parquet --beta 0.05 --beta 0.1 --loss sigmoid --loss ipo
    """  # noqa: D301  click takes the backspace itself
    arguments = library_arguments(options)
    with_settings(pairs, arguments)

    def call(cancel: Event, progress: ProgressCallback | None) -> Any:
        from dpo_pipeline.sweeping import sweep as library_sweep

        opened = _opened(pairs, arguments, cancel)
        return library_sweep(opened, cancel=cancel, progress=progress, **arguments)

    return _finish(call, as_json=as_json, quiet=quiet, options=options)


@cli.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--markdown", is_flag=True, help="Print the tables of the README.")
def losses(name: str | None, *, as_json: bool, markdown: bool) -> int:
    """List the losses, or say all of the one called NAME: formula, parameters, needs, source."""
    from dpo_pipeline import loss_list

    if markdown:
        click.echo(f"{loss_list.as_markdown()}\n\n{loss_list.dialects_as_markdown()}")
        return 0
    click.echo(loss_list.as_json_text(name) if as_json else loss_list.as_text(name))
    return 0


def _opened(pairs: str, arguments: dict[str, Any], cancel: Event) -> Any:
    """Return what the library takes as PAIRS and, among its arguments, as --reference."""
    from dpo_pipeline.readers import opened

    format_name, of_reference = arguments.pop("format"), arguments.pop("reference_format")
    reference = arguments["reference"]
    if reference is not None:
        columns = arguments["reference_columns"]
        arguments["reference"] = opened(
            reference, of_reference, columns=columns, as_reference=True, cancel=cancel
        )
    elif of_reference is not None:
        raise UsageError("--reference-format is of a --reference: give one")
    return opened(pairs, format_name, columns=arguments["columns"], cancel=cancel)


def _run(call: Callable[[Event, ProgressCallback | None], T], *, quiet: bool) -> T:
    from dpo_pipeline.progress_line import ProgressLine

    with warnings.catch_warnings():
        # The data's warnings are in the result, to be printed once; numeric ones are not ours.
        warnings.simplefilter("ignore", DataWarning)
        with ProgressLine(sys.stderr, enabled=not quiet) as line:
            return run_stoppable(lambda cancel: call(cancel, line.show if line.enabled else None))


def _finish(
    call: Callable[[Event, ProgressCallback | None], Evaluation | Sweep],
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
        for text in result.invalid.warnings:
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
