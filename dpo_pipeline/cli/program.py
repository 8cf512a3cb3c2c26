"""The command line: its commands, its errors and its exit codes.

A command parses, calls one library function, prints, and returns a code. Results go to stdout, all
else to stderr. Polars is imported by the commands when they run, so that `--help` does not pay for
it.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import sys
import traceback
from collections.abc import Iterator, Mapping
from typing import IO, Any, Final

import click

from dpo_pipeline import errors as exit_codes
from dpo_pipeline.cli.catalogue_commands import CATALOGUE_COMMANDS
from dpo_pipeline.cli.commands import commands
from dpo_pipeline.cli.help_pages import START
from dpo_pipeline.cli.job_commands import job_group
from dpo_pipeline.cli.printing import say
from dpo_pipeline.cli.running import Stopped
from dpo_pipeline.cli.settings import PREFIX, TYPED, used
from dpo_pipeline.columns import LOGPS, ROLES, did_you_mean
from dpo_pipeline.errors import (
    ColumnError,
    DpoPipelineError,
    InvalidPairsError,
    NoSuchColumn,
    StorageError,
    UsageError,
)
from dpo_pipeline.options import CALLS
from dpo_pipeline.tables import whole

PROGRAM: Final = "dpo-pipeline"

_CODES: Final = "\n".join(f"  {code:<4} {text}" for code, text in exit_codes.MEANINGS.items())
_HELP: Final = f"""Evaluate preference data offline: DPO loss, implicit rewards, reward accuracy.

PAIRS is a Parquet file, a glob (quoted), or a folder, with one row a preference pair; or what
--format says.

Each command has examples: dpo-pipeline COMMAND --help.

\b
Examples:
  dpo-pipeline check pairs.parquet
  dpo-pipeline evaluate pairs.parquet --by split
  dpo-pipeline compare a.parquet b.parquet

\b
Defaults of options, the first that is there:
  DPO_PIPELINE_EVALUATE_BETA=0.2  environment, one command
  DPO_PIPELINE_BETA=0.2           environment, any command
  --config FILE, else the nearest pyproject.toml:
    [tool.dpo-pipeline]           beta = 0.2 for all
    [tool.dpo-pipeline.evaluate]  beta = 0.2 for one

\b
Exit codes:
{_CODES}
"""


REFERENCE: Final = LOGPS[2:]
"""The reference's log-probs, which may be in a file of their own."""

_NO_MEMORY: Final = ("start new thread", "failed to map segment", "annot allocate memory")
"""What the system says where there is no memory for a thread, a library or a buffer."""


class _Start(click.ClickException):
    """Raised without a command: says how to start."""

    exit_code = exit_codes.USAGE

    def show(self, file: IO[Any] | None = None) -> None:
        """Print it."""
        click.echo(self.message, file=file)


class _Commands(click.Group):
    """The commands. Errors suggest a command, and name the settings that took part."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments; without any, say how to start."""
        if not args and ctx.parent is None and not ctx.resilient_parsing:
            raise _Start(START)
        if ctx.parent is None:
            ctx.meta[TYPED] = (PROGRAM, *args)
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the names in the order of the work."""
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command of this name."""
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            # Older versions of click suggest no command.
            name, there = args[0], self.list_commands(ctx)
            hint = did_you_mean(name, there) or f"; there are {', '.join(there)}"
            ctx.fail(f"No such command {name!r}{hint}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (UsageError, ColumnError) as error:
            for setting in used(ctx):
                error.add_note(f"setting: {setting}")
            raise


def command_line(calls: Mapping[str, Mapping[str, type[Any]]] = CALLS) -> click.Group:
    """Return the command line for these groups of options."""
    group = _Commands(
        help=_HELP,
        context_settings={
            "help_option_names": ["-h", "--help"],
            "max_content_width": 100,
            "auto_envvar_prefix": PREFIX,
        },
    )
    for command in (*commands(calls), job_group(calls, _Commands), *CATALOGUE_COMMANDS):
        group.add_command(command)
    versioned = click.version_option(package_name="dpo_pipeline", prog_name=PROGRAM)
    return versioned(group)


cli: Final = command_line()


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    try:
        code = cli.main(args=arguments, prog_name=PROGRAM, standalone_mode=False)
    except click.Abort:  # Ctrl-C before the run began
        return exit_codes.SIGNALLED + 2
    except click.ClickException as error:
        with io.StringIO() as text:
            error.show(text)
            say(text.getvalue().rstrip("\n"), err=True)
        code = error.exit_code
    except DpoPipelineError as error:
        given = sys.argv[1:] if arguments is None else arguments
        lines = [f"error: {error}", *getattr(error, "__notes__", ()), *_mended(error, given)]
        say("\n".join(lines), err=True)
        return _code_of(error)
    except BrokenPipeError:
        # The reader of stdout left: discard what would be flushed at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exit_codes.DONE
    except Exception as error:  # noqa: BLE001  a fault of ours: the traceback is for its report
        if isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY):
            say(f"error: there is not enough memory: {error}", err=True)
        else:
            traceback.print_exc()
        return exit_codes.STORAGE
    return code if isinstance(code, int) else exit_codes.DONE


def _mended(error: DpoPipelineError, arguments: list[str]) -> Iterator[str]:
    """Yield the command that may be what was meant, to be pasted."""
    if any(each.startswith("--storage-option") for each in arguments):
        return
    more, given = list[str](), arguments
    is_some = isinstance(error, InvalidPairsError) and error.report.n_invalid < error.report.n_pairs
    if isinstance(error, InvalidPairsError) and not error.is_excluding and is_some:
        more = ["--on-invalid", "exclude"]
    elif isinstance(error, ColumnError):
        more = list(error.options or _mapping(error))
        arguments = arguments if error.options else [*_renamed(error, arguments)]
    if given[:2] in (["job", "run"], ["job", "merge"]):  # these have no options of the call
        more += ["--overwrite"] * (isinstance(error, StorageError) and "--overwrite" in str(error))
        if more:
            yield f"a job keeps the options of its split: split it anew, with {shlex.join(more)}"
    elif more or arguments != given:
        yield f"try: {whole(shlex.join([PROGRAM, *arguments, *more]))}"


def _renamed(error: ColumnError, arguments: list[str]) -> Iterator[str]:
    """Yield the arguments with columns that are there instead of those that were given."""
    wrong = [text.partition(":")[0] for text in error.problems if isinstance(text, NoSuchColumn)]
    flag = ""
    for each in arguments:
        text = each
        if error.flag in (flag, each.partition("=")[0]):
            for role in wrong:
                column = error.guesses.get(role, "NAME")
                pattern = rf"(^|[=,]){role}=.*?(?=,(?:{'|'.join(ROLES)})=|$)"
                text = re.sub(pattern, lambda m: f"{m[1]}{role}={column}", text)  # noqa: B023
        flag = each
        yield text


def _mapping(error: ColumnError) -> Iterator[str]:
    """Yield the options that say where the missing columns are."""
    missing = [text.partition(":")[0] for text in error.problems if ": missing" in text]
    names = {role: error.guesses.get(role, "NAME") for role in missing if role in ROLES}
    if names and all(role.startswith("kl_") for role in names):
        yield from ("--loss-arg", "kl=0")
        return
    unknown = [role for role in LOGPS if role in names and role not in error.guesses]
    if tuple(unknown) == REFERENCE and error.flag == "--column":
        names = {role: name for role, name in names.items() if role not in REFERENCE}
        yield from ("--reference", "FILE")
    if names:
        yield from (error.flag, ",".join(f"{role}={name}" for role, name in names.items()))
    if error.is_of_a and names:  # --column is of both sides, and the other one is as it should be
        yield from ("--b-column", ",".join(f"{role}={role}" for role in names))


def _code_of(error: DpoPipelineError) -> int:
    if isinstance(error, Stopped):
        return exit_codes.SIGNALLED + error.signum
    return error.exit_code
