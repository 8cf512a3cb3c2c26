"""What the options of a command mean for the library."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from dpo_pipeline import defaults
from dpo_pipeline.errors import UsageError
from dpo_pipeline.sources import FORMATS, guess

if TYPE_CHECKING:
    from dpo_pipeline.evaluation import Gate

_OF_THE_COMMAND: Final = ("dry_run", "json", "quiet")
"""Options that the library does not take."""


def library_arguments(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the library's arguments for what the command line gave.

    Raises:
        UsageError: A text is not of the form that its option has.
    """
    arguments = {name: value for name, value in options.items() if name not in _OF_THE_COMMAND}
    arguments["columns"] = mapping_of("--column", arguments.pop("column"))
    reference_columns = mapping_of("--reference-column", arguments.pop("reference_column"))
    arguments["reference_columns"] = reference_columns or None
    if "loss_arg" in arguments:
        pairs = [_loss_argument(text) for text in arguments.pop("loss_arg")]
        arguments["loss_args"] = dict(pairs)
        if len(arguments["loss_args"]) < len(pairs):
            raise UsageError("--loss-arg: an argument is there twice")
        is_sweep = isinstance(arguments["beta"], tuple)
        arguments |= _swept(arguments) if is_sweep else {"loss": _weights(arguments["loss"])}
    for name in ("by", "keep"):
        if name in arguments:
            arguments[name] = list(arguments[name]) or None
    if arguments["contract"] is not None:
        arguments["contract"] = _imported("--contract", arguments["contract"])
    arguments.update(_store(arguments))
    arguments.update(_engine(arguments))
    return arguments


def with_format_settings(pairs: str, arguments: dict[str, Any]) -> None:
    """Put in what gives the figures of a format's own tool, where nothing else was asked for.

    Raises:
        UsageError: The command has no loss, and the format has too little without one.
    """
    found = FORMATS[arguments["format"] or guess(pairs)]
    if not found.has_reference and "loss" not in arguments:
        raise UsageError(
            f"{pairs}: {found.name} has scores and no log-probs, which are what the contract is "
            "of: use evaluate or sweep"
        )
    given = click.get_current_context().get_parameter_source
    if given("max_logp") is click.core.ParameterSource.DEFAULT:
        arguments["max_logp"] = found.settings.get("max_logp", arguments["max_logp"])
    if "dialect" in arguments and arguments["dialect"] is None:
        arguments["dialect"] = found.settings.get("dialect")
    if arguments.get("loss") in (defaults.LOSS_NAME, {defaults.LOSS_NAME: 1.0}):
        arguments["loss_args"] = {**found.settings.get("loss_args", {}), **arguments["loss_args"]}


def with_statistics(arguments: dict[str, Any]) -> Gate:
    """Put in what is asked of statistics; take out, and return, the gate.

    Raises:
        UsageError: A text is not of the form that its option has, or there is no such figure.
    """
    from dpo_pipeline.evaluation import Gate
    from dpo_pipeline.options import StatisticsOptions

    gate = Gate(
        fail_under=_numbers("--fail-under", arguments.pop("fail_under")),
        fail_over=_numbers("--fail-over", arguments.pop("fail_over")),
        on_interval=arguments.pop("fail_on_interval"),
    )
    level, judge = arguments.pop("level"), arguments.pop("judge")
    weights = _numbers("--weight", arguments.pop("weight"))
    sections = arguments.pop("sections")
    gate.check_asked(by=arguments["by"], weights=weights, sections=sections)
    is_asked = arguments["statistics"] or gate.needs_statistics
    if is_asked or level is not None or judge or weights or sections:
        several = len(arguments["by"] or ()) > 1
        arguments["statistics"] = StatisticsOptions(
            level=defaults.CONFIDENCE_LEVEL if level is None else level,
            judge=judge,
            weights={
                tuple(name.split(",")) if several else name: weight
                for name, weight in weights.items()
            },
            sections=sections,
        )
    return gate


def _numbers(option: str, texts: Sequence[str]) -> dict[str, float]:
    """Return name to number, from NAME=VALUE; the name may hold an equals sign."""
    numbers: dict[str, float] = {}
    for text in texts:
        name, _, value = text.rpartition("=")
        if name in numbers:
            raise UsageError(f"{option} {name} is there twice")
        try:
            numbers[name] = float(value)
        except ValueError:
            name = ""
        if not name:
            raise UsageError(f"{option} takes NAME=VALUE with a number, found {text!r}")
    return numbers


def mapping_of(option: str, texts: Sequence[str]) -> dict[str, str]:
    """Return role to column, from ROLE=NAME."""
    mapping = {}
    for text in texts:
        role, equals, name = text.partition("=")
        if not equals or not name:
            raise UsageError(f"{option} takes ROLE=NAME, found {text!r}")
        mapping[role] = name
    return mapping


def _store(arguments: dict[str, Any]) -> dict[str, Any]:
    if "storage_option" not in arguments:
        return {}
    pairs = [_storage_option(text) for text in arguments.pop("storage_option")]
    provider = arguments["credential_provider"]
    return {
        "storage_options": dict(pairs) or None,
        "credential_provider": "auto"
        if provider is None
        else _imported("--credential-provider", provider),
    }


def _storage_option(text: str) -> tuple[str, str | int]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError(f"--storage-option takes NAME=VALUE, found {text!r}")
    # Of all that Polars takes, these alone must be numbers.
    is_count = name == "max_retries" or name.startswith("retry_") or name == "file_cache_ttl"
    return name, int(value) if is_count and value.isdigit() else value


def _engine(arguments: dict[str, Any]) -> dict[str, Any]:
    if "engine" not in arguments:
        return {}
    address = arguments.pop("ray_address")
    if address is None:
        return {}
    if arguments["engine"] != "ray":
        raise UsageError("--ray-address is of --engine ray: give both")
    from dpo_pipeline.engine import RayExecutor

    return {"engine": RayExecutor(address=address)}


def _swept(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "beta": list(arguments["beta"]) or None,
        "loss": list(arguments["loss"]) or defaults.LOSS_NAME,
    }


def _weights(texts: Sequence[str]) -> str | dict[str, float]:
    weights: dict[str, float] = {}
    for text in texts or (defaults.LOSS_NAME,):
        name, equals, weight = text.partition("=")
        if name in weights:
            raise UsageError(f"--loss {name} is there twice")
        try:
            weights[name] = float(weight) if equals else 1.0
        except ValueError:
            raise UsageError(f"--loss takes NAME or NAME=WEIGHT, found {text!r}") from None
    return weights


def _loss_argument(text: str) -> tuple[str, float | bool | str]:
    name, equals, value = text.partition("=")
    if not equals or not value:
        raise UsageError(f"--loss-arg takes NAME=VALUE, found {text!r}")
    if value.lower() in ("true", "false"):
        return name, value.lower() == "true"
    try:
        return name, float(value)
    except ValueError:
        return name, value


def _imported(option: str, place: str) -> Any:
    from importlib import import_module

    module, colon, name = place.partition(":")
    if not colon:
        raise UsageError(f"{option} takes MODULE:NAME, found {place!r}")
    sys.path.insert(0, os.getcwd())
    try:
        found = getattr(import_module(module), name)
    except Exception as error:  # whatever the user's module raises
        raise UsageError(f"{option} {place}: {type(error).__name__}: {error}") from error
    return found
