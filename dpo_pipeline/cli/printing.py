"""What commands print: results to stdout, warnings and settings to stderr."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from dpo_pipeline import errors as exit_codes
from dpo_pipeline.cli.settings import used
from dpo_pipeline.tables import shown

if TYPE_CHECKING:
    from dpo_pipeline.invalid_report import InvalidReport


def say(text: str, *, err: bool = False) -> None:
    """Print text as a terminal may have it."""
    click.echo(shown(text), err=err)


def print_result(result: Any, ctx: click.Context) -> int:
    """Print a result or a plan, as JSON or text."""
    if ctx.params.get("dry_run") and not ctx.params["quiet"]:
        for setting in used(ctx):
            say(f"setting: {setting}", err=True)
    if ctx.params["json"]:
        click.echo(result.to_json())
    else:
        say(str(result))
    return exit_codes.DONE


def print_invalid(report: InvalidReport, done: str, count: int, noun: str) -> None:
    """Print to stderr which rules were broken, and what was done with the pairs."""
    if report.n_invalid:
        pairs = f"{count:,} {noun}{'' if count == 1 else 's'}"
        say(f"{report}\n{done}: {pairs}", err=True)


def print_warnings(texts: Iterable[str], ctx: click.Context) -> None:
    """Print warnings to stderr, unless --quiet is given."""
    if not ctx.params["quiet"]:
        for text in texts:
            say(f"warning: {text}", err=True)
