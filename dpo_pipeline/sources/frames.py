"""Sources that are one frame, and no shards: dataframes, streams, Arrow IPC files, lake tables.

Whatever gives record batches is read batch by batch, so that memory does not grow with the rows.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from threading import Lock
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Protocol, TypeAlias
from weakref import finalize

import polars as pl

from dpo_pipeline.errors import ColumnError, StorageError, UsageError
from dpo_pipeline.sources.common_schema import common_schema, readable_schema, unreadable
from dpo_pipeline.sources.files import (
    ARROW_FILE,
    ARROW_STREAM,
    DELTA,
    ICEBERG,
    ICEBERG_FILE,
    Identities,
    LakeTable,
    SourcePath,
    files_below,
    find,
    identities,
    kind_of,
)
from dpo_pipeline.sources.formats import FORMATS, IPC
from dpo_pipeline.storage import Access, is_address, is_arrow, reading

ROWS_HELD: Final = 16_384
"""Rows of a frame that is handed to Polars at a time."""


class Dump(NamedTuple):
    """Lists of token log-probs that were read, and their tokens.

    `n_given` are of a text that the model was given (prompt log-probs), `n_generated` of tokens
    that it wrote.
    """

    n_given: int
    n_generated: int
    n_tokens: int

    @property
    def n_lists(self) -> int:
        """How many lists were read."""
        return self.n_given + self.n_generated

    @property
    def text(self) -> str:
        """What was read, in words."""
        kinds = {
            "prompt log-probs, of text that was given": self.n_given,
            "log-probs of generated tokens": self.n_generated,
        }
        read = " and ".join(f"{kind}: {n:,} lists" for kind, n in kinds.items() if n)
        return f"{read}; {self.n_tokens:,} tokens"


class Dumped(Protocol):
    """A dataset, as far as its token log-probs go."""

    @property
    def name(self) -> str:
        """What reports call it."""

    @property
    def dump(self) -> Dump | None:
        """What was read token by token."""


def dumps_apart(policy: Dumped, other: Dumped) -> Iterator[str]:
    """Yield what makes two dumps of the same pairs doubtful."""
    a, b, here, there = policy.name, other.name, policy.dump, other.dump
    if here is None or there is None:
        return
    for one, beside, given, generated in ((here, there, a, b), (there, here, b, a)):
        if not one.n_generated and not beside.n_given:
            yield (
                f"{given} has prompt log-probs, of text that was given, and {generated} those of "
                "tokens that a model generated: they are of the same text only where the one model "
                "was given what the other wrote"
            )
    more = there.n_tokens - here.n_tokens
    if here.n_lists == there.n_lists and abs(more) == here.n_lists > 0:
        longer, shorter = (b, a) if more > 0 else (a, b)
        yield (
            f"{longer} has one token a list more than {shorter} ({there.n_tokens:,} and "
            f"{here.n_tokens:,} tokens in {here.n_lists:,} lists), as where one counts the end "
            "token and the other does not"
        )


class Rows(NamedTuple):
    """Rows of a source that is not read in shards, its files, and what is to be said about it."""

    frame: pl.LazyFrame
    files: Identities
    notes: tuple[str, ...] = ()
    unread: Mapping[str, str] = MappingProxyType({})  # columns that Polars cannot read, and why
    dump: Dump | None = None  # what was read token by token


Batches: TypeAlias = Callable[[list[str], int | None], Iterator[pl.DataFrame]]
"""From the names of the columns asked for, and the number of rows if it is limited, to rows."""


def lazily(schema: pl.Schema, parts: Batches) -> pl.LazyFrame:
    """Return rows that are read in parts when they are asked for."""
    from polars.io.plugins import register_io_source

    def read(
        names: list[str] | None, predicate: pl.Expr | None, n_rows: int | None, _size: int | None
    ) -> Iterator[pl.DataFrame]:
        left = n_rows
        asked = list(schema) if names is None else names or [*schema][:1]
        # Polars holds a number of frames that wait, whatever their size.
        for part in (few for each in parts(asked, n_rows) for few in each.iter_slices(ROWS_HELD)):
            rows = part if left is None else part.head(left)
            kept = rows if predicate is None else rows.filter(predicate)
            yield kept.drop(kept.columns) if names == [] else kept  # of their number alone
            left = None if left is None else left - rows.height
            if left == 0:
                return

    return register_io_source(read, schema=schema)


@contextmanager
def reading_as(path: str, what: str) -> Iterator[None]:
    """As `reading`, saying as what the file was to be read."""
    with reading(path):
        try:
            yield
        except Exception as error:
            if not (
                isinstance(error, pl.exceptions.PolarsError) or is_arrow(error, "ArrowInvalid")
            ):
                raise
            why = str(error).splitlines()[0]
            raise StorageError(path, f"cannot be read as {what}: {why}") from error


def ipc(source: SourcePath, columns: Mapping[str, str] | None = None) -> Rows:  # noqa: ARG001
    """Return the rows of Arrow IPC files or streams."""
    found = find(source, FORMATS[IPC].endings)
    kinds = {path: kind_of(path) for path in found.paths}
    for path, kind in kinds.items():
        if kind not in (ARROW_FILE, ARROW_STREAM):
            raise StorageError(path, f"is {kind}, not Arrow IPC" if kind else "is not Arrow IPC")
    rows = in_batches(found.paths)._replace(notes=found.notes)
    if set(kinds.values()) == {ARROW_STREAM} or rows.unread:
        return rows
    with reading_as(found.paths[0], "an Arrow IPC file"):
        frame = pl.scan_ipc(list(found.paths), glob=False)
        frame.collect_schema()
    return Rows(frame, found.identities, found.notes)


def in_batches(paths: Iterable[str]) -> Rows:
    """Return the rows of Arrow IPC, mapped into memory and read batch by batch."""
    schemas = {}
    unread: dict[str, str] = {}
    for path in paths:
        arrow = next(_batches(path))
        unread |= unreadable(arrow)
        with reading_as(path, "Arrow IPC"):
            schemas[path] = readable_schema(arrow, unread)
    first, schema = next(iter(schemas.items()))
    odd = next((path for path, other in schemas.items() if other != schema), None)
    if odd is not None:
        raise StorageError(odd, f"has other columns or types than {first}")

    def parts(names: list[str], _n_rows: int | None) -> Iterator[pl.DataFrame]:
        for path in schemas:
            batches = _batches(path)
            next(batches)
            yield from (pl.DataFrame(batch.select(names)) for batch in batches)

    return Rows(lazily(schema, parts), identities(schemas), unread=unread)


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
    paths: Sequence[str], skip: int, *, schema: pl.Schema, access: Access
) -> pl.LazyFrame:
    """Return rows of Parquet under a schema, of which Polars reads all types; others stay unread.

    The first `skip` rows are left out, and row groups that hold no others are not read. Columns
    that a file lacks are null.
    """

    def parts(names: list[str], _n_rows: int | None) -> Iterator[pl.DataFrame]:
        import pyarrow.parquet as pq

        skipped = skip
        for path in paths:
            system, name = access.filesystem(path) if is_address(path) else (None, path)
            with reading(path), pq.ParquetFile(name, filesystem=system, pre_buffer=False) as file:
                there = file.schema_arrow.names
                own = [each for each in names if each in there]
                own = own or [next(each for each in there if each in schema)]
                lacking = {n: pl.lit(None, dtype=schema[n]) for n in names if n not in there}
                groups = list(range(file.num_row_groups))
                while groups and (size := file.metadata.row_group(groups[0]).num_rows) <= skipped:
                    skipped, groups = skipped - size, groups[1:]
                for batch in file.iter_batches(row_groups=groups, columns=own):
                    rows = pl.DataFrame(batch.select(own)).slice(skipped).with_columns(**lacking)
                    skipped = max(skipped - batch.num_rows, 0)
                    yield rows.select(pl.col(each).cast(schema[each]) for each in names)

    return lazily(schema, parts)


def as_lazy(pairs: Any, columns: Mapping[str, str] | None = None, *, again: bool) -> pl.LazyFrame:
    """Return any dataframe, or several, as a LazyFrame.

    `again` says that rows are read more than once: of a stream, all columns are kept then.
    """
    if isinstance(pairs, (pl.LazyFrame, pl.DataFrame)):
        return pairs.lazy()
    of_library = _OF_LIBRARIES.get(type(pairs).__module__.partition(".")[0])
    can = {name for name in _CAN if hasattr(pairs, name)}
    frame: Any = None
    try:
        if isinstance(pairs, (list, tuple)) and pairs and not isinstance(pairs[0], Mapping):
            frame = _one_of([as_lazy(each, again=again) for each in pairs], columns)
        elif of_library is not None:
            frame = of_library(pairs, again)
        elif {"__arrow_c_stream__", "__len__"} <= can or isinstance(pairs, Mapping):  # in memory
            frame = _in_memory(pairs)
        elif can & {"__arrow_c_stream__", "to_reader"}:
            # Of two streams that are read side by side, the reading may be broken off.
            frame = _Once(pairs, all_columns=again, ahead=again).lazy()
        elif {"to_batches", "schema"} <= can:
            frame = _of_arrow_dataset(pairs)
        elif "to_polars" in can:  # datasets.Dataset has no Arrow stream of its own
            frame = as_lazy(pairs.to_polars(), again=again)
    except (*_NO_FRAME, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise UsageError(f"pairs cannot be read as a dataframe: {error}") from error
    if isinstance(frame, pl.LazyFrame):
        return frame
    raise UsageError(
        "pairs must be a dataframe (Polars, pyarrow, pandas, DuckDB, datasets.Dataset, DeltaTable, "
        "or anything with __arrow_c_stream__), a list of these, or, for calls that read files, a "
        f"path; found {type(pairs).__name__}"
    )


_NO_FRAME: Final = (TypeError, ValueError, ImportError, NotImplementedError)
_QUOTED: Final = re.compile(r"""'[^']*'|"[^"]*\"""")
_ODD_OF_DUCKDB: Final = ("INTERVAL", "UNION", "VARIANT")
_CAN: Final = ("__arrow_c_stream__", "__len__", "to_reader", "to_batches", "schema", "to_polars")


def _in_memory(pairs: Any) -> pl.LazyFrame:
    library = type(pairs).__module__.partition(".")[0]
    if library == "pyarrow":
        _schema_of(pairs.schema)
    frame = pl.DataFrame(pairs)
    if library == "pandas":
        # Polars takes NaN of pandas for null, also where it was computed.
        types = {n: pairs[n].dtype for n in frame.columns if n in pairs}
        floats = [n for n, dtype in types.items() if getattr(dtype, "kind", "") == "f"]
        frame = frame.with_columns(
            pl.Series(n, pairs[n].to_numpy()) for n in floats if not hasattr(types[n], "na_value")
        )
    return frame.lazy()


def _schema_of(arrow: Any) -> pl.Schema:
    """Return the columns of a table of Arrow; a dataframe has none that Polars does not read."""
    odd = unreadable(arrow)
    if odd:
        problems = "; ".join(f"{name}: {why}" for name, why in odd.items())
        raise UsageError(f"{problems}: drop the column before")
    return readable_schema(arrow, ())


def _one_of(frames: Sequence[pl.LazyFrame], columns: Mapping[str, str] | None) -> pl.LazyFrame:
    """Return the rows of several frames, whose columns may differ as those of files may."""
    schemas = [frame.collect_schema() for frame in frames]
    common = common_schema(
        ((f"frame {i} of the list", schema) for i, schema in enumerate(schemas)), columns
    )
    if common.unread:
        raise ColumnError("the list", tuple(f"{n}: {why}" for n, why in common.unread.items()))
    if common.schema is None:
        return pl.concat(frames)
    return pl.concat(
        frame.select(
            (pl.col(name) if name in schema else pl.lit(None).alias(name)).cast(dtype)
            for name, dtype in common.schema.items()
        )
        for frame, schema in zip(frames, schemas, strict=True)
    )


def _of_arrow_dataset(data: Any) -> pl.LazyFrame:
    import pyarrow as pa
    from pyarrow.dataset import ParquetFileFormat, ParquetFragmentScanOptions

    # With threads, pyarrow reads ahead by more than these say, and more the slower the rest is.
    options: dict[str, Any] = {"use_threads": False, "batch_size": ROWS_HELD}
    options |= {"batch_readahead": 0, "fragment_readahead": 0}
    if isinstance(getattr(data, "format", None), ParquetFileFormat):
        # Read ahead, column chunks of whole files would stay in memory.
        options["fragment_scan_options"] = ParquetFragmentScanOptions(pre_buffer=False)

    def parts(names: list[str], _n_rows: int | None) -> Iterator[pl.DataFrame]:
        try:
            for batch in data.to_batches(columns=names, **options):
                yield pl.DataFrame(batch)
        except (pa.ArrowException, OSError) as error:
            raise StorageError("the pyarrow dataset", str(error).splitlines()[0]) from error

    return lazily(_schema_of(data.schema), parts)


class _Once:
    """A stream of record batches that can be read once.

    What the first reading asks for is kept in a temporary file, for readings after it. With
    `ahead`, all is kept before a row is given: a connection of DuckDB gives one stream at a time.
    """

    def __init__(self, stream: Any, *, all_columns: bool, ahead: bool = False) -> None:
        self._stream, self._all_columns, self._ahead = stream, all_columns, ahead
        self._name = type(stream).__name__
        self._kept: str | None = None

    def lazy(self) -> pl.LazyFrame:
        """Return the rows."""
        import pyarrow as pa

        if hasattr(self._stream, "limit"):  # a relation of DuckDB, whose query is not run yet
            return lazily(self._stream.limit(0).pl().schema, self._parts)
        is_scanner = hasattr(self._stream, "to_reader")
        made = self._stream.to_reader() if is_scanner else self._stream
        self._stream = pa.RecordBatchReader.from_stream(made)
        return lazily(_schema_of(self._stream.schema), self._parts)

    def _parts(self, names: list[str], _n_rows: int | None) -> Iterator[pl.DataFrame]:
        if self._ahead:
            with _LOCK:
                for _ in self._first(names) if self._stream is not None else ():
                    pass
        elif self._stream is not None:
            yield from self._first(names)
            return
        yield from self._again(names)

    def _first(self, names: list[str]) -> Iterator[pl.DataFrame]:
        import pyarrow as pa

        reader, self._stream = pa.RecordBatchReader.from_stream(self._stream), None
        kept = reader.schema.names if self._all_columns else names
        handle, path = tempfile.mkstemp(prefix="dpo-pipeline-", suffix=".arrow")
        os.close(handle)
        finalize(self, os.unlink, path)
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        schema = pa.schema([reader.schema.field(name) for name in kept])
        with reading(path), pa.ipc.new_stream(path, schema, options=options) as file:
            for batch in reader:
                file.write_batch(batch.select(kept))
                yield pl.DataFrame(batch.select(names))
        self._kept = path

    def _again(self, names: list[str]) -> Iterator[pl.DataFrame]:
        import pyarrow as pa

        advice = "write it to Parquet first, or give a pyarrow Table or Dataset"
        if self._kept is None:
            raise StorageError(self._name, f"can be read once, and was read in part: {advice}")
        with reading(self._kept), pa.OSFile(self._kept) as file, pa.ipc.open_stream(file) as rows:
            missing = [name for name in names if name not in rows.schema.names]
            if missing:
                problem = f"can be read once, and {', '.join(missing)} was not asked for then"
                raise StorageError(self._name, f"{problem}: {advice}")
            for batch in rows:
                yield pl.DataFrame(batch.select(names))


_LOCK: Final = Lock()


def lake_rows(table: LakeTable, access: Access) -> Rows:
    """Return the rows that a lake table has now."""
    path, is_far = table.path, is_address(table.path)
    files = {} if is_far else identities(files_below(path))
    if table.system == DELTA and find_spec("deltalake") is not None:
        with _lake_errors(table):
            return Rows(_known(pl.scan_delta(path, **access.polars(path))), files)
    if table.system == ICEBERG and find_spec("pyiceberg") is not None and not is_far:
        metadata, notes = _current_metadata(os.path.join(os.path.abspath(path), "metadata"))
        with _lake_errors(table):
            return Rows(_known(_scan_iceberg(metadata)), files, notes)
    line = {
        DELTA: f"pl.scan_delta({path!r})",
        ICEBERG: f"pl.scan_iceberg({path + '/metadata/NAME.metadata.json'!r})",
    }.get(table.system, f"HudiTableBuilder.from_base_uri({path!r}).build().read_snapshot()")
    library = {DELTA: "deltalake", ICEBERG: "pyiceberg"}.get(table.system)
    install = "" if library is None or is_far else f" (or pip install {library})"
    raise StorageError(
        path,
        f"is a table of {table.system}, and its files hold more rows than the table: in Python "
        f"give {line}{install}",
    )


def _known(frame: pl.LazyFrame) -> pl.LazyFrame:
    """Return a plan whose columns were asked for, which opens some tables."""
    frame.collect_schema()
    return frame


@contextmanager
def _lake_errors(table: LakeTable) -> Iterator[None]:
    """Turn the errors of libraries for lake tables, which are of no common type, into ours."""
    with reading(table.path):
        try:
            yield
        except Exception as error:
            if isinstance(error, (OSError, MemoryError)):
                raise
            why = str(error).splitlines()[0] if str(error) else type(error).__name__
            problem = f"cannot be read as a table of {table.system}: {why}"
            raise StorageError(table.path, problem) from error


def _current_metadata(folder: str) -> tuple[str, tuple[str, ...]]:
    """Return the file that describes an Iceberg table now, and what is to be said about it."""
    found = filter(None, map(ICEBERG_FILE.fullmatch, os.listdir(folder)))
    versions = {match[0]: int(match["version"] or -1) for match in found}
    hint = os.path.join(folder, "version-hint.text")
    newest = max(versions.values())
    if os.path.exists(hint):
        with open(hint, encoding="utf-8") as file:
            text = file.read().strip()
        newest = int(text) if text.isdigit() else versions.get(text, newest)
    named = [name for name, version in versions.items() if version == newest]
    if len(named) != 1:
        several = f"{len(named)} files of version {newest}"
        raise StorageError(folder, f"has {several}: give pl.scan_iceberg(...) of the right one")
    note = f"read as of {named[0]}, the newest in the folder; a catalog may have another"
    return os.path.join(folder, named[0]), () if os.path.exists(hint) else (note,)


def _scan_iceberg(table: Any) -> pl.LazyFrame:
    if find_spec("polars_iceberg") is None:  # Polars would warn that it plans without it
        os.environ.setdefault("POLARS_ICEBERG_PLANNER", "pyiceberg")
    return pl.scan_iceberg(table)


def _of_duckdb(relation: Any, again: bool) -> Any:
    for name, dtype in zip(relation.columns, relation.types, strict=True):
        words = re.findall(r"\w+", _QUOTED.sub("", str(dtype)))
        odd = next((word for word in words if word in _ODD_OF_DUCKDB), None)
        if odd is not None:
            raise UsageError(
                f"{name}: it is {odd}, which Polars does not read: drop the column before"
            )
    return _Once(relation, all_columns=True, ahead=True).lazy() if again else relation.pl(lazy=True)


_OF_LIBRARIES: Final[Mapping[str, Callable[[Any, bool], Any]]] = {
    "deltalake": lambda table, _: pl.scan_delta(table),
    "pyiceberg": lambda table, _: _scan_iceberg(table),
    "duckdb": _of_duckdb,
    "_duckdb": _of_duckdb,
}
"""Library to what reads its tables; the second argument says whether rows are read again."""
