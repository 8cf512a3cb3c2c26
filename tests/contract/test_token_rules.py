"""Rules of per-token lists: faults by row and position, against plain Python."""

from __future__ import annotations

import os
import random
import re

import polars as pl
import pytest

from dpo_pipeline import Contract, InvalidPairsError, Objective, check, evaluate, score
from dpo_pipeline.contract.binding import bind
from pair_tools import COUNTS, LOGPS
from token_tools import (
    INF,
    LENGTHS,
    LISTS,
    LOWEST,
    MASKS,
    NAN,
    PC,
    PR,
    RC,
    RR,
    SUMS,
    TOKENS,
    broken_of_row,
    found,
    pairs_of_tokens,
    with_list,
)

# -------------------------------------------------------------------------------------- rules


FAULTS = {
    "no_null_token": ([-8.0, None, -1.0], "null at position 1"),
    "no_nan_token": ([-8.0, NAN, NAN], "NaN at position 1"),
    "finite_tokens": ([INF, -4.0, -INF], "inf at position 0"),
    "tokens_at_most": ([-8.0, -4.0, 0.5], "0.5 at position 2"),
}


def with_faults(column, *, masked=False):
    frame = pairs_of_tokens({MASKS[0]: [[1] * n for n in LENGTHS[COUNTS[0]]]} if masked else None)
    frame = pl.concat([*[frame[1:2]] * 6, frame[3:]])
    for row, (values, _) in enumerate(FAULTS.values()):
        frame = with_list(frame, column, row, values)
    return with_list(frame, column, 5, [-8.0, -INF, -1.0])


def each_fault(column):
    expected = {
        f"{column}.{rule}": [(row, value)] for row, (rule, (_, value)) in enumerate(FAULTS.items())
    }
    expected[f"{column}.finite_tokens"].append((5, "-inf at position 1"))
    return expected


def nulls():
    frame = pl.concat([pairs_of_tokens()] * 2)
    for row, column in enumerate(TOKENS):
        frame = with_list(frame, column, row, None)
    return frame


def of_token(value):
    low = pairs_of_tokens().with_columns(pl.col(TOKENS).list.eval(pl.element() - 1.0))
    return with_list(low, PC, 1, [-9.0, value, -9.0])


def with_sums(frame, **changes):
    sums = {name: list(values) for name, values in SUMS.items()}
    for name, (row, value) in changes.items():
        sums[name][row] = value
    return frame.with_columns(pl.Series(n, v, dtype=pl.Float64) for n, v in sums.items())


def of_sum(name, row, value, total):
    """Return pairs with a sum that their tokens do not give, and what is said of it."""
    shown = [(row, f"{value}, and the tokens sum to {total}")]
    return with_sums(pairs_of_tokens(), **{name: (row, value)}), {
        f"{name}.agrees_with_tokens": shown
    }


# For rows of three tokens: shorter, longer, longer by what is left out, and empty.
ODD_MASKS = [[1, 1], [1, 1, 1, 1], [1, 1, 1, 0], [], [1, 1, 1]]
OF_ODD_LENGTH = [(row, f"3 tokens, {len(ODD_MASKS[row])} in {MASKS[0]}") for row in range(4)]


def pairs_of_odd_masks():
    """Five pairs, of which the first four have a chosen mask of another length."""
    return pl.concat([pairs_of_tokens()[:1]] * 5).with_columns(pl.Series(MASKS[0], ODD_MASKS))


LISTS_ALONE = {
    "a fault has one name a row and a position": (with_faults(PC), each_fault(PC)),
    "so it has in the reference": (with_faults(RC), each_fault(RC)),
    "the policy's rejected side": (
        with_list(pairs_of_tokens(), PR, 3, [0.25]),
        {f"{PR}.tokens_at_most": [(3, "0.25 at position 0")]},
    ),
    "the reference's rejected side": (
        with_list(pairs_of_tokens(), RR, 3, [0.25]),
        {f"{RR}.tokens_at_most": [(3, "0.25 at position 0")]},
    ),
    "null lists": (
        nulls(),
        {f"{column}.not_null": [(row, None)] for row, column in enumerate(TOKENS)},
    ),
    "an empty completion": (
        with_list(with_list(pairs_of_tokens(), PC, 2, []), RC, 2, []),
        {f"{column}.not_empty": [(2, "0 of 0 tokens count")] for column in (PC, RC)},
    ),
    "an empty list is also of another length": (
        with_list(pairs_of_tokens(), RR, 0, []),
        {
            f"{RR}.not_empty": [(0, "0 of 0 tokens count")],
            f"{PR}.same_length": [(0, f"2 tokens, 0 in {RR}")],
        },
    ),
    "a shorter list of the policy": (
        with_list(pairs_of_tokens(), PC, 0, [-1.0, -2.0]),
        {f"{PC}.same_length": [(0, f"2 tokens, 3 in {RC}")]},
    ),
    "a shorter list of the reference": (
        with_list(pairs_of_tokens(), RC, 0, [-1.0, -2.0]),
        {f"{PC}.same_length": [(0, f"3 tokens, 2 in {RC}")]},
    ),
    "several faults are counted once by name each": (
        with_list(pairs_of_tokens(), PC, 1, [None, NAN, INF, 0.5, NAN, None, -INF]),
        {
            f"{PC}.no_null_token": [(1, "null at position 0")],
            f"{PC}.no_nan_token": [(1, "NaN at position 1")],
            f"{PC}.finite_tokens": [(1, "inf at position 2")],
            f"{PC}.tokens_at_most": [(1, "0.5 at position 3")],
            f"{PC}.same_length": [(1, f"7 tokens, 3 in {RC}")],
        },
    ),
    "a token of 0 is a log-prob": (of_token(0.0), {}),
    "the least token above 0 is none": (
        of_token(5e-324),
        {f"{PC}.tokens_at_most": [(1, "5e-324 at position 1")]},
    ),
    "a sum out of range of sound tokens": (
        with_list(pairs_of_tokens(), PC, 1, [LOWEST, -1.0, -1.0]),
        {"policy_chosen_logps.at_least": [(1, LOWEST - 2.0)]},
    ),
    "the lowest sum": (with_list(pairs_of_tokens(), PC, 1, [LOWEST, 0.0, 0.0]), {}),
}
MASKED = {
    "a fault has one name a row and a position": (with_faults(PC, masked=True), each_fault(PC)),
    "positions are those of the whole list, and of tokens that count": (
        with_list(
            pairs_of_tokens({MASKS[0]: [[1, 1, 1], [1, 1, 1], [1], [0, 1, 0, 1]]}),
            PC,
            3,
            [None, -3.0, None, None],
        ),
        {f"{PC}.no_null_token": [(3, "null at position 3")]},
    ),
    "a completion that is masked altogether": (
        pairs_of_tokens({MASKS[0]: [[1, 1, 1], [0, 0, 0], [1], [1] * 4]}),
        {f"{column}.not_empty": [(1, "0 of 3 tokens count")] for column in (PC, RC)},
    ),
    "masks of another length": (
        pairs_of_odd_masks(),
        {f"{PC}.fits_mask": OF_ODD_LENGTH, f"{RC}.fits_mask": OF_ODD_LENGTH},
    ),
    "a mask of large numbers": (
        with_list(
            pairs_of_tokens({MASKS[0]: [[1, 1, 1], [1, 1, 300], [1], [1] * 4]}),
            PC,
            1,
            [-1.0, 0.5, -1.0],
        ),
        {f"{PC}.tokens_at_most": [(1, "0.5 at position 1")]},
    ),
}
BESIDE_SUMS = {
    "an average": of_sum("policy_chosen_logps", 1, -13.0 / 3, -13.0),
    "with the prompt": of_sum("ref_rejected_logps", 3, -19.0, -9.0),
    "just beyond": of_sum("policy_rejected_logps", 1, -10.625 - 0.2063, -10.625),
    **{
        f"a sum with a fault has that fault alone: {value}": (
            with_sums(pairs_of_tokens(), policy_chosen_logps=(0, value)),
            {f"policy_chosen_logps.{rule}": [(0, value)]},
        )
        for rule, value in (
            ("not_null", None),
            ("not_nan", NAN),
            ("finite", -INF),
            ("at_most", 0.5),
        )
    },
    "sums stand where there are no tokens to compare": (
        with_list(with_list(with_sums(pairs_of_tokens()), PC, 0, None), PR, 1, [-1.0, None]),
        {},
    ),
}
GROUPS = {"lists alone": LISTS_ALONE, "masked": MASKED, "beside sums": BESIDE_SUMS}


@pytest.fixture(scope="module")
def reports():
    """What one check finds of all pairs of a group: it costs what a check of few pairs does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dpo_pipeline.contract.invalid_rows.OFFENDERS_SHOWN", 1_000)
        return {
            group: check(pl.concat([frame for frame, _ in cases.values()], how="vertical_relaxed"))
            for group, cases in GROUPS.items()
        }


@pytest.mark.parametrize(
    ("group", "case"), [(group, case) for group, cases in GROUPS.items() for case in cases]
)
def test_what_is_said_of(reports, group, case):
    cases = list(GROUPS[group])
    heights = [frame.height for frame, _ in GROUPS[group].values()]
    first = sum(heights[: cases.index(case)])
    own = range(first, first + heights[cases.index(case)])
    listed = {
        rule: [(row - first, value) for row, value in rows if row in own]
        for rule, rows in found(reports[group]).items()
    }
    # As text: NaN is no number's equal.
    assert {rule: str(rows) for rule, rows in listed.items() if rows} == {
        rule: str(rows) for rule, rows in GROUPS[group][case][1].items()
    }


@pytest.mark.parametrize("group", GROUPS)
def test_a_row_counts_once_and_each_of_its_rules(reports, group):
    cases = [expected for _, expected in GROUPS[group].values()]
    assert reports[group].n_invalid == sum(
        len({row for rows in expected.values() for row, _ in rows}) for expected in cases
    )
    assert sum(reports[group].by_rule.values()) == sum(
        len(rows) for expected in cases for rows in expected.values()
    )


def test_pairs_whose_sums_their_tokens_do_not_give_are_not_evaluated():
    with pytest.raises(InvalidPairsError):
        evaluate(BESIDE_SUMS["just beyond"][0])


def test_offenders_of_many_chunks_are_all_listed():
    sound = pairs_of_tokens()
    rows = [sound[i % 4] for i in range(8)]
    rows[0] = with_list(sound[0], PC, 0, [-1.0, 0.5, -1.0])
    rows[4] = with_list(sound[0], PC, 0, [-1.0])
    chunks = pl.concat(rows)
    assert chunks.n_chunks() == 8
    listed = {name.split(".")[1]: each for name, each in found(check(chunks)).items()}
    assert listed == {
        "tokens_at_most": [(0, "0.5 at position 1")],
        "same_length": [(4, f"1 tokens, 3 in {RC}")],
    }


def test_sums_beside_their_tokens_are_taken():
    near = with_sums(pairs_of_tokens(), policy_chosen_logps=(1, -13.2))
    with_floats = score(near).collect()
    assert with_floats[LOGPS[0]].to_list() == [-3.5, -13.2, -0.25, -12.0]


def test_sums_are_compared_with_the_tokens_that_count():
    masks = {MASKS[0]: [[0, 1, 1], [1, 1, 1], [1], [1] * 4]}
    frame = with_sums(pairs_of_tokens(masks), policy_chosen_logps=(0, -2.5))
    shown = [(0, "-3.75, and the tokens sum to -2.25")]
    assert found(check(frame)) == {"ref_chosen_logps.agrees_with_tokens": shown}


def test_a_sum_that_is_accepted_above_0_is_compared():
    frame = with_sums(pairs_of_tokens(), policy_chosen_logps=(0, 0.125))
    shown = [(0, "0.125, and the tokens sum to -3.5")]
    assert found(check(frame, contract=Contract(max_logp=0.125))) == {
        f"{LOGPS[0]}.agrees_with_tokens": shown
    }


def test_a_mask_of_another_length_breaks_one_rule_of_each_list():
    frame = pairs_of_odd_masks()
    rules = bind(frame.lazy(), source="pairs", max_logp=0.0).rules
    both = [f"{PC}.fits_mask", f"{RC}.fits_mask"]
    assert broken_rules(frame, rules) == [both] * 4 + [[]]


def test_a_null_mask():
    frame = pairs_of_tokens({MASKS[1]: [[1, 1], None, [1, 1], [1]]})
    value = f"4 tokens, 0 in {MASKS[1]}"
    assert found(check(frame)) == {
        f"{PR}.fits_mask": [(1, value)],
        f"{RR}.fits_mask": [(1, value)],
    }


@pytest.mark.parametrize(
    ("value", "max_logp", "n_invalid"),
    [
        pytest.param(0.125, 0.125, 0, id="at the limit"),
        pytest.param(0.1250001, 0.125, 1, id="above the limit"),
        pytest.param(-0.1, -0.125, 1, id="above a limit below 0"),
    ],
)
def test_the_limit_of_a_token(value, max_logp, n_invalid):
    report = check(of_token(value), contract=Contract(max_logp=max_logp))
    name = f"{PC}.tokens_at_most"
    assert report.by_rule == ({name: 1} if n_invalid else {})
    if n_invalid:
        (rule,) = report.broken
        assert rule.requirement == f"all tokens at most {max_logp:,.10g}"


def test_a_sum_above_a_limit_that_its_tokens_keep():
    above = with_list(pairs_of_tokens(), PC, 1, [0.125, 0.125, -0.125 + 2**-10])
    assert found(check(above, contract=Contract(max_logp=0.125))) == {
        "policy_chosen_logps.at_most": [(1, 0.125 + 2**-10)]
    }


def test_an_unsound_list_hides_no_fault_of_other_columns():
    frame = with_list(pairs_of_tokens(), PC, 1, [-1.0, NAN, -1.0])
    frame = frame.with_columns(rejected_num_tokens=pl.Series([2, 0, 2, 1]))
    frame = with_list(frame, RR, 1, [2 * LOWEST, -1.0, -1.0, -1.0])
    assert check(frame).by_rule == {
        f"{PC}.no_nan_token": 1,
        "ref_rejected_logps.at_least": 1,
        "rejected_num_tokens.at_least": 1,
    }


def test_the_first_five_are_shown_and_all_are_counted(tmp_path):
    lists = [[-1.0, -30.0, float(row % 3 == 1)] for row in range(40)]
    frame = pl.DataFrame({PC: lists, RC: [[-2.0, -3.0 - r, -1.0] for r in range(40)]})
    frame = frame.with_columns(pl.col(PC, RC).name.map(lambda n: n.replace("chosen", "rejected")))
    frame = frame.with_columns(pl.Series(PR, [[-1.0, -float(r), -1.0] for r in range(40)]))
    frame[:15].write_parquet(tmp_path / "a.parquet", row_group_size=4)
    frame[15:].write_parquet(tmp_path / "b.parquet", row_group_size=3)
    with pytest.raises(InvalidPairsError) as caught:
        evaluate([tmp_path / "b.parquet", tmp_path / "a.parquet"])
    (rule,) = caught.value.report.broken
    assert (rule.name, rule.count) == (f"{PC}.tokens_at_most", 13)
    assert {o.value for o in rule.offenders} == {"1.0 at position 2"}
    rows = [(os.path.basename(o.file), o.row) for o in rule.offenders]
    # Files are taken in the order of their names or in that of the list: both give five in a row.
    first_b = [("b.parquet", row) for row in range(25) if (15 + row) % 3 == 1]
    first_a = [("a.parquet", row) for row in range(15) if row % 3 == 1]
    assert rows in ((first_a + first_b)[:5], (first_b + first_a)[:5])
    assert re.search(r"tokens_at_most .* 13  ", str(caught.value))


# ---------------------------------------------------------- the rules by plain Python, row by row


def broken_rules(frame, rules):
    """The names of the rules that each row breaks, one rule at a time."""
    binding = bind(frame.lazy(), source="pairs", max_logp=0.0)
    keeps = [rule.keeps.alias(str(i)) for i, rule in enumerate(rules.rules)]
    table = binding.prepare(frame.lazy()).select(keeps).collect()
    assert table.null_count().sum_horizontal().item() == 0
    names = [rule.name for rule in rules.rules]
    return [[n for n, keep in zip(names, row, strict=True) if not keep] for row in table.rows()]


def odd_lists(n_rows, *, masks):
    """Rows that are sound, or have one or several odd lists among them."""
    rng = random.Random(20)
    odd = [None, NAN, INF, -INF, 0.0, 0.125, 0.5, LOWEST, -1.0, -2.0, -0.5]
    rows = []
    for _ in range(n_rows):
        lengths = [rng.choice([0, 1, 1, 2, 3, 5, 9]) for _ in range(2)] * 2
        row = {
            n: [-rng.expovariate(1) for _ in range(k)] for n, k in zip(TOKENS, lengths, strict=True)
        }
        for name in TOKENS:
            how = rng.random()
            if how < 0.04:
                row[name] = None
            elif how < 0.08:
                row[name] = [rng.choice(odd) for _ in range(rng.randint(0, 6))]
            elif how < 0.25 and row[name]:
                row[name][rng.randrange(len(row[name]))] = rng.choice(odd)
        for name, length in zip(masks, lengths, strict=False):
            row[name] = [rng.randrange(8) > 0 for _ in range(length)]
            how = rng.random()
            if how < 0.03:
                row[name] = None
            elif how < 0.08:
                row[name] = [True] * rng.randint(0, 6)
        rows.append(row)
    kinds = dict.fromkeys(TOKENS, LISTS) | dict.fromkeys(masks, pl.List(pl.Boolean))
    return rows, pl.DataFrame(rows, schema=kinds)


@pytest.mark.repeats(2)  # without masks and with both
@pytest.mark.parametrize(
    ("masks", "max_logp"),
    [
        pytest.param((), 0.0, id="no mask"),
        pytest.param(MASKS[:1], 0.0, id="one mask"),
        pytest.param(MASKS, 0.125, id="masks, and tokens up to 0.125"),
    ],
)
def test_rules_and_valid_against_plain_python(masks, max_logp):
    rows, frame = odd_lists(250, masks=masks)
    rules = bind(frame.lazy(), source="pairs", max_logp=max_logp).rules
    expected = [sorted(broken_of_row(row, max_logp)) for row in rows]
    assert [sorted(names) for names in broken_rules(frame, rules)] == expected
    prepared = bind(frame.lazy(), source="pairs", max_logp=max_logp).prepare(frame.lazy())
    valid = prepared.select(rules.valid.alias("valid")).collect()["valid"].to_list()
    assert valid == [not names for names in expected]
    # The table is of something: each rule is broken, and rows of every kind are there.
    seen = {name.partition(".")[2] for names in expected for name in names}
    assert len(seen) == 8 + bool(masks)
    assert 40 < sum(valid) < 200


@pytest.mark.repeats(1)  # rules are bound before any argument; the first one clamps tokens
@pytest.mark.parametrize("arguments", [{"humanline": True}, {"ld_alpha": 0.0}, {"ld_alpha": 0.5}])
def test_what_is_done_with_tokens_does_not_change_which_rows_are_sound(arguments):
    rows, frame = odd_lists(100, masks=())
    sound = [not broken_of_row(row, 0.0) for row in rows]
    result = evaluate(frame, loss=Objective(arguments=arguments), on_invalid="exclude")
    # A token too low for a plain sum can be clamped, or count less.
    names = {f"{n}.at_least" for n in LOGPS}
    low = [bool(set(broken) <= names) for broken in (broken_of_row(r, 0.0) for r in rows)]
    assert sum(sound) <= result.summary.n_valid <= sum(low)
    of_tokens = {k: v for k, v in result.invalid.by_rule.items() if "_token_" in k}
    plain = check(frame).by_rule
    assert of_tokens == {k: v for k, v in plain.items() if "_token_" in k}
