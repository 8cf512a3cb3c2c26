"""Runs jobs in processes of their own, to be killed, starved or fed with corrupt files.

python fault_tools.py job JSON          a job that says where it is, and can be made to wait there
python fault_tools.py stoppable JSON    the same, in the way of the command line
python fault_tools.py corrupt JSON      many jobs, each on a corrupted copy
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
from pathlib import Path

import numpy as np
import polars as pl

from dpo_pipeline import ContractError, OnInvalid, StorageError, score_parquet
from dpo_pipeline.cli.running import run_stoppable
from dpo_pipeline.evaluation import measuring
from dpo_pipeline.sources.dataset import Dataset
from dpo_pipeline.storage import renames
from option_tools import grouped
from pair_tools import LOGPS

FOREVER = 3_600  # seconds; whoever waits so long is killed by the test


class Steps:
    """Says each step of a job on stdout, and waits at one of them for the end."""

    def __init__(self, wait_at):
        self.wait_at = wait_at
        self.seen = {}
        self.lock = threading.Lock()

    def step(self, kind):
        with self.lock:
            number = self.seen[kind] = self.seen.get(kind, 0) + 1
        wait = self.wait_at == [kind, number]
        os.write(1, f"{'waiting' if wait else 'at'} {kind} {number}\n".encode())
        if wait:
            threading.Event().wait(FOREVER)

    def announced(self, function, kind):
        def call(*args, **kwargs):
            self.step(kind)
            return function(*args, **kwargs)

        return call

    def patch(self, shard_rows):
        for name in ("fsync", "replace", "unlink"):
            setattr(os, name, self.announced(getattr(os, name), name))
        renames.renameat2 = self.announced(renames.renameat2, "rename")
        ranges = Dataset.ranges
        Dataset.ranges = lambda dataset, *_: ranges(dataset, shard_rows)

    def __call__(self, progress):
        self.step(progress.phase)


def job(order):
    steps = Steps(order.get("wait_at"))
    steps.patch(order.get("shard_rows", measuring.SHARD_ROWS))
    score_parquet(order["source"], order["sink"], **grouped(progress=steps, **order["arguments"]))


def stoppable(order):
    """Run a job that does not stop; say when it is asked to."""

    def run(cancel):
        threading.Thread(target=told, args=(cancel,), daemon=True).start()
        job(order)

    def told(cancel):
        cancel.wait()
        os.write(1, b"told to stop\n")

    run_stoppable(run)


def corrupted(whole, rng):
    """Return the bytes with something done to them, and what."""
    data = bytearray(whole)
    # Half of the faults where they do most: in the footer.
    start = max(0, len(data) - 2_500) if rng.random() < 0.5 else 4
    spot = rng.randrange(start, len(data))
    size = min(rng.choice([1, 2, 8, 64, 1_000]), len(data) - spot)
    kind = rng.choice(["flip", "flip", "flip", "noise", "truncate", "splice", "cut", "repeat"])
    if kind == "flip":
        for _ in range(rng.choice([1, 1, 1, 2, 8])):
            data[rng.randrange(start, len(data))] ^= 1 << rng.randrange(8)
    elif kind == "noise":
        data[spot : spot + size] = rng.randbytes(size)
    elif kind == "truncate":
        del data[spot:]
    elif kind == "splice":  # another place's bytes, as of a block that was written to the wrong one
        other = rng.randrange(len(data) - size + 1)
        data[spot : spot + size] = data[other : other + size]
    elif kind == "cut":
        del data[spot : spot + size]
    else:
        data[spot:spot] = data[spot : spot + size]
    return bytes(data), f"{kind} at {spot} of {len(data)}"


def expected_scores(path, beta):
    """The specification in numpy, on what Polars reads from the file in one go."""
    read = pl.read_parquet(path, glob=False)
    names = {logp: next(n for n in read.columns if n == logp) for logp in LOGPS}
    logps = {logp: read[name].cast(pl.Float64).to_numpy() for logp, name in names.items()}
    valid = np.ones(read.height, dtype=bool)
    for values in logps.values():
        valid &= np.isfinite(values) & (values <= 0) & (values >= -(2.0**22))
    for name in ("chosen_num_tokens", "rejected_num_tokens"):
        if name in read.columns:
            counts = read[name]
            valid &= (counts.is_null() | (counts >= 1)).to_numpy()
    with np.errstate(all="ignore"):
        chosen = logps["policy_chosen_logps"] - logps["ref_chosen_logps"]
        rejected = logps["policy_rejected_logps"] - logps["ref_rejected_logps"]
        margin = beta * chosen - beta * rejected
        loss = np.maximum(-margin, 0.0) + np.log1p(np.exp(-np.abs(margin)))
    scored = read.with_columns(pl.col(LOGPS).cast(pl.Float64)).with_columns(
        chosen_logratio=pl.Series(chosen),
        rejected_logratio=pl.Series(rejected),
        chosen_reward=pl.Series(beta * chosen),
        rejected_reward=pl.Series(beta * rejected),
        reward_margin=pl.Series(margin),
        loss=pl.Series(loss),
    )
    return scored.filter(pl.Series(valid)), read.height - int(valid.sum())


def same(found, expected):
    """Whether two tables are equal, but for the last bits of the loss."""
    if found.columns != expected.columns or found.height != expected.height:
        return False
    close = np.allclose(
        found["loss"].to_numpy(), expected["loss"].to_numpy(), rtol=1e-14, atol=1e-300
    )
    left, right = found.drop("loss"), expected.drop("loss")
    for name in left.columns:  # the writer has no type for some that the reader makes
        if left[name].dtype != right[name].dtype:
            right = right.with_columns(pl.col(name).cast(left[name].dtype))
    return close and left.equals(right)


def say(line):
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def corrupt(order):
    """Print one line of JSON for each seed: what was done, and what came of it."""
    folder = Path(order["folder"])
    copy, out, apart = (folder / f"{name}.parquet" for name in ("copy", "out", "apart"))
    wholes = [Path(path).read_bytes() for path in order["sources"]]
    for seed in range(*order["seeds"]):
        rng = random.Random(seed)
        which = rng.randrange(len(wholes))
        data, done = corrupted(wholes[which], rng)
        copy.write_bytes(data)
        line = {"seed": seed, "done": f"{done}, source {which}"}
        # Said before, for the case that the process does not survive it.
        say(line | {"outcome": "begun"})
        try:
            score_parquet(copy, out, on_invalid=OnInvalid("quarantine", file=apart))
        except (ContractError, StorageError) as error:
            line |= {"outcome": type(error).__name__, "error": str(error).splitlines()[0]}
            if isinstance(error, StorageError):
                line["path_said"] = error.path == str(copy)
        except BaseException as error:  # noqa: BLE001  whatever it is, it is what the test is after
            line |= {"outcome": "escaped", "error": f"{type(error).__name__}: {error}"}
        else:
            try:
                expected, n_invalid = expected_scores(copy, 0.1)
                right = same(pl.read_parquet(out), expected)
                right &= pl.read_parquet(apart).height == n_invalid
                line["outcome"] = "scored" if right else "wrong"
            except BaseException as error:  # noqa: BLE001
                line |= {"outcome": "unlike", "error": f"{type(error).__name__}: {error}"}
            for path in (out, apart):
                path.unlink()
        line["untouched"] = copy.read_bytes() == data
        copy.unlink()
        line["left"] = sorted(path.name for path in folder.iterdir())
        say(line)


if __name__ == "__main__":
    {"job": job, "stoppable": stoppable, "corrupt": corrupt}[sys.argv[1]](json.loads(sys.argv[2]))
