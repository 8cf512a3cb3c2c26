"""Measures the package beside bare Polars plans and beside what one would use instead.

    python tests/benchmarks/run.py
    python tests/benchmarks/run.py --quick

Every measurement is a fresh process; the cases take turns, round by round; figures are medians.
Ratios are of marginal CPU, the larger size less the smaller, so that start-up is apart. Data is
kept in the folder (15 GB; outputs take 4 GB for a while, and are removed). It fails if an aim is
missed by more than the noise that was measured.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version

from cases import CASES, QUICK, chosen
from measuring import measure, missing
from printing import disagreements, misses, table

LIBRARIES = ("dpo_pipeline", "polars", "numpy", "pyarrow", "duckdb", "pandas", "torch")
NOTES = """\
rows, CPU, wall and peak MB: the smaller / the larger size. Peaks are of anonymous memory on Linux:
pages of files, such as libraries and mapped inputs, are the system's. memory: growth of the peak
from one size to the other; the aim is at most 1.2 beside the noise, from 2 million rows and 256 MB
on (what is held at a time is not full before: a bare scan holds 107 to 227 MB), and less than 1 GB.
CPU / row and ratio: marginal CPU, user and system, of the larger size less the smaller one. Ratios
of start-up and of the loss calls: all CPU; the loss calls are timed within their process, one call,
and their peak MB is of the process. torch loops run on 1/20 of the rows, cases of two files and
those with prompts on 1/4, the text cases (3 kB a row) on 1/100, the token cases (four lists of 60 a
row) on 1/5; ratios are per row. Batches of 64 go to a file, as there are more of them than a result
holds. Small sets are whole processes, start-up included."""


def arguments() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"Cases: {', '.join(CASES)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--rows",
        type=int,
        nargs=2,
        metavar=("SMALLER", "LARGER"),
        default=None,
        help="the two sizes of the data (default: 10,000,000 and 40,000,000)",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=CASES,
        metavar="NAME",
        help="measure these cases, and those they are compared with",
    )
    parser.add_argument(
        "--repeats", type=int, default=5, help="rounds to take medians of (default: %(default)s)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="few cases, at 1,000,000 and 4,000,000 rows"
    )
    parser.add_argument(
        "--folder",
        default=os.path.join(tempfile.gettempdir(), "dpo_pipeline_benchmarks"),
        help="where data is kept (default: a folder for temporary files)",
    )
    given = parser.parse_args()
    sizes = (1_000_000, 4_000_000) if given.quick else (10_000_000, 40_000_000)
    given.rows = sorted(given.rows or sizes)
    given.only = given.only or (list(QUICK) if given.quick else None)
    if given.repeats < 1 or given.rows[0] < 1 or given.rows[0] == given.rows[1]:
        parser.error("--repeats must be positive, and --rows two positive sizes that differ")
    return given


def versions() -> str:
    """Return what was measured with."""
    found = [f"Python {sys.version.split()[0]}"]
    for library in LIBRARIES:
        try:
            found.append(f"{library} {version(library)}")
        except PackageNotFoundError:
            continue
    return f"{', '.join(found)}; {os.cpu_count()} CPUs"


def say(text: str) -> None:
    """Tell what is going on."""
    sys.stderr.write(f"{text}\n")


def main() -> None:
    """Measure and print."""
    given = arguments()
    os.makedirs(given.folder, exist_ok=True)
    cases, notes = [], []
    for case in chosen(given.only):
        libraries = missing(case)
        if libraries:
            notes.append(f"{case.name}: skipped, as {' and '.join(libraries)} is not installed")
        else:
            cases.append(case)
    points, failures = measure(
        cases, given.rows, folder=os.path.abspath(given.folder), repeats=given.repeats, say=say
    )
    notes += [f"{name}: failed\n{text}" for name, text in failures.items()]
    notes += [f"figures differ: {text}" for text in disagreements(points)]
    missed = list(misses(points))
    notes += [f"missed: {text}" for text in missed]
    load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    head = f"{versions()}; medians of {given.repeats} rounds; load at the end {load}"
    sys.stdout.write("\n".join([head, "", table(points), "", NOTES, *notes]) + "\n")
    sys.exit(1 if failures or missed else 0)


if __name__ == "__main__":
    main()
