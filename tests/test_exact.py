"""Exact sums: against fractions, in any order and any split, and their stated error."""

from __future__ import annotations

import math
from fractions import Fraction

import polars as pl
from hypothesis import given, settings, strategies as st

from dpo_pipeline.exact import exact_sum, mean_of

values_in_range = st.lists(st.floats(-(2.0**22), 2.0**22), min_size=1, max_size=60)
QUANTUM = Fraction(1, 2**40)


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
@settings(max_examples=200, deadline=None)
def test_error_of_a_sum_is_at_most_half_a_quantum_a_value(values):
    true = sum(map(Fraction, values))
    assert abs(quanta(values) * QUANTUM - true) <= len(values) * QUANTUM / 2


@given(values_in_range)
@settings(max_examples=200, deadline=None)
def test_error_of_a_mean_is_half_a_quantum_and_the_last_bit(values):
    true = sum(map(Fraction, values)) / len(values)
    found = mean(values)
    assert abs(Fraction(found) - true) <= QUANTUM / 2 + 2 * Fraction(math.ulp(found))


@given(values_in_range, st.data())
@settings(max_examples=100, deadline=None)
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
