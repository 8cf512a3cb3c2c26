"""Lists of per-token log-probs: sums and counts, rules by row and position, LD-DPO, humanline, KL.

Expected values come from plain Python lists and math.fsum, from the sums that TRL made of the same
tokens, and from figures that HALOs and verl print.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import subprocess
import sys

import mpmath
import pandera.polars as pandera
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conftest import DATA, LOGPS, reference_row
from dpo_pipeline import (
    ColumnError,
    ContractError,
    InvalidPairsError,
    UsageError,
    check,
    evaluate,
    join_reference,
    score,
    score_parquet,
    sweep,
    token_kl,
)
from dpo_pipeline.cli.program import main
from dpo_pipeline.contract.binding import bind
from test_plans import assert_streams

TOKENS = tuple(name.replace("_logps", "_token_logps") for name in LOGPS)
PC, PR, RC, RR = TOKENS
COUNTS = ("chosen_num_tokens", "rejected_num_tokens")
MASKS = ("chosen_token_mask", "rejected_token_mask")
LOWEST = -(2.0**22)
NAN, INF = math.nan, math.inf
LISTS = pl.List(pl.Float64)


def pairs_of_tokens(masks=None):
    """Four pairs whose tokens are eighths, so that sums have no error."""
    lists = {
        PC: [[-1.0, -2.0, -0.5], [-8.0, -4.0, -1.0], [-0.25], [-3.0, -3.0, -3.0, -3.0]],
        PR: [[-3.0, -1.0], [-2.0, -2.5, -6.0, -0.125], [-5.0, -0.5], [-7.0]],
        RC: [[-1.5, -2.0, -0.25], [-6.0, -4.0, -2.0], [-0.5], [-2.0, -4.0, -3.0, -3.5]],
        RR: [[-2.0, -1.0], [-2.0, -3.5, -5.0, -0.5], [-4.0, -0.5], [-9.0]],
    }
    kinds = dict.fromkeys(TOKENS, LISTS) | dict.fromkeys(MASKS, pl.List(pl.Int64))
    series = [
        pl.Series(n, v, dtype=kinds[n], strict=False) for n, v in (lists | (masks or {})).items()
    ]
    return pl.DataFrame(series)


SUMS = {
    "policy_chosen_logps": [-3.5, -13.0, -0.25, -12.0],
    "policy_rejected_logps": [-4.0, -10.625, -5.5, -7.0],
    "ref_chosen_logps": [-3.75, -12.0, -0.5, -12.5],
    "ref_rejected_logps": [-3.0, -11.0, -4.5, -9.0],
}
LENGTHS = {"chosen_num_tokens": [3, 3, 1, 4], "rejected_num_tokens": [2, 4, 2, 1]}


def with_list(frame, column, row, values):
    lists = frame[column].to_list()
    lists[row] = values
    return frame.with_columns(pl.Series(column, lists, dtype=frame.schema[column]))


def found(report):
    """Rows and values by rule."""
    return {rule.name: [(o.row, o.value) for o in rule.offenders] for rule in report.broken}


def of_frame(frame):
    return {name: frame[name].to_list() for name in frame.columns}


def softplus(x):
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


@pytest.fixture(scope="module")
def real_tokens():
    """The tokens of the first 100 real pairs."""
    return pl.read_parquet(DATA / "hh_harmless_policy_a_test_tokens.parquet")


@pytest.fixture(scope="module")
def real_sums(real_tokens):
    """What TRL summed of them, in float32."""
    rows = pl.read_parquet(DATA / "hh_harmless_policy_a_test.parquet").head(real_tokens.height)
    assert rows["pair_id"].equals(real_tokens["pair_id"])
    return rows


# --------------------------------------------------------------------------- sums and counts


def test_sums_and_counts_by_hand():
    scored = score(pairs_of_tokens(), loss_args={"per_token": True}).collect()
    assert of_frame(scored.select(LOGPS)) == SUMS
    assert of_frame(scored.select(COUNTS)) == LENGTHS
    assert of_frame(scored.select(TOKENS)) == of_frame(pairs_of_tokens())


def test_real_tokens_give_the_sums_of_trl(real_tokens, real_sums):
    scored = score(real_tokens).collect()
    for name, tokens in zip(LOGPS, TOKENS, strict=True):
        made, lists = scored[name].to_list(), real_tokens[tokens].to_list()
        assert made == pytest.approx([math.fsum(each) for each in lists], rel=1e-14)
        # Half a unit in the last place of Float32 is 6e-8.
        assert made == pytest.approx(real_sums[name].to_list(), rel=6e-8)
    for name in COUNTS:
        assert scored[name].to_list() == real_sums[name].to_list()


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({}, id="DPO"),
        pytest.param({"loss_args": {"per_token": True}}, id="per token"),
        pytest.param({"loss": "simpo", "beta": 2.0}, id="SimPO"),
        pytest.param({"loss": {"sigmoid": 1.0, "simpo": 0.5}}, id="a sum of both"),
        pytest.param({"loss": "ipo"}, id="IPO"),
        pytest.param({"loss": "orpo"}, id="ORPO"),
        pytest.param({"loss_args": {"reference_free": True}}, id="reference-free"),
        pytest.param({"loss": "kto_pair", "batch_size": 8}, id="a loss of batches"),
    ],
)
def test_real_tokens_give_the_figures_of_their_sums(real_tokens, real_sums, arguments):
    of_tokens = evaluate(real_tokens, **arguments).summary.to_dict()
    of_sums = evaluate(real_sums.drop("turns", "split"), **arguments).summary.to_dict()
    assert of_tokens == {
        # Absolute: a mean of differences of sums of some hundred nats, each known to 6e-8.
        name: None if value is None else pytest.approx(value, rel=1e-6, abs=2e-5)
        for name, value in of_sums.items()
    }
    for name in ("n_pairs", "n_valid", "n_ties", "reward_accuracy"):
        assert of_tokens[name] == of_sums[name]


def test_a_mean_over_tokens_by_hand():
    scored = score(pairs_of_tokens(), beta=1.0, loss_args={"per_token": True}).collect()
    for row in range(4):
        chosen, rejected = (
            (SUMS[ours][row] - SUMS[theirs][row]) / LENGTHS[count][row]
            for ours, theirs, count in zip(LOGPS[:2], LOGPS[2:], COUNTS, strict=True)
        )
        assert scored["chosen_reward"][row] == pytest.approx(chosen, rel=1e-14)
        assert scored["loss"][row] == pytest.approx(softplus(rejected - chosen), rel=1e-14)


def test_policy_in_tokens_and_reference_in_sums():
    frame = pairs_of_tokens().drop(RC, RR)
    frame = frame.with_columns(pl.Series(n, SUMS[n]) for n in LOGPS[2:])
    assert evaluate(frame).summary == evaluate(pairs_of_tokens()).summary
    with pytest.raises(InvalidPairsError) as caught:
        evaluate(with_list(frame, PR, 2, [-1.0, None]))
    assert found(caught.value.report) == {f"{PR}.no_null_token": [(2, "null at position 1")]}


def test_reference_in_tokens_and_policy_in_sums():
    frame = pairs_of_tokens().drop(PC, PR)
    frame = frame.with_columns(pl.Series(n, SUMS[n]) for n in LOGPS[:2])
    result = score(frame, loss_args={"per_token": True}).collect()
    assert of_frame(result.select(LOGPS)) == SUMS
    assert of_frame(result.select(COUNTS)) == LENGTHS


def test_sums_beside_tokens_win_and_their_tokens_are_not_judged():
    frame = with_list(pairs_of_tokens(), PC, 1, [None, NAN, 9.0])
    frame = frame.with_columns(policy_chosen_logps=pl.Series([-3.5, -20.0, -0.25, -12.0]))
    summary = evaluate(frame).summary
    assert summary.policy_chosen_logps == -35.75 / 4
    assert summary.ref_chosen_logps == sum(SUMS["ref_chosen_logps"]) / 4


def test_counts_beside_tokens_win():
    frame = pairs_of_tokens().with_columns(chosen_num_tokens=pl.Series([30, 30, 10, 40]))
    made = score(frame, loss_args={"per_token": True}).collect()
    assert made[COUNTS[0]].to_list() == [30, 30, 10, 40]
    assert made[COUNTS[1]].to_list() == LENGTHS[COUNTS[1]]


def test_counts_follow_from_tokens_whose_sums_are_there():
    frame = pairs_of_tokens().with_columns(pl.Series(n, v) for n, v in SUMS.items())
    assert of_frame(score(frame, loss="simpo").collect().select(COUNTS)) == LENGTHS


def test_without_a_reference_its_tokens_are_like_any_column():
    frame = with_list(pairs_of_tokens(), RC, 1, [NAN, None])
    assert evaluate(frame, loss="simpo").summary.n_valid == 4
    assert evaluate(frame.drop(RC, RR), loss="simpo").summary.n_valid == 4


@pytest.mark.parametrize(
    ("inner", "factor"),
    [
        pytest.param(pl.Float32, 1, id="Float32"),
        pytest.param(pl.Float64, 1, id="Float64"),
        # Eighths become whole numbers.
        pytest.param(pl.Int8, 8, id="Int8"),
        pytest.param(pl.Int64, 8, id="Int64"),
    ],
)
def test_types_of_tokens(inner, factor):
    frame = pairs_of_tokens().with_columns(
        (pl.col(TOKENS) * factor).cast(pl.List(inner)),
    )
    made = score(frame).collect().select(LOGPS)
    assert of_frame(made) == {n: [factor * v for v in values] for n, values in SUMS.items()}


def test_the_sum_of_float32_is_made_in_float64():
    tokens = [-0.1] * 1_000
    frame = pl.DataFrame({name: [tokens] for name in TOKENS}, schema=dict.fromkeys(TOKENS, LISTS))
    small = frame.cast(pl.List(pl.Float32))
    as_float32 = small[PC].to_list()[0]
    assert score(small).collect()[LOGPS[0]][0] == pytest.approx(math.fsum(as_float32), rel=1e-14)


def test_arrow_lists_of_any_offset_width(tmp_path):
    narrow = pairs_of_tokens().to_arrow(compat_level=pl.CompatLevel.oldest())
    kind = {"narrow": pa.list_, "wide": pa.large_list}
    for name, list_of in kind.items():
        schema = pa.schema([(n, list_of(pa.float32())) for n in TOKENS])
        table = narrow.cast(schema)
        pq.write_table(table, tmp_path / f"{name}.parquet")
        for source in (table, tmp_path / f"{name}.parquet"):
            assert evaluate(source).summary == evaluate(pairs_of_tokens()).summary


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        pytest.param(pl.List(pl.String), "List(String)", id="text"),
        pytest.param(pl.List(pl.List(pl.Float64)), "List(List(Float64))", id="list of lists"),
        pytest.param(pl.Array(pl.Float64, 2), "Array(Float64, shape=(2,))", id="array"),
        pytest.param(pl.Float64, "Float64", id="number"),
        pytest.param(pl.String, "String", id="plain text"),
        pytest.param(pl.List(pl.Date), "List(Date)", id="dates"),
    ],
)
@pytest.mark.parametrize("column", [PC, RR, MASKS[0]])
def test_a_wrong_type_is_named(column, kind, said):
    frame = pairs_of_tokens().with_columns(pl.lit(None, dtype=kind).alias(column))
    with pytest.raises(ColumnError) as caught:
        evaluate(frame)
    assert caught.value.problems == (f"{column}: must be a list of numbers, found {said}",)


def test_lists_under_the_name_of_a_sum_are_refused():
    frame = pairs_of_tokens().rename(dict(zip(TOKENS, LOGPS, strict=True)))
    with pytest.raises(ColumnError, match=r"policy_chosen_logps: .* found List\(Float64\)"):
        evaluate(frame)
    mapped = evaluate(frame, columns=dict(zip(TOKENS, LOGPS, strict=True)))
    assert mapped.summary == evaluate(pairs_of_tokens()).summary


@pytest.mark.parametrize(
    "names",
    [
        ["policy_chosen_token_logprobs", "policy_rejected_per_token_logps"],
        ["policy_chosen_per_token_logps", "policy_rejected_token_logprobs"],
    ],
)
def test_aliases(names):
    masks = {name: [[1] * n for n in LENGTHS[c]] for name, c in zip(MASKS, COUNTS, strict=True)}
    masks["chosen_token_mask"][1] = [0, 1, 1]
    frame = pairs_of_tokens(masks)
    others = {
        **dict(zip(TOKENS[:2], names, strict=True)),
        RC: "reference_chosen_token_logps",
        RR: "reference_rejected_token_logprobs",
        MASKS[0]: "chosen_completion_mask",
        MASKS[1]: "rejected_loss_mask",
    }
    assert evaluate(frame.rename(others)).summary == evaluate(frame).summary


def test_a_mapping_wins_over_names():
    wrong = pl.Series([[-1.0]] * 4)
    frame = pairs_of_tokens().rename({PC: "mine"}).with_columns(wrong.alias(PC))
    with pytest.raises(ColumnError, match=f"{PC}: the input has this column already"):
        score(frame, columns={PC: "mine"})
    summary = evaluate(frame, columns={PC: "mine"}).summary
    assert summary == evaluate(pairs_of_tokens()).summary


def test_missing_tokens_are_named():
    with pytest.raises(ColumnError, match="policy_chosen_logps: missing"):
        evaluate(pairs_of_tokens().drop(PC))
    with pytest.raises(ColumnError, match="both be it"):
        evaluate(pairs_of_tokens().with_columns(policy_chosen_per_token_logps=PC))


# -------------------------------------------------------------------------------------- masks


@pytest.mark.parametrize("inner", [pl.Boolean, pl.Int8, pl.UInt8, pl.Int64, pl.Float32], ids=str)
def test_masks(inner):
    masks = {
        MASKS[0]: [[0, 1, 1], [1, 0, 1], [1], [1, 1, 0, 0]],
        MASKS[1]: [[1, 0], [1, 1, 1, 1], [0, 1], [1]],
    }
    frame = pairs_of_tokens(masks).with_columns(pl.col(MASKS).cast(pl.List(inner)))
    scored = score(frame, loss_args={"per_token": True}).collect()
    assert of_frame(scored.select(LOGPS)) == {
        "policy_chosen_logps": [-2.5, -9.0, -0.25, -6.0],
        "policy_rejected_logps": [-3.0, -10.625, -0.5, -7.0],
        "ref_chosen_logps": [-2.25, -8.0, -0.5, -6.0],
        "ref_rejected_logps": [-2.0, -11.0, -0.5, -9.0],
    }
    assert scored[COUNTS[0]].to_list() == [2, 2, 1, 2]
    assert scored[COUNTS[1]].to_list() == [1, 4, 1, 1]
    assert evaluate(frame).summary.policy_chosen_logps == (-2.5 - 9.0 - 0.25 - 6.0) / 4


def test_a_mask_of_one_side_alone():
    frame = pairs_of_tokens({MASKS[1]: [[0, 1], [1, 1, 1, 1], [0, 1], [1]]})
    scored = score(frame).collect()
    assert scored["policy_chosen_logps"].to_list() == SUMS["policy_chosen_logps"]
    assert scored["ref_rejected_logps"].to_list() == [-1.0, -11.0, -0.5, -9.0]


@pytest.mark.parametrize("odd", [None, NAN, -INF, 7.0])
def test_what_a_mask_leaves_out_does_not_matter(odd):
    masks = {MASKS[0]: [[1, 1, 1], [0, 1, 0], [1], [1] * 4]}
    clean = pairs_of_tokens({MASKS[0]: [[1, 1, 1], [1], [1], [1] * 4]})
    frame = pairs_of_tokens(masks)
    for column in (PC, RC):
        frame = with_list(frame, column, 1, [odd, -4.0, odd])
        clean = with_list(clean, column, 1, [-4.0])
    frame = with_list(frame, RC, 1, [odd, -3.0, -1.0])
    clean = with_list(clean, RC, 1, [-3.0])
    assert evaluate(frame).summary == evaluate(clean).summary
    for arguments in ({"ld_alpha": 0.25}, {"humanline": True}):
        of_both = [evaluate(f, loss_args=arguments).summary for f in (frame, clean)]
        assert of_both[0] == of_both[1]
    kl = [token_kl(f).select("^.*_k[123]$").collect() for f in (frame, clean)]
    assert kl[0].equals(kl[1])


# -------------------------------------------------------------------------------------- rules

FAULTS = {
    "no_null_token": ([-8.0, None, -1.0], "null at position 1"),
    "no_nan_token": ([-8.0, NAN, NAN], "NaN at position 1"),
    "finite_tokens": ([INF, -4.0, -INF], "inf at position 0"),
    "tokens_at_most": ([-8.0, -4.0, 0.5], "0.5 at position 2"),
}


@pytest.mark.parametrize("column", [PC, RC])
@pytest.mark.parametrize("masked", [False, True])
def test_a_fault_has_one_name_a_row_and_a_position(column, masked):
    frame = pairs_of_tokens({MASKS[0]: [[1] * n for n in LENGTHS[COUNTS[0]]]} if masked else None)
    frame = pl.concat([*[frame[1:2]] * 6, frame[3:]])
    for row, (values, _) in enumerate(FAULTS.values()):
        frame = with_list(frame, column, row, values)
    frame = with_list(frame, column, 5, [-8.0, -INF, -1.0])
    report = check(frame)
    expected = {
        f"{column}.{rule}": [(row, value)] for row, (rule, (_, value)) in enumerate(FAULTS.items())
    }
    expected[f"{column}.finite_tokens"].append((5, "-inf at position 1"))
    assert found(report) == expected
    assert report.n_invalid == 5
    assert sum(report.by_rule.values()) == 5


@pytest.mark.parametrize("column", [PR, RR])
def test_a_fault_of_the_rejected_side(column):
    frame = with_list(pairs_of_tokens(), column, 3, [0.25])
    assert found(check(frame)) == {f"{column}.tokens_at_most": [(3, "0.25 at position 0")]}


def test_positions_are_those_of_the_whole_list_and_of_tokens_that_count():
    frame = pairs_of_tokens({MASKS[0]: [[1, 1, 1], [1, 1, 1], [1], [0, 1, 0, 1]]})
    frame = with_list(frame, PC, 3, [None, -3.0, None, None])
    assert found(check(frame)) == {f"{PC}.no_null_token": [(3, "null at position 3")]}


def test_a_null_list():
    frame = pl.concat([pairs_of_tokens()] * 2)
    for row, column in enumerate(TOKENS):
        frame = with_list(frame, column, row, None)
    assert found(check(frame)) == {
        f"{column}.not_null": [(row, None)] for row, column in enumerate(TOKENS)
    }


def test_an_empty_completion():
    frame = with_list(with_list(pairs_of_tokens(), PC, 2, []), RC, 2, [])
    assert found(check(frame)) == {
        f"{PC}.not_empty": [(2, "0 of 0 tokens count")],
        f"{RC}.not_empty": [(2, "0 of 0 tokens count")],
    }


def test_a_completion_that_is_masked_altogether():
    frame = pairs_of_tokens({MASKS[0]: [[1, 1, 1], [0, 0, 0], [1], [1] * 4]})
    assert found(check(frame)) == {
        f"{PC}.not_empty": [(1, "0 of 3 tokens count")],
        f"{RC}.not_empty": [(1, "0 of 3 tokens count")],
    }


@pytest.mark.parametrize("column", [PC, RC])
def test_policy_and_reference_of_different_length(column):
    frame = with_list(pairs_of_tokens(), column, 0, [-1.0, -2.0])
    ours, theirs = (2, 3) if column == PC else (3, 2)
    assert found(check(frame)) == {f"{PC}.same_length": [(0, f"{ours} tokens, {theirs} in {RC}")]}


def with_sums(frame, **changes):
    sums = {name: list(values) for name, values in SUMS.items()}
    for name, (row, value) in changes.items():
        sums[name][row] = value
    return frame.with_columns(pl.Series(n, v, dtype=pl.Float64) for n, v in sums.items())


def test_sums_beside_their_tokens_are_taken():
    near = with_sums(pairs_of_tokens(), policy_chosen_logps=(1, -13.2))
    with_floats = score(near).collect()
    assert with_floats[LOGPS[0]].to_list() == [-3.5, -13.2, -0.25, -12.0]


@pytest.mark.parametrize(
    ("name", "row", "value", "total"),
    [
        pytest.param("policy_chosen_logps", 1, -13.0 / 3, -13.0, id="an average"),
        pytest.param("ref_rejected_logps", 3, -19.0, -9.0, id="with the prompt"),
        pytest.param("policy_rejected_logps", 1, -10.625 - 0.2063, -10.625, id="just beyond"),
    ],
)
def test_sums_that_their_tokens_do_not_give_are_invalid(name, row, value, total):
    frame = with_sums(pairs_of_tokens(), **{name: (row, value)})
    shown = [(row, f"{value}, and the tokens sum to {total}")]
    assert found(check(frame)) == {f"{name}.agrees_with_tokens": shown}
    with pytest.raises(InvalidPairsError):
        evaluate(frame)


def test_sums_are_compared_with_the_tokens_that_count():
    masks = {MASKS[0]: [[0, 1, 1], [1, 1, 1], [1], [1] * 4]}
    frame = with_sums(pairs_of_tokens(masks), policy_chosen_logps=(0, -2.5))
    shown = [(0, "-3.75, and the tokens sum to -2.25")]
    assert found(check(frame)) == {"ref_chosen_logps.agrees_with_tokens": shown}


def test_a_sum_that_is_accepted_above_0_is_compared():
    frame = with_sums(pairs_of_tokens(), policy_chosen_logps=(0, 0.125))
    shown = [(0, "0.125, and the tokens sum to -3.5")]
    assert found(check(frame, max_logp=0.125)) == {f"{LOGPS[0]}.agrees_with_tokens": shown}


@pytest.mark.parametrize("value", [None, NAN, -INF, 0.5])
def test_a_sum_with_a_fault_has_that_fault_alone(value):
    frame = with_sums(pairs_of_tokens(), policy_chosen_logps=(0, value))
    assert len(found(check(frame))) == 1


def test_sums_stand_where_there_are_no_tokens_to_compare():
    frame = with_list(with_sums(pairs_of_tokens()), PC, 0, None)
    frame = with_list(frame, PR, 1, [-1.0, None])
    assert found(check(frame)) == {}


def test_an_empty_list_is_also_of_another_length():
    frame = with_list(pairs_of_tokens(), RR, 0, [])
    assert found(check(frame)) == {
        f"{RR}.not_empty": [(0, "0 of 0 tokens count")],
        f"{PR}.same_length": [(0, f"2 tokens, 0 in {RR}")],
    }


# For rows of three tokens: shorter, longer, longer by what is left out, and empty.
ODD_MASKS = [[1, 1], [1, 1, 1, 1], [1, 1, 1, 0], [], [1, 1, 1]]


def pairs_of_odd_masks():
    """Five pairs, of which the first four have a chosen mask of another length."""
    return pl.concat([pairs_of_tokens()[:1]] * 5).with_columns(pl.Series(MASKS[0], ODD_MASKS))


def test_a_mask_of_another_length():
    lengths = [(row, f"3 tokens, {len(ODD_MASKS[row])} in {MASKS[0]}") for row in range(4)]
    assert found(check(pairs_of_odd_masks())) == {
        f"{PC}.fits_mask": lengths,
        f"{RC}.fits_mask": lengths,
    }


def test_a_mask_of_another_length_breaks_one_rule_of_each_list():
    frame = pairs_of_odd_masks()
    rules = bind(frame.lazy(), source="pairs", max_logp=0.0).rules
    both = [f"{PC}.fits_mask", f"{RC}.fits_mask"]
    assert broken_rules(frame, rules) == [both] * 4 + [[]]


def test_a_null_mask():
    frame = pairs_of_tokens({MASKS[1]: [[1, 1], None, [1, 1], [1]]})
    value = f"4 tokens, 0 in {MASKS[1]}"
    assert found(check(frame)) == {
        f"{PR}.fits_mask": [(1, value)],
        f"{RR}.fits_mask": [(1, value)],
    }


def test_a_mask_of_large_numbers():
    frame = pairs_of_tokens({MASKS[0]: [[1, 1, 1], [1, 1, 300], [1], [1] * 4]})
    frame = with_list(frame, PC, 1, [-1.0, 0.5, -1.0])
    assert found(check(frame)) == {f"{PC}.tokens_at_most": [(1, "0.5 at position 1")]}


@pytest.mark.parametrize(
    ("value", "max_logp", "n_invalid"),
    [
        pytest.param(0.0, 0.0, 0, id="0 is a log-prob"),
        pytest.param(5e-324, 0.0, 1, id="the least above it is none"),
        pytest.param(0.125, 0.125, 0, id="at the limit"),
        pytest.param(0.1250001, 0.125, 1, id="above the limit"),
        pytest.param(-0.1, -0.125, 1, id="above a limit below 0"),
    ],
)
def test_the_limit_of_a_token(value, max_logp, n_invalid):
    low = pairs_of_tokens().with_columns(pl.col(TOKENS).list.eval(pl.element() - 1.0))
    report = check(with_list(low, PC, 1, [-9.0, value, -9.0]), max_logp=max_logp)
    name = f"{PC}.tokens_at_most"
    assert report.by_rule == ({name: 1} if n_invalid else {})
    if n_invalid:
        (rule,) = report.broken
        assert rule.requirement == f"all tokens at most {max_logp:,.10g}"


def test_a_sum_out_of_range_of_sound_tokens():
    frame = with_list(pairs_of_tokens(), PC, 1, [LOWEST, -1.0, -1.0])
    assert found(check(frame)) == {"policy_chosen_logps.at_least": [(1, LOWEST - 2.0)]}
    assert check(with_list(frame, PC, 1, [LOWEST, 0.0, 0.0])).n_invalid == 0
    above = with_list(pairs_of_tokens(), PC, 1, [0.125, 0.125, -0.125 + 2**-10])
    assert found(check(above, max_logp=0.125)) == {
        "policy_chosen_logps.at_most": [(1, 0.125 + 2**-10)]
    }


def test_several_faults_are_counted_once_by_name_each():
    frame = with_list(pairs_of_tokens(), PC, 1, [None, NAN, INF, 0.5, NAN, None, -INF])
    report = check(frame)
    assert found(report) == {
        f"{PC}.no_null_token": [(1, "null at position 0")],
        f"{PC}.no_nan_token": [(1, "NaN at position 1")],
        f"{PC}.finite_tokens": [(1, "inf at position 2")],
        f"{PC}.tokens_at_most": [(1, "0.5 at position 3")],
        f"{PC}.same_length": [(1, f"7 tokens, 3 in {RC}")],
    }
    assert set(report.by_rule.values()) == {1}
    assert report.n_invalid == 1


def test_an_unsound_list_hides_no_fault_of_other_columns():
    frame = with_list(pairs_of_tokens(), PC, 1, [-1.0, NAN, -1.0])
    frame = frame.with_columns(rejected_num_tokens=pl.Series([2, 0, 2, 1]))
    frame = with_list(frame, RR, 1, [2 * LOWEST, -1.0, -1.0, -1.0])
    assert check(frame).by_rule == {
        f"{PC}.no_nan_token": 1,
        "ref_rejected_logps.at_least": 1,
        "rejected_num_tokens.at_least": 1,
    }


def test_the_first_five_are_shown_and_all_are_counted(tmp_path):
    lists = [[-1.0, -30.0, float(row % 3 == 1)] for row in range(40)]
    frame = pl.DataFrame({PC: lists, RC: [[-2.0, -3.0 - r, -1.0] for r in range(40)]})
    frame = frame.with_columns(pl.col(PC, RC).name.map(lambda n: n.replace("chosen", "rejected")))
    frame = frame.with_columns(pl.Series(PR, [[-1.0, -float(r), -1.0] for r in range(40)]))
    frame[:15].write_parquet(tmp_path / "a.parquet", row_group_size=4)
    frame[15:].write_parquet(tmp_path / "b.parquet", row_group_size=3)
    with pytest.raises(InvalidPairsError) as caught:
        evaluate([tmp_path / "b.parquet", tmp_path / "a.parquet"])
    (rule,) = caught.value.report.broken
    assert (rule.name, rule.count) == (f"{PC}.tokens_at_most", 13)
    assert {o.value for o in rule.offenders} == {"1.0 at position 2"}
    rows = [(os.path.basename(o.file), o.row) for o in rule.offenders]
    # Files are taken in the order of their names or in that of the list: both give five in a row.
    first_b = [("b.parquet", row) for row in range(25) if (15 + row) % 3 == 1]
    first_a = [("a.parquet", row) for row in range(15) if row % 3 == 1]
    assert rows in ((first_a + first_b)[:5], (first_b + first_a)[:5])
    assert "13 rows, first at" in str(caught.value)


# ---------------------------------------------------------- the rules by plain Python, row by row


def broken_of_tokens(tokens, mask, max_logp):
    """The rules that one list breaks; `mask` is False without one."""
    if tokens is None:
        return ["not_null"]
    if mask is None or (mask is not False and len(mask) != len(tokens)):
        return ["fits_mask"]
    kept = tokens if mask is False else [t for t, m in zip(tokens, mask, strict=True) if m]
    if not kept:
        return ["not_empty"]
    values = [t for t in kept if t is not None]
    finite = [t for t in values if math.isfinite(t)]
    breaks = {
        "no_null_token": len(values) < len(kept),
        "no_nan_token": any(math.isnan(t) for t in values),
        "finite_tokens": any(math.isinf(t) for t in values),
        "tokens_at_most": any(t > max_logp for t in finite),
    }
    return [name for name, is_broken in breaks.items() if is_broken]


def broken_of_row(row, max_logp):
    """The rules that a row breaks, in any order, from lists alone."""
    names = []
    for column in TOKENS:
        mask = row.get(MASKS["rejected" in column], False)
        names += [f"{column}.{rule}" for rule in broken_of_tokens(row[column], mask, max_logp)]
    for ours, theirs in ((PC, RC), (PR, RR)):
        both = row[ours] is not None and row[theirs] is not None
        if both and len(row[ours]) != len(row[theirs]):
            names.append(f"{ours}.same_length")
    of_lists = tuple(names)
    for column, name in zip(TOKENS, LOGPS, strict=True):
        if any(fault.startswith(f"{column}.") for fault in of_lists):
            continue  # its sum has no fault of its own
        mask = row.get(MASKS["rejected" in column]) or [1] * len(row[column])
        total = math.fsum(t for t, m in zip(row[column], mask, strict=True) if m)
        names += [f"{name}.at_least"] * (total < LOWEST) + [f"{name}.at_most"] * (total > max_logp)
    return names


def broken_rules(frame, rules):
    """The names of the rules that each row breaks, one rule at a time."""
    binding = bind(frame.lazy(), source="pairs", max_logp=0.0)
    keeps = [rule.keeps.alias(str(i)) for i, rule in enumerate(rules.rules)]
    table = binding.prepare(frame.lazy()).select(keeps).collect()
    assert table.null_count().sum_horizontal().item() == 0
    names = [rule.name for rule in rules.rules]
    return [[n for n, keep in zip(names, row, strict=True) if not keep] for row in table.rows()]


def odd_lists(n_rows, *, masks):
    """Rows that are sound, or have one or several odd lists among them."""
    rng = random.Random(20)
    odd = [None, NAN, INF, -INF, 0.0, 0.125, 0.5, LOWEST, -1.0, -2.0, -0.5]
    rows = []
    for _ in range(n_rows):
        lengths = [rng.choice([0, 1, 1, 2, 3, 5, 9]) for _ in range(2)] * 2
        row = {
            n: [-rng.expovariate(1) for _ in range(k)] for n, k in zip(TOKENS, lengths, strict=True)
        }
        for name in TOKENS:
            how = rng.random()
            if how < 0.04:
                row[name] = None
            elif how < 0.08:
                row[name] = [rng.choice(odd) for _ in range(rng.randint(0, 6))]
            elif how < 0.25 and row[name]:
                row[name][rng.randrange(len(row[name]))] = rng.choice(odd)
        for name, length in zip(masks, lengths, strict=False):
            row[name] = [rng.randrange(8) > 0 for _ in range(length)]
            how = rng.random()
            if how < 0.03:
                row[name] = None
            elif how < 0.08:
                row[name] = [True] * rng.randint(0, 6)
        rows.append(row)
    kinds = dict.fromkeys(TOKENS, LISTS) | dict.fromkeys(masks, pl.List(pl.Boolean))
    return rows, pl.DataFrame(rows, schema=kinds)


@pytest.mark.parametrize(
    ("masks", "max_logp"),
    [
        pytest.param((), 0.0, id="no mask"),
        pytest.param(MASKS[:1], 0.0, id="one mask"),
        pytest.param(MASKS, 0.125, id="masks, and tokens up to 0.125"),
    ],
)
def test_rules_and_valid_against_plain_python(masks, max_logp):
    rows, frame = odd_lists(600, masks=masks)
    rules = bind(frame.lazy(), source="pairs", max_logp=max_logp).rules
    expected = [sorted(broken_of_row(row, max_logp)) for row in rows]
    assert [sorted(names) for names in broken_rules(frame, rules)] == expected
    prepared = bind(frame.lazy(), source="pairs", max_logp=max_logp).prepare(frame.lazy())
    valid = prepared.select(rules.valid.alias("valid")).collect()["valid"].to_list()
    assert valid == [not names for names in expected]
    # The table is of something: each rule is broken, and rows of every kind are there.
    seen = {name.partition(".")[2] for names in expected for name in names}
    assert len(seen) == 8 + bool(masks)
    assert 90 < sum(valid) < 480


@pytest.mark.parametrize("arguments", [{"ld_alpha": 0.0}, {"ld_alpha": 0.5}, {"humanline": True}])
def test_what_is_done_with_tokens_does_not_change_which_rows_are_sound(arguments):
    rows, frame = odd_lists(300, masks=())
    sound = [not broken_of_row(row, 0.0) for row in rows]
    result = evaluate(frame, loss_args=arguments, on_invalid="exclude")
    # A token too low for a plain sum can be clamped, or count less.
    names = {f"{n}.at_least" for n in LOGPS}
    low = [bool(set(broken) <= names) for broken in (broken_of_row(r, 0.0) for r in rows)]
    assert sum(sound) <= result.summary.n_valid <= sum(low)
    of_tokens = {k: v for k, v in result.invalid.by_rule.items() if "_token_" in k}
    plain = check(frame).by_rule
    assert of_tokens == {k: v for k, v in plain.items() if "_token_" in k}


# ------------------------------------------------------------------------------------ commands


@pytest.fixture
def dirty(tmp_path):
    """The file of forty rows, with three faults; and the frame."""
    frame = pl.concat([pairs_of_tokens()] * 10).with_row_index("pair_id")
    frame = with_list(frame, PC, 5, [-8.0, NAN, None])
    frame = with_list(frame, RR, 11, None)
    frame = with_list(frame, PR, 30, [])
    frame.write_parquet(tmp_path / "in.parquet", row_group_size=7)
    return tmp_path / "in.parquet", frame


BROKEN = {
    5: [f"{PC}.no_null_token", f"{PC}.no_nan_token"],
    11: [f"{RR}.not_null"],
    30: [f"{PR}.not_empty", f"{PR}.same_length"],
}


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


def test_quarantine_of_masks_that_do_not_fit(tmp_path):
    frame = pairs_of_tokens({MASKS[0]: [[1, 1, 1], [1, 1], [1], [1] * 4]})
    frame.write_parquet(tmp_path / "in.parquet")
    score_parquet(tmp_path / "in.parquet", tmp_path / "out.parquet", on_invalid="quarantine")
    apart = pl.read_parquet(tmp_path / "out.invalid.parquet")
    assert apart["broken_rules"].to_list() == [[f"{PC}.fits_mask", f"{RC}.fits_mask"]]


def test_exclude_and_raise(dirty, tmp_path):
    source, _ = dirty
    for run in (
        lambda: evaluate(source),
        lambda: score_parquet(source, tmp_path / "out.parquet"),
    ):
        with pytest.raises(InvalidPairsError) as caught:
            run()
        report = caught.value.report
        assert report.n_invalid == 3
        assert sorted(report.by_rule) == sorted(n for names in BROKEN.values() for n in names)
    assert not (tmp_path / "out.parquet").exists()
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
    score_parquet(source, tmp_path / "o.parquet", keep=[PC, "pair_id"], on_invalid="exclude")
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
    expected = evaluate(source, loss_args={"ld_alpha": 0.5}).summary.loss
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


# ------------------------------------------------------------------------------------- LD-DPO


def ld(tokens, other, alpha):
    """Tokens beyond the other completion's length count alpha times."""
    shared = min(len(tokens), len(other))
    return math.fsum(t if i < shared else alpha * t for i, t in enumerate(tokens))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_ld_dpo_against_plain_lists(real_tokens, alpha):
    lists = of_frame(real_tokens)
    made = score(real_tokens, loss_args={"ld_alpha": alpha}).collect()
    expected = [
        [
            ld(ours[i], theirs[i], alpha)
            for ours, theirs in (
                (lists[PC], lists[PR]),
                (lists[PR], lists[PC]),
                (lists[RC], lists[RR]),
                (lists[RR], lists[RC]),
            )
        ]
        for i in range(real_tokens.height)
    ]
    for place, name in enumerate(LOGPS):
        assert made[name].to_list() == pytest.approx([row[place] for row in expected], rel=1e-13)
    losses = [reference_row(*row, 0.1)[2] for row in expected]
    summary = evaluate(real_tokens, loss_args={"ld_alpha": alpha}).summary
    assert summary.loss == pytest.approx(math.fsum(losses) / len(losses), abs=1e-9)


def test_ld_dpo_by_hand():
    made = score(pairs_of_tokens(), loss_args={"ld_alpha": 0.5}).collect()
    assert of_frame(made.select(LOGPS)) == {
        "policy_chosen_logps": [-3.25, -13.0, -0.25, -7.5],
        "policy_rejected_logps": [-4.0, -10.5625, -5.25, -7.0],
        "ref_chosen_logps": [-3.625, -12.0, -0.5, -7.25],
        "ref_rejected_logps": [-3.0, -10.75, -4.25, -9.0],
    }


def test_ld_alpha_one_is_the_plain_sum(real_tokens):
    plain = score(real_tokens).collect()
    assert score(real_tokens, loss_args={"ld_alpha": 1}).collect().equals(plain)


def test_ld_dpo_takes_lengths_of_what_counts():
    frame = pairs_of_tokens({MASKS[0]: [[0, 0, 1], [1, 0, 1], [1], [0, 1, 0, 1]]})
    made = score(frame, loss_args={"ld_alpha": 0.0}).collect()
    assert made["policy_rejected_logps"].to_list() == [-3.0, -4.5, -5.0, -7.0]
    assert made["policy_chosen_logps"].to_list() == [-0.5, -9.0, -0.25, -3.0]


def test_ld_dpo_without_a_reference():
    made = score(pairs_of_tokens(), loss_args={"ld_alpha": 0.0, "reference_free": True}).collect()
    assert made["policy_chosen_logps"].to_list() == [-3.0, -13.0, -0.25, -3.0]
    assert "ref_chosen_logps" not in made.columns


def test_ld_dpo_of_simpo_still_divides_by_all_tokens():
    made = score(pairs_of_tokens(), 1.0, loss="simpo", loss_args={"ld_alpha": 0.0, "gamma": 0.0})
    assert made.collect()["chosen_reward"].to_list() == pytest.approx([-1.0, -13 / 3, -0.25, -0.75])


def test_sweep_takes_token_arguments():
    table = sweep(pairs_of_tokens(), [0.1, 0.5], loss_args={"ld_alpha": 0.5}).table
    losses = [
        evaluate(pairs_of_tokens(), beta, loss_args={"ld_alpha": 0.5}).summary.loss
        for beta in (0.1, 0.5)
    ]
    assert table["loss"].to_list() == losses


@pytest.mark.parametrize("arguments", [{"ld_alpha": 0.5}, {"humanline": True}])
def test_what_needs_tokens_is_refused_without_them(arguments):
    with pytest.raises(ColumnError) as caught:
        evaluate(pl.DataFrame(SUMS), loss_args=arguments)
    argument = next(iter(arguments))
    problem = f"missing, and {argument} is computed from tokens, not from sums"
    assert caught.value.problems == tuple(f"{name}: {problem}" for name in TOKENS)
    mixed = pairs_of_tokens().with_columns(ref_chosen_logps=pl.Series(SUMS["ref_chosen_logps"]))
    with pytest.raises(ColumnError) as caught:
        score(mixed, loss_args=arguments)
    problem = f"{argument} makes this sum from {RC}; drop this column"
    assert caught.value.problems == (f"ref_chosen_logps: {problem}",)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        pytest.param({"ld_alpha": -0.1}, "ld_alpha must be a number from 0 to 1", id="below 0"),
        pytest.param({"ld_alpha": 1.1}, "found 1.1", id="above 1"),
        pytest.param({"ld_alpha": NAN}, "found nan", id="NaN"),
        pytest.param({"ld_alpha": True}, "found True", id="a Boolean"),
        pytest.param({"ld_alpha": "0.5"}, "found '0.5'", id="text"),
        pytest.param({"ld_alpha": None}, "found None", id="None"),
        pytest.param({"humanline": 1}, "humanline must be True or False, found 1", id="number"),
        pytest.param({"humanline": "yes"}, "found 'yes'", id="yes"),
        pytest.param({"ld_alpha": 0.5, "humanline": True}, "both change the sums", id="both"),
    ],
)
@pytest.mark.parametrize("call", [score, evaluate, sweep])
def test_token_arguments_are_checked(call, arguments, problem):
    with pytest.raises(UsageError, match=problem):
        call(pairs_of_tokens(), loss_args=arguments)


def test_token_arguments_stand_in_the_document():
    result = evaluate(pairs_of_tokens(), loss_args={"ld_alpha": 0.25})
    text = result.to_json()
    assert '"ld_alpha": 0.25' in text
    assert '"humanline": false' in text


# ---------------------------------------------------------------------------------- humanline

HALOS = {
    PC: [[-1.0, -2.0, -0.5, 0.0]],
    PR: [[-3.0, -1.0, -2.0, -0.25]],
    RC: [[-1.5, -1.5, -0.5, 0.0]],
    RR: [[-0.5, -1.0, -1.75, -0.25]],
}


@pytest.mark.parametrize(
    ("arguments", "loss", "rewards"),
    [
        pytest.param({"beta": 0.1}, 0.5650706677, (0.0, -0.275), id="DPO"),
        pytest.param(
            {"beta": 0.1, "loss_args": {"label_smoothing": 0.2}},
            0.6200706677,
            (0.0, -0.275),
            id="conservative DPO",
        ),
        pytest.param(
            {"beta": 0.1, "loss_args": {"humanline": True}},
            0.6325990353,
            (0.0, -0.125),
            id="humanline DPO",
        ),
        pytest.param(
            {"beta": 10.0, "loss": "simpo", "loss_args": {"gamma": 3.0}},
            0.324639341,
            None,
            id="SimPO",
        ),
    ],
)
def test_figures_of_halos(arguments, loss, rewards):
    # HALOs takes a log-prob of exactly 0 for padding, which shows where it divides by a length.
    mask = pl.Series(MASKS[0], [[1, 1, 1, 0]])
    made = score(pl.DataFrame(HALOS).with_columns(mask), **arguments).collect()
    assert made["loss"][0] == pytest.approx(loss, abs=5e-10)
    if rewards is not None:
        assert made.select("chosen_reward", "rejected_reward").row(0) == pytest.approx(
            rewards, abs=1e-15
        )


def test_humanline_against_plain_lists(real_tokens):
    # These policies lie close together: five times the log-ratios, so that some are clamped.
    far = real_tokens.with_columns(
        (pl.col(ours) - 5.0 * (pl.col(theirs) - pl.col(ours))).list.eval(pl.element().clip(None, 0))
        for ours, theirs in ((PC, RC), (PR, RR))
    )
    lists = of_frame(far)
    made = score(far, loss_args={"humanline": True}).collect()
    n_clamped = 0
    for reward, ours, theirs in (("chosen_reward", PC, RC), ("rejected_reward", PR, RR)):
        expected = []
        for policy, reference in zip(lists[ours], lists[theirs], strict=True):
            ratios = [p - r for p, r in zip(policy, reference, strict=True)]
            n_clamped += sum(not -1.0 <= d <= 1.5 for d in ratios)
            expected.append(0.1 * math.fsum(min(max(d, -1.0), 1.5) for d in ratios))
        assert made[reward].to_list() == pytest.approx(expected, abs=1e-11)
    assert n_clamped > 100
    for name, tokens in zip(LOGPS[2:], TOKENS[2:], strict=True):
        assert made[name].to_list() == pytest.approx(list(map(math.fsum, lists[tokens])), rel=1e-13)
    assert evaluate(far, loss_args={"humanline": True}).summary.n_valid == far.height


def test_humanline_hides_no_infinity():
    frame = with_list(pairs_of_tokens(), PC, 1, [-8.0, -INF, -1.0])
    with pytest.raises(InvalidPairsError) as caught:
        evaluate(frame, loss_args={"humanline": True})
    assert caught.value.report.by_rule == {f"{PC}.finite_tokens": 1}


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({"loss": "simpo", "loss_args": {"humanline": True}}, id="SimPO"),
        pytest.param(
            {"loss_args": {"humanline": True, "reference_free": True}}, id="reference-free"
        ),
    ],
)
def test_humanline_of_a_loss_without_a_reference(arguments):
    # That it is computed, or that it is refused: both are answers.
    with contextlib.suppress(UsageError, ColumnError):
        evaluate(pairs_of_tokens(), **arguments)


# ----------------------------------------------------------------------------- KL from tokens

K = ("k1", "k2", "k3")


def kl_frame(policy, reference):
    """One row a token, on the chosen side."""
    values = {PC: policy, PR: [-1.0] * len(policy), RC: reference, RR: [-1.0] * len(policy)}
    return pl.DataFrame({name: [[v] for v in each] for name, each in values.items()})


def test_kl_by_the_figures_of_verl():
    made = token_kl(kl_frame([-1.0, -2.0, -0.5, -30.0], [-1.5, -1.0, -0.5, -2.0])).collect()
    assert made["chosen_k1"].to_list() == [0.5, -1.0, 0.0, -28.0]
    assert made["chosen_k2"].to_list() == [0.125, 0.5, 0.0, 392.0]
    k3 = made["chosen_k3"].to_list()
    assert k3[:3] == pytest.approx([0.1065306597, 0.7182818285, 0.0], abs=5e-11)
    # verl clamps the fourth to 10; here it is what the formula gives.
    assert k3[3] == pytest.approx(float(mpmath.exp(28)) - 29.0, rel=1e-14)
    assert made.select(f"rejected_{k}" for k in K).unique().rows() == [(0.0, 0.0, 0.0)]


def test_kl_is_a_mean_over_tokens():
    made = token_kl(
        pl.DataFrame(
            {
                PC: [[-1.0, -2.0, -0.5]],
                PR: [[-3.0, -2.0]],
                RC: [[-1.5, -1.0, -0.5]],
                RR: [[-1.0, -4.0]],
            }
        )
    ).collect()
    assert made["chosen_k1"][0] == pytest.approx(-0.5 / 3, rel=1e-15)
    assert made["chosen_k2"][0] == pytest.approx(0.625 / 3, rel=1e-15)
    assert made["chosen_k3"][0] == pytest.approx((0.1065306597 + 0.7182818285) / 3, abs=1e-10)
    assert (made["rejected_k1"][0], made["rejected_k2"][0]) == (0.0, 2.0)
    assert made["rejected_k3"][0] == pytest.approx(math.cosh(2.0) - 1.0, rel=1e-14)


def test_kl_of_real_tokens_against_mpmath(real_tokens):
    made = token_kl(real_tokens).collect()
    lists = of_frame(real_tokens.head(20))
    for side, ours, theirs in (("chosen", PC, RC), ("rejected", PR, RR)):
        for row in range(20):
            d = [
                mpmath.mpf(p) - r for p, r in zip(lists[ours][row], lists[theirs][row], strict=True)
            ]
            n = len(d)
            exact = [
                mpmath.fsum(d) / n,
                mpmath.fsum(x * x / 2 for x in d) / n,
                mpmath.fsum(mpmath.exp(-x) - 1 + x for x in d) / n,
            ]
            values = [made[f"{side}_{k}"][row] for k in K]
            assert values == pytest.approx([float(x) for x in exact], abs=1e-15, rel=1e-12)


def near_zero():
    rng = random.Random(4)
    steps = [rng.choice((1, -1)) * 10 ** rng.uniform(-17, -1) for _ in range(5_000)]
    return steps, token_kl(kl_frame(steps, [0.0] * len(steps))).collect()["chosen_k3"].to_list()


def test_k3_near_zero_is_exact_to_the_last_bit_of_one():
    steps, values = near_zero()
    with mpmath.workdps(60):
        exact = [float(mpmath.exp(-mpmath.mpf(x)) - 1 + mpmath.mpf(x)) for x in steps]
    assert values == pytest.approx(exact, abs=2.0**-52, rel=0)


def test_k3_is_at_least_zero():
    assert min(near_zero()[1]) >= 0.0


def test_kl_is_null_where_it_cannot_be_had():
    frame = pairs_of_tokens({MASKS[1]: [[1, 1], [1, 1, 1, 1], [0, 0], [1]]})
    frame = with_list(frame, PC, 0, [-1.0])
    frame = with_list(frame, RC, 1, None)
    frame = with_list(with_list(frame, PC, 2, []), RC, 2, [])
    made = token_kl(frame).select(pl.col("^.*_k[123]$").is_null()).collect()
    for k in K:
        assert made[f"chosen_{k}"].to_list() == [True, True, True, False]
        assert made[f"rejected_{k}"].to_list() == [False, False, True, False]


def test_kl_is_null_where_a_mask_hides_two_lengths():
    frame = pairs_of_tokens({MASKS[0]: [[1, 1], [1, 1, 1], [1], [1] * 4]})
    frame = with_list(frame, PC, 0, [-1.0, -2.0])
    assert token_kl(frame).collect()["chosen_k1"].to_list()[0] is None


def test_kl_keeps_the_columns_and_judges_no_row():
    frame = with_list(pairs_of_tokens(), PC, 1, [NAN, None, 3.0])
    frame = frame.with_row_index("pair_id").with_columns(policy_chosen_logps=pl.lit(-1.0))
    made = token_kl(frame.rename({RC: "reference_chosen_token_logps"})).collect()
    assert made.height == 4
    assert set(made.columns) >= {"pair_id", *TOKENS, "policy_chosen_logps", "rejected_k3"}
    assert made["policy_chosen_logps"].to_list() == [-1.0] * 4
    assert math.isnan(made["chosen_k1"][1])


def test_kl_overwrites_no_column():
    with pytest.raises(ColumnError, match="chosen_k1"):
        token_kl(pairs_of_tokens().with_columns(chosen_k1=pl.lit("mine")))


def test_kl_asks_for_all_four_lists():
    frame = pairs_of_tokens().drop(RC, RR)
    frame = frame.with_columns(pl.Series(n, SUMS[n]) for n in LOGPS[2:])
    with pytest.raises(ColumnError) as caught:
        token_kl(frame)
    assert [p.partition(":")[0] for p in caught.value.problems] == [RC, RR]
    with pytest.raises(ColumnError, match="missing"):
        token_kl(pl.DataFrame(SUMS))


# ------------------------------------------------------------------------------- plans and bits


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({}, id="DPO"),
        pytest.param({"loss": "simpo"}, id="SimPO"),
        pytest.param({"loss_args": {"ld_alpha": 0.5}}, id="LD-DPO"),
        pytest.param({"loss_args": {"humanline": True}}, id="humanline"),
        pytest.param({"batch_size": 2}, id="batches"),
    ],
)
@pytest.mark.parametrize("masked", [False, True])
def test_evaluate_reads_the_lists_once_and_nothing_else(engine, tmp_path, arguments, masked):
    masks = dict(zip(MASKS, ([[1] * n for n in LENGTHS[c]] for c in COUNTS), strict=True))
    frame = pairs_of_tokens(masks if masked else None).with_columns(text=pl.lit("x" * 99))
    frame.write_parquet(tmp_path / "in.parquet")
    engine.graphs.clear()
    evaluate(tmp_path / "in.parquet", **arguments)
    assert engine.data_scans == 1
    n_lists = (2 if arguments.get("loss") == "simpo" else 4) + 2 * masked
    assert f"project: {n_lists} total" in engine.graphs[0]
    assert_streams(engine)


def test_check_reads_the_lists_once(engine, tmp_path):
    pairs_of_tokens().with_columns(text=pl.lit("x")).write_parquet(tmp_path / "in.parquet")
    engine.graphs.clear()
    check(tmp_path / "in.parquet")
    assert engine.data_scans == 1
    assert "project: 4 total" in engine.graphs[0]
    assert_streams(engine)


def test_sums_and_their_tokens_are_read_in_one_reading(engine, tmp_path):
    frame = pairs_of_tokens().with_columns(pl.Series(n, v) for n, v in SUMS.items())
    frame.write_parquet(tmp_path / "in.parquet")
    engine.graphs.clear()
    evaluate(tmp_path / "in.parquet")
    assert engine.data_scans == 1
    assert "project: 8 total" in engine.graphs[0]
    assert_streams(engine)


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


def test_kl_streams(engine, dirty):
    token_kl(pl.scan_parquet(dirty[0])).select("chosen_k3").collect(engine="streaming")
    assert engine.data_scans == 1
    assert_streams(engine)


def many_tokens(n_rows, longest=400):
    """Lists of 1 to 400 tokens of 53 bits, one row in forty with a null or NaN."""
    rng = random.Random(8)
    rows = {name: [] for name in TOKENS}
    for i in range(n_rows):
        for ours, theirs in ((PC, RC), (PR, RR)):
            tokens = [-rng.expovariate(0.7) for _ in range(rng.randint(1, longest))]
            rows[theirs].append([t * rng.uniform(0.9, 1.1) for t in tokens])
            if i % 40 == 7:
                tokens[0] = None if i % 80 == 7 else NAN
            rows[ours].append(tokens)
    return pl.DataFrame(rows, schema=dict.fromkeys(TOKENS, LISTS)).with_row_index("pair_id")


RUN = """
import json, hashlib, pathlib, sys
from dpo_pipeline import batches, evaluate, measuring, score_parquet
source, out, shard = sys.argv[1:]
if int(shard):
    measuring.SHARD_ROWS = batches.SHARD_ROWS = int(shard)
for arguments in ({}, {"ld_alpha": 0.3}):
    result = score_parquet(
        source, out, on_invalid="quarantine", overwrite=True, loss_args=arguments
    )
    print(repr(result.summary.to_dict()))
    print(hashlib.sha256(pathlib.Path(out).read_bytes()).hexdigest())
"""


def test_the_same_rows_give_the_same_bits(tmp_path):
    source, seen = tmp_path / "in.parquet", []
    frame = many_tokens(200)
    for threads, shard, group in ((1, 0, 1_000_000), (4, 130, 37)):
        frame.write_parquet(source, row_group_size=group)
        done = subprocess.run(
            [sys.executable, "-c", RUN, source, tmp_path / "out.parquet", str(shard)],
            env={**os.environ, "POLARS_MAX_THREADS": str(threads)},
            capture_output=True,
            text=True,
            check=True,
        )
        seen.append(done.stdout.splitlines())
    assert [len(set(lines)) for lines in seen] == [4, 4]  # a summary and a table of each kind
    assert seen[0] == seen[1]


@pytest.mark.parametrize(
    "masks",
    [
        pytest.param((), id="lists"),
        pytest.param(MASKS, id="masks"),
    ],
)
def test_a_sum_does_not_depend_on_the_rows_beside_it(masks):
    rng = random.Random(1)
    lists = [[-rng.expovariate(1) for _ in range(300)] for _ in range(50)]
    all_true = pl.col(PC).list.eval(pl.element().is_finite().fill_null(value=True))
    made = []
    for rows in (lists, [*lists, [None, -1.0]]):
        frame = pl.DataFrame(dict.fromkeys(TOKENS, rows), schema=dict.fromkeys(TOKENS, LISTS))
        made.append(score(frame.with_columns(all_true.alias(name) for name in masks)).collect())
    assert made[1].head(50).equals(made[0])


def test_shards_of_any_size_give_the_same_summary(tmp_path, monkeypatch):
    many_tokens(120).write_parquet(tmp_path / "in.parquet", row_group_size=50)
    whole = evaluate(tmp_path / "in.parquet", on_invalid="exclude")
    monkeypatch.setattr("dpo_pipeline.evaluation.measuring.SHARD_ROWS", 29)
    parts = evaluate(tmp_path / "in.parquet", on_invalid="exclude")
    assert parts.invalid.by_rule == whole.invalid.by_rule
    assert repr(parts.summary) == repr(whole.summary)


def test_sums_of_sound_lists_have_the_same_bits_in_any_slice():
    frame = many_tokens(300)
    odd = pl.element().is_null() | pl.element().is_nan()
    clean = frame.filter(
        pl.all_horizontal(pl.col(PC, PR).list.eval(odd.fill_null(value=True)).list.any().not_())
    )
    together = score(clean).collect()
    parts = pl.concat([score(clean[i : i + 17]).collect() for i in range(0, clean.height, 17)])
    assert together.equals(parts)
    assert 280 < clean.height < 300


def test_means_of_many_tokens_against_plain_python():
    frame = many_tokens(500)
    lists = of_frame(frame)
    sound = [
        i
        for i in range(500)
        if not any(t is None or math.isnan(t) for name in (PC, PR) for t in lists[name][i])
    ]
    sums = {n: [math.fsum(lists[t][i]) for i in sound] for n, t in zip(LOGPS, TOKENS, strict=True)}
    summary = evaluate(frame, on_invalid="exclude").summary
    assert summary.n_valid == len(sound) < 500
    for name in LOGPS:
        mean = math.fsum(sums[name]) / len(sound)
        assert getattr(summary, name) == pytest.approx(mean, abs=1e-9)
    losses = [reference_row(*(sums[n][i] for n in LOGPS), 0.1)[2] for i in range(len(sound))]
    assert summary.loss == pytest.approx(math.fsum(losses) / len(sound), abs=1e-9)
