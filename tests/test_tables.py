"""Broken rules as text; JSON that every parser reads."""

from __future__ import annotations

import json
import math

from dpo_pipeline.invalid_report import BrokenRule, InvalidReport, Offender
from dpo_pipeline.tables import as_json


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
    head, gap, titles, *lines = str(report).splitlines()
    assert head == "in/a.parquet breaks its contract in 100 of 9,000 rows"
    assert gap == ""
    assert titles.split() == ["rule", "must", "be", "rows", "first", "at"]
    assert len(lines) == 60
    assert lines[0].split("  ", 1)[0] == "column_0.finite"
    assert " ".join(lines[59].split()) == "column_59.finite finite 60 b.parquet row 1,000: inf"
    assert report.to_frame()["count"].to_list() == list(range(1, 61))


def test_json_has_null_for_what_is_not_finite():
    text = as_json({"a": [math.nan, (math.inf, 1.5)], "b": {"c": -math.inf}})
    assert json.loads(text) == {"a": [None, [None, 1.5]], "b": {"c": None}}
