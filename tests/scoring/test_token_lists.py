"""Per-token lists in every call: quarantine, kept columns, files that differ, joins."""

from __future__ import annotations

import json
import math

import pandera.polars as pandera
import polars as pl
import pytest

from dpo_pipeline import (
    ColumnError,
    ContractError,
    InvalidPairsError,
    Objective,
    check,
    evaluate,
    join_reference,
    score,
    score_parquet,
    token_kl,
)
from dpo_pipeline.cli.program import main
from pair_tools import COUNTS, LOGPS, reference_row
from plan_tools import assert_streams
from token_tools import (
    BROKEN,
    MASKS,
    NAN,
    PC,
    PR,
    RC,
    RR,
    SUMS,
    TOKENS,
    found,
    pairs_of_tokens,
    with_list,
)


@pytest.fixture
def dirty(tmp_path):
    """The file of forty rows, with three faults; and the frame."""
    frame = pl.concat([pairs_of_tokens()] * 10).with_row_index("pair_id")
    frame = with_list(frame, PC, 5, [-8.0, NAN, None])
    frame = with_list(frame, RR, 11, None)
    frame = with_list(frame, PR, 30, [])
    frame.write_parquet(tmp_path / "in.parquet", row_group_size=7)
    return tmp_path / "in.parquet", frame


def test_quarantine_with_reasons(dirty, tmp_path):
    source, frame = dirty
    result = score_parquet(source, tmp_path / "out.parquet", on_invalid="quarantine")
    apart = pl.read_parquet(tmp_path / "out.invalid.parquet")
    assert dict(zip(apart["source_row"], apart["broken_rules"].to_list(), strict=True)) == BROKEN
    assert apart.select(TOKENS).equals(frame[list(BROKEN)].select(TOKENS), null_equal=True)
    scored = pl.read_parquet(tmp_path / "out.parquet")
    rows = [row for row in range(40) if row not in BROKEN]
    assert scored["pair_id"].to_list() == rows
    assert scored["policy_chosen_logps"].to_list() == [
        SUMS["policy_chosen_logps"][row % 4] for row in rows
    ]
    assert found(result.invalid) == {
        f"{PC}.no_null_token": [(5, "null at position 2")],
        f"{PC}.no_nan_token": [(5, "NaN at position 1")],
        f"{PR}.not_empty": [(30, "0 of 0 tokens count")],
        f"{PR}.same_length": [(30, f"0 tokens, 2 in {RR}")],
        f"{RR}.not_null": [(11, None)],
    }
    assert json.loads(result.to_json())["invalid"]


@pytest.mark.slow  # `contract/test_token_rules.py` has the rule; all are quarantined alike
def test_quarantine_of_masks_that_do_not_fit(tmp_path):
    frame = pairs_of_tokens({MASKS[0]: [[1, 1, 1], [1, 1], [1], [1] * 4]})
    frame.write_parquet(tmp_path / "in.parquet")
    score_parquet(tmp_path / "in.parquet", tmp_path / "out.parquet", on_invalid="quarantine")
    apart = pl.read_parquet(tmp_path / "out.invalid.parquet")
    assert apart["broken_rules"].to_list() == [[f"{PC}.fits_mask", f"{RC}.fits_mask"]]


@pytest.mark.slow  # evaluations that raise are in `contract/test_token_rules`, by one call
@pytest.mark.repeats(1)  # `contract/test_token_rules.py` has evaluations that raise
@pytest.mark.parametrize("call", ["score", "evaluate"])
def test_raise(dirty, tmp_path, call):
    out = tmp_path / "out.parquet"
    with pytest.raises(InvalidPairsError) as caught:
        score_parquet(dirty[0], out) if call == "score" else evaluate(dirty[0])
    report = caught.value.report
    assert report.n_invalid == 3
    assert sorted(report.by_rule) == sorted(n for names in BROKEN.values() for n in names)
    assert not out.exists()


def test_exclude(dirty, tmp_path):
    source, _ = dirty
    left_out = evaluate(source, on_invalid="exclude").summary
    scored = score_parquet(source, tmp_path / "out.parquet", on_invalid="exclude").summary
    assert left_out == scored
    rows = [row % 4 for row in range(40) if row not in BROKEN]
    losses = [reference_row(*(SUMS[n][r] for n in LOGPS), 0.1)[2] for r in rows]
    assert left_out.loss == pytest.approx(math.fsum(losses) / 37, abs=1e-9)
    assert left_out.n_invalid == 3


def test_keep_chooses_columns_under_their_canonical_names(dirty, tmp_path):
    source, frame = dirty
    frame.rename({PC: "policy_chosen_token_logprobs"}).write_parquet(source)
    score_parquet(source, tmp_path / "o.parquet", scored=[PC, "pair_id"], on_invalid="exclude")
    kept = pl.read_parquet_schema(tmp_path / "o.parquet")
    assert list(kept)[:2] == ["pair_id", PC]
    assert not set(kept) & {PR, RC, RR, *LOGPS, *COUNTS}


def test_a_contract_on_top(dirty):
    source, _ = dirty

    def short(data):
        return data.lazyframe.select(pl.col(data.key).list.len() <= 3)

    contract = pandera.DataFrameSchema(
        {
            RC: pandera.Column(checks=pandera.Check(short, name="short")),
            "policy_rejected_logps": pandera.Column(checks=pandera.Check.ge(-10.0)),
        }
    )
    by_rule = check(source, contract=contract).by_rule
    assert by_rule == {
        **{name: 1 for names in BROKEN.values() for name in names},
        f"{RC}.short": 10,  # each fourth row has four tokens
        # -10.625 in each fourth row from 1.
        "policy_rejected_logps.greater_than_or_equal_to": 10,
    }


def test_no_rows(tmp_path):
    empty = pairs_of_tokens({MASKS[0]: [[1]] * 4}).clear()
    empty.write_parquet(tmp_path / "in.parquet")
    for source in (empty, tmp_path / "in.parquet"):
        with pytest.raises(ContractError, match="it holds no pairs"):
            evaluate(source)
    assert score(empty).collect().height == 0
    assert token_kl(empty).collect().height == 0


def test_a_file_without_rows_among_others(tmp_path):
    pairs_of_tokens().clear().write_parquet(tmp_path / "a.parquet")
    pairs_of_tokens().write_parquet(tmp_path / "b.parquet")
    assert evaluate(tmp_path).summary == evaluate(pairs_of_tokens()).summary


def test_files_of_other_widths_are_widened(tmp_path):
    pairs_of_tokens().cast(pl.List(pl.Float32)).write_parquet(tmp_path / "a.parquet")
    pairs_of_tokens().write_parquet(tmp_path / "b.parquet")
    summary = evaluate(tmp_path).summary
    assert summary.loss == evaluate(pairs_of_tokens()).summary.loss
    assert summary.n_pairs == 8


def test_files_of_tokens_and_files_of_sums(tmp_path):
    pairs_of_tokens().write_parquet(tmp_path / "a.parquet")
    pl.DataFrame(SUMS).write_parquet(tmp_path / "b.parquet")
    with pytest.raises(ColumnError) as caught:
        evaluate(tmp_path)
    assert caught.value.problems


def test_the_command_line_takes_tokens(tmp_path, capsys):
    source = tmp_path / "in.parquet"
    pairs_of_tokens().write_parquet(source)
    expected = evaluate(source, loss=Objective(arguments={"ld_alpha": 0.5})).summary.loss
    assert main(["evaluate", str(source), "--loss-arg", "ld_alpha=0.5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["summary"]["loss"] == expected
    assert main(["check", str(source)]) == 0


def test_a_reference_in_tokens_is_joined_by_sums_alone():
    frame = pairs_of_tokens().with_row_index("pair_id")
    policy, reference = frame.drop(RC, RR), frame.drop(PC, PR)
    for join in (
        lambda: evaluate(policy, reference=reference),
        lambda: join_reference(policy, reference),
    ):
        with pytest.raises(ColumnError) as caught:
            join()
        assert [p.partition(":")[0] for p in caught.value.problems] == list(LOGPS[2:])
    sums = frame.select("pair_id", *(pl.Series(n, SUMS[n]) for n in LOGPS[2:]))
    assert evaluate(policy, reference=sums).summary == evaluate(frame).summary


@pytest.mark.repeats(1)  # a quarantine is one more scan
@pytest.mark.parametrize(
    ("on_invalid", "scans"),
    [
        pytest.param("exclude", 3, id="exclude"),
        pytest.param(
            "quarantine",
            4,
            id="quarantine",
        ),
    ],
)
def test_scoring_streams(engine, dirty, tmp_path, on_invalid, scans):
    score_parquet(dirty[0], tmp_path / "out.parquet", on_invalid=on_invalid)
    assert engine.data_scans == scans
    assert_streams(engine)
