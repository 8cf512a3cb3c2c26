"""The statistics that `evaluate` gives against scipy, statsmodels and numpy, from the rows."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest

from dpo_pipeline import StatisticsOptions, UsageError, evaluate, score
from dpo_pipeline.cli.program import main
from dpo_pipeline.evaluation import gathering
from dpo_pipeline.sums import cells
from gather_tools import hash_of
from option_tools import grouped
from oracle_tools import multipletests, optimize, sm, stats
from pair_tools import LOGPS

BETA = 0.1
FEW_GROUPS = pytest.mark.usefixtures("few_groups")


@pytest.fixture(scope="module")
def pairs(real_pairs):
    """Real pairs with four dialogues a prompt, subsets that share none, and a judge."""
    n = real_pairs.height
    rng = np.random.default_rng(7)
    prompt = np.arange(n) // 4
    gap = real_pairs["policy_chosen_logps"] - real_pairs["ref_chosen_logps"]
    judge = np.round(gap.to_numpy() + rng.normal(0, 3, n))
    return real_pairs.with_columns(
        prompt_id=prompt,
        topic=pl.Series(np.array(["work", "home", "play"])[prompt % 3]),
        judge=pl.Series(judge),
    )


@pytest.fixture(scope="module")
def rows(pairs):
    """What the statistics are about, a row a pair, as numpy columns."""
    frame = score(pairs, beta=BETA).collect()
    columns = {name: frame[name].to_numpy() for name in frame.columns if name != "topic"}
    margin = columns["reward_margin"]
    columns |= {
        "topic": np.array(frame["topic"].to_list()),
        "reward_accuracy": (margin > 0).astype(float),
        "log_loss": np.logaddexp(0, -margin),
        "brier": (1 / (1 + np.exp(margin))) ** 2,
        "longer": columns["chosen_num_tokens"].astype(float) - columns["rejected_num_tokens"],
    }
    return columns


@pytest.fixture(scope="module")
def statistics(pairs):
    options = StatisticsOptions(judge="judge", weights={"work": 1, "home": 2, "play": 5})
    return evaluate(pairs, beta=BETA, by="topic", statistics=options).statistics


@pytest.fixture(scope="module")
def alone(pairs):
    """The same without prompts: every pair is independent."""
    return evaluate(pairs.drop("prompt_id"), beta=BETA, by="topic", statistics=True).statistics


def moved_by(values, clusters):
    """Return what leaving out each cluster moves the mean by."""
    each = np.unique(clusters)
    return np.array([values[clusters != one].mean() for one in each]) - values.mean()


def freedom_of(values, clusters):
    """Return C - 1 for clusters of one size, else Satterthwaite's degrees of freedom."""
    squares = moved_by(values, clusters) ** 2
    sizes = np.unique(clusters, return_counts=True)[1]
    if len(set(sizes)) == 1:
        return len(sizes) - 1
    return 2 * squares.sum() ** 2 / (squares**2).sum()


def clustered_mean(values, clusters):
    """Mean, standard error and limits by the jackknife: each cluster is left out in turn."""
    squares = moved_by(values, clusters) ** 2
    error = math.sqrt((len(squares) - 1) / len(squares) * squares.sum())
    half = stats.t.ppf(0.975, freedom_of(values, clusters)) * error
    return values.mean(), error, (values.mean() - half, values.mean() + half)


MEANS = (
    "loss", "chosen_reward", "rejected_reward", "reward_margin", "log_loss", "brier", *LOGPS,
)  # fmt: skip


@pytest.mark.repeats(3)  # means are one function
@pytest.mark.parametrize("name", MEANS)
def test_means_have_the_errors_of_prompts(statistics, rows, name):
    value, error, limits = clustered_mean(rows[name], rows["prompt_id"])
    found = statistics.figures[name]
    assert found.value == pytest.approx(value, rel=1e-9)
    assert found.standard_error == pytest.approx(error, rel=1e-9)
    assert (found.interval.low, found.interval.high) == pytest.approx(limits, rel=1e-9)
    assert found.interval.method == "Student t, clustered"
    assert (found.n, found.n_clusters) == (698, 175)


@pytest.mark.repeats(4)  # means are one function
@pytest.mark.parametrize("name", MEANS)
def test_means_of_independent_pairs_have_the_usual_errors(rows, name, alone):
    found = alone.figures[name]
    values = rows[name]
    error = np.std(values, ddof=1) / math.sqrt(len(values))
    limits = stats.t.interval(0.95, len(values) - 1, values.mean(), error)
    assert found.standard_error == pytest.approx(error, rel=1e-9)
    assert (found.interval.low, found.interval.high) == pytest.approx(limits, rel=1e-9)


def baselines_of(rows):
    pc, pr, rc, rr = (rows[name] for name in LOGPS)
    return {
        "longer": rows["longer"] > 0,
        "shorter": rows["longer"] < 0,
        "reference": rc > rr,
        "policy": pc > pr,
    }


def rates_of(rows):
    chosen, rejected = rows["chosen_logratio"] < 0, rows["rejected_logratio"] < 0
    return {
        "reward_accuracy": rows["reward_margin"] > 0,
        **baselines_of(rows),
        "chosen_down": chosen,
        "rejected_down": rejected,
        "both_down": chosen & rejected,
    }


def found_rates(statistics):
    return {**statistics.figures, **statistics.baselines, **statistics.displacement}


def test_rates_have_the_errors_of_prompts(statistics, rows):
    found = found_rates(statistics)
    for name, right in rates_of(rows).items():
        value, error, _ = clustered_mean(right.astype(float), rows["prompt_id"])
        assert found[name].value == pytest.approx(value, rel=1e-12), name
        # Never less than that of independent pairs.
        plain = math.sqrt(value * (1 - value) / 698)
        assert found[name].standard_error == pytest.approx(max(error, plain), rel=1e-9), name


def test_rates_of_independent_pairs_have_wilsons_or_jeffreys_interval(rows, alone):
    found = found_rates(alone)
    for name, right in rates_of(rows).items():
        k, n = int(right.sum()), len(right)
        if min(k, n - k) >= 100:
            limits, method = stats.binomtest(k, n).proportion_ci(0.95, "wilson"), "Wilson"
        else:
            limits, method = stats.beta(k + 0.5, n - k + 0.5).interval(0.95), "Jeffreys"
        interval = found[name].interval
        assert (interval.low, interval.high) == pytest.approx(tuple(limits), rel=1e-9), name
        assert interval.method == method


def test_advantages_are_paired_differences(statistics, rows, alone):
    right = rows["reward_margin"] > 0
    for found, clusters in ((statistics, rows["prompt_id"]), (alone, np.arange(698))):
        for name, guess in baselines_of(rows).items():
            value, error, limits = clustered_mean(right - guess.astype(float), clusters)
            gain = found.advantages[name]
            assert gain.value == pytest.approx(value, abs=1e-12)
            assert gain.standard_error == pytest.approx(error, rel=1e-9)
            assert (gain.interval.low, gain.interval.high) == pytest.approx(limits, rel=1e-9)


@FEW_GROUPS
def test_advantages_over_length_are_of_pairs_whose_lengths_are_known(pairs, rows):
    known = np.arange(698) % 3 != 0
    tokens = pl.when(pl.Series(known)).then("chosen_num_tokens")
    found = evaluate(pairs.with_columns(chosen_num_tokens=tokens), beta=BETA, statistics=True)
    gain = found.statistics.advantages["shorter"]
    right, shorter = rows["reward_margin"] > 0, rows["longer"] < 0
    assert gain.n == known.sum()
    assert gain.value == pytest.approx((right[known] - shorter[known].astype(float)).mean())
    assert found.statistics.baselines["shorter"].value == pytest.approx(shorter[known].mean())


def test_flips_are_the_four_fields(statistics, rows):
    pc, pr, rc, rr = (rows[name] for name in LOGPS)
    policy, reference = pc > pr, rc > rr
    flips = statistics.flips
    assert flips.both == (policy & reference).sum()
    assert flips.policy_only == (policy & ~reference).sum() > 0
    assert flips.reference_only == (~policy & reference).sum() > 0
    assert flips.neither == (~policy & ~reference).sum()


@FEW_GROUPS
def test_ties_count_half_where_it_says_so(pairs):
    tied = pl.int_range(pl.len()) % 3 == 0
    frame = pairs.with_columns(
        pl.when(tied).then(-50.0).otherwise(pl.col(name)).alias(name) for name in LOGPS
    )
    figures = evaluate(frame, beta=BETA, statistics=True).statistics.figures
    margin = score(frame, beta=BETA).collect()["reward_margin"].to_numpy()
    half = np.where(margin == 0, 0.5, margin > 0)
    value, error, _ = clustered_mean(half, np.arange(698) // 4)
    assert figures["tie_rate"].value == pytest.approx(233 / 698)
    assert figures["reward_accuracy_half"].value == pytest.approx(value, rel=1e-12)
    plain = math.sqrt(value * (1 - value) / 698)
    found = figures["reward_accuracy_half"].standard_error
    assert found == pytest.approx(max(error, plain), rel=1e-9)
    assert figures["reward_accuracy"].value == pytest.approx((margin > 0).mean())


def test_subsets_have_their_own_intervals_and_tests(statistics, rows):
    table = statistics.subsets
    assert table["topic"].to_list() == ["home", "play", "work"]
    p_values = []
    for row in table.to_dicts():
        mine = rows["topic"] == row["topic"]
        clusters = rows["prompt_id"][mine]
        assert row["n_valid"] == mine.sum()
        for name in ("reward_margin", "loss"):
            value, _, limits = clustered_mean(rows[name][mine], clusters)
            assert row[name] == pytest.approx(value, rel=1e-9)
            assert (row[f"{name}_low"], row[f"{name}_high"]) == pytest.approx(limits, rel=1e-9)
        right = rows["reward_accuracy"][mine]
        assert row["reward_accuracy"] == pytest.approx(right.mean(), rel=1e-12)
        value, error, _ = clustered_mean(right - 0.5, clusters)
        p_value = 2 * stats.t.sf(abs(value / error), freedom_of(right - 0.5, clusters))
        assert row["p_value"] == pytest.approx(p_value, rel=1e-7)
        p_values.append(p_value)
    for name, method in (("p_holm", "holm"), ("p_benjamini_hochberg", "fdr_bh")):
        adjusted = multipletests(p_values, method=method)[1]
        assert table[name].to_list() == pytest.approx(list(adjusted), rel=1e-7)


def test_subsets_of_independent_pairs_have_an_exact_test(rows, alone):
    for row in alone.subsets.to_dicts():
        right = rows["reward_accuracy"][rows["topic"] == row["topic"]]
        exact = stats.binomtest(int(right.sum()), len(right), 0.5).pvalue
        assert row["p_value"] == pytest.approx(exact, rel=1e-9)


def test_means_over_subsets_are_macro_and_weighted(statistics, rows):
    accuracies, errors = {}, {}
    for topic in ("home", "play", "work"):
        mine = rows["topic"] == topic
        right = rows["reward_accuracy"][mine]
        accuracies[topic], error, _ = clustered_mean(right, rows["prompt_id"][mine])
        plain = math.sqrt(right.mean() * (1 - right.mean()) / len(right))
        errors[topic] = max(error, plain)
    macro, weighted = statistics.macro, statistics.weighted
    assert macro.value == pytest.approx(sum(accuracies.values()) / 3)
    assert macro.standard_error == pytest.approx(math.hypot(*errors.values()) / 3)
    weights = {"work": 1 / 8, "home": 2 / 8, "play": 5 / 8}
    assert weighted.value == pytest.approx(sum(weights[t] * a for t, a in accuracies.items()))
    assert weighted.standard_error == pytest.approx(
        math.hypot(*(weights[t] * error for t, error in errors.items()))
    )
    assert weighted.interval.low < weighted.value < weighted.interval.high


def test_subsets_that_share_prompts_have_a_mean_from_drawn_prompts(pairs, rows):
    # Two subsets, every prompt in both.
    halves = np.arange(698) % 2
    frame = pairs.with_columns(half=pl.Series(halves))
    found = evaluate(frame, beta=BETA, by="half", statistics=True).statistics.macro
    right, prompts = rows["reward_accuracy"], rows["prompt_id"]
    assert found.value == pytest.approx((right[halves == 0].mean() + right[halves == 1].mean()) / 2)
    assert found.interval.method == "bootstrap"
    # By linearisation: what each prompt moves the mean by.
    moves = sum(
        (right - right[halves == h].mean()) * (halves == h) / (halves == h).sum() for h in (0, 1)
    ) / 2  # fmt: skip
    by_prompt = np.bincount(prompts, weights=moves)
    error = math.sqrt((by_prompt**2).sum() * 175 / 174)
    assert found.standard_error == pytest.approx(error, rel=0.06)


@pytest.mark.parametrize(
    ("weights", "problem"),
    [
        ({"work": 1, "home": 1}, "no weight for play \\(1 in all\\)"),
        ({"work": 1, "home": 1, "play": 1, "sleep": 1}, "no subset sleep"),
        ({"work": -1, "home": 1, "play": 1}, "at least 0"),
        ({"work": 0, "home": 0, "play": 0}, "one of them above"),
    ],
)
def test_weights_must_be_of_the_subsets(pairs, weights, problem):
    with pytest.raises(UsageError, match=problem):
        evaluate(pairs[:40], by="topic", statistics=StatisticsOptions(weights=weights))


def test_weights_need_subsets(pairs):
    with pytest.raises(UsageError, match="say by which columns"):
        evaluate(pairs, statistics=StatisticsOptions(weights={"work": 1}))


@FEW_GROUPS
def test_weights_name_subsets_of_several_columns_by_value_or_text(pairs):
    frame = pairs.with_columns(even=pl.int_range(pl.len()) % 2 == 0, k=pl.lit(3))
    by_value = {(True, 3): 1.0, (False, 3): 4.0}
    by_text = {("True", "3"): 1.0, ("False", "3"): 4.0}
    found = [
        evaluate(frame, by=["even", "k"], statistics=StatisticsOptions(weights=weights))
        for weights in (by_value, by_text)
    ]
    assert found[0].statistics.weighted == found[1].statistics.weighted
    subsets = found[0].subsets.sort("even")["reward_accuracy"].to_list()
    assert found[0].statistics.weighted.value == pytest.approx((4 * subsets[0] + subsets[1]) / 5)


def test_the_judge_agrees_as_scipy_says(statistics, rows):
    found = statistics.judge
    margin, judge = rows["reward_margin"], rows["judge"]
    # Margins are in bins of 5%, which moves ranks a little.
    assert found.spearman.value == pytest.approx(stats.spearmanr(margin, judge)[0], abs=2e-3)
    up, down = margin[judge > 0], margin[judge < 0]
    auc = stats.mannwhitneyu(up, down).statistic / (len(up) * len(down))
    assert found.auc.value == pytest.approx(auc, abs=2e-3)
    assert found.spearman.interval.low < found.spearman.value < found.spearman.interval.high
    assert found.by_gap["n_pairs"].sum() == 698
    assert found.by_gap["n_correct"].sum() == pytest.approx((margin > 0).sum(), abs=1)
    assert found.columns == ("judge",)


def test_best_beta_is_that_of_the_smallest_loss(statistics, rows):
    ratio = rows["reward_margin"] / BETA
    best = optimize.minimize_scalar(
        lambda beta: np.logaddexp(0, -beta * ratio).mean(), bounds=(1e-3, 1), method="bounded",
        options={"xatol": 1e-10},
    )  # fmt: skip
    assert statistics.calibration.best_beta.value == pytest.approx(best.x, rel=5e-3)
    assert statistics.calibration.best.log_loss == pytest.approx(best.fun, abs=2e-5)


def groups_of(rows):
    return np.array([hash_of(int(prompt)) % 64 for prompt in rows["prompt_id"]])


def check_line(line, params, errors):
    assert (line.intercept.value, line.slope.value) == pytest.approx(tuple(params), rel=1e-8)
    found = (line.intercept.standard_error, line.slope.standard_error)
    assert found == pytest.approx(tuple(errors), rel=1e-8)


def test_the_line_over_lengths_is_that_of_its_formula(statistics, rows):
    # Least squares with errors clustered by group (Liang and Zeger), in matrices.
    x, y = np.column_stack([np.ones(698), rows["longer"]]), rows["reward_margin"]
    groups = groups_of(rows)
    within = np.linalg.inv(x.T @ x)
    params = within @ x.T @ y
    scores = (y - x @ params)[:, None] * x
    by_group = np.array([scores[groups == group].sum(axis=0) for group in np.unique(groups)])
    n, m = len(y), len(by_group)
    covariance = within @ (by_group.T @ by_group) @ within * m / (m - 1) * (n - 1) / (n - 2)
    check_line(statistics.length, params, np.sqrt(np.diag(covariance)))
    correlation = np.corrcoef(rows["longer"], rows["reward_margin"])[0, 1]
    assert statistics.length.correlation == pytest.approx(correlation, rel=1e-9)


@pytest.mark.slow  # statsmodels takes a second to import, and has the formula above
def test_the_line_over_lengths_is_that_of_statsmodels(statistics, rows):
    model = sm.OLS(rows["reward_margin"], sm.add_constant(rows["longer"]))
    fit = model.fit(cov_type="cluster", cov_kwds={"groups": groups_of(rows)})
    check_line(statistics.length, fit.params, fit.bse)


@FEW_GROUPS
def test_bags_of_prompts_have_the_spread_of_bags(pairs, rows, monkeypatch):
    monkeypatch.setattr(gathering, "CLUSTERS_HELD", 100)
    for module in (gathering, cells):
        monkeypatch.setattr(module, "BAGS", 64)
    found = evaluate(pairs, beta=BETA, by="topic", statistics=True).statistics
    bags = np.array([hash_of(int(prompt)) % 64 for prompt in rows["prompt_id"]])
    value, error, limits = clustered_mean(rows["loss"], bags)
    loss = found.figures["loss"]
    assert loss.value == pytest.approx(value, rel=1e-12)
    assert loss.standard_error == pytest.approx(error, rel=1e-9)
    assert (loss.interval.low, loss.interval.high) == pytest.approx(limits, rel=1e-9)
    assert "bags of prompts" in found.clusters


@FEW_GROUPS
def test_bags_of_independent_pairs_are_not_called_clustered(pairs, monkeypatch):
    monkeypatch.setattr(gathering, "CLUSTERS_HELD", 100)
    for module in (gathering, cells):
        monkeypatch.setattr(module, "BAGS", 64)
    found = evaluate(pairs.drop("prompt_id"), beta=BETA, statistics=True).statistics
    assert "bags of pairs" in found.clusters
    # The main figures are made from the squares of all pairs.
    assert found.intervals.clusters == f"{pairs.height:,} pairs, taken as independent"
    estimates = [*found.figures.values(), *found.advantages.values(), found.length.slope]
    methods = {each.interval.method for each in estimates}
    assert "Student t" in methods
    assert not any("clustered" in method for method in methods)


@FEW_GROUPS
def test_the_level_is_that_of_every_interval(pairs):
    found = evaluate(
        pairs, by="topic", statistics=StatisticsOptions(level=0.8, judge="judge")
    ).statistics
    made = [
        *found.figures.values(), *found.baselines.values(), *found.advantages.values(),
        *found.displacement.values(), found.macro, found.calibration.error,
        found.calibration.best_beta, found.length.slope, found.length.intercept,
        found.judge.spearman, found.judge.auc,
    ]  # fmt: skip
    assert {estimate.interval.level for estimate in made} == {0.8}
    narrow, usual = (
        evaluate(pairs.drop("prompt_id"), statistics=StatisticsOptions(level=level))
        .statistics.figures["loss"]
        .interval
        for level in (0.8, 0.95)
    )
    ratio = stats.t.ppf(0.9, 697) / stats.t.ppf(0.975, 697)
    assert (narrow.high - narrow.low) / (usual.high - usual.low) == pytest.approx(ratio)


@FEW_GROUPS
def test_statistics_change_none_of_the_plain_figures(pairs, tmp_path):
    asked = {"beta": BETA, "by": "topic", "batch_size": 50, "histogram": True}
    plain = evaluate(pairs, **grouped(**asked))
    path = tmp_path / "pairs.parquet"
    pairs.write_parquet(path, row_group_size=90)
    for source in (pairs.lazy(), path):
        full = evaluate(source, **grouped(statistics=True, **asked))
        assert repr(full.summary) == repr(plain.summary)
        assert full.subsets.equals(plain.subsets)
        assert full.batches.equals(plain.batches)
        assert full.histogram.equals(plain.histogram)


@FEW_GROUPS
def test_statistics_and_summary_have_the_same_values(pairs):
    result = evaluate(pairs, beta=BETA, statistics=True)
    for name, value in result.summary.to_dict().items():
        if name in result.statistics.figures:
            assert result.statistics.figures[name].value == pytest.approx(value, rel=1e-12)
    assert set(result.statistics.figures) >= {"loss", "reward_accuracy", "reward_margin"}


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"level": 1.0}, "level must be above 0 and below 1"),
        ({"level": 95}, "level must be"),
        ({"judge": ("a", "b", "c")}, "one column or two"),
    ],
)
def test_options_are_checked(options, problem):
    with pytest.raises(UsageError, match=problem):
        StatisticsOptions(**options)


@pytest.mark.parametrize(
    ("judge", "problem"), [("judje", "did you mean 'judge'"), ("topic", "must be a number")]
)
def test_the_judge_must_be_a_column_of_numbers(pairs, judge, problem):
    with pytest.raises(UsageError, match=problem):
        evaluate(pairs, statistics=StatisticsOptions(judge=judge))


@FEW_GROUPS
def test_rewards_without_proportion_have_means_of_their_own(pairs):
    # Rewards per token do not follow from mean log-probs.
    found = evaluate(pairs, loss="sigmoid_norm", statistics=True).statistics
    scored = score(pairs, loss="sigmoid_norm").collect()
    for name in ("chosen_reward", "rejected_reward", "reward_margin", "loss"):
        value, error, _ = clustered_mean(scored[name].to_numpy(), np.arange(698) // 4)
        assert found.figures[name].value == pytest.approx(value, rel=1e-9)
        assert found.figures[name].standard_error == pytest.approx(error, rel=1e-8)
    assert found.calibration.best_beta is None
    assert found.noise is None


def of_log_ratios(values, **columns):
    """Pairs whose chosen completion rises by these log-ratios, and the rejected one by none."""
    n = len(values)
    return pl.DataFrame(
        {
            "policy_chosen_logps": np.array(values) - 100.0 - np.arange(n) % 2,
            "policy_rejected_logps": np.full(n, -90.0) - np.arange(n) % 3,
            "ref_chosen_logps": np.full(n, -100.0) - np.arange(n) % 2,
            "ref_rejected_logps": np.full(n, -90.0) - np.arange(n) % 3,
            **columns,
        }
    )


@pytest.mark.repeats(1)  # seeds
@pytest.mark.parametrize("seed", range(4))
def test_intervals_are_of_what_figures_can_be(seed):
    rng = np.random.default_rng(seed)
    margins = rng.normal(0.0, 3.0, 14)
    margins[:2] = -8.0, 8.0
    judge = margins + rng.normal(0.0, 1.0, 14)
    pairs = of_log_ratios(margins, gap=judge)
    found = evaluate(pairs, beta=1.0, statistics=StatisticsOptions(judge="gap")).statistics
    ends = {
        "flips": (found.flip_rate, 0.0, 0.5),
        "error": (found.calibration.error, 0.0, 1.0),
        "ranks": (found.judge.spearman, -1.0, 1.0),
        "auc": (found.judge.auc, 0.0, 1.0),
        **{name: (each, -1.0, 1.0) for name, each in found.advantages.items()},
    }
    intervals = {name: (e.interval, *most) for name, (e, *most) in ends.items() if e is not None}
    shown = {name: each for name, each in intervals.items() if each[0] is not None}
    assert {"error", "ranks", "reference"} <= set(shown)
    for interval, low, high in shown.values():
        assert low <= interval.low <= interval.high <= high


def test_differences_of_rates_are_cut_at_1():
    # Right in 3 of 4 where the reference, which prefers the rejected one, never is.
    found = evaluate(of_log_ratios([3.0, 2.0, 1.0, -1.0]), statistics=True).statistics
    interval = found.advantages["reference"].interval
    assert found.advantages["reference"].value == 0.75
    assert interval.low < 0.75 < interval.high == 1.0


@pytest.mark.parametrize(("prompts", "is_shown"), [(3, False), (30, True)])
def test_few_groups_show_no_spread(prompts, is_shown):
    rng = np.random.default_rng(1)
    pairs = of_log_ratios(rng.normal(1.0, 3.0, 300), prompt_id=np.arange(300) % prompts)
    found = evaluate(pairs, beta=1.0, statistics=True).statistics.calibration
    for each in (found.error, found.best_beta):
        assert (each.interval is not None) == is_shown
        assert (each.standard_error is not None) == is_shown


def test_groups_that_are_all_alike_show_no_spread():
    pairs = of_log_ratios([2.0] * 40 + [-2.0] * 40, gap=[1.0] * 40 + [-1.0] * 40)
    judge = evaluate(pairs, statistics=StatisticsOptions(judge="gap")).statistics.judge
    assert judge.auc.value == 1.0
    assert judge.auc.interval is None


@FEW_GROUPS
def test_the_text_has_the_digits_that_are_known():
    # 300 of 300 right: p is 2 to the -299.
    margins = np.linspace(0.5, 8.0, 300)
    pairs = of_log_ratios(
        [*margins, -3.0, *-margins[:9]], kind=["a"] * 300 + ["b"] * 10, gap=np.arange(310.0)[::-1]
    )
    found = evaluate(pairs, by="kind", statistics=StatisticsOptions(judge="gap")).statistics
    text = str(found).split("\n")
    for name, value in (
        ("best beta", found.calibration.best_beta.value),
        ("judge: rank correlation", found.judge.spearman.value),
    ):
        (line,) = [line for line in text if line.startswith(name)]
        assert f"{value:.3g}" in line.split()
    (subset,) = [line for line in text if line.startswith("a ")]
    assert "<0.0001" in subset.split()
    assert str(found).count("intervals from 310 pairs, taken as independent") == 1


def test_one_pair_has_statistics(real_pairs):
    found = evaluate(real_pairs[:1], statistics=True).statistics
    assert found.figures["loss"].interval is None
    assert found.clusters == "1 pair, taken as independent"
    assert found.figures["reward_accuracy"].interval.low < 1.0


@pytest.mark.slow  # `test_gating` asks for them so; options are declared once, for both
@FEW_GROUPS
def test_the_command_line_asks_for_statistics(pairs, tmp_path, capsys):
    path = str(tmp_path / "pairs.parquet")
    pairs.write_parquet(path)
    words = ["--by", "topic", "--level", "0.9", "--judge", "judge"]
    words += ["--weight", "work=1", "--weight", "home=2", "--weight", "play=5"]
    assert main(["evaluate", path, *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    expected = evaluate(
        path,
        by="topic",
        statistics=StatisticsOptions(
            level=0.9, judge="judge", weights={"work": 1, "home": 2, "play": 5}
        ),
    )
    assert lines[1:] == str(expected).splitlines()[1:]
    assert any("90% interval" in line for line in lines)
    assert any(line.startswith("weighted mean") for line in lines)
    assert any(line.startswith("judge: AUC") for line in lines)


@pytest.mark.parametrize("word", ["work", "work=heavy", "=1"])
def test_weights_on_the_command_line_are_name_and_number(capsys, word):
    assert main(["evaluate", "pairs.parquet", "--weight", word]) == 2
    assert "--weight takes NAME=VALUE" in capsys.readouterr().err


def test_one_weight_cannot_be_given_twice(capsys):
    assert main(["evaluate", "pairs.parquet", "--weight", "a=1", "--weight", "a=2"]) == 2
    assert "--weight a is there twice" in capsys.readouterr().err
