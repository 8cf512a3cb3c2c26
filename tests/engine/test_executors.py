"""Executors by other means than an engine: any order, twice, or not at all."""

from __future__ import annotations

import itertools
import json
import pickle
import random
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

import polars as pl
import pytest

from dpo_pipeline import Execution, Scored, evaluate, score_parquet
from dpo_pipeline.engine.executors import Local, in_order
from dpo_pipeline.evaluation import measuring
from dpo_pipeline.sums import batches
from option_tools import grouped
from pair_tools import LOGPS


@dataclass(frozen=True)
class Numbered:
    index: int


TASKS = [Numbered(i) for i in range(5)]


def squared(task):
    yield task.index**2


class Shuffled:
    """Runs all tasks first, and gives the results in a random order, some of them twice."""

    elsewhere = True

    def __init__(self, seed, *, without=()):
        self.rng = random.Random(seed)
        self.without = without

    def __call__(self, function, tasks, check):  # noqa: ARG002
        done = [(task.index, list(function(task))) for task in tasks]
        done = [each for each in done if each[0] not in self.without]
        done += self.rng.sample(done, len(done) // 2)
        self.rng.shuffle(done)
        yield from done


class Threads:
    """A pool of threads, which end as they like, and get what another process would."""

    elsewhere = True

    def __init__(self, workers):
        self.workers = workers

    def __call__(self, function, tasks, check):  # noqa: ARG002
        with ThreadPoolExecutor(self.workers) as pool:
            travelled = pickle.loads(pickle.dumps(function))  # noqa: S301
            futures = {pool.submit(lambda t: list(travelled(t)), t): t.index for t in tasks}
            for future in as_completed(futures):
                yield futures[future], future.result()


def nothing():
    pass


@pytest.mark.repeats(6)  # orders
@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_results_come_in_the_order_of_the_tasks(order):
    def executor(function, tasks, _check):
        given = list(tasks)
        for i in order:
            yield i, function(given[i])

    found = [(t.index, list(r)) for t, r in in_order(executor, squared, TASKS[:4], nothing)]
    assert found == [(0, [0]), (1, [1]), (2, [4]), (3, [9])]


@pytest.mark.parametrize("seed", range(5))
def test_a_second_result_is_dropped(seed):
    results = in_order(Shuffled(seed), squared, TASKS, nothing)
    assert [sum(r) for _, r in results] == [0, 1, 4, 9, 16]


def test_a_missing_result_is_an_error():
    with pytest.raises(RuntimeError, match=r"no result for tasks? \[?3"):
        list(in_order(Shuffled(0, without=(3,)), squared, TASKS, nothing))


def test_here_tasks_are_taken_one_at_a_time():
    taken = []

    def tasks():
        for task in TASKS:
            taken.append(task.index)
            yield task

    results = in_order(Local(), squared, tasks(), nothing)
    next(results)
    assert taken == [0]


def test_leaving_early_closes_the_executor():
    closed = []

    def executor(function, tasks, _check):
        try:
            for task in tasks:
                yield task.index, function(task)
        finally:
            closed.append(True)

    results = in_order(executor, squared, TASKS, nothing)
    next(results)
    results.close()
    assert closed == [True]


# --- whole runs


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "SHARD_ROWS", 140)
    monkeypatch.setattr(batches, "SHARD_ROWS", 140)
    rng = random.Random(5)
    rows = {n: [-rng.uniform(1, 300) for _ in range(500)] for n in LOGPS}
    rows[LOGPS[0]][123] = rows[LOGPS[1]][402] = 2.0
    rows["subset"] = [rng.choice("xyz") for _ in range(500)]
    frame = pl.DataFrame(rows)
    (tmp_path / "in").mkdir()
    for i, (start, end) in enumerate(itertools.pairwise([0, 33, 33, 250, 499, 500])):
        frame[start:end].write_parquet(tmp_path / "in" / f"{i}.parquet", row_group_size=25)
    return tmp_path


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


KINDS = {
    "sigmoid": {"batch_size": 64, "by": "subset", "histogram": True},
    "by value": {"batch_by": "subset"},
    "within batches": {"loss": "aot", "batch_size": 32},
}


@pytest.mark.usefixtures("few_groups")
@pytest.mark.filterwarnings("ignore::dpo_pipeline.DataWarning")
def test_statistics_are_of_rows_that_come_in_order(folder):
    given = {"statistics": True, "by": "subset", "on_invalid": "exclude"}
    found = [
        evaluate(folder / "in", **grouped(engine=engine, **given)).to_json()
        for engine in ("local", Shuffled(3), Threads(3))
    ]
    assert len(set(found)) == 1
    assert json.loads(found[0])["statistics"]


EXECUTORS = {"1": Shuffled(1), "four": Threads(4), "2": Shuffled(2), "one": Threads(1)}
EACH_ONCE = {("four", "by value"), ("1", "within batches")}


@pytest.mark.repeats(1)  # executors differ in order alone, which the tests above have
@pytest.mark.parametrize(
    ("executor", "kind"),
    [
        # All others pair an executor with figures that another one gives by default.
        pytest.param(
            executor,
            kind,
            id=f"{name}-{kind}",
            marks=() if (name, kind) in EACH_ONCE else pytest.mark.slow,
        )
        for name, executor in EXECUTORS.items()
        for kind in KINDS
    ],
)
@pytest.mark.filterwarnings("ignore::dpo_pipeline.DataWarning")
def test_any_executor_gives_the_same_bits(folder, executor, kind, monkeypatch):
    monkeypatch.setattr("dpo_pipeline.evaluation.shards.COUPLED_SHARD_ROWS", 128)
    given = {"part_rows": 50, "on_invalid": "quarantine", **KINDS[kind]}
    here = score_parquet(folder / "in", folder / "here", **grouped(**given))
    there = score_parquet(folder / "in", folder / "there", **grouped(engine=executor, **given))
    assert files(folder / "there") == files(folder / "here")
    assert files(folder / "there.invalid") == files(folder / "here.invalid")
    assert there.to_json() == here.to_json()
    assert here.summary.n_invalid == 2
    figures = {**KINDS[kind], "on_invalid": "exclude"}
    found = evaluate(folder / "in", **grouped(engine=executor, **figures)).to_json()
    assert found == evaluate(folder / "in", **grouped(**figures)).to_json()


def test_progress_of_an_executor_comes_part_by_part(folder):
    told = []
    score_parquet(
        folder / "in",
        folder / "out",
        on_invalid="quarantine",
        execution=Execution(Threads(2), progress=told.append),
    )
    rows = {
        phase: [p.rows for p in told if p.phase == phase] for phase in ("evaluating", "writing")
    }
    assert rows["evaluating"] == [140, 280, 420, 500]
    assert rows["writing"] == [33, 33, 249, 497, 498]
    assert {p.total for p in told if p.phase == "writing"} == {498}


# --- parts


def test_parts_are_runs_of_row_groups(folder):
    score_parquet(folder / "in", folder / "out", scored=Scored(part_rows=60), on_invalid="exclude")
    rows = {
        path.name: pl.scan_parquet(path).select(pl.len()).collect().item()
        for path in sorted((folder / "out").glob("*.parquet"))
    }
    # Groups of 25 rows; the second file is empty; rows 123 and 402 are left out.
    assert rows == {
        "0-00000.parquet": 33,
        "1-00000.parquet": 0,
        "2-00000.parquet": 50,
        "2-00001.parquet": 49,
        "2-00002.parquet": 50,
        "2-00003.parquet": 50,
        "2-00004.parquet": 17,
        "3-00000.parquet": 50,
        "3-00001.parquet": 50,
        "3-00002.parquet": 50,
        "3-00003.parquet": 49,
        "3-00004.parquet": 49,
        "4-00000.parquet": 1,
    }


def test_parts_hold_the_rows_of_a_whole_output(folder):
    whole = score_parquet(folder / "in", folder / "whole", on_invalid="quarantine")
    cut = score_parquet(
        folder / "in", folder / "cut", scored=Scored(part_rows=100), on_invalid="quarantine"
    )
    assert cut.to_json() == whole.to_json()
    for name in ("whole", "whole.invalid"):
        expected = pl.read_parquet(folder / name)
        assert pl.read_parquet(folder / name.replace("whole", "cut")).equals(expected)
    rows = [offender.row for rule in cut.invalid.broken for offender in rule.offenders]
    assert rows == [123 - 33, 402 - 250]
    assert pl.read_parquet(folder / "cut.invalid")["source_row"].to_list() == rows


def test_one_file_cut_into_parts_gives_a_folder(folder):
    score_parquet(
        folder / "in" / "3.parquet",
        folder / "out",
        scored=Scored(part_rows=100),
        on_invalid="exclude",
    )
    names = sorted(path.name for path in (folder / "out").iterdir())
    assert names == ["3-00000.parquet", "3-00001.parquet", "3-00002.parquet", "_SUCCESS"]


@pytest.mark.parametrize("rows", [0, -1, 1.5, True, "many"])
def test_part_rows_is_a_count(folder, rows):
    with pytest.raises(ValueError, match="part_rows must be a whole number, at least 1"):
        score_parquet(folder / "in", folder / "out", scored=Scored(part_rows=rows))
