"""Rounding to four decimals exactly as Python's `round` does, at the speed of Polars'.

Polars rounds x * 1e4, a product that was itself rounded, so it can differ from Python next to a
tie, and only there: elsewhere both give the double nearest to the same multiple of 1e-4. So
Polars rounds, and Python corrects the few values that `needs_python` marks.
"""

from __future__ import annotations

from typing import Final

import polars as pl

DECIMALS: Final = 4

_SCALE: Final = 10.0**DECIMALS

_NEAR: Final = 1e-6
"""Distance from a tie, in units of the last decimal. Below `_LARGE` the product's error is at
most 2**-53 * 1e9 = 1.2e-7 of them."""

_LARGE: Final = 1e5


def needs_python(x: pl.Expr) -> pl.Expr:
    """Return true where a value is so near a tie, or so large, that Polars may round otherwise."""
    scaled = x * _SCALE
    return ((scaled - scaled.floor() - 0.5).abs() < _NEAR) | (x.abs() > _LARGE)


def python_rounded(exact: pl.Series, rounded: pl.Series, marked: pl.Series) -> list[float]:
    """Return `[round(x, 4) for x in exact]` to the last bit.

    Args:
        exact: The values, Float64 and finite.
        rounded: `exact.round(4)`.
        marked: `needs_python` of them.
    """
    result: list[float] = rounded.to_list()
    if marked.any():
        positions = marked.arg_true()
        for position, value in zip(positions.to_list(), exact.gather(positions), strict=True):
            result[position] = round(value, DECIMALS)
    return result
