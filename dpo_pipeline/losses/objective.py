"""The objective: a loss, or a weighted sum of losses, with validated parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, Final, Self, TypeAlias

from dpo_pipeline.arguments import checked_beta
from dpo_pipeline.columns import (
    CHOSEN_REWARD,
    KL_POLICY,
    KL_REF,
    LOSS,
    REJECTED_REWARD,
    REWARD,
    Needs,
    RowOf,
    did_you_mean,
)
from dpo_pipeline.defaults import BETA, LOGP_LIMIT, LOSS_NAME, WIDE_LIMIT
from dpo_pipeline.errors import ArgumentError, UsageError
from dpo_pipeline.losses.catalogue import EVERY_LOSS, no_such_loss
from dpo_pipeline.losses.dialects import DIALECTS, Dialect, Rewards
from dpo_pipeline.losses.loss_row import Loss
from dpo_pipeline.losses.pairwise import ALPHA_DIVERGENCE, F_DIVERGENCES, REVERSE_KL

LossLike: TypeAlias = str | Mapping[str, float]
"""The name of a loss, or several with their weights."""

LossArguments: TypeAlias = Mapping[str, float | bool | str]
"""Arguments of the losses, by name."""

_TOKEN_DEFAULTS: Final[Mapping[str, float | bool]] = {"ld_alpha": 1.0, "humanline": False}
TOKEN_ARGUMENTS: Final = tuple(_TOKEN_DEFAULTS)
"""Arguments of every loss: how sums are made from lists of tokens."""

_F_ALPHA: Final = 0.5
"""TRL's default of the alpha of the alpha-divergence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Basis:
    """How the score of a completion is made from its log-probs; see `pairwise`."""

    reference: bool = True
    per_token: bool = False
    f_divergence: str = REVERSE_KL
    f_alpha: float = _F_ALPHA

    @property
    def is_linear(self) -> bool:
        """Whether mean scores follow from mean log-probs."""
        return not self.per_token and self.f_divergence == REVERSE_KL


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """A loss of a sum, with its weight and arguments."""

    loss: Loss
    weight: float
    arguments: Mapping[str, float]
    basis: Basis

    @property
    def needs(self) -> Needs:
        """The columns it asks for."""
        counts = any(name.endswith("tokens") for name in self.loss.compares)
        own = [] if self.kl is not None or "kl" not in self.loss.compares else [KL_POLICY, KL_REF]
        return Needs(
            row=self.loss.row,
            reference=self.basis.reference,
            tokens=self.basis.per_token or counts,
            extras=(*self.loss.extras, *(each.name for each in own)),
        )

    @property
    def kl(self) -> float | None:
        """The KL term as a number; None if it is estimated, or there is none."""
        kl = self.arguments.get("kl", math.nan)
        return None if math.isnan(kl) else kl

    @property
    def is_of_batches(self) -> bool:
        """Whether it depends on the other rows of a batch."""
        return self.loss.is_of_batches or ("kl" in self.loss.compares and self.kl is None)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedObjective:
    """A loss or a weighted sum of losses, ready to be computed."""

    beta: float  # KL strength, dimensionless
    terms: tuple[Term, ...]  # the losses; rewards are those of the first one
    rewards: Rewards = "score"  # what beta multiplies: what the loss compares, or the log-ratio
    dialect: str | None = None  # as asked for
    ld_alpha: float = 1.0  # weight of tokens beyond the length of the other completion (LD-DPO)
    humanline: bool = False  # whether per-token log-ratios are clamped to -1 and 1.5 (HALOs)

    @classmethod
    def of(
        cls,
        loss: LossLike = LOSS_NAME,
        beta: float | None = None,
        *,
        loss_args: LossArguments | None = None,
        dialect: str | None = None,
    ) -> Self:
        """Check the arguments of a call."""
        system = _dialect(dialect)
        weights = _weights(loss)
        given = _arguments(loss_args)
        _refuse_of_all(system, weights, given)
        ld_alpha, humanline = _token_arguments(given)
        unknown = set(given)
        terms = []
        for name, weight in weights.items():
            row = EVERY_LOSS[name]
            unknown -= set(row.takes)
            mine = {n: value for n, value in given.items() if n in row.takes}
            if system is not None:
                _refuse(system, row, mine)
                mine = {**system.defaults.get(name, {}), **mine}
            arguments = {
                p.name: p.checked(mine.get(p.name, p.default), name) for p in row.parameters
            }
            basis = _basis(row, mine)
            terms.append(Term(loss=row, weight=weight, arguments=arguments, basis=basis))
        if unknown:
            _no_such_argument(min(unknown), weights)
        strength = (BETA if system is None else system.beta) if beta is None else beta
        made = cls(
            beta=checked_beta(strength),
            terms=tuple(terms),
            rewards="score" if system is None else system.rewards,
            dialect=dialect,
            ld_alpha=ld_alpha,
            humanline=humanline,
        )
        if made.row == "completion" and made.needs.has_token_arguments:
            raise UsageError(f"ld_alpha and humanline are of pairs, and {made} of completions")
        if humanline and not made.needs.reference:
            raise UsageError(f"humanline clamps log-ratios, and {made} has no reference")
        for term in terms:
            if made.needs.has_token_arguments and "chosen_logp" in term.loss.compares:
                changed = "humanline" if humanline else "ld_alpha"
                raise UsageError(f"{changed} changes the sums that {term.loss.name} weighs by")
            if term.loss.positive_beta and made.beta == 0.0:
                problem = f"must be above 0 for {term.loss.name}, which divides by it"
                raise ArgumentError("beta", problem, value=made.beta)
        return made

    @property
    def needs(self) -> Needs:
        """The columns that its terms ask for."""
        return Needs(
            row=self.row,
            reference=any(term.needs.reference for term in self.terms),
            tokens=any(term.needs.tokens for term in self.terms),
            ld_alpha=self.ld_alpha,
            humanline=self.humanline,
            extras=tuple(dict.fromkeys(name for term in self.terms for name in term.needs.extras)),
        )

    @property
    def reward_basis(self) -> Basis:
        """The basis of the score that beta multiplies into rewards."""
        basis = self.terms[0].basis
        if self.rewards == "logratio" and basis.reference:
            return Basis(reference=True)
        return basis

    @property
    def own_reward(self) -> Loss | None:
        """The loss whose reward is not beta times a score, if rewards are of such a loss."""
        term = self.terms[0]
        plain = self.rewards == "logratio" and term.basis.reference
        return None if plain or term.loss.reward is None else term.loss

    @property
    def has_linear_rewards(self) -> bool:
        """Whether mean rewards follow from mean log-probs."""
        return self.own_reward is None and self.reward_basis.is_linear

    @property
    def is_log_loss(self) -> bool:
        """Whether the loss is -log sigmoid(margin), the DPO loss and nothing else."""
        term, *others = self.terms
        is_plain = term.weight == 1.0 and not any(term.arguments.values())
        is_of_margin = term.basis == self.reward_basis
        return not others and term.loss.name == LOSS_NAME and is_plain and is_of_margin

    @property
    def is_of_batches(self) -> bool:
        """Whether a term depends on the other pairs of a batch."""
        return any(term.is_of_batches for term in self.terms)

    @property
    def row(self) -> RowOf:
        """What it is computed of."""
        return self.terms[0].loss.row

    @property
    def is_listwise(self) -> bool:
        """Whether it is of all completions of a prompt."""
        return self.terms[0].loss.is_listwise

    @property
    def kl_without_zeros(self) -> bool:
        """Whether the KL term leaves out log-ratios of 0."""
        return self.dialect == "halos"

    def columns_to_check(
        self, max_logp: float, *, lowest: float = -LOGP_LIMIT, limit: float = WIDE_LIMIT
    ) -> tuple[str, ...]:
        """Return the scored columns whose values may be too large to be summed, or not finite.

        Empty if log-probs from `lowest` to `max_logp` rule out scores beyond `limit`: then rows
        need no rule.
        """
        if self.row == "completion":
            return (REWARD, LOSS)
        if self.largest_score(lowest, max_logp) <= limit * (1.0 - 2.0**-40):
            return ()
        return (CHOSEN_REWARD, REJECTED_REWARD, LOSS)

    def largest_score(self, lowest: float, highest: float) -> float:
        """Return what no score of pairs exceeds in magnitude, whose log-probs are between these.

        It is infinite for losses of which it is not known.
        """
        slow = all(term.loss.grows_as_margin for term in self.terms)
        plain = all(term.basis.f_divergence == REVERSE_KL for term in self.terms)
        weight = sum(abs(term.weight) for term in self.terms)
        # The bound |margin| + 2 of a loss: each log-ratio spans the range of two log-probs.
        largest = 2.0 * self.beta * (max(highest, 0.0) - lowest) + 2.0
        return max(weight, 1.0) * largest if plain and slow else math.inf

    def to_dict(self) -> dict[str, Any]:
        """Return all that makes the same objective again, as documents hold it."""
        return {
            "beta": self.beta,
            "rewards": self.rewards,
            "dialect": self.dialect,
            "ld_alpha": self.ld_alpha,
            "humanline": self.humanline,
            "terms": [
                {
                    "loss": term.loss.name,
                    "weight": term.weight,
                    **{n: None if math.isnan(v) else v for n, v in term.arguments.items()},
                    "reference_free": not basis.reference,
                    "per_token": basis.per_token,
                    "f_divergence": basis.f_divergence,
                    **_alpha(basis),
                }
                for term in self.terms
                for basis in [term.basis]
            ],
        }

    def __str__(self) -> str:
        """Return the losses with their weights."""
        return " + ".join(
            term.loss.name if term.weight == 1.0 else f"{term.weight:g} {term.loss.name}"
            for term in self.terms
        )


def _alpha(basis: Basis) -> dict[str, float]:
    return {"f_alpha": basis.f_alpha} if basis.f_divergence == ALPHA_DIVERGENCE else {}


def _dialect(name: str | None) -> Dialect | None:
    if name is None:
        return None
    if not isinstance(name, str) or name not in DIALECTS:
        raise UsageError(
            f"dialect: there is no {name!r}{did_you_mean(str(name), DIALECTS)}; "
            f"the dialects are {', '.join(DIALECTS)}"
        )
    return DIALECTS[name]


def _weights(loss: LossLike) -> dict[str, float]:
    weights = {loss: 1.0} if isinstance(loss, str) else loss
    if not isinstance(weights, Mapping) or not weights:
        raise UsageError(f"loss must be a name, or names with weights, found {loss!r}")
    for name, weight in weights.items():
        if name not in EVERY_LOSS:
            raise UsageError(f"loss: there is no {no_such_loss(name)}")
        if len(weights) > 1 and EVERY_LOSS[name].row == "completion":
            raise UsageError(f"loss: {name} is of completions, and stands in no sum of losses")
        number = isinstance(weight, Real) and not isinstance(weight, bool)
        if not (number and 0.0 < weight <= LOGP_LIMIT):
            allowed = f"above 0 and at most {LOGP_LIMIT:,.0f}"
            raise UsageError(f"loss: the weight of {name} must be {allowed}, found {weight!r}")
    return {name: float(weight) for name, weight in weights.items()}


def _arguments(loss_args: LossArguments | None) -> dict[str, float | bool | str]:
    if loss_args is None:
        return {}
    if not isinstance(loss_args, Mapping) or not all(isinstance(n, str) for n in loss_args):
        raise UsageError(
            f"arguments (--loss-arg) must map argument names to values, found {loss_args!r}"
        )
    return dict(loss_args)


def _token_arguments(given: dict[str, float | bool | str]) -> tuple[float, bool]:
    """Remove and return the token arguments, which apply to all losses."""
    alpha, humanline = (given.pop(name, plain) for name, plain in _TOKEN_DEFAULTS.items())
    if isinstance(alpha, bool) or not isinstance(alpha, Real) or not 0.0 <= alpha <= 1.0:
        raise UsageError(f"ld_alpha must be a number from 0 to 1, found {alpha!r}")
    if not isinstance(humanline, bool):
        raise UsageError(f"humanline must be True or False, found {humanline!r}")
    if humanline and alpha != 1.0:
        raise UsageError("ld_alpha and humanline both change the sums: give one")
    return float(alpha), humanline


def _basis(loss: Loss, given: Mapping[str, float | bool | str]) -> Basis:
    for name in ("reference_free", "per_token"):
        if not isinstance(given.get(name, False), bool):
            raise UsageError(f"{name} of {loss.name} must be True or False, found {given[name]!r}")
    divergence = given.get("f_divergence", REVERSE_KL)
    if not isinstance(divergence, str) or divergence not in F_DIVERGENCES:
        raise UsageError(
            f"f_divergence of {loss.name} must be one of {', '.join(F_DIVERGENCES)}, "
            f"found {divergence!r}"
        )
    alpha = given.get("f_alpha", _F_ALPHA)
    if isinstance(alpha, bool) or not isinstance(alpha, Real) or not -100 <= alpha <= 100:  # noqa: PLR2004
        raise UsageError(f"f_alpha of {loss.name} must be a number within 100, found {alpha!r}")
    if "f_alpha" in given and divergence != ALPHA_DIVERGENCE:
        raise UsageError(f"f_alpha goes with f_divergence={ALPHA_DIVERGENCE!r} alone")
    free = loss.reference == "never" or bool(given.get("reference_free", False))
    if free and divergence != REVERSE_KL:
        raise UsageError("an f-divergence is one from the reference: not with reference_free")
    return Basis(
        reference=not free,
        per_token=loss.by_length == "always" or bool(given.get("per_token", False)),
        f_divergence=divergence,
        f_alpha=float(alpha),
    )


def _refuse_of_all(
    system: Dialect | None, weights: Mapping[str, float], given: Mapping[str, float | bool | str]
) -> None:
    """Raise a UsageError if the system has no such loss, no sum, or no such token argument."""
    if system is None:
        return
    for name in weights:
        if name in system.refused:
            raise UsageError(f"dialect {system.name}: {name}: {system.refused[name]}")
        if name in system.lacks:
            raise UsageError(f"dialect {system.name}: {system.system} has no {name}")
    asked = {"sum of losses"} if len(weights) > 1 else set()
    asked |= {n for n, plain in _TOKEN_DEFAULTS.items() if given.get(n, plain) != plain}
    for name in sorted(asked & set(system.refused)):
        raise UsageError(f"dialect {system.name}: {name}: {system.refused[name]}")


def _refuse(system: Dialect, loss: Loss, given: Mapping[str, float | bool | str]) -> None:
    """Raise a UsageError if an argument is not at its default, and the system has no other."""
    plain: dict[str, float | bool | str] = {p.name: p.default for p in loss.parameters}
    plain |= {"f_divergence": REVERSE_KL, **system.defaults.get(loss.name, {})}
    for name in sorted(name for name, value in given.items() if value != plain.get(name, False)):
        why = system.refused.get(f"{loss.name}.{name}", system.refused.get(name))
        if why is not None:
            raise UsageError(f"dialect {system.name}: {name} of {loss.name}: {why}")


def _no_such_argument(name: str, weights: Mapping[str, float]) -> None:
    for_losses = " and ".join(weights)
    takes = sorted({argument for each in weights for argument in EVERY_LOSS[each].takes})
    there = f"; it takes {', '.join(takes)}" if takes else "; it takes none"
    raise UsageError(
        f"arguments (--loss-arg): {for_losses} has no {name!r}{did_you_mean(name, takes)}{there}"
    )
