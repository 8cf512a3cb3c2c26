"""Frames that must not be read, and contracts of one check."""

from __future__ import annotations

import pandera.polars as pa
import pytest

import dpo_pipeline


class DataWasReadError(Exception):
    """Raised when a poisoned frame is run."""


def poisoned(frame):
    """Return a plan with the columns of `frame` that raises as soon as it runs."""

    def explode(_):
        raise DataWasReadError

    return frame.lazy().map_batches(explode, schema=frame.schema)


ENTRANCES = [
    pytest.param(dpo_pipeline.check, id="check"),
    pytest.param(dpo_pipeline.evaluate, id="evaluate"),
]


def of_column(column, function, **options):
    return pa.DataFrameSchema({column: pa.Column(checks=pa.Check(function, **options))})


def of_frame(function, **options):
    return pa.DataFrameSchema(checks=pa.Check(function, **options))


def selecting(expression):
    """A check that selects what `expression` makes of the column's name."""

    def selected(data):
        return data.lazyframe.select(expression(data.key))

    return selected
