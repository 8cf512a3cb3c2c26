"""Sums and bins of common pairs as arrays, against whole numbers of Python."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from compare_tools import frames, said
from dpo_pipeline import JoinError, compare
from dpo_pipeline.columns import ALL_LOGPS
from dpo_pipeline.comparison import common_pairs, paired_arrays, paired_gathering, side_sums
from dpo_pipeline.comparison.paired_arrays import Buffers, Histograms, PairedSums, SideArrays
from dpo_pipeline.comparison.paired_gathering import MEANS
from dpo_pipeline.comparison.sides import Table
from dpo_pipeline.sources import KEY, dataset, keys
from pair_tools import LOGPS

N = 17_000  # more than a block


def quanta(value):
    return round(float(value) * 2.0**40)  # a power of two: only this rounding, half to even


def side(rng, scale):
    scores = {name: rng.normal(0, scale, N) for name in MEANS}
    scores["reward_margin"][:40] = 0.0
    logps = {name: -np.abs(rng.normal(0, scale, N)) for name in LOGPS}
    table = pl.DataFrame(logps | scores)
    # As a plan gives them: in chunks, of which one is empty.
    chunks = pl.concat([table[:7], table[7:7], table[7:18_000], table[18_000:]])
    return SideArrays(chunks, ALL_LOGPS, MEANS, ["loss"], Buffers()), table


def gaps_of(codes, n, sides, names=MEANS):
    sums = PairedSums(n, names, Buffers(), most=np.bincount(codes).max())
    for (rows, of_a), (_, of_b) in zip(*(each.blocks() for each in sides), strict=True):
        for each, of in zip(sides, (of_a, of_b), strict=True):
            each.add(rows, of)
        sums.add(codes[rows], each.state[rows], (of_a, of_b), sides)
    return sums.gaps()


@pytest.mark.parametrize("scale", [1.0, 700.0, 2.0**45], ids=["small", "mixed", "wide"])
def test_sums_are_those_of_whole_numbers(scale):
    rng = np.random.default_rng(4)
    (a, table), (b, other) = side(rng, scale), side(rng, scale)
    codes = rng.integers(0, 3, N)
    codes[: N // 2] = 0  # one cluster with half of the pairs
    gaps = gaps_of(codes, 3, (a, b))
    for name in (*LOGPS, "loss"):
        assert a.sums[f"sum_{name}"] == sum(map(quanta, table[name]))
    margin = table["reward_margin"].to_numpy()
    assert a.sums["n_correct"] == (margin > 0).sum()
    assert a.sums["n_ties"] == 40
    for name in MEANS:
        expected = [0, 0, 0]
        for code, x, y in zip(codes, table[name], other[name], strict=True):
            expected[code] += quanta(y) - quanta(x)
        assert gaps[name].to_list() == expected


def test_sums_that_do_not_fit_64_bits():
    logps = {name: np.full(N, -2048.0) for name in LOGPS}
    a, b = (
        SideArrays(
            pl.DataFrame(logps | dict.fromkeys(MEANS, np.full(N, x))),
            ALL_LOGPS,
            MEANS,
            ["loss"],
            Buffers(),
        )
        for x in (-1024.0, 1024.0)
    )
    gaps = gaps_of(np.zeros(N, dtype=np.int64), 1, (a, b), ["loss"])
    assert gaps["loss"].to_list() == [N * 2048 * 2**40]
    assert b.sums["sum_loss"] == N * 1024 * 2**40
    assert a.sums[f"sum_{LOGPS[0]}"] == -N * 2048 * 2**40


@pytest.mark.parametrize("per_prompt", [None, 3])
def test_how_pairs_are_cut_changes_nothing(monkeypatch, per_prompt):
    a, b = frames(n=600, per_prompt=per_prompt)
    # Empty completions of both models break a rule, and so does a number above 0.
    empty = pl.when(pl.col("pair_id") % 97 == 0).then(0.0)
    nothing = {name: empty.otherwise(name) for name in (LOGPS[0], LOGPS[2])}
    above = pl.when(pl.col("pair_id") == 401).then(1.0).otherwise(LOGPS[1])
    a, b = a.with_columns(**nothing), b.with_columns(above.alias(LOGPS[1]))
    monkeypatch.setattr(paired_gathering, "WORST_HELD", 7)
    whole = compare(a, b, by="split", on_invalid="exclude")
    assert (whole.a.n_invalid, whole.b.n_invalid) == (6, 1)
    assert whole.n_valid == 600 - 7
    monkeypatch.setattr(keys, "ROWS_IN_STEP", 130)
    monkeypatch.setattr(paired_arrays, "_BLOCK", 32)
    pieces = [pl.concat([t[:3], t[3:200], t[200:201], t[201:]], rechunk=False) for t in (a, b)]
    cut = compare(*pieces, by="split", on_invalid="exclude")
    assert said(cut) == said(whole)


def written(tmp_path, *sides):
    """Files of one writer, of which columns with the same values have the same bytes."""
    for name, table in zip("ab", sides, strict=True):
        table.write_parquet(tmp_path / f"{name}.parquet", row_group_size=100)
    return [tmp_path / f"{name}.parquet" for name in "ab"]


LAST = pl.col("pair_id") == 319
BROKEN = pl.when(pl.col("pair_id") % 90 == 0).then(1.0).otherwise(LOGPS[3]).alias(LOGPS[3])


@pytest.mark.repeats(3)  # nothing, a column and a rule; others are columns in other places
@pytest.mark.filterwarnings("ignore::dpo_pipeline.DataWarning")
@pytest.mark.parametrize(
    ("both", "second", "is_read", "is_read_at_last"),
    [
        pytest.param([], [], set(), set(), id="nothing"),
        pytest.param(
            [],
            [pl.when(LAST).then(pl.col(LOGPS[2]) - 1).otherwise(LOGPS[2]).alias(LOGPS[2])],
            set(),
            {LOGPS[2]},
            id="a reference",
        ),
        pytest.param(
            [],
            [pl.when(LAST).then(-1).otherwise("prompt_id").alias("prompt_id")],
            set(),
            {"prompt_id"},
            id="a prompt",
        ),
        pytest.param([BROKEN], [], set(), set(), id="invalid on both sides"),
        pytest.param(
            [pl.lit(7).alias("chosen_num_tokens")],
            [],
            {KEY, *LOGPS[2:], "prompt_id", "split", "chosen_num_tokens"},
            {KEY, *LOGPS[2:], "prompt_id", "split", "chosen_num_tokens"},
            id="a count, of which a rule asks more",
        ),
    ],
)
def test_columns_alike_in_both_files_are_read_once(
    monkeypatch, tmp_path, both, second, is_read, is_read_at_last
):
    monkeypatch.setattr(dataset, "SHARD_ROWS_IN_STEP", 80)
    a, b = (each.with_columns(both) for each in frames(n=220, per_prompt=2))
    b, read, keyed = b.with_columns(second), [], Table.keyed

    def seen(self, key, names=(), *, has_key, **options):
        if self.letter == "b":
            read.append({*names, *([KEY] if has_key else [])} - {*LOGPS[:2]})
        return keyed(self, key, names, has_key=has_key, **options)

    monkeypatch.setattr(Table, "keyed", seen)
    found = compare(*written(tmp_path, a, b), by="split", on_invalid="exclude")
    assert len(read) == 3
    assert (read[0], read[-1]) == (is_read, is_read_at_last)
    documents = [found.to_dict(), compare(a, b, by="split", on_invalid="exclude").to_dict()]
    for each in documents:
        del each["verdict"]  # it names the files
        for side in "ab":
            each[side] |= {"source": None, "name": None, "invalid": None}
    assert documents[0] == documents[1]
    assert {*LOGPS[2:], KEY} <= read[-1]  # frames are read whole


@pytest.mark.parametrize("key", ["null", "twice"])
def test_keys_alike_in_both_files_are_checked_all_the_same(tmp_path, key):
    a, b = frames(n=40)
    value = None if key == "null" else 101
    odd = pl.when(pl.col("pair_id") == 130).then(value).otherwise("pair_id")
    sides = written(tmp_path, *(each.with_columns(odd.alias("pair_id")) for each in (a, b)))
    with pytest.raises(JoinError, match=key if key == "null" else "more than once"):
        compare(*sides)


def test_a_sample_of_pairs_does_not_depend_on_their_order(monkeypatch, tmp_path):
    monkeypatch.setattr(side_sums, "SENSED_PAIRS", 120)
    a, b = frames(n=600)
    # The references of the two completions are exchanged: surely wrong, in any sample.
    swapped = {LOGPS[2]: LOGPS[3], LOGPS[3]: LOGPS[2]}
    a, b = (each.rename(swapped).select(a.columns) for each in (a, b))
    found = []
    whole = common_pairs.PairedGathering.finish
    monkeypatch.setattr(
        common_pairs.PairedGathering,
        "finish",
        lambda self: found.append(whole(self)) or found[-1],
    )
    for name, table in (("a", a), ("b", b), ("c", a.sample(fraction=1, shuffle=True, seed=1))):
        table.write_parquet(tmp_path / f"{name}.parquet")
    first = compare(tmp_path / "a.parquet", tmp_path / "b.parquet")
    second = compare(tmp_path / "c.parquet", tmp_path / "b.parquet")
    assert any("exchanged" in doubt.title for doubt in first.doubts)
    assert said(first) == said(second).replace("c.parquet", "a.parquet")
    seen = [each.totals_a["n_seen"].item() for each in found]
    assert seen[0] == seen[1]
    assert 80 <= seen[0] <= 160
    lowest = a["policy_chosen_logps"].min()
    assert [each.totals_a["min_policy_chosen_logps"].item() for each in found] == [lowest, lowest]


def test_cells_of_both_margins_hold_each_pair_once():
    # Powers of two begin a bin. The second block has the lowest and the highest cell of all.
    blocks = [([1.0, 1.0, -2.0], [1.0, 1.0, 4.0]), ([8.0, -64.0], [64.0, -8.0])]
    made = Histograms(Buffers())
    assert made.margins().height == 0
    for a, b in map(np.array, blocks):
        made.add(a, b, b - a)
    table = made.margins().sort("a_bin", "b_bin")
    assert table["n_pairs"].to_list() == [1, 1, 2, 1]
    signs = table.select(pl.col("a_bin", "b_bin").sign()).rows()
    assert signs == [(-1, -1), (-1, 1), (1, 1), (1, 1)]
    a, b = (table[name].to_list() for name in ("a_bin", "b_bin"))
    assert (a[0], b[0], a[2]) == (-b[3], -a[3], b[2])  # of -64, -8 and 8, 64; of 1, 1
    assert made.changes()["n_pairs"].sum() == 5
