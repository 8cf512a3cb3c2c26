"""Losses of completions through `score`: against mpmath, by hand, and as losses of pairs."""

from __future__ import annotations

import math
from itertools import pairwise

import mpmath
import polars as pl
import pytest

from dpo_pipeline import Batches, ColumnError, Objective, UsageError, score
from dpo_pipeline.defaults import COMPLETION_LOSS_NAMES
from dpo_pipeline.losses.catalogue import COMPLETION_LOSSES, LOSSES

BETA = 0.5
REWARDS = {  # log-ratios of the completions of a prompt; ranks are the places in the list
    "two": [3.0, -2.0],
    "far": [-700.0, 800.0],
    "near": [2.0**-30, 0.0],
    "three": [-1.0, 4.0, 0.25],
    "six": [0.5, 0.5, -30.0, 12.0, -1.75, 3.0],
    "one": [1.5],
    "spread": [-2000.0, 0.0, 2000.0, 1999.0],
}


def completions(rewards=REWARDS, **more):
    rows = [
        {
            "prompt_id": prompt,
            "completion_id": f"{prompt}{i}",
            "policy_logps": min(h, 0.0) - 64.0,
            "ref_logps": -max(h, 0.0) - 64.0,
            "rank": i + 1,
        }
        for prompt, several in rewards.items()
        for i, h in enumerate(several)
    ]
    return pl.DataFrame(rows).with_columns(**more)


def sp(x):
    return mpmath.log1p(mpmath.exp(-x))


def plackett_luce(rewards, _):
    """Minus the log of the chance of the ranking: the best first, then the best of the rest."""
    left = list(rewards)
    loss = mpmath.mpf(0)
    while left:
        loss += mpmath.log(mpmath.fsum(mpmath.exp(r - left[0]) for r in left))
        left.pop(0)
    return loss


def infonca(rewards, target):
    total = mpmath.log(mpmath.fsum(map(mpmath.exp, rewards)))
    return mpmath.fsum(p * (total - r) for p, r in zip(target, rewards, strict=True))


def nca(rewards, target):
    n = len(rewards)
    return mpmath.fsum(p * sp(r) + sp(-r) / n for p, r in zip(target, rewards, strict=True))


def first(rewards):
    return [mpmath.mpf(i == 0) for i in range(len(rewards))]


LISTWISE = {"plackett_luce": plackett_luce, "infonca": infonca, "nca": nca}


def by_prompt(scored):
    sums = scored.group_by("prompt_id", maintain_order=True).agg(
        pl.col("loss").sum(), pl.col("loss").null_count().alias("nulls")
    )
    return {p: None if nulls else loss for p, loss, nulls in sums.rows()}


def losses(frame, loss, **arguments):
    return by_prompt(score(frame, BETA, loss=Objective(loss, arguments=arguments)).collect())


def test_the_names_are_known_without_importing_them():
    assert tuple(COMPLETION_LOSSES) == COMPLETION_LOSS_NAMES
    assert not set(COMPLETION_LOSSES) & set(LOSSES)


@pytest.mark.parametrize("loss", LISTWISE)
def test_listwise_losses_equal_mpmath(loss):
    # The rows stand in another order than the ranks, and prompts among each other.
    found = losses(completions().sample(fraction=1.0, shuffle=True, seed=3), loss)
    for prompt, ratios in REWARDS.items():
        with mpmath.workdps(60):
            rewards = [mpmath.mpf(h) * BETA for h in ratios]
            expected = LISTWISE[loss](rewards, first(rewards))
            assert abs(found[prompt] - expected) <= 1e-12 * abs(expected) + mpmath.mpf(10) ** -50


@pytest.mark.parametrize("loss", ["infonca", "nca"])
@pytest.mark.parametrize("temperature", [0.25, 2.0])
def test_targets_are_softmax_of_the_scores(loss, temperature):
    gap = 1.5
    frame = completions(score=-gap * pl.col("rank")).drop("rank")
    found = losses(frame, loss, temperature=temperature)
    for prompt, ratios in REWARDS.items():
        with mpmath.workdps(60):
            rewards = [mpmath.mpf(h) * BETA for h in ratios]
            weights = [mpmath.exp(-gap * i / temperature) for i in range(len(ratios))]
            target = [w / mpmath.fsum(weights) for w in weights]
            expected = LISTWISE[loss](rewards, target)
        assert found[prompt] == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.repeats  # each loss and each pair of ratios
@pytest.mark.parametrize(
    ("loss", "of_pairs"),
    [("plackett_luce", "sigmoid"), ("infonca", "sigmoid"), ("nca", "nca_pair")],
)
@pytest.mark.parametrize(
    "ratios", [(3.0, -2.0), (-2.0, 3.0), (0.0, 0.0), (2.0**-30, 0.0), (-90.0, 7.0)]
)
def test_two_completions_are_a_pair(loss, of_pairs, ratios):
    frame = completions({"p": list(ratios)})
    pair = {
        f"{model}_{side}_logps": [frame[f"{model}_logps"][i]]
        for i, side in enumerate(("chosen", "rejected"))
        for model in ("policy", "ref")
    }
    expected = score(pl.DataFrame(pair), BETA, loss=of_pairs).collect()["loss"].item()
    assert losses(frame, loss)["p"] == pytest.approx(expected, rel=1e-12)


def test_tied_ranks_have_no_plackett_luce_loss():
    frame = completions({"tied": [1.0, 2.0, 3.0], "not": [1.0, 2.0]})
    frame = frame.with_columns(pl.Series("rank", [1, 2, 2, 1, 2]))
    found = losses(frame, "plackett_luce")
    assert found["tied"] is None
    assert found["not"] is not None
    # Targets of several best ones are shared alike.
    frame = frame.with_columns(pl.Series("rank", [1, 1, 2, 1, 2]))
    with mpmath.workdps(30):
        expected = infonca([mpmath.mpf(x) / 2 for x in (1, 2, 3)], [0.5, 0.5, 0])
    assert losses(frame, "infonca")["tied"] == pytest.approx(float(expected), rel=1e-13)


def test_rank_score_and_label_say_the_same():
    frame = completions({"p": [3.0, -2.0], "q": [0.5, 1.0]})
    by_rank = losses(frame, "plackett_luce")
    assert by_rank == losses(
        frame.with_columns(score=1.0 / pl.col("rank")).drop("rank"), "plackett_luce"
    )
    assert by_rank == losses(
        frame.with_columns(label=pl.col("rank") == 1).drop("rank"), "plackett_luce"
    )


# Log-ratios h and labels of two batches of three, and log-ratios of mismatched completions: means
# 2 and -1, of which the second is cut to 0; without the zeros the first is 3.
RATIOS, LABELS = [1.0, -2.0, 4.0, 0.5, -1.0, 3.0], [True, False, True, False, True, False]
MISMATCHED = [6.0, 0.0, 0.0, -3.0, 1.0, -1.0]
KTO = pl.DataFrame(
    {
        "policy_logps": [-10.0 + h for h in RATIOS],
        "ref_logps": [-10.0] * 6,
        "label": LABELS,
        "kl_policy_logps": [-20.0 + h for h in MISMATCHED],
        "kl_ref_logps": [-20.0] * 6,
    }
)


def sigma(x):
    return 1.0 / (1.0 + math.exp(-x))


def kto_by_hand(kls, beta=0.1, weights=(1.0, 1.0)):
    return [
        weights[0] * (1 - sigma(beta * (h - kl)))
        if label
        else weights[1] * (1 - sigma(beta * (kl - h)))
        for h, label, kl in zip(RATIOS, LABELS, kls, strict=True)
    ]


@pytest.mark.parametrize(
    ("dialect", "kls"),
    [
        pytest.param(None, [2.0] * 3 + [0.0] * 3, id="none"),
        pytest.param("trl", [2.0] * 3 + [0.0] * 3, id="trl: the mean"),
        pytest.param("halos", [6.0] * 3 + [0.0] * 3, id="halos: of log-ratios that are not 0"),
    ],
)
def test_kto_by_hand(dialect, kls):
    scored = score(KTO, loss=Objective("kto", dialect=dialect), batches=3).collect()
    assert scored["kl"].to_list() == pytest.approx(kls, abs=1e-13)
    assert scored["loss"].to_list() == pytest.approx(kto_by_hand(kls), rel=1e-13)
    assert scored["reward"].to_list() == pytest.approx([0.1 * h for h in RATIOS], abs=1e-14)


def test_kto_with_weights_and_a_given_kl():
    weights = {"desirable_weight": 0.75, "undesirable_weight": 2.0}
    given = Objective("kto", arguments={"kl": 1.5, **weights})
    scored = score(KTO.drop("kl_policy_logps", "kl_ref_logps"), 0.3, loss=given).collect()
    expected = kto_by_hand([1.5] * 6, 0.3, (0.75, 2.0))
    assert scored["loss"].to_list() == pytest.approx(expected, rel=1e-13)
    unpaired = score(KTO, 0.3, loss=Objective("apo_zero_unpaired", arguments=weights)).collect()
    by_hand = [
        0.75 * (1 - sigma(0.3 * h)) if label else 2.0 * sigma(0.3 * h)
        for h, label in zip(RATIOS, LABELS, strict=True)
    ]
    assert unpaired["loss"].to_list() == pytest.approx(by_hand, rel=1e-13)
    assert unpaired["kl"].null_count() == 6


def test_a_halos_batch_of_zeros_has_a_kl_of_0():
    same = KTO.with_columns(kl_policy_logps=pl.col("kl_ref_logps"))
    for dialect in ("trl", "halos"):
        scored = score(same, loss=Objective("kto", dialect=dialect), batches=3).collect()
        assert scored["kl"].to_list() == [0.0] * 6


def test_kto_falls_with_desirable_rewards_and_rises_with_others():
    for label, falls in ((True, True), (False, False)):
        frame = pl.DataFrame(
            {
                "policy_logps": [-x / 4.0 for x in range(200, 0, -1)],
                "ref_logps": -25.0,
                "label": label,
            }
        )
        for loss in (Objective("kto", arguments={"kl": 0.5}), "apo_zero_unpaired"):
            found = score(frame, 1.0, loss=loss).collect()["loss"].to_list()
            assert all((b <= a) if falls else (b >= a) for a, b in pairwise(found))


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        pytest.param(
            {"loss": "kto"}, UsageError, "give the size of an evaluation batch", id="size"
        ),
        pytest.param(
            {"loss": {"kto": 1.0, "sft": 1.0}}, UsageError, "stands in no sum of losses", id="sum"
        ),
        pytest.param(
            {"loss": Objective("kto", arguments={"kl": -1.0})}, UsageError, "at least 0", id="kl"
        ),
        pytest.param(
            {"loss": Objective("kto", arguments={"humanline": True, "kl": 0.0})},
            UsageError,
            "are of pairs, and kto of completions",
            id="humanline",
        ),
        pytest.param(
            {"loss": Objective("nca", dialect="trl")}, UsageError, "TRL 1.x has no nca", id="trl"
        ),
        pytest.param(
            {"loss": Objective("apo_zero_unpaired", dialect="halos")},
            UsageError,
            "HALOs has no apo_zero_unpaired",
            id="halos",
        ),
    ],
)
def test_what_is_refused(call, error, said):
    with pytest.raises(error, match=said):
        score(KTO, **call).collect()


@pytest.mark.parametrize("column", ["label", "ref_logps", "kl_policy_logps", "kl_ref_logps"])
def test_a_missing_column_is_named(column):
    with pytest.raises(ColumnError, match=f"{column}: missing"):
        score(KTO.drop(column), loss="kto", batches=Batches(3))
