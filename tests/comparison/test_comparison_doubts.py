"""What makes a comparison doubtful is said first: one policy twice, rounding taken for spread."""

from __future__ import annotations

import json
import re
import warnings

import numpy as np
import polars as pl
import pytest

from compare_tools import POLICIES, frames
from dpo_pipeline import DataWarning, compare
from dpo_pipeline.errors import InvalidPairsError
from pair_tools import REFS


def quietly(*sides, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        return compare(*sides, **options)


def from_a(a, b, names, n):
    """Return B with some columns of A in its first n pairs."""
    is_copied = pl.int_range(pl.len()) < n
    return b.with_columns(
        pl.when(is_copied).then(a[name]).otherwise(name).alias(name) for name in names
    )


def test_rules_that_a_reference_breaks_are_named():
    a, b = frames()
    place, (chosen, rejected) = pl.int_range(pl.len()), REFS
    reference = a.select(
        "pair_id",
        pl.when(place.is_in([3, 4])).then(float("-inf")).otherwise(chosen).alias(chosen),
        pl.when(place != 5).then(rejected).alias(rejected),
    )
    sides = [each.drop(REFS) for each in (a, b)]
    result = quietly(*sides, reference=reference, on_invalid="exclude")
    assert result.n_valid == result.n_common - 3
    said = "rows that break the contract and count in no figure: 3 "
    said += f"({chosen}.finite 2, {rejected}.not_null 1)"
    assert sum(text.endswith(said) for text in result.findings) == 1
    sides[0] = sides[0].with_columns(
        pl.when(place != 9).then("policy_chosen_logps").alias("policy_chosen_logps")
    )
    with pytest.raises(InvalidPairsError, match="4 of 60 common pairs") as error:
        compare(*sides, reference=reference)
    assert [note.partition(": ")[2] for note in error.value.__notes__] == [
        "rows that break it too: 3"
    ]


def test_one_policy_twice_is_said_first():
    a, _ = frames()
    with pytest.warns(DataWarning, match="the same log-probs on all 60 common pairs"):
        result = compare(a, a)
    assert str(result).startswith("warning: A (A) and B (B) have the same log-probs on all 60")
    assert result.findings == tuple(map(str, result.doubts))
    assert result.better is None
    assert result.differences["loss"].p_value == 1.0


@pytest.mark.parametrize(
    ("names", "n", "said"),
    [
        pytest.param(POLICIES, 199, "on 199 of 200 common pairs (99.5%)", id="nearly all"),
        pytest.param(POLICIES, 20, "on 20 of 200 common pairs (10.0%)", id="a part"),
        pytest.param(POLICIES[:1], 200, "is a copy of that of A (A)", id="a column"),
        pytest.param(POLICIES[1:], 50, "is in part equal to that of A (A)", id="some of a column"),
        pytest.param(POLICIES, 4, None, id="chance"),
        pytest.param((), 0, None, id="two policies"),
    ],
)
def test_pairs_that_both_sides_score_alike_are_counted(names, n, said):
    a, b = frames(200)
    doubts = map(str, quietly(a, from_a(a, b, names, n)).doubts)
    assert [said in each for each in doubts] == ([] if said is None else [True])


def test_coarse_log_probs_are_alike_by_chance():
    a, b = (side.with_columns(pl.col(POLICIES).round()) for side in frames(400, scale=1.0))
    same = [(a[name] == b[name]) for name in POLICIES]
    assert (same[0] & same[1]).sum() > 10
    assert quietly(a, b).doubts == ()


@pytest.mark.repeats  # each type, with prompts or without
@pytest.mark.parametrize("dtype", [pl.Float64, pl.Float32])
@pytest.mark.parametrize("per_prompt", [None, 3])
def test_rounding_is_no_variance(dtype, per_prompt):
    a, _ = frames(120, per_prompt=per_prompt)
    far = pl.int_range(pl.len()) % 7 * 50.0
    a = a.with_columns(pl.col(*POLICIES, *REFS) - far)
    b = a.with_columns(pl.col(POLICIES[0]) + 0.3, pl.col(POLICIES[1]) - 0.1)
    a, b = (side.with_columns(pl.col(POLICIES).cast(dtype)) for side in (a, b))
    margins = (b[POLICIES[0]] - b[POLICIES[1]]) - (a[POLICIES[0]] - a[POLICIES[1]])
    assert margins.n_unique() > 1
    result = quietly(a, b, by="split")
    for name in ("reward_margin", "chosen_reward", "rejected_reward"):
        found = result.differences[name]
        assert found.estimate.value == pytest.approx(
            {"reward_margin": 0.04, "chosen_reward": 0.03, "rejected_reward": -0.01}[name], abs=1e-6
        )
        assert found.is_constant
        assert found.estimate.interval is found.p_value is found.smallest_effect is None
    assert result.differences["loss"].p_value is not None
    assert result.subsets["margin_low"].null_count() == result.subsets.height
    (said,) = result.findings
    assert said.startswith("B minus A is the same on all 120 pairs, within the rounding")
    assert "reward_margin, chosen_reward, rejected_reward: a difference without spread" in said


@pytest.mark.parametrize("dtype", [pl.Float64, pl.Float32])
def test_a_small_spread_is_a_spread(dtype):
    a, _ = frames(120)
    noise = pl.Series(np.random.default_rng(1).normal(0.3, 0.01, 120))
    b = a.with_columns(pl.col(POLICIES[0]) + noise, pl.col(POLICIES[1]) - 0.1)
    a, b = (side.with_columns(pl.col(POLICIES).cast(dtype)) for side in (a, b))
    result = quietly(a, b)
    (said,) = result.findings
    assert "rounding of the log-probs, in rejected_reward: " in said
    assert result.differences["reward_margin"].p_value < 1e-6


def test_groups_of_nan_and_null_are_two_and_no_disagreement():
    a, b = frames(90)
    kinds = pl.int_range(pl.len()) % 3
    g = pl.when(kinds == 0).then(None).when(kinds == 1).then(float("nan")).otherwise(1.0)
    result = compare(a.with_columns(g=g), b.with_columns(g=g), by="g")
    document = json.loads(result.to_json())
    assert [row["g"] for row in document["subsets"]] == [1.0, "nan", None]
    assert [row["n_valid"] for row in document["subsets"]] == [30, 30, 30]
    assert result.findings == ()
    page = result.report()
    assert "(null)" in page
    assert re.search(r"<t[dh][^>]*>\s*(<[^>]+>)*nan\s*<", page)
    with pytest.warns(DataWarning, match="g differs between A and B on 30 of 90 pairs"):
        compare(a.with_columns(g=g), b.with_columns(g=g.fill_nan(2.0)), by="g")
