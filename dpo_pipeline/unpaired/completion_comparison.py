"""Two policies on the same completions: what is added up of them, and what `compare` returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any, Final

import polars as pl

from dpo_pipeline.columns import (
    LABEL,
    LOGRATIO,
    LOSS,
    N_CHOSEN,
    N_PAIRS,
    N_VALID,
    POLICY,
    REWARD,
)
from dpo_pipeline.losses import CheckedObjective
from dpo_pipeline.plan import Origin
from dpo_pipeline.sources import KEY
from dpo_pipeline.statistics import (
    Estimate,
    area_difference,
    between,
    cluster_hashes,
    counted,
    hashed,
    heads_of_two,
    limit_columns,
    p_equation,
    percent,
    quoted_two,
)
from dpo_pipeline.sums import BIN, CLUSTER, VALID, merge
from dpo_pipeline.tables import (
    Column,
    Figure,
    Limits,
    Part,
    Printable,
    Sentence,
    Table,
    warned,
    whole,
)
from dpo_pipeline.unpaired.areas import DOWN, UP, Placements, counts_of_bins, reward_bin
from dpo_pipeline.unpaired.cluster_means import BEFORE, ClusterMeans
from dpo_pipeline.unpaired.completion_evaluation import AUC
from dpo_pipeline.unpaired.sums_of_completions import CompletionSummary, completion_sums

_VERSION: Final = 1
COMPARED_COMPLETIONS: Final = (AUC, "loss", "reward_margin", "chosen_reward", "rejected_reward")
"""The figures of completions that are compared."""
PROMPT: Final = "__dpo_pipeline_prompt"
"""The column of prompts beside common pairs or completions."""


class GatheredCompletions:
    """Adds up completions that are valid on both sides, in any order."""

    def __init__(self, objective: CheckedObjective) -> None:
        """Start without completions."""
        self._objective = objective
        self._sums: dict[str, pl.DataFrame] = {}
        self._bins: dict[str, pl.DataFrame] = {}
        self._means = ClusterMeans()
        self.n_subsets = self.n_valid = self.n_same = self._n_other = 0
        self.is_by_prompt = False

    def add(
        self,
        shared: pl.DataFrame,
        a: pl.DataFrame,
        b: pl.DataFrame,
        n_pairs: int,
        ends: object = None,
    ) -> None:
        """Add completions in the same order; `shared` has their keys, and prompts if known."""
        del ends
        self.n_valid += a.height
        self._n_other += int((a[LABEL.name] != b[LABEL.name]).sum())
        self.n_same += int((a[POLICY.name] == b[POLICY.name]).sum())
        for side, scored in (("a", a), ("b", b)):
            rows = scored.lazy().with_columns(pl.lit(value=True).alias(VALID))
            sums = rows.select(
                pl.lit(n_pairs, pl.Int64).alias(N_PAIRS),
                pl.len().cast(pl.Int64).alias(N_VALID),
                *completion_sums((self._objective,)),
            )
            bins = rows.group_by(reward_bin(self._objective).alias(BIN)).agg(
                pl.len().cast(pl.Int64).alias(N_PAIRS),
                pl.col(LABEL.name).sum().cast(pl.Int64).alias(N_CHOSEN),
            )
            for held, new, keys in ((self._sums, sums, ()), (self._bins, bins, (BIN,))):
                table = new.collect()
                held[side] = merge([held[side], table], keys) if side in held else table
        self.is_by_prompt = PROMPT in shared.columns
        clusters = clusters_of(shared).alias(CLUSTER)
        before = {f"{name}{BEFORE}": a[name] for name in (LOSS, REWARD)}
        self._means.add(b.select(LABEL.name, LOSS, REWARD).with_columns(clusters, **before))

    def finish(self) -> GatheredCompletions:
        """Return itself: the tables are in it."""
        return self

    def summary(self, side: str) -> CompletionSummary:
        """Return the figures of a side."""
        return CompletionSummary.of(self._sums[side], (self._objective,))

    def counts(self) -> dict[str, pl.DataFrame]:
        """Return the rewards of each side by bin."""
        return {side: counts_of_bins(bins) for side, bins in self._bins.items()}

    @property
    def n_clusters(self) -> int:
        """Prompts, or bags of them if they are many; completions without a prompt stand alone."""
        return self._means.n_clusters

    def differences(
        self, places: Placements, level: float, *, is_tested: bool
    ) -> dict[str, CompletionDifference]:
        """Return the figures of both sides with their differences; some completion must be valid.

        A figure of one label is left out where no completion has it, and all are where the sides
        have other labels.
        """
        if self._n_other:
            return {}
        sides = [self.summary(side) for side in "ab"]
        areas = [places.area(side, level) for side in "ab"]
        found: dict[str, tuple[Estimate, float | None] | None] = dict(self._means.tested(level))
        if areas[0] is not None:
            at = places.clusters()
            above, below = (at[f"{side}_b"] - at[f"{side}_a"] for side in ("above", "below"))
            found[AUC] = area_difference(above, below, at[UP], at[DOWN], level)
        return {
            name: CompletionDifference(
                a=_value(areas[0]) if name == AUC else getattr(sides[0], name),
                b=_value(areas[1]) if name == AUC else getattr(sides[1], name),
                estimate=pair[0],
                p_value=pair[1] if is_tested else None,
            )
            for name in COMPARED_COMPLETIONS
            if (pair := found.get(name)) is not None
        }


class PlacedCompletions:
    """Adds up, in a second reading, where rewards stand among those of the other label."""

    def __init__(self, gathered: GatheredCompletions, objective: CheckedObjective) -> None:
        """Start without completions."""
        self.places = Placements(gathered.counts())
        self._bin = reward_bin(objective)
        self.n_subsets = self.n_valid = 0

    def add(
        self,
        shared: pl.DataFrame,
        a: pl.DataFrame,
        b: pl.DataFrame,
        n_pairs: int,
        ends: object = None,
    ) -> None:
        """Add completions in the same order."""
        del n_pairs, ends
        self.n_valid += a.height
        bins = [each.select(self._bin.alias(LOGRATIO))[LOGRATIO] for each in (a, b)]
        rows = a.select(LABEL.name).with_columns(clusters_of(shared).alias(CLUSTER))
        self.places.add(rows.with_columns(bins[0].alias("a"), bins[1].alias("b")))

    def finish(self) -> Placements:
        """Return the places."""
        return self.places


def clusters_of(shared: pl.DataFrame) -> pl.Series:
    """Return the cluster of each completion: its prompt, or itself without one."""
    prompts = shared[PROMPT] if PROMPT in shared.columns else None
    return cluster_hashes(prompts, hashed(shared[KEY]))


def _value(estimate: Estimate | None) -> float:
    return float("nan") if estimate is None else estimate.value


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionDifference:
    """One figure of both policies over the same completions, and how far they differ."""

    a: float
    b: float
    estimate: Estimate  # B minus A, with its interval
    p_value: float | None  # two-sided, of no difference; None without a spread, or a verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionSide:
    """One of the two policies."""

    source: str
    name: str  # what the policy is called; empty if nothing says
    n_completions: int  # rows read
    n_alone: int  # rows whose key the other side does not have
    n_invalid: int  # common completions that break a rule on this side
    summary: CompletionSummary  # over the common completions that are valid on both sides


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class CompletionComparison(Printable):
    """Two policies on the same completions, for an unpaired loss. Differences are B minus A.

    Attributes:
        on: The column of keys by which completions were joined.
        objective: The loss with its parameters, the same for both.
        level: Confidence level of all intervals.
        a: The side that B is compared with.
        b: The side that is compared with A.
        n_common: Completions with a key on both sides.
        n_valid: Those that keep every rule on both sides; all figures are over them.
        n_clusters: How many prompts were taken as independent, or bags of many prompts, or
            completions.
        is_by_prompt: Whether clusters are prompts.
        differences: `auc`, `loss`, `reward_margin`, `chosen_reward`, `rejected_reward`: those that
            there are.
        findings: What makes the comparison doubtful, a sentence each.
        incomparable: The finding that leaves nothing to compare; None without one.
        origin: The command and the fingerprint of the inputs. Not in the document.
    """

    on: str
    objective: CheckedObjective
    level: float
    a: CompletionSide
    b: CompletionSide
    n_common: int
    n_valid: int
    n_clusters: int
    is_by_prompt: bool
    differences: Mapping[str, CompletionDifference]
    findings: tuple[str, ...]
    incomparable: str | None
    origin: Origin | None = None

    @property
    def name(self) -> str:
        """What errors call it."""
        return f"{self.b.source} against {self.a.source}"

    @property
    def sources(self) -> tuple[str, ...]:
        """Both sides."""
        return (self.a.source, self.b.source)

    @property
    def gated(self) -> tuple[str, ...]:
        """The figures whose differences a gate can have a mark for."""
        return tuple(self.differences)

    @property
    def no_verdict(self) -> str | None:
        """Why the figures decide nothing; None if they do, or show no difference."""
        return None if self._decisive is not None else self.verdict

    def figure(self, name: str) -> tuple[float, tuple[float, float] | None]:
        """Return a difference, B - A, and its interval."""
        estimate = self.differences[name].estimate
        ends = estimate.interval
        return estimate.value, None if ends is None else (ends.low, ends.high)

    @property
    def better(self) -> str | None:
        """The side that is shown to order the labels better, by the AUC alone; None if none is."""
        found = self._decisive
        if found is None or found.p_value is None or found.p_value >= 1.0 - self.level:
            return None
        return "b" if found.estimate.value > 0.0 else "a"

    @property
    def _decisive(self) -> CompletionDifference | None:
        found = self.differences.get(AUC)
        is_tested = found is not None and found.p_value is not None
        return found if is_tested and self.incomparable is None else None

    @property
    def verdict(self) -> str:
        """The result in a sentence."""
        if self.incomparable is not None:
            return f"no verdict: {self.incomparable}"
        on = f"on {counted(self.n_valid, 'common completion')}"
        if self.is_by_prompt:
            on += f" in {counted(self.n_clusters, 'prompt')}"
        found, written = self._decisive, "{:+.4f}".format
        if found is None or found.p_value is None:
            return f"no difference in AUC can be tested {on}"
        ends, value = found.estimate.interval, written(found.estimate.value)
        limits = (
            "" if ends is None else f" ({percent(self.level)} interval {between(ends, written)})"
        )
        facts = f"{value}{limits}, {p_equation(found.p_value)}, {on}"
        a, b = quoted_two(self.a.name, self.b.name)
        if self.better is None:
            return f"no difference in AUC shown: {b} minus {a} is {facts}"
        word = "better" if self.better == "b" else "worse"
        return f"{b} tells desirable completions from undesirable ones {word} than {a}: AUC {facts}"

    @property
    def heads(self) -> tuple[str, str]:
        """What heads of tables call the policies: `A: base`."""
        return heads_of_two(self.a.name, self.b.name)

    @property
    def clusters(self) -> str:
        """What intervals and p come from: `100 prompts`."""
        return counted(self.n_clusters, "prompt" if self.is_by_prompt else "completion")

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        return {
            "document_version": _VERSION,
            "dpo_pipeline": version("dpo_pipeline"),
            "row": "completion",
            "on": self.on,
            "loss": str(self.objective),
            "beta": self.objective.beta,
            "objective": self.objective.to_dict(),
            "level": self.level,
            "verdict": self.verdict,
            "better": self.better,
            "a": asdict(self.a),
            "b": asdict(self.b),
            "n_common": self.n_common,
            "n_valid": self.n_valid,
            "n_clusters": self.n_clusters,
            "is_by_prompt": self.is_by_prompt,
            "differences": {name: asdict(each) for name, each in self.differences.items()},
            "findings": list(self.findings),
            "incomparable": self.incomparable,
        }

    def to_frame(self) -> pl.DataFrame:
        """Return one row a figure."""
        numbers = ("a", "b", "difference", "difference_low", "difference_high", "p_value")
        rows = [
            {
                "figure": name,
                "a": each.a,
                "b": each.b,
                "difference": each.estimate.value,
                **limit_columns("difference", each.estimate.interval),
                "p_value": each.p_value,
            }
            for name, each in self.differences.items()
        ]
        schema = {"figure": pl.String, **dict.fromkeys(numbers, pl.Float64)}
        return pl.DataFrame(rows, schema=schema)

    def to_parts(self) -> Iterator[Part]:
        """Yield the verdict, what makes it doubtful, and the figures."""
        yield Sentence(text=self.verdict, tone="bad" if self.no_verdict else "warning", leads=True)
        yield from warned([each for each in self.findings if each != self.incomparable])
        rows: list[tuple[Any, ...]] = [
            (head, whole(side.source), side.n_completions, side.n_alone, side.n_invalid)
            for head, side in zip(self.heads, (self.a, self.b), strict=True)
        ]
        heads = ("side", "completions of", "completions", "there alone", "invalid")
        yield Table(columns=tuple(map(Column, heads)), rows=rows)
        rows = []
        for name, each in self.differences.items():
            ends = each.estimate.interval
            limits = "" if ends is None else Limits(ends.low, ends.high)
            cells = (Figure(each.a), Figure(each.b), Figure(each.estimate.value), limits)
            rows.append((name, *cells, Figure(each.p_value, "p")))
        named = ("figure", *self.heads, "B minus A", f"{percent(self.level)} interval", "p")
        n_invalid = self.n_common - self.n_valid
        title = (
            f"{counted(self.n_common, 'common completion')} by {self.on}, {n_invalid:,} invalid; "
            f"{self.objective} loss, beta {self.objective.beta:g}"
        )
        note = f"intervals and p from {self.clusters}; p: two-sided, of no difference"
        yield Table(columns=tuple(map(Column, named)), rows=rows, title=title, note=note)
