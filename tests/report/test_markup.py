"""Text of every kind stays text, and colours can be told apart by everyone."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

import dpo_pipeline
from dpo_pipeline.evaluation.findings import Finding
from dpo_pipeline.report import page as report_page
from dpo_pipeline.report.charts import DARK, LIGHT, Figure, framed, label
from dpo_pipeline.report.page import Section, Tile, templates
from dpo_pipeline.report.page_tables import Column, Table, facts
from page_tools import EVIL, Page, of_margins, values_of

# Markup


def page_with(text):
    """Return a page with this text in every place that can hold one."""
    chart = framed([label(text, LIGHT)], LIGHT, height=10)
    table = Table(
        columns=[Column(text), Column(text, lambda _: text)],
        rows=[(text, 1.0), (text, None)],
        caption=text,
        folded=text,
    )
    figure = Figure(
        name="x", title=text, caption=text, opening=text, description=text, chart=chart, table=table
    )
    finding = Finding(name="x", severity="note", title=text, evidence=text, advice=text)
    short = replace(finding, title="", advice="")
    section = Section(
        name="s",
        title=text,
        figures=[figure, replace(figure, name="y")],
        findings=[finding, short],
        parts=[text, facts([(text, text)]), replace(table, sortable=False, folded="")],
    )
    tile = Tile(title=text, value=text, note=text)
    return report_page.Page(
        title=text, verdict=text, lead=[text], tiles=[tile], sections=[section]
    ).html()


@pytest.mark.repeats(3)  # texts are escaped by one template engine
@pytest.mark.parametrize("text", [*EVIL, "{{ 7 * 7 }}{% raw %}", "a\u2028\u2029", "é'\"<&>"])
def test_text_of_any_kind_is_text(text):
    page, plain = Page(page_with(text)), Page(page_with("plain"))
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in plain.elements]
    for (_, attributes), (_, expected) in zip(page.elements, plain.elements, strict=True):
        assert attributes == {key: value.replace("plain", text) for key, value in expected.items()}
    for tag in {*page.texts} - {"html", "body", "main", "section", "figure", "script"}:
        # A finding begins with a capital.
        expected = [each.lower().replace("plain", text.lower()) for each in plain.texts[tag]]
        assert [each.lower() for each in page.texts[tag]] == expected
    drawn = values_of(page.specs()["x"], "text")
    assert drawn == [{"text": text}]


def test_a_page_shows_every_text_that_it_is_given():
    page = Page(page_with("plain"))
    counts = {tag: page.texts[tag].count("plain") for tag in ("h1", "h2", "h3", "title", "button")}
    assert counts == {"h1": 1, "h2": 1, "h3": 2, "title": 1, "button": 4}
    counts = {tag: page.texts[tag].count("plain") for tag in ("p", "dt", "dd", "figcaption", "li")}
    assert counts == {"p": 5, "dt": 1, "dd": 2, "figcaption": 5, "li": 1}
    assert page.texts["summary"].count("plain") == 2
    # Two rows of two cells in three tables, and a line of facts.
    assert page.texts["th"].count("plain") == 3 * 2 + 3 * 2 + 1
    assert page.texts["td"].count("plain") == 3 * 2 + 1


def test_text_in_a_notebook_is_text():
    text = "<b>&\"'"
    evaluation = dpo_pipeline.evaluate(of_margins([0.1, -0.2], kind=[text, text]), by="kind")
    invalid = replace(evaluation.invalid, doubts=(), notes=(text,))
    shown = Page(replace(evaluation, source=text, invalid=invalid)._repr_html_())
    assert not shown.all("b")
    assert f"note: {text}" in shown.texts["p"]
    assert f"{text}: 2 pairs, 0 invalid, sigmoid loss, beta 0.1" in shown.texts["strong"]
    assert text in shown.texts["td"]


def as_data(value):
    return templates().from_string("{{ value|tojson }}").render(value=value)


@pytest.mark.parametrize("text", [*EVIL, "\u2028\u2029", "\\u003c", "]]>", "é\N{GRINNING FACE}"])
def test_data_for_scripts_come_back_as_they_were(text):
    inside = as_data({text: [text]})
    assert not set(inside) & set("<>&\u2028\u2029")
    assert json.loads(inside) == {text: [text]}


def test_data_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="JSON"):
        as_data({"x": math.nan})


# Colours


def luminance(colour):
    """Return relative luminance (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_contrast_is_enough_to_read(palette):
    for paper in (palette.paper, palette.panel):
        for text in (palette.ink, palette.muted):
            assert contrast(text, paper) >= 4.5
        for mark in (palette.chosen, palette.rejected, palette.neutral, palette.mark):
            assert contrast(mark, paper) >= 3.0


# G. Machado et al., "A Physiologically-based Model for Simulation of Color Vision
# Deficiency", 2009.
BLIND = {
    "protan": [
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ],
    "deutan": [
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.01182, 0.04294, 0.968881),
    ],
    "tritan": [
        (1.255528, -0.076749, -0.178779),
        (-0.078411, 0.930809, 0.147602),
        (0.004733, 0.691367, 0.3039),
    ],
}


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("kind", BLIND)
def test_the_two_sides_stay_apart_without_a_cone(palette, kind):
    seen = []
    for colour in (palette.chosen, palette.rejected, palette.neutral):
        rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        seen.append(np.clip(np.array(BLIND[kind]) @ linear, 0, 1) ** (1 / 2.4))
    chosen, rejected, neutral = seen
    assert np.linalg.norm(chosen - rejected) > 0.35
    assert np.linalg.norm(chosen - neutral) > 0.12
    assert np.linalg.norm(rejected - neutral) > 0.12
