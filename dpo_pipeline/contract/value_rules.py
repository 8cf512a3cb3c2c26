"""The rules of a value, as pure expressions: the pandera model and the plans are made from them.

Each rule of a log-prob column is one of its own, so that a report can say which one is broken.
A value breaks at most one of them, so that one fault is counted under one name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import polars as pl

from dpo_pipeline.columns import ALL_LOGPS, Needs, Role
from dpo_pipeline.defaults import LOGP_LIMIT, MAX_LOGP


@dataclass(frozen=True, slots=True)
class ValueRule:
    """One rule on the values of a column."""

    name: str
    requirement: str  # what a value must be, in words; `{bound}` stands for `bound`
    keeps: Callable[[pl.Expr], pl.Expr]  # true where the rule is kept
    broken_sql: str  # true where it is broken; `{column}` stands for the column
    bound: float | None = None  # the number in the rule

    @property
    def text(self) -> str:
        """The requirement with its number."""
        return self.requirement.format(bound="" if self.bound is None else f"{self.bound:,.10g}")


def logp_rules(max_logp: float = MAX_LOGP) -> tuple[ValueRule, ...]:
    """Return the rules of a log-prob column. A value breaks at most one of them."""
    return (
        ValueRule("not_null", "not null", lambda c: c.is_not_null(), "{column} IS NULL"),
        ValueRule("not_nan", "not NaN", lambda c: c.is_not_nan(), "isnan({column})"),
        ValueRule("finite", "finite", lambda c: c.is_infinite().not_(), "isinf({column})"),
        ValueRule(
            "at_least",
            "at least {bound}",
            # Polars orders NaN above every number, so it passes here; another rule refuses it.
            lambda c: (c >= -LOGP_LIMIT) | c.is_infinite(),
            f"{{column}} < {-LOGP_LIMIT:.0f} AND NOT isinf({{column}})",
            -LOGP_LIMIT,
        ),
        ValueRule(
            "at_most",
            "at most {bound}",
            lambda c: (c <= max_logp) | c.is_infinite() | c.is_nan(),
            f"{{column}} > {max_logp!r} AND NOT isinf({{column}}) AND NOT isnan({{column}})",
            max_logp,
        ),
    )


def sound_logp(column: pl.Expr, max_logp: float) -> pl.Expr:
    """Return true where a log-prob keeps all of `logp_rules`, by one comparison instead of five.

    Never null. On clean data it costs a fourth of the rules taken one by one; a test holds
    the two to the same rows.
    """
    return column.is_between(-LOGP_LIMIT, max_logp).fill_null(value=False)


COUNT_RULES: Final = (
    ValueRule("at_least", "at least {bound}", lambda c: c >= 1, "{column} < 1", 1),
)
"""Rules of a token count. A null count is unknown, and wrong only where a loss divides by it."""

_NOT_NULL, _NOT_NAN, _FINITE = logp_rules()[:3]
EXTRA_RULES: Final = {
    "offset": (
        _NOT_NULL,
        _NOT_NAN,
        ValueRule(
            "within",
            "within {bound}",
            lambda c: (c.abs() <= LOGP_LIMIT) | c.is_nan(),
            f"abs({{column}}) > {LOGP_LIMIT:.0f} AND NOT isnan({{column}})",
            LOGP_LIMIT,
        ),
    ),
    "probability": (
        _NOT_NULL,
        _NOT_NAN,
        ValueRule(
            "share",
            "from 0 to 1",
            lambda c: c.is_between(0.0, 1.0) | c.is_nan(),
            "NOT {column} BETWEEN 0 AND 1 AND NOT isnan({column})",
        ),
    ),
}
"""Rules of the columns that single losses ask for, by kind."""

PREFERENCE_RULES: Final = {
    **dict.fromkeys(("key", "label"), (_NOT_NULL,)),
    **dict.fromkeys(("rank", "score"), (_NOT_NULL, _NOT_NAN, _FINITE)),
}
"""Rules of what tells which completion of a prompt is better, by kind."""


def rules_of(
    role: Role, max_logp: float = MAX_LOGP, needs: Needs = ALL_LOGPS
) -> tuple[ValueRule, ...]:
    """Return the value rules of a role's column."""
    if role.kind == "logp":
        return logp_rules(max_logp) if needs.have(role) else ()
    if role.kind == "kl_logp":
        return logp_rules(max_logp)
    if role.kind == "count":
        return (_NOT_NULL, *COUNT_RULES) if needs.tokens else COUNT_RULES
    if "completion" in role.of:
        return PREFERENCE_RULES.get(role.kind, ()) if role.name in needs.extras else ()
    return EXTRA_RULES.get(role.kind, ())
