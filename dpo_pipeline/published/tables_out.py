"""The published contracts: every table that goes in or out, for systems that are not Python.

The tables are written in the Open Data Contract Standard v3 (as YAML), the documents of a summary
and of a comparison as JSON Schemas. All of it is generated from the column roles, the rules and the
results' fields; the files under `schemas/` are this module's output, and a test compares them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, Final, get_args

from dpo_pipeline.columns import BATCH_MEANS, INVALID, LOGP_ROLES, ROLES, SCORED, Added, Role
from dpo_pipeline.contract import ValueRule, rules_of
from dpo_pipeline.evaluation import DOCUMENT_VERSION
from dpo_pipeline.losses import DIALECTS, F_DIVERGENCES, LOSSES, Rewards
from dpo_pipeline.published.documents_out import (
    comparison_document,
    definitions,
    findings_schema,
    statistics_schema,
)
from dpo_pipeline.sums import TRL_METRICS, Summary

CONTRACT_VERSION: Final = "1.0.0"
"""Changes as a semantic version when a published table does."""

_STANDARD: Final = "v3.1.0"
_PHYSICAL: Final = {"integer": "BIGINT", "number": "DOUBLE", "string": "VARCHAR"}
_INPUT_TYPES: Final[Mapping[str, Mapping[str, Any]]] = {
    # Any float or integer is taken. A checker that read a bare "number" as a decimal could
    # not count a NaN.
    "logp": {"logicalType": "number", "physicalType": "DOUBLE"},
    "count": {"logicalType": "integer", "physicalType": "BIGINT"},
    "key": {},  # of any type
    "tokens": {"logicalType": "array", "items": {"logicalType": "number"}},
    "mask": {"logicalType": "array", "items": {"logicalType": "boolean"}},
}


def published() -> dict[str, str]:
    """Return the text of each published file by its name."""
    return {name: make() for name, make in PUBLISHED.items()}


def _pairs() -> str:
    optional = [role for role in ROLES.values() if not role.required]
    return _contract(
        "preference_pairs",
        "Preference pairs that go in: one row a pair, with the log-probabilities of its chosen "
        "and rejected completion under the policy and under the frozen reference. Columns that "
        "are not named here pass through.",
        [_input(role) for role in LOGP_ROLES],
        more=[
            _custom("optionalColumns", [_input(role) for role in optional]),
            _custom(
                "columnAliases",
                {role.name: list(role.aliases) for role in ROLES.values() if role.aliases},
            ),
        ],
    )


def _scored() -> str:
    return _contract(
        "scored_pairs",
        "Valid preference pairs with their implicit rewards, margin and loss "
        "(arXiv 2305.18290, Eq. 7), in the order of the input. Input columns pass through unless "
        "they were not kept.",
        [_added(column) for column in SCORED],
    )


def _invalid() -> str:
    return _contract(
        "invalid_pairs",
        "Preference pairs that break the contract, as they came, with the rules that they break, "
        "in the order of the input.",
        [_added(column) for column in INVALID],
    )


def _batches() -> str:
    return _contract(
        "batch_means",
        "Means over the valid pairs of each batch. A batch is a run of consecutive input rows, or "
        "(then `batch` has that column's values and type) the rows with one value of a column.",
        [_added(column) for column in BATCH_MEANS],
    )


def _summary() -> str:
    number = {"type": ["number", "null"]}
    figures = {
        field.name: {"type": "integer", "minimum": 0} if field.type == "int" else number
        for field in fields(Summary)
    }
    row = {"type": "array", "items": {"type": "object"}}
    document = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "dpo_pipeline summary document",
        **_object(
            document_version={"const": DOCUMENT_VERSION},
            dpo_pipeline={"type": "string", "description": "Version of the package"},
            source={"type": "string"},
            reference={
                "type": ["string", "null"],
                "description": "Where the reference's log-probs came from, if not from the source",
            },
            loss={"type": "string", "description": "The loss, or several with their weights"},
            beta={"type": "number", "minimum": 0},
            objective=_objective(),
            max_logp={"type": "number", "description": "Largest log-probability accepted, nats"},
            columns={
                "type": "object",
                "description": "Canonical column name to input column",
                "additionalProperties": {"type": "string"},
            },
            summary={
                **_object(**figures),
                "description": "Means over valid pairs, in nats but for reward_accuracy",
            },
            metrics={
                **_object(**dict.fromkeys(TRL_METRICS, number)),
                "description": "The same figures under TRL's names",
            },
            invalid={"type": "array", "items": _broken_rule()},
            subsets={"anyOf": [row, {"type": "null"}]},
            batches={"anyOf": [row, {"type": "null"}]},
            histogram={
                "description": "Valid pairs by margin; lower and upper are a bin's edges in nats",
                "anyOf": [row, {"type": "null"}],
            },
            statistics=statistics_schema(),
            findings=findings_schema(),
            warnings={"type": "array", "items": {"type": "string"}},
        ),
        "$defs": definitions(),
    }
    return json.dumps(document, indent=2) + "\n"


def _comparison() -> str:
    document = comparison_document(_objective(), _broken_rule())
    return json.dumps(document, indent=2) + "\n"


def _broken_rule() -> dict[str, Any]:
    return _object(
        rule={"type": "string", "description": "column.rule"},
        requirement={"type": "string"},
        count={"type": "integer", "minimum": 1},
        first={
            "type": "array",
            "description": "The first rows that break the rule, in the order of the input",
            "items": _object(
                file={"type": ["string", "null"]},
                row={"type": "integer", "minimum": 0},
                value={"description": "null, a number or text; nan, inf and -inf are text"},
            ),
        },
    )


def _objective() -> dict[str, Any]:
    term = _object(
        loss={"enum": list(LOSSES)},
        weight={"type": "number", "exclusiveMinimum": 0},
        reference_free={"type": "boolean"},
        per_token={"type": "boolean"},
        f_divergence={"enum": list(F_DIVERGENCES)},
    )
    # Beside these, a term has the parameters of its loss.
    term["additionalProperties"] = {"type": "number"}
    return {
        **_object(
            beta={"type": "number", "minimum": 0},
            rewards={"enum": list(get_args(Rewards))},
            dialect={"enum": [None, *DIALECTS]},
            ld_alpha={"type": "number", "minimum": 0, "maximum": 1},
            humanline={"type": "boolean"},
            terms={"type": "array", "minItems": 1, "items": term},
        ),
        "description": "The loss in full: its terms with all their arguments",
    }


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


PUBLISHED: Final[Mapping[str, Callable[[], str]]] = {
    "preference_pairs.odcs.yaml": _pairs,
    "scored_pairs.odcs.yaml": _scored,
    "invalid_pairs.odcs.yaml": _invalid,
    "batch_means.odcs.yaml": _batches,
    "summary.schema.json": _summary,
    "comparison.schema.json": _comparison,
}


def _contract(
    name: str, purpose: str, columns: Sequence[Mapping[str, Any]], *, more: Sequence[Any] = ()
) -> str:
    document = {
        "apiVersion": _STANDARD,
        "kind": "DataContract",
        "id": f"dpo_pipeline.{name}",
        "name": name,
        "version": CONTRACT_VERSION,
        "status": "active",
        "description": {"purpose": purpose},
        "schema": [
            {
                "name": name,
                "logicalType": "object",
                "physicalType": "parquet",
                "properties": list(columns),
            }
        ],
    }
    if more:
        document["customProperties"] = list(more)
    return "\n".join(_yaml(document, "")) + "\n"


def _custom(name: str, value: Any) -> dict[str, Any]:
    return {"property": name, "value": value}


def _input(role: Role) -> dict[str, Any]:
    column: dict[str, Any] = {
        "name": role.name,
        **_INPUT_TYPES[role.kind],
        "description": _described(role.description, role.unit),
        "required": role.required,
    }
    rules = rules_of(role)
    # The bounds stand among the rules alone: a checker that turned logicalTypeOptions into a
    # maximum failed on the first NaN instead of counting it.
    if rules:
        column["quality"] = [_quality(role, rule) for rule in rules]
    return column


def _quality(role: Role, rule: ValueRule) -> dict[str, Any]:
    return {
        "name": f"{role.name}.{rule.name}",
        "description": rule.text,
        "type": "sql",
        "query": "SELECT COUNT(*) FROM {object} WHERE " + rule.broken_sql.format(column=role.name),
        "mustBe": 0,
        "dimension": "conformity",
    }


def _added(column: Added) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": column.name,
        "logicalType": column.type,
        "description": _described(column.description, column.unit),
        "required": not column.nullable,
    }
    if column.type == "array":
        entry["items"] = {"logicalType": "string"}
    else:
        entry["physicalType"] = _PHYSICAL[column.type]
    return entry


def _described(text: str, unit: str | None) -> str:
    return f"{text} ({unit})" if unit else text


def _yaml(value: Any, indent: str) -> Iterator[str]:
    """Write plain data as YAML. Strings are written as JSON, which is YAML too."""
    items: Sequence[tuple[str, Any]]
    if isinstance(value, Mapping):
        items = [(f"{key}:", each) for key, each in value.items()]
    else:
        items = [("-", each) for each in value]
    for head, each in items:
        if isinstance(each, (Mapping, list)) and each:
            inner = list(_yaml(each, indent + "  "))
            if head == "-":
                yield f"{indent}- {inner[0].lstrip()}"
                yield from inner[1:]
            else:
                yield indent + head
                yield from inner
        else:
            yield f"{indent}{head} {json.dumps(each)}"
