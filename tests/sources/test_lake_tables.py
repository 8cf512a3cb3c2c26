"""Lake tables: their folders also hold rows that the table no longer has."""

from __future__ import annotations

import glob
import os
import sys

import polars as pl
import pytest

from dpo_pipeline import DataWarning, StorageError, check, compare, evaluate, read
from dpo_pipeline.sources import frames
from pair_tools import LOGPS


def files_of_a_table(folder, eight):
    """Write two generations of the same pairs, as a table does that was overwritten."""
    for i, name in enumerate(("part-0", "part-1")):
        path = folder / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        eight.with_columns(pl.col(LOGPS[0]) - i).write_parquet(path)


MARKERS = {
    "Delta Lake": "_delta_log/00000000000000000000.json",
    "Iceberg": "metadata/00001-5f2a.metadata.json",
    "Hudi": ".hoodie/hoodie.properties",
}
LINES = {
    "Delta Lake": "pl.scan_delta('{path}')",
    "Iceberg": "pl.scan_iceberg('{path}/metadata/NAME.metadata.json')",
    "Hudi": "HudiTableBuilder.from_base_uri('{path}').build().read_snapshot()",
}


@pytest.fixture
def table(tmp_path, monkeypatch, eight):
    """Return what makes a table of a system that no library reads."""
    monkeypatch.setattr(frames, "find_spec", lambda _name: None)
    monkeypatch.chdir(tmp_path)

    def make(system, data=""):
        folder = tmp_path / "lake" / "t"
        files_of_a_table(folder / data, eight)
        marker = folder / MARKERS[system]
        marker.parent.mkdir()
        marker.write_text("{}")
        return folder

    return make


@pytest.mark.parametrize("system", MARKERS)
@pytest.mark.parametrize("name", ["lake/t", "lake/t/"])
def test_a_table_is_refused_with_the_line_that_reads_it(table, system, name):
    path = table(system)
    with pytest.raises(StorageError) as caught:
        evaluate(name)
    assert f"is a table of {system}" in str(caught.value)
    assert LINES[system].format(path=path) in str(caught.value)


@pytest.mark.repeats  # markers are looked for by one function
@pytest.mark.parametrize("system", MARKERS)
@pytest.mark.parametrize(
    "source",
    [
        "lake",
        "lake/t/data",
        "lake/t/data/k=1",
        "lake/t/data/k=1/part-0.parquet",
        "lake/**/*.parquet",
        "lake/t/*/*/part-*",
        "by_link",
        "linked",
        ["lake/t"],
        ["other.parquet", "lake/t/data"],
        "listed",
    ],
    ids=str,
)
def test_what_lies_in_a_table_or_holds_one_is_refused(table, system, source, eight):
    path = table(system, "data/k=1")
    eight.write_parquet("other.parquet")
    os.symlink("lake/t/data/k=1", "by_link")
    os.mkdir("linked")
    os.symlink(path / "data/k=1/part-1.parquet", "linked/x.parquet")
    if source == "listed":
        source = glob.glob("lake/t/data/*/*.parquet")
    for call in (evaluate, check, read):
        with pytest.raises(StorageError, match=f"belongs to a table of {system}, {path}: give"):
            call(source)
    with pytest.raises(StorageError, match="belongs to a table"):
        compare("other.parquet", source, on="split")


@pytest.mark.parametrize("name", ["csv", "ndjson", "ipc", "trl"])
def test_a_table_is_in_no_other_format(table, name):
    path = table("Delta Lake")
    with pytest.raises(StorageError, match="is a table of Delta Lake: leave its format out"):
        read(path, name)


def test_other_folders_called_metadata_are_no_table(eight, tmp_path):
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "columns.json").write_text("{}")
    eight.write_parquet(tmp_path / "a.parquet")
    assert evaluate(tmp_path).summary.n_pairs == 8


@pytest.fixture
def delta(tmp_path, eight):
    library = pytest.importorskip("deltalake")
    keyed = eight.with_columns(pair_id=pl.int_range(8)).drop("turns", strict=False)
    again = keyed.with_columns(pl.col(LOGPS[0]) - 1.0)
    path = str(tmp_path / "delta")
    library.write_deltalake(path, keyed.to_arrow(), partition_by=["split"])
    library.write_deltalake(path, again.to_arrow(), mode="overwrite")
    library.DeltaTable(path).delete("pair_id = 3")
    return path, again.filter(pl.col("pair_id") != 3)


def test_a_delta_table_is_read_as_it_is_now(delta):
    path, now = delta
    expected = evaluate(now, by="split")
    for source in (path, sys.modules["deltalake"].DeltaTable(path)):
        found = evaluate(source, by="split")
        assert found.summary == expected.summary
        assert found.subsets.equals(expected.subsets)
        assert evaluate(now.drop(LOGPS[2:]), reference=source).summary == expected.summary
        with pytest.warns(DataWarning, match="have the same log-probs on all 7"):
            compare(now, source)
    assert read(path).collect().height == 7


@pytest.fixture
def iceberg(tmp_path, eight):
    catalogs = pytest.importorskip("pyiceberg.catalog.sql")
    catalog = catalogs.SqlCatalog(
        "c", uri=f"sqlite:///{tmp_path}/catalog.db", warehouse=f"file://{tmp_path}"
    )
    catalog.create_namespace("n")
    rows = eight.with_columns(pair_id=pl.int_range(8)).drop("turns", strict=False)
    again = rows.with_columns(pl.col(LOGPS[0]) - 1.0)
    table = catalog.create_table("n.t", schema=rows.to_arrow().schema)
    table.append(rows.to_arrow())
    table.overwrite(again.to_arrow())
    yield tmp_path / "n" / "t", table, rows, again
    catalog.engine.dispose()


def test_an_iceberg_table_is_read_as_it_is_now(iceberg):
    path, table, _, now = iceberg
    expected = evaluate(now).summary
    assert evaluate(table).summary == expected
    with pytest.warns(DataWarning, match=r"read as of 00002-.*.metadata.json, the newest"):
        assert evaluate(path).summary == expected


def test_the_version_of_an_iceberg_table_is_the_one_that_its_folder_names(iceberg):
    path, _, before, now = iceberg
    hint = path / "metadata" / "version-hint.text"
    for version, rows in (("1", before), ("2\n", now)):
        hint.write_text(version)
        assert evaluate(path).summary == evaluate(rows).summary
    hint.unlink()
    (path / "metadata" / "00002-other.metadata.json").write_text("{}")
    with pytest.raises(StorageError, match="has 2 files of version 2"):
        evaluate(path)


def test_a_table_that_its_library_cannot_read_is_an_error_of_ours(tmp_path, eight):
    pytest.importorskip("deltalake")
    (tmp_path / "t" / "_delta_log").mkdir(parents=True)
    (tmp_path / "t" / "_delta_log" / f"{0:020}.json").write_text('{"commitInfo": {}}')
    eight.write_parquet(tmp_path / "t" / "a.parquet")
    with pytest.raises(StorageError, match="cannot be read as a table of Delta Lake: "):
        evaluate(tmp_path / "t")
