"""The contracts as pandera schemas, to be subclassed: `PreferencePairs` and `Completions`."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Final, Optional, cast

import pandera.polars as pa
import polars as pl

from dpo_pipeline.columns import ALL_LOGPS, ROLES, Needs
from dpo_pipeline.contract.row_rules import empty_rules
from dpo_pipeline.contract.rules import WANTED
from dpo_pipeline.contract.value_rules import rules_of
from dpo_pipeline.defaults import MAX_LOGP

OUR_TITLE: Final = "preference pairs"
"""Marks our own checks in a schema that inherits them."""


@cache
def row_model(max_logp: float = MAX_LOGP, needs: Needs = ALL_LOGPS) -> type[pa.DataFrameModel]:
    """Return the pandera model of rows whose log-probs are at most `max_logp`."""
    roles = [role for role in ROLES.values() if role.name in WANTED and needs.have(role)]
    is_of_pairs = needs.row == "pair"
    annotations: dict[str, Any] = {}
    body: dict[str, Any] = {
        "__module__": __name__,
        "__doc__": f"{'Preference pairs' if is_of_pairs else 'Completions'}: subclass it to add "
        "columns and row-by-row checks.",
        "__annotations__": annotations,
    }
    for role in roles:
        dtype, _ = WANTED[role.name]
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
    for each in empty_rules(needs, max_logp):
        column, keeps = str(each.column), each.keeps
        body[f"{column}_{each.check}"] = _as_check(
            each.check, each.requirement, _always(keeps), (column,)
        )
    name = "PreferencePairs" if is_of_pairs else "Completions"
    return cast("type[pa.DataFrameModel]", type(name, (pa.DataFrameModel,), body))


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


PreferencePairs = row_model()
Completions = row_model(needs=Needs(row="completion"))
