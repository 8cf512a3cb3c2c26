"""CSV and NDJSON that are not as they should be: said by line or row, the same by every command."""

from __future__ import annotations

import json
import tracemalloc

import polars as pl
import pytest

from dpo_pipeline import (
    ColumnError,
    JoinError,
    Pairs,
    Reference,
    StorageError,
    check,
    convert,
    evaluate,
    read,
    sweep,
)
from dpo_pipeline.cli.program import main
from dpo_pipeline.sources.text_files import INFERRED_ROWS, broken_json, ragged_lines
from pair_tools import LOGPS

# The rows are alike, for which there is a warning.
pytestmark = pytest.mark.filterwarnings("ignore::dpo_pipeline.DataWarning")

HEADER = ",".join(("pair_id", *LOGPS))
GOOD = "{},-20,-30,-21,-29.5"


def written(path, *lines, header=HEADER):
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


# Too many fields, and too few


RAGGED = "6,-1,-258.9,-129.3,-258.1,-126.3"
"""The comma of 1,258.9 is a separator here: every value after it would move by one column."""


@pytest.mark.repeats(4)  # lines are counted by one reader
@pytest.mark.parametrize(
    "call",
    [
        pytest.param(check, id="check"),
        pytest.param(evaluate, id="evaluate"),
        pytest.param(lambda path: evaluate(path, on_invalid="exclude"), id="exclude"),
        pytest.param(lambda path: sweep(path, [0.1]), id="sweep"),
        pytest.param(lambda path: convert(path, path.with_suffix(".parquet")), id="convert"),
        pytest.param(lambda path: read(path).collect(), id="read"),
        pytest.param(lambda path: read(path).select(LOGPS[0]).collect(), id="one column"),
        pytest.param(lambda path: read(path).select(pl.len()).collect(), id="none"),
        pytest.param(lambda path: read(path).tail(1).collect(), id="tail"),
    ],
)
@pytest.mark.parametrize("n_good", [2, INFERRED_ROWS + 7])
def test_a_line_with_too_many_fields_is_an_error_with_its_number(tmp_path, call, n_good):
    good = [GOOD.format(i) for i in range(n_good)]
    path = written(tmp_path / "x.csv", *good, RAGGED, GOOD.format("z"))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(StorageError) as caught:
        call(path)
    assert str(caught.value) == (
        f"{path}: line {n_good + 2:,} has 6 fields, the header 5 (1 such line); "
        "quote values that contain commas"
    )
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("command", ["check", "evaluate", "sweep", "convert"])
def test_every_command_refuses_such_a_line_alike(tmp_path, capsys, command):
    path = written(tmp_path / "x.csv", GOOD.format(1), RAGGED)
    out = [str(tmp_path / "out.parquet")] if command == "convert" else []
    assert main([command, str(path), *out]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert "x.csv: line 3 has 6 fields, the header 5 (1 such line)" in err


def test_a_reference_with_such_a_line_is_refused(tmp_path):
    path = written(
        tmp_path / "r.csv", "1,-2,-3", "2,-2,-3,-4", header="pair_id," + ",".join(LOGPS[2:])
    )
    own = pl.DataFrame({"pair_id": ["1", "2"], LOGPS[0]: [-1.0, -2.0], LOGPS[1]: [-3.0, -3.0]})
    with pytest.raises(StorageError, match=r"r.csv: line 3 has 4 fields, the header 3"):
        evaluate(own, reference=path)


def test_the_second_of_two_files_is_named(tmp_path):
    paths = [written(tmp_path / f"{n}.csv", *rows) for n, rows in (("a", []), ("b", [RAGGED]))]
    written(paths[0], GOOD.format(1))
    with pytest.raises(StorageError, match=r"b.csv: line 2 has 6 fields"):
        evaluate(paths)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("a,b\n1,2\n3,4\n", None, id="even"),
        pytest.param('a,b\n"1,5",2\n', None, id="quoted comma"),
        pytest.param('a,b\n"1,\n5",2\n3,4,5', "line 4 has 3 fields", id="quoted line"),
        pytest.param('a,b\n"x ""y, z""",2\n', None, id="quoted quotes"),
        pytest.param("a,b\r\n1,2\r\n1,2,\r\n", "line 3 has 3 fields", id="comma at the end"),
        pytest.param("a,b\n1\n\n1,2\n", None, id="too few"),
        pytest.param("a,b\n1,2,3\n1,2\n1,2,3,4\n", "has 3 fields, the header 2 (2 such", id="two"),
    ],
)
def test_fields_are_counted_outside_quotes(tmp_path, text, said):
    path = tmp_path / "x.csv"
    path.write_bytes(text.encode())
    found = ragged_lines(str(path))
    assert found is None if said is None else said in found
    if said is None:  # the engine is of the same opinion
        read(Pairs(path, columns=None)).collect()
    else:
        with pytest.raises(StorageError):
            read(path).collect()


def test_a_line_with_too_few_fields_has_nulls_that_the_contract_counts(tmp_path):
    path = written(tmp_path / "x.csv", GOOD.format(1), "2,-20,-30", "5", GOOD.format(3))
    found = check(path)
    assert {rule.name: rule.count for rule in found.broken} == {
        "policy_chosen_logps.not_null": 1,
        "policy_rejected_logps.not_null": 1,
        "ref_chosen_logps.not_null": 2,
        "ref_rejected_logps.not_null": 2,
    }


def test_whole_rows_are_read_in_bounded_memory(tmp_path):
    row = GOOD.format("x" * 1000)
    path = written(tmp_path / "x.csv", *[row] * 20_000, RAGGED)
    tracemalloc.start()
    with pytest.raises(StorageError, match=r"line 20,002 has 6 fields"):
        read(path).select(pl.len()).collect(engine="streaming")
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()


# Keys


def test_ids_of_csv_are_text(tmp_path):
    lines = [GOOD.format(i) for i in ("7", "07", *range(100, 100 + INFERRED_ROWS), "late-one")]
    path = written(tmp_path / "x.csv", *lines)
    ids = read(path).collect()["pair_id"]
    assert ids.dtype == pl.String
    assert ids.head(2).to_list() == ["7", "07"]
    assert ids.n_unique() == INFERRED_ROWS + 3
    assert evaluate(path).summary.n_valid == INFERRED_ROWS + 3


@pytest.mark.parametrize("key", ["pair_id", "prompt_id", "of_mine"])
def test_a_mapped_key_and_one_that_is_joined_by_are_text(tmp_path, key):
    path = written(tmp_path / "x.csv", GOOD.format("07"), header=HEADER.replace("pair_id", "key"))
    mapped = {key: "key"} if key != "of_mine" else None
    as_text = ["key"] if key == "of_mine" else ()
    assert read(Pairs(path, columns=mapped), as_text=as_text).collect()["key"].to_list() == ["07"]


def sides(tmp_path, policy_key, reference_key, on):
    own, base = (f"{on}," + ",".join(names) for names in (LOGPS[:2], LOGPS[2:]))
    return (
        written(tmp_path / "p.csv", f"{policy_key},-20,-30", "8,-20,-30", header=own),
        written(tmp_path / "r.csv", f"{reference_key},-21,-29", "8,-21,-29", header=base),
    )


@pytest.mark.repeats(1)  # the key has another name, and no more
@pytest.mark.parametrize("on", ["pair_id", "key"])
def test_07_is_not_joined_to_7(tmp_path, capsys, on):
    policy, reference = sides(tmp_path, "07", "7", on)
    with pytest.raises(JoinError) as caught:
        evaluate(policy, reference=Reference(reference, on=on))
    assert [keys for _, keys in caught.value.faults.values()] == [("07",), ("7",)]
    for command in ("evaluate", "check", "sweep"):
        assert main([command, str(policy), "--reference", str(reference), "--on", on]) == 1
        assert "such as '07'" in capsys.readouterr().err


def test_csv_is_joined_to_numbers_of_parquet(tmp_path):
    policy, _ = sides(tmp_path, "7", "7", "pair_id")
    base = pl.DataFrame({"pair_id": [8, 7], LOGPS[2]: [-21.0, -25.0], LOGPS[3]: [-29.0, -29.0]})
    base.write_parquet(tmp_path / "r.parquet")
    found = evaluate(policy, reference=tmp_path / "r.parquet")
    assert found.summary.chosen_reward == pytest.approx(0.1 * (1 + 5) / 2)


# Types by the first rows


def late(tmp_path, *last):
    lines = ["-20,-30,-21,-29,1,true"] * INFERRED_ROWS
    header = ",".join((*LOGPS, "turns", "good"))
    return written(tmp_path / "x.csv", *lines, *last, header=header)


def test_columns_of_csv_without_a_role_have_types(tmp_path):
    path = late(tmp_path, "-20,-30,-21,-29,,False", '-20,-30,-21,-29," 3",""')
    rows = read(path).tail(3).select("turns", "good").collect()
    assert rows.schema == {"turns": pl.Int64, "good": pl.Boolean}
    assert rows.rows() == [(1, True), (None, False), (3, None)]


@pytest.mark.repeats(2)  # whole numbers and Booleans are read alike
@pytest.mark.parametrize(
    ("last", "by", "said"),
    [
        ("n/a,-30,-21,-29,1,true", None, "policy_chosen_logps: must be a number, and is text in 1"),
        ("-20,-30,-21,-29,x,true", "turns", "turns: must be a whole number, and is something else"),
        ("-20,-30,-21,-29,1,maybe", "good", "good: must be true or false, and is text in 1 row"),
    ],
)
def test_what_another_type_comes_late_is_said_with_its_row(tmp_path, last, by, said):
    path = late(tmp_path, last)
    with pytest.raises(ColumnError) as caught:
        evaluate(path, by=by)
    assert said in str(caught.value)
    assert f"first at row {INFERRED_ROWS}: " in str(caught.value)
    assert ("as_text" in str(caught.value)) == (by is not None)
    if by is not None:
        assert evaluate(path).summary.n_valid == INFERRED_ROWS + 1
        assert read(path, as_text=[by]).collect()[by].dtype == pl.String


def ndjson(path, *rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


ROW = dict(zip(LOGPS, (-20.0, -30.0, -21.0, -29.5), strict=True))


def test_a_key_that_comes_late_in_json_lines_is_kept(tmp_path):
    path = ndjson(tmp_path / "x.jsonl", *[ROW] * (INFERRED_ROWS + 1), ROW | {"late": "x"})
    out = tmp_path / "out.parquet"
    convert(path, out)
    assert pl.read_parquet(out)["late"].drop_nulls().to_list() == ["x"]
    other = ndjson(tmp_path / "y.jsonl", ROW | {"later": 1})
    assert read([path, other]).collect().select("late", "later").row(-1) == (None, 1)


def test_text_among_numbers_of_json_lines_is_said_with_its_row(tmp_path):
    row = ROW | {LOGPS[1]: "n/a"}
    path = ndjson(tmp_path / "x.jsonl", *[ROW] * (INFERRED_ROWS + 1), row, row)
    with pytest.raises(ColumnError) as caught:
        evaluate(path)
    assert caught.value.problems == (
        f"{LOGPS[1]}: must be a number, and is text in 2 rows, first at row 10001: 'n/a'",
    )


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (['{"a": 1}', '{"a": 2'], "line 2 is no JSON"),
        (['{"a": 1}', "", "7"], "line 3: must be an object, found a number"),
        (['{"a": NaN}', '{"a": Nan}'], "line 2 is no JSON"),
        (
            ['{"a": [1]}', '{"a": null}', '{"a": 2}'],
            "a: is a list on line 1, and a number on line 3",
        ),
        (['{"a": true}', '{"a": 2}'], "a: is true or false on line 1, and a number on line 2"),
    ],
)
def test_broken_json_is_said_with_its_line(tmp_path, lines, said):
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(StorageError) as caught:
        read(path).collect()
    assert said in str(caught.value)


def test_json_that_is_whole_has_no_fault(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1, "b": {"c": [1]}}\n\n{"a": "x", "b": null}\n{"a": 1.5}\n')
    assert broken_json(str(path)) is None
    assert read(path).collect()["a"].to_list() == ["1", "x", "1.5"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_utf_16_is_said(tmp_path, encoding, ending):
    path = tmp_path / f"x.{ending}"
    path.write_text("policy_chosen_logps,b\n-1,-2\n", encoding=encoding)
    with pytest.raises(StorageError, match="is UTF-16; save it as UTF-8"):
        read(path)
