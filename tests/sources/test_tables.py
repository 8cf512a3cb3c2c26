"""CSV, NDJSON, Arrow files and streams: their figures, their faults, read lazily."""

from __future__ import annotations

import json
from statistics import fmean

import polars as pl
import pytest

from dpo_pipeline import ColumnError, Pairs, StorageError, UsageError, check, evaluate, read
from dpo_pipeline.sources.formats import FORMATS, guess
from dpo_pipeline.sources.text_files import INFERRED_ROWS
from pair_tools import LOGPS
from reader_tools import TABLES, N, figures, summary, write_stream


@pytest.mark.repeats(3)  # each reader has its own tests
@pytest.mark.parametrize("ending", TABLES)
def test_a_table_goes_to_the_summary_in_one_command(capsys, tmp_path, eight, ending):
    path = tmp_path / f"pairs.{ending}"
    TABLES[ending](eight, path)
    expected = figures(eight.select(LOGPS).rows())
    assert summary(capsys, path) == pytest.approx(expected, abs=1e-12)
    assert evaluate(read(path)).to_metrics() == evaluate(eight).to_metrics()


@pytest.mark.repeats(3)  # formats become one plan
@pytest.mark.parametrize("ending", TABLES)
def test_reading_is_lazy_and_evaluating_reads_once(tmp_path, eight, engine, ending):
    path = tmp_path / f"pairs.{ending}"
    TABLES[ending](eight, path)
    engine.graphs.clear()
    rows = read(path)
    assert engine.graphs == []
    evaluate(rows)
    # CSV and JSON lines are a scan behind a source of ours.
    reads = [sum(kind in each for each in engine.graphs) for kind in ("multi-scan", "python-scan")]
    assert max(reads) == 1


@pytest.mark.repeats(2)  # all formats find files by one function
@pytest.mark.parametrize("ending", TABLES)
def test_a_list_a_glob_and_a_folder(tmp_path, eight, ending):
    folder = tmp_path / "odd [1]" / "deeper"
    folder.mkdir(parents=True)
    paths = [folder / f"{part}[x].{ending}" for part in "ab"]
    for path, rows in zip(paths, (eight.head(3), eight.tail(5)), strict=True):
        TABLES[ending](rows, path)
    TABLES[ending](eight, folder / f"_{ending}")
    expected = evaluate(eight).summary
    name = guess(paths)
    for source in (paths, folder.parent, tmp_path / "*" / "deeper" / f"*.{ending}"):
        assert evaluate(read(source, name)).summary == expected


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_first_rows_do_not_decide_what_a_log_prob_is(tmp_path, ending):
    n = INFERRED_ROWS + 2
    whole = pl.int_range(-n, 0, eager=True)
    frame = pl.DataFrame(dict.fromkeys(LOGPS[1:], whole))
    frame = frame.with_columns(
        mine=whole.cast(pl.Float64) - pl.Series([0.0] * (n - 1) + [0.5]),
        chosen_num_tokens=pl.Series([None] * (n - 1) + [3]),
        note=pl.Series([None] * (n - 1) + ["late"]),
    )
    path = tmp_path / f"pairs.{ending}"
    if ending == "csv":
        text = frame.with_columns(pl.col("mine").cast(pl.String).str.strip_suffix(".0"))
        text.write_csv(path)
    else:
        rows = frame.to_dicts()
        for row in rows[:-1]:
            row["mine"] = int(row["mine"])
        path.write_text("\n".join(map(json.dumps, rows)))
    columns = {LOGPS[0]: "mine"}
    rows = read(Pairs(path, columns=columns))
    assert rows.collect().row(-1, named=True)["note"] == "late"
    mean = evaluate(Pairs(rows, columns=columns)).summary.policy_chosen_logps
    assert mean == pytest.approx(fmean([*range(-n, -1), -1.5]), abs=1e-9)


def test_csv_takes_nulls_infinities_and_what_the_contract_counts(tmp_path):
    path = tmp_path / "pairs.csv"
    values = ["-1.5", "", "nan", "-inf", "-Infinity", "inf", "2.5"]
    lines = [f"{value},-20,-30,-40" for value in values]
    path.write_text("\n".join([",".join(LOGPS), *lines]))
    broken = {rule.name: rule.count for rule in check(read(path)).broken}
    assert broken == {
        "policy_chosen_logps.not_null": 1,
        "policy_chosen_logps.not_nan": 1,
        "policy_chosen_logps.finite": 3,
        "policy_chosen_logps.at_most": 1,
    }


def test_token_lists_in_json_lines(tmp_path):
    path = tmp_path / "pairs.jsonl"
    lists = {name.replace("_logps", "_token_logps"): [-1, -2] for name in LOGPS}
    late = {name: [-30.5 - i] for i, name in enumerate(lists)}
    path.write_text("\n".join(map(json.dumps, [lists] * INFERRED_ROWS + [late])))
    found = evaluate(read(path).tail(1)).summary
    assert found.policy_chosen_logps == -30.5


CONTENTS = {
    "parquet": b"PAR1 and more",
    "text": b"nothing of use",
    "json array": b'[{"a": 1},\n {"a": 2}',
    "list": b"{}\n[1]\n",
    "empty": b"",
    "text in csv": (",".join(LOGPS) + "\n-1,-2,-3,-4\n-1,n/a,-3,-4\n").encode(),
    "twice in csv": b"policy_chosen_logps,policy_chosen_logps\n-1,-2\n",
    "semicolons": b"policy_chosen_logps;ref_chosen_logps\n-1;-2\n",
    "json lines": b'{"a": 1}\n',
    "text scores": b'{"scores_chosen": "1", "scores_rejected": "2"}\n',
    "texts": b'{"chosen": "good", "rejected": "bad"}\n',
}


@pytest.mark.parametrize(
    ("format_name", "content", "kind", "said"),
    [
        pytest.param("ndjson", "parquet", StorageError, "is Parquet, and not text", id="1"),
        pytest.param("ndjson", "json array", StorageError, "an array of objects: ", id="2"),
        pytest.param("ndjson", "list", StorageError, "must be an object, found a list", id="3"),
        pytest.param("ndjson", "empty", StorageError, "cannot be read as NDJSON", id="4"),
        pytest.param("csv", "parquet", StorageError, "is Parquet, and not text", id="5"),
        pytest.param("csv", "empty", StorageError, "cannot be read as CSV: empty", id="6"),
        pytest.param(
            "csv",
            "text in csv",
            ColumnError,
            "policy_rejected_logps: must be a number, and is text in 1 row, first at row 1: 'n/a'",
            id="7",
        ),
        pytest.param("csv", "twice in csv", ColumnError, "the header has it twice", id="8"),
        pytest.param("csv", "semicolons", StorageError, "the separator looks like ';'", id="19"),
        pytest.param("ipc", "parquet", StorageError, "is Parquet, not Arrow IPC", id="9"),
        pytest.param("ipc", "text", StorageError, "is not Arrow IPC", id="10"),
        pytest.param("trl", "text", StorageError, "is not Arrow IPC", id="11"),
        pytest.param(
            "parquet",
            "text",
            StorageError,
            "is text, and Parquet is read: for CSV say --format",
            id="12",
        ),
        pytest.param("rewardbench", "json lines", ColumnError, "scores_chosen, scores_", id="13"),
        pytest.param("rewardbench", "text scores", ColumnError, "must be a number, or a", id="14"),
        pytest.param("rewardbench", "texts", ColumnError, "chosen: must be a number", id="15"),
        pytest.param("vllm", "json lines", ColumnError, "line 1: pair_id must be", id="17"),
        pytest.param("vllm", "text", ColumnError, "line 1: Expecting value", id="18"),
    ],
)
def test_a_wrong_shape_is_said_with_the_file(tmp_path, format_name, content, kind, said):
    path = tmp_path / "file"
    path.write_bytes(CONTENTS[content])
    with pytest.raises(kind) as caught:
        read(path, format_name)
    assert str(caught.value).startswith(str(path))
    assert said in str(caught.value)


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_that_is_not_there_is_said(tmp_path, name):
    with pytest.raises(StorageError, match="no such file or folder"):
        read(tmp_path / "nothing", name)
    with pytest.raises((StorageError, UsageError)):
        read([], name)
    with pytest.raises(StorageError):
        read(tmp_path, name)


def test_damaged_arrow_is_said(tmp_path, eight):
    stream, file = tmp_path / "stream.arrow", tmp_path / "file.arrow"
    write_stream(eight, stream)
    eight.write_ipc(file)
    for path in (stream, file):
        path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(StorageError, match="as an Arrow IPC file"):
        read(file)
    with pytest.raises(StorageError, match="as an Arrow IPC stream"):
        evaluate(read(stream))


def test_streams_of_one_source_are_alike(tmp_path, eight):
    paths = [tmp_path / "a.arrow", tmp_path / "b.arrow"]
    write_stream(eight, paths[0])
    write_stream(eight.drop("turns"), paths[1])
    with pytest.raises(StorageError, match=r"b.arrow: has other columns or types than .*a.arrow"):
        read(paths)


def test_a_stream_is_cut_and_filtered_as_any_scan(tmp_path, eight):
    path = tmp_path / "a.arrow"
    write_stream(eight, path)
    rows = read(path)
    assert rows.head(4).collect().equals(eight.head(4))
    assert rows.filter(pl.col("turns") > 2).collect().equals(eight.filter(pl.col("turns") > 2))
    assert rows.select(pl.len()).collect().item() == N


def test_a_stream_makes_only_the_columns_that_are_asked_for(tmp_path, eight, monkeypatch):
    path = tmp_path / "a.arrow"
    write_stream(eight, path)
    rows = read(path).select("turns")
    made = []

    def frame(batch):
        made.append(batch.schema.names)
        return whole(batch)

    whole = pl.DataFrame
    monkeypatch.setattr(pl, "DataFrame", frame)
    rows.collect(engine="streaming")
    assert made == [["turns"]] * 3  # eight rows by three
