"""`evaluate` with losses of completions: against TRL's own figures, by hand, in any shards."""

from __future__ import annotations

import json
import math

import polars as pl
import pytest

from command_tools import run
from dpo_pipeline import (
    Batches,
    GateError,
    InvalidPairsError,
    Objective,
    StatisticsOptions,
    UsageError,
    dry_run,
    evaluate,
    gate,
    score,
    sweep,
)
from dpo_pipeline.evaluation import shards
from dpo_pipeline.statistics import area_of_counts
from pair_tools import DATA

N = 6
RATIOS, LABELS = [1.0, -2.0, 4.0, 0.5, -1.0, 3.0], [True, False, True, False, True, False]
MISMATCHED = [6.0, 0.0, 0.0, -3.0, 1.0, -1.0]
"""Log-ratios by hand; of the mismatched completions in batches of three the means are 2 and -1."""


@pytest.fixture
def completions():
    return pl.DataFrame(
        {
            "completion_id": [*"abcdef"],
            "split": ["x", "x", "y", "y", "x", "y"],
            "policy_logps": [-10.0 + h for h in RATIOS],
            "ref_logps": [-10.0] * N,
            "label": LABELS,
            "kl_policy_logps": [-20.0 + h for h in MISMATCHED],
            "kl_ref_logps": [-20.0] * N,
        }
    )


def sigma(x):
    return 1.0 / (1.0 + math.exp(-x))


def kto(h, label, kl, beta=0.1):
    return 1.0 - sigma(beta * (h - kl) * (1 if label else -1))


def mean_kto(rows):
    """The mean loss of rows by their number, in batches of three with KL terms 2 and 0."""
    return math.fsum(kto(RATIOS[i], LABELS[i], 2.0 if i < 3 else 0.0) for i in rows) / len(rows)


def test_figures_are_those_that_trl_logged():
    """`tests/models/test_kto_figures.py` recorded the run: train batches of 3, evaluation of 4."""
    recorded = json.loads((DATA / "trl_kto.json").read_text())
    loss = Objective("kto", arguments=recorded["arguments"], dialect="trl")
    table = pl.DataFrame(recorded["completions"])
    ours = evaluate(table, recorded["beta"], loss=loss, batches=recorded["batch_size"])
    theirs = recorded["figures"]
    assert theirs["eval_kl"] > 0.0
    assert set(ours.to_metrics("eval_")) == set(theirs)
    assert ours.to_metrics("eval_") == pytest.approx(theirs, rel=2e-6, abs=2e-6)


def test_figures_by_hand(completions, tmp_path):
    path = tmp_path / "completions.parquet"
    completions.write_parquet(path)
    for source in (completions, path):
        made = evaluate(source, loss="kto", batches=3)
        s = made.summary
        assert (s.n_completions, s.n_valid, s.n_chosen, s.n_rejected) == (6, 6, 3, 3)
        assert s.loss == pytest.approx(mean_kto(range(N)), rel=1e-12)
        assert s.kl == 1.0
        assert s.chosen_reward == pytest.approx(0.1 * 4 / 3, rel=1e-12)
        assert s.rejected_reward == pytest.approx(0.1 * 0.5, rel=1e-12)
        assert s.reward_margin == pytest.approx(0.1 * (4 / 3 - 0.5), rel=1e-12)
        assert (s.policy_rejected_logps, s.ref_chosen_logps) == (-9.5, -10.0)
        # Of nine pairs a desirable one is above in six: 1 and 4 above -2 and 0.5, 4 above 3, -1.
        assert (made.auc.value, made.auc_error) == (pytest.approx(6 / 9), 0.0)
        assert made.to_metrics() == {
            "loss": s.loss,
            "kl": s.kl,
            "rewards/chosen": s.chosen_reward,
            "rewards/rejected": s.rejected_reward,
            "rewards/margins": s.reward_margin,
            "logps/chosen": s.policy_chosen_logps,
            "logps/rejected": s.policy_rejected_logps,
        }


def test_subsets_share_the_batches(completions):
    made = evaluate(completions, loss="kto", batches=3, by="split")
    for name, rows in (("x", [0, 1, 4]), ("y", [2, 3, 5])):
        found = made.subsets.row(by_predicate=pl.col("split") == name, named=True)
        assert found["loss"] == pytest.approx(mean_kto(rows), rel=1e-12)
        assert found["n_chosen"] == sum(LABELS[i] for i in rows)


@pytest.mark.parametrize("rows", [12, pytest.param(3, marks=pytest.mark.slow)])  # more cuts
def test_shards_change_no_bit(completions, tmp_path, monkeypatch, rows):
    path = tmp_path / "completions.parquet"
    many = pl.concat([completions] * 8).with_columns(completion_id=pl.int_range(48))
    many.write_parquet(path, row_group_size=20)
    whole = evaluate(path, loss="kto", batches=3)
    monkeypatch.setattr(shards, "COUPLED_SHARD_ROWS", rows)
    assert evaluate(path, loss="kto", batches=3).summary == whole.summary
    assert evaluate(path, loss="kto", batches=3).auc == whole.auc


def test_an_invalid_completion_has_no_part_in_a_kl_term(completions):
    odd = completions.with_columns(
        policy_logps=pl.Series([math.nan, *completions["policy_logps"][1:]])
    )
    with pytest.raises(InvalidPairsError, match="policy_logps"):
        evaluate(odd, loss="kto", batches=3)
    made = evaluate(odd, loss="kto", batches=3, on_invalid="exclude")
    # Without the first, the mismatched log-ratios of its batch are 0 and 0.
    assert (made.summary.n_invalid, made.summary.kl) == (1, 0.0)
    expected = [kto(RATIOS[i], LABELS[i], 0.0) for i in range(1, N)]
    assert made.summary.loss == pytest.approx(math.fsum(expected) / 5, rel=1e-12)
    for column in ("label", "kl_policy_logps"):
        broken = completions.with_columns(pl.Series(column, [None, *completions[column][1:]]))
        with pytest.raises(InvalidPairsError, match=f"{column}"):
            evaluate(broken, loss="kto", batches=3)


def test_a_given_kl_and_apo(completions):
    bare = completions.drop("kl_policy_logps", "kl_ref_logps")
    given = evaluate(bare, loss=Objective("kto", arguments={"kl": 0.5})).summary
    expected = [kto(h, label, 0.5) for h, label in zip(RATIOS, LABELS, strict=True)]
    assert given.loss == pytest.approx(math.fsum(expected) / N, rel=1e-12)
    assert given.kl == 0.5
    apo = evaluate(bare, loss="apo_zero_unpaired").summary
    assert apo.kl is None
    assert apo.loss == pytest.approx(
        math.fsum(kto(h, label, 0.0) for h, label in zip(RATIOS, LABELS, strict=True)) / N
    )


def delong(up, down):
    """DeLong's area and standard error, from the placement of each observation."""

    def above(x, y):
        return (x > y) + (x == y) / 2

    v10 = [sum(above(x, y) for y in down) / len(down) for x in up]
    v01 = [sum(above(x, y) for x in up) / len(up) for y in down]
    area = sum(v10) / len(up)
    spread = [sum((v - area) ** 2 for v in vs) / (len(vs) - 1) / len(vs) for vs in (v10, v01)]
    return area, math.sqrt(sum(spread))


def test_the_area_and_its_interval_are_delongs():
    up, down = [3, 1, 4, 1, 5, 9], [2, 6, 1, 1, 3]
    values = sorted({*up, *down})
    counts = pl.DataFrame(
        {"up": [up.count(v) for v in values], "down": [down.count(v) for v in values]}
    )
    found, tied = area_of_counts(counts, 0.9)
    area, error = delong(up, down)
    assert (found.value, found.standard_error) == (pytest.approx(area), pytest.approx(error))
    half = 1.6448536269514722 * error / (area * (1 - area))
    assert found.interval.low == pytest.approx(sigma(math.log(area / (1 - area)) - half))
    assert found.interval.high == pytest.approx(sigma(math.log(area / (1 - area)) + half))
    # Ones: two up, two down; threes: one of each.
    assert tied == pytest.approx((4 + 1) / 30 / 2)
    assert area_of_counts(counts.with_columns(down=0)) is None


def test_the_area_of_close_rewards_is_within_its_error(completions):
    close = completions.with_columns(
        policy_logps=-10.0 + pl.Series([1.0, 1.00001, 2.0, 2.00001, 3.0, -1.0])
    )
    made = evaluate(close, loss="apo_zero_unpaired")
    rewards = (close["policy_logps"] - close["ref_logps"]).to_list()
    up, down = (
        [r for r, label in zip(rewards, LABELS, strict=True) if label is x] for x in (True, False)
    )
    assert made.auc_error > 0.0
    assert abs(made.auc.value - delong(up, down)[0]) <= made.auc_error + 1e-12


@pytest.fixture
def ranked():
    """Three prompts of two, three and two completions, in another order than their ranks."""
    return pl.DataFrame(
        {
            "prompt_id": [1, 2, 3, 1, 2, 2, 3],
            "rank": [2, 1, 1, 1, 3, 2, 1],
            "policy_logps": [-12.0, -9.0, -5.0, -8.0, -9.5, -7.0, -6.0],
            "ref_logps": [-10.0] * 7,
        }
    )


def test_the_loss_of_a_listwise_loss_is_a_mean_over_prompts(ranked, tmp_path):
    first = math.log1p(math.exp(-0.1 * 4.0))  # the rewards of prompt 1 are 0.2 and -0.2
    rewards = [0.1, 0.3, 0.05]  # of prompt 2, by rank
    second = sum(
        math.log(sum(math.exp(r - rewards[k]) for r in rewards[k:])) for k in range(len(rewards))
    )
    ranked.write_parquet(tmp_path / "ranked.parquet")
    for source in (ranked, tmp_path / "ranked.parquet"):
        made = evaluate(source, loss="plackett_luce").summary
        # Prompt 3 has tied ranks: no loss, counted.
        assert (made.n_prompts, made.n_prompts_without_loss) == (2, 1)
        assert made.loss == pytest.approx((first + second) / 2, rel=1e-12)
    terms = score(ranked, loss="plackett_luce").collect()
    assert terms.filter(pl.col("prompt_id") == 3)["loss"].to_list() == [None, None]


def test_a_prompt_with_an_invalid_completion_has_no_listwise_loss(ranked):
    odd = ranked.with_columns(
        policy_logps=pl.Series([-12.0, math.nan, *ranked["policy_logps"][2:]])
    )
    made = evaluate(odd, loss="infonca", on_invalid="exclude").summary
    assert (made.n_invalid, made.n_prompts, made.n_prompts_without_loss) == (1, 2, 1)
    alone = evaluate(ranked.filter(pl.col("prompt_id") != 2), loss="infonca").summary
    assert made.loss == pytest.approx(alone.loss, rel=1e-12)


def test_the_command_prints_and_gates(completions, tmp_path, capsys):
    path = tmp_path / "completions.parquet"
    completions.write_parquet(path)
    asked = ("evaluate", path, "--loss", "kto", "--batch-size", "3")
    code, out, _ = run(capsys, *asked)
    assert code == 0
    assert "6 completions, 0 invalid, kto loss, beta 0.1" in out
    assert [line.split()[0] for line in out.splitlines() if line.startswith(("kl", "auc"))] == [
        "kl",
        "auc",
    ]
    document = json.loads(run(capsys, *asked, "--json")[1])
    assert document["metrics"]["kl"] == 1.0
    assert document["auc"]["value"] == pytest.approx(2 / 3)
    assert "kto" in run(capsys, *asked, "--dry-run")[1]
    made = evaluate(path, loss="kto", batches=3)
    gate(made, under={"auc": 0.6}, over={"loss": 0.6})
    with pytest.raises(GateError, match="kl"):
        gate(made, over={"kl": 0.5})


def test_what_has_no_part_in_it_is_refused(completions, ranked, tmp_path):
    unpaired = Objective("kto", arguments={"kl": 0.0})
    with pytest.raises(UsageError, match="this loss of completions has no"):
        evaluate(completions, loss=unpaired, batches=Batches(3, file=tmp_path / "means.parquet"))
    with pytest.raises(UsageError, match="takes the level of StatisticsOptions"):
        evaluate(completions, loss=unpaired, statistics=StatisticsOptions(judge=("a", "b")))
    with pytest.raises(UsageError, match="a listwise loss has no statistics and no report"):
        evaluate(ranked, loss="nca", statistics=True)
    with pytest.raises(UsageError, match="prompt 1 has several values of 'rank'"):
        evaluate(ranked, loss="nca", by="rank")
    with pytest.raises(UsageError, match="needs to know which completion is better: rank, score"):
        evaluate(ranked.drop("rank"), loss="nca")
    with pytest.raises(UsageError, match="kto is of completions and sigmoid of pairs"):
        sweep(completions, loss=["kto", "sigmoid"], batches=3)
    with pytest.raises(UsageError, match="nca is of all completions of a prompt, and is not swept"):
        sweep(ranked, loss="nca")
    with pytest.raises(UsageError, match="an engine may cut"):
        evaluate(ranked, loss="nca", execution="ray")
    assert "policy_logps" in str(dry_run(evaluate, completions, loss=unpaired))
