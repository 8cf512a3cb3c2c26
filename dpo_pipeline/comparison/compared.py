"""What comparisons of two policies and of several have in common."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from dpo_pipeline.evaluation import Reported
from dpo_pipeline.losses import CheckedObjective
from dpo_pipeline.plan import Origin
from dpo_pipeline.statistics import counted


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
        incomparable: The finding that leaves nothing to compare; None without one.
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
