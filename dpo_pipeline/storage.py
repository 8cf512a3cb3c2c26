"""Finds and scans Parquet files, and cuts them into shards."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import polars as pl

from dpo_pipeline.defaults import SHARD_ROWS
from dpo_pipeline.errors import StorageError
from dpo_pipeline.io_errors import reading

SourcePath: TypeAlias = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""A Parquet file, a list of them, a glob, or a folder (hive-partitioned or not)."""

HIDDEN: Final = (".", "_")
"""Names that begin so are not data: temporary files and markers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairFile:
    """One input file.

    Attributes:
        path: Where it is.
        relative: Its path below the source folder (its name, for a single file).
        rows: Rows, from the footer.
    """

    path: str
    relative: str
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Consecutive rows of a dataset that one query evaluates.

    Attributes:
        frame: The rows.
        first_row: The number of the first one in the whole dataset.
        rows: How many; None where only reading can tell.
    """

    frame: pl.LazyFrame
    first_row: int
    rows: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Pairs to be read, from files or from a frame.

    Attributes:
        name: What reports call it.
        frame: All of it.
        files: The files in the order of their path strings; empty for a frame.
        is_folder: Whether an output of the same shape is a folder.
        hive: Columns that come from the folder names.
    """

    name: str
    frame: pl.LazyFrame
    files: tuple[PairFile, ...] = ()
    is_folder: bool = False
    hive: pl.Schema | None = None

    @property
    def rows(self) -> int | None:
        """Rows in the footers; None for a frame."""
        return sum(file.rows for file in self.files) if self.files else None

    def scan(self, files: Sequence[PairFile]) -> pl.LazyFrame:
        """Scan some of the files."""
        return _scan([file.path for file in files], self.hive)

    def shards(self, rows: int = SHARD_ROWS) -> Iterator[Shard]:
        """Cut the dataset into runs of at most `rows` rows; a frame is one shard.

        The cuts lie at multiples of `rows` of the whole dataset, wherever files end.
        """
        if not self.files:
            yield Shard(frame=self.frame, first_row=0, rows=None)
            return
        total = sum(file.rows for file in self.files)
        for first in range(0, max(total, 1), rows):
            last = min(first + rows, total)
            inside: list[PairFile] = []
            start = 0
            skip = 0
            for file in self.files:
                if start < last and start + file.rows > first:
                    if not inside:
                        skip = first - start
                    inside.append(file)
                start += file.rows
            frame = self.scan(inside or self.files[:1])
            whole = skip == 0 and sum(file.rows for file in inside) == last - first
            yield Shard(
                frame=frame if whole else frame.slice(skip, last - first),
                first_row=first,
                rows=last - first,
            )


def open_dataset(source: SourcePath) -> Dataset:
    """Find the Parquet files of a source and read their footers; no data is read.

    Raises:
        StorageError: There is no such file, it is not Parquet, or the files differ in
            their columns.
    """
    name, root, paths, is_folder = _expand(source)
    import pyarrow.parquet as pq

    files = []
    first_schema = None
    for path in paths:
        with reading(path):
            footer = pq.read_metadata(path)
        if first_schema is None:
            first_schema = footer.schema
        elif not footer.schema.equals(first_schema):
            raise StorageError(path, f"its columns or their types differ from {paths[0]}'s")
        relative = os.path.relpath(path, root) if root else os.path.basename(path)
        files.append(PairFile(path=path, relative=relative, rows=footer.num_rows))
    partitioned = any("=" in part for f in files for part in Path(f.relative).parent.parts)
    hive = None
    with reading(name):
        if partitioned:
            in_files = set(pl.scan_parquet(paths[0], glob=False).collect_schema())
            whole = pl.scan_parquet(paths, glob=False, hive_partitioning=True).collect_schema()
            hive = pl.Schema({n: t for n, t in whole.items() if n not in in_files})
        frame = _scan(paths, hive)
        frame.collect_schema()
    return Dataset(name=name, frame=frame, files=tuple(files), is_folder=is_folder, hive=hive)


def _scan(paths: list[str], hive: pl.Schema | None) -> pl.LazyFrame:
    return pl.scan_parquet(paths, glob=False, hive_partitioning=hive is not None, hive_schema=hive)


def _expand(source: SourcePath) -> tuple[str, str | None, list[str], bool]:
    """Return the source's name, its root folder, its files in order, and whether it is a folder."""
    if not isinstance(source, (str, os.PathLike)):
        paths = sorted(os.fspath(path) for path in source)
        if not paths:
            raise StorageError("the list of inputs", "it is empty")
        root = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
        return f"{len(paths)} files", root, paths, True
    path = os.fspath(source)
    if os.path.isdir(path):
        found = [
            os.path.join(folder, name)
            for folder, folders, names in os.walk(path)
            for name in names
            if name.endswith(".parquet")
            and not any(p.startswith(HIDDEN) for p in Path(folder, name).relative_to(path).parts)
        ]
        if not found:
            raise StorageError(path, "no .parquet file in this folder")
        return path, path, sorted(found), True
    if not os.path.exists(path) and glob.has_magic(path):
        found = [
            match
            for match in glob.glob(path, recursive=True)
            if os.path.isfile(match) and not os.path.basename(match).startswith(HIDDEN)
        ]
        if not found:
            raise StorageError(path, "no file matches this pattern")
        magic = next(i for i, p in enumerate(Path(path).parts) if glob.has_magic(p))
        root = os.fspath(Path(*Path(path).parts[:magic]))
        return path, root, sorted(found), True
    return path, None, [path], False
