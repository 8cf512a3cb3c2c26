"""Findings fire on data made to have the fault, and are silent where it is not."""

from __future__ import annotations

import json
import math
import re
import warnings

import jsonschema
import numpy as np
import polars as pl
import pytest

from dpo_pipeline import DataWarning, StatisticsOptions, evaluate
from dpo_pipeline.defaults import MISLABELLED_FROM
from option_tools import grouped
from pair_tools import LOGPS
from schema_tools import validate

pytestmark = pytest.mark.usefixtures("few_groups")

N = 2_000
SIDES = ("chosen", "rejected")


def made(n=N, *, beta=0.1, spread=40.0, seed=0, size=(50.0, 300.0)):
    """Sound pairs: log-ratios whose difference is as sure of the label as it says.

    With d from N(beta v / 2, v) the log-odds of a label are beta d. Chosen completions rise as
    much as rejected ones fall, references prefer neither, lengths mean nothing.
    """
    rng = np.random.default_rng(seed)
    half = beta * spread / 4
    noise = rng.normal(0.0, np.sqrt(spread / 2), (2, n))
    reference = -rng.uniform(*size, (2, n))
    return pl.DataFrame(
        {
            "pair_id": np.arange(n),
            "policy_chosen_logps": reference[0] + half + noise[0],
            "policy_rejected_logps": reference[1] - half + noise[1],
            "ref_chosen_logps": reference[0],
            "ref_rejected_logps": reference[1],
            "chosen_num_tokens": rng.integers(20, 60, n),
            "rejected_num_tokens": rng.integers(20, 60, n),
        }
    ).with_columns(pl.col(LOGPS).clip(upper_bound=0.0))


def evaluated(pairs, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        return evaluate(pairs, **grouped(statistics=True, **options))


def found(pairs, **options):
    return evaluated(pairs, **options).findings


def names(pairs, **options):
    return [finding.name for finding in found(pairs, **options)]


def only(findings, name):
    (finding,) = [finding for finding in findings if finding.name == name]
    return finding


def raised(pairs, chosen, rejected):
    """The pairs with policy log-probs raised by so much."""
    return pairs.with_columns(
        (pl.col(f"policy_{side}_logps") + pl.Series(np.broadcast_to(more, pairs.height).copy()))
        .clip(upper_bound=0.0)
        .alias(f"policy_{side}_logps")
        for side, more in zip(SIDES, (chosen, rejected), strict=True)
    )


def swapped(pairs, where):
    """The pairs with chosen and rejected exchanged where it is said."""
    columns = [*LOGPS, "chosen_num_tokens", "rejected_num_tokens"]

    def other(name):
        side, another = SIDES if "chosen" in name else SIDES[::-1]
        return name.replace(side, another)

    mask = pl.Series(where)
    return pairs.with_columns(
        pl.when(mask).then(other(name)).otherwise(name).alias(name) for name in columns
    )


# More seeds, of which the simulation below has a hundred.
@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3))]
)
def test_sound_pairs_have_no_findings(seed):
    assert found(made(seed=seed)) == ()


def test_sound_pairs_of_prompts_have_no_findings():
    prompts = pl.int_range(pl.len()) // 5
    assert found(made().with_columns(prompt_id=prompts)) == ()


# Ten datasets show a check that is often wrong; a hundred tell how often one is.
@pytest.mark.slow  # a simulation; each finding has its test of when it is there and when not
@pytest.mark.parametrize(
    ("datasets", "most"), [(10, 1), pytest.param(100, 5, marks=pytest.mark.slow)]
)
def test_findings_are_seldom_false(datasets, most):
    seeds = range(100, 100 + datasets)
    assert sum(bool(names(made(600, spread=60.0, seed=seed))) for seed in seeds) <= most


def test_real_pairs_have_the_findings_that_are_there(real_pairs):
    # 79% of the chosen completions of both splits are less likely; margins follow length.
    findings = found(real_pairs)
    assert [finding.name for finding in findings] == [
        "baseline", "baseline", "displacement", "length",
    ]  # fmt: skip
    assert {finding.severity for finding in findings} == {"caution"}
    # 55.9% right, and the reference's own log-probs 57% or so: no better on these 698 pairs.
    assert "shorter" in findings[0].title
    assert "reference" in findings[1].title


# ---- what the input looks like


def test_a_policy_that_is_its_reference_is_found_first():
    same = made().with_columns(
        pl.col(f"ref_{side}_logps").alias(f"policy_{side}_logps") for side in SIDES
    )
    first = found(same)[0]
    assert (first.name, first.severity) == ("unmoved", "problem")
    assert "equal on all 2,000 valid pairs" in first.title
    assert "scored twice" in first.evidence


ABOUT_MARGINS = {"baseline", "precision", "worse_than_chance", "confident_errors"}


def test_ties_alone_say_nothing_of_chance_or_precision():
    same = rounded(made(), "bf16").with_columns(
        pl.col(f"ref_{side}_logps").alias(f"policy_{side}_logps") for side in SIDES
    )
    assert {*names(same)}.isdisjoint(ABOUT_MARGINS)


def test_a_beta_of_0_is_found():
    findings = found(made(), beta=0.0)
    assert only(findings, "beta").title == "beta is 0, so every reward is 0"
    assert {each.name for each in findings}.isdisjoint(ABOUT_MARGINS)
    assert "beta" not in names(made(), beta=1e-3)


def test_averages_where_sums_are_expected_are_found():
    averaged = made().with_columns(pl.col(LOGPS) / 100.0)
    (first, *_) = found(averaged)
    assert first.name == "averaged"
    assert "averaged over tokens" in f"{first.title} {first.evidence}"


def test_a_constant_reference_is_found():
    constant = made().with_columns(ref_chosen_logps=-150.0)
    inputs = [finding for finding in found(constant) if finding.name == "constant"]
    assert [finding.title for finding in inputs] == [
        "ref_chosen_logps is -150 on all 2,000 valid pairs"
    ]


def rounded(pairs, dtype, columns=LOGPS):
    """The log-probs as a number format keeps them."""
    if dtype == "bf16":

        def kept(values):
            bits = values.astype(np.float32).view(np.uint32)
            return (((bits + 0x8000) >> 16) << 16).view(np.float32)
    else:

        def kept(values):
            return values.astype(dtype)  # fmt: skip

    return pairs.with_columns(
        pl.Series(name, kept(pairs[name].to_numpy()).astype(np.float64)) for name in columns
    )


def test_bf16_at_700_nats_steps_by_4():
    pairs = made(size=(600.0, 800.0)).drop("chosen_num_tokens", "rejected_num_tokens")
    coarse = rounded(pairs, "bf16")
    finding = only(found(coarse), "precision")
    assert finding.severity == "problem"
    assert "bf16" in finding.title
    assert "policy and the reference are bf16 numbers" in finding.evidence
    assert re.search(r"step by 4 at 70\d", finding.evidence)
    ratios = [coarse[f"policy_{side}_logps"] - coarse[f"ref_{side}_logps"] for side in SIDES]
    largest = coarse.select(pl.max_horizontal(pl.col(LOGPS).abs())).to_series()
    share = ((ratios[0] - ratios[1]).abs() < largest / 256).mean()
    assert f"in {share:.1%} (" in finding.evidence
    assert 0.2 < share < 0.4


@pytest.mark.repeats(1)  # each model has a row of one table
@pytest.mark.parametrize("model", ["reference", "policy"])
def test_one_model_in_bf16_is_enough(model):
    prefix = "ref" if model == "reference" else model
    columns = [f"{prefix}_{side}_logps" for side in SIDES]
    finding = only(found(rounded(made(), "bf16", columns)), "precision")
    assert f"All log-probs of the {model} are bf16 numbers" in finding.evidence


@pytest.mark.repeats(1)  # float16 is the coarser one
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_formats_that_are_fine_enough_are_no_finding(dtype):
    assert names(rounded(made(), dtype)) == []


def test_bf16_is_no_finding_where_margins_are_far_larger_than_its_steps():
    pairs = raised(made(size=(20.0, 40.0), spread=10.0), 0.0, -200.0)
    assert "precision" not in names(rounded(pairs, "bf16"))


@pytest.mark.parametrize(("share", "expected"), [(0.05, ["repeats"]), (0.004, [])])
def test_copies_are_found_where_there_are_many(share, expected):
    pairs = made().drop("pair_id")
    with_copies = pl.concat([pairs, pairs[: int(share * N)]])
    findings = found(with_copies)
    assert [each.name for each in findings] == expected
    if expected:
        finding = only(findings, "repeats")
        assert finding.evidence.startswith("4.8% of the pairs have the log-probs of an earlier")
        assert "as independent" in finding.evidence


def test_copies_of_coarse_numbers_are_not_told_from_other_pairs():
    pairs = rounded(made(spread=400.0), "bf16").drop("pair_id")
    assert "repeats" not in names(pl.concat([pairs, pairs[:200]]))


# None, and two: on the same sides of the mark as the others.
@pytest.mark.parametrize("n", [1, 100, *(pytest.param(n, marks=pytest.mark.slow) for n in (0, 2))])
def test_a_pair_and_its_exchange_contradict_each_other(n):
    pairs = made().drop("pair_id")
    some = swapped(pairs[:n], np.ones(n, dtype=bool))
    with_both = pl.concat([pairs, some])
    result = evaluated(with_both)
    gathered = result.statistics.gathered
    assert gathered.contradictory == pytest.approx(2 * n / (N + n), abs=1e-15)
    assert gathered.repeats == 0.0
    findings = [each for each in result.findings if each.name == "contradictory"]
    assert bool(findings) == (n >= 2)
    if n == 100:
        assert findings[0].evidence.startswith("9.52% of 2,100 pairs have the log-probs of another")


@pytest.mark.parametrize(
    ("share", "expected"),
    # Far above the mark as above it.
    [(0.04, False), (0.1, True), pytest.param(0.6, True, marks=pytest.mark.slow)],
)
def test_many_ties_are_found(share, expected):
    same = pl.int_range(pl.len()) < int(share * N)
    pairs = made().with_columns(
        pl.when(same).then(chosen).otherwise(rejected).alias(rejected)
        for chosen, rejected in (LOGPS[:2], LOGPS[2:])
    )
    assert ("ties" in names(pairs)) == expected


def test_coarse_numbers_are_no_contradictions():
    assert "contradictory" not in names(rounded(made(size=(650.0, 750.0), spread=2.0), "bf16"))


def test_a_subset_below_a_coin_is_found_after_holm():
    pairs = made(spread=200.0).with_columns(
        subset=pl.Series(["a", "b", None, "d"] * (N // 4)), part=pl.int_range(N) % 2
    )
    assert "subset_worse_than_chance" not in names(pairs, by="subset")
    wrong = swapped(pairs, pairs["subset"].is_null().to_numpy())
    findings = found(wrong, by="subset")
    finding = only(findings, "subset_worse_than_chance")
    assert finding.severity == "problem"
    assert finding.title == "margins prefer the rejected completion in 1 subset"
    assert re.search(r"Right, ties half, in None \([\d.]+% of 500, p ", finding.evidence)
    assert "worse_than_chance" not in {each.name for each in findings}
    # 58 of 100 wrong are p = .13 alone, and nothing among many.
    assert "subset_worse_than_chance" not in names(wrong[:40], by="subset")


# ---- what the policy does


def test_displacement_is_found():
    finding = only(found(raised(made(), -6.0, -6.0)), "displacement")
    assert finding.severity == "caution"
    # N(1 - 6, 20) is below 0 in 86.8%.
    share = float(re.match(r"([\d.]+)%", finding.evidence)[1])
    assert share == pytest.approx(86.8, abs=2)


def test_half_of_the_chosen_completions_down_is_no_displacement():
    assert names(raised(made(), -1.0, -1.0)) == []


def with_chosen_ratios(pairs, ratios):
    """The pairs with these log-ratios of the chosen completions, and rejected ones 3 below."""
    ratios = pl.Series(np.resize(ratios, pairs.height).astype(float))
    return pairs.with_columns(
        policy_chosen_logps=pl.col("ref_chosen_logps") + ratios,
        policy_rejected_logps=pl.col("ref_rejected_logps") + ratios - 3.0,
    )


@pytest.mark.parametrize(
    ("n", "ratios", "expected"),
    [
        # Down in 60%, by so much that the mean is surely below 0.
        pytest.param(40, [-5, -5, -5, 0.5, 0.5], False, id="60% of 40"),
        pytest.param(400, [-5, -5, -5, 0.5, 0.5], True, id="60% of 400"),
        # Most are a little down, and few far up: on the whole nothing was lost.
        pytest.param(400, [-1, -1, -1, -1, 9], False, id="mean up"),
        pytest.param(400, [1, 1, 1, 1, -9], False, id="few down"),
    ],
)
def test_displacement_is_of_most_pairs_and_of_their_mean(n, ratios, expected):
    pairs = with_chosen_ratios(made(n), ratios)
    assert ("displacement" in names(pairs)) == expected


def test_a_loss_without_a_reference_shows_no_displacement():
    assert "displacement" not in names(raised(made(), -6.0, -6.0), loss="cpo")


@pytest.mark.parametrize(("worth", "side"), [(0.3, "longer"), (-0.3, "shorter")])
def test_margins_that_follow_length_are_found(worth, side):
    pairs = made()
    longer = (pairs["chosen_num_tokens"] - pairs["rejected_num_tokens"]).to_numpy()
    biased = raised(pairs, worth * longer / 2, -worth * longer / 2)
    finding = only(found(biased), "length")
    assert finding.title == f"length bias: margins favour the {side} completion"
    margin = 0.1 * (
        (biased["policy_chosen_logps"] - biased["ref_chosen_logps"])
        - (biased["policy_rejected_logps"] - biased["ref_rejected_logps"])
    )
    correlation = np.corrcoef(longer, margin)[0, 1]
    assert f"length difference is {correlation:.3g};" in finding.evidence
    slope, intercept = np.polyfit(longer, margin, 1)
    assert f"worth {slope:.3g} (" in finding.evidence
    assert f"mean margin is {intercept:.3g} (" in finding.evidence
    assert slope == pytest.approx(0.1 * worth, abs=0.003)


def test_a_weak_tie_to_length_is_no_finding():
    pairs = made()
    longer = (pairs["chosen_num_tokens"] - pairs["rejected_num_tokens"]).to_numpy()
    biased = raised(pairs, 0.05 * longer, -0.05 * longer)
    result = evaluated(biased)
    line = result.statistics.length
    assert line.slope.interval.low > 0
    assert 0.1 < line.correlation < 0.3
    assert result.findings == ()


def tie_to_length(pairs):
    pc, pr, rc, rr = (pairs[name].to_numpy() for name in LOGPS)
    longer = pairs["chosen_num_tokens"] - pairs["rejected_num_tokens"]
    return np.corrcoef(longer.to_numpy(), pc - rc - pr + rr)[0, 1]


def test_a_strong_tie_to_length_of_few_pairs_is_not_shown(monkeypatch):
    monkeypatch.undo()  # as many groups as pairs
    # Correlations of chance: of 12 pairs, above 0.3 in every third sample.
    by_chance = [made(12, seed=seed) for seed in range(30)]
    strong = [pairs for pairs in by_chance if abs(tie_to_length(pairs)) > 0.3]
    assert len(strong) >= 5
    results = [evaluate(pairs, statistics=True) for pairs in strong[:3]]
    assert all(abs(result.statistics.length.correlation) > 0.3 for result in results)
    shown = [r for r in results if any(f.name == "length" for f in r.findings)]
    assert len(shown) <= 1


def noisy(share, seed=3):
    pairs = made(beta=1.0, spread=8.0, seed=seed)
    flipped = np.random.default_rng(seed).random(N) < share
    return swapped(pairs, flipped), flipped


def test_flipped_labels_are_found_with_the_rows():
    pairs, flipped = noisy(0.2)
    finding = only(found(pairs, beta=1.0), "confident_errors")
    rate, low, high = map(
        float, re.search(r"if ([\d.]+)% \(([\d.]+)% to ([\d.]+)%\)", finding.evidence).groups()
    )
    assert low < 100 * flipped.mean() < high
    assert rate == pytest.approx(100 * flipped.mean(), abs=2)
    rows = re.search(r"pair ([\d, ]+) \(each", finding.evidence)[1].split(", ")
    assert len(rows) == 5
    assert all(flipped[int(row)] for row in rows)
    assert "each with a chance above 99.9%" in finding.evidence


def test_labels_that_are_not_flipped_are_no_noise():
    assert "confident_errors" not in names(noisy(0.0)[0], beta=1.0)


def test_margins_that_are_all_too_large_are_no_noise():
    pairs = made(beta=1.0, spread=4.0, seed=3)
    result = evaluated(pairs, beta=5.0)
    # They look like noise, and more like too large a beta.
    assert result.statistics.flip_rate.interval.low > MISLABELLED_FROM
    assert "confident_errors" not in {each.name for each in result.findings}


def test_noise_is_of_the_dpo_loss_alone():
    assert "confident_errors" not in names(noisy(0.2)[0], beta=1.0, loss="ipo")


# ---- what the policy is worth


def test_exchanged_columns_are_found():
    finding = only(found(swapped(made(), np.ones(N, bool))), "worse_than_chance")
    assert finding.severity == "problem"
    assert "exchanged" in finding.advice


def test_a_policy_that_knows_nothing_is_no_better_than_a_coin():
    pairs = raised(made(), -1.0, 1.0)
    titles = [finding.title for finding in found(pairs) if finding.name == "baseline"]
    assert titles[0] == "rewards are not shown to be better than tossing a coin"


def test_rewards_of_a_coin_are_not_worse_than_one():
    """The accuracy is below a half, and its interval is not."""
    pairs = swapped(made(), np.random.default_rng(4).random(N) < 0.505)
    result = evaluated(pairs)
    half = result.statistics.figures["reward_accuracy_half"]
    assert half.interval.low < 0.5 < half.interval.high
    assert "worse_than_chance" not in {each.name for each in result.findings}


def test_flipped_labels_are_found_from_a_share_of_5_percent():
    """The lower limit is 5.5%: above the mark, and not far."""
    pairs = made(8_000, spread=60.0, seed=2)
    flipped = swapped(pairs, np.random.default_rng(2).random(8_000) < 0.08)
    result = evaluated(flipped)
    assert 0.05 < result.statistics.flip_rate.interval.low < 0.06
    assert "confident_errors" in {each.name for each in result.findings}


def by_length(right):
    """Pairs whose chosen completion is the shorter one in a share of them, apart from margins."""
    rng = np.random.default_rng(8)
    shorter = rng.random(N) < right
    return made().with_columns(
        chosen_num_tokens=pl.Series(np.where(shorter, 20, 40)),
        rejected_num_tokens=pl.lit(30),
    )


@pytest.mark.parametrize(
    ("right", "severity", "title"),
    [
        (0.75, "problem", "preferring the shorter completion is right more often than the rewards"),
        (0.62, "caution", "rewards are not shown to be better than preferring the shorter"),
    ],
)
def test_a_rule_of_length_that_does_as_well_is_found(right, severity, title):
    finding = only(found(by_length(right)), "baseline")
    assert finding.severity == severity
    assert finding.title.startswith(title)


def test_both_ways_to_go_by_length_are_one_finding():
    """Rewards of a coin, lengths of another: the rule that is right more often is named first."""
    coin = swapped(made(), np.random.default_rng(4).random(N) < 0.5)
    longer = pl.Series(np.where(np.random.default_rng(9).random(N) < 0.49, 40, 20))
    pairs = coin.with_columns(chosen_num_tokens=longer, rejected_num_tokens=pl.lit(30))
    findings = [each for each in found(pairs) if "the longer" in each.evidence]
    (finding,) = findings
    assert finding.title.endswith("preferring the shorter completion")
    first, second = finding.evidence.split("; ")[:2]
    assert first.startswith("preferring the shorter completion is right in")
    assert second.startswith("preferring the longer completion is right in")


def test_a_rule_of_length_that_does_less_well_is_no_finding():
    assert names(by_length(0.52)) == []


def test_a_reference_that_does_as_well_is_found():
    pairs = made()
    # The reference prefers what the rewards prefer.
    margin = (pairs["policy_chosen_logps"] - pairs["ref_chosen_logps"]) - (
        pairs["policy_rejected_logps"] - pairs["ref_rejected_logps"]
    )
    up = pl.Series(np.where(margin > 0, 100.0, -100.0))
    gone = pairs.with_columns(
        (pl.col(name) * 0.1 - 200.0 + (up if "chosen" in name else 0.0)).alias(name)
        for name in LOGPS
    )
    finding = only(found(gone, beta=1.0), "baseline")
    assert "the reference alone" in finding.title
    assert "+0.0 points" in finding.evidence


# ---- how much there is


@pytest.mark.parametrize(("n", "is_few"), [(299, True), (300, False)])
def test_few_pairs_are_noted(n, is_few):
    result = evaluated(made(n))
    notes = [finding for finding in result.findings if finding.name == "few"]
    assert bool(notes) == is_few
    if is_few:
        assert notes[0].severity == "note"
        assert notes[0].title == "few pairs: 299"
        # Half the interval of one accuracy, times the root of 2 for the difference of two.
        accuracy = result.statistics.figures["reward_accuracy"]
        apart = 100 * (accuracy.interval.high - accuracy.interval.low) / math.sqrt(2)
        assert f"differ by up to about {apart:.2g} points by chance" in notes[0].advice
        assert "on the same pairs" in notes[0].advice


def test_the_method_for_few_pairs_is_named():
    assert "made by Jeffreys" in only(found(made(150)), "few").evidence


@pytest.mark.parametrize(("prompts", "is_few"), [(49, True), (50, False)])
def test_few_prompts_are_noted(prompts, is_few):
    pairs = made().with_columns(prompt_id=pl.int_range(pl.len()) % prompts)
    notes = [finding for finding in found(pairs) if finding.name == "few"]
    assert bool(notes) == is_few
    if is_few:
        assert notes[0].title == "few pairs: 2,000 of 49 prompts"


# ---- where they stand


def test_the_gravest_come_first():
    pairs = swapped(raised(made(200), -6.0, -6.0), np.ones(200, bool))
    severities = [finding.severity for finding in found(pairs)]
    order = ["problem", "caution", "note"]
    assert severities == sorted(severities, key=order.index)
    assert set(severities) == set(order)


def test_what_is_looked_for_first_does_not_stand_before_what_is_graver():
    same = pl.int_range(pl.len()) < int(0.3 * N)
    pairs = swapped(made(), np.ones(N, bool)).with_columns(
        pl.when(same).then(chosen).otherwise(rejected).alias(rejected)
        for chosen, rejected in (LOGPS[:2], LOGPS[2:])
    )
    graded = [(finding.name, finding.severity) for finding in found(pairs)]
    assert graded.index(("worse_than_chance", "problem")) < graded.index(("ties", "caution"))


def test_without_statistics_nothing_was_looked_for():
    result = evaluate(made())
    assert result.findings is None
    assert result.to_dict()["findings"] is None
    assert "findings" not in str(result)


def test_findings_are_in_the_text_and_the_document():
    result = evaluate(raised(made(), -6.0, -6.0), statistics=True)
    text = str(result)
    for finding in result.findings:
        for part in (f"{finding.severity}: {finding.title}", finding.evidence, finding.advice):
            assert part in text
    document = json.loads(result.to_json())
    assert document["findings"] == [finding.to_dict() for finding in result.findings]
    assert [each["name"] for each in document["findings"]] == ["displacement"]
    validate(document, "summary")


def test_no_findings_are_said_so():
    result = evaluate(made(), statistics=True)
    assert "\n\nno findings\n\n" in str(result)
    assert json.loads(result.to_json())["findings"] == []


def test_all_statistics_fit_the_published_schema(real_pairs):
    pairs = real_pairs.with_columns(
        judge=pl.col("ref_chosen_logps"), half=pl.int_range(pl.len()) % 2
    )
    options = StatisticsOptions(judge="judge", weights={0: 1, 1: 2})
    result = evaluate(pairs, by="half", statistics=options)
    document = json.loads(result.to_json())
    validate(document, "summary")
    for name in ("judge", "weighted", "macro", "length", "noise", "flips"):
        assert document["statistics"][name] is not None
    document["statistics"]["length"]["slope"]["unheard_of"] = 1
    with pytest.raises(jsonschema.ValidationError):
        validate(document, "summary")
