"""`dpo_loss` and two ways to write it, timed within the process: lists in, lists out."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from typing import Any

BETA = 0.1
DECIMALS = 4
MIN_SECONDS = 0.5
SEED = 7

Values = list[float]
Loss = Callable[[Values, Values, Values, Values], Any]


def ours(pairs: str) -> dict[str, float]:
    """The library call."""
    from dpo_pipeline import dpo_loss

    return seconds_a_call(dpo_loss, int(pairs))


def numpy(pairs: str) -> dict[str, float]:
    """Arrays, with numpy's rounding, which is not Python's."""
    import numpy as np

    def loss(policy_c: Values, policy_r: Values, ref_c: Values, ref_r: Values) -> dict[str, Any]:
        chosen = BETA * (np.array(policy_c) - np.array(ref_c))
        rejected = BETA * (np.array(policy_r) - np.array(ref_r))
        margin = chosen - rejected
        losses = np.maximum(-margin, 0.0) + np.log1p(np.exp(-np.abs(margin)))
        return {
            "loss": round(float(losses.mean()), DECIMALS),
            "chosen_rewards": chosen.round(DECIMALS).tolist(),
            "rejected_rewards": rejected.round(DECIMALS).tolist(),
        }

    return seconds_a_call(loss, int(pairs))


def python(pairs: str) -> dict[str, float]:
    """A loop over the pairs."""

    def loss(policy_c: Values, policy_r: Values, ref_c: Values, ref_r: Values) -> dict[str, Any]:
        chosen_rewards, rejected_rewards, losses = [], [], []
        for pc, pr, rc, rr in zip(policy_c, policy_r, ref_c, ref_r, strict=True):
            chosen, rejected = BETA * (pc - rc), BETA * (pr - rr)
            margin = chosen - rejected
            chosen_rewards.append(round(chosen, DECIMALS))
            rejected_rewards.append(round(rejected, DECIMALS))
            losses.append(max(-margin, 0.0) + math.log1p(math.exp(-abs(margin))))
        return {
            "loss": round(math.fsum(losses) / len(losses), DECIMALS),
            "chosen_rewards": chosen_rewards,
            "rejected_rewards": rejected_rewards,
        }

    return seconds_a_call(loss, int(pairs))


def seconds_a_call(loss: Loss, pairs: int) -> dict[str, float]:
    """Return CPU and wall seconds of one call, after one that is not counted."""
    rng = random.Random(SEED)
    policy_c, policy_r, ref_c, ref_r = (
        [-500.0 * rng.random() for _ in range(pairs)] for _ in range(4)
    )
    loss(policy_c, policy_r, ref_c, ref_r)
    calls = 0
    wall, cpu = time.perf_counter(), time.process_time()
    while time.perf_counter() - wall < MIN_SECONDS:
        loss(policy_c, policy_r, ref_c, ref_r)
        calls += 1
    spent = time.process_time() - cpu
    return {"cpu": spent / calls, "wall": (time.perf_counter() - wall) / calls}
