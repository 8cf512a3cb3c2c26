"""Tables in one order of keys, and in others: the same figures to the bit, the same faults."""

from __future__ import annotations

import gc
import math
import tempfile

import polars as pl
import pytest

from compare_tools import said
from dpo_pipeline import JoinError, OnInvalid, Pairs, compare, evaluate, score_parquet
from dpo_pipeline.sources import joining, keys
from option_tools import grouped
from pair_tools import LOGPS, REFS, split
from reference_tools import FAULTS, keyed, laid_out, raised, told

ON_DISK, IN_MEMORY = 100, keys.JOINED_ROWS
REPEATS = pytest.mark.slow  # the joins of `test_joined_rows` and of `comparison` are in memory


@pytest.fixture(
    params=[
        pytest.param(ON_DISK, id="on disk"),
        pytest.param(IN_MEMORY, id="in memory", marks=REPEATS),
    ]
)
def place(request, monkeypatch, tmp_path):
    """Where rows in another order wait for each other; the temporary folder is empty after it."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    gc.freeze()  # the collection below passes over what other tests made
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(keys, "JOINED_ROWS", request.param)
    monkeypatch.setattr(joining, "JOINED_BYTES", request.param * 8)
    monkeypatch.setattr(keys, "JOINED_BYTES", request.param * 16)
    monkeypatch.setattr(joining, "SHARD_ROWS_IN_STEP", 100)
    monkeypatch.setattr(keys, "ROWS_IN_STEP", 130)
    monkeypatch.setattr(keys, "_PARTS", 5)  # 64 files of a few rows cost much and show the same
    yield folder
    gc.collect()
    assert list(folder.iterdir()) == []


@pytest.fixture(scope="module")
def real_pairs(real_pairs):
    """Enough for four shards and two parts."""
    return real_pairs.head(320)


def moved(pairs):
    """The pairs of another policy."""
    return pairs.with_columns(pl.col(LOGPS[0]) - 0.25 * pl.col("turns"))


ORDERS = {
    "one order": lambda table: table,
    "shuffled": lambda table: table.sample(fraction=1, shuffle=True, seed=3),
    "another at the end": lambda table: pl.concat([table[:-2], table[-1:], table[-2:-1]]),
}

# --- a reference -----------------------------------------------------------------------------


@pytest.mark.repeats(1)  # each layout is read by the same scan
@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("layout", ["lazy", "hive"])
def test_figures_are_those_of_one_table(tmp_path, real_pairs, layout):
    policy, reference = split(real_pairs, shuffled=False)
    arguments = {"by": ["turns"], "batch_size": 64}
    whole = evaluate(laid_out(real_pairs, layout, tmp_path / "whole"), **grouped(**arguments))
    pairs = laid_out(policy, layout, tmp_path / "policy")
    for name, order in ORDERS.items():
        beside = laid_out(order(reference), "file", tmp_path / name)
        found = evaluate(pairs, **grouped(reference=beside, **arguments))
        assert told(found) == told(whole), name


@pytest.mark.repeats(1)  # formats become one plan before
@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("format", ["csv", "ipc"])
def test_a_reference_in_any_format(tmp_path, real_pairs, format):  # noqa: A002
    # In Float64, which text holds exactly.
    real_pairs = real_pairs.with_columns(pl.col(LOGPS).cast(pl.Float64))
    policy, reference = split(real_pairs, shuffled=False)
    policy.write_parquet(tmp_path / "policy.parquet")
    expected = evaluate(real_pairs).summary.to_dict()
    for name, order in ORDERS.items():
        path = tmp_path / f"{name}.{format}"
        getattr(order(reference), f"write_{format}")(path)
        found = evaluate(tmp_path / "policy.parquet", reference=path)
        assert found.summary.to_dict() == expected, name


@pytest.mark.repeats(1)  # the folder has the file's way, and more
@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("layout", ["folder", "file"])
def test_scored_files_are_those_of_one_table(tmp_path, real_pairs, layout):
    bad = pl.int_range(pl.len()).is_in([5, 250, 319])
    whole = real_pairs.with_columns(
        ref_chosen_logps=pl.when(bad).then(math.nan).otherwise("ref_chosen_logps")
    )
    policy, reference = split(whole, shuffled=False)

    def written(name, source, **more):
        out = tmp_path / (f"{name}.out.parquet" if layout == "file" else f"{name}.out")
        apart = out.with_name(f"{name}.apart{out.suffix}")
        score_parquet(source, out, on_invalid=OnInvalid("quarantine", file=apart), **more)
        paths = [p for each in (out, apart) for p in (each, *sorted(each.rglob("*.parquet")))]
        return [pl.read_parquet(path) for path in paths if path.is_file()]

    expected = written("whole", laid_out(whole, layout, tmp_path / "whole"))
    pairs = laid_out(policy, layout, tmp_path / "policy")
    for name, order in ORDERS.items():
        beside = laid_out(order(reference), "folder", tmp_path / f"{name} reference")
        for one, other in zip(expected, written(name, pairs, reference=beside), strict=True):
            assert other.equals(one.select(other.columns)), name


@pytest.mark.repeats  # both calls read keys by one function
@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(("left", "right", "faults", "_said"), FAULTS)
@pytest.mark.parametrize("call", [evaluate, compare])
def test_faults_are_counted_and_named_on_disk_too(left, right, faults, _said, call):
    policy, reference = keyed(left, "policy"), keyed(right, "ref")
    if call is evaluate:
        assert raised(JoinError, evaluate, policy, reference=reference).faults == faults
        return
    named = {what.replace("pairs", "A").replace("reference", "B"): n for what, n in faults.items()}
    wrong = {what: n for what, n in named.items() if "alone" not in what}
    other = reference.rename(dict(zip(REFS, LOGPS[:2], strict=True)))
    if wrong:
        assert raised(JoinError, compare, policy, other, loss="cpo").faults == wrong


@pytest.mark.usefixtures("place")
def test_offenders_are_the_lowest_of_all_parts():
    left, right = [f"{i:03}" for i in range(400)], [f"{i:03}" for i in range(390)]
    error = raised(JoinError, evaluate, keyed(left, "policy"), reference=keyed(right, "ref"))
    assert error.faults == {"in pairs alone": (10, ("390", "391", "392", "393", "394"))}


@pytest.mark.parametrize("keys_of", [[1, 2, 2, 3], [3, 1, 2, 1], [None, 1, 2, 3]])
def test_the_same_faulty_keys_on_both_sides_are_refused(keys_of):
    tables = [keyed([None if k is None else str(k) for k in keys_of], n) for n in ("policy", "ref")]
    error = raised(JoinError, evaluate, tables[0], reference=tables[1])
    word = "null" if None in keys_of else "more than once"
    assert [what.split(" in ")[0] for what in error.faults] == [word] * 2


@pytest.mark.parametrize("keys_of", [[1, 2, 2, 3], [3, 1, 2, 1], [None, 1, 2, 3]])
def test_files_with_the_same_bytes_of_faulty_keys_are_refused(tmp_path, keys_of):
    paths = []
    for name in ("policy", "ref"):
        paths.append(tmp_path / f"{name}.parquet")
        keyed([None if k is None else str(k) for k in keys_of], name).write_parquet(paths[-1])
    error = raised(JoinError, evaluate, paths[0], reference=paths[1])
    word = "null" if None in keys_of else "more than once"
    assert [what.split(" in ")[0] for what in error.faults] == [word] * 2


# --- a comparison ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compared(real_pairs):
    """What frames in one order give."""
    return said(compare(real_pairs, moved(real_pairs), by="turns"))


@pytest.mark.repeats(1)  # each layout is read by the same scan
@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("layout", ["frame", "hive"])
def test_sides_in_any_order_give_the_same_bits(tmp_path, real_pairs, layout, compared):
    a, b = real_pairs, moved(real_pairs)
    first = laid_out(a, layout, tmp_path / "a")
    for name, order in ORDERS.items():
        if (layout, name) != ("frame", "one order"):
            other = laid_out(order(b), layout, tmp_path / name)
            assert said(compare(first, other, by="turns")) == compared, name


@pytest.mark.repeats(1)  # orders, as above
@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("order", ORDERS)
def test_a_reference_of_both_sides(real_pairs, order, compared):
    a, b = real_pairs, moved(real_pairs)
    reference = ORDERS[order](real_pairs.select("pair_id", *REFS))
    found = compare(a.drop(REFS), b.drop(REFS), by="turns", reference=reference)
    assert said(found) == compared


@pytest.mark.repeats(1)  # orders, as above
@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("order", ORDERS)
def test_a_side_with_a_reference_of_its_own(tmp_path, real_pairs, order, compared):
    a, b = real_pairs, moved(real_pairs)
    reference = ORDERS[order](real_pairs.select("pair_id", *REFS))
    for name, table in (("b", b.drop(REFS)), ("r", reference)):
        table.write_parquet(tmp_path / f"{name}.parquet")
    side = Pairs(tmp_path / "b.parquet", reference=tmp_path / "r.parquet")
    assert said(compare(a, side, by="turns")) == compared


def test_progress_starts_again_with_the_join(real_pairs, monkeypatch):
    monkeypatch.setattr(keys, "ROWS_IN_STEP", 100)
    seen = []
    other = ORDERS["another at the end"](moved(real_pairs))
    compare(real_pairs, other, **grouped(progress=seen.append))
    evaluating = [each.rows for each in seen if each.phase == "evaluating"]
    assert max(evaluating) == evaluating[-1] == 320
    assert seen[0].phase == "evaluating"  # side by side, to the last chunk
    assert "joining" in {each.phase for each in seen}


# --- keys that are all different -------------------------------------------------------------


def rows(*runs):
    return [pl.Series(run) for run in runs]


def in_chunks(*values):
    return [pl.concat(rows(*values), rechunk=False)]


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("chunks", "are_unique"),
    [
        pytest.param(rows([1, 2], [3, 9]), True, id="rising"),
        pytest.param(rows([1, 2], [2, 3]), False, id="twice over two chunks"),
        pytest.param(rows([1, 1]), False, id="twice"),
        pytest.param(rows([5, 6], [1, 2]), True, id="two runs"),
        pytest.param(rows([5, 6], [1, 5]), False, id="two runs that touch"),
        pytest.param(rows([5, 6, 1, 9]), False, id="runs that overlap, of which nothing is known"),
        pytest.param(rows(["b", "c"], ["a", "aa"]), True, id="texts"),
        pytest.param(rows(list(range(3000, 0, -1)), [3001]), True, id="falling"),
        pytest.param(rows(list(range(3000, 0, -1)), [7]), False, id="falling, twice"),
        pytest.param(rows([1, 2], list(range(3000, 3, -1))), False, id="falling later: not known"),
        pytest.param(rows([]), True, id="none"),
        pytest.param(in_chunks([1, 2], [3, 9], [11]), True, id="rising over chunks"),
        pytest.param(in_chunks([1, 2], [2, 3]), False, id="twice over chunks"),
        pytest.param(in_chunks([3001], list(range(3000, 0, -1))), True, id="falling after a chunk"),
    ],
)
def test_unique_keys(chunks, are_unique):
    with keys.UniqueKeys() as found:
        for chunk in chunks:
            found.add(chunk)
        assert found.are_unique is are_unique
        assert len(found._runs) <= 1_000  # noqa: SLF001  memory does not grow
