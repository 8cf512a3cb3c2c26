"""Intervals of figures that follow from sums: clusters are drawn again, with replacement.

The draws are our own splitmix64 (G. Steele, D. Lea, C. Flood, "Fast splittable pseudorandom
number generators", 2014), so that a seed gives the same draws for ever; the sums made from
them agree to rounding. Rows are clusters, or bags of clusters where there are many.

Intervals are bias-corrected and accelerated (B. Efron, "Better bootstrap confidence
intervals", 1987), with Student's t in place of the normal quantile and the
factor C / (C - 1) for the variance, without which few clusters give intervals that are too
narrow (T. Hesterberg, "What teachers should know about the bootstrap", arXiv 1411.5279, 4.1).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist
from typing import Any, Final

import polars as pl

from dpo_pipeline.defaults import BOOTSTRAP_REPLICATES, BOOTSTRAP_SEED, CONFIDENCE_LEVEL
from dpo_pipeline.errors import UsageError
from dpo_pipeline.statistics.distributions import checked_probability, normal_upper, t_quantile
from dpo_pipeline.statistics.hashing import GAMMA, mixed, uint64
from dpo_pipeline.statistics.intervals import Estimate, Interval, student_estimate

JACKKNIFE: Final = "jackknife"
_PLACE: Final = "__dpo_pipeline_place"
_SPAN: Final = 2**20
"""Keys that are whole numbers, from the smallest to the largest, that are numbered by a table."""


def delete_a_group(
    table: pl.DataFrame,
    statistic: Callable[[pl.DataFrame], float | None],
    *,
    group: str,
    keys: Sequence[str],
    count: str,
    level: float = CONFIDENCE_LEVEL,
) -> Estimate | None:
    """Return a figure of a table, with the spread that leaving out each group in turn shows.

    SE^2 = (g - 1) / g * sum (figure without the group - figure)^2, and Student's t with g - 1
    degrees of freedom. The groups should be of much the same size, and no cluster in two.

    Args:
        table: A column that numbers the groups, key columns, and columns of numbers that add
            up, such as the histogram of each group.
        statistic: Of such a table with all groups added up, in the order of the keys.
        group: The column of groups.
        keys: The key columns, such as `bin`.
        count: The column that counts observations.
        level: Of the interval.

    Returns:
        The figure; without standard error and interval where there is only one group, or
        the figure is None or not finite without one of them. None where it is so on all.
    """
    missing = {group, count, *keys} - set(table.columns)
    if missing:
        raise UsageError(f"no column {', '.join(map(repr, sorted(missing)))} in the table")

    sums = _LeftOut(table, group, keys)
    value = _finite_or_none(statistic(sums.whole()))
    if value is None:
        return None
    n_groups, error = len(sums.groups), None
    # Without its only group a table is empty, which a statistic need not stand.
    without = [
        _finite_or_none(statistic(sums.without(place))) for place in range(n_groups) if n_groups > 1
    ]
    offsets = [other - value for other in without if other is not None]
    if offsets and len(offsets) == n_groups:
        error = math.sqrt((n_groups - 1) / n_groups) * math.hypot(*offsets)
    return student_estimate(
        value,
        error,
        n_groups - 1,
        level=level,
        method=JACKKNIFE,
        n=int(table[count].sum()),
        n_clusters=n_groups,
    )


def _finite_or_none(found: float | None) -> float | None:
    return found if found is not None and math.isfinite(found) else None


class _LeftOut:
    """The sums of a table by its keys, of all groups and without each: one query in all."""

    def __init__(self, table: pl.DataFrame, group: str, keys: Sequence[str]) -> None:
        import numpy as np

        self._keys, places = _numbered(table, keys)
        numbers = table[group].rank("dense").fill_null(0).to_numpy()
        order = np.argsort(numbers, kind="stable")
        ends = np.flatnonzero(np.diff(numbers[order], prepend=-1, append=-1))
        self.groups = [order[start:end] for start, end in itertools.pairwise(ends)]
        self._places = places
        self._columns = {
            name: table[name].to_numpy() for name in table.columns if name not in {group, *keys}
        }
        self._n_keys = self._keys.height if keys else 1
        self._rows = np.bincount(places, minlength=self._n_keys)
        self._sums = {name: self._sum(each, slice(None)) for name, each in self._columns.items()}

    def _sum(self, values: Any, rows: Any) -> Any:
        import numpy as np

        sums = np.zeros(self._n_keys, dtype=np.result_type(values.dtype, np.int64))
        np.add.at(sums, self._places[rows], values[rows])
        return sums

    def whole(self) -> pl.DataFrame:
        """Return the sums of all groups."""
        return self._frame(self._sums)

    def without(self, place: int) -> pl.DataFrame:
        """Return the sums of all groups but one."""
        import numpy as np

        rows = self.groups[place]
        sums = {}
        for name, values in self._columns.items():
            if np.issubdtype(values.dtype, np.integer):
                sums[name] = self._sums[name] - self._sum(values, rows)
            else:  # a difference of sums would lose digits
                others = np.delete(np.arange(values.size), rows)
                sums[name] = self._sum(values, others)
        there = self._rows - np.bincount(self._places[rows], minlength=self._n_keys) > 0
        return self._frame(sums, there)

    def _frame(self, sums: Mapping[str, Any], there: Any = None) -> pl.DataFrame:
        columns = [*self._keys.get_columns(), *(pl.Series(n, each) for n, each in sums.items())]
        if there is not None and not there.all():
            mask = pl.Series(there)
            columns = [each.filter(mask) for each in columns]
        return pl.DataFrame(columns)


def _numbered(table: pl.DataFrame, keys: Sequence[str]) -> tuple[pl.DataFrame, Any]:
    """Return the different keys, sorted, and the place of each row there."""
    import numpy as np

    if not keys:
        return pl.DataFrame(), np.zeros(table.height, dtype=np.int64)
    first = table[keys[0]]
    if len(keys) == 1 and first.dtype.is_integer() and not first.null_count() and len(first):
        values = first.cast(pl.Int64).to_numpy()
        low = int(values.min())
        if int(values.max()) - low < _SPAN:
            there = np.bincount(values - low) > 0
            found = pl.Series(keys[0], np.flatnonzero(there) + low).cast(first.dtype)
            return found.to_frame(), (np.cumsum(there) - 1)[values - low]
    names = table.select(keys).unique().sort(keys)
    numbered = names.with_row_index(_PLACE)
    joined = table.select(keys).join(
        numbered, on=list(keys), how="left", nulls_equal=True, maintain_order="left"
    )
    return names, joined[_PLACE].cast(pl.Int64).to_numpy()


BOOTSTRAP: Final = "bootstrap"

_DRAWS_AT_A_TIME: Final = 4_000_000
_MOST_ROWS: Final = 2**31


def splitmix64(first: int, count: int, *, seed: int) -> pl.Series:
    """Return `count` outputs of splitmix64 as UInt64, from the `first` (counted from 0) on."""
    steps = pl.int_range(first, first + count, dtype=pl.UInt64) * uint64(GAMMA)
    return pl.select(mixed(steps + uint64(seed))).to_series()


def resampled(
    sums: pl.DataFrame,
    *,
    n_replicates: int = BOOTSTRAP_REPLICATES,
    seed: int = BOOTSTRAP_SEED,
) -> pl.DataFrame:
    """Return the sums of `n_replicates` samples of as many rows as there are, with replacement.

    The order of the rows decides which are drawn, so it must be the same each time. The chance of
    a row to be drawn is even to 1 in 2**32 / rows. Memory is bounded.
    """
    rows = sums.height
    if not 0 < rows < _MOST_ROWS:
        raise UsageError(f"a bootstrap needs from 1 to 2**31 - 1 rows, found {rows:,}")
    if n_replicates < 1 or not 0 <= seed < 2**64:
        raise UsageError(f"no {n_replicates!r} replicates from seed {seed!r}")
    values = sums.cast(pl.Float64)
    step = max(1, _DRAWS_AT_A_TIME // rows)
    parts = []
    for start in range(0, n_replicates, step):
        height = min(step, n_replicates - start)
        drawn = (splitmix64(start * rows, height * rows, seed=seed) // 2**32) * rows // 2**32
        sample = pl.all().gather(drawn).reshape((height, rows)).arr.sum()
        parts.append(values.select(sample))
    return pl.concat(parts)


def bootstrap(
    sums: pl.DataFrame,
    figures: Mapping[str, pl.Expr],
    *,
    count: str,
    level: float = CONFIDENCE_LEVEL,
    n_replicates: int = BOOTSTRAP_REPLICATES,
    seed: int = BOOTSTRAP_SEED,
) -> dict[str, Estimate | None]:
    """Return figures that follow from sums, with their intervals; all from the same draws.

    Args:
        sums: One row a cluster or bag, columns of numbers that add up.
        figures: Name to expression over the columns of sums, row by row, such as
            `pl.col("n_correct") / pl.col("n_pairs")`.
        count: The column that counts observations.
        level: Of the intervals.
        n_replicates: Samples.
        seed: From 0 to 2**64 - 1.

    Returns:
        By name: the figure of all rows; the standard deviation of its replicates times
        sqrt(C / (C - 1)); the interval. The last two are None for a single row. Replicates in which
        the figure is null, NaN or infinite are left out; None where it is one of these on all rows.
    """
    checked_probability("level", level)
    values = sums.cast(pl.Float64)
    total = values.sum()
    whole = total.select(**figures)
    replicates = resampled(sums, n_replicates=n_replicates, seed=seed).select(**figures)
    without_one = values.select(pl.all().sum() - pl.all()).select(**figures)
    n = int(total[count].item())
    return {
        name: _estimate(
            whole[name].item(),
            _finite(replicates[name]),
            _finite(without_one[name]),
            n=n,
            rows=sums.height,
            level=level,
        )
        for name in figures
    }


def _finite(values: pl.Series) -> pl.Series:
    values = values.cast(pl.Float64)
    return values.filter(values.is_finite())


def _estimate(
    value: float | None,
    replicates: pl.Series,
    without_one: pl.Series,
    *,
    n: int,
    rows: int,
    level: float,
) -> Estimate | None:
    if value is None or not math.isfinite(value):
        return None
    if rows < 2 or replicates.len() < 2:  # noqa: PLR2004  no spread of fewer
        return Estimate(value=value, standard_error=None, interval=None, n=n, n_clusters=rows)
    widening, x = math.sqrt(rows / (rows - 1)), pl.col("x")
    half = widening * t_quantile((1.0 + level) / 2.0, rows - 1)
    shares = _shares(value, replicates, _acceleration(without_one), half)
    quantiles = [x.quantile(share, "linear").alias(str(i)) for i, share in enumerate(shares)]
    deviation, low, high = replicates.to_frame("x").select(x.std(), *quantiles).row(0)
    return Estimate(
        value=value,
        standard_error=widening * deviation,
        interval=Interval(low=low, high=high, level=level, method=BOOTSTRAP),
        n=n,
        n_clusters=rows,
    )


def _shares(
    value: float, replicates: pl.Series, acceleration: float, half: float
) -> tuple[float, float]:
    """Return which quantiles of the replicates are the limits."""
    below = (int((replicates < value).sum()) + int((replicates <= value).sum())) / 2
    # Never 0 or 1, which have no normal quantile.
    share = (below + 0.5) / (replicates.len() + 1)
    bias = NormalDist().inv_cdf(share)

    def adjusted(z: float) -> float:
        moved = bias + z
        bend = 1.0 - acceleration * moved
        # Beyond the pole of the correction there is only the outermost replicate.
        return 1.0 - normal_upper(bias + moved / bend) if bend > 0.0 else float(z > 0.0)

    return adjusted(-half), adjusted(half)


def _acceleration(without_one: pl.Series) -> float:
    """Return a sixth of the skewness of the jackknife values, 0 where they are all the same."""
    if without_one.is_empty():
        return 0.0
    offsets = float(without_one.sum()) / without_one.len() - without_one
    squares = float((offsets**2).sum())
    return float((offsets**3).sum()) / (6.0 * squares**1.5) if squares > 0.0 else 0.0
