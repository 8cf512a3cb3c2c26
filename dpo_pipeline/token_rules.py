"""The rules of lists of per-token log-probs, from which the four sums are made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import polars as pl

from dpo_pipeline.columns import COUNT_ROLES, MASK_OF, REF_CHOSEN, REF_REJECTED, TOKENS_OF
from dpo_pipeline.rules import Rule, RuleSet

_SIDES = (("policy_chosen_logps", REF_CHOSEN.name), ("policy_rejected_logps", REF_REJECTED.name))


def with_token_rules(
    rules: RuleSet, summed: Sequence[str], columns: Mapping[str, str], *, max_logp: float
) -> RuleSet:
    """Return these rules and those of the tokens behind the sums.

    Where tokens are unsound their sum keeps its rules, so that a fault has one name.

    Args:
        rules: The rules of the sums.
        summed: The log-probs that are made from tokens.
        columns: Canonical names of what is there.
        max_logp: Largest log-probability of a token accepted, in nats.
    """
    if not summed:
        return rules
    own = list(_rules(summed, columns, max_logp))
    sound = pl.all_horizontal(rule.keeps for rule in own)
    made = {*summed, *(role.name for role in COUNT_ROLES)}
    others = [
        replace(rule, keeps=sound.not_() | rule.keeps) if rule.column in made else rule
        for rule in rules.rules
    ]
    return RuleSet(rules=(*own, *others), valid=rules.valid & sound)


def _rules(summed: Sequence[str], columns: Mapping[str, str], max_logp: float) -> Iterator[Rule]:
    for name in summed:
        role = TOKENS_OF[name].name
        tokens = pl.col(role).cast(pl.List(pl.Float64))
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
        counting = tokens
        if mask in columns:
            places = pl.col(mask).cast(pl.List(pl.Boolean)).list.eval(pl.element().arg_true())
            counting = tokens.list.gather(places, null_on_oob=True)
        yield Rule(
            column=role,
            check="not_empty",
            requirement="a token at least",
            keeps=(fits.not_() | (counting.list.len() > 0)).fill_null(value=True),
        )
        for check, requirement, is_broken in _of_tokens(max_logp):
            broken = counting.list.eval(is_broken(pl.element()).fill_null(value=False))
            yield Rule(
                column=role,
                check=check,
                requirement=requirement,
                keeps=(fits.not_() | broken.list.any().not_()).fill_null(value=True),
                found=pl.format(
                    "{} at position {}",
                    _at(tokens, is_broken, mask, columns)[0],
                    _at(tokens, is_broken, mask, columns)[1],
                ),
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


def _at(
    tokens: pl.Expr,
    is_broken: Callable[[pl.Expr], pl.Expr],
    mask: str,
    columns: Mapping[str, str],
) -> tuple[pl.Expr, pl.Expr]:
    """Return the first broken token that counts, as text, and its position in the whole list."""
    broken = tokens.list.eval(is_broken(pl.element()).fill_null(value=False))
    if mask in columns:
        counts = pl.col(mask).cast(pl.List(pl.Int8))
        both = broken.cast(pl.List(pl.Int8)) * counts
        broken = both.cast(pl.List(pl.Boolean))
    place = broken.list.eval(pl.element().arg_true()).list.first()
    value = tokens.list.get(place, null_on_oob=True).cast(pl.String).fill_null("null")
    return value, place


def _lengths(column: str, other: str) -> pl.Expr:
    return pl.format(
        "{} tokens, {} in {}",
        pl.col(column).list.len(),
        pl.col(other).list.len().fill_null(0),
        pl.lit(other),
    )
