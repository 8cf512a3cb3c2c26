"""The formulas: against mpmath at 40 digits, by hand, and by their properties."""

from __future__ import annotations

import math

import mpmath
import polars as pl
import pytest
from hypothesis import given, strategies as st

from dpo_pipeline.losses.dpo import (
    implicit_reward,
    is_correct,
    logratio,
    reward_margin,
    sigmoid_loss,
    softplus,
)
from dpo_pipeline.losses.pairwise import log1mexp

logps = st.floats(-3000, 0)
margins = st.floats(-1e4, 1e4)


def value_of(formula, **columns):
    frame = pl.DataFrame({name: [value] for name, value in columns.items()})
    return frame.select(formula(*(pl.col(name) for name in columns))).item()


def exact_softplus(x):
    with mpmath.workdps(40):
        return float(mpmath.log1p(mpmath.exp(mpmath.mpf(x))))


POINTS = [0.0, 1e-300, 1e-9, 0.1, 0.5, 1.0, 10.0, 36.7, 40.0, 300.0, 700.0, 744.0, 1e4]


@pytest.mark.parametrize("x", [sign * point for point in POINTS for sign in (1, -1)])
def test_softplus_and_loss_equal_mpmath(x):
    assert value_of(softplus, x=x) == pytest.approx(exact_softplus(x), rel=1e-12, abs=1e-323)
    assert value_of(sigmoid_loss, x=x) == pytest.approx(exact_softplus(-x), rel=1e-12, abs=1e-323)


@given(margins)
def test_loss_equals_mpmath_everywhere(margin):
    loss = value_of(sigmoid_loss, margin=margin)
    assert loss == pytest.approx(exact_softplus(-margin), rel=1e-12, abs=1e-323)


@pytest.mark.parametrize(
    ("margin", "loss"),
    [
        pytest.param(0.0, 0.6931471805599453, id="a tie: log 2"),
        pytest.param(1.0, 0.31326168751822286, id="log(1 + 1/e)"),
        pytest.param(-1.0, 1.3132616875182228, id="log(1 + e)"),
        pytest.param(1e4, 0.0, id="certain"),
        pytest.param(-1e4, 1e4, id="certainly wrong"),
        pytest.param(math.inf, 0.0, id="+inf"),
        pytest.param(-math.inf, math.inf, id="-inf"),
        pytest.param(math.nan, math.nan, id="NaN"),
        pytest.param(None, None, id="null"),
    ],
)
def test_loss_of(margin, loss):
    frame = pl.DataFrame({"margin": [margin]}, schema={"margin": pl.Float64})
    found = frame.select(sigmoid_loss(pl.col("margin"))).item()
    assert found == pytest.approx(loss, rel=1e-15, nan_ok=True) if loss is not None else not found
    assert (found is None) == (loss is None)


def test_reward_and_margin_by_hand():
    # 0.5 * (-12 + 13) = 0.5, 0.5 * (-20 + 18) = -1, 0.5 + 1 = 1.5
    pair = {"pc": -12.0, "pr": -20.0, "rc": -13.0, "rr": -18.0}
    frame = pl.DataFrame({k: [v] for k, v in pair.items()})
    chosen = implicit_reward(logratio(pl.col("pc"), pl.col("rc")), beta=0.5)
    rejected = implicit_reward(logratio(pl.col("pr"), pl.col("rr")), beta=0.5)
    row = frame.select(c=chosen, r=rejected, m=reward_margin(chosen, rejected)).row(0)
    assert row == (0.5, -1.0, 1.5)


@pytest.mark.parametrize(
    ("margin", "correct"),
    [(1e-300, True), (0.0, False), (-0.0, False), (-1.0, False), (math.nan, False), (None, None)],
)
def test_correct_is_strict_and_nan_never_is(margin, correct):
    frame = pl.DataFrame({"m": [margin]}, schema={"m": pl.Float64})
    assert frame.select(is_correct(pl.col("m"))).item() is correct


def margin_of(pc, pr, rc, rr, beta=0.1):
    return value_of(
        lambda a, b, c, d: reward_margin(
            implicit_reward(logratio(a, c), beta=beta), implicit_reward(logratio(b, d), beta=beta)
        ),
        pc=pc, pr=pr, rc=rc, rr=rr,
    )  # fmt: skip


@given(logps, logps, logps, logps)
def test_swapping_chosen_and_rejected_negates_the_margin(pc, pr, rc, rr):
    assert margin_of(pc, pr, rc, rr) == -margin_of(pr, pc, rr, rc)


@given(st.integers(-3000, 0), st.integers(-3000, 0), st.integers(-3000, 0), st.integers(-99, 99))
def test_shifting_policy_and_reference_alike_changes_nothing(pc, pr, rc, shift):
    # Whole numbers, so that the shift is exact and the property holds to the last bit.
    before = margin_of(float(pc), float(pr), float(rc), -100.0)
    assert before == margin_of(float(pc + shift), float(pr), float(rc + shift), -100.0)


@given(margins)
def test_losses_of_a_pair_and_its_swap_differ_by_the_margin(m):
    difference = value_of(sigmoid_loss, m=m) - value_of(sigmoid_loss, m=-m)
    assert difference == pytest.approx(-m, rel=1e-12, abs=1e-15)


@given(margins, st.floats(1e-6, 100))
def test_loss_never_rises_with_the_margin(m, step):
    assert value_of(sigmoid_loss, m=m + step) <= value_of(sigmoid_loss, m=m)


@pytest.mark.parametrize(
    "x",
    # On both sides of -log 2, where the two forms meet, and where either alone loses its digits.
    [-1e-300, -1e-12, -1e-6, -1e-3, -0.1, -0.6931, -0.6932, -1.0, -4.0, -15.0, -36.0, -700.0],
)
def test_log1mexp_equals_mpmath(x):
    with mpmath.workdps(400):
        exact = float(mpmath.log1p(-mpmath.exp(mpmath.mpf(x))))
    assert value_of(log1mexp, x=x) == pytest.approx(exact, rel=2e-15, abs=0.0)
