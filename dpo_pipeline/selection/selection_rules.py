"""The rules that rank pairs: a row each, with its expression, formula, source and blind spots."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from types import MappingProxyType
from typing import Any, Final

import polars as pl

from dpo_pipeline.columns import LOSS, PROMPT_ID, REWARD_MARGIN, did_you_mean
from dpo_pipeline.errors import UsageError
from dpo_pipeline.options import Selection
from dpo_pipeline.statistics import mixed

KEY: Final = "__dpo_pipeline_key"
"""The column of a pair's hash: of its `pair_id`, or of its row where there is none."""

_SEED: Final = 0x9E3779B97F4A7C15
_UNIT: Final = 2.0**64
_LIMITS: Final = ("implicit_low", "implicit_high", "judge_low", "judge_high")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A row of the table.

    `value` makes the expression from the options. Pairs are ranked by it, the smallest first, or
    the largest if `largest_first`.
    """

    name: str
    keeps: str  # what it keeps first
    formula: str
    source: str
    needs: str  # columns and arguments beside the log-probs
    blind_to: str  # what it cannot see
    value: Callable[[Selection], pl.Expr]
    largest_first: bool = False
    one_a_prompt: bool = False  # whether only the first pair of each prompt is ranked
    arguments: tuple[str, ...] = ()
    own: bool = False  # whether it is an expression of the caller's


def _smallest_gap(_: Selection) -> pl.Expr:
    return pl.col(REWARD_MARGIN)


def _nearest_tie(_: Selection) -> pl.Expr:
    return pl.col(REWARD_MARGIN).abs()


def _largest_margin(asked: Selection) -> pl.Expr:
    margin, judge = pl.col(REWARD_MARGIN), asked.judge_columns
    if not judge:
        if asked.arguments:
            raise UsageError("largest_margin takes limits with a judge: name its columns (--judge)")
        return margin
    missing = [name for name in _LIMITS if name not in asked.arguments]
    if missing:
        raise UsageError(
            f"largest_margin with a judge needs {', '.join(missing)}: the limits at which margins "
            f"are cut, which nobody can choose for you: --rule-arg {missing[0]}=-2"
        )
    gap = pl.col(judge[0]) - pl.col(judge[1]) if len(judge) > 1 else pl.col(judge[0])
    own = _clipped(margin, asked.arguments, "implicit")
    other = _clipped(gap.cast(pl.Float64), asked.arguments, "judge")
    both, neither = own * other, (1.0 - own) * (1.0 - other)
    return both / (both + neither)


def _clipped(margin: pl.Expr, limits: Mapping[str, float], which: str) -> pl.Expr:
    low, high = limits[f"{which}_low"], limits[f"{which}_high"]
    if not low < high:
        raise UsageError(f"{which}_low must be below {which}_high, found {low:g} and {high:g}")
    # clip takes null and NaN as they are.
    return (margin.clip(low, high) - low) / (high - low)


def _easiest(asked: Selection) -> pl.Expr:
    losses = asked.loss_columns or (LOSS,)
    return pl.mean_horizontal([pl.col(name).cast(pl.Float64).fill_nan(None) for name in losses])


def _random(asked: Selection) -> pl.Expr:
    seed = (asked.seed * _SEED + 1) % 2**64
    return mixed(pl.col(KEY) ^ pl.lit(seed, pl.UInt64)).cast(pl.Float64) / _UNIT


RULES: Final[Mapping[str, Rule]] = MappingProxyType(
    {
        rule.name: rule
        for rule in (
            Rule(
                name="smallest_gap",
                keeps="pairs with the smallest margin, wrongly ranked ones first",
                formula="margin, ascending, with its sign",
                source="arXiv 2508.04149, whose code sorts the signed margin ascending",
                needs="nothing more",
                blind_to="why a margin is negative: flipped labels come first",
                value=_smallest_gap,
            ),
            Rule(
                name="nearest_tie",
                keeps="pairs whose rewards are closest to each other",
                formula="|margin|, ascending",
                source="distance to the decision boundary, as in uncertainty sampling",
                needs="nothing more",
                blind_to="whether a small margin is a hard pair, or one of two like completions",
                value=_nearest_tie,
            ),
            Rule(
                name="largest_margin",
                keeps="pairs with the largest margin, or the largest one that a judge agrees with",
                formula="margin, descending; with a judge, p_1 p_2 / (p_1 p_2 + "
                "(1 - p_1)(1 - p_2)), descending, of p_i = (clip(m_i, L, U) - L) / (U - L) for "
                "both margins m_i",
                source="arXiv 2502.14560",
                needs="with a judge: --judge, and L and U as implicit_low, implicit_high, "
                "judge_low, judge_high",
                blind_to="what the policy gets wrong: pairs that it ranks wrongly come last",
                value=_largest_margin,
                largest_first=True,
                arguments=_LIMITS,
            ),
            Rule(
                name="easiest",
                keeps="pairs with the smallest mean loss, one pair a prompt",
                formula="mean of the loss columns, ascending; of pairs of one prompt, the first "
                "in the data alone is ranked",
                source="arXiv 2502.09650, and its make_curricula.py",
                needs="--loss-column: losses of models that did not train on the pair; without it, "
                "the loss of this policy",
                blind_to="whether those models saw the pair: no figure shows it",
                value=_easiest,
                one_a_prompt=True,
            ),
            Rule(
                name="random",
                keeps="pairs at random: what other rules are to be compared with",
                formula="SplitMix64 of the seed and of the pair's id (its row without one) / 2^64",
                source="doi 10.1145/2714064.2660195",
                needs="--seed, 0 without it",
                blind_to="everything",
                value=_random,
            ),
        )
    }
)
"""Every rule by name."""


def rule_of(rule: Any, asked: Selection) -> Rule:
    """Return the rule of a name, of an expression of Polars, or of one in SQL.

    Raises:
        UsageError: There is no such rule, or it lacks an argument.
    """
    if isinstance(rule, pl.Expr):
        return _own(str(rule), rule)
    if not isinstance(rule, str) or not rule.strip():
        there = ", ".join(RULES)
        raise UsageError(f"rule must be {there}, or an expression, found {rule!r}")
    found = RULES.get(rule)
    if found is None:
        if rule.isidentifier() and (near := did_you_mean(rule, RULES)):
            raise UsageError(f"rule: there is no {rule!r}{near}; there are {', '.join(RULES)}")
        try:
            return _own(rule, pl.sql_expr(rule))
        except pl.exceptions.PolarsError as error:
            there = ", ".join(RULES)
            raise UsageError(f"rule: {rule!r} is none of {there}, and no SQL: {error}") from None
    unknown = [name for name in asked.arguments if name not in found.arguments]
    if unknown:
        takes = ", ".join(found.arguments) or "no arguments"
        raise UsageError(f"rule {rule} takes {takes}, found {', '.join(unknown)}")
    for name, value in asked.arguments.items():
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            raise UsageError(f"{name} of {rule} must be a finite number, found {value!r}")
    return found


def _own(name: str, expression: pl.Expr) -> Rule:
    return Rule(
        name=name,
        keeps="pairs with the smallest value",
        formula=f"{name}, ascending",
        source="your own",
        needs="the columns that it names",
        blind_to="what you did not write into it",
        value=lambda _: expression.cast(pl.Float64),
        own=True,
    )


def needed_columns(rule: Rule, asked: Selection) -> Sequence[str]:
    """Return the columns beside those of scored pairs that a rule needs."""
    if rule.name == "largest_margin":
        return asked.judge_columns
    if rule.name == "easiest":
        return asked.loss_columns
    return ()


def notes_of(rule: Rule, asked: Selection, columns: Sequence[str]) -> list[str]:
    """Return what is to be said about a rule and these columns, a sentence each."""
    if rule.name != "easiest":
        return []
    notes = []
    if not asked.loss_columns:
        notes.append(
            "easiest: without --loss-column it ranks by the loss of this policy, which may have "
            "trained on these pairs"
        )
    else:
        notes.append("easiest: that the losses are of held-out models cannot be checked")
    if PROMPT_ID.name not in columns:
        notes.append("easiest: without prompt_id no pair is known to repeat a prompt")
    return notes
