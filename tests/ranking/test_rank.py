"""`rank`: figures over prompts with intervals by prompt, in whatever order rows stand."""

from __future__ import annotations

import json
import random
from itertools import combinations

import numpy as np
import polars as pl
import pytest

import dpo_pipeline.layouts.pairing as module
from command_tools import run
from dpo_pipeline import (
    BestOf,
    ColumnError,
    InvalidPairsError,
    OnInvalid,
    Pairs,
    UsageError,
    dry_run,
    evaluate,
    rank,
)
from oracle_tools import stats


def completions(n_prompts=60, seed=5, kind="score"):
    draw = random.Random(seed)
    rows = []
    for prompt in range(n_prompts):
        for place in range(draw.randint(1, 6)):
            better = draw.randint(1, 4)
            rows.append(
                {
                    "prompt_id": f"p{prompt}",
                    "completion_id": place,
                    "policy_logps": -draw.randint(2, 40) / 2,
                    "ref_logps": -draw.randint(2, 40) / 2,
                    kind: better > 2 if kind == "label" else better,
                    "subset": "ab"[prompt % 2],
                }
            )
    return pl.DataFrame(rows)


def by_prompt(frame, kind):
    for _, rows in frame.group_by("prompt_id", maintain_order=True):
        reward = (0.1 * (rows["policy_logps"] - rows["ref_logps"])).to_list()
        sign = -1 if kind == "rank" else 1
        yield reward, [sign * float(value) for value in rows[kind]]


def tau_of(reward, good):
    return stats.kendalltau(reward, good).statistic if len(reward) > 1 else float("nan")


def by_hand(frame, kind):
    """The figures by plain Python and scipy."""
    earned, right, pairs, taus, variances = [], 0, 0, [], []
    for reward, good in by_prompt(frame, kind):
        top = [g for r, g in zip(reward, good, strict=True) if r == max(reward)]
        if len(set(good)) > 1:
            earned.append(top.count(max(good)) / len(top))
        for (r, g), (q, h) in combinations(zip(reward, good, strict=True), 2):
            pairs += g != h
            right += (r - q) * (g - h) > 0
        tau = tau_of(reward, good)
        taus += [] if np.isnan(tau) else [tau]
        variances += [np.var(reward, ddof=1)] if len(reward) > 1 else []
    return {
        "top_one": np.mean(earned),
        "pair_accuracy": right / pairs,
        "kendall_tau": np.mean(taus),
        "reward_variance": np.mean(variances),
    }


@pytest.mark.parametrize("kind", ["score", "rank", "label"])
def test_figures_are_those_of_plain_python(kind):
    frame = completions(kind=kind)
    made = rank(frame)
    for name, expected in by_hand(frame, kind).items():
        assert made.figures[name].value == pytest.approx(expected, abs=1e-9), name
    assert made.by_preference == kind
    sizes = frame["prompt_id"].value_counts()["count"]
    assert (made.n_completions, made.n_prompts) == (frame.height, 60)
    assert made.n_alone == (sizes == 1).sum()


def test_the_lowest_rank_is_the_best():
    frame = pl.DataFrame(
        {"prompt_id": [1, 1], "policy_logps": [-1.0, -2.0], "ref_logps": [-2.0, -2.0]}
    )
    assert rank(frame.with_columns(rank=pl.Series([1, 2]))).figures["top_one"].value == 1.0
    assert rank(frame.with_columns(rank=pl.Series([2, 1]))).figures["top_one"].value == 0.0


def test_a_tie_with_k_gives_one_kth():
    frame = pl.DataFrame(
        {
            "prompt_id": [1, 1, 1, 2, 2],
            "policy_logps": [-1.0, -1.0, -9.0, -1.0, -2.0],
            "label": [True, False, False, True, False],
        }
    )
    made = rank(frame)
    assert made.figures["top_one"].value == 0.75
    assert made.figures["pair_accuracy"].value == pytest.approx(2 / 3)
    assert "no ref_logps" in made.notes[0]


def test_the_accuracy_is_that_of_all_pairs():
    frame = completions()
    expected = evaluate(Pairs(frame, pairing="all"), on_invalid="exclude").summary.reward_accuracy
    assert rank(frame).figures["pair_accuracy"].value == pytest.approx(expected, abs=1e-15)


def test_intervals_take_the_spread_between_prompts():
    frame = completions(kind="label")
    made = rank(frame)
    taus = [tau_of(r, g) for r, g in by_prompt(frame, "label")]
    taus = np.array([tau for tau in taus if not np.isnan(tau)])
    assert made.figures["kendall_tau"].standard_error == pytest.approx(
        taus.std(ddof=1) / len(taus) ** 0.5, abs=1e-9
    )
    assert made.figures["kendall_tau"].n_clusters == len(taus)
    accuracy, counts = made.figures["pair_accuracy"], []
    for reward, good in by_prompt(frame, "label"):
        rows = list(zip(reward, good, strict=True))
        pairs = [(a, b) for a, b in combinations(rows, 2) if a[1] != b[1]]
        counts.append((sum((a[0] - b[0]) * (a[1] - b[1]) > 0 for a, b in pairs), len(pairs)))
    counts = np.array([each for each in counts if each[1]])
    rest = counts[:, 0] - accuracy.value * counts[:, 1]
    n = len(counts)
    error = (n / (n - 1) * (rest**2).sum()) ** 0.5 / counts[:, 1].sum()
    assert accuracy.standard_error == pytest.approx(error, abs=1e-9)


def test_the_curve_is_of_the_same_prompts_at_every_point():
    frame = completions(kind="label")
    made = rank(frame, best_of=4)
    long = frame.filter(pl.len().over("prompt_id") >= 4)
    assert made.n_drawn_from == long["prompt_id"].n_unique()
    assert list(made.best_of) == [1, 2, 3, 4]
    for n, estimate in made.best_of.items():
        values = []
        for reward, good in by_prompt(long, "label"):
            drawn = []
            for some in combinations(zip(reward, good, strict=True), n):
                top = [g for r, g in some if r == max(r for r, _ in some)]
                drawn.append(sum(top) / len(top))
            values.append(np.mean(drawn))
        assert estimate.value == pytest.approx(np.mean(values), abs=1e-9)
        assert estimate.n_clusters == made.n_drawn_from


def test_without_being_asked_the_curve_goes_as_far_as_half_of_the_prompts():
    frame = completions(kind="label")
    sizes = sorted(frame["prompt_id"].value_counts()["count"].to_list(), reverse=True)
    assert max(rank(frame).best_of) == sizes[len(sizes) // 2 - 1]
    assert rank(completions(kind="rank")).best_of == {}


@pytest.mark.repeats(1)  # kinds are made ranks before
@pytest.mark.parametrize("order", ["together", "apart"])
def test_the_order_of_rows_changes_no_figure(order, monkeypatch):
    frame = completions()
    whole = rank(frame, by="subset")
    monkeypatch.setattr(module, "PAIRED_ROWS", 7)
    monkeypatch.setattr(module, "STATISTICS_ROWS", 7)
    if order == "apart":
        frame = frame.sample(fraction=1, shuffle=True, seed=1)
    made = rank(frame, by="subset")
    for name, each in whole.figures.items():
        assert made.figures[name].value == pytest.approx(each.value, abs=1e-12)
    assert made.subsets["top_one"].to_list() == pytest.approx(whole.subsets["top_one"].to_list())


def test_subsets_have_figures_of_their_own():
    frame = completions()
    made = rank(frame, by="subset").subsets
    for name in "ab":
        own = by_hand(frame.filter(subset=name), "score")
        row = made.filter(subset=name).row(0, named=True)
        for figure, expected in own.items():
            assert row[figure] == pytest.approx(expected, abs=1e-9)
            assert row[f"{figure}_low"] <= row[figure] <= row[f"{figure}_high"]
    assert made["n_prompts"].sum() == 60


def test_a_prompt_in_two_subsets_is_refused():
    frame = completions().with_columns(subset=pl.int_range(pl.len()) % 2)
    with pytest.raises(UsageError, match="has several values of 'subset'"):
        rank(frame, by="subset")


def test_invalid_completions_are_refused_or_left_out():
    frame = completions().with_columns(
        policy_logps=pl.when(pl.int_range(pl.len()) == 1).then(None).otherwise("policy_logps")
    )
    with pytest.raises(InvalidPairsError, match="policy_logps.not_null"):
        rank(frame)
    made = rank(frame, on_invalid=OnInvalid("exclude"))
    kept = frame.filter(pl.col("policy_logps").is_not_null())
    assert made.n_completions == kept.height
    assert made.invalid.n_invalid == 1
    assert made.figures["kendall_tau"].value == pytest.approx(by_hand(kept, "score")["kendall_tau"])


def test_lists_and_two_sides_are_ranked_too():
    lists = pl.DataFrame({"policy_logps": [[-1.0, -2.0], [-2.0, -1.0]], "score": [[1, 0], [1, 0]]})
    assert rank(lists).figures["top_one"].value == 0.5
    rejected = pl.DataFrame(
        {
            "policy_chosen_logps": [-1.0, -3.0],
            "policy_rejected_logps": [[-2.0, -3.0], [-1.0, -4.0]],
            "ref_chosen_logps": [-2.0, -2.0],
            "ref_rejected_logps": [[-2.0, -2.0], [-2.0, -2.0]],
        }
    )
    made = rank(rejected)
    assert (made.figures["top_one"].value, made.figures["pair_accuracy"].value) == (0.5, 0.75)
    sides = pl.DataFrame(
        {"pair_id": [0, 0], "side": ["chosen", "rejected"], "policy_logps": [-4.0, -6.0]}
    )
    assert rank(sides).figures["top_one"].value == 1.0


def test_what_cannot_be_ranked_is_refused():
    frame = completions()
    with pytest.raises(ColumnError, match="prompt_id: missing"):
        rank(frame.drop("prompt_id"))
    with pytest.raises(UsageError, match="leave pairing out"):
        rank(Pairs(frame, pairing="all"))
    with pytest.raises(UsageError, match="from 1 to 64"):
        BestOf(0)


def test_the_command_prints_and_writes_the_document(tmp_path, capsys):
    source = tmp_path / "completions.parquet"
    completions(kind="label").write_parquet(source)
    summary = tmp_path / "ranking.json"
    code, out, _ = run(capsys, "rank", source, "--by", "subset", "--summary", summary)
    assert code == 0
    assert "kendall_tau" in out
    assert "best of n, drawn without replacement" in out
    document = json.loads(summary.read_text())
    assert document["figures"]["top_one"]["value"] == rank(source).figures["top_one"].value
    code, out, _ = run(capsys, "rank", source, "--dry-run", "--best-of", "3")
    assert (code, "--best-of" in out) == (0, True)
    assert dry_run(rank, source).run().n_prompts == 60
