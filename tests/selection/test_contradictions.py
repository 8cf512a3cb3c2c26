"""Exact duplicates, swaps and cycles among pairs, on tables made by hand."""

from __future__ import annotations

import polars as pl
import pytest

from dpo_pipeline import Selection, select

LOGPS = {"a": (-10.0, -11.0), "b": (-20.0, -19.5), "c": (-30.0, -31.0), "d": (-40.0, -40.5)}


def pairs(rows, *, texts, logps=LOGPS):
    """Pairs of (prompt, chosen, rejected) letters; a letter's log-probs are always the same."""
    frame = pl.DataFrame(
        {
            "pair_id": range(len(rows)),
            "prompt_id": [prompt for prompt, _, _ in rows],
            "policy_chosen_logps": [logps[c][0] for _, c, _ in rows],
            "policy_rejected_logps": [logps[r][0] for _, _, r in rows],
            "ref_chosen_logps": [logps[c][1] for _, c, _ in rows],
            "ref_rejected_logps": [logps[r][1] for _, _, r in rows],
        }
    )
    if not texts:
        return frame
    return frame.with_columns(
        chosen=pl.Series([c for _, c, _ in rows]), rejected=pl.Series([r for _, _, r in rows])
    )


ROWS = [
    ("x", "a", "b"),  # 0: swapped by 3
    ("x", "c", "d"),  # 1: twice, with 4
    ("y", "a", "b"),  # 2: a, b, c, a is a cycle, with 5 and 6
    ("x", "b", "a"),  # 3
    ("x", "c", "d"),  # 4
    ("y", "b", "c"),  # 5
    ("y", "c", "a"),  # 6
    ("y", "c", "d"),  # 7: leaves the cycle, and is on none
    ("z", "a", "b"),  # 8: as 0, of another prompt
    ("z", "c", "a"),  # 9: c, a, b is no cycle without b, c
]
FOUND = {0: "swap", 3: "swap", 1: "duplicate", 4: "duplicate", 2: "cycle", 5: "cycle", 6: "cycle"}


@pytest.mark.repeats  # keys are held alike for texts and log-probs
@pytest.mark.parametrize("texts", [True, False], ids=["by text", "by log-probs"])
@pytest.mark.parametrize("held", [1_000, 3], ids=["in memory", "on disk"])
def test_pairs_that_contradict_are_found(tmp_path, monkeypatch, texts, held):
    monkeypatch.setattr("dpo_pipeline.sources.keys.JOINED_ROWS", held)
    place = tmp_path / "found.parquet"
    result = select(
        pairs(ROWS, texts=texts),
        rule="random",
        keep=1,
        selection=Selection(contradictions=place),
    )
    found = pl.read_parquet(place)
    assert dict(zip(found["pair_id"], found["contradiction"], strict=True)) == FOUND
    groups = dict(zip(found["pair_id"], found["contradiction_group"], strict=True))
    assert groups[0] == groups[3] != groups[1] == groups[4]
    assert groups[2] == groups[5] == groups[6] not in (groups[0], groups[1])
    counts = result.contradictions
    assert (counts.duplicates, counts.swaps, counts.cycles) == (2, 2, 3)
    assert counts.known_by == ("text" if texts else "log-probs")
    assert "2 pairs that repeat another pair exactly" in str(result)


ALL = [
    ("x", "a", "b"),  # 0: twice, swapped, and on a, b, c, a
    ("x", "a", "b"),  # 1
    ("x", "b", "a"),  # 2: swapped; nothing leads from a to b but the pair itself
    ("x", "b", "c"),  # 3: swapped, and on the cycle
    ("x", "c", "a"),  # 4: on the cycle
    ("x", "c", "b"),  # 5: swapped, and on none: c, b, a ends there, as a, c is not said
    ("x", "c", "d"),  # 6: a swap beside the cycle
    ("x", "d", "c"),  # 7
    ("y", "a", "b"),  # 8: two swaps that share a completion are no cycle
    ("y", "b", "a"),  # 9
    ("y", "b", "c"),  # 10
    ("y", "c", "b"),  # 11
]


def test_a_row_carries_all_that_it_is(tmp_path):
    place = tmp_path / "found.parquet"
    asked = Selection(contradictions=place)
    counts = select(pairs(ALL, texts=True), rule="random", keep=1, selection=asked).contradictions
    found = pl.read_parquet(place)
    kinds = dict(zip(found["pair_id"], found["contradiction"], strict=True))
    assert kinds == {
        **dict.fromkeys((0, 1), "duplicate, swap, cycle"),
        **dict.fromkeys((2, 5, 6, 7, 8, 9, 10, 11), "swap"),
        3: "swap, cycle",
        4: "cycle",
    }
    assert (counts.duplicates, counts.swaps, counts.cycles) == (2, 11, 4)
    groups = dict(zip(found["pair_id"], found["contradiction_group"], strict=True))
    assert len({groups[i] for i in range(8)}) == 1
    assert groups[8] != groups[0]


def test_without_prompts_swaps_and_copies_are_found(tmp_path):
    rows = [
        (None, "a", "b"),
        (None, "b", "a"),
        (None, "c", "d"),
        (None, "c", "d"),
        (None, "a", "c"),
    ]
    place = tmp_path / "found.parquet"
    select(
        pairs(rows, texts=True).drop("prompt_id"),
        rule="random",
        keep=1,
        selection=Selection(contradictions=place),
    )
    found = pl.read_parquet(place)
    kinds = dict(zip(found["pair_id"], found["contradiction"], strict=True))
    assert kinds == {0: "swap", 1: "swap", 2: "duplicate", 3: "duplicate"}


def test_a_long_cycle_among_many_pairs(tmp_path):
    # 60 completions in a ring, and 300 pairs that agree with an order of others.
    letters = [f"n{i}" for i in range(60)]
    ring = [("r", letters[i], letters[(i + 1) % 60]) for i in range(60)]
    ordered = [("s", letters[i], letters[j]) for i in range(25) for j in range(i + 1, 25)]
    place = tmp_path / "found.parquet"
    select(
        pairs(
            ring + ordered,
            texts=True,
            logps={name: (-1.0 - i, -1.5 - i) for i, name in enumerate(letters)},
        ),
        rule="random",
        keep=1,
        selection=Selection(contradictions=place),
    )
    found = pl.read_parquet(place)
    assert found["pair_id"].to_list() == list(range(60))
    assert set(found["contradiction"]) == {"cycle"}


def test_a_bridge_between_two_cycles_is_on_none(tmp_path):
    # a, b, c and d, e, f are rings; c is better than d, and nothing leads back.
    rows = [("x", *each) for each in ("ab", "bc", "ca", "de", "ef", "fd", "cd")]
    place = tmp_path / "found.parquet"
    select(
        pairs(
            rows,
            texts=True,
            logps={name: (-20.0 - i, -21.5 - i) for i, name in enumerate("abcdef")},
        ),
        rule="random",
        keep=1,
        selection=Selection(contradictions=place),
    )
    found = pl.read_parquet(place)
    assert found["pair_id"].to_list() == list(range(6))
    groups = found["contradiction_group"].to_list()
    assert len(set(groups[:3])) == len(set(groups[3:])) == 1
    assert groups[0] != groups[3]
