"""Binds the columns to the formulas: the one place where rewards, margins and losses are named."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Final

import polars as pl

from dpo_pipeline.columns import (
    CHOSEN_LOGRATIO,
    CHOSEN_REWARD,
    CHOSEN_TOKENS,
    EXTRA_ROLES,
    KL,
    KL_POLICY,
    KL_REF,
    LABEL,
    LOGRATIO,
    LOSS,
    POLICY,
    POLICY_CHOSEN,
    POLICY_REJECTED,
    PREFERENCES,
    PROMPT_ID,
    RANK,
    REF,
    REF_CHOSEN,
    REF_REJECTED,
    REJECTED_LOGRATIO,
    REJECTED_REWARD,
    REJECTED_TOKENS,
    REWARD,
    REWARD_MARGIN,
    TOKENS,
    Role,
)
from dpo_pipeline.errors import UsageError
from dpo_pipeline.losses import dpo as rewards
from dpo_pipeline.losses.completions import batch_kl
from dpo_pipeline.losses.objective import Basis, CheckedObjective, Term
from dpo_pipeline.losses.pairwise import F_DIVERGENCES

_RATIOS: Final = (CHOSEN_LOGRATIO, REJECTED_LOGRATIO)
_NAMES: Final = (*_RATIOS, CHOSEN_REWARD, REJECTED_REWARD, REWARD_MARGIN, LOSS)


@dataclass(frozen=True, slots=True, kw_only=True)
class WithinBatches:
    """Of rows that are whole batches: the column with their number, and which pairs take part."""

    key: str
    sound: pl.Expr


def with_scores(
    pairs: pl.LazyFrame, objective: CheckedObjective, within: WithinBatches | None = None
) -> pl.LazyFrame:
    """Add the scored columns to pairs under canonical names. Null and NaN propagate."""
    return with_scores_of(pairs, (objective,), within)


def with_scores_of(
    pairs: pl.LazyFrame, objectives: Sequence[CheckedObjective], within: WithinBatches | None = None
) -> pl.LazyFrame:
    """Add the scored columns of one objective, or those of several under `name_of_score`.

    They are made in steps, so that what several objectives or columns share is computed once.
    """
    if objectives and objectives[0].row == "completion":
        return _with_scores_of_completions(pairs, objectives, within)
    ratios, scores, margins, losses = (dict[str, pl.Expr]() for _ in range(4))
    for each in objectives:
        basis = each.reward_basis
        names = {name: name_of_score(name, each, objectives) for name in _NAMES}
        if len(objectives) > 1:
            names |= {name: f"__dpo_pipeline_{name}_{basis.reference}" for name in _RATIOS}
        ready = _from_columns(basis, names)
        ratios[names[CHOSEN_LOGRATIO]] = _logratio(POLICY_CHOSEN, REF_CHOSEN, basis)
        ratios[names[REJECTED_LOGRATIO]] = _logratio(POLICY_REJECTED, REF_REJECTED, basis)
        scores[names[CHOSEN_REWARD]] = _reward(each, ready["chosen_score"], CHOSEN_TOKENS)
        scores[names[REJECTED_REWARD]] = _reward(each, ready["rejected_score"], REJECTED_TOKENS)
        margins[names[REWARD_MARGIN]] = rewards.reward_margin(
            ready["chosen_reward"], ready["rejected_reward"]
        )
        compared = {basis: ready} if each.own_reward is None else {}
        losses[names[LOSS]] = _loss(each, compared, within)
    for step in (ratios, scores, margins, losses):
        pairs = pairs.with_columns(value.alias(name) for name, value in step.items())
    return pairs


def linear_rewards(objective: CheckedObjective) -> dict[str, pl.Expr]:
    """Return both rewards, made of log-probs, for an objective whose rewards are linear."""
    basis, beta = objective.reward_basis, objective.beta
    sides = {CHOSEN_REWARD: (POLICY_CHOSEN, REF_CHOSEN)}
    sides[REJECTED_REWARD] = (POLICY_REJECTED, REF_REJECTED)
    return {
        name: rewards.implicit_reward(_logratio(*side, basis), beta=beta)
        for name, side in sides.items()
    }


NO_KL: Final = (
    "kto estimates its KL term from batches: give the size of an evaluation batch, as batches=SIZE "
    "(--batch-size), or the term itself, kl (--loss-arg kl=0)"
)
FIRST_OF_BATCH: Final = "__dpo_pipeline_first_of_batch"
"""Marks one row of each batch, if the KL term is that of a batch."""


def _with_scores_of_completions(
    rows: pl.LazyFrame, objectives: Sequence[CheckedObjective], within: WithinBatches | None
) -> pl.LazyFrame:
    """Add the scored columns of completions; the log-ratio is that of the first objective."""
    ratios = {LOGRATIO: _logratio(POLICY, REF, objectives[0].terms[0].basis)}
    scores, losses = dict[str, pl.Expr](), dict[str, pl.Expr]()
    for each in objectives:
        (term,) = each.terms
        names = {name: name_of_score(name, each, objectives) for name in (REWARD, KL, LOSS)}
        scores[names[REWARD]] = rewards.implicit_reward(pl.col(LOGRATIO), beta=each.beta)
        scores[names[KL]] = pl.lit(term.kl, dtype=pl.Float64)
        if term.is_of_batches:
            if within is None:
                raise UsageError(NO_KL)
            ours, theirs = (
                pl.when(within.sound).then(pl.col(role.name)) for role in (KL_POLICY, KL_REF)
            )
            batch, without_zeros = pl.col(within.key), each.kl_without_zeros
            scores[names[KL]] = batch_kl(ours, theirs, batch, without_zeros=without_zeros)
            ratios[FIRST_OF_BATCH] = pl.int_range(pl.len()).over(batch) == 0
        arguments: dict[str, Any] = {n: v for n, v in term.arguments.items() if n != "kl"}
        if term.loss.takes_beta:
            arguments["beta"] = each.beta
        compared = {
            "score": pl.col(LOGRATIO),
            "reward": pl.col(names[REWARD]),
            "label": pl.col(LABEL.name),
            "kl": pl.col(names[KL]),
            "prompt": pl.col(PROMPT_ID.name),
        }
        if term.loss.is_listwise:
            compared["goodness"] = _goodness(rows)
        loss = term.loss.function(*(compared[name] for name in term.loss.compares), **arguments)
        losses[names[LOSS]] = loss
    for step in (ratios, scores, losses):
        rows = rows.with_columns(**step)
    return rows


def _goodness(rows: pl.LazyFrame) -> pl.Expr:
    """Return what says which completion is better: a rank turned round, a score or a label."""
    columns = rows.collect_schema()
    role = next(each for each in PREFERENCES if each.name in columns)
    value = pl.col(role.name).cast(pl.Float64)
    return -value if role is RANK else value


def completion_reward(objective: CheckedObjective) -> pl.Expr:
    """Return the reward of a completion, one a row: what the loss would compare of it in a pair."""
    basis = objective.reward_basis
    return _reward(objective, _score(_logratio(POLICY, REF, basis), TOKENS, basis), TOKENS)


def name_of_score(
    name: str, objective: CheckedObjective, objectives: Sequence[CheckedObjective]
) -> str:
    """Return what a scored column is called beside those of other objectives."""
    return name if len(objectives) == 1 else f"{name} of {objective} at beta {objective.beta!r}"


def scores_to_check(
    objectives: Sequence[CheckedObjective], max_logp: float, **bounds: float
) -> tuple[str, ...]:
    """Return the `columns_to_check` of several objectives, as they are called."""
    return tuple(
        name_of_score(name, objective, objectives)
        for objective in objectives
        for name in objective.columns_to_check(max_logp, **bounds)
    )


def _reward(objective: CheckedObjective, score: pl.Expr, tokens: Role) -> pl.Expr:
    """Return the reward that the first loss compares."""
    loss, beta = objective.own_reward, objective.beta
    if loss is None or loss.reward is None:
        return rewards.implicit_reward(score, beta=beta)
    arguments = objective.terms[0].arguments
    return loss.reward(score, pl.col(tokens.name), beta=beta, **arguments)


def _loss(
    objective: CheckedObjective,
    ready: Mapping[Basis, Mapping[str, pl.Expr]],
    within: WithinBatches | None,
) -> pl.Expr:
    """Return the weighted sum of the losses; `ready` has what they compare where it is a column."""
    weighted = []
    for term in objective.terms:
        compared = ready.get(term.basis) or _from_logps(term.basis, objective.beta)
        value = _term(term, objective.beta, compared, within)
        weighted.append(value if term.weight == 1.0 else term.weight * value)
    return reduce(operator.add, weighted)


def _term(
    term: Term, beta: float, compared: Mapping[str, pl.Expr], within: WithinBatches | None
) -> pl.Expr:
    loss = term.loss
    arguments: dict[str, Any] = dict(term.arguments)
    if loss.takes_beta:
        arguments["beta"] = beta
    values: dict[str, Any] = dict(compared)
    if loss.is_of_batches:
        if within is None:
            raise UsageError(f"{loss.name} is a loss of batches: give batches (--batch-size)")
        values = {name: pl.when(within.sound).then(value) for name, value in compared.items()}
        values["batch"] = pl.col(within.key)
    return loss.function(*(values[name] for name in loss.compares), **arguments)


def _from_columns(basis: Basis, names: Mapping[str, str]) -> dict[str, pl.Expr]:
    """Return all that a row-wise loss can compare, from scored columns of the same basis."""
    column = {name: pl.col(called) for name, called in names.items()}
    return _FROM_INPUT | {
        "margin": column[REWARD_MARGIN],
        "chosen_score": _score(column[CHOSEN_LOGRATIO], CHOSEN_TOKENS, basis),
        "rejected_score": _score(column[REJECTED_LOGRATIO], REJECTED_TOKENS, basis),
        "chosen_reward": column[CHOSEN_REWARD],
        "rejected_reward": column[REJECTED_REWARD],
    }


def _from_logps(basis: Basis, beta: float) -> dict[str, pl.Expr]:
    """Return the same from log-probs."""
    chosen = _score(_logratio(POLICY_CHOSEN, REF_CHOSEN, basis), CHOSEN_TOKENS, basis)
    rejected = _score(_logratio(POLICY_REJECTED, REF_REJECTED, basis), REJECTED_TOKENS, basis)
    chosen_reward = rewards.implicit_reward(chosen, beta=beta)
    rejected_reward = rewards.implicit_reward(rejected, beta=beta)
    return _FROM_INPUT | {
        "margin": rewards.reward_margin(chosen_reward, rejected_reward),
        "chosen_score": chosen,
        "rejected_score": rejected,
        "chosen_reward": chosen_reward,
        "rejected_reward": rejected_reward,
    }


_FROM_INPUT: Final = {
    **{role.name: pl.col(role.name) for role in EXTRA_ROLES},
    "chosen_logp": pl.col(POLICY_CHOSEN.name),
    "rejected_logp": pl.col(POLICY_REJECTED.name),
    "chosen_tokens": pl.col(CHOSEN_TOKENS.name),
    "rejected_tokens": pl.col(REJECTED_TOKENS.name),
    "policy_difference": pl.col(POLICY_CHOSEN.name) - pl.col(POLICY_REJECTED.name),
    "reference_difference": pl.col(REF_CHOSEN.name) - pl.col(REF_REJECTED.name),
}


def _logratio(policy: Role, reference: Role, basis: Basis) -> pl.Expr:
    if not basis.reference:
        return pl.col(policy.name)
    return rewards.logratio(pl.col(policy.name), pl.col(reference.name))


def _score(logratio: pl.Expr, tokens: Role, basis: Basis) -> pl.Expr:
    score = F_DIVERGENCES[basis.f_divergence](logratio, basis.f_alpha)
    return score / pl.col(tokens.name) if basis.per_token else score
