"""Files that are not Parquet: which there are, what they hold; and the reader of Arrow IPC."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import polars as pl

from dpo_pipeline.errors import StorageError
from dpo_pipeline.sources.files import HIDDEN, SourcePath
from dpo_pipeline.sources.formats import FORMATS, IPC
from dpo_pipeline.storage import reading

_FILE: Final = b"ARROW1"
_STREAM: Final = b"\xff\xff\xff\xff"
_BINARY: Final = {
    b"PAR1": "Parquet",
    _FILE: "an Arrow IPC file",
    _STREAM: "an Arrow IPC stream",
    b"FEA1": "Feather version 1",
    b"PK\x03\x04": "a zip file, as torch writes",
}


def ipc(source: SourcePath, columns: Mapping[str, str] | None = None) -> pl.LazyFrame:  # noqa: ARG001
    """Return the rows of Arrow IPC: files (Feather version 2), or streams as `datasets` writes."""
    paths = files_of(source, FORMATS[IPC].endings)
    heads = {path: _head(path) for path in paths}
    for path, head in heads.items():
        if not head.startswith((_FILE, _STREAM)):
            kind = _kind(head)
            raise StorageError(path, f"is {kind}, not Arrow IPC" if kind else "is not Arrow IPC")
    if all(head.startswith(_STREAM) for head in heads.values()):
        return streams(paths)
    with reading_as(paths[0], "an Arrow IPC file"):
        frame = pl.scan_ipc(paths, glob=False)
        frame.collect_schema()
    return frame


def streams(paths: Sequence[str]) -> pl.LazyFrame:
    """Return the rows of Arrow IPC streams, mapped into memory and read a record batch at a time.

    Raises:
        StorageError: One cannot be read, or its columns are not those of the first.
    """
    import pyarrow as pa
    from polars.io.plugins import register_io_source

    def batches(path: str) -> Iterator[Any]:
        with (
            reading_as(path, "an Arrow IPC stream"),
            pa.memory_map(path) as mapped,
            pa.ipc.open_stream(mapped) as stream,
        ):
            yield stream.schema.empty_table()
            yield from stream

    schemas = {path: pl.DataFrame(next(batches(path))).schema for path in paths}
    schema = schemas[paths[0]]
    for path, other in schemas.items():
        if other != schema:
            raise StorageError(path, f"has other columns or types than {paths[0]}")

    def read(
        with_columns: list[str] | None,
        predicate: pl.Expr | None,
        n_rows: int | None,
        _batch_size: int | None,
    ) -> Iterator[pl.DataFrame]:
        left = n_rows
        for path in paths:
            for batch in batches(path):
                part = batch if with_columns is None else batch.select(with_columns)
                rows = pl.DataFrame(part)
                if left is not None:
                    rows = rows.head(left)
                    left -= rows.height
                yield rows if predicate is None else rows.filter(predicate)
                if left == 0:
                    return

    return register_io_source(read, schema=schema)


@contextmanager
def reading_as(path: str, what: str) -> Iterator[None]:
    """As `reading`, saying as what the file was to be read."""
    import pyarrow as pa

    with reading(path):
        try:
            yield
        except (pl.exceptions.PolarsError, pa.ArrowInvalid) as error:
            why = str(error).splitlines()[0]
            if "TapeError" in why:
                why += "; JSON has no NaN and no Infinity: write null"
            raise StorageError(path, f"cannot be read as {what}: {why}") from error


def files_of(source: SourcePath, endings: Sequence[str]) -> list[str]:
    """Return the files of a path, a list, a glob, or a folder that holds files with these endings.

    Raises:
        StorageError: There are none.
    """
    if not isinstance(source, (str, os.PathLike)):
        found = sorted(os.fspath(path) for path in source)
        name = "the list of inputs"
    else:
        name = os.fspath(source)
        found = [name]
        if os.path.isdir(name):
            pattern = os.path.join(glob.escape(name), "**", "*")
            found = [p for p in _matches(pattern) if p.endswith(tuple(endings))]
        elif not os.path.exists(name) and glob.has_magic(name):
            found = _matches(name)
    if not found:
        raise StorageError(name, f"no file in it or like it (looked for {', '.join(endings)})")
    return found


def text_files(source: SourcePath, endings: Sequence[str]) -> list[str]:
    """As `files_of`, for files that must hold text.

    Raises:
        StorageError: There are none, or one is of a binary format.
    """
    paths = files_of(source, endings)
    for path in paths:
        head = _head(path)
        kind = _kind(head)
        if kind is not None:
            raise StorageError(path, f"is {kind}, and not text: say so with another format")
        # With or without a mark of the order of bytes; text has no zero bytes.
        if head.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in head[:2]:
            raise StorageError(path, "is UTF-16; save it as UTF-8")
    return paths


def is_stream(path: str) -> bool:
    """Return whether a file is an Arrow IPC stream."""
    return _head(path).startswith(_STREAM)


def is_parquet(path: str) -> bool:
    """Return whether a file is Parquet."""
    return _kind(_head(path)) == "Parquet"


def _matches(pattern: str) -> list[str]:
    found = glob.glob(pattern, recursive=True)
    return sorted(p for p in found if os.path.isfile(p) and not _is_hidden(p))


def _is_hidden(path: str) -> bool:
    return os.path.basename(path).startswith(HIDDEN)


def _head(path: str) -> bytes:
    if os.path.exists(path) and not os.path.isfile(path):
        raise StorageError(path, "is no file")
    with reading(path), open(path, "rb") as file:
        return file.read(8)


def _kind(head: bytes) -> str | None:
    return next((kind for magic, kind in _BINARY.items() if head.startswith(magic)), None)
