"""Hidden files beside outputs: their names, their locks, and how they are made durable.

The system lets go of a process's locks when it ends, however it ends, so a hidden file whose lock
can be had belongs to a run that is dead.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Final, Literal

from dpo_pipeline.errors import StorageError

try:
    import fcntl
except ImportError:  # Windows has other locks; outputs are still whole there
    fcntl = None  # type: ignore[assignment]

_TMP: Final = re.compile(r"\.(.+)\.dpo-pipeline\.(?:[0-9a-f]+\.)?tmp", re.DOTALL)
_NO_FOLLOW: Final = getattr(os, "O_NOFOLLOW", 0)
_UNDO: Final = ".dpo-pipeline.undo"
_NO_LOCKS: Final = {errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL}


def hidden_name(final: str, *, locked: bool = True) -> str:
    """Return where to write what shall become `final`: one name if it is locked, else a new one."""
    folder, name = os.path.split(final)
    unique = "" if locked else f"{secrets.token_hex(8)}."
    return os.path.join(folder, f".{name}.dpo-pipeline.{unique}tmp")


def final_name(hidden: str) -> str:
    """Return what a hidden file shall become."""
    folder, name = os.path.split(hidden)
    match = _TMP.fullmatch(name)
    return os.path.join(folder, match[1]) if match else hidden


def journal_name(final: str) -> str:
    """Return the name of the file that says how to undo a publication that was cut short."""
    folder, name = os.path.split(final)
    return os.path.join(folder, f".{name}{_UNDO}")


def is_tmp(name: str) -> bool:
    """Return whether `hidden_name` made a file name."""
    return _TMP.fullmatch(name) is not None


def is_hidden(name: str) -> bool:
    """Return whether a file name is one that this module makes, and so no output."""
    return is_tmp(name) or (name.startswith(".") and name.endswith(_UNDO))


def place(path: str) -> str:
    """Return the absolute path, with links resolved in the folders and not in the name."""
    folder, name = os.path.split(os.path.abspath(path))
    return os.path.join(os.path.realpath(folder), name)


def identity(path: str) -> tuple[int, ...]:
    """Return what stays the same when a file is renamed, and not when it is written to."""
    found = os.stat(path)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def is_still(path: str, was: Sequence[int]) -> bool:
    """Return whether a file is there and has this identity."""
    try:
        return identity(path) == tuple(was)
    except OSError:
        return False


def hold(final: str, *, name: str) -> tuple[str, int | None]:
    """Make the hidden file of a target and lock it; return its name, and the lock.

    Where the file system has no locks, the name is random and the lock None.
    """
    hidden = hidden_name(final)
    while True:
        handle = os.open(hidden, os.O_RDWR | os.O_CREAT | _NO_FOLLOW, 0o666)
        taken = _lock(handle)
        if taken is None:
            os.close(handle)
            os.unlink(hidden)
            hidden = hidden_name(final, locked=False)
            with open(hidden, "xb"):
                return hidden, None
        if not taken:
            os.close(handle)
            raise StorageError(name, "another run is writing it")
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(hidden), os.fstat(handle)):
                return hidden, handle
        # Its run ended after this one had opened it, and renamed or removed it: make another.
        os.close(handle)


def holder(hidden: str) -> Literal["alive", "dead", "unknown"]:
    """Return whether the run that made a hidden file is at work."""
    try:
        handle = os.open(hidden, os.O_RDWR | _NO_FOLLOW)
    except FileNotFoundError:
        return "unknown"
    taken = _lock(handle)
    if taken:
        let_go(handle)
        return "dead"
    os.close(handle)
    return "unknown" if taken is None else "alive"


def _lock(handle: int) -> bool | None:
    """Return whether a file is now locked, without waiting; None where there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


def let_go(lock: int) -> None:
    """Unlock, also for processes forked meanwhile, and close."""
    if fcntl is not None:
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_UN)
    os.close(lock)


def remove_if_there(path: str) -> None:
    """Remove a file, unless it is gone already."""
    with suppress(FileNotFoundError):
        os.unlink(path)


def sync(path: str) -> None:
    """Make a file, or the names in a folder, durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some file systems cannot sync a folder.
        if error.errno != errno.EINVAL or not stat.S_ISDIR(os.fstat(handle).st_mode):
            raise
    finally:
        os.close(handle)


def sync_folders(folders: Iterable[str]) -> None:
    """Make the names in each folder durable; an empty path is the current one."""
    for folder in folders:
        sync(folder or ".")
