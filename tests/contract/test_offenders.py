"""The one loop that lists rows that break rules: counts, first rows, and parts that join."""

from __future__ import annotations

import polars as pl
import pytest

from dpo_pipeline import StorageError
from dpo_pipeline.contract import Offences, Places, bind, listed
from pair_tools import LOGPS

FAULTS = {1: 0.5, 3: float("nan"), 4: None, 7: 0.25, 9: 2.0}
"""Values of the chosen log-prob by row; of the rule `at_most` rows 1, 7 and 9, one each else."""


@pytest.fixture
def bound():
    values = [FAULTS.get(row, -1.0) for row in range(10)]
    frame = pl.DataFrame(dict.fromkeys(LOGPS, pl.Series([-1.0] * 10)))
    frame = frame.with_columns(pl.Series(LOGPS[0], values, dtype=pl.Float64))
    binding = bind(frame.lazy(), source="x", max_logp=0.0)
    return binding.prepare(frame.lazy()), binding.rules


def found(offences):
    return {
        rule.name.partition(".")[2]: (
            rule.count,
            [(o.file, o.row, str(o.value)) for o in rule.offenders],
        )
        for rule in offences.broken()
    }


def test_rows_are_counted_by_rule_and_named_by_file(bound):
    pairs, rules = bound
    offences = listed(pairs, rules, Places([("a", 4), ("b", 6)]), read_from="x")
    assert offences.n_invalid == 5
    result = found(offences)
    assert list(result) == ["not_null", "not_nan", "at_most"]
    assert result["not_null"] == (1, [("b", 0, "None")])
    assert result["at_most"] == (3, [("a", 1, "0.5"), ("b", 3, "0.25"), ("b", 5, "2.0")])


@pytest.mark.repeats(4)  # cuts at the ends and between
@pytest.mark.parametrize("cut", range(11))
def test_parts_join_to_the_whole(bound, cut):
    pairs, rules = bound
    places = Places([("a", 4), ("b", 6)])
    parts = [
        listed(pairs.slice(first, n), rules, places, read_from="x", first_row=first)
        for first, n in ((0, cut), (cut, 10 - cut))
    ]
    whole = Offences(rules, parts)
    assert found(whole) == found(listed(pairs, rules, places, read_from="x"))
    assert whole.n_invalid == 5


def test_rows_may_bring_their_numbers(bound):
    pairs, rules = bound
    numbered = pairs.with_columns(n=pl.int_range(100, 110))
    offences = listed(numbered, rules, Places([]), read_from="x", row="n")
    assert found(offences)["at_most"] == (
        3,
        [(None, 101, "0.5"), (None, 107, "0.25"), (None, 109, "2.0")],
    )


def test_an_error_names_what_was_read(bound, tmp_path):
    _, rules = bound
    path = tmp_path / "x.parquet"
    pl.select(**dict.fromkeys(LOGPS, 1.0)).write_parquet(path)
    plan = pl.scan_parquet(path)
    plan.collect_schema()
    path.unlink()
    with pytest.raises(StorageError, match=r"^of mine: no such file"):
        listed(plan, rules, Places([]), read_from="of mine")
