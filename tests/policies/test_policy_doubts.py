"""Doubts about single policies of several, pairs that one alone has, betas, and what is refused."""

from __future__ import annotations

import json
import re
import warnings

import jsonschema
import polars as pl
import pytest

from command_tools import run
from compare_tools import broken_at
from dpo_pipeline import (
    DataWarning,
    GateError,
    StatisticsOptions,
    UsageError,
    compare,
    evaluate,
    gate,
    sweep,
)
from dpo_pipeline.policies import policies_plan
from pair_tools import DATA, LOGPS, REFS, ROOT
from schema_tools import validate
from sense_tools import FAULTS

REAL = (
    pl.read_parquet(DATA / "hh_harmless_policy_a.parquet")
    .head(600)
    .cast(dict.fromkeys(LOGPS, pl.Float64))
)
A, B = (
    REAL.with_columns(
        pl.col(LOGPS[0]) + pl.int_range(pl.len()) % 7 / 7 * by,
        pl.col(LOGPS[1]) - pl.int_range(pl.len()) % 5 / 5 * by,
    )
    for by in (0.5, 1.0)
)


def quietly(*policies, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        return compare(*policies, **options)


@pytest.fixture(scope="module")
def three():
    """The leaderboard of three sound policies."""
    return compare(A, B, REAL)


OF_POLICY = {
    "shifted": lambda p: p.with_columns(pl.col(LOGPS[:2]).shift(1, fill_value=-100.0)),
    "exchanged": lambda p: p.rename({LOGPS[0]: LOGPS[1], LOGPS[1]: LOGPS[0]}).select(p.columns),
    "copied": FAULTS["policy_rejected a copy of policy_chosen"],
    "scaled": lambda p: p.with_columns(pl.col(LOGPS[:2]) / 2.303),
    "constant": lambda p: p.with_columns(pl.lit(0.0).alias(LOGPS[0])),
    "guessing": FAULTS["labels of the policy unshifted"],
}
"""The doubt to a fault of a policy's log-probs, beside a sound reference."""


@pytest.mark.repeats(2)  # in order and joined; doubts of one set have their tests in `evaluation`
@pytest.mark.parametrize(
    ("name", "is_joined"),
    # Joined rows have lost their order, which tells of a shift alone.
    [*((name, False) for name in OF_POLICY), ("shifted", True), ("guessing", True)],
)
def test_a_fault_of_one_policy_is_told_with_its_name(monkeypatch, name, is_joined):
    bad = OF_POLICY[name](REAL)
    if is_joined:
        monkeypatch.setattr(policies_plan, "in_step", out_of_step)
    with pytest.warns(DataWarning, match="^policy 2: "):
        found = compare(A, bad, B)
    assert [doubt.name for doubt in found.policies[1].doubts][:1] == [name]
    assert found.policies[1].doubts == evaluated(bad)
    assert (found.policies[0].doubts, found.policies[2].doubts) == ((), ())
    # It has no verdict, and the others are ranked as without it.
    assert "policy 2" not in found.best_set
    assert found.verdict.endswith("no verdict on policy 2, whose log-probs are surely wrong")
    last = found.to_dict()["policies"][-1]
    assert (last["policy"], last["may_be_best"], last["p_adjusted"]) == ("policy 2", None, None)
    assert last["doubts"][0]["name"] == name
    rest = quietly(A, B, B.with_columns(pl.col(LOGPS[0]) - 1e-9))
    assert found.found.rates == rest.found.rates[:2]


def test_a_step_without_a_verdict_is_left_out_of_the_curve():
    faulty = OF_POLICY["constant"](REAL)
    steps = pl.concat(
        x.with_columns(step=pl.lit(n)) for n, x in zip((1, 2, 3), (A, faulty, B), strict=True)
    )
    curve = quietly(steps).curve
    assert curve.table["step"].to_list() == [1, 3]
    assert curve.left_out == ("step 2",)
    moved = steps.with_columns(pl.col(REFS[0]) - (pl.col("step") == 3))
    assert quietly(moved).curve is None


def out_of_step(*_):
    raise policies_plan.OutOfStep
    yield


def evaluated(pairs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        return evaluate(pairs).invalid.doubts


def test_the_reference_itself_may_be_ranked():
    itself = REAL.with_columns(
        pl.col(ref).alias(own) for own, ref in zip(LOGPS, REFS, strict=False)
    )
    found = quietly(itself, A, B)
    assert found.policies[0].doubts[0].name == "unmoved"
    assert found.policies[0].accuracy == 0.5
    assert len(found.ranked) == 3
    # Of some pairs it is a fault.
    half = pl.concat([itself[:300], REAL[300:]])
    assert quietly(half, A, B).ranked == (1, 2)


def test_a_policy_far_below_its_reference_is_told_and_ranked():
    """A policy that was trained too far looks like one whose reference was cut short."""
    rows = FAULTS["reference cut at its 80% length"](REAL)
    both = [rows.with_columns(pl.col(LOGPS[0]) + by) for by in (0.0, -0.1, -0.2)]
    found = quietly(*both)
    assert found.policies[0].doubts
    assert {doubt.name for doubt in found.policies[0].doubts} <= {"lower", "some_lower", "size"}
    assert found.ranked == (0, 1, 2)


def test_without_two_sound_policies_there_is_no_verdict(capsys, tmp_path):
    zero = REAL.with_columns(pl.lit(0.0).alias(LOGPS[0]))
    paths = []
    for name, rows in (("a", A), ("b", zero), ("c", zero.with_columns(pl.col(LOGPS[1]) - 1))):
        paths.append(tmp_path / f"{name}.parquet")
        rows.write_parquet(paths[-1])
    code, out, err = run(capsys, "compare", *paths, "--json", "--fail-on-no-verdict")
    document = json.loads(out)
    assert code == 4
    assert document["verdict"] == "no verdict: the log-probs of b, c are surely wrong"
    assert (document["best_set"], document["winner"], document["tests"]) == ([], None, [])
    assert document["verdict"] in " ".join(err.split())
    asked = StatisticsOptions(baseline="policy 2")
    found = quietly(A, zero, B, statistics=asked)
    assert found.verdict.endswith("surely wrong, the baseline among them")
    assert "no verdict" in " ".join(str(found).split())


def test_one_policy_given_twice_is_told(three):
    with pytest.warns(DataWarning, match="policy 1 and policy 3 have the same log-probs on all"):
        found = compare(A, B, A)
    assert found.same == (("policy 1", "policy 3"),)
    # The same numbers in other rows are no copy.
    mixed = A.with_columns(pl.col(LOGPS).reverse())
    assert not quietly(A, B, mixed).same
    assert not three.same


def test_pairs_that_only_one_policy_has_are_counted(three):
    every = [A[:500], B[50:], REAL[100:550].with_columns(pl.col(LOGPS[0]) - 0.25)]
    found = compare(*every)
    assert found.n_common == 400
    counts = {(p.label, p.n_pairs, p.n_alone) for p in found.policies}
    assert counts == {("policy 1", 500, 50), ("policy 2", 550, 50), ("policy 3", 450, 0)}
    document = {row["policy"]: row for row in found.to_dict()["policies"]}
    assert document["policy 1"]["n_alone"] == 50
    assert "in no other" in str(found)
    assert "in no other" not in str(three)


def test_invalid_pairs_are_counted_by_policy():
    found = compare(A, broken_at(B, *B["pair_id"][:7]), REAL, on_invalid="exclude")
    assert [each.n_invalid for each in found.policies] == [0, 7, 0]


def test_each_policy_has_its_best_beta_of_those_tried(three):
    found = three
    for policy, rows in zip(found.policies, (A, B, REAL), strict=True):
        table = sweep(rows, sorted(policy.losses)).table
        losses = dict(table.select("beta", "loss").iter_rows())
        assert policy.losses == pytest.approx(losses, rel=1e-12)
        assert policy.best_beta == min(losses, key=losses.get)
    row = found.to_frame().row(0, named=True)
    assert row["best_loss"] <= row["loss"]
    assert "on these same pairs" in " ".join(str(found).split())
    # Losses of two betas of IPO have two scales.
    ipo = compare(A, B, REAL, loss="ipo")
    assert {policy.best_beta for policy in ipo.policies} == {None}
    assert "best beta" not in str(ipo)


def together(labels, name="policy"):
    return pl.concat(
        each.with_columns(pl.lit(label).alias(name))
        for label, each in zip(labels, (A, B, REAL), strict=True)
    )


@pytest.mark.repeats(1)  # the column has another name, and no more
@pytest.mark.parametrize("name", ["policy", "step"])
def test_a_table_of_several_policies_is_read_once(engine, tmp_path, name, three):
    path = tmp_path / "all.parquet"
    rows = together("abc" if name == "policy" else (1, 2, 3), name)
    rows.sample(fraction=1.0, shuffle=True, seed=1).write_parquet(path)
    found = compare(path)
    # The column of policies alone, and all rows.
    assert engine.count("multi-scan[parquet]") == 2
    assert found.found == three.found


def test_policies_in_blocks_are_slices_of_their_table(monkeypatch, tmp_path, three):
    """Each row is read once, side by side; a frame whose order may change is not sliced."""
    together("abc").write_parquet(path := tmp_path / "all.parquet")
    found, read = compare(path), []
    plan = compare.plan(path)
    for table in plan.tables:
        read += [line for line in table.dataset.frame.explain().splitlines() if "SLICE" in line]
    assert [re.findall(r"\d+", line)[-2:] for line in read] == [
        *(["0", "600"], ["600", "600"], ["1200", "600"]),
    ]
    lazy = pl.scan_parquet(path)
    assert not compare.plan(lazy).split.is_in_blocks
    assert found.found == three.found == compare(lazy).found
    monkeypatch.setattr(policies_plan.PoliciesPlan, "_parted", None)  # side by side alone
    assert compare(path).found == found.found


def test_marks_are_of_two_policies(capsys, tmp_path, three):
    assert "a mark is of B - A" in raised_by_gate(three)
    path = tmp_path / "all.parquet"
    rows = pl.concat(
        x.with_columns(policy=pl.lit(n)) for n, x in zip("abc", (A, B, REAL), strict=True)
    )
    rows.write_parquet(path)
    code, _, err = run(capsys, "compare", path, "--fail-under", "reward_accuracy=0")
    assert (code, "a mark is of B - A" in " ".join(err.split())) == (2, True)
    assert "--b-column is of two" in " ".join(
        run(capsys, "compare", path, "--b-column", f"{LOGPS[0]}=x")[2].split()
    )
    assert run(capsys, "compare", path, "--fail-on-no-verdict")[0] == 0


def raised_by_gate(result):
    gate(result, no_verdict=True)
    with pytest.raises(UsageError) as caught:
        gate(result, under={"reward_accuracy": 0.0})
    return str(caught.value)


def test_policies_without_a_verdict_fail_the_gate():
    moved = B.with_columns(pl.col(REFS[0]) - 0.5)
    found = quietly(A, moved, REAL)
    with pytest.raises(GateError, match="scored against another reference"):
        gate(found, no_verdict=True)


def test_the_winner_has_an_interval_end_and_no_certainty(three):
    said = " ".join(str(three).split())
    assert "with 95% confidence, all policies at once" in said
    assert "surely" not in said


def test_the_document_follows_its_schema():
    zero = OF_POLICY["constant"](REAL)
    steps = pl.read_parquet(ROOT / "examples" / "steps.parquet")
    for found in (
        compare(A, B, REAL, statistics=StatisticsOptions(baseline="policy 2")),
        compare(steps),
        compare(steps.drop(REFS), loss="cpo"),
        quietly(A, zero, zero),
        quietly(A, B.with_columns(pl.col(REFS[0]) - 0.5), REAL, loss="ipo"),
    ):
        document = json.loads(found.to_json())
        validate(document, "leaderboard")
    for wrong in ({"best_set": None}, {"document_version": 2}, {"more": 1}, {"policies": [{}]}):
        with pytest.raises(jsonschema.ValidationError):
            validate(document | wrong, "leaderboard")
