"""The page of a comparison."""

from __future__ import annotations

import polars as pl
import pytest

import dpo_pipeline
from dpo_pipeline.report.charts import domain_of
from dpo_pipeline.statistics import MINUS
from page_tools import Page, values_of


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
    assert said.replace(MINUS, "-").lower().removesuffix(".") == comparison.verdict.lower()
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
    page = Page(html)
    # The sides, the differences, the subsets, and the flips either way.
    assert len(page.all("table")) == 5
    assert "turns" in page.texts["th"]
    assert page.texts["th"].count("smallest effect") == 1
    smallest = comparison.differences["reward_accuracy"].smallest_effect
    assert f"{100 * smallest:.2g} points" in page.texts["td"]
    assert set(comparison.differences) <= set(page.texts["td"])


def test_the_page_of_a_comparison_tells_of_loss(comparison):
    page = Page(comparison.report())
    assert f"{comparison.loss_verdict}." in page.texts["p"]
    assert not any("less A" in text for text in page.texts["th"])


def test_the_smallest_effect_is_a_tile_only_where_nothing_was_shown(real_pairs):
    worse = real_pairs.with_columns(pl.col("policy_chosen_logps") * 1.1 - 20.0)
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
    with pytest.warns(
        dpo_pipeline.DataWarning, match="(different references|have the same log-probs)"
    ):
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
    with pytest.warns(dpo_pipeline.DataWarning, match="same log-probs"):
        same = dpo_pipeline.compare(pairs, pairs)
    page = Page(same.report())
    assert "There is no pair that only B has right." in page.texts["p"]
    assert any(text == "They are one policy" for text in page.texts["p"])
    assert "same log-probs" in same._repr_html_()


def test_a_lies_along_and_b_up_so_that_above_the_diagonal_is_b():
    compared = dpo_pipeline.compare("examples/pairs.parquet", "examples/policy_b.parquet")
    cells = next(
        layer["encoding"]
        for layer in Page(compared.report()).specs()["margins"]["layer"]
        if "opacity" in layer.get("encoding", {})
    )
    assert (cells["x"]["field"], cells["x"]["axis"]["title"]) == (
        "A_low",
        'margin of A "pairs" (nats)',
    )
    assert (cells["y"]["field"], cells["y"]["axis"]["title"]) == (
        "B_low",
        'margin of B "policy_b" (nats)',
    )
