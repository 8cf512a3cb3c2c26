"""Dialects: what other systems compute under the same names."""

from __future__ import annotations

import math

import pytest

from dpo_pipeline import Objective, UsageError, evaluate, score
from dpo_pipeline.defaults import DIALECT_NAMES
from dpo_pipeline.losses.catalogue import EVERY_LOSS, LOSSES
from dpo_pipeline.losses.dialects import DIALECTS
from dpo_pipeline.losses.objective import CheckedObjective
from objective_tools import DIVERGENT, PER_TOKEN_IF_ASKED, REFERENCE
from option_tools import grouped


def test_names_of_dialects_are_known_without_importing_them():
    assert tuple(DIALECTS) == DIALECT_NAMES == ("trl", "dpo-paper", "rewardbench", "halos")
    assert all(name == dialect.name for name, dialect in DIALECTS.items())


def arguments_of(name):
    loss = LOSSES[name]
    return {
        *(p.name for p in loss.parameters),
        *(["reference_free"] if name in REFERENCE["optional"] else []),
        *(["per_token"] if name in PER_TOKEN_IF_ASKED else []),
        *(["f_divergence", "f_alpha"] if name in DIVERGENT else []),
    }


@pytest.mark.parametrize("dialect", DIALECT_NAMES)
def test_what_a_dialect_sets_and_refuses_exists(dialect):
    system = DIALECTS[dialect]
    for loss, defaults in system.defaults.items():
        assert set(defaults) <= arguments_of(loss)
        (term,) = CheckedObjective.of(loss, dialect=dialect).to_dict()["terms"]
        (plain,) = CheckedObjective.of(loss).to_dict()["terms"]
        assert {name: term[name] for name in defaults} == defaults
        assert {name: plain[name] for name in defaults} != defaults
    every = set().union(*map(arguments_of, LOSSES))
    for key in system.refused.keys() - OF_ALL_LOSSES.keys():
        loss, dot, argument = key.rpartition(".")
        assert argument in (arguments_of(loss) if dot else {*every, *LOSSES})
        assert not dot or argument not in system.refused
    assert set(system.lacks) < set(EVERY_LOSS)


VALUES = {"reference_free": True, "per_token": True, "f_divergence": "js_divergence"}
OF_ALL_LOSSES = {
    "sum of losses": {"loss": {"sigmoid": 1.0, "ipo": 1.0}},
    "ld_alpha": {"loss_args": {"ld_alpha": 0.5}},
    "humanline": {"loss_args": {"humanline": True}},
}


@pytest.mark.parametrize(
    ("dialect", "lacks"),
    [
        # TRL 1.16: dpo_trainer.py names its losses in the error for an unknown one; cpo_trainer.py
        # and orpo_trainer.py beside it.
        pytest.param(
            "trl",
            {"dpop", "rdpo", "odpo", "soft_labels", "wpo", "kto_pair", "orpo_odds_ratio"},
            id="trl",
        ),
        # The authors' trainers.py: sft (of sums), dpo and ipo.
        pytest.param("dpo-paper", set(LOSSES) - {"sigmoid", "ipo"}, id="dpo-paper"),
        pytest.param("rewardbench", set(), id="rewardbench has no loss of its own"),
        # HALOs' trainers.py: its trainers of pairs, and SFT.
        pytest.param("halos", set(LOSSES) - {"sigmoid", "ipo", "sft"}, id="halos"),
    ],
)
def test_a_loss_that_a_system_lacks_is_refused(dialect, lacks):
    for loss in LOSSES:
        if loss not in lacks:
            CheckedObjective.of(loss, dialect=dialect)
            continue
        for asked in (loss, {"sigmoid": 1.0, loss: 0.5}):
            with pytest.raises(UsageError) as caught:
                CheckedObjective.of(asked, dialect=dialect)
            system = DIALECTS[dialect]
            why = system.refused.get(loss)
            said = f"{system.system} has no {loss}" if why is None else f"{loss}: {why}"
            assert str(caught.value) == f"dialect {dialect}: {said}"


@pytest.mark.parametrize("dialect", DIALECT_NAMES)
@pytest.mark.parametrize("name", OF_ALL_LOSSES)
def test_what_is_of_all_losses_is_refused_too(dialect, name):
    asked = OF_ALL_LOSSES[name]
    CheckedObjective.of(**asked)
    why = DIALECTS[dialect].refused.get(name)
    if why is None:
        assert CheckedObjective.of(**asked, dialect=dialect).dialect == dialect
        return
    with pytest.raises(UsageError) as caught:
        CheckedObjective.of(**asked, dialect=dialect)
    assert str(caught.value) == f"dialect {dialect}: {name}: {why}"


@pytest.mark.parametrize(
    ("loss", "arguments"),
    [
        # TRL 1.16 averages over tokens in ipo and sigmoid_norm alone, and raises for these
        # divergences.
        *((loss, {"per_token": True}) for loss in ("robust", "hinge", "exo_pair", "discopop")),
        *(
            (loss, {"f_divergence": divergence})
            for loss in ("nca_pair", "bco_pair", "sppo_hard")
            for divergence in ("forward_kl", "js_divergence", "alpha_divergence")
        ),
        ("bco_pair", {"baseline": 0.5}),
        ("ipo", {"per_token": False}),
    ],
)
def test_trl_computes_this_for_other_losses_alone(loss, arguments):
    CheckedObjective.of(loss, loss_args=arguments)
    (name,) = arguments
    with pytest.raises(UsageError, match=f"dialect trl: {name} of {loss}: TRL 1.x "):
        CheckedObjective.of(loss, loss_args=arguments, dialect="trl")


@pytest.mark.parametrize(
    ("loss", "arguments"),
    [
        ("sigmoid", {"label_smoothing": 0.0, "per_token": False, "f_divergence": "reverse_kl"}),
        ("sigmoid", {"f_divergence": "js_divergence"}),
        ("hinge", {"per_token": False}),
        ("ipo", {"per_token": True}),
        ("bco_pair", {"baseline": 0.0, "f_divergence": "reverse_kl"}),
    ],
)
def test_what_is_as_in_trl_may_be_said(loss, arguments):
    said = CheckedObjective.of(loss, loss_args=arguments, dialect="trl").to_dict()
    assert said["terms"][0]["loss"] == loss


@pytest.mark.parametrize(
    ("dialect", "loss", "argument"),
    [
        *(
            pytest.param(dialect, loss, key.rpartition(".")[2], id=f"{dialect} {loss} {key}")
            for dialect, system in DIALECTS.items()
            for key in system.refused
            for loss in LOSSES
            if key.rpartition(".")[0] in {"", loss} and key.rpartition(".")[2] in arguments_of(loss)
            if not {loss} & {*system.lacks, *system.refused}
        )
    ],
)
def test_what_a_system_has_not_is_refused(dialect, loss, argument):
    given = {argument: VALUES.get(argument, 0.1)}
    if argument in DIALECTS[dialect].defaults.get(loss, {}):
        given[argument] = not given[argument]
    CheckedObjective.of(loss, loss_args=given)
    refused = DIALECTS[dialect].refused
    why = refused.get(f"{loss}.{argument}", refused.get(argument))
    with pytest.raises(UsageError) as caught:
        CheckedObjective.of(loss, loss_args=given, dialect=dialect)
    assert str(caught.value) == f"dialect {dialect}: {argument} of {loss}: {why}"


def test_trl_has_no_label_smoothing_of_sigmoid(counted):
    call = {"loss_args": {"label_smoothing": 0.1}, "dialect": "trl"}
    for loss in ("sigmoid", "sigmoid_norm", {"hinge": 1.0, "sigmoid": 1.0}):
        with pytest.raises(UsageError, match="dialect trl: label_smoothing of sigmoid.*ignores it"):
            score(counted, **grouped(loss=loss, **call))
    plain = {**call, "dialect": None}
    ours = score(counted, **grouped(loss="robust", **call)).collect()
    assert ours.equals(score(counted, **grouped(loss="robust", **plain)).collect())


@pytest.mark.parametrize(
    ("dialect", "arguments", "expected"),
    [
        # By hand, the fifth pair: log-ratios 5 and -5, 4 and 8 tokens, 1 / (2 * 0.1) = 5.
        pytest.param("trl", {}, (5 / 4 + 5 / 8 - 5) ** 2, id="trl"),
        pytest.param("dpo-paper", {}, 25.0, id="dpo-paper"),
        pytest.param(None, {}, 25.0, id="none"),
        pytest.param("rewardbench", {"per_token": True}, (15 / 8 - 0.5) ** 2, id="rewardbench"),
    ],
)
def test_ipo_by_dialect(counted, dialect, arguments, expected):
    scored = score(counted, loss=Objective("ipo", arguments=arguments, dialect=dialect)).collect()
    assert scored["loss"][4] == pytest.approx(expected, rel=1e-14)


@pytest.mark.repeats(2)  # a loss and a sum have rewards by one function
@pytest.mark.parametrize(
    ("loss", "arguments"),
    [
        pytest.param("sigmoid_norm", {}, id="sigmoid_norm"),
        pytest.param("ipo", {"per_token": True}, id="ipo"),
        pytest.param("sigmoid", {"f_divergence": "forward_kl"}, id="divergence"),
        pytest.param({"sigmoid_norm": 1.0, "sft": 1.0}, {}, id="sum"),
    ],
)
def test_rewards_of_trl_stay_beta_times_the_log_ratio(counted, loss, arguments):
    ours = score(counted, loss=Objective(loss, arguments=arguments)).collect()
    trl = score(counted, loss=Objective(loss, arguments=arguments, dialect="trl")).collect()
    assert trl["loss"].equals(ours["loss"])
    # By hand: 0.1 times the log-ratios of sums.
    chosen, rejected = [0.1, -0.1, 0.1, 0.2, 0.5, -0.2], [0.0, 0.1, 0.1, -0.3, -0.5, 0.8]
    assert trl["chosen_reward"].to_list() == pytest.approx(chosen, rel=1e-14)
    assert trl["rejected_reward"].to_list() == pytest.approx(rejected, rel=1e-14)
    assert not ours["rejected_reward"].equals(trl["rejected_reward"])
    figures = evaluate(counted, loss=Objective(loss, arguments=arguments, dialect="trl")).summary
    assert figures.reward_margin == pytest.approx(0.4 / 6 - 0.0, abs=1e-12)
    assert (figures.n_ties, figures.reward_accuracy) == (1, 0.5)
    assert figures.loss == evaluate(counted, loss=Objective(loss, arguments=arguments)).summary.loss


def test_rewards_of_a_loss_without_reference_are_the_policys_in_trl_too(counted):
    for loss in ("cpo", "simpo"):
        trl = score(counted, loss=Objective(loss, dialect="trl")).collect()
        assert trl.equals(score(counted, loss=loss).collect())


def test_the_authors_code(counted):
    smoothed = score(
        counted, loss=Objective(arguments={"label_smoothing": 0.25}, dialect="dpo-paper")
    ).collect()
    # The fifth pair's margin is 1.
    expected = 0.75 * math.log(1 + math.exp(-1)) + 0.25 * math.log(1 + math.exp(1))
    assert smoothed["loss"][4] == pytest.approx(expected, rel=1e-14)
    for name, value in VALUES.items():
        with pytest.raises(UsageError, match=f"dialect dpo-paper: {name} of sigmoid"):
            score(counted, loss=Objective(arguments={name: value}, dialect="dpo-paper"))


def test_rewardbench_rewards_are_log_ratios_without_beta(counted):
    scored = score(counted, loss=Objective(dialect="rewardbench")).collect()
    assert scored["chosen_reward"].to_list() == [1.0, -1.0, 1.0, 2.0, 5.0, -2.0]
    assert scored["rejected_reward"].to_list() == [0.0, 1.0, 1.0, -3.0, -5.0, 8.0]
    free = {"reference_free": True, "per_token": True}
    averaged = score(counted, loss=Objective(arguments=free, dialect="rewardbench")).collect()
    assert averaged["chosen_reward"].to_list() == [-20 / 2, -31 / 4, -8, -5, -15, -10]


@pytest.mark.parametrize(
    ("dialect", "beta"), [("trl", 0.1), ("dpo-paper", 0.1), ("rewardbench", 1)]
)
def test_beta_is_the_dialects_unless_it_is_given(counted, dialect, beta):
    assert evaluate(counted, loss=Objective(dialect=dialect)).beta == beta
    assert evaluate(counted, 0.3, loss=Objective(dialect=dialect)).beta == 0.3
    assert evaluate(counted, 0.0, loss=Objective(dialect=dialect)).beta == 0.0
    given = score(counted, 0.3, loss=Objective(dialect=dialect)).collect()
    assert given["chosen_reward"][4] == pytest.approx(1.5, rel=1e-14)
