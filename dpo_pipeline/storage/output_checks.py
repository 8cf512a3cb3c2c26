"""Whether an output can be written where it shall be; a plan asks, and staging asks again."""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from dpo_pipeline.defaults import PARQUET_ENDINGS
from dpo_pipeline.errors import StorageError
from dpo_pipeline.plan import Output
from dpo_pipeline.storage.journals import has_journal
from dpo_pipeline.storage.locks import (
    IN_USE,
    check_own,
    final_name,
    hidden_name,
    holder,
    identity,
    is_hidden,
    is_tmp,
    place,
)
from dpo_pipeline.storage.read_errors import footer_of, is_utf8, reading
from dpo_pipeline.storage.renames import inside, is_mine, is_mounted

SUCCESS: Final = "_SUCCESS"
"""The marker that a folder of outputs is complete."""

METADATA_KEY: Final = "dpo_pipeline"
"""The key of the run's facts in the Parquet metadata of every output."""

PART_KEY: Final = "dpo_pipeline.part"
"""The key of a part's path below its folder in the part's metadata: together they list the folder.

A list in a file of its own would make the folder unreadable for Polars.
"""


class OutputChecks:
    """What an output may be, and where; `Publication` describes the arguments."""

    def __init__(
        self,
        *,
        overwrite: bool,
        inputs: Mapping[str, tuple[int, ...]] | None,
        protected: Iterable[str | os.PathLike[str]],
    ) -> None:
        self._overwrite = overwrite
        self._inputs = dict(inputs or {})
        more = [os.fspath(path) for path in protected]
        names = [*self._inputs, *more]
        self._kept = {name for path in names for name in (os.path.realpath(path), place(path))}
        # A hard link to an input is the input: same device, same number.
        self._kept_files = {was[:2] for was in self._inputs.values()}
        self._kept_files |= {identity(path)[:2] for path in more if os.path.exists(path)}
        self._taken: set[str] = set()
        self._own: set[str] = set()

    def check(
        self, target: str | os.PathLike[str], relatives: Sequence[str] | None = None
    ) -> Output:
        """Check whether an output can be written now, as staging does; nothing is changed.

        `relatives` are the paths of a folder's parts below it, and None for a file. What a killed
        run left behind is no error where staging removes it.
        """
        path = os.fspath(target)
        return self._check_file(path) if relatives is None else self._check_folder(path, relatives)

    def _check_file(self, path: str) -> Output:
        self._check_place(path)
        if os.path.isdir(path):
            raise StorageError(path, "is a folder, and the output is a file")
        if os.path.exists(path) and not os.path.isfile(path):
            raise StorageError(path, "is a device or a pipe, and the output is a file")
        self._check_name(path)
        self._check_folders_above(path)
        if not has_journal(path, name=path):
            self._check_new(path)
        folder = os.path.dirname(path)
        if folder and not os.path.isdir(folder):
            raise StorageError(path, f"the folder {folder} does not exist")
        self._check_free(path)
        return Output(path=path, files=None, replaces=os.path.lexists(path))

    def _check_folder(self, path: str, relatives: Sequence[str]) -> Output:
        path = path.rstrip(os.sep) or os.sep
        if os.path.basename(path) in ("", os.curdir, os.pardir):
            path = os.path.abspath(path)
        real = os.path.realpath(path)
        if any(name == real or name.startswith(real + os.sep) for name in self._kept):
            raise StorageError(path, "the output folder holds inputs")
        self._check_place(path)
        if os.path.lexists(path) and not os.path.isdir(path):
            raise StorageError(path, "is a file, and the output is a folder")
        self._check_name(path)
        if f"{os.path.realpath(os.curdir)}/".startswith(f"{real}/"):
            raise StorageError(path, "is or holds the current folder: name a folder inside it")
        self._check_folders_above(path)
        if not has_journal(path, name=path):
            self._check_replaceable(path)
        self._check_free(path)
        there = os.path.isdir(path) and bool(os.listdir(path))
        return Output(path=path, files=len(relatives), replaces=there)

    def _check_place(self, path: str) -> None:
        real = os.path.realpath(path)
        is_kept = os.path.isfile(path) and identity(path)[:2] in self._kept_files
        if is_kept or real in self._kept:
            raise StorageError(path, "the output is also an input")
        if real in self._taken:
            raise StorageError(path, "two outputs have this name")
        for other in self._taken:
            if f"{real}/".startswith(f"{other}/") or f"{other}/".startswith(f"{real}/"):
                raise StorageError(path, f"one output lies in another one, {other}")
        self._taken.add(real)

    def _check_name(self, path: str) -> None:
        """Check that a name can be given to another file: it is no link, and nothing is mounted."""
        if not is_utf8(path):
            raise StorageError(path, "its name is not UTF-8")
        if os.path.islink(path):
            raise StorageError(path, f"is a link to {os.readlink(path)}: name that instead")
        if os.path.exists(path) and is_mounted(path):
            raise StorageError(path, "is a mount point, whose name cannot be given to another file")

    def _check_new(self, path: str) -> None:
        if os.path.lexists(path) and not self._overwrite:
            raise StorageError(path, "exists already; pass overwrite (--overwrite) to replace it")

    def _check_replaceable(self, folder: str) -> bool:
        """Check what is in a folder that gets replaced; return whether anything is."""
        with reading(folder):
            there = [path for path in inside(folder) if not _is_leftover(path)]
            files = [path for path in there if os.path.islink(path) or not os.path.isdir(path)]
        if files and not self._overwrite:
            raise StorageError(folder, "is not empty; pass overwrite (--overwrite) to replace it")
        foreign = sorted(p for p in files if not _is_listed(p, os.path.relpath(p, folder)))
        is_marked = os.path.isfile(os.path.join(folder, SUCCESS))
        if foreign and is_marked and all(map(_is_of_old_output, foreign)):
            raise StorageError(
                folder,
                "looks like an output of dpo_pipeline 0.1.0, which kept no list of its parts: if "
                f"it is one, remove it (rm -r {shlex.quote(folder)}), or name another folder",
            )
        if foreign:
            more = f" (and {len(foreign) - 1:,} more)" if len(foreign) > 1 else ""
            raise StorageError(
                foreign[0],
                f"is in the output folder and not listed by its output{more}: move what is yours "
                "away, or name another folder",
            )
        return bool(there)

    def _check_free(self, path: str) -> None:
        """Check that a hidden file can be made beside an output, and that no other run has one."""
        hidden = hidden_name(path)
        check_own(hidden, name=path)
        with reading(path):
            if holder(hidden) == "alive":
                raise StorageError(path, IN_USE)
            for each in inside(path):
                if is_tmp(os.path.basename(each)) and holder(each) == "alive":
                    raise StorageError(final_name(each), IN_USE)
        above = os.path.abspath(os.path.dirname(path))
        while not os.path.isdir(above):  # it will be made
            above = os.path.dirname(above)
        if not os.access(above, os.W_OK | os.X_OK):
            raise StorageError(path, f"permission denied: {above} cannot be written to")

    def _check_folders_above(self, path: str) -> None:
        above = os.path.dirname(os.path.abspath(path))
        while above != os.path.dirname(above):
            hidden = hidden_name(above)
            if os.path.lexists(hidden) and place(hidden) not in self._own:
                with reading(path):
                    if holder(hidden) == "alive":
                        raise StorageError(path, f"another run is writing the folder {above}")
            above = os.path.dirname(above)


def _is_leftover(path: str) -> bool:
    """Return whether a file is one that a dead run of this user left."""
    return is_hidden(os.path.basename(path)) and is_mine(os.lstat(path))


def _is_listed(path: str, relative: str) -> bool:
    """Return whether a file is Parquet that says it is this part of an output, or the marker."""
    if relative == SUCCESS and not os.path.getsize(path):
        return True
    return _metadata_of(path).get(PART_KEY.encode()) == relative.encode()


def _is_of_old_output(path: str) -> bool:
    """Return whether a file is a part of an output of 0.1.0, which listed none."""
    metadata = _metadata_of(path)
    return METADATA_KEY.encode() in metadata and PART_KEY.encode() not in metadata


def _metadata_of(path: str) -> Mapping[bytes, bytes]:
    if not stat.S_ISREG(os.lstat(path).st_mode) or not path.lower().endswith(PARQUET_ENDINGS):
        return {}
    return footer_of(path).metadata or {}
