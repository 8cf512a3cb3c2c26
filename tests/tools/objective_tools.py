"""Token counts, and which losses need what: shared by the tests of objectives."""

from __future__ import annotations

import math

import polars as pl


def minus_log_sigmoid(x):
    return max(-x, 0.0) + math.log1p(math.exp(-abs(x)))


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


REFERENCE = {
    "optional": {
        *("sigmoid", "sigmoid_norm", "robust", "hinge", "ipo", "exo_pair", "nca_pair", "bco_pair"),
        *("sppo_hard", "apo_zero", "apo_down", "discopop", "rdpo"),
        *("odpo", "soft_labels", "wpo"),
    },
    "never": {"cpo", "cpo_hinge", "simpo", "alphapo", "orpo", "orpo_odds_ratio", "sft"},
    "always": {"dpop", "aot", "aot_unpaired", "kto_pair"},
}


PER_TOKEN_IF_ASKED = {"sigmoid", "robust", "hinge", "ipo", "exo_pair", "discopop"}
PER_TOKEN_IF_ASKED |= {"odpo", "soft_labels", "wpo"}
NEED_COUNTS = {"sigmoid_norm", "rdpo", "simpo", "alphapo", "orpo", "orpo_odds_ratio", "sft", "wpo"}
DIVERGENT = REFERENCE["optional"] - {"apo_zero", "apo_down", "rdpo"}
OF_BATCHES = {"aot", "aot_unpaired", "kto_pair"}
OWN_COLUMN = {"odpo": "offset", "soft_labels": "preference_probability"}
LOG_2 = math.log(2)


def with_own_columns(pairs):
    """Pairs with the columns that single losses read, at values that give the DPO loss."""
    return pairs.with_columns(offset=pl.lit(0.0), preference_probability=pl.lit(1.0))
