"""Every row-wise loss through `score`: against mpmath at 40 digits, at its limits, by properties.

The formulas below are written from the papers. Inputs are dyadic, so that log-ratios are exact
in float64 and what is measured is the rounding of the formula alone.
"""

from __future__ import annotations

import math
import random
import sys
from fractions import Fraction
from itertools import pairwise
from types import SimpleNamespace

import mpmath
import polars as pl
import pytest

from dpo_pipeline import Objective, score
from dpo_pipeline.losses.catalogue import LOSSES
from dpo_pipeline.losses.pairwise import F_DIVERGENCES, log1mexp
from pair_tools import LOGPS

TOKENS = ("chosen_num_tokens", "rejected_num_tokens")
EXTRAS = ("offset", "preference_probability")
OWN = ((0.0, 1.0), (0.75, 0.75), (-2.0, 0.0), (1.5, 0.0625))
"""Offset and probability of each pair; the first leaves the DPO loss as it is."""
ROW_WISE = {name for name, row in LOSSES.items() if not row.is_of_batches}
TINY = 1e-307  # about the smallest normal float64: below it, digits are lost


def sigma(x):
    return 1 / (1 + mpmath.exp(-x))


def sp(x):
    """Minus log sigma(x)."""
    return mpmath.log1p(mpmath.exp(-x))


def smoothed(z, e):
    return [(1 - e) * sp(z), e * sp(-z)]


def hinge(z):
    return [1, -z] if z < 1 else [0]


def log_odds(x):
    return x - mpmath.log(-mpmath.expm1(x))


def square(*parts):
    """The terms of (a + b + ...)^2: each part times the root."""
    return [sum(parts) * part for part in parts]


def power(x, mean_logp):
    return -mpmath.expm1(-x.alpha * mean_logp) / x.alpha if x.alpha else mean_logp


def exo(z, e):
    chosen = [sigma(z) * -sp(z), -sigma(z) * mpmath.log(1 - e)]
    return [*chosen, sigma(-z) * -sp(-z), -sigma(-z) * mpmath.log(e)]


def robust(z, e):
    return [(1 - e) / (1 - 2 * e) * sp(z), -e / (1 - 2 * e) * sp(-z)]


def dpop(x):
    return sp(x.b * (x.c - x.r - x.penalty * max(0, -x.c)))


# A loss as terms that add up to it. c and r are scores, b is beta, z = b (c - r).
REFERENCE = {
    "sigmoid": lambda x: smoothed(x.z, x.label_smoothing),
    "sigmoid_norm": lambda x: smoothed(x.z, x.label_smoothing),
    "robust": lambda x: robust(x.z, x.label_smoothing),
    "hinge": lambda x: hinge(x.z),
    "ipo": lambda x: square(x.c, -x.r, -1 / (2 * x.b)),
    "exo_pair": lambda x: exo(x.z, x.label_smoothing),
    "nca_pair": lambda x: [sp(x.b * x.c), sp(-x.b * x.c) / 2, sp(-x.b * x.r) / 2],
    "bco_pair": lambda x: [sp(x.b * x.c - x.baseline), sp(x.baseline - x.b * x.r)],
    "sppo_hard": lambda x: [*square(x.c, -1 / (2 * x.b)), *square(x.r, 1 / (2 * x.b))],
    "apo_zero": lambda x: [sigma(-x.b * x.c), sigma(x.b * x.r)],
    "apo_down": lambda x: [sigma(x.b * x.c), sigma(-x.z)],
    "discopop": lambda x: [sp(x.z) * sigma(-x.z / x.tau), mpmath.exp(-x.z) * sigma(x.z / x.tau)],
    "dpop": lambda x: [dpop(x)],
    "rdpo": lambda x: [sp(x.z + x.length_penalty * (x.tokens_c - x.tokens_r))],
    "odpo": lambda x: [sp(x.z - x.offset)],
    "soft_labels": lambda x: [x.probability * sp(x.z), (1 - x.probability) * sp(-x.z)],
    "wpo": lambda x: [min(1, mpmath.exp(x.pc / x.tokens_c + x.pr / x.tokens_r)) * sp(x.z)],
    "cpo": lambda x: smoothed(x.z, x.label_smoothing),
    "cpo_hinge": lambda x: hinge(x.z),
    "simpo": lambda x: smoothed(x.z - x.gamma, x.label_smoothing),
    "alphapo": lambda x: [sp(x.b * (power(x, x.c) - power(x, x.r)) - x.gamma)],
    "orpo": lambda x: [-x.c, x.b * sp(log_odds(x.c) - log_odds(x.r))],
    "orpo_odds_ratio": lambda x: [x.b * sp(log_odds(x.c) - log_odds(x.r))],
    "sft": lambda x: [-x.c],
}
DEFAULTS = {"label_smoothing": 0.0, "baseline": 0.0, "tau": 0.05, "penalty": 50.0, "gamma": 0.5}
DEFAULTS |= {"length_penalty": 0.0, "alpha": 0.0, "f_alpha": 0.5}
DEFAULT_OF_EXO = {"label_smoothing": 1e-3}
NO_REFERENCE = {"cpo", "cpo_hinge", "simpo", "alphapo", "orpo", "orpo_odds_ratio", "sft"}
PER_TOKEN = {"sigmoid_norm", "simpo", "alphapo", "orpo", "orpo_odds_ratio", "sft"}
# f' of the divergence at u = exp(h), with f'(1) = 0; expm1 and log1p for the tiny h.
SCORES = {
    "reverse_kl": lambda h, _: h,
    "forward_kl": lambda h, _: -mpmath.expm1(-h),  # 1 - 1/u
    "js_divergence": lambda h, _: -mpmath.log1p(mpmath.expm1(-h) / 2),  # log(2u / (1 + u))
    "alpha_divergence": lambda h, a: mpmath.expm1((a - 1) * h) / (a - 1) if a != 1 else h,
}

SMOOTHED = ({"label_smoothing": 0.1}, {"label_smoothing": 0.5})
FREE = ({"reference_free": True},)
BY_LENGTH = ({"per_token": True}, {"per_token": True, "reference_free": True})
FORWARD = {"f_divergence": "forward_kl"}
ALPHA = {"f_divergence": "alpha_divergence"}
SQUARED = {**ALPHA, "f_alpha": 2.0}
DIVERGENCES = (
    *({"f_divergence": name} for name in SCORES),
    *({**ALPHA, "f_alpha": alpha} for alpha in (0.3, 1.0, 2.0)),
)
ANY_SCORE = (*FREE, *BY_LENGTH, *DIVERGENCES, {**FORWARD, "per_token": True})
ARGUMENTS = {
    "sigmoid": (*SMOOTHED, *ANY_SCORE),
    "sigmoid_norm": (*SMOOTHED, *FREE, *DIVERGENCES),
    **dict.fromkeys(["odpo", "soft_labels", "wpo"], ANY_SCORE),
    "robust": ({"label_smoothing": 0.1}, {"label_smoothing": 0.499}, *ANY_SCORE),
    **dict.fromkeys(["hinge", "ipo"], ANY_SCORE),
    "exo_pair": ({"label_smoothing": 1e-9}, *SMOOTHED, *ANY_SCORE),
    **dict.fromkeys(["nca_pair", "sppo_hard"], (*FREE, *DIVERGENCES)),
    "bco_pair": ({"baseline": 0.75}, {"baseline": -3.0}, *FREE, *DIVERGENCES),
    **dict.fromkeys(["apo_zero", "apo_down"], FREE),
    "discopop": ({"tau": 0.5}, {"tau": 1.0}, {"tau": 2.0}, *ANY_SCORE),
    "dpop": ({"penalty": 0.0}, {"penalty": 0.25}),
    "rdpo": ({"length_penalty": 0.25}, {"length_penalty": 2.0, "reference_free": True}),
    "cpo": SMOOTHED,
    "simpo": ({"gamma": 0.0}, {"gamma": 1.6, "label_smoothing": 0.1}),
    "alphapo": ({"alpha": 1.0, "gamma": 0.0}, {"alpha": 0.3}, {"alpha": -0.5}),
    **dict.fromkeys(["cpo_hinge", "orpo", "orpo_odds_ratio", "sft"], ()),
}


def case_id(loss, args):
    return "-".join([loss, *(f"{name}={value}" for name, value in args.items())])


def is_repeated(loss, args):
    """Whether a divergence is slow: it makes the scores of any loss, before the loss is known.

    By default `sigmoid` has all of them, and each other loss has one.
    """
    own = DIVERGENCES[list(ARGUMENTS).index(loss) % len(DIVERGENCES)]
    return loss != "sigmoid" and "f_divergence" in args and args != own


CASES = [
    pytest.param(
        loss,
        args,
        id=case_id(loss, args),
        marks=[pytest.mark.slow] if is_repeated(loss, args) else [],
    )
    for loss, several in ARGUMENTS.items()
    for args in ({}, *several)
]
EACH_LOSS = pytest.mark.parametrize("loss", ARGUMENTS)


def each_of(loss, kept=lambda *_: True):
    """Return the arguments to try, with none first."""
    every = [args for args in ({}, *ARGUMENTS[loss]) if kept(loss, args)]
    return [args for args in every if not is_repeated(loss, args)]


def test_the_tables_cover_every_row_wise_loss_and_no_other():
    assert set(REFERENCE) == ROW_WISE
    assert set(ARGUMENTS) == ROW_WISE
    assert set(SCORES) == set(F_DIVERGENCES)


@EACH_LOSS
def test_the_table_varies_every_argument_of(loss):
    row = LOSSES[loss]
    takes = {parameter.name for parameter in row.parameters}
    takes |= {"reference_free"} if row.reference == "optional" else set()
    takes |= {"per_token"} if row.by_length == "optional" else set()
    takes |= {"f_divergence", "f_alpha"} if row.f_divergence else set()
    assert {name for args in ARGUMENTS[loss] for name in args} == takes
    tried = {args["f_divergence"] for args in ARGUMENTS[loss] if "f_divergence" in args}
    assert tried == (set(F_DIVERGENCES) if row.f_divergence else set())


def table(scores, *, reference, tokens=((1, 1),), own=OWN[:1]):
    """Pairs that have these log-ratios, or these log-probs where there is no reference."""
    columns = {name: [] for name in (*LOGPS, *TOKENS, *EXTRAS)}
    odd = {"chosen": -1.0, "rejected": -3.0}  # references to be left alone
    for i, sides in enumerate(scores):
        counts = tokens[i % len(tokens)]
        for h, side, count in zip(sides, ("chosen", "rejected"), counts, strict=True):
            # Far from 0 where that is exact, so that the subtraction has something to do.
            base = -64.0 if h - 64.0 + 64.0 == h else 0.0
            columns[f"policy_{side}_logps"].append(base + min(h, 0.0) if reference else h)
            columns[f"ref_{side}_logps"].append(base - max(h, 0.0) if reference else odd[side])
            columns[f"{side}_num_tokens"].append(count)
        for name, value in zip(EXTRAS, own[i % len(own)], strict=True):
            columns[name].append(value)
    types = dict.fromkeys(columns, pl.Float64) | dict.fromkeys(TOKENS, pl.Int64)
    return pl.DataFrame(columns, schema=types)


def subtracts(loss, args):
    return loss not in NO_REFERENCE and not args.get("reference_free", False)


def losses_of(pairs, loss, args=None, beta=1.0):
    return (
        score(pairs, beta, loss=Objective(loss, arguments=args or {})).collect()["loss"].to_list()
    )


def losses_at(scores, loss, args=None, beta=1.0):
    return losses_of(table(scores, reference=subtracts(loss, args or {})), loss, args, beta)


def exact_terms(loss, args, beta, pc, pr, rc, rr, tokens, own=OWN[0]):
    """The terms of a loss at exactly these inputs."""
    numbers = {**DEFAULTS, **(DEFAULT_OF_EXO if loss == "exo_pair" else {}), **args}
    numbers = {name: mpmath.mpf(numbers[name]) for name in numbers if name != "f_divergence"}
    x = SimpleNamespace(b=mpmath.mpf(beta), **numbers)
    x.c, x.r = mpmath.mpf(pc), mpmath.mpf(pr)
    x.tokens_c, x.tokens_r = tokens
    x.pc, x.pr = x.c, x.r
    x.offset, x.probability = map(mpmath.mpf, own)
    if subtracts(loss, args):
        divergence = SCORES[args.get("f_divergence", "reverse_kl")]
        x.c, x.r = divergence(x.c - rc, x.f_alpha), divergence(x.r - rr, x.f_alpha)
    if loss in PER_TOKEN or args.get("per_token", False):
        x.c, x.r = x.c / x.tokens_c, x.r / x.tokens_r
    x.z = x.b * (x.c - x.r)
    return REFERENCE[loss](x)


# Of margins: around the ends of exp (709, 745) and of 1 + exp (36.7), and up to 1e4.
SMALL = [2.0**-1000, 2.0**-40, 2.0**-10, 0.125, 0.5, 0.75, 1.0, 3.0]
SIZES = [*SMALL, 10.25, 36.5, 40.75, 300.0, 700.5, 744.5, 1e4]
MARGINS = [0.0, *SIZES, *(-size for size in SIZES)]
MARGINS += [random.Random(2305).randint(-(2**20), 2**20) / 2**12 for _ in range(12)]
MEAN_LOGPS = [-size for size in SIZES]
COUNTS = ((1, 1), (4, 64), (7, 3))


def splits(margin, beta):
    """Log-ratios of about this margin: on one side, on the other, on both, and as a small rest."""
    h = margin * (8.0 if beta == 0.1 else 1.0 / beta)
    return [(h, 0.0), (0.0, -h), (h / 2.0, -h / 2.0), (h - 64.0, -64.0)]


def is_curved(args):
    """Whether scores are rounded exponentials, as large as exp(|h|)."""
    return bool(args.get("alpha")) or args.get("f_divergence", "reverse_kl") != "reverse_kl"


def points(loss, args, beta):
    if subtracts(loss, args):
        pairs = [pair for margin in MARGINS for pair in splits(margin, beta)]
    else:
        pairs = [(c, r) for c in MEAN_LOGPS for r in MEAN_LOGPS]
    if is_curved(args):
        # Beyond, the scores themselves overflow (a test below). And where both are large, the
        # margin is a difference of larger terms that have been rounded.
        pairs = [(c, r) for c, r in pairs if max(-c, -r, c, r) <= 600.0 and -64.0 not in {c, r}]
    return table(pairs, reference=subtracts(loss, args), tokens=COUNTS, own=OWN)


def is_near(found, terms):
    """Whether a loss is right to 1e-12 of its largest term: of itself, unless terms cancel.

    Terms of both signs are those of hinge (1 - z), robust, exo_pair and the squares, near their
    roots; of all others it is relative precision. Below the smallest normal number, and above
    the largest, float64 has none to give.
    """
    value = mpmath.fsum(terms)
    if abs(value) > sys.float_info.max:
        return found == math.copysign(math.inf, value)
    return abs(found - value) <= 1e-12 * max(abs(term) for term in terms) + TINY


# A second beta repeats the proof at margins twenty times as large.
FEW_POINTS = 0.1


# The slow one has another factor, and all points.
@pytest.mark.parametrize("beta", [FEW_POINTS, pytest.param(2.0, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("loss", "args"), CASES)
def test_equals_mpmath(loss, args, beta):
    # By default each margin about once, and with arguments a third of them: the limits
    # of a loss are those without them.
    pairs = points(loss, args, beta)[:: (17 if args else 5) if beta == FEW_POINTS else 1]
    rows = zip(*(pairs.select(names).rows() for names in (LOGPS, TOKENS, EXTRAS)), strict=True)
    for (row, n, own), found in zip(rows, losses_of(pairs, loss, args, beta), strict=True):
        with mpmath.workdps(40):
            terms = exact_terms(loss, args, beta, *row, n, own)
            assert is_near(found, terms), (row, n, found, mpmath.nstr(mpmath.fsum(terms), 17))


@pytest.mark.parametrize("args", DIVERGENCES, ids=lambda args: "-".join(map(str, args.values())))
def test_scores_equal_mpmath(args):
    sizes = [size for size in SIZES if size < 700.0]
    logratios = [0.0, *sizes, *(-size for size in sizes)]
    pairs = table([(h, 0.0) for h in logratios], reference=True)
    rewards = (
        score(pairs, 1.0, loss=Objective(arguments=args))
        .collect()
        .select("chosen_reward", "rejected_reward")
    )
    divergence = SCORES[args["f_divergence"]]
    # log 2 + log sigma(h) is 0 at 0; the others are right to their last digits.
    terms = [math.log(2.0)] if args["f_divergence"] == "js_divergence" else []
    for h, (chosen, rejected) in zip(logratios, rewards.rows(), strict=True):
        with mpmath.workdps(40):
            exact = divergence(mpmath.mpf(h), mpmath.mpf(args.get("f_alpha", 0.5)))
            assert is_near(chosen, [exact, *terms, *(-term for term in terms)]), h
        assert rejected == 0.0


def test_inputs_are_exact():
    scores = [pair for margin in MARGINS for beta in (0.1, 2.0) for pair in splits(margin, beta)]
    for row in table(scores, reference=True).select(LOGPS).rows():
        for policy, reference in (row[::2], row[1::2]):
            assert Fraction(policy) - Fraction(reference) == policy - reference


@pytest.mark.parametrize(
    ("loss", "args", "scores", "expected"),
    [
        pytest.param("sigmoid", {}, (800.0, 0.0), 0.0, id="sigmoid underflows"),
        pytest.param("sigmoid", {}, (-math.inf, 0.0), math.inf, id="sigmoid of probability 0"),
        pytest.param("apo_zero", {}, (800.0, -800.0), 0.0, id="apo_zero underflows"),
        pytest.param("apo_zero", {}, (-800.0, 800.0), 2.0, id="apo_zero has a ceiling"),
        pytest.param("ipo", {}, (1e200, 0.0), math.inf, id="ipo overflows"),
        pytest.param("discopop", {}, (-1e4, 0.0), 1e4, id="discopop, tau below 1: -z"),
        pytest.param("discopop", {"tau": 1.0}, (-1e4, 0.0), 10_001.0, id="discopop, tau 1: 1 - z"),
        pytest.param("discopop", {"tau": 2.0}, (-1e4, 0.0), math.inf, id="discopop, tau above 1"),
        pytest.param("sigmoid", FORWARD, (-708.0, 0.0), math.expm1(708.0), id="forward_kl: last"),
        pytest.param("sigmoid", FORWARD, (-710.0, 0.0), math.inf, id="forward_kl: chosen -inf"),
        pytest.param("sigmoid", FORWARD, (0.0, -710.0), 0.0, id="forward_kl: rejected -inf"),
        pytest.param("hinge", FORWARD, (0.0, -710.0), 0.0, id="hinge of an infinite margin"),
        pytest.param("orpo_odds_ratio", {}, (0.0, -1.0), 0.0, id="odds: chosen certain"),
        pytest.param("orpo_odds_ratio", {}, (-1.0, 0.0), math.inf, id="odds: rejected certain"),
        pytest.param("orpo", {}, (-1.0, 0.0), math.inf, id="orpo: rejected certain"),
        pytest.param("alphapo", {"alpha": 1.0}, (-800.0, -1.0), math.inf, id="alphapo overflows"),
    ],
)  # fmt: skip
def test_limit(loss, args, scores, expected):
    assert losses_at([scores], loss, args) == [pytest.approx(expected, rel=1e-15)]


@pytest.mark.repeats  # each loss at one of both limits
@EACH_LOSS
@pytest.mark.parametrize("largest", [2.0**22, 1e300])
def test_finite_log_ratios_never_give_nan(loss, largest):
    values = (-largest, -1e4, -1e-300, 0.0, *([1e4, largest] if subtracts(loss, {}) else []))
    certain = {(0.0, 0.0)} if loss.startswith("orpo") else set()  # odds of infinity to infinity
    for args in ({}, *ARGUMENTS[loss]):
        if is_curved(args):
            continue  # scores that overflow are below
        pairs = [(c, r) for c in values for r in values if (c, r) not in certain]
        assert not any(math.isnan(value) for value in losses_at(pairs, loss, args)), args


@pytest.mark.parametrize(
    ("loss", "args", "scores", "expected"),
    [
        ("robust", {}, (-math.inf, 0.0), math.inf),
        ("robust", FORWARD, (-710.0, 0.0), math.inf),
        ("robust", FORWARD, (0.0, -710.0), 0.0),
        ("exo_pair", FORWARD, (-710.0, 0.0), -math.log(1e-3)),
        ("exo_pair", FORWARD, (0.0, -710.0), -math.log1p(-1e-3)),
        ("discopop", FORWARD, (-710.0, 0.0), math.inf),
        ("discopop", {**FORWARD, "tau": 1.0}, (-710.0, 0.0), math.inf),
    ],
)
def test_no_nan_from_one_score_that_overflows(loss, args, scores, expected):
    assert losses_at([scores], loss, args, 1.0) == [pytest.approx(expected)]


@pytest.mark.parametrize(
    ("loss", "args", "scores", "beta"),
    [
        pytest.param("sigmoid", FORWARD, (-800.0, -900.0), 1.0, id="both scores overflow"),
        pytest.param("sigmoid", SQUARED, (800.0, 900.0), 1.0, id="both scores overflow upwards"),
        pytest.param("alphapo", {"alpha": 1.0}, (-800.0, -900.0), 1.0, id="both rewards overflow"),
        pytest.param("sigmoid", FORWARD, (-710.0, 0.0), 0.0, id="beta 0 times inf"),
        pytest.param("orpo", {}, (-1.0, 0.0), 0.0, id="beta 0 times infinite odds"),
    ],
)
def test_two_infinities_are_nan_and_never_a_tie(loss, args, scores, beta):
    (value,) = losses_at([scores], loss, args, beta)
    assert math.isnan(value)


FALLS = {
    "ipo": set(),  # rises beyond 1/(2 beta)
    "exo_pair": set(),  # rises beyond log((1-e)/e)
    "nca_pair": {"rejected"},  # rises with a chosen reward above log 2
    "sppo_hard": set(),  # rises beyond 1/(2 beta) on either side
    "apo_down": {"rejected"},  # pushes the chosen reward down too
    "discopop": set(),  # has a bump, near 0
    "wpo": {"rejected"},  # weighs more where the policy is likelier to write the pair
}
"""Sides on which a loss never rises with the margin (chosen score up, rejected score down), where
it is not both."""


@EACH_LOSS
def test_loss_never_rises_with_the_margin_just_where_said(loss):
    shift = 41.0 if loss in NO_REFERENCE else 0.0
    grid = [i / 4.0 for i in range(-160, 161)]
    lines = [(side, other) for other in (-7.5, 0.0, 7.5) for side in ("chosen", "rejected")]
    along = [(x, other) if side == "chosen" else (other, -x) for side, other in lines for x in grid]
    values = losses_at([(c - shift, r - shift) for c, r in along], loss)
    rises = set()
    for i, (side, _) in enumerate(lines):
        found = values[i * len(grid) : (i + 1) * len(grid)]
        if any(b > a + 1e-12 * abs(a) for a, b in pairwise(found)):
            rises.add(side)
    assert {"chosen", "rejected"} - rises == FALLS.get(loss, {"chosen", "rejected"})


WHOLE = [(c / 8.0, r / 8.0) for c in range(-400, 0, 37) for r in range(-400, 0, 41)]


def of_log_ratios(loss, args):
    return subtracts(loss, args) and loss != "wpo"


@EACH_LOSS
def test_shifting_policy_and_reference_of_a_completion_alike_changes_nothing(loss):
    pairs = table(WHOLE, reference=True, tokens=COUNTS)
    chosen, rejected = (
        pairs.with_columns(pl.col(c, r) - 13.375) for c, r in (LOGPS[::2], LOGPS[1::2])
    )
    for args in each_of(loss, of_log_ratios):
        found = losses_of(pl.concat([pairs, chosen, rejected]), loss, args)
        assert found == found[: len(WHOLE)] * 3, args


ODDS_AND_SFT = {"sft": 1.0, "orpo_odds_ratio": 1.0}


@pytest.mark.parametrize(
    ("loss", "args", "same_loss", "same_args"),
    [
        pytest.param("sigmoid", {"label_smoothing": 0.0}, "sigmoid", {}, id="cDPO without noise"),
        pytest.param("robust", {"label_smoothing": 0.0}, "sigmoid", {}, id="robust without noise"),
        pytest.param("dpop", {"penalty": 0.0}, "sigmoid", {}, id="dpop without penalty"),
        pytest.param("rdpo", {"length_penalty": 0.0}, "sigmoid", {}, id="rdpo without penalty"),
        pytest.param("odpo", {}, "sigmoid", {}, id="odpo of offset 0"),
        pytest.param("soft_labels", {}, "sigmoid", {}, id="soft_labels of p 1"),
        pytest.param("sigmoid_norm", {}, "sigmoid", {}, id="sigmoid_norm of 1 token"),
        pytest.param("sigmoid", {"per_token": True}, "sigmoid", {}, id="per_token of 1"),
        pytest.param("sigmoid", {**ALPHA, "f_alpha": 1.0}, "sigmoid", {}, id="f_alpha 1"),
        pytest.param("sigmoid", {**ALPHA, "f_alpha": 0.0}, "sigmoid", FORWARD, id="f_alpha 0"),
        pytest.param("cpo", {}, "sigmoid", *FREE, id="cpo is reference-free"),
        pytest.param("cpo_hinge", {}, "hinge", *FREE, id="cpo_hinge is reference-free"),
        pytest.param("cpo", {}, "sigmoid", {}, id="cpo, references of 0"),
        pytest.param("simpo", {"gamma": 0.0}, "sigmoid", {}, id="simpo of 1 token, gamma 0"),
        pytest.param("alphapo", {"alpha": 0.0}, "simpo", {}, id="alphapo at alpha 0"),
        pytest.param("orpo", {}, ODDS_AND_SFT, {}, id="orpo is a sum"),
    ],
)  # fmt: skip
def test_neutral_arguments_give_a_known_loss(loss, args, same_loss, same_args):
    pairs = table(WHOLE, reference=False).with_columns(pl.col(LOGPS[2:]) * 0.0)
    # A power of 2, so that beta (c - r) is beta c - beta r to the last bit.
    assert losses_of(pairs, loss, args, 0.125) == losses_of(pairs, same_loss, same_args, 0.125)


HALF = {"label_smoothing": 0.5}


@pytest.mark.parametrize(("loss", "args"), [("sigmoid", HALF), ("exo_pair", HALF)])
def test_swapping_sides_changes_nothing_if_half_the_labels_are_wrong(loss, args):
    swapped = losses_at([(r, c) for c, r in WHOLE], loss, args)
    assert swapped == pytest.approx(losses_at(WHOLE, loss, args), rel=1e-14)


OF_MARGIN = ("sigmoid", "robust", "hinge", "ipo", "exo_pair", "discopop", "rdpo")


@pytest.mark.parametrize("loss", [*OF_MARGIN, "bco_pair", "sppo_hard", "apo_zero"])
def test_swapping_sides_and_models_changes_nothing(loss):
    swapped = losses_at([(-r, -c) for c, r in WHOLE], loss)
    assert swapped == pytest.approx(losses_at(WHOLE, loss), rel=1e-14)


STEP = 2.0**-12


@pytest.mark.parametrize("z", [-700.0, -20.0, -1.0, -0.125, 0.0, 0.5, 2.0, 20.0])
def test_slope_of_dpo_is_minus_the_weight_of_the_wrong_order(z):
    below, above = losses_at([(z - STEP, 0.0), (z + STEP, 0.0)], "sigmoid")
    slope = (above - below) / (2.0 * STEP)
    assert slope == pytest.approx(-1.0 / (1.0 + math.exp(z)), rel=1e-6, abs=1e-12)


# Values to 1e-12 are above; with arguments the slopes only repeat them.
@pytest.mark.parametrize("is_given", [False, pytest.param(True, marks=pytest.mark.slow)])
@EACH_LOSS
def test_slopes_equal_those_of_the_formula(loss, is_given):
    for args in each_of(loss, lambda *case: of_log_ratios(*case) or not subtracts(*case)):
        if bool(args) == is_given:
            slopes_equal_those_of_the_formula(loss, args)


def slopes_equal_those_of_the_formula(loss, args):
    at = [(-3.0, -5.5), (-0.75, -0.25), (-8.0, -1.5)]  # no kink of hinge (z = 1) or dpop (c = 0)
    steps = [(STEP, 0.0), (-STEP, 0.0), (0.0, STEP), (0.0, -STEP)]
    beside = iter(losses_at([(c + i, r + j) for c, r in at for i, j in steps], loss, args))

    def exact(c, r):
        return mpmath.fsum(exact_terms(loss, args, 1.0, c, r, 0.0, 0.0, (1, 1)))

    for point in at:
        for order in ((1, 0), (0, 1)):
            slope = (next(beside) - next(beside)) / (2.0 * STEP)
            with mpmath.workdps(40):
                expected = float(mpmath.diff(exact, point, order))
            assert slope == pytest.approx(expected, rel=1e-5, abs=1e-6)


def columns_used(loss, args):
    if loss == "sft":
        return {LOGPS[0], TOKENS[0]}
    counted = loss in PER_TOKEN or loss in {"rdpo", "wpo"} or args.get("per_token", False)
    extra = {"odpo": EXTRAS[:1], "soft_labels": EXTRAS[1:]}.get(loss, ())
    return {*LOGPS[: 4 if subtracts(loss, args) else 2], *(TOKENS if counted else ()), *extra}


@EACH_LOSS
def test_null_and_nan_propagate_from_every_column_that_is_used(loss):
    for args in each_of(loss):
        null_and_nan_propagate(loss, args)


def null_and_nan_propagate(loss, args):
    clean = table([(-3.0, -5.5)], reference=subtracts(loss, args))
    columns = [*LOGPS, *TOKENS, *EXTRAS]
    odd = [clean, *(clean.with_columns(pl.lit(None, t).alias(c)) for c, t in clean.schema.items())]
    odd += [clean.with_columns(pl.lit(math.nan).alias(name)) for name in LOGPS]
    found = losses_of(pl.concat(odd), loss, args)
    assert math.isfinite(found[0])
    used = columns_used(loss, args)
    for name, of_null in zip(columns, found[1:9], strict=True):
        assert of_null == (None if name in used else found[0]), (args, name)
    for name, of_nan in zip(LOGPS, found[9:], strict=True):
        assert math.isnan(of_nan) if name in used else of_nan == found[0], (args, name)


@pytest.mark.parametrize("x", [-1e-12, -1e-6, -1e-3, -0.5, -0.69, -0.7, -1.0, -5.0, -20.0, -36.0])
def test_one_minus_a_probability_keeps_its_digits_on_both_sides_of_a_half(x):
    """Where its two forms are exchanged, each loses digits: 3 of them at -30, and all at -1e-12."""
    found = pl.select(log1mexp(pl.lit(x))).item()
    with mpmath.workdps(40):
        expected = float(mpmath.log(-mpmath.expm1(x)))
    assert found == pytest.approx(expected, rel=4e-16, abs=0.0)
