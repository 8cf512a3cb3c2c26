"""What a source means: the same files for every format, in a folder, by a glob and in a list."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import shutil
from pathlib import Path

import polars as pl
import pytest

from dpo_pipeline import (
    DataWarning,
    Pairs,
    StorageError,
    check,
    compare,
    convert,
    dry_run,
    evaluate,
    join_reference,
    read,
    score_parquet,
    sweep,
)
from dpo_pipeline.cli.program import main
from dpo_pipeline.sources.files import find
from dpo_pipeline.storage import Access, packed_files
from pair_tools import LOGPS
from reader_tools import TABLES


@pytest.fixture
def write(eight, tmp_path):
    """Return what writes a slice of the eight pairs to a path below the folder."""

    def write_slice(name, begin=0, rows=8, frame=eight):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        ending = path.name.removesuffix(".gz").rpartition(".")[2].lower()
        kind = {"pq": "parquet", "parq": "parquet", "ndjson": "jsonl"}.get(ending, ending)
        plain = path.with_name("plain")
        TABLES[kind](frame.slice(begin, rows), plain)
        content = plain.read_bytes()
        plain.unlink()
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
        return path

    return write_slice


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def n_pairs(source, name=None):
    return evaluate(Pairs(source, format=name)).summary.n_pairs


@pytest.mark.repeats(2)  # one table of endings
@pytest.mark.parametrize(
    ("names", "format_name"),
    [
        (("a.parquet", "b.pq"), None),
        (("a.PARQUET", "b.parq"), None),
        (("a.csv", "b.csv.gz"), "csv"),
        (("a.jsonl", "b.NDJSON"), "ndjson"),
        (("a.ndjson", "b.jsonl.gz"), "ndjson"),
        (("a.arrow", "deep/er/b.ARROW"), "ipc"),
    ],
)
def test_all_endings_of_a_format_count(write, tmp_path, eight, names, format_name):
    write(f"ds/{names[0]}", 0, 3)
    write(f"ds/{names[1]}", 3, 5)
    expected = evaluate(eight).summary
    source = tmp_path / "ds"
    assert evaluate(Pairs(source, format=format_name)).summary == expected
    assert evaluate(Pairs([source], format=format_name)).summary == expected
    assert evaluate(Pairs(source / "**", format=format_name)).summary == expected


@pytest.mark.repeats  # each ending with members of each number once
@pytest.mark.parametrize("ending", ["csv", "jsonl"])
@pytest.mark.parametrize("members", [1, 2], ids=["one member", "two members"])
def test_compressed_text_is_read_whole(write, tmp_path, eight, ending, members):
    content = write(f"x.{ending}").read_bytes()
    cut = content.index(b"\n") + 1 if members == 2 else len(content)
    packed = gzip.compress(content[:cut]) + gzip.compress(content[cut:])
    (tmp_path / f"x.{ending}.gz").write_bytes(packed)
    assert evaluate(tmp_path / f"x.{ending}.gz").summary == evaluate(eight).summary
    (tmp_path / f"cut.{ending}.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(StorageError, match="end|runcated"):
        evaluate(tmp_path / f"cut.{ending}.gz")


def test_faults_in_compressed_text_are_told_by_line(write, tmp_path):
    for ending, text in (("jsonl", b"[1]\n"), ("csv", b"1,2,3,4,5,6,7,8,9,10,11,12,13,14\n")):
        broken = write(f"x.{ending}").read_bytes() + text
        path = tmp_path / f"broken.{ending}.gz"
        path.write_bytes(gzip.compress(broken))
        with pytest.raises(StorageError, match="line (9|10)"):
            evaluate(path)


@pytest.mark.repeats(1)  # all formats find files by one function
@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl", "feather", "arrow"])
def test_linked_folders_and_files_count(write, tmp_path, eight, ending):
    write(f"store/far/a.{ending}", 0, 3)
    write(f"store/b.{ending}", 3, 2)
    write(f"ds/c.{ending}", 5, 3)
    (tmp_path / "ds" / "linked").symlink_to("../store/far")
    (tmp_path / "ds" / f"b.{ending}").symlink_to(f"../store/b.{ending}")
    name = {"parquet": None, "jsonl": "ndjson", "csv": "csv"}.get(ending, "ipc")
    expected = evaluate(eight).summary.loss
    for source in ("ds", "ds/**/*", f"ds/**/*.{ending}"):
        assert evaluate(Pairs(tmp_path / source, format=name)).summary.loss == expected
    (tmp_path / "by_name").symlink_to("ds")
    assert n_pairs(tmp_path / "by_name", name) == 8


@pytest.mark.repeats  # each address with one of the links
@pytest.mark.parametrize("link", [os.symlink, os.link], ids=["symlink", "hard link"])
@pytest.mark.parametrize("source", ["ds", "ds/*", "ds/*.parquet"])
def test_a_file_with_two_names_is_one_file(write, tmp_path, link, source):
    write("ds/2024-01-01.parquet")
    link(tmp_path / "ds/2024-01-01.parquet", "ds/latest.parquet")
    with pytest.warns(DataWarning, match=r"1 name leads .*: latest.parquet is 2024-01-01.parquet"):
        assert n_pairs(source) == 8


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_a_copy_under_another_name_is_said(write, eight, ending):
    """As `latest` is where links are not known: no id tells that its pairs are there already."""
    without = eight.drop("pair_id")
    for name, rows in (("a", 4), ("b", 4), ("latest", 4), ("empty", 0), ("empty_too", 0)):
        if rows or ending == "parquet":
            write(f"ds/{name}.{ending}", 4 * (name == "b"), rows, frame=without)
    report = check(Pairs("ds", format={"csv": "csv", "jsonl": "ndjson"}.get(ending)))
    said = f"ds/latest.{ending} has the bytes of ds/a.{ending}: its rows count again"
    assert [note for note in report.notes if "bytes" in note] == [said]
    assert report.n_pairs == 12


def test_files_of_one_size_are_compared_by_all_their_bytes(eight, monkeypatch):
    monkeypatch.setattr(packed_files, "_END", 16)
    first = eight.with_columns(note=pl.lit("x" * 99)).write_csv()
    Path("ds").mkdir()
    Path("ds/a.csv").write_text(first)
    Path("ds/c.csv").write_text(first.replace("xxxx", "xyyx", 1))
    assert not [note for note in check(Pairs("ds", format="csv")).notes if "bytes" in note]


def test_what_is_given_twice_in_a_list_is_read_once(write, tmp_path):
    write("ds/a.parquet", 0, 3)
    write("ds/b.parquet", 3, 5)
    assert n_pairs(["ds", "ds/a.parquet", "ds"]) == 8
    assert n_pairs(["ds/*.parquet", "ds/a.parquet"]) == 8
    with pytest.warns(DataWarning, match="1 name leads to what is read by another one"):
        assert n_pairs(["ds/a.parquet", str(tmp_path / "ds/../ds/a.parquet")]) == 3


def test_a_linked_folder_beside_its_target_is_read_once(write):
    write("ds/v=1/a.parquet", 0, 3)
    write("ds/v=2/b.parquet", 3, 5)
    os.symlink("v=2", "ds/latest")
    with pytest.warns(DataWarning, match="latest is v=2"):
        table = evaluate("ds", by="v").subsets
    assert table.select("v", "n_pairs").rows() == [(1, 3), (2, 5)]


def test_one_file_in_two_partitions_is_an_error(write):
    write("ds/v=1/a.parquet")
    os.symlink("v=1", "ds/v=2")
    with pytest.raises(StorageError, match="ds/v=2: is ds/v=1 by another name, and in another"):
        evaluate("ds")
    os.unlink("ds/v=2")
    os.mkdir("ds/v=2")
    os.link("ds/v=1/a.parquet", "ds/v=2/b.parquet")
    with pytest.raises(StorageError, match="in another partition"):
        evaluate("ds/*/*.parquet")


@pytest.mark.parametrize("source", ["ds", "ds/**/*.parquet", "ds/**"])
def test_a_cycle_of_links_ends(write, source):
    write("ds/a/a.parquet", 0, 3)
    write("ds/b/b.parquet", 3, 5)
    for name, target in (("a/up", ".."), ("b/up", "../../ds"), ("self", "."), ("a/to_b", "../b")):
        os.symlink(target, f"ds/{name}")
    with pytest.warns(DataWarning, match=r"a/to_b is b"):
        assert n_pairs(source) == 8


@pytest.mark.repeats(2)  # names are judged alike in globs and folders
@pytest.mark.parametrize("source", ["ds", "ds/**", "ds/**/*.parquet", "ds/*/*.parquet", ["ds"]])
def test_hidden_names_do_not_count_and_partitions_do(write, tmp_path, source):
    write("ds/_part=1/a.parquet")
    write("ds/_part=1/_b.parquet")
    write("ds/_part=1/.c.parquet")
    write("ds/_temporary/0/d.parquet")
    write("ds/.git/e.parquet")
    (tmp_path / "ds/_SUCCESS").touch()
    if source in ("ds/**/*.parquet", "ds/*/*.parquet"):
        assert n_pairs(source) == 8
        return
    said = "4 files look like data and are left out: .git/e.parquet, _part=1/.c.parquet, "
    with pytest.warns(DataWarning, match=said):
        assert n_pairs(source) == 8
    assert n_pairs("ds/_temporary/*/*.parquet") == 8  # a name that is written out is meant


def test_what_looks_like_data_and_is_left_out_is_named_everywhere(write, tmp_path, capsys):
    write("ds/a.parquet")
    write("ds/b.csv")
    write("ds/deep/c.jsonl.gz")
    shutil.copy("ds/a.parquet", "ds/d.parquet.bak")
    shutil.copy("ds/a.parquet", "ds/000000_0")
    for other in ("README.md", "notes.txt", "stats.json"):
        (tmp_path / "ds" / other).write_text("{}")
    said = (
        "4 files look like data and are left out: 000000_0, b.csv, d.parquet.bak, deep/c.jsonl.gz"
    )
    for call in (evaluate, check, lambda source: sweep(source, [0.1]), read):
        with pytest.warns(DataWarning, match=f"^ds: {said}$"):
            call("ds")
    with pytest.warns(DataWarning, match=said):
        score_parquet("ds", "out")
    with pytest.warns(DataWarning, match=said):
        convert("ds", "out.parquet")
    plan = dry_run(evaluate, "ds")
    assert plan.facts.to_dict()["notes"] == [said]
    assert f"note: {said}" in str(plan)
    for command in (["check"], ["evaluate", "--summary", "s.json"]):
        assert main([*command, "ds"]) == 0
        out, err = capsys.readouterr()
        assert (out.count(f"note: {said}"), said in err) == (1, False)
    assert json.loads((tmp_path / "s.json").read_text())["warnings"] == [said]
    assert main(["evaluate", "ds", "--dry-run"]) == 0
    assert said in capsys.readouterr().out


def test_json_beside_json_lines_looks_like_data(write, tmp_path):
    write("ds/a.jsonl")
    (tmp_path / "ds/b.json").write_text("{}")
    with pytest.warns(DataWarning, match="left out: b.json"):
        assert n_pairs("ds", "ndjson") == 8


def test_a_reference_and_both_sides_of_a_comparison_go_by_the_same_rule(write, eight, recwarn):
    keyed = eight.with_columns(pair_id=pl.int_range(8)).select("pair_id", *LOGPS)
    write("policy/a.pq", frame=keyed.drop(LOGPS[2:]))
    write("ref/deep/a.parq", frame=keyed.drop(LOGPS[:2]))
    write("ref/b.csv", frame=keyed)
    expected = evaluate(eight).summary
    assert evaluate("policy", reference="ref").summary == expected
    assert evaluate("policy", reference=["ref/*"]).summary == expected
    assert join_reference("policy", "ref").collect().height == 8
    texts = [str(each.message) for each in recwarn]
    said = "1 file looks like data and is left out: b.csv"
    assert texts == [f"policy: {name}: {said}" for name in ("ref", "1 files", "ref")]
    write("b/a.PARQUET", frame=keyed)
    write("b/b.jsonl", frame=keyed)
    with pytest.warns(DataWarning, match=r"^b: 1 file looks like data and is left out: b.jsonl$"):
        result = compare("b/*.PARQUET", "b")
    assert "b: 1 file looks like data and is left out: b.jsonl" in result.findings


@pytest.mark.parametrize("source", ["ds", "ds/**/*.parquet", ["ds"]])
def test_a_folder_that_cannot_be_read_is_an_error(write, source):
    write("ds/a.parquet")
    os.symlink("/nowhere/at/all", "ds/split=train")
    with pytest.raises(StorageError, match="split=train: is a link to nothing"):
        evaluate(source)
    os.unlink("ds/split=train")
    os.symlink("loop", "ds/loop")
    with pytest.raises(StorageError, match="loop: is a link to nothing"):
        evaluate(source)


def test_a_folder_without_rights_is_an_error(write, monkeypatch):
    write("ds/a.parquet")
    write("ds/closed/b.parquet")
    scan = os.scandir

    def refusing(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    for source in ("ds", "ds/**/*.parquet", ["ds"]):
        with pytest.raises(StorageError, match="ds/closed: permission denied"):
            evaluate(source)
    assert n_pairs("ds/*.parquet") == 8  # it does not go there


def test_a_list_holds_files_folders_and_globs(write, eight):
    write("a.parquet", 0, 2)
    write("some/b.parquet", 2, 2)
    write("more/c-1.parquet", 4, 2)
    write("more/c-2.pq", 6, 2)
    write("more/d.parquet")
    sources = ["a.parquet", Path("some"), "more/c-*"]
    assert evaluate(sources).summary.n_pairs == 8
    assert evaluate(sources).summary.loss == evaluate(eight).summary.loss
    assert n_pairs(["*.parquet", "more"]) == 2 + 4 + 8
    with pytest.raises(StorageError, match="no such file"):
        evaluate(["a.parquet", "none.parquet"])
    with pytest.raises(StorageError, match="no file matches"):
        evaluate(["a.parquet", "none*"])


@pytest.mark.parametrize("source", ["above=1/split=all/ds", "above=1/split=all/ds/*/*.parquet"])
def test_keys_are_those_below_the_folder_that_was_given(write, eight, source):
    halves = eight.with_columns(split=pl.Series(["test"] * 3 + ["train"] * 5))
    write("above=1/split=all/ds/k=1/a.parquet", 0, 4, frame=halves)
    write("above=1/split=all/ds/k=2/b.parquet", 4, 4, frame=halves)
    by = evaluate(source, by=["split", "k"]).subsets.select("split", "k", "n_pairs")
    assert by.rows() == [("test", 1, 3), ("train", 1, 1), ("train", 2, 4)]
    assert "above" not in read(source).collect_schema()
    out = score_parquet(source, "out", scored=["split"])
    assert out.summary.n_pairs == 8
    assert pl.read_parquet("out/k=1/a.parquet")["split"].to_list() == ["test"] * 3 + ["train"]


def test_keys_above_and_below_of_one_name_do_not_mix(write, eight):
    write("split=all/ds/split=a%20b/a.parquet", 0, 3, frame=eight.drop("split"))
    write(
        "split=all/ds/split=__HIVE_DEFAULT_PARTITION__/b.parquet", 3, 5, frame=eight.drop("split")
    )
    found = evaluate("split=all/ds", by="split").subsets.select("split", "n_pairs").rows()
    assert sorted(found, key=str) == [("a b", 3), (None, 5)]


def test_keys_have_one_type_wherever_the_folder_lies(write):
    for place in ("plain", "k=0/ds"):
        write(f"{place}/n=1/day=2024-01-01/x=1.5/a.parquet", 0, 3)
        write(f"{place}/n=2/day=2024-01-02/x=2/b.parquet", 3, 5)
    assert read("plain").collect_schema() == read("k=0/ds").collect_schema()
    assert read("plain").collect().equals(read("k=0/ds").collect())


def test_files_in_no_folder_of_a_key_are_an_error_or_have_the_column(write, eight):
    write("ds/v=a/a.parquet", 0, 3)
    write("ds/b.parquet", 3, 5)
    with pytest.raises(StorageError, match=r"ds/b.parquet: has no v, by which other files'"):
        evaluate("ds")
    write("ds/b.parquet", 3, 5, frame=eight.with_columns(v=pl.lit("own")))
    table = evaluate("ds", by="v").subsets
    assert table.select("v", "n_pairs").rows() == [("a", 3), ("own", 5)]


CONTRADICTED = {
    "a whole file": (("b", "b"), "says otherwise in 3 of 3 rows, first 'b'"),
    "one row": (
        (pl.when(pl.int_range(pl.len()) != 1).then(pl.lit("a")), "b"),
        "1 of 3 rows, first None",
    ),
    "another type": ((1, 2), "its column k is Int32, which that is not"),
    "two types": ((1, "b"), "files have columns k of several types"),
    "a list": ((["a"], ["b"]), r"its column k is List\(String\)"),
}


@pytest.mark.repeats(3)  # one error for all
@pytest.mark.parametrize(("own", "said"), CONTRADICTED.values(), ids=list(CONTRADICTED))
def test_a_key_that_a_file_contradicts_is_an_error(write, eight, own, said):
    for name, begin, rows, value in zip("ab", (0, 3), (3, 5), own, strict=True):
        held = value if isinstance(value, pl.Expr) else pl.lit(value)
        write(f"ds/k={name}/p.parquet", begin, rows, frame=eight.with_columns(k=held))
    sources = itertools.cycle(["ds", "ds/*/*.parquet", ["ds"]])
    for call in (
        check,
        evaluate,
        read,
        lambda source: sweep(source, [0.1]),
        lambda source: score_parquet(source, "out"),
        lambda source: convert(source, "out.parquet"),
        lambda source: compare(eight, source, on="pair_id"),
        lambda source: dry_run(evaluate, source),
    ):
        with pytest.raises(StorageError, match=rf"k=[ab]/p.parquet: is in .*{said}.*Move the"):
            call(next(sources))


def test_a_key_that_all_files_hold_is_compared_by_value(write, eight):
    """As text, as a number, as a date, null and escaped: what Polars and Spark write."""
    day, number = pl.lit("2024-01-01").str.to_date(), pl.lit(0.1, pl.Float32)
    write("ds/m=01/p.parquet", frame=eight.with_columns(m=pl.lit("01"), k=pl.lit(1)))
    assert evaluate("ds", by="m").subsets["m"].to_list() == ["01"]
    write(
        "one/m=01/k=x%20y/d=2024-01-01/f=0.1/p.parquet",
        frame=eight.with_columns(m=pl.lit(1), k=pl.lit("x y", pl.Categorical), d=day, f=number),
    )
    write(
        "one/m=2/k=__HIVE_DEFAULT_PARTITION__/d=2024-01-01/f=0.1/p.parquet",
        frame=eight.with_columns(m=pl.lit(2), k=pl.lit(None, pl.Categorical), d=day, f=number),
    )
    assert sorted(evaluate("one", by="m").subsets["m"]) == [1, 2]
    os.makedirs("above=1")
    shutil.move("one", "above=1/one")
    found = evaluate("above=1/one", by=["m", "k"]).subsets.select("m", "k").rows()
    assert sorted(found) == [(1, "x y"), (2, None)]


def test_keys_that_are_no_numbers_stay_text(write):
    """007 and 7 are two folders; Polars takes both for the number 7."""
    write("coded/k=007/a.parquet", rows=3)
    write("coded/k=7/a.parquet", 3, 5)
    found = evaluate("coded", by="k").subsets
    assert found.select("k", "n_pairs").rows() == [("007", 3), ("7", 5)]
    write("plain/k=10/a.parquet", rows=3)
    write("plain/k=__HIVE_DEFAULT_PARTITION__/a.parquet", 3, 5)
    assert dict(evaluate("plain", by="k").subsets.select("k", "n_pairs").rows()) == {10: 3, None: 5}


class _Store(Access):
    """A store that holds what lies in the current folder."""

    def filesystem(self, address):
        from pyarrow import fs

        return fs.SubTreeFileSystem(".", fs.LocalFileSystem()), address.partition("://")[2]


@pytest.mark.parametrize(
    ("pattern", "rows"),
    [
        ("bucket/run-?", ["run-1/a.parquet", "run-2/b.PARQUET"]),
        ("bucket/run-[12]/*", ["run-1/a.parquet", "run-2/b.PARQUET"]),
        ("bucket/*/*.parquet", ["run-1/a.parquet"]),
        ("bucket/**/*.parquet", ["run-1/a.parquet"]),
        ("bucket/**", ["run-1/a.parquet", "run-2/b.PARQUET"]),
        ("bucket/*/a.*", ["run-1/a.parquet"]),
        ("bucket/*/c.*", ["run-2/c.csv"]),
        ("bucket/*/d.*", []),
    ],
)
def test_a_glob_in_a_store_means_what_it_means_here(tmp_path, pattern, rows):
    for name in ("run-1/a.parquet", "run-2/b.PARQUET", "run-2/c.csv", "run-1/_t/d.parquet"):
        (tmp_path / "bucket" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "bucket" / name).touch()
    endings = (".parquet", ".pq")
    if not rows:
        for source, access in ((pattern, Access()), (f"s3://{pattern}", _Store())):
            with pytest.raises(StorageError, match="no file"):
                find(source, endings, access)
        return
    here, there = find(pattern, endings), find(f"s3://{pattern}", endings, _Store())
    assert [path.removeprefix("bucket/") for path in here.paths] == rows
    assert [path.removeprefix("s3://bucket/") for path in there.paths] == rows
    assert there.notes == here.notes


def test_a_glob_in_a_lake_table_in_a_store_is_refused(tmp_path):
    for name in ("t/a.parquet", "t/_delta_log/0.json", "u/a.parquet"):
        (tmp_path / "bucket" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "bucket" / name).touch()
    with pytest.raises(StorageError, match="belongs to a table of Delta Lake, s3://bucket/t"):
        find("s3://bucket/*/*.parquet", (".parquet",), _Store())
    assert find("s3://bucket/u*/*.parquet", (".parquet",), _Store()).table is None
