"""From gathered tables to the few numbers that a chart draws: no more of them for more rows.

A *bin* is one of a gathered histogram (`exact.bin_of`): narrow near zero, wide far from it. A *bar*
is one of the chart; all bars are equally wide. A bin that overlaps several bars gives each its
share of the pairs: if it went whole to the bar of its middle, the wide bins would leave gaps like
those of a comb. Only a bin of few pairs goes whole to one bar, so that no part of a pair is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import polars as pl

from dpo_pipeline.columns import LOSS, N_PAIRS, N_VALID, REWARD_MARGIN
from dpo_pipeline.evaluation import Gathered
from dpo_pipeline.exact import QUANTA_PER_NAT, SCALE, lower_edge, quantile, value_at
from dpo_pipeline.losses import softplus
from dpo_pipeline.statistics import Estimate, as_written, count, margins_of
from dpo_pipeline.sums import COARSE, coarse_middle

BARS: Final = 56
"""Bars of a histogram, about."""
SUBSETS_DRAWN: Final = 40
"""Subsets of a chart; the table has all."""
CELLS: Final = 36
"""Cells of a density, about, in each direction."""
_WHOLE_BELOW: Final = 10
"""Pairs of a bin from which a histogram may divide it among bars."""
_TAIL: Final = 0.002
"""Share of the pairs on each side that may be pooled in the outermost bar."""
_NICE: Final = (1.0, 2.0, 2.5, 5.0, 10.0)
"""Widths of a bar, times a power of ten."""
_POINT_PAIRS: Final = 30
"""Fewest pairs behind a point of the course, if the dataset has as many."""
COURSE_POINTS_SHOWN: Final = 100
"""Most points of the course."""
LENGTH_POINTS: Final = 24
"""Groups of pairs by the difference of lengths."""
_BETA_FACTOR: Final = 4.0
"""How far the curve over betas goes beyond the betas marked in it: a quarter to four times."""
_BETA_POINTS: Final = 81


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Bars of equal width, of which zero is an edge; the outermost hold all beyond."""

    step: float
    first: int  # steps from zero to the start of bar 0, below 0 where it is left of it
    n: int

    def edge(self, bar: pl.Expr) -> pl.Expr:
        """Return where a bar starts, which is where the one before it ends."""
        return (self.first + bar) * self.step


def grid_over(histogram: pl.DataFrame, bars: int, *, widen: float = 1.0) -> Grid:
    """Return about as many bars (at most twice) over nearly all of a histogram, and over zero.

    The histogram has `bin`, each as wide as `widen` bins of `exact`, and `n_pairs`.
    """
    fine = histogram.select((pl.col("bin") * widen).alias("bin"), N_PAIRS)
    low, high = quantile(fine, _TAIL) or 0.0, quantile(fine, 1.0 - _TAIL) or 0.0
    low, high = min(low, 0.0), max(high, 0.0)
    if high - low < SCALE:
        low, high = low - SCALE, high + SCALE
    rough = (high - low) / bars
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(nice * size for nice in _NICE if nice * size >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return Grid(step=step, first=first, n=last - first)


def laid_over(bins: pl.DataFrame, grid: Grid, *, widen: int = 1, name: str = "bin") -> pl.DataFrame:
    """Return which `share` (1 in all) of each bin of the column `name` lies in which `bar`.

    A bin is as wide as `widen` bins of `exact`. Repeated ones count once.
    """
    number = pl.col(name).cast(pl.Float64) * widen
    edges = (
        bins.select(name)
        .unique()
        .sort(name)
        .with_columns(
            low=lower_edge(number - (widen - 1.0) / 2.0),
            high=lower_edge(number + (widen + 1.0) / 2.0),
        )
    )
    place = pl.col("low", "high") / grid.step - grid.first
    parts = (
        edges.with_columns(place.name.prefix("at_"))
        .with_columns(
            first=pl.col("at_low").floor().clip(0, grid.n - 1).cast(pl.Int64),
            last=(pl.col("at_high").ceil() - 1.0).clip(0, grid.n - 1).cast(pl.Int64),
        )
        .with_columns(bar=pl.int_ranges("first", pl.max_horizontal("first", "last") + 1))
        .explode("bar")
    )
    begin = pl.when(pl.col("bar") == 0).then(pl.col("at_low")).otherwise(pl.col("bar"))
    stop = pl.when(pl.col("bar") == grid.n - 1).then(pl.col("at_high")).otherwise(pl.col("bar") + 1)
    overlap = pl.min_horizontal(stop, "at_high") - pl.max_horizontal(begin, "at_low")
    return parts.select(name, "bar", share=overlap / (pl.col("at_high") - pl.col("at_low")))


def ends_of(table: pl.DataFrame, name: str) -> tuple[float, float]:
    """Return the smallest and the largest value of a column of numbers that has rows."""
    low, high = table.select(pl.col(name).min(), pl.col(name).max().alias("high")).row(0)
    return float(low), float(high)


def interval_rows(named: Mapping[str, Estimate]) -> pl.DataFrame:
    """Return the rows of a chart of intervals: `label`, `value`, `low`, `high`, `n_pairs`."""
    limits = [each.interval for each in named.values()]
    return pl.DataFrame(
        {
            "label": [*named],
            "value": [each.value for each in named.values()],
            "low": pl.Series([each and each.low for each in limits], dtype=pl.Float64),
            "high": pl.Series([each and each.high for each in limits], dtype=pl.Float64),
            N_PAIRS: [each.n for each in named.values()],
        }
    )


def subset_rows(
    subsets: pl.DataFrame,
    by: Sequence[str],
    *,
    value: str,
    low: str,
    high: str,
    chance: float,
    level: float,
) -> tuple[pl.DataFrame, str]:
    """Return the rows of a chart of intervals, and a sentence for its caption.

    The rows are of the largest subsets, the largest value first; the sentence says if some were
    left out. `side` is open unless the p-value that allows for the number of subsets (Holm) is
    below 1 - level. `value`, `low` and `high` are columns of `subsets`.
    """
    is_shown = pl.col("p_holm").fill_null(1.0) < 1.0 - level
    side = (
        pl.when(~is_shown)
        .then(pl.lit("open"))
        .when(pl.col(value) > chance)
        .then(pl.lit("above"))
        .otherwise(pl.lit("below"))
    )
    names = [" / ".join(map(as_written, key)) for key in subsets.select(by).iter_rows()]
    table = subsets.select(
        pl.Series("label", names, dtype=pl.String),
        value=value,
        low=low,
        high=high,
        n_pairs=N_VALID,
        side=side,
    ).filter(pl.col(N_PAIRS) > 0)
    table = table.sort("value", descending=True, nulls_last=True, maintain_order=True)
    if table.height <= SUBSETS_DRAWN:
        return table, ""
    largest = pl.col(N_PAIRS).rank("ordinal", descending=True) <= SUBSETS_DRAWN
    return table.filter(largest), (
        f" Drawn are the {SUBSETS_DRAWN} largest of {count(table.height)} subsets; the table has "
        "them all."
    )


def with_sizes(table: pl.DataFrame) -> pl.DataFrame:
    """Return the table with the number of pairs behind each label."""
    sized = [f"{text} ({count(n)})" for text, n in table.select("label", N_PAIRS).iter_rows()]
    return table.with_columns(pl.Series("label", sized, dtype=pl.String))


def histogram_bars(margins: pl.DataFrame, grid: Grid, n_ties: int) -> pl.DataFrame:
    """Return the bars of a histogram of margins without its ties: `lower`, `upper`, `n_pairs`.

    The ties, margins of exactly 0, are among the pairs of the bin around zero. A part of a large
    bin's pairs need not be whole.
    """
    counts = (
        margins.group_by("bin")
        .agg(pl.col(N_PAIRS).sum())
        .with_columns(pl.col(N_PAIRS) - pl.when(pl.col("bin") == 0).then(n_ties).otherwise(0))
    )
    # The bin around zero has both signs, and its middle says nothing of which.
    is_whole = (pl.col(N_PAIRS) < _WHOLE_BELOW) & (pl.col("bin") != 0)
    middle = value_at(pl.col("bin"))
    whole = counts.filter(is_whole).select(
        "bin",
        bar=(middle / grid.step - grid.first).floor().clip(0, grid.n - 1).cast(pl.Int64),
        share=pl.lit(1.0),
    )
    bars = (
        pl.concat([laid_over(counts.filter(~is_whole), grid), whole])
        .join(counts, on="bin", maintain_order="left")
        .group_by("bar", maintain_order=True)
        .agg((pl.col("share") * pl.col(N_PAIRS)).sum().alias(N_PAIRS))
    )
    every = pl.DataFrame({"bar": range(grid.n)}, schema={"bar": pl.Int64})
    bar = pl.col("bar")
    return every.join(bars, on="bar", how="left", maintain_order="left").select(
        lower=grid.edge(bar), upper=grid.edge(bar + 1), n_pairs=pl.col(N_PAIRS).fill_null(0.0)
    )


def density(table: pl.DataFrame, *, x: str, y: str) -> pl.DataFrame:
    """Return the cells with pairs: `{x}_low`, `{x}_high`, `{y}_low`, `{y}_high`, `n_pairs`.

    The table has `{x}_bin` and `{y}_bin`, each `COARSE` bins of `exact`. A part of a bin's pairs
    need not be whole.
    """
    cells, edges = table, {}
    for side in (x, y):
        name = f"{side}_bin"
        counts = table.select(pl.col(name).alias("bin"), N_PAIRS)
        grid = grid_over(counts, CELLS, widen=COARSE)
        parts = laid_over(table, grid, widen=COARSE, name=name).rename({"bar": side})
        others = [column for column in cells.columns if column not in {name, N_PAIRS}]
        pairs = (pl.col(N_PAIRS) * pl.col("share")).sum().alias(N_PAIRS)
        joined = cells.join(parts, on=name, maintain_order="left_right")
        cells = joined.group_by(*others, side, maintain_order=True).agg(pairs)
        edges[f"{side}_low"] = grid.edge(pl.col(side))
        edges[f"{side}_high"] = grid.edge(pl.col(side) + 1)
    return cells.sort(x, y).select(**edges, n_pairs=N_PAIRS)


def course(gathered: Gathered) -> pl.DataFrame:
    """Return means over runs of consecutive rows: few enough runs, with enough valid pairs each.

    Rows, `first_row` to `last_row`, count from 1.
    """
    table, size = gathered.course, gathered.rows_per_point
    n = int(table[N_PAIRS].sum())
    points = max(1, min(COURSE_POINTS_SHOWN, n // _POINT_PAIRS))
    n_rows = int(table.select(pl.col("first_row").max()).item()) + size
    wider = size * -(-n_rows // (size * points))
    in_nats = (pl.col(f"sum_{LOSS}", f"sum_{REWARD_MARGIN}").cast(pl.Float64)) / QUANTA_PER_NAT
    return (
        table.group_by(pl.col("first_row") // wider, maintain_order=True)
        .agg(pl.exclude("first_row").sum())
        .with_columns(in_nats / pl.col(N_PAIRS))
        .select(
            first_row=pl.col("first_row") * wider + 1,
            last_row=(pl.col("first_row") + 1) * wider,
            n_pairs=N_PAIRS,
            loss=f"sum_{LOSS}",
            reward_margin=f"sum_{REWARD_MARGIN}",
            reward_accuracy=pl.col("n_correct") / pl.col(N_PAIRS),
        )
    )


def by_length(lengths: pl.DataFrame) -> pl.DataFrame:
    """Return means of groups of nearly equal size of `Gathered.lengths`.

    `tokens` is the mean of the chosen less the rejected length, within 3.2%, and rises.
    """
    n = pl.col(N_PAIRS)
    middle = coarse_middle(pl.col("length_bin"))
    place = ((n.cum_sum() - n / 2.0) * LENGTH_POINTS / n.sum()).floor()
    return (
        lengths.sort("length_bin")
        .with_columns(place=place, tokens=middle * n)
        .group_by("place", maintain_order=True)
        .agg(pl.exclude("length_bin").sum())
        .select(
            tokens=pl.col("tokens") / n,
            n_pairs=n,
            reward_margin=pl.col(f"sum_{REWARD_MARGIN}").cast(pl.Float64) / QUANTA_PER_NAT / n,
            reward_accuracy=pl.col("n_correct") / n,
        )
    )


def loss_by_beta(margins: pl.DataFrame, beta: float, *, shown: list[float]) -> pl.DataFrame:
    """Return the mean DPO loss for a range of betas, from margins that were made with `beta`.

    The range holds all betas `shown`, and is even in their logarithm.
    """
    low, high = min(shown) / _BETA_FACTOR, max(shown) * _BETA_FACTOR
    ratio = (high / low) ** (1.0 / (_BETA_POINTS - 1))
    betas = pl.DataFrame({"beta": [low * ratio**i for i in range(_BETA_POINTS)]})
    margin = pl.col("margin") * (pl.col("beta") / beta)
    return (
        betas.join(margins_of(margins), how="cross")
        .group_by("beta", maintain_order=True)
        .agg(loss=(softplus(-margin) * pl.col("n")).sum() / pl.col("n").sum())
    )
