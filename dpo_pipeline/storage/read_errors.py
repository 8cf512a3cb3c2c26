"""One error for whatever goes wrong with a file: in Polars, in pyarrow or in the system."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import polars as pl

from dpo_pipeline.errors import StorageError

_OS_ERROR: Final = re.compile(r"\(os error (\d+)\)|\[errno (\d+)\]", re.IGNORECASE)


@contextmanager
def reading(path: str, hint: Callable[[str], str | None] | None = None) -> Iterator[None]:
    """Turn what Polars, pyarrow and the system raise on `path` into one StorageError.

    `hint` says, from the path, how a file that is not Parquet could be read.
    """
    import pyarrow as pa  # costs half of what Polars does to import

    try:
        yield
    except FileNotFoundError as error:
        raise StorageError(path, "no such file or folder") from error
    except PermissionError as error:
        raise StorageError(path, "permission denied") from error
    except OSError as error:
        raise StorageError(path, _first_line(error)) from error
    except pa.ArrowInvalid as error:
        why = f"cannot be read as Parquet: {_first_line(error).rstrip('.')}"
        advice = None if hint is None else hint(path)
        raise StorageError(path, advice or f"{why}. Copy it again.") from error
    except UnicodeDecodeError as error:  # of pyarrow, on the names in a footer
        raise StorageError(path, f"cannot be read as Parquet: {error}") from error
    except (pl.exceptions.PolarsError, pa.ArrowException) as error:
        raise StorageError(path, _first_line(error)) from error
    except BaseException as error:
        # A panic of the engine (on a corrupt file, say) is a BaseException.
        if isinstance(error, pl.exceptions.PanicException):
            raise StorageError(path, f"cannot be read: {_first_line(error)}") from error
        raise


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
