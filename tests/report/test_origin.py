"""Where a result came from, and charts without a network."""

from __future__ import annotations

import shlex
import socket

import altair as alt
import polars as pl
import pytest

import dpo_pipeline
from dpo_pipeline import Outputs
from dpo_pipeline.cli.program import main
from dpo_pipeline.report.charts import LIGHT
from dpo_pipeline.statistics import heterogeneity
from page_tools import Page, of_margins

pytestmark = pytest.mark.usefixtures("few_groups")
MARGINS = [0.4, -0.2, 0.1, -0.9, 0.3, -0.5]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "my pairs.parquet"
    of_margins(MARGINS, kind=["x", "y"] * 3).write_parquet(path)
    return path


@pytest.fixture(scope="module")
def charts():
    return dpo_pipeline.evaluate(of_margins(MARGINS), statistics=True).charts()


def test_the_command_is_one_that_a_shell_takes(file):
    found = dpo_pipeline.evaluate(
        file,
        beta=0.2,
        by=["kind"],
        statistics=True,
        outputs=Outputs(file.parent / "summary.json"),
    )
    assert found.origin.command == (
        f"dpo-pipeline evaluate '{file}' --beta 0.2 --by kind --statistics"
    )


def test_a_call_from_python_says_what_its_report_shows(file):
    outputs = Outputs(file.parent / "page.html", show="kind", worst=3)
    origin = dpo_pipeline.evaluate(file, outputs=outputs).origin
    assert origin.command == f"dpo-pipeline evaluate '{file}' --show kind --worst 3 --statistics"


@pytest.mark.usefixtures("without_charts")
def test_a_command_is_recorded_as_it_was_typed(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    monkeypatch.setenv("DPO_PIPELINE_MAX_LOGP", "0.5")
    words = ["evaluate", file.name, "--report", "page.html", "--show", "kind", "--beta=0.2"]
    secret = ["--storage-option", "aws_key=SECRET", "--storage-option=token=SECRET"]
    assert main([*words, *secret]) == 0
    text = (file.parent / "page.html").read_text()
    (command,) = (each for each in Page(text).texts["code"] if each.startswith("dpo-pipeline"))
    assert "SECRET" not in text
    hidden = ["--storage-option", "aws_key=***", "--storage-option=token=***"]
    assert shlex.split(command) == ["dpo-pipeline", *words, *hidden]
    # Lines end between options only.
    assert Page(text).texts["span"][-8:] == [
        "dpo-pipeline",
        "evaluate",
        "'my pairs.parquet'",
        "--report page.html",
        "--show kind",
        "--beta=0.2",
        "--storage-option 'aws_key=***'",
        "'--storage-option=token=***'",
    ]
    assert "max-logp = 0.5, from DPO_PIPELINE_MAX_LOGP" in Page(text).texts["td"]


def test_a_dataframe_has_no_command_and_no_fingerprint(file):
    origin = dpo_pipeline.evaluate(pl.read_parquet(file)).origin
    assert (origin.command, origin.fingerprint) == ("", "")


def test_the_fingerprint_is_of_the_file_and_not_of_its_place(file, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    moved = tmp_path / "elsewhere" / file.name
    moved.write_bytes(file.read_bytes())
    first, second = (dpo_pipeline.evaluate(each).origin.fingerprint for each in (file, moved))
    assert first == second
    assert f"{file.stat().st_size:,} bytes" in first
    pl.read_parquet(file).head(5).write_parquet(moved)
    assert dpo_pipeline.evaluate(moved).origin.fingerprint != first


@pytest.mark.outside  # another program draws the picture
def test_charts_are_pictures_that_need_no_network(charts, monkeypatch):
    def refused(*_args, **_more):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refused)
    shown = charts["margins"]._repr_mimebundle_()
    assert shown["image/svg+xml"].startswith("<svg")
    with alt.renderers.enable("json"):
        assert "application/json" in charts["margins"]._repr_mimebundle_()[0]


def test_a_plane_has_one_scale(charts):
    spec = charts["rewards"].to_dict()
    channels = spec["layer"][0]["encoding"]
    assert channels["x"]["scale"]["domain"] == channels["y"]["scale"]["domain"]
    assert spec["width"] == spec["height"]


def test_lines_end_before_the_labels_of_a_plane_and_few_pairs_are_seen(charts):
    layers = charts["rewards"].to_dict()["layer"]
    texts = [layer["mark"] for layer in layers if layer["mark"]["type"] == "text"]
    assert len(texts) == 4
    for behind, text in (texts[:2], texts[2:]):
        assert behind["stroke"] == LIGHT.paper
        assert behind["strokeWidth"] >= 4
        assert "stroke" not in text
    assert layers[0]["encoding"]["opacity"]["scale"]["range"][0] >= 0.3


def test_a_subset_has_a_colour_only_where_holm_says_so():
    n = 40
    right = {"x": 38, "y": 25, "z": 20}
    margins = [0.5 if i < k else -0.5 for k in right.values() for i in range(n)]
    kinds = [kind for kind in right for _ in range(n)]
    found = dpo_pipeline.evaluate(of_margins(margins, kind=kinds), by="kind", statistics=True)
    spec = found.charts()["subsets"].to_dict()
    (rows,) = (rows for rows in spec["datasets"].values() if "side" in rows[0])
    assert [(row["label"], row["side"]) for row in rows] == [
        ("x (40)", "above"),
        ("y (40)", "open"),
        ("z (40)", "open"),
    ]
    table = pl.DataFrame({"kind": [*right], "x": [*right.values()], "n": [n] * 3})
    expected = heterogeneity(table, ["kind"], "x", "n", is_independent=True)
    assert found.statistics.heterogeneity.p_value == pytest.approx(expected.p_value)
