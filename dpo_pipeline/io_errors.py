"""One error for whatever goes wrong with a file: in Polars, in pyarrow or in the system."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import polars as pl

from dpo_pipeline.errors import StorageError


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Turn what Polars, pyarrow and the system raise on `path` into one StorageError."""
    import pyarrow as pa  # costs half of what Polars does to import

    try:
        yield
    except FileNotFoundError as error:
        raise StorageError(path, "no such file or folder") from error
    except PermissionError as error:
        raise StorageError(path, "permission denied") from error
    except OSError as error:
        raise StorageError(path, error.strerror or _first_line(error)) from error
    except pa.ArrowInvalid as error:
        raise StorageError(
            path, f"cannot be read as Parquet: {_first_line(error)} Convert it, or copy it again."
        ) from error
    except (pl.exceptions.PolarsError, pa.ArrowException) as error:
        raise StorageError(path, _first_line(error)) from error
    except BaseException as error:
        # A panic of the engine (on a corrupt file, say) is a BaseException.
        if isinstance(error, pl.exceptions.PanicException):
            raise StorageError(path, f"cannot be read: {_first_line(error)}") from error
        raise


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
