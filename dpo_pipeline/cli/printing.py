"""What commands print: results to stdout, settings and errors to stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, TextIO

import click

from dpo_pipeline import errors as exit_codes
from dpo_pipeline.cli.settings import SettingOption
from dpo_pipeline.errors import UsageError
from dpo_pipeline.tables import KEPT, Part, Printable, Sentence, shown, warned, whole

if TYPE_CHECKING:
    import polars as pl

FORMS: Final = ("table", "json", "markdown", "csv", "latex")
"""How a result can be printed."""

_WARNINGS: Final = frozenset({"warning", "note", "caution", "problem"})
_ENDLESS: Final = sys.maxsize
_RANKS: Final = ("DEFAULT_MAP", "ENVIRONMENT", "COMMANDLINE")
"""Where a value comes from; the last wins."""


def form_options() -> Iterator[click.Option]:
    """Yield the options of how results are printed."""
    yield SettingOption(
        ["--output"],
        type=click.Choice(FORMS),
        help="How the result is printed. csv is one table: the subsets with --by, else the "
        "figures; latex needs the package booktabs.  [default: table]",
    )
    yield SettingOption(["--json"], is_flag=True, help="Short for --output json.")
    yield SettingOption(
        ["--warnings/--no-warnings"],
        default=True,
        help="Print warnings, findings and notes before the figures; JSON always has them.",
    )
    yield SettingOption(
        ["--color"],
        type=click.Choice(("auto", "always", "never")),
        default="auto",
        show_default=True,
        help="Colours in tables; auto: on a terminal, unless NO_COLOR is set.",
    )


def form_of(ctx: click.Context) -> str:
    """Return how the result is printed."""
    form, is_json = ctx.params["output"], ctx.params["json"]
    if not is_json or form == "json":
        return form or ("json" if is_json else "table")
    if form is None or _rank(ctx, "json") > _rank(ctx, "output"):
        return "json"
    if _rank(ctx, "json") < _rank(ctx, "output"):
        return str(form)
    raise UsageError(f"--json and --output {form} contradict each other: give one")


def _rank(ctx: click.Context, name: str) -> int:
    source = ctx.get_parameter_source(name)
    return _RANKS.index(source.name) if source is not None and source.name in _RANKS else -1


def say(text: str, *, err: bool = False) -> None:
    """Print text as a terminal may have it; messages fit the width that there is."""
    safe = KEPT.join(map(shown, text.split(KEPT)))
    width = _width_of(sys.stderr) if err else None
    if width is not None:
        from dpo_pipeline.rendering import fitted

        safe = fitted(safe, width)
    click.echo(safe.replace(KEPT, " "), err=err)


def written(path: str, rows: int | None = None) -> str:
    """Return what was written: a path with its files, rows and bytes, if it is on this machine."""
    said = f"wrote {whole(path)}"
    if not os.path.exists(path):  # in a store, or standard output
        return said if rows is None else f"{said}: {rows:,} rows"
    files = [path]
    if os.path.isdir(path):
        files = [os.path.join(place, name) for place, _, names in os.walk(path) for name in names]
        files = [each for each in files if not os.path.basename(each).startswith("_")]
        said += f": {len(files):,} file{'' if len(files) == 1 else 's'},"
    else:
        said += ":"
    if files and all(each.endswith(".parquet") for each in files):
        from dpo_pipeline.storage import footer_of

        rows = sum(footer_of(each).num_rows for each in files)
        said += f" {rows:,} row{'' if rows == 1 else 's'},"
    return f"{said} {sum(map(os.path.getsize, files)):,} bytes"


def _width_of(stream: TextIO) -> int | None:
    """Return `COLUMNS`, or the width of a terminal; None if neither: then lines stay whole."""
    columns = os.environ.get("COLUMNS", "")
    try:
        if columns.isdigit():
            return int(columns)
        return os.get_terminal_size(stream.fileno()).columns if stream.isatty() else None
    except (OSError, ValueError):
        return None


def print_result(result: Printable, ctx: click.Context) -> int:
    """Print a result or a plan in the form that was asked for."""
    form = form_of(ctx)
    if form == "json":
        click.echo(result.to_json())
    elif form == "csv":
        for part in _wanted(result, ctx):  # which a table of figures alone would lose
            if isinstance(part, Sentence) and (
                part.label in _WARNINGS or part.text.startswith(("no verdict", "gate "))
            ):
                say(f"{part.label}: {part.text}" if part.label else part.text, err=True)
        click.echo(shown(result.to_csv(), _ENDLESS), nl=False)
    else:
        _print_parts(list(_wanted(result, ctx)), form, ctx)
    return exit_codes.DONE


def _wanted(result: Printable, ctx: click.Context) -> Iterator[Part]:
    for part in result.to_parts():
        is_warning = isinstance(part, Sentence) and part.label in _WARNINGS
        if ctx.params.get("warnings", True) or not is_warning:
            yield part


def _print_parts(parts: list[Part], form: str, ctx: click.Context) -> None:
    from dpo_pipeline.rendering import as_latex, as_markdown, as_text

    if form == "table":
        color = _is_colored(ctx)
        click.echo(as_text(parts, color=color), color=color)
    else:
        click.echo(as_markdown(parts) if form == "markdown" else as_latex(parts))


def _is_colored(ctx: click.Context) -> bool:
    asked = ctx.params.get("color", "auto")
    if asked != "auto":
        return bool(asked == "always")
    is_dumb = os.environ.get("TERM") == "dumb"
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and not is_dumb


class Converted(Printable):
    """What `convert` did."""

    def __init__(self, path: str, rows: int, notes: tuple[str, ...]) -> None:
        self.path, self.rows, self.notes = path, rows, notes

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        size = os.path.getsize(self.path) if os.path.isfile(self.path) else None
        return {
            "path": self.path,
            "rows": self.rows,
            "bytes": size,
            "warnings": list(self.notes),
        }

    def to_frame(self) -> pl.DataFrame:
        """Return it as one row."""
        import polars as pl

        return pl.DataFrame({"path": [self.path], "rows": [self.rows]})

    def to_parts(self) -> Iterator[Part]:
        """Yield the file, its rows and its bytes."""
        yield Sentence(text=written(self.path, self.rows), leads=bool(self.notes))
        yield from warned(self.notes, "note")
