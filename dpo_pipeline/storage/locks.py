"""Hidden files and folders beside outputs: their names, their owners and their locks.

The system lets go of a process's locks when it ends, however it ends, so a hidden file whose lock
can be had belongs to a run that is dead. Others can make files in a shared folder too: a hidden
file is made anew by the run that writes to it, and one of another user is an error.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, Literal

from dpo_pipeline.errors import StorageError
from dpo_pipeline.storage.renames import is_mine, remove

try:
    import fcntl
except ImportError:  # Windows has other locks; outputs are still whole there
    fcntl = None  # type: ignore[assignment]

_TMP: Final = re.compile(r"\.(.+)\.dpo-pipeline\.(?:[0-9a-f]+\.)?tmp", re.DOTALL)
NO_FOLLOW: Final = getattr(os, "O_NOFOLLOW", 0)
_UNDO: Final = ".dpo-pipeline.undo"
IN_USE: Final = "another run is writing it"
_NO_LOCKS: Final = {errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL}


def hidden_name(final: str, *, locked: bool = True) -> str:
    """Return where to write what shall become `final`: one name if it is locked, else a new one."""
    folder, name = os.path.split(final)
    unique = "" if locked else f"{secrets.token_hex(8)}."
    return os.path.join(folder, f".{name}.dpo-pipeline.{unique}tmp")


def final_name(hidden: str) -> str:
    """Return what a hidden file shall become, or one in a hidden folder."""
    parts = hidden.split(os.sep)
    return os.sep.join(m[1] if (m := _TMP.fullmatch(part)) else part for part in parts)


def journal_name(final: str) -> str:
    """Return the name of the file that says how to undo a publication that was cut short."""
    folder, name = os.path.split(final)
    return os.path.join(folder, f".{name}{_UNDO}")


def kept_name(final: str) -> str:
    """Return the second name of a file that is replaced where names cannot be exchanged."""
    folder, name = os.path.split(final)
    return os.path.join(folder, f".{name}.dpo-pipeline.0.tmp")


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
    """Return what stays the same when a file or folder is renamed.

    That of a file changes when it is written to.
    """
    found = os.stat(path)
    if stat.S_ISDIR(found.st_mode):
        return found.st_dev, found.st_ino
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def size_of(identity: Sequence[int]) -> int | None:
    """Return the bytes of a file or an object with this identity; None if it says nothing."""
    places = {2: 0, 4: 2}
    return identity[places[len(identity)]] if len(identity) in places else None


def is_still(path: str, was: Sequence[int] | None) -> bool:
    """Return whether a file is there and has this identity."""
    try:
        return was is not None and identity(path) == tuple(was)
    except OSError:
        return False


def check_own(path: str, *, name: str) -> os.stat_result | None:
    """Return the state of this user's hidden file; None if there is none. Errors are of `name`."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    is_plain = stat.S_ISDIR(found.st_mode) or stat.S_ISREG(found.st_mode)
    if not (is_plain and is_mine(found)):
        raise StorageError(
            name, f"another user, or a link, has taken {path}, where it would be written: remove it"
        )
    return found


def hold(
    final: str, recover: Callable[[], None], *, name: str, is_folder: bool
) -> tuple[str, int | None]:
    """Make the hidden file or folder of a target and lock it; return its name, and the lock.

    `recover` is called under the lock, before what a dead run left there is removed. Where the
    file system has no locks, the name is random and the lock None. Errors are about `name`.
    """
    hidden = hidden_name(final)
    while True:
        is_left = check_own(hidden, name=name) is not None
        try:
            handle = _opened(hidden) if is_left else _made(hidden, is_folder=is_folder)
        except (FileExistsError, FileNotFoundError):
            continue  # another run was faster: see what it does
        taken = _try_lock(handle)
        if taken is None:
            os.close(handle)
            if not is_left:
                remove(hidden)
            hidden = hidden_name(final, locked=False)
            os.close(_made(hidden, is_folder=is_folder))
            return hidden, None
        if not taken:
            os.close(handle)
            raise StorageError(name, IN_USE)
        if _is_cleared(hidden, handle, recover, is_left=is_left):
            return hidden, handle
        let_go(handle)


def _is_cleared(hidden: str, handle: int, recover: Callable[[], None], *, is_left: bool) -> bool:
    """Recover, and remove what a dead run left; return whether the hidden file is this run's."""
    if not _is_at(handle, hidden):  # its run ended after this one had opened it
        return False
    try:
        recover()
        if is_left:
            remove(hidden)
    except BaseException:
        if not is_left:
            remove(hidden)
        let_go(handle)
        raise
    return not is_left


def _made(path: str, *, is_folder: bool) -> int:
    if is_folder:
        os.mkdir(path)
        return os.open(path, os.O_RDONLY | NO_FOLLOW)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | NO_FOLLOW, 0o666)


def _opened(path: str) -> int:
    try:
        return os.open(path, os.O_RDWR | NO_FOLLOW)
    except (IsADirectoryError, PermissionError):
        return os.open(path, os.O_RDONLY | NO_FOLLOW)


def _is_at(handle: int, path: str) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.fstat(handle))
    except FileNotFoundError:
        return False


def holder(hidden: str) -> Literal["alive", "dead", "unknown"]:
    """Return whether the run that made a hidden file is at work."""
    try:
        handle = _opened(hidden)
    except FileNotFoundError:
        return "unknown"
    taken = _try_lock(handle)
    if taken:
        let_go(handle)
        return "dead"
    os.close(handle)
    return "unknown" if taken is None else "alive"


def lock_of(path: str) -> int | None:
    """Lock a file or folder that is there; return None if that cannot be done."""
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY | NO_FOLLOW)
        if _try_lock(handle):
            return handle
        os.close(handle)
    return None


def _try_lock(handle: int) -> bool | None:
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
