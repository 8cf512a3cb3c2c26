"""The report: its numbers against the rows by numpy, its page as a parser sees it, its file."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import math
from dataclasses import replace
from html.parser import HTMLParser
from importlib.metadata import version
from itertools import pairwise

import numpy as np
import polars as pl
import pytest

import dpo_pipeline
from dpo_pipeline.errors import StorageError, UsageError
from dpo_pipeline.evaluation.findings import Finding
from dpo_pipeline.exact import bin_of
from dpo_pipeline.options import StatisticsOptions
from dpo_pipeline.report import chart_data, page as report_page
from dpo_pipeline.report.charts import DARK, LIGHT, Figure, framed, label
from dpo_pipeline.report.comparison_page import domain_of
from dpo_pipeline.report.evaluation_page import verdict
from dpo_pipeline.report.page import Section, Tile, templates
from dpo_pipeline.report.table import Column, Table, facts
from dpo_pipeline.statistics import words
from dpo_pipeline.statistics.intervals import Interval

EVIL = ["<script>alert(1)</script>", "</script>", "<!--", '"><img src=x onerror=alert(1)>', "&lt;"]
EMPTY = {"meta", "br", "img", "link", "input"}


class Page(HTMLParser):
    """What a page holds: its elements with their attributes, and the text in each kind."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self.open = [], {}, []
        self.feed(text)
        self.close()
        assert self.open == [], "elements that do not end"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        for tag in {*self.open}:
            self.texts[tag][-1] += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def specs(self):
        scripts = zip(self.all("script"), self.texts["script"], strict=True)
        return {
            attributes["id"].removeprefix("spec-"): json.loads(text)
            for attributes, text in scripts
            if attributes.get("type") == "application/json"
        }


def values_of(spec, *names):
    """Return the first data of a chart that have all these fields."""
    return next(
        rows
        for rows in spec["datasets"].values()
        if rows and all(set(names) <= set(row) for row in rows)
    )


@pytest.fixture(scope="module")
def evaluation(real_pairs):
    return dpo_pipeline.evaluate(real_pairs, by="turns", statistics=True)


@pytest.fixture(scope="module")
def page(evaluation):
    return Page(evaluation.report())


@pytest.fixture(scope="module")
def rows(real_pairs):
    """Margins, rewards, losses and length differences of each pair, by numpy in Float64."""
    named = {name: real_pairs[name].to_numpy().astype(float) for name in real_pairs.columns[-6:]}
    chosen = 0.1 * (named["policy_chosen_logps"] - named["ref_chosen_logps"])
    rejected = 0.1 * (named["policy_rejected_logps"] - named["ref_rejected_logps"])
    margin = chosen - rejected
    return {
        "chosen": chosen,
        "rejected": rejected,
        "margin": margin,
        "loss": np.logaddexp(0.0, -margin),
        "tokens": named["chosen_num_tokens"] - named["rejected_num_tokens"],
    }


# Numbers of the charts


def binned(values):
    return pl.DataFrame({"x": values}).group_by(bin=bin_of(pl.col("x"))).agg(n_pairs=pl.len())


@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0, 1e5])
def test_bars_hold_the_pairs_that_numpy_counts(scale):
    values = np.random.default_rng(0).normal(0.3, 1.0, 4_000) * scale
    grid = chart_data.grid_over(binned(values), 40)
    bars = chart_data.histogram_bars(binned(values), grid, 0)
    edges = [*bars["lower"], bars["upper"][-1]]
    assert 0.0 in edges
    assert 20 <= grid.n <= 84
    assert np.diff(edges) == pytest.approx(np.full(grid.n, grid.step))
    assert bars["n_pairs"].sum() == pytest.approx(4_000)
    inner, open_ended = edges[1:-1], [-np.inf, *edges[1:-1], np.inf]
    counted, _ = np.histogram(values, open_ended)
    # A bin of the sketch that an edge cuts is within this of the edge.
    off = [0.006 * abs(edge) + 6e-5 for edge in inner]
    unsure = [np.sum(abs(values - e) < d) for e, d in zip(inner, off, strict=True)]
    allowed = np.add([0, *unsure], [*unsure, 0]) + 1e-6
    assert np.all(abs(bars["n_pairs"].to_numpy() - counted) <= allowed)


def test_bars_of_smooth_margins_are_smooth():
    # Far out a bin is nearly as wide as a bar: put where their middles are, they make a comb.
    edges = np.linspace(100.0, 200.0, 400_001)
    grid = chart_data.Grid(step=0.4, first=0, n=500)
    bars = chart_data.histogram_bars(binned((edges[1:] + edges[:-1]) / 2), grid, 0)
    inside = bars.filter(pl.col("lower").is_between(102.0, 197.0))["n_pairs"]
    assert inside.min() == pytest.approx(1_600, rel=0.02)
    assert inside.max() == pytest.approx(1_600, rel=0.02)


def test_few_pairs_are_drawn_whole():
    # 0.1 and 0.102 are in bins that the edge at 0.1 would cut.
    values = [-0.1, 0.1, 0.102, 0.3, 3.0]
    grid = chart_data.Grid(step=0.1, first=-2, n=8)
    bars = chart_data.histogram_bars(binned(values), grid, 0)["n_pairs"].to_list()
    assert all(n == int(n) for n in bars)
    assert sum(bars) == 5
    assert bars[-1] == 1
    assert sum(bars[:2]) == 1


def test_ties_are_in_no_bar():
    bars = pl.DataFrame({"bin": [0, 0, 1, -400], "n_pairs": [3, 4, 5, 6]})
    grid = chart_data.Grid(step=0.01, first=-10, n=20)
    made = chart_data.histogram_bars(bars, grid, 5)
    assert made["n_pairs"].sum() == pytest.approx(13)
    assert made.filter(pl.col("lower") == 0.0)["n_pairs"].item() == pytest.approx(5 + 1)
    assert made.filter(pl.col("upper") == 0.0)["n_pairs"].item() == pytest.approx(1)


@pytest.mark.parametrize("bins", [{0: 7}, {400: 3}, {-400: 3}, {0: 1, 1: 1}])
def test_a_grid_of_few_values_has_zero_and_width(bins):
    table = pl.DataFrame({"bin": list(bins), "n_pairs": list(bins.values())})
    grid = chart_data.grid_over(table, 40)
    assert grid.first <= 0 <= grid.first + grid.n
    assert grid.n >= 2
    bars = chart_data.histogram_bars(table, grid, 0)
    assert bars["n_pairs"].sum() == pytest.approx(sum(bins.values()))


def test_cells_hold_the_pairs_of_both_rewards(evaluation, rows):
    cells = chart_data.density(evaluation.statistics.gathered.rewards, x="rejected", y="chosen")
    assert cells["n_pairs"].sum() == pytest.approx(698)
    assert cells.height < 60 * 60
    for side in ("rejected", "chosen"):
        below = cells.filter(pl.col(f"{side}_high") <= 1e-12)["n_pairs"].sum()
        unsure = np.sum(abs(rows[side]) < 2.6e-4)
        assert below == pytest.approx(np.sum(rows[side] < 0.0), abs=unsure + 1e-6)
    low, high = cells["rejected_low"].min(), cells["chosen_high"].max()
    assert low <= 0.0 <= high
    both = cells.filter((pl.col("rejected_high") <= 1e-12) & (pl.col("chosen_low") >= -1e-12))
    expected = np.sum((rows["rejected"] < 0) & (rows["chosen"] > 0))
    assert both["n_pairs"].sum() == pytest.approx(expected, abs=3)


def test_the_course_is_that_of_the_rows(evaluation, rows):
    course = chart_data.course(evaluation.statistics.gathered)
    assert course["n_pairs"].min() > 0
    assert 10 <= course.height <= 100
    for first, last, n, loss, margin, accuracy in course.rows():
        part = slice(first - 1, last)
        assert n == len(rows["loss"][part])
        assert loss == pytest.approx(rows["loss"][part].mean(), abs=1e-9)
        assert margin == pytest.approx(rows["margin"][part].mean(), abs=1e-9)
        assert accuracy == np.mean(rows["margin"][part] > 0)
    assert course["n_pairs"].sum() == 698


def test_groups_of_lengths_are_those_of_the_rows(evaluation, rows):
    groups = chart_data.by_length(evaluation.statistics.gathered.lengths)
    assert groups["n_pairs"].sum() == 698
    assert groups.height > 15
    order = np.argsort(rows["tokens"], kind="stable")
    at = 0
    for tokens, n, margin, accuracy in groups.rows():
        part = order[at : at + n]
        at += n
        assert tokens == pytest.approx(rows["tokens"][part].mean(), rel=0.026, abs=1e-9)
        assert margin == pytest.approx(rows["margin"][part].mean(), abs=1e-9)
        assert accuracy == pytest.approx(np.mean(rows["margin"][part] > 0))


def test_the_loss_of_each_beta_is_that_of_the_rows(evaluation, rows):
    curve = chart_data.loss_by_beta(evaluation.statistics.gathered.margins, 0.1, shown=[0.1, 0.2])
    betas = curve["beta"].to_numpy()
    assert (betas[0], betas[-1]) == (pytest.approx(0.025), pytest.approx(0.8))
    assert np.diff(np.log(betas)) == pytest.approx(np.full(80, math.log(32) / 80))
    for beta, loss in curve.rows():
        expected = np.logaddexp(0.0, -rows["margin"] * beta / 0.1).mean()
        assert loss == pytest.approx(expected, abs=2e-4)


def test_charts_draw_these_numbers(page, evaluation, rows):
    specs = page.specs()
    bars = values_of(specs["margins"], "lower", "n_pairs")
    assert sum(bar["n_pairs"] for bar in bars) == pytest.approx(698, rel=1e-4)
    right = sum(bar["n_pairs"] for bar in bars if bar["side"] == "above")
    assert right == pytest.approx(np.sum(rows["margin"] > 0), abs=0.1)
    own, *rules = values_of(specs["accuracy"], "label", "low")
    assert own["label"] == "implicit rewards"
    assert own["value"] == pytest.approx(np.mean(rows["margin"] > 0), rel=1e-5)
    longer = next(rule for rule in rules if rule["label"] == "longer completion")
    assert longer["value"] == pytest.approx(np.mean(rows["tokens"] > 0), rel=1e-5)
    subsets = values_of(specs["subsets"], "label", "low")
    expected = evaluation.subsets
    assert [row["label"] for row in subsets] == [
        f"{turns} ({n})" for turns, n in expected.select("turns", "n_valid").rows()
    ]
    assert [row["value"] for row in subsets] == pytest.approx(
        expected["reward_accuracy"].to_list(), rel=1e-5
    )
    assert values_of(specs["betas"], "beta", "loss")[0]["beta"] < 0.1


# Words


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        pytest.param(words.share(0.65585), "65.6%", id="share"),
        pytest.param(words.share(0.0), "0.0%", id="none"),
        pytest.param(words.share(1.0), "100.0%", id="all"),
        pytest.param(words.share(0.0001), "<0.1%", id="hardly any"),
        pytest.param(words.share(0.99999), ">99.9%", id="nearly all"),
        pytest.param(words.share(None), "–", id="no share"),  # noqa: RUF001
        pytest.param(words.number(0.62084), "0.6208", id="number"),
        pytest.param(words.number(-0.62084), "−0.6208", id="minus"),  # noqa: RUF001
        pytest.param(words.number(196.0123), "196.0", id="hundreds"),
        pytest.param(words.number(12345.6), "12,346", id="thousands"),
        pytest.param(words.number(0.0), "0", id="zero"),
        pytest.param(words.number(1.5e9), "1.500e+09", id="huge"),
        pytest.param(words.number(2e-7, 3), "2.00e−07", id="tiny"),  # noqa: RUF001
        pytest.param(words.number(math.nan), "nan", id="not a number"),
        pytest.param(words.as_written(-0.12345678), "-0.12345678", id="as it is"),
        pytest.param(words.number(None), "–", id="no number"),  # noqa: RUF001
        pytest.param(words.points(-0.0063), "−0.630 pt", id="points"),  # noqa: RUF001
        pytest.param(words.p_value(0.00004), "<0.001", id="small p"),
        pytest.param(words.p_value(0.0314), "0.031", id="p"),
        pytest.param(words.as_written(None), "(null)", id="null"),
        pytest.param(words.as_written("  "), "(empty)", id="blank"),
        pytest.param(words.counted(1, "pair"), "1 pair", id="one"),
        pytest.param(words.counted(2000, "pair"), "2,000 pairs", id="many"),
    ],
)
def test_numbers_are_written_as_people_do(written, expected):
    assert written == expected


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        pytest.param(0.5, 0.7, "62.8%", id="20 points"),
        pytest.param(0.62, 0.6301, "62.8%", id="1 point"),
        pytest.param(0.627, 0.6281, "62.77%", id="a tenth of a point"),
        pytest.param(0.6276, 0.62771, "62.765%", id="a hundredth"),
        pytest.param(0.627653, 0.627653 + 1e-12, "62.7653%", id="nothing"),
        pytest.param(0.6, 0.6, "62.8%", id="no width"),
    ],
)
def test_a_share_has_the_digits_that_are_known(low, high, expected):
    interval = Interval(low=low, high=high, level=0.95, method="")
    assert words.share_within(interval)(0.627653) == expected


def test_an_interval_in_words():
    interval = Interval(low=0.5, high=0.625, level=0.975, method="")
    assert words.between(interval, words.share) == "50.0% to 62.5%"
    assert words.between(None) == "–"  # noqa: RUF001


@pytest.mark.parametrize(
    ("right", "told"),
    [
        pytest.param(90, "better than a coin toss", id="better"),
        pytest.param(10, "worse than a coin toss", id="worse"),
        pytest.param(52, "not told apart from a coin toss", id="open"),
    ],
)
def test_the_verdict(right, told):
    signs = [1.0 if i < right else -1.0 for i in range(100)]
    evaluation = dpo_pipeline.evaluate(of_margins(signs), statistics=True)
    said = verdict(evaluation, evaluation.statistics)
    assert said.startswith(f"The chosen completion has the higher reward in {right}.0% (95% int")
    assert said.endswith(f"of 100 pairs: {told}.")


@pytest.mark.filterwarnings("ignore::dpo_pipeline.DataWarning")
@pytest.mark.parametrize(
    ("n", "beta", "said"),
    [
        pytest.param(30, 0.1, "All 30 pairs are ties", id="equal models"),
        pytest.param(30, 0.0, "All 30 pairs are ties", id="beta 0"),
        pytest.param(1, 0.1, "The pair is a tie", id="one pair"),
    ],
)
def test_rewards_that_are_all_ties_prefer_nothing(n, beta, said):
    pairs = of_margins([0.0 if beta else 0.5] * n)
    evaluation = dpo_pipeline.evaluate(pairs, beta=beta, statistics=True)
    assert verdict(evaluation, evaluation.statistics) == f"{said}: the rewards prefer nothing."
    page = Page(evaluation.report())
    assert "rewards" not in page.specs()
    assert not any("best rule without rewards" in text for text in page.texts["p"])


@pytest.mark.parametrize(
    ("margins", "said"),
    [
        # The reference prefers the chosen completion of every pair.
        pytest.param([0.3, 0.4], "the rewards are level (", id="level"),
        pytest.param([0.3, 0.0], "the rewards are 50.0 points (", id="a tie"),
    ],
)
def test_the_lead_says_how_the_rewards_stand(margins, said):
    page = Page(dpo_pipeline.evaluate(of_margins(margins * 20), statistics=True).report())
    (lead,) = [text for text in page.texts["p"] if text.startswith("The best rule")]
    assert said in lead
    assert lead.endswith(") with it." if "level" in said else ") behind it. A tie counts as wrong.")


@pytest.mark.parametrize(
    ("loss", "title", "in_table"),
    [
        pytest.param("sigmoid", "Mean loss (nats)", "mean loss, nats", id="DPO"),
        pytest.param("simpo", "Mean loss (nats)", "mean loss, nats", id="SimPO"),
        pytest.param("ipo", "Mean loss", "mean loss", id="IPO"),
        pytest.param("hinge", "Mean loss", "mean loss", id="hinge"),
    ],
)
def test_a_loss_has_a_unit_where_it_is_a_log_likelihood(loss, title, in_table):
    tokens = {f"{side}_num_tokens": [7, 9] * 40 for side in ("chosen", "rejected")}
    pairs = of_margins([0.1, -0.2] * 40, **tokens)
    evaluation = dpo_pipeline.evaluate(pairs, loss=loss, statistics=True)
    page = Page(evaluation.report())
    assert in_table in page.texts["th"]
    assert title in page.texts["dt"]
    course = json.dumps(page.specs()["course"])
    assert ("mean loss (nats)" in course) == (title != "Mean loss")
    (said,) = [t for t in page.texts["figcaption"] if t.startswith("Mean loss of")]
    assert ("nats" in said) == (title != "Mean loss")


def test_the_best_beta_is_of_the_dpo_loss():
    pairs = of_margins([0.1, 0.3, -0.2] * 20)
    for loss, said in (("ipo", "Best beta of the DPO loss (0.1"), ("sigmoid", "Best beta (0.1")):
        page = Page(dpo_pipeline.evaluate(pairs, loss=loss, statistics=True).report())
        assert any(text.startswith(said) for text in page.texts["dt"])


@pytest.mark.parametrize(
    ("margins", "said"),
    [
        pytest.param(
            [0.1, 0.5], "every margin is above 0, so the loss keeps falling as beta grows"
        ),
        pytest.param([0.0, 0.5], "no margin is below 0, so the loss keeps falling as beta grows"),
        pytest.param([-0.1, -0.5], "every margin is below 0, so the loss keeps falling as beta n"),
        pytest.param([-0.1, 0.0], "no margin is above 0, so the loss keeps falling as beta nears"),
        pytest.param([-0.5, 0.1], "margins are below 0 on the whole, so the loss keeps falling as"),
        pytest.param([0.0, 0.0], "all margins are 0, so beta changes nothing"),
    ],
)
@pytest.mark.filterwarnings("ignore::dpo_pipeline.DataWarning")
def test_it_is_said_why_no_beta_is_best(margins, said):
    page = Page(dpo_pipeline.evaluate(of_margins(margins), statistics=True).report())
    captions = page.texts["figcaption"]
    assert any(text.startswith(f"No beta is best: {said}") for text in captions)


def test_one_run_is_no_course():
    page = Page(dpo_pipeline.evaluate(of_margins([0.1, -0.2]), statistics=True).report())
    assert "course" not in page.specs()
    assert "(empty)" not in page.texts["td"]


def test_no_finding_is_no_praise(evaluation, monkeypatch):
    monkeypatch.setattr(type(evaluation), "findings", ())
    page = Page(evaluation.report())
    assert "No check found anything wrong with these figures." in page.texts["p"]


def of_margins(margins, **columns):
    """Return pairs whose log-ratio differences are these, ten times the margin at beta 0.1."""
    n = len(margins)
    return pl.DataFrame(
        {
            "policy_chosen_logps": [-50.0 - i % 5 + 10.0 * m for i, m in enumerate(margins)],
            "policy_rejected_logps": [-60.0 - i % 3 for i in range(n)],
            "ref_chosen_logps": [-50.0 - i % 5 for i in range(n)],
            "ref_rejected_logps": [-60.0 - i % 3 for i in range(n)],
            **columns,
        }
    )


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


def test_text_in_a_notebook_is_text(monkeypatch):
    text = "<b>&\"'"
    evaluation = dpo_pipeline.evaluate(of_margins([0.1, -0.2], kind=[text, text]), by="kind")
    monkeypatch.setattr(type(evaluation), "warnings", (text,))
    shown = Page(replace(evaluation, source=text)._repr_html_())
    assert not shown.all("b")
    assert shown.texts["li"] == [text]
    assert shown.texts["strong"][0].startswith(f"{text}: 2 pairs")
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


# The page


def test_the_page_is_one_file_with_headings_and_landmarks(page):
    names = [name for name, _ in page.elements]
    assert [names.count(each) for each in ("h1", "main", "header", "footer", "nav")] == [1] * 5
    assert page.all("html")[0]["lang"] == "en"
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for link in page.all("a"):
        assert link["href"].removeprefix("#") in ids
    for section in page.all("section"):
        assert section["aria-labelledby"] in ids
    levels = [int(name[1]) for name in names if name in {"h1", "h2", "h3"}]
    assert all(b - a <= 1 for a, b in pairwise(levels))


def test_nothing_is_loaded(page):
    for tag, attributes in page.elements:
        assert tag not in {"link", "img", "iframe", "object", "base"}
        assert not {"src", "srcset", "data"} & set(attributes)
    assert "@import" not in page.texts["style"][0]
    assert "url(" not in page.texts["style"][0]
    (policy,) = (meta["content"] for meta in page.all("meta") if meta.get("http-equiv") is not None)
    assert policy.startswith("default-src 'none';")
    scripts = [
        text
        for attributes, text in zip(page.all("script"), page.texts["script"], strict=True)
        if attributes.get("type") == "module"
    ]
    assert len(scripts) == 2
    for text in scripts:
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert "unsafe-inline" not in policy.split("script-src")[1].split(";")[0]


def test_every_chart_has_words(page):
    charts = [attributes for _, attributes in page.elements if "data-spec" in attributes]
    assert len(charts) == len(page.specs()) == 8
    for chart in charts:
        assert chart["role"] == "img"
        assert len(chart["aria-label"]) > 40
    captions = " ".join(page.texts["figcaption"])
    for text in ("698 valid pairs", "698 pairs", "698 pairs with token counts"):
        assert text in captions


def test_the_licence_of_what_draws_is_there(page):
    (notice,) = page.texts["pre"]
    assert "University of Washington Interactive Data Lab" in notice
    assert "Redistributions in binary form must reproduce" in notice


def test_the_page_says_how_it_was_computed(page, evaluation):
    text = " ".join(page.texts["td"])
    assert f"dpo_pipeline {version('dpo_pipeline')}" in text
    assert "policy_chosen_logps" in text
    for finding in evaluation.findings:
        assert any(finding.evidence[1:] in each for each in page.texts["p"])
    assert page.texts["title"] == ["pairs: sigmoid loss, beta 0.1"]


def test_the_same_evaluation_gives_the_same_bytes(real_pairs):
    pages = {
        dpo_pipeline.evaluate(real_pairs, by="turns", statistics=True).report() for _ in range(3)
    }
    assert len(pages) == 1


def test_text_of_the_dataset_is_escaped_everywhere(real_pairs, tmp_path):
    name = '"><script>alert(2)</script>'
    texts = pl.Series(name, [EVIL[i % len(EVIL)] for i in range(698)])
    keys = pl.Series("pair_id", [f"<script>alert({i})</script>" for i in range(698)])
    path = tmp_path / "<script>alert(3)<"
    path.mkdir()
    path /= "script>.parquet"
    real_pairs.with_columns(texts, keys).write_parquet(path)
    evaluation = dpo_pipeline.evaluate(path, by=name, statistics=True)
    page = Page(evaluation.report())
    kinds = [attributes.get("type") for attributes in page.all("script")]
    assert kinds == ["application/json"] * 8 + ["module"] * 2
    assert not page.all("img")
    heads = page.texts["th"]
    assert set(EVIL) <= set(heads)
    assert name in heads
    assert any(each.startswith("<script>alert(") and each.endswith("</script>") for each in heads)
    labels = {row["label"] for row in values_of(page.specs()["subsets"], "label", "low")}
    assert {label.rpartition(" (")[0] for label in labels} == set(EVIL)
    assert page.texts["title"][0].startswith(str(path))

    notebook = Page(evaluation._repr_html_())
    assert not notebook.all("script")
    assert set(EVIL) <= set(notebook.texts["td"])


def test_forty_subsets_are_drawn_and_all_are_listed():
    sizes = {f"s{i:02}": 2 + i for i in range(60)}
    kinds = [name for name, n in sizes.items() for _ in range(n)]
    pairs = of_margins([(-1) ** i * 0.5 for i in range(len(kinds))], kind=kinds)
    page = Page(dpo_pipeline.evaluate(pairs, by="kind", statistics=True).report())
    drawn = [row["label"] for row in values_of(page.specs()["subsets"], "label", "low")]
    assert drawn == [f"{name} ({n})" for name, n in sizes.items() if n >= 22]
    assert set(sizes) <= set(page.texts["th"])
    assert any("the 40 largest of 60 subsets" in each for each in page.texts["figcaption"])


def test_labels_that_look_alike_stay_two_rows():
    kinds = [None, "(null)", None, "(null)"]
    pairs = of_margins([0.1, 0.2, -0.3, 0.4], kind=kinds)
    page = Page(dpo_pipeline.evaluate(pairs, by="kind", statistics=True).report())
    drawn = [row["label"] for row in values_of(page.specs()["subsets"], "label", "low")]
    assert sorted(drawn) == ["(null) (2)", "(null) (2) [2]"]


def test_the_size_does_not_grow_with_the_rows():
    generator = np.random.default_rng(1)

    def size(n):
        pairs = of_margins(
            generator.normal(0.3, 1.0, n).tolist(),
            chosen_num_tokens=generator.integers(1, 500, n),
            rejected_num_tokens=generator.integers(1, 500, n),
            kind=generator.integers(0, 12, n),
            policy_rejected_logps=generator.normal(-60, 8, n).clip(max=-1),
        )
        return len(dpo_pipeline.evaluate(pairs, by="kind", statistics=True).report().encode())

    small, large = size(2_000), size(200_000)
    assert max(small, large) < 1_500_000
    assert large - small < 60_000


CASES = {
    "one pair": (of_margins([0.3]), {}),
    "all ties": (of_margins([0.0] * 30), {}),
    "all right": (of_margins([0.1, 0.5, 2.0]), {}),
    "all wrong": (of_margins([-0.1, -0.5, -2.0]), {}),
    "some ties": (of_margins([0.0, 0.0, 0.4, -0.3]), {}),
    "tiny margins": (of_margins([1e-7, -2e-7, 3e-7]), {}),
    "huge margins": (of_margins([-4e4, -1e3, -7.0]), {}),
    "no reference": (of_margins([0.1, -0.2] * 9), {"loss": "cpo"}),
    "another loss": (of_margins([0.1, -0.2] * 9), {"loss": "ipo"}),
    "beta 0": (of_margins([0.1, -0.2] * 9), {"beta": 0.0}),
    "not linear": (
        of_margins([0.1, -0.2] * 9),
        {"loss_args": {"f_divergence": "js_divergence"}},
    ),
    "prompts": (of_margins([0.1, -0.2, 0.3] * 9, prompt_id=[i // 3 for i in range(27)]), {}),
    "one length": (
        of_margins([0.1, -0.2], chosen_num_tokens=[3, 3], rejected_num_tokens=[3, 3]),
        {},
    ),
    "no length": (
        of_margins([0.1, -0.2], chosen_num_tokens=[None, 2], rejected_num_tokens=[3, None]).cast(
            {"chosen_num_tokens": pl.Int64, "rejected_num_tokens": pl.Int64}
        ),
        {},
    ),
    "a judge": (
        of_margins([0.1, -0.2, 0.4] * 9, gap=[1.0, -1.0, 2.0] * 9),
        {"statistics": StatisticsOptions(judge="gap", level=0.9)},
    ),
    "invalid": (
        pl.concat([of_margins([0.1, -0.2, 0.4]), of_margins([math.nan])]),
        {"on_invalid": "exclude"},
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore::dpo_pipeline.DataWarning")
def test_any_evaluation_has_a_report(case):
    pairs, arguments = CASES[case]
    evaluation = dpo_pipeline.evaluate(pairs, **{"statistics": True, **arguments})
    page = Page(evaluation.report())
    specs = page.specs()
    n = evaluation.summary.n_valid - evaluation.summary.n_ties
    bars = values_of(specs["margins"], "lower", "n_pairs")
    assert sum(bar["n_pairs"] for bar in bars) == pytest.approx(n, rel=1e-4)
    text = " ".join(page.texts["p"])
    assert "nan" not in text.lower().split()
    assert set(evaluation.charts()) == set(specs)
    assert ("judge" in specs) == (case == "a judge")
    assert ("betas" in specs) == (case not in {"beta 0", "not linear"})
    assert f"{100 * evaluation.statistics.level:g}% interval" in " ".join(page.texts["th"])


def test_invalid_pairs_are_listed():
    pairs, arguments = CASES["invalid"]
    page = Page(dpo_pipeline.evaluate(pairs, statistics=True, **arguments).report())
    assert "policy_chosen_logps.not_nan" in page.texts["th"]
    assert any("row 3: nan" in cell for cell in page.texts["td"])
    assert any("1 pair of 4 broke the contract" in each for each in page.texts["figcaption"])
    assert any("1 pair of 4 broke the contract" in each for each in page.texts["p"])


def test_charts_are_altair_objects_in_real_colours(evaluation):
    charts = evaluation.charts()
    assert list(charts)[:3] == ["margins", "accuracy", "subsets"]
    for name, chart in charts.items():
        spec = chart.to_dict()
        assert spec["title"], name
        assert "var(" not in json.dumps(spec)
        assert LIGHT.ink in json.dumps(spec)


# Comparisons


@pytest.fixture(scope="module")
def comparison(real_pairs):
    noise = pl.Series(np.random.default_rng(2).normal(-0.4, 1.0, real_pairs.height))
    other = real_pairs.with_columns((pl.col("policy_chosen_logps") + noise).clip(upper_bound=0))
    return dpo_pipeline.compare(real_pairs, other, by="turns")


def test_a_comparison_has_its_own_page(comparison):
    page = Page(comparison.report())
    specs = page.specs()
    assert (
        list(specs)
        == ["differences", "margins", "changes"]
        == list(dict.fromkeys(["differences", "margins", *comparison.charts()]))
    )
    (said,) = (
        text
        for attributes, text in zip(page.all("p"), page.texts["p"], strict=True)
        if attributes.get("class") == "verdict"
    )
    assert said.lower().removesuffix(".") == comparison.verdict.lower()
    bars = values_of(specs["changes"], "lower", "n_pairs")
    changed = comparison.changes.filter(pl.col("bin") != 0)["n_pairs"].sum()
    assert sum(bar["n_pairs"] for bar in bars) == pytest.approx(changed, rel=1e-4)
    overall, *subsets = values_of(specs["differences"], "label", "low")
    found = comparison.differences["reward_accuracy"].estimate
    assert overall["value"] == pytest.approx(100 * found.value, rel=1e-5)
    assert overall["low"] == pytest.approx(100 * found.interval.low, rel=1e-5)
    assert len(subsets) == comparison.subsets.height
    cells = page.texts["td"]
    for count in (comparison.mcnemar.only_a, comparison.mcnemar.only_b):
        assert f"{count}" in cells
    assert "698, 698 valid on both sides" in cells


def test_a_comparison_in_a_notebook_has_subsets_and_the_smallest_effect(comparison):
    html = comparison._repr_html_()
    assert html.count("<table") == 2
    assert '<th scope="col">turns</th>' in html
    assert html.count(">smallest effect</th>") == 1
    smallest = comparison.differences["reward_accuracy"].smallest_effect
    assert f"{100 * smallest:.2f} pt" in html
    rows = comparison.subsets.height + len(comparison.differences)
    assert html.count("<tr>") == rows + 2


def test_the_page_of_a_comparison_tells_of_loss(comparison):
    page = Page(comparison.report())
    assert f"{comparison.loss_verdict}." in page.texts["p"]
    assert not any("less A" in text for text in page.texts["th"])


def test_the_smallest_effect_is_a_tile_only_where_nothing_was_shown(real_pairs):
    worse = real_pairs.with_columns(pl.col("policy_chosen_logps") - 30.0)
    shown = dpo_pipeline.compare(real_pairs, worse)
    assert shown.better == "a"
    title = "Smallest effect that shows"
    assert title not in shown.report()
    few = dpo_pipeline.compare(
        real_pairs.head(20), worse.head(20).with_columns(pl.col("policy_chosen_logps") + 29.9999)
    )
    assert few.better is None
    assert title in few.report()


def test_other_references_are_a_problem_on_the_page(real_pairs):
    other = real_pairs.with_columns(pl.col("ref_chosen_logps") - 5.0)
    with pytest.warns(dpo_pipeline.DataWarning, match="different references"):
        found = dpo_pipeline.compare(real_pairs, other)
    html = found.report()
    assert '<li class="problem">' in html
    assert "No verdict: A and B were scored against different references" in html


def test_a_tiny_subset_does_not_widen_the_scale_of_differences():
    rows = pl.DataFrame(
        {
            "value": [1.0, -2.0, 50.0],
            "low": [0.0, -6.0, -90.0],
            "high": [2.0, 4.0, 100.0],
            "n_pairs": [500, 30, 29],
        }
    )
    # 10 points and 3% of them at either end.
    assert domain_of(rows) == pytest.approx((-6.3, 4.3))


def test_the_chart_of_differences_has_that_scale(comparison):
    spec = comparison.charts()["differences"].to_dict()
    domains = [layer["encoding"]["x"]["scale"]["domain"] for layer in spec["layer"]]
    assert len({tuple(domain) for domain in domains}) == 1
    small = comparison.subsets.filter(pl.col("n_valid") < 30)
    assert small.height
    assert (
        domains[0][1] - domains[0][0] < 100 * (small["accuracy_high"] - small["accuracy_low"]).max()
    )
    assert all(layer["mark"]["clip"] for layer in spec["layer"])


def test_a_comparison_without_subsets_and_without_change(pairs):
    with pytest.warns(dpo_pipeline.DataWarning, match="same margin"):
        same = dpo_pipeline.compare(pairs, pairs)
    page = Page(same.report())
    assert "There is no pair that only B has right." in page.texts["p"]
    assert any("two copies" in text for text in page.texts["p"])
    assert "same margin" in same._repr_html_()


# The file


def test_a_report_is_written_once_and_replaced_on_demand(evaluation, tmp_path):
    path = tmp_path / "report.html"
    text = evaluation.report()
    assert evaluation.report(path) is None
    assert path.read_text(encoding="utf-8") == text
    with pytest.raises(StorageError, match="overwrite"):
        evaluation.report(path)
    path.write_text("old")
    evaluation.report(path, overwrite=True)
    assert path.read_text(encoding="utf-8") == text
    assert [each.name for each in tmp_path.iterdir()] == ["report.html"]


def test_a_report_does_not_go_to_a_dash(evaluation, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="goes to a file"):
        evaluation.report("-")
    with pytest.raises(UsageError, match="goes to a file"):
        dpo_pipeline.evaluate(tmp_path / "nothing.parquet", report="-")
    assert list(tmp_path.iterdir()) == []


def test_a_report_needs_statistics(real_pairs):
    plain = dpo_pipeline.evaluate(real_pairs)
    for asked in (plain.report, plain.charts):
        with pytest.raises(UsageError, match="statistics=True"):
            asked()


def test_outputs_appear_together_or_not_at_all(real_pairs, tmp_path, monkeypatch):
    outputs = {"report": tmp_path / "report.html", "summary": tmp_path / "summary.json"}
    result = dpo_pipeline.evaluate(real_pairs, **outputs)
    assert result.statistics is not None
    assert outputs["report"].read_text(encoding="utf-8") == result.report()
    assert outputs["summary"].exists()
    for path in outputs.values():
        path.unlink()

    def broken(*_):
        raise RuntimeError("no page today")

    monkeypatch.setattr("dpo_pipeline.report.pages.page_of", broken)
    with pytest.raises(RuntimeError, match="no page today"):
        dpo_pipeline.evaluate(real_pairs, **outputs)
    assert list(tmp_path.iterdir()) == []


def test_a_report_does_not_replace_its_input(real_pairs, tmp_path):
    path = tmp_path / "pairs.parquet"
    real_pairs.write_parquet(path)
    with pytest.raises(StorageError, match="also an input"):
        dpo_pipeline.evaluate(path, report=path, overwrite=True)
    both = tmp_path / "x"
    with pytest.raises(StorageError, match="two outputs"):
        dpo_pipeline.evaluate(path, report=both, summary=both)


def test_the_extra_is_missed_before_anything_is_read(evaluation, monkeypatch, tmp_path):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "dpo_pipeline.arguments.find_spec",
        lambda name: None if name == "vl_convert" else found(name),
    )
    for asked in (evaluation.report, evaluation.charts):
        with pytest.raises(UsageError, match=r"pip install 'dpo_pipeline\[report\]'"):
            asked()
    with pytest.raises(UsageError, match="vl_convert"):
        dpo_pipeline.evaluate(tmp_path / "nothing.parquet", report=tmp_path / "report.html")
    assert "<table>" in evaluation._repr_html_()


def test_a_notebook_shows_the_figures(evaluation, real_pairs):
    shown = Page(evaluation._repr_html_())
    cells = shown.texts["td"]
    assert "rewards/accuracies" in cells
    assert words.share(evaluation.summary.reward_accuracy) in cells
    assert "95% interval" in shown.texts["th"]
    plain = Page(dpo_pipeline.evaluate(real_pairs, by="turns")._repr_html_())
    assert "95% interval" not in plain.texts["th"]
    assert words.number(evaluation.summary.loss) in plain.texts["td"]
