"""Tables joined by a key: the reference's log-probs beside the policy's, or several policies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from threading import Event
from typing import Any, Final

import polars as pl

from dpo_pipeline.arguments import given
from dpo_pipeline.columns import (
    COUNT_ROLES,
    ELSEWHERE,
    MAPPING,
    PAIR_ID,
    REF_CHOSEN,
    REF_REJECTED,
    TOKENS_OF,
    Resolution,
    did_you_mean,
    resolve,
)
from dpo_pipeline.defaults import OFFENDERS_SHOWN
from dpo_pipeline.errors import ColumnError, JoinError, NoSuchColumn, UsageError
from dpo_pipeline.options import Execution, Pairs, Reference
from dpo_pipeline.sources.dataset import Dataset, Step
from dpo_pipeline.sources.opening import open_pairs
from dpo_pipeline.sources.trainer_files import INDEX, LENGTHS
from dpo_pipeline.storage import Access, reading

KEY: Final = "__dpo_pipeline_key"
"""The name of the key in tables that are joined, of the same type in all of them."""

_OTHER: Final = "__dpo_pipeline_other_key"
_ROWS: Final = "__dpo_pipeline_rows_"
_OURS: Final = ("__dpo_pipeline_chosen_tokens", "__dpo_pipeline_rejected_tokens")
_REFERENCE: Final = (REF_CHOSEN.name, REF_REJECTED.name)
_OF_REFERENCE: Final = "Reference(columns={role: name}), or --reference-column role=name"


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Rows of each table, rows of the first two whose key the other lacks, and keys of both."""

    rows: tuple[int, ...]
    alone: tuple[int, ...]
    common: int


def checked_on(on: object) -> str:
    """Return the name of the key."""
    if not isinstance(on, str) or on == "*" or (on.startswith("^") and on.endswith("$")):
        raise UsageError(f"on must be the name of a column, and no pattern, found {on!r}")
    return on


def key_of(on: str, schemas: Mapping[str, pl.Schema]) -> pl.Expr:
    """Return the key as an expression that gives the same type in every table.

    Integers of any width are compared as Int128, which holds all of them; an integer and a text as
    text: 7 is '7' and not '07'; categories as text. `schemas` are the tables' columns by name.
    """
    for name, schema in schemas.items():
        if on not in schema:
            raise ColumnError(name, (_no_key(on, schema),))
        if schema[on].is_nested():
            raise ColumnError(name, (f"{on}: a key must be a plain value, found {schema[on]}",))
    first = next(iter(schemas))
    for name, schema in schemas.items():
        both = {_compared_as(schema[on]), _compared_as(schemas[first][on])}
        if len(both) > 1 and both != {pl.Int128(), pl.String()}:
            problem = f"{on}: it is {schema[on]} here and {schemas[first][on]} in {first}"
            raise ColumnError(name, (f"{problem}; convert one",))
    types = {schema[on] for schema in schemas.values()}
    compared = {_compared_as(dtype) for dtype in types}
    if len(types) == 1 and (types == compared or next(iter(types)).is_integer()):
        return pl.col(on)
    return pl.col(on).cast(pl.String() if pl.String() in compared else compared.pop())


def count_keys(on: str, keys: Mapping[str, pl.LazyFrame], *, must_match: bool = False) -> Counts:
    """Read the keys of two tables, and of a third that must have all that they share.

    All tables are read in one pass. Memory grows with the number of keys.

    Args:
        on: What errors call the key.
        keys: Name of each table to its keys, as a frame with the one column `KEY`.
        must_match: Whether a key that only one of the first two tables has is a fault.
    """
    names = list(keys)
    columns = [f"{_ROWS}{i}" for i in range(len(names))]
    marked = [
        frame.with_columns(pl.lit(int(i == j), pl.Int64).alias(c) for j, c in enumerate(columns))
        for i, frame in enumerate(keys.values())
    ]
    counted = pl.concat(marked).group_by(KEY).agg(pl.col(columns).sum())
    here = [pl.col(column) for column in columns]
    is_null = pl.col(KEY).is_null()
    shared = ~is_null & (here[0] > 0) & (here[1] > 0)
    faults: dict[str, tuple[pl.Expr, pl.Expr]] = {}
    for name, rows in zip(names, here, strict=True):
        faults[f"null in {name}"] = (is_null & (rows > 0), rows)
    for name, rows in zip(names, here, strict=True):
        faults[f"more than once in {name}"] = (~is_null & (rows > 1), rows)
    for name, rows in zip(names[2:], here[2:], strict=True):
        faults[f"in {names[0]} and {names[1]}, and not in {name}"] = (shared & (rows == 0), here[0])
    alone = {
        f"in {name} alone": (~is_null & (other == 0) & (own > 0), own)
        for name, own, other in zip(names[:2], here[:2], here[1::-1], strict=True)
    }
    found = (
        counted.select(
            *(rows.sum().alias(column) for rows, column in zip(here, columns, strict=True)),
            shared.sum().cast(pl.Int64).alias("common"),
            *(
                # A filter here would hold the keys for each sum.
                pl.when(where).then(rows).otherwise(0).sum().alias(what)
                for what, (where, rows) in (faults | alone).items()
            ),
        )
        .collect(engine="streaming")
        .row(0, named=True)
    )
    rows_of = {name: found[column] for name, column in zip(names, columns, strict=True)}
    if must_match or (not found["common"] and all(rows_of[name] for name in names[:2])):
        faults |= alone
    broken = [what for what in faults if found[what]]
    if broken:
        raise JoinError(
            on=on,
            rows=rows_of,
            faults={what: (found[what], _first(counted, faults[what][0])) for what in broken},
        )
    return Counts(
        rows=tuple(rows_of.values()),
        alone=tuple(found[what] for what in alone),
        common=found["common"],
    )


def joined(tables: Sequence[pl.LazyFrame]) -> pl.LazyFrame:
    """Return the rows whose `KEY` all tables have, in no order, as a plan."""
    return reduce(lambda left, right: left.join(right, on=KEY, how="inner"), tables)


def _first(counted: pl.LazyFrame, where: pl.Expr) -> tuple[object, ...]:
    some = counted.filter(where).select(pl.col(KEY).bottom_k(OFFENDERS_SHOWN).sort())
    return tuple(some.collect(engine="streaming").to_series().to_list())


def _compared_as(dtype: pl.DataType) -> pl.DataType:
    if dtype.is_integer():
        return pl.Int128()
    return pl.String() if dtype in (pl.Categorical, pl.Enum) else dtype


def _no_key(on: str, columns: pl.Schema) -> str:
    if on == PAIR_ID.name and INDEX in columns and REF_CHOSEN.name in columns:
        return (
            f"{on}: missing, and the number of a row is no identity; if the policy's rows carry "
            f"the column {INDEX!r} of the dataset that these were made from, join by it: "
            f"on={INDEX!r}, or --on {INDEX}"
        )
    kind = str if on == PAIR_ID.name else NoSuchColumn
    return kind(
        f"{on}: missing{did_you_mean(on, columns)}, and pairs are joined by it (on=, --on); "
        f"the columns are {', '.join(columns)}"
    )


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
    _check_joinable(other.name, on, right, taken.problems)
    _check_joinable(policy.name, on, left, _on_both_sides(left, columns, other.name))
    key = key_of(on, {other.name: right, policy.name: left}).alias(KEY)
    names = [pl.col(taken.mapping[name]).alias(name) for name in _REFERENCE]
    found = other.frame.select(key, *names)

    def joined_step(rows: pl.LazyFrame, _first: int, _n: int | None) -> pl.LazyFrame:
        keyed = rows.with_columns(key)
        return keyed.join(found, on=KEY, how="left", maintain_order="left").drop(KEY)

    step: Step = _ByShard(other, key, tuple(names)) if by_shard else joined_step

    def compare_keys() -> None:
        keys = {policy.name: policy.frame.select(key), other.name: found.select(KEY)}
        with reading(" or ".join(keys)):
            if on == PAIR_ID.name and LENGTHS[0] in right:
                _prove_row_numbers(policy, other, key, columns)
            count_keys(on, keys, must_match=True)

    return replace(
        policy,
        frame=step(policy.frame, 0, None),
        step=step,
        reference=other,
        compare_keys=compare_keys,
        can_cut=lambda: by_shard,
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


def _check_joinable(name: str, on: str, columns: pl.Schema, problems: Iterable[str]) -> None:
    faults = [*problems, *([] if on in columns else [_no_key(on, columns)])]
    if faults:
        raise ColumnError(name, tuple(faults))


def open_reference(reference: Reference, *, access: Access, cancel: Event | None = None) -> Dataset:
    """Return a reference as a dataset."""
    resolve((), reference.columns)  # refuses what is no mapping, or no role
    for role in reference.columns or ():
        if role not in _REFERENCE:
            raise UsageError(f"reference columns: {role!r} is none of {' and '.join(_REFERENCE)}")
    pairs = Pairs(reference.source, format=reference.format, columns=reference.columns)
    return open_pairs(
        pairs,
        access=access,
        keys=[checked_on(reference.on)],
        name="reference",
        as_reference=True,
        again=True,
        cancel=cancel,
    )


def _prove_row_numbers(
    policy: Dataset, reference: Dataset, key: pl.Expr, columns: Mapping[str, str] | None
) -> None:
    """Raise if the lengths of completions do not show that row numbers name the same pairs."""
    mapping = resolve(policy.frame.collect_schema().names(), columns).mapping
    counts = [mapping.get(role.name) for role in COUNT_ROLES]
    remedy = (
        "carry an id: add a column pair_id to the dataset before TRL precomputes its log-probs, "
        "and write the same ids beside the policy's"
    )
    problem = f"{PAIR_ID.name}: the reference has none, and the number of a row is no identity"
    if None in counts:
        names = " and ".join(role.name for role in COUNT_ROLES)
        raise ColumnError(
            reference.name,
            (f"{problem}; {names} of the policy would prove it by their lengths. Or {remedy}",),
        )
    ours = [
        pl.col(str(name)).cast(pl.Int64).alias(n) for name, n in zip(counts, _OURS, strict=True)
    ]
    both = policy.frame.select(key, *ours).join(
        reference.frame.select(key, *LENGTHS), on=KEY, how="full", coalesce=True
    )
    is_alike = pl.all_horizontal(
        pl.col(one) == pl.col(other) for one, other in zip(_OURS, LENGTHS, strict=True)
    ).fill_null(value=False)
    n, n_other = both.select(pl.len(), is_alike.not_().sum()).collect(engine="streaming").row(0)
    if n_other:
        problem += (
            f": joined by it, {n_other:,} of {n:,} rows have completions of other lengths, or are "
            f"on one side only; {remedy}"
        )
        raise ColumnError(reference.name, (problem,))


def reference_columns_of(columns: pl.Schema, explicit: Mapping[str, str] | None) -> Resolution:
    """Return the columns of a reference by role, with what is wrong with its log-probs."""
    found = resolve(columns.names(), explicit)
    problems = [
        type(problem)(problem.replace(MAPPING, _OF_REFERENCE).replace(ELSEWHERE, ""))
        for problem in found.problems
        if problem.startswith(_REFERENCE)
    ]
    problems += [
        f"{name}: it is there token by token, and a reference is joined by sums; sum it before"
        for name in _REFERENCE
        if name not in found.mapping and not any(p.startswith(name) for p in problems)
    ]
    used = {found.mapping.get(name) for name in _REFERENCE}
    if len(used) == 1 and None not in used:
        problems.append(f"column {used.pop()!r} is mapped to {' and '.join(_REFERENCE)}")
    return Resolution(mapping=found.mapping, problems=tuple(problems))


def _on_both_sides(
    policy: pl.Schema, columns: Mapping[str, str] | None, reference_name: str
) -> Iterator[str]:
    mine = resolve(policy.names(), columns).mapping
    for role in _REFERENCE:
        for name in (role, TOKENS_OF[role].name):
            if name in mine:
                yield f"{name}: it is here as {mine[name]!r}, and in {reference_name} too; drop one"
