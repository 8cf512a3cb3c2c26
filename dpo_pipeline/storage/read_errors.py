"""One error for whatever goes wrong with a file: in Polars, in pyarrow or in the system."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import polars as pl

from dpo_pipeline.errors import StorageError
from dpo_pipeline.tables import without_secrets

_OS_ERROR: Final = re.compile(r"\(os error (\d+)\)|\[errno (\d+)\]", re.IGNORECASE)

_BROKEN: Final = re.compile(r"out of specification|thrift|corrupt", re.IGNORECASE)
"""What Polars and pyarrow say of bytes that are not as they were written."""

_IN_WORDS: Final = {
    FileNotFoundError: "no such file or folder",
    PermissionError: "permission denied",
    MemoryError: "there is not enough memory",
}


@contextmanager
def reading(path: str, hint: Callable[[str], str | None] | None = None) -> Iterator[None]:
    """Turn what Polars, pyarrow and the system raise on `path` into one StorageError.

    `hint` says, from the path, how a file that is not Parquet could be read.
    """
    try:
        yield
    except BaseException as error:
        problem = _problem(error, path, hint)
        if isinstance(error, Exception) and not is_utf8(path):
            problem = "its name is not UTF-8: rename it"
        if problem is None:
            raise
        # The error behind it names the address with the secrets in it.
        cause = error if without_secrets(path) == path else None
        raise StorageError(path, problem) from cause


def _problem(
    error: BaseException, path: str, hint: Callable[[str], str | None] | None
) -> str | None:
    for kind, words in _IN_WORDS.items():
        if isinstance(error, kind):
            return words
    if is_arrow(error, "ArrowInvalid") and not isinstance(error, OSError):
        advice = None if hint is None else hint(path)
        why = _first_line(error).rstrip(".")
        return advice or f"cannot be read as Parquet: {why}. Copy it again."
    if isinstance(error, UnicodeDecodeError):  # of pyarrow, on the names in a footer
        return f"cannot be read as Parquet: {error}"
    if is_arrow(error) or isinstance(error, (OSError, pl.exceptions.PolarsError)):
        why = _first_line(error)
        is_broken = _BROKEN.search(why) and system_error(error) is None
        return f"cannot be read: {why.rstrip('.')}. Copy it again." if is_broken else why
    if isinstance(error, pl.exceptions.PanicException):  # of the engine, on a corrupt file, say
        return f"cannot be read: {_first_line(error)}"
    return None


def is_arrow(error: BaseException, kind: str = "ArrowException") -> bool:
    """Return whether pyarrow raised an error. It is not imported to know: it has not, then."""
    arrow = sys.modules.get("pyarrow")
    return arrow is not None and isinstance(error, getattr(arrow, kind))


def is_utf8(path: str) -> bool:
    """Return whether Polars and pyarrow, for whom names are UTF-8, can open a file."""
    return path.isascii() or not any("\ud800" <= each <= "\udfff" for each in path)


def footer_of(path: str, *, name: str | None = None, filesystem: Any = None) -> Any:
    """Return the footer of a Parquet file, as pyarrow does; errors call it `name`."""
    import pyarrow.parquet as pq

    with reading(name or path):
        return pq.read_metadata(path, filesystem=filesystem)


def system_error(error: BaseException) -> int | None:
    """Return the number of the system's error behind an error, which Polars gives in words."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    match = _OS_ERROR.search(str(error))
    return int(match[1] or match[2]) if match else None


def _first_line(error: BaseException) -> str:
    number = system_error(error)
    if number is not None:
        return os.strerror(number)
    return (str(error) or type(error).__name__).splitlines()[0]
