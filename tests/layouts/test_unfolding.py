"""Lists in one row a prompt become completions, each beside its own values."""

from __future__ import annotations

import polars as pl
import pytest

from dpo_pipeline import Pairs, check, convert, evaluate

LISTS = {
    "prompt_id": ["a", "b", "c"],
    "policy_logps": [[-1.0, -2.0], [-3.0], [-4.0, -5.0, -6.0]],
    "ref_logps": [[-1.5, -2.5], [-3.5], [-4.5, -5.5, -6.5]],
    "score": [[2.0, 1.0], [3.0], [1.0, 1.0, 9.0]],
    "response": [["v", "w"], ["x"], ["y", "z", "u"]],
}
SIDES = {
    "prompt_id": ["1", "2"],
    "policy_chosen_logps": [-40.0, -30.0],
    "ref_chosen_logps": [-50.0, -33.0],
    "policy_rejected_logps": [[-60.0, -55.0, -41.0], [-35.0, -20.0]],
    "ref_rejected_logps": [[-50.0, -52.0, -49.0], [-31.0, -26.0]],
}


def made_of(source, tmp_path, **given):
    path = tmp_path / "completions.parquet"
    convert(Pairs(pl.DataFrame(source), **given), path)
    return pl.read_parquet(path)


def test_each_completion_stands_beside_its_own_values(tmp_path):
    made = made_of(LISTS, tmp_path)
    whole = pl.DataFrame(LISTS)
    flat = [value for prompt in LISTS["policy_logps"] for value in prompt]
    assert made["policy_logps"].to_list() == flat
    assert (made["policy_logps"] - made["ref_logps"]).to_list() == [0.5] * 6
    assert made["response"].to_list() == list("vwxyzu")
    assert made["prompt_id"].to_list() == list("aabccc")
    assert made["completion_id"].to_list() == [0, 1, 0, 0, 1, 2]
    assert check(whole).n_pairs == 6


@pytest.mark.parametrize("name", ["ref_logps", "score"])
@pytest.mark.parametrize("length", [1, 3])
def test_a_list_of_another_length_shifts_no_value(name, length, tmp_path):
    values = [*LISTS[name]]
    values[0] = [-9.0] * length
    made = made_of(LISTS | {name: values}, tmp_path)
    assert made[name].to_list() == [None, None, *(v for each in LISTS[name][1:] for v in each)]
    report = check(pl.DataFrame(LISTS | {name: values}))
    assert report.by_rule == {f"{name}.not_null": 2}


@pytest.mark.parametrize("empty", [[], None])
def test_a_row_without_completions_is_counted(empty):
    changed = {n: [empty, *LISTS[n][1:]] for n in ("policy_logps", "ref_logps", "score")}
    report = check(pl.DataFrame(LISTS | changed))
    assert (report.n_pairs, report.n_invalid) == (5, 1)


def test_rows_without_a_prompt_are_prompts():
    frame = pl.DataFrame(LISTS).drop("prompt_id")
    frame = frame.with_columns(pl.col("policy_logps", "ref_logps").list.eval(10 * pl.element()))
    made = evaluate(Pairs(frame, pairing="all"))
    assert made.summary.n_pairs == 1 + 2
    assert made.intervals is not None


def test_lists_of_rejected_are_unfolded(tmp_path):
    made = made_of(SIDES, tmp_path, pairing="all")
    assert made.select(
        "policy_chosen_logps", "policy_rejected_logps", "ref_rejected_logps"
    ).rows() == [
        (-40.0, -60.0, -50.0),
        (-40.0, -55.0, -52.0),
        (-40.0, -41.0, -49.0),
        (-30.0, -35.0, -31.0),
        (-30.0, -20.0, -26.0),
    ]
    # Log-ratios by hand: 10 against -10, -3, 8, and 3 against -4, 6.
    summary = evaluate(Pairs(pl.DataFrame(SIDES), pairing="all")).summary
    margins = [2.0, 1.3, 0.2, 0.7, -0.3]
    assert summary.reward_margin == pytest.approx(sum(margins) / 5, abs=1e-12)
    assert summary.reward_accuracy == 0.8


def test_a_short_list_of_the_reference_gives_no_neighbours_value():
    short = SIDES | {"ref_rejected_logps": [[-50.0, -52.0], [-31.0, -26.0]]}
    report = check(Pairs(pl.DataFrame(short), pairing="all"))
    assert report.by_rule == {"ref_rejected_logps.not_null": 3}


def test_lists_of_tokens_are_unfolded_too():
    frame = pl.DataFrame(
        {
            "policy_chosen_token_logps": [[-1.0, -2.0]],
            "policy_rejected_token_logps": [[[-3.0], [-4.0, -5.0]]],
        }
    )
    made = evaluate(Pairs(frame, pairing="all"), loss="cpo")
    assert made.summary.n_pairs == 2
    assert made.summary.policy_rejected_logps == pytest.approx(-6.0)


def test_lists_of_rejected_without_a_pairing_say_what_to_do():
    report = check(
        pl.concat(
            [
                pl.DataFrame(SIDES),
                pl.DataFrame(SIDES).with_columns(
                    pl.col("policy_rejected_logps", "ref_rejected_logps").list.head(1)
                ),
            ]
        )
    )
    assert "--pairing" in report.broken[0].requirement
