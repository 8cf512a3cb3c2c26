"""Exact sums of the squares of scores, from which the intervals of their means follow.

A square is counted in quanta of 2**-32, half to even. Where all of them are below 2**19, the quanta
are read from the bits of a shifted number, which costs next to nothing; a shard with a larger one
is summed the slow way, to the same quanta.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from typing import TYPE_CHECKING, Final

import polars as pl

from dpo_pipeline.columns import CHOSEN_REWARD, LOSS, N_VALID, REJECTED_REWARD, REWARD_MARGIN
from dpo_pipeline.sums.pair_sums import valid_only

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SQUARED: Final = (LOSS, CHOSEN_REWARD, REJECTED_REWARD, REWARD_MARGIN)
"""Columns of a scored pair whose squares are summed."""
_SQUARE: Final = {name: f"__dpo_pipeline_square_{name}" for name in SQUARED}
_FLOATS: Final = "__dpo_pipeline_floats_"
LARGEST: Final = "max_square"
_NEAR: Final = 2.0**19
_SHIFT: Final = 1.5 * 2.0**20
"""Added to a number below `_NEAR`, it leaves the number in quanta in the low bits."""
_BITS: Final = 0x4138000000000000
"""The bits of `_SHIFT`."""
_QUANTA: Final = 2.0**32
_SUM_OF_INT64: Final = 2.0**63
_SUMMED: Final = 2.0**62
"""Squares up to which 2**32 of them fit Int128."""


def with_squares(pairs: pl.LazyFrame, *, are_valid: bool = False) -> pl.LazyFrame:
    """Add the squares that are summed, which several sums are made of; null for invalid pairs."""
    squares = {name: (pl.col(name) * pl.col(name)).cast(pl.Float64) for name in SQUARED}
    return pairs.with_columns(
        (square if are_valid else valid_only(square)).alias(_SQUARE[name])
        for name, square in squares.items()
    )


def square_sums(*, is_wide: bool, is_whole: bool = False) -> list[pl.Expr]:
    """Return sums `square_...` over pairs of `with_squares`, and the largest of a pair.

    Args:
        is_wide: Whether sums are in quanta, of squares of any size. Else they are of bits, from
            which `of_bits` makes the same.
        is_whole: Whether sums of bits are over all pairs, and not by group.
    """
    squares, sums = {name: pl.col(column) for name, column in _SQUARE.items()}, []
    for name, square in squares.items():
        bits = (square + _SHIFT).reinterpret(dtype=pl.Int64)
        if is_wide:
            whole = (square * _QUANTA).cast(pl.Int128, wrap_numerical=True)
            near = bits.cast(pl.Int128) - _BITS
            bits = pl.when(square < _NEAR).then(near).otherwise(whole)
        elif is_whole:
            sums.append(square.sum().alias(f"{_FLOATS}{name}"))
        sums.append(bits.sum().alias(f"square_{name}"))
    # The margin is the difference of two rewards: its square is at most twice those of both.
    largest = squares[LOSS] + squares[CHOSEN_REWARD] + squares[REJECTED_REWARD]
    return [*sums, largest.max().alias(LARGEST)]


def of_bits(sums: pl.DataFrame) -> pl.DataFrame | None:
    """Return rows with sums in quanta in place of those of bits; None if one may not fit."""
    if not are_near(sums):
        return None
    n, floats = pl.col(N_VALID), [name for name in sums.columns if name.startswith(_FLOATS)]
    # Integers wrap, so that the bits of the shift come off again.
    quanta = (pl.col([f"square_{name}" for name in SQUARED]) - n * _BITS).cast(pl.Int128)
    if not floats:
        fits = 2.0 * pl.col(LARGEST).fill_null(0.0) * _QUANTA * n < _SUM_OF_INT64
        return sums.with_columns(quanta) if sums.select(fits.all()).item() else None
    row, whole = sums.row(0, named=True), []
    for name in SQUARED:
        wrapped = row[f"square_{name}"] - row[N_VALID] * _BITS
        # The sum of floats says which multiple of 2**64 is missing.
        missing = int(row[f"{_FLOATS}{name}"] * _QUANTA) - wrapped
        quanta = wrapped + ((missing + 2**63) >> 64 << 64)
        whole.append(pl.lit(quanta, dtype=pl.Int128).alias(f"square_{name}"))
    return sums.drop(floats).with_columns(whole)


def near_quanta(square: NDArray[np.float64], largest: float) -> int | None:
    """Return the sum of squares in quanta; None if one, at most `largest`, is not read so."""
    if not (largest < _NEAR and largest * _QUANTA * square.size < _SUM_OF_INT64):
        return None
    # Integers wrap, so that the bits of the shift come off again.
    bits = int((square + _SHIFT).view("int64").sum()) - square.size * _BITS
    return (bits + 2**63) % 2**64 - 2**63


def are_near(sums: pl.DataFrame) -> bool:
    """Return whether the sums of narrow squares are right."""
    return _largest(sums) < _NEAR / 2.0


def _largest(sums: pl.DataFrame) -> float:
    return float(sums[LARGEST].max() or 0.0)  # type: ignore[arg-type]


def square_columns(columns: Iterable[str]) -> list[str]:
    """Return which columns are those of `square_sums`."""
    return [name for name in columns if name.startswith("square_") or name == LARGEST]


def variance(squares: pl.DataFrame, name: str, *, mean: float, n: int) -> float | None:
    """Return the variance of a score over n > 1 pairs, of which `mean` is the mean.

    None where squares were too large to be summed, or the scores are all the same to rounding.
    """
    if _largest(squares) > _SUMMED:
        return None
    total = Fraction(int(squares[f"square_{name}"].sum()), int(_QUANTA))
    found = float((total - n * Fraction(mean) ** 2) / (n - 1))
    # A square is off by half a quantum, and the mean by a rounding.
    return found if found > 1.0 / _QUANTA + 1e-14 * mean**2 else None
