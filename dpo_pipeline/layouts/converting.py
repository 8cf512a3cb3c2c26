"""`convert`: rows of any format as Parquet under the contract's names, paired if asked."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from dpo_pipeline.arguments import given
from dpo_pipeline.columns import PAIR_ID, POLICY, REF, ROLES, TOKENS_OF, Resolution, resolve
from dpo_pipeline.defaults import (
    OUTPUT_ROWS_PER_GROUP,
    SINK_CHUNK_ROWS,
    WIDE_ROW_BYTES,
    WIDE_ROWS_PER_GROUP,
    ZSTD_LEVEL,
)
from dpo_pipeline.engine import Watch
from dpo_pipeline.errors import ColumnError, UsageError
from dpo_pipeline.layouts.opening import columns_of, open_rows
from dpo_pipeline.options import Execution, Outputs, Pairs
from dpo_pipeline.plan import Facts, Input, Output, Plan, own_version, planned
from dpo_pipeline.sources import Dataset, checked_parquet_name, format_of, lazily, publication_of
from dpo_pipeline.storage import METADATA_KEY, Access, reading, writing

_OF_COMPLETIONS = (POLICY, REF, *(TOKENS_OF[role.name] for role in (POLICY, REF)))


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ConvertPlan(Plan[int]):
    """What `convert` does."""

    dataset: Dataset
    format: str
    sink: str | os.PathLike[str]
    columns: Mapping[str, str]  # role to the column that was found for it
    made: Outputs
    execution: Execution
    options: Mapping[str, Any]  # the groups of options, under the parameters of the call
    outputs: tuple[Output, ...]

    @property
    def facts(self) -> Facts:
        """What the plan tells of itself."""
        files = tuple(Input(path=each.path, rows=each.rows) for each in self.dataset.files)
        return Facts(
            function="convert",
            call="convert",
            source=self.dataset.name,
            notes=self.dataset.told,
            inputs=files or (Input(path=self.dataset.name, rows=None),),
            rows=self.dataset.rows,
            columns=self.columns,
            options=self.options,
            outputs=self.outputs,
        )

    def run(self) -> int:
        """Write the rows, and return how many."""
        import pyarrow.parquet as pq

        name = self.dataset.name
        watch = Watch(callback=self.execution.progress, cancel=self.execution.cancel)
        named = {column: role for role, column in self.columns.items()}
        rows = self.dataset.frame.rename(named)
        if self.dataset.files:

            def parts(names: list[str], _n_rows: int | None) -> Iterator[pl.DataFrame]:
                is_wide = self.dataset.row_bytes >= WIDE_ROW_BYTES
                size = WIDE_ROWS_PER_GROUP if is_wide else SINK_CHUNK_ROWS
                return self.dataset.batches(lambda read: read.rename(named).select(names), size)

            rows = lazily(rows.collect_schema(), parts)
        plan = watch.on_rows(rows, "writing", None)
        facts = {
            "version": own_version(),
            "format": self.format,
            "columns": dict(self.columns),
        }
        with publication_of(self.made, Access.of(self.execution), self.dataset) as publication:
            hidden = publication.stage(self.sink)
            # Rows may be long, and the reader runs ahead of the sink by a number of chunks.
            with writing(hidden, name) as out, pl.Config(streaming_chunk_size=WIDE_ROWS_PER_GROUP):
                plan.sink_parquet(
                    out,
                    metadata={METADATA_KEY: json.dumps(facts, sort_keys=True)},
                    compression_level=ZSTD_LEVEL,
                    row_group_size=OUTPUT_ROWS_PER_GROUP,
                    engine="streaming",
                )
            with reading(hidden):
                count = int(pq.read_metadata(hidden).num_rows)
            publication.commit(watch.check)
        self.dataset.warn(stacklevel=4)
        return count


@planned
def convert(
    pairs: Any,
    sink: str | os.PathLike[str],
    format: str | None = None,  # noqa: A002  as in Pairs
    *,
    outputs: Any = None,
    execution: Any = None,
) -> Plan[int]:
    r"""Write pairs that are in one of `FORMATS` as Parquet, under the contract's names.

    The file appears whole or not at all. It must hold both log-probs of the policy, or both of the
    reference, or all four; their values are not checked. Completions, one a row, are written as
    such, or as the pairs that `Pairs(pairing=...)` makes of them.

    Args:
        pairs: `Pairs`, or their source.
        sink: The Parquet file to write.
        format: Their format, if the ending of the name does not tell it.
        outputs: `Outputs` with `overwrite`.
        execution: `Execution`, without an engine.

    Returns:
        The number of rows.

    Raises:
        UsageError, ColumnError: As `read`, or log-probs are missing.
        StorageError: A file cannot be read or written, or the sink exists.
        Cancelled: The run was stopped.

    Examples:
        >>> import dpo_pipeline, os, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     source = os.path.join(folder, "pairs.csv")
        ...     with open(source, "w") as file:
        ...         print("policy_chosen_logps,policy_rejected_logps", "-1,-2", sep="\n", file=file)
        ...     dpo_pipeline.convert(source, os.path.join(folder, "pairs.parquet"))
        1
    """
    source = given(Pairs, pairs if isinstance(pairs, Pairs) else Pairs(pairs), format=format)
    if not isinstance(sink, (str, os.PathLike)):
        raise UsageError(f"sink must be a path, found {type(sink).__name__}")
    checked_parquet_name(sink)
    made, run = given(Outputs, outputs), given(Execution, execution)
    access = Access.of(run)
    dataset = open_rows(
        source, row=None, access=access, keys=[PAIR_ID.name], as_reference=None, cancel=run.cancel
    )
    dataset.refuse_unread("convert carries all columns: leave them out before")
    with reading(dataset.name):
        names = dataset.frame.collect_schema().names()
    mapping = _useful_mapping(
        dataset.name, names, resolve(names, columns_of(dataset, source.columns))
    )
    return ConvertPlan(
        dataset=dataset,
        format=format_of(source),
        sink=sink,
        columns=mapping,
        made=made,
        execution=run,
        options={"pairs": source, "outputs": made, "execution": run},
        outputs=(publication_of(made, access, dataset).check(sink),),
    )


def _useful_mapping(source: str, names: list[str], found: Resolution) -> dict[str, str]:
    """Return the roles that were found, if they are of use."""
    sides = {
        model: [
            any(
                role.startswith(f"{model}_{side}") and ROLES[role].kind in ("logp", "tokens")
                for role in found.mapping
            )
            for side in ("chosen", "rejected")
        ]
        for model in ("policy", "ref")
    }
    problems = list(found.problems)
    is_of_completions = any(role.name in found.mapping for role in _OF_COMPLETIONS)
    if is_of_completions or (
        any(map(all, sides.values())) and all(a == b for a, b in sides.values())
    ):
        problems = [
            f"{column}: the input has this column already, and {name!r} would get its name"
            for column, name in found.mapping.items()
            if column in names and column != name and column not in found.mapping.values()
        ]
    if problems:
        raise ColumnError(source, tuple(problems))
    return dict(found.mapping)
