"""What the engine and the system raise becomes one error."""

from __future__ import annotations

import polars as pl
import pytest

from dpo_pipeline import StorageError
from dpo_pipeline.storage.read_errors import reading


def test_a_panic_of_the_engine_is_an_error_with_the_path():
    expected = r"^a\.parquet: cannot be read: index out of bounds$"
    with pytest.raises(StorageError, match=expected) as caught, reading("a.parquet"):
        raise pl.exceptions.PanicException("index out of bounds\nbacktrace")
    assert isinstance(caught.value.__cause__, pl.exceptions.PanicException)
