"""Files are read in runs: nothing that takes rows slowly has Polars decode all of a file ahead."""

from __future__ import annotations

import polars as pl
import pytest

from dpo_pipeline import OnInvalid, Pairs, compare, convert, evaluate, score_parquet, select
from dpo_pipeline.evaluation import measuring
from dpo_pipeline.sources import dataset
from dpo_pipeline.sources.dataset import open_dataset
from pair_tools import LOGPS

N_ROWS, OF_RUN = 500, 90
N_RUNS = -(-N_ROWS // OF_RUN)


def pairs():
    row = pl.int_range(N_ROWS, dtype=pl.UInt64)
    logps = {n: -400.0 * (row.hash(seed=i) / 2.0**64) for i, n in enumerate(LOGPS)}
    frame = pl.select(pair_id=row, prompt_id=row // 3, **logps)
    odd = pl.col("pair_id") % 100 == 7
    return frame.with_columns(pl.when(~odd).then(LOGPS[0]).alias(LOGPS[0]))


def completions():
    frame = pairs().select("prompt_id", policy_logps=LOGPS[1], ref_logps=LOGPS[2])
    return frame.with_columns(completion_id=pl.int_range(pl.len()), score=pl.col("ref_logps") % 5.0)


def scored(source, folder):
    asked = OnInvalid("quarantine", file=folder / "invalid.parquet")
    score_parquet(source, folder / "scored.parquet", on_invalid=asked)


def selected(source, folder):
    select(source, folder / "kept.parquet", "nearest_tie", 0.5, on_invalid="exclude")


def made_of_completions(source, folder):
    convert(Pairs(source, pairing="all"), folder / "pairs.parquet")


def converted(source, folder):
    convert(source, folder / "pairs.parquet")


OUTPUTS = {
    "convert": (pairs, converted, N_RUNS),
    "score": (pairs, scored, 2 * N_RUNS),
    "select": (pairs, selected, N_RUNS),
    "pairing": (completions, made_of_completions, 2 * N_RUNS),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_are_the_same_to_the_byte_and_read_in_runs(tmp_path, monkeypatch, name):
    rows, write, n_scans = OUTPUTS[name]
    source, made, scans = tmp_path / "in.parquet", [], []
    scan = dataset.Dataset.scan_files

    def noted(self, files, *of):
        scans.append(files)
        return scan(self, files, *of)

    monkeypatch.setattr(dataset.Dataset, "scan_files", noted)
    rows().write_parquet(source, row_group_size=150)
    for of_run in (dataset.SHARD_ROWS_IN_STEP, OF_RUN):
        monkeypatch.setattr(dataset, "SHARD_ROWS_IN_STEP", of_run)
        folder = tmp_path / str(of_run)
        folder.mkdir()
        scans.clear()
        write(source, folder)
        made.append({each.name: each.read_bytes() for each in sorted(folder.iterdir())})
    assert made[0] == made[1]
    assert len(scans) >= n_scans


def test_wide_rows_are_read_in_shorter_runs(tmp_path, monkeypatch):
    source = tmp_path / "in.parquet"
    pairs().with_columns(text=pl.lit("x" * 2_000)).write_parquet(source)
    opened = open_dataset(source)
    (part,) = opened.parts(None)
    assert [first for _, first in opened.runs(part)] == [0]
    monkeypatch.setattr(dataset, "RUN_BYTES", 200 * opened.row_bytes)
    runs = opened.runs(part)
    assert [first for _, first in runs] == [0, 200, 400]
    assert pl.concat([rows for rows, _ in runs]).collect().equals(pl.read_parquet(source))


def test_tables_in_other_orders_are_read_in_runs(tmp_path, monkeypatch, engine):
    whole = pairs().drop_nulls()
    paths = [tmp_path / f"{name}.parquet" for name in "abc"]
    for i, path in enumerate(paths):
        moved = whole.with_columns(pl.col(LOGPS[0]) * (1.0 + 0.1 * i))
        moved.sort(pl.col("pair_id").hash(i)).write_parquet(path)
    for policies in (paths[:2], paths):
        found = []
        for of_run in (10**6, OF_RUN):
            monkeypatch.setattr(dataset, "SHARD_ROWS_IN_STEP", of_run)
            engine.graphs.clear()
            found.append(compare(*policies).to_dict())
        assert found[0] == found[1]
        assert engine.data_scans >= len(policies) * (whole.height // OF_RUN)


def test_prompts_of_few_rows_are_hashed_at_a_time(tmp_path, monkeypatch, engine):
    pairs().drop_nulls().write_parquet(tmp_path / "in.parquet")
    found = evaluate(tmp_path / "in.parquet")
    monkeypatch.setattr(measuring, "SHARD_ROWS", 4 * OF_RUN)  # a fourth of a shard
    engine.graphs.clear()
    assert evaluate(tmp_path / "in.parquet").to_dict() == found.to_dict()
    assert engine.data_scans >= N_RUNS - 1
