"""Parts of a result as Markdown, LaTeX, HTML and CSV."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from html import escape
from typing import TYPE_CHECKING, Any, Final

from dpo_pipeline.rendering.cells import cell as kept_cell, is_number
from dpo_pipeline.statistics import DASH, MINUS
from dpo_pipeline.tables import KEPT, Part, Sentence, Table, shown, without_secrets

if TYPE_CHECKING:
    import polars as pl


def cell(value: Any) -> str:
    """Return the text of a cell."""
    return kept_cell(value).replace(KEPT, " ")


_CODE: Final = re.compile(r"(`[^`\n]*`)")
_MARKDOWN: Final = re.compile(r"[\\|*<\[`~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_LATEX: Final = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    MINUS: "$-$",
    DASH: "--",
    **{each: f"\\{each}" for each in "#$%&_"},
}
_BELOW_0: Final = re.compile(r"(?<![\w.-])-(?=\d)")


def as_csv(frame: pl.DataFrame) -> str:
    """Return a table as CSV."""
    return frame.write_csv()


def as_markdown(parts: Iterable[Part]) -> str:
    """Return parts as Markdown."""
    return "\n\n".join(text for part in parts for text in _markdown(part))


def _markdown(part: Part) -> Iterator[str]:
    if isinstance(part, Sentence):
        text = _in_markdown(_said(part.text))
        label = f"**{part.label}:** " if part.label else ""
        lead = f"**{text}**" if part.leads else f"{label}{text}"
        more = [_in_markdown(_said(each)) for each in part.more]
        stop = ":" if more and not part.leads and lead[-1].isalnum() else ""
        yield " ".join((lead + stop, *more))
        return
    if part.title:
        yield f"**{_in_markdown(_said(part.title))}**"
    yield "\n".join(_markdown_lines(part))
    yield from _left_out(part)
    if part.note:
        yield _in_markdown(_said(part.note))


def _markdown_lines(table: Table) -> Iterator[str]:
    yield _row(_escaped(cell(column.title)) for column in table.columns)
    yield _row("---:" if is_right else "---" for is_right in _rights(table))
    for row in table.rows[: table.most]:
        yield _row(_escaped(cell(value).replace(MINUS, "-")) for value in row)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _in_markdown(text: str) -> str:
    return "".join(
        each if _CODE.fullmatch(each) else _escaped(each) for each in _CODE.split(text) if each
    )


def _escaped(text: str) -> str:
    return _MARKDOWN.sub(r"\\\g<0>", text.replace("&", "&amp;"))


def as_latex(parts: Iterable[Part]) -> str:
    """Return tables as LaTeX, with the sentences as comments between them."""
    return "\n".join(line for part in parts for line in _latex(part))


def _latex(part: Part) -> Iterator[str]:
    if isinstance(part, Sentence):
        label = f"{part.label}: " if part.label else ""
        for text in (label + part.text, *part.more):
            yield from (f"% {line}" for line in _said(text).split("\n"))
        return
    kinds = "".join("r" if is_right else "l" for is_right in _rights(part))
    yield from (r"\begin{table}", r"\centering")
    if part.title or part.note:
        texts = filter(None, (part.title, part.note))
        yield rf"\caption{{{'. '.join(_in_latex(_said(each)) for each in texts)}}}"
    yield from (rf"\begin{{tabular}}{{{kinds}}}", r"\toprule")
    if any(column.title for column in part.columns):
        yield from (_latex_row(cell(column.title) for column in part.columns), r"\midrule")
    yield from (_latex_row(map(cell, row)) for row in part.rows[: part.most])
    yield from (r"\bottomrule", r"\end{tabular}", r"\end{table}")
    yield from (f"% {text}" for text in _left_out(part))


def _latex_row(cells: Iterable[str]) -> str:
    return f"{' & '.join(map(_in_latex, cells))} \\\\"


def _in_latex(text: str) -> str:
    return "".join(_LATEX.get(each, each) for each in with_minus(text))


def with_minus(text: str) -> str:
    """Return a sentence whose numbers below 0 have a minus sign, and no hyphen."""
    return _BELOW_0.sub(MINUS, text)


def as_html(parts: Iterable[Part]) -> str:
    """Return parts as HTML without scripts, every text escaped."""
    return f"<div>{''.join(text for part in parts for text in _html(part))}</div>"


def _html(part: Part) -> Iterator[str]:
    if isinstance(part, Sentence):
        text = _in_html(part.text)
        label = f"<strong>{escape(part.label)}:</strong> " if part.label else ""
        lead = f"<strong>{text}</strong>" if part.leads else f"{label}{text}"
        yield f"<p>{'<br>'.join((lead, *map(_in_html, part.more)))}</p>"
        return
    if part.title:
        yield f"<p><strong>{_in_html(part.title)}</strong></p>"
    styles = [' style="text-align: right"' if each else "" for each in _rights(part)]
    heads = [
        f'<th scope="col"{style}>{escape(cell(column.title))}</th>'
        for column, style in zip(part.columns, styles, strict=True)
    ]
    rows = [
        "".join(f"<td{style}>{escape(cell(v))}</td>" for v, style in zip(row, styles, strict=True))
        for row in part.rows[: part.most]
    ]
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    yield f"<table><thead><tr>{''.join(heads)}</tr></thead><tbody>{body}</tbody></table>"
    yield from (f"<p>{_in_html(text)}</p>" for text in (*_left_out(part), part.note) if text)


def _in_html(text: str) -> str:
    return escape(without_secrets(text.replace(KEPT, " ")))


def _said(text: str) -> str:
    return shown(text.replace(KEPT, " "))


def _left_out(table: Table) -> Iterator[str]:
    more = 0 if table.most is None else len(table.rows) - table.most
    if more > 0:
        yield f"... and {more:,} more"


def _rights(table: Table) -> list[bool]:
    return [all(is_number(row[i]) for row in table.rows) for i in range(len(table.columns))]
