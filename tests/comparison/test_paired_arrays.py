"""Sums and bins of common pairs as arrays, against whole numbers of Python."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from compare_tools import frames, said
from dpo_pipeline import compare
from dpo_pipeline.columns import ALL_LOGPS
from dpo_pipeline.comparison import common_pairs, side_sums
from dpo_pipeline.comparison.paired_arrays import Buffers, SideArrays, gaps_by
from dpo_pipeline.comparison.paired_gathering import MEANS
from pair_tools import LOGPS

N = 17_000  # more than a block


def quanta(value):
    return round(float(value) * 2.0**40)  # a power of two: only this rounding, half to even


def side(rng, scale):
    scores = {name: rng.normal(0, scale, N) for name in MEANS}
    scores["reward_margin"][:40] = 0.0
    logps = {name: -np.abs(rng.normal(0, scale, N)) for name in LOGPS}
    table = pl.DataFrame(logps | scores)
    return SideArrays(table, ALL_LOGPS, MEANS, ["loss"], Buffers()), table


@pytest.mark.parametrize("scale", [1.0, 700.0, 2.0**45], ids=["small", "mixed", "wide"])
def test_sums_are_those_of_whole_numbers(scale):
    rng = np.random.default_rng(4)
    (a, table), (b, other) = side(rng, scale), side(rng, scale)
    for name in (*LOGPS, "loss"):
        assert a.sums[f"sum_{name}"] == sum(map(quanta, table[name]))
    margin = table["reward_margin"].to_numpy()
    assert a.sums["n_correct"] == (margin > 0).sum()
    assert a.sums["n_ties"] == 40
    codes = rng.integers(0, 3, N)
    codes[: N // 2] = 0  # one cluster with half of the pairs
    gaps = gaps_by(codes, 3, (a, b), MEANS, Buffers())
    for name in MEANS:
        expected = [0, 0, 0]
        for code, x, y in zip(codes, table[name], other[name], strict=True):
            expected[code] += quanta(y) - quanta(x)
        assert gaps[name].to_list() == expected


def test_a_sum_that_does_not_fit_64_bits():
    rng = np.random.default_rng(6)
    (a, _), (b, _) = side(rng, 400.0), side(rng, 400.0)
    for each, sign in ((a, -1.0), (b, 1.0)):
        each.of["loss"] = np.full(N, sign * 1024.0)
        each.lowest["loss"], each.highest["loss"] = sign * 1024.0, sign * 1024.0
    gaps = gaps_by(np.zeros(N, dtype=np.int64), 1, (a, b), ["loss"], Buffers())
    assert gaps["loss"].to_list() == [N * 2048 * 2**40]


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
