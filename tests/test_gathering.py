"""The gathered tables against plain Python, and the same bits however the rows are cut."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import struct
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import fields

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from conftest import LOGPS
from dpo_pipeline import DataWarning, StatisticsOptions, evaluate
from dpo_pipeline.errors import UsageError
from dpo_pipeline.evaluation import gathering, measuring
from dpo_pipeline.evaluation.gathering import GROUP
from dpo_pipeline.statistics.hashing import hashed, mixed
from dpo_pipeline.sums import CLUSTER, growing_tables

WORD = 2**64
BETA = 0.1
N = 600
SUMMED = ("loss", *LOGPS)


def splitmix(state):
    """SplitMix64's next output (Steele, Lea, Flood), with whole numbers."""
    z = (state + 0x9E3779B97F4A7C15) % WORD
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % WORD
    return z ^ (z >> 31)


def hash_of(key):
    if isinstance(key, int):
        return splitmix(key % WORD)
    data = key.encode()
    state = splitmix(len(data))
    for start in range(0, len(data), 8):
        word = int.from_bytes(data[start : start + 8].ljust(8, b"\0"), "little")
        state = splitmix(state ^ word)
    return state


def quanta(value):
    return math.floor(value * 2.0**40 + math.nextafter(0.5, 0.0))


def made_up(n=N, seed=5):
    """Pairs with prompts, subsets, lengths, a judge, copies and faults, as rows."""
    rng = random.Random(seed)
    rows = []
    for i in range(n):
        lengths = [rng.randint(1, 60), rng.randint(1, 60)]
        logps = [-rng.uniform(1, 300) for _ in LOGPS]
        if i % 4 == 0:
            logps = [float(np.float32(x)) for x in logps]
        row = {
            "pair_id": f"p{i}",
            "prompt_id": None if rng.random() < 0.1 else f"prompt {rng.randint(0, 90)}",
            "subset": rng.choice(["a", "b", None]),
            "chosen_num_tokens": None if rng.random() < 0.1 else lengths[0],
            "rejected_num_tokens": lengths[1],
            "judge": rng.choice([-2.0, -0.5, 0.0, 0.25, 1.0, 3.0, None, math.nan]),
            **dict(zip(LOGPS, logps, strict=True)),
        }
        if i % 37 == 5:
            row |= {name: rows[-3][name] for name in LOGPS}
        if i % 41 == 7:
            row["policy_chosen_logps"] = None if i % 2 else 0.5
        if i % 53 == 11:  # a tie
            row |= dict.fromkeys(LOGPS, -12.5)
        rows.append(row)
    return rows


SCHEMA = {
    "pair_id": pl.String,
    "prompt_id": pl.String,
    "subset": pl.String,
    "chosen_num_tokens": pl.Int32,
    "rejected_num_tokens": pl.Int64,
    "judge": pl.Float64,
    **dict.fromkeys(LOGPS, pl.Float64),
}


def frame_of(rows):
    return pl.DataFrame(rows, schema=SCHEMA)


def scored(rows):
    """The valid rows with their scores, row numbers and clusters, by plain Python."""
    for number, row in enumerate(rows):
        pc, pr, rc, rr = (row[name] for name in LOGPS)
        if pc is None or pc > 0:
            continue
        ratios = pc - rc, pr - rr
        rewards = [BETA * ratio for ratio in ratios]
        margin = rewards[0] - rewards[1]
        by_row = splitmix(number)
        prompt = row["prompt_id"]
        sizes = row["chosen_num_tokens"], row["rejected_num_tokens"]
        yield {
            **row,
            "row": number,
            "ratios": ratios,
            "rewards": rewards,
            "margin": margin,
            "loss": max(-margin, 0.0) + math.log1p(math.exp(-abs(margin))),
            "cluster": splitmix(by_row) if prompt is None else hash_of(prompt),
            "longer": None if None in sizes else sizes[0] - sizes[1],
        }


def gathered_of(frame, **options):
    result = evaluate(
        frame,
        beta=BETA,
        by="subset",
        on_invalid="exclude",
        statistics=StatisticsOptions(judge="judge", **options),
    )
    return result.statistics.gathered


@pytest.fixture(scope="module")
def rows():
    return made_up()


@pytest.fixture(scope="module")
def gathered(rows):
    return gathered_of(frame_of(rows))


def coarse(value):
    return round(math.asinh(value / 0.01) / 0.05)


# ---- hashes


def test_splitmix64_gives_its_published_outputs():
    # The first outputs from seed 1234567 in the reference implementation.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    state, ours, plain = 1234567, [], []
    for _ in expected:
        ours.append(pl.select(mixed(pl.lit(state, dtype=pl.UInt64))).item())
        plain.append(splitmix(state))
        state = (state + 0x9E3779B97F4A7C15) % WORD
    assert ours == plain == expected


TEXTS = ["", "a", "1234567", "12345678", "123456789", "a\0", "ünïcode \U0001f600", "x" * 100, None]


@pytest.mark.parametrize("dtype", [pl.String, pl.Categorical, pl.Enum(TEXTS[:-1])])
def test_texts_are_hashed_as_said(dtype):
    ours = hashed(pl.Series("key", TEXTS, dtype=pl.String).cast(dtype)).to_list()
    assert ours == [None if text is None else hash_of(text) for text in TEXTS]
    assert len(set(ours)) == len(TEXTS)


@pytest.mark.parametrize("dtype", [pl.Int8, pl.UInt8, pl.Int16, pl.Int64, pl.UInt64, pl.Int128])
def test_whole_numbers_are_hashed_as_said_whatever_their_width(dtype):
    numbers = [0, 1, 100, None, *([] if dtype in {pl.UInt8, pl.UInt64} else [-1, -100])]
    ours = hashed(pl.Series("key", numbers, dtype=dtype)).to_list()
    assert ours == [None if number is None else splitmix(number % WORD) for number in numbers]


def test_numbers_beyond_int64_and_truth_values_are_hashed():
    large = [2**63, WORD - 1]
    assert hashed(pl.Series("k", large, dtype=pl.UInt64)).to_list() == list(map(splitmix, large))
    assert hashed(pl.Series("k", [True, False])).to_list() == [splitmix(1), splitmix(0)]


def test_bytes_and_dates_are_hashed_by_their_text():
    assert hashed(pl.Series("k", [b"\xff\x00"])).to_list() == [hash_of("ff00")]
    dates = pl.Series("k", ["2024-02-29"]).str.to_date()
    assert hashed(dates).to_list() == [hash_of("2024-02-29")]


def test_lists_name_no_prompt(pairs):
    with pytest.raises(UsageError, match="names no prompt"):
        evaluate(pairs.with_columns(prompt_id=pl.concat_list("pair_id")), statistics=True)


# ---- the tables


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
    monkeypatch.setattr(growing_tables, "CLUSTERS_HELD", 50)
    monkeypatch.setattr(growing_tables, "BAGS", 64)
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
    monkeypatch.setattr(growing_tables, "CLUSTERS_HELD", n_clusters)
    assert gathered_of(frame_of(rows)).is_exact
    monkeypatch.setattr(growing_tables, "CLUSTERS_HELD", n_clusters - 1)
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
        margins[row["cluster"] % 64, round(math.asinh(row["margin"] / 0.01) / 0.005)] += 1
        rewards[tuple(map(coarse, row["rewards"]))] += 1
        if row["longer"] is not None:
            lengths[coarse(row["longer"])].update(
                n_pairs=1, n_correct=row["margin"] > 0, sum_reward_margin=quanta(row["margin"])
            )
    assert {row[:2]: row[2] for row in gathered.margins.rows()} == margins
    assert {row[:2]: row[2] for row in gathered.rewards.rows()} == rewards
    found = {row.pop("length_bin"): row for row in gathered.lengths.to_dicts()}
    assert found == {key: dict(sums) for key, sums in lengths.items()}


@pytest.mark.parametrize(("points", "size"), [(500, 2), (600, 1), (599, 2), (10, 64), (1, 1024)])
def test_the_course_is_of_runs_of_rows(rows, monkeypatch, points, size):
    monkeypatch.setattr(gathering, "COURSE_POINTS", points)
    monkeypatch.setattr(measuring, "STATISTICS_ROWS", 70)
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
    assert gathered.lowest["chosen_reward"].to_list() == [row["rewards"][0] for row in lowest]


def test_of_equal_margins_the_earlier_row_is_listed(monkeypatch):
    monkeypatch.setattr(measuring, "STATISTICS_ROWS", 7)
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
    result = evaluate(
        frame, beta=BETA, on_invalid="exclude",
        statistics=StatisticsOptions(judge=("better", "worse")),
    )  # fmt: skip
    assert_frame_equal(result.statistics.gathered.judged, gathered.judged)


def test_too_many_gaps_of_a_judge_are_binned(rows, monkeypatch):
    monkeypatch.setattr(gathering, "JUDGE_CELLS", 100)
    monkeypatch.setattr(measuring, "STATISTICS_ROWS", 50)
    gathered = gathered_of(frame_of(rows))
    cells = Counter()
    for row in scored(rows):
        if row["judge"] is not None and math.isfinite(row["judge"]):
            middle = 0.01 * math.sinh(coarse(row["judge"]) * 0.05)
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
    result = evaluate(frame, loss="cpo", on_invalid="exclude", statistics=True)
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


# ---- the same bits


def tables_of(statistics):
    gathered = statistics.gathered
    return {
        "document": json.dumps(statistics.to_dict(), default=str),
        **{f.name: getattr(gathered, f.name) for f in fields(gathered)},
    }


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        if isinstance(value, pl.DataFrame):
            assert_frame_equal(value, second[name], check_exact=True)
        else:
            assert value == second[name], name


def statistics_of(source):
    return evaluate(
        source,
        beta=BETA,
        by="subset",
        on_invalid="exclude",
        statistics=StatisticsOptions(judge="judge", weights={"a": 1, "b": 3, None: 0.5}),
    ).statistics


@pytest.fixture(params=["few", "many"])
def limits(request, monkeypatch):
    """The limits as they are, and so low that everything beyond them happens."""
    if request.param == "many":
        for name, value in (
            ("CLUSTERS_HELD", 30),
            ("BAGS", 64),
            ("REPEATS_HELD", 100),
            ("COURSE_POINTS", 9),
            ("JUDGE_CELLS", 120),
        ):
            owner = gathering if hasattr(gathering, name) else growing_tables
            monkeypatch.setattr(owner, name, value)
    return request.param


@pytest.mark.parametrize(("n", "step"), [(70, 1), (N, 100), (N, N - 1), (N, N)])
def test_any_cut_into_chunks_gives_the_same_bits(rows, limits, monkeypatch, tmp_path, n, step):
    frame = frame_of(rows[:n])
    whole = tables_of(statistics_of(frame))
    assert whole["is_exact"] == (limits == "few")
    path = tmp_path / "pairs.parquet"
    frame.write_parquet(path, row_group_size=50)
    monkeypatch.setattr(measuring, "STATISTICS_ROWS", step)
    for source in (path, frame.lazy(), frame):
        assert_same(tables_of(statistics_of(source)), whole)


def test_any_cut_into_files_gives_the_same_bits(rows, limits, tmp_path):  # noqa: ARG001
    frame = frame_of(rows)
    whole = tables_of(statistics_of(frame))
    ends = [0, 1, 77, 78, 300, 555, 600]
    for i, (start, stop) in enumerate(itertools.pairwise(ends)):
        frame[start:stop].write_parquet(tmp_path / f"{i}.parquet", row_group_size=31 + i)
    assert_same(tables_of(statistics_of(tmp_path)), whole)
    assert_same(tables_of(statistics_of(pl.scan_parquet(tmp_path / "*.parquet"))), whole)


RUN = """
import hashlib, json, sys
import polars as pl
sys.path.insert(0, sys.argv[2])
from test_gathering import statistics_of, tables_of
frame = pl.read_parquet(sys.argv[1])
tables = tables_of(statistics_of(sys.argv[1]))
tables |= {f"{n} alone": v for n, v in tables_of(statistics_of(frame.drop("prompt_id"))).items()}
bits = hashlib.sha256(repr(
    {n: v.rows() if isinstance(v, pl.DataFrame) else v for n, v in tables.items()}
).encode())
print(pl.thread_pool_size(), bits.hexdigest())
"""


def test_any_number_of_threads_gives_the_same_bits(tmp_path):
    path = tmp_path / "pairs.parquet"
    frame_of(made_up(5_000, seed=9)).write_parquet(path, row_group_size=700)
    found = set()
    for threads in (1, 8):
        done = subprocess.run(
            [sys.executable, "-c", RUN, str(path), os.path.dirname(__file__)],
            env={**os.environ, "POLARS_MAX_THREADS": str(threads)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert not done.returncode, done.stderr
        used, bits = done.stdout.split()
        assert int(used) == threads
        found.add(bits)
    assert len(found) == 1
