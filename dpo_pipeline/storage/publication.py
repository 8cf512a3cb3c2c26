"""Publishes outputs whole or not at all: hidden names first, final names last."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import BinaryIO, Final, Self
from weakref import WeakSet

from dpo_pipeline.errors import StorageError
from dpo_pipeline.storage.journals import (
    MADE_BY_OTHERS,
    Step,
    recover,
    remove_journals,
    write_journals,
)
from dpo_pipeline.storage.locks import (
    final_name,
    hidden_name,
    hold,
    identity,
    is_still,
    let_go,
    place,
)
from dpo_pipeline.storage.output_checks import SUCCESS, OutputChecks
from dpo_pipeline.storage.read_errors import reading, system_error
from dpo_pipeline.storage.renames import can_exchange, inside, remove, sync

_CHANGED: Final = "it changed while it was read"
_NO_ROOM: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


class Publication(OutputChecks):
    """Outputs on this machine that appear whole or not at all.

    `stage` gives a hidden name beside a target to write to. `commit` makes what was written
    durable and gives each target its final name, in the order staged, so the last one staged is the
    commit. What is replaced is exchanged with what replaces it, a folder as a whole. Leaving
    without a commit removes everything that was staged.

    An error while names are given brings back all that was there before. A run that is killed in
    this moment leaves each target whole, old or new; the next run for one of them first brings back
    all that was there before, if the last name was not given yet.

    From `stage` on, a target is locked through its hidden file. A run that is killed loses its
    locks, and the next one for the same output removes what is left. Where a file system has no
    locks, outputs are still whole, but neither a second run for the same output nor what a killed
    one left is noticed.

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
        super().__init__(overwrite=overwrite, inputs=inputs, protected=protected)
        self.steps: list[Step] = []
        self._made: list[str] = []
        self.is_publishing = self._is_noted = self._committed = self._is_mixed = False

    def __enter__(self) -> Self:
        self._taken.clear()  # of checks that came before
        _ENTERED.add(self)
        return self

    def stage(self, target: str | os.PathLike[str]) -> str:
        """Return where to write what shall become `target`."""
        path = self._check_file(os.fspath(target)).path
        hidden = self._hold(path, None)
        self._check_new(path)
        return hidden

    def stage_folder(self, target: str | os.PathLike[str], relatives: Sequence[str]) -> list[str]:
        """Return where to write the parts of a folder, which gets its name when it is whole."""
        path = self._check_folder(os.fspath(target), relatives).path
        with reading(path):
            self._make_folders(os.path.dirname(path))
        hidden = self._hold(path, relatives)
        with reading(path):
            if self._check_replaceable(path) and not can_exchange(hidden):
                raise StorageError(
                    path,
                    "this file system cannot exchange two folders, which is how one is replaced as "
                    "a whole: name a new folder, or remove this one first",
                )
            parts = [os.path.join(hidden, relative) for relative in relatives]
            for part in parts:
                os.makedirs(os.path.dirname(part), exist_ok=True)
        return parts

    def _hold(self, path: str, parts: Sequence[str] | None) -> str:
        own = {*self._own, place(hidden_name(path))}
        with reading(path):
            hidden, lock = hold(
                path,
                lambda: recover(path, name=path, own=own),
                name=path,
                is_folder=parts is not None,
            )
        locks = [] if lock is None else [lock]
        self.steps.append(Step(hidden=hidden, final=path, parts=parts, locks=locks))
        self._own.add(place(hidden))
        return hidden

    def commit(self, check: Callable[[], None] | None = None) -> None:
        """Give every output its final name; `check` raises if the run is to stop before that."""
        for step in self.steps:
            self._make_durable(step, check)
        for path in self._changed_inputs():
            raise StorageError(path, _CHANGED)
        for step in self.steps:
            if not os.path.lexists(step.final):
                continue
            if os.path.isdir(step.final) != (step.parts is not None):
                raise StorageError(step.final, MADE_BY_OTHERS)
            if step.parts is None and not self._overwrite:
                raise StorageError(step.final, MADE_BY_OTHERS)
            if step.parts is not None:
                self._check_replaceable(step.final)
            step.was = identity(step.final)
        if self.steps:
            self.is_publishing = True
            _despite_interrupts(self._publish)

    def _make_durable(self, step: Step, check: Callable[[], None] | None) -> None:
        if step.parts is not None:
            expected = {os.path.join(step.hidden, part) for part in step.parts}
            there = {path for path in inside(step.hidden) if not os.path.isdir(path)}
            for part in expected - there:
                raise StorageError(final_name(part), "no such file or folder")
            with reading(step.final):
                for path in there - expected:  # of attempts that another one overtook
                    remove(path)
                with open(os.path.join(step.hidden, SUCCESS), "wb"):
                    pass
        for path in (*inside(step.hidden), step.hidden):
            with reading(final_name(path)):
                sync(path)
            if check is not None:
                check()
        step.written = identity(step.hidden)

    def _publish(self) -> None:
        """Give the names; a call that was interrupted can be repeated."""
        last = self.steps[-1]
        try:
            if len(self.steps) > 1 and not self._is_noted:
                with reading(last.final):
                    write_journals(self.steps)
                self._is_noted = True
            for step in self.steps:
                with reading(step.final):
                    if step is last:
                        self._sync_folders()
                    step.publish()
            with reading(last.final):
                self._sync_folders()
        except StorageError as error:
            problem = str(error).removeprefix(f"{error.path}: ")
            raise StorageError(error.path, f"{problem}; {self._taken_back()}") from error
        self._committed = True

    def _taken_back(self) -> str:
        """Bring back all that was there before; say what is there now."""
        new = []
        for step in reversed(self.steps):
            try:
                _twice(step.take_back)
            except OSError:
                new.append(step.final)
        with suppress(OSError):
            self._sync_folders()
        self._is_mixed = bool(new)
        if new:
            return f"{', '.join(new)} could not be brought back, and the next run tries again"
        return "what was there before is there again"

    def _sync_folders(self) -> None:
        named = (*self._made, *(step.final for step in self.steps))
        for folder in {os.path.dirname(path) for path in named}:
            sync(folder)

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        _despite_interrupts(self._clean_up)
        _ENTERED.discard(self)
        if isinstance(error, StorageError) and error.path not in {s.final for s in self.steps}:
            # Rows that are read while others are written break the format in any words.
            for path in self._changed_inputs():
                if os.path.exists(path):
                    raise StorageError(path, _CHANGED) from error

    def _changed_inputs(self) -> Iterator[str]:
        return (path for path, was in self._inputs.items() if not is_still(path, was))

    def abandon(self) -> None:
        """Remove what is hidden, unless outputs are getting their names at this moment."""
        if not self.is_publishing:
            for step in self.steps:
                with suppress(OSError):
                    remove(step.hidden)
            self._remove_made()

    def _clean_up(self) -> None:
        """Remove what shall not stay; a call that was interrupted can be repeated."""
        if not self._is_mixed:
            # Nothing more can be done where this fails, and the next run tries again.
            if self.is_publishing:
                with suppress(OSError):
                    _twice(lambda: remove_journals(self.steps))
            for step in self.steps:
                with suppress(OSError):
                    _twice(step.discard)
        if not self._committed:
            self._remove_made()
        for step in self.steps:
            while step.locks:
                let_go(step.locks.pop())

    def _make_folders(self, folder: str) -> None:
        missing = []
        while folder and not os.path.isdir(folder):
            missing.append(folder)
            folder = os.path.dirname(folder)
        for each in reversed(missing):
            os.mkdir(each)
            self._made.append(each)

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


def _twice(action: Callable[[], None]) -> None:
    try:
        action()
    except OSError:  # such as an interrupted write to a share
        action()


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
