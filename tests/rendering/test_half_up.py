"""One rounding: what lies half way goes away from 0, in cells and in sentences."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction

import pytest

from compare_tools import of_margins
from dpo_pipeline import compare
from dpo_pipeline.rendering import as_text
from dpo_pipeline.statistics import p_value, points
from dpo_pipeline.tables import Column, Figure, Table, half_up, half_up_digits


def cell(value, unit="number", limits=None):
    return as_text([Table(columns=(Column(""),), rows=[(Figure(value, unit, limits),)])])


@pytest.mark.parametrize("n", [8, 400, pytest.param(2000, marks=pytest.mark.slow)])  # more of it
def test_shares_of_counts_are_rounded_as_on_paper(n):
    for k in range(1, n):
        tenths = (2 * 1000 * k + n) // (2 * n)  # half up, in whole numbers
        expected = f"{tenths // 10}.{tenths % 10}"
        if 0 < tenths < 1000:
            assert cell(k / n, "share") == f"{expected}%"
            assert cell(-k / n, "points") == f"-{expected} points"
            # The same share by another sum has another last bit.
            other = (n - k) / n - 1.0
            assert cell(other, "points") == f"-{expected} points"


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        pytest.param(0.6025, "share", "60.3%", id="60.25%"),
        pytest.param(0.7275, "share", "72.8%", id="72.75%"),
        pytest.param(0.0845, "effect", "8.5 points", id="effect"),
        pytest.param(0.125, "p", "0.13", id="p"),
        pytest.param(0.0496, "p", "0.0496", id="p below the level"),
        pytest.param(0.04995, "p", "0.04995", id="p still nearer to it"),
        pytest.param(0.05, "p", "0.05", id="p at the level"),
        pytest.param(42.235, "number", "42.24", id="number"),
        pytest.param(-1.25e-11, "number", "-1.3e-11", id="two digits are known"),
    ],
)
def test_halves_go_away_from_0(value, unit, expected):
    assert cell(value, unit) == expected


def test_any_number_of_decimals():
    for text in ("0.5", "1.5", "2.675", "1.005", "-0.285", "1234567.5", "1e300", "-4.45e-5"):
        for decimals in (0, 1, 2, 3):
            unit = Decimal(1).scaleb(-decimals)
            exact = Decimal(text)
            whole = (abs(exact) / unit + Decimal("0.5")) // 1 if abs(exact) < 1e9 else None
            expected = exact if whole is None else whole * unit * (-1 if exact < 0 else 1)
            assert half_up(float(text), decimals) == float(expected)
    assert half_up_digits(0.0, 3) == 0.0
    assert str(half_up(float("nan"), 1)) == "nan"
    assert half_up_digits(float("inf"), 2) == float("inf")
    assert Fraction(half_up_digits(99.95, 3)) == 100


def test_verdict_and_table_say_one_number():
    # Right of 400: A 208, B 175, which is -8.25 points.
    a = [1.0] * 208 + [-1.0] * 192
    b = [1.0] * 100 + [-1.0] * 225 + [1.0] * 75
    found = compare(*of_margins(a, b))
    strict, half = (found.differences[f"reward_accuracy{e}"] for e in ("", "_half"))
    assert strict.estimate.value == pytest.approx(-0.0825)
    assert half.estimate == strict.estimate
    assert found.verdict.startswith("B is worse than A: accuracy -8.3 points")
    rows = [line.split() for line in str(found).split("\n") if line.startswith("reward_accuracy")]
    assert [row[1:5] for row in rows] == [["52.0%", "43.8%", "-8.3", "points"]] * 2
    assert points(strict.estimate.value).endswith("8.3 points")
    assert p_value(0.125) == "0.13"
    assert Decimal("0.4375").quantize(Decimal("0.001"), ROUND_HALF_UP) == Decimal("0.438")
