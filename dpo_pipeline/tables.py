"""Aligned text for terminals."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final


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


ROWS_SHOWN: Final = 50


def cell(value: object) -> str:
    """Return a value as text: six digits for a float, separators for a count, `-` for none."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def aligned(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Return the lines of a table; numbers stand right, words left; long tables are cut."""
    shown = [[cell(value) for value in row] for row in rows[:ROWS_SHOWN]]
    grid = [list(header), *shown] if any(header) else shown
    widths = [max(len(row[i]) for row in grid) for i in range(len(header))]
    words = [any(isinstance(row[i], str) for row in rows) for i in range(len(header))]
    lines = [
        "  ".join(
            text.ljust(width) if is_word else text.rjust(width)
            for text, width, is_word in zip(row, widths, words, strict=True)
        ).rstrip()
        for row in grid
    ]
    if len(rows) > ROWS_SHOWN:
        lines.append(f"... and {len(rows) - ROWS_SHOWN:,} more")
    return lines
