"""What broke the contract: rows by rule, the first of them by place; whether a run is refused."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dpo_pipeline.defaults import SENSE_FEWEST
from dpo_pipeline.tables import (
    KEPT,
    Column,
    Name,
    Part,
    Printable,
    Sentence,
    Table,
    Tone,
    warned,
    whole,
)

if TYPE_CHECKING:
    import polars as pl

    from dpo_pipeline.columns import RowOf


_LONG_NUMBER = 9
"""Characters from which a number is written with eight digits."""


_NO_GATE = (
    "the exit code of check is of broken rules alone; `evaluate --fail-over n_invalid=0` ends with "
    "4 where log-probs are surely wrong"
)

Reader = Callable[[Sequence[tuple[str | None, int]]], Sequence[Mapping[str, Any]]]
"""Returns columns of rows, by file and row in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offender:
    """A row that breaks a rule."""

    file: str | None  # the input file, or None where the pairs came as a dataframe
    row: int  # row in that file or frame, from 0
    value: Any  # what was found; None for null, and for a rule on the whole row
    pair_id: Any = None  # the id of the pair, or of the completion, where there is one
    shown: tuple[tuple[str, Any], ...] = ()  # columns that were asked for, and their values
    id_name: str = "pair_id"  # what the column of the id is called

    @property
    def place(self) -> str:
        """The row with its id."""
        named = "" if self.pair_id is None else f" ({self.id_name} {self.pair_id})"
        return f"row {self.row:,}{named}"


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokenRule:
    """A rule that rows broke."""

    name: str  # `column.rule`
    requirement: str  # what a value must be, in words
    count: int  # how many rows broke it
    offenders: tuple[Offender, ...]  # the first of them, in the order of the input

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as plain data; a value that JSON cannot hold becomes text."""
        return {
            "rule": self.name,
            "requirement": self.requirement,
            "count": self.count,
            "first": [
                {
                    "file": o.file,
                    "row": o.row,
                    "pair_id": _plain(o.pair_id),
                    "value": _plain(o.value),
                }
                for o in self.offenders
            ],
        }


@dataclass(frozen=True, slots=True)
class Doubt:
    """Something that is wrong with valid pairs as a whole, or with the models' log-probs.

    Attributes:
        name: The kind of doubt, for programs.
        title: What is seen, in a few words.
        evidence: The numbers that show it.
        advice: What to do.
        explains: Names of findings that it can be the cause of, which are then not said.
    """

    name: str
    title: str
    evidence: str
    advice: str
    explains: frozenset[str] = frozenset()

    @property
    def is_decisive(self) -> bool:
        """Whether it can be the cause of every figure."""
        return "baseline" in self.explains

    def __str__(self) -> str:
        """Return it as a sentence."""
        return f"{self.title}: {self.evidence}"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class InvalidReport(Printable):
    """How many pairs broke which rule. A pair that breaks two rules counts under both.

    Attributes:
        source: The input.
        n_pairs: Pairs read.
        n_invalid: Pairs that break a rule or more.
        broken: The rules that were broken, in the order of the contract.
        doubts: What is surely wrong in the valid pairs, gravest first.
        notes: What is to be said about the input as it was found, such as files that were left out.
        not_looked_for: What the doubts cannot tell of so few pairs; None if all was looked for.
        row: What a row is: a pair or a completion. The columns decide, and the counts are of these.
        made: How the rows were made, where the call made them: what became none is counted.
    """

    source: str
    n_pairs: int
    n_invalid: int
    broken: tuple[BrokenRule, ...]
    doubts: tuple[Doubt, ...] = ()
    notes: tuple[str, ...] = ()
    not_looked_for: str | None = None
    row: RowOf = "pair"
    made: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is surely wrong in the valid pairs, a sentence each."""
        return tuple(map(str, self.doubts))

    @property
    def all_warnings(self) -> tuple[str, ...]:
        """Warnings and notes: what a call warns of, and what its document lists."""
        return (*self.warnings, *self.notes)

    @property
    def decisive(self) -> Doubt | None:
        """The gravest doubt that can be the cause of every figure; None without one."""
        return next((each for each in self.doubts if each.is_decisive), None)

    @property
    def by_rule(self) -> Mapping[str, int]:
        """Rows by the name of the rule that they break."""
        return {rule.name: rule.count for rule in self.broken}

    @property
    def hint(self) -> str | None:
        """What the broken rules look like, where all rows break the same ones."""
        above = {
            rule.name.partition(".")[0]
            for rule in self.broken
            if rule.name.endswith("_logps.at_most") and rule.count == self.n_pairs
        }
        for model in ("policy", "ref"):
            pair = {f"{model}_chosen_logps", f"{model}_rejected_logps"}
            if above >= pair or f"{model}_logps" in above:
                rules = (rule for rule in self.broken if rule.name.startswith(model))
                shown = [offender.value for rule in rules for offender in rule.offenders]
                if all(isinstance(each, (int, float)) and 0.0 < each <= 1.0 for each in shown):
                    return (
                        "all log-probs are above 0, and those listed at most 1: these look like "
                        "probabilities; give the sums of their logarithms"
                    )
                return (
                    "all log-probs are above 0: these look like negative log-likelihoods; "
                    "change their sign"
                )
        return None

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as plain data."""
        return {
            "source": self.source,
            "warnings": list(self.all_warnings),
            "not_looked_for": self.not_looked_for,
            "row": self.row,
            "made": list(self.made),
            "n_pairs": self.n_pairs,
            "n_invalid": self.n_invalid,
            "invalid": [rule.to_dict() for rule in self.broken],
        }

    def to_frame(self) -> pl.DataFrame:
        """Return one row a broken rule, with the first row that breaks it."""
        import polars as pl

        first = [rule.offenders[0] if rule.offenders else None for rule in self.broken]
        return pl.DataFrame(
            {
                "rule": [rule.name for rule in self.broken],
                "requirement": [rule.requirement for rule in self.broken],
                "count": [rule.count for rule in self.broken],
                "first_file": [None if each is None else each.file for each in first],
                "first_row": [None if each is None else each.row for each in first],
                "first_pair_id": [
                    None if each is None or each.pair_id is None else str(each.pair_id)
                    for each in first
                ],
                "first_value": [None if each is None else _found(each) for each in first],
            },
            schema={
                **dict.fromkeys(("rule", "requirement"), pl.String),
                "count": pl.Int64,
                "first_file": pl.String,
                "first_row": pl.Int64,
                **dict.fromkeys(("first_pair_id", "first_value"), pl.String),
            },
        )

    def to_parts(self) -> Iterator[Part]:
        """Yield whether the contract is kept, what is doubtful, and the broken rules."""
        source = whole(self.source)
        if self.n_invalid:
            rows = "rows" if self.row == "pair" else f"{self.row}s"
            text = f"{source} breaks its contract in {self.n_invalid:,} of {self.n_pairs:,} {rows}"
        elif self.doubts:
            each = f"each of its {self.n_pairs:,} {self.row}s keeps the contract"
            text = f"{source}: something is surely wrong, though {each}"
        else:
            text = f"{source}: all {self.n_pairs:,} {self.row}s keep the contract"
        tone: Tone = "bad" if self.n_invalid or self.doubts else "good"
        yield Sentence(text=text, tone=tone, leads=True)
        yield from self.warning_parts()
        if self.decisive is not None:
            yield Sentence(text=_NO_GATE, label="note", tone="note")
        if self.hint is not None:
            yield Sentence(text=self.hint, label="note", tone="note")
        yield from self.rule_parts()

    def with_shown(self, names: Sequence[str], read: Reader) -> InvalidReport:
        """Return the report with columns of the rows it lists; `read` gives them by place."""
        if not names or not self.broken:
            return self
        places = list({(o.file, o.row): None for rule in self.broken for o in rule.offenders})
        values = dict(zip(places, read(places), strict=True))
        texts = {place: tuple(each.items()) for place, each in values.items()}
        broken = []
        for rule in self.broken:
            rows = tuple(replace(o, shown=texts[o.file, o.row]) for o in rule.offenders)
            broken.append(replace(rule, offenders=rows))
        return replace(self, broken=tuple(broken))

    @property
    def shown_rows(self) -> dict[str, Mapping[str, Any]]:
        """The columns that were asked for, by the place of each invalid row that is listed."""
        return {
            " ".join(filter(None, (o.file, f"row {o.row:,}"))): dict(o.shown)
            for rule in self.broken
            for o in rule.offenders
            if o.shown
        }

    def _shown_parts(self) -> Iterator[Part]:
        rows = self.shown_rows
        if rows:
            names = list(next(iter(rows.values())))
            yield Table(
                columns=(Column("invalid"), *(Column(name, wraps=True) for name in names)),
                rows=[(place, *map(Name, each.values())) for place, each in rows.items()],
                title="invalid rows",
            )

    def warning_parts(self, *, but: Doubt | None = None) -> Iterator[Part]:
        """Yield what is surely wrong, all but one doubt that is said elsewhere, and the notes."""
        for doubt in self.doubts:
            if doubt is not but:
                text, more = str(doubt), (doubt.advice,)
                yield Sentence(text=text, label="warning", tone="warning", more=more)
        yield from warned((*self.notes, *self.made), "note")
        are_few = self.n_pairs - self.n_invalid < SENSE_FEWEST  # and nobody thinks they show it
        if self.not_looked_for is not None and not are_few and not self.doubts:
            yield Sentence(text=self.not_looked_for, label="note", tone="note")

    def rule_parts(self) -> Iterator[Part]:
        """Yield the table of broken rules."""
        if not self.broken:
            return
        file = os.path.basename(self.source)
        rows = [
            (rule.name, rule.requirement, rule.count, _first(rule.offenders, file))
            for rule in self.broken
        ]
        heads = (Column("rule"), Column("must be", wraps=True), Column("rows"))
        yield Table(columns=(*heads, Column("first at", wraps=True)), rows=rows, most=None)
        yield from self._shown_parts()


def _first(offenders: Sequence[Offender], only_file: str | None) -> str:
    places = []
    file = only_file
    for each in offenders:
        where = f"{each.file} " if each.file is not None and each.file != file else ""
        file = each.file
        places.append(f"{where}{each.place}: {_found(each)}".replace(" ", KEPT))
    return "; ".join(places)


def _found(offender: Offender) -> str:
    value = offender.value
    if isinstance(value, float) and len(repr(value)) > _LONG_NUMBER:
        return f"{value:.8g}"
    return "null" if value is None else repr(value)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, (str, int, float, type(None))) else str(value)
