"""Tables for terminals: alignment, cells, where long ones are cut; JSON that every parser reads."""

from __future__ import annotations

import json
import math

import pytest

from dpo_pipeline.invalid_report import BrokenRule, InvalidReport, Offender
from dpo_pipeline.tables import aligned, as_json


def test_words_stand_left_and_numbers_right():
    rows = [("a", 1, 0.5), ("longer", 12_345, None)]
    assert aligned(("name", "pairs", "x"), rows) == [
        "name     pairs    x",
        "a            1  0.5",
        "longer  12,345    -",
    ]


def test_a_table_without_titles_has_no_header():
    assert aligned(("", ""), [("a", 1), ("b", 23)]) == ["a   1", "b  23"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        # Of 3.24200e-8 a mean of whole quanta of 2**-40 may be off by 4.5e-13.
        pytest.param(3.24198e-08, "3.242e-08", id="last digits unknown"),
        pytest.param(-3.24198e-08, "-3.242e-08", id="below 0"),
        pytest.param(3.24198765e-05, "3.24199e-05", id="all known"),
        pytest.param(4.4e-12, "4e-12", id="one known"),
        pytest.param(4.4e-13, "<1e-12", id="none known"),
        pytest.param(-4.4e-13, ">-1e-12", id="none known, below 0"),
        pytest.param(0.0, "0", id="zero"),
        pytest.param(math.inf, "inf", id="infinite"),
        pytest.param(123456.789, "123457", id="large"),
    ],
)
def test_digits_are_those_that_are_known(value, expected):
    assert aligned(("",), [(value,)]) == [expected]


@pytest.mark.parametrize(
    ("most", "n_lines", "last"),
    [(50, 51, "... and 2,950 more"), (None, 3000, "2999"), (3000, 3000, "2999")],
)
def test_a_long_table_is_cut_where_asked(most, n_lines, last):
    lines = aligned(("",), [(str(i),) for i in range(3000)], most=most)
    assert len(lines) == n_lines
    assert lines[-1] == last


def test_every_broken_rule_is_listed():
    broken = tuple(
        BrokenRule(
            name=f"column_{i}.finite",
            requirement="finite",
            count=1 + i,
            offenders=(Offender(file="b.parquet", row=1000, value=math.inf),),
        )
        for i in range(60)
    )
    report = InvalidReport(source="in/a.parquet", n_pairs=9000, n_invalid=100, broken=broken)
    head, *lines = str(report).splitlines()
    assert head == "in/a.parquet breaks its contract in 100 of 9,000 rows"
    assert len(lines) == 60
    assert lines[0] == "  column_0.finite   finite  1 row, first at b.parquet row 1,000: inf"
    assert lines[59] == "  column_59.finite  finite  60 rows, first at b.parquet row 1,000: inf"


def test_json_has_null_for_what_is_not_finite():
    text = as_json({"a": [math.nan, (math.inf, 1.5)], "b": {"c": -math.inf}})
    assert json.loads(text) == {"a": [None, [None, 1.5]], "b": {"c": None}}
