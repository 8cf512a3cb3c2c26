"""Inputs of jobs: five files that shards do not end with."""

from __future__ import annotations

import itertools
import random
import shutil

import polars as pl
import pytest

from dpo_pipeline import evaluate, score_parquet
from dpo_pipeline.evaluation import measuring, shards
from dpo_pipeline.jobs import run, split
from dpo_pipeline.sums import batches
from option_tools import grouped
from pair_tools import LOGPS

BORDERS = [0, 33, 33, 250, 499, 500]


FIGURES = {"on_invalid": "exclude"}
SCORE = {"on_invalid": "quarantine", "part_rows": 50, "by": "subset"}


def make_small(monkeypatch):
    """Have 500 pairs be as many, for shards, as millions are."""
    for module in (measuring, batches):
        monkeypatch.setattr(module, "SHARD_ROWS", 400)  # 100 where prompts are told apart
    for module in (measuring, shards):
        monkeypatch.setattr(module, "NEIGHBOURS_ROWS", 45)
        monkeypatch.setattr(module, "STATISTICS_ROWS", 100)
    monkeypatch.setattr(measuring, "GATHERED_ROWS", 100)
    monkeypatch.setattr(shards, "COUPLED_SHARD_ROWS", 96)


@pytest.fixture
def small(monkeypatch):
    make_small(monkeypatch)


def write_pairs(folder):
    """Write 500 pairs to `in`; the pairs of rows 123 and 390 are invalid."""
    rng = random.Random(5)
    rows = {name: [-rng.uniform(1, 300) for _ in range(500)] for name in LOGPS}
    rows[LOGPS[0]][123] = rows[LOGPS[1]][390] = 2.0
    rows["subset"] = [rng.choice("xyz") for _ in range(500)]
    rows["pair_id"] = [f"id {i % 490}" for i in range(500)]
    rows["prompt_id"] = [i // 3 for i in range(500)]
    frame = pl.DataFrame(rows)
    (folder / "in").mkdir()
    for i, (start, end) in enumerate(itertools.pairwise(BORDERS)):
        frame[start:end].write_parquet(folder / "in" / f"{i}.parquet", row_group_size=25)


@pytest.fixture
def folder(tmp_path, monkeypatch, small):  # noqa: ARG001
    """The current folder, with pairs in `in`."""
    write_pairs(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def all_done(tmp_path_factory):
    """A folder of pairs with two jobs whose shards are done: `figures`, and `score` to `there`.

    What one process scores is in `here`.
    """
    place = tmp_path_factory.mktemp("jobs")
    write_pairs(place)
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        patch.chdir(place)
        split(evaluate, "in", **FIGURES, shards=3, to="figures")
        split(score_parquet, "in", "there", **grouped(**SCORE), shards=3, to="score")
        for job, number in itertools.product(("figures", "score"), (2, 0, 1)):
            run(job, number)
        alone = score_parquet("in", "here", **grouped(**SCORE))
    return place, alone


@pytest.fixture
def done_jobs(all_done, tmp_path, monkeypatch, small):  # noqa: ARG001
    """The current folder, a copy of the folder of jobs that are done."""
    shutil.copytree(all_done[0], tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path
