"""The sample report in `examples/` shows the figures of its command today."""

from __future__ import annotations

from pathlib import Path

import dpo_pipeline
from dpo_pipeline.statistics import words
from page_tools import Page, values_of

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_sample_has_the_figures_of_its_command():
    page = Page((EXAMPLES / "report.html").read_text(encoding="utf-8"))
    found = dpo_pipeline.evaluate(EXAMPLES / "pairs.parquet", by="split", statistics=True)
    tiles = page.texts["dd"]
    for value in (found.summary.loss, found.summary.reward_margin):
        assert words.number(value) in tiles
    assert words.share(found.summary.reward_accuracy) in tiles
    drawn = values_of(page.specs()["subsets"], "label", "low")
    assert {row["label"]: round(row["value"], 5) for row in drawn} == {
        f"{split} ({n})": round(accuracy, 5)
        for split, n, accuracy in found.subsets.select("split", "n_valid", "reward_accuracy").rows()
    }
    command = (
        "dpo-pipeline evaluate examples/pairs.parquet --by split --report examples/report.html"
    )
    assert command in page.texts["code"]
    for each in found.findings:
        said = (text.replace(words.MINUS, "-") for text in page.texts["p"])
        assert any(each.evidence[1:] in text for text in said)


def test_the_sample_and_its_picture_are_small():
    assert (EXAMPLES / "report.html").stat().st_size < 1_100_000
    assert (EXAMPLES / "report.png").stat().st_size < 150_000
