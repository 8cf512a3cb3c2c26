"""Jobs give the figures, documents and files of one process, or say what is missing or changed."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import zipfile
from datetime import date
from threading import Event

import pandera.polars as pa
import polars as pl
import pytest

from dpo_pipeline import (
    Cancelled,
    Execution,
    InvalidPairsError,
    OnInvalid,
    Scored,
    StatisticsOptions,
    StorageError,
    evaluate,
    score_parquet,
    sweep,
)
from dpo_pipeline.evaluation import measuring
from dpo_pipeline.jobs import JobPlan, merge, run, split
from dpo_pipeline.jobs.shard_results import read_result
from dpo_pipeline.sums import Sense
from option_tools import grouped
from pair_tools import ROOT, split as cut_in_two
from process_tools import everything

pytestmark = pytest.mark.filterwarnings("ignore::dpo_pipeline.DataWarning")


def done(job, *, seed=1, twice=True):
    """Run all shards in a random order, and each twice."""
    numbers = [shard.number for shard in job.shards] * (2 if twice else 1)
    random.Random(seed).shuffle(numbers)
    return [run(job.folder, number) for number in numbers]


FIGURES = {
    "by subset": (
        evaluate,
        {
            "by": "subset",
            "histogram": True,
            "batch_size": 16,
            "summary": "{}.json",
            "batches": "{}.parquet",
        },
    ),
    "totals": (evaluate, {}),
    "batches by value": (evaluate, {"batch_by": "subset"}),
    "within batches": (evaluate, {"loss": "aot", "batch_size": 32}),
    "sweep": (sweep, {"beta": [0.05, 0.5], "loss": ["sigmoid", "ipo"], "by": "subset"}),
}


@pytest.mark.repeats(2)  # subsets, and a sweep: the others are sums that merge as these do
@pytest.mark.parametrize("kind", FIGURES)
def test_the_figures_and_documents_are_those_of_one_process(folder, kind, monkeypatch):
    function, flat = FIGURES[kind]
    seen, made = [], Sense.of_sums
    monkeypatch.setattr(Sense, "of_sums", staticmethod(lambda row: seen.append(row) or made(row)))
    here, there = (
        grouped(
            on_invalid="exclude",
            **{k: v.format(name) if "{}" in str(v) else v for k, v in flat.items()},
        )
        for name in ("here", "there")
    )
    n = 4 if kind == "by subset" else 3
    told = done(split(function, "in", **there, shards=n, to="job"))
    assert [each.was_done for each in told].count(True) == n
    assert sum(each.n_pairs for each in told) == 2 * 500
    assert not list(folder.glob("there.*"))
    found = merge("job")
    assert found.to_json() == function("in", **here).to_json()
    assert found.invalid.n_invalid == 2
    assert seen[0] == seen[1]  # all sums, those of neighbouring rows among them
    assert everything(folder / "job").keys() == {
        "plan.json",
        *(f"shards/{number:05}.zip" for number in range(n)),
    }
    for ending in ("json", "parquet") if kind == "by subset" else ():
        both = [(folder / f"{name}.{ending}").read_bytes() for name in ("here", "there")]
        assert both[0] == both[1]


@pytest.mark.usefixtures("few_groups")
def test_statistics_are_those_of_one_process(folder):
    judged = [float(i % 7) for i in range(500)]
    for path in (folder / "in").iterdir():
        rows = pl.read_parquet(path)
        start = [0, 33, 33, 250, 499][int(path.stem)]
        judge = pl.Series("judge", judged[start : start + rows.height], dtype=pl.Float64)
        rows.with_columns(judge).write_parquet(path, row_group_size=25)
    given = {
        "by": "subset",
        "on_invalid": "exclude",
        "statistics": StatisticsOptions(judge="judge", weights={"x": 1.0, "y": 2.0, "z": 0.5}),
    }
    done(split(evaluate, "in", **given, shards=2, to="job"), twice=False)
    found = merge("job")
    assert found.to_json() == evaluate("in", **given).to_json()
    assert found.statistics is not None


def test_the_bytes_of_a_score_are_those_of_one_process(done_jobs, all_done):
    found = merge("score")
    assert found.to_json() == all_done[1].to_json()
    for ending in ("", ".invalid"):
        there = everything(done_jobs / f"there{ending}")
        assert len(there) > 10
        assert there == everything(done_jobs / f"here{ending}")
    with pytest.raises(StorageError, match="there.*: is not empty"):
        merge("score")


SCORES = {
    "within batches": {"on_invalid": "quarantine", "part_rows": 50, "loss": "aot", "batch_size": 8},
    "quarantined": {"on_invalid": "quarantine"},
    "excluded": {"on_invalid": "exclude", "part_rows": 1, "keep": ["pair_id"]},
}


@pytest.mark.slow  # rows are cut as those above are, and losses of batches as in `engine`
@pytest.mark.parametrize("kind", SCORES)
def test_the_bytes_of_other_scores_are_those_of_one_process(folder, kind):
    given = grouped(**SCORES[kind])
    job = split(score_parquet, "in", "there", **given, shards=2, to="job")
    told = done(job, twice=False)
    assert sum(each.n_written for each in told) == (498 if kind == "excluded" else 500)
    found = merge("job")
    here = score_parquet("in", "here", **given)
    assert found.to_json() == here.to_json()
    assert everything(folder / "there") == everything(folder / "here")
    if kind != "excluded":
        assert everything(folder / "there.invalid") == everything(folder / "here.invalid")


@pytest.mark.repeats(3)  # one, seven, and more than rows
@pytest.mark.parametrize("n", [1, 2, 7, 500, 1_000])
@pytest.mark.usefixtures("folder")
def test_any_number_of_shards_has_each_row_and_each_part_once(n):
    job = split(score_parquet, "in", "out", scored=Scored(part_rows=50), shards=n, to="job")
    alone = split(evaluate, "in", shards=n, to="alone")
    for made, rows in ((job, 33), (alone, 45)):  # the first part, and neighbours
        assert len(made.shards) == n
        assert made.shards[0].rows >= min(500 // n, rows)
        ends = [shard.first_row + shard.rows for shard in made.shards]
        assert [shard.first_row for shard in made.shards] == [0, *ends[:-1]]
        assert ends[-1] == 500
    assert [i for shard in job.shards for i in range(*shard.parts)] == list(range(13))
    idle = sum(not (shard.rows or range(*shard.parts)) for shard in job.shards)
    assert (f"\n  shards with nothing to do: {idle}\n" in str(job)) == (idle > 0)
    assert max(shard.rows for shard in alone.shards) <= max(45, 500 // n + 2)


@pytest.mark.usefixtures("folder")
def test_small_data_are_one_shard_as_their_neighbours_are_compared(monkeypatch):
    monkeypatch.setattr(measuring, "NEIGHBOURS_ROWS", 65_536)
    job = split(evaluate, "in/2.parquet", on_invalid="exclude", shards=3, to="job")
    assert [shard.rows for shard in job.shards] == [217, 0, 0]
    done(job)
    assert merge("job").summary.n_valid == 216


@pytest.mark.repeats(1)  # in order or not is found out before shards are cut
@pytest.mark.parametrize("shuffled", [False, True])
def test_a_joined_reference_is_of_the_shards_too(folder, shuffled):
    whole = pl.read_parquet("in/*.parquet").with_columns(pair_id=pl.int_range(500))
    policy, reference = cut_in_two(whole, shuffled=shuffled)
    policy.write_parquet("policy.parquet")
    reference.write_parquet("reference.parquet")
    given = {"reference": "reference.parquet", "on_invalid": "exclude", "by": "subset"}
    done(split(evaluate, "policy.parquet", **given, shards=2, to="job"), twice=False)
    assert merge("job").to_json() == evaluate("policy.parquet", **given).to_json()
    os.utime("reference.parquet", ns=(0, 0))
    with pytest.raises(StorageError, match="reference.parquet: changed since job was split"):
        merge("job")
    assert folder.exists()


# --- results that are not there, or of another job


@pytest.mark.usefixtures("done_jobs")
def test_shards_without_a_result_are_named():
    for number in (0, 2):
        os.remove(f"figures/shards/0000{number}.zip")
    with pytest.raises(StorageError) as caught:
        merge("figures")
    assert str(caught.value) == (
        "figures: 2 of 3 shards have no result: 0, 2 (dpo-pipeline job run figures 0)"
    )
    assert JobPlan.read("figures").folder == "figures"


@pytest.mark.usefixtures("done_jobs")
def test_a_result_of_another_plan_is_refused_by_name():
    split(evaluate, "in", 0.2, on_invalid="exclude", shards=3, to="other")
    run("other", 1)
    shutil.copy("other/shards/00001.zip", "figures/shards/00001.zip")
    for act in (lambda: merge("figures"), lambda: run("figures", 1)):
        with pytest.raises(StorageError, match="s/shards/00001.zip: is a result of another plan"):
            act()
    os.remove("figures/shards/00001.zip")
    shutil.copy("figures/shards/00002.zip", "figures/shards/00001.zip")
    with pytest.raises(StorageError, match="00001.zip: is the result of shard 2, under another's"):
        merge("figures")


@pytest.mark.usefixtures("done_jobs")
def test_a_result_without_each_row_once_is_refused():
    path = "figures/shards/00001.zip"
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    head = json.loads(content["result.json"])
    pieces = head["sums"]["dict"]
    assert len(pieces) > 1
    for broken in (pieces[1:], [[pieces[0][0] + 1, pieces[0][1]], *pieces[1:]]):
        with zipfile.ZipFile(path, "w") as archive:
            for name, each in content.items():
                told = json.dumps({**head, "sums": {"dict": broken}}).encode()
                archive.writestr(name, told if name == "result.json" else each)
        with pytest.raises(StorageError, match="does not have each of the 167 rows of its shard"):
            merge("figures")


@pytest.mark.usefixtures("done_jobs")
def test_what_is_no_result_is_refused_and_not_run():
    with open("figures/shards/00001.zip", "rb") as file:
        content = file.read()
    made = pickle.dumps(Bomb())
    for broken in (b"", content[:-30], made):
        with open("figures/shards/00001.zip", "wb") as file:
            file.write(broken)
        with pytest.raises(StorageError, match="00001.zip: is no result of a shard"):
            merge("figures")
    assert Bomb.exploded == 0


class Bomb:
    """What must never be unpickled."""

    exploded = 0

    def __reduce__(self):
        return explode, ()


def explode():
    Bomb.exploded += 1


@pytest.mark.usefixtures("done_jobs")
def test_a_part_that_was_lost_is_named_and_written_again():
    path = "score/scored/3-00001.parquet"
    with open(path, "rb") as file:
        whole = file.read()
    with open(path, "ab") as file:
        file.write(b"more")
    with pytest.raises(StorageError, match="3-00001.parquet: is not as shard 1 wrote it"):
        merge("score")
    assert not run("score", 1).was_done
    with open(path, "rb") as file:
        assert file.read() == whole
    merge("score")
    assert os.path.exists("there/_SUCCESS")


DIES = """
import os, sys
import dpo_pipeline.storage.targets as targets
from dpo_pipeline.evaluation import measuring, shards
measuring.NEIGHBOURS_ROWS = shards.NEIGHBOURS_ROWS = 45
replace = os.replace
def last(attempt, path):
    if path.endswith(sys.argv[1]):
        os._exit(9)
    replace(attempt, path)
targets.os.replace = last
import dpo_pipeline.jobs
dpo_pipeline.jobs.run("score", 1)
"""


# `storage` kills commits at every call, and a test below has a lost part made anew.
@pytest.mark.slow
@pytest.mark.parametrize("ending", ["00001.zip", "3-00001.parquet"])
def test_a_run_that_is_killed_between_writing_and_moving_leaves_nothing_that_counts(
    done_jobs, ending
):
    job = JobPlan.read("score")
    written = read_result(job, job.shards[1]).parts
    assert {"3-00001.parquet"} < written["scored"].keys()
    for output, parts in written.items():
        for name in parts:
            os.remove(job.part_path(output, name))
    os.remove("score/shards/00001.zip")
    before = everything(done_jobs / "score")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    dead = subprocess.run([sys.executable, "-c", DIES, ending], env=environment, check=False)
    assert dead.returncode == 9
    left = everything(done_jobs / "score").keys() - before.keys()
    assert [os.path.basename(name)[0] for name in left].count(".") == 1  # what was written, hidden
    assert "shards/00001.zip" not in left
    with pytest.raises(StorageError, match="1 of 3 shards have no result: 1 "):
        merge("score")
    assert not run("score", 1).was_done
    merge("score")
    for name in ("", ".invalid"):
        assert everything(done_jobs / f"there{name}") == everything(done_jobs / f"here{name}")


@pytest.mark.usefixtures("folder")
def test_a_run_that_is_stopped_leaves_no_result():
    split(evaluate, "in", on_invalid="exclude", shards=2, to="job")
    stop = Event()

    def after_some_rows(progress):
        if progress.rows > 100:
            stop.set()

    with pytest.raises(Cancelled):
        run("job", 1, execution=Execution(progress=after_some_rows, cancel=stop))
    assert not os.path.exists("job/shards/00001.zip")


# --- inputs that changed


def grown(folder):
    shutil.copy(folder / "in" / "4.parquet", folder / "in" / "5.parquet")


def shrunk(folder):
    (folder / "in" / "0.parquet").unlink()


def touched(folder):
    os.utime(folder / "in" / "3.parquet", ns=(0, 0))


def other_footer(folder):
    """Change one number in the footer, and nothing that a listing of files shows."""
    path = folder / "in" / "3.parquet"
    was, content = path.stat(), path.read_bytes()
    changed = content.replace(b"Polars", b"polars", 1)
    assert changed != content
    path.write_bytes(changed)
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(grown, "5.parquet: came to the inputs since figures was split", id="one more"),
        pytest.param(shrunk, "0.parquet: is no input any more", id="one less"),
        pytest.param(touched, "3.parquet: changed since figures was split: split anew", id="time"),
        pytest.param(other_footer, "3.parquet: changed since figures was split", id="its footer"),
    ],
)
def test_inputs_that_changed_are_an_error(done_jobs, change, words):
    change(done_jobs)
    with pytest.raises(StorageError, match=words):
        merge("figures")
    os.remove("figures/shards/00001.zip")
    with pytest.raises(StorageError, match=words):
        run("figures", 1)


def test_a_copy_that_keeps_its_time_is_the_same_input(done_jobs):
    path = done_jobs / "in" / "3.parquet"
    was = path.stat()
    shutil.copy2(path, done_jobs / "copy")
    path.unlink()
    (done_jobs / "copy").rename(path)
    assert path.stat().st_ino != was.st_ino
    assert merge("figures").summary.n_valid == 498


# --- invalid pairs


def test_invalid_pairs_are_refused_by_the_merge_as_by_one_process(folder):
    given = {"scored": Scored(part_rows=50)}
    told = done(split(score_parquet, "in", "out", **given, shards=3, to="job"), twice=False)
    assert sorted((each.n_invalid, each.n_written > 0) for each in told) == [
        (0, True),
        (1, False),
        (1, False),
    ]
    errors = []
    for act in (lambda: merge("job"), lambda: score_parquet("in", "out", **given)):
        with pytest.raises(InvalidPairsError) as caught:
            act()
        errors.append(str(caught.value))
    assert errors[0] == errors[1]
    assert not (folder / "out").exists()


class Dated(pa.DataFrameModel):
    """A rule whose offenders JSON cannot hold."""

    day: date = pa.Field(ge=date(2024, 1, 1))


def test_what_was_found_in_invalid_pairs_keeps_its_type(folder):
    for path in [folder / "in" / "2.parquet"]:
        rows = pl.read_parquet(path)
        day = pl.lit(date(2023, 5, 6)) + pl.duration(days=pl.int_range(rows.height) * 20)
        rows.with_columns(day=day).write_parquet(path)
    given = {"contract": Dated, "on_invalid": "exclude"}
    done(split(evaluate, "in/2.parquet", **given, shards=2, to="job"), twice=False)
    found, expected = merge("job").invalid, evaluate("in/2.parquet", **given).invalid
    assert found == expected
    assert date(2023, 5, 6) in [o.value for rule in found.broken for o in rule.offenders]


def test_a_limit_of_invalid_pairs_is_of_all_shards(folder):
    for at_most, passes in ((2, True), (1, False)):
        name = f"job-{at_most}"
        asked = OnInvalid("exclude", at_most=at_most)
        done(split(evaluate, "in", on_invalid=asked, shards=2, to=name), twice=False)
        if passes:
            assert merge(name).summary.n_valid == 498
        else:
            with pytest.raises(InvalidPairsError, match="2 of 500 pairs are invalid, more than 1"):
                merge(name)
    assert folder.exists()
