"""What a job keeps of its call, and what cannot be split or run."""

from __future__ import annotations

import json
import os
from datetime import date

import pandera.polars as pa
import polars as pl
import pytest

from dpo_pipeline import (
    Batches,
    Contract,
    EngineError,
    Execution,
    Objective,
    OnInvalid,
    Outputs,
    Pairs,
    Scored,
    StatisticsOptions,
    StorageError,
    Subsets,
    UsageError,
    check,
    evaluate,
    score_parquet,
    sweep,
)
from dpo_pipeline.engine import Local
from dpo_pipeline.jobs import JobPlan, job_plan, merge, run, split
from dpo_pipeline.jobs.option_values import plain_paths
from pair_tools import LOGPS
from process_tools import everything

pytestmark = pytest.mark.filterwarnings("ignore::dpo_pipeline.DataWarning")


class Dated(pa.DataFrameModel):
    """A rule whose offenders JSON cannot hold."""

    day: date = pa.Field(ge=date(2024, 1, 1))


OPTIONS = {
    "evaluate": (
        evaluate,
        {
            "beta": 0.25,
            "loss": Objective(
                {"sigmoid": 1}, arguments={"label_smoothing": 0.1}, dialect="dpo-paper"
            ),
            "by": Subsets(["subset", "prompt_id"], histogram=True),
            "statistics": StatisticsOptions(level=0.9, weights={("x", 1): 2.0, ("y", 2): 1.0}),
            "contract": Contract(Dated, max_logp=0.125),
            "on_invalid": OnInvalid("exclude", at_most=0.5),
            "outputs": Outputs("s.json", overwrite=True),
            "batches": Batches(32, file="means.parquet"),
        },
    ),
    "sweep": (sweep, {"beta": [0.1, 1], "loss": ["ipo", {"sigmoid": 1.0}], "by": ("subset",)}),
    "score": (
        score_parquet,
        {
            "sink": "out",
            "scored": Scored(["pair_id", "subset"], replace=True, part_rows=60),
            "on_invalid": OnInvalid("quarantine", file="bad"),
        },
    ),
}


@pytest.mark.parametrize("command", OPTIONS)
def test_all_options_come_back_from_the_plan(folder, command):
    function, given = OPTIONS[command]
    for path in (folder / "in").iterdir():
        pl.read_parquet(path).with_columns(day=date(2024, 5, 6)).write_parquet(path)
    pairs = Pairs("in", columns={"policy_chosen_logps": LOGPS[0]})
    expected = function.plan(pairs, **given)
    split(function, pairs, **given, shards=2, to="job")
    job = JobPlan.read("job")
    found = job.call(job.groups(Local(), None))
    documents = [json.loads(each.to_json()) for each in (found, expected)]
    assert documents[0]["options"].pop("--engine") == "Local"
    assert documents[0] == documents[1]
    assert found.measurement.objectives == expected.measurement.objectives


def test_the_plan_is_readable_and_says_what_each_shard_reads(folder):
    job = split(evaluate, "in", 0.2, by="subset", on_invalid="exclude", shards=3, to="job")
    document = json.loads((folder / "job" / "plan.json").read_text())
    assert document["command"] == "evaluate"
    assert document["pairs"] == "in"
    assert document["options"] == {"beta": 0.2, "by": "subset", "on-invalid": "exclude"}
    assert set(document["versions"]) == {"dpo_pipeline", "polars", "pyarrow"}
    assert [file["path"] for file in document["inputs"]] == [f"in/{i}.parquet" for i in range(5)]
    rows = [file for shard in document["shards"] for file in shard["files"]]
    assert rows == [
        {"path": "in/0.parquet", "first": 0, "rows": 33},
        {"path": "in/2.parquet", "first": 0, "rows": 133},
        {"path": "in/2.parquet", "first": 133, "rows": 84},
        {"path": "in/3.parquet", "first": 0, "rows": 83},
        {"path": "in/3.parquet", "first": 83, "rows": 166},
        {"path": "in/4.parquet", "first": 0, "rows": 1},
    ]
    assert JobPlan.read("job") == job


def provider_of_none():
    raise AssertionError


def test_no_secret_is_kept(folder, monkeypatch):
    monkeypatch.setenv("AWS_SESSION_TOKEN", "hush-hush")
    reach = Execution(
        storage_options={"aws_secret_access_key": "hush-hush"}, credential_provider=provider_of_none
    )
    job = split(evaluate, "in", on_invalid="exclude", execution=reach, shards=2, to="job")
    for shard in job.shards:
        run("job", shard.number)
    assert merge("job").summary.n_valid == 498
    for content in everything(folder / "job").values():
        assert b"hush" not in content
        assert b"access_key" not in content
        assert b"provider_of_none" not in content


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param({"shards": 0}, "shards .--shards. must be a whole number", id="no shard"),
        pytest.param({"shards": 2.0}, "shards .--shards. must be a whole number", id="no count"),
        pytest.param({"shards": 2, "execution": "ray"}, "leave the engine out", id="engine"),
        pytest.param({"shards": 2, "to": "s3://bucket/job"}, "not in a store", id="store"),
        pytest.param(
            {"shards": 2, "contract": type("Unknown", (pa.DataFrameModel,), {})},
            "--contract: other processes import it by its name",
            id="a class that cannot be imported",
        ),
        pytest.param({"shards": 2, "by": "nowhere"}, "by: 'nowhere' is not a column", id="column"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_what_cannot_be_split_is_a_usage_error(arguments, words):
    with pytest.raises(UsageError, match=words):
        split(evaluate, "in", **{"to": "job", **arguments})
    assert not os.path.exists("job")


@pytest.mark.usefixtures("folder")
def test_only_calls_on_parquet_files_are_split(pairs):
    with pytest.raises(UsageError, match="a job is of evaluate, sweep or score_parquet, found"):
        split(check, "in", shards=2, to="job")
    with pytest.raises(UsageError, match="is no Parquet file"):
        split(evaluate, pairs, shards=2, to="job")
    with pytest.raises(UsageError, match=r"give part_rows \(--part-rows\)"):
        split(score_parquet, "in/2.parquet", "out.parquet", shards=2, to="job")
    with pytest.raises(UsageError, match=r"https://\*\*\*@host.*: the address holds a secret"):
        plain_paths("https://me:word@host/a.parquet", "pairs")


@pytest.mark.usefixtures("folder")
def test_a_folder_with_something_in_it_is_no_new_job():
    split(evaluate, "in", on_invalid="exclude", shards=2, to="job")
    with pytest.raises(StorageError, match="job: is not empty: name a new folder"):
        split(evaluate, "in", on_invalid="exclude", shards=3, to="job")
    assert len(JobPlan.read("job").shards) == 2


@pytest.mark.parametrize("number", [-1, 2, True, 1.0, "1"])
@pytest.mark.usefixtures("folder")
def test_a_number_of_no_shard(number):
    split(evaluate, "in", on_invalid="exclude", shards=2, to="job")
    with pytest.raises(UsageError, match="job has the shards 0 to 1, found"):
        run("job", number)


@pytest.mark.usefixtures("folder")
def test_a_plan_that_was_changed_or_is_of_other_versions(monkeypatch):
    split(evaluate, "in", on_invalid="exclude", shards=2, to="job")
    with open("job/plan.json") as file:
        text = file.read()
    for broken in (text[:-20], text.replace('"rows"', '"lines"'), "[]", '{"job": 1}', text + " "):
        with open("job/plan.json", "w") as file:
            file.write(broken)
        with pytest.raises(StorageError, match="plan.json: is no plan of a job, or was changed"):
            run("job", 0)
    with open("job/plan.json", "w") as file:
        file.write(text.replace('"job": 1', '"job": 2'))
    with pytest.raises(StorageError, match="another version of this library made it"):
        run("job", 0)
    with open("job/plan.json", "w") as file:
        file.write(text)
    monkeypatch.setattr(job_plan, "versions", lambda: {"polars": "0"})
    with pytest.raises(EngineError, match="and here is polars 0"):
        merge("job")
    with pytest.raises(StorageError, match="nowhere/plan.json: no such file"):
        run("nowhere", 0)


def test_elsewhere_relative_paths_are_said(folder, monkeypatch):
    split(evaluate, "in", on_invalid="exclude", shards=2, to="job")
    monkeypatch.chdir("/")
    with pytest.raises(StorageError, match="in: no such file") as caught:
        run(folder / "job", 0)
    assert caught.value.__notes__ == [f"{folder}/job was split in {folder}: paths are of there"]
    split(evaluate, str(folder / "in"), on_invalid="exclude", shards=2, to=folder / "whole")
    assert run(folder / "whole", 0).n_pairs == 250
