"""What a Ray cluster costs against one process: start-up, a shard, a row; CPU of all processes.

python tests/benchmarks/engine_cost.py [--rows 2_000_000 8_000_000] [--files 2 4 8 16]

Each size is scored from a folder to a folder, here and on a cluster of this machine whose workers
were at work before. A plane through the points gives the cost of a run, of a file and of a row.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import polars as pl

from dpo_pipeline import Outputs, score_parquet

LOGPS = ("policy_chosen_logps", "policy_rejected_logps", "ref_chosen_logps", "ref_rejected_logps")
TICK = os.sysconf("SC_CLK_TCK")


def family() -> list[int]:
    """Return this process and all that came of it."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found, todo = [], [os.getpid()]
    while todo:
        found.append(todo.pop())
        todo += children.get(found[-1], [])
    return found


def cpu() -> float:
    """Return the CPU seconds of all of them, with those that ended."""
    total = 0
    for pid in family():
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[11:15]))
    return total / TICK


def make(folder: Path, rows: int, files: int) -> None:
    """Write pairs as a model's, in so many files."""
    folder.mkdir()
    for i in range(files):
        first = rows * i // files
        row = pl.int_range(first, rows * (i + 1) // files, dtype=pl.UInt64)
        logps = {n: -400.0 * (row.hash(seed=k) / 2.0**64) for k, n in enumerate(LOGPS)}
        pl.select(pair_id=row, **logps).write_parquet(folder / f"{i:03}.parquet")


def timed(source: Path, sink: Path, engine: str) -> tuple[float, float]:
    """Return CPU seconds and seconds of a run."""
    before, began = cpu(), time.monotonic()
    score_parquet(source, sink, outputs=Outputs(overwrite=True), execution=engine)
    return cpu() - before, time.monotonic() - began


def main() -> None:
    """Measure and print the table and the plane."""
    parser = argparse.ArgumentParser()
    whole = {"type": lambda text: int(text.replace("_", "")), "nargs": "+"}
    parser.add_argument("--rows", default=[2_000_000, 8_000_000], **whole)
    parser.add_argument("--files", default=[2, 4, 8, 16], **whole)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = [(rows, files) for rows in given.rows for files in given.files]
        for rows, files in sizes:
            make(folder / f"{rows}-{files}", rows, files)
        place = {size: folder / f"{size[0]}-{size[1]}" for size in sizes}
        bytes_a_row = sum(f.stat().st_size for f in place[sizes[-1]].iterdir()) / sizes[-1][0]
        here = {size: timed(place[size], folder / "out", "local") for size in sizes}
        before, began = cpu(), time.monotonic()
        timed(place[sizes[0]], folder / "out", "ray")
        first = cpu() - before - here[sizes[0]][0], time.monotonic() - began
        there = {size: timed(place[size], folder / "out", "ray") for size in sizes}
    click.echo("| rows | files | here: CPU s | s | Ray: CPU s | s |\n|---|---|---|---|---|---|")
    for rows, files in sizes:
        numbers = [*here[rows, files], *there[rows, files]]
        click.echo(f"| {rows:,} | {files} | " + " | ".join(f"{n:.2f}" for n in numbers) + " |")
    points = np.array([(1, files, rows / 1e6) for rows, files in sizes])
    for label, runs in (("here", here), ("Ray", there)):
        spent = np.array([runs[size][0] for size in sizes])
        (run, file, million), *_ = np.linalg.lstsq(points, spent)
        click.echo(
            f"{label}: {run:.2f} CPU s a run, {1000 * file:.0f} CPU ms a file, "
            f"{million:.3f} CPU s a million rows ({bytes_a_row / million:.0f} MB of input a CPU s)"
        )
    click.echo(f"start-up and first run: {first[0]:.1f} CPU s beyond one here, {first[1]:.1f} s")


if __name__ == "__main__":
    main()
