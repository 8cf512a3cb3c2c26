"""The reference's log-probs beside the policy's, from a table of their own, by a key."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import Event
from typing import Any, Final, Self, TypeAlias, cast

import polars as pl

from dpo_pipeline.arguments import given
from dpo_pipeline.columns import (
    COMPLETION_ID,
    ELSEWHERE,
    LOGPS,
    MAPPING,
    PAIR_ID,
    POLICY,
    REF,
    TOKENS_OF,
    Resolution,
    resolve,
    row_of,
)
from dpo_pipeline.defaults import JOINED_BYTES, SHARD_ROWS_IN_STEP, STATISTICS_ROWS
from dpo_pipeline.engine import Watch
from dpo_pipeline.errors import NO_GUESSES, ColumnError
from dpo_pipeline.options import Execution, Pairs, Reference
from dpo_pipeline.sources.dataset import Dataset, Step, ranges_in_step
from dpo_pipeline.sources.frames import dumps_apart
from dpo_pipeline.sources.keys import (
    KEY,
    OrderedRows,
    OutOfStep,
    Partitions,
    checked_on,
    count_keys,
    in_step,
    joined,
    key_of,
    no_key,
)
from dpo_pipeline.sources.opening import (
    REFERENCE,
    EqualColumns,
    open_pairs,
    open_reference,
    tokenised_apart,
)
from dpo_pipeline.sources.trainer_files import LENGTHS, prove_row_numbers
from dpo_pipeline.storage import Access, reading

_ROW: Final = "__dpo_pipeline_row"
_OTHER: Final = "__dpo_pipeline_other_key"
_NONE: Final = 2**32 - 1  # the number of no row
_APART: Final = 4  # a table of keys has room for so many times their number
_KEY_BYTES: Final = 8
Ordered: TypeAlias = Callable[[int, int | None], pl.LazyFrame]
"""Rows in order, from the number of the first and how many."""
_OF_REFERENCE: Final = "Reference(columns={role: name}), or --reference-column role=name"


def join_reference(
    pairs: Any, reference: Any, *, on: str | None = None, execution: Any = None
) -> pl.LazyFrame:
    """Return the policy's rows, in their order, with the reference's log-probs of the same key.

    The keys of both are read and compared at once; the join itself is lazy. Log-probs (in nats) are
    not checked: null and NaN pass. `evaluate`, `check`, `sweep` and `score_parquet` do the same
    with `reference=`.

    Args:
        pairs: `Pairs`, or their source: rows with the policy's log-probs.
        reference: `Reference`, or its source: rows with the reference's log-probs, in any order.
        on: The key: a column of both, each value once; `pair_id` if not given.
        execution: `Execution`, for how object stores are reached.

    Raises:
        UsageError: The key is no column's name, or a role is none of a reference.
        ColumnError: A column is missing, is on both sides, or the keys are of types that
            cannot be equal.
        JoinError: Keys are null, are there twice, or are on one side only.
        StorageError: A file cannot be read.

    Examples:
        >>> import dpo_pipeline, polars as pl
        >>> policy = pl.DataFrame({"pair_id": [2, 1], "policy_chosen_logps": [-1.0, -2.0]})
        >>> reference = pl.DataFrame({"pair_id": [1, 2], "ref_chosen_logps": [-2.5, -1.5],
        ...                           "ref_rejected_logps": [-3.0, -4.0]})
        >>> dpo_pipeline.join_reference(policy, reference).collect()["ref_chosen_logps"].to_list()
        [-1.5, -2.5]
    """
    source = pairs if isinstance(pairs, Pairs) else Pairs(pairs)
    other = given(Reference, reference, on=on)
    run = given(Execution, execution)
    access = Access.of(run)
    left = open_pairs(source, access=access, keys=[other.on], name="policy", cancel=run.cancel)
    # The join is lazy, so that the caller's plan finds each row's own, whatever changed meanwhile.
    left = replace(left, keeps_order=False)
    dataset = with_reference(left, other, columns=source.columns, access=access, cancel=run.cancel)
    dataset.refuse_unread("a join carries all columns: evaluate(..., reference=) skips these")
    dataset.check_keys()
    dataset.warn(stacklevel=3)
    return dataset.frame


def with_reference(
    policy: Dataset,
    reference: Reference,
    *,
    columns: Mapping[str, str] | None,
    access: Access,
    cancel: Event | None = None,
    by_shard: bool = False,
) -> Dataset:
    """Return the policy's dataset, whose rows get the reference's log-probs.

    No row is read: `check_keys` of the dataset reads and compares the keys. `columns` is role to
    the policy's column; `by_shard` says that shards are read by other processes.
    """
    on, other = checked_on(reference.on), open_reference(reference, access=access, cancel=cancel)
    if other.name == policy.name:
        other = replace(other, name=f"{other.name} (reference)")
    with reading(policy.name):
        left = policy.frame.collect_schema()
    with reading(other.name):
        right = other.frame.collect_schema()
    taken = reference_columns_of(right, reference.columns)
    if row_of(left.names(), columns) == "completion":
        # A completion's own id, where the user said no other key.
        on = COMPLETION_ID.name if on == PAIR_ID.name and on not in left else on
    _check_joinable(other.name, on, right, taken.problems, taken.guesses)
    _check_joinable(policy.name, on, left, _on_both_sides(left, columns, other.name))
    key = key_of(on, {other.name: right, policy.name: left}).alias(KEY)
    found = [pl.col(taken.mapping[name]).alias(name) for name in _wanted(right, reference.columns)]
    beside = _Beside(policy, other, key, found, Watch(cancel=cancel))

    def compare_keys() -> None:
        with reading(f"{policy.name} or {other.name}"):
            if on == PAIR_ID.name and LENGTHS[0] in right:
                prove_row_numbers(policy, other, key, columns)
            beside.compare_keys(on, orders=not by_shard)

    step: Step = _ByShard(other, key, tuple(found)) if by_shard else beside.step
    return replace(
        policy,
        frame=step(policy.frame, 0, None),
        own_notes=(
            *policy.own_notes,
            *tokenised_apart(policy, other),
            *dumps_apart(policy, other),
        ),
        before=None if by_shard else policy.frame,
        step=step,
        can_cut=(lambda: True) if by_shard else beside.can_cut,
        reference=other,
        compare_keys=compare_keys,
    )


@dataclass(frozen=True, slots=True)
class _ByShard:
    """Puts the reference's log-probs beside the rows of one shard, in whatever process.

    Where both tables have the same keys in these rows, they are read side by side. Otherwise the
    whole reference is read, of which only the rows with keys of the shard are held.
    """

    reference: Dataset
    key: pl.Expr
    found: tuple[pl.Expr, ...]

    def __call__(self, rows: pl.LazyFrame, first: int, n: int | None) -> pl.LazyFrame:
        """Return the rows with the log-probs; keys are read for it if it is known how many."""
        if n is not None and first + n <= (self.reference.rows or 0):
            beside = self.reference.shard(first, n).frame
            keys = pl.concat(
                [rows.select(self.key), beside.select(self.key.alias(_OTHER))], how="horizontal"
            )
            is_same = pl.col(KEY).eq_missing(pl.col(_OTHER)).all()
            if keys.select(is_same).collect(engine="streaming").item():
                return pl.concat([rows, beside.select(self.found)], how="horizontal")
        keyed = rows.with_columns(self.key)
        found = self.reference.frame.select(self.key, *self.found)
        held = found.join(keyed.select(KEY), on=KEY, how="semi")
        return keyed.join(held, on=KEY, how="left", maintain_order="left").drop(KEY)


class _Beside:
    """Puts the reference's log-probs beside rows of the policy.

    Tables that have the same keys in one order need no join. For others, the reference's rows are
    brought into the order of the policy's once, when the keys are compared.
    """

    def __init__(
        self,
        policy: Dataset,
        reference: Dataset,
        key: pl.Expr,
        found: Sequence[pl.Expr],
        watch: Watch,
    ) -> None:
        self._policy, self._reference, self._key, self._found = policy, reference, key, found
        self._watch = watch
        self._ordered: Ordered | None = None

    def step(self, rows: pl.LazyFrame, first: int, n: int | None) -> pl.LazyFrame:
        """Add the log-probs to rows of the policy, from the number of the first and how many."""
        if self._ordered is not None:
            return pl.concat([rows, self._ordered(first, n)], how="horizontal")
        found = self._reference.frame.select(self._key, *self._found)
        keyed = rows.with_columns(self._key)
        return keyed.join(found, on=KEY, how="left", maintain_order="left").drop(KEY)

    def can_cut(self) -> bool:
        """Return whether the step can be done shard by shard, once the keys are compared."""
        return self._ordered is not None

    def compare_keys(self, on: str, *, orders: bool) -> None:
        """Raise a JoinError if keys are null, twice, or on one side only."""
        lengths = {self._policy.rows, self._reference.rows} - {None}
        can_match = self._policy.keeps_order and len(lengths) <= 1
        if not (can_match and self._is_in_step()):
            self._join(on, is_ordered=orders and can_match)

    def _is_in_step(self) -> bool:
        # Only of Parquet some rows can be read again without those before them.
        carried = [] if self._reference.files else self._found
        ordered = OrderedRows()
        try:
            for rows in in_step(self._runs(carried)):
                self._watch.check()
                if carried:
                    ordered.add(rows.drop(KEY))
        except OutOfStep:
            return False
        if carried and not ordered.n_rows:
            return False
        self._ordered = ordered.rows if carried else self._of_files
        return True

    def _runs(self, carried: Sequence[pl.Expr]) -> Iterator[list[pl.LazyFrame]]:
        both = (self._policy, self._reference)
        equal, names = EqualColumns(*both), self._key.meta.root_names()
        for first, n in ranges_in_step(both):
            mine, theirs = (each.shard(first, n).frame for each in both)
            # Keys that have the same bytes in both are the same, so one of them is read.
            alike = not carried and equal.among(names, first, n)
            others = [] if alike else [theirs.select(self._key, *carried)]
            yield [mine.select(self._key), *others]

    def _of_files(self, first: int, n: int | None) -> pl.LazyFrame:
        if n == 0:
            return self._reference.frame.limit(0).select(self._found)
        n = self._reference.rows if n is None else n
        return self._reference.shard(first, n).frame.select(self._found)

    def _join(self, on: str, *, is_ordered: bool) -> None:
        """Compare keys that are in another order, and bring the reference into the policy's."""
        policy, reference = self._policy, self._reference
        mine = policy.frame.select(self._key)
        theirs = reference.frame.select(self._key, *(self._found if is_ordered else ()))
        dtype = mine.collect_schema()[KEY]
        if is_ordered and dtype.is_integer():
            self._ordered = self._placed(mine, theirs)
        if is_ordered and dtype in (pl.String, pl.Binary):
            hashed = [rows.with_columns(_hash_of(pl.col(KEY))) for rows in (mine, theirs)]
            with self._parted(*hashed) as parts:
                self._ordered = self._paired(parts, theirs)
        if self._ordered is not None:
            return
        with self._parted(mine, theirs) as parts:
            if is_ordered:
                self._ordered = self._paired(parts, theirs)
            if self._ordered is None:
                count_keys(on, [policy.name, reference.name], parts, must_match=True)

    @contextmanager
    def _parted(self, mine: pl.LazyFrame, theirs: pl.LazyFrame) -> Iterator[Partitions]:
        frames = {self._policy.name: mine.with_row_index(_ROW), self._reference.name: theirs}
        with Partitions({name: each.collect_schema() for name, each in frames.items()}) as parts:
            for name, frame in frames.items():
                for rows in self._batches(frame):
                    parts.add(name, rows)
            yield parts

    def _placed(self, mine: pl.LazyFrame, theirs: pl.LazyFrame) -> Ordered | None:
        """Return the reference in order by a table of keys; None if they are not surely alike."""
        numbers = _RowNumbers.of(each[KEY] for each in self._batches(mine))
        if numbers is None:
            return None
        with _PlacedRows(theirs) as placed:
            for some in self._batches(theirs):
                places = numbers.places(some[KEY])
                if places is None:
                    return None
                placed.add(some.with_columns(places))
            return placed.in_order(numbers.n_rows)

    def _paired(self, parts: Partitions, theirs: pl.LazyFrame) -> Ordered | None:
        """Return the reference in order by joins of parts; None if a key has not one of each."""
        n_rows = 0
        with _PlacedRows(theirs) as placed:
            for part in parts:
                self._watch.check()
                keys = part[self._policy.name][KEY]
                rises = (keys.slice(1) > keys.slice(0, max(keys.len() - 1, 0))).all()
                if not rises and keys.n_unique() < keys.len():
                    return None
                n_rows += keys.len()
                pairs = joined(part.values())
                if any(each.height != pairs.height for each in part.values()):
                    return None
                placed.add(pairs.drop(KEY))
            return placed.in_order(n_rows)

    def _batches(self, rows: pl.LazyFrame) -> Iterator[pl.DataFrame]:
        for some in rows.collect_batches(maintain_order=True, chunk_size=STATISTICS_ROWS):
            self._watch.check()
            yield some


def _hash_of(key: pl.Expr) -> pl.Expr:
    """Return 128 bits that stand for a text; that two of 10**9 share them has odds of 10**-21."""
    high, low = (key.hash(seed).cast(pl.Int128) for seed in (1, 2))
    return pl.when(key.is_not_null()).then(high * 2**64 + low).alias(KEY)


@dataclass(frozen=True, slots=True)
class _RowNumbers:
    """The row of each of the policy's keys, where these are integers that lie close together."""

    lowest: int
    n_rows: int
    table: pl.Series | None  # the row of each key from the lowest on; None of keys without gaps

    @classmethod
    def of(cls, batches: Iterable[pl.Series]) -> Self | None:
        """Return the rows of keys, of one that is twice there one; None if keys lie apart."""
        lowest, n, held = 0, 0, list[pl.Series]()
        for keys in (each.cast(pl.Int64, strict=False) for each in batches if each.len()):
            if keys.null_count():
                return None
            lowest = lowest if n else int(keys[0])
            goes_on = pl.int_range(lowest + n, lowest + n + keys.len(), eager=True)
            if held or not (keys == goes_on).all():
                held = held or [pl.int_range(lowest, lowest + n, eager=True)]
                held.append(keys)
            n += keys.len()
            if held and n * _KEY_BYTES > JOINED_BYTES:
                return None
        return cls._of_table(pl.concat(held, rechunk=True)) if held else cls(lowest, n, None)

    @classmethod
    def _of_table(cls, keys: pl.Series) -> Self | None:
        n, (lowest, highest) = keys.len(), (cast("int", keys.min()), cast("int", keys.max()))
        span = highest - lowest + 1
        if span > _APART * n:
            return None
        table = pl.repeat(_NONE, span, dtype=pl.UInt32, eager=True)
        table.scatter(keys - lowest, pl.int_range(n, dtype=pl.UInt32, eager=True))
        return cls(lowest, n, table)

    def places(self, keys: pl.Series) -> pl.Series | None:
        """Return the rows of the policy that have these keys; None if one has none."""
        places = (keys.cast(pl.Int64, strict=False) - self.lowest).cast(pl.UInt32, strict=False)
        end = self.n_rows if self.table is None else self.table.len()
        if places.null_count() or (places >= end).any():
            return None
        if self.table is not None:
            places = self.table.gather(places)
            if (places == _NONE).any():
                return None
        return places.alias(_ROW)


class _PlacedRows:
    """Rows of the reference with their places among the policy's, to be brought in order.

    They are in memory up to `JOINED_BYTES`; more are parted by their places on disk.
    """

    def __init__(self, reference: pl.LazyFrame) -> None:
        columns = reference.drop(KEY).collect_schema()
        self._columns = pl.Schema({_ROW: pl.get_index_type(), **columns})
        self._held: list[pl.DataFrame] = []
        self._bytes = 0
        self._on_disk: Partitions | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._on_disk is not None:
            self._on_disk.__exit__(None, None, None)

    def add(self, rows: pl.DataFrame) -> None:
        """Add rows, in any order."""
        self._held.append(rows.select(list(self._columns)))
        self._bytes += int(self._held[-1].estimated_size())
        if self._on_disk is None and self._bytes > JOINED_BYTES:
            by = pl.col(_ROW) // SHARD_ROWS_IN_STEP
            self._on_disk = Partitions({"": self._columns}, by=by, most=0)
        while self._on_disk is not None and self._held:
            self._on_disk.add("", self._held.pop())

    def in_order(self, n_rows: int) -> Ordered | None:
        """Return the rows in order; None unless each of so many places has one row."""
        if self._on_disk is None:
            whole = _in_order(self._held, 0, n_rows)
            return None if whole is None else lambda first, n: whole.lazy().slice(first, n)
        ordered = OrderedRows(0)
        for rows in (part[""].rechunk() for part in self._on_disk):
            first = ordered.n_rows
            found = _in_order([rows], first, min(SHARD_ROWS_IN_STEP, n_rows - first))
            if found is None:
                return None
            ordered.add(found)
        return ordered.rows if ordered.n_rows == n_rows else None


def _in_order(held: list[pl.DataFrame], first: int, n: int) -> pl.DataFrame | None:
    """Return rows in the order of their places; None unless places from `first` have one each.

    Rows are taken out of `held` column by column, so that they are not in memory twice.
    """
    if sum(rows.height for rows in held) != n:
        return None
    at, start = pl.repeat(_NONE, n, dtype=pl.UInt32, eager=True), 0
    for rows in held:
        end = start + rows.height
        at.scatter(rows[_ROW] - first, pl.int_range(start, end, dtype=pl.UInt32, eager=True))
        start = end
    if (at == _NONE).any():
        return None
    held[:] = [rows.drop(_ROW) for rows in held]
    columns = []
    for name in held[0].columns if held else ():
        column = pl.concat([rows[name] for rows in held], rechunk=True)
        held[:] = [rows.drop(name) for rows in held]
        columns.append(column.gather(at))
    return pl.DataFrame(columns)


def _check_joinable(
    name: str,
    on: str,
    columns: pl.Schema,
    problems: Iterable[str],
    guesses: Mapping[str, str] = NO_GUESSES,
) -> None:
    faults = [*problems, *([] if on in columns else [no_key(on, columns)])]
    if faults:
        raise ColumnError(name, tuple(faults), guesses)


def reference_columns_of(columns: pl.Schema, explicit: Mapping[str, str] | None) -> Resolution:
    """Return the columns of a reference by role, with what is wrong with its log-probs."""
    found = resolve(columns.names(), explicit)
    wanted = _wanted(columns, explicit)
    problems = [
        type(problem)(problem.replace(MAPPING, _OF_REFERENCE).replace(ELSEWHERE, ""))
        for problem in found.problems
        if problem.startswith(wanted)
    ]
    problems += [
        f"{name}: it is there token by token, and a reference is joined by sums; sum it before"
        for name in wanted
        if name not in found.mapping and not any(p.startswith(name) for p in problems)
    ]
    used = [found.mapping.get(name) for name in wanted]
    if len(used) > 1 and len(set(used)) == 1 and None not in used:
        problems.append(f"column {used[0]!r} is mapped to {' and '.join(wanted)}")
    # A script that scored two models may have called the columns of both the policy's.
    ours = LOGPS[:2] if wanted == REFERENCE else (POLICY.name,)
    scored = {ref: found.mapping.get(role) for ref, role in zip(wanted, ours, strict=True)}
    guesses = {ref: name for ref, name in scored.items() if name and ref not in found.mapping}
    return replace(found, problems=tuple(problems), guesses={**guesses, **found.guesses})


def _wanted(columns: pl.Schema, explicit: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Return the log-probs of a reference, by the contract that its columns are of."""
    return (REF.name,) if row_of(columns.names(), explicit) == "completion" else REFERENCE


def _on_both_sides(
    policy: pl.Schema, columns: Mapping[str, str] | None, reference_name: str
) -> Iterator[str]:
    mine = resolve(policy.names(), columns).mapping
    for role in (*REFERENCE, REF.name):
        for name in (role, TOKENS_OF[role].name):
            if name in mine:
                yield f"{name}: it is here as {mine[name]!r}, and in {reference_name} too; drop one"
