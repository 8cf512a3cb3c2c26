"""What is computed: arguments, needs, sums of losses, dialects; and a loss of one's own."""

from __future__ import annotations

import json
import math
import random
from fractions import Fraction
from types import MappingProxyType

import polars as pl
import pyarrow.parquet as pq
import pytest

from conftest import LOGPS
from dpo_pipeline import (
    ArgumentError,
    ColumnError,
    InvalidPairsError,
    UsageError,
    evaluate,
    score,
    score_parquet,
)
from dpo_pipeline.cli import listings as loss_list
from dpo_pipeline.cli.program import main
from dpo_pipeline.defaults import DIALECT_NAMES
from dpo_pipeline.evaluation import shards as shard_scoring
from dpo_pipeline.losses import catalogue as loss_catalogue, objective
from dpo_pipeline.losses.catalogue import LOSSES
from dpo_pipeline.losses.dialects import DIALECTS
from dpo_pipeline.losses.loss_row import Loss, Parameter
from dpo_pipeline.losses.objective import CheckedObjective

TOKENS = ("chosen_num_tokens", "rejected_num_tokens")
REFS = LOGPS[2:]


def minus_log_sigmoid(x):
    return max(-x, 0.0) + math.log1p(math.exp(-abs(x)))


@pytest.fixture
def counted(pairs):
    """Six pairs with token counts; log-ratios 1, -1, 1, 2, 5, -2 and 0, 1, 1, -3, -5, 8."""
    return pairs.with_columns(
        pl.Series(TOKENS[0], [2, 4, 5, 10, 4, 7]), pl.Series(TOKENS[1], [4, 2, 5, 5, 8, 14])
    )


@pytest.fixture
def source(tmp_path, counted):
    path = tmp_path / "pairs.parquet"
    counted.write_parquet(path)
    return str(path)


# ---------------------------------------------------------------------------------- arguments

NO_NUMBERS = (math.nan, math.inf, -math.inf, True, False, "0.1", None, [0.1], 1j)

RANGES = {
    # loss, argument: values that it can have, values that it cannot
    ("sigmoid", "label_smoothing"): ((0, 0.25, 0.5), (-1e-9, 0.5000001, 1)),
    ("sigmoid_norm", "label_smoothing"): ((0, 0.25, 0.5), (-1e-9, 0.5000001, 1)),
    ("robust", "label_smoothing"): ((0, 0.25, 0.4999), (-1e-9, 0.5, 1)),
    ("exo_pair", "label_smoothing"): ((1e-12, 0.25, 0.5), (0, -0.1, 0.5000001)),
    ("bco_pair", "baseline"): ((-3, 0, 1e6), ()),
    ("discopop", "tau"): ((1e-9, 0.05, 100), (0, -0.0, -1)),
    ("dpop", "penalty"): ((0, 50, 1e6), (-1e-9,)),
    ("rdpo", "length_penalty"): ((0, 0.01, 3), (-1e-9,)),
    ("cpo", "label_smoothing"): ((0, 0.25, 0.5), (-1e-9, 0.5000001, 1)),
    ("simpo", "gamma"): ((0, 0.5, 10), (-1e-9,)),
    ("simpo", "label_smoothing"): ((0, 0.25, 0.5), (-1e-9, 0.5000001, 1)),
    ("alphapo", "gamma"): ((0, 0.5, 10), (-1e-9,)),
    ("alphapo", "alpha"): ((-2, 0, 0.25, 2), ()),
    ("aot", "label_smoothing"): ((0, 0.25, 0.5), (-1e-9, 0.5000001, 1)),
    ("aot_unpaired", "label_smoothing"): ((0, 0.25, 0.5), (-1e-9, 0.5000001, 1)),
}


def test_the_ranges_are_those_of_every_parameter():
    assert set(RANGES) == {(loss.name, p.name) for loss in LOSSES.values() for p in loss.parameters}


def test_defaults_are_those_of_the_sources():
    other_than_0 = {
        ("exo_pair", "label_smoothing"): 1e-3,
        ("discopop", "tau"): 0.05,
        ("dpop", "penalty"): 50.0,
        ("simpo", "gamma"): 0.5,
        ("alphapo", "gamma"): 0.5,
    }
    for loss, name in RANGES:
        (term,) = CheckedObjective.of(loss).to_dict()["terms"]
        assert term[name] == other_than_0.get((loss, name), 0.0), (loss, name)


@pytest.mark.parametrize(("loss", "name"), RANGES)
def test_a_parameter_has_a_range(loss, name):
    inside, outside = RANGES[loss, name]
    for value in inside:
        (term,) = CheckedObjective.of(loss, loss_args={name: value}).to_dict()["terms"]
        assert term[name] == value
    for value in (*outside, *NO_NUMBERS):
        with pytest.raises(UsageError, match=rf"^{name} of {loss} must be a finite number.*found"):
            CheckedObjective.of(loss, loss_args={name: value})


def test_a_range_is_said_in_words():
    for loss, name, said in (
        ("robust", "label_smoothing", "a finite number at least 0 and below 0.5, found 0.5"),
        ("exo_pair", "label_smoothing", "a finite number above 0 and at most 0.5, found 0.0"),
        ("discopop", "tau", "a finite number above 0, found 0.0"),
        ("bco_pair", "baseline", "a finite number, found inf"),
    ):
        value = float(said.rsplit(" ", 1)[1])
        with pytest.raises(UsageError) as caught:
            CheckedObjective.of(loss, loss_args={name: value})
        assert str(caught.value) == f"{name} of {loss} must be {said}"


@pytest.mark.parametrize(
    ("call", "said"),
    [
        pytest.param({"loss": "sigmod"}, r"no 'sigmod' \(did you mean 'sigmoid'\?\)", id="typo"),
        pytest.param({"loss": "xyz"}, "no 'xyz'; the losses are sigmoid, sigmoid_norm", id="far"),
        pytest.param({"loss": "IPO"}, "there is no 'IPO'", id="case"),
        pytest.param({"loss": {"sigmoid": 1, "hinje": 1}}, "did you mean 'hinge'", id="second"),
        pytest.param({"loss": {5: 1.0}}, "there is no 5", id="name"),
        pytest.param({"loss": {}}, "loss must be a name, or names with weights", id="empty"),
        pytest.param({"loss": ["ipo"]}, r"names with weights, found \['ipo'\]", id="list"),
        pytest.param({"loss": None}, "names with weights, found None", id="None"),
        pytest.param({"dialect": "trll"}, r"dialect.*did you mean 'trl'\?", id="dialect"),
        pytest.param({"dialect": "x"}, "the dialects are trl, dpo-paper, rewardbench", id="x"),
        pytest.param({"dialect": 5}, "dialect: there is no 5", id="dialect of 5"),
        pytest.param(
            {"loss_args": {"label_smothing": 0.1}},
            r"sigmoid has no 'label_smothing' \(did you mean 'label_smoothing'\?\); it takes "
            "f_alpha, f_divergence, label_smoothing, per_token, reference_free",
            id="argument",
        ),
        pytest.param({"loss_args": {"beta": 0.1}}, "sigmoid has no 'beta'", id="beta"),
        pytest.param(
            {"loss": {"ipo": 1, "hinge": 1}, "loss_args": {"tau": 1.0}},
            "ipo and hinge has no 'tau'",
            id="of no term",
        ),
        pytest.param(
            {"loss": "sft", "loss_args": {"gamma": 1.0}}, "sft has no 'gamma'; it takes none", id=""
        ),
        pytest.param({"loss_args": 5}, "must map argument names to values, found 5", id="args"),
        pytest.param({"loss_args": {1: 2}}, "must map argument names to values", id="key"),
        pytest.param({"loss_args": [("tau", 1)]}, "must map argument names", id="list of args"),
    ],
)
def test_what_there_is_not_is_said(pairs, call, said):
    for run in (score, evaluate):
        with pytest.raises(UsageError, match=said):
            run(pairs, **call)


@pytest.mark.parametrize("weight", [0, 0.0, -1, math.nan, math.inf, -math.inf, True, "1", None])
def test_weights_are_above_0(weight):
    with pytest.raises(UsageError, match="the weight of hinge must be"):
        CheckedObjective.of({"sigmoid": 1.0, "hinge": weight})


@pytest.mark.parametrize(
    "call",
    [
        pytest.param({"loss_args": {"label_smoothing": 10**400}}, id="parameter"),
        pytest.param({"loss": {"sigmoid": 10**400}}, id="weight"),
        pytest.param(
            {"loss_args": {"f_divergence": "alpha_divergence", "f_alpha": 10**400}}, id="a"
        ),
        pytest.param({"beta": 10**400}, id="beta"),
        pytest.param({"dialect": ["trl"]}, id="unhashable dialect"),
        pytest.param({"loss_args": {"f_divergence": ["reverse_kl"]}}, id="unhashable divergence"),
    ],
)
def test_odd_values_are_usage_errors_too(call):
    with pytest.raises(UsageError):
        CheckedObjective.of(**call)


REFERENCE = {
    "optional": {
        *("sigmoid", "sigmoid_norm", "robust", "hinge", "ipo", "exo_pair", "nca_pair", "bco_pair"),
        *("sppo_hard", "apo_zero", "apo_down", "discopop", "rdpo"),
    },
    "never": {"cpo", "cpo_hinge", "simpo", "alphapo", "orpo", "orpo_odds_ratio", "sft"},
    "always": {"dpop", "aot", "aot_unpaired", "kto_pair", "bco_pair_running"},
}
PER_TOKEN_IF_ASKED = {"sigmoid", "robust", "hinge", "ipo", "exo_pair", "discopop"}
NEED_COUNTS = {"sigmoid_norm", "rdpo", "simpo", "alphapo", "orpo", "orpo_odds_ratio", "sft"}
DIVERGENT = REFERENCE["optional"] - {"apo_zero", "apo_down", "rdpo"}
OF_BATCHES = {"aot", "aot_unpaired", "kto_pair", "bco_pair_running"}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("argument", "value", "takers"),
    [
        pytest.param("reference_free", True, REFERENCE["optional"], id="reference_free"),
        pytest.param("per_token", True, PER_TOKEN_IF_ASKED, id="per_token"),
        pytest.param("f_divergence", "js_divergence", DIVERGENT, id="f_divergence"),
    ],
)
def test_which_losses_take_the_arguments_of_scores(loss, argument, value, takers):
    if loss in takers:
        (term,) = CheckedObjective.of(loss, loss_args={argument: value}).to_dict()["terms"]
        assert term[argument] == value
    else:
        with pytest.raises(UsageError, match=f"{loss} has no '{argument}'"):
            CheckedObjective.of(loss, loss_args={argument: value})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param({"reference_free": 1}, "reference_free.*True or False, found 1", id="free 1"),
        pytest.param({"reference_free": "yes"}, "must be True or False, found 'yes'", id="yes"),
        pytest.param({"per_token": None}, "per_token of sigmoid must be True or False", id="None"),
        pytest.param({"per_token": 0.0}, "must be True or False, found 0.0", id="token 0"),
        pytest.param(
            {"f_divergence": "kl"},
            "must be one of reverse_kl, forward_kl, js_divergence, alpha_divergence, found 'kl'",
            id="divergence",
        ),
        pytest.param({"f_divergence": None}, "f_divergence.*found None", id="no divergence"),
        pytest.param({"f_alpha": 0.5}, "f_alpha goes with f_divergence='alpha_div", id="alone"),
        pytest.param(
            {"f_alpha": 0.5, "f_divergence": "forward_kl"}, "f_alpha goes with", id="with another"
        ),
        *(
            pytest.param(
                {"f_alpha": value, "f_divergence": "alpha_divergence"},
                "f_alpha of sigmoid must be a number within 100, found",
                id=f"alpha {value}",
            )
            for value in (math.nan, math.inf, -math.inf, 100.1, -101, True, "0.5", None)
        ),
        *(
            pytest.param(
                {"reference_free": True, "f_divergence": name},
                "an f-divergence is one from the reference",
                id=f"free {name}",
            )
            for name in ("forward_kl", "js_divergence", "alpha_divergence")
        ),
    ],
)
def test_arguments_of_scores_are_checked(arguments, said):
    with pytest.raises(UsageError, match=said):
        CheckedObjective.of("sigmoid", loss_args=arguments)


def test_reverse_kl_goes_with_everything():
    made = CheckedObjective.of("sigmoid", loss_args={"reference_free": True, "f_divergence": "reverse_kl"})
    assert made.terms[0].basis == CheckedObjective.of("cpo").terms[0].basis


@pytest.mark.parametrize("alpha", [-100, 0, 1, 100])
def test_f_alpha_has_its_range(alpha):
    made = CheckedObjective.of(loss_args={"f_divergence": "alpha_divergence", "f_alpha": alpha})
    assert made.to_dict()["terms"][0]["f_alpha"] == alpha


LOG_2 = math.log(2)
AT_BETA_0 = {
    # By hand, all rewards and margins being 0: policy log-probs -20 and -22, 2 and 4 tokens.
    "sigmoid": LOG_2,
    "sigmoid_norm": LOG_2,
    "robust": LOG_2,
    "hinge": 1.0,
    "exo_pair": -LOG_2 - 0.5 * (math.log(0.999) + math.log(0.001)),
    "nca_pair": 2 * LOG_2,
    "bco_pair": 2 * LOG_2,
    "apo_zero": 1.0,
    "apo_down": 1.0,
    "discopop": 0.5 * LOG_2 + 0.5,
    "dpop": LOG_2,
    "rdpo": LOG_2,
    "cpo": LOG_2,
    "cpo_hinge": 1.0,
    "simpo": math.log(1 + math.exp(0.5)),
    "alphapo": math.log(1 + math.exp(0.5)),
    "orpo": 10.0,
    "orpo_odds_ratio": 0.0,
    "sft": 10.0,
    "aot": LOG_2,
    "aot_unpaired": LOG_2,
    "kto_pair": 0.5,
    "bco_pair_running": 2 * LOG_2,
}


@pytest.mark.parametrize("loss", LOSSES)
def test_beta_0_is_for_losses_that_do_not_divide_by_it(counted, loss):
    size = {"batch_size": 1} if loss in OF_BATCHES else {}
    if loss in AT_BETA_0:
        first = score(counted, 0.0, loss=loss, **size).collect()["loss"][0]
        assert first == pytest.approx(AT_BETA_0[loss], rel=1e-14)
    else:
        assert loss in {"ipo", "sppo_hard"}
        for several in (loss, {"sigmoid": 1.0, loss: 0.5}):
            with pytest.raises(ArgumentError, match=f"beta must be above 0 for {loss}, which div"):
                score(counted, 0.0, loss=several)


@pytest.mark.parametrize("beta", [-1e-9, math.nan, math.inf, True, "0.1", [0.1]])
def test_beta_is_checked_with_every_loss(beta):
    for loss in ("sigmoid", "ipo", {"sft": 1.0}):
        with pytest.raises(ArgumentError, match="^beta must be"):
            CheckedObjective.of(loss, beta)


@pytest.mark.parametrize("loss", sorted(OF_BATCHES))
def test_a_loss_of_batches_asks_for_their_size(counted, source, engine, loss):
    for run in (
        lambda: score(counted, loss=loss),
        lambda: evaluate(source, loss={"sigmoid": 1.0, loss: 1.0}),
        lambda: evaluate(source, loss=loss, batch_by="subset"),
    ):
        with pytest.raises(UsageError, match=r"is a loss of batches: give batch_size"):
            run()
    assert engine.graphs == []


# -------------------------------------------------------------------------------------- needs

FREE = [
    # By hand, beta 0.1: the policy's log-probs of the first pair are -20 and -22, and their
    # means over 2 and 4 tokens -10 and -5.5.
    pytest.param("cpo", {}, -2.0, -2.2, minus_log_sigmoid(0.2), id="cpo"),
    pytest.param("cpo_hinge", {}, -2.0, -2.2, 0.8, id="cpo_hinge"),
    pytest.param("simpo", {}, -1.0, -0.55, minus_log_sigmoid(-0.95), id="simpo"),
    pytest.param("sft", {}, -1.0, -0.55, 10.0, id="sft"),
    pytest.param(
        "sigmoid", {"reference_free": True}, -2.0, -2.2, minus_log_sigmoid(0.2), id="sigmoid"
    ),
    pytest.param(
        "hinge", {"reference_free": True, "per_token": True}, -1.0, -0.55, 1.45, id="hinge"
    ),
    pytest.param("ipo", {"reference_free": True}, -2.0, -2.2, 9.0, id="ipo"),
    pytest.param(
        *({"simpo": 2.0, "sft": 1.0}, {}, -1.0, -0.55, 2 * minus_log_sigmoid(-0.95) + 10),
        id="sum",
    ),
]


@pytest.mark.parametrize(("loss", "arguments", "chosen", "rejected", "value"), FREE)
def test_a_reference_free_loss_needs_no_reference(
    counted, tmp_path, loss, arguments, chosen, rejected, value
):
    bare = counted.drop(REFS)
    call = {"loss": loss, "loss_args": arguments}
    scored = score(bare, **call).collect()
    first = scored.row(0, named=True)
    assert [first[n] for n in ("chosen_reward", "rejected_reward", "reward_margin", "loss")] == (
        pytest.approx([chosen, rejected, chosen - rejected, value], rel=1e-13)
    )
    alone = evaluate(bare.head(1), **call).summary
    assert [alone.chosen_reward, alone.rejected_reward, alone.reward_margin, alone.loss] == (
        pytest.approx([chosen, rejected, chosen - rejected, value], rel=1e-11)
    )
    whole = evaluate(bare, **call)
    assert whole.summary.n_valid == 6
    assert whole.summary.policy_chosen_logps == pytest.approx(-271 / 6)
    assert (whole.summary.ref_chosen_logps, whole.summary.ref_rejected_logps) == (None, None)
    assert not set(REFS) & set(whole.columns)
    bare.write_parquet(tmp_path / "bare.parquet")
    score_parquet(tmp_path / "bare.parquet", tmp_path / "scored.parquet", **call)
    assert pl.read_parquet(tmp_path / "scored.parquet").equals(scored)


@pytest.mark.parametrize(("loss", "arguments"), [p.values[:2] for p in FREE])
def test_it_does_not_judge_a_reference_that_is_there(counted, tmp_path, loss, arguments):
    call = {"loss": loss, "loss_args": arguments}
    odd = counted.with_columns(
        pl.Series(REFS[0], [None, math.nan, 5.0, math.inf, -1e9, -1.0]),
        pl.Series(REFS[1], ["none", "of", "this", "is", "a", "number"]),
        pl.lit("x").alias("reference_chosen_logps"),  # an alias, which two columns now have
    )
    whole = evaluate(odd, **call)
    assert whole.summary == evaluate(counted.drop(REFS), **call).summary
    assert (whole.summary.n_invalid, whole.warnings) == (0, ())
    odd.write_parquet(tmp_path / "odd.parquet")
    score_parquet(tmp_path / "odd.parquet", tmp_path / "scored.parquet", **call)
    # They are like any other column: carried as they are, under their names.
    carried = pl.read_parquet(tmp_path / "scored.parquet")
    assert carried.select(odd.columns).equals(odd)


def test_a_reference_that_is_equal_to_the_policy_is_no_fault_without_one(counted):
    same = counted.with_columns(pl.col(p).alias(r) for p, r in zip(LOGPS[:2], REFS, strict=True))
    with pytest.warns(UserWarning, match="policy and reference log-probs are equal"):
        evaluate(same)
    assert evaluate(same, loss="cpo").warnings == ()


@pytest.mark.parametrize("loss", sorted(REFERENCE["optional"] | REFERENCE["always"]))
def test_any_other_loss_needs_its_reference(counted, loss):
    size = {"batch_size": 2} if loss in OF_BATCHES else {}
    for run in (score, evaluate):
        for several in (loss, {"sft": 1.0, loss: 1.0}):
            with pytest.raises(ColumnError, match="ref_rejected_logps: missing"):
                run(counted.drop(REFS[1]), loss=several, **size)
    broken = counted.with_columns(pl.Series(REFS[0], [None, math.nan, 5.0, -1, -1, -1]))
    with pytest.raises(InvalidPairsError) as caught:
        evaluate(broken, loss=loss, **size)
    assert [(r.name, r.count) for r in caught.value.report.broken] == [
        ("ref_chosen_logps.not_null", 1),
        ("ref_chosen_logps.not_nan", 1),
        ("ref_chosen_logps.at_most", 1),
    ]


COUNTING = [
    *(pytest.param(loss, {}, id=loss) for loss in sorted(NEED_COUNTS)),
    *(
        pytest.param(x, {"per_token": True}, id=f"{x} per_token")
        for x in sorted(PER_TOKEN_IF_ASKED)
    ),
    pytest.param({"sigmoid": 1.0, "sft": 0.1}, {}, id="sum"),
]


@pytest.mark.parametrize(("loss", "arguments"), COUNTING)
def test_missing_token_counts_are_said_before_any_data_is_read(
    counted, tmp_path, engine, loss, arguments
):
    call = {"loss": loss, "loss_args": arguments}
    path, out = tmp_path / "bare.parquet", tmp_path / "scored.parquet"
    counted.drop(TOKENS[1]).write_parquet(path)
    engine.graphs.clear()
    for run in (
        lambda: score(pl.scan_parquet(path), **call),
        lambda: evaluate(str(path), **call),
        lambda: score_parquet(str(path), out, **call),
    ):
        with pytest.raises(ColumnError) as caught:
            run()
        (problem,) = caught.value.problems
        assert problem.startswith("rejected_num_tokens: missing; if it has another name, map it")
    assert engine.graphs == []
    assert not out.exists()


def test_the_engine_would_have_seen_a_reading(source, engine):
    evaluate(source, loss="sft")
    assert engine.data_scans == 1


@pytest.mark.parametrize(("loss", "arguments"), COUNTING)
def test_null_and_zero_counts_are_invalid_pairs(counted, loss, arguments):
    odd = counted.with_columns(
        pl.Series(TOKENS[0], [None, 4, 5, 10, 4, 7]), pl.Series(TOKENS[1], [4, 2, 0, -3, None, 14])
    )
    call = {"loss": loss, "loss_args": arguments}
    with pytest.raises(InvalidPairsError) as caught:
        evaluate(odd, **call)
    found = {r.name: [(o.row, o.value) for o in r.offenders] for r in caught.value.report.broken}
    assert found == {
        "chosen_num_tokens.not_null": [(0, None)],
        "rejected_num_tokens.not_null": [(4, None)],
        "rejected_num_tokens.at_least": [(2, 0), (3, -3)],
    }
    left = evaluate(odd, on_invalid="exclude", **call).summary
    sound = evaluate(counted[[1, 5]], **call).summary
    assert left.n_invalid == 4
    assert left.loss == sound.loss
    assert left.reward_margin == sound.reward_margin


def test_a_null_count_is_no_fault_where_nothing_divides_by_it(counted):
    odd = counted.with_columns(pl.Series(TOKENS[0], [None, 4, 5, 10, 4, 7]))
    assert evaluate(odd).summary == evaluate(counted).summary
    assert evaluate(counted.drop(TOKENS)).summary == evaluate(counted).summary
    # `score` judges no rows: null gives null.
    assert score(odd, loss="sft").collect()["loss"].to_list()[:2] == [None, 7.75]


@pytest.mark.parametrize("loss", sorted(set(LOSSES) - NEED_COUNTS))
def test_any_other_loss_needs_no_counts(pairs, loss):
    size = {"batch_size": 2} if loss in OF_BATCHES else {}
    assert evaluate(pairs, loss=loss, **size).summary.n_valid == 6


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


def rdpo(s, t, n, m):
    return minus_log_sigmoid(BETA * (s - t) + 0.02 * (n - m))


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
    "rdpo": ("rdpo", {"length_penalty": 0.02}, of_sums, rdpo),
}


@pytest.fixture(scope="module")
def counted_real(real_pairs):
    """698 real pairs with counts made up from nothing but the row number, and as plain rows."""
    rng = random.Random(7)
    frame = real_pairs.with_columns(
        pl.Series(name, [rng.randint(3, 300) for _ in range(real_pairs.height)]) for name in TOKENS
    )
    return frame, frame.select(*LOGPS, *TOKENS).rows()


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


@pytest.mark.parametrize(
    ("loss", "arguments", "scores", "of_scores"), FIGURES.values(), ids=FIGURES
)
def test_figures_equal_plain_python(counted_real, loss, arguments, scores, of_scores):
    frame, rows = counted_real
    expected = plain_figures(rows, scores, of_scores)
    result = evaluate(frame, BETA, loss=loss, loss_args=arguments, on_invalid="exclude")
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
        evaluate(frame, BETA, loss_args={"f_divergence": "forward_kl"})
    assert {r.name: [o.row for o in r.offenders] for r in caught.value.report.broken} == {
        "chosen_reward.in_range": chosen,
        "rejected_reward.in_range": rejected,
        "loss.in_range": chosen,
    }


def test_figures_of_subsets_and_batches_are_of_the_loss_too(counted_real):
    frame, rows = counted_real
    result = evaluate(frame, loss="ipo", loss_args={"per_token": True}, by="turns", batch_size=100)
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
    single = {n: score(frame, loss=n, loss_args=of[n]).collect()["loss"].to_list() for n in weights}
    together = score(frame, loss=weights, loss_args=shared).collect()
    expected = [
        math.fsum(weight * single[name][i] for name, weight in weights.items()) for i in range(698)
    ]
    assert together["loss"].to_list() == pytest.approx(expected, rel=1e-14)
    summary = evaluate(frame, loss=weights, loss_args=shared).summary
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


def test_a_running_baseline_does_not_follow_the_rewards_of_another_loss(
    counted_real, tmp_path, monkeypatch
):
    # What a shard has to know of those before it is of the loss of batches, whatever is first.
    source = tmp_path / "real.parquet"
    counted_real[0].write_parquet(source)
    weights = {"sft": 2.0, "bco_pair_running": 1.0}
    single = [evaluate(source, loss=n, batch_size=10).summary.loss for n in weights]
    monkeypatch.setattr(shard_scoring, "COUPLED_SHARD_ROWS", 100)
    for order in (weights, dict(reversed(weights.items()))):
        found = evaluate(source, loss=order, batch_size=10).summary.loss
        assert found == pytest.approx(2.0 * single[0] + single[1], rel=1e-11)


def test_one_weight_scales_the_loss_and_not_the_rewards(counted):
    plain, scaled = score(counted).collect(), score(counted, loss={"sigmoid": 4.0}).collect()
    assert scaled["loss"].to_list() == [4.0 * value for value in plain["loss"]]
    assert scaled.drop("loss").equals(plain.drop("loss"))


def exact_mean(values):
    return sum(values, Fraction(0)) / len(values)


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
    one = {name: [0.0] for name in LOGPS} | {LOGPS[0]: [1.0 - value]}
    assert evaluate(one, 1.0, loss="hinge").summary.loss == value


# --------------------------------------------------------------------------------- non-finite


def by_rule(error):
    return {r.name: [(o.row, o.value) for o in r.offenders] for r in error.value.report.broken}


def test_a_loss_that_overflows_is_an_invalid_pair(counted):
    # Margins 0.1, -0.2, 0, 0.5, 1, -1, and one of -2000, where exp(-m) sigma(m/3) is exp(1333).
    odd = pl.concat([counted, counted.head(1).with_columns(pl.lit(-20_021.0).alias(LOGPS[0]))])
    call = {"loss": "discopop", "loss_args": {"tau": 3.0}}
    assert score(odd, **call).collect()["loss"][6] == math.inf
    with pytest.raises(InvalidPairsError) as caught:
        evaluate(odd, **call)
    assert by_rule(caught) == {"loss.in_range": [(6, math.inf)]}
    left = evaluate(odd, on_invalid="exclude", **call)
    assert (left.summary.n_valid, left.summary.n_invalid) == (6, 1)
    assert left.summary.loss == evaluate(counted, **call).summary.loss
    # The same pair has a loss by the default temperature, and by the DPO loss.
    assert evaluate(odd, loss="discopop").summary.n_valid == 7
    assert evaluate(odd).summary.n_valid == 7


def test_a_reward_that_overflows_is_an_invalid_pair(counted):
    # 1 - exp(800) is beyond Float64. With the chosen one the margin falls with it, and the loss;
    # with the rejected one the margin is inf and the loss 0; with both the margin is NaN.
    fallen = pl.lit(-801.0)
    rows = [
        counted.head(1).with_columns(
            *(fallen.alias(name) for name in names), *(pl.lit(-1.0).alias(n) for n in REFS)
        )
        for names in ([LOGPS[0]], [LOGPS[1]], LOGPS[:2])
    ]
    call = {"loss_args": {"f_divergence": "forward_kl"}}
    odd = pl.concat([counted.head(5), *rows])
    with pytest.raises(InvalidPairsError) as caught:
        evaluate(odd, **call)
    found = by_rule(caught)
    assert found["chosen_reward.in_range"] == [(5, -math.inf), (7, -math.inf)]
    assert found["rejected_reward.in_range"] == [(6, -math.inf), (7, -math.inf)]
    assert [row for row, _ in found["loss.in_range"]] == [5, 7]
    assert len(found) == 3
    left = evaluate(odd, on_invalid="exclude", **call).summary
    assert (left.n_valid, left.n_invalid) == (5, 3)
    sound = evaluate(counted.head(5), **call).summary
    assert (left.loss, left.reward_margin) == (sound.loss, sound.reward_margin)
    assert (left.chosen_reward, left.reward_accuracy) == (
        sound.chosen_reward,
        sound.reward_accuracy,
    )


@pytest.mark.parametrize("on_invalid", ["exclude", "quarantine"])
def test_such_pairs_do_not_reach_the_scored_file(counted, tmp_path, on_invalid):
    odd = counted.with_columns(
        pl.when(pl.col("pair_id") == "c").then(-20_021.0).otherwise(LOGPS[0]).alias(LOGPS[0])
    )
    odd.write_parquet(tmp_path / "odd.parquet")
    result = score_parquet(
        *(tmp_path / "odd.parquet", tmp_path / "s.parquet"),
        loss="discopop",
        loss_args={"tau": 3.0},
        on_invalid=on_invalid,
    )
    assert [(r.name, r.count) for r in result.invalid.broken] == [("loss.in_range", 1)]
    scored = pl.read_parquet(tmp_path / "s.parquet")
    assert scored["pair_id"].to_list() == ["a", "b", "d", "e", "f"]
    assert scored["loss"].is_finite().all()
    if on_invalid == "quarantine":
        apart = pl.read_parquet(tmp_path / "s.invalid.parquet")
        assert apart.select("pair_id", "broken_rules").rows() == [("c", ["loss.in_range"])]


def test_an_unsound_log_prob_is_named_and_not_the_loss_that_follows(counted):
    odd = counted.with_columns(pl.Series(LOGPS[0], [None, math.nan, -math.inf, -50, -60, -70]))
    with pytest.raises(InvalidPairsError) as caught:
        evaluate(odd, loss="ipo")
    assert set(by_rule(caught)) == {
        *(f"{LOGPS[0]}.{rule}" for rule in ("not_null", "not_nan", "finite")),
    }


# ---------------------------------------------------------------------------------- documents

DOCUMENTED = [
    pytest.param(
        {},
        {
            "beta": 0.1,
            "rewards": "score",
            "dialect": None,
            "ld_alpha": 1.0,
            "humanline": False,
            "terms": [
                {
                    "loss": "sigmoid",
                    "weight": 1.0,
                    "label_smoothing": 0.0,
                    "reference_free": False,
                    "per_token": False,
                    "f_divergence": "reverse_kl",
                }
            ],
        },
        "sigmoid",
        id="default",
    ),
    pytest.param(
        {
            "beta": 0.3,
            "loss": {"ipo": 0.5, "simpo": 1},
            "loss_args": {"gamma": 0.2},
            "dialect": "trl",
        },
        {
            "beta": 0.3,
            "rewards": "logratio",
            "dialect": "trl",
            "ld_alpha": 1.0,
            "humanline": False,
            "terms": [
                {
                    "loss": "ipo",
                    "weight": 0.5,
                    "reference_free": False,
                    "per_token": True,
                    "f_divergence": "reverse_kl",
                },
                {
                    "loss": "simpo",
                    "weight": 1.0,
                    "gamma": 0.2,
                    "label_smoothing": 0.0,
                    "reference_free": True,
                    "per_token": True,
                    "f_divergence": "reverse_kl",
                },
            ],
        },
        "0.5 ipo + simpo",
        id="sum in a dialect",
    ),
    pytest.param(
        {
            "beta": 0.5,
            "loss": "hinge",
            "loss_args": {"f_divergence": "alpha_divergence", "f_alpha": 0.25, "per_token": True},
        },
        {
            "beta": 0.5,
            "rewards": "score",
            "dialect": None,
            "ld_alpha": 1.0,
            "humanline": False,
            "terms": [
                {
                    "loss": "hinge",
                    "weight": 1.0,
                    "reference_free": False,
                    "per_token": True,
                    "f_divergence": "alpha_divergence",
                    "f_alpha": 0.25,
                }
            ],
        },
        "hinge",
        id="divergence",
    ),
]


@pytest.mark.parametrize(("call", "document", "title"), DOCUMENTED)
def test_every_output_says_the_objective_in_full(counted, source, tmp_path, call, document, title):
    scored, means, kept = (tmp_path / name for name in ("s.parquet", "m.parquet", "s.json"))
    result = score_parquet(source, scored, batch_size=2, batches=means, summary=kept, **call)
    # The files hold what `score` gives, bit for bit.
    beta = call.get("beta")
    rest = {name: value for name, value in call.items() if name != "beta"}
    assert pl.read_parquet(scored).equals(score(counted, beta, **rest).collect())
    for told in (json.loads(kept.read_text()), json.loads(result.to_json())):
        assert told["objective"] == document
        assert (told["loss"], told["beta"]) == (title, document["beta"])
    for path in (scored, means):
        facts = json.loads(pq.read_metadata(path).metadata[b"dpo_pipeline"])
        assert facts["objective"] == document
        assert (facts["loss"], facts["beta"]) == (title, document["beta"])
    assert result.objective.to_dict() == document
    assert f"{title} loss, beta {document['beta']:g}" in str(result)


def test_integers_and_floats_of_an_argument_are_one_document(source):
    documents = [
        evaluate(source, beta, loss={"hinge": weight, "bco_pair": 1}, loss_args=arguments).to_json()
        for beta, weight, arguments in ((1, 2, {"baseline": 3}), (1.0, 2.0, {"baseline": 3.0}))
    ]
    assert documents[0] == documents[1]


# ----------------------------------------------------------------------------------- dialects


def test_names_of_dialects_are_known_without_importing_them():
    assert tuple(DIALECTS) == DIALECT_NAMES == ("trl", "dpo-paper", "rewardbench")
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
    for key in system.refused:
        loss, dot, argument = key.rpartition(".")
        assert argument in (arguments_of(loss) if dot else every)
        assert not dot or argument not in system.refused


VALUES = {"reference_free": True, "per_token": True, "f_divergence": "js_divergence"}


@pytest.mark.parametrize(
    ("dialect", "loss", "argument"),
    [
        *(
            pytest.param(dialect, loss, key.rpartition(".")[2], id=f"{dialect} {loss} {key}")
            for dialect, system in DIALECTS.items()
            for key in system.refused
            for loss in LOSSES
            if key.rpartition(".")[0] in {"", loss} and key.rpartition(".")[2] in arguments_of(loss)
        )
    ],
)
def test_what_a_system_has_not_is_refused(dialect, loss, argument):
    given = {argument: VALUES.get(argument, 0.1)}
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
            score(counted, loss=loss, **call)
    plain = {**call, "dialect": None}
    ours = score(counted, loss="robust", **call).collect()
    assert ours.equals(score(counted, loss="robust", **plain).collect())


@pytest.mark.parametrize(
    ("dialect", "arguments", "expected"),
    [
        # By hand, the fifth pair: log-ratios 5 and -5, 4 and 8 tokens, 1 / (2 * 0.1) = 5.
        pytest.param("trl", {}, (5 / 4 + 5 / 8 - 5) ** 2, id="trl"),
        pytest.param("trl", {"per_token": False}, 25.0, id="trl, summed if asked"),
        pytest.param("dpo-paper", {}, 25.0, id="dpo-paper"),
        pytest.param(None, {}, 25.0, id="none"),
        pytest.param("rewardbench", {"per_token": True}, (15 / 8 - 0.5) ** 2, id="rewardbench"),
    ],
)
def test_ipo_by_dialect(counted, dialect, arguments, expected):
    scored = score(counted, loss="ipo", loss_args=arguments, dialect=dialect).collect()
    assert scored["loss"][4] == pytest.approx(expected, rel=1e-14)


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
    ours = score(counted, loss=loss, loss_args=arguments).collect()
    trl = score(counted, loss=loss, loss_args=arguments, dialect="trl").collect()
    assert trl["loss"].equals(ours["loss"])
    # By hand: 0.1 times the log-ratios of sums.
    chosen, rejected = [0.1, -0.1, 0.1, 0.2, 0.5, -0.2], [0.0, 0.1, 0.1, -0.3, -0.5, 0.8]
    assert trl["chosen_reward"].to_list() == pytest.approx(chosen, rel=1e-14)
    assert trl["rejected_reward"].to_list() == pytest.approx(rejected, rel=1e-14)
    assert not ours["rejected_reward"].equals(trl["rejected_reward"])
    figures = evaluate(counted, loss=loss, loss_args=arguments, dialect="trl").summary
    assert figures.reward_margin == pytest.approx(0.4 / 6 - 0.0, abs=1e-12)
    assert (figures.n_ties, figures.reward_accuracy) == (1, 0.5)
    assert figures.loss == evaluate(counted, loss=loss, loss_args=arguments).summary.loss


def test_rewards_of_a_loss_without_reference_are_the_policys_in_trl_too(counted):
    for loss in ("cpo", "simpo"):
        trl = score(counted, loss=loss, dialect="trl").collect()
        assert trl.equals(score(counted, loss=loss).collect())


def test_the_authors_code(counted):
    smoothed = score(counted, loss_args={"label_smoothing": 0.25}, dialect="dpo-paper").collect()
    # The fifth pair's margin is 1.
    expected = 0.75 * math.log(1 + math.exp(-1)) + 0.25 * math.log(1 + math.exp(1))
    assert smoothed["loss"][4] == pytest.approx(expected, rel=1e-14)
    for name, value in VALUES.items():
        with pytest.raises(UsageError, match=f"dialect dpo-paper: {name} of sigmoid"):
            score(counted, loss_args={name: value}, dialect="dpo-paper")


def test_rewardbench_rewards_are_log_ratios_without_beta(counted):
    scored = score(counted, dialect="rewardbench").collect()
    assert scored["chosen_reward"].to_list() == [1.0, -1.0, 1.0, 2.0, 5.0, -2.0]
    assert scored["rejected_reward"].to_list() == [0.0, 1.0, 1.0, -3.0, -5.0, 8.0]
    free = {"reference_free": True, "per_token": True}
    averaged = score(counted, loss_args=free, dialect="rewardbench").collect()
    assert averaged["chosen_reward"].to_list() == [-20 / 2, -31 / 4, -8, -5, -15, -10]


@pytest.mark.parametrize(
    ("dialect", "beta"), [("trl", 0.1), ("dpo-paper", 0.1), ("rewardbench", 1)]
)
def test_beta_is_the_dialects_unless_it_is_given(counted, dialect, beta):
    assert evaluate(counted, dialect=dialect).beta == beta
    assert evaluate(counted, 0.3, dialect=dialect).beta == 0.3
    assert evaluate(counted, 0.0, dialect=dialect).beta == 0.0
    given = score(counted, 0.3, dialect=dialect).collect()
    assert given["chosen_reward"][4] == pytest.approx(1.5, rel=1e-14)


# ------------------------------------------------------------------------------- command line


def run(capsys, *arguments):
    code = main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize(
    ("options", "call"),
    [
        pytest.param(["--loss", "hinge"], {"loss": "hinge"}, id="loss"),
        pytest.param(
            ["--loss", "ipo=0.5", "--loss", "sigmoid=0.25"],
            {"loss": {"ipo": 0.5, "sigmoid": 0.25}},
            id="sum",
        ),
        pytest.param(
            ["--loss", "sigmoid", "--loss", "sft=2"], {"loss": {"sigmoid": 1, "sft": 2}}, id="1"
        ),
        pytest.param(
            ["--loss-arg", "label_smoothing=0.1", "--loss-arg", "per_token=true"],
            {"loss_args": {"label_smoothing": 0.1, "per_token": True}},
            id="arguments",
        ),
        pytest.param(
            ["--loss", "ipo", "--dialect", "trl", "--loss-arg", "per_token=False"],
            {"loss": "ipo", "dialect": "trl", "loss_args": {"per_token": False}},
            id="False",
        ),
        pytest.param(
            ["--loss-arg", "f_divergence=alpha_divergence", "--loss-arg", "f_alpha=0.25"],
            {"loss_args": {"f_divergence": "alpha_divergence", "f_alpha": 0.25}},
            id="text",
        ),
        pytest.param(["--dialect", "rewardbench"], {"dialect": "rewardbench"}, id="dialect"),
        pytest.param(
            ["--dialect", "rewardbench", "--beta", "0.3"],
            {"dialect": "rewardbench", "beta": 0.3},
            id="beta",
        ),
        pytest.param(
            ["--loss", "aot", "--batch-size", "4"], {"loss": "aot", "batch_size": 4}, id="batches"
        ),
    ],
)
def test_the_command_line_says_it_to_the_library(capsys, source, tmp_path, options, call):
    code, out, err = run(capsys, "evaluate", source, "--json", *options)
    assert (code, err) == (0, "")
    expected = evaluate(source, **call)
    assert json.loads(out) == json.loads(expected.to_json())
    code, _, err = run(capsys, "score", source, tmp_path / "cli.parquet", *options)
    assert (code, err) == (0, "")
    score_parquet(source, tmp_path / "library.parquet", **call)
    assert (tmp_path / "cli.parquet").read_bytes() == (tmp_path / "library.parquet").read_bytes()


def test_the_order_of_losses_is_that_of_the_command_line(capsys, source):
    margins = []
    for order in (["sigmoid", "sft"], ["sft", "sigmoid"]):
        options = [word for name in order for word in ("--loss", f"{name}=1.0")]
        out = run(capsys, "evaluate", source, "--json", *options)[1]
        margins.append(json.loads(out)["summary"]["reward_margin"])
    # By hand: log-ratios of sums, and mean log-probs of the policy; each times 0.1, over 6.
    of_policy = math.fsum([-10, -7.75, -8, -5, -15, -10, 5.5, 16.5, 8.8, 11, 8.25, 5.5])
    assert margins == pytest.approx([0.4 / 6, 0.1 * of_policy / 6], abs=1e-12)


@pytest.mark.parametrize("verb", ["evaluate", "score"])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        pytest.param(["--loss", "sigmod"], "did you mean 'sigmoid'", id="loss"),
        pytest.param(["--loss", "sigmoid=x"], "--loss takes NAME or NAME=WEIGHT", id="weight"),
        pytest.param(["--loss", "sigmoid="], "--loss takes NAME or NAME=WEIGHT", id="none"),
        pytest.param(["--loss", "sigmoid=0"], "the weight of sigmoid must be above 0", id="0"),
        pytest.param(["--loss", "sigmoid=nan"], "the weight of sigmoid must be", id="nan"),
        pytest.param(["--loss-arg", "tau"], "--loss-arg takes NAME=VALUE, found 'tau'", id="no ="),
        pytest.param(["--loss-arg", "tau="], "--loss-arg takes NAME=VALUE", id="no value"),
        pytest.param(["--loss-arg", "taw=1"], "sigmoid has no 'taw'", id="argument"),
        pytest.param(
            ["--loss", "discopop", "--loss-arg", "tau=0"],
            "tau of discopop must be a finite number above 0, found 0.0",
            id="range",
        ),
        pytest.param(["--loss-arg", "per_token=yes"], "must be True or False", id="yes"),
        pytest.param(["--loss-arg", "label_smoothing=nan"], "must be a finite number", id="NaN"),
        pytest.param(["--dialect", "trll"], "'trll' is not one of 'trl', 'dpo-paper'", id="dia"),
        pytest.param(
            ["--dialect", "trl", "--loss-arg", "label_smoothing=0.1"], "ignores it", id="refused"
        ),
        pytest.param(["--loss", "ipo", "--beta", "0"], "must be above 0 for ipo", id="beta"),
        pytest.param(["--loss", "aot"], "give batch_size (--batch-size)", id="batches"),
    ],
)
def test_mistakes_exit_with_2(capsys, source, tmp_path, verb, options, said):
    outputs = [tmp_path / "s.parquet"] if verb == "score" else []
    code, out, err = run(capsys, verb, source, *outputs, *options)
    assert (code, out) == (2, "")
    assert said in err
    assert "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.parquet"]


def test_data_that_lacks_what_the_loss_needs_exits_with_1(capsys, tmp_path, pairs):
    path = tmp_path / "bare.parquet"
    pairs.write_parquet(path)
    code, out, err = run(capsys, "evaluate", path, "--loss", "sft")
    assert (code, out) == (1, "")
    assert "chosen_num_tokens: missing" in err


def test_losses_are_listed(capsys):
    code, out, err = run(capsys, "losses")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["loss", "needs", "formula"]
    assert [line.split()[0] for line in lines[1 : len(LOSSES) + 1]] == list(LOSSES)
    by_name = {line.split()[0]: line for line in lines if line}
    assert "policy log-probs, token counts" in by_name["simpo"]
    assert "policy and reference log-probs, a batch size" in by_name["aot"]
    assert "policy and reference log-probs, token counts" in by_name["rdpo"]
    assert "token counts" not in by_name["ipo"]
    assert "reference" not in by_name["cpo"]
    assert "label_smoothing" in lines[-1]


def test_one_loss_is_told_in_full(capsys):
    code, out, _ = run(capsys, "losses", "ipo")
    assert code == 0
    for fact in ("arXiv 2310.12036", "(h_c - h_r - 1/(2 beta))^2", "ipo (per_token)", "OpenRLHF"):
        assert fact in out
    out = run(capsys, "losses", "exo_pair")[1]
    assert "0.001: share that the target gives to the rejected completion" in out
    assert "a finite number above 0 and at most 0.5" in out


def test_losses_as_json(capsys):
    code, out, err = run(capsys, "losses", "--json")
    assert (code, err) == (0, "")
    rows = {row["name"]: row for row in json.loads(out)["losses"]}
    assert list(rows) == list(LOSSES)
    assert rows["ipo"]["needs"] == "policy and reference log-probs"
    for name, row in rows.items():
        assert row["reference_free"] == next(k for k, v in REFERENCE.items() if name in v)
        assert ("optional" in row["per_token"]) == (name in PER_TOKEN_IF_ASKED)
        assert ("js_divergence" in row["f_divergence"]) == (name in DIVERGENT)
        assert ("token counts" in row["needs"]) == (name in NEED_COUNTS)
        assert {p["name"] for p in row["parameters"]} == {a for n, a in RANGES if n == name}
    assert json.loads(run(capsys, "losses", "ipo", "--json")[1]) == rows["ipo"]


def test_a_loss_that_there_is_not(capsys):
    for more in ([], ["--json"]):
        code, out, err = run(capsys, "losses", "ipoo", *more)
        assert (code, out) == (2, "")
        assert "there is no loss 'ipoo' (did you mean 'ipo'?)" in err


# ------------------------------------------------------------------------- a loss of one's own


def cauchy(margin: pl.Expr, chosen_tokens: pl.Expr, *, beta: float, width: float) -> pl.Expr:
    """Return log(1 + ((1 - m) / width)^2) + beta * chosen tokens: made up for this test."""
    return (((1.0 - margin) / width).pow(2) + 1.0).log() + beta * chosen_tokens


MINE = Loss(
    name="cauchy",
    function=cauchy,
    formula="log(1 + ((1 - z) / w)^2) + beta L_c",
    source="nowhere",
    parameters=(
        Parameter(name="width", default=2.0, low=0.0, without=(0.0,), meaning="w, in nats"),
    ),
    peers={"Mine": "cauchy"},
)


def test_a_loss_is_added_by_a_function_and_a_row(monkeypatch, capsys, counted, source, tmp_path):
    extended = MappingProxyType({**LOSSES, MINE.name: MINE})
    for module in (loss_catalogue, objective, loss_list):
        monkeypatch.setattr(module, "LOSSES", extended)
    margins, tokens = [0.1, -0.2, 0.0, 0.5, 1.0, -1.0], [2, 4, 5, 10, 4, 7]
    for width, arguments in ((2.0, {}), (0.5, {"width": 0.5})):
        expected = [
            math.log(1 + ((1 - m) / width) ** 2) + 0.1 * n
            for m, n in zip(margins, tokens, strict=True)
        ]
        call = {"loss": "cauchy", "loss_args": arguments}
        found = score(counted, **call).collect()["loss"].to_list()
        assert found == pytest.approx(expected, rel=1e-14)
        mean = math.fsum(expected) / 6
        assert evaluate(counted, **call).summary.loss == pytest.approx(mean, abs=1e-12)
        out = tmp_path / f"{width}.parquet"
        score_parquet(source, out, **call)
        assert pl.read_parquet(out)["loss"].to_list() == found
        told = run(capsys, "evaluate", source, "--loss", "cauchy", "--loss-arg", f"width={width}")
        assert told[0] == 0
        assert "cauchy loss, beta 0.1" in told[1]
    # It has its part in sums, and its arguments are checked and its needs known.
    both = score(counted, loss={"cauchy": 2.0, "hinge": 1.0}).collect()["loss"][2]
    assert both == pytest.approx(2 * (math.log(1.25) + 0.5) + 1.0, rel=1e-14)
    with pytest.raises(UsageError, match="width of cauchy must be a finite number above 0"):
        score(counted, loss="cauchy", loss_args={"width": 0})
    with pytest.raises(UsageError, match="cauchy has no 'per_token'"):
        score(counted, loss="cauchy", loss_args={"per_token": True})
    with pytest.raises(ColumnError, match="chosen_num_tokens: missing"):
        score(counted.drop(TOKENS), loss="cauchy")
    assert "cauchy" in run(capsys, "losses")[1]
    row = json.loads(run(capsys, "losses", "cauchy", "--json")[1])
    assert row["needs"] == "policy and reference log-probs, token counts"
    assert row["parameters"] == [
        {
            "name": "width",
            "default": 2.0,
            "range": "a finite number above 0",
            "meaning": "w, in nats",
        }
    ]
    assert "| `cauchy` |" in loss_list.as_markdown()
