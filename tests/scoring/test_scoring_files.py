"""The Parquet job: files and folders, what is written, and that nothing is left by an error."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import polars as pl
import pytest

from dpo_pipeline import (
    Batches,
    ColumnError,
    InvalidPairsError,
    OnInvalid,
    Outputs,
    Pairs,
    Scored,
    StorageError,
    UsageError,
    evaluate,
    score_parquet,
)
from dpo_pipeline.columns import SCORED
from pair_tools import LOGPS

ADDED = [column.name for column in SCORED]


@pytest.fixture
def source(tmp_path, pairs):
    path = tmp_path / "pairs.parquet"
    pairs.write_parquet(path)
    return path


@pytest.fixture
def broken(tmp_path, pairs):
    path = tmp_path / "broken.parquet"
    pairs.with_columns(
        policy_chosen_logps=pl.Series([-20.0, None, -40.0, math.nan, -60.0, 1.0]),
        ref_chosen_logps=pl.Series([-21.0, math.inf, -41.0, -52.0, -65.0, -68.0]),
    ).write_parquet(path)
    return path


def names(folder):
    return sorted(str(p.relative_to(folder)) for p in Path(folder).rglob("*") if p.is_file())


def test_file_to_file(source, tmp_path, pairs):
    out = tmp_path / "scored.parquet"
    result = score_parquet(source, out, beta=0.1)
    scored = pl.read_parquet(out)
    assert scored.columns == [*pairs.columns, *ADDED]
    assert scored.select(pairs.columns).equals(pairs)
    # Pair d: log-ratios 2 and -3, so rewards 0.2 and -0.3, margin 0.5, loss log(1 + e^-0.5).
    assert scored.row(3)[6:] == pytest.approx((2.0, -3.0, 0.2, -0.3, 0.5, 0.4740769842), abs=1e-9)
    assert result.summary == evaluate(source, beta=0.1).summary


def test_the_runs_facts_are_in_the_metadata_and_bytes_repeat(source, tmp_path):
    first, second = tmp_path / "a.parquet", tmp_path / "b.parquet"
    renamed = tmp_path / "renamed.parquet"
    pl.read_parquet(source).rename({LOGPS[0]: "log_probs_chosen_policy"}).write_parquet(renamed)
    score_parquet(renamed, first, beta=0.5)
    score_parquet(renamed, second, beta=0.5)
    facts = json.loads(pl.read_parquet_metadata(first)["dpo_pipeline"])
    assert facts["beta"] == 0.5
    assert facts["columns"][LOGPS[0]] == "log_probs_chosen_policy"
    assert facts["contract"]["rules"]["ref_chosen_logps.at_most"] == "at most 0"
    assert set(facts) == {"version", "loss", "beta", "objective", "contract", "columns"}
    assert first.read_bytes() == second.read_bytes()


def test_keep_chooses_the_passengers(source, tmp_path):
    out = tmp_path / "scored.parquet"
    score_parquet(source, out, scored=["subset", "pair_id"])
    assert pl.read_parquet(out).columns == ["pair_id", "subset", *ADDED]
    with pytest.raises(UsageError, match=r"keep: 'pairid' is not a column \(did you mean"):
        score_parquet(source, out, scored=["pairid"], outputs=Outputs(overwrite=True))


def test_raise_writes_nothing(broken, tmp_path):
    with pytest.raises(InvalidPairsError) as caught:
        score_parquet(broken, tmp_path / "scored.parquet")
    assert caught.value.report.by_rule == {
        "policy_chosen_logps.not_null": 1,
        "policy_chosen_logps.not_nan": 1,
        "policy_chosen_logps.at_most": 1,
        "ref_chosen_logps.finite": 1,
    }
    assert caught.value.report.n_invalid == 3
    assert names(tmp_path) == ["broken.parquet"]


def test_exclude_leaves_invalid_pairs_out(broken, tmp_path):
    out = tmp_path / "scored.parquet"
    result = score_parquet(broken, out, on_invalid="exclude")
    assert pl.read_parquet(out)["pair_id"].to_list() == ["a", "c", "e"]
    assert (result.summary.n_valid, result.invalid.n_invalid) == (3, 3)
    assert names(tmp_path) == ["broken.parquet", "scored.parquet"]


def test_quarantine_names_the_rules_of_each_row(broken, tmp_path):
    out = tmp_path / "scored.parquet"
    result = score_parquet(broken, out, on_invalid="quarantine")
    apart = pl.read_parquet(tmp_path / "scored.invalid.parquet")
    assert apart.select("pair_id", "source_row", "broken_rules").rows() == [
        ("b", 1, ["policy_chosen_logps.not_null", "ref_chosen_logps.finite"]),
        ("d", 3, ["policy_chosen_logps.not_nan"]),
        ("f", 5, ["policy_chosen_logps.at_most"]),
    ]
    assert apart["ref_chosen_logps"].to_list() == [math.inf, -52.0, -68.0]
    assert pl.read_parquet(out)["pair_id"].to_list() == ["a", "c", "e"]
    assert [(o.file, o.row) for rule in result.invalid.broken for o in rule.offenders] == [
        ("broken.parquet", 1),
        ("broken.parquet", 3),
        ("broken.parquet", 5),
        ("broken.parquet", 1),
    ]


def test_quarantine_of_scores_out_of_range(source, tmp_path):
    # The range ends at 1.1259e15; test_evaluate has the rewards and losses.
    result = score_parquet(source, tmp_path / "s.parquet", beta=1e15, on_invalid="quarantine")
    apart = pl.read_parquet(tmp_path / "s.invalid.parquet")
    rewards = ["chosen_reward.in_range", "rejected_reward.in_range"]
    assert apart.select("source_row", "broken_rules").rows() == [
        (1, ["loss.in_range"]),
        (3, rewards),
        (4, rewards),
        (5, [*rewards, "loss.in_range"]),
    ]
    assert [(r.name, r.count) for r in result.invalid.broken] == [
        (rewards[0], 3),
        (rewards[1], 3),
        ("loss.in_range", 2),
    ]


def test_quarantine_of_clean_data_is_an_empty_file(source, tmp_path):
    apart = tmp_path / "apart.parquet"
    score_parquet(source, tmp_path / "s.parquet", on_invalid=OnInvalid("quarantine", file=apart))
    assert pl.read_parquet(apart).height == 0
    assert pl.read_parquet_schema(apart)["broken_rules"] == pl.List(pl.String)


def test_too_many_invalid_write_nothing(broken, tmp_path):
    with pytest.raises(InvalidPairsError, match=r"3 of 6 pairs are invalid, more than 0\.4"):
        score_parquet(
            broken, tmp_path / "s.parquet", on_invalid=OnInvalid("quarantine", at_most=0.4)
        )
    assert names(tmp_path) == ["broken.parquet"]


def test_folder_to_folder(tmp_path, pairs):
    source = tmp_path / "in"
    (source / "deep").mkdir(parents=True)
    pairs[:2].write_parquet(source / "b.parquet")
    pairs[2:3].write_parquet(source / "deep" / "c.parquet")
    pairs[3:].write_parquet(source / "a.parquet")
    (source / ".a.parquet.tmp").write_bytes(b"left over")
    (source / "_SUCCESS").touch()
    out = tmp_path / "out"
    result = score_parquet(source, out, batches=4)
    assert names(out) == ["_SUCCESS", "a.parquet", "b.parquet", "deep/c.parquet"]
    assert pl.read_parquet(out / "b.parquet")["pair_id"].to_list() == ["a", "b"]
    # The rows stand in the order of the path strings: d e f, a b, c.
    in_order = pl.concat([pairs[3:], pairs[:3]])
    assert result.batches.equals(evaluate(in_order, batches=4).batches)


@pytest.mark.parametrize("kind", ["glob", "list"])
def test_glob_and_list_give_a_folder(tmp_path, pairs, kind):
    for i in range(3):
        pairs[2 * i : 2 * i + 2].write_parquet(tmp_path / f"part-{i}.parquet")
    source = (
        str(tmp_path / "part-*.parquet")
        if kind == "glob"
        else [tmp_path / f"part-{i}.parquet" for i in (2, 0, 1)]
    )
    score_parquet(source, tmp_path / "out")
    assert names(tmp_path / "out") == ["_SUCCESS", *(f"part-{i}.parquet" for i in range(3))]
    assert pl.read_parquet(tmp_path / "out" / "part-1.parquet")["pair_id"].to_list() == ["c", "d"]


def test_hive_folder(tmp_path, pairs):
    source = tmp_path / "in"
    for (subset,), part in pairs.filter(pl.col("subset").is_not_null()).group_by("subset"):
        (source / f"subset={subset}").mkdir(parents=True)
        part.drop("subset").write_parquet(source / f"subset={subset}" / "p.parquet")
    out = tmp_path / "out"
    result = score_parquet(source, out, by="subset", on_invalid="quarantine")
    assert result.subsets.select("subset", "n_pairs").rows() == [("x", 3), ("y", 2)]
    assert names(out) == ["_SUCCESS", "subset=x/p.parquet", "subset=y/p.parquet"]
    assert "subset" not in pl.read_parquet_schema(out / "subset=x" / "p.parquet")
    whole = pl.scan_parquet(out / "**" / "*.parquet", hive_partitioning=True).collect()
    assert whole.sort("pair_id")["subset"].to_list() == ["x", "y", "x", "y", "x"]
    assert evaluate(out, by="subset").summary.loss == result.summary.loss


def test_an_input_with_an_output_column_is_refused_unless_replaced(source, tmp_path):
    once, twice = tmp_path / "once.parquet", tmp_path / "twice.parquet"
    score_parquet(source, once, beta=0.1)
    with pytest.raises(ColumnError, match="loss: the input has this column already") as caught:
        score_parquet(once, twice)
    assert len(caught.value.problems) == 6
    score_parquet(once, twice, beta=0.1, scored=Scored(replace=True))
    assert pl.read_parquet(twice).equals(pl.read_parquet(once))


def test_outputs_are_replaced_only_on_request(source, tmp_path):
    out = tmp_path / "out.parquet"
    out.write_text("mine")
    with pytest.raises(StorageError, match="exists already; pass overwrite"):
        score_parquet(source, out)
    assert out.read_text() == "mine"
    score_parquet(source, out, outputs=Outputs(overwrite=True))
    assert pl.read_parquet(out).height == 6


def test_overwriting_a_folder_removes_stale_parts(tmp_path, pairs):
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    pairs.write_parquet(source / "a.parquet")
    pairs.write_parquet(source / "b.parquet")
    score_parquet(source, out)
    (source / "b.parquet").unlink()
    with pytest.raises(StorageError, match="not empty"):
        score_parquet(source, out)
    score_parquet(source, out, outputs=Outputs(overwrite=True))
    assert names(out) == ["_SUCCESS", "a.parquet"]


def test_a_folder_of_any_endings_is_overwritten_by_its_next_run(tmp_path, pairs):
    source = tmp_path / "in"
    source.mkdir()
    for name in ("a.PARQUET", "b.pq", "c.parq"):
        pairs.write_parquet(source / name)
    for _ in range(2):
        result = score_parquet(source, tmp_path / "out", outputs=Outputs(overwrite=True))
        assert result.summary.n_pairs == 3 * pairs.height


def test_a_folder_with_foreign_parquet_is_not_overwritten(tmp_path, source, pairs):
    out = tmp_path / "out"
    out.mkdir()
    pairs.write_parquet(out / "precious.parquet")
    with pytest.raises(StorageError, match="not listed by its output"):
        score_parquet([source], out, outputs=Outputs(overwrite=True))
    assert names(out) == ["precious.parquet"]


def test_a_folder_of_the_first_version_is_said_to_be_one(tmp_path, source, pairs):
    """Its parts have the facts of the run in their metadata, and not their own names."""
    out = tmp_path / "old run"
    out.mkdir()
    for name in ("a.parquet", "b.parquet"):
        pairs.write_parquet(out / name, metadata={"dpo_pipeline": '{"version": "0.1.0"}'})
    over = Outputs(overwrite=True)
    with pytest.raises(StorageError, match=r"a.parquet: .* \(and 1 more\): move what"):
        score_parquet([source], out, outputs=over)  # single outputs, put here by somebody
    (out / "_SUCCESS").touch()
    with pytest.raises(StorageError, match=f"0.1.0, .*rm -r '{out}'.*another folder"):
        score_parquet([source], out, outputs=over)
    (out / "notes.txt").touch()
    with pytest.raises(StorageError, match="not listed by its output .and 2 more."):
        score_parquet([source], out, outputs=over)
    assert names(out) == ["_SUCCESS", "a.parquet", "b.parquet", "notes.txt"]


def test_outputs_must_not_be_inputs_or_each_other(source, tmp_path):
    with pytest.raises(StorageError, match="also an input"):
        score_parquet(source, source, outputs=Outputs(overwrite=True))
    with pytest.raises(StorageError, match="two outputs"):
        score_parquet(
            source, tmp_path / "o.parquet", batches=Batches(2, file=tmp_path / "o.parquet")
        )
    with pytest.raises(StorageError, match="holds inputs"):
        score_parquet([source], tmp_path, outputs=Outputs(overwrite=True))
    assert names(tmp_path) == ["pairs.parquet"]
    assert pl.read_parquet(source).height == 6


@pytest.mark.parametrize(
    ("make", "said"),
    [
        pytest.param(lambda p: p.write_bytes(b""), "is empty", id="empty file"),
        pytest.param(lambda p: p.write_text("a,b\n1,2\n" * 9), "Parquet", id="CSV"),
        pytest.param(lambda p: p.mkdir(), "is an empty folder", id="empty folder"),
        pytest.param(lambda _: None, "no such file", id="nothing there"),
    ],
)
def test_what_is_no_parquet_is_said_with_its_path(tmp_path, make, said):
    path = tmp_path / "pairs.parquet"
    make(path)
    with pytest.raises(StorageError, match=said) as caught:
        score_parquet(path, tmp_path / "out.parquet")
    assert caught.value.path == str(path)
    assert not (tmp_path / "out.parquet").exists()


def test_a_truncated_file_leaves_no_output(source, tmp_path, real_pairs):
    real_pairs.write_parquet(source)
    whole = source.read_bytes()
    source.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StorageError):
        score_parquet(source, tmp_path / "out.parquet")
    assert names(tmp_path) == ["pairs.parquet"]


def test_an_output_inside_the_input_folder_is_refused(tmp_path, pairs):
    pairs.write_parquet(tmp_path / "a.parquet")
    with pytest.raises(StorageError, match="lies in the input folder"):
        score_parquet(tmp_path, tmp_path / "out")
    assert names(tmp_path) == ["a.parquet"]


def test_a_missing_output_folder_is_said(source, tmp_path):
    with pytest.raises(StorageError, match="does not exist"):
        score_parquet(source, tmp_path / "no" / "out.parquet")


def test_a_fault_while_writing_leaves_nothing(source, tmp_path, monkeypatch):
    def fail(_frame, file, **_):
        file.write(b"PAR1 and no more")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pl.LazyFrame, "sink_parquet", fail)
    with pytest.raises(StorageError, match="No space left"):
        score_parquet(source, tmp_path / "out", on_invalid="quarantine")
    assert names(tmp_path) == ["pairs.parquet"]


def test_the_summary_is_an_output_like_the_others(source, tmp_path):
    out = tmp_path / "s.parquet"
    for summary in (source, out):
        with pytest.raises(StorageError, match="also an input|two outputs"):
            score_parquet(source, out, outputs=Outputs(summary, overwrite=True))
    assert names(tmp_path) == ["pairs.parquet"]
    result = score_parquet(source, out, outputs=tmp_path / "s.json")
    assert json.loads((tmp_path / "s.json").read_text())["summary"] == result.summary.to_dict()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        pytest.param(lambda p, _: score_parquet(p, None), "sink must be a path", id="sink"),
        pytest.param(lambda p, o: score_parquet(p, o, by=3), "by must be a column", id="by"),
        pytest.param(
            lambda p, o: score_parquet(p, o, scored=[3]), "keep must be a column", id="keep"
        ),
        pytest.param(
            lambda p, o: score_parquet(Pairs(p, columns=["x"]), o), "must map roles", id="map"
        ),
        pytest.param(lambda p, o: score_parquet(p, o, beta=10**400), "finite", id="huge beta"),
        pytest.param(lambda p, o: score_parquet(p, o, batches=1.5), "whole number", id="size"),
    ],
)
def test_arguments_of_a_wrong_kind_are_usage_errors(source, tmp_path, call, said):
    with pytest.raises(UsageError, match=said):
        call(source, tmp_path / "out.parquet")
    assert names(tmp_path) == ["pairs.parquet"]


def test_keep_takes_one_name(source, tmp_path):
    score_parquet(source, tmp_path / "o.parquet", scored="pair_id")
    assert pl.read_parquet_schema(tmp_path / "o.parquet").names() == ["pair_id", *ADDED]


def test_a_pipe_is_refused_and_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StorageError, match="a device or a pipe"):
        score_parquet(tmp_path / "pipe", tmp_path / "out.parquet")
