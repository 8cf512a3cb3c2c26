"""The page of an evaluation: whole, self-contained, and the same bytes every time."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from importlib.metadata import version
from itertools import pairwise

import numpy as np
import polars as pl
import pytest

import dpo_pipeline
from dpo_pipeline.options import StatisticsOptions
from dpo_pipeline.report.charts import LIGHT
from dpo_pipeline.statistics import MINUS
from option_tools import grouped
from page_tools import EVIL, Page, of_margins, values_of

pytestmark = pytest.mark.usefixtures("few_groups")


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
    assert scripts[0] != scripts[1]  # the charts, and the page itself
    for text in scripts:
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert "unsafe-inline" not in policy.split("script-src")[1].split(";")[0]
    assert "unsafe-eval" not in policy


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
        said = (each.replace(MINUS, "-") for each in page.texts["p"])
        assert any(finding.evidence[1:] in each for each in said)
    assert page.texts["title"] == ["pairs: sigmoid loss, beta 0.1"]


def test_the_same_evaluation_gives_the_same_bytes(real_pairs, text, monkeypatch):
    monkeypatch.undo()  # as many groups as the other one
    again = dpo_pipeline.evaluate(real_pairs, by="turns", statistics=True)
    assert again.report() == text


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
    right = dict.fromkeys(sizes, 0)
    for i, name in enumerate(kinds):
        right[name] += i % 2 == 0
    # Equal accuracies keep the order of their names.
    by_effect = sorted(
        (name for name, n in sizes.items() if n >= 22), key=lambda name: -right[name] / sizes[name]
    )
    assert drawn == [f"{name} ({sizes[name]})" for name in by_effect]
    assert set(sizes) <= set(page.texts["th"])
    assert any("the 40 largest of 60 subsets" in each for each in page.texts["figcaption"])


def test_labels_that_look_alike_stay_two_rows():
    kinds = [None, "(null)", None, "(null)"]
    pairs = of_margins([0.1, 0.2, -0.3, 0.4], kind=kinds)
    page = Page(dpo_pipeline.evaluate(pairs, by="kind", statistics=True).report())
    drawn = [row["label"] for row in values_of(page.specs()["subsets"], "label", "low")]
    assert sorted(drawn) == ["(null) (2)", "(null) (2) [2]"]


@pytest.mark.outside  # most of a page is the script of all charts, which is made here
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

    small, large = size(500), size(5_000)
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


# `test_words` renders pages of ties and of another loss, a test below one of invalid pairs. All
# right is all wrong in a mirror.
RENDERED_ELSEWHERE = {"all ties", "all right", "some ties", "another loss", "invalid"}


@pytest.mark.repeats(3)  # others are rendered by tests of their own charts
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=pytest.mark.slow if case in RENDERED_ELSEWHERE else ())
        for case in CASES
    ],
)
@pytest.mark.filterwarnings("ignore::dpo_pipeline.DataWarning")
def test_any_evaluation_has_a_report(case):
    pairs, arguments = CASES[case]
    evaluation = dpo_pipeline.evaluate(pairs, **grouped(**{"statistics": True, **arguments}))
    page = Page(evaluation.report())
    specs = page.specs()
    n = evaluation.summary.n_valid - evaluation.summary.n_ties
    bars = values_of(specs["margins"], "lower", "n_pairs")
    assert sum(bar["n_pairs"] for bar in bars) == pytest.approx(n, rel=1e-4)
    text = " ".join(page.texts["p"])
    assert "nan" not in text.lower().split()
    if case in {"a judge", "beta 0", "no length"}:  # which leave charts out, or have more
        assert set(evaluation.charts()) == set(specs)
    assert ("judge" in specs) == (case == "a judge")
    assert ("betas" in specs) == (case not in {"beta 0", "not linear"})
    assert f"{100 * evaluation.statistics.level:g}% interval" in " ".join(page.texts["th"])


def test_invalid_pairs_are_listed():
    pairs, arguments = CASES["invalid"]
    page = Page(dpo_pipeline.evaluate(pairs, **grouped(statistics=True, **arguments)).report())
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
