"""Cells of tables as text, as people write such numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from dpo_pipeline.statistics import (
    DASH,
    Interval,
    as_written,
    between,
    count,
    effect,
    number,
    p_value,
    points,
    points_between,
    share_within,
)
from dpo_pipeline.tables import KEPT, Figure, Limits, Name, Unit, shown

_LONGEST: Final = 400


def cell(value: Any) -> str:
    """Return the text of a cell; what must not be broken has `KEPT` for its spaces."""
    if value is None:
        return DASH
    if isinstance(value, (Figure, Limits)):
        return _number(value)
    if isinstance(value, float):
        return number(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return count(value)
    if isinstance(value, str):
        return KEPT.join(map(_safe, value.split(KEPT)))
    return _safe(as_written(value.value) if isinstance(value, Name) else str(value))


def _safe(text: str) -> str:
    return shown(text, _LONGEST).replace("\n", "\\n")


def is_number(value: Any) -> bool:
    """Return whether a cell stands right, below the digits of others."""
    if isinstance(value, Name):
        value = value.value
    return value is None or value == "" or isinstance(value, (int, float, Figure))


def _number(value: Figure | Limits) -> str:
    if isinstance(value, Limits):
        within = _interval(value.low, value.high)
        if value.unit == "points":  # the value beside it has the unit
            return points_between(within)
        return between(within, _writer(value.unit, within, value.digits))
    if value.value is None:
        return DASH
    interval = None if value.limits is None else _interval(*value.limits)
    return _writer(value.unit, interval, value.digits)(value.value)


def _interval(low: float, high: float) -> Interval:
    return Interval(low=low, high=high, level=0.0, method="")


def _writer(unit: Unit, interval: Interval | None, digits: int) -> Callable[[float], str]:
    writers: Mapping[Unit, Callable[[float], str]] = {
        "number": partial(number, digits=digits),
        "share": share_within(interval),
        "points": lambda value: points(value, interval),
        "effect": effect,
        "p": p_value,
    }
    return writers[unit]
