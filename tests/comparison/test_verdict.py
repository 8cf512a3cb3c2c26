"""The verdict of a comparison, its text and its document."""

from __future__ import annotations

import json
import math

import jsonschema
import numpy as np
import polars as pl
import pytest

from compare_tools import (
    BETA,
    REL,
    A,
    B,
    broken_at,
    frames,
    of_files,
    of_margins,
    shifted,
    units_found,
)
from dpo_pipeline import StatisticsOptions, compare
from dpo_pipeline.comparison.verdict import Difference, loss_sentence
from dpo_pipeline.statistics import Estimate
from oracle_tools import stats
from pair_tools import LOGPS, REFS, ROOT
from schema_tools import validate


def test_verdicts():
    better, worse = compare(*shifted(3.0)), compare(*shifted(-3.0))
    assert (better.better, worse.better) == ("b", "a")
    assert better.verdict.startswith("B is better than A: accuracy +")
    assert worse.verdict.startswith("B is worse than A: accuracy -")
    assert better.verdict.endswith("p < 0.0001, on 400 common pairs")
    none = of_files()
    assert none.better is None
    assert none.verdict == (
        f'no difference in accuracy shown: B "{B.stem}" minus A "{A.stem}" is -0.6 points (95% '
        "interval -1.9 to +0.6), p = 0.36, on 1,583 common pairs; the smallest effect that these "
        "data could have shown at 80% power is 1.8 points"
    )
    assert str(none).startswith(none.verdict)


def signs(plus, minus, ties=0):
    return [1.0] * plus + [-1.0] * minus + [0.0] * ties


@pytest.mark.filterwarnings("ignore::dpo_pipeline.DataWarning")  # A is the reference itself
def test_ties_alone_decide_nothing():
    # Strictly 0 of 200 against 104; with ties half 100 against 104: t of 199 differences of +-1/2.
    result = compare(*of_margins([0.0] * 200, signs(104, 96)))
    d = np.array(signs(104, 96)) / 2
    p = stats.ttest_1samp(d, 0.0).pvalue
    assert result.differences["reward_accuracy"].p_value < 1e-4
    assert result.differences["reward_accuracy_half"].p_value == pytest.approx(p, rel=REL)
    assert result.better is None
    assert result.verdict.startswith("no difference in accuracy shown: B minus A is +52.0 points")
    assert (
        f"(A ties on 200 pairs, which count as wrong; with ties half the difference is +2.0 "
        f"(-5.0 to +9.0), p = {p:.2g}); the smallest effect"
    ) in result.verdict
    shown = units_found(199) * stats.sem(d)
    assert result.verdict.endswith(f"is {100 * shown:.2g} points")


def test_ties_can_hide_what_is_better():
    # A: 150 of 300, never tied. B: the 150, and 100 ties where A is wrong.
    a, b = signs(150, 150), [*signs(150, 50), *([0.0] * 100)]
    result = compare(*of_margins(a, b))
    assert result.differences["reward_accuracy"].p_value == 1.0
    assert result.better == "b"
    assert result.verdict.startswith("B is better than A: accuracy +0.0 points")
    assert "(B ties on 100 pairs, which count as wrong; with ties half" in result.verdict
    assert compare(*of_margins(b, a)).better == "a"


def test_few_ties_that_change_nothing_are_not_told():
    a, b = signs(150, 150), [*signs(250, 49), 0.0]
    result = compare(*of_margins(a, b))
    assert result.better == "b"
    assert "ties" not in result.verdict
    tied = compare(*of_margins(a, [*signs(250, 40), *([0.0] * 10)]))
    assert tied.better == "b"
    assert "(B ties on 10 pairs, which count as wrong" in tied.verdict


@pytest.mark.parametrize(
    ("gained", "lost", "better", "ending"),
    [
        pytest.param(5, 0, None, "fewer than 6 pairs cannot show any", id="five pairs"),
        pytest.param(6, 0, "b", "on 6 common pairs", id="six pairs"),
    ],
)
def test_few_pairs_claim_nothing_that_they_cannot_show(gained, lost, better, ending):
    n = gained + lost
    result = compare(
        *of_margins(signs(lost, gained), signs(gained, lost) * np.linspace(1.0, 1.5, n))
    )
    found = result.differences["reward_accuracy"]
    assert found.p_value == pytest.approx(2 ** (1 - n), rel=REL)
    assert result.better == better
    assert result.verdict.endswith(ending)
    # Six that differ are not found in 80% of datasets of six.
    assert found.smallest_effect is None
    interval = found.estimate.interval
    assert (better is None) == (interval.low <= 0 <= interval.high)


def test_few_prompts_claim_no_smallest_effect():
    a, b = frames(n=15, per_prompt=3, scale=12.0)
    result = compare(a, b)
    assert result.better is None
    assert result.differences["reward_accuracy"].test == "sign flips, exact"
    assert result.differences["reward_accuracy"].smallest_effect is None
    assert result.verdict.endswith("fewer than 6 prompts cannot show any")
    assert compare(*frames(n=147, per_prompt=3)).verdict.endswith("in 49 prompts")
    assert "smallest effect" in compare(*frames(n=150, per_prompt=3)).verdict


@pytest.mark.repeats(3)  # each seed on one of the designs
@pytest.mark.parametrize("seed", [1, 2, 4, 7])
@pytest.mark.parametrize(("n", "per_prompt"), [(12, None), (40, None), (40, 4), (40, 2)])
def test_verdict_and_interval_never_contradict(n, per_prompt, seed):
    a, b = frames(n=n, per_prompt=per_prompt, seed=seed, scale=9.0)
    b = b.with_columns(policy_chosen_logps=pl.col("policy_chosen_logps") + 1.5 * (seed % 4) * 2)
    result = compare(a, b, by="split")
    for each in result.differences.values():
        interval = each.estimate.interval
        if interval is not None and each.p_value is not None:
            assert (each.p_value < 0.05) != (interval.low <= 0.0 <= interval.high)
    for row in result.subsets.iter_rows(named=True):
        holds_0 = row["accuracy_low"] <= 0.0 <= row["accuracy_high"]
        assert (row["p_value"] < 0.05) != holds_0


@pytest.mark.parametrize("per_prompt", [1, 2])
def test_accuracies_without_a_spread_have_an_interval(per_prompt):
    n = 8
    a, b = of_margins([*range(1, n + 1)], [*range(n, 0, -1)])
    prompts = pl.int_range(pl.len()) // per_prompt
    result = compare(a.with_columns(prompt_id=prompts), b.with_columns(prompt_id=prompts))
    strict, half = (result.differences[n] for n in ("reward_accuracy", "reward_accuracy_half"))
    assert (half.estimate.value, half.p_value) == (0.0, 1.0)
    # A gain and a loss more (Bonett and Price): 2 / (n + 2) of the clusters differ.
    error = math.sqrt(2) / (n / per_prompt + 2)
    for each in (strict, half):
        assert each.estimate.interval.high == pytest.approx(stats.norm.ppf(0.975) * error, rel=REL)
        assert each.estimate.interval.low == -each.estimate.interval.high
    assert result.differences["loss"].estimate.interval is not None


@pytest.mark.parametrize("is_loss", [False, True])
def test_halves_that_all_differ_alike_have_an_interval(is_loss):
    n, sides = 8, of_margins([0.0] * 8, [1.0 + i for i in range(8)])
    sides = [side.with_columns(pl.col(LOGPS[:2]) - 1.0) for side in sides]
    half = compare(*sides[:: -1 if is_loss else 1]).differences["reward_accuracy_half"]
    assert half.estimate.value == (-0.5 if is_loss else 0.5)
    assert half.p_value == 2 / 2**n
    up, down = 9 / 10, 1 / 10
    error = math.sqrt((up + down - (up - down) ** 2) / 10)
    nearest = (up - down - stats.norm.ppf(0.975) * error) / 2
    interval = half.estimate.interval
    assert (-interval.high if is_loss else interval.low) == pytest.approx(nearest, rel=REL)


def test_no_rate_differs_by_more_than_one():
    # Differences 1, 1, 1/2: Student's upper limit is 5/6 + 4.30/6, far beyond 1.
    result = compare(*of_margins([-1.0, -1, 0], [1.0, 2, 3]))
    interval = result.differences["reward_accuracy_half"].estimate.interval
    assert interval.high == 1.0
    # Two of eight flips are as far from 0: p = 1/4, so that the lower limit goes below 0.
    assert result.differences["reward_accuracy_half"].p_value == 0.25
    low = 5 / 6 * (1 - stats.norm.ppf(0.975) / stats.norm.isf(0.125))
    assert interval.low == pytest.approx(low, rel=REL)


def test_loss_has_a_line_of_its_own():
    result = of_files()
    loss = result.differences["loss"].estimate
    limits = f"({loss.interval.low:.4f} to {loss.interval.high:.4f})"
    expected = f"Loss: B minus A is {loss.value:.4f} {limits} nats, at one beta of 0.1 for both."
    assert str(result).splitlines()[1].strip() == expected
    assert "Loss" not in result.verdict


def test_tiny_p_values_and_single_pairs_in_the_text():
    result = compare(*shifted(3.0), by="split")
    (line,) = (x for x in str(result).splitlines() if x.startswith("reward_accuracy "))
    assert " <0.0001 " in line
    (line,) = (x for x in str(result).splitlines() if x.startswith("x "))
    assert line.split()[-2:] == ["<0.0001", "<0.0001"]
    one = str(compare(*(table[:1] for table in frames())))
    assert ["A", "A", "1", "0"] in [line.split() for line in one.split("\n")]
    assert "1 common pair by pair_id" in one
    assert "on 1 common pair" in one


def test_the_level_decides():
    a, b = frames(n=400, seed=5, scale=20.0)
    p = compare(a, b).differences["reward_accuracy"].p_value
    assert 0.001 < p < 0.999
    assert compare(a, b, statistics=StatisticsOptions(level=1 - p * 1.01)).better is not None
    assert compare(a, b, statistics=StatisticsOptions(level=1 - p * 0.99)).better is None
    loss = compare(a, b, statistics=StatisticsOptions(level=0.8)).differences["loss"]
    found = loss.estimate
    expected = by_ttest_at(a, b, 0.8)
    assert (found.interval.low, found.interval.high) == pytest.approx(expected, rel=REL)
    assert loss.smallest_effect == pytest.approx(
        units_found(399, level=0.8) * found.standard_error, rel=1e-8
    )


def by_ttest_at(a, b, level):
    losses = []
    for table in (a, b):
        c, r, ref_c, ref_r = (table[n].to_numpy() for n in LOGPS)
        losses.append(np.logaddexp(0.0, -BETA * ((c - ref_c) - (r - ref_r))))
    interval = stats.ttest_rel(losses[1], losses[0]).confidence_interval(level)
    return interval.low, interval.high


def test_pairs_of_one_prompt_cannot_be_told_apart():
    a, b = frames(n=12, per_prompt=12)
    result = compare(a, b)
    assert result.better is None
    assert result.verdict.startswith("no difference can be tested on 12 common pairs in 1 prompt:")
    assert result.differences["loss"].p_value is None
    assert result.differences["loss"].smallest_effect is None


def test_one_pair():
    result = compare(*(table[:1] for table in frames()))
    assert (result.n_valid, result.differences["reward_accuracy"].p_value) == (1, 1.0)
    assert result.better is None
    assert result.differences["loss"].estimate.interval is None


def test_the_document_is_json_with_every_part():
    result = compare(*frames(), by="split")
    document = json.loads(result.to_json())
    assert document["document_version"] == 1
    assert document["verdict"] == result.verdict
    assert set(document["differences"]) == set(result.differences)
    assert document["differences"]["loss"]["estimate"]["interval"]["level"] == 0.95
    assert document["subsets"] == json.loads(json.dumps(result.subsets.to_dicts()))
    assert document["gained"][0]["key"] == result.gained["key"][0]
    assert document["a"]["summary"]["n_valid"] == 60


def test_the_document_follows_its_schema():
    a, b = frames(n=40, per_prompt=2)
    for result in (
        compare(a.drop(REFS), b, beta=0.05, by=["prompt_id", "split"]),
        compare(broken_at(a, 103), b, loss="ipo", on_invalid="exclude"),
        compare(*(table.with_columns(prompt_id=1) for table in (a, b))),
    ):
        validate(json.loads(result.to_json()), "comparison")


def test_the_schema_refuses_what_is_no_comparison():
    document = json.loads(compare(*frames()).to_json())
    wrong = [{"better": "B"}, {"document_version": 2}, {"more": 1}, {"n_valid": -1}]
    wrong += [{"differences": {}}, {"a": {**document["a"], "n_pairs": None}}]
    for each in wrong:
        with pytest.raises(jsonschema.ValidationError):
            validate(document | each, "comparison")


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.0, "0.0000"), (-0.01234, "-0.0123"), (-5.128e-6, "-5.1e-06"), (4.9e-5, "4.9e-05")],
)
def test_a_small_loss_is_no_zero_with_a_sign(value, said):
    loss = Difference(
        a=1.0,
        b=1.0 + value,
        estimate=Estimate(value=value, standard_error=None, interval=None, n=9, n_clusters=9),
        p_value=None,
        test="",
        smallest_effect=None,
    )
    assert (
        loss_sentence(loss, 0.1) == f"Loss: B minus A is {said} nats, at one beta of 0.1 for both"
    )


@pytest.mark.parametrize(
    ("n", "per_prompt", "test"),
    [
        pytest.param(40, 1, "McNemar, exact", id="few pairs differ"),
        pytest.param(300, 1, "McNemar, mid-p", id="many pairs differ"),
        pytest.param(40, 2, "sign flips, exact", id="few prompts differ"),
        pytest.param(600, 2, "Student t, clustered", id="many prompts differ"),
    ],
)
def test_without_ties_both_accuracies_are_one_and_the_test_is_named(n, per_prompt, test):
    right = np.where(np.arange(n) % 7 < 3, 1.0, -1.0)
    a, b = of_margins(list(right), list(np.where(np.arange(n) % 11 < 6, 1.0, -1.0)))
    prompts = pl.int_range(pl.len()) // per_prompt
    result = compare(a.with_columns(prompt_id=prompts), b.with_columns(prompt_id=prompts))
    strict, half = (result.differences[n] for n in ("reward_accuracy", "reward_accuracy_half"))
    assert strict.test == test
    assert (half.estimate, half.p_value, half.test) == (strict.estimate, strict.p_value, test)
    others = "Student t" if per_prompt == 1 else "Student t, clustered"
    said = f"p: two-sided, of no difference (accuracy: {test}; others: {others});"
    assert said in " ".join(str(result).split())
    assert result.to_dict()["differences"]["reward_accuracy"]["test"] == test
    guide = (ROOT / "examples" / "comparing.md").read_text()
    assert f"| `{test}`" in guide or f" `{test}` |" in guide


def test_with_ties_the_test_of_the_other_accuracy_is_named():
    result = compare(*of_margins(signs(30, 30), signs(40, 10, 10)))
    said = "(accuracy: McNemar, exact; with ties half: sign flips, exact; others: Student t)"
    assert said in " ".join(str(result).split())
