"""The reading of a comparison: the common pairs, in one order or joined, scored for both sides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, Self

import polars as pl
import polars.selectors as cs

from dpo_pipeline.columns import (
    LABEL,
    LOGRATIO,
    LOSS,
    PROMPT_ID,
    REF,
    REF_CHOSEN,
    REF_REJECTED,
    REWARD,
)
from dpo_pipeline.comparison.paired_arrays import Ends, chunks_of, ends_of
from dpo_pipeline.comparison.paired_gathering import MEANS, PairedGathering
from dpo_pipeline.comparison.sides import Table, place_of
from dpo_pipeline.contract import RuleSet
from dpo_pipeline.defaults import (
    LOGP_LIMIT,
    MAX_SUBSETS_WITH_STATISTICS,
    SAME_REFERENCE,
    STATISTICS_ROWS,
)
from dpo_pipeline.engine import Watch
from dpo_pipeline.errors import ContractError, UsageError
from dpo_pipeline.losses import CheckedObjective, with_scores
from dpo_pipeline.sources import (
    KEY,
    Counts,
    EqualColumns,
    OutOfStep,
    Partitions,
    checked_on,
    count_keys,
    in_step,
    joined,
    key_of,
    ranges_in_step,
)
from dpo_pipeline.storage import reading
from dpo_pipeline.sums import VALID
from dpo_pipeline.unpaired import PROMPT

_SUBSET: Final = "__dpo_pipeline_subset_"
_DIFFER: Final = "differ "
_JOINED: Final = "__dpo_pipeline_"
"""What names of columns of joined pairs begin with."""
_SCORE: Final = "score_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Disagreement:
    """A column that belongs to the pair, and on which the sides differ."""

    column: str
    n_pairs: int  # valid common pairs where it differs (a log-prob, by more than rounding)
    largest: float | None  # the largest difference of numbers; None of other values


@dataclass(frozen=True, slots=True, kw_only=True)
class CommonPairs:
    """The common pairs, counted and summed."""

    counts: Counts  # rows by where their keys are
    n_valid: int  # common pairs that are valid on both sides
    n_invalid: dict[str, int]  # those that are not, by the letter of the table that says so
    n_out_of_range: dict[str, int]  # with sound log-probs and a score too large to be summed
    disagreements: tuple[Disagreement, ...]
    paired: Any  # what the gathering made


class PairGathering(Protocol):
    """Adds up common pairs, or completions, that are valid on both sides."""

    @property
    def n_subsets(self) -> int:
        """Subsets found so far."""
        ...

    @property
    def n_valid(self) -> int:
        """Pairs added."""
        ...

    def add(
        self,
        shared: pl.DataFrame,
        a: pl.DataFrame,
        b: pl.DataFrame,
        n_pairs: int,
        ends: Sequence[Ends] | None = None,
    ) -> None:
        """Add pairs in the same order: what is of both sides, and what each side scores.

        `ends` are those of each side's log-probs, if they are known.
        """

    def finish(self) -> Any:
        """Return what was added up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedTables:
    """The tables of a comparison, and how they are joined; no data is read."""

    tables: tuple[Table, ...]  # A, B, and the reference of both if there is one
    on: str
    key: pl.Expr  # gives the same type in every table
    by: tuple[str, ...]  # columns of the subsets
    places: Mapping[str, Table]  # the table that each of them is taken from

    @classmethod
    def of(cls, tables: tuple[Table, ...], *, on: str, by: tuple[str, ...]) -> Self:
        """Check the key and the subsets."""
        return cls(
            tables=tables,
            on=checked_on(on),
            key=key_of(on, {table.name: table.columns for table in tables}),
            by=by,
            places={name: place_of(name, "by", tables[:2]) for name in by},
        )


def read_common_pairs(
    pairs: PairedTables,
    *,
    objective: CheckedObjective,
    max_logp: float,
    watch: Watch,
    gathers: Callable[[], PairGathering] | None = None,
) -> CommonPairs:
    """Read the common pairs of all tables; `gathers` makes what adds up rows of completions.

    Tables that have the same keys in one order are read side by side, once. Others are parted by
    their keys, and joined part by part; the figures are the same to the bit.
    """
    tables = pairs.tables
    common = _Common.of(pairs, objective, max_logp, gathers)
    lengths = {table.dataset.rows for table in tables} - {None}
    with reading(" or ".join(table.name for table in tables)):
        found = _read_in_step(common, watch) if len(lengths) <= 1 else None
        return _read_parted(common, watch) if found is None else found


def _read_in_step(common: _Common, watch: Watch) -> CommonPairs | None:
    """Read tables that have the same keys in one order; return None of others."""
    sums, tables = _Sums(common), common.pairs.tables
    total = max((table.dataset.rows or 0 for table in tables), default=0) or None
    n = 0
    try:
        ranges = ranges_in_step(table.dataset for table in tables)
        frames = (common.frames(first, rows) for first, rows in ranges)
        for chunk in in_step(frames, then=common.scored):
            n += chunk.height
            sums.add(chunk)
            watch.step("evaluating", chunk.height, total)
    except OutOfStep:
        watch.restart("evaluating")
        return None
    counts = Counts(rows=(n,) * len(tables), alone=(0, 0), common=n)
    _refuse_empty(tables, counts)
    return sums.finished(counts)


def _read_parted(common: _Common, watch: Watch) -> CommonPairs:
    """Part tables by their keys, and join them part by part."""
    tables = common.pairs.tables
    total = sum(table.dataset.rows or 0 for table in tables) or None
    names = [table.name for table in tables]
    schemas = [frame.collect_schema() for frame in common.frames()]
    with Partitions(dict(zip(names, schemas, strict=True))) as parts:
        for table in tables:
            keyed, dataset = common.keyed(table), table.dataset
            for rows in dataset.batches(keyed, STATISTICS_ROWS):
                parts.add(table.name, rows)
                watch.step("joining", rows.height, total)
        counts = count_keys(common.pairs.on, names, parts)
        _refuse_empty(tables, counts)
        sums = _Sums(common)
        for chunk in _in_chunks(joined(part.values()) for part in parts):
            sums.add(common.scored(chunk.lazy()).collect())
            watch.step("evaluating", chunk.height, counts.common)
    return sums.finished(counts)


def _in_chunks(parts: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """Yield the rows of small and large parts, `STATISTICS_ROWS` or a few less at a time."""
    held: list[pl.DataFrame] = []
    for rows in (piece for part in parts for piece in part.iter_slices(STATISTICS_ROWS)):
        if held and sum(map(len, held)) + rows.height > STATISTICS_ROWS:
            yield pl.concat(held)
            held.clear()
        held.append(rows)
    if held:
        yield pl.concat(held)


def _refuse_empty(tables: Sequence[Table], counts: Counts) -> None:
    for table, rows in zip(tables, counts.rows, strict=True):
        if rows == 0:
            raise ContractError(f"{table.name}: it holds no pairs, so nothing was compared")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Common:
    """What is read of common pairs, and what is made of it."""

    pairs: PairedTables
    objective: CheckedObjective
    checked: tuple[str, ...]  # scores that may be out of range
    shared: tuple[str, ...]  # columns on which the sides are to agree
    prompts: Table | None  # A if it has prompts, or else B
    gathers: Callable[[], PairGathering] | None
    equal: EqualColumns  # of A and B

    @classmethod
    def of(
        cls,
        pairs: PairedTables,
        objective: CheckedObjective,
        max_logp: float,
        gathers: Callable[[], PairGathering] | None,
    ) -> Self:
        sides, texts = pairs.tables[:2], objective.needs.texts
        # These belong to the pair: sides that both have one must agree on it.
        both = (PROMPT_ID, LABEL, *(t.ref for t in texts), *(t.count for t in texts))
        names = (*(role.name for role in both), *pairs.by)
        return cls(
            pairs=pairs,
            objective=objective,
            checked=objective.columns_to_check(max_logp),
            shared=tuple(n for n in names if all(n in side.columns for side in sides)),
            prompts=next((side for side in sides if PROMPT_ID.name in side.columns), None),
            gathers=gathers,
            equal=EqualColumns(sides[0].dataset, sides[1].dataset),
        )

    @property
    def means(self) -> tuple[str, ...]:
        """The scores that are read of each side."""
        return _means_of(self.objective)

    @property
    def carried(self) -> dict[str, str]:
        """The columns of clusters and subsets, by the names that `PairedGathering` knows."""
        named = dict(zip(self.subset_keys, self.pairs.by, strict=True))
        found = {key: self.pairs.places[name].column(name) for key, name in named.items()}
        if self.prompts is not None:
            found[PROMPT] = self.prompts.column(PROMPT_ID.name)
        return found

    @property
    def subset_keys(self) -> list[str]:
        """The names of the columns of subsets in sums."""
        return [f"{_SUBSET}{i}" for i in range(len(self.pairs.by))]

    def frames(self, first: int = 0, rows: int | None = None) -> list[pl.LazyFrame]:
        """Return rows of all tables, with what is read of them; all rows if it is not said."""
        same, (_, second) = self._same(first, rows), self.pairs.tables[:2]
        return [
            self.keyed(table, same if table is second else ())(
                table.dataset.shard(first, rows).frame
            )
            for table in self.pairs.tables
        ]

    def keyed(
        self, table: Table, skipped: Collection[str] = ()
    ) -> Callable[[pl.LazyFrame], pl.LazyFrame]:
        """Return what makes of rows of a table what is read of them, but for `skipped`."""
        names = [*self.shared, *self.pairs.by]
        wanted = wanted_columns(table, self.objective, names, has_prompts=table is self.prompts)
        return lambda rows: table.keyed(
            self.pairs.key,
            [name for name in wanted if name not in skipped],
            rows=rows,
            is_judged=not self.is_of_logps,
            has_key=self.pairs.on not in skipped,
        )

    def _same(self, first: int, rows: int | None) -> set[str]:
        """Return which shared columns, and the key, need not be read of B: its files have A's."""
        a, b = self.pairs.tables[:2]
        names = {n: a.column_read(n) for n in (self.pairs.on, *self.shared)}
        names = {n: column for n, column in names.items() if column == b.column_read(n)}
        # Rules judge each side by its own columns.
        same = self.equal.among(names.values(), first, rows) if self.is_of_logps else set()
        return {name for name, column in names.items() if column in same}

    @property
    def is_of_logps(self) -> bool:
        """Whether log-probs alone tell which pairs are valid; then chunks have no `valid`."""
        return not any(table.binding.rules.clean.others for table in self.pairs.tables)

    def scored(self, rows: pl.LazyFrame) -> pl.LazyFrame:
        """Add to joined pairs what each side scores, and the columns of B that were not read."""
        a, b = self.pairs.tables[:2]
        there = rows.collect_schema().names()
        unread = [name for name in self.shared if b.column(name) not in there]
        rows = rows.with_columns(**{b.column(name): pl.col(a.column(name)) for name in unread})
        for side in self.pairs.tables[:2]:
            scored = with_scores(
                rows.with_columns(**_columns_of(side, self.objective)), self.objective
            )
            scores = {side.column(f"{_SCORE}{name}"): pl.col(name) for name in self.means}
            if self.checked:
                scores[side.column(VALID)] = _in_range(self.checked)
            # Names of a side itself are not among those of joined pairs.
            rows = scored.with_columns(**scores).select(cs.starts_with(_JOINED))
        return rows

    def side_of(self, rows: pl.DataFrame, side: Table) -> pl.DataFrame:
        """Return the columns and the scores of a side, under their own names."""
        columns = {name: side.source_of(name) for name in _roles_of(self.objective)}
        columns |= {name: side.column(f"{_SCORE}{name}") for name in self.means}
        return pl.DataFrame([rows[column].alias(name) for name, column in columns.items()])


class _Sums:
    """Adds up common pairs, chunk by chunk in any order."""

    def __init__(self, common: _Common) -> None:
        self._common = common
        self._counts = Counter[str]()
        self._largest: dict[str, float] = {}
        rows = [table.dataset.rows for table in common.pairs.tables[:2]]
        self._gathering: PairGathering = (
            common.gathers()
            if common.gathers is not None
            else PairedGathering(
                objective=common.objective,
                by=common.pairs.by,
                keys=common.subset_keys,
                is_by_prompt=common.prompts is not None,
                n_rows=None if None in rows else min(filter(None, rows), default=0),
            )
        )

    def add(self, chunk: pl.DataFrame) -> None:
        """Add pairs that all tables have."""
        common, sides = self._common, self._common.pairs.tables[:2]
        logps, kept = list(common.objective.needs.logps), chunk
        scored = [common.side_of(chunk, side) for side in sides]
        ends: list[Ends] | None = [ends_of(chunks_of(each, logps)) for each in scored]
        if common.checked or not (common.is_of_logps and self._are_clean(ends or ())):
            valid = self._valid(chunk)
            if not valid.all():
                kept, ends = chunk.filter(valid), None
                scored = [common.side_of(kept, side) for side in sides]
        facts = pl.DataFrame(
            [kept[KEY], *(kept[column].alias(n) for n, column in common.carried.items())]
        )
        self._gathering.add(facts, scored[0], scored[1], chunk.height, ends)
        if self._gathering.n_subsets > MAX_SUBSETS_WITH_STATISTICS:
            raise UsageError(
                f"by: {', '.join(self._common.pairs.by)} has more than "
                f"{MAX_SUBSETS_WITH_STATISTICS:,} subsets; choose a coarser column"
            )
        for name in common.shared:
            n, largest = differing(kept, name, sides)
            self._counts[_DIFFER + name] += n
            if largest is not None:
                self._largest[name] = max(largest, self._largest.get(name, 0.0))

    def _are_clean(self, ends: Iterable[Ends]) -> bool:
        """Return whether log-probs with these ends are sound, and below 0."""
        highest = min(table.binding.max_logp for table in self._common.pairs.tables)
        return all(
            low >= -LOGP_LIMIT and high < 0.0 and high <= highest
            for side in ends
            for low, high in side.values()
        )

    def _valid(self, chunk: pl.DataFrame) -> pl.Series:
        """Return which pairs are valid on both sides, and count which are not and why."""
        tables, counts = self._common.pairs.tables, self._counts
        logps = self._common.objective.needs.logps
        own = {
            t.letter: t.judged(chunk, logps) if self._common.is_of_logps else chunk[t.valid]
            for t in tables
        }
        counts.update({f"invalid {letter}": int((~each).sum()) for letter, each in own.items()})
        valid = pl.Series([True]).new_from_index(0, chunk.height)
        for table in tables[:2]:
            sound = own[table.letter]
            if table.lender is not None:
                # The lender's rules judge borrowed columns, for both sides.
                sound = sound & own[table.lender.letter]
            if self._common.checked:
                in_range = chunk[table.column(VALID)]
                counts[f"range {table.letter}"] += int((sound & ~in_range).sum())
                sound = sound & in_range
            valid = valid & sound
        return valid

    def finished(self, counts: Counts) -> CommonPairs:
        """Return what was added; at least one chunk must have been."""
        found, paired = self._counts, self._gathering.finish()
        return CommonPairs(
            counts=counts,
            n_valid=self._gathering.n_valid,
            n_invalid={t.letter: found[f"invalid {t.letter}"] for t in self._common.pairs.tables},
            n_out_of_range={letter: found[f"range {letter}"] for letter in "ab"},
            disagreements=tuple(
                Disagreement(
                    column=name,
                    n_pairs=found[_DIFFER + name],
                    largest=self._largest.get(name),
                )
                for name in self._common.shared
                if found[_DIFFER + name]
            ),
            paired=paired,
        )


def wanted_columns(
    table: Table, objective: CheckedObjective, names: Sequence[str], *, has_prompts: bool
) -> list[str]:
    """Return the columns of a table that joined pairs carry."""
    prompts = (PROMPT_ID.name,) if has_prompts else ()
    wanted = dict.fromkeys([*_roles_of(objective), *names, *prompts])
    return [name for name in wanted if name in table.columns]


def _roles_of(objective: CheckedObjective) -> Iterator[str]:
    """Yield the columns that the objective is computed from."""
    yield from objective.needs.logps
    if objective.needs.tokens:
        yield from (text.count.name for text in objective.needs.texts)
    yield from objective.needs.extras


def scored_side(
    table: Table, chunk: pl.DataFrame, objective: CheckedObjective, checked: Sequence[str]
) -> pl.DataFrame:
    """Return the pairs scored for one side, with `VALID`: no score is out of range."""
    pairs = chunk.lazy().select(**_columns_of(table, objective))
    scored = with_scores(pairs, objective).with_columns(_in_range(checked).alias(VALID))
    return scored.select(*_roles_of(objective), *_means_of(objective), VALID).collect()


def _columns_of(table: Table, objective: CheckedObjective) -> dict[str, pl.Expr]:
    """Return the columns of joined pairs that a side is scored from, by their own names."""
    return {name: pl.col(table.source_of(name)) for name in _roles_of(objective)}


def _means_of(objective: CheckedObjective) -> tuple[str, ...]:
    return MEANS if objective.row == "pair" else (LOGRATIO, REWARD, LOSS)


def _in_range(checked: Sequence[str]) -> pl.Expr:
    """Return whether no score is out of range."""
    rules = RuleSet(rules=(), valid=pl.lit(value=True))
    return rules.with_scores_in_range(checked).valid


def differing(pairs: pl.DataFrame, name: str, sides: Sequence[Table]) -> tuple[int, float | None]:
    """Return on how many pairs the sides differ in a column, and by how much at most."""
    if pairs[sides[0].column(name)].equals(pairs[sides[1].column(name)]):
        return 0, None
    a, b = (pl.col(side.column(name)) for side in sides)
    types = [pairs.schema[side.column(name)] for side in sides]
    if all(dtype.is_numeric() for dtype in types):
        gap = (a.cast(pl.Float64) - b.cast(pl.Float64)).abs()
        margin = pl.lit(0.0)
        if name in (REF_CHOSEN.name, REF_REJECTED.name, REF.name):
            margin = SAME_REFERENCE * pl.max_horizontal(a.abs(), b.abs(), 1.0)
        # NaN on both sides is no difference; on one it is, of no known size.
        is_apart = pl.when(gap.is_nan()).then(a.is_nan() != b.is_nan()).otherwise(gap > margin)
        differ = is_apart.fill_null(a.is_null() != b.is_null())
        largest = gap.fill_nan(None).max()
    else:
        texts = (a.cast(pl.String), b.cast(pl.String))
        differ, largest = texts[0].ne_missing(texts[1]), pl.lit(None, dtype=pl.Float64)
    row = pairs.select(differ.sum().alias("n"), largest.alias("largest")).row(0, named=True)
    return row["n"], row["largest"]
