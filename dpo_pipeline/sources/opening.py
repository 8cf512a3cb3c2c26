"""`read`: pairs in any known format as a LazyFrame; `convert`: the same as Parquet."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from threading import Event
from types import MappingProxyType
from typing import Any, Final, Protocol, TypeAlias, cast, runtime_checkable

import polars as pl

from dpo_pipeline.columns import ROLES, Resolution, did_you_mean, resolve
from dpo_pipeline.defaults import OUTPUT_ROWS_PER_GROUP, WIDE_ROWS_PER_GROUP, ZSTD_LEVEL
from dpo_pipeline.engine import ProgressCallback, Watch
from dpo_pipeline.errors import ColumnError, UsageError
from dpo_pipeline.sources import arrow_files, text_files, trainer_files, vllm_lines
from dpo_pipeline.sources.dataset import Dataset, open_dataset
from dpo_pipeline.sources.files import Rows, SourcePath
from dpo_pipeline.sources.formats import (
    CSV,
    FORMATS,
    IPC,
    NDJSON,
    OPEN_INSTRUCT,
    OPEN_INSTRUCT_AVERAGED,
    PARQUET,
    REWARDBENCH,
    TRL,
    VLLM,
    checked_parquet_name,
    guess,
)
from dpo_pipeline.storage import (
    LOCAL,
    METADATA_KEY,
    Access,
    Outputs,
    reading,
    writing,
)

Reader: TypeAlias = Callable[[SourcePath, Mapping[str, str] | None], Rows]
"""From files, and from role to column where names do not say it, to rows."""


READERS: Final[Mapping[str, Reader]] = MappingProxyType(
    {
        NDJSON: text_files.ndjson,
        CSV: text_files.csv,
        IPC: arrow_files.ipc,
        TRL: trainer_files.trl,
        REWARDBENCH: trainer_files.rewardbench,
        OPEN_INSTRUCT: trainer_files.open_instruct,
        OPEN_INSTRUCT_AVERAGED: partial(trainer_files.open_instruct, averaged=True),
        VLLM: vllm_lines.vllm,
    }
)
"""The reader of each format of `FORMATS` but Parquet."""


def read(
    source: SourcePath,
    format_name: str | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    as_reference: bool = False,
    as_text: Collection[str] = (),
) -> pl.LazyFrame:
    """Return pairs in one of `FORMATS`, for `evaluate`, `check`, `sweep`, `score`, `reference=`.

    Args:
        source: Where they are.
        format_name: The name of the format; None for what the ending of the path tells.
        columns: Role to column, where names and aliases do not say it; names are kept.
        as_reference: Whether log-probs that the format ascribes to no model are the reference's.
        as_text: Columns beside `pair_id` and `prompt_id` that are text in CSV, whatever they look
            like: 7 and 07 are two.

    Raises:
        UsageError: There is no such format, or it needs what is not installed.
        ColumnError: The columns are not those of the format.
        StorageError: A file cannot be read, or is in another format.
    """
    return dataset_of(
        source, format_name, columns=columns, as_reference=as_reference, as_text=as_text
    ).frame


def dataset_of(
    source: SourcePath,
    format_name: str | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    as_reference: bool = False,
    as_text: Collection[str] = (),
    access: Access = LOCAL,
) -> Dataset:
    """As `read`, as a dataset that knows its files; `access` says how object stores are reached."""
    name = _format_of(source, format_name)
    if name == PARQUET:
        return open_dataset(source, columns, access)
    if name == VLLM and as_reference:
        rows = vllm_lines.vllm(source, model="ref")
    elif name == CSV:
        rows = text_files.csv(source, columns, as_text=as_text)
    else:
        rows = READERS[name](source, columns)
    return Dataset(name=label_of(source), frame=rows.frame, others=rows.files)


def opened(
    source: SourcePath,
    format_name: str | None = None,
    *,
    columns: Mapping[str, str] | None,
    on: str,
    as_reference: bool = False,
    cancel: Event | None = None,
    access: Access = LOCAL,
) -> Dataset:
    """As `dataset_of`, for pairs that are to be evaluated, or their reference.

    Raises an error if pairs hold the reference's log-probs alone. In CSV the column `on`, by which
    rows are joined, is text whatever it looks like. Rows that are not Parquet are one shard, whose
    reading stops once `cancel` is set.
    """
    name = _format_of(source, format_name)
    if FORMATS[name].reference_only and not as_reference:
        raise _reference_alone(source, name)
    dataset = dataset_of(
        source, name, columns=columns, as_reference=as_reference, as_text=(on,), access=access
    )
    if name == PARQUET:
        return dataset
    if name == TRL and not as_reference and not _has_policy(dataset.frame, columns):
        raise _reference_alone(source, name)
    watch = Watch(cancel=cancel)

    def look(part: pl.DataFrame) -> pl.DataFrame:
        watch.check()
        return part

    # Columns that nobody asks for are still not read.
    watched = dataset.frame.map_batches(look, streamable=True, projection_pushdown=True)
    return replace(dataset, frame=watched)


def _format_of(source: SourcePath, format_name: str | None) -> str:
    return known_format(guess(source) if format_name is None else format_name)


def _has_policy(rows: pl.LazyFrame, columns: Mapping[str, str] | None) -> bool:
    found = resolve(rows.collect_schema().names(), columns).mapping
    return any(role.startswith("policy_") for role in found)


def _reference_alone(source: SourcePath, name: str) -> UsageError:
    label = label_of(source)
    return UsageError(
        f"{label}: {name} has the reference's log-probs alone: give it as reference of the "
        f"policy's (--reference {label} --reference-format {name})"
    )


def label_of(source: SourcePath) -> str:
    """Return what reports call a source."""
    return os.fspath(source) if isinstance(source, (str, os.PathLike)) else "the inputs"


def convert(
    source: SourcePath,
    sink: str | os.PathLike[str],
    format_name: str | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    overwrite: bool = False,
    progress: ProgressCallback | None = None,
    cancel: Event | None = None,
) -> int:
    """Write pairs that are in one of `FORMATS` as Parquet, under the contract's names.

    The file appears whole or not at all. It must hold both log-probs of the policy, or both of the
    reference, or all four; their values are not checked.

    Args:
        source: Where they are.
        sink: The Parquet file to write.
        format_name: As in `read`.
        columns: Role to column, where names and aliases do not say it.
        overwrite: Replace `sink` if it exists.
        progress: Called with a `Progress` now and then, maybe from another thread.
        cancel: Set it to stop the run.

    Returns:
        The number of rows.

    Raises:
        UsageError, ColumnError: As `read`, or log-probs are missing.
        StorageError: A file cannot be read or written, or the sink exists.
        Cancelled: `cancel` was set.
    """
    if not isinstance(sink, (str, os.PathLike)):
        raise UsageError(f"sink must be a path, found {type(sink).__name__}")
    checked_parquet_name(sink)
    import pyarrow.parquet as pq

    name = _format_of(source, format_name)
    label = label_of(source)
    dataset = dataset_of(source, name, columns=columns)
    with reading(label):
        names = dataset.frame.collect_schema().names()
    mapping = useful_mapping(label, names, resolve(names, columns))
    watch = Watch(callback=progress, cancel=cancel)
    renamed = dataset.frame.rename({c: role for role, c in mapping.items()})
    plan = watch.on_rows(renamed, "writing", None)
    facts = {"version": version("dpo_pipeline"), "format": name, "columns": mapping}
    with Outputs(overwrite=overwrite, inputs=dataset.inputs) as publication:
        hidden = publication.stage(sink)
        # Rows may be long, and the reader runs ahead of the sink by a number of chunks.
        with writing(hidden, label) as out, pl.Config(streaming_chunk_size=WIDE_ROWS_PER_GROUP):
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
    return count


def known_format(name: str) -> str:
    """Return the name of a format.

    Raises:
        UsageError: There is none of this name.
    """
    if name not in FORMATS:
        raise UsageError(
            f"no format is named {name!r}{did_you_mean(name, FORMATS)}; "
            f"there are {', '.join(FORMATS)}"
        )
    return name


def useful_mapping(source: str, names: list[str], found: Resolution) -> dict[str, str]:
    """Return the roles that were found, if they are of use.

    Raises:
        ColumnError: They are not both log-probs of a model, or something is in the way.
    """
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
    if any(map(all, sides.values())) and all(a == b for a, b in sides.values()):
        problems = [
            f"{column}: the input has this column already, and {name!r} would get its name"
            for column, name in found.mapping.items()
            if column in names and column != name and column not in found.mapping.values()
        ]
    if problems:
        raise ColumnError(source, tuple(problems))
    return dict(found.mapping)


@runtime_checkable
class ArrowStream(Protocol):
    """Anything that exports an Arrow stream through the PyCapsule interface."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...


FrameLike: TypeAlias = pl.LazyFrame | pl.DataFrame | ArrowStream | Any
"""A Polars frame, a pyarrow Table, a pandas DataFrame, a Hugging Face Dataset, ..."""


def as_lazy(pairs: FrameLike) -> pl.LazyFrame:
    """Return any dataframe as a LazyFrame; a one-shot stream is read into memory once.

    Raises:
        UsageError: It is not a dataframe.
    """
    if isinstance(pairs, pl.LazyFrame):
        return pairs
    if isinstance(pairs, pl.DataFrame):
        return pairs.lazy()
    try:
        if hasattr(pairs, "__arrow_c_stream__"):
            return pl.DataFrame(pairs).lazy()
        if hasattr(pairs, "to_polars"):  # datasets.Dataset has no Arrow stream of its own
            return as_lazy(pairs.to_polars())
        if isinstance(pairs, Mapping):
            return pl.LazyFrame(pairs)
    except (TypeError, ValueError, pl.exceptions.PolarsError) as error:
        raise UsageError(f"pairs cannot be read as a dataframe: {error}") from error
    raise UsageError(
        f"pairs must be a dataframe (Polars, pyarrow, pandas, datasets.Dataset, or anything with "
        f"__arrow_c_stream__) or, for evaluate and check, the path of Parquet files; found "
        f"{type(pairs).__name__}"
    )


def as_dataset(
    pairs: FrameLike | SourcePath | Dataset,
    columns: Mapping[str, str] | None,
    *,
    on: str,
    name: str = "pairs",
    access: Access,
) -> Dataset:
    """Return what a call was given as a dataset; a dataset is passed on.

    `name` is what reports call a dataframe; the other arguments are those of `opened`.
    """
    if isinstance(pairs, Dataset):
        return pairs
    is_list = isinstance(pairs, Sequence) and all(isinstance(p, (str, os.PathLike)) for p in pairs)
    if isinstance(pairs, (str, os.PathLike)) or is_list:
        return opened(cast("SourcePath", pairs), columns=columns, on=on, access=access)
    return Dataset(name=name, frame=as_lazy(pairs))
