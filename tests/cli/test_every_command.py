"""What every command has, and what gates do to a score and to a comparison."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from dpo_pipeline import (
    Execution,
    GateError,
    UsageError,
    compare,
    evaluate,
    gate,
    score_parquet,
    sweep,
)
from dpo_pipeline.cli.program import cli, main
from dpo_pipeline.engine import Local
from pair_tools import LOGPS

ALL = ("check", "evaluate", "score", "sweep", "compare", "convert")
HAVE = {
    "--dry-run": ALL,
    "--storage-option": ALL,
    "--format": ALL,
    "--loss": ALL[:5],
    "--summary": ALL[:5],
    "--engine": ALL[:5],
    "--fail-under": ("evaluate", "score", "compare"),
    "--fail-on-no-verdict": ("compare",),
}


@pytest.fixture
def project(tmp_path, monkeypatch, pairs):
    """Policy A, a better policy B, and B against another reference, in Parquet and CSV."""
    monkeypatch.chdir(tmp_path)
    many = pl.concat([pairs.with_columns(pl.col("pair_id") + str(i)) for i in range(40)])
    # No column may be in part the other model's: that is surely wrong, and fails a gate.
    many = many.with_columns(pl.col(LOGPS[3]) - 0.25, split=pl.lit("x"))
    many.write_parquet("a.parquet")
    better = many.with_columns(pl.col(LOGPS[1]) - 30.0)
    better.write_parquet("b.parquet")
    better.write_csv("b.csv")
    better.with_columns(pl.col(LOGPS[2]) - 5.0).write_parquet("other.parquet")
    return tmp_path


def run(capsys, *words):
    code = main([*map(str, words)])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize("flag", HAVE)
def test_the_table_of_what_commands_have(flag):
    flags = {
        name: {f for p in command.params for f in p.opts} for name, command in cli.commands.items()
    }
    assert tuple(name for name in ALL if flag in flags[name]) == tuple(
        name for name in ALL if name in HAVE[flag]
    )


@pytest.mark.usefixtures("project")
def test_a_comparison_refuses_an_engine_with_a_sentence(capsys):
    code, out, err = run(capsys, "compare", "a.parquet", "b.parquet", "--engine", "ray")
    assert (code, out) == (2, "")
    assert "compare joins the policies on this machine: leave the engine out" in err


@pytest.mark.usefixtures("project")
def test_check_asks_for_what_the_loss_needs(capsys):
    bare = pl.read_parquet("a.parquet").drop(LOGPS[2:])
    bare.write_parquet("bare.parquet")
    assert run(capsys, "check", "bare.parquet")[0] == 1
    assert run(capsys, "check", "bare.parquet", "--loss", "cpo")[0] == 0
    assert run(capsys, "evaluate", "bare.parquet", "--loss", "cpo")[0] == 0
    code, _, err = run(capsys, "check", "bare.parquet", "--loss", "simpo")
    assert code == 1
    assert "chosen_num_tokens: missing" in err


@pytest.mark.usefixtures("project")
def test_check_finds_scores_that_no_sum_can_hold(capsys):
    far = pl.read_parquet("a.parquet").head(3)
    far = far.with_columns(pl.Series(LOGPS[0], [-1.0, -4e6, -2.0]))
    far.write_parquet("far.parquet")
    assert run(capsys, "check", "far.parquet")[0] == 0
    code, out, _ = run(capsys, "check", "far.parquet", "--loss", "ipo", "--beta", "1e9", "--json")
    assert code == 1
    # Of rewards alone: the loss is the square of the margin in nats, here of about 4e6.
    assert [rule["rule"] for rule in json.loads(out)["invalid"]] == ["chosen_reward.in_range"]
    assert run(capsys, "evaluate", "far.parquet", "--loss", "ipo", "--beta", "1e9")[0] == 1


@pytest.mark.usefixtures("project")
def test_the_summary_of_a_check_is_written_whatever_it_finds(capsys):
    broken = pl.read_parquet("a.parquet").with_columns(pl.col(LOGPS[0]) + 21.0)
    broken.write_parquet("broken.parquet")
    code, out, _ = run(capsys, "check", "broken.parquet", "--summary", "s.json", "--json")
    assert code == 1
    with open("s.json") as file:
        assert json.load(file) == json.loads(out)


class Counting(Local):
    """Runs tasks here, and counts the calls."""

    calls = 0

    def __call__(self, function, tasks, check):
        Counting.calls += 1
        return super().__call__(function, tasks, check)


@pytest.mark.usefixtures("project")
def test_a_sweep_runs_where_it_is_told_to():
    Counting.calls = 0
    told = sweep("a.parquet", [0.1, 0.2], execution=Execution(Counting()))
    assert Counting.calls > 0
    assert told.table.equals(sweep("a.parquet", [0.1, 0.2]).table)


@pytest.mark.usefixtures("project")
def test_a_sweep_by_subset_and_in_batches_is_what_evaluations_give():
    found = sweep("a.parquet", [0.1, 0.4], loss=["sigmoid", "ipo"], by="subset", batches=50)
    for loss in ("sigmoid", "ipo"):
        for beta in (0.1, 0.4):
            alone = evaluate("a.parquet", beta, loss=loss, by="subset", batches=50)
            own = (pl.col("objective") == loss) & (pl.col("beta") == beta)
            assert found.subsets.filter(own).drop("objective", "beta").equals(alone.subsets)
            assert found.batches.filter(own).drop("objective", "beta").equals(alone.batches)


@pytest.mark.usefixtures("project")
def test_a_score_writes_before_its_gate_fails(capsys):
    words = ["score", "a.parquet", "out.parquet", "--fail-under", "rewards/accuracies=0.9"]
    code, out, err = run(capsys, *words)
    assert code == 4
    assert "fails its gate" in err
    assert "\na.parquet: 240 pairs" in out
    assert pl.read_parquet("out.parquet").height == 240
    assert run(capsys, *words, "--fail-on-interval", "--overwrite")[0] == 2


@pytest.mark.repeats(4)  # each code once; `evaluation` has the bounds
@pytest.mark.parametrize(
    ("words", "code"),
    [
        pytest.param(["--fail-under", "reward_accuracy=0.1"], 0, id="B is better by more"),
        pytest.param(["--fail-under", "reward_accuracy=0.9"], 4, id="not by so much"),
        pytest.param(
            ["--fail-under", "reward_accuracy=0", "--fail-on-interval"], 0, id="shown to be better"
        ),
        pytest.param(["--fail-over", "loss=0"], 0, id="loss falls"),
        pytest.param(["--fail-over", "loss=-9"], 4, id="not so far"),
        pytest.param(["--fail-on-no-verdict"], 0, id="a verdict"),
        pytest.param(["--fail-under", "n_pairs=1"], 2, id="no such difference"),
    ],
)
@pytest.mark.usefixtures("project")
def test_gates_of_a_comparison(capsys, words, code):
    assert run(capsys, "compare", "a.parquet", "b.parquet", *words)[0] == code


@pytest.mark.filterwarnings("ignore::dpo_pipeline.DataWarning")
@pytest.mark.usefixtures("project")
def test_a_comparison_under_two_references_fails_every_gate(capsys):
    words = ["compare", "a.parquet", "other.parquet"]
    assert run(capsys, *words)[0] == 0
    for more in (["--fail-on-no-verdict"], ["--fail-under", "reward_accuracy=-1"]):
        code, out, err = run(capsys, *words, *more)
        assert code == 4
        assert "no verdict" in err
        assert "\nno verdict" in out  # after what is surely wrong
    result = compare("a.parquet", "other.parquet")
    with pytest.raises(GateError) as caught:
        gate(result, no_verdict=True)
    assert caught.value.missed == ()
    assert caught.value.why == result.verdict


@pytest.mark.usefixtures("project")
def test_the_file_of_settings_never_becomes_an_output(capsys):
    with open("mine.toml", "w") as file:
        file.write("beta = 0.2\n")
    for words in (
        ["evaluate", "a.parquet", "--summary", "mine.toml"],
        ["compare", "a.parquet", "b.parquet", "--summary", "mine.toml"],
        ["score", "a.parquet", "o.parquet", "--summary", "mine.toml"],
    ):
        code, _, err = run(capsys, *words, "--overwrite", "--config", "mine.toml")
        assert code == 3
        assert "the output is also an input" in err
    with open("mine.toml") as file:
        assert file.read() == "beta = 0.2\n"


@pytest.mark.usefixtures("project")
def test_a_score_reads_what_evaluate_reads(capsys, pairs):
    assert run(capsys, "score", "b.csv", "from_csv.parquet")[0] == 0
    score_parquet("b.parquet", "from_parquet.parquet")
    made = [pl.read_parquet(f"from_{name}.parquet") for name in ("csv", "parquet")]
    assert made[0].equals(made[1])
    score_parquet(pairs, "from_frame.parquet", on_invalid="quarantine")
    assert pl.read_parquet("from_frame.parquet").height == pairs.height
    broken = pairs.with_columns(pl.Series(LOGPS[0], [None, 1.0, -1, -2, -3, -4]))
    result = score_parquet(broken, "kept.parquet", on_invalid="quarantine")
    assert result.summary.n_invalid == 2
    assert pl.read_parquet("kept.invalid.parquet")["source_row"].to_list() == [0, 1]
    code, _, err = run(capsys, "score", "b.csv", "out", "--part-rows", "10")
    assert code == 2
    assert "part_rows cuts Parquet between row groups" in err


@pytest.mark.usefixtures("project")
def test_no_parquet_has_the_name_of_another_format(capsys):
    for words in (
        ["evaluate", "a.parquet", "--batches", "out.csv"],
        ["sweep", "a.parquet", "--batches", "out.csv"],
        ["score", "a.parquet", "s.parquet", "--batches", "out.csv"],
        ["score", "a.parquet", "s.parquet", "--on-invalid", "quarantine", "--invalid", "out.csv"],
    ):
        code, _, err = run(capsys, *words)
        assert code == 2
        assert "out.csv: Parquet is written, and this ending says CSV: name it out.parquet" in err
    assert not any(Path(name).exists() for name in ("out.csv", "s.parquet"))


@pytest.mark.usefixtures("project")
def test_a_check_says_why_it_fails_though_no_more_are_invalid_than_may_be(capsys):
    broken = pl.read_parquet("a.parquet").head(2).with_columns(pl.lit(1.0).alias(LOGPS[0]))
    broken.write_parquet("broken.parquet")
    code, out, err = run(capsys, "check", "broken.parquet", "--max-invalid", "5")
    assert code == 1
    assert "in 2 of 2 rows" in out
    assert "no pair is valid" in err


@pytest.mark.parametrize("command", ["check", "evaluate", "sweep"])
@pytest.mark.usefixtures("project")
def test_a_key_that_joins_nothing_is_refused(capsys, command):
    code, _, err = run(capsys, command, "a.parquet", "--on", "pair_id")
    assert code == 2
    assert "--on is of a --reference: give one" in err
    assert run(capsys, "compare", "a.parquet", "b.parquet", "--on", "pair_id", "--dry-run")[0] == 0


@pytest.mark.usefixtures("project")
def test_advice_is_not_what_was_done_already(capsys):
    broken = pl.read_parquet("a.parquet").with_columns(pl.lit(1.0).alias(LOGPS[0]))
    broken.write_parquet("broken.parquet")
    assert "'exclude' drops them" in run(capsys, "evaluate", "broken.parquet")[2]
    for words in (["evaluate", "broken.parquet"], ["compare", "broken.parquet", "b.parquet"]):
        err = run(capsys, *words, "--on-invalid", "exclude", "--max-invalid", "1")[2]
        assert "'exclude' drops them" not in err
        assert "raise at_most (--max-invalid)" in err


@pytest.mark.parametrize(("flag", "argument"), [("--fail-under", "under"), ("--fail-over", "over")])
@pytest.mark.usefixtures("project")
def test_a_mark_for_no_figure_names_the_argument_and_the_flag(capsys, flag, argument):
    code, _, err = run(capsys, "evaluate", "a.parquet", flag, "los=1")
    assert code == 2
    assert f"{argument} ({flag}): there is no figure 'los' (did you mean 'loss'?)" in err
    with pytest.raises(UsageError, match=rf"{argument} \({flag}\): the mark of loss must be"):
        gate(evaluate("a.parquet"), **{argument: {"loss": "1"}})
