"""Every result of the library, in every form: a screen at most, tables with intervals, no loss."""

from __future__ import annotations

import csv
import io
import json
import re

import polars as pl
import pytest

import dpo_pipeline
from dpo_pipeline.tables import Table
from page_tools import Page
from pair_tools import ROOT

PAIRS, OTHER, BROKEN = (
    str(ROOT / "examples" / f"{name}.parquet") for name in ("pairs", "policy_b", "broken")
)


@pytest.fixture(scope="module")
def results():
    evaluation = dpo_pipeline.evaluate(PAIRS, by="split", statistics=True)
    plan = dpo_pipeline.dry_run(dpo_pipeline.evaluate, PAIRS, by="split")
    return {
        "evaluation": evaluation,
        "plain": dpo_pipeline.evaluate(PAIRS),
        "statistics": evaluation.statistics,
        "comparison": dpo_pipeline.compare(PAIRS, OTHER, by="turns"),
        "sweep": dpo_pipeline.sweep(PAIRS, [0.05, 0.1, 0.5], by="split"),
        "check": dpo_pipeline.check(BROKEN),
        "plan": plan,
        "facts": plan.facts,
    }


NAMES = ("evaluation", "plain", "statistics", "comparison", "sweep", "check", "plan", "facts")


@pytest.mark.parametrize("name", NAMES)
def test_a_repr_is_at_most_a_screen(results, name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = repr(results[name]).split("\n")
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert str(results[name]).startswith(lines[0])


def test_what_results_hold_is_short_too(results):
    evaluation = results["evaluation"]
    for each in (evaluation.statistics.gathered, evaluation.summary, results["comparison"].a):
        assert len(repr(each)) < 24 * 80
    assert "lowest=20" in repr(evaluation.statistics.gathered)


@pytest.mark.parametrize("width", [60, 100, 200])
@pytest.mark.parametrize("name", NAMES)
def test_text_fits_the_width(results, name, width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    for line in str(results[name]).split("\n"):
        assert len(line) <= width or "/examples/" in line


@pytest.mark.parametrize("name", NAMES)
def test_every_form_has_the_first_sentence_and_the_tables(results, name):
    result = results[name]
    first = str(result).split("\n")[0].split(" (")[0]
    page = Page(result._repr_html_())
    tables = sum(isinstance(part, Table) for part in result.to_parts())
    assert len(page.all("table")) == tables > 0
    assert result.to_latex().count(r"\begin{tabular}") == tables
    assert result.to_markdown().count("\n| ---") == tables
    if name != "statistics":
        assert first in page.texts["strong"][0]
    json.loads(result.to_json())
    rows = list(csv.reader(io.StringIO(result.to_csv())))
    assert rows[0] == result.to_frame().columns
    assert len(rows) == 1 + result.to_frame().height


@pytest.mark.parametrize("name", ["evaluation", "statistics", "comparison"])
def test_notebooks_show_intervals(results, name):
    assert "95% interval" in Page(results[name]._repr_html_()).texts["th"]


def test_the_frame_of_an_evaluation_has_its_figures(results):
    plain, whole = results["plain"], results["evaluation"]
    frame = plain.to_frame()
    row = frame.row(by_predicate=pl.col("figure") == "reward_accuracy", named=True)
    interval = plain.accuracy.interval
    assert row["value"] == plain.summary.reward_accuracy
    assert (row["low"], row["high"], row["level"]) == (interval.low, interval.high, 0.95)
    by_split = whole.to_frame()
    assert by_split["split"].to_list() == ["test", "train"]
    assert by_split["loss"].to_list() == whole.subsets["loss"].to_list()
    assert by_split["p_holm"].to_list() == whole.statistics.subsets["p_holm"].to_list()


def test_the_frame_of_a_comparison_has_its_differences(results):
    frame = dpo_pipeline.compare(PAIRS, OTHER).to_frame()
    found = results["comparison"].differences["loss"]
    row = frame.row(by_predicate=pl.col("figure") == "loss", named=True)
    assert (row["a"], row["b"], row["p_value"]) == (found.a, found.b, found.p_value)
    assert row["difference_low"] == found.estimate.interval.low


def test_figures_are_printed_once(results):
    text = str(results["evaluation"])
    for figure in ("loss ", "rewards/accuracies ", "brier ", "prefer: longer "):
        assert sum(line.startswith(figure) for line in text.split("\n")) == 1
    # They are the loss and the accuracy, under other names.
    assert "log_loss" not in text
    assert "reward_accuracy_half" not in text
    assert not any(line.startswith("reward_accuracy ") for line in text.split("\n"))
    assert text.count("p (Holm)") == 2  # a head, and the hypothesis in a note
    assert "of an accuracy of 1/2" in text


def test_statistics_without_token_counts_say_what_is_left_out(real_pairs):
    counts = ["chosen_num_tokens", "rejected_num_tokens"]
    with_counts = dpo_pipeline.evaluate(real_pairs.head(60), statistics=True)
    without = dpo_pipeline.evaluate(real_pairs.head(60).drop(counts), statistics=True)
    said = "length statistics are left out: no token counts"
    assert said in str(without)
    assert said not in str(with_counts)


def test_the_package_says_its_version():
    assert dpo_pipeline.__version__ == json.loads(dpo_pipeline.check(BROKEN).to_json()).get(
        "dpo_pipeline", dpo_pipeline.evaluate(PAIRS).to_dict()["dpo_pipeline"]
    )


def test_subsets_of_long_values_fit_and_are_cut(monkeypatch):
    """A prompt as a subset: its words stand below each other, and none is lost."""
    monkeypatch.setenv("COLUMNS", "100")
    words = pl.lit(" and words of a prompt" * 8)
    prompt = pl.concat_str(pl.format("Question {}:", pl.int_range(pl.len())), words)
    frame = pl.read_parquet(PAIRS).head(70).with_columns(prompt=prompt)
    moved = pl.col("policy_chosen_logps") - pl.int_range(pl.len()) % 3
    other = frame.with_columns(policy_chosen_logps=moved)
    calls = (
        lambda: dpo_pipeline.evaluate(frame, by="prompt"),
        lambda: dpo_pipeline.sweep(frame, [0.05, 0.1], by="prompt"),
        lambda: dpo_pipeline.compare(frame, other, by="prompt"),
        lambda: dpo_pipeline.select(frame, rule="nearest_tie", keep=0.5, by="prompt"),
    )
    for call in calls:
        lines = str(call()).split("\n")
        assert max(map(len, lines)) <= 100
        assert any(re.fullmatch(r"\.\.\. and \d+ more", line) for line in lines)
        assert " ".join(" ".join(lines).split()).count("words of a prompt") >= 50
