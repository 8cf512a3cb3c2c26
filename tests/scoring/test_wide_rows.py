"""Files of long rows are written in small row groups, in memory that does not grow."""

from __future__ import annotations

import os
import subprocess
import sys

import polars as pl
import pyarrow.parquet as pq
import pytest

from dpo_pipeline import StorageError, score_parquet
from dpo_pipeline.defaults import WIDE_ROW_BYTES
from dpo_pipeline.sources.dataset import open_dataset
from option_tools import grouped
from pair_tools import LOGPS

ADDED = (
    "chosen_logratio",
    "rejected_logratio",
    "chosen_reward",
    "rejected_reward",
    "reward_margin",
    "loss",
)
N_ROWS = 3_000


def long_pairs(n_rows=N_ROWS):
    """Pairs of some 700 bytes a row, every 100th of them invalid."""
    row = pl.int_range(n_rows, dtype=pl.UInt64)
    return pl.select(
        pair_id=row,
        prompt=pl.concat_str([row.hash(seed=i).cast(pl.String) for i in range(30)]),
        tags=pl.concat_list(row.hash(seed=31) % 9, row.hash(seed=32) % 9),
        mood=(row % 3).replace_strict({0: "a", 1: "b", 2: None}).cast(pl.Enum(["b", "a"])),
        **{name: -1.0 - (row.hash(seed=i) % 9_999) / 16 for i, name in enumerate(LOGPS)},
    ).with_columns(
        policy_chosen_logps=pl.when(row % 100 != 7).then("policy_chosen_logps"),
    )


def written(source, folder, **options):
    out = folder / "scored.parquet"
    score_parquet(source, out, **grouped(on_invalid="quarantine", overwrite=True, **options))
    return out, folder / "scored.invalid.parquet"


def test_rows_are_long_by_the_footer(tmp_path):
    path = tmp_path / "in.parquet"
    long_pairs().write_parquet(path, statistics=False)
    (file,) = open_dataset(path).files
    assert 600 < file.row_bytes < 900  # 30 numbers of 18 to 20 digits, and 60 bytes more
    long_pairs().drop("prompt", "tags").write_parquet(path)
    assert 20 < open_dataset(path).files[0].row_bytes < 60


def test_values_against_plain_arithmetic(tmp_path):
    source = tmp_path / "in.parquet"
    frame = long_pairs()
    frame.write_parquet(source, row_group_size=700)
    scored, apart = map(pl.read_parquet, written(source, tmp_path))
    valid = frame.filter(pl.col("policy_chosen_logps").is_not_null())
    assert scored.drop(ADDED).equals(valid)
    chosen, rejected, ref_chosen, ref_rejected = (valid[name].to_list() for name in LOGPS)
    assert scored["chosen_logratio"].to_list() == [
        a - b for a, b in zip(chosen, ref_chosen, strict=True)
    ]
    assert scored["rejected_logratio"].to_list() == [
        a - b for a, b in zip(rejected, ref_rejected, strict=True)
    ]
    assert apart["source_row"].to_list() == list(range(7, N_ROWS, 100))
    assert apart["pair_id"].to_list() == list(range(7, N_ROWS, 100))


def test_bytes_do_not_follow_the_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr("dpo_pipeline.scoring.pair_writer.WIDE_ROWS_PER_GROUP", 1_024)
    found = set()
    for rows in (333, 3_000):
        folder = tmp_path / str(rows)
        folder.mkdir()
        long_pairs().write_parquet(folder / "in.parquet", row_group_size=rows)
        found.add(tuple(p.read_bytes() for p in written(folder / "in.parquet", folder)))
    assert len(found) == 1
    out = tmp_path / "333" / "scored.parquet"
    footer = pq.read_metadata(out)
    sizes = [footer.row_group(i).num_rows for i in range(footer.num_row_groups)]
    assert sizes == [1_024, 1_024, 922]


def test_a_folder_of_short_and_long_rows(tmp_path):
    folder = tmp_path / "in"
    (folder / "part=1").mkdir(parents=True)
    (folder / "part=2").mkdir()
    frame = long_pairs().drop_nulls(["policy_chosen_logps"])
    frame.head(1_500).write_parquet(folder / "part=1" / "a.parquet")
    frame.tail(-1_500).drop("prompt", "tags").write_parquet(folder / "part=2" / "b.parquet")
    first, second = open_dataset(folder).files
    assert first.row_bytes > WIDE_ROW_BYTES > second.row_bytes
    score_parquet(folder, tmp_path / "out")
    scored = pl.scan_parquet(tmp_path / "out", hive_partitioning=True).sort("pair_id").collect()
    assert scored["pair_id"].equals(frame["pair_id"])
    assert scored["prompt"].null_count() == frame.height - 1_500
    assert scored["part"].to_list() == [1] * 1_500 + [2] * (frame.height - 1_500)


def test_no_valid_pair_in_a_file_and_no_rows(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    frame = long_pairs().drop_nulls(["policy_chosen_logps"])
    bad = frame.with_columns(policy_chosen_logps=pl.when(pl.int_range(pl.len()) < 2_000).then(1.0))
    bad.head(2_000).write_parquet(folder / "a.parquet", row_group_size=100)
    frame.write_parquet(folder / "b.parquet", row_group_size=100)
    frame.clear().write_parquet(folder / "c.parquet")
    result = score_parquet(folder, tmp_path / "out", on_invalid="exclude")
    assert (result.summary.n_invalid, result.summary.n_valid) == (2_000, frame.height)
    heights = [pl.read_parquet(tmp_path / "out" / f"{n}.parquet").height for n in "abc"]
    assert heights == [0, frame.height, 0]


def test_a_fault_of_the_input_names_the_input(tmp_path):
    source = tmp_path / "in.parquet"
    long_pairs().drop_nulls(["policy_chosen_logps"]).write_parquet(source, row_group_size=100)
    column = pq.read_metadata(source).row_group(20).column(1)
    data = bytearray(source.read_bytes())
    assert column.path_in_schema == "prompt"
    start = column.data_page_offset + column.total_compressed_size // 2
    data[start : start + 64] = bytes(64)
    source.write_bytes(data)
    with pytest.raises(StorageError) as caught:
        score_parquet(source, tmp_path / "out.parquet")
    assert caught.value.path == str(source)
    assert [p.name for p in tmp_path.iterdir()] == ["in.parquet"]


MEMORY = """
import sys
import dpo_pipeline
dpo_pipeline.score_parquet(sys.argv[1], sys.argv[2])
# ru_maxrss would begin at the peak of the parent.
(peak,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak.split()[1]) // 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_long_rows(tmp_path):
    """The bound that the guide states: rows of 3 kB in row groups of 20,000 take less than 1 GB."""
    peaks = {}
    for n_groups in (10, 30):
        source = tmp_path / f"{n_groups}.parquet"
        group = long_pairs(20_000).drop_nulls(["policy_chosen_logps"])
        text = pl.concat_str(["prompt"] * 5)  # 30 numbers of 19 digits, five times
        table = group.with_columns(prompt=text).to_arrow()
        with pq.ParquetWriter(source, table.schema, compression="zstd") as writer:
            for _ in range(n_groups):
                writer.write_table(table)
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, source, tmp_path / "out.parquet"],
            env={**os.environ, "POLARS_MAX_THREADS": "2"},
            capture_output=True,
            text=True,
            check=True,
        )
        (tmp_path / "out.parquet").unlink()
        peaks[n_groups] = int(done.stdout)
    assert peaks[30] <= 1.2 * peaks[10]
    assert peaks[30] < 1_000
