"""Objects that give record batches: read batch by batch, and a stream once."""

from __future__ import annotations

import gc
import tempfile

import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from dpo_pipeline import (
    InvalidPairsError,
    StorageError,
    UsageError,
    compare,
    convert,
    evaluate,
    score,
    score_parquet,
)
from pair_tools import LOGPS

WRONG = [3, 200, 201]
SLOW = pytest.mark.slow


@pytest.fixture
def pairs(real_pairs):
    """The real pairs with keys, three of them invalid."""
    return real_pairs.with_columns(
        pair_id=pl.int_range(pl.len()),
        policy_chosen_logps=pl.when(pl.int_range(pl.len()).is_in(WRONG))
        .then(1.0)
        .otherwise("policy_chosen_logps"),
    )


def reader(frame, rows=100):
    return frame.to_arrow().to_reader(max_chunksize=rows)


def scanner_of_batches(frame):
    return ds.Scanner.from_batches(reader(frame))


def dataset_of(frame):
    return ds.dataset(frame.to_arrow())


def scanner(frame):
    return dataset_of(frame).scanner(batch_size=64)


class Stream:
    """What exports an Arrow stream once, and is of no library that is known."""

    def __init__(self, frame):
        self._reader = reader(frame)

    def __arrow_c_stream__(self, requested_schema=None):
        return self._reader.__arrow_c_stream__(requested_schema)


def duckdb_relation(frame):
    duckdb = pytest.importorskip("duckdb")
    return duckdb.from_arrow(frame.to_arrow())


def frames(frame):
    return [frame[:100].lazy(), frame[100:150].to_arrow(), frame[150:], reader(frame[:0])]


ONCE = [reader, scanner_of_batches, scanner, Stream]
OBJECTS = [*ONCE, dataset_of, duckdb_relation, frames]


@pytest.mark.repeats(2)  # all become one stream
@pytest.mark.usefixtures("few_groups")
@pytest.mark.parametrize("make", OBJECTS)
def test_an_object_gives_the_figures_and_the_faults_of_its_rows(pairs, make):
    has_all = make is reader  # statistics take the same rows from any
    expected = evaluate(pairs, by="split", on_invalid="exclude", statistics=has_all)
    found = evaluate(make(pairs), by="split", on_invalid="exclude", statistics=has_all)
    assert found.to_dict() == expected.to_dict()
    assert [each.row for each in found.invalid.broken[0].offenders] == WRONG
    with pytest.raises(
        InvalidPairsError, match=r"3  row 3 \(pair_id 3\): 1.0; row 200 \(pair_id 200\): 1.0"
    ):
        evaluate(make(pairs))


# Others are opened as one of these three is; the test above reads each of them.
@pytest.mark.repeats(1)  # all become one stream, above
@pytest.mark.parametrize(
    "make",
    [
        make if make in {reader, duckdb_relation, frames} else pytest.param(make, marks=SLOW)
        for make in OBJECTS
    ],
)
def test_an_object_is_joined_compared_scored_and_written(pairs, make, tmp_path):
    valid = pairs.filter(~pl.col("pair_id").is_in(WRONG))
    own, reference = valid.drop(LOGPS[2:]), valid.select("pair_id", *LOGPS[2:])
    expected = evaluate(valid).summary
    assert evaluate(make(own), reference=make(reference[::-1])).summary == expected
    scored = score(make(valid)).collect()
    assert scored["loss"].equals(score(valid).collect()["loss"])
    made = score_parquet(make(pairs), tmp_path / "out.parquet", on_invalid="quarantine")
    assert made.summary.loss == expected.loss
    assert pl.read_parquet(tmp_path / "out.parquet")["pair_id"].equals(valid["pair_id"])
    assert convert(make(pairs), tmp_path / "as.parquet") == pairs.height
    other = valid.with_columns(pl.col(LOGPS[0]) - 0.5)
    assert compare(make(valid), make(other)).to_dict() == compare(valid, other).to_dict()


@pytest.mark.parametrize("make", ONCE)
def test_a_stream_is_read_once(pairs, make):
    rows = score(make(pairs), scored=["split"])
    first = rows.select("loss").collect()
    assert rows.select("loss").collect().equals(first)  # kept in the first reading
    with pytest.raises(StorageError, match=r"can be read once, and split was not asked for then"):
        rows.select("split").collect()


def test_a_stream_that_was_read_in_part_is_an_error(pairs):
    rows = score(reader(pairs))
    assert rows.head(5).collect().height == 5
    with pytest.raises(StorageError, match=r"RecordBatchReader: can be read once, .* in part"):
        rows.collect()


def test_what_a_stream_keeps_goes_with_it(pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    rows = score(reader(pairs))
    rows.collect()
    assert len(list(tmp_path.iterdir())) == 1
    del rows
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_a_fault_of_a_stream_is_said(pairs):
    def batches():
        yield from reader(pairs[:200])
        raise OSError("the line was cut")

    stream = pa.RecordBatchReader.from_batches(pairs.to_arrow().schema, batches())
    with pytest.raises(StorageError, match="the line was cut"):
        evaluate(stream)


@pytest.mark.slow  # eight million rows; that what waits is short, few rows show below
def test_a_stream_holds_a_few_batches():
    # Polars reads ahead by 60 batches or so, by 80 where other work keeps it from computing.
    names, size, count = list(LOGPS), 20_000, 400
    held = []

    def batches():
        for i in range(count):
            held.append(pa.total_allocated_bytes())
            columns = [pa.repeat(-1.0 - i - j * j, size) for j in range(4)]
            yield pa.record_batch(columns, names=names)

    schema = pa.schema([(name, pa.float64()) for name in names])
    before = pa.total_allocated_bytes()
    found = evaluate(pa.RecordBatchReader.from_batches(schema, batches()), on_invalid="exclude")
    assert found.summary.n_pairs == size * count
    one = 4 * 8 * size
    assert max(held) - before < count * one / 3


def test_frames_of_a_list_may_differ_as_files_may(pairs):
    valid = pairs.filter(~pl.col("pair_id").is_in(WRONG)).select("pair_id", "split", *LOGPS)
    columns = valid.columns[::-1]
    narrow = valid[:100].with_columns(pl.col("pair_id").cast(pl.Int16)).drop("split")
    assert evaluate([narrow, valid[100:].select(columns)]).summary == evaluate(valid).summary
    with pytest.raises(UsageError, match="pairs must be a dataframe"):
        evaluate([{"a": 1}, {"a": 2}])
    with pytest.raises(UsageError, match="pairs must be a dataframe"):
        evaluate([valid, "a.parquet"])


def test_a_dataset_is_not_read_ahead(pairs):
    """What is read ahead stays in memory: with pyarrow's own settings it grew with the rows."""

    class Asked:
        schema = pairs.to_arrow().schema

        def to_batches(self, **options):
            asked.append(options)
            return dataset_of(pairs).to_batches(**options)

    asked = []
    evaluate(Asked(), on_invalid="exclude")
    assert {
        (each["use_threads"], each["fragment_readahead"], each["batch_readahead"]) for each in asked
    } == {(False, 0, 0)}


@pytest.mark.usefixtures("few_groups")
@pytest.mark.parametrize("make", [reader, dataset_of, Stream])
def test_no_frame_that_waits_is_long(pairs, make, monkeypatch):
    monkeypatch.setattr("dpo_pipeline.sources.frames.ROWS_HELD", 7)
    heights = []
    rows = score(make(pairs)).map_batches(
        lambda f: (heights.append(f.height), f)[1], streamable=True
    )
    assert rows.collect(engine="streaming").height == pairs.height
    assert max(heights) <= 7
