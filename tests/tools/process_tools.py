"""Processes of `fault_tools.py`, and the files that they leave."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parent / "fault_tools.py"
PATIENCE = 60  # seconds until a process counts as hung


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
        pytest.fail("the process hangs")
