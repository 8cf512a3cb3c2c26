"""What a contract may ask: checks of one row are fused, all others are refused by name.

Checks are judged before any data is read: the frames here raise if a row is made.
"""

from __future__ import annotations

from copy import copy

import pandera.polars as pa
import polars as pl
import pytest

import dpo_pipeline
from contract_tools import ENTRANCES, DataWasReadError, of_column, of_frame, poisoned, selecting
from dpo_pipeline import RefusedCheckError


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


@pytest.mark.repeats  # all entrances bind the contract by one function
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


@pytest.mark.repeats  # each form on a column or the frame
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


@pytest.mark.repeats  # all entrances bind the contract by one function
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


OF_ONE_ROW = [
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
]


def test_checks_of_one_row_are_fused(frame):
    """All in one contract, each under a name of its own."""
    of, expected, rows = {}, {}, set()
    for each in OF_ONE_ROW:
        column, check, broken = each.values
        named = copy(check)
        named.name = each.id
        of.setdefault(column, []).append(named)
        expected[f"{column or '*'}.{each.id}"] = broken
        rows |= {*broken}
    whole = of.pop(None)
    columns = {name: pa.Column(checks=checks, nullable=True) for name, checks in of.items()}
    sound = frame[2:3].with_columns(digits=pl.lit("7"))  # no data are without a sound pair
    contract = pa.DataFrameSchema(columns, checks=whole)
    report = dpo_pipeline.check(pl.concat([frame, sound]), contract=contract)
    found = {rule.name: [offender.row for offender in rule.offenders] for rule in report.broken}
    assert found == expected
    assert report.n_invalid == len(rows)


@pytest.mark.repeats(4)  # all are in one contract above
@pytest.mark.parametrize(("column", "check", "broken"), OF_ONE_ROW)
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
