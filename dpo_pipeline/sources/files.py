"""Finds the files of a source, and says what they are: by their footers or first bytes."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

import polars as pl

from dpo_pipeline.defaults import REQUESTS_AT_A_TIME
from dpo_pipeline.errors import StorageError
from dpo_pipeline.sources.formats import not_parquet, without_parquet
from dpo_pipeline.storage import Access, identity, is_address, reading

SourcePath: TypeAlias = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""A Parquet file, a list of them, a glob, or a folder (hive-partitioned or not)."""

HIDDEN: Final = (".", "_")
"""Names that begin so are not data: temporary files and markers."""


ARROW_FILE: Final = "an Arrow IPC file"
ARROW_STREAM: Final = "an Arrow IPC stream"
_BINARY: Final = {
    b"PAR1": "Parquet",
    b"ARROW1": ARROW_FILE,
    b"\xff\xff\xff\xff": ARROW_STREAM,
    b"FEA1": "Feather version 1",
    b"PK\x03\x04": "a zip file, as torch writes",
}
"""The first bytes of binary formats."""

_UNKNOWN: Final[tuple[int, ...]] = ()
"""The identity of an object of which only Polars knows how to read it."""

Identities: TypeAlias = Mapping[str, tuple[int, ...]]
"""Paths of files, each with what tells whether it changed."""


class Rows(NamedTuple):
    """Rows of a source that is not read in shards, and the files that they are read from."""

    frame: pl.LazyFrame
    files: Identities


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
    read = partial(_footer, root=root, access=access)
    if not is_address(paths[0]):
        yield from map(read, paths)
        return
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(REQUESTS_AT_A_TIME) as pool:
        yield from pool.map(read, paths)


def _footer(path: str, *, root: str | None, access: Access) -> tuple[PairFile, pl.Schema]:
    import pyarrow.parquet as pq

    is_far = is_address(path)
    with reading(path, not_parquet):
        frame = pl.scan_parquet(path, glob=False, hive_partitioning=False, **access.polars(path))
        if is_far and not access.is_known(path):
            rows, n_bytes = int(frame.select(pl.len()).collect().item()), 0
            groups, now = [rows], _UNKNOWN
        else:
            system, name = access.filesystem(path) if is_far else (None, path)
            footer = pq.read_metadata(name, filesystem=system)
            row_groups = [footer.row_group(i) for i in range(footer.num_row_groups)]
            rows, groups = footer.num_rows, [group.num_rows for group in row_groups]
            n_bytes = sum(group.total_byte_size for group in row_groups)
            now = access.identity(path) if is_far else identity(path)
        file = PairFile(
            path=path,
            relative=_relative_to(path, root),
            rows=rows,
            row_bytes=n_bytes // max(rows, 1),
            row_groups=tuple(groups),
            identity=now,
        )
        return file, frame.collect_schema()


def _relative_to(path: str, root: str | None) -> str:
    """Return the path of a file below the folder of all."""
    if is_address(path):
        return path.removeprefix(root or "").strip("/") if root else path.rpartition("/")[2]
    return os.path.relpath(path, root) if root else os.path.basename(path)


def _found_objects(source: str, access: Access) -> tuple[str | None, list[str]]:
    """Return the folder and the names of objects; those of stores that cannot list, as given."""
    if not access.is_known(source):
        if glob.has_magic(source) or not source.endswith(".parquet"):
            frame = pl.scan_parquet(source, include_file_paths="path", **access.polars(source))
            return _folder_of(source), frame.select("path").unique().collect()["path"].to_list()
        return None, [source]
    root, found = access.find(source)
    names = [
        name
        for name in found
        if name.endswith(".parquet")
        and not any(p.startswith(HIDDEN) for p in name.removeprefix(root).split("/"))
    ]
    return root or None, names


def _folder_of(source: str) -> str:
    magic = min((source.find(c) for c in "*?[" if c in source), default=len(source))
    return source if magic == len(source) else source[: source.rfind("/", 0, magic)]


def found_files(source: SourcePath, access: Access) -> tuple[str, str | None, list[str], bool]:
    """Return the source's name, its root folder, its files in order, and whether it is a folder."""
    if isinstance(source, str) and is_address(source):
        with reading(source):
            root, found = _found_objects(source, access)
        if not found:
            raise StorageError(source, "no .parquet object is there")
        return source, root, sorted(found), root is not None
    if not isinstance(source, (str, os.PathLike)):
        paths = sorted(os.fspath(path) for path in source)
        if not paths:
            raise StorageError("the list of inputs", "it is empty")
        if any(map(is_address, paths)):
            return f"{len(paths)} files", _common_folder(paths), paths, True
        root = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
        return f"{len(paths)} files", root, paths, True
    return _found_paths(os.fspath(source))


def _common_folder(addresses: Sequence[str]) -> str:
    if not all(map(is_address, addresses)):
        raise StorageError("the list of inputs", "it has paths and addresses; give one kind")
    folders = [address.split("/")[:-1] for address in addresses]
    depth = next(
        (i for i, names in enumerate(zip(*folders, strict=False)) if len(set(names)) > 1),
        min(map(len, folders)),
    )
    return "/".join(folders[0][:depth])


def _found_paths(path: str) -> tuple[str, str | None, list[str], bool]:
    if os.path.isdir(path):
        found = [
            os.path.join(folder, name)
            for folder, folders, names in os.walk(path)
            for name in names
            if name.endswith(".parquet")
            and not any(p.startswith(HIDDEN) for p in Path(folder, name).relative_to(path).parts)
        ]
        if not found:
            raise StorageError(path, without_parquet(path))
        return path, path, sorted(found), True
    if not os.path.exists(path) and glob.has_magic(path):
        found = _matches(path)
        if not found:
            raise StorageError(path, "no file matches this pattern")
        magic = next(i for i, p in enumerate(Path(path).parts) if glob.has_magic(p))
        root = os.fspath(Path(*Path(path).parts[:magic]))
        return path, root, found, True
    if os.path.exists(path) and not os.path.isfile(path):
        raise StorageError(path, "is a device or a pipe: Parquet is read from its end")
    return path, None, [path], False


def files_of(source: SourcePath, endings: Sequence[str]) -> Identities:
    """Find the files of a path, a list, a glob, or a folder that holds files with these endings."""
    if not isinstance(source, (str, os.PathLike)):
        found = sorted(os.fspath(path) for path in source)
        name = "the list of inputs"
    else:
        name = os.fspath(source)
        found = [name]
        if os.path.isdir(name):
            pattern = os.path.join(glob.escape(name), "**", "*")
            found = [path for path in _matches(pattern) if path.endswith(tuple(endings))]
        elif not os.path.exists(name) and glob.has_magic(name):
            found = _matches(name)
    if not found:
        raise StorageError(name, f"no file in it or like it (looked for {', '.join(endings)})")
    return identities(found)


def text_files(source: SourcePath, endings: Sequence[str]) -> Identities:
    """As `files_of`, for files that must hold text."""
    files = files_of(source, endings)
    for path in files:
        kind = kind_of(path)
        if kind is not None:
            raise StorageError(path, f"is {kind}, and not text: say so with another format")
        head = _head(path)
        # UTF-16 may begin with a byte order mark; without one it has zero bytes, as text has not.
        if head.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in head[:2]:
            raise StorageError(path, "is UTF-16; save it as UTF-8")
    return files


def identities(paths: Iterable[str]) -> Identities:
    """Return files of this machine with what tells whether they change from now on."""
    found = {}
    for path in paths:
        with reading(path):
            found[path] = identity(path)
    return found


def kind_of(path: str) -> str | None:
    """Return the binary format that a file is in by its first bytes; None if it is in no other."""
    head = _head(path)
    return next((kind for magic, kind in _BINARY.items() if head.startswith(magic)), None)


def _head(path: str) -> bytes:
    if os.path.exists(path) and not os.path.isfile(path):
        raise StorageError(path, "is no file")
    with reading(path), open(path, "rb") as file:
        return file.read(8)


def _matches(pattern: str) -> list[str]:
    """Return the files that match a glob, in order, but for those with hidden names."""
    found = glob.glob(pattern, recursive=True)
    return sorted(
        p for p in found if os.path.isfile(p) and not os.path.basename(p).startswith(HIDDEN)
    )


def lazily(
    schema: pl.Schema, parts: Callable[[list[str], int | None], Iterator[pl.DataFrame]]
) -> pl.LazyFrame:
    """Return rows that are read in parts when they are asked for.

    `parts` gets the names of the columns asked for, and the number of rows if it is limited.
    """
    from polars.io.plugins import register_io_source

    def read(
        names: list[str] | None, predicate: pl.Expr | None, n_rows: int | None, _size: int | None
    ) -> Iterator[pl.DataFrame]:
        for part in parts(list(schema) if names is None else names, n_rows):
            yield part if predicate is None else part.filter(predicate)

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
