"""Results on terminals: lines that fit any width, nothing lost, paths and commands whole."""

from __future__ import annotations

import math
import re

import pytest

from dpo_pipeline.rendering import as_screen, as_text, fitted
from dpo_pipeline.tables import Column, Figure, Limits, Name, Sentence, Table, whole

WIDTHS = (30, 60, 80, 100, 240)
ESCAPES = re.compile("\x1b\\[[0-9;]*m")


def table_of(titles, *rows, **more):
    return Table(columns=[Column(title) for title in titles], rows=rows, **more)


def test_words_stand_left_and_numbers_right():
    rows = [("a", 1, Figure(0.5)), ("longer", 12_345, None)]
    assert as_text([table_of(("name", "pairs", "x"), *rows)]).split("\n") == [
        "name     pairs       x",
        "a            1  0.5000",
        "longer  12,345       -",
    ]


def test_a_table_without_titles_has_no_head():
    assert as_text([table_of(("", ""), ("a", 1), ("b", 23))]) == "a   1\nb  23"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        # Of 3.24200e-8 a mean of whole quanta of 2**-40 may be off by 4.5e-13.
        pytest.param(Figure(3.24198e-08), "3.242e-08", id="last digits unknown"),
        pytest.param(Figure(4.4e-12), "4e-12", id="one known"),
        pytest.param(Figure(4.4e-13), "<1e-12", id="none known"),
        pytest.param(Figure(-4.4e-13), ">-1e-12", id="none known, below 0"),
        pytest.param(Figure(0.0), "0", id="zero"),
        pytest.param(Figure(math.inf), "inf", id="infinite"),
        pytest.param(Figure(123456.789), "123,457", id="large"),
        pytest.param(Figure(-0.28178), "-0.2818", id="a minus sign is ASCII"),
        pytest.param(Figure(0.57, "share"), "57.0%", id="a share"),
        pytest.param(Figure(0.57, "share", (0.5699, 0.5701)), "57.000%", id="a share that is sure"),
        pytest.param(Figure(-0.01, "points"), "-1.0 points", id="points"),
        pytest.param(Figure(0.0841, "effect"), "8.4 points", id="a size in points"),
        pytest.param(Figure(0.00004, "p"), "<0.0001", id="a small p"),
        pytest.param(Figure(0.0496, "p"), "0.0496", id="a p near the level"),
        pytest.param(Limits(-0.067, 0.048, "points"), "-6.7 to +4.8", id="limits in points"),
        pytest.param(Limits(0.5, 0.64, "share"), "50.0% to 64.0%", id="limits of a share"),
        pytest.param(Name(0.05), "0.05", id="a number of the dataset is a name"),
        pytest.param(Name(None), "(null)", id="null of the dataset is named"),
        pytest.param(1_234, "1,234", id="a count"),
    ],
)
def test_numbers_are_written_as_people_write_them(value, expected):
    assert as_text([table_of(("",), (value,))]) == expected


@pytest.mark.parametrize(
    ("most", "n_lines", "last"),
    [(50, 51, "... and 2,950 more"), (None, 3000, "2999"), (3000, 3000, "2999")],
)
def test_a_long_table_is_cut_where_asked(most, n_lines, last):
    lines = as_text([table_of(("",), *[(str(i),) for i in range(3000)], most=most)]).split("\n")
    assert len(lines) == n_lines
    assert lines[-1] == last


WIDE = Table(
    columns=[
        Column("figure"),
        *(Column(f"title number {i}") for i in range(8)),
        Column("words", wraps=True),
        Column("method", optional=True),
    ],
    rows=[
        (f"row{r}", *(f"cell{r}{i}" for i in range(8)), f"z{r} " * 20, f"m{r}") for r in range(3)
    ],
    title="a title of several words that is long enough to be cut " * 2,
    note="a note that is long, too, and has to be cut into lines " * 2,
)
LONG = Sentence(text="some words " * 40, label="warning", tone="warning", more=("more " * 50,))


@pytest.mark.parametrize("width", WIDTHS)
def test_lines_fit_and_no_cell_is_lost(width):
    text = as_text([LONG, WIDE], width=width)
    assert max(map(len, text.split("\n"))) <= width
    for row in range(3):
        assert text.count(f"z{row}") == 20
        assert all(text.count(f"cell{row}{i}") == 1 for i in range(8))
    assert text.count("some words") + len(re.findall(r"some\s+words", text)) >= 40
    # A column that may go is there only where the table needs no blocks.
    assert ("m0" in text) == (width == 240)


@pytest.mark.parametrize("width", range(20, 70, 3))
def test_a_column_that_joins_stays_beside_the_one_before_it(width):
    columns = [Column(f"head{i}", joins=i in {2, 4, 5}) for i in range(8)]
    table = Table(columns=columns, rows=[[f"cell{i}" for i in range(8)]] * 2)
    lines = as_text([table], width=width).splitlines()
    heads = [line.split() for line in lines if "head" in line]
    assert [each for line in heads for each in line[1:]] == [f"head{i}" for i in range(1, 8)]
    for i in (2, 4, 5):
        is_beside = any({f"head{i - 1}", f"head{i}"} <= {*line} for line in heads)
        assert is_beside or width < len("head0  head3  head4  head5")
    assert all(len(line) <= width for line in lines)


def test_blocks_repeat_what_names_their_rows_and_are_even():
    titles = ("who", *(f"column{i}" for i in range(6)))
    lines = as_text([table_of(titles, ("a", *range(6)))], width=40).split("\n")
    assert lines[0].split() == ["who", "column0", "column1", "column2"]
    assert lines[3].split() == ["who", "column3", "column4", "column5"]
    assert lines[4].split() == ["a", "3", "4", "5"]


def test_titles_wrap_before_a_table_is_cut():
    table = table_of(("name", "smallest effect", "95% interval"), ("a", 0.5, "x"))
    narrow = as_text([table], width=26).split("\n")
    assert narrow[0].split() == ["smallest", "95%"]
    assert narrow[1].split() == ["name", "effect", "interval"]


def test_paths_and_commands_are_never_broken():
    path, command = (
        "a folder/with spaces/pairs of mine.parquet",
        "`dpo-pipeline check a b c --json`",
    )
    text = f"words and words {whole(path)} and words: {command}"
    for lines in (as_text([Sentence(text=text)], width=20), fitted(text.replace("\x1f", " "), 20)):
        assert command in lines.split("\n") or command in lines
    assert path in as_text([Sentence(text=text)], width=20)


def test_messages_keep_their_indented_lines():
    assert fitted("a b c d e f\n  role  found\n", 7).split("\n") == [
        *("a b c d", "  e f", "  role", "    found", ""),
    ]


@pytest.mark.parametrize("text", ["漢字漢字", "e\u0301e\u0301", "abcd"])
def test_columns_line_up_whatever_the_letters(text):
    rows = [(Name(text), "|"), (Name("12345678"), "|")]
    first, second = as_text([table_of(("", ""), *rows)]).split("\n")
    places = {"漢字漢字": 8, "e\u0301e\u0301": 2, "abcd": 4}[text]
    assert len(first) - len(text) + places == len(second)


def test_colours_change_no_word():
    parts = [
        Sentence(text="better", tone="good", leads=True),
        Sentence(text="doubt", label="warning", tone="warning"),
        WIDE,
    ]
    plain, colored = as_text(parts), as_text(parts, color=True)
    assert "\x1b" not in plain
    assert ESCAPES.sub("", colored) == plain
    assert colored.startswith("\x1b[1;32mbetter\x1b[0m")
    assert "\x1b[33mwarning:\x1b[0m doubt" in colored


@pytest.mark.parametrize("evil", ["\x1b[2J", "a\x07b", "\u202etxt", "\x1f"])
def test_text_of_the_data_commands_no_terminal(evil):
    parts = [table_of((evil, "n"), (evil, 1)), Sentence(text=f"of {whole(evil)}")]
    text = as_text(parts, color=True)
    assert not set(ESCAPES.sub("", text)) & set("\x1b\x07\u202e\x1f")


def test_the_first_lines_of_a_result_are_a_screen(monkeypatch):
    monkeypatch.delenv("COLUMNS")
    lines = as_screen([table_of(("",), *[(str(i),) for i in range(40)])]).split("\n")
    assert len(lines) == 24
    assert lines[-1] == "... 17 more lines: print it"
    assert as_screen([Sentence(text="x" * 500)]).count("x") < 100


@pytest.mark.parametrize(
    ("columns", "width"), [("60", 60), ("5", 20), ("0", 100), ("wide", 100), ("", 100)]
)
def test_the_width_is_that_of_columns_or_100(monkeypatch, columns, width):
    monkeypatch.setenv("COLUMNS", columns)
    lines = as_text([Sentence(text="ab " * 200)]).split("\n")
    assert width - 3 < max(map(len, lines)) <= width
