"""Writes rows of a dataset to several outputs in one reading, a file for each file of the input."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import polars as pl

from dpo_pipeline.defaults import (
    COUPLED_SHARD_BYTES,
    COUPLED_SHARD_ROWS,
    OUTPUT_ROWS_PER_GROUP,
    WIDE_ROW_BYTES,
    WIDE_ROWS_PER_GROUP,
)
from dpo_pipeline.engine import Watch
from dpo_pipeline.errors import StorageError
from dpo_pipeline.evaluation import Measurement
from dpo_pipeline.scoring import PartOutputs
from dpo_pipeline.selection.row_ranks import ROW, ByRow
from dpo_pipeline.sources import Part
from dpo_pipeline.storage import PART_KEY, GrowingFile, Out, Target, reading
from dpo_pipeline.tables import as_json


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectedOutput:
    """An output: its staged files, one a part, and its rows, with the columns that they get."""

    targets: Sequence[Target]
    rows: ByRow
    where: pl.Expr | None
    adds: Sequence[pl.Expr]
    n_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionWriter:
    """Writes all outputs of a selection."""

    measurement: Measurement
    parts: PartOutputs
    carried: Sequence[str]
    outputs: Sequence[SelectedOutput]
    facts: Mapping[str, str]
    watch: Watch

    def write(self) -> list[str]:
        """Write every part, and return the manifest of each output."""
        counts: list[dict[str, int]] = [{} for _ in self.outputs]
        for each in self.outputs:
            each.rows.rewind()
        for index, part in enumerate(self.parts.parts if self.outputs else ()):
            self._write_part(index, part, [], counts)
        for output, files in zip(self.outputs, counts, strict=True):
            if sum(files.values()) != output.n_rows:
                raise StorageError(self.measurement.dataset.name, "it changed while it was read")
        made = version("dpo_pipeline")
        return [as_json({"dpo_pipeline": made, "files": files}) for files in counts]

    def _write_part(
        self, index: int, part: Part, opened: list[GrowingFile], counts: list[dict[str, int]]
    ) -> None:
        """Open the file of each output in turn; with all of them open, copy the rows."""
        n = len(opened)
        if n == len(self.outputs):
            self._copy(part, opened)
            return
        facts = dict(self.facts)
        if self.parts.is_folder:
            facts[PART_KEY] = part.relative
        is_wide = part.file is None or part.file.row_bytes >= WIDE_ROW_BYTES
        group = WIDE_ROWS_PER_GROUP if is_wide else OUTPUT_ROWS_PER_GROUP

        def sink(out: Out) -> None:
            file = GrowingFile(
                out.path, out.name, facts, rows_per_group=group, filesystem=out.filesystem
            )
            with file:
                self._write_part(index, part, [*opened, file], counts)

        source = self.measurement.dataset.read_from
        counts[n][part.relative] = self.outputs[n].targets[index].write(sink, source)

    def _copy(self, part: Part, files: Sequence[GrowingFile]) -> None:
        for piece, first in self._pieces(part):
            stores = {id(each.rows): each.rows for each in self.outputs}
            taken = {key: rows.take(first, piece.height) for key, rows in stores.items()}
            for output, file in zip(self.outputs, files, strict=True):
                rows = taken[id(output.rows)]
                rows = rows if output.where is None else rows.filter(output.where)
                file.append(piece[rows[ROW] - first].hstack(rows.select(output.adds)))
            self.watch.step("writing", piece.height, self.measurement.dataset.rows)

    def _pieces(self, part: Part) -> Iterator[tuple[pl.DataFrame, int]]:
        """Yield the rows of a part in order, with the number of the first in the dataset."""
        dataset = self.measurement.dataset
        row_bytes = WIDE_ROW_BYTES if part.file is None else max(part.file.row_bytes, 1)
        most = max(min(COUPLED_SHARD_ROWS, COUPLED_SHARD_BYTES // row_bytes), 1)
        prepare, first = self.measurement.binding.prepare, part.first_row
        plans = [prepare(rows).select(self.carried) for rows, _ in dataset.runs(part)]
        with reading(dataset.read_from):
            yield plans[0].limit(0).collect(), first
            for plan in plans:
                for piece in plan.collect_batches(maintain_order=True, chunk_size=most):
                    yield piece, first
                    first += piece.height
