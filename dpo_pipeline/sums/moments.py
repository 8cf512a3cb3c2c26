"""Exact sums of the squares of scores, from which the intervals of their means follow.

A square is counted in quanta of 2**-32, half to even. Where all of them are below 2**19, the quanta
are read from the bits of a shifted number, which costs next to nothing; a shard with a larger one
is summed the slow way, to the same quanta.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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


def square_sums(*, is_wide: bool) -> list[pl.Expr]:
    """Return the sums `square_...` of `SQUARED`, in quanta, and the largest of a pair."""
    squares, sums = _squares(), []
    for name, square in squares.items():
        if is_wide:
            near = (square + _SHIFT).reinterpret(dtype=pl.Int64).cast(pl.Int128) - _BITS
            whole = (square * _QUANTA).cast(pl.Int128, wrap_numerical=True)
            quanta = pl.when(square < _NEAR).then(near).otherwise(whole).sum()
        else:
            quanta = _sum_of_near(square)
        sums.append(quanta.alias(f"square_{name}"))
    return [*sums, _largest_of(squares)]


def square_bits() -> list[pl.Expr]:
    """Return sums of bits, of which `of_bits` makes those of `square_sums`: cheaper by group."""
    squares = _squares()
    bits = [
        (square + _SHIFT).reinterpret(dtype=pl.Int64).sum().alias(f"square_{name}")
        for name, square in squares.items()
    ]
    return [*bits, _largest_of(squares)]


def of_bits(sums: pl.DataFrame) -> pl.DataFrame | None:
    """Return groups with the sums of `square_sums` in place of bits; None if one may not fit."""
    n = pl.col(N_VALID)
    fits = 2.0 * pl.col(LARGEST).fill_null(0.0) * _QUANTA * n < _SUM_OF_INT64
    if not are_near(sums) or not sums.select(fits.all()).item():
        return None
    # Integers wrap, so that the bits of the shift come off again.
    quanta = pl.col([f"square_{name}" for name in SQUARED]) - n * _BITS
    return sums.with_columns(quanta.cast(pl.Int128))


def _squares() -> dict[str, pl.Expr]:
    values = {name: valid_only(pl.col(name)) for name in SQUARED}
    return {name: (each * each).cast(pl.Float64) for name, each in values.items()}


def _largest_of(squares: Mapping[str, pl.Expr]) -> pl.Expr:
    # The margin is the difference of two rewards: its square is at most twice those of both.
    largest = squares[LOSS] + squares[CHOSEN_REWARD] + squares[REJECTED_REWARD]
    return largest.max().alias(LARGEST)


def _sum_of_near(square: pl.Expr) -> pl.Expr:
    """Return the sum in quanta, from a sum of bits that wraps around and a sum of floats.

    The floats say which multiple of 2**64 is missing. This costs a third of a sum of Int128.
    """
    bits = (square + _SHIFT).reinterpret(dtype=pl.Int64).sum().cast(pl.Int128)
    wrapped = bits - square.count().cast(pl.Int128) * _BITS
    missing = (square.sum() * _QUANTA).cast(pl.Int128, strict=False) - wrapped + 2**63
    around = pl.lit(2**64, dtype=pl.Int128)
    return wrapped + missing // around * around


def near_quanta(square: NDArray[np.float64]) -> int | None:
    """Return the sum of an array of squares in quanta; None if one is too large to be read so."""
    largest = float(square.max(initial=0.0))
    if not (largest < _NEAR and largest * _QUANTA * square.size < _SUM_OF_INT64):
        return None
    bits = (square + _SHIFT).view("int64")
    bits -= _BITS
    return int(bits.sum())


def are_near(sums: pl.DataFrame) -> bool:
    """Return whether the sums of narrow squares are right."""
    return _largest(sums) < _NEAR / 2.0


def _largest(sums: pl.DataFrame) -> float:
    return float(sums[LARGEST].fill_null(0.0).max() or 0.0)  # type: ignore[arg-type]


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
