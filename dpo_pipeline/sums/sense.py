"""Sums that show whether columns of log-probs belong together, and what they amount to.

Products of log-probs are summed in whole quanta, as the other sums are, so that they do not depend
on threads, files or the order of merging. No figure is made from them. Beyond a million pairs they
are sums over a fixed sample of the rows, by their numbers in the whole input: `sampled`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from itertools import combinations
from typing import Any, Final, Self

import polars as pl

from dpo_pipeline.columns import (
    LOGPS,
    N_VALID,
    POLICY,
    POLICY_CHOSEN,
    POLICY_REJECTED,
    REF,
    REF_CHOSEN,
    REF_REJECTED,
    Needs,
)
from dpo_pipeline.defaults import KEYS_HELD, SENSE_ROWS, SENSE_STEP, SENSE_WHOLE
from dpo_pipeline.sums.pair_sums import VALID, valid_only

N_UNMOVED: Final = "n_unmoved"
N_SEEN: Final = "n_seen"
N_COMPARED: Final = "n_compared"
MAX_TOKENS: Final = "max_tokens"
_LOWEST: Final = -(2.0**15)
"""Pairs whose log-probs sum to less are left out of the products, in nats."""
_QUANTA: Final = 2**10
"""Quanta in a square nat. 2**22 pairs of the lowest log-probs fit Int64."""
_NEARLY_ALL: Final = 0.9
_LEAST: Final = 2.0**-6
"""Squared distance, in square nats, below which rounding decides."""
_SHIFT: Final = 1.5 * 2.0**42
"""Added to a number below 2**41, it leaves the number in quanta in the low bits."""
_BITS: Final = 0x4298000000000000
"""The bits of `_SHIFT`."""
EVERY: Final = (*LOGPS, POLICY.name, REF.name)
"""The log-probs of both contracts."""
_SUMMED: Final = {name: f"__dpo_pipeline_{name}" for name in EVERY}
_BEFORE: Final = {name: f"__dpo_pipeline_{name}_before" for name in EVERY}
_AGAINST: Final = {POLICY_CHOSEN.name: REF_CHOSEN.name, POLICY_REJECTED.name: REF_REJECTED.name}
LAGGED: Final = ("own", "before", "after")
"""Squared distances of the policy's log-probs to the reference's of the same, the row before and
the row after."""


def sampled(first: int, rows: int) -> list[tuple[int, int]]:
    """Return the runs of rows that are looked at, of `rows` from number `first` on.

    Each is its first row and its length. A page of Parquet is decoded as a whole, so that few long
    runs cost less than many short ones.
    """
    runs = []
    for begin in range(first - first % SENSE_STEP, first + rows, SENSE_STEP):
        end = begin + (SENSE_WHOLE if begin == 0 else SENSE_ROWS)
        start, stop = max(begin, first), min(end, first + rows)
        if start < stop:
            runs.append((start, stop - start))
    return runs


def sense_columns(needs: Needs, counts: Sequence[str]) -> list[str]:
    """Return the names of `sense_sums`."""
    return list(_sense_columns(needs, tuple(counts)))


@lru_cache
def _sense_columns(needs: Needs, counts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(each.meta.output_name() for each in sense_sums(needs, counts, lagged=False))


def with_summed(pairs: pl.LazyFrame, needs: Needs, *, lagged: bool) -> pl.LazyFrame:
    """Add the log-probs that `sense_sums` reads: null where a pair is invalid or out of range.

    Log-probs of invalid pairs must be null.
    """
    total = pl.sum_horizontal(needs.logps)
    is_summed = pl.col(VALID) & (total > _LOWEST)
    pairs = pairs.with_columns(
        pl.when(is_summed).then(pl.col(name).cast(pl.Float64)).alias(_SUMMED[name])
        for name in needs.logps
    )
    if not lagged:
        return pairs
    return pairs.with_columns(pl.col(_SUMMED[n]).shift(1).alias(_BEFORE[n]) for n in needs.logps)


def sense_sums(needs: Needs, counts: Sequence[str], *, lagged: bool) -> list[pl.Expr]:
    """Return extremes and second moments, over pairs of `with_summed`.

    Args:
        needs: Which columns are there.
        counts: The columns of token counts that are there.
        lagged: Whether neighbouring rows are compared, which costs most.
    """
    return list(_sense_sums(needs, tuple(counts), lagged))


@lru_cache  # some hundred steps of Python
def _sense_sums(needs: Needs, counts: tuple[str, ...], lagged: bool) -> tuple[pl.Expr, ...]:
    logps = needs.logps
    sums = [
        pl.col(VALID).sum().cast(pl.Int64).alias(N_SEEN),
        *(pl.col(name).min().alias(f"min_{name}") for name in logps),
        *(pl.col(name).max().alias(f"max_{name}") for name in logps),
        *([pl.max_horizontal(pl.col(counts).max()).alias(MAX_TOKENS)] if counts else []),
        *(valid_only(pl.col(name)).sum().cast(pl.Int64).alias(f"n_of_{name}") for name in counts),
        *(valid_only(pl.col(name)).count().cast(pl.Int64).alias(f"n_{name}") for name in counts),
    ]
    columns = {name: pl.col(_SUMMED[name]) for name in logps}
    there = compared(needs)
    count = columns[logps[0]].count().cast(pl.Int64)
    sums.append(count.alias("n_summed"))
    sums += [_sum(columns[name], count).alias(f"sum_of_{name}") for name in logps]
    sums += [
        _sum(columns[one] * columns[other], count).alias(product(one, other))
        for one, other in (*((name, name) for name in logps), *there)
    ]
    if not needs.reference:
        return tuple(sums)
    against = {text.policy.name: text.ref.name for text in needs.texts}
    ratios = {ours: columns[ours] - columns[theirs] for ours, theirs in against.items()}
    sums += [_sum(ratio.abs(), count).alias(f"sum_size_{name}") for name, ratio in ratios.items()]
    return (*sums, *_lagged(columns, against, lagged=lagged))


def compared(needs: Needs) -> list[tuple[str, str]]:
    """Return which log-probs of a row are compared with each other."""
    return list(combinations(needs.logps, 2))


def with_equal(pairs: pl.LazyFrame, needs: Needs) -> pl.LazyFrame:
    """Add what pairs with two equal log-probs are, by the name of their count.

    They are equal as Float32, in which one of them may be stored.
    """
    # Each is a step: what several expressions of a step are made of is made for each of them.
    singles = {name: f"{name}_as_float32" for name in needs.logps}
    return pairs.with_columns(
        pl.col(name).cast(pl.Float32).alias(single) for name, single in singles.items()
    ).with_columns(
        (pl.col(singles[one]) == pl.col(singles[other])).alias(equal(one, other))
        for one, other in compared(needs)
    )


def equal_pairs(needs: Needs) -> dict[str, pl.Expr | None]:
    """Return, by the name of their count, the pairs of `with_equal`, and None for all."""
    names = [equal(one, other) for one, other in compared(needs)]
    return {N_COMPARED: None} | {name: pl.col(name) for name in names}


def are_unmoved(needs: Needs) -> pl.Expr:
    """Return which pairs of `with_equal` have equal log-probs under both models."""
    if not needs.reference:
        return pl.lit(value=False)
    unmoved = (pl.col(equal(text.policy.name, text.ref.name)) for text in needs.texts)
    return reduce(operator.and_, unmoved, pl.lit(value=True))


def _lagged(
    columns: Mapping[str, pl.Expr], against: Mapping[str, str], *, lagged: bool
) -> list[pl.Expr]:
    if not lagged:
        nothing = pl.lit(0, dtype=pl.Int64)
        return [nothing.alias("n_lagged"), *(nothing.cast(pl.Int128).alias(n) for n in LAGGED)]
    squares = dict.fromkeys(LAGGED, pl.lit(0.0))
    before = {name: pl.col(_BEFORE[name]) for name in columns}
    for ours, theirs in against.items():
        squares["own"] += (columns[ours] - columns[theirs]).pow(2)
        squares["before"] += (columns[ours] - before[theirs]).pow(2)
        squares["after"] += (before[ours] - columns[theirs]).pow(2)
    # The first row has no row before it; a null makes all three null.
    both = squares["before"] + squares["after"]
    count = both.count().cast(pl.Int64)
    return [
        count.alias("n_lagged"),
        *(_sum(pl.when(both.is_not_null()).then(squares[n]), count).alias(n) for n in LAGGED),
    ]


def equal(one: str, other: str) -> str:
    """Return the name of the count of pairs with two equal log-probs."""
    return f"n_equal_{one}_{other}"


def product(one: str, other: str) -> str:
    """Return the name of the sum of products of two log-probs."""
    return f"sum_{'_'.join(sorted((one, other), key=EVERY.index))}"


def _sum(values: pl.Expr, count: pl.Expr) -> pl.Expr:
    # Integers wrap, so that the bits of the shift come off again.
    bits = (values + _SHIFT).reinterpret(dtype=pl.Int64).sum()
    return (bits - count * _BITS).cast(pl.Int128)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sense:
    """What the valid pairs of a dataset, or of one side of a comparison, look like.

    Attributes:
        n_valid: Valid pairs.
        n_seen: Valid pairs behind all that is not counted over all of them: a sample of long sets.
        n_unmoved: Those whose policy and reference log-probs are equal for both completions.
        lowest: Smallest value of each log-prob column, in nats.
        highest: Largest value of each log-prob column, in nats.
        max_tokens: Largest token count, if token counts are there.
        sums: All sums by name.
    """

    n_valid: int
    n_seen: int
    n_unmoved: int
    lowest: Mapping[str, float]
    highest: Mapping[str, float]
    max_tokens: int | None
    sums: Mapping[str, Any]

    @classmethod
    def of_sums(cls, row: Mapping[str, Any]) -> Self:
        """Make it from merged partial sums of all pairs."""
        return cls(
            n_valid=row[N_VALID],
            n_seen=row.get(N_SEEN, 0),
            n_unmoved=row.get(N_UNMOVED, 0),
            lowest={name: row[f"min_{name}"] for name in EVERY if f"min_{name}" in row},
            highest={name: row[f"max_{name}"] for name in EVERY if f"max_{name}" in row},
            max_tokens=row.get(MAX_TOKENS),
            sums=row,
        )

    @property
    def n(self) -> int:
        """Pairs behind the moments."""
        return int(self.sums["n_summed"])

    @property
    def n_compared(self) -> int:
        """Valid pairs in which equal log-probs were counted: all, or by subset those seen."""
        return int(self.sums[N_COMPARED])

    @property
    def is_of_pairs(self) -> bool:
        """Whether they are pairs, and not completions."""
        return POLICY.name not in self.lowest

    @property
    def has_reference(self) -> bool:
        """Whether log-probs of the reference are there."""
        return REF_CHOSEN.name in self.lowest or REF.name in self.lowest

    def share_equal(self, one: str, other: str) -> float:
        """Return the share of the pairs compared in which two log-probs are equal."""
        return float(self.sums[equal(one, other)] / self.n_compared)

    def mean(self, name: str) -> float:
        """Return the mean of a log-prob, in nats."""
        return float(self.sums[f"sum_of_{name}"] / (self.n * _QUANTA))

    def tokens_mean(self, name: str) -> float | None:
        """Return the mean of a token count, if nearly every valid pair has one."""
        n = self.sums.get(f"n_{name}", 0)
        return float(self.sums[f"n_of_{name}"] / n) if n > _NEARLY_ALL * self.n_seen else None

    def _raw(self, one: str, other: str) -> float:
        """Return the mean of the products of two log-probs."""
        return float(self.sums[product(one, other)] / (self.n * _QUANTA))

    def covariance(self, one: str, other: str) -> float:
        """Return the covariance of two log-probs; with itself the variance."""
        n, (x, y) = self.n, (self.sums[f"sum_of_{name}"] for name in (one, other))
        # In integers, because the two terms nearly cancel.
        whole = n * self.sums[product(one, other)] * _QUANTA - x * y
        return float(whole / (n * _QUANTA) ** 2)

    def correlation(self, one: str, other: str) -> float:
        """Return the correlation of two log-probs; NaN if one is constant."""
        return _ratio(
            self.covariance(one, other),
            math.sqrt(max(self.covariance(one, one) * self.covariance(other, other), 0.0)),
        )

    def distance(self, one: str, other: str) -> float:
        """Return the mean squared difference of two log-probs."""
        return self._raw(one, one) + self._raw(other, other) - 2.0 * self._raw(one, other)

    def spread(self, ours: str) -> float:
        """Return the variance of a log-ratio over those of the two log-probs."""
        theirs = _AGAINST[ours]
        own = self.covariance(ours, ours) + self.covariance(theirs, theirs)
        return _ratio(own - 2.0 * self.covariance(ours, theirs), own)

    def moved(self, ours: str) -> float:
        """Return the mean log-ratio, in nats."""
        return self.mean(ours) - self.mean(_AGAINST[ours])

    def size_of_move(self, ours: str) -> float:
        """Return the mean squared log-ratio."""
        return self.distance(ours, _AGAINST[ours])

    def variance_of_move(self, ours: str) -> float:
        """Return the variance of a log-ratio."""
        return self.size_of_move(ours) - self.moved(ours) ** 2

    def move_with_higher(self, ours: str) -> float:
        """Return the correlation of a log-ratio with the log-prob that is higher on average."""
        theirs = _AGAINST[ours]
        higher = max(ours, theirs, key=self.mean)
        own = self.covariance(higher, higher)
        both = self.covariance(ours, higher) - self.covariance(theirs, higher)
        return _ratio(both, math.sqrt(max(own * self.variance_of_move(ours), 0.0)))

    def evenness(self, ours: str) -> float:
        """Return the mean size of a log-ratio over its root mean square: low if few are large."""
        size = self.mean_size(ours)
        return _ratio(size, math.sqrt(max(self.distance(ours, _AGAINST[ours]), 0.0)))

    def mean_size(self, ours: str) -> float:
        """Return the mean size of a log-ratio, in nats."""
        return float(self.sums[f"sum_size_{ours}"] / (self.n * _QUANTA))

    def one_sidedness(self, ours: str) -> float:
        """Return the mean log-ratio over its mean size: 1 if the policy is never below, or -1."""
        size = self.mean_size(ours)
        return _ratio(self.mean(ours) - self.mean(_AGAINST[ours]), size)

    def size(self, ours: str) -> float:
        """Return the mean log-ratio over the size of both log-probs: 0.5 if one is thrice."""
        one, other = self.mean(ours), self.mean(_AGAINST[ours])
        return _ratio(one - other, abs(one) + abs(other))

    @property
    def same_move(self) -> float:
        """The correlation of chosen and rejected log-ratios."""
        c, r, ref_c, ref_r = LOGPS
        both = self.covariance(c, r) - self.covariance(c, ref_r)
        both += self.covariance(ref_c, ref_r) - self.covariance(ref_c, r)
        chosen, rejected = (
            self.covariance(ours, ours)
            + self.covariance(theirs, theirs)
            - 2.0 * self.covariance(ours, theirs)
            for ours, theirs in _AGAINST.items()
        )
        return _ratio(both, math.sqrt(max(chosen, 0.0) * max(rejected, 0.0)))

    @property
    def _own(self) -> float:
        own = sum(self.distance(ours, theirs) for ours, theirs in _AGAINST.items())
        return max(own, _LEAST)

    @property
    def exchange(self) -> float:
        """Squared distance to the reference of the other completion, over that to its own."""
        c, r, ref_c, ref_r = LOGPS
        return _ratio(self.distance(c, ref_r) + self.distance(r, ref_c), self._own)

    @property
    def lag(self) -> float:
        """Squared distance to the reference of a neighbouring row, over that to its own.

        NaN where no rows were compared.
        """
        return _ratio(min(self.sums["before"], self.sums["after"]), self.sums["own"])


def _ratio(numerator: float, denominator: float) -> float:
    return math.nan if denominator == 0.0 else float(numerator / denominator)


def hashed_ids(pairs: pl.LazyFrame, columns: Sequence[str]) -> pl.LazyFrame:
    """Return the hash of each id, which is in the last column; a row without one has null.

    Ids are unique among the rows with the same values in the other columns.
    """
    name = columns[-1]
    key = pl.col(name) if len(columns) == 1 else pl.struct(columns)
    return pairs.select(pl.when(pl.col(name).is_not_null()).then(key.hash()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeats:
    """Rows whose key an earlier row has.

    Attributes:
        n_looked_at: Keys that were compared.
        n_repeated: Those of them that were there before.
        is_exact: Whether all keys of the rows read were compared; otherwise a sample of the keys,
            with all rows of each, so that the share is estimated.
        is_of_all: Whether all rows were read; otherwise a sample, and copies elsewhere are not
            counted.
    """

    n_looked_at: int
    n_repeated: int
    is_exact: bool
    is_of_all: bool = True


class RepeatedKeys:
    """Holds hashes of keys: all of up to `KEYS_HELD`, and of more a share that halves."""

    def __init__(self, n_rows: int | None = None, *, is_of_all: bool = True) -> None:
        """Start without keys; `n_rows` tells how many to keep from the start."""
        self._is_of_all = is_of_all
        self._held: list[pl.Series] = []
        self._thinning = 1
        while n_rows is not None and n_rows > KEYS_HELD * self._thinning:
            self._thinning *= 2

    def add(self, hashes: pl.Series) -> None:
        """Add the hashes of the keys of some rows; null where a row has no key."""
        self._held.append(self._kept(hashes.drop_nulls()))
        while sum(map(len, self._held)) > KEYS_HELD:
            self._thinning *= 2
            self._held = [self._kept(each) for each in self._held]

    def _kept(self, hashes: pl.Series) -> pl.Series:
        return hashes if self._thinning == 1 else hashes.filter(hashes % self._thinning == 0)

    @property
    def found(self) -> Repeats:
        """What the keys so far amount to."""
        held = pl.concat(self._held) if self._held else pl.Series([], dtype=pl.UInt64)
        return Repeats(
            n_looked_at=len(held),
            n_repeated=len(held) - held.n_unique(),
            is_exact=self._thinning == 1,
            is_of_all=self._is_of_all,
        )
