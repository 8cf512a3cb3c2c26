"""The pass that ranks: reads the values of all rules once, and adds up what each rule keeps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import combinations
from typing import Any, Final, Self

import polars as pl

from dpo_pipeline.columns import (
    CHOSEN_TOKENS,
    CONTRADICTION,
    PAIR_ID,
    PROMPT_ID,
    REJECTED_TOKENS,
    REWARD_ACCURACY,
    REWARD_MARGIN,
)
from dpo_pipeline.contract import RuleSet
from dpo_pipeline.defaults import MAX_SUBSETS, STATISTICS_ROWS
from dpo_pipeline.engine import Watch
from dpo_pipeline.errors import UsageError
from dpo_pipeline.evaluation import Measurement
from dpo_pipeline.losses import is_correct
from dpo_pipeline.options import Selection
from dpo_pipeline.selection.contradictions import (
    CHOSEN,
    CYCLE,
    DUPLICATE,
    EDGES,
    FOUND,
    REJECTED,
    SWAP,
    ContradictionCounts,
    contradictions_in,
    known_by,
    with_edges,
)
from dpo_pipeline.selection.row_ranks import GROUP, KEPT, RANK, ROW, TIE, VALUE, ByRow, RowRanks
from dpo_pipeline.selection.selection_rules import KEY as PAIR_KEY, Rule
from dpo_pipeline.sources import KEY, Partitions
from dpo_pipeline.statistics import mixed, with_hashes
from dpo_pipeline.storage import reading

_PROMPT: Final = "__dpo_pipeline_prompt_hash"
_TOKENS: Final = (CHOSEN_TOKENS.name, REJECTED_TOKENS.name)
_EXTRA: Final = pl.Schema(
    {REWARD_MARGIN: pl.Float64, **dict.fromkeys(_TOKENS, pl.Float64), _PROMPT: pl.UInt64}
)
_RANKED: Final = pl.Schema(
    {
        ROW: pl.UInt64(),
        GROUP: pl.UInt32(),
        VALUE: pl.Float64(),
        TIE: pl.UInt64(),
        **_EXTRA,
    }
)
RANKED_ROWS: Final = pl.Schema(
    {ROW: pl.UInt64, VALUE: pl.Float64, RANK: pl.UInt64, KEPT: pl.Boolean}
)

_EFFECTS: Final = pl.Schema(
    {
        "rule": pl.String,
        "n_pairs": pl.Int64,
        REWARD_MARGIN: pl.Float64,
        REWARD_ACCURACY: pl.Float64,
        **dict.fromkeys(_TOKENS, pl.Float64),
        "n_prompts": pl.Int64,
    }
)
_GROUPS: Final = pl.Schema(
    {
        "rule": pl.String,
        GROUP: pl.UInt32,
        "n_ranked": pl.Int64,
        "n_kept": pl.Int64,
        "last": pl.Float64,
    }
)
_OVERLAPS: Final = pl.Schema(
    {"rule": pl.String, "other": pl.String, "n_both": pl.Int64, "share": pl.Float64}
)


def kept_of(keep: float, n: int) -> int:
    """Return how many of n pairs are kept: a count, or a share to the nearest pair, halves up."""
    if isinstance(keep, int):
        return min(keep, n)
    exact = Fraction(str(keep)) * n
    return int(exact + Fraction(1, 2))


@dataclass(slots=True)
class _Sums:
    """Sums over a set of pairs."""

    n_pairs: int = 0
    margin: float = 0.0
    n_correct: int = 0
    tokens: dict[str, float] = field(default_factory=dict)
    n_with: dict[str, int] = field(default_factory=dict)

    def add(self, rows: pl.DataFrame) -> None:
        self.n_pairs += rows.height
        self.margin += float(rows[REWARD_MARGIN].sum())
        self.n_correct += int(rows.select(is_correct(pl.col(REWARD_MARGIN)).sum()).item())
        for name in _TOKENS:
            self.tokens[name] = self.tokens.get(name, 0.0) + float(rows[name].sum())
            self.n_with[name] = self.n_with.get(name, 0) + rows[name].count()

    def row(self, rule: str | None, n_prompts: int | None) -> dict[str, Any]:
        """Return the row of the table of effects."""
        n = self.n_pairs
        means = {
            name: self.tokens[name] / self.n_with[name] if self.n_with.get(name) else None
            for name in _TOKENS
        }
        return {
            "rule": rule,
            "n_pairs": n,
            REWARD_MARGIN: self.margin / n if n else None,
            REWARD_ACCURACY: self.n_correct / n if n else None,
            **means,
            "n_prompts": n_prompts,
        }


class RankingPass:
    """Ranks the pairs of a dataset by several rules, of which the first may be written."""

    def __init__(
        self,
        measurement: Measurement,
        rules: Sequence[Rule],
        valid: RuleSet,
        selection: Selection,
        *,
        watch: Watch,
        held: ExitStack,
    ) -> None:
        self._made, self._rules, self._valid, self._asked = measurement, rules, valid, selection
        self._by, self._watch, self._held = measurement.wanted.by, watch, held
        self._names = [f"__dpo_pipeline_value_{i}" for i in range(len(rules))]
        self._groups = pl.DataFrame()
        self._ranks = [
            held.enter_context(RowRanks(_EXTRA, largest_first=rule.largest_first)) for rule in rules
        ]
        self._edges = Partitions({"": EDGES})
        held.enter_context(self._edges)
        self._columns = measurement.binding.columns
        self.stores: list[ByRow] = []
        self.n_kept: list[int] = []
        self.found: ByRow | None = None

    def read(self) -> None:
        """Read the values of all rules, in one reading of the pairs."""
        firsts = [
            self._held.enter_context(Partitions({"": _RANKED}, by=pl.col(_PROMPT).hash(1) % 64))
            if rule.one_a_prompt and PROMPT_ID.name in self._columns
            else None
            for rule in self._rules
        ]
        dataset, scorer = self._made.dataset, self._made.scorer
        with reading(dataset.read_from):
            for shard in dataset.shards():
                plan = self._plan(scorer.scored(shard), shard.first_row)
                for batch in plan.collect_batches(chunk_size=STATISTICS_ROWS):
                    self._add(batch, firsts)
                    self._watch.step("evaluating", batch.height, dataset.rows)
        for ranks, parts in zip(self._ranks, firsts, strict=True):
            for part in parts or ():
                ordered = part[""].sort(ROW)
                ranks.add(ordered.filter(pl.col(_PROMPT).is_first_distinct()))

    def _plan(self, scored: pl.LazyFrame, first_row: int) -> pl.LazyFrame:
        columns = self._columns
        pairs = scored.with_row_index(ROW, offset=first_row)
        pairs = pairs.filter(self._valid.valid).with_columns(pl.col(ROW).cast(pl.UInt64))
        alone = mixed(mixed(pl.col(ROW)))
        for name, into in ((PAIR_ID.name, PAIR_KEY), (PROMPT_ID.name, _PROMPT)):
            if name in columns:
                pairs = with_hashes(pairs, name, columns[name], into=into)
                pairs = pairs.with_columns(pl.col(into).fill_null(alone))
            else:
                pairs = pairs.with_columns(alone.alias(into))
        there = self._made.binding.source_of
        values = [
            rule.value(self._asked).cast(pl.Float64).alias(name)
            for rule, name in zip(self._rules, self._names, strict=True)
        ]
        tokens = [
            (pl.col(name) if name in columns else pl.lit(None)).cast(pl.Float64).alias(name)
            for name in _TOKENS
        ]
        keys = [pl.col(there(name)).alias(f"{GROUP}{i}") for i, name in enumerate(self._by)]
        edges: list[pl.Expr] = []
        if self._asked.contradictions is not None:
            pairs = with_edges(pairs, columns)
            edges = [pl.col(name) for name in (KEY, CHOSEN, REJECTED)]
        return pairs.select(
            *(ROW, pl.col(PAIR_KEY).alias(TIE), REWARD_MARGIN, _PROMPT),
            *(*tokens, *values, *keys, *edges),
        )

    def _add(self, batch: pl.DataFrame, firsts: Sequence[Partitions | None]) -> None:
        rows = self._with_groups(batch)
        if self._asked.contradictions is not None:
            self._edges.add("", rows.select(EDGES.names()))
        for name, ranks, parts in zip(self._names, self._ranks, firsts, strict=True):
            own = rows.with_columns(pl.col(name).alias(VALUE)).select(_RANKED.names())
            own = own.filter(pl.col(VALUE).is_not_nan())
            if parts is None:
                ranks.add(own)
            else:
                parts.add("", own.cast(_RANKED))

    def _with_groups(self, batch: pl.DataFrame) -> pl.DataFrame:
        keys = [f"{GROUP}{i}" for i in range(len(self._by))]
        if not keys:
            self._groups = pl.DataFrame({GROUP: pl.Series([0], dtype=pl.UInt32)})
            return batch.with_columns(pl.lit(0, pl.UInt32).alias(GROUP))
        there = self._groups if self._groups.width else batch.select(keys).clear()
        new = batch.select(keys).unique(maintain_order=True)
        if there.height:
            new = new.join(there, on=keys, how="anti", nulls_equal=True, maintain_order="left")
        numbers = pl.int_range(there.height, there.height + new.height, dtype=pl.UInt32, eager=True)
        new = new.with_columns(numbers.alias(GROUP))
        self._groups = pl.concat([there, new]) if there.height else new
        if self._groups.height > MAX_SUBSETS:
            raise UsageError(f"by: more than {MAX_SUBSETS:,} subsets; select by a coarser column")
        known = self._groups
        return batch.join(known, on=keys, how="left", nulls_equal=True, maintain_order="left")

    def finish(self) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Rank the rows, and return the tables of groups and of effects."""
        keep = self._asked.keep
        if keep is None:
            raise TypeError("keep is checked by the plan")
        effects, groups = [], []
        for i, (rule, ranks) in enumerate(zip(self._rules, self._ranks, strict=True)):
            store = self._held.enter_context(ByRow(RANKED_ROWS))
            self.stores.append(store)
            n_kept = {group: kept_of(keep, n) for group, n in ranks.n_of_groups.items()}
            every, kept, last = _Sums(), _Sums(), dict[int, float]()
            with _Prompts() as all_prompts, _Prompts() as prompts:
                for rows in ranks.ranked(n_kept):
                    chosen = rows.filter(KEPT)
                    if i == 0:
                        every.add(rows)
                        all_prompts.add(rows)
                    kept.add(chosen)
                    prompts.add(chosen)
                    last |= dict(
                        chosen.group_by(GROUP, maintain_order=True)
                        .agg(pl.col(VALUE).last())
                        .iter_rows()
                    )
                    whole = i == 0 and self._asked.rest is not None
                    store.add(rows if whole else chosen)
                has_prompts = PROMPT_ID.name in self._columns
                if i == 0:
                    effects.append(every.row(None, all_prompts.n if has_prompts else None))
                effects.append(kept.row(rule.name, prompts.n if has_prompts else None))
            self.n_kept.append(sum(n_kept.values()))
            groups += [
                {
                    "rule": rule.name,
                    GROUP: group,
                    "n_ranked": n,
                    "n_kept": n_kept[group],
                    "last": last.get(group),
                }
                for group, n in ranks.n_of_groups.items()
            ]
        return self._group_table(groups), pl.DataFrame(effects, schema=_EFFECTS)

    def _group_table(self, rows: list[dict[str, Any]]) -> pl.DataFrame:
        table = pl.DataFrame(rows, schema=_GROUPS)
        named = self._groups.rename({f"{GROUP}{i}": name for i, name in enumerate(self._by)})
        made = table.join(named, on=GROUP, how="left").sort(self._by)  # batches come in any order
        order = pl.DataFrame({"rule": [rule.name for rule in self._rules]})
        made = order.join(made, on="rule", how="left", maintain_order="left_right")
        return made.select("rule", *self._by, "n_ranked", "n_kept", "last")

    def overlaps(self, n_rows: int) -> pl.DataFrame:
        """Return, for every two rules, how many pairs both keep."""
        pairs = list(combinations(range(len(self._rules)), 2))
        both = dict.fromkeys(pairs, 0)
        for store in self.stores:
            store.rewind()
        for first in range(0, n_rows if pairs else 0, STATISTICS_ROWS):
            taken = [store.take(first, STATISTICS_ROWS).filter(KEPT)[ROW] for store in self.stores]
            for a, b in pairs:
                both[a, b] += int(taken[a].is_in(taken[b].implode()).sum())
        rows = []
        for a, b in pairs:
            smaller = min(self.n_kept[a], self.n_kept[b])
            share = both[a, b] / smaller if smaller else None
            rows.append((self._rules[a].name, self._rules[b].name, both[a, b], share))
        return pl.DataFrame(rows, schema=_OVERLAPS, orient="row")

    def contradictions(self) -> ContradictionCounts | None:
        """Look for pairs that repeat or contradict each other, if that was asked for."""
        if self._asked.contradictions is None:
            return None
        self.found = self._held.enter_context(ByRow(FOUND))
        n = Counter[str]()
        for rows in contradictions_in(self._edges):
            self.found.add(rows)
            for kind in (DUPLICATE, SWAP, CYCLE):
                n[kind] += int(rows[CONTRADICTION].str.contains(kind, literal=True).sum())
        return ContradictionCounts(
            duplicates=n[DUPLICATE],
            swaps=n[SWAP],
            cycles=n[CYCLE],
            known_by=known_by(self._columns),
        )


class _Prompts:
    """Counts different prompts, in memory that does not grow with them."""

    def __init__(self) -> None:
        self._parts = Partitions({"": pl.Schema({KEY: pl.UInt64})})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._parts.__exit__(None, None, None)

    def add(self, rows: pl.DataFrame) -> None:
        self._parts.add("", rows.select(pl.col(_PROMPT).unique().alias(KEY)))

    @property
    def n(self) -> int:
        return sum(part[""][KEY].n_unique() for part in self._parts)
