"""Whether a policy is better than a coin toss: the verdict, and when it is withheld."""

from __future__ import annotations

import json

import polars as pl
import pytest

from dpo_pipeline import DataWarning, StatisticsOptions, Subsets, evaluate, score_parquet
from oracle_tools import stats
from pair_tools import LOGPS
from schema_tools import validate
from sense_tools import FAULTS


def right(pairs):
    margin = pl.col(LOGPS[0]) - pl.col(LOGPS[1]) - pl.col(LOGPS[2]) + pl.col(LOGPS[3])
    return pairs.filter(margin > 0), pairs.filter(margin < 0)


def of(pairs, n_right, n_wrong):
    """Return real pairs of which the policy has so many right."""
    good, bad = right(pairs)
    return pl.concat([good.head(n_right), bad.head(n_wrong)])


def jeffreys(k, n, level=0.95):
    tail = (1 - level) / 2
    return [stats.beta(k + 0.5, n - k + 0.5).ppf(q) for q in (tail, 1 - tail)]


@pytest.mark.parametrize(
    ("n_right", "n_wrong", "better", "begins"),
    [
        pytest.param(70, 30, True, "better than a coin toss: accuracy 70.0% (95% int", id="better"),
        pytest.param(30, 70, False, "worse than a coin toss: accuracy 30.0% (95% inte", id="worse"),
        pytest.param(55, 45, None, "not shown to differ from a coin toss: accuracy 5", id="unsure"),
    ],
)
def test_the_verdict_follows_from_the_interval(real_pairs, n_right, n_wrong, better, begins):
    result = evaluate(of(real_pairs, n_right, n_wrong))
    low, high = jeffreys(n_right, 100)
    assert (low > 0.5, high < 0.5) == (better is True, better is False)
    assert result.better_than_chance is better
    assert result.verdict.startswith(begins)
    assert f"interval {low:.1%} to {high:.1%}), from 100 pairs" in result.verdict
    assert str(result).startswith(result.verdict)
    for text in (result.to_markdown(), result.to_latex(), result._repr_html_()):
        assert begins.partition(":")[0] in text


def test_many_pairs_have_wilsons_interval(real_pairs):
    result = evaluate(real_pairs)
    k = round(result.summary.reward_accuracy * 698)
    wanted = stats.binomtest(k, 698).proportion_ci(method="wilson")
    interval = result.accuracy.interval
    assert (interval.low, interval.high) == pytest.approx((wanted.low, wanted.high), abs=1e-9)


def test_ties_count_half(real_pairs):
    tied = real_pairs.head(1).with_columns(pl.col(LOGPS[0]).alias(LOGPS[2]))
    tied = tied.with_columns(pl.col(LOGPS[1]).alias(LOGPS[3]))
    with_ties = evaluate(pl.concat([of(real_pairs, 60, 36), *[tied] * 4]))
    assert with_ties.summary.n_ties == 4
    assert with_ties.summary.reward_accuracy == 0.6
    assert with_ties.accuracy.value == 0.62
    low, high = jeffreys(62, 100)
    assert f"accuracy 62.0% with ties half (95% interval {low:.1%} to {high:.1%})" in (
        with_ties.verdict
    )


@pytest.mark.usefixtures("few_groups")
def test_prompts_are_what_a_sample_was(real_pairs):
    prompts = real_pairs.head(120).with_columns(prompt_id=pl.int_range(120) // 3)
    asked = StatisticsOptions(level=0.9)
    result = evaluate(prompts, statistics=asked)
    assert result.verdict.endswith("from 120 pairs in 40 prompts, taken as independent")
    assert "(90% interval " in result.verdict
    assert result.accuracy == result.statistics.figures["reward_accuracy_half"]


@pytest.mark.parametrize(
    ("n_invalid", "is_withheld"), [(10, False), (11, True)], ids=["a tenth", "more"]
)
def test_many_invalid_pairs_withhold_it(real_pairs, n_invalid, is_withheld):
    pairs = (
        of(real_pairs, 80, 20)
        .with_row_index()
        .with_columns(
            pl.when(pl.col("index") < n_invalid)
            .then(1.0)
            .otherwise(pl.col(LOGPS[0]))
            .alias(LOGPS[0])
        )
    )
    result = evaluate(pairs, on_invalid="exclude")
    assert (result.withheld is not None) == is_withheld
    said = f"{n_invalid} of 100 pairs break the contract"
    assert str(result).count(said) == 1
    if is_withheld:
        assert result.verdict.startswith(f"no verdict: {said}")
        assert result.better_than_chance is None


@pytest.mark.parametrize("fault", ["reference shifted by a row", "reference of other rows"])
def test_surely_wrong_log_probs_withhold_it(real_pairs, fault):
    with pytest.warns(DataWarning):
        result = evaluate(FAULTS[fault](real_pairs))
    (doubt,) = result.invalid.doubts
    assert result.verdict == f"no verdict: {doubt}"
    lines = str(result).split("\n")
    assert (lines[0], lines[1].strip()) == (result.verdict, doubt.advice)
    assert str(result).count(doubt.title) == 1
    assert "better than a coin" not in str(result)


def test_a_repeated_id_is_said_and_withholds_nothing(real_pairs):
    twice = pl.concat([real_pairs, real_pairs.head(1)])
    with pytest.warns(DataWarning, match="there more than once"):
        result = evaluate(twice)
    assert result.withheld is None
    assert "\n\nwarning: pair_id is there more than once" in str(result)


def test_without_a_spread_of_rewards_there_is_none(real_pairs):
    assert evaluate(real_pairs, beta=0.0).verdict == "no verdict: beta is 0, so every reward is 0"


@pytest.mark.usefixtures("few_groups")
def test_contradictory_pairs_withhold_it(real_pairs):
    chosen, rejected, ref_chosen, ref_rejected = LOGPS
    exchange = {chosen: rejected, rejected: chosen, ref_chosen: ref_rejected}
    exchange[ref_rejected] = ref_chosen
    pairs = real_pairs.drop("pair_id").head(100)
    both = pl.concat([pairs, pairs.head(12).rename(exchange).select(pairs.columns)])
    result = evaluate(both, statistics=True)
    assert result.withheld is not None
    assert "are there with chosen and rejected exchanged as well" in result.verdict


def test_the_document_has_it(real_pairs, tmp_path):
    result = score_parquet(real_pairs, tmp_path / "out.parquet", by=Subsets("split"))
    document = json.loads(result.to_json())
    validate(document, "summary")
    found = document["verdict"]
    assert found["text"] == result.verdict
    assert (found["better_than_chance"], found["withheld"]) == (True, None)
    assert found["accuracy"]["interval"]["level"] == 0.95
    assert found["accuracy"]["value"] == document["summary"]["reward_accuracy"]
