"""The tables of `schemas/README.md`, made from what the library declares."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from dpo_pipeline.arguments import Option, default_of, options_of
from dpo_pipeline.columns import ROLES, SCORED, SELECTED
from dpo_pipeline.errors import MEANINGS
from dpo_pipeline.losses import DIALECTS, EVERY_LOSS, OTHERS, Loss, Rewards
from dpo_pipeline.options import CALLS
from dpo_pipeline.published.document_texts import HEADS, NUMBERS, RESULTS
from dpo_pipeline.published.explanations import DOUBTS, FINDINGS, RULES
from dpo_pipeline.published.glossary import LEGEND
from dpo_pipeline.ranking import RANKING_FIGURES
from dpo_pipeline.selection import RULES as SELECTION_RULES
from dpo_pipeline.sources import FORMATS
from dpo_pipeline.sums import FIGURES

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
    columns += [
        (_code(a.name), "added", a.unit or "", a.description, "") for a in (*SCORED, *SELECTED)
    ]
    exit_codes = [(str(code), text) for code, text in MEANINGS.items()]
    figures = [
        (
            _code(name),
            each.text,
            ", ".join(filter(None, (each.unit, each.limits))),
            _code(each.formula),
            each.reading,
            _code(each.trl),
        )
        for name, each in FIGURES.items()
    ]
    figures += [(_code(name), text, "", "", "", "") for name, (text, _) in RANKING_FIGURES.items()]
    keys = [(_code(name), text) for texts in (RESULTS, NUMBERS) for name, text in texts.items()]
    findings = [(_code(name), text) for name, text in {**DOUBTS, **FINDINGS}.items()]
    sections = {
        "Options": option_table(),
        "Figures": _table(
            ("figure", "what it is", "unit, range", "formula", "how to read it", "in TRL"), figures
        ),
        "Keys of documents": _table(("key", "what it is"), keys),
        "Heads of tables": _table(("head", "what it is"), [*HEADS.items()]),
        "Findings": _table(("finding", "what it says, and when"), findings),
        "Rules": _table(("rule", "what it asks for"), [(_code(n), t) for n, t in RULES.items()]),
        "Losses": f"{LEGEND[0].upper()}{LEGEND[1:]}.\n\n{loss_table()}",
        "Rules of selection": _table(
            ("rule", "keeps first", "formula", "needs", "blind to", "source"),
            [
                (_code(name), r.keeps, r.formula, r.needs, r.blind_to, r.source)
                for name, r in SELECTION_RULES.items()
            ],
        ),
        "Dialects": dialect_tables(),
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
    # Commands can have a flag of one name with two meanings.
    shown: dict[tuple[str, type[Any]], tuple[str, str, Option]] = {}
    where: dict[tuple[str, type[Any]], list[str]] = {}
    for call, groups in calls.items():
        for group in groups.values():
            for each, declared in options_of(group, call):
                where.setdefault((declared.flag, group), []).append(call)
                default = default_of(each)
                plain = f"{default}" if isinstance(default, (str, int, float)) else ""
                text = plain if declared.shown is None else declared.shown
                place = f"`{group.__name__}.{each.name}`"
                shown.setdefault((declared.flag, group), (place, text, declared))
    for (flag, group), (place, default, declared) in shown.items():
        having = where[flag, group]
        of_call = f"{having[0].upper()}_" if declared.apart else ""
        variable = f"DPO_PIPELINE_{of_call}{flag.lstrip('-').replace('-', '_').upper()}"
        commands = "all" if len(having) == len(calls) else ", ".join(having)
        yield f"`{flag}`", place, f"`{variable}`", default, commands, declared.help


def loss_table() -> str:
    """Return the losses, each with its formula, parameters, needs, source and other names."""
    rows = [
        (
            *_codes(loss.name, loss.formula),
            ", ".join(f"`{p.name}` {p.shown}" for p in loss.parameters),
            needs_of(loss),
            loss.source,
            "; ".join(f"{system}: {term}" for system, term in loss.peers.items()),
        )
        for loss in EVERY_LOSS.values()
    ]
    return _table(("loss", "formula", "parameters", "needs", "source", "elsewhere"), rows)


def dialect_tables() -> str:
    """Return the dialects, and the parameters that reproduce other systems."""
    rows = []
    for each in DIALECTS.values():
        sets = [f"`{loss}`: {_pairs(values)}" for loss, values in each.defaults.items()]
        refused = [f"`{name}`: {why}" for name, why in each.refused.items()]
        if each.lacks:
            refused.insert(0, f"the losses {', '.join(_codes(*each.lacks))}")
        read = [f"{topic}: {source}" for topic, source in each.sources.items()]
        of_dialect = (f"`{each.name}` ({each.system})", f"{each.beta:g}", _REWARDS[each.rewards])
        rows.append((*of_dialect, *map("; ".join, (sets or ["nothing"], refused, read))))
    header = ("dialect", "beta", "rewards are beta times", "sets", "refuses, having it not")
    others = _table(("other system", "what gives its conventions"), OTHERS.items())
    return f"{_table((*header, 'read in'), rows)}\n\n{others}"


_REWARDS: Final[Mapping[Rewards, str]] = MappingProxyType(
    {"score": "what the loss compares", "logratio": "the log-ratio of sums"}
)


def needs_of(loss: Loss) -> str:
    """Return the columns that a loss needs with its own defaults, in words."""
    return loss.needs(reference=loss.reference != "never", per_token=loss.by_length == "always")


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}={value}`" for name, value in values.items())


def _codes(*names: str) -> list[str]:
    return [f"`{name}`" for name in names]


def _code(*names: str) -> str:
    return " ".join(f"`{name}`" for name in names if name)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines
    )
