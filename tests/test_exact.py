"""Exact sums: against fractions, in any order and any split, and their stated error."""

from __future__ import annotations

import math
from fractions import Fraction

import polars as pl
import pytest
from hypothesis import given, settings, strategies as st

from dpo_pipeline.exact import (
    FEW,
    SMALL,
    exact_sum,
    exact_sum_of_small,
    float_and_bits,
    mean_of,
    sum_of_bits,
)

values_in_range = st.lists(st.floats(-(2.0**50), 2.0**50), min_size=1, max_size=60)
small_values = st.lists(st.floats(-SMALL, SMALL), min_size=1, max_size=60)
QUANTUM = Fraction(1, 2**40)
QUANTUM_F = 2.0**-40
TIES = [k * QUANTUM_F / 2 for k in (1, -1, 3, -3, 5)] + [-200.0 + k * QUANTUM_F / 2 for k in (1, 3)]
EDGES = [SMALL, -SMALL, 0.0, -0.0, 5e-324, -5e-324, math.nextafter(-SMALL, 0.0)]
SMALL_FORMS = ["totals", "by group", "few rows"]


def rounded(values):
    """Python's sum of the values in quanta, each half to even."""
    return sum(round(Fraction(x) * 2**40) for x in values)


def small_sums(values, form):
    """The sums of small values, by every way that Polars has to make them."""
    frame = pl.DataFrame({"x": [*values, None], "g": 1}, schema={"x": pl.Float64, "g": pl.Int8})
    x, lazy, count = pl.col("x"), frame.lazy(), pl.col("x").count().cast(pl.Int64)
    if form == "totals":
        sums = lazy.select(*float_and_bits(x, "x"), n=count)
        plans = [sums.select(sum_of_bits("x", pl.col("n")))]
    else:
        total = exact_sum_of_small(x, count, few=form == "few rows")
        plans = [
            lazy.group_by("g").agg(total),
            lazy.set_sorted("g").group_by("g", maintain_order=True).agg(total),
        ]
    return [
        plan.collect(engine=engine)["x"].item()
        for plan in plans
        for engine in ("streaming", "in-memory")
    ]


def quanta(values):
    return (
        pl.DataFrame({"x": values}, schema={"x": pl.Float64}).select(exact_sum(pl.col("x"))).item()
    )


def mean(values):
    frame = pl.DataFrame(
        {"q": [quanta(values)], "n": [len(values)]}, schema={"q": pl.Int128, "n": pl.Int64}
    )
    return frame.select(mean_of(pl.col("q"), pl.col("n"))).item()


@given(values_in_range)
def test_error_of_a_sum_is_at_most_half_a_quantum_a_value(values):
    true = sum(map(Fraction, values))
    assert abs(quanta(values) * QUANTUM - true) <= len(values) * QUANTUM / 2


@given(values_in_range)
def test_error_of_a_mean_is_half_a_quantum_and_the_last_bit(values):
    true = sum(map(Fraction, values)) / len(values)
    found = mean(values)
    assert abs(Fraction(found) - true) <= QUANTUM / 2 + 2 * Fraction(math.ulp(found))


@given(values_in_range, st.data())
def test_any_split_and_order_gives_the_same_sum(values, data):
    shuffled = data.draw(st.permutations(values))
    cut = data.draw(st.integers(0, len(values)))
    assert quanta(shuffled[:cut]) + quanta(shuffled[cut:]) == quanta(values)


def test_float32_values_are_summed_without_error():
    values = pl.Series([-(2.0**-17), -1.1, -699.7, -3001.3], dtype=pl.Float32).cast(pl.Float64)
    assert quanta(values) * QUANTUM == sum(map(Fraction, values))


def test_sums_beyond_int64_do_not_wrap():
    values = [-(2.0**22)] * 1_000
    assert quanta(values) == -(2**62) * 1_000


def test_nulls_are_left_out():
    assert quanta([1.0, None, 2.0]) == 3 * 2**40


def test_no_value_has_no_mean():
    frame = pl.DataFrame({"q": [0], "n": [0]}, schema={"q": pl.Int128, "n": pl.Int64})
    assert frame.select(mean_of(pl.col("q"), pl.col("n"))).item() is None


@pytest.mark.parametrize("form", SMALL_FORMS)
def test_small_values_are_rounded_half_to_even(form):
    for values in (TIES, EDGES, [TIES[0]], [-0.0]):
        assert set(small_sums(values, form)) == {rounded(values)} == {quanta(values)}


@given(small_values)
@settings(max_examples=30, deadline=None)
def test_both_forms_give_pythons_sum(values):
    assert {*small_sums(values, "totals"), quanta(values)} == {rounded(values)}


@given(values_in_range)
def test_large_values_are_rounded_half_to_even(values):
    assert quanta(values) == rounded(values)


@pytest.mark.parametrize("value", [-SMALL, SMALL, -1_999.9999999, 1_023.4])
def test_sums_of_small_values_that_wrap_come_out_whole(value):
    # 40,000 values of 2**51 quanta are 2**66; Int64 wraps at 2**63.
    n = 40_000
    assert set(small_sums([value] * n, "totals")) == {n * rounded([value])}
    assert set(small_sums([value] * n, "by group")) == {n * rounded([value])}


@pytest.mark.parametrize("value", [-SMALL, SMALL])
def test_few_small_values_fit_plain_integers(value):
    n = FEW - 1
    assert set(small_sums([value] * n, "few rows")) == {n * rounded([value])}


def test_a_value_that_is_not_small_does_not_raise():
    # The quick form finds out afterwards that it does not fit.
    for value in (math.nan, math.inf, -math.inf, 1e300):
        small_sums([value], "totals")
