"""The rules of what cannot be a pair, whatever each value is: empty or padded completions."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

import polars as pl

from dpo_pipeline.columns import (
    MASK_OF,
    POLICY_CHOSEN,
    POLICY_REJECTED,
    TOKENS_OF,
    Needs,
)
from dpo_pipeline.contract.rules import Rule, RuleSet
from dpo_pipeline.defaults import MAX_LOGP, SCORES_ABOVE

_ZEROS: Final = 2
"""Zeros at the end, under both models, that are padding; one can be a token that is certain."""
_RUN: Final = 5
"""Tokens of one value at either end, under both models: templates begin with four certain ones."""
_LIKELY: Final = -1.0
"""Text that repeats itself has one log-prob again and again, but it is expected by then."""


def with_row_rules(
    rules: RuleSet,
    made: Collection[str],
    columns: Mapping[str, str],
    needs: Needs,
    max_logp: float = MAX_LOGP,
) -> RuleSet:
    """Return these rules and those of empty and of padded completions.

    `made` are the sums and counts that are made from tokens; `columns` is canonical name to column.
    """
    padded = list(_not_padded(made, columns, needs))
    own = [*padded, *empty_rules(needs, max_logp)]
    # If tokens break a rule, their sum counts as keeping these, so that one fault has one name.
    own = [
        replace(rule, keeps=rules.valid.not_() | rule.keeps) if rule.column in made else rule
        for rule in own
    ]
    valid = pl.all_horizontal(rules.valid, *(rule.keeps for rule in own))
    # A log-prob of a clean pair is below 0, and so of no empty completion.
    return replace(rules, rules=(*rules.rules, *own), valid=valid).with_clean(padded)


def empty_rules(needs: Needs, max_logp: float = MAX_LOGP) -> Iterator[Rule]:
    """Yield the rules on completions that no model scored, for the plans and the pandera model.

    One text can be certain. It is not under both models, and of two texts one is not.
    """
    if needs.reference:
        both = [(each.policy.name, each.ref.name) for each in needs.texts]
    elif needs.row == "pair" and max_logp <= SCORES_ABOVE:
        both = [(POLICY_CHOSEN.name, POLICY_REJECTED.name)]
    else:
        both = []
    for ours, theirs in both:
        keeps = (pl.col(ours) != 0.0) | (pl.col(theirs) != 0.0)
        yield Rule(
            column=ours,
            check="not_empty",
            requirement=f"not 0 where {theirs} is 0 too: no token was scored",
            keeps=keeps.fill_null(value=True),
        )


def _not_padded(made: Collection[str], columns: Mapping[str, str], needs: Needs) -> Iterator[Rule]:
    for text in needs.texts:
        ours, theirs, count = text.policy.name, text.ref.name, text.count.name
        logps = (ours, theirs) if needs.reference else (ours,)
        lists = [
            TOKENS_OF[name].name
            for name in logps
            if TOKENS_OF[name].name in columns and (name in made or count in made)
        ]
        if not lists:
            continue
        mask = MASK_OF[ours].name
        has_mask = mask in columns
        tokens = [pl.col(name).list for name in lists]
        first = _is_one_value([each.head(_RUN) for each in tokens], _RUN, largest=_LIKELY)
        last = _is_one_value([each.tail(_RUN) for each in tokens], _RUN, largest=_LIKELY)
        if has_mask:
            counts, flags = pl.col(mask).list, pl.List(pl.Boolean)
            first &= counts.head(_RUN).cast(flags).list.all()
            last &= counts.tail(_RUN).cast(flags).list.all()
        else:
            last |= _is_one_value([each.tail(_ZEROS) for each in tokens], _ZEROS)
        yield Rule(
            column=lists[0],
            check="not_padded",
            requirement="without zeros, or one value again and again, at its ends"
            f"{' where' if has_mask else ', or with'} {mask}{' is 1' if has_mask else ''}",
            keeps=(first | last).not_().fill_null(value=True),
            found=pl.concat_str(  # as in `token_rules._lengths`
                *(tokens[0].first(), pl.lit(" first and "), tokens[0].last()),
                *(pl.lit(" last of "), tokens[0].len(), pl.lit(" tokens")),
            ),
        )


def _is_one_value(runs: Sequence[pl.Expr], n: int, largest: float | None = None) -> pl.Expr:
    """Return whether all of n tokens of each list are one value: 0, or at most `largest`."""
    value = runs[0].list.first()
    is_one = pl.all_horizontal(
        (run.list.len() == n) & (run.list.min() == value) & (run.list.max() == value)
        for run in runs
    )
    return is_one & ((value == 0.0) if largest is None else (value == 0.0) | (value <= largest))
