"""The table of losses: a row each, with its function, parameters, sources and other names.

What a loss needs follows from its function's arguments and from its score. The command
`dpo-pipeline losses`, the reference table and the checks of arguments are made from these rows.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final

import polars as pl

from dpo_pipeline.columns import did_you_mean
from dpo_pipeline.losses import batchwise, completions, pairwise
from dpo_pipeline.losses.loss_row import Loss, Parameter

_SMOOTHING: Final = Parameter(
    "label_smoothing", 0.0, low=0.0, high=0.5, meaning="assumed share of flipped labels"
)
_PARAMETERS: Final = {
    each.name: each
    for each in (
        _SMOOTHING,
        Parameter("baseline", 0.0, meaning="d, subtracted from both rewards, in nats"),
        Parameter("tau", 0.05, low=0.0, without=(0.0,), meaning="temperature"),
        Parameter("penalty", 50.0, low=0.0, meaning="p, on a chosen log-ratio below 0"),
        Parameter("length_penalty", 0.0, low=0.0, meaning="a, in nats a token"),
        Parameter("gamma", 0.5, low=0.0, meaning="margin to reach, not scaled by beta"),
        Parameter("alpha", 0.0, meaning="a; SimPO at 0"),
        Parameter("desirable_weight", 1.0, low=0.0, meaning="w of desirable completions"),
        Parameter("undesirable_weight", 1.0, low=0.0, meaning="w of undesirable completions"),
        Parameter(
            "temperature",
            0.0,
            low=0.0,
            meaning="t of the target p = softmax(score / t); at 0 all is on the best completion",
        ),
    )
}
"""What the keywords of a loss's function mean, but for beta."""
_LIKE_DPO: Final[Mapping[str, Any]] = {"by_length": "optional", "f_divergence": True}
_OF_MEANS: Final[Mapping[str, Any]] = {"reference": "never", "by_length": "always"}
_OF_BATCHES: Final[Mapping[str, Any]] = {"reference": "always", "grows_as_margin": True}


def _row(
    function: Callable[..., pl.Expr],
    formula: str,
    source: str,
    peers: Mapping[str, str],
    *,
    name: str = "",
    **more: Any,
) -> Loss:
    """Return a row; its name and parameters are those of its function, unless it says others."""
    keywords = inspect.getfullargspec(function).kwonlyargs
    more.setdefault("parameters", tuple(_PARAMETERS[k] for k in keywords if k != "beta"))
    name = name or function.__name__
    return Loss(name=name, function=function, formula=formula, source=source, peers=peers, **more)


_ROWS: Final = (
    _row(
        pairwise.smoothed_sigmoid,
        "(1-e) sp(z) + e sp(-z), with sp(z) = -log sigma(z)",
        "arXiv 2305.18290, Eq. 7; e: Mitchell, cDPO",
        {
            "TRL": "sigmoid (ignores label_smoothing)",
            "torchtune": "DPOLoss",
            "DPO authors": "dpo",
            "OpenRLHF": "dpo",
            "LLaMA-Factory": "sigmoid",
            "HALOs": "dpo, cdpo (epsilon 0.2)",
            "Liger": "sigmoid (ignores label_smoothing)",
            "NeMo": "dpo (beta 0.05)",
            "open-instruct": "dpo",
        },
        name="sigmoid",
        **_LIKE_DPO,
        grows_as_margin=True,
    ),
    _row(
        pairwise.smoothed_sigmoid,
        "sp(z), z from log-ratios per token",
        "arXiv 2411.15124 (Tulu 3)",
        {
            "TRL": "sigmoid_norm",
            "open-instruct": "dpo_norm (beta 5)",
            "NeMo": "preference_average_log_probs",
        },
        name="sigmoid_norm",
        by_length="always",
        f_divergence=True,
        grows_as_margin=True,
    ),
    _row(
        pairwise.robust,
        "((1-e) sp(z) - e sp(-z)) / (1-2e)",
        "arXiv 2403.00409",
        {"TRL": "robust", "Liger": "robust"},
        parameters=(replace(_SMOOTHING, without=(0.5,)),),
        **_LIKE_DPO,
    ),
    _row(
        pairwise.hinge,
        "max(0, 1 - z)",
        "arXiv 2305.10425; arXiv 2309.06657",
        {
            "TRL": "hinge",
            "LLaMA-Factory": "hinge",
            "Liger": "hinge",
            "torchtune": "RSOLoss (gamma is beta)",
        },
        **_LIKE_DPO,
        grows_as_margin=True,
    ),
    _row(
        pairwise.ipo,
        "(h_c - h_r - 1/(2 beta))^2",
        "arXiv 2310.12036, Eq. 17",
        {
            "TRL": "ipo (per_token)",
            "LLaMA-Factory": "ipo (per_token)",
            "HALOs": "ipo (per_token)",
            "DPO authors": "ipo (summed)",
            "OpenRLHF": "ipo (summed)",
            "NeMo": "ipo (summed)",
        },
        **_LIKE_DPO,
        positive_beta=True,
        beta_moves_scale=True,
    ),
    _row(
        pairwise.exo_pair,
        "sigma(z) (log sigma(z) - log(1-e)) + sigma(-z) (log sigma(-z) - log e)",
        "arXiv 2402.00856, Eq. 16",
        {"TRL": "exo_pair (label_smoothing must be given)", "Liger": "exo_pair"},
        parameters=(
            replace(
                _SMOOTHING,
                default=1e-3,
                without=(0.0,),
                meaning="share that the target gives to the rejected completion",
            ),
        ),
        **_LIKE_DPO,
    ),
    _row(
        pairwise.nca_pair,
        "sp(beta h_c) + sp(-beta h_c)/2 + sp(-beta h_r)/2",
        "arXiv 2402.05369",
        {"TRL": "nca_pair", "Liger": "nca_pair"},
        f_divergence=True,
    ),
    _row(
        pairwise.bco_pair,
        "sp(beta h_c - d) + sp(d - beta h_r)",
        "arXiv 2404.04656",
        {"TRL": "bco_pair (baseline 0)", "Liger": "bco_pair (baseline 0)"},
        f_divergence=True,
    ),
    _row(
        pairwise.sppo_hard,
        "(h_c - 1/(2 beta))^2 + (h_r + 1/(2 beta))^2",
        "arXiv 2405.00675, Eq. 4.7",
        {"TRL": "sppo_hard", "Liger": "sppo_hard"},
        f_divergence=True,
        positive_beta=True,
        beta_moves_scale=True,
    ),
    _row(
        pairwise.apo_zero,
        "1 - sigma(beta h_c) + sigma(beta h_r)",
        "arXiv 2408.06266, Eq. 7",
        {"TRL": "apo_zero", "Liger": "apo_zero"},
        grows_as_margin=True,
    ),
    _row(
        pairwise.apo_down,
        "sigma(beta h_c) + 1 - sigma(z)",
        "arXiv 2408.06266, Eq. 8",
        {"TRL": "apo_down", "Liger": "apo_down"},
        grows_as_margin=True,
    ),
    _row(
        pairwise.discopop,
        "sp(z) (1-s) + exp(-z) s, with s = sigma(z / tau)",
        "arXiv 2406.08414, Eq. 5",
        {"TRL": "discopop", "Liger": "discopop"},
        **_LIKE_DPO,
    ),
    _row(
        pairwise.dpop,
        "sp(beta (h_c - h_r - p max(0, -h_c)))",
        "arXiv 2402.13228",
        {"PaddleNLP": "dpop"},
        reference="always",
    ),
    _row(
        pairwise.length_regularised,
        "sp(z + a (L_c - L_r))",
        "arXiv 2403.19159",
        {},
        name="rdpo",
        reward=pairwise.length_regularised_reward,
    ),
    _row(pairwise.odpo, "sp(z - o), o the column offset", "arXiv 2402.10571", {}, **_LIKE_DPO),
    _row(
        pairwise.soft_labels,
        "p sp(z) + (1-p) sp(-z), p the column preference_probability",
        "arXiv 2409.06691; cDPO with a p for each pair",
        {},
        **_LIKE_DPO,
        grows_as_margin=True,
    ),
    _row(
        pairwise.wpo,
        "min(1, exp(c / L_c + r / L_r)) sp(z)",
        "arXiv 2406.11827, without its alignment",
        {},
        **_LIKE_DPO,
        grows_as_margin=True,
    ),
    _row(
        pairwise.smoothed_sigmoid,
        "sp(z), z = beta (c - r)",
        "arXiv 2401.08417",
        {"TRL": "CPOTrainer sigmoid (and cpo_alpha * sft)", "Liger": "cpo"},
        name="cpo",
        reference="never",
        grows_as_margin=True,
    ),
    _row(
        pairwise.hinge,
        "max(0, 1 - z), z = beta (c - r)",
        "arXiv 2401.08417; arXiv 2305.10425",
        {"TRL": "CPOTrainer hinge (and cpo_alpha * sft)"},
        name="cpo_hinge",
        reference="never",
        grows_as_margin=True,
    ),
    _row(
        pairwise.simpo,
        "sp(z - g), z = beta (c / L_c - r / L_r)",
        "arXiv 2405.14734",
        {
            "TRL": "CPOTrainer simpo",
            "LLaMA-Factory": "simpo",
            "Liger": "simpo",
            "HALOs": "simpo (g = 0.3 beta, beta 10)",
            "open-instruct": "simpo (g = 0.3 beta)",
        },
        **_OF_MEANS,
    ),
    _row(
        pairwise.alphapo,
        "sp(beta (R_c - R_r) - g), with R = (1 - p^-a) / a, p = exp(c / L_c)",
        "arXiv 2501.03884",
        {"TRL": "CPOTrainer alpha"},
        **_OF_MEANS,
        reward=pairwise.alphapo_reward,
    ),
    _row(
        pairwise.orpo,
        "-c / L_c + beta sp(log odds ratio)",
        "arXiv 2403.07691",
        {"TRL": "ORPOTrainer", "LLaMA-Factory": "orpo", "Liger": "orpo"},
        beta_moves_scale=True,
        **_OF_MEANS,
    ),
    _row(
        pairwise.orpo_odds_ratio,
        "beta sp(log odds ratio), odds = p / (1 - p), p = exp(c / L_c)",
        "arXiv 2403.07691",
        {"LLaMA-Factory": "odds_ratio_loss"},
        beta_moves_scale=True,
        **_OF_MEANS,
    ),
    _row(
        pairwise.sft,
        "-c / L_c",
        "arXiv 2404.19733 (its NLL term)",
        {
            "TRL": "sft (over all tokens of a batch)",
            "LLaMA-Factory": "pref_ftx",
            "NeMo": "sft_loss_weight",
            "OpenRLHF": "nll_loss_coef",
        },
        **_OF_MEANS,
    ),
    _row(
        batchwise.aot,
        "sp(beta (u_(k) - v_(k))), u = c - r and v = C - R sorted within a batch",
        "arXiv 2406.05882",
        {"TRL": "aot"},
        **_OF_BATCHES,
    ),
    _row(
        batchwise.aot_unpaired,
        "sp(beta (h_c(k) - h_r(k))), each sorted within a batch",
        "arXiv 2406.05882",
        {"TRL": "aot_unpaired (aot_pair to 0.24)"},
        **_OF_BATCHES,
    ),
    _row(
        batchwise.kto_pair,
        "mean of 1 - sigma(beta (h_c - K_r)) and 1 - sigma(beta (K_c - h_r)), "
        "K = max(0, mean h of the batch)",
        "arXiv 2402.01306, its report",
        {"TRL": "kto_pair (to 0.7)", "PaddleNLP": "kto_pair"},
        **_OF_BATCHES,
    ),
)

LOSSES: Final[Mapping[str, Loss]] = MappingProxyType({row.name: row for row in _ROWS})
"""Every loss of pairs by its name."""

_OF_COMPLETIONS: Final[Mapping[str, Any]] = {"row": "completion"}
_WEIGHTS: Final = (_PARAMETERS["desirable_weight"], _PARAMETERS["undesirable_weight"])
_COMPLETION_ROWS: Final = (
    _row(
        completions.kto,
        "w (1 - sigma(beta (h - K))) if desirable, w (1 - sigma(beta (K - h))) if not, "
        "K = max(0, mean log-ratio of the batch's mismatched completions)",
        "arXiv 2402.01306, Eq. 7 and 8",
        {"TRL": "KTOTrainer kto", "HALOs": "kto (K over log-ratios that are not 0)"},
        parameters=(
            *_WEIGHTS,
            Parameter(
                "kl",
                math.nan,
                low=0.0,
                meaning="K in nats, before beta, instead of an estimate from each batch",
            ),
        ),
        reference="always",
        **_OF_COMPLETIONS,
    ),
    _row(
        completions.apo_zero_unpaired,
        "w (1 - sigma(beta h)) if desirable, w sigma(beta h) if not",
        "arXiv 2408.06266, Eq. 7, unpaired",
        {"TRL": "KTOTrainer apo_zero_unpaired"},
        reference="always",
        **_OF_COMPLETIONS,
    ),
    _row(
        completions.plackett_luce,
        "sum_k log sum_(j not better than k) exp(beta h_j) - beta h_k, over a prompt",
        "arXiv 2305.18290, App. A.3",
        {},
        **_OF_COMPLETIONS,
    ),
    _row(
        completions.infonca,
        "-sum_i p_i log softmax(beta h)_i, over a prompt",
        "arXiv 2402.05369, Eq. 8",
        {},
        **_OF_COMPLETIONS,
    ),
    _row(
        completions.nca,
        "-sum_i (p_i log sigma(beta h_i) + log sigma(-beta h_i) / K), over a prompt",
        "arXiv 2402.05369, Eq. 12",
        {},
        **_OF_COMPLETIONS,
    ),
)

COMPLETION_LOSSES: Final[Mapping[str, Loss]] = MappingProxyType(
    {row.name: row for row in _COMPLETION_ROWS}
)
"""Every loss of completions by its name."""

EVERY_LOSS: Final[Mapping[str, Loss]] = MappingProxyType({**LOSSES, **COMPLETION_LOSSES})
"""Every loss by its name, of pairs and of completions."""

_NICKNAMES: Final = MappingProxyType(
    {
        "dpo": "sigmoid is the loss of DPO",
        "cdpo": "sigmoid with label_smoothing is the loss of conservative DPO",
        "logistic": "sigmoid is the logistic loss",
        "slic": "hinge is the loss of SLiC",
        "rso": "hinge is the loss of RSO",
        "bco": "bco_pair is the loss of BCO, of pairs",
        "exo": "exo_pair is the loss of EXO",
        "sppo": "sppo_hard is the loss of SPPO",
        "apo": "apo_zero and apo_down are the losses of APO",
        "dpopositive": "dpop is the loss of DPO-Positive",
    }
)
"""What people call some losses, and what is to be given instead."""


def no_such_loss(name: object) -> str:
    """Return what is said of what no loss is called, itself first."""
    text = str(name)
    known = _NICKNAMES.get(re.sub(r"[\W_]|(?:loss)$", "", text.lower()))
    said = f" ({known})" if known else did_you_mean(text, EVERY_LOSS)
    return f"{name!r}{said}; the losses are {', '.join(EVERY_LOSS)}"


_IN_NATS: Final = frozenset(
    {
        *("sigmoid", "sigmoid_norm", "robust", "dpop", "rdpo", "aot", "aot_unpaired"),
        *("odpo", "soft_labels", "wpo"),
        *("cpo", "simpo", "alphapo", "orpo", "sft", "bco_pair", "nca_pair"),
        *("plackett_luce", "infonca", "nca"),
    }
)
"""Losses made of terms -log p alone."""


def unit_of_loss(names: Iterable[str]) -> str:
    """Return `nats` if all of these losses are negative log-likelihoods, else an empty string."""
    return "nats" if _IN_NATS.issuperset(names) else ""
