"""Binds the contract to a dataset once, so that any part of it can be prepared and judged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace as replace_rule
from types import MappingProxyType
from typing import Any, Final, cast

import polars as pl

from dpo_pipeline.arguments import checked_max_logp
from dpo_pipeline.columns import (
    ALL_LOGPS,
    COUNT_OF,
    LOGPS,
    MASK_OF,
    OF_INPUT,
    OTHER_SIDE,
    ROLES,
    TOKENS_OF,
    Needs,
    RowOf,
    is_spelled,
    resolve,
)
from dpo_pipeline.contract.row_rules import with_row_rules
from dpo_pipeline.contract.rules import RuleSet, Schema, check_types, rules_for
from dpo_pipeline.contract.token_rules import with_token_rules
from dpo_pipeline.contract.whole_counts import whole, with_whole_rules
from dpo_pipeline.errors import ColumnError, UsageError
from dpo_pipeline.losses import (
    clamped_logratio,
    kept_tokens,
    length_desensitised,
    number_of_tokens,
    sum_of_tokens,
)
from dpo_pipeline.sources import FORMATS, LM_EVAL, layout_of

_NUMBERS: Final = ("logp", "count", "rank", "score")
_LABELS: Final = {
    "chosen": "rejected",
    "accepted": "rejected",
    "good": "bad",
    "yes": "no",
    "positive": "negative",
    "desirable": "undesirable",
    "correct": "incorrect",
    "thumbs up": "thumbs down",
}
"""Words that say whether a completion is a good one."""
_TRUTHS: Final = {
    **dict.fromkeys(("true", "1", "1.0", *_LABELS), True),
    **dict.fromkeys(("false", "0", "0.0", *_LABELS.values()), False),
}
_ONE_OF: Final = (
    f"true or false, 1 or 0, {', '.join(f'{good} or {bad}' for good, bad in _LABELS.items())}; any "
    "other word counts as null (--column label=NAME takes another column)"
)


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

    def source_of(self, name: str) -> str:
        """Return what an input column is called in prepared pairs."""
        kept = f"{OF_INPUT}{name}"
        return kept if kept in self.columns else name

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
    unread: Mapping[str, str] = MappingProxyType({}),
    adds: Iterable[str] = (),
    replace: bool = False,
    groups_by: Iterable[str] = (),
    needs: Needs = ALL_LOGPS,
) -> Binding:
    """Check columns and types and compile the rules, reading no data.

    `columns` (role to column) overrides names and aliases. An input column whose name is among
    `adds`, the columns that the caller will add, is an error, or dropped with `replace`.
    `groups_by` are input columns that pairs are grouped by, whatever is added.
    `unread` are columns that cannot be read, and why.
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
    if needs.row == "completion" and any(
        is_spelled(ROLES[name], schema.names(), columns) for name in LOGPS
    ):
        raise UsageError(
            f"{source}: these are pairs, and this is of completions, one a row: give a loss of "
            "pairs (for kto: --loss kto_pair)"
        )
    problems = problems or list(_token_problems(found.mapping, schema, needs))
    if problems:
        error = layout_error(source, schema.names(), needs.row)
        raise error or ColumnError(source, tuple(problems), found.guesses)
    made = _made(found.mapping, schema, needs)
    selection = [
        _typed(name, schema[name], role_of[name]).alias(role_of[name])
        if name in role_of
        else pl.col(name)
        for name in schema.names()
        if name not in in_the_way
    ]
    selection += [values.alias(name) for name, values in made.items()]
    selection += [
        pl.col(name).alias(f"{OF_INPUT}{name}") for name in set(groups_by) & set(in_the_way)
    ]
    try:
        checked = check_types(
            frame.select(selection),
            source=source,
            max_logp=max_logp,
            contract=contract,
            needs=needs,
        )
    except ColumnError as error:
        asked = (n for n in unread if any(p.startswith(f"{n}:") for p in error.problems))
        why = (f"{name}: {unread[name]}" for name in asked)
        raise ColumnError(source, (*error.problems, *why)) from None
    rules = rules_for(checked, max_logp=max_logp, contract=contract, needs=needs)
    rules = with_token_rules(
        rules, [name for name in made if name in TOKENS_OF], found.mapping, max_logp=max_logp
    )
    types = {role: schema[column] for role, column in found.mapping.items()}
    floats = [n for n, t in types.items() if ROLES[n].kind == "count" and _is_real(t)]
    listed = {name for name, dtype in types.items() if _is_listed(dtype, ROLES[name].kind)}
    must_be = dict.fromkeys(listed, "not null, nor a list of none or several (--pairing)")
    must_be |= {
        n: _ONE_OF for n, t in types.items() if ROLES[n].kind == "label" and t != pl.Boolean
    }
    told = tuple(
        replace_rule(rule, requirement=must_be[rule.column])
        if rule.column in must_be and rule.check == "not_null"
        else rule
        for rule in rules.rules
    )
    rules = with_whole_rules(replace_rule(rules, rules=told), floats)
    return Binding(
        mapping=dict(found.mapping),
        rules=with_row_rules(rules, made, found.mapping, needs, max_logp),
        columns=checked.collect_schema(),
        max_logp=max_logp,
        needs=needs,
        _source=source,
        _selection=tuple(selection),
        _contract=contract,
    )


def _made(mapping: Mapping[str, str], schema: pl.Schema, needs: Needs) -> dict[str, pl.Expr]:
    """Return the missing sums and counts, made from lists of tokens."""
    lists = {}
    for name in needs.logps:
        tokens, mask = mapping.get(TOKENS_OF[name].name), mapping.get(MASK_OF[name].name)
        if tokens is not None and (name not in mapping or needs.tokens):
            kept = None if mask is None else _as_list(mask, schema[mask])
            lists[name] = kept_tokens(_as_list(tokens, schema[tokens]), kept)
    made = {n: sum_of_tokens(values) for n, values in lists.items() if n not in mapping}
    if needs.ld_alpha != 1.0:
        for name, values in lists.items():
            other = lists[OTHER_SIDE[name]]
            made[name] = length_desensitised(values, other, alpha=needs.ld_alpha)
    if needs.humanline:
        # Policy minus reference must be the clamped log-ratio; the reference keeps its sums.
        for text in needs.texts:
            clamped = clamped_logratio(lists[text.policy.name], lists[text.ref.name])
            made[text.policy.name] = made[text.ref.name] + clamped
    for name, values in lists.items():
        count = COUNT_OF[name].name
        if count not in mapping:
            made.setdefault(count, number_of_tokens(values))
    return made


def layout_error(source: str, names: Sequence[str], row: RowOf) -> ColumnError | None:
    """Return the error of columns of a known format that were read as plain rows, if they are."""
    layout = layout_of(names)
    if layout is None:
        return None
    several = row == "pair" and (layout == LM_EVAL or "scores" in names)
    said = ", and how pairs are made of completions (--pairing)" if several else ""
    text = (
        f"these columns are those of {FORMATS[layout].description.partition(':')[0]}: say so "
        f"(format={layout!r}, --format {layout}){said}; the columns are {', '.join(names)}"
    )
    error = ColumnError(source, (text,))
    error.options = ("--format", layout, *(("--pairing", "best-rest") if several else ()))
    return error


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
    inner = _inner(dtype)
    return inner is not None and (inner.is_numeric() or inner == pl.Boolean)


def _inner(dtype: pl.DataType) -> pl.DataType | None:
    """Return the type of the values of a list or a one-dimensional array."""
    is_plain = isinstance(dtype, pl.List) or (isinstance(dtype, pl.Array) and len(dtype.shape) == 1)
    return cast("Any", dtype).inner if is_plain else None


def _as_list(name: str, dtype: pl.DataType) -> pl.Expr:
    return pl.col(name).arr.to_list() if isinstance(dtype, pl.Array) else pl.col(name)


def _typed(name: str, dtype: pl.DataType, role: str) -> pl.Expr:
    """Return a column of numbers in the type of its role.

    One of another type stays as it is, so that pandera's error names the type found.
    """
    kind, inner = ROLES[role].kind, _inner(dtype)
    if kind in ("tokens", "mask"):
        return _as_list(name, dtype)
    column = pl.col(name)
    if _is_listed(dtype, kind) and inner is not None:
        # A list of none or of several is no number: null, which the contract counts.
        values = _as_list(name, dtype)
        column, dtype = pl.when(values.list.len() == 1).then(values.list.first()), inner
    if kind == "label":
        return truth(column, dtype)
    if kind == "key" or not (dtype.is_numeric() or dtype == pl.Null):
        return column
    if kind != "count":
        return column.cast(pl.Float64)
    return whole(column) if _is_real(dtype) else column.cast(pl.Int64)


def truth(column: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """Return a label as true or false; what is neither is null."""
    if dtype == pl.Boolean or dtype.is_nested():
        return column
    words = column.cast(pl.String).str.strip_chars().str.to_lowercase().str.replace_all("[_-]", " ")
    return words.replace_strict(_TRUTHS, default=None, return_dtype=pl.Boolean)


def _is_listed(dtype: pl.DataType, kind: str) -> bool:
    """Return whether the numbers of a role stand in lists, which may hold one each."""
    inner = _inner(dtype)
    is_one = not isinstance(dtype, pl.Array) or dtype.shape == (1,)
    return kind in _NUMBERS and inner is not None and inner.is_numeric() and is_one


def _is_real(dtype: pl.DataType) -> bool:
    """Return whether numbers of a type, or in a list of it, need not be whole."""
    number = _inner(dtype) or dtype
    return number.is_float() or number.is_decimal()
