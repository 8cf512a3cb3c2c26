"""The commands that read pairs: each makes a plan of the library's call, and runs or prints it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from threading import Event
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import click

from dpo_pipeline import errors as exit_codes
from dpo_pipeline.arguments import checked_limit
from dpo_pipeline.cli.flag_values import groups_given, roles
from dpo_pipeline.cli.flags import B_COLUMN, VERIFY, arguments_of, flags_of, run_options
from dpo_pipeline.cli.help_pages import GroupedCommand
from dpo_pipeline.cli.printing import Converted, form_of, print_result, say, written
from dpo_pipeline.cli.running import run
from dpo_pipeline.cli.settings import as_typed, config_file, refuse_found, used
from dpo_pipeline.errors import ColumnError, DpoPipelineError, InvalidPairsError, UsageError
from dpo_pipeline.options import OnInvalid, StatisticsOptions

if TYPE_CHECKING:
    from dpo_pipeline.engine import ProgressCallback
    from dpo_pipeline.options import Gates

Groups = dict[str, Any]

_OUTPUTS: Final = ("out", "summary", "report", "batches", "invalid", "rest", "contradictions")
"""Options that name outputs."""
NO_STATISTICS: Final = "score has no statistics, which --fail-on-interval needs: use evaluate"
_TELL: Final = frozenset({"convert", "logps"})
"""Calls whose result says what was written."""


def planned(
    function: str,
    groups: Groups,
    ctx: click.Context,
    *places: Any,
    plans: list[Any] | None = None,
) -> Any:
    """Make the plan of a call, put it into `plans`, and run it unless it is a dry run."""
    import dpo_pipeline

    plan = getattr(dpo_pipeline, function).plan
    refuse_found(ctx, *map(ctx.params.get, _OUTPUTS))
    protecting_settings(groups, ctx)
    plans = [] if plans is None else plans

    def call(cancel: Event, progress: ProgressCallback | None) -> Any:
        execution = replace(groups["execution"], cancel=cancel, progress=progress)
        made = plan(*places, **{**groups, "execution": execution})
        plans.append(made)
        if ctx.params["dry_run"]:
            return made
        try:
            return made.run()
        except InvalidPairsError:  # its report has the notes
            raise
        except DpoPipelineError as error:
            for text in made.facts.notes:
                error.add_note(f"note: {text}")
            raise

    try:
        result = run(call, quiet=ctx.params["quiet"])
    except ColumnError as error:
        _say_whose(error, ctx)
        raise
    if not (ctx.params["dry_run"] or ctx.params["quiet"] or function in _TELL):
        for output in plans[0].facts.outputs:
            say(written(output.path), err=True)
    return result


def _say_whose(error: ColumnError, ctx: click.Context) -> None:
    """Have an error about columns know which option maps those of its source."""
    flags = {"b": "--b-column", "reference": "--reference-column"}
    for name, called in (("a", "A"), ("b", "B"), ("reference", "reference")):
        typed = str(ctx.params.get(name))
        paths = (typed, typed.partition("=")[2])  # NAME=PATH
        if error.source in {*paths, *(f"{path} ({called})" for path in paths)}:
            error.flag, error.is_of_a = flags.get(name, error.flag), name == "a"
            return


def protecting_settings(groups: Groups, ctx: click.Context) -> None:
    """Have the file of settings never become an output, and say what was taken from where."""
    config = config_file(ctx)
    if "outputs" in groups:
        protected = () if config is None else (config,)
        typed = (as_typed(ctx), *used(ctx))
        groups["outputs"] = replace(groups["outputs"], protected=protected, typed=typed)
    for setting in used(ctx):
        say(f"setting: {setting}", err=True)


def _check(groups: Groups, ctx: click.Context) -> int:
    """Check PAIRS against the contract of a loss.

    Exit code 1 if a pair is invalid, or more than --max-invalid are, or all.

    \b
    Examples:
      dpo-pipeline check pairs.parquet --max-logp 0.125
      dpo-pipeline check pairs.parquet --max-invalid 1% --json
    """  # noqa: D301  click takes the backspace itself
    limit = groups["on_invalid"].at_most
    checked_limit(limit)
    # Whether too many are invalid is said when the report is printed and written.
    groups["on_invalid"] = OnInvalid("exclude")
    try:
        report = planned("check", groups, ctx)
    except InvalidPairsError as error:
        print_result(error.report, ctx)
        say(error.reason, err=True)
        return exit_codes.BROKEN_CONTRACT
    print_result(report, ctx)
    if ctx.params["dry_run"]:
        return exit_codes.DONE
    from dpo_pipeline.contract import why_refused

    allowed = OnInvalid("exclude", at_most=0 if limit is None else limit)
    reason = why_refused(allowed, report.n_invalid, report.n_pairs, report.row)
    if reason is not None and limit is not None:
        say(reason, err=True)
    return exit_codes.DONE if reason is None else exit_codes.BROKEN_CONTRACT


def _evaluate(groups: Groups, ctx: click.Context) -> int:
    """Print the figures of PAIRS: loss, rewards, accuracy, margins, log-probs.

    \b
    Examples:
      dpo-pipeline evaluate pairs.parquet --by split
      dpo-pipeline evaluate pairs.parquet --report page.html
      dpo-pipeline evaluate pairs.parquet --loss ipo --dry-run
      dpo-pipeline evaluate policy.parquet \\
        --reference reference.parquet --on pair_id
      dpo-pipeline evaluate pairs.parquet \\
        --statistics --by split --level 0.99
      dpo-pipeline evaluate pairs.parquet \\
        --batch-size 64 --batches means.parquet --json
      dpo-pipeline evaluate pairs.parquet \\
        --fail-under rewards/accuracies=0.5 --fail-on-interval
    """  # noqa: D301  click takes the backspace itself
    from dpo_pipeline.evaluation import GATED, check_gates, check_gates_asked, needs_statistics

    gates, asked = groups.pop("gates"), groups["statistics"]
    check_gates(gates, GATED)
    check_gates_asked(
        gates,
        by=groups["by"].names,
        weights=asked is not None and asked.weights,
        sections=asked is not None and asked.sections,
    )
    if asked is None and needs_statistics(gates):
        groups["statistics"] = StatisticsOptions()
    return _figures("evaluate", groups, ctx, gates)


def _sweep(groups: Groups, ctx: click.Context) -> int:
    """Print the figures of PAIRS for every --beta with every --loss, reading it once.

    \b
    Examples:
      dpo-pipeline sweep pairs.parquet \\
        --beta 0.05,0.1 --loss sigmoid,ipo
      dpo-pipeline sweep pairs.parquet --beta 0.1 --json
    """  # noqa: D301  click takes the backspace itself
    return _figures("sweep", groups, ctx, None)


def _score(groups: Groups, ctx: click.Context) -> int:
    """Score PAIRS into OUT: a file for a file, a folder for a folder or a glob.

    \b
    Examples:
      dpo-pipeline score pairs.parquet scored.parquet
      dpo-pipeline score pairs.parquet small.parquet \\
        --keep pair_id --summary summary.json
      dpo-pipeline score 'runs/*.parquet' scored/ \\
        --on-invalid quarantine --max-invalid 1%
    """  # noqa: D301  click takes the backspace itself
    from dpo_pipeline.evaluation import SUMMED, check_gates

    gates = groups.pop("gates")
    check_gates(gates, SUMMED)
    if gates.by_interval:
        raise UsageError(NO_STATISTICS)
    return _figures("score_parquet", groups | {"sink": ctx.params["out"]}, ctx, gates)


def _select(groups: Groups, ctx: click.Context) -> int:
    """Write the pairs that a rule ranks first into OUT, and say what that does to the data.

    Without OUT nothing is written. Rules contradict each other: --compare shows two side by side.

    \b
    Examples:
      dpo-pipeline select pairs.parquet out.parquet \\
        --rule nearest_tie --keep 50%
      dpo-pipeline select pairs.parquet \\
        --rule easiest --compare random --keep 10%
    """  # noqa: D301  click takes the backspace itself
    return print_result(planned("select", groups | {"sink": ctx.params["out"]}, ctx), ctx)


def _rank(groups: Groups, ctx: click.Context) -> int:
    """Say how rewards rank the completions of each prompt, with intervals by prompt.

    PAIRS are completions, one a row, or lists of them in one row a prompt, with `prompt_id` and
    `label`, `rank` or `score`. Figures: the share of prompts with the best completion on top, pairs
    that are right, Kendall's tau-b, the best of n, the variance of the reward.

    \b
    Examples:
      dpo-pipeline rank completions.csv --by subset
      dpo-pipeline rank completions.csv --best-of 3 --json
    """  # noqa: D301  click takes the backspace itself
    return print_result(planned("rank", groups, ctx), ctx)


def _figures(function: str, groups: Groups, ctx: click.Context, gates: Gates | None) -> int:
    """Print figures, and fail if they miss their gates."""
    result = planned(function, groups, ctx)
    if ctx.params["dry_run"]:
        return print_result(result, ctx)
    return print_figures(result, ctx, gates)


def print_figures(result: Any, ctx: click.Context, gates: Gates | None) -> int:
    """Print a result with what its gates say, and fail if they are missed."""
    from dpo_pipeline.evaluation import Gated

    if gates is None or gates == type(gates)():
        return print_result(result, ctx)
    try:
        gated = Gated.of(result, gates)
    except UsageError:  # a figure that this result does not have
        print_result(result, ctx)
        raise
    code = print_result(gated, ctx)
    if gated.error is not None:
        raise gated.error
    return code


def _convert(groups: Groups, ctx: click.Context) -> int:
    """Write PAIRS as Parquet under the contract's names, checking no values.

    \b
    Examples:
      dpo-pipeline convert pairs.csv pairs.parquet --overwrite
      dpo-pipeline convert trained_dataset/ ref.parquet \\
        --format trl
    """  # noqa: D301  click takes the backspace itself
    out = ctx.params["out"]
    plans: list[Any] = []
    result = planned("convert", groups | {"sink": out}, ctx, plans=plans)
    if not ctx.params["dry_run"]:
        result = Converted(out, result, plans[0].facts.notes)
    return print_result(result, ctx)


def _logps(groups: Groups, ctx: click.Context) -> int:
    """Score the texts in DATA with two models, and write their log-probs to OUT.

    DATA has prompt, chosen and rejected, as text or conversations; chosen and rejected that begin
    alike; or prompt and completion. Needs the extra `models`. With --verify there is no OUT: the
    log-probs in DATA are held to the models, with exit code 1 if they are not theirs.

    \b
    Examples:
      dpo-pipeline logps texts.jsonl pairs.parquet \\
        --policy tuned/ --reference base/
      dpo-pipeline logps texts.parquet pairs.parquet \\
        --policy tuned/ --dry-run
      dpo-pipeline logps pairs.parquet --verify 200 \\
        --reference base/
    """  # noqa: D301  click takes the backspace itself
    out, rows = ctx.params["out"], ctx.params["verify"]
    if (out is None) == (rows is None):
        raise UsageError("logps takes an OUT to write, or --verify N, and not both")
    if rows is None:
        return print_result(planned("logps", groups | {"sink": out}, ctx), ctx)
    data = groups.pop("data")
    del groups["outputs"]
    result = planned("verify_logps", groups | {"rows": rows}, ctx, data)
    print_result(result, ctx)
    is_done = ctx.params["dry_run"] or result.is_alike
    return exit_codes.DONE if is_done else exit_codes.BROKEN_CONTRACT


def _compare(groups: Groups, ctx: click.Context) -> int:
    """Say whether policy B is better than policy A on the pairs that both have, and where.

    A and B are joined by --on. Pairs of one prompt_id are taken as one sample. A side without
    reference log-probs takes those of the other. --column, --max-logp and the like are of both.

    Of three policies or more it says which may be the best. A folder, a glob in quotes, or a file
    with a column `policy` or `step` is several by itself; NAME=PATH names one.

    \b
    Examples:
      dpo-pipeline compare a.parquet b.parquet
      dpo-pipeline compare a.parquet b.parquet --by split
      dpo-pipeline compare a.parquet b.parquet \\
        --on pair_id --beta 0.05 --level 0.99
    """  # noqa: D301  click takes the backspace itself
    from dpo_pipeline.comparison import COMPARED
    from dpo_pipeline.evaluation import check_gates

    gates, both = groups.pop("gates"), groups.pop("pairs")
    check_gates(gates, (*COMPARED, "auc"))
    of_b = roles("--b-column", ctx.params["b_column"]) or both.columns
    first, second, more = (ctx.params[name] for name in ("a", "b", "more"))
    sides = [replace(both, source=path) for path in (first, second, *more) if path is not None]
    if len(sides) == 2:  # noqa: PLR2004  A and B
        sides[1] = replace(sides[1], columns=of_b)
    elif ctx.params["b_column"]:
        raise UsageError("--b-column is of two policies: give A and B, or one --column for all")
    else:
        check_gates(gates, ())
    result = planned("compare", groups | {"on": ctx.params["on"]}, ctx, *sides)
    return print_figures(result, ctx, None if ctx.params["dry_run"] else gates)


_Does: TypeAlias = Callable[[Groups, click.Context], int]

COMMANDS: Final[Mapping[str, tuple[_Does, tuple[str, ...], str | None]]] = {
    "check": (_check, ("pairs",), None),
    "evaluate": (_evaluate, ("pairs",), "Print figures: loss, rewards, accuracy."),
    "sweep": (_sweep, ("pairs",), "Print figures for several betas and losses."),
    "score": (_score, ("pairs", "out"), "Write pairs with rewards and loss."),
    "select": (_select, ("pairs", "[out]"), "Write the pairs that a rule ranks first."),
    "logps": (_logps, ("data", "[out]"), "Score texts with models: log-probs."),
    "rank": (_rank, ("pairs",), "Print how rewards rank completions."),
    "convert": (_convert, ("pairs", "out"), "Write another format as Parquet."),
    "compare": (_compare, ("a", "[b]", "more..."), "Compare policies on the same pairs."),
}
"""What each does, its arguments, and its line in the list of commands."""


def commands(calls: Mapping[str, Mapping[str, type[Any]]]) -> list[click.Command]:
    """Return the commands for these groups of options, in the order of `--help`."""
    return [_command(name, calls[name]) for name in COMMANDS]


def _command(name: str, groups: Mapping[str, type[Any]]) -> click.Command:
    does, places, short_help = COMMANDS[name]

    def callback(**_: Any) -> int:
        ctx = click.get_current_context()
        form_of(ctx)  # fails before any work
        return does(groups_given(name, groups, ctx), ctx)

    params: list[click.Parameter] = [
        *arguments_of(places),
        *flags_of(name, groups),
        *({"compare": [B_COLUMN], "logps": [VERIFY]}.get(name, [])),
        *run_options(),
    ]
    return GroupedCommand(
        name, callback=callback, params=params, help=does.__doc__, short_help=short_help
    )
