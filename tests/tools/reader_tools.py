"""Samples of other tools' files, and the figures that they must give."""

from __future__ import annotations

import json
from statistics import fmean

import polars as pl
import pyarrow as pa

from dpo_pipeline.cli.program import main
from pair_tools import DATA, reference_row

SAMPLES = DATA / "formats"
N = 8


def figures(rows, beta=0.1):
    """Return means of loss, rewards and accuracy by plain Python."""
    scored = [reference_row(*row, beta) for row in rows]
    return {
        "loss": fmean(loss for _, _, loss in scored),
        "rewards/chosen": fmean(chosen for chosen, _, _ in scored),
        "rewards/rejected": fmean(rejected for _, rejected, _ in scored),
        "rewards/accuracies": fmean(chosen > rejected for chosen, rejected, _ in scored),
        "rewards/margins": fmean(chosen - rejected for chosen, rejected, _ in scored),
    }


def summary(capsys, *arguments):
    """Return what one command prints."""
    code = main(["evaluate", *map(str, arguments), "--json", "--quiet"])
    out, err = capsys.readouterr()
    assert code == 0, err
    return {n: v for n, v in json.loads(out)["metrics"].items() if not n.startswith("logps")}


def write_stream(frame, path, rows=3):
    table = frame.to_arrow()
    with pa.ipc.new_stream(path, table.schema) as stream:
        stream.write_table(table, max_chunksize=rows)


TABLES = {
    "parquet": pl.DataFrame.write_parquet,
    "jsonl": pl.DataFrame.write_ndjson,
    "csv": pl.DataFrame.write_csv,
    "feather": pl.DataFrame.write_ipc,
    "arrow": write_stream,
}
