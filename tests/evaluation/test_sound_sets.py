"""Simulated sound sets raise no doubt; how often planted faults do, as a table."""

from __future__ import annotations

from collections import Counter

import pytest

from sense_tools import FAULTS, doubts, sound

ALWAYS = {
    "reference shifted by a row": {"shifted"},
    "chosen and rejected of the reference exchanged": {"exchanged", "other_texts"},
    "reference of other rows": {"other_texts"},
    "labels of the reference unshifted": {"guessing"},
    "labels of the policy unshifted": {"guessing"},
    "policy_chosen a copy of ref_chosen": {"copied"},
    "policy_rejected a copy of policy_chosen": {"copied"},
    "a fifth of policy_chosen from the reference": {"copied"},
    "policy unmoved in a quarter of the pairs": {"unmoved"},
    "policy equals reference": {"unmoved"},
    "all pairs ties": {"all_ties"},
}


CLEAR = {
    "reference shifted by a row": {"shifted"},
    "chosen and rejected of the reference exchanged": {"exchanged"},
    "reference of other rows": {"other_texts"},
}


@pytest.mark.repeats(1)  # each fault has its test of many pairs above
@pytest.mark.parametrize("fault", CLEAR)
def test_a_clear_fault_is_said_of_few_pairs(fault):
    found = [doubts(FAULTS[fault](sound(seed, least=20, most=49))) for seed in range(12)]
    assert sum(set(names) == CLEAR[fault] for names in found) >= 9


def test_few_sound_pairs_raise_no_doubt():
    assert [seed for seed in range(8) if doubts(sound(seed, least=8, most=49))] == []


@pytest.mark.slow  # the same with ten times the sets
def test_hundreds_of_few_sound_pairs_raise_no_doubt():
    assert [seed for seed in range(100, 500) if doubts(sound(seed, least=8, most=49))] == []


def test_sound_sets_raise_no_doubt():
    assert [seed for seed in range(10) if doubts(sound(seed, most=5_000))] == []


@pytest.mark.repeats(11)  # each fault in one of two sets
@pytest.mark.parametrize("fault", ALWAYS)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_fault_is_always_said(fault, seed):
    assert set(doubts(FAULTS[fault](sound(seed, most=2_000)))) <= ALWAYS[fault] != set()


@pytest.mark.slow  # the same with ten times the sets, of the largest size
def test_of_two_hundred_sound_sets_one_raises_a_doubt():
    # 82 pairs of short texts, of a policy that moved far: the guide says so.
    assert [seed for seed in range(100, 300) if doubts(sound(seed))] == [279]


@pytest.mark.slow  # all faults in many sets: where a policy moved far, no sum can tell
def test_most_faults_are_said_in_simulated_sets(record_property):
    hits = {
        fault: Counter(tuple(doubts(plant(sound(seed, most=4_000)))) for seed in range(60))
        for fault, plant in FAULTS.items()
    }
    for fault, found in hits.items():
        record_property(fault, {"+".join(names) or "nothing": n for names, n in found.items()})
    for fault in FAULTS.keys() - {"copies of pairs"}:  # these sets have no ids
        assert hits[fault][()] <= (
            48
            if "twentieth" in fault
            else 36
            if "only" in fault and "'s" in fault
            else 30
            if "tenth" in fault or "length" in fault
            else 12
        )
    for fault in ALWAYS:
        assert hits[fault][()] == 0
