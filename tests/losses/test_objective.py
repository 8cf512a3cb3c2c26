"""Figures of every loss, and of weighted sums of losses, against plain Python."""

from __future__ import annotations

import math
import random
import re
from fractions import Fraction

import polars as pl
import pytest

from dpo_pipeline import InvalidPairsError, Objective, UsageError, evaluate, score
from dpo_pipeline.losses import EVERY_LOSS
from dpo_pipeline.losses.catalogue import _NICKNAMES
from objective_tools import LOG_2, minus_log_sigmoid
from pair_tools import COUNTS, LOGPS

# ------------------------------------------------------------------------------------ figures


BETA = 0.1


def forward_kl(h):
    return 1.0 - math.exp(-h)


def js_divergence(h):
    return LOG_2 + math.log(1.0 / (1.0 + math.exp(-h)))


def alpha_half(h):
    return (math.exp(-0.5 * h) - 1.0) / -0.5


def of_sums(c, r, ref_c, ref_r, *_):
    return c - ref_c, r - ref_r


def of_means(c, r, ref_c, ref_r, chosen, rejected):
    return (c - ref_c) / chosen, (r - ref_r) / rejected


def of_policy(c, r, *_):
    return c, r


def of_policy_means(c, r, _, __, chosen, rejected):
    return c / chosen, r / rejected


def through(divergence, scores=of_sums):
    def of(c, r, ref_c, ref_r, chosen, rejected):
        logratios = of_sums(c, r, ref_c, ref_r)
        counts = (chosen, rejected) if scores is of_means else (1, 1)
        return tuple(divergence(h) / n for h, n in zip(logratios, counts, strict=True))

    return of


def sigma(x):
    return 1.0 / (1.0 + math.exp(-x))


def of_margin(function):
    """Return the loss of beta times the difference of the scores."""
    return lambda s, t, *_: function(BETA * (s - t))


def smoothed(margin):
    return 0.8 * minus_log_sigmoid(margin) + 0.2 * minus_log_sigmoid(-margin)


def hinge(margin):
    return max(0.0, 1.0 - margin)


def discopop(margin):
    share = sigma(margin / 0.5)
    return minus_log_sigmoid(margin) * (1 - share) + math.exp(-margin) * share


def ipo(s, t, *_):
    return (s - t - 1 / (2 * BETA)) ** 2


def nca(s, t, *_):
    pushed = minus_log_sigmoid(-BETA * s) + minus_log_sigmoid(-BETA * t)
    return minus_log_sigmoid(BETA * s) + pushed / 2


def bco(s, t, *_):
    return minus_log_sigmoid(BETA * s + 0.4) + minus_log_sigmoid(-BETA * t - 0.4)


def dpop(s, t, *_):
    return minus_log_sigmoid(BETA * (s - t - 3.0 * max(0.0, -s)))


def of_lengths(*row):
    """Return scores with R-DPO's 0.02 nats a token, which beta does not scale."""
    (s, t), (n, m) = of_sums(*row), row[4:]
    return s + 0.02 * n / BETA, t + 0.02 * m / BETA


def of_powers(*row):
    """Return AlphaPO's (1 - p^-a) / a of the mean probabilities, a = 0.25."""
    return tuple((1 - math.exp(mean) ** -0.25) / 0.25 for mean in of_policy_means(*row))


def orpo(s, t, *_):
    p, q = math.exp(s), math.exp(t)
    return -s + BETA * math.log1p((q / (1 - q)) / (p / (1 - p)))


dpo = of_margin(minus_log_sigmoid)
ALPHA = {"f_divergence": "alpha_divergence"}
JS = {"f_divergence": "js_divergence"}
PER_TOKEN = {"per_token": True}


FIGURES = {
    # loss, its arguments, its scores and itself in plain Python
    "sigmoid": ("sigmoid", {}, of_sums, dpo),
    "cDPO": ("sigmoid", {"label_smoothing": 0.2}, of_sums, of_margin(smoothed)),
    "sigmoid_norm": ("sigmoid_norm", {}, of_means, dpo),
    "hinge per token": ("hinge", PER_TOKEN, of_means, of_margin(hinge)),
    "ipo": ("ipo", {}, of_sums, ipo),
    "ipo per token": ("ipo", PER_TOKEN, of_means, ipo),
    "forward_kl": ("sigmoid", {"f_divergence": "forward_kl"}, through(forward_kl), dpo),
    "js": ("sigmoid", JS, through(js_divergence), dpo),
    "js per token": ("sigmoid", {**JS, **PER_TOKEN}, through(js_divergence, of_means), dpo),
    "alpha 1/2": ("hinge", ALPHA, through(alpha_half), of_margin(hinge)),
    "alpha 0: forward_kl": ("ipo", {**ALPHA, "f_alpha": 0}, through(forward_kl), ipo),
    "alpha 1: reverse_kl": ("nca_pair", {**ALPHA, "f_alpha": 1}, of_sums, nca),
    "reference_free": ("sigmoid", {"reference_free": True}, of_policy, dpo),
    "simpo": (
        "simpo",
        {"gamma": 0.3, "label_smoothing": 0.2},
        of_policy_means,
        of_margin(lambda margin: smoothed(margin - 0.3)),
    ),
    "sft": ("sft", {}, of_policy_means, lambda s, *_: -s),
    "orpo": ("orpo", {}, of_policy_means, orpo),
    "bco_pair": ("bco_pair", {"baseline": -0.4}, of_sums, bco),
    "apo_down": ("apo_down", {}, of_sums, lambda s, t, *_: sigma(BETA * s) + sigma(BETA * (t - s))),
    "discopop": ("discopop", {"tau": 0.5}, of_sums, of_margin(discopop)),
    "dpop": ("dpop", {"penalty": 3.0}, of_sums, dpop),
    "rdpo": ("rdpo", {"length_penalty": 0.02}, of_lengths, dpo),
    "alphapo": (
        "alphapo",
        {"gamma": 0.3, "alpha": 0.25},
        of_powers,
        of_margin(lambda margin: minus_log_sigmoid(margin - 0.3)),
    ),
}


@pytest.fixture(scope="module")
def counted_real(real_pairs):
    """698 real pairs with counts made up from nothing but the row number, and as plain rows."""
    rng = random.Random(7)
    frame = real_pairs.with_columns(
        pl.Series(name, [rng.randint(3, 300) for _ in range(real_pairs.height)]) for name in COUNTS
    )
    return frame, frame.select(*LOGPS, *COUNTS).rows()


def plain_figures(rows, scores, loss):
    """Return the figures in plain Python; a pair beyond 2**50 is invalid."""
    kept = []
    for row in rows:
        s, t = scores(*row)
        value = loss(s, t, *row[4:])
        if max(abs(BETA * s), abs(BETA * t), abs(value)) <= 2**50:
            kept.append((BETA * s, BETA * t, value))
    n = len(kept)
    return {
        "n_valid": n,
        "loss": math.fsum(value for _, _, value in kept) / n,
        "chosen_reward": math.fsum(c for c, _, _ in kept) / n,
        "rejected_reward": math.fsum(r for _, r, _ in kept) / n,
        "reward_margin": math.fsum(x for c, r, _ in kept for x in (c, -r)) / n,
        "reward_accuracy": sum(c > r for c, r, _ in kept) / n,
        "n_ties": sum(c == r for c, r, _ in kept),
    }


@pytest.mark.repeats(11)  # sums are one function; each loss has its tests
@pytest.mark.parametrize(
    ("loss", "arguments", "scores", "of_scores"), FIGURES.values(), ids=FIGURES
)
def test_figures_equal_plain_python(counted_real, loss, arguments, scores, of_scores):
    frame, rows = counted_real
    expected = plain_figures(rows, scores, of_scores)
    result = evaluate(frame, BETA, loss=Objective(loss, arguments=arguments), on_invalid="exclude")
    found = result.summary.to_dict()
    assert expected["n_valid"] > 650
    assert {name: found[name] for name in expected} == pytest.approx(
        expected, rel=1e-11, abs=2**-40
    )
    metrics = result.to_metrics()
    assert metrics["loss"] == found["loss"]
    assert metrics["rewards/margins"] == found["reward_margin"]


def test_rows_that_a_divergence_puts_out_of_range_are_named(counted_real):
    # 0.1 (1 - exp(-h)) is out of range below h = -log(10 * 2**50) = -36.96. With the chosen one
    # the margin falls as far, and the loss is minus that; with the rejected one it is 0.
    frame, rows = counted_real
    limit = -math.log(10 * 2**50)
    chosen, rejected = ([i for i, r in enumerate(rows) if r[k] - r[k + 2] < limit] for k in (0, 1))
    assert (len(chosen), len(rejected), len({*chosen, *rejected})) == (1, 2, 3)
    with pytest.raises(InvalidPairsError) as caught:
        evaluate(frame, BETA, loss=Objective(arguments={"f_divergence": "forward_kl"}))
    assert {r.name: [o.row for o in r.offenders] for r in caught.value.report.broken} == {
        "chosen_reward.in_range": chosen,
        "rejected_reward.in_range": rejected,
        "loss.in_range": chosen,
    }


def test_figures_of_subsets_and_batches_are_of_the_loss_too(counted_real):
    frame, rows = counted_real
    result = evaluate(
        frame, loss=Objective("ipo", arguments={"per_token": True}), by="turns", batches=100
    )
    turns = frame["turns"].to_list()
    for found in result.subsets.rows(named=True):
        mine = [row for row, t in zip(rows, turns, strict=True) if t == found["turns"]]
        expected = plain_figures(mine, of_means, ipo)
        assert {n: found[n] for n in expected} == pytest.approx(expected, rel=1e-11, abs=2**-40)
    for found in result.batches.rows(named=True):
        mine = rows[100 * found["batch"] : 100 * (found["batch"] + 1)]
        expected = plain_figures(mine, of_means, ipo)
        for name in ("n_valid", "loss", "reward_margin", "reward_accuracy"):
            assert found[name] == pytest.approx(expected[name], rel=1e-11, abs=2**-40)
    assert (result.subsets.height, result.batches.height) == (len(set(turns)), 7)


# --------------------------------------------------------------------------------------- sums


def test_a_sum_is_the_weighted_sum_of_its_losses(counted_real):
    frame, _ = counted_real
    weights = {"ipo": 0.25, "sigmoid": 2.0, "sft": 1.5, "simpo": 1}
    shared = {"label_smoothing": 0.1, "per_token": True, "gamma": 0.2}
    of = {
        "ipo": {"per_token": True},
        "sigmoid": {"per_token": True, "label_smoothing": 0.1},
        "sft": {},
        "simpo": {"gamma": 0.2, "label_smoothing": 0.1},
    }
    single = {
        n: score(frame, loss=Objective(n, arguments=of[n])).collect()["loss"].to_list()
        for n in weights
    }
    together = score(frame, loss=Objective(weights, arguments=shared)).collect()
    expected = [
        math.fsum(weight * single[name][i] for name, weight in weights.items()) for i in range(698)
    ]
    assert together["loss"].to_list() == pytest.approx(expected, rel=1e-14)
    summary = evaluate(frame, loss=Objective(weights, arguments=shared)).summary
    assert summary.loss == pytest.approx(math.fsum(expected) / 698, rel=1e-11)


@pytest.mark.parametrize(
    ("first", "second", "chosen"),
    [
        # By hand, beta 0.1, the first pair: log-ratio 1, 2 tokens, the policy's log-prob -20.
        pytest.param("sigmoid", "sft", 0.1, id="log-ratio"),
        pytest.param("sft", "sigmoid", -1.0, id="policy per token"),
        pytest.param("sigmoid_norm", "cpo", 0.05, id="log-ratio per token"),
        pytest.param("cpo", "sigmoid_norm", -2.0, id="policy"),
    ],
)
def test_rewards_are_those_of_the_first_loss(counted, first, second, chosen):
    alone, other = (score(counted, loss=name).collect() for name in (first, second))
    together = score(counted, loss={first: 1.0, second: 3.0}).collect()
    assert together["chosen_reward"][0] == pytest.approx(chosen, rel=1e-14)
    for name in ("chosen_reward", "rejected_reward", "reward_margin"):
        assert together[name].equals(alone[name])
        assert not together[name].equals(other[name])
    # ... and the loss is that of both, whosever the rewards are.
    both = [a + 3.0 * b for a, b in zip(alone["loss"], other["loss"], strict=True)]
    assert together["loss"].to_list() == pytest.approx(both, rel=1e-14)
    figures = evaluate(counted, loss={first: 1.0, second: 3.0}).summary
    assert figures.reward_margin == evaluate(counted, loss=first).summary.reward_margin
    assert figures.ref_chosen_logps == pytest.approx(-277 / 6)


def test_one_weight_scales_the_loss_and_not_the_rewards(counted):
    plain, scaled = score(counted).collect(), score(counted, loss={"sigmoid": 4.0}).collect()
    assert scaled["loss"].to_list() == [4.0 * value for value in plain["loss"]]
    assert scaled.drop("loss").equals(plain.drop("loss"))


def exact_mean(values):
    return sum(values, Fraction(0)) / len(values)


@pytest.mark.repeats  # ranges, losses and betas, each once
@pytest.mark.parametrize("loss", ["ipo", "sppo_hard"])
@pytest.mark.parametrize(("low", "high"), [(1_000, 2_000), (900_000, 1_100_000), (0, 4_000_000)])
@pytest.mark.parametrize("beta", [0.5, 0.125])
def test_squared_losses_are_summed_exactly(loss, low, high, beta):
    # Multiples of 1/8 of up to 2**22: every square is exact in Float64, and so must the sum be.
    rng = random.Random(f"{loss}{low}")
    n = 1_024
    h = [
        tuple(
            sign * Fraction(rng.randint(low * 8, high * 8), 8) for sign in rng.choices((1, -1), k=2)
        )
        for _ in range(n)
    ]
    columns = {
        LOGPS[0]: [float(min(c, 0)) for c, _ in h],
        LOGPS[1]: [float(min(r, 0)) for _, r in h],
        LOGPS[2]: [float(-max(c, 0)) for c, _ in h],
        LOGPS[3]: [float(-max(r, 0)) for _, r in h],
    }
    half = 1 / (2 * Fraction(beta))
    rows = [
        (c - r - half) ** 2 if loss == "ipo" else (c - half) ** 2 + (r + half) ** 2 for c, r in h
    ]
    scored = score(columns, beta, loss=loss).collect()["loss"]
    assert [Fraction(value) for value in scored] == rows
    mean = exact_mean(rows)
    found = evaluate(columns, beta, loss=loss).summary
    assert abs(Fraction(found.loss) - mean) <= Fraction(math.ulp(float(mean))) / 2
    assert Fraction(found.chosen_reward) == pytest.approx(
        Fraction(beta) * exact_mean([c for c, _ in h])
    )


def test_a_sum_of_large_losses_keeps_the_last_bit():
    # 4096 + 2**-40 is an odd number of quanta, and the last bit of its Float64.
    value = 4096.0 + 2.0**-40
    one = {name: [-20.0] for name in LOGPS} | {LOGPS[0]: [-19.0 - value]}
    assert evaluate(one, 1.0, loss="hinge").summary.loss == value


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("dpo", "(sigmoid is the loss of DPO)"),
        ("DPO_loss", "(sigmoid is the loss of DPO)"),
        ("bco", "(bco_pair is"),
        ("slic", "(hinge is"),
        ("c-dpo", "(sigmoid with label_smoothing is"),
        ("sigmiod", "(did you mean 'sigmoid'?)"),
        ("zzz", "'zzz'; the losses are sigmoid, "),
    ],
)
def test_what_people_call_a_loss_leads_to_it(pairs, name, said):
    with pytest.raises(UsageError, match=re.escape(said)):
        evaluate(pairs, loss=name)


def test_nicknames_are_no_losses_and_lead_to_losses():
    for name, said in _NICKNAMES.items():
        assert name not in EVERY_LOSS
        named = re.split(r" (?:is|are|with) ", said)[0].split(" and ")
        assert {*named} <= {*EVERY_LOSS}
