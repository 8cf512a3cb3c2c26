"""The rows that compiled rules mark are those that pandera's own full validation reports.

Every expected set of rows comes from pandera: `SCHEMA_AND_DATA` on an eager frame, `lazy=True`.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations

import pandera.polars as pa
import polars as pl
import pytest
from hypothesis import given, settings, strategies as st
from pandera.config import ValidationDepth, config_context
from pandera.constants import CHECK_OUTPUT_KEY
from pandera.errors import SchemaErrors

import dpo_pipeline
from dpo_pipeline.contract.binding import bind
from dpo_pipeline.contract.model import pairs_model
from dpo_pipeline.losses.objective import CheckedObjective
from dpo_pipeline.losses.scored_columns import with_scores

LOGPS = ("policy_chosen_logps", "policy_rejected_logps", "ref_chosen_logps", "ref_rejected_logps")
COUNTS = ("chosen_num_tokens", "rejected_num_tokens")
OUR_COLUMNS = (*LOGPS, *COUNTS)
LIMIT = 4_194_304.0
BELOW_LIMIT = math.nextafter(-LIMIT, -math.inf)
ABOVE_EIGHTH = math.nextafter(0.125, 1.0)
HUGE = sys.float_info.max

# One value for each rule, and one that keeps them all.
LOGP_FAULTS = {
    "not_null": None,
    "not_nan": math.nan,
    "finite": -math.inf,
    "at_least": BELOW_LIMIT,
    "at_most": 0.5,
}
COUNT_FAULTS = {"at_least": 0}


def faults_of(column):
    return LOGP_FAULTS if column in LOGPS else COUNT_FAULTS


def clean(rows, **replaced):
    """Sound pairs, every column varied; `replaced` are whole columns."""
    columns = {
        name: [-20.0 - 3.0 * row - 0.5 * i for row in range(rows)] for i, name in enumerate(LOGPS)
    }
    columns |= {name: [7 + row + i for row in range(rows)] for i, name in enumerate(COUNTS)}
    dtypes = {name: pl.Float64 if name in LOGPS else pl.Int64 for name in OUR_COLUMNS}
    return pl.DataFrame(columns, schema=dtypes).with_columns(
        pl.Series(name, values, dtype=dtypes.get(name), strict=True)
        if isinstance(values, list)
        else values.alias(name)
        for name, values in replaced.items()
    )


def as_canonical(frame):
    """What pandera is shown: the casts that the contract promises, made by the test."""
    return frame.with_columns(pl.col(LOGPS).cast(pl.Float64), pl.col(COUNTS).cast(pl.Int64))


def pandera_errors(schema, frame):
    with config_context(validation_enabled=True, validation_depth=ValidationDepth.SCHEMA_AND_DATA):
        try:
            schema.validate(frame, lazy=True)
        except SchemaErrors as error:
            return error.schema_errors
    return []


def failed_rows(error):
    numbered = error.check_output.with_row_index("row")
    return frozenset(numbered.filter(pl.col(CHECK_OUTPUT_KEY).not_())["row"])


def name_of(error):
    check = error.check if isinstance(error.check, str) else error.check.name
    return error.column_name, check


def pandera_rows(*schemas, frame):
    """Rows by column (None for the whole frame) and check."""
    found = {}
    for schema in schemas:
        for error in pandera_errors(schema, frame):
            assert error.check_output is not None, f"pandera could not run it: {error}"
            found[name_of(error)] = failed_rows(error)
    return found


def our_rows(frame, *, contract=None, max_logp=0.0, engine="streaming"):
    """Rows by column and check, from the compiled rules; `valid` is held to their union."""
    binding = bind(frame.lazy(), source="pairs", max_logp=max_logp, contract=contract)
    rules = binding.rules
    marked = (
        binding.prepare(frame.lazy())
        .select(
            rules.valid.alias("valid"), *(r.keeps.alias(str(i)) for i, r in enumerate(rules.rules))
        )
        .collect(engine=engine)
    )
    assert marked.null_count().row(0) == (0,) * marked.width
    assert set(marked.dtypes) == {pl.Boolean}
    found = {
        (rule.column, rule.check): frozenset(marked[str(i)].not_().arg_true())
        for i, rule in enumerate(rules.rules)
    }
    assert frozenset(marked["valid"].not_().arg_true()) == frozenset().union(*found.values())
    return {name: rows for name, rows in found.items() if rows}


@pytest.mark.parametrize("column", LOGPS)
@pytest.mark.parametrize("max_logp", [0.0, 0.125])
@pytest.mark.parametrize(
    ("value", "broken", "broken_to_an_eighth"),
    [
        pytest.param(None, "not_null", "not_null", id="null"),
        pytest.param(math.nan, "not_nan", "not_nan", id="nan"),
        pytest.param(math.inf, "finite", "finite", id="+inf"),
        pytest.param(-math.inf, "finite", "finite", id="-inf"),
        pytest.param(0.0, None, None, id="zero"),
        pytest.param(-0.0, None, None, id="negative-zero"),
        pytest.param(-5e-324, None, None, id="largest-negative"),
        pytest.param(5e-324, "at_most", None, id="smallest-positive"),
        pytest.param(0.125, "at_most", None, id="an-eighth"),
        pytest.param(ABOVE_EIGHTH, "at_most", "at_most", id="just-above-an-eighth"),
        pytest.param(0.5, "at_most", "at_most", id="a-half"),
        pytest.param(HUGE, "at_most", "at_most", id="largest-float"),
        pytest.param(-LIMIT, None, None, id="the-limit"),
        pytest.param(BELOW_LIMIT, "at_least", "at_least", id="just-below-the-limit"),
        pytest.param(-1e300, "at_least", "at_least", id="-1e300"),
        pytest.param(-HUGE, "at_least", "at_least", id="smallest-float"),
    ],
)
def test_a_log_prob_breaks_one_rule_or_none(column, max_logp, value, broken, broken_to_an_eighth):
    frame = clean(4, **{column: [-20.0, -23.0, value, -29.0]})
    rule = broken if max_logp == 0.0 else broken_to_an_eighth
    expected = pandera_rows(pairs_model(max_logp), frame=frame)
    assert expected == ({(column, rule): {2}} if rule else {})
    assert our_rows(frame, max_logp=max_logp) == expected


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
    expected = pandera_rows(pairs_model(), frame=frame)
    assert expected == ({(column, broken): {2}} if broken else {})
    assert our_rows(frame) == expected


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
    expected = pandera_rows(pairs_model(), frame=frame)
    assert set(expected) == {(c, rule) for c in (one, other) for rule in faults_of(c)}
    assert our_rows(frame) == expected


def test_without_token_counts_only_log_probs_are_judged():
    frame = clean(6, **{c: [*LOGP_FAULTS.values(), -20.0] for c in LOGPS}).drop(COUNTS)
    expected = pandera_rows(pairs_model(), frame=frame)
    assert set(expected) == {(c, rule) for c in LOGPS for rule in LOGP_FAULTS}
    assert our_rows(frame) == expected


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
    expected = pandera_rows(pairs_model(max_logp), frame=as_canonical(frame))
    assert {c for c, _ in expected} == set(LOGPS)
    assert our_rows(frame, max_logp=max_logp) == expected


@pytest.mark.parametrize("dtype", [pl.Int8, pl.Int32, pl.UInt8, pl.UInt64])
def test_token_counts_of_any_integer_type(dtype):
    frame = clean(4).with_columns(pl.Series(c, [0, 1, None, 5], dtype=dtype) for c in COUNTS)
    expected = pandera_rows(pairs_model(), frame=as_canonical(frame))
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
    expected = pandera_rows(pairs_model(), frame=as_canonical(frame))
    assert expected == ({(column, "not_null"): {0, 1, 2}} if broken else {})
    assert our_rows(frame) == expected


def test_no_rows_break_nothing():
    assert pandera_rows(pairs_model(), frame=clean(0)) == our_rows(clean(0)) == {}


ANY_LOGP = st.one_of(
    st.sampled_from([*LOGP_FAULTS.values(), math.inf, 0.0, -0.0, 5e-324, 0.125, -LIMIT, -1e300]),
    st.floats(-1000.0, 0.0),
)
ANY_COUNT = st.sampled_from([None, -1, 0, 1, 2, 512])
ANY_EXTRA = st.sampled_from([None, math.nan, math.inf, -math.inf, -1.0, -0.0, 0.0, 0.5, 3.0])


@st.composite
def frames(draw, **extra):
    """60 to 70 rows, most cells special."""
    rows = draw(st.integers(60, 70))
    cells = dict.fromkeys(LOGPS, ANY_LOGP) | dict.fromkeys(COUNTS, ANY_COUNT) | extra
    columns = {c: draw(st.lists(s, min_size=rows, max_size=rows)) for c, s in cells.items()}
    dtypes = {c: pl.Int64 if c in COUNTS else pl.Float64 for c in cells}
    return pl.DataFrame(columns, schema=dtypes)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(frame=frames(), max_logp=st.sampled_from([0.0, 0.125]))
def test_any_frame(frame, max_logp):
    expected = pandera_rows(pairs_model(max_logp), frame=frame)
    assert our_rows(frame, max_logp=max_logp) == expected
    assert our_rows(frame, max_logp=max_logp, engine="in-memory") == expected


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


@settings(max_examples=40, deadline=None, derandomize=True)
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
    expected = pandera_rows(pairs_model(), PLAIN, frame=frame)
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


@settings(max_examples=40, deadline=None, derandomize=True)
@given(frame=frames(**RATINGS))
def test_any_frame_under_a_plain_schema(frame):
    frame = frame.with_columns(language=pl.lit("en"))
    expected = pandera_rows(pairs_model(), PLAIN, frame=frame)
    assert our_rows(frame, contract=PLAIN) == expected


def contract_of(check, column=None, **options):
    if column is None:
        return pa.DataFrameSchema(checks=check)
    return pa.DataFrameSchema({column: pa.Column(None, check, nullable=True, **options)})


def odd_cells():
    return clean(
        6,
        x=pl.Series([1.0, math.nan, None, -2.0, 0.0, 5.0]),
        y=pl.Series([2, 1, None, 3, 0, -1]),
        flag=pl.Series([True, False, None, True, False, True]),
        text=pl.Series(["a", "", None, "ab", "b", "12"]),
    )


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
    expected = pandera_rows(pairs_model(), contract, frame=odd_cells())
    try:
        found = our_rows(odd_cells(), contract=contract)
    except dpo_pipeline.RefusedCheckError:
        return  # that it is refused by name, `test_refused_checks` holds
    assert found == expected


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
    expected = pandera_rows(pairs_model(), contract, frame=odd_cells())
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
    expected = pandera_rows(pairs_model(), contract, frame=frame)
    assert our_rows(frame, contract=contract) == expected


@pytest.mark.parametrize("default", [0.5, 3.0])
def test_a_default_is_filled_in_before_the_checks(default):
    contract = contract_of(pa.Check.lt(1.0), "x", default=default)
    contract.columns["x"].dtype = pl.Float64
    expected = pandera_rows(pairs_model(), contract, frame=odd_cells())
    assert expected == {("x", "less_than"): {0, 5} if default < 1.0 else {0, 1, 2, 5}}
    assert our_rows(odd_cells(), contract=contract) == expected


def test_a_loss_out_of_range_is_a_fault_only_of_sound_pairs():
    # beta 1e12 makes the margins 5e11, -4e18, null and 2.1e13 nats; the range ends at 1.1e15.
    frame = clean(
        4, policy_chosen_logps=[-20.0, -LIMIT, None, 0.5], policy_rejected_logps=[-20.5] * 4
    )
    binding = bind(frame.lazy(), source="pairs", max_logp=0.0)
    objective = CheckedObjective.of(beta=1e12)
    rules = binding.rules.with_scores_in_range(objective.columns_to_check(0.0))
    marked = (
        with_scores(binding.prepare(frame.lazy()), objective)
        .select(rules.valid.alias("valid"), loss=rules.rules[-1].keeps)
        .collect()
    )
    assert rules.rules[-1].name == "loss.in_range"
    assert marked["loss"].to_list() == [True, False, True, True]
    unsound = frozenset().union(*pandera_rows(pairs_model(), frame=frame).values())
    assert frozenset(marked["valid"].not_().arg_true()) == unsound | {1}


@pytest.mark.parametrize(
    ("beta", "max_logp", "can_break"),
    [(0.4999, 0.0, False), (0.5, 0.0, True), (0.25, LIMIT, True), (0.2499, LIMIT, False)],
)
def test_scores_have_rules_where_they_can_break(beta, max_logp, can_break):
    # The largest margin: one log-ratio from the lower bound up to max_logp, the other back.
    widest = clean(1, policy_chosen_logps=[max_logp], ref_chosen_logps=[-LIMIT])
    widest = widest.with_columns(policy_rejected_logps=pl.lit(-LIMIT), ref_rejected_logps=max_logp)
    binding = bind(widest.lazy(), source="pairs", max_logp=max_logp)
    objective = CheckedObjective.of(beta=beta)
    margin = with_scores(binding.prepare(widest.lazy()), objective).collect()["reward_margin"]
    assert bool(objective.columns_to_check(max_logp)) is can_break
    assert can_break or abs(margin.item()) <= LIMIT


def many_faults():
    """120 pairs: each rule of each column broken by more rows than a report shows."""
    rows = 120
    spoilt = {}
    for i, name in enumerate(OUR_COLUMNS):
        faults = list(faults_of(name).values())
        sound = clean(rows)[name].to_list()
        spoilt[name] = [
            faults[(row // 7) % len(faults)] if (row + i) % 7 == 0 else value
            for row, value in enumerate(sound)
        ]
    return clean(rows, **spoilt, weight=[0.5, -1.0, None, 1.0] * (rows // 4))


class Weighted(dpo_pipeline.PreferencePairs):
    """One column more."""

    weight: pl.Float64 = pa.Field(gt=0, nullable=True)


def as_report(errors):
    """What pandera found, in the words of a report."""
    return {
        f"{error.column_name}.{name_of(error)[1]}": (
            error.check.error,
            len(failed_rows(error)),
            sorted(failed_rows(error))[:5],
            [repr(value) for value in error.failure_cases.to_series().head(5)],
        )
        for error in errors
    }


def in_words(report):
    return {
        rule.name: (
            rule.requirement,
            rule.count,
            [offender.row for offender in rule.offenders],
            [repr(offender.value) for offender in rule.offenders],
        )
        for rule in report.broken
    }


def test_a_report_has_the_counts_rows_and_values_of_pandera():
    frame = many_faults()
    errors = pandera_errors(Weighted, frame)
    report = dpo_pipeline.check(frame, contract=Weighted)
    assert in_words(report) == as_report(errors)
    assert len(report.broken) == 4 * 5 + 2 + 1
    assert max(rule.count for rule in report.broken) > 5
    assert report.n_pairs == frame.height
    assert report.n_invalid == len(frozenset().union(*map(failed_rows, errors)))
    assert all(offender.file is None for rule in report.broken for offender in rule.offenders)


def test_a_report_from_parquet_is_that_of_the_frame(tmp_path):
    many_faults().write_parquet(tmp_path / "pairs.parquet", row_group_size=17)
    report = dpo_pipeline.check(tmp_path / "pairs.parquet", contract=Weighted)
    assert in_words(report) == as_report(pandera_errors(Weighted, many_faults()))
    files = {offender.file for rule in report.broken for offender in rule.offenders}
    assert files == {"pairs.parquet"}


def test_worker_threads_validate_as_the_main_thread_does():
    # A new thread does not inherit pandera's validation depth.
    frame, wrong = many_faults(), many_faults().with_columns(weight=pl.lit("heavy"))
    expected = as_report(pandera_errors(Weighted, frame))

    def judge(_):
        with pytest.raises(dpo_pipeline.ColumnError, match="weight: must be Float64, found String"):
            dpo_pipeline.check(wrong, contract=Weighted)
        return in_words(dpo_pipeline.check(frame, contract=Weighted))

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(judge, range(8))) == [expected] * 8


SCRIPT = """
import json, sys
import polars as pl
import pandera.polars as pa
import dpo_pipeline

class Weighted(dpo_pipeline.PreferencePairs):
    weight: pl.Float64 = pa.Field(gt=0, nullable=True)

frame = pl.read_parquet(sys.argv[1])
wrong = frame.with_columns(weight=pl.lit("heavy"))
try:
    Weighted.validate(wrong, lazy=True)
    pandera_refuses = False
except pa.errors.SchemaErrors:
    pandera_refuses = True
try:
    dpo_pipeline.check(wrong, contract=Weighted)
    problems = []
except dpo_pipeline.ColumnError as error:
    problems = error.problems
report = dpo_pipeline.check(frame, contract=Weighted)
found = {r.name: [r.count, [o.row for o in r.offenders]] for r in report.broken}
print(json.dumps({"pandera_refuses": pandera_refuses, "problems": problems, "found": found}))
"""


@pytest.mark.parametrize(
    ("variable", "value", "pandera_refuses"),
    [
        pytest.param("PANDERA_VALIDATION_ENABLED", "False", False, id="pandera-off"),
        pytest.param("PANDERA_VALIDATION_DEPTH", "DATA_ONLY", True, id="data-only"),
        pytest.param("PANDERA_VALIDATION_DEPTH", "SCHEMA_ONLY", True, id="schema-only"),
    ],
)
def test_settings_of_pandera_in_the_environment_do_not_matter(
    tmp_path, variable, value, pandera_refuses
):
    path = tmp_path / "pairs.parquet"
    many_faults().write_parquet(path)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, os.fspath(path)],
        env=os.environ | {variable: value},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    expected = as_report(pandera_errors(Weighted, many_faults()))
    assert found["pandera_refuses"] is pandera_refuses
    assert found["problems"] == ["weight: must be Float64, found String; cast it before"]
    assert found["found"] == {n: [count, rows] for n, (_, count, rows, _) in expected.items()}
