"""Columns that nobody asked for, of types that Polars does not read or that files disagree on."""

from __future__ import annotations

import datetime as dt
import decimal

import polars as pl
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from dpo_pipeline import (
    ColumnError,
    Contract,
    Pairs,
    PreferencePairs,
    UsageError,
    check,
    compare,
    convert,
    evaluate,
    join_reference,
    read,
    score_parquet,
    sweep,
)
from dpo_pipeline.sources.dataset import open_dataset
from pair_tools import DATA, LOGPS

ZONE = pa.timestamp("us", tz="+05:30")
MOMENT = dt.datetime(2024, 1, 1)  # noqa: DTZ001  Arrow gives it the zone
PARQUET = {
    "a time zone that is an offset": (lambda n: pa.array([MOMENT] * n, ZONE), "zone '+05:30'"),
    "an invented time zone": (
        lambda n: pa.array([MOMENT] * n, pa.timestamp("ns", tz="Mars/Olympus")),
        "zone 'Mars/Olympus'",
    ),
    "a time zone in a list in a struct": (
        lambda n: pa.array([{"at": [MOMENT]}] * n, pa.struct([("at", pa.list_(ZONE))])),
        "zone '+05:30'",
    ),
    "a list view": (lambda n: pa.array([[1]] * n, pa.list_view(pa.int64())), "a list view"),
    "a decimal of 60 digits": (
        lambda n: pa.array([decimal.Decimal("1.5")] * n, pa.decimal256(60, 2)),
        "a decimal of 60 digits",
    ),
}
ARROW = {
    **PARQUET,
    "an interval": (lambda n: pa.array([pa.MonthDayNano([1, 2, 3])] * n), "INTERVAL"),
    "run-end encoded": (
        lambda n: pa.RunEndEncodedArray.from_arrays(pa.array([n], pa.int32()), pa.array([1])),
        "run-end encoded",
    ),
    "a union": (
        lambda n: pa.UnionArray.from_sparse(pa.array([0] * n, pa.int8()), [pa.array([1] * n)]),
        "a union",
    ),
}
DUCKDB = {"duckdb_interval": "INTERVAL", "duckdb_variant": "VARIANT"}


@pytest.fixture(scope="module")
def eight():
    return pl.read_parquet(DATA / "hh_harmless_policy_a_test.parquet").head(8)


def odd_table(frame, make):
    table = frame.to_arrow()
    return table.append_column("odd", make(table.num_rows))


def write_ipc(table, path, opened=pa.ipc.new_file):
    with pa.OSFile(str(path), "wb") as out, opened(out, table.schema) as file:
        file.write_table(table, max_chunksize=3)


def write_parquet(table, path):
    try:
        pq.write_table(table, path, row_group_size=3)
    except pa.ArrowNotImplementedError as error:
        pytest.skip(f"this pyarrow does not write it: {error}")


@pytest.fixture(params=[*PARQUET, *DUCKDB, "twice"])
def odd_parquet(request, tmp_path, eight):
    """A file with a column `odd`, and what it is."""
    path = tmp_path / "odd.parquet"
    if request.param in DUCKDB:
        path = DATA / "formats" / f"{request.param}.parquet"
        try:
            pq.read_schema(path)
        except OSError as error:
            pytest.skip(f"this pyarrow does not open it: {error}")
        return path, DUCKDB[request.param]
    if request.param == "twice":
        table = odd_table(eight, lambda n: pa.array(range(n)))
        pq.write_table(table.append_column("odd", table["turns"]), path)
        return path, "several columns have this name"
    make, said = PARQUET[request.param]
    write_parquet(odd_table(eight, make), path)
    return path, said


def moved(frame):
    return frame.with_columns(pl.col(LOGPS[0]) - pl.int_range(pl.len()) / 8)


@pytest.fixture(scope="module")
def expected(eight):
    """The summary, the losses of two betas, and a comparison, of the pairs without it."""
    swept = [evaluate(eight, beta).summary.loss for beta in (0.1, 0.5)]
    return evaluate(eight).summary, swept, compare(eight, moved(eight)).to_dict()["differences"]


@pytest.mark.repeats(1)  # no call reads what is odd, whatever it is
def test_figures_are_those_without_it(odd_parquet, eight, expected, capfd):
    path, _ = odd_parquet
    summary, losses, differences = expected
    assert evaluate(path, by="turns", batches=2).summary == summary
    assert check(path).n_pairs == 8
    assert [row["loss"] for row in sweep(path, [0.1, 0.5]).table.to_dicts()] == losses
    assert compare(path, moved(eight)).to_dict()["differences"] == differences
    alone = eight.drop(LOGPS[2:])
    assert evaluate(alone, reference=path).summary == summary
    assert capfd.readouterr().err == ""  # Rust's threads print a panic there


@pytest.mark.repeats(1)  # one message for all
def test_scoring_names_it_and_goes_on_without_it(odd_parquet, tmp_path, eight):
    path, said = odd_parquet
    out = tmp_path / "out.parquet"
    with pytest.raises(ColumnError, match=r"--keep") as caught:
        score_parquet(path, out)
    assert caught.value.problems[0].startswith("odd: ")
    assert said in caught.value.problems[0]
    assert not out.exists()
    score_parquet(path, out, scored=["pair_id"])
    score_parquet(eight, tmp_path / "plain.parquet", scored=["pair_id"])
    assert pl.read_parquet(out).equals(pl.read_parquet(tmp_path / "plain.parquet"))
    with pytest.raises(ColumnError, match="quarantined pairs keep all columns"):
        score_parquet(path, out, scored=["pair_id"], on_invalid="quarantine")


@pytest.mark.parametrize(
    "carry",
    [
        pytest.param(lambda path, _: read(path), id="read"),
        pytest.param(convert, id="convert"),
    ],
)
def test_whoever_carries_all_columns_names_it(odd_parquet, tmp_path, carry):
    with pytest.raises(ColumnError) as caught:
        carry(odd_parquet[0], tmp_path / "out.parquet")
    assert any(p.startswith("odd: ") and odd_parquet[1] in p for p in caught.value.problems)


def test_a_join_carries_all_columns_too(tmp_path, eight):
    make, said = PARQUET["a list view"]
    write_parquet(odd_table(eight.drop(LOGPS[2:]), make), tmp_path / "policy.parquet")
    with pytest.raises(ColumnError, match=said):
        join_reference(tmp_path / "policy.parquet", eight)


@pytest.mark.repeats(3)  # one message for all
def test_whoever_asks_for_it_is_told_why(odd_parquet, tmp_path):
    path, said = odd_parquet
    for call in (
        lambda: evaluate(path, by="odd"),
        lambda: score_parquet(path, tmp_path / "out.parquet", scored=["odd"]),
    ):
        with pytest.raises(UsageError, match="'odd' cannot be read: ") as caught:
            call()
        assert said in str(caught.value)
    with pytest.raises(ColumnError) as caught:
        evaluate(Pairs(path, columns={"prompt_id": "odd"}))
    assert said in str(caught.value)

    class Asks(PreferencePairs):
        odd: int

    with pytest.raises(ColumnError) as caught:
        evaluate(path, contract=Contract(Asks))
    assert said in str(caught.value)


def test_a_shard_reads_its_own_row_groups(tmp_path, eight, monkeypatch):
    make, _ = PARQUET["a time zone that is an offset"]
    paths = [str(tmp_path / f"{name}.parquet") for name in "ab"]
    for path in paths:
        pq.write_table(odd_table(eight, make), path, row_group_size=3)  # of 3, 3 and 2 rows
    groups, read = [], pq.ParquetFile.iter_batches

    def noted(file, *, row_groups, **rest):
        groups.append(row_groups)
        return read(file, row_groups=row_groups, **rest)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", noted)
    dataset = open_dataset(str(tmp_path))
    both = pl.concat([eight, eight]).select(LOGPS)
    for first, n in ((0, 2), (3, 3), (5, 9), (7, 1), (8, 8), (15, 1)):
        rows = dataset.shard(first, n).frame.select(LOGPS).collect()
        assert rows.equals(both.slice(first, n)), (first, n)
    # None before those of the shard; scans may take turns.
    assert [1, 2] in groups
    assert [2] in groups


def test_shards_and_folders_of_such_files(tmp_path, eight, monkeypatch):
    monkeypatch.setattr("dpo_pipeline.evaluation.measuring.SHARD_ROWS", 3)
    make, _ = PARQUET["a time zone that is an offset"]
    for part, rows in (("a", eight[:5]), ("b", eight[5:])):
        folder = tmp_path / "in" / f"part={part}" / "size=1"
        folder.mkdir(parents=True)
        table = odd_table(rows, make) if part == "a" else rows.drop("turns").to_arrow()
        pq.write_table(table, folder / "x.parquet", row_group_size=2)
    result = evaluate(tmp_path / "in", by=["part", "size"])
    assert result.summary == evaluate(eight).summary
    subsets = result.subsets.select("part", "size", "n_pairs").rows()
    assert subsets == [("a", 1, 5), ("b", 1, 3)]
    turns = evaluate(tmp_path / "in", by="turns").subsets
    assert turns.filter(pl.col("turns").is_null())["n_pairs"].item() == 3
    score_parquet(tmp_path / "in", tmp_path / "out", scored=["pair_id"])
    parts = [
        pl.read_parquet(tmp_path / "out" / f"part={part}" / "size=1" / "x.parquet") for part in "ab"
    ]
    assert pl.concat(parts)["pair_id"].to_list() == eight["pair_id"].to_list()


@pytest.mark.repeats  # files and streams are opened alike
@pytest.mark.parametrize("opened", [pa.ipc.new_file, pa.ipc.new_stream])
@pytest.mark.parametrize("kind", [*ARROW, "twice"])
def test_arrow_files_and_streams(tmp_path, eight, expected, kind, opened, capfd):
    path = tmp_path / "odd.arrow"
    make, said = ARROW.get(kind, (lambda n: pa.array(range(n)), "several columns"))
    table = odd_table(eight, make)
    write_ipc(table if kind in ARROW else table.append_column("odd", table["odd"]), path, opened)
    assert evaluate(path, by="turns").summary == expected[0]
    assert capfd.readouterr().err == ""
    with pytest.raises(ColumnError) as caught:
        score_parquet(path, tmp_path / "out.parquet")
    assert said in caught.value.problems[0]


def test_integers_of_128_bits_that_polars_alone_reads(tmp_path, eight):
    path, out = tmp_path / "wide.parquet", tmp_path / "out.parquet"
    eight.with_columns(odd=pl.lit(1, pl.Int128)).write_parquet(path)
    assert evaluate(path).summary == evaluate(eight).summary
    assert evaluate(path, by="odd").subsets["n_pairs"].to_list() == [8]
    with pytest.raises(ColumnError, match=r"odd: it is Int128.*\n.*--keep"):
        score_parquet(path, out)
    score_parquet(path, out, scored=["pair_id"])
    assert pl.read_parquet(out).height == 8


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(lambda table: table, id="table"),
        pytest.param(lambda table: table.to_reader(), id="reader"),
        pytest.param(pyarrow.dataset.dataset, id="dataset"),
    ],
)
@pytest.mark.parametrize("kind", PARQUET)
def test_a_dataframe_with_such_a_column_is_refused_before_polars_sees_it(eight, kind, wrap, capfd):
    make, said = PARQUET[kind]
    with pytest.raises(UsageError, match="drop the column before") as caught:
        evaluate(wrap(odd_table(eight, make)))
    assert said in str(caught.value)
    assert capfd.readouterr().err == ""


@pytest.mark.repeats  # each type, read once or again
@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("interval 1 day", "odd: it is INTERVAL"),
        ("[{'a': interval 1 day}]", "odd: it is INTERVAL"),
        ("union_value(x := 1)", "odd: it is UNION"),
        ("'UNION'::enum('INTERVAL', 'UNION')", None),
    ],
)
@pytest.mark.parametrize("again", [False, True])
def test_a_relation_of_duckdb_is_refused_before_it_is_read(eight, value, said, again, capfd):
    duckdb = pytest.importorskip("duckdb")
    there = eight.to_arrow()  # noqa: F841  which the query names
    relation = duckdb.sql(f"select *, {value} as odd from there")
    if said is None:
        assert evaluate(relation).summary == evaluate(eight).summary
        return
    with pytest.raises(UsageError, match=f"{said}, which Polars does not read: drop the column"):
        evaluate(relation, reference=relation if again else None)
    assert "panicked" not in "".join(capfd.readouterr())


def test_a_struct_of_ones_own_is_no_variant(tmp_path, eight):
    path = tmp_path / "own.parquet"
    own = pl.struct(metadata=pl.lit("x"), value=pl.lit(1.5))
    eight.with_columns(own=own).write_parquet(path)
    score_parquet(path, tmp_path / "out.parquet")
    assert "own" in pl.read_parquet_schema(tmp_path / "out.parquet")


DRIFT = {
    "structs": (pl.lit([{"role": "u"}]), pl.lit([{"role": "u", "name": "x"}])),
    "instants": (pl.lit(MOMENT).cast(pl.Datetime("us")), pl.lit(MOMENT).cast(pl.Datetime("ns"))),
    "text and numbers": (pl.lit("x"), pl.lit(1)),
}


@pytest.fixture(params=DRIFT)
def drifting(request, tmp_path, eight):
    """A folder of two files whose columns `odd` are of types that no type holds."""
    folder = tmp_path / "drift"
    folder.mkdir()
    for name, rows, odd in zip("ab", (eight[:3], eight[3:]), DRIFT[request.param], strict=True):
        rows.with_columns(odd=odd).write_parquet(folder / f"{name}.parquet")
    return folder


@pytest.mark.repeats(1)  # columns without a role are not looked at
def test_drift_in_a_column_without_a_role_decides_nothing(drifting, eight):
    expected = evaluate(eight).summary
    assert evaluate(drifting).summary == expected
    assert check(drifting).n_invalid == 0
    assert sweep(drifting, [0.1]).table["loss"].item() == expected.loss
    assert (
        compare(drifting, moved(eight)).to_dict()["differences"]
        == (compare(eight, moved(eight)).to_dict()["differences"])
    )


@pytest.mark.repeats(1)  # one message for all
def test_scoring_names_the_drift_and_goes_on_without_the_column(drifting, tmp_path):
    with pytest.raises(ColumnError) as caught:
        score_parquet(drifting, tmp_path / "out")
    first, last = caught.value.problems
    assert f"in {drifting / 'b.parquet'} and " in first
    assert first.startswith("odd: ")
    assert f"in {drifting / 'a.parquet'}; no type holds both" in first
    assert "--keep" in last
    score_parquet(drifting, tmp_path / "out", scored=["turns"])
    assert pl.read_parquet(tmp_path / "out" / "b.parquet").height == 5
    with pytest.raises(UsageError, match="by: 'odd' cannot be read: .* no type holds both"):
        evaluate(drifting, by="odd")
