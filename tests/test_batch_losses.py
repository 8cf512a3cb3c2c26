"""Losses of batches, against plain Python over lists of the pairs of each batch."""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import random
import subprocess
import sys

import pandera.polars as pa
import polars as pl
import pytest

from conftest import LOGPS
from dpo_pipeline import UsageError, evaluate, score, score_parquet
from dpo_pipeline.sources.dataset import Dataset

BATCH_LOSSES = ("aot", "aot_unpaired", "kto_pair", "bco_pair_running")
N_ROWS = 151
SHARD = "dpo_pipeline.evaluation.shards.COUPLED_SHARD_ROWS"


def sp(x):
    """-log sigma(x)."""
    return max(-x, 0.0) + math.log1p(math.exp(-abs(x)))


def sigma(x):
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0 else math.exp(x) / (1.0 + math.exp(x))


def mean(values):
    return math.fsum(values) / len(values)


def smoothed(z, e):
    return (1.0 - e) * sp(z) + e * sp(-z)


def of_equal_rank(own, others):
    """For each own value the other one of its rank; equal ones are ranked as they come."""
    ranked = sorted(range(len(own)), key=own.__getitem__)
    matched = dict(zip(ranked, sorted(others), strict=True))
    return [matched[i] for i in range(len(own))]


def plain_aot(batch, beta, e, _seen):
    own = [c - r for c, r, _, _ in batch]
    matched = of_equal_rank(own, [ref_c - ref_r for _, _, ref_c, ref_r in batch])
    return [smoothed(beta * (u - v), e) for u, v in zip(own, matched, strict=True)]


def plain_aot_unpaired(batch, beta, e, _seen):
    chosen = [c - ref_c for c, _, ref_c, _ in batch]
    matched = of_equal_rank(chosen, [r - ref_r for _, r, _, ref_r in batch])
    return [smoothed(beta * (h - v), e) for h, v in zip(chosen, matched, strict=True)]


def plain_kto_pair(batch, beta, _e, _seen):
    chosen = [c - ref_c for c, _, ref_c, _ in batch]
    rejected = [r - ref_r for _, r, _, ref_r in batch]
    chosen_kl, rejected_kl = max(0.0, mean(chosen)), max(0.0, mean(rejected))
    return [
        ((1.0 - sigma(beta * (h_c - rejected_kl))) + (1.0 - sigma(beta * (chosen_kl - h_r)))) / 2.0
        for h_c, h_r in zip(chosen, rejected, strict=True)
    ]


def plain_bco_pair_running(batch, beta, _e, seen):
    """`seen` holds the rewards of all batches before, and gets those of this one."""
    rewards = [(beta * (c - ref_c), beta * (r - ref_r)) for c, r, ref_c, ref_r in batch]
    seen.extend(itertools.chain.from_iterable(rewards))
    baseline = mean(seen)
    return [sp(chosen - baseline) + sp(-(rejected - baseline)) for chosen, rejected in rewards]


PLAIN = {
    "aot": plain_aot,
    "aot_unpaired": plain_aot_unpaired,
    "kto_pair": plain_kto_pair,
    "bco_pair_running": plain_bco_pair_running,
}


def is_sound(row):
    return all(value is not None and value <= 0.0 for value in row)  # NaN is not


def plain(frame, loss, size, *, beta=0.1, e=0.0, seen=()):
    """The loss of each row, None for an invalid one, which is as if it were not in its batch."""
    rows, losses, seen = frame.select(LOGPS).rows(), [], list(seen)
    for first in range(0, len(rows), size):
        batch = rows[first : first + size]
        sound = [row for row in batch if is_sound(row)]
        found = iter(PLAIN[loss](sound, beta, e, seen) if sound else ())
        losses += [next(found) if is_sound(row) else None for row in batch]
    return losses


def close(expected, tolerance=1e-11):
    """What equals a value, or each of a list, None alone being close to None."""
    # Means over a batch are made from whole quanta of 2**-40.
    if isinstance(expected, list):
        return [close(value, tolerance) for value in expected]
    return None if expected is None else pytest.approx(expected, rel=tolerance, abs=tolerance)


def made(n_rows=N_ROWS, *, step=None, seed=0):
    """Pairs whose log-probs have all bits of a Float64, or are few multiples of a step."""
    draw = random.Random(seed)
    values = {
        name: [
            -draw.uniform(0.0, 60.0) if step is None else -step * draw.randrange(12)
            for _ in range(n_rows)
        ]
        for name in LOGPS
    }
    return pl.DataFrame(
        {
            "pair_id": range(n_rows),
            **values,
            "subset": [draw.choice(["x", "y", None]) for _ in range(n_rows)],
            "tags": [[str(i), "t"][: i % 3] for i in range(n_rows)],
        }
    )


def with_faults(frame):
    """The same pairs with null, NaN and positive log-probs; rows 70 to 76 are all invalid."""
    rows = pl.int_range(pl.len())
    return frame.with_columns(
        policy_chosen_logps=pl.when(rows % 10 == 3).then(None).otherwise("policy_chosen_logps"),
        policy_rejected_logps=pl.when(rows % 23 == 5)
        .then(math.nan)
        .otherwise("policy_rejected_logps"),
        ref_chosen_logps=pl.when(rows % 31 == 30).then(0.5).otherwise("ref_chosen_logps"),
        ref_rejected_logps=pl.when(rows.is_between(70, 76))
        .then(math.inf)
        .otherwise("ref_rejected_logps"),
    )


def losses_of(frame, loss, size, engine="in-memory", **arguments):
    plan = score(frame, loss=loss, batch_size=size, **arguments)
    return plan.collect(engine=engine)["loss"].to_list()


# --- values row by row


@pytest.mark.parametrize("engine", ["in-memory", "streaming"])
@pytest.mark.parametrize("size", [1, 2, 7, 64, N_ROWS, 1_000])
@pytest.mark.parametrize("loss", BATCH_LOSSES)
def test_rows_against_plain_python(loss, size, engine):
    frame = made()
    assert losses_of(frame, loss, size, engine) == close(plain(frame, loss, size))


@pytest.mark.parametrize("beta", [0.0, 0.01, 1.0, 30.0])
@pytest.mark.parametrize("loss", BATCH_LOSSES)
def test_betas_against_plain_python(loss, beta):
    frame = made()
    expected = plain(frame, loss, 7, beta=beta)
    assert losses_of(frame, loss, 7, beta=beta) == close(expected, 1e-9)


@pytest.mark.parametrize("size", [7, 64])
@pytest.mark.parametrize("e", [0.1, 0.5])
@pytest.mark.parametrize("loss", ["aot", "aot_unpaired"])
def test_label_smoothing_against_plain_python(loss, e, size):
    frame = made()
    expected = plain(frame, loss, size, e=e)
    assert losses_of(frame, loss, size, loss_args={"label_smoothing": e}) == close(expected)


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
        pytest.param("bco_pair_running", [1.4549, 0.9485, 0.6886], 4, id="bco_pair_running"),
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


@pytest.mark.parametrize("engine", ["in-memory", "streaming"])
@pytest.mark.parametrize("size", [7, 64])
@pytest.mark.parametrize("loss", BATCH_LOSSES)
def test_invalid_pairs_take_no_part_in_score(loss, size, engine):
    frame = with_faults(made(step=0.25))
    expected = plain(frame, loss, size)
    assert 20 < expected.count(None) < 40
    assert losses_of(frame, loss, size, engine) == close(expected)


@pytest.mark.parametrize("first", [0, 70])
def test_an_invalid_batch_leaves_the_running_mean_as_it_was(first):
    # Of the faults, rows 70 to 76 are a whole batch.
    frame = with_faults(made())[first:]
    found = losses_of(frame, "bco_pair_running", 7)
    assert found == close(plain(frame, "bco_pair_running", 7))
    assert found[70 - first : 77 - first] == [None] * 7


def written(source, folder, **options):
    """Scored rows, and the invalid ones if they were kept."""
    ending = "" if source.is_dir() else ".parquet"
    scored, apart = folder / f"scored{ending}", folder / f"apart{ending}"
    if options.get("on_invalid") == "quarantine":
        options["invalid"] = apart
    result = score_parquet(source, scored, overwrite=True, **options)
    return result, *(pl.read_parquet(p) if p.exists() else None for p in (scored, apart))


@pytest.mark.parametrize("on_invalid", ["exclude", "quarantine"])
@pytest.mark.parametrize("size", [7, 64])
@pytest.mark.parametrize("loss", BATCH_LOSSES)
def test_invalid_pairs_take_no_part_in_files(loss, size, on_invalid, tmp_path, monkeypatch):
    monkeypatch.setattr(SHARD, 30)
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


@pytest.mark.parametrize("loss", BATCH_LOSSES)
def test_what_is_invalid_is_for_the_contract_to_say(loss, tmp_path, monkeypatch):
    monkeypatch.setattr(SHARD, 30)
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
    found = evaluate(frame, loss=loss, batch_size=7, max_logp=0.125)
    assert found.summary.n_invalid == 0
    assert found.batches["loss"].to_list() == close(means_of(plain(down, loss, 7), 7))


# --- figures


def means_of(values, size):
    parts = [values[i : i + size] for i in range(0, len(values), size)]
    sound = [[v for v in part if v is not None] for part in parts]
    return [mean(part) if part else None for part in sound]


@pytest.mark.parametrize("faults", [False, True])
@pytest.mark.parametrize("size", [1, 7, 1_000])
@pytest.mark.parametrize("loss", BATCH_LOSSES)
def test_means_of_batches_are_those_of_their_rows(loss, size, faults):
    frame = with_faults(made()) if faults else made()
    rows = plain(frame, loss, size)
    result = evaluate(frame, loss=loss, batch_size=size, on_invalid="exclude")
    assert result.summary.loss == close(mean([v for v in rows if v is not None]))
    expected = means_of(rows, size)
    found = result.batches
    assert found["batch"].to_list() == list(range(len(expected)))
    assert found["n_pairs"].to_list() == [
        min(size, N_ROWS - size * i) for i in range(len(expected))
    ]
    assert found["loss"].to_list() == close(expected)


@pytest.mark.parametrize("loss", BATCH_LOSSES)
def test_subsets_are_of_rows_whose_batches_are_whole(loss, tmp_path, monkeypatch):
    monkeypatch.setattr(SHARD, 30)
    frame = with_faults(made())
    frame.write_parquet(tmp_path / "in.parquet")
    rows = frame.select("subset", loss=pl.Series(plain(frame, loss, 7)))
    for pairs in (frame, tmp_path / "in.parquet"):
        result = evaluate(
            pairs, loss=loss, batch_size=7, by="subset", on_invalid="exclude", histogram=True
        )
        found = dict(result.subsets.select("subset", "loss").iter_rows())
        assert set(found) == {"x", "y", None}
        for subset, value in found.items():
            own = rows.filter(pl.col("subset").eq_missing(pl.lit(subset)))["loss"].drop_nulls()
            assert value == close(mean(own.to_list()))
        expected = means_of(rows["loss"].to_list(), 7)
        assert result.batches["loss"].to_list() == close(expected)
        assert result.histogram["n_pairs"].sum() == result.summary.n_valid


@pytest.mark.parametrize(
    "weights",
    [
        pytest.param({"aot": 1.0, "sigmoid": 0.5}, id="batch loss first"),
        pytest.param({"sigmoid": 0.5, "kto_pair": 2.0}, id="row-wise loss first"),
        pytest.param({"bco_pair_running": 0.25, "aot_unpaired": 1.0, "hinge": 3.0}, id="three"),
        # Log-ratios are then log-probs of the policy, in the rewards, but not in the running mean.
        pytest.param({"cpo": 1.0, "bco_pair_running": 1.0}, id="a loss without reference first"),
    ],
)
def test_weighted_sums(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(SHARD, 30)
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


# --- shards, files and row groups


def laid_out(frame, folder):
    """The same rows in one file and in folders whose files end inside batches."""
    frame.write_parquet(folder / "one.parquet")
    frame.write_parquet(folder / "groups.parquet", row_group_size=10)
    for name, ends in {
        "three": [0, 10, 10, 93, N_ROWS],  # and an empty one
        "seven": [0, 1, 5, 17, 60, 140, 141, N_ROWS],
    }.items():
        (folder / name).mkdir()
        for i, (first, last) in enumerate(itertools.pairwise(ends)):
            frame[first:last].write_parquet(folder / name / f"{i:02}.parquet", row_group_size=9)
    return [folder / name for name in ("one.parquet", "groups.parquet", "three", "seven")]


@pytest.mark.parametrize(
    ("loss", "size"),
    [
        ("aot", 7),
        ("aot_unpaired", 64),
        ("kto_pair", 7),
        ("bco_pair_running", 7),
        ("bco_pair_running", 64),
    ],
)
def test_the_same_bits_for_any_layout_and_shard(loss, size, tmp_path, monkeypatch):
    frame = with_faults(made())
    given = {"loss": loss, "batch_size": size, "on_invalid": "exclude"}
    whole = score(frame, loss=loss, batch_size=size).collect()
    valid = whole.filter(pl.col("loss").is_not_null())
    held = evaluate(frame, by="subset", **given)
    (tmp_path / "out").mkdir()
    for source in laid_out(frame, tmp_path):
        for rows in {"one.parquet": (262_144,), "seven": (14,)}.get(source.name, (30,)):
            monkeypatch.setattr(SHARD, rows)
            found = evaluate(source, by="subset", **given)
            assert found.summary == held.summary, (source, rows)
            assert found.subsets.equals(held.subsets), (source, rows)
            assert found.batches.equals(held.batches), (source, rows)
            result, scored, _ = written(source, tmp_path / "out", **given)
            assert scored.equals(valid), (source, rows)
            assert result.summary == held.summary, (source, rows)


def test_bytes_of_an_output_do_not_follow_shards(tmp_path, monkeypatch):
    made().write_parquet(tmp_path / "in.parquet", row_group_size=10)
    found = set()
    for rows in (1, 30, 262_144):
        monkeypatch.setattr(SHARD, rows)
        out, means = tmp_path / "out.parquet", tmp_path / "means.parquet"
        score_parquet(
            tmp_path / "in.parquet",
            out,
            loss="bco_pair_running",
            batch_size=7,
            batches=means,
            overwrite=True,
        )
        found.add(tuple(hashlib.sha256(p.read_bytes()).hexdigest() for p in (out, means)))
    assert len(found) == 1


@pytest.mark.parametrize("loss", BATCH_LOSSES)
def test_files_have_row_by_row_what_score_gives(loss, tmp_path, monkeypatch):
    monkeypatch.setattr(SHARD, 30)
    frame = made()
    whole = score(frame, loss=loss, batch_size=7).collect()
    assert set(frame.columns) < set(whole.columns)
    ends = [0, 10, 11, 93, N_ROWS]
    for source in laid_out(frame, tmp_path)[1:3]:
        _, scored, _ = written(source, tmp_path, loss=loss, batch_size=7)
        assert scored.equals(whole)
        assert scored.schema == whole.schema
    parts = sorted((tmp_path / "scored").glob("*.parquet"))
    assert [pl.read_parquet(p).height for p in parts] == [10, 0, 83, N_ROWS - 93]
    assert len(parts) == len(ends) - 1


def test_rows_stand_in_order_beyond_a_morsel(tmp_path):
    # The engine hands rows on in portions, and a window need not keep them in order.
    n_rows, cut, size = 300_000, 262_144, 64  # the cut between two shards as they are by default
    row = pl.int_range(n_rows, dtype=pl.UInt64)
    frame = pl.select(
        pair_id=row, **{n: -1.0 - (row.hash(seed=i) % 4_096) / 64.0 for i, n in enumerate(LOGPS)}
    )
    frame.write_parquet(tmp_path / "in.parquet", row_group_size=10_007)
    weights = dict.fromkeys(BATCH_LOSSES, 1.0)
    _, scored, _ = written(tmp_path / "in.parquet", tmp_path, loss=weights, batch_size=size)
    assert scored["pair_id"].equals(frame["pair_id"])
    assert scored.equals(score(frame, loss=weights, batch_size=size).collect())
    # Two batches on each side of the cut, and all that the running mean has seen before them.
    near, before = frame[cut - 2 * size : cut + 2 * size], frame[: cut - 2 * size]
    policy_chosen, policy_rejected, ref_chosen, ref_rejected = before.select(LOGPS)
    logratios = [*(policy_chosen - ref_chosen), *(policy_rejected - ref_rejected)]
    seen = [0.1 * h for h in logratios]
    terms = [plain(near, loss, size, seen=seen) for loss in BATCH_LOSSES]
    expected = [math.fsum(row) for row in zip(*terms, strict=True)]
    assert scored["loss"][cut - 2 * size : cut + 2 * size].to_list() == close(expected)


def test_the_running_mean_goes_from_shard_to_shard(tmp_path, monkeypatch):
    monkeypatch.setattr(SHARD, 30)  # 28 rows, four batches
    frame = with_faults(made())
    frame.write_parquet(tmp_path / "in.parquet")
    expected = [v for v in plain(frame, "bco_pair_running", 7) if v is not None]
    anew = [
        v
        for first in range(0, N_ROWS, 28)
        for v in plain(frame[first : first + 28], "bco_pair_running", 7)
        if v is not None
    ]
    n_first = sum(v is not None for v in plain(frame[:28], "bco_pair_running", 7))
    _, scored, _ = written(
        tmp_path / "in.parquet",
        tmp_path,
        loss="bco_pair_running",
        batch_size=7,
        on_invalid="exclude",
    )
    assert scored["loss"].to_list() == close(expected)
    # A mean that starts anew is told apart in every shard but the first.
    assert anew[:n_first] == close(expected[:n_first])
    assert min(abs(a - b) for a, b in zip(anew[n_first:], expected[n_first:], strict=True)) > 1e-7


# --- usage

MISSING = [
    pytest.param({"loss": "aot"}, "aot", id="no batches"),
    pytest.param({"loss": "aot_unpaired"}, "aot_unpaired", id="another loss"),
    pytest.param({"loss": {"sigmoid": 1.0, "kto_pair": 0.5}}, "kto_pair", id="one of a sum"),
]
BY_VALUE = pytest.param(
    {"loss": "bco_pair_running", "batch_by": "subset"}, "bco_pair_running", id="batches by value"
)


@pytest.mark.parametrize(("arguments", "name"), [*MISSING, BY_VALUE])
def test_files_without_a_batch_size_are_refused_unread(engine, tmp_path, arguments, name):
    made().write_parquet(tmp_path / "in.parquet")
    engine.graphs.clear()
    with pytest.raises(UsageError, match=rf"\b{name}\b.* is a loss of batches: give batch_size"):
        evaluate(tmp_path / "in.parquet", **arguments)
    with pytest.raises(UsageError, match=rf"\b{name}\b.* is a loss of batches: give batch_size"):
        score_parquet(tmp_path / "in.parquet", tmp_path / "out.parquet", **arguments)
    assert not engine.graphs
    assert [p.name for p in tmp_path.iterdir()] == ["in.parquet"]


@pytest.mark.parametrize(("arguments", "name"), MISSING)
def test_score_without_a_batch_size_is_refused_unread(engine, arguments, name):
    def never(_):
        raise AssertionError

    lazy = made().lazy().map_batches(never, schema=made().schema)
    with pytest.raises(UsageError, match=rf"\b{name}\b.* is a loss of batches: give batch_size"):
        score(lazy, **arguments)
    score(lazy, batch_size=7, **arguments)  # a plan, of which nothing is run
    assert not engine.graphs


@pytest.mark.parametrize("size", [0, -1, 2.0, True, "7"])
def test_a_batch_size_that_is_none(size):
    with pytest.raises(UsageError, match="batch_size must be a whole number, at least 1"):
        score(made(), loss="aot", batch_size=size)


# --- cost


def test_rows_are_read_shard_by_shard_each_of_whole_batches(engine, tmp_path, monkeypatch):
    monkeypatch.setattr(SHARD, 30)
    made().write_parquet(tmp_path / "in.parquet", row_group_size=10)
    cut, shards = [], Dataset.shards

    def seen(self, rows):
        for shard in shards(self, rows):
            cut.append((shard.first_row, shard.rows))
            yield shard

    monkeypatch.setattr(Dataset, "shards", seen)
    engine.graphs.clear()
    evaluate(tmp_path / "in.parquet", loss="aot", batch_size=7)
    assert cut == [(first, min(28, N_ROWS - first)) for first in range(0, N_ROWS, 28)]
    assert engine.data_scans == len(engine.graphs) == len(cut) == 6
    for graph, (first, rows) in zip(engine.graphs, cut, strict=True):
        assert f"slice: offset: {first}, len: {rows}" in graph  # by the scan itself
        assert "in-memory-map" not in graph
        assert "in-memory-fallback" not in graph
    engine.graphs.clear()
    score_parquet(tmp_path / "in.parquet", tmp_path / "out.parquet", loss="aot", batch_size=7)
    assert engine.data_scans == 12
    scans = [graph for graph in engine.graphs if "multi-scan[parquet]" in graph]
    assert all("len: 28" in graph or "len: 11" in graph for graph in scans)


def test_a_writer_holds_one_shard_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(SHARD, 30)
    made().write_parquet(tmp_path / "in.parquet")
    heights, collect = [], pl.LazyFrame.collect

    def noted(self, **options):
        found = collect(self, **options)
        heights.append(found.height)
        return found

    monkeypatch.setattr(pl.LazyFrame, "collect", noted)
    score_parquet(tmp_path / "in.parquet", tmp_path / "out.parquet", loss="aot", batch_size=14)
    # First sums of batches, two in a shard; then rows, each once as scored and once as written.
    assert heights == [2] * 5 + [1] + [28] * 10 + [11] * 2


def test_small_files_of_one_shard_are_scored_together(tmp_path, engine):
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(10):
        made()[15 * i : 15 * (i + 1)].write_parquet(folder / f"{i}.parquet")
    engine.graphs.clear()
    score_parquet(folder, tmp_path / "out", loss="aot", batch_size=14)
    assert engine.data_scans == 2  # to measure, and to score for all ten files


def test_long_rows_make_small_shards(tmp_path, monkeypatch):
    monkeypatch.setattr("dpo_pipeline.evaluation.shards.COUPLED_SHARD_BYTES", 100_000)
    long = made().with_columns(text=pl.concat_str([pl.int_range(pl.len()).hash()] * 100))
    long.write_parquet(tmp_path / "in.parquet")
    heights, collect = [], pl.LazyFrame.collect

    def noted(self, **options):
        found = collect(self, **options)
        heights.append(found.height)
        return found

    monkeypatch.setattr(pl.LazyFrame, "collect", noted)
    score_parquet(tmp_path / "in.parquet", tmp_path / "out.parquet", loss="aot", batch_size=14)
    assert max(heights) <= 56  # of some 2 kB each, in whole batches
    assert sum(heights) > 2 * N_ROWS


def test_a_batch_larger_than_a_shard_is_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(SHARD, 10)
    frame = made()
    frame.write_parquet(tmp_path / "in.parquet", row_group_size=9)
    _, scored, _ = written(tmp_path / "in.parquet", tmp_path, loss="aot", batch_size=64)
    assert scored["loss"].to_list() == close(plain(frame, "aot", 64))


MEMORY = """
import pathlib, re, sys
import dpo_pipeline
source, out = sys.argv[1:]
given = {"loss": "aot", "batch_size": 64, "batches": out + ".batches"}
if out.endswith("evaluate"):
    dpo_pipeline.evaluate(source, **given)
else:
    dpo_pipeline.score_parquet(source, out, **given)
# Not ru_maxrss, which begins with the size of the process that started this one.
print(re.search(r"VmHWM:\\s*(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for the peak")
@pytest.mark.parametrize("command", ["evaluate", "score_parquet"])
def test_memory_does_not_grow_with_rows(tmp_path, command):
    peaks = {}
    for millions in (2, 6):
        source = tmp_path / f"{millions}.parquet"
        row = pl.int_range(millions * 1_000_000, dtype=pl.UInt64)
        logps = {n: -400.0 * (row.hash(seed=i) / 2.0**64) for i, n in enumerate(LOGPS)}
        pl.select(**logps).write_parquet(source, row_group_size=100_000)
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, source, tmp_path / f"{millions}-{command}"],
            env={**os.environ, "POLARS_MAX_THREADS": "2"},
            capture_output=True,
            text=True,
            check=True,
        )
        peaks[millions] = int(done.stdout) // 1024
    assert peaks[6] <= 1.2 * peaks[2], peaks
    assert peaks[6] < 500, peaks
