"""Where systems disagree: what each of them does, as data with its source.

A dialect sets what its system does not leave open. `OTHERS` has the parameters that reproduce
other systems.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal

from dpo_pipeline.defaults import COMPLETION_LOSS_NAMES, LOSS_NAMES

Rewards = Literal["score", "logratio"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """The conventions of a system.

    `refused` is what else the system lacks, to what it does instead: an argument of one loss
    (`loss.argument`) or of all, a loss, or a sum of losses.
    """

    name: str
    system: str
    beta: float  # KL strength if none is given
    rewards: Rewards  # what beta multiplies: the score that the loss compares, or the log-ratio
    defaults: Mapping[str, Mapping[str, float | bool]] = field(default_factory=dict)  # of losses
    lacks: tuple[str, ...] = ()  # losses
    refused: Mapping[str, str] = field(default_factory=dict)
    sources: Mapping[str, str]  # topic to the place in the system's code


_ROWS: Final = (
    Dialect(
        name="trl",
        system="TRL 1.x",
        beta=0.1,
        rewards="logratio",
        defaults={"ipo": {"per_token": True}},
        lacks=(
            *("dpop", "rdpo", "odpo", "soft_labels", "kto_pair", "orpo_odds_ratio"),
            *("plackett_luce", "infonca", "nca"),
        ),
        refused={
            "wpo": "TRL 1.x divides each token's probability by the sum of squared probabilities "
            "over the vocabulary, which log-probs do not hold; without a dialect, wpo leaves that "
            "division out",
            "sigmoid.label_smoothing": "TRL 1.x ignores it for this loss",
            "sigmoid_norm.label_smoothing": "TRL 1.x ignores it for this loss",
            "reference_free": "TRL 1.x has no reference-free DPO; its CPOTrainer has cpo and simpo",
            "sigmoid.per_token": "TRL 1.x calls it sigmoid_norm",
            "ipo.per_token": "TRL 1.x divides by the tokens, always",
            **{
                f"{loss}.per_token": "TRL 1.x sums log-probs over tokens for this loss"
                for loss in ("robust", "hinge", "exo_pair", "discopop")
            },
            **{
                f"{loss}.f_divergence": "TRL 1.x raises: this loss is not of the margin alone"
                for loss in ("nca_pair", "bco_pair", "sppo_hard")
            },
            "bco_pair.baseline": "TRL 1.x subtracts none",
            "humanline": "TRL 1.x clamps no log-ratio; HALOs does",
        },
        sources={
            "beta": "DPOConfig.beta",
            "IPO": "DPOTrainer._compute_loss, 'ipo' (mean over completion tokens; PR #1265)",
            "label smoothing": "DPOTrainer._compute_loss, 'sigmoid' (not read there)",
            "rewards": "DPOTrainer._compute_loss: beta * log-ratio, whatever the divergence",
            "tokens": "completion_mask: tokens of the completion, with its end",
            "KL of kto": "KTOTrainer._compute_loss: the mean over the evaluation batch, at least 0",
        },
    ),
    Dialect(
        name="dpo-paper",
        system="the DPO authors' code",
        beta=0.1,
        rewards="logratio",
        lacks=(
            *(name for name in LOSS_NAMES if name not in ("sigmoid", "ipo")),
            *COMPLETION_LOSS_NAMES,
        ),
        refused={
            "sum of losses": "the authors' code trains on one loss",
            "ld_alpha": "the authors' code sums log-probs over tokens",
            "humanline": "the authors' code clamps no log-ratio; HALOs does",
            "per_token": "the authors' code sums log-probs over tokens",
            "f_divergence": "the paper has the reverse KL only",
            "reference_free": "the authors' code leaves the reference out of the loss and not out "
            "of the rewards, so that the two say different things",
        },
        sources={
            "beta": "config/loss/dpo.yaml; arXiv 2305.18290, App. B",
            "IPO": "trainers.preference_loss, ipo=True: (logits - 1/(2 beta))^2, summed",
            "label smoothing": "trainers.preference_loss: conservative DPO",
            "rewards": "trainers.preference_loss: beta * (policy - reference)",
            "tokens": "trainers._get_batch_logps, average_log_prob=False",
        },
    ),
    Dialect(
        name="rewardbench",
        system="RewardBench",
        beta=1.0,
        rewards="score",
        refused={
            "f_divergence": "RewardBench has the reverse KL only",
            "ld_alpha": "RewardBench weighs all tokens alike",
            "humanline": "RewardBench clamps no log-ratio; HALOs does",
        },
        sources={
            "beta": "DPOInference.inference_step: the log-ratio itself, without beta",
            "rewards": "the same; without a reference the policy's log-prob alone",
            "tokens": "ref_free_type: 'avg' (per_token) by default in run_dpo, or 'sum'",
        },
    ),
    Dialect(
        name="halos",
        system="HALOs",
        beta=0.1,
        rewards="logratio",
        defaults={"ipo": {"per_token": True}},
        lacks=(
            *(name for name in LOSS_NAMES if name not in ("sigmoid", "ipo", "simpo", "sft")),
            *(name for name in COMPLETION_LOSS_NAMES if name != "kto"),
        ),
        refused={
            "simpo": "HALOs has gamma as a share of beta, 0.3 by default: give gamma, without a "
            "dialect",
            "sigmoid.per_token": "HALOs sums log-probs over tokens for this loss",
            "ipo.per_token": "HALOs divides by the tokens, always",
            "reference_free": "HALOs has no DPO without a reference",
            "f_divergence": "HALOs has the reverse KL only",
            "ld_alpha": "HALOs weighs all tokens alike",
            "sum of losses": "HALOs trains on one loss",
        },
        sources={
            "beta": "config/loss/dpo.yaml, kto.yaml",
            "rewards": "trainers.get_sequence_rewards: the log-ratio; HALOs logs it without beta",
            "KL of kto": "KTOTrainer.loss: the mean over log-ratios that are not 0, at least 0",
        },
    ),
)

DIALECTS: Final[Mapping[str, Dialect]] = MappingProxyType({row.name: row for row in _ROWS})
"""Every dialect by its name."""

OTHERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "torchtune": "the defaults",
        "OpenRLHF": "the defaults; ipo is summed",
        "LLaMA-Factory": "the defaults; ipo with per_token; simpo with gamma",
        "HALOs": "cdpo: sigmoid with label_smoothing 0.2; simpo: gamma = 0.3 * beta, beta 10; "
        "ipo with per_token, its rewards without beta",
        "Liger": "the defaults; sigmoid ignores label_smoothing",
        "NeMo": "beta 0.05; preference_average_log_probs: sigmoid_norm",
        "open-instruct": "dpo_norm: sigmoid_norm with beta 5; simpo: gamma = 0.3 * beta",
        "TRL to 0.24": "label_smoothing of sigmoid is cDPO; aot_pair: aot_unpaired",
    }
)
"""System to the parameters that reproduce its conventions, in words."""
