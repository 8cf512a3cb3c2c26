"""The gathered tables against plain Python."""

from __future__ import annotations

import math
import struct
from collections import Counter, defaultdict

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from dpo_pipeline import DataWarning, Outputs, Pairs, StatisticsOptions, evaluate
from dpo_pipeline.evaluation import gathering, measuring
from dpo_pipeline.evaluation.gathering import GROUP
from dpo_pipeline.sums import CLUSTER, cells
from gather_tools import (
    BETA,
    bin_number,
    coarse,
    frame_of,
    gathered_of,
    middle_of_coarse,
    quanta,
    scored,
    splitmix,
)
from pair_tools import LOGPS

pytestmark = pytest.mark.usefixtures("tables_alone")


def test_clusters_hold_the_sums_of_their_prompts(rows, gathered):
    assert gathered.is_by_prompt
    assert gathered.is_exact
    expected = defaultdict(Counter)
    for row in scored(rows):
        (pc, pr, rc, rr), (chosen, rejected) = (row[name] for name in LOGPS), row["ratios"]
        m, longer = row["margin"], row["longer"]
        expected[row["subset"], row["cluster"]].update(
            n_valid=1,
            n_correct=m > 0,
            n_ties=m == 0,
            n_chosen_down=chosen < 0,
            n_rejected_down=rejected < 0,
            n_both_down=chosen < 0 and rejected < 0,
            n_policy_prefers=pc > pr,
            n_reference_prefers=rc > rr,
            n_both_prefer=pc > pr and rc > rr,
            n_sized=longer is not None,
            n_longer=longer is not None and longer > 0,
            n_shorter=longer is not None and longer < 0,
            n_correct_sized=longer is not None and m > 0,
            **{f"sum_{name}": quanta(row[name]) for name in LOGPS},
            sum_loss=quanta(row["loss"]),
            sum_log_loss=quanta(row["loss"]),
            sum_brier=quanta((1 / (1 + math.exp(m))) ** 2),
        )
    found = {
        (row["subset"], row[CLUSTER]): row
        for row in gathered.clusters.filter(pl.col("n_valid") > 0).to_dicts()
    }
    assert found.keys() == expected.keys()
    assert len(expected) > 150
    for key, sums in expected.items():
        for name, value in sums.items():
            # exp and log1p of two libraries may differ in the last bit.
            slack = sums["n_valid"] if name in {"sum_loss", "sum_log_loss", "sum_brier"} else 0
            assert abs(found[key][name] - value) <= slack, (key, name)
    assert gathered.n_clusters == len({cluster for _, cluster in expected})


def test_many_prompts_are_put_into_bags(rows, gathered, monkeypatch):
    monkeypatch.setattr(gathering, "CLUSTERS_HELD", 50)
    for module in (gathering, cells):
        monkeypatch.setattr(module, "BAGS", 64)
    bagged = gathered_of(frame_of(rows))
    assert not bagged.is_exact
    assert bagged.n_clusters is None
    expected = (
        gathered.clusters.with_columns(pl.col(CLUSTER) % 64)
        .group_by("subset", CLUSTER)
        .agg(pl.all().sum())
    )
    assert_frame_equal(bagged.clusters, expected, check_row_order=False)
    assert 50 < bagged.clusters[CLUSTER].n_unique() <= 64


def test_prompts_are_bagged_only_beyond_the_limit(rows, gathered, monkeypatch):
    n_clusters = gathered.clusters[CLUSTER].n_unique()
    monkeypatch.setattr(gathering, "CLUSTERS_HELD", n_clusters)
    assert gathered_of(frame_of(rows)).is_exact
    monkeypatch.setattr(gathering, "CLUSTERS_HELD", n_clusters - 1)
    assert not gathered_of(frame_of(rows)).is_exact


def test_pairs_without_prompts_are_clusters_by_themselves(rows):
    pairs = frame_of(rows).drop("prompt_id")
    gathered = gathered_of(pairs)
    assert not gathered.is_by_prompt
    expected = {splitmix(row["row"]) for row in scored(rows)}
    valid = gathered.clusters.filter(pl.col("n_valid") > 0)
    assert set(valid[CLUSTER]) == expected
    assert valid["n_valid"].to_list() == [1] * len(expected)
    assert gathered.n_clusters == len(expected)


def test_prompts_of_any_type_make_the_same_clusters(rows):
    rows = rows[:150]
    numbers = [
        None if row["prompt_id"] is None else int(row["prompt_id"].split()[1]) for row in rows
    ]
    frame = frame_of(rows)
    found = {}
    for dtype in (pl.Int16, pl.Int64, pl.String, pl.Categorical):
        keys = pl.Series("prompt_id", numbers).cast(pl.String) if dtype in {
            pl.String, pl.Categorical
        } else pl.Series("prompt_id", numbers)  # fmt: skip
        found[str(dtype)] = gathered_of(frame.with_columns(keys.cast(dtype))).clusters
    assert_frame_equal(found["Int16"], found["Int64"])
    assert_frame_equal(found["String"], found["Categorical"])
    sizes = [sorted(table["n_valid"]) for table in found.values()]
    assert sizes[0] == sizes[2]


def test_groups_hold_the_sums_of_the_line_and_of_precision(rows, gathered):
    expected = defaultdict(Counter)
    for row in scored(rows):
        difference = abs(row["ratios"][0] - row["ratios"][1])
        largest = max(abs(row[name]) for name in LOGPS)
        sums = Counter(n_valid=1)
        for name, bits in (("bf16", 8), ("f16", 11), ("f32", 24)):
            sums[f"n_below_{name}"] = difference < largest * 2.0**-bits
            for model in ("policy", "ref"):
                sums[f"n_{model}_{name}"] = all(
                    kept_by(name, row[f"{model}_{side}_logps"]) for side in ("chosen", "rejected")
                )
        if row["longer"] is not None:
            x, y = float(row["longer"]), row["margin"]
            sums.update(n_sized=1, sum_x=quanta(x), sum_y=quanta(y))
            sums.update(sum_xx=quanta(x * x), sum_xy=quanta(x * y), sum_yy=quanta(y * y))
        expected[row["cluster"] % 64].update(sums)
    found = {row.pop(GROUP): row for row in gathered.groups.to_dicts()}
    assert found.keys() == expected.keys()
    for group, sums in expected.items():
        assert found[group] == dict(sums), group
    assert sum(sums["n_policy_f32"] for sums in expected.values()) > 100


def kept_by(name, value):
    """Whether a number format keeps a value, by casts of numpy and of bits."""
    if name == "f32":
        return float(np.float32(value)) == value
    if name == "f16":
        return float(np.float16(value)) == value
    bits = struct.unpack("<I", struct.pack("<f", value))[0]
    image = struct.unpack("<f", struct.pack("<I", bits & 0xFFFF0000))[0]
    return image == value


@pytest.mark.parametrize("name", ["bf16", "f16", "f32"])
def test_representable_numbers_are_counted_as_casts_say(name):
    rng = np.random.default_rng(3)
    bits = {"bf16": 8, "f16": 11, "f32": 24}[name]
    values = -rng.uniform(1, 4000, size=400)
    exponents = np.floor(np.log2(-values)) + 1 - bits
    on_grid = np.round(values / 2**exponents) * 2**exponents
    values = np.where(np.arange(400) % 3 == 0, values, on_grid)
    # The next number of the format, and one a quarter of a step away.
    values[1::30] = values[1::30] - 2.0 ** exponents[1::30] / 4
    frame = pl.DataFrame({name: np.roll(values, i) for i, name in enumerate(LOGPS)})
    gathered = evaluate(frame, statistics=True).statistics.gathered
    kept = np.array([kept_by(name, float(value)) for value in values])
    expected = int(np.sum(kept & np.roll(kept, 1)))
    assert 200 < kept.sum() < 300
    assert expected > 50
    assert gathered.groups[f"n_policy_{name}"].sum() == expected
    assert gathered.groups[f"n_ref_{name}"].sum() == expected


def test_margins_rewards_and_lengths_are_binned(rows, gathered):
    margins, rewards, lengths = Counter(), Counter(), defaultdict(Counter)
    for row in scored(rows):
        margins[row["cluster"] % 64, bin_number(row["margin"])] += 1
        rewards[tuple(map(coarse, row["rewards"]))] += 1
        if row["longer"] is not None:
            lengths[coarse(row["longer"])].update(
                n_pairs=1, n_correct=row["margin"] > 0, sum_reward_margin=quanta(row["margin"])
            )
    assert {row[:2]: row[2] for row in gathered.margins.rows()} == margins
    assert {row[:2]: row[2] for row in gathered.rewards.rows()} == rewards
    found = {row.pop("length_bin"): row for row in gathered.lengths.to_dicts()}
    assert found == {key: dict(sums) for key, sums in lengths.items()}


@pytest.mark.repeats(3)  # sizes: the smallest, the largest and one between
@pytest.mark.parametrize(("points", "size"), [(125, 2), (150, 1), (149, 2), (10, 16), (1, 256)])
def test_the_course_is_of_runs_of_rows(rows, monkeypatch, points, size):
    monkeypatch.setattr(gathering, "COURSE_POINTS", points)
    monkeypatch.setattr(measuring, "GATHERED_ROWS", 70)
    rows = rows[:150]
    gathered = gathered_of(frame_of(rows))
    assert gathered.rows_per_point == size
    expected = defaultdict(Counter)
    for row in scored(rows):
        expected[row["row"] // size * size].update(
            n_pairs=1,
            n_correct=row["margin"] > 0,
            sum_reward_margin=quanta(row["margin"]),
            sum_loss=quanta(row["loss"]),
        )
    found = {row.pop("first_row"): row for row in gathered.course.to_dicts()}
    assert list(found) == sorted(expected)
    for first, sums in expected.items():
        assert abs(found[first].pop("sum_loss") - sums.pop("sum_loss")) <= sums["n_pairs"]
        assert found[first] == dict(sums)


def test_the_lowest_margins_are_listed(rows, gathered):
    lowest = sorted(scored(rows), key=lambda row: (row["margin"], row["row"]))[:20]
    assert gathered.lowest["row"].to_list() == [row["row"] for row in lowest]
    assert gathered.lowest["pair_id"].to_list() == [row["pair_id"] for row in lowest]
    assert gathered.lowest["reward_margin"].to_list() == [row["margin"] for row in lowest]
    for i, name in enumerate(("chosen_reward", "rejected_reward")):
        assert gathered.lowest[name].to_list() == [row["rewards"][i] for row in lowest]


# In one piece there is nothing to find again.
@pytest.mark.parametrize("step", [pytest.param(10_000, marks=pytest.mark.slow), 70])
def test_of_files_ids_of_the_listed_pairs_are_those_of_their_rows(
    rows, gathered, monkeypatch, tmp_path, step
):
    monkeypatch.setattr(measuring, "GATHERED_ROWS", step)
    found = frame_of(rows).with_columns(pl.lit("a").alias("aside")).rename({"pair_id": "key"})
    found[:333].write_parquet(tmp_path / "0.parquet")
    found[333:].write_parquet(tmp_path / "1.parquet")
    columns, outputs = {"pair_id": "key"}, Outputs(show=("aside",))
    options = {"statistics": True, "on_invalid": "exclude", "outputs": outputs}
    result = evaluate(Pairs(tmp_path, columns=columns), BETA, **options)
    lowest = result.statistics.gathered.lowest
    assert lowest.columns[-2] == "pair_id"
    assert lowest["pair_id"].to_list() == gathered.lowest["pair_id"].to_list()
    options["outputs"] = Outputs(worst=0)
    none = evaluate(Pairs(tmp_path, columns=columns), BETA, **options).statistics.gathered.lowest
    assert none.schema == {name: lowest.schema[name] for name in lowest.columns[:-1]}


def test_of_equal_margins_the_earlier_row_is_listed(monkeypatch):
    monkeypatch.setattr(measuring, "GATHERED_ROWS", 7)
    frame = pl.DataFrame({name: [-13.0 - i] * 90 for i, name in enumerate(LOGPS)})
    with pytest.warns(DataWarning, match="constant"):
        gathered = evaluate(frame, statistics=True).statistics.gathered
    assert gathered.lowest["row"].to_list() == list(range(20))


def test_repeats_are_copies_of_earlier_pairs(rows, gathered):
    keys = Counter(tuple(row[name] for name in LOGPS) for row in scored(rows))
    n = keys.total()
    assert gathered.repeats_seen == n
    assert gathered.repeats == pytest.approx((n - len(keys)) / n, rel=1e-12)
    assert 0.02 < gathered.repeats < 0.1


def test_many_pairs_are_thinned_by_their_hash_to_find_copies(monkeypatch):
    monkeypatch.setattr(gathering, "REPEATS_HELD", 1000)
    rng = np.random.default_rng(1)
    once = pl.DataFrame({name: -rng.uniform(1, 300, 10_000) for name in LOGPS})
    gathered = evaluate(pl.concat([once, once[:5_000]]), statistics=True).statistics.gathered
    assert 500 < gathered.repeats_seen <= 1500
    # A third of the pairs; the standard error of a share of some 1,000 is about 0.015.
    assert gathered.repeats == pytest.approx(1 / 3, abs=0.06)


def test_pairs_of_few_digits_are_told_apart():
    # Whole numbers, as bf16 has them: 30,000 pairs, no two alike.
    i = pl.int_range(30_000, eager=True)
    frame = pl.DataFrame(
        {
            "policy_chosen_logps": -(1.0 + i % 32),
            "policy_rejected_logps": -(1.0 + i // 32 % 32),
            "ref_chosen_logps": -(1.0 + i // 1024 % 32),
            "ref_rejected_logps": -(1.0 + i % 7),
        }
    )
    gathered = evaluate(frame, statistics=True).statistics.gathered
    assert gathered.repeats_seen == 30_000
    assert gathered.repeats == 0.0


def test_the_judges_gaps_are_counted(rows, gathered):
    cells = Counter()
    for row in scored(rows):
        if row["judge"] is not None and math.isfinite(row["judge"]):
            cells[row["cluster"] % 64, row["judge"], coarse(row["margin"])] += 1
    assert {row[:3]: row[3] for row in gathered.judged.rows()} == cells


def test_two_scores_of_a_judge_are_subtracted(rows, gathered):
    frame = frame_of(rows).with_columns(better=pl.col("judge") + 1.0, worse=pl.lit(1, pl.Int8))
    judge = StatisticsOptions(judge=("better", "worse"))
    result = evaluate(frame, beta=BETA, statistics=judge, on_invalid="exclude")
    assert_frame_equal(result.statistics.gathered.judged, gathered.judged)


def test_too_many_gaps_of_a_judge_are_binned(rows, monkeypatch):
    monkeypatch.setattr(gathering, "JUDGE_CELLS", 100)
    monkeypatch.setattr(measuring, "GATHERED_ROWS", 50)
    gathered = gathered_of(frame_of(rows))
    cells = Counter()
    for row in scored(rows):
        if row["judge"] is not None and math.isfinite(row["judge"]):
            middle = middle_of_coarse(coarse(row["judge"]))
            cells[row["cluster"] % 64, round(middle, 9), coarse(row["margin"])] += 1
    found = {(g, round(gap, 9), b): n for g, gap, b, n in gathered.judged.rows()}
    assert found == cells


def test_invalid_pairs_are_in_no_table(rows):
    frame = frame_of(rows)
    bad = pl.col("policy_chosen_logps")
    alone = frame.filter(bad <= 0)
    assert 0 < frame.height - alone.height < 30
    first, second = gathered_of(frame), gathered_of(alone)
    assert (
        first.clusters["n_pairs"] - first.clusters["n_valid"]
    ).sum() == frame.height - alone.height
    assert_frame_equal(first.rewards, second.rewards)
    assert_frame_equal(first.lengths, second.lengths)
    # Groups of pairs without a prompt follow the row.
    assert first.margins["n_pairs"].sum() == second.margins["n_pairs"].sum() == alone.height
    assert first.lowest["pair_id"].to_list() == second.lowest["pair_id"].to_list()
    assert first.repeats == second.repeats
    assert first.course["n_pairs"].sum() == alone.height


def test_without_lengths_reference_or_judge_there_are_no_such_tables(rows):
    frame = frame_of(rows).select("policy_chosen_logps", "policy_rejected_logps")
    result = evaluate(frame, loss="cpo", statistics=True, on_invalid="exclude")
    gathered = result.statistics.gathered
    has = (gathered.has_lengths, gathered.has_reference, gathered.is_by_prompt)
    assert has == (False, False, False)
    assert gathered.lengths.is_empty()
    assert gathered.judged is None
    assert "pair_id" not in gathered.lowest.columns
    assert set(result.statistics.baselines) == {"policy"}
    assert result.statistics.displacement == {}
    assert result.statistics.flips is None


def test_margins_whose_squares_do_not_fit_are_left_out_of_the_line():
    frame = pl.DataFrame(
        {
            "policy_chosen_logps": [-1.0, -2.0, -3.0, -4e6],
            "policy_rejected_logps": [-5.0, -1.0, -9.0, -1.0],
            "ref_chosen_logps": [-2.0, -2.5, -4.0, -2.0],
            "ref_rejected_logps": [-5.0, -3.0, -9.5, -1.0],
            "chosen_num_tokens": [3, 5, 9, 2],
            "rejected_num_tokens": [4, 4, 4, 4],
        }
    )
    large = evaluate(frame, beta=1e6, statistics=True).statistics
    small = evaluate(frame[:3], beta=1e6, statistics=True).statistics
    assert large.length == small.length
    assert large.length.slope.n == 3
