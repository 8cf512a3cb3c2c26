"""What comparisons of two policies and of several have in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final

from dpo_pipeline.columns import LOGPS
from dpo_pipeline.evaluation import Reported
from dpo_pipeline.invalid_report import Doubt
from dpo_pipeline.losses import CheckedObjective
from dpo_pipeline.plan import Origin
from dpo_pipeline.statistics import counted

_UNMOVED: Final = "unmoved"
_OF_TRAINING: Final = frozenset({"lower", "some_lower", "size"})


def withholding(doubts: Iterable[Doubt], *, all_ties: bool, is_below: bool) -> Doubt | None:
    """Return the doubt that leaves a policy without a verdict; None without one.

    A policy that is the reference itself has ties alone, and may be compared; so may one that was
    trained too far.
    """
    known = {*(_OF_TRAINING if is_below else ())} | ({_UNMOVED} if all_ties else set())
    return next((each for each in doubts if each.is_decisive and each.name not in known), None)


def is_below_reference(totals: Mapping[str, int]) -> bool:
    """Return whether the policy's mean log-probs are below those of the reference."""
    sums = [totals.get(f"sum_{name}") for name in LOGPS]
    return all(
        theirs is not None and ours is not None and ours < theirs
        for ours, theirs in zip(sums[:2], sums[2:], strict=True)
    )


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Compared(Reported):
    """Policies on the pairs that all of them have.

    Attributes:
        on: The column of keys by which pairs were joined.
        objective: The loss with its parameters, the same for all.
        level: Confidence level of all intervals; a difference is shown if its p-value is below
            1 - level.
        n_common: Pairs that all policies have.
        n_valid: Those that keep every rule in all of them; all figures are over them.
        clusters: What was taken as independent, in words.
        n_clusters: How many of them; None where they were too many to be counted.
        incomparable: The finding that leaves nothing to compare: other references, or log-probs
            that are surely wrong. None without one.
        origin: The command and the fingerprint of the inputs. Not in the document.
    """

    on: str
    objective: CheckedObjective
    level: float
    n_common: int
    n_valid: int
    clusters: str
    n_clusters: int | None
    incomparable: str | None
    origin: Origin | None = None

    def head(self, document_version: int) -> dict[str, Any]:
        """Return what begins the document: how it was made."""
        return {
            "document_version": document_version,
            "dpo_pipeline": version("dpo_pipeline"),
            "on": self.on,
            "loss": str(self.objective),
            "beta": self.objective.beta,
            "objective": self.objective.to_dict(),
        }

    @property
    def title(self) -> str:
        """The title of its table."""
        return (
            f"{counted(self.n_common, 'common pair')} by {self.on}, "
            f"{self.n_common - self.n_valid:,} invalid; {self.objective} loss, "
            f"beta {self.objective.beta:g}"
        )

    @property
    def on_pairs(self) -> str:
        """The pairs, as a verdict names them."""
        prompts = ""
        if self.n_clusters is not None and "prompt" in self.clusters:
            prompts = f" in {counted(self.n_clusters, 'prompt')}"
        return f"on {counted(self.n_valid, 'common pair')}{prompts}"
