"""Exact sums, counts and grids by small numbers, against whole numbers of Python."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction

import numpy as np
import polars as pl
import pytest

from dpo_pipeline.exact import bin_of
from dpo_pipeline.sums import VALID, Grid, cells, moments, of_bits, square_sums


def quanta(value):
    return round(Fraction(value) * 2**40)  # half to even


@pytest.mark.parametrize(
    "scale",
    [
        pytest.param(1.0, id="small"),
        pytest.param(3e4, id="nats and quanta"),
        pytest.param(3e15, id="beyond 2**50"),
    ],
)
def test_sums_by_code_are_those_of_whole_numbers(scale):
    rng = np.random.default_rng(4)
    values = rng.normal(0.0, 700.0, 3_000).clip(-2048, 2048) * scale
    codes = rng.integers(0, 5, 3_000)
    sums = cells.ExactSums(5, ["x", "n"], whole=["n"])
    for at in (slice(0, 1), slice(1, 2_000), slice(2_000, 3_000)):
        sums.add("x", codes[at], values[at])
        sums.add("n", codes[at], np.rint(values[at] / scale))
    table = sums.table()
    for code in range(5):
        there = codes == code
        assert table["sum_x"][code] == sum(quanta(x) for x in values[there])
        assert table["sum_n"][code] == sum(round(x / scale) << 40 for x in values[there])


@pytest.mark.parametrize("most", [math.inf, 3 * 8_192])
def test_sums_that_do_not_fit_64_bits_go_on(most):
    values, codes = np.full(8_192, -2047.5), np.zeros(8_192, dtype=np.int64)
    sums = cells.ExactSums(1, ["x"], most=most)
    for _ in range(3):  # each block is beyond 2**63 quanta
        for at in (slice(0, 4_000), slice(4_000, 8_192)):
            sums.add("x", codes[at], values[at])
    assert sums.table()["sum_x"].item() == 3 * 8_192 * quanta(-2047.5)


@pytest.mark.parametrize("most", [2**22, 10], ids=["by state", "mark by mark"])
def test_marks_are_counted_by_code(monkeypatch, most):
    monkeypatch.setattr(cells, "_CELLS", most)
    rng = np.random.default_rng(2)
    codes = rng.integers(0, 7, 500)
    marks = {name: rng.random(500) < share for name, share in (("a", 0.3), ("b", 0.5), ("c", 0.9))}
    figures = {"n_a": ["a"], "n_c": ["c"], "n_both": ["a", "c"], "n_b": ["b"]}
    marked = cells.Marked(7, figures)
    for at in (slice(0, 77), slice(77, 500)):
        marked.add(codes[at], {name: each[at] for name, each in marks.items()})
    expected = {
        name: [
            sum(all(marks[m][i] for m in names) for i in range(500) if codes[i] == code)
            for code in range(7)
        ]
        for name, names in figures.items()
    }
    assert marked.table().to_dict(as_series=False) == expected


def test_a_grid_grows_as_rows_come():
    rng = np.random.default_rng(8)
    rows = [(rng.integers(-3, 4, 50), rng.integers(0, 9, 50) + 100 * i) for i in (0, 3, -2)]
    grid = Grid.empty()
    for high, low in rows:
        grid = grid.with_rows(high, low)
    expected = Counter((a, b) for high, low in rows for a, b in zip(high, low, strict=True))
    table = Grid.merged([grid, grid]).table("a", "b")
    assert {row[:2]: row[2] for row in table.rows()} == {k: 2 * n for k, n in expected.items()}


@pytest.mark.parametrize("width", [1, 16])
def test_bins_of_arrays_are_those_of_expressions(width):
    values = np.random.default_rng(5).standard_cauchy(2_000)
    values[:3] = [0.0, -0.0, -(2.0**-7)]
    expected = pl.DataFrame({"x": values}).select(bin_of(pl.col("x"), width=width)).to_series()
    assert cells.bins_of(values, width).tolist() == expected.to_list()


@pytest.mark.parametrize(
    ("lengths", "blocks"),
    [
        pytest.param([[], []], [], id="no rows"),
        pytest.param([[30, 5], [30, 5]], [10, 10, 10, 5], id="as they are"),
        pytest.param([[30, 5], [5, 30]], [9, 9, 9, 8], id="apart"),
        pytest.param([[1] * 40, [1] * 40], [10] * 4, id="short ones"),
        pytest.param([[14], [14]], [14], id="a little more than a block"),
    ],
)
def test_blocks_are_all_rows_in_order(monkeypatch, lengths, blocks):
    monkeypatch.setattr(cells, "BLOCK", 10)
    n = sum(lengths[0])
    table = pl.DataFrame([pl.Series(name, np.arange(n) + 100.0 * i) for i, name in enumerate("ab")])
    table = pl.DataFrame(
        [
            pl.concat(
                [table[name][sum(of[:i]) : sum(of[: i + 1])] for i in range(len(of))], rechunk=False
            )
            if of
            else table[name]
            for name, of in zip("ab", lengths, strict=True)
        ]
    )
    found = list(cells.blocks_of(table))
    assert [at.stop - at.start for at, _ in found] == blocks
    for at, of in found:
        rows = np.arange(at.start, at.stop)
        assert of["a"].tolist() == rows.tolist()
        assert of["b"].tolist() == (rows + 100).tolist()
    assert sum(blocks) == n


def squares_by_key(frame):
    n_valid = pl.col(VALID).sum().cast(pl.Int64).alias("n_valid")
    groups = moments.with_squares(frame.lazy()).group_by("key")
    return groups.agg(n_valid, *square_sums(is_wide=False)).sort("key").collect()


def test_squares_by_group_are_counted_in_quanta_or_not_at_all():
    names = moments.SQUARED
    values = [0.0, -1.5, 3e-6, 2.0**-16.5, 290.0, 0.1, -33.7, 20.0]
    frame = pl.DataFrame(dict.fromkeys(names, values)).with_columns(
        pl.Series(VALID, [True] * 7 + [False]), key=pl.Series([1, 2] * 4)
    )
    found = of_bits(squares_by_key(frame))
    for place, key in enumerate((1, 2)):
        there = [x for x, k, ok in frame.select(names[0], "key", VALID).rows() if k == key and ok]
        assert found[f"square_{names[0]}"][place] == sum(
            round(Fraction(x * x) * 2**32) for x in there
        )
    many = frame.with_columns(pl.col(names) * 1.4)
    assert of_bits(squares_by_key(many)) is None  # a square is beyond 2**19
    one = pl.DataFrame(dict.fromkeys(names, [290.0] * 4_000)).with_columns(
        pl.lit(value=True).alias(VALID), key=1
    )
    assert of_bits(squares_by_key(one)) is not None
    assert of_bits(squares_by_key(pl.concat([one] * 2))) is None  # may pass 2**63
