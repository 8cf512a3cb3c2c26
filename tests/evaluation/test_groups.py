"""Subsets whose column has the name of a figure, or whose keys are no numbers."""

from __future__ import annotations

import json
import math

import polars as pl
import pytest

from dpo_pipeline import Scored, Subsets, UsageError, evaluate, score_parquet, sweep
from pair_tools import LOGPS


@pytest.fixture
def labelled(pairs, tmp_path):
    """The six pairs with columns named as what scoring adds, by which they can be grouped."""
    path = tmp_path / "in.parquet"
    odd = pl.int_range(pl.len()) % 2 == 1
    values = pl.when(odd).then(pl.lit("odd")).otherwise(pl.lit("even"))
    pairs.with_columns(loss=values, reward_margin=values).write_parquet(path)
    return path


def test_by_is_the_inputs_column_and_not_the_figure(labelled, pairs):
    expected = evaluate(pairs.with_columns(part=pl.int_range(pl.len()) % 2), by="part").subsets
    for source in (labelled, pl.read_parquet(labelled), pl.scan_parquet(labelled)):
        found = evaluate(source, by="loss").subsets
        assert found["by_loss"].to_list() == ["even", "odd"]
        assert found.drop("by_loss").equals(expected.drop("part"))
    found = evaluate(labelled, by=["loss", "reward_margin"], statistics=True)
    assert found.subsets.columns[:2] == ["by_loss", "by_reward_margin"]
    assert found.statistics.subsets.columns[:2] == ["by_loss", "by_reward_margin"]
    assert sweep(labelled, [0.1], by="loss").subsets["by_loss"].to_list() == ["even", "odd"]


def test_scored_pairs_are_grouped_by_it_and_hold_the_figure(labelled, tmp_path):
    out = tmp_path / "out.parquet"
    found = score_parquet(labelled, out, by="loss", scored=Scored(replace=True))
    assert found.subsets["by_loss"].to_list() == ["even", "odd"]
    scored = pl.read_parquet(out)
    assert scored.schema["loss"] == pl.Float64
    assert not [name for name in scored.columns if name.startswith("__")]


def test_a_figure_is_no_column_to_group_by(pairs):
    with pytest.raises(UsageError, match="by: 'loss' is not a column"):
        evaluate(pairs, by="loss")
    both = pairs.with_columns(loss=pl.lit("a"), by_loss=pl.lit("b"))
    with pytest.raises(UsageError, match="columns of one name"):
        evaluate(both, by=["loss", "by_loss"])


def test_nan_infinities_and_null_are_groups_of_their_own(pairs):
    keys = [None, math.nan, math.inf, -math.inf, 1.0, math.nan]
    grouped = pairs.with_columns(pl.Series("g", keys, dtype=pl.Float64))
    found = evaluate(grouped, by="g", statistics=True)
    assert found.subsets["n_pairs"].to_list() == [1, 1, 1, 2, 1]
    document = json.loads(found.to_json())
    names = ["-inf", 1.0, "inf", "nan", None]
    assert [row["g"] for row in document["subsets"]] == names
    assert [row["g"] for row in document["statistics"]["subsets"]] == names
    rows = [line.split()[0] for line in str(found).splitlines()[-40:] if line.strip()]
    assert {"nan", "(null)", "inf", "-inf"} <= set(rows)
    swept = json.loads(sweep(grouped, [0.1], by="g").to_json())
    assert [row["g"] for row in swept["subsets"]] == names
    # Figures that are none stay null.
    assert document["subsets"][0].keys() == {"g", *found.subsets.columns[1:]}
    assert set(LOGPS) <= document["subsets"][0].keys()


def test_a_margin_lies_in_its_bin(pairs):
    bins = evaluate(pairs, beta=0.1, by=Subsets(histogram=True)).histogram
    for margin in (0.1, -0.2, 0.0, 0.5, 1.0, -1.0):
        within = bins.filter(pl.lit(margin).is_between("lower", "upper"))
        assert within["n_pairs"].to_list() == [1], margin
    assert bins["n_pairs"].sum() == 6
