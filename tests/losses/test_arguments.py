"""Arguments of losses: their ranges, their defaults, and what is refused."""

from __future__ import annotations

import math

import pytest

from dpo_pipeline import ArgumentError, Batches, UsageError, evaluate, score
from dpo_pipeline.losses.catalogue import LOSSES
from dpo_pipeline.losses.objective import CheckedObjective
from objective_tools import (
    DIVERGENT,
    LOG_2,
    OF_BATCHES,
    PER_TOKEN_IF_ASKED,
    RANGES,
    REFERENCE,
    with_own_columns,
)
from option_tools import grouped

NO_NUMBERS = (math.nan, math.inf, -math.inf, True, False, "0.1", None, [0.1], 1j)


def test_the_ranges_are_those_of_every_parameter():
    assert set(RANGES) == {(loss.name, p.name) for loss in LOSSES.values() for p in loss.parameters}


def test_defaults_are_those_of_the_sources():
    other_than_0 = {
        ("exo_pair", "label_smoothing"): 1e-3,
        ("discopop", "tau"): 0.05,
        ("dpop", "penalty"): 50.0,
        ("simpo", "gamma"): 0.5,
        ("alphapo", "gamma"): 0.5,
    }
    for loss, name in RANGES:
        (term,) = CheckedObjective.of(loss).to_dict()["terms"]
        assert term[name] == other_than_0.get((loss, name), 0.0), (loss, name)


@pytest.mark.parametrize(("loss", "name"), RANGES)
def test_a_parameter_has_a_range(loss, name):
    inside, outside = RANGES[loss, name]
    for value in inside:
        (term,) = CheckedObjective.of(loss, loss_args={name: value}).to_dict()["terms"]
        assert term[name] == value
    for value in (*outside, *NO_NUMBERS):
        with pytest.raises(UsageError, match=rf"^{name} of {loss} must be a finite number.*found"):
            CheckedObjective.of(loss, loss_args={name: value})


def test_a_range_is_said_in_words():
    for loss, name, said in (
        ("robust", "label_smoothing", "a finite number at least 0 and below 0.5, found 0.5"),
        ("exo_pair", "label_smoothing", "a finite number above 0 and at most 0.5, found 0.0"),
        ("discopop", "tau", "a finite number above 0, found 0.0"),
        ("bco_pair", "baseline", "a finite number, found inf"),
    ):
        value = float(said.rsplit(" ", 1)[1])
        with pytest.raises(UsageError) as caught:
            CheckedObjective.of(loss, loss_args={name: value})
        assert str(caught.value) == f"{name} of {loss} must be {said}"


@pytest.mark.parametrize(
    ("call", "said"),
    [
        pytest.param({"loss": "sigmod"}, r"no 'sigmod' \(did you mean 'sigmoid'\?\)", id="typo"),
        pytest.param({"loss": "xyz"}, "no 'xyz'; the losses are sigmoid, sigmoid_norm", id="far"),
        pytest.param({"loss": "IPO"}, "there is no 'IPO'", id="case"),
        pytest.param({"loss": {"sigmoid": 1, "hinje": 1}}, "did you mean 'hinge'", id="second"),
        pytest.param({"loss": {5: 1.0}}, "there is no 5", id="name"),
        pytest.param({"loss": {}}, "loss must be a name, or names with weights", id="empty"),
        pytest.param({"loss": ["ipo"]}, r"names with weights, found \['ipo'\]", id="list"),
        pytest.param({"dialect": "trll"}, r"dialect.*did you mean 'trl'\?", id="dialect"),
        pytest.param({"dialect": "x"}, "the dialects are trl, dpo-paper, rewardbench", id="x"),
        pytest.param({"dialect": 5}, "dialect: there is no 5", id="dialect of 5"),
        pytest.param(
            {"loss_args": {"label_smothing": 0.1}},
            r"sigmoid has no 'label_smothing' \(did you mean 'label_smoothing'\?\); it takes "
            "f_alpha, f_divergence, label_smoothing, per_token, reference_free",
            id="argument",
        ),
        pytest.param({"loss_args": {"beta": 0.1}}, "sigmoid has no 'beta'", id="beta"),
        pytest.param(
            {"loss": {"ipo": 1, "hinge": 1}, "loss_args": {"tau": 1.0}},
            "ipo and hinge has no 'tau'",
            id="of no term",
        ),
        pytest.param(
            {"loss": "sft", "loss_args": {"gamma": 1.0}}, "sft has no 'gamma'; it takes none", id=""
        ),
        pytest.param({"loss_args": 5}, "must map argument names to values, found 5", id="args"),
        pytest.param({"loss_args": {1: 2}}, "must map argument names to values", id="key"),
        pytest.param({"loss_args": [("tau", 1)]}, "must map argument names", id="list of args"),
    ],
)
def test_what_there_is_not_is_said(pairs, call, said):
    for run in (score, evaluate):
        with pytest.raises(UsageError, match=said):
            run(pairs, **grouped(**call))


@pytest.mark.parametrize("weight", [0, 0.0, -1, math.nan, math.inf, -math.inf, True, "1", None])
def test_weights_are_above_0(weight):
    with pytest.raises(UsageError, match="the weight of hinge must be"):
        CheckedObjective.of({"sigmoid": 1.0, "hinge": weight})


@pytest.mark.parametrize(
    "call",
    [
        pytest.param({"loss_args": {"label_smoothing": 10**400}}, id="parameter"),
        pytest.param({"loss": {"sigmoid": 10**400}}, id="weight"),
        pytest.param(
            {"loss_args": {"f_divergence": "alpha_divergence", "f_alpha": 10**400}}, id="a"
        ),
        pytest.param({"beta": 10**400}, id="beta"),
        pytest.param({"dialect": ["trl"]}, id="unhashable dialect"),
        pytest.param({"loss_args": {"f_divergence": ["reverse_kl"]}}, id="unhashable divergence"),
    ],
)
def test_odd_values_are_usage_errors_too(call):
    with pytest.raises(UsageError):
        CheckedObjective.of(**call)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("argument", "value", "takers"),
    [
        pytest.param("reference_free", True, REFERENCE["optional"], id="reference_free"),
        pytest.param("per_token", True, PER_TOKEN_IF_ASKED, id="per_token"),
        pytest.param("f_divergence", "js_divergence", DIVERGENT, id="f_divergence"),
    ],
)
def test_which_losses_take_the_arguments_of_scores(loss, argument, value, takers):
    if loss in takers:
        (term,) = CheckedObjective.of(loss, loss_args={argument: value}).to_dict()["terms"]
        assert term[argument] == value
    else:
        with pytest.raises(UsageError, match=f"{loss} has no '{argument}'"):
            CheckedObjective.of(loss, loss_args={argument: value})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param({"reference_free": 1}, "reference_free.*True or False, found 1", id="free 1"),
        pytest.param({"reference_free": "yes"}, "must be True or False, found 'yes'", id="yes"),
        pytest.param({"per_token": None}, "per_token of sigmoid must be True or False", id="None"),
        pytest.param({"per_token": 0.0}, "must be True or False, found 0.0", id="token 0"),
        pytest.param(
            {"f_divergence": "kl"},
            "must be one of reverse_kl, forward_kl, js_divergence, alpha_divergence, found 'kl'",
            id="divergence",
        ),
        pytest.param({"f_divergence": None}, "f_divergence.*found None", id="no divergence"),
        pytest.param({"f_alpha": 0.5}, "f_alpha goes with f_divergence='alpha_div", id="alone"),
        pytest.param(
            {"f_alpha": 0.5, "f_divergence": "forward_kl"}, "f_alpha goes with", id="with another"
        ),
        *(
            pytest.param(
                {"f_alpha": value, "f_divergence": "alpha_divergence"},
                "f_alpha of sigmoid must be a number within 100, found",
                id=f"alpha {value}",
            )
            for value in (math.nan, math.inf, -math.inf, 100.1, -101, True, "0.5", None)
        ),
        *(
            pytest.param(
                {"reference_free": True, "f_divergence": name},
                "an f-divergence is one from the reference",
                id=f"free {name}",
            )
            for name in ("forward_kl", "js_divergence", "alpha_divergence")
        ),
    ],
)
def test_arguments_of_scores_are_checked(arguments, said):
    with pytest.raises(UsageError, match=said):
        CheckedObjective.of("sigmoid", loss_args=arguments)


def test_reverse_kl_goes_with_everything():
    made = CheckedObjective.of(
        "sigmoid", loss_args={"reference_free": True, "f_divergence": "reverse_kl"}
    )
    assert made.terms[0].basis == CheckedObjective.of("cpo").terms[0].basis


@pytest.mark.parametrize("alpha", [-100, 0, 1, 100])
def test_f_alpha_has_its_range(alpha):
    made = CheckedObjective.of(loss_args={"f_divergence": "alpha_divergence", "f_alpha": alpha})
    assert made.to_dict()["terms"][0]["f_alpha"] == alpha


AT_BETA_0 = {
    # By hand, all rewards and margins being 0: policy log-probs -20 and -22, 2 and 4 tokens.
    "sigmoid": LOG_2,
    "sigmoid_norm": LOG_2,
    "robust": LOG_2,
    "hinge": 1.0,
    "exo_pair": -LOG_2 - 0.5 * (math.log(0.999) + math.log(0.001)),
    "nca_pair": 2 * LOG_2,
    "bco_pair": 2 * LOG_2,
    "apo_zero": 1.0,
    "apo_down": 1.0,
    "discopop": 0.5 * LOG_2 + 0.5,
    "dpop": LOG_2,
    "rdpo": LOG_2,
    "odpo": LOG_2,
    "soft_labels": LOG_2,
    "wpo": math.exp(-20 / 2 - 22 / 4) * LOG_2,
    "cpo": LOG_2,
    "cpo_hinge": 1.0,
    "simpo": math.log(1 + math.exp(0.5)),
    "alphapo": math.log(1 + math.exp(0.5)),
    "orpo": 10.0,
    "orpo_odds_ratio": 0.0,
    "sft": 10.0,
    "aot": LOG_2,
    "aot_unpaired": LOG_2,
    "kto_pair": 0.5,
}


@pytest.mark.parametrize("loss", LOSSES)
def test_beta_0_is_for_losses_that_do_not_divide_by_it(counted, loss):
    size = {"batch_size": 1} if loss in OF_BATCHES else {}
    if loss in AT_BETA_0:
        first = score(with_own_columns(counted), 0.0, **grouped(loss=loss, **size)).collect()[
            "loss"
        ][0]
        assert first == pytest.approx(AT_BETA_0[loss], rel=1e-14)
    else:
        assert loss in {"ipo", "sppo_hard"}
        for several in (loss, {"sigmoid": 1.0, loss: 0.5}):
            with pytest.raises(ArgumentError, match=f"beta must be above 0 for {loss}, which div"):
                score(counted, 0.0, loss=several)


@pytest.mark.parametrize("beta", [-1e-9, math.nan, math.inf, True, "0.1", [0.1]])
def test_beta_is_checked_with_every_loss(beta):
    for loss in ("sigmoid", "ipo", {"sft": 1.0}):
        with pytest.raises(ArgumentError, match="^beta must be"):
            CheckedObjective.of(loss, beta)


@pytest.mark.parametrize("loss", sorted(OF_BATCHES))
def test_a_loss_of_batches_asks_for_their_size(counted, source, engine, loss):
    for run in (
        lambda: score(counted, loss=loss),
        lambda: evaluate(source, loss={"sigmoid": 1.0, loss: 1.0}),
        lambda: evaluate(source, loss=loss, batches=Batches(by="subset")),
    ):
        with pytest.raises(UsageError, match=r"is a loss of batches: give the number"):
            run()
    assert engine.graphs == []
