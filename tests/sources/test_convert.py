"""`convert`: other formats to Parquet."""

from __future__ import annotations

import json
from threading import Event

import polars as pl
import pytest

from dpo_pipeline import (
    Cancelled,
    ColumnError,
    Execution,
    Pairs,
    StorageError,
    convert,
    evaluate,
    score_parquet,
)
from dpo_pipeline.cli.program import main
from dpo_pipeline.sources.opening import open_pairs
from dpo_pipeline.sources.text_files import INFERRED_ROWS
from dpo_pipeline.storage import LOCAL
from pair_tools import LOGPS
from reader_tools import SAMPLES, N


def test_convert_writes_what_score_takes(capsys, tmp_path, eight):
    source, out, scored = (tmp_path / n for n in ("pairs.csv", "pairs.parquet", "scored.parquet"))
    eight.rename({LOGPS[0]: "mine", LOGPS[2]: "reference_chosen_logps"}).write_csv(source)
    column = ["--column", f"{LOGPS[0]}=mine"]
    assert main(["convert", str(source), str(out), *column]) == 0
    written = f"wrote {out}: {N} rows, {out.stat().st_size:,} bytes\n"
    assert capsys.readouterr() == (written, "")
    assert set(pl.read_parquet(out).columns) == set(eight.columns)
    result = score_parquet(out, scored)
    assert result.to_metrics() == evaluate(eight).to_metrics()
    assert main(["convert", str(source), str(out), *column]) == 3
    assert "exists already" in capsys.readouterr().err
    assert main(["convert", str(source), str(out), *column, "--overwrite"]) == 0


def test_convert_notes_where_columns_came_from(tmp_path):
    out = tmp_path / "reference.parquet"
    assert convert(SAMPLES / "trl_dataset", out, "trl") == N
    facts = json.loads(pl.read_parquet_metadata(out)["dpo_pipeline"])
    assert facts["format"] == "trl"
    assert facts["columns"]["ref_chosen_logps"] == "ref_chosen_logps"


@pytest.mark.parametrize(
    ("names", "said"),
    [
        pytest.param(("a", "b"), "policy_chosen_logps: missing", id="none"),
        pytest.param(LOGPS[:3], "ref_rejected_logps: missing", id="half"),
        pytest.param(LOGPS[:1], "policy_rejected_logps: missing", id="one side"),
    ],
)
def test_convert_asks_for_both_sides(tmp_path, names, said):
    source, out = tmp_path / "pairs.csv", tmp_path / "out.parquet"
    pl.DataFrame({name: [-1.0] for name in names}).write_csv(source)
    with pytest.raises(ColumnError, match=said):
        convert(source, out)
    assert not out.exists()


def test_convert_overwrites_no_column(tmp_path, eight):
    source = tmp_path / "pairs.csv"
    eight.with_columns(other=pl.col(LOGPS[0])).write_csv(source)
    with pytest.raises(ColumnError, match="the input has this column already"):
        convert(Pairs(source, columns={LOGPS[0]: "other"}), tmp_path / "out.parquet")


def test_convert_leaves_nothing_of_a_file_that_breaks_off(tmp_path):
    source, out = tmp_path / "pairs.jsonl", tmp_path / "out.parquet"
    good = json.dumps(dict.fromkeys(LOGPS, -1.5))
    source.write_text("\n".join([good] * (INFERRED_ROWS + 10) + [good[:20]]))
    with pytest.raises(StorageError, match=r"pairs.jsonl"):
        convert(source, out)
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.jsonl"]


def test_convert_can_be_stopped(tmp_path, eight):
    source, out = tmp_path / "pairs.csv", tmp_path / "out.parquet"
    eight.write_csv(source)
    cancel = Event()
    cancel.set()
    with pytest.raises(Cancelled):
        convert(source, out, execution=Execution(cancel=cancel))
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.csv"]


def test_an_evaluation_can_be_stopped_and_reads_no_more_columns_for_it(tmp_path, eight):
    path = tmp_path / "pairs.feather"
    eight.write_ipc(path)
    cancel = Event()
    rows = open_pairs(Pairs(path), access=LOCAL, cancel=cancel)
    plan = rows.frame.select(pl.col("turns").sum()).explain()
    assert f"PROJECT 1/{eight.width} COLUMNS" in plan
    assert evaluate(rows).to_metrics() == evaluate(eight).to_metrics()
    cancel.set()
    with pytest.raises(Cancelled):
        evaluate(rows)
