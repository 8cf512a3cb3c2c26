"""Files of one dataset that differ in their columns: resolved where safe, else named."""

from __future__ import annotations

import itertools

import polars as pl
import pytest
from hypothesis import given, settings, strategies as st

from dpo_pipeline import ColumnError, check, evaluate, score_parquet
from dpo_pipeline.sources.common_schema import WIDENING, common_schema
from dpo_pipeline.sources.dataset import open_dataset
from pair_tools import LOGPS
from plan_tools import assert_streams


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def write(folder, **frames):
    for name, frame in frames.items():
        frame.write_parquet(folder / f"{name}.parquet")
    return folder


def cast(pairs, dtype, columns=LOGPS):
    return pairs.with_columns(pl.col(columns).cast(dtype))


CHANGES = {
    "as it is": lambda p: p,
    "reordered": lambda p: p.select(reversed(p.columns)),
    "Float32": lambda p: cast(p, pl.Float32),
    "Float16": lambda p: cast(p, pl.Float16),
    "Int64": lambda p: cast(p, pl.Int64),
    "Int8": lambda p: cast(p, pl.Int8),
    "no pair_id": lambda p: p.drop("pair_id"),
    "Null-typed subset": lambda p: p.with_columns(subset=pl.lit(None)),
    "Categorical subset": lambda p: p.with_columns(pl.col("subset").cast(pl.Categorical)),
    "one more column": lambda p: p.with_columns(more=pl.lit([1], dtype=pl.List(pl.Int16))),
}


@pytest.fixture(scope="module")
def whole(pairs):
    return evaluate(pairs, batches=4)


@pytest.mark.repeats(9)  # each change first or second: the order is that of a union
@pytest.mark.parametrize(
    ("first", "second"),
    [
        # Of the changed ones with each other: what each does to one that is not is above.
        pytest.param(a, b, id=f"{a}, {b}", marks=() if "as it is" in {a, b} else pytest.mark.slow)
        for a, b in itertools.permutations(CHANGES, 2)
        if "as it is" in {a, b} or {a, b} <= {"reordered", "Float32", "Int64", "no pair_id"}
    ],
)
def test_what_loses_nothing_is_resolved_in_either_order(
    folder, tmp_path, pairs, whole, first, second
):
    write(folder, a=CHANGES[first](pairs[:3]), b=CHANGES[second](pairs[3:]))
    result = score_parquet(folder, tmp_path / "out", batches=4)
    # Log-probs of the fixture are whole numbers that every one of these types holds.
    assert result.summary == whole.summary == evaluate(folder).summary
    assert result.batches.equals(whole.batches)
    parts = [pl.read_parquet(tmp_path / "out" / f"{name}.parquet") for name in "ab"]
    assert parts[0].schema == parts[1].schema  # in the order of the columns, too
    assert pl.concat(parts).select(LOGPS).equals(pairs.select(LOGPS))
    for change, part, rows in zip((first, second), parts, (pairs[:3], pairs[3:]), strict=True):
        changed = CHANGES[change](rows)
        for name in part.columns[: len(pairs.columns)]:
            expected = changed[name].to_list() if name in changed.columns else [None] * 3
            assert part[name].to_list() == expected


@pytest.mark.parametrize(
    ("types", "common"),
    [
        pytest.param([pl.Float32, pl.Float64], pl.Float64, id="floats"),
        pytest.param([pl.Int32, pl.Int64], pl.Int64, id="integers"),
        pytest.param([pl.UInt8, pl.UInt32], pl.UInt32, id="unsigned"),
        pytest.param([pl.UInt16, pl.Int16], pl.Int32, id="one bit for the sign"),
        pytest.param([pl.UInt64, pl.Int64], None, id="no integer holds both"),
        pytest.param([pl.Int16, pl.Float32], pl.Float32, id="24 bits hold 15"),
        pytest.param([pl.Int32, pl.Float32], pl.Float64, id="and not 31"),
        pytest.param([pl.Int64, pl.Float64], None, id="53 bits do not hold an identifier"),
        pytest.param([pl.Int16, pl.UInt16, pl.Float32], pl.Float32, id="three"),
        pytest.param([pl.Null, pl.Date], pl.Date, id="null"),
        pytest.param([pl.Categorical, pl.String], pl.String, id="categories"),
        pytest.param([pl.Enum(["u"]), pl.String], None, id="an enum's are its own"),
        pytest.param([pl.List(pl.Null), pl.List(pl.String)], pl.List(pl.String), id="empty lists"),
        pytest.param([pl.List(pl.Int64), pl.List(pl.String)], None, id="lists"),
        pytest.param([pl.String, pl.Int64], None, id="text and numbers"),
        pytest.param([pl.Boolean, pl.Int64], None, id="truth and numbers"),
        pytest.param([pl.Datetime("us"), pl.Datetime("ns")], None, id="instants"),
        pytest.param([pl.Struct({"a": pl.Int8}), pl.Struct({"b": pl.Int8})], None, id="structs"),
    ],
)
def test_the_common_type_of_a_passenger(folder, types, common):
    for order in itertools.permutations(types):
        files = []
        for i, dtype in enumerate(order):
            path = folder / f"{i}.parquet"
            pl.DataFrame({"x": pl.Series([None], dtype=dtype)}).write_parquet(path)
            files.append((str(path), pl.read_parquet(path).schema))
        if common is None:
            found = common_schema(files)
            assert (found.schema, [*found.unread]) == ({}, ["x"])
            assert "no type holds both without loss" in found.unread["x"]
            with pytest.raises(ColumnError, match="x: it is"):
                common_schema(files, {"pair_id": "x"})
            continue
        schema = common_schema(files).schema
        assert schema == {"x": common}
        read = pl.scan_parquet([p for p, _ in files], schema=schema, cast_options=WIDENING)
        assert read.collect(engine="streaming").shape == (len(types), 1)


def test_all_files_alike_need_no_schema(folder, pairs):
    dataset = open_dataset(write(folder, a=pairs[:3], b=pairs[3:]))
    assert "schema" not in dataset.scanned


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(lambda p: p.drop(LOGPS[0]), f"{LOGPS[0]}: missing; ", id="missing"),
        pytest.param(
            lambda p: p.rename({LOGPS[0]: "policy_chosen_logprobs"}),
            f"{LOGPS[0]}: it is 'policy_chosen_logprobs' here and '{LOGPS[0]}' in ",
            id="another alias",
        ),
        pytest.param(
            lambda p: p.with_columns(policy_chosen_logprobs=LOGPS[0]),
            f"{LOGPS[0]}: '{LOGPS[0]}' and 'policy_chosen_logprobs' could both be it",
            id="two",
        ),
        pytest.param(
            lambda p: cast(p, pl.String, LOGPS[:1]),
            f"{LOGPS[0]}: it is String here and Float64 in ",
            id="text for numbers",
        ),
        pytest.param(
            lambda p: p.with_columns(subset=1, pair_id=True),
            "pair_id: it is Boolean here and String in ",
            id="a key",
        ),
    ],
)
def test_what_cannot_be_resolved_names_the_file(folder, tmp_path, pairs, change, said):
    write(folder, a=pairs, b=change(pairs), c=pairs)
    for run in (check, evaluate, lambda source: score_parquet(source, tmp_path / "out")):
        with pytest.raises(ColumnError) as caught:
            run(folder)
        assert caught.value.source == str(folder / "b.parquet")
        assert caught.value.problems[0].startswith(said)
        if "it is" in said:
            assert str(folder / "a.parquet") in caught.value.problems[0]
    assert len(caught.value.problems) == 1  # the subset has no role
    assert not (tmp_path / "out").exists()


def test_the_first_file_is_named_if_it_is_the_one_that_lacks_a_logprob(folder, pairs):
    write(folder, a=pairs.drop(LOGPS[2]), b=pairs)
    with pytest.raises(ColumnError) as caught:
        evaluate(folder)
    assert caught.value.source == str(folder / "a.parquet")


def test_what_all_files_lack_is_said_of_the_dataset(folder, pairs):
    write(folder, a=pairs.drop(LOGPS[2]), b=pairs.drop(LOGPS[2], "subset"))
    with pytest.raises(ColumnError) as caught:
        evaluate(folder)
    assert caught.value.source == str(folder)


def test_a_mapped_column_is_a_logprob(folder, pairs):
    mine = pairs.rename({LOGPS[0]: "mine"})
    columns = {LOGPS[0]: "mine"}
    write(folder, a=cast(mine, pl.Int64, "mine"), b=mine)
    assert open_dataset(folder, columns).frame.collect_schema()["mine"] == pl.Float64
    write(folder, b=mine.drop("mine"))
    with pytest.raises(ColumnError, match="'mine', which is not a column") as caught:
        open_dataset(folder, columns)
    assert caught.value.source == str(folder / "b.parquet")


def test_rows_of_a_file_without_the_column_are_a_subset_of_their_own(folder, pairs):
    write(folder, a=pairs[:3].drop("subset"), b=pairs[3:])
    subsets = evaluate(folder, by="subset").subsets
    assert subsets.select("subset", "n_pairs").rows() == [("x", 1), ("y", 1), (None, 4)]


def test_offenders_and_quarantine_of_files_that_differ(folder, tmp_path, pairs):
    faulty = cast(pairs, pl.Float32).with_columns(
        policy_chosen_logps=pl.Series([-20, None, -40, float("nan"), -60, 1], dtype=pl.Float32)
    )
    write(folder, a=faulty[:3].drop("subset"), b=cast(pairs, pl.Int32), c=faulty[3:])
    result = score_parquet(folder, tmp_path / "out", on_invalid="quarantine")
    assert {(o.file, o.row) for rule in result.invalid.broken for o in rule.offenders} == {
        ("a.parquet", 1),
        ("c.parquet", 0),
        ("c.parquet", 2),
    }
    assert result.summary == evaluate(folder, on_invalid="exclude").summary
    apart = [pl.read_parquet(p) for p in sorted((tmp_path / "out.invalid").rglob("*.parquet"))]
    assert [part["source_row"].to_list() for part in apart] == [[1], [], [0, 2]]
    assert len({tuple(part.schema.items()) for part in apart}) == 1


def test_hive_folders_of_files_that_differ(folder, tmp_path, pairs):
    first, second = (pairs.filter(subset=value).drop("subset") for value in "xy")
    for value, part in (("x", cast(first, pl.Float32).drop("pair_id")), ("y", second)):
        (folder / f"subset={value}").mkdir()
        part.select(reversed(part.columns)).write_parquet(folder / f"subset={value}/p.parquet")
    result = score_parquet(folder, tmp_path / "out", by="subset")
    assert result.subsets.select("subset", "n_pairs").rows() == [("x", 3), ("y", 2)]
    parts = [pl.read_parquet(p, hive_partitioning=False) for p in (tmp_path / "out").rglob("p.*")]
    assert parts[0].schema == parts[1].schema
    assert "subset" not in parts[0].columns
    assert sum(part["pair_id"].null_count() for part in parts) == 3


@pytest.mark.parametrize("lacking", ["", "1", "2"])
def test_hive_folders_whose_files_hold_the_key_too(folder, tmp_path, pairs, lacking):
    # Polars writes them so. Text in the files is no number for looking like one.
    for value, part in (("1", pairs[:2]), ("2", pairs[2:])):
        (folder / f"part={value}").mkdir()
        keyed = part if value == lacking else part.with_columns(part=pl.lit(value))
        keyed.write_parquet(folder / f"part={value}" / "p.parquet")
    result = score_parquet(folder, tmp_path / "out", by="part")
    assert result.subsets.select("part", "n_pairs").rows() == [("1", 2), ("2", 4)]
    parts = [
        pl.read_parquet(tmp_path / f"out/part={value}/p.parquet", hive_partitioning=False)
        for value in "12"
    ]
    assert parts[0].schema == parts[1].schema
    assert [part["part"].to_list() for part in parts] == [["1"] * 2, ["2"] * 4]


def test_reading_files_that_differ_streams_the_needed_columns_once(engine, folder, tmp_path, pairs):
    texts = pairs.with_columns(text=pl.lit("x" * 99))
    write(folder, a=texts[:3], b=cast(texts[3:], pl.Float32).drop("subset"))
    engine.graphs.clear()
    evaluate(folder)
    assert engine.data_scans == 1
    assert f"project: {len(LOGPS)} total" in engine.graphs[0]
    score_parquet(folder, tmp_path / "out")
    assert engine.data_scans == 1 + 1 + 2  # the measuring, and each file's writing
    assert_streams(engine)


@given(st.data())
@settings(max_examples=2, deadline=None)
def test_any_mixture_in_any_shards_gives_the_same_bits(real_pairs, tmp_path_factory, data):
    n = 90

    def everything(source):
        result = evaluate(source, by="turns", batches=7, on_invalid="exclude")
        return result.summary, result.subsets.rows(), result.batches.rows()

    faulty = real_pairs[:n].with_columns(
        policy_chosen_logps=pl.when(pl.int_range(pl.len()) % 47 != 5).then("policy_chosen_logps")
    )
    folder = tmp_path_factory.mktemp("mixed")
    cuts = sorted(data.draw(st.sets(st.integers(1, n - 1), max_size=3), label="cuts"))
    for start, stop in zip([0, *cuts], [*cuts, n], strict=True):
        part = faulty[start:stop].select(data.draw(st.permutations(faulty.columns)))
        wide = data.draw(st.sets(st.sampled_from(LOGPS)))
        gone = data.draw(st.sets(st.sampled_from(sorted(set(part.columns) - {*LOGPS, "turns"}))))
        part.with_columns(pl.col(wide).cast(pl.Float64)).drop(gone).write_parquet(
            folder / f"{start:04}.parquet", row_group_size=data.draw(st.integers(1, 80))
        )
    with pytest.MonkeyPatch.context() as patch:
        shard = data.draw(st.integers(20, 120), label="shard")
        patch.setattr("dpo_pipeline.evaluation.measuring.SHARD_ROWS", shard)
        patch.setattr("dpo_pipeline.sums.batches.SHARD_ROWS", shard)
        assert everything(folder) == everything(faulty)
