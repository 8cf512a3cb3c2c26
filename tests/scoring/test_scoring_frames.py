"""`score` and what it takes: a lazy step that reads nothing, of any dataframe."""

from __future__ import annotations

import math
import sys
from types import ModuleType

import polars as pl
import pyarrow as pa
import pytest

from dpo_pipeline import UsageError, evaluate, score
from dpo_pipeline.columns import SCORED
from pair_tools import LOGPS


def test_adds_the_declared_columns_to_a_lazy_frame(pairs):
    scored = score(pairs.lazy())
    assert isinstance(scored, pl.LazyFrame)
    assert scored.collect_schema().names() == [*pairs.columns, *(c.name for c in SCORED)]


def test_reads_nothing(pairs):
    def poison(_):
        raise AssertionError

    unread = pairs.lazy().map_batches(poison, schema=pairs.schema)
    score(unread)
    with pytest.raises(AssertionError):
        score(unread).collect()


def test_null_and_nan_propagate(pairs):
    odd = pairs.with_columns(
        policy_chosen_logps=pl.Series([None, math.nan, -math.inf, -50, -60, -70], dtype=pl.Float64)
    )
    losses = score(odd).collect()["loss"].to_list()
    assert losses[0] is None
    assert math.isnan(losses[1])
    assert losses[2] == math.inf


def test_chains_with_pipe(pairs):
    mean = (
        pairs.lazy().pipe(score, beta=0.1).select(pl.col("reward_margin").mean()).collect().item()
    )
    assert mean == pytest.approx(0.4 / 6)


class ArrowOnly:
    """Knows the PyCapsule interface and nothing else."""

    def __init__(self, frame):
        self._frame = frame

    def __arrow_c_stream__(self, requested_schema=None):
        return self._frame.__arrow_c_stream__(requested_schema)


class HuggingFaceLike:
    """`datasets.Dataset` has no Arrow stream and has `to_polars`."""

    def __init__(self, frame):
        self._frame = frame

    def to_polars(self):
        return self._frame


@pytest.mark.repeats(3)  # all become one plan; `sources/test_streams` has each object
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(pl.DataFrame.lazy, id="LazyFrame"),
        pytest.param(lambda f: f, id="DataFrame"),
        pytest.param(pl.DataFrame.to_arrow, id="pyarrow Table"),
        pytest.param(lambda f: f.to_arrow().to_reader(), id="one-shot reader"),
        pytest.param(ArrowOnly, id="Arrow stream"),
        pytest.param(HuggingFaceLike, id="datasets.Dataset"),
        pytest.param(lambda f: f.to_dict(as_series=False), id="dictionary"),
    ],
)
def test_takes_any_dataframe(pairs, make):
    assert score(make(pairs)).collect().equals(score(pairs).collect())
    assert evaluate(make(pairs), on_invalid="exclude").summary == evaluate(pairs).summary


@pytest.mark.parametrize("thing", [5, None, ["a", 1], object()])
def test_what_is_no_dataframe_is_said(thing):
    with pytest.raises(UsageError, match="must be a dataframe"):
        evaluate(thing)


@pytest.mark.parametrize("dtype", [pl.Int16, pl.Int64, pl.UInt8, pl.Float32, pl.Float64])
def test_computes_in_float64(dtype):
    frame = pl.DataFrame({name: [i, 2 * i] for i, name in enumerate(LOGPS)}).cast(dtype)
    scored = score(frame, beta=1.0).collect()
    assert all(scored.schema[name] == pl.Float64 for name in LOGPS)
    # 0 - 2 = -2 and 1 - 3 = -2: a margin of 0; doubled: the same.
    assert scored["chosen_reward"].to_list() == [-2.0, -4.0]
    assert scored["loss"].to_list() == [math.log(2)] * 2


def test_every_public_name_is_there():
    import dpo_pipeline

    assert isinstance(sys.modules["dpo_pipeline"], ModuleType)
    assert set(dpo_pipeline.__all__) <= set(dir(dpo_pipeline))
    assert all(getattr(dpo_pipeline, name) is not None for name in dpo_pipeline.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nope'"):
        _ = dpo_pipeline.nope


def test_pyarrow_schema_metadata_is_no_obstacle(pairs):
    table = pairs.to_arrow().replace_schema_metadata({"a": "b"})
    assert isinstance(table, pa.Table)
    assert evaluate(table).summary.n_pairs == 6
