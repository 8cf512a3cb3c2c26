"""What `compare` of several policies returns, and its projections."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final

import polars as pl

from dpo_pipeline.columns import LOSS, POLICY_CHOSEN, POLICY_REJECTED, REWARD_MARGIN
from dpo_pipeline.defaults import TIES_DIFFER_FROM
from dpo_pipeline.evaluation import Reported
from dpo_pipeline.losses import CheckedObjective
from dpo_pipeline.plan import Origin
from dpo_pipeline.statistics import ManyPolicies, PolicyTest, counted, percent
from dpo_pipeline.tables import Column, Figure, Limits, Name, Part, Sentence, Table, Tone

LEADERBOARD_VERSION: Final = 1
NOT_LOOKED_FOR: Final = (
    "shifted, exchanged or copied log-probs of many policies are not looked for: `dpo-pipeline "
    "check` each file, or compare two"
)
"""Changes when a field of the document is removed or changes its meaning."""
_OF_TESTS: Final = ("difference", "difference_low", "difference_high", "p_adjusted")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Leaderboard(Reported):
    """Several policies on the same pairs, the most accurate first.

    Attributes:
        labels: What the policies are called, as they were given.
        sources: Where their pairs came from.
        on: The column of keys by which pairs were joined.
        objective: The loss with its parameters, one for all.
        level: 1 - level is the chance of any false alarm among all tests, of an interval that
            misses, and that the best policy is not in `best_set`.
        baseline: Place in `labels` of the policy that the others are tested against; None tests
            each two.
        n_common: Pairs that all policies have.
        n_valid: Those that keep every rule in all of them; all figures are over them.
        n_clusters: Prompts, or pairs without prompts, that were taken as independent; None where
            they were too many to be counted.
        is_by_prompt: Whether clusters are prompts.
        found: Accuracies (a tie counts half), intervals, tests, and the winner's optimism.
        means: Mean loss, margin and log-probs of each policy, in nats.
        n_ties: Pairs with equal rewards, of each policy.
        incomparable: The sentence that leaves nothing to compare; None without one.
        origin: The command and the fingerprint of the inputs. Not in the document.
    """

    labels: tuple[str, ...]
    sources: tuple[str, ...]
    on: str
    objective: CheckedObjective
    level: float
    baseline: int | None
    n_common: int
    n_valid: int
    n_clusters: int | None
    is_by_prompt: bool
    found: ManyPolicies
    means: tuple[Mapping[str, float], ...]
    n_ties: tuple[int, ...]
    incomparable: str | None = None
    origin: Origin | None = None

    @property
    def name(self) -> str:
        """What errors call it."""
        return f"{len(self.labels)} policies"

    @property
    def gated(self) -> tuple[str, ...]:
        """Nothing: a mark is of two policies."""
        return ()

    @property
    def best_set(self) -> tuple[str, ...]:
        """The policies that may be the best: none of the others is shown to be above them.

        Empty if the policies cannot be compared.
        """
        if self.incomparable is not None:
            return ()
        return tuple(self.labels[i] for i in self.found.best_set)

    @property
    def tests(self) -> tuple[PolicyTest, ...]:
        """The tests of two policies each; none if the policies cannot be compared."""
        return () if self.incomparable is not None else self.found.tests

    @property
    def winner(self) -> str:
        """The policy with the highest accuracy."""
        return self.labels[self.found.winner]

    @property
    def winner_accuracy(self) -> float:
        """The winner's accuracy less the luck of having been picked, as the bootstrap has it."""
        return self.found.rates[self.found.winner] - self.found.optimism

    @property
    def verdict(self) -> str:
        """The result in a sentence."""
        if self.incomparable is not None:
            return f"no verdict: {self.incomparable}"
        on = f"on {counted(self.n_valid, 'common pair')}"
        if len(self.best_set) == 1:
            return f"{self.winner} is the best of {len(self.labels)} policies {on}"
        listed = ", ".join(self.best_set)
        return f"{len(self.best_set)} of {len(self.labels)} may be the best {on}: {listed}"

    def to_frame(self) -> pl.DataFrame:
        """Return one row a policy, the most accurate first."""
        found = self.found
        tests = {(each.first, each.second): each for each in self.tests}
        than = found.winner if self.baseline is None else self.baseline
        rows = []
        for i in sorted(range(len(self.labels)), key=lambda i: (-found.rates[i], i)):
            test, sign = tests.get((i, than)), 1.0
            if test is None and (than, i) in tests:
                test, sign = tests[than, i], -1.0
            low = high = None
            if test is not None:
                low, high = sorted((sign * test.low, sign * test.high))
            rows.append(
                {
                    "policy": self.labels[i],
                    "accuracy": found.rates[i],
                    "accuracy_low": found.intervals[i][0],
                    "accuracy_high": found.intervals[i][1],
                    "loss": self.means[i][LOSS],
                    "reward_margin": self.means[i][REWARD_MARGIN],
                    "policy_chosen_logps": self.means[i][POLICY_CHOSEN.name],
                    "policy_rejected_logps": self.means[i][POLICY_REJECTED.name],
                    "n_ties": self.n_ties[i],
                    "difference": None if test is None else sign * test.difference,
                    "difference_low": low,
                    "difference_high": high,
                    "p_adjusted": None if test is None else test.p_value,
                    "may_be_best": self.labels[i] in self.best_set,
                }
            )
        numbers = dict.fromkeys(_OF_TESTS, pl.Float64)
        return pl.DataFrame(rows, infer_schema_length=None, schema_overrides=numbers)

    def to_dict(self) -> dict[str, Any]:
        """Return the document; `best_set` and the winner stand at its top."""
        first = self.found.intervals[self.found.winner]
        return {
            "best_set": list(self.best_set),
            "winner": self.winner,
            "winner_accuracy": self.winner_accuracy,
            "winner_optimism": self.found.optimism,
            "winner_accuracy_low": first[0],
            "verdict": self.verdict,
            "incomparable": self.incomparable,
            "not_looked_for": NOT_LOOKED_FOR,
            "document_version": LEADERBOARD_VERSION,
            "dpo_pipeline": version("dpo_pipeline"),
            "on": self.on,
            "loss": str(self.objective),
            "beta": self.objective.beta,
            "objective": self.objective.to_dict(),
            "level": self.level,
            "baseline": None if self.baseline is None else self.labels[self.baseline],
            "n_common": self.n_common,
            "n_valid": self.n_valid,
            "n_clusters": self.n_clusters,
            "policies": self.to_frame().to_dicts(),
            "tests": [
                {
                    "a": self.labels[each.second],
                    "b": self.labels[each.first],
                    "difference": each.difference,
                    "low": each.low,
                    "high": each.high,
                    "p_adjusted": each.p_value,
                }
                for each in self.tests
            ],
        }

    def to_parts(self) -> Iterator[Part]:
        """Yield which may be the best, the winner without its luck, and the leaderboard."""
        found = self.found
        i, is_sure = found.winner, len(self.best_set) == 1
        luck = (
            f"{self.winner} has {percent(round(found.rates[i], 4))}; less the luck of being picked "
            f"among {len(self.labels)}, {percent(round(self.winner_accuracy, 4))}, and surely "
            f"{percent(round(found.intervals[i][0], 4))} or more."
        )
        if self.incomparable is not None:
            yield Sentence(text=self.verdict, tone="bad", leads=True)
        else:
            tone: Tone = "good" if is_sure else "warning"
            yield Sentence(text=self.verdict, tone=tone, more=(luck,), leads=True)
        yield Sentence(text=NOT_LOOKED_FOR, label="note", tone="note")
        ties = max(self.n_ties) / self.n_valid
        if ties >= TIES_DIFFER_FROM:
            yield Sentence(text=f"a tie counts half; one policy ties on {ties:.1%} of the pairs")
        than = self.winner if self.baseline is None else self.labels[self.baseline]
        interval = f"{percent(self.level)} interval"
        rows = []
        for row in self.to_frame().iter_rows(named=True):
            ends = (row["accuracy_low"], row["accuracy_high"])
            apart = row["difference"], (row["difference_low"], row["difference_high"])
            rows.append(
                (
                    Name(row["policy"]),
                    Figure(row["accuracy"], "share", ends),
                    Limits(*ends, "share"),
                    Figure(row["loss"]),
                    Figure(row["reward_margin"]),
                    "" if apart[0] is None else Figure(apart[0], "points", apart[1]),
                    "" if apart[0] is None else Limits(*apart[1], "points"),
                    "" if apart[0] is None else Figure(row["p_adjusted"], "p"),
                    "yes" if row["may_be_best"] else "no",
                )
            )
        heads = ("policy", "accuracy", interval, "loss", "margin", f"less {than}", interval)
        unit = "prompt" if self.is_by_prompt else "pair"
        many = "many" if self.n_clusters is None else f"{self.n_clusters:,}"
        yield Table(
            columns=tuple(map(Column, (*heads, "p", "may be best"))),
            rows=rows,
            title=f"{counted(self.n_common, 'common pair')} by {self.on}, "
            f"{self.n_common - self.n_valid:,} invalid; {self.objective} loss, "
            f"beta {self.objective.beta:g}",
            note=f"all intervals hold together, and p is adjusted for all tests: sign flips of "
            f"{many} {unit}s, largest studentised difference, stepped down",
        )
