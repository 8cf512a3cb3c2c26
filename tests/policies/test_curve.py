"""Learning curves: figures by plain Polars, tests by all flips in plain Python, what is said."""

from __future__ import annotations

import json
from itertools import combinations, product

import numpy as np
import polars as pl
import pytest

from command_tools import run
from dpo_pipeline import compare
from dpo_pipeline.policies.curve import curve_of
from dpo_pipeline.policies.finding import Steps, steps_of
from dpo_pipeline.statistics import trends
from pair_tools import LOGPS, ROOT

STEPS = pl.read_parquet(ROOT / "examples" / "steps.parquet")
FIGURES = (
    *("accuracy", "loss", "policy_chosen_logps", "policy_rejected_logps"),
    *("chosen_down", "log_ratio_size"),
)


@pytest.fixture(scope="module")
def board():
    return compare(STEPS)


def figures_by_hand(rows):
    c, r = (pl.col(LOGPS[i]).cast(pl.Float64) - pl.col(LOGPS[i + 2]) for i in (0, 1))
    margin = 0.1 * (c - r)
    return rows.select(
        accuracy=pl.when(margin == 0).then(0.5).otherwise((margin > 0).cast(pl.Float64)),
        loss=(1 + (-margin).exp()).log(),
        policy_chosen_logps=pl.col(LOGPS[0]).cast(pl.Float64),
        policy_rejected_logps=pl.col(LOGPS[1]).cast(pl.Float64),
        chosen_down=(c < 0).cast(pl.Float64),
        log_ratio_size=(c.abs() + r.abs()) / 2,
    )


def test_the_figures_of_a_step_are_those_of_its_pairs(board):
    table = board.curve.table
    assert table["step"].to_list() == [16, 32, 64, 96, 128, 160]
    for row in table.iter_rows(named=True):
        own = STEPS.filter(pl.col("step") == row["step"])
        expected = figures_by_hand(own).mean().row(0, named=True)
        assert {name: row[name] for name in FIGURES} == pytest.approx(expected, rel=1e-6)
        for name in FIGURES:
            assert row[f"{name}_low"] < row[name] < row[f"{name}_high"]


def signs_of(m):
    return np.array(list(product((1, -1), repeat=m)), dtype=float)


def test_bands_hold_at_all_steps_together():
    """Of all flips of eleven clusters: the largest studentised figure that 5% of them exceed."""
    rng = np.random.default_rng(4)
    counts = np.full(11, 3.0)
    loss = rng.normal(2.0, 1.0, (11, 4)) * 3
    found = trends({"loss": loss}, counts, shares=(), tested=("loss",)).bands["loss"]
    off = loss - counts[:, None] * loss.sum(axis=0) / 33
    size = np.sqrt((off**2).sum(axis=0))
    limit = np.quantile(np.abs(signs_of(11) @ off / size).max(axis=1), 0.95)
    for i, band in enumerate(found):
        half = limit * size[i] * np.sqrt(11 / 10) / 33
        assert band.value == pytest.approx(loss[:, i].sum() / 33, rel=1e-12)
        assert band.high - band.value == pytest.approx(half, rel=0.03)
        assert band.value - band.low == pytest.approx(half, rel=0.03)


def test_all_tests_of_a_curve_are_one_family():
    """Against all flips by hand: accuracy and chosen log-probs are stepped down together."""
    rng = np.random.default_rng(5)
    m, steps = 10, 4
    accuracy = rng.integers(0, 4, (m, steps)).astype(float)
    accuracy[:, 3] = np.minimum(accuracy[:, 3] + 2, 4)
    chosen = rng.normal(0.0, 3.0, (m, steps)) - np.array([0.0, 1.0, 5.0, 4.0]) - 300.0
    found = trends(
        {"accuracy": accuracy, "chosen": chosen},
        np.full(m, 4.0),
        shares=("accuracy",),
        tested=("accuracy", "chosen"),
    )
    gaps = {
        (name, i, j): table[:, j] - table[:, i]
        for name, table in (("accuracy", accuracy), ("chosen", chosen))
        for i, j in combinations(range(steps), 2)
    }
    scaled = {key: gap / np.sqrt((gap**2).sum()) for key, gap in gaps.items()}
    chance = {key: np.abs(signs_of(m) @ gap) for key, gap in scaled.items()}
    left, least = sorted(scaled, key=lambda key: -abs(scaled[key].sum())), 0.0
    for i, key in enumerate(left):
        largest = np.max([chance[other] for other in left[i:]], axis=0)
        least = max(least, (largest >= abs(scaled[key].sum()) - 1e-9).mean())
        name, earlier, later = key
        (test,) = (t for t in found.tests[name] if (t.first, t.second) == (later, earlier))
        assert test.p_value == pytest.approx(least, abs=0.022)
        assert test.difference == pytest.approx(gaps[key].sum() / (4 * m), rel=1e-9)
        assert test.low < test.difference < test.high


def clusters(accuracy, chosen, n=60):
    """Sums of clusters of one pair: shares right, and mean log-probs, by step."""
    rng = np.random.default_rng(2)
    columns = {"n_valid": np.ones(n, dtype=np.int64)}
    for i, (share, mean) in enumerate(zip(accuracy, chosen, strict=True)):
        columns[f"accuracy {i}"] = 2 * (np.arange(n) < share * n).astype(np.int64)
        columns[f"policy_chosen_logps {i}"] = (rng.normal(mean, 0.5, n) * 2**40).astype(np.int64)
    return pl.DataFrame(columns)


@pytest.mark.parametrize(
    ("accuracy", "chosen", "fall", "rise"),
    [
        # Falls at the third step, though it is lower still later; rises until the fourth.
        ((0.2, 0.2, 0.6, 0.9, 0.9), (0, 0, -3, -6, -9), (2000, 3000), (3000, 4000)),
        # A dip and a new rise; the likelihood rises alone.
        ((0.9, 0.2, 0.2, 0.9, 0.9), (0, 1, 2, 3, 4), None, (3000, 4000)),
        # Nothing happens.
        ((0.5, 0.5, 0.5, 0.5, 0.5), (0, 0, 0, 0, 0), None, None),
        # Down at once, and down in accuracy too.
        ((0.9, 0.2, 0.2, 0.2, 0.2), (0, -3, -3, -3, -3), (1000, 2000), None),
    ],
    ids=["fall and rise", "dip", "nothing", "at once"],
)
def test_the_first_fall_and_the_last_rise(accuracy, chosen, fall, rise):
    steps = Steps(places=tuple(range(5)), numbers=(1000, 2000, 3000, 4000, 5000))
    found = curve_of(clusters(accuracy, chosen), steps, tuple("abcde"))
    for change, expected in ((found.chosen_falls, fall), (found.accuracy_rises, rise)):
        told = None if change is None else (change.from_step, change.to_step)
        assert told == expected
    said = " ".join(found.sentences())
    assert ("at no step shown to be less likely" in said) == (fall is None)
    assert ("accuracy is at no step" in said) == (rise is None)


def test_a_real_run(board):
    """A tiny DPO run: chosen completions get less likely while accuracy has stopped to rise."""
    curve = board.curve
    fall, rise = curve.chosen_falls, curve.accuracy_rises
    assert (fall.from_step, fall.to_step) == (32, 64)
    assert fall.low < fall.difference < fall.high < 0.0
    assert (rise.from_step, rise.to_step) == (32, 64)
    assert rise.low < rise.difference < rise.high
    document = board.to_dict()["curve"]
    assert document["chosen_first_falls"]["to_step"] == 64
    assert document["accuracy_last_rises"]["p_adjusted"] == rise.p_adjusted < 0.05
    assert [row["step"] for row in document["steps"]] == [16, 32, 64, 96, 128, 160]
    for text in (str(board), board.to_markdown()):
        words = " ".join(text.split())
        assert "first shown to be less likely at step 64" in words
        assert "accuracy is last shown to rise from step 32 to step 64" in words
        assert "chosen down" in words
        assert text.isascii(), "numbers below 0 have the same minus everywhere"


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (("checkpoint-900", "sft", "checkpoint-1000"), ((900, 1000), (0, 2), ("sft",))),
        (("step=20", "step=3"), ((3, 20), (1, 0), ())),
        (("run7-1", "run7-2", "run7-3"), ((1, 2, 3), (0, 1, 2), ())),
        (("1000", "500", "1500"), ((500, 1000, 1500), (1, 0, 2), ())),
        (("llama-2", "llama-3"), None),  # may be names
        (("policy 1", "policy 2", "policy 3"), None),  # what dataframes are called
        (("a-1", "a-2", "a-3", "b-1", "b-2", "b-3"), None),  # two runs
        (("sft", "dpo", "ipo"), None),
    ],
)
def test_which_labels_are_steps(labels, expected):
    found = steps_of(labels)
    assert (None if found is None else (found.numbers, found.places, found.left_out)) == expected


def test_policies_that_are_no_steps_are_left_out_of_the_curve(capsys, tmp_path):
    for step in (32, 96, 160):
        rows = STEPS.filter(pl.col("step") == step).drop("step")
        (tmp_path / f"step={step}").mkdir()
        rows.write_parquet(tmp_path / f"step={step}" / "pairs.parquet")
    other = rows.with_columns(pl.col(LOGPS[:2]) - 0.01)
    other.write_parquet(tmp_path / "other.parquet")
    code, out, _ = run(capsys, "compare", tmp_path, "--json")
    document = json.loads(out)
    assert code == 0
    assert document["curve"]["left_out"] == ["other"]
    assert [row["step"] for row in document["curve"]["steps"]] == [32, 96, 160]
    assert {row["policy"] for row in document["policies"]} >= {"step=32", "other"}


def test_a_loss_without_a_reference_has_no_displacement():
    rows = STEPS.drop(LOGPS[2:])
    table = compare(rows, loss="cpo").curve.table
    for name in ("chosen_down", "log_ratio_size"):
        assert table[name].null_count() == table.height
    assert table["policy_chosen_logps"].null_count() == 0


@pytest.mark.slow  # a simulation: 2,000 runs of a training that changes nothing
@pytest.mark.parametrize(("n_steps", "per_prompt"), [(3, 1), (10, 3)])
def test_errors_of_a_curve(n_steps, per_prompt):
    rng = np.random.default_rng([n_steps, per_prompt])
    runs, alarms, inside = 1_000, 0, 0
    for _ in range(runs):
        skill = rng.normal(0.6, 1.0, (300, 1)) + rng.normal(0.0, 0.4, (300, n_steps))
        right = rng.binomial(per_prompt, 1 / (1 + np.exp(-skill))).astype(float)
        length = rng.gamma(4.0, 20.0, (300, 1))
        chosen = per_prompt * -length + rng.normal(0.0, 5.0, (300, n_steps))
        found = trends(
            {"accuracy": right, "chosen": chosen},
            np.full(300, float(per_prompt)),
            shares=("accuracy",),
            tested=("accuracy", "chosen"),
            flips=499,
        )
        alarms += min(t.p_value for tests in found.tests.values() for t in tests) < 0.05
        inside += all(band.low <= -80.0 <= band.high for band in found.bands["chosen"])
    error = 2.0 * (0.05 * 0.95 / runs) ** 0.5  # of a simulated share
    assert 0.03 - error <= alarms / runs <= 0.06 + error
    assert inside / runs >= 0.94 - error
