"""Two policies that know the same reference, and the tests that scipy makes of them."""

from __future__ import annotations

import math
import re
from functools import cache

import numpy as np
import polars as pl
import pytest

from dpo_pipeline import compare
from option_tools import grouped
from oracle_tools import optimize, stats
from pair_tools import DATA, REFS

A, B = DATA / "hh_harmless_policy_a.parquet", DATA / "hh_harmless_policy_b_train.parquet"
POLICIES = ("policy_chosen_logps", "policy_rejected_logps")
BETA = 0.1
REL = 1e-9


def frames(n=60, seed=3, *, per_prompt=None, scale=2.0):
    """Two policies that know the same reference; margins of a few tenths of a nat."""
    rng = np.random.default_rng(seed)
    shared = {
        "pair_id": np.arange(n) + 100,
        **{name: rng.normal(-100, 10, n).round(3) for name in REFS},
        "split": np.where(np.arange(n) % 3 == 0, "x", "y"),
    }
    if per_prompt:
        shared["prompt_id"] = np.arange(n) // per_prompt
    sides = []
    for _ in range(2):
        moved = {
            policy: shared[ref] + rng.normal(0, scale, n)
            for policy, ref in zip(POLICIES, REFS, strict=True)
        }
        sides.append(pl.DataFrame({**shared, **moved}))
    return sides


@cache
def of_files(by=()):
    """Return the comparison of both files: it cannot be changed, so tests share it."""
    return compare(A, B, by=list(by))


@cache
def of_frames():
    """Return the comparison of both made-up policies."""
    return compare(*frames())


def of_margins(*sides):
    """Return policies with the given differences of log-ratio, in nats.

    Both completions move by a little more: a column that is the reference's is surely wrong.
    """
    tables = []
    for j, side in enumerate(sides):
        n = len(side)
        table = {
            "pair_id": list(range(n)),
            "policy_chosen_logps": [
                -50.0 - 3 * (i % 5) + _more(i, j) + d / 2 for i, d in enumerate(side)
            ],
            "policy_rejected_logps": [
                -60.0 + i % 7 + _more(i, j) - d / 2 for i, d in enumerate(side)
            ],
            "ref_chosen_logps": [-50.0 - 3 * (i % 5) for i in range(n)],
            "ref_rejected_logps": [-60.0 + i % 7 for i in range(n)],
        }
        tables.append(pl.DataFrame(table))
    return tables


def _more(i, j):
    return 0.8125 + 0.25 * (i % 3) + 0.0625 * j


def said(result):
    """Return all that a comparison says, but for the names of its sources."""
    document = result.to_dict()
    names = [document[side]["source"] for side in "ab"]
    for side in "ab":
        document[side] |= {"source": None, "name": None, "borrowed": None}
    document["verdict"] = re.sub(r'([AB]) "[^"]*"', r"\1", document["verdict"])
    text = repr((document, result.changes.rows(), result.margins.rows()))
    for side, name in zip("AB", names, strict=True):
        text = text.replace(f"({name})", f"({side})")
    return text


def raised(kind, *args, **kwargs):
    with pytest.raises(kind) as caught:
        compare(*args, **grouped(**kwargs))
    assert type(caught.value) is kind
    return str(caught.value)


def by_ttest(differences):
    """Return mean, standard error, limits and p of paired differences, by scipy."""
    test = stats.ttest_1samp(differences, 0.0)
    interval = test.confidence_interval(0.95)
    return differences.mean(), stats.sem(differences), interval.low, interval.high, test.pvalue


def units_found(freedom, level=0.95):
    """Return d = t + z * sqrt(1 + (t^2 + d^2) / (2 v)), solved by scipy."""
    t, z = stats.t.ppf((1 + level) / 2, freedom), stats.norm.ppf(0.8)
    return optimize.brentq(
        lambda d: d - t - z * math.sqrt(1 + (t * t + d * d) / (2 * freedom)), t, 100 * t
    )


def told(difference):
    estimate = difference.estimate
    interval = estimate.interval
    return (
        estimate.value,
        estimate.standard_error,
        interval.low,
        interval.high,
        difference.p_value,
    )


def shifted(by, n=400):
    """Two policies of which B moves every chosen reward by so much."""
    a, b = frames(n=n)
    return a, b.with_columns(policy_chosen_logps=pl.col("policy_chosen_logps") + by)


def broken_at(table, *keys):
    """Break the policy's chosen log-prob of some pairs."""
    is_it = pl.col("pair_id").is_in(list(keys))
    return table.with_columns(
        policy_chosen_logps=pl.when(is_it).then(math.nan).otherwise("policy_chosen_logps")
    )
