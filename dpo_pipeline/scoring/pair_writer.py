"""Writes the scored and the invalid pairs of the parts of a dataset."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import polars as pl

from dpo_pipeline.columns import ADDED_TO, BROKEN_RULES, SOURCE_ROW
from dpo_pipeline.contract import RuleSet, invalid_pairs, numbered
from dpo_pipeline.defaults import (
    OUTPUT_ROWS_PER_GROUP,
    SINK_CHUNK_BYTES,
    SINK_CHUNK_ROWS,
    WIDE_ROW_BYTES,
    WIDE_ROWS_PER_GROUP,
    ZSTD_LEVEL,
)
from dpo_pipeline.engine import Watch
from dpo_pipeline.evaluation import ShardScorer, ShardTask
from dpo_pipeline.losses import CheckedObjective, with_scores_of
from dpo_pipeline.sources import Dataset, Part, lazily
from dpo_pipeline.storage import PART_KEY, GrowingFile, Out, Target, reading
from dpo_pipeline.unpaired import scored_prompts

_POLARS_NAME: Final[Mapping[str, Literal["zstd", "snappy", "uncompressed"]]] = {
    "zstd": "zstd",
    "snappy": "snappy",
    "none": "uncompressed",
}
_Output: TypeAlias = Callable[[pl.LazyFrame, int], pl.LazyFrame]
"""From scored pairs and the row of the first of them in its file to the output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartTask:
    """A part to be written; `has_invalid` says whether there may be invalid pairs in it.

    `listed_as` is its path below the output folder, and None for an output of one file.
    """

    index: int
    part: Part
    target: Target
    has_invalid: bool
    listed_as: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PairWriter:
    """Writes the outputs of a run: each file by one plan with one sink, or by plans in turn.

    `names` are the input columns that are kept, `n_valid` the valid pairs of the whole dataset,
    and `facts` and `compression` the metadata and the codec of the files.
    """

    dataset: Dataset
    rules: RuleSet
    objective: CheckedObjective
    scorer: ShardScorer
    names: Sequence[str]
    watch: Watch
    n_valid: int
    facts: Mapping[str, str]
    compression: str

    def scored(self, task: PartTask) -> Iterator[int]:
        """Write the valid pairs with their scores; yield how many."""

        def output(pairs: pl.LazyFrame, _first_row: int) -> pl.LazyFrame:
            valid = pairs.filter(self.rules.valid) if task.has_invalid else pairs
            scored = valid.select(
                *self.names, *(each.name for each in ADDED_TO[self.objective.row])
            )
            return self.watch.on_rows(scored, "writing", self.n_valid)

        yield self._write(output, task, self._pieces(task.part))

    def invalid(self, task: PartTask) -> Iterator[int]:
        """Write the invalid pairs with their rows and broken rules; yield how many."""

        def output(pairs: pl.LazyFrame, first_row: int) -> pl.LazyFrame:
            apart = invalid_pairs(numbered(pairs, first_row), self.rules)
            apart = apart.select(*self.names, SOURCE_ROW, BROKEN_RULES)
            return apart if task.has_invalid else apart.limit(0)

        # Which rows are invalid does not depend on the other completions of a prompt.
        pieces = None if self.objective.is_listwise else self._pieces(task.part)
        yield self._write(output, task, pieces)

    def _pieces(self, part: Part) -> Iterator[tuple[pl.LazyFrame, int]] | None:
        """Return the scored rows of a part in pieces, whose rows depend on each other.

        None if each row stands alone.
        """
        if self.objective.is_listwise:
            prompts = scored_prompts(self.dataset, self.scorer.binding, self.objective, self.watch)
            return ((rows.lazy(), 0) for rows in prompts)
        return self.scorer.scored_part(self.dataset, part) if self.scorer.is_coupled else None

    def _write(
        self,
        output: _Output,
        task: PartTask,
        pieces: Iterator[tuple[pl.LazyFrame, int]] | None,
    ) -> int:
        part = task.part
        is_file = part.file is not None and not self.dataset.has_step
        source = part.file.path if part.file is not None and is_file else self.dataset.read_from
        facts = dict(self.facts)
        if task.listed_as is not None:
            facts[PART_KEY] = task.listed_as

        def sink(out: Out) -> None:
            if pieces is not None:
                file = GrowingFile(
                    out.path,
                    out.name,
                    facts,
                    rows_per_group=OUTPUT_ROWS_PER_GROUP,
                    filesystem=out.filesystem,
                    compression=self.compression,
                )
                # The rows of one plan are in memory at a time.
                with reading(source), file:
                    for piece, first in pieces:
                        file.append(output(piece, first).collect(engine="streaming"))
            else:
                prepare, objectives = self.scorer.binding.prepare, self.scorer.objectives
                plans = [
                    output(with_scores_of(prepare(rows), objectives), first)
                    for rows, first in self.dataset.runs(part)
                ]
                # Rows that come from no Parquet file may be wide.
                row_bytes = WIDE_ROW_BYTES if part.file is None else part.file.row_bytes
                _sink(plans, out, facts, row_bytes=row_bytes, compression=self.compression)

        return task.target.write(sink, source)


def part_tasks(
    parts: Sequence[Part],
    targets: Sequence[Target],
    suspects: Sequence[ShardTask],
    *,
    is_folder: bool,
) -> list[PartTask]:
    """Return the tasks of writing; `suspects` are the shards that hold invalid pairs."""
    return [
        PartTask(
            index=index,
            part=part,
            target=target,
            listed_as=part.relative if is_folder else None,
            has_invalid=any(
                part.rows is None
                or (
                    shard.first_row < part.first_row + part.rows
                    and part.first_row < shard.first_row + (shard.rows or 0)
                )
                for shard in suspects
            ),
        )
        for index, (part, target) in enumerate(zip(parts, targets, strict=True))
    ]


def _sink(
    plans: Sequence[pl.LazyFrame],
    out: Out,
    facts: dict[str, str],
    *,
    row_bytes: int,
    compression: str,
) -> None:
    """Write what plans give one after the other."""
    is_wide = row_bytes >= WIDE_ROW_BYTES
    chunk = max(SINK_CHUNK_BYTES // row_bytes, 1) if is_wide else SINK_CHUNK_ROWS

    def parts(names: list[str], _n_rows: int | None) -> Iterator[pl.DataFrame]:
        for each in plans:
            yield from each.select(names).collect_batches(maintain_order=True, chunk_size=chunk)

    schema = plans[0].collect_schema()
    plan = plans[0] if len(plans) == 1 else lazily(schema, parts)
    # Polars cuts pages of nested columns by its input chunks: let it cut none.
    nested = any(dtype.is_nested() for dtype in schema.dtypes())
    # The reader runs ahead of the sink by a number of chunks, whatever their size.
    with pl.Config(streaming_chunk_size=chunk):
        plan.sink_parquet(
            out.target,
            metadata=facts,
            compression=_POLARS_NAME[compression],
            compression_level=ZSTD_LEVEL if compression == "zstd" else None,
            row_group_size=WIDE_ROWS_PER_GROUP if is_wide else OUTPUT_ROWS_PER_GROUP,
            data_page_size=2**30 if nested else None,
            engine="streaming",
            **out.options,
        )
