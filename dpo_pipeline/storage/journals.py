"""What a publication does to one output, and the journal with which a later run undoes it."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Container, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from dpo_pipeline.errors import StorageError
from dpo_pipeline.storage.locks import (
    IN_USE,
    NO_FOLLOW,
    check_own,
    holder,
    is_still,
    journal_name,
    kept_name,
    lock_of,
    place,
)
from dpo_pipeline.storage.renames import CANNOT, exchange, keep_mode, name_new, remove, sync

MADE_BY_OTHERS: Final = "another program made it during this run"


@dataclass(slots=True, kw_only=True, eq=False)
class Step:
    """An output that is written under a hidden name, and then gets its final one.

    `written` is the identity of what was written, and `was` that of what it replaces. `parts` are
    the files in a folder, and None for a file.
    """

    hidden: str
    final: str
    parts: Sequence[str] | None = None
    written: tuple[int, ...] = ()
    was: tuple[int, ...] | None = None
    locks: list[int] = field(default_factory=list)

    def publish(self) -> None:
        """Give it its name, and keep what had that name; may be repeated.

        Where names cannot be exchanged, a file that is replaced is kept under a second name, and
        of folders only an empty one is replaced.
        """
        if is_still(self.final, self.written):
            return
        if self.was is None:
            try:
                name_new(self.hidden, self.final)
            except FileExistsError as error:
                raise StorageError(self.final, MADE_BY_OTHERS) from error
            return
        keep_mode(self.hidden, self.final)
        # What is replaced gets the hidden name: no other run shall take that for a dead one's.
        lock = lock_of(self.final)
        if lock is not None:
            self.locks.append(lock)
        try:
            exchange(self.hidden, self.final)
        except OSError as error:
            if error.errno not in CANNOT:
                raise
            self._replace()
            return
        if not is_still(self.hidden, self.was):
            exchange(self.hidden, self.final)
            raise StorageError(self.final, MADE_BY_OTHERS)

    def _replace(self) -> None:
        if self.parts is not None:
            os.rename(self.hidden, self.final)
            return
        kept = kept_name(self.final)
        remove(kept)
        try:
            os.link(self.final, kept)
        except OSError:  # a file system without second names
            shutil.copy2(self.final, kept)
        os.replace(self.hidden, self.final)

    def take_back(self) -> None:
        """Bring back what was there before; may be repeated."""
        if not is_still(self.final, self.written):
            return
        kept = kept_name(self.final)
        if self.was is None:
            try:
                name_new(self.final, self.hidden)
            except FileExistsError:  # another run waits for its turn
                remove(self.final)
        elif is_still(self.hidden, self.was):
            exchange(self.hidden, self.final)
        elif self.parts is None:
            os.replace(kept, self.final)
        else:
            os.rename(self.final, self.hidden)
            os.mkdir(self.final)

    def discard(self) -> None:
        """Remove what has no final name: what was replaced, or what was not published."""
        if not is_still(self.final, self.written) or is_still(self.hidden, self.was):
            remove(self.hidden)
        if self.was is not None and self.parts is None:
            remove(kept_name(self.final))


def write_journals(steps: Sequence[Step]) -> None:
    """Note beside each output what is to be published, so that half of it can be undone."""
    facts = [
        [place(step.hidden), place(step.final), step.parts is not None, step.written, step.was]
        for step in steps
    ]
    for step in steps:
        journal = journal_name(step.final)
        if check_own(journal, name=step.final):
            remove(journal)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_FOLLOW
        with os.fdopen(os.open(journal, flags, 0o600), "w", encoding="utf-8") as file:
            json.dump(facts, file)
        sync(journal)


def remove_journals(steps: Sequence[Step]) -> None:
    """Remove the journals, the first one last: a later run looks there first."""
    for step in reversed(steps):
        remove(journal_name(step.final))


def recover(final: str, *, name: str, own: Container[str]) -> None:
    """Undo the whole publication that a dead run left half done, if its journal is at this output.

    `own` are hidden files that this run holds. Errors are about `name`.
    """
    steps = _read(journal_name(final), name=name)
    if steps is None:
        return
    if steps and is_still(steps[-1].hidden, steps[-1].written):  # so it was not published
        for step in steps:
            if step.hidden not in own and holder(step.hidden) == "alive":
                raise StorageError(name, IN_USE)
        for step in reversed(steps):
            step.take_back()
    for step in steps:
        if step.hidden not in own:
            for was in (step.written, step.was):
                if is_still(step.hidden, was):
                    remove(step.hidden)
    remove_journals(steps)
    remove(journal_name(final))


def has_journal(final: str, *, name: str) -> bool:
    """Return whether a dead run left its journal at an output."""
    return _read(journal_name(final), name=name) is not None


def _read(journal: str, *, name: str) -> list[Step] | None:
    """Return the steps that a journal lists; none if it was cut short, which is before the first.

    One that this user did not make is an error.
    """
    if check_own(journal, name=name) is None:
        return None
    with os.fdopen(os.open(journal, os.O_RDONLY | NO_FOLLOW), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1 or found.st_mode & 0o022:
            raise StorageError(name, f"{journal} is not as a run makes it: remove it")
        with suppress(ValueError, TypeError):
            return [_step(*each) for each in json.load(file)]
    return []


def _step(hidden: str, final: str, is_folder: bool, written: Sequence[int], was: Any) -> Step:
    return Step(
        hidden=hidden,
        final=final,
        parts=() if is_folder else None,
        written=tuple(written),
        was=None if was is None else tuple(was),
    )
