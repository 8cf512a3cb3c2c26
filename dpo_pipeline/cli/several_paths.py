"""Several paths where a command takes one: what a shell makes of a glob without quotes."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any, Final

import click

from dpo_pipeline.errors import UsageError

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
    """Yield the arguments of a command: several paths where its pairs are all it takes."""
    places = tuple(places)
    if places == (_TAKES_SEVERAL,):
        yield _Sources(places, type=click.Path(), nargs=-1, required=True)
        return
    yield from (click.Argument([place], type=click.Path()) for place in places)
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
