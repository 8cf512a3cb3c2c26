"""Which format a file has: by its name, by what it holds, or as it is said."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys

import polars as pl
import pytest

from dpo_pipeline import (
    Pairs,
    StorageError,
    UsageError,
    check,
    evaluate,
    read,
    score_parquet,
    sweep,
)
from dpo_pipeline.cli.program import main
from dpo_pipeline.sources.formats import FORMATS, PARQUET, guess
from dpo_pipeline.sources.opening import READERS
from pair_tools import LOGPS
from reader_tools import SAMPLES, TABLES, N, figures, summary

# Which format


def test_every_format_but_parquet_has_a_reader():
    assert set(READERS) == set(FORMATS) - {PARQUET}
    assert PARQUET in FORMATS


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("a.parquet", "parquet"),
        ("a.CSV", "csv"),
        ("a.csv.gz", "csv"),
        ("a.JSONL.ZST", "ndjson"),
        ("a.PARQ", "parquet"),
        ("a.parquet.gz", "parquet"),
        ("a.jsonl", "ndjson"),
        ("a.ndjson", "ndjson"),
        ("a.arrow", "ipc"),
        ("a.feather", "ipc"),
        ("a.ipc", "ipc"),
        ("runs/*.csv", "csv"),
        ("a.json", "ndjson"),
        ("a.pt", "parquet"),
        ("folder", "parquet"),
        (["a.csv", "b.csv"], "csv"),
        (["a.csv", "b.jsonl"], "parquet"),
    ],
)
def test_only_endings_that_are_one_formats_are_taken(source, name):
    assert guess(source) == name


@pytest.mark.repeats(1)  # all calls open by one function
@pytest.mark.parametrize("ending", ["csv", "jsonl", "feather"])
def test_calls_open_other_formats_as_the_command_line_does(tmp_path, eight, ending):
    path, reference = tmp_path / f"pairs.{ending}", tmp_path / f"reference.{ending}"
    own = eight.select(pl.int_range(N).alias("pair_id"), *LOGPS[:2])
    TABLES[ending](eight, path)
    expected = evaluate(eight).summary
    assert evaluate(path).summary == expected
    assert evaluate([path]).summary == expected
    assert check(path).n_pairs == N
    assert sweep(path, [0.1]).table["loss"].item() == expected.loss
    TABLES[ending](eight.select(pl.int_range(N).alias("pair_id"), *LOGPS[2:]), reference)
    assert evaluate(own, reference=reference).summary == expected
    own.write_parquet(tmp_path / "own.parquet")
    scored = score_parquet(tmp_path / "own.parquet", tmp_path / "out.parquet", reference=reference)
    assert scored.summary == expected


@pytest.mark.repeats(1)  # all become one plan
@pytest.mark.parametrize("ending", ["csv", "jsonl", "feather"])
def test_other_formats_are_scored_as_their_parquet_is(capsys, tmp_path, eight, ending):
    paths = [tmp_path / f"pairs.{each}" for each in (ending, "parquet")]
    TABLES[ending](eight, paths[0])
    # Types are those that the format gives: its Parquet is what is read of it.
    read(paths[0]).collect().write_parquet(paths[1])
    outs = [tmp_path / name for name in ("other.parquet", "parquet.parquet", "command.parquet")]
    results = [score_parquet(path, out) for path, out in zip(paths, outs[:2], strict=True)]
    assert main(["score", str(paths[0]), str(outs[2])]) == 0
    assert capsys.readouterr().err.startswith(f"wrote {outs[2]}: {N} rows")
    assert results[0].summary == results[1].summary == evaluate(eight).summary
    tables = [pl.read_parquet(out) for out in outs]
    assert tables[0].height == N
    assert tables[0].equals(tables[1])
    assert tables[0].equals(tables[2])


def test_another_format_said_to_be_parquet_is_told_what_it_is(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("policy_chosen_logps\n-1\n")
    with pytest.raises(StorageError) as caught:
        score_parquet(Pairs(path, format="parquet"), tmp_path / "out.parquet")
    assert f"{path}: is CSV by its ending, and this reads Parquet: `dpo-pipeline convert " in str(
        caught.value
    )
    assert [each.name for each in tmp_path.iterdir()] == ["a.csv"]


def test_parquet_by_its_name_alone_is_read_so(capsys, tmp_path, eight):
    eight.write_parquet(tmp_path / "pairs.csv")
    found = summary(capsys, tmp_path / "pairs.csv", "--format", "parquet")
    assert found["loss"] == evaluate(eight).summary.loss


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a.jsonl", "cannot be read as NDJSON, one JSON object a line: line 1 is no JSON"),
        ("a.feather", "a.feather is not Arrow IPC"),
        ("a.pt", "tells no format: say which (--format or --reference-format: open-instruct, "),
        ("a.json", "cannot be read as NDJSON, one JSON object a line: line 1 is no JSON"),
        ("a.tsv", "is separated by tabs by its ending"),
        ("a.csv.bz2", "is compressed: unpack it first"),
        ("a.parquet", "is text, and Parquet is read: for CSV say --format csv"),
    ],
)  # fmt: skip
def test_a_score_of_another_file_says_what_it_seems_to_be(tmp_path, name, said):
    path = tmp_path / name
    path.write_text("policy_chosen_logps\n-1\n")
    with pytest.raises(StorageError) as caught:
        score_parquet(path, tmp_path / "out.parquet")
    assert said in str(caught.value).replace(f"{path}: is", f"{name} is")


def footer(whole):
    """Return how long the footer of a file of Parquet is."""
    return int.from_bytes(whole[-8:-4], "little")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda _: b"", "is empty: write it again"),
        (lambda whole: whole[: len(whole) // 2], "is cut off: copy it again"),
        (lambda whole: whole[:-1], "is cut off: copy it again"),
        (lambda whole: whole[: -8 - footer(whole)] + bytes(footer(whole)) + whole[-8:], "Copy it"),
        (lambda _: bytes(5_000), "cannot be read as Parquet: "),
        (gzip.compress, "is packed by gzip: unpack it first"),
        (lambda _: b'{"policy_chosen_logps": -1.0}\n', "for JSON lines say --format ndjson"),
        (lambda _: b"\n [1]", "for JSON say --format ndjson"),
        (lambda _: "é,b\n1,2\n".encode(), "for CSV say --format csv"),
        (lambda _: b"ARROW1\0\0" + bytes(99), "say --format ipc"),
        (lambda _: b"<!DOCTYPE html><html>404</html>", "is a web page"),
        (lambda _: b"version https://git-lfs.github.com/spec/v1\n", "run `git lfs pull`"),
    ],
)  # fmt: skip
def test_a_file_called_parquet_is_told_by_its_bytes(tmp_path, eight, make, said):
    path = tmp_path / "pairs.parquet"
    eight.write_parquet(path)
    path.write_bytes(make(path.read_bytes()))
    for call in (evaluate, lambda source: evaluate([source])):
        with pytest.raises(StorageError) as caught:
            call(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert said in str(caught.value)


def test_a_folder_of_hidden_data_alone_names_it(tmp_path, eight):
    (tmp_path / "ds/_temporary").mkdir(parents=True)
    eight.write_parquet(tmp_path / "ds/_temporary/a.parquet")
    with pytest.raises(StorageError, match=r"no .parquet .*left out: _temporary/a.parquet"):
        evaluate(tmp_path / "ds")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["dataset_info.json", "state.json", "data-0.arrow"], "--reference-format trl"),
        (["cache.arrow"], "looks like a dataset of save_to_disk"),
        (["a.csv", "a.jsonl"], "say --format ndjson"),
        (["a.csv", "notes.md"], "say --format csv"),
        (["notes.md"], "no .parquet file in this folder"),
    ],
)
def test_a_folder_without_parquet_is_told_what_it_seems_to_hold(tmp_path, names, said):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(StorageError) as caught:
        evaluate(tmp_path)
    assert said in str(caught.value)
    assert ("--" in str(caught.value)) == (names != ["notes.md"])


@pytest.mark.parametrize(
    ("names", "name"),
    [
        (["a.csv", "b.CSV", "_SUCCESS", ".hidden"], "csv"),
        (["a.jsonl", "b.json", "c.ndjson"], "ndjson"),
        (["part-0.json"], "ndjson"),
        (["a.csv", "b.jsonl"], "parquet"),
        (["a.csv", "b.parquet"], "parquet"),
        (["a.json", "state.json"], "parquet"),
        (["a.csv", "folder"], "parquet"),
        ([], "parquet"),
    ],
)
def test_a_folder_is_of_the_one_text_format_that_it_holds(tmp_path, names, name):
    for each in names:
        (tmp_path / each).touch()
    assert guess(tmp_path) == name


@pytest.mark.parametrize("ending", ["csv", "jsonl", "arrow"])
@pytest.mark.parametrize("verb", ["convert", "score"])
def test_parquet_is_not_written_under_another_formats_name(capsys, tmp_path, eight, verb, ending):
    eight.write_parquet(tmp_path / "in.parquet")
    for more in ([], ["--dry-run"]):
        arguments = [verb, str(tmp_path / "in.parquet"), str(tmp_path / f"out.{ending}"), *more]
        assert main(arguments) == 2
        assert f"name it {tmp_path / 'out.parquet'}" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in.parquet"]


def test_averages_of_the_reference_beside_sums_are_warned_of(capsys, policy, tmp_path, eight):
    reference = eight.select(
        pl.int_range(N).alias("pair_id"), *(pl.col(name) / 300 for name in LOGPS[2:])
    )
    reference.write_parquet(tmp_path / "r.parquet")
    assert main(["evaluate", str(policy), "--reference", str(tmp_path / "r.parquet")]) == 0
    assert "the reference's look averaged over tokens" in capsys.readouterr().out


def test_a_folder_of_trl_is_not_rewardbenchs():
    with pytest.raises(StorageError, match="and not RewardBench's"):
        read(SAMPLES / "trl_dataset", "rewardbench")


def test_scores_of_mixed_kinds_are_said_with_their_lines(tmp_path):
    path = tmp_path / "scores.jsonl"
    rows = [{"scores_chosen": [1], "scores_rejected": 0}, {"scores_chosen": 2}]
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(StorageError, match="scores_chosen: is a list on line 1, and a number on"):
        read(path, "rewardbench")


def test_a_format_that_there_is_not():
    with pytest.raises(UsageError, match="did you mean 'rewardbench'"):
        read("a", "reward-bench")


def test_a_reference_in_another_format(capsys, tmp_path, eight, policy):
    path = tmp_path / "reference.csv"
    eight.select(pl.int_range(N).alias("pair_id"), *LOGPS[2:]).write_csv(path)
    found = summary(capsys, policy, "--reference", path)
    assert found == pytest.approx(figures(eight.select(LOGPS).rows()), abs=1e-12)
    assert main(["evaluate", str(policy), "--reference-format", "csv"]) == 2
    assert "give one" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["evaluate", "check", "sweep"])
def test_reports_name_the_file_whatever_its_format(command, eight, tmp_path, capsys):
    path = tmp_path / "of-monday.csv"
    eight.with_columns(policy_chosen_logps=pl.Series([0.5] + [-1.0] * 7)).write_csv(path)
    assert main([command, str(path)]) == 1
    printed = capsys.readouterr()
    assert "of-monday.csv breaks its contract in 1 of 8" in printed.out + printed.err


@pytest.mark.repeats(1)  # one list of formats
@pytest.mark.parametrize("name", ["convert", "sweep", "evaluate"])
def test_help_lists_formats_and_imports_no_polars(name):
    code = (
        "import sys\nfrom dpo_pipeline.cli import main\nassert main(sys.argv[1:]) == 0\n"
        "assert not {'polars', 'pyarrow', 'torch'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, name, "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "open-instruct-averaged" in done.stdout
