"""What makes a comparison doubtful, in sentences: policies that are one, sides that do not fit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Final

import polars as pl

from dpo_pipeline.columns import (
    LABEL,
    N_VALID,
    POLICY_CHOSEN,
    POLICY_REJECTED,
    PROMPT_ID,
    REF,
    REF_CHOSEN,
    REF_REJECTED,
)
from dpo_pipeline.comparison.common_pairs import CommonPairs, Disagreement
from dpo_pipeline.comparison.compared import is_below_reference, withholding
from dpo_pipeline.comparison.sides import Table
from dpo_pipeline.comparison.verdict import Difference
from dpo_pipeline.exact import QUANTA_PER_NAT
from dpo_pipeline.invalid_report import Doubt, InvalidReport
from dpo_pipeline.losses import CheckedObjective
from dpo_pipeline.sources import Dataset, dumps_apart
from dpo_pipeline.statistics import counted, share
from dpo_pipeline.sums import Sense, doubts_of

_REFERENCES: Final = (REF_CHOSEN.name, REF_REJECTED.name, REF.name)
_POLICIES: Final = (POLICY_CHOSEN.name, POLICY_REJECTED.name)
_FEWEST: Final = 5
"""Pairs with the same log-probs on both sides that are no chance."""
_SOME: Final = 0.01
_COPIED: Final = 0.05
"""Shares of such pairs: of both completions, and of one alone."""


def other_references(read: CommonPairs, objective: CheckedObjective) -> str | None:
    """Return a sentence if the references differ and rewards are made from them; else None."""
    labels = [each.n_pairs for each in read.disagreements if each.column == LABEL.name]
    if labels and LABEL.name in objective.needs.extras:
        return (
            f"label differs between A and B on {labels[0]:,} of {read.n_valid:,} completions, so "
            "nothing can be compared: the same keys may not mean the same completions"
        )
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


def notes_of(datasets: Iterable[Dataset]) -> tuple[str, ...]:
    """Return what is to be said about the inputs."""
    datasets = list(datasets)
    notes = [f"{each.name}: {note}" for each in datasets for note in (*each.notes, *each.made())]
    return (*notes, *(text for a, b in combinations(datasets, 2) for text in dumps_apart(a, b)))


def broken_rules(reports: Iterable[InvalidReport]) -> Iterator[str]:
    """Yield which rules are broken by how many rows of an input, a sentence each."""
    for each in reports:
        rules = ", ".join(f"{rule.name} {rule.count:,}" for rule in each.broken)
        rows = "rows that break the contract and count in no figure"
        yield f"{each.source}: {rows}: {each.n_invalid:,} ({rules})"


def findings_of(
    tables: Sequence[Table],
    read: CommonPairs,
    other: str | None,
    differences: Mapping[str, Difference],
) -> Iterator[str]:
    """Yield what makes the comparison doubtful, a sentence each; `other`: of the references."""
    if other is not None:
        yield other
    n, n_same = read.n_valid, read.paired.n_same_logps[2]
    if read.paired.n_same_margin == n and n_same < n:
        a, b = (table.name for table in tables[:2])
        yield f"A ({a}) and B ({b}) have the same margin on all {counted(n, 'pair')}"
    elif other is None and n_same < n:
        constant = [name for name, each in differences.items() if each.is_constant]
        if constant:
            yield (
                f"B minus A is the same on all {counted(n, 'pair')}, within the rounding of the "
                f"log-probs, in {', '.join(constant)}: a difference without spread has no interval "
                "and no test"
            )
    for each in read.disagreements:
        if each.column not in _REFERENCES:
            yield _disagreement(each, n)


def findings_of_completions(
    tables: Sequence[Table], read: CommonPairs, incomparable: str | None, n_same: int
) -> Iterator[str]:
    """Yield what makes a comparison of completions doubtful, a sentence each."""
    a, b = (f"{letter} ({table.name})" for letter, table in zip("AB", tables[:2], strict=True))
    if n_same == read.n_valid:
        yield (
            f"{a} and {b} have the same log-probs on all {counted(n_same, 'common completion')}: "
            "they are one policy; look whether one policy was scored or written twice"
        )
    if incomparable is not None:
        yield incomparable
    for each in read.disagreements:
        if each.column not in (*_REFERENCES, LABEL.name):
            yield _disagreement(each, read.n_valid)


def doubts_of_sides(
    tables: Sequence[Table], read: CommonPairs
) -> tuple[tuple[Doubt, ...], Doubt | None]:
    """Return what is surely wrong with both sides, and with each; and what withholds the verdict.

    The title of a doubt names its side.
    """
    found, decisive = [*_same_policy(tables, read)], None
    for table, sums in zip(tables[:2], (read.paired.totals_a, read.paired.totals_b), strict=True):
        totals, side = sums.row(0, named=True), f"{table.letter.upper()} ({table.name})"
        doubts = [
            replace(doubt, title=f"{side}: {doubt.title}")
            for doubt in doubts_of(Sense.of_sums(totals), max_logp=table.binding.max_logp)
        ]
        found += doubts
        decisive = decisive or withholding(
            doubts,
            all_ties=totals["n_ties"] == totals[N_VALID],
            is_below=is_below_reference(totals),
        )
    return tuple(found), decisive


def _same_policy(tables: Sequence[Table], read: CommonPairs) -> Iterator[Doubt]:
    """Say that the log-probs of A and B are the same: on all pairs, on some, or in one column.

    Coarse log-probs are equal by chance, on either side; pairs that were not scored anew are equal
    on both.
    """
    n, (chosen, rejected, both) = read.n_valid, read.paired.n_same_logps
    a, b = (f"{letter} ({table.name})" for letter, table in zip("AB", tables[:2], strict=True))
    advice = "Look whether one policy was scored or written twice."
    if both == n:
        title = f"{a} and {b} have the same log-probs on all {counted(n, 'common pair')}"
        yield Doubt("one_policy", title, "they are one policy", advice)
        return
    by_chance = chosen * rejected / n
    is_by_pair = both - by_chance > 0.5 * (min(chosen, rejected) - by_chance)
    if both >= max(_FEWEST, _SOME * n) and is_by_pair:
        of = f"{both:,} of {counted(n, 'common pair')} ({share(both / n)})"
        title = f"{a} and {b} have the same log-probs on {of}"
        yield Doubt("partly_one_policy", title, "these pairs look scored by one policy", advice)
        return
    for name, same, other in zip(_POLICIES, (chosen, rejected), (rejected, chosen), strict=True):
        if same >= max(_FEWEST, _COPIED * n) and other < same / 4.0:
            how = "a copy of" if same == n else "in part equal to"
            seen = f"the two are equal on {same:,} of {counted(n, 'common pair')}"
            yield Doubt(
                "column_of_the_other",
                f"{name} of {b} is {how} that of {a}",
                f"{seen}, and the other column is not",
                "Look which column was written there.",
            )
            return


def rounding_of(tables: Sequence[Table], read: CommonPairs, objective: CheckedObjective) -> float:
    """Return how far rounding can move B minus A of a pair's margin, in nats.

    Four log-probs are rounded to the type of their columns, and each side's score to a quantum.
    """
    largest = 0.0
    totals = (read.paired.totals_a, read.paired.totals_b)
    for table, sums in zip(tables[:2], totals, strict=True):
        sense, columns = (
            Sense.of_sums(sums.row(0, named=True)),
            table.dataset.frame.collect_schema(),
        )
        for name in _POLICIES:
            is_single = columns.get(table.binding.mapping.get(name, name)) == pl.Float32
            size = max(abs(sense.lowest[name]), abs(sense.highest[name]))
            largest = max(largest, size * (2.0**-24 if is_single else 2.0**-53))
    return 4.0 * objective.beta * largest + 2.0 / QUANTA_PER_NAT


def _disagreement(found: Disagreement, n_valid: int) -> str:
    where = (
        f"{found.column} differs between A and B on {found.n_pairs:,} of {counted(n_valid, 'pair')}"
    )
    if found.column == PROMPT_ID.name:
        return f"{where}: the same keys may not mean the same pairs; A's prompts are taken"
    by_how_much = "" if found.largest is None else f" by up to {found.largest:g}"
    return f"{where}{by_how_much}: the same keys may not mean the same pairs"
