"""Writes the scored and the invalid pairs of one input file after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO, TypeAlias

import polars as pl

from dpo_pipeline.columns import BROKEN_RULES, SCORED, SOURCE_ROW
from dpo_pipeline.defaults import OUTPUT_ROWS_PER_GROUP, WIDE_ROWS_PER_GROUP, ZSTD_LEVEL
from dpo_pipeline.growing_file import GrowingFile
from dpo_pipeline.hidden_files import final_name
from dpo_pipeline.io_errors import reading
from dpo_pipeline.measuring import Measured
from dpo_pipeline.metadata import run_facts
from dpo_pipeline.objective import Objective
from dpo_pipeline.offences import invalid_pairs, numbered
from dpo_pipeline.publishing import writing
from dpo_pipeline.running import Watch
from dpo_pipeline.scoring import with_scores
from dpo_pipeline.storage import PairFile

_Output: TypeAlias = Callable[[pl.LazyFrame, int], pl.LazyFrame]
"""Makes the output from scored pairs of a file, the first of which has this row number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairWriter:
    """Writes the outputs of a run; a file is one linear plan with one sink, or such plans in turn.

    Attributes:
        measured: What the reading before gave.
        objective: What is computed.
        carried: Input columns that scored pairs keep.
        columns: Input columns that invalid pairs keep.
        watch: Is told of the rows.
    """

    measured: Measured
    objective: Objective
    carried: Sequence[str]
    columns: Sequence[str]
    watch: Watch

    def scored(self, file: PairFile, hidden: str) -> int:
        """Write the valid pairs with their scores; return how many."""
        has_invalid = self._has_invalid(file)
        n_valid = self.measured.n_pairs - self.measured.n_invalid

        def output(pairs: pl.LazyFrame, _first_row: int) -> pl.LazyFrame:
            valid = pairs.filter(self.measured.rules.valid) if has_invalid else pairs
            scored = valid.select(*self.carried, *(added.name for added in SCORED))
            return self.watch.on_rows(scored, "writing", n_valid)

        return self._write(output, file, hidden)

    def invalid(self, file: PairFile, hidden: str) -> int:
        """Write the invalid pairs with their rows and broken rules; return how many."""
        has_invalid = self._has_invalid(file)

        def output(pairs: pl.LazyFrame, first_row: int) -> pl.LazyFrame:
            apart = invalid_pairs(numbered(pairs, first_row), self.measured.rules)
            apart = apart.select(*self.columns, SOURCE_ROW, BROKEN_RULES)
            return apart if has_invalid else apart.limit(0)

        return self._write(output, file, hidden)

    def _has_invalid(self, file: PairFile) -> bool:
        return any(
            shard.first_row < file.first_row + file.rows
            and file.first_row < shard.first_row + (shard.rows or 0)
            for shard in self.measured.suspects
        )

    def _pairs(self, frame: pl.LazyFrame) -> pl.LazyFrame:
        return with_scores(self.measured.binding.prepare(frame), self.objective)

    def _pieces(self, file: PairFile, frame: pl.LazyFrame) -> Iterable[tuple[pl.LazyFrame, int]]:
        if self.objective.is_of_batches:
            return self.measured.scorer.scored_file(self.measured.dataset, file)
        return ((self._pairs(frame.slice(first, rows)), first) for first, rows in file.pieces())

    def _write(self, output: _Output, file: PairFile, hidden: str) -> int:
        import pyarrow.parquet as pq

        facts = run_facts(self.measured.binding, self.objective)
        frame = self.measured.dataset.scan([file])
        if file.is_wide or self.objective.is_of_batches:
            with reading(file.path):
                plans = (output(pairs, first) for pairs, first in self._pieces(file, frame))
                _sink_in_turn(plans, hidden, facts)
        else:
            with writing(hidden, file.path) as out:
                _sink(output(self._pairs(frame), 0), out, facts)
        with reading(hidden):
            return int(pq.read_metadata(hidden).num_rows)


def _sink(plan: pl.LazyFrame, out: BinaryIO, facts: Mapping[str, str]) -> None:
    # Polars cuts the pages of a nested column by how its rows came in: let it cut none.
    nested = any(dtype.is_nested() for dtype in plan.collect_schema().dtypes())
    plan.sink_parquet(
        out,
        metadata=dict(facts),
        compression_level=ZSTD_LEVEL,
        row_group_size=OUTPUT_ROWS_PER_GROUP,
        data_page_size=2**30 if nested else None,
        engine="streaming",
    )


def _sink_in_turn(plans: Iterable[pl.LazyFrame], hidden: str, facts: Mapping[str, str]) -> None:
    """Write the rows of several plans, reading the next one while one is written.

    A sink of Polars lets the reader run ahead of it by some thirty row groups, which with long
    rows is gigabytes; here there are two plans' rows in memory.
    """
    written: Future[None] | None = None
    with (
        GrowingFile(hidden, final_name(hidden), facts, rows_per_group=WIDE_ROWS_PER_GROUP) as file,
        ThreadPoolExecutor(max_workers=1) as thread,
    ):
        for plan in plans:
            rows = plan.collect(engine="streaming")
            if written is not None:
                written.result()
            written = thread.submit(file.append, rows)
        if written is not None:
            written.result()
