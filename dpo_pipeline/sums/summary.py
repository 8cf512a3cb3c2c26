"""Partial sums that merge exactly, and the figures that follow from them.

`totals` and `tally` are the plans that make one row of sums, of all pairs and of each group;
`merge` adds such rows, in any order; `figures` divides. Where rewards are beta times a log-ratio
only the loss and the log-probs are summed: the means of rewards and margins follow from these
without error.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import Enum
from functools import reduce
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
from dpo_pipeline.contract import Clean, RuleSet
from dpo_pipeline.exact import (
    BITS,
    SMALL,
    bin_of,
    exact_sum,
    exact_sum_of_small,
    float_and_bits,
    mean_of,
    sum_of_bits,
)
from dpo_pipeline.losses import CheckedObjective, name_of_score
from dpo_pipeline.sums.moments import square_sums, with_squares
from dpo_pipeline.sums.named_figures import TRL_METRICS
from dpo_pipeline.sums.pair_sums import VALID, pair_count, valid_only
from dpo_pipeline.sums.sense import (
    EVERY,
    LAGGED,
    N_SEEN,
    N_UNMOVED,
    are_unmoved,
    equal_pairs,
    sense_sums,
    with_equal,
    with_summed,
)

OBJECTIVE: Final = "objective"
BETA: Final = "beta"
"""Columns that tell the figures of several objectives apart."""

N_CLEAN: Final = "n_clean"
"""Rows that a form of sums takes rightly for granted; the sums are right if all are."""

_ROW: Final = "__dpo_pipeline_row"
_END: Final = "__dpo_pipeline_end_"
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


Moments: TypeAlias = Literal["rows", "neighbours"]
"""Of which rows sums of squares and products are; "neighbours": also of a row and the next."""


class Form(Enum):
    """What sums take for granted. Those that take less cost more; `ANY` is always right."""

    CLEAN = "clean"  # all pairs are those of a `Clean`
    SMALL = "small"  # values of valid pairs are within its ranges
    ANY = "any"


def form_of(sense: pl.DataFrame, rows: int) -> Form:
    """Return the form that fits so many rows with these sums of `sense_sums`, and others likely."""
    row = sense.row(0, named=True)
    ends = [(row[f"min_{name}"], row[f"max_{name}"]) for name in EVERY if f"min_{name}" in row]
    if not all(least is None or (least >= -SMALL and most < 0.0) for least, most in ends):
        return Form.ANY
    return Form.CLEAN if row[N_SEEN] == rows else Form.SMALL


def totals(
    pairs: pl.LazyFrame,
    *,
    rules: RuleSet,
    objectives: Sequence[CheckedObjective] = (),
    needs: Needs = ALL_LOGPS,
    moments: Moments | None = "rows",
    form: Form = Form.ANY,
    squares: Literal["near", "wide"] | None = None,
    extra: Sequence[pl.Expr] = (),
) -> pl.LazyFrame:
    """Return one row of partial sums of all pairs; nothing is read yet.

    Args:
        pairs: Prepared pairs, scored for each objective.
        rules: Which pairs count, and which are clean.
        objectives: Whose scores are summed; if empty, only what needs no score.
        needs: Which columns are there.
        moments: Of which rows the sums of `sense_sums` are taken.
        form: What is taken for granted: sums are right if `N_CLEAN` says that all rows are so.
        squares: Which sums of `square_sums` are among them.
        extra: More sums to carry; one named `min_...` merges by the minimum.
    """
    marked, summed = _marked(pairs, rules, form), _summed(objectives, needs)
    if form is not Form.CLEAN:
        marked = _masked(marked, dict.fromkeys([*needs.logps, *summed]))
    counted = _counted(objectives, needs) | equal_pairs(needs)
    sums = [pair_count(), *extra, *(_count(each, name, form) for name, each in counted.items())]
    marked = with_equal(marked, needs)
    if moments is not None:
        lagged = moments == "neighbours"
        marked = with_summed(marked, needs, lagged=lagged)
        sums += sense_sums(needs, counts_in(pairs), lagged=lagged)
    if squares is not None:
        marked = with_squares(marked, are_valid=form is Form.CLEAN)
        sums += square_sums(is_wide=squares == "wide", is_whole=True)
    if form is Form.ANY:
        sums += [exact_sum(pl.col(name)).alias(total) for name, total in summed.items()]
        return marked.select(sums)
    for name, total in summed.items():
        sums += float_and_bits(pl.col(name), total)
    ends, fits = _fitting(rules.clean, form, summed)
    whole = [sum_of_bits(total, pl.col(N_VALID)) for total in summed.values()]
    n_clean = pl.when(fits).then(pl.col(N_PAIRS)).otherwise(0).alias(N_CLEAN)
    made = marked.select(*sums, **ends).with_columns(*whole, n_clean)
    return made.drop(*ends, *(f"{total}{BITS}" for total in summed.values()))


def tally(
    pairs: pl.LazyFrame,
    *,
    rules: RuleSet,
    keys: Sequence[str],
    objectives: Sequence[CheckedObjective] = (),
    needs: Needs = ALL_LOGPS,
    in_order: bool = False,
    by_bin: bool = False,
    form: Form = Form.ANY,
    squares: Literal["near", "wide"] | None = None,
    few: bool = False,
    extra: Sequence[pl.Expr] = (),
    binned: pl.Expr | None = None,
) -> pl.LazyFrame:
    """Return the same sums, without those of `moments`, for each group of `keys`.

    Args:
        pairs: Prepared pairs with the key columns, scored for each objective.
        rules: Which pairs count, and which are clean.
        keys: None is a group of all.
        objectives: Whose scores are summed; if empty, only what needs no score.
        needs: Which columns are there.
        in_order: The one key is sorted, so a group is finished where the next begins.
        by_bin: Group by the margin's histogram bin too; invalid pairs have none.
        form: What is taken for granted, `CLEAN` or `ANY`: `N_CLEAN` says of how many rows it holds.
        squares: Which sums of `square_sums` are among them.
        few: Groups have less than `exact.FEW` rows.
        extra: More sums to carry; one named `min_...` merges by the minimum.
        binned: The bin of each row, if not that of the margin.
    """
    marked = with_equal(_marked(pairs, rules, form), needs)
    counted = _counted(objectives, needs)
    sums = [pair_count(), *extra, *(_count(each, name, form) for name, each in counted.items())]
    if form is Form.CLEAN:
        sums.append(_count(rules.clean.rows, N_CLEAN, form))
    if squares is not None:
        marked = with_squares(marked, are_valid=form is Form.CLEAN)
        sums += square_sums(is_wide=squares == "wide")
    for name, total in _summed(objectives, needs).items():
        values = pl.col(name)
        small = exact_sum_of_small(values, pl.len(), few=few)
        sums.append((small if form is Form.CLEAN else exact_sum(valid_only(values))).alias(total))
    if by_bin:
        bins = pl.when(VALID).then(bin_of(pl.col(REWARD_MARGIN)) if binned is None else binned)
        return marked.with_columns(bins.alias(BIN)).group_by(*keys, BIN).agg(sums)
    if in_order:
        return marked.set_sorted(keys[0]).group_by(keys, maintain_order=True).agg(sums)
    return marked.group_by(keys).agg(sums)


def _marked(pairs: pl.LazyFrame, rules: RuleSet, form: Form) -> pl.LazyFrame:
    valid = pl.lit(value=True) if form is Form.CLEAN else rules.valid
    return pairs.with_columns(valid.alias(VALID))


def _masked(marked: pl.LazyFrame, names: Iterable[str]) -> pl.LazyFrame:
    """Return null for values of invalid pairs."""
    return marked.with_columns(valid_only(pl.col(name)).alias(name) for name in names)


def _summed(objectives: Sequence[CheckedObjective], needs: Needs) -> dict[str, str]:
    """Return the columns that are summed, and the names of their sums."""
    summed = {name: f"sum_{name}" for name in needs.logps} if objectives else {}
    for i, each in enumerate(objectives):
        rewards = () if each.has_linear_rewards else (CHOSEN_REWARD, REJECTED_REWARD)
        for name in (LOSS, *rewards):
            column = name_of_score(name, each, objectives)
            summed[column] = f"sum_{name}{suffix_of(i, objectives)}"
    return summed


def _counted(objectives: Sequence[CheckedObjective], needs: Needs) -> dict[str, pl.Expr | None]:
    """Return which valid pairs are counted, by the name of their count; None is all of them."""
    counted: dict[str, pl.Expr | None] = {N_VALID: None, N_UNMOVED: are_unmoved(needs)}
    for i, each in enumerate(objectives):
        margin = pl.col(name_of_score(REWARD_MARGIN, each, objectives))
        # Margins of valid pairs are finite.
        counted[f"n_correct{suffix_of(i, objectives)}"] = margin > 0.0
        counted[f"n_ties{suffix_of(i, objectives)}"] = margin == 0.0
    return counted


def _count(where: pl.Expr | None, name: str, form: Form = Form.ANY) -> pl.Expr:
    """Count valid pairs, all of them without `where`."""
    if form is Form.CLEAN:
        counted = pl.len() if where is None else where.sum()
    else:
        counted = (pl.col(VALID) if where is None else pl.col(VALID) & where).sum()
    return counted.cast(pl.Int64).alias(name)


def _fitting(
    clean: Clean, form: Form, summed: Mapping[str, str]
) -> tuple[dict[str, pl.Expr], pl.Expr]:
    """Return aggregates of all pairs, and what they say of the pairs: whether the form fits."""
    made: dict[str, pl.Expr] = {}
    fits: list[pl.Expr] = []
    for name, (low, end) in clean.ranges.items():
        values, least, most = pl.col(name), f"{_END}min_{name}", f"{_END}max_{name}"
        if form is Form.CLEAN:
            # Extremes leave NaN out; a sum does not.
            nulls, total = f"{_END}nulls_{name}", summed.get(name, f"{_END}sum_{name}")
            made[nulls] = values.null_count()
            if name not in summed:
                made[total] = values.sum()
            fits += [pl.col(nulls) == 0, pl.col(total).is_not_nan()]
        elif name not in summed:
            continue
        made |= {least: values.min(), most: values.max()}
        fits += [(pl.col(least) >= low).fill_null(value=True)]
        fits += [(pl.col(most) < end).fill_null(value=True)]
    if form is Form.CLEAN and clean.others:
        made[f"{_END}others"] = reduce(operator.and_, clean.others).all(ignore_nulls=False)
        fits.append(pl.col(f"{_END}others").fill_null(value=False))
    return made, reduce(operator.and_, fits, pl.lit(value=True))


def sense_of(
    pairs: pl.LazyFrame, *, valid: pl.Expr, needs: Needs, lagged: bool, has_equal: bool
) -> pl.LazyFrame:
    """Return one row of the sums of `sense_sums` over prepared pairs.

    `has_equal` adds counts of equal log-probs, where `tally` has none.
    """
    masked = _masked(pairs.with_columns(valid.alias(VALID)), needs.logps)
    marked = with_summed(masked, needs, lagged=lagged)
    counted = equal_pairs(needs) if has_equal else {}
    return with_equal(marked, needs).select(
        *sense_sums(needs, counts_in(pairs), lagged=lagged),
        *(_count(where, name) for name, where in counted.items()),
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


def suffix_of(i: int, objectives: Sequence[CheckedObjective]) -> str:
    """Return the suffix of the sums of objective `i`; empty for a single objective."""
    return "" if len(objectives) == 1 else f"_{i}"


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
