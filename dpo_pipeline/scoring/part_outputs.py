"""The output files of `score_parquet`, and their writing by an executor."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Self

from dpo_pipeline.engine import Executor, Function, Watch, in_order
from dpo_pipeline.errors import StorageError, UsageError
from dpo_pipeline.evaluation import Measured
from dpo_pipeline.scoring.pair_writer import part_tasks
from dpo_pipeline.sources import Dataset, Part
from dpo_pipeline.storage import Outputs as Publication, Target, without_attempts
from dpo_pipeline.tables import as_json


@dataclass(frozen=True, slots=True, kw_only=True)
class PartOutputs:
    """The files of an output: one for each part of the input; `is_folder` if in a folder."""

    dataset: Dataset
    parts: Sequence[Part]
    is_folder: bool
    executor: Executor

    @classmethod
    def of(cls, dataset: Dataset, part_rows: int | None, executor: Executor) -> Self:
        """Cut the files of a dataset into parts of at most `part_rows` rows."""
        whole = isinstance(part_rows, int) and not isinstance(part_rows, bool)
        if part_rows is not None and not (whole and part_rows >= 1):
            raise UsageError(f"part_rows must be a whole number, at least 1, found {part_rows!r}")
        if part_rows is not None and not dataset.files:
            raise UsageError(
                f"part_rows cuts Parquet between row groups, and {dataset.name} is none: write it "
                "as Parquet first (dpo-pipeline convert)"
            )
        is_folder = dataset.is_folder or part_rows is not None
        if executor.elsewhere and not is_folder:
            raise UsageError(
                "one output file has one writer: give part_rows (--part-rows) to cut the input "
                "into parts, whose output is a folder, or leave the engine out"
            )
        parts = dataset.parts(part_rows)
        return cls(dataset=dataset, parts=parts, is_folder=is_folder, executor=executor)

    @property
    def relatives(self) -> list[str] | None:
        """The paths of the parts below the output; None if the output is one file."""
        return [part.relative for part in self.parts] if self.is_folder else None

    def staged(self, publication: Publication, target: str | os.PathLike[str]) -> Sequence[Target]:
        """Return the staged files of the parts, which become `target`."""
        apart = self.executor.elsewhere and self.is_folder
        return publication.stage_parts(target, self.relatives, apart=apart)

    def write(
        self,
        function: Function,
        targets: Sequence[Target],
        measured: Measured,
        watch: Watch,
        *,
        total: int,
        is_told: bool,
    ) -> str:
        """Write all parts and return their manifest: rows by file, and the summary."""
        counts: dict[str, int] = {}
        tasks = part_tasks(self.parts, targets, measured.suspects, is_folder=self.is_folder)
        with without_attempts(targets):
            for task, results in in_order(self.executor, function, tasks, watch.check):
                rows = sum(results)
                if self.executor.elsewhere:
                    task.target.check(rows)
                    if is_told:
                        watch.step("writing", rows, total)
                counts[task.part.relative] = rows
        if sum(counts.values()) != total:
            raise StorageError(self.dataset.name, "it changed while it was read")
        # A listwise loss has no sums by row, and its output is one file, without a manifest.
        has_sums = bool(measured.scorer.objectives)
        figures = measured.figures(measured.totals).row(0, named=True) if has_sums else {}
        return as_json(
            {"dpo_pipeline": version("dpo_pipeline"), "files": counts, "summary": figures}
        )
