"""Which files a source means, by one rule for every format and every kind of input.

A file that is named is read. Of a folder, all files below it are read whose names end as those of
the format do, through links too and each once. A glob names files and folders, and its wildcards
stand for no name that begins with a dot or an underscore. A list holds any of these.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import re
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias, cast

import polars as pl

from dpo_pipeline.defaults import OFFENDERS_SHOWN, PARQUET_ENDINGS
from dpo_pipeline.errors import StorageError
from dpo_pipeline.sources.formats import NDJSON_ENDING, looks_like_data, without_parquet
from dpo_pipeline.storage import LOCAL, Access, glob_regex, identity, is_address, reading, unpacked

SourcePath: TypeAlias = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""A file, a folder (hive-partitioned or not), a glob, or a list of these."""

ARROW_FILE: Final = "an Arrow IPC file"
ARROW_STREAM: Final = "an Arrow IPC stream"
_BINARY: Final = {
    b"PAR1": "Parquet",
    b"ARROW1": ARROW_FILE,
    b"\xff\xff\xff\xff": ARROW_STREAM,
    b"FEA1": "Feather version 1",
    b"PK\x03\x04": "a zip file, as torch writes",
    b"BZh": "packed by bzip2",
    b"\xfd7zXZ": "packed by xz",
}
"""The first bytes of binary formats."""

_TABLES: Final = ("Parquet", ARROW_FILE, "Feather version 1")

DELTA: Final = "Delta Lake"
HUDI: Final = "Hudi"
ICEBERG: Final = "Iceberg"
ICEBERG_FILE: Final = re.compile(r"(v?(?P<version>\d+)(-.*)?|.*)\.metadata\.json(\.gz)?")
_MARKERS: Final = {"_delta_log": DELTA, ".hoodie": HUDI, "metadata": ICEBERG}
"""Folders in a lake table, and the system that makes them. Iceberg's has metadata files too."""

Identities: TypeAlias = Mapping[str, tuple[int, ...]]
"""Paths of files, each with what tells whether it changed."""


class LakeTable(NamedTuple):
    """The folder of a table that is not the sum of its files, and the system that wrote it."""

    system: str
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The files that a source means."""

    name: str  # what reports call the source
    paths: tuple[str, ...] = ()  # in the order of their path strings
    keys: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # of each path's folders
    root: str | None = None  # the folder that all lie below; None for one file that was named
    notes: tuple[str, ...] = ()  # what is left out, and the like, a sentence each
    table: LakeTable | None = None  # what the source is, if it is a lake table and no files

    @property
    def identities(self) -> Identities:
        """The files of this machine, with what tells whether they change from now on."""
        return identities(self.paths)


def find(source: SourcePath, endings: Sequence[str], access: Access = LOCAL) -> Found:
    """Find the files of a source; in a folder, those whose names end in one of `endings`.

    A subfolder that cannot be read and a link to nothing are errors: they would make a smaller
    dataset. So are files of a lake table that is not the source itself.
    """
    is_list = not isinstance(source, (str, os.PathLike))
    items = [os.fspath(path) for path in cast(Any, source if is_list else [source])]
    if not items:
        raise StorageError("the list of inputs", "it is empty")
    if len({is_address(item) for item in items}) > 1:
        raise StorageError("the list of inputs", "it has paths and addresses; give one kind")
    kind = _Objects if is_address(items[0]) else _Paths
    finder = kind(endings=tuple(endings), access=access, is_list=is_list)
    for item in items:
        finder.take(item)
    paths = tuple(sorted(finder.paths))
    name = f"{len(paths)} files" if is_list else items[0]
    table = finder.table()
    if table is not None and not is_list and finder.is_same(table.path, name):
        if endings[0] != PARQUET_ENDINGS[0]:
            raise StorageError(name, f"is a table of {table.system}: leave its format out")
        return Found(name=name, table=table)
    if table is not None:
        where = table.path if is_list else name
        raise StorageError(where, f"belongs to a table of {table.system}, {table.path}: give that")
    if not paths:
        looked = f"no file in it or like it (looked for {', '.join(endings)})"
        is_plain = endings[0] == PARQUET_ENDINGS[0] and os.path.isdir(name)
        said = without_parquet(name) if is_plain else looked
        said = "; ".join([said, *finder.notes(finder.common_root())])
        raise StorageError("the list of inputs" if is_list else name, said)
    root = finder.common_root() if is_list or finder.is_folder else None
    keys = {path: hive_keys(path, finder.bases.get(path, root)) for path in paths}
    notes = tuple(finder.notes(root))
    return Found(name=name, paths=paths, keys=keys, root=root, notes=notes)


def hive_keys(path: str, base: str | None) -> dict[str, str]:
    """Return the keys and values in the names of the folders below a base that a file lies in."""
    folders = [] if base is None else below(path, base).replace(os.sep, "/").split("/")[:-1]
    return dict(name.split("=", 1) for name in folders if "=" in name)


def below(path: str, root: str | None) -> str:
    """Return the path of a file below the folder of all; its name without one."""
    if is_address(path):
        return path.removeprefix(root).strip("/") if root else path.rpartition("/")[2]
    return os.path.relpath(path, root) if root is not None else os.path.basename(path)


def _is_hidden(name: str, *, is_folder: bool) -> bool:
    """Return whether a name is no data's, but a marker or a job's; `_part=1` is a partition."""
    return name.startswith(".") or (name.startswith("_") and not (is_folder and "=" in name))


def _nearly(
    pattern: str, as_regex: Callable[[str], str] = fnmatch.translate
) -> Callable[[str], bool] | None:
    """Return what tells data whose name fits a pattern but for the ending, or for its case."""
    stem, dot, ending = pattern.rpartition(".")
    name = stem.rpartition("/")[2]
    if not dot or not glob.has_magic(name) or glob.has_magic(ending):
        return None
    fits = re.compile(as_regex(f"{stem}.*"), re.IGNORECASE).fullmatch
    return lambda name: bool(fits(name)) and looks_like_data(name, with_json=False)


def _some(names: Sequence[str]) -> str:
    more = f", and {len(names) - OFFENDERS_SHOWN:,} more" if len(names) > OFFENDERS_SHOWN else ""
    return ", ".join(names[:OFFENDERS_SHOWN]) + more


@dataclass(slots=True, kw_only=True)
class _Finder:
    """Gathers the files of a source, item by item."""

    endings: tuple[str, ...]  # of the names of files in folders
    access: Access
    is_list: bool
    is_folder: bool = False  # whether an item is a folder or a glob
    paths: list[str] = field(default_factory=list)
    roots: list[str] = field(default_factory=list)  # the folder of each item, or of a named file
    bases: dict[str, str] = field(default_factory=dict)  # the folder or glob that gave a path
    left_out: set[str] = field(default_factory=set)  # what looks like data and is not read
    second_names: set[tuple[str, str]] = field(default_factory=set)  # and the names that are read

    def fits(self, name: str) -> bool:
        """Return whether a file in a folder is of the format."""
        return name.lower().endswith(self.endings)

    def looks_like_data(self, name: str) -> bool:
        """Return whether a file in a folder is of another format that pairs could be in."""
        return looks_like_data(name, with_json=NDJSON_ENDING in self.endings)

    def notes(self, root: str | None) -> Iterator[str]:
        """Say what is there and is not read."""
        out = [below(path, root) for path in sorted(self.left_out - {*self.paths})]
        if out:
            are = " looks like data and is" if len(out) == 1 else "s look like data and are"
            yield f"{len(out):,} file{are} left out: {_some(out)}"
        twice = [f"{below(a, root)} is {below(b, root)}" for a, b in sorted(self.second_names)]
        if twice:
            lead = " leads" if len(twice) == 1 else "s lead"
            yield f"{len(twice):,} name{lead} to what is read by another one: {_some(twice)}"


class _Paths(_Finder):
    """Files of this machine. Each is found once, whatever links and names lead to it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._base: str | None = None  # of the item that is taken, if it is a folder or a glob
        self._seen: dict[tuple[Any, ...], tuple[str, str | None]] = {}
        self._links: deque[Callable[[], None]] = deque()

    def take(self, item: str) -> None:
        """Take a file, a folder or a glob."""
        self._base = None
        if os.path.isdir(item):
            self._base = item
            self._go(item, ("**",), self._take_inside)
        elif os.path.lexists(item) or not glob.has_magic(item):
            self._take(item)
        else:
            self._take_glob(item)
        self.is_folder |= self._base is not None
        self.roots.append(os.path.dirname(item) if self._base is None else self._base)

    def common_root(self) -> str:
        """Return the folder that all items lie in."""
        if len(self.roots) == 1:
            return self.roots[0]
        return os.path.commonpath([os.path.abspath(root) for root in self.roots])

    def table(self) -> LakeTable | None:
        """Return the lake table that a file or an item belongs to."""
        targets = map(os.path.realpath, filter(os.path.islink, self.paths))
        folders = {*map(os.path.dirname, (*self.paths, *targets)), *self.roots}
        places = {Path(real(folder)) for folder in folders for real in _REAL}
        above = {each for place in places for each in (place, *place.parents)}
        return next(filter(None, map(_lake_table, sorted(above))), None)

    def is_same(self, path: str, item: str) -> bool:
        """Return whether an item is a folder."""
        return os.path.isdir(item) and os.path.samefile(path, item)

    def _take(self, path: str) -> None:
        with reading(path):
            there = os.stat(path)
        if not stat.S_ISREG(there.st_mode):
            raise StorageError(path, "is a device or a pipe, and no file that can be read twice")
        if self._is_new(path, (there.st_dev, there.st_ino)):
            self.paths.append(path)
            if self._base is not None:
                self.bases[path] = self._base

    def _is_new(self, path: str, key: tuple[Any, ...]) -> bool:
        """Return whether a file or a folder was not seen before; another name of it is noted."""
        if key not in self._seen:
            self._seen[key] = path, self._base
            return True
        first, base = self._seen[key]
        real, place = os.path.realpath(path), os.path.realpath(os.path.dirname(path))
        if first != path and os.path.commonpath([real, place]) != real:  # no link up to its folder
            mine = hive_keys(os.path.join(path, "_"), self._base)
            if not mine.items() <= hive_keys(os.path.join(first, "_"), base).items():
                raise StorageError(path, f"is {first} by another name, and in another partition")
            self.second_names.add((path, first))
        return False

    def _take_inside(self, path: str) -> None:
        """Take a file that lies in a folder, if it is of the format."""
        if self.fits(path):
            self._take(path)
        elif self.looks_like_data(path) or kind_of(path) in _TABLES:
            self.left_out.add(path)

    def _take_glob(self, pattern: str) -> None:
        parts = Path(pattern).parts + (("**",) if pattern.endswith(os.sep) else ())
        fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
        self._base = root = os.fspath(Path(*parts[:fixed]))
        matches: list[str] = []
        if os.path.isdir(root):
            self._go(root, parts[fixed:], matches.append)
        if not matches:
            raise StorageError(pattern, "no file matches this pattern")
        files = [path for path in matches if not os.path.isdir(path)]
        is_plain = not any(map(self.fits, files)) and len(files) == len(matches)
        take = self._take if is_plain else self._take_inside
        for path in files:
            take(path)
        for folder in filter(os.path.isdir, matches):
            self._go(folder, ("**",), self._take_inside)

    def _go(self, folder: str, parts: tuple[str, ...], take: Callable[[str], None]) -> None:
        """Take what a pattern matches below a folder; what links lead to, last."""
        self._match(folder, parts, take)
        while self._links:
            self._links.popleft()()

    def _match(self, folder: str, parts: tuple[str, ...], take: Callable[[str], None]) -> None:
        with reading(folder):
            there = os.stat(folder)
        if not self._is_new(folder, (there.st_dev, there.st_ino, parts)):
            return
        part, rest = parts[0], parts[1:]
        if part == "**" and rest:
            self._match(folder, rest, take)
        fits = re.compile(fnmatch.translate("*" if part == "**" else part)).match
        nearly = _nearly(part) if not rest else None
        for entry, is_folder in _inside(folder):
            path = os.path.join("" if folder == os.curdir else folder, entry.name)
            if entry.name[0] != part[0] and _is_hidden(entry.name, is_folder=is_folder):
                if parts == ("**",):
                    self.left_out |= set(filter(self.looks_like_data, files_below(path)))
                continue
            deeper = parts if part == "**" else rest
            if is_folder and deeper and fits(entry.name):
                step = partial(self._match, path, deeper, take)
            elif not rest and not (is_folder and part == "**") and fits(entry.name):
                step = partial(take, path)
            else:
                if not is_folder and nearly is not None and nearly(entry.name):
                    self.left_out.add(path)
                continue
            if entry.is_symlink():
                self._links.append(step)
            else:
                step()


_REAL: Final = (os.path.abspath, os.path.realpath)


def _inside(folder: str) -> Iterator[tuple[os.DirEntry[str], bool]]:
    """Yield the entries of a folder in order, and whether each is a folder."""
    with reading(folder), os.scandir(folder) as entries:
        inside = sorted(entries, key=lambda entry: entry.name)
    for entry in inside:
        try:
            yield entry, stat.S_ISDIR(entry.stat().st_mode)
        except OSError as error:
            if not _is_hidden(entry.name, is_folder=False):
                raise StorageError(entry.path, "is a link to nothing that can be read") from error


def files_below(path: str) -> Iterator[str]:
    """Yield a file, or the files below a folder."""
    if not os.path.isdir(path):
        yield path
    for folder, _, names in os.walk(path):
        yield from (os.path.join(folder, name) for name in names)


def _lake_table(folder: Path) -> LakeTable | None:
    for marker, system in _MARKERS.items():
        with suppress(OSError):
            if _is_of(system, os.listdir(folder / marker)):
                return LakeTable(system, os.fspath(folder))
    return None


def _is_of(system: str, names: Iterable[str]) -> bool:
    """Return whether files of these names in a system's folder are those of a table."""
    return system != ICEBERG or any(map(ICEBERG_FILE.fullmatch, names))


class _Objects(_Finder):
    """Objects in a store. Those of stores that cannot list are as they are given."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._listed: list[str] = []

    def take(self, item: str) -> None:
        """Take an object, a folder or a glob."""
        is_glob = glob.has_magic(item)
        with reading(item):
            if not self.access.is_known(item):
                self._take_unlisted(item, is_glob=is_glob)
                return
            is_named = self.is_list and self.fits(item) and not is_glob
            root, found = ("", [item]) if is_named else self.access.find(item)
        self.roots.append(root or item.rpartition("/")[0])
        if not root:
            self._take(found)
            return
        self.is_folder = True
        if is_glob:
            self._take_glob(item, root, found)
        else:
            self._take(n for n in found if self.fits(n) and not _has_hidden(below(n, root)))
            self.left_out |= set(filter(self.looks_like_data, found)).difference(self.paths)
        tables = {*self.paths, *(() if is_glob else found)}
        above = {folder for name in tables for folder in _folders_of(name)}
        self._listed += [name for name in found if name.rsplit("/", 2)[0] in above]

    def _take_glob(self, pattern: str, root: str, found: Sequence[str]) -> None:
        """Take the objects, and those in the folders, that a glob names."""
        fits = re.compile(glob_regex(pattern)).fullmatch
        seen = {name for name in found if not _has_hidden(below(name, root))}
        named = set(filter(fits, seen))
        named_by = {
            name
            for name in {*found} - named
            for folder in _folders_of(name)
            if fits(folder) and not _has_hidden(below(folder, root))
        }
        ours = set(filter(self.fits, (named | named_by) & seen))
        self._take(sorted(ours or ({} if named_by else named)))
        nearly = _nearly(pattern, glob_regex)
        other = () if nearly is None else filter(nearly, seen)
        looking = filter(self.looks_like_data, named | named_by)
        self.left_out |= {*looking, *other}.difference(self.paths)

    def _take(self, names: Iterable[str]) -> None:
        self.paths += [name for name in dict.fromkeys(names) if name not in self.paths]

    def _take_unlisted(self, item: str, *, is_glob: bool) -> None:
        self.roots.append(item.rpartition("/")[0])
        if self.fits(item) and not is_glob:
            self._take([item])
            return
        self.is_folder = True
        magic = min((item.find(c) for c in "*?[" if c in item), default=len(item))
        self.roots[-1] = item if magic == len(item) else item[: item.rfind("/", 0, magic)]
        frame = pl.scan_parquet(item, include_file_paths="path", **self.access.polars(item))
        self._take(frame.select("path").unique().collect()["path"])

    def common_root(self) -> str:
        """Return the folder that all items lie in."""
        folders = [root.split("/") for root in self.roots]
        same = [len(set(names)) == 1 for names in zip(*folders, strict=False)]
        return "/".join(folders[0][: [*same, False].index(False)])

    def table(self) -> LakeTable | None:
        """Return the lake table that an object or an item belongs to."""
        for name in self._listed:
            path, _, inside = name.rpartition("/")
            path, _, marker = path.rpartition("/")
            if marker in _MARKERS and _is_of(_MARKERS[marker], [inside]):
                return LakeTable(_MARKERS[marker], path)
        for root in filter(self.access.is_known, dict.fromkeys(self.roots)):
            scheme, _, place = root.partition("://")
            folders = place.strip("/").split("/")
            for depth in range(2, len(folders) + 1):  # not all of a bucket
                system = self._lake_at(scheme, "/".join(folders[:depth]))
                if system is not None:
                    return LakeTable(system, f"{scheme}://{'/'.join(folders[:depth])}")
        return None

    def _lake_at(self, scheme: str, folder: str) -> str | None:
        from pyarrow import fs

        store, _ = self.access.filesystem(f"{scheme}://{folder}")
        with suppress(OSError):  # who may read a folder need not see those above
            for info in store.get_file_info([f"{folder}/{marker}" for marker in _MARKERS]):
                if info.type == fs.FileType.Directory:
                    inside = store.get_file_info(fs.FileSelector(info.path))
                    if _is_of(_MARKERS[info.base_name], (each.base_name for each in inside)):
                        return _MARKERS[info.base_name]
        return None

    def is_same(self, path: str, item: str) -> bool:
        """Return whether an item is a folder."""
        return path == item.rstrip("/")


def _folders_of(address: str) -> Iterator[str]:
    """Yield the folders that an object lies in, down from its store."""
    scheme, _, path = address.partition("://")
    parts = path.split("/")[:-1]
    yield from (f"{scheme}://{'/'.join(parts[: i + 1])}" for i in range(len(parts)))


def _has_hidden(name: str) -> bool:
    *folders, last = name.split("/")
    is_hidden = any(_is_hidden(each, is_folder=True) for each in folders)
    return is_hidden or _is_hidden(last, is_folder=False)


def text_files(source: SourcePath, endings: Sequence[str]) -> Found:
    """As `find`, for files that must hold text, compressed or not."""
    found = find(source, endings)
    if is_address(found.paths[0]):
        raise StorageError(found.paths[0], "is in an object store, where Parquet alone is read")
    for path in found.paths:
        kind = kind_of(path)
        if kind is not None:
            raise StorageError(path, f"is {kind}, and not text: say so with another format")
        head = _head(path)
        # UTF-16 may begin with a byte order mark; without one it has zero bytes, as text has not.
        if head.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in head[:2]:
            raise StorageError(path, "is UTF-16; save it as UTF-8")
    return found


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
    with unpacked(path) as file:
        return file.read(8)
