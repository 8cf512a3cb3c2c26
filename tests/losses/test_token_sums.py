"""Lists of per-token log-probs: their sums and counts, by hand and against TRL; masks."""

from __future__ import annotations

import math

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpo_pipeline import ColumnError, InvalidPairsError, Objective, Pairs, evaluate, score, token_kl
from option_tools import grouped
from pair_tools import COUNTS, LOGPS
from token_tools import (
    INF,
    LENGTHS,
    LISTS,
    MASKS,
    NAN,
    PC,
    PR,
    RC,
    RR,
    SUMS,
    TOKENS,
    found,
    of_frame,
    pairs_of_tokens,
    softplus,
    with_list,
)

# --------------------------------------------------------------------------- sums and counts


def test_sums_and_counts_by_hand():
    scored = score(pairs_of_tokens(), loss=Objective(arguments={"per_token": True})).collect()
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


@pytest.mark.repeats(1)  # losses read sums, whatever they are of
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
    of_tokens = evaluate(real_tokens, **grouped(**arguments)).summary.to_dict()
    of_sums = evaluate(real_sums.drop("turns", "split"), **grouped(**arguments)).summary.to_dict()
    assert of_tokens == {
        # Absolute: a mean of differences of sums of some hundred nats, each known to 6e-8.
        name: None if value is None else pytest.approx(value, rel=1e-6, abs=2e-5)
        for name, value in of_sums.items()
    }
    for name in ("n_pairs", "n_valid", "n_ties", "reward_accuracy"):
        assert of_tokens[name] == of_sums[name]


def test_a_mean_over_tokens_by_hand():
    scored = score(
        pairs_of_tokens(), beta=1.0, loss=Objective(arguments={"per_token": True})
    ).collect()
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
    result = score(frame, loss=Objective(arguments={"per_token": True})).collect()
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
    made = score(frame, loss=Objective(arguments={"per_token": True})).collect()
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
    expected = evaluate(pairs_of_tokens()).summary
    for name, list_of in kind.items():
        schema = pa.schema([(n, list_of(pa.float32())) for n in TOKENS])
        table = narrow.cast(schema)
        pq.write_table(table, tmp_path / f"{name}.parquet")
        for source in (table, tmp_path / f"{name}.parquet"):
            assert evaluate(source).summary == expected


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        pytest.param(pl.List(pl.String), "List(String)", id="text"),
        pytest.param(pl.List(pl.List(pl.Float64)), "List(List(Float64))", id="list of lists"),
        pytest.param(pl.Array(pl.Float64, (2, 2)), "Array(Float64, shape=(2, 2))", id="array"),
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
    with pytest.raises(InvalidPairsError) as caught:
        evaluate(frame)
    assert {rule.name: rule.requirement for rule in caught.value.report.broken} == {
        f"{name}.not_null": "not null, nor a list of none or several (--pairing)" for name in LOGPS
    }
    mapped = evaluate(Pairs(frame, columns=dict(zip(TOKENS, LOGPS, strict=True))))
    assert mapped.summary == evaluate(pairs_of_tokens()).summary


@pytest.mark.repeats(1)  # aliases are one table, which `test_columns` walks
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
        score(Pairs(frame, columns={PC: "mine"}))
    summary = evaluate(Pairs(frame, columns={PC: "mine"})).summary
    assert summary == evaluate(pairs_of_tokens()).summary


def test_missing_tokens_are_named():
    with pytest.raises(ColumnError, match="policy_chosen_logps: missing"):
        evaluate(pairs_of_tokens().drop(PC))
    with pytest.raises(ColumnError, match="both be it"):
        evaluate(pairs_of_tokens().with_columns(policy_chosen_per_token_logps=PC))


# -------------------------------------------------------------------------------------- masks


@pytest.mark.repeats(2)  # masks are cast to one type
@pytest.mark.parametrize("inner", [pl.Boolean, pl.Int8, pl.UInt8, pl.Int64, pl.Float32], ids=str)
def test_masks(inner):
    masks = {
        MASKS[0]: [[0, 1, 1], [1, 0, 1], [1], [1, 1, 0, 0]],
        MASKS[1]: [[1, 0], [1, 1, 1, 1], [0, 1], [1]],
    }
    frame = pairs_of_tokens(masks).with_columns(pl.col(MASKS).cast(pl.List(inner)))
    scored = score(frame, loss=Objective(arguments={"per_token": True})).collect()
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


@pytest.mark.repeats(1)  # what no rule reads may be anything
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
        of_both = [score(f, loss=Objective(arguments=arguments)).collect() for f in (frame, clean)]
        assert of_both[0].drop(TOKENS, MASKS[0]).equals(of_both[1].drop(TOKENS, MASKS[0]))
    kl = [token_kl(f).select("^.*_k[123]$").collect() for f in (frame, clean)]
    assert kl[0].equals(kl[1])
