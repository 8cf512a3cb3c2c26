"""What a result hands over to be read, for every format alike, and documents as JSON.

A result says its parts: sentences and tables of values. The room `rendering` writes them for
terminals, notebooks, papers and pages.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Context, Decimal
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from dpo_pipeline.defaults import LEAST_KNOWN

if TYPE_CHECKING:
    import polars as pl

ROWS_SHOWN: Final = 50
"""Rows of a table in a terminal or a notebook; documents and files have them all."""


_LONGEST_LINE: Final = 4_000
_LONGEST_CELL: Final = 400
_MOST_DIGITS: Final = 400
"""Of a decimal number that is rounded: floats have up to 309 before the point."""

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


def escaped(text: str) -> str:
    """Return text with its control characters and other invisible ones written out."""
    return _UNSEEN.sub(_escaped, text)


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


def significant(value: float, digits: int) -> str:
    """Return a figure with at most so many significant digits, and no more than are known of it.

    Figures come from sums in quanta, so that nothing below `LEAST_KNOWN` is known of a mean.
    """
    if value == 0.0 or not math.isfinite(value):
        return f"{value:g}"
    known = known_digits(value, digits)
    if known < 1:
        return f"<{LEAST_KNOWN:g}" if value > 0.0 else f">-{LEAST_KNOWN:g}"
    return f"{half_up_digits(value, known):.{known}g}"


def half_up(value: float, decimals: int) -> float:
    """Return a figure rounded to so many decimals: what lies half way goes away from 0.

    Twelve digits are read, so that -8.25 and -8.250000000000002 are written alike.
    """
    if not math.isfinite(value):
        return value
    exact, context = Decimal(f"{value:.12g}"), Context(prec=_MOST_DIGITS)
    return float(exact.quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_UP, context))


def half_up_digits(value: float, digits: int) -> float:
    """Return a figure rounded to so many significant digits, as `half_up` rounds."""
    if value == 0.0 or not math.isfinite(value):
        return value
    return half_up(value, digits - 1 - Decimal(f"{value:.12g}").adjusted())


def known_digits(value: float, most: int) -> int:
    """Return how many significant digits are known of a figure that is not 0; 0 if none is."""
    decimals = round(-math.log10(LEAST_KNOWN))
    return max(0, min(most, math.floor(math.log10(abs(value))) + 1 + decimals))


Unit: TypeAlias = Literal["number", "share", "points", "effect", "p"]
"""How a number is written: with significant digits, in per cent, in points with and without sign,
as a p-value."""

Tone: TypeAlias = Literal["plain", "good", "bad", "warning", "note"]
"""What a sentence means: terminals colour it."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A cell with a number; the limits of its interval say how many digits are certain."""

    value: float | None
    unit: Unit = "number"
    limits: tuple[float, float] | None = None
    digits: int = 4  # significant ones of a number


@dataclass(frozen=True, slots=True)
class Limits:
    """A cell with the two limits of an interval."""

    low: float
    high: float
    unit: Unit = "number"
    digits: int = 4


@dataclass(frozen=True, slots=True)
class Name:
    """A cell with a value of the dataset, which is written as it is: it may be a name."""

    value: Any


@dataclass(frozen=True, slots=True)
class Column:
    """A column: cells that wrap are words; an optional one is left out where there is no room.

    One that joins stands in the same block as the column before it.
    """

    title: str
    wraps: bool = False
    optional: bool = False
    joins: bool = False


def key_columns(names: Sequence[str]) -> list[Column]:
    """Return columns of the data that name rows: their values may be as long as a prompt."""
    return [Column(name, wraps=True) for name in names]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table of cells: `Figure`, `Limits`, `Name`, text, a count, a float, or None.

    Attributes:
        columns: The columns; without a title in any, the table has no head.
        rows: The cells, row by row.
        title: Stands above it.
        note: Stands below it.
        n_keys: The first columns, which name the rows.
        most: Rows after which the table is cut; None for all.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]
    title: str = ""
    note: str = ""
    n_keys: int = 1
    most: int | None = ROWS_SHOWN


@dataclass(frozen=True, slots=True, kw_only=True)
class Sentence:
    """A sentence of a result. What stands in backticks is never broken.

    Attributes:
        text: The sentence.
        label: What it is: "warning", "caution".
        tone: What it means.
        more: Further sentences, below it.
        leads: Whether it stands apart, before all else.
    """

    text: str
    label: str = ""
    tone: Tone = "plain"
    more: tuple[str, ...] = ()
    leads: bool = False


Part: TypeAlias = Sentence | Table

KEPT: Final = "\x1f"


def whole(text: str) -> str:
    """Return a path or a command that is never broken into lines, to be put into a sentence."""
    return shown(text).replace("\n", "\\n").replace(" ", KEPT)


def warned(texts: Sequence[str], label: str = "warning") -> Iterator[Sentence]:
    """Yield sentences that warn."""
    for text in texts:
        yield Sentence(text=text, label=label, tone="warning" if label == "warning" else "note")


class Printable:
    """A result that people read: it says its parts, and each format writes them."""

    __slots__ = ()

    def to_parts(self) -> Iterator[Part]:
        """Yield what is to be read, the most important first."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        raise NotImplementedError

    def to_frame(self) -> pl.DataFrame:
        """Return its figures as one table."""
        raise NotImplementedError

    def to_json(self) -> str:
        """Return `to_dict` as JSON; what is not finite is null."""
        return as_json(self.to_dict())

    def to_csv(self) -> str:
        """Return `to_frame` as CSV, with all digits."""
        from dpo_pipeline.rendering import as_csv

        return as_csv(self.to_frame())

    def to_markdown(self) -> str:
        """Return it as Markdown, for a pull request or a step summary."""
        from dpo_pipeline.rendering import as_markdown

        return as_markdown(self.to_parts())

    def to_latex(self) -> str:
        """Return its tables as LaTeX, for a paper; they need the package booktabs."""
        from dpo_pipeline.rendering import as_latex

        return as_latex(self.to_parts())

    def _repr_html_(self) -> str:
        """Return it as HTML, for notebooks."""
        from dpo_pipeline.rendering import as_html

        return as_html(self.to_parts())

    def __str__(self) -> str:
        """Return it as text, as wide as the terminal."""
        from dpo_pipeline.rendering import as_text

        return as_text(self.to_parts())

    def __repr__(self) -> str:
        """Return the first lines of the text, a screen at most."""
        from dpo_pipeline.rendering import as_screen

        return as_screen(self.to_parts())
