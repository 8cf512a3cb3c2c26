"""Measures cases in fresh processes, interleaved, and takes medians.

Nothing heavy is imported here: a child starts with the peak memory of its parent.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from statistics import median, quantiles

from cases import HERE, Case, Data

# Linux counts ru_maxrss in kilobytes, macOS in bytes.
RSS_UNIT = 1 if sys.platform == "darwin" else 1024
BETWEEN_LOOKS = 0.004  # seconds from one look at a process's memory to the next


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one process took."""

    cpu: float  # seconds, user and system
    wall: float  # seconds
    peak: int  # bytes; on Linux without pages of files, which the system takes back at will
    figures: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A case at one size; runs are added round by round."""

    case: Case
    rows: int
    runs: list[Run] = field(default_factory=list)

    @property
    def cpu(self) -> float:
        """Median CPU seconds."""
        return median(run.cpu for run in self.runs)

    @property
    def noise(self) -> float:
        """How far the runs' CPU seconds differ."""
        return spread([run.cpu for run in self.runs])

    @property
    def noise_of_peak(self) -> float:
        """How far the runs' peaks of memory differ."""
        return spread([run.peak for run in self.runs])

    @property
    def wall(self) -> float:
        """Median wall seconds."""
        return median(run.wall for run in self.runs)

    @property
    def peak(self) -> float:
        """Median of the peak memory, in bytes."""
        return median(run.peak for run in self.runs)


def spread(values: Sequence[float]) -> float:
    """Return half of the middle half of values, over their median."""
    if len(values) == 1:
        return 0.0
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return (high - low) / 2.0 / middle


class CaseFailedError(Exception):
    """Raised when the process of a case does not end well; holds what it printed."""


Points = dict[str, list[Point]]
"""The points of each case, the smaller size first."""


def missing(case: Case) -> list[str]:
    """Return the libraries that a case needs and that are not installed."""
    return [name for name in case.needs if find_spec(name) is None]


def source_path(folder: str, data: Data, rows: int) -> str:
    """Return the place of a benchmark file."""
    return os.path.join(folder, f"{data.name}-{rows}.parquet")


def generate(folder: str, needed: Iterable[tuple[Data, int]], say: Callable[[str], None]) -> None:
    """Make the benchmark files that are not there yet."""
    for data, rows in needed:
        path = source_path(folder, data, rows)
        if os.path.exists(path):
            continue
        say(f"generating {data.name} data of {rows:,} rows")
        command = [sys.executable, os.path.join(HERE, "generating.py"), path]
        command += ["--rows", str(rows), "--bad-share", str(data.bad_share)]
        command += ["--text-bytes", str(data.text_bytes), "--tokens", str(data.tokens)]
        command += ["--prompts", str(data.prompts)]
        subprocess.run(command, check=True)


def measure(
    cases: Sequence[Case],
    sizes: Sequence[int],
    *,
    folder: str,
    repeats: int,
    say: Callable[[str], None],
) -> tuple[Points, dict[str, str]]:
    """Run every case in every round, so that a busy spell of the machine hits all alike.

    Returns:
        The points, and what failed cases printed; these are given up, and the others go on.
    """
    points: Points = {}
    failures: dict[str, str] = {}
    for case in cases:
        rows = [0 if case.data is None else case.data.rows(size) for size in sizes]
        points[case.name] = [
            Point(case=case, rows=each) for each in (rows if case.has_sizes else rows[:1])
        ]
    generate(
        folder,
        {
            (point.case.data, point.rows): None
            for group in points.values()
            for point in group
            if point.case.data is not None
        },
        say,
    )
    for number in range(repeats):
        for nth in range(len(sizes)):
            for case in cases:
                for point in points.get(case.name, [])[nth : nth + 1]:
                    size = f" of {point.rows:,} rows" if point.rows else ""
                    say(f"round {number + 1} of {repeats}: {case.name}{size}")
                    try:
                        point.runs.extend(run(point, folder) for _ in range(case.runs_a_round))
                    except CaseFailedError as failure:
                        failures[case.name] = str(failure)
                        del points[case.name]
    return points, failures


def run(point: Point, folder: str) -> Run:
    """Measure one process; what it writes to its working folder is removed."""
    data = point.case.data
    source = None if data is None else source_path(folder, data, point.rows)
    with (
        tempfile.TemporaryDirectory(prefix="output-", dir=folder) as outputs,
        tempfile.TemporaryFile() as stdout,
        tempfile.TemporaryFile() as stderr,
    ):
        begin = time.perf_counter()
        process = subprocess.Popen(
            point.case.argv(source), cwd=outputs, stdout=stdout, stderr=stderr
        )
        # wait4 gives what this one child took; Popen.wait does not, and has to be told.
        ended, peak = 0, 0
        while not ended:
            ended, status, usage = os.wait4(process.pid, os.WNOHANG)
            if not ended:
                peak = max(peak, anonymous_memory(process.pid))
                time.sleep(BETWEEN_LOOKS)
        wall = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        stdout.seek(0)
        stderr.seek(0)
        if process.returncode:
            raise CaseFailedError(stderr.read().decode())
        figures = {} if point.case.call is None else json.loads(stdout.read()) or {}
    cpu = usage.ru_utime + usage.ru_stime
    if point.case.times_itself:
        cpu, wall, figures = figures["cpu"], figures["wall"], {}
    return Run(cpu=cpu, wall=wall, peak=peak or usage.ru_maxrss * RSS_UNIT, figures=figures)


def anonymous_memory(pid: int) -> int:
    """Return the bytes that a process holds beside pages of files; 0 if nothing tells."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            held = [line.split()[1] for line in file if line.startswith("RssAnon:")]
    except OSError:
        return 0
    return int(held[0]) * 1024 if held else 0
