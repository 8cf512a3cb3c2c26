"""Names that are given, exchanged and taken away in one step of the system."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
from contextlib import suppress
from functools import cache
from typing import Any, Final

_HERE: Final = -100  # AT_FDCWD: paths are relative to the current folder
_NO_REPLACE: Final = 1
EXCHANGE: Final = 2

CANNOT: Final = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}
"""What a system or a file system answers that cannot exchange names at all."""

REFUSALS: Final = {
    errno.EXDEV: "the file system (a container layer?) does not let it be exchanged for another",
    errno.EBUSY: "it is mounted or in use, and cannot be exchanged for another",
}


@cache
def _function() -> Any:
    try:
        return ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # another system, or an old one
        return None


def renameat2(one: str, other: str, flags: int) -> None:
    """Rename as Linux does with flags; raise an OSError where that cannot be done."""
    function = _function()
    number = errno.ENOSYS
    if function is not None:
        if not function(_HERE, os.fsencode(one), _HERE, os.fsencode(other), flags):
            return
        number = ctypes.get_errno()
    raise OSError(number, REFUSALS.get(number, os.strerror(number)), one, None, other)


def exchange(one: str, other: str) -> None:
    """Exchange what two names stand for."""
    renameat2(one, other, EXCHANGE)


def name_new(hidden: str, final: str) -> None:
    """Give a name that nothing has."""
    try:
        renameat2(hidden, final, _NO_REPLACE)
    except OSError as error:
        if error.errno not in CANNOT:
            raise
        if os.path.lexists(final):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), final) from error
        os.rename(hidden, final)


def can_exchange(folder: str) -> bool:
    """Return whether folders can exchange their names, tried on two new ones in this folder."""
    one, other = os.path.join(folder, ".a"), os.path.join(folder, ".b")
    os.mkdir(one)
    os.mkdir(other)
    try:
        exchange(one, other)
    except OSError as error:
        if error.errno in CANNOT or error.errno in REFUSALS:
            return False
        raise
    finally:
        os.rmdir(one)
        os.rmdir(other)
    return True


def is_mounted(path: str) -> bool:
    """Return whether something is mounted under this name."""
    real = os.path.realpath(path)
    if os.path.ismount(real):
        return True
    # Within one file system only the list of mounts tells.
    with suppress(OSError), open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            place = line.split()[4]
            if os.fsdecode(place.decode("unicode_escape").encode("latin-1")) == real:
                return True
    return False


def is_mine(found: os.stat_result) -> bool:
    """Return whether a file is this user's; always, on systems without users."""
    return not hasattr(os, "geteuid") or found.st_uid == os.geteuid()


def keep_mode(new: str, old: str) -> None:
    """Give what replaces a file or folder of ours its rights; parts of a folder likewise.

    What another user owns decides nothing: whoever can make files beside an output could plant one.
    """
    for path in (new, *inside(new)):
        was = old + path.removeprefix(new)
        with suppress(FileNotFoundError, NotADirectoryError):
            found = os.lstat(was)
            if is_mine(found) and not stat.S_ISLNK(found.st_mode):
                with suppress(PermissionError):  # a group that this user is not in
                    os.chown(path, -1, found.st_gid)
                os.chmod(path, stat.S_IMODE(found.st_mode) & 0o777)


def inside(folder: str) -> list[str]:
    """Return all files and folders in a folder, what is deepest first; none of a file."""

    def fail(error: OSError) -> None:
        raise error

    walked = os.walk(folder, topdown=False, onerror=fail) if os.path.isdir(folder) else ()
    return [os.path.join(at, name) for at, folders, names in walked for name in (*names, *folders)]


def remove(path: str) -> None:
    """Remove a file, or a folder with all that is in it, if it is there."""
    with suppress(FileNotFoundError):
        if not os.path.isdir(path) or os.path.islink(path):
            os.unlink(path)
            return
        try:
            shutil.rmtree(path)
        except PermissionError:  # the rights of a folder that was replaced may forbid it
            os.chmod(path, 0o700)
            for at, folders, _ in os.walk(path):
                for each in (os.path.join(at, name) for name in folders):
                    if not os.path.islink(each):
                        os.chmod(each, 0o700)
            shutil.rmtree(path)


def sync(path: str) -> None:
    """Make a file, or the names in a folder, durable; an empty path is the current folder."""
    handle = os.open(path or ".", os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some file systems cannot sync a folder.
        if error.errno != errno.EINVAL or not stat.S_ISDIR(os.fstat(handle).st_mode):
            raise
    finally:
        os.close(handle)
