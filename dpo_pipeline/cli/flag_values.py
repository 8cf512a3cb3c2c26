"""Makes the library's groups of options from the values given on the command line."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import click

from dpo_pipeline.arguments import imported, options_of
from dpo_pipeline.cli.flags import name_of
from dpo_pipeline.columns import ROLES
from dpo_pipeline.errors import UsageError
from dpo_pipeline.options import Pairs, Reference, StatisticsOptions


def groups_given(call: str, groups: Mapping[str, type[Any]], ctx: click.Context) -> dict[str, Any]:
    """Return the groups of a call, by its parameters; the sides of `compare` have no source yet.

    A group without a given option has its defaults; `reference` and `statistics` are None then.
    """
    made: dict[str, Any] = {}
    for parameter, group in groups.items():
        values = {}
        for field, declared in options_of(group, call):
            if _is_given(ctx, declared.flag):
                given, parse = ctx.params[name_of(declared.flag)], _PARSERS.get(declared.kind.name)
                values[field.name] = given if parse is None else parse(declared.flag, given)
        if issubclass(group, Pairs):
            made[parameter] = group(ctx.params.get(parameter), **values)
        elif issubclass(group, Reference):
            made[parameter] = _reference(group, values, call, ctx)
        elif issubclass(group, StatisticsOptions):
            asked = values or ctx.params.get(name_of(group.ASKED_BY.flag))
            made[parameter] = group(**values) if asked else None
        else:
            made[parameter] = group(**values)
    return made


def _is_given(ctx: click.Context, flag: str) -> bool:
    unset = (click.core.ParameterSource.DEFAULT, None)
    return ctx.get_parameter_source(name_of(flag)) not in unset


def _reference(group: type[Any], values: Mapping[str, Any], call: str, ctx: click.Context) -> Any:
    if "source" in values:
        return group(**values)
    for field, declared in options_of(group):
        # --on joins the sides of a comparison, and may be in settings that several commands share.
        typed = ctx.get_parameter_source(name_of(declared.flag))
        is_shared = call == "compare" or typed is not click.core.ParameterSource.COMMANDLINE
        if field.name in values and not (field.name == "on" and is_shared):
            raise UsageError(f"{declared.flag} is of a --reference: give one")
    return None


_NEXT: Final = re.compile(rf",(?=(?:{'|'.join(ROLES)})=)")
"""The comma before a further role."""


def roles(flag: str, texts: Sequence[str]) -> dict[str, str]:
    """Return role to column, from ROLE=NAME, or several with commas between them."""
    return dict(_split(flag, "ROLE=NAME", [each for text in texts for each in _NEXT.split(text)]))


def _split(flag: str, form: str, texts: Sequence[str]) -> Iterable[tuple[str, str]]:
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise UsageError(f"{flag} takes {form}, found {text!r}")
        yield name, value


def _numbers(flag: str, texts: Sequence[str]) -> dict[str, float]:
    """Return name to number, from NAME=VALUE; the name may hold an equals sign."""
    numbers: dict[str, float] = {}
    for text in texts:
        name, _, value = text.rpartition("=")
        if name in numbers:
            raise UsageError(f"{flag} {name} is there twice")
        try:
            numbers[name] = float(value.removesuffix("%")) / (100.0 if value.endswith("%") else 1.0)
        except ValueError:
            name = ""
        if not name:
            example = f"{flag} {text.partition('=')[0] or 'NAME'}=0.5"
            raise UsageError(
                f"{flag} takes NAME=VALUE with a number, found {text!r}; for instance `{example}`"
            )
    return numbers


def _store(flag: str, texts: Sequence[str]) -> dict[str, str | int]:
    made: dict[str, str | int] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UsageError(f"{flag} takes NAME=VALUE, and one was given without")
        # Of the options that Polars takes, only these must be numbers.
        is_count = name == "max_retries" or name.startswith("retry_") or name == "file_cache_ttl"
        made[name] = int(value) if is_count and value.isdigit() else value
    return made


def _losses(flag: str, texts: Sequence[str]) -> dict[str, float]:
    weights: dict[str, float] = {}
    for text in texts:
        name, equals, weight = text.partition("=")
        if name in weights:
            raise UsageError(f"{flag} {name} is there twice")
        try:
            weights[name] = float(weight) if equals else 1.0
        except ValueError:
            raise UsageError(f"{flag} takes NAME or NAME=WEIGHT, found {text!r}") from None
    return weights


def _values(flag: str, texts: Sequence[str]) -> dict[str, float | bool | str]:
    made: dict[str, float | bool | str] = {}
    for name, value in _split(flag, "NAME=VALUE", texts):
        if name in made:
            raise UsageError(f"{flag}: an argument is there twice")
        made[name] = _value(value)
    return made


def _value(text: str) -> float | bool | str:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return float(text)
    except ValueError:
        return text


_PARSERS: Final[Mapping[str, Callable[[str, Any], Any]]] = {
    "roles": roles,
    "numbers": _numbers,
    "store": _store,
    "losses": _losses,
    "values": _values,
    "object": imported,
}
"""Kind to the function from a flag and its value in click to the value of the field. Other kinds
keep the value of click."""
