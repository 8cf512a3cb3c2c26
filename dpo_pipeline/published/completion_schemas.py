"""The JSON Schemas of documents of completions and of rankings."""

from __future__ import annotations

from typing import Final

from dpo_pipeline.published.document_schemas import (
    FINITE,
    GATES,
    MAX_LOGP,
    MAYBE_TEXT,
    PROBABILITY,
    VERSION,
    broken_rule,
    objective,
)
from dpo_pipeline.published.json_schema import (
    COUNT,
    NUMBER,
    ROWS,
    TEXT,
    Schema,
    described,
    document,
    list_of,
    nullable,
    object_of,
    properties_of,
    reference_to,
)
from dpo_pipeline.ranking import RANKING_FIGURES
from dpo_pipeline.statistics import Estimate
from dpo_pipeline.unpaired import (
    AUC,
    COMPARED_COMPLETIONS,
    KTO_METRICS,
    CompletionSide,
    CompletionSummary,
)

_LEVEL: Final[Schema] = {**FINITE, "exclusiveMinimum": 0, "exclusiveMaximum": 1}
_WARNINGS: Final = list_of(TEXT)


def completions_summary_document() -> str:
    """Return the schema of what `evaluate` writes of a loss of completions."""
    plain = dict.fromkeys(("value", "standard_error", "low", "high", "level"), NUMBER)
    estimate = object_of(**plain, method=MAYBE_TEXT, n=COUNT)
    area = object_of(**plain, method=MAYBE_TEXT, n=COUNT, error=NUMBER)
    return document(
        "dpo_pipeline summary document of completions",
        definitions=(),
        optional=GATES,
        document_version={"const": 1},
        warnings=_WARNINGS,
        dpo_pipeline=VERSION,
        source=TEXT,
        reference=MAYBE_TEXT,
        row={"const": "completion"},
        loss=TEXT,
        beta={**FINITE, "minimum": 0},
        objective=objective(),
        max_logp=MAX_LOGP,
        columns={"type": "object", "additionalProperties": TEXT},
        summary=described(_summary(), "Means over valid completions, of a listwise loss prompts"),
        metrics=described(
            object_of(**dict.fromkeys(KTO_METRICS, NUMBER)),
            "The same figures under the names of TRL's KTOTrainer",
        ),
        auc=described(
            nullable(area),
            "Chance that a desirable completion has a larger reward than an undesirable one",
        ),
        intervals={
            "type": "object",
            "description": "Loss, rewards and margin with their intervals, if asked for",
            "additionalProperties": estimate,
        },
        invalid=list_of(broken_rule()),
        not_looked_for=MAYBE_TEXT,
        subsets=nullable(ROWS),
    )


def completions_comparison_document() -> str:
    """Return the schema of what `compare` writes of an unpaired loss."""
    difference = object_of(
        a=NUMBER,
        b=NUMBER,
        estimate=described(reference_to(Estimate), "B minus A"),
        p_value=PROBABILITY,
    )
    side = object_of(**properties_of(CompletionSide, whole=COUNT) | {"summary": _summary()})
    return document(
        "dpo_pipeline comparison document of completions",
        definitions=(Estimate,),
        optional=GATES,
        document_version={"const": 1},
        dpo_pipeline=VERSION,
        row={"const": "completion"},
        on=described(TEXT, "The key that joined the sides"),
        loss=TEXT,
        beta={**FINITE, "exclusiveMinimum": 0},
        objective=objective(),
        level=_LEVEL,
        verdict=described(TEXT, "The result in a sentence"),
        better={"enum": ["a", "b", None], "description": f"By the {AUC} alone; null if none is"},
        a=side,
        b=side,
        n_common=COUNT,
        n_valid=COUNT,
        n_clusters=COUNT,
        is_by_prompt={"type": "boolean"},
        differences={
            "type": "object",
            "properties": dict.fromkeys(COMPARED_COMPLETIONS, difference),
            "additionalProperties": False,
        },
        findings=list_of(TEXT),
        incomparable=described(MAYBE_TEXT, "The finding that leaves nothing to compare"),
    )


def ranking_document() -> str:
    """Return the schema of what `rank` writes."""
    estimate = reference_to(Estimate)
    scores = {"type": "object", "additionalProperties": NUMBER}
    return document(
        "dpo_pipeline ranking document",
        definitions=(Estimate,),
        source=TEXT,
        objective=objective(),
        preference={"enum": ["rank", "score", "label"]},
        level=_LEVEL,
        **dict.fromkeys(
            ("n_completions", "n_invalid", "n_prompts", "n_alone", "n_undecided", "n_without_tau"),
            COUNT,
        ),
        figures=object_of(
            **{
                name: described(nullable(estimate), text)
                for name, (text, _) in RANKING_FIGURES.items()
            }
        ),
        best_of={
            "type": "object",
            "description": "n to the expected label or score of the best of n",
            "additionalProperties": estimate,
        },
        n_drawn_from=COUNT,
        subsets=nullable(ROWS),
        rewardbench=nullable(
            object_of(score=NUMBER, subsets=scores, ties=scores, missing=list_of(TEXT))
        ),
        notes=list_of(TEXT),
        not_looked_for=MAYBE_TEXT,
        warnings=_WARNINGS,
        invalid=list_of(broken_rule()),
    )


def _summary() -> Schema:
    return object_of(**properties_of(CompletionSummary, whole=COUNT))
