"""Corrupt files: an error that names them, or what Polars reads."""

from __future__ import annotations

import json
from collections import Counter

import pyarrow.parquet as pq
import pytest

from pair_tools import DATA
from process_tools import ended, tool


@pytest.fixture(scope="session")
def victims(tmp_path_factory, real_pairs):
    """Real pairs as three writers and settings lay them out."""
    folder = tmp_path_factory.mktemp("victims")
    real_pairs.write_parquet(
        folder / "plain.parquet", compression="uncompressed", row_group_size=100
    )
    pq.write_table(
        real_pairs.to_arrow(),
        folder / "arrow.parquet",
        compression="snappy",
        row_group_size=300,
        data_page_version="2.0",
    )
    return [str(DATA / "hh_harmless_policy_a_test.parquet"), *map(str, sorted(folder.iterdir()))]


@pytest.mark.parametrize(
    "count",
    # Twenty have each kind of fault several times; thousands repeat it at other places.
    [pytest.param(20, id="some"), pytest.param(3_000, id="thousands", marks=pytest.mark.slow)],
)
def test_corruption_is_an_error_or_scored_as_it_is_read(tmp_path, victims, count):
    workers = 1 if count < 100 else 2
    processes = []
    for worker in range(workers):
        folder = tmp_path / str(worker)
        folder.mkdir()
        seeds = [count * worker // workers, count * (worker + 1) // workers]
        order = {"folder": str(folder), "sources": victims, "seeds": seeds}
        processes.append(tool("corrupt", order))
    tried = []
    for process in processes:
        out, err = ended(process)
        lines = [json.loads(line) for line in out.splitlines()]
        assert process.returncode == 0, f"it died of {lines[-1]}: {err[-2_000:]}"
        tried += [line for line in lines if line["outcome"] != "begun"]
    outcomes = Counter(line["outcome"] for line in tried)
    allowed = {"scored", "StorageError", "ContractError", "ColumnError", "InvalidPairsError"}
    assert [line for line in tried if line["outcome"] not in allowed] == []
    assert [line for line in tried if line["left"] or not line["untouched"]] == []
    assert [line for line in tried if not line.get("path_said", True)] == []
    assert len(tried) == count
    assert outcomes["scored"] >= count // 10  # or nothing was tested but refusals
    assert outcomes["StorageError"] >= count // 10
