"""KL from per-token log-probs, against verl's figures and mpmath."""

from __future__ import annotations

import math
import random
from functools import cache

import mpmath
import polars as pl
import pytest

from dpo_pipeline import ColumnError, token_kl
from pair_tools import LOGPS
from plan_tools import assert_streams
from token_tools import (
    MASKS,
    NAN,
    PC,
    PR,
    RC,
    RR,
    SUMS,
    TOKENS,
    of_frame,
    pairs_of_tokens,
    with_list,
)

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


@cache
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


def test_kl_streams(engine, tmp_path):
    path = tmp_path / "pairs.parquet"
    pairs_of_tokens().write_parquet(path)
    engine.graphs.clear()
    token_kl(pl.scan_parquet(path)).select("chosen_k3").collect(engine="streaming")
    assert engine.data_scans == 1
    assert_streams(engine)
