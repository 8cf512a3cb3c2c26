"""What the keys of documents are: the texts of `explain` for names that nothing else declares."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

RESULTS: Final = MappingProxyType(
    {
        "verdict": "The result in a sentence. Of an evaluation: whether the policy is better than "
        "a coin toss (`text`), and why that is withheld, if it is.",
        "better_than_chance": "True or false where the interval of the accuracy, ties half, does "
        "not hold 1/2; null where it does.",
        "withheld": "Why there is no verdict: the data contradict themselves, or much of it is "
        "invalid. Null if there is one.",
        "better": "The side whose accuracy is shown to be higher, a or b; null if none is.",
        "incomparable": "The finding that leaves nothing to compare: other references, or "
        "log-probs that are surely wrong; null without one.",
        "findings": "What is wrong or can mislead, the gravest first, each with its evidence and "
        "advice.",
        "severity": "How grave a finding is: a problem, a caution or a note.",
        "evidence": "The figures that a finding rests on.",
        "advice": "What to do about a finding.",
        "doubt": "Something that the sums show to be surely wrong with the log-probs. It is said "
        "before the verdict, which it withholds, and misses every mark (exit code 4).",
        "warnings": "What is surely wrong with valid pairs, a sentence each, and notes of the "
        "input.",
        "notes": "What is to be said of a result, a sentence each.",
        "not_looked_for": "What warnings cannot tell of so few pairs; null if all was looked for.",
        "made": "How pairs were made of completions, if they were.",
        "document_version": "Changes when a key of the document is removed or means another thing.",
        "dpo_pipeline": "Version of the package.",
        "source": "What was read: the paths as given, or a word for a dataframe.",
        "objective": "The loss in full: its terms with all their arguments, beta and dialect.",
        "terms": "The losses of a weighted sum, each with its weight and arguments.",
        "rewards": "Whether rewards are beta times what the loss compares (score), or times the "
        "log-ratio of sums (logratio).",
        "reference_free": "Whether a loss leaves the reference out.",
        "per_token": "Whether a loss takes log-probs averaged over tokens.",
        "f_divergence": "The divergence that takes the place of KL in a loss.",
        "ld_alpha": "Weight of the tokens of a completion beyond the length of the shorter one.",
        "humanline": "Whether token log-ratios are clipped as humanline does.",
        "summary": "Counts and means over valid pairs, under the library's names.",
        "metrics": "The same means under TRL's names.",
        "intervals": "The main figures with their intervals: those that need no `--statistics`.",
        "statistics": "Intervals of all figures, baselines, calibration, length, subsets; null "
        "unless asked for.",
        "figures": "Each figure with its interval.",
        "subsets": "A row for each value of the columns of `by`, with its figures.",
        "histogram": "Valid pairs by margin: `bin` (fine near 0, coarse far from it) with its "
        "edges `lower` and `upper` in nats, and `n_pairs`.",
        "clusters": "What was taken as independent, in words: prompts where there is a "
        "`prompt_id`, else pairs.",
        "baselines": "Accuracies of rules that use no rewards, on the same pairs.",
        "is_by_prompt": "Whether prompts were taken as independent; else completions are.",
        "advantages": "Reward accuracy less that of each baseline, on the same pairs.",
        "displacement": "Shares of completions less likely than under the reference.",
        "flips": "Pairs by whose own log-probs, without a reference, prefer the chosen completion: "
        "of `both` models, `reference_only`, `policy_only`, or `neither`.",
        "sections": "The score of a benchmark and of its sections.",
        "calibration": "How well sigmoid(|margin|) predicts the share of pairs that is right.",
        "reliability": "The reliability diagram: groups of pairs of nearly equal size by their "
        "`confidence`, with the `accuracy` of each.",
        "confidence": "Mean of sigmoid(|margin|) of a group: the accuracy that its margins claim.",
        "error": "Folded expected calibration error, less what chance adds to it. Of `auc`: how "
        "far its bins can move it.",
        "error_measured": "The calibration error as measured; few pairs make it larger.",
        "error_by_chance": "The calibration error that calibrated margins would show on average.",
        "best": "The best beta with its log loss, or the `reason` why there is none.",
        "noise": "The share of reversed labels that makes the margins likeliest, and the test that "
        "it is 0 (by `likelihood_ratio`).",
        "likelihood_ratio": "Twice the log of the likelihood ratio, against a share of 0.",
        "length": "The line of margin over chosen less rejected tokens: `slope`, `intercept`, "
        "`correlation`.",
        "slope": "What a token more of the chosen completion adds to the margin, in nats.",
        "intercept": "Mean margin of pairs whose completions are equally long, in nats.",
        "correlation": "Pearson's correlation of margin and difference of token counts.",
        "judge": "How far margins agree with a judge's scores (`--judge`).",
        "by_gap": "Accuracy of groups of pairs by the judge's preference, `gap_low` to `gap_high`.",
        "as_trainer": "The figures as a trainer averages them over its `n_steps` batches, beside "
        "the exact ones.",
        "batches": "Means of consecutive rows, or of rows with one value.",
        "invalid": "The broken rules, each with how many pairs break it and the first of them.",
        "requirement": "What a rule asks for, in words.",
        "first": "The first rows that break a rule, with file, row, `pair_id` and value.",
        "differences": "Each compared figure of A and B, B minus A with its interval, and its "
        "test.",
        "heterogeneity": "The test that all subsets are alike: of an evaluation in their accuracy "
        "(Pearson's, counts divided by design effects), of a comparison in B minus A (Welch's).",
        "mcnemar": "Pairs by which of two policies has them right, and McNemar's tests of equal "
        "chances.",
        "gained": "Pairs that B alone has right, the largest change of margin first.",
        "lost": "Pairs that A alone has right, the largest change of margin first.",
        "a": "Policy A of a comparison: the one that B is compared with.",
        "b": "Policy B of a comparison. All differences are B minus A.",
        "key": "The key that joined the policies, of a pair.",
        "preference": "The column that says which completion is better: rank, score or label.",
        "change": "Margin of B minus margin of A, in nats.",
        "borrowed": "Columns that a side lacks, and whose were taken.",
        "policies": "A row for each policy, the most accurate first.",
        "tests": "The tests of each two policies, or of each against the baseline.",
        "best_set": "The policies that may be the best: none of the others is shown to be above "
        "them. With a chance of the level, it holds the best one.",
        "winner": "The policy with the highest accuracy on these pairs.",
        "winner_accuracy": "The winner's accuracy less the luck of having been picked "
        "(`winner_optimism`).",
        "winner_optimism": "By how much the accuracy of the policy that is picked is too high on "
        "average, by the bootstrap.",
        "may_be_best": "Whether a policy is in the best set.",
        "losses": "The mean loss of a policy for each of several betas, on the same pairs.",
        "curve": "Figures over the steps of a run, on the pairs that all have, with bands that "
        "hold at all steps at once (`steps`), and where they change. `left_out` are policies that "
        "are no steps.",
        "chosen_first_falls": "The first step at which the chosen completions are shown to be less "
        "likely than at an earlier one (`from_step`, `to_step`).",
        "accuracy_last_rises": "The last step from which accuracy is shown to rise, and the first "
        "after it at which it is shown.",
        "explains": "Names of findings that a doubt is the cause of.",
        "baseline": "The policy that the others are tested against.",
        "best_beta": "Of a sweep: loss to the tried beta with its smallest mean loss. Of "
        "statistics: the best beta with its interval.",
        "best_of": "Best of n: n to the expected label or score of the completion with the "
        "highest reward of n that are drawn without replacement.",
        "rewardbench": "The score of RewardBench 2, of its subsets, and the terms of Ties.",
        "groups": "What each rule keeps of each subset: `n_ranked`, `n_kept`, and the `last` value "
        "kept.",
        "effects": "Figures of all ranked pairs, and of what each rule keeps.",
        "overlaps": "Pairs that two rules both keep (`n_both`), and their share of the smaller of "
        "the two selections.",
        "contradictions": "Pairs that repeat or contradict others: duplicates, swaps, cycles. Each "
        "counts once, as what stands first here.",
        "duplicates": "Pairs that repeat another pair exactly.",
        "swaps": "Pairs whose chosen and rejected completion are another's rejected and chosen "
        "one.",
        "cycles": "Pairs on a cycle of three or more completions of a prompt: a before b before c "
        "before a.",
        "known_by": "What completions are known by: their text, or their log-probs.",
        "options": "The options that are not at their defaults.",
        "checked_later": "What only the run can check.",
        "carried": "Input columns that the output keeps.",
        "outputs": "What would be written, and whether something is there already.",
        "gates": "What gates say, only if a command was given some: whether all are `passed`, "
        "`why` there is no verdict, and the `marks`: each `mark`, `at` least or most, the figure, "
        "whether the nearer end of its interval is held to it (`by_interval`), and whether it is "
        "met (`is_met`).",
    }
)
"""Keys of results and of dry runs."""

NUMBERS: Final = MappingProxyType(
    {
        "value": "A figure as it was found in these pairs.",
        "standard_error": "How far a figure is from that of the population in the mean square, by "
        "clusters; null for a single one.",
        "interval": "Confidence interval: so many of such intervals hold the true value, as the "
        "level says.",
        "low": "Lower limit of an interval.",
        "high": "Upper limit of an interval.",
        "method": "How an interval was made.",
        "estimate": "A figure, or a difference, with its interval.",
        "n": "Pairs behind a figure.",
        "n_clusters": "Prompts behind a figure, or pairs without prompts; null where they were too "
        "many to be counted.",
        "difference": "One policy's figure less another's.",
        "test": "How a p-value was made.",
        "p_value": "Chance of a difference as large where there is none, two-sided.",
        "p_holm": "p-value adjusted for the number of subsets, so that the chance of any false "
        "alarm is kept (Holm).",
        "p_benjamini_hochberg": "p-value adjusted so that the share of false alarms is kept "
        "(Benjamini and Hochberg).",
        "p_adjusted": "p-value adjusted for all tests of the policies, by sign flips of clusters "
        "(Romano and Wolf).",
        "f": "Statistic of Welch's test: the spread between subsets over that within.",
        "chi_square": "Statistic of Pearson's test.",
        "degrees_of_freedom": "Subsets less one.",
        "degrees_of_freedom_within": "How well Welch's test knows the spread within subsets.",
        "smallest_expected": "Smallest expected count of Pearson's test; it is rough below 5.",
        "exact": "Two-sided p-value of McNemar's exact test.",
        "mid_p": "Two-sided mid-p-value of McNemar's test.",
        "applies": "Whether McNemar's tests can be read: pairs of one prompt are not independent.",
        "only_a": "Pairs that A alone has right.",
        "only_b": "Pairs that B alone has right.",
        "both_right": "Pairs that both policies have right.",
        "auc": "Chance that a better one has a larger value than a worse one. Of completions: a "
        "desirable one's reward above an undesirable one's. Of a judge: the margin of a pair that "
        "the judge agrees with above that of one that it does not.",
        "spearman": "Spearman's rank correlation of margins and the judge's score gaps.",
        "best_loss": "The mean loss of a policy at its best beta of several, on the same pairs, "
        "which makes it a little too small.",
        "log_ratio_size": "Mean size of the log-ratios of both completions, in nats.",
        "n_correct": "Pairs with the chosen reward above the rejected one.",
        "n_common": "Pairs whose key all sides have.",
        "n_alone": "Of a comparison: rows whose key the other side has not. Of a ranking: prompts "
        "with one completion.",
        "n_groups": "Subsets that a test is of.",
        "n_left_out": "Subsets that have too few clusters for the test.",
        "n_prompts": "Prompts.",
        "n_completions": "Valid completions.",
        "n_chosen": "Desirable completions.",
        "n_rejected": "Undesirable completions.",
        "n_prompts_without_loss": "Prompts whose loss is not defined, as all completions are alike "
        "in what it needs.",
        "kl": "TRL's estimate of the KL divergence of policy and reference, at least 0: the mean "
        "log-ratio of completions paired with other prompts.",
        "n_undecided": "Prompts whose completions are all equally good.",
        "n_without_tau": "Prompts without Kendall's tau-b: all rewards or all completions are "
        "equal.",
        "n_drawn_from": "Prompts with enough completions for all of the curve of best of n.",
        "n_ranked": "Pairs that a rule has a value for.",
        "n_unranked": "Valid pairs that a rule has no value for; none is kept.",
        "n_kept": "Pairs that a rule keeps.",
        "n_both": "Pairs that two rules both keep.",
        "n_steps": "Steps of the trainer.",
        "n_batches": "Batches that there would be.",
        "tied accuracy": "Ties of RewardBench 2: share of the prompts with several right answers "
        "whose lowest right one is above the highest wrong one.",
        "reference accuracy": "Ties of RewardBench 2: the same of the prompts with one right "
        "answer.",
        "margin above spread": "Ties of RewardBench 2: share of prompts whose margin, right above "
        "wrong, is larger than the spread of the right answers.",
        "both margins above spread": "Ties of RewardBench 2: the same, where the margin of the "
        "prompt with one right answer is larger too.",
        "size of the margin": "Ties of RewardBench 2: mean of tanh(margin / spread - 1), of the "
        "smaller of the two margins.",
    }
)
"""Keys of numbers."""

OTHER_KEYS: Final = MappingProxyType(
    {
        "doubt": ("doubts",),
        "gates": ("gate", "passed", "why", "marks", "mark", "at", "by_interval", "is_met"),
        "cycles": ("cycle",),
        "swaps": ("swap",),
        "duplicates": ("duplicate",),
        "best_of": ("best of n", "best-of-n"),
        "reliability": ("reliability diagram",),
        "interval": ("confidence interval",),
        "p_value": ("p",),
        "p_holm": ("p (Holm)", "holm"),
        "p_benjamini_hochberg": ("p (BH)", "benjamini hochberg"),
        "winner_optimism": ("optimism",),
        "degrees_of_freedom": ("degrees of freedom",),
        "standard_error": ("standard error",),
        "advantages": ("advantage",),
        "histogram": ("bin", "lower", "upper"),
        "by_gap": ("gap_low", "gap_high"),
        "flips": ("reference_only", "policy_only", "neither", "both"),
        "noise": ("flip_rate",),
        "best": ("reason",),
        "baselines": ("longer", "shorter"),
        "groups": ("last",),
        "curve": ("steps", "step", "left_out"),
        "chosen_first_falls": ("from_step", "to_step"),
    }
)
"""Other names of keys, and keys that another one's text says."""

HEADS: Final = MappingProxyType(
    {
        "band": "An interval that holds at all steps of the curve at once.",
        "interval by": "The method that made the interval, such as Jeffreys' or Student's t.",
        "minus NAME": "Accuracy of the row's policy minus that of the policy NAME: the baseline, "
        "or else the one with the highest accuracy.",
        "B minus A": "The figure of policy B minus that of policy A.",
        "of A": "The figure of policy A, which B is compared with.",
        "of B": "The figure of policy B.",
        "loss at best beta": "Mean loss at the beta before it: of the betas that were tried, the "
        "one with the smallest loss on these pairs.",
        "chosen log-prob": "Mean log-prob of the chosen completion under the policy, in nats.",
        "rejected log-prob": "Mean log-prob of the rejected completion under the policy, in nats.",
        "there alone": "Rows whose key the other side does not have; they are left out.",
        "in no other": "Rows whose key no other policy has; they are left out.",
        "common, invalid": "Pairs that all policies have and that break a rule in this one.",
        "kept by": "The rule of selection that keeps the pairs, or all pairs that were ranked.",
        "chosen tokens": "Mean token count of the chosen completions.",
        "rejected tokens": "Mean token count of the rejected completions.",
        "ranked": "Pairs that the rule ranked.",
        "kept": "Pairs that the rule kept.",
        "last value": "The value, by which the rule ranks, of the last pair that is kept.",
        "as TRL": "The figure as TRL logs it: the mean of the means of its batches.",
        "mean of the preference": "Mean score, label or rank of the completions that the rewards "
        "rank first of n.",
    }
)
"""Heads of columns of printed tables, where no figure and no key has the name."""

OTHER_HEADS: Final = MappingProxyType(
    {
        "mean of the preference": ("mean score", "mean label", "mean rank"),
    }
)
"""How some of them are printed."""
