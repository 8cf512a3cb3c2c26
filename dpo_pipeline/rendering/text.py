"""Parts of a result for terminals: lines that fit, in colours that mean something."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from dpo_pipeline.rendering.cells import cell, is_number
from dpo_pipeline.statistics import DASH, MINUS
from dpo_pipeline.tables import KEPT, Part, Sentence, Table, Tone, shown

_WIDTH: Final = 100
"""Where there is no terminal."""
_NARROWEST: Final = 20
_SCREEN: Final = 24
"""Lines of a terminal's screen."""
_GAP: Final = "  "
_LEAST_WRAPPED: Final = 24
"""Characters to which a column of words is narrowed before a table is cut into blocks."""

_BOLD: Final = "1"
_COLORS: Final[dict[Tone, str]] = {"good": "32", "bad": "31", "warning": "33", "note": "36"}

_COMMAND: Final = re.compile(r"`[^`\n]*`|\bp [<=>] (?=[\d.])")
"""What is never broken: commands, and p with its value."""


def width_of_terminal() -> int:
    """Return how wide text may be: `COLUMNS`, else the terminal's width, else 100."""
    given = os.environ.get("COLUMNS", "")
    if given.isdigit() and int(given) > 0:
        return max(int(given), _NARROWEST)
    with contextlib.suppress(OSError, ValueError, AttributeError):
        if sys.stdout.isatty():
            found = os.get_terminal_size(sys.stdout.fileno()).columns
            return max(found, _NARROWEST) if found else _WIDTH
    return _WIDTH


def as_text(parts: Iterable[Part], *, width: int | None = None, color: bool = False) -> str:
    """Return parts as lines of at most `width` characters; a path or a command can be longer."""
    room = width_of_terminal() if width is None else width
    paint = _painted if color else _plain
    lines: list[str] = []
    before: Part | None = None
    for part in parts:
        if isinstance(part, Table):
            made = list(_table(part, room, bold=color))
        else:
            made = list(_sentence(part, room, paint))
        leads = any(isinstance(each, Sentence) and each.leads for each in (before, part))
        if lines and (leads or Table in (type(part), type(before))):
            lines.append("")
        lines += made
        before = part
    return "\n".join(lines)


def as_screen(parts: Iterable[Part]) -> str:
    """Return the first lines of the text, so many as a screen has."""
    room = width_of_terminal()
    lines = as_text(parts, width=room).split("\n")
    if len(lines) > _SCREEN:
        more = len(lines) - _SCREEN + 1
        lines = [*lines[: _SCREEN - 1], f"... {more:,} more lines: print it"]
    return "\n".join(line if len(line) <= room else f"{line[: room - 4]} ..." for line in lines)


def fitted(text: str, width: int) -> str:
    """Return a message in lines that fit; lines of it that are indented stay so."""
    return "\n".join(
        wrapped
        for line in text.split("\n")
        for indent in [line[: len(line) - len(line.lstrip(" "))]]
        for wrapped in _wrapped(line.strip(" "), width, indent, f"{indent}  ")
    )


def _plain(text: str, *_codes: str) -> str:
    return text


def _painted(text: str, *codes: str) -> str:
    return f"\x1b[{';'.join(codes)}m{text}\x1b[0m" if any(codes) else text


def _sentence(part: Sentence, width: int, paint: object) -> Iterator[str]:
    write = _painted if paint is _painted else _plain
    code = _COLORS.get(part.tone, "")
    label = f"{part.label}: " if part.label else ""
    first, *rest = _wrapped(f"{label}{_safe(part.text)}", width, "", "  ")
    if part.leads:
        codes = [_BOLD, *([code] if code else [])]
        yield from (write(line, *codes) for line in (first, *rest))
    elif label and code:
        yield write(label[:-1], code) + first.removeprefix(label[:-1])
        yield from rest
    else:
        yield from (first, *rest)
    for text in part.more:
        yield from _wrapped(_safe(text), width, "  ", "  ")


def _safe(text: str) -> str:
    return KEPT.join(shown(each) for each in text.split(KEPT))


def _wrapped(text: str, width: int, first: str, then: str) -> list[str]:
    """Return lines of whole words; what stands in backticks is one word."""
    lines: list[str] = []
    for paragraph in text.split("\n"):
        kept = _COMMAND.sub(lambda found: found[0].replace(" ", KEPT), paragraph)
        line, is_begun = then if lines else first, False
        for word in kept.split(" "):
            if is_begun and _size(line) + 1 + _size(word) > width:
                lines.append(line)
                line, is_begun = then, False
            line += f" {word}" if is_begun else word
            is_begun = True
        lines.append(line)
    return [line.rstrip(" ").replace(KEPT, " ") for line in lines]


@dataclass(frozen=True, slots=True)
class _Words:
    """A column as text."""

    title: str
    cells: Sequence[str]
    is_right: bool
    wraps: bool
    optional: bool
    joins: bool

    @property
    def natural(self) -> int:
        return max(map(_size, (self.title, *self.cells)), default=0)

    @property
    def least(self) -> int:
        if self.wraps:
            return min(self.natural, _LEAST_WRAPPED)
        return max(map(_size, (*self.title.split(" "), *self.cells)), default=0)


def _table(table: Table, width: int, *, bold: bool) -> Iterator[str]:
    if table.title:
        lines = _wrapped(_safe(table.title), width, "", "  ")
        yield from (_painted(line, _BOLD) if bold else line for line in lines)
    rows = table.rows[: table.most]
    columns = [
        _Words(
            title=cell(column.title),
            cells=[_ascii(cell(row[i])) for row in rows],
            is_right=all(is_number(row[i]) for row in rows),
            wraps=column.wraps,
            optional=column.optional,
            joins=column.joins,
        )
        for i, column in enumerate(table.columns)
    ]
    if _together(columns, [each.natural for each in columns]) > width:
        columns = [each for each in columns if not each.optional]
    for i, block in enumerate(_blocks(columns, table.n_keys, width)):
        if i:
            yield ""
        yield from _lines(block, width, len(rows), bold=bold)
    if len(table.rows) > len(rows):
        yield f"... and {len(table.rows) - len(rows):,} more"
    if table.note:
        yield from _wrapped(_safe(table.note), width, "", "")


def _together(columns: Sequence[_Words], widths: Sequence[int]) -> int:
    return sum(widths) + len(_GAP) * (len(columns) - 1)


def _blocks(columns: Sequence[_Words], n_keys: int, width: int) -> Iterator[list[_Words]]:
    """Yield the columns in blocks that fit, each with the columns that name the rows.

    They are as few as can be, and then as narrow as so many can be.
    """
    greedy = list(_filled(columns, n_keys, width))
    if len(greedy) > 1:
        widths = range(_NARROWEST, width)
        even = (list(_filled(columns, n_keys, each)) for each in widths)
        greedy = next((each for each in even if len(each) == len(greedy)), greedy)
    yield from greedy


def _filled(columns: Sequence[_Words], n_keys: int, width: int) -> Iterator[list[_Words]]:
    keys, block = list(columns[:n_keys]), list(columns[:n_keys])
    for group in _joined(keys, columns[n_keys:], width):
        wider = [*block, *group]
        if len(block) > n_keys and _together(wider, [each.least for each in wider]) > width:
            yield block
            wider = [*keys, *group]
        block = wider
    yield block


def _joined(
    keys: Sequence[_Words], columns: Sequence[_Words], width: int
) -> Iterator[list[_Words]]:
    """Yield the columns, those that join in a group with the one before them if both fit."""
    group: list[_Words] = []
    for column in columns:
        wider = [each.least for each in (*keys, *group, column)]
        if group and not (column.joins and _together((*keys, *group, column), wider) <= width):
            yield group
            group = []
        group = [*group, column]
    if group:
        yield group


def _lines(columns: Sequence[_Words], width: int, n_rows: int, *, bold: bool) -> Iterator[str]:
    """Yield the head and the rows of columns that fit, if need be with words below each other."""
    widths = [each.least for each in columns]
    spare = width - _together(columns, widths)
    # Columns of words share alike what the others leave; what one does not need, the next may have.
    needs = [each.natural - size for each, size in zip(columns, widths, strict=True)]
    order = sorted(
        range(len(columns)), key=lambda i: (columns[i].wraps, columns[i].wraps * needs[i])
    )
    for place, i in enumerate(order):
        fair = spare // (len(columns) - place) if columns[i].wraps else spare
        more = max(0, min(fair, needs[i]))
        if spare < 0 and columns[i].wraps:
            more = max(spare, 1 - widths[i])
        widths[i] += more
        spare -= more
    if any(each.title for each in columns):
        heads = [
            _wrapped(each.title, size, "", "") for each, size in zip(columns, widths, strict=True)
        ]
        most = max(map(len, heads))
        for line in _rows(columns, widths, [[""] * (most - len(each)) + each for each in heads]):
            yield _painted(line, _BOLD) if bold else line
    for row in range(n_rows):
        cells = [
            _wrapped(each.cells[row], size, "", "")
            if each.wraps
            else [each.cells[row].replace(KEPT, " ")]
            for each, size in zip(columns, widths, strict=True)
        ]
        yield from _rows(columns, widths, cells)


def _rows(
    columns: Sequence[_Words], widths: Sequence[int], cells: Sequence[Sequence[str]]
) -> Iterator[str]:
    for line in range(max(map(len, cells))):
        texts = []
        for column, size, own in zip(columns, widths, cells, strict=True):
            text = own[line] if line < len(own) else ""
            padding = " " * (size - _size(text))
            texts.append(padding + text if column.is_right else text + padding)
        yield _GAP.join(texts).rstrip()


def _ascii(text: str) -> str:
    return text.replace(MINUS, "-").replace(DASH, "-")


def _size(text: str) -> int:
    """Return how many places text takes: wide characters take two, combining ones none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(each) else 1 + (unicodedata.east_asian_width(each) in "WF")
        for each in text
    )
