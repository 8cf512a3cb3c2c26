"""A joined reference in counts of scans; losses of batches are refused with one."""

from __future__ import annotations

import polars as pl
import pytest

from dpo_pipeline import (
    Reference,
    UsageError,
    check,
    evaluate,
    join_reference,
    score_parquet,
    sweep,
)
from dpo_pipeline.sources.dataset import open_dataset
from dpo_pipeline.sources.joining import with_reference
from dpo_pipeline.storage import LOCAL
from option_tools import grouped
from pair_tools import LOGPS
from plan_tools import assert_streams
from reference_tools import laid_out, raised, told, tree

# Cost in counts


def scans(engine):
    """Return how many columns each scan of each plan on files reads."""
    found = []
    for graph in engine.graphs:
        parts = graph.split("multi-scan[parquet]")[1:]
        found.append(sorted(int(part.split("project: ")[1].split()[0]) for part in parts))
    return [each for each in found if each]


@pytest.fixture
def wide(files):
    """Both files with a column of text that nobody asks for."""
    for path in files:
        pl.read_parquet(path).with_columns(text=pl.lit("x" * 99)).write_parquet(path)
    return files


def test_a_join_reads_nothing_until_it_is_asked_to(engine, wide):
    joined = with_reference(open_dataset(wide[0]), Reference(wide[1]), columns=None, access=LOCAL)
    assert set(LOGPS) <= set(joined.frame.collect_schema())
    assert scans(engine) == []
    joined.check_keys()
    assert scans(engine) == [[1, 1]]
    assert_streams(engine)


def test_join_reference_reads_the_keys_alone(engine, wide):
    joined = join_reference(*wide)
    assert scans(engine) == [[1, 1]]
    joined.select(*LOGPS).collect(engine="streaming")
    assert scans(engine) == [[1, 1], [3, 3]]
    assert_streams(engine)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({}, id="totals"),
        pytest.param({"batch_size": 2, "histogram": True}, id="batches, histogram"),
    ],
)
def test_evaluate_reads_keys_once_and_data_once(engine, wide, arguments):
    evaluate(wide[0], **grouped(reference=wide[1], **arguments))
    assert scans(engine) == [[1, 1], [3, 3]]
    assert_streams(engine)


def test_sweep_and_check_read_keys_once_and_data_once(engine, wide):
    sweep(wide[0], [0.1, 0.2], reference=wide[1], loss=["sigmoid", "ipo"])
    check(wide[0], reference=wide[1])
    assert scans(engine) == [[1, 1], [3, 3]] * 2
    assert_streams(engine)


def test_a_long_file_is_still_joined_once(engine, wide, monkeypatch):
    monkeypatch.setattr("dpo_pipeline.evaluation.measuring.SHARD_ROWS", 2)
    monkeypatch.setattr("dpo_pipeline.sums.batches.SHARD_ROWS", 2)
    evaluate(wide[0], reference=wide[1], batches=2)
    assert scans(engine) == [[1, 1], [3, 3]]


def test_score_reads_keys_once_and_data_twice(engine, wide, tmp_path):
    score_parquet(wide[0], tmp_path / "out.parquet", reference=wide[1])
    # Of the policy the last one writes all five columns, of the reference still three.
    assert scans(engine) == [[1, 1], [3, 3], [3, 5]]
    assert_streams(engine)


def test_score_of_a_folder_joins_once_a_file(engine, two, tmp_path):
    policy, reference = two
    folder = laid_out(policy, "folder", tmp_path / "policy")
    reference.write_parquet(tmp_path / "reference.parquet")
    score_parquet(folder, tmp_path / "out", reference=tmp_path / "reference.parquet")
    # Four files: each has a plan that writes it, and in it a scan of the reference.
    assert scans(engine) == [[1, 1], [3, 3], *[[3, 4]] * 4]
    assert_streams(engine)


# Losses of batches


def joined_loss(call, policy, reference, folder, **changes):
    arguments = {"loss": "aot", "batch_size": 2, "reference": reference, **changes}
    if call is score_parquet:
        return call(policy, folder / "out.parquet", **grouped(**arguments))
    return call(policy, **grouped(**arguments))


@pytest.mark.parametrize("call", [evaluate, score_parquet])
def test_losses_of_batches_are_refused_with_a_reference(tmp_path, files, call):
    before = tree(tmp_path)
    error = raised(UsageError, joined_loss, call, *files, tmp_path)
    assert str(error) == (
        "aot is a loss of batches, for which the reference would be joined anew in each shard: "
        "write the joined pairs first, with join_reference(...).sink_parquet"
    )
    assert error.exit_code == 2
    assert tree(tmp_path) == before


def test_what_the_refusal_advises_works(tmp_path, files, pairs):
    join_reference(*files).sink_parquet(tmp_path / "joined.parquet")
    arguments = {"loss": "aot", "batch_size": 2}
    found = evaluate(tmp_path / "joined.parquet", **grouped(**arguments))
    assert told(found) == told(evaluate(pairs, **grouped(**arguments)))


@pytest.mark.parametrize("call", [evaluate, score_parquet])
def test_losses_of_batches_are_refused_before_reading(engine, tmp_path, files, call):
    engine.graphs.clear()  # of writing the files
    raised(UsageError, joined_loss, call, *files, tmp_path)
    assert scans(engine) == []
