"""Figures by name: what each is, its unit, formula and source, and what TRL calls it.

Pages, schemas, `--help` and `dpo-pipeline explain` say these texts.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

_DPO: Final = "arXiv 2305.18290"
_DISPLACEMENT: Final = "arXiv 2410.08847"


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of an evaluation or a comparison, over valid pairs.

    Attributes:
        text: What it is, as a clause.
        unit: Its unit; empty for a share or a number without one.
        formula: How it is made, with z for the margin of a pair.
        source: Where it is defined, if not in a textbook.
        trl: What TRL logs it as.
        also: What else people and the output call it.
    """

    text: str
    unit: str = ""
    formula: str = ""
    source: str = ""
    trl: str = ""
    also: tuple[str, ...] = ()


def _logps(side: str, model: str, trl: str = "") -> Figure:
    return Figure(f"mean log-prob of the {side} completion under the {model}", "nats", trl=trl)


_ACCURACY: Final = "reward accuracy: share of pairs with the chosen reward above the rejected one"

FIGURES: Final = MappingProxyType(
    {
        "n_pairs": Figure("pairs read", "pairs"),
        "n_valid": Figure("pairs that keep every rule of the contract", "pairs"),
        "n_invalid": Figure("pairs that break a rule or more", "pairs", also=("invalid",)),
        "n_ties": Figure(
            "valid pairs with equal rewards; they count as not correct", "pairs", also=("ties",)
        ),
        "loss": Figure(
            "mean loss",
            "nats, if the loss is a log-likelihood",
            "the DPO loss is mean(-log sigmoid(z))",
            _DPO,
            "loss",
            ("mean loss",),
        ),
        "chosen_reward": Figure(
            "mean implicit reward of the chosen completion",
            "nats",
            "mean(beta * (policy_chosen_logps - ref_chosen_logps)) for the DPO loss",
            _DPO,
            "rewards/chosen",
            ("chosen reward",),
        ),
        "rejected_reward": Figure(
            "mean implicit reward of the rejected completion",
            "nats",
            "mean(beta * (policy_rejected_logps - ref_rejected_logps)) for the DPO loss",
            _DPO,
            "rewards/rejected",
            ("rejected reward",),
        ),
        "reward_accuracy": Figure(
            f"{_ACCURACY}; a tie counts as wrong, as in TRL",
            formula="mean(z > 0)",
            trl="rewards/accuracies",
            also=("accuracy", "reward accuracy"),
        ),
        "reward_accuracy_half": Figure(
            f"{_ACCURACY}; a tie counts half", formula="mean(z > 0) + mean(z = 0) / 2"
        ),
        "tie_rate": Figure("share of pairs with equal rewards", formula="mean(z = 0)"),
        "reward_margin": Figure(
            "mean margin: chosen reward less rejected reward",
            "nats",
            "mean(z)",
            _DPO,
            "rewards/margins",
            ("margin", "reward margin", "mean margin"),
        ),
        "log_loss": Figure(
            "log loss of the chance that a margin claims", "nats", "mean(-log sigmoid(z))"
        ),
        "brier": Figure(
            "Brier score of the chance that a margin claims", "", "mean((1 - sigmoid(z))^2)"
        ),
        "policy_chosen_logps": _logps("chosen", "policy", "logps/chosen"),
        "policy_rejected_logps": _logps("rejected", "policy", "logps/rejected"),
        "ref_chosen_logps": _logps("chosen", "reference"),
        "ref_rejected_logps": _logps("rejected", "reference"),
        "chosen_down": Figure(
            "likelihood displacement: share of chosen completions less likely under the policy "
            "than under the reference",
            formula="mean(policy_chosen_logps < ref_chosen_logps)",
            source=_DISPLACEMENT,
        ),
        "rejected_down": Figure(
            "share of rejected completions less likely under the policy than under the reference",
            formula="mean(policy_rejected_logps < ref_rejected_logps)",
            source=_DISPLACEMENT,
        ),
        "both_down": Figure(
            "share of pairs of which both completions are less likely than under the reference",
            source=_DISPLACEMENT,
        ),
        "calibration error": Figure(
            "how far the chance that margins claim is from the share that is right, less what "
            "chance alone adds",
            formula="mean over bins of |mean sigmoid(|z|) - accuracy|, weighted by pairs, debiased",
        ),
        "best beta": Figure(
            "the beta at which these margins have the smallest log loss", "as beta"
        ),
        "margin at equal length": Figure(
            "mean margin of pairs whose completions are equally long",
            "nats",
            "the intercept of the line of z over chosen less rejected tokens",
        ),
        "margin per token longer": Figure(
            "what a token more of the chosen completion adds to the margin",
            "nats a token",
            "the slope of the line of z over chosen less rejected tokens",
        ),
        "share of flipped labels": Figure(
            "share of labels reversed at random that would make these margins likeliest",
            formula="the e that is best in mean(-log((1 - e) sigmoid(z) + e sigmoid(-z)))",
        ),
        "macro mean": Figure("mean accuracy of the subsets, each counting once", also=("macro",)),
        "weighted mean": Figure(
            "mean accuracy of the subsets, weighted as asked", also=("weighted",)
        ),
        "judge: rank correlation": Figure(
            "Spearman's correlation of margins and the judge's score gaps"
        ),
        "judge: AUC": Figure(
            "chance that a pair whose chosen completion the judge prefers has a larger margin than "
            "a pair whose rejected completion it prefers"
        ),
        "McNemar": Figure(
            "test of no difference in accuracy between two policies, by the pairs that only one of "
            "them has right",
        ),
        "smallest effect": Figure(
            "the smallest true difference that such data would show in 80% of samples"
        ),
    }
)
"""Every figure under the name that the text output prints."""

TRL_METRICS: Final = MappingProxyType(
    {figure.trl: name for name, figure in FIGURES.items() if figure.trl}
)
"""TRL's metric names and the figures they stand for."""


def in_words(name: str, unit: str | None = None) -> str:
    """Return what a figure is, with its unit: the declared one, or `unit`."""
    figure = FIGURES[name]
    return ", ".join(filter(None, (figure.text, figure.unit if unit is None else unit)))
