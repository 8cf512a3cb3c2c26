"""Opens what a call asked for: rows as they are, lists unfolded, pairs made of completions."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from threading import Event

import polars as pl

from dpo_pipeline.columns import LABEL, PAIR_ID, PROMPT_ID, RowOf, is_spelled, resolve, row_of
from dpo_pipeline.contract import layout_error
from dpo_pipeline.defaults import PAIRINGS
from dpo_pipeline.errors import UsageError
from dpo_pipeline.layouts.pairing import PairMaker, Together
from dpo_pipeline.layouts.unfolding import made_of, unfolded
from dpo_pipeline.options import Pairs, Reference
from dpo_pipeline.sources import Dataset, open_pairs, with_reference
from dpo_pipeline.storage import Access, reading


def open_rows(
    pairs: Pairs,
    *,
    row: RowOf | None,
    access: Access,
    keys: Collection[str],
    reference: Reference | None = None,
    name: str = "pairs",
    as_reference: bool | None = False,
    again: bool = False,
    cancel: Event | None = None,
    by_shard: bool = False,
) -> Dataset:
    """Return pairs or completions as a dataset, joined to their reference.

    Arguments are those of `open_pairs` and `with_reference`, and `row`: what the call is of, None
    if it takes both. Pairs are made of completions where the options say how, and where the two
    sides of a pair stand in two rows.
    """
    columns = pairs.columns
    dataset = open_pairs(
        pairs,
        access=access,
        keys=keys,
        name=name,
        as_reference=as_reference,
        again=again or pairs.pairing is not None,
        cancel=cancel,
    )
    with reading(dataset.name):
        pairing = _pairing_of(dataset, pairs, row)
        is_of_completions = row_of(dataset.columns, columns) == "completion"
        if is_of_completions or pairing is not None or row == "completion":
            dataset = unfolded(dataset, columns)
    if reference is not None:
        dataset = with_reference(
            dataset,
            reference,
            columns=columns_of(dataset, columns),
            access=access,
            cancel=cancel,
            by_shard=by_shard,
        )
    if pairing is None:
        return dataset
    if row_of(dataset.columns, columns_of(dataset, columns)) == "pair":
        raise UsageError(f"{dataset.name}: these are pairs already, and pairing is of completions")
    maker = PairMaker(Together(dataset, columns_of(dataset, columns)), pairing)
    return made_of(dataset, maker.frame(), made=maker.told)


def columns_of(dataset: Dataset, columns: Mapping[str, str] | None) -> Mapping[str, str] | None:
    """Return the columns of roles that a user mapped, as far as they are still there."""
    if columns is None or not dataset.is_canonical:
        return columns
    there = dataset.columns
    return {role: column for role, column in columns.items() if column in there}


def _pairing_of(dataset: Dataset, pairs: Pairs, row: RowOf | None) -> str | None:
    if pairs.pairing is not None or row != "pair":
        return pairs.pairing
    schema = dataset.frame.collect_schema()
    if row_of(schema.names(), pairs.columns) == "pair":
        return None
    roles = resolve(schema.names(), pairs.columns).mapping
    words = schema.get(roles.get(LABEL.name, ""))
    is_of_sides = PAIR_ID.name in roles and PROMPT_ID.name not in roles and words == pl.String
    return "all" if is_of_sides else None


def refuse_rows_of_completions(dataset: Dataset, columns: Mapping[str, str] | None) -> None:
    """Raise a UsageError if rows are completions and pairs are wanted."""
    names = dataset.columns
    if row_of(names, columns) == "pair":
        return
    if (error := layout_error(dataset.name, names, "pair")) is not None:
        raise error
    ways = []
    if is_spelled(PROMPT_ID, names, columns):
        ways.append(
            f"say how pairs are made of them (pairing=, --pairing {'|'.join(PAIRINGS)}), rank them"
        )
    if is_spelled(LABEL, names, columns):
        ways.append("give an unpaired loss (--loss kto, or apo_zero_unpaired)")
    if not ways:
        ways.append("without a prompt_id and a label nothing can be compared: map their columns")
    raise UsageError(
        f"{dataset.name}: these are completions, one a row, and this is of pairs: "
        f"{', or '.join(ways)}"
    )
