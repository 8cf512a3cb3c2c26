"""The intervals that every evaluation has, against scipy, numpy and plain Python."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import polars as pl
import pytest

from dpo_pipeline import StatisticsOptions, evaluate, score_parquet
from dpo_pipeline.errors import GateError
from dpo_pipeline.evaluation import measuring, shards
from dpo_pipeline.evaluation.gating import gate
from dpo_pipeline.statistics import rate_of, rate_of_clusters
from dpo_pipeline.sums import VALID, moments, of_bits, roll_ups, square_sums
from gather_tools import BETA, frame_of, made_up, scored
from oracle_tools import stats
from pair_tools import LOGPS

MEANS = ("loss", "chosen_reward", "rejected_reward", "reward_margin")


def pairs_of(n, *, seed=3, size=1.0):
    rng = np.random.default_rng(seed)
    return pl.DataFrame({name: -rng.gamma(4.0, 5.0 * size, n) for name in LOGPS})


def scores_of(frame, beta=0.1):
    pc, pr, rc, rr = (frame[name].to_numpy() for name in LOGPS)
    chosen, rejected = beta * (pc - rc), beta * (pr - rr)
    margin = chosen - rejected
    loss = np.logaddexp(0.0, -margin)
    return dict(zip(MEANS, (loss, chosen, rejected, margin), strict=True))


@pytest.mark.parametrize("size", [1.0, 1e4], ids=["near", "wide"])
def test_means_have_students_interval(size):
    frame = pairs_of(400, size=size)
    found = evaluate(frame).intervals
    assert found.level == 0.95
    assert found.clusters == "400 pairs, taken as independent"
    assert set(found.figures) == {"reward_accuracy", *MEANS}
    for name, values in scores_of(frame).items():
        expected = stats.t.interval(0.95, 399, np.mean(values), stats.sem(values))
        interval = found.figures[name].interval
        assert (interval.low, interval.high) == pytest.approx(expected, rel=1e-7)
        assert interval.method == "Student t"
        assert found.figures[name].n == 400


def test_the_accuracy_has_wilsons_interval():
    frame = pairs_of(900)
    right = int((scores_of(frame)["reward_margin"] > 0).sum())
    expected = stats.binomtest(right, 900).proportion_ci(method="wilson")
    interval = evaluate(frame).intervals.figures["reward_accuracy"].interval
    assert (interval.low, interval.high) == pytest.approx(tuple(expected), rel=1e-12)


def test_invalid_pairs_are_left_out():
    frame = pairs_of(300)
    bad = frame.with_columns(pl.lit(5.0).alias(LOGPS[0]))
    both = evaluate(pl.concat([bad[:50], frame, bad[50:]]), on_invalid="exclude")
    assert both.summary.n_invalid == 300
    assert both.intervals == evaluate(frame).intervals


@pytest.mark.parametrize("n", [1, 2])
def test_few_pairs(n):
    found = evaluate(pairs_of(n)).intervals
    assert "reward_accuracy" in found.figures
    assert ("loss" in found.figures) == (n > 1)


def test_means_that_do_not_vary_have_no_interval():
    frame = pl.DataFrame({name: [-10.0 - i] * 100 for i, name in enumerate(LOGPS)})
    with pytest.warns(match="constant"):
        found = evaluate(frame).intervals
    assert set(found.figures) == {"reward_accuracy"}


def test_squares_beyond_the_sums_give_no_interval():
    frame = pairs_of(50)
    for beta in (1e9, 1e12):
        found = evaluate(frame, beta=beta).intervals
        assert set(found.figures) == {"reward_accuracy"}


def cuts(frame, folder):
    for i, (start, stop) in enumerate(itertools.pairwise([0, 1, 77, 78, 150, 240])):
        frame[start:stop].write_parquet(folder / f"{i}.parquet", row_group_size=31 + i)
    frame.write_parquet(folder.parent / "whole.parquet", row_group_size=50)
    return folder, folder.parent / "whole.parquet", frame, frame.lazy()


@pytest.mark.repeats(1)  # prompts, with and without bags, are cut in `test_gathered_bits`
@pytest.mark.parametrize(
    ("alone", "held"),
    [
        pytest.param(True, 30, id="pairs"),
        pytest.param(False, 30, id="prompts in bags"),
        pytest.param(False, 20_000, id="prompts"),
    ],
)
def test_any_cut_gives_the_same_bits(tmp_path, monkeypatch, alone, held):
    for module in (roll_ups, shards):
        monkeypatch.setattr(module, "CLUSTERS_HELD", held)
    monkeypatch.setattr(roll_ups, "BAGS", 16)
    frame = frame_of(made_up(240)).drop("prompt_id" if alone else "judge")
    if alone:  # wide squares in one part only
        frame = frame.with_columns(
            pl.when(pl.int_range(pl.len()) == 160).then(-1e6).otherwise(LOGPS[1]).alias(LOGPS[1])
        )
    (tmp_path / "parts").mkdir()
    sources = cuts(frame, tmp_path / "parts")
    whole = evaluate(frame, BETA, on_invalid="exclude").intervals
    assert len(whole.figures) == (5 if alone else 1)
    monkeypatch.setattr(measuring, "GATHERED_ROWS", 70)
    monkeypatch.setattr(shards, "STATISTICS_ROWS", 70)
    monkeypatch.setattr(measuring, "SHARD_ROWS", 130)
    keyed = ({}, {"by": "subset"}, {"batches": 7}, {})
    for source, options in zip(sources, keyed, strict=True):
        assert evaluate(source, BETA, on_invalid="exclude", **options).intervals == whole


def counted(rows):
    """Valid and correct pairs by cluster; a pair without a prompt is one."""
    counts, right = Counter(), Counter()
    for row in scored(rows):
        counts[row["cluster"]] += 1
        right[row["cluster"]] += row["margin"] > 0
    return counts, right


@pytest.mark.repeats(2)  # `test_gathering` has clusters of each type
@pytest.mark.parametrize("kind", ["text", "whole", "category", "bytes"])
def test_pairs_of_one_prompt_are_one_sample(kind):
    rows = made_up()
    counts, right = counted(rows)
    frame = frame_of(rows)
    prompt = pl.col("prompt_id")
    to = {
        "text": prompt,
        "whole": prompt.str.split(" ").list.last().cast(pl.Int32),
        "category": prompt.cast(pl.Categorical),
        "bytes": prompt.cast(pl.Binary),
    }
    found = evaluate(frame.with_columns(to[kind]), BETA, on_invalid="exclude").intervals
    expected = rate_of_clusters([right[key] for key in counts], list(counts.values()))
    assert found.clusters == f"{len(counts):,} prompts, taken as independent"
    estimate = found.figures["reward_accuracy"]
    assert estimate.n_clusters == len(counts) < estimate.n
    assert estimate.interval.low == pytest.approx(expected.interval.low, rel=1e-12)
    assert estimate.interval.high == pytest.approx(expected.interval.high, rel=1e-12)
    assert estimate.interval.method.endswith("clustered")
    independent = rate_of(sum(right.values()), sum(counts.values()))
    assert estimate.interval != independent.interval


def test_many_prompts_are_put_into_bags(monkeypatch):
    monkeypatch.setattr(roll_ups, "CLUSTERS_HELD", 50)
    monkeypatch.setattr(roll_ups, "BAGS", 64)
    rows = made_up()
    counts, right = counted(rows)
    bags, right_bags = Counter(), Counter()
    for key, n in counts.items():
        bags[key % 64] += n
        right_bags[key % 64] += right[key]
    found = evaluate(frame_of(rows), BETA, on_invalid="exclude").intervals
    expected = rate_of_clusters([right_bags[key] for key in bags], list(bags.values()))
    interval = found.figures["reward_accuracy"].interval
    assert interval.low == pytest.approx(expected.interval.low, rel=1e-12)
    assert "bags of prompts" in found.clusters


@pytest.mark.parametrize("kind", ["few at first", "many at first", "many, but of invalid pairs"])
def test_clusters_are_counted_whatever_comes_first(monkeypatch, kind):
    """Whether prompts are many is told by all valid pairs, and not by what was read ahead."""
    for module in (roll_ups, shards):
        monkeypatch.setattr(module, "CLUSTERS_HELD", 100)
    monkeypatch.setattr(shards, "PROMPTS_AHEAD", 200)
    frame = pairs_of(400)
    if kind == "few at first":
        keys = [i % 2 for i in range(300)] + list(range(1000, 1100))
    else:
        keys = [i if i < 101 else i % 2 for i in range(400)]
    frame = frame.with_columns(prompt_id=pl.Series(keys))
    if kind == "many, but of invalid pairs":
        invalid = pl.int_range(400).is_in([50, 51])
        bad = pl.when(~invalid).then("policy_chosen_logps").alias("policy_chosen_logps")
        frame = frame.with_columns(bad)
    monkeypatch.setattr(shards, "SUMMED_CHUNK_ROWS", 10)  # so that it is looked ahead
    found = evaluate(frame, BETA, on_invalid="exclude").intervals
    is_many = kind != "many, but of invalid pairs"
    assert ("bags of prompts" in found.clusters) == is_many
    if not is_many:
        assert found.clusters == "99 prompts, taken as independent"


def test_pairs_without_a_prompt_stay_apart_in_all_shards(tmp_path, monkeypatch):
    frame = pairs_of(40).with_columns(
        prompt_id=pl.when(pl.int_range(40) % 10 != 3).then(pl.int_range(40) % 5)
    )
    frame.write_parquet(tmp_path / "pairs.parquet")
    monkeypatch.setattr(measuring, "SHARD_ROWS", 40)  # of pairs with prompts a quarter
    monkeypatch.setattr(shards, "NEIGHBOURS_ROWS", 0)
    found = evaluate(tmp_path / "pairs.parquet").intervals
    assert found.clusters == "9 prompts, taken as independent"  # 5, and 4 pairs by themselves


def test_prompts_with_one_pair_each_are_pairs():
    frame = pairs_of(250).with_columns(prompt_id=pl.int_range(250))
    found = evaluate(frame).intervals
    alone = evaluate(frame.drop("prompt_id")).intervals
    assert found.figures["reward_accuracy"] == alone.figures["reward_accuracy"]
    assert found.clusters == "250 prompts, taken as independent"


@pytest.mark.repeats(1)  # both are estimates of one function
@pytest.mark.parametrize("by_prompt", [True, False])
def test_statistics_give_the_same_intervals(by_prompt):
    frame = frame_of(made_up(240))
    frame = frame if by_prompt else frame.drop("prompt_id")
    plain = evaluate(frame, BETA, on_invalid="exclude").intervals
    full = evaluate(frame, BETA, on_invalid="exclude", statistics=True)
    assert full.intervals.clusters == plain.clusters
    for name, estimate in plain.figures.items():
        assert full.intervals.figures[name] == estimate
        assert full.statistics.figures[name] == estimate
    assert set(full.intervals.figures) == {"reward_accuracy", *MEANS}
    wider = StatisticsOptions(level=0.99)
    assert evaluate(frame, BETA, on_invalid="exclude", statistics=wider).intervals.level == 0.99


def test_the_document_has_them():
    result = evaluate(pairs_of(200))
    found = json.loads(result.to_json())["intervals"]
    assert found["level"] == 0.95
    loss = found["figures"]["loss"]
    assert loss["interval"]["low"] < loss["value"] < loss["interval"]["high"]
    assert loss["value"] == result.summary.loss


def test_a_gate_can_ask_for_them():
    result = evaluate(pairs_of(19))  # too few for doubts about their texts
    value, limits = result.figure("reward_accuracy")
    gate(result, under={"reward_accuracy": value - 1e-9})
    with pytest.raises(GateError):
        gate(result, under={"reward_accuracy": value - 1e-9}, by_interval=True)
    gate(result, under={"reward_accuracy": limits[0] - 1e-9}, by_interval=True)


@pytest.mark.repeats(1)  # frames are scored as files are
@pytest.mark.parametrize("is_file", [True, False])
def test_scoring_says_what_evaluating_says(tmp_path, is_file):
    # 12 of 20 prompts have all of their 20 pairs right: 20 samples, and not 400.
    rng = np.random.default_rng(5)
    right = np.repeat(np.arange(20) < 12, 20)
    chosen, rejected = -rng.gamma(4.0, 9.0, 400), -rng.gamma(4.0, 9.0, 400)
    gain = np.where(right, 1.0, -1.0) * rng.uniform(0.5, 1.0, 400)
    scores = (chosen - 5.0 + gain, rejected - 5.0, chosen, rejected)
    frame = pl.DataFrame(dict(zip(LOGPS, scores, strict=True))).with_columns(
        prompt_id=pl.int_range(400) // 20
    )
    source = tmp_path / "in.parquet" if is_file else frame
    if is_file:
        frame.write_parquet(source)
    result = score_parquet(source, tmp_path / "out.parquet")
    assert (result.summary.reward_accuracy, result.better_than_chance) == (0.6, None)
    expected = rate_of_clusters([20] * 12 + [0] * 8, [20] * 20).interval
    interval = result.accuracy.interval
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), rel=1e-12)
    wilson = stats.binomtest(12, 20).proportion_ci(method="wilson")  # of 20 coins
    assert (expected.low, expected.high) == pytest.approx(tuple(wilson), abs=0.04)
    evaluated = evaluate(source)
    assert result.verdict == evaluated.verdict
    assert result.intervals == evaluated.intervals
    assert "in 20 prompts, taken as independent" in result.verdict
    # Without prompts they are 400 coins, and both say so.
    alone = score_parquet(frame.drop("prompt_id"), tmp_path / "alone.parquet")
    assert alone.better_than_chance is True
    assert alone.verdict == evaluate(frame.drop("prompt_id")).verdict


def test_an_empty_column_of_intervals_says_where_they_are():
    frame = pairs_of(19).with_columns(prompt_id=pl.int_range(19) // 2)
    said = "Pairs have a `prompt_id`: `evaluate --statistics` gives the other intervals."
    assert said in str(evaluate(frame)).splitlines()
    assert said not in str(evaluate(frame, statistics=True))
    assert "--statistics" not in str(evaluate(frame.drop("prompt_id")))


def test_a_square_is_counted_in_quanta():
    # By whole numbers: half to even to 2**-32 below 2**19, towards 0 beyond.
    values = [0.0, -1.5, 3e-6, 2.0**-16.5, 700.0, math.pi, -723.9]
    wide = [*values, 400.25, 724.5, -1e5 / 3, 2.0**30 + 0.3]
    many = values * 4_000  # beyond 2**64 quanta
    for numbers, is_wide in ((values, False), (many, False), (many, True), (wide, True)):
        # The largest is of the loss and both rewards.
        others = numbers if is_wide else [0.0] * len(numbers)
        columns = dict.fromkeys(MEANS, others) | {"reward_margin": numbers}
        frame = pl.DataFrame(columns).with_columns(pl.lit(value=True).alias(VALID))
        squares = [Fraction(x * x) * 2**32 for x in numbers]
        whole = [round(x) if x < 2**51 else math.floor(x) for x in squares]
        count = pl.len().cast(pl.Int64).alias("n_valid")
        plan = moments.with_squares(frame.lazy()).select(
            count, *square_sums(is_wide=is_wide, is_whole=True)
        )
        made = plan.collect() if is_wide else of_bits(plan.collect())
        sums = made.row(0, named=True)
        assert sums["square_reward_margin"] == sum(whole)
        assert sums["max_square"] == pytest.approx(3 * max(x * x for x in others))
