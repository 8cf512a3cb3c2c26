"""Pairs for runs that meet with faults."""

from __future__ import annotations

import polars as pl
import pytest

from pair_tools import LOGPS


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
    pl.concat([real_pairs] * 300).write_parquet(path, compression="uncompressed")
    return path


@pytest.fixture
def noisy(tmp_path):
    """Few pairs of many bytes: what comes of them is larger than a small disk."""
    path = tmp_path / "pairs.parquet"
    row = pl.int_range(20_000, dtype=pl.UInt64)
    noise = {name: -(row.hash(seed=i) / 2.0**60) for i, name in enumerate(LOGPS)}
    pl.select(**noise).write_parquet(path)
    return path
