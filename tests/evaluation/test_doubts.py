"""Doubts: faults planted in real pairs are said first, by name, and explain what follows."""

from __future__ import annotations

import json
import re
import warnings
from fractions import Fraction

import numpy as np
import polars as pl
import pytest

from dpo_pipeline import (
    DataWarning,
    Outputs,
    Pairs,
    check,
    compare,
    evaluate,
    score_parquet,
    sweep,
)
from dpo_pipeline.contract import RuleSet
from dpo_pipeline.evaluation import measuring, shards
from dpo_pipeline.sums import Sense, sense, totals
from pair_tools import COUNTS, DATA, LOGPS, REFS
from sense_tools import FAULTS, doubts, evaluated, from_other_rows

pytestmark = pytest.mark.usefixtures("few_groups")

EXPECTED = {
    "reference shifted by a row": "shifted",
    "sorted by length, and shifted": "shifted",
    "chosen and rejected of the reference exchanged": "exchanged",
    "half of the reference shifted": "other_texts",
    "reference of other rows": "other_texts",
    "a tenth of the reference from other rows": "some_other_texts",
    "a tenth of the reference exchanged": "some_exchanged",
    "prompt in the policy only": "one_amount",
    "prompt in the reference only": "one_amount",
    "prompt in the policy's chosen only": "one_side",
    "prompt in the reference's rejected only": "one_side",
    "a twentieth of the reference halved": "some_lower",
    "reference cut at its median length": "other_texts",
    "reference cut at its 80% length": "lower",
    "labels of the reference unshifted": "guessing",
    "labels of the policy unshifted": "guessing",
    "policy_chosen a copy of ref_chosen": "copied",
    "policy_rejected a copy of policy_chosen": "copied",
    "a fifth of policy_chosen from the reference": "copied",
    "policy unmoved in a quarter of the pairs": "unmoved",
    "policy equals reference": "unmoved",
    "all pairs ties": "all_ties",
    "copies of pairs": "repeated_ids",
}
CAUSES = {"confident_errors", "displacement", "worse_than_chance", "baseline", "length"}


@pytest.fixture
def real(real_pairs):
    return real_pairs.select("pair_id", *LOGPS, *COUNTS)


def test_every_fault_has_its_doubt():
    assert EXPECTED.keys() == FAULTS.keys()


@pytest.mark.repeats(7)  # each fault is said below; findings leave out what any doubt explains
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_said_first_and_no_finding_names_another_cause(real, fault):
    planted = FAULTS[fault](real)
    found = evaluated(planted, statistics=True)
    first, *others = found.findings
    assert (first.name, first.severity) == (EXPECTED[fault], "problem")
    assert [each.name for each in found.invalid.doubts] == [EXPECTED[fault]]
    partly = fault in {"copies of pairs", "policy unmoved in a quarter of the pairs"}
    assert partly or not CAUSES & {each.name for each in others}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_said_without_statistics_too(real, fault):
    assert doubts(FAULTS[fault](real)) == [EXPECTED[fault]]


@pytest.mark.repeats(1)  # batches are summed from the same rows
@pytest.mark.parametrize("batches", [None, 100])
def test_neighbours_are_compared_in_the_first_rows_that_statistics_read(
    real, monkeypatch, tmp_path, batches
):
    # Of a file, more rows are read at a time than neighbours are compared in.
    monkeypatch.setattr(shards, "STATISTICS_ROWS", 200)
    monkeypatch.setattr(sense, "SENSE_WHOLE", 300)
    shifted = FAULTS["reference shifted by a row"](real[:600])
    for rows, names in ((shifted, ["shifted"]), (pl.concat([real[600:800], shifted]), [])):
        rows.write_parquet(tmp_path / "pairs.parquet")
        with warnings.catch_warnings(action="ignore"):
            found = evaluate(tmp_path / "pairs.parquet", statistics=True, batches=batches)
        assert [each.name for each in found.invalid.doubts if each.name == "shifted"] == names


@pytest.mark.parametrize(("moved", "names"), [(55.0, ["shifted"]), (120.0, ["other_texts"])])
def test_what_fits_a_neighbour_no_better_than_others_is_not_called_shifted(moved, names):
    """Neighbours are at 0.3 and at 0.67 of the squared distance of a row's own reference."""
    rng = np.random.default_rng(0)
    ref = rng.normal(-900.0, 60.0, (2, 2_000))
    policy = ref + rng.normal(0.0, moved, ref.shape)
    pairs = pl.DataFrame(dict(zip(LOGPS, (*policy, *np.roll(ref, 1, axis=1)), strict=True)))
    own = ((policy - np.roll(ref, 1, axis=1)) ** 2).mean()
    assert moved**2 / own == pytest.approx(0.3 if moved < 100.0 else 0.67, abs=0.02)
    assert doubts(pairs) == names


@pytest.mark.repeats(3)  # shares between these are judged alike
@pytest.mark.parametrize("share", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0])
def test_any_large_share_of_faulty_rows_is_said(real, share):
    k = int(real.height * share)
    sound, faulty = real[: real.height - k], real[real.height - k :]
    of_other_rows = faulty.with_columns(pl.col(REFS).shuffle(seed=1))
    shifted = faulty.with_columns(pl.col(name).shift(1, fill_value=-100.0) for name in REFS)
    sides = faulty.with_columns(**dict(zip(REFS, map(pl.col, REFS[::-1]), strict=True)))
    for rows in (of_other_rows, shifted, sides):
        assert doubts(pl.concat([sound, rows]))


def test_real_pairs_raise_none(real):
    assert doubts(real) == doubts(real.sort(COUNTS)) == doubts(real.select(LOGPS)) == []
    other = pl.read_parquet(DATA / "hh_harmless_policy_b_train.parquet")
    assert doubts(other) == []


SURELY = "something is surely wrong, though each of its 698 pairs keeps the contract"


def test_a_doubt_stands_first_everywhere(real, tmp_path):
    path = tmp_path / "in.parquet"
    FAULTS["reference shifted by a row"](real).write_parquet(path)
    said = "the rows of policy and reference are shifted against each other"
    outputs = Outputs(overwrite=True)
    results = [
        (lambda: evaluate(path), f"no verdict: {said}"),
        (lambda: score_parquet(path, tmp_path / "out.parquet", outputs=outputs), "no verdict: "),
        (lambda: check(path), f"{path}: {SURELY}\n\nwarning: {said}"),
        (lambda: sweep(path, [0.1, 0.5]), f"no beta is the best one: {said}"),
    ]
    for call, begins in results:
        with pytest.warns(DataWarning, match=said):
            result = call()
        assert str(result).startswith(begins)
        assert str(result).count(said) == 1
        document = json.loads(result.to_json())
        assert document["warnings"][0].startswith(said)
        assert list(document).index("warnings") <= 1


def test_a_comparison_says_it_of_each_side_before_its_figures(real):
    said = "policy and reference are not of the same texts"
    wrong = FAULTS["reference of other rows"](real).with_columns(pl.col(LOGPS[:2]) * 0.99)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        result = compare(real, wrong, on="pair_id")
    assert any(doubt.title == f"B (B): {said}" for doubt in result.doubts)
    others = [str(doubt) for doubt in result.doubts if said not in doubt.title]
    lines = str(result).split("\n")
    assert lines[: 2 * len(others) : 2] == [f"warning: {text}" for text in others]
    assert lines[2 * len(others)].startswith(("", "no verdict: B (B): ")[not others])
    assert str(result).count(said) == 1
    assert result.to_dict()["findings"] == list(result.findings)


@pytest.mark.slow  # the page lists the findings, whose order is above
def test_a_report_names_the_doubt_before_other_findings(real):
    page = evaluated(FAULTS["prompt in the policy only"](real), statistics=True).report()
    assert "sums hold something that the other" in page
    assert "chosen completions lost likelihood" not in page


@pytest.mark.parametrize("name", ["split", "null"])
def test_an_unmoved_subset_is_named_with_its_share(real, name):
    split = pl.when(pl.int_range(pl.len()) < 40).then(None if name == "null" else pl.lit("eval"))
    pairs = real.with_columns(split=split.otherwise(pl.lit("train")))
    is_eval = pl.int_range(pl.len()) < 40
    pairs = pairs.with_columns(
        pl.when(is_eval).then(ref).otherwise(own).alias(own)
        for own, ref in zip(LOGPS[:2], REFS, strict=True)
    )
    (doubt,) = evaluated(pairs, by="split").invalid.doubts
    group = None if name == "null" else "eval"
    assert doubt.evidence == (
        "both completions of 40 pairs (5.7%) have the same log-probs under both models; "
        f"mostly in split {group} (40 of 40)"
    )
    # The same without subsets, and in a few pairs only with them.
    assert doubts(pairs) == ["unmoved"]
    few = pl.concat([pairs[:5], pairs[40:], real.with_columns(split=pl.lit("more"))])
    few = few.drop("pair_id")
    assert doubts(few) == []
    assert doubts(few, by="split") == ["unmoved"]


@pytest.mark.repeats(2)  # sizes are judged alike
@pytest.mark.parametrize("rows", [698, 60, 9])
@pytest.mark.parametrize("stored", ["Float32", "two digits"])
def test_a_reference_scored_twice_and_stored_otherwise_is_unmoved(real, rows, stored):
    """Their distance is rounding, and says nothing of exchanged or shifted rows."""
    many_digits = real.with_columns(pl.col(LOGPS).cast(pl.Float64) * (1.0 + 1e-9))
    exact = many_digits[:rows].with_columns(
        (pl.col(ref).cast(pl.Float32) if stored == "Float32" else pl.col(ref).round(2)).alias(own)
        for own, ref in zip(LOGPS[:2], REFS, strict=True)
    )
    assert doubts(exact) == doubts(exact, by=COUNTS[0]) == ["unmoved"]
    found = evaluated(exact, statistics=True)
    assert [each.name for each in found.invalid.doubts] == ["unmoved"]
    assert ("but for rounding" in found.invalid.doubts[0].title) == (stored == "two digits")
    assert evaluated(exact).summary.n_ties < rows
    subset = pl.concat([exact, many_digits], how="vertical_relaxed")
    expected = ["unmoved"] if stored == "Float32" and rows > 8 else []
    assert [each for each in doubts(subset) if each == "unmoved"] == expected


@pytest.mark.parametrize("moved", [0.0055, 0.01])
def test_a_policy_that_hardly_moved_is_sound(real, moved):
    rng = np.random.default_rng(0)
    near = real.with_columns(
        (pl.col(ref) + pl.Series(rng.normal(0.0, moved, real.height))).alias(own)
        for own, ref in zip(LOGPS[:2], REFS, strict=True)
    )
    # The sums of squares are rounded by more than these distances.
    assert [doubts(near[i : i + 60]) for i in range(0, 600, 120)] == [[]] * 5
    assert doubts(near) == []


def test_coarse_log_probs_are_equal_by_chance(real):
    rounded = real.with_columns(pl.col(LOGPS).round())
    sides = zip(LOGPS[:2], REFS, strict=True)
    same = [(rounded[ours] == rounded[theirs]).sum() for ours, theirs in sides]
    assert min(same) > 70
    assert doubts(rounded) == []


# ---- what is sound


def test_scores_of_reward_models_are_no_log_probs(tmp_path):
    rng = np.random.default_rng(0)
    lines = [
        {"id": i, "scores_chosen": float(c), "scores_rejected": float(r)}
        for i, (c, r) in enumerate(rng.normal(0.5, 3.0, (400, 2)))
    ]
    path = tmp_path / "scores.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    assert doubts(Pairs(path, format="rewardbench")) == []


@pytest.mark.parametrize("scores", [(1.0, 0.0), (5.0, 1.0)])
def test_a_judge_that_always_says_the_same_is_no_fault_of_log_probs(tmp_path, scores):
    lines = [{"id": i, "scores_chosen": scores[0], "scores_rejected": scores[1]} for i in range(50)]
    path = tmp_path / "scores.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    assert doubts(Pairs(path, format="rewardbench")) == []
    alike = [{**each, "scores_rejected": scores[0]} for each in lines]
    path.write_text("\n".join(map(json.dumps, alike)))
    assert doubts(Pairs(path, format="rewardbench")) == ["copied"]


def test_one_chosen_against_three_rejected():
    pairs = pl.DataFrame(
        {
            "prompt_id": ["p"] * 3,
            LOGPS[0]: -40.0,
            LOGPS[1]: [-60.0, -55.0, -41.0],
            LOGPS[2]: -50.0,
            LOGPS[3]: [-50.0, -52.0, -49.0],
        }
    )
    assert doubts(pairs) == []
    assert doubts(pairs, loss="cpo") == []
    # In one model alone the same column is a fault.
    varied = pairs.with_columns(pl.Series(LOGPS[0], [-40.0, -41.0, -42.0]))
    assert doubts(varied) == ["constant"]


# ---- the sums


def moments(pairs):
    """Return second moments with whole numbers: products in 2**-10 square nats, half to even."""
    rows = pairs.select(LOGPS).rows()
    sums = {}
    for i, one in enumerate(LOGPS):
        for j, other in enumerate(LOGPS[i:], i):
            name = sense.product(one, other)
            sums[name] = sum(round(Fraction(row[i] * row[j]) * 1024) for row in rows)
    return sums


def test_sums_are_exact_and_do_not_depend_on_the_cut(real, tmp_path, monkeypatch):
    path = tmp_path / "in.parquet"
    invalid = pl.int_range(pl.len()) % 50 == 7
    pairs = real[:300].with_columns(
        pl.when(invalid).then(float("nan")).otherwise(LOGPS[1]).alias(LOGPS[1])
    )
    pairs.write_parquet(path, row_group_size=100)
    valid = pairs.filter(pl.col(LOGPS[1]).is_not_nan())
    monkeypatch.setattr(measuring, "NEIGHBOURS_ROWS", 70)
    monkeypatch.setattr(shards, "NEIGHBOURS_ROWS", 70)
    seen, made = [], Sense.of_sums
    monkeypatch.setattr(Sense, "of_sums", staticmethod(lambda row: seen.append(row) or made(row)))
    for rows, options in (
        (4_000, {}),
        (110, {}),
        (110, {"by": "pair_id"}),
        (110, {"batch_size": 7}),
        (110, {"statistics": True}),
    ):
        monkeypatch.setattr(measuring, "SHARD_ROWS", rows)
        evaluated(path, on_invalid="exclude", **options)
    expected = moments(valid)
    for row in seen:
        assert {name: row[name] for name in expected} == expected
        assert row["n_summed"] == row["n_valid"] == valid.height


EVERY_PAIR = RuleSet(rules=(), valid=pl.lit(value=True))


def test_statistics_of_the_sums_are_numpys(real):
    sums = totals(real.lazy(), rules=EVERY_PAIR, moments="neighbours").collect()
    made = Sense.of_sums(sums.row(0, named=True))
    c, r, ref_c, ref_r = (real[name].to_numpy() for name in LOGPS)
    a, b = c - ref_c, r - ref_r
    close = {"rel": 1e-3}
    assert made.correlation(LOGPS[0], LOGPS[2]) == pytest.approx(
        np.corrcoef(c, ref_c)[0, 1], **close
    )
    assert made.same_move == pytest.approx(np.corrcoef(a, b)[0, 1], **close)
    assert made.spread(LOGPS[1]) == pytest.approx(b.var() / (r.var() + ref_r.var()), **close)
    assert made.evenness(LOGPS[0]) == pytest.approx(
        np.abs(a).mean() / np.sqrt((a**2).mean()), **close
    )
    own = (a**2).mean() + (b**2).mean()
    across = ((c - ref_r) ** 2).mean() + ((r - ref_c) ** 2).mean()
    assert made.exchange == pytest.approx(across / own, **close)
    own = (a[1:] ** 2).sum() + (b[1:] ** 2).sum()
    before = ((c[1:] - ref_c[:-1]) ** 2).sum() + ((r[1:] - ref_r[:-1]) ** 2).sum()
    after = ((c[:-1] - ref_c[1:]) ** 2).sum() + ((r[:-1] - ref_r[1:]) ** 2).sum()
    assert made.lag == pytest.approx(min(before, after) / own, **close)


def test_log_probs_far_out_do_not_overflow_and_count_for_themselves(real):
    far = real.with_columns(
        pl.when(pl.int_range(pl.len()) % 100 == 0).then(-4e6 + i).otherwise(pl.col(n)).alias(n)
        for i, n in enumerate(LOGPS)
    )
    assert doubts(far) == []
    assert doubts(FAULTS["reference shifted by a row"](far)) == ["shifted"]
    lowest = pl.DataFrame({name: [-8_000.0 - i] * 300_000 for i, name in enumerate(LOGPS)})
    row = totals(lowest.lazy(), rules=EVERY_PAIR).collect().row(0, named=True)
    assert row[sense.product(LOGPS[0], LOGPS[0])] == 300_000 * 8_000**2 * 1024


# ---- repeated ids


@pytest.mark.parametrize("as_frame", [True, False])
def test_repeated_ids_are_counted_exactly(real, tmp_path, as_frame):
    ids = pl.Series("pair_id", [*range(690), *range(6), None, None])
    pairs = real.with_columns(ids)
    if not as_frame:
        pairs.write_parquet(tmp_path / "in.parquet", row_group_size=64)
        pairs = tmp_path / "in.parquet"
    for call in (
        lambda: evaluated(pairs),
        lambda: evaluated(pairs, by="chosen_num_tokens"),
    ):
        (doubt,) = call().invalid.doubts
        assert doubt.name == "repeated_ids"
        assert doubt.evidence.startswith("6 of 696 pairs have the pair_id of an earlier one")
    with pytest.warns(DataWarning, match="6 of 696 pairs"):
        check(pairs)


@pytest.mark.repeats(2)  # ids of any type are hashed
@pytest.mark.parametrize("dtype", [pl.Int64, pl.String, pl.Categorical])
def test_many_ids_are_estimated_from_a_sample_of_ids(dtype, monkeypatch, tmp_path):
    monkeypatch.setattr(sense, "KEYS_HELD", 2_000)
    n = 40_000
    ids = pl.Series("pair_id", [*range(n), *range(0, n, 10)]).cast(pl.String)
    rng = np.random.default_rng(0)
    ref = rng.uniform(-300, -20, (2, len(ids)))
    values = (*(ref + rng.normal(0, 3, ref.shape)), *ref)
    columns = dict(zip(LOGPS, values, strict=True))
    pairs = pl.DataFrame({"pair_id": ids, **columns}).with_columns(pl.col("pair_id").cast(dtype))
    pairs.write_parquet(tmp_path / "in.parquet")
    for source in (pairs, tmp_path / "in.parquet"):
        (doubt,) = evaluated(source).invalid.doubts
        share, seen = re.search(
            r"about (\S+)% of the pairs, by a sample of (\S+) ids", str(doubt)
        ).groups()
        assert 500 < int(seen.replace(",", "")) <= 2_000
        assert float(share) == pytest.approx(100 / 11, abs=3.0)  # 4,000 of 44,000


def test_ids_without_copies_and_none_at_all(real):
    assert doubts(real.drop("pair_id")) == []
    assert doubts(real.with_columns(pair_id=pl.lit(None, dtype=pl.Int64))) == []


def test_a_tenth_of_other_rows_where_the_policy_moved_far_is_not_told(real):
    """The page says so: no sum can tell such pairs from a policy that moved far."""
    rng = np.random.default_rng(1)
    far = real.with_columns(
        (pl.col(name) + pl.Series(rng.normal(0.0, 120.0, real.height))).clip(upper_bound=-0.1)
        for name in LOGPS[:2]
    )
    assert doubts(from_other_rows(far, 0.1)) == doubts(far) == []


def test_warnings_are_issued_once_at_the_call(real):
    with warnings.catch_warnings(record=True) as issued:
        warnings.simplefilter("always")
        evaluate(FAULTS["prompt in the policy only"](real))
    assert [each.category for each in issued] == [DataWarning]
    assert issued[0].filename == __file__
