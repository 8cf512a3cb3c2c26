"""Publishes outputs whole or not at all: hidden names first, final names last."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import BinaryIO, Final, Self
from weakref import WeakSet

from dpo_pipeline.errors import StorageError
from dpo_pipeline.plan import Output
from dpo_pipeline.storage.locks import (
    final_name,
    hidden_name,
    hold,
    holder,
    identity,
    is_hidden,
    is_still,
    is_tmp,
    journal_name,
    let_go,
    place,
    remove_if_there,
    sync,
    sync_folders,
)
from dpo_pipeline.storage.read_errors import footer_of, reading, system_error

SUCCESS: Final = "_SUCCESS"
"""The marker that a folder of outputs is complete."""

METADATA_KEY: Final = "dpo_pipeline"
"""The key of the run's facts in the Parquet metadata of every output."""

_NO_ROOM: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


@dataclass(slots=True, kw_only=True, eq=False)
class _Staged:
    """A file that is being written under a hidden name; `folder` is set for a folder's marker."""

    hidden: str
    final: str
    lock: int | None = None
    folder: str | None = None
    written: tuple[int, ...] = ()
    renamed: bool = False


class Publication:
    """Outputs on this machine that appear whole or not at all.

    `stage` gives a hidden name beside a target to write to. `commit` makes what was written
    durable and gives each file its final name: in the order staged, and markers of folders after
    all else, so the last one staged is the commit. Leaving without a commit removes everything
    that was staged.

    From `stage` on, a target is locked through its hidden file, a folder through its marker's. A
    run that is killed loses its locks, and the next one for the same output removes what is left.
    Where a file system has no locks, outputs are still whole, but neither a second run for the
    same output nor what a killed one left is noticed.

    `check` says whether a target can be staged, and can be asked without entering.

    Args:
        overwrite: Whether outputs that exist are replaced.
        inputs: Files that are read, each with its `identity`. They never become outputs, and must
            not change before the commit.
        protected: Further files that never become outputs.
    """

    def __init__(
        self,
        *,
        overwrite: bool,
        inputs: Mapping[str, tuple[int, ...]] | None = None,
        protected: Iterable[str | os.PathLike[str]] = (),
    ) -> None:
        self._overwrite = overwrite
        self._inputs = dict(inputs or {})
        more = [os.fspath(path) for path in protected]
        names = [*self._inputs, *more]
        self._kept = {name for path in names for name in (os.path.realpath(path), place(path))}
        # A hard link to an input is the input: same device, same number.
        self._kept_files = {was[:2] for was in self._inputs.values()}
        self._kept_files |= {identity(path)[:2] for path in more if os.path.exists(path)}
        self._files: list[_Staged] = []
        self._markers: list[_Staged] = []
        self._targets: list[str] = []
        self._taken: set[str] = set()
        self._own: set[str] = set()
        self._made: list[str] = []
        self._journals: list[str] = []
        self._publishing = self._committed = False

    @property
    def _steps(self) -> list[_Staged]:
        return [*self._files, *self._markers]

    def __enter__(self) -> Self:
        self._taken.clear()  # of checks that came before
        _ENTERED.add(self)
        return self

    def check(
        self, target: str | os.PathLike[str], relatives: Sequence[str] | None = None
    ) -> Output:
        """Check whether an output can be written now, as staging does; nothing is changed.

        `relatives` are the paths of a folder's parts below it, and None for a file. What a killed
        run left behind is no error where staging removes it.
        """
        path = os.fspath(target)
        if relatives is None:
            return self._check_file(path)
        return self._check_folder(path, relatives)

    def stage(self, target: str | os.PathLike[str]) -> str:
        """Return where to write what shall become `target`."""
        path = os.fspath(target)
        self._check_file(path)
        with reading(path):
            hidden, lock = hold(path, name=path)
            self._files.append(_Staged(hidden=hidden, final=path, lock=lock))
            self._own.add(place(hidden))
            self._targets.append(path)
            self._undo(path, place(path))
        self._check_new(path)
        return hidden

    def stage_folder(self, target: str | os.PathLike[str], relatives: Sequence[str]) -> list[str]:
        """Return where to write the parts of a folder; its marker is published last of all."""
        path = os.fspath(target)
        self._check_folder(path, relatives)
        marker = os.path.join(path, SUCCESS)
        with reading(path):
            for relative in ("", *relatives):
                self._make_folders(os.path.dirname(os.path.join(path, relative)))
            hidden, lock = hold(marker, name=path)
            self._markers.append(_Staged(hidden=hidden, final=marker, lock=lock, folder=path))
            self._own.add(place(hidden))
            self._targets.append(marker)
            self._undo(marker, os.path.realpath(path) + os.sep)
            self._sweep(path)
        self._check_empty(path)
        parts = []
        for relative in relatives:
            part = os.path.join(path, relative)
            # Without a lock of its own: a folder can have more parts than a process open files.
            parts.append(_Staged(hidden=hidden_name(part, locked=lock is not None), final=part))
        self._files += parts
        return [part.hidden for part in parts]

    def commit(self, check: Callable[[], None] | None = None) -> None:
        """Give every output its final name; `check` raises if the run is to stop before that."""
        for step in self._steps:
            with reading(step.final):
                sync(step.hidden)
                step.written = identity(step.hidden)
            if check is not None:
                check()
        for path, was in self._inputs.items():
            if not is_still(path, was):
                raise StorageError(path, "it changed while it was read")
        for file in self._files:
            if os.path.isdir(file.final) or (os.path.lexists(file.final) and not self._overwrite):
                raise StorageError(file.final, "another program made it during this run")
        if self._steps:
            self._write_journals()
            self._publishing = True
            _despite_interrupts(self._publish)

    def __exit__(self, *_error: object) -> None:
        _despite_interrupts(self._clean_up)
        _ENTERED.discard(self)

    def abandon(self) -> None:
        """Remove what is hidden, unless outputs are getting their names at this moment."""
        if not self._publishing:
            for step in self._steps:
                with suppress(OSError):
                    os.unlink(step.hidden)
            self._remove_made()

    def _check_file(self, path: str) -> Output:
        self._check_place(path)
        if not os.path.lexists(journal_name(path)):
            self._check_new(path)
        folder = os.path.dirname(path)
        if folder and not os.path.isdir(folder):
            raise StorageError(path, f"the folder {folder} does not exist")
        self._check_folders_above(path)
        _check_free(path, name=path)
        return Output(path=path, files=None, replaces=os.path.lexists(path))

    def _check_folder(self, path: str, relatives: Sequence[str]) -> Output:
        real = os.path.realpath(path)
        marker = os.path.join(path, SUCCESS)
        if any(name == real or name.startswith(real + os.sep) for name in self._kept):
            raise StorageError(path, "the output folder holds inputs")
        if os.path.lexists(path) and not os.path.isdir(path):
            raise StorageError(path, "is a file, and the output is a folder")
        if not os.path.lexists(journal_name(marker)):
            self._check_empty(path)
        self._check_folders_above(path)
        _check_free(marker, name=path)
        there = _parts(path)
        for part in there:
            if METADATA_KEY.encode() not in (footer_of(part).metadata or {}):
                raise StorageError(part, "is in the output folder and no output of this tool")
        for relative in relatives:
            self._check_place(os.path.join(path, relative))
        return Output(path=path, files=len(relatives), replaces=bool(there))

    def _check_place(self, path: str) -> None:
        real = os.path.realpath(path)
        is_kept = os.path.exists(path) and identity(path)[:2] in self._kept_files
        if is_kept or real in self._kept:
            raise StorageError(path, "the output is also an input")
        if real in self._taken:
            raise StorageError(path, "two outputs have this name")
        if os.path.isdir(path):
            raise StorageError(path, "is a folder, and the output is a file")
        if os.path.exists(path) and not os.path.isfile(path):
            raise StorageError(path, "is a device or a pipe, and the output is a file")
        self._taken.add(real)

    def _check_new(self, path: str) -> None:
        if os.path.lexists(path) and not self._overwrite:
            raise StorageError(path, "exists already; pass overwrite (--overwrite) to replace it")

    def _check_empty(self, folder: str) -> None:
        if not self._overwrite and not all(
            is_hidden(name) for _, _, names in os.walk(folder) for name in names
        ):
            raise StorageError(folder, "is not empty; pass overwrite (--overwrite) to replace it")

    def _check_folders_above(self, path: str) -> None:
        folder = os.path.abspath(path)
        while folder != os.path.dirname(folder):
            folder = os.path.dirname(folder)
            marker = hidden_name(os.path.join(folder, SUCCESS))
            if os.path.lexists(marker) and place(marker) not in self._own:
                with reading(path):
                    if holder(marker) == "alive":
                        raise StorageError(path, f"another run is writing the folder {folder}")

    def _make_folders(self, folder: str) -> None:
        missing = []
        while folder and not os.path.isdir(folder):
            missing.append(folder)
            folder = os.path.dirname(folder)
        for each in reversed(missing):
            os.mkdir(each)
            self._made.append(each)

    def _sweep(self, folder: str) -> None:
        """Remove the hidden files that dead runs left in a folder, which is locked."""
        found = {
            path: holder(path)
            for inside, _, names in os.walk(folder)
            for path in (os.path.join(inside, name) for name in names if is_tmp(name))
            if place(path) not in self._own
        }
        for path, state in found.items():
            if state == "alive":
                raise StorageError(final_name(path), "another run is writing it")
        for path, state in found.items():
            if state == "dead":
                remove_if_there(path)

    def _undo(self, final: str, places: str) -> None:
        """Remove what a run published here that died before it could publish its last output."""
        journal = journal_name(final)
        try:
            with open(journal, encoding="utf-8") as file:
                facts = json.load(file)
        except FileNotFoundError:
            return
        except ValueError:  # it died writing that, so before it published anything
            facts = {"last": ["", []], "targets": [], "published": []}
        last, was = facts["last"]
        if is_still(last, was) and (last in self._own or holder(last) == "dead"):
            for path, each in facts["published"]:
                here = path.startswith(places) if places.endswith(os.sep) else path == places
                if here and is_still(path, each):
                    os.unlink(path)
        else:  # it was published: no journal of it says anything any more
            for path in reversed(facts["targets"]):
                remove_if_there(journal_name(path))
        remove_if_there(journal)

    def _write_journals(self) -> None:
        """Note beside each target what is to be published, so that half of it can be undone.

        Only where nothing is replaced: what was there before could not be brought back.
        """
        last = self._steps[-1]
        if self._overwrite or last is self._steps[0]:
            return
        facts = {
            "last": [place(last.hidden), last.written],
            "targets": [place(target) for target in self._targets],
            "published": [[place(step.final), step.written] for step in self._steps],
        }
        for target in self._targets:
            journal = journal_name(target)
            with reading(target):
                self._journals.append(journal)
                with open(journal, "w", encoding="utf-8") as file:
                    json.dump(facts, file)
                sync(journal)

    def _publish(self) -> None:
        """Rename, markers last; a call that was interrupted can be repeated."""
        for marker in self._markers:
            if os.path.lexists(marker.hidden):
                with reading(marker.final):
                    remove_if_there(marker.final)
                    sync_folders([os.path.dirname(marker.final)])
        touched = {os.path.dirname(folder) for folder in self._made}
        for step in self._steps:
            with reading(step.final):
                if step.folder is not None:
                    published = {place(file.final) for file in self._files}
                    for part in _parts(step.folder):
                        if place(part) not in published:
                            remove_if_there(part)
                            touched.add(os.path.dirname(part))
                if step.folder is not None or step is self._steps[-1]:
                    sync_folders(touched)
                if not is_still(step.final, step.written):
                    os.replace(step.hidden, step.final)
                step.renamed = True
                touched.add(os.path.dirname(step.final))
        self._committed = True
        with reading(self._steps[-1].final):
            sync_folders(touched)

    def _clean_up(self) -> None:
        """Remove what shall not stay; a call that was interrupted can be repeated."""
        unwanted = [step.hidden for step in self._steps if not step.renamed]
        if not (self._committed or self._overwrite):
            unwanted += [step.final for step in self._steps if step.renamed]
        # The first journal goes last: a rerun looks there first, and sees what else is left.
        for path in (*unwanted, *reversed(self._journals)):
            with suppress(OSError):  # nothing more can be done, and an error is on its way
                os.unlink(path)
        if not self._committed:
            self._remove_made()
        for step in self._steps:
            lock, step.lock = step.lock, None
            if lock is not None:
                let_go(lock)

    def _remove_made(self) -> None:
        for folder in reversed(self._made):
            with suppress(OSError):  # somebody else put a file there, which stays
                os.rmdir(folder)


_ENTERED: Final[WeakSet[Publication]] = WeakSet()


def abandon_all() -> None:
    """Remove the hidden files of all publications of this process, which is about to exit."""
    for publication in list(_ENTERED):
        publication.abandon()


@contextmanager
def writing(hidden: str, source: str) -> Iterator[BinaryIO]:
    """Open a staged name; turn an error while `source` is written to it into that of either file.

    Polars shall have the open file and not its name: when a plan fails early, a thread of Polars
    may come to opening the name only when it has been removed already, and make it anew.
    """
    try:
        with open(hidden, "wb", buffering=0) as file:
            yield file
    except BaseException as error:
        at_fault = hidden in str(error) or system_error(error) in _NO_ROOM
        with reading(final_name(hidden) if at_fault else source):
            raise


def _check_free(final: str, *, name: str) -> None:
    """Raise a StorageError about `name` if its hidden file cannot be made now."""
    with reading(name):
        if holder(hidden_name(final)) == "alive":
            raise StorageError(name, "another run is writing it")
    folder = os.path.abspath(os.path.dirname(final))
    while not os.path.isdir(folder):  # it will be made
        folder = os.path.dirname(folder)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StorageError(name, "permission denied")


def _despite_interrupts(action: Callable[[], None]) -> None:
    # Polars can have a second KeyboardInterrupt follow the first one, in the midst of cleaning up.
    interrupt = None
    while True:
        try:
            action()
            break
        except KeyboardInterrupt as error:
            interrupt = error
    if interrupt is not None:
        raise interrupt


def _parts(folder: str) -> list[str]:
    return [
        os.path.join(inside, name)
        for inside, _, names in os.walk(folder)
        for name in names
        if name.endswith(".parquet")
    ]
