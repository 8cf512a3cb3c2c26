"""The peers' own code as the other route: torchtune, the DPO authors, TRL; and TRL's evaluation."""

from __future__ import annotations

import json

import polars as pl
import pytest

from conftest import DATA
from dpo_pipeline import evaluate, score
from dpo_pipeline.cli import main

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
