"""A comparison of which one side is surely wrong has no verdict, and passes no gate."""

from __future__ import annotations

import json
import warnings
from itertools import product

import numpy as np
import polars as pl
import pytest

from command_tools import run
from dpo_pipeline import DataWarning, GateError, compare, evaluate, gate
from page_tools import Page
from pair_tools import DATA, LOGPS, REFS
from schema_tools import validate
from sense_tools import FAULTS as CUT

N = 240
POLICY = LOGPS[:2]


def policies():
    """Return two sound policies of one reference, two pairs a prompt; B is the better one."""
    rng = np.random.default_rng(4)
    refs = {name: -30.0 - 6.0 * rng.gamma(6.0, 2.0, N) for name in REFS}
    shared = {"pair_id": np.arange(N), "prompt_id": np.arange(N) // 2, **refs}
    return [
        pl.DataFrame(
            {
                **shared,
                POLICY[0]: refs[REFS[0]] + rng.normal(by, 2.0, N),
                POLICY[1]: refs[REFS[1]] - rng.normal(by, 2.0, N),
            }
        )
        for by in (0.2, 1.5)
    ]


FAULTS = {
    "exchanged": lambda p: p.with_columns(
        pl.col(POLICY[1]).alias(POLICY[0]), pl.col(POLICY[0]).alias(POLICY[1])
    ),
    "shifted": lambda p: p.with_columns(pl.col(POLICY).shift(1, fill_value=-100.0)),
    "other texts": lambda p: p.with_columns(pl.col(POLICY).shuffle(seed=2)),
    "copied": lambda p: p.with_columns(pl.col(REFS[0]).alias(POLICY[0])),
    "constant": lambda p: p.with_columns(pl.lit(-50.0).alias(POLICY[0])),
}


def quietly(*sides, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        return compare(*sides, **options)


def test_sound_sides_have_a_verdict():
    found = quietly(*policies())
    assert (found.better, found.incomparable, found.no_verdict) == ("b", None, None)
    gate(found, under={"reward_accuracy": 0.0}, no_verdict=True)


def test_without_a_verdict_no_difference_has_a_colour():
    sides = [p.with_columns(half=pl.int_range(pl.len()) % 2) for p in policies()]
    drawn = []
    for pair in (sides, [FAULTS["exchanged"](sides[0]), sides[1]]):
        spec = quietly(*pair, by="half").charts()["differences"].to_dict()
        (rows,) = (rows for rows in spec["datasets"].values() if "side" in rows[0])
        drawn.append({row["side"] for row in rows})
    assert "above" in drawn[0]
    assert drawn[1] == {"open"}


@pytest.mark.repeats(5)  # each fault on one of the sides
@pytest.mark.parametrize(("name", "place"), list(product(FAULTS, (0, 1))))
def test_what_evaluate_withholds_compare_withholds(name, place):
    sides = policies()
    sides[place] = FAULTS[name](sides[place])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        alone = evaluate(sides[place].sample(fraction=1.0, shuffle=True, seed=1)).invalid.decisive
    found = quietly(*sides)
    letter = "AB"[place]
    assert found.incomparable == f"{letter} ({letter}): {alone}"
    assert found.verdict == found.no_verdict == f"no verdict: {found.incomparable}"
    assert found.better is None
    assert found.loss_verdict is None
    for each in found.differences.values():
        assert each.p_value is each.smallest_effect is None
    assert found.mcnemar.exact is found.mcnemar.mid_p is None
    for asked in ({"under": {"reward_accuracy": -1.0}}, {"over": {"loss": 1e6}}):
        with pytest.raises(GateError, match=r"no verdict: [AB] \("):
            gate(found, **asked)
    with pytest.raises(GateError, match="no verdict: "):
        gate(found, no_verdict=True)
    gate(found)


def test_all_that_is_printed_says_why(tmp_path):
    a, b = policies()
    kind = pl.Series(["x", "y"] * (N // 2)).alias("kind")
    found = quietly(a.with_columns(kind), FAULTS["exchanged"](b).with_columns(kind), by="kind")
    said = "chosen and rejected of one model are exchanged"
    document = json.loads(found.to_json())
    validate(document, "comparison")
    assert document["incomparable"] in document["findings"]
    assert document["incomparable"].startswith(f"B (B): {said}")
    assert document["heterogeneity"] is None
    assert {row["p_value"] for row in document["subsets"]} == {None}
    text = str(found)
    assert text.startswith(f"no verdict: B (B): {said}")
    assert "  Exchange the two columns of the reference" in text.split("\n\n", maxsplit=1)[0]
    assert text.count(said) == 1
    assert "smallest effect" not in text
    assert found.to_markdown().startswith(f"**no verdict: B (B): {said}")
    page = Page(found.report(tmp_path / "ab.html") or (tmp_path / "ab.html").read_text())
    assert page.texts["p"][0].startswith(f"No verdict: B (B): {said}")
    assert f"problemB (B): {said}" in page.texts["h3"]
    assert "p of no difference" not in " ".join(page.texts["div"])


@pytest.mark.repeats(1)  # both are one gate
@pytest.mark.parametrize("quiet", [["--no-warnings"], []])
def test_a_gate_ends_with_4_and_the_reason(tmp_path, monkeypatch, capsys, quiet):
    monkeypatch.chdir(tmp_path)
    a, b = policies()
    FAULTS["exchanged"](a).write_parquet("wrong.parquet")
    b.write_parquet("b.parquet")
    sides = ("wrong.parquet", "b.parquet")
    code, out, err = run(capsys, "compare", *sides, *quiet, "--fail-under", "reward_accuracy=0.05")
    assert code == 4
    assert "\nno verdict: A (wrong.parquet): chosen and rejected of one model" in f"\n{out}"
    assert "fails its gate: no verdict: A (wrong.parquet)" in err
    assert run(capsys, "compare", *sides, *quiet, "--fail-on-no-verdict")[0] == 4
    assert run(capsys, "compare", *sides, *quiet)[0] == 0


def test_the_reference_itself_and_a_policy_far_below_it_are_compared():
    a, b = policies()
    itself = a.with_columns(pl.col(ref).alias(own) for own, ref in zip(POLICY, REFS, strict=True))
    found = quietly(itself, b)
    assert any("equal" in str(doubt) for doubt in found.doubts)
    assert (found.incomparable, found.better) == (None, "b")
    # Of half of its pairs it is a fault.
    half = pl.concat([itself[: N // 2], a[N // 2 :]])
    assert "A (A)" in quietly(half, b).incomparable
    # One that was trained too far looks as if its reference had been cut short.
    rows = pl.read_parquet(DATA / "hh_harmless_policy_a.parquet").head(600)
    rows = CUT["reference cut at its 80% length"](rows.cast(dict.fromkeys(LOGPS, pl.Float64)))
    found = quietly(rows, rows.with_columns(pl.col(POLICY[0]) - 0.1))
    assert any(doubt.is_decisive for doubt in found.doubts)
    assert found.no_verdict is None


def test_two_are_withheld_as_three_are():
    a, b = policies()
    wrong = FAULTS["other texts"](b)
    board = quietly(a, wrong, b)
    assert [each.label for each in board.withheld] == ["policy 2"]
    pairs = [quietly(a, wrong), quietly(wrong, b), quietly(a, b)]
    assert [each.incomparable is None for each in pairs] == [False, False, True]
    both = quietly(wrong, FAULTS["exchanged"](b))
    assert both.incomparable.startswith("A (A): ")
    # What is wrong with the other side is still said.
    assert "warning: B (B): chosen and rejected" in str(both)
