"""The report as a file, and in a notebook."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

import dpo_pipeline
from dpo_pipeline import Outputs
from dpo_pipeline.errors import StorageError, UsageError
from dpo_pipeline.statistics import words
from option_tools import grouped
from page_tools import Page, of_margins

pytestmark = pytest.mark.usefixtures("few_groups")


def test_a_report_is_written_once_and_replaced_on_demand(evaluation, tmp_path, monkeypatch):
    path, text = tmp_path / "report.html", "<html>é</html>"
    monkeypatch.setattr("dpo_pipeline.report.pages.page_of", lambda *_: text)
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
        dpo_pipeline.evaluate(tmp_path / "nothing.parquet", outputs=Outputs(report="-"))
    assert list(tmp_path.iterdir()) == []


def test_a_report_needs_statistics(real_pairs):
    plain = dpo_pipeline.evaluate(real_pairs)
    for asked in (plain.report, plain.charts):
        with pytest.raises(UsageError, match="statistics=True"):
            asked()


@pytest.mark.usefixtures("without_charts")
def test_outputs_appear_together_or_not_at_all(real_pairs, tmp_path, monkeypatch):
    outputs = {"report": tmp_path / "report.html", "summary": tmp_path / "summary.json"}
    result = dpo_pipeline.evaluate(real_pairs, **grouped(**outputs))
    assert result.statistics is not None
    assert outputs["report"].read_text(encoding="utf-8") == result.report()
    assert outputs["summary"].exists()
    for path in outputs.values():
        path.unlink()

    def broken(*_):
        raise RuntimeError("no page today")

    monkeypatch.setattr("dpo_pipeline.report.pages.page_of", broken)
    with pytest.raises(RuntimeError, match="no page today"):
        dpo_pipeline.evaluate(real_pairs, **grouped(**outputs))
    assert list(tmp_path.iterdir()) == []


def test_a_report_does_not_replace_its_input(real_pairs, tmp_path):
    path = tmp_path / "pairs.parquet"
    real_pairs.write_parquet(path)
    with pytest.raises(StorageError, match="also an input"):
        dpo_pipeline.evaluate(path, outputs=Outputs(report=path, overwrite=True))
    both = tmp_path / "x"
    with pytest.raises(StorageError, match="two outputs"):
        dpo_pipeline.evaluate(path, outputs=Outputs(both, report=both))


def test_the_extra_is_missed_before_anything_is_read(evaluation, monkeypatch, tmp_path):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "dpo_pipeline.arguments.find_spec",
        lambda name: None if name == "vl_convert" else found(name),
    )
    for asked in (evaluation.report, evaluation.charts):
        with pytest.raises(UsageError, match="pip install altair vl-convert-python"):
            asked()
    with pytest.raises(UsageError, match="vl_convert"):
        dpo_pipeline.evaluate(
            tmp_path / "nothing.parquet", outputs=Outputs(report=tmp_path / "report.html")
        )
    assert "<table>" in evaluation._repr_html_()


@pytest.mark.outside  # a process of its own, which has no charts
def test_a_notebook_needs_none_of_the_extra(tmp_path):
    of_margins([0.1, -0.2]).with_row_index("pair_id").write_parquet(tmp_path / "pairs.parquet")
    code = """
import sys
sys.modules |= dict.fromkeys(("altair", "jinja2", "markupsafe", "vl_convert"))
import dpo_pipeline
path = sys.argv[1]
print(dpo_pipeline.evaluate(path, statistics=True)._repr_html_())
print(dpo_pipeline.compare(path, path)._repr_html_())
"""
    command = [sys.executable, "-W", "ignore", "-c", code, tmp_path / "pairs.parquet"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "rewards/margins" in done.stdout
    assert "B minus A" in done.stdout


def test_a_notebook_shows_the_figures(evaluation, real_pairs):
    shown = Page(evaluation._repr_html_())
    cells = shown.texts["td"]
    assert "rewards/accuracies" in cells
    assert words.share(evaluation.summary.reward_accuracy) in cells
    assert "interval by" in shown.texts["th"]
    plain = Page(dpo_pipeline.evaluate(real_pairs, by="turns")._repr_html_())
    assert "interval by" not in plain.texts["th"]
    assert words.number(evaluation.summary.loss) in plain.texts["td"]
