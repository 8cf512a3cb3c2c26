"""Comparing: invalid pairs, arguments, cost in counts, and the command."""

from __future__ import annotations

import json
from threading import Event

import polars as pl
import pytest

from compare_tools import A, B, broken_at, frames, of_files, raised
from dpo_pipeline import (
    Cancelled,
    ContractError,
    Execution,
    InvalidPairsError,
    OnInvalid,
    StatisticsOptions,
    StorageError,
    UsageError,
    compare,
)
from dpo_pipeline.cli.program import main
from pair_tools import REFS
from plan_tools import NOT_STREAMED

# --- invalid pairs ---------------------------------------------------------------------------


def test_invalid_pairs_are_an_error_that_names_the_side():
    a, b = frames(n=10)
    text = raised(InvalidPairsError, a, broken_at(b, 103, 105))
    assert text.startswith(
        "2 of 10 common pairs are invalid\nB breaks its contract in 2 of 10 rows"
    )
    assert "policy_chosen_logps.not_nan" in text
    assert "  2  row 3 (pair_id 103): nan; row 5 (pair_id 105): nan" in text


def test_invalid_pairs_are_left_out_of_both_sides():
    a, b = frames(n=40)
    result = compare(broken_at(a, 101, 102), broken_at(b, 102, 103), on_invalid="exclude")
    keep = ~pl.col("pair_id").is_in([101, 102, 103])
    expected = compare(a.filter(keep), b.filter(keep))
    assert result.differences == expected.differences
    assert (result.n_common, result.n_valid) == (40, 37)
    assert (result.a.n_invalid, result.b.n_invalid) == (2, 2)
    assert result.a.summary.n_invalid == 3
    assert result.b.invalid.by_rule == {"policy_chosen_logps.not_nan": 2}
    assert "40 common pairs by pair_id, 3 invalid" in str(result)
    limits = {"on_invalid": "exclude", "max_invalid": 2}
    text = raised(InvalidPairsError, broken_at(a, 101, 102), broken_at(b, 102, 103), **limits)
    assert "3 of 40 common pairs are invalid, more than 2 (--max-invalid)" in text
    with_share = compare(a, broken_at(b, 103), on_invalid=OnInvalid("exclude", at_most=0.025))
    assert with_share.n_valid == 39


def test_invalid_pairs_of_one_side_alone_do_no_harm():
    a, b = frames(n=10)
    result = compare(broken_at(a, 101), b.filter(pl.col("pair_id") != 101))
    assert (result.n_valid, result.a.invalid) == (9, None)


def test_no_valid_pair():
    a, b = frames(n=4)
    bad = broken_at(a, 100, 101, 102, 103)
    text = raised(InvalidPairsError, bad, b, on_invalid="exclude")
    assert "no common pair is valid on both sides" in text


def test_scores_out_of_range():
    a, b = frames(n=4)
    huge = b.with_columns(
        policy_chosen_logps=pl.when(pl.col("pair_id") == 101)
        .then(-4e6)
        .otherwise("policy_chosen_logps")
    )
    text = raised(ContractError, a, huge, beta=1e9, loss="ipo")
    assert "1 of 4 common pairs are invalid: their log-probs are sound" in text
    kept = compare(a, huge, beta=1e9, loss="ipo", on_invalid="exclude")
    assert (kept.n_valid, kept.a.n_invalid, kept.b.n_invalid) == (3, 0, 1)


def test_a_schema_of_ones_own():
    import pandera.polars as pa

    schema = pa.DataFrameSchema({"split": pa.Column(str, pa.Check.isin(["x"]))})
    result = compare(*frames(), contract=schema, on_invalid="exclude")
    assert result.n_valid == 20


def moved(pairs):
    """The pairs of another policy."""
    return pairs.with_columns(pl.col("policy_chosen_logps") - 0.25 * pl.col("turns"))


# --- arguments, reading ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"loss": "aot"}, "is a loss of batches"),
        ({"beta": 0.0}, "beta is 0, so every reward is 0 and nothing can be compared: give a beta"),
        ({"level": 1.0}, "level"),
        ({"loss": "sigmoit"}, "did you mean 'sigmoid'"),
        ({"on_invalid": "quarantine"}, "on_invalid must be one of raise, exclude"),
        ({"max_invalid": 3}, "needs an on_invalid other"),
    ],
)
def test_arguments_that_cannot_be(arguments, text):
    assert text in raised(UsageError, *frames(n=4), **arguments)


def test_a_file_that_is_not_there(tmp_path):
    assert "no such file" in raised(StorageError, tmp_path / "none.parquet", B)


def test_sides_in_other_orders_are_read_once_and_stream(engine):
    compare(A, B, by="turns")  # of other lengths, so that they are not tried side by side
    assert engine.data_scans == 2
    for graph in engine.graphs:
        if "multi-scan[parquet]" in graph:
            assert not any(what in graph for what in NOT_STREAMED)


def test_sides_in_one_order_are_read_once_and_need_no_join(engine, real_pairs, tmp_path):
    for name, table in zip("ab", (real_pairs, moved(real_pairs)), strict=True):
        table.write_parquet(tmp_path / f"{name}.parquet", row_group_size=300)
    engine.graphs.clear()
    compare(tmp_path / "a.parquet", tmp_path / "b.parquet", by="turns")
    assert engine.data_scans == 2
    (pairs,) = (graph for graph in engine.graphs if "multi-scan[parquet]" in graph)
    assert "zip" in pairs
    assert not any("join" in graph for graph in engine.graphs)


def test_progress_and_a_stop():
    seen = []
    compare(A, B, execution=Execution(progress=seen.append))
    assert seen[0].phase == "joining"
    assert (seen[-1].phase, seen[-1].rows, seen[-1].total) == ("evaluating", 1583, 1583)
    stopped = Event()
    stopped.set()
    raised(Cancelled, A, B, cancel=stopped)


# --- the command -----------------------------------------------------------------------------


def run(capsys, *arguments):
    code = main(["compare", *(str(a) for a in arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_command_prints_what_the_library_says(capsys):
    code, out, err = run(capsys, A, B, "--by", "turns")
    assert (code, err) == (0, "")
    assert out == f"{of_files(('turns',))}\n"
    code, out, _ = run(capsys, A, B, "--json", "--beta", "0.05", "--loss", "ipo", "--level", "0.9")
    assert (code, json.loads(out)) == (
        0,
        json.loads(
            compare(A, B, beta=0.05, loss="ipo", statistics=StatisticsOptions(level=0.9)).to_json()
        ),
    )


def test_the_command_with_columns_references_and_formats(capsys, tmp_path):
    a, b = frames()
    expected = compare(a, b)
    a.drop(REFS).rename({"pair_id": "id"}).write_csv(tmp_path / "a.csv")
    names = {"policy_chosen_logps": "w", "policy_rejected_logps": "l", "pair_id": "id"}
    b.drop(REFS).rename(names).write_ndjson(tmp_path / "b.jsonl")
    a.select(id="pair_id", ref_chosen_logps=REFS[0], x=REFS[1]).write_parquet(
        tmp_path / "r.parquet"
    )
    mapped = [
        part
        for role, name in names.items()
        if role != "pair_id"
        for part in ("--b-column", f"{role}={name}")
    ]
    code, out, err = run(
        capsys,
        *(tmp_path / "a.csv", tmp_path / "b.jsonl", "--on", "id", "--json", *mapped),
        *("--reference", tmp_path / "r.parquet", "--reference-column", "ref_rejected_logps=x"),
    )
    assert (code, err) == (0, "")
    found = json.loads(out)
    wanted = json.loads(expected.to_json())
    for part in ("mcnemar", "n_valid"):
        assert found[part] == wanted[part]
    assert found["differences"]["loss"]["b"] == pytest.approx(wanted["differences"]["loss"]["b"])


def test_exit_codes_of_the_command(capsys, tmp_path):
    a, b = frames(n=10)
    for name, table in (("a", a), ("b", broken_at(b, 103)), ("twice", pl.concat([b, b]))):
        table.write_parquet(tmp_path / f"{name}.parquet")
    place = tmp_path / "a.parquet"
    code, out, err = run(capsys, place, tmp_path / "b.parquet")
    assert (code, out) == (1, "")
    assert "1 of 10 common pairs are invalid" in err
    code, out, err = run(capsys, place, tmp_path / "b.parquet", "--on-invalid", "exclude")
    assert code == 0
    assert "9 common pairs" in out
    assert err == ""
    assert "warning: 1 common pair of" in out
    code, out, err = run(capsys, place, tmp_path / "twice.parquet")
    assert (code, out) == (1, "")
    assert "more than once" in err
    assert run(capsys, place, tmp_path / "none.parquet")[0] == 3
    code, out, err = run(capsys, place, place, "--level", "1.5")
    assert (code, out) == (2, "")
    assert "level" in err
    assert run(capsys, place)[0] == 2


@pytest.mark.filterwarnings("ignore::dpo_pipeline.DataWarning")  # both sides are the same
def test_a_single_pair_can_show_nothing(real_pairs):
    found = compare(real_pairs.head(1), real_pairs.head(1))
    assert found.verdict.endswith("fewer than 6 pairs cannot show any")


@pytest.mark.parametrize(("name", "code"), [("there.html", 3), ("-", 2)])
def test_a_report_that_cannot_be_written_is_said_before_reading(
    name, code, tmp_path, monkeypatch, capsys, pairs, engine
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.html").write_text("old")
    for side in ("a.parquet", "b.parquet"):
        pairs.write_parquet(side)
    engine.graphs.clear()
    assert main(["compare", "a.parquet", "b.parquet", "--report", name]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert name in err
    assert engine.graphs == []
    assert (tmp_path / "there.html").read_text() == "old"


@pytest.mark.filterwarnings("ignore::dpo_pipeline.DataWarning")  # both sides are the same
def test_a_policy_and_itself_have_no_smallest_effect(real_pairs):
    found = compare(real_pairs, real_pairs, by="turns")
    assert {each.smallest_effect for each in found.differences.values()} == {None}
    assert found.subsets["smallest_effect"].null_count() == found.subsets.height
    assert found.verdict.endswith("on 698 common pairs")
