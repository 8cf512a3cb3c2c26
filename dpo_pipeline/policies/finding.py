"""The policies of a call: found in folders, globs and columns, labelled, and put in steps."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import polars as pl

from dpo_pipeline.comparison import named, names_of
from dpo_pipeline.errors import UsageError
from dpo_pipeline.options import Pairs

POLICY: Final = "policy"
STEP: Final = "step"
_ENDINGS: Final = (".parquet", ".csv", ".jsonl", ".ndjson")
_ENDS_IN_NUMBER: Final = re.compile(r"(?s)(.*?)(\d+)")
_ROW: Final = "__dpo_pipeline_row"
_UNNAMED: Final = "policy "
_OF_STEPS: Final = ("step", "checkpoint")
_FEWEST_STEPS: Final = 3
"""Labels of one name that end in numbers: fewer may be names, such as llama-2 and llama-3."""


def policies_of(given: Sequence[Pairs]) -> dict[str, Pairs]:
    """Return the policies by their labels: NAME of NAME=PATH, or the name that tells paths apart.

    One folder or glob is the policies in it: files, or folders of files.
    """
    found, names = list(given), [""] * len(given)
    if len(given) == 1 and isinstance(given[0].source, (str, os.PathLike)):
        found = [replace(given[0], source=path) for path in _inside(os.fspath(given[0].source))]
        names = [""] * len(found)
    for i, each in enumerate(found):
        names[i], found[i] = named(each)
    rest = [each for each, name in zip(found, names, strict=True) if not name]
    labels = iter(_labels([each.source for each in rest]))
    made: dict[str, Pairs] = {}
    for each, name in zip(found, names, strict=True):
        label = name or next(labels)
        if label in made:
            raise UsageError(f"two policies are called {label!r}: give NAME=PATH")
        made[label] = each
    return made


def _inside(path: str) -> list[str]:
    if os.path.isdir(path):
        entries = (os.path.join(path, name) for name in os.listdir(path) if name[0] not in "._")
        kept = [each for each in entries if os.path.isdir(each) or each.endswith(_ENDINGS)]
    else:
        kept = glob.glob(path) if glob.has_magic(path) else [path]
    return sorted(kept, key=_in_order)


def _in_order(path: str) -> list[tuple[int, int | str]]:
    """Return a key that puts checkpoint-900 before checkpoint-1000."""
    parts = re.split(r"(\d+)", path)
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts if part]


def _labels(sources: Sequence[Any]) -> list[str]:
    """Return what tells the paths apart, or a number."""
    return [name or f"{_UNNAMED}{i + 1}" for i, name in enumerate(names_of(sources))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """One table of several policies, which a column tells apart.

    Where each policy has consecutive rows, its pairs are a slice of the table: then all of them
    together are read once, side by side. Rows in another order are parted while the table is read.
    """

    rows: pl.LazyFrame
    column: str
    places: Mapping[Any, int]  # of the policies, by their values in the column
    pairs: Mapping[str, Pairs]  # the policies by their labels
    fewest: int  # rows of the policy with the fewest
    is_in_blocks: bool


def split_by_policy(rows: pl.LazyFrame, pairs: Pairs, *, keeps_order: bool) -> Split | None:
    """Return the policies of a table with a column of them, or of steps; its values are read.

    `keeps_order` says that each reading gives the rows in the same order.
    """
    there = rows.collect_schema()
    name = next((each for each in (POLICY, STEP) if each in there), None)
    if name is None:
        return None
    number = pl.int_range(pl.len(), dtype=pl.Int64).alias(_ROW)
    places = rows.select(name, number) if keeps_order else rows.select(name, pl.lit(0).alias(_ROW))
    ends = (pl.col(_ROW).min().alias("first"), pl.col(_ROW).max().alias("last"))
    found = places.group_by(name).agg(pl.len(), *ends).sort(name).collect(engine="streaming")
    if found[name].null_count():
        raise UsageError(f"the column {name!r} is null in some rows")
    values, sizes = found[name].to_list(), found["len"].to_list()
    firsts = found["first"].to_list()
    is_in_blocks = keeps_order and (found["last"] - found["first"] + 1 == found["len"]).all()
    own = [
        rows.slice(first, size) if is_in_blocks else rows.filter(pl.col(name) == value)
        for value, first, size in zip(values, firsts, sizes, strict=True)
    ]
    labels = [f"{value}" if name == POLICY else f"{STEP} {value}" for value in values]
    return Split(
        rows=rows,
        column=name,
        places={value: i for i, value in enumerate(values)},
        pairs={
            label: replace(pairs, source=source) for label, source in zip(labels, own, strict=True)
        },
        fewest=min(sizes, default=0),
        is_in_blocks=is_in_blocks,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """The policies that are steps of one run, in order."""

    places: tuple[int, ...]
    numbers: tuple[int, ...]
    left_out: tuple[str, ...] = ()  # policies that are none

    def among(self, places: Sequence[int], labels: Sequence[str]) -> Steps | None:
        """Return the steps at these places; None of fewer than two."""
        kept = [(p, n) for p, n in zip(self.places, self.numbers, strict=True) if p in places]
        if len(kept) < 2:  # noqa: PLR2004  a curve
            return None
        own, numbers = zip(*kept, strict=True)
        left = tuple(label for i, label in enumerate(labels) if i not in own)
        return Steps(places=own, numbers=numbers, left_out=left)


def steps_of(labels: Iterable[str]) -> Steps | None:
    """Return the steps of labels such as `step 500`, `step=500` or checkpoint-500, of one name."""
    named: dict[str, list[tuple[int, int]]] = {}
    labels = list(labels)
    for place, label in enumerate(labels):
        found = _ENDS_IN_NUMBER.fullmatch(label)
        if found is not None and found[1] != _UNNAMED:
            named.setdefault(found[1], []).append((int(found[2]), place))
    runs = [
        sorted(steps)
        for name, steps in named.items()
        if len(steps) >= (2 if name.rstrip(" =-_").endswith(_OF_STEPS) else _FEWEST_STEPS)
        and len({number for number, _ in steps}) == len(steps)
    ]
    if len(runs) != 1:
        return None
    numbers, places = zip(*runs[0], strict=True)
    left = tuple(label for i, label in enumerate(labels) if i not in places)
    return Steps(places=places, numbers=numbers, left_out=left)
