"""`compare` of several policies: opened, read side by side or joined, and ranked."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from dpo_pipeline.arguments import given
from dpo_pipeline.columns import COUNT_ROLES, N_VALID, PROMPT_ID
from dpo_pipeline.comparison import (
    Table,
    bound_tables,
    clusters_in_words,
    is_below_reference,
    key_asked,
    lacking,
    refuse_options,
    wanted_columns,
)
from dpo_pipeline.contract import why_refused
from dpo_pipeline.defaults import ROWS_IN_STEP, STATISTICS_ROWS
from dpo_pipeline.engine import Watch
from dpo_pipeline.errors import ContractError, DataWarning, JoinError, UsageError
from dpo_pipeline.evaluation import Documents, Groups, check_report, inputs_of
from dpo_pipeline.losses import CheckedObjective
from dpo_pipeline.options import Pairs, StatisticsOptions, Subsets
from dpo_pipeline.plan import Facts, Output, Plan
from dpo_pipeline.policies.curve import ACCURACY, curve_of
from dpo_pipeline.policies.finding import Split, Steps, policies_of, split_by_policy, steps_of
from dpo_pipeline.policies.leaderboard import Leaderboard, Policy
from dpo_pipeline.policies.policy_sums import MEANS, PolicySums, mean_of
from dpo_pipeline.sources import (
    Counts,
    Dataset,
    OutOfStep,
    Partitions,
    count_keys,
    in_step,
    joined,
    key_of,
    open_reference,
    publication_of,
    ranges_in_step,
)
from dpo_pipeline.statistics import ManyPolicies, many_policies
from dpo_pipeline.storage import reading
from dpo_pipeline.sums import CLUSTER, Sense, not_looked_for


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PoliciesPlan(Plan[Leaderboard]):
    """The plan of `compare` of several policies."""

    groups: Groups
    labels: tuple[str, ...]
    tables: tuple[Table, ...]  # of the policies, then the reference of all if there is one
    split: Split | None  # the one table that they are all of, and
    whole: Dataset | None  # that table, opened
    steps: Steps | None
    on: str
    objective: CheckedObjective
    level: float
    baseline: int | None
    options: Mapping[str, Any]
    outputs: tuple[Output, ...]

    @property
    def facts(self) -> Facts:
        """What a dry run shows."""
        datasets = [table.dataset for table in self.tables]
        rows = [each.rows for each in datasets[: len(self.labels)]]
        return Facts(
            function="compare",
            call="compare",
            source=", ".join(self.labels),
            notes=tuple(f"{each.name}: {note}" for each in datasets for note in each.notes),
            inputs=tuple(one for each in datasets for one in inputs_of(each)),
            rows=None if None in rows else sum(filter(None, rows)),
            columns={},
            options=self.options,
            max_logp=self.groups.max_logp,
            objectives=(self.objective,),
            statistics=True,
            checked_later=("that the keys of all policies fit",),
            outputs=self.outputs,
        )

    def run(self) -> Leaderboard:
        """Read all policies once, write the documents, and return the leaderboard."""
        groups = self.groups
        datasets = [table.dataset for table in self.tables]
        with publication_of(groups.outputs, groups.access, *datasets) as publication:
            documents = Documents(groups.outputs, publication)
            for dataset in datasets:
                dataset.check_keys()
            result = self._ranked(*self._read(groups.watch))
            documents.write(result)
            publication.commit(groups.watch.check)
        for text in result.findings:
            warnings.warn(text, DataWarning, stacklevel=3)
        return result

    @property
    def policies(self) -> tuple[Table, ...]:
        """The tables of the policies."""
        return self.tables[: len(self.labels)]

    @property
    def _sums(self) -> PolicySums:
        rows = [table.dataset.rows for table in self.policies]
        fewest = None if None in rows else min(filter(None, rows), default=0)
        return PolicySums(
            self.policies,
            self.objective,
            max_logp=self.groups.max_logp,
            n_rows=fewest if self.split is None else self.split.fewest,
            steps=() if self.steps is None else self.steps.places,
        )

    def _read(self, watch: Watch) -> tuple[PolicySums, Counts]:
        with reading(" or ".join(self.labels)):
            lengths = {table.dataset.rows for table in self.tables} - {None}
            if len(lengths) > 1 or (self.split is not None and not self.split.is_in_blocks):
                return self._parted(watch)
            sums, n_tables, n = self._sums, len(self.tables), 0
            ranges = ranges_in_step(table.dataset for table in self.tables)
            runs = (self._frames(self.tables, first, rows) for first, rows in ranges)
            try:
                for chunk in in_step(runs, max(2 * ROWS_IN_STEP // n_tables, 1)):
                    n += chunk.height
                    for i in range(len(self.labels)):
                        sums.see_neighbours(i, chunk)
                    sums.add(chunk)
                    watch.step("evaluating", chunk.height, None)
            except OutOfStep:
                watch.restart("evaluating")
                return self._parted(watch)
            return sums, Counts(rows=(n,) * n_tables, alone=(0,) * len(self.labels), common=n)

    @property
    def _key(self) -> pl.Expr:
        return key_of(self.on, {table.name: table.columns for table in self.tables})

    @property
    def _prompts(self) -> Table | None:
        """The first policy with prompts."""
        return next((table for table in self.policies if PROMPT_ID.name in table.columns), None)

    def _wanted(self, table: Table) -> list[str]:
        counts = [role.name for role in COUNT_ROLES]
        return wanted_columns(table, self.objective, counts, has_prompts=table is self._prompts)

    def _frames(
        self, tables: Sequence[Table], first: int = 0, rows: int | None = None
    ) -> list[pl.LazyFrame]:
        return [self._keyed(table)(table.dataset.shard(first, rows).frame) for table in tables]

    def _keyed(self, table: Table, also: str | None = None) -> Callable[..., pl.LazyFrame]:
        names = self._wanted(table)
        return lambda rows: table.keyed(self._key, names, rows=rows, also=also)

    def _batches(self) -> Iterator[tuple[int, pl.DataFrame]]:
        """Yield rows of a table with its place; what holds several policies is read once."""
        tables = list(enumerate(self.tables))
        if self.split is not None and self.whole is not None and not self.split.is_in_blocks:
            first, column = self.tables[0], self.split.column
            for rows in self.whole.batches(self._keyed(first, column), STATISTICS_ROWS):
                of = rows.partition_by(column, as_dict=True, include_key=False)
                for (value,), some in of.items():
                    i = self.split.places[value]
                    yield i, self.tables[i].taken_from(some, first, self._wanted(self.tables[i]))
            tables = tables[len(self.labels) :]
        for i, table in tables:
            keyed, dataset = self._keyed(table), table.dataset
            for rows in dataset.batches(keyed, STATISTICS_ROWS):
                yield i, rows

    def _parted(self, watch: Watch) -> tuple[PolicySums, Counts]:
        sums, called = self._sums, [*self.labels, "the reference"][: len(self.tables)]
        frames = zip(called, self._frames(self.tables), strict=True)
        with Partitions({name: frame.collect_schema() for name, frame in frames}) as parts:
            for i, rows in self._batches():
                if i < len(self.labels):
                    sums.see_neighbours(i, rows)
                parts.add(called[i], rows)
                watch.step("joining", rows.height, None)
            counts = count_keys(self.on, called, parts, sides=len(self.labels))
            for part in parts:
                sums.add(joined(part.values()))
        return sums, counts

    def _ranked(self, sums: PolicySums, counts: Counts) -> Leaderboard:
        n, n_valid = sums.n_common, sums.n_valid
        if n == 0:
            rows = dict(zip(self.labels, counts.rows, strict=False))
            raise JoinError(on=self.on, rows=rows, faults={})
        reason = why_refused(
            self.groups.on_invalid, n - n_valid, n, "common pair", " of all policies"
        )
        if reason is not None:
            per = {self.labels[i]: k for i, k in sums.n_invalid.items() if k}
            said = ", ".join(f"{k:,} of {label}" for label, k in per.items())
            raise ContractError(f"{reason}: {said}; `check` lists the rows of a file")
        totals = sums.totals()
        policies = tuple(self._policies(sums, totals, counts))
        ranked = tuple(i for i, each in enumerate(policies) if each.doubt is None)
        clusters = sums.clusters.table.sort(CLUSTER)
        n_clusters = clusters.height if sums.clusters.is_exact else None
        incomparable = sums.incomparable(self.labels)
        steps = None if self.steps is None else self.steps.among(ranked, self.labels)
        curve = None
        if steps is not None and incomparable is None:
            curve = curve_of(sums.curve.table.sort(CLUSTER), steps, self.labels, self.level)
        return Leaderboard(
            policies=policies,
            ranked=ranked,
            on=self.on,
            objective=self.objective,
            level=self.level,
            baseline=self.baseline,
            n_common=n,
            n_valid=n_valid,
            n_clusters=n_clusters,
            clusters=clusters_in_words(n_clusters, is_by_prompt=self._prompts is not None),
            found=self._found(clusters, ranked),
            curve=curve,
            incomparable=incomparable,
            same=tuple((self.labels[a], self.labels[b]) for a, b in sums.same()),
            not_looked_for=self._not_looked_for(sums, totals[0]),
            origin=self.facts.origin,
        )

    def _found(self, clusters: pl.DataFrame, ranked: Sequence[int]) -> ManyPolicies | None:
        """Compare the policies whose log-probs are sound; None if they are too few."""
        if len(ranked) < 2 or (self.baseline is not None and self.baseline not in ranked):  # noqa: PLR2004
            return None
        halves = clusters.select(f"{ACCURACY} {i}" for i in ranked)
        return many_policies(
            halves.to_numpy().astype(np.float64) / 2.0,
            clusters[N_VALID].to_numpy().astype(np.float64),
            baseline=None if self.baseline is None else ranked.index(self.baseline),
            level=self.level,
        )

    def _policies(
        self, sums: PolicySums, every: Sequence[Mapping[str, int]], counts: Counts
    ) -> Iterator[Policy]:
        n = sums.n_valid
        for i, totals in enumerate(every):
            means = {name: mean_of(totals[f"sum_{name}"], n) for name in MEANS}
            betas = {b: mean_of(total, n) for (at, b), total in sums.betas.items() if at == i}
            betas |= {self.objective.beta: means["loss"]} if betas else {}
            yield Policy(
                label=self.labels[i],
                source=self.tables[i].name,
                n_pairs=counts.rows[i],
                n_alone=counts.alone[i],
                n_invalid=sums.n_invalid[i],
                n_ties=totals["n_ties"],
                n_valid=n,
                accuracy=(2 * totals["n_correct"] + totals["n_ties"]) / (2 * n),
                means=means,
                losses=dict(sorted(betas.items())),
                doubts=sums.doubts(i, totals),
                is_below=is_below_reference(totals),
            )

    def _not_looked_for(self, sums: PolicySums, totals: Mapping[str, int]) -> tuple[str, ...]:
        """Say what the doubts cannot tell of these policies."""
        few = not_looked_for(Sense.of_sums(totals), max_logp=self.tables[0].binding.max_logp)
        unseen = ", ".join(self.labels[i] for i in sums.without_neighbours)
        borrowed = (
            f"whether rows are shifted against the reference is not looked for in {unseen}: "
            f"the reference comes from another table, joined by {self.on}"
        )
        return (*filter(None, [few]), *([borrowed] if unseen else []))


def plan_of(asked: Mapping[str, Any]) -> PoliciesPlan:
    """Return the plan of a call by its arguments; which policies a table has is read."""
    each = [p if isinstance(p, Pairs) else Pairs(p) for p in asked["policies"]]
    if not each:
        raise UsageError("compare takes two policies or more, found none")
    each = [p if p.columns is not None else replace(p, columns=each[0].columns) for p in each]
    groups = Groups.of({**asked, "pairs": replace(each[0], reference=None)})
    check_report(groups.outputs)
    statistics, subsets = asked["statistics"], given(Subsets, asked["by"])
    options = given(StatisticsOptions, None if statistics is True else statistics)
    if options != StatisticsOptions(level=options.level, baseline=options.baseline):
        raise UsageError("compare takes level and baseline of StatisticsOptions, and no more of it")
    if groups.execution.engine != "local":
        raise UsageError("compare joins the policies on this machine: leave the engine out")
    refuse_options(groups, subsets)
    _refuse(groups, subsets, each)
    key, shared = key_asked(asked["on"], groups.reference), groups.reference
    found, split, whole = policies_of(each), None, None
    if len(found) == 1:
        ((label, one),) = found.items()
        opened = replace(groups, pairs=one, reference=None).opened(key, label)
        one, rows = replace(one, format=None), opened.whole
        is_stable = opened.keeps_order or bool(opened.files)
        split = split_by_policy(rows, one, keeps_order=is_stable and not opened.has_step)
        if split is not None:
            found, own = dict(split.pairs), replace(one, source=rows)
            whole = replace(groups, pairs=own, reference=None).opened(key, label)
    labels, baseline = tuple(found), options.baseline
    if len(labels) < 2:  # noqa: PLR2004  two policies
        raise UsageError(f"compare takes two policies or more, found {len(labels)}")
    if baseline is not None and baseline not in labels:
        raise UsageError(f"baseline: {baseline!r} is none of {', '.join(labels)}")
    third = None
    if shared is not None:
        cancel = groups.execution.cancel
        third = open_reference(replace(shared, on=key), access=groups.access, cancel=cancel)
    tables = _tables(groups, found, third, key)
    publication = publication_of(groups.outputs, groups.access, *(t.dataset for t in tables))
    return PoliciesPlan(
        groups=groups,
        labels=labels,
        tables=tables,
        split=split,
        whole=whole,
        steps=steps_of(labels),
        on=key,
        objective=groups.objective,
        level=options.level,
        baseline=None if baseline is None else labels.index(baseline),
        options=groups.as_given(by=subsets, statistics=options),
        outputs=Documents.checked(groups.outputs, publication),
    )


def _refuse(groups: Groups, subsets: Subsets, policies: Sequence[Pairs]) -> None:
    """Raise a UsageError for options that two policies have, saying what to do instead."""
    if subsets.names:
        raise UsageError(
            f"by (--by) is of two policies: compare the two that matter, A and B, with by="
            f"{', '.join(subsets.names)}, or filter the pairs to one subset before"
        )
    if groups.outputs.shown:
        raise UsageError(
            "show (--show) is of two policies: compare the two that matter, A and B, to see the "
            "pairs that flipped"
        )
    if any(one.reference is not None for one in policies):
        raise UsageError("a reference of one side alone is of two policies: give reference=")


def _tables(
    groups: Groups, policies: Mapping[str, Pairs], reference: Dataset | None, on: str
) -> tuple[Table, ...]:
    """Return the policies' tables and the reference of all, bound; no data is read."""
    objective, contract = groups.objective, replace(groups.contract, max_logp=groups.max_logp)
    datasets = [
        replace(replace(groups, pairs=each, reference=None).opened(on, label), name=label)
        for label, each in policies.items()
    ]
    columns = [each.columns for each in policies.values()]
    needs = objective.needs
    full = (i for i, d in enumerate(datasets) if not any(lacking(d, columns[i], needs)))
    base = next(full, 0)
    own: list[Table] = []
    tables: tuple[Table, ...] = ()
    for i, dataset in enumerate(datasets):
        other = i if i != base else (1 if base == 0 else 0)
        tables = bound_tables(
            (datasets[base], datasets[other]),
            (columns[base], columns[other]),
            reference,
            None if groups.reference is None else groups.reference.columns,
            on=on,
            needs=needs,
            contract=contract,
        )
        own.append(tables[0] if i == base else replace(tables[1], letter=f"p{i}", dataset=dataset))
    return (*own, *tables[2:])
