"""Lines from sums against scipy and statsmodels over the rows."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from dpo_pipeline.errors import UsageError
from dpo_pipeline.statistics.association import SUMS, line_of_clusters
from oracle_tools import sm, stats


@pytest.fixture(scope="module")
def rows():
    """Differences of length and margins, with an effect of the cluster on both."""
    rng = np.random.default_rng(19)
    cluster = np.repeat(np.arange(60), rng.integers(1, 8, 60))
    x = np.round(30 + rng.normal(0, 40, 60)[cluster] + rng.normal(0, 60, len(cluster)))
    y = 0.4 + 0.01 * x + rng.normal(0, 0.6, 60)[cluster] + rng.normal(0, 1, len(cluster))
    return pl.DataFrame({"cluster": cluster, "x": x, "y": y})


def sums_of(rows, *keys):
    x, y = pl.col("x"), pl.col("y")
    sums = {
        "n": pl.len().cast(pl.Int64),
        "sum_x": x.sum(),
        "sum_y": y.sum(),
        "sum_xx": (x * x).sum(),
        "sum_xy": (x * y).sum(),
        "sum_yy": (y * y).sum(),
    }
    return rows.group_by(keys).agg(**sums) if keys else rows.select(**sums)


def clusters_of(*points):
    """Return the sums of clusters of one pair each, at points (x, y)."""
    sums = [(1, x, y, x * x, x * y, y * y) for x, y in points]
    return pl.DataFrame(sums, schema=dict.fromkeys(SUMS, pl.Int128), orient="row")


def limits(estimate):
    return pytest.approx((estimate.interval.low, estimate.interval.high), rel=1e-9)


def test_line_of_single_pairs_is_that_of_scipy(rows):
    line = line_of_clusters(sums_of(rows.with_row_index(), "index"))
    expected = stats.linregress(rows["x"], rows["y"])
    assert line.slope.value == pytest.approx(expected.slope, rel=1e-11)
    assert line.intercept.value == pytest.approx(expected.intercept, rel=1e-11)
    assert line.correlation == pytest.approx(expected.rvalue, rel=1e-11)
    fit = sm.OLS(rows["y"].to_numpy(), sm.add_constant(rows["x"].to_numpy())).fit(cov_type="HC1")
    errors = line.intercept.standard_error, line.slope.standard_error
    assert errors == pytest.approx(tuple(fit.bse), rel=1e-10)


def test_line_of_clusters_is_that_of_statsmodels(rows):
    line = line_of_clusters(sums_of(rows, "cluster"))
    fit = sm.OLS(rows["y"].to_numpy(), sm.add_constant(rows["x"].to_numpy())).fit(
        cov_type="cluster", cov_kwds={"groups": rows["cluster"].to_numpy()}, use_t=True
    )
    for estimate, i in ((line.intercept, 0), (line.slope, 1)):
        assert estimate.value == pytest.approx(fit.params[i], rel=1e-10)
        assert estimate.standard_error == pytest.approx(fit.bse[i], rel=1e-10)
        assert limits(estimate) == tuple(fit.conf_int()[i])
        assert (estimate.n, estimate.n_clusters) == (rows.height, 60)
    assert line.correlation == pytest.approx(np.corrcoef(rows["x"], rows["y"])[0, 1], rel=1e-11)


def test_lengths_far_from_zero_lose_no_digits():
    # x of 2**40 and a little: its squares differ in their last bits only.
    x = [2**40, 2**40 + 1, 2**40 + 2, 2**40 + 5]
    y = [1, 2, 2, 4]
    line = line_of_clusters(clusters_of(*zip(x, y, strict=True)))
    expected = stats.linregress([0, 1, 2, 5], y)
    assert line.slope.value == pytest.approx(expected.slope, rel=1e-14)


def test_line_by_hand():
    # Through (0, 1), (1, 3), (2, 5) exactly.
    line = line_of_clusters(clusters_of((0, 1), (1, 3), (2, 5)))
    assert (line.slope.value, line.intercept.value, line.correlation) == (2.0, 1.0, 1.0)
    assert line.slope.standard_error == 0.0


@pytest.mark.parametrize(
    "sums",
    [
        pytest.param((0, 0, 0, 0, 0, 0), id="no pairs"),
        pytest.param((1, 3, 3, 9, 9, 9), id="one pair"),
        pytest.param((3, 6, 3, 12, 6, 5), id="one length"),
    ],
)
def test_no_line(sums):
    assert line_of_clusters(pl.DataFrame([sums], schema=SUMS, orient="row")) is None


def test_a_line_without_spread():
    two = line_of_clusters(clusters_of((0, 0), (1, 1)))
    assert (two.slope.value, two.slope.standard_error, two.intercept.interval) == (1.0, None, None)
    level = line_of_clusters(clusters_of((0, 2), (1, 2), (2, 2)))
    assert (level.slope.value, level.correlation) == (0.0, None)
    cluster = pl.DataFrame([(4, 6, 7, 14, 14, 17)], schema=SUMS, orient="row")
    assert line_of_clusters(cluster).slope.interval is None


def test_empty_clusters_do_not_count(rows):
    sums = sums_of(rows, "cluster").drop("cluster")
    empty = sums.clear().select(pl.all()).extend(sums.head(1).select(pl.all() * 0))
    line = line_of_clusters(pl.concat([sums, empty]))
    assert line.slope.n_clusters == 60


def test_wide_integers():
    # x of 0 and 2**60, y of 0 and 1, in two clusters: the slope is 2**-60.
    wide = pl.DataFrame(
        [(1, 0, 0, 0, 0, 0), (1, 2**60, 1, 2**120, 2**60, 1)],
        schema=dict.fromkeys(SUMS, pl.Int128),
        orient="row",
    )
    line = line_of_clusters(wide)
    assert (line.slope.value, line.intercept.value) == (2.0**-60, 0.0)


def test_a_missing_column_is_named():
    with pytest.raises(UsageError, match="'sum_xy'"):
        line_of_clusters(pl.DataFrame({name: [1] for name in SUMS if name != "sum_xy"}))
