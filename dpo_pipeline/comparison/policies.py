"""`compare` of several policies: found, labelled, read side by side or joined, and ranked."""

from __future__ import annotations

import glob
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import polars as pl

from dpo_pipeline.columns import (
    LOSS,
    N_VALID,
    POLICY_CHOSEN,
    POLICY_REJECTED,
    PROMPT_ID,
    REF_CHOSEN,
    REF_REJECTED,
    REWARD_MARGIN,
)
from dpo_pipeline.comparison.common_pairs import differing, scored_side, wanted_columns
from dpo_pipeline.comparison.leaderboard import Leaderboard
from dpo_pipeline.comparison.paired_arrays import Whole, hashes_of
from dpo_pipeline.comparison.paired_gathering import PROMPT
from dpo_pipeline.comparison.sides import Table, bound_tables, lacking, named, names_of
from dpo_pipeline.contract import why_refused
from dpo_pipeline.defaults import BAGS, CLUSTERS_HELD, ROWS_IN_STEP, STATISTICS_ROWS
from dpo_pipeline.engine import Watch
from dpo_pipeline.errors import ContractError, DataWarning, JoinError, UsageError
from dpo_pipeline.evaluation import Documents, Groups, inputs_of
from dpo_pipeline.losses import CheckedObjective
from dpo_pipeline.options import Pairs
from dpo_pipeline.plan import Facts, Output, Plan
from dpo_pipeline.sources import (
    KEY,
    Dataset,
    OutOfStep,
    Partitions,
    count_keys,
    in_step,
    joined,
    key_of,
    publication_of,
)
from dpo_pipeline.statistics import cluster_hashes, counted, many_policies
from dpo_pipeline.storage import reading
from dpo_pipeline.sums import CLUSTER, VALID, coded, exact_sums, merge, whole_quanta

POLICY: Final = "policy"
STEP: Final = "step"
MEANS: Final = (LOSS, REWARD_MARGIN, POLICY_CHOSEN.name, POLICY_REJECTED.name)
"""What is averaged for each policy beside its accuracy."""
_ENDINGS: Final = (".parquet", ".csv", ".jsonl", ".ndjson")


def policies_of(given: Sequence[Pairs]) -> dict[str, Pairs]:
    """Return the policies by their labels: NAME of NAME=PATH, or the name that tells paths apart.

    One folder or glob is the policies in it: files, or folders of files.
    """
    found, names = list(given), [""] * len(given)
    if len(given) == 1 and isinstance(given[0].source, (str, os.PathLike)):
        found = [replace(given[0], source=path) for path in _inside(os.fspath(given[0].source))]
        names = [""] * len(found)
    for i, each in enumerate(found):
        names[i], found[i] = named(each)
    rest = [each for each, name in zip(found, names, strict=True) if not name]
    labels = iter(_labels([each.source for each in rest]))
    made: dict[str, Pairs] = {}
    for each, name in zip(found, names, strict=True):
        label = name or next(labels)
        if label in made:
            raise UsageError(f"two policies are called {label!r}: give NAME=PATH")
        made[label] = each
    return made


def _inside(path: str) -> list[str]:
    if os.path.isdir(path):
        entries = (os.path.join(path, name) for name in os.listdir(path) if name[0] not in "._")
        kept = [each for each in entries if os.path.isdir(each) or each.endswith(_ENDINGS)]
    else:
        kept = glob.glob(path) if glob.has_magic(path) else [path]
    return sorted(kept, key=_in_steps)


def _in_steps(path: str) -> list[tuple[int, int | str]]:
    """Return a key that puts checkpoint-900 before checkpoint-1000."""
    digits, parts = "", list[tuple[int, int | str]]()
    for letter in [*path, ""]:
        if letter.isdigit():
            digits += letter
            continue
        if digits:
            parts.append((0, int(digits)))
            digits = ""
        parts.append((1, letter))
    return parts


def _labels(sources: Sequence[Any]) -> list[str]:
    """Return what tells the paths apart, or a number."""
    return [name or f"policy {i + 1}" for i, name in enumerate(names_of(sources))]


def split_by_policy(rows: pl.LazyFrame, pairs: Pairs) -> dict[str, Pairs]:
    """Return the policies of one table with a column of them, or of steps; {} if it has none."""
    there = rows.collect_schema()
    name = next((each for each in (POLICY, STEP) if each in there), None)
    if name is None:
        return {}
    values = rows.select(pl.col(name).unique().sort()).collect(engine="streaming").to_series()
    if values.null_count():
        raise UsageError(f"the column {name!r} is null in some rows")
    return {
        str(value) if name == POLICY else f"step {value}": replace(
            pairs, source=rows.filter(pl.col(name) == value).drop(name)
        )
        for value in values.to_list()
    }


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PoliciesPlan(Plan[Leaderboard]):
    """The plan of `compare` of several policies."""

    groups: Groups
    labels: tuple[str, ...]
    tables: tuple[Table, ...]  # of the policies, then the reference of all if there is one
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
            result = self._ranked(self._read(groups.watch))
            documents.write(result)
            publication.commit(groups.watch.check)
        if result.incomparable is not None:
            warnings.warn(result.incomparable, DataWarning, stacklevel=3)
        return result

    def _read(self, watch: Watch) -> _PolicySums:
        with reading(" or ".join(self.labels)):
            frames = self._frames()
            lengths = {table.dataset.rows for table in self.tables} - {None}
            if len(lengths) <= 1:
                sums = _PolicySums(self)
                try:
                    for chunk in in_step(frames, max(2 * ROWS_IN_STEP // len(frames), 1)):
                        sums.add(chunk)
                        watch.step("evaluating", chunk.height, None)
                except OutOfStep:
                    watch.restart("evaluating")
                else:
                    return sums
            return self._parted(frames, watch)

    def _frames(self) -> list[pl.LazyFrame]:
        key = key_of(self.on, {table.name: table.columns for table in self.tables})
        return [
            table.keyed(
                key, wanted_columns(table, self.objective, (), has_prompts=table is self.prompts)
            )
            for table in self.tables
        ]

    @property
    def prompts(self) -> Table | None:
        """The first policy with prompts."""
        own = self.tables[: len(self.labels)]
        return next((table for table in own if PROMPT_ID.name in table.columns), None)

    def _parted(self, frames: Sequence[pl.LazyFrame], watch: Watch) -> _PolicySums:
        names = [str(i) for i in range(len(frames))]
        sums = _PolicySums(self)
        schemas = {n: each.collect_schema() for n, each in zip(names, frames, strict=True)}
        with Partitions(schemas) as parts:
            for name, frame in zip(names, frames, strict=True):
                for rows in frame.collect_batches(maintain_order=False, chunk_size=STATISTICS_ROWS):
                    parts.add(name, rows)
                    watch.step("joining", rows.height, None)
            called = dict(zip(names, (*self.labels, "the reference"), strict=False))
            for other in names[1:]:
                two = [called[names[0]], called[other]]
                keys = [
                    {two[0]: part[names[0]].select(KEY), two[1]: part[other].select(KEY)}
                    for part in parts
                ]
                count_keys(self.on, two, keys)
            for part in parts:
                sums.add(joined(part.values()))
        return sums

    def _ranked(self, sums: _PolicySums) -> Leaderboard:
        n, n_valid = sums.n_common, sums.n_valid
        if n == 0:
            raise JoinError(on=self.on, rows=dict.fromkeys(self.labels, 0), faults={})
        reason = why_refused(
            self.groups.on_invalid, n - n_valid, n, "common pair", " of all policies"
        )
        if reason is not None:
            per = {self.labels[i]: k for i, k in sums.n_invalid.items() if k}
            said = ", ".join(f"{k:,} of {label}" for label, k in per.items())
            raise ContractError(f"{reason}: {said}; `check` lists the rows of a file")
        table = sums.clusters.sort(CLUSTER)
        halves = table.select(f"halves {i}" for i in range(len(self.labels)))
        found = many_policies(
            halves.to_numpy().astype(np.float64) / 2.0,
            table[N_VALID].to_numpy().astype(np.float64),
            baseline=self.baseline,
            level=self.level,
        )
        scale = 2.0**40 * n_valid
        means = [
            {name: sums.totals[f"{name} {i}"] / scale for name in MEANS}
            for i in range(len(self.labels))
        ]
        return Leaderboard(
            labels=self.labels,
            sources=tuple(each.name for each in self.tables[: len(self.labels)]),
            on=self.on,
            objective=self.objective,
            level=self.level,
            baseline=self.baseline,
            n_common=n,
            n_valid=n_valid,
            n_clusters=table.height if sums.is_exact else None,
            is_by_prompt=self.prompts is not None,
            found=found,
            incomparable=sums.incomparable(),
            means=tuple(means),
            n_ties=tuple(sums.totals[f"ties {i}"] for i in range(len(self.labels))),
            origin=self.facts.origin,
        )


class _PolicySums:
    """Adds up common pairs by cluster, a column a policy, chunk by chunk in any order."""

    def __init__(self, plan: PoliciesPlan) -> None:
        self._plan = plan
        self._checked = plan.objective.columns_to_check(plan.groups.max_logp)
        self.n_common = self.n_valid = 0
        self.n_invalid = Counter[int]()
        self.totals = Counter[str]()
        self.differ = Counter[tuple[int, str]]()
        self.largest: dict[tuple[int, str], float] = {}
        self.is_exact = True
        self.clusters = pl.DataFrame()

    def add(self, chunk: pl.DataFrame) -> None:
        """Add pairs that all policies have."""
        plan, chunk = self._plan, chunk.rechunk()
        n = len(plan.labels)
        own = plan.tables[:n]
        scored = [scored_side(t, chunk, plan.objective, self._checked) for t in own]
        valid = pl.Series([True]).new_from_index(0, chunk.height)
        for i, (table, each) in enumerate(zip(own, scored, strict=True)):
            sound = chunk[table.valid] & each[VALID]
            if table.lender is not None:
                sound = sound & chunk[table.lender.valid]
            self.n_invalid[i] += int((~sound).sum())
            valid = valid & sound
        self.n_common += chunk.height
        if not valid.all():
            chunk, scored = chunk.filter(valid), [each.filter(valid) for each in scored]
        self.n_valid += chunk.height
        self._compare_references(chunk)
        hashes = hashes_of(chunk[KEY])
        if plan.prompts is not None:
            prompts = chunk[plan.prompts.column(PROMPT_ID.name)].alias(PROMPT)
            hashes = cluster_hashes(prompts, pl.Series(hashes)).rechunk().to_numpy()
        held = CLUSTERS_HELD if self.is_exact else 0
        clusters, codes, is_exact = coded(hashes, chunk.select(), held)
        columns = dict(self._by_cluster(scored, codes, clusters.height))
        self._merge(clusters.hstack(pl.DataFrame(columns)), is_exact=is_exact)

    def _compare_references(self, chunk: pl.DataFrame) -> None:
        """Count pairs on which a policy knows another reference than the first that has one."""
        plan = self._plan
        for name in (REF_CHOSEN.name, REF_REJECTED.name):
            if name not in plan.objective.needs.logps:
                continue
            own = [(i, t) for i, t in enumerate(plan.tables[: len(plan.labels)])]
            first, *others = [(i, t) for i, t in own if name in t.columns] or [(0, own[0][1])]
            for i, table in others:
                n, largest = differing(chunk, name, (first[1], table))
                self.differ[i, name] += n
                key = (i, name)
                self.largest[key] = max(largest or 0.0, self.largest.get(key, 0.0))

    def incomparable(self) -> str | None:
        """Return a sentence if a policy was scored against another reference."""
        label = self._plan.labels
        for (i, name), n in self.differ.items():
            if n:
                return (
                    f"{label[i]} was scored against another reference ({name} differs on {n:,} of "
                    f"{counted(self.n_valid, 'pair')}, by up to {self.largest[i, name]:.4g} nats), "
                    "so the policies cannot be compared"
                )
        return None

    def _by_cluster(
        self, scored: Sequence[pl.DataFrame], codes: Whole, n: int
    ) -> Iterator[tuple[str, Whole]]:
        yield N_VALID, np.bincount(codes, minlength=n)
        one = np.zeros(codes.size, dtype=np.int64)
        for i, each in enumerate(scored):
            margin = each[REWARD_MARGIN].to_numpy()
            halves = (margin == 0.0).astype(np.int64) + 2 * (margin > 0.0)
            found = np.zeros(n, dtype=np.int64)
            np.add.at(found, codes, halves)
            yield f"halves {i}", found
            self.totals[f"ties {i}"] += int((halves == 1).sum())
            for name in MEANS:
                values = each[name].cast(pl.Float64).to_numpy()
                total = exact_sums(one, 1, whole_quanta(values), max(values.size, 1))
                self.totals[f"{name} {i}"] += int(total.item())

    def _merge(self, new: pl.DataFrame, *, is_exact: bool) -> None:
        both = [each for each in (self.clusters, new.filter(pl.col(N_VALID) > 0)) if each.width]
        many = pl.concat([each.select(CLUSTER) for each in both])[CLUSTER].n_unique()
        self.is_exact = self.is_exact and is_exact and many <= CLUSTERS_HELD
        if not self.is_exact:
            both = [each.with_columns(pl.col(CLUSTER) % BAGS) for each in both]
        self.clusters = merge(both, [CLUSTER])


def plan_of(
    groups: Groups,
    policies: Mapping[str, Pairs],
    reference: Dataset | None,
    *,
    on: str,
    level: float,
    baseline: str | None,
    options: Mapping[str, Any],
) -> PoliciesPlan:
    """Return the plan; no data is read but keys of a reference."""
    labels = tuple(policies)
    if len(labels) < 2:  # noqa: PLR2004  two policies
        raise UsageError(f"compare takes two policies or more, found {len(labels)}")
    if baseline is not None and baseline not in labels:
        raise UsageError(f"baseline: {baseline!r} is none of {', '.join(labels)}")
    if groups.outputs.report is not None:
        raise UsageError("the report page is of two policies: give A and B, or leave it out")
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
    publication = publication_of(groups.outputs, groups.access, *datasets)
    return PoliciesPlan(
        groups=groups,
        labels=labels,
        tables=(*own, *tables[2:]),
        on=on,
        objective=objective,
        level=level,
        baseline=None if baseline is None else labels.index(baseline),
        options=options,
        outputs=Documents.checked(groups.outputs, publication),
    )
