"""The JSON Schemas of the documents that commands write: a summary, a comparison, a leaderboard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, get_args

from dpo_pipeline.comparison import (
    COMPARED,
    COMPARISON_VERSION,
    FLIP_COLUMNS,
    SUBSET_FIGURES,
    McNemar,
)
from dpo_pipeline.evaluation import DOCUMENT_VERSION, Finding, Intervals, Mark, Statistics
from dpo_pipeline.losses import DIALECTS, EVERY_LOSS, F_DIVERGENCES, Rewards
from dpo_pipeline.policies import CURVE_FIGURES, LEADERBOARD_VERSION, Change
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
from dpo_pipeline.statistics import DifferencesTest, Estimate
from dpo_pipeline.sums import TRL_METRICS, Summary, in_words

MAYBE_TEXT: Final[Schema] = {"type": ["string", "null"]}
FINITE: Final[Schema] = {"type": "number"}
SHARE: Final[Schema] = {"type": "number", "minimum": 0, "maximum": 1}
PROBABILITY: Final[Schema] = {**NUMBER, "minimum": 0, "maximum": 1}
_COUNTS_OF_SUBSETS: Final = ("n_valid", "only_a", "only_b")
VERSION: Final = described(TEXT, "Version of the package")
MAX_LOGP: Final = described(FINITE, "Largest log-probability accepted, nats")
GATES: Final[Mapping[str, Schema]] = {
    "gates": described(
        object_of(
            passed={"type": "boolean"},
            why=described(MAYBE_TEXT, "The reason, if there is no verdict; null if there is one"),
            marks=list_of(object_of(**properties_of(Mark))),
        ),
        "What gates say; there only if a command was given some",
    )
}


def summary_document() -> str:
    """Return the schema of what `Evaluation.to_dict` gives."""
    findings = nullable(list_of(reference_to(Finding)))
    return document(
        "dpo_pipeline summary document",
        definitions=(Intervals, Statistics, Finding),
        optional=GATES,
        document_version={"const": DOCUMENT_VERSION},
        dpo_pipeline=VERSION,
        source=TEXT,
        reference=described(
            MAYBE_TEXT, "Where the reference's log-probs came from, if not from the source"
        ),
        loss=described(TEXT, "The loss, or several with their weights"),
        beta={**FINITE, "minimum": 0},
        objective=objective(),
        max_logp=MAX_LOGP,
        columns={
            "type": "object",
            "description": "Canonical column name to input column",
            "additionalProperties": TEXT,
        },
        verdict=object_of(
            text=described(TEXT, "Whether the policy is better than a coin toss, in a sentence"),
            better_than_chance=described(
                {"type": ["boolean", "null"]},
                "Null where the interval of the accuracy holds 1/2, or the verdict is withheld",
            ),
            withheld=described(MAYBE_TEXT, "Why there is no verdict; null if there is one"),
            accuracy=described(
                nullable(reference_to(Estimate)), "Reward accuracy, a tie counting half"
            ),
        ),
        summary=described(_figures(), "Means over valid pairs, in nats but for reward_accuracy"),
        metrics=described(
            object_of(**dict.fromkeys(TRL_METRICS, NUMBER)), "The same figures under TRL's names"
        ),
        invalid=list_of(broken_rule()),
        subsets=nullable(ROWS),
        batches=nullable(ROWS),
        as_trainer=described(
            nullable(
                object_of(
                    trainer=TEXT,
                    batch_size=COUNT,
                    processes=COUNT,
                    n_steps=COUNT,
                    metrics=object_of(**dict.fromkeys(TRL_METRICS, NUMBER)),
                )
            ),
            "The figures as a trainer averages them over its steps; null unless asked for",
        ),
        histogram={
            "description": "Valid pairs by margin; lower and upper are a bin's edges in nats",
            **nullable(ROWS),
        },
        intervals=described(reference_to(Intervals), "The main figures with their intervals"),
        statistics=described(
            nullable(reference_to(Statistics)),
            "Intervals, baselines, calibration and the like; null unless asked for",
        ),
        findings=described(
            findings, "What is wrong or can mislead, gravest first; null without statistics"
        ),
        warnings=list_of(TEXT),
        made=list_of(TEXT, description="How pairs were made of completions, if they were"),
        not_looked_for=described(
            MAYBE_TEXT, "What warnings cannot tell of so few pairs; null if all was looked for"
        ),
    )


def comparison_document() -> str:
    """Return the schema of what `Comparison.to_dict` gives."""
    side = _side()
    difference = object_of(
        a=NUMBER,
        b=NUMBER,
        estimate=described(reference_to(Estimate), "B minus A"),
        p_value=PROBABILITY,
        test=TEXT,
        smallest_effect={**NUMBER, "minimum": 0},
    )
    subset = object_of(
        **{
            name: described(COUNT if name in _COUNTS_OF_SUBSETS else NUMBER, text)
            for name, text in SUBSET_FIGURES.items()
        }
    )
    # Beside these, a row has the columns of `by`.
    subset["additionalProperties"] = True
    key, *margins = FLIP_COLUMNS
    flips = list_of(object_of(**{key: {}}, **dict.fromkeys(margins, FINITE)))
    mcnemar = properties_of(McNemar, whole=COUNT)
    return document(
        "dpo_pipeline comparison document",
        definitions=(Estimate, DifferencesTest),
        optional=GATES,
        document_version={"const": COMPARISON_VERSION},
        dpo_pipeline=VERSION,
        on=described(TEXT, "The key that joined the sides"),
        loss=TEXT,
        beta={**FINITE, "exclusiveMinimum": 0},
        objective=objective(),
        max_logp=MAX_LOGP,
        level={**FINITE, "exclusiveMinimum": 0, "exclusiveMaximum": 1},
        verdict=described(TEXT, "The result in a sentence"),
        better={
            "enum": ["a", "b", None],
            "description": "The side whose accuracy is shown to be higher; null if none is",
        },
        a=side,
        b=side,
        n_common=COUNT,
        n_valid=COUNT,
        clusters=described(TEXT, "What was taken as independent"),
        n_clusters={"type": ["integer", "null"], "minimum": 1},
        differences=object_of(**{name: described(difference, in_words(name)) for name in COMPARED}),
        mcnemar=object_of(**mcnemar | {"exact": PROBABILITY, "mid_p": PROBABILITY}),
        subsets=nullable(list_of(subset)),
        heterogeneity=described(
            nullable(reference_to(DifferencesTest)),
            "The test that B minus A is the same in all subsets; null if not tested",
        ),
        gained=described(flips, "Pairs that B alone has right"),
        lost=described(flips, "Pairs that A alone has right"),
        findings=list_of(TEXT),
        incomparable=described(MAYBE_TEXT, "The finding that leaves nothing to compare"),
    )


def leaderboard_document() -> str:
    """Return the schema of what `Leaderboard.to_dict` gives."""
    names = list_of(TEXT)
    numbers = ("accuracy_low", "accuracy_high", "best_beta", "best_loss")
    tested = ("difference", "difference_low", "difference_high")
    means = ("loss", "reward_margin", "policy_chosen_logps", "policy_rejected_logps")
    policy = object_of(
        policy=described(TEXT, "What it is called"),
        accuracy=described(SHARE, "Of its pairs, a tie counting half"),
        **dict.fromkeys((*numbers, *tested, *means), NUMBER),
        **dict.fromkeys(("n_ties", "n_pairs"), COUNT),
        n_alone=described(COUNT, "Rows whose key no other policy has"),
        n_invalid=described(COUNT, "Common pairs that break a rule in it"),
        p_adjusted=PROBABILITY,
        may_be_best=described({"type": ["boolean", "null"]}, "Null without a verdict"),
        doubt=described(MAYBE_TEXT, "Why there is no verdict on it; null if there is one"),
        source=TEXT,
        losses=described(
            list_of(object_of(beta=FINITE, loss=NUMBER)), "Of the betas that were tried"
        ),
        doubts=list_of(object_of(**dict.fromkeys(("name", "title", "evidence", "advice"), TEXT))),
    )
    test = object_of(
        a=TEXT,
        b=TEXT,
        **dict.fromkeys(("difference", "low", "high"), NUMBER),
        p_adjusted=PROBABILITY,
    )
    step = object_of(
        step={"type": "integer"},
        policy=TEXT,
        **{
            f"{name}{end}": described(NUMBER, text) if not end else NUMBER
            for name, text in CURVE_FIGURES.items()
            for end in ("", "_low", "_high")
        },
    )
    curve = object_of(
        **dict.fromkeys(
            ("chosen_first_falls", "accuracy_last_rises"), nullable(reference_to(Change))
        ),
        level=SHARE,
        left_out=described(names, "Policies that are no steps"),
        steps=list_of(step),
    )
    return document(
        "dpo_pipeline leaderboard document",
        definitions=(Change,),
        optional=GATES,
        best_set=described(names, "The policies that may be the best; empty without a verdict"),
        winner=MAYBE_TEXT,
        winner_accuracy=described(NUMBER, "Less the luck of having been picked"),
        winner_optimism=NUMBER,
        winner_accuracy_low=described(
            NUMBER, "Lower end of an interval that holds with all others"
        ),
        verdict=described(TEXT, "The result in a sentence"),
        incomparable=described(MAYBE_TEXT, "The finding that leaves nothing to compare"),
        findings=names,
        not_looked_for=described(names, "What warnings could not tell"),
        document_version={"const": LEADERBOARD_VERSION},
        dpo_pipeline=VERSION,
        on=described(TEXT, "The key that joined the policies"),
        loss=TEXT,
        beta={**FINITE, "exclusiveMinimum": 0},
        objective=objective(),
        level={**FINITE, "exclusiveMinimum": 0, "exclusiveMaximum": 1},
        baseline=MAYBE_TEXT,
        n_common=COUNT,
        n_valid=COUNT,
        clusters=described(TEXT, "What was taken as independent"),
        n_clusters={"type": ["integer", "null"], "minimum": 1},
        policies=list_of(policy),
        tests=described(list_of(test), "B minus A of the accuracies, all in one family"),
        curve=described(nullable(curve), "Null where policies are no steps"),
    )


def _side() -> Schema:
    return object_of(
        source=TEXT,
        name=described(TEXT, "What the policy is called; empty if nothing says"),
        n_pairs=described(COUNT, "Rows read"),
        n_alone=described(COUNT, "Rows whose key the other side does not have"),
        n_invalid=described(COUNT, "Common pairs that break a rule on this side"),
        summary=described(_figures(), "Means over the common pairs that are valid on both sides"),
        invalid=described(
            list_of(broken_rule()), "Of the whole source; empty where no common pair is invalid"
        ),
        borrowed={
            "type": "object",
            "additionalProperties": TEXT,
            "description": "Columns that were taken from elsewhere, and from where",
        },
    )


def _figures() -> Schema:
    return object_of(**properties_of(Summary, whole=COUNT))


def broken_rule() -> Schema:
    """Return the schema of a rule that rows break."""
    return object_of(
        rule=described(TEXT, "column.rule"),
        requirement=TEXT,
        count={**COUNT, "minimum": 1},
        first=list_of(
            object_of(
                file=MAYBE_TEXT,
                row=COUNT,
                pair_id={"description": "The pair's id; null where there is none"},
                value={"description": "null, a number or text; nan, inf and -inf are text"},
            ),
            description="The first rows that break the rule, in the order of the input",
        ),
    )


def objective() -> Schema:
    """Return the schema of a loss in full."""
    term = object_of(
        loss={"enum": list(EVERY_LOSS)},
        weight={**FINITE, "exclusiveMinimum": 0},
        reference_free={"type": "boolean"},
        per_token={"type": "boolean"},
        f_divergence={"enum": list(F_DIVERGENCES)},
    )
    # Beside these, a term has the parameters of its loss.
    term["additionalProperties"] = FINITE
    return described(
        object_of(
            beta={**FINITE, "minimum": 0},
            rewards={"enum": list(get_args(Rewards))},
            dialect={"enum": [None, *DIALECTS]},
            ld_alpha=SHARE,
            humanline={"type": "boolean"},
            terms={"type": "array", "minItems": 1, "items": term},
        ),
        "The loss in full: its terms with all their arguments",
    )
