"""Finds and scans Parquet files, and cuts them into shards."""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import polars as pl

from dpo_pipeline.columns import Needs, did_you_mean, resolve
from dpo_pipeline.defaults import MAX_FILE_ROWS, SHARD_ROWS
from dpo_pipeline.errors import ColumnError, StorageError
from dpo_pipeline.options import Outputs
from dpo_pipeline.sources.arrow_files import parquet_in_batches
from dpo_pipeline.sources.common_schema import WIDENING, common_schema
from dpo_pipeline.sources.files import Identities, PairFile, Part, SourcePath, footers, found_files
from dpo_pipeline.sources.formats import not_parquet
from dpo_pipeline.storage import LOCAL, Access, Outputs as Publication, reading


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Consecutive rows of a dataset, from number `first_row` on, that one query evaluates.

    `rows` is None where only reading can tell.
    """

    frame: pl.LazyFrame
    first_row: int
    rows: int | None


Step: TypeAlias = Callable[[pl.LazyFrame], pl.LazyFrame]
"""What is done to rows of a dataset that were read."""


def _as_they_are(rows: pl.LazyFrame) -> pl.LazyFrame:
    return rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Pairs to be read, from files or from a frame.

    Attributes:
        files: The files in the order of their path strings; empty for a frame.
        is_folder: Whether an output of the same shape is a folder.
        hive: Columns that are in the folder names and in no file.
        scanned: Arguments with which a scan of some of the files has the columns of all.
        others: Files that are not Parquet and are read as one shard, each with its identity.
        step: What is done to rows as soon as they are read, keeping their order and number.
        reference: The dataset that the step reads, if it reads one.
        compare_keys: Reads the keys of both and raises if they do not match; for `check_keys`.
        unread: Columns that are there and not read, and why: no call may carry them.
        in_batches: From paths to rows, where Polars cannot open the files itself.
    """

    name: str
    frame: pl.LazyFrame
    files: tuple[PairFile, ...] = ()
    is_folder: bool = False
    hive: pl.Schema | None = None
    scanned: Mapping[str, Any] = field(default_factory=dict)
    others: Identities = field(default_factory=dict)
    step: Step = _as_they_are
    reference: Dataset | None = None
    compare_keys: Callable[[], None] | None = None
    unread: Mapping[str, str] = field(default_factory=dict)
    in_batches: Callable[[list[str]], pl.LazyFrame] | None = None

    def refuse_unread(self, advice: str) -> None:
        """Raise a ColumnError that names the columns that are not read, if there are some."""
        if self.unread:
            problems = (f"{name}: {why}" for name, why in self.unread.items())
            raise ColumnError(self.name, (*problems, advice))

    def check_roles(self, columns: Mapping[str, str] | None, needs: Needs) -> None:
        """Raise a ColumnError if a column that plays a role is not read."""
        names = (*self.frame.collect_schema().names(), *self.unread) if self.unread else ()
        roles = resolve(names, columns, needs).mapping if names else {}
        odd = [name for name in roles.values() if name in self.unread]
        if odd:
            raise ColumnError(self.name, tuple(f"{name}: {self.unread[name]}" for name in odd))

    def no_column(self, name: str, columns: Iterable[str]) -> str:
        """Say, of a column that is asked for, that it is not there or why it is not read."""
        if name in self.unread:
            return f"{name!r} cannot be read: {self.unread[name]}"
        return f"{name!r} is not a column{did_you_mean(name, columns)}"

    def check_keys(self) -> None:
        """Read the keys of the rows and of their reference, if they have one."""
        if self.compare_keys is not None:
            self.compare_keys()

    @property
    def joined(self) -> str | None:
        """The name of the reference, if there is one."""
        return None if self.reference is None else self.reference.name

    @property
    def read_from(self) -> str:
        """What an error while rows are read is about."""
        return self.name if self.joined is None else f"{self.name} or {self.joined}"

    @property
    def inputs(self) -> dict[str, tuple[int, ...]]:
        """All files that are read, and what tells whether they changed."""
        files = {file.path: file.identity for file in self.files}
        return {**files, **self.others, **(self.reference.inputs if self.reference else {})}

    @property
    def has_step(self) -> bool:
        """Whether rows are joined with a reference, or changed otherwise, once they are read."""
        return self.step is not _as_they_are

    @property
    def rows(self) -> int | None:
        """Rows in the footers; None for a frame."""
        return sum(file.rows for file in self.files) if self.files else None

    @property
    def row_bytes(self) -> int:
        """Average bytes of a row in the file whose rows are the longest; 0 for a frame."""
        return max((file.row_bytes for file in self.files), default=0)

    def scan(self, part: Part) -> pl.LazyFrame:
        """Scan the rows of a part."""
        if part.file is None:
            return self.frame
        frame = self._scan([part.file])
        is_whole = part.rows == part.file.rows
        return self.step(frame if is_whole else frame.slice(part.begin, part.rows))

    def parts(self, rows: int | None) -> list[Part]:
        """Cut the files into what makes one output file each; None cuts none."""
        if not self.files:
            name = os.path.basename(self.name)
            return [Part(file=None, relative=name, begin=0, rows=None)]
        return [part for file in self.files for part in file.parts(rows)]

    def _scan(self, files: Sequence[PairFile]) -> pl.LazyFrame:
        paths = [file.path for file in files]
        if self.in_batches is not None:
            return self.in_batches(paths)
        return pl.scan_parquet(paths, glob=False, **self.scanned)

    def shards(self, rows: int = SHARD_ROWS) -> Iterator[Shard]:
        """Cut the dataset into runs of at most `rows` rows; a frame is one shard.

        The cuts lie at multiples of `rows` of the whole dataset, wherever files end. With a
        reference all rows are one shard, as each shard would join the whole reference again.
        """
        if not self.files:
            yield self.shard(0, None)
            return
        if self.has_step:
            rows = max(self.rows or 0, 1)
        for first in range(0, max(self.rows or 0, 1), rows):
            yield self.shard(first, rows)

    def shard(self, first: int, rows: int | None) -> Shard:
        """Return the rows from number `first` on, at most `rows` of them; None for a frame."""
        if rows is None:
            return Shard(frame=self.frame, first_row=0, rows=None)
        files = [file for file in self.files if file.rows] or self.files[:1]
        last = min(first + rows, self.rows or 0)
        begin = bisect_right(files, first, key=_first_row) - 1
        inside = files[begin : bisect_left(files, max(last, 1), key=_first_row)]
        frame = self._scan(inside)
        skip = first - inside[0].first_row
        whole = skip == 0 and sum(file.rows for file in inside) == last - first
        return Shard(
            frame=self.step(frame if whole else frame.slice(skip, last - first)),
            first_row=first,
            rows=last - first,
        )


def _first_row(file: PairFile) -> int:
    return file.first_row


def open_dataset(
    source: SourcePath, columns: Mapping[str, str] | None = None, access: Access = LOCAL
) -> Dataset:
    """Find the Parquet files of a source and read their footers; no data is read.

    Files may have their columns in different orders, types that one type holds without loss,
    and lack columns other than log-probs (by `columns`, role to column, and aliases); they are
    read as if all were alike.
    """
    name, root, paths, is_folder = found_files(source, access)
    files: list[PairFile] = []
    schemas = []
    first_row = 0
    for file, schema in footers(paths, root, access):
        if file.rows > MAX_FILE_ROWS:
            problem = f"has {file.rows:,} rows; a file can have {MAX_FILE_ROWS:,}, so split it"
            raise StorageError(file.path, problem)
        files.append(replace(file, first_row=first_row))
        schemas.append(schema)
        first_row += file.rows
    unread = {n: why for file in files for n, why in file.unread.items()}
    schemas = [pl.Schema({n: t for n, t in s.items() if n not in unread}) for s in schemas]
    common = common_schema(zip(paths, schemas, strict=True), columns)
    whole = common.schema or schemas[0]
    scanned: dict[str, Any] = {"hive_partitioning": False, **access.polars(paths[0])}
    if common.schema is not None:
        scanned |= {"schema": whole, "missing_columns": "insert", "cast_options": WIDENING}
        scanned |= {"extra_columns": "ignore"}
    is_hive = any("=" in part for f in files for part in Path(f.relative).parent.parts)
    hive, in_batches = None, None
    with reading(name, not_parquet):
        if unread:
            keys = _folder_values(files) if is_hive else pl.Schema()
            hive = pl.Schema({n: t for n, t in keys.items() if n not in whole}) if is_hive else None
            whole = pl.Schema({**whole, **(hive or {})})
            in_batches = partial(parquet_in_batches, schema=whole, hive=[*keys], access=access)
            frame = in_batches(paths)
        else:
            if is_hive:
                keys = _hive_keys(paths, whole, access)
                hive = pl.Schema({n: t for n, t in keys.items() if n not in whole})
                scanned |= {"hive_partitioning": True, "hive_schema": keys}
            frame = pl.scan_parquet(paths, glob=False, **scanned)
            frame.collect_schema()
    return Dataset(
        name=name,
        frame=frame,
        files=tuple(files),
        is_folder=is_folder,
        hive=hive,
        scanned=scanned,
        unread={**unread, **common.unread},
        in_batches=in_batches,
    )


def _folder_values(files: Sequence[PairFile]) -> pl.Schema:
    """Return the columns that folder names give, of files that Polars cannot open."""
    values: dict[str, list[str]] = {}
    for file in files:
        for part in Path(file.relative).parent.parts:
            key, is_one, value = part.partition("=")
            if is_one:
                values.setdefault(key, []).append(value)
    whole = {key: all(each.isdecimal() for each in some) for key, some in values.items()}
    return pl.Schema({key: pl.Int64() if whole[key] else pl.String() for key in values})


def _hive_keys(paths: list[str], in_files: pl.Schema, access: Access) -> pl.Schema:
    """Return the columns that folder names give; one that files hold too keeps its type there."""
    whole = pl.scan_parquet(
        paths, glob=False, hive_partitioning=True, **access.polars(paths[0])
    ).collect_schema()
    named = {part.partition("=")[0] for path in paths for part in Path(path).parts if "=" in part}
    return pl.Schema(
        {n: in_files.get(n, t) for n, t in whole.items() if n not in in_files or n in named}
    )


def publication_of(outputs: Outputs, access: Access, *datasets: Dataset) -> Publication:
    """Return what checks and publishes the outputs of a call, guarding all its inputs."""
    inputs: dict[str, tuple[int, ...]] = {}
    for dataset in datasets:
        inputs |= dataset.inputs
    return Publication(
        overwrite=outputs.overwrite, inputs=inputs, access=access, protected=outputs.protected
    )
