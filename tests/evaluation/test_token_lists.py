"""Per-token lists: read once, in plans that stream, and the same bits however they lie."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys

import polars as pl
import pytest

from dpo_pipeline import check, evaluate, score
from option_tools import grouped
from pair_tools import COUNTS, LOGPS, reference_row
from plan_tools import assert_streams
from token_tools import (
    LENGTHS,
    LISTS,
    MASKS,
    PC,
    PR,
    SUMS,
    TOKENS,
    many_tokens,
    of_frame,
    pairs_of_tokens,
)


@pytest.mark.repeats(2)  # masks are lists too; each argument reads the lists by one plan
@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({}, id="DPO"),
        pytest.param({"loss": "simpo"}, id="SimPO"),
        pytest.param({"loss_args": {"ld_alpha": 0.5}}, id="LD-DPO"),
        pytest.param({"loss_args": {"humanline": True}}, id="humanline"),
        pytest.param({"batch_size": 2}, id="batches"),
    ],
)
@pytest.mark.parametrize("masked", [False, True])
def test_evaluate_reads_the_lists_once_and_nothing_else(engine, tmp_path, arguments, masked):
    masks = dict(zip(MASKS, ([[1] * n for n in LENGTHS[c]] for c in COUNTS), strict=True))
    frame = pairs_of_tokens(masks if masked else None).with_columns(text=pl.lit("x" * 99))
    frame.write_parquet(tmp_path / "in.parquet")
    engine.graphs.clear()
    evaluate(tmp_path / "in.parquet", **grouped(**arguments))
    assert engine.data_scans == 1
    n_lists = (2 if arguments.get("loss") == "simpo" else 4) + 2 * masked
    assert f"project: {n_lists} total" in engine.graphs[0]
    assert_streams(engine)


def test_check_reads_the_lists_once(engine, tmp_path):
    pairs_of_tokens().with_columns(text=pl.lit("x")).write_parquet(tmp_path / "in.parquet")
    engine.graphs.clear()
    check(tmp_path / "in.parquet")
    assert engine.data_scans == 1
    assert "project: 4 total" in engine.graphs[0]
    assert_streams(engine)


def test_sums_and_their_tokens_are_read_in_one_reading(engine, tmp_path):
    frame = pairs_of_tokens().with_columns(pl.Series(n, v) for n, v in SUMS.items())
    frame.write_parquet(tmp_path / "in.parquet")
    engine.graphs.clear()
    evaluate(tmp_path / "in.parquet")
    assert engine.data_scans == 1
    assert "project: 8 total" in engine.graphs[0]
    assert_streams(engine)


RUN = """
import json, hashlib, pathlib, sys
from dpo_pipeline import Objective, Outputs, score_parquet
from dpo_pipeline.evaluation import measuring
from dpo_pipeline.sums import batches
source, out, shard = sys.argv[1:]
if int(shard):
    measuring.SHARD_ROWS = batches.SHARD_ROWS = int(shard)
for arguments in ({}, {"ld_alpha": 0.3}):
    result = score_parquet(
        source,
        out,
        on_invalid="quarantine",
        outputs=Outputs(overwrite=True),
        loss=Objective(arguments=arguments),
    )
    print(repr(result.summary.to_dict()))
    print(hashlib.sha256(pathlib.Path(out).read_bytes()).hexdigest())
"""


# Three tests below cut the rows otherwise in this process; threads do not meet within a row.
@pytest.mark.slow
def test_the_same_rows_give_the_same_bits(tmp_path):
    source, seen = tmp_path / "in.parquet", []
    frame = many_tokens(200)
    for threads, shard, group in ((1, 0, 1_000_000), (4, 130, 37)):
        frame.write_parquet(source, row_group_size=group)
        done = subprocess.run(
            [sys.executable, "-c", RUN, source, tmp_path / "out.parquet", str(shard)],
            env={**os.environ, "POLARS_MAX_THREADS": str(threads)},
            capture_output=True,
            text=True,
            check=True,
        )
        seen.append(done.stdout.splitlines())
    assert [len(set(lines)) for lines in seen] == [4, 4]  # a summary and a table of each kind
    assert seen[0] == seen[1]


@pytest.mark.parametrize(
    "masks",
    [
        pytest.param((), id="lists"),
        pytest.param(MASKS, id="masks"),
    ],
)
def test_a_sum_does_not_depend_on_the_rows_beside_it(masks):
    rng = random.Random(1)
    lists = [[-rng.expovariate(1) for _ in range(300)] for _ in range(50)]
    all_true = pl.col(PC).list.eval(pl.element().is_finite().fill_null(value=True))
    made = []
    for rows in (lists, [*lists, [None, -1.0]]):
        frame = pl.DataFrame(dict.fromkeys(TOKENS, rows), schema=dict.fromkeys(TOKENS, LISTS))
        made.append(score(frame.with_columns(all_true.alias(name) for name in masks)).collect())
    assert made[1].head(50).equals(made[0])


@pytest.mark.slow  # sums are those of any slice, below; shards are cut alike for all pairs
def test_shards_of_any_size_give_the_same_summary(tmp_path, monkeypatch):
    many_tokens(60).write_parquet(tmp_path / "in.parquet", row_group_size=25)
    whole = evaluate(tmp_path / "in.parquet", on_invalid="exclude")
    monkeypatch.setattr("dpo_pipeline.evaluation.measuring.SHARD_ROWS", 23)
    parts = evaluate(tmp_path / "in.parquet", on_invalid="exclude")
    assert parts.invalid.by_rule == whole.invalid.by_rule
    assert repr(parts.summary) == repr(whole.summary)


def test_sums_of_sound_lists_have_the_same_bits_in_any_slice():
    frame = many_tokens(150)
    odd = pl.element().is_null() | pl.element().is_nan()
    clean = frame.filter(
        pl.all_horizontal(pl.col(PC, PR).list.eval(odd.fill_null(value=True)).list.any().not_())
    )
    together = score(clean).collect()
    parts = pl.concat([score(clean[i : i + 17]).collect() for i in range(0, clean.height, 17)])
    assert together.equals(parts)
    assert 140 < clean.height < 150


def test_means_of_many_tokens_against_plain_python():
    frame = many_tokens(200)
    lists = of_frame(frame)
    sound = [
        i
        for i in range(200)
        if not any(t is None or math.isnan(t) for name in (PC, PR) for t in lists[name][i])
    ]
    sums = {n: [math.fsum(lists[t][i]) for i in sound] for n, t in zip(LOGPS, TOKENS, strict=True)}
    summary = evaluate(frame, on_invalid="exclude").summary
    assert summary.n_valid == len(sound) < 200
    for name in LOGPS:
        mean = math.fsum(sums[name]) / len(sound)
        assert getattr(summary, name) == pytest.approx(mean, abs=1e-9)
    losses = [reference_row(*(sums[n][i] for n in LOGPS), 0.1)[2] for i in range(len(sound))]
    assert summary.loss == pytest.approx(math.fsum(losses) / len(sound), abs=1e-9)
