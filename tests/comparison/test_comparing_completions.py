"""Two policies on the same completions: differences by the definitions, in any order of rows."""

from __future__ import annotations

import json
import math

import numpy as np
import polars as pl
import pytest

from command_tools import run
from completion_tools import columns, made_up, obuchowski
from dpo_pipeline import (
    DataWarning,
    GateError,
    InvalidPairsError,
    Objective,
    Outputs,
    UsageError,
    compare,
    evaluate,
    gate,
)

LOSS = "apo_zero_unpaired"
N_PROMPTS = 30


@pytest.fixture
def sides():
    a = made_up(N_PROMPTS, 21)
    rng = np.random.default_rng(22)
    moved = np.round(2 * rng.normal(size=a.height)) / 4 + np.where(a["label"], 1.0, 0.0)
    return a, a.with_columns(policy_logps=pl.col("policy_logps") + pl.Series(moved))


def clustered(sums, counts):
    """The mean over all observations and its standard error by cluster."""
    mean, n = sums.sum() / counts.sum(), np.count_nonzero(counts)
    return mean, math.sqrt(((sums - mean * counts) ** 2).sum() * n / (n - 1)) / counts.sum()


def by_hand(a, b):
    """Every difference, B minus A, and its standard error."""
    (reward_a, labels, prompts), reward_b = columns(a), columns(b)[0]
    sign = np.where(labels, -0.1, 0.1)
    losses = [1.0 / (1.0 + np.exp(-sign * each)) for each in (reward_a, reward_b)]

    def summed(values, which):
        return np.bincount(prompts[which], values[which], N_PROMPTS)

    everyone = np.ones(len(labels), dtype=bool)
    gains, ones = 0.1 * (reward_b - reward_a), np.ones(len(labels))
    found = {
        "loss": clustered(summed(losses[1] - losses[0], everyone), summed(ones, everyone)),
        "chosen_reward": clustered(summed(gains, labels), summed(ones, labels)),
        "rejected_reward": clustered(summed(gains, ~labels), summed(ones, ~labels)),
    }
    m, n = labels.sum(), (~labels).sum()
    i10, i01 = (len(set(prompts[which])) for which in (labels, ~labels))

    def error(x, y):
        variance = (x @ x) * i10 / (i10 - 1) / m**2 + (y @ y) * i01 / (i01 - 1) / n**2
        return math.sqrt(variance + 2 * (x @ y) * N_PROMPTS / (N_PROMPTS - 1) / (m * n))

    up, down = summed(ones, labels), summed(ones, ~labels)
    means = [found[name][0] for name in ("chosen_reward", "rejected_reward")]
    x, y = summed(gains, labels) - means[0] * up, means[1] * down - summed(gains, ~labels)
    found["reward_margin"] = means[0] - means[1], error(x, y)
    areas = [obuchowski(each, labels, prompts) for each in (reward_a, reward_b)]
    gap = [areas[1][i] - areas[0][i] for i in range(4)]
    found["auc"] = gap[0], error(gap[2], gap[3])
    return found


def test_differences_and_errors_are_those_of_the_definitions(sides):
    a, b = sides
    made = compare(a, b, loss=LOSS)
    expected = by_hand(a, b)
    assert set(made.differences) == set(expected)
    for name, (value, error) in expected.items():
        found = made.differences[name]
        assert found.estimate.value == pytest.approx(value, rel=1e-9), name
        # A mean's error is unbiased in small samples too, and so is a little larger.
        near = 1e-9 if name in ("auc", "reward_margin") else 0.03
        assert found.estimate.standard_error == pytest.approx(error, rel=near), name
        assert found.b - found.a == pytest.approx(value, rel=1e-9), name
    for side, table in ((made.a, a), (made.b, b)):
        alone = evaluate(table, loss=LOSS)
        assert side.summary == alone.summary
    assert made.differences["auc"].a == pytest.approx(evaluate(a, loss=LOSS).auc.value)
    assert (made.better, made.is_by_prompt, made.n_clusters) == ("b", True, N_PROMPTS)
    assert "B tells desirable completions from undesirable ones better" in made.verdict
    assert compare(b, a, loss=LOSS).better == "a"


def test_rows_in_any_order_and_lent_columns_change_no_bit(sides, tmp_path):
    a, b = sides
    expected = compare(a, b, loss=LOSS).to_dict()
    shuffled = a.sample(fraction=1, shuffle=True, seed=3)
    less = b.select("completion_id", "policy_logps")
    shuffled.write_parquet(tmp_path / "a.parquet", row_group_size=7)
    for one, other in ((shuffled, b), (a, less), (tmp_path / "a.parquet", less)):
        found = compare(one, other, loss=LOSS).to_dict()
        assert found["differences"] == expected["differences"]
    reference = a.select("completion_id", "ref_logps")
    bare = (a.drop("ref_logps"), b.drop("ref_logps"))
    assert compare(*bare, reference=reference, loss=LOSS).to_dict() == expected


def test_broken_rules_are_named(sides):
    bare = (each.drop("ref_logps") for each in sides)
    is_bad = pl.int_range(pl.len()).is_in([3, 7])
    bad = pl.when(~is_bad).then("ref_logps").alias("ref_logps")
    reference = sides[0].select("completion_id", bad)
    with pytest.warns(DataWarning, match="count in no figure"):
        result = compare(*bare, reference=reference, loss=LOSS, on_invalid="exclude")
    said = "in no figure: 2 (ref_logps.not_null 2)"
    assert sum(text.endswith(said) for text in result.findings) == 2  # A and B with the reference
    assert result.n_valid == result.n_common - 2


def test_completions_without_prompts_are_each_a_sample(sides):
    a, b = (each.drop("prompt_id") for each in sides)
    made = compare(a, b, loss=LOSS)
    assert (made.is_by_prompt, made.n_clusters) == (False, a.height)
    rewards, labels = columns(sides[0])[:2]
    area, error, *_ = obuchowski(rewards, labels, np.arange(len(labels)))
    assert made.differences["auc"].a == pytest.approx(area)
    assert error > 0.0


def test_one_policy_twice_and_other_labels_decide_nothing(sides):
    a, b = sides
    with pytest.warns(DataWarning, match="one policy"):
        same = compare(a, a, loss=Objective("kto", arguments={"kl": 0.25}))
    assert (same.better, same.differences["auc"].estimate.value) == (None, 0.0)
    assert "they are one policy" in same.findings[0]
    for swapped in (b.with_columns(~pl.col("label")), b.with_columns(pl.col("ref_logps") - 3.0)):
        with pytest.warns(DataWarning):
            made = compare(a, swapped, loss=LOSS)
        assert made.verdict.startswith("no verdict: ")
        assert (made.better, all(d.p_value is None for d in made.differences.values())) == (
            None,
            True,
        )
        assert "no verdict" in str(made)
        assert made.to_frame().columns[-1] == "p_value"


def test_a_completion_that_is_invalid_on_one_side_is_left_out_of_both(sides):
    a, b = sides
    odd = b.with_columns(
        policy_logps=pl.when(pl.col("completion_id") == 4).then(math.nan).otherwise("policy_logps")
    )
    with pytest.raises(InvalidPairsError, match="policy_logps"):
        compare(a, odd, loss=LOSS)
    with pytest.warns(DataWarning, match=r"^B: .* 1 \(policy_logps.not_nan 1\)$"):
        made = compare(a, odd, loss=LOSS, on_invalid="exclude")
    without = [each.filter(pl.col("completion_id") != 4) for each in (a, b)]
    assert made.b.n_invalid == 1
    assert made.to_dict()["differences"] == compare(*without, loss=LOSS).to_dict()["differences"]


def test_the_command_compares_and_gates(sides, tmp_path, capsys):
    paths = [tmp_path / name for name in ("a.parquet", "b.parquet")]
    for side, path in zip(sides, paths, strict=True):
        side.write_parquet(path)
    code, out, err = run(capsys, "compare", *paths, "--loss", LOSS)
    assert not err
    assert (code, "auc" in out, "intervals and p from" in out) == (0, True, True)
    document = json.loads(run(capsys, "compare", *paths, "--loss", LOSS, "--json")[1])
    assert document["better"] == "b"
    assert run(capsys, "compare", *paths, "--loss", LOSS, "--fail-under", "auc=0.9")[0] != 0
    made = compare(*paths, loss=LOSS)
    gate(made, over={"loss": 0.5})
    with pytest.raises(GateError, match="auc"):
        gate(made, under={"auc": 0.9})


def test_the_report_has_the_verdict_and_the_differences(sides, tmp_path):
    made = compare(*sides, loss=LOSS, outputs=Outputs(report=tmp_path / "page.html"))
    page = (tmp_path / "page.html").read_text()
    for text in (made.verdict[2:60], "B minus A", "rejected_reward"):
        assert text in page


def test_what_has_no_part_in_it_is_refused(sides):
    for more, words in (
        ({"loss": "kto"}, "give the term itself"),
        ({"loss": "nca"}, "compare pairs of them"),
        ({"loss": LOSS, "by": "label"}, "compare the rows of each"),
        ({"loss": LOSS, "outputs": Outputs(show=["label"])}, "with columns to show"),
    ):
        with pytest.raises(UsageError, match=words):
            compare(*sides, **more)
