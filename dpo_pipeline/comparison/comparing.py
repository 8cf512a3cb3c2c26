"""`compare`: two policies on the same pairs, read side by side or joined by their keys."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import polars as pl

from dpo_pipeline.arguments import given
from dpo_pipeline.columns import (
    REF_CHOSEN,
    REF_REJECTED,
    REWARD_ACCURACY,
    SHOWN,
)
from dpo_pipeline.comparison.common_pairs import (
    CommonPairs,
    PairedTables,
    PairGathering,
    read_common_pairs,
)
from dpo_pipeline.comparison.comparison_doubts import (
    broken_rules,
    doubts_of_sides,
    findings_of,
    findings_of_completions,
    notes_of,
    other_references,
    rounding_of,
)
from dpo_pipeline.comparison.comparison_result import SUBSET_FIGURES, Comparison, Side
from dpo_pipeline.comparison.differences import (
    clusters_in_words,
    differences_of,
    heterogeneity_of,
    mcnemar_of,
    n_clusters_of,
    subsets_of,
)
from dpo_pipeline.comparison.sides import (
    Table,
    bound_tables,
    key_asked,
    named,
    names_of,
    own_reference,
    places_of,
    refuse_of_completions,
    refuse_options,
)
from dpo_pipeline.contract import why_refused
from dpo_pipeline.defaults import LOSS_NAME, WIDE_LIMIT
from dpo_pipeline.engine import Watch
from dpo_pipeline.errors import ContractError, DataWarning, InvalidPairsError, UsageError
from dpo_pipeline.evaluation import (
    Documents,
    Groups,
    check_report,
    inputs_of,
    paths_of,
)
from dpo_pipeline.exact import lower_edge
from dpo_pipeline.invalid_report import InvalidReport
from dpo_pipeline.layouts import columns_of
from dpo_pipeline.losses import CheckedObjective
from dpo_pipeline.options import Pairs, StatisticsOptions, Subsets
from dpo_pipeline.plan import Facts, Output, Plan, planned
from dpo_pipeline.sources import Dataset, open_reference, publication_of, tokenised_apart
from dpo_pipeline.storage import reading
from dpo_pipeline.sums import Summary, figures
from dpo_pipeline.unpaired import (
    CompletionComparison,
    CompletionSide,
    GatheredCompletions,
    PlacedCompletions,
)

_REFERENCES: Final = (REF_CHOSEN.name, REF_REJECTED.name)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ComparisonPlan(Plan[Any]):
    """The plan of `compare`."""

    groups: Groups  # its pairs are those of A
    datasets: tuple[Dataset, ...]  # the sides, and the reference of both if there is one
    pairs: PairedTables
    objective: CheckedObjective
    level: float  # confidence level of all intervals
    options: Mapping[str, Any]  # as given, under the parameters of the call
    outputs: tuple[Output, ...]
    paths: tuple[str, ...]  # of A and B, if both are paths
    names: tuple[str, ...]  # what A and B are called

    @property
    def facts(self) -> Facts:
        """What a dry run shows."""
        tables, rows = self.pairs.tables, [each.rows for each in self.datasets[:2]]
        columns = {
            f"{table.letter.upper()} {role}": column
            for table in tables[:2]
            for role, column in table.binding.mapping.items()
            if role not in table.lacks
        }
        return Facts(
            function="compare",
            call="compare",
            source=" and ".join(table.name for table in tables[:2]),
            notes=notes_of(self.datasets),
            inputs=tuple(
                replace(each, is_reference=each.is_reference or i > 1)
                for i, dataset in enumerate(self.datasets)
                for each in inputs_of(dataset)
            ),
            rows=None if None in rows else sum(filter(None, rows)),
            columns=columns,
            paths=self.paths,
            options=self.options,
            max_logp=self.groups.max_logp,
            objectives=(self.objective,),
            by=self.pairs.by,
            statistics=True,
            checked_later=("that the keys of A and B fit",),
            outputs=self.outputs,
        )

    def run(self) -> Comparison | CompletionComparison:
        """Read both sides, write the documents, and return the comparison."""
        groups = self.groups
        watch = groups.watch
        with publication_of(groups.outputs, groups.access, *self.datasets) as publication:
            documents = Documents(groups.outputs, publication)
            result = self._compared(watch)
            documents.write(result)
            publication.commit(watch.check)
        for text in result.findings:
            warnings.warn(text, DataWarning, stacklevel=3)
        return result

    def _read(
        self, watch: Watch, gathers: Callable[[], PairGathering] | None = None
    ) -> tuple[CommonPairs, dict[str, InvalidReport]]:
        """Read both sides, and raise if they must not pass."""
        for dataset in self.datasets:
            dataset.check_keys()
        read = read_common_pairs(
            self.pairs,
            objective=self.objective,
            max_logp=self.groups.max_logp,
            watch=watch,
            gathers=gathers,
        )
        # The tables of invalid common pairs are read once more, to list the broken rules.
        reports = {
            table.letter: table.report(rows, watch)
            for table, rows in zip(self.pairs.tables, read.counts.rows, strict=True)
            if read.n_invalid[table.letter]
        }
        self._judge(read, reports)
        return read, reports

    def _completions(self, watch: Watch) -> CompletionComparison:
        """Read both sides twice: for sums, and for where rewards stand among the other label's."""
        objective, tables = self.objective, self.pairs.tables
        read, reports = self._read(watch, lambda: GatheredCompletions(objective))
        gathered: GatheredCompletions = read.paired
        places = self._read(watch, lambda: PlacedCompletions(gathered, objective))[0].paired
        incomparable = other_references(read, objective)
        return CompletionComparison(
            on=self.pairs.on,
            objective=objective,
            level=self.level,
            **{
                table.letter: CompletionSide(
                    source=table.name,
                    name=self.names[i],
                    n_completions=read.counts.rows[i],
                    n_alone=read.counts.alone[i],
                    n_invalid=read.n_invalid[table.letter] + read.n_out_of_range[table.letter],
                    summary=gathered.summary(table.letter),
                )
                for i, table in enumerate(tables[:2])
            },
            n_common=read.counts.common,
            n_valid=read.n_valid,
            n_clusters=gathered.n_clusters,
            is_by_prompt=gathered.is_by_prompt,
            differences=gathered.differences(places, self.level, is_tested=incomparable is None),
            findings=(
                *notes_of(self.datasets),
                *broken_rules(reports.values()),
                *findings_of_completions(tables, read, incomparable, gathered.n_same),
            ),
            incomparable=incomparable,
            origin=self.facts.origin,
        )

    def _compared(self, watch: Watch) -> Comparison | CompletionComparison:
        if self.objective.row == "completion":
            return self._completions(watch)
        objective, level, tables = self.objective, self.level, self.pairs.tables
        read, reports = self._read(watch)
        paired, bins = read.paired, pl.col("bin")
        other = other_references(read, objective)
        doubts, decisive = doubts_of_sides(tables, read)
        incomparable = other if decisive is None else str(decisive)
        rounding = rounding_of(tables, read, objective)
        summaries = [
            Summary.of_row(figures(totals, objective).row(0, named=True))
            for totals in (paired.totals_a, paired.totals_b)
        ]
        sides = [
            Side(
                source=table.name,
                name=self.names[i],
                n_pairs=read.counts.rows[i],
                n_alone=read.counts.alone[i],
                n_invalid=read.n_invalid[table.letter] + read.n_out_of_range[table.letter],
                summary=summaries[i],
                invalid=reports.get(table.letter),
                borrowed={n: table.lender.name for n in table.lacks if table.lender is not None},
            )
            for i, table in enumerate(tables[:2])
        ]
        differences = differences_of(
            paired,
            summaries[0],
            summaries[1],
            level,
            rounding=rounding,
            is_tested=incomparable is None,
        )
        subsets = subsets_of(paired, level, rounding=rounding, is_tested=incomparable is None)
        if (
            read.paired.n_same_logps[2] == read.n_valid
        ):  # one policy: nothing could show a difference
            differences = {n: replace(d, smallest_effect=None) for n, d in differences.items()}
            if subsets is not None:
                subsets = subsets.with_columns(smallest_effect=pl.lit(None, pl.Float64))
        findings = (
            *map(str, doubts),
            *notes_of(self.datasets),
            # Those of both sides have tables of their own.
            *broken_rules(each for letter, each in reports.items() if letter not in "ab"),
            *findings_of(tables, read, other, differences),
        )
        # Without a verdict there is no p-value that somebody could take for one.
        is_tested = differences[REWARD_ACCURACY].p_value is not None
        n_clusters = n_clusters_of(paired)
        return Comparison(
            on=self.pairs.on,
            objective=objective,
            max_logp=self.groups.max_logp,
            level=level,
            a=sides[0],
            b=sides[1],
            n_common=read.counts.common,
            n_valid=read.n_valid,
            clusters=clusters_in_words(n_clusters, is_by_prompt=paired.is_by_prompt),
            n_clusters=n_clusters,
            differences=differences,
            mcnemar=mcnemar_of(paired, is_tested=is_tested),
            by=self.pairs.by,
            subsets=subsets,
            heterogeneity=heterogeneity_of(paired, is_tested=is_tested),
            gained=self._shown(paired.gained),
            lost=self._shown(paired.lost),
            doubts=doubts,
            findings=findings,
            incomparable=incomparable,
            changes=paired.changes.select(
                "bin", lower=lower_edge(bins), upper=lower_edge(bins + 1), n_pairs="n_pairs"
            ),
            margins=paired.margins,
            origin=self.facts.origin,
        )

    def _shown(self, flips: pl.DataFrame) -> pl.DataFrame:
        """Return the flips that are to be listed, with the columns asked for.

        What A and B both have, and not alike, stands side by side.
        """
        asked, few = self.groups.outputs, flips.head(self.groups.outputs.worst)
        for name, sides in places_of(asked.shown, self.pairs.tables[:2]).items():
            read = [self._texts(table, name, few["key"]) for table in sides]
            if len(read) == 1 or read[0].equals(read[1]):
                few = few.with_columns(read[0].alias(f"{SHOWN}{name}"))
            else:
                both = zip(read, ("A", "B"), strict=True)
                few = few.with_columns(t.alias(f"{SHOWN}{name} of {side}") for t, side in both)
        return few

    def _texts(self, table: Table, name: str, keys: pl.Series) -> pl.Series:
        """Return a column of a side for these keys."""
        key = self.pairs.key.alias("key")
        with reading(table.name):
            texts = (
                table.dataset.frame.select(key, pl.col(name).alias("text"))
                .filter(pl.col("key").is_in(keys.implode()))
                .collect(engine="streaming")
            )
        return keys.to_frame("key").join(texts, on="key", how="left", maintain_order="left")["text"]

    def _judge(self, read: CommonPairs, reports: Mapping[str, InvalidReport]) -> None:
        """Raise if the common pairs must not pass."""
        n, asked = read.counts.common, self.groups.on_invalid
        reason = why_refused(asked, n - read.n_valid, n, "common pair", " on both sides")
        if reason is None:
            return
        if reports:
            first, *others = reports.values()
            error = InvalidPairsError(first, reason=reason, is_excluding=asked.action != "raise")
            for each in others:
                error.add_note(f"{each.source}: rows that break it too: {each.n_invalid:,}")
            raise error
        raise ContractError(
            f"{reason}: their log-probs are sound, and a reward or loss of theirs is not finite "
            f"and within {WIDE_LIMIT:.3g}; beta or the arguments of the loss are too large"
        )


@planned
def compare(
    *policies: Any,
    beta: float | None = None,
    on: str | None = None,
    reference: Any = None,
    loss: Any = LOSS_NAME,
    by: Any = (),
    statistics: Any = None,
    contract: Any = None,
    on_invalid: Any = "raise",
    outputs: Any = None,
    execution: Any = None,
) -> Plan[Any]:
    """Return how far policy B differs from policy A on the pairs that both have, and where.

    Of three policies or more, of a folder or glob of them, or of a file with a column `policy` or
    `step`, it returns a `Leaderboard` instead of a `Comparison`: which may be the best.

    All figures are over the common pairs that keep the contract on both sides; rows of one side
    alone are counted. Pairs of one `prompt_id` are one cluster, and standard errors are clustered;
    without prompts each pair is a cluster. Every figure comes from exact sums, so that it
    does not depend on the order of rows, files or threads. Sides with the same keys in one order
    are read once, side by side; others are parted by their keys, in the temporary folder if they
    are long.

    A side without reference log-probs takes those of the other side: with one reference for
    both, B's file needs no more than a key and the policy's two log-probs.

    Args:
        policies: A and B, each `Pairs` or its source: pairs with the log-probs of a policy, in
            any order. NAME=PATH says what a policy is called. B may have some of A's pairs. The
            columns of A's `Pairs` serve B too, if its own are not given.
        beta: KL strength, above 0 (arXiv 2305.18290, Eq. 7); 0.1, or the dialect's. One for
            both sides. Accuracy does not depend on it; loss, rewards and margins do.
        on: The key: a column of both sides, each value once; `pair_id` if not given.
        reference: `Reference`, or its source, with the log-probs of both sides' reference, if in
            neither; it may have more pairs.
        loss: As in `evaluate`; not one of batches. With an unpaired loss, A and B are completions
            joined by `completion_id`, and a `CompletionComparison` is returned: the AUC decides.
        by: As in `evaluate`, without a histogram: columns of A, or else of B.
        statistics: `StatisticsOptions` with the level of all intervals.
        contract: As in `evaluate`.
        on_invalid: As in `evaluate`: "exclude" leaves out pairs that are invalid on a side.
        outputs: As in `evaluate`.
        execution: As in `evaluate`; the work is done here.

    Raises:
        UsageError: An argument cannot be used, or makes too many subsets.
        ContractError: Columns, types or rows break the contract, or no common pair is valid.
        JoinError: Keys are null or are there twice, or no key is on both sides.
        StorageError: A file cannot be read or written.
        Cancelled: The run was stopped.

    Examples:
        >>> import polars as pl, dpo_pipeline
        >>> a = pl.DataFrame({"pair_id": [1, 2], "policy_chosen_logps": [-10.0, -9.0],
        ...                   "policy_rejected_logps": [-14.0, -8.0],
        ...                   "ref_chosen_logps": [-11.0, -9.5],
        ...                   "ref_rejected_logps": [-12.0, -9.0]})
        >>> b = a.with_columns(policy_rejected_logps=pl.col("policy_rejected_logps") - 2)
        >>> dpo_pipeline.compare(a, b).mcnemar.only_b
        1
    """
    if len(policies) != 2:  # noqa: PLR2004  A and B
        from dpo_pipeline.policies import plan_of

        return plan_of(locals())
    (a_name, a), (b_name, b) = (
        named(each if isinstance(each, Pairs) else Pairs(each)) for each in policies
    )
    a_stem, b_stem = names_of([a.source, b.source])
    names = (a_name or a_stem, b_name or b_stem)
    if b.columns is None:
        b = replace(b, columns=a.columns)
    groups = Groups.of(locals() | {"pairs": replace(a, reference=None)})
    check_report(groups.outputs)
    asked = given(StatisticsOptions, None if statistics is True else statistics)
    if asked != StatisticsOptions(level=asked.level):
        raise UsageError("compare takes the level of StatisticsOptions, and no more of it")
    if groups.execution.engine != "local":
        raise UsageError("compare joins the policies on this machine: leave the engine out")
    objective, subsets = groups.objective, given(Subsets, by)
    is_of_completions = objective.row == "completion"
    refuse = refuse_of_completions if is_of_completions else refuse_options
    refuse(groups, subsets)
    key = key_asked(on, groups.reference, objective.needs.key)
    # A side may be joined to a reference of its own; completions are, before they are paired.
    shared, third = groups.reference, None
    if a.pairing is not None or b.pairing is not None or is_of_completions:
        a, b = (replace(p, reference=p.reference or shared) for p in (a, b))
        shared = None
    sides = tuple(
        replace(groups, pairs=each, reference=own_reference(each)).opened(
            key, name, row=objective.row
        )
        for each, name in zip((a, b), "AB", strict=True)
    )
    there = {*sides[0].columns, *sides[1].columns}
    groups, subsets = groups.showing(there), subsets.within(there)
    for name in subsets.names:
        if name in SUBSET_FIGURES:
            raise UsageError(f"by: {name!r} is the name of a figure; rename the column before")
    if shared is not None:
        cancel = groups.execution.cancel
        third = open_reference(replace(shared, on=key), access=groups.access, cancel=cancel)
    tables = bound_tables(
        (sides[0], sides[1]),
        (columns_of(sides[0], a.columns), columns_of(sides[1], b.columns)),
        third,
        None if shared is None else shared.columns,
        on=key,
        needs=objective.needs,
        contract=replace(groups.contract, max_logp=groups.max_logp),
    )
    sides = tuple(
        each
        if table.lender is None
        else replace(
            each, own_notes=(*each.own_notes, *tokenised_apart(each, table.lender.dataset))
        )
        for each, table in zip(sides, tables, strict=False)
    )
    datasets = sides if third is None else (*sides, third)
    places_of(groups.outputs.shown, tables[:2])
    publication = publication_of(groups.outputs, groups.access, *datasets)
    return ComparisonPlan(
        groups=groups,
        datasets=datasets,
        pairs=PairedTables.of(tables, on=key, by=subsets.names),
        objective=objective,
        level=asked.level,
        options=groups.as_given(by=subsets, statistics=asked),
        outputs=Documents.checked(groups.outputs, publication),
        paths=paths_of(a, b),
        names=names if names[0] != names[1] else ("", ""),
    )
