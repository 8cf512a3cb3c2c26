"""How well sigmoid(margin) predicts the chance that the chosen answer is the better one.

The outcome is the sign of the margin, which a confidence of sigmoid(margin) knows already. So the
confidence is folded to sigmoid(|margin|), from 1/2 to 1, and the outcome is that the margin is
above 0 (C. Guo et al., "On Calibration of Modern Neural Networks", arXiv 1706.04599, sections 2
and 4.2; a temperature there is 1 / `best_scale`).

All functions take a histogram of margins: columns `bin` (of `dpo_pipeline.exact`) and
`n_pairs`; null bins are left out. What the bins cost, against the same figures of the rows:

- a confidence is off by at most 6e-4, and a squared error by at most 1e-3;
- a log loss by at most 2.5e-5 nats and 0.25% of |margin|, a pair; less in the mean, where
  errors of both signs meet;
- the bin around zero (|margin| up to 2.5e-5 nats) counts as ties, which are half right;
- a bin is never split between two of equal mass, so these may differ by one bin's pairs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import polars as pl

from dpo_pipeline.defaults import CALIBRATION_BINS, CONFIDENCE_LEVEL
from dpo_pipeline.errors import UsageError
from dpo_pipeline.exact import lower_edge
from dpo_pipeline.losses import sigmoid, softplus
from dpo_pipeline.statistics.distributions import normal_upper, root_of_rising
from dpo_pipeline.statistics.intervals import group_of_equal_mass, with_rate_limits


def margins_of(histogram: pl.DataFrame) -> pl.DataFrame:
    """Return columns `margin`, in nats, and `n`, both Float64, by rising margin.

    Bins may come in any order and repeatedly; null bins are the invalid pairs, and left out.
    """
    # The middle of a bin is the lower edge of one that starts half a bin later.
    return (
        histogram.lazy()
        .filter(pl.col("bin").is_not_null())
        .group_by("bin")
        .agg(n=pl.col("n_pairs").sum().cast(pl.Float64))
        .filter(pl.col("n") > 0)
        .sort("bin")
        .select(margin=lower_edge(pl.col("bin") + 0.5), n="n")
        .collect()
        .rechunk()
    )


_DEEP: Final = -40.0
"""Nats below which log sigmoid(m) is m to rounding; much below, 1 / sigmoid(m) is infinite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelNoise:
    """The likeliest flip rate and the evidence that it is not 0."""

    flip_rate: float  # share of labels, from 0 to 1/2; at 1/2 labels have nothing of the margins
    likelihood_ratio: float  # twice the log of it against a rate of 0, at least 0
    p_value: float  # chance of one as large if no label is flipped, for independent pairs
    n: int  # pairs


def label_noise(histogram: pl.DataFrame) -> LabelNoise | None:
    """Return the flip rate e of the largest sum of log((1 - e) sigmoid(m) + e sigmoid(-m)).

    The sum is concave in e. A rate of 0 is the end of the range, so the likelihood ratio is 0 in
    half of all samples without noise and chi-squared with one degree of freedom in the other
    (S. Self, K. Liang, 1987, case 5). Pairs of one prompt are not independent: then take the
    spread of the rate from `delete_a_group`, and not this p-value. Margins must be those of the
    sigmoid loss. None without pairs.
    """
    margins = margins_of(histogram)
    if margins.is_empty():
        return None
    n = int(margins["n"].sum())
    rate = _flip_rate(margins)
    ratio = max(0.0, 2.0 * float(margins.select(_gain(rate).sum()).item())) if rate > 0.0 else 0.0
    p_value = normal_upper(math.sqrt(ratio)) if ratio > 0.0 else 1.0
    return LabelNoise(flip_rate=rate, likelihood_ratio=ratio, p_value=p_value, n=n)


def _flip_rate(margins: pl.DataFrame) -> float:
    n, right, shift = pl.col("n"), sigmoid(pl.col("margin")), -(pl.col("margin") / 2.0).tanh()

    def falling(rate: float) -> tuple[float, float]:
        # Divided first, so that a margin far below 0 gives an infinity and not NaN.
        term = shift / (right + rate * shift)
        slope, curvature = margins.select((n * term).sum(), (n * term**2).sum().alias("c")).row(0)
        return -slope, curvature

    if falling(0.0)[0] >= 0.0:
        return 0.0
    if falling(0.5)[0] <= 0.0:
        return 0.5
    return root_of_rising(falling, 0.0, 0.5, start=0.1)


def _gain(rate: float) -> pl.Expr:
    """Return what a rate adds to the log-likelihood of each bin."""
    margin = pl.col("margin")
    right, shift = sigmoid(margin), -(margin / 2.0).tanh()
    near = (rate * shift / right).log1p()
    far = (right + rate * shift).log() - margin
    return pl.col("n") * pl.when(margin > _DEEP).then(near).otherwise(far)


@dataclass(frozen=True, slots=True, kw_only=True)
class BestScale:
    """The factor on all margins, or the beta, of the smallest log loss; or why there is none."""

    value: float | None  # dimensionless; below 0 where margins point the wrong way
    log_loss: float | None  # nats a pair, with it
    reason: str | None  # why value is None


def reliability(
    histogram: pl.DataFrame, n_bins: int = CALIBRATION_BINS, level: float = CONFIDENCE_LEVEL
) -> pl.DataFrame:
    """Return confidence and accuracy of groups of pairs of nearly equal size, rising.

    There are `n_bins` groups at most; fewer where many pairs share a margin. Columns: `n_pairs`,
    `confidence` (mean of sigmoid(|margin|)), `accuracy` (share with a margin above 0, ties half),
    and its limits `accuracy_low`, `accuracy_high`, as of independent pairs.
    """
    groups = _folded(histogram, n_bins)
    n = pl.col("n_pairs")
    return with_rate_limits(groups, pl.col("accuracy") * n, n, level).cast({"n_pairs": pl.Int64})


def expected_calibration_error(
    histogram: pl.DataFrame, n_bins: int = CALIBRATION_BINS
) -> float | None:
    """Return the mean of |accuracy - confidence| over groups of nearly equal size, by pairs.

    From 0 to 1. Biased upward where groups are small: chance alone moves an accuracy. None
    without pairs.
    """
    gap = (pl.col("accuracy") - pl.col("confidence")).abs()
    return _weighted_mean(_folded(histogram, n_bins), gap, "n_pairs")


def log_loss(histogram: pl.DataFrame) -> float | None:
    """Return the mean of -log sigmoid(margin), in nats: the DPO loss. None without pairs."""
    return _weighted_mean(margins_of(histogram), softplus(-pl.col("margin")), "n")


def best_scale(histogram: pl.DataFrame) -> BestScale:
    """Return the s with the smallest mean of -log sigmoid(s * margin).

    The loss is convex in s. None where it has no smallest value: without pairs, with all margins
    in the bin around zero, or with margins of one sign, whose loss falls for ever.
    """
    margins = margins_of(histogram).filter(pl.col("margin") != 0.0)
    if margins.is_empty():
        why = "there are no pairs" if not histogram["n_pairs"].sum() else "all margins are 0"
        return BestScale(value=None, log_loss=None, reason=why)
    lowest, highest = margins["margin"][0], margins["margin"][-1]
    if lowest > 0.0 or highest < 0.0:
        side = "above" if lowest > 0.0 else "below"
        why = f"no margin is {'below' if lowest > 0.0 else 'above'} 0: the loss falls for ever"
        return BestScale(value=None, log_loss=None, reason=f"{why}, all are {side} it")
    return _fitted_scale(margins_of(histogram))


def best_beta(histogram: pl.DataFrame, beta: float) -> BestScale:
    """Return the beta with the smallest mean DPO loss, for margins that were made with `beta`.

    beta times `best_scale`. None, beside its reasons, where that is not above 0: then the loss is
    the smaller the nearer beta is to 0.
    """
    if not 0.0 < beta < math.inf:
        raise UsageError(f"beta must be above 0, found {beta!r}")
    scale = best_scale(histogram)
    if scale.value is None:
        return scale
    if scale.value <= 0.0:
        why = "margins are below 0 on the whole: the loss is smallest as beta nears 0"
        return BestScale(value=None, log_loss=None, reason=why)
    return BestScale(value=beta * scale.value, log_loss=scale.log_loss, reason=None)


def _fitted_scale(margins: pl.DataFrame) -> BestScale:
    margin, weight = pl.col("margin"), pl.col("n") / pl.col("n").sum()

    def slope_and_curvature(s: float) -> tuple[float, float]:
        wrong = sigmoid(-s * margin)
        slope = (-weight * margin * wrong).sum()
        curvature = (weight * margin * margin * wrong * sigmoid(s * margin)).sum()
        return margins.select(slope=slope, curvature=curvature).row(0)

    slope, curvature = slope_and_curvature(0.0)
    if slope == 0.0:
        return BestScale(value=0.0, log_loss=math.log(2.0), reason=None)
    near, far = 0.0, -slope / curvature
    while slope_and_curvature(far)[0] * slope > 0.0:
        near, far = far, 2.0 * far
    value = root_of_rising(slope_and_curvature, min(near, far), max(near, far), start=far)
    smallest = _weighted_mean(margins, softplus(-(value * margin)), "n")
    return BestScale(value=value, log_loss=smallest, reason=None)


def _folded(histogram: pl.DataFrame, n_bins: int) -> pl.DataFrame:
    """Return `n_pairs`, `confidence`, `accuracy` of each group of equal mass."""
    if n_bins < 1:
        raise UsageError(f"n_bins must be at least 1, found {n_bins!r}")
    margin, n = pl.col("margin"), pl.col("n")
    right = pl.when(margin > 0.0).then(n).when(margin < 0.0).then(0.0).otherwise(n / 2.0)
    by_size = margins_of(histogram).group_by(margin=margin.abs())
    confidences = by_size.agg(n=n.sum(), right=right.sum()).sort("margin")
    place = group_of_equal_mass(n_bins).alias("place")
    groups = confidences.group_by(place, maintain_order=True).agg(
        n_pairs=n.sum(),
        confidence=(n * sigmoid(margin)).sum() / n.sum(),
        accuracy=pl.col("right").sum() / n.sum(),
    )
    return groups.drop("place")


def _weighted_mean(table: pl.DataFrame, values: pl.Expr, weight: str) -> float | None:
    if table.is_empty():
        return None
    mean = (values * pl.col(weight)).sum() / pl.col(weight).sum()
    return float(table.select(mean).item())
