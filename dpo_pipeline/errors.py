"""The exceptions and the warning that cross the public edge, each with its facts as attributes."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Final

from dpo_pipeline.defaults import BF16_EXCESS
from dpo_pipeline.tables import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from dpo_pipeline.invalid_report import InvalidReport

DONE: Final = 0
BROKEN_CONTRACT: Final = 1
USAGE: Final = 2
STORAGE: Final = 3
GATE: Final = 4
SIGNALLED: Final = 128
"""A stop by a signal returns this plus the number of the signal."""

MEANINGS: Final[Mapping[int, str]] = MappingProxyType(
    {
        DONE: "done",
        BROKEN_CONTRACT: "the data broke its contract",
        USAGE: "usage or settings",
        STORAGE: "input or output",
        GATE: "a figure missed the mark that was set for it",
        SIGNALLED + 2: "stopped by SIGINT (Ctrl-C)",
        SIGNALLED + 15: "stopped by SIGTERM",
    }
)


class DpoPipelineError(Exception):
    """Base of every error that this package raises on purpose."""

    exit_code: int = BROKEN_CONTRACT
    """What the command line returns for this error."""

    def __init__(self, *lines: str) -> None:
        # A line feed can only be of a name or a value.
        super().__init__("\n".join(shown(line).replace("\n", "\\n") for line in lines))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the text and the facts as they are; the constructors take other arguments."""
        return _restored, (type(self), self.args, self.__dict__.copy())


def _restored(
    kind: type[DpoPipelineError], args: tuple[Any, ...], facts: dict[str, Any]
) -> DpoPipelineError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(facts)
    return error


class UsageError(DpoPipelineError, ValueError):
    """Raised when a call cannot use an argument."""

    exit_code: int = USAGE


class ArgumentError(UsageError):
    """Raised when a number, such as beta or a log-prob of `dpo_loss`, cannot be used.

    Attributes:
        argument: Name of the argument.
        position: Index of the value, from 0, or of the result that beta made non-finite; None
            for the whole argument.
        value: The value found.
    """

    def __init__(
        self, argument: str, problem: str, *, position: int | None = None, value: object
    ) -> None:
        self.argument = argument
        self.position = position
        self.value = value
        at = "" if position is None or argument == "beta" else f"[{position}]"
        super().__init__(f"{argument}{at} {problem}")


class ContractError(DpoPipelineError):
    """Raised when columns, types or rows break the contract, or no valid row is left."""


class NoSuchColumn(str):
    """A problem of a `ColumnError`: the caller named a column that is not there."""

    __slots__ = ()


NO_GUESSES: Final[Mapping[str, str]] = MappingProxyType({})


class ColumnError(ContractError):
    """Raised when columns are missing, ambiguous, of a wrong type, or in the way of an output.

    Its exit code is that of usage where a name that was given is no column.

    Attributes:
        problems: One sentence for each.
        guesses: Role that is missing to the column that may be it.
        flag: The option of the command line that maps columns of this source.
        is_of_a: Whether the source is the first of two that `flag` is for.
        options: What the command lacks, such as a format, instead of a mapping.
    """

    flag: str = "--column"
    is_of_a: bool = False
    options: tuple[str, ...] = ()

    def __init__(
        self, source: str, problems: tuple[str, ...], guesses: Mapping[str, str] = NO_GUESSES
    ) -> None:
        self.source = source
        self.problems = problems
        self.guesses = dict(guesses)
        if any(isinstance(problem, NoSuchColumn) for problem in problems):
            self.exit_code = USAGE
        listed = (f"  {problem}" for problem in _said_once(problems))
        super().__init__(f"{source} does not fit the contract:", *listed)


def _said_once(problems: tuple[str, ...]) -> Iterator[str]:
    """Yield the problems; what several missing columns have in common stands once, below them."""
    is_missing = [problem.partition(": ")[2].startswith("missing; ") for problem in problems]
    clauses = [
        problem.split("; ") if is_one else [problem]
        for problem, is_one in zip(problems, is_missing, strict=True)
    ]
    every = [each for said in clauses for each in said[1:]]
    for first, *rest in clauses:
        yield "; ".join((first, *(each for each in rest if every.count(each) == 1)))
    shared = dict.fromkeys(each for each in every if every.count(each) > 1)
    for each in sorted(shared, key=lambda clause: clause.startswith("the columns are")):
        yield f"{each[:1].upper()}{each[1:]}."


class InvalidPairsError(ContractError):
    """Raised when invalid rows are not excluded, are too many, or leave no valid one.

    Attributes:
        report: How many rows broke which rule, and the first of them.
        reason: Why that is an error, if the report alone does not say it.
        is_excluding: Whether invalid rows were to be left out, and still this is an error.
    """

    ADVICE: ClassVar[str] = (
        "Mend these rows, or leave them out: on_invalid (--on-invalid) 'exclude' drops them, "
        "'quarantine', when scoring, keeps them apart."
    )
    ADVICE_EXCLUDING: ClassVar[str] = (
        "Mend these rows, or raise at_most (--max-invalid); at least one pair must be valid."
    )
    OF_BF16: ClassVar[str] = (
        "Log-probs a little above 0 from a bf16 export: raise max_logp (--max-logp)."
    )
    OF_RANGE: ClassVar[str] = (
        "Scores out of range: the log-probs, beta or the arguments of the loss are too large."
    )

    def __init__(
        self, report: InvalidReport, *, reason: str = "", is_excluding: bool = False
    ) -> None:
        self.report = report
        self.reason = reason
        self.is_excluding = is_excluding
        advice = " ".join(self._advice(report))
        lines = str(report).splitlines()
        super().__init__(*([reason] if reason else []), *lines, "", advice)

    def _advice(self, report: InvalidReport) -> Iterator[str]:
        yield self.ADVICE_EXCLUDING if self.is_excluding else self.ADVICE
        shown = [o.value for r in report.broken if r.name.endswith(".at_most") for o in r.offenders]
        if any(isinstance(value, (int, float)) and value <= BF16_EXCESS for value in shown):
            yield self.OF_BF16
        if any(rule.name.endswith(".in_range") for rule in report.broken):
            yield self.OF_RANGE


class JoinError(ContractError):
    """Raised when tables cannot be joined by their keys.

    Attributes:
        on: The key.
        rows: Name of each table to its rows.
        faults: Each fault to the number of rows that have it, and the first such keys.
    """

    def __init__(
        self, *, on: str, rows: Mapping[str, int], faults: Mapping[str, tuple[int, tuple[Any, ...]]]
    ) -> None:
        self.on = on
        self.rows = rows
        self.faults = faults
        sides = " and ".join(f"{name} ({count:,} rows)" for name, count in rows.items())
        lines = [f"{sides} cannot be joined by {on!r}:"]
        for fault, (count, keys) in faults.items():
            some = ", ".join(map(repr, keys))
            shown = "" if fault.startswith("null") else f", such as {some}"
            lines.append(f"  {fault}: {count:,} row{'' if count == 1 else 's'}{shown}")
        alone = [keys for fault, (_, keys) in faults.items() if fault.endswith(" alone")]
        if len(alone) == 2:  # noqa: PLR2004  one of each table
            lines += _nearly_equal(*alone)
        super().__init__(*lines)


_ALIKE: Final[Mapping[str, Callable[[str], str]]] = MappingProxyType(
    {
        "spaces around them": str.strip,
        "case": lambda key: key.strip().casefold(),
        "leading zeros": lambda key: key.lstrip("0"),
        "the .0 of a float": lambda key: key.removesuffix(".0"),
    }
)
"""In what keys can differ that were to be equal, and what makes them equal."""


def _nearly_equal(ours: Iterable[Any], theirs: Iterable[Any]) -> Iterator[str]:
    """Yield a hint if keys that only one of two tables has differ by how they are written."""
    for what, alike in _ALIKE.items():
        other = {alike(str(key)): key for key in theirs}
        found = ((key, other[same]) for key in ours if (same := alike(str(key))) in other)
        for one, two in found:
            yield f"  {one!r} and {two!r} differ by {what} alone: write them alike in both"
            return


class RefusedCheckError(ContractError):
    """Raised when a check of a pandera schema cannot run row by row inside the plan.

    Attributes:
        check: The check's name.
        column: The column it belongs to, or None for a check of the whole frame.
    """

    exit_code: int = USAGE  # the contract cannot be used, whatever the data

    def __init__(self, check: str, column: str | None, why: str) -> None:
        self.check = check
        self.column = column
        place = f"column {column!r}" if column else "the frame"
        super().__init__(
            f"check {check!r} on {place} cannot run row by row: {why}. "
            "Rewrite it as one Boolean Polars expression of the row, or run it with pandera itself."
        )


class StorageError(DpoPipelineError):
    """Raised when a file cannot be read or written.

    Attributes:
        path: The file or folder.
    """

    exit_code: int = STORAGE

    def __init__(self, path: str, problem: str) -> None:
        self.path = path
        super().__init__(f"{path}: {problem}")


class EngineError(DpoPipelineError):
    """Raised when an engine cannot be reached, or lost the machines that were at work."""

    exit_code: int = STORAGE


@dataclass(frozen=True, slots=True, kw_only=True)
class MissedMark:
    """A figure that missed its mark."""

    name: str  # the name of the figure, as given
    side: str  # "below" a smallest value, or "above" a largest one
    mark: float  # that value, in the figure's unit
    value: float  # the figure
    interval: tuple[float, float] | None  # its limits; None without statistics
    by_interval: bool  # whether the limit nearer to failing, not the value, had to keep the mark

    def __str__(self) -> str:
        """Return the miss as a phrase."""
        limits = "" if self.interval is None else " ({:.6g} to {:.6g})".format(*self.interval)
        end = "lower" if self.side == "below" else "upper"
        what = f": the {end} end is" if self.by_interval else ","
        return f"{self.name} is {self.value:.6g}{limits}{what} {self.side} {self.mark:g}"


class GateError(DpoPipelineError):
    """Raised when a result fails a gate. The result and its outputs exist nonetheless.

    Attributes:
        source: What was evaluated or compared.
        missed: The figures that missed their marks.
        why: Why a comparison gives no verdict; None if it does.
    """

    exit_code: int = GATE

    def __init__(
        self, source: str, missed: tuple[MissedMark, ...] = (), *, why: str | None = None
    ) -> None:
        self.source = source
        self.missed = missed
        self.why = why
        reasons = [*map(str, missed), *([] if why is None else [why])]
        super().__init__(f"{source} fails its gate: {'; '.join(reasons)}")


class Cancelled(DpoPipelineError):  # noqa: N818  it is an outcome that the caller asked for
    """Raised when the cancel event was set: nothing was published."""

    exit_code: int = SIGNALLED + 2
    """The code for SIGINT; the command line returns 128 + the number of its signal."""


class DataWarning(UserWarning):
    """Issued for valid data that is surely wrong, such as a policy equal to its reference."""
