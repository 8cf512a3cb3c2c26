"""Binds the contract to a dataset once, so that any part of it can be prepared and judged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import polars as pl

from dpo_pipeline.arguments import checked_max_logp
from dpo_pipeline.columns import (
    ALL_LOGPS,
    CHOSEN_TOKENS,
    COUNT_ROLES,
    LOGPS,
    MASK_OF,
    OTHER_SIDE,
    POLICY_CHOSEN,
    POLICY_REJECTED,
    REF_CHOSEN,
    REF_REJECTED,
    REJECTED_TOKENS,
    ROLES,
    TOKENS_OF,
    Needs,
    resolve,
)
from dpo_pipeline.contract.rules import RuleSet, Schema, check_types, rules_for
from dpo_pipeline.contract.token_rules import with_token_rules
from dpo_pipeline.errors import ColumnError
from dpo_pipeline.losses import (
    clamped_logratio,
    kept_tokens,
    length_desensitised,
    number_of_tokens,
    sum_of_tokens,
)

_COUNTS = {role.name for role in COUNT_ROLES}


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """The contract, bound to the columns of one dataset."""

    mapping: Mapping[str, str]  # canonical name to the input column it came from
    rules: RuleSet  # expressions on prepared pairs
    columns: pl.Schema  # of prepared pairs
    max_logp: float  # largest log-probability accepted, in nats
    needs: Needs  # which columns the loss asks for
    _source: str
    _selection: tuple[pl.Expr, ...]
    _contract: Schema | None

    def prepare(self, frame: pl.LazyFrame) -> pl.LazyFrame:
        """Return a part of the dataset under canonical names and types, reading no data."""
        frame = frame.select(self._selection)
        if self._contract is None:
            return frame
        # A user's schema may fill, drop or cast columns, so each part passes through it.
        return check_types(
            frame,
            source=self._source,
            max_logp=self.max_logp,
            contract=self._contract,
            needs=self.needs,
        )


def bind(
    frame: pl.LazyFrame,
    *,
    source: str,
    max_logp: float,
    columns: Mapping[str, str] | None = None,
    contract: Schema | None = None,
    adds: Iterable[str] = (),
    replace: bool = False,
    needs: Needs = ALL_LOGPS,
) -> Binding:
    """Check columns and types and compile the rules, reading no data.

    `columns` (role to column) overrides names and aliases. An input column whose name is among
    `adds`, the columns that the caller will add, is an error, or dropped with `replace`.
    """
    max_logp = checked_max_logp(max_logp)
    schema = frame.collect_schema()
    found = resolve(schema.names(), columns, needs)
    role_of = {column: role for role, column in found.mapping.items()}
    in_the_way = [
        name
        for name in schema.names()
        if name not in role_of and (name in set(adds) or name in found.mapping)
    ]
    problems = [
        f"{name}: Polars reads this name as a pattern; rename the column"
        for name in schema
        if name == "*" or (name.startswith("^") and name.endswith("$"))
    ]
    problems += found.problems
    problems += [
        f"{name}: the input has this column already, and the output would overwrite it; "
        "rename it, or allow it (replace=True, or --replace)"
        for name in in_the_way
        if not replace
    ]
    problems = problems or list(_token_problems(found.mapping, schema, needs))
    if problems:
        raise ColumnError(source, tuple(problems))
    made = _made(found.mapping, needs)
    selection = [
        _typed(pl.col(name), schema[name], role_of[name]).alias(role_of[name])
        if name in role_of
        else pl.col(name)
        for name in schema.names()
        if name not in in_the_way
    ]
    selection += [values.alias(name) for name, values in made.items()]
    checked = check_types(
        frame.select(selection), source=source, max_logp=max_logp, contract=contract, needs=needs
    )
    return Binding(
        mapping=dict(found.mapping),
        rules=with_token_rules(
            rules_for(checked, max_logp=max_logp, contract=contract, needs=needs),
            [name for name in made if name in LOGPS],
            found.mapping,
            max_logp=max_logp,
        ),
        columns=checked.collect_schema(),
        max_logp=max_logp,
        needs=needs,
        _source=source,
        _selection=tuple(selection),
        _contract=contract,
    )


def _made(mapping: Mapping[str, str], needs: Needs) -> dict[str, pl.Expr]:
    """Return the missing sums and counts, made from lists of tokens."""
    lists = {}
    for name in needs.logps:
        tokens, mask = mapping.get(TOKENS_OF[name].name), mapping.get(MASK_OF[name].name)
        if tokens is not None and (name not in mapping or needs.tokens):
            kept = None if mask is None else pl.col(mask)
            lists[name] = kept_tokens(pl.col(tokens), kept)
    made = {n: sum_of_tokens(values) for n, values in lists.items() if n not in mapping}
    if needs.ld_alpha != 1.0:
        for name, values in lists.items():
            other = lists[OTHER_SIDE[name]]
            made[name] = length_desensitised(values, other, alpha=needs.ld_alpha)
    if needs.humanline:
        # Policy minus reference must be the clamped log-ratio; the reference keeps its sums.
        for policy, reference in ((POLICY_CHOSEN, REF_CHOSEN), (POLICY_REJECTED, REF_REJECTED)):
            clamped = clamped_logratio(lists[policy.name], lists[reference.name])
            made[policy.name] = made[reference.name] + clamped
    for name, values in lists.items():
        count = (CHOSEN_TOKENS if "_chosen_" in name else REJECTED_TOKENS).name
        if count not in mapping:
            made.setdefault(count, number_of_tokens(values))
    return made


def _token_problems(mapping: Mapping[str, str], schema: pl.Schema, needs: Needs) -> Iterator[str]:
    for role, column in mapping.items():
        if ROLES[role].kind in ("tokens", "mask") and not _is_list(schema[column]):
            yield f"{role}: must be a list of numbers, found {schema[column]}"
    argument = "humanline" if needs.humanline else "ld_alpha"
    for name in needs.logps if needs.has_token_arguments else ():
        tokens = TOKENS_OF[name].name
        if tokens not in mapping:
            yield f"{tokens}: missing, and {argument} is computed from tokens, not from sums"
        elif name in mapping:
            yield f"{name}: {argument} makes this sum from {tokens}; drop this column"


def _is_list(dtype: pl.DataType) -> bool:
    return isinstance(dtype, pl.List) and (dtype.inner.is_numeric() or dtype.inner == pl.Boolean)


def _typed(column: pl.Expr, dtype: pl.DataType, role: str) -> pl.Expr:
    # A column of another type stays as it is, so that pandera's error names the type found.
    if role in LOGPS and (dtype.is_float() or dtype.is_integer() or dtype == pl.Null):
        return column.cast(pl.Float64)
    if role in _COUNTS and (dtype.is_integer() or dtype == pl.Null):
        return column.cast(pl.Int64)
    return column
