"""HTML that cannot be broken by what stands in it: all text is escaped unless it is markup."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final

from dpo_pipeline.statistics import as_written

_EMPTY: Final = {"meta", "br"}
"""Elements without an end tag."""

_IN_SCRIPTS: Final = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"}
"""What would end a script element or begin a comment; JSON reads the escapes as the signs."""


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Content = str | Markup | Iterable["Content"] | None
"""What stands in an element: text is escaped, None is nothing."""


def element(name: str, /, *content: Content, **attributes: str | float | bool | None) -> Markup:
    """Return an element.

    Args:
        name: Of the element.
        *content: What is in it, one after the other.
        **attributes: By name; `_` stands for `-`, one at the end is dropped (`class_`). True is an
            attribute without a value; None and False are none.
    """
    written = "".join(
        f" {key.rstrip('_').replace('_', '-')}"
        + ("" if value is True else f'="{escape(f"{value}")}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    inside = joined(content)
    return Markup(f"<{name}{written}>" + ("" if name in _EMPTY else f"{inside}</{name}>"))


def joined(content: Content) -> Markup:
    """Return content as markup, one after the other."""
    if content is None:
        return Markup()
    if isinstance(content, Markup):
        return content
    if isinstance(content, str):
        return Markup(escape(content))
    return Markup("".join(joined(each) for each in content))


def json_block(document: Mapping[str, Any], **attributes: str) -> Markup:
    """Return an element that holds plain data for a script, whatever text is in it.

    Raises:
        ValueError: A number is not finite.
    """
    text = json.dumps(document, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    safe = Markup(text.translate(_IN_SCRIPTS))
    return element("script", safe, type="application/json", **attributes)


_LONG: Final = 40
"""Rows from which a table scrolls by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column: its title, and how a value is written; words where nothing is said."""

    title: str
    written: Callable[[Any], str] | None = None

    @property
    def is_number(self) -> bool:
        """Whether its cells are aligned right and sorted by size."""
        return self.written is not None


def table(
    columns: Sequence[Column],
    rows: Sequence[Sequence[Any]],
    *,
    caption: str | None = None,
    sortable: bool = True,
) -> Markup:
    """Return a table whose first column names the rows.

    Args:
        columns: Titles, and how values are written.
        rows: Values in the order of the columns; None is a missing one.
        caption: What the table shows.
        sortable: Whether its heads are buttons that sort.
    """
    head = [
        element(
            "th",
            element("button", column.title, type="button") if sortable else column.title,
            scope="col",
            class_="number" if column.is_number else None,
        )
        for column in columns
    ]
    body = [
        element(
            "tr",
            [
                _cell(column, value, at)
                for at, (column, value) in enumerate(zip(columns, row, strict=True))
            ],
        )
        for row in rows
    ]
    return _framed(
        element("table", element("thead", element("tr", head)), element("tbody", body)),
        caption,
        is_long=len(rows) > _LONG,
    )


def facts(rows: Sequence[tuple[str, Content]]) -> Markup:
    """Return a table of names and what they are."""
    lines = [
        element(
            "tr",
            element("th", name, scope="row", class_="words"),
            element("td", value, class_="words"),
        )
        for name, value in rows
    ]
    return _framed(element("table", element("tbody", lines)), None, is_long=False)


def _framed(inside: Markup, caption: str | None, *, is_long: bool) -> Markup:
    """Return a table that scrolls in its own frame, below its caption, which does not."""
    frame = element(
        "div",
        inside,
        class_="wide long" if is_long else "wide",
        # What scrolls must be reachable by keyboard.
        tabindex=0,
        role="region",
        aria_label="Table" if caption is None else caption,
    )
    if caption is None:
        return frame
    return element("figure", element("figcaption", caption), frame)


def column_of(name: str, dtype: Any) -> Column:
    """Return the column for values of the dataset of a Polars type."""
    # Without separators: they may be names, and not counts.
    return Column(title=name, written=as_written if dtype.is_numeric() else None)


def _cell(column: Column, value: Any, at: int) -> Markup:
    if column.written is None:
        text, key, kind = as_written(value), None, "words"
    else:
        text, kind = column.written(value), "number"
        key = "" if value is None else f"{value:.9g}" if isinstance(value, float) else f"{value}"
    if at == 0:
        return element("th", text, scope="row", class_=kind, data_value=key)
    return element("td", text, class_=kind, data_value=key)
