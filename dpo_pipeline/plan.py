"""A call is planned once: a plan is made with all checks that need no data, and is run or printed.

`@planned` turns a function that returns a plan into the call that runs it; `dry_run` returns the
plan itself.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shlex
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Final, Generic, ParamSpec, TypeVar

from dpo_pipeline.arguments import differing
from dpo_pipeline.errors import UsageError
from dpo_pipeline.tables import (
    Column,
    Part,
    Printable,
    Sentence,
    Table,
    warned,
    whole,
    without_secrets,
)

if TYPE_CHECKING:
    import polars as pl

P = ParamSpec("P")
T_co = TypeVar("T_co", covariant=True)

_NOT_TOLD: Final = frozenset({"--summary", "--report", "--overwrite"})
"""Options that change nothing of a result."""
_FILES_SHOWN: Final = 10
"""Input files that the text lists; the document has them all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """A file or table that the call would read; `rows` is None where only reading can tell."""

    path: str
    rows: int | None
    is_reference: bool = False
    size: int | None = None  # bytes, where they are known


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """A file or folder that the call would write.

    `files` counts the files of a folder, and is None for a file. `replaces` says whether something
    is there already, which may be overwritten.
    """

    path: str
    files: int | None
    replaces: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a result came from: for its report."""

    command: str  # as typed, or what gives the same; empty where no command can
    fingerprint: str  # of names, rows and bytes of the files, without reading; empty of a frame
    settings: tuple[str, ...] = ()  # what a command took from the environment and from files


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Facts(Printable):
    """What a dry run shows of a plan.

    `function` was called, and the command `call` does the same. `rows` and `n_batches` are None
    where only reading can tell, `max_logp` (in nats) where values are not checked, `carried` where
    no pairs are written. `columns` are the input columns of roles, and `options` the groups of
    options, under the parameters of the call. `notes` say what is left out of the inputs.
    """

    function: str
    call: str
    source: str
    rows: int | None
    inputs: tuple[Input, ...]
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
    paths: tuple[str, ...] = ()  # of the sources, if they are paths

    @property
    def origin(self) -> Origin:
        """Where the result came from, without secrets.

        The command is that which was typed. That of a call from Python is made, without outputs.
        """
        typed: tuple[str, ...] = getattr(self.options.get("outputs"), "typed", ())
        return Origin(
            command=typed[0] if typed else self._command(),
            fingerprint=self._fingerprint(),
            settings=typed[1:],
        )

    def _command(self) -> str:
        if not self.paths:
            return ""
        words = ["dpo-pipeline", self.call, *self.paths]
        told = {name: each for name, each in self.options.items() if name != "execution"}
        for flag, value in differing(told, self.call).items():
            if flag in _NOT_TOLD:
                continue
            if isinstance(value, Mapping):
                given = [f"{name}={each}" for name, each in value.items()]
            elif isinstance(value, (list, tuple)):
                given = [str(each) for each in value]
            elif value is True:
                words.append(flag)
                continue
            elif isinstance(value, (str, int, float, os.PathLike)):
                given = [str(value)]
            else:  # an object of Python
                return ""
            words += [word for each in given for word in (flag, each)]
        words += ["--statistics"] if self.statistics and self.call == "evaluate" else []
        return " ".join(shlex.quote(without_secrets(word)) for word in words)

    def _fingerprint(self) -> str:
        names = [
            without_secrets(e.path).replace(os.sep, "/").rpartition("/")[2] for e in self.inputs
        ]
        known = [(n, e.rows, e.size) for n, e in zip(names, self.inputs, strict=True)]
        digest = hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]
        size = sum(each.size or 0 for each in self.inputs)
        of = f"{len(known):,} file{'' if len(known) == 1 else 's'}, {size:,} bytes"
        return f"{digest} (names, rows and bytes of {of})" if size else ""

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        told = {each.name: _plain(getattr(self, each.name)) for each in fields(self)[2:]}
        del told["paths"]
        return {
            "dry_run": self.function,
            **told,
            "inputs": [
                {"path": each.path, "rows": each.rows, "is_reference": each.is_reference}
                for each in self.inputs
            ],
            "options": _plain(differing(self.options, self.call)),
            "objectives": [objective.to_dict() for objective in self.objectives],
            "outputs": [asdict(each) for each in self.outputs],
        }

    def to_frame(self) -> pl.DataFrame:
        """Return the inputs, a row each."""
        import polars as pl

        schema = {"path": pl.String, "rows": pl.Int64, "is_reference": pl.Boolean}
        return pl.DataFrame([asdict(each) for each in self.inputs], schema=schema)

    def to_parts(self) -> Iterator[Part]:
        """Yield what would be read, computed and written."""
        rows = "rows unknown until read" if self.rows is None else f"{self.rows:,} rows"
        text = f"{whole(self.source)}: {rows}; a dry run, so nothing was computed or written"
        yield Sentence(text=text, leads=True)
        if len(self.inputs) > 1:
            yield self._input_table()
        columns = (Column("role"), Column("column"))
        yield Table(columns=columns, rows=list(self.columns.items()), most=None)
        given = differing(self.options, self.call)
        if given:
            options = [(flag, _words(value)) for flag, value in given.items()]
            columns = (Column("option"), Column("value", wraps=True))
            yield Table(columns=columns, rows=options, most=None)
        yield from (Sentence(text=text) for text in self._figure_lines())
        yield from warned(self.notes, "note")
        for what in self.checked_later:
            yield Sentence(text=what, label="checked by the run")
        for each in self.outputs:
            files = "" if each.files is None else f", {each.files:,} files"
            done = "replace" if each.replaces else "write"
            yield Sentence(text=f"would {done} {whole(each.path)}{files}")

    def _input_table(self) -> Table:
        of = {True: "reference", False: "pairs"}
        rows = [(each.path, of[each.is_reference], each.rows) for each in self.inputs]
        columns = (Column("input"), Column("of"), Column("rows"))
        return Table(columns=columns, rows=rows, most=_FILES_SHOWN)

    def _figure_lines(self) -> Iterator[str]:
        for each in self.objectives:
            system = "" if each.dialect is None else f", dialect {each.dialect}"
            yield f"loss: {each}, beta {each.beta:g}{system}"
            for term in each.to_dict()["terms"]:
                names = [name for name in term if name not in ("loss", "weight")]
                given = ", ".join(f"{name} {_words(term[name])}" for name in names)
                yield f"{term['loss']}: {given}"
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


class Plan(Printable, ABC, Generic[T_co]):
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

    def to_frame(self) -> pl.DataFrame:
        """Return the inputs, a row each."""
        return self.facts.to_frame()

    def to_parts(self) -> Iterator[Part]:
        """Yield what would be read, computed and written."""
        return self.facts.to_parts()


@functools.cache  # metadata is parsed each time
def own_version() -> str:
    """Return the version of the package as it is installed."""
    from importlib.metadata import version

    return version("dpo_pipeline")


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
        function: `check`, `evaluate`, `sweep`, `score_parquet`, `select`, `rank`, `compare`,
            `convert` or `logps`.
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
        names = "check, evaluate, sweep, score_parquet, select, rank, compare, convert, logps"
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
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return getattr(value, "__name__", type(value).__name__)


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
