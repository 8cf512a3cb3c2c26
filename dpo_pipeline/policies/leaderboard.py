"""What `compare` of several policies returns, and its projections."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import polars as pl

from dpo_pipeline.columns import LOSS, POLICY_CHOSEN, POLICY_REJECTED, REWARD_MARGIN
from dpo_pipeline.comparison import Compared, withholding
from dpo_pipeline.defaults import TIES_DIFFER_FROM
from dpo_pipeline.invalid_report import Doubt
from dpo_pipeline.policies.curve import Curve
from dpo_pipeline.statistics import ManyPolicies, PolicyTest, counted, percent, share
from dpo_pipeline.tables import (
    Column,
    Figure,
    Limits,
    Name,
    Part,
    Sentence,
    Table,
    Tone,
    warned,
    whole,
)

LEADERBOARD_VERSION: Final = 1
"""Changes when a field of the document is removed or changes its meaning."""
_MEANS: Final = (LOSS, REWARD_MARGIN, POLICY_CHOSEN.name, POLICY_REJECTED.name)
_OF_TESTS: Final = ("difference", "difference_low", "difference_high", "p_adjusted")
_NUMBERS: Final = (*_OF_TESTS, "accuracy_low", "accuracy_high", "best_beta", "best_loss")
_FEW: Final = 3
"""Doubts that a policy below its reference raises if it was trained too far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """One of the policies."""

    label: str
    source: str  # where its pairs came from
    n_pairs: int  # rows read
    n_alone: int  # rows whose key no other policy has
    n_invalid: int  # common pairs that break a rule in it
    n_ties: int  # valid pairs with equal rewards
    n_valid: int  # valid pairs of all policies
    accuracy: float  # a tie counts half
    means: Mapping[str, float]  # loss, margin, the policy's log-probs, in nats
    losses: Mapping[float, float]  # beta to the loss, of the betas that were tried; may be empty
    doubts: tuple[Doubt, ...]  # what is surely wrong with its log-probs
    is_below: bool  # whether its mean log-probs are below the reference's, of both completions

    @property
    def doubt(self) -> Doubt | None:
        """The doubt that leaves it without a verdict; None without one."""
        all_ties = self.n_ties == self.n_valid
        return withholding(self.doubts, all_ties=all_ties, is_below=self.is_below)

    @property
    def best_beta(self) -> float | None:
        """The tried beta with the smallest loss; None if betas were not tried, or make no odds."""
        losses = self.losses
        if self.doubt is not None or len(set(losses.values())) < 2:  # noqa: PLR2004
            return None
        return min(losses, key=lambda beta: (losses[beta], beta))


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Leaderboard(Compared):
    """Several policies on the same pairs, the most accurate first.

    The attribute `level` is that of all intervals together: 1 - level is the chance of any false
    alarm among all tests, of an interval that misses, and that the best policy is not in
    `best_set`.

    Attributes:
        policies: The policies, as they were given.
        ranked: Places in `policies` of those whose log-probs are not surely wrong.
        baseline: Place in `policies` of the one that the others are tested against; None tests
            each two.
        found: Accuracies of those ranked (a tie counts half), intervals, tests, and the winner's
            optimism; None if fewer than two are ranked, or the baseline is not.
        curve: Figures over steps; None where policies are no steps.
        same: Policies whose log-probs are the same on all pairs, two labels each.
        not_looked_for: What the doubts could not tell, a sentence each.
    """

    policies: tuple[Policy, ...]
    ranked: tuple[int, ...]
    baseline: int | None
    found: ManyPolicies | None
    curve: Curve | None
    same: tuple[tuple[str, str], ...] = ()
    not_looked_for: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """What the policies are called."""
        return tuple(each.label for each in self.policies)

    @property
    def sources(self) -> tuple[str, ...]:
        """Where their pairs came from."""
        return tuple(each.source for each in self.policies)

    @property
    def name(self) -> str:
        """What errors call it."""
        return f"{len(self.policies)} policies"

    @property
    def gated(self) -> tuple[str, ...]:
        """Nothing: a mark is of two policies."""
        return ()

    @property
    def findings(self) -> tuple[str, ...]:
        """What is surely wrong, a sentence each."""
        alike: dict[tuple[str, str], list[tuple[str, Doubt]]] = {}
        for policy in self.policies:
            for doubt in policy.doubts:
                alike.setdefault((doubt.name, doubt.title), []).append((policy.label, doubt))
        doubts = [_named(found) for found in alike.values()]
        same = [
            f"{a} and {b} have the same log-probs on all {counted(self.n_valid, 'common pair')}: "
            "they are one policy; look whether one was scored or written twice"
            for a, b in self.same
        ]
        return (*filter(None, [self.incomparable]), *doubts, *same)

    @property
    def no_verdict(self) -> str | None:
        """Why nothing is decided; None if something is."""
        return None if self._ranking is not None else self.verdict

    @property
    def _ranking(self) -> ManyPolicies | None:
        return None if self.incomparable is not None else self.found

    @property
    def best_set(self) -> tuple[str, ...]:
        """The policies that may be the best: none of the others is shown to be above them.

        Empty if the policies cannot be compared.
        """
        found = self._ranking
        return () if found is None else tuple(self._label(i) for i in found.best_set)

    @property
    def tests(self) -> tuple[PolicyTest, ...]:
        """The tests of two policies each; none if the policies cannot be compared."""
        return () if self._ranking is None else self._ranking.tests

    def _label(self, i: int) -> str:
        return self.labels[self.ranked[i]]

    @property
    def winner(self) -> str | None:
        """The policy with the highest accuracy; None without a verdict."""
        return None if self._ranking is None else self._label(self._ranking.winner)

    @property
    def winner_accuracy(self) -> float | None:
        """The winner's accuracy less the luck of having been picked, as the bootstrap has it."""
        found = self._ranking
        return None if found is None else found.rates[found.winner] - found.optimism

    @property
    def withheld(self) -> tuple[Policy, ...]:
        """The policies without a verdict, as their log-probs are surely wrong."""
        return tuple(each for each in self.policies if each.doubt is not None)

    @property
    def verdict(self) -> str:
        """The result in a sentence."""
        if self.incomparable is not None:
            return f"no verdict: {self.incomparable}"
        names = ", ".join(each.label for each in self.withheld)
        wrong = f"the log-probs of {names} are surely wrong"
        if self.found is None:
            is_baseline = len(self.ranked) > 1
            return f"no verdict: {wrong}{', the baseline among them' if is_baseline else ''}"
        best, several = ", ".join(self.best_set), len(self.best_set)
        said = f"{best} is the best of {len(self.ranked)} policies {self.on_pairs}"
        if several > 1:
            said = f"{several} of {len(self.ranked)} may be the best {self.on_pairs}: {best}"
        return f"{said}; no verdict on {names}, whose log-probs are surely wrong" if names else said

    def to_frame(self) -> pl.DataFrame:
        """Return one row a policy, the most accurate first; those without a verdict last."""
        found = self._ranking
        order = sorted(
            range(len(self.policies)),
            key=lambda i: (i not in self.ranked, -self.policies[i].accuracy, i),
        )
        rows = [self._row(i, self.policies[i], found) for i in order]
        return pl.DataFrame(
            rows,
            infer_schema_length=None,
            schema_overrides={**dict.fromkeys(_NUMBERS, pl.Float64), "doubt": pl.String},
        )

    def _row(self, i: int, policy: Policy, found: ManyPolicies | None) -> dict[str, Any]:
        place = self.ranked.index(i) if found is not None and i in self.ranked else None
        low = high = None
        if found is not None and place is not None:
            low, high = found.intervals[place]
        return {
            "policy": policy.label,
            "accuracy": policy.accuracy,
            "accuracy_low": low,
            "accuracy_high": high,
            **{name: policy.means[name] for name in _MEANS},
            "best_beta": policy.best_beta,
            "best_loss": None if policy.best_beta is None else policy.losses[policy.best_beta],
            "n_ties": policy.n_ties,
            "n_pairs": policy.n_pairs,
            "n_alone": policy.n_alone,
            "n_invalid": policy.n_invalid,
            **self._difference(place, found),
            "may_be_best": None if place is None else policy.label in self.best_set,
            "doubt": None if policy.doubt is None else policy.doubt.title,
        }

    def _difference(self, place: int | None, found: ManyPolicies | None) -> dict[str, Any]:
        """Return how far a policy is above the baseline, or the winner."""
        if found is None or place is None:
            return dict.fromkeys(_OF_TESTS)
        than = found.winner if self.baseline is None else self.ranked.index(self.baseline)
        for test in found.tests:
            if {test.first, test.second} == {place, than}:
                sign = 1.0 if test.first == place else -1.0
                low, high = sorted((sign * test.low, sign * test.high))
                values = (sign * test.difference, low, high, test.p_value)
                return dict(zip(_OF_TESTS, values, strict=True))
        return dict.fromkeys(_OF_TESTS)

    def to_dict(self) -> dict[str, Any]:
        """Return the document that `schemas/leaderboard.schema.json` describes.

        `best_set` and the winner stand at its top.
        """
        found = self._ranking
        return {
            "best_set": list(self.best_set),
            "winner": self.winner,
            "winner_accuracy": self.winner_accuracy,
            "winner_optimism": None if found is None else found.optimism,
            "winner_accuracy_low": None if found is None else found.intervals[found.winner][0],
            "verdict": self.verdict,
            "incomparable": self.incomparable,
            "findings": list(self.findings),
            "not_looked_for": list(self.not_looked_for),
            **self.head(LEADERBOARD_VERSION),
            "level": self.level,
            "baseline": None if self.baseline is None else self.labels[self.baseline],
            "n_common": self.n_common,
            "n_valid": self.n_valid,
            "clusters": self.clusters,
            "n_clusters": self.n_clusters,
            "policies": [row | self._more(row["policy"]) for row in self.to_frame().to_dicts()],
            "tests": [
                {
                    "a": self._label(each.second),
                    "b": self._label(each.first),
                    "difference": each.difference,
                    "low": each.low,
                    "high": each.high,
                    "p_adjusted": each.p_value,
                }
                for each in self.tests
            ],
            "curve": None if self.curve is None else self.curve.to_dict(),
        }

    def _more(self, label: str) -> dict[str, Any]:
        policy = self.policies[self.labels.index(label)]
        losses = [{"beta": beta, "loss": loss} for beta, loss in policy.losses.items()]
        doubts = [
            {name: value for name, value in asdict(each).items() if name != "explains"}
            for each in policy.doubts
        ]
        return {"source": policy.source, "losses": losses, "doubts": doubts}

    def luck(self) -> str:
        """Return the winner's accuracy, and what is left of it without luck; empty without one."""
        found = self._ranking
        if found is None or self.winner_accuracy is None:
            return ""
        seen, low = found.rates[found.winner], found.intervals[found.winner][0]
        return (
            f"{self.winner} has {share(seen)}. Less the luck of being picked among "
            f"{len(self.ranked)}, that is {share(self.winner_accuracy)}. It is at least "
            f"{share(low)} with {percent(self.level)} confidence, all policies at once"
        )

    def notes(self) -> Iterator[str]:
        """Yield what is to be known of the figures, a sentence each."""
        yield from self.not_looked_for
        ties = max(each.n_ties for each in self.policies) / self.n_valid
        if ties >= TIES_DIFFER_FROM:
            yield f"a tie counts half; one policy ties on {share(ties)} of the pairs"
        betas = [each for each in self.policies if each.best_beta is not None]
        if betas:
            tried = list(betas[0].losses)
            ends = [each.label for each in betas if each.best_beta in {tried[0], tried[-1]}]
            yield (
                f"best beta: the one of {', '.join(f'{beta:g}' for beta in tried)} with the "
                "smallest loss on these same pairs, so that this loss is a little too small"
                + (f"; at an end of those tried for {_few(ends)}" if ends else "")
            )

    def to_parts(self) -> Iterator[Part]:
        """Yield which may be the best, what is doubtful, the leaderboard, and the curve."""
        tone: Tone = "good" if len(self.best_set) == 1 else "warning"
        more = (f"{self.luck()}.",) if self.luck() else ()
        tone = "bad" if self.no_verdict is not None else tone
        yield Sentence(text=self.verdict, tone=tone, more=more, leads=True)
        said = [text for text in self.findings if text != self.incomparable]
        yield from warned(said)
        yield from warned(list(self.notes()), "note")
        yield self._board()
        yield from self._pairs_table()
        if self.curve is not None:
            yield from self.curve.to_parts()

    @property
    def than(self) -> str | None:
        """The policy that differences are to: the baseline, or the winner."""
        return self.winner if self.baseline is None else self.labels[self.baseline]

    @property
    def method(self) -> str:
        """How intervals and p-values are made."""
        return (
            f"all intervals hold together, and p is adjusted for all tests: sign flips of "
            f"{self.clusters}, largest studentised difference, stepped down"
        )

    @property
    def method_of_best(self) -> str:
        """What the column `may be best` is from, whatever the baseline is."""
        return (
            "may be best: no other policy is shown to be above it, by one-sided tests of its "
            "differences to all others, from the same flips"
        )

    def _board(self) -> Table:
        frame, interval = self.to_frame(), f"{percent(self.level)} interval"
        has_betas = frame["best_beta"].null_count() < frame.height
        is_ranked = self._ranking is not None
        limits = [Column(interval, joins=True)] if is_ranked else []
        heads = [Column("policy"), Column("accuracy"), *limits, Column("loss"), Column("margin")]
        if has_betas:
            heads += [Column("best beta"), Column("loss at best beta", joins=True)]
        if is_ranked:
            heads += [Column(f"minus {self.than}"), *limits, Column("p"), Column("may be best")]
        rows = []
        for row in frame.iter_rows(named=True):
            ends = (
                None if row["accuracy_low"] is None else (row["accuracy_low"], row["accuracy_high"])
            )
            cells: list[Any] = [Name(row["policy"]), Figure(row["accuracy"], "share", ends)]
            if is_ranked:
                cells.append("" if ends is None else Limits(*ends, "share"))
            cells += [Figure(row[LOSS]), Figure(row[REWARD_MARGIN])]
            if has_betas:
                beta = row["best_beta"]
                cells += ["", ""] if beta is None else [f"{beta:g}", Figure(row["best_loss"])]
            if is_ranked:
                cells += _apart(row)
                may_be = {True: "yes", False: "no", None: "no verdict"}
                cells.append(may_be[row["may_be_best"]])
            rows.append(tuple(cells))
        note = f"{self.method}\n{self.method_of_best}" if is_ranked else ""
        return Table(columns=heads, rows=rows, title=self.title, note=note)

    def _pairs_table(self) -> Iterator[Table]:
        if all(each.n_pairs == self.n_common and not each.n_invalid for each in self.policies):
            return
        heads = (Column("policy"), Column("pairs of", wraps=True), Column("pairs"))
        columns = (*heads, Column("in no other"), Column("common, invalid"))
        rows = [
            (Name(p.label), whole(p.source), p.n_pairs, p.n_alone, p.n_invalid)
            for p in self.policies
        ]
        yield Table(columns=columns, rows=rows, title="pairs of each policy")


def _few(labels: list[str]) -> str:
    """Return a few labels, or their number."""
    return ", ".join(labels) if len(labels) <= _FEW else f"{len(labels)} policies"


def _named(found: list[tuple[str, Doubt]]) -> str:
    """Return a doubt of one policy or several, with the evidence of the first."""
    (first, doubt), *others = found
    if not others:
        return f"{first}: {doubt}"
    names = ", ".join(label for label, _ in found)
    return f"{names}: {doubt.title}: in {first}, {doubt.evidence}"


def _apart(row: Mapping[str, Any]) -> list[Any]:
    if row["difference"] is None:
        return ["", "", ""]
    ends = row["difference_low"], row["difference_high"]
    difference = Figure(row["difference"], "points", ends)
    return [difference, Limits(*ends, "points"), Figure(row["p_adjusted"], "p")]
