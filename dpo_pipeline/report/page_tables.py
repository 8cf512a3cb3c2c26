"""Tables as values, before a page or a notebook makes HTML of them, and the words in them."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import polars as pl

from dpo_pipeline.columns import SHOWN
from dpo_pipeline.plan import Origin
from dpo_pipeline.statistics import as_written, count, number, p_value, points
from dpo_pipeline.tables import escaped

T = TypeVar("T")
Writer = Callable[[Any], str]
"""Returns a number as text."""


def three_digits(value: float | None) -> str:
    """Return a number with three digits: a figure from a histogram is known no better (0.25%)."""
    return number(value, 3)


def signed(value: float | None) -> str:
    """Return a limit of a difference in points; the difference beside it has the unit."""
    return points(value).removesuffix(" points")


def percent(level: float) -> str:
    """Return a level of confidence in per cent."""
    return f"{100.0 * level:g}%"


def all_as(how: T, **titles: str) -> dict[str, tuple[str, T]]:
    """Return columns that are written alike, each with its title and how it is written."""
    return {name: (title, how) for name, title in titles.items()}


def as_text(value: Any) -> str:
    """Return a text of the dataset; what a reader cannot see is written out."""
    return escaped(as_written(value))


P_VALUES: Final = all_as(p_value, p_value="p", p_holm="p (Holm)", p_benjamini_hochberg="p (BH)")
WORDS_OF_P_VALUES: Final = (
    "Holm keeps the chance of any false alarm among the subsets, BH (Benjamini and Hochberg) the "
    "share of false alarms."
)
RELIABILITY: Final[Mapping[str, str]] = {
    "confidence": "confidence",
    "accuracy": "accuracy",
    "accuracy_low": "from",
    "accuracy_high": "to",
}
"""Titles of the columns of a calibration."""
SHARES: Final = frozenset({"reward_accuracy", "reward_accuracy_half", "tie_rate"})
"""Figures that are written in per cent."""

_FOLDED_FROM: Final = 400
"""Characters of a text from which it is folded."""
_LONG: Final = 40
"""Rows from which a table scrolls by itself."""


class Command(str):
    """A command to be pasted: no line ends inside an option."""

    __slots__ = ()

    @property
    def parts(self) -> list[str]:
        """The program, its places, and each option with its value."""
        made: list[str] = []
        follows = False
        for word in shlex.split(self):
            is_option = word.startswith("-")
            if follows and not is_option:
                made[-1] += f" {shlex.quote(word)}"
            else:
                made.append(shlex.quote(word))
            follows = is_option and "=" not in word
        return made


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table; one of words has no `write`, which writes numbers."""

    title: str
    write: Writer | None = None

    @property
    def kind(self) -> str:
        """The CSS class of its cells: numbers stand right and sort by size."""
        return "words" if self.write in {None, as_text} else "number"

    def begin(self, value: Any) -> str:
        """Return the beginning of a text that is folded; empty if it is not."""
        text = self.text(value) if self.write is as_text else ""
        return text[: _FOLDED_FROM // 2] if len(text) > _FOLDED_FROM else ""

    def text(self, value: Any) -> str:
        """Return the text of a cell."""
        return as_written(value) if self.write is None else self.write(value)

    def sort_key(self, value: Any) -> str:
        """Return what a number sorts by; a missing one comes last."""
        if value is None:
            return ""
        return f"{value:.9g}" if isinstance(value, float) else f"{value}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table whose first column names the rows."""

    columns: Sequence[Column]  # without a title in any, the table has no head
    rows: Sequence[Sequence[Any]]  # None is a missing value
    caption: str = ""
    sortable: bool = True  # its heads are buttons that sort
    folded: str = ""  # what is clicked to see the table; without it the table is open

    @property
    def has_head(self) -> bool:
        """Whether a column has a title."""
        return any(column.title for column in self.columns)

    @property
    def has_texts(self) -> bool:
        """Whether a column is of texts to be read."""
        return any(column.write is as_text for column in self.columns)

    @property
    def is_long(self) -> bool:
        """Whether it scrolls by itself."""
        return len(self.rows) > _LONG


def origin_rows(origin: Origin | None) -> list[tuple[str, str]]:
    """Return where a result came from, as rows of `facts`."""
    if origin is None:
        return []
    rows = [
        ("command line", Command(origin.command)),
        ("settings", "; ".join(origin.settings)),
        ("fingerprint of the data", origin.fingerprint),
    ]
    return [row for row in rows if row[1]]


def facts(rows: Sequence[tuple[str, str]]) -> Table:
    """Return a table of names and what they are."""
    return Table(columns=(Column(""), Column("")), rows=rows)


def crossed(
    title: str, heads: tuple[str, str], rows: Mapping[str, tuple[int, int]], *, caption: str
) -> Table:
    """Return a table of counts of pairs, two by two."""
    columns = [Column(title), *(Column(head, count) for head in heads)]
    lines = [(name, *counts) for name, counts in rows.items()]
    return Table(columns=columns, rows=lines, caption=caption, sortable=False)


def writer_of(dtype: pl.DataType) -> Writer | None:
    """Return how values of the dataset are written: numbers as they are, for they may be names."""
    return as_written if dtype.is_numeric() else None


def shown_columns(frame: pl.DataFrame) -> dict[str, tuple[str, Writer | None]]:
    """Return the columns of text that were asked for, without what a reader cannot see."""
    return {
        name: (name.removeprefix(SHOWN), as_text)
        for name in frame.columns
        if name.startswith(SHOWN)
    }


def table_of(
    frame: pl.DataFrame,
    columns: Mapping[str, tuple[str, Writer | None]],
    *,
    by: Iterable[str] = (),
    caption: str = "",
    folded: str = "",
) -> Table:
    """Return a table of columns of a frame, each with its title and how it is written.

    The columns `by` of the dataset stand first, under their own names.
    """
    named = {name: (name, writer_of(frame.schema[name])) for name in by} | dict(columns)
    heads = [Column(*each) for each in named.values()]
    rows = frame.select(*named).rows()
    return Table(columns=heads, rows=rows, caption=caption, folded=folded)
