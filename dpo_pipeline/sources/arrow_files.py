"""What is read through pyarrow: Arrow IPC, and Parquet with columns that Polars does not read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from dpo_pipeline.errors import StorageError
from dpo_pipeline.sources.common_schema import unreadable
from dpo_pipeline.sources.files import (
    ARROW_FILE,
    ARROW_STREAM,
    Identities,
    Rows,
    SourcePath,
    files_of,
    kind_of,
    lazily,
    readable_schema,
    reading_as,
)
from dpo_pipeline.sources.formats import FORMATS, IPC
from dpo_pipeline.storage import Access, is_address, reading


def ipc(source: SourcePath, columns: Mapping[str, str] | None = None) -> Rows:  # noqa: ARG001
    """Return the rows of Arrow IPC files or streams."""
    files = files_of(source, FORMATS[IPC].endings)
    kinds = {path: kind_of(path) for path in files}
    for path, kind in kinds.items():
        if kind not in (ARROW_FILE, ARROW_STREAM):
            raise StorageError(path, f"is {kind}, not Arrow IPC" if kind else "is not Arrow IPC")
    batched = in_batches(files)
    if set(kinds.values()) == {ARROW_STREAM} or batched.unread:
        return batched
    with reading_as(next(iter(files)), "an Arrow IPC file"):
        frame = pl.scan_ipc(list(files), glob=False)
        frame.collect_schema()
    return Rows(frame=frame, files=files)


def in_batches(files: Identities) -> Rows:
    """Return the rows of Arrow IPC, mapped into memory and read batch by batch."""
    schemas = {}
    unread: dict[str, str] = {}
    for path in files:
        arrow = next(_batches(path))
        unread |= unreadable(arrow)
        with reading_as(path, "Arrow IPC"):
            schemas[path] = readable_schema(arrow, unread)
    first, schema = next(iter(schemas.items()))
    odd = next((path for path, other in schemas.items() if other != schema), None)
    if odd is not None:
        raise StorageError(odd, f"has other columns or types than {first}")

    def frames(path: str, names: list[str]) -> Iterator[pl.DataFrame]:
        batches = _batches(path)
        next(batches)
        return (pl.DataFrame(batch.select(names)) for batch in batches)

    return Rows(frame=_from_files(list(files), schema, frames), files=files, unread=unread)


def _batches(path: str) -> Iterator[Any]:
    """Yield the schema of a file or a stream, and its batches."""
    import pyarrow as pa

    kind = kind_of(path) or "Arrow IPC"
    with reading_as(path, kind), pa.memory_map(path) as mapped:
        if kind == ARROW_FILE:
            file = pa.ipc.open_file(mapped)
            yield file.schema
            yield from map(file.get_batch, range(file.num_record_batches))
        else:
            with pa.ipc.open_stream(mapped) as stream:
                yield stream.schema
                yield from stream


def parquet_in_batches(
    paths: Sequence[str], *, schema: pl.Schema, hive: Collection[str], access: Access
) -> pl.LazyFrame:
    """Return rows of Parquet under a schema, of which Polars reads all types.

    Columns that a file lacks have the value in its folder's name if they are `hive`, else null.
    """

    def frames(path: str, names: list[str]) -> Iterator[pl.DataFrame]:
        import pyarrow.parquet as pq

        folders = dict(p.split("=", 1) for p in Path(path).parts if p.partition("=")[0] in hive)
        system, name = access.filesystem(path) if is_address(path) else (None, path)
        with reading(path), pq.ParquetFile(name, filesystem=system, pre_buffer=False) as file:
            there = file.schema_arrow.names
            own = [each for each in names if each in there]
            one = own or [next(each for each in there if each in schema)]
            lacking = {n: pl.lit(folders.get(n)).cast(schema[n]) for n in names if n not in there}
            for batch in file.iter_batches(columns=one):
                rows = pl.DataFrame(batch.select(one)).with_columns(**lacking)
                yield rows.select(pl.col(each).cast(schema[each]) for each in names)

    return _from_files(paths, schema, frames)


def _from_files(
    paths: Sequence[str],
    schema: pl.Schema,
    frames: Callable[[str, list[str]], Iterator[pl.DataFrame]],
) -> pl.LazyFrame:
    def parts(names: list[str], n_rows: int | None) -> Iterator[pl.DataFrame]:
        left = n_rows
        for path in paths:
            for rows in frames(path, names):
                yield rows if left is None else rows.head(left)
                if left is not None:
                    left -= rows.height
                    if left <= 0:
                        return

    return lazily(schema, parts)
