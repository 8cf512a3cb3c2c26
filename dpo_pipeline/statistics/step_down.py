"""Many policies on the same pairs: which are better, which may be the best, and the winner's luck.

One procedure. Where policies do not differ, what they have right in a cluster is as likely with the
signs of all differences exchanged. The largest studentised difference under such flips is what
chance makes of the whole family (J. Romano, M. Wolf, "Stepwise multiple testing as formalized data
snooping", 2005). A policy may be the best if no other is shown to be above it by the same flips
(J. Hsu, "Simultaneous confidence intervals for all distances from the 'best'", 1981).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dpo_pipeline.defaults import BOOTSTRAP_SEED, CONFIDENCE_LEVEL, FLIPS, OPTIMISM_REPLICATES
from dpo_pipeline.errors import UsageError
from dpo_pipeline.statistics.distributions import checked_probability
from dpo_pipeline.sums import mixed_array

Numbers = NDArray[np.float64]

_FLIPS_AT_A_TIME: Final = 2**22
_CELLS_AT_A_TIME: Final = 2**22
_EQUAL: Final = 1e-9
"""Statistics that differ by less are equal: rounding alone tells them apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyTest:
    """Two policies: how far the first is above the second."""

    first: int
    second: int
    difference: float  # of their rates
    low: float  # simultaneous limits of all differences that are tested
    high: float
    p_value: float  # adjusted: the chance of any false alarm in the family is kept


@dataclass(frozen=True, slots=True, kw_only=True)
class ManyPolicies:
    """Rates of several policies over the same clusters, and what can be said of them together."""

    rates: tuple[float, ...]
    intervals: tuple[tuple[float, float], ...]  # simultaneous
    tests: tuple[PolicyTest, ...]  # of all pairs of policies, or of each against the baseline
    best_set: tuple[int, ...]  # policies that may be the best
    winner: int  # the first with the highest rate
    optimism: float  # by how much the winner's rate is too high, as the bootstrap has it


def many_policies(
    sums: Numbers,
    counts: Numbers,
    *,
    baseline: int | None = None,
    level: float = CONFIDENCE_LEVEL,
    flips: int = FLIPS,
    replicates: int = OPTIMISM_REPLICATES,
) -> ManyPolicies:
    """Compare the rates of several policies.

    Args:
        sums: What each policy has right: a row a cluster, a column a policy; whole or half pairs.
        counts: Pairs of each cluster.
        baseline: The policy that the others are tested against; None tests all pairs of them.
        level: 1 - level is the chance of any false alarm, and that the best is not in its set.
        flips: How many flips of signs are drawn.
        replicates: How often clusters are drawn again for the winner's optimism.
    """
    alpha = 1.0 - checked_probability("level", level)
    n_policies, n = sums.shape[1], float(counts.sum())
    if n_policies < 2 or n == 0.0:  # noqa: PLR2004  two policies
        raise UsageError("at least two policies and a pair are needed")
    totals = sums.sum(axis=0)
    rates = totals / n
    off = sums - rates * counts[:, None]
    flipped, moved = _flipped(sums, off, flips)
    size, spread = _distances(sums), _distances(off)
    pairs = [
        (p, q)
        for p in range(n_policies)
        for q in range(n_policies)
        if (p < q if baseline is None else q == baseline != p)
    ]
    p_values = _stepped_down(totals, flipped, pairs, size)
    limit = _largest(_gaps(moved, pairs, spread), alpha)
    m = counts.size
    error = np.sqrt(m / max(m - 1, 1)) / n
    tests = tuple(
        PolicyTest(
            first=p,
            second=q,
            difference=float(rates[p] - rates[q]),
            low=float(rates[p] - rates[q] - limit * error * spread[p, q]),
            high=float(rates[p] - rates[q] + limit * error * spread[p, q]),
            p_value=p_value,
        )
        for (p, q), p_value in zip(pairs, p_values, strict=True)
    )
    alone = np.sqrt((off**2).sum(axis=0))
    one_limit = _largest([_over(moved, alone)], alpha)
    return ManyPolicies(
        rates=tuple(rates.tolist()),
        intervals=tuple(
            _of_rate(rate, own * error, one_limit, m)
            for rate, own in zip(rates.tolist(), alone.tolist(), strict=True)
        ),
        tests=tests,
        best_set=tuple(
            p for p in range(n_policies) if _may_be_best(p, totals, flipped, size) > alpha
        ),
        winner=int(np.argmax(rates)),
        optimism=_optimism(sums, counts, rates, replicates),
    )


def _flipped(sums: Numbers, off: Numbers, flips: int) -> tuple[Numbers, Numbers]:
    """Return both totals under flips of the clusters' signs: a row a flip, a column a policy."""
    m = sums.shape[0]
    words = -(-m // 64)
    step = max(1, _FLIPS_AT_A_TIME // (64 * words))
    both = np.hstack([sums, off])
    found = []
    for start in range(0, flips, step):
        rows = min(step, flips - start)
        states = np.arange(start * words, (start + rows) * words, dtype=np.uint64)
        bits = mixed_array(states + np.uint64(BOOTSTRAP_SEED)).astype("<u8").view(np.uint8)
        signs = 2.0 * np.unpackbits(bits).reshape(rows, 64 * words)[:, :m] - 1.0
        found.append(signs @ both)
    whole = np.vstack(found)
    return whole[:, : sums.shape[1]], whole[:, sums.shape[1] :]


def _distances(values: Numbers) -> Numbers:
    """Return the root of the summed squared differences of each two columns."""
    squares = np.stack([((values - own[:, None]) ** 2).sum(axis=0) for own in values.T])
    return np.sqrt(np.where(squares > _EQUAL, squares, 0.0))


def _gaps(totals: Numbers, pairs: Sequence[tuple[int, int]], scale: Numbers) -> Iterator[Numbers]:
    """Yield studentised differences of columns, some rows at a time."""
    first, second = np.array(pairs).T
    step = max(1, _CELLS_AT_A_TIME // len(pairs))
    for start in range(0, totals.shape[0], step):
        some = totals[start : start + step]
        yield _over(some[:, first] - some[:, second], scale[first, second])


def _over(values: Numbers, scale: Numbers) -> Numbers:
    """Return values in units of a scale; 0 where that is 0, as nothing differs there."""
    found: Numbers = np.divide(values, scale, out=np.zeros_like(values), where=scale > 0.0)
    return found


def _largest(chance: Iterable[Numbers], alpha: float) -> float:
    """Return what the largest of several statistics exceeds with a chance of `alpha`."""
    largest = np.sort(np.concatenate([np.abs(each).max(axis=1) for each in chance]))
    rank = int(np.ceil((1.0 - alpha) * (largest.size + 1))) - 1
    return float(largest[min(rank, largest.size - 1)])


def _stepped_down(
    totals: Numbers, flipped: Numbers, pairs: Sequence[tuple[int, int]], size: Numbers
) -> list[float]:
    """Return adjusted p-values: each against the largest of those that are not larger than it."""
    sizes = np.abs(next(_gaps(totals[None, :], pairs, size))[0])
    order = np.argsort(-sizes, kind="stable")
    reached = np.zeros(sizes.size, dtype=np.int64)
    for chance in _gaps(flipped, pairs, size):
        largest = np.maximum.accumulate(np.abs(chance)[:, order[::-1]], axis=1)[:, ::-1]
        reached += (largest >= sizes[order] - _EQUAL).sum(axis=0)
    found = np.empty(sizes.size)
    found[order] = np.maximum.accumulate((1.0 + reached) / (1.0 + flipped.shape[0]))
    return [float(p) for p in found]


def _may_be_best(p: int, totals: Numbers, flipped: Numbers, size: Numbers) -> float:
    """Return the chance that another is as far above a policy, if that is the best."""
    others = [q for q in range(totals.size) if q != p]
    above = _over(totals[others] - totals[p], size[others, p]).max()
    chance = _over(flipped[:, others] - flipped[:, [p]], size[others, p]).max(axis=1)
    return float((1 + (chance >= above - _EQUAL).sum()) / (1 + chance.size))


def _of_rate(rate: float, error: float, limit: float, m: int) -> tuple[float, float]:
    """Return Wilson's limits for as many independent pairs as have this error."""
    n = rate * (1.0 - rate) / error**2 if error > 0.0 and 0.0 < rate < 1.0 else float(m)
    limit = limit if limit > 0.0 else 1.0
    middle = (rate + limit**2 / (2.0 * n)) / (1.0 + limit**2 / n)
    half = limit / (1.0 + limit**2 / n)
    half *= np.sqrt(rate * (1.0 - rate) / n + limit**2 / (4.0 * n**2))
    return float(max(middle - half, 0.0)), float(min(middle + half, 1.0))


def _optimism(sums: Numbers, counts: Numbers, rates: Numbers, replicates: int) -> float:
    """Return by how much the winner of clusters drawn again is above its own rate, on average.

    The draws' own luck, which the first winner has in them too, is taken off.
    """
    m, total, first = counts.size, 0.0, int(np.argmax(rates))
    for i in range(replicates):
        states = np.arange(i * m, (i + 1) * m, dtype=np.uint64) + np.uint64(BOOTSTRAP_SEED + 2**40)
        drawn = (mixed_array(states) >> np.uint64(11)).astype(np.float64) * (m * 2.0**-53)
        weights = np.bincount(drawn.astype(np.int64), minlength=m).astype(np.float64)
        again = weights @ sums / (weights @ counts)
        winner = int(np.argmax(again))
        total += float(again[winner] - rates[winner] - again[first] + rates[first])
    return total / replicates


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """A figure at a step, with limits that hold at all steps at once; None of one cluster."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trends:
    """Figures of the same clusters at several steps."""

    bands: Mapping[str, tuple[Band, ...]]
    tests: Mapping[str, tuple[PolicyTest, ...]]  # of each two steps: the later less the earlier


def trends(
    sums: Mapping[str, Numbers],
    counts: Numbers,
    *,
    shares: Collection[str],
    tested: Sequence[str],
    level: float = CONFIDENCE_LEVEL,
    flips: int = FLIPS,
) -> Trends:
    """Return figures over steps with their bands, and the tests of each two steps.

    Args:
        sums: Sums of each figure: a row a cluster, a column a step.
        counts: Pairs of each cluster.
        shares: The figures that are shares of pairs.
        tested: The figures whose steps are tested; all tests are one family.
        level: 1 - level is the chance of any false alarm, and that a figure leaves its band.
        flips: How many flips of signs are drawn.
    """
    alpha, n, m = 1.0 - checked_probability("level", level), float(counts.sum()), counts.size
    error, n_steps = np.sqrt(m / max(m - 1, 1)) / n, next(iter(sums.values())).shape[1]
    # Only differences are tested: those to the first step lose no digits to a common size.
    apart = np.hstack([sums[name] - sums[name][:, :1] for name in tested])
    totals, size = apart.sum(axis=0), _distances(apart)
    off = np.hstack([each - np.outer(counts, each.sum(axis=0) / n) for each in sums.values()])
    off_apart = apart - np.outer(counts, totals / n)
    flipped, moved = _flipped(apart, np.hstack([off, off_apart]), flips)
    pairs = [
        (start + later, start + earlier)
        for start in range(0, n_steps * len(tested), n_steps)
        for earlier, later in combinations(range(n_steps), 2)
    ]
    spread = _distances(off_apart)
    limit = _largest(_gaps(moved[:, off.shape[1] :], pairs, spread), alpha)
    made = [
        PolicyTest(
            first=p % n_steps,
            second=q % n_steps,
            difference=float((totals[p] - totals[q]) / n),
            low=float((totals[p] - totals[q]) / n - limit * error * spread[p, q]),
            high=float((totals[p] - totals[q]) / n + limit * error * spread[p, q]),
            p_value=p_value,
        )
        for (p, q), p_value in zip(pairs, _stepped_down(totals, flipped, pairs, size), strict=True)
    ]
    each = len(made) // len(tested)
    alone = np.sqrt((off**2).sum(axis=0))
    bands = {}
    for i, (name, own) in enumerate(sums.items()):
        place = slice(i * n_steps, (i + 1) * n_steps)
        most = _largest([_over(moved[:, place], alone[place])], alpha)
        bands[name] = tuple(
            _band(value, spread_of * error, most, m, is_share=name in shares)
            for value, spread_of in zip((own.sum(axis=0) / n).tolist(), alone[place], strict=True)
        )
    return Trends(
        bands=bands,
        tests={name: tuple(made[i * each : (i + 1) * each]) for i, name in enumerate(tested)},
    )


def _band(value: float, error: float, limit: float, m: int, *, is_share: bool) -> Band:
    if m == 1:
        return Band(value=value, low=None, high=None)
    low, high = value - limit * error, value + limit * error
    if is_share:
        low, high = _of_rate(value, float(error), limit, m)
    return Band(value=value, low=float(low), high=float(high))
