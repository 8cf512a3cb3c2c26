"""How results are printed: forms, widths, colours, and the commands that mend a mistake."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
import sys

import polars as pl
import pytest

from command_tools import run
from dpo_pipeline import compare, evaluate
from dpo_pipeline.cli.printing import say
from pair_tools import LOGPS, ROOT

PAIRS, OTHER = (str(ROOT / "examples" / f"{name}.parquet") for name in ("pairs", "policy_b"))
SHORT = ["chosn", "rejectd"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_every_form_is_that_of_the_result(capsys):
    result = evaluate(PAIRS, by="split")
    wanted = {
        "json": result.to_json() + "\n",
        "markdown": result.to_markdown() + "\n",
        "csv": result.to_csv(),
        "latex": result.to_latex() + "\n",
        "table": str(result) + "\n",
    }
    for form, text in wanted.items():
        assert run(capsys, "evaluate", PAIRS, "--by", "split", "--output", form) == (0, text, "")
    rows = list(csv.DictReader(io.StringIO(wanted["csv"])))
    assert [row["split"] for row in rows] == ["test", "train"]
    assert float(rows[0]["loss"]) == result.subsets["loss"][0]


@pytest.mark.repeats  # a form is written by one function for all commands
@pytest.mark.parametrize("form", ["csv", "markdown", "latex", "json"])
@pytest.mark.parametrize(
    "words",
    [
        ["check", PAIRS],
        ["sweep", PAIRS, "--beta", "0.1"],
        ["compare", PAIRS, OTHER],
        ["evaluate", PAIRS, "--dry-run"],
        ["convert", PAIRS, "OUT"],
        ["select", PAIRS, "OUT", "--rule", "random", "--keep", "9", "--compare", "easiest"],
        ["score", PAIRS, "OUT", "--keep", "pair_id"],
    ],
    ids=lambda words: " ".join(word for word in words if "/" not in word),
)
def test_every_command_has_every_form(capsys, tmp_path, words, form):
    place = str(tmp_path / "out.parquet")
    given = [place if word == "OUT" else word for word in words]
    code, out, err = run(capsys, *given, "--output", form)
    assert code == 0
    assert all(said.startswith(("wrote ", "note: ")) for said in err.splitlines())
    if form == "json":
        json.loads(out)
    if form == "csv":
        rows = list(csv.reader(io.StringIO(out)))
        assert {len(row) for row in rows} == {len(rows[0])}


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--json", "--output", "csv"], 2),
        (["--output", "json", "--json"], 0),
        (["--json"], 0),
        (["--output", "yaml"], 2),
    ],
)
def test_json_is_short_for_output_json(capsys, words, code):
    found, out, err = run(capsys, "check", PAIRS, *words)
    assert found == code
    if code == 0:
        assert json.loads(out)["n_pairs"] == 200
    elif "csv" in words:
        assert "--json and --output csv contradict each other" in err
        assert out == ""


def test_the_command_line_wins_over_settings(capsys, monkeypatch):
    monkeypatch.setenv("DPO_PIPELINE_JSON", "1")
    assert run(capsys, "check", PAIRS, "--output", "csv")[1].startswith("rule,")
    monkeypatch.setenv("DPO_PIPELINE_OUTPUT", "csv")
    assert run(capsys, "check", PAIRS)[0] == 2
    monkeypatch.delenv("DPO_PIPELINE_JSON")
    assert json.loads(run(capsys, "check", PAIRS, "--json")[1])["n_pairs"] == 200


@pytest.mark.repeats  # each width with one of the results
@pytest.mark.parametrize("width", [60, 100, 200])
@pytest.mark.parametrize("words", [["evaluate", "--by", "split"], ["check"], ["sweep"]])
def test_results_fit_the_width(capsys, monkeypatch, words, width):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.chdir(ROOT / "examples")
    _, out, _ = run(capsys, words[0], "pairs.parquet", *words[1:])
    assert max(map(len, out.split("\n"))) <= width


@pytest.mark.parametrize(
    ("color", "no_color", "is_terminal", "is_colored"),
    [
        ("auto", "", True, True),
        ("auto", "1", True, False),
        ("auto", "", False, False),
        ("always", "1", False, True),
        ("never", "", True, False),
    ],
)
def test_colours_are_for_terminals(monkeypatch, color, no_color, is_terminal, is_colored):
    from dpo_pipeline.cli import main

    out = Terminal() if is_terminal else io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("TERM", "xterm")
    assert main(["check", PAIRS, "--color", color]) == 0
    assert ("\x1b[" in out.getvalue()) == is_colored
    assert "all 200 pairs keep the contract" in out.getvalue()


def test_messages_fit_columns_and_stay_whole_where_nothing_says_how_wide(monkeypatch):
    text = "error: " + "words of a message " * 20
    for columns, is_wrapped in (("60", True), ("", False)):
        stream = io.StringIO()
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setenv("COLUMNS", columns)
        say(text, err=True)
        assert (max(map(len, stream.getvalue().split("\n"))) <= 60) == is_wrapped


@pytest.fixture
def misnamed(tmp_path):
    pairs = pl.read_parquet(PAIRS).rename(
        {LOGPS[0]: "policy_chosn_logps", LOGPS[1]: "policy_rejectd_logps"}
    )
    path = tmp_path / "my pairs.parquet"
    pairs.write_parquet(path)
    return str(path)


def test_missing_columns_end_in_a_command_to_be_pasted(capsys, misnamed):
    code, _, err = run(capsys, "evaluate", misnamed, "--beta", "0.2", "--json")
    assert code == 1
    (line,) = [line for line in err.split("\n") if line.startswith("try: ")]
    words = shlex.split(line.removeprefix("try: "))
    assert words[0] == "dpo-pipeline"
    assert "--column" in words
    code, out, err = run(capsys, *words[1:])
    assert (code, err) == (0, "")
    assert json.loads(out)["beta"] == 0.2


def test_secrets_are_in_no_suggestion(capsys, misnamed):
    _, _, err = run(capsys, "evaluate", misnamed, "--storage-option", "key=hush-hush")
    assert "hush" not in err


def test_other_names_of_token_counts_are_near_misses(capsys, tmp_path):
    names = {"chosen_num_tokens": "chosen_len", "rejected_num_tokens": "rejected_len"}
    path = str(tmp_path / "pairs.parquet")
    pl.read_parquet(PAIRS).rename(names).write_parquet(path)
    code, _, err = run(capsys, "evaluate", path, "--loss", "simpo")
    assert code == 1
    assert "did you mean 'chosen_len'" in err
    assert "--column chosen_num_tokens=chosen_len,rejected_num_tokens=rejected_len" in err


@pytest.mark.parametrize("columns", [LOGPS, LOGPS[:2]], ids=["all", "the policy's"])
def test_negated_log_probs_are_recognised(capsys, tmp_path, columns):
    path = str(tmp_path / "nll.parquet")
    pairs = pl.read_parquet(PAIRS)
    pairs.with_columns(pl.col(*columns).neg()).write_parquet(path)
    said = "these look like negative log-likelihoods"
    assert said in run(capsys, "check", path)[1]
    assert said in run(capsys, "evaluate", path)[2]
    some = pl.when(pl.int_range(pl.len()) > 0).then(pl.col(*columns).neg()).otherwise(-1.0)
    pairs.with_columns(some).write_parquet(path)
    assert said not in run(capsys, "check", path)[1]


@pytest.mark.parametrize(
    "words",
    [["--by", "split,turns"], ["--by", "split", "--by", "turns"], ["--by", "split, turns"]],
    ids=["commas", "repeated", "a space"],
)
def test_columns_are_taken_repeated_or_with_commas(capsys, words):
    _, out, _ = run(capsys, "evaluate", PAIRS, *words, "--json")
    wanted = evaluate(PAIRS, by=["split", "turns"])
    assert json.loads(out)["subsets"] == wanted.subsets.to_dicts()


def test_a_column_whose_name_holds_a_comma_is_taken_whole(capsys, tmp_path):
    path = str(tmp_path / "pairs.parquet")
    pl.read_parquet(PAIRS).rename({"turns": "split,turns"}).write_parquet(path)
    for asked, by in (("split,turns", ["split,turns"]), ("split,split,turns", None)):
        _, out, _ = run(capsys, "evaluate", path, "--by", asked, "--json")
        names = by or ["split", "split,turns"]
        assert json.loads(out)["subsets"] == evaluate(path, by=names).subsets.to_dicts()
    assert run(capsys, "evaluate", path, "--by", "splits,turns")[0] == 2


def test_other_options_of_columns_take_commas_too(capsys, tmp_path):
    out = tmp_path / "out.parquet"
    assert run(capsys, "score", PAIRS, out, "--keep", "pair_id,split")[0] == 0
    assert pl.read_parquet(out).columns[:2] == ["split", "pair_id"]
    found = run(capsys, "compare", PAIRS, OTHER, "--by", "split,turns", "--json")[1]
    wanted = compare(PAIRS, OTHER, by=["split", "turns"]).to_dict()
    assert json.loads(found)["subsets"] == wanted["subsets"]
    roles = ",".join(f"{name}={name}" for name in LOGPS[:2])
    assert run(capsys, "check", PAIRS, "--column", roles)[0] == 0


def test_without_a_command_three_are_shown(capsys):
    code, out, err = run(capsys)
    assert (code, out) == (2, "")
    commands = re.findall(r"^    dpo-pipeline (\w+) ", err, flags=re.MULTILINE)
    assert commands == ["check", "evaluate", "compare"]


def test_help_is_in_groups_with_the_most_used_first(capsys):
    _, out, _ = run(capsys, "evaluate", "--help")
    titles = re.findall(r"^(\S.*):$", out, flags=re.MULTILINE)
    assert titles.index("Most used") < titles.index("Input") < titles.index("Gates")
    most_used = out.partition("Most used:\n")[2].partition("\n\n")[0]
    assert re.findall(r"^  (--\w+)", most_used, flags=re.MULTILINE)[:3] == [
        *("--beta", "--loss", "--by"),
    ]
    assert re.search(r"^  trl +a dataset with TRL's", out, flags=re.MULTILINE)
    assert out.count("RewardBench's scores") == 1
