"""The histogram: its stated error against exact quantiles, merging, and its way into results."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, strategies as st

from dpo_pipeline import Subsets, UsageError, evaluate
from dpo_pipeline.exact import bin_of, lower_edge, middle, quantile, value_error

QUANTILES = (0.0, 0.001, 0.05, 0.25, 0.5, 0.75, 0.95, 0.999, 1.0)


def histogram_of(values):
    return (
        pl.DataFrame({"x": values}, schema={"x": pl.Float64})
        .group_by(bin=bin_of(pl.col("x")))
        .agg(n_pairs=pl.len())
    )


@pytest.mark.parametrize(
    "draw",
    [
        pytest.param(lambda rng: rng.normal(0, 1, 50_000), id="normal"),
        pytest.param(lambda rng: rng.standard_cauchy(50_000), id="Cauchy"),
        pytest.param(lambda rng: -rng.lognormal(0, 3, 50_000), id="negative lognormal"),
        pytest.param(lambda rng: rng.uniform(-1e-4, 1e-4, 50_000), id="around zero"),
        pytest.param(lambda rng: rng.integers(-3, 4, 50_000) * 1.0, id="ties"),
    ],
)
def test_quantiles_are_within_the_stated_error(draw):
    values = draw(np.random.default_rng(1))
    histogram = histogram_of(values)
    for q in QUANTILES:
        true = float(np.quantile(values, q, method="inverted_cdf"))
        # The sum with SCALE rounds once; the error bound is of the bins.
        assert abs(quantile(histogram, q) - true) <= value_error(true) * (1 + 1e-9)


@pytest.mark.parametrize(("q", "expected"), [(0.5, 2.0), (1 / 3, 1.0), (0.34, 2.0), (0.67, 4.0)])
def test_a_quantile_has_at_least_its_share_below(q, expected):
    # Of three: a median is the second, and 34% are more than one of them.
    found = quantile(histogram_of(np.array([4.0, 1.0, 2.0])), q)
    assert found == pytest.approx(expected, rel=0.003)


def test_the_stated_error_is_within_a_quarter_percent_far_out_and_25_millionths_near_zero():
    # Half of one of 256 equal parts from 512 to 1,024, and from 2**-7 to 2**-6.
    assert value_error(1e3) == 1.0
    assert value_error(0.0) == 2.0**-16
    x = np.geomspace(1e-9, 1e6, 10_000)
    assert all(value_error(each) <= 2.5e-5 + 2.5e-3 * each for each in x)


@given(st.floats(-4e6, 4e6))
def test_a_value_lies_between_the_edges_of_its_bin(value):
    (row,) = (
        pl.DataFrame({"x": [value]})
        .select(bin=bin_of(pl.col("x")))
        .select("bin", lower=lower_edge(pl.col("bin")), upper=lower_edge(pl.col("bin") + 1))
        .rows()
    )
    slack = 1e-12 * max(abs(value), 1e-3)
    assert row[1] - slack <= value <= row[2] + slack
    assert row[1] < middle(row[0]) < row[2]


def test_zero_and_null():
    assert pl.select(bin_of(pl.lit(pl.Series([0.0, -0.0, None])))).to_series().to_list() == [
        0,
        0,
        None,
    ]
    assert middle(0) == 0.0
    assert quantile(histogram_of([]), 0.5) is None


def test_parts_merge_by_adding_counts(real_pairs):
    whole = evaluate(real_pairs, by=Subsets(histogram=True)).histogram
    parts = pl.concat(
        evaluate(real_pairs[a:b], by=Subsets(histogram=True)).histogram
        for a, b in ((0, 100), (100, 698))
    )
    merged = parts.group_by("bin", "lower", "upper").agg(pl.col("n_pairs").sum()).sort("bin")
    assert merged.equals(whole)


def test_result_has_histogram_and_quantiles_and_the_same_figures(real_pairs):
    plain = evaluate(real_pairs, by="turns", batches=64)
    result = evaluate(real_pairs, by=Subsets("turns", histogram=True), batches=64)
    assert result.summary == plain.summary
    assert result.subsets.equals(plain.subsets)
    assert result.batches.equals(plain.batches)
    assert plain.histogram is None
    assert result.histogram["n_pairs"].sum() == 698
    by_subset = result.histogram.group_by("turns").agg(pl.col("n_pairs").sum())
    assert by_subset.sort("turns").rows() == result.subsets.select("turns", "n_pairs").rows()
    logps = real_pairs.select(pl.col("^.*_logps$").cast(pl.Float64)).to_dict(as_series=True)
    margins = 0.1 * (
        (logps["policy_chosen_logps"] - logps["ref_chosen_logps"])
        - (logps["policy_rejected_logps"] - logps["ref_rejected_logps"])
    )
    true = float(np.quantile(margins.to_numpy(), 0.5, method="inverted_cdf"))
    assert abs(result.quantile(0.5) - true) <= value_error(true) * (1 + 1e-9)


def test_invalid_pairs_have_no_bin(pairs):
    odd = pairs.with_columns(ref_chosen_logps=pl.Series([None, math.nan, -41.0, -52, -65, -68]))
    assert (
        evaluate(odd, by=Subsets(histogram=True), on_invalid="exclude").histogram["n_pairs"].sum()
        == 4
    )


def test_quantiles_need_a_histogram(pairs):
    with pytest.raises(UsageError, match="histogram=True"):
        evaluate(pairs).quantile(0.5)
    with pytest.raises(UsageError, match="from 0 to 1"):
        evaluate(pairs, by=Subsets(histogram=True)).quantile(50)


def test_a_histogram_costs_no_further_reading(engine, tmp_path, pairs):
    pairs.write_parquet(tmp_path / "in.parquet")
    engine.graphs.clear()
    evaluate(tmp_path / "in.parquet", by=Subsets("subset", histogram=True))
    assert engine.data_scans == 1
    assert not any("in-memory-map" in graph or "multiplexer" in graph for graph in engine.graphs)
