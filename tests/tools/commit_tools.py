"""Publications that fail, or are killed, at one call of the system after the other.

A kill is simulated: from its call on, no call that changes anything has an effect, and the locks
are let go. `test_kill.py` kills real processes.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

import polars as pl

from dpo_pipeline.storage import locks, publication as publishing, renames
from dpo_pipeline.storage.output_checks import PART_KEY

CALLS = ("open", "fsync", "rename", "replace", "link", "unlink", "rmdir", "mkdir", "chmod", "chown")
PARTS = {"old": ("a.parquet", "deep/b.parquet", "stale.parquet"), "new": ("a.parquet", "c.parquet")}
TARGETS = {
    "file": ("out.parquet",),
    "files": ("summary.json", "means.parquet", "out.parquet"),
    "folder": ("out",),
    "folders": ("apart", "means.parquet", "out"),
}
FOLDERS = ("apart", "out")


class Counted:
    """Counts the calls that change names or make them durable; does something at some of them."""

    def __init__(self, at):
        self.at = at
        self.names = []
        self.kept = []

    def start(self):
        self.kept = [(os, name, getattr(os, name)) for name in CALLS]
        self.kept.append((renames, "renameat2", renames.renameat2))
        for module, name, real in self.kept:
            setattr(module, name, self.counting(name, real))

    def counting(self, name, real):
        def call(*args, **kwargs):
            self.names.append(name)
            self.at(len(self.names), name)
            return real(*args, **kwargs)

        return call

    def stop(self):
        while self.kept:
            setattr(*self.kept.pop())


@cache
def content(age, name):
    """Return the bytes of a file: a part says where it belongs."""
    if not name.endswith(".parquet") or "/" not in name:
        return f"{age} {name}".encode()
    made = io.BytesIO()
    relative = name.partition("/")[2]
    pl.DataFrame({age: [name]}).write_parquet(made, metadata={PART_KEY: relative})
    return made.getvalue()


def files_of(scene, age):
    """Return path to bytes of a complete output."""
    made = {}
    for target in TARGETS[scene]:
        if target in FOLDERS:
            made |= {f"{target}/{part}": content(age, f"{target}/{part}") for part in PARTS[age]}
            made[f"{target}/_SUCCESS"] = b""
        else:
            made[target] = content(age, target)
    return made


def put(folder, files):
    for name, data in files.items():
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def found_in(folder):
    """Return path to bytes of what has its final name, and the hidden names."""
    files = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]
    names = {str(path.relative_to(folder)): path for path in files}
    hidden = [name for name in names if ".dpo-pipeline." in name]
    return {n: path.read_bytes() for n, path in names.items() if n not in hidden}, hidden


@contextlib.contextmanager
def staged(folder, scene, *, overwrite, new=None):
    """Stage the outputs and write them, so that `commit` is what is left."""
    new = new or files_of(scene, "new")
    with publishing.Publication(overwrite=overwrite) as publication:
        for target in TARGETS[scene]:
            path = os.path.join(folder, target)
            if target not in FOLDERS:
                Path(publication.stage(path)).write_bytes(new[target])
                continue
            parts = PARTS["new"]
            for hidden, part in zip(publication.stage_folder(path, parts), parts, strict=True):
                Path(hidden).write_bytes(new[f"{target}/{part}"])
        yield publication


def state_of(found, scene):
    """Return "old", "new" or "mixed" of a set of outputs, "none" of nothing; and which are torn."""
    old, new = files_of(scene, "old"), files_of(scene, "new")
    states, torn = set(), []
    for target in TARGETS[scene]:
        ages = {
            age: {n: d for n, d in files.items() if n == target or n.startswith(f"{target}/")}
            for age, files in (("found", found), ("old", old), ("new", new), ("none", {}))
        }
        is_like = [age for age in ("old", "new", "none") if ages[age] == ages["found"]]
        states.add(is_like[0] if is_like else "torn")
        torn += [] if is_like else [target]
    return (states.pop() if len(states) == 1 else "mixed"), torn


class Killed(BaseException):
    """Raised by every call of a process that is dead."""


def killed(folder, scene, number, *, overwrite):
    """Commit, and die before the call of this number; return whether it came to that."""
    counted = Counted(fails(number, forever=True, error=Killed))
    publication = None
    try:
        with staged(folder, scene, overwrite=overwrite) as publication:
            counted.start()
            publication.commit()
    except Killed:
        return True
    finally:
        counted.stop()
        for lock in [lock for step in publication.steps for lock in step.locks]:
            locks.let_go(lock)
    return False


def kill_at_every_call(scene, over):
    """Yield what each kill left, and what the next run for the outputs makes of it."""
    number, died = 0, True
    while died:
        number += 1
        folder = tempfile.mkdtemp(prefix="commit-")
        try:
            put(folder, files_of(scene, "old") if over == "old" else {})
            is_folder = over == "old" and "out" in TARGETS[scene]
            opened = os.open(f"{folder}/out", os.O_RDONLY) if is_folder else None
            died = killed(folder, scene, number, overwrite=over == "old")
            state, torn = state_of(found_in(folder)[0], scene)
            seen = None if opened is None else sorted(os.listdir(opened))
            with staged(folder, scene, overwrite=over == "old" or state == "new") as publication:
                staged_state, _ = state_of(found_in(folder)[0], scene)
                publication.commit()
            after, hidden = found_in(folder)
            yield {
                "number": number,
                "died": died,
                "left": state,
                "torn": torn,
                "open_folder": seen,
                "once_staged": staged_state,
                "in_the_end": state_of(after, scene)[0],
                "hidden": hidden,
            }
            if opened is not None:
                os.close(opened)
        finally:
            shutil.rmtree(folder)


def fails(number, *, forever, error=errno.EIO):
    """Return what fails at the call of a number, or from it on."""

    def at(count, _name):
        if count == number or (forever and count > number):
            raise error if isinstance(error, type) else OSError(error, os.strerror(error))

    return at
