"""`rank`: completions in, how their rewards rank them within their prompts out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import polars as pl

from dpo_pipeline.arguments import given
from dpo_pipeline.columns import LABEL, LOGPS, RANK, ROLES, SCORED, is_spelled, needs_of_columns
from dpo_pipeline.contract import Binding, Places, listed, why_refused
from dpo_pipeline.defaults import LOSS_NAME
from dpo_pipeline.errors import ContractError, InvalidPairsError, UsageError
from dpo_pipeline.evaluation import (
    Documents,
    Groups,
    checked_objective,
    inputs_of,
    paths_of,
    warn_of,
)
from dpo_pipeline.invalid_report import BrokenRule, InvalidReport
from dpo_pipeline.layouts import BETTER, Counted, Together, columns_of
from dpo_pipeline.losses import CheckedObjective, completion_reward
from dpo_pipeline.options import BestOf, Subsets
from dpo_pipeline.plan import Facts, Output, Plan, planned
from dpo_pipeline.ranking.prompt_sums import PROMPT, REWARD, SIZE, added, figures_of, sums_of
from dpo_pipeline.ranking.ranking_result import (
    Ranking,
    curve_of,
    figures_in,
    subset_table,
)
from dpo_pipeline.ranking.rewardbench2 import SUBSET, RewardBench2, is_ties, margins_of, scores
from dpo_pipeline.sources import KEY, REWARDBENCH, Dataset, format_of, publication_of
from dpo_pipeline.storage import reading

_VALID: Final = "__dpo_pipeline_valid"
_BY: Final = "__dpo_pipeline_by_"
_QUANTA: Final = 2.0**40
_NOT_LOOKED_FOR: Final = (
    "rank does not look whether policy and reference are of the same texts; check does, for "
    "shifted rows and equal columns"
)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class RankingPlan(Plan[Ranking]):
    """The plan of `rank`."""

    groups: Groups
    dataset: Dataset
    binding: Binding
    objective: CheckedObjective
    together: Together
    by: tuple[str, ...]
    best_of: BestOf
    is_benchmark: bool
    notes: tuple[str, ...]
    options: Mapping[str, Any]
    outputs: tuple[Output, ...]

    @property
    def facts(self) -> Facts:
        """What a dry run shows."""
        return Facts(
            function="rank",
            call="rank",
            source=self.dataset.name,
            notes=(*self.dataset.told, *self.notes),
            inputs=inputs_of(self.dataset),
            paths=paths_of(self.groups.pairs),
            rows=self.dataset.rows,
            columns=dict(self.binding.mapping),
            options=self.options,
            max_logp=self.binding.max_logp,
            objectives=(self.objective,),
            by=self.by,
            outputs=self.outputs,
        )

    def run(self) -> Ranking:
        """Read the completions once, write the document, and return the ranking."""
        groups = self.groups
        watch = groups.watch
        with publication_of(groups.outputs, groups.access, self.dataset) as publication:
            documents = Documents(groups.outputs, publication)
            result = self._ranked()
            documents.write(result)
            publication.commit(watch.check)
        warn_of(result.invalid)
        return result

    def _ranked(self) -> Ranking:
        keys = [f"{_BY}{i}" for i in range(len(self._by_all))]
        counted, n_invalid, watch = Counted(), 0, self.groups.watch
        sums: list[pl.DataFrame] = []
        ties: list[pl.DataFrame] = []
        with reading(self.dataset.read_from):
            for piece in self.together.rows([REWARD, _VALID, *keys], counted):
                watch.check()
                n_invalid += piece.height - int(piece[_VALID].sum())
                rows = piece.filter(_VALID).with_columns(pl.col(KEY).rle_id().alias(PROMPT))
                watch.step("evaluating", piece.height, self.dataset.rows)
                if not rows.height:
                    continue
                prompts = figures_of(rows, better=BETTER, value=self._is_value)
                prompts = prompts.hstack(self._subsets_of(rows, keys))
                sums.append(sums_of(prompts, keys))
                if self.is_benchmark:
                    ties.append(self._ties(rows, keys))
                if len(sums) > _MOST_HELD:
                    sums = [added(sums, [*keys, "size"])]
        n_read, n_invalid = counted.n_completions, n_invalid + counted.n_left_out
        report = self._report(n_read, n_invalid)
        if not sums:
            raise ContractError(f"{self.dataset.name}: it holds no completions of known prompts")
        return self._result(added(sums, [*keys, "size"]), keys, ties, report)

    @property
    def _by_all(self) -> tuple[str, ...]:
        """The columns of subsets, and that of the benchmark's."""
        own = (SUBSET,) if self.is_benchmark and SUBSET not in self.by else ()
        return (*self.by, *own)

    @property
    def _is_value(self) -> bool:
        return self.together.preference is not RANK

    def _subsets_of(self, rows: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
        """Return the subset of each prompt, which all its completions must share."""
        if not keys:
            return pl.DataFrame()
        found = rows.group_by(PROMPT, maintain_order=True).agg(
            pl.col(KEY).first(),
            *(pl.col(key).first() for key in keys),
            *(pl.col(key).n_unique().alias(f"{key}_n") for key in keys),
        )
        for name, key in zip(self._by_all, keys, strict=True):
            odd = found.filter(pl.col(f"{key}_n") > 1)
            if odd.height:
                prompt = odd[KEY][0]
                raise UsageError(f"by: prompt {prompt!r} has several values of {name!r}")
        return found.select(keys)

    def _ties(self, rows: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
        key = keys[self._by_all.index(SUBSET)]
        there = rows[key].unique().to_list()
        named = [value for value in there if is_ties(value)]
        return margins_of(rows.filter(pl.col(key).is_in(named)), BETTER)

    def _report(self, n_read: int, n_invalid: int) -> InvalidReport:
        asked, rules = self.groups.on_invalid, self.binding.rules
        broken: tuple[BrokenRule, ...] = ()
        if n_invalid:
            rows = self.binding.prepare(self.dataset.whole)
            broken = listed(rows, rules, Places([]), read_from=self.dataset.name).broken()
        report = InvalidReport(
            source=self.dataset.name,
            n_pairs=n_read,
            n_invalid=n_invalid,
            broken=broken,
            notes=self.dataset.notes,
            not_looked_for=_NOT_LOOKED_FOR if self.binding.needs.reference else None,
            row="completion",
        )
        reason = why_refused(asked, n_invalid, n_read, "completion") if n_read else None
        if reason is not None:
            excluding = asked.action != "raise"
            raise InvalidPairsError(
                report, reason=reason if excluding else "", is_excluding=excluding
            )
        return report

    def _result(
        self,
        sums: pl.DataFrame,
        keys: Sequence[str],
        ties: Sequence[pl.DataFrame],
        report: InvalidReport,
    ) -> Ranking:
        level, asked = self.best_of.level, self.best_of.n
        names = dict(zip(keys, self._by_all, strict=True))
        total = sums.drop(keys).sum().row(0, named=True)
        is_share = self.together.preference is LABEL
        curve, n_drawn_from = curve_of(sums, asked, level, is_share=is_share)
        drawn = max(curve, default=None)
        of_subset = added([sums], [*keys[: len(self.by)], "size"]) if self.by else None
        n_prompts = int(total["n_prompts"])
        benchmark = self._benchmark(sums, keys, ties)
        return Ranking(
            source=self.dataset.name,
            objective=self.objective,
            by_preference=self.together.preference.name,
            level=level,
            n_completions=int(total[SIZE]),
            n_prompts=n_prompts,
            n_alone=int(total["n_alone"]),
            n_undecided=n_prompts - int(total["n_top"]) - int(total["n_alone"]),
            n_without_tau=n_prompts - int(total["n_tau"]) - int(total["n_alone"]),
            figures=figures_in(total, level),
            best_of=curve,
            n_drawn_from=n_drawn_from,
            subsets=None
            if of_subset is None
            else subset_table(
                of_subset.rename({k: n for k, n in names.items() if k in of_subset.columns}),
                self.by,
                level,
                drawn,
                is_share=is_share,
            ),
            rewardbench=benchmark,
            invalid=report,
            by=self.by,
            notes=(*self.notes, *(() if benchmark is None else benchmark.notes)),
        )

    def _benchmark(
        self, sums: pl.DataFrame, keys: Sequence[str], ties: Sequence[pl.DataFrame]
    ) -> RewardBench2 | None:
        if not self.is_benchmark:
            return None
        key = keys[self._by_all.index(SUBSET)]
        rows = sums.group_by(key).agg(pl.col("sum_credit", "n_prompts").sum())
        earned = {str(name): credit / (_QUANTA * n) for name, credit, n in rows.iter_rows()}
        margins = pl.concat(ties)
        return scores(earned, margins if margins.height else None)


_MOST_HELD: Final = 64
"""Tables of sums that are held before they are added up."""


@planned
def rank(
    pairs: Any,
    beta: float | None = None,
    *,
    reference: Any = None,
    loss: Any = LOSS_NAME,
    by: Any = (),
    best_of: Any = None,
    contract: Any = None,
    on_invalid: Any = "raise",
    outputs: Any = None,
    execution: Any = None,
) -> Plan[Ranking]:
    """Say how rewards rank the completions of each prompt, with intervals by prompt.

    A completion's reward is that of a loss: beta times its log-ratio, or beta times the policy's
    log-prob where there is no reference. The completions of a prompt may stand anywhere: where they
    stand together, the data is read in order, and otherwise parted by prompt first.

    Args:
        pairs: `Pairs`, or their source: completions, one a row, or lists of them in one row a
            prompt, with `rank`, `score` or `label` (the first that is there).
        beta: As in `evaluate`; only the variance of the reward depends on it.
        reference: As in `evaluate`, joined by `completion_id` if nothing else is said.
        loss: As in `evaluate`: the loss whose reward is ranked.
        by: `Subsets`, or columns; each prompt has one value of them.
        best_of: `BestOf`, or the n up to which the curve goes: all that half of the prompts have
            completions for, if not given.
        contract: As in `evaluate`.
        on_invalid: As in `evaluate`: "exclude" leaves out invalid completions.
        outputs: As in `evaluate`, without a report.
        execution: As in `evaluate`; the work is done here.

    Raises:
        UsageError: An argument cannot be used, or a prompt is in several subsets.
        ContractError: Columns, types or rows break the contract, or no completion is valid.
        JoinError, StorageError, Cancelled: As `evaluate`.

    Examples:
        >>> import polars as pl, dpo_pipeline
        >>> rows = pl.DataFrame({"prompt_id": [1, 1, 1], "policy_logps": [-3.0, -1.0, -2.0],
        ...                      "label": [False, True, False]})
        >>> dpo_pipeline.rank(rows).figures["top_one"].value
        1.0
    """
    groups = Groups.of(locals())
    asked, subsets = given(BestOf, best_of), given(Subsets, by)
    if groups.pairs.pairing is not None:
        raise UsageError("rank is of completions: leave pairing out")
    if groups.execution.engine != "local":
        raise UsageError("rank is done on this machine: leave the engine out")
    dataset = groups.opened(row="completion")
    if any(is_spelled(ROLES[name], dataset.columns, groups.pairs.columns) for name in LOGPS):
        raise UsageError(
            f"{dataset.name}: these are pairs, and rank is of completions: evaluate them "
            "(`dpo-pipeline evaluate`)"
        )
    subsets = subsets.within(dataset.columns)
    columns = columns_of(dataset, groups.pairs.columns)
    needs = needs_of_columns(dataset.columns, columns)
    notes = []
    wanted = groups.asked
    objective = groups.objective
    if objective.needs.reference and not needs.reference:
        notes.append("no ref_logps: rewards are beta times the policy's log-probs")
        free = {**wanted.arguments, "reference_free": True}
        objective = checked_objective(replace(wanted, arguments=free))
    needs = replace(
        needs, row="completion", tokens=objective.needs.tokens, reference=objective.needs.reference
    )
    binding = groups.bound(dataset, needs, adds=[added.name for added in SCORED])
    for name in subsets.names:
        if name not in dataset.columns:
            raise UsageError(f"by: {dataset.no_column(name, dataset.columns)}")
    is_benchmark = format_of(groups.pairs) == REWARDBENCH and SUBSET in dataset.columns
    by = subsets.names
    own = (SUBSET,) if is_benchmark and SUBSET not in by else ()
    together = Together(dataset, columns)
    if together.others:
        name = together.others[0].name
        notes.append(f"ranked by {together.taken}: --column {name}={name} takes {name}")
    rows = binding.prepare(dataset.whole).with_columns(
        completion_reward(objective).alias(REWARD),
        binding.rules.valid.alias(_VALID),
        *(pl.col(name).alias(f"{_BY}{i}") for i, name in enumerate((*by, *own))),
    )
    options = groups.as_given(by=subsets, best_of=asked)
    return RankingPlan(
        groups=groups,
        dataset=dataset,
        binding=binding,
        objective=objective,
        together=together.of(rows),
        by=by,
        best_of=asked,
        is_benchmark=is_benchmark,
        notes=tuple(notes),
        options=options,
        outputs=Documents.checked(
            groups.outputs, publication_of(groups.outputs, groups.access, dataset)
        ),
    )
