"""Differences of two policies against numpy, scipy and statsmodels; their exactness."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product

import numpy as np
import polars as pl
import pytest

from compare_tools import (
    BETA,
    REL,
    A,
    B,
    by_ttest,
    frames,
    of_files,
    raised,
    said,
    told,
    units_found,
)
from dpo_pipeline import DataWarning, UsageError, compare
from dpo_pipeline.comparison import common_pairs, side_sums
from dpo_pipeline.comparison.differences import differences_of
from dpo_pipeline.comparison.paired_gathering import MEANS, Paired
from dpo_pipeline.sums import CLUSTER
from dpo_pipeline.sums.summary import SUMMARY_FIGURES, Summary
from oracle_tools import mcnemar, multipletests, stats
from pair_tools import LOGPS

# --- figures ---------------------------------------------------------------------------------


@pytest.mark.repeats(2)  # means are one function
@pytest.mark.parametrize("name", ["loss", "reward_margin", "chosen_reward", "rejected_reward"])
def test_mean_differences_are_those_of_the_paired_t_test(real, name):
    _, _, a, b = real
    found = of_files().differences[name]
    expected = by_ttest(b[name] - a[name])
    assert told(found) == pytest.approx(expected, rel=REL)
    assert found.p_value == pytest.approx(stats.ttest_rel(b[name], a[name]).pvalue, rel=1e-8)
    assert (found.a, found.b) == pytest.approx((a[name].mean(), b[name].mean()), rel=REL)
    assert found.smallest_effect == pytest.approx(units_found(1582) * expected[1], rel=1e-8)
    assert found.test == "Student t"


def test_accuracy_is_tested_by_mcnemar(real):
    _, _, a, b = real
    a, b = a["reward_accuracy"], b["reward_accuracy"]
    result = of_files()
    gains, losses, n = int(((1 - a) * b).sum()), int((a * (1 - b)).sum()), len(a)
    m = result.mcnemar
    assert (m.both_right, m.only_a, m.only_b) == (int((a * b).sum()), losses, gains)
    assert m.neither == n - m.both_right - gains - losses
    exact = mcnemar([[0, gains], [losses, 0]], exact=True).pvalue
    binomial = stats.binom(gains + losses, 0.5)
    fewer = min(gains, losses)
    assert m.exact == pytest.approx(exact, rel=REL)
    assert m.mid_p == pytest.approx(2 * binomial.cdf(fewer) - binomial.pmf(fewer), rel=REL)
    assert m.applies
    found = result.differences["reward_accuracy"]
    assert gains + losses == 98, "fewer than a hundred: the exact test is the one"
    assert (found.p_value, found.test) == (m.exact, "McNemar, exact")
    # Bonett and Price: one pair more each way, Wald's interval.
    up, down = (gains + 1) / (n + 2), (losses + 1) / (n + 2)
    error = math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    z = stats.norm.ppf(0.975)
    assert found.estimate.value == pytest.approx((gains - losses) / n, rel=REL)
    assert found.estimate.interval.low == pytest.approx(up - down - z * error, rel=REL)
    assert found.estimate.interval.high == pytest.approx(up - down + z * error, rel=REL)
    assert found.estimate.n_clusters == n


def test_the_mid_p_test_decides_from_a_hundred_pairs_on():
    a, b = frames(n=400, scale=20.0)
    result = compare(a, b)
    m = result.mcnemar
    assert m.only_a + m.only_b >= 100
    found = result.differences["reward_accuracy"]
    assert (found.p_value, found.test) == (m.mid_p, "McNemar, mid-p")


def test_the_figures_of_both_sides_are_of_the_common_pairs(real):
    _, _, a, b = real
    result = of_files()
    for side, expected in ((result.a, a), (result.b, b)):
        assert side.summary.n_pairs == side.summary.n_valid == 1583
        for name, values in expected.items():
            assert getattr(side.summary, name) == pytest.approx(values.mean(), rel=1e-10)
    assert (result.n_common, result.n_valid) == (1583, 1583)
    assert (result.a.n_pairs, result.a.n_alone) == (2281, 698)
    assert (result.b.n_pairs, result.b.n_alone) == (1583, 0)


def test_prompts_of_unequal_size():
    a, b = frames(n=90, per_prompt=4, scale=12.0)
    result = compare(a, b)
    assert result.n_clusters == 23
    assert result.clusters == "23 prompts"
    margins = {}
    for name, table in (("a", a), ("b", b)):
        c, r, ref_c, ref_r = (table[n].to_numpy() for n in LOGPS)
        margins[name] = BETA * ((c - ref_c) - (r - ref_r))
    d = margins["b"] - margins["a"]
    groups = a["prompt_id"].to_numpy()
    # The last prompt has two pairs of four, so this is the jackknife, by leaving each out.
    moved = np.array([d[groups != group].mean() - d.mean() for group in np.unique(groups)])
    error = math.sqrt(22 / 23 * (moved**2).sum())
    freedom = 2 * (moved**2).sum() ** 2 / (moved**4).sum()
    found = result.differences["reward_margin"]
    t = d.mean() / error
    half = stats.t.ppf(0.975, freedom) * error
    p = 2 * stats.t.sf(abs(t), freedom)
    expected = (d.mean(), error, d.mean() - half, d.mean() + half, p)
    assert told(found) == pytest.approx(expected, rel=REL)
    assert found.test == "Student t, clustered"
    assert not result.mcnemar.applies
    assert "prompts repeat" in str(result)


def net_of_prompts(a, b):
    scored = [
        t.select(
            "prompt_id",
            right=(pl.col(LOGPS[0]) - pl.col(LOGPS[2]) > pl.col(LOGPS[1]) - pl.col(LOGPS[3])),
        )
        for t in (a, b)
    ]
    net = scored[1]["right"].cast(pl.Int64) - scored[0]["right"].cast(pl.Int64)
    return (
        scored[0].with_columns(net=net).group_by("prompt_id").agg(pl.col("net").sum())["net"]
    ).to_list()


def test_accuracy_of_few_clusters_is_tested_by_all_flips_of_their_signs():
    a, b = frames(n=36, per_prompt=3, scale=12.0)
    nets = net_of_prompts(a, b)
    flipped = [
        sum(s * n for s, n in zip(signs, nets, strict=True))
        for signs in product((1, -1), repeat=len(nets))
    ]
    expected = Fraction(sum(abs(f) >= abs(sum(nets)) for f in flipped), len(flipped))
    found = compare(a, b).differences["reward_accuracy"]
    assert found.p_value == pytest.approx(float(expected), rel=REL)
    assert found.test == "sign flips, exact"
    assert found.p_value != pytest.approx(compare(a, b).mcnemar.exact, rel=1e-3)


def test_accuracy_of_many_clusters_is_tested_by_their_t():
    a, b = frames(n=1200, per_prompt=3, scale=12.0)
    nets = np.array(net_of_prompts(a, b), dtype=float)
    assert (nets != 0).sum() >= 100
    found = compare(a, b).differences["reward_accuracy"]
    # All clusters are of three pairs, so this is the t test of their sums.
    assert found.p_value == pytest.approx(stats.ttest_1samp(nets, 0.0).pvalue, rel=REL)
    assert found.test == "Student t, clustered"


def test_ties_are_half_right_in_the_one_accuracy_and_wrong_in_the_other():
    # Margins of A 1, 0, -1, 0 and of B 0, 1, -1, 0, in nats.
    table = {
        "pair_id": [1, 2, 3, 4],
        "policy_rejected_logps": [-30.0] * 4,
        "ref_chosen_logps": [-20.0] * 4,
        "ref_rejected_logps": [-30.0] * 4,
    }
    a = pl.DataFrame({**table, "policy_chosen_logps": [-10.0, -20.0, -30.0, -20.0]})
    b = pl.DataFrame({**table, "policy_chosen_logps": [-20.0, -10.0, -30.0, -20.0]})
    with pytest.warns(DataWarning, match="constant"):
        result = compare(a, b.with_columns(policy_chosen_logps=pl.col("policy_chosen_logps")))
    strict, half = (result.differences[f"reward_accuracy{s}"] for s in ("", "_half"))
    assert (strict.a, strict.b, strict.estimate.value) == (0.25, 0.25, 0.0)
    assert (half.a, half.b, half.estimate.value) == (0.5, 0.5, 0.0)
    # Halves of B less A: -1, 1, 0, 0. Variance 2/3 of a quarter, over four pairs.
    assert half.estimate.standard_error == pytest.approx(math.sqrt(0.25 * 2 / 3 / 4), rel=REL)
    assert (result.mcnemar.only_a, result.mcnemar.only_b, result.mcnemar.neither) == (1, 1, 2)


def test_flips_are_the_largest_changes(real):
    table, _, a, b = real
    keys = table["pair_id"].to_numpy()
    result = of_files()
    change = b["reward_margin"] - a["reward_margin"]
    for flips, rows, sign in (
        (result.gained, (a["reward_margin"] <= 0) & (b["reward_margin"] > 0), -1),
        (result.lost, (a["reward_margin"] > 0) & (b["reward_margin"] <= 0), 1),
    ):
        order = np.lexsort((keys[rows], sign * change[rows]))[:20]
        assert flips["key"].to_list() == keys[rows][order].tolist()
        assert flips["change"].to_list() == pytest.approx(change[rows][order], rel=1e-9)
        assert flips["margin_a"].to_list() == pytest.approx(
            a["reward_margin"][rows][order], rel=1e-9
        )
        assert flips.height == 20


def test_histograms_hold_every_pair(real):
    _, _, a, b = real
    result = of_files()
    assert result.changes["n_pairs"].sum() == result.margins["n_pairs"].sum() == 1583
    edges = [*result.changes["lower"].to_list(), result.changes["upper"].to_list()[-1]]
    change = b["reward_margin"] - a["reward_margin"]
    assert edges[0] <= change.min()
    assert change.max() <= edges[-1]
    # Every bin ends where the next that is not empty begins, or before.
    inside = [
        int(((change >= low) & (change < high)).sum())
        for low, high in result.changes.select("lower", "upper").rows()
    ]
    assert inside == result.changes["n_pairs"].to_list()


# --- subsets ---------------------------------------------------------------------------------


def test_subsets_are_comparisons_of_their_own_with_p_values_adjusted():
    whole = of_files(("turns",))
    table = whole.subsets
    assert table["turns"].to_list() == sorted(table["turns"].to_list())
    assert table["n_valid"].sum() == 1583
    for row in table.filter(pl.col("n_valid") > 40).head(3).iter_rows(named=True):
        parts = [pl.read_parquet(p).filter(pl.col("turns") == row["turns"]) for p in (A, B)]
        alone = compare(*parts)
        accuracy = alone.differences["reward_accuracy"]
        assert row["accuracy_difference"] == accuracy.estimate.value
        assert row["accuracy_low"] == accuracy.estimate.interval.low
        assert (row["p_value"], row["smallest_effect"]) == (
            accuracy.p_value,
            accuracy.smallest_effect,
        )
        assert (row["accuracy_a"], row["accuracy_b"]) == (accuracy.a, accuracy.b)
        assert row["loss_low"] == alone.differences["loss"].estimate.interval.low
        assert row["margin_high"] == alone.differences["reward_margin"].estimate.interval.high
    p_values = table["p_value"].to_list()
    for name, method in (("p_holm", "holm"), ("p_benjamini_hochberg", "fdr_bh")):
        assert table[name].to_list() == pytest.approx(
            multipletests(p_values, method=method)[1], rel=REL
        )


def test_a_prompt_in_two_subsets_is_one_cluster_of_the_whole():
    a, b = frames(n=48, per_prompt=6)  # every prompt has pairs of x and of y
    result = compare(a, b, by="split")
    assert result.n_clusters == 8
    assert result.subsets["n_clusters"].to_list() == [8, 8]
    assert result.differences == compare(a, b).differences


def test_subsets_come_from_the_side_that_has_them_and_null_is_one():
    a, b = frames()
    b = b.with_columns(split=pl.when(pl.col("split") == "x").then(pl.lit("x")))
    found = compare(a.drop("split"), b, by="split").subsets
    assert found.select("split", "n_valid").rows() == [("x", 20), (None, 40)]


@pytest.mark.parametrize(
    ("by", "text"),
    [
        ("spilt", "by: 'spilt' is a column of neither side (did you mean 'split'?)"),
        ("p_holm", "'p_holm' is the name of a figure"),
        (3, "by must be a column name or several"),
    ],
)
def test_subsets_that_cannot_be(by, text):
    assert text in raised(UsageError, *frames(), by=by)


def test_too_many_subsets(monkeypatch):
    monkeypatch.setattr(common_pairs, "MAX_SUBSETS_WITH_STATISTICS", 59)
    assert "more than 59 subsets" in raised(UsageError, *frames(), by="pair_id")


# --- exactness -------------------------------------------------------------------------------


@pytest.mark.repeats(1)  # pairs are clusters of one; `test_paired_arrays` cuts prompts too
@pytest.mark.parametrize("clusters_held", [20_000, 10])
@pytest.mark.parametrize("per_prompt", [None, 3])
def test_order_files_and_chunks_change_no_bit(monkeypatch, tmp_path, clusters_held, per_prompt):
    monkeypatch.setattr(side_sums, "CLUSTERS_HELD", clusters_held)
    a, b = frames(n=300, per_prompt=per_prompt)
    expected = said(compare(a, b, by="split"))
    for name, table in (("a", a), ("b", b)):
        (tmp_path / name).mkdir()
        rows = table.sample(fraction=1, shuffle=True, seed=11)
        rows[:70].write_parquet(tmp_path / name / "1.parquet", row_group_size=9)
        rows[70:].write_parquet(tmp_path / name / "2.parquet")
    monkeypatch.setattr(common_pairs, "STATISTICS_ROWS", 37)
    assert said(compare(tmp_path / "a", tmp_path / "b", by="split")) == expected


@pytest.mark.repeats(1)  # pairs that are alone are clusters of one
@pytest.mark.parametrize("per_prompt", [None, 3])
def test_bags_have_the_same_figures_and_nearly_the_same_errors(monkeypatch, per_prompt):
    a, b = frames(n=6000, per_prompt=per_prompt)
    exact = compare(a, b)
    monkeypatch.setattr(side_sums, "CLUSTERS_HELD", 10)
    bagged = compare(a, b)
    assert bagged.clusters == ("1,024 bags of " + ("prompts" if per_prompt else "pairs"))
    assert bagged.n_clusters is None
    assert bagged.a.summary == exact.a.summary
    for name, found in bagged.differences.items():
        estimate, wanted = found.estimate, exact.differences[name].estimate
        assert estimate.value == pytest.approx(wanted.value, rel=1e-12)
        # A standard error from 1,024 bags is itself uncertain by 2.2%.
        assert estimate.standard_error == pytest.approx(wanted.standard_error, rel=0.1)


def test_beta_and_loss_are_those_of_evaluate(real):
    _, _, a, b = real
    result = compare(A, B, beta=0.5, loss="hinge")
    for name, side in (("a", a), ("b", b)):
        expected = np.maximum(0.0, 1 - 5 * side["reward_margin"]).mean()
        assert getattr(result, name).summary.loss == pytest.approx(expected, rel=1e-9)
    assert result.mcnemar == of_files().mcnemar


def test_swapping_the_sides_negates():
    there, back = of_files(), compare(B, A)
    for name, found in there.differences.items():
        other = back.differences[name]
        assert other.estimate.value == -found.estimate.value
        assert other.estimate.interval.low == pytest.approx(
            -found.estimate.interval.high, rel=1e-12
        )
        assert other.p_value == found.p_value
    assert (back.mcnemar.only_a, back.mcnemar.only_b) == (
        there.mcnemar.only_b,
        there.mcnemar.only_a,
    )


def false_alarms(rng, n_prompts, per_prompt, datasets, *, is_by_prompt):
    """Return how often two equally good policies are told apart at 5%."""
    alarms = 0
    n = np.full(n_prompts, per_prompt)
    for _ in range(datasets):
        hard = rng.normal(0, 1.5, n_prompts)[:, None]
        p = 1 / (1 + np.exp(-hard))
        # Either policy has its good and bad prompts, so that pairs of one resemble each other.
        right = [
            rng.random((n_prompts, per_prompt))
            < np.clip(p + rng.normal(0, 0.2, (n_prompts, 1)), 0, 1)
            for _ in "ab"
        ]
        if not is_by_prompt:
            right = [rng.random((n_prompts, per_prompt)) < p for _ in "ab"]
        only_a, only_b = (right[0] & ~right[1]).sum(1), (right[1] & ~right[0]).sum(1)
        clusters = pl.DataFrame(
            {
                CLUSTER: np.arange(n_prompts),
                "n_valid": n,
                "both_right": (right[0] & right[1]).sum(1),
                "only_a": only_a,
                "only_b": only_b,
                "halves": 2 * (only_b - only_a),
                **dict.fromkeys(MEANS, only_b - only_a),
            }
        )
        empty = pl.DataFrame()
        paired = Paired(
            by=(),
            is_by_prompt=is_by_prompt,
            is_exact=True,
            totals_a=empty,
            totals_b=empty,
            clusters=clusters,
            gained=empty,
            lost=empty,
            changes=empty,
            margins=empty,
        )
        figures = dict.fromkeys(SUMMARY_FIGURES, 1.0) | {"n_valid": int(n.sum()), "n_ties": 0}
        side = Summary(**figures)
        p_value = differences_of(paired, side, side, 0.95)["reward_accuracy"].p_value
        alarms += p_value < 0.05
    return alarms / datasets


@pytest.mark.slow  # a simulation of what the tests above compare with scipy, row for row
def test_false_alarms_of_the_paired_test():
    datasets, off = 1_500, 0.01  # a share of 5% is known to three times 0.6 points
    rng = np.random.default_rng(1)
    for n_prompts, per_prompt in ((600, 1), (300, 3)):
        share = false_alarms(rng, n_prompts, per_prompt, datasets, is_by_prompt=per_prompt > 1)
        assert abs(share - 0.05) <= off
    # Of few clusters there are fewer than 5%.
    for n_prompts, per_prompt in ((25, 1), (12, 3)):
        share = false_alarms(rng, n_prompts, per_prompt, datasets, is_by_prompt=per_prompt > 1)
        assert share <= 0.05 + off / 2
