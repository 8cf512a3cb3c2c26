"""`compare`: two policies on the same pairs, each read twice: its keys, and its pairs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from threading import Event
from typing import Final

import polars as pl

from dpo_pipeline.arguments import checked_choice, checked_names
from dpo_pipeline.columns import PAIR_ID, PROMPT_ID, REF_CHOSEN, REF_REJECTED
from dpo_pipeline.comparison.common_pairs import CommonPairs, Disagreement, read_common_pairs
from dpo_pipeline.comparison.comparison_result import SUBSET_FIGURES, Comparison, Side
from dpo_pipeline.comparison.differences import (
    clusters_in_words,
    differences_of,
    mcnemar_of,
    n_clusters_of,
    subsets_of,
)
from dpo_pipeline.comparison.paired_gathering import Paired
from dpo_pipeline.comparison.sides import Contract, Table, bound_tables
from dpo_pipeline.contract import Schema
from dpo_pipeline.defaults import (
    CONFIDENCE_LEVEL,
    LOSS_NAME,
    MAX_LOGP,
    ON_INVALID,
    WIDE_LIMIT,
    OnInvalid,
)
from dpo_pipeline.engine import ProgressCallback, Watch
from dpo_pipeline.errors import ContractError, DataWarning, InvalidPairsError, UsageError
from dpo_pipeline.exact import lower_edge
from dpo_pipeline.invalid_report import InvalidReport
from dpo_pipeline.losses import LossArguments, LossLike, CheckedObjective
from dpo_pipeline.sources import FrameLike, SourcePath, as_dataset, checked_on
from dpo_pipeline.statistics import checked_probability, counted
from dpo_pipeline.sums import Health, Summary, figures

_REFERENCES: Final = (REF_CHOSEN.name, REF_REJECTED.name)


def compare(
    a: FrameLike | SourcePath,
    b: FrameLike | SourcePath,
    beta: float | None = None,
    *,
    on: str = PAIR_ID.name,
    loss: LossLike = LOSS_NAME,
    loss_args: LossArguments | None = None,
    dialect: str | None = None,
    by: str | Sequence[str] | None = None,
    level: float = CONFIDENCE_LEVEL,
    on_invalid: OnInvalid = "raise",
    max_invalid: float | None = None,
    columns: Mapping[str, str] | None = None,
    b_columns: Mapping[str, str] | None = None,
    reference: FrameLike | SourcePath | None = None,
    reference_columns: Mapping[str, str] | None = None,
    contract: Schema | None = None,
    max_logp: float = MAX_LOGP,
    progress: ProgressCallback | None = None,
    cancel: Event | None = None,
) -> Comparison:
    """Return how far policy B differs from policy A on the pairs that both have, and where.

    All figures are over the common pairs that keep the contract on both sides; rows of one side
    alone are counted. Pairs of one `prompt_id` are one cluster, and errors are taken between
    clusters; without prompts each pair is one. Every figure comes from exact sums, so that it
    does not depend on the order of rows, files or threads. Each side is read twice, its keys and
    its pairs; memory grows with the keys and with the numbers of the common pairs, not with
    other columns.

    A side without reference log-probs takes those of the other side: with one reference for
    both, B's file needs no more than a key and the policy's two log-probs.

    Args:
        a: Pairs with the log-probs of policy A: a dataframe of any kind, or Parquet.
        b: The same pairs, or some of them, with those of policy B, in any order.
        beta: KL strength, above 0 (arXiv 2305.18290, Eq. 7); 0.1, or the dialect's. One for
            both sides. Accuracy does not depend on it; loss, rewards and margins do.
        on: The key: a column of both sides, each value once.
        loss: Name of a loss, or names with weights, as in `evaluate`; not one of batches.
        loss_args: Arguments of the losses, by name.
        dialect: "trl", "dpo-paper" or "rewardbench": the conventions of that system.
        by: Also compare within each subset by these columns, of A or else of B; null is a subset.
        level: Of every interval, above 0 and below 1.
        on_invalid: "raise" for an error that reports every broken rule, "exclude" to leave out
            pairs that are invalid on a side.
        max_invalid: Raise if more common pairs than this are invalid: a count (int), or a share
            (float up to 1).
        columns: Role to column, where names and aliases do not say it; of both sides.
        b_columns: The same of B alone, instead of `columns`.
        reference: Where the reference's log-probs of both sides are, if in neither; it may have
            more pairs.
        reference_columns: As `columns`, for `reference`.
        contract: A pandera schema or model whose checks are added to the contract's.
        max_logp: Largest log-probability accepted, in nats; bf16 exports can reach 0.125.
        progress: Called with a `Progress` now and then, maybe from another thread.
        cancel: Set it to stop the run.

    Raises:
        UsageError: An argument is not one that can be used, or asks for too many groups.
        ContractError: Columns, types or rows break the contract, or no common pair is valid.
        JoinError: Keys are null or are there twice, or no key is on both sides.
        StorageError: A file cannot be read.
        Cancelled: `cancel` was set.
    """
    checked_choice(on_invalid, ON_INVALID, max_invalid)
    checked_probability("level", level)
    objective = CheckedObjective.of(loss, beta, loss_args=loss_args, dialect=dialect)
    if objective.beta == 0.0:
        raise UsageError(
            "beta is 0, so every reward is 0 and nothing can be compared: give a beta above 0"
        )
    if objective.is_of_batches:
        raise UsageError(f"{objective} is a loss of batches, and has no value for a pair alone")
    if reference is None and reference_columns is not None:
        raise UsageError("reference_columns are columns of a reference: give one")
    on, names = checked_on(on), checked_names("by", by)
    for name in names:
        if name in SUBSET_FIGURES:
            raise UsageError(f"by: {name!r} is the name of a figure; rename the column before")
    of_b = columns if b_columns is None else b_columns
    tables = bound_tables(
        (as_dataset(a, columns, name="A"), as_dataset(b, of_b, name="B")),
        (columns, of_b),
        None if reference is None else as_dataset(reference, reference_columns, name="reference"),
        reference_columns,
        on=on,
        contract=Contract(needs=objective.needs, max_logp=max_logp, schema=contract),
    )
    watch = Watch(callback=progress, cancel=cancel)
    read = read_common_pairs(
        tables, on=on, objective=objective, max_logp=max_logp, by=names, watch=watch
    )
    reports = _reports(tables, read, watch)
    _judge(read, reports, on_invalid=on_invalid, max_invalid=max_invalid)
    paired = read.paired
    incomparable = _other_references(read, objective)
    findings = tuple(_findings(tables, read, incomparable))
    for text in findings:
        warnings.warn(text, DataWarning, stacklevel=2)
    summaries = [
        Summary.of_row(figures(totals, objective).row(0, named=True))
        for totals in (paired.totals_a, paired.totals_b)
    ]
    sides = [
        Side(
            source=table.name,
            n_pairs=read.counts.rows[i],
            n_alone=read.counts.alone[i],
            n_invalid=read.n_invalid[table.letter] + read.n_out_of_range[table.letter],
            summary=summaries[i],
            invalid=reports.get(table.letter),
            borrowed={n: table.lender.name for n in table.lacks if table.lender is not None},
        )
        for i, table in enumerate(tables[:2])
    ]
    return Comparison(
        on=on,
        objective=objective,
        max_logp=max_logp,
        level=level,
        a=sides[0],
        b=sides[1],
        n_common=read.counts.common,
        n_valid=read.n_valid,
        clusters=clusters_in_words(paired),
        n_clusters=n_clusters_of(paired),
        differences=differences_of(paired, summaries[0], summaries[1], level),
        mcnemar=mcnemar_of(paired),
        by=names,
        subsets=subsets_of(paired, level),
        gained=paired.gained,
        lost=paired.lost,
        findings=findings,
        incomparable=incomparable,
        changes=_histogram(paired),
        margins=paired.margins,
    )


def _reports(tables: Sequence[Table], read: CommonPairs, watch: Watch) -> dict[str, InvalidReport]:
    """List what broke, reading the tables of invalid common pairs once more."""
    return {
        table.letter: table.report(rows, watch)
        for table, rows in zip(tables, read.counts.rows, strict=True)
        if read.n_invalid[table.letter]
    }


def _judge(
    read: CommonPairs,
    reports: Mapping[str, InvalidReport],
    *,
    on_invalid: str,
    max_invalid: float | None,
) -> None:
    """Raise if what was read must not pass."""
    common = read.counts.common
    be = "is" if common == 1 else "are"
    n_invalid = common - read.n_valid
    limit = common if max_invalid is None else max_invalid
    allowed = limit * common if isinstance(limit, float) else limit
    if on_invalid == "raise" and n_invalid:
        reason = f"{n_invalid:,} of {counted(common, 'common pair')} {be} invalid"
    elif n_invalid > allowed:
        reason = (
            f"{n_invalid:,} of {counted(common, 'common pair')} {be} invalid, more than "
            f"max_invalid ({max_invalid}) allows"
        )
    elif n_invalid == common:
        reason = "no common pair is valid on both sides"
    else:
        return
    if reports:
        raise InvalidPairsError(next(iter(reports.values())), reason=reason)
    raise ContractError(
        f"{reason}: their log-probs are sound, and a reward or loss of theirs is not finite and "
        f"within {WIDE_LIMIT:.3g}; beta or the arguments of the loss are too large"
    )


def _other_references(read: CommonPairs, objective: CheckedObjective) -> str | None:
    """Return that the references differ, if the rewards are made from them."""
    found = [
        f"{each.column} differs on {each.n_pairs:,} of {counted(read.n_valid, 'pair')}, by up to "
        f"{each.largest:.4g} nats"
        for each in read.disagreements
        if each.column in _REFERENCES and each.column in objective.needs.logps
    ]
    if not found:
        return None
    return (
        f"A and B were scored against different references ({'; '.join(found)}), so accuracy, "
        "rewards, margins and loss cannot be compared"
    )


def _findings(
    tables: Sequence[Table], read: CommonPairs, incomparable: str | None
) -> Iterator[str]:
    """Yield what makes the comparison doubtful, a sentence each."""
    if incomparable is not None:
        yield incomparable
    a, b = (table.name for table in tables[:2])
    if read.n_same_margin == read.n_valid:
        yield (
            f"A ({a}) and B ({b}) have the same margin on all {counted(read.n_valid, 'pair')}: "
            "were two copies of one policy given?"
        )
    for each in read.disagreements:
        if each.column not in _REFERENCES:
            yield _disagreement(each, read.n_valid)
    totals = (read.paired.totals_a, read.paired.totals_b)
    for table, sums in zip(tables[:2], totals, strict=True):
        for text in Health.of_sums(sums.row(0, named=True)).warnings():
            yield f"{table.letter.upper()} ({table.name}): {text}"


def _disagreement(found: Disagreement, n_valid: int) -> str:
    where = (
        f"{found.column} differs between A and B on {found.n_pairs:,} of {counted(n_valid, 'pair')}"
    )
    if found.column == PROMPT_ID.name:
        return f"{where}: the same keys may not mean the same pairs; A's prompts are taken"
    by_how_much = "" if found.largest is None else f" by up to {found.largest:g}"
    return f"{where}{by_how_much}: the same keys may not mean the same pairs"


def _histogram(paired: Paired) -> pl.DataFrame:
    bins = pl.col("bin")
    return paired.changes.select(
        "bin", lower=lower_edge(bins), upper=lower_edge(bins + 1), n_pairs="n_pairs"
    )
