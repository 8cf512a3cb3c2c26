"""What each finding says, when, and what it cannot tell: the texts of `explain` and the tables.

Evidence and advice of one run are made where a finding is; a test holds the names here to those.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from dpo_pipeline.defaults import (
    AVERAGED_LOGP_FLOOR,
    CONTRADICTORY_FROM,
    DISPLACED_FROM,
    FEW_CLUSTERS,
    FEW_PAIRS,
    IMPRECISE_FROM,
    LENGTH_CORRELATION_FROM,
    MANY_TIES_FROM,
    MISLABELLED_FROM,
    REPEATED_FROM,
    SENSE_FEWEST,
    SENSE_FROM,
)

_FROM: Final = f"Looked for from {SENSE_FROM} valid pairs on."
_FROM_FEW: Final = f"Looked for from {SENSE_FEWEST} valid pairs on."

DOUBTS: Final = MappingProxyType(
    {
        "exchanged": "Chosen and rejected of one model are exchanged: the policy's log-probs fit "
        f"the reference's of the other completion better. {_FROM_FEW}",
        "some_exchanged": "The same seems so in some pairs: few log-ratios make up most of their "
        f"spread, and chosen and rejected move against each other. {_FROM}",
        "shifted": "The policy's log-probs fit the reference of a neighbouring row better than "
        f"that of their own. {_FROM_FEW}",
        "one_amount": "Chosen and rejected of a pair differ from the reference by nearly the same "
        f"amount, which varies by pair, as a prompt that one model's sums hold would do. {_FROM}",
        "one_side": "Chosen of one model is lower, or rejected higher, by amounts that have "
        "nothing to do with the text, and the other side moved as usual. The other way round "
        "training does "
        f"the same, and no sum can tell. {_FROM}",
        "size": f"Log-probs of policy and reference are of very different size. {_FROM}",
        "guessing": "On average a token has so low a log-prob that the model cannot have expected "
        f"the text. Needs token counts. {_FROM}",
        "other_texts": "Log-ratios vary so much beside log-probs that policy and reference are not "
        f"of the same texts. {_FROM} Gross cases are from 20 on.",
        "some_other_texts": "The same seems so in some pairs: few log-ratios make up most of their "
        f"spread. Where the policy moved far, no sum can tell. {_FROM}",
        "lower": f"One model is far below the other, by very different amounts. {_FROM}",
        "some_lower": f"One model is far below the other in some pairs. {_FROM}",
        "copied": "Two columns of log-probs are equal, on all pairs or on more than models give.",
        "unmoved": "Policy and reference log-probs are equal, on all pairs, some, or a subset.",
        "one_policy": "Two policies that are compared have the same log-probs on all pairs.",
        "partly_one_policy": "They have the same log-probs on more pairs than two policies would.",
        "column_of_the_other": "One column of B's log-probs is A's, or is in part equal to it.",
        "averaged": f"No log-prob of a model is below {AVERAGED_LOGP_FLOOR:g} nats: they look "
        "averaged over tokens, and the DPO loss takes sums. With token counts also: all "
        "log-probs, or those of one side, are higher than a model gives to so many tokens.",
        "scaled": "One model's log-probs are a multiple of the other's, by the same factor for "
        f"chosen and rejected, as in another unit or at another temperature. {_FROM}",
        "constant": "A column has one value on all valid pairs.",
        "all_ties": "Both rewards are equal in all valid pairs.",
        "repeated_ids": "A pair_id is there more than once: counted exactly up to 524,288 pairs, "
        "beyond from a sample of the ids.",
    }
)
"""What is surely wrong with the log-probs. Said first, without `--statistics` too."""

FINDINGS: Final = MappingProxyType(
    {
        "beta": "beta is 0, so every reward is 0 and all pairs are ties.",
        "ties": f"Both rewards are equal in more than {MANY_TIES_FROM:.0%} of the pairs.",
        "precision": "All log-probs of a model are numbers of a short format (bf16, f16), and in "
        f"more than {IMPRECISE_FROM:.0%} of the pairs the two log-ratios differ by less than its "
        "step.",
        "worse_than_chance": "The whole interval of the accuracy, ties half, is below 1/2.",
        "subset_worse_than_chance": "The accuracy of a subset, ties half, is below 1/2; p is "
        "adjusted for the number of subsets (Holm).",
        "baseline": "The rewards are not shown to beat a coin, the longer or the shorter "
        "completion, or the reference's own log-probs, on the same pairs.",
        "confident_errors": "Margins are wrong with more confidence than they allow: they are "
        f"likeliest if more than {MISLABELLED_FROM:.0%} of the labels were reversed at random. "
        "Labels, log-probs or the policy can be wrong there.",
        "displacement": "Likelihood displacement (arXiv 2410.08847): more than "
        f"{DISPLACED_FROM:.0%} of the chosen completions are less likely under the policy than "
        "under the reference, and the mean chosen reward is below 0.",
        "length": "Length bias: margin and difference of token counts correlate by more than "
        f"{LENGTH_CORRELATION_FROM:g} either way.",
        "repeats": f"At least {REPEATED_FROM:.0%} of the pairs have all log-probs of an earlier "
        "pair.",
        "contradictory": f"At least {CONTRADICTORY_FROM:.1%} of the pairs are there with chosen "
        "and rejected exchanged as well.",
        "few": f"Fewer than {FEW_PAIRS} pairs or {FEW_CLUSTERS} prompts.",
    }
)
"""What statistics show. Each fires only where the end of an interval says so."""

OTHER_NAMES: Final = MappingProxyType(
    {
        "length": ("length bias",),
        "displacement": ("likelihood displacement",),
        "exchanged": ("swapped",),
        "repeated_ids": ("repeated ids", "duplicate ids"),
        "repeats": ("duplicates",),
        "few": ("few pairs",),
        "baseline": ("trivial rules",),
    }
)
"""What people call some findings."""

RULES: Final = MappingProxyType(
    {
        "not_null": "A log-prob is there. A count is, where the loss divides by it, and so is a "
        "column that the loss reads.",
        "not_nan": "It is not NaN.",
        "finite": "It is not infinite.",
        "at_least": "A log-prob is not below the range that sums exactly; a token count is at "
        "least 1.",
        "at_most": "A log-prob is at most 0, or `--max-logp`: a probability is at most 1.",
        "within": "An offset is in the range that sums exactly.",
        "share": "A probability is from 0 to 1.",
        "not_empty": "The completion has a token: no list is empty, and log-probs are not 0 under "
        "both models, nor, without a reference, of both completions.",
        "not_padded": "A token list has no padding at its ends: two zeros at the end, or "
        "five equal values, 0 or below -1, under all models. Map a mask.",
        "fits_mask": "A mask is as long as its token list.",
        "same_length": "Policy and reference have as many tokens.",
        "agrees_with_tokens": "A log-prob is the sum of the token list that stands beside it.",
        "whole": "A token count that is stored as a float is a whole number.",
        "in_range": "A score of the pair is finite, and in the range that sums exactly.",
        "not_nullable": "A column that a contract of your own says to be not nullable is not null.",
    }
)
"""Rules of the contract, after the column's name and a dot. A pair that breaks one is invalid."""
