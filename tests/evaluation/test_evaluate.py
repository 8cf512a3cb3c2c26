"""`evaluate`: hand-worked figures, subsets, invalid pairs, warnings, and repeatability."""

from __future__ import annotations

import math
import re
import warnings

import polars as pl
import pytest
from hypothesis import given, settings, strategies as st

import dpo_pipeline
from dpo_pipeline import (
    Batches,
    Cancelled,
    Contract,
    ContractError,
    DataWarning,
    Execution,
    InvalidPairsError,
    OnInvalid,
    Pairs,
    UsageError,
    defaults,
    evaluate,
)
from dpo_pipeline.evaluation import measuring
from option_tools import grouped
from pair_tools import LOGPS, LOSSES, close, with_value


def test_summary_by_hand(pairs):
    summary = evaluate(pairs, beta=0.1).summary
    assert summary.to_dict() == {
        "n_pairs": 6,
        "n_valid": 6,
        "n_invalid": 0,
        "n_ties": 1,
        "loss": close(sum(LOSSES) / 6),
        "reward_accuracy": 0.5,  # three of six above, the tie does not count
        "chosen_reward": close(0.1),
        "rejected_reward": close(0.2 / 6),
        "reward_margin": close(0.4 / 6),
        "policy_chosen_logps": close(-271 / 6),
        "policy_rejected_logps": close(-297 / 6),
        "ref_chosen_logps": close(-277 / 6),
        "ref_rejected_logps": close(-299 / 6),
    }


def test_trl_names(pairs):
    metrics = evaluate(pairs).to_metrics(prefix="eval_")
    assert metrics["eval_rewards/accuracies"] == 0.5
    assert metrics["eval_logps/chosen"] == close(-271 / 6)
    assert metrics["eval_rewards/rejected"] == close(0.2 / 6)


def test_subsets_and_null_is_one(pairs):
    subsets = evaluate(pairs, by="subset").subsets
    assert subsets["subset"].to_list() == ["x", "y", None]
    assert subsets["n_pairs"].to_list() == [3, 2, 1]
    assert subsets["reward_accuracy"].to_list() == [close(1 / 3), 0.5, 1.0]
    assert subsets["policy_chosen_logps"].to_list() == [close(-130 / 3), -45.5, -50.0]


def test_a_key_column_may_have_any_name(pairs):
    renamed = pairs.rename({"subset": "min_policy_chosen_logps", "pair_id": "sum_loss"})
    result = evaluate(renamed, by="min_policy_chosen_logps", batches=Batches(by="sum_loss"))
    assert result.subsets["n_pairs"].to_list() == [3, 2, 1]
    assert result.batches["batch"].to_list() == list("abcdef")


def test_an_already_scored_frame_can_be_evaluated(pairs):
    scored = dpo_pipeline.score(pairs, beta=5.0).collect()
    assert evaluate(scored, beta=0.1).summary.loss == close(sum(LOSSES) / 6)


@pytest.mark.repeats  # columns of log-probs have one set of rules
@pytest.mark.parametrize(
    ("value", "rule"),
    [
        pytest.param(None, "not_null", id="null"),
        pytest.param(math.nan, "not_nan", id="NaN"),
        pytest.param(math.inf, "finite", id="+inf"),
        pytest.param(-math.inf, "finite", id="-inf"),
        pytest.param(0.5, "at_most", id="positive"),
        pytest.param(-5e6, "at_least", id="beyond the range of sums"),
    ],
)
@pytest.mark.parametrize("column", LOGPS)
def test_invalid_pairs_raise_or_are_left_out(pairs, column, value, rule):
    broken = with_value(pairs, 1, value, column)
    with pytest.raises(InvalidPairsError) as caught:
        evaluate(broken)
    (only,) = caught.value.report.broken
    assert (only.name, only.count) == (f"{column}.{rule}", 1)
    assert [(o.file, o.row) for o in only.offenders] == [(None, 1)]
    summary = evaluate(broken, on_invalid="exclude").summary
    assert (summary.n_pairs, summary.n_valid, summary.n_invalid) == (6, 5, 1)
    assert summary.loss == close((sum(LOSSES) - LOSSES[1]) / 5)
    assert summary.reward_accuracy == 0.6


def test_scores_that_sums_cannot_hold_are_refused_by_row(pairs):
    # Chosen log-ratios 1, -1, 1, 2, 5, -2 and rejected 0, 1, 1, -3, -5, 8; the range ends at
    # 2**50 = 1.1259e15, and the loss of a large negative margin is minus that margin.
    with pytest.raises(InvalidPairsError) as caught:
        evaluate(pairs, beta=1e15)
    found = {r.name: [(o.row, o.value) for o in r.offenders] for r in caught.value.report.broken}
    assert found == {
        "chosen_reward.in_range": [(3, 2e15), (4, 5e15), (5, -2e15)],
        "rejected_reward.in_range": [(3, -3e15), (4, -5e15), (5, 8e15)],
        "loss.in_range": [(1, 2e15), (5, 1e16)],
    }
    summary = evaluate(pairs, beta=1e15, on_invalid="exclude").summary
    assert summary.loss == close(math.log(2) / 2)
    assert summary.reward_margin == close((1e15 + 0) / 2)


def test_large_margins_are_summed_exactly(pairs):
    # beta 1e6 makes margins 1e6, -2e6, 0, 5e6, 1e7, -1e7 nats: losses 0, 2e6, log 2, 0, 0, 1e7.
    assert evaluate(pairs, beta=1e6).summary.loss == close((2e6 + math.log(2) + 1e7) / 6)


def test_a_reward_that_overflows_is_counted_never_averaged(pairs):
    with pytest.raises(InvalidPairsError, match="no pair is valid") as caught:
        evaluate(pairs, beta=1e308, on_invalid="exclude")
    assert caught.value.report.n_invalid == 6


def test_the_first_five_offenders_by_row_and_value(pairs):
    many = pl.concat([pairs] * 3).with_columns(ref_chosen_logps=pl.int_range(18, dtype=pl.Int32))
    with pytest.raises(InvalidPairsError) as caught:
        evaluate(many)
    (only,) = caught.value.report.broken
    assert only.count == 17  # 0 is no positive log-prob
    assert [(o.row, o.value) for o in only.offenders] == [(i, float(i)) for i in range(1, 6)]
    assert [o.pair_id for o in only.offenders] == ["b", "c", "d", "e", "f"]
    assert "at most 0    17  row 1 (pair_id b): 1.0; row 2 (pair_id c): 2.0;" in str(caught.value)


@pytest.mark.parametrize(
    ("limit", "passes"),
    [(0, False), (1, False), (2, True), (0.3, False), (0.34, True), (1.0, True)],
)
def test_max_invalid_is_a_count_or_a_share(pairs, limit, passes):
    broken = with_value(with_value(pairs, 0, None), 5, None)
    if passes:
        assert (
            evaluate(broken, on_invalid=OnInvalid("exclude", at_most=limit)).summary.n_invalid == 2
        )
    else:
        with pytest.raises(InvalidPairsError, match="2 of 6 pairs are invalid"):
            evaluate(broken, on_invalid=OnInvalid("exclude", at_most=limit))


def test_no_pairs_is_no_pass(pairs):
    with pytest.raises(ContractError, match="no pairs"):
        evaluate(pairs.clear())


def test_no_valid_pair_is_no_pass(pairs):
    with pytest.raises(InvalidPairsError, match="no pair is valid"):
        evaluate(pairs.with_columns(ref_chosen_logps=None), on_invalid="exclude")


def test_bf16_exports_pass_with_a_larger_max_logp(pairs):
    slightly = with_value(pairs, 0, 0.125)
    assert evaluate(slightly, contract=Contract(max_logp=0.125)).summary.n_valid == 6
    with pytest.raises(InvalidPairsError, match=r"0\.0625 +1  row 0 \(pair_id a\): 0\.125"):
        evaluate(slightly, contract=Contract(max_logp=0.0625))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(
            {"ref_chosen_logps": pl.col("policy_chosen_logps"),
             "ref_rejected_logps": pl.col("policy_rejected_logps")},
            "equal on all 6 valid pairs", id="policy is the reference"),
        pytest.param({name: pl.col(name) / 40 for name in LOGPS}, "averaged", id="averaged"),
        pytest.param(
            {name: pl.col(name) / 40 for name in LOGPS[:2]},
            "no log-prob of the policy is below -10 nats (the lowest is -1.925), and those of the "
            "reference go down to -85: the policy's look averaged", id="averaged policy"),
        pytest.param(
            {name: pl.col(name) / 40 for name in LOGPS[2:]},
            "no log-prob of the reference is below -10 nats (the lowest is -2.125), and those of "
            "the policy go down to -77: the reference's look averaged", id="averaged reference"),
        pytest.param({"ref_chosen_logps": pl.lit(-52.0)}, "ref_chosen_logps is -52", id="constant"),
    ],
)  # fmt: skip
def test_legal_and_surely_wrong_is_warned_of(pairs, change, said):
    with pytest.warns(DataWarning, match=re.escape(said)) as caught:
        result = evaluate(pairs.with_columns(**change))
    assert len(result.warnings) == len(caught) == 1
    assert said in result.warnings[0]
    assert caught[0].filename == __file__


def test_right_data_is_not_warned_of(pairs, real_pairs):
    short = pairs.with_columns(
        *(pl.col(name) / 40 for name in LOGPS),
        chosen_num_tokens=pl.lit(3),
        rejected_num_tokens=pl.lit(2),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate(pairs)
        evaluate(real_pairs)
        evaluate(short)  # low log-probs of short completions are not averages
        evaluate(pairs.head(1))  # one row cannot be constant


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param({"by": "subst"}, r"did you mean 'subset'", id="unknown by"),
        pytest.param({"batch_by": "nope"}, "batches: 'nope' is not a column", id="batch_by"),
        pytest.param({"batch_size": 0}, "at least 1", id="batch size"),
        pytest.param({"batch_size": 2, "batch_by": "subset"}, "not both", id="two batchings"),
        pytest.param({"on_invalid": "drop"}, "raise, exclude", id="on_invalid"),
        pytest.param({"max_invalid": 1}, "on_invalid", id="max_invalid when raising"),
        pytest.param(
            {"max_invalid": 1.5, "on_invalid": "exclude"}, "0 to 1", id="max_invalid above 1"
        ),
        pytest.param({"beta": -1}, "beta must be", id="beta"),
    ],
)
def test_wrong_arguments(pairs, arguments, said):
    with pytest.raises(UsageError, match=said):
        evaluate(pairs, **grouped(**arguments))


def test_a_mapping_to_an_unknown_role(pairs):
    with pytest.raises(UsageError, match="not a column role"):
        evaluate(Pairs(pairs, columns={"policy": "x"}))


def test_too_many_subsets_are_refused_with_advice(pairs, monkeypatch):
    monkeypatch.setattr(measuring, "MAX_SUBSETS", 5)
    with pytest.raises(UsageError, match="more than 5 subsets; choose a coarser column"):
        evaluate(pairs, by="pair_id")


def test_cancelled_before_it_is_done(pairs):
    class Set:
        def is_set(self):
            return True

    with pytest.raises(Cancelled):
        evaluate(pairs, execution=Execution(cancel=Set()))


def test_progress_ends_at_the_total(tmp_path, real_pairs, monkeypatch):
    monkeypatch.setattr(measuring, "SHARD_ROWS", 200)
    path = tmp_path / "pairs.parquet"
    real_pairs.write_parquet(path)
    seen = []
    evaluate(path, execution=Execution(progress=seen.append))
    assert [(p.phase, p.rows, p.total) for p in seen] == [
        ("evaluating", rows, 698) for rows in (200, 400, 600, 698)
    ]


# -- the same bits, however the rows lie ------------------------------------------------------


def everything(source, **arguments):
    result = evaluate(source, **grouped(on_invalid="exclude", by="turns", **arguments))
    return (result.summary, result.subsets.rows(), result.batches.rows(), result.invalid.broken)


def with_faults(pairs):
    return pairs.with_columns(
        policy_chosen_logps=pl.when(pl.int_range(pl.len()) % 97 == 5)
        .then(float("nan"))
        .otherwise("policy_chosen_logps")
    )


@pytest.mark.slow  # `sources/test_common_schema.py` mixes types too, in any files and shards
@given(st.data())
@settings(max_examples=3, deadline=None)
def test_shards_in_any_split_merge_to_the_same_bits(real_pairs, tmp_path_factory, data):
    split_anywhere(with_faults(real_pairs[:80]), tmp_path_factory, data)


@pytest.mark.slow  # the same with more rows, more often
@given(st.data())
@settings(max_examples=25, deadline=None)
def test_many_rows_in_any_split_merge_to_the_same_bits(real_pairs, tmp_path_factory, data):
    split_anywhere(with_faults(real_pairs), tmp_path_factory, data)


def split_anywhere(pairs, tmp_path_factory, data):
    n = pairs.height
    size = data.draw(st.sampled_from([1, 7, 64, 1000]), label="batch size")
    expected = everything(pairs, batch_size=size)
    folder = tmp_path_factory.mktemp("split")
    cuts = sorted(data.draw(st.sets(st.integers(1, n - 1), max_size=6), label="cuts"))
    for start, stop in zip([0, *cuts], [*cuts, n], strict=True):
        pairs[start:stop].write_parquet(
            folder / f"{start:04}.parquet",
            row_group_size=data.draw(st.integers(1, n // 2), label="row group"),
        )
    shard = data.draw(st.integers(n // 5, n + 20), label="shard")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "SHARD_ROWS", shard)
        patch.setattr("dpo_pipeline.sums.batches.SHARD_ROWS", shard)
        found = everything(folder, batch_size=size)
    assert found[:3] == expected[:3]
    # The same rows, told by file: each one's start and its row there give the row of the whole.
    starts = [
        [int(o.file.removesuffix(".parquet")) + o.row for o in rule.offenders] for rule in found[3]
    ]
    assert starts == [[o.row for o in rule.offenders] for rule in expected[3]]


def test_float32_and_its_float64_image_give_the_same_bits(real_pairs):
    assert real_pairs.schema["policy_chosen_logps"] == pl.Float32
    image = real_pairs.with_columns(pl.col(LOGPS).cast(pl.Float64))
    assert everything(real_pairs, batch_size=64) == everything(image, batch_size=64)


def test_defaults_are_the_declared_ones(pairs):
    assert evaluate(pairs).beta == defaults.BETA == 0.1


@pytest.mark.parametrize("max_logp", [math.nan, math.inf, "0", True, 1e9])
def test_max_logp_must_be_a_number_of_nats(pairs, max_logp):
    with pytest.raises(UsageError, match="^max_logp must be a number of nats"):
        evaluate(pairs, contract=Contract(max_logp=max_logp))


def test_contract_must_be_a_pandera_schema(pairs):
    with pytest.raises(UsageError, match="contract must be a pandera"):
        evaluate(pairs, contract="mine")


@pytest.mark.parametrize(
    "arguments", [{}, {"batch_size": 2}, {"by": "subset"}, {"batch_by": "subset"}]
)
def test_no_pairs_is_no_pass_whatever_is_asked(pairs, arguments):
    for frame in (pairs.clear(), pairs.clear().lazy()):
        with pytest.raises(ContractError, match="no pairs"):
            evaluate(frame, **grouped(**arguments))
