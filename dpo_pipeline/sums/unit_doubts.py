"""Doubts about what columns are in: averages, other units, one value, sums of a guessing model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from dpo_pipeline.columns import CHOSEN_TOKENS, LOGPS, REJECTED_TOKENS
from dpo_pipeline.defaults import AVERAGED_LOGP_FLOOR, SENSE_FEWEST, SENSE_FROM
from dpo_pipeline.invalid_report import Doubt
from dpo_pipeline.sums.sense import Sense

_C, _R, _REF_C, _REF_R = LOGPS
MODELS: Final = {"policy": "policy_", "reference": "ref_"}
"""How the names of each model's log-probs begin."""

_GUESSING: Final = -7.0
"""Mean log-prob of a token, in nats, below which no model expects the text."""
_CERTAIN: Final = -0.05
"""Mean log-prob of a token, in nats, that no two models give to both completions."""
_CERTAIN_SIDE: Final = -0.1
_DOUBTFUL: Final = -0.3
_SOME_TOKENS: Final = 20.0
_FEW: Final = 20
_SIMILAR: Final = 1.6
_STEADY: Final = 0.4
"""Averages of real texts vary by 0.16 to 0.26 of their mean, sums by 1."""
_OTHER_UNIT: Final = 1.35
"""Sound policies differ from the reference by factors of 0.75 to 1.25, simulated ones too."""
_SAME_FACTOR: Final = 0.03
_UNEXPLAINED: Final = 0.05

OF_SUMS: Final = frozenset(
    {
        *("confident_errors", "displacement", "worse_than_chance", "subset_worse_than_chance"),
        *("baseline", "length", "precision", "ties"),
    }
)
LOOK_AT_LOGPS: Final = "Look at how the log-probs were made before you read any figure."


def averaged(sense: Sense) -> Iterator[Doubt]:
    """Yield that log-probs look averaged: none is low, or their tokens are all but certain."""
    of_tokens = _certain(sense)
    if of_tokens is not None:
        yield of_tokens
        return
    if sense.max_tokens is not None and sense.max_tokens <= -AVERAGED_LOGP_FLOOR:
        return  # sums over so few tokens can be as high as averages
    lowest = {
        model: min(value for name, value in sense.lowest.items() if name.startswith(prefix))
        for model, prefix in MODELS.items()
        if any(name.startswith(prefix) for name in sense.lowest)
    }
    high = [model for model, value in lowest.items() if value > AVERAGED_LOGP_FLOOR]
    if not high:
        return
    if len(high) == len(lowest):
        yield Doubt(
            "averaged",
            f"no log-prob is below {AVERAGED_LOGP_FLOOR:g} nats (the lowest is "
            f"{min(lowest.values()):.4g})",
            "they look averaged over tokens, and the DPO loss takes sums",
            LOOK_AT_LOGPS,
            OF_SUMS,
        )
        return
    if lowest[high[0]] == 0.0:
        return  # a column of zeros: a reference that was left out
    other = next(model for model in lowest if model not in high)
    yield Doubt(
        "averaged",
        f"no log-prob of the {high[0]} is below {AVERAGED_LOGP_FLOOR:g} nats (the lowest is "
        f"{lowest[high[0]]:.4g}), and those of the {other} go down to {lowest[other]:.4g}",
        f"the {high[0]}'s look averaged over tokens, and the loss takes sums of both",
        LOOK_AT_LOGPS,
        OF_SUMS,
    )


def constant(sense: Sense) -> Iterator[Doubt]:
    """Yield columns with one value. One completion against several is constant in both models."""
    constant = [name for name in sense.lowest if sense.lowest[name] == sense.highest[name]]
    if sense.n_seen == 1 or (not sense.has_reference and len(constant) < len(sense.lowest)):
        return
    for name in constant:
        side = "_chosen_" if "_chosen_" in name else "_rejected_"
        alike = [each for each in sense.lowest if side in each and each in constant]
        if len(alike) == 1 or len(constant) == len(sense.lowest):
            yield Doubt(
                "constant",
                f"{name} is {sense.lowest[name]:.6g} on all {sense.n_seen:,} valid pairs",
                "a constant column is no model's output",
                LOOK_AT_LOGPS,
                OF_SUMS,
            )


def _per_token(sense: Sense) -> dict[str, float]:
    """Return the mean log-prob of a token by column, where texts are long enough to tell."""
    found: dict[str, float] = {}
    for side, count in (("chosen", CHOSEN_TOKENS.name), ("rejected", REJECTED_TOKENS.name)):
        tokens = sense.tokens_mean(count)
        if tokens is not None and tokens >= _SOME_TOKENS:
            names = [name for name in sense.lowest if f"_{side}_" in name]
            found |= {n: sense.mean(n) / tokens for n in names if sense.highest[n] < 0.0}
    return found


def _certain(sense: Sense) -> Doubt | None:
    """Return that all columns, or those of one side, are too high for the tokens they are of.

    A policy alone may know texts by heart, and one side of them.
    """
    per_token = {} if sense.n < SENSE_FEWEST else _per_token(sense)
    if not per_token:
        return None
    high = [name for name, each in per_token.items() if each > _CERTAIN_SIDE]
    others = {name: each for name, each in per_token.items() if name not in high}
    is_all = len(high) == len(sense.lowest) and min(per_token.values()) > _CERTAIN
    sides = {name.split("_")[1] for name in high}
    is_side = len(high) == len(others) == 2 and len(sides) == 1  # noqa: PLR2004
    is_averaged = all(sense.lowest[name] > AVERAGED_LOGP_FLOOR for name in high)
    is_side = is_side and is_averaged and sense.n >= SENSE_FROM
    is_side = is_side and max(others.values()) < _DOUBTFUL
    side = min(sides) if is_side else _of_the_others_rate(sense, per_token)
    if not (is_all or side is not None):
        return None
    which = "all log-probs are" if is_all else f"log-probs of {side} are"
    seen = ", ".join(f"{name} {each:.3g}" for name, each in per_token.items())
    return Doubt(
        "averaged",
        f"{which} higher than a model gives to so many tokens",
        f"on average, in nats a token: {seen}; they look averaged over tokens, or scaled",
        LOOK_AT_LOGPS,
        OF_SUMS,
    )


def _of_the_others_rate(sense: Sense, per_token: Mapping[str, float]) -> str | None:
    """Return the side whose log-probs are what a token of the other side has, in both models.

    They vary little then, as averages do: sums vary as the lengths of texts.
    """
    for side, other in (("chosen", "rejected"), ("rejected", "chosen")):
        names = [name for name in per_token if f"_{side}_" in name]
        rates = [per_token.get(name.replace(side, other)) for name in names]
        if (
            len(names) == len(MODELS)
            and sense.n >= _FEW
            and all(
                rate is not None
                and 1.0 / _SIMILAR < sense.mean(name) / rate < _SIMILAR
                and sense.covariance(name, name) < (_STEADY * sense.mean(name)) ** 2
                for name, rate in zip(names, rates, strict=True)
            )
        ):
            return side
    return None


def scaled(sense: Sense) -> Doubt | None:
    """Return that one model's log-probs are a multiple of the other's, on both sides alike."""
    factors, unexplained = [], []
    for ours, theirs in ((_C, _REF_C), (_R, _REF_R)):
        own, both = sense.covariance(theirs, theirs), sense.covariance(ours, theirs)
        if not (own > 0.0 and both > 0.0 and sense.variance_of_move(ours) > 0.0):
            return None
        factors.append(both / own)
        left = sense.covariance(ours, ours) - both * both / own
        unexplained.append(left / sense.variance_of_move(ours))
    low, high = sorted(factors)
    is_other = low > _OTHER_UNIT or high < 1.0 / _OTHER_UNIT
    if not (is_other and high / low < 1.0 + _SAME_FACTOR and max(unexplained) < _UNEXPLAINED):
        return None
    if guessing(sense) is not None:
        return None
    return Doubt(
        "scaled",
        f"the policy's log-probs are about {factors[0]:.3g} times the reference's",
        f"{factors[0]:.4g} times for chosen and {factors[1]:.4g} times for rejected, which is at "
        f"least {1.0 - max(unexplained):.0%} of how log-ratios vary",
        "Look whether one model's are in another unit (log2, log10), or divided by a temperature.",
        OF_SUMS,
    )


def guessing(sense: Sense) -> Doubt | None:
    """Return that a model's log-probs are so low that it does not know the language."""
    for model, prefix in MODELS.items():
        per_token = []
        for side, count in (("chosen", CHOSEN_TOKENS.name), ("rejected", REJECTED_TOKENS.name)):
            tokens, name = sense.tokens_mean(count), f"{prefix}{side}_logps"
            if tokens is not None and name in sense.lowest:
                per_token.append(sense.mean(name) / tokens)
        if per_token and max(per_token) < _GUESSING:
            return Doubt(
                "guessing",
                f"the {model}'s log-probs are those of a model that guesses",
                f"on average {' and '.join(f'{each:.3g}' for each in per_token)} nats a token",
                "Look whether labels were shifted by one token, and whether token counts are those "
                "of the sums.",
                OF_SUMS,
            )
    return None
