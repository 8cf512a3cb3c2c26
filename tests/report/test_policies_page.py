"""The page of several policies, and their charts."""

from __future__ import annotations

import polars as pl
import pytest

import dpo_pipeline
from command_tools import run
from dpo_pipeline.rendering import with_minus
from page_tools import EVIL, Page, values_of
from pair_tools import ROOT

STEPS = ROOT / "examples" / "steps.parquet"
CURVES = [
    *("curve-accuracy", "curve-loss", "curve-policy-chosen-logps"),
    *("curve-chosen-down", "curve-log-ratio-size"),
]


@pytest.fixture(scope="module")
def board():
    return dpo_pipeline.compare(STEPS)


def test_several_policies_have_their_page(board):
    page = Page(board.report())
    specs = page.specs()
    assert list(specs) == ["accuracies", "differences", *CURVES] == list(board.charts())
    rows = {row["label"]: row for row in values_of(specs["accuracies"], "label", "low")}
    for row in board.to_frame().iter_rows(named=True):
        drawn = rows[row["policy"]]
        for mine, theirs in (("accuracy", "value"), ("accuracy_low", "low")):
            assert drawn[theirs] == pytest.approx(row[mine], rel=1e-5)
    # A chart of a difference is in points, and its colour that of the adjusted p-value.
    for row in values_of(specs["differences"], "label", "side"):
        (own,) = board.to_frame().filter(policy=row["label"]).iter_rows(named=True)
        assert row["value"] == pytest.approx(100 * own["difference"], abs=1e-4)
        is_shown = own["p_adjusted"] < 0.05
        assert row["side"] == (("below", "above")[own["difference"] > 0] if is_shown else "open")
    texts = page.texts["p"]
    for text in (board.luck(), *board.curve.sentences()):
        said = with_minus(f"{text[:1].upper()}{text[1:]}.")
        assert said in [each[:1].upper() + each[1:] for each in texts]
    for title in ("best beta", "rejected log-prob", "in no other"):
        assert any(title in text for text in page.texts["th"])


def test_each_curve_is_drawn_with_its_band(board):
    specs = Page(board.report()).specs()
    for name in ("accuracy", "loss", "chosen_down", "log_ratio_size", "policy_rejected_logps"):
        of = "policy_chosen_logps" if name == "policy_rejected_logps" else name
        points = values_of(specs[f"curve-{of.replace('_', '-')}"], "step", f"{name}_low")
        expected = board.curve.table.select("step", name, f"{name}_low", f"{name}_high")
        for point, row in zip(points, expected.iter_rows(named=True), strict=True):
            assert {key: point[key] for key in row} == pytest.approx(row, rel=1e-5)


def test_the_command_writes_the_page_of_labels_that_would_break_it(capsys, tmp_path):
    rows = pl.read_parquet(STEPS).filter(pl.col("step") > 64)
    names = dict(zip((96, 128, 160), EVIL, strict=False))
    named = rows.with_columns(policy=pl.col("step").replace_strict(names)).drop("step")
    named.write_parquet(tmp_path / "all.parquet")
    out = tmp_path / "page.html"
    code, _, _ = run(capsys, "compare", tmp_path / "all.parquet", "--report", out)
    assert code == 0
    page = Page(out.read_text(encoding="utf-8"))
    assert set(EVIL[:3]) <= set(page.texts["th"])
    assert list(page.specs()) == ["accuracies", "differences"]


def test_without_a_verdict_the_page_says_so():
    rows = pl.read_parquet(STEPS)
    moved = pl.col("ref_chosen_logps") - (pl.col("step") == 64)
    with pytest.warns(dpo_pipeline.errors.DataWarning, match="another reference"):
        board = dpo_pipeline.compare(rows.with_columns(moved))
    page = Page(board.report())
    assert "differences" not in page.specs()
    assert board.verdict[1:] + "." in " ".join(page.texts["p"])
    assert any("scored against another reference" in text for text in page.texts["section"])
