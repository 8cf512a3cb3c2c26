"""One reading of a dataset, shard by shard, into merged partial sums; and what they amount to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import polars as pl

from dpo_pipeline.batches import BatchFile, Batching, BatchTable
from dpo_pipeline.binding import Binding
from dpo_pipeline.columns import N_PAIRS, N_VALID, SOURCE_ROW, did_you_mean
from dpo_pipeline.defaults import MAX_SUBSETS, SHARD_ROWS
from dpo_pipeline.errors import ContractError, InvalidPairsError, UsageError
from dpo_pipeline.health import Health
from dpo_pipeline.io_errors import reading
from dpo_pipeline.report import InvalidReport, Offences, Places, numbered, offences
from dpo_pipeline.result import Evaluation
from dpo_pipeline.rules import RuleSet
from dpo_pipeline.running import Watch
from dpo_pipeline.scoring import with_scores_if
from dpo_pipeline.storage import Dataset, Shard
from dpo_pipeline.summary import FIGURES, Summary, figures, merge, tally

_SUBSET: Final = "__subset_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one reading of a dataset gave; merged partial sums, from which all figures follow."""

    dataset: Dataset
    binding: Binding
    rules: RuleSet
    beta: float | None
    by: tuple[str, ...]
    totals: pl.DataFrame
    subsets: pl.DataFrame | None
    batches: pl.DataFrame | None
    suspects: tuple[Shard, ...]
    """The shards that hold invalid pairs."""

    @property
    def n_pairs(self) -> int:
        """Pairs read."""
        return int(self.totals[N_PAIRS].item() or 0)

    @property
    def n_invalid(self) -> int:
        """Pairs that break a rule or more."""
        return self.n_pairs - int(self.totals[N_VALID].item() or 0)

    def report(self, watch: Watch) -> InvalidReport:
        """List what broke, reading the shards with invalid pairs once more."""
        found = Offences(self.rules.rules)
        places = Places((file.relative, file.rows) for file in self.dataset.files)
        total = sum(shard.rows or 0 for shard in self.suspects) or None
        for shard in self.suspects:
            pairs = with_scores_if(self.binding.prepare(shard.frame), self.beta)
            plan = offences(numbered(pairs, shard.first_row), self.rules)
            with reading(self.dataset.name):
                for chunk in plan.collect_batches(maintain_order=True):
                    found.add(chunk, places)
            watch.step("listing", shard.rows or 0, total)
        return self._report(found)

    def report_of_quarantine(self, parts: Sequence[str], watch: Watch) -> InvalidReport:
        """List what broke from the files of invalid pairs, one for each input file."""
        found = Offences(self.rules.rules)
        for file, part in zip(self.dataset.files, parts, strict=True) if self.n_invalid else ():
            pairs = with_scores_if(pl.scan_parquet(part, glob=False), self.beta)
            plan = offences(pairs, self.rules, row=SOURCE_ROW)
            with reading(part):
                for chunk in plan.collect_batches(maintain_order=True):
                    found.add(chunk, Places([(file.relative, file.rows)]))
            watch.step("listing", 0, None)
        return self._report(found)

    def _report(self, found: Offences) -> InvalidReport:
        return InvalidReport(
            source=self.dataset.name,
            n_pairs=self.n_pairs,
            n_invalid=self.n_invalid,
            broken=found.broken(),
            warnings=tuple(Health.of_sums(self.totals.row(0, named=True)).warnings()),
        )

    def result(self, report: InvalidReport) -> Evaluation:
        """Divide the sums."""
        if self.beta is None:
            raise UsageError("a check has no figures")
        subsets = None
        if self.subsets is not None:
            keys = _subset_keys(self.by)
            subsets = figures(self.subsets, beta=self.beta, keys=keys).rename(
                dict(zip(keys, self.by, strict=True))
            )
        return Evaluation(
            source=self.dataset.name,
            beta=self.beta,
            max_logp=self.binding.max_logp,
            columns=dict(self.binding.mapping),
            summary=Summary.of_row(figures(self.totals, beta=self.beta).row(0, named=True)),
            invalid=report,
            subsets=subsets,
            batches=self.batches,
        )


def judge(measured: Measured, *, on_invalid: str, max_invalid: float | None, watch: Watch) -> None:
    """Raise if what was measured must not pass.

    Raises:
        ContractError: There is no pair, or no valid one, or invalid ones are not allowed.
    """
    n_pairs, n_invalid = measured.n_pairs, measured.n_invalid
    if n_pairs == 0:
        raise ContractError(f"{measured.dataset.name}: it holds no pairs, so nothing was evaluated")
    limit = n_pairs if max_invalid is None else max_invalid
    allowed = limit * n_pairs if isinstance(limit, float) else limit
    if on_invalid == "raise" and n_invalid:
        raise InvalidPairsError(measured.report(watch))
    if n_invalid > allowed:
        raise InvalidPairsError(
            measured.report(watch),
            reason=f"{n_invalid:,} of {n_pairs:,} pairs are invalid, more than max_invalid "
            f"({max_invalid}) allows",
        )
    if n_invalid == n_pairs:
        raise InvalidPairsError(measured.report(watch), reason="no pair is valid")


def _subset_keys(by: Sequence[str]) -> list[str]:
    return [f"{_SUBSET}{i}" for i in range(len(by))]


def measure(
    dataset: Dataset,
    binding: Binding,
    *,
    beta: float | None,
    by: str | Sequence[str] | None,
    batching: Batching | None,
    file: BatchFile | None,
    watch: Watch,
) -> Measured:
    """Read the dataset once, shard by shard, and add up its partial sums."""
    names = (by,) if isinstance(by, str) else tuple(dict.fromkeys(by or ()))
    _checked_columns(names, binding, "by")
    rules = binding.rules if beta is None else binding.rules.with_margin_in_range()
    subset_keys = _subset_keys(names)
    table = None
    if batching is not None and beta is not None:
        table = BatchTable(batching, beta=beta, n_rows=dataset.rows, file=file)
    if batching is not None and batching.column is not None:
        _checked_columns((batching.column,), binding, "batch_by")
    totals: list[pl.DataFrame] = []
    subsets: pl.DataFrame | None = None
    suspects = []
    for shard in dataset.shards(SHARD_ROWS if batching is None else batching.shard_rows):
        frame = binding.prepare(shard.frame).with_columns(
            pl.col(name).alias(key) for name, key in zip(names, subset_keys, strict=True)
        )
        batch_keys: list[str] = []
        if batching is not None:
            frame = batching.with_key(frame, shard.first_row)
            batch_keys = [batching.key]
        in_order = batching is not None and batching.in_order and not names
        plan = tally(
            frame,
            valid=rules.valid,
            beta=beta,
            keys=[*batch_keys, *subset_keys],
            in_order=in_order,
            extra=() if batching is None else batching.sums(),
        )
        invalid = 0
        with reading(dataset.name):
            for part in _parts(plan, many=in_order and shard.rows is None):
                invalid += int((part[N_PAIRS] - part[N_VALID]).sum())
                totals = [merge([*totals, part.drop(batch_keys, subset_keys)])]
                if names:
                    inside = part.drop(batch_keys)
                    subsets = merge([inside] if subsets is None else [subsets, inside], subset_keys)
                    _checked_groups(subsets, names)
                if table is not None:
                    table.add(part.drop(subset_keys), unique=in_order)
        if invalid:
            suspects.append(shard)
        watch.step("evaluating", shard.rows or 0, dataset.rows)
    if subsets is not None:
        subsets = subsets.sort(subset_keys, nulls_last=True)
    return Measured(
        dataset=dataset,
        binding=binding,
        rules=rules,
        beta=beta,
        by=names,
        totals=totals[0],
        subsets=subsets,
        batches=table.finish() if table is not None else None,
        suspects=tuple(suspects),
    )


def _parts(plan: pl.LazyFrame, *, many: bool) -> Iterator[pl.DataFrame]:
    # A frame is one shard however long it is, and so can end in any number of batches.
    if many:
        yield from plan.collect_batches(maintain_order=True)
    else:
        yield plan.collect(engine="streaming")


def _checked_columns(names: Sequence[str], binding: Binding, argument: str) -> None:
    for name in names:
        if name not in binding.columns:
            raise UsageError(
                f"{argument}: {name!r} is not a column{did_you_mean(name, binding.columns)}; "
                f"the columns are {', '.join(binding.columns)}"
            )
        if name in FIGURES and argument == "by":
            raise UsageError(f"by: {name!r} is the name of a figure; rename the column before")
        if binding.columns[name].is_nested():
            raise UsageError(
                f"{argument}: {name!r} is a {binding.columns[name]}, not a plain value"
            )


def _checked_groups(subsets: pl.DataFrame, names: Sequence[str]) -> None:
    if subsets.height > MAX_SUBSETS:
        raise UsageError(
            f"by: {', '.join(names)} has more than {MAX_SUBSETS:,} subsets; "
            "choose a coarser column, or score the pairs and group the output"
        )
