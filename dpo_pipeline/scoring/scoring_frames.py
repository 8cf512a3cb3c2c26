"""`score`, `token_kl` and `arrow_stage`: pairs in, the same with more columns out.

`arrow_stage` adds columns to rows that another engine holds, such as a Ray Dataset (`map_batches`)
or a Spark DataFrame (`mapInArrow`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from dpo_pipeline.arguments import checked_choice, given
from dpo_pipeline.columns import (
    ADDED_TO,
    ALL_LOGPS,
    LOGPS,
    MASK_OF,
    POLICY_CHOSEN,
    POLICY_REJECTED,
    REF_CHOSEN,
    REF_REJECTED,
    TOKENS_OF,
    resolve,
)
from dpo_pipeline.contract import Binding, Places, Schema, bind, listed
from dpo_pipeline.defaults import LOSS_NAME, ON_INVALID
from dpo_pipeline.errors import ColumnError, InvalidPairsError, UsageError
from dpo_pipeline.evaluation import (
    Groups,
    ShardScorer,
    checked_objective,
    max_logp_of,
)
from dpo_pipeline.invalid_report import InvalidReport
from dpo_pipeline.losses import CheckedObjective, k1, k2, k3, kept_tokens, with_scores
from dpo_pipeline.options import Batches, Contract, Objective, OnInvalid, Scored
from dpo_pipeline.scoring.scoring_files import carried_columns
from dpo_pipeline.sources import Shard
from dpo_pipeline.storage import reading
from dpo_pipeline.sums import Batching

if TYPE_CHECKING:
    import pyarrow as pa

_TABLE: Final = "the table"
_VALID: Final = "__dpo_pipeline_valid"


def score(
    pairs: Any,
    beta: float | None = None,
    *,
    loss: Any = LOSS_NAME,
    batches: Any = None,
    scored: Any = None,
) -> pl.LazyFrame:
    """Add the log-ratios, implicit rewards, margin and loss of each pair.

    Nothing is read: the result is a plan, to be chained with `pipe` and run by a sink. Rows are
    neither dropped nor judged; null gives null and NaN gives NaN. `score_parquet` and
    `evaluate` check the rows as well.

    Args:
        pairs: `Pairs`, or a dataframe of any kind: one row a pair, with four log-probs in nats
            under canonical names or aliases.
        beta: KL strength, at least 0 (arXiv 2305.18290, Eq. 7); 0.1, or the dialect's.
        loss: `Objective`, or the name of a loss, or names with weights.
        batches: `Batches` with a size, or the size: consecutive rows of a batch, for a loss that
            depends on the other pairs of its batch; such a plan holds all rows in memory.
        scored: `Scored` with `replace`: overwrite input columns that have the name of an added
            one; or the input columns to carry along.

    Returns:
        The pairs with role columns under canonical names (log-probs as Float64), all other
        columns as they were, and `chosen_logratio`, `rejected_logratio`, `chosen_reward`,
        `rejected_reward`, `reward_margin` and `loss` as Float64, in nats.

    Raises:
        UsageError: beta is negative or not finite, pairs is not a dataframe, or there is no
            such loss, argument or dialect, or a loss of batches lacks its batch size.
        ColumnError: A log-prob column is missing, ambiguous or not numeric, or an input
            column has the name of an output column.

    Examples:
        >>> import polars as pl, dpo_pipeline
        >>> pairs = pl.LazyFrame({"policy_chosen_logps": [-10.0], "policy_rejected_logps": [-14.0],
        ...                       "ref_chosen_logps": [-11.0], "ref_rejected_logps": [-12.0]})
        >>> pairs.pipe(dpo_pipeline.score, beta=0.1).collect()["reward_margin"].round(4).item()
        0.3
    """
    groups = Groups.of(locals())
    objective, kept = groups.objective, given(Scored, scored)
    dataset = groups.opened(row=objective.needs.row)
    added = [each.name for each in ADDED_TO[objective.row]]
    binding = groups.bound(dataset, objective.needs, adds=added, replace_added=kept.replace)
    sizes = given(Batches, batches)
    if sizes.file is not None:
        raise UsageError("score makes no batch means: use evaluate for a file of them")
    batching = Batching.of(sizes)
    if batching is not None and not objective.is_of_batches:
        raise UsageError(f"batches: {objective} does not depend on batches")
    scorer = ShardScorer(binding=binding, objectives=(objective,), batching=batching)
    made = scorer.scored(Shard(frame=dataset.frame, first_row=0, rows=None))
    return made.select(*carried_columns(kept.keep, binding, dataset), *added)


def token_kl(pairs: Any, *, contract: Any = None, scored: Any = None) -> pl.LazyFrame:
    """Add estimates of the divergence from the reference, from lists of per-token log-probs.

    Nothing is read: the result is a plan. Each estimate is a mean over the counted tokens of one
    completion: k1 of d, k2 of d^2 / 2, k3 of exp(-d) - 1 + d, where d is the log-ratio of a token
    (Schulman, "Approximating KL divergence"). They estimate KL(policy || reference) only on tokens
    sampled from the policy. A dataset's tokens are not: compare datasets or checkpoints by the
    estimates, but do not call them the models' KL.

    Args:
        pairs: `Pairs`, or a dataframe of any kind: one row a pair, with lists of per-token
            log-probs of policy and reference.
        contract: `Contract`, as in `evaluate`; no value is checked.
        scored: `Scored` with `replace`, as in `score`.

    Returns:
        The pairs under canonical names, with `chosen_k1`, `chosen_k2`, `chosen_k3`, and the same
        for the rejected completion, in nats. Null if a list is null, or if the two differ in
        length or count no token; null tokens are left out, NaN gives NaN.

    Raises:
        UsageError: An argument cannot be used.
        ColumnError: A column is missing or no list, or an input column has the name of an added
            one.

    Examples:
        >>> import polars as pl, dpo_pipeline
        >>> tokens = {"policy_chosen": [-1.0, -2.0], "policy_rejected": [-3.0],
        ...           "ref_chosen": [-1.5, -2.5], "ref_rejected": [-3.0]}
        >>> pairs = pl.DataFrame({f"{name}_token_logps": [each] for name, each in tokens.items()})
        >>> dpo_pipeline.token_kl(pairs).collect()["chosen_k1"].item()
        0.5
    """
    groups = Groups.of(locals())
    dataset, kept = groups.opened(), given(Scored, scored)
    adds = [f"{side}_{k}" for side in ("chosen", "rejected") for k in ("k1", "k2", "k3")]
    binding = groups.bound(dataset, ALL_LOGPS, adds=adds, replace_added=kept.replace)
    lists = [TOKENS_OF[name].name for name in LOGPS]
    lacking = [name for name in lists if name not in binding.columns]
    if lacking:
        raise ColumnError(
            dataset.name, tuple(f"{n}: missing, and KL is one of tokens" for n in lacking)
        )
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
    return binding.prepare(dataset.frame).with_columns(**estimates)


def arrow_stage(
    beta: float | None = None,
    *,
    loss: Any = LOSS_NAME,
    columns: Mapping[str, str] | None = None,
    contract: Any = None,
    on_invalid: Any = "raise",
    scored: Any = None,
) -> ArrowStage:
    """Return a function from a `pyarrow.Table` of pairs to one with the scored columns added.

    It pickles, keeps the order of the rows, and gives the same bits however rows lie in tables.

    Args:
        beta: As in `evaluate`.
        loss: As in `evaluate`.
        columns: Role to column, where names and aliases do not say it.
        contract: As in `evaluate`.
        on_invalid: `OnInvalid`, or "raise" for an error that reports every broken rule of the
            table, or "exclude" to leave invalid pairs out.
        scored: `Scored` with `replace`, as in `score`.

    Raises:
        UsageError: An argument cannot be used, or the loss is one of batches, for which a table
            would have to be whole batches.

    Examples:
        >>> import dpo_pipeline, pyarrow as pa
        >>> table = pa.table({"policy_chosen_logps": [-10.0], "policy_rejected_logps": [-14.0],
        ...                   "ref_chosen_logps": [-11.0], "ref_rejected_logps": [-12.0]})
        >>> round(dpo_pipeline.arrow_stage(0.1)(table)["loss"][0].as_py(), 4)
        0.5544
    """
    made, ours = given(OnInvalid, on_invalid), given(Contract, contract)
    checked_choice(made.action, ON_INVALID, made.at_most)
    if made.at_most is not None:
        raise UsageError("at_most is of a whole dataset, and a stage sees one table at a time")
    objective = checked_objective(given(Objective, loss, beta=beta))
    if objective.is_listwise:
        raise UsageError(
            f"{objective} is of all completions of a prompt, and an engine cuts tables where it "
            "likes: use score_parquet"
        )
    if objective.is_of_batches:
        raise UsageError(
            f"{objective} depends on batches, and an engine cuts tables where it likes: use "
            "score_parquet with batches"
        )
    return ArrowStage(
        objective=objective,
        on_invalid=made.action,
        columns=columns,
        contract=ours.schema,
        max_logp=max_logp_of(ours),
        replace=given(Scored, scored).replace,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrowStage:
    """Checks and scores a table; `arrow_stage` makes it and explains the attributes."""

    objective: CheckedObjective
    on_invalid: str
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

        frame, binding, whole = self._bound(table)
        rules = binding.rules.with_scores_in_range(self.objective.columns_to_check(self.max_logp))
        scored = with_scores(binding.prepare(frame.lazy()), self.objective)
        made = scored.with_columns(rules.valid.alias(_VALID)).collect()
        untouched = {
            name: source
            for name in whole.columns
            if self.contract is None
            and (source := whole.mapping.get(name, name)) in table.column_names
            and frame.schema.get(source, pl.Null) == whole.columns[name]
        }
        names = (*whole.columns, *self._added)
        computed = made.select(name for name in names if name not in untouched).to_arrow()
        fields, arrays = [], []
        for name in names:
            source, inside = untouched.get(name, name), table if name in untouched else computed
            fields.append(inside.schema.field(source).with_name(name))
            arrays.append(inside.column(source))
        result = pa.table(arrays, schema=pa.schema(fields, metadata=table.schema.metadata))
        if made[_VALID].all():
            return result
        if self.on_invalid == "raise":
            report = InvalidReport(
                source=_TABLE,
                n_pairs=made.height,
                n_invalid=int(made[_VALID].not_().sum()),
                broken=listed(scored, rules, Places([]), read_from=_TABLE).broken(),
                row=self.objective.row,
            )
            raise InvalidPairsError(report)
        return result.filter(made[_VALID].to_arrow())

    @property
    def _added(self) -> list[str]:
        return [each.name for each in ADDED_TO[self.objective.row]]

    def _bound(self, table: pa.Table) -> tuple[pl.DataFrame, Binding, Binding]:
        """Return the columns that Polars reads, their contract, and that of the whole table."""
        names, needs = table.column_names, self.objective.needs
        roles = set(resolve(names, self.columns, needs).mapping.values())
        # Only these go through Polars: other columns may be of types that it lacks.
        read = [name for name in names if name in roles or self.contract is not None]
        with reading(_TABLE):
            frame = pl.DataFrame(table.select(read))

        def bound(plan: pl.LazyFrame) -> Binding:
            return bind(
                plan,
                source=_TABLE,
                max_logp=self.max_logp,
                columns=self.columns,
                contract=self.contract,
                needs=needs,
                adds=self._added,
                replace=self.replace,
            )

        schema = {name: frame.schema.get(name, pl.Null) for name in names}
        whole = bound(pl.LazyFrame(schema=schema))
        return frame, bound(frame.lazy()), whole
