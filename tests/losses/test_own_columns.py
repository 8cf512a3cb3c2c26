"""Losses that read a column of their own: an offset, or how probable the preference is."""

from __future__ import annotations

import math

import polars as pl
import pytest

from dpo_pipeline import (
    ColumnError,
    InvalidPairsError,
    Objective,
    Pairs,
    UsageError,
    compare,
    evaluate,
    score,
    sweep,
)
from objective_tools import OWN_COLUMN, minus_log_sigmoid
from option_tools import grouped
from pair_tools import LOGPS

OFFSETS = [0.5, -0.25, 0.0, 1.0, 2.0, -3.0]
PROBABILITIES = [1.0, 0.0, 0.5, 0.75, 0.9, 0.2]
MARGINS = [0.1, -0.2, 0.0, 0.5, 1.0, -1.0]
ODPO = [minus_log_sigmoid(m - o) for m, o in zip(MARGINS, OFFSETS, strict=True)]
SOFT = [
    p * minus_log_sigmoid(m) + (1.0 - p) * minus_log_sigmoid(-m)
    for m, p in zip(MARGINS, PROBABILITIES, strict=True)
]


@pytest.fixture
def own(counted):
    return counted.with_columns(
        offset=pl.Series(OFFSETS), preference_probability=pl.Series(PROBABILITIES)
    )


@pytest.mark.repeats(1)  # both are roles of the catalogue
@pytest.mark.parametrize(
    ("loss", "expected"), [pytest.param("odpo", ODPO), pytest.param("soft_labels", SOFT)]
)
def test_by_hand_through_every_call(own, tmp_path, loss, expected):
    path = tmp_path / "own.parquet"
    own.write_parquet(path)
    mean = pytest.approx(math.fsum(expected) / 6, rel=1e-13)
    scored = score(own, loss=loss).collect()
    assert scored["loss"].to_list() == pytest.approx(expected, rel=1e-13)
    # Rewards and their margin stay those of the policy.
    assert scored["reward_margin"].to_list() == pytest.approx(MARGINS, abs=1e-13)
    assert evaluate(path, loss=loss).summary.loss == mean
    assert evaluate(own, loss={loss: 1.0, "hinge": 0.5}).summary.loss == pytest.approx(
        math.fsum(expected) / 6 + 0.5 * (0.9 + 1.2 + 1.0 + 0.5 + 0.0 + 2.0) / 6
    )
    table = sweep(path, 0.1, loss=["sigmoid", loss]).table
    assert table.filter(objective=loss)["loss"].item() == mean
    other = own.with_columns(pl.col(LOGPS[0]) - pl.Series([1.0, 2.0, 0.5, 0.0, 3.0, 1.0]))
    assert compare(own, other, loss=loss).a.summary.loss == mean


def test_wpo_by_hand(counted):
    # Means of the policy's log-probs over the tokens of the first pair: -20 / 2 and -22 / 4.
    found = score(counted, loss="wpo").collect()["loss"][0]
    assert found == pytest.approx(math.exp(-15.5) * minus_log_sigmoid(0.1), rel=1e-14)
    # Rounding can put a log-prob above 0, and no weight is above 1.
    likely = counted.with_columns(pl.lit(0.125).alias(name) for name in LOGPS[:2])
    loss, margin = score(likely, loss="wpo").collect().select("loss", "reward_margin").row(0)
    assert loss == pytest.approx(minus_log_sigmoid(margin), rel=1e-15)


@pytest.mark.parametrize("loss", OWN_COLUMN)
def test_the_column_is_asked_for_by_name(counted, own, loss):
    column = OWN_COLUMN[loss]
    for run in (score, evaluate):
        with pytest.raises(ColumnError, match=f"{column}: missing"):
            run(counted, loss=loss)
    with pytest.raises(ColumnError, match=f"{column}: must be a number"):
        evaluate(own.with_columns(pl.lit("x").alias(column)), loss=loss)
    renamed = own.rename({column: "mine"})
    mapped = evaluate(Pairs(renamed, columns={column: "mine"}), loss=loss).summary
    assert mapped == evaluate(own, loss=loss).summary


def test_no_other_loss_reads_it(own, counted):
    odd = own.with_columns(offset=pl.lit("x"), preference_probability=pl.lit(7.0))
    assert evaluate(odd).summary == evaluate(counted).summary


@pytest.mark.parametrize(
    ("loss", "odd", "rules"),
    [
        pytest.param(
            "odpo",
            [None, math.nan, math.inf, -1e9, 0.0, 3],
            {"not_null": [0], "not_nan": [1], "within": [2, 3]},
            id="odpo",
        ),
        pytest.param(
            "soft_labels",
            [None, math.nan, 1.0000001, -1e-9, 0.0, 1],
            {"not_null": [0], "not_nan": [1], "share": [2, 3]},
            id="soft_labels",
        ),
    ],
)
def test_values_that_make_a_pair_invalid(own, loss, odd, rules):
    column = OWN_COLUMN[loss]
    broken = own.with_columns(pl.Series(column, odd, dtype=pl.Float64))
    with pytest.raises(InvalidPairsError) as caught:
        evaluate(broken, loss=loss)
    found = {r.name: [o.row for o in r.offenders] for r in caught.value.report.broken}
    assert found == {f"{column}.{name}": rows for name, rows in rules.items()}
    kept = evaluate(broken, loss=loss, on_invalid="exclude").summary
    sound = own.with_columns(pl.Series(column, odd, dtype=pl.Float64))[4:]
    assert kept.loss == evaluate(sound, loss=loss).summary.loss


@pytest.mark.parametrize("argument", [{"ld_alpha": 0.5}, {"humanline": True}])
def test_wpo_weighs_by_sums_that_nothing_has_changed(counted, argument):
    with pytest.raises(UsageError, match="changes the sums that wpo weighs by"):
        score(counted, loss=Objective("wpo", arguments=argument))


def test_trl_weighs_by_what_log_probs_do_not_hold(counted):
    for loss in ("wpo", {"sigmoid": 1.0, "wpo": 1.0}):
        with pytest.raises(UsageError, match=r"dialect trl: wpo: TRL 1\.x .*squared probabilities"):
            score(counted, **grouped(loss=loss, dialect="trl"))
