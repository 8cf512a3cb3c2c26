"""The examples that run in an engine of the user's, as a new user would run them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile

import polars as pl
import pytest

from pair_tools import ROOT


def printed(script, **environment):
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / script],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-2:]


@pytest.fixture
def expected():
    """The same figures by plain Python, from the margins of the specification."""
    import math

    pairs = pl.read_parquet(ROOT / "examples" / "pairs.parquet")
    margins = 0.1 * (
        (pairs["policy_chosen_logps"] - pairs["ref_chosen_logps"])
        - (pairs["policy_rejected_logps"] - pairs["ref_rejected_logps"])
    )
    losses = [max(-m, 0.0) + math.log1p(math.exp(-abs(m))) for m in margins]
    first = [(pairs["pair_id"][i], round(losses[i], 4)) for i in range(2)]
    return [f"200 pairs, mean loss {math.fsum(losses) / 200:.6f}", str(first)]


@pytest.mark.slow  # another cluster; `scoring/test_table_stage.py` tests the stage on Arrow tables
def test_a_ray_dataset(expected):
    pytest.importorskip("ray.data")
    temporary = tempfile.mkdtemp(prefix="ray")  # the names of sockets in it must be short
    try:
        found = printed(
            "ray_dataset.py",
            RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",  # stays on loopback
            RAY_USAGE_STATS_ENABLED="0",
            RAY_TMPDIR=temporary,
        )
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    assert found == expected


@pytest.mark.slow
def test_a_spark_dataframe(expected):
    pytest.importorskip("pyspark")
    assert printed("spark_dataframe.py") == expected
