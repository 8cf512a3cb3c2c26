"""The options of a call as plain values for JSON, under the names of their flags, and back."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dpo_pipeline.arguments import Option, default_of, imported, options_of
from dpo_pipeline.errors import UsageError
from dpo_pipeline.options import CALLS, Execution, Pairs, Reference, StatisticsOptions
from dpo_pipeline.tables import without_secrets

_STATISTICS = StatisticsOptions.ASKED_BY.flag.lstrip("-")


def plain_options(call: str, groups: Mapping[str, Any]) -> dict[str, Any]:
    """Return flag to value of the options that are not at their defaults.

    Those of `Execution` are left out: how stores are reached is said where a shard is run.
    """
    made: dict[str, Any] = {}
    for parameter in CALLS[call]:
        group = groups.get(parameter)
        if group is None or isinstance(group, Execution):
            continue
        if isinstance(group, StatisticsOptions):
            made[_STATISTICS] = True
        for field, declared in options_of(type(group), call):
            value = getattr(group, field.name)
            if isinstance(group, Reference) and field.name == "source":
                made[declared.flag.lstrip("-")] = plain_paths(value, declared.flag)
            elif value != default_of(field):
                made[declared.flag.lstrip("-")] = _plain(declared, value)
    _refuse_secrets(made)
    return made


def groups_of(call: str, pairs: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the groups of a call by its parameters, from what `plain_options` gave."""
    made: dict[str, Any] = {}
    for parameter, group in CALLS[call].items():
        values = {
            field.name: _value(declared, options[name])
            for field, declared in options_of(group, call)
            if (name := declared.flag.lstrip("-")) in options
        }
        if group is Pairs:
            made[parameter] = Pairs(pairs, **values)
        elif group is Reference:
            made[parameter] = Reference(**values) if "source" in values else None
        elif group is StatisticsOptions:
            made[parameter] = StatisticsOptions(**values) if options.get(_STATISTICS) else None
        elif parameter != "gates":
            made[parameter] = group(**values)
    return made


def plain_paths(source: Any, what: str) -> str | list[str]:
    """Return a path or several as text."""
    paths = [source] if isinstance(source, (str, os.PathLike)) else source
    if not isinstance(paths, (list, tuple)) or not all(
        isinstance(path, (str, os.PathLike)) for path in paths
    ):
        raise UsageError(f"{what}: a job is of files, which other processes open by their names")
    texts = [str(os.fspath(path)) for path in paths]
    _refuse_secrets(texts)
    return texts[0] if isinstance(source, (str, os.PathLike)) else texts


def _refuse_secrets(value: Any) -> None:
    for text in _texts(value):
        safe = without_secrets(text)
        if safe != text:
            raise UsageError(
                f"{safe}: the address holds a secret, and a job is kept in files: give it to each "
                "run, as storage_options (--storage-option) or in the environment"
            )


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, Sequence):
        for each in value:
            yield from _texts(each)


def _plain(declared: Option, value: Any) -> Any:
    if declared.kind.name == "object":
        return _place_of(declared.flag, value)
    if declared.kind.name == "numbers":  # keys may be of any type, or several values
        return [[_plain_value(declared, key), each] for key, each in value.items()]
    return _plain_value(declared, value)


def _plain_value(declared: Option, value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, os.PathLike):
        return str(os.fspath(value))
    if isinstance(value, Mapping):
        return {str(name): _plain_value(declared, each) for name, each in value.items()}
    if isinstance(value, Sequence):
        return [_plain_value(declared, each) for each in value]
    raise UsageError(f"{declared.flag}: a job is kept as JSON, which cannot hold {value!r}")


def _place_of(flag: str, value: Any) -> str:
    """Return MODULE:NAME of an object, under which other processes can import it."""
    for module in [*sys.modules.values()]:
        if getattr(module, "__name__", "__main__") == "__main__":
            continue
        for name, each in [*vars(module).items()]:
            if each is value:
                return f"{module.__name__}:{name}"
    raise UsageError(
        f"{flag}: other processes import it by its name: put it at the top of a module of its own"
    )


def _value(declared: Option, plain: Any) -> Any:
    if declared.kind.name == "object":
        return imported(declared.flag, plain)
    if declared.kind.name == "numbers":
        return {tuple(key) if isinstance(key, list) else key: each for key, each in plain}
    return plain
