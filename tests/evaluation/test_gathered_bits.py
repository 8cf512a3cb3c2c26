"""The gathered tables have the same bits however the rows are cut."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import polars as pl
import pytest

from dpo_pipeline.evaluation import gathering, measuring
from gather_tools import N, assert_same, frame_of, made_up, statistics_of, tables_of
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
    return request.param


@pytest.mark.parametrize(
    ("limits", "n", "step"),
    [
        ("few", 70, 1),
        ("many", N, 100),
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
from dpo_pipeline.evaluation import estimating
from gather_tools import statistics_of, tables_of
estimating.delete_a_group = lambda *_, **__: None  # the tables need no jackknife
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
    frame_of(made_up(1_500, seed=9)).write_parquet(path, row_group_size=700)
    found = set()
    for threads in (1, 8):
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
