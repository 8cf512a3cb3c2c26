"""Figures by name: what each is, its unit, formula and source, and what TRL calls it.

Pages, schemas, `--help` and `dpo-pipeline explain` say these texts.
"""

from __future__ import annotations

import math
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
        reading: How its values are read: which are good, what nothing would give.
        range: What it can be; intervals are cut to that.
    """

    text: str
    unit: str = ""
    formula: str = ""
    source: str = ""
    trl: str = ""
    also: tuple[str, ...] = ()
    reading: str = ""
    range: tuple[float, float] = (-math.inf, math.inf)

    @property
    def limits(self) -> str:
        """Its range in words; empty if it has none."""
        low, high = self.range
        if math.isinf(low):
            return ""
        return f"at least {low:g}" if math.isinf(high) else f"from {low:g} to {high:g}"


_SHARE: Final = (0.0, 1.0)
_POSITIVE: Final = (0.0, math.inf)
_CORRELATION: Final = (-1.0, 1.0)


def _logps(side: str, model: str, trl: str = "") -> Figure:
    return Figure(
        f"mean log-prob of the {side} completion under the {model}",
        "nats",
        "summed over the tokens of a completion, then averaged over pairs",
        trl=trl,
        reading="longer texts have lower ones; read the log-ratio to the other model instead",
    )


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
            "smaller is better; 0.6931 is the DPO loss of margins of 0; depends on beta",
        ),
        "chosen_reward": Figure(
            "mean implicit reward of the chosen completion",
            "nats",
            "mean(beta * (policy_chosen_logps - ref_chosen_logps)) for the DPO loss",
            _DPO,
            "rewards/chosen",
            ("chosen reward",),
            "below 0 the policy made chosen completions less likely than the reference has them",
        ),
        "rejected_reward": Figure(
            "mean implicit reward of the rejected completion",
            "nats",
            "mean(beta * (policy_rejected_logps - ref_rejected_logps)) for the DPO loss",
            _DPO,
            "rewards/rejected",
            ("rejected reward",),
            "below 0 the policy made rejected completions less likely, as it should",
        ),
        "reward_accuracy": Figure(
            f"{_ACCURACY}; a tie counts as wrong, as in TRL",
            formula="mean(z > 0)",
            trl="rewards/accuracies",
            also=("accuracy", "reward accuracy"),
            reading="1/2 is a coin toss; does not depend on beta",
            range=_SHARE,
        ),
        "reward_accuracy_half": Figure(
            f"{_ACCURACY}; a tie counts half",
            formula="mean(z > 0) + mean(z = 0) / 2",
            also=("tied accuracy", "accuracy, ties half"),
            reading="1/2 is a coin toss, and what an untrained policy has, of ties alone",
            range=_SHARE,
        ),
        "tie_rate": Figure(
            "share of pairs with equal rewards",
            formula="mean(z = 0)",
            reading="many ties mean log-probs of a coarse format, or a policy that did not move",
            range=_SHARE,
        ),
        "reward_margin": Figure(
            "mean margin: chosen reward less rejected reward",
            "nats",
            "mean(z)",
            _DPO,
            "rewards/margins",
            ("margin", "reward margin", "mean margin"),
            "above 0 is better than no training; grows with beta, and a few pairs can make it",
        ),
        "log_loss": Figure(
            "log loss of the chance that a margin claims",
            "nats",
            "mean(-log sigmoid(z))",
            "I. Good, Rational Decisions, 1952",
            reading="smaller is better; 0.6931 (log 2) is that of margins of 0",
            range=_POSITIVE,
        ),
        "brier": Figure(
            "Brier score: mean squared error of sigmoid(z), the chance that a margin claims for "
            "the chosen completion to be the better one",
            "",
            "mean((1 - sigmoid(z))^2)",
            "G. Brier, Verification of forecasts expressed in terms of probability, 1950",
            also=("Brier score",),
            reading="smaller is better; 0.25 is that of margins of 0, and what is above says less "
            "than a coin; margins that are right but too sure make it larger",
            range=_SHARE,
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
            also=("displaced",),
            reading="above 1/2 the probability of most chosen texts went elsewhere",
            range=_SHARE,
        ),
        "rejected_down": Figure(
            "share of rejected completions less likely under the policy than under the reference",
            formula="mean(policy_rejected_logps < ref_rejected_logps)",
            source=_DISPLACEMENT,
            reading="training is meant to raise it",
            range=_SHARE,
        ),
        "both_down": Figure(
            "share of pairs of which both completions are less likely than under the reference",
            formula="mean of both comparisons being true",
            source=_DISPLACEMENT,
            reading="where it is large, margins grow as both sides fall",
            range=_SHARE,
        ),
        "calibration error": Figure(
            "how far the chance that margins claim is from the share that is right, less what "
            "chance alone adds",
            formula="mean over bins of |mean sigmoid(|z|) - accuracy|, weighted by pairs, debiased",
            source="arXiv 1706.04599, folded at 0; less its mean for calibrated margins",
            reading="0 is calibrated; says nothing of which side errs: see the reliability diagram",
            range=_SHARE,
        ),
        "best beta": Figure(
            "the beta at which these margins have the smallest log loss",
            "as beta",
            "argmin over b of mean(-log sigmoid(z b / beta))",
            reading="below the beta that was used, margins are too sure; above, not sure enough",
            range=_POSITIVE,
        ),
        "margin at equal length": Figure(
            "mean margin of pairs whose completions are equally long",
            "nats",
            "the intercept of the line of z over chosen less rejected tokens",
            reading="beside the mean margin it says how much of that is length",
        ),
        "margin per token longer": Figure(
            "what a token more of the chosen completion adds to the margin",
            "nats a token",
            "the slope of the line of z over chosen less rejected tokens",
            reading="above 0 longer completions are preferred, below 0 shorter ones",
        ),
        "share of flipped labels": Figure(
            "share of labels reversed at random that would make these margins likeliest",
            formula="the e that is best in mean(-log((1 - e) sigmoid(z) + e sigmoid(-z)))",
            reading="0 needs no reversed label; the policy's own errors count as such too",
            range=(0.0, 0.5),
        ),
        "macro mean": Figure(
            "mean accuracy of the subsets, each counting once",
            formula="mean over subsets of mean(z > 0)",
            also=("macro",),
            reading="beside the accuracy of all pairs it says whether large subsets make that",
            range=_SHARE,
        ),
        "weighted mean": Figure(
            "mean accuracy of the subsets, weighted as asked", also=("weighted",), range=_SHARE
        ),
        "judge: rank correlation": Figure(
            "Spearman's correlation of margins and the judge's score gaps",
            reading="1 is the judge's order, 0 none",
            range=_CORRELATION,
        ),
        "judge: AUC": Figure(
            "chance that a pair whose chosen completion the judge prefers has a larger margin than "
            "a pair whose rejected completion it prefers",
            reading="1/2 is no agreement",
            range=_SHARE,
        ),
        "McNemar": Figure(
            "test of no difference in accuracy between two policies, by the pairs that only one of "
            "them has right",
            formula="binomial test of n only B among n only A + n only B, with chance 1/2",
            source="Q. McNemar, 1947",
            reading="takes pairs as independent: not to be read where prompts repeat",
        ),
        "smallest effect": Figure(
            "the smallest true difference that such data would show in 80% of samples",
            also=("smallest_effect", "power"),
            reading="where it is larger than what matters to you, no difference shown means little",
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
