"""A policy and its reference in tables of their own, laid out in files or frames."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import polars as pl
import pytest

from dpo_pipeline.columns import SCORED
from pair_tools import LOGPS, REFS, reference_row

ADDED = [column.name for column in SCORED]
LAYOUTS = ("frame", "lazy", "arrow", "file", "folder", "list", "glob", "hive")


def laid_out(frame, layout, place):
    """Put a table where it can be read: as a frame, or in files below a folder of its own."""
    if layout in ("frame", "lazy", "arrow"):
        return {"frame": frame, "lazy": frame.lazy(), "arrow": frame.to_arrow()}[layout]
    place.mkdir(parents=True)
    if layout == "file":
        frame.write_parquet(place / "one.parquet", row_group_size=100)
        return place / "one.parquet"
    if layout == "hive":
        for (turns,), part in frame.group_by("turns", maintain_order=True):
            (place / f"turns={turns}").mkdir()
            part.drop("turns").write_parquet(place / f"turns={turns}" / "x.parquet")
        return place
    cuts = [0, frame.height // 3, frame.height // 2, frame.height // 2, frame.height]
    for i, (start, end) in enumerate(itertools.pairwise(cuts)):  # the third is empty
        frame[start:end].write_parquet(place / f"{i}.parquet", row_group_size=50)
    return {"folder": place, "list": sorted(place.iterdir()), "glob": f"{place}/*.parquet"}[layout]


def joined_by_hand(policy, reference, on="pair_id"):
    """Return the rows that a dictionary of the reference's gives."""
    found = {row[on]: tuple(row[name] for name in REFS) for row in reference.to_dicts()}
    return [(*row.values(), *found[row[on]]) for row in policy.to_dicts()]


def mean_loss(whole, beta=0.1):
    losses = [reference_row(*row, beta)[2] for row in whole.select(LOGPS).iter_rows()]
    return math.fsum(losses) / len(losses)


def told(result):
    """Return all that an evaluation says but where it read; repr tells every bit of a float."""
    tables = (result.subsets, result.batches, result.histogram)
    offenders = [(r.name, r.count, r.offenders) for r in result.invalid.broken]
    return (
        repr(result.summary.to_dict()),
        [None if t is None else (t.columns, repr(t.rows())) for t in tables],
        repr(offenders),
    )


def raised(kind, call, *args, **kwargs):
    with pytest.raises(kind) as caught:
        call(*args, **kwargs)
    assert type(caught.value) is kind
    return caught.value


def tree(folder):
    """Return every file below a folder with its bytes."""
    return {p: p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


def keyed(keys, prefix):
    """Return a table with these keys and the columns of its side."""
    frame = pl.DataFrame({"pair_id": pl.Series(keys, dtype=pl.String)})
    return frame.with_columns(
        pl.lit(-1.0).alias(f"{prefix}_chosen_logps"), pl.lit(-2.0).alias(f"{prefix}_rejected_logps")
    )


FAULTS = [
    pytest.param(
        ["a", None, "b", None],
        ["a", "b"],
        {"null in pairs": (2, (None,))},
        [
            "pairs (4 rows) and reference (2 rows) cannot be joined by 'pair_id':",
            "null in pairs: 2 rows",
        ],
        id="null in the policy",
    ),
    pytest.param(
        ["a", "b"],
        ["a", "b", None],
        {"null in reference": (1, (None,))},
        ["null in reference: 1 row"],
        id="null in the reference",
    ),
    pytest.param(
        ["a", None],
        ["a", None],
        {"null in pairs": (1, (None,)), "null in reference": (1, (None,))},
        ["null in pairs: 1 row", "null in reference: 1 row"],
        id="null is not equal to null",
    ),
    pytest.param(
        ["b", "a", "b", "b", "a", "c"],
        ["a", "b", "c"],
        {"more than once in pairs": (5, ("a", "b"))},
        ["more than once in pairs: 5 rows, such as 'a', 'b'"],
        id="twice in the policy",
    ),
    pytest.param(
        ["a", "b", "c"],
        ["c", "c", "b", "a"],
        {"more than once in reference": (2, ("c",))},
        ["more than once in reference: 2 rows, such as 'c'"],
        id="twice in the reference",
    ),
    pytest.param(
        ["g", "f", "e", "d", "c", "b", "a"],
        ["a"],
        {"in pairs alone": (6, ("b", "c", "d", "e", "f"))},
        [
            "pairs (7 rows) and reference (1 rows)",
            "in pairs alone: 6 rows, such as 'b', 'c', 'd', 'e', 'f'",
        ],
        id="lost",
    ),
    pytest.param(
        ["a"],
        ["b", "a"],
        {"in reference alone": (1, ("b",))},
        ["in reference alone: 1 row, such as 'b'"],
        id="too many",
    ),
    pytest.param(
        ["a", "b"],
        ["b", "c"],
        {"in pairs alone": (1, ("a",)), "in reference alone": (1, ("c",))},
        ["pairs (2 rows) and reference (2 rows)", "in pairs alone", "in reference alone"],
        id="as many, but others",
    ),
    pytest.param(
        [None, "a", "a", "x", "x", "b"],
        [None, None, "b", "b", "b", "y", "z", "a"],
        {
            "null in pairs": (1, (None,)),
            "null in reference": (2, (None,)),
            "more than once in pairs": (4, ("a", "x")),
            "more than once in reference": (3, ("b",)),
            "in pairs alone": (2, ("x",)),
            "in reference alone": (2, ("y", "z")),
        },
        ["pairs (6 rows) and reference (8 rows)"],
        id="all together",
    ),
    pytest.param(
        [],
        ["a"],
        {"in reference alone": (1, ("a",))},
        ["pairs (0 rows) and reference (1 rows)"],
        id="no policy",
    ),
    pytest.param(
        ["a"],
        [],
        {"in pairs alone": (1, ("a",))},
        ["pairs (1 rows) and reference (0 rows)"],
        id="no reference",
    ),
]
