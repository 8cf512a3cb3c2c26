"""lm-evaluation-harness's samples, as completions of a policy and of a reference."""

from __future__ import annotations

import json

import polars as pl
import pytest

from dpo_pipeline import ColumnError, Pairs, Reference, evaluate, rank, read


def line(doc_id, logps, target, *, options=(" a", " b"), **more):
    arguments = {
        f"gen_args_{i}": {"arg_0": "question", "arg_1": text} for i, text in enumerate(options)
    }
    answers = [[str(logp), "False"] for logp in logps]
    return {
        "doc_id": doc_id,
        "target": target,
        "arguments": arguments,
        "filtered_resps": answers,
    } | more


def write(path, *lines):
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    return path


def test_options_are_completions_and_the_target_is_right(tmp_path):
    path = write(
        tmp_path / "samples.jsonl", line(0, [-2.5, -1.5], "1"), line(1, [-3.25, -4.0], "0")
    )
    made = read(path, "lm-eval").collect()
    assert made["policy_logps"].to_list() == [-2.5, -1.5, -3.25, -4.0]
    assert made["label"].to_list() == [False, True, True, False]
    assert made["prompt_id"].to_list() == ["0", "0", "1", "1"]
    assert made["completion"].to_list() == [" a", " b", " a", " b"]
    assert rank(Pairs(path, format="lm-eval")).figures["top_one"].value == 1.0


def test_a_policy_and_a_reference(tmp_path):
    name = "samples_arc_easy_2026-01-02T03-04-05.678.jsonl"
    for folder in ("policy", "reference"):
        (tmp_path / folder).mkdir()
    ours = write(tmp_path / "policy" / name, line(0, [-25.0, -15.0], 1), line(1, [-32.5, -40.0], 0))
    theirs = write(
        tmp_path / "reference" / name, line(1, [-30.0, -40.0], 0), line(0, [-20.0, -15.0], 1)
    )
    reference = Reference(theirs, format="lm-eval")
    made = rank(Pairs(ours, format="lm-eval"), reference=reference, by="task")
    # Log-ratios -5 and 0 with the second right; -2.5 and 0 with the first right.
    assert made.figures["top_one"].value == 0.5
    assert made.subsets["task"].to_list() == ["arc_easy"]
    pairs = Pairs(ours, format="lm-eval", pairing="all")
    summary = evaluate(pairs, reference=reference, on_invalid="exclude").summary
    assert summary.reward_margin == pytest.approx(0.1 * (5.0 - 2.5) / 2, abs=1e-12)


@pytest.mark.parametrize(
    ("target", "right"),
    [(1, [1]), ("1", [1]), (" b", [1]), ("b", [1]), ([0, 1], [0, 1]), ("[0, 1]", [0, 1])],
)
def test_a_target_is_a_number_or_a_text(target, right, tmp_path):
    path = write(tmp_path / "samples.jsonl", line(0, [-2.0, -1.0], target))
    labels = read(path, "lm-eval").collect()["label"]
    assert labels.arg_true().to_list() == right


def test_a_number_that_is_the_text_of_another_option_is_told_by_the_accuracy(tmp_path):
    options = (" 1", " 0")
    place = line(0, [-2.0, -1.0], "1", options=options, acc=1.0)
    text = line(1, [-2.0, -1.0], "1", options=options, acc=0.0)
    labels = read(write(tmp_path / "samples.jsonl", place, text), "lm-eval").collect()["label"]
    assert labels.to_list() == [False, True, True, False]
    unsure = write(tmp_path / "unsure.jsonl", line(0, [-2.0, -1.0], "1", options=options))
    with pytest.raises(ColumnError, match="the number of one option and the text of another"):
        read(unsure, "lm-eval")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"doc_id": 0}, "line 1: doc_id or target is missing"),
        ({"doc_id": 0, "target": "1"}, "filtered_resps and resps are missing"),
        ({"doc_id": 0, "target": "1", "resps": [["text"]]}, "none of multiple choice"),
        (line(0, [-1.0, -2.0], "7"), "of no option"),
    ],
)
def test_what_is_no_sample_is_refused(row, said, tmp_path):
    with pytest.raises(ColumnError, match=said):
        read(write(tmp_path / "samples.jsonl", row), "lm-eval")


def test_many_lines_are_read_in_pieces(tmp_path):
    path = write(tmp_path / "samples.jsonl", *(line(i, [-1.0, -2.0], 0) for i in range(3_000)))
    made = read(path, "lm-eval").select(pl.len(), pl.col("label").sum()).collect()
    assert made.row(0) == (6_000, 3_000)
