"""A call is planned once: a plan is made with all checks that need no data, and is run or printed.

`@planned` turns a function that returns a plan into the call that runs it; `dry_run` returns the
plan itself.
"""

from __future__ import annotations

import functools
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, ParamSpec, Protocol, TypeVar

from dpo_pipeline.arguments import differing
from dpo_pipeline.errors import UsageError
from dpo_pipeline.tables import aligned, as_json

P = ParamSpec("P")
T_co = TypeVar("T_co", covariant=True)

_FILES_SHOWN: Final = 10
"""Input files that the text lists; the document has them all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """A file or table that the call would read.

    Attributes:
        path: A file, or the name of a source that has no footers.
        rows: Rows, from the footer; None where only reading can tell.
        is_reference: Whether it belongs to the reference.
    """

    path: str
    rows: int | None
    is_reference: bool = False


class Output(Protocol):
    """An output of the call; `files` counts the files of a folder, and is None for a file."""

    @property
    def path(self) -> str: ...  # noqa: D102
    @property
    def files(self) -> int | None: ...  # noqa: D102
    @property
    def replaces(self) -> bool: ...  # noqa: D102


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a dry run shows of a plan.

    Attributes:
        function: The function that was called.
        call: The command that does the same.
        source: What reports call the pairs.
        inputs: What is read.
        rows: Pairs, from the footers; None where only reading can tell.
        columns: Role to the input column that was found for it.
        options: The groups of options, under the parameters of the call.
        max_logp: Largest log-probability accepted, in nats; None where values are not checked.
        objectives: What is computed; each has `to_dict`.
        by: Columns of the subsets.
        statistics: Whether statistics are made.
        batch_size: Rows of a batch, if batches are of rows.
        batch_by: The column of the batches, if they are by value.
        n_batches: How many batches of rows there are, where that is known.
        carried: Input columns that scored pairs keep; None if none are written.
        notes: What is to be said about the inputs, such as files that are left out.
        checked_later: What only the run can check.
        outputs: What is written.
    """

    function: str
    call: str
    source: str
    inputs: tuple[Input, ...]
    rows: int | None
    columns: Mapping[str, str]
    options: Mapping[str, Any]
    max_logp: float | None = None
    objectives: tuple[Any, ...] = ()
    by: tuple[str, ...] = ()
    statistics: bool = False
    batch_size: int | None = None
    batch_by: str | None = None
    n_batches: int | None = None
    carried: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    checked_later: tuple[str, ...] = ()
    outputs: tuple[Output, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        return {
            "dry_run": self.function,
            "source": self.source,
            "rows": self.rows,
            "inputs": [
                {"path": each.path, "rows": each.rows, "is_reference": each.is_reference}
                for each in self.inputs
            ],
            "columns": dict(self.columns),
            "options": {flag: _plain(value) for flag, value in self._given.items()},
            "max_logp": self.max_logp,
            "objectives": [objective.to_dict() for objective in self.objectives],
            "by": list(self.by),
            "statistics": self.statistics,
            "batch_size": self.batch_size,
            "batch_by": self.batch_by,
            "n_batches": self.n_batches,
            "carried": None if self.carried is None else list(self.carried),
            "notes": list(self.notes),
            "checked_later": list(self.checked_later),
            "outputs": [
                {"path": each.path, "files": each.files, "replaces": each.replaces}
                for each in self.outputs
            ],
        }

    @property
    def _given(self) -> dict[str, Any]:
        return differing(self.options, self.call)

    def to_json(self) -> str:
        """Return the same as JSON."""
        return as_json(self.to_dict())

    def __str__(self) -> str:
        """Return the same as aligned text."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        rows = "rows unknown until read" if self.rows is None else f"{self.rows:,} rows"
        yield f"{self.source}: {rows}; a dry run, so nothing was computed or written"
        options = [(flag, _words(value)) for flag, value in self._given.items()]
        for section in (
            list(self._input_lines()),
            aligned(("role", "column"), list(self.columns.items())),
            aligned(("option", "value"), options) if options else [],
            list(self._figure_lines()),
            [f"note: {text}" for text in self.notes],
            [f"checked by the run: {what}" for what in self.checked_later],
            list(self._output_lines()),
        ):
            if section:
                yield from ("", *section)

    def _input_lines(self) -> Iterator[str]:
        if len(self.inputs) > 1:
            shown = self.inputs[:_FILES_SHOWN]
            rows = [
                (f"{each.path}{' (reference)' if each.is_reference else ''}", each.rows)
                for each in shown
            ]
            yield from aligned(("input", "rows"), rows)
            if len(self.inputs) > len(shown):
                yield f"... and {len(self.inputs) - len(shown):,} more"

    def _figure_lines(self) -> Iterator[str]:
        for each in self.objectives:
            system = "" if each.dialect is None else f", dialect {each.dialect}"
            yield f"loss: {each}, beta {each.beta:g}{system}"
            for term in each.to_dict()["terms"]:
                names = [name for name in term if name not in ("loss", "weight")]
                given = ", ".join(f"{name} {_words(term[name])}" for name in names)
                yield f"  {term['loss']}: {given}"
        if self.max_logp is not None:
            yield f"log-probs accepted: at most {self.max_logp:g}"
        if self.by:
            yield f"subsets: by {', '.join(self.by)}"
        if self.statistics:
            yield "statistics: yes"
        if self.batch_size is not None:
            count = "" if self.n_batches is None else f"{self.n_batches:,} "
            yield f"batches: {count}of {self.batch_size:,} rows"
        if self.batch_by is not None:
            yield f"batches: by the value of {self.batch_by}"
        if self.carried is not None:
            yield f"columns carried along: {', '.join(self.carried) or 'none'}"

    def _output_lines(self) -> Iterator[str]:
        for each in self.outputs:
            what = "" if each.files is None else f", {each.files:,} files"
            yield f"would {'replace' if each.replaces else 'write'} {each.path}{what}"


class Plan(ABC, Generic[T_co]):
    """A call, with everything checked that can be checked without reading data.

    A plan holds no lock and opens no output. Whether values keep the contract, whether the keys
    of a reference fit, and whether there is room for the outputs, only the run can tell.
    """

    __slots__ = ()

    @property
    @abstractmethod
    def facts(self) -> Facts:
        """What a dry run shows."""

    @abstractmethod
    def run(self) -> T_co:
        """Do it, and return the result."""

    def to_dict(self) -> dict[str, Any]:
        """Return what would be read, computed and written, as plain data."""
        return self.facts.to_dict()

    def to_json(self) -> str:
        """Return the same as JSON."""
        return self.facts.to_json()

    def __str__(self) -> str:
        """Return the same as aligned text: the dry run."""
        return str(self.facts)


def planned(plan: Callable[P, Plan[T_co]]) -> Callable[P, T_co]:
    """Return the call that makes this plan and runs it."""

    @functools.wraps(plan)
    def call(*places: P.args, **arguments: P.kwargs) -> T_co:
        return plan(*places, **arguments).run()

    call.plan = plan  # type: ignore[attr-defined]
    returns = plan.__annotations__.get("return", "")
    call.__annotations__["return"] = str(returns).removeprefix("Plan[").removesuffix("]")
    return call


def dry_run(function: Callable[..., Any], *places: Any, **arguments: Any) -> Plan[Any]:
    """Return the plan of `function(*places, **arguments)`: what it would read, compute and write.

    Only the footers of Parquet are read; of other formats, what is needed to know their columns.
    Nothing is written. Print the plan, or `run()` it.

    Args:
        function: `check`, `evaluate`, `sweep`, `score_parquet`, `compare` or `convert`.
        places: Its positional arguments.
        arguments: Its keyword arguments.

    Raises:
        UsageError: `function` is none of these, or an error of `function` itself.
        ContractError, StorageError: As `function`, if footers and names show it.
        TypeError: The function takes no such arguments.

    Examples:
        >>> import polars as pl, dpo_pipeline
        >>> pairs = pl.DataFrame({"policy_chosen_logps": [-10.0], "policy_rejected_logps": [-14.0],
        ...                       "ref_chosen_logps": [-11.0], "ref_rejected_logps": [-12.0]})
        >>> dpo_pipeline.dry_run(dpo_pipeline.evaluate, pairs).run().summary.n_valid
        1
    """
    plan = getattr(function, "plan", None)
    if plan is None:
        names = "check, evaluate, sweep, score_parquet, compare, convert"
        raise UsageError(f"dry_run takes one of {names}, found {function!r}")
    made: Plan[Any] = plan(*places, **arguments)
    return made


def _plain(value: Any) -> Any:
    """Return the value of an option as JSON holds it."""
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return os.fspath(value) if isinstance(value, os.PathLike) else _name_of(value)


def _words(value: Any) -> str:
    """Return the value of an option as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={_words(each)}" for name, each in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_words, value))
    return str(_plain(value))


def _name_of(value: Any) -> str:
    return getattr(value, "__name__", type(value).__name__)
