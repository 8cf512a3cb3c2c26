"""Columns of two tables that have the same bytes, told without decoding them."""

from __future__ import annotations

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpo_pipeline.sources import common_schema, opening
from dpo_pipeline.sources.dataset import open_dataset
from dpo_pipeline.sources.opening import EqualColumns

N, GROUP = 3_000, 1_000


@pytest.fixture(autouse=True, params=["small footers", "large ones, which pyarrow reads"])
def _small_steps(monkeypatch, request):
    monkeypatch.setattr(opening, "_BYTES", 777)
    if "pyarrow" in request.param:
        monkeypatch.setattr(common_schema, "OWN_FOOTER_BYTES", 8)


def table(**columns):
    plain = {
        "key": range(N),
        "number": [-1.5 * i for i in range(N)],
        "text": [f"t{i % 7}" for i in range(N)],
        "hole": [None if i % 5 == 0 else i for i in range(N)],
        "tokens": [[i, i + 1] for i in range(N)],
    }
    return pa.table(plain | columns)


def among(tmp_path, one, other, names=None, rows=(0, N), **written):
    for name, each, options in (("one", one, {}), ("other", other, written)):
        pq.write_table(each, tmp_path / f"{name}.parquet", **{"row_group_size": GROUP, **options})
    sides = (open_dataset(tmp_path / f"{name}.parquet") for name in ("one", "other"))
    return EqualColumns(*sides).among(names or one.column_names, *rows)


def test_columns_with_the_same_values(tmp_path):
    found = among(tmp_path, table(), table(number=[-2.0 * i for i in range(N)]))
    assert found == {"key", "text", "hole"}  # lists are not looked at


@pytest.mark.parametrize(
    ("rows", "is_same"),
    [((0, 2 * GROUP), True), ((0, N), False), ((2 * GROUP, 5), False), ((0, None), False)],
    ids=["before it", "all", "its row group", "not known"],
)
def test_one_other_value(tmp_path, rows, is_same):
    number = [-1.5 * i for i in range(N)]
    number[-1] += 2.0**-30
    found = among(tmp_path, table(), table(number=number), ["number"], rows)
    assert (found == {"number"}) is is_same


@pytest.mark.parametrize(
    ("other", "written"),
    [
        pytest.param(table(key=pa.array(range(N), pa.int32())), {}, id="another type"),
        pytest.param(table(key=pa.array(range(N), pa.uint64())), {}, id="another sign"),
        pytest.param(table(key=pa.array(range(N), pa.timestamp("us"))), {}, id="times"),
        pytest.param(table(), {"compression": "zstd"}, id="another codec"),
        pytest.param(table(), {"row_group_size": 1_500}, id="other row groups"),
        pytest.param(table().rename_columns(["id", *table().column_names[1:]]), {}, id="no key"),
    ],
)
def test_bytes_that_mean_something_else(tmp_path, other, written):
    assert among(tmp_path, table(), other, ["key"], **written) == set()


def test_the_same_bytes_of_another_codec(tmp_path):
    paths = [tmp_path / "one", tmp_path / "other"]
    for path in paths:
        path.write_bytes(bytes(range(200)))
    assert opening.are_same(paths, [(4, 190, "snappy"), (4, 190, "snappy")])
    assert not opening.are_same(paths, [(4, 190, "snappy"), (4, 190, "zstd")])
    assert not opening.are_same(paths, [(4, 190, "snappy"), (5, 190, "snappy")])
    assert not opening.are_same(paths, [(4, 190, "snappy"), None])


def test_folders_are_compared_file_by_file(tmp_path):
    frames = [pl.from_arrow(table())[: 2 * GROUP], pl.from_arrow(table())[2 * GROUP :]]
    others = [frames[0], frames[1].with_columns(key=-pl.col("key"))]
    for side, parts in (("a", frames), ("b", others)):
        (tmp_path / side).mkdir()
        for i, part in enumerate(parts):
            part.write_parquet(tmp_path / side / f"{i}.parquet", row_group_size=GROUP)
    equal = EqualColumns(*(open_dataset(tmp_path / side) for side in "ab"))
    assert equal.among(["key", "text"], 0, 2 * GROUP) == {"key", "text"}
    assert equal.among(["key", "text"], GROUP, 2 * GROUP) == {"text"}
