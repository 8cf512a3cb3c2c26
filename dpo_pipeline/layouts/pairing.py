"""Pairs of the completions of a prompt, made while they are read.

Completions of a prompt that stand together are read once, in order. Others are parted by prompt
first, on disk where there are many. Either way the rows of a few prompts are held at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import polars as pl

from dpo_pipeline.columns import (
    COMPLETION_ID,
    LABEL,
    PAIR_ID,
    PREFERENCES,
    PROMPT_ID,
    RANK,
    TEXTS,
    TOKENS_OF,
    preferred,
    resolve,
)
from dpo_pipeline.contract import truth
from dpo_pipeline.defaults import PAIRED_ROWS, STATISTICS_ROWS
from dpo_pipeline.errors import ColumnError
from dpo_pipeline.layouts.unfolding import ANSWERS, made_of
from dpo_pipeline.sources import KEY, Dataset, Partitions, UniqueKeys, lazily

BETTER: Final = "__dpo_pipeline_better"
_GROUP: Final = "__dpo_pipeline_prompt"
_SIDES: Final = ("chosen", "rejected")
_Columns: TypeAlias = Sequence[str | pl.Expr]


@dataclass(slots=True)
class Counted:
    """What pairs were made of."""

    n_completions: int = 0
    n_prompts: int = 0
    n_pairs: int = 0
    n_ties: int = 0  # pairs that were not made, because both are equally good
    n_alone: int = 0  # prompts with one completion
    n_left_out: int = 0  # completions without a prompt, or of unknown preference


class Together:
    """Completions whose prompts are whole in each piece that is read.

    Attributes:
        key: The column of the prompt.
        better: The column of the preference; more is better once it is read.
    """

    def __init__(self, dataset: Dataset, columns: Mapping[str, str] | None) -> None:
        """Check that there is a prompt and a preference; nothing is read."""
        self.dataset = dataset
        self.schema = dataset.frame.collect_schema()
        given = {} if dataset.is_canonical else columns
        resolution = resolve(self.schema.names(), given)
        self.roles = resolution.mapping
        roles = self.roles
        # Where the sides of pairs stand in two rows, their pair is the prompt.
        are_words = self.schema.get(roles.get(LABEL.name, "")) == pl.String
        of_sides = PAIR_ID.name in roles and (are_words or PROMPT_ID.name not in roles)
        self.is_of_sides = of_sides
        names = (PAIR_ID.name,) if of_sides else (PROMPT_ID.name,)
        found = [name for name in names if name in roles]
        preferences = preferred([role for role in PREFERENCES if role.name in roles], given)
        problems = list(resolution.problems)
        if not found:
            problems.append(
                f"{PROMPT_ID.name}: missing, and completions of one prompt are compared; an "
                "unpaired loss needs none (evaluate --loss kto)"
            )
        if not preferences:
            several = ", ".join(role.name for role in PREFERENCES)
            problems.append(f"{several}: all are missing, and one says which completion is better")
        if problems:
            raise ColumnError(dataset.name, tuple(problems))
        self.key, self.preference, *self.others = roles[found[0]], *preferences
        self._are_together: bool | None = None

    def of(self, rows: pl.LazyFrame) -> Together:
        """Return the same for these rows, of the same completions under the roles' own names."""
        made = copy(self)
        made.roles = {role: role for role in self.roles}
        made.dataset, made.schema = made_of(self.dataset, rows), rows.collect_schema()
        made.key = PAIR_ID.name if self.is_of_sides else PROMPT_ID.name
        return made

    @property
    def taken(self) -> str:
        """What says which completion is better, and what is there too and says nothing."""
        others = " and ".join(role.name for role in self.others)
        return f"{self.preference.name}{f', and not by {others}' if others else ''}"

    @property
    def better(self) -> pl.Expr:
        """How good a completion is, as a number: more is better."""
        name = self.roles[self.preference.name]
        if self.preference is LABEL:
            return truth(pl.col(name), self.schema[name]).cast(pl.Float64)
        value = pl.col(name).cast(pl.Float64)
        return -value if self.preference is RANK else value

    def rows(self, names: Sequence[str], counted: Counted) -> Iterator[pl.DataFrame]:
        """Yield rows, each prompt whole in one: `KEY`, how good each is, and these columns."""
        self.dataset.check_keys()
        prompt, better = pl.col(self.key).alias(KEY), self.better.alias(BETTER)
        asked: _Columns = [prompt, better, *dict.fromkeys(names)]
        if self._are_together is None:
            self._are_together = self._look()
        for piece in self._in_order(asked) if self._are_together else self._parted(asked):
            known = piece.filter(pl.col(KEY).is_not_null() & pl.col(BETTER).is_not_nan())
            counted.n_completions += piece.height
            counted.n_left_out += piece.height - known.height
            if known.height:
                yield known

    def _look(self) -> bool:
        """Return whether the rows of each prompt follow each other."""
        last = None
        with UniqueKeys() as unique:
            for rows in self._batches([pl.col(self.key).alias(KEY)], STATISTICS_ROWS):
                runs = rows[KEY].rle().struct.field("value")
                if runs.len() and last is not None and runs[0] == last:
                    runs = runs.slice(1)
                last = rows[KEY][-1] if rows.height else last
                unique.add(runs.drop_nulls())
            return unique.are_unique

    def _batches(self, asked: _Columns, size: int) -> Iterator[pl.DataFrame]:
        return self.dataset.batches(lambda rows: rows.select(asked), size)

    def _in_order(self, asked: _Columns) -> Iterator[pl.DataFrame]:
        held = None
        for batch in self._batches(asked, PAIRED_ROWS):
            rows = batch if held is None else pl.concat([held, batch])
            # The rows of the last prompt may go on in the next batch.
            same = rows[KEY].eq_missing(rows[KEY][-1]).sum() if rows.height else 0
            held = rows.tail(same)
            if rows.height > same:
                yield rows.head(rows.height - same)
        if held is not None and held.height:
            yield held

    def _parted(self, asked: _Columns) -> Iterator[pl.DataFrame]:
        schema = self.dataset.frame.select(asked).collect_schema()
        with Partitions({"": schema}, most=STATISTICS_ROWS) as parts:
            for batch in self._batches(asked, STATISTICS_ROWS):
                parts.add("", batch)
            for part in parts:
                rows = part[""].sort(KEY, maintain_order=True, nulls_last=True)
                begin = 0
                while begin < rows.height:
                    end = min(begin + PAIRED_ROWS, rows.height)
                    after = rows[KEY].slice(end).ne_missing(rows[KEY][end - 1])
                    found = after.arg_max() if after.any() else None
                    end = rows.height if found is None else end + int(found)
                    yield rows.slice(begin, end - begin)
                    begin = end


@dataclass(frozen=True, slots=True)
class _Column:
    """A column of pairs: where it comes from, and of which completion."""

    name: str
    of: int = 0


@dataclass
class PairMaker:
    """Makes the pairs of a dataset of completions."""

    completions: Together
    pairing: str
    counted: Counted | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        """Say which column each column of pairs is made from."""
        together = self.completions
        roles, schema = together.roles, together.schema
        made: dict[str, _Column] = {}
        (one,) = TEXTS["completion"]
        for of, text in enumerate(TEXTS["pair"]):
            for ours, theirs in (
                *zip((one.policy, one.ref), (text.policy, text.ref), strict=True),
                (TOKENS_OF[one.policy.name], TOKENS_OF[text.policy.name]),
                (TOKENS_OF[one.ref.name], TOKENS_OF[text.ref.name]),
                *zip((one.count, one.mask), (text.count, text.mask), strict=True),
            ):
                if ours.name in roles:
                    made[theirs.name] = _Column(roles[ours.name], of)
            of_both = [role.name for role in (COMPLETION_ID, *PREFERENCES) if role.name in roles]
            made |= {f"{_SIDES[of]}_{name}": _Column(roles[name], of) for name in of_both}
            answer = next((n for n in ANSWERS if schema.get(n) == pl.String), None)
            if answer is not None:
                made.setdefault(_SIDES[of], _Column(answer, of))
        used = {each.name for each in made.values()}
        made |= {name: _Column(roles[name]) for name in (PROMPT_ID.name,) if name in roles}
        if together.is_of_sides:
            made[PAIR_ID.name] = _Column(roles[PAIR_ID.name])
        used |= {roles[name] for name in (PROMPT_ID.name, PAIR_ID.name) if name in roles}
        made |= {n: _Column(n) for n in schema if n not in used and n not in made}
        self._made = made
        self._has_id = not together.is_of_sides and COMPLETION_ID.name in roles
        types = {name: schema[column.name] for name, column in made.items()}
        if self._has_id:
            types = {PAIR_ID.name: pl.String(), **types}
        self.schema = pl.Schema(types)

    def frame(self) -> pl.LazyFrame:
        """Return the pairs, which are made whenever they are read."""
        return lazily(self.schema, self._parts)

    def told(self) -> tuple[str, ...]:
        """Say what the pairs were made of, once all were read."""
        made = self.counted
        if made is None:
            return ()
        name = self.completions.preference.name
        text = (
            f"{_many(made.n_pairs, 'pair')} ({self.pairing}) of "
            f"{_many(made.n_completions, 'completion')} of {_many(made.n_prompts, 'prompt')} "
            f"by {self.completions.taken}"
        )
        odd = (
            (made.n_ties, "tie", f"of {name}, of which no pair was made"),
            (made.n_alone, "prompt", "with one completion"),
            (made.n_left_out, "completion", f"without a prompt or a {name}"),
        )
        return ("; ".join([text, *(f"{_many(n, noun)} {what}" for n, noun, what in odd if n)]),)

    def _parts(self, names: list[str], n_rows: int | None) -> Iterator[pl.DataFrame]:
        asked = [name for name in names if name in self._made]
        needed = [self._made[name].name for name in asked]
        roles = self.completions.roles
        if self._has_id and PAIR_ID.name in names:
            needed.append(roles[COMPLETION_ID.name])
        counted, left = Counted(), n_rows
        for rows in self.completions.rows(needed, counted):
            ordered = rows.with_columns(pl.col(KEY).rle_id().alias(_GROUP)).sort(
                _GROUP, BETTER, descending=[False, True], maintain_order=True
            )
            for places in _pairs_of(ordered[_GROUP], ordered[BETTER], self.pairing, counted):
                counted.n_pairs += places[0].len()
                yield self._gathered(ordered, places, names)
                left = None if left is None else left - places[0].len()
            if left is not None and left <= 0:
                return
        self.counted = counted

    def _gathered(
        self, rows: pl.DataFrame, places: Sequence[pl.Series], names: Sequence[str]
    ) -> pl.DataFrame:
        made = {}
        for name in names:
            if name in self._made:
                column = self._made[name]
                made[name] = rows[column.name].gather(places[column.of])
            else:
                ids = rows[self.completions.roles[COMPLETION_ID.name]]
                chosen, rejected = (ids.gather(each).cast(pl.String) for each in places)
                prompts = rows[KEY].gather(places[0]).cast(pl.String)
                made[name] = prompts + " " + chosen + " > " + rejected
        return pl.DataFrame(made, schema={name: self.schema[name] for name in names})


def _many(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _pairs_of(
    groups: pl.Series, better: pl.Series, pairing: str, counted: Counted
) -> Iterator[tuple[pl.Series, pl.Series]]:
    """Yield the rows of the chosen and of the rejected completion of each pair, some at a time.

    Rows are sorted: prompt by prompt, the best completion first, equal ones in their order.
    """
    n = pl.int_range(groups.len(), eager=True, dtype=pl.UInt32)
    first = n.gather(groups.search_sorted(groups, side="left"))
    after = groups.search_sorted(groups, side="right").cast(pl.UInt32)
    starts = n.filter(first == n)
    ends = after.filter(first == n) - 1
    counted.n_prompts += starts.len()
    counted.n_alone += int((starts == ends).sum())
    several = starts < ends
    waiting: list[tuple[pl.Series, pl.Series]] = []
    held = 0

    def differing(chosen: pl.Series, rejected: pl.Series) -> tuple[pl.Series, pl.Series]:
        differ = better.gather(chosen) > better.gather(rejected)
        counted.n_ties += int((~differ).sum())
        return chosen.filter(differ), rejected.filter(differ)

    if pairing == "best-worst":
        yield differing(starts.filter(several), ends.filter(several))
        return
    if pairing == "best-rest":
        yield differing(first.filter(n > first), n.filter(n > first))
        return
    rows, step = n, 1
    while True:
        rows = rows.filter(rows + step < after.gather(rows))
        if not rows.len():
            break
        waiting.append(differing(rows, rows + step))
        held += rows.len()
        if pairing == "adjacent":
            break
        if held > STATISTICS_ROWS:
            yield _in_order_of_rows(waiting)
            waiting, held = [], 0
        step += 1
    if waiting:
        yield _in_order_of_rows(waiting)


def _in_order_of_rows(pairs: Sequence[tuple[pl.Series, pl.Series]]) -> tuple[pl.Series, pl.Series]:
    both = pl.DataFrame(
        {side: pl.concat([each[i] for each in pairs]) for i, side in enumerate(_SIDES)}
    ).sort(_SIDES)
    return both[_SIDES[0]], both[_SIDES[1]]
