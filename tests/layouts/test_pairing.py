"""Pairs made of completions: which ones, of one prompt each, and what is said of the others."""

from __future__ import annotations

import random
from itertools import combinations, pairwise

import polars as pl
import pytest

import dpo_pipeline.layouts.pairing as module
from dpo_pipeline import (
    ColumnError,
    Outputs,
    Pairs,
    Reference,
    UsageError,
    check,
    compare,
    convert,
    dry_run,
    evaluate,
    score,
    score_parquet,
    sweep,
)
from dpo_pipeline.defaults import PAIRINGS
from dpo_pipeline.sources import KEY

LOGPS = ("policy_chosen_logps", "policy_rejected_logps", "ref_chosen_logps", "ref_rejected_logps")


def completions(n_prompts=40, seed=3, kind="score"):
    """Return prompts of 1 to 6 completions, with ties of the preference."""
    draw = random.Random(seed)
    rows = []
    for prompt in range(n_prompts):
        for place in range(draw.randint(1, 6)):
            better = draw.randint(1, 4)
            if kind == "label":
                better = better > 2
            logps = {f"{model}_logps": -draw.uniform(1, 90) for model in ("policy", "ref")}
            ids = {"prompt_id": f"p{prompt}", "completion_id": place}
            rows.append(ids | logps | {kind: better, "subset": "ab"[prompt % 2], "num_tokens": 3})
    return pl.DataFrame(rows)


def good(row, kind):
    return -row[kind] if kind == "rank" else row[kind]


def by_hand(frame, pairing, kind):
    """Return the ids of the pairs, and the ties, by plain Python."""
    made, ties = set(), 0
    for (prompt,), some in frame.group_by("prompt_id", maintain_order=True):
        rows = sorted(some.to_dicts(), key=lambda row: -good(row, kind))
        if pairing == "all":
            asked = combinations(rows, 2)
        elif pairing == "best-worst":
            asked = [(rows[0], rows[-1])] if len(rows) > 1 else []
        elif pairing == "best-rest":
            asked = [(rows[0], other) for other in rows[1:]]
        else:
            asked = pairwise(rows)
        for one, other in asked:
            if good(one, kind) == good(other, kind):
                ties += 1
            else:
                made.add(f"{prompt} {one['completion_id']} > {other['completion_id']}")
    return made, ties


def pairs_of(source, pairing, tmp_path, **given):
    path = tmp_path / "made.parquet"
    convert(Pairs(source, pairing=pairing, **given), path, outputs=Outputs(overwrite=True))
    return pl.read_parquet(path)


@pytest.mark.repeats  # each pairing with one kind of judgement
@pytest.mark.parametrize("kind", ["score", "rank", "label"])
@pytest.mark.parametrize("pairing", PAIRINGS)
def test_pairs_are_those_of_plain_python(pairing, kind, tmp_path):
    frame = completions(kind=kind)
    expected, ties = by_hand(frame, pairing, kind)
    made = pairs_of(frame, pairing, tmp_path)
    assert set(made["pair_id"]) == expected
    assert made.height == len(expected)
    (said,) = evaluate(Pairs(frame, pairing=pairing)).invalid.made
    assert said.startswith(f"{len(expected)} pairs ({pairing}) of {frame.height} completions of 40")
    assert f"{ties} ties of {kind}, of which no pair was made" in said


def test_the_best_is_that_of_the_lowest_rank(tmp_path):
    frame = completions(1, seed=8).head(2).with_columns(rank=pl.Series([2, 1])).drop("score")
    made = pairs_of(frame, "all", tmp_path)
    assert made.select("chosen_rank", "rejected_rank").row(0) == (1, 2)


@pytest.mark.repeats  # pieces and orders, each with the other once
@pytest.mark.parametrize("rows", [3, 10_000], ids=["small pieces", "one piece"])
@pytest.mark.parametrize("order", ["together", "apart"])
def test_no_pair_crosses_prompts_however_rows_stand(order, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PAIRED_ROWS", rows)
    monkeypatch.setattr(module, "STATISTICS_ROWS", rows)
    frame = completions()
    if order == "apart":
        frame = frame.sort("completion_id", maintain_order=True)
    source = tmp_path / "completions.parquet"
    frame.write_parquet(source, row_group_size=rows)
    with pl.Config(streaming_chunk_size=rows):
        made = pairs_of(source, "all", tmp_path)
    expected, _ = by_hand(frame, "all", "score")
    assert set(made["pair_id"]) == expected
    prompts = dict(frame.select("policy_logps", "prompt_id").iter_rows())
    for chosen, rejected, prompt in made.select(*LOGPS[:2], "prompt_id").iter_rows():
        assert prompts[chosen] == prompts[rejected] == prompt


def test_a_prompt_that_goes_on_in_the_next_batch_stays_whole():
    frame = completions().rename({"prompt_id": KEY})

    class Batches:
        def _batches(self, *_):
            return (frame.slice(first, 4) for first in range(0, frame.height, 4))

    pieces = list(module.Together._in_order(Batches(), []))  # noqa: SLF001  its batches are given
    assert pl.concat(pieces).equals(frame)
    seen = [prompt for piece in pieces for prompt in piece[KEY].unique()]
    assert len(pieces) > 1
    assert len(seen) == len(set(seen)) == frame[KEY].n_unique()


def test_figures_are_means_over_the_pairs_and_prompts_are_clusters(tmp_path):
    frame = completions()
    made = pairs_of(frame, "all", tmp_path)
    there, here = (evaluate(each, by="subset") for each in (Pairs(frame, pairing="all"), made))
    assert there.summary == here.summary
    assert there.subsets.equals(here.subsets)
    assert there.intervals == here.intervals
    accuracy = (made[LOGPS[0]] - made[LOGPS[2]] > made[LOGPS[1]] - made[LOGPS[3]]).mean()
    assert there.summary.reward_accuracy == pytest.approx(accuracy, abs=1e-12)
    assert there.accuracy.n_clusters == made["prompt_id"].n_unique()


def test_every_call_takes_them(tmp_path):
    frame = completions(kind="label")
    pairs = Pairs(frame, pairing="best-rest")
    expected = evaluate(pairs_of(frame, "best-rest", tmp_path)).summary
    assert score(pairs).collect().height == expected.n_pairs
    assert score_parquet(pairs, tmp_path / "scored.parquet").summary == expected
    assert check(pairs).n_pairs == expected.n_pairs
    assert sweep(pairs, [0.1]).table["loss"].item() == expected.loss
    better = frame.with_columns(pl.when("label").then(-0.5).otherwise(-95.0).alias("policy_logps"))
    with pytest.warns(match="pairs"):
        compared = compare(pairs, Pairs(better, pairing="best-rest"))
    assert compared.n_common == expected.n_pairs
    assert compared.b.summary.reward_accuracy > compared.a.summary.reward_accuracy


def test_two_sides_in_two_rows_are_pairs_without_being_asked():
    frame = pl.DataFrame(
        {
            "pair_id": [0, 0, 1, 1],
            "side": ["chosen", "rejected", "rejected", "chosen"],
            "policy_logps": [-40.0, -60.0, -30.0, -80.0],
            "ref_logps": [-50.0, -50.0, -40.0, -40.0],
        }
    )
    made = evaluate(frame)
    assert (made.summary.n_pairs, made.summary.reward_accuracy) == (2, 0.5)
    assert made.summary.reward_margin == pytest.approx(0.1 * (20.0 - 50.0) / 2, abs=1e-12)
    assert check(frame).row == "completion"


def test_tokens_and_masks_become_those_of_sides():
    frame = pl.DataFrame(
        {
            "prompt_id": [1, 1],
            "label": [0, 1],
            "policy_token_logps": [[-1.0, -2.0], [-3.0]],
            "ref_token_logps": [[-1.5, -2.0], [-3.5]],
            "token_mask": [[True, False], [True]],
        }
    )
    rows = score(Pairs(frame, pairing="all")).collect()
    assert rows.select("chosen_logratio", "rejected_logratio").row(0) == (0.5, 0.5)
    assert rows.select("chosen_num_tokens", "rejected_num_tokens").row(0) == (1, 1)


def test_texts_and_scores_stand_beside_the_pairs(tmp_path):
    frame = completions(1, seed=4).with_columns(response=pl.col("completion_id").cast(pl.String))
    made = pairs_of(frame, "best-worst", tmp_path)
    assert made["chosen"].item() == str(made["chosen_completion_id"].item())
    assert made["rejected"].item() == str(made["rejected_completion_id"].item())
    assert made["chosen_score"].item() > made["rejected_score"].item()


def test_rows_without_a_prompt_or_a_preference_are_counted():
    frame = completions(2).with_columns(
        score=pl.when(pl.int_range(pl.len()) == 0).then(None).otherwise("score")
    )
    frame = pl.concat([frame, frame.tail(1).with_columns(prompt_id=pl.lit(None, pl.String))])
    (said,) = evaluate(Pairs(frame, pairing="all")).invalid.made
    assert said.endswith("2 completions without a prompt or a score")


def test_an_invalid_completion_makes_its_pairs_invalid():
    frame = completions(9, seed=4).with_columns(
        policy_logps=pl.when(pl.int_range(pl.len()) == 0)
        .then(float("nan"))
        .otherwise("policy_logps")
    )
    report = check(Pairs(frame, pairing="best-rest"))
    expected, _ = by_hand(frame, "best-rest", "score")
    of_first = [name for name in expected if name.startswith("p0 ") and "0" in name.split()[1:]]
    assert report.n_invalid == len(of_first) > 0


def test_a_reference_is_joined_before_pairs_are_made():
    frame = completions().with_columns(completion_id=pl.int_range(pl.len()))
    whole = evaluate(Pairs(frame, pairing="all")).summary
    reference = frame.select("completion_id", "ref_logps").sample(fraction=1, shuffle=True, seed=1)
    alone = Pairs(frame.drop("ref_logps"), pairing="all")
    assert evaluate(alone, reference=reference).summary == whole
    mapped = reference.rename({"ref_logps": "r", "completion_id": "c"})
    alone = Pairs(frame.drop("ref_logps").with_columns(c="completion_id"), pairing="all")
    given = Reference(mapped, on="c", columns={"ref_logps": "r"})
    assert evaluate(alone, reference=given).summary == whole


def test_columns_can_be_mapped():
    frame = completions()
    names = {"policy_logps": "p", "prompt_id": "q", "score": "s"}
    pairs = Pairs(frame.rename(names), columns=names, pairing="adjacent")
    assert evaluate(pairs).summary == evaluate(Pairs(frame, pairing="adjacent")).summary


def test_what_cannot_be_paired_is_refused():
    frame = completions()
    with pytest.raises(ColumnError, match="prompt_id: missing"):
        evaluate(Pairs(frame.drop("prompt_id"), pairing="all"))
    with pytest.raises(ColumnError, match="one says which completion is better"):
        evaluate(Pairs(frame.drop("score"), pairing="all"))
    with pytest.raises(UsageError, match="--pairing all"):
        evaluate(frame)
    pairs = pl.DataFrame({name: [-1.0] for name in LOGPS})
    with pytest.raises(UsageError, match="these are pairs already"):
        evaluate(Pairs(pairs, pairing="all"))
    with pytest.raises(UsageError, match="pairing must be one of all, best-worst"):
        Pairs(frame, pairing="best")


def test_a_dry_run_names_the_pairing():
    plan = dry_run(evaluate, Pairs(completions(), pairing="best-rest"))
    assert "--pairing" in str(plan)
    assert plan.to_dict()["options"]["--pairing"] == "best-rest"
    assert plan.run().summary.n_pairs > 0


def test_a_prompt_of_many_completions_is_paired_piece_by_piece(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "STATISTICS_ROWS", 16)
    frame = completions(1, seed=4).head(1)
    frame = pl.concat([frame] * 30).with_columns(
        completion_id=pl.int_range(pl.len()), score=pl.int_range(pl.len()) % 7
    )
    expected, ties = by_hand(frame, "all", "score")
    assert set(pairs_of(frame, "all", tmp_path)["pair_id"]) == expected
    assert len(expected) + ties == 30 * 29 // 2
