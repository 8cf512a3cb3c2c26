"""Bootstrap and jackknife against plain Python, numpy and the formulas that they stand in for."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest

from dpo_pipeline.errors import UsageError
from dpo_pipeline.statistics.intervals import mean_of_clusters
from dpo_pipeline.statistics.resampling import bootstrap, delete_a_group, resampled, splitmix64
from oracle_tools import stats

WORD = 2**64


def splitmix64_by_hand(seed):
    """Yield its outputs, with Python's integers."""
    state = seed
    while True:
        state = (state + 0x9E3779B97F4A7C15) % WORD
        z = state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % WORD
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % WORD
        yield z ^ (z >> 31)


def first(count, words):
    return [word for word, _ in zip(words, range(count), strict=False)]


@pytest.mark.parametrize("seed", [0, 1, 1234567, WORD - 1])
def test_splitmix64(seed):
    expected = first(200, splitmix64_by_hand(seed))
    assert splitmix64(0, 200, seed=seed).to_list() == expected
    assert splitmix64(150, 50, seed=seed).to_list() == expected[150:]


def test_splitmix64_is_the_published_one():
    # The outputs for seed 1234567 that implementations in many languages are tested with.
    assert splitmix64(0, 5, seed=1234567).to_list() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def sums_of(values):
    return pl.DataFrame({"x": values, "n": [1] * len(values)})


def test_resampled_by_hand():
    values = [1.0, 10.0, 100.0, 1000.0, 10_000.0]
    words = first(15, splitmix64_by_hand(42))
    drawn = [(word >> 32) * 5 >> 32 for word in words]
    expected = [sum(values[i] for i in drawn[start : start + 5]) for start in (0, 5, 10)]
    samples = resampled(sums_of(values), n_replicates=3, seed=42)
    assert samples.rows() == [(total, 5.0) for total in expected]


def test_more_replicates_begin_with_the_same_ones(monkeypatch):
    table = sums_of(list(range(30)))
    few, many = resampled(table, n_replicates=10), resampled(table, n_replicates=150)
    assert many.head(10).equals(few)
    # However many are drawn at a time.
    monkeypatch.setattr("dpo_pipeline.statistics.resampling._DRAWS_AT_A_TIME", 70)
    assert resampled(table, n_replicates=150).equals(many)
    assert not resampled(table, n_replicates=10, seed=1).equals(few)


def test_every_row_is_drawn_as_often_as_any_other():
    counts = np.zeros(40)
    for i in range(40):
        marked = pl.DataFrame({"x": [float(j == i) for j in range(40)]})
        counts[i] = resampled(marked, n_replicates=2000, seed=3)["x"].sum()
    assert counts.sum() == 40 * 2000
    assert stats.chisquare(counts).pvalue > 0.001
    # And the number of times in one sample is binomial.
    once = resampled(pl.DataFrame({"x": [1.0] + [0.0] * 39}), n_replicates=20_000, seed=4)["x"]
    assert once.var() == pytest.approx(40 * (1 / 40) * (39 / 40), rel=0.03)


@pytest.mark.parametrize(
    ("table", "arguments"),
    [
        pytest.param(sums_of([]), {}, id="no rows"),
        pytest.param(sums_of([1.0]), {"n_replicates": 0}, id="no replicates"),
        pytest.param(sums_of([1.0]), {"seed": -1}, id="negative seed"),
        pytest.param(sums_of([1.0]), {"seed": WORD}, id="seed of 65 bits"),
    ],
)
def test_what_cannot_be_drawn(table, arguments):
    with pytest.raises(UsageError):
        resampled(table, **arguments)


@pytest.fixture(scope="module")
def clusters():
    rng = np.random.default_rng(11)
    n = rng.integers(1, 9, 120)
    return pl.DataFrame({"n": n, "x": rng.normal(1.0, 0.5, 120) * n + rng.normal(size=120)})


def test_bootstrap_of_a_mean_agrees_with_its_formula(clusters):
    ratio = {"mean": pl.col("x") / pl.col("n"), "double": 2 * pl.col("x") / pl.col("n")}
    found = bootstrap(clusters, ratio, count="n", n_replicates=20_000)
    formula = mean_of_clusters(clusters["x"], clusters["n"])
    mean = found["mean"]
    assert mean.value == pytest.approx(formula.value, rel=1e-13)
    # 20,000 replicates give a standard error to 0.5%.
    assert mean.standard_error == pytest.approx(formula.standard_error, rel=0.02)
    width = formula.interval.high - formula.interval.low
    assert mean.interval.low == pytest.approx(formula.interval.low, abs=0.04 * width)
    assert mean.interval.high == pytest.approx(formula.interval.high, abs=0.04 * width)
    assert (mean.n, mean.n_clusters) == (clusters["n"].sum(), 120)
    # All figures have the same draws.
    assert found["double"].interval.low == pytest.approx(2 * mean.interval.low, rel=1e-12)


@pytest.mark.slow  # two simulations beside each other; the limits are computed by hand below
def test_interval_is_that_of_scipy_but_for_students_quantile():
    # Of a skewed sample of enough rows, where t is almost normal; both are simulations.
    values = np.random.default_rng(12).exponential(size=200)
    found = bootstrap(
        sums_of(values), {"mean": pl.col("x") / pl.col("n")}, count="n", n_replicates=20_000
    )["mean"]
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="BCa", random_state=1, batch=500
    ).confidence_interval
    width = expected.high - expected.low
    assert found.interval.low == pytest.approx(expected.low, abs=0.03 * width)
    assert found.interval.high == pytest.approx(expected.high, abs=0.03 * width)
    # Skewed to the right, so is the interval: the plain one would be as long to both sides.
    assert found.interval.high - found.value > found.value - found.interval.low


def test_interval_by_hand():
    """Bias, acceleration and limits with numpy, from the replicates."""
    rng = np.random.default_rng(13)
    values, level = rng.lognormal(size=12), 0.9
    replicates = np.sort(resampled(sums_of(values), seed=9)["x"].to_numpy() / 12)
    mean = values.mean()
    bias = stats.norm.ppf(((replicates < mean).sum() + 0.5) / 2001)
    without = (values.sum() - values) / 11
    offsets = without.mean() - without
    acceleration = (offsets**3).sum() / (6 * (offsets**2).sum() ** 1.5)
    t = stats.t.ppf(0.95, 11) * math.sqrt(12 / 11)
    shares = [stats.norm.cdf(bias + (bias + z) / (1 - acceleration * (bias + z))) for z in (-t, t)]
    figure = {"mean": pl.col("x") / pl.col("n")}
    found = bootstrap(sums_of(values), figure, count="n", level=level, seed=9)["mean"]
    assert acceleration > 0.05
    assert found.interval.low == pytest.approx(np.quantile(replicates, shares[0]), rel=1e-9)
    assert found.interval.high == pytest.approx(np.quantile(replicates, shares[1]), rel=1e-9)


def test_figures_that_are_not_there():
    table = pl.DataFrame({"x": [1.0, 2.0, 3.0], "n": [1, 1, 1], "none": [0, 0, 0]})
    figures = {
        "undefined": pl.col("x") / pl.col("none"),
        "constant": pl.col("n") / pl.col("n"),
        # Undefined in replicates that draw none of the first row.
        "sometimes": pl.col("n") / pl.col("first"),
    }
    table = table.with_columns(first=pl.Series([1, 0, 0]))
    found = bootstrap(table, figures, count="n")
    assert found["undefined"] is None
    assert (found["constant"].interval.low, found["constant"].interval.high) == (1.0, 1.0)
    assert found["constant"].standard_error == 0.0
    assert 1.0 <= found["sometimes"].interval.low <= found["sometimes"].interval.high <= 3.0


def test_a_single_row_has_no_spread():
    only = bootstrap(sums_of([2.0]), {"x": pl.col("x")}, count="n")["x"]
    assert (only.value, only.standard_error, only.interval) == (2.0, None, None)


GROUPS = 40


@pytest.fixture(scope="module")
def grouped():
    """A table by group and key of values that are the keys themselves."""
    rng = np.random.default_rng(14)
    group = np.repeat(np.arange(GROUPS), 100)
    key = np.round(rng.normal(size=4000) + 0.3 * rng.normal(size=GROUPS)[group], 1)
    rows = pl.DataFrame({"group": group, "key": key})
    return rows.group_by("group", "key").agg(n=pl.len().cast(pl.Int64)).sort("group", "key")


def mean_of(table):
    return float((table["key"] * table["n"]).sum() / table["n"].sum())


def median_of(table):
    reached = table.filter(pl.col("n").cum_sum() * 2 >= pl.col("n").sum())
    return float(reached["key"][0])


def test_jackknife_of_a_mean_of_equal_groups_is_its_formula(grouped):
    found = delete_a_group(grouped, mean_of, group="group", keys=["key"], count="n")
    sums = grouped.group_by("group", maintain_order=True).agg(
        (pl.col("key") * pl.col("n")).sum(), pl.col("n").sum()
    )
    formula = mean_of_clusters(sums["key"], sums["n"])
    # A mean is linear in groups of one size, so the two are the same.
    assert found.value == pytest.approx(formula.value, rel=1e-12)
    assert found.standard_error == pytest.approx(formula.standard_error, rel=1e-9)
    assert found.interval.low == pytest.approx(formula.interval.low, rel=1e-9)
    assert (found.n, found.n_clusters) == (4000, GROUPS)
    assert found.interval.method == "jackknife"


def test_jackknife_by_hand():
    # Products 6, and 3, 2, 6 * without one: offsets from 6 are -3, -4, 0; SE^2 = 2/3 * 25.
    table = pl.DataFrame({"g": [1, 2, 3], "x": [2, 3, 1], "n": [1, 1, 1]})

    def product(sums):
        values = {6: 6.0, 4: 3.0, 3: 2.0, 5: 6.0}
        return values[sums["x"].item()]

    found = delete_a_group(table, product, group="g", keys=[], count="n")
    assert found.standard_error == pytest.approx(math.sqrt(2 / 3 * 25), rel=1e-14)
    assert found.interval.high == pytest.approx(
        6 + stats.t.ppf(0.975, 2) * math.sqrt(50 / 3), rel=1e-9
    )


def test_statistics_get_the_keys_in_order_and_added_up(grouped):
    seen = []
    delete_a_group(grouped, lambda t: seen.append(t) or 0.0, group="group", keys=["key"], count="n")
    assert len(seen) == GROUPS + 1
    assert all(table["key"].is_sorted() and table["key"].is_unique().all() for table in seen)
    assert [table["n"].sum() for table in seen] == [4000] + [3900] * GROUPS


def test_jackknife_where_a_figure_is_missing(grouped):
    of_none = delete_a_group(grouped, lambda _: None, group="group", keys=["key"], count="n")
    assert of_none is None
    partly = delete_a_group(
        grouped,
        lambda t: 1.0 if t["n"].sum() == 4000 else math.nan,
        group="group",
        keys=["key"],
        count="n",
    )
    assert (partly.value, partly.standard_error, partly.interval) == (1.0, None, None)
    one = grouped.filter(pl.col("group") == 0)
    alone = delete_a_group(one, median_of, group="group", keys=["key"], count="n")
    assert (alone.standard_error, alone.n_clusters) == (None, 1)


def test_jackknife_names_a_missing_column(grouped):
    with pytest.raises(UsageError, match="'bin', 'group_no'"):
        delete_a_group(grouped, mean_of, group="group_no", keys=["bin"], count="n")
