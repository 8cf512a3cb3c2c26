"""What a loss needs of a pair: a reference, token counts, or neither."""

from __future__ import annotations

import math

import polars as pl
import pytest

from dpo_pipeline import ColumnError, InvalidPairsError, evaluate, score, score_parquet
from dpo_pipeline.losses.catalogue import LOSSES
from objective_tools import (
    NEED_COUNTS,
    OF_BATCHES,
    PER_TOKEN_IF_ASKED,
    REFERENCE,
    minus_log_sigmoid,
    with_own_columns,
)
from option_tools import grouped
from pair_tools import COUNTS, LOGPS, REFS

FREE = [
    # By hand, beta 0.1: the policy's log-probs of the first pair are -20 and -22, and their
    # means over 2 and 4 tokens -10 and -5.5.
    pytest.param("cpo", {}, -2.0, -2.2, minus_log_sigmoid(0.2), id="cpo"),
    pytest.param("cpo_hinge", {}, -2.0, -2.2, 0.8, id="cpo_hinge"),
    pytest.param("simpo", {}, -1.0, -0.55, minus_log_sigmoid(-0.95), id="simpo"),
    pytest.param("sft", {}, -1.0, -0.55, 10.0, id="sft"),
    pytest.param(
        "sigmoid", {"reference_free": True}, -2.0, -2.2, minus_log_sigmoid(0.2), id="sigmoid"
    ),
    pytest.param(
        "hinge", {"reference_free": True, "per_token": True}, -1.0, -0.55, 1.45, id="hinge"
    ),
    pytest.param("ipo", {"reference_free": True}, -2.0, -2.2, 9.0, id="ipo"),
    pytest.param(
        *({"simpo": 2.0, "sft": 1.0}, {}, -1.0, -0.55, 2 * minus_log_sigmoid(-0.95) + 10),
        id="sum",
    ),
]


@pytest.mark.repeats(2)  # the catalogue says so by one field
@pytest.mark.parametrize(("loss", "arguments", "chosen", "rejected", "value"), FREE)
def test_a_reference_free_loss_needs_no_reference(
    counted, tmp_path, loss, arguments, chosen, rejected, value
):
    bare = counted.drop(REFS)
    call = {"loss": loss, "loss_args": arguments}
    scored = score(bare, **grouped(**call)).collect()
    first = scored.row(0, named=True)
    assert [first[n] for n in ("chosen_reward", "rejected_reward", "reward_margin", "loss")] == (
        pytest.approx([chosen, rejected, chosen - rejected, value], rel=1e-13)
    )
    alone = evaluate(bare.head(1), **grouped(**call)).summary
    assert [alone.chosen_reward, alone.rejected_reward, alone.reward_margin, alone.loss] == (
        pytest.approx([chosen, rejected, chosen - rejected, value], rel=1e-11)
    )
    whole = evaluate(bare, **grouped(**call))
    assert whole.summary.n_valid == 6
    assert whole.summary.policy_chosen_logps == pytest.approx(-271 / 6)
    assert (whole.summary.ref_chosen_logps, whole.summary.ref_rejected_logps) == (None, None)
    assert not set(REFS) & set(whole.columns)
    bare.write_parquet(tmp_path / "bare.parquet")
    score_parquet(tmp_path / "bare.parquet", tmp_path / "scored.parquet", **grouped(**call))
    assert pl.read_parquet(tmp_path / "scored.parquet").equals(scored)


@pytest.mark.repeats(1)  # the catalogue says so by one field
@pytest.mark.parametrize(("loss", "arguments"), [p.values[:2] for p in FREE])
def test_it_does_not_judge_a_reference_that_is_there(counted, tmp_path, loss, arguments):
    call = {"loss": loss, "loss_args": arguments}
    odd = counted.with_columns(
        pl.Series(REFS[0], [None, math.nan, 5.0, math.inf, -1e9, -1.0]),
        pl.Series(REFS[1], ["none", "of", "this", "is", "a", "number"]),
        pl.lit("x").alias("reference_chosen_logps"),  # an alias, which two columns now have
    )
    whole = evaluate(odd, **grouped(**call))
    assert whole.summary == evaluate(counted.drop(REFS), **grouped(**call)).summary
    assert (whole.summary.n_invalid, whole.warnings) == (0, ())
    odd.write_parquet(tmp_path / "odd.parquet")
    score_parquet(tmp_path / "odd.parquet", tmp_path / "scored.parquet", **grouped(**call))
    # They are like any other column: carried as they are, under their names.
    carried = pl.read_parquet(tmp_path / "scored.parquet")
    assert carried.select(odd.columns).equals(odd)


def test_a_reference_that_is_equal_to_the_policy_is_no_fault_without_one(counted):
    same = counted.with_columns(pl.col(p).alias(r) for p, r in zip(LOGPS[:2], REFS, strict=True))
    with pytest.warns(UserWarning, match="policy and reference log-probs are equal"):
        evaluate(same)
    assert evaluate(same, loss="cpo").warnings == ()


@pytest.mark.repeats(3)  # the catalogue says so by one field
@pytest.mark.parametrize("loss", sorted(REFERENCE["optional"] | REFERENCE["always"]))
def test_any_other_loss_needs_its_reference(counted, loss):
    size = {"batch_size": 2} if loss in OF_BATCHES else {}
    counted = with_own_columns(counted)
    for run in (score, evaluate):
        for several in (loss, {"sft": 1.0, loss: 1.0}):
            with pytest.raises(ColumnError, match="ref_rejected_logps: missing"):
                run(counted.drop(REFS[1]), loss=several, **grouped(**size))
    broken = counted.with_columns(pl.Series(REFS[0], [None, math.nan, 5.0, -1, -1, -1]))
    with pytest.raises(InvalidPairsError) as caught:
        evaluate(broken, **grouped(loss=loss, **size))
    assert [(r.name, r.count) for r in caught.value.report.broken] == [
        ("ref_chosen_logps.not_null", 1),
        ("ref_chosen_logps.not_nan", 1),
        ("ref_chosen_logps.at_most", 1),
    ]


COUNTING = [
    *(pytest.param(loss, {}, id=loss) for loss in sorted(NEED_COUNTS)),
    *(
        pytest.param(x, {"per_token": True}, id=f"{x} per_token")
        for x in sorted(PER_TOKEN_IF_ASKED)
    ),
    pytest.param({"sigmoid": 1.0, "sft": 0.1}, {}, id="sum"),
]


@pytest.mark.repeats(5)  # the catalogue says so by one field
@pytest.mark.parametrize(("loss", "arguments"), COUNTING)
def test_missing_token_counts_are_said_before_any_data_is_read(
    counted, tmp_path, engine, loss, arguments
):
    call = {"loss": loss, "loss_args": arguments}
    path, out = tmp_path / "bare.parquet", tmp_path / "scored.parquet"
    with_own_columns(counted).drop(COUNTS[1]).write_parquet(path)
    engine.graphs.clear()
    for run in (
        lambda: score(pl.scan_parquet(path), **grouped(**call)),
        lambda: evaluate(str(path), **grouped(**call)),
        lambda: score_parquet(str(path), out, **grouped(**call)),
    ):
        with pytest.raises(ColumnError) as caught:
            run()
        (problem,) = caught.value.problems
        assert problem.startswith("rejected_num_tokens: missing; if a column has another name")
    assert engine.graphs == []
    assert not out.exists()


def test_the_engine_would_have_seen_a_reading(source, engine):
    evaluate(source, loss="sft")
    assert engine.data_scans == 1


@pytest.mark.repeats(2)  # counts have one set of rules
@pytest.mark.parametrize(("loss", "arguments"), COUNTING)
def test_null_and_zero_counts_are_invalid_pairs(counted, loss, arguments):
    odd = with_own_columns(counted).with_columns(
        pl.Series(COUNTS[0], [None, 4, 5, 10, 4, 7]), pl.Series(COUNTS[1], [4, 2, 0, -3, None, 14])
    )
    call = {"loss": loss, "loss_args": arguments}
    with pytest.raises(InvalidPairsError) as caught:
        evaluate(odd, **grouped(**call))
    found = {r.name: [(o.row, o.value) for o in r.offenders] for r in caught.value.report.broken}
    assert found == {
        "chosen_num_tokens.not_null": [(0, None)],
        "rejected_num_tokens.not_null": [(4, None)],
        "rejected_num_tokens.at_least": [(2, 0), (3, -3)],
    }
    left = evaluate(odd, **grouped(on_invalid="exclude", **call)).summary
    sound = evaluate(with_own_columns(counted)[[1, 5]], **grouped(**call)).summary
    assert left.n_invalid == 4
    assert left.loss == sound.loss
    assert left.reward_margin == sound.reward_margin


def test_a_null_count_is_no_fault_where_nothing_divides_by_it(counted):
    odd = counted.with_columns(pl.Series(COUNTS[0], [None, 4, 5, 10, 4, 7]))
    assert evaluate(odd).summary == evaluate(counted).summary
    assert evaluate(counted.drop(COUNTS)).summary == evaluate(counted).summary
    # `score` judges no rows: null gives null.
    assert score(odd, loss="sft").collect()["loss"].to_list()[:2] == [None, 7.75]


@pytest.mark.repeats(5)  # the catalogue says so by one field
@pytest.mark.parametrize("loss", sorted(set(LOSSES) - NEED_COUNTS))
def test_any_other_loss_needs_no_counts(pairs, loss):
    size = {"batch_size": 2} if loss in OF_BATCHES else {}
    pairs = with_own_columns(pairs)
    assert evaluate(pairs, **grouped(loss=loss, **size)).summary.n_valid == 6
