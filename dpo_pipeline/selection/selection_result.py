"""What a selection kept, and what that does to lengths, subsets, prompts and margins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from dpo_pipeline.invalid_report import InvalidReport
from dpo_pipeline.selection.contradictions import ContradictionCounts
from dpo_pipeline.tables import (
    Column,
    Figure,
    Name,
    Part,
    Printable,
    Sentence,
    Table,
    key_columns,
    rows_by_key,
    warned,
)

EFFECTS = {
    "n_pairs": "pairs",
    "reward_margin": "mean margin",
    "reward_accuracy": "accuracy",
    "chosen_num_tokens": "chosen tokens",
    "rejected_num_tokens": "rejected tokens",
    "n_prompts": "prompts",
}
"""Figures of a set of pairs with their titles."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Selected(Printable):
    """What rules keep.

    Attributes:
        source: What was selected from.
        rules: The names of the rules, the one that was written first.
        formula: What the first rule ranks by.
        n_pairs: Pairs read.
        n_valid: Pairs that keep the contract; no other is kept.
        n_unranked: Valid pairs for which the rule has no value, or that repeat a prompt where it
            takes one pair a prompt; never kept.
        groups: A row a subset and rule: `rule`, the columns of `by`, `n_ranked`, `n_kept`, `last`
            (the value of the last pair kept).
        effects: A row for all valid pairs that the first rule ranked (`rule` is null) and for what
            each rule keeps: `n_pairs`, mean `reward_margin` in nats, `reward_accuracy`, mean token
            counts, `n_prompts`. Null where the data have no such column.
        overlaps: A row for two rules: `rule`, `other`, `n_both`, and `share` of the smaller of
            the two selections.
        contradictions: Pairs that repeat or contradict others; None if not looked for.
        invalid: Which rules of the contract were broken.
        notes: What is to be said about the rules, a sentence each.
    """

    source: str
    rules: tuple[str, ...]
    formula: str
    n_pairs: int
    n_valid: int
    n_unranked: int
    groups: pl.DataFrame
    effects: pl.DataFrame
    overlaps: pl.DataFrame
    contradictions: ContradictionCounts | None
    invalid: InvalidReport
    by: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def n_kept(self) -> int:
        """Pairs that the first rule keeps."""
        return int(self.groups.filter(pl.col("rule") == self.rules[0])["n_kept"].sum())

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        found = self.contradictions
        return {
            "source": self.source,
            "warnings": list(self.invalid.all_warnings),
            "rules": list(self.rules),
            "formula": self.formula,
            "n_pairs": self.n_pairs,
            "n_valid": self.n_valid,
            "n_unranked": self.n_unranked,
            "n_kept": self.n_kept,
            "groups": rows_by_key(self.groups, self.by),
            "effects": self.effects.to_dicts(),
            "overlaps": self.overlaps.to_dicts(),
            "contradictions": None
            if found is None
            else {
                "duplicates": found.duplicates,
                "swaps": found.swaps,
                "cycles": found.cycles,
                "known_by": found.known_by,
            },
            "notes": list(self.notes),
            "invalid": self.invalid.to_dict()["invalid"],
        }

    def to_frame(self) -> pl.DataFrame:
        """Return what each rule keeps, a row each."""
        return self.effects

    def to_parts(self) -> Iterator[Part]:
        """Yield what is doubtful, how many pairs are kept, and what the selection does."""
        ranked = self.n_valid - self.n_unranked
        text = (
            f"{self.rules[0]} keeps {self.n_kept:,} of {ranked:,} pairs, ranked by {self.formula}"
        )
        yield from warned(self.invalid.all_warnings)
        yield from warned(self.notes, "note")
        yield Sentence(text=text, leads=True)
        if self.contradictions is not None:
            texts = list(self.contradictions.sentences())
            yield from warned(texts or ["no pair repeats or contradicts another"], "contradictions")
        yield self._effect_table()
        if self.overlaps.height:
            columns = (Column("rule"), Column("and"), Column("pairs of both"), Column("share"))
            rows = [
                (Name(a), Name(b), n, Figure(share, "share"))
                for a, b, n, share in self.overlaps.iter_rows()
            ]
            note = "share: of the smaller of the two selections"
            yield Table(columns=columns, rows=rows, title="pairs of two rules", note=note)
        if self.by:
            yield self._group_table()

    def _effect_table(self) -> Table:
        there = [n for n in EFFECTS if self.effects[n].null_count() < self.effects.height]
        rows: list[Sequence[Any]] = []
        for row in self.effects.iter_rows(named=True):
            cells = [_cell(name, row[name]) for name in there]
            rows.append((Name(row["rule"] or "all ranked"), *cells))
        columns = (Column("kept by"), *(Column(EFFECTS[name]) for name in there))
        return Table(columns=columns, rows=rows)

    def _group_table(self) -> Table:
        names = ("n_ranked", "n_kept")
        several = len(self.rules) > 1
        columns = [Column("rule")] if several else []
        columns += [*key_columns(self.by), Column("ranked"), Column("kept"), Column("last value")]
        rows = [
            (
                *([Name(row["rule"])] if several else []),
                *(Name(row[name]) for name in self.by),
                *(row[name] for name in names),
                Figure(row["last"]),
            )
            for row in self.groups.iter_rows(named=True)
        ]
        return Table(columns=columns, rows=rows, title="by subset", n_keys=len(self.by) + several)


def _cell(name: str, value: float | None) -> Any:
    if name.startswith("n_") or value is None:
        return value
    return Figure(value, "share" if name == "reward_accuracy" else "number")
