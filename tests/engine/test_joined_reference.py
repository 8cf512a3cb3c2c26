"""A joined reference on an executor: shard by shard, the figures and bytes of one process."""

from __future__ import annotations

import itertools
import random

import polars as pl
import pytest

from dpo_pipeline import JoinError, UsageError, evaluate, score_parquet, sweep
from dpo_pipeline.engine import Local
from dpo_pipeline.evaluation import measuring, shards
from dpo_pipeline.sums import batches
from option_tools import grouped
from pair_tools import LOGPS, split
from process_tools import everything

pytestmark = pytest.mark.filterwarnings("ignore::dpo_pipeline.DataWarning")

BORDERS = [0, 33, 250, 250, 400]
SHUFFLED, IN_ORDER, PARTLY, CSV = "shuffled", "in order", "partly in order", "csv"


class Elsewhere(Local):
    """Runs tasks here, and counts as another process."""

    elsewhere = True

    def __init__(self):
        self.tasks = []

    def __call__(self, function, tasks, check):
        for task in tasks:
            check()
            self.tasks.append(task)
            yield task.index, list(function(task))


@pytest.fixture
def sides(tmp_path, monkeypatch):
    """A policy in files, and its reference in several orders: `folder / name`."""
    for module in (measuring, batches):
        monkeypatch.setattr(module, "SHARD_ROWS", 150)
    for module in (measuring, shards):
        monkeypatch.setattr(module, "NEIGHBOURS_ROWS", 0)
        monkeypatch.setattr(module, "STATISTICS_ROWS", 140)
    monkeypatch.setattr(measuring, "GATHERED_ROWS", 140)
    rng = random.Random(7)
    rows = {name: [-rng.uniform(1, 300) for _ in range(400)] for name in LOGPS}
    rows[LOGPS[2]][123] = rows[LOGPS[1]][302] = 2.0
    rows["subset"] = [rng.choice("xyz") for _ in range(400)]
    rows["pair_id"] = list(range(400))
    policy, ordered = split(pl.DataFrame(rows), shuffled=False)
    (tmp_path / "in").mkdir()
    for i, (start, end) in enumerate(itertools.pairwise(BORDERS)):
        policy[start:end].write_parquet(tmp_path / "in" / f"{i}.parquet", row_group_size=25)
    orders = {
        IN_ORDER: ordered,
        SHUFFLED: ordered.sample(fraction=1, shuffle=True, seed=5),
        PARTLY: pl.concat([ordered[:200], ordered[200:].reverse()]),
    }
    for name, frame in orders.items():
        frame.write_parquet(tmp_path / name, row_group_size=30)
    orders[SHUFFLED].write_csv(tmp_path / CSV)
    return tmp_path


def reference(folder, order):
    from dpo_pipeline import Reference

    return Reference(str(folder / order), format="csv" if order == CSV else "parquet")


@pytest.mark.repeats(1)  # orders are joined in `sources`; here they are of tasks
@pytest.mark.parametrize(
    "order",
    [SHUFFLED, CSV, PARTLY, pytest.param(IN_ORDER, marks=pytest.mark.slow)],  # as bytes below
)
def test_figures_are_those_of_one_process(sides, order):
    executor = Elsewhere()
    given = grouped(on_invalid="exclude", by="subset", batch_size=16)
    given["reference"] = reference(sides, order)
    here = evaluate(sides / "in", **given)
    there = evaluate(sides / "in", **given, execution=executor)
    assert there.to_json() == here.to_json()
    assert [task.rows for task in executor.tasks[:3]] == [150, 150, 100]
    assert here.invalid.n_invalid == 2
    assert here.reference == str(sides / order)


@pytest.mark.slow  # joined rows come as those of one table, which `test_executors` has
@pytest.mark.usefixtures("few_groups")
def test_statistics_and_sweeps_are_those_of_one_process(sides):
    for function, more in ((evaluate, {"statistics": True}), (sweep, {"beta": [0.1, 0.3]})):
        given = {"on_invalid": "exclude", "reference": reference(sides, SHUFFLED), **more}
        here = function(sides / "in", **given)
        assert function(sides / "in", **given, execution=Elsewhere()).to_json() == here.to_json()


@pytest.mark.repeats(1)  # in order is how all other scores are joined
@pytest.mark.parametrize("order", [SHUFFLED, IN_ORDER])
def test_the_bytes_of_a_score_are_those_of_one_process(sides, order):
    given = grouped(on_invalid="quarantine", part_rows=50)
    given["reference"] = reference(sides, order)
    for name, more in (("here", {}), ("there", {"execution": Elsewhere()})):
        score_parquet(sides / "in", sides / name, **given, **more)
    for ending in ("", ".invalid"):
        assert everything(sides / f"there{ending}") == everything(sides / f"here{ending}")


def test_files_in_one_order_are_read_side_by_side(sides, engine):
    held = {}
    for order in (IN_ORDER, SHUFFLED):
        engine.graphs.clear()
        evaluate(
            sides / "in",
            on_invalid="exclude",
            reference=reference(sides, order),
            execution=Elsewhere(),
        )
        held[order] = engine.count("semi") + engine.count("left-join") + engine.count("equi-join")
    assert held[IN_ORDER] == 0 < held[SHUFFLED]


def test_keys_that_do_not_fit_are_refused_before_a_shard_is_read(sides):
    short = pl.read_parquet(sides / IN_ORDER)[:-1]
    short.write_parquet(sides / "short.parquet")
    executor = Elsewhere()
    with pytest.raises(JoinError, match="in .*in alone: 1 row"):
        evaluate(sides / "in", reference=str(sides / "short.parquet"), execution=executor)
    assert executor.tasks == []


def test_a_loss_of_batches_still_needs_one_table(sides):
    given = {"loss": "aot", "batches": 32, "reference": reference(sides, SHUFFLED)}
    with pytest.raises(UsageError, match="write the joined pairs first"):
        evaluate(sides / "in", **given, execution=Elsewhere())
