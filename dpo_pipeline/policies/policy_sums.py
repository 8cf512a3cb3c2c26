"""What is added up of common pairs for each policy, chunk by chunk in any order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from dpo_pipeline.columns import (
    COUNT_ROLES,
    LOGPS,
    LOSS,
    N_VALID,
    POLICY_CHOSEN,
    POLICY_REJECTED,
    PROMPT_ID,
    REF_CHOSEN,
    REF_REJECTED,
    REWARD_MARGIN,
)
from dpo_pipeline.comparison import (
    Buffers,
    ClusterSums,
    SideArrays,
    SideSums,
    Table,
    clusters_of,
    differing,
    hashes_of,
    scored_side,
)
from dpo_pipeline.defaults import BAGS, BETA_FACTORS, NEIGHBOURS_ROWS, SENSED_PAIRS
from dpo_pipeline.exact import QUANTA_PER_NAT, exact_sum
from dpo_pipeline.invalid_report import Doubt
from dpo_pipeline.losses import CheckedObjective, name_of_score, with_scores_of
from dpo_pipeline.policies.curve import ACCURACY, CHOSEN_DOWN, LOG_RATIO_SIZE
from dpo_pipeline.sources import KEY
from dpo_pipeline.statistics import counted
from dpo_pipeline.sums import (
    VALID,
    Sense,
    doubts_of,
    exact_sums,
    mixed_array,
    neighbours_of,
    whole_quanta,
)

Whole = NDArray[np.int64]
Numbers = NDArray[np.float64]

MEANS: Final = (LOSS, REWARD_MARGIN, POLICY_CHOSEN.name, POLICY_REJECTED.name)
"""What is averaged for each policy beside its accuracy."""
_REFERENCES: Final = (REF_CHOSEN.name, REF_REJECTED.name)


def other_betas(objective: CheckedObjective, max_logp: float) -> tuple[CheckedObjective, ...]:
    """Return the objective with the betas that are tried beside its own.

    None where losses of two betas cannot be compared, or may be too large to be summed.
    """
    if any(term.loss.beta_moves_scale for term in objective.terms):
        return ()
    made = (replace(objective, beta=objective.beta * each) for each in BETA_FACTORS)
    return tuple(each for each in made if not each.columns_to_check(max_logp))


class PolicySums:
    """Adds up common pairs: of each policy, by cluster, and over steps by cluster or bag."""

    def __init__(
        self,
        policies: Sequence[Table],
        objective: CheckedObjective,
        *,
        max_logp: float,
        n_rows: int | None,
        steps: Sequence[int],
    ) -> None:
        """Start without pairs; `steps` are the places of policies that have a learning curve."""
        self._policies, self._objective, self._steps = policies, objective, steps
        self._checked = objective.columns_to_check(max_logp)
        self._other_betas = other_betas(objective, max_logp)
        self._prompts = next((t for t in policies if PROMPT_ID.name in t.columns), None)
        self.n_common = self.n_valid = 0
        self.n_invalid = Counter[int]()
        self.betas = Counter[tuple[int, float]]()  # the sum of losses, by policy and beta
        self.clusters = ClusterSums()
        self.curve = ClusterSums(held=BAGS)
        self._differ = Counter[tuple[int, str]]()
        self._largest: dict[tuple[int, str], float] = {}
        self._prints = [0] * len(policies)  # of keys and log-probs
        self._neighbours: dict[int, pl.DataFrame] = {}
        buffers, held = Buffers(), SENSED_PAIRS // len(policies)
        self._sides = [
            SideSums(objective.needs, MEANS[:2], MEANS[:2], buffers, n_rows=n_rows, held=held)
            for _ in policies
        ]

    def see_neighbours(self, i: int, rows: pl.DataFrame) -> None:
        """Compare the first rows of a policy with their neighbours, in the order of its file.

        Nothing is done where the rows lack a log-prob: their order says nothing of another table.
        """
        needs = self._objective.needs
        columns = {name: self._policies[i].source_of(name) for name in needs.logps}
        lacks = any(name not in rows.columns for name in columns.values())
        if i in self._neighbours or lacks or not needs.reference:
            return
        valid, own = self._policies[i].valid, rows.lazy().head(NEIGHBOURS_ROWS)
        pairs = own.select(valid, **{name: pl.col(column) for name, column in columns.items()})
        self._neighbours[i] = neighbours_of(pairs, valid=pl.col(valid), needs=needs).collect()

    def _scored(self, table: Table, chunk: pl.DataFrame) -> pl.DataFrame:
        """Return the pairs scored, with the token counts that are there."""
        scored = scored_side(table, chunk, self._objective, self._checked)
        counts = (role.name for role in COUNT_ROLES if role.name not in scored.columns)
        named = {name: table.column(name) for name in counts}
        there = {n: pl.col(column) for n, column in named.items() if column in chunk.columns}
        return scored.hstack(chunk.select(**there))

    def add(self, chunk: pl.DataFrame) -> None:
        """Add pairs that all policies have."""
        chunk = chunk.rechunk()
        scored = [self._scored(table, chunk) for table in self._policies]
        valid = pl.Series([True]).new_from_index(0, chunk.height)
        for i, (table, each) in enumerate(zip(self._policies, scored, strict=True)):
            sound = chunk[table.valid] & each[VALID]
            if table.lender is not None:
                sound = sound & chunk[table.lender.valid]
            self.n_invalid[i] += int((~sound).sum())
            valid = valid & sound
        self.n_common += chunk.height
        n_pairs = chunk.height
        if not valid.all():
            chunk, scored = chunk.filter(valid), [each.filter(valid) for each in scored]
        self.n_valid += chunk.height
        self._compare_references(chunk)
        by_key = hashes_of(chunk[KEY])
        prompts = None
        if self._prompts is not None:
            prompts = chunk[self._prompts.column(PROMPT_ID.name)]
        hashes = clusters_of(prompts, by_key)
        sides = []
        for i, each in enumerate(scored):
            side = self._sides[i].add(each, by_key, n_pairs)
            bits = (side.of[role.name].view(np.uint64) for role in (POLICY_CHOSEN, POLICY_REJECTED))
            row = mixed_array(mixed_array(by_key ^ next(bits)) ^ next(bits))
            self._prints[i] = (self._prints[i] + int(row.sum())) % 2**64
            self._add_betas(i, each)
            sides.append(side)
        clusters, codes = self.clusters.coded(hashes, chunk.select())
        own = [_by_code(side.state, codes, clusters.height) for side in sides]
        sums = {f"{ACCURACY} {i}": each for i, each in enumerate(own)}
        self._add(self.clusters, clusters, codes, sums)
        if self._steps:
            clusters, codes = self.curve.coded(hashes, chunk.select())
            figures = [
                (f"{name} {i}", values)
                for i in self._steps
                for name, values in self._figures(sides[i], codes, clusters.height)
            ]
            self._add(self.curve, clusters, codes, dict(figures))

    @staticmethod
    def _add(into: ClusterSums, clusters: pl.DataFrame, codes: Whole, sums: dict[str, Any]) -> None:
        n = pl.Series(np.bincount(codes, minlength=clusters.height))
        into.add(clusters.hstack(pl.DataFrame({N_VALID: n, **sums})))

    def _figures(self, side: SideArrays, codes: Whole, n: int) -> Iterator[tuple[str, Any]]:
        """Yield the sums by cluster of what a learning curve shows: halves, counts, quanta."""
        yield ACCURACY, _by_code(side.state, codes, n)
        most = int(np.bincount(codes, minlength=1).max())
        means = {name: side.of[name] for name in (LOSS, *MEANS[2:])}
        if self._objective.needs.reference:
            chosen, rejected = (
                side.of[ours] - side.of[theirs]
                for ours, theirs in zip(LOGPS[:2], LOGPS[2:], strict=True)
            )
            yield CHOSEN_DOWN, _by_code(chosen < 0.0, codes, n)
            means[LOG_RATIO_SIZE] = (np.abs(chosen) + np.abs(rejected)) / 2.0
        for name, values in means.items():
            yield name, exact_sums(codes, n, whole_quanta(values), most)

    def _add_betas(self, i: int, scored: pl.DataFrame) -> None:
        """Add up the losses of the other betas."""
        tried = self._other_betas
        if not tried or not scored.height:
            return
        losses = with_scores_of(scored.lazy(), tried)
        sums = losses.select(
            exact_sum(pl.col(name_of_score(LOSS, each, tried))).alias(f"{each.beta!r}")
            for each in tried
        )
        for each, total in zip(tried, sums.collect().row(0), strict=True):
            self.betas[i, each.beta] += int(total)

    def _compare_references(self, chunk: pl.DataFrame) -> None:
        """Count pairs on which a policy knows another reference than the first that has one."""
        for name in _REFERENCES:
            if name not in self._objective.needs.logps:
                continue
            own = list(enumerate(self._policies))
            first, *others = [(i, t) for i, t in own if name in t.columns] or own[:1]
            for i, table in others:
                n, largest = differing(chunk, name, (first[1], table))
                self._differ[i, name] += n
                key = (i, name)
                self._largest[key] = max(largest or 0.0, self._largest.get(key, 0.0))

    def incomparable(self, labels: Sequence[str]) -> str | None:
        """Return a sentence if a policy was scored against another reference."""
        for (i, name), n in self._differ.items():
            if n:
                largest = self._largest[i, name]
                return (
                    f"{labels[i]} was scored against another reference ({name} differs on {n:,} of "
                    f"{counted(self.n_valid, 'pair')}, by up to {largest:.4g} nats), so the "
                    "policies cannot be compared"
                )
        return None

    def totals(self) -> list[dict[str, int]]:
        """Return the sums of each policy."""
        return [side.totals().row(0, named=True) for side in self._sides]

    def doubts(self, i: int, totals: Mapping[str, int]) -> tuple[Doubt, ...]:
        """Return what is surely wrong with a policy, as `evaluate` looks for it."""
        near = self._neighbours.get(i)
        row = {**totals, **({} if near is None else near.row(0, named=True))}
        binding = self._policies[i].binding
        sense = Sense.of_sums(row)
        return doubts_of(sense, max_logp=binding.max_logp, n_ties=totals["n_ties"])

    def same(self) -> Iterator[tuple[int, int]]:
        """Yield policies whose log-probs are the same on all pairs: the first such, and another."""
        for i, each in enumerate(self._prints):
            first = self._prints.index(each)
            if first < i and self.n_valid:
                yield first, i

    @property
    def without_neighbours(self) -> tuple[int, ...]:
        """Policies whose rows were not compared with their neighbours."""
        if not self._objective.needs.reference:
            return ()
        return tuple(i for i in range(len(self._policies)) if i not in self._neighbours)


def mean_of(total: int, n: int) -> float:
    """Return a mean in nats from a sum in quanta."""
    return total / (QUANTA_PER_NAT * n)


def _by_code(values: NDArray[np.generic], codes: Whole, n: int) -> Whole:
    found = np.zeros(n, dtype=np.int64)
    np.add.at(found, codes, values.astype(np.int64))
    return found
