"""The contract of preference pairs as a pandera schema; `PreferencePairs` is the model to subclass.

Each rule of a log-prob column is a check of its own, so that a report can say which one is broken.
A value breaks at most one of them, so that one fault is counted under one name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Optional, cast

import pandera.polars as pa
import polars as pl

from dpo_pipeline.columns import ALL_LOGPS, COUNT_ROLES, LOGP_ROLES, Needs, Role
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


OUR_TITLE: Final = "preference pairs"
"""Marks our own checks in a schema that inherits them."""

COUNT_RULES: Final = (
    ValueRule("at_least", "at least {bound}", lambda c: c >= 1, "{column} < 1", 1),
)
"""Rules of a token count. A null count is unknown, and wrong only where a loss divides by it."""


def rules_of(
    role: Role, max_logp: float = MAX_LOGP, needs: Needs = ALL_LOGPS
) -> tuple[ValueRule, ...]:
    """Return the value rules of a role's column."""
    if role.kind == "logp":
        return logp_rules(max_logp) if needs.have(role) else ()
    if role.kind == "count":
        return (*logp_rules()[:1], *COUNT_RULES) if needs.tokens else COUNT_RULES
    return ()


@cache
def pairs_model(max_logp: float = MAX_LOGP, needs: Needs = ALL_LOGPS) -> type[pa.DataFrameModel]:
    """Return the pandera model of preference pairs whose log-probs are at most `max_logp`."""
    roles = [role for role in (*LOGP_ROLES, *COUNT_ROLES) if needs.have(role)]
    annotations: dict[str, Any] = {}
    body: dict[str, Any] = {
        "__module__": __name__,
        "__doc__": "Preference pairs: subclass it to add columns and row-by-row checks.",
        "__annotations__": annotations,
    }
    for role in roles:
        dtype = pl.Float64 if role.kind == "logp" else pl.Int64
        annotations[role.name] = dtype if needs.require(role) else Optional[dtype]  # noqa: UP045  not a type at run time
        # pandera's own nullable=False calls NaN null; our rules tell the two apart.
        body[role.name] = pa.Field(
            nullable=True,
            description=role.description,
            metadata={"unit": role.unit, "aliases": list(role.aliases)},
        )
    for kind in ("logp", "count"):
        alike = [role for role in roles if role.kind == kind]
        for rule in rules_of(alike[0], max_logp, needs):
            names = tuple(role.name for role in alike)
            body[f"{kind}_{rule.name}"] = _as_check(rule, names)
    return cast("type[pa.DataFrameModel]", type("PreferencePairs", (pa.DataFrameModel,), body))


def _as_check(rule: ValueRule, columns: tuple[str, ...]) -> Any:
    def check(_cls: type, data: pa.PolarsData) -> pl.LazyFrame:
        return data.lazyframe.select(rule.keeps(pl.col(data.key)))

    check.__name__ = rule.name  # pandera names a check after its function
    ignore_na = rule.name != "not_null"
    return pa.check(*columns, error=rule.text, title=OUR_TITLE, ignore_na=ignore_na)(check)


PreferencePairs = pairs_model()
