"""RewardBench 2: credits and Ties, against what that project's `process_single_model` gave."""

from __future__ import annotations

import json
import random

import pytest

from dpo_pipeline import ColumnError, Pairs, evaluate, rank

# What `process_single_model` of reward-bench's rewardbench/utils.py returned for `ties(seed)`.
RECORDED = {1: 0.5166200365169028, 2: 0.37236075792792406, 3: 0.5783718666682055}
ZERO_SPREAD = 0.505


def ties(seed, n=7):
    """Return made Ties of n ids, the last without its reference prompt."""
    draw, rows = random.Random(seed), []
    for i in range(n):
        for kind, right in (("ref", 1), ("tied", draw.randint(2, 4))):
            if kind == "ref" and i == n - 1:
                continue
            scores = [
                round(2.0 * draw.gauss(2.5 if j < right else 0, 1)) / 2.0
                for j in range(right + draw.randint(2, 4))
            ]
            rows.append((f"{kind}:{i}", "Ties", right, scores))
    return rows


def write(path, rows, *, results=0.0, nested=False):
    ids, subsets, right, scores = map(list, zip(*rows, strict=True))
    if nested:
        scores = [[[score] for score in some] for some in scores]
    document = {
        "text": [["t"] * len(some) for some in scores],
        "scores": scores,
        "results": [results] * len(rows),
        "subset": subsets,
        "id": ids,
        "num_correct": right,
        "model": "org/m",
    }
    path.write_text(json.dumps(document))
    return Pairs(path, format="rewardbench")


@pytest.mark.repeats  # nested or not is how they are read
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("seed", RECORDED)
def test_ties_have_the_score_that_the_project_gives(seed, nested, tmp_path):
    made = rank(write(tmp_path / "scores.json", ties(seed), nested=nested)).rewardbench
    assert made.subsets == {"Ties": pytest.approx(RECORDED[seed], abs=1e-12)}
    assert len(made.ties) == 5


def test_right_answers_without_spread_have_the_score_that_the_project_gives(tmp_path):
    rows = [
        ("ref:0", "Ties", 1, [1.0, 0.0]),
        ("tied:0", "Ties", 2, [2.0, 2.0, 0.5]),
        ("ref:1", "Ties", 1, [0.5, 0.5]),
        ("tied:1", "Ties", 2, [1.0, 1.0, 1.0]),
    ]
    made = rank(write(tmp_path / "scores.json", rows)).rewardbench
    assert made.score == pytest.approx(ZERO_SPREAD, abs=1e-12)


FOUR = [
    ("1", "Math", 1, [2.0, 1.0, 0.5, -1.0]),
    ("2", "Math", 1, [1.0, 1.0, 0.0, -2.0]),
    ("3", "Focus", 1, [0.1, 0.4, 0.0, 0.2]),
]


def test_a_tie_with_k_gives_one_kth_and_the_files_own_results_are_not_read(tmp_path):
    made = rank(write(tmp_path / "scores.json", FOUR, results=1.0))
    assert made.rewardbench.subsets == {"Math": 0.75, "Focus": 0.0}
    assert made.rewardbench.score == 0.375
    assert made.rewardbench.missing == ("Factuality", "Precise IF", "Safety", "Ties")
    assert "no rows of Factuality, Precise IF, Safety, Ties" in str(made)


def test_the_score_is_the_unweighted_mean_of_subsets(tmp_path):
    made = rank(write(tmp_path / "scores.json", [*FOUR, *ties(1)])).rewardbench
    assert made.score == pytest.approx((0.75 + 0.0 + RECORDED[1]) / 3, abs=1e-12)


def test_outside_ties_only_the_first_completion_is_right(tmp_path):
    made = rank(write(tmp_path / "scores.json", [("1", "Math", 3, [1.0, 2.0, 0.0, 0.0])]))
    assert made.rewardbench.subsets == {"Math": 0.0}


def test_ties_without_the_number_of_right_ones_are_refused(tmp_path):
    rows = [("ref:1", "Ties", 2, [3.0, 2.0, 0.0, 0.0]), ("1", "Math", 1, [1.0, 2.0, 0.0, 0.0])]
    path = write(tmp_path / "scores.json", rows).source
    document = json.loads(path.read_text())
    del document["num_correct"]
    path.write_text(json.dumps(document))
    with pytest.raises(ColumnError, match="num_correct: missing"):
        rank(Pairs(path, format="rewardbench"))


@pytest.mark.parametrize("right", [0, 5, None])
def test_more_right_ones_than_scores_are_refused_by_id(right, tmp_path):
    rows = [("ref:1", "Ties", 1, [3.0, 2.0]), ("tied:1", "Ties", right, [1.0, 2.0, 0.0, 0.0])]
    with pytest.raises(ColumnError, match=r"not from 1 to the number .* in 1 rows of Ties: tied:1"):
        rank(write(tmp_path / "scores.json", rows))


def test_ids_of_ties_without_their_other_prompt_are_named(tmp_path):
    rows = [
        *(("ref:1", "Ties", 1, [3.0, 2.0]), ("tied:1", "Ties", 2, [2.0, 2.5, 0.0])),
        *(("tied:2", "Ties", 2, [2.0, 2.0, 0.0]), ("ref:3", "Ties", 1, [1.0, 0.0])),
        ("odd", "Ties", 1, [1.0, 0.0]),
    ]
    made = rank(write(tmp_path / "scores.json", rows))
    assert made.notes[-3:] == (
        "1 id (ref:3) of Ties without tied: they count in no term that compares both",
        "1 id (tied:2) of Ties without ref: they count in no term that compares both",
        "1 id (odd) of Ties neither ref: nor tied:, and so taken as tied",
    )
    assert "tied:2" in str(made)
    assert rank(write(tmp_path / "all.json", rows[:2])).rewardbench.notes == ()


def test_lines_are_read_as_the_document_is(tmp_path):
    names = ("id", "subset", "num_correct", "scores")
    path = tmp_path / "scores.jsonl"
    path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in FOUR))
    made = rank(Pairs(path, format="rewardbench"), by="subset")
    assert made.rewardbench.score == 0.375
    assert made.subsets["subset"].to_list() == ["Focus", "Math"]


def test_pairs_of_them_are_evaluated(tmp_path):
    source = write(tmp_path / "scores.json", FOUR)
    pairs = Pairs(source.source, format="rewardbench", pairing="best-rest")
    made = evaluate(pairs, by="subset")
    assert made.summary.n_pairs == 9
    # A tie is no right pair: 5 of 6, and 1 of 3.
    assert dict(made.subsets.select("subset", "reward_accuracy").iter_rows()) == pytest.approx(
        {"Focus": 1 / 3, "Math": 5 / 6}
    )
