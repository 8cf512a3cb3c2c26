"""Several betas and losses in one reading, against plain Python and against one at a time."""

from __future__ import annotations

import json
import math

import polars as pl
import pytest

from dpo_pipeline import (
    DataWarning,
    Execution,
    InvalidPairsError,
    Objective,
    UsageError,
    evaluate,
    score,
    sweep,
)
from dpo_pipeline.cli.program import main
from dpo_pipeline.losses import LOSSES
from dpo_pipeline.sums.summary import SUMMARY_FIGURES
from option_tools import grouped
from pair_tools import LOGPS, reference_row

BETAS = [0.05, 0.1, 0.5, 3.0]
PICKED = (
    "a beta is picked for its loss on these same pairs, so that the smallest loss is a little too "
    "small"
)


@pytest.fixture
def counted(real_pairs):
    """The real pairs with made-up token counts."""
    row = pl.int_range(pl.len())
    return real_pairs.with_columns(
        chosen_num_tokens=row % 60 + 1, rejected_num_tokens=row * 7 % 90 + 1
    )


def test_losses_of_every_beta_against_plain_python(real_pairs):
    table = sweep(real_pairs, BETAS).table
    assert table["beta"].to_list() == BETAS
    for beta, loss, margin in table.select("beta", "loss", "reward_margin").iter_rows():
        rows = [reference_row(*row, beta) for row in real_pairs.select(LOGPS).iter_rows()]
        assert loss == pytest.approx(math.fsum(r[2] for r in rows) / len(rows), rel=1e-13)
        margins = math.fsum(r[0] - r[1] for r in rows) / len(rows)
        assert margin == pytest.approx(margins, rel=1e-12)


def test_a_sweep_gives_the_bits_of_single_evaluations(counted):
    betas = BETAS[::3]  # each is summed alike
    losses = ["sigmoid", "ipo", "simpo", "sppo_hard", {"sigmoid": 0.8, "sft": 0.2}, "sigmoid_norm"]
    found = sweep(counted, betas, loss=Objective(losses, arguments={"label_smoothing": 0.1}))
    takes = {"sigmoid", "simpo", "sigmoid_norm", "0.8 sigmoid + 0.2 sft"}
    assert len(found.objectives) == len(losses) * len(betas)
    for objective, row in zip(found.objectives, found.table.iter_rows(named=True), strict=True):
        loss = {term.loss.name: term.weight for term in objective.terms}
        arguments = {"label_smoothing": 0.1} if str(objective) in takes else {}
        alone = evaluate(counted, objective.beta, loss=Objective(loss, arguments=arguments)).summary
        shared = {name: row[name] for name in SUMMARY_FIGURES}
        if not objective.needs.reference:  # a sweep has the columns that any of its losses needs
            shared |= dict.fromkeys(("ref_chosen_logps", "ref_rejected_logps"))
        assert shared == alone.to_dict()


def test_a_best_beta_that_is_none_is_said_to_be_none(counted):
    """The loss of the real pairs falls up to beta 0.05 and rises from there."""
    assert sweep(counted, [0.01, 0.05, 0.1]).notes == (PICKED,)
    largest, smallest = sweep(counted, [0.01, 0.05]), sweep(counted, [0.5, 3.0])
    assert largest.notes == (
        (
            "sigmoid: 0.05 is the largest beta tried, so that the loss may be smaller still for a "
            "larger one"
        ),
        PICKED,
    )
    assert "0.5 is the smallest beta tried" in smallest.notes[0]
    assert f"note: {smallest.notes[0]}" in str(smallest).splitlines()
    assert json.loads(smallest.to_json())["notes"] == list(smallest.notes)
    assert (alone := sweep(counted, 0.1)).notes == ()
    assert "of those tried" not in str(alone)
    assert str(alone).splitlines()[0] == "pairs: 698 pairs, 0 invalid"
    moving = sweep(counted, BETAS, loss=["ipo", "sppo_hard", "orpo", {"sigmoid": 1, "ipo": 0.1}])
    assert len(moving.notes) == 4
    assert all("no beta is shown to be the best" in note for note in moving.notes)
    assert sweep(counted, BETAS, loss="sft").notes == ("sft: the loss is the same for all betas",)
    several = sweep(counted, [0.01, 0.05, 0.1], loss=["sigmoid", "hinge"])
    assert several.notes.count(PICKED) == 1


def test_the_smallest_loss_of_several_betas_is_too_small():
    """By hand: of two betas each is better on half of the data, and the better one is picked."""
    pairs = pl.DataFrame(dict(zip(LOGPS, ([-9.0], [-10.0], [-10.0], [-10.0]), strict=True)))
    other = pairs.with_columns(policy_chosen_logps=-11.0)
    losses = {m: math.log1p(math.exp(-m)) for m in (0.1, 1.0, -0.1, -1.0)}
    picked = [sweep(each, [0.1, 1.0]).table["loss"].min() for each in (pairs, other)]
    assert picked == pytest.approx([losses[1.0], losses[-0.1]], rel=1e-12)
    true = [(losses[m] + losses[-m]) / 2 for m in (0.1, 1.0)]
    assert sum(picked) / 2 < min(true)


@pytest.mark.repeats(8)  # the scale does not know the loss
@pytest.mark.filterwarnings("ignore::dpo_pipeline.DataWarning")  # all log-probs are the same
@pytest.mark.parametrize("name", [n for n, loss in LOSSES.items() if not loss.is_of_batches])
def test_the_scale_moves_where_two_betas_disagree_on_rewards_of_zero(name):
    """With all log-probs the same every reward is 0 under any beta, and so must the loss be."""
    pairs = pl.DataFrame({column: [-2.0] * 3 for column in LOGPS}).with_columns(
        chosen_num_tokens=4, rejected_num_tokens=4, offset=0.0, preference_probability=0.7
    )
    losses = (score(pairs, beta, loss=name).select("loss").collect() for beta in (0.1, 0.5))
    one, other = (each["loss"][0] for each in losses)
    assert (one != pytest.approx(other, rel=1e-9)) == LOSSES[name].beta_moves_scale


def test_no_beta_is_the_best_of_wrong_log_probs(counted):
    # The reference of the next pair: whatever its losses are, they are of other texts.
    shifted = counted.with_columns(pl.col(LOGPS[2:]).shift(1, fill_value=-50.0))
    with pytest.warns(DataWarning, match="next row|shifted"):
        found = sweep(shifted, BETAS)
    assert found.best == {}
    first, *others = str(found).splitlines()
    assert first.startswith("no beta is the best one: ")
    assert not any(line.startswith("warning") for line in others)
    assert json.loads(found.to_json())["best_beta"] == {}


def test_one_reading_for_any_number(counted, tmp_path, engine):
    counted.write_parquet(tmp_path / "pairs.parquet")
    sweep(tmp_path / "pairs.parquet", [0.01 * i for i in range(1, 8)], loss=["sigmoid", "ipo"])
    assert engine.data_scans == 1


def test_shards_merge_to_the_same_bits(counted, tmp_path, monkeypatch):
    counted.write_parquet(tmp_path / "pairs.parquet", row_group_size=50)
    whole = sweep(tmp_path / "pairs.parquet", BETAS, loss=["sigmoid", "ipo"]).table
    monkeypatch.setattr("dpo_pipeline.evaluation.measuring.SHARD_ROWS", 101)
    told = []
    merged = sweep(
        tmp_path / "pairs.parquet",
        BETAS,
        loss=["sigmoid", "ipo"],
        execution=Execution(progress=told.append),
    )
    assert merged.table.equals(whole)
    assert [each.rows for each in told if each.phase == "evaluating"][-2:] == [606, 698]


def test_the_best_beta_by_hand(pairs):
    # Margins at beta 1: 1, -2, 0, 5, 10, -10. The mean loss is smallest near beta 0.15:
    # 0.6931 at 0, and the two wrong pairs outweigh the three right ones from there on.
    losses = {
        beta: sum(math.log1p(math.exp(-beta * d)) for d in (1, -2, 0, 5, 10, -10)) / 6
        for beta in (0.0, 0.05, 0.1, 0.5)
    }
    assert min(losses, key=losses.get) == 0.05
    found = sweep(pairs, list(losses))
    assert found.table["loss"].to_list() == pytest.approx(list(losses.values()), rel=1e-12)
    assert found.best == {"sigmoid": 0.05}
    assert str(found).startswith("smallest loss of those tried: sigmoid: beta 0.05\n")


def test_a_pair_that_one_loss_cannot_sum_is_left_out_of_all(pairs):
    far = pairs.with_columns(policy_chosen_logps=pl.col(LOGPS[0]) - pl.Series([900, *[0] * 5]))
    losses = ["sigmoid", "discopop"]
    arguments = {"f_divergence": "forward_kl"}
    with pytest.raises(InvalidPairsError) as caught:
        sweep(far, loss=Objective(losses, arguments=arguments))
    assert caught.value.report.n_invalid == 1
    names = {rule.name for rule in caught.value.report.broken}
    assert "loss of discopop at beta 0.1.in_range" in names
    found = sweep(far, loss=Objective(losses, arguments=arguments), on_invalid="exclude")
    assert found.table["n_valid"].to_list() == [5, 5]
    assert found.invalid.n_invalid == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"beta": []}, "a beta and a loss", id="no beta"),
        pytest.param({"loss": []}, "a beta and a loss", id="no loss"),
        pytest.param({"beta": [0.1, -1.0]}, "beta must be finite", id="negative beta"),
        pytest.param({"loss": ["sigmoid", "aot"]}, "cannot be swept", id="a loss of batches"),
        pytest.param({"loss": ["sigmod"]}, "did you mean 'sigmoid'", id="a near miss"),
        pytest.param(
            {"loss": ["hinge", "ipo"], "loss_args": {"tau": 1.0}}, "none of these losses", id="arg"
        ),
        pytest.param({"beta": [0.1, 0.1]}, "twice", id="the same twice"),
    ],
)
def test_what_cannot_be_swept(pairs, engine, arguments, message):
    with pytest.raises(UsageError, match=message):
        sweep(pairs, **grouped(**{"beta": [0.1], **arguments}))
    assert not engine.graphs


def test_columns_follow_from_all_losses(pairs):
    bare = pairs.drop("ref_chosen_logps", "ref_rejected_logps")
    assert sweep(bare, [0.1, 0.2], loss=["cpo", "cpo_hinge"]).table.height == 4
    with pytest.raises(Exception, match="ref_chosen_logps: missing"):
        sweep(bare, [0.1, 0.2], loss=["cpo", "sigmoid"])


def test_the_command(tmp_path, capsys, counted):
    path = tmp_path / "pairs.parquet"
    counted.write_parquet(path)
    call = ["sweep", str(path), "--beta", "0.05", "--beta", "0.1", "--loss", "ipo", "--json"]
    assert main([*call, "--loss", "sigmoid", "--loss-arg", "per_token=true"]) == 0
    document = json.loads(capsys.readouterr().out)
    arguments = {"per_token": True}
    for row in document["rows"]:
        (term,) = row["objective"]["terms"]
        beta = row["objective"]["beta"]
        alone = evaluate(counted, beta, loss=Objective(term["loss"], arguments=arguments)).summary
        assert term["per_token"] is True
        assert row["summary"] == alone.to_dict()
    assert [(r["objective"]["beta"]) for r in document["rows"]] == [0.05, 0.1, 0.05, 0.1]
    assert set(document["best_beta"]) == {"ipo", "sigmoid"}
    assert main(["sweep", str(path), "--loss", "sigmod"]) == 2
    assert "did you mean 'sigmoid'" in capsys.readouterr().err
