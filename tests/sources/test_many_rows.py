"""Datasets and files of more rows than 32 bits count: Polars' row index ends at 2**32."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pyarrow.parquet as pq
import pytest

from dpo_pipeline import Batches, StorageError, check, evaluate, score_parquet
from dpo_pipeline.contract.invalid_rows import numbered
from dpo_pipeline.sources import dataset as storage
from dpo_pipeline.sums.batches import Batching
from pair_tools import LOGPS

FAR = 2**32 + 5
FAR_PLANS = pytest.mark.slow  # what their plans add to far rows is tested below, without a plan


@pytest.fixture(scope="module")
def many(tmp_path_factory, pairs):
    """Return a maker of true Parquet files of any number of groups of 1,000,000 rows.

    The footer lists one row group again and again, so that a file of 3,000,000,000 rows is small.
    """
    place = tmp_path_factory.mktemp("many")
    rows = pairs.select(pl.col(LOGPS).gather(pl.int_range(1_000_000) % pairs.height))

    def make(path, n_groups, last_logp=-85.0):
        group = place / f"{last_logp}.bin"
        if not group.exists():
            each = rows.with_columns(ref_rejected_logps=pl.col(LOGPS[3]).replace(-85.0, last_logp))
            each.write_parquet(group, row_group_size=1_000_000)
        data = group.read_bytes()
        data = data[: -8 - int.from_bytes(data[-8:-4], "little")]
        footer, long = pq.read_metadata(group), pq.read_metadata(group)
        for _ in range(n_groups - 1):
            long.append_row_groups(footer)
        long.write_metadata_file(place / "footer.bin")
        path.write_bytes(data + (place / "footer.bin").read_bytes()[4:])
        assert pq.read_metadata(path).num_rows == n_groups * 1_000_000

    return make


def faulty(pairs):
    return pairs.with_columns(
        policy_chosen_logps=pl.Series([-20.0, None, -40.0, math.nan, -60.0, 1.0])
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory, many, pairs):
    """6,000,000,006 rows in three files; the last six are those of the fixture, with faults."""
    folder = tmp_path_factory.mktemp("in")
    many(folder / "a.parquet", 2999)
    many(folder / "b.parquet", 3001, last_logp=-86.0)
    faulty(pairs).select(LOGPS).write_parquet(folder / "c.parquet")
    return folder


def only_shards(monkeypatch, wanted):
    """Let a run see the shards that `wanted` says, which have the row numbers they always have."""
    ranges = storage.Dataset.ranges

    def some(self, rows):
        return ((first, n) for first, n in ranges(self, rows) if wanted(first))

    monkeypatch.setattr(storage.Dataset, "ranges", some)


def false_footers(monkeypatch, rows):
    """Let footers tell of more rows than there are; behind the true end there are none to read."""
    read = pq.read_metadata

    def told(path, filesystem=None):
        stem = Path(path).stem
        true = read(path, filesystem=filesystem)
        told = SimpleNamespace(num_rows=rows.get(stem), num_row_groups=0, schema=true.schema)
        is_output = any(part.startswith(".") for part in Path(path).parts)
        return told if stem in rows and not is_output else true

    monkeypatch.setattr(pq, "read_metadata", told)
    monkeypatch.setattr("dpo_pipeline.sources.dataset.OWN_FOOTERS", 0)


def test_shards_lie_where_the_footers_say(folder):
    shards = list(storage.open_dataset(folder).shards(40_000_000))
    assert len(shards) == 151
    assert [s.first_row for s in shards] == [40_000_000 * i for i in range(151)]
    assert sum(s.rows for s in shards) == 6_000_000_006
    tail = shards[-1].frame.collect(engine="streaming")
    assert tail["policy_chosen_logps"].to_list() == pytest.approx(
        [-20.0, None, -40.0, math.nan, -60.0, 1.0], nan_ok=True
    )


def test_offenders_and_batches_beyond_two_to_the_32(folder, monkeypatch):
    # The shard before the last one lies in b, near its 3,000,000,000th row.
    only_shards(monkeypatch, lambda first: first >= 5_996_000_000)
    result = evaluate(folder, batches=1_000_003, on_invalid="exclude")
    assert result.summary.n_pairs == 4_000_006
    assert [(r.name, [(o.file, o.row) for o in r.offenders]) for r in result.invalid.broken] == [
        ("policy_chosen_logps.not_null", [("c.parquet", 1)]),
        ("policy_chosen_logps.not_nan", [("c.parquet", 3)]),
        ("policy_chosen_logps.at_most", [("c.parquet", 5)]),
    ]
    first, last = 5_996_000_000, 6_000_000_005
    assert result.batches["batch"].to_list() == list(
        range(first // 1_000_003, last // 1_000_003 + 1)
    )
    assert result.batches["n_pairs"].to_list() == [
        min(last + 1, 1_000_003 * (b + 1)) - max(first, 1_000_003 * b)
        for b in result.batches["batch"]
    ]
    assert result.batches["n_invalid"].to_list() == [0, 0, 0, 0, 3][-result.batches.height :]


@pytest.mark.slow  # eight million rows; small files of one shard are in `test_common_schema`
def test_a_shard_at_the_end_of_one_file_and_the_start_of_the_next(folder, monkeypatch):
    shards = storage.open_dataset(folder).shards(4_000_000)
    shard = next(s for s in shards if s.first_row == 2_996_000_000)
    rows = shard.frame.select(LOGPS[3]).collect(engine="streaming").to_series()
    assert rows.len() == 4_000_000
    # Of 1,000,000 rows of either file, every sixth; three million are a's and one is b's.
    assert (rows == -85.0).sum() == 3 * 166_666
    assert (rows == -86.0).sum() == 166_666
    assert (rows.slice(3_000_000) == -86.0).sum() == 166_666
    only_shards(monkeypatch, lambda first: first in {2_996_000_000, 3_000_000_000})
    assert check(folder).n_pairs == 8_000_000


@FAR_PLANS
def test_batches_by_value_stand_in_order_of_their_far_rows(tmp_path, pairs, monkeypatch):
    for name in "abc":
        pairs.write_parquet(tmp_path / f"{name}.parquet")
    false_footers(monkeypatch, {"a": 3_000_000_000, "b": 3_000_000_000})
    monkeypatch.setattr("dpo_pipeline.sums.batches.SHARD_ROWS", 1_000_000_000)
    monkeypatch.setattr("dpo_pipeline.sums.batches.BATCHES_PER_GROUP", 1_000_000_000)
    only_shards(monkeypatch, lambda first: first >= 3_000_000_000)
    result = evaluate(tmp_path, batches=Batches(by="pair_id"))
    assert result.batches["batch"].to_list() == list("abcdef")
    assert result.batches["n_pairs"].to_list() == [2] * 6


def test_rows_are_numbered_from_a_far_first_one(pairs):
    rows = numbered(pairs.lazy(), FAR).collect(engine="streaming")
    (number,) = set(rows.columns) - set(pairs.columns)
    assert rows[number].to_list() == [FAR + i for i in range(6)]
    assert rows.schema[number] == pl.Int64


@pytest.mark.parametrize("size", [1, 4, 2**31, 2**33])
def test_batches_of_rows_from_a_far_first_one(pairs, size):
    batching = Batching(size=size)
    keys = batching.with_key(pairs.lazy(), FAR).collect(engine="streaming")[batching.key]
    assert keys.to_list() == [(FAR + i) // size for i in range(6)]


def test_batches_by_value_know_how_far_their_rows_are(pairs):
    batching = Batching(column="pair_id")
    rows = batching.with_key(pairs.lazy(), FAR)
    first = rows.group_by(batching.key).agg(batching.sums()).sort(batching.key).collect()
    assert first.rows() == [(name, FAR + i) for i, name in enumerate("abcdef")]


@FAR_PLANS
def test_the_quarantine_of_a_far_file_names_rows_of_that_file(tmp_path, pairs, monkeypatch):
    source = tmp_path / "in"
    source.mkdir()
    for name in "abc":
        (faulty(pairs) if name != "b" else pairs).write_parquet(source / f"{name}.parquet")
    false_footers(monkeypatch, {"a": 3_000_000_000, "b": 3_000_000_000})
    monkeypatch.setattr("dpo_pipeline.evaluation.measuring.SHARD_ROWS", 3_000_000_000)
    # The rows that are compared with their neighbours are a shard of their own.
    monkeypatch.setattr("dpo_pipeline.evaluation.measuring.NEIGHBOURS_ROWS", 0)
    monkeypatch.setattr("dpo_pipeline.evaluation.shards.NEIGHBOURS_ROWS", 0)
    result = score_parquet(source, tmp_path / "out", on_invalid="quarantine")
    assert result.summary.n_pairs == 18
    apart = {n: pl.read_parquet(tmp_path / "out.invalid" / f"{n}.parquet") for n in "abc"}
    assert {n: part["source_row"].to_list() for n, part in apart.items()} == {
        "a": [1, 3, 5],
        "b": [],
        "c": [1, 3, 5],
    }
    assert [(o.file, o.row) for r in result.invalid.broken for o in r.offenders] == [
        (f"{name}.parquet", row) for row in (1, 3, 5) for name in "ac"
    ]


@pytest.mark.repeats(1)  # it is refused before either
@pytest.mark.parametrize("on_invalid", ["raise", "quarantine"])
def test_a_file_of_too_many_rows_is_refused_by_its_footer(many, tmp_path, engine, on_invalid):
    many(tmp_path / "long.parquet", 4400)
    with pytest.raises(
        StorageError, match=r"long\.parquet: has 4,400,000,000 rows; .*4,000,000,000.*split"
    ):
        score_parquet(tmp_path / "long.parquet", tmp_path / "out.parquet", on_invalid=on_invalid)
    assert not engine.data_scans
    assert [p.name for p in tmp_path.glob("*.parquet")] == ["long.parquet"]


def test_a_file_at_the_limit_is_opened(many, tmp_path):
    many(tmp_path / "long.parquet", 4000)
    assert storage.open_dataset(tmp_path / "long.parquet").rows == storage.MAX_FILE_ROWS
    many(tmp_path / "longer.parquet", 4001)
    with pytest.raises(StorageError, match="split it"):
        storage.open_dataset(tmp_path / "longer.parquet")
    # Each of its rows, and those of a shard that goes on into the next file, has a 32-bit number.
    assert storage.MAX_FILE_ROWS + 2 * storage.SHARD_ROWS < 2**32
