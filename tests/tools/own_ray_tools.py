"""Evaluate on the Ray cluster that the product starts, and print what listens meanwhile.

python own_ray_tools.py PAIRS [imported]    with Ray imported before, which reads its settings then
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

if "imported" in sys.argv:
    pass
from dpo_pipeline import Execution, evaluate

LISTENS = "0A"


def family():
    """Return this process and all that it started."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = {os.getpid()}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def listening():
    """Return the addresses on which these processes listen, as the kernel writes them."""
    inodes = set()
    for process in family():
        for link in Path(f"/proc/{process}/fd").glob("*"):
            try:
                inodes.add(os.readlink(link))
            except OSError:
                continue
    rows = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    return [r[1].split(":")[0] for r in rows if r[3] == LISTENS and f"socket:[{r[9]}]" in inodes]


if __name__ == "__main__":
    result = evaluate(sys.argv[1], execution=Execution("ray"))
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    from ray._private import worker

    facts = {
        "valid": result.summary.n_valid,
        "listening": listening(),
        "dashboard": worker.get_dashboard_url(),
        "mode": os.environ.get("RAY_AUTH_MODE"),
        "token": token,
    }
    sys.stdout.write(json.dumps(facts) + "\n")
