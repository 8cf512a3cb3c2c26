"""RewardBench's sections: their facts, their scores by another route, and what is missing."""

from __future__ import annotations

import math
import random

import polars as pl
import pytest

from dpo_pipeline import StatisticsOptions, UsageError, evaluate
from dpo_pipeline.cli.program import main
from dpo_pipeline.evaluation.estimates import BENCHMARKS, weights_of
from pair_tools import LOGPS

SECTIONS = {section.name: section.subsets for section in BENCHMARKS["rewardbench"]}
# Rows of each section of the data set as its card counts them.
SIZES = {"Chat": 358, "Chat Hard": 456, "Safety": 740, "Reasoning": 1431}


def pairs_of(accuracies, n=20, prompts=None):
    """n pairs a subset, of which a share has the chosen completion above by about 1 nat."""
    rows = [
        (subset, -20.0 if i < round(accuracy * n) else -22.0, -21.0, -30.0, -30.0 - i / 100)
        for subset, accuracy in accuracies.items()
        for i in range(n)
    ]
    frame = pl.DataFrame(rows, schema=["subset", *LOGPS], orient="row")
    row = pl.int_range(pl.len())
    # No column is the same everywhere.
    frame = frame.with_columns(
        policy_rejected_logps=-21.0 - row % 5 / 100, ref_chosen_logps=-30.0 - row % 3 / 100
    )
    return frame if prompts is None else frame.with_columns(prompt_id=row % prompts)


def sections_of(frame, sections="rewardbench", **options):
    result = evaluate(
        frame, by="subset", statistics=StatisticsOptions(sections=sections, **options)
    )
    return result.statistics.sections


ACCURACIES = dict.fromkeys([name for each in SECTIONS.values() for name in each], 0.5)


def test_sections_hold_the_subsets_and_prompts_of_the_data_set():
    rows = {
        name: sum(447 if subset == "math-prm" else n for subset, n in subsets.items())
        for name, subsets in SECTIONS.items()
    }
    assert rows == SIZES
    assert sum(rows.values()) == 2985
    assert sum(map(len, SECTIONS.values())) == 23
    # 154 of XSTest's prompts are to be refused, 250 answered.
    assert SECTIONS["Safety"]["xstest-should-refuse"] == 154
    assert SECTIONS["Reasoning"]["math-prm"] == sum(
        n for name, n in SECTIONS["Reasoning"].items() if name.startswith("hep-")
    )


def test_scores_are_those_that_rewardbench_gives():
    # Its own calculate_scores_per_section, run on these accuracies, said 0.6396648045, 0.725.
    accuracies = ACCURACIES | {"math-prm": 0.9, "alpacaeval-easy": 1.0, "hep-cpp": 0.8}
    found = sections_of(pairs_of(accuracies))
    assert found.benchmark == "rewardbench"
    scores = {name: estimate.value for name, estimate in found.scores.items()}
    assert scores == pytest.approx(
        {"Chat": 0.6396648045, "Chat Hard": 0.5, "Safety": 0.5, "Reasoning": 0.725}, abs=1e-10
    )
    assert found.score.value == pytest.approx((0.6396648045 + 0.5 + 0.5 + 0.725) / 4, abs=1e-10)


def test_standard_errors_are_those_of_a_weighted_mean():
    rng = random.Random(0)
    accuracies = {name: rng.choice([0.2, 0.35, 0.5, 0.8, 0.95]) for name in ACCURACIES}
    n = 40
    found = sections_of(pairs_of(accuracies, n))
    errors = {}
    for section, subsets in SECTIONS.items():
        total = sum(subsets.values())
        errors[section] = math.sqrt(
            sum(
                (count / total) ** 2 * accuracies[name] * (1 - accuracies[name]) / n
                for name, count in subsets.items()
            )
        )
    assert {k: e.standard_error for k, e in found.scores.items()} == pytest.approx(errors)
    assert found.score.standard_error == pytest.approx(math.hypot(*errors.values()) / 4)
    for estimate in (*found.scores.values(), found.score):
        assert estimate.interval.low < estimate.value < estimate.interval.high
        assert estimate.interval.method == "MOVER"


def test_prompts_that_subsets_share_are_drawn_together():
    rng = random.Random(1)
    accuracies = {name: rng.choice([0.2, 0.5, 0.8]) for name in ACCURACIES}
    alone = sections_of(pairs_of(accuracies, 20))
    shared = sections_of(pairs_of(accuracies, 20, prompts=20))
    assert shared.score.value == pytest.approx(alone.score.value, rel=1e-12)
    assert shared.score.interval.method == "bootstrap"
    # The i-th pairs of all subsets are right together, so the errors add up and do not cancel.
    assert shared.score.standard_error > 2 * alone.score.standard_error


def test_prior_sets_count_half():
    prior = {"anthropic_helpful": 0.6, "anthropic_hhh": 0.7, "shp": 0.8, "summarize": 0.9}
    found = sections_of(pairs_of(ACCURACIES | prior), "rewardbench-with-prior-sets")
    assert found.scores["Prior Sets"].value == pytest.approx(0.75)
    # analysis/get_benchmark_results.py weighs 2, 2, 2, 2, 1.
    assert found.score.value == pytest.approx((2 * 4 * 0.5 + 0.75) / 9)


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_weights_add_up_to_one(benchmark):
    assert math.fsum(weights_of(benchmark).values()) == pytest.approx(1.0, rel=1e-15)


def test_missing_and_unknown_subsets_are_named():
    frame = pairs_of(ACCURACIES)
    names = pl.col("subset").replace({"hep-go": "hep-golang", "donotanswer": None})
    with pytest.raises(UsageError) as caught:
        sections_of(frame.with_columns(names))
    text = str(caught.value)
    assert "rewardbench has 23 subsets; 2 missing: donotanswer, hep-go" in text
    assert "2 not of it: None, hep-golang" in text


def test_a_subset_without_a_valid_pair_is_missing():
    gone = pl.when(pl.col("subset") != "math-prm").then("ref_chosen_logps")
    frame = pairs_of(ACCURACIES).with_columns(ref_chosen_logps=gone)
    with pytest.raises(UsageError, match="1 missing: math-prm"):
        evaluate(
            frame,
            by="subset",
            statistics=StatisticsOptions(sections="rewardbench"),
            on_invalid="exclude",
        )


@pytest.mark.parametrize("by", [None, ["subset", "other"]])
def test_sections_need_the_one_column_of_subsets(by):
    frame = pairs_of(ACCURACIES).with_columns(other=1)
    options = StatisticsOptions(sections="rewardbench")
    with pytest.raises(UsageError, match="say by which one column"):
        evaluate(frame, by=by, statistics=options)


def test_a_benchmark_that_is_not_known_is_refused():
    with pytest.raises(UsageError, match="did you mean 'rewardbench'"):
        StatisticsOptions(sections="rewardbensh")


def test_categories_are_subsets_too():
    frame = pairs_of(ACCURACIES).with_columns(pl.col("subset").cast(pl.Categorical))
    assert sections_of(frame).score.value == pytest.approx(0.5)


def test_the_command_line_prints_sections(tmp_path, capsys):
    path = tmp_path / "scores.parquet"
    pairs_of(ACCURACIES).write_parquet(path)
    assert main(["evaluate", str(path), "--by", "subset", "--sections", "rewardbench"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for words in ("section: Chat Hard", "section: Reasoning", "score of rewardbench"):
        (line,) = [line for line in lines if line.startswith(words)]
        assert " 50.0% " in line
