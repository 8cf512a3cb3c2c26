"""Policy and reference in separate tables: what the join gives, refuses, reads and leaves alone."""

from __future__ import annotations

import datetime as dt
import itertools
import json
import math
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from conftest import LOGPS, reference_row
from dpo_pipeline import (
    ColumnError,
    ContractError,
    InvalidPairsError,
    JoinError,
    StorageError,
    UsageError,
    check,
    compare,
    evaluate,
    join_reference,
    score_parquet,
    sweep,
)
from dpo_pipeline.cli.program import main
from dpo_pipeline.columns import SCORED
from dpo_pipeline.sources.dataset import Dataset, open_dataset
from dpo_pipeline.sources.joining import with_reference
from dpo_pipeline.storage import LOCAL

REFS = ("ref_chosen_logps", "ref_rejected_logps")
ADDED = [column.name for column in SCORED]
NOT_STREAMED = ("multiplexer", "in-memory-map", "in-memory-fallback")
FIGURES = [
    pytest.param({}, id="totals"),
    pytest.param({"by": ["turns", "split"]}, id="by"),
    pytest.param({"histogram": True, "by": "turns"}, id="histogram"),
    pytest.param({"batch_size": 64}, id="batches"),
    pytest.param({"batch_by": "turns", "by": "turns"}, id="batches by value"),
]
LAYOUTS = ("frame", "lazy", "arrow", "file", "folder", "list", "glob", "hive")


def laid_out(frame, layout, place):
    """Put a table where it can be read: as a frame, or in files below a folder of its own."""
    if layout in ("frame", "lazy", "arrow"):
        return {"frame": frame, "lazy": frame.lazy(), "arrow": frame.to_arrow()}[layout]
    place.mkdir(parents=True)
    if layout == "file":
        frame.write_parquet(place / "one.parquet", row_group_size=100)
        return place / "one.parquet"
    if layout == "hive":
        for (turns,), part in frame.group_by("turns", maintain_order=True):
            (place / f"turns={turns}").mkdir()
            part.drop("turns").write_parquet(place / f"turns={turns}" / "x.parquet")
        return place
    cuts = [0, frame.height // 3, frame.height // 2, frame.height // 2, frame.height]
    for i, (start, end) in enumerate(itertools.pairwise(cuts)):  # the third is empty
        frame[start:end].write_parquet(place / f"{i}.parquet", row_group_size=50)
    return {"folder": place, "list": sorted(place.iterdir()), "glob": f"{place}/*.parquet"}[layout]


def split(whole, on="pair_id", *, shuffled=True):
    """Cut a table of four log-probs into the policy's and the reference's."""
    reference = whole.select(on, *REFS)
    if shuffled:
        reference = reference.sample(fraction=1, shuffle=True, seed=5)
    return whole.drop(REFS), reference


def joined_by_hand(policy, reference, on="pair_id"):
    """Return the rows that a dictionary of the reference's gives."""
    found = {row[on]: tuple(row[name] for name in REFS) for row in reference.to_dicts()}
    return [(*row.values(), *found[row[on]]) for row in policy.to_dicts()]


def mean_loss(whole, beta=0.1):
    losses = [reference_row(*row, beta)[2] for row in whole.select(LOGPS).iter_rows()]
    return math.fsum(losses) / len(losses)


def told(result):
    """Return all that an evaluation says but where it read; repr tells every bit of a float."""
    tables = (result.subsets, result.batches, result.histogram)
    offenders = [(r.name, r.count, r.offenders) for r in result.invalid.broken]
    return (
        repr(result.summary.to_dict()),
        [None if t is None else (t.columns, repr(t.rows())) for t in tables],
        repr(offenders),
    )


def raised(kind, call, *args, **kwargs):
    with pytest.raises(kind) as caught:
        call(*args, **kwargs)
    assert type(caught.value) is kind
    return caught.value


def tree(folder):
    """Return every file below a folder with its bytes."""
    return {p: p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


@pytest.fixture
def two(pairs):
    return split(pairs)


@pytest.fixture
def files(tmp_path, two):
    place = tmp_path / "inputs"
    place.mkdir()
    for frame, name in zip(two, ("policy.parquet", "reference.parquet"), strict=True):
        frame.write_parquet(place / name)
    return place / "policy.parquet", place / "reference.parquet"


# What comes out


def test_rows_are_those_of_a_dictionary(real_pairs):
    policy, reference = split(real_pairs)
    assert reference["pair_id"].to_list() != policy["pair_id"].to_list()
    joined = join_reference(policy, reference)
    assert isinstance(joined, pl.LazyFrame)
    assert joined.collect_schema() == {
        **policy.schema,
        **{n: reference.schema[n] for n in REFS},
    }
    assert joined.collect(engine="streaming").rows() == joined_by_hand(policy, reference)


def test_join_reference_can_be_written_and_evaluated(tmp_path, real_pairs):
    policy, reference = split(real_pairs)
    join_reference(policy, reference).sink_parquet(tmp_path / "joined.parquet")
    assert told(evaluate(tmp_path / "joined.parquet")) == told(evaluate(real_pairs))


@pytest.mark.parametrize("arguments", FIGURES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_figures_are_those_of_one_table_to_the_bit(tmp_path, real_pairs, layout, arguments):
    policy, reference = split(real_pairs)
    whole = evaluate(laid_out(real_pairs, layout, tmp_path / "whole"), **arguments)
    found = evaluate(
        laid_out(policy, layout, tmp_path / "policy"), reference=reference, **arguments
    )
    assert told(found) == told(whole)
    assert found.summary.loss == pytest.approx(mean_loss(real_pairs), rel=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_reference_can_lie_in_any_way(tmp_path, real_pairs, layout):
    policy, reference = split(real_pairs.sort("turns", "pair_id"))
    if layout == "hive":
        reference = reference.with_columns(turns=pl.col("pair_id") % 3)
    place = laid_out(reference, layout, tmp_path / "reference")
    assert told(evaluate(policy, reference=place)) == told(evaluate(real_pairs))


def test_sweep_and_check_take_a_reference(tmp_path, real_pairs):
    policy, reference = split(real_pairs)
    source = laid_out(policy, "folder", tmp_path / "policy")
    arguments = {"beta": [0.05, 0.5], "loss": ["sigmoid", "ipo"]}
    table = sweep(source, reference=reference, **arguments).table
    assert table.equals(sweep(real_pairs, **arguments).table)
    report = check(source, reference=reference)
    assert (report.n_pairs, report.n_invalid) == (698, 0)


@pytest.mark.parametrize("layout", ["file", "folder", "list", "glob", "hive"])
def test_scored_rows_are_those_of_one_table(tmp_path, real_pairs, layout):
    policy, reference = split(real_pairs)
    ending = ".parquet" if layout == "file" else ""
    out = {}
    for name, frame, arguments in (
        ("whole", real_pairs, {}),
        ("split", policy, {"reference": laid_out(reference, "file", tmp_path / "reference")}),
    ):
        place = tmp_path / f"{name} scored{ending}"
        source = laid_out(frame, layout, tmp_path / name)
        score_parquet(source, place, by="turns", **arguments)
        paths = [place] if layout == "file" else sorted(place.rglob("*.parquet"))
        below = [str(p.relative_to(place)) for p in paths]
        out[name] = below, [pl.read_parquet(p, hive_partitioning=False) for p in paths]
    assert out["split"][0] == out["whole"][0]
    for found, expected in zip(out["split"][1], out["whole"][1], strict=True):
        names = [n for n in policy.columns if layout != "hive" or n != "turns"]
        assert found.columns == [*names, *REFS, *ADDED]
        assert found.equals(expected.select(found.columns))
        assert found.schema == expected.select(found.columns).schema


@pytest.mark.parametrize("layout", ["file", "folder", "hive"])
def test_offenders_are_named_by_their_rows_in_the_policy(tmp_path, real_pairs, layout):
    # Three of the four faults are the reference's, whose rows lie elsewhere.
    row = pl.int_range(pl.len())
    # In the order of the hive folders' names.
    real_pairs = real_pairs.sort(pl.col("turns").cast(pl.String), "pair_id").with_columns(
        policy_chosen_logps=pl.when(row == 11).then(None).otherwise("policy_chosen_logps"),
        ref_chosen_logps=pl.when(row == 300).then(1.5).otherwise("ref_chosen_logps"),
        ref_rejected_logps=pl.when(row.is_in([11, 697]))
        .then(math.nan)
        .otherwise("ref_rejected_logps"),
    )
    expected = {
        11: ["policy_chosen_logps.not_null", "ref_rejected_logps.not_nan"],
        300: ["ref_chosen_logps.at_most"],
        697: ["ref_rejected_logps.not_nan"],
    }
    ids = dict(enumerate(real_pairs["pair_id"]))
    policy, reference = split(real_pairs)
    source = laid_out(policy, layout, tmp_path / "policy")
    ending = ".parquet" if layout == "file" else ""
    out, apart = tmp_path / f"out{ending}", tmp_path / f"apart{ending}"
    result = score_parquet(source, out, reference=reference, on_invalid="quarantine", invalid=apart)
    written = {}
    for path in [apart] if layout == "file" else sorted(apart.rglob("*.parquet")):
        inside = pl.read_parquet(
            source if layout == "file" else source / path.relative_to(apart),
            hive_partitioning=False,
        )
        for each in pl.read_parquet(path, hive_partitioning=False).to_dicts():
            assert inside["pair_id"][each["source_row"]] == each["pair_id"]
            written[each["pair_id"]] = each["broken_rules"]
    assert written == {ids[row]: rules for row, rules in expected.items()}
    listed = {}
    for report in (
        result.invalid,
        evaluate(source, reference=reference, on_invalid="exclude").invalid,
        check(source, reference=reference),
    ):
        assert report.n_invalid == 3
        for rule in report.broken:
            for offender in rule.offenders:
                path = source if layout == "file" else source / offender.file
                pair = pl.read_parquet(path, hive_partitioning=False)["pair_id"][offender.row]
                listed.setdefault(pair, set()).add(rule.name)
    assert listed == {ids[row]: set(rules) for row, rules in expected.items()}
    scored = pl.read_parquet(out if ending else out / "**/*.parquet", hive_partitioning=False)
    assert scored["pair_id"].to_list() == [ids[i] for i in range(698) if i not in expected]


def test_order_and_rows_hold_over_many_chunks(tmp_path):
    # Bad rows lie at known places; a join that loses the order would name others.
    n = 60_000
    rows = pl.DataFrame({"pair_id": pl.int_range(n, eager=True).shuffle(seed=1)})
    policy = rows.with_columns(
        policy_chosen_logps=-1.0 - pl.col("pair_id"),
        policy_rejected_logps=-3.0 - pl.col("pair_id"),
    )
    reference = rows.sort("pair_id").with_columns(
        ref_chosen_logps=pl.when(pl.col("pair_id") % 20_000 == 7)
        .then(None)
        .otherwise(-1.5 - pl.col("pair_id")),
        ref_rejected_logps=-3.5 - pl.col("pair_id"),
    )
    policy.write_parquet(tmp_path / "p.parquet", row_group_size=3_000)
    reference.write_parquet(tmp_path / "r.parquet", row_group_size=7_000)
    bad = {i for i, key in enumerate(rows["pair_id"]) if key % 20_000 == 7}
    with pl.Config(streaming_chunk_size=500):
        result = score_parquet(
            tmp_path / "p.parquet",
            tmp_path / "o.parquet",
            reference=tmp_path / "r.parquet",
            on_invalid="quarantine",
            batch_size=1_000,
        )
    assert {o.row for o in result.invalid.broken[0].offenders} == bad
    apart = pl.read_parquet(tmp_path / "o.invalid.parquet")
    assert set(apart["source_row"]) == bad
    scored = pl.read_parquet(tmp_path / "o.parquet")
    assert scored["pair_id"].to_list() == [k for k in rows["pair_id"] if k % 20_000 != 7]
    assert (scored["policy_chosen_logps"] - scored["ref_chosen_logps"] == 0.5).all()
    by_batch = [sum(i // 1_000 == b for i in bad) for b in range(60)]
    assert result.batches["n_invalid"].to_list() == by_batch


# Columns


def test_other_columns_of_the_reference_stay_there(tmp_path, two):
    policy, reference = two
    policy = policy.with_columns(note=pl.lit("policy's"))
    reference = reference.with_columns(
        note=pl.lit("reference's"),
        subset=pl.lit("other"),
        more=1,
        policy_chosen_logps=-1.0,
        loss=pl.lit("text"),
    )
    joined = join_reference(policy, reference).collect()
    assert joined.columns == [*policy.columns, *REFS]
    assert joined.select(policy.columns).equals(policy)
    policy.write_parquet(tmp_path / "p.parquet")
    score_parquet(tmp_path / "p.parquet", tmp_path / "o.parquet", reference=reference)
    scored = pl.read_parquet(tmp_path / "o.parquet")
    assert scored.columns == [*policy.columns, *REFS, *ADDED]
    assert scored.select(policy.columns).equals(policy)


def test_aliases_on_both_sides(pairs, two):
    policy, reference = two
    policy = policy.rename({LOGPS[0]: "log_probs_chosen_policy"})
    reference = reference.rename({REFS[0]: "reference_chosen_logprobs"})
    result = evaluate(policy, reference=reference)
    assert told(result) == told(evaluate(pairs))
    assert result.columns["policy_chosen_logps"] == "log_probs_chosen_policy"


def test_one_export_script_run_on_both_models(pairs, two):
    # It calls its columns policy_*, whichever model it is given.
    policy, reference = two
    mapping = {ref: ref.replace("ref_", "policy_") for ref in REFS}
    result = evaluate(policy, reference=reference.rename(mapping), reference_columns=mapping)
    assert told(result) == told(evaluate(pairs))


def test_ambiguous_names_have_to_be_mapped(pairs, two):
    policy, reference = two
    mapping = {"ref_chosen_logps": "chosen_logps", "ref_rejected_logps": "rejected_logps"}
    reference = reference.rename(mapping)
    problems = raised(ColumnError, evaluate, policy, reference=reference).problems
    assert len(problems) == 2
    assert "of the policy in TRL, of the reference in open-instruct" in problems[0]
    result = evaluate(policy, reference=reference, reference_columns=mapping)
    assert told(result) == told(evaluate(pairs))


def test_the_policys_mapping_does_not_touch_the_reference(pairs, two):
    policy, reference = two
    result = evaluate(
        policy.rename({LOGPS[0]: "x", "pair_id": "key"}),
        columns={LOGPS[0]: "x", "pair_id": "key"},
        reference=reference.rename({"pair_id": "key"}),
        on="key",
    )
    assert told(result) == told(evaluate(pairs))


@pytest.mark.parametrize(
    ("change", "source", "problems"),
    [
        pytest.param(
            lambda p, r: (p, r.rename({"pair_id": "pairid"})),
            "reference",
            [["pair_id: missing", "did you mean 'pairid'", "--on", f"pairid, {', '.join(REFS)}"]],
            id="no key in the reference",
        ),
        pytest.param(
            lambda p, r: (p.rename({"pair_id": "pair_idx"}), r),
            "pairs",
            [["pair_id: missing", "did you mean 'pair_idx'", "pair_idx, subset, policy_chosen"]],
            id="no key in the policy",
        ),
        pytest.param(
            lambda p, r: (p, r.rename({REFS[0]: "ref_chosn_logps"})),
            "reference",
            [["ref_chosen_logps: missing", "did you mean 'ref_chosn_logps'"]],
            id="no log-prob in the reference",
        ),
        pytest.param(
            lambda p, r: (p, r.drop("pair_id", REFS[1])),
            "reference",
            [["ref_rejected_logps: missing"], ["pair_id: missing"]],
            id="both are said",
        ),
        pytest.param(
            lambda p, r: (p.with_columns(reference_chosen_logps=-1.0, ref_rejected_logps=-1.0), r),
            "pairs",
            [
                ["ref_chosen_logps: it is here as 'reference_chosen_logps'", "in reference too"],
                ["ref_rejected_logps: it is here as 'ref_rejected_logps'"],
            ],
            id="reference columns on both sides",
        ),
        pytest.param(
            lambda p, r: (p.drop("policy_chosen_logps"), r),
            "pairs",
            [["policy_chosen_logps: missing"]],
            id="no log-prob in the policy",
        ),
        pytest.param(
            lambda p, r: (p, r.with_columns(pl.col(REFS[0]).cast(pl.String))),
            "pairs",
            [["ref_chosen_logps: must be a number", "found String"]],
            id="text for a log-prob",
        ),
    ],
)
def test_columns_that_do_not_fit(two, change, source, problems):
    policy, reference = change(*two)
    error = raised(ColumnError, evaluate, policy, reference=reference)
    assert error.source == source
    assert len(error.problems) == len(problems)
    for problem, parts in zip(error.problems, problems, strict=True):
        for part in parts:
            assert part in problem
    assert error.exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(
            {"reference_columns": {"ref": "x"}}, "'ref' is not a column role", id="no role"
        ),
        pytest.param({"reference_columns": ["x"]}, "must map roles to column", id="no mapping"),
        pytest.param({"reference": 5}, "found int", id="no frame"),
        pytest.param(
            {"reference": None, "reference_columns": {}}, "give one", id="columns of no reference"
        ),
    ],
)
def test_arguments_that_cannot_be_used(two, arguments, said):
    policy, reference = two
    error = raised(UsageError, evaluate, policy, **{"reference": reference, **arguments})
    assert said in str(error)


# Keys


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(pl.Series([f"k{i}" for i in range(6)]), id="text"),
        pytest.param(pl.Series([f"k{i}" for i in range(6)], dtype=pl.Categorical), id="category"),
        pytest.param(
            pl.Series(list("abcdef"), dtype=pl.Enum(["f", "e", "d", "c", "b", "a"])), id="enum"
        ),
        pytest.param(pl.Series([bytes([i]) for i in range(6)]), id="bytes"),
        pytest.param(pl.Series([dt.date(2020, 1, i) for i in range(1, 7)]), id="dates"),
        pytest.param(pl.Series([0.5, math.nan, math.inf, -1.0, 0.0, 7.0]), id="floats"),
        pytest.param(pl.Series([2**63 + i for i in range(6)], dtype=pl.UInt64), id="UInt64"),
    ],
)
def test_keys_of_one_type(tmp_path, pairs, values):
    pairs = pairs.with_columns(pair_id=values)
    policy, reference = split(pairs)
    joined = join_reference(policy, reference).collect()
    assert joined.equals(pairs.select(joined.columns))
    assert joined.schema == pairs.select(joined.columns).schema
    policy.write_parquet(tmp_path / "p.parquet")
    reference.write_parquet(tmp_path / "r.parquet")
    result = evaluate(tmp_path / "p.parquet", reference=tmp_path / "r.parquet")
    assert told(result) == told(evaluate(pairs))


INTEGERS = (pl.Int8, pl.Int32, pl.Int64, pl.UInt8, pl.UInt32, pl.UInt64)


@pytest.mark.parametrize("right", INTEGERS)
@pytest.mark.parametrize("left", INTEGERS)
def test_integer_keys_of_any_width(pairs, left, right):
    pairs = pairs.with_columns(pair_id=pl.Series([5, 0, 3, 127, 1, 2]))
    policy, reference = split(pairs)
    joined = join_reference(
        policy.with_columns(pl.col("pair_id").cast(left)),
        reference.with_columns(pl.col("pair_id").cast(right)),
    )
    assert joined.collect().rows() == joined_by_hand(policy, reference)
    subsets = evaluate(joined, by="pair_id").subsets
    assert subsets["pair_id"].to_list() == [0, 1, 2, 3, 5, 127]


def test_large_integers_are_compared_exactly(pairs):
    # As Float64 the two would be equal.
    policy, reference = split(pairs[:1].with_columns(pair_id=pl.lit(2**53, pl.Int64)))
    reference = reference.with_columns(pair_id=pl.lit(2**53 + 1, pl.UInt64))
    error = raised(JoinError, join_reference, policy, reference)
    assert error.faults == {
        "in policy alone": (1, (2**53,)),
        "in reference alone": (1, (2**53 + 1,)),
    }


@pytest.mark.parametrize("left", [pl.Int32, pl.Int64, pl.UInt64])
def test_the_policys_key_keeps_its_type(tmp_path, pairs, left):
    key = pl.Series([5, 0, 3, 9, 1, 2])
    policy, reference = split(pairs.with_columns(pair_id=key))
    policy = policy.with_columns(pl.col("pair_id").cast(left))
    reference = reference.with_columns(pl.col("pair_id").cast(pl.UInt32))
    assert join_reference(policy, reference).collect_schema()["pair_id"] == left
    policy.write_parquet(tmp_path / "p.parquet")
    score_parquet(tmp_path / "p.parquet", tmp_path / "o.parquet", reference=reference)
    scored = pl.read_parquet(tmp_path / "o.parquet")
    assert scored.schema["pair_id"] == left
    assert scored["pair_id"].to_list() == key.to_list()


def _as(numbers, dtype):
    is_category = dtype in (pl.Categorical, pl.Enum)
    return numbers.cast(pl.String).cast(dtype) if is_category else numbers.cast(dtype)


CATEGORIES = pl.Enum(["9", "5", "3", "2", "1", "0"])


@pytest.mark.parametrize(
    ("left", "right"),
    [
        pytest.param(pl.String, pl.UInt64, id="text and integer"),
        pytest.param(pl.Int32, pl.String, id="integer and text"),
        pytest.param(pl.Categorical, pl.String, id="category and text"),
        pytest.param(pl.String, pl.Categorical, id="text and category"),
        pytest.param(pl.Categorical, CATEGORIES, id="category and enum"),
        pytest.param(CATEGORIES, pl.Int64, id="enum and integer"),
    ],
)
def test_text_is_what_is_written_so(pairs, left, right):
    texts = pl.Series(["5", "0", "3", "9", "1", "2"])
    policy, reference = split(pairs.with_columns(pair_id=texts))
    policy = policy.with_columns(pl.col("pair_id").cast(left))
    reference = reference.with_columns(pl.col("pair_id").cast(right)).reverse()
    joined = join_reference(policy, reference).collect()
    assert joined["pair_id"].dtype == left
    assert joined.select(LOGPS).equals(pairs.select(LOGPS))
    assert told(evaluate(policy, reference=reference)) == told(evaluate(pairs))


def test_padded_text_is_no_integer(two):
    policy = two[0][:2].with_columns(pair_id=pl.Series(["07", "8"]))
    reference = two[1][:2].with_columns(pair_id=pl.Series([7, 8]))
    error = raised(JoinError, join_reference, policy, reference)
    assert error.faults == {"in policy alone": (1, ("07",)), "in reference alone": (1, ("7",))}


@pytest.mark.parametrize(
    ("left", "right"),
    [
        pytest.param(pl.Float64, pl.String, id="number and text"),
        pytest.param(pl.String, pl.Boolean, id="text and truth"),
        pytest.param(pl.Float64, pl.Int64, id="float and integer"),
        pytest.param(pl.Float32, pl.Float64, id="floats"),
        pytest.param(pl.Categorical, pl.Float64, id="category and number"),
    ],
)
def test_keys_that_cannot_be_equal(files, two, left, right):
    numbers = pl.int_range(6)
    policy = two[0].with_columns(pair_id=_as(numbers, left))
    reference = two[1].with_columns(pair_id=_as(numbers, right))
    policy.write_parquet(files[0])
    error = raised(ColumnError, evaluate, files[0], reference=reference)
    expected = f"pair_id: it is {left()!r} here and {right()!r} in reference; convert one"
    assert error.problems == (expected,)
    assert error.source == str(files[0])


# Keys that are null, there twice, or on one side


def keyed(keys, prefix):
    """Return a table with these keys and the columns of its side."""
    frame = pl.DataFrame({"pair_id": pl.Series(keys, dtype=pl.String)})
    return frame.with_columns(
        pl.lit(-1.0).alias(f"{prefix}_chosen_logps"), pl.lit(-2.0).alias(f"{prefix}_rejected_logps")
    )


FAULTS = [
    pytest.param(
        ["a", None, "b", None],
        ["a", "b"],
        {"null in pairs": (2, (None,))},
        [
            "pairs (4 rows) and reference (2 rows) cannot be joined by 'pair_id':",
            "null in pairs: 2 rows",
        ],
        id="null in the policy",
    ),
    pytest.param(
        ["a", "b"],
        ["a", "b", None],
        {"null in reference": (1, (None,))},
        ["null in reference: 1 row"],
        id="null in the reference",
    ),
    pytest.param(
        ["a", None],
        ["a", None],
        {"null in pairs": (1, (None,)), "null in reference": (1, (None,))},
        ["null in pairs: 1 row", "null in reference: 1 row"],
        id="null is not equal to null",
    ),
    pytest.param(
        ["b", "a", "b", "b", "a", "c"],
        ["a", "b", "c"],
        {"more than once in pairs": (5, ("a", "b"))},
        ["more than once in pairs: 5 rows, such as 'a', 'b'"],
        id="twice in the policy",
    ),
    pytest.param(
        ["a", "b", "c"],
        ["c", "c", "b", "a"],
        {"more than once in reference": (2, ("c",))},
        ["more than once in reference: 2 rows, such as 'c'"],
        id="twice in the reference",
    ),
    pytest.param(
        ["g", "f", "e", "d", "c", "b", "a"],
        ["a"],
        {"in pairs alone": (6, ("b", "c", "d", "e", "f"))},
        [
            "pairs (7 rows) and reference (1 rows)",
            "in pairs alone: 6 rows, such as 'b', 'c', 'd', 'e', 'f'",
        ],
        id="lost",
    ),
    pytest.param(
        ["a"],
        ["b", "a"],
        {"in reference alone": (1, ("b",))},
        ["in reference alone: 1 row, such as 'b'"],
        id="too many",
    ),
    pytest.param(
        ["a", "b"],
        ["b", "c"],
        {"in pairs alone": (1, ("a",)), "in reference alone": (1, ("c",))},
        ["pairs (2 rows) and reference (2 rows)", "in pairs alone", "in reference alone"],
        id="as many, but others",
    ),
    pytest.param(
        [None, "a", "a", "x", "x", "b"],
        [None, None, "b", "b", "b", "y", "z", "a"],
        {
            "null in pairs": (1, (None,)),
            "null in reference": (2, (None,)),
            "more than once in pairs": (4, ("a", "x")),
            "more than once in reference": (3, ("b",)),
            "in pairs alone": (2, ("x",)),
            "in reference alone": (2, ("y", "z")),
        },
        ["pairs (6 rows) and reference (8 rows)"],
        id="all together",
    ),
    pytest.param(
        [],
        ["a"],
        {"in reference alone": (1, ("a",))},
        ["pairs (0 rows) and reference (1 rows)"],
        id="no policy",
    ),
    pytest.param(
        ["a"],
        [],
        {"in pairs alone": (1, ("a",))},
        ["pairs (1 rows) and reference (0 rows)"],
        id="no reference",
    ),
]


@pytest.mark.parametrize(("left", "right", "faults", "said"), FAULTS)
def test_each_fault_is_counted_and_named(left, right, faults, said):
    policy, reference = keyed(left, "policy"), keyed(right, "ref")
    error = raised(JoinError, evaluate, policy, reference=reference)
    assert isinstance(error, ContractError)
    assert error.on == "pair_id"
    assert error.rows == {"pairs": len(left), "reference": len(right)}
    assert error.faults == faults
    assert list(error.faults) == list(faults)
    lines = str(error).splitlines()
    assert len(lines) == 1 + len(faults)
    for text in said:
        assert any(text in line for line in lines)
    again = pickle.loads(pickle.dumps(error))  # noqa: S301  our own bytes
    assert (type(again), str(again), vars(again)) == (JoinError, str(error), vars(error))


@pytest.mark.parametrize(("left", "right", "faults", "_said"), FAULTS)
def test_a_fault_leaves_no_output_and_is_exit_code_1(tmp_path, capsys, left, right, faults, _said):
    policy, reference = tmp_path / "pairs.parquet", tmp_path / "reference.parquet"
    keyed(left, "policy").write_parquet(policy)
    keyed(right, "ref").write_parquet(reference)
    before = tree(tmp_path)
    error = raised(
        JoinError,
        score_parquet,
        policy,
        tmp_path / "out.parquet",
        reference=reference,
        summary=tmp_path / "summary.json",
        on_invalid="quarantine",
    )
    named = [
        fault.replace("reference", str(reference)).replace("pairs", str(policy)) for fault in faults
    ]
    assert list(error.faults) == named
    assert list(error.faults.values()) == list(faults.values())
    for verb, out in (("check", []), ("score", [tmp_path / "out.parquet"])):
        code = main([str(a) for a in (verb, policy, *out, "--reference", reference)])
        shown = capsys.readouterr()
        assert (code, shown.out) == (1, "")
        assert shown.err == f"error: {error}\n"
        assert f"{len(left):,} rows" in shown.err
        assert f"{len(right):,} rows" in shown.err
    assert tree(tmp_path) == before


@pytest.mark.parametrize("call", [evaluate, check, sweep])
def test_every_call_refuses_what_cannot_be_joined(call):
    raised(JoinError, call, keyed(["a"], "policy"), reference=keyed(["b"], "ref"))


def test_join_reference_calls_its_tables_by_their_names():
    error = raised(JoinError, join_reference, keyed(["a"], "policy"), keyed(["b"], "ref"))
    assert list(error.faults) == ["in policy alone", "in reference alone"]


def test_two_empty_tables_hold_no_pairs(two):
    policy, reference = (frame.clear() for frame in two)
    assert join_reference(policy, reference).collect().height == 0
    error = raised(ContractError, evaluate, policy, reference=reference)
    assert "holds no pairs" in str(error)


def test_a_reference_without_a_value_is_an_invalid_pair(two):
    # The key is there: so it is no fault of the join, and is reported as such a row always is.
    policy, reference = two
    reference = reference.with_columns(
        ref_chosen_logps=pl.when(pl.col("pair_id") == "c").then(None).otherwise(REFS[0])
    )
    error = raised(InvalidPairsError, evaluate, policy, reference=reference)
    assert error.report.by_rule == {"ref_chosen_logps.not_null": 1}
    assert error.report.broken[0].offenders[0].row == 2


@pytest.mark.parametrize(
    ("left", "right", "faults"),
    [
        pytest.param(["a", "x"], ["a"], [(1, ("x",))], id="lost"),
        pytest.param(["a", "a"], ["a"], [(2, ("a",))], id="twice in the policy"),
        pytest.param(["a", "x"], ["a", "y"], [(1, ("x",)), (1, ("y",))], id="both"),
    ],
)
def test_two_lists_of_as_many_files_are_told_apart(tmp_path, left, right, faults):
    sides = []
    for name, keys in (("policy", left), ("ref", right)):
        paths = [tmp_path / f"{name}{i}.parquet" for i in range(2)]
        keyed(keys, name).write_parquet(paths[0])
        keyed([], name).write_parquet(paths[1])
        sides.append(paths)
    error = raised(JoinError, evaluate, sides[0], reference=sides[1])
    assert list(error.faults.values()) == faults
    assert list(error.rows.values()) == [len(left), len(right)]


# Files stay as they are


def refusals(files):
    policy, reference = files
    out = policy.parent.parent / "out.parquet"
    yield JoinError, lambda **k: score_parquet(policy, out, **k), {"reference": "short"}
    yield ColumnError, lambda **k: score_parquet(policy, out, **k), {"on": "nothing"}
    yield StorageError, lambda **k: score_parquet(policy, out, **k), {"reference": "nothing"}
    yield StorageError, lambda **k: score_parquet(policy, out, **k), {"reference": "text"}
    yield StorageError, lambda **k: score_parquet(policy, policy, **k), {"overwrite": True}
    yield StorageError, lambda **k: score_parquet(policy, reference, **k), {}


def test_nothing_is_written_and_inputs_stay_on_any_error(tmp_path, files):
    places = {name: files[0].parent / f"{name}.parquet" for name in ("short", "text", "nothing")}
    pl.read_parquet(files[1])[:3].write_parquet(places["short"])
    places["text"].write_text("a,b\n1,2\n")
    before = tree(tmp_path)
    for kind, call, changes in refusals(files):
        arguments = {"reference": files[1], **changes}
        arguments["reference"] = places.get(arguments["reference"], arguments["reference"])
        error = raised(kind, call, **arguments)
        if changes.get("reference") in ("nothing", "text"):
            assert error.path == str(arguments["reference"])
            assert error.exit_code == 3
        assert tree(tmp_path) == before


OUTPUTS = [
    pytest.param(lambda p, r: score_parquet(p, r, reference=r, overwrite=True), id="sink"),
    pytest.param(lambda p, r: evaluate(p, reference=r, summary=r, overwrite=True), id="summary"),
    pytest.param(
        lambda p, r: evaluate(p, reference=r, batches=r, batch_size=2, overwrite=True),
        id="batches",
    ),
    pytest.param(
        lambda p, r: score_parquet(
            p, f"{p}.out", reference=r, on_invalid="quarantine", invalid=r, overwrite=True
        ),
        id="quarantine",
    ),
]


@pytest.mark.parametrize("call", OUTPUTS)
def test_an_output_in_the_place_of_the_reference_is_refused(tmp_path, files, call):
    before = tree(tmp_path)
    with pytest.raises(StorageError, match="the output is also an input"):
        call(*map(str, files))
    assert tree(tmp_path) == before


def test_an_output_folder_that_holds_the_reference_is_refused(tmp_path, files, pairs):
    pairs.write_parquet(tmp_path / "whole.parquet")
    score_parquet(tmp_path / "whole.parquet", tmp_path / "inputs" / "scored.parquet")
    (tmp_path / "out").mkdir()
    os.replace(tmp_path / "inputs" / "scored.parquet", tmp_path / "out" / "scored.parquet")
    before = tree(tmp_path)
    with pytest.raises(StorageError, match="the output folder holds inputs"):
        score_parquet(
            [files[0]],
            tmp_path / "out",
            reference=tmp_path / "out" / "scored.parquet",
            overwrite=True,
        )
    assert tree(tmp_path) == before


def test_an_output_inside_the_reference_folder_is_refused(tmp_path, files):
    folder = tmp_path / "reference"
    folder.mkdir()
    shutil.move(files[1], folder / "a.parquet")
    with pytest.raises(StorageError, match="a next run would read it"):
        score_parquet(files[0], folder / "out.parquet", reference=folder)


@pytest.fixture
def meanwhile(monkeypatch):
    """Do something right after the keys were compared."""

    def register(action):
        compared = Dataset.check_keys

        def then(self):
            compared(self)
            action()

        monkeypatch.setattr(Dataset, "check_keys", then)

    return register


def replaced(path, frame):
    """Write a file as long as the other, page by page, and put it in its place."""
    options = {"compression": "uncompressed", "use_pyarrow": True}
    frame.write_parquet(
        f"{path}.new",
        pyarrow_options={"use_dictionary": False, "write_statistics": False},
        **options,
    )
    os.replace(f"{path}.new", path)


CALLS = {
    "evaluate": lambda p, r: evaluate(p, reference=r, on_invalid="exclude"),
    "score": lambda p, r: score_parquet(p, f"{p}.out", reference=r, on_invalid="exclude"),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"ref_chosen_logps": pl.col("ref_chosen_logps") - 1.0}, id="values"),
        pytest.param({"pair_id": pl.col("pair_id").replace("b", "a")}, id="keys"),
    ],
)
def test_a_reference_that_changes_during_the_run_is_noticed(files, two, meanwhile, name, change):
    reference = two[1]
    replaced(files[1], reference)
    meanwhile(lambda: replaced(files[1], reference.with_columns(**change)))
    error = raised(StorageError, CALLS[name], *files)
    assert "changed while it was read" in str(error)
    assert not os.path.exists(f"{files[0]}.out")


@pytest.mark.parametrize("name", CALLS)
def test_a_reference_that_vanishes_is_an_error_without_outputs(tmp_path, files, meanwhile, name):
    meanwhile(lambda: os.unlink(files[1]))
    error = raised(StorageError, CALLS[name], *files)
    assert "no such file or folder" in str(error)
    assert list(tree(tmp_path)) == [files[0]]


@pytest.mark.parametrize("name", CALLS)
def test_a_reference_that_vanishes_is_named(files, meanwhile, name):
    meanwhile(lambda: os.unlink(files[1]))
    assert str(files[1]) in str(raised(StorageError, CALLS[name], *files))


# Cost in counts


def scans(engine):
    """Return how many columns each scan of each plan on files reads."""
    found = []
    for graph in engine.graphs:
        parts = graph.split("multi-scan[parquet]")[1:]
        found.append(sorted(int(part.split("project: ")[1].split()[0]) for part in parts))
    return [each for each in found if each]


@pytest.fixture
def wide(files):
    """Both files with a column of text that nobody asks for."""
    for path in files:
        pl.read_parquet(path).with_columns(text=pl.lit("x" * 99)).write_parquet(path)
    return files


def assert_streams(engine):
    for graph in engine.graphs:
        assert not any(word in graph for word in NOT_STREAMED)


def test_a_join_reads_nothing_until_it_is_asked_to(engine, wide):
    joined = with_reference(
        open_dataset(wide[0]),
        wide[1],
        on="pair_id",
        columns=None,
        reference_columns=None,
        access=LOCAL,
    )
    assert set(LOGPS) <= set(joined.frame.collect_schema())
    assert scans(engine) == []
    joined.check_keys()
    assert scans(engine) == [[1, 1]]
    assert_streams(engine)


def test_join_reference_reads_the_keys_alone(engine, wide):
    joined = join_reference(*wide)
    assert scans(engine) == [[1, 1]]
    joined.select(*LOGPS).collect(engine="streaming")
    assert scans(engine) == [[1, 1], [3, 3]]
    assert_streams(engine)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({}, id="totals"),
        pytest.param({"batch_size": 2, "histogram": True}, id="batches, histogram"),
    ],
)
def test_evaluate_reads_keys_once_and_data_once(engine, wide, arguments):
    evaluate(wide[0], reference=wide[1], **arguments)
    assert scans(engine) == [[1, 1], [3, 3]]
    assert_streams(engine)


def test_sweep_and_check_read_keys_once_and_data_once(engine, wide):
    sweep(wide[0], [0.1, 0.2], reference=wide[1], loss=["sigmoid", "ipo"])
    check(wide[0], reference=wide[1])
    assert scans(engine) == [[1, 1], [3, 3]] * 2
    assert_streams(engine)


def test_a_long_file_is_still_joined_once(engine, wide, monkeypatch):
    monkeypatch.setattr("dpo_pipeline.evaluation.measuring.SHARD_ROWS", 2)
    monkeypatch.setattr("dpo_pipeline.sums.batches.SHARD_ROWS", 2)
    evaluate(wide[0], reference=wide[1], batch_size=2)
    assert scans(engine) == [[1, 1], [3, 3]]


def test_score_reads_keys_once_and_data_twice(engine, wide, tmp_path):
    score_parquet(wide[0], tmp_path / "out.parquet", reference=wide[1])
    # Of the policy the last one writes all five columns, of the reference still three.
    assert scans(engine) == [[1, 1], [3, 3], [3, 5]]
    assert_streams(engine)


def test_score_of_a_folder_joins_once_a_file(engine, two, tmp_path):
    policy, reference = two
    folder = laid_out(policy, "folder", tmp_path / "policy")
    reference.write_parquet(tmp_path / "reference.parquet")
    score_parquet(folder, tmp_path / "out", reference=tmp_path / "reference.parquet")
    # Four files: each has a plan that writes it, and in it a scan of the reference.
    assert scans(engine) == [[1, 1], [3, 3], *[[3, 4]] * 4]
    assert_streams(engine)


# Losses of batches


def joined_loss(call, policy, reference, folder, **changes):
    arguments = {"loss": "aot", "batch_size": 2, "reference": reference, **changes}
    if call is score_parquet:
        return call(policy, folder / "out.parquet", **arguments)
    return call(policy, **arguments)


@pytest.mark.parametrize("call", [evaluate, score_parquet])
def test_losses_of_batches_are_refused_with_a_reference(tmp_path, files, call):
    before = tree(tmp_path)
    error = raised(UsageError, joined_loss, call, *files, tmp_path)
    assert "join_reference(...).sink_parquet" in str(error)
    assert error.exit_code == 2
    assert tree(tmp_path) == before


def test_what_the_refusal_advises_works(tmp_path, files, pairs):
    join_reference(*files).sink_parquet(tmp_path / "joined.parquet")
    arguments = {"loss": "aot", "batch_size": 2}
    found = evaluate(tmp_path / "joined.parquet", **arguments)
    assert told(found) == told(evaluate(pairs, **arguments))


@pytest.mark.parametrize("call", [evaluate, score_parquet])
def test_losses_of_batches_are_refused_before_reading(engine, tmp_path, files, call):
    engine.graphs.clear()  # of writing the files
    raised(UsageError, joined_loss, call, *files, tmp_path)
    assert scans(engine) == []


# The command line


def test_one_command_from_two_files_to_the_figures(tmp_path, real_pairs):
    policy, reference = split(real_pairs)
    mapping = {ref: ref.replace("ref_", "policy_") for ref in REFS}
    policy.rename({"pair_id": "key"}).write_parquet(tmp_path / "policy.parquet")
    reference.rename({"pair_id": "key", **mapping}).write_parquet(tmp_path / "base.parquet")
    options = [f"--reference-column={role}={name}" for role, name in mapping.items()]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "dpo_pipeline", "evaluate", "policy.parquet", "--json"),
            *("--reference", "base.parquet", "--on", "key", *options),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["summary"] == evaluate(real_pairs).summary.to_dict()


@pytest.mark.parametrize("verb", ["evaluate", "check", "sweep", "score"])
def test_every_command_takes_a_reference(tmp_path, capsys, files, verb):
    out = [tmp_path / "out.parquet"] if verb == "score" else []
    assert main([str(a) for a in (verb, files[0], *out, "--reference", files[1])]) == 0
    assert "6 pairs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        pytest.param(["--reference", "{r}", "--on", "pairid"], 1, "'pair_id'?", id="key"),
        pytest.param(["--reference", "nothing.parquet"], 3, "no such file", id="file"),
        pytest.param(["--reference-column", "x"], 2, "--reference-column takes", id="no ="),
        pytest.param(["--reference-column", "ref_chosen_logps=x"], 2, "give one", id="alone"),
        pytest.param(
            ["--reference", "{r}", "--reference-column", "ref_chosen_logps=ref_chosn_logps"],
            1,
            "did you mean 'ref_chosen_logps'?",
            id="column",
        ),
        pytest.param(
            ["--reference", "{r}", "--loss", "aot", "--batch-size", "2"], 2, "batches", id="aot"
        ),
    ],
)
def test_mistakes_on_the_command_line(capsys, files, options, code, said):
    found = main(["evaluate", str(files[0]), *(o.format(r=files[1]) for o in options)])
    out, err = capsys.readouterr()
    assert (found, out) == (code, "")
    assert said in err
    assert "Traceback" not in err


# What should be refused or taken, and is not yet


def test_a_reference_mapped_in_the_policy_is_on_both_sides(two):
    policy, reference = two
    policy = policy.with_columns(x=reference[REFS[0]], y=reference[REFS[1]])
    columns = dict(zip(REFS, ("x", "y"), strict=True))
    error = raised(ColumnError, evaluate, policy, columns=columns, reference=reference)
    assert "it is here as 'x'" in error.problems[0]


def test_one_column_of_the_reference_for_two_roles_is_refused(two):
    policy, reference = two
    error = raised(
        ColumnError,
        evaluate,
        policy,
        reference=reference,
        reference_columns=dict.fromkeys(REFS, REFS[0]),
    )
    assert "is mapped to" in str(error)


@pytest.mark.parametrize("role", ["policy_chosen_logps", "chosen_num_tokens"])
def test_a_mapping_for_another_role_is_refused(two, role):
    policy, reference = two
    mapping = {role: "pair_id"}
    raised(UsageError, evaluate, policy, reference=reference, reference_columns=mapping)


def test_the_hint_is_the_argument_for_the_reference(two):
    policy, reference = two
    reference = reference.rename({REFS[0]: "chosen_logps"})
    problem = raised(ColumnError, evaluate, policy, reference=reference).problems[0]
    assert "reference_columns={role: name}, or --reference-column role=name" in problem


def test_mapped_columns_of_several_files_may_be_of_several_numbers(tmp_path, pairs, two):
    policy, reference = two
    mapping = {ref: ref.removeprefix("ref_") for ref in REFS}
    reference = reference.rename(mapping)
    reference[:3].write_parquet(tmp_path / "a.parquet")
    whole = reference[3:].with_columns(pl.col("chosen_logps").cast(pl.Int64))
    whole.write_parquet(tmp_path / "b.parquet")
    found = evaluate(policy, reference=tmp_path, reference_columns=mapping)
    assert told(found) == told(evaluate(pairs))


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(pl.Series([[1], [2], [3]]), id="list"),
        pytest.param(pl.Series([[1, 2], [2, 3], [3, 4]], dtype=pl.Array(pl.Int64, 2)), id="array"),
        pytest.param(pl.Series([{"run": "x", "row": i} for i in range(3)]), id="struct"),
    ],
)
def test_a_key_is_a_plain_value(two, key):
    policy, reference = (frame[:3].with_columns(pair_id=key) for frame in two)
    error = raised(ColumnError, join_reference, policy, reference)
    assert "pair_id: a key must be a plain value, found" in error.problems[0]


KEY_TYPES = (pl.String, pl.Categorical, pl.Enum(list("012345")), pl.Int8, pl.UInt64, pl.Float64)


def compared(policy, reference):
    """Compare the table of the policy with one made of the reference's columns."""
    return compare(
        policy, reference.rename(dict(zip(REFS, LOGPS[:2], strict=True))), loss="cpo", on="pair_id"
    )


@pytest.mark.parametrize("call", [join_reference, compared])
@pytest.mark.parametrize(("left", "right"), [*itertools.combinations(KEY_TYPES, 2)])
def test_one_rule_says_which_keys_can_be_equal(two, call, left, right):
    numbers = pl.int_range(6)
    tables = [
        t.with_columns(pair_id=_as(numbers, d)) for t, d in zip(two, (left, right), strict=True)
    ]
    if right == pl.Float64:
        assert "convert one" in str(raised(ColumnError, call, *tables))
    else:
        call(*tables)


@pytest.mark.parametrize("on", [None, 5, ["pair_id"]])
def test_a_key_that_is_no_name_is_a_usage_error(two, on):
    policy, reference = two
    raised(UsageError, evaluate, policy, reference=reference, on=on)


def test_a_key_that_is_a_pattern_is_refused(two):
    policy, reference = (frame.rename({"pair_id": "^id$"}) for frame in two)
    error = raised(UsageError, evaluate, policy, reference=reference, on="^id$")
    assert "and no pattern, found '^id$'" in str(error)


def test_a_reference_of_tokens_is_refused(two):
    policy, reference = two
    tokens = reference.select(
        "pair_id",
        *(pl.concat_list(n, -0.0).alias(n.replace("_logps", "_token_logps")) for n in REFS),
    )
    error = raised(ColumnError, evaluate, policy, reference=tokens)
    assert [p.partition(":")[0] for p in error.problems] == list(REFS)
    assert "sum it before" in str(error)


def test_the_document_names_the_reference(real_pairs, tmp_path):
    policy, reference = split(real_pairs)
    policy.write_parquet(tmp_path / "policy.parquet")
    reference.write_parquet(tmp_path / "reference.parquet")
    where = tmp_path / "reference.parquet"
    found = evaluate(tmp_path / "policy.parquet", reference=where).to_dict()
    assert found["reference"] == str(where)
    assert evaluate(real_pairs).to_dict()["reference"] is None
