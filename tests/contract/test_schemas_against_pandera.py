"""Contracts of one's own mark the rows that pandera's own full validation reports."""

from __future__ import annotations

import math

import pandera.polars as pa
import polars as pl
import pytest
from hypothesis import given, settings

import dpo_pipeline
from dpo_pipeline.contract.model import row_model
from pandera_tools import (
    ANY_EXTRA,
    LOGP_FAULTS,
    clean,
    contract_of,
    failed_rows,
    frames,
    our_rows,
    pandera_errors,
    pandera_rows,
)


class Annotated(dpo_pipeline.PreferencePairs):
    """A user's model: a bounded column, checks of a column and of two, null judged both ways."""

    weight: pl.Float64 = pa.Field(gt=0, nullable=True)
    strict_weight: pl.Float64 = pa.Field(ge=0, ignore_na=False, nullable=True)
    score: pl.Float64 = pa.Field()

    @pa.check("score")
    @classmethod
    def below_two(cls, data):
        return data.lazyframe.select(pl.col(data.key) < 2.0)

    @pa.check("weight", "strict_weight", ignore_na=False)
    @classmethod
    def known_and_small(cls, data):
        return data.lazyframe.select(pl.col(data.key).abs() <= 1.0)

    @pa.dataframe_check
    @classmethod
    def score_covers_weight(cls, data):
        return data.lazyframe.select(pl.col("score") >= pl.col("weight"))

    @pa.dataframe_check(ignore_na=False)
    @classmethod
    def score_surely_covers_weight(cls, data):
        return data.lazyframe.select(pl.col("score") >= pl.col("weight"))

    @pa.dataframe_check
    @classmethod
    def two_at_once(cls, data):
        return data.lazyframe.select(a=pl.col("score") > -2.0, b=pl.col("weight") > -2.0)


def test_a_subclass_adds_its_checks_and_keeps_ours():
    cells = [None, math.nan, math.inf, -math.inf, -1.0, 0.0, 0.5, 3.0]
    grid = [(a, b) for a in cells for b in cells]
    frame = clean(
        len(grid),
        policy_chosen_logps=[*LOGP_FAULTS.values(), *([-20.0] * (len(grid) - len(LOGP_FAULTS)))],
        weight=[a for a, _ in grid],
        strict_weight=[a for a, _ in grid],
        score=[b for _, b in grid],
    )
    expected = pandera_rows(Annotated, frame=frame)
    assert set(expected) == {
        *(("policy_chosen_logps", rule) for rule in LOGP_FAULTS),
        ("weight", "greater_than"),
        ("weight", "known_and_small"),
        ("strict_weight", "greater_than_or_equal_to"),
        ("strict_weight", "known_and_small"),
        ("score", "not_nullable"),
        ("score", "below_two"),
        (None, "score_covers_weight"),
        (None, "score_surely_covers_weight"),
        (None, "two_at_once"),
    }
    ignoring, counting = (
        expected[None, name] for name in ("score_covers_weight", "score_surely_covers_weight")
    )
    assert ignoring < counting
    assert our_rows(frame, contract=Annotated) == expected


@settings(max_examples=2, deadline=None, derandomize=True)
@given(frame=frames(weight=ANY_EXTRA, strict_weight=ANY_EXTRA, score=ANY_EXTRA))
def test_any_frame_under_a_subclass(frame):
    assert our_rows(frame, contract=Annotated) == pandera_rows(Annotated, frame=frame)


def is_at_least(bound):
    def at_least_bound(data):
        return data.lazyframe.select(pl.col(data.key) >= bound)

    return at_least_bound


PLAIN = pa.DataFrameSchema(
    {
        "rating_.*": pa.Column(pl.Float64, pa.Check.in_range(0.0, 5.0), regex=True, nullable=True),
        "rating_first": pa.Column(pl.Float64, pa.Check(is_at_least(1.0), name="rated")),
        "temperature": pa.Column(pl.Float64, nullable=False),
        "language": pa.Column(pl.String, pa.Check.isin(["de", "en"]), nullable=False),
        "absent": pa.Column(pl.Float64, pa.Check.gt(0.0), required=False),
    },
    checks=pa.Check(
        lambda data: data.lazyframe.select(pl.col("temperature") < pl.col("rating_second")),
        name="cooler",
        ignore_na=False,
    ),
)


"""A user's schema that knows nothing of ours."""


def test_a_plain_schema_with_a_pattern_and_a_column_without_nulls():
    odd = [None, math.nan, math.inf, -math.inf, -0.5, 0.0, 0.5, 5.0]
    frame = clean(
        8,
        ref_chosen_logps=[*LOGP_FAULTS.values(), -20.0, -21.0, -22.0],
        rating_first=odd,
        rating_second=odd[::-1],
        rating_third=[*odd[3:], *odd[:3]],
        temperature=odd,
        language=["de", None, "en", "fr", "", "DE", "en", "de"],
    )
    expected = pandera_rows(row_model(), PLAIN, frame=frame)
    assert set(expected) == {
        *(("ref_chosen_logps", rule) for rule in LOGP_FAULTS),
        ("rating_second", "in_range"),
        ("rating_third", "in_range"),
        ("rating_first", "not_nullable"),
        ("rating_first", "rated"),
        ("temperature", "not_nullable"),
        ("language", "not_nullable"),
        ("language", "isin"),
        (None, "cooler"),
    }
    assert expected["temperature", "not_nullable"] == {0, 1}  # null and NaN alike, for pandera
    assert our_rows(frame, contract=PLAIN) == expected


RATINGS = dict.fromkeys(("rating_first", "rating_second", "temperature", "absent"), ANY_EXTRA)


@settings(max_examples=2, deadline=None, derandomize=True)
@given(frame=frames(**RATINGS))
def test_any_frame_under_a_plain_schema(frame):
    frame = frame.with_columns(language=pl.lit("en"))
    expected = pandera_rows(row_model(), PLAIN, frame=frame)
    assert our_rows(frame, contract=PLAIN) == expected


def odd_cells():
    return clean(
        6,
        x=pl.Series([1.0, math.nan, None, -2.0, 0.0, 5.0]),
        y=pl.Series([2, 1, None, 3, 0, -1]),
        flag=pl.Series([True, False, None, True, False, True]),
        text=pl.Series(["a", "", None, "ab", "b", "12"]),
    )


@pytest.mark.repeats(4)  # `test_refused_checks` has each of these forms
@pytest.mark.parametrize("column", [pytest.param("x", id="column"), pytest.param(None, id="frame")])
@pytest.mark.parametrize("ignore_na", [True, False])
@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda f: f.select(pl.col("x") > pl.col("y")), id="comparison"),
        pytest.param(lambda f: f.select(pl.col("x").is_nan().not_()), id="nan"),
        pytest.param(lambda f: f.select([pl.col("x") > 0, pl.col("y") > 0]), id="list"),
        pytest.param(lambda f: f.select((pl.col("x") > 0, pl.col("y") > 0)), id="tuple"),
        pytest.param(lambda f: f.select(pl.col("x") > 0, pl.col("y") > 0), id="two"),
        pytest.param(lambda f: f.select(pl.col(c) > 0 for c in ("x", "y")), id="generator"),
        pytest.param(lambda f: f.select(a=pl.col("x") > 0, b="flag"), id="named"),
        pytest.param(lambda f: f.select(pl.col("y").is_in(pl.Series([1, 2]))), id="is_in-a-series"),
        pytest.param(
            lambda f: f.select(pl.col("y").replace_strict({1: True, 2: False}, default=None)),
            id="replace_strict",
        ),
        pytest.param(lambda f: f.select(pl.col("y") > pl.lit(pl.Series([1]))), id="series-of-one"),
        pytest.param(lambda f: f.select("flag"), id="name-of-a-Boolean-column"),
        pytest.param(lambda f: f.select(pl.col("x", "y") > 0), id="several-columns-in-one"),
        pytest.param(lambda f: f.select(pl.col("^[xy]$") > 0), id="columns-by-pattern"),
        pytest.param(lambda f: f.select(pl.all().is_not_null()), id="all-columns"),
        pytest.param(lambda f: f.select(pl.col("x") > 0).select(~pl.col("x")), id="two-steps"),
        pytest.param(
            lambda f: f.select(pl.col("flag")).select(pl.col("flag").not_()), id="negated-after"
        ),
        pytest.param(
            lambda f: (f.select(pl.col("x") > 4), f.select(pl.col("y") > 0))[1],
            id="one-of-two-selections",
        ),
    ],
)
def test_a_check_is_refused_or_marks_the_rows_of_pandera(function, ignore_na, column):
    check = pa.Check(lambda data: function(data.lazyframe), name="odd", ignore_na=ignore_na)
    contract = contract_of(check, column)
    expected = pandera_rows(row_model(), contract, frame=odd_cells())
    try:
        found = our_rows(odd_cells(), contract=contract)
    except dpo_pipeline.RefusedCheckError:
        return  # that it is refused by name, `test_refused_checks` holds
    assert found == expected


@pytest.mark.repeats(3)  # it is pandera's own function that is run
@pytest.mark.parametrize(
    ("column", "check", "rows"),
    [
        pytest.param("x", pa.Check.ne(5.0), {5}, id="ne"),
        pytest.param("x", pa.Check.lt(1.0), {0, 1, 5}, id="lt-takes-nan-for-large"),
        pytest.param("x", pa.Check.in_range(-2.0, 1.0, include_min=False), {1, 3, 5}, id="range"),
        pytest.param("x", pa.Check.ge(0.0, ignore_na=False), {2, 3}, id="null-counts"),
        pytest.param("y", pa.Check.notin([3, 0]), {3, 4}, id="notin"),
        pytest.param("y", pa.Check.gt(0, name="positive", error="above 0"), {4, 5}, id="renamed"),
        pytest.param("y", pa.Check.gt(0, n_failure_cases=1), {4, 5}, id="few-failure-cases"),
        pytest.param("text", pa.Check.str_matches("a"), {1, 4, 5}, id="str_matches"),
        pytest.param("text", pa.Check.str_contains("b"), {0, 1, 5}, id="str_contains"),
        pytest.param("text", pa.Check.str_length(1, 1), {1, 3, 5}, id="str_length"),
    ],
)
def test_a_built_in_check(column, check, rows):
    contract = contract_of(check, column)
    expected = pandera_rows(row_model(), contract, frame=odd_cells())
    assert expected == {(column, check.name): rows}
    assert our_rows(odd_cells(), contract=contract) == expected


def test_two_checks_of_one_name_are_told_apart_by_their_order():
    checks = [pa.Check(is_at_least(2)), pa.Check(is_at_least(1))]
    contract = contract_of(checks, "y")
    errors = pandera_errors(contract, odd_cells())
    by_index = {error.check_index: failed_rows(error) for error in errors}
    assert our_rows(odd_cells(), contract=contract) == {
        ("y", "at_least_bound"): by_index[0],
        ("y", "at_least_bound#2"): by_index[1],
    }


@pytest.mark.parametrize("dtype", [pl.Float16, pl.Float32, pl.Float64])
def test_nan_is_null_where_pandera_takes_it_for_null(dtype):
    contract = pa.DataFrameSchema({"x": pa.Column(nullable=False)})
    frame = odd_cells().with_columns(pl.col("x").cast(dtype))
    expected = pandera_rows(row_model(), contract, frame=frame)
    assert our_rows(frame, contract=contract) == expected


@pytest.mark.parametrize("default", [0.5, 3.0])
def test_a_default_is_filled_in_before_the_checks(default):
    contract = contract_of(pa.Check.lt(1.0), "x", default=default)
    contract.columns["x"].dtype = pl.Float64
    expected = pandera_rows(row_model(), contract, frame=odd_cells())
    assert expected == {("x", "less_than"): {0, 5} if default < 1.0 else {0, 1, 2, 5}}
    assert our_rows(odd_cells(), contract=contract) == expected
