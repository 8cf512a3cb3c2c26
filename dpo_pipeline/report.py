"""What broke the contract: rows counted by rule, and the first of them by file, row and value."""

from __future__ import annotations

import bisect
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import polars as pl

from dpo_pipeline.columns import BROKEN_RULES, SOURCE_ROW
from dpo_pipeline.defaults import OFFENDERS_SHOWN
from dpo_pipeline.rules import Rule, RuleSet

_ROW: Final = "__row"
_BROKEN: Final = "__broken_"
_VALUE: Final = "__value_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Offender:
    """A row that breaks a rule.

    Attributes:
        file: The input file, or None where the pairs came as a dataframe.
        row: Row in that file or frame, from 0.
        value: What was found; None for null, and for a rule on the whole row.
    """

    file: str | None
    row: int
    value: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokenRule:
    """A rule that rows broke.

    Attributes:
        name: `column.rule`.
        requirement: What a value must be, in words.
        count: How many rows broke it.
        offenders: The first of them, in the order of the input.
    """

    name: str
    requirement: str
    count: int
    offenders: tuple[Offender, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as plain data; a value that JSON cannot hold becomes text."""
        return {
            "rule": self.name,
            "requirement": self.requirement,
            "count": self.count,
            "first": [
                {"file": o.file, "row": o.row, "value": _plain(o.value)} for o in self.offenders
            ],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class InvalidReport:
    """How many pairs broke which rule. A pair that breaks two rules counts under both.

    Attributes:
        source: The input.
        n_pairs: Pairs read.
        n_invalid: Pairs that break a rule or more.
        broken: The rules that were broken, in the order of the contract.
        warnings: Sentences about what is legal and surely wrong, over the valid pairs.
    """

    source: str
    n_pairs: int
    n_invalid: int
    broken: tuple[BrokenRule, ...]
    warnings: tuple[str, ...]

    @property
    def by_rule(self) -> Mapping[str, int]:
        """Rows by the name of the rule that they break."""
        return {rule.name: rule.count for rule in self.broken}

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as plain data."""
        return {
            "source": self.source,
            "n_pairs": self.n_pairs,
            "n_invalid": self.n_invalid,
            "invalid": [rule.to_dict() for rule in self.broken],
            "warnings": list(self.warnings),
        }

    def __str__(self) -> str:
        """Return the report as an aligned table under a sentence."""
        if not self.n_invalid:
            return f"{self.source}: all {self.n_pairs:,} pairs keep the contract"
        file = os.path.basename(self.source)
        head = f"{self.source} breaks its contract in {self.n_invalid:,} of {self.n_pairs:,} rows"
        names = max((len(rule.name) for rule in self.broken), default=0)
        needs = max((len(rule.requirement) for rule in self.broken), default=0)
        return "\n".join(
            [
                head,
                *(
                    f"  {rule.name:<{names}}  {rule.requirement:<{needs}}  {rule.count:,} "
                    f"row{'s' * (rule.count != 1)}, {_first(rule.offenders, file)}"
                    for rule in self.broken
                ),
            ]
        )


def _first(offenders: Sequence[Offender], only_file: str | None) -> str:
    places = []
    file = only_file
    for each in offenders:
        where = f"{each.file} " if each.file is not None and each.file != file else ""
        file = each.file
        found = "null" if each.value is None else repr(each.value)
        places.append(f"{where}row {each.row:,}: {found}")
    return "first at " + "; ".join(places)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, (str, int, float, type(None))) else str(value)


def numbered(pairs: pl.LazyFrame, first_row: int = 0) -> pl.LazyFrame:
    """Give each row its number, the first one being `first_row`."""
    # The row index is UInt32, and starts anew in every shard so that it cannot end.
    return pairs.with_row_index(_ROW).with_columns(pl.col(_ROW).cast(pl.Int64) + first_row)


def offences(pairs: pl.LazyFrame, rules: RuleSet, *, row: str = _ROW) -> pl.LazyFrame:
    """Return the invalid rows alone: their row, what they break, and the values; a plan.

    Args:
        pairs: Prepared (and scored, if a rule asks for it) pairs that went through `numbered`.
        rules: The rules.
        row: The column with the row's number, if they did not.
    """
    return pairs.filter(rules.valid.not_()).select(
        pl.col(row).alias(_ROW),
        *(r.keeps.not_().alias(f"{_BROKEN}{i}") for i, r in enumerate(rules.rules)),
        *(
            pl.col(rule.column).alias(f"{_VALUE}{i}")
            for i, rule in enumerate(rules.rules)
            if rule.column is not None
        ),
    )


def invalid_pairs(pairs: pl.LazyFrame, rules: RuleSet) -> pl.LazyFrame:
    """Return the invalid rows alone, with their row and the names of the rules that each breaks.

    Args:
        pairs: Prepared and scored pairs that went through `numbered`.
        rules: The rules.
    """
    names = [
        pl.when(rule.keeps.not_()).then(pl.lit(rule.name)).otherwise(None) for rule in rules.rules
    ]
    return pairs.filter(rules.valid.not_()).with_columns(
        pl.concat_list(names).list.drop_nulls().alias(BROKEN_RULES),
        pl.col(_ROW).alias(SOURCE_ROW),
    )


class Offences:
    """Adds up `offences`, chunk by chunk in the order of the input, holding a few rows."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = rules
        self._counts: Counter[int] = Counter()
        self._first: dict[int, list[Offender]] = {i: [] for i in range(len(rules))}

    def add(self, chunk: pl.DataFrame, place: Places) -> None:
        """Count a chunk; `place` tells the file and row of a row number."""
        for i, rule in enumerate(self._rules):
            broken = chunk.filter(pl.col(f"{_BROKEN}{i}"))
            self._counts[i] += broken.height
            room = OFFENDERS_SHOWN - len(self._first[i])
            if room and broken.height:
                head = broken.head(room)
                values = (
                    [None] * head.height if rule.column is None else head[f"{_VALUE}{i}"].to_list()
                )
                for row, value in zip(head[_ROW].to_list(), values, strict=True):
                    file, row_in_file = place(row)
                    self._first[i].append(Offender(file=file, row=row_in_file, value=value))

    def broken(self) -> tuple[BrokenRule, ...]:
        """Return the rules that were broken."""
        return tuple(
            BrokenRule(
                name=rule.name,
                requirement=rule.requirement,
                count=self._counts[i],
                offenders=tuple(self._first[i]),
            )
            for i, rule in enumerate(self._rules)
            if self._counts[i]
        )


class Places:
    """Tells the file, and the row in it, of a row of the whole dataset."""

    def __init__(self, files: Iterable[tuple[str, int]]) -> None:
        self._starts: list[tuple[int, str]] = []
        start = 0
        for name, rows in files:
            self._starts.append((start, name))
            start += rows

    def __call__(self, row: int) -> tuple[str | None, int]:
        """Return the file's name (None for a dataframe) and the row in it."""
        if not self._starts:
            return None, row
        start, name = self._starts[bisect.bisect_right(self._starts, row, key=lambda s: s[0]) - 1]
        return name, row - start
