"""Losses of batches, against plain Python over lists of the pairs of each batch."""

from __future__ import annotations

import itertools
import math
import random

import pandera.polars as pa
import polars as pl
import pytest

from batch_tools import (
    BATCH_LOSSES,
    N_ROWS,
    PLAIN,
    SHARD,
    close,
    is_sound,
    losses_of,
    made,
    mean,
    plain,
    sigma,
    sp,
    with_faults,
    written,
)
from dpo_pipeline import Contract, Subsets, UsageError, evaluate, score, score_parquet
from option_tools import grouped
from pair_tools import LOGPS

# By default in files; `aot_unpaired` is sorted within its batches as `aot` is.
IN_FILES = ["aot", "kto_pair", pytest.param("aot_unpaired", marks=pytest.mark.slow)]

# --- values row by row


@pytest.mark.repeats  # sizes are the same code for each loss
@pytest.mark.parametrize("engine", ["in-memory", "streaming"])
@pytest.mark.parametrize("size", [1, 2, 7, 64, N_ROWS, 1_000])
@pytest.mark.parametrize("loss", BATCH_LOSSES)
def test_rows_against_plain_python(loss, size, engine):
    frame = made()
    assert losses_of(frame, loss, size, engine) == close(plain(frame, loss, size))


@pytest.mark.repeats  # each loss, each beta
@pytest.mark.parametrize("beta", [0.0, 0.01, 1.0, 30.0])
@pytest.mark.parametrize("loss", BATCH_LOSSES)
def test_betas_against_plain_python(loss, beta):
    frame = made()
    expected = plain(frame, loss, 7, beta=beta)
    assert losses_of(frame, loss, 7, beta=beta) == close(expected, 1e-9)


@pytest.mark.repeats  # each loss, each size, each share
@pytest.mark.parametrize("size", [7, 64])
@pytest.mark.parametrize("e", [0.1, 0.5])
@pytest.mark.parametrize("loss", ["aot", "aot_unpaired"])
def test_label_smoothing_against_plain_python(loss, e, size):
    frame = made()
    expected = plain(frame, loss, size, e=e)
    assert losses_of(frame, loss, size, loss_args={"label_smoothing": e}) == close(expected)


@pytest.mark.repeats(6)  # each loss, each size
@pytest.mark.parametrize("size", [2, 7, 64, 1_000])
@pytest.mark.parametrize("loss", BATCH_LOSSES)
def test_ties_go_by_the_order_of_the_rows(loss, size):
    frame = made(step=0.5)
    differences = (frame[LOGPS[0]] - frame[LOGPS[1]])[:64].to_list()
    assert len(set(differences)) < 24  # of 64: ranks are shared again and again
    assert losses_of(frame, loss, size) == close(plain(frame, loss, size))


FIXTURE = pl.DataFrame(
    dict(
        zip(
            LOGPS,
            [[-0.5, -10.0, -1.0], [-0.1, -30.0, -21.0], [-0.5, -10.1, -0.1], [-0.1, -20.1, -0.1]],
            strict=True,
        )
    )
)


@pytest.mark.parametrize(
    ("loss", "expected", "digits"),
    [
        # TRL gives these by rank. u = c - r is -0.4, 20, 20, a tie; v = C - R is -0.4, 10, 0.
        pytest.param("aot", [0.6931471806, 0.126928011, 0.3132616875], 10, id="aot"),
        # By rank the log-ratios are -0.9 (third row), 0, 0.1 and -20.9, -9.9, 0.
        pytest.param(
            "aot_unpaired", [0.3159609475, 0.6881596805, 0.126928011], 10, id="aot_unpaired"
        ),
    ],
)
def test_rows_that_peers_give(loss, expected, digits):
    # torchtune's fixture; the values are those of TRL 0.24 and 1.16.
    assert losses_of(FIXTURE, loss, 3) == pytest.approx(expected, rel=0, abs=0.6 * 10.0**-digits)


def test_kto_pair_by_hand():
    # Log-ratios 2, 4, -9 and -1, 3, 1: the mean of the former is -1, so that K_c = 0; K_r = 1.
    logps = [[-1.0, -2.0, -10.0], [-3.0, -4.0, -5.0], [-3.0, -6.0, -1.0], [-2.0, -7.0, -6.0]]
    frame = pl.DataFrame(dict(zip(LOGPS, logps, strict=True)))
    expected = [
        (2.0 - sigma(2.0 - 1.0) - sigma(0.0 + 1.0)) / 2.0,
        (2.0 - sigma(4.0 - 1.0) - sigma(0.0 - 3.0)) / 2.0,
        (2.0 - sigma(-9.0 - 1.0) - sigma(0.0 - 1.0)) / 2.0,
    ]
    assert losses_of(frame, "kto_pair", 3, beta=1.0) == close(expected)


@pytest.mark.parametrize("loss", ["aot", "aot_unpaired"])
def test_alone_in_its_batch_a_pair_has_the_dpo_loss(loss):
    frame = made()
    alone = score(frame).collect()["loss"].to_list()
    assert losses_of(frame, loss, 1) == close(alone)


@pytest.mark.parametrize("loss", BATCH_LOSSES)
def test_the_order_within_a_batch_changes_nothing(loss):
    frame = made()
    mixed = list(range(N_ROWS))
    for first in range(0, N_ROWS, 20):
        part = mixed[first : first + 20]
        random.Random(first).shuffle(part)
        mixed[first : first + 20] = part
    there = losses_of(frame, loss, 20)
    assert losses_of(frame[mixed], loss, 20) == [there[i] for i in mixed]


@pytest.mark.parametrize("loss", BATCH_LOSSES)
def test_the_batch_matters(loss):
    # Otherwise a loss that ignored its batches could pass where sizes are compared.
    frame = made()
    found = [losses_of(frame, loss, size) for size in (1, 7, 64)]
    for one, other in itertools.combinations(found, 2):
        assert max(abs(a - b) for a, b in zip(one, other, strict=True)) > 0.05


# --- invalid pairs


@pytest.mark.repeats  # sizes are the same code for each loss
@pytest.mark.parametrize("engine", ["in-memory", "streaming"])
@pytest.mark.parametrize("size", [7, 64])
@pytest.mark.parametrize("loss", BATCH_LOSSES)
def test_invalid_pairs_take_no_part_in_score(loss, size, engine):
    frame = with_faults(made(step=0.25))
    expected = plain(frame, loss, size)
    assert 20 < expected.count(None) < 40
    assert losses_of(frame, loss, size, engine) == close(expected)


@pytest.mark.repeats(1)  # losses of batches are written by one function
@pytest.mark.parametrize(
    ("size", "on_invalid"),
    [
        (7, "quarantine"),
        (64, "exclude"),
        # The two sizes the other way about.
        pytest.param(64, "quarantine", marks=pytest.mark.slow),
        pytest.param(7, "exclude", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("loss", IN_FILES)
def test_invalid_pairs_take_no_part_in_files(loss, size, on_invalid, tmp_path, monkeypatch):
    monkeypatch.setattr(SHARD, 60)
    frame = with_faults(made())
    frame.write_parquet(tmp_path / "in.parquet", row_group_size=20)
    expected = plain(frame, loss, size)
    result, scored, apart = written(
        tmp_path / "in.parquet", tmp_path, loss=loss, batch_size=size, on_invalid=on_invalid
    )
    invalid = [i for i, value in enumerate(expected) if value is None]
    assert scored["pair_id"].to_list() == [i for i in range(N_ROWS) if i not in invalid]
    assert scored["loss"].to_list() == close([value for value in expected if value is not None])
    assert result.summary.n_invalid == len(invalid)
    assert result.summary.loss == close(mean([v for v in expected if v is not None]))
    if on_invalid == "quarantine":
        assert apart["source_row"].to_list() == apart["pair_id"].to_list() == invalid
    else:
        assert apart is None


@pytest.mark.repeats(1)  # what is invalid is known before any loss
@pytest.mark.parametrize("loss", IN_FILES)
def test_what_is_invalid_is_for_the_contract_to_say(loss, tmp_path, monkeypatch):
    monkeypatch.setattr(SHARD, 60)
    frame = made()
    frame.write_parquet(tmp_path / "in.parquet")
    contract = pa.DataFrameSchema({"pair_id": pa.Column(checks=pa.Check.notin([3, 60, 61]))})
    broken = pl.col("pair_id").is_in([3, 60, 61])
    seen_so = frame.with_columns(pl.when(broken.not_()).then(pl.col(LOGPS)))
    expected = [v for v in plain(seen_so, loss, 7) if v is not None]
    result, scored, _ = written(
        tmp_path / "in.parquet",
        tmp_path,
        loss=loss,
        batch_size=7,
        on_invalid="exclude",
        contract=contract,
    )
    assert result.summary.n_invalid == 3
    assert scored["loss"].to_list() == close(expected)


@pytest.mark.parametrize("loss", BATCH_LOSSES)
def test_a_log_prob_above_0_takes_part_where_it_is_accepted(loss):
    above = pl.when(pl.int_range(N_ROWS) % 9 == 4).then(0.125).otherwise(LOGPS[0])
    frame = made().with_columns(above.alias(LOGPS[0]))
    down = frame.with_columns(pl.col(LOGPS) - 1.0)  # no loss of these sees a common constant
    found = evaluate(frame, loss=loss, batches=7, contract=Contract(max_logp=0.125))
    assert found.summary.n_invalid == 0
    assert found.batches["loss"].to_list() == close(means_of(plain(down, loss, 7), 7))


# --- figures


def means_of(values, size):
    parts = [values[i : i + size] for i in range(0, len(values), size)]
    sound = [[v for v in part if v is not None] for part in parts]
    return [mean(part) if part else None for part in sound]


@pytest.mark.repeats  # sizes and faults are the same code for each loss
@pytest.mark.parametrize("faults", [False, True])
@pytest.mark.parametrize("size", [1, 7, 1_000])
@pytest.mark.parametrize("loss", BATCH_LOSSES)
def test_means_of_batches_are_those_of_their_rows(loss, size, faults):
    frame = with_faults(made()) if faults else made()
    rows = plain(frame, loss, size)
    result = evaluate(frame, loss=loss, batches=size, on_invalid="exclude")
    assert result.summary.loss == close(mean([v for v in rows if v is not None]))
    expected = means_of(rows, size)
    found = result.batches
    assert found["batch"].to_list() == list(range(len(expected)))
    assert found["n_pairs"].to_list() == [
        min(size, N_ROWS - size * i) for i in range(len(expected))
    ]
    assert found["loss"].to_list() == close(expected)


@pytest.mark.repeats(1)  # subsets are cut before any loss
@pytest.mark.parametrize("loss", IN_FILES)
def test_subsets_are_of_rows_whose_batches_are_whole(loss, tmp_path, monkeypatch):
    monkeypatch.setattr(SHARD, 30)
    frame = with_faults(made())
    frame.write_parquet(tmp_path / "in.parquet")
    rows = frame.select("subset", loss=pl.Series(plain(frame, loss, 7)))
    for pairs in (frame, tmp_path / "in.parquet"):
        result = evaluate(
            pairs, loss=loss, by=Subsets("subset", histogram=True), batches=7, on_invalid="exclude"
        )
        found = dict(result.subsets.select("subset", "loss").iter_rows())
        assert set(found) == {"x", "y", None}
        for subset, value in found.items():
            own = rows.filter(pl.col("subset").eq_missing(pl.lit(subset)))["loss"].drop_nulls()
            assert value == close(mean(own.to_list()))
        expected = means_of(rows["loss"].to_list(), 7)
        assert result.batches["loss"].to_list() == close(expected)
        assert result.histogram["n_pairs"].sum() == result.summary.n_valid


@pytest.mark.repeats(2)  # three losses, and one without a reference
@pytest.mark.parametrize(
    "weights",
    [
        # `three` begins with one as well.
        pytest.param({"aot": 1.0, "sigmoid": 0.5}, id="batch loss first", marks=pytest.mark.slow),
        pytest.param({"sigmoid": 0.5, "kto_pair": 2.0}, id="row-wise loss first"),
        pytest.param({"kto_pair": 0.25, "aot_unpaired": 1.0, "hinge": 3.0}, id="three"),
        # Log-ratios are then log-probs of the policy, in the rewards, but not in the running mean.
        pytest.param({"cpo": 1.0, "kto_pair": 1.0}, id="a loss without reference first"),
    ],
)
def test_weighted_sums(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(SHARD, 60)
    frame = with_faults(made())
    frame.write_parquet(tmp_path / "in.parquet")

    def row_wise(name, row):
        c, r, ref_c, ref_r = row
        margin = 0.1 * (c - r if name == "cpo" else c - ref_c - r + ref_r)
        return max(0.0, 1.0 - margin) if name == "hinge" else sp(margin)

    rows = frame.select(LOGPS).rows()
    terms = [
        [None if v is None else weight * v for v in each]
        for name, weight in weights.items()
        for each in [
            plain(frame, name, 7)
            if name in PLAIN
            else [row_wise(name, row) if is_sound(row) else None for row in rows]
        ]
    ]
    expected = [None if None in row else math.fsum(row) for row in zip(*terms, strict=True)]
    assert losses_of(frame, weights, 7) == close(expected)
    result, scored, _ = written(
        tmp_path / "in.parquet", tmp_path, loss=weights, batch_size=7, on_invalid="exclude"
    )
    assert scored["loss"].to_list() == close([v for v in expected if v is not None])
    assert result.batches["loss"].to_list() == close(means_of(expected, 7))


# --- usage


MISSING = [
    pytest.param({"loss": "aot"}, "aot", id="no batches"),
    pytest.param({"loss": "aot_unpaired"}, "aot_unpaired", id="another loss"),
    pytest.param({"loss": {"sigmoid": 1.0, "kto_pair": 0.5}}, "kto_pair", id="one of a sum"),
]


BY_VALUE = pytest.param(
    {"loss": "kto_pair", "batch_by": "subset"}, "kto_pair", id="batches by value"
)


@pytest.mark.parametrize(("arguments", "name"), [*MISSING, BY_VALUE])
def test_files_without_a_batch_size_are_refused_unread(engine, tmp_path, arguments, name):
    made().write_parquet(tmp_path / "in.parquet")
    engine.graphs.clear()
    with pytest.raises(UsageError, match=rf"\b{name}\b.* is a loss of batches: give the number"):
        evaluate(tmp_path / "in.parquet", **grouped(**arguments))
    with pytest.raises(UsageError, match=rf"\b{name}\b.* is a loss of batches: give the number"):
        score_parquet(tmp_path / "in.parquet", tmp_path / "out.parquet", **grouped(**arguments))
    assert not engine.graphs
    assert [p.name for p in tmp_path.iterdir()] == ["in.parquet"]


@pytest.mark.parametrize(("arguments", "name"), MISSING)
def test_score_without_a_batch_size_is_refused_unread(engine, arguments, name):
    def never(_):
        raise AssertionError

    lazy = made().lazy().map_batches(never, schema=made().schema)
    with pytest.raises(UsageError, match=rf"\b{name}\b.* is a loss of batches: give the number"):
        score(lazy, **grouped(**arguments))
    score(lazy, **grouped(batch_size=7, **arguments))  # a plan, of which nothing is run
    assert not engine.graphs


@pytest.mark.parametrize("size", [0, -1, 2.0, True, [7]])
def test_a_batch_size_that_is_none(size):
    with pytest.raises(UsageError, match="batch size must be a whole number, at least 1"):
        score(made(), loss="aot", batches=size)
