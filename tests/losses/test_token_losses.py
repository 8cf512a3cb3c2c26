"""Losses that work on tokens: LD-DPO and humanline, against plain lists and other code."""

from __future__ import annotations

import contextlib
import math

import polars as pl
import pytest

from dpo_pipeline import (
    ColumnError,
    InvalidPairsError,
    Objective,
    UsageError,
    evaluate,
    score,
    sweep,
)
from option_tools import grouped
from pair_tools import LOGPS, reference_row
from token_tools import (
    INF,
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

# ------------------------------------------------------------------------------------- LD-DPO


def ld(tokens, other, alpha):
    """Tokens beyond the other completion's length count alpha times."""
    shared = min(len(tokens), len(other))
    return math.fsum(t if i < shared else alpha * t for i, t in enumerate(tokens))


@pytest.mark.repeats(2)  # alpha is a factor
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_ld_dpo_against_plain_lists(real_tokens, alpha):
    lists = of_frame(real_tokens)
    made = score(real_tokens, loss=Objective(arguments={"ld_alpha": alpha})).collect()
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
    summary = evaluate(real_tokens, loss=Objective(arguments={"ld_alpha": alpha})).summary
    assert summary.loss == pytest.approx(math.fsum(losses) / len(losses), abs=1e-9)


def test_ld_dpo_by_hand():
    made = score(pairs_of_tokens(), loss=Objective(arguments={"ld_alpha": 0.5})).collect()
    assert of_frame(made.select(LOGPS)) == {
        "policy_chosen_logps": [-3.25, -13.0, -0.25, -7.5],
        "policy_rejected_logps": [-4.0, -10.5625, -5.25, -7.0],
        "ref_chosen_logps": [-3.625, -12.0, -0.5, -7.25],
        "ref_rejected_logps": [-3.0, -10.75, -4.25, -9.0],
    }


def test_ld_alpha_one_is_the_plain_sum(real_tokens):
    plain = score(real_tokens).collect()
    assert score(real_tokens, loss=Objective(arguments={"ld_alpha": 1})).collect().equals(plain)


def test_ld_dpo_takes_lengths_of_what_counts():
    frame = pairs_of_tokens({MASKS[0]: [[0, 0, 1], [1, 0, 1], [1], [0, 1, 0, 1]]})
    made = score(frame, loss=Objective(arguments={"ld_alpha": 0.0})).collect()
    assert made["policy_rejected_logps"].to_list() == [-3.0, -4.5, -5.0, -7.0]
    assert made["policy_chosen_logps"].to_list() == [-0.5, -9.0, -0.25, -3.0]


def test_ld_dpo_without_a_reference():
    made = score(
        pairs_of_tokens(), loss=Objective(arguments={"ld_alpha": 0.0, "reference_free": True})
    ).collect()
    assert made["policy_chosen_logps"].to_list() == [-3.0, -13.0, -0.25, -3.0]
    assert "ref_chosen_logps" not in made.columns


def test_ld_dpo_of_simpo_still_divides_by_all_tokens():
    made = score(
        pairs_of_tokens(), 1.0, loss=Objective("simpo", arguments={"ld_alpha": 0.0, "gamma": 0.0})
    )
    assert made.collect()["chosen_reward"].to_list() == pytest.approx([-1.0, -13 / 3, -0.25, -0.75])


def test_sweep_takes_token_arguments():
    table = sweep(pairs_of_tokens(), [0.1, 0.5], loss=Objective(arguments={"ld_alpha": 0.5})).table
    losses = [
        evaluate(pairs_of_tokens(), beta, loss=Objective(arguments={"ld_alpha": 0.5})).summary.loss
        for beta in (0.1, 0.5)
    ]
    assert table["loss"].to_list() == losses


@pytest.mark.parametrize("arguments", [{"ld_alpha": 0.5}, {"humanline": True}])
def test_what_needs_tokens_is_refused_without_them(arguments):
    with pytest.raises(ColumnError) as caught:
        evaluate(pl.DataFrame(SUMS), loss=Objective(arguments=arguments))
    argument = next(iter(arguments))
    problem = f"missing, and {argument} is computed from tokens, not from sums"
    assert caught.value.problems == tuple(f"{name}: {problem}" for name in TOKENS)
    mixed = pairs_of_tokens().with_columns(ref_chosen_logps=pl.Series(SUMS["ref_chosen_logps"]))
    with pytest.raises(ColumnError) as caught:
        score(mixed, loss=Objective(arguments=arguments))
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
        call(pairs_of_tokens(), loss=Objective(arguments=arguments))


def test_token_arguments_stand_in_the_document():
    result = evaluate(pairs_of_tokens(), loss=Objective(arguments={"ld_alpha": 0.25}))
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
    made = score(pl.DataFrame(HALOS).with_columns(mask), **grouped(**arguments)).collect()
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
    made = score(far, loss=Objective(arguments={"humanline": True})).collect()
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
    assert (
        evaluate(far, loss=Objective(arguments={"humanline": True})).summary.n_valid == far.height
    )


def test_humanline_hides_no_infinity():
    frame = with_list(pairs_of_tokens(), PC, 1, [-8.0, -INF, -1.0])
    with pytest.raises(InvalidPairsError) as caught:
        evaluate(frame, loss=Objective(arguments={"humanline": True}))
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
        evaluate(pairs_of_tokens(), **grouped(**arguments))
