"""Estimates as the text of a finding has them, each with its interval in brackets."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final

from dpo_pipeline.statistics.intervals import Estimate, Interval

MINUS: Final = "\N{MINUS SIGN}"
DASH: Final = "\N{EN DASH}"
"""Stands for a figure that there is none of."""
_SMALLEST_P: Final = 0.001
_IN_NATS: Final = frozenset(
    {
        *("sigmoid", "sigmoid_norm", "robust", "dpop", "rdpo", "aot", "aot_unpaired"),
        *("cpo", "simpo", "alphapo", "orpo", "sft", "bco_pair", "nca_pair"),
    }
)
"""Losses made of terms -log p alone."""
_LARGE: Final = 1e7
_MOST_DECIMALS: Final = 4


def count(n: int) -> str:
    """Return a count with separators of thousands."""
    return f"{n:,}"


def counted(n: int, one: str, several: str | None = None) -> str:
    """Return a count with its noun: `1 pair`, `2 pairs`."""
    return f"{n:,} {one if n == 1 else several or one + 's'}"


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
    return _signed(f"{per_cent:.{digits}f}%")


def share_within(interval: Interval | None) -> Callable[[float | None], str]:
    """Return what writes a share with the decimals that its interval leaves certain."""
    digits = 1
    if interval is not None and interval.high > interval.low:
        width = 100.0 * (interval.high - interval.low)
        digits = min(max(1, 1 - math.floor(math.log10(width))), _MOST_DECIMALS)
    return partial(share, digits=digits)


def points(value: float | None) -> str:
    """Return a difference of shares in percentage points."""
    return DASH if value is None else f"{number(100.0 * value, 3)} pt"


def number(value: float | None, digits: int = 4) -> str:
    """Return a number with so many significant digits."""
    if value is None:
        return DASH
    if value == 0.0:
        return "0"
    if not math.isfinite(value):
        return _signed(f"{value:g}")
    size = math.floor(math.log10(abs(value)))
    if abs(value) >= _LARGE or size < -digits:
        return _signed(f"{value:.{digits - 1}e}")
    return _signed(f"{value:,.{max(digits - 1 - size, 0)}f}")


def p_value(p: float | None) -> str:
    """Return a p-value to three decimals."""
    if p is None:
        return DASH
    return f"<{_SMALLEST_P:g}" if p < _SMALLEST_P else f"{p:.3f}"


def unit_of_loss(terms: Iterable[str]) -> str:
    """Return `nats` if all of these losses are negative log-likelihoods, else nothing."""
    return "nats" if _IN_NATS.issuperset(terms) else ""


def as_written(value: Any) -> str:
    """Return a value of the dataset as it is, as text; null is named."""
    if value is None:
        return "(null)"
    text = str(value)
    return text if text.strip() else "(empty)"


def between(interval: Interval | None, written: Any = number) -> str:
    """Return the limits of an interval, each as `written` writes it."""
    if interval is None:
        return DASH
    return f"{written(interval.low)} to {written(interval.high)}"


def with_interval(estimate: Estimate, written: Any = number) -> str:
    """Return a figure with its interval in brackets."""
    if estimate.interval is None:
        return str(written(estimate.value))
    level = f"{100.0 * estimate.interval.level:g}%"
    return f"{written(estimate.value)} ({level} interval {between(estimate.interval, written)})"


def _signed(text: str) -> str:
    return text.replace("-", MINUS)


_MOST_DECIMALS_OF_TEXT: Final = 5


def share_of(estimate: Estimate | None) -> str:
    """Return a share in per cent; `-` for none."""
    if estimate is None:
        return "-"
    interval, form = estimate.interval, _decimals(estimate.interval)
    limits = "" if interval is None else f" ({_limits(interval, 100.0, form, '%')})"
    return f"{estimate.value * 100.0:{form}}%{limits}"


def points_of(estimate: Estimate) -> str:
    """Return a difference of shares in percentage points, with its sign."""
    interval, form = estimate.interval, f"+{_decimals(estimate.interval)}"
    limits = "" if interval is None else f" ({_limits(interval, 100.0, form)})"
    return f"{estimate.value * 100.0:{form}} points{limits}"


def _decimals(interval: Interval | None) -> str:
    """Return the format of a percentage with the decimals that its interval leaves certain."""
    if interval is None or interval.high <= interval.low:
        return ".1f"
    width = 100.0 * (interval.high - interval.low)
    return f".{min(max(1, 1 - math.floor(math.log10(width))), _MOST_DECIMALS_OF_TEXT)}f"


def number_of(estimate: Estimate) -> str:
    """Return a figure in its own unit."""
    interval = estimate.interval
    limits = "" if interval is None else f" ({_limits(interval, 1.0, '.3g')})"
    return f"{estimate.value:.3g}{limits}"


def _limits(interval: Interval, factor: float, form: str, unit: str = "") -> str:
    low, high = (f"{limit * factor:{form}}{unit}" for limit in (interval.low, interval.high))
    return f"{low} to {high}"
