"""Real pairs that two policies share."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from compare_tools import BETA, A, B
from pair_tools import LOGPS


@pytest.fixture(scope="module")
def real():
    """The common real pairs, joined and scored by numpy, in the order of the key."""
    a, b = (pl.read_parquet(path).sort("pair_id") for path in (A, B))
    a = a.filter(pl.col("pair_id").is_in(b["pair_id"].implode()))
    assert a["pair_id"].to_list() == b["pair_id"].to_list()
    scored = {}
    for name, table in (("a", a), ("b", b)):
        c, r, ref_c, ref_r = (table[n].to_numpy().astype(float) for n in LOGPS)
        chosen, rejected = BETA * (c - ref_c), BETA * (r - ref_r)
        margin = chosen - rejected
        scored[name] = {
            "reward_accuracy": (margin > 0).astype(float),
            "loss": np.logaddexp(0.0, -margin),
            "reward_margin": margin,
            "chosen_reward": chosen,
            "rejected_reward": rejected,
        }
    return a, b, scored["a"], scored["b"]
