"""The options of commands on the command line, made from the fields of the library's options.

The name of an option in Python follows from its flag, so that the environment
(`DPO_PIPELINE_EVALUATE_BETA`) and the settings of a file have it too. Polars is not imported here,
so that `--help` does not pay for it.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

import click

from dpo_pipeline import defaults
from dpo_pipeline.arguments import Option, default_of, options_of
from dpo_pipeline.cli.printing import form_options
from dpo_pipeline.cli.settings import SettingOption, config_option
from dpo_pipeline.columns import ROLES
from dpo_pipeline.errors import UsageError
from dpo_pipeline.sources import FORMATS

if TYPE_CHECKING:
    # A generic class for the type checker, and in newer versions of click only.
    _ParamType = click.ParamType[Any]
else:
    _ParamType = click.ParamType


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


def completing(names: Iterable[str]) -> Callable[[Any, Any, str], list[str]]:
    """Return what gives a shell the names that begin with what was typed."""
    every = list(names)
    return lambda _ctx, _parameter, typed: [name for name in every if name.startswith(typed)]


_COMPLETE: Final = {
    "loss": completing((*defaults.LOSS_NAMES, *defaults.COMPLETION_LOSS_NAMES)),
    "role": completing(f"{name}=" for name in ROLES),
    None: None,
}
_TYPES: Final[Mapping[str, Any]] = {
    "number": float,
    "whole": int,
    "path": click.Path(),
    "share": _Share(),
    "format": click.Choice(tuple(FORMATS)),
}
B_COLUMN: Final = SettingOption(
    ["--b-column"],
    multiple=True,
    metavar="ROLE=NAME",
    shell_complete=_COMPLETE["role"],
    help="As --column, for B alone, instead of --column. Repeatable.",
    section="Input",
)
"""Options of `compare`, whose sides can have different columns."""

VERIFY: Final = SettingOption(
    ["--verify"],
    type=click.IntRange(min=1),
    metavar="N",
    help="Score N rows of DATA anew, and say whether its log-probs are those of the models.",
    section="Models",
)
"""Option of `logps`, which then writes nothing."""

_SECTIONS: Final[Mapping[str, str]] = {
    "Pairs": "Input",
    "Reference": "Input",
    "Contract": "Input",
    "Objective": "Loss",
    "Models": "Models",
    "Subsets": "Subsets and batches",
    "Batches": "Subsets and batches",
    "Selection": "Selection",
    "BestOf": "Statistics",
    "StatisticsOptions": "Statistics",
    "OnInvalid": "Invalid pairs",
    "Scored": "Outputs",
    "Outputs": "Outputs",
    "Gates": "Gates",
    "Execution": "Execution",
}
"""Group of options to the heading of its options in `--help`."""

_DRY_RUN: Final = "Say what would be read, computed and written, reading no more than footers."

_QUIET: Final = "No progress, and no word of what was written."


def run_options() -> Iterator[click.Parameter]:
    """Yield the options of running and printing, which no call of the library has."""
    yield SettingOption(["--dry-run"], is_flag=True, help=_DRY_RUN)
    yield config_option()
    yield from output_options()


def output_options() -> Iterator[click.Parameter]:
    """Yield the options of printing alone."""
    yield SettingOption(["--quiet", "-q"], is_flag=True, help=_QUIET)
    yield from form_options()


def name_of(flag: str) -> str:
    """Return the name that a flag has in Python."""
    return flag.lstrip("-").replace("-", "_")


def flags_of(call: str, groups: Mapping[str, type[Any]]) -> Iterator[click.Option]:
    """Yield the options of a command: those of the fields of its groups."""
    for group in groups.values():
        section = next(_SECTIONS[c.__name__] for c in group.__mro__ if c.__name__ in _SECTIONS)
        asked: Option | None = getattr(group, "ASKED_BY", None)
        if asked is not None and call in (asked.calls or ()):
            yield _flag(asked, section, default=False)
        for field, declared in options_of(group, call):
            yield _flag(declared, section, default=default_of(field))


def _flag(declared: Option, section: str, *, default: Any) -> click.Option:
    kind = declared.kind
    shown: str | bool = (
        declared.shown if declared.shown is not None else isinstance(default, (str, int, float))
    )
    plain = isinstance(default, (str, int, float)) and declared.shown is None
    many: dict[str, Any] = {"multiple": True} if kind.repeats else {}
    return SettingOption(
        [declared.flag],
        needs_consent=declared.consent,
        is_apart=declared.apart,
        is_secret=kind.secret,
        splits=kind.splits,
        type=click.Choice(kind.choices) if kind.choices else _TYPES.get(kind.name),
        is_flag=kind.name == "flag",
        default=default if plain else None,
        show_default=False if kind.repeats and declared.shown is None else shown or False,
        metavar="FORMAT" if kind.name == "format" else kind.metavar,
        shell_complete=_COMPLETE[kind.completes],
        help=declared.help,
        section=section,
        **many,
    )


_MORE: Final = "more_paths"
_TAKES_SEVERAL: Final = "pairs"


class _Sources(click.Argument):
    """A path, or several: one source, as the library takes it."""

    def process_value(self, ctx: click.Context, value: Any) -> Any:
        """Return the path, or the list of paths."""
        paths = super().process_value(ctx, value)
        return paths[0] if len(paths) == 1 else list(paths)


class _TooMany(click.Argument):
    """Paths after the last argument, which are none of a command."""

    def get_usage_pieces(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return nothing: the line of usage does not show it."""
        return []

    def process_value(self, ctx: click.Context, value: Any) -> Any:
        """Raise a UsageError that shows the command with the glob in quotes."""
        more = super().process_value(ctx, value)
        if more and not ctx.resilient_parsing:
            names = [p.name for p in ctx.command.params if isinstance(p, click.Argument)][:-1]
            given = [*(str(ctx.params[name]) for name in names if name in ctx.params), *more]
            takes = " and ".join(str(name).upper() for name in names)
            raise UsageError(
                f"{ctx.info_name} takes {takes}, found {len(given):,} paths; quote a glob: "
                f"{_quoted(ctx, given, names[-1] == 'out')}"
            )
        return more


def arguments_of(places: Iterable[str]) -> Iterator[click.Parameter]:
    """Yield the arguments of a command: several paths where its pairs are all it takes.

    One in brackets can be left out; of one that ends in dots there are any number.
    """
    places = tuple(places)
    if places == (_TAKES_SEVERAL,):
        yield _Sources(places, type=click.Path(), nargs=-1, required=True)
        return
    has_more = places[-1].endswith("...")
    for place in places[:-1] if has_more else places:
        yield click.Argument([place.strip("[]")], type=click.Path(), required=place[0] != "[")
    if has_more:
        yield click.Argument([places[-1].strip(".")], type=click.Path(), nargs=-1)
        return
    yield _TooMany([_MORE], type=click.Path(), nargs=-1, expose_value=False)


def _quoted(ctx: click.Context, paths: list[str], has_output: bool) -> str:
    last = [shlex.quote(paths.pop())] if has_output else []
    kinds = groupby(paths, key=lambda path: (os.path.dirname(path), os.path.splitext(path)[1]))
    globs = []
    for (folder, ending), of_kind in kinds:
        names = list(of_kind)
        like = os.path.join(folder, f"*{ending}")
        globs.append(shlex.quote(names[0]) if len(names) == 1 else f"'{like}'")
    return " ".join([ctx.command_path, *globs, *last])
