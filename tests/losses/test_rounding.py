"""Rounding against Python's `round`, where the two are known to part: next to ties."""

from __future__ import annotations

import math

import polars as pl
import pytest
from hypothesis import given, strategies as st

from dpo_pipeline.losses.from_lists import needs_python, python_rounded


def rounded(values):
    exact = pl.Series("x", values, dtype=pl.Float64)
    made = exact.to_frame().select(rounded=pl.col("x").round(4), marked=needs_python(pl.col("x")))
    return python_rounded(exact, made["rounded"], made["marked"])


def test_every_tie_of_a_thousandth_of_a_thousandth():
    values = [sign * n * 0.5e-4 for n in range(10_001) for sign in (1, -1)]
    assert list(map(repr, rounded(values))) == [repr(round(value, 4)) for value in values]


def test_neighbours_of_ties():
    values = []
    for n in range(1, 20_001, 8):
        tie = n * 0.5e-4
        values += [math.nextafter(tie, -1), tie, math.nextafter(tie, 10**9), -tie]
    assert list(map(repr, rounded(values))) == [repr(round(value, 4)) for value in values]


def test_polars_alone_would_differ():
    # 0.1 * (-3.0001 + 3.00155) and the like: without Python's help the test above cannot pass.
    values = pl.Series([n * 0.5e-4 for n in range(40_001)])
    assert values.round(4).to_list() != [round(value, 4) for value in values]


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_any_finite_values(values):
    assert list(map(repr, rounded(values))) == [repr(round(value, 4)) for value in values]


@pytest.mark.parametrize("value", [0.0, -0.0, 5e-324, -1e-5, 2.5e-4, 1e22, -1.7e308, 2.0**52 + 0.5])
def test_special_values(value):
    assert repr(rounded([value])[0]) == repr(round(value, 4))
