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


@pytest.mark.repeats  # the sides have one set of rules
@pytest.mark.parametrize("column", [PC, RC])
@pytest.mark.parametrize("masked", [False, True])
def test_a_fault_has_one_name_a_row_and_a_position(column, masked):
    frame = pairs_of_tokens({MASKS[0]: [[1] * n for n in LENGTHS[COUNTS[0]]]} if masked else None)
    frame = pl.concat([*[frame[1:2]] * 6, frame[3:]])
    for row, (values, _) in enumerate(FAULTS.values()):
        frame = with_list(frame, column, row, values)
    frame = with_list(frame, column, 5, [-8.0, -INF, -1.0])
    report = check(frame)
    expected = {
        f"{column}.{rule}": [(row, value)] for row, (rule, (_, value)) in enumerate(FAULTS.items())
    }
    expected[f"{column}.finite_tokens"].append((5, "-inf at position 1"))
    assert found(report) == expected
    assert report.n_invalid == 5
    assert sum(report.by_rule.values()) == 5


@pytest.mark.parametrize("column", [PR, RR])
def test_a_fault_of_the_rejected_side(column):
    frame = with_list(pairs_of_tokens(), column, 3, [0.25])
    assert found(check(frame)) == {f"{column}.tokens_at_most": [(3, "0.25 at position 0")]}


def test_positions_are_those_of_the_whole_list_and_of_tokens_that_count():
    frame = pairs_of_tokens({MASKS[0]: [[1, 1, 1], [1, 1, 1], [1], [0, 1, 0, 1]]})
    frame = with_list(frame, PC, 3, [None, -3.0, None, None])
    assert found(check(frame)) == {f"{PC}.no_null_token": [(3, "null at position 3")]}


def test_a_null_list():
    frame = pl.concat([pairs_of_tokens()] * 2)
    for row, column in enumerate(TOKENS):
        frame = with_list(frame, column, row, None)
    assert found(check(frame)) == {
        f"{column}.not_null": [(row, None)] for row, column in enumerate(TOKENS)
    }


def test_an_empty_completion():
    frame = with_list(with_list(pairs_of_tokens(), PC, 2, []), RC, 2, [])
    assert found(check(frame)) == {
        f"{PC}.not_empty": [(2, "0 of 0 tokens count")],
        f"{RC}.not_empty": [(2, "0 of 0 tokens count")],
    }


def test_a_completion_that_is_masked_altogether():
    frame = pairs_of_tokens({MASKS[0]: [[1, 1, 1], [0, 0, 0], [1], [1] * 4]})
    assert found(check(frame)) == {
        f"{PC}.not_empty": [(1, "0 of 3 tokens count")],
        f"{RC}.not_empty": [(1, "0 of 3 tokens count")],
    }


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


@pytest.mark.repeats(1)  # the sides have one set of rules
@pytest.mark.parametrize("column", [PC, RC])
def test_policy_and_reference_of_different_length(column):
    frame = with_list(pairs_of_tokens(), column, 0, [-1.0, -2.0])
    ours, theirs = (2, 3) if column == PC else (3, 2)
    assert found(check(frame)) == {f"{PC}.same_length": [(0, f"{ours} tokens, {theirs} in {RC}")]}


def with_sums(frame, **changes):
    sums = {name: list(values) for name, values in SUMS.items()}
    for name, (row, value) in changes.items():
        sums[name][row] = value
    return frame.with_columns(pl.Series(n, v, dtype=pl.Float64) for n, v in sums.items())


def test_sums_beside_their_tokens_are_taken():
    near = with_sums(pairs_of_tokens(), policy_chosen_logps=(1, -13.2))
    with_floats = score(near).collect()
    assert with_floats[LOGPS[0]].to_list() == [-3.5, -13.2, -0.25, -12.0]


@pytest.mark.parametrize(
    ("name", "row", "value", "total"),
    [
        pytest.param("policy_chosen_logps", 1, -13.0 / 3, -13.0, id="an average"),
        pytest.param("ref_rejected_logps", 3, -19.0, -9.0, id="with the prompt"),
        pytest.param("policy_rejected_logps", 1, -10.625 - 0.2063, -10.625, id="just beyond"),
    ],
)
def test_sums_that_their_tokens_do_not_give_are_invalid(name, row, value, total):
    frame = with_sums(pairs_of_tokens(), **{name: (row, value)})
    shown = [(row, f"{value}, and the tokens sum to {total}")]
    assert found(check(frame)) == {f"{name}.agrees_with_tokens": shown}
    with pytest.raises(InvalidPairsError):
        evaluate(frame)


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


@pytest.mark.parametrize("value", [None, NAN, -INF, 0.5])
def test_a_sum_with_a_fault_has_that_fault_alone(value):
    frame = with_sums(pairs_of_tokens(), policy_chosen_logps=(0, value))
    assert len(found(check(frame))) == 1


def test_sums_stand_where_there_are_no_tokens_to_compare():
    frame = with_list(with_sums(pairs_of_tokens()), PC, 0, None)
    frame = with_list(frame, PR, 1, [-1.0, None])
    assert found(check(frame)) == {}


def test_an_empty_list_is_also_of_another_length():
    frame = with_list(pairs_of_tokens(), RR, 0, [])
    assert found(check(frame)) == {
        f"{RR}.not_empty": [(0, "0 of 0 tokens count")],
        f"{PR}.same_length": [(0, f"2 tokens, 0 in {RR}")],
    }


# For rows of three tokens: shorter, longer, longer by what is left out, and empty.
ODD_MASKS = [[1, 1], [1, 1, 1, 1], [1, 1, 1, 0], [], [1, 1, 1]]


def pairs_of_odd_masks():
    """Five pairs, of which the first four have a chosen mask of another length."""
    return pl.concat([pairs_of_tokens()[:1]] * 5).with_columns(pl.Series(MASKS[0], ODD_MASKS))


def test_a_mask_of_another_length():
    lengths = [(row, f"3 tokens, {len(ODD_MASKS[row])} in {MASKS[0]}") for row in range(4)]
    assert found(check(pairs_of_odd_masks())) == {
        f"{PC}.fits_mask": lengths,
        f"{RC}.fits_mask": lengths,
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


def test_a_mask_of_large_numbers():
    frame = pairs_of_tokens({MASKS[0]: [[1, 1, 1], [1, 1, 300], [1], [1] * 4]})
    frame = with_list(frame, PC, 1, [-1.0, 0.5, -1.0])
    assert found(check(frame)) == {f"{PC}.tokens_at_most": [(1, "0.5 at position 1")]}


@pytest.mark.parametrize(
    ("value", "max_logp", "n_invalid"),
    [
        pytest.param(0.0, 0.0, 0, id="0 is a log-prob"),
        pytest.param(5e-324, 0.0, 1, id="the least above it is none"),
        pytest.param(0.125, 0.125, 0, id="at the limit"),
        pytest.param(0.1250001, 0.125, 1, id="above the limit"),
        pytest.param(-0.1, -0.125, 1, id="above a limit below 0"),
    ],
)
def test_the_limit_of_a_token(value, max_logp, n_invalid):
    low = pairs_of_tokens().with_columns(pl.col(TOKENS).list.eval(pl.element() - 1.0))
    report = check(with_list(low, PC, 1, [-9.0, value, -9.0]), contract=Contract(max_logp=max_logp))
    name = f"{PC}.tokens_at_most"
    assert report.by_rule == ({name: 1} if n_invalid else {})
    if n_invalid:
        (rule,) = report.broken
        assert rule.requirement == f"all tokens at most {max_logp:,.10g}"


def test_a_sum_out_of_range_of_sound_tokens():
    frame = with_list(pairs_of_tokens(), PC, 1, [LOWEST, -1.0, -1.0])
    assert found(check(frame)) == {"policy_chosen_logps.at_least": [(1, LOWEST - 2.0)]}
    assert check(with_list(frame, PC, 1, [LOWEST, 0.0, 0.0])).n_invalid == 0
    above = with_list(pairs_of_tokens(), PC, 1, [0.125, 0.125, -0.125 + 2**-10])
    assert found(check(above, contract=Contract(max_logp=0.125))) == {
        "policy_chosen_logps.at_most": [(1, 0.125 + 2**-10)]
    }


def test_several_faults_are_counted_once_by_name_each():
    frame = with_list(pairs_of_tokens(), PC, 1, [None, NAN, INF, 0.5, NAN, None, -INF])
    report = check(frame)
    assert found(report) == {
        f"{PC}.no_null_token": [(1, "null at position 0")],
        f"{PC}.no_nan_token": [(1, "NaN at position 1")],
        f"{PC}.finite_tokens": [(1, "inf at position 2")],
        f"{PC}.tokens_at_most": [(1, "0.5 at position 3")],
        f"{PC}.same_length": [(1, f"7 tokens, 3 in {RC}")],
    }
    assert set(report.by_rule.values()) == {1}
    assert report.n_invalid == 1


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


@pytest.mark.parametrize(
    ("masks", "max_logp"),
    [
        pytest.param((), 0.0, id="no mask"),
        pytest.param(MASKS[:1], 0.0, id="one mask"),
        pytest.param(MASKS, 0.125, id="masks, and tokens up to 0.125"),
    ],
)
def test_rules_and_valid_against_plain_python(masks, max_logp):
    rows, frame = odd_lists(600, masks=masks)
    rules = bind(frame.lazy(), source="pairs", max_logp=max_logp).rules
    expected = [sorted(broken_of_row(row, max_logp)) for row in rows]
    assert [sorted(names) for names in broken_rules(frame, rules)] == expected
    prepared = bind(frame.lazy(), source="pairs", max_logp=max_logp).prepare(frame.lazy())
    valid = prepared.select(rules.valid.alias("valid")).collect()["valid"].to_list()
    assert valid == [not names for names in expected]
    # The table is of something: each rule is broken, and rows of every kind are there.
    seen = {name.partition(".")[2] for names in expected for name in names}
    assert len(seen) == 8 + bool(masks)
    assert 90 < sum(valid) < 480


@pytest.mark.repeats(2)  # rules are bound before any argument
@pytest.mark.parametrize("arguments", [{"ld_alpha": 0.0}, {"ld_alpha": 0.5}, {"humanline": True}])
def test_what_is_done_with_tokens_does_not_change_which_rows_are_sound(arguments):
    rows, frame = odd_lists(300, masks=())
    sound = [not broken_of_row(row, 0.0) for row in rows]
    result = evaluate(frame, loss=Objective(arguments=arguments), on_invalid="exclude")
    # A token too low for a plain sum can be clamped, or count less.
    names = {f"{n}.at_least" for n in LOGPS}
    low = [bool(set(broken) <= names) for broken in (broken_of_row(r, 0.0) for r in rows)]
    assert sum(sound) <= result.summary.n_valid <= sum(low)
    of_tokens = {k: v for k, v in result.invalid.by_rule.items() if "_token_" in k}
    plain = check(frame).by_rule
    assert of_tokens == {k: v for k, v in plain.items() if "_token_" in k}
