"""The rows that compiled rules mark are those that pandera's own full validation reports.

Every expected set of rows comes from pandera: `SCHEMA_AND_DATA` on an eager frame, `lazy=True`.
"""

from __future__ import annotations

import math
from itertools import combinations

import polars as pl
import pytest
from hypothesis import given, settings, strategies as st

from dpo_pipeline.contract.model import row_model
from pair_tools import COUNTS, LOGPS
from pandera_tools import (
    ABOVE_EIGHTH,
    BELOW_LIMIT,
    HUGE,
    LIMIT,
    LOGP_FAULTS,
    OUR_COLUMNS,
    as_canonical,
    clean,
    faults_of,
    frames,
    our_rows,
    pandera_rows,
)


@pytest.mark.parametrize("max_logp", [0.0, 0.125])
def test_a_log_prob_breaks_one_rule_or_none(max_logp):
    """Each of the four columns has each value in a row of its own."""
    values = [  # with the rule that it breaks, and the one under a limit of an eighth
        (None, "not_null", "not_null"),
        (math.nan, "not_nan", "not_nan"),
        (math.inf, "finite", "finite"),
        (-math.inf, "finite", "finite"),
        (0.0, None, None),
        (-0.0, None, None),
        (-5e-324, None, None),
        (5e-324, "at_most", None),
        (0.125, "at_most", None),
        (ABOVE_EIGHTH, "at_most", "at_most"),
        (0.5, "at_most", "at_most"),
        (HUGE, "at_most", "at_most"),
        (-LIMIT, None, None),
        (BELOW_LIMIT, "at_least", "at_least"),
        (-1e300, "at_least", "at_least"),
        (-HUGE, "at_least", "at_least"),
    ]
    n = 4 * len(values)
    columns = {
        name: [values[row // 4][0] if row % 4 == i else -20.0 for row in range(n)]
        for i, name in enumerate(LOGPS)
    }
    frame, by_hand = clean(n, **columns), {}
    for row in range(n):
        if rule := values[row // 4][1 if max_logp == 0.0 else 2]:
            by_hand.setdefault((LOGPS[row % 4], rule), set()).add(row)
    expected = pandera_rows(row_model(max_logp), frame=frame)
    assert expected == by_hand
    assert our_rows(frame, max_logp=max_logp) == expected


@pytest.mark.repeats  # both counts have one set of rules
@pytest.mark.parametrize("column", COUNTS)
@pytest.mark.parametrize(
    ("value", "broken"),
    [
        pytest.param(None, None, id="null-is-unknown"),
        pytest.param(1, None, id="one"),
        pytest.param(2**63 - 1, None, id="largest"),
        pytest.param(0, "at_least", id="zero"),
        pytest.param(-1, "at_least", id="negative"),
        pytest.param(-(2**63), "at_least", id="smallest"),
    ],
)
def test_a_token_count_is_at_least_one_or_unknown(column, value, broken):
    frame = clean(4, **{column: [7, 8, value, 10]})
    expected = pandera_rows(row_model(), frame=frame)
    assert expected == ({(column, broken): {2}} if broken else {})
    assert our_rows(frame) == expected


@pytest.mark.repeats(3)  # the columns have one set of rules
@pytest.mark.parametrize(
    ("one", "other"), [pytest.param(*c, id="+".join(c)) for c in combinations(OUR_COLUMNS, 2)]
)
def test_every_pair_of_rules_over_two_columns(one, other):
    sound_one, sound_other = (-20.0 if c in LOGPS else 7 for c in (one, other))
    grid = [
        (a, b)
        for a in (sound_one, *faults_of(one).values())
        for b in (sound_other, *faults_of(other).values())
    ]
    frame = clean(len(grid), **{one: [a for a, _ in grid], other: [b for _, b in grid]})
    expected = pandera_rows(row_model(), frame=frame)
    assert set(expected) == {(c, rule) for c in (one, other) for rule in faults_of(c)}
    assert our_rows(frame) == expected


def test_without_token_counts_only_log_probs_are_judged():
    frame = clean(6, **{c: [*LOGP_FAULTS.values(), -20.0] for c in LOGPS}).drop(COUNTS)
    expected = pandera_rows(row_model(), frame=frame)
    assert set(expected) == {(c, rule) for c in LOGPS for rule in LOGP_FAULTS}
    assert our_rows(frame) == expected


@pytest.mark.repeats  # limits are those of Float64, above
@pytest.mark.parametrize("max_logp", [0.0, 0.125])
@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        pytest.param(
            pl.Float32,
            [None, math.nan, math.inf, -math.inf, 0.0, 1e-45, 0.125, 0.12500001, -LIMIT, -3e38],
            id="Float32",
        ),
        pytest.param(
            pl.Float16,
            [None, math.nan, math.inf, -math.inf, 0.0, 6e-8, 0.125, 0.1251, -65504.0],
            id="Float16",
        ),
        pytest.param(pl.Int8, [None, -128, -1, 0, 1, 127], id="Int8"),
        pytest.param(pl.Int32, [None, -(2**31), -4_194_305, -4_194_304, -1, 0, 1], id="Int32"),
        pytest.param(
            pl.Int64, [None, -(2**63), -4_194_305, -4_194_304, 0, 1, 2**63 - 1], id="Int64"
        ),
        pytest.param(pl.UInt64, [None, 0, 1, 2**64 - 1], id="UInt64"),
    ],
)
def test_other_numbers_are_judged_as_float64(dtype, values, max_logp):
    frame = clean(len(values)).with_columns(
        pl.Series(c, values[i:] + values[:i], dtype=dtype) for i, c in enumerate(LOGPS)
    )
    expected = pandera_rows(row_model(max_logp), frame=as_canonical(frame))
    assert {c for c, _ in expected} == set(LOGPS)
    assert our_rows(frame, max_logp=max_logp) == expected


@pytest.mark.parametrize("dtype", [pl.Int8, pl.Int32, pl.UInt8, pl.UInt64])
def test_token_counts_of_any_integer_type(dtype):
    frame = clean(4).with_columns(pl.Series(c, [0, 1, None, 5], dtype=dtype) for c in COUNTS)
    expected = pandera_rows(row_model(), frame=as_canonical(frame))
    assert expected == {(c, "at_least"): {0} for c in COUNTS}
    assert our_rows(frame) == expected


@pytest.mark.parametrize(
    ("column", "dtype", "broken"),
    [
        pytest.param(LOGPS[1], pl.Null, True, id="log-probs-of-type-Null"),
        pytest.param(LOGPS[1], pl.Float64, True, id="log-probs-of-type-Float64"),
        pytest.param(COUNTS[0], pl.Null, False, id="token-counts-of-type-Null"),
        pytest.param(COUNTS[0], pl.Int64, False, id="token-counts-of-type-Int64"),
    ],
)
def test_a_column_of_nulls(column, dtype, broken):
    frame = clean(3).with_columns(pl.lit(None, dtype=dtype).alias(column))
    expected = pandera_rows(row_model(), frame=as_canonical(frame))
    assert expected == ({(column, "not_null"): {0, 1, 2}} if broken else {})
    assert our_rows(frame) == expected


def test_no_rows_break_nothing():
    assert pandera_rows(row_model(), frame=clean(0)) == our_rows(clean(0)) == {}


@settings(max_examples=2, deadline=None, derandomize=True)
@given(frame=frames(), max_logp=st.sampled_from([0.0, 0.125]))
def test_any_frame(frame, max_logp):
    expected = pandera_rows(row_model(max_logp), frame=frame)
    assert our_rows(frame, max_logp=max_logp) == expected
    assert our_rows(frame, max_logp=max_logp, engine="in-memory") == expected
