"""Columns that the user names beside the worst pairs: read for the listed rows alone."""

from __future__ import annotations

import re
from dataclasses import replace

import polars as pl
import pytest

import dpo_pipeline
from dpo_pipeline import Outputs
from dpo_pipeline.errors import UsageError
from dpo_pipeline.sources import Dataset
from page_tools import Page, of_margins
from pair_tools import ROOT

pytestmark = pytest.mark.usefixtures("few_groups", "without_charts")
MARGINS = [0.4, -0.2, 0.1, -0.9, 0.3, -0.5]
LONG = "a long answer, " * 40


@pytest.fixture
def worded():
    """Pairs with texts, of which row 3 is the worst, then rows 5 and 1."""
    n = len(MARGINS)
    return of_margins(
        MARGINS,
        pair_id=[10 + i for i in range(n)],
        kind=["x", "y"] * (n // 2),
        prompt=[f"question {i}\x1b[31m" for i in range(n)],
        chosen=[f"<b>{i}</b> {LONG}" for i in range(n)],
    )


@pytest.fixture
def file(worded, tmp_path):
    path = tmp_path / "pairs.parquet"
    worded.write_parquet(path, row_group_size=2)
    return path


def texts_of(result, name="prompt"):
    return result.statistics.gathered.lowest[f"shown: {name}"].to_list()


@pytest.mark.parametrize("of_a_file", [True, False])
def test_the_lowest_margins_carry_their_texts(worded, file, of_a_file):
    pairs = file if of_a_file else worded
    found = dpo_pipeline.evaluate(pairs, outputs=Outputs(show=["prompt", "chosen"], worst=3))
    assert texts_of(found) == [f"question {i}\x1b[31m" for i in (3, 5, 1)]
    assert texts_of(found, "chosen")[0] == f"<b>3</b> {LONG}"
    assert "question 3\\x1b[31m" in str(found)
    assert "\x1b" not in str(found)


def test_only_the_listed_rows_are_read(file, monkeypatch):
    asked = []
    shard = Dataset.shard

    def watched(self, first, rows):
        asked.append((first, rows))
        return shard(self, first, rows)

    monkeypatch.setattr(Dataset, "shard", watched)
    dpo_pipeline.evaluate(file, outputs=Outputs(show="prompt", worst=2))
    assert [each for each in asked if each[1] == 1] == [(3, 1), (5, 1)]
    asked.clear()
    dpo_pipeline.evaluate(file, statistics=True)
    assert not [each for each in asked if each[1] == 1]


def test_texts_change_no_figure(file):
    plain = dpo_pipeline.evaluate(file, statistics=True)
    shown = dpo_pipeline.evaluate(file, outputs=Outputs(show="prompt"))
    assert shown.to_json() == plain.to_json()


def test_invalid_rows_carry_their_texts(worded, tmp_path):
    broken = worded.with_columns(
        policy_chosen_logps=pl.when(pl.col("pair_id") == 14)
        .then(0.5)
        .otherwise("policy_chosen_logps")
    )
    for i, part in enumerate((broken.head(3), broken.tail(3))):
        part.write_parquet(tmp_path / f"{i}.parquet")
    for pairs in (tmp_path, broken):
        report = dpo_pipeline.check(pairs, outputs=Outputs(show="prompt"))
        ((place, texts),) = report.shown_rows.items()
        assert place == ("1.parquet row 1" if pairs is tmp_path else "row 4")
        assert texts == {"prompt": "question 4\x1b[31m"}
        assert "question 4\\x1b[31m" in str(report)


def test_flips_carry_the_texts_of_the_side_that_has_them(worded):
    other = worded.select(
        "pair_id",
        "policy_chosen_logps",
        policy_rejected_logps=pl.when(pl.col("pair_id") == 13)
        .then(pl.col("policy_rejected_logps") - 15.0)
        .otherwise(pl.col("policy_rejected_logps")),
    )
    found = dpo_pipeline.compare(worded, other, outputs=Outputs(show="prompt"))
    assert found.gained.select("key", "shown: prompt").rows() == [(13, "question 3\x1b[31m")]
    swapped = worded.drop("prompt")
    found = dpo_pipeline.compare(
        swapped,
        other.join(worded.select("pair_id", "prompt"), on="pair_id"),
        outputs=Outputs(show="prompt"),
    )
    assert found.gained["shown: prompt"].to_list() == ["question 3\x1b[31m"]
    assert set(found.to_dict()["gained"][0]) == {"key", "margin_a", "margin_b", "change"}


def test_the_page_folds_long_texts_and_escapes_them(worded, tmp_path):
    path = tmp_path / "report.html"
    dpo_pipeline.evaluate(
        worded, by="kind", outputs=Outputs(show=["prompt", "chosen"], report=path)
    )
    page = Page(path.read_text(encoding="utf-8"))
    assert "question 3\\x1b[31m" in page.texts["td"]
    assert not page.all("b")
    assert any(each == f"<b>3</b> {LONG}"[:200] + "..." for each in page.texts["summary"])
    assert any(f"<b>3</b> {LONG}" in each for each in page.texts["details"])


def test_each_subset_unfolds_to_its_own_lowest_margins(worded, tmp_path):
    # Nine of y are worse than all of x, which would not be among the lowest of all.
    margins = [*MARGINS, *(-5.0 - i for i in range(9))]
    more = of_margins(
        margins,
        pair_id=range(len(margins)),
        kind=[*worded["kind"], *["y"] * 9],
        prompt=[f"question {i}" for i in range(len(margins))],
    )
    path = tmp_path / "report.html"
    dpo_pipeline.evaluate(more, by="kind", outputs=Outputs(show="prompt", worst=3, report=path))
    page = Page(path.read_text(encoding="utf-8"))
    unfolded = [each for each in page.texts["details"] if "its lowest margins" in each]
    assert [each.split()[0] for each in unfolded] == ["x:", "y:"]  # x is right more often
    # By hand: x has the pairs 0, 2 and 4, none of them wrong; the worst five of y are the last.
    named = [re.findall(r"question (\d+)", each) for each in unfolded]
    assert named == [["2", "4", "0"], ["14", "13", "12", "11", "10"]]


def test_texts_of_a_and_b_stand_side_by_side_where_they_differ(worded):
    other = worded.with_columns(
        pl.when(pl.col("pair_id") == 13)
        .then(pl.col("policy_rejected_logps") - 15.0)
        .otherwise(pl.col("policy_rejected_logps"))
        .alias("policy_rejected_logps"),
        chosen=pl.lit("another answer"),
    )
    found = dpo_pipeline.compare(worded, other, outputs=Outputs(show=["prompt", "chosen"]))
    (flip,) = found.gained.to_dicts()
    assert flip["shown: prompt"] == "question 3\x1b[31m"
    assert flip["shown: chosen of A"] == f"<b>3</b> {LONG}"
    assert flip["shown: chosen of B"] == "another answer"
    assert "shown: chosen" not in flip
    for text in (str(found), found.report()):
        assert "chosen of A" in text
        assert "another answer" in text


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda pairs: dpo_pipeline.evaluate(pairs, outputs=Outputs(show="promt")), "prompt"),
        (lambda pairs: dpo_pipeline.check(pairs, outputs=Outputs(show="promt")), "prompt"),
        (lambda p: dpo_pipeline.compare(p, p, outputs=Outputs(show="promt")), "neither side"),
    ],
)
def test_a_column_that_is_not_there_is_refused_at_once(worded, call, message):
    with pytest.raises(UsageError, match=f"show: 'promt' .*{message}"):
        call(worded)


@pytest.mark.parametrize("worst", [-1, 101, 2.5])
def test_only_so_many_are_kept(worst):
    with pytest.raises(UsageError, match=re.escape("worst must be from 0 to 100")):
        Outputs(worst=worst)
    assert replace(Outputs(), worst=100).worst == 100


def test_none_are_listed_where_none_are_asked_for():
    files = [ROOT / "examples" / name for name in ("pairs.parquet", "policy_b.parquet")]
    compared = dpo_pipeline.compare(*files, outputs=Outputs(worst=0))
    assert compared.mcnemar.only_a == 4
    assert "right in only" not in str(compared)
    assert "There are 4 pairs that only A &#34;pairs&#34; has right." in compared.report()
    evaluated = dpo_pipeline.evaluate(files[0], outputs=Outputs(worst=0))
    assert evaluated.statistics is None


def test_of_equal_margins_the_first_rows_are_listed():
    pairs = of_margins([-0.5] * 9 + [1.0], kind=["x"] * 10)
    found = dpo_pipeline.evaluate(pairs, by="kind", statistics=True).statistics.gathered.worst
    assert found["row"].to_list() == [0, 1, 2, 3, 4]
