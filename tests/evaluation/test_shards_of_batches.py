"""Losses of batches over shards, files and row groups: the same bits, in bounded memory."""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import subprocess
import sys

import polars as pl
import pytest

from batch_tools import BATCH_LOSSES, N_ROWS, SHARD, close, made, plain, with_faults, written
from dpo_pipeline import Batches, Outputs, evaluate, score, score_parquet
from dpo_pipeline.sources.dataset import Dataset
from option_tools import grouped
from pair_tools import LOGPS

# --- shards, files and row groups


def laid_out(frame, folder):
    """The same rows in one file and in folders whose files end inside batches."""
    frame.write_parquet(folder / "one.parquet")
    frame.write_parquet(folder / "groups.parquet", row_group_size=10)
    for name, ends in {
        "three": [0, 10, 10, 93, N_ROWS],  # and an empty one
        "seven": [0, 1, 5, 17, 60, 140, 141, N_ROWS],
    }.items():
        (folder / name).mkdir()
        for i, (first, last) in enumerate(itertools.pairwise(ends)):
            frame[first:last].write_parquet(folder / name / f"{i:02}.parquet", row_group_size=9)
    return [folder / name for name in ("one.parquet", "groups.parquet", "three", "seven")]


@pytest.mark.repeats(1)  # shards are cut before any loss; `files_have_row_by_row` cuts files too
@pytest.mark.parametrize(
    ("loss", "size"),
    [
        ("aot_unpaired", 64),
        ("kto_pair", 7),
        # Sorted within a batch, as the first one is.
        pytest.param("aot", 7, marks=pytest.mark.slow),
    ],
)
def test_the_same_bits_for_any_layout_and_shard(loss, size, tmp_path, monkeypatch):
    frame = with_faults(made())
    given = {"loss": loss, "batch_size": size, "on_invalid": "exclude"}
    whole = score(frame, loss=loss, batches=size).collect()
    valid = whole.filter(pl.col("loss").is_not_null())
    held = evaluate(frame, **grouped(by="subset", **given))
    (tmp_path / "out").mkdir()
    one, groups, three, seven = laid_out(frame, tmp_path)
    # Small files in shards of two batches, and larger ones of half a batch.
    for source, rows in (
        ((three, 30), (one, 262_144)) if size == 64 else ((seven, 28), (groups, 90))
    ):
        monkeypatch.setattr(SHARD, rows)
        found = evaluate(source, **grouped(by="subset", **given))
        assert found.summary == held.summary, (source, rows)
        assert found.subsets.equals(held.subsets), (source, rows)
        assert found.batches.equals(held.batches), (source, rows)
        result, scored, _ = written(source, tmp_path / "out", **given)
        assert scored.equals(valid), (source, rows)
        assert result.summary == held.summary, (source, rows)


def test_bytes_of_an_output_do_not_follow_shards(tmp_path, monkeypatch):
    made().write_parquet(tmp_path / "in.parquet", row_group_size=10)
    found = set()
    for rows in (50, 262_144):
        monkeypatch.setattr(SHARD, rows)
        out, means = tmp_path / "out.parquet", tmp_path / "means.parquet"
        score_parquet(
            tmp_path / "in.parquet",
            out,
            loss="kto_pair",
            batches=Batches(7, file=means),
            outputs=Outputs(overwrite=True),
        )
        found.add(tuple(hashlib.sha256(p.read_bytes()).hexdigest() for p in (out, means)))
    assert len(found) == 1


@pytest.mark.repeats(1)  # files are cut before any loss
@pytest.mark.parametrize("loss", BATCH_LOSSES)
def test_files_have_row_by_row_what_score_gives(loss, tmp_path, monkeypatch):
    monkeypatch.setattr(SHARD, 30)
    frame = made()
    whole = score(frame, loss=loss, batches=7).collect()
    assert set(frame.columns) < set(whole.columns)
    ends = [0, 10, 11, 93, N_ROWS]
    for source in laid_out(frame, tmp_path)[1:3]:
        _, scored, _ = written(source, tmp_path, loss=loss, batch_size=7)
        assert scored.equals(whole)
        assert scored.schema == whole.schema
    parts = sorted((tmp_path / "scored").glob("*.parquet"))
    assert [pl.read_parquet(p).height for p in parts] == [10, 0, 83, N_ROWS - 93]
    assert len(parts) == len(ends) - 1


def test_rows_stand_in_order_beyond_a_morsel(tmp_path, monkeypatch):
    # The engine hands rows on in portions, and a window need not keep them in order.
    n_rows, cut, size = 6_000, 4_096, 64
    monkeypatch.setattr(SHARD, cut)
    row = pl.int_range(n_rows, dtype=pl.UInt64)
    frame = pl.select(
        pair_id=row, **{n: -1.0 - (row.hash(seed=i) % 4_096) / 64.0 for i, n in enumerate(LOGPS)}
    )
    frame.write_parquet(tmp_path / "in.parquet", row_group_size=1_007)
    weights = dict.fromkeys(BATCH_LOSSES, 1.0)
    with pl.Config(streaming_chunk_size=500):
        _, scored, _ = written(tmp_path / "in.parquet", tmp_path, loss=weights, batch_size=size)
    assert scored["pair_id"].equals(frame["pair_id"])
    assert scored.equals(score(frame, loss=weights, batches=size).collect())
    # Two batches on each side of the cut.
    near = frame[cut - 2 * size : cut + 2 * size]
    terms = [plain(near, loss, size) for loss in BATCH_LOSSES]
    expected = [math.fsum(row) for row in zip(*terms, strict=True)]
    assert scored["loss"][cut - 2 * size : cut + 2 * size].to_list() == close(expected)


# --- cost


def test_rows_are_read_shard_by_shard_each_of_whole_batches(engine, tmp_path, monkeypatch):
    monkeypatch.setattr(SHARD, 30)
    made().write_parquet(tmp_path / "in.parquet", row_group_size=10)
    cut, ranges = [], Dataset.ranges

    def seen(self, rows):
        for first, n in ranges(self, rows):
            shard = self.shard(first, n)
            cut.append((shard.first_row, shard.rows))
            yield first, n

    monkeypatch.setattr(Dataset, "ranges", seen)
    engine.graphs.clear()
    evaluate(tmp_path / "in.parquet", loss="aot", batches=7)
    assert cut == [(first, min(28, N_ROWS - first)) for first in range(0, N_ROWS, 28)]
    *graphs, ids = engine.graphs
    assert engine.data_scans == len(graphs) == len(cut) == 6
    assert engine.id_scans == 1
    assert "_logps" not in ids
    for graph, (first, rows) in zip(graphs, cut, strict=True):
        assert f"slice: offset: {first}, len: {rows}" in graph  # by the scan itself
        assert "in-memory-map" not in graph
        assert "in-memory-fallback" not in graph
    engine.graphs.clear()
    score_parquet(tmp_path / "in.parquet", tmp_path / "out.parquet", loss="aot", batches=7)
    assert engine.data_scans == 12
    scans = [graph for graph in engine.graphs if "multi-scan[parquet]" in graph]
    scans = [graph for graph in scans if "_logps" in graph]
    assert all("len: 28" in graph or "len: 11" in graph for graph in scans)


def test_a_writer_holds_one_shard_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(SHARD, 30)
    made().write_parquet(tmp_path / "in.parquet")
    heights, collect = [], pl.LazyFrame.collect

    def noted(self, **options):
        found = collect(self, **options)
        heights.append(found.height)
        return found

    monkeypatch.setattr(pl.LazyFrame, "collect", noted)
    score_parquet(tmp_path / "in.parquet", tmp_path / "out.parquet", loss="aot", batches=14)
    # Rows, each once as scored and once as written; sums are made together, and not seen here.
    assert heights == [28] * 10 + [11] * 2


def test_small_files_of_one_shard_are_scored_together(tmp_path, engine):
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(10):
        made()[15 * i : 15 * (i + 1)].write_parquet(folder / f"{i}.parquet")
    engine.graphs.clear()
    score_parquet(folder, tmp_path / "out", loss="aot", batches=14)
    assert engine.data_scans == 2  # to measure, and to score for all ten files


def test_long_rows_make_small_shards(tmp_path, monkeypatch):
    monkeypatch.setattr("dpo_pipeline.evaluation.shards.COUPLED_SHARD_BYTES", 100_000)
    long = made().with_columns(text=pl.concat_str([pl.int_range(pl.len()).hash()] * 100))
    long.write_parquet(tmp_path / "in.parquet")
    heights, collect = [], pl.LazyFrame.collect

    def noted(self, **options):
        found = collect(self, **options)
        heights.append(found.height)
        return found

    monkeypatch.setattr(pl.LazyFrame, "collect", noted)
    score_parquet(tmp_path / "in.parquet", tmp_path / "out.parquet", loss="aot", batches=14)
    assert max(heights) <= 56  # of some 2 kB each, in whole batches
    assert sum(heights) == 2 * N_ROWS


def test_a_batch_larger_than_a_shard_is_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(SHARD, 10)
    frame = made()
    frame.write_parquet(tmp_path / "in.parquet", row_group_size=9)
    _, scored, _ = written(tmp_path / "in.parquet", tmp_path, loss="aot", batch_size=64)
    assert scored["loss"].to_list() == close(plain(frame, "aot", 64))


MEMORY = """
import pathlib, re, sys
import dpo_pipeline
source, out = sys.argv[1:]
given = {"loss": "aot", "batch_size": 64, "batches": out + ".batches"}
if out.endswith("evaluate"):
    dpo_pipeline.evaluate(source, **given)
else:
    dpo_pipeline.score_parquet(source, out, **given)
# Not ru_maxrss, which begins with the size of the process that started this one.
print(re.search(r"VmHWM:\\s*(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for the peak")
@pytest.mark.parametrize("command", ["evaluate", "score_parquet"])
def test_memory_does_not_grow_with_rows(tmp_path, command):
    peaks = {}
    for millions in (2, 6):
        source = tmp_path / f"{millions}.parquet"
        row = pl.int_range(millions * 1_000_000, dtype=pl.UInt64)
        logps = {n: -400.0 * (row.hash(seed=i) / 2.0**64) for i, n in enumerate(LOGPS)}
        pl.select(**logps).write_parquet(source, row_group_size=100_000)
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, source, tmp_path / f"{millions}-{command}"],
            env={**os.environ, "POLARS_MAX_THREADS": "2"},
            capture_output=True,
            text=True,
            check=True,
        )
        peaks[millions] = int(done.stdout) // 1024
    assert peaks[6] <= 1.2 * peaks[2], peaks
    assert peaks[6] < 500, peaks
