"""Sound pairs with the spread of real ones, and faults planted in pairs."""

from __future__ import annotations

import warnings

import numpy as np
import polars as pl

from dpo_pipeline import DataWarning, evaluate
from option_tools import grouped
from pair_tools import COUNTS, LOGPS, REFS

CHOSEN, REJECTED = LOGPS[:2]


def doubts(pairs, **options):
    """Return the names of the doubts that evaluating raises, in order."""
    return [each.name for each in evaluated(pairs, **options).invalid.doubts]


def evaluated(pairs, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        return evaluate(pairs, **grouped(**options))


def sound(seed, least=60, most=30_000):
    """Return pairs that two models could have given, of 60 to 30,000 rows.

    Lengths of chosen and rejected completions share a part; some sets are cut at a length, some
    have one chosen completion against three rejected. A policy drifts by 0.02 to 3 nats per root
    token, may know all texts better or worse, and may push rejected completions down.
    """
    rng = np.random.default_rng(seed)
    n = int(np.exp(rng.uniform(np.log(least), np.log(most))))
    prompt, shared = rng.normal(size=n), rng.uniform(0.0, 0.8)
    median, spread = np.exp(rng.uniform(np.log(12), np.log(600))), rng.uniform(0.2, 1.0)

    def related(share):
        return np.sqrt(share) * prompt + np.sqrt(1.0 - share) * rng.normal(size=n)

    tokens = [np.round(median * np.exp(spread * related(shared))).clip(1) for _ in LOGPS[:2]]
    if rng.random() < 0.25:
        longest = np.quantile(tokens[0], rng.uniform(0.5, 0.95))
        tokens = [np.minimum(each, longest) for each in tokens]
    rate, variety = rng.uniform(0.5, 4.0), rng.uniform(0.1, 0.5)
    reference = [-each * rate * np.exp(variety * related(0.5)) for each in tokens]
    drift = np.exp(rng.uniform(np.log(0.02), np.log(3.0)))
    better = rng.choice([0.0, rng.uniform(-0.25, 0.25)])
    pushed = rng.choice([0.0, rng.uniform(0.0, 0.3)])
    policy = [
        ref * (1.0 - better) + drift * np.sqrt(each) * rng.normal(size=n)
        for ref, each in zip(reference, tokens, strict=True)
    ]
    policy[1] += pushed * reference[1] * rng.uniform(0.5, 1.5, n)
    columns = dict(zip(LOGPS, (*policy, *reference), strict=True))
    pairs = pl.DataFrame(columns).with_columns(pl.col(LOGPS).clip(upper_bound=-1e-3))
    pairs = pairs.with_columns(
        pl.Series(name, each, dtype=pl.Int64) for name, each in zip(COUNTS, tokens, strict=True)
    )
    if rng.random() < 0.2:
        first = pl.int_range(pl.len()) // 3 * 3
        of_chosen = [name for name in pairs.columns if "chosen" in name]
        pairs = pairs.with_columns(pl.col(of_chosen).gather(first))
    order = rng.integers(3)
    if order:
        pairs = pairs.sort(COUNTS[0] if order == 1 else pl.sum_horizontal(COUNTS))
    return pairs


def from_other_rows(pairs, share, seed=0):
    """Give a share of the rows the reference of another one of them."""
    rows = np.arange(pairs.height)
    rng = np.random.default_rng(seed)
    some = np.flatnonzero(rng.random(pairs.height) < share)
    rows[some] = rng.permutation(some)
    return pairs.with_columns(pairs[rows.tolist()].select(REFS))


def exchanged(pairs, where):
    """Exchange chosen and rejected of the reference where a mask says so."""
    one, other = (pl.col(name) for name in REFS)
    return pairs.with_columns(
        pl.when(where).then(other).otherwise(one).alias(REFS[0]),
        pl.when(where).then(one).otherwise(other).alias(REFS[1]),
    )


def with_prompt(pairs, columns, seed=0):
    """Add one amount to both sums of a model."""
    prompt = pl.Series(-np.random.default_rng(seed).gamma(3.0, 60.0, pairs.height))
    return pairs.with_columns(pl.col(name) + prompt for name in columns)


def cut_short(pairs, tokens):
    """Count only the first tokens of each completion in the reference's sums."""
    return pairs.with_columns(
        pl.col(name) * (tokens / pl.col(count)).clip(upper_bound=1.0)
        for name, count in zip(REFS, COUNTS, strict=True)
    )


def unshifted(pairs, columns, seed=0):
    """Give a model the sums that labels unshifted by one token give: near those of a guess."""
    rng = np.random.default_rng(seed)
    return pairs.with_columns(
        (
            pl.col(count) * -9.5
            + pl.Series(rng.normal(0.0, 3.0, pairs.height)) * pl.col(count).sqrt()
        ).alias(name)
        for name, count in zip(columns, COUNTS, strict=True)
    )


FAULTS = {
    "reference shifted by a row": lambda p: p.with_columns(
        pl.col(name).shift(1, fill_value=pl.col(name).last()) for name in REFS
    ),
    "sorted by length, and shifted": lambda p: FAULTS["reference shifted by a row"](
        p.sort(COUNTS[0])
    ),
    "chosen and rejected of the reference exchanged": lambda p: exchanged(p, pl.lit(value=True)),
    "half of the reference shifted": lambda p: pl.concat(
        [p[: p.height // 2], FAULTS["reference shifted by a row"](p[p.height // 2 :])]
    ),
    "reference of other rows": lambda p: from_other_rows(p, 1.1),
    "a tenth of the reference from other rows": lambda p: from_other_rows(p, 0.1),
    "a tenth of the reference exchanged": lambda p: exchanged(p, pl.int_range(pl.len()) % 10 == 0),
    "prompt in the policy only": lambda p: with_prompt(p, LOGPS[:2]),
    "prompt in the reference only": lambda p: with_prompt(p, REFS),
    "prompt in the policy's chosen only": lambda p: with_prompt(p, LOGPS[:1]),
    "prompt in the reference's rejected only": lambda p: with_prompt(p, REFS[1:]),
    "a twentieth of the reference halved": lambda p: p.with_columns(
        pl.when(pl.int_range(pl.len()) % 20 == 0).then(pl.col(ref) / 2).otherwise(ref).alias(ref)
        for ref in REFS
    ),
    "reference cut at its median length": lambda p: cut_short(p, p[COUNTS[0]].median()),
    "reference cut at its 80% length": lambda p: cut_short(p, p[COUNTS[0]].quantile(0.8)),
    "labels of the reference unshifted": lambda p: unshifted(p, REFS),
    "labels of the policy unshifted": lambda p: unshifted(p, LOGPS[:2]),
    "policy_chosen a copy of ref_chosen": lambda p: p.with_columns(pl.col(REFS[0]).alias(CHOSEN)),
    "policy_rejected a copy of policy_chosen": lambda p: p.with_columns(
        pl.col(CHOSEN).alias(REJECTED)
    ),
    "a fifth of policy_chosen from the reference": lambda p: p.with_columns(
        pl.when(pl.int_range(pl.len()) % 5 == 0).then(REFS[0]).otherwise(CHOSEN).alias(CHOSEN)
    ),
    "policy unmoved in a quarter of the pairs": lambda p: p.with_columns(
        pl.when(pl.int_range(pl.len()) % 4 == 0).then(ref).otherwise(own).alias(own)
        for own, ref in zip(LOGPS[:2], REFS, strict=True)
    ),
    "policy equals reference": lambda p: p.with_columns(
        pl.col(ref).alias(own) for own, ref in zip(LOGPS[:2], REFS, strict=True)
    ),
    "all pairs ties": lambda p: p.with_columns(
        pl.col(CHOSEN).alias(REJECTED), pl.col(REFS[0]).alias(REFS[1])
    ),
    "copies of pairs": lambda p: pl.concat([p, p[:5]]),
}
"""Fault to what plants it in pairs of `LOGPS` and `COUNTS`."""
