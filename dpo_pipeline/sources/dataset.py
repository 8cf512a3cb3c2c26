"""Finds and scans Parquet files, and cuts them into shards."""

from __future__ import annotations

import os
import warnings
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby, pairwise
from operator import attrgetter
from typing import Any, Final, TypeAlias

import polars as pl

from dpo_pipeline.columns import SHOWN, Needs, did_you_mean, resolve
from dpo_pipeline.defaults import (
    MAX_FILE_ROWS,
    OWN_FOOTERS,
    PARQUET_ENDINGS,
    REQUESTS_AT_A_TIME,
    RUN_BYTES,
    SHARD_ROWS,
    SHARD_ROWS_IN_STEP,
)
from dpo_pipeline.errors import ColumnError, DataWarning, StorageError, UsageError
from dpo_pipeline.sources.common_schema import (
    WIDENING,
    Chunks,
    Footer,
    common_schema,
    footer_by_pyarrow,
    plain_footer,
)
from dpo_pipeline.sources.files import Identities, SourcePath, below, find
from dpo_pipeline.sources.formats import not_parquet
from dpo_pipeline.sources.frames import Dump, lake_rows, parquet_in_batches
from dpo_pipeline.sources.keys import contradiction, folder_keys
from dpo_pipeline.storage import (
    LOCAL,
    Access,
    copies_among,
    identity,
    is_address,
    reading,
)

_NO_KEYS: Final = {"hive_partitioning": False, "hive_schema": None}
"""Arguments of a scan that takes nothing from the names of folders."""

_UNKNOWN: Final[tuple[int, ...]] = ()
"""The identity of an object of which only Polars knows how to read it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairFile:
    """A Parquet file, from its footer."""

    path: str
    relative: str  # its path below the source folder (its name, for a single file)
    first_row: int = 0  # the number of its first row in the whole dataset
    rows: int
    row_bytes: int  # average bytes of a row before compression; 0 if it is not known
    row_groups: tuple[int, ...]  # rows of each row group
    identity: tuple[int, ...]  # what tells whether it changed since it was opened
    unread: Mapping[str, str] = field(default_factory=dict)  # columns that Polars cannot read
    chunks: tuple[Chunks, ...] = ()  # columns of each row group, if they are known

    def parts(self, rows: int | None) -> Iterator[Part]:
        """Cut it between row groups into parts of at most `rows` rows, or of one row group."""
        if rows is None:
            yield Part(file=self, relative=self.relative, begin=0, rows=self.rows)
            return
        stem, ending = os.path.splitext(self.relative)
        cuts, end = [0], 0
        for group in self.row_groups:
            if end > cuts[-1] and end + group - cuts[-1] > rows:
                cuts.append(end)
            end += group
        for i, (begin, end) in enumerate(pairwise([*cuts, self.rows])):
            yield Part(file=self, relative=f"{stem}-{i:05}{ending}", begin=begin, rows=end - begin)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Consecutive rows of an input file that make one output file."""

    file: PairFile | None  # the input file; None if the dataset is not read from Parquet files
    relative: str  # the output's path below its folder
    begin: int  # the number of the first row in the file
    rows: int | None

    @property
    def first_row(self) -> int:
        """The number of its first row in the whole dataset."""
        return self.begin if self.file is None else self.file.first_row + self.begin


def footers(
    paths: Sequence[str], root: str | None, access: Access
) -> Iterator[tuple[PairFile, pl.Schema]]:
    """Yield each file and its schema, reading footers ahead where files are far away.

    `root` is the folder that they are in; None for a single file.
    """
    is_few = len(paths) <= OWN_FOOTERS
    read = partial(_footer, root=root, access=access, is_one_of_few=is_few)
    if not is_address(paths[0]):
        yield from map(read, paths)
        return
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(REQUESTS_AT_A_TIME) as pool:
        yield from pool.map(read, paths)


def _footer(
    path: str, *, root: str | None, access: Access, is_one_of_few: bool
) -> tuple[PairFile, pl.Schema]:
    is_far = is_address(path)
    with reading(path, not_parquet):
        frame = pl.scan_parquet(path, glob=False, hive_partitioning=False, **access.polars(path))
        is_known = not is_far or access.is_known(path)
        footer = plain_footer(path) if is_one_of_few and not is_far else None
        if footer is None and is_known:
            footer = _read_footer(path, access)
        if footer is None:
            rows = int(frame.select(pl.len()).collect().item())
            footer = Footer(rows, 0, (rows,))
        now = _UNKNOWN
        if is_known:
            now = access.identity(path) if is_far else identity(path)
        file = PairFile(
            path=path,
            relative=below(path, root),
            rows=footer.rows,
            row_bytes=footer.n_bytes // max(footer.rows, 1),
            row_groups=footer.row_groups,
            identity=now,
            unread=footer.unread,
            chunks=footer.chunks,
        )
        return file, frame.collect_schema() if footer.schema is None else footer.schema


def _read_footer(path: str, access: Access) -> Footer | None:
    """Return what pyarrow reads; None if it does not know a type that Polars may know."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    system, name = access.filesystem(path) if is_address(path) else (None, path)
    try:
        return footer_by_pyarrow(pq.read_metadata(name, filesystem=system))
    except pa.ArrowNotImplementedError:  # 128-bit integers
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Consecutive rows of a dataset, from number `first_row` on, that one query evaluates.

    `rows` is None where only reading can tell.
    """

    frame: pl.LazyFrame
    first_row: int
    rows: int | None


Step: TypeAlias = Callable[[pl.LazyFrame, int, int | None], pl.LazyFrame]
"""What is done to rows of a dataset that were read, from the number of the first and how many."""


def _as_they_are(rows: pl.LazyFrame, first: int, n: int | None) -> pl.LazyFrame:  # noqa: ARG001
    return rows


def _always() -> bool:
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Pairs to be read, from files or from a frame."""

    name: str
    frame: pl.LazyFrame
    files: tuple[PairFile, ...] = ()  # in the order of their path strings; empty for a frame
    is_folder: bool = False  # whether an output of the same shape is a folder
    hive: pl.Schema = field(default_factory=pl.Schema)  # columns in folder names and in no file
    # Path to the columns of its folders' names, where the scan cannot make them.
    partitions: Mapping[str, tuple[pl.Expr, ...]] = field(default_factory=dict)
    # Arguments with which a scan of some of the files has the columns of all.
    scanned: Mapping[str, Any] = field(default_factory=dict)
    others: Identities = field(default_factory=dict)  # files that are read as one shard
    step: Step = _as_they_are  # done to rows as soon as they are read; keeps order and number
    reference: Dataset | None = None  # what the step reads, if it reads a dataset
    dump: Dump | None = None  # what was read token by token
    own_notes: tuple[str, ...] = ()  # what is to be said about the source, a sentence each
    compare_keys: Callable[[], None] | None = None  # raises if keys do not match the reference's
    before: pl.LazyFrame | None = None  # the rows before the step, if it depends on their keys
    can_cut: Callable[[], bool] = _always  # whether the step can be done shard by shard
    keeps_order: bool = True  # whether each reading gives the rows in the same order
    unread: Mapping[str, str] = field(default_factory=dict)  # columns that cannot be read, and why
    in_batches: Callable[[list[str], int], pl.LazyFrame] | None = None  # what Polars cannot open
    cuts: tuple[int, ...] = ()  # further rows that a shard begins with
    is_canonical: bool = False  # whether roles have their own names, whatever the user mapped
    made: Callable[[], tuple[str, ...]] = tuple  # how rows were made, once all were read

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

    @property
    def columns(self) -> list[str]:
        """The names of its columns."""
        return self.frame.collect_schema().names()

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be said about the source and that of the reference, a sentence each."""
        other = () if self.reference is None else self.reference.notes
        return (*self.own_notes, *(f"{self.joined}: {text}" for text in other))

    @property
    def told(self) -> tuple[str, ...]:
        """The notes, and what was read token by token: what a plan tells."""
        dumps = ((self.name, self), (self.joined, self.reference))
        read = [f"{n}: {d.dump.text}" for n, d in dumps if d is not None and d.dump is not None]
        return (*self.notes, *read)

    def warn(self, *, stacklevel: int) -> None:
        """Issue the notes as warnings, at the line that called the library."""
        for text in self.notes:
            warnings.warn(f"{self.name}: {text}", DataWarning, stacklevel=stacklevel)

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
    def whole(self) -> pl.LazyFrame:
        """All rows, as a plan, once the keys are compared."""
        return self.frame if self.before is None else self.step(self.before, 0, self.rows)

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
            return self.whole
        rows = self.scan_files([part.file], part.begin, part.rows)
        return self.step(rows, part.first_row, part.rows)

    def runs(self, part: Part) -> list[tuple[pl.LazyFrame, int]]:
        """Scan a part in runs, to be read one after the other, each with its first row in the file.

        Polars decodes ahead of those who take rows, the further the longer a file is (#28569).
        """
        if not part.rows or not part.file or not self.can_cut():
            return [(self.scan(part), part.begin)]
        size = min(SHARD_ROWS_IN_STEP, max(RUN_BYTES // max(part.file.row_bytes, 1), 1))
        end = part.begin + part.rows
        begins = range(part.begin, end, size)
        return [(self.scan(replace(part, begin=b, rows=min(size, end - b))), b) for b in begins]

    def parts(self, rows: int | None) -> list[Part]:
        """Cut the files into what makes one output file each; None cuts none."""
        if not self.files:
            name = os.path.basename(self.name)
            return [Part(file=None, relative=name, begin=0, rows=None)]
        return [part for file in self.files for part in file.parts(rows)]

    def scan_files(
        self, files: Sequence[PairFile], skip: int = 0, rows: int | None = None
    ) -> pl.LazyFrame:
        """Scan `rows` rows of files, or all, after the first `skip`, with their folders' keys."""
        groups = groupby(files, lambda file: self.partitions and os.path.dirname(file.path))
        scans = []
        for some in (list(group) for _, group in groups):
            paths = [file.path for file in some]
            if self.in_batches is None:
                scan = pl.scan_parquet(paths, glob=False, **self.scanned)
            else:
                scan, skip = self.in_batches(paths, skip), 0
            named = self.partitions.get(some[0].path)
            scans.append(scan.with_columns(named) if named else scan)
        frame = pl.concat(scans) if len(scans) > 1 else scans[0]
        is_whole = not skip and rows in {None, sum(file.rows for file in files)}
        return frame if is_whole else frame.slice(skip, rows)

    def ranges(self, rows: int = SHARD_ROWS) -> Iterator[tuple[int, int | None]]:
        """Yield the first row of each shard and how many of at most `rows` it has.

        The cuts lie at multiples of `rows` of the whole dataset, wherever files end, and at
        `cuts`. All rows are one shard if each shard would join the whole reference again. A frame
        is one shard of unknown length.
        """
        if not self.files:
            yield 0, None
            return
        end = max(self.rows or 0, 1)
        step = rows if self.can_cut() else end
        starts = sorted({*range(0, end, step), *(cut for cut in self.cuts if cut < end)})
        for first, following in pairwise([*starts, end]):
            yield first, min(following, self.rows or 0) - first

    def rows_of(self, rows: Sequence[int], names: Sequence[str]) -> pl.DataFrame:
        """Read columns of the rows with these numbers, and no more of them than it must."""
        if self.files and not self.has_step:
            parts = [self.shard(row, 1).frame.select(names) for row in rows]
            found = pl.concat(pl.collect_all(parts))
        else:
            number = "__dpo_pipeline_row"
            frame = self.frame.select(names).with_row_index(number)
            few = frame.filter(pl.col(number).is_in(list(rows))).collect(engine="streaming")
            places = pl.DataFrame({number: rows}, schema={number: few.schema[number]})
            found = places.join(few, on=number, how="left", maintain_order="left").drop(number)
        return found.select(pl.Series("row", rows, dtype=pl.UInt64), pl.all().name.prefix(SHOWN))

    def check_shown(self, names: Sequence[str]) -> None:
        """Raise a UsageError unless these are columns."""
        there = self.frame.collect_schema().names() if names else []
        for name in names:
            if name not in there:
                raise UsageError(f"show: {self.no_column(name, there)}")

    def shards(self, rows: int = SHARD_ROWS) -> Iterator[Shard]:
        """Yield the shards of `ranges`."""
        for first, n in self.ranges(rows):
            yield self.shard(first, n)

    def batches(
        self, plan: Callable[[pl.LazyFrame], pl.LazyFrame], size: int | None = None
    ) -> Iterator[pl.DataFrame]:
        """Yield what a plan makes of the rows, run by run, at most `size` rows at a time."""
        for shard in self.shards(SHARD_ROWS_IN_STEP):
            yield from plan(shard.frame).collect_batches(maintain_order=True, chunk_size=size)

    def shard(self, first: int, rows: int | None) -> Shard:
        """Return the rows from number `first` on, at most `rows` of them; None for a frame."""
        if rows is None:
            return Shard(frame=self.whole, first_row=0, rows=None)
        files = [file for file in self.files if file.rows] or self.files[:1]
        last = min(first + rows, self.rows or 0)
        row = attrgetter("first_row")
        begin = bisect_right(files, first, key=row) - 1
        inside = files[begin : bisect_left(files, max(last, 1), key=row)]
        frame = self.scan_files(inside, first - inside[0].first_row, last - first)
        return Shard(
            frame=self.step(frame, first, last - first), first_row=first, rows=last - first
        )


def ranges_in_step(datasets: Iterable[Dataset]) -> list[tuple[int, int | None]]:
    """Return the runs of rows that are read side by side one after the other.

    A query that reads side by side holds more the longer it is, so files are read in runs. Where
    one dataset cannot be cut like the others, all rows are one run.
    """
    found = [list(dataset.ranges(SHARD_ROWS_IN_STEP)) for dataset in datasets]
    return found[0] if all(each == found[0] for each in found) else [(0, None)]


def open_dataset(
    source: SourcePath, columns: Mapping[str, str] | None = None, access: Access = LOCAL
) -> Dataset:
    """Find the Parquet files of a source and read their footers; no data is read.

    Files may have their columns in different orders, types that one type holds without loss,
    and lack columns other than log-probs (by `columns`, role to column, and aliases); they are
    read as if all were alike.
    """
    found = find(source, PARQUET_ENDINGS, access)
    if found.table is not None:
        rows = lake_rows(found.table, access)
        return Dataset(name=found.name, frame=rows.frame, others=rows.files, own_notes=rows.notes)
    name, paths = found.name, list(found.paths)
    files: list[PairFile] = []
    schemas = []
    first_row = 0
    for file, schema in footers(paths, found.root, access):
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
    local = (file.path for file in files if file.rows and not is_address(file.path))
    in_batches = partial(parquet_in_batches, schema=whole, access=access) if unread else None
    with reading(name, not_parquet):
        own = dict(zip(paths, schemas, strict=True))
        hive, named = folder_keys(found.keys, own, whole)
        # Polars reads the keys from the paths if all have the same ones, and no folder above any.
        by_scan = in_batches is None and all(
            len(each) == len(hive) == path.count("=") for path, each in named.items()
        )
        if hive and by_scan:
            scanned |= {"hive_partitioning": True, "hive_schema": hive}
        dataset = Dataset(
            name=name,
            frame=pl.LazyFrame(),
            files=tuple(files),
            is_folder=found.root is not None,
            hive=pl.Schema({n: t for n, t in hive.items() if n not in whole}),
            scanned=scanned,
            partitions=named if hive and not by_scan else {},
            own_notes=(*found.notes, *copies_among(local)),
            unread={**unread, **common.unread},
            in_batches=in_batches,
        )
        frame = dataset.scan_files(files)
        frame.collect_schema()
        bare = replace(dataset, scanned={**scanned, **_NO_KEYS}, partitions={})
        for file in files:
            for value in named[file.path] if hive else ():
                _check_key(bare, file, value, own[file.path], found.keys)
    return replace(dataset, frame=frame)


def _check_key(
    bare: Dataset,
    file: PairFile,
    value: pl.Expr,
    own: pl.Schema,
    keys: Mapping[str, Mapping[str, str]],
) -> None:
    """Raise a StorageError if a file's own column is not as the name of its folder says.

    Statistics of row groups spare most of the reading.
    """
    name = value.meta.output_name()
    if name not in own:
        return
    rows = bare.scan_files([file]).select(name)
    other = rows.filter(pl.col(name).ne_missing(value)).select(pl.len(), pl.first(name))
    n, first = other.collect(engine="streaming").row(0)
    if n:
        problem = f"says otherwise in {n:,} of {file.rows:,} rows, first {first!r}"
        raise contradiction(file.path, name, keys, f"its column {name} {problem}")
