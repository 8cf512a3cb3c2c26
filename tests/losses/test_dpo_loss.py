"""The specification's function against the plain Python that it promises, to the last bit."""

from __future__ import annotations

import math
import random
import warnings

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from dpo_pipeline import ArgumentError, DataWarning, dpo_loss
from pair_tools import reference_row

ARGUMENTS = (
    "log_probs_chosen_policy",
    "log_probs_rejected_policy",
    "log_probs_chosen_ref",
    "log_probs_rejected_ref",
)


def plain_python(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta):
    rows = [
        reference_row(*row, beta)
        for row in zip(policy_chosen, policy_rejected, ref_chosen, ref_rejected, strict=True)
    ]
    chosen, rejected, losses = zip(*rows, strict=True)
    return {
        "loss": round(math.fsum(losses) / len(losses), 4),
        "chosen_rewards": [round(x, 4) for x in chosen],
        "rejected_rewards": [round(x, 4) for x in rejected],
    }


def is_tie(value):
    """Whether the fifth decimal of a reward's shortest form is a last 5."""
    _, _, decimals = f"{abs(value):.12f}".partition(".")
    return decimals[4:] == "50000000"


@pytest.mark.parametrize(
    "n_batches",
    # The first 200 of 10,000 have every length, beta and a hundred ties.
    [200, pytest.param(10_000, marks=pytest.mark.slow)],
)
def test_equals_plain_python_bit_for_bit(n_batches):
    generator = random.Random(2305_18290)
    n_ties = 0
    for _ in range(n_batches):
        n = (
            int(2 ** generator.uniform(0, 12))
            if generator.random() < 0.3
            else generator.randint(1, 9)
        )
        decimals = generator.choice([4, None])
        beta = generator.choice([0, 0.05, 0.1, 1 / 3])
        columns = [
            [
                value if decimals is None else round(value, decimals)
                for value in (-generator.random() * 3000 for _ in range(n))
            ]
            for _ in range(4)
        ]
        expected = plain_python(*columns, beta)
        # repr tells -0.0 from 0.0 and names every bit of a float.
        assert repr(dpo_loss(*columns, beta=beta)) == repr(expected)
        n_ties += sum(is_tie(beta * (c - r)) for c, r in zip(columns[0], columns[2], strict=True))
    assert n_ties >= n_batches // 2


def test_small_batches_are_the_same_through_polars(monkeypatch):
    generator = random.Random(11)
    for n in (1, 2, 3, 64, 512):
        for make in (lambda v: v, lambda v: round(v, 4), round):
            columns = [[make(-generator.random() * 3000) for _ in range(n)] for _ in range(4)]
            for beta in (0, 0.1, 1 / 3, 1e-300):
                small = dpo_loss(*columns, beta=beta)
                with monkeypatch.context() as context:
                    context.setattr("dpo_pipeline.losses.from_lists._SMALL", 0)
                    assert repr(dpo_loss(*columns, beta=beta)) == repr(small)
                floats = [list(map(float, column)) for column in columns]
                assert repr(plain_python(*floats, beta)) == repr(small)


def test_a_small_batch_of_lists_starts_no_plan(monkeypatch):
    def started(*_, **__):
        raise AssertionError("a frame")

    monkeypatch.setattr(pl.DataFrame, "select_seq", started)
    dpo_loss(*[[-1.0, -2] * 32] * 4)
    with pytest.raises(AssertionError, match="a frame"):
        dpo_loss(*[[-1.0] * 2048] * 4)


def test_integers_that_no_float_holds_are_rounded_first():
    big = -(2**53) - 1
    assert dpo_loss([big], [0], [-(2**53)], [0], beta=1)["chosen_rewards"] == [0.0]


def test_batches_of_4096_equal_plain_python():
    generator = random.Random(7)
    columns = [[-generator.random() * 3000 for _ in range(4096)] for _ in range(4)]
    assert repr(dpo_loss(*columns, beta=1 / 3)) == repr(plain_python(*columns, 1 / 3))


def test_hand_worked_batch():
    # margins 0.1*(1) - 0.1*(-2) = 0.3 and 0.1*(-2) - 0.1*(0) = -0.2:
    # log(1+e^-0.3) = 0.554355, log(1+e^0.2) = 0.798139; their mean is 0.676247.
    assert dpo_loss([-12.0, -9.0], [-20.0, -7.0], [-13.0, -7.0], [-18.0, -7.0]) == {
        "loss": 0.6762,
        "chosen_rewards": [0.1, -0.2],
        "rejected_rewards": [-0.2, 0.0],
    }


@pytest.mark.parametrize(
    ("policy_chosen", "policy_rejected", "loss"),
    [
        pytest.param(-1e4, 0.0, 1e4, id="margin -1e4"),
        pytest.param(0.0, -800.0, 0.0, id="margin +800"),
        pytest.param(-1e300, 0.0, 1e300, id="margin -1e300"),
        pytest.param(0.0, -1e300, 0.0, id="margin +1e300"),
        pytest.param(-5.0, -5.0, 0.6931, id="a tie costs log 2"),
    ],
)
def test_stable_for_any_finite_margin(policy_chosen, policy_rejected, loss):
    result = dpo_loss([policy_chosen], [policy_rejected], [0.0], [0.0], beta=1)
    assert result["loss"] == loss
    assert math.copysign(1, result["loss"]) == 1


def test_beta_0_gives_no_rewards_and_log_2():
    result = dpo_loss([-12.0], [-20.0], [-13.0], [-18.0], beta=0)
    assert result == {"loss": 0.6931, "chosen_rewards": [0.0], "rejected_rewards": [0.0]}


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(list, id="list"),
        pytest.param(tuple, id="tuple"),
        pytest.param(np.array, id="numpy float64"),
        pytest.param(pl.Series, id="Polars"),
        pytest.param(pa.array, id="Arrow array"),
        pytest.param(lambda v: pa.chunked_array([v[:1], v[1:]]), id="Arrow chunked array"),
        pytest.param(lambda v: np.array(v)[::-1][::-1], id="numpy view"),
    ],
)
def test_takes_columns_of_every_kind(make):
    columns = [[-12.5, -9.25], [-20.0, -7.0], [-13.0, -7.5], [-18.0, -7.0]]
    result = dpo_loss(*map(make, columns))
    assert repr(result) == repr(plain_python(*columns, 0.1))
    assert all(type(value) is float for value in (result["loss"], *result["chosen_rewards"]))


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(list, id="int"),
        pytest.param(lambda v: np.array(v, dtype=np.int32), id="numpy int32"),
        pytest.param(lambda v: np.array(v, dtype=np.float32), id="numpy float32"),
        pytest.param(lambda v: pl.Series(v, dtype=pl.Int16), id="Polars Int16"),
        pytest.param(lambda v: [v[0], float(v[1])], id="mixed"),
    ],
)
def test_computes_in_float64_whatever_the_number_type(make):
    columns = [[-12, -9], [-20, -7], [-13, -7], [-18, -7]]
    expected = plain_python(*([float(v) for v in column] for column in columns), 0.1)
    assert repr(dpo_loss(*map(make, columns))) == repr(expected)


ONE = [-1.0]
FAULTS = [
    pytest.param(([-1.0], ONE, ONE, [-1.0, -2.0]), 3, None, "2 values", id="unequal lengths"),
    pytest.param(([], [], [], []), 0, None, "empty", id="empty"),
    pytest.param(([-1.0, None], [-1.0] * 2, [-1.0] * 2, [-1.0] * 2), 0, 1, "None", id="null"),
    pytest.param((ONE, [math.nan], ONE, ONE), 1, 0, "nan", id="NaN"),
    pytest.param((ONE, ONE, [-math.inf], ONE), 2, 0, "-inf", id="-inf"),
    pytest.param((ONE, ONE, ONE, [math.inf]), 3, 0, "inf", id="+inf"),
    pytest.param((ONE, ONE, ["-1"], ONE), 2, 0, "'-1'", id="text"),
    pytest.param((ONE, ONE, [True], ONE), 2, 0, "True", id="Boolean"),
    pytest.param((ONE, ONE, [[1.0]], ONE), 2, 0, "[1.0]", id="nested list"),
    pytest.param((ONE, ONE, [10**400], ONE), 2, 0, "1000", id="integer beyond any float"),
    pytest.param(("-1", ONE, ONE, ONE), 0, None, "str", id="a string"),
    pytest.param((-1.0, ONE, ONE, ONE), 0, None, "float", id="a number"),
    pytest.param((ONE, None, ONE, ONE), 1, None, "NoneType", id="None"),
    pytest.param((ONE, np.array([[1.0]]), ONE, ONE), 1, 0, "must be a number", id="two dimensions"),
    pytest.param((ONE, np.array(["x"]), ONE, ONE), 1, 0, "x", id="numpy text"),
    pytest.param((ONE, pl.Series(["x"]), ONE, ONE), 1, 0, "'x'", id="Polars text"),
    pytest.param((ONE, pa.array([None], pa.float64()), ONE, ONE), 1, 0, "None", id="Arrow null"),
]


@pytest.mark.parametrize(("columns", "argument", "position", "said"), FAULTS)
def test_bad_input_names_argument_position_and_value(columns, argument, position, said):
    with pytest.raises(ArgumentError) as caught:
        dpo_loss(*columns)
    assert caught.value.argument == ARGUMENTS[argument]
    assert caught.value.position == position
    assert said in str(caught.value)
    assert str(caught.value).startswith(ARGUMENTS[argument])


@pytest.mark.parametrize("beta", [-0.1, math.nan, math.inf, "0.1", None, True])
def test_bad_beta_is_named(beta):
    with pytest.raises(ArgumentError, match="^beta must be") as caught:
        dpo_loss(ONE, ONE, ONE, ONE, beta=beta)
    assert caught.value.argument == "beta"
    assert repr(beta) in str(caught.value)


@pytest.mark.parametrize(
    ("beta", "said"),
    [
        pytest.param(1e308, "chosen reward of -inf at position 1", id="reward"),
        pytest.param(1e306, "makes the sum of the losses overflow", id="mean"),
    ],
)
def test_a_result_that_is_not_finite_is_an_error(beta, said):
    columns = [[-1.0] + [-150.0] * 2, [-1.0] * 3, [-1.0, -30.0, -30.0], [-1.0] * 3]
    with pytest.raises(ArgumentError, match=said):
        dpo_loss(*columns, beta=beta)


def test_finite_values_whose_sum_overflows_are_no_fault():
    result = dpo_loss([-1e308, -1e308], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0], beta=0.5)
    assert result["chosen_rewards"] == [-5e307, -5e307]


def test_a_positive_log_prob_is_computed_with_a_warning_that_says_where():
    with pytest.warns(DataWarning, match=r"log_probs_rejected_ref\[1\] is 0\.125") as caught:
        result = dpo_loss([-1.0, -2.0], [-1.0, -2.0], [-1.0, -2.0], [-1.0, 0.125], beta=1)
    assert result["rejected_rewards"] == [0.0, -2.125]
    assert caught[0].filename == __file__


def test_zero_is_no_positive_log_prob():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dpo_loss([0.0], [-0.0], [0.0], [0.0])
