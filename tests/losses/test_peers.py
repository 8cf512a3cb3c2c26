"""The peers' own code as the other route: torchtune, the DPO authors, TRL; and TRL's evaluation."""

from __future__ import annotations

import json
import math

import polars as pl
import pytest

from dpo_pipeline import evaluate, score
from dpo_pipeline.cli.program import main
from option_tools import grouped
from pair_tools import DATA

COLUMN_OF = {
    "sigmoid": "loss",
    "chosen_reward": "chosen_reward",
    "rejected_reward": "rejected_reward",
}
GOLDENS = [
    pytest.param(entry["column"], entry["loss"], entry["params"]["beta"], id="-".join(
        [entry["source"], entry["loss"], str(entry["params"]["beta"])]
    ))
    for entry in json.loads((DATA / "peer_losses.json").read_text())
    if entry["loss"] in COLUMN_OF and set(entry["params"]) == {"beta"}
]  # fmt: skip


def test_goldens_cover_three_peers_at_two_betas():
    assert len(GOLDENS) == 10


@pytest.mark.parametrize(("golden", "loss", "beta"), GOLDENS)
def test_rows_equal_the_peers_to_1e_12(golden, loss, beta):
    peers = pl.read_parquet(DATA / "peer_losses.parquet")
    scored = score(peers, beta=beta).collect()
    assert scored.height == 256
    for ours, theirs in zip(scored[COLUMN_OF[loss]], peers[golden], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-12, abs=1e-12)


ROWS = 256
OUR_NAME = {
    "chosen_reward": "sigmoid",
    "rejected_reward": "sigmoid",
    "cpo_sigmoid": "cpo",
    "orpo_odds_ratio_term": "orpo_odds_ratio",
}
OUR_ARGUMENTS = {"label_smoothing", "baseline", "tau", "gamma", "alpha", "f_divergence"}
SAID_BY_THE_LOSS = {
    "reference_free": {"cpo_sigmoid", "cpo_hinge"},
    "length_normalized": {"simpo", "alphapo", "orpo_odds_ratio_term"},
    "whole_file_is_one_batch": {"aot", "aot_unpaired"},
    "order": {"aot", "aot_unpaired"},
    "note": {"orpo_odds_ratio_term"},
}
"""What the document says of a loss that has it in its name here: no argument of ours."""

SORTED_BY = {
    "aot": ("policy_chosen_logps", "policy_rejected_logps"),
    "aot_unpaired": ("policy_chosen_logps", "ref_chosen_logps"),
}
"""TRL gives these losses in ascending order of this difference; ours stand at their pairs."""

ALL_PEERS = json.loads((DATA / "peer_losses.json").read_text())


def our_call(entry):
    """Return the arguments of `score` for what a peer computed; each parameter must be known."""
    loss, params = entry["loss"], dict(entry["params"])
    call = {"beta": params.pop("beta"), "loss": OUR_NAME.get(loss, loss), "loss_args": {}}
    if loss == "ipo":
        call["loss_args"]["per_token"] = params.pop("length_normalized")
    if params.get("whole_file_is_one_batch"):
        call["batch_size"] = ROWS
    for name, value in params.items():
        if name in OUR_ARGUMENTS:
            call["loss_args"][name] = value
        else:
            assert loss in SAID_BY_THE_LOSS[name], f"{name} of {loss}"
    return call


def test_every_column_of_the_peers_is_reproduced_below():
    columns = pl.read_parquet_schema(DATA / "peer_losses.parquet")
    listed = [entry["column"] for entry in ALL_PEERS]
    assert len(listed) == 58
    assert sorted(listed) == sorted(name for name in columns if name.startswith("loss_"))


def each_peer():
    """Return what the peers computed; the same at another beta is slow, for beta is a factor."""
    seen = set()
    for e in ALL_PEERS:
        call = (e["source"], e["loss"], str({**e["params"], "beta": None}))
        name = [e["column"], e["source"].split("/")[0], e["loss"], str(e["params"]["beta"])]
        yield pytest.param(e, id="-".join(name), marks=[pytest.mark.slow] if call in seen else [])
        seen.add(call)


@pytest.mark.parametrize("entry", list(each_peer()))
def test_every_loss_of_the_peers_to_1e_9(entry):
    peers = pl.read_parquet(DATA / "peer_losses.parquet")
    wanted = entry["loss"] if entry["loss"].endswith("reward") else "loss"
    ours = score(peers, **grouped(**our_call(entry))).collect()[wanted].to_list()
    if entry["loss"] in SORTED_BY:
        left, right = (peers[name].to_list() for name in SORTED_BY[entry["loss"]])
        ours = [ours[i] for i in sorted(range(ROWS), key=lambda i: left[i] - right[i])]
    # TRL computes this one in float32.
    precision = 1e-5 if entry["loss"] == "orpo_odds_ratio_term" else 1e-9
    assert len(ours) == ROWS
    # No absolute part: it would let small losses be anything.
    assert ours == pytest.approx(peers[entry["column"]].to_list(), rel=precision, abs=0.0)


def test_rewards_of_alphapo_are_those_that_trl_compares():
    # TRL's CPOTrainer logs beta (1 - p^-a) / a; its margin gives its loss again.
    for entry in (each for each in ALL_PEERS if each["loss"] == "alphapo"):
        peers = pl.read_parquet(DATA / "peer_losses.parquet")
        beta, alpha = (entry["params"][name] for name in ("beta", "alpha"))
        ours = score(peers, **grouped(**our_call(entry)), scored=[]).collect()
        for side in ("chosen", "rejected"):
            mean = (peers[f"policy_{side}_logps"] / peers[f"{side}_num_tokens"]).to_list()
            expected = [beta * (1.0 - math.exp(m) ** -alpha) / alpha for m in mean]
            assert ours[f"{side}_reward"].to_list() == pytest.approx(expected, rel=1e-12)
        margins = ours["reward_margin"].to_list()
        losses = [math.log1p(math.exp(entry["params"]["gamma"] - m)) for m in margins]
        assert peers[entry["column"]].to_list() == pytest.approx(losses, rel=1e-9)


TRL = json.loads((DATA / "trl_evaluate_policy_a_test.json").read_text())
PAIRS = str(DATA / "hh_harmless_policy_a_test.parquet")


def test_all_seven_figures_of_trl_through_the_command_line(capsys):
    assert main(["evaluate", PAIRS, "--beta", str(TRL["beta"]), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["summary"]["n_pairs"] == TRL["rows"] == 698
    assert len(TRL["metrics"]) == 7
    found = {f"eval_{name}": value for name, value in document["metrics"].items()}
    assert found == pytest.approx(TRL["metrics"], rel=1e-6)


def test_metrics_carry_trl_names_and_prefix(real_pairs):
    assert set(evaluate(real_pairs).to_metrics("eval_")) == set(TRL["metrics"])
