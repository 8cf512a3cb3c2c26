"""Means of batches: by rows and by value, held and in files, by hand and by plain Python."""

from __future__ import annotations

import math

import polars as pl
import pytest

from dpo_pipeline import Batches, UsageError, evaluate
from pair_tools import LOGPS, LOSSES, close, reference_row, with_value


@pytest.mark.parametrize(
    ("size", "counts", "losses"),
    [
        pytest.param(4, [4, 2], [sum(LOSSES[:4]) / 4, sum(LOSSES[4:]) / 2], id="short last one"),
        pytest.param(1, [1] * 6, LOSSES, id="of one"),
        pytest.param(6, [6], [sum(LOSSES) / 6], id="all"),
        pytest.param(100, [6], [sum(LOSSES) / 6], id="larger than the data"),
    ],
)
def test_batches_of_rows(pairs, size, counts, losses):
    batches = evaluate(pairs, batches=size).batches
    assert batches["batch"].to_list() == list(range(len(counts)))
    assert batches["n_pairs"].to_list() == batches["n_valid"].to_list() == counts
    assert batches["loss"].to_list() == [close(loss) for loss in losses]


def test_a_batch_without_valid_rows_stays_with_nulls(pairs):
    broken = with_value(with_value(pairs, 2, None), 3, math.nan)
    batches = evaluate(broken, batches=2, on_invalid="exclude").batches
    assert batches.rows()[1] == (1, 2, 0, 2, None, None, None)
    assert batches["n_invalid"].to_list() == [0, 2, 0]
    assert batches["reward_margin"].to_list() == [close(-0.05), None, close(0.0)]
    assert batches["reward_accuracy"].to_list() == [0.5, None, 0.5]


def test_batches_by_value_merge_and_stand_in_order_of_first_appearance(pairs):
    batches = evaluate(pairs, batches=Batches(by="subset")).batches
    assert batches["batch"].to_list() == ["x", "y", None]
    assert batches["n_pairs"].to_list() == [3, 2, 1]
    assert batches["loss"].to_list() == [
        close((LOSSES[0] + LOSSES[2] + LOSSES[5]) / 3),
        close((LOSSES[1] + LOSSES[4]) / 2),
        close(LOSSES[3]),
    ]


def test_several_columns_and_batches_at_once(pairs):
    result = evaluate(pairs, by=["subset", "pair_id"], batches=4)
    assert result.subsets.height == 6
    assert result.subsets["loss"].to_list() == [close(LOSSES[i]) for i in (0, 2, 5, 1, 4, 3)]
    assert result.batches["loss"].to_list() == [
        close(sum(LOSSES[:4]) / 4),
        close(sum(LOSSES[4:]) / 2),
    ]
    assert result.summary.loss == close(sum(LOSSES) / 6)


def test_too_many_batches_ask_for_a_file_before_reading(engine, tmp_path, monkeypatch):
    monkeypatch.setattr("dpo_pipeline.sums.batches.MAX_BATCHES_HELD", 5)
    path = tmp_path / "pairs.parquet"
    pl.DataFrame({name: [-1.0] * 12 for name in LOGPS}).write_parquet(path)
    engine.graphs.clear()
    with pytest.raises(UsageError, match=r"Batches\(file=PATH\)"):
        evaluate(path, batches=2)
    assert engine.graphs == []


def test_the_mean_does_not_depend_on_batches(real_pairs):
    alone = evaluate(real_pairs).summary
    assert all(evaluate(real_pairs, batches=n).summary == alone for n in (1, 64, 500))


def test_batch_means_equal_plain_python(real_pairs):
    rows = [reference_row(*map(float, row), 0.1) for row in real_pairs.select(LOGPS).iter_rows()]
    batches = evaluate(real_pairs, batches=64).batches
    assert batches.height == 11
    for k, (loss, accuracy, margin) in enumerate(
        batches.select("loss", "reward_accuracy", "reward_margin").iter_rows()
    ):
        part = rows[64 * k : 64 * (k + 1)]
        assert loss == pytest.approx(math.fsum(r[2] for r in part) / len(part), abs=1e-12)
        assert accuracy == sum(r[0] > r[1] for r in part) / len(part)
        assert margin == pytest.approx(math.fsum(r[0] - r[1] for r in part) / len(part), abs=1e-12)


def test_batches_to_a_file_are_those_of_the_result(tmp_path, real_pairs, monkeypatch):
    monkeypatch.setattr("dpo_pipeline.evaluation.planning.BATCHES_PER_GROUP", 10)
    path = tmp_path / "batches.parquet"
    held = evaluate(real_pairs, batches=20)
    filed = evaluate(real_pairs, batches=Batches(20, file=path))
    assert filed.batches is None
    assert filed.summary == held.summary
    assert pl.read_parquet(path).equals(held.batches)
    assert [p.name for p in tmp_path.iterdir()] == ["batches.parquet"]
