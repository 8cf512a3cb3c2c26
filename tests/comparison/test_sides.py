"""The sides of a comparison: common keys, and what one side lends the other."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from compare_tools import BETA, POLICIES, REL, frames, of_frames, raised, said, shifted, told
from dpo_pipeline import (
    ColumnError,
    ContractError,
    DataWarning,
    InvalidPairsError,
    JoinError,
    Pairs,
    Reference,
    UsageError,
    compare,
)
from pair_tools import LOGPS, REFS

# --- joining ---------------------------------------------------------------------------------


def test_rows_that_are_lost_are_counted():
    a, b = frames()
    result = compare(a[:50], b[20:])
    assert (result.n_common, result.a.n_alone, result.b.n_alone) == (30, 20, 10)
    assert ["A", "A", "50", "20"] in [line.split() for line in str(result).split("\n")]
    common = compare(a[20:50], b[20:50])
    assert said(replace(result, a=common.a, b=common.b)) == said(common)


def test_keys_that_are_null_or_twice_or_never_shared():
    a, b = frames(n=8)
    text = raised(JoinError, a.with_columns(pair_id=pl.Series([None, None, *range(102, 108)])), b)
    assert "A (8 rows) and B (8 rows) cannot be joined by 'pair_id'" in text
    assert "null in A: 2 rows" in text
    text = raised(JoinError, a, pl.concat([b, b[3:5]]))
    assert "more than once in B: 4 rows, such as 103, 104" in text
    assert "alone" not in text
    text = raised(JoinError, a, b.with_columns(pl.col("pair_id") + 50))
    assert "in A alone: 8 rows, such as 100, 101" in text
    assert "in B alone: 8 rows, such as 150, 151" in text


@pytest.mark.repeats(2)  # one rule says which keys are equal
@pytest.mark.parametrize("dtype", [pl.Int32, pl.UInt64, pl.Int8])
def test_integers_of_any_width_are_one_key(dtype):
    a, b = frames(n=20)
    assert said(compare(a, b.with_columns(pl.col("pair_id").cast(dtype)))) == said(compare(a, b))


@pytest.mark.repeats(1)  # integers of any width are above
@pytest.mark.parametrize("dtype", [pl.Int64, pl.Int8])
def test_an_integer_and_a_text_are_compared_as_text(dtype):
    a, b = frames(n=20)
    a = a.with_columns(pl.col("pair_id").cast(dtype))
    texts = b.with_columns(pl.col("pair_id").cast(pl.String))
    found = compare(a, texts)
    assert (found.n_common, found.mcnemar) == (20, compare(a, b).mcnemar)
    padded = texts.with_columns(pair_id=pl.lit("0") + pl.col("pair_id"))
    assert "in B alone: 20 rows, such as '0100'" in raised(JoinError, a, padded)


def test_texts_and_categories_are_keys():
    a, b = (t.with_columns(pl.format("é-{}", "pair_id").alias("id")) for t in frames(n=20))
    expected = compare(a, b, on="id")
    found = compare(a, b.with_columns(pl.col("id").cast(pl.Categorical)), on="id")
    assert said(found) == said(expected)
    # Another key, another order of the clusters: the same figures but for rounding.
    by_number = compare(*frames(n=20))
    assert expected.mcnemar == by_number.mcnemar
    assert told(expected.differences["loss"]) == pytest.approx(
        told(by_number.differences["loss"]), rel=1e-12
    )


def test_keys_of_types_that_cannot_be_equal():
    a, b = frames(n=8)
    text = raised(ColumnError, a, b.with_columns(pl.col("pair_id").cast(pl.Float64)))
    assert "pair_id: it is Float64 here and Int64 in A; convert one" in text
    text = raised(ColumnError, a, b.rename({"pair_id": "pairid"}))
    assert "pair_id: missing (did you mean 'pairid'?)" in text
    nested = [t.with_columns(pair_id=pl.concat_list("pair_id")) for t in (a, b)]
    assert "must be a plain value" in raised(ColumnError, *nested)
    assert "no pattern" in raised(UsageError, a, b, on="^pair.*$")


def test_an_empty_side():
    a, b = frames(n=8)
    assert "B: it holds no pairs" in raised(ContractError, a, b[:0])
    assert "A: it holds no pairs" in raised(ContractError, a[:0], b[:0])


def test_columns_of_other_names():
    a, b = frames()
    expected = of_frames()
    renamed = b.rename({"policy_chosen_logps": "w", "policy_rejected_logps": "l", "pair_id": "id"})
    mapping = {"policy_chosen_logps": "w", "policy_rejected_logps": "l", "pair_id": "id"}
    assert said(compare(a, Pairs(renamed, columns=mapping))) == said(expected)
    both = a.rename({"policy_chosen_logps": "w", "policy_rejected_logps": "l", "pair_id": "id"})
    assert said(compare(Pairs(both, columns=mapping), renamed)) == said(expected)


# --- what sides lend each other --------------------------------------------------------------


@pytest.mark.parametrize("lacking", ["a", "b"])
def test_a_side_without_a_reference_takes_that_of_the_other(lacking):
    a, b = frames()
    expected = of_frames()
    sides = {"a": a, "b": b}
    sides[lacking] = sides[lacking].drop(REFS)
    result = compare(*sides.values())
    assert said(result) == said(expected)
    other = {"a": "B", "b": "A"}[lacking]
    assert getattr(result, lacking).borrowed == dict.fromkeys(REFS, other)
    assert f"ref_chosen_logps, ref_rejected_logps from {other}" in str(result)


def test_a_reference_of_both():
    a, b = frames()
    reference = pl.concat(
        [
            a.select("pair_id", *REFS),
            pl.DataFrame(
                {"pair_id": [7], "ref_chosen_logps": [-1.0], "ref_rejected_logps": [-2.0]}
            ),
        ]
    ).sample(fraction=1, shuffle=True, seed=2)
    result = compare(a.drop(REFS), b.drop(REFS), reference=reference)
    assert said(result) == said(of_frames())
    assert result.a.borrowed == result.b.borrowed == dict.fromkeys(REFS, "reference")
    by_policy = reference.rename(dict(zip(REFS, POLICIES, strict=True)))
    mapping = dict(zip(REFS, POLICIES, strict=True))
    found = compare(a.drop(REFS), b.drop(REFS), reference=Reference(by_policy, columns=mapping))
    assert said(found) == said(result)


def test_references_that_cannot_be():
    a, b = frames(n=10)
    bare = a.drop(REFS), b.drop(REFS)
    reference = a.select("pair_id", *REFS)
    assert "ref_chosen_logps: missing" in raised(ColumnError, *bare)
    text = raised(JoinError, *bare, reference=reference[:7])
    assert "in A and B, and not in reference: 3 rows, such as 107, 108, 109" in text
    text = raised(JoinError, *bare, reference=pl.concat([reference, reference[:1]]))
    assert "more than once in reference: 2 rows, such as 100" in text
    text = raised(ColumnError, a, bare[1], reference=reference)
    assert "A does not fit the contract:\n  it has reference log-probs, and reference too" in text
    text = raised(UsageError, *bare, reference=reference, loss="cpo")
    assert "this loss has none" in text
    text = raised(UsageError, *bare, reference=Reference(reference, columns={"pair_id": "x"}))
    assert "'pair_id' is none of ref_chosen_logps and ref_rejected_logps" in text


def test_a_borrowed_reference_is_judged_where_it_comes_from():
    a, b = frames(n=10)
    broken = a.with_columns(
        ref_chosen_logps=pl.when(pl.col("pair_id") == 104).then(5.0).otherwise("ref_chosen_logps")
    )
    text = raised(InvalidPairsError, broken, b.drop(REFS))
    assert "ref_chosen_logps.at_most" in text
    assert "  1  row 4 (pair_id 104): 5.0" in text
    text = raised(
        InvalidPairsError, a.drop(REFS), b.drop(REFS), reference=broken.select("pair_id", *REFS)
    )
    assert "reference breaks its contract in 1 of 10 rows" in text
    kept = compare(broken, b.drop(REFS), on_invalid="exclude")
    assert (kept.n_valid, kept.a.n_invalid, kept.b.n_invalid) == (9, 1, 0)


def test_token_counts_are_lent_too():
    a, b = frames()
    counts = {"chosen_num_tokens": pl.lit(7), "rejected_num_tokens": pl.lit(9)}
    a, b = a.with_columns(**counts), b.with_columns(**counts)
    expected = compare(a, b, loss="sigmoid_norm")
    result = compare(a, b.drop(counts), loss="sigmoid_norm")
    assert said(result) == said(expected)
    assert set(result.b.borrowed) == set(counts)
    c, r, ref_c, ref_r = (b[n].to_numpy() for n in LOGPS)
    assert result.b.summary.loss == pytest.approx(
        np.logaddexp(0.0, -BETA * ((c - ref_c) / 7 - (r - ref_r) / 9)).mean(), rel=1e-9
    )


def test_a_loss_without_a_reference_needs_none():
    a, b = frames()
    result = compare(a.drop(REFS), b.drop(REFS), loss="cpo")
    c, r = (b[n].to_numpy() for n in POLICIES)
    assert result.b.summary.loss == pytest.approx(
        np.logaddexp(0.0, -BETA * (c - r)).mean(), rel=REL
    )


def test_other_references_are_a_finding():
    a, b = frames()
    moved = b.with_columns(
        ref_chosen_logps=pl.col("ref_chosen_logps")
        - pl.when(pl.col("pair_id") < 110).then(4.5).otherwise(0.0)
    )
    with pytest.warns(DataWarning, match="ref_chosen_logps differs"):
        result = compare(a, moved)
    reason = (
        "A and B were scored against different references (ref_chosen_logps differs on 10 of 60 "
        "pairs, by up to 4.5 nats), so accuracy, rewards, margins and loss cannot be compared"
    )
    assert result.findings == (result.incomparable,) == (reason,)
    assert str(result).startswith(f"no verdict: {reason}\n\n")
    assert str(result).count(reason) == 1
    assert result.loss_verdict is None
    rounded = b.with_columns(pl.col(REFS).cast(pl.Float32).cast(pl.Float64))
    assert compare(a, rounded).findings == ()


def compare_without_warning(a, b):
    with pytest.warns(DataWarning, match="different references"):
        result = compare(a, b.with_columns(pl.col("ref_chosen_logps") - 5), by="split")
    return json.loads(result.to_json())


def test_without_the_same_reference_no_side_is_better():
    a, b = shifted(3.0)
    assert compare(a, b).better == "b"
    with pytest.warns(DataWarning, match="different references"):
        result = compare(a, b.with_columns(pl.col("ref_chosen_logps") - 5))
    assert (result.better, result.to_dict()["better"]) == (None, None)
    document = compare_without_warning(a, b)
    assert {each["p_value"] for each in document["differences"].values()} == {None}
    assert {each["smallest_effect"] for each in document["differences"].values()} == {None}
    assert document["mcnemar"]["exact"] is document["mcnemar"]["mid_p"] is None
    for name in ("p_value", "p_holm", "p_benjamini_hochberg", "smallest_effect"):
        assert {row[name] for row in document["subsets"]} == {None}
    for text in (str(result), result.to_markdown(), result.to_latex(), result._repr_html_()):
        assert "p =" not in text
        assert "p (Holm)" not in text
        assert "smallest effect" not in text
    assert "on 400 of 400 pairs, by up to 5 nats" in result.verdict


def test_a_loss_without_a_reference_is_compared_all_the_same():
    a, b = shifted(3.0)
    result = compare(a, b.with_columns(pl.col("ref_chosen_logps") - 5), loss="cpo")
    assert (result.incomparable, result.findings) == (None, ())


def test_keys_that_do_not_mean_the_same_pairs_are_a_finding():
    a, b = (
        t.with_columns(chosen_num_tokens=pl.lit(9), rejected_num_tokens=pl.lit(9))
        for t in frames(per_prompt=2)
    )
    with pytest.warns(DataWarning, match="may not mean the same pairs"):
        result = compare(a, b.with_columns(prompt_id=pl.col("prompt_id") % 20))
    assert "prompt_id differs between A and B on 20 of 60 pairs" in result.findings[0]
    with pytest.warns(DataWarning, match="chosen_num_tokens differs between A and B on 60 of 60"):
        compare(a, b.with_columns(chosen_num_tokens=pl.lit(7)))


def test_what_is_surely_wrong_of_one_side_is_a_finding():
    a, b = frames()
    unmoved = b.with_columns(**{p: pl.col(r) for p, r in zip(POLICIES, REFS, strict=True)})
    with pytest.warns(DataWarning, match=r"B \(B\): policy and reference log-probs are equal"):
        compare(a, unmoved)
