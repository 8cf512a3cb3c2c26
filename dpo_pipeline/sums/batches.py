"""Declared batches, of consecutive rows or of one value, and the table of their means."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import cycle
from typing import Any, Final, Self

import polars as pl

from dpo_pipeline.columns import BATCH, BATCH_MEANS, LOSS
from dpo_pipeline.defaults import BATCH_SIZE, MAX_BATCHES_HELD, SHARD_ROWS, TRAINER_BATCH_SIZE
from dpo_pipeline.errors import UsageError
from dpo_pipeline.exact import FEW
from dpo_pipeline.losses import CheckedObjective
from dpo_pipeline.options import Batches
from dpo_pipeline.storage import GrowingFile
from dpo_pipeline.sums.named_figures import TRL_METRICS
from dpo_pipeline.sums.summary import figures, merge, suffix_of, with_objectives
from dpo_pipeline.tables import Column, Figure, Table

_KEY: Final = "__dpo_pipeline_batch"
_ROW: Final = "__dpo_pipeline_batch_row"
_FIRST: Final = "min___dpo_pipeline_batch_row"
BATCHES_PER_GROUP: Final = 262_144
"""Rows of a row group of batch means, and most batches that a shard makes."""
_FASTER_IN_ORDER: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Batching:
    """How pairs are put into batches: by `size` consecutive rows, or by the value of `column`.

    With `trainer` and its `processes`, each pair of the first step is a batch of its own: a trainer
    fills its last step with them.
    """

    size: int | None = None
    column: str | None = None
    trainer: str | None = None
    processes: int = 1

    @classmethod
    def of(cls, batches: Batches) -> Self | None:
        """Make it from the options of a call; None if there are to be no batches."""
        size, column = batches.size, batches.by
        if size is not None and column is not None:
            raise UsageError("batches: give size (--batch-size) or by (--batch-by), not both")
        if size is None and batches.as_trainer is not None:
            size = TRAINER_BATCH_SIZE
        if size is None and column is None:
            return None if batches.file is None else cls(size=BATCH_SIZE)
        whole = isinstance(size, int) and not isinstance(size, bool)
        if size is not None and not (whole and size >= 1):
            raise UsageError(f"batch size must be a whole number, at least 1, found {size!r}")
        return cls(
            size=size, column=column, trainer=batches.as_trainer, processes=batches.processes
        )

    @property
    def key(self) -> str:
        """The column that `with_key` adds."""
        return _KEY

    @property
    def columns(self) -> list[str]:
        """All columns that `with_key` adds."""
        return [_KEY, _ROW]

    @property
    def step(self) -> int:
        """Pairs of a trainer's step, over all processes; 0 without a trainer."""
        return 0 if self.trainer is None or self.size is None else self.size * self.processes

    @property
    def in_order(self) -> bool:
        """Whether the key ascends with the rows."""
        return self.size is not None

    @property
    def are_long(self) -> bool:
        """Whether batches of rows are faster to sum one after the other than by their hash."""
        return self.size is not None and self.size >= _FASTER_IN_ORDER

    @property
    def are_small(self) -> bool:
        """Whether batches of rows have so few that plain integers hold their sums."""
        return self.size is not None and self.size < FEW

    @property
    def shard_rows(self) -> int:
        """Rows of a shard, which make at most `BATCHES_PER_GROUP` batches of rows."""
        return SHARD_ROWS if self.size is None else min(SHARD_ROWS, self.size * BATCHES_PER_GROUP)

    def with_key(self, pairs: pl.LazyFrame, first_row: int) -> pl.LazyFrame:
        """Add the batch of each row, the first row being number `first_row` of the dataset."""
        numbered = pairs.with_row_index(_ROW).with_columns(pl.col(_ROW).cast(pl.Int64))
        if self.column is not None:
            return numbered.with_columns(pl.col(self.column).alias(_KEY), pl.col(_ROW) + first_row)
        if self.size is None:
            raise UsageError("batches have neither a size nor a column")
        if self.step:
            row = pl.col(_ROW) + first_row
            later = (row - self.step) // self.size + self.step
            return numbered.with_columns(
                pl.when(row < self.step).then(row).otherwise(later).alias(_KEY)
            )
        # The row index is UInt32; it counts within a shard, so it cannot overflow.
        batch = (pl.col(_ROW) + first_row % self.size) // self.size + first_row // self.size
        return numbered.with_columns(batch.alias(_KEY))

    def sums(self) -> list[pl.Expr]:
        """Return what batches add to the partial sums: the first row, where it sets the order."""
        return [pl.col(_ROW).min().alias(_FIRST)] if self.column is not None else []


class BatchTable:
    """Makes batch means from partial sums that come in shard by shard."""

    def __init__(
        self,
        batching: Batching,
        *,
        objectives: tuple[CheckedObjective, ...],
        by_objective: bool,
        n_rows: int | None,
        file: GrowingFile | None,
    ) -> None:
        self._batching = batching
        self._objectives = objectives
        self._by_objective = by_objective
        self._file = file
        self._open: pl.DataFrame | None = None  # sums that later rows may change
        self._done: list[pl.DataFrame] = []
        self._n_done = 0
        of_trainer = [BATCH, "n_pairs", "n_valid", *TRL_METRICS.values()]
        self._columns = of_trainer if batching.step else [added.name for added in BATCH_MEANS]
        if file is None:
            self.check_count(batching, n_rows)

    @staticmethod
    def check_count(batching: Batching, n_rows: int | None) -> None:
        """Raise a UsageError if so many rows make more batches than a result holds."""
        if batching.size is not None and n_rows is not None:
            _checked_count(math.ceil(n_rows / batching.size) + batching.step)

    def add(self, sums: pl.DataFrame, *, unique: bool) -> None:
        """Add sums by batch, in the order of the rows; `unique` if each batch has one row."""
        if not self._batching.in_order:
            self._open = merge([sums] if self._open is None else [self._open, sums], [_KEY])
            _checked_count(self._open.height)
            return
        sums = (sums if unique else merge([sums], [_KEY])).sort(_KEY)
        if self._open is not None:  # only one ordered batch can span two shards
            border = merge([self._open, sums.head(1)], [_KEY])
            sums = pl.concat([border, sums.slice(1)])
        self._open = sums.tail(1)
        self._emit(sums.head(-1))

    def finish(self) -> pl.DataFrame | None:
        """Return the table; None where it went to a file."""
        if self._open is None:  # no rows, which is an error elsewhere
            return None
        self._emit(self._open if self._batching.in_order else self._open.sort(_FIRST))
        return None if self._file is not None else pl.concat(self._done)

    def _emit(self, sums: pl.DataFrame) -> None:
        tables = [
            figures(sums, each, keys=[_KEY], suffix=suffix_of(i, self._objectives))
            .rename({_KEY: BATCH})
            .select(self._columns)
            for i, each in enumerate(self._objectives)
        ]
        means = with_objectives(tables, self._objectives) if self._by_objective else tables[0]
        self._n_done += means.height
        if self._file is not None:
            self._file.append(means)
        else:
            _checked_count(self._n_done)
            self._done.append(means)


@dataclass(frozen=True, slots=True, kw_only=True)
class AsTrainer:
    """Figures as a trainer averages them over its steps, which are no means over pairs.

    Attributes:
        trainer: The trainer.
        batch_size: Pairs of a batch on each process.
        processes: Its processes.
        n_steps: Its steps.
        metrics: The figures, under the trainer's names.
    """

    trainer: str
    batch_size: int
    processes: int
    n_steps: int
    metrics: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        return {**asdict(self), "metrics": dict(self.metrics)}

    def table(self, exact: Mapping[str, float | None]) -> Table:
        """Return the figures beside the exact ones."""
        columns = (Column("figure"), Column("exact"), Column(f"as {self.trainer.upper()}"))
        rows = [
            (
                name,
                *(
                    Figure(each, "share" if name.endswith("accuracies") else "number", digits=7)
                    for each in (exact[name], value)
                ),
            )
            for name, value in self.metrics.items()
        ]
        of = "1 process" if self.processes == 1 else f"{self.processes:,} processes"
        title = (
            f"as {self.trainer.upper()} averages {self.n_steps:,} steps of {self.batch_size:,} "
            f"pairs on {of}, if its rows are in this order"
        )
        return Table(columns=columns, rows=rows, title=title)


def as_trainer(batching: Batching | None, means: pl.DataFrame | None) -> AsTrainer | None:
    """Return the averages of a trainer from the means of its batches; None without one.

    Of rewards and log-probs, TRL takes the mean over steps of the mean over the rows of all
    processes; accelerate fills the last step with the first rows, on several processes. Of the
    loss, each process repeats the mean of its batch for each row, and these are cut to the number
    of rows that are left in the last step: on one process that is the mean over pairs.

    Raises:
        UsageError: A pair is invalid, and so in none of the means.
    """
    if batching is None or not batching.step or means is None:
        return None
    n_pairs, n_valid = (int(means[name].sum()) for name in ("n_pairs", "n_valid"))
    if n_pairs != n_valid:
        raise UsageError(f"as_trainer: {n_pairs - n_valid:,} pairs are invalid, and TRL has all")
    size, processes, step = batching.size or 1, batching.processes, batching.step
    n_steps, rest = -(-n_pairs // step), n_pairs % step
    # Each process's share of the last step; on one process a short batch is not filled.
    left = [min(max(rest - rank * size, 0), size) for rank in range(processes)] if rest else []
    weights = [size] * (processes * (n_pairs // step)) + left
    metrics = {}
    for metric, name in TRL_METRICS.items():
        first, later = means[name][:step].to_list(), means[name][step:].to_list()
        sums = [sum(first[i : i + size]) for i in range(0, len(first), size)]
        sums += [value * size for value in later]
        if rest and n_pairs > step and rest % size:
            sums[-1] = later[-1] * (rest % size)
        counts = [size] * len(sums)
        if rest % size:
            counts[-1] = rest % size
        if rest and processes > 1:
            _fill(sums, counts, first, size, n_steps * processes)
        batches = [total / count for total, count in zip(sums, counts, strict=True)]
        if name == LOSS:
            of_pairs = zip(batches, weights, strict=True)
            metrics[metric] = sum(value * weight for value, weight in of_pairs) / sum(weights)
        else:
            steps = [batches[i : i + processes] for i in range(0, len(batches), processes)]
            metrics[metric] = sum(sum(some) / len(some) for some in steps) / len(steps)
    return AsTrainer(
        trainer=str(batching.trainer),
        batch_size=size,
        processes=processes,
        n_steps=n_steps,
        metrics=metrics,
    )


def _fill(sums: list[float], counts: list[int], first: list[float], size: int, most: int) -> None:
    """Fill the last batches with values of the first rows, from the first one on."""
    rows = cycle(first)
    while len(sums) < most or counts[-1] < size:
        if counts[-1] == size:
            sums.append(0.0)
            counts.append(0)
        sums[-1] += next(rows)
        counts[-1] += 1


def batch_table(
    batching: Batching | None,
    objectives: tuple[CheckedObjective, ...],
    *,
    by_objective: bool,
    n_rows: int | None,
    file: GrowingFile | None,
) -> BatchTable | None:
    """Return the table of batch means, if there are batches and figures."""
    if batching is None or not objectives:
        return None
    return BatchTable(
        batching, objectives=objectives, by_objective=by_objective, n_rows=n_rows, file=file
    )


def _checked_count(n_batches: int) -> None:
    if n_batches > MAX_BATCHES_HELD:
        raise UsageError(
            f"there are more than {MAX_BATCHES_HELD:,} batches: give a file for their means "
            "(Batches(file=PATH), or --batches), or make larger batches"
        )
