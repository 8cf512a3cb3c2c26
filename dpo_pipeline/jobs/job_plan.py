"""The plan of a job: the call with its options, the inputs as they were, and the shards."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Self, TypeAlias

import polars as pl

from dpo_pipeline.arguments import given
from dpo_pipeline.engine import Executor, versions
from dpo_pipeline.errors import DpoPipelineError, EngineError, StorageError, UsageError
from dpo_pipeline.evaluation import MeasurementPlan, evaluate, sweep
from dpo_pipeline.jobs.option_values import groups_of
from dpo_pipeline.options import Execution
from dpo_pipeline.scoring import ScorePlan, score_parquet
from dpo_pipeline.storage import reading, written_whole
from dpo_pipeline.tables import Part, Printable, Sentence, whole

Call: TypeAlias = MeasurementPlan[Any] | ScorePlan

FUNCTIONS: Final[Mapping[str, Any]] = {
    "evaluate": evaluate,
    "sweep": sweep,
    "score": score_parquet,
}
"""Command to the call that it makes."""

_VERSION: Final = 1
_FILE: Final = "plan.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFile:
    """An input when the job was split: what tells whether it is still the same.

    `modified` is in nanoseconds since 1970; `footer` is the SHA-256 of the footer of Parquet. Both,
    and the size in `bytes`, are None where they cannot be known.
    """

    path: str
    bytes: int | None
    modified: int | None
    footer: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRows:
    """Consecutive rows of an input file, from number `first` on."""

    path: str
    first: int
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JobShard:
    """Consecutive rows of all pairs, from number `first_row` on, and the outputs' parts in turn.

    `files` say where the rows are. `parts` are the first part that is written with this shard, and
    the one after the last.
    """

    number: int
    first_row: int
    rows: int
    parts: tuple[int, int]
    files: tuple[FileRows, ...]

    def holds(self, row: int) -> bool:
        """Return whether a row is of this shard."""
        return self.first_row <= row < self.first_row + self.rows


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class JobPlan(Printable):
    """What `split` writes and every other process reads.

    Attributes:
        folder: The folder of the job.
        command: `evaluate`, `sweep` or `score`.
        pairs: Where the pairs are, as the call names them.
        out: The output of a score; None for the others.
        options: Flag, without its dashes, to value; those that are not at their defaults.
        made_in: The current folder of the process that split it, to which paths are relative.
        inputs: All files that are read.
        shards: In the order of the rows.
        versions: Of the libraries that the bits of a result can depend on.
    """

    folder: str
    command: str
    pairs: str | list[str]
    out: str | None
    options: Mapping[str, Any]
    made_in: str
    inputs: tuple[InputFile, ...]
    shards: tuple[JobShard, ...]
    versions: Mapping[str, str] = field(default_factory=versions)

    def to_parts(self) -> Iterator[Part]:
        """Yield what the job is, and what comes next."""
        rows, last = sum(shard.rows for shard in self.shards), len(self.shards) - 1
        idle = sum(not (shard.rows or range(*shard.parts)) for shard in self.shards)
        text = f"{whole(self.folder)}: {self.command} of {rows:,} pairs in {last + 1:,} shards"
        more = (f"shards with nothing to do: {idle:,}",) if idle else ()
        yield Sentence(text=text, more=more, leads=True)
        place = shlex.quote(self.folder)
        for command, when in (
            (f"dpo-pipeline job run {place} K", f"for each K from 0 to {last}"),
            (f"dpo-pipeline job merge {place}", "when all are done"),
        ):
            yield Sentence(text=f"{whole(command)}    {when}")

    def to_frame(self) -> pl.DataFrame:
        """Return the shards, a row each."""
        rows = [(each.number, each.first_row, each.rows) for each in self.shards]
        return pl.DataFrame(rows, schema=["shard", "first_row", "rows"], orient="row")

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        facts = asdict(self)
        del facts["folder"]
        return {"job": _VERSION, **facts}

    def to_json(self) -> str:
        """Return the same as JSON: the plan file."""
        return json.dumps(self.to_dict(), indent=1) + "\n"

    @property
    def digest(self) -> str:
        """The SHA-256 of the plan file, which every result carries."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def write(self) -> None:
        """Write the plan file, whole or not at all."""
        with (
            reading(self.folder),
            written_whole(os.path.join(self.folder, _FILE)) as path,
            open(path, "w", encoding="utf-8") as file,
        ):
            file.write(self.to_json())

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> Self:
        """Return the plan in a folder."""
        path = os.path.join(folder, _FILE)
        with reading(path), open(path, encoding="utf-8") as file:
            text = file.read()
        try:
            facts = json.loads(text)
            if facts.pop("job") != _VERSION:
                raise StorageError(path, "another version of this library made it: split anew")
            facts["inputs"] = tuple(InputFile(**each) for each in facts["inputs"])
            facts["shards"] = tuple(_shard(**each) for each in facts["shards"])
            plan = cls(folder=os.fspath(folder), **facts)
            known = FUNCTIONS[plan.command] is not None and plan.to_json() == text
        except (AttributeError, KeyError, TypeError, ValueError):
            known = False
        if not known:
            raise StorageError(path, "is no plan of a job, or was changed: split anew")
        if plan.versions != versions():  # the results would mix the bits of two versions
            raise EngineError(
                f"{path} was made with {_words(plan.versions)}, and here is {_words(versions())}"
            )
        return plan

    def shard(self, number: int) -> JobShard:
        """Return the shard of a number."""
        is_whole = isinstance(number, int) and not isinstance(number, bool)
        if not (is_whole and 0 <= number < len(self.shards)):
            raise UsageError(
                f"{self.folder} has the shards 0 to {len(self.shards) - 1}, found {number!r}"
            )
        return self.shards[number]

    def shard_of_row(self, row: int) -> JobShard:
        """Return the shard that a row is in."""
        filled = [shard for shard in self.shards if shard.rows]
        return filled[bisect_right(filled, row, key=lambda shard: shard.first_row) - 1]

    def result_path(self, shard: JobShard) -> str:
        """Return where the result of a shard is."""
        return os.path.join(self.folder, "shards", f"{shard.number:05}.zip")

    def part_path(self, output: str, relative: str) -> str:
        """Return where a part of an output waits for the merge."""
        return os.path.join(self.folder, output, relative)

    def groups(self, executor: Executor, execution: Any) -> dict[str, Any]:
        """Return the arguments of the call; stores are reached as `execution` says."""
        places = {} if self.out is None else {"sink": self.out}
        own = {"execution": replace(given(Execution, execution), engine=executor)}
        return {**groups_of(self.command, self.pairs, self.options), **places, **own}

    def call(self, groups: Mapping[str, Any]) -> Call:
        """Return the plan of the call, cut into the shards."""
        try:
            made: Call = FUNCTIONS[self.command].plan(**groups)
        except DpoPipelineError as error:
            if os.getcwd() != self.made_in:
                error.add_note(f"{self.folder} was split in {self.made_in}: paths are of there")
            raise
        cuts = tuple(sorted({shard.first_row for shard in self.shards}))
        dataset = replace(made.measurement.dataset, cuts=cuts)
        return replace(made, measurement=replace(made.measurement, dataset=dataset))


def _shard(*, files: list[dict[str, Any]], parts: list[int], **facts: Any) -> JobShard:
    first, end = parts
    rows = tuple(FileRows(**each) for each in files)
    return JobShard(**facts, parts=(first, end), files=rows)


def _words(names: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in names.items())
