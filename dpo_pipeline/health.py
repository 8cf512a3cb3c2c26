"""Warnings for data that keeps every rule and is surely wrong, from figures of the whole run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from dpo_pipeline.columns import LOGPS, N_VALID
from dpo_pipeline.defaults import AVERAGED_LOGP_FLOOR

N_UNMOVED: Final = "n_unmoved"
MAX_TOKENS: Final = "max_tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What the warnings are made from, over the valid pairs.

    Attributes:
        n_valid: Valid pairs.
        n_unmoved: Those whose policy and reference log-probs are equal on both sides.
        lowest: Smallest value of each log-prob column, in nats.
        highest: Largest value of each log-prob column, in nats.
        max_tokens: Largest token count, if token counts are there.
    """

    n_valid: int
    n_unmoved: int
    lowest: Mapping[str, float]
    highest: Mapping[str, float]
    max_tokens: int | None

    @classmethod
    def of_sums(cls, row: Mapping[str, Any]) -> Self:
        """Make it from merged partial sums of all pairs."""
        return cls(
            n_valid=row[N_VALID],
            n_unmoved=row[N_UNMOVED],
            lowest={name: row[f"min_{name}"] for name in LOGPS if f"min_{name}" in row},
            highest={name: row[f"max_{name}"] for name in LOGPS if f"max_{name}" in row},
            max_tokens=row.get(MAX_TOKENS),
        )

    def warnings(self) -> Iterator[str]:
        """Yield a sentence for each thing that is surely wrong."""
        if self.n_valid == 0:
            return
        if self.n_unmoved == self.n_valid:
            yield (
                f"policy and reference log-probs are equal on all {self.n_valid:,} valid pairs: "
                "every reward is 0; was the same model scored twice?"
            )
        lowest = min(self.lowest.values())
        few_tokens = self.max_tokens is not None and self.max_tokens <= -AVERAGED_LOGP_FLOOR
        if lowest > AVERAGED_LOGP_FLOOR and not few_tokens:
            yield (
                f"no log-prob is below {AVERAGED_LOGP_FLOOR:g} nats (the lowest is {lowest:.4g}): "
                "they look averaged over tokens, and the DPO loss takes sums"
            )
        if self.n_valid > 1:
            for name in self.lowest:
                if self.lowest[name] == self.highest[name]:
                    yield (
                        f"{name} is {self.lowest[name]:.6g} on all {self.n_valid:,} valid pairs: "
                        "a constant column is no model's output"
                    )
