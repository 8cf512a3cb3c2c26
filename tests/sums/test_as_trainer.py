"""TRL's averages over steps, against the same done row by row in plain Python."""

from __future__ import annotations

from itertools import cycle, islice

import polars as pl
import pytest
from hypothesis import given, settings, strategies as st

import dpo_pipeline
from dpo_pipeline import Batches, UsageError
from dpo_pipeline.cli.program import main
from pair_tools import EXAMPLES

PAIRS = pl.read_parquet(EXAMPLES / "pairs.parquet")
BETA = 0.1


def row_figures(pairs):
    """Return each figure of each row, by TRL's name."""
    scored = dpo_pipeline.score(pairs, BETA).collect()
    chosen, rejected = scored["chosen_reward"], scored["rejected_reward"]
    return {
        "loss": scored["loss"].to_list(),
        "rewards/chosen": chosen.to_list(),
        "rewards/rejected": rejected.to_list(),
        "rewards/accuracies": [float(a > b) for a, b in zip(chosen, rejected, strict=True)],
        "rewards/margins": scored["reward_margin"].to_list(),
        "logps/chosen": scored["policy_chosen_logps"].to_list(),
        "logps/rejected": scored["policy_rejected_logps"].to_list(),
    }


def batches_of(n, size, processes):
    """Return the rows of each batch, as accelerate deals them: rank by rank, step by step."""
    rows = list(range(n))
    rest = n % (size * processes)
    if rest and processes > 1:
        first = cycle(rows[: size * processes])
        rows += list(islice(first, size * processes - rest))
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def expected(pairs, size, processes):
    n, found = pairs.height, {}
    dealt = batches_of(n, size, processes)
    steps = [dealt[i : i + processes] for i in range(0, len(dealt), processes)]
    for name, values in row_figures(pairs).items():
        if name == "loss":
            every = []
            for step in steps:
                repeated = [
                    sum(values[row] for row in batch) / len(batch)
                    for batch in step
                    for _ in range(size)
                ]
                every += repeated[: n - len(every)]
            found[name] = sum(every) / len(every)
        else:
            of_steps = [
                sum(values[row] for batch in step for row in batch) / sum(map(len, step))
                for step in steps
            ]
            found[name] = sum(of_steps) / len(of_steps)
    return found


@settings(max_examples=8)
@given(n=st.integers(1, 60), size=st.integers(1, 20), processes=st.integers(1, 4))
def test_averages_are_those_of_steps(n, size, processes):
    pairs = PAIRS[:n]
    asked = Batches(size, as_trainer="trl", processes=processes)
    found = dpo_pipeline.evaluate(pairs, BETA, batches=asked)
    assert found.as_trainer.metrics == pytest.approx(expected(pairs, size, processes), rel=1e-12)
    assert found.as_trainer.n_steps == -(-n // (size * processes))
    assert found.batches is None


def test_the_loss_of_one_process_is_the_mean_over_pairs():
    found = dpo_pipeline.evaluate(PAIRS[:50], BETA, batches=Batches(8, as_trainer="trl"))
    assert found.as_trainer.metrics["loss"] == pytest.approx(found.summary.loss, rel=1e-12)
    margin = found.as_trainer.metrics["rewards/margins"]
    assert margin != pytest.approx(found.summary.reward_margin, rel=1e-6)  # 2 pairs weigh as 8


def test_files_in_shards_give_the_same(tmp_path):
    rows = pl.concat([PAIRS] * 5).with_columns(pair_id=pl.int_range(1000))
    rows.write_parquet(tmp_path / "pairs.parquet", row_group_size=64)
    asked = Batches(3, as_trainer="trl", processes=4)
    found = dpo_pipeline.evaluate(tmp_path / "pairs.parquet", BETA, batches=asked)
    assert found.as_trainer.metrics == pytest.approx(expected(rows, 3, 4), rel=1e-12)


def test_the_command_prints_both(tmp_path, capsys):
    PAIRS.write_parquet(tmp_path / "pairs.parquet")
    words = ["evaluate", str(tmp_path / "pairs.parquet"), "--as-trainer", "trl"]
    assert main([*words, "--batch-size", "16", "--processes", "2"]) == 0
    out = capsys.readouterr().out
    assert (
        "as TRL averages 7 steps of 16 pairs on 2 processes, if its rows are in this order" in out
    )
    assert main(words) == 0
    assert "25 steps of 8 pairs on 1 process," in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"as_trainer": "verl"}, "as_trainer must be one of None, trl"),
        ({"processes": 2}, "processes are those of a trainer"),
        ({"as_trainer": "trl", "processes": 0}, "processes must be a whole number"),
        ({"as_trainer": "trl", "file": "means.parquet"}, "no column and no file"),
    ],
)
def test_options_that_do_not_fit_are_refused(given, words):
    with pytest.raises(UsageError, match=words):
        Batches(8, **given)


@pytest.mark.filterwarnings("ignore::dpo_pipeline.DataWarning")
def test_what_has_no_such_averages_is_refused():
    asked = Batches(8, as_trainer="trl")
    broken = PAIRS.with_columns(
        policy_chosen_logps=pl.when(pl.int_range(pl.len()) > 0).then("policy_chosen_logps")
    )
    with pytest.raises(UsageError, match="1 pairs are invalid, and TRL has all"):
        dpo_pipeline.evaluate(broken, BETA, batches=asked, on_invalid="exclude")
    with pytest.raises(UsageError, match="as_trainer is of evaluate"):
        dpo_pipeline.sweep(PAIRS, BETA, batches=asked)
    with pytest.raises(UsageError, match="as_trainer is of losses of pairs"):
        dpo_pipeline.evaluate(PAIRS, BETA, loss="aot", batches=asked)
