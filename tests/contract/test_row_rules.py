"""What cannot be a pair, whatever each value is: empty and padded completions."""

from __future__ import annotations

import polars as pl
import pytest

from dpo_pipeline import Contract, InvalidPairsError, check, evaluate
from pair_tools import COUNTS, LOGPS

TOKENS = [name.replace("_logps", "_token_logps") for name in LOGPS]


def one(*values):
    """A sound pair, and one of these log-probs."""
    return pl.DataFrame([[-30.0, -40.0, -30.5, -39.0], values], schema=LOGPS, orient="row")


pytestmark = pytest.mark.filterwarnings("ignore:.*(averaged over tokens|equal on all)")


@pytest.mark.parametrize(
    ("values", "broken"),
    [
        pytest.param((0.0, 0.0, 0.0, 0.0), ["chosen", "rejected"], id="both"),
        pytest.param((0.0, -1.0, 0.0, -1.0), ["chosen"], id="chosen"),
        pytest.param((-1.0, -0.0, -1.0, 0.0), ["rejected"], id="-0.0"),
        pytest.param((0.0, -1.0, -1.0, -1.0), [], id="the policy is certain"),
        pytest.param((-1.0, -1.0, -1.0, 0.0), [], id="the reference is certain"),
        pytest.param((-1e-300, -1.0, 0.0, -1.0), [], id="nearly 0"),
    ],
)
def test_a_completion_of_no_tokens_is_no_pair(values, broken):
    report = check(one(*values))
    assert report.by_rule == {f"policy_{side}_logps.not_empty": 1 for side in broken}
    assert report.n_invalid == bool(broken)


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_a_value_that_is_none_breaks_its_own_rule_alone(value):
    (rule,) = check(one(value, -1.0, 0.0, -1.0)).by_rule
    assert rule.startswith("policy_chosen_logps.")
    assert not rule.endswith("not_empty")


def test_without_a_reference_one_text_can_be_certain_and_two_cannot():
    assert check(one(0.0, -1.0, 0.0, -1.0), loss="cpo").n_invalid == 0
    assert check(one(-1.0, -0.0, 0.0, -1.0), loss="cpo").n_invalid == 0
    empty = check(one(0.0, -0.0, 0.0, -1.0), loss="cpo", on_invalid="exclude")
    assert empty.by_rule == {"policy_chosen_logps.not_empty": 1}
    scores = check(one(0.0, 0.0, 0.0, 0.0), loss="cpo", contract=Contract(max_logp=4096.0))
    assert scores.n_invalid == 0


def test_pairs_without_the_empty_ones_by_hand():
    lower = one(0.0, -9.0, 0.0, -8.0).with_columns(pl.col(LOGPS) - pl.Series([2.0, 0.0]))
    pairs = pl.concat([one(0.0, 0.0, 0.0, 0.0), lower])
    with pytest.raises(InvalidPairsError, match="2 of 4|2 of 4 rows"):
        evaluate(pairs)
    made = evaluate(pairs, beta=0.1, on_invalid="exclude").summary
    # Chosen 0.5 above, rejected 1 below the reference.
    assert (made.n_invalid, made.n_valid) == (2, 2)
    assert made.reward_margin == pytest.approx(0.1 * (0.5 + 1.0), abs=1e-12)


def lists(policy, reference=None, **more):
    """A sound pair, and one whose chosen completion has these tokens under the two models."""
    values = [policy, [-1.0, -2.0], policy if reference is None else reference, [-1.0, -3.0]]
    sound = ([-9.0, -5.0], [-9.0, -4.0], [-9.0, -3.0], [-9.0, -2.0])
    columns = {
        name: list(each) for name, each in zip(TOKENS, zip(sound, values, strict=True), strict=True)
    }
    return pl.DataFrame(columns | more)


PAD, FAR = [0.0] * 5, [-100.0] * 5


ENDS = {  # tokens of the policy and of the reference, and whether some are padding
    "padded": ([-1.0, 0.0, 0.0], [-2.0, 0.0, 0.0], True),
    "masked by a product": ([-1.0, -0.0, 0.0], [-2.0, 0.0, 0.0], True),
    "begins with certain tokens": ([0.0, 0.0, -1.0], [0.0, 0.0, -2.0], False),
    "ends with a certain token": ([-1.0, 0.0], [-2.0, 0.0], False),
    "certain under one model": ([-1.0, 0.0, 0.0], [-2.0, -1e-9, 0.0], False),
    "one token": ([-1.0], [-2.0], False),
    "padded at the beginning": ([*PAD, -1.0], [*PAD, -2.0], True),
    "begins with a template": ([*PAD[1:], -1.0], [*PAD[1:], -2.0], False),
    "padded with -100": ([-2.0, *FAR], [-1.0, *FAR], True),
    "four equal ones": ([-2.0, *FAR[1:]], [-1.0, *FAR[1:]], False),
    "equal in one model": ([-2.0, *FAR], [-1.0, *FAR[1:], -99.0], False),
    "a text that repeats": ([-2.0, *[-0.5] * 5], [-1.0, *[-0.5] * 5], False),
}


def test_zeros_at_the_end_are_padding_unless_a_mask_says_so():
    frame = pl.concat(
        lists(*each[:2])[1:].with_columns(pair_id=pl.lit(name)) for name, each in ENDS.items()
    )
    padded = [name for name, (*_, is_padded) in ENDS.items() if is_padded]
    (rule,) = check(frame).broken
    assert rule.name == "policy_chosen_token_logps.not_padded"
    assert [list(ENDS)[each.row] for each in rule.offenders] == padded
    assert rule.count == len(padded)
    kept = [[x not in (0.0, -100.0) or not p for x in policy] for policy, _, p in ENDS.values()]
    assert check(frame.with_columns(chosen_token_mask=pl.Series(kept))).n_invalid == 0


@pytest.mark.repeats(1)  # the rule is one, above
@pytest.mark.parametrize("policy", [[-1.0, *[0.0] * 5], [*[0.0] * 5, -1.0], [-2.0, *[-100.0] * 5]])
def test_a_mask_that_counts_padding_is_no_mask(policy):
    mask = {"chosen_token_mask": [[1, 1], [1] * 6]}
    (rule,) = check(lists(policy, **mask)).broken
    assert rule.name == "policy_chosen_token_logps.not_padded"
    assert rule.requirement.endswith("at its ends where chosen_token_mask is 1")


def test_padding_asks_for_its_mask():
    with pytest.raises(InvalidPairsError, match="or with chosen_token_mask"):
        evaluate(lists([-1.0, 0.0, 0.0]))


def test_padding_of_the_policy_alone_without_a_reference():
    tokens = lists([-1.0, 0.0, 0.0]).select(TOKENS[:2])
    assert check(tokens, loss="simpo").by_rule == {"policy_chosen_token_logps.not_padded": 1}


def test_lists_that_give_neither_sums_nor_counts_are_not_judged():
    padded = lists([-1.0, 0.0, 0.0])
    tokens = dict(zip(LOGPS, TOKENS, strict=True))
    sums = {name: padded[tokens[name]].list.sum() for name in LOGPS}
    counts = {name: [2, 1] for name in COUNTS}
    assert check(lists([-1.0, 0.0, 0.0], **sums)).n_invalid == 0
    assert check(lists([-1.0, 0.0, 0.0], **sums), loss="simpo").n_invalid == 1
    assert check(lists([-1.0, 0.0, 0.0], **sums, **counts), loss="simpo").n_invalid == 0
