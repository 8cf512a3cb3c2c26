"""What the front page tells a reader to type works on files of these kinds."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import shutil

import polars as pl
import pytest
from pyarrow import ipc

from dpo_pipeline.cli.program import main
from pair_tools import COUNTS, LOGPS, ROOT

SAMPLES = ROOT / "tests" / "data" / "formats"
ROW = re.compile(r"^\| (?P<data>[^|]+) \| `(?P<command>dpo-pipeline [^`]+)`", re.MULTILINE)
COMMANDS = [
    pytest.param(shlex.split(row["command"]), id=row["data"])
    for row in ROW.finditer((ROOT / "README.md").read_text())
    if "dpo-pipeline logps" not in row["command"]  # it needs models: tests/models runs it
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, real_pairs):
    """A folder with a file of each kind, under the names that the page gives them."""
    place = tmp_path_factory.mktemp("mine")
    parts = sorted((SAMPLES / "trl_dataset").glob("data-*.arrow"))
    tokens = [row for p in parts for row in ipc.open_stream(p.read_bytes()).read_all().to_pylist()]
    pairs = real_pairs.head(len(tokens)).with_columns(
        pl.int_range(pl.len()).alias("pair_id"),
        *(
            pl.Series(name, [len(row[key]) for row in tokens])
            for name, key in zip(COUNTS, ("chosen_ids", "rejected_ids"), strict=True)
        ),
    )
    policy, reference = LOGPS[:2], LOGPS[2:]
    renamed = {name: name.removeprefix("policy_") for name in policy}
    short = {name: name.removeprefix("policy_").replace("logps", "lp") for name in policy}
    other = pl.col(policy) - 1.5 * (pl.int_range(pl.len()) % 2)
    tables = {
        "pairs.parquet": pairs,
        "policy.parquet": pairs.drop(reference),
        "policy_b.parquet": pairs.drop(reference).with_columns(other),
        "ref.parquet": pairs.select("pair_id", *reference),
        "scored_ref.parquet": pairs.select(
            "pair_id", *(pl.col(b).alias(a) for a, b in zip(policy, reference, strict=True))
        ),
        "trl.parquet": pairs.rename(renamed),
    }
    for name, table in tables.items():
        table.write_parquet(place / name)
    pairs.rename(short).write_csv(place / "pairs.csv")
    (place / "runs").mkdir()
    shutil.copy(place / "pairs.parquet", place / "runs")
    shutil.copytree(SAMPLES / "trl_dataset", place / "trl_dataset")
    shutil.copy(SAMPLES / "vllm_policy.jsonl", place / "policy.jsonl")
    shutil.copy(SAMPLES / "vllm_reference.jsonl", place / "ref.jsonl")
    shutil.copy(SAMPLES / "rewardbench_eval_set_scores.json", place / "scores.json")
    shutil.copy(ROOT / "examples" / "completions.csv", place)
    scores = {"id": [1, 2, 3], "subset": ["Math"] * 3, "scores": [[2.0, 0.5, 1.0, 0.0]] * 3}
    scores |= {"results": [1.0] * 3, "num_correct": [1] * 3, "text": [["t"] * 4] * 3}
    (place / "scores2.json").write_text(json.dumps(scores))
    return place


@pytest.mark.parametrize("words", COMMANDS)
def test_each_command_of_i_have_works(folder, monkeypatch, capsys, words):
    monkeypatch.chdir(folder)
    assert main([*words[1:], "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    if words[1] == "rank":
        assert document["rewardbench"]["subsets"] == {"Math": 1.0}
        return
    found = document.get("summary") or document["b"]["summary"]
    assert found["n_valid"] >= 3
    assert found["n_ties"] < found["n_valid"], "the reference is the policy itself"


def test_the_commands_are_found():
    assert len(COMMANDS) >= 9


def test_the_notebook_runs_as_plain_code(tmp_path, monkeypatch, capsys):
    notebook = json.loads((ROOT / "examples" / "quick_start.ipynb").read_text())
    assert all(not cell.get("outputs") for cell in notebook["cells"])
    for path in (ROOT / "examples").glob("*.parquet"):
        shutil.copy(path, tmp_path)
    monkeypatch.chdir(tmp_path)
    codes = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    exec(compile("\n".join(codes), "quick_start.ipynb", "exec"), {"__name__": "notebook"})  # noqa: S102
    assert "Likelihood displacement" in capsys.readouterr().out
    assert (tmp_path / "quick_start.html").stat().st_size > 100_000


# Each needs a library of its own (extra `trackers`), and starts a process or a database.
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("library", ["mlflow", "wandb"])
def test_a_recipe_logs_the_figures(tmp_path, monkeypatch, library):
    pytest.importorskip(library)
    page = (ROOT / "examples" / "recipes.md").read_text()
    (code,) = [
        block
        for block in re.findall(r"^```py\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
        if f"import {library}" in block
    ]
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")
    exec(compile(code, "recipes.md", "exec"), {"__name__": "recipe"})  # noqa: S102
    # By hand: 114 of the 200 pairs have the larger chosen reward.
    if library == "mlflow":
        (run,) = importlib.import_module("mlflow").search_runs(output_format="list")
        assert run.data.metrics["eval_rewards/accuracies"] == pytest.approx(114 / 200)
    else:
        (log,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
        assert re.search(rb"eval_rewards/accuracies.{0,8}0\.57", log.read_bytes(), re.DOTALL)
