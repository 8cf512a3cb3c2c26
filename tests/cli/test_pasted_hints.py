"""Errors end in what is to be typed next: a command to be pasted, which works."""

from __future__ import annotations

import re
import shlex
from itertools import permutations

import polars as pl
import pytest

from dpo_pipeline.cli.program import main
from pair_tools import LOGPS


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def mended(capsys, *words):
    """Return the command that an error ends in, which is to be pasted."""
    assert main([*words]) in {1, 2}
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("try: dpo-pipeline ")
    return shlex.split(said)[2:]


def odd(pairs, model):
    """Write pairs whose columns of a model have their words in another order."""
    names = {f"{model}_{side}_logps": f"logp_{model}_{side}" for side in ("chosen", "rejected")}
    pairs.rename(names).write_parquet("odd.parquet")


def test_a_line_to_paste_maps_names_that_hold_the_words(capsys, pairs):
    odd(pairs, "ref")
    assert main(mended(capsys, "evaluate", "odd.parquet")) == 0


@pytest.mark.repeats  # sides, joined or not
@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("sides", ["cr", "rc"])
def test_a_line_to_paste_has_the_column_that_is_there(capsys, pairs, joined, sides):
    names = dict(zip(LOGPS, ("lp_c", "lp_r", "lp_c_ref", "ref_lp_r"), strict=True))
    pairs.rename(names).write_parquet("odd.parquet")
    typed = [f"{role}=lp_{side}" for role, side in zip(LOGPS[:2], "cr", strict=True)]
    typed = [text.replace(f"lp_{sides[0]}", f"lp_{sides[0]}{sides[0]}") for text in typed]
    options = ["--column", typed[0], "--column", typed[1]]
    options = [f"--column={','.join(typed)}"] if joined else options
    words = mended(capsys, "evaluate", "odd.parquet", *options)
    assert "--reference" not in words
    assert words[-1] == "ref_chosen_logps=lp_c_ref,ref_rejected_logps=ref_lp_r"
    assert main(words) == 0
    plain = capsys.readouterr().out
    pairs.write_parquet("odd.parquet")
    assert main(["evaluate", "odd.parquet"]) == 0
    assert capsys.readouterr().out == plain


def test_a_line_to_paste_repeats_no_column_that_is_not_there(capsys, pairs):
    pairs.write_parquet("in.parquet")
    words = mended(capsys, "evaluate", "in.parquet", "--column", f"{LOGPS[0]}=zzz")
    assert words[-1] == f"{LOGPS[0]}=NAME"


def test_a_line_to_paste_takes_a_lone_name_as_trls(capsys, pairs):
    names = {f"policy_{side}_logps": f"{side}_logps" for side in ("chosen", "rejected")}
    pairs.drop(LOGPS[2:]).rename(names).write_parquet("trl.parquet")
    pairs.select("pair_id", *LOGPS[2:]).write_parquet("FILE")
    assert main(mended(capsys, "evaluate", "trl.parquet")) == 0


def test_a_line_to_paste_takes_a_second_score_as_the_reference(capsys, pairs):
    pairs.drop(LOGPS[2:]).write_parquet("policy.parquet")
    second = {policy: pl.col(ref) for policy, ref in zip(LOGPS[:2], LOGPS[2:], strict=True)}
    pairs.with_columns(**second).drop(LOGPS[2:]).write_parquet("second.parquet")
    words = mended(capsys, "evaluate", "policy.parquet", "--reference", "second.parquet")
    assert "--reference-column" in words
    assert main(words) == 0


@pytest.mark.parametrize("order", list(permutations(("odd.parquet", "pairs.parquet"))))
def test_a_line_to_paste_maps_the_side_of_a_comparison(capsys, pairs, order):
    pairs.write_parquet("pairs.parquet")
    odd(pairs, "policy")
    assert main(mended(capsys, "compare", *order)) == 0


def test_a_line_to_paste_leaves_invalid_pairs_out(capsys, pairs):
    one = pl.when(pl.int_range(pl.len()) > 0).then(pl.col(LOGPS[0]))
    pairs.with_columns(one).write_parquet("broken.parquet")
    assert main(mended(capsys, "evaluate", "broken.parquet")) == 0


def test_what_missing_columns_share_is_said_once(capsys, pairs):
    names = dict(zip(LOGPS, "abcd", strict=True))
    pairs.rename(names).write_parquet("odd.parquet")
    words = mended(capsys, "evaluate", "odd.parquet")
    assert words[-1] == ",".join(f"{role}=NAME" for role in LOGPS)
    assert main(["evaluate", "odd.parquet"]) == 1
    said = capsys.readouterr().err
    assert [said.count(text) for text in (": missing\n", "map it", "The columns are")] == [4, 1, 1]


@pytest.mark.parametrize("mark", ["reward_accuracy=60", "rewards/accuracies=57", "chosen_down=-5"])
def test_a_mark_of_a_share_is_no_percentage(capsys, pairs, mark):
    pairs.write_parquet("in.parquet")
    name, _, number = mark.partition("=")
    assert main(["evaluate", "in.parquet", "--fail-under", mark]) == 2
    said = capsys.readouterr().err
    assert f"{name} is a share from 0 to 1" in said
    assert f"for {number}% give {float(number) / 100:g}" in said


@pytest.mark.parametrize("mark", ["60%", "0.6"])
def test_a_mark_can_be_a_percentage(capsys, pairs, mark):
    pairs.write_parquet("in.parquet")
    assert main(["evaluate", "in.parquet", "--fail-over", f"rewards/accuracies={mark}"]) in {0, 4}
    assert main(["evaluate", "in.parquet", "--fail-over", "rewards/accuracies=-1%"]) == 4
    assert "above -0.01" in capsys.readouterr().err


def test_a_mark_of_a_comparison_has_trls_names_too(capsys, pairs):
    pairs.write_parquet("a.parquet")
    pairs.with_columns(pl.col(LOGPS[1]) - 1.0).write_parquet("b.parquet")
    sides = ["compare", "a.parquet", "b.parquet", "--fail-over"]
    said = []
    for name in ("rewards/margins", "reward_margin"):  # each margin grows by beta
        assert main([*sides, f"{name}=0.1001"]) == 0
        assert main([*sides, f"{name}=0.0999"]) == 4
        said.append(capsys.readouterr().err.replace(name, ""))
    assert said[0] == said[1]
    assert main([*sides, "rewards/marginz=0"]) == 2


def test_a_mark_without_a_number_is_shown_with_one(capsys):
    assert main(["evaluate", "in.parquet", "--fail-under", "loss"]) == 2
    assert "`--fail-under loss=0.5`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "merge"),
    [
        (["split", "evaluate", "x.parquet", "--shards", "2", "--to", "work"], "work"),
        (["split", "score", "x.parquet", "y", "--shards", "2", "--to", "work"], "work"),
        (["run", "work", "0"], "JOB"),
    ],
)
def test_gates_of_a_job_are_of_its_merge(capsys, monkeypatch, words, merge):
    monkeypatch.setenv("DPO_PIPELINE_EVALUATE_FAIL_UNDER", "loss=0.5")  # of evaluate alone
    assert main(["job", *words, "--fail-under", "loss=0.5"]) == 2
    said = capsys.readouterr().err
    assert f"`dpo-pipeline job merge {merge} --fail-under loss=0.5`" in said
    assert main(["job", *words, "--fail-on-interval"]) == 2
    assert f"`dpo-pipeline job merge {merge} --fail-on-interval`" in capsys.readouterr().err


def test_several_betas_lead_to_sweep(capsys, pairs):
    pairs.with_columns(kind=pl.lit("x")).write_parquet("p.parquet")
    words = ["p.parquet", "--statistics", "--beta", "0.1,0.5", "--report", "page.html", "--by=kind"]
    assert main(["evaluate", *words]) == 2
    said = capsys.readouterr().err
    (command,) = re.findall("`dpo-pipeline (.*)`", said)
    assert shlex.split(command) == ["sweep", "p.parquet", "--beta", "0.1,0.5", "--by=kind"]
    assert main(shlex.split(command)) == 0
    assert main(["compare", "p.parquet", "p.parquet", "--beta", "0.1,0.5"]) == 2
    assert "takes one number, found '0.1,0.5'\n" in capsys.readouterr().err


def test_sweep_takes_betas_and_losses_with_commas_or_repeated(capsys, pairs):
    pairs.write_parquet("p.parquet")
    made = []
    for words in (
        ["--beta", "0.1,0.5", "--loss", "sigmoid,hinge"],
        ["--beta", "0.1", "--beta", "0.5", "--loss", "sigmoid", "--loss", "hinge"],
    ):
        assert main(["sweep", "p.parquet", "--output", "csv", *words]) == 0
        made.append(capsys.readouterr().out)
    assert made[0] == made[1]
    assert len(made[0].splitlines()) == 5
