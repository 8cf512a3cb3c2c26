"""Processes of `fault_tools.py`, and the files that they leave."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

TOOL = Path(__file__).parent / "fault_tools.py"
PATIENCE = 300  # seconds until a process counts as hung; far beyond what the slowest takes


def everything(folder):
    """Return all files, hidden ones as well."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }


def arguments(folder, **more):
    return {
        "on_invalid": "quarantine",
        "invalid": folder / "apart.parquet",
        "batch_size": 100,
        "batches": folder / "means.parquet",
        **more,
    }


def tool(verb, order, **options):
    return subprocess.Popen(
        [sys.executable, str(TOOL), verb, json.dumps(order)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def ended(process):
    try:
        return process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise AssertionError("the process hangs") from None


def until(found, *, patience=PATIENCE):
    """Return what `found` finds, as soon as it finds something."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if result := found():
            return result
        time.sleep(0.02)
    raise AssertionError("what should have happened did not")
