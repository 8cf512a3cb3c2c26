"""The Ray cluster that a run starts itself: on loopback, behind a token, without a dashboard."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from pair_tools import ROOT, TOOLS
from process_tools import PATIENCE

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "0" * 24 + "01000000"}


def started(*more):
    pairs = str(ROOT / "examples" / "pairs.parquet")
    environment = {name: value for name, value in os.environ.items() if name[:4] != "RAY_"}
    done = subprocess.run(
        [sys.executable, str(TOOLS / "own_ray_tools.py"), pairs, *more],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


# Each costs a cluster. `test_ray` looks at one of its own: tests and a program import Ray before.
@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [pytest.param([], id="alone"), pytest.param(["imported"], id="Ray imported before")]
)
def test_nobody_else_reaches_the_cluster_that_a_run_starts(more):
    facts = started(*more)
    assert facts["valid"] == 200
    assert len(facts["listening"]) >= 4  # of Ray: that something was looked at
    assert set(facts["listening"]) <= LOOPBACK
    assert facts["mode"] == "token"
    assert len(facts["token"]) == 64
    assert not facts["dashboard"]
