"""The commands of jobs: `job split`, `job run` and `job merge`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from threading import Event
from typing import TYPE_CHECKING, Any, Final

import click
from click.core import ParameterSource

from dpo_pipeline.arguments import options_of
from dpo_pipeline.cli.commands import (
    COMMANDS,
    NO_STATISTICS,
    planned,
    print_figures,
    protecting_settings,
)
from dpo_pipeline.cli.flag_values import groups_given
from dpo_pipeline.cli.flags import arguments_of, flags_of, output_options, run_options
from dpo_pipeline.cli.printing import print_result, say, written
from dpo_pipeline.cli.running import run
from dpo_pipeline.cli.settings import PREFIX
from dpo_pipeline.errors import UsageError
from dpo_pipeline.options import Execution, Gates

if TYPE_CHECKING:
    from dpo_pipeline.engine import ProgressCallback

_FUNCTIONS: Final[Mapping[str, str]] = {
    "evaluate": "evaluate",
    "sweep": "sweep",
    "score": "score_parquet",
}
_OF_RUN: Final = {"execution": Execution}
_OF_MERGE: Final = {"execution": Execution, "gates": Gates}
_CONTEXT: Final = {"auto_envvar_prefix": PREFIX}

_JOB_HELP: Final = """Share an evaluation, a sweep or a score among independent processes.

The merge gives the figures and the files of one process, to the last bit.

\b
Examples:
  dpo-pipeline job split evaluate pairs.parquet \\
    --shards 2 --to job
  dpo-pipeline job run job 0
  dpo-pipeline job run job 1
  dpo-pipeline job merge job --json
"""
_SPLIT_HELP: Final = """Write what the processes of a job need into a new folder.

All options of the command are given here, but for its gates (--fail-under and the like), which the
merge has. Storage options and credentials are not kept: give them to each run and to the merge too.

\b
Examples:
  dpo-pipeline job split evaluate pairs.parquet \\
    --by split --statistics --shards 16 --to job
  dpo-pipeline job split score pairs/ scored/ \\
    --part-rows 1000000 --shards 16 --to job
"""


def job_group(calls: Mapping[str, Mapping[str, type[Any]]], kind: type[click.Group]) -> click.Group:
    """Return the group of commands; `kind` is the class of groups."""
    split = kind("split", help=_SPLIT_HELP, short_help="Write what the processes need.")
    for name in _FUNCTIONS:
        split.add_command(_split_command(name, calls[name]))
    job = kind("job", help=_JOB_HELP, short_help="Share work among processes.")
    for command in (split, _RUN, _MERGE):
        job.add_command(command)
    return job


def _split_command(name: str, groups: Mapping[str, type[Any]]) -> click.Command:
    _, places, short_help = COMMANDS[name]
    asked = {parameter: group for parameter, group in groups.items() if group is not Gates}

    def callback(**_: Any) -> int:
        ctx = click.get_current_context()
        return _split(name, groups_given(name, asked, ctx), ctx)

    params: list[click.Parameter] = [
        *arguments_of(places),
        click.Option(["--shards"], type=int, required=True, help="How many shards to make."),
        click.Option(
            ["--to"], type=click.Path(), required=True, help="The folder of the job, a new one."
        ),
        *flags_of(name, asked),
        *_gates_of_merge(),
        *run_options(),
    ]
    return click.Command(
        name,
        callback=callback,
        params=params,
        help=f"Split `dpo-pipeline {name}`, whose options these are, into shards.",
        short_help=short_help,
        context_settings={"auto_envvar_prefix": f"{PREFIX}_{name.upper()}"},
    )


def _gates_of_merge() -> Iterator[click.Option]:
    """Yield the gates, which only the merge has, as options that say so."""

    def refuse(ctx: click.Context, option: click.Parameter, value: Any) -> None:
        if value and ctx.get_parameter_source(str(option.name)) == ParameterSource.COMMANDLINE:
            folder, flag = ctx.params.get("to") or ctx.params.get("job") or "JOB", option.opts[0]
            given = f"{flag} {value[0]}" if isinstance(value, tuple) else flag
            command = f"dpo-pipeline job merge {folder} {given}"
            raise UsageError(f"{flag} is of the merge, which has the figures: `{command}`")

    for _, declared in options_of(Gates):
        is_flag = not declared.kind.repeats
        yield click.Option(
            [declared.flag],
            is_flag=is_flag,
            multiple=not is_flag,
            hidden=True,
            expose_value=False,
            callback=refuse,
        )


def _split(name: str, groups: dict[str, Any], ctx: click.Context) -> int:
    import dpo_pipeline
    from dpo_pipeline import jobs

    function = getattr(dpo_pipeline, _FUNCTIONS[name])
    places = {"sink": ctx.params["out"]} if "out" in ctx.params else {}
    if ctx.params["dry_run"]:
        return print_result(planned(_FUNCTIONS[name], groups | places, ctx), ctx)
    protecting_settings(groups, ctx)

    def call(cancel: Event, progress: ProgressCallback | None) -> jobs.JobPlan:
        own = replace(groups["execution"], cancel=cancel, progress=progress)
        options = {**places, **groups, "execution": own}
        return jobs.split(function, shards=ctx.params["shards"], to=ctx.params["to"], **options)

    return print_result(run(call, quiet=ctx.params["quiet"]), ctx)


def _run(**_: Any) -> int:
    """Do shard K of the job in the folder JOB, from 0; a shard that is done is not done again.

    \b
    Examples:
      dpo-pipeline job run job 3
      seq 0 15 | xargs -P 4 -n 1 dpo-pipeline job run job -q
    """  # noqa: D301  click takes the backspace itself
    from dpo_pipeline import jobs

    ctx = click.get_current_context()
    groups = groups_given("run", _OF_RUN, ctx)

    def call(cancel: Event, progress: ProgressCallback | None) -> jobs.ShardRun:
        own = replace(groups["execution"], cancel=cancel, progress=progress)
        return jobs.run(ctx.params["job"], ctx.params["k"], execution=own)

    return print_result(run(call, quiet=ctx.params["quiet"]), ctx)


def _merge(**_: Any) -> int:
    """Print the figures of the job in the folder JOB, and write its outputs.

    \b
    Examples:
      dpo-pipeline job merge job
      dpo-pipeline job merge job \\
        --json --fail-under rewards/accuracies=0.5
    """  # noqa: D301  click takes the backspace itself
    from dpo_pipeline import jobs

    ctx = click.get_current_context()
    groups = groups_given("merge", _OF_MERGE, ctx)
    gates, plan = groups["gates"], jobs.JobPlan.read(ctx.params["job"])
    _check_gates(gates, plan.command, plan.options)

    def call(cancel: Event, progress: ProgressCallback | None) -> Any:
        own = replace(groups["execution"], cancel=cancel, progress=progress)
        return jobs.merge(ctx.params["job"], execution=own)

    result = run(call, quiet=ctx.params["quiet"])
    if not ctx.params["quiet"]:
        of_options = map(plan.options.get, ("invalid", "summary", "report", "batches"))
        for path in filter(None, (*of_options, plan.out)):
            say(written(path), err=True)
    return print_figures(result, ctx, None if plan.command == "sweep" else gates)


def _check_gates(gates: Gates, command: str, options: Mapping[str, Any]) -> None:
    from dpo_pipeline.evaluation import (
        GATED,
        SUMMED,
        check_gates,
        check_gates_asked,
        needs_statistics,
    )

    if command == "sweep":
        if gates != Gates():
            raise UsageError("a sweep has no gates: evaluate one beta for them")
        return
    check_gates(gates, GATED if command == "evaluate" else SUMMED)
    if command == "evaluate":
        check_gates_asked(
            gates,
            by=options.get("by", ()),
            weights="weight" in options,
            sections=options.get("sections"),
        )
    if needs_statistics(gates) and "statistics" not in options:
        if command == "score":
            raise UsageError(NO_STATISTICS)
        raise UsageError("a gate of intervals needs statistics: split anew, with --statistics")


_JOB: Final = click.Argument(["job"], type=click.Path())
_RUN: Final = click.Command(
    "run",
    callback=_run,
    params=[
        _JOB,
        click.Argument(["k"], type=int),
        *flags_of("run", _OF_RUN),
        *_gates_of_merge(),
        *output_options(),
    ],
    help=_run.__doc__,
    short_help="Do one shard.",
    context_settings=_CONTEXT,
)
_MERGE: Final = click.Command(
    "merge",
    callback=_merge,
    params=[_JOB, *flags_of("merge", _OF_MERGE), *output_options()],
    help=_merge.__doc__,
    short_help="Print the figures, and write the outputs.",
    context_settings=_CONTEXT,
)
