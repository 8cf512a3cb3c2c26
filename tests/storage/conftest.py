"""Pairs for runs that meet with faults."""

from __future__ import annotations

import polars as pl
import pytest


@pytest.fixture
def source(tmp_path, real_pairs):
    path = tmp_path / "pairs.parquet"
    real_pairs.with_columns(
        policy_chosen_logps=pl.when(pl.int_range(pl.len()) == 7)
        .then(1.0)
        .otherwise("policy_chosen_logps")
    ).write_parquet(path)
    return path


@pytest.fixture
def large(tmp_path, real_pairs):
    path = tmp_path / "pairs.parquet"
    pl.concat([real_pairs] * 2_000).write_parquet(path, compression="uncompressed")
    return path
