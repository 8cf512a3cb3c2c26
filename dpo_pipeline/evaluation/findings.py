"""Findings: what is wrong with the data or the model, where the statistics show it.

A finding needs the whole interval of its figure beyond a mark of `defaults`, not the value alone:
at 95%, a figure that lies exactly at its mark becomes a finding in one of forty samples. The
function that makes a finding says which figure and which mark. Its words are for people; its
`name` and `severity` are for programs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Final, Literal, TypeGuard

import polars as pl

from dpo_pipeline.columns import N_VALID, PAIR_ID, PROMPT_ID, REWARD_MARGIN
from dpo_pipeline.defaults import (
    COIN,
    CONTRADICTORY_FROM,
    DISPLACED_FROM,
    FEW_CLUSTERS,
    FEW_PAIRS,
    IMPRECISE_FROM,
    LENGTH_CORRELATION_FROM,
    MANY_TIES_FROM,
    MISLABELLED_FROM,
    REPEATED_FROM,
)
from dpo_pipeline.evaluation.estimates import Statistics
from dpo_pipeline.invalid_report import Doubt
from dpo_pipeline.statistics import (
    Estimate,
    counted,
    log_loss,
    number_with_limits,
    p_value,
    points_with_limits,
    rate_of,
    share_with_limits,
)
from dpo_pipeline.sums import PRECISIONS
from dpo_pipeline.tables import Sentence, Tone

Severity = Literal["problem", "caution", "note"]
SEVERITIES: Final[tuple[Severity, ...]] = ("problem", "caution", "note")
"""Gravest first. A problem makes figures wrong; a caution can mislead; a note is good to know."""

_TONES: Final[Mapping[Severity, Tone]] = {"problem": "bad", "caution": "warning", "note": "note"}

_LOGPS_OF: Final = {"policy": "policy", "ref": "reference"}
_GUESSES: Final = {
    "longer": "preferring the longer completion",
    "shorter": "preferring the shorter completion",
    "reference": "the reference alone",
}
_RULES: Final = (("longer", "shorter"), ("reference",))
"""Guesses that are one rule, each in one finding."""
_HALF: Final = "__dpo_pipeline_half"
_LIKELY: Final = 0.5
_NEARLY_SURE: Final = 0.999
_ROWS_NAMED: Final = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong, or can mislead.

    Attributes:
        name: The kind of finding, for programs; several findings can share it.
        severity: One of `SEVERITIES`.
        title: What it is, in a few words.
        evidence: The figures that show it, with their intervals.
        advice: What to do.
    """

    name: str
    severity: Severity
    title: str
    evidence: str
    advice: str

    def to_dict(self) -> dict[str, str]:
        """Return the fields by name."""
        return asdict(self)

    def sentence(self) -> Sentence:
        """Return it to be read: evidence and advice stand below the title."""
        more, tone = tuple(filter(None, (self.evidence, self.advice))), _TONES[self.severity]
        return Sentence(text=self.title, label=self.severity, tone=tone, more=more)


def advised_once(findings: Sequence[Finding]) -> list[Finding]:
    """Return findings to be read: of those with the same advice, the last one has it."""
    last = {each.advice: i for i, each in enumerate(findings)}
    return [
        each if last[each.advice] == i else replace(each, advice="")
        for i, each in enumerate(findings)
    ]


def findings_of(
    statistics: Statistics, doubts: Sequence[Doubt] = (), *, beta: float
) -> tuple[Finding, ...]:
    """Return the findings, gravest first: doubts, and what none of them can be the cause of."""
    found: list[Finding] = []
    if statistics.tie_rate == 1.0:
        found += _beta_zero(beta)
    else:
        found += _ties(statistics)
        found += _precision(statistics)
        found += _worse_than_chance(statistics)
        found += _subsets_worse_than_chance(statistics)
        found += _no_better_than_a_guess(statistics)
        found += _confident_errors(statistics)
    found += _displacement(statistics)
    found += _length(statistics)
    found += _repeats(statistics)
    found += _contradictions(statistics)
    found += _few(statistics)
    explained = frozenset[str]().union(*(each.explains for each in doubts))
    known = [each for each in found if each.name not in explained]
    first = [Finding(d.name, "problem", d.title, f"{d.evidence}.", d.advice) for d in doubts]
    return (*first, *sorted(known, key=lambda each: SEVERITIES.index(each.severity)))


def _beta_zero(beta: float) -> Iterator[Finding]:
    """Yield a finding if all pairs are ties because beta is 0."""
    if beta == 0.0:
        yield Finding(
            "beta",
            "problem",
            title="beta is 0, so every reward is 0",
            evidence="All pairs are ties.",
            advice="Evaluate with the beta of the training.",
        )


def _ties(statistics: Statistics) -> Iterator[Finding]:
    """Yield a finding if more than `MANY_TIES_FROM` of the pairs are ties."""
    ties = statistics.figures.get("tie_rate")
    if _at_least(ties, MANY_TIES_FROM):
        yield Finding(
            "ties",
            "caution",
            title="many pairs are ties",
            evidence=f"Both rewards are equal in {share_with_limits(ties)} of the pairs; the "
            "accuracy counts each as wrong.",
            advice="Read reward_accuracy_half, which counts them half, and look at such pairs.",
        )


def _subsets_worse_than_chance(statistics: Statistics) -> Iterator[Finding]:
    """Yield the subsets whose accuracy, ties half, is shown to be below 1/2.

    The p-value is adjusted for the number of subsets (Holm).
    """
    if statistics.subsets is None:
        return
    by = list(statistics.gathered.by)
    right = (pl.col("n_correct") + 0.5 * pl.col("n_ties")).sum() / pl.col(N_VALID).sum()
    halves = statistics.gathered.clusters.group_by(by).agg(right.alias(_HALF))
    table = statistics.subsets.join(halves, on=by, nulls_equal=True, maintain_order="left")
    low = table.filter((pl.col(_HALF) < COIN) & (pl.col("p_holm") < 1.0 - statistics.level))
    if low.is_empty():
        return
    named = [
        f"{' / '.join(str(row[name]) for name in by)} ({row[_HALF]:.1%} of {row[N_VALID]:,}, "
        f"p {p_value(row['p_holm'])})"
        for row in low.sort("p_holm").head(_ROWS_NAMED).iter_rows(named=True)
    ]
    more = low.height - len(named)
    yield Finding(
        "subset_worse_than_chance",
        "problem",
        title=f"margins prefer the rejected completion in {counted(low.height, 'subset')}",
        evidence=f"Right, ties half, in {', '.join(named)}{f' and {more:,} more' if more else ''}; "
        f"p is adjusted for {counted(table.height, 'subset')}.",
        advice="Read pairs of these subsets before the mean over all.",
    )


def _contradictions(statistics: Statistics) -> Iterator[Finding]:
    """Yield pairs that are there with chosen and rejected exchanged as well."""
    share, seen = statistics.gathered.contradictory, statistics.gathered.repeats_seen
    if share is None or share < CONTRADICTORY_FROM or _is_coarse(statistics):
        return
    yield Finding(
        "contradictory",
        "caution",
        title="pairs are there with chosen and rejected exchanged as well",
        evidence=f"{share:.2%} of {seen:,} pairs have the log-probs of another one, exchanged; one "
        "of the two is wrong whatever the policy does.",
        advice="Keep one label of each, or leave both out.",
    )


def _precision(statistics: Statistics) -> Iterator[Finding]:
    """Yield where a model's log-probs are too coarse for the margins made from them.

    All log-probs of the policy, or all of the reference, fit a short number format. In at least
    `IMPRECISE_FROM` of the pairs, chosen and rejected log-ratio differ by less than half a step to
    a step of that format at the largest log-prob.
    """
    sums = statistics.gathered.groups.sum().row(0, named=True)
    n = sums[N_VALID]
    for name, bits in PRECISIONS.items():
        models = [model for model in _LOGPS_OF if n and sums.get(f"n_{model}_{name}") == n]
        if not models:
            continue
        within = rate_of(sums[f"n_below_{name}"], n, statistics.level)
        if _at_least(within, IMPRECISE_FROM):
            size = max(
                abs(statistics.figures[f"{model}_{side}_logps"].value)
                for model in models
                for side in ("chosen", "rejected")
            )
            step = 2.0 ** (math.frexp(size)[1] - bits)
            whose = " and the ".join(_LOGPS_OF[model] for model in models)
            ties = share_with_limits(statistics.figures["tie_rate"])
            yield Finding(
                "precision",
                "problem",
                title=f"log-probs were kept as {name}, too coarse for these margins",
                evidence=f"All log-probs of the {whose} are {name} numbers, which step by "
                f"{step:g} at {size:.4g} nats, their mean size; in {share_with_limits(within)} of "
                "the pairs the log-ratios of chosen and rejected differ by less than such a step; "
                f"{ties} are ties.",
                advice="Score the pairs again, add up token log-probs in float32 and keep them so: "
                "nothing brings lost digits back.",
            )
        return  # the first format that holds them all is the coarsest


def _worse_than_chance(statistics: Statistics) -> Iterator[Finding]:
    """Yield a finding if the whole interval of the accuracy, ties half, is below 1/2."""
    accuracy = statistics.figures.get("reward_accuracy_half")
    if accuracy is not None and accuracy.interval is not None and accuracy.interval.high < COIN:
        yield Finding(
            "worse_than_chance",
            "problem",
            title="margins prefer the rejected completion",
            evidence=f"The chosen reward is the larger one in {share_with_limits(accuracy)} of "
            "the pairs, ties half.",
            advice="See whether chosen and rejected, or policy and reference, were exchanged.",
        )


def _no_better_than_a_guess(statistics: Statistics) -> Iterator[Finding]:
    """Yield the baselines that the rewards are not shown to beat.

    The interval of the paired accuracy difference reaches 0, or lies below it (then a problem).
    Against a coin, the interval of the accuracy, ties half, holds 1/2.
    """
    accuracy = statistics.figures.get("reward_accuracy_half")
    interval = None if accuracy is None else accuracy.interval
    if accuracy is not None and interval is not None and interval.low <= COIN <= interval.high:
        yield Finding(
            "baseline",
            "caution",
            title="rewards are not shown to be better than tossing a coin",
            evidence=f"They are right in {share_with_limits(accuracy)} of the pairs, ties half.",
            advice="Take no decision from this accuracy; more pairs would narrow the interval.",
        )
    ties = "; a tie is wrong" if statistics.tie_rate > 0.0 else ""
    for names in _RULES:
        gains = {
            name: statistics.advantages[name] for name in names if name in statistics.advantages
        }
        unbeaten = [
            name
            for name, gain in gains.items()
            if gain.interval is not None and gain.interval.low <= 0.0
        ]
        if not unbeaten:
            continue
        # Both ways to go by length are one rule: the one that is right more often is named first.
        unbeaten.sort(key=lambda name: gains[name].value)
        first = gains[unbeaten[0]].interval
        is_worse = first is not None and first.high < 0.0
        guess = _GUESSES[unbeaten[0]]
        evidence = "; ".join(
            f"{_GUESSES[name]} is right in {share_with_limits(statistics.baselines[name])} of the "
            f"pairs, the rewards differ from it by {points_with_limits(gains[name])}"
            for name in unbeaten
        )
        yield Finding(
            "baseline",
            "problem" if is_worse else "caution",
            title=f"{guess} is right more often than the rewards"
            if is_worse
            else f"rewards are not shown to be better than {guess}",
            evidence=f"{evidence}, on the same pairs{ties}.",
            advice="Do not choose a policy by this accuracy: what it is worth is what it has above "
            "such a rule."
            if is_worse
            else "More pairs would narrow the interval of the difference; until then the policy "
            "has shown no more than that rule knows.",
        )


def _displacement(statistics: Statistics) -> Iterator[Finding]:
    """Yield likelihood displacement (N. Razin et al., arXiv 2410.08847).

    More than `DISPLACED_FROM` of the chosen completions are less likely under the policy than
    under the reference, and the mean chosen reward is below 0 too.
    """
    down, both = (statistics.displacement.get(name) for name in ("chosen_down", "both_down"))
    reward = statistics.figures.get("chosen_reward")
    if both is None or reward is None or reward.interval is None or reward.interval.high >= 0.0:
        return
    if _at_least(down, DISPLACED_FROM):
        yield Finding(
            "displacement",
            "caution",
            title="likelihood displacement: chosen completions lost likelihood",
            evidence=f"{share_with_limits(down)} of chosen completions are less likely than under "
            f"the reference, and in {share_with_limits(both)} of the pairs both are; the mean "
            f"chosen reward is {number_with_limits(reward)} nats.",
            advice=f"{_where_it_went(statistics)}Read what the policy writes now. Losses that hold "
            "on to the chosen completion are dpop, apo_zero, and sigmoid with an sft term.",
        )


def _where_it_went(statistics: Statistics) -> str:
    rejected = statistics.figures.get("rejected_reward")
    interval = None if rejected is None else rejected.interval
    if rejected is None or interval is None or interval.low <= 0.0 <= interval.high:
        return ""
    if interval.high < 0.0:
        return "The likelihood went to neither of the two. "
    return f"Rejected completions gained: mean reward {number_with_limits(rejected)} nats. "


def _length(statistics: Statistics) -> Iterator[Finding]:
    """Yield length bias: margins follow the difference of lengths, in tokens.

    The correlation is beyond `LENGTH_CORRELATION_FROM` either way. Its interval is that of the
    slope (which takes prompts as independent) over the slope, times the correlation.
    """
    line = statistics.length
    if line is None or line.correlation is None or line.slope.interval is None:
        return
    slope, interval = line.slope, line.slope.interval
    nearest = min(interval.low, interval.high, key=abs)
    if nearest * slope.value <= 0.0:
        return
    if abs(line.correlation * nearest / slope.value) < LENGTH_CORRELATION_FROM:
        return
    side = "longer" if slope.value > 0.0 else "shorter"
    guess = statistics.baselines.get(side)
    accuracy = ""
    if guess is not None:
        accuracy = f" Length alone is right in {share_with_limits(guess)} of the pairs."
    level, overall = line.intercept, statistics.figures[REWARD_MARGIN]
    yield Finding(
        "length",
        "caution",
        title=f"length bias: margins favour the {side} completion",
        evidence=f"The correlation of margin and length difference is {line.correlation:.3g}; a "
        f"token more of the chosen completion is worth {number_with_limits(slope)} nats. At equal "
        f"length the mean margin is {number_with_limits(level)} nats, over all pairs "
        f"{number_with_limits(overall)}.{accuracy}",
        advice="Quote the margin at equal length beside the mean. Losses that see less of length "
        "are sigmoid_norm, rdpo, and any with ld_alpha.",
    )


def _confident_errors(statistics: Statistics) -> Iterator[Finding]:
    """Yield more errors of large margins than they allow: conservative DPO's likeliest flip rate.

    It is above `MISLABELLED_FROM`, and explains the margins better than one scale for all of them
    would: margins that are all too large look like noise as well.
    """
    noise, rate = statistics.noise, statistics.flip_rate
    if noise is None or not _at_least(rate, MISLABELLED_FROM):
        return
    plain, scaled = log_loss(statistics.gathered.margins), statistics.calibration.best
    if plain is not None and scaled is not None and scaled.log_loss is not None:
        gain_of_scale = 2.0 * noise.n * (plain - scaled.log_loss)
        if gain_of_scale >= noise.likelihood_ratio:
            return
    suspects = _suspects(statistics, noise.flip_rate)
    yield Finding(
        "confident_errors",
        "caution",
        title="more confident errors than these margins allow",
        evidence=f"Margins are log-odds that hold best if {share_with_limits(rate)} of the labels "
        f"were reversed at random; one smaller beta would explain them less well.{suspects}",
        advice="Read these pairs: labels, log-probs or the policy can be wrong there, and margins "
        "cannot tell which. If it is the labels, losses that allow for it are robust, and sigmoid "
        "with label_smoothing, at about this rate.",
    )


def _suspects(statistics: Statistics, rate: float) -> str:
    """Name the pairs of the lowest margins, if it is likely that they are flipped."""
    lowest = statistics.gathered.lowest
    key = PAIR_ID.name if PAIR_ID.name in lowest.columns else "row"
    odds = rate / (1.0 - rate)
    likely = [
        (row[key], odds / (odds + math.exp(min(row[REWARD_MARGIN], 700.0))))
        for row in lowest.head(_ROWS_NAMED).iter_rows(named=True)
    ]
    likely = [(name, chance) for name, chance in likely if chance > _LIKELY]
    if not likely:
        return ""
    names = ", ".join(str(name) for name, _ in likely)
    what = "row" if key == "row" else "pair"
    least = min(chance for _, chance in likely)
    chance = "above 99.9%" if least > _NEARLY_SURE else f"of {math.floor(100.0 * least)}% or more"
    return f" The likeliest of them: {what} {names} (each with a chance {chance})."


def _repeats(statistics: Statistics) -> Iterator[Finding]:
    """Yield repeats: pairs whose log-probs all equal those of an earlier pair.

    Their share, or its whole interval if only a sample was looked at, is at least `REPEATED_FROM`.
    No finding if log-probs are bf16 or f16 numbers: different pairs can have the same ones then.
    """
    gathered = statistics.gathered
    share, seen = gathered.repeats, gathered.repeats_seen
    if share is None or _is_coarse(statistics):
        return
    n = gathered.groups[N_VALID].sum()
    copies = None if seen == n else rate_of(round(share * seen), seen, statistics.level)
    if not (share >= REPEATED_FROM if copies is None else _at_least(copies, REPEATED_FROM)):
        return
    how_many = f"{share:.1%}" if copies is None else f"About {share_with_limits(copies)}"
    effect = "" if gathered.is_by_prompt else ", and as independent, so that intervals are narrow"
    yield Finding(
        "repeats",
        "caution",
        title="pairs are there more than once",
        evidence=f"{how_many} of the pairs have the log-probs of an earlier one; they count again "
        f"in every mean{effect}.",
        advice=f"Leave copies out, or name what belongs together in a column {PROMPT_ID.name}.",
    )


def _is_coarse(statistics: Statistics) -> bool:
    """Return whether log-probs are numbers so short that different pairs can have the same."""
    sums = statistics.gathered.groups.sum().row(0, named=True)
    coarse = [f"n_{model}_{name}" for model in _LOGPS_OF for name in ("bf16", "f16")]
    return any(sums.get(name) == sums[N_VALID] for name in coarse)


def _few(statistics: Statistics) -> Iterator[Finding]:
    """Yield a finding if there are fewer pairs than `FEW_PAIRS` or prompts than `FEW_CLUSTERS`."""
    accuracy = statistics.figures.get("reward_accuracy")
    if accuracy is None or accuracy.interval is None:
        return
    clusters = statistics.gathered.n_clusters
    are_few_clusters = clusters is not None and clusters < FEW_CLUSTERS
    if accuracy.n >= FEW_PAIRS and not are_few_clusters:
        return
    of = (
        f" of {counted(clusters, 'prompt')}"
        if statistics.gathered.is_by_prompt and clusters
        else ""
    )
    half = (accuracy.interval.high - accuracy.interval.low) / 2.0
    yield Finding(
        "few",
        "note",
        title=f"few pairs: {accuracy.n:,}{of}",
        evidence=f"The accuracy is {share_with_limits(accuracy)}. Its interval is made by "
        f"{accuracy.interval.method}; those of means take them as nearly normal, which so few "
        "pairs leave uncertain.",
        advice="Read intervals, not values. The accuracies of two such sets of other pairs differ "
        f"by up to about {half * math.sqrt(2.0) * 100:.2g} points by chance; compare tells smaller "
        "differences of two policies on the same pairs.",
    )


def _at_least(estimate: Estimate | None, mark: float) -> TypeGuard[Estimate]:
    """Return whether the whole interval is at the mark or above."""
    return estimate is not None and estimate.interval is not None and estimate.interval.low >= mark
