"""What the policies of a comparison are called, and the test across its subsets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from compare_tools import frames, of_margins
from dpo_pipeline import compare
from dpo_pipeline.cli.program import main
from dpo_pipeline.comparison.sides import names_of
from oracle_tools import stats
from page_tools import Page


@pytest.mark.parametrize(
    ("sources", "names"),
    [
        pytest.param(("runs/base.parquet", "old/tuned.parquet"), ("base", "tuned"), id="stems"),
        pytest.param(("s3://k:s@bucket/a.parquet", "b.jsonl.gz"), ("a", "b"), id="endings"),
        pytest.param(("one/x.parquet", "two/x.parquet"), ("one", "two"), id="folders"),
        pytest.param(
            ("r/one/eval/x.parquet", "r/two/eval/x.parquet"), ("one", "two"), id="inner folders"
        ),
        pytest.param(("x.parquet", "two/x.parquet"), ("x", "two/x"), id="one has no folder"),
        pytest.param(
            ("base/pairs.parquet", "tuned/scored.parquet"), ("base/pairs", "tuned/scored"),
            id="stems that say nothing",
        ),
        pytest.param(("d/pairs.parquet", "d/policy_b.parquet"), ("pairs", "policy_b"), id="beside"),
        pytest.param((pl.DataFrame(), pl.DataFrame()), ("", ""), id="frames"),
        pytest.param(("runs/*.parquet", "b/v0.5"), ("runs", "v0.5"), id="a glob and a folder"),
        pytest.param(("a.csv", "b" * 40 + ".csv"), ("a", "b" * 14 + "..." + "b" * 14), id="long"),
        pytest.param(("d/a.csv", "d/a.csv"), ("a", "a"), id="the same"),
        pytest.param(("a/x", "b/x", "c/y"), ("a/x", "b/x", "c/y"), id="three"),
    ],
)  # fmt: skip
def test_names_tell_policies_apart(sources, names):
    assert names_of(sources) == names


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, table in zip("ab", frames(n=60), strict=True):
        table.write_parquet(f"{name}.parquet")


@pytest.mark.usefixtures("folder")
def test_a_name_that_was_given_is_in_table_sentence_page_and_document(capsys):
    assert main(["compare", "base=a.parquet", "b.parquet", "--report", "page.html"]) == 0
    text = capsys.readouterr().out
    assert 'B "b" minus A "base" is' in text
    (head,) = (line.split("  ") for line in text.splitlines() if line.startswith("figure  "))
    assert [each.strip() for each in head if each][1:4] == ["A: base", "B: b", "B minus A"]
    page = Page(Path("page.html").read_text())
    assert {"A: base", "B: b"} <= set(page.texts["th"])
    assert 'Accuracy of A "base"' in page.texts["dt"]
    found = compare("base=a.parquet", "b.parquet").to_dict()
    assert (found["a"]["name"], found["a"]["source"], found["b"]["name"]) == (
        "base",
        "a.parquet",
        "b",
    )


@pytest.mark.filterwarnings("ignore::dpo_pipeline.DataWarning")  # a policy and itself
@pytest.mark.usefixtures("folder")
def test_frames_and_one_file_twice_are_a_and_b():
    for sides in (frames(n=60), ("a.parquet", "a.parquet")):
        found = compare(*sides)
        assert (found.heads, found.quoted) == (("A", "B"), ("A", "B"))


def by_kind(nets, **columns):
    """Return policies of which B gains (1), loses (-1) or keeps (0) a pair, by kind."""
    flat = np.concatenate(list(nets.values()))
    kinds = np.repeat(list(nets), [len(net) for net in nets.values()])
    a = np.where(flat == -1, 1.0, -1.0)
    b = np.where(flat == 1, 1.1, np.where(flat == -1, -1.2, -0.9))
    sides = of_margins(list(a), list(b))
    return [side.with_columns(kind=pl.Series(kinds), **columns) for side in sides]


NETS = {"x": [1] * 12 + [-1] * 2 + [0] * 30, "y": [1] * 3 + [-1] * 6 + [0] * 40, "z": [0, 1, -1]}


def test_subsets_are_tested_for_one_difference():
    found = compare(*by_kind(NETS), by="kind")
    by_scipy = stats.f_oneway(*([*NETS[kind], 1, -1] for kind in "xy"), equal_var=False)
    test = found.heterogeneity
    assert test.p_value == pytest.approx(by_scipy.pvalue, rel=1e-9)
    assert (test.n_groups, test.n_left_out) == (2, 1)
    said = found.across_subsets
    assert said.endswith(f"p = {by_scipy.pvalue:.2g}. Left out: 1 subset of fewer than 10 pairs.")
    # A long sentence is in lines; the page says it below the chart.
    assert said.removesuffix(".") in " ".join(str(found).split())
    assert said in next(f for f in Page(found.report()).texts["figcaption"] if "Blue" in f)
    assert found.to_dict()["heterogeneity"]["f"] == pytest.approx(by_scipy.statistic)


def test_prompts_are_the_clusters_of_the_test_across_subsets():
    nets = {kind: np.repeat(net, 3) for kind, net in NETS.items()}
    n = sum(map(len, nets.values()))
    found = compare(*by_kind(nets, prompt_id=pl.int_range(n) // 3), by="kind")
    alone = compare(*by_kind(NETS), by="kind")
    # Pairs three times over are no more knowledge: nearly the same test as each once.
    assert found.heterogeneity.p_value == pytest.approx(alone.heterogeneity.p_value, rel=0.2)
    assert "1 subset of fewer than 10 prompts" in found.across_subsets


def test_too_few_pairs_by_subset_are_not_tested():
    found = compare(*by_kind({"x": NETS["x"], "z": NETS["z"]}), by="kind")
    assert found.heterogeneity is None
    assert "fewer than two have 10 pairs." in found.across_subsets
    assert compare(*by_kind({"x": NETS["x"]}), by="kind").across_subsets == ""
    assert compare(*by_kind(NETS)).across_subsets == ""
