"""Writes the scored and the invalid pairs of one input file after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO, TypeAlias

import polars as pl

from dpo_pipeline.columns import BROKEN_RULES, SCORED, SOURCE_ROW
from dpo_pipeline.defaults import (
    OUTPUT_ROWS_PER_GROUP,
    SINK_CHUNK_BYTES,
    SINK_CHUNK_ROWS,
    WIDE_ROW_BYTES,
    WIDE_ROWS_PER_GROUP,
    ZSTD_LEVEL,
)
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
from dpo_pipeline.shard_scoring import ShardScorer
from dpo_pipeline.storage import PairFile

_Output: TypeAlias = Callable[[pl.LazyFrame, int], pl.LazyFrame]
"""Makes the output from scored pairs of a file, the first of which has this row number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairWriter:
    """Writes the outputs of a run; a file is one linear plan with one sink, or such plans in turn.

    Attributes:
        measured: What the reading before gave.
        objective: What is computed.
        scorer: What scored the shards.
        carried: Input columns that scored pairs keep.
        columns: Input columns that invalid pairs keep.
        watch: Is told of the rows.
    """

    measured: Measured
    objective: Objective
    scorer: ShardScorer
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

    def _write(self, output: _Output, file: PairFile, hidden: str) -> int:
        import pyarrow.parquet as pq

        facts = run_facts(self.measured.binding, self.objective)
        dataset = self.measured.dataset
        source = dataset.read_from if dataset.has_step else file.path
        if self.objective.is_of_batches:
            parts = self.scorer.scored_file(dataset, file)
            with reading(source):
                _sink_in_turn((output(part, first) for part, first in parts), hidden, facts)
        else:
            pairs = self.measured.binding.prepare(dataset.scan([file]))
            plan = output(with_scores(pairs, self.objective), 0)
            with writing(hidden, source) as out:
                _sink(plan, out, facts, row_bytes=file.row_bytes)
        with reading(hidden):
            return int(pq.read_metadata(hidden).num_rows)


def _sink(plan: pl.LazyFrame, out: BinaryIO, facts: Mapping[str, str], *, row_bytes: int) -> None:
    is_wide = row_bytes >= WIDE_ROW_BYTES
    chunk = max(SINK_CHUNK_BYTES // row_bytes, 1) if is_wide else SINK_CHUNK_ROWS
    # Polars cuts the pages of a nested column by how its rows came in: let it cut none.
    nested = any(dtype.is_nested() for dtype in plan.collect_schema().dtypes())
    # The reader runs ahead of the sink by a number of chunks, whatever their size.
    with pl.Config(streaming_chunk_size=chunk):
        plan.sink_parquet(
            out,
            metadata=dict(facts),
            compression_level=ZSTD_LEVEL,
            row_group_size=WIDE_ROWS_PER_GROUP if is_wide else OUTPUT_ROWS_PER_GROUP,
            data_page_size=2**30 if nested else None,
            engine="streaming",
        )


def _sink_in_turn(plans: Iterable[pl.LazyFrame], hidden: str, facts: Mapping[str, str]) -> None:
    """Write what several plans give to one file, each of them held in memory."""
    final = final_name(hidden)
    with GrowingFile(hidden, final, facts, rows_per_group=OUTPUT_ROWS_PER_GROUP) as file:
        for plan in plans:
            file.append(plan.collect(engine="streaming"))
