"""Results as Markdown, LaTeX, HTML and CSV: tables keep their cells, text of the data is text."""

from __future__ import annotations

import csv
import io
import re

import polars as pl
import pytest

from dpo_pipeline.rendering import as_csv, as_html, as_latex, as_markdown
from dpo_pipeline.tables import Column, Figure, Limits, Name, Sentence, Table
from page_tools import EVIL, Page

EVILS = [*EVIL, "a|b", "*a* _b_ `c`", "[x](http://x)", "![x](http://x)", "a_b", "50% of $x & {y}"]


def table_with(text):
    columns = [Column("key"), Column("mean"), Column("95% interval")]
    rows = [(Name(text), Figure(-0.25), Limits(0.1, 0.2, "share")), (Name("x"), 3, "")]
    return Table(columns=columns, rows=rows, title="the title", note="the note", n_keys=1)


def cells_of(line):
    """Split a row of Markdown as GitHub does: at pipes that are not escaped."""
    inner = line.removeprefix("| ").removesuffix(" |")
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", inner)]


def unescaped(text):
    return re.sub(r"\\(.)", r"\1", text).replace("&amp;", "&")


@pytest.mark.parametrize("text", EVILS)
def test_markdown_has_the_cells_and_no_markup_of_the_data(text):
    title, grid, note = as_markdown([table_with(text)]).split("\n\n")
    head, rule, *rows = grid.split("\n")
    assert (title, note) == ("**the title**", "the note")
    assert cells_of(head) == ["key", "mean", "95% interval"]
    assert cells_of(rule) == ["---", "---:", "---"]
    assert [len(cells_of(row)) for row in rows] == [3, 3]
    assert cells_of(rows[0])[1:] == ["-0.2500", "10.0% to 20.0%"]
    key = cells_of(rows[0])[0]
    assert not re.search(r"(?<!\\)[*<\[`]", key)
    if text.isprintable():
        assert unescaped(key) == text


def test_sentences_in_markdown_keep_commands_as_code():
    parts = [
        Sentence(text="better", leads=True),
        Sentence(text="a * b: `dpo-pipeline check --by a_b`", label="warning", more=("more",)),
    ]
    lead, warning = as_markdown(parts).split("\n\n")
    assert lead == "**better**"
    assert warning == r"**warning:** a \* b: `dpo-pipeline check --by a_b` more"


@pytest.mark.parametrize("text", EVILS)
def test_latex_is_closed_and_every_special_character_is_escaped(text):
    made = as_latex([Sentence(text=text, label="note"), table_with(text)])
    comments = [line for line in made.split("\n") if line.startswith("% ")]
    assert comments[0].startswith("% note: ")
    code = "\n".join(line for line in made.split("\n") if not line.startswith("%"))
    for name in ("table", "tabular"):
        assert code.count(rf"\begin{{{name}}}") == code.count(rf"\end{{{name}}}") == 1
    bare = re.sub(r"\\[\\{}#$%&_]", "", code)
    assert bare.count("{") == bare.count("}")
    assert not re.search(r"[#%]", bare)
    rows = code.partition(r"\midrule")[2].partition(r"\bottomrule")[0].strip().split("\n")
    assert [len(re.split(r"(?<!\\)&", row)) for row in rows] == [3, 3]
    assert "$-$0.2500" in rows[0]
    assert r"10.0\% to 20.0\%" in rows[0]


@pytest.mark.parametrize("text", EVILS)
def test_html_shows_text_of_the_data_as_text(text):
    page = Page(as_html([Sentence(text=text, leads=True), table_with(text)]))
    plain = Page(as_html([Sentence(text="plain", leads=True), table_with("plain")]))
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in plain.elements]
    assert text in page.texts["td"]
    assert page.texts["strong"] == [text, "the title"]
    assert page.texts["th"] == ["key", "mean", "95% interval"]


def test_addresses_show_no_secrets():
    part = Sentence(text="from s3://me:secret@bucket/a?token=secret")
    for made in (as_html([part]), as_markdown([part]), as_latex([part])):
        assert "secret" not in made
        assert "bucket" in made


def test_csv_has_all_digits_and_comes_back():
    frame = pl.DataFrame({"a": ['x,"y"\n', None], "b": [1 / 3, None], "c": [1, 2]})
    rows = list(csv.DictReader(io.StringIO(as_csv(frame))))
    assert rows[0] == {"a": 'x,"y"\n', "b": repr(1 / 3), "c": "1"}
    assert rows[1] == {"a": "", "b": "", "c": "2"}
