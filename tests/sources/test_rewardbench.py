"""RewardBench's results, read as pairs of scores."""

from __future__ import annotations

import json
from statistics import fmean

import pytest

import dpo_pipeline
from dpo_pipeline import evaluate, read
from dpo_pipeline.cli.program import main
from dpo_pipeline.sources.formats import FORMATS
from dpo_pipeline.sources.text_files import INFERRED_ROWS
from option_tools import grouped
from pair_tools import LOGPS
from reader_tools import SAMPLES, figures, summary

REWARDBENCH = (
    "rewardbench_outputs.jsonl",
    "rewardbench_all.jsonl",
    "rewardbench_eval_set_scores.json",
)


@pytest.fixture(scope="module")
def results():
    """RewardBench's own lines: the scores, and which of them it counted as correct."""
    lines = (SAMPLES / "rewardbench_outputs.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("name", REWARDBENCH)
def test_rewardbench_gives_its_own_figures(capsys, results, name):
    found = summary(capsys, SAMPLES / name, "--format", "rewardbench")
    pairs = [(row["scores_chosen"], row["scores_rejected"]) for row in results]
    assert any(score > 0 for pair in pairs for score in pair)
    expected = figures([(c, r, 0.0, 0.0) for c, r in pairs], beta=1.0)
    assert found == pytest.approx(expected, abs=1e-12)
    assert found["rewards/accuracies"] == fmean(row["results"] for row in results)
    assert found["rewards/margins"] == pytest.approx(fmean(c - r for c, r in pairs), abs=1e-12)


def test_rewardbench_by_subset(results):
    rows = read(SAMPLES / "rewardbench_outputs.jsonl", "rewardbench")
    found = evaluate(rows, **grouped(by="subset", **FORMATS["rewardbench"].settings)).subsets
    shares = {
        subset: fmean(row["results"] for row in results if row["subset"] == subset)
        for subset in {row["subset"] for row in results}
    }
    assert dict(found.select("subset", "reward_accuracy").rows()) == shares


@pytest.mark.repeats(2)  # settings give way by one rule
@pytest.mark.parametrize(
    ("arguments", "beta"),
    [
        pytest.param(["--beta", "0.2"], 0.2, id="beta"),
        pytest.param(["--dialect", "trl", "--loss", "cpo"], 0.1, id="loss and dialect"),
        pytest.param(["--loss", "cpo"], 1.0, id="loss"),
        pytest.param(["--loss-arg", "label_smoothing=0"], 1.0, id="argument"),
    ],
)
def test_settings_of_a_format_give_way(capsys, results, arguments, beta):
    path = SAMPLES / "rewardbench_outputs.jsonl"
    found = summary(capsys, path, "--format", "rewardbench", *arguments)
    rows = [(row["scores_chosen"], row["scores_rejected"], 0.0, 0.0) for row in results]
    assert found == pytest.approx(figures(rows, beta=beta), abs=1e-12)


def test_a_limit_that_is_given_is_kept(capsys):
    path = str(SAMPLES / "rewardbench_outputs.jsonl")
    assert main(["evaluate", path, "--format", "rewardbench", "--max-logp", "0"]) == 1
    assert "policy_chosen_logps.at_most" in capsys.readouterr().err


def test_scores_are_checked_as_evaluate_takes_them(capsys, results):
    asked = ["check", str(SAMPLES / REWARDBENCH[0]), "--format", "rewardbench"]
    assert main(asked) == 0
    assert f"all {len(results)} pairs keep the contract" in capsys.readouterr().out
    above = sum(row["scores_chosen"] > 0 or row["scores_rejected"] > 0 for row in results)
    assert above > 0
    assert main([*asked, "--max-logp", "0"]) == 1
    assert f"breaks its contract in {above} of {len(results)}" in capsys.readouterr().out


def test_sweep_takes_formats(capsys):
    path = str(SAMPLES / REWARDBENCH[0])
    code = main(["sweep", path, "--format", "rewardbench", "--beta", "0.1", "--beta", "1"])
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    assert "smallest loss of those tried: sigmoid: beta 0.1" in out


def test_lists_of_no_one_score_are_counted(tmp_path):
    path = tmp_path / "scores.jsonl"
    scores = [[1], [2.5], [], [1.0, 2.0], None]
    rows = [{"scores_chosen": score, "scores_rejected": [0]} for score in scores]
    path.write_text("\n".join(map(json.dumps, rows)))
    settings = FORMATS["rewardbench"].settings
    found = evaluate(read(path, "rewardbench"), **grouped(on_invalid="exclude", **settings))
    assert [(rule.name, rule.count) for rule in found.invalid.broken] == [
        ("policy_chosen_logps.not_null", 3)
    ]
    assert found.summary.chosen_reward == 1.75


def test_scores_that_are_whole_at_first(tmp_path):
    path = tmp_path / "scores.jsonl"
    lines = ['{"scores_chosen": [1], "scores_rejected": 0}'] * INFERRED_ROWS
    lines.append('{"scores_chosen": [1.5], "scores_rejected": 0.5}')
    path.write_text("\n".join(lines))
    rows = read(path, "rewardbench").tail(1).collect()
    assert rows.select(LOGPS[:2]).row(0) == (1.5, 0.5)


@pytest.mark.repeats  # marks and indents, each once
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("indent", [None, 2])
def test_scores_that_are_no_numbers_are_invalid_pairs(tmp_path, indent, mark):
    scores = {"chosen": [3.5, float("nan"), float("-inf")], "rejected": [-20.0, -1.5, -1.5]}
    path = tmp_path / "scores.json"
    lines = [dict(zip(scores, pair, strict=True)) for pair in zip(*scores.values(), strict=True)]
    whole = json.dumps(scores, indent=indent) if indent else "\n".join(map(json.dumps, lines))
    path.write_text(mark + whole, encoding="utf-8")
    source = dpo_pipeline.Pairs(path, format="rewardbench")
    found = evaluate(source, on_invalid="exclude", contract=dpo_pipeline.Contract(max_logp=9.0))
    assert {rule.name: [o.row for o in rule.offenders] for rule in found.invalid.broken} == {
        "policy_chosen_logps.not_nan": [1],
        "policy_chosen_logps.finite": [2],
    }
    assert (found.summary.n_valid, found.summary.reward_margin) == (1, 23.5)
