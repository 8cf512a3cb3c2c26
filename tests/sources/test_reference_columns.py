"""Columns of policy and reference: what is taken from which, and what does not fit."""

from __future__ import annotations

import polars as pl
import pytest

from dpo_pipeline import (
    ColumnError,
    Pairs,
    Reference,
    UsageError,
    evaluate,
    join_reference,
    score_parquet,
)
from option_tools import grouped
from pair_tools import LOGPS, REFS, split
from reference_tools import ADDED, raised, told

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
    result = evaluate(policy, reference=Reference(reference.rename(mapping), columns=mapping))
    assert told(result) == told(evaluate(pairs))


def test_ambiguous_names_have_to_be_mapped(pairs, two):
    policy, reference = two
    mapping = {"ref_chosen_logps": "chosen_logps", "ref_rejected_logps": "rejected_logps"}
    reference = reference.rename(mapping)
    problems = raised(ColumnError, evaluate, policy, reference=reference).problems
    assert len(problems) == 2
    assert "the policy's in TRL, and the reference's in open-instruct" in problems[0]
    result = evaluate(policy, reference=Reference(reference, columns=mapping))
    assert told(result) == told(evaluate(pairs))


def test_the_policys_mapping_does_not_touch_the_reference(pairs, two):
    policy, reference = two
    result = evaluate(
        Pairs(
            policy.rename({LOGPS[0]: "x", "pair_id": "key"}),
            columns={LOGPS[0]: "x", "pair_id": "key"},
        ),
        reference=Reference(reference.rename({"pair_id": "key"}), on="key"),
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
    ],
)
def test_arguments_that_cannot_be_used(two, arguments, said):
    policy, reference = two
    given = grouped(**{"reference": reference, **arguments})
    error = raised(UsageError, evaluate, policy, **given)
    assert said in str(error)


# What is refused, and what is taken


def test_a_reference_mapped_in_the_policy_is_on_both_sides(two):
    policy, reference = two
    policy = policy.with_columns(x=reference[REFS[0]], y=reference[REFS[1]])
    columns = dict(zip(REFS, ("x", "y"), strict=True))
    error = raised(ColumnError, evaluate, Pairs(policy, columns=columns), reference=reference)
    assert "it is here as 'x'" in error.problems[0]


def test_one_column_of_the_reference_for_two_roles_is_refused(two):
    policy, reference = two
    twice = Reference(reference, columns=dict.fromkeys(REFS, REFS[0]))
    error = raised(ColumnError, evaluate, policy, reference=twice)
    assert error.problems == (f"column {REFS[0]!r} is mapped to {REFS[0]} and {REFS[1]}",)


@pytest.mark.parametrize("role", ["policy_chosen_logps", "chosen_num_tokens"])
def test_a_mapping_for_another_role_is_refused(two, role):
    policy, reference = two
    mapped = Reference(reference, columns={role: "pair_id"})
    error = raised(UsageError, evaluate, policy, reference=mapped)
    assert str(error) == f"reference columns: {role!r} is none of {' and '.join(REFS)}"


def test_the_hint_is_the_argument_for_the_reference(two):
    policy, reference = two
    reference = reference.rename({REFS[0]: "chosen_logps"})
    problem = raised(ColumnError, evaluate, policy, reference=reference).problems[0]
    hint = "Reference(columns={role: name}), or --reference-column role=name"
    assert problem.startswith("ref_chosen_logps: missing; 'chosen_logps' may be it")
    assert f"map it: {hint}; " in problem


def test_mapped_columns_of_several_files_may_be_of_several_numbers(tmp_path, pairs, two):
    policy, reference = two
    mapping = {ref: ref.removeprefix("ref_") for ref in REFS}
    reference = reference.rename(mapping)
    reference[:3].write_parquet(tmp_path / "a.parquet")
    whole = reference[3:].with_columns(pl.col("chosen_logps").cast(pl.Int64))
    whole.write_parquet(tmp_path / "b.parquet")
    found = evaluate(policy, reference=Reference(tmp_path, columns=mapping))
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
    assert error.problems == (f"pair_id: a key must be a plain value, found {key.dtype}",)


@pytest.mark.parametrize("on", [None, 5, ["pair_id"]])
def test_a_key_that_is_no_name_is_a_usage_error(two, on):
    policy, reference = two
    error = raised(UsageError, evaluate, policy, reference=Reference(reference, on=on))
    assert str(error) == f"on must be the name of a column, and no pattern, found {on!r}"


def test_a_key_that_is_a_pattern_is_refused(two):
    policy, reference = (frame.rename({"pair_id": "^id$"}) for frame in two)
    error = raised(UsageError, evaluate, policy, reference=Reference(reference, on="^id$"))
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
