"""The tables of `schemas/README.md`, made from what the library declares."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from dpo_pipeline.arguments import Option, default_of, options_of
from dpo_pipeline.columns import ROLES, SCORED
from dpo_pipeline.errors import MEANINGS
from dpo_pipeline.options import CALLS
from dpo_pipeline.sources import FORMATS

_HEAD: Final = """# Reference

Everything on this page is made from the declarations of the library: `dpo-pipeline contract --to
schemas` writes it anew. Beside it lie the contracts of the tables (Open Data Contract Standard) and
the JSON Schemas of the documents.
"""


def reference_page() -> str:
    """Return `schemas/README.md`."""
    formats = [(_code(row.name), _code(*row.endings), row.description) for row in FORMATS.values()]
    columns = [
        (_code(role.name), "input", role.unit or "", role.description, _code(*role.aliases))
        for role in ROLES.values()
    ]
    columns += [(_code(a.name), "added", a.unit or "", a.description, "") for a in SCORED]
    exit_codes = [(str(code), text) for code, text in MEANINGS.items()]
    sections = {
        "Options": option_table(),
        "Formats": _table(("format", "endings", "what is in it"), formats),
        "Columns": _table(("column", "", "unit", "what it is", "also called"), columns),
        "Exit codes": _table(("code", "meaning"), exit_codes),
    }
    return "\n".join([_HEAD, *(f"## {name}\n\n{text}\n" for name, text in sections.items())])


def option_table(calls: Mapping[str, Mapping[str, type[Any]]] = CALLS) -> str:
    """Return the options: flag, variable, default, commands that have it, and what it does.

    The key in settings is the flag without its dashes. The variable is that of all commands; that
    of one has the command's name before the option's.
    """
    return _table(
        ("option", "group and field", "variable", "default", "commands", "what it does"),
        _option_rows(calls),
    )


def _option_rows(calls: Mapping[str, Mapping[str, type[Any]]]) -> Iterator[Sequence[str]]:
    shown: dict[str, tuple[str, str, Option]] = {}
    where: dict[str, list[str]] = {}
    for call, groups in calls.items():
        for group in groups.values():
            for each, declared in options_of(group, call):
                where.setdefault(declared.flag, []).append(call)
                default = default_of(each)
                plain = f"{default}" if isinstance(default, (str, int, float)) else ""
                text = plain if declared.shown is None else declared.shown
                place = f"`{group.__name__}.{each.name}`"
                shown.setdefault(declared.flag, (place, text, declared))
    for flag, (place, default, declared) in shown.items():
        variable = f"DPO_PIPELINE_{flag.lstrip('-').replace('-', '_').upper()}"
        commands = "all" if len(where[flag]) == len(calls) else ", ".join(where[flag])
        yield f"`{flag}`", place, f"`{variable}`", default, commands, declared.help


def _code(*names: str) -> str:
    return " ".join(f"`{name}`" for name in names)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines
    )
