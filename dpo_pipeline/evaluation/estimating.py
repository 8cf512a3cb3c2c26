"""Makes the statistics from the gathered tables: intervals, baselines, tests. Reads no data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import polars as pl

from dpo_pipeline.columns import (
    CHOSEN_REWARD,
    LOSS,
    N_PAIRS,
    N_VALID,
    REJECTED_REWARD,
    REWARD_ACCURACY,
    REWARD_MARGIN,
)
from dpo_pipeline.defaults import (
    CALIBRATION_BINS,
    CONFIDENCE_LEVEL,
    JACKKNIFE_FROM,
    LOSS_NAME,
)
from dpo_pipeline.errors import UsageError
from dpo_pipeline.evaluation.estimates import (
    BASELINES,
    BENCHMARKS,
    DISPLACEMENT,
    ESTIMATED_FIGURES,
    Agreement,
    Calibration,
    Flips,
    Intervals,
    Sections,
    Statistics,
    check_subsets,
    weights_of,
    words_of_clusters,
)
from dpo_pipeline.evaluation.gathering import GROUP, GROUPS, Gathered
from dpo_pipeline.exact import QUANTA_PER_NAT
from dpo_pipeline.losses import CheckedObjective
from dpo_pipeline.options import StatisticsOptions
from dpo_pipeline.statistics import (
    STUDENT,
    SUMS,
    Estimate,
    Line,
    accuracy_by_gap,
    adjusted_for_many,
    area_under_curve,
    best_beta,
    bootstrap,
    calibration_error,
    cut_to,
    delete_a_group,
    flip_rate,
    heterogeneity,
    label_noise,
    limit_columns,
    line_of_clusters,
    macro_mean,
    mcnemar_exact,
    mean_of_clusters,
    of_independent,
    paired_difference,
    rate_of,
    rate_of_clusters,
    reliability,
    spearman,
    student_estimate,
    without_interval,
)
from dpo_pipeline.sums import (
    CLUSTER,
    FIGURES,
    SQUARED,
    ClusterCounts,
    Summary,
    across_subsets,
    coarse_middle,
    reward_sums,
    variance,
)

_BOOTSTRAPPED_SUBSETS: Final = 100
"""Beyond so many subsets, a mean over them uses the jackknife, which is faster."""


def rate_within(
    table: pl.DataFrame, successes: str, count: str, gathered: Gathered, level: float
) -> Estimate | None:
    """Return a rate over clusters (prompts, or else pairs), which are taken as independent."""
    if gathered.is_by_prompt:
        return rate_of_clusters(table[successes], table[count], level)
    return rate_of(int(table[successes].sum()), int(table[count].sum()), level)


def mean_over_subsets(
    sums: pl.DataFrame, gathered: Gathered, weights: Mapping[Any, float] | None, level: float
) -> Estimate | None:
    """Return the weighted mean of the accuracies of subsets; each counts once without weights.

    If no cluster spans two subsets, the limits combine those of the subsets. Otherwise they come
    from a bootstrap of clusters; for more than a hundred subsets, from a jackknife. A subset
    without a valid pair is none. None without `by`.
    """
    if not gathered.by:
        return None
    valid = sums.filter(pl.col(N_VALID) > 0)
    by_key = dict(valid.group_by(gathered.by, maintain_order=True))
    parts, given = list(by_key.values()), _weights(list(by_key), weights)
    if gathered.is_exact and valid[CLUSTER].n_unique() == valid.height:
        estimates = [rate_within(part, "n_correct", N_VALID, gathered, level) for part in parts]
        return macro_mean([each for each in estimates if each is not None], given, level)
    shares = [weight / sum(given) for weight in given]
    make = _jackknifed_mean if len(parts) > _BOOTSTRAPPED_SUBSETS else _bootstrapped_mean
    found = make(parts, shares, level)
    return None if found is None else cut_to(found, *FIGURES["macro mean"].range)


def _bootstrapped_mean(
    parts: Sequence[pl.DataFrame], shares: Sequence[float], level: float
) -> Estimate | None:
    counts = [
        part.select(CLUSTER, N_VALID, pl.col("n_correct", N_VALID).name.suffix(f"_{i}"))
        for i, part in enumerate(parts)
    ]
    sums = pl.concat(counts, how="diagonal").group_by(CLUSTER).agg(pl.all().sum())
    terms = [
        share * pl.col(f"n_correct_{i}") / pl.col(f"{N_VALID}_{i}")
        for i, share in enumerate(shares)
    ]
    # Sorted, because the order of the rows decides which are drawn.
    sums = sums.sort(CLUSTER).drop(CLUSTER)
    mean = sum(terms, pl.lit(0.0))  # sum_horizontal has other bits on another number of threads
    return bootstrap(sums, {"mean": mean}, count=N_VALID, level=level)["mean"]


def _jackknifed_mean(
    parts: Sequence[pl.DataFrame], shares: Sequence[float], level: float
) -> Estimate | None:
    group = (pl.col(CLUSTER) % GROUPS).alias(GROUP)
    table = pl.concat(
        part.select(group, "n_correct", N_VALID, part=pl.lit(i), share=pl.lit(share))
        for i, (part, share) in enumerate(zip(parts, shares, strict=True))
    )

    def mean(table: pl.DataFrame) -> float | None:
        terms = pl.col("share") * pl.col("n_correct") / pl.col(N_VALID)
        return None if table.height < len(parts) else float(table.select(terms.sum()).item())

    keys = ("part", "share")
    return delete_a_group(table, mean, group=GROUP, keys=keys, count=N_VALID, level=level)


def _weights(keys: Sequence[tuple[Any, ...]], weights: Mapping[Any, float] | None) -> list[float]:
    if not weights:
        return [1.0] * len(keys)
    # Compared as text, so that a command line can name subsets of any type.
    given = {
        tuple(map(str, key if isinstance(key, tuple) else (key,))): float(weight)
        for key, weight in weights.items()
    }
    names = [tuple(map(str, key)) for key in keys]
    missing = [name for name in names if name not in given]
    unknown = sorted(set(given) - set(names))
    for what, found in (("no weight for", missing), ("no subset", unknown)):
        if found:
            shown = ", ".join("/".join(name) for name in found[:5])
            raise UsageError(f"weights: {what} {shown} ({len(found):,} in all)")
    if min(given.values()) < 0 or sum(given.values()) == 0:
        raise UsageError("weights must be at least 0, and one of them above")
    return [given[name] for name in names]


_RATES: Final = {
    "reward_accuracy": ("n_correct", N_VALID),
    "tie_rate": ("n_ties", N_VALID),
    "longer": ("n_longer", "n_sized"),
    "shorter": ("n_shorter", "n_sized"),
    "reference": ("n_reference_prefers", N_VALID),
    "policy": ("n_policy_prefers", N_VALID),
    "chosen_down": ("n_chosen_down", N_VALID),
    "rejected_down": ("n_rejected_down", N_VALID),
    "both_down": ("n_both_down", N_VALID),
}
"""Each rate: its column of successes and its column of trials."""
_NO_SPREAD: Final = 1e-12
"""A standard error up to this share of the figure is only rounding."""


def statistics_of(
    gathered: Gathered,
    objective: CheckedObjective,
    options: StatisticsOptions,
    means: Mapping[str, Estimate],
) -> Statistics:
    """Return the statistics made from the gathered tables; `means` are of independent pairs."""
    level = options.level
    sums = _in_nats(gathered.clusters, objective)
    whole = across_subsets(sums, gathered.by)
    figures = _named(_figures(whole, gathered, level), whole, gathered)
    figures |= {name: each for name, each in means.items() if each.interval is not None}
    figures = {name: cut_to(each, *FIGURES[name].range) for name, each in figures.items()}
    subsets = _subsets(sums, gathered, level)
    noise = label_noise(gathered.margins) if _has_log_odds(objective) else None
    return Statistics(
        level=level,
        clusters=words_of_clusters(gathered.n_clusters, by_prompt=gathered.is_by_prompt),
        figures=figures,
        baselines=_rates(tuple(BASELINES), whole, gathered, level),
        advantages=_named(_advantages(whole, level), whole, gathered),
        displacement=_rates(tuple(DISPLACEMENT), whole, gathered, level)
        if gathered.has_reference
        else {},
        flips=_flips(whole) if gathered.has_reference else None,
        subsets=subsets,
        heterogeneity=heterogeneity(
            sums,
            gathered.by,
            *_RATES[REWARD_ACCURACY],
            is_independent=not gathered.is_by_prompt,
        )
        if gathered.by
        else None,
        macro=mean_over_subsets(sums, gathered, None, level),
        weighted=mean_over_subsets(sums, gathered, options.weights, level)
        if options.weights
        else None,
        sections=_sections(sums, gathered, options.sections, level),
        calibration=_calibration(gathered, objective, level),
        length=_length(gathered, whole, level),
        noise=noise,
        flip_rate=_jackknifed(gathered.margins, flip_rate, level, name="share of flipped labels")
        if noise is not None and noise.flip_rate > 0.0
        else None,
        judge=_agreement(gathered, options.judge_columns, level),
        gathered=gathered,
    )


def _has_log_odds(objective: CheckedObjective) -> bool:
    """Return whether margins are those of the DPO loss, the log-odds of the label."""
    return [term.loss.name for term in objective.terms] == [LOSS_NAME]


def _in_nats(clusters: pl.DataFrame, objective: CheckedObjective) -> pl.DataFrame:
    """Return the sums of each cluster as Float64, in nats, with those of rewards and margins."""
    chosen, rejected, scale = reward_sums(objective)
    rewards = [f"sum_{name}" for name in (CHOSEN_REWARD, REJECTED_REWARD, REWARD_MARGIN)]
    sums = dict(zip(rewards, (chosen, rejected, chosen - rejected), strict=True))
    return (
        clusters.with_columns(**sums)
        .with_columns(pl.col(r"^sum_.*$").cast(pl.Float64) / QUANTA_PER_NAT)
        .with_columns(pl.col(rewards) * scale)
    )


def _figures(whole: pl.DataFrame, gathered: Gathered, level: float) -> dict[str, Estimate]:
    half = whole["n_correct"] + 0.5 * whole["n_ties"]
    found: dict[str, Estimate | None] = dict(
        _rates(("reward_accuracy", "tie_rate"), whole, gathered, level)
    )
    found["reward_accuracy_half"] = rate_of_clusters(half, whole[N_VALID], level)
    for name in ESTIMATED_FIGURES:
        if f"sum_{name}" in whole.columns:
            found[name] = mean_of_clusters(whole[f"sum_{name}"], whole[N_VALID], level)
    return {name: each for name in ESTIMATED_FIGURES if (each := found.get(name)) is not None}


def _rates(
    names: Sequence[str], whole: pl.DataFrame, gathered: Gathered, level: float
) -> dict[str, Estimate]:
    found = {
        name: rate_within(whole, *_RATES[name], gathered, level)
        for name in names
        if _RATES[name][0] in whole.columns
    }
    return {name: each for name, each in found.items() if each is not None}


def _advantages(whole: pl.DataFrame, level: float) -> dict[str, Estimate]:
    """Return the accuracy of rewards minus that of each baseline, on the same pairs."""
    found = {}
    for name in BASELINES:
        by_baseline, count = _RATES[name]
        if by_baseline in whole.columns:
            by_rewards = "n_correct_sized" if count == "n_sized" else "n_correct"
            test = paired_difference(whole[by_rewards] - whole[by_baseline], whole[count], level)
            if test is not None:
                found[name] = cut_to(test.difference, -1.0, 1.0)
    return found


def _flips(whole: pl.DataFrame) -> Flips:
    n, policy, reference, both = whole.select(
        pl.col(N_VALID, "n_policy_prefers", "n_reference_prefers", "n_both_prefer").sum()
    ).row(0)
    return Flips(
        both=both,
        reference_only=reference - both,
        policy_only=policy - both,
        neither=n - policy - reference + both,
    )


def _subsets(sums: pl.DataFrame, gathered: Gathered, level: float) -> pl.DataFrame | None:
    if not gathered.by:
        return None
    rows: list[dict[str, Any]] = []
    for key, part in sums.group_by(gathered.by, maintain_order=True):
        row: dict[str, Any] = dict(zip(gathered.by, key, strict=True))
        row[N_VALID] = int(part[N_VALID].sum())
        estimates = {
            REWARD_ACCURACY: rate_within(part, *_RATES[REWARD_ACCURACY], gathered, level),
            REWARD_MARGIN: mean_of_clusters(part[f"sum_{REWARD_MARGIN}"], part[N_VALID], level),
            LOSS: mean_of_clusters(part[f"sum_{LOSS}"], part[N_VALID], level),
        }
        for name, estimate in estimates.items():
            row[name] = None if estimate is None else estimate.value
            row |= limit_columns(name, None if estimate is None else estimate.interval)
        row["p_value"] = _p_value_of_accuracy(part, gathered)
        rows.append(row)
    keys = {name: sums.schema[name] for name in gathered.by}
    numbers = {name: pl.Float64 for name in rows[0] if name not in {*keys, N_VALID}}
    table = pl.DataFrame(rows, schema={**keys, N_VALID: pl.Int64, **numbers}, orient="row")
    return table.with_columns(**adjusted_for_many(table["p_value"].to_list()))


def _p_value_of_accuracy(part: pl.DataFrame, gathered: Gathered) -> float | None:
    """Return the p-value of equal chances of margins above and below 0, ties left out."""
    n_correct, n_ties, n = part.select(pl.col("n_correct", "n_ties", N_VALID).sum()).row(0)
    if n == 0:
        return None
    if not gathered.is_by_prompt:
        return mcnemar_exact(n_correct, n - n_ties - n_correct)
    excess = part["n_correct"] + 0.5 * part["n_ties"] - 0.5 * part[N_VALID]
    test = paired_difference(excess, part[N_VALID])
    return None if test is None else test.p_value


def _sections(
    sums: pl.DataFrame, gathered: Gathered, benchmark: str | None, level: float
) -> Sections | None:
    if benchmark is None:
        return None
    subset = pl.col(gathered.by[0]).cast(pl.String)
    valid = sums.with_columns(subset).filter(pl.col(N_VALID) > 0)
    check_subsets(benchmark, valid[gathered.by[0]].unique())
    scores = {
        section.name: mean_over_subsets(
            valid.filter(subset.is_in(list(section.subsets))), gathered, section.subsets, level
        )
        for section in BENCHMARKS[benchmark]
    }
    score = mean_over_subsets(valid, gathered, weights_of(benchmark), level)
    known = {name: each for name, each in scores.items() if each is not None}
    # Every subset has a valid pair, so every mean exists.
    return None if score is None else Sections(benchmark=benchmark, scores=known, score=score)


def _calibration(gathered: Gathered, objective: CheckedObjective, level: float) -> Calibration:
    margins = gathered.margins
    best, estimate = None, None
    if objective.has_linear_rewards and objective.beta > 0.0:
        best = best_beta(margins, objective.beta)
        estimate = _jackknifed(
            margins, lambda t: best_beta(t, objective.beta).value, level, name="best beta"
        )
    error = calibration_error(margins, group=GROUP, level=level)
    return Calibration(
        reliability=reliability(margins, level=level),
        error=None if error is None else error.estimate,
        error_measured=None if error is None else error.measured,
        error_by_chance=None if error is None else error.by_chance,
        best_beta=estimate,
        best=best,
    )


def _jackknifed(
    table: pl.DataFrame,
    figure: Callable[[pl.DataFrame], float | None],
    level: float,
    *,
    name: str,
    keys: Sequence[str] = ("bin",),
) -> Estimate | None:
    """Return a figure with its jackknife interval, within the range of the figure of this name.

    No interval if there are fewer than `JACKKNIFE_FROM` groups, or all are alike.
    """
    found = delete_a_group(table, figure, group=GROUP, keys=keys, count=N_PAIRS, level=level)
    if found is None or found.standard_error is None:
        return found
    is_alike = found.standard_error <= _NO_SPREAD * abs(found.value)
    if found.n_clusters < JACKKNIFE_FROM or is_alike:
        return without_interval(found)
    return cut_to(found, *FIGURES[name].range)


def _is_clustered(whole: pl.DataFrame, gathered: Gathered) -> bool:
    """Return whether pairs may depend on each other: prompts repeat, or are not known not to."""
    return gathered.is_by_prompt and not (
        gathered.is_exact and whole.height == whole[N_VALID].sum()
    )


def _named(
    estimates: dict[str, Estimate], whole: pl.DataFrame, gathered: Gathered
) -> dict[str, Estimate]:
    """Return the estimates; methods of independent pairs do not speak of clusters."""
    if _is_clustered(whole, gathered):
        return estimates
    return {name: of_independent(each) for name, each in estimates.items()}


def _length(gathered: Gathered, whole: pl.DataFrame, level: float) -> Line | None:
    if not gathered.has_lengths:
        return None
    sums = gathered.groups.select(
        n="n_sized",
        **{name: pl.col(name).cast(pl.Float64) / QUANTA_PER_NAT for name in SUMS[1:]},
    )
    line = line_of_clusters(sums, level)
    if line is None or _is_clustered(whole, gathered):
        return line
    slope, intercept = of_independent(line.slope), of_independent(line.intercept)
    return replace(line, slope=slope, intercept=intercept)


def _agreement(gathered: Gathered, columns: tuple[str, ...], level: float) -> Agreement | None:
    if gathered.judged is None:
        return None
    cells = gathered.judged.with_columns(margin=coarse_middle(pl.col("bin")))
    keys = ("margin", "gap")
    n_gaps = cells["gap"].n_unique()
    groups = None if n_gaps <= CALIBRATION_BINS else CALIBRATION_BINS
    return Agreement(
        columns=columns,
        spearman=_jackknifed(cells, spearman, level, keys=keys, name="judge: rank correlation"),
        auc=_jackknifed(cells, area_under_curve, level, keys=keys, name="judge: AUC"),
        by_gap=accuracy_by_gap(cells, groups, level),
    )


def intervals_of(
    summary: Summary, *, n_correct: int, squares: pl.DataFrame | None, prompts: ClusterCounts | None
) -> Intervals:
    """Return the intervals that follow from sums; by prompt where there are counts by prompt."""
    level, n = CONFIDENCE_LEVEL, summary.n_valid
    if prompts is not None:
        accuracy = accuracy_by_prompt(prompts, level)
        words = words_of_clusters(
            prompts.table.height if prompts.is_exact else None, by_prompt=True
        )
    else:
        accuracy, words = rate_of(n_correct, n, level), words_of_clusters(n, by_prompt=False)
    means = means_of_pairs(summary, squares, level)
    found = means if accuracy is None else {REWARD_ACCURACY: accuracy, **means}
    known = {name: each for name, each in found.items() if each.interval is not None}
    return Intervals(level=level, clusters=words, figures=known)


def accuracy_by_prompt(prompts: ClusterCounts, level: float) -> Estimate | None:
    """Return the accuracy with the spread between prompts, or between bags of them."""
    table = prompts.table.sort(CLUSTER)  # sums of floats depend on the order
    found = rate_of_clusters(table["n_correct"], table[N_VALID], level)
    if found is not None and prompts.is_exact and table[N_VALID].max() == 1:
        return of_independent(found)
    return found


def means_of_pairs(
    summary: Summary, squares: pl.DataFrame | None, level: float
) -> dict[str, Estimate]:
    """Return the means of `SQUARED` over independent pairs, by the squares of the values.

    Student's t with n - 1 degrees of freedom. Without an interval where the values are all the
    same to rounding, or too large for their squares to be summed. Empty without squares or pairs.
    """
    n, found = summary.n_valid, dict[str, Estimate]()
    if squares is None or n == 0:
        return found
    for name in SQUARED:
        mean = getattr(summary, name)
        spread = variance(squares, name, mean=mean, n=n) if n > 1 else None
        error = None if spread is None else math.sqrt(spread / n)
        found[name] = student_estimate(
            mean, error, n - 1.0, level=level, method=STUDENT, n=n, n_clusters=n
        )
    return found
