"""Where the data lie, the names of the log-probs, and the specification in plain Python."""

from __future__ import annotations

import math
from pathlib import Path

import polars as pl
import pytest

ROOT = Path(__file__).parent.parent.parent
DATA = ROOT / "tests" / "data"
TOOLS = ROOT / "tests" / "tools"
EXAMPLES = ROOT / "examples"
LOGPS = ("policy_chosen_logps", "policy_rejected_logps", "ref_chosen_logps", "ref_rejected_logps")
REFS = LOGPS[2:]
COUNTS = ("chosen_num_tokens", "rejected_num_tokens")

# log(1 + e^-m) of the six `pairs`, m = 0.1, -0.2, 0, 0.5, 1, -1, from tables to ten digits.
LOSSES = [0.6443966601, 0.7981388694, 0.6931471806, 0.4740769842, 0.3132616875, 1.3132616875]


def reference_row(c, r, ref_c, ref_r, beta):
    """The plain Python of the specification: rewards and loss of one pair."""
    chosen, rejected = beta * (c - ref_c), beta * (r - ref_r)
    margin = chosen - rejected
    return chosen, rejected, max(-margin, 0.0) + math.log1p(math.exp(-abs(margin)))


def split(whole, on="pair_id", *, shuffled=True):
    """Cut a table of four log-probs into the policy's and the reference's."""
    reference = whole.select(on, *REFS)
    if shuffled:
        reference = reference.sample(fraction=1, shuffle=True, seed=5)
    return whole.drop(REFS), reference


def close(value):
    return pytest.approx(value, abs=1e-9)


def with_value(pairs, row, value, column="policy_chosen_logps"):
    values = pairs[column].to_list()
    values[row] = value
    return pairs.with_columns(pl.Series(column, values, dtype=pl.Float64))
