"""What a joined reference gives: the rows and figures of one table, in any layout."""

from __future__ import annotations

import math

import polars as pl
import pytest

from dpo_pipeline import OnInvalid, check, evaluate, join_reference, score_parquet, sweep
from option_tools import grouped
from pair_tools import REFS, split
from reference_tools import ADDED, LAYOUTS, joined_by_hand, laid_out, mean_loss, told

FIGURES = [
    pytest.param({}, id="totals"),
    pytest.param({"by": ["turns", "split"]}, id="by"),
    pytest.param({"histogram": True, "by": "turns"}, id="histogram"),
    pytest.param({"batch_size": 64}, id="batches"),
    pytest.param({"batch_by": "turns", "by": "turns"}, id="batches by value"),
]


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


# Sums are made of the joined rows, whatever they came from.
CASES = [
    *((layout, FIGURES[0]) for layout in LAYOUTS),
    *((layout, each) for each in FIGURES[1:] for layout in ("lazy", "folder")),
]


@pytest.mark.repeats(2)  # layouts are opened alike for all
@pytest.mark.parametrize(
    ("layout", "arguments"),
    [pytest.param(layout, *each.values, id=f"{layout}-{each.id}") for layout, each in CASES],
)
def test_figures_are_those_of_one_table_to_the_bit(tmp_path, real_pairs, layout, arguments):
    policy, reference = split(real_pairs)
    whole = evaluate(laid_out(real_pairs, layout, tmp_path / "whole"), **grouped(**arguments))
    found = evaluate(
        laid_out(policy, layout, tmp_path / "policy"), **grouped(reference=reference, **arguments)
    )
    assert told(found) == told(whole)
    assert found.summary.loss == pytest.approx(mean_loss(real_pairs), rel=1e-12)


@pytest.mark.repeats(2)  # layouts are opened alike for all
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
    table = sweep(source, **grouped(reference=reference, **arguments)).table
    assert table.equals(sweep(real_pairs, **grouped(**arguments)).table)
    report = check(source, reference=reference)
    assert (report.n_pairs, report.n_invalid) == (698, 0)


@pytest.mark.slow  # `test_keys_in_step` and `test_keys_in_other_orders` have folders and files
@pytest.mark.repeats(1)  # layouts are opened alike for all; `test_keys_in_other_orders` has files
@pytest.mark.parametrize("layout", ["hive", "file", "folder", "list", "glob"])
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
        score_parquet(source, place, **grouped(by="turns", **arguments))
        paths = [place] if layout == "file" else sorted(place.rglob("*.parquet"))
        below = [str(p.relative_to(place)) for p in paths]
        out[name] = below, [pl.read_parquet(p, hive_partitioning=False) for p in paths]
    assert out["split"][0] == out["whole"][0]
    for found, expected in zip(out["split"][1], out["whole"][1], strict=True):
        names = [n for n in policy.columns if layout != "hive" or n != "turns"]
        assert found.columns == [*names, *REFS, *ADDED]
        assert found.equals(expected.select(found.columns))
        assert found.schema == expected.select(found.columns).schema


@pytest.mark.repeats(1)  # a folder is one without keys; `order_and_rows` has a file
@pytest.mark.parametrize("layout", ["hive", "file", "folder"])
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
    result = score_parquet(
        source, out, reference=reference, on_invalid=OnInvalid("quarantine", file=apart)
    )
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
            batches=1_000,
            on_invalid="quarantine",
        )
    assert {o.row for o in result.invalid.broken[0].offenders} == bad
    apart = pl.read_parquet(tmp_path / "o.invalid.parquet")
    assert set(apart["source_row"]) == bad
    scored = pl.read_parquet(tmp_path / "o.parquet")
    assert scored["pair_id"].to_list() == [k for k in rows["pair_id"] if k % 20_000 != 7]
    assert (scored["policy_chosen_logps"] - scored["ref_chosen_logps"] == 0.5).all()
    by_batch = [sum(i // 1_000 == b for i in bad) for b in range(60)]
    assert result.batches["n_invalid"].to_list() == by_batch
