"""Ranks in pieces: the same in memory, in a temporary folder, and where most values are equal."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from dpo_pipeline.selection.row_ranks import GROUP, KEPT, RANK, ROW, TIE, VALUE, ByRow, RowRanks

N = 600


def rows_of(kind):
    rng = np.random.default_rng(7)
    values = {
        "spread": rng.normal(0, 3, N),
        "many ties": np.where(rng.random(N) < 0.9, 0.0, rng.normal(0, 1, N)),
        "wide": np.exp(rng.normal(0, 40, N)) * rng.choice([-1, 1], N),
        "odd": rng.choice([np.inf, -np.inf, 0.0, -0.0, 5e-324, -5e-324, 1.0], N),
    }[kind]
    return pl.DataFrame(
        {
            ROW: np.arange(N, dtype=np.uint64),
            GROUP: rng.integers(0, 3, N).astype(np.uint32),
            VALUE: values,
            TIE: rng.integers(0, 2**63, N).astype(np.uint64),
        }
    )


ON_DISK = 160
DEAR = {("wide", True), ("many ties", True)}  # many small files, as from the other end


@pytest.mark.repeats(3)  # in memory and on disk
@pytest.mark.parametrize(
    ("kind", "held", "largest_first"),
    [
        pytest.param(
            kind,
            held,
            first,
            marks=pytest.mark.slow if held == ON_DISK and (kind, first) in DEAR else (),
        )
        for kind in ("spread", "many ties", "wide", "odd")
        for held in (10 * N, ON_DISK)
        for first in (False, True)
    ],
)
def test_ranks_are_those_of_sorting(monkeypatch, kind, held, largest_first):
    monkeypatch.setattr("dpo_pipeline.sources.keys.JOINED_ROWS", held)
    monkeypatch.setattr("dpo_pipeline.selection.row_ranks._MOST_BYTES", 8_000)
    rows = rows_of(kind)
    keep = {0: 10, 1: 0, 2: N}
    with RowRanks(pl.Schema(), largest_first=largest_first) as ranks:
        for at in range(0, N, 108):
            ranks.add(rows.slice(at, 108))
        made = pl.concat(list(ranks.ranked(keep)))
    assert made.height == N
    for group in range(3):
        some = rows.filter(pl.col(GROUP) == group)
        sign = -1.0 if largest_first else 1.0
        order = sorted(some.rows(named=True), key=lambda r: (sign * r[VALUE] + 0.0, r[TIE]))
        found = made.filter(pl.col(GROUP) == group).sort(RANK)
        assert found[ROW].to_list() == [row[ROW] for row in order]
        assert found[RANK].to_list() == list(range(1, some.height + 1))
        assert found[KEPT].sum() == min(keep[group], some.height)


@pytest.mark.parametrize("held", [10 * N, 280])
def test_rows_come_back_in_the_order_of_the_data(monkeypatch, held):
    monkeypatch.setattr("dpo_pipeline.sources.keys.JOINED_ROWS", held)
    monkeypatch.setattr("dpo_pipeline.selection.row_ranks.STATISTICS_ROWS", 120)
    rng = np.random.default_rng(3)
    numbers = rng.permutation(np.arange(0, 2 * N, 2, dtype=np.uint64))
    with ByRow(pl.Schema({ROW: pl.UInt64})) as store:
        for at in range(0, N, 520):
            store.add(pl.DataFrame({ROW: numbers[at : at + 520]}))
        for _ in range(2):
            store.rewind()
            taken = [store.take(first, 311)[ROW].to_list() for first in range(0, 2 * N, 311)]
            for first, found in zip(range(0, 2 * N, 311), taken, strict=True):
                assert found == [n for n in range(first, min(first + 311, 2 * N)) if n % 2 == 0]
