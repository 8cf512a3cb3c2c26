"""Two policies on the same pairs: against numpy, scipy and statsmodels, and what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from fractions import Fraction
from itertools import product
from threading import Event

import jsonschema
import numpy as np
import polars as pl
import pytest
import statsmodels.api as sm
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from conftest import DATA, LOGPS
from dpo_pipeline import (
    Cancelled,
    ColumnError,
    ContractError,
    DataWarning,
    InvalidPairsError,
    JoinError,
    StorageError,
    UsageError,
    compare,
)
from dpo_pipeline.cli.program import main
from dpo_pipeline.comparison import common_pairs
from dpo_pipeline.comparison.differences import differences_of
from dpo_pipeline.comparison.paired_gathering import MEANS, Paired
from dpo_pipeline.published.tables_out import published
from dpo_pipeline.sums import CLUSTER, SUMMARY_FIGURES, Summary, growing_tables

A, B = DATA / "hh_harmless_policy_a.parquet", DATA / "hh_harmless_policy_b_train.parquet"
REFS = ("ref_chosen_logps", "ref_rejected_logps")
POLICIES = ("policy_chosen_logps", "policy_rejected_logps")
NOT_STREAMED = ("multiplexer", "in-memory-map", "in-memory-fallback")
BETA = 0.1
REL = 1e-9


@pytest.fixture(scope="module")
def real():
    """The common real pairs, joined and scored by numpy, in the order of the key."""
    a, b = (pl.read_parquet(path).sort("pair_id") for path in (A, B))
    a = a.filter(pl.col("pair_id").is_in(b["pair_id"].implode()))
    assert a["pair_id"].to_list() == b["pair_id"].to_list()
    scored = {}
    for name, table in (("a", a), ("b", b)):
        c, r, ref_c, ref_r = (table[n].to_numpy().astype(float) for n in LOGPS)
        chosen, rejected = BETA * (c - ref_c), BETA * (r - ref_r)
        margin = chosen - rejected
        scored[name] = {
            "reward_accuracy": (margin > 0).astype(float),
            "loss": np.logaddexp(0.0, -margin),
            "reward_margin": margin,
            "chosen_reward": chosen,
            "rejected_reward": rejected,
        }
    return a, b, scored["a"], scored["b"]


def frames(n=60, seed=3, *, per_prompt=None, scale=2.0):
    """Two policies that know the same reference; margins of a few tenths of a nat."""
    rng = np.random.default_rng(seed)
    shared = {
        "pair_id": np.arange(n) + 100,
        **{name: rng.normal(-100, 10, n).round(3) for name in REFS},
        "split": np.where(np.arange(n) % 3 == 0, "x", "y"),
    }
    if per_prompt:
        shared["prompt_id"] = np.arange(n) // per_prompt
    sides = []
    for _ in range(2):
        moved = {
            policy: shared[ref] + rng.normal(0, scale, n)
            for policy, ref in zip(POLICIES, REFS, strict=True)
        }
        sides.append(pl.DataFrame({**shared, **moved}))
    return sides


def said(result):
    """Return all that a comparison says, but for the names of its sources."""
    document = result.to_dict()
    for side in "ab":
        document[side] |= {"source": None, "borrowed": None}
    return repr((document, result.changes.rows(), result.margins.rows()))


def raised(kind, *args, **kwargs):
    with pytest.raises(kind) as caught:
        compare(*args, **kwargs)
    assert type(caught.value) is kind
    return str(caught.value)


def by_ttest(differences):
    """Return mean, standard error, limits and p of paired differences, by scipy."""
    test = stats.ttest_1samp(differences, 0.0)
    interval = test.confidence_interval(0.95)
    return differences.mean(), stats.sem(differences), interval.low, interval.high, test.pvalue


def told(difference):
    estimate = difference.estimate
    interval = estimate.interval
    return (
        estimate.value,
        estimate.standard_error,
        interval.low,
        interval.high,
        difference.p_value,
    )


# --- figures ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["loss", "reward_margin", "chosen_reward", "rejected_reward"])
def test_mean_differences_are_those_of_the_paired_t_test(real, name):
    _, _, a, b = real
    found = compare(A, B).differences[name]
    expected = by_ttest(b[name] - a[name])
    assert told(found) == pytest.approx(expected, rel=REL)
    assert found.p_value == pytest.approx(stats.ttest_rel(b[name], a[name]).pvalue, rel=1e-8)
    assert (found.a, found.b) == pytest.approx((a[name].mean(), b[name].mean()), rel=REL)
    # (z_0.975 + z_0.8) SE
    assert found.smallest_effect == pytest.approx(
        (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * expected[1], rel=REL
    )
    assert found.test == "Student t"


def test_accuracy_is_tested_by_mcnemar(real):
    _, _, a, b = real
    a, b = a["reward_accuracy"], b["reward_accuracy"]
    result = compare(A, B)
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
    result = compare(A, B)
    for side, expected in ((result.a, a), (result.b, b)):
        assert side.summary.n_pairs == side.summary.n_valid == 1583
        for name, values in expected.items():
            assert getattr(side.summary, name) == pytest.approx(values.mean(), rel=1e-10)
    assert (result.n_common, result.n_valid) == (1583, 1583)
    assert (result.a.n_pairs, result.a.n_alone) == (2281, 698)
    assert (result.b.n_pairs, result.b.n_alone) == (1583, 0)


def test_clusters_are_those_of_statsmodels():
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
    fitted = sm.OLS(d, np.ones_like(d)).fit(
        cov_type="cluster", cov_kwds={"groups": groups, "use_correction": False}
    )
    error = fitted.bse[0] * math.sqrt(23 / 22)
    found = result.differences["reward_margin"]
    t = d.mean() / error
    half = stats.t.ppf(0.975, 22) * error
    expected = (d.mean(), error, d.mean() - half, d.mean() + half, 2 * stats.t.sf(abs(t), 22))
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
    result = compare(A, B)
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
    result = compare(A, B)
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
    whole = compare(A, B, by="turns")
    table = whole.subsets
    assert table["turns"].to_list() == sorted(table["turns"].to_list())
    assert table["n_valid"].sum() == 1583
    for row in table.filter(pl.col("n_valid") > 40).iter_rows(named=True):
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


@pytest.mark.parametrize("clusters_held", [20_000, 10])
@pytest.mark.parametrize("per_prompt", [None, 3])
def test_order_files_and_chunks_change_no_bit(monkeypatch, tmp_path, clusters_held, per_prompt):
    monkeypatch.setattr(growing_tables, "CLUSTERS_HELD", clusters_held)
    a, b = frames(n=300, per_prompt=per_prompt)
    expected = said(compare(a, b, by="split"))
    for name, table in (("a", a), ("b", b)):
        (tmp_path / name).mkdir()
        rows = table.sample(fraction=1, shuffle=True, seed=11)
        rows[:70].write_parquet(tmp_path / name / "1.parquet", row_group_size=9)
        rows[70:].write_parquet(tmp_path / name / "2.parquet")
    monkeypatch.setattr(common_pairs, "STATISTICS_ROWS", 37)
    assert said(compare(tmp_path / "a", tmp_path / "b", by="split")) == expected


@pytest.mark.parametrize("per_prompt", [None, 3])
def test_bags_have_the_same_figures_and_nearly_the_same_errors(monkeypatch, per_prompt):
    a, b = frames(n=6000, per_prompt=per_prompt)
    exact = compare(a, b)
    monkeypatch.setattr(growing_tables, "CLUSTERS_HELD", 10)
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
    result = compare(A, B, 0.5, loss="hinge")
    for name, side in (("a", a), ("b", b)):
        expected = np.maximum(0.0, 1 - 5 * side["reward_margin"]).mean()
        assert getattr(result, name).summary.loss == pytest.approx(expected, rel=1e-9)
    assert result.mcnemar == compare(A, B).mcnemar


def test_swapping_the_sides_negates():
    there, back = compare(A, B), compare(B, A)
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


def test_false_alarms_of_the_paired_test():
    rng = np.random.default_rng(1)
    assert 0.04 <= false_alarms(rng, 600, 1, 1500, is_by_prompt=False) <= 0.06
    assert 0.04 <= false_alarms(rng, 300, 3, 1500, is_by_prompt=True) <= 0.06
    assert false_alarms(rng, 25, 1, 1500, is_by_prompt=False) <= 0.05
    assert false_alarms(rng, 12, 3, 1500, is_by_prompt=True) <= 0.055  # at most 5%, and chance


# --- verdicts and documents ------------------------------------------------------------------


def shifted(by, n=400):
    """Two policies of which B moves every chosen reward by so much."""
    a, b = frames(n=n)
    return a, b.with_columns(policy_chosen_logps=pl.col("policy_chosen_logps") + by)


def test_verdicts():
    better, worse = compare(*shifted(3.0)), compare(*shifted(-3.0))
    assert (better.better, worse.better) == ("b", "a")
    assert better.verdict.startswith("B is better than A: accuracy +")
    assert worse.verdict.startswith("B is worse than A: accuracy -")
    assert better.verdict.endswith("p < 0.0001, on 400 common pairs")
    none = compare(A, B)
    assert none.better is None
    assert none.verdict == (
        "no difference shown: accuracy -0.6 points (95% CI -1.9 to +0.6), p = 0.36, on 1,583 "
        "common pairs; the smallest effect that these data could have shown at 80% power is 1.8 "
        "points"
    )
    assert str(none).startswith(none.verdict)


def of_margins(*sides):
    """Return policies with the given differences of log-ratio, in nats."""
    tables = []
    for side in sides:
        n = len(side)
        table = {
            "pair_id": list(range(n)),
            "policy_chosen_logps": [-50.0 - 3 * (i % 5) + d for i, d in enumerate(side)],
            "policy_rejected_logps": [-60.0 + i % 7 for i in range(n)],
            "ref_chosen_logps": [-50.0 - 3 * (i % 5) for i in range(n)],
            "ref_rejected_logps": [-60.0 + i % 7 for i in range(n)],
        }
        tables.append(pl.DataFrame(table))
    return tables


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
    assert result.verdict.startswith("no difference shown: accuracy +52.0 points")
    assert (
        f"(A ties on 200 pairs, which count as wrong; with ties half the difference is +2.0, "
        f"p = {p:.2g}); the smallest effect"
    ) in result.verdict
    shown = (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * stats.sem(d)
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


def test_clusters_without_a_spread_have_no_interval():
    result = compare(*of_margins([1.0, 2, 3, 4, 5], [5.0, 4, 3, 2, 1]))
    half = result.differences["reward_accuracy_half"]
    assert (half.estimate.value, half.p_value) == (0.0, 1.0)
    assert half.estimate.interval is half.estimate.standard_error is half.smallest_effect is None
    assert result.differences["loss"].estimate.interval is not None


def test_no_rate_differs_by_more_than_one():
    # Differences 1, 1, 1/2: Student's upper limit is 5/6 + 4.30/6, far beyond 1.
    result = compare(*of_margins([-1.0, -1, 0], [1.0, 2, 3]))
    interval = result.differences["reward_accuracy_half"].estimate.interval
    assert interval.high == 1.0
    low = 5 / 6 - stats.t.ppf(0.975, 2) / 6
    assert interval.low == pytest.approx(low, rel=REL)


def test_loss_has_a_line_of_its_own():
    result = compare(A, B)
    loss = result.differences["loss"].estimate
    limits = f"({loss.interval.low:.4f} to {loss.interval.high:.4f})"
    expected = f"Loss: B minus A is {loss.value:.4f} {limits}, at one beta of 0.1 for both."
    assert str(result).splitlines()[1] == expected
    assert "Loss" not in result.verdict


def test_tiny_p_values_and_single_pairs_in_the_text():
    result = compare(*shifted(3.0), by="split")
    (line,) = (x for x in str(result).splitlines() if x.startswith("reward_accuracy "))
    assert " <0.0001 " in line
    (line,) = (x for x in str(result).splitlines() if x.startswith("x "))
    assert line.split()[-2:] == ["<0.0001", "<0.0001"]
    one = str(compare(*(table[:1] for table in frames())))
    assert "A: A: 1 pair, 0 in A alone" in one
    assert "1 common pair by pair_id" in one
    assert "on 1 common pair" in one


def test_the_level_decides():
    a, b = frames(n=400, seed=5, scale=20.0)
    p = compare(a, b).differences["reward_accuracy"].p_value
    assert 0.001 < p < 0.999
    assert compare(a, b, level=1 - p * 1.01).better is not None
    assert compare(a, b, level=1 - p * 0.99).better is None
    loss = compare(a, b, level=0.8).differences["loss"]
    found = loss.estimate
    expected = by_ttest_at(a, b, 0.8)
    assert (found.interval.low, found.interval.high) == pytest.approx(expected, rel=REL)
    assert loss.smallest_effect == pytest.approx(
        (stats.norm.ppf(0.9) + stats.norm.ppf(0.8)) * found.standard_error, rel=REL
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


SCHEMA = json.loads(published()["comparison.schema.json"])


def test_the_document_follows_its_schema():
    a, b = frames(n=40, per_prompt=2)
    for result in (
        compare(a, b),
        compare(A, B, 0.05, by=["turns", "split"]),
        compare(a.drop(REFS), b, by="split"),
        compare(broken_at(a, 103), b, loss="ipo", on_invalid="exclude"),
        compare(*(table.with_columns(prompt_id=1) for table in (a, b))),
    ):
        jsonschema.validate(json.loads(result.to_json()), SCHEMA)


def test_the_schema_refuses_what_is_no_comparison():
    document = json.loads(compare(*frames()).to_json())
    wrong = [{"better": "B"}, {"document_version": 2}, {"more": 1}, {"n_valid": -1}]
    wrong += [{"differences": {}}, {"a": {**document["a"], "n_pairs": None}}]
    for each in wrong:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(document | each, SCHEMA)


# --- joining ---------------------------------------------------------------------------------


def test_rows_that_are_lost_are_counted():
    a, b = frames()
    result = compare(a[:50], b[20:])
    assert (result.n_common, result.a.n_alone, result.b.n_alone) == (30, 20, 10)
    assert "A: A: 50 pairs, 20 in A alone" in str(result)
    assert said(
        replace(result, a=compare(a[20:50], b[20:50]).a, b=compare(a[20:50], b[20:50]).b)
    ) == (said(compare(a[20:50], b[20:50])))


def test_keys_that_are_null_or_twice_or_never_shared():
    a, b = frames(n=8)
    text = raised(JoinError, a.with_columns(pair_id=pl.Series([None, None, *range(102, 108)])), b)
    assert "A (8 rows) and B (8 rows) cannot be joined by 'pair_id'" in text
    assert "null in A: 2 rows" in text
    text = raised(JoinError, a, pl.concat([b, b[3:5]]))
    assert "more than once in B: 4 rows, such as 103, 104" in text
    assert "alone" not in text
    text = raised(JoinError, a, b.with_columns(pl.col("pair_id") + 50))
    assert "in A alone: 8 rows, such as 100, 101" in text
    assert "in B alone: 8 rows, such as 150, 151" in text


@pytest.mark.parametrize(
    "dtype",
    [pl.Int32, pl.UInt64, pl.Int8],
)
def test_integers_of_any_width_are_one_key(dtype):
    a, b = frames(n=20)
    assert said(compare(a, b.with_columns(pl.col("pair_id").cast(dtype)))) == said(compare(a, b))


@pytest.mark.parametrize("dtype", [pl.Int64, pl.Int8])
def test_an_integer_and_a_text_are_compared_as_text(dtype):
    a, b = frames(n=20)
    a = a.with_columns(pl.col("pair_id").cast(dtype))
    texts = b.with_columns(pl.col("pair_id").cast(pl.String))
    found = compare(a, texts)
    assert (found.n_common, found.mcnemar) == (20, compare(a, b).mcnemar)
    padded = texts.with_columns(pair_id=pl.lit("0") + pl.col("pair_id"))
    assert "in B alone: 20 rows, such as '0100'" in raised(JoinError, a, padded)


def test_texts_and_categories_are_keys():
    a, b = (t.with_columns(pl.format("é-{}", "pair_id").alias("id")) for t in frames(n=20))
    expected = compare(a, b, on="id")
    found = compare(a, b.with_columns(pl.col("id").cast(pl.Categorical)), on="id")
    assert said(found) == said(expected)
    # Another key, another order of the clusters: the same figures but for rounding.
    by_number = compare(*frames(n=20))
    assert expected.mcnemar == by_number.mcnemar
    assert told(expected.differences["loss"]) == pytest.approx(
        told(by_number.differences["loss"]), rel=1e-12
    )


def test_keys_of_types_that_cannot_be_equal():
    a, b = frames(n=8)
    text = raised(ColumnError, a, b.with_columns(pl.col("pair_id").cast(pl.Float64)))
    assert "pair_id: it is Float64 here and Int64 in A; convert one" in text
    text = raised(ColumnError, a, b.rename({"pair_id": "pairid"}))
    assert "pair_id: missing (did you mean 'pairid'?)" in text
    nested = [t.with_columns(pair_id=pl.concat_list("pair_id")) for t in (a, b)]
    assert "must be a plain value" in raised(ColumnError, *nested)
    assert "no pattern" in raised(UsageError, a, b, on="^pair.*$")


def test_an_empty_side():
    a, b = frames(n=8)
    assert "B: it holds no pairs" in raised(ContractError, a, b[:0])
    assert "A: it holds no pairs" in raised(ContractError, a[:0], b[:0])


def test_columns_of_other_names():
    a, b = frames()
    expected = compare(a, b)
    renamed = b.rename({"policy_chosen_logps": "w", "policy_rejected_logps": "l", "pair_id": "id"})
    mapping = {"policy_chosen_logps": "w", "policy_rejected_logps": "l", "pair_id": "id"}
    assert said(compare(a, renamed, b_columns=mapping)) == said(expected)
    both = a.rename({"policy_chosen_logps": "w", "policy_rejected_logps": "l", "pair_id": "id"})
    assert said(compare(both, renamed, columns=mapping)) == said(expected)


# --- what sides lend each other --------------------------------------------------------------


@pytest.mark.parametrize("lacking", ["a", "b"])
def test_a_side_without_a_reference_takes_that_of_the_other(lacking):
    a, b = frames()
    expected = compare(a, b)
    sides = {"a": a, "b": b}
    sides[lacking] = sides[lacking].drop(REFS)
    result = compare(**sides)
    assert said(result) == said(expected)
    other = {"a": "B", "b": "A"}[lacking]
    assert getattr(result, lacking).borrowed == dict.fromkeys(REFS, other)
    assert f"ref_chosen_logps, ref_rejected_logps from {other}" in str(result)


def test_a_reference_of_both():
    a, b = frames()
    reference = pl.concat(
        [
            a.select("pair_id", *REFS),
            pl.DataFrame(
                {"pair_id": [7], "ref_chosen_logps": [-1.0], "ref_rejected_logps": [-2.0]}
            ),
        ]
    ).sample(fraction=1, shuffle=True, seed=2)
    result = compare(a.drop(REFS), b.drop(REFS), reference=reference)
    assert said(result) == said(compare(a, b))
    assert result.a.borrowed == result.b.borrowed == dict.fromkeys(REFS, "reference")
    by_policy = reference.rename(dict(zip(REFS, POLICIES, strict=True)))
    mapping = dict(zip(REFS, POLICIES, strict=True))
    found = compare(a.drop(REFS), b.drop(REFS), reference=by_policy, reference_columns=mapping)
    assert said(found) == said(result)


def test_references_that_cannot_be():
    a, b = frames(n=10)
    bare = a.drop(REFS), b.drop(REFS)
    reference = a.select("pair_id", *REFS)
    assert "ref_chosen_logps: missing" in raised(ColumnError, *bare)
    text = raised(JoinError, *bare, reference=reference[:7])
    assert "in A and B, and not in reference: 3 rows, such as 107, 108, 109" in text
    text = raised(JoinError, *bare, reference=pl.concat([reference, reference[:1]]))
    assert "more than once in reference: 2 rows, such as 100" in text
    text = raised(ColumnError, a, bare[1], reference=reference)
    assert "A does not fit the contract:\n  it has reference log-probs, and reference too" in text
    text = raised(UsageError, *bare, reference=reference, loss="cpo")
    assert "this loss has none" in text
    text = raised(UsageError, *bare, reference_columns={"ref_chosen_logps": "x"})
    assert "reference_columns are columns of a reference" in text
    text = raised(UsageError, *bare, reference=reference, reference_columns={"pair_id": "x"})
    assert "'pair_id' is none of ref_chosen_logps and ref_rejected_logps" in text


def test_a_borrowed_reference_is_judged_where_it_comes_from():
    a, b = frames(n=10)
    broken = a.with_columns(
        ref_chosen_logps=pl.when(pl.col("pair_id") == 104).then(5.0).otherwise("ref_chosen_logps")
    )
    text = raised(InvalidPairsError, broken, b.drop(REFS))
    assert "ref_chosen_logps.at_most" in text
    assert "first at row 4: 5.0" in text
    text = raised(
        InvalidPairsError, a.drop(REFS), b.drop(REFS), reference=broken.select("pair_id", *REFS)
    )
    assert "reference breaks its contract in 1 of 10 rows" in text
    kept = compare(broken, b.drop(REFS), on_invalid="exclude")
    assert (kept.n_valid, kept.a.n_invalid, kept.b.n_invalid) == (9, 1, 0)


def test_token_counts_are_lent_too():
    a, b = frames()
    counts = {"chosen_num_tokens": pl.lit(7), "rejected_num_tokens": pl.lit(9)}
    a, b = a.with_columns(**counts), b.with_columns(**counts)
    expected = compare(a, b, loss="sigmoid_norm")
    result = compare(a, b.drop(counts), loss="sigmoid_norm")
    assert said(result) == said(expected)
    assert set(result.b.borrowed) == set(counts)
    c, r, ref_c, ref_r = (b[n].to_numpy() for n in LOGPS)
    assert result.b.summary.loss == pytest.approx(
        np.logaddexp(0.0, -BETA * ((c - ref_c) / 7 - (r - ref_r) / 9)).mean(), rel=1e-9
    )


def test_a_loss_without_a_reference_needs_none():
    a, b = frames()
    result = compare(a.drop(REFS), b.drop(REFS), loss="cpo")
    c, r = (b[n].to_numpy() for n in POLICIES)
    assert result.b.summary.loss == pytest.approx(
        np.logaddexp(0.0, -BETA * (c - r)).mean(), rel=REL
    )


def test_other_references_are_a_finding():
    a, b = frames()
    moved = b.with_columns(
        ref_chosen_logps=pl.col("ref_chosen_logps")
        - pl.when(pl.col("pair_id") < 110).then(4.5).otherwise(0.0)
    )
    with pytest.warns(DataWarning, match="ref_chosen_logps differs"):
        result = compare(a, moved)
    reason = (
        "A and B were scored against different references (ref_chosen_logps differs on 10 of 60 "
        "pairs, by up to 4.5 nats), so accuracy, rewards, margins and loss cannot be compared"
    )
    assert result.findings == (result.incomparable,) == (reason,)
    assert str(result).startswith(f"no verdict: {reason}\n\n")
    assert f"problem: {reason}" in str(result)
    assert result.loss_verdict is None
    rounded = b.with_columns(pl.col(REFS).cast(pl.Float32).cast(pl.Float64))
    assert compare(a, rounded).findings == ()


def test_without_the_same_reference_no_side_is_better():
    a, b = shifted(3.0)
    assert compare(a, b).better == "b"
    with pytest.warns(DataWarning, match="different references"):
        result = compare(a, b.with_columns(pl.col("ref_chosen_logps") - 5))
    assert (result.better, result.to_dict()["better"]) == (None, None)
    assert result.differences["reward_accuracy"].p_value < 1e-4
    assert "on 400 of 400 pairs, by up to 5 nats" in result.verdict


def test_a_loss_without_a_reference_is_compared_all_the_same():
    a, b = shifted(3.0)
    result = compare(a, b.with_columns(pl.col("ref_chosen_logps") - 5), loss="cpo")
    assert (result.incomparable, result.findings) == (None, ())


def test_keys_that_do_not_mean_the_same_pairs_are_a_finding():
    a, b = (
        t.with_columns(chosen_num_tokens=pl.lit(9), rejected_num_tokens=pl.lit(9))
        for t in frames(per_prompt=2)
    )
    with pytest.warns(DataWarning, match="may not mean the same pairs"):
        result = compare(a, b.with_columns(prompt_id=pl.col("prompt_id") % 20))
    assert "prompt_id differs between A and B on 20 of 60 pairs" in result.findings[0]
    with pytest.warns(DataWarning, match="chosen_num_tokens differs between A and B on 60 of 60"):
        compare(a, b.with_columns(chosen_num_tokens=pl.lit(7)))


def test_one_policy_twice_is_a_finding():
    a, _ = frames()
    with pytest.warns(DataWarning, match="the same margin on all 60 pairs"):
        result = compare(a, a)
    assert result.better is None
    assert result.differences["loss"].p_value == 1.0


def test_what_is_surely_wrong_of_one_side_is_a_finding():
    a, b = frames()
    unmoved = b.with_columns(**{p: pl.col(r) for p, r in zip(POLICIES, REFS, strict=True)})
    with pytest.warns(DataWarning, match=r"B \(B\): policy and reference log-probs are equal"):
        compare(a, unmoved)


# --- invalid pairs ---------------------------------------------------------------------------


def broken_at(table, *keys):
    """Break the policy's chosen log-prob of some pairs."""
    is_it = pl.col("pair_id").is_in(list(keys))
    return table.with_columns(
        policy_chosen_logps=pl.when(is_it).then(math.nan).otherwise("policy_chosen_logps")
    )


def test_invalid_pairs_are_an_error_that_names_the_side():
    a, b = frames(n=10)
    text = raised(InvalidPairsError, a, broken_at(b, 103, 105))
    assert text.startswith(
        "2 of 10 common pairs are invalid\nB breaks its contract in 2 of 10 rows"
    )
    assert "policy_chosen_logps.not_nan" in text
    assert "first at row 3: nan; row 5: nan" in text


def test_invalid_pairs_are_left_out_of_both_sides():
    a, b = frames(n=40)
    result = compare(broken_at(a, 101, 102), broken_at(b, 102, 103), on_invalid="exclude")
    keep = ~pl.col("pair_id").is_in([101, 102, 103])
    expected = compare(a.filter(keep), b.filter(keep))
    assert result.differences == expected.differences
    assert (result.n_common, result.n_valid) == (40, 37)
    assert (result.a.n_invalid, result.b.n_invalid) == (2, 2)
    assert result.a.summary.n_invalid == 3
    assert result.b.invalid.by_rule == {"policy_chosen_logps.not_nan": 2}
    assert "40 common pairs by pair_id, 3 invalid" in str(result)
    limits = {"on_invalid": "exclude", "max_invalid": 2}
    text = raised(InvalidPairsError, broken_at(a, 101, 102), broken_at(b, 102, 103), **limits)
    assert "3 of 40 common pairs are invalid, more than max_invalid (2) allows" in text
    with_share = compare(a, broken_at(b, 103), on_invalid="exclude", max_invalid=0.025)
    assert with_share.n_valid == 39


def test_invalid_pairs_of_one_side_alone_do_no_harm():
    a, b = frames(n=10)
    result = compare(broken_at(a, 101), b.filter(pl.col("pair_id") != 101))
    assert (result.n_valid, result.a.invalid) == (9, None)


def test_no_valid_pair():
    a, b = frames(n=4)
    bad = broken_at(a, 100, 101, 102, 103)
    text = raised(InvalidPairsError, bad, b, on_invalid="exclude")
    assert "no common pair is valid on both sides" in text


def test_scores_out_of_range():
    a, b = frames(n=4)
    huge = b.with_columns(
        policy_chosen_logps=pl.when(pl.col("pair_id") == 101)
        .then(-4e6)
        .otherwise("policy_chosen_logps")
    )
    text = raised(ContractError, a, huge, 1e9, loss="ipo")
    assert "1 of 4 common pairs are invalid: their log-probs are sound" in text
    kept = compare(a, huge, 1e9, loss="ipo", on_invalid="exclude")
    assert (kept.n_valid, kept.a.n_invalid, kept.b.n_invalid) == (3, 0, 1)


def test_a_schema_of_ones_own():
    import pandera.polars as pa

    schema = pa.DataFrameSchema({"split": pa.Column(str, pa.Check.isin(["x"]))})
    result = compare(*frames(), contract=schema, on_invalid="exclude")
    assert result.n_valid == 20


# --- arguments, reading ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"loss": "aot"}, "is a loss of batches"),
        ({"beta": 0.0}, "beta is 0, so every reward is 0 and nothing can be compared: give a beta"),
        ({"level": 1.0}, "level"),
        ({"loss": "sigmoit"}, "did you mean 'sigmoid'"),
        ({"on_invalid": "quarantine"}, "on_invalid must be one of raise, exclude"),
        ({"max_invalid": 3}, "max_invalid needs on_invalid"),
        ({"columns": {"policy": "x"}}, "'policy' is not a column role"),
    ],
)
def test_arguments_that_cannot_be(arguments, text):
    assert text in raised(UsageError, *frames(n=4), **arguments)


def test_a_file_that_is_not_there(tmp_path):
    assert "no such file" in raised(StorageError, tmp_path / "none.parquet", B)


def test_each_side_is_read_twice_and_streams(engine):
    compare(A, B, by="turns")
    assert engine.data_scans == 4
    for graph in engine.graphs:
        if "multi-scan[parquet]" in graph:
            assert not any(what in graph for what in NOT_STREAMED)
    keys, pairs = (g for g in engine.graphs if "multi-scan[parquet]" in g)
    assert keys.count("project: 1 total") == 2, "keys alone are read to be counted"
    assert "join" in pairs


def test_progress_and_a_stop():
    seen = []
    compare(A, B, progress=seen.append)
    assert seen[0].phase == "joining"
    assert (seen[-1].phase, seen[-1].rows, seen[-1].total) == ("evaluating", 1583, 1583)
    stopped = Event()
    stopped.set()
    raised(Cancelled, A, B, cancel=stopped)


# --- the command -----------------------------------------------------------------------------


def run(capsys, *arguments):
    code = main(["compare", *(str(a) for a in arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_command_prints_what_the_library_says(capsys):
    code, out, err = run(capsys, A, B, "--by", "turns")
    assert (code, err) == (0, "")
    assert out == f"{compare(A, B, by='turns')}\n"
    code, out, _ = run(capsys, A, B, "--json", "--beta", "0.05", "--loss", "ipo", "--level", "0.9")
    assert (code, json.loads(out)) == (
        0,
        json.loads(compare(A, B, 0.05, loss="ipo", level=0.9).to_json()),
    )


def test_the_command_with_columns_references_and_formats(capsys, tmp_path):
    a, b = frames()
    expected = compare(a, b)
    a.drop(REFS).rename({"pair_id": "id"}).write_csv(tmp_path / "a.csv")
    names = {"policy_chosen_logps": "w", "policy_rejected_logps": "l", "pair_id": "id"}
    b.drop(REFS).rename(names).write_ndjson(tmp_path / "b.jsonl")
    a.select(id="pair_id", ref_chosen_logps=REFS[0], x=REFS[1]).write_parquet(
        tmp_path / "r.parquet"
    )
    mapped = [
        part
        for role, name in names.items()
        if role != "pair_id"
        for part in ("--b-column", f"{role}={name}")
    ]
    code, out, err = run(
        capsys,
        *(tmp_path / "a.csv", tmp_path / "b.jsonl", "--on", "id", "--json", *mapped),
        *("--reference", tmp_path / "r.parquet", "--reference-column", "ref_rejected_logps=x"),
    )
    assert (code, err) == (0, "")
    found = json.loads(out)
    wanted = json.loads(expected.to_json())
    for part in ("mcnemar", "n_valid"):
        assert found[part] == wanted[part]
    assert found["differences"]["loss"]["b"] == pytest.approx(wanted["differences"]["loss"]["b"])


def test_exit_codes_of_the_command(capsys, tmp_path):
    a, b = frames(n=10)
    for name, table in (("a", a), ("b", broken_at(b, 103)), ("twice", pl.concat([b, b]))):
        table.write_parquet(tmp_path / f"{name}.parquet")
    place = tmp_path / "a.parquet"
    code, out, err = run(capsys, place, tmp_path / "b.parquet")
    assert (code, out) == (1, "")
    assert "1 of 10 common pairs are invalid" in err
    code, out, err = run(capsys, place, tmp_path / "b.parquet", "--on-invalid", "exclude")
    assert code == 0
    assert "9 common pairs" in out
    assert "excluded: 1 common pair\n" in err
    code, out, err = run(capsys, place, tmp_path / "twice.parquet")
    assert (code, out) == (1, "")
    assert "more than once" in err
    assert run(capsys, place, tmp_path / "none.parquet")[0] == 3
    code, out, err = run(capsys, place, place, "--level", "1.5")
    assert (code, out) == (2, "")
    assert "level" in err
    assert run(capsys, place)[0] == 2


@pytest.mark.filterwarnings("ignore::dpo_pipeline.DataWarning")  # both sides are the same
def test_a_single_pair_can_show_nothing(real_pairs):
    found = compare(real_pairs.head(1), real_pairs.head(1))
    assert found.verdict.endswith("so few pairs could hardly have shown any")


@pytest.mark.parametrize(("name", "code"), [("there.html", 3), ("-", 2)])
def test_a_report_that_cannot_be_written_is_said_before_reading(
    name, code, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.html").write_text("old")
    assert main(["compare", "no-a.parquet", "no-b.parquet", "--report", name]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert "no-a.parquet" not in err
    assert (tmp_path / "there.html").read_text() == "old"
