"""Outputs in object stores: moved to their names when they are whole, a marker last.

A store has neither locks nor renaming. An object is written under a name of the attempt, its
footer is read, and only then it is moved; what died leaves no marker, and the next run for the
same output replaces it. Two runs for one output at a time are not noticed.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

import polars as pl

from dpo_pipeline.errors import StorageError
from dpo_pipeline.storage.publication import METADATA_KEY, SUCCESS, Publication
from dpo_pipeline.storage.read_errors import reading
from dpo_pipeline.storage.stores import Access, is_address, joined
from dpo_pipeline.storage.targets import Out, Sink

ATTEMPTS: Final = "_attempts"
"""The folder of what is being written, beside the marker or the one object of an output."""

MANIFEST: Final = ".manifest.json"
"""The ending of a folder's manifest, which is beside it: rows by file, and the summary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject:
    """The address of one output file.

    Attributes:
        address: Where it shall be.
        attempts: The folder in which it is written.
        access: How the store is reached.
    """

    address: str
    attempts: str
    access: Access

    @property
    def name(self) -> str:
        """What errors call it."""
        return self.address

    def scan(self) -> pl.LazyFrame:
        """Scan what was written."""
        return pl.scan_parquet(self.address, glob=False, **self.access.polars(self.address))

    def write(self, sink: Sink, source: str) -> int:
        """Have the object written and return its rows, from its footer."""
        system, final = self.access.filesystem(self.address)
        attempt = joined(self.attempts, f"{secrets.token_hex(8)}.parquet")
        _, path = self.access.filesystem(attempt)
        with _removed_after_error(system, path):
            try:
                sink(
                    Out(
                        target=attempt,
                        options=self.access.polars(attempt),
                        path=path,
                        filesystem=system,
                        name=self.address,
                    )
                )
            except BaseException as error:
                with reading(self.address if path in str(error) else source):
                    raise
            # A sink that failed can leave an object that can be read, and has no rows.
            rows = self._rows(system, path)
            with reading(self.address):
                system.move(path, final)
        return rows

    def check(self, rows: int) -> None:
        """Raise a StorageError if the object has not so many rows."""
        found = self._rows(*self.access.filesystem(self.address))
        if found != rows:
            raise StorageError(self.address, f"has {found:,} rows, and {rows:,} were written")

    def _rows(self, system: Any, path: str) -> int:
        import pyarrow.parquet as pq

        with reading(self.address):
            return int(pq.read_metadata(path, filesystem=system).num_rows)


@contextmanager
def _removed_after_error(system: Any, path: str) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with suppress(OSError):  # an error is on its way
            system.delete_file(path)
        raise


@dataclass(slots=True, kw_only=True, eq=False)
class _Folder:
    """An output of objects; `marker` is None for one object alone."""

    address: str
    marker: str | None
    objects: list[StoredObject]
    stale: list[str]
    manifest: str = ""


class Outputs(Publication):
    """A publication some of whose outputs may have addresses.

    Parts in a store get their names while they are written, and are removed again if the run fails
    and nothing was replaced; the marker of their folder is the commit. Documents are uploaded
    before it, and outputs on this machine are published before it.
    """

    def __init__(
        self, *, overwrite: bool, inputs: Mapping[str, tuple[int, ...]], access: Access
    ) -> None:
        super().__init__(overwrite=overwrite, inputs=inputs)
        self._access = access
        self._replaces = overwrite
        self._folders: list[_Folder] = []
        self._uploads: dict[str, str] = {}
        self._temporary: str | None = None
        self._done = False

    def stage(self, target: str | os.PathLike[str]) -> str:
        """Return where to write what shall become `target`.

        Raises:
            StorageError: As `Publication.stage`.
        """
        if not is_address(target):
            return super().stage(target)
        address = os.fspath(target)
        self._check_none(address)
        if self._temporary is None:
            self._temporary = tempfile.mkdtemp(prefix="dpo-pipeline-")
        path = os.path.join(self._temporary, str(len(self._uploads)))
        self._uploads[path] = address
        return path

    def stage_object(self, address: str) -> StoredObject:
        """Return where to write the one object of an output.

        Raises:
            StorageError: It exists already, or the store cannot be reached.
        """
        self._check_none(address)
        attempts = joined(address.rpartition("/")[0], ATTEMPTS, secrets.token_hex(8))
        made = StoredObject(address=address, attempts=attempts, access=self._access)
        self._folders.append(_Folder(address=address, marker=None, objects=[made], stale=[]))
        return made

    def stage_objects(self, folder: str, relatives: Sequence[str]) -> list[StoredObject]:
        """Return where to write the parts of a folder.

        Raises:
            StorageError: It holds an output already, or what is not of this tool.
        """
        attempts = joined(folder, ATTEMPTS)
        marker = joined(folder, SUCCESS)
        with reading(folder):
            _, found = self._access.find(folder + "/")
        names = [each.address for each in found]
        if marker in names and not self._replaces:
            raise StorageError(folder, "is not empty; pass overwrite (--overwrite) to replace it")
        old = [n for n in names if n.endswith(".parquet") and not n.startswith(attempts + "/")]
        for name in old:
            self._check_ours(name)
        objects = [
            StoredObject(address=joined(folder, each), attempts=attempts, access=self._access)
            for each in relatives
        ]
        made = {each.address for each in objects}
        self._folders.append(
            _Folder(
                address=folder,
                marker=marker,
                objects=objects,
                stale=[name for name in old if name not in made],
            )
        )
        return objects

    def begin(self) -> None:
        """Withdraw the markers of what is about to be replaced."""
        for folder in self._folders:
            if folder.marker is not None:
                self._remove(folder.marker)

    def describe(self, target: str | os.PathLike[str], manifest: str) -> None:
        """Have a manifest published beside a folder in a store, before its marker."""
        for folder in self._folders:
            if folder.address == os.fspath(target).rstrip("/"):
                folder.manifest = manifest

    def commit(self, check: Callable[[], None] | None = None) -> None:
        """Publish documents, then what lies on this machine, then markers in stores.

        Raises:
            StorageError: An output cannot be published, or an input changed.
        """
        if check is not None:
            check()
        for path, address in self._uploads.items():
            with open(path, "rb") as file:
                self._put(address, file.read())
        super().commit(check)
        for folder in self._folders:
            for address in folder.stale:
                self._remove(address)
            if folder.marker is not None:
                # Not in the folder: Polars reads a folder if all in it is Parquet, or empty.
                self._put(f"{folder.address}{MANIFEST}", folder.manifest.encode())
                self._put(folder.marker, b"")
        self._done = True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            for folder in self._folders:
                if not (self._done or self._replaces):
                    for each in folder.objects:
                        with suppress(OSError, StorageError):  # an error is on its way
                            self._remove(each.address)
                system, path = self._access.filesystem(folder.objects[0].attempts)
                with suppress(OSError):  # readers leave the folder out
                    system.delete_dir(path)
            if self._temporary is not None:
                shutil.rmtree(self._temporary, ignore_errors=True)
        finally:
            super().__exit__(kind, error, traceback)

    def _check_none(self, address: str) -> None:
        if not self._replaces:
            with reading(address):
                (found,) = self._access.identities([address])
            if found:
                raise StorageError(
                    address, "exists already; pass overwrite (--overwrite) to replace it"
                )

    def _check_ours(self, address: str) -> None:
        import pyarrow.parquet as pq

        system, path = self._access.filesystem(address)
        with reading(address):
            metadata = pq.read_metadata(path, filesystem=system).metadata or {}
        if METADATA_KEY.encode() not in metadata:
            raise StorageError(address, "is in the output folder and no output of this tool")

    def _put(self, address: str, content: bytes) -> None:
        system, path = self._access.filesystem(address)
        with reading(address), system.open_output_stream(path) as file:
            file.write(content)

    def _remove(self, address: str) -> None:
        system, path = self._access.filesystem(address)
        with reading(address):
            (found,) = self._access.identities([address])
            if found:
                system.delete_file(path)
