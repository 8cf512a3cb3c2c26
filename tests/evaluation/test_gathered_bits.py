"""The gathered tables have the same bits however the rows are cut."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import subprocess
import sys
from dataclasses import fields

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from dpo_pipeline.evaluation import gathering, measuring
from dpo_pipeline.sums import cells
from gather_tools import (
    N,
    assert_same,
    frame_of,
    made_up,
    mean_over_subsets,
    statistics_of,
    tables_of,
)
from pair_tools import TOOLS

pytestmark = pytest.mark.usefixtures("tables_alone")


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
            monkeypatch.setattr(gathering, name, value)
        monkeypatch.setattr(cells, "BAGS", 64)
    return request.param


@pytest.mark.parametrize(
    ("limits", "n", "step"),
    [
        ("few", 9, 1),
        ("many", 240, 100),
        # All rows but one, and one chunk: fewer cuts than the others.
        pytest.param("few", N, N - 1, marks=pytest.mark.slow),
        pytest.param("many", N, N, marks=pytest.mark.slow),
    ],
    indirect=["limits"],
)
def test_any_cut_into_chunks_gives_the_same_bits(rows, limits, monkeypatch, tmp_path, n, step):
    frame = frame_of(rows[:n])
    whole = tables_of(statistics_of(frame))
    assert whole["is_exact"] == (limits == "few")
    path = tmp_path / "pairs.parquet"
    frame.write_parquet(path, row_group_size=50)
    monkeypatch.setattr(measuring, "GATHERED_ROWS", step)
    for source in (path, frame):
        assert_same(tables_of(statistics_of(source)), whole)


@pytest.mark.slow  # files are chunks, as above
def test_any_cut_into_files_gives_the_same_bits(rows, limits, tmp_path):  # noqa: ARG001
    frame = frame_of(rows[:240])
    whole = tables_of(statistics_of(frame))
    ends = [0, 1, 77, 78, 240]
    for i, (start, stop) in enumerate(itertools.pairwise(ends)):
        frame[start:stop].write_parquet(tmp_path / f"{i}.parquet", row_group_size=31 + i)
    assert_same(tables_of(statistics_of(tmp_path)), whole)
    assert_same(tables_of(statistics_of(pl.scan_parquet(tmp_path / "*.parquet"))), whole)


RUN = """
import hashlib, json, sys
import numpy as np
import polars as pl
sys.path.insert(0, sys.argv[2])
from dpo_pipeline.evaluation import estimating
from gather_tools import mean_over_subsets, statistics_of, tables_of
mean = repr(mean_over_subsets())
estimating.delete_a_group = lambda *_, **__: None  # the tables need no jackknife
tables = tables_of(statistics_of(sys.argv[1]))
bits = hashlib.sha256(repr(
    {n: v.rows() if isinstance(v, pl.DataFrame) else v for n, v in tables.items()}
).encode())
bits.update(mean.encode())
print(pl.thread_pool_size(), bits.hexdigest())
"""


def bits_here(path):
    """Run the same in this process, which has as many threads as the machine has cores."""
    tables = tables_of(statistics_of(path))
    plain = {n: v.rows() if isinstance(v, pl.DataFrame) else v for n, v in tables.items()}
    return hashlib.sha256((repr(plain) + repr(mean_over_subsets())).encode()).hexdigest()


# Without prompts each pair is a cluster, of which the tables are made alike.
@pytest.mark.parametrize("alone", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_any_number_of_threads_gives_the_same_bits(tmp_path, alone):
    path = tmp_path / "pairs.parquet"
    frame = frame_of(made_up(300, seed=9)).drop(["prompt_id"] if alone else [])
    frame.write_parquet(path, row_group_size=120)
    found = {bits_here(str(path))}
    for threads in (1,) if pl.thread_pool_size() > 1 else (8,):
        done = subprocess.run(
            [sys.executable, "-c", RUN, str(path), str(TOOLS)],
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


def test_parts_merge_in_any_order(rows, monkeypatch):
    limits = {"CLUSTERS_HELD": 30, "BAGS": 16, "REPEATS_HELD": 100, "COURSE_POINTS": 9}
    for name, value in {**limits, "JUDGE_CELLS": 120}.items():
        monkeypatch.setattr(gathering, name, value)
    monkeypatch.setattr(cells, "BAGS", 16)
    seen = []
    part = gathering.Gathering.part
    monkeypatch.setattr(
        gathering.Gathering, "part", lambda *given: seen.append(given) or part(*given)
    )
    whole = statistics_of(frame_of(rows)).gathered
    ((maker, scored, _),) = seen
    ends = [0, 1, 9, 30, 100, 101, 350, 600]
    parts = [part(maker, scored[a:b], a)[0] for a, b in itertools.pairwise(ends)]
    assert {each.is_exact for each in parts} == {True, False}
    random.Random(3).shuffle(parts)
    nested = [maker.merged(parts[:3]), maker.merged([maker.merged(parts[3:5]), *parts[5:]])]
    found = maker.finished(maker.merged(nested))
    for name in (each.name for each in fields(found)):
        value = getattr(whole, name)
        if isinstance(value, pl.DataFrame):
            merged = getattr(found, name)
            shown = merged.head(value.height) if name == "lowest" else merged
            assert_frame_equal(value, shown, check_exact=True)
        else:
            assert value == getattr(found, name), name


def test_a_part_leaves_out_hashes_that_those_before_it_do_not_keep(rows, monkeypatch):
    monkeypatch.setattr(gathering, "REPEATS_HELD", 100)
    seen = []
    part = gathering.Gathering.part
    monkeypatch.setattr(
        gathering.Gathering, "part", lambda *given: seen.append(given) or part(*given)
    )
    statistics_of(frame_of(rows))
    ((maker, scored, _),) = seen
    merged = maker.merged([part(maker, scored[a:b], a)[0] for a, b in ((0, 300), (300, 600))])
    assert merged.thinning > 1
    few = part(maker, scored[:50], 0)[0]  # alone, they are fewer than are kept
    assert few.thinning == merged.thinning
    assert few.repeats["n_pairs"].sum() < 50


@pytest.mark.parametrize("size", [1.0, 1e4, 1e9, 1e15], ids=str)
def test_whole_numbers_of_any_size_are_added_exactly(size):
    rng = np.random.default_rng(5)
    codes = rng.integers(0, 3, 5_000)
    values = rng.normal(0.0, size / 4.0, 5_000)
    whole = cells.whole_quanta(values)
    found = cells.exact_sums(codes, 4, whole, int(np.bincount(codes).max()))
    numbers = [int(each) for each in whole]
    expected = [sum(n for n, k in zip(numbers, codes, strict=True) if k == c) for c in range(4)]
    assert found.to_list() == expected
