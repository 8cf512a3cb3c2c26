"""Cost in counts: readings of a source, modules that are imported, and that every plan streams."""

from __future__ import annotations

import subprocess
import sys

import polars as pl
import pyarrow as pa
import pytest

from dpo_pipeline import Execution, check, evaluate, score_parquet
from option_tools import grouped
from pair_tools import LOGPS
from plan_tools import assert_streams

FIGURES = [
    pytest.param({}, id="totals"),
    pytest.param({"by": "subset"}, id="by subset"),
    pytest.param({"by": ["subset", "pair_id"]}, id="by two columns"),
    pytest.param({"batch_size": 2}, id="batches"),
    pytest.param({"batch_by": "subset"}, id="batches by value"),
    pytest.param({"batch_size": 2, "by": "subset"}, id="batches and subsets"),
    pytest.param({"batch_size": 2, "batches": True}, id="batches to a file"),
]


@pytest.fixture(params=["file", "folder"])
def clean(request, tmp_path, pairs):
    if request.param == "file":
        pairs.write_parquet(tmp_path / "in.parquet")
        return tmp_path / "in.parquet"
    (tmp_path / "in").mkdir()
    pairs[:4].write_parquet(tmp_path / "in" / "a.parquet")
    pairs[4:].write_parquet(tmp_path / "in" / "b.parquet")
    return tmp_path / "in"


@pytest.fixture
def dirty(tmp_path, pairs):
    invalid = pairs.with_columns(pl.col("pair_id") + "'", ref_chosen_logps=pl.lit(1.0))
    invalid.head(3).vstack(pairs).write_parquet(tmp_path / "dirty.parquet")
    return tmp_path / "dirty.parquet"


def to_file(arguments, folder):
    return {k: folder / "b.parquet" if k == "batches" else v for k, v in arguments.items()}


def test_check_reads_once(engine, clean):
    check(clean)
    assert engine.data_scans == 1
    assert_streams(engine)


def test_check_lists_offenders_by_one_more_reading(engine, dirty):
    check(dirty)
    assert engine.data_scans == 2
    assert_streams(engine)


@pytest.mark.repeats  # files and folders are one scan
@pytest.mark.parametrize("arguments", FIGURES)
def test_evaluate_reads_once(engine, clean, tmp_path, arguments):
    evaluate(clean, **grouped(**to_file(arguments, tmp_path)))
    assert engine.data_scans == 1
    assert_streams(engine)


@pytest.mark.repeats(3)  # figures are read once, by the test above
@pytest.mark.parametrize("arguments", FIGURES)
def test_evaluate_lists_offenders_by_one_more_reading(engine, dirty, tmp_path, arguments):
    evaluate(dirty, **grouped(on_invalid="exclude", **to_file(arguments, tmp_path)))
    assert engine.data_scans == 2
    assert_streams(engine)


@pytest.mark.repeats  # files and folders are one scan
@pytest.mark.parametrize("arguments", FIGURES)
def test_evaluate_of_a_lazy_frame_runs_it_once(engine, clean, tmp_path, arguments):
    lazy = pl.scan_parquet(clean if clean.is_file() else clean / "*.parquet")
    evaluate(lazy, **grouped(**to_file(arguments, tmp_path)))
    assert engine.data_scans == 1
    assert_streams(engine)


@pytest.mark.parametrize(
    "make",
    [pytest.param(lambda p: p, id="Polars"), pytest.param(pl.DataFrame.to_arrow, id="pyarrow")],
)
def test_evaluate_of_a_frame_streams(engine, pairs, make):
    evaluate(make(pairs), by="subset", batches=2)
    assert len(engine.graphs) == 2  # to score the rows, and to sum them chunk by chunk
    assert_streams(engine)


@pytest.mark.repeats  # scans do not follow figures and actions together
@pytest.mark.parametrize("on_invalid", ["raise", "exclude", "quarantine"])
@pytest.mark.parametrize("arguments", FIGURES)
def test_score_reads_clean_files_twice(engine, tmp_path, pairs, on_invalid, arguments):
    pairs.write_parquet(tmp_path / "in.parquet")
    outputs = to_file(arguments, tmp_path)
    score_parquet(
        tmp_path / "in.parquet",
        tmp_path / "out.parquet",
        **grouped(on_invalid=on_invalid, **outputs),
    )
    # The file of a quarantine without invalid pairs is written without a scan.
    assert engine.data_scans == 2
    assert_streams(engine)


@pytest.mark.parametrize(
    ("on_invalid", "scans"),
    [
        pytest.param("exclude", 3, id="check, write, list"),
        # The fourth reads the file of invalid pairs that was just written.
        pytest.param("quarantine", 4, id="check, write, write the invalid, list those"),
    ],
)
def test_score_of_dirty_files(engine, dirty, tmp_path, on_invalid, scans):
    score_parquet(
        dirty,
        tmp_path / "o.parquet",
        by="subset",
        on_invalid=on_invalid,
        execution=Execution(progress=lambda _: None),
    )
    assert engine.data_scans == scans
    sources = [graph for graph in engine.graphs if "source_row" in graph and "sink" not in graph]
    assert len(sources) == (on_invalid == "quarantine")
    assert_streams(engine)


def test_evaluating_reads_only_the_columns_it_needs(engine, tmp_path, pairs):
    pairs.with_columns(text=pl.lit("x" * 99)).write_parquet(tmp_path / "in.parquet")
    engine.graphs.clear()
    evaluate(tmp_path / "in.parquet")
    assert f"project: {len(LOGPS)} total" in engine.graphs[0]


def test_a_shard_is_read_alone(engine, tmp_path, real_pairs, monkeypatch):
    monkeypatch.setattr("dpo_pipeline.evaluation.measuring.SHARD_ROWS", 200)
    real_pairs.write_parquet(tmp_path / "in.parquet", row_group_size=100)
    evaluate(tmp_path / "in.parquet")
    assert engine.data_scans == 4
    assert_streams(engine)


def test_the_plan_test_sees_a_multiplexer(engine, tmp_path, pairs):
    # Without this, assert_streams could look for words that Polars does not use.
    pairs.write_parquet(tmp_path / "in.parquet")
    scan = pl.scan_parquet(tmp_path / "in.parquet")
    scan.filter(pl.col(LOGPS[0]) < pl.col(LOGPS[0]).mean()).collect()
    scan.select(pl.col(LOGPS[0]).head(2).implode(), pl.len()).collect()
    found = " ".join(engine.graphs)
    assert "multiplexer" in found
    assert "in-memory-map" in found


def test_arrow_tables_are_taken_without_a_copy(pairs):
    table = pa.table({name: pairs[name].to_arrow() for name in LOGPS})
    assert evaluate(table).summary.n_pairs == 6


HEAVY = {"numpy", "pandas", "pandera", "pyarrow", "ray", "dpo_pipeline.engine.ray_executor"}
# A star would import pandera, for PreferencePairs.
CALLS = [
    "evaluate('pairs.parquet')",
    "evaluate('pairs.parquet', by='subset', batches=2)",
    "evaluate('pairs.parquet', outputs='figures.json')",
    "check('pairs.parquet')",
    "sweep('pairs.parquet', [0.1, 0.5])",
    "evaluate('pairs.jsonl')",
    "evaluate('pairs.csv')",
    "dpo_loss([-1.0], [-2.0], [-1.5], [-1.0])",
]


def test_what_calls_do_not_need_is_not_imported(tmp_path, pairs):
    # An import of pyarrow costs as much as some thousand pairs, and brings numpy; pandera brings
    # pandas where it is installed.
    pairs.write_parquet(tmp_path / "pairs.parquet")
    pairs.write_ndjson(tmp_path / "pairs.jsonl")
    pairs.write_csv(tmp_path / "pairs.csv")
    steps = [f"dpo_pipeline.{call}; print({call!r}, *sys.modules)" for call in CALLS]
    program = "\n".join(["import sys, dpo_pipeline", *steps])
    run = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=True)
    told = done.stdout.splitlines()
    assert len(told) == len(CALLS)
    for line, call in zip(told, CALLS, strict=True):
        imported = set(line.removeprefix(call).split())
        assert "polars" in imported
        assert sorted(HEAVY & imported) == [], call
