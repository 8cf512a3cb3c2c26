"""Runs on a Ray cluster: the bits of a run here, also when workers, nodes and drivers are killed.

One process (`ray_tools.py`) plays all scenes, and the tests judge what it printed, in the gate on
the cluster that a run starts itself. The slow tests do it on a head and two nodes, where a node and
a driver are killed too. What every executor must keep is told by default: `test_executors.py`.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec

import pytest

from dpo_pipeline import EngineError, Execution, UsageError, evaluate, score_parquet
from dpo_pipeline.engine import ray_executor as ray_engine
from dpo_pipeline.engine.ray_executor import RayExecutor
from pair_tools import ROOT, TOOLS

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")

TOOL = TOOLS / "ray_tools.py"
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "0" * 24 + "01000000"}
N_PARTS = 18
TASKS = {
    "Work": 5,  # 690 pairs in shards of 150
    "scored": N_PARTS,  # six files of 115 pairs in row groups of 40
    "invalid": N_PARTS,
}


def environment(temporary, place):
    """What keeps a cluster on loopback, asks for a token and notices soon that a node is gone.

    A cluster that a run starts itself does the first two without being told.
    """
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    plain |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": temporary}
    if place == "own":
        return plain
    return {
        **plain,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_health_check_period_ms": "500",
        "RAY_health_check_failure_threshold": "2",
        "RAY_health_check_initial_delay_ms": "500",
    }


# Ray 2.60 ends a process whose task is done at the moment in which it is cancelled.
FAULT_OF_RAY = "You have likely discovered a bug in Ray"


def played(folder, place):
    folder.mkdir()
    temporary = tempfile.mkdtemp(prefix="ray")  # the names of sockets in it must be short
    try:
        return subprocess.run(
            [sys.executable, str(TOOL), place, str(folder)],
            env=environment(temporary, place),
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=1_200,
        )
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


# Three nodes cost as much again, and only the tests of nodes and drivers need them.
@pytest.fixture(
    scope="module",
    params=[
        pytest.param("own", marks=pytest.mark.outside),
        pytest.param("nodes", marks=pytest.mark.slow),
    ],
)
def place(request):
    return request.param


@pytest.fixture(scope="module")
def scenes(tmp_path_factory, place):
    folder = tmp_path_factory.mktemp("ray")
    for attempt in "abc":
        done = played(folder / attempt, place)
        if FAULT_OF_RAY not in done.stderr:
            break
    assert done.returncode == 0, done.stdout + done.stderr
    sys.stderr.write(done.stderr)  # scenes that failed, shown with the tests that miss them
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"scene"')]
    return {line.pop("scene"): line for line in lines}


def same_as_here(scene, scenes):
    """Whether a run left the files of a run here, no other one, and gave the same figures."""
    here = scenes["local"]
    return [scene["files"] == here["files"], scene["document"] == here["document"]] == [True, True]


def test_the_run_here_is_of_something(scenes):
    files = scenes["local"]["files"]
    assert sum(name.startswith("out/") for name in files) == N_PARTS + 1
    assert sum(name.startswith("out.invalid/") for name in files) == N_PARTS + 1
    # Eight invalid pairs in all; a part without any is like the next one, and no scored one is.
    assert len({files[name] for name in files if name.startswith("out/")}) == N_PARTS + 1
    document = json.loads(scenes["local"]["document"])
    assert document["summary"]["n_invalid"] == 8
    assert len(document["batches"]) == 11


def test_any_number_of_workers_gives_the_bits_of_a_run_here(scenes, place):
    for workers in (2,) if place == "own" else (1, 2, 4):
        scene = scenes[f"{workers} workers"]
        assert same_as_here(scene, scenes)
        times = {
            name: {scene["attempts"][f"{name}-{i}"] for i in range(n)} for name, n in TASKS.items()
        }
        assert times == {name: {1} for name in TASKS}
    if place == "nodes":
        assert scene["workers"] >= 3


@pytest.mark.parametrize("kind", ["of batches", "by value"])
def test_evaluate_gives_the_figures_of_a_run_here(scenes, kind):
    here, there = scenes["evaluate"]["figures"][kind]
    assert here == there


def test_batches_differ_between_kinds(scenes):
    assert len({here for here, _ in scenes["evaluate"]["figures"].values()}) == 2


def test_what_is_killed_between_sink_and_move_runs_again(scenes, place):
    for victim in ("worker",) if place == "own" else ("worker", "node"):
        scene = scenes[f"killed {victim}"]
        assert scene["attempts"]["scored-2"] >= 2
        assert same_as_here(scene, scenes)


@pytest.mark.slow  # the driver of the other tests ends with its cluster
@pytest.mark.parametrize("place", ["nodes"], indirect=True)
def test_a_killed_driver_publishes_nothing_and_a_rerun_does(scenes):
    scene = scenes["killed driver"]
    assert scene["left"] == {}  # parts are written in a hidden folder beside the output
    assert same_as_here(scene, scenes)


def test_a_broken_contract_is_not_tried_again_and_leaves_nothing(scenes):
    scene = scenes["broken contract"]
    assert scene["error"] == "a contract that is broken"
    assert scene["attempts"]["scored-2"] == 1
    assert scene["files"] == {}


def test_a_cancelled_run_ends_its_tasks_and_leaves_nothing(scenes):
    scene = scenes["cancelled"]  # that it is said means that the worker that waited is gone
    assert scene["attempts"]["scored-2"] == 1
    assert "scored-17" not in scene["attempts"]
    assert scene["files"] == {}


def test_the_cluster_is_on_loopback_and_asks_for_a_token(scenes, place):
    facts = scenes["cluster"]
    assert facts["nodes"] == (1 if place == "own" else 3)
    assert (facts["mode"], facts["token"]) == ("token", 64)
    assert not facts["dashboard"]
    addresses = set(scenes["sockets"]["addresses"])
    assert addresses
    assert addresses <= LOOPBACK


# --- what needs no cluster


def test_one_output_file_has_one_writer(tmp_path):
    with pytest.raises(UsageError, match=r"give part_rows \(--part-rows\)"):
        score_parquet("examples/pairs.parquet", tmp_path / "out.parquet", execution="ray")


def test_a_dataframe_stays_here(pairs):
    with pytest.raises(UsageError, match="is no Parquet file: engines and jobs read no other"):
        evaluate(pairs, execution="ray")


@pytest.mark.parametrize("engine", ["spark", 3, Execution(None)])
def test_there_are_two_names_of_engines(pairs, engine):
    with pytest.raises(UsageError, match="engine must be 'local', 'ray' or an executor"):
        evaluate(pairs, execution=engine)


def test_without_ray_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match="pip install ray"):
        next(RayExecutor()(list, [], lambda: None))


def test_a_worker_with_other_versions_is_refused():
    asked = {"dpo_pipeline": "0", "polars": "0", "pyarrow": "0"}
    with pytest.raises(EngineError, match="a Ray worker has .* and this process has .*'0'"):
        ray_engine._run(list, None, ".", asked)  # noqa: SLF001


@pytest.mark.outside  # Ray alone takes a second to import
def test_a_cluster_that_is_not_there_is_said_at_once():
    with pytest.raises(EngineError, match="Ray on 127.0.0.1:1: .*refused"):
        next(RayExecutor(address="127.0.0.1:1")(list, [], lambda: None))


def test_the_adapter_is_small():
    source = (ROOT / "dpo_pipeline" / "engine" / "ray_executor.py").read_text()
    code = [line for line in source.splitlines() if line.strip()]
    assert len(code) <= 130
