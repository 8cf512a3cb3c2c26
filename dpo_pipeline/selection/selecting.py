"""`select`: pairs in, those that a rule ranks first out, with what that does to the data.

One pass checks and sums, one ranks, and one writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from dpo_pipeline.arguments import checked_names, given, split_names
from dpo_pipeline.columns import (
    CONTRADICTING,
    CONTRADICTION,
    CONTRADICTION_GROUP,
    SCORED,
    SELECTED,
    SELECTION_RANK,
    SELECTION_VALUE,
    did_you_mean,
)
from dpo_pipeline.defaults import LOSS_NAME
from dpo_pipeline.errors import UsageError
from dpo_pipeline.evaluation import (
    Documents,
    Groups,
    Measurement,
    refuse_completions,
    run_facts,
    warn_of,
)
from dpo_pipeline.options import Selection, Subsets
from dpo_pipeline.plan import Facts, Output, Plan, planned
from dpo_pipeline.scoring import PartOutputs, carried_columns, check_outside, check_written
from dpo_pipeline.selection.ranking_pass import RankingPass
from dpo_pipeline.selection.row_ranks import KEPT, RANK, VALUE
from dpo_pipeline.selection.selected_files import SelectedOutput, SelectionWriter
from dpo_pipeline.selection.selection_result import Selected
from dpo_pipeline.selection.selection_rules import Rule, needed_columns, notes_of, rule_of
from dpo_pipeline.sources import Dataset, OrderedRows, checked_parquet_name, publication_of
from dpo_pipeline.storage import reading


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class SelectionPlan(Plan[Selected]):
    """The plan of `select`; `rules` begins with the one whose pairs are written."""

    measurement: Measurement
    selection: Selection
    rules: tuple[Rule, ...]
    parts: PartOutputs
    places: Mapping[str, str | os.PathLike[str]]  # outputs of pairs: kept, rest, contradictions
    carried: tuple[str, ...]
    options: Mapping[str, Any]
    outputs: tuple[Output, ...]

    @property
    def facts(self) -> Facts:
        """What a dry run shows."""
        return self.measurement.facts("select", self.options, self.outputs, carried=self.carried)

    def run(self) -> Selected:
        """Rank the pairs, write those that are kept, and return what that does."""
        groups, parts = self.measurement.groups, self.parts
        watch = groups.watch
        with (
            publication_of(groups.outputs, groups.access, self.measurement.dataset) as publication,
            ExitStack() as held,
        ):
            documents = Documents(groups.outputs, publication)
            staged = {n: parts.staged(publication, place) for n, place in self.places.items()}
            made = in_stable_order(self.measurement)
            measured = made.measured(watch)
            ranking = RankingPass(
                made, self.rules, measured.rules, self.selection, watch=watch, held=held
            )
            ranking.read()
            group_table, effects = ranking.finish()
            found = ranking.contradictions()
            ranked = group_table.filter(pl.col("rule") == self.rules[0].name)["n_ranked"].sum()
            result = Selected(
                source=made.dataset.name,
                rules=tuple(rule.name for rule in self.rules),
                formula=self.rules[0].formula,
                n_pairs=measured.n_pairs,
                n_valid=measured.n_valid,
                n_unranked=measured.n_valid - int(ranked),
                groups=group_table,
                effects=effects,
                overlaps=ranking.overlaps(measured.n_pairs),
                contradictions=found,
                invalid=measured.report(watch),
                by=made.wanted.by,
                notes=tuple(self._notes()),
            )
            publication.begin()
            written = self._outputs(ranking, result, staged)
            writer = SelectionWriter(
                measurement=made,
                parts=replace(parts, dataset=made.dataset),
                carried=self.carried,
                outputs=list(written.values()),
                facts=run_facts(made.binding, *made.objectives),
                watch=watch,
            )
            for name, manifest in zip(written, writer.write(), strict=True):
                publication.describe(self.places[name], manifest)
            documents.write(result)
            publication.commit(watch.check)
        warn_of(result.invalid)
        return result

    def _outputs(
        self, ranking: RankingPass, result: Selected, staged: Mapping[str, Any]
    ) -> dict[str, SelectedOutput]:
        """Return what is written, the kept pairs last."""
        adds = (
            pl.col(VALUE).alias(SELECTION_VALUE),
            pl.col(RANK).cast(pl.Int64).alias(SELECTION_RANK),
        )
        n_ranked = result.n_valid - result.n_unranked
        made = {}
        if "rest" in staged:
            made["rest"] = SelectedOutput(
                targets=staged["rest"],
                rows=ranking.stores[0],
                where=~pl.col(KEPT),
                adds=adds,
                n_rows=n_ranked - result.n_kept,
            )
        if ranking.found is not None:
            made["contradictions"] = SelectedOutput(
                targets=staged["contradictions"],
                rows=ranking.found,
                where=None,
                adds=(pl.col(CONTRADICTION), pl.col(CONTRADICTION_GROUP).cast(pl.Int64)),
                n_rows=ranking.found.n_rows,
            )
        if "kept" in staged:
            made["kept"] = SelectedOutput(
                targets=staged["kept"],
                rows=ranking.stores[0],
                where=pl.col(KEPT),
                adds=adds,
                n_rows=result.n_kept,
            )
        return made

    def _notes(self) -> Iterable[str]:
        columns = self.measurement.binding.columns.names()
        for rule in self.rules:
            yield f"{rule.name} is blind to {rule.blind_to}"
            yield from notes_of(rule, self.selection, columns)


def in_stable_order(made: Measurement) -> Measurement:
    """Return the same with rows that come in the same order at each reading."""
    dataset = made.dataset
    if dataset.keeps_order or dataset.files:
        return made
    dataset.check_keys()
    rows = OrderedRows()
    with reading(dataset.read_from):
        rows.add(dataset.whole.limit(0).collect())
        for batch in dataset.whole.collect_batches(maintain_order=True):
            rows.add(batch)
    held = Dataset(name=dataset.name, frame=rows.rows(0, None), own_notes=dataset.notes)
    return replace(made, dataset=held)


@planned
def select(
    pairs: Any,
    sink: str | os.PathLike[str] | None = None,
    rule: Any = None,
    keep: float | None = None,
    *,
    reference: Any = None,
    loss: Any = LOSS_NAME,
    by: Any = (),
    selection: Any = None,
    contract: Any = None,
    on_invalid: Any = "raise",
    outputs: Any = None,
    execution: Any = None,
) -> Plan[Selected]:
    """Keep the pairs that a rule ranks first, and return what that does to the data.

    Rules contradict each other, and none is the best one: `Selection(compared=...)` shows what
    others would keep. The data is read three times: checked, ranked, written. Memory does not grow
    with the rows; what is ranked goes to the temporary folder if it is long.

    Args:
        pairs: As in `evaluate`.
        sink: Where the kept pairs go: a Parquet file for a file or a dataframe, a folder for a
            folder. They are in the order of the data, with `selection_value` and
            `selection_rank`, from 1 in each subset. None writes none.
        rule: What ranks pairs: the name of a rule, a Polars expression over the columns of scored
            pairs, or one in SQL; the smallest values come first. Pairs without a value are not
            kept. Equal values are in the order of a hash of `pair_id`, or of the row without one.
        keep: How many pairs are kept, of each subset with `by`: a count (int), or a share (float
            up to 1), to the nearest pair.
        reference: As in `evaluate`.
        loss: As in `evaluate`; not one of batches.
        by: Columns: keep so many of each subset.
        selection: `Selection`, with the rule's arguments, and further files.
        contract: As in `evaluate`.
        on_invalid: As in `evaluate`: with "exclude", invalid pairs are never kept.
        outputs: As in `evaluate`, without a report.
        execution: As in `evaluate`; the work is done here.

    Raises:
        UsageError: An argument cannot be used, or there is no such rule.
        ContractError: Columns, types or rows break the contract, or no pair is valid.
        JoinError: The keys of the pairs and of the reference do not fit.
        StorageError: A file cannot be read or written, or an output exists already.
        Cancelled: The run was stopped.

    Examples:
        >>> import polars as pl, dpo_pipeline
        >>> pairs = pl.DataFrame({"policy_chosen_logps": [-10.0, -9.0, -8.0],
        ...                       "policy_rejected_logps": [-14.0, -8.0, -8.5],
        ...                       "ref_chosen_logps": [-11.0, -9.0, -9.0],
        ...                       "ref_rejected_logps": [-12.0, -9.0, -9.0]})
        >>> dpo_pipeline.select(pairs, rule="nearest_tie", keep=0.5).n_kept
        2
    """
    groups = Groups.of(locals())
    asked = given(Selection, selection, rule=rule, keep=keep)
    _check(asked, groups)
    objective, subsets = groups.objective, given(Subsets, by)
    refuse_completions(objective, "select")
    if objective.is_of_batches:
        raise UsageError(f"{objective} is a loss of batches, and ranks no pair alone")
    places = {"rest": asked.rest, "contradictions": asked.contradictions, "kept": sink}
    there = {name: place for name, place in places.items() if place is not None}
    for place in there.values():
        if not isinstance(place, (str, os.PathLike)):
            raise UsageError(f"an output must be a path, found {type(place).__name__}")
        checked_parquet_name(place)
    dataset = groups.opened(again=True)
    subsets = subsets.within(dataset.columns)
    sources = [groups.pairs.source, None if groups.reference is None else groups.reference.source]
    for source in sources:
        check_outside(source, list(there.values()))
    asked = replace(
        asked,
        judge=split_names(asked.judge_columns, dataset.columns),
        losses=split_names(asked.loss_columns, dataset.columns),
    )
    rules = tuple(
        rule_of(each, asked) for each in (asked.rule, *checked_names("compare", asked.compared))
    )
    adds = [a.name for a in (*SELECTED, *(CONTRADICTING if "contradictions" in there else ()))]
    binding = groups.bound(
        dataset,
        objective.needs,
        adds=[*adds, *(each.name for each in SCORED)],
        replace_added=not there,
        groups_by=subsets.names,
    )
    measurement = Measurement.of(groups, dataset, binding, (objective,), by=subsets)
    _check_columns(rules, asked, measurement)
    carried = carried_columns(None, binding, dataset) if there else ()
    check_written(carried, binding, dataset)
    parts = PartOutputs.of(dataset, None, measurement.executor)
    publication = publication_of(groups.outputs, groups.access, dataset)
    return SelectionPlan(
        measurement=measurement,
        selection=asked,
        rules=rules,
        parts=parts,
        places=there,
        carried=tuple(carried),
        options=groups.as_given(by=subsets, selection=asked),
        outputs=(
            *Documents.checked(groups.outputs, publication),
            *(publication.check(place, parts.relatives) for place in there.values()),
        ),
    )


def _check(asked: Selection, groups: Groups) -> None:
    """Raise a UsageError if the options make no selection."""
    if groups.outputs.report is not None:
        raise UsageError("select writes no report: evaluate what it kept for one")
    if groups.execution.engine != "local":
        raise UsageError("select ranks the pairs on this machine: leave the engine out")
    keep = asked.keep
    is_number = isinstance(keep, (int, float)) and not isinstance(keep, bool)
    if keep is None or not is_number or keep <= 0 or (isinstance(keep, float) and keep > 1):
        raise UsageError(
            f"keep must be a count (an integer from 1) or a share (a float above 0, up to 1), "
            f"found {keep!r}: --keep 50% or --keep 10000"
        )


def _check_columns(rules: Iterable[Rule], asked: Selection, made: Measurement) -> None:
    """Raise a UsageError if a rule names a column that is not there, or no number."""
    scored = made.scorer.scored(made.dataset.shard(0, None if not made.dataset.files else 0))
    schema = scored.collect_schema()
    for rule in rules:
        for name in needed_columns(rule, asked):
            if name not in schema:
                near = did_you_mean(name, schema.names())
                raise UsageError(f"{rule.name}: {name!r} is not a column{near}")
            if not schema[name].is_numeric():
                raise UsageError(f"{rule.name}: {name!r} is {schema[name]}, and must be a number")
        if rule.own:
            used = rule.value(asked).meta.root_names()
            lacking = [name for name in used if name not in schema]
            if lacking:
                near = did_you_mean(lacking[0], schema.names())
                there = ", ".join(schema.names())
                raise UsageError(
                    f"rule {rule.name!r}: {lacking[0]!r} is no rule and not a column{near}; the "
                    f"columns are {there}"
                )
