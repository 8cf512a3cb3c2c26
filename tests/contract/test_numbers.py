"""Numbers in other clothes: decimals, wide integers, whole floats, lists of one, arrays."""

from __future__ import annotations

import math
from decimal import Decimal

import numpy as np
import polars as pl
import pytest

from dpo_pipeline import ColumnError, InvalidPairsError, Objective, evaluate, read, score_parquet
from pair_tools import LOGPS

COUNTS = ("chosen_num_tokens", "rejected_num_tokens")


@pytest.fixture
def counted(pairs):
    return pairs.with_columns(
        chosen_num_tokens=pl.Series([2, 3, 4, 5, 6, 7]),
        rejected_num_tokens=pl.Series([3, 3, 3, 3, 3, 3]),
    )


@pytest.mark.repeats(2)  # numbers are cast to one type
@pytest.mark.parametrize(
    "dtype",
    [pl.Decimal(18, 6), pl.Decimal(38, 0), pl.Int128, pl.Int8, pl.Float16],
    ids=str,
)
def test_log_probs_of_any_number(counted, dtype):
    # They are whole numbers, which every one of these types holds.
    found = evaluate(counted.with_columns(pl.col(LOGPS).cast(dtype)), by="subset")
    assert found.summary == evaluate(counted).summary


def test_a_decimal_is_the_float_nearest_to_it():
    digits = {name: [Decimal(text)] for name, text in zip(LOGPS, DIGITS, strict=True)}
    frame = pl.DataFrame(digits, schema=dict.fromkeys(LOGPS, pl.Decimal(18, 6)))
    c, r, ref_c, ref_r = map(float, DIGITS)
    margin = 0.1 * ((c - ref_c) - (r - ref_r))
    assert evaluate(frame).summary.loss == pytest.approx(math.log1p(math.exp(-margin)), abs=1e-11)


DIGITS = ("-10.123456", "-14.5", "-11.000001", "-12.75")


@pytest.mark.repeats(2)  # a list and an array
@pytest.mark.parametrize("wrap", [pl.List, lambda inner: pl.Array(inner, 1)])
@pytest.mark.parametrize("inner", [pl.Float32, pl.Float64, pl.Int64])
def test_a_list_or_an_array_of_one_number_is_the_number(counted, wrap, inner):
    boxed = counted.with_columns(
        pl.col(*LOGPS, *COUNTS).cast(inner).reshape((-1, 1)).cast(wrap(inner))
    )
    loss = Objective("simpo")
    assert evaluate(boxed).summary == evaluate(counted).summary
    assert evaluate(boxed, loss=loss).summary == evaluate(counted, loss=loss).summary


def test_a_list_of_none_or_of_several_is_no_number(counted):
    lists = [[-1.0], [], [-1.0, -2.0], None, [-5.0], [-6.0]]
    with pytest.raises(InvalidPairsError) as caught:
        evaluate(counted.with_columns(pl.Series(LOGPS[0], lists)))
    (rule,) = caught.value.report.broken
    assert (rule.name, rule.count) == (f"{LOGPS[0]}.not_null", 3)
    assert rule.requirement == "not null, nor a list of none or several (--pairing)"


def test_an_array_of_several_numbers_is_refused_by_its_type(counted):
    two = counted.with_columns(pl.Series(LOGPS[0], np.zeros((6, 2)) - 1.0))
    with pytest.raises(ColumnError, match=r"must be a number.*found Array\(Float64, shape=\(2,\)"):
        evaluate(two)


@pytest.mark.repeats(1)  # types of numbers are cast before
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
def test_two_dimensional_arrays_are_lists_of_tokens(dtype):
    rng = np.random.default_rng(3)
    names = [name.replace("_logps", "_token_logps") for name in LOGPS]
    tokens = {name: -rng.integers(1, 9, (5, 4)).astype(dtype) for name in names}
    mask = rng.integers(0, 2, (5, 4))
    mask[:, 0] = 1
    masks = {"chosen_token_mask": mask, "rejected_token_mask": mask.astype(bool)}
    frame = pl.DataFrame({**tokens, **masks})
    assert all(isinstance(dtype, pl.Array) for dtype in frame.dtypes)
    sums = {
        name: (array.astype(float) * mask).sum(axis=1)
        for name, array in zip(LOGPS, tokens.values(), strict=True)
    }
    counts = dict.fromkeys(COUNTS, mask.sum(axis=1))
    for loss in ("sigmoid", "sigmoid_norm"):
        plain = evaluate(pl.DataFrame({**sums, **counts}), loss=loss)
        assert evaluate(frame, loss=loss).summary == plain.summary
    bad = frame.with_columns(
        pl.Series(names[0], np.where(np.arange(20).reshape(5, 4) == 6, 0.5, -1.0))
    )
    with pytest.raises(InvalidPairsError, match=r"tokens_at_most .* row 1: '0.5 at position 2'"):
        evaluate(bad.drop(masks))


def with_counts(frame, values):
    return frame.with_columns(pl.Series(COUNTS[0], values, strict=False))


def test_whole_floats_are_counts_and_nan_is_an_unknown_one(counted):
    floats = with_counts(counted, [2.0, math.nan, 4.0, 5.0, 6.0, 7.0])
    nulls = with_counts(counted, [2, None, 4, 5, 6, 7])
    assert evaluate(floats).summary == evaluate(nulls).summary
    assert evaluate(floats, statistics=True).statistics.length == (
        evaluate(nulls, statistics=True).statistics.length
    )
    for frame in (floats, nulls):
        with pytest.raises(InvalidPairsError) as caught:
            evaluate(frame, loss="simpo")
        (rule,) = caught.value.report.broken
        assert (rule.name, rule.count) == ("chosen_num_tokens.not_null", 1)
    loss = Objective("simpo")
    found = evaluate(floats, loss=loss, on_invalid="exclude").summary
    assert found == evaluate(nulls, loss=loss, on_invalid="exclude").summary


def test_decimal_counts(counted):
    decimals = counted.with_columns(pl.col(COUNTS).cast(pl.Decimal(10, 2)))
    assert evaluate(decimals, loss="simpo").summary == evaluate(counted, loss="simpo").summary


def test_counts_that_are_no_whole_numbers_break_a_rule_of_their_own(counted, tmp_path):
    odd = with_counts(counted, [2.5, -3.0, math.inf, 0.0, 2.0**60, 7.0])
    with pytest.raises(InvalidPairsError) as caught:
        evaluate(odd)
    found = {
        rule.name: [(each.row, each.value) for each in rule.offenders]
        for rule in caught.value.report.broken
    }
    assert found == {
        "chosen_num_tokens.whole": [(0, 2.5), (2, math.inf), (4, 2.0**60)],
        "chosen_num_tokens.at_least": [(1, -3), (3, 0)],
    }
    score_parquet(odd, tmp_path / "out.parquet", on_invalid="quarantine")
    apart = pl.read_parquet(tmp_path / "out.invalid.parquet")
    assert apart["chosen_num_tokens"].to_list() == [None, -3, None, 0, None]
    assert apart["source_row"].to_list() == [0, 1, 2, 3, 4]
    assert pl.read_parquet(tmp_path / "out.parquet")["chosen_num_tokens"].to_list() == [7]


def test_a_file_with_holes_beside_files_without(counted, tmp_path):
    # pandas writes floats where a count is missing, and integers elsewhere.
    with_counts(counted[:3], [2.0, math.nan, 4.0]).write_parquet(tmp_path / "a.parquet")
    counted[3:].write_parquet(tmp_path / "b.parquet")
    nulls = with_counts(counted, [2, None, 4, 5, 6, 7])
    assert evaluate(tmp_path, loss="sigmoid").summary == evaluate(nulls).summary
    assert read(tmp_path).collect()[COUNTS[0]].dtype == pl.Float64
