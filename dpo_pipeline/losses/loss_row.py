"""What a row of the loss catalogue says, and the check of a loss's arguments against it."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from numbers import Real
from typing import Literal

import polars as pl

from dpo_pipeline.arguments import as_float
from dpo_pipeline.columns import EXTRA_ROLES, LABEL, PROMPT_ID, RowOf
from dpo_pipeline.errors import UsageError
from dpo_pipeline.losses import batchwise


@dataclass(frozen=True, slots=True)
class Parameter:
    """A number that a loss takes, from `low` to `high`; ends of that range in `without` are out."""

    name: str
    default: float  # NaN if a loss does without
    _: KW_ONLY
    low: float = -math.inf
    high: float = math.inf
    without: tuple[float, ...] = ()
    meaning: str

    @property
    def shown(self) -> str:
        """The default, as tables say it."""
        return "none" if math.isnan(self.default) else f"{self.default:g}"

    @property
    def range(self) -> str:
        """The range, in words."""
        above = f"{'above' if self.low in self.without else 'at least'} {self.low:g}"
        below = f"{'below' if self.high in self.without else 'at most'} {self.high:g}"
        ends = [above] * math.isfinite(self.low) + [below] * math.isfinite(self.high)
        return " ".join(["a finite number", " and ".join(ends)]).rstrip()

    def checked(self, value: object, loss: str) -> float:
        """Return the value."""
        if value is self.default and math.isnan(self.default):
            return self.default
        if isinstance(value, Real) and not isinstance(value, bool):
            number = as_float(value)
            inside = self.low <= number <= self.high and number not in self.without
            if math.isfinite(number) and inside:
                return number
        raise UsageError(f"{self.name} of {loss} must be {self.range}, found {value!r}")


Choice = Literal["never", "optional", "always"]


@functools.cache
def _positional(function: Callable[..., pl.Expr]) -> tuple[str, ...]:
    parameters = inspect.signature(function).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """One row of the table.

    If `beta_moves_scale`, another beta gives another loss to the same rewards, so that the losses
    of two betas cannot be compared. `reward` makes, of the score and the tokens of a completion,
    and its keywords, the reward that is compared; None where that is beta times the score.
    """

    name: str
    function: Callable[..., pl.Expr]  # from `pairwise`, `batchwise` or `completions`
    formula: str  # the same in letters; z is the margin
    source: str
    parameters: tuple[Parameter, ...] = ()  # what it takes besides beta
    peers: Mapping[str, str] = field(default_factory=dict)  # system to the loss's name there
    reference: Choice = "optional"  # whether the reference is subtracted
    by_length: Choice = "never"  # whether log-probs are divided by the number of tokens
    f_divergence: bool = False  # whether the log-ratio can be that of another divergence
    positive_beta: bool = False  # whether it divides by beta
    beta_moves_scale: bool = False
    grows_as_margin: bool = False  # whether it is at most |margin| + 2 for any parameters
    reward: Callable[..., pl.Expr] | None = None
    row: RowOf = "pair"  # what it is computed of

    @property
    def is_listwise(self) -> bool:
        """Whether it is of all completions of a prompt."""
        return "prompt" in self.compares

    @property
    def compares(self) -> tuple[str, ...]:
        """What it compares: the names of its function's positional arguments."""
        return _positional(self.function)

    @property
    def extras(self) -> tuple[str, ...]:
        """The columns that it needs besides log-probs and counts."""
        if self.row == "completion":
            return (PROMPT_ID.name,) if self.is_listwise else (LABEL.name,)
        return tuple(role.name for role in EXTRA_ROLES if role.name in self.compares)

    @property
    def takes(self) -> tuple[str, ...]:
        """The names of its arguments besides beta."""
        return (
            *(parameter.name for parameter in self.parameters),
            *(["reference_free"] if self.reference == "optional" else []),
            *(["per_token"] if self.by_length == "optional" else []),
            *(["f_divergence", "f_alpha"] if self.f_divergence else []),
        )

    @property
    def takes_beta(self) -> bool:
        """Whether beta is among its function's keywords."""
        return "beta" in inspect.signature(self.function).parameters

    @property
    def is_of_batches(self) -> bool:
        """Whether it depends on the other pairs of a batch."""
        return self.function.__module__ == batchwise.__name__

    def needs(self, *, reference: bool, per_token: bool) -> str:
        """Return the columns that it needs, in words."""
        sides = "policy and reference" if reference else "policy"
        counts = per_token or any(name.endswith("tokens") for name in self.compares)
        parts = [f"{sides} log-probs", *["token counts"] * counts, *self.extras]
        parts += ["rank, score or label"] * self.is_listwise
        parts += ["kl_policy_logps, kl_ref_logps and a batch size, or kl"] * ("kl" in self.compares)
        return ", ".join([*parts, *["a batch size"] * self.is_of_batches])
