"""Partial sums that merge exactly, and the figures that follow from them.

`tally` is the plan that makes one row of sums for each group; `merge` adds such rows, in any
order; `figures` divides. Where rewards are beta times a log-ratio only the loss and the log-probs
are summed: the means of rewards and margins follow from these without error.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial, reduce
from typing import Any, Final, Literal, Self, TypeAlias

import polars as pl

from dpo_pipeline.columns import (
    ALL_LOGPS,
    CHOSEN_REWARD,
    COUNT_ROLES,
    LOGPS,
    LOSS,
    N_PAIRS,
    N_VALID,
    POLICY_CHOSEN,
    POLICY_REJECTED,
    REF_CHOSEN,
    REF_REJECTED,
    REJECTED_REWARD,
    REWARD_MARGIN,
    TOKENS,
    Needs,
)
from dpo_pipeline.exact import bin_of, exact_sum, exact_sum_of_small, mean_of
from dpo_pipeline.losses import CheckedObjective, name_of_score
from dpo_pipeline.sums.named_figures import TRL_METRICS
from dpo_pipeline.sums.pair_sums import VALID, pair_count, valid_only
from dpo_pipeline.sums.sense import (
    LAGGED,
    N_UNMOVED,
    equal_pairs,
    is_equal,
    sense_sums,
    with_summed,
)

OBJECTIVE: Final = "objective"
BETA: Final = "beta"
"""Columns that tell the figures of several objectives apart."""

N_CLEAN: Final = "n_clean"
"""Rows that the quick form of `tally` sums rightly; it is right if all are."""

_ROW: Final = "__dpo_pipeline_row"
BIN: Final = "__dpo_pipeline_bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The figures of a group of pairs. Means are over its valid pairs, each counting once.

    A mean is None where there is no valid pair. Its error is at most 2**-41 nats (a
    half quantum of the exact sums; twice that times beta for a reward, four times for a
    margin) plus one rounding to Float64; it does not depend on the batch size, the order
    of the rows, threads or files.
    """

    n_pairs: int  # pairs read
    n_valid: int  # pairs that keep every rule
    n_invalid: int  # pairs that break a rule or more
    n_ties: int  # valid pairs with equal rewards; they count as not correct
    loss: float | None  # nats
    reward_accuracy: float | None  # share of valid pairs with chosen above rejected reward
    chosen_reward: float | None  # nats
    rejected_reward: float | None  # nats
    reward_margin: float | None  # nats
    policy_chosen_logps: float | None  # nats
    policy_rejected_logps: float | None  # nats
    ref_chosen_logps: float | None  # nats; None for a loss without a reference
    ref_rejected_logps: float | None  # nats; None for a loss without a reference

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Self:
        """Make it from one row of `figures`."""
        return cls(**{name: row[name] for name in SUMMARY_FIGURES})

    def to_dict(self) -> dict[str, int | float | None]:
        """Return the fields by name."""
        return {name: getattr(self, name) for name in SUMMARY_FIGURES}

    def to_metrics(self, prefix: str = "") -> dict[str, float | None]:
        """Return the figures that TRL logs, under TRL's names with `prefix` before them."""
        return {prefix + metric: getattr(self, name) for metric, name in TRL_METRICS.items()}


SUMMARY_FIGURES: Final = tuple(field.name for field in fields(Summary))


Moments: TypeAlias = Literal["none", "rows", "neighbours"]
"""Of which rows sums of squares and products are; "neighbours": also of a row and the next."""


def tally(
    pairs: pl.LazyFrame,
    *,
    valid: pl.Expr,
    objectives: Sequence[CheckedObjective] = (),
    needs: Needs = ALL_LOGPS,
    keys: Sequence[str] = (),
    in_order: bool = False,
    by_bin: bool = False,
    moments: Moments = "rows",
    clean: pl.Expr | None = None,
    few: bool = False,
    extra: Sequence[pl.Expr] = (),
    binned: pl.Expr | None = None,
) -> pl.LazyFrame:
    """Return one row of partial sums for each group of `keys`; nothing is read yet.

    Args:
        pairs: Prepared pairs with the key columns, scored for each objective.
        valid: True where a pair counts.
        objectives: Whose scores are summed; if empty, only what needs no score.
        needs: Which columns are there.
        keys: None makes one row.
        in_order: The one key is sorted, so a group is finished where the next begins.
        by_bin: Group by the margin's histogram bin too; invalid pairs have none.
        moments: Of which rows the sums of `sense_sums` are taken, if not by key.
        clean: Makes the quick form: every row counts, and sums are right if this is true on all
            rows. `N_CLEAN` says on how many it is.
        few: Groups have less than `exact.FEW` rows.
        extra: More sums to carry; one named `min_...` merges by the minimum.
        binned: The bin of each row, if not that of the margin.
    """
    is_whole = not (keys or by_bin)
    if clean is None:
        form = _Form(total=exact_sum, of_valid=valid_only, more={})
    else:
        valid = pl.lit(value=True)
        small = partial(exact_sum_of_small, few=few, grouped=not is_whole, count=pl.len())
        form = _Form(total=small, of_valid=_all, more={N_CLEAN: clean})
    marked = pairs.with_columns(valid.alias(VALID))
    counted = {N_VALID: pl.col(VALID), **form.more}
    # What warnings are made from.
    counted |= {N_UNMOVED: _unmoved(needs), **(equal_pairs(needs) if is_whole else {})}
    sums = [pair_count(), *extra, *(form.count(where, name) for name, where in counted.items())]
    if is_whole and moments != "none":
        lagged = moments == "neighbours"
        marked = with_summed(marked, needs, lagged=lagged)
        sums += sense_sums(needs, counts_in(pairs), lagged=lagged)
    summed = needs.logps if objectives else ()
    sums += [form.sum(name).alias(f"sum_{name}") for name in summed]
    for i, objective in enumerate(objectives):
        sums += _sums(objective, objectives, suffix_of(i, objectives), form)
    if by_bin:
        bins = pl.when(VALID).then(bin_of(pl.col(REWARD_MARGIN)) if binned is None else binned)
        return marked.with_columns(bins.alias(BIN)).group_by(*keys, BIN).agg(sums)
    if not keys:
        return marked.select(sums)
    if in_order:
        return marked.set_sorted(keys[0]).group_by(keys, maintain_order=True).agg(sums)
    return marked.group_by(keys).agg(sums)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Form:
    """How values are added up, which of them, and what more is counted."""

    total: Callable[[pl.Expr], pl.Expr]
    of_valid: Callable[[pl.Expr], pl.Expr]
    more: Mapping[str, pl.Expr]

    def count(self, where: pl.Expr, name: str) -> pl.Expr:
        """Count valid pairs."""
        return self.of_valid(where).sum().cast(pl.Int64).alias(name)

    def sum(self, name: str) -> pl.Expr:
        """Add up a column of the valid pairs."""
        return self.total(self.of_valid(pl.col(name)))


def _all(values: pl.Expr) -> pl.Expr:
    return values


def sense_of(
    pairs: pl.LazyFrame, *, valid: pl.Expr, needs: Needs, lagged: bool, has_equal: bool
) -> pl.LazyFrame:
    """Return one row of the sums of `sense_sums` over prepared pairs.

    `has_equal` adds counts of equal log-probs, where `tally` has none.
    """
    marked = with_summed(pairs.with_columns(valid.alias(VALID)), needs, lagged=lagged)
    form = _Form(total=exact_sum, of_valid=valid_only, more=equal_pairs(needs) if has_equal else {})
    return marked.select(
        *sense_sums(needs, counts_in(pairs), lagged=lagged),
        *(form.count(where, name) for name, where in form.more.items()),
    )


def neighbours_of(pairs: pl.LazyFrame, *, valid: pl.Expr, needs: Needs) -> pl.LazyFrame:
    """Return the sums of `sense_sums` that compare neighbouring rows, of rows in their own order.

    They replace those of a row of sums that compares none.
    """
    sense = sense_of(pairs, valid=valid, needs=needs, lagged=True, has_equal=False)
    return sense.select("n_lagged", *LAGGED)


def rolled_up(
    clusters: pl.DataFrame, objective: CheckedObjective, needs: Needs, keys: Sequence[str]
) -> pl.DataFrame:
    """Return the sums of `tally` for one objective from those of clusters of the same pairs.

    Without counts of equal log-probs, which clusters do not have.
    """
    scores = [LOSS, *([] if objective.has_linear_rewards else (CHOSEN_REWARD, REJECTED_REWARD))]
    names = [N_PAIRS, N_VALID, N_UNMOVED, "n_correct", "n_ties"]
    names += [f"sum_{name}" for name in (*needs.logps, *scores)]
    if N_UNMOVED not in clusters.columns:  # there is no reference
        clusters = clusters.with_columns(pl.lit(0, dtype=pl.Int64).alias(N_UNMOVED))
    return merge([clusters.select(*keys, *names)], keys)


def counts_in(pairs: pl.LazyFrame) -> list[str]:
    """Return the columns of token counts that are there."""
    columns = pairs.collect_schema()
    return [role.name for role in (*COUNT_ROLES, TOKENS) if role.name in columns]


def _unmoved(needs: Needs) -> pl.Expr:
    if not needs.reference:
        return pl.lit(value=False)
    unmoved = (is_equal(text.policy.name, text.ref.name) for text in needs.texts)
    return reduce(operator.and_, unmoved)


def suffix_of(i: int, objectives: Sequence[CheckedObjective]) -> str:
    """Return the suffix of the sums of objective `i`; empty for a single objective."""
    return "" if len(objectives) == 1 else f"_{i}"


def _sums(
    objective: CheckedObjective,
    objectives: Sequence[CheckedObjective],
    suffix: str,
    form: _Form,
) -> list[pl.Expr]:
    margin = pl.col(name_of_score(REWARD_MARGIN, objective, objectives))
    is_linear = objective.has_linear_rewards
    summed = [LOSS, *([] if is_linear else (CHOSEN_REWARD, REJECTED_REWARD))]
    return [
        # Margins of valid pairs are finite.
        form.count(margin > 0.0, f"n_correct{suffix}"),
        form.count(margin == 0.0, f"n_ties{suffix}"),
        *(
            form.sum(name_of_score(name, objective, objectives)).alias(f"sum_{name}{suffix}")
            for name in summed
        ),
    ]


def merge(partials: Sequence[pl.DataFrame], keys: Sequence[str] = ()) -> pl.DataFrame:
    """Add partial sums group by group; groups keep the order in which they first appear."""
    if not keys and len(partials) == 1 and partials[0].height == 1:
        return partials[0]
    rows = pl.concat(partials)
    extreme = {"min_": pl.Expr.min, "max_": pl.Expr.max}
    combined = [
        extreme.get(name[:4], pl.Expr.sum)(pl.col(name))
        for name in rows.columns
        if name not in keys
    ]
    if not keys:
        return rows.select(combined)
    return rows.group_by(keys, maintain_order=True).agg(combined)


def figures(
    sums: pl.DataFrame, objective: CheckedObjective, *, keys: Sequence[str] = (), suffix: str = ""
) -> pl.DataFrame:
    """Return the columns of `Summary` beside the keys, from merged partial sums.

    `suffix` is that of the objective's own sums.
    """
    count = pl.col(N_VALID)
    chosen, rejected, scale = reward_sums(objective, suffix)
    return sums.select(
        *keys,
        n_pairs=pl.col(N_PAIRS),
        n_valid=count,
        n_invalid=pl.col(N_PAIRS) - count,
        n_ties=pl.col(f"n_ties{suffix}"),
        loss=mean_of(pl.col(f"sum_{LOSS}{suffix}"), count),
        reward_accuracy=pl.col(f"n_correct{suffix}") / pl.when(count > 0).then(count),
        chosen_reward=scale * mean_of(chosen, count),
        rejected_reward=scale * mean_of(rejected, count),
        reward_margin=scale * mean_of(chosen - rejected, count),
        **{
            name: mean_of(pl.col(f"sum_{name}"), count)
            if f"sum_{name}" in sums.columns
            else pl.lit(None, dtype=pl.Float64)
            for name in LOGPS
        },
    )


def with_objectives(
    tables: Sequence[pl.DataFrame], objectives: Sequence[CheckedObjective]
) -> pl.DataFrame:
    """Interleave the tables of figures of several objectives: all first rows, all second, ..."""
    told = [
        table.with_row_index(_ROW).select(
            _ROW,
            pl.lit(str(each)).alias(OBJECTIVE),
            pl.lit(each.beta).alias(BETA),
            pl.exclude(_ROW),
        )
        for table, each in zip(tables, objectives, strict=True)
    ]
    return pl.concat(told).sort(_ROW, maintain_order=True).drop(_ROW)


def reward_sums(objective: CheckedObjective, suffix: str = "") -> tuple[pl.Expr, pl.Expr, float]:
    """Return the sums of chosen and rejected rewards, from the columns of `tally`, and a factor.

    The sums are whole quanta. Where rewards are beta times a log-ratio they are those of the
    log-ratios, which have no rounding error, and the factor is beta; otherwise it is 1.
    """
    basis = objective.reward_basis
    if not objective.has_linear_rewards:
        chosen, rejected = (f"sum_{n}{suffix}" for n in (CHOSEN_REWARD, REJECTED_REWARD))
        return pl.col(chosen), pl.col(rejected), 1.0
    sums = [pl.col(f"sum_{role.name}") for role in (POLICY_CHOSEN, POLICY_REJECTED)]
    if basis.reference:
        sums[0] -= pl.col(f"sum_{REF_CHOSEN.name}")
        sums[1] -= pl.col(f"sum_{REF_REJECTED.name}")
    return sums[0], sums[1], objective.beta
