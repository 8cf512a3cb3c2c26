"""The figures of each prompt, and their sums by subset, which merge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import polars as pl

from dpo_pipeline.defaults import MOST_DRAWN
from dpo_pipeline.exact import QUANTA_PER_NAT, exact_sum
from dpo_pipeline.statistics import (
    Estimate,
    best_of,
    cut_to,
    ranked,
    rate_of,
    student_estimate,
    without_interval,
)

REWARD: Final = "__dpo_pipeline_reward"
PROMPT: Final = "__dpo_pipeline_number"
SIZE: Final = "n_completions"
_ROUNDING: Final = 1e-11
_CLUSTERED: Final = "Student t, by prompt"


def drawn_up_to(n: int) -> list[int]:
    """Return the points of a curve up to n: each up to 8, then powers of two, and n."""
    few = range(1, min(n, 8) + 1)
    return sorted({*few, *(2**i for i in range(4, n.bit_length()) if 2**i <= n), n})


def figures_of(
    rows: pl.DataFrame, *, better: str, value: bool, most: int = MOST_DRAWN
) -> pl.DataFrame:
    """Return a row a prompt of rows that are sorted by `PROMPT`, which counts from 0.

    `better` is the column of how good a completion is, and `value` says whether it is also what a
    best one of n is worth, which a rank is not.
    """
    prompts = rows[PROMPT].cast(pl.Int64).to_numpy()
    rewards, good = (rows[name].cast(pl.Float64).to_numpy() for name in (REWARD, better))
    made = ranked(prompts, rewards, good)
    points = drawn_up_to(min(int(made.n.max(initial=1)), most)) if value else []
    curves = zip(points, best_of(prompts, rewards, good, points), strict=True)
    return pl.DataFrame(
        {
            SIZE: made.n,
            "decided": made.is_decided,
            "credit": made.credit,
            "right": made.n_right,
            "pairs": made.n_pairs,
            "tau": made.tau,
            "variance": made.variance,
            **{f"best_of_{n}": values for n, values in curves},
        }
    ).with_columns(pl.col("tau", "variance", "^best_of_.*$").fill_nan(None))


def sums_of(prompts: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    """Return the sums over prompts, a row for each value of `keys` and each size of prompts."""
    decided = pl.when("decided").then("credit").alias("top")
    rows = prompts.with_columns(decided, pl.col(SIZE).clip(1, MOST_DRAWN).alias("size"))
    right, pairs = pl.col("right").cast(pl.Int128), pl.col("pairs").cast(pl.Int128)
    curves = [name for name in prompts.columns if name.startswith("best_of_")]
    sums = [
        pl.len().cast(pl.Int64).alias("n_prompts"),
        (pl.col(SIZE) == 1).sum().cast(pl.Int64).alias("n_alone"),
        pl.col(SIZE).sum().cast(pl.Int64).alias(SIZE),
        exact_sum(pl.col("credit")).alias("sum_credit"),
        right.sum().alias("right"),
        pairs.sum().alias("pairs"),
        (pairs > 0).sum().cast(pl.Int64).alias("n_pairs"),
        (right * right).sum().alias("right_right"),
        (right * pairs).sum().alias("right_pairs"),
        (pairs * pairs).sum().alias("pairs_pairs"),
    ]
    for name in ("top", "tau", "variance", *curves):
        sums += [
            pl.col(name).count().cast(pl.Int64).alias(f"n_{name}"),
            exact_sum(pl.col(name)).alias(f"sum_{name}"),
            # Squares may be far larger than what is summed exactly, and make intervals alone.
            pl.col(name).pow(2).sum().alias(f"square_{name}"),
        ]
    return rows.group_by(*keys, "size", maintain_order=True).agg(sums)


def added(parts: Sequence[pl.DataFrame], keys: Sequence[str]) -> pl.DataFrame:
    """Return the sums of parts together."""
    rows = pl.concat(parts, how="diagonal")
    return rows.group_by(*keys, maintain_order=True).agg(
        pl.col(name).sum() for name in rows.columns if name not in (*keys, "size")
    )


def mean_of_prompts(
    row: Mapping[str, float], name: str, level: float, *, limits: tuple[float, float]
) -> Estimate | None:
    """Return the mean of a figure over the prompts that have it; None without any."""
    n = int(row.get(f"n_{name}") or 0)
    if n == 0:
        return None
    total = row[f"sum_{name}"] / QUANTA_PER_NAT
    square, mean = row[f"square_{name}"], row[f"sum_{name}"] / (n * QUANTA_PER_NAT)
    if limits == (0.0, 1.0) and total.is_integer() and square == total:
        return rate_of(int(total), n, level)
    spread = square - n * mean * mean
    if spread <= _ROUNDING * square:  # what rounding alone can make of equal values
        spread = 0.0
    return _estimate(mean, spread, n, n, level=level, limits=limits)


def accuracy_of(row: Mapping[str, float], level: float) -> Estimate | None:
    """Return the share of the pairs whose better completion has the higher reward."""
    pairs, n = int(row["pairs"]), int(row["n_pairs"])
    if pairs == 0:
        return None
    right = int(row["right"])
    if n == pairs:
        return rate_of(right, pairs, level)
    rate = right / pairs
    # Integers, because the terms nearly cancel: the sum of (right - rate * pairs)^2, by pairs^2.
    spread = (
        int(row["right_right"]) * pairs**2
        - 2 * int(row["right_pairs"]) * right * pairs
        + int(row["pairs_pairs"]) * right**2
    )
    mean_size = pairs / n
    return _estimate(
        rate, spread / pairs**2 / mean_size**2, n, pairs, level=level, limits=(0.0, 1.0)
    )


def _estimate(
    mean: float,
    squares: float,
    n: int,
    n_values: int,
    *,
    level: float,
    limits: tuple[float, float],
) -> Estimate:
    error = (max(squares, 0.0) / (n - 1) / n) ** 0.5 if n > 1 else None
    estimate = student_estimate(
        mean, error, n - 1.0, level=level, method=_CLUSTERED, n=n_values, n_clusters=n
    )
    # Prompts that are all alike show no spread, which is no certainty.
    return cut_to(estimate, *limits) if error else without_interval(estimate)
