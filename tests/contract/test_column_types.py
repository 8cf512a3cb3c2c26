"""Names and types of columns are judged before any data is read."""

from __future__ import annotations

import datetime as dt

import pandera.polars as pa
import polars as pl
import pytest
from pandera.config import ValidationDepth, config_context

import dpo_pipeline
from contract_tools import ENTRANCES, poisoned, selecting
from dpo_pipeline import ColumnError, ContractError
from pair_tools import LOGPS

ODD_TYPES = [
    pytest.param(pl.Series(["-1.5"]), "String", id="String"),
    pytest.param(pl.Series([True]), "Boolean", id="Boolean"),
    pytest.param(pl.Series([["-1.5"]]), "List(String)", id="List"),
    pytest.param(
        pl.Series([[-1.5, -2.5]], dtype=pl.Array(pl.Float64, 2)),
        "Array(Float64, shape=(2,))",
        id="Array",
    ),
    pytest.param(pl.Series([dt.date(2024, 1, 1)]), "Date", id="Date"),
]


@pytest.mark.repeats  # each type in one of the columns and calls
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
@pytest.mark.parametrize(("values", "found"), ODD_TYPES)
def test_token_counts_of_a_wrong_type(frame, values, found, column):
    wrong = frame.head(1).with_columns(values.alias(column))
    with pytest.raises(ColumnError) as caught:
        dpo_pipeline.check(poisoned(wrong))
    assert caught.value.problems == (
        f"{column}: must be an integer, found {found}; cast it before",
    )


@pytest.mark.repeats  # each depth, on or off
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


@pytest.mark.repeats  # each column in one of the calls
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
