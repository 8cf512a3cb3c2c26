"""`score` and `token_kl`: a plan of pairs in, a plan with more columns out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from dpo_pipeline.arguments import checked_choice
from dpo_pipeline.columns import (
    MASK_OF,
    POLICY_CHOSEN,
    POLICY_REJECTED,
    REF_CHOSEN,
    REF_REJECTED,
    SCORED,
    TOKENS_OF,
    resolve,
)
from dpo_pipeline.contract import (
    Binding,
    Offences,
    Places,
    RuleSet,
    Schema,
    bind,
    numbered,
    offences,
)
from dpo_pipeline.defaults import LOSS_NAME, MAX_LOGP, ON_INVALID, OnInvalid
from dpo_pipeline.errors import ColumnError, InvalidPairsError, UsageError
from dpo_pipeline.evaluation import ShardScorer
from dpo_pipeline.invalid_report import InvalidReport
from dpo_pipeline.losses import (
    LossArguments,
    LossLike,
    CheckedObjective,
    k1,
    k2,
    k3,
    kept_tokens,
    with_scores,
)
from dpo_pipeline.sources import FrameLike, Shard, as_lazy
from dpo_pipeline.storage import reading
from dpo_pipeline.sums import Batching

if TYPE_CHECKING:
    import pyarrow as pa

_TABLE: Final = "the table"
_VALID: Final = "__dpo_pipeline_valid"


def arrow_stage(
    beta: float | None = None,
    *,
    loss: LossLike = LOSS_NAME,
    loss_args: LossArguments | None = None,
    dialect: str | None = None,
    on_invalid: OnInvalid = "raise",
    columns: Mapping[str, str] | None = None,
    contract: Schema | None = None,
    max_logp: float = MAX_LOGP,
    replace: bool = False,
) -> ArrowStage:
    """Return a function from a `pyarrow.Table` of pairs to one with the scored columns added.

    It pickles, keeps the order of the rows, and gives the same bits however rows lie in tables.

    Args:
        beta: KL strength, at least 0 (arXiv 2305.18290, Eq. 7); 0.1, or the dialect's.
        loss: Name of a loss, or names with weights; `dpo-pipeline losses` lists them.
        loss_args: Arguments of the losses, by name.
        dialect: "trl", "dpo-paper" or "rewardbench": the conventions of that system.
        on_invalid: "raise" for an error that reports every broken rule of the table, "exclude" to
            leave invalid pairs out.
        columns: Role to column, where names and aliases do not say it.
        contract: A pandera schema or model whose checks are added to the contract's.
        max_logp: Largest log-probability accepted, in nats.
        replace: Overwrite input columns that have the name of an added one.

    Raises:
        UsageError: An argument is not one that can be used, or the loss is one of batches, for
            which a table would have to be whole batches.
    """
    checked_choice(on_invalid, ON_INVALID, None)
    objective = CheckedObjective.of(loss, beta, loss_args=loss_args, dialect=dialect)
    if objective.is_of_batches:
        raise UsageError(
            f"{objective} is a loss of batches, and an engine cuts tables where it likes: use "
            "score_parquet with batch_size"
        )
    return ArrowStage(
        objective=objective,
        on_invalid=on_invalid,
        columns=columns,
        contract=contract,
        max_logp=max_logp,
        replace=replace,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrowStage:
    """Checks and scores a table; `arrow_stage` makes it, and says what the attributes are."""

    objective: CheckedObjective
    on_invalid: OnInvalid
    columns: Mapping[str, str] | None
    contract: Schema | None
    max_logp: float
    replace: bool

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return the table under canonical names, with the scored columns (Float64, in nats).

        Columns that need no cast are the input's own buffers, unless pairs are left out or a
        `contract` may change them. Null and NaN are invalid where a log-prob must be.

        Raises:
            ColumnError: The columns or their types do not fit the contract.
            InvalidPairsError: Rows break rules, and are not to be left out.
        """
        import pyarrow as pa

        bound = self._bound(table)
        scored = with_scores(bound.binding.prepare(bound.frame.lazy()), self.objective)
        made = scored.with_columns(bound.rules.valid.alias(_VALID)).collect()
        own = {name: table.column(source) for name, source in bound.untouched.items()}
        computed = made.select(n for n in (*bound.names, *_ADDED) if n not in own).to_arrow()
        fields, arrays = [], []
        for name in (*bound.names, *_ADDED):
            source = bound.untouched.get(name)
            inside = computed if source is None else table
            field = inside.schema.field(name if source is None else source)
            fields.append(field.with_name(name))
            arrays.append(inside.column(field.name))
        result = pa.table(arrays, schema=pa.schema(fields, metadata=table.schema.metadata))
        if made[_VALID].all():
            return result
        if self.on_invalid == "raise":
            raise InvalidPairsError(_report(scored, bound.rules, made))
        return result.filter(made[_VALID].to_arrow())

    def _bound(self, table: pa.Table) -> _Bound:
        names = table.column_names
        needs = self.objective.needs
        roles = set(resolve(names, self.columns, needs).mapping.values())
        # Only these go through Polars, so that no other column need be of a type that it has.
        read = [name for name in names if name in roles or self.contract is not None]
        with reading(_TABLE):
            frame = pl.DataFrame(table.select(read))
        arguments: dict[str, Any] = {
            "source": _TABLE,
            "max_logp": self.max_logp,
            "columns": self.columns,
            "contract": self.contract,
            "needs": needs,
        }
        adds = [added.name for added in SCORED]
        schema = {name: frame.schema.get(name, pl.Null) for name in names}
        whole = bind(pl.LazyFrame(schema=schema), adds=adds, replace=self.replace, **arguments)
        binding = bind(frame.lazy(), adds=adds, replace=self.replace, **arguments)
        untouched = {
            name: source
            for name in whole.columns
            if self.contract is None and (source := whole.mapping.get(name, name)) in names
            if frame.schema.get(source, pl.Null) == whole.columns[name]
        }
        checked = self.objective.columns_to_check(self.max_logp)
        return _Bound(
            frame=frame,
            binding=binding,
            rules=binding.rules.with_scores_in_range(checked),
            names=tuple(whole.columns),
            untouched=untouched,
        )


_ADDED: Final = tuple(added.name for added in SCORED)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bound:
    """A table that the contract was bound to.

    Attributes:
        frame: The columns that Polars reads.
        binding: The contract.
        rules: All rules, also those on scores.
        names: The columns of the result before the added ones.
        untouched: Those of them that stay as they are, to the input columns that they are.
    """

    frame: pl.DataFrame
    binding: Binding
    rules: RuleSet
    names: tuple[str, ...]
    untouched: Mapping[str, str]


def _report(scored: pl.LazyFrame, rules: RuleSet, made: pl.DataFrame) -> InvalidReport:
    found = Offences(rules.rules)
    found.add(offences(numbered(scored), rules).collect(), Places([]))
    return InvalidReport(
        source=_TABLE,
        n_pairs=made.height,
        n_invalid=int(made[_VALID].not_().sum()),
        broken=found.broken(),
        warnings=(),
    )


def score(
    pairs: FrameLike,
    beta: float | None = None,
    *,
    loss: LossLike = LOSS_NAME,
    loss_args: LossArguments | None = None,
    dialect: str | None = None,
    batch_size: int | None = None,
    columns: Mapping[str, str] | None = None,
    replace: bool = False,
) -> pl.LazyFrame:
    """Add the log-ratios, implicit rewards, margin and loss of each pair.

    Nothing is read: the result is a plan, to be chained with `pipe` and run by a sink. Rows are
    neither dropped nor judged; null gives null and NaN gives NaN. `score_parquet` and
    `evaluate` check the rows as well.

    Args:
        pairs: One row a pair, with four log-probs in nats under canonical names or aliases;
            a Polars frame or any dataframe.
        beta: KL strength, at least 0 (arXiv 2305.18290, Eq. 7); 0.1, or the dialect's.
        loss: Name of a loss, or names with weights; `dpo-pipeline losses` lists them.
        loss_args: Arguments of the losses, by name.
        dialect: "trl", "dpo-paper" or "rewardbench": the conventions of that system.
        batch_size: Consecutive rows of a batch, for a loss that depends on the other pairs of
            its batch; such a plan holds all rows in memory.
        columns: Role to column, where names and aliases do not say it.
        replace: Overwrite input columns that have the name of an added one.

    Returns:
        The pairs with role columns under canonical names (log-probs as Float64), all other
        columns as they were, and `chosen_logratio`, `rejected_logratio`, `chosen_reward`,
        `rejected_reward`, `reward_margin` and `loss` as Float64, in nats.

    Raises:
        UsageError: beta is negative or not finite, pairs is not a dataframe, or there is no
            such loss, argument or dialect, or a loss of batches lacks its batch size.
        ColumnError: A log-prob column is missing, ambiguous or not numeric, or an input
            column has the name of an output column.
    """
    objective = CheckedObjective.of(loss, beta, loss_args=loss_args, dialect=dialect)
    frame = as_lazy(pairs)
    with reading("pairs"):
        binding = bind(
            frame,
            source="pairs",
            max_logp=MAX_LOGP,
            columns=columns,
            adds=[added.name for added in SCORED],
            replace=replace,
            needs=objective.needs,
        )
    batching = Batching.of(batch_size=batch_size, batch_by=None, to_file=False)
    if batching is not None and not objective.is_of_batches:
        raise UsageError(f"batch_size: {objective} does not depend on batches")
    scorer = ShardScorer(
        binding=binding, objective=objective, batching=batching if objective.is_of_batches else None
    )
    scored = scorer.scored(Shard(frame=frame, first_row=0, rows=None))
    return scored.select(*binding.columns.names(), *(added.name for added in SCORED))


def token_kl(
    pairs: FrameLike,
    *,
    columns: Mapping[str, str] | None = None,
    max_logp: float = MAX_LOGP,
    replace: bool = False,
) -> pl.LazyFrame:
    """Add estimates of the divergence from the reference, from lists of per-token log-probs.

    Nothing is read: the result is a plan. They are means over the tokens that count of one
    completion; k1 is d, k2 is d^2 / 2, k3 is exp(-d) - 1 + d, with d the log-ratio of a token
    (Schulman, "Approximating KL divergence"). They estimate KL(policy || reference) on tokens
    sampled from the policy; those of a dataset are not, so compare them between datasets or
    checkpoints, and do not call them the models' KL.

    Args:
        pairs: One row a pair, with lists of per-token log-probs of policy and reference.
        columns: Role to column, where names and aliases do not say it.
        max_logp: As in `evaluate`.
        replace: Overwrite input columns that have the name of an added one.

    Returns:
        The pairs under canonical names, with `chosen_k1`, `chosen_k2`, `chosen_k3`, and the same
        for the rejected completion, in nats; null where lists have two lengths, or no token.

    Raises:
        ColumnError: A list is missing, or is none, or an input column has the name of an added
            one.
    """
    frame = as_lazy(pairs)
    with reading("pairs"):
        binding = bind(
            frame,
            source="pairs",
            max_logp=max_logp,
            columns=columns,
            adds=[f"{side}_{k}" for side in ("chosen", "rejected") for k in ("k1", "k2", "k3")],
            replace=replace,
        )
    lacking = [role.name for role in TOKENS_OF.values() if role.name not in binding.columns]
    if lacking:
        raise ColumnError("pairs", tuple(f"{n}: missing, and KL is one of tokens" for n in lacking))
    estimates = {}
    for policy, reference in ((POLICY_CHOSEN, REF_CHOSEN), (POLICY_REJECTED, REF_REJECTED)):
        mask = MASK_OF[policy.name].name
        counts = pl.col(mask) if mask in binding.columns else None
        ours, theirs = (
            kept_tokens(pl.col(TOKENS_OF[role.name].name), counts) for role in (policy, reference)
        )
        side = "chosen" if policy is POLICY_CHOSEN else "rejected"
        lengths = [pl.col(TOKENS_OF[r.name].name).list.len() for r in (policy, reference)]
        for estimate in (k1, k2, k3):
            estimates[f"{side}_{estimate.__name__}"] = pl.when(lengths[0] == lengths[1]).then(
                estimate(ours, theirs)
            )
    return binding.prepare(frame).with_columns(**estimates)
