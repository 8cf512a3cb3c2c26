"""Finds the files of a source, and says what they are: by their footers or first bytes."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias

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

Identities: TypeAlias = Mapping[str, tuple[int, ...]]
"""Paths of files, each with what tells whether it changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Rows of a source that is not read in shards.

    Attributes:
        frame: The rows.
        files: The files that they are read from.
    """

    frame: pl.LazyFrame
    files: Identities


@dataclass(frozen=True, slots=True, kw_only=True)
class Footer:
    """What a footer says.

    Attributes:
        rows: Rows of the file.
        row_groups: Rows of each row group.
        n_bytes: Bytes of all rows before compression; 0 if it is not known.
        identity: What tells whether the file changes.
    """

    rows: int
    row_groups: tuple[int, ...]
    n_bytes: int
    identity: tuple[int, ...]


def footers(paths: Sequence[str], access: Access) -> Iterator[tuple[Footer, pl.Schema]]:
    """Yield the footer and the schema of each file, reading ahead where files are far away."""
    if not is_address(paths[0]):
        yield from (_footer(path, access) for path in paths)
        return
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(REQUESTS_AT_A_TIME) as pool:
        yield from pool.map(partial(_footer, access=access), paths)


def _footer(path: str, access: Access) -> tuple[Footer, pl.Schema]:
    import pyarrow.parquet as pq

    with reading(path, not_parquet):
        frame = pl.scan_parquet(path, glob=False, hive_partitioning=False, **access.polars(path))
        if is_address(path) and not access.is_known(path):
            rows = int(frame.select(pl.len()).collect().item())
            return Footer(
                rows=rows, row_groups=(rows,), n_bytes=0, identity=()
            ), frame.collect_schema()
        if is_address(path):
            system, name = access.filesystem(path)
            footer = pq.read_metadata(name, filesystem=system)
        else:
            footer = pq.read_metadata(path)
        groups = [footer.row_group(i) for i in range(footer.num_row_groups)]
        made = Footer(
            rows=footer.num_rows,
            row_groups=tuple(group.num_rows for group in groups),
            n_bytes=sum(group.total_byte_size for group in groups),
            identity=access.identity(path) if is_address(path) else identity(path),
        )
        return made, frame.collect_schema()


def relative_to(path: str, root: str | None) -> str:
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
        each.address
        for each in found
        if each.address.endswith(".parquet")
        and not any(p.startswith(HIDDEN) for p in each.address.removeprefix(root).split("/"))
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
    """Find the files of a path, a list, a glob, or a folder that holds files with these endings.

    Raises:
        StorageError: There are none, or one is not there.
    """
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
    """As `files_of`, for files that must hold text.

    Raises:
        StorageError: There are none, or one is of a binary format.
    """
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
