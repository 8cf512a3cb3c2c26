"""Agreement with a judge, against scipy and plain counting over every pair."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from dpo_pipeline.errors import UsageError
from dpo_pipeline.statistics.association import accuracy_by_gap, area_under_curve, spearman
from oracle_tools import proportion_confint, stats


@pytest.fixture(scope="module")
def pairs():
    """Margins and gaps with many ties, as one row a pair."""
    rng = np.random.default_rng(18)
    gap = rng.integers(-4, 5, 3000) / 2
    margin = np.round(gap + rng.normal(0, 2, 3000), 1)
    return pl.DataFrame({"margin": margin, "gap": gap})


def cells_of(pairs):
    return pairs.group_by("margin", "gap").agg(n_pairs=pl.len()).sample(fraction=1.0, shuffle=True)


def test_spearman_is_that_of_the_rows(pairs):
    expected = stats.spearmanr(pairs["margin"], pairs["gap"]).statistic
    assert spearman(cells_of(pairs)) == pytest.approx(expected, rel=1e-12)


def test_spearman_by_hand():
    # Ranks 1.5, 1.5, 3, 4 and 1, 2.5, 4, 2.5; less 2.5: products 1.5 + 0 + 0.75 + 0,
    # squares 4.5 and 4.5.
    cells = pl.DataFrame({"margin": [0, 0, 1, 2], "gap": [0, 5, 7, 5], "n_pairs": [1, 1, 1, 1]})
    assert spearman(cells) == pytest.approx(2.25 / 4.5, rel=1e-14)


def test_spearman_of_very_many_pairs():
    cells = pl.DataFrame({"margin": [0.0, 1.0], "gap": [0.0, 1.0], "n_pairs": [10**9, 10**9]})
    assert spearman(cells) == pytest.approx(1.0, rel=1e-14)
    mixed = pl.DataFrame(
        {
            "margin": [0, 1, 0, 1],
            "gap": [0, 1, 1, 0],
            "n_pairs": [3 * 10**9, 3 * 10**9, 10**9, 10**9],
        }
    )
    # Of two values each it is the phi coefficient: (9 - 1) / 16.
    assert spearman(mixed) == pytest.approx(0.5, rel=1e-13)


def test_area_is_the_share_of_won_comparisons(pairs):
    up = pairs.filter(pl.col("gap") > 0)["margin"].to_numpy()
    down = pairs.filter(pl.col("gap") < 0)["margin"].to_numpy()
    won = np.greater.outer(up, down).sum() + np.equal.outer(up, down).sum() / 2
    found = area_under_curve(cells_of(pairs))
    assert found == pytest.approx(won / (len(up) * len(down)), rel=1e-13)
    expected = stats.mannwhitneyu(up, down).statistic / (len(up) * len(down))
    assert found == pytest.approx(expected, rel=1e-12)


def test_area_by_hand():
    # Preferred 3 and 1, not preferred 1 twice: won 2, level 2; the gap of 0 says nothing.
    cells = pl.DataFrame({"margin": [3, 1, 1, 9], "gap": [1, 2, -1, 0], "n_pairs": [1, 1, 2, 5]})
    assert area_under_curve(cells) == (2 + 2 / 2) / 4


@pytest.mark.parametrize(
    ("margin", "gap", "n_pairs"),
    [
        pytest.param([], [], [], id="no cells"),
        pytest.param([1.0, 2.0], [1.0, 1.0], [3, 3], id="one gap"),
        pytest.param([None, 1.0], [1.0, None], [3, 3], id="nulls"),
        pytest.param([1.0, 2.0], [1.0, -1.0], [3, 0], id="an empty cell"),
    ],
)
def test_where_there_is_no_agreement_to_measure(margin, gap, n_pairs):
    schema = {"margin": pl.Float64, "gap": pl.Float64, "n_pairs": pl.Int64}
    cells = pl.DataFrame({"margin": margin, "gap": gap, "n_pairs": n_pairs}, schema=schema)
    assert spearman(cells) is None
    assert area_under_curve(cells) is None


def test_accuracy_by_each_gap(pairs):
    found = accuracy_by_gap(cells_of(pairs))
    assert (
        found["gap_low"].to_list() == found["gap_high"].to_list() == [g / 2 for g in range(-4, 5)]
    )
    for row in found.iter_rows(named=True):
        margins = pairs.filter(pl.col("gap") == row["gap_low"])["margin"]
        assert row["n_pairs"] == len(margins)
        assert row["n_correct"] == (margins > 0).sum()
        assert row["n_ties"] == (margins == 0).sum()
        assert row["accuracy"] == pytest.approx(row["n_correct"] / len(margins))
        few = min(row["n_correct"], len(margins) - row["n_correct"]) < 100
        expected = proportion_confint(
            row["n_correct"], len(margins), method="jeffreys" if few else "wilson"
        )
        assert (row["accuracy_low"], row["accuracy_high"]) == pytest.approx(expected, rel=1e-9)


def test_accuracy_by_groups_of_gaps():
    gaps = pl.DataFrame({"gap": [float(g) for g in range(100)]}).with_columns(
        margin=pl.when(pl.col("gap") < 50).then(-1.0).otherwise(1.0), n_pairs=1
    )
    found = accuracy_by_gap(gaps, n_groups=4)
    assert found.select("gap_low", "gap_high", "n_pairs", "accuracy").rows() == [
        (0.0, 24.0, 25, 0.0),
        (25.0, 49.0, 25, 0.0),
        (50.0, 74.0, 25, 1.0),
        (75.0, 99.0, 25, 1.0),
    ]


def test_a_gap_of_many_pairs_is_not_cut():
    cells = pl.DataFrame({"gap": [1.0, 2.0, 3.0], "margin": [1.0] * 3, "n_pairs": [1, 98, 1]})
    assert accuracy_by_gap(cells, n_groups=10)["n_pairs"].to_list() == [1, 98, 1]


def test_no_groups():
    cells = pl.DataFrame({"gap": [1.0], "margin": [1.0], "n_pairs": [1]})
    with pytest.raises(UsageError, match="n_groups"):
        accuracy_by_gap(cells, n_groups=0)
    assert accuracy_by_gap(cells.clear()).height == 0
