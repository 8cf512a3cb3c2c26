"""Columns in another unit, averaged or scaled; and what is said where pairs are too few to tell."""

from __future__ import annotations

import math

import polars as pl
import pytest

from dpo_pipeline import Contract, InvalidPairsError, check
from pair_tools import COUNTS, LOGPS
from sense_tools import doubts, evaluated

C, R, REF_C, REF_R = map(pl.col, LOGPS)
TOKENS_C, TOKENS_R = map(pl.col, COUNTS)
BY_TOKEN = [C / TOKENS_C, R / TOKENS_R, REF_C / TOKENS_C, REF_R / TOKENS_R]

PLANTED = {
    "policy in bits": ([C / math.log(2), R / math.log(2)], ["scaled"]),
    "policy in log10": ([C / math.log(10), R / math.log(10)], ["scaled"]),
    "reference in log10": ([REF_C / math.log(10), REF_R / math.log(10)], ["scaled"]),
    "policy at a temperature": ([C / 2, R / 2], ["scaled"]),
    "reference scaled": ([REF_C * 1.5, REF_R * 1.5], ["scaled"]),
    "all averaged": (BY_TOKEN, ["averaged"]),
    "chosen averaged": ([BY_TOKEN[0], BY_TOKEN[2]], ["averaged"]),
    "rejected averaged": ([BY_TOKEN[1], BY_TOKEN[3]], ["averaged"]),
    "all divided by 100": ([pl.col(LOGPS) / 100], ["averaged"]),
    "all in log10": ([pl.col(LOGPS) / math.log(10)], []),  # no sum can tell
}


@pytest.mark.parametrize(("planted", "names"), PLANTED.values(), ids=list(PLANTED))
def test_a_column_in_another_unit_is_said(real_pairs, planted, names):
    assert doubts(real_pairs.with_columns(planted)) == names


@pytest.mark.repeats(2)  # the sides are judged alike
@pytest.mark.parametrize("rows", [20, 60, 200])
@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_averages_of_one_side_are_said_of_few_pairs_too(real_pairs, rows, side):
    one = 0 if side == "chosen" else 1
    planted = [BY_TOKEN[one], BY_TOKEN[one + 2]]
    for first in range(0, 600, 300):
        pairs = real_pairs[first : first + rows]
        (doubt,) = evaluated(pairs.with_columns(planted)).invalid.doubts
        assert doubt.title.startswith(f"log-probs of {side} are higher")
        assert doubts(pairs) == []
    assert doubts(real_pairs[:19].with_columns(planted)) == []


def test_sums_of_the_other_sides_rate_that_vary_as_lengths_do_are_no_averages(real_pairs):
    """Chosen completions that are far likelier: sums, whose mean is that of averages."""
    rate = real_pairs.select(REF_R.mean() / TOKENS_R.mean()).item()
    factor = rate / real_pairs[LOGPS[2]].mean()
    likelier = real_pairs.with_columns(C * factor, REF_C * factor)
    assert likelier[LOGPS[0]].min() < -10.0
    assert "averaged" not in doubts(likelier)


def test_two_sides_of_different_factors_are_not_one_unit(real_pairs):
    assert doubts(real_pairs.with_columns(C * 1.5, R * 1.5)) == ["scaled"]
    assert "scaled" not in doubts(real_pairs.with_columns(C * 1.5, R * 1.9))


def test_a_factor_is_named(real_pairs):
    pairs = real_pairs.with_columns(pl.col(LOGPS[2:]) * 1.5)
    (doubt,) = evaluated(pairs).invalid.doubts
    k = pairs.select(pl.cov(C, REF_C) / REF_C.var()).item()
    assert doubt.title == f"the policy's log-probs are about {k:.3g} times the reference's"


def test_one_side_known_by_heart_is_no_fault_of_the_sums(real_pairs):
    """As after training on the chosen completions: nearly certain, and not in every pair."""
    by_heart = [C * 0.01, REF_C * 0.012]
    rare = pl.int_range(pl.len()) % 200 == 0
    columns = [
        pl.when(rare).then(old).otherwise(new)
        for old, new in zip((C, REF_C), by_heart, strict=True)
    ]
    names = doubts(real_pairs.with_columns(columns))
    assert "averaged" not in names


def test_probabilities_are_not_called_likelihoods_of_another_sign(real_pairs):
    for pairs, word in (
        (real_pairs.with_columns((pl.col(LOGPS) / 100).exp()), "probabilities; give the sums"),
        (real_pairs.with_columns(-pl.col(LOGPS)), "negative log-likelihoods; change their sign"),
    ):
        with pytest.raises(InvalidPairsError, match=word):
            evaluated(pairs)


@pytest.mark.parametrize(
    ("rows", "said", "printed"),
    [
        (50, None, False),
        (49, "49 valid pairs are too few to tell whether policy and reference are of the", True),
        (8, "; only whole columns that are shifted, exchanged or equal would show", True),
        (7, "7 valid pairs are too few", False),
        (1, "1 valid pair is too few", False),
    ],
)
def test_what_few_pairs_cannot_tell_is_said(real_pairs, rows, said, printed):
    for result in (check(real_pairs.head(rows)), evaluated(real_pairs.head(rows))):
        document = result.to_dict()
        assert (document["not_looked_for"] is None) == (said is None)
        assert said is None or said in document["not_looked_for"]
        assert ("too few to tell" in str(result)) == printed


def test_other_texts_are_told_from_twenty_pairs_on(real_pairs):
    rows = [*range(7, 20), *range(7)]
    other = real_pairs[:20].with_columns(real_pairs[rows].select(LOGPS[2:]))
    assert doubts(other) == ["other_texts"]
    few = other[:19]
    assert doubts(few) == []
    assert "too few to tell whether" in evaluated(few).invalid.not_looked_for


def test_few_scores_and_few_pairs_without_a_reference_are_not_judged(real_pairs):
    few = real_pairs.head(20)
    assert check(few, contract=Contract(max_logp=4096.0)).not_looked_for is None
    assert evaluated(few.select(LOGPS[:2]), loss="cpo").invalid.not_looked_for is None
