"""The commands of jobs: split, run and merged they print and write what one command does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dpo_pipeline.cli.program import main
from dpo_pipeline.errors import UsageError
from pair_tools import ROOT


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with the example pairs."""
    shutil.copy(ROOT / "examples" / "pairs.parquet", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys, *words):
    code = main([*map(str, words)])
    out, err = capsys.readouterr()
    return code, out, err


def split(capsys, *words):
    code, out, err = run(capsys, "job", "split", *words, "--shards", 2, "--to", "job")
    assert (code, err) == (0, "")
    for k in (1, 0):
        assert run(capsys, "job", "run", "job", k)[0] == 0
    return out


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["evaluate", "pairs.parquet", "--by", "split"], id="evaluate"),
        pytest.param(["sweep", "pairs.parquet", "--beta", "0.1", "--beta", "0.2"], id="sweep"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_a_merge_prints_what_one_command_prints(capsys, words):
    assert "job: " in split(capsys, *words)
    for more in ([], ["--json"]):
        found, expected = run(capsys, "job", "merge", "job", *more), run(capsys, *words, *more)
        assert found == expected
        assert found[0] == 0


def test_a_merge_writes_what_a_score_writes(folder, capsys):
    words = ["pairs.parquet", "out", "--part-rows", 50, "--summary", "summary.json"]
    split(capsys, "score", *words)
    assert not (folder / "out").exists()
    found = run(capsys, "job", "merge", "job")
    files = {path.name: path.read_bytes() for path in (folder / "out").iterdir()}
    summary = (folder / "summary.json").read_bytes()
    assert found == run(capsys, "score", *words, "--overwrite")
    assert files == {path.name: path.read_bytes() for path in (folder / "out").iterdir()}
    assert summary == (folder / "summary.json").read_bytes()


def test_what_a_merge_lacks_is_given_to_a_new_split(folder, capsys):
    """Neither it nor `job run` has the options of the call, so no command with them is printed."""
    advice = "a job keeps the options of its split: split it anew, with "
    shutil.copy(ROOT / "examples" / "broken.parquet", folder)
    split(capsys, "evaluate", "broken.parquet")
    code, _, err = run(capsys, "job", "merge", "job")
    assert (code, err.splitlines()[-1]) == (1, f"{advice}--on-invalid exclude")
    shutil.rmtree("job")
    split(capsys, "score", "pairs.parquet", "out", "--part-rows", 50)
    assert run(capsys, "job", "merge", "job", "-q")[0] == 0
    code, _, err = run(capsys, "job", "merge", "job")
    assert (code, err.splitlines()[-1]) == (3, f"{advice}--overwrite")
    assert "try:" not in err


@pytest.mark.usefixtures("folder")
def test_gates_are_of_the_merge(capsys):
    split(capsys, "evaluate", "pairs.parquet")
    assert run(capsys, "job", "merge", "job", "--fail-under", "reward_accuracy=0.1")[0] == 0
    code, out, err = run(capsys, "job", "merge", "job", "--fail-under", "reward_accuracy=0.99")
    assert code == 4
    assert "pairs.parquet: 200 pairs" in out
    assert "reward_accuracy is" in err
    for words in (["--fail-under", "los=1"], ["--fail-under", "loss=1", "--fail-on-interval"]):
        code, out, err = run(capsys, "job", "merge", "job", *words)
        assert (code, out) == (2, "")
    assert "split anew, with --statistics" in err


@pytest.mark.usefixtures("folder")
def test_a_sweep_has_no_gates(capsys):
    split(capsys, "sweep", "pairs.parquet", "--beta", "0.1")
    code, _, err = run(capsys, "job", "merge", "job", "--fail-over", "loss=1")
    assert code == 2
    assert "a sweep has no gates" in err


def test_a_dry_run_and_a_json_plan(folder, capsys):
    words = ["evaluate", "pairs.parquet", "--shards", 2, "--to", "job"]
    code, out, _ = run(capsys, "job", "split", *words, "--dry-run")
    assert code == 0
    assert "a dry run, so nothing was computed or written" in out
    assert not (folder / "job").exists()
    code, out, _ = run(capsys, "job", "split", *words, "--json")
    assert json.loads(out) == json.loads((folder / "job" / "plan.json").read_text())
    code, out, _ = run(capsys, "job", "run", "job", 0, "--json")
    assert json.loads(out)["n_pairs"] == 200


def test_settings_of_a_command_are_those_of_its_split(folder, capsys, monkeypatch):
    Path("pyproject.toml").write_text("[tool.dpo-pipeline.evaluate]\nbeta = 0.3\n")
    monkeypatch.setenv("DPO_PIPELINE_EVALUATE_BATCH_SIZE", "50")
    monkeypatch.setenv("DPO_PIPELINE_BY", "split")
    words = ["evaluate", "pairs.parquet", "--shards", 1, "--to", "job", "--max-logp", "0.125"]
    code, _, err = run(capsys, "job", "split", *words)
    assert code == 0
    assert "setting: beta = 0.3, from " in err
    plan = json.loads((folder / "job" / "plan.json").read_text())
    assert plan["options"] == {"beta": 0.3, "batch-size": 50, "by": ["split"], "max-logp": 0.125}


@pytest.mark.usefixtures("folder")
def test_how_a_store_is_reached_is_given_to_each_run(capsys, monkeypatch):
    from dpo_pipeline import jobs

    seen = []

    def note(*_, execution):
        seen.append(execution.storage_options)
        raise UsageError("seen")

    split(capsys, "evaluate", "pairs.parquet", "--storage-option", "aws_region=x")
    monkeypatch.setattr(jobs, "run", note)
    monkeypatch.setattr(jobs, "merge", note)
    monkeypatch.setenv("DPO_PIPELINE_STORAGE_OPTION", "aws_token=hush")
    assert run(capsys, "job", "run", "job", 0)[0] == 2
    assert run(capsys, "job", "merge", "job", "--storage-option", "aws_region=y")[0] == 2
    assert seen == [{"aws_token": "hush"}, {"aws_region": "y"}]
