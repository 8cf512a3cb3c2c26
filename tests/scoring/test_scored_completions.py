"""Completions scored into Parquet and Arrow tables, for losses of one row and of a prompt."""

from __future__ import annotations

import math

import polars as pl
import pytest

from dpo_pipeline import (
    Objective,
    OnInvalid,
    Scored,
    UsageError,
    arrow_stage,
    evaluate,
    score,
    score_parquet,
)
from dpo_pipeline.evaluation import shards
from dpo_pipeline.unpaired import CompletionEvaluation

RATIOS = [1.0, -2.0, 4.0, 0.5, -1.0, 3.0, 2.5, -0.5]
LABELS = [True, False] * 4
N = len(RATIOS)
KL = [0.25, 0.25, 0.25, 0.5, 0.5, 0.5, 0.0, 0.0]
"""The term of each batch of three: the mean of the mismatched log-ratios, at least 0."""
MISMATCHED = [1.5, -1.0, 0.25, 0.5, 0.5, 0.5, -3.0, 1.0]


@pytest.fixture
def completions():
    return pl.DataFrame(
        {
            "prompt_id": [1, 2, 3, 1, 2, 3, 1, 2],
            "completion_id": list(range(N)),
            "rank": [1, 2, 1, 3, 1, 2, 2, 3],
            "policy_logps": [-10.0 + h for h in RATIOS],
            "ref_logps": [-10.0] * N,
            "label": LABELS,
            "kl_policy_logps": [-20.0 + h for h in MISMATCHED],
            "kl_ref_logps": [-20.0] * N,
        }
    )


def kto(i, kl):
    sign = 1.0 if LABELS[i] else -1.0
    return 1.0 / (1.0 + math.exp(0.1 * sign * (RATIOS[i] - kl)))


@pytest.mark.repeats(1)  # losses have their tests
@pytest.mark.parametrize("rows", [3, 100])
def test_each_completion_has_its_reward_and_loss(completions, tmp_path, monkeypatch, rows):
    monkeypatch.setattr(shards, "COUPLED_SHARD_ROWS", rows)
    source, sink = tmp_path / "in.parquet", tmp_path / "out.parquet"
    completions.write_parquet(source, row_group_size=2)
    made = score_parquet(source, sink, loss="kto", batches=3, scored=["completion_id"])
    out = pl.read_parquet(sink)
    assert out.columns == ["completion_id", "logratio", "reward", "kl", "loss"]
    assert out["kl"].to_list() == KL
    assert out["reward"].to_list() == pytest.approx([0.1 * h for h in RATIOS], rel=1e-15)
    assert out["loss"].to_list() == pytest.approx([kto(i, KL[i]) for i in range(N)], rel=1e-14)
    assert isinstance(made, CompletionEvaluation)
    assert made.summary == evaluate(source, loss="kto", batches=3).summary


def test_a_folder_gives_a_folder(completions, tmp_path):
    (tmp_path / "in").mkdir()
    completions[:5].write_parquet(tmp_path / "in" / "a.parquet")
    completions[5:].write_parquet(tmp_path / "in" / "b.parquet")
    loss = Objective("kto", arguments={"kl": 0.5})
    made = score_parquet(tmp_path / "in", tmp_path / "out", loss=loss)
    out = pl.read_parquet(tmp_path / "out" / "*.parquet")
    assert out["loss"].to_list() == pytest.approx([kto(i, 0.5) for i in range(N)], rel=1e-14)
    assert made.summary.loss == pytest.approx(out["loss"].mean(), rel=1e-12)
    assert (tmp_path / "out" / "_SUCCESS").exists()


def test_invalid_completions_are_put_apart_with_their_rows(completions, tmp_path):
    odd = completions.with_columns(label=pl.when(pl.col("completion_id") != 3).then("label"))
    made = score_parquet(
        odd, tmp_path / "out.parquet", loss="apo_zero_unpaired", on_invalid=OnInvalid("quarantine")
    )
    assert (made.summary.n_valid, pl.read_parquet(tmp_path / "out.parquet").height) == (7, 7)
    apart = pl.read_parquet(tmp_path / "out.invalid.parquet")
    assert apart.select("completion_id", "source_row").rows() == [(3, 3)]
    assert apart["broken_rules"].to_list() == [["label.not_null"]]


def listwise(rewards):
    """Plackett-Luce by hand, the best first."""
    return sum(math.log(sum(math.exp(r - rewards[k]) for r in rewards[k:])) for k in range(3))


def test_terms_of_a_listwise_loss_add_up_to_that_of_each_prompt(completions, tmp_path):
    sink = tmp_path / "out.parquet"
    made = score_parquet(completions, sink, loss="plackett_luce")
    out = pl.read_parquet(sink)
    assert sorted(out["completion_id"]) == list(range(N))
    of_prompt = dict(out.group_by("prompt_id").agg(pl.col("loss").sum()).rows())
    assert of_prompt[1] == pytest.approx(listwise([0.1, 0.25, 0.05]), rel=1e-12)
    assert of_prompt[2] == pytest.approx(listwise([-0.1, -0.2, -0.05]), rel=1e-12)
    assert made.summary.loss == pytest.approx(sum(of_prompt.values()) / 3, rel=1e-12)
    in_memory = score(completions, loss="plackett_luce").collect().sort("completion_id")
    assert out.sort("completion_id")["loss"].to_list() == in_memory["loss"].to_list()


@pytest.mark.parametrize("logp", [math.nan, 5.0])
def test_a_prompt_with_an_invalid_completion_keeps_the_others_without_a_loss(
    completions, tmp_path, logp
):
    odd = completions.with_columns(
        policy_logps=pl.when(pl.col("completion_id") == 6).then(logp).otherwise("policy_logps")
    )
    sink = tmp_path / "out.parquet"
    made = score_parquet(odd, sink, loss="infonca", on_invalid="quarantine")
    out = pl.read_parquet(sink).filter(pl.col("loss").is_null())
    assert (sorted(out["completion_id"]), made.summary.n_prompts_without_loss) == ([0, 3], 1)
    assert pl.read_parquet(tmp_path / "out.invalid.parquet")["source_row"].to_list() == [6]


def test_listwise_losses_need_one_file(completions, tmp_path):
    source = tmp_path / "in.parquet"
    completions.write_parquet(source, row_group_size=2)
    with pytest.raises(UsageError, match=r"several files: write one first .*convert"):
        score_parquet(source, tmp_path / "out", loss="nca", scored=Scored(part_rows=2))


def test_an_arrow_stage_scores_completions(completions):
    made = arrow_stage(loss="apo_zero_unpaired")(completions.to_arrow())
    assert made["loss"].to_pylist() == pytest.approx([kto(i, 0.0) for i in range(N)], rel=1e-14)
    for loss in ("kto", "nca"):
        with pytest.raises(UsageError, match="an engine cuts tables where it likes"):
            arrow_stage(loss=loss)
