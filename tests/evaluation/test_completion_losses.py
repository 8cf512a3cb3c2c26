"""Sweeps, subsets, jobs and areas by prompt of losses of completions."""

from __future__ import annotations

import json
import math

import numpy as np
import polars as pl
import pytest

from command_tools import run
from completion_tools import columns, made_up, obuchowski
from dpo_pipeline import (
    Objective,
    Outputs,
    Pairs,
    StatisticsOptions,
    UsageError,
    evaluate,
    sweep,
)
from dpo_pipeline.statistics import area_difference, area_of_clusters, area_of_counts
from dpo_pipeline.sums import roll_ups


def test_the_area_of_completions_with_prompts_has_an_error_by_prompt(tmp_path):
    table = made_up(40, 3)
    table.write_parquet(tmp_path / "in.parquet", row_group_size=11)
    area, error, *_ = obuchowski(*columns(table))
    for source in (table, tmp_path / "in.parquet", table.sample(fraction=1, shuffle=True, seed=1)):
        made = evaluate(source, loss="apo_zero_unpaired")
        assert made.auc.value == pytest.approx(area, rel=1e-12)
        assert made.auc.standard_error == pytest.approx(error, rel=1e-9)
        assert (made.auc.n, made.auc.n_clusters) == (table.height, 40)
        assert made.auc.interval.method == "DeLong by prompt, logit, Student t"
    alone = evaluate(table.drop("prompt_id"), loss="apo_zero_unpaired").auc
    assert (alone.n_clusters, alone.value) == (table.height, pytest.approx(area, rel=1e-12))
    assert alone.standard_error < 0.9 * error


def test_many_prompts_are_put_into_bags(monkeypatch):
    table = made_up(300, 4)
    exact = evaluate(table, loss="apo_zero_unpaired").auc
    monkeypatch.setattr(roll_ups, "CLUSTERS_HELD", 50)
    monkeypatch.setattr(roll_ups, "BAGS", 64)
    bagged = evaluate(table, loss="apo_zero_unpaired").auc
    assert bagged.value == pytest.approx(exact.value, rel=1e-12)
    assert 50 < bagged.n_clusters <= 64
    assert bagged.standard_error == pytest.approx(exact.standard_error, rel=0.3)


def test_the_difference_of_areas_is_of_the_differences_of_places():
    one, other = made_up(30, 5), made_up(30, 5, spread=2.0)
    found = [obuchowski(*columns(each)) for each in (one, other)]
    labels, prompts = columns(one)[1:]
    up = pl.Series(np.bincount(prompts[labels], minlength=30).astype(float))
    down = pl.Series(np.bincount(prompts[~labels], minlength=30).astype(float))
    raw = [(pl.Series(x) + up * area, pl.Series(y) + down * area) for area, _, x, y in found]
    estimate, p_value = area_difference(raw[1][0] - raw[0][0], raw[1][1] - raw[0][1], up, down)
    assert estimate.value == pytest.approx(found[1][0] - found[0][0], rel=1e-12)
    # The covariance by the same definition: of x and y of one side with those of the other.
    variances = []
    for sign in (1.0, -1.0):
        x, y = found[0][2] + sign * found[1][2], found[0][3] + sign * found[1][3]
        m, n, i = up.sum(), down.sum(), 30
        i10, i01 = int((up > 0).sum()), int((down > 0).sum())
        parts = (x @ x) * i10 / (i10 - 1) / m**2, (y @ y) * i01 / (i01 - 1) / n**2
        variances.append(sum(parts) + 2 * (x @ y) * i / (i - 1) / m / n)
    covariance = (variances[0] - variances[1]) / 4
    expected = found[0][1] ** 2 + found[1][1] ** 2 - 2 * covariance
    assert estimate.standard_error == pytest.approx(math.sqrt(expected), rel=1e-9)
    assert 0.0 < p_value < 1.0
    nothing = 0.0 * up
    assert area_difference(nothing, nothing, up, down)[1] == 1.0
    assert area_of_clusters(up, nothing, up, nothing) is None


def test_statistics_give_means_with_intervals_by_prompt():
    table = made_up(40, 12)
    made = evaluate(table, loss="apo_zero_unpaired", statistics=StatisticsOptions(level=0.9))
    rewards, labels, prompts = columns(table)
    losses = 1.0 / (1.0 + np.exp(np.where(labels, 0.1, -0.1) * rewards))
    assert set(made.intervals) == {"loss", "chosen_reward", "rejected_reward", "reward_margin"}
    for name, values, which in (
        ("loss", losses, labels | ~labels),
        ("chosen_reward", 0.1 * rewards, labels),
        ("rejected_reward", 0.1 * rewards, ~labels),
    ):
        found, mean = made.intervals[name], values[which].mean()
        assert found.value == pytest.approx(mean, rel=1e-9)
        off = np.bincount(prompts[which], values[which] - mean, 40)
        error = math.sqrt((off**2).sum() * 40 / 39) / which.sum()
        # The house's error is unbiased where clusters differ in size, and a little larger.
        assert error <= found.standard_error <= 1.05 * error
        assert found.interval.level == 0.9
    margin = made.intervals["reward_margin"].value
    assert margin == pytest.approx(0.1 * (rewards[labels].mean() - rewards[~labels].mean()))
    assert made.auc.interval.level == 0.9
    assert "90% interval" in str(made)
    assert evaluate(table, loss="apo_zero_unpaired").intervals == {}
    alone = evaluate(table.drop("prompt_id"), loss="apo_zero_unpaired", statistics=True)
    assert alone.intervals["loss"].n_clusters == table.height


def test_the_report_has_the_figures(tmp_path):
    table = made_up(40, 13).with_columns(part=pl.col("completion_id") % 2)
    outputs = Outputs(report=tmp_path / "page.html")
    made = evaluate(table, loss="apo_zero_unpaired", by="part", outputs=outputs)
    page = (tmp_path / "page.html").read_text()
    for text in ("By subset", "rewards/margins", f"{made.auc.value:.4f}", "apo_zero_unpaired loss"):
        assert text in page


@pytest.mark.slow  # 2,000 samples of one distribution: repeats what the tests above compute once
def test_intervals_of_areas_cover_as_they_say():
    rng, n_prompts, runs = np.random.default_rng(6), 60, 2000
    prompts = np.repeat(np.arange(n_prompts), 4)
    # Half of the prompts have completions of one label, half of both.
    labels = np.tile([True, True, False, False], n_prompts)
    labels[: 4 * n_prompts // 2] = np.repeat(np.arange(n_prompts // 2) % 2 == 0, 4)
    up, down = (
        pl.Series(np.bincount(prompts[which], minlength=n_prompts).astype(float))
        for which in (labels, ~labels)
    )
    # A label adds one to the reward. Two rewards differ by a normal number of variance 4, and of
    # one prompt by one of variance 2.
    chances = [0.5 * (1.0 + math.erf(1.0 / math.sqrt(2.0 * v))) for v in (4.0, 2.0)]
    share = (up * down).sum() / (up.sum() * down.sum())
    truth = (1.0 - share) * chances[0] + share * chances[1]
    covered = by_completion = 0
    for _ in range(runs):
        rewards = rng.normal(size=n_prompts)[prompts] + labels + rng.normal(size=len(prompts))
        area, _, x, y = obuchowski(rewards, labels, prompts)
        made = area_of_clusters(pl.Series(x) + up * area, pl.Series(y) + down * area, up, down)
        covered += made.interval.low <= truth <= made.interval.high
        counts = (
            pl.DataFrame({"reward": rewards, "up": labels})
            .group_by("reward")
            .agg(up=pl.col("up").sum(), down=(~pl.col("up")).sum())
        )
        naive = area_of_counts(counts.sort("reward"))[0].interval
        by_completion += naive.low <= truth <= naive.high
    assert 0.94 <= covered / runs <= 0.97
    assert by_completion / runs < 0.9


def test_a_sweep_of_betas_is_that_many_evaluations(tmp_path):
    table = made_up(30, 7).with_columns(
        kl_policy_logps=pl.col("ref_logps") + pl.col("completion_id") % 5 - 1.0,
        kl_ref_logps=pl.col("ref_logps"),
        part=pl.col("completion_id") % 2,
    )
    table.write_parquet(tmp_path / "in.parquet", row_group_size=9)
    source = tmp_path / "in.parquet"
    made = sweep(source, [0.05, 0.5], loss=["kto", "apo_zero_unpaired"], batches=8, by="part")
    assert made.table.height == 4
    for objective, row in zip(made.objectives, made.table.to_dicts(), strict=True):
        alone = evaluate(source, objective.beta, loss=str(objective), batches=8, by="part")
        expected = alone.summary.to_dict()
        assert {n: expected[n] for n in row if n in expected} == {
            n: v for n, v in row.items() if n in expected
        }
        mine = made.subsets.filter(objective=str(objective), beta=objective.beta)
        assert mine["loss"].to_list() == alone.subsets["loss"].to_list()
    assert set(made.best) == {"kto", "apo_zero_unpaired"}
    assert "completions, 0 invalid" in str(made)


def test_a_kl_term_is_of_no_subset():
    table = made_up(20, 8).with_columns(
        kl_policy_logps=-3.0, kl_ref_logps=-4.0, part=pl.col("completion_id") % 2
    )
    made = evaluate(table, loss="kto", batches=4, by="part")
    assert (made.summary.kl, made.subsets["kl"].null_count()) == (1.0, 2)


def test_a_listwise_loss_by_subset_is_that_of_each_subset():
    table = made_up(30, 9).with_columns(kind=pl.col("prompt_id") % 3).drop("label")
    table = table.with_columns(score=pl.col("completion_id") % 7)
    made = evaluate(table, loss="infonca", by="kind").subsets
    for row in made.to_dicts():
        alone = evaluate(table.filter(kind=row["kind"]), loss="infonca").summary
        assert (row["n_prompts"], row["loss"]) == (alone.n_prompts, alone.loss)
    with pytest.raises(UsageError, match="prompt 0 has several values of 'completion_id'"):
        evaluate(table, loss="infonca", by="completion_id")


def test_jobs_take_unpaired_losses_and_refuse_what_they_would_cut(tmp_path, capsys):
    table = made_up(20, 10).with_columns(score=1.0)
    source, job = tmp_path / "in.parquet", tmp_path / "job"
    table.write_parquet(source, row_group_size=10)
    command = ("job", "split", "evaluate", source, "--shards", "2", "--to", job)
    for more, words in (
        (("--pairing", "all"), "--pairing all`), and give it those"),
        (("--loss", "nca"), "an engine may cut"),
    ):
        code, _, err = run(capsys, *command, *more)
        assert (code, words in " ".join(err.split())) == (2, True)
    assert run(capsys, *command, "--loss", "apo_zero_unpaired")[0] == 0
    for shard in "01":
        assert run(capsys, "job", "run", job, shard)[0] == 0
    merged = json.loads(run(capsys, "job", "merge", job, "--json")[1])
    alone = evaluate(source, loss="apo_zero_unpaired").to_dict()
    assert merged == json.loads(json.dumps(alone))


def test_pairing_is_not_of_engines(tmp_path):
    made_up(5, 11).write_parquet(tmp_path / "in.parquet")
    with pytest.raises(UsageError, match="convert IN OUT.parquet --pairing best-rest"):
        evaluate(Pairs(tmp_path / "in.parquet", pairing="best-rest"), execution="ray")
    loss = Objective("kto", arguments={"kl": 0.0})
    assert "kto" in str(evaluate(tmp_path / "in.parquet", loss=loss))
