"""A loss of one's own: one function and one row of the catalogue."""

from __future__ import annotations

import json
import math
from types import MappingProxyType

import polars as pl
import pytest

from command_tools import run
from dpo_pipeline import ColumnError, Objective, UsageError, evaluate, score, score_parquet
from dpo_pipeline.cli import loss_list
from dpo_pipeline.losses import catalogue as loss_catalogue, objective
from dpo_pipeline.losses.catalogue import EVERY_LOSS
from dpo_pipeline.losses.loss_row import Loss, Parameter
from dpo_pipeline.published import reference_tables
from option_tools import grouped
from pair_tools import COUNTS


def cauchy(margin: pl.Expr, chosen_tokens: pl.Expr, *, beta: float, width: float) -> pl.Expr:
    """Return log(1 + ((1 - m) / width)^2) + beta * chosen tokens: made up for this test."""
    return (((1.0 - margin) / width).pow(2) + 1.0).log() + beta * chosen_tokens


MINE = Loss(
    name="cauchy",
    function=cauchy,
    formula="log(1 + ((1 - z) / w)^2) + beta L_c",
    source="nowhere",
    parameters=(
        Parameter(name="width", default=2.0, low=0.0, without=(0.0,), meaning="w, in nats"),
    ),
    peers={"Mine": "cauchy"},
)


def test_a_loss_is_added_by_a_function_and_a_row(monkeypatch, capsys, counted, source, tmp_path):
    extended = MappingProxyType({**EVERY_LOSS, MINE.name: MINE})
    for module in (loss_catalogue, objective, loss_list, reference_tables):
        monkeypatch.setattr(module, "EVERY_LOSS", extended)
    margins, tokens = [0.1, -0.2, 0.0, 0.5, 1.0, -1.0], [2, 4, 5, 10, 4, 7]
    for width, arguments in ((2.0, {}), (0.5, {"width": 0.5})):
        expected = [
            math.log(1 + ((1 - m) / width) ** 2) + 0.1 * n
            for m, n in zip(margins, tokens, strict=True)
        ]
        call = {"loss": "cauchy", "loss_args": arguments}
        found = score(counted, **grouped(**call)).collect()["loss"].to_list()
        assert found == pytest.approx(expected, rel=1e-14)
        mean = math.fsum(expected) / 6
        assert evaluate(counted, **grouped(**call)).summary.loss == pytest.approx(mean, abs=1e-12)
        out = tmp_path / f"{width}.parquet"
        score_parquet(source, out, **grouped(**call))
        assert pl.read_parquet(out)["loss"].to_list() == found
        told = run(capsys, "evaluate", source, "--loss", "cauchy", "--loss-arg", f"width={width}")
        assert told[0] == 0
        assert "cauchy loss, beta 0.1" in told[1]
    # It has its part in sums, and its arguments are checked and its needs known.
    both = score(counted, loss={"cauchy": 2.0, "hinge": 1.0}).collect()["loss"][2]
    assert both == pytest.approx(2 * (math.log(1.25) + 0.5) + 1.0, rel=1e-14)
    with pytest.raises(UsageError, match="width of cauchy must be a finite number above 0"):
        score(counted, loss=Objective("cauchy", arguments={"width": 0}))
    with pytest.raises(UsageError, match="cauchy has no 'per_token'"):
        score(counted, loss=Objective("cauchy", arguments={"per_token": True}))
    with pytest.raises(ColumnError, match="chosen_num_tokens: missing"):
        score(counted.drop(COUNTS), loss="cauchy")
    assert "cauchy" in run(capsys, "losses")[1]
    row = json.loads(run(capsys, "losses", "cauchy", "--json")[1])
    assert row["needs"] == "policy and reference log-probs, token counts"
    assert row["parameters"] == [
        {
            "name": "width",
            "default": 2.0,
            "range": "a finite number above 0",
            "meaning": "w, in nats",
        }
    ]
    assert "| `cauchy` |" in reference_tables.loss_table()
