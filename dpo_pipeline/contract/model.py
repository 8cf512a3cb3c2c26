"""The contract of preference pairs as a pandera schema: `PreferencePairs`, to be subclassed."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Final, Optional, cast

import pandera.polars as pa
import polars as pl

from dpo_pipeline.columns import ALL_LOGPS, COUNT_ROLES, EXTRA_ROLES, LOGP_ROLES, Needs
from dpo_pipeline.contract.row_rules import empty_rules
from dpo_pipeline.contract.value_rules import rules_of
from dpo_pipeline.defaults import MAX_LOGP

OUR_TITLE: Final = "preference pairs"
"""Marks our own checks in a schema that inherits them."""


@cache
def pairs_model(max_logp: float = MAX_LOGP, needs: Needs = ALL_LOGPS) -> type[pa.DataFrameModel]:
    """Return the pandera model of preference pairs whose log-probs are at most `max_logp`."""
    roles = [role for role in (*LOGP_ROLES, *COUNT_ROLES, *EXTRA_ROLES) if needs.have(role)]
    annotations: dict[str, Any] = {}
    body: dict[str, Any] = {
        "__module__": __name__,
        "__doc__": "Preference pairs: subclass it to add columns and row-by-row checks.",
        "__annotations__": annotations,
    }
    for role in roles:
        dtype = pl.Int64 if role.kind == "count" else pl.Float64
        annotations[role.name] = dtype if needs.require(role) else Optional[dtype]  # noqa: UP045  not a type at run time
        # pandera's own nullable=False calls NaN null; our rules tell the two apart.
        body[role.name] = pa.Field(
            nullable=True,
            description=role.description,
            metadata={"unit": role.unit, "aliases": list(role.aliases)},
        )
    for kind in dict.fromkeys(role.kind for role in roles):
        alike = [role for role in roles if role.kind == kind]
        for rule in rules_of(alike[0], max_logp, needs):
            names = tuple(role.name for role in alike)
            body[f"{kind}_{rule.name}"] = _as_check(rule.name, rule.text, rule.keeps, names)
    for each in empty_rules() if needs.reference else ():
        column, keeps = str(each.column), each.keeps
        body[f"{column}_{each.check}"] = _as_check(
            each.check, each.requirement, _always(keeps), (column,)
        )
    return cast("type[pa.DataFrameModel]", type("PreferencePairs", (pa.DataFrameModel,), body))


def _always(keeps: pl.Expr) -> Callable[[pl.Expr], pl.Expr]:
    return lambda _column: keeps


def _as_check(
    name: str, text: str, keeps: Callable[[pl.Expr], pl.Expr], columns: tuple[str, ...]
) -> Any:
    def check(_cls: type, data: pa.PolarsData) -> pl.LazyFrame:
        return data.lazyframe.select(keeps(pl.col(data.key)))

    check.__name__ = name  # pandera names a check after its function
    ignore_na = name != "not_null"
    return pa.check(*columns, error=text, title=OUR_TITLE, ignore_na=ignore_na)(check)


PreferencePairs = pairs_model()
