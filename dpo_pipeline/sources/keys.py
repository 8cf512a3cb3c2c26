"""Keys of tables: what counts as equal, whether they are in one order, and rows parted by them.

And the keys in the names of folders, which are columns of the files inside.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from io import BytesIO
from itertools import pairwise
from shutil import rmtree
from tempfile import TemporaryDirectory, mkdtemp
from types import TracebackType
from typing import Any, Final, Self, TypeAlias
from urllib.parse import unquote
from weakref import finalize

import polars as pl

from dpo_pipeline.columns import PAIR_ID, REF_CHOSEN, did_you_mean
from dpo_pipeline.defaults import JOINED_BYTES, JOINED_ROWS, OFFENDERS_SHOWN, ROWS_IN_STEP
from dpo_pipeline.errors import ColumnError, JoinError, NoSuchColumn, StorageError, UsageError
from dpo_pipeline.sources.formats import INDEX

KEY: Final = "__dpo_pipeline_key"
"""The name of the key in tables that are joined, of the same type in all of them."""

Step: TypeAlias = Callable[[pl.LazyFrame], pl.LazyFrame]
_NO_VALUE: Final = "__HIVE_DEFAULT_PARTITION__"
"""What a folder is called of rows whose key is null."""
_ROWS: Final = "__dpo_pipeline_rows_"
_PART: Final = "__dpo_pipeline_part"
_PARTS: Final = 64
_SEED: Final = 11
_MOST_RUNS: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Rows of each table, rows of the first two whose key the other lacks, and keys of both."""

    rows: tuple[int, ...]
    alone: tuple[int, ...]
    common: int


def checked_on(on: object) -> str:
    """Return the name of the key."""
    if not isinstance(on, str) or on == "*" or (on.startswith("^") and on.endswith("$")):
        raise UsageError(f"on must be the name of a column, and no pattern, found {on!r}")
    return on


def key_of(on: str, schemas: Mapping[str, pl.Schema]) -> pl.Expr:
    """Return the key as an expression that gives the same type in every table.

    Integers of any width are compared as Int128, which holds all of them; an integer and a text as
    text: 7 is '7' and not '07'; categories as text. `schemas` are the tables' columns by name.
    """
    for name, schema in schemas.items():
        if on not in schema:
            raise ColumnError(name, (no_key(on, schema),))
        if schema[on].is_nested():
            raise ColumnError(name, (f"{on}: a key must be a plain value, found {schema[on]}",))
    first = next(iter(schemas))
    for name, schema in schemas.items():
        both = {_compared_as(schema[on]), _compared_as(schemas[first][on])}
        if len(both) > 1 and both != {pl.Int128(), pl.String()}:
            problem = f"{on}: it is {schema[on]} here and {schemas[first][on]} in {first}"
            raise ColumnError(name, (f"{problem}; convert one",))
    types = {schema[on] for schema in schemas.values()}
    compared = {_compared_as(dtype) for dtype in types}
    if len(types) == 1 and (types == compared or next(iter(types)).is_integer()):
        return pl.col(on)
    return pl.col(on).cast(pl.String() if pl.String() in compared else compared.pop())


def _compared_as(dtype: pl.DataType) -> pl.DataType:
    if dtype.is_integer():
        return pl.Int128()
    return pl.String() if dtype in (pl.Categorical, pl.Enum) else dtype


def no_key(on: str, columns: pl.Schema) -> str:
    """Say that a table has no such key."""
    if on == PAIR_ID.name and INDEX in columns and REF_CHOSEN.name in columns:
        return (
            f"{on}: missing, and the number of a row is no identity; if the policy's rows carry "
            f"the column {INDEX!r} of the dataset that these were made from, join by it: "
            f"on={INDEX!r}, or --on {INDEX}"
        )
    kind = str if on == PAIR_ID.name else NoSuchColumn
    return kind(
        f"{on}: missing{did_you_mean(on, columns)}, and pairs are joined by it (on=, --on); "
        f"the columns are {', '.join(columns)}"
    )


class OutOfStep(Exception):  # noqa: N818  no error: the tables are joined then
    """Tables do not have the same keys in the same order, or perhaps have one twice."""


def in_step(
    runs: Iterable[Sequence[pl.LazyFrame]], most: int | None = None, then: Step | None = None
) -> Iterator[pl.DataFrame]:
    """Yield the rows of tables side by side, with one `KEY`, in order.

    `runs` are the tables, or runs of rows of them: the first with `KEY`, and others too unless they
    surely have the same; all other names differ. `most` is how many rows are yielded at a time.
    `then` is a step of the plan, which keeps columns whose names begin with `KEY`.

    Raises:
        OutOfStep: Keys differ, are null, or not surely there once; the rows are of no use then.
    """
    with UniqueKeys() as unique:
        for tables in runs:
            for rows in _side_by_side(tables, most or ROWS_IN_STEP, then):
                unique.add(rows[KEY])
                yield rows
        if not unique.are_unique:
            raise OutOfStep


def _side_by_side(
    tables: Sequence[pl.LazyFrame], most: int, then: Step | None
) -> Iterator[pl.DataFrame]:
    first, *others = tables
    keys = [f"{KEY}_{i}" for i in range(len(others))]
    renamed = (t.rename({KEY: key}, strict=False) for t, key in zip(others, keys, strict=True))
    plan = pl.concat([first, *renamed], how="horizontal").pipe(then or pl.LazyFrame.lazy)
    try:
        for rows in plan.collect_batches(maintain_order=True, chunk_size=most):
            own, there = rows[KEY], [key for key in keys if key in rows.columns]
            if any(rows[key].null_count() for key in (KEY, *there)) or not all(
                (own == rows[key]).all() for key in there
            ):
                raise OutOfStep
            yield rows.drop(there)
    except pl.exceptions.ShapeError as error:  # tables of other lengths
        raise OutOfStep from error


class Partitions:
    """Rows of tables in parts: in memory up to a number, else in a temporary folder.

    Without `by`, rows of one `KEY` are in one part, whichever table they are of.
    """

    def __init__(
        self,
        tables: Mapping[str, pl.Schema],
        by: pl.Expr | None = None,
        most: int | None = None,
    ) -> None:
        """Start without rows; `by` is a row's part; `most`, or `JOINED_ROWS`, are in memory."""
        self._most = JOINED_ROWS if most is None else most
        self._tables = {name: pl.DataFrame(schema=schema) for name, schema in tables.items()}
        self._held: dict[str, list[pl.DataFrame]] = {name: [] for name in tables}
        self._by = pl.col(KEY).hash(_SEED) % _PARTS if by is None else by
        self._n_rows = 0
        self._folder: TemporaryDirectory[str] | None = None
        self._sizes: dict[tuple[int, str], list[int]] = {}  # of what is written, by part and table

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._held.clear()
        if self._folder is not None:
            self._folder.cleanup()

    def add(self, name: str, rows: pl.DataFrame) -> None:
        """Add rows of a table."""
        self._held[name].append(rows)
        self._n_rows += rows.height
        if self._n_rows <= self._most:
            return
        if self._folder is None:
            self._folder = TemporaryDirectory(prefix="dpo-pipeline-", ignore_cleanup_errors=True)
        for each, held in self._held.items():
            while held:
                self._write(each, held.pop(0), self._folder.name)

    def _write(self, name: str, rows: pl.DataFrame, folder: str) -> None:
        numbered = rows.with_columns(self._by.alias(_PART))
        for (number,), some in numbered.partition_by(
            _PART, as_dict=True, include_key=False
        ).items():
            sizes = self._sizes.setdefault((number, name), [])
            with open(self._place(folder, number, name), "ab") as file:
                some.write_ipc_stream(file)
                sizes.append(file.tell() - sum(sizes))

    def _place(self, folder: str, number: int, name: str) -> str:
        return os.path.join(folder, f"{number}-{[*self._tables].index(name)}")

    def __iter__(self) -> Iterator[dict[str, pl.DataFrame]]:
        """Yield the rows of all tables part by part, in the order of the parts."""
        if self._folder is None:
            yield {name: pl.concat([self._tables[name], *self._held[name]]) for name in self._held}
            return
        for number in sorted({number for number, _ in self._sizes}):
            yield {name: self._read(name, number, self._folder.name) for name in self._tables}

    def pieces(self, name: str) -> Iterator[tuple[int, Callable[[], Iterator[pl.DataFrame]]]]:
        """Yield the bytes of each part on disk and its rows of a table, to be read by pieces."""
        if self._folder is None:
            yield 0, lambda: iter([self._tables[name], *self._held[name]])
            return
        for number in sorted({number for number, _ in self._sizes}):
            sizes = self._sizes.get((number, name), [])
            yield sum(sizes), partial(self._pieces, name, number, self._folder.name)

    def _read(self, name: str, number: int, folder: str) -> pl.DataFrame:
        return pl.concat(list(self._pieces(name, number, folder)))

    def _pieces(self, name: str, number: int, folder: str) -> Iterator[pl.DataFrame]:
        sizes = self._sizes.get((number, name))
        if sizes is None:
            yield self._tables[name]
            return
        with open(self._place(folder, number, name), "rb") as file:
            for size in sizes:
                yield pl.read_ipc_stream(BytesIO(file.read(size)))


class OrderedRows:
    """Rows in their order: in memory up to a number, else in a temporary folder."""

    def __init__(self, most: int | None = None) -> None:
        """Start without rows; `most`, or `JOINED_ROWS`, are held in memory."""
        self._most = JOINED_ROWS if most is None else most
        self._runs: list[tuple[int, int, pl.LazyFrame]] = []  # first row, number, and the rows
        self.n_rows = 0
        self._folder: str | None = None

    def add(self, rows: pl.DataFrame) -> None:
        """Add the next rows."""
        frame = rows.lazy()
        if self.n_rows + rows.height > self._most:
            if self._folder is None:
                self._folder = mkdtemp(prefix="dpo-pipeline-")
                finalize(self, rmtree, self._folder, ignore_errors=True)
            place = os.path.join(self._folder, f"{len(self._runs)}.parquet")
            rows.write_parquet(place, compression="uncompressed", statistics=False)
            frame = pl.scan_parquet(place, glob=False)
        self._runs.append((self.n_rows, rows.height, frame))
        self.n_rows += rows.height

    def rows(self, first: int, n: int | None) -> pl.LazyFrame:
        """Return the rows from number `first` on, `n` of them or all, as a plan."""
        last = self.n_rows if n is None else first + n
        found = [
            rows.slice(max(first - start, 0), min(last, start + height) - max(first, start))
            for start, height, rows in self._runs
            if start < last and first < start + height
        ]
        return pl.concat(found or [self._runs[0][2].head(0)])


class UniqueKeys:
    """Tells whether keys are all different, in memory up to `JOINED_BYTES`.

    Keys that rise, but for a few falls, need none; of others hashes are kept, and sorted.
    """

    def __init__(self) -> None:
        """Start without keys."""
        self._runs: list[tuple[Any, Any]] = []  # first and last key of rows that rise
        self._hashes: Partitions | None = None
        self._is_known = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._hashes is not None:
            self._hashes.__exit__(None, None, None)

    def add(self, keys: pl.Series) -> None:
        """Add the next keys, of which none is null."""
        if keys.len() and self._hashes is None and self._is_known:
            chunks = [each for each in keys.get_chunks() if each.len()]  # each is compared in place
            falls = [(c.slice(1) <= c.slice(0, c.len() - 1)).arg_true() for c in chunks]
            if len(self._runs) + sum(map(len, falls)) < _MOST_RUNS:
                for chunk, ends in zip(chunks, falls, strict=True):
                    first, last = [0, *(ends + 1).to_list()], [*ends.to_list(), -1]
                    self._add([(chunk[a], chunk[b]) for a, b in zip(first, last, strict=True)])
                return
            if self._runs:  # whose hashes were not kept
                self._is_known = False
            else:
                most = JOINED_BYTES // 16  # 8 bytes a key, and 8 more while they are sorted
                self._hashes = Partitions({"": pl.Schema({KEY: pl.UInt64})}, most=most)
        if self._hashes is not None:
            self._hashes.add("", keys.hash().alias(KEY).to_frame())

    def _add(self, runs: Sequence[tuple[Any, Any]]) -> None:
        """Add runs, the first of which may go on with the last one."""
        if self._runs and self._runs[-1][1] < runs[0][0]:
            runs = [(self._runs.pop()[0], runs[0][1]), *runs[1:]]
        self._runs += runs

    @property
    def are_unique(self) -> bool:
        """Whether all keys are different; False also where that is not known."""
        if self._hashes is not None:
            in_order = (part[""][KEY].sort() for part in self._hashes)
            return not any((s.slice(1) == s.slice(0, max(s.len() - 1, 0))).any() for s in in_order)
        runs = sorted(self._runs)
        apart = (run[1] < after[0] for run, after in pairwise(runs))
        return self._is_known and all(apart)


def count_keys(
    on: str,
    names: Sequence[str],
    parts: Iterable[Mapping[str, pl.DataFrame]],
    *,
    sides: int = 2,
    must_match: bool = False,
) -> Counts:
    """Count the keys of two tables or more, and of a last one that must have all that they share.

    Args:
        on: What errors call the key.
        names: The tables.
        parts: The tables' rows, with `KEY`; all rows of a key are in one part.
        sides: How many of the first tables are sides; one after them is their reference.
        must_match: Whether a key that only one side has is a fault.
    """
    columns = [f"{_ROWS}{i}" for i in range(len(names))]
    here = [pl.col(column) for column in columns]
    is_null = pl.col(KEY).is_null()
    shared = ~is_null & (pl.min_horizontal(here[:sides]) > 0)
    every = f"{names[0]} and {names[1]}" if sides == 2 else "all others"  # noqa: PLR2004
    faults: dict[str, tuple[pl.Expr, pl.Expr]] = {}
    for name, rows in zip(names, here, strict=True):
        faults[f"null in {name}"] = (is_null & (rows > 0), rows)
    for name, rows in zip(names, here, strict=True):
        faults[f"more than once in {name}"] = (~is_null & (rows > 1), rows)
    for name, rows in zip(names[sides:], here[sides:], strict=True):
        faults[f"in {every}, and not in {name}"] = (shared & (rows == 0), here[0])
    alone = {
        f"in {name} alone": (~is_null & (own > 0) & (pl.sum_horizontal(here[:sides]) == own), own)
        for name, own in zip(names[:sides], here[:sides], strict=True)
    }

    def counted(part: Mapping[str, pl.DataFrame]) -> pl.LazyFrame:
        marked = [
            part[name]
            .lazy()
            .select(KEY, *(pl.lit(int(i == j), pl.Int64).alias(c) for j, c in enumerate(columns)))
            for i, name in enumerate(names)
        ]
        return pl.concat(marked).group_by(KEY).agg(pl.col(columns).sum())

    sums = [rows.sum().alias(column) for rows, column in zip(here, columns, strict=True)]
    sums.append(shared.sum().cast(pl.Int64).alias("common"))
    # A filter here would hold the keys for each sum.
    sums += [
        pl.when(where).then(rows).otherwise(0).sum().alias(what)
        for what, (where, rows) in (faults | alone).items()
    ]
    by_part = [
        _counted_quickly([part[name] for name in names], sides)
        or counted(part).select(sums).collect(engine="streaming").row(0)
        for part in parts
    ]
    columns_of = [*columns, "common", *faults, *alone]
    found = dict(zip(columns_of, map(sum, zip(*by_part, strict=True)), strict=True))
    rows_of = {name: found[column] for name, column in zip(names, columns, strict=True)}
    if must_match or (not found["common"] and all(rows_of[name] for name in names[:sides])):
        faults |= alone
    broken = [what for what in faults if found[what]]
    if broken:

        def first(where: pl.Expr) -> tuple[object, ...]:
            lowest = pl.col(KEY).bottom_k(OFFENDERS_SHOWN)
            some = [counted(part).filter(where).select(lowest).collect() for part in parts]
            return tuple(pl.concat(some).select(lowest.sort()).to_series().to_list())

        raise JoinError(
            on=on,
            rows=rows_of,
            faults={what: (found[what], first(faults[what][0])) for what in broken},
        )
    return Counts(
        rows=tuple(rows_of.values()),
        alone=tuple(found[what] for what in alone),
        common=found["common"],
    )


def _counted_quickly(tables: Sequence[pl.DataFrame], sides: int) -> tuple[int, ...] | None:
    """Return the sums of `count_keys` for tables without a fault of their own; else None."""
    keys = [table.select(KEY) for table in tables]
    if any(k[KEY].null_count() or k[KEY].n_unique() < k.height for k in keys):
        return None
    common = reduce(lambda left, right: left.join(right, on=KEY, how="semi"), keys[:sides])
    if any(common.join(k, on=KEY, how="anti").height for k in keys[sides:]):
        return None
    rows = [k.height for k in keys]
    alone = [n - common.height for n in rows[:sides]]
    if sides > 2 and any(alone):  # noqa: PLR2004  of two, what is not common is alone
        once = pl.concat(keys[:sides]).group_by(KEY).len().filter(pl.col("len") == 1)
        alone = [k.join(once, on=KEY, how="semi").height for k in keys[:sides]]
    n_faults = 2 * len(keys) + len(keys[sides:])
    return (*rows, common.height, *[0] * n_faults, *alone)


def joined(tables: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """Return the rows whose `KEY` all tables have, in no order."""
    plan = reduce(lambda left, right: left.join(right, on=KEY), (each.lazy() for each in tables))
    return plan.collect(engine="streaming")


def folder_keys(
    keys: Mapping[str, Mapping[str, str]],
    schemas: Mapping[str, pl.Schema],
    in_files: pl.Schema,
) -> tuple[pl.Schema, dict[str, tuple[pl.Expr, ...]]]:
    """Return the columns that are in the names of folders, and their values by the path of a file.

    A column that files hold too keeps its type.
    """
    names = list(dict.fromkeys(name for each in keys.values() for name in each))
    types, values = {}, {}
    for name in names:
        texts = {path: own[name] for path, own in keys.items() if name in own}
        holding = [path for path in keys if name in schemas[path]]
        missing = [path for path in keys if path not in texts and path not in holding]
        if missing:
            problem = f"has no {name}, by which other files' folders are named"
            raise StorageError(missing[0], problem)
        dtype = in_files.get(name)
        if holding and (dtype is None or dtype.is_nested()):
            path = next((p for p in reversed(holding) if p in texts), min(texts))
            problem = f"files have columns {name} of several types"
            problem = problem if dtype is None else f"its column {name} is {dtype}"
            raise contradiction(path, name, keys, problem)
        typed = _typed(list(texts.values()), dtype)
        types[name] = typed.dtype
        values[name] = dict(zip(texts, typed, strict=True))
        unlike = [p for p, text in texts.items() if values[name][p] is None and _said(text)]
        if unlike:
            whose = "its" if unlike[0] in holding else "the files'"
            problem = f"{whose} column {name} is {typed.dtype}, which that is not"
            raise contradiction(unlike[0], name, keys, problem)
    return pl.Schema(types), {
        path: tuple(pl.lit(values[name][path], dtype=types[name]).alias(name) for name in own)
        for path, own in keys.items()
    }


def contradiction(
    path: str, name: str, keys: Mapping[str, Mapping[str, str]], problem: str
) -> StorageError:
    """Say that a file's own column is not as the name of its folder says."""
    where = f"is in the folder {name}={keys[path][name]}, but {problem}"
    advice = f"Move the rows to the folder of their {name}, or drop that column from the files."
    return StorageError(path, f"{where}. {advice}")


def _said(text: str) -> str | None:
    """Return the value in the name of a folder."""
    return None if text == _NO_VALUE else unquote(text) or None


def _typed(texts: Sequence[str], dtype: pl.DataType | None) -> pl.Series:
    """Return the values of a key with the type of a column of files, or as Polars types CSV.

    A value that is none of that type is null.
    """
    lines = [_said(text) for text in texts]
    if dtype == pl.String:
        return pl.Series(lines, dtype=pl.String)
    rows = pl.read_csv(
        "\n".join([*(line or "" for line in lines), ""]).encode(),
        has_header=False,
        separator="\0",
        quote_char=None,
        infer_schema_length=None,
        try_parse_dates=True,
    )
    typed = rows.to_series()
    if dtype is not None:
        of_text = isinstance(dtype, (pl.Categorical, pl.Enum))
        return (pl.Series(lines, dtype=pl.String) if of_text else typed).cast(dtype, strict=False)
    # 007 and 7 are two folders, and 007 is no number.
    is_number = not typed.dtype.is_integer() or typed.cast(pl.String).to_list() == lines
    return typed if is_number else pl.Series(lines)
