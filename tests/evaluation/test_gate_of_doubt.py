"""What is surely wrong passes no gate, and is said whatever the form of the output."""

from __future__ import annotations

import polars as pl
import pytest

import dpo_pipeline
from command_tools import run
from dpo_pipeline.report import evaluation_page
from pair_tools import ROOT

REFS = ("ref_chosen_logps", "ref_rejected_logps")


@pytest.fixture
def shifted(tmp_path):
    """The example's pairs, with the reference of the row before."""
    path = tmp_path / "shifted.parquet"
    pairs = pl.read_parquet(ROOT / "examples/pairs.parquet")
    pairs.with_columns(pl.col(name).shift(1, fill_value=-100.0) for name in REFS).write_parquet(
        path
    )
    return path


@pytest.mark.parametrize("mark", ["rewards/accuracies=0.1", "rewards/margins=-100"])
def test_no_gate_passes_what_is_surely_wrong(capsys, shifted, mark):
    code, out, err = run(capsys, "evaluate", shifted, "--fail-under", mark)
    assert code == 4
    first, _, verdict = out.splitlines()[:3]
    assert first == "gate missed: without a verdict nothing passes"
    assert verdict.startswith("no verdict: the rows of policy and reference are shifted")
    assert "no verdict" in err
    sound = run(capsys, "evaluate", ROOT / "examples/pairs.parquet", "--fail-under", mark)
    assert sound[0] == 0


def test_check_says_first_that_something_is_wrong_and_names_a_gate_that_fails(capsys, shifted):
    code, out, _ = run(capsys, "check", shifted)
    said = "something is surely wrong, though each of its 200 pairs keeps the contract"
    assert (code, out.splitlines()[0]) == (0, f"{shifted}: {said}")
    (note,) = (part for part in " ".join(out.split()).split("note: ")[1:] if "exit code" in part)
    call, *options = note.split("`")[1].split()
    assert run(capsys, call, shifted, *options)[0] == int(note.split(" ends with ")[1][0]) == 4
    sound = run(capsys, "check", ROOT / "examples/pairs.parquet")[1]
    assert sound.startswith(f"{ROOT / 'examples/pairs.parquet'}: all 200 pairs keep the contract")
    assert "exit code" not in sound


def test_a_gate_of_python_does_the_same(shifted):
    with pytest.raises(dpo_pipeline.GateError, match="no verdict"):
        dpo_pipeline.gate(dpo_pipeline.evaluate(shifted), under={"reward_accuracy": 0.1})


def test_csv_leaves_its_warnings_on_stderr(capsys, shifted):
    code, out, err = run(capsys, "evaluate", shifted, "--output", "csv")
    assert code == 0
    assert out.startswith("figure,value")
    assert "no verdict: the rows of policy and reference are shifted" in err
    silent = run(capsys, "evaluate", shifted, "--output", "csv", "--no-warnings")
    assert "warning" not in silent[2]


@pytest.mark.repeats(1)  # commas are split by one option
@pytest.mark.parametrize("call", ["evaluate", "check", "compare"])
def test_columns_to_show_may_have_commas_between(capsys, call):
    source = ROOT / "examples/pairs.parquet"
    places = [source, ROOT / "examples/policy_b.parquet"] if call == "compare" else [source]
    code, out, err = run(capsys, call, *places, "--show", "split,pair_id")
    assert code == 0, err
    if call != "check":
        assert "split" in out


def test_the_page_gives_no_verdict_either(shifted):
    result = dpo_pipeline.evaluate(shifted, statistics=True)
    said = evaluation_page.verdict(result, result.statistics)
    assert said.startswith("No verdict: the rows of policy and reference are shifted")
    assert "coin toss" not in said
    sound = dpo_pipeline.evaluate(ROOT / "examples/pairs.parquet", statistics=True)
    assert "better than a coin toss" in evaluation_page.verdict(sound, sound.statistics)
