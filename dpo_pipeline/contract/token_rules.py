"""The rules of lists of per-token log-probs, from which the four sums are made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import polars as pl

from dpo_pipeline.columns import (
    CHOSEN_TOKENS,
    MASK_OF,
    REF_CHOSEN,
    REF_REJECTED,
    REJECTED_TOKENS,
    TOKENS_OF,
)
from dpo_pipeline.contract.compiling import Rule, RuleSet
from dpo_pipeline.defaults import TOKEN_SUM_SLACK, TOKEN_SUM_TOLERANCE
from dpo_pipeline.losses import kept_tokens, sum_of_tokens

_SIDES = (("policy_chosen_logps", REF_CHOSEN.name), ("policy_rejected_logps", REF_REJECTED.name))


def with_token_rules(
    rules: RuleSet, summed: Sequence[str], columns: Mapping[str, str], *, max_logp: float
) -> RuleSet:
    """Return these rules and those of the tokens behind the sums.

    If tokens break a rule, their sum counts as keeping its own, so that one fault has one name. A
    sum that the input has beside its tokens is used, and must agree with them.

    Args:
        rules: The rules of the sums.
        summed: The log-probs that are made from tokens.
        columns: Canonical name to the column that is there.
        max_logp: Largest log-probability of a token accepted, in nats.
    """
    own = [*_rules(summed, columns, max_logp), *_agreements(summed, columns, max_logp)]
    if not own:
        return rules
    sound = {name: _sound(own, [name]) for name in summed}
    for count, side in ((CHOSEN_TOKENS.name, "_chosen_"), (REJECTED_TOKENS.name, "_rejected_")):
        lists = [name for name in summed if side in name]
        if lists and count not in columns:
            sound[count] = _sound(own, lists)
    others = [
        replace(rule, keeps=sound[rule.column].not_() | rule.keeps)
        if rule.column in sound
        else rule
        for rule in rules.rules
    ]
    valid = pl.all_horizontal(rules.valid, *(rule.keeps for rule in own))
    return RuleSet(rules=(*own, *others), valid=valid)


def _sound(rules: Sequence[Rule], summed: Sequence[str]) -> pl.Expr:
    """Return whether the tokens behind these sums keep all their rules."""
    columns = {TOKENS_OF[name].name for name in summed}
    return pl.all_horizontal(rule.keeps for rule in rules if rule.column in columns)


def _rules(summed: Sequence[str], columns: Mapping[str, str], max_logp: float) -> Iterator[Rule]:
    for name in summed:
        role = TOKENS_OF[name].name
        mask = MASK_OF[name].name
        fits = pl.lit(value=True)
        if mask in columns:
            fits = pl.col(mask).list.len() == pl.col(role).list.len()
        yield Rule(
            column=role,
            check="not_null",
            requirement="not null",
            keeps=pl.col(role).is_not_null(),
        )
        if mask in columns:
            yield Rule(
                column=role,
                check="fits_mask",
                requirement=f"as long as {mask}",
                keeps=(pl.col(role).is_null() | fits).fill_null(value=False),
                found=_lengths(role, mask),
            )
        places = None
        if mask in columns:
            places = pl.col(mask).cast(pl.List(pl.Boolean)).list.eval(pl.element().arg_true())
        counting = kept_tokens(pl.col(role), pl.col(mask) if mask in columns else None)
        yield Rule(
            column=role,
            check="not_empty",
            requirement="a token at least",
            keeps=(fits.not_() | (counting.list.len() > 0)).fill_null(value=True),
            found=pl.format("0 of {} tokens count", pl.col(role).list.len()),
        )
        for check, requirement, is_broken in _of_tokens(max_logp):
            broken = counting.list.eval(is_broken(pl.element()).fill_null(value=False))
            first = broken.list.eval(pl.element().arg_true()).list.first()
            place = first if places is None else places.list.get(first, null_on_oob=True)
            value = counting.list.get(first, null_on_oob=True).cast(pl.String).fill_null("null")
            yield Rule(
                column=role,
                check=check,
                requirement=requirement,
                keeps=(fits.not_() | broken.list.any().not_()).fill_null(value=True),
                found=pl.format("{} at position {}", value, place),
            )
    for policy, reference in _SIDES:
        if policy in summed and reference in summed:
            ours, theirs = TOKENS_OF[policy].name, TOKENS_OF[reference].name
            yield Rule(
                column=ours,
                check="same_length",
                requirement=f"as long as {theirs}",
                keeps=(pl.col(ours).list.len() == pl.col(theirs).list.len()).fill_null(value=True),
                found=_lengths(ours, theirs),
            )


def _agreements(
    summed: Sequence[str], columns: Mapping[str, str], max_logp: float
) -> Iterator[Rule]:
    for name, role in TOKENS_OF.items():
        if name in summed or name not in columns or role.name not in columns:
            continue
        mask = MASK_OF[name].name
        counting = kept_tokens(pl.col(role.name), pl.col(mask) if mask in columns else None)
        # Another rule is broken where a value is null, not finite or too large.
        given, total = pl.col(name), sum_of_tokens(counting)
        comparable = given.is_finite() & (given <= max_logp) & total.is_finite()
        allowed = TOKEN_SUM_TOLERANCE * total.abs() + TOKEN_SUM_SLACK
        yield Rule(
            column=name,
            check="agrees_with_tokens",
            requirement=f"the sum of {role.name}, within {TOKEN_SUM_TOLERANCE:.0%}",
            keeps=(comparable.not_() | ((given - total).abs() <= allowed)).fill_null(value=True),
            found=pl.format("{}, and the tokens sum to {}", given, total),
        )


def _of_tokens(max_logp: float) -> tuple[tuple[str, str, Callable[[pl.Expr], pl.Expr]], ...]:
    return (
        ("no_null_token", "no token null", lambda t: t.is_null()),
        ("no_nan_token", "no token NaN", lambda t: t.is_nan()),
        ("finite_tokens", "all tokens finite", lambda t: t.is_infinite()),
        (
            "tokens_at_most",
            f"all tokens at most {max_logp:,.10g}",
            lambda t: (t > max_logp) & t.is_finite(),
        ),
    )


def _lengths(column: str, other: str) -> pl.Expr:
    return pl.format(
        "{} tokens, {} in {}",
        pl.col(column).list.len(),
        pl.col(other).list.len().fill_null(0),
        pl.lit(other),
    )
