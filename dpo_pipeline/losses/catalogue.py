"""The table of losses: a row each, with its function, parameters, sources and other names.

What a loss needs follows from its function's arguments and from its score. The command
`dpo-pipeline losses`, the reference table and the checks of arguments are made from these rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from dpo_pipeline.losses import batchwise, pairwise
from dpo_pipeline.losses.loss_row import Loss, Parameter

_SMOOTHING: Final = Parameter(
    name="label_smoothing",
    default=0.0,
    low=0.0,
    high=0.5,
    meaning="assumed share of flipped labels",
)
_GAMMA: Final = Parameter(
    name="gamma", default=0.5, low=0.0, meaning="margin to reach, not scaled by beta"
)

_ROWS: Final = (
    Loss(
        name="sigmoid",
        function=pairwise.smoothed_sigmoid,
        formula="(1-e) sp(z) + e sp(-z), with sp(z) = -log sigma(z)",
        source="arXiv 2305.18290, Eq. 7; e: Mitchell, cDPO",
        parameters=(_SMOOTHING,),
        peers={
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
        by_length="optional",
        f_divergence=True,
        grows_as_margin=True,
    ),
    Loss(
        name="sigmoid_norm",
        function=pairwise.smoothed_sigmoid,
        formula="sp(z), z from log-ratios per token",
        source="arXiv 2411.15124 (Tulu 3)",
        parameters=(_SMOOTHING,),
        peers={
            "TRL": "sigmoid_norm",
            "open-instruct": "dpo_norm (beta 5)",
            "NeMo": "preference_average_log_probs",
        },
        by_length="always",
        f_divergence=True,
        grows_as_margin=True,
    ),
    Loss(
        name="robust",
        function=pairwise.robust,
        formula="((1-e) sp(z) - e sp(-z)) / (1-2e)",
        source="arXiv 2403.00409",
        parameters=(replace(_SMOOTHING, without=(0.5,)),),
        peers={"TRL": "robust", "Liger": "robust"},
        by_length="optional",
        f_divergence=True,
    ),
    Loss(
        name="hinge",
        function=pairwise.hinge,
        formula="max(0, 1 - z)",
        source="arXiv 2305.10425; arXiv 2309.06657",
        peers={
            "TRL": "hinge",
            "LLaMA-Factory": "hinge",
            "Liger": "hinge",
            "torchtune": "RSOLoss (gamma is beta)",
        },
        by_length="optional",
        f_divergence=True,
        grows_as_margin=True,
    ),
    Loss(
        name="ipo",
        function=pairwise.ipo,
        formula="(h_c - h_r - 1/(2 beta))^2",
        source="arXiv 2310.12036, Eq. 17",
        peers={
            "TRL": "ipo (per_token)",
            "LLaMA-Factory": "ipo (per_token)",
            "HALOs": "ipo (per_token)",
            "DPO authors": "ipo (summed)",
            "OpenRLHF": "ipo (summed)",
            "NeMo": "ipo (summed)",
        },
        by_length="optional",
        f_divergence=True,
        positive_beta=True,
    ),
    Loss(
        name="exo_pair",
        function=pairwise.exo_pair,
        formula="sigma(z) (log sigma(z) - log(1-e)) + sigma(-z) (log sigma(-z) - log e)",
        source="arXiv 2402.00856, Eq. 16",
        parameters=(
            replace(
                _SMOOTHING,
                default=1e-3,
                without=(0.0,),
                meaning="share that the target gives to the rejected completion",
            ),
        ),
        peers={"TRL": "exo_pair (label_smoothing must be given)", "Liger": "exo_pair"},
        by_length="optional",
        f_divergence=True,
    ),
    Loss(
        name="nca_pair",
        function=pairwise.nca_pair,
        formula="sp(beta h_c) + sp(-beta h_c)/2 + sp(-beta h_r)/2",
        source="arXiv 2402.05369",
        peers={"TRL": "nca_pair", "Liger": "nca_pair"},
        f_divergence=True,
    ),
    Loss(
        name="bco_pair",
        function=pairwise.bco_pair,
        formula="sp(beta h_c - d) + sp(d - beta h_r)",
        source="arXiv 2404.04656",
        parameters=(
            Parameter(
                name="baseline", default=0.0, meaning="d, subtracted from both rewards, in nats"
            ),
        ),
        peers={"TRL": "bco_pair (baseline 0)", "Liger": "bco_pair (baseline 0)"},
        f_divergence=True,
    ),
    Loss(
        name="sppo_hard",
        function=pairwise.sppo_hard,
        formula="(h_c - 1/(2 beta))^2 + (h_r + 1/(2 beta))^2",
        source="arXiv 2405.00675, Eq. 4.7",
        peers={"TRL": "sppo_hard", "Liger": "sppo_hard"},
        f_divergence=True,
        positive_beta=True,
    ),
    Loss(
        name="apo_zero",
        function=pairwise.apo_zero,
        formula="1 - sigma(beta h_c) + sigma(beta h_r)",
        source="arXiv 2408.06266, Eq. 7",
        peers={"TRL": "apo_zero", "Liger": "apo_zero"},
        grows_as_margin=True,
    ),
    Loss(
        name="apo_down",
        function=pairwise.apo_down,
        formula="sigma(beta h_c) + 1 - sigma(z)",
        source="arXiv 2408.06266, Eq. 8",
        peers={"TRL": "apo_down", "Liger": "apo_down"},
        grows_as_margin=True,
    ),
    Loss(
        name="discopop",
        function=pairwise.discopop,
        formula="sp(z) (1-s) + exp(-z) s, with s = sigma(z / tau)",
        source="arXiv 2406.08414, Eq. 5",
        parameters=(
            Parameter(name="tau", default=0.05, low=0.0, without=(0.0,), meaning="temperature"),
        ),
        peers={"TRL": "discopop", "Liger": "discopop"},
        by_length="optional",
        f_divergence=True,
    ),
    Loss(
        name="dpop",
        function=pairwise.dpop,
        formula="sp(beta (h_c - h_r - p max(0, -h_c)))",
        source="arXiv 2402.13228",
        parameters=(
            Parameter(
                name="penalty", default=50.0, low=0.0, meaning="p, on a chosen log-ratio below 0"
            ),
        ),
        peers={"PaddleNLP": "dpop"},
        reference="always",
    ),
    Loss(
        name="rdpo",
        function=pairwise.length_regularised,
        reward=pairwise.length_regularised_reward,
        formula="sp(z + a (L_c - L_r))",
        source="arXiv 2403.19159",
        parameters=(
            Parameter(name="length_penalty", default=0.0, low=0.0, meaning="a, in nats a token"),
        ),
        peers={},
    ),
    Loss(
        name="cpo",
        function=pairwise.smoothed_sigmoid,
        formula="sp(z), z = beta (c - r)",
        source="arXiv 2401.08417",
        parameters=(_SMOOTHING,),
        peers={"TRL": "CPOTrainer sigmoid (and cpo_alpha * sft)", "Liger": "cpo"},
        reference="never",
        grows_as_margin=True,
    ),
    Loss(
        name="cpo_hinge",
        function=pairwise.hinge,
        formula="max(0, 1 - z), z = beta (c - r)",
        source="arXiv 2401.08417; arXiv 2305.10425",
        peers={"TRL": "CPOTrainer hinge (and cpo_alpha * sft)"},
        reference="never",
        grows_as_margin=True,
    ),
    Loss(
        name="simpo",
        function=pairwise.simpo,
        formula="sp(z - g), z = beta (c / L_c - r / L_r)",
        source="arXiv 2405.14734",
        parameters=(_GAMMA, _SMOOTHING),
        peers={
            "TRL": "CPOTrainer simpo",
            "LLaMA-Factory": "simpo",
            "Liger": "simpo",
            "HALOs": "simpo (g = 0.3 beta, beta 10)",
            "open-instruct": "simpo (g = 0.3 beta)",
        },
        reference="never",
        by_length="always",
    ),
    Loss(
        name="alphapo",
        function=pairwise.alphapo,
        reward=pairwise.alphapo_reward,
        formula="sp(beta (R_c - R_r) - g), with R = (1 - p^-a) / a, p = exp(c / L_c)",
        source="arXiv 2501.03884",
        parameters=(_GAMMA, Parameter(name="alpha", default=0.0, meaning="a; SimPO at 0")),
        peers={"TRL": "CPOTrainer alpha"},
        reference="never",
        by_length="always",
    ),
    Loss(
        name="orpo",
        function=pairwise.orpo,
        formula="-c / L_c + beta sp(log odds ratio)",
        source="arXiv 2403.07691",
        peers={"TRL": "ORPOTrainer", "LLaMA-Factory": "orpo", "Liger": "orpo"},
        reference="never",
        by_length="always",
    ),
    Loss(
        name="orpo_odds_ratio",
        function=pairwise.orpo_odds_ratio,
        formula="beta sp(log odds ratio), odds = p / (1 - p), p = exp(c / L_c)",
        source="arXiv 2403.07691",
        peers={"LLaMA-Factory": "odds_ratio_loss"},
        reference="never",
        by_length="always",
    ),
    Loss(
        name="sft",
        function=pairwise.sft,
        formula="-c / L_c",
        source="arXiv 2404.19733 (its NLL term)",
        peers={
            "TRL": "sft (over all tokens of a batch)",
            "LLaMA-Factory": "pref_ftx",
            "NeMo": "sft_loss_weight",
            "OpenRLHF": "nll_loss_coef",
        },
        reference="never",
        by_length="always",
    ),
    Loss(
        name="aot",
        function=batchwise.aot,
        formula="sp(beta (u_(k) - v_(k))), u = c - r and v = C - R sorted within a batch",
        source="arXiv 2406.05882",
        parameters=(_SMOOTHING,),
        peers={"TRL": "aot"},
        reference="always",
        grows_as_margin=True,
    ),
    Loss(
        name="aot_unpaired",
        function=batchwise.aot_unpaired,
        formula="sp(beta (h_c(k) - h_r(k))), each sorted within a batch",
        source="arXiv 2406.05882",
        parameters=(_SMOOTHING,),
        peers={"TRL": "aot_unpaired (aot_pair to 0.24)"},
        reference="always",
        grows_as_margin=True,
    ),
    Loss(
        name="kto_pair",
        function=batchwise.kto_pair,
        formula="mean of 1 - sigma(beta (h_c - K_r)) and 1 - sigma(beta (K_c - h_r)), "
        "K = max(0, mean h of the batch)",
        source="arXiv 2402.01306, its report",
        peers={"TRL": "kto_pair (to 0.7)", "PaddleNLP": "kto_pair"},
        reference="always",
        grows_as_margin=True,
    ),
)

LOSSES: Final[Mapping[str, Loss]] = MappingProxyType({row.name: row for row in _ROWS})
"""Every loss by its name."""

_IN_NATS: Final = frozenset(
    {
        *("sigmoid", "sigmoid_norm", "robust", "dpop", "rdpo", "aot", "aot_unpaired"),
        *("cpo", "simpo", "alphapo", "orpo", "sft", "bco_pair", "nca_pair"),
    }
)
"""Losses made of terms -log p alone."""


def unit_of_loss(names: Iterable[str]) -> str:
    """Return `nats` if all of these losses are negative log-likelihoods, else an empty string."""
    return "nats" if _IN_NATS.issuperset(names) else ""
