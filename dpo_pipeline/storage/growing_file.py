"""A Parquet file that grows by appending, in row groups of one fixed size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import polars as pl

from dpo_pipeline.defaults import ZSTD_LEVEL
from dpo_pipeline.storage.read_errors import reading

if TYPE_CHECKING:
    import pyarrow.parquet as pq


class GrowingFile:
    """Appends frames of one schema to a Parquet file; its bytes do not tell how they were cut.

    It is written to `hidden`, on this machine or on a pyarrow file system, and errors call it
    `final`. `rows_per_group` rows wait in memory.
    """

    def __init__(
        self,
        hidden: str,
        final: str,
        metadata: Mapping[str, str],
        *,
        rows_per_group: int,
        filesystem: Any = None,
        compression: str = "zstd",
    ) -> None:
        self._filesystem = filesystem
        self._compression = compression
        self._hidden = hidden
        self._final = final
        self._metadata = dict(metadata)
        self._rows_per_group = rows_per_group
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[pl.DataFrame] = []
        self._n_waiting = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None and self._waiting:
            self._write(keep_rest=False)
        writer, self._writer = self._writer, None
        if writer is not None:
            with reading(self._final):
                writer.close()

    def append(self, rows: pl.DataFrame) -> None:
        """Append rows, at least once, if only a frame of none."""
        self._waiting.append(rows)
        self._n_waiting += rows.height
        if self._n_waiting >= self._rows_per_group:
            self._write(keep_rest=True)

    def _write(self, *, keep_rest: bool) -> None:
        import pyarrow.parquet as pq

        # Pages end where chunks do, so the rows have to be in one.
        rows = pl.concat(self._waiting, rechunk=True)
        whole = rows.height - rows.height % self._rows_per_group if keep_rest else rows.height
        table = rows.head(whole).to_arrow().replace_schema_metadata(self._metadata)
        with reading(self._final):
            if self._writer is None:
                self._writer = pq.ParquetWriter(
                    self._hidden,
                    table.schema,
                    filesystem=self._filesystem,
                    compression=self._compression,
                    compression_level=ZSTD_LEVEL if self._compression == "zstd" else None,
                    # Trying a dictionary on floats doubles the time and finds none.
                    use_dictionary=[n for n, t in rows.schema.items() if not t.is_numeric()],
                )
            self._writer.write_table(table, row_group_size=self._rows_per_group)
        self._waiting = [rows.tail(rows.height - whole)]
        self._n_waiting = rows.height - whole
