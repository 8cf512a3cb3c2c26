"""Results for terminals and programs: tables of aligned text, and documents as JSON."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from dpo_pipeline.defaults import LEAST_KNOWN

ROWS_SHOWN: Final = 50
"""Rows of a table in a terminal or a notebook; documents and files have them all."""


_LONGEST_LINE: Final = 4_000
_LONGEST_CELL: Final = 400

# All but the line feed that a terminal acts upon, and what reverses or hides text. Lone surrogates
# stand for the bytes of names that are not UTF-8, and cannot be printed.
_UNSEEN: Final = re.compile(
    "[\\x00-\\x09\\x0b-\\x1f\\x7f-\\x9f\\xad\\u061c\\u200b\\u200e\\u200f\\u2028-\\u202e\\u2060-\\u206f"
    "\\ufeff\\ud800-\\udfff\\U000e0000-\\U000e0fff]"
)
_ADDRESS: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)([^\s'\"]+)")
_QUERY: Final = re.compile(r"([?&;#][^=?&;#]+)=[^&;#]+?(?=[:,.)]*(?:$|[&;#]))")
_USER: Final = re.compile(r"^[^/@]*:[^/@]*@")
_WEB_USER: Final = re.compile(r"^[^/@]*@")


def shown(text: str, most: int = _LONGEST_LINE) -> str:
    """Return text as a terminal may have it: no secrets, no control characters, no endless lines.

    Names, paths and values come from the data, and so does what is in them.
    """
    safe = _UNSEEN.sub(_escaped, without_secrets(text))
    if len(safe) <= most:
        return safe
    return "\n".join(_cut(line, most) for line in safe.split("\n"))


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"  # noqa: PLR2004  as Python does


def _cut(line: str, most: int) -> str:
    if len(line) <= most:
        return line
    half = most // 2
    return f"{line[:half]} ... ({len(line):,} characters) ... {line[-half // 2 :]}"


def without_secrets(text: str) -> str:
    """Return text whose addresses have no password and no value of a query: `?token=***`."""
    return _ADDRESS.sub(_without_secrets, text) if "://" in text else text


def _without_secrets(found: re.Match[str]) -> str:
    scheme, rest = found.groups()
    user = _WEB_USER if scheme.lower().startswith("http") else _USER
    return scheme + _QUERY.sub(r"\1=***", user.sub("***@", rest))


def as_json(document: Mapping[str, Any]) -> str:
    """Return JSON that every parser reads: NaN and infinities are null, dates are text.

    Addresses in it have no secrets.
    """
    return json.dumps(_finite(document), indent=2, allow_nan=False, default=str)


def rows_by_key(table: Any, keys: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows of a table of groups; keys that JSON has no number for are text.

    Otherwise the groups of NaN, of the infinities and of null would have one name.
    """
    return [
        {name: str(v) if name in keys and _is_odd(v) else v for name, v in row.items()}
        for row in table.to_dicts()
    ]


def _is_odd(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            without_secrets(key) if isinstance(key, str) else key: _finite(each)
            for key, each in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    if _is_odd(value):
        return None
    return without_secrets(value) if isinstance(value, str) else value


def aligned(
    header: Sequence[str], rows: Sequence[Sequence[object]], *, most: int | None = ROWS_SHOWN
) -> list[str]:
    """Return the lines of a table, numbers aligned right and words left.

    Args:
        header: Titles of the columns; all empty for a table without a header.
        rows: The cells, row by row.
        most: Rows after which the table is cut; None for all.
    """
    cells = [[_cell(value) for value in row] for row in rows[:most]]
    grid = [[_cell(name) for name in header], *cells] if any(header) else cells
    widths = [max((len(row[i]) for row in grid), default=0) for i in range(len(header))]
    words = [any(isinstance(row[i], str) for row in rows) for i in range(len(header))]
    lines = [
        "  ".join(
            text.ljust(width) if is_word else text.rjust(width)
            for text, width, is_word in zip(row, widths, words, strict=True)
        ).rstrip()
        for row in grid
    ]
    if len(rows) > len(cells):
        lines.append(f"... and {len(rows) - len(cells):,} more")
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
    return shown(str(value), _LONGEST_CELL).replace("\n", "\\n")
