"""The published contracts: every table that goes in or out, for systems that are not Python.

They follow the Open Data Contract Standard v3, as YAML, and are made from the column roles and the
rules. A test compares the files under `schemas/` with what this room makes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from dpo_pipeline.columns import (
    ALL_LOGPS,
    BATCH_MEANS,
    CONTRADICTING,
    INVALID,
    LOGP_ROLES,
    POLICY,
    ROLES,
    SCORED,
    SCORED_COMPLETIONS,
    SELECTED,
    Added,
    Needs,
    Role,
)
from dpo_pipeline.contract import rules_of
from dpo_pipeline.published.completion_schemas import (
    completions_comparison_document,
    completions_summary_document,
    ranking_document,
)
from dpo_pipeline.published.document_schemas import (
    comparison_document,
    leaderboard_document,
    summary_document,
)
from dpo_pipeline.published.reference_tables import reference_page

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
    "label": {"logicalType": "boolean", "physicalType": "BOOLEAN"},
    "rank": {"logicalType": "number", "physicalType": "DOUBLE"},
    "score": {"logicalType": "number", "physicalType": "DOUBLE"},
    "offset": {"logicalType": "number", "physicalType": "DOUBLE"},
    "probability": {"logicalType": "number", "physicalType": "DOUBLE"},
    "kl_logp": {"logicalType": "number", "physicalType": "DOUBLE"},
}


_PURPOSES: Final = {
    "preference_pairs": "Preference pairs that go in: one row a pair, with the log-probabilities "
    "of its chosen and rejected completion under the policy and under the frozen reference. "
    "Columns that are not named here pass through.",
    "completions": "Completions that go in: one row a completion, with its log-probability under "
    "the policy (or the score of a reward model) and under the frozen reference, if there is one, "
    "and what says which completion of a prompt is better: label, rank or score. Columns that are "
    "not named here pass through.",
    "scored_pairs": "Valid preference pairs with their implicit rewards, margin and loss "
    "(arXiv 2305.18290, Eq. 7), in the order of the input. Input columns pass through unless "
    "they were not kept.",
    "scored_completions": "Valid completions with their implicit rewards and loss, in the order of "
    "the input; those of a listwise loss prompt by prompt. Input columns pass through unless they "
    "were not kept.",
    "selected_pairs": "Valid preference pairs that a rule keeps (or leaves out), with what ranks "
    "them, in the order of the input. Input columns pass through.",
    "contradicting_pairs": "Valid preference pairs that repeat or contradict others, in the order "
    "of the input. Input columns pass through.",
    "invalid_pairs": "Preference pairs that break the contract, as they came, with the rules that "
    "they break, in the order of the input.",
    "batch_means": "Means over the valid pairs of each batch. A batch is a run of consecutive "
    "input rows, or (then `batch` has that column's values and type) the rows with one value of a "
    "column.",
}
_GOING_OUT: Final = {
    "scored_pairs": SCORED,
    "scored_completions": SCORED_COMPLETIONS,
    "selected_pairs": SELECTED,
    "contradicting_pairs": CONTRADICTING,
    "invalid_pairs": INVALID,
    "batch_means": BATCH_MEANS,
}
"""The columns of each table that goes out."""


def published() -> dict[str, str]:
    """Return the text of each published file by its name."""
    contracts = {
        "preference_pairs": _taken("preference_pairs", ALL_LOGPS, LOGP_ROLES),
        "completions": _taken("completions", Needs(row="completion"), [POLICY]),
    }
    for name, columns in _GOING_OUT.items():
        contracts[name] = _contract(name, [_added(column) for column in columns])
    return {f"{name}.odcs.yaml": text for name, text in contracts.items()} | {
        "README.md": reference_page(),
        "summary.schema.json": summary_document(),
        "comparison.schema.json": comparison_document(),
        "leaderboard.schema.json": leaderboard_document(),
        "ranking.schema.json": ranking_document(),
        "completions_summary.schema.json": completions_summary_document(),
        "completions_comparison.schema.json": completions_comparison_document(),
    }


def _taken(name: str, needs: Needs, required: Sequence[Role]) -> str:
    """Return the contract of a table that goes in."""
    roles = [role for role in ROLES.values() if needs.row in role.of]
    optional = [_input(role, needs) for role in roles if role not in required]
    for each in optional:
        each["required"] = False
    return _contract(
        name,
        [_input(role, needs) for role in required],
        customProperties=[
            {"property": "optionalColumns", "value": optional},
            {
                "property": "columnAliases",
                "value": {role.name: list(role.aliases) for role in roles if role.aliases},
            },
        ],
    )


def _contract(name: str, columns: Sequence[Mapping[str, Any]], **more: Sequence[Any]) -> str:
    """Return the contract of a table as YAML; `more` are further parts of it."""
    table = {
        "name": name,
        "logicalType": "object",
        "physicalType": "parquet",
        "properties": columns,
    }
    document = {
        "apiVersion": _STANDARD,
        "kind": "DataContract",
        "id": f"dpo_pipeline.{name}",
        "name": name,
        "version": CONTRACT_VERSION,
        "status": "active",
        "description": {"purpose": _PURPOSES[name]},
        "schema": [table],
        **more,
    }
    return "\n".join(_yaml(document, "")) + "\n"


def _input(role: Role, needs: Needs) -> dict[str, Any]:
    column: dict[str, Any] = {
        "name": role.name,
        **_INPUT_TYPES[role.kind],
        "description": _described(role.description, role.unit),
        "required": role.required,
    }
    rules = rules_of(role, needs=needs)
    # The bounds stand among the rules alone: a checker that turned logicalTypeOptions into a
    # maximum failed on the first NaN instead of counting it.
    select = "SELECT COUNT(*) FROM {object} WHERE "
    if rules:
        column["quality"] = [
            {
                "name": f"{role.name}.{rule.name}",
                "description": rule.text,
                "type": "sql",
                "query": select + rule.broken_sql.format(column=role.name),
                "mustBe": 0,
                "dimension": "conformity",
            }
            for rule in rules
        ]
    return column


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
