"""A joined reference in counts of scans; losses of batches are refused with one."""

from __future__ import annotations

import polars as pl
import pytest

from dpo_pipeline import (
    JoinError,
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
    """Both files with a column of text that nobody asks for; their keys are in other orders."""
    for path in files:
        pl.read_parquet(path).with_columns(text=pl.lit("x" * 99)).write_parquet(path)
    return files


@pytest.fixture
def in_step(wide):
    """The same files with their keys in one order."""
    for path in wide:
        pl.read_parquet(path).sort("pair_id").write_parquet(path)
    return wide


def test_a_join_reads_nothing_until_it_is_asked_to(engine, in_step):
    joined = with_reference(
        open_dataset(in_step[0]), Reference(in_step[1]), columns=None, access=LOCAL
    )
    assert set(LOGPS) <= set(joined.frame.collect_schema())
    assert scans(engine) == []
    joined.check_keys()
    assert scans(engine) == [[1]]
    assert_streams(engine)


def test_join_reference_reads_the_keys_alone(engine, wide):
    joined = join_reference(*wide)
    assert scans(engine) == [[1], [1]]
    joined.select(*LOGPS).collect(engine="streaming")
    assert scans(engine) == [[1], [1], [3, 3]]
    assert_streams(engine)


OTHER_ORDER = [[1, 1], [1], [3]]
"""The keys side by side, until two differ; then those of the policy, and what is joined to them."""


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({}, id="totals"),
        pytest.param({"batch_size": 2, "histogram": True}, id="batches, histogram"),
        pytest.param({"statistics": True}, id="statistics"),
    ],
)
def test_evaluate_reads_keys_once_and_data_once_in_one_order(engine, in_step, arguments):
    evaluate(in_step[0], **grouped(reference=in_step[1], **arguments))
    data, lists = scans(engine)[:2], scans(engine)[2:]
    assert data[0] == [1]  # keys with the same bytes in both files are read once
    assert (data[1], lists) in (([2, 2], []), ([2, 3], []))  # statistics name pairs by their ids
    assert_streams(engine)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({}, id="totals"),
        pytest.param({"batch_size": 2, "histogram": True}, id="batches, histogram"),
    ],
)
def test_evaluate_reads_a_reference_in_another_order_once(engine, wide, arguments):
    evaluate(wide[0], **grouped(reference=wide[1], **arguments))
    assert scans(engine) == [*OTHER_ORDER, [2]]
    assert_streams(engine)


def test_a_reference_of_other_length_is_not_tried_side_by_side(engine, wide):
    pl.read_parquet(wide[1])[1:].write_parquet(wide[1])
    engine.graphs.clear()
    with pytest.raises(JoinError, match="alone: 1 row"):
        evaluate(wide[0], reference=wide[1])
    assert scans(engine) == [[1], [1]]  # the keys, to say what is wrong


def test_sweep_and_check_read_keys_once_and_data_once(engine, in_step):
    sweep(in_step[0], [0.1, 0.2], reference=in_step[1], loss=["sigmoid", "ipo"])
    check(in_step[0], reference=in_step[1])
    assert scans(engine) == [[1], [2, 2]] * 2
    assert_streams(engine)


def test_a_long_file_in_one_order_is_read_shard_by_shard(engine, in_step, monkeypatch):
    monkeypatch.setattr("dpo_pipeline.evaluation.measuring.SHARD_ROWS", 2)
    monkeypatch.setattr("dpo_pipeline.sums.batches.SHARD_ROWS", 2)
    evaluate(in_step[0], reference=in_step[1], batches=2)
    assert scans(engine) == [[1], *[[2, 2]] * 3]


def test_score_reads_keys_once_and_data_twice(engine, in_step, tmp_path):
    score_parquet(in_step[0], tmp_path / "out.parquet", reference=in_step[1])
    # Of the policy the last one writes all five columns.
    assert scans(engine) == [[1], [2, 2], [2, 5]]
    assert_streams(engine)


@pytest.mark.parametrize("order", ["one", "another"])
def test_score_of_a_folder_joins_once(engine, two, tmp_path, order):
    policy, reference = two
    if order == "one":
        reference = policy.select("pair_id").join(reference, on="pair_id", maintain_order="left")
    folder = laid_out(policy, "folder", tmp_path / "policy")
    reference.write_parquet(tmp_path / "reference.parquet")
    engine.graphs.clear()
    score_parquet(folder, tmp_path / "out", reference=tmp_path / "reference.parquet")
    # Four files: each has a plan that writes it, and the empty one reads no reference.
    keys = [[1, 1], [2, 2]] if order == "one" else [*OTHER_ORDER, [2]]
    found = scans(engine)
    assert found[: len(keys)] == keys
    assert len(found) == len(keys) + 4
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
