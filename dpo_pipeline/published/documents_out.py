"""The JSON Schema of the comparison document, from the classes and columns that it is made of."""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Final, Union, get_args, get_origin, get_type_hints

import polars as pl

from dpo_pipeline.comparison import (
    COMPARED,
    COMPARISON_VERSION,
    FLIP_COLUMNS,
    SUBSET_FIGURES,
    McNemar,
)
from dpo_pipeline.evaluation import SEVERITIES, Finding, Statistics
from dpo_pipeline.sums import Summary

_NOT_WRITTEN: Final = ("gathered",)
_PLAIN: Final[Mapping[Any, dict[str, Any]]] = {
    # What is not finite is null in the document.
    float: {"type": ["number", "null"]},
    int: {"type": "integer"},
    str: {"type": "string"},
    pl.DataFrame: {"type": "array", "items": {"type": "object"}},
}


def definitions() -> dict[str, Any]:
    """Return the schema of each class in them by its name, for `$defs`."""
    found: dict[str, Any] = {}
    for kind in (Statistics, Finding):
        _define(kind, found)
    found[Finding.__name__]["properties"]["severity"] = {"enum": list(SEVERITIES)}
    return found


def statistics_schema() -> dict[str, Any]:
    """Return the schema of `statistics`: null unless asked for."""
    described = "Intervals, baselines, calibration and the like; null unless asked for"
    return {**_nullable(_of(Statistics)), "description": described}


def findings_schema() -> dict[str, Any]:
    """Return the schema of `findings`: null without statistics."""
    described = "What is wrong or can mislead, gravest first; null without statistics"
    findings = {"type": "array", "items": _of(Finding)}
    return {**_nullable(findings), "description": described}


def _define(kind: Any, found: dict[str, Any]) -> None:
    """Add the schema of a class, and of those that its fields name."""
    hints = get_type_hints(kind)
    names = [field.name for field in fields(kind) if field.name not in _NOT_WRITTEN]
    found[kind.__name__] = {
        "type": "object",
        "properties": {name: _of(hints[name]) for name in names},
        "required": names,
        "additionalProperties": False,
    }
    for each in _classes(hints[name] for name in names):
        if each.__name__ not in found:
            _define(each, found)


def _classes(kinds: Iterable[Any]) -> Iterator[Any]:
    for kind in kinds:
        if is_dataclass(kind):
            yield kind
        yield from _classes(get_args(kind))


def _of(kind: Any) -> dict[str, Any]:
    """Return the schema of values of a type, as `Statistics.to_dict` writes them."""
    arguments = get_args(kind)
    if get_origin(kind) in {Union, types.UnionType}:
        (inner,) = (each for each in arguments if each is not type(None))
        return _nullable(_of(inner))
    if get_origin(kind) is Mapping:
        return {"type": "object", "additionalProperties": _of(arguments[1])}
    if get_origin(kind) is tuple:
        return {"type": "array", "items": _of(arguments[0])}
    if is_dataclass(kind):
        return {"$ref": f"#/$defs/{getattr(kind, '__name__', '')}"}
    return dict(_PLAIN.get(kind, {}))


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    if schema.get("type") == ["number", "null"]:
        return schema
    return {"anyOf": [schema, {"type": "null"}]}


_NUMBER: Final = {"type": ["number", "null"]}
_COUNT: Final = {"type": "integer", "minimum": 0}
_TEXT: Final = {"type": "string"}
_COUNTS_OF_SUBSETS: Final = ("n_valid", "only_a", "only_b")


def comparison_document(
    objective: Mapping[str, Any], broken_rule: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the schema of what `Comparison.to_dict` gives.

    Args:
        objective: The schema of an objective.
        broken_rule: The schema of a rule that rows broke.
    """
    side = _object(
        source=_TEXT,
        n_pairs={**_COUNT, "description": "Rows read"},
        n_alone={**_COUNT, "description": "Rows whose key the other side does not have"},
        n_invalid={**_COUNT, "description": "Common pairs that break a rule on this side"},
        summary={
            **_object(**{f.name: _COUNT if f.type == "int" else _NUMBER for f in fields(Summary)}),
            "description": "Means over the common pairs that are valid on both sides",
        },
        invalid={
            "type": "array",
            "items": broken_rule,
            "description": "Of the whole source; empty where no common pair is invalid",
        },
        borrowed={
            "type": "object",
            "additionalProperties": _TEXT,
            "description": "Columns that were taken from elsewhere, and from where",
        },
    )
    difference = _object(
        a=_NUMBER,
        b=_NUMBER,
        estimate={"$ref": "#/$defs/Estimate", "description": "B minus A"},
        p_value=_probability(),
        test=_TEXT,
        smallest_effect={**_NUMBER, "minimum": 0},
    )
    mcnemar = {f.name: {"type": "boolean"} if f.type == "bool" else _COUNT for f in fields(McNemar)}
    mcnemar |= {"exact": _probability(), "mid_p": _probability()}
    subset = _object(
        **{
            name: {**(_COUNT if name in _COUNTS_OF_SUBSETS else _NUMBER), "description": text}
            for name, text in SUBSET_FIGURES.items()
        }
    )
    # Beside these, a row has the columns of `by`.
    subset["additionalProperties"] = True
    key, *margins = FLIP_COLUMNS
    flips = {
        "type": "array",
        "items": _object(**{key: {}, **{name: {"type": "number"} for name in margins}}),
    }
    named = definitions()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "dpo_pipeline comparison document",
        **_object(
            document_version={"const": COMPARISON_VERSION},
            dpo_pipeline={**_TEXT, "description": "Version of the package"},
            on={**_TEXT, "description": "The key that joined the sides"},
            loss=_TEXT,
            beta={"type": "number", "exclusiveMinimum": 0},
            objective=objective,
            max_logp={"type": "number", "description": "Largest log-probability accepted, nats"},
            level={"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
            verdict={**_TEXT, "description": "The result in a sentence"},
            better={
                "enum": ["a", "b", None],
                "description": "The side whose accuracy is shown to be higher; null if none is",
            },
            a=side,
            b=side,
            n_common=_COUNT,
            n_valid=_COUNT,
            clusters={**_TEXT, "description": "What was taken as independent"},
            n_clusters={"type": ["integer", "null"], "minimum": 1},
            differences=_object(
                **{name: {**difference, "description": text} for name, text in COMPARED.items()}
            ),
            mcnemar=_object(**mcnemar),
            subsets={"anyOf": [{"type": "array", "items": subset}, {"type": "null"}]},
            gained={**flips, "description": "Pairs that B alone has right"},
            lost={**flips, "description": "Pairs that A alone has right"},
            findings={"type": "array", "items": _TEXT},
            incomparable={
                "type": ["string", "null"],
                "description": "The finding that leaves nothing to compare",
            },
        ),
        "$defs": {name: named[name] for name in ("Estimate", "Interval")},
    }


def _probability() -> dict[str, Any]:
    return {**_NUMBER, "minimum": 0, "maximum": 1}


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
