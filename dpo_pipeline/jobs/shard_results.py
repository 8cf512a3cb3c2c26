"""The result of a shard as a file: JSON, and tables beside it as Arrow. It runs no code when read.

A value of a class of ours is written as the name of the class and its fields.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from importlib import import_module
from typing import Any, Final

import polars as pl

from dpo_pipeline.errors import StorageError
from dpo_pipeline.invalid_report import BrokenRule
from dpo_pipeline.jobs.job_plan import JobPlan, JobShard
from dpo_pipeline.storage import reading, written_whole

_HEAD: Final = "result.json"
_OURS: Final = "dpo_pipeline."

_SEQUENCES: Final[Mapping[str, Any]] = {"list": list, "tuple": tuple}
_OF_TABLE: Final[Mapping[str, Callable[[pl.DataFrame], Any]]] = {
    "frame": lambda table: table,
    "series": pl.DataFrame.to_series,
    "value": pl.DataFrame.item,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardResult:
    """What one run of a shard gave.

    Attributes:
        rows: Pairs read.
        n_invalid: Those that break a rule.
        sums: First row of each piece that was read to its rows, and what was made of them.
        offences: First row of a piece with invalid pairs to their number and the broken rules.
        parts: Output (`scored`, `invalid`) to the paths of its parts, their rows and bytes.
    """

    rows: int
    n_invalid: int
    sums: dict[int, tuple[int, list[Any]]]
    offences: dict[int, tuple[int, tuple[BrokenRule, ...]]]
    parts: dict[str, dict[str, tuple[int, int]]]


def write_result(job: JobPlan, shard: JobShard, result: ShardResult) -> None:
    """Write the result of a shard, whole or not at all."""
    path, packing = job.result_path(shard), _Packing()
    body = {each.name: packing.plain(getattr(result, each.name)) for each in fields(result)}
    head = json.dumps({"plan": job.digest, "shard": shard.number, **body})
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with (
        reading(path),
        written_whole(path) as attempt,
        zipfile.ZipFile(attempt, "w") as archive,
    ):
        archive.writestr(_entry(_HEAD), head)
        for index, table in enumerate(packing.tables):
            with io.BytesIO() as content:
                table.write_ipc(content, compression="zstd")
                archive.writestr(_entry(f"{index}.arrow"), content.getvalue())


def read_result(job: JobPlan, shard: JobShard) -> ShardResult | None:
    """Return the result of a shard; None if it has none.

    Raises:
        StorageError: The file is no result of this shard of this plan.
    """
    path = job.result_path(shard)
    if not os.path.lexists(path):
        return None
    try:
        with reading(path), zipfile.ZipFile(path) as archive:
            head = json.loads(archive.read(_HEAD))
            plan, number = head.pop("plan"), head.pop("shard")
            if plan != job.digest:
                raise StorageError(path, f"is a result of another plan than {job.folder}'s")
            if number != shard.number:
                raise StorageError(path, f"is the result of shard {number}, under another's name")
            unpacked = _Unpacking(archive)
            result = ShardResult(**{name: unpacked.value(each) for name, each in head.items()})
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError) as error:
        raise StorageError(path, f"is no result of a shard: {error}; remove it") from error
    _check_pieces(path, shard, result)
    return result


def _check_pieces(path: str, shard: JobShard, result: ShardResult) -> None:
    """Raise a StorageError if a result does not have each row of its shard once."""
    row = shard.first_row
    for first, (rows, _) in sorted(result.sums.items()):
        if first != row:
            break
        row += rows
    if row != shard.first_row + shard.rows:
        raise StorageError(path, f"does not have each of the {shard.rows:,} rows of its shard once")


def _entry(name: str) -> zipfile.ZipInfo:
    return zipfile.ZipInfo(name)  # whose time is fixed, so that bytes repeat


def _class_of(kind: str) -> type[Any]:
    module, _, name = kind.partition(":")
    made = getattr(import_module(module), name)
    if not (isinstance(made, type) and is_dataclass(made)):
        raise ValueError(f"{kind} is no class of values")
    return made


@dataclass(slots=True)
class _Packing:
    """Makes values plain, and gathers the tables in them."""

    tables: list[pl.DataFrame] = field(default_factory=list)

    def plain(self, value: Any) -> Any:
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, (list, tuple)):
            return {type(value).__name__: [self.plain(each) for each in value]}
        if isinstance(value, dict):
            return {"dict": [[self.plain(key), self.plain(each)] for key, each in value.items()]}
        if is_dataclass(value) and not isinstance(value, type):
            own = {each.name: self.plain(getattr(value, each.name)) for each in fields(value)}
            return {f"{type(value).__module__}:{type(value).__name__}": own}
        if hasattr(value, "__array__") and not isinstance(value, (pl.DataFrame, pl.Series)):
            flat = self.plain(pl.Series(value.ravel()))
            return {"array": [flat, list(value.shape)]}
        kind = "frame" if isinstance(value, pl.DataFrame) else "series"
        if not isinstance(value, (pl.DataFrame, pl.Series)):  # a date, say, that breaks a rule
            kind, value = "value", pl.Series([value])
        table = value if isinstance(value, pl.DataFrame) else value.to_frame()
        self.tables.append(table)
        return {kind: len(self.tables) - 1}


@dataclass(slots=True)
class _Unpacking:
    """Gives back what was packed."""

    archive: zipfile.ZipFile

    def value(self, plain: Any) -> Any:
        if not isinstance(plain, dict):
            return plain
        ((kind, inside),) = plain.items()
        if kind in _SEQUENCES:
            return _SEQUENCES[kind](self.value(each) for each in inside)
        if kind == "dict":
            return {self.value(key): self.value(each) for key, each in inside}
        if kind == "array":
            flat, shape = inside
            return self.value(flat).to_numpy().reshape(shape)
        if kind.startswith(_OURS):
            own = {name: self.value(each) for name, each in inside.items()}
            return _class_of(kind)(**own)
        table = pl.read_ipc(io.BytesIO(self.archive.read(f"{inside}.arrow")))
        return _OF_TABLE[kind](table)
