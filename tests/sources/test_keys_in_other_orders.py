"""Keys in another order than the policy's: whichever way brings the reference into it."""

from __future__ import annotations

import gc
import random
import tempfile

import polars as pl
import pytest

from dpo_pipeline import JoinError, evaluate, score_parquet
from dpo_pipeline.sources import joining
from pair_tools import LOGPS, REFS

N = 200
MIXED = random.Random(5).sample(range(N), N)
FAR = [(7_919 * i * i + 3) * 2**20 for i in range(N)]
INT = {"pair_id": pl.Int64}
KEYS = {
    "integers in a row": (range(N), pl.Int64, ["table"]),
    "of few bits, below zero": (range(-100, 100), pl.Int8, ["table"]),
    "with gaps": ([3 * i for i in range(N)], pl.Int32, ["table"]),
    "in a row, and then not": ([*range(N - 1), N + 7], pl.Int64, ["table"]),
    "mixed on both sides": (MIXED, pl.UInt16, ["table"]),
    "far apart": (FAR, pl.Int64, ["join"]),
    "beyond 64 bits with a sign": ([2**63 + i for i in range(N)], pl.UInt64, ["join"]),
    "from the least to the most": ([-(2**63), *range(1, N - 1), 2**63 - 1], pl.Int64, ["join"]),
    "texts": ([f"{i:x}" for i in MIXED], pl.String, ["join"]),
    "bytes": ([bytes([i % 256, i // 256]) for i in MIXED], pl.Binary, ["join"]),
    "numbers that are not whole": ([i / 4 for i in MIXED], pl.Float64, ["join"]),
}


@pytest.fixture(params=["in memory", "on disk"])
def ways(request, monkeypatch, tmp_path):
    """How rows got their places; the temporary folder is empty after it."""
    folder, found = tmp_path / "temporary", []
    folder.mkdir()
    gc.freeze()  # the collection below passes over what other tests made
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(joining, "SHARD_ROWS_IN_STEP", 64)
    if request.param == "on disk":  # a table of keys takes 8 bytes each, their rows 20
        monkeypatch.setattr(joining, "JOINED_BYTES", 8 * N)
    for way, name in (("table", "_placed"), ("join", "_paired")):
        tried = getattr(vars(joining)["_Beside"], name)

        def noted(self, *rows, tried=tried, way=way):
            ordered = tried(self, *rows)
            if ordered is not None:
                found.append(way)
            return ordered

        monkeypatch.setattr(f"dpo_pipeline.sources.joining._Beside.{name}", noted)
    yield found
    gc.collect()
    assert list(folder.iterdir()) == []


def tables(keys, dtype, folder):
    """Write a policy, and its reference in another order; return their paths and both as one."""
    rng = random.Random(2)
    n = len(keys)
    whole = pl.DataFrame(
        {"pair_id": pl.Series(keys, dtype=dtype)}
        | {name: [-100.0 * rng.random() - 1.0 for _ in range(n)] for name in LOGPS}
    )
    # A null and a NaN of the reference are values like others.
    whole = whole.with_columns(
        pl.when(pl.int_range(n) == 17).then(None).otherwise(REFS[0]).alias(REFS[0]),
        pl.when(pl.int_range(n) == 99).then(float("nan")).otherwise(REFS[1]).alias(REFS[1]),
    )
    other = whole.select("pair_id", *REFS)[random.Random(3).sample(range(n), n)]
    policy, reference = folder / "policy.parquet", folder / "reference.parquet"
    whole.select("pair_id", *LOGPS[:2]).write_parquet(policy, row_group_size=70)
    other.write_parquet(reference, row_group_size=110)
    return policy, reference, whole


@pytest.mark.repeats  # each kind of keys in one of the places
@pytest.mark.parametrize(("keys", "dtype", "expected"), KEYS.values(), ids=KEYS)
def test_each_pair_gets_its_own_reference(tmp_path, ways, keys, dtype, expected):
    policy, reference, whole = tables(keys, dtype, tmp_path)
    out = tmp_path / "out.parquet"
    score_parquet(policy, out, reference=reference, on_invalid="exclude")
    sound = pl.int_range(pl.len()).is_in([17, 99]).not_()
    found = pl.read_parquet(out).select(whole.columns)
    assert found.equals(whole.filter(sound))
    assert ways == expected


def test_figures_are_those_of_one_table(tmp_path, ways):
    policy, reference, whole = tables(MIXED, pl.Int64, tmp_path)
    assert evaluate(policy, reference=reference, on_invalid="exclude").summary == (
        evaluate(whole, on_invalid="exclude").summary
    )
    assert ways == ["table"]


FAULTS = {  # the policy's keys, the reference's, and what is said of them
    "twice in the reference": ([0, 1, 2, 3], [3, 1, 1, 0], "more than once in reference: 1"),
    "twice in the policy": ([0, 1, 1, 3], [3, 1, 2, 0], "more than once in pairs: 1"),
    "below the first": ([0, 1, 2, 3], [3, 2, 1, -1], "in reference alone: -1"),
    "beyond the last": ([0, 1, 2, 3], [4, 2, 1, 0], "in reference alone: 4"),
    "in a gap": ([0, 2, 4, 6], [6, 4, 3, 0], "in reference alone: 3"),
    "null in the reference": ([0, 1, 2, 3], [3, 2, None, 0], "null in reference: None"),
    "null in the policy": ([0, None, 2, 3], [3, 2, 1, 0], "null in pairs: None"),
    "null on both sides": ([0, None, 2, 3], [3, 2, None, 0], "null in reference: None"),
    "more in the reference": ([0, 1, 2], [2, 1, 0, 3], "in reference alone: 3"),
    "more in the policy": ([0, 1, 2, 3], [2, 1, 0], "in pairs alone: 3"),
    "twice on both sides": ([0, 1, 1, 3], [3, 1, 1, 0], "more than once in pairs: 1"),
    # 2**63 - 1 less the lowest is beyond Int64, where it wraps.
    "as far as can be": ([-5, -4, -3, -2], [-2, -3, -4, 2**63 - 1], f"alone: {2**63 - 1}"),
}


@pytest.mark.repeats  # each fault in one of the types and places
@pytest.mark.usefixtures("ways")
@pytest.mark.parametrize("as_text", [False, True], ids=["integers", "texts"])
@pytest.mark.parametrize(("left", "right", "said"), FAULTS.values(), ids=FAULTS)
def test_a_faulty_key_is_named(left, right, said, as_text):
    frames = [
        pl.DataFrame({"pair_id": keys, **dict.fromkeys(names, -1.0)}, schema_overrides=INT)
        for keys, names in ((left, LOGPS[:2]), (right, REFS))
    ]
    if as_text:
        frames = [each.with_columns(pl.col("pair_id").cast(pl.String)) for each in frames]
    with pytest.raises(JoinError) as caught:
        evaluate(frames[0].lazy(), reference=frames[1])
    lazily = caught.value.faults
    with pytest.raises(JoinError) as caught:
        evaluate(frames[0], reference=frames[1])
    assert caught.value.faults == lazily
    what, _, key = said.rpartition(": ")
    named = {name: [str(each) for each in keys] for name, (_, keys) in lazily.items()}
    assert any(name.endswith(what) and key in keys for name, keys in named.items()), named
