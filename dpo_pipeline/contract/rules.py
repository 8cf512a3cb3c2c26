"""The rules of a run: ours made from `value_rules` without pandera, a user's compiled by it.

Importing pandera costs as much as half of Polars, so it is loaded for a user's contract alone. A
test holds the types that are asked for here to those that pandera asks for.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import TYPE_CHECKING, Final, TypeAlias

import polars as pl

from dpo_pipeline.columns import PAIR_ID, ROLES, Needs
from dpo_pipeline.contract.value_rules import rules_of, sound_logp
from dpo_pipeline.defaults import WIDE_LIMIT
from dpo_pipeline.errors import ColumnError
from dpo_pipeline.exact import SMALL
from dpo_pipeline.tables import shown

if TYPE_CHECKING:
    import pandera.polars as pa

Schema: TypeAlias = "pa.DataFrameSchema | type[pa.DataFrameModel]"

WHOLE_FRAME: Final = "*"
_LONGEST_TYPE: Final = 80
_NUMBER: Final = (pl.Float64, "a number (any float or integer)")
_TYPES: Final[Mapping[str, tuple[type[pl.DataType], str]]] = {
    **dict.fromkeys(("logp", "rank", "score", "offset", "probability", "kl_logp"), _NUMBER),
    "count": (pl.Int64, "an integer"),
    "label": (pl.Boolean, "true or false, 1 or 0, or chosen or rejected"),
}
WANTED: Final = {role.name: _TYPES[role.kind] for role in ROLES.values() if role.kind in _TYPES}
"""Types of our own columns after `bind` has cast numbers to them, and how errors name them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule, bound to a column."""

    column: str | None  # None for a check of the whole row
    check: str
    requirement: str  # what a value must be, in words
    keeps: pl.Expr  # true where the rule is kept; never null
    found: pl.Expr | None = None  # what a report shows of a broken row; the column's value if None

    @property
    def name(self) -> str:
        """The name in reports and in the quarantine file."""
        return f"{self.column or WHOLE_FRAME}.{self.check}"


@dataclass(frozen=True, slots=True)
class Clean:
    """What surely valid pairs are whose summed values are small ones (`exact.SMALL`).

    Valid pairs with other values are not clean.
    """

    ranges: Mapping[str, tuple[float, float]]  # column to its least value, and one above all
    others: tuple[pl.Expr, ...] = ()  # true where rules are kept that ranges say nothing of

    @property
    def rows(self) -> pl.Expr:
        """True where a pair is clean; it may be null elsewhere."""
        ends = self.ranges.items()
        small = [pl.col(name).is_between(low, end, closed="left") for name, (low, end) in ends]
        return reduce(operator.and_, [*small, *self.others], pl.lit(value=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleSet:
    """All rules of a run, in the order of reports.

    `valid` is true where every rule is kept, never null, and costs a fraction of the rules. `clean`
    costs less still, where it is enough.
    """

    rules: tuple[Rule, ...]
    valid: pl.Expr
    clean: Clean = Clean({})
    key: str = PAIR_ID.name  # the column of a row's id

    def with_scores_in_range(self, names: Sequence[str]) -> RuleSet:
        """Return these rules and one on each of these columns of a scored pair.

        Sums of scores beyond the range, or not finite, would not be exact. A row that breaks
        another rule counts as keeping these, so that one fault has one name.
        """
        ranges = [
            pl.col(n).is_between(-WIDE_LIMIT, WIDE_LIMIT).fill_null(value=False) for n in names
        ]
        rules = (
            Rule(
                column=name,
                check="in_range",
                requirement=f"finite and within {WIDE_LIMIT:.3g}",
                keeps=self.valid.not_() | in_range,
            )
            for name, in_range in zip(names, ranges, strict=True)
        )
        return replace(
            self,
            rules=(*self.rules, *rules),
            valid=pl.all_horizontal(self.valid, *ranges),
        ).with_small(names)

    def with_small(self, names: Sequence[str]) -> RuleSet:
        """Return these rules, with pairs called clean only if these columns are small."""
        ranges = {**self.clean.ranges, **dict.fromkeys(names, (-SMALL, SMALL))}
        return replace(self, clean=replace(self.clean, ranges=ranges))

    def with_clean(self, rules: Iterable[Rule]) -> RuleSet:
        """Return these rules, with pairs called clean only if they keep more rules."""
        others = (*self.clean.others, *(rule.keeps for rule in rules))
        return replace(self, clean=replace(self.clean, others=others))


def type_name(dtype: object) -> str:
    """Return what an error calls a type; a struct can have thousands of fields."""
    return shown(str(dtype), _LONGEST_TYPE)


def type_problems(columns: pl.Schema, needs: Needs) -> Iterator[str]:
    """Yield what is wrong with the columns of prepared pairs: one missing, one of another type."""
    for name in WANTED:
        if needs.require(ROLES[name]) and name not in columns:
            yield f"{name}: missing; the columns are {', '.join(columns)}"
    for name, (dtype, wanted) in WANTED.items():
        if needs.have(ROLES[name]) and columns.get(name, dtype) != dtype:
            yield f"{name}: must be {wanted}, found {type_name(columns[name])}; cast it before"


def check_types(
    frame: pl.LazyFrame, *, source: str, max_logp: float, contract: Schema | None, needs: Needs
) -> pl.LazyFrame:
    """Check names and types, reading no data, and return the frame.

    A user's contract is checked by pandera, and may change the frame.
    """
    if contract is not None:
        from dpo_pipeline.contract.compiling import check_schema

        return check_schema(frame, source=source, max_logp=max_logp, contract=contract, needs=needs)
    problems = tuple(type_problems(frame.collect_schema(), needs))
    if problems:
        raise ColumnError(source, problems)
    return frame


def rules_for(
    frame: pl.LazyFrame, *, max_logp: float, contract: Schema | None, needs: Needs
) -> RuleSet:
    """Return the rules on the columns of a frame that `check_types` returned, reading no data."""
    columns = frame.collect_schema()
    roles = [role for role in ROLES.values() if role.name in columns and needs.have(role)]
    ours = [
        Rule(
            column=role.name,
            check=rule.name,
            requirement=rule.text,
            keeps=rule.keeps(pl.col(role.name)).fill_null(value=rule.name != "not_null"),
        )
        for role in roles
        for rule in rules_of(role, max_logp, needs)
    ]
    theirs: list[Rule] = []
    if contract is not None:
        from dpo_pipeline.contract.compiling import compiled

        theirs = compiled(contract, frame, needs)
    logps = needs.logps
    sound = [sound_logp(pl.col(name), max_logp) for name in logps]
    others = [rule.keeps for rule in (*(r for r in ours if r.column not in logps), *theirs)]
    # Below 0 a log-prob is no sign of an empty completion, and at most any `max_logp` from 0 on.
    small = (-SMALL, min(max_logp, 0.0))
    return RuleSet(
        rules=_named_apart([*ours, *theirs]),
        valid=pl.all_horizontal(*sound, *others),
        clean=Clean(dict.fromkeys(logps, small), tuple(others)),
        key=needs.key,
    )


def _named_apart(rules: list[Rule]) -> tuple[Rule, ...]:
    seen: Counter[str] = Counter()
    apart = []
    for rule in rules:
        seen[rule.name] += 1
        nth = seen[rule.name]
        apart.append(rule if nth == 1 else replace(rule, check=f"{rule.check}#{nth}"))
    return tuple(apart)
