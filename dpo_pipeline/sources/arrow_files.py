"""Reader of Arrow IPC: files (Feather version 2), and streams as `datasets` writes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import polars as pl

from dpo_pipeline.errors import StorageError
from dpo_pipeline.sources.files import (
    ARROW_FILE,
    ARROW_STREAM,
    Rows,
    SourcePath,
    files_of,
    kind_of,
    lazily,
    reading_as,
)
from dpo_pipeline.sources.formats import FORMATS, IPC


def ipc(source: SourcePath, columns: Mapping[str, str] | None = None) -> Rows:  # noqa: ARG001
    """Return the rows of Arrow IPC files or streams."""
    files = files_of(source, FORMATS[IPC].endings)
    kinds = {path: kind_of(path) for path in files}
    for path, kind in kinds.items():
        if kind not in (ARROW_FILE, ARROW_STREAM):
            raise StorageError(path, f"is {kind}, not Arrow IPC" if kind else "is not Arrow IPC")
    if set(kinds.values()) == {ARROW_STREAM}:
        return Rows(frame=streams(files), files=files)
    with reading_as(next(iter(files)), "an Arrow IPC file"):
        frame = pl.scan_ipc(list(files), glob=False)
        frame.collect_schema()
    return Rows(frame=frame, files=files)


def streams(paths: Iterable[str]) -> pl.LazyFrame:
    """Return the rows of Arrow IPC streams, mapped into memory and read batch by batch."""
    import pyarrow as pa

    def batches(path: str) -> Iterator[Any]:
        with (
            reading_as(path, "an Arrow IPC stream"),
            pa.memory_map(path) as mapped,
            pa.ipc.open_stream(mapped) as stream,
        ):
            yield stream.schema.empty_table()
            yield from stream

    schemas = {path: pl.DataFrame(next(batches(path))).schema for path in paths}
    first, schema = next(iter(schemas.items()))
    odd = next((path for path, other in schemas.items() if other != schema), None)
    if odd is not None:
        raise StorageError(odd, f"has other columns or types than {first}")

    def parts(names: list[str], n_rows: int | None) -> Iterator[pl.DataFrame]:
        left = n_rows
        for path in schemas:
            for batch in batches(path):
                rows = pl.DataFrame(batch.select(names))
                if left is not None:
                    rows = rows.head(left)
                    left -= rows.height
                yield rows
                if left == 0:
                    return

    return lazily(schema, parts)
