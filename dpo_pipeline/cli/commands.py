"""The commands that read pairs."""

from __future__ import annotations

import json
from threading import Event
from typing import TYPE_CHECKING, Any, Final

import click

from dpo_pipeline import defaults, errors as exit_codes
from dpo_pipeline.cli.flag_values import (
    library_arguments,
    mapping_of,
    with_format_settings,
    with_statistics,
)
from dpo_pipeline.cli.flags import (
    BY,
    COLUMN,
    ENGINE,
    FIGURES,
    FORMATS_READ,
    GATE,
    JSON,
    KEPT,
    OBJECTIVE,
    OVERWRITE,
    PAIRS,
    QUIET,
    RUN,
    STATISTICS,
    STORE,
    SWEPT,
    complete_role,
    format_option,
    on_invalid_option,
    option,
    taking,
)
from dpo_pipeline.cli.running import library_call, opened, print_figures, print_result, run
from dpo_pipeline.cli.settings import config_option
from dpo_pipeline.errors import InvalidPairsError

if TYPE_CHECKING:
    from dpo_pipeline.comparison import Comparison
    from dpo_pipeline.engine import ProgressCallback

_SIDES: Final = (
    option(
        "--b-column",
        multiple=True,
        metavar="ROLE=NAME",
        shell_complete=complete_role,
        help="As --column, for B alone, instead of --column. Repeatable.",
    ),
    format_option("--format", "A and of B, which `evaluate --help` describes"),
    format_option("--reference-format", "--reference"),
)
_LEVEL: Final = option(
    "--level",
    type=float,
    default=defaults.CONFIDENCE_LEVEL,
    show_default=True,
    help="Of the intervals; a p-value below 1 - level is a difference shown.",
)
_REPORT: Final = option(
    "--report", type=click.Path(), help="Write the report, one HTML page, to this file."
)


@click.command(short_help="Compare two policies on the same pairs.")
@click.argument("a", type=click.Path())
@click.argument("b", type=click.Path())
@taking(*PAIRS, *_SIDES, *OBJECTIVE, BY, _LEVEL, _REPORT, OVERWRITE)
@taking(on_invalid_option(defaults.ON_INVALID), config_option, JSON, QUIET)
def compare(a: str, b: str, **options: Any) -> int:
    """Say whether policy B is better than policy A on the pairs that both have, and where.

    A and B are joined by --on. Pairs of one prompt_id are taken as one sample. A side without
    reference log-probs takes those of the other. --column, --max-logp and the like are of both.

    \b
    Examples:
      dpo-pipeline compare a.parquet b.parquet
      dpo-pipeline compare a.parquet b.parquet --by split --json
      dpo-pipeline compare a.parquet b.parquet --on pair_id --beta 0.05 --level 0.99
    """  # noqa: D301  click takes the backspace itself
    options["dry_run"] = False
    arguments = library_arguments(options)
    arguments["b_columns"] = mapping_of("--b-column", arguments.pop("b_column")) or None
    page, overwrite = arguments.pop("report"), arguments.pop("overwrite")
    with_format_settings(a, arguments)
    if page is not None:
        from dpo_pipeline.arguments import check_extra, check_page_path
        from dpo_pipeline.storage import OutputChecks

        # Before anything is read, as the comparison would be lost.
        check_extra()
        check_page_path(page)
        OutputChecks(overwrite=overwrite).stage(page)

    def call(cancel: Event, progress: ProgressCallback | None) -> Any:
        of_b = {
            "format": arguments["format"],
            "reference_format": None,
            "reference": None,
            "on": arguments["on"],
            "columns": arguments["b_columns"] or arguments["columns"],
        }
        sides = opened(a, arguments, cancel), opened(b, of_b, cancel)
        return library_call(
            "compare", options, *sides, cancel=cancel, progress=progress, **arguments
        )

    result: Comparison = run(call, options)
    from dpo_pipeline.statistics import counted

    if page is not None:
        result.report(page, overwrite=overwrite)
    for side in (result.a, result.b):
        if side.invalid is not None:
            excluded = counted(side.n_invalid, "common pair")
            click.echo(f"{side.invalid}\nexcluded: {excluded}", err=True)
    return print_result(result, options)


_PAIRS_ARGUMENT: Final = click.argument("pairs", type=click.Path())


@click.command()
@_PAIRS_ARGUMENT
@taking(*PAIRS, *FORMATS_READ, *STORE, *RUN)
def check(pairs: str, **options: Any) -> int:
    """Check PAIRS against the contract.

    Exit code 1 if a pair is invalid, or more than --max-invalid are.

    \b
    Examples:
      dpo-pipeline check pairs.parquet --max-logp 0.125
      dpo-pipeline check pairs.parquet --max-invalid 1% --json
    """  # noqa: D301  click takes the backspace itself
    arguments = library_arguments(options)
    with_format_settings(pairs, arguments)
    limit = arguments.pop("max_invalid")
    arguments["max_invalid"] = 0 if limit is None else limit

    def call(cancel: Event, progress: ProgressCallback | None) -> Any:
        source = opened(pairs, arguments, cancel)
        return library_call("check", options, source, cancel=cancel, progress=progress, **arguments)

    try:
        return print_result(run(call, options), options)
    except InvalidPairsError as error:
        if limit is not None:
            click.echo(error.reason, err=True)
        print_result(error.report, options)
        return exit_codes.BROKEN_CONTRACT


@click.command(short_help="Print figures: loss, rewards, accuracy.")
@_PAIRS_ARGUMENT
@taking(*PAIRS, *FORMATS_READ, *FIGURES, *STATISTICS, *GATE)
@taking(on_invalid_option(defaults.ON_INVALID), *STORE, *ENGINE, *RUN)
def evaluate(pairs: str, **options: Any) -> int:
    """Print the figures of PAIRS: loss, rewards, accuracy, margins, log-probs.

    \b
    Examples:
      dpo-pipeline evaluate pairs.parquet --beta 0.1 --by split
      dpo-pipeline evaluate pairs.parquet --batch-size 64 --batches means.parquet --json
      dpo-pipeline evaluate policy.parquet --reference reference.parquet --loss ipo --dry-run
      dpo-pipeline evaluate pairs.parquet --statistics --by split --level 0.99
      dpo-pipeline evaluate pairs.parquet --by split --report report.html
      dpo-pipeline evaluate pairs.parquet --fail-under rewards/accuracies=0.5 --fail-on-interval
    """  # noqa: D301  click takes the backspace itself
    arguments = library_arguments(options)
    gate = with_statistics(arguments)
    with_format_settings(pairs, arguments)

    def call(cancel: Event, progress: ProgressCallback | None) -> Any:
        source = opened(pairs, arguments, cancel)
        return library_call(
            "evaluate", options, source, cancel=cancel, progress=progress, **arguments
        )

    result = run(call, options)
    code = print_figures(result, options)
    if not options["dry_run"]:
        gate.check(result)
    return code


@click.command(short_help="Write pairs with rewards and loss.")
@_PAIRS_ARGUMENT
@click.argument("out", type=click.Path())
@taking(*PAIRS, *FIGURES, on_invalid_option(defaults.ON_INVALID_JOB), *KEPT)
@taking(*STORE, *ENGINE, *RUN)
def score(pairs: str, out: str, **options: Any) -> int:
    """Score PAIRS into OUT: a file for a file, a folder for a folder or a glob.

    \b
    Examples:
      dpo-pipeline score pairs.parquet scored.parquet
      dpo-pipeline score pairs.parquet small.parquet --keep pair_id --summary summary.json
      dpo-pipeline score 'runs/*.parquet' scored/ --on-invalid quarantine --max-invalid 1%
    """  # noqa: D301  click takes the backspace itself
    arguments = library_arguments(options)

    def call(cancel: Event, progress: ProgressCallback | None) -> Any:
        return library_call(
            "score_parquet", options, pairs, out, cancel=cancel, progress=progress, **arguments
        )

    return print_figures(run(call, options), options)


@click.command(short_help="Print figures for several betas and losses.")
@_PAIRS_ARGUMENT
@taking(*PAIRS, *FORMATS_READ, *SWEPT, on_invalid_option(defaults.ON_INVALID), *STORE, *RUN)
def sweep(pairs: str, **options: Any) -> int:
    """Print the figures of PAIRS for every --beta with every --loss, reading it once.

    \b
    Examples:
      dpo-pipeline sweep pairs.parquet --beta 0.05 --beta 0.1 --loss sigmoid --loss ipo
      dpo-pipeline sweep pairs.parquet --beta 0.1 --json
    """  # noqa: D301  click takes the backspace itself
    arguments = library_arguments(options)
    with_format_settings(pairs, arguments)

    def call(cancel: Event, progress: ProgressCallback | None) -> Any:
        source = opened(pairs, arguments, cancel)
        return library_call("sweep", options, source, cancel=cancel, progress=progress, **arguments)

    return print_figures(run(call, options), options)


@click.command(short_help="Write another format as Parquet.")
@_PAIRS_ARGUMENT
@click.argument("out", type=click.Path())
@taking(format_option("--format", "PAIRS, which `evaluate --help` describes"), COLUMN)
@taking(OVERWRITE, *RUN)
def convert(pairs: str, out: str, **options: Any) -> int:
    """Write PAIRS as Parquet under the contract's names, checking no values.

    \b
    Examples:
      dpo-pipeline convert pairs.csv pairs.parquet --overwrite
      dpo-pipeline convert trained_dataset/ reference.parquet --format trl
    """  # noqa: D301  click takes the backspace itself
    arguments = {
        "columns": mapping_of("--column", options["column"]),
        "overwrite": options["overwrite"],
    }

    def call(cancel: Event, progress: ProgressCallback | None) -> Any:
        places = (pairs, out, options["format"])
        return library_call(
            "convert", options, *places, cancel=cancel, progress=progress, **arguments
        )

    result = run(call, options)
    if options["dry_run"]:
        return print_result(result, options)
    document = json.dumps({"path": out, "rows": result}, indent=2)
    click.echo(document if options["json"] else f"{out}: {result:,} rows")
    return exit_codes.DONE


COMMANDS: Final[tuple[click.Command, ...]] = (check, evaluate, sweep, score, convert)
"""In the order of `--help`."""
