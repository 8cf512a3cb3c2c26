"""Completions that several files make up, and areas under curves by their definition."""

from __future__ import annotations

import math

import numpy as np
import polars as pl


def made_up(n_prompts, seed, *, spread=1.0):
    """Return completions whose rewards depend on their prompt and on their label."""
    rng = np.random.default_rng(seed)
    prompts = np.repeat(np.arange(n_prompts), rng.integers(1, 6, n_prompts))
    n = len(prompts)
    labels = rng.random(n) < rng.random(n_prompts)[prompts]
    rewards = spread * rng.normal(size=n_prompts)[prompts] + labels + rng.normal(size=n)
    # Multiples of a quarter: many ties, and each in a bin of its own.
    rewards = np.round(4 * rewards) / 4
    return pl.DataFrame(
        {
            "prompt_id": prompts,
            "completion_id": np.arange(n),
            "label": labels,
            "policy_logps": -50.0 + rewards,
            "ref_logps": -50.0,
        }
    )


def obuchowski(rewards, labels, prompts):
    """The area and its standard error by the definition, from all couples of observations."""
    up, down = np.flatnonzero(labels), np.flatnonzero(~labels)
    above = (rewards[up][:, None] > rewards[down]) + 0.5 * (rewards[up][:, None] == rewards[down])
    area, n = above.mean(), prompts.max() + 1
    x = np.bincount(prompts[up], above.mean(axis=1) - area, n)
    y = np.bincount(prompts[down], above.mean(axis=0) - area, n)
    clusters = [len(set(prompts[rows])) for rows in (up, down, np.arange(len(prompts)))]
    i10, i01, i = clusters
    s10 = i10 / (i10 - 1) * (x**2).sum() / len(up)
    s01 = i01 / (i01 - 1) * (y**2).sum() / len(down)
    s11 = i / (i - 1) * (x * y).sum()
    variance = s10 / len(up) + s01 / len(down) + 2 * s11 / (len(up) * len(down))
    return area, math.sqrt(variance), x, y


def columns(table):
    return [
        (table["policy_logps"] - table["ref_logps"]).to_numpy(),
        *(table[name].to_numpy() for name in ("label", "prompt_id")),
    ]
