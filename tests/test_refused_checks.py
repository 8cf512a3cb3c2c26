"""What a contract may ask: checks of one row are fused, all others are refused by name.

Names, types and checks are judged before any data is read: the frames here raise if a row is
asked for.
"""

from __future__ import annotations

import datetime as dt
import decimal

import pandera.polars as pa
import polars as pl
import pytest
from pandera.config import ValidationDepth, config_context

import dpo_pipeline
from dpo_pipeline import ColumnError, ContractError, RefusedCheckError

LOGPS = ("policy_chosen_logps", "policy_rejected_logps", "ref_chosen_logps", "ref_rejected_logps")


class DataWasReadError(Exception):
    """Raised when a poisoned frame is run."""


def poisoned(frame):
    """Return a plan with the columns of `frame` that raises as soon as it runs."""

    def explode(_):
        raise DataWasReadError

    return frame.lazy().map_batches(explode, schema=frame.schema)


@pytest.fixture
def frame():
    logps = {name: [-20.0 - 3.0 * row - i for row in range(6)] for i, name in enumerate(LOGPS)}
    return pl.DataFrame(
        {
            **logps,
            "x": [0.5, 1.5, 2.5, 3.5, None, float("nan")],
            "low": [0.0, 2.0, 0.0, 4.0, 0.0, 0.0],
            "high": [1.0, 3.0, None, 5.0, 1.0, 1.0],
            "n": [1, 2, 3, 4, None, -1],
            "text": ["en", "de", None, "", "english", "fr"],
            "digits": ["1", "20", "-3", "four", None, "0"],
            "flag": [True, False, None, True, True, False],
            "words": [["a"], [], None, ["b", "c"], ["d"], ["e"]],
            "when": [dt.date(2023 + year, 1, 31) for year in range(6)],
        }
    )


ENTRANCES = [
    pytest.param(dpo_pipeline.check, id="check"),
    pytest.param(dpo_pipeline.evaluate, id="evaluate"),
]


def of_column(column, function, **options):
    return pa.DataFrameSchema({column: pa.Column(checks=pa.Check(function, **options))})


def of_frame(function, **options):
    return pa.DataFrameSchema(checks=pa.Check(function, **options))


def selecting(expression):
    """A check that selects what `expression` makes of the column's name."""

    def selected(data):
        return data.lazyframe.select(expression(data.key))

    return selected


def test_a_poisoned_frame_raises_when_it_is_run(frame):
    with pytest.raises(DataWasReadError):
        poisoned(frame).select("x").collect()
    with pytest.raises(DataWasReadError):
        dpo_pipeline.check(poisoned(frame))


class EachElement(dpo_pipeline.PreferencePairs):
    """A model whose check runs Python on every value."""

    x: pl.Float64 = pa.Field(nullable=True)

    @pa.check("x", element_wise=True)
    @classmethod
    def is_small(cls, value):
        return value < 10.0


class Ranked(dpo_pipeline.PreferencePairs):
    """A model whose check compares rows."""

    @pa.dataframe_check
    @classmethod
    def is_sorted(cls, data):
        return data.lazyframe.select(pl.col("x") >= pl.col("x").shift(1))


class Keyed(dpo_pipeline.PreferencePairs):
    """A model with a key."""

    n: pl.Int64 = pa.Field(unique=True, nullable=True)


class KeyedByTwo(dpo_pipeline.PreferencePairs):
    """A model with a key of two columns."""

    class Config:
        unique = ("n", "text")


def python_of_a_value(value):
    return max(value, 0.0) == value


def python_of_a_batch(values):
    return values > 0


OF_OTHER_ROWS = [
    pytest.param(lambda k: pl.col(k).sum() > 0, id="aggregate"),
    pytest.param(lambda k: (pl.col(k) > 0).any(), id="any"),
    pytest.param(lambda k: pl.col(k) < pl.col(k).mean(), id="against-the-mean"),
    pytest.param(lambda k: (pl.col(k) > 0) & (pl.col(k).max() < 9), id="aggregate-inside-and"),
    pytest.param(
        lambda k: (
            pl.when(pl.col(k) > 0).then(pl.col(k) < pl.col(k).max()).otherwise(statement=True)
        ),
        id="aggregate-inside-when",
    ),
    pytest.param(lambda k: pl.col(k) < pl.len(), id="number-of-rows"),
    pytest.param(lambda k: pl.col(k) > pl.col(k).shift(1), id="shift"),
    pytest.param(lambda k: pl.col(k).diff() > 0, id="diff"),
    pytest.param(lambda k: pl.col(k).cum_sum() > 0, id="cum_sum"),
    pytest.param(lambda k: pl.col(k).rolling_mean(2) > 0, id="rolling"),
    pytest.param(lambda k: pl.col(k).rank() > 1, id="rank"),
    pytest.param(lambda k: pl.col(k).sort() > 0, id="sort"),
    pytest.param(lambda k: pl.col(k).reverse() > 0, id="reverse"),
    pytest.param(lambda k: pl.col(k).forward_fill() > 0, id="forward_fill"),
    pytest.param(lambda k: pl.col(k).fill_null(strategy="mean") > 0, id="fill_null-by-mean"),
    pytest.param(lambda k: pl.col(k).interpolate() > 0, id="interpolate"),
    pytest.param(lambda k: pl.col(k).is_unique(), id="is_unique"),
    pytest.param(lambda k: pl.col(k).is_first_distinct(), id="is_first_distinct"),
    pytest.param(lambda k: pl.col(k).is_in(pl.col("n").implode()), id="is_in-a-column"),
    pytest.param(lambda k: pl.col(k).max().over("text") > 0, id="over"),
    pytest.param(lambda k: pl.col(k) > pl.col(k).mean().over("text"), id="against-over"),
    pytest.param(lambda k: pl.int_range(pl.len()) < pl.col(k), id="row-number"),
    pytest.param(lambda k: pl.col(k).shuffle() > 0, id="shuffle"),
    pytest.param(lambda k: pl.col(k).head(6) > 0, id="head"),
    pytest.param(lambda k: pl.col(k).filter(pl.col(k) > 0) > 0, id="filter"),
    pytest.param(lambda k: pl.col(k) > pl.Series([0.0] * 6), id="against-a-series-of-all-rows"),
    pytest.param(lambda _: pl.Series([True] * 6), id="a-series-of-all-rows"),
    pytest.param(lambda _: pl.lit(value=True), id="a-literal"),
]

OF_PYTHON = [
    pytest.param(
        lambda k: pl.col(k).map_elements(python_of_a_value, return_dtype=pl.Boolean),
        id="map_elements",
    ),
    pytest.param(
        lambda k: pl.col(k).map_batches(python_of_a_batch, return_dtype=pl.Boolean),
        id="map_batches",
    ),
    pytest.param(
        lambda _: pl.col("words").list.eval(pl.element().str.len_chars() > 0).list.all(),
        id="list.eval",
    ),
]

NO_BOOLEANS = [
    pytest.param(lambda k: pl.col(k) + 1.0, id="a-number"),
    pytest.param(lambda _: pl.col("text"), id="a-string"),
    pytest.param(lambda k: [pl.col(k) > 0, pl.col(k) + 1.0], id="a-number-beside-a-Boolean"),
    pytest.param(lambda k: (pl.col(k) > 0).cast(pl.Int8), id="one-and-zero"),
    pytest.param(lambda _: [], id="nothing"),
    pytest.param(lambda _: pl.col("absent") > 0, id="of-a-column-that-is-not-there"),
]


@pytest.mark.parametrize("entrance", ENTRANCES)
@pytest.mark.parametrize("column", ["x", None], ids=["column", "frame"])
@pytest.mark.parametrize("expression", [*OF_OTHER_ROWS, *OF_PYTHON, *NO_BOOLEANS])
def test_an_expression_that_is_not_of_one_row_is_refused(frame, expression, column, entrance):
    def named(data):
        return data.lazyframe.select(expression("x" if data.key == "*" else data.key))

    contract = of_column(column, named) if column else of_frame(named)
    with pytest.raises(RefusedCheckError) as caught:
        entrance(poisoned(frame), contract=contract)
    assert (caught.value.check, caught.value.column) == ("named", column)


@pytest.mark.parametrize("column", ["x", None], ids=["column", "frame"])
@pytest.mark.parametrize(
    ("function", "why"),
    [
        pytest.param(
            lambda d: d.lazyframe.with_columns(ok=pl.col("x") > 0),
            "with_columns",
            id="with_columns",
        ),
        pytest.param(
            lambda d: d.lazyframe.with_columns(y=pl.col("x")).select(pl.col("y") > 0),
            "with_columns",
            id="with_columns-then-select",
        ),
        pytest.param(
            lambda d: d.lazyframe.select(pl.col("x") > 0).collect().lazy(), "collect", id="collect"
        ),
        pytest.param(
            lambda d: d.lazyframe.filter(pl.col("x") > 0).select(pl.col("x") > 0),
            "filter",
            id="filter",
        ),
        pytest.param(
            lambda d: d.lazyframe.group_by("text").agg(pl.col("x").is_null().any()),
            "group_by",
            id="group_by",
        ),
        pytest.param(lambda d: d.lazyframe.sort("x"), "sort", id="sort"),
        pytest.param(lambda _: True, "bool", id="returns-True"),
        pytest.param(lambda _: False, "bool", id="returns-False"),
        pytest.param(lambda _: None, "NoneType", id="returns-nothing"),
        pytest.param(lambda _: pl.col("x") > 0, "Expr", id="returns-an-expression"),
        pytest.param(
            lambda d: pl.LazyFrame(schema=d.lazyframe.collect_schema()).select(pl.col("x") > 0),
            "LazyFrame",
            id="returns-another-frame",
        ),
        pytest.param(lambda d: d.lazyframe, None, id="returns-the-frame-as-it-is"),
        pytest.param(
            lambda d: d.lazyframe.select(pl.col("flag")).select(pl.col("flag").not_()),
            None,
            id="selects-from-a-selection",
        ),
        pytest.param(lambda d: d.lazyframe.select(True), None, id="selects-a-Python-bool"),  # noqa: FBT003  a user's slip
    ],
)
def test_a_check_that_does_more_than_select_is_refused(frame, function, why, column):
    options = {"name": "mine"}
    contract = of_column(column, function, **options) if column else of_frame(function, **options)
    with pytest.raises(RefusedCheckError, match=why) as caught:
        dpo_pipeline.check(poisoned(frame), contract=contract)
    assert (caught.value.check, caught.value.column) == ("mine", column)
    place = f"column {column!r}" if column else "the frame"
    assert str(caught.value).startswith(f"check 'mine' on {place} cannot run row by row: ")


@pytest.mark.parametrize("entrance", ENTRANCES)
@pytest.mark.parametrize(
    ("contract", "check", "column"),
    [
        pytest.param(
            of_column("x", lambda value: value > 0, element_wise=True, name="each"),
            "each",
            "x",
            id="element_wise",
        ),
        pytest.param(EachElement, "is_small", "x", id="element_wise-in-a-model"),
        pytest.param(Ranked, "is_sorted", None, id="shift-in-a-model"),
        pytest.param(
            pa.DataFrameSchema(
                {
                    "text": pa.Column(nullable=True),
                    "x": pa.Column(checks=pa.Check(bool, groupby="text", name="grouped")),
                }
            ),
            "grouped",
            "x",
            id="groupby",
        ),
        pytest.param(
            pa.DataFrameSchema({"n": pa.Column(unique=True, nullable=True)}),
            "unique",
            "n",
            id="unique-column",
        ),
        pytest.param(
            pa.DataFrameSchema({"lo.*": pa.Column(unique=True, regex=True)}),
            "unique",
            "low",
            id="unique-columns-by-pattern",
        ),
        pytest.param(Keyed, "unique", "n", id="unique-column-in-a-model"),
        pytest.param(
            pa.DataFrameSchema({"n": pa.Column(nullable=True)}, unique=["n"]),
            "unique",
            None,
            id="unique-schema",
        ),
        pytest.param(KeyedByTwo, "unique", None, id="unique-model"),
        pytest.param(
            pa.DataFrameSchema({"x": pa.Column(checks=pa.Check.gt(0.0, raise_warning=True))}),
            "greater_than",
            "x",
            id="a-check-that-only-warns",
        ),
        pytest.param(
            pa.DataFrameSchema(
                {"text": pa.Column(checks=pa.Check.unique_values_eq(["en"]), nullable=True)}
            ),
            "unique_values_eq",
            "text",
            id="unique_values_eq",
        ),
        pytest.param(
            pa.DataFrameSchema(
                {
                    "x": pa.Column(
                        checks=[
                            pa.Check.lt(9.0),
                            pa.Check(selecting(lambda k: pl.col(k).max() > 0), name="second"),
                        ]
                    )
                }
            ),
            "second",
            "x",
            id="the-second-of-two-checks",
        ),
    ],
)
def test_a_contract_that_cannot_be_fused_is_refused_by_name(
    frame, contract, check, column, entrance
):
    with pytest.raises(RefusedCheckError) as caught:
        entrance(poisoned(frame), contract=contract)
    assert (caught.value.check, caught.value.column) == (check, column)


def a_row(expression):
    return pa.Check(selecting(lambda _: expression), name="mine")


@pytest.mark.parametrize(
    ("column", "check", "broken"),
    [
        pytest.param("x", pa.Check.in_range(1.0, 3.0), [0, 3, 5], id="in_range"),
        pytest.param("n", pa.Check.isin([1, 2, 3]), [3, 5], id="isin"),
        pytest.param("text", pa.Check.isin(["en", "de"]), [3, 4, 5], id="isin-strings"),
        pytest.param("text", pa.Check.str_matches("en$"), [1, 3, 4, 5], id="str_matches"),
        pytest.param("text", pa.Check.str_length(max_value=2), [4], id="str_length"),
        pytest.param(
            None,
            a_row(pl.col("x").is_between(pl.col("low"), pl.col("high"))),
            [1, 3, 5],
            id="between-two-columns",
        ),
        pytest.param(
            "n",
            a_row(pl.when(pl.col("flag")).then(pl.col("n") < 2).otherwise(pl.col("n") > 2)),
            [1, 3, 5],
            id="when-then-otherwise",
        ),
        pytest.param("n", a_row(pl.when("flag").then(pl.col("n") < 2)), [3], id="when-then"),
        pytest.param("text", a_row(pl.col("text").str.len_chars() == 2), [3, 4], id="len_chars"),
        pytest.param(
            "digits",
            a_row(pl.col("digits").cast(pl.Int64, strict=False) >= 0),
            [2],
            id="cast-of-strings",
        ),
        pytest.param(
            "digits",
            a_row(pl.col("digits").cast(pl.Int64, strict=False).is_not_null()),
            [3, 4],
            id="cast-that-must-succeed",
        ),
        pytest.param("n", a_row(pl.col("n").cast(pl.Float64) / 2 < 2.0), [3], id="cast-to-float"),
        pytest.param(None, a_row(pl.max_horizontal("low", "high") < 3.0), [1, 3], id="horizontal"),
        pytest.param("words", a_row(pl.col("words").list.len() > 0), [1], id="list-length"),
        pytest.param("when", a_row(pl.col("when").dt.year() < 2027), [4, 5], id="year"),
        pytest.param(
            "x", a_row(pl.struct("x", "n").struct.field("n") > 0), [5], id="field-of-a-struct"
        ),
        pytest.param("flag", a_row(pl.col("flag")), [1, 5], id="Boolean-column"),
        pytest.param(
            "flag",
            pa.Check(lambda d: d.lazyframe.select(d.key), name="mine"),
            [1, 5],
            id="Boolean-column-by-name",
        ),
        pytest.param(
            None,
            pa.Check(lambda d: d.lazyframe.select(pl.col(c) > 0 for c in ("x", "n")), name="mine"),
            [5],
            id="generator-of-expressions",
        ),
        pytest.param(
            None,
            pa.Check(lambda d: d.lazyframe.select([pl.col("x") > 1, pl.col("n") > 0]), name="mine"),
            [0, 5],
            id="list-of-expressions",
        ),
        pytest.param(
            None,
            pa.Check(lambda d: d.lazyframe.select(a=pl.col("x") > 1, b="flag"), name="mine"),
            [0, 1, 5],
            id="named-expressions",
        ),
        pytest.param(
            "n",
            pa.Check(
                lambda d: (
                    d.lazyframe.select(pl.col("n") > 9),
                    d.lazyframe.select(pl.col("n") > 0),
                )[1],
                name="mine",
            ),
            [5],
            id="one-of-two-selections",
        ),
        pytest.param("n", a_row(pl.sql_expr("n > 0 AND x < 3")), [3, 5], id="sql"),
    ],
)
def test_a_check_of_one_row_is_fused(frame, column, check, broken):
    contract = (
        pa.DataFrameSchema({column: pa.Column(checks=check, nullable=True)})
        if column
        else pa.DataFrameSchema(checks=check)
    )
    report = dpo_pipeline.check(frame, contract=contract)
    found = {rule.name: [offender.row for offender in rule.offenders] for rule in report.broken}
    assert found == {f"{column or '*'}.{check.name}": broken}
    assert report.n_invalid == len(broken)


ODD_TYPES = [
    pytest.param(pl.Series(["-1.5"]), "String", id="String"),
    pytest.param(pl.Series([True]), "Boolean", id="Boolean"),
    pytest.param(
        pl.Series([decimal.Decimal("-1.5")], dtype=pl.Decimal(10, 2)),
        "Decimal(precision=10, scale=2)",
        id="Decimal",
    ),
    pytest.param(pl.Series([[-1.5]]), "List(Float64)", id="List"),
    pytest.param(pl.Series([dt.date(2024, 1, 1)]), "Date", id="Date"),
]


@pytest.mark.parametrize("entrance", [*ENTRANCES, pytest.param(dpo_pipeline.score, id="score")])
@pytest.mark.parametrize("column", LOGPS)
@pytest.mark.parametrize(("values", "found"), ODD_TYPES)
def test_log_probs_of_a_wrong_type(frame, values, found, column, entrance):
    wrong = frame.head(1).with_columns(values.alias(column))
    with pytest.raises(ColumnError) as caught:
        entrance(poisoned(wrong))
    assert caught.value.problems == (
        f"{column}: must be a number (any float or integer), found {found}; cast it before",
    )
    assert caught.value.problems[0] in str(caught.value)


@pytest.mark.parametrize("column", ["chosen_num_tokens", "rejected_num_tokens"])
@pytest.mark.parametrize(
    ("values", "found"),
    [*ODD_TYPES, pytest.param(pl.Series([7.0], dtype=pl.Float32), "Float32", id="Float32")],
)
def test_token_counts_of_a_wrong_type(frame, values, found, column):
    wrong = frame.head(1).with_columns(values.alias(column))
    with pytest.raises(ColumnError) as caught:
        dpo_pipeline.check(poisoned(wrong))
    assert caught.value.problems == (
        f"{column}: must be an integer, found {found}; cast it before",
    )


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("depth", list(ValidationDepth))
def test_types_are_judged_without_reading_whatever_pandera_is_set_to(frame, enabled, depth):
    wrong = frame.with_columns(pl.col(LOGPS[0]).cast(pl.String))
    contract = pa.DataFrameSchema({"x": pa.Column(checks=pa.Check.gt(0), nullable=True)})
    with config_context(validation_enabled=enabled, validation_depth=depth):
        with pytest.raises(ColumnError, match="found String"):
            dpo_pipeline.check(poisoned(wrong), contract=contract)
        report = dpo_pipeline.check(frame, contract=contract)
    assert report.by_rule == {}


def test_every_wrong_type_is_told_at_once(frame):
    wrong = frame.with_columns(pl.col(LOGPS).cast(pl.String), chosen_num_tokens=pl.lit("7"))
    with pytest.raises(ColumnError) as caught:
        dpo_pipeline.check(poisoned(wrong))
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        *LOGPS,
        "chosen_num_tokens",
    ]


@pytest.mark.parametrize("column", LOGPS)
@pytest.mark.parametrize("entrance", [*ENTRANCES, pytest.param(dpo_pipeline.score, id="score")])
def test_missing_log_probs(frame, column, entrance):
    with pytest.raises(ColumnError) as caught:
        entrance(poisoned(frame.drop(column)))
    (problem,) = caught.value.problems
    assert problem.startswith(f"{column}: missing")
    assert all(name in problem for name in frame.drop(column).columns)


def test_a_missing_column_does_not_show_data(frame):
    contract = pa.DataFrameSchema({"annotator": pa.Column(pl.String)})
    secret = frame.with_columns(text=pl.lit("a secret"))
    with pytest.raises(ColumnError) as caught:
        dpo_pipeline.check(secret, contract=contract)
    assert caught.value.problems == (
        f"annotator: missing; the columns are {', '.join(frame.columns)}",
    )
    assert "a secret" not in str(caught.value)


class Dropping(dpo_pipeline.PreferencePairs):
    """A model that would have pandera drop rows, and so keep silent on columns."""

    text: pl.Int64

    class Config:
        drop_invalid_rows = True


@pytest.mark.parametrize(
    ("contract", "problem"),
    [
        pytest.param(
            pa.DataFrameSchema({"annotator": pa.Column(pl.String)}),
            "annotator: missing; the columns are policy_chosen_logps",
            id="missing",
        ),
        pytest.param(
            pa.DataFrameSchema({"text": pa.Column(pl.Int64)}),
            "text: must be Int64, found String; cast it before",
            id="wrong-type",
        ),
        pytest.param(
            pa.DataFrameSchema({"x": pa.Column(pl.Float32, nullable=True)}),
            "x: must be Float32, found Float64; cast it before",
            id="other-precision",
        ),
        pytest.param(
            pa.DataFrameSchema({"annotator": pa.Column(pl.String)}, drop_invalid_rows=True),
            "annotator: missing; the columns are policy_chosen_logps",
            id="missing-where-rows-may-be-dropped",
        ),
        pytest.param(
            pa.DataFrameSchema({"text": pa.Column(pl.Int64)}, drop_invalid_rows=True),
            "text: must be Int64, found String; cast it before",
            id="wrong-type-where-rows-may-be-dropped",
        ),
        pytest.param(
            pa.DataFrameSchema({"text": pa.Column(pl.Int64, drop_invalid_rows=True)}),
            "text: must be Int64, found String; cast it before",
            id="wrong-type-where-the-column-may-drop-rows",
        ),
        pytest.param(
            Dropping,
            "text: must be Int64, found String; cast it before",
            id="wrong-type-in-a-model-that-may-drop-rows",
        ),
        pytest.param(
            pa.DataFrameSchema({"x": pa.Column(nullable=True)}, strict=True),
            "policy_chosen_logps",
            id="strict",
        ),
        pytest.param(
            pa.DataFrameSchema({"q_.*": pa.Column(regex=True)}),
            "q_.*",
            id="pattern-without-a-match",
        ),
        pytest.param(
            pa.DataFrameSchema({"x": pa.Column(nullable=True)}, strict="filter"),
            "policy_chosen_logps",
            id="filters-the-log-probs-away",
        ),
    ],
)
@pytest.mark.parametrize("entrance", ENTRANCES)
def test_columns_that_do_not_fit_a_contract(frame, contract, problem, entrance):
    with pytest.raises(ColumnError) as caught:
        entrance(poisoned(frame), contract=contract)
    assert problem in caught.value.problems[0]


def test_columns_are_judged_before_checks(frame):
    contract = pa.DataFrameSchema(
        {"text": pa.Column(pl.Int64, unique=True)},
        checks=pa.Check(selecting(lambda _: pl.col("x").sum() > 0)),
    )
    with pytest.raises(ColumnError, match="text: must be Int64, found String"):
        dpo_pipeline.check(poisoned(frame), contract=contract)


class Coercing(dpo_pipeline.PreferencePairs):
    """A model that has pandera cast a column, and judges nothing else of it."""

    text: pl.Int64 = pa.Field(nullable=True)

    class Config:
        coerce = True


@pytest.mark.parametrize("entrance", ENTRANCES)
@pytest.mark.parametrize(
    "contract",
    [
        pytest.param(Coercing, id="model"),
        pytest.param(
            pa.DataFrameSchema({"text": pa.Column(pl.Int64, coerce=True, nullable=True)}),
            id="schema",
        ),
        pytest.param(
            pa.DataFrameSchema({"text": pa.Column(pl.Int64, pa.Check.gt(0), coerce=True)}),
            id="schema-with-a-check",
        ),
        pytest.param(
            pa.DataFrameSchema(
                {"te[sx]t": pa.Column(pl.Int64, coerce=True, regex=True, nullable=True)}
            ),
            id="columns-by-pattern",
        ),
        pytest.param(
            pa.DataFrameSchema({"text": pa.Column(nullable=True)}, dtype=pl.Int64, coerce=True),
            id="one-type-for-all-columns",
        ),
    ],
)
def test_cells_that_cannot_be_coerced_do_not_pass(frame, contract, entrance):
    # No cell is a number, so it is an error whether a cell is a fault or coercion is refused.
    with pytest.raises(ContractError):
        entrance(frame.with_columns(text=pl.lit("no number")), contract=contract)
