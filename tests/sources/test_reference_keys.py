"""Keys of a joined reference: their types, and nulls, duplicates and pairs without a partner."""

from __future__ import annotations

import datetime as dt
import itertools
import math
import pickle

import polars as pl
import pytest

from dpo_pipeline import (
    ColumnError,
    ContractError,
    InvalidPairsError,
    JoinError,
    Outputs,
    check,
    compare,
    evaluate,
    join_reference,
    score_parquet,
    sweep,
)
from dpo_pipeline.cli.program import main
from pair_tools import LOGPS, REFS, split
from reference_tools import FAULTS, joined_by_hand, keyed, raised, told, tree

# Keys


@pytest.mark.repeats(3)  # keys of one type are joined as they are
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


@pytest.mark.repeats  # each width on both sides
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


@pytest.mark.repeats(1)  # keys are cast by one function
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


@pytest.mark.repeats(4)  # categories are read as texts
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


KEY_TYPES = (pl.String, pl.Categorical, pl.Enum(list("012345")), pl.Int8, pl.UInt64, pl.Float64)


def compared(policy, reference):
    """Compare the table of the policy with one made of the reference's columns."""
    return compare(
        policy, reference.rename(dict(zip(REFS, LOGPS[:2], strict=True))), loss="cpo", on="pair_id"
    )


@pytest.mark.repeats(8)  # it is one rule
@pytest.mark.parametrize("call", [join_reference, compared])
@pytest.mark.parametrize(("left", "right"), [*itertools.combinations(KEY_TYPES, 2)])
def test_one_rule_says_which_keys_can_be_equal(two, call, left, right):
    numbers = pl.int_range(6)
    tables = [
        t.with_columns(pair_id=_as(numbers, d)) for t, d in zip(two, (left, right), strict=True)
    ]
    if right == pl.Float64:
        error = raised(ColumnError, call, *tables)
        assert len(error.problems) == 1
        assert error.problems[0].startswith("pair_id: it is ")
        assert error.problems[0].endswith("; convert one")
    else:
        call(*tables)


# Keys that are null, there twice, or on one side


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


FILE_FAULTS = [fault for fault in FAULTS if fault.id != "no policy"]


@pytest.mark.repeats(3)  # all faults are one error
@pytest.mark.parametrize(("left", "right", "faults", "_said"), FILE_FAULTS)
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
        outputs=Outputs(tmp_path / "summary.json"),
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


def test_a_file_of_no_pairs_is_refused_by_its_footer(tmp_path, capsys, engine):
    policy, reference = tmp_path / "pairs.parquet", tmp_path / "reference.parquet"
    keyed([], "policy").write_parquet(policy)
    keyed(["a"], "ref").write_parquet(reference)
    before = tree(tmp_path)
    engine.graphs.clear()  # of writing the files
    error = raised(
        ContractError, score_parquet, policy, tmp_path / "out.parquet", reference=reference
    )
    assert str(error) == f"{policy}: it holds no pairs, so nothing was evaluated"
    assert not engine.data_scans
    for verb, out in (("check", []), ("score", [tmp_path / "out.parquet"])):
        code = main([str(a) for a in (verb, policy, *out, "--reference", reference)])
        assert (code, *capsys.readouterr()) == (1, "", f"error: {error}\n")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("call", [evaluate, check, sweep])
def test_every_call_refuses_what_cannot_be_joined(call):
    raised(JoinError, call, keyed(["a"], "policy"), reference=keyed(["b"], "ref"))


def test_join_reference_calls_its_tables_by_their_names():
    error = raised(JoinError, join_reference, keyed(["a"], "policy"), keyed(["b"], "ref"))
    assert list(error.faults) == ["in policy alone", "in reference alone"]


@pytest.mark.parametrize(
    ("left", "right", "said"),
    [
        ("a7", "a7 ", "'a7' and 'a7 ' differ by spaces around them alone"),
        ("a7", "A7", "'a7' and 'A7' differ by case alone"),
        ("7", "007", "'7' and '007' differ by leading zeros alone"),
        ("7", "7.0", "'7' and '7.0' differ by the .0 of a float alone"),
        ("a", "b", None),
    ],
)
def test_keys_that_are_nearly_equal_are_named(left, right, said):
    call = evaluate, keyed(["x", left], "policy"), keyed(["x", right], "ref")
    text = str(raised(JoinError, call[0], call[1], reference=call[2]))
    assert text.endswith(f"{said}: write them alike in both" if said else f"such as {right!r}")


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
