"""Token counts that come as floats, as pandas makes of integers with a hole."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

import polars as pl

from dpo_pipeline.contract.rules import Rule, RuleSet

WHOLE: Final = "whole"
"""The name of the rule."""
_LIMIT: Final = 2**52
"""Whole numbers are below it; at minus it and below lies what stands for another float."""


def whole(column: pl.Expr) -> pl.Expr:
    """Return floats as Int64: NaN as null, and what is no whole number as one that breaks rules.

    That one is the bits of minus the float, so that a report can show the float.
    """
    value = column.cast(pl.Float64)
    is_whole = (value == value.floor()) & (value.abs() < _LIMIT)
    bits = (-value.abs()).reinterpret(dtype=pl.Int64)
    return pl.when(value.is_nan().not_()).then(
        pl.when(is_whole).then(value.cast(pl.Int64, strict=False)).otherwise(bits)
    )


def without_bits(column: pl.Expr) -> pl.Expr:
    """Return counts with null where a float was no whole number."""
    return pl.when(column > -_LIMIT).then(column)


def with_whole_rules(rules: RuleSet, names: Iterable[str]) -> RuleSet:
    """Return these rules and one on each of these counts, which were made by `whole`.

    A count that breaks it counts as keeping the others, so that one fault has one name.
    """
    keeps = {name: (pl.col(name) > -_LIMIT).fill_null(value=True) for name in names}
    own = (
        Rule(
            column=name,
            check=WHOLE,
            requirement="a whole number",
            keeps=is_whole,
            found=pl.col(name).reinterpret(dtype=pl.Float64).abs(),
        )
        for name, is_whole in keeps.items()
    )
    others = (
        replace(rule, keeps=keeps[rule.column].not_() | rule.keeps)
        if rule.column in keeps
        else rule
        for rule in rules.rules
    )
    return replace(rules, rules=(*own, *others))
