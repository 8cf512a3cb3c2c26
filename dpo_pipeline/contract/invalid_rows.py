"""Lists the rows that break rules: how many break each, and the first of them."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterable
from typing import Final, Self

import polars as pl

from dpo_pipeline.columns import BROKEN_RULES, SOURCE_ROW
from dpo_pipeline.contract.rules import RuleSet
from dpo_pipeline.contract.whole_counts import WHOLE, without_bits
from dpo_pipeline.defaults import OFFENDERS_SHOWN
from dpo_pipeline.invalid_report import BrokenRule, Offender
from dpo_pipeline.options import OnInvalid
from dpo_pipeline.storage import reading

_ROW: Final = "__dpo_pipeline_row"
_ID: Final = "__dpo_pipeline_id"
_BROKEN: Final = "__dpo_pipeline_broken_"
_VALUE: Final = "__dpo_pipeline_value_"


def numbered(pairs: pl.LazyFrame, first_row: int = 0) -> pl.LazyFrame:
    """Give each row its number, the first one being `first_row`."""
    # The row index is UInt32; it restarts in every shard, so it cannot overflow.
    return pairs.with_row_index(_ROW).with_columns(pl.col(_ROW).cast(pl.Int64) + first_row)


def offences(pairs: pl.LazyFrame, rules: RuleSet, *, row: str = _ROW) -> pl.LazyFrame:
    """Return the plan of the invalid rows alone: their row and id, what they break, and the values.

    The pairs are prepared, scored if a rule asks for it, and went through `numbered`, or have
    their row numbers in `row`.
    """
    return pairs.filter(rules.valid.not_()).select(
        pl.col(row).alias(_ROW),
        *([pl.col(rules.key).alias(_ID)] if rules.key in pairs.collect_schema() else []),
        *(r.keeps.not_().alias(f"{_BROKEN}{i}") for i, r in enumerate(rules.rules)),
        *(
            (pl.col(rule.column) if rule.found is None else rule.found).alias(f"{_VALUE}{i}")
            for i, rule in enumerate(rules.rules)
            if rule.column is not None
        ),
    )


def listed(
    pairs: pl.LazyFrame,
    rules: RuleSet,
    places: Places,
    *,
    read_from: str,
    first_row: int = 0,
    row: str | None = None,
) -> Offences:
    """Read pairs and list those that break rules; a few rows are held at a time.

    The pairs are numbered from `first_row`, or have their row numbers in `row` already.
    """
    plan = offences(pairs if row else numbered(pairs, first_row), rules, row=row or _ROW)
    found = Offences(rules)
    with reading(read_from):
        for chunk in plan.collect_batches(maintain_order=True):
            found.add(chunk, places)
    return found


def invalid_pairs(pairs: pl.LazyFrame, rules: RuleSet) -> pl.LazyFrame:
    """Return the invalid rows of `numbered` pairs, with the names of the rules that each breaks."""
    names = [
        pl.when(rule.keeps.not_()).then(pl.lit(rule.name)).otherwise(None) for rule in rules.rules
    ]
    return pairs.filter(rules.valid.not_()).with_columns(
        pl.concat_list(names).list.drop_nulls().alias(BROKEN_RULES),
        pl.col(_ROW).alias(SOURCE_ROW),
        *(without_bits(pl.col(r.column)) for r in rules.rules if r.column and r.check == WHOLE),
    )


class Offences:
    """Invalid rows, counted by rule in the order of the input; `n_invalid` break one or more."""

    def __init__(self, rules: RuleSet, parts: Iterable[Offences] = ()) -> None:
        self.n_invalid = 0
        self._rules, self._key = rules.rules, rules.key
        self._counts: Counter[int] = Counter()
        self._first: dict[int, list[Offender]] = {i: [] for i in range(len(self._rules))}
        for part in parts:
            self.join(part)

    @classmethod
    def of(cls, rules: RuleSet, n_invalid: int, broken: Iterable[BrokenRule]) -> Self:
        """Return what had `n_invalid` rows and these broken rules."""
        made, index = cls(rules), {rule.name: i for i, rule in enumerate(rules.rules)}
        made.n_invalid = n_invalid
        for each in broken:
            made._counts[index[each.name]] = each.count
            made._first[index[each.name]] = list(each.offenders)
        return made

    def add(self, chunk: pl.DataFrame, place: Places) -> None:
        """Count a chunk; `place` tells the file and row of a row number."""
        self.n_invalid += chunk.height
        for i, rule in enumerate(self._rules):
            is_broken = chunk[f"{_BROKEN}{i}"]
            if not is_broken.any():
                continue
            broken = chunk.filter(is_broken)
            self._counts[i] += broken.height
            head = broken.head(OFFENDERS_SHOWN - len(self._first[i]))
            values = [None] * head.height if rule.column is None else head[f"{_VALUE}{i}"]
            ids = head[_ID] if _ID in head.columns else [None] * head.height
            for row, value, name in zip(head[_ROW], values, ids, strict=True):
                file, at = place(row)
                offender = Offender(file=file, row=at, value=value, pair_id=name, id_name=self._key)
                self._first[i].append(offender)

    def join(self, later: Offences) -> None:
        """Add the offences of later rows against the same rules."""
        self.n_invalid += later.n_invalid
        self._counts += later._counts
        for i, first in self._first.items():
            first.extend(later._first[i][: OFFENDERS_SHOWN - len(first)])

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


def why_refused(
    on_invalid: OnInvalid, n_invalid: int, n_pairs: int, noun: str, where: str = ""
) -> str | None:
    """Return why so many invalid pairs must not pass; None if they may."""
    pairs = f"{n_pairs:,} {noun}{'' if n_pairs == 1 else 's'} {'is' if n_pairs == 1 else 'are'}"
    limit = n_pairs if on_invalid.at_most is None else on_invalid.at_most
    allowed = limit * n_pairs if isinstance(limit, float) else limit
    if on_invalid.action == "raise" and n_invalid:
        return f"{n_invalid:,} of {pairs} invalid"
    if n_invalid > allowed:
        return f"{n_invalid:,} of {pairs} invalid, more than {on_invalid.at_most} (--max-invalid)"
    return f"no {noun} is valid{where}" if n_invalid == n_pairs else None
