"""Results for terminals and programs: tables of aligned text, and documents as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from dpo_pipeline.defaults import LEAST_KNOWN

ROWS_SHOWN: Final = 50
"""Rows of a table in a terminal or a notebook; documents and files have them all."""


def as_json(document: Mapping[str, Any]) -> str:
    """Return JSON that every parser reads: NaN and infinities are null, dates are text."""
    return json.dumps(_finite(document), indent=2, allow_nan=False, default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def aligned(
    header: Sequence[str], rows: Sequence[Sequence[object]], *, most: int | None = ROWS_SHOWN
) -> list[str]:
    """Return the lines of a table, numbers aligned right and words left.

    Args:
        header: Titles of the columns; all empty for a table without a header.
        rows: The cells, row by row.
        most: Rows after which the table is cut; None for all.
    """
    shown = [[_cell(value) for value in row] for row in rows[:most]]
    grid = [list(header), *shown] if any(header) else shown
    widths = [max((len(row[i]) for row in grid), default=0) for i in range(len(header))]
    words = [any(isinstance(row[i], str) for row in rows) for i in range(len(header))]
    lines = [
        "  ".join(
            text.ljust(width) if is_word else text.rjust(width)
            for text, width, is_word in zip(row, widths, words, strict=True)
        ).rstrip()
        for row in grid
    ]
    if len(rows) > len(shown):
        lines.append(f"... and {len(rows) - len(shown):,} more")
    return lines


def significant(value: float, digits: int) -> str:
    """Return a figure with at most so many significant digits, and no more than are known of it.

    Figures come from sums in quanta, so that nothing below `LEAST_KNOWN` is known of a mean.
    """
    if value == 0.0 or not math.isfinite(value):
        return f"{value:g}"
    known = known_digits(value, digits)
    if known < 1:
        return f"<{LEAST_KNOWN:g}" if value > 0.0 else f">-{LEAST_KNOWN:g}"
    return f"{value:.{known}g}"


def known_digits(value: float, most: int) -> int:
    """Return how many significant digits are known of a figure that is not 0; 0 if none is."""
    decimals = round(-math.log10(LEAST_KNOWN))
    return max(0, min(most, math.floor(math.log10(abs(value))) + 1 + decimals))


def _cell(value: object) -> str:
    """Return a value as text: six digits for a float, separators for a count, `-` for none."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return significant(value, 6)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)
