"""The options of commands on the command line, made from the fields of the library's options.

The name of an option in Python follows from its flag, so that the environment
(`DPO_PIPELINE_EVALUATE_BETA`) and the settings of a file have it too. Polars is not imported here,
so that `--help` does not pay for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import click

from dpo_pipeline import defaults
from dpo_pipeline.arguments import Option, default_of, options_of
from dpo_pipeline.cli.printing import form_options
from dpo_pipeline.cli.settings import SettingOption, config_option
from dpo_pipeline.columns import ROLES
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
    "loss": completing(defaults.LOSS_NAMES),
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

_SECTIONS: Final[Mapping[str, str]] = {
    "Pairs": "Input",
    "Reference": "Input",
    "Contract": "Input",
    "Objective": "Loss",
    "Subsets": "Subsets and batches",
    "Batches": "Subsets and batches",
    "StatisticsOptions": "Statistics",
    "OnInvalid": "Invalid pairs",
    "Scored": "Outputs",
    "Outputs": "Outputs",
    "Gates": "Gates",
    "Execution": "Execution",
}
"""Group of options to the heading of its options in `--help`."""

_DRY_RUN: Final = "Say what would be read, computed and written, reading no more than footers."


def run_options() -> Iterator[click.Parameter]:
    """Yield the options of running and printing, which no call of the library has."""
    yield SettingOption(["--dry-run"], is_flag=True, help=_DRY_RUN)
    yield config_option()
    yield from output_options()


def output_options() -> Iterator[click.Parameter]:
    """Yield the options of printing alone."""
    yield SettingOption(["--quiet", "-q"], is_flag=True, help="No progress.")
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
        is_secret=kind.secret,
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
