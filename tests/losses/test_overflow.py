"""Losses and rewards that are not finite: invalid pairs, named as such."""

from __future__ import annotations

import itertools
import math

import polars as pl
import pytest

from dpo_pipeline import InvalidPairsError, Objective, evaluate, score, score_parquet
from dpo_pipeline.losses import LOSSES, CheckedObjective, with_scores
from option_tools import grouped
from pair_tools import LOGPS, REFS


def bound(loss, weight=1.0):
    return CheckedObjective.of({loss: weight}, beta=0.7).largest_score(-30.0, -1.0)


BOUNDED = [name for name, row in LOSSES.items() if not row.is_of_batches and bound(name) < math.inf]


def by_rule(error):
    return {r.name: [(o.row, o.value) for o in r.offenders] for r in error.value.report.broken}


def test_a_loss_that_overflows_is_an_invalid_pair(counted):
    # Margins 0.1, -0.2, 0, 0.5, 1, -1, and one of -2000, where exp(-m) sigma(m/3) is exp(1333).
    odd = pl.concat([counted, counted.head(1).with_columns(pl.lit(-20_021.0).alias(LOGPS[0]))])
    call = {"loss": "discopop", "loss_args": {"tau": 3.0}}
    assert score(odd, **grouped(**call)).collect()["loss"][6] == math.inf
    with pytest.raises(InvalidPairsError) as caught:
        evaluate(odd, **grouped(**call))
    assert by_rule(caught) == {"loss.in_range": [(6, math.inf)]}
    left = evaluate(odd, **grouped(on_invalid="exclude", **call))
    assert (left.summary.n_valid, left.summary.n_invalid) == (6, 1)
    assert left.summary.loss == evaluate(counted, **grouped(**call)).summary.loss
    # The same pair has a loss by the default temperature, and by the DPO loss.
    assert evaluate(odd, loss="discopop").summary.n_valid == 7
    assert evaluate(odd).summary.n_valid == 7


def test_a_reward_that_overflows_is_an_invalid_pair(counted):
    # 1 - exp(800) is beyond Float64. With the chosen one the margin falls with it, and the loss;
    # with the rejected one the margin is inf and the loss 0; with both the margin is NaN.
    fallen = pl.lit(-801.0)
    rows = [
        counted.head(1).with_columns(
            *(fallen.alias(name) for name in names), *(pl.lit(-1.0).alias(n) for n in REFS)
        )
        for names in ([LOGPS[0]], [LOGPS[1]], LOGPS[:2])
    ]
    call = {"loss_args": {"f_divergence": "forward_kl"}}
    odd = pl.concat([counted.head(5), *rows])
    with pytest.raises(InvalidPairsError) as caught:
        evaluate(odd, **grouped(**call))
    found = by_rule(caught)
    assert found["chosen_reward.in_range"] == [(5, -math.inf), (7, -math.inf)]
    assert found["rejected_reward.in_range"] == [(6, -math.inf), (7, -math.inf)]
    assert [row for row, _ in found["loss.in_range"]] == [5, 7]
    assert len(found) == 3
    left = evaluate(odd, **grouped(on_invalid="exclude", **call)).summary
    assert (left.n_valid, left.n_invalid) == (5, 3)
    sound = evaluate(counted.head(5), **grouped(**call)).summary
    assert (left.loss, left.reward_margin) == (sound.loss, sound.reward_margin)
    assert (left.chosen_reward, left.reward_accuracy) == (
        sound.chosen_reward,
        sound.reward_accuracy,
    )


@pytest.mark.parametrize("on_invalid", ["exclude", "quarantine"])
def test_such_pairs_do_not_reach_the_scored_file(counted, tmp_path, on_invalid):
    odd = counted.with_columns(
        pl.when(pl.col("pair_id") == "c").then(-20_021.0).otherwise(LOGPS[0]).alias(LOGPS[0])
    )
    odd.write_parquet(tmp_path / "odd.parquet")
    result = score_parquet(
        *(tmp_path / "odd.parquet", tmp_path / "s.parquet"),
        loss=Objective("discopop", arguments={"tau": 3.0}),
        on_invalid=on_invalid,
    )
    assert [(r.name, r.count) for r in result.invalid.broken] == [("loss.in_range", 1)]
    scored = pl.read_parquet(tmp_path / "s.parquet")
    assert scored["pair_id"].to_list() == ["a", "b", "d", "e", "f"]
    assert scored["loss"].is_finite().all()
    if on_invalid == "quarantine":
        apart = pl.read_parquet(tmp_path / "s.invalid.parquet")
        assert apart.select("pair_id", "broken_rules").rows() == [("c", ["loss.in_range"])]


def test_an_unsound_log_prob_is_named_and_not_the_loss_that_follows(counted):
    odd = counted.with_columns(pl.Series(LOGPS[0], [None, math.nan, -math.inf, -50, -60, -70]))
    with pytest.raises(InvalidPairsError) as caught:
        evaluate(odd, loss="ipo")
    assert set(by_rule(caught)) == {
        *(f"{LOGPS[0]}.{rule}" for rule in ("not_null", "not_nan", "finite")),
    }


@pytest.mark.repeats  # each loss and each weight
@pytest.mark.parametrize("weight", [1.0, 0.01, 3.0])
@pytest.mark.parametrize("loss", BOUNDED)
def test_no_score_exceeds_what_the_ends_of_log_probs_tell(loss, weight):
    objective = CheckedObjective.of({loss: weight}, beta=0.7)
    largest = bound(loss, weight)
    rows = list(itertools.product([-30.0, -12.5, -1.0], repeat=4))
    pairs = pl.DataFrame(rows, schema=LOGPS, orient="row").with_columns(
        preference_probability=pl.lit(0.2),
        chosen_num_tokens=pl.lit(1),
        rejected_num_tokens=pl.lit(40),
    )
    scored = with_scores(pairs.lazy(), objective).collect()
    for name in ("loss", "reward_margin", "chosen_reward", "rejected_reward"):
        assert scored[name].abs().max() <= largest
