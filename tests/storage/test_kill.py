"""`kill -9` in every phase of a real process, and at every step of the commit.

Whatever is left is nothing, the old output or the complete new one, and a rerun works and sweeps.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest

from dpo_pipeline import StorageError, score_parquet
from dpo_pipeline.storage.output_checks import PART_KEY
from option_tools import grouped
from pair_tools import TOOLS
from process_tools import PATIENCE

TOOL = TOOLS / "fault_tools.py"
OLD, NEW = 0.1, 0.5
WORKERS = 3


@dataclass(frozen=True)
class Scene:
    """A job, and what stands at its target before: nothing, or an output of the same job."""

    shape: str
    over: str

    def __str__(self):
        return f"{self.shape} over {self.over}"

    @property
    def overwrite(self):
        return self.over == "old"

    def source(self, stage):
        return str(stage / ("pairs.parquet" if self.shape == "file" else "in"))

    def sink(self, folder):
        return str(folder / ("out.parquet" if self.shape == "file" else "out"))

    def arguments(self, folder, beta):
        return {
            "beta": beta,
            "on_invalid": "quarantine",
            "invalid": str(folder / ("apart.parquet" if self.shape == "file" else "apart")),
            "batch_size": 100,
            "batches": str(folder / "means.parquet"),
            "overwrite": self.overwrite,
        }


SCENES = [Scene(shape, over) for shape in ("file", "folder") for over in ("nothing", "old")]


def named(folder):
    """Return the files in a folder, and whether they or a folder of theirs is hidden."""
    paths = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]
    names = {str(path.relative_to(folder)): path for path in paths}
    return [(name, path, "/." in f"/{name}") for name, path in names.items()]


def visible(folder):
    """Return the bytes of what has its final name."""
    return {name: path.read_bytes() for name, path, is_hidden in named(folder) if not is_hidden}


def hidden(folder):
    return [name for name, _, is_hidden in named(folder) if is_hidden]


def put(folder, files):
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


class Stage:
    """Inputs with some invalid pairs, and the outputs that a run leaves if nothing disturbs it."""

    def __init__(self, root, real_pairs):
        self.root = root
        large = pl.concat([real_pairs] * 3).with_columns(
            policy_chosen_logps=pl.when(pl.int_range(pl.len()) % 1_000 == 7)
            .then(1.0)
            .otherwise("policy_chosen_logps")
        )
        large.write_parquet(root / "pairs.parquet", compression="uncompressed")
        (root / "in" / "deep").mkdir(parents=True)
        large[:800].write_parquet(root / "in" / "a.parquet")
        large[800:].write_parquet(root / "in" / "deep" / "b.parquet")

    def whole(self, shape, beta):
        """Return the files of a run that nothing disturbs."""
        scene = Scene(shape, "nothing")
        folder = self.root / f"{shape} {beta}"
        if not folder.exists():
            folder.mkdir()
            score_parquet(
                scene.source(self.root),
                scene.sink(folder),
                **grouped(**scene.arguments(folder, beta)),
            )
        return visible(folder)

    def new(self, scene):
        return self.whole(scene.shape, NEW)

    def old(self, scene):
        """Return the files at the target before; a folder has parts that the new one has not."""
        files = dict(self.whole(scene.shape, OLD))
        for name in ("out", "apart") if scene.shape == "folder" else ():
            stale = io.BytesIO()
            part = pl.read_parquet(io.BytesIO(files[f"{name}/a.parquet"]))
            part.write_parquet(stale, metadata={PART_KEY: "stale.parquet"})
            files[f"{name}/stale.parquet"] = stale.getvalue()
        return files

    def kill(self, folder, scene, *, wait_at=None, after=0.0, phase=None, before=None):
        """Kill a run where it waits, or some time after it came to a phase; return where.

        `before` is called before, with the scene and its folder.
        """
        folder.mkdir()
        if scene.overwrite:
            put(folder, self.old(scene))
        order = {
            "source": scene.source(self.root),
            "sink": scene.sink(folder),
            "arguments": scene.arguments(folder, NEW),
            "wait_at": wait_at,
            "shard_rows": 500,
        }
        process = subprocess.Popen(
            [sys.executable, str(TOOL), "job", json.dumps(order)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        watchdog = Watchdog(process)
        seen = []
        try:
            for line in process.stdout:
                seen.append(line.split())
                if seen[-1][0] == "waiting" or (phase and seen[-1][1] == phase):
                    break
            time.sleep(after)
            if before is not None:
                before(scene, folder)
        finally:
            process.kill()
            rest, errors = process.communicate(timeout=PATIENCE)
            watchdog.stop()
        assert seen, errors
        seen += [line.split() for line in rest.splitlines() if line]
        waiting = [place for place in seen if place[0] == "waiting"]
        return (waiting or seen)[-1], process.returncode

    def examine(self, folder, scene):
        """Assert what may be left; return whether the new output is published."""
        old, new = self.old(scene) if scene.overwrite else {}, self.new(scene)
        found = visible(folder)
        for name, data in found.items():
            assert data in {old.get(name), new.get(name)}, f"{name} is neither old nor new"
        for name in ("out", "apart") if scene.shape == "folder" else ():
            assert within(found, name) in (within(old, name), within(new, name)), name
        for name in old if scene.shape == "file" else ():
            assert name in found, f"{name} is gone"
        is_last = within(found, "out") or within(found, "out.parquet")
        done = is_last == (within(new, "out") or within(new, "out.parquet"))
        if done:
            assert found == new, "the commit came before the rest"
        return done

    def rerun(self, folder, scene, *, done):
        arguments = scene.arguments(folder, NEW)
        if done and not scene.overwrite:
            with pytest.raises(StorageError, match=r"exists already|not empty"):
                score_parquet(scene.source(self.root), scene.sink(folder), **grouped(**arguments))
        else:
            score_parquet(scene.source(self.root), scene.sink(folder), **grouped(**arguments))
        assert visible(folder) == self.new(scene)
        assert hidden(folder) == []


class Watchdog:
    """Kills a process that takes too long, which then fails its test."""

    def __init__(self, process):
        self.pool = ThreadPoolExecutor(1)
        self.process = process
        self.future = self.pool.submit(self.watch)

    def watch(self):
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(PATIENCE)
            return
        self.process.kill()

    def stop(self):
        self.future.result(PATIENCE)
        self.pool.shutdown()


def within(files, folder):
    return {name: data for name, data in files.items() if f"{name}/".startswith(f"{folder}/")}


@pytest.fixture(scope="module")
def stage(tmp_path_factory, real_pairs):
    return Stage(tmp_path_factory.mktemp("stage"), real_pairs)


def try_all(stage, tmp_path, cases):
    """Kill one run for each case, a few at a time; return where each was."""

    def one(number):
        scene, options = cases[number]
        return stage.kill(tmp_path / str(number), scene, **options)

    with ThreadPoolExecutor(WORKERS) as pool:
        places = list(pool.map(one, range(len(cases))))
    done = 0
    for number, (scene, options) in enumerate(cases):
        try:
            new = stage.examine(tmp_path / str(number), scene)
            stage.rerun(tmp_path / str(number), scene, done=new)
            done += new
        except AssertionError as error:
            raise AssertionError(f"{scene}, {options}, killed {places[number]}: {error}") from error
    return places, done


_, FILE_OVER, _, FOLDER_OVER = SCENES


def test_a_kill_of_each_kind(stage, tmp_path):
    """The slow tests kill each scene in each way; `test_commit` simulates every step."""
    refused = []

    def meanwhile(scene, folder):
        with pytest.raises(StorageError, match="another run is writing it") as caught:
            score_parquet(
                scene.source(stage.root),
                scene.sink(folder),
                **grouped(**scene.arguments(folder, NEW)),
            )
        refused.append(caught.value.path)

    killed_at(stage, tmp_path, [(FOLDER_OVER, ["rename", 4])], before=meanwhile)
    assert refused == [str(tmp_path / "0" / "apart")]  # the first of its outputs


# Each scene in each way: the same code as above, at more of its places.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "numbers"),
    [
        ("evaluating", (1, 5, 2, 1)),
        ("writing", (1, 1, 1, 1)),
        ("fsync", (1, 2, 3, 4)),
        ("rename", (2, 3, 3, 4)),
    ],
    ids=["computing", "writing", "fsync", "rename"],
)
def test_a_kill_of_each_scene(stage, tmp_path, kind, numbers):
    cases = [(scene, [kind, number]) for scene, number in zip(SCENES, numbers, strict=True)]
    killed_at(stage, tmp_path, cases)


def killed_at(stage, tmp_path, cases, before=None):
    asked = [(scene, {"wait_at": at, "before": before}) for scene, at in cases]
    places, done = try_all(stage, tmp_path, asked)
    assert [place[:2] for place, _ in places] == [["waiting", at[0]] for _, at in cases]
    assert {code for _, code in places} == {-signal.SIGKILL}
    assert done == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fsync", "rename", "unlink"])
@pytest.mark.parametrize("scene", SCENES, ids=str)
def test_kill_at_every_step(stage, tmp_path, scene, kind):
    for number in range(1, 60):
        place, _ = stage.kill(tmp_path / str(number), scene, wait_at=[kind, number])
        done = stage.examine(tmp_path / str(number), scene)
        stage.rerun(tmp_path / str(number), scene, done=done)
        if place[0] != "waiting":  # there are no more steps of this kind
            break
    assert done
    assert number > 3 or kind == "unlink"


@pytest.mark.slow
def test_kill_at_random_moments(stage, tmp_path):
    rng = random.Random(1)
    cases = [
        (rng.choice(SCENES), {"phase": rng.choice(["evaluating", "writing"]), "after": after})
        for after in (rng.uniform(0, 0.15) for _ in range(100))
    ]
    places, _ = try_all(stage, tmp_path, cases)
    assert sum(code == -signal.SIGKILL for _, code in places) >= 10
