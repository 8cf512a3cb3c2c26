"""The real pairs behind the samples of other tools."""

from __future__ import annotations

import polars as pl
import pytest

from pair_tools import LOGPS
from reader_tools import N


@pytest.fixture
def eight(real_pairs):
    """The real pairs behind the samples; in Float64, so that text holds them exactly."""
    return real_pairs.head(N).with_columns(pl.col(LOGPS).cast(pl.Float64))


@pytest.fixture
def policy(eight, tmp_path):
    """The policy's side, numbered as the samples of references are."""
    path = tmp_path / "policy.parquet"
    own = eight.select(pl.int_range(N).alias("pair_id"), *LOGPS[:2])
    own.write_parquet(path)
    return path
