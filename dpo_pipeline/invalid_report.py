"""What broke the contract: rows by rule, the first of them by place; whether a run is refused."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dpo_pipeline.tables import aligned, as_json

if TYPE_CHECKING:
    from dpo_pipeline.options import OnInvalid


@dataclass(frozen=True, slots=True, kw_only=True)
class Offender:
    """A row that breaks a rule."""

    file: str | None  # the input file, or None where the pairs came as a dataframe
    row: int  # row in that file or frame, from 0
    value: Any  # what was found; None for null, and for a rule on the whole row


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
                {"file": o.file, "row": o.row, "value": _plain(o.value)} for o in self.offenders
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

    def __str__(self) -> str:
        """Return it as a sentence."""
        return f"{self.title}: {self.evidence}"


@dataclass(frozen=True, slots=True, kw_only=True)
class InvalidReport:
    """How many pairs broke which rule. A pair that breaks two rules counts under both.

    Attributes:
        source: The input.
        n_pairs: Pairs read.
        n_invalid: Pairs that break a rule or more.
        broken: The rules that were broken, in the order of the contract.
        doubts: What is surely wrong in the valid pairs, gravest first.
        notes: What is to be said about the input as it was found, such as files that were left out.
    """

    source: str
    n_pairs: int
    n_invalid: int
    broken: tuple[BrokenRule, ...]
    doubts: tuple[Doubt, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is surely wrong in the valid pairs, a sentence each."""
        return tuple(map(str, self.doubts))

    @property
    def all_warnings(self) -> tuple[str, ...]:
        """Warnings and notes: what a call warns of, and what its document lists."""
        return (*self.warnings, *self.notes)

    @property
    def by_rule(self) -> Mapping[str, int]:
        """Rows by the name of the rule that they break."""
        return {rule.name: rule.count for rule in self.broken}

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as plain data."""
        return {
            "source": self.source,
            "warnings": list(self.all_warnings),
            "n_pairs": self.n_pairs,
            "n_invalid": self.n_invalid,
            "invalid": [rule.to_dict() for rule in self.broken],
        }

    def to_json(self) -> str:
        """Return the facts as JSON."""
        return as_json(self.to_dict())

    def __str__(self) -> str:
        """Return the report as an aligned table under a sentence."""
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """Return the lines of its text."""
        warned = [f"warning: {text}" for text in self.warnings]
        if not self.n_invalid:
            kept = f"{self.source}: all {self.n_pairs:,} pairs keep the contract"
            return [*warned, kept]
        file = os.path.basename(self.source)
        head = f"{self.source} breaks its contract in {self.n_invalid:,} of {self.n_pairs:,} rows"
        rows = [
            (
                rule.name,
                rule.requirement,
                f"{rule.count:,} row{'s' * (rule.count != 1)}, {_first(rule.offenders, file)}",
            )
            for rule in self.broken
        ]
        return [*warned, head, *(f"  {line}" for line in aligned(("", "", ""), rows, most=None))]


def why_refused(
    on_invalid: OnInvalid, n_invalid: int, n_pairs: int, noun: str, where: str = ""
) -> str | None:
    """Return why so many invalid pairs must not pass; None if they may."""
    pairs = f"{n_pairs:,} {noun}{'' if n_pairs == 1 else 's'} {'is' if n_pairs == 1 else 'are'}"
    limit = n_pairs if on_invalid.at_most is None else on_invalid.at_most
    allowed = limit * n_pairs if isinstance(limit, float) else limit
    if on_invalid.action == "raise" and n_invalid:
        return f"{n_invalid:,} of {pairs} invalid"
    if n_invalid > allowed:
        return f"{n_invalid:,} of {pairs} invalid, more than {on_invalid.at_most} (--max-invalid)"
    return f"no {noun} is valid{where}" if n_invalid == n_pairs else None


def _first(offenders: Sequence[Offender], only_file: str | None) -> str:
    places = []
    file = only_file
    for each in offenders:
        where = f"{each.file} " if each.file is not None and each.file != file else ""
        file = each.file
        found = "null" if each.value is None else repr(each.value)
        places.append(f"{where}row {each.row:,}: {found}")
    return "first at " + "; ".join(places)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, (str, int, float, type(None))) else str(value)
