"""How a reward ranks the completions of each prompt: arrays in, a value a prompt out.

Prompts are numbered from 0, and all arrays have a value a completion. Every prompt is one sample.

- Best of n: a completion is drawn n times without replacement, and the one with the highest reward
  is taken; of equal ones, each alike. Its expected value is the sum over distinct rewards v of
  [C(N_<=v, n) - C(N_<v, n)] / C(N, n) times the mean value at v.
- Kendall's tau-b (M. Kendall, "The Treatment of Ties in Ranking Problems", 1945):
  (C - D) / sqrt((n0 - n1) (n0 - n2)), where n1 and n2 are the pairs tied in one of the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
Whole = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Ranked:
    """What rewards make of the completions of each prompt: an array has a value a prompt.

    Attributes:
        n: Completions.
        is_decided: Whether one completion is better than another.
        credit: Share of the completions with the highest reward that are among the best.
        n_right: Pairs of which one is better, and has the higher reward.
        n_pairs: Pairs of which one is better.
        tau: Kendall's tau-b; NaN where all rewards are equal, or all completions equally good.
        variance: Of the rewards, with the divisor N - 1; NaN of one completion.
    """

    n: Whole
    is_decided: NDArray[np.bool_]
    credit: Numbers
    n_right: Whole
    n_pairs: Whole
    tau: Numbers
    variance: Numbers


def ranked(prompts: Whole, rewards: Numbers, better: Numbers) -> Ranked:
    """Return how rewards rank completions of which `better` says how good they are."""
    n_prompts = int(prompts[-1]) + 1 if prompts.size else 0
    n = np.bincount(prompts, minlength=n_prompts)
    best, worst = _ends(prompts, better, n_prompts)
    highest, _ = _ends(prompts, rewards, n_prompts)
    is_top = rewards == highest[prompts]
    top = np.bincount(prompts[is_top], minlength=n_prompts)
    both = np.bincount(prompts[is_top & (better == best[prompts])], minlength=n_prompts)
    right, pairs, agree, tied = _pairs(prompts, n, rewards, better)
    every = n * (n - 1) // 2
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.bincount(prompts, weights=rewards, minlength=n_prompts) / n
        squares = np.bincount(prompts, weights=(rewards - mean[prompts]) ** 2, minlength=n_prompts)
        tau = agree / np.sqrt(pairs.astype(np.float64) * (every - tied))
        return Ranked(
            n=n,
            is_decided=best > worst,
            credit=both / top,
            n_right=right,
            n_pairs=pairs,
            tau=tau,
            variance=np.where(n > 1, squares / (n - 1), np.nan),
        )


def _ends(prompts: Whole, values: Numbers, n_prompts: int) -> tuple[Numbers, Numbers]:
    """Return the largest and the smallest value of each prompt."""
    largest, smallest = np.full(n_prompts, -np.inf), np.full(n_prompts, np.inf)
    np.maximum.at(largest, prompts, values)
    np.minimum.at(smallest, prompts, values)
    return largest, smallest


def _pairs(
    prompts: Whole, n: Whole, rewards: Numbers, better: Numbers
) -> tuple[Whole, Whole, Whole, Whole]:
    """Count pairs: right ones, all of which one is better, right less wrong, equal in reward.

    The step between the two rows of a pair grows by one, so that memory does not.
    """
    right, pairs, agree, tied = (np.zeros(n.size, dtype=np.int64) for _ in range(4))
    ends = np.cumsum(n)[prompts] if prompts.size else prompts
    rows, step = np.arange(prompts.size), 1
    while True:
        rows = rows[rows + step < ends[rows]]
        if not rows.size:
            return right, pairs, agree, tied
        # By comparison, because the difference of two numbers near each other can be 0.
        order = np.sign(rewards[rows] - rewards[rows + step])
        wanted = np.sign(better[rows] - better[rows + step])
        same, of = (order * wanted).astype(np.int64), prompts[rows]
        right += np.bincount(of[same > 0], minlength=n.size)
        pairs += np.bincount(of[wanted != 0], minlength=n.size)
        agree += np.bincount(of, weights=same, minlength=n.size).astype(np.int64)
        tied += np.bincount(of[order == 0], minlength=n.size)
        step += 1


def best_of(
    prompts: Whole, rewards: Numbers, values: Numbers, drawn: Sequence[int]
) -> list[Numbers]:
    """Return the expected value of the best of n for each n of `drawn`; NaN where N < n."""
    n_prompts = int(prompts[-1]) + 1 if prompts.size else 0
    order = np.lexsort((rewards, prompts))
    prompt, reward = prompts[order], rewards[order]
    n = np.bincount(prompts, minlength=n_prompts)
    begin = (np.cumsum(n) - n)[prompt]
    is_first = np.ones(prompt.size, dtype=bool)
    is_first[1:] = (prompt[1:] != prompt[:-1]) | (reward[1:] != reward[:-1])
    first = np.flatnonzero(is_first)
    run = np.cumsum(is_first) - 1
    size = np.diff(np.append(first, prompt.size))[run]
    below = first[run] - begin
    up_to, every = below + size, n[prompt]
    shares = [np.ones(prompt.size), np.ones(prompt.size)]
    made, done = dict[int, Numbers](), 0
    for wanted in sorted(set(drawn)):
        while done < wanted:
            # C(m, n) / C(N, n) is the product of (m - i) / (N - i) for i below n.
            left = np.maximum(every - done, 1)
            shares = [
                share * np.maximum(m - done, 0) / left
                for share, m in zip(shares, (up_to, below), strict=True)
            ]
            done += 1
        chance = (shares[0] - shares[1]) / size
        total = np.bincount(prompt, weights=chance * values[order], minlength=n_prompts)
        made[wanted] = np.where(n >= wanted, total, np.nan)
    return [made[each] for each in drawn]
