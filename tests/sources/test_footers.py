"""Footers that are read without pyarrow: the same facts, and whatever is odd is left to pyarrow."""

from __future__ import annotations

import datetime as dt
import random

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpo_pipeline.defaults import OWN_FOOTER_BYTES
from dpo_pipeline.sources.common_schema import footer_by_pyarrow, plain_footer
from pair_tools import DATA

NOON = dt.datetime(2024, 1, 1, 12, tzinfo=dt.UTC)
PLAIN = {
    "numbers": pl.DataFrame({"a": [1.5, None], "b": [1, 2], "c": [True, False]}),
    "small numbers": pl.DataFrame({"a": [1], "b": [2]}, schema={"a": pl.UInt8, "b": pl.Float32}),
    "texts": pl.DataFrame({"é": ["x"] * 300, "b": [b"x"] * 300}),
    "dates": pl.DataFrame(
        {"day": [NOON.date()], "at": [NOON], "bare": [NOON.replace(tzinfo=None)]}
    ),
    "messages": pl.DataFrame({"chosen": [[{"role": "user", "content": "x"}]], "tokens": [[-1.0]]}),
    "nothing": pl.DataFrame({"a": [None, None]}),
    "no rows": pl.DataFrame(schema={"a": pl.Float64}),
    "many columns": pl.DataFrame({f"column {i}": [i] for i in range(40)}),
}


def by_pyarrow(path):
    return footer_by_pyarrow(pq.read_metadata(path))


def chunks_by_pyarrow(path):
    """Where columns that are not nested begin, and how many bytes they have, by row group."""
    metadata = pq.read_metadata(path)
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    columns = [[group.column(i) for i in range(group.num_columns)] for group in groups]
    return [
        {
            c.path_in_schema: (
                min(filter(None, (c.data_page_offset, c.dictionary_page_offset))),
                c.total_compressed_size,
            )
            for c in some
            if "." not in c.path_in_schema
        }
        for some in columns
    ]


@pytest.mark.repeats  # each kind of column by one of the writers
@pytest.mark.parametrize("write", ["polars", "pyarrow", "duckdb"])
@pytest.mark.parametrize("name", PLAIN)
def test_it_says_what_pyarrow_says(tmp_path, name, write):
    path, frame = tmp_path / "x.parquet", PLAIN[name]
    if write == "polars":
        frame.write_parquet(path, row_group_size=100)
    elif write == "pyarrow":
        pq.write_table(frame.to_arrow(), path, row_group_size=100)
    else:
        pytest.importorskip("duckdb").from_arrow(frame.to_arrow()).write_parquet(str(path))
    found = plain_footer(str(path))
    assert found._replace(chunks=()) == by_pyarrow(path)
    assert found.rows == frame.height
    places = [{name: chunk[:2] for name, chunk in group.items()} for group in found.chunks]
    assert places == chunks_by_pyarrow(path)


def test_real_files_need_no_pyarrow():
    for path in DATA.glob("*.parquet"):
        assert plain_footer(str(path))._replace(chunks=()) == by_pyarrow(path)


ODD = {
    "time zone": pa.array([NOON], pa.timestamp("us", tz="Europe/Paris")),
    "duration": pa.array([1], pa.duration("us")),
    "decimal": pa.array([1], pa.decimal128(38, 2)),
    "variant by its parts": pa.array([{"metadata": b"", "value": b""}]),
    "extension": pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"x" * 16], pa.binary(16))),
    "time zone inside": pa.array([[NOON]], pa.list_(pa.timestamp("us", tz="+05:30"))),
}


@pytest.mark.parametrize("name", ODD)
def test_what_may_be_odd_is_left_to_pyarrow(tmp_path, name):
    path = tmp_path / "odd.parquet"
    pq.write_table(pa.table({"a": [1.5], "odd": ODD[name]}), path)
    assert plain_footer(str(path)) is None


@pytest.mark.parametrize("name", ["duckdb_interval", "duckdb_variant"])
def test_files_of_duckdb_without_a_schema_of_arrow(name):
    assert plain_footer(str(DATA / "formats" / f"{name}.parquet")) is None


def test_two_columns_of_one_name_are_left_to_pyarrow(tmp_path):
    path = tmp_path / "twice.parquet"
    pq.write_table(pa.table([[1], [2]], names=["a", "a"]), path)
    assert plain_footer(str(path)) is None


def test_a_large_footer_is_left_to_pyarrow(tmp_path):
    path = tmp_path / "long.parquet"
    pl.DataFrame({"a": range(1_600)}).write_parquet(path, row_group_size=1)
    assert pq.read_metadata(path).serialized_size > OWN_FOOTER_BYTES
    assert plain_footer(str(path)) is None


def test_what_is_no_parquet_or_cut_is_left_to_pyarrow(tmp_path):
    path = tmp_path / "x.parquet"
    PLAIN["texts"].write_parquet(path)
    whole = path.read_bytes()
    for end in (0, 3, 8, 11, len(whole) - 1):
        path.write_bytes(whole[:end])
        assert plain_footer(str(path)) is None
    path.write_bytes(whole[:-4] + b"PARE")
    assert plain_footer(str(path)) is None
    assert plain_footer(str(tmp_path / "none.parquet")) is None


def test_a_changed_byte_is_an_answer_and_no_error(tmp_path):
    path, rng = tmp_path / "x.parquet", random.Random(5)
    PLAIN["dates"].write_parquet(path)
    whole = bytearray(path.read_bytes())
    length = int.from_bytes(whole[-8:-4], "little")
    for _ in range(300):
        broken = whole.copy()
        broken[-8 - rng.randrange(1, length + 1)] = rng.randrange(256)
        path.write_bytes(broken)
        plain_footer(str(path))
