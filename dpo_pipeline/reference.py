"""Policy and reference log-probs in separate files: joined by a key that is checked first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import polars as pl

from dpo_pipeline.columns import PAIR_ID, REF_CHOSEN, REF_REJECTED, did_you_mean, resolve
from dpo_pipeline.defaults import OFFENDERS_SHOWN
from dpo_pipeline.errors import ColumnError, JoinError, UsageError
from dpo_pipeline.intake import FrameLike
from dpo_pipeline.io_errors import reading
from dpo_pipeline.sources import as_dataset
from dpo_pipeline.storage import Dataset, SourcePath, Step

_IN_POLICY: Final = "__dpo_pipeline_in_policy"
_IN_REFERENCE: Final = "__dpo_pipeline_in_reference"
_REFERENCE_ROLES: Final = (REF_CHOSEN, REF_REJECTED)


def join_reference(
    policy: FrameLike | SourcePath,
    reference: FrameLike | SourcePath,
    *,
    on: str = PAIR_ID.name,
    reference_columns: Mapping[str, str] | None = None,
) -> pl.LazyFrame:
    """Return the policy's rows, in their order, with the reference's log-probs of the same key.

    The keys of both are read and compared at once; the join itself is lazy. `evaluate`, `check`,
    `sweep` and `score_parquet` do the same with `reference=`.

    Args:
        policy: Rows with the policy's log-probs; a dataframe of any kind, or Parquet.
        reference: Rows with the reference's log-probs, in any order.
        on: The key: a column of both, each value once.
        reference_columns: `ref_chosen_logps` and `ref_rejected_logps` to the reference's column,
            where names and aliases do not say it.

    Raises:
        ColumnError: A column is missing, is on both sides, or the keys are of types that
            cannot be equal.
        JoinError: Keys are null, are there twice, or are on one side only.
        StorageError: A file cannot be read.
    """
    left = as_dataset(policy, name="policy")
    return _joining(left, reference, on, reference_columns)(left.frame)


def with_reference(
    dataset: Dataset,
    reference: FrameLike | SourcePath | None,
    *,
    on: str,
    columns: Mapping[str, str] | None,
) -> Dataset:
    """Return a dataset whose rows get the reference's log-probs; itself without a reference.

    Raises:
        UsageError: Columns of a reference are given and no reference.
        ColumnError, JoinError, StorageError: As `join_reference`.
    """
    if reference is not None:
        return dataset.through(_joining(dataset, reference, on, columns))
    if columns is not None:
        raise UsageError("reference_columns are columns of a reference: give one")
    return dataset


def _joining(
    policy: Dataset,
    reference: FrameLike | SourcePath,
    on: str,
    columns: Mapping[str, str] | None,
) -> Step:
    """Check the keys of all rows of a policy; return what joins the reference to a part of them."""
    opened = as_dataset(reference, name="reference")
    right, right_name, name = opened.frame, opened.name, policy.name
    with reading(name):
        left_columns = policy.frame.collect_schema()
    with reading(right_name):
        right_columns = right.collect_schema()
    found = resolve(right_columns.names(), columns)
    problems = [p for p in found.problems if p.startswith(tuple(r.name for r in _REFERENCE_ROLES))]
    if on not in right_columns:
        problems.append(_no_key(on, right_columns))
    if problems:
        raise ColumnError(right_name, tuple(problems))
    mine = resolve(left_columns.names()).mapping
    problems = [
        f"{role.name}: it is here as {mine[role.name]!r}, and in {right_name} too; drop one"
        for role in _REFERENCE_ROLES
        if role.name in mine
    ]
    if on not in left_columns:
        problems.append(_no_key(on, left_columns))
    elif not _comparable(left_columns[on], right_columns[on]):
        problems.append(
            f"{on}: it is {left_columns[on]} here and {right_columns[on]} in {right_name}; "
            "convert one"
        )
    if problems:
        raise ColumnError(name, tuple(problems))
    with reading(f"{name} and {right_name}"):
        _check_keys(policy.frame.select(on), right.select(on), on, name, right_name)
    found_rows = right.select(
        _key(on, left_columns[on], right_columns[on]),
        *(pl.col(found.mapping[role.name]).alias(role.name) for role in _REFERENCE_ROLES),
    )

    def joined(rows: pl.LazyFrame) -> pl.LazyFrame:
        key = _key(on, right_columns[on], left_columns[on])
        return rows.with_columns(key).join(found_rows, on=on, how="left", maintain_order="left")

    return joined


def _no_key(on: str, columns: pl.Schema) -> str:
    return (
        f"{on}: missing{did_you_mean(on, columns)}, and rows are joined by it (on=, --on); "
        f"the columns are {', '.join(columns)}"
    )


def _comparable(left: pl.DataType, right: pl.DataType) -> bool:
    return left == right or (left.is_integer() and right.is_integer())


def _key(on: str, other: pl.DataType, own: pl.DataType) -> pl.Expr:
    # Integers of any width are compared as Int128, which holds all of them.
    return pl.col(on) if other == own else pl.col(on).cast(pl.Int128)


def _check_keys(
    policy: pl.LazyFrame, reference: pl.LazyFrame, on: str, name: str, right_name: str
) -> None:
    types = policy.collect_schema()[on], reference.collect_schema()[on]
    sides = (
        policy.select(_key(on, types[1], types[0])).with_columns(
            pl.lit(1, pl.Int64).alias(_IN_POLICY), pl.lit(0, pl.Int64).alias(_IN_REFERENCE)
        ),
        reference.select(_key(on, types[0], types[1])).with_columns(
            pl.lit(0, pl.Int64).alias(_IN_POLICY), pl.lit(1, pl.Int64).alias(_IN_REFERENCE)
        ),
    )
    counted = pl.concat(sides).group_by(on).agg(pl.col(_IN_POLICY, _IN_REFERENCE).sum())
    here, there = pl.col(_IN_POLICY), pl.col(_IN_REFERENCE)
    is_null = pl.col(on).is_null()
    faults = {
        f"null in {name}": (is_null & (here > 0), here),
        f"null in {right_name}": (is_null & (there > 0), there),
        f"more than once in {name}": (~is_null & (here > 1), here),
        f"more than once in {right_name}": (~is_null & (there > 1), there),
        f"in {name} alone": (~is_null & (there == 0), here),
        f"in {right_name} alone": (~is_null & (here == 0), there),
    }
    odd = counted.filter(pl.any_horizontal(where for where, _ in faults.values()))
    if odd.select(pl.len()).collect(engine="streaming").item() == 0:
        return
    totals = counted.select(here.sum(), there.sum()).collect(engine="streaming").row(0)
    found = {}
    for fault, (where, rows) in faults.items():
        hit = odd.filter(where)
        count = hit.select(rows.sum()).collect(engine="streaming").item()
        if count:
            first = hit.select(pl.col(on).bottom_k(OFFENDERS_SHOWN).sort())
            found[fault] = (int(count), tuple(first.collect(engine="streaming").to_series()))
    raise JoinError(
        on=on,
        rows={name: int(totals[0]), right_name: int(totals[1])},
        faults=found,
    )
