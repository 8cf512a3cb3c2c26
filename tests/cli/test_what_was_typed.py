"""What the user typed and the input lacks is a usage error, named as it was typed."""

from __future__ import annotations

import polars as pl
import pytest

from dpo_pipeline import (
    ColumnError,
    DataWarning,
    InvalidPairsError,
    Pairs,
    Reference,
    StorageError,
    UsageError,
    compare,
    dry_run,
    evaluate,
    gate,
)
from dpo_pipeline.cli.program import main
from pair_tools import LOGPS


@pytest.fixture
def path(tmp_path, monkeypatch, pairs):
    monkeypatch.chdir(tmp_path)
    keyed = pairs.with_columns(pair_id=pl.int_range(pl.len()))
    keyed.write_parquet("in.parquet")
    keyed.with_columns(pl.col(LOGPS[:2]) * 0.9).write_parquet("b.parquet")
    keyed.drop(LOGPS[2:]).write_parquet("policy.parquet")
    keyed.select("pair_id", a=LOGPS[2], b=LOGPS[3]).write_parquet("reference.parquet")
    return "in.parquet"


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "in.parquet", "--column", "policy_chosen_logps=foo"],
        ["check", "in.parquet", "--column", "chosen_num_tokens=foo"],
        ["score", "in.parquet", "out.parquet", "--keep", "foo"],
        ["evaluate", "in.parquet", "--by", "foo"],
        ["evaluate", "in.parquet", "--batch-by", "foo"],
        ["evaluate", "in.parquet", "--judge", "foo"],
        ["compare", "in.parquet", "b.parquet", "--on", "foo"],
        ["compare", "in.parquet", "b.parquet", "--b-column", "policy_chosen_logps=foo"],
        ["evaluate", "policy.parquet", "--reference", "in.parquet", "--on", "foo"],
        ["evaluate", "policy.parquet", "--reference", "reference.parquet",
         "--reference-column", "ref_chosen_logps=foo"],
    ],
    ids=" ".join,
)  # fmt: skip
@pytest.mark.usefixtures("path")
def test_a_name_that_the_input_lacks_is_a_usage_error(capsys, words):
    assert main(words) == 2
    assert "foo" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["evaluate", "policy.parquet"], ["compare", "in.parquet", "x.parquet"]]
)
def test_a_column_that_nobody_named_is_a_fault_of_the_data(path, capsys, words):
    pl.read_parquet(path).drop("pair_id").write_parquet("x.parquet")
    assert main(words) == 1
    assert "missing" in capsys.readouterr().err


@pytest.mark.usefixtures("path")
def test_a_lacking_column_of_a_given_reference_is_mapped_and_not_given_again():
    with pytest.raises(ColumnError) as caught:
        evaluate("policy.parquet", reference="reference.parquet")
    assert "--reference-column role=name" in str(caught.value)
    assert "in another file" not in str(caught.value)
    assert caught.value.exit_code == 1
    with pytest.raises(ColumnError, match="are in another file, give that as reference"):
        evaluate("policy.parquet")


def test_a_near_miss_of_a_figure_is_suggested_and_each_is_listed_once(path, capsys):
    assert main(["evaluate", path, "--fail-under", "accuracy=0.6"]) == 2
    said = capsys.readouterr().err
    assert "did you mean 'rewards/accuracies' or 'reward_accuracy'" in said
    assert "there are" not in said
    with pytest.raises(UsageError, match="did you mean 'loss'"):
        gate(evaluate(path), under={"los": 1.0})
    with pytest.raises(UsageError, match="no figure 'zzz'; there are") as caught:
        gate(evaluate(path), under={"zzz": 1.0})
    listed = str(caught.value).partition("there are ")[2].split(", ")
    assert len(listed) == len(set(listed)) > 10


def test_line_feeds_of_names_are_shown_escaped(path, tmp_path, pairs):
    name = "a\nerror: no\x1b[2J"
    pairs.rename({LOGPS[0]: name}).write_parquet("odd.parquet")
    folder = tmp_path / "with\nbreak"
    folder.mkdir()
    (folder / "bad.parquet").write_bytes(b"PAR1 no")
    calls = [
        lambda: evaluate("odd.parquet"),
        lambda: evaluate(path, by=name),
        lambda: evaluate(Pairs(path, columns={LOGPS[0]: name})),
        lambda: evaluate(folder / "bad.parquet"),
        lambda: evaluate(folder / "none.parquet"),
        lambda: compare(path, "odd.parquet", on=name),
        lambda: evaluate("policy.parquet", reference=Reference("odd.parquet", on=name)),
        lambda: gate(evaluate(path), under={name: 1.0}),
    ]
    for call in calls:
        with pytest.raises((ColumnError, UsageError, Exception)) as caught:
            call()
        text = str(caught.value)
        assert "\\n" in text
        assert "\nerror" not in text
        assert "\nbreak" not in text
        assert "\x1b" not in text


# ---- several paths


def test_commands_of_pairs_take_several_paths(path, capsys):
    for command in (["evaluate"], ["check"], ["sweep", "--beta", "0.1"]):
        assert main([*command, path, "b.parquet"]) == 0
        out = capsys.readouterr().out
        assert "12 pairs" in out


def test_several_paths_are_what_a_list_is(path, capsys):
    assert main(["evaluate", path, "b.parquet", "--json", "-q"]) == 0
    document = capsys.readouterr().out
    with pytest.warns(UserWarning, match="pair_id is there more than once"):
        assert evaluate([path, "b.parquet"]).to_json() + "\n" == document


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["score", "d/1.parquet", "d/2.parquet", "out/"],
         "PAIRS and OUT, found 3 paths; quote a glob: dpo-pipeline score 'd/*.parquet' out/"),
        (["convert", "a b.csv", "c.csv", "out.parquet"],
         "dpo-pipeline convert '*.csv' out.parquet"),
        (["compare", "a/1.pq", "a/2.pq", "b/1.pq", "b/2.pq"],
         "A and B, found 4 paths; quote a glob: dpo-pipeline compare 'a/*.pq' 'b/*.pq'"),
        (["compare", "one.parquet", "b c/1.pq", "b c/2.pq"],
         "dpo-pipeline compare one.parquet 'b c/*.pq'"),
    ],
)  # fmt: skip
def test_other_commands_show_the_glob_to_type(capsys, words, said):
    assert main(words) == 2
    assert capsys.readouterr().err.strip().endswith(said)


def test_usage_shows_what_a_command_takes(capsys):
    for command, usage in (("evaluate", "PAIRS..."), ("score", "PAIRS OUT"), ("compare", "A B")):
        assert main([command, "--help"]) == 0
        assert f"{command} [OPTIONS] {usage}\n" in capsys.readouterr().out
    assert main(["evaluate"]) == 2
    assert "Missing argument 'PAIRS...'" in capsys.readouterr().err


# ---- settings that were found


def found(tmp_path, text):
    (tmp_path / "pyproject.toml").write_text(f"[tool.dpo-pipeline]\n{text}\n")


def test_a_list_in_shared_settings_is_for_the_command_that_takes_it(path, tmp_path, capsys):
    found(tmp_path, "beta = [0.1, 0.2]")
    assert main(["sweep", path]) == 0
    assert capsys.readouterr().out.count("sigmoid ") == 2
    assert main(["evaluate", path]) == 2
    said = capsys.readouterr().err
    assert "beta (of evaluate): must be a number, found [0.1, 0.2]; sweep takes it" in said
    found(tmp_path, "beta = ['x']")
    assert main(["check", path]) == 2


def test_found_overwrite_stops_only_what_writes(path, tmp_path, capsys):
    found(tmp_path, "overwrite = true")
    for words in (["check"], ["evaluate"], ["sweep", "--beta", "0.1"], ["evaluate", "--dry-run"]):
        assert main([*words, path]) == 0
    capsys.readouterr()
    for words in (["score", path, "out.parquet"], ["evaluate", path, "--summary", "s.json"]):
        assert main(words) == 2
        assert "overwrite: needs consent" in capsys.readouterr().err
    assert main(["score", path, "out.parquet", "--config", "pyproject.toml"]) == 0


# ---- a glob, pandas, a file that grows


def test_what_a_glob_leaves_out_for_its_ending_is_named(tmp_path, pairs):
    for name in ("a-1.parquet", "a-2.PARQUET", "a-3.pq", "b-1.parquet", "a-4.txt"):
        pairs.write_parquet(tmp_path / name)
    with pytest.warns(DataWarning) as said:
        assert evaluate(f"{tmp_path}/a-*.parquet").summary.n_pairs == 6
    (note,) = [str(each.message) for each in said if "left out" in str(each.message)]
    assert note.endswith("2 files look like data and are left out: a-2.PARQUET, a-3.pq")


def test_nan_of_pandas_is_nan(pairs):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({name: pairs[name].to_list() for name in LOGPS})
    frame.loc[2, LOGPS[0]] = float("nan")
    with pytest.raises(InvalidPairsError) as caught:
        evaluate(frame)
    assert caught.value.report.by_rule == {f"{LOGPS[0]}.not_nan": 1}


def test_an_error_of_a_file_that_was_written_to_says_so(tmp_path, pairs):
    path = tmp_path / "in.parquet"
    pairs.write_parquet(path)
    plan = dry_run(evaluate, path)
    path.write_bytes(path.read_bytes()[:300] + b"more")
    with pytest.raises(StorageError, match=r"in.parquet: it changed while it was read$"):
        plan.run()
