"""What is surely wrong with log-probs of completions, and what is not looked for."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from dpo_pipeline import Pairs, check, evaluate, rank

N = 120
WORDS = {
    "good": "bad",
    "YES": "no",
    "thumbs_up": "thumbs-down",
    "Positive": "negative",
    "desirable": "undesirable",
    "accepted": "rejected",
    "correct ": "incorrect",
}


@pytest.fixture(scope="module")
def completions():
    rng = np.random.default_rng(0)
    ref = -rng.uniform(20.0, 300.0, N)
    return pl.DataFrame(
        {
            "prompt_id": np.arange(N) // 4,
            "completion_id": np.arange(N),
            "policy_logps": ref + rng.normal(0.0, 3.0, N),
            "ref_logps": ref,
            "label": [True, False] * (N // 2),
        }
    )


def names(rows, **options):
    return [each.name for each in check(rows, **options).doubts]


SHIFTED = pl.col("ref_logps").shift(1, fill_value=-50.0)
SOME = pl.int_range(pl.len()) < 61
PLANTED = {
    "sound": ([], []),
    "shifted": ([SHIFTED], ["shifted"]),
    "copied": ([pl.col("ref_logps").alias("policy_logps")], ["copied"]),
    "half copied": (
        [pl.when(SOME).then("ref_logps").otherwise("policy_logps").alias("policy_logps")],
        ["copied"],
    ),
    "a few copied": (
        [
            pl.when(pl.int_range(pl.len()) < 59)
            .then("ref_logps")
            .otherwise("policy_logps")
            .alias("policy_logps")
        ],
        [],
    ),
}


@pytest.mark.filterwarnings("ignore::dpo_pipeline.DataWarning")
@pytest.mark.parametrize(("planted", "expected"), PLANTED.values(), ids=list(PLANTED))
def test_shifted_rows_and_equal_columns_are_said(completions, planted, expected):
    rows = completions.with_columns(planted)
    assert names(rows) == expected
    of_loss = evaluate(rows, loss="apo_zero_unpaired").invalid.doubts
    assert [each.name for each in of_loss] == expected


def test_few_completions_and_those_without_a_reference_are_not_judged_by_rows(completions):
    assert names(completions.with_columns(SHIFTED)[:49]) == []
    assert "shifted" not in check(completions[:49]).not_looked_for
    assert "shifted rows" in check(completions[:50]).not_looked_for
    assert check(completions.drop("ref_logps")).not_looked_for is None
    assert "check does" in rank(completions).to_dict()["not_looked_for"]
    assert rank(completions.drop("ref_logps")).to_dict()["not_looked_for"] is None


@pytest.fixture(scope="module")
def expected(completions):
    return rank(completions).figures


@pytest.mark.repeats(3)  # words are one table
@pytest.mark.parametrize(("good", "bad"), WORDS.items())
def test_words_are_labels(completions, expected, good, bad):
    words = completions.with_columns(
        label=pl.when("label").then(pl.lit(good)).otherwise(pl.lit(bad))
    )
    assert rank(words).figures == expected


def test_a_word_that_is_no_label_is_an_invalid_completion(completions):
    odd = pl.when(pl.int_range(pl.len()) == 5).then(pl.lit("so-so")).otherwise(pl.lit("good"))
    report = check(completions.with_columns(label=odd), on_invalid="exclude")
    (rule,) = report.broken
    assert (rule.name, rule.count, rule.offenders[0].row) == ("label.not_null", 1, 5)
    assert "good or bad" in rule.requirement
    nothing = completions.with_columns(label=pl.lit("so-so"))
    with pytest.raises(Exception, match="no pairs.*120 completions without a prompt or a label"):
        evaluate(Pairs(nothing, pairing="all"))


def test_what_says_which_is_better_is_said_and_can_be_chosen(completions):
    places = pl.int_range(pl.len()) % 4
    several = completions.with_columns(rank=1 + places, score=places)
    made = rank(several)
    assert made.notes == (
        "ranked by rank, and not by score and label: --column score=score takes score",
    )
    other = rank(Pairs(several, columns={"score": "score"}))
    assert other.by_preference == "score"
    assert other.figures["kendall_tau"].value == pytest.approx(-made.figures["kendall_tau"].value)
    assert rank(completions).notes == ()
    (said,) = evaluate(Pairs(several, pairing="all")).invalid.made
    assert "by rank, and not by score and label" in said
