"""A Ray cluster on loopback, runs on it that meet with faults, and what came of them as JSON.

python ray_tools.py all FOLDER          a head and two nodes; every scene, one line of JSON each
python ray_tools.py drive FOLDER        one run on the cluster of RAY_ADDRESS, to be killed
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from functools import partial
from pathlib import Path

import polars as pl
import ray
from ray.cluster_utils import Cluster

import dpo_pipeline
from dpo_pipeline.engine.ray_executor import RayExecutor
from dpo_pipeline.evaluation import measuring
from dpo_pipeline.sums import batches
from option_tools import grouped
from pair_tools import DATA
from process_tools import until

SHARD_ROWS = 150
ARGUMENTS = {"batch_size": 64, "by": "split", "histogram": True, "on_invalid": "quarantine"}
BEGAN = time.monotonic()
FOREVER = 3_600
FEW = 2  # so that few new workers are needed after each fault, which cost the most
FEWEST = 1  # on the cluster of the default tests
WRITING = "scored"


class Noted:
    """A function that notes its attempts at each task; the first one may meet with a fault."""

    def __init__(self, function, log, fault, at, together):
        self.function, self.log, self.fault, self.at = function, log, fault, at
        self.together = together
        self.name = getattr(function, "__name__", type(function).__name__)

    def __call__(self, task):
        number = len(list(self.log.glob(f"{self.name}-{task.index}-*")))
        note = self.log / f"{self.name}-{task.index}-{number}"
        note.write_text(f"{os.getpid()} {os.getppid()}")
        if self.name == WRITING:  # or the first worker may do it all before the others are there
            until(lambda: workers_of(self.log) >= self.together)
        if self.name == WRITING and task.index == self.at and number == 0 and self.fault:
            moved = os.replace
            os.replace = lambda *_: self.meet(note)
            try:
                yield from self.function(task)
            finally:
                os.replace = moved
        else:
            yield from self.function(task)

    def meet(self, note):
        note.with_name("now-" + note.name).write_text(note.read_text())
        if self.fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == "raise":
            raise dpo_pipeline.ContractError("a contract that is broken")
        time.sleep(FOREVER)


class Engine:
    """Ray, with attempts noted and a fault where it is asked for."""

    elsewhere = True

    def __init__(self, log, fault=None, at=2, together=1, **arguments):
        self.log, self.fault, self.at, self.together = log, fault, at, together
        log.mkdir()
        self.ray = RayExecutor(**arguments)

    def __call__(self, function, tasks, check):
        return self.ray(Noted(function, self.log, self.fault, self.at, self.together), tasks, check)

    def attempts(self):
        """How often each task was begun."""
        counts = {}
        for note in self.log.glob("[!n]*"):
            task = note.name.rpartition("-")[0]
            counts[task] = counts.get(task, 0) + 1
        return counts

    def waiting(self):
        """The process and the parent of the attempt that waits."""
        return [int(x) for x in until(lambda: list(self.log.glob("now-*")))[0].read_text().split()]


def workers_of(log):
    """How many processes have begun to write."""
    texts = [note.read_text() for note in log.glob(f"{WRITING}-*")]
    return len({text.split()[0] for text in texts if text})


def make_pairs(folder):
    """Six files of 115 pairs, some of them invalid, in row groups of 40."""
    pairs = pl.read_parquet(DATA / "hh_harmless_policy_a_test.parquet")
    pairs = pairs.head(690).with_columns(
        policy_chosen_logps=pl.when(pl.int_range(pl.len()) % 97 == 5)
        .then(1.0)
        .otherwise("policy_chosen_logps"),
        split=pl.when(pl.int_range(pl.len()) % 3 == 0).then(pl.lit("a")).otherwise(pl.lit("b")),
    )
    (folder / "in").mkdir()
    for i in range(6):
        pairs[115 * i : 115 * (i + 1)].write_parquet(
            folder / "in" / f"{i}.parquet", row_group_size=40
        )


def score(folder, name, engine, **more):
    return dpo_pipeline.score_parquet(
        folder / "in", folder / name, **grouped(engine=engine, part_rows=40, **ARGUMENTS, **more)
    )


def printed(folder, name, result):
    """Say what a run left: the bits of every file, visible or not, and its figures."""
    files = {}
    for root in (folder / name, folder / f"{name}.invalid"):
        for path in sorted(root.rglob("*")):
            if path.is_file():
                relative = str(path.relative_to(folder)).replace(name, "out", 1)
                files[relative] = hashlib.sha256(path.read_bytes()).hexdigest()
    document = None if result is None else result.to_json()
    return {"files": files, "document": document}


def family(pid):
    """A process and all that came of it."""
    children = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found, todo = [], [pid]
    while todo:
        found.append(todo.pop())
        todo += children.get(found[-1], [])
    return found


def listening(pids):
    """Addresses other than of loopback at which one of these processes listens."""
    inodes = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                inodes[fields[9]] = fields[1].rpartition(":")[0]
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):
            for handle in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    link = os.readlink(handle)
                    if link.startswith("socket:["):
                        found.append(inodes.get(link[8:-1]))
    return [address for address in found if address is not None]


def say(scene, **facts):
    seconds = round(time.monotonic() - BEGAN, 1)
    print(json.dumps({"scene": scene, "seconds": seconds, **facts}), flush=True)  # noqa: T201


def identity(folder, counts=(1, 2, 4)):
    for workers in counts:
        engine = Engine(folder / f"log-{workers}", together=min(workers, 3), max_in_flight=workers)
        result = score(folder, f"ray-{workers}", engine)
        say(
            f"{workers} workers",
            workers=workers_of(engine.log),
            attempts=engine.attempts(),
            **printed(folder, f"ray-{workers}", result),
        )
    figures = {}
    for name, arguments in {
        "of batches": {"loss": "aot", "batch_size": 32},
        "by value": {"batch_by": "split"},
    }.items():
        both = [
            dpo_pipeline.evaluate(
                folder / "in", **grouped(engine=engine, on_invalid="exclude", **arguments)
            ).to_json()
            for engine in ("local", "ray")
        ]
        figures[name] = [hashlib.sha256(text.encode()).hexdigest() for text in both]
    say("evaluate", figures=figures)


def killed_worker(folder):
    engine = Engine(folder / "log-worker", "kill", max_in_flight=FEW)
    result = score(folder, "worker", engine)
    say("killed worker", attempts=engine.attempts(), **printed(folder, "worker", result))


def sockets(_folder):
    say("sockets", addresses=sorted(set(listening(family(os.getpid())))))


def broken_contract(folder):
    engine = Engine(folder / "log-contract", "raise", max_in_flight=FEW)
    try:
        score(folder, "contract", engine)
    except dpo_pipeline.ContractError as error:
        say(
            "broken contract",
            error=str(error),
            attempts=engine.attempts(),
            **printed(folder, "contract", None),
        )


def cancelled(folder):
    engine = Engine(folder / "log-cancel", "wait", max_in_flight=FEW)
    cancel = threading.Event()

    def stop():
        engine.waiting()
        cancel.set()

    threading.Thread(target=stop).start()
    try:
        score(folder, "cancel", engine, cancel=cancel)
    except dpo_pipeline.Cancelled:
        pid, _ = engine.waiting()
        until(lambda: not is_there(pid))
        say("cancelled", attempts=engine.attempts(), **printed(folder, "cancel", None))


def is_there(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def killed_driver(folder, address):
    driver = subprocess.Popen(
        [sys.executable, __file__, "drive", str(folder)],
        env={**os.environ, "RAY_ADDRESS": address},
    )
    waiting = folder / "log-driver"
    until(lambda: list(waiting.glob("now-*")) or driver.poll() is not None)
    driver.kill()
    driver.wait()
    left = printed(folder, "driver", None)["files"]
    result = score(folder, "driver", RayExecutor(max_in_flight=FEW))
    say("killed driver", left=left, **printed(folder, "driver", result))


def killed_node(folder):
    engine = Engine(folder / "log-node", "wait", max_in_flight=FEW)
    nodes = len(live_nodes())

    def kill():
        _, raylet = engine.waiting()
        node = family(raylet)
        assert set(node) < set(family(os.getpid())), "not of this cluster"
        for pid in node:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    threading.Thread(target=kill).start()
    result = score(folder, "node", engine)
    until(lambda: len(live_nodes()) == nodes - 1)
    say("killed node", attempts=engine.attempts(), **printed(folder, "node", result))


def live_nodes():
    return [node for node in ray.nodes() if node["Alive"]]


def settings():
    measuring.SHARD_ROWS = batches.SHARD_ROWS = SHARD_ROWS


def here(folder):
    settings()
    make_pairs(folder)
    say("local", **printed(folder, "local", score(folder, "local", "local")))


def play(folder, *scenes):
    for scene in scenes:
        try:
            scene(folder)
        except Exception:  # noqa: BLE001  its tests miss what it would have said
            traceback.print_exc()


def on_its_own(folder):
    """Play what needs one node, on the cluster that the first run starts."""
    global FEW  # noqa: PLW0603
    FEW = FEWEST
    here(folder)
    try:
        play(folder, partial(identity, counts=(2,)), cluster, sockets)
        play(folder, broken_contract, cancelled, killed_worker)
    finally:
        ray.shutdown()


def cluster(_folder):
    say(
        "cluster",
        nodes=len(live_nodes()),
        mode=os.environ.get("RAY_AUTH_MODE"),
        token=len(os.environ.get("RAY_AUTH_TOKEN", "")),
        dashboard=ray._private.worker.get_dashboard_url(),  # noqa: SLF001
    )


def on_nodes(folder):
    here(folder)
    memory = {"object_store_memory": 80 * 2**20}
    nodes = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **memory}
    )
    try:
        for _ in range(2):
            nodes.add_node(num_cpus=2, **memory)
        ray.init(nodes.address, log_to_driver=False, logging_level="ERROR")
        play(folder, identity, cluster, sockets, broken_contract, cancelled, killed_worker)
        play(folder, partial(killed_driver, address=nodes.address), killed_node)
    finally:
        ray.shutdown()
        nodes.shutdown()


def drive(folder):
    settings()
    score(folder, "driver", Engine(folder / "log-driver", "wait", max_in_flight=FEW))


if __name__ == "__main__":
    {"own": on_its_own, "nodes": on_nodes, "drive": drive}[sys.argv[1]](Path(sys.argv[2]))
