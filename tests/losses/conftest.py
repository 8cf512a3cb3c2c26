"""Pairs for the tests of losses."""

from __future__ import annotations

import pytest


@pytest.fixture
def source(tmp_path, counted):
    path = tmp_path / "pairs.parquet"
    counted.write_parquet(path)
    return str(path)
