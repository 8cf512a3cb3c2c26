"""The rules of lists of per-token log-probs, from which the four sums are made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import polars as pl

from dpo_pipeline.columns import (
    MASK_OF,
    TEXTS,
    TOKENS_OF,
)
from dpo_pipeline.contract.rules import Rule, RuleSet
from dpo_pipeline.defaults import TOKEN_SUM_SLACK, TOKEN_SUM_TOLERANCE
from dpo_pipeline.losses import kept_tokens, sum_of_tokens

_TEXTS = tuple(each for texts in TEXTS.values() for each in texts)


def with_token_rules(
    rules: RuleSet, summed: Sequence[str], columns: Mapping[str, str], *, max_logp: float
) -> RuleSet:
    """Return these rules and those of the tokens behind `summed`, the sums made from tokens.

    If tokens break a rule, their sum counts as keeping its own, so that one fault has one name. A
    sum that the input has beside its tokens is used, and must agree with them.
    """
    own = [*_rules(summed, columns, max_logp), *_agreements(summed, columns, max_logp)]
    if not own:
        return rules
    sound = {name: _sound(own, [name]) for name in summed}
    for text in _TEXTS:
        lists = [name for name in summed if name in (text.policy.name, text.ref.name)]
        if lists and text.count.name not in columns:
            sound[text.count.name] = _sound(own, lists)
    others = [
        replace(rule, keeps=sound[rule.column].not_() | rule.keeps)
        if rule.column in sound
        else rule
        for rule in rules.rules
    ]
    valid = pl.all_horizontal(rules.valid, *(rule.keeps for rule in own))
    return replace(rules, rules=(*own, *others), valid=valid).with_clean(own)


def _sound(rules: Sequence[Rule], summed: Sequence[str]) -> pl.Expr:
    """Return whether the tokens behind these sums keep all their rules."""
    columns = {TOKENS_OF[name].name for name in summed}
    return pl.all_horizontal(rule.keeps for rule in rules if rule.column in columns)


def _rules(summed: Sequence[str], columns: Mapping[str, str], max_logp: float) -> Iterator[Rule]:
    of_tokens: tuple[tuple[str, str, Callable[[pl.Expr], pl.Expr]], ...] = (
        ("no_null_token", "no token null", lambda t: t.is_null()),
        ("no_nan_token", "no token NaN", lambda t: t.is_nan()),
        ("finite_tokens", "all tokens finite", lambda t: t.is_infinite()),
        (
            "tokens_at_most",
            f"all tokens at most {max_logp:,.10g}",
            lambda t: (t > max_logp) & t.is_finite(),
        ),
    )
    for name in summed:
        role, mask = TOKENS_OF[name].name, MASK_OF[name].name
        tokens = pl.col(role)
        of_role = partial(Rule, column=role)
        yield of_role(check="not_null", requirement="not null", keeps=tokens.is_not_null())
        counting, places, fits = _counting(name, columns), None, pl.lit(value=True)
        if mask in columns:
            places = pl.col(mask).cast(pl.List(pl.Boolean)).list.eval(pl.element().arg_true())
            fits = pl.col(mask).list.len() == tokens.list.len()
            yield of_role(
                check="fits_mask",
                requirement=f"as long as {mask}",
                keeps=(tokens.is_null() | fits).fill_null(value=False),
                found=_lengths(role, mask),
            )
        yield of_role(
            check="not_empty",
            requirement="a token at least",
            keeps=(fits.not_() | (counting.list.len() > 0)).fill_null(value=True),
            found=pl.format("0 of {} tokens count", tokens.list.len()),
        )
        for check, requirement, is_broken in of_tokens:
            broken = counting.list.eval(is_broken(pl.element()).fill_null(value=False))
            first = broken.list.eval(pl.element().arg_true()).list.first()
            place = first if places is None else places.list.get(first, null_on_oob=True)
            value = counting.list.get(first, null_on_oob=True).cast(pl.String).fill_null("null")
            yield of_role(
                check=check,
                requirement=requirement,
                keeps=(fits.not_() | broken.list.any().not_()).fill_null(value=True),
                found=pl.concat_str(value, pl.lit(" at position "), place),
            )
    for policy, reference in ((each.policy.name, each.ref.name) for each in _TEXTS):
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
        # Another rule is broken where a value is null, not finite or too large.
        given, total = pl.col(name), sum_of_tokens(_counting(name, columns))
        comparable = given.is_finite() & (given <= max_logp) & total.is_finite()
        allowed = TOKEN_SUM_TOLERANCE * total.abs() + TOKEN_SUM_SLACK
        yield Rule(
            column=name,
            check="agrees_with_tokens",
            requirement=f"the sum of {role.name}, within {TOKEN_SUM_TOLERANCE:.0%}",
            keeps=(comparable.not_() | ((given - total).abs() <= allowed)).fill_null(value=True),
            found=pl.concat_str(given, pl.lit(", and the tokens sum to "), total),
        )


def _counting(name: str, columns: Mapping[str, str]) -> pl.Expr:
    """Return the tokens behind a log-prob that its mask, if there is one, lets count."""
    mask = MASK_OF[name].name
    return kept_tokens(pl.col(TOKENS_OF[name].name), pl.col(mask) if mask in columns else None)


def _lengths(column: str, other: str) -> pl.Expr:
    # `pl.format` has an empty text beside a value at either end, at which Polars 2.1 fails where a
    # frame has several chunks.
    return pl.concat_str(
        pl.col(column).list.len(),
        pl.lit(" tokens, "),
        pl.col(other).list.len().fill_null(0),
        pl.lit(f" in {other}"),
    )
