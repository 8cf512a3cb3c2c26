"""Inputs of jobs: five files that shards do not end with."""

from __future__ import annotations

import itertools
import random

import polars as pl
import pytest

from dpo_pipeline.evaluation import measuring, shards
from dpo_pipeline.sums import batches
from pair_tools import LOGPS

BORDERS = [0, 33, 33, 250, 499, 500]


@pytest.fixture
def small(monkeypatch):
    """Have 500 pairs be as many, for shards, as millions are."""
    monkeypatch.setattr(measuring, "SHARD_ROWS", 70)
    monkeypatch.setattr(batches, "SHARD_ROWS", 70)
    for module in (measuring, shards):
        monkeypatch.setattr(module, "NEIGHBOURS_ROWS", 45)
        monkeypatch.setattr(module, "STATISTICS_ROWS", 60)
    monkeypatch.setattr(measuring, "GATHERED_ROWS", 60)
    monkeypatch.setattr(shards, "COUPLED_SHARD_ROWS", 64)


@pytest.fixture
def folder(tmp_path, monkeypatch, small):  # noqa: ARG001
    """The current folder, with pairs in `in`; the pairs of rows 123 and 390 are invalid."""
    rng = random.Random(5)
    rows = {name: [-rng.uniform(1, 300) for _ in range(500)] for name in LOGPS}
    rows[LOGPS[0]][123] = rows[LOGPS[1]][390] = 2.0
    rows["subset"] = [rng.choice("xyz") for _ in range(500)]
    rows["pair_id"] = [f"id {i % 490}" for i in range(500)]
    rows["prompt_id"] = [i // 3 for i in range(500)]
    frame = pl.DataFrame(rows)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    for i, (start, end) in enumerate(itertools.pairwise(BORDERS)):
        frame[start:end].write_parquet(tmp_path / "in" / f"{i}.parquet", row_group_size=25)
    return tmp_path
