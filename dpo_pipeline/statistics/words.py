"""Numbers as text, for pages and for terminals.

`share`, `points` and `number` are for pages: they write a minus sign and, for None, a dash. What
terminals and JSON show (`..._with_limits`, `signed_points_within`, `short_...`) is plain ASCII.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from dpo_pipeline.statistics.intervals import Estimate, Interval
from dpo_pipeline.tables import half_up, half_up_digits, known_digits, significant

MINUS: Final = "\N{MINUS SIGN}"
DASH: Final = "\N{EN DASH}"
"""Stands for a figure that is not there."""
_SMALLEST_P: Final = 0.0001
_LEVELS: Final = frozenset({"0.1", "0.05", "0.01", "0.001"})
"""Usual levels of a test, as text."""
_LARGE: Final = 1e7
_MOST_DECIMALS: Final = 4


def count(n: int) -> str:
    """Return a count with separators of thousands."""
    return f"{n:,}"


def counted(n: int, one: str) -> str:
    """Return a count with its noun: `1 pair`, `2 pairs`."""
    return f"{n:,} {one}{'s' * (n != 1)}"


def percent(level: float) -> str:
    """Return a confidence level: `95%`, `99.5%`."""
    return f"{100.0 * level:g}%"


def share(value: float | None, digits: int = 1) -> str:
    """Return a share from 0 to 1 in per cent; what is not quite 0% or 100% does not look so."""
    if value is None:
        return DASH
    least = 10.0**-digits
    per_cent = 100.0 * value
    if 0.0 < per_cent < least / 2.0:
        return f"<{least:g}%"
    if 0.0 < 100.0 - per_cent < least / 2.0:
        return f">{100.0 - least:g}%"
    return _signed(f"{half_up(per_cent, digits):.{digits}f}%")


def share_within(interval: Interval | None) -> Callable[[float | None], str]:
    """Return a function that writes a share with the decimals that its interval leaves certain."""
    return partial(share, digits=_decimals(interval))


def heads_of_two(a: str | None, b: str | None) -> tuple[str, str]:
    """Return what heads of tables call two policies: `A: base`, or `A` without a name."""
    return (f"A: {a}" if a else "A"), (f"B: {b}" if b else "B")


def quoted_two(a: str | None, b: str | None) -> tuple[str, str]:
    """Return what sentences call two policies: `A "base"`, or `A` without a name."""
    return (f'A "{a}"' if a else "A"), (f'B "{b}"' if b else "B")


def points(value: float | None, interval: Interval | None = None) -> str:
    """Return a difference of shares in percentage points, with sign: `+1.5 points`."""
    return DASH if value is None else _signed(f"{signed_points_within(interval)(value)} points")


def points_between(interval: Interval | None) -> str:
    """Return the limits of a difference of shares, whose value has the unit: `-0.3 to +3.3`."""
    return _signed(between(interval, signed_points_within(interval)))


def effect(value: float | None) -> str:
    """Return the size of a difference of shares: `8.4 points`."""
    return DASH if value is None else f"{half_up_digits(100.0 * value, 2):.2g} points"


def signed_points_within(interval: Interval | None) -> Callable[[float], str]:
    """Return a function that writes a difference of shares in points, with sign, without unit.

    An interval that does not hold 0 does not look as if it did.
    """
    digits = _decimals(interval)
    if interval is not None and interval.low * interval.high > 0.0:
        nearest = 100.0 * min(abs(interval.low), abs(interval.high))
        while digits < _MOST_DECIMALS and half_up(nearest, digits) == 0.0:
            digits += 1
    return lambda value: f"{half_up(100.0 * value, digits):+.{digits}f}"


def _decimals(interval: Interval | None) -> int:
    """Return how many decimals of a percentage its interval leaves certain."""
    if interval is None or interval.high <= interval.low:
        return 1
    width = 100.0 * (interval.high - interval.low)
    return min(max(1, 1 - math.floor(math.log10(width))), _MOST_DECIMALS)


def number(value: float | None, digits: int = 4) -> str:
    """Return a number with so many significant digits."""
    if value is None:
        return DASH
    if value == 0.0:
        return "0"
    if not math.isfinite(value):
        return _signed(f"{value:g}")
    size, digits = math.floor(math.log10(abs(value))), known_digits(value, digits)
    if digits < 1:
        return _signed(significant(value, digits))
    if abs(value) >= _LARGE or size < -digits:
        return _signed(f"{half_up_digits(value, digits):.{digits - 1}e}")
    decimals = max(digits - 1 - size, 0)
    return _signed(f"{half_up(value, decimals):,.{decimals}f}")


def short_number(value: float, digits: int = 3) -> str:
    """Return a number with at most so many significant digits, in ASCII and without padding."""
    return significant(value, digits)


def p_value(p: float | None) -> str:
    """Return a p-value with two significant digits: `0.0021`, or `<0.0001`."""
    return DASH if p is None else _p_text(p, "", "<")


def p_equation(p: float) -> str:
    """Return a p-value as a sentence has it: `p = 0.0021`, or `p < 0.0001`."""
    return _p_text(p, "p = ", "p < ")


def _p_text(p: float, equal: str, below: str) -> str:
    if p < _SMALLEST_P:
        return f"{below}{_SMALLEST_P:.4f}"
    # More digits where two would say that p is the level itself.
    texts = [f"{half_up_digits(p, digits):.{digits}g}" for digits in range(2, 7)]
    return equal + next((text for text in texts if text not in _LEVELS), texts[0])


def as_written(value: Any) -> str:
    """Return a value of the dataset as it is, as text; null is named."""
    if value is None:
        return "(null)"
    text = str(value)
    return text if text.strip() else "(empty)"


def between(interval: Interval | None, written: Callable[[float], str] = number) -> str:
    """Return the limits of an interval, each as `written` writes it."""
    if interval is None:
        return DASH
    return f"{written(interval.low)} to {written(interval.high)}"


def short_limits(interval: Interval | None, digits: int = 4) -> str:
    """Return the limits of an interval for a cell of a text table; nothing where there is none."""
    return "" if interval is None else between(interval, partial(short_number, digits=digits))


def with_interval(estimate: Estimate, written: Callable[[float], str] = number) -> str:
    """Return a figure with its interval: `65.0% (95% interval 60.1% to 69.6%)`."""
    if estimate.interval is None:
        return written(estimate.value)
    level = percent(estimate.interval.level)
    return f"{written(estimate.value)} ({level} interval {between(estimate.interval, written)})"


def share_with_limits(estimate: Estimate) -> str:
    """Return a share in per cent: `65.0% (60.1% to 69.6%)`."""
    return _with_limits(estimate, share_within(estimate.interval))


def points_with_limits(estimate: Estimate) -> str:
    """Return a difference of shares: `+1.5 points (-0.3 to +3.3)`."""
    return _with_limits(estimate, signed_points_within(estimate.interval), " points")


def number_with_limits(estimate: Estimate) -> str:
    """Return a figure in its own unit: `0.512 (0.48 to 0.544)`."""
    return _with_limits(estimate, short_number)


def _with_limits(estimate: Estimate, written: Callable[[float], str], unit: str = "") -> str:
    interval = estimate.interval
    limits = "" if interval is None else f" ({between(interval, written)})"
    return f"{written(estimate.value)}{unit}{limits}"


def _signed(text: str) -> str:
    return text.replace("-", MINUS)
