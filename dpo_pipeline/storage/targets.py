"""Where one output file is written, on this machine or in a store."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, BinaryIO, TypeAlias

import polars as pl

from dpo_pipeline.errors import StorageError
from dpo_pipeline.storage.locks import final_name, hidden_name, is_tmp
from dpo_pipeline.storage.publication import writing
from dpo_pipeline.storage.read_errors import footer_of, reading
from dpo_pipeline.storage.renames import sync


@dataclass(frozen=True, slots=True, kw_only=True)
class Out:
    """What a sink writes to, for Polars and for pyarrow; errors call it `name`."""

    target: BinaryIO | str
    path: str
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    filesystem: Any = None


Sink: TypeAlias = Callable[[Out], None]


class Target(ABC):
    """The place of one Parquet file that is being written; it must pickle."""

    __slots__ = ()

    @property
    @abstractmethod
    def name(self) -> str:
        """What errors call it."""

    @abstractmethod
    def scan(self) -> pl.LazyFrame:
        """Scan what was written."""

    @abstractmethod
    def write(self, sink: Sink, source: str) -> int:
        """Have the file written and return its rows, from its footer.

        Until that is known nothing has the name under which the file is expected.
        """

    @abstractmethod
    def rows(self) -> int:
        """Return the rows of what was written, as this process sees it."""

    def check(self, rows: int) -> None:
        """Raise a StorageError if this process does not see the file with so many rows."""
        found = self.rows()
        if found != rows:
            raise StorageError(self.name, f"has {found:,} rows, and {rows:,} were written")


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedFile(Target):
    """A hidden file on this machine.

    If `apart`, each attempt writes to a name of its own and moves that to the hidden one when it is
    whole: two attempts of one task may run at the same time, on two machines.
    """

    hidden: str
    apart: bool = False

    @property
    def name(self) -> str:  # noqa: D102
        return final_name(self.hidden)

    def scan(self) -> pl.LazyFrame:  # noqa: D102
        return pl.scan_parquet(self.hidden, glob=False)

    def write(self, sink: Sink, source: str) -> int:  # noqa: D102
        final = self.name
        with written_whole(self.hidden) if self.apart else nullcontext(self.hidden) as path:
            with writing(path, source) as file:
                sink(Out(target=file, path=path, name=final))
            return int(footer_of(path).num_rows)

    def rows(self) -> int:  # noqa: D102
        if not os.path.exists(self.hidden):
            raise StorageError(
                self.name,
                "it was written by a process that does not share this file system: the output "
                "must lie where all machines see it",
            )
        return int(footer_of(self.hidden).num_rows)


@contextmanager
def written_whole(path: str) -> Iterator[str]:
    """Give a hidden name of its own to write to, which becomes `path` at the end.

    Several processes may write `path` at the same time: each gives it a whole file.
    """
    final = final_name(path)
    own = os.path.basename(hidden_name(final, locked=False))
    attempt = os.path.join(os.path.dirname(path), own)
    try:
        yield attempt
        with reading(final):
            sync(attempt)
            os.replace(attempt, path)
            sync(os.path.dirname(path))
    except BaseException:
        with suppress(OSError):  # an error is on its way
            os.unlink(attempt)
        raise


@contextmanager
def without_attempts(targets: Iterable[Target]) -> Iterator[None]:
    """Remove, at the end, what is left of attempts that died or that another one overtook."""
    staged = {t.hidden for t in targets if isinstance(t, StagedFile) and t.apart}
    finals = {final_name(hidden) for hidden in staged}
    try:
        yield
    finally:
        for folder in {os.path.dirname(hidden) for hidden in staged}:
            for name in os.listdir(folder or "."):
                path = os.path.join(folder, name)
                if is_tmp(name) and path not in staged and final_name(path) in finals:
                    with suppress(OSError):  # it is hidden, and the next run tries again
                        os.unlink(path)
