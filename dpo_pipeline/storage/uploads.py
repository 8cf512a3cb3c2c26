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
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import polars as pl

from dpo_pipeline.errors import StorageError
from dpo_pipeline.plan import Output
from dpo_pipeline.storage.output_checks import METADATA_KEY, SUCCESS
from dpo_pipeline.storage.publication import Publication
from dpo_pipeline.storage.read_errors import footer_of, reading
from dpo_pipeline.storage.stores import LOCAL, Access, is_address, joined
from dpo_pipeline.storage.targets import Out, Sink, StagedFile, Target

ATTEMPTS: Final = "_attempts"
"""The folder of what is being written, beside the marker or the one object of an output."""

MANIFEST: Final = ".manifest.json"
"""The ending of a folder's manifest, which is beside it: rows by file, and the summary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject(Target):
    """An object in a store, which is written in the folder `attempts` and then moved."""

    address: str
    attempts: str
    access: Access

    @property
    def name(self) -> str:  # noqa: D102
        return self.address

    def scan(self) -> pl.LazyFrame:  # noqa: D102
        return pl.scan_parquet(self.address, glob=False, **self.access.polars(self.address))

    def write(self, sink: Sink, source: str) -> int:  # noqa: D102
        attempt = joined(self.attempts, f"{secrets.token_hex(8)}.parquet")
        system, path = self.access.filesystem(attempt)
        out = Out(
            target=attempt,
            options=self.access.polars(attempt),
            path=path,
            filesystem=system,
            name=self.address,
        )
        try:
            try:
                sink(out)
            except BaseException as error:
                with reading(self.address if path in str(error) else source):
                    raise
            # A sink that failed can leave an object that can be read, and has no rows.
            rows = int(footer_of(path, name=self.address, filesystem=system).num_rows)
            with reading(self.address):
                system.move(path, self.access.filesystem(self.address)[1])
        except BaseException:
            with suppress(OSError):  # an error is on its way
                system.delete_file(path)
            raise
        return rows

    def rows(self) -> int:  # noqa: D102
        system, path = self.access.filesystem(self.address)
        return int(footer_of(path, name=self.address, filesystem=system).num_rows)


@dataclass(slots=True, kw_only=True, eq=False)
class _Folder:
    """A folder of objects, or one object, which has no marker.

    `stale` are parts of an output that is replaced, which have no successor of their name.
    """

    address: str
    marker: str | None
    objects: list[StoredObject]
    stale: list[str]
    manifest: str = ""


class Outputs(Publication):
    """The outputs of a run, each on this machine or in a store.

    Parts in a store get their names while they are written, and are removed again if the run fails
    and nothing was replaced. Documents are uploaded and outputs on this machine are published
    before the marker of a folder in a store, which is the commit. Arguments are as in
    `Publication`; files may be objects, and one without an identity is not watched.
    """

    def __init__(
        self,
        *,
        overwrite: bool,
        inputs: Mapping[str, tuple[int, ...]] | None = None,
        access: Access = LOCAL,
        protected: Iterable[str | os.PathLike[str]] = (),
    ) -> None:
        read, kept = dict(inputs or {}), list(protected)
        super().__init__(
            overwrite=overwrite,
            inputs={path: was for path, was in read.items() if not is_address(path)},
            protected=[path for path in kept if not is_address(path)],
        )
        self._access = access
        self._objects_read = {path: was for path, was in read.items() if is_address(path)}
        self._objects_kept = {os.fspath(p) for p in (*read, *kept) if is_address(p)}
        self._folders: list[_Folder] = []
        self._uploads: dict[str, str] = {}
        self._temporary: str | None = None
        self._done = False

    def check(
        self, target: str | os.PathLike[str], relatives: Sequence[str] | None = None
    ) -> Output:
        """As `Publication.check`; `target` may be an object, or a folder of objects."""
        if not is_address(target):
            return super().check(target, relatives)
        if relatives is None:
            return self._check_object(os.fspath(target))
        folder = os.fspath(target).rstrip("/")
        there = self._parts_in_store(folder)
        return Output(path=folder, files=len(relatives), replaces=bool(there))

    def stage(self, target: str | os.PathLike[str]) -> str:
        """Return where to write a document, which shall become `target`."""
        if not is_address(target):
            return super().stage(target)
        address = os.fspath(target)
        self._check_object(address)
        if self._temporary is None:
            self._temporary = tempfile.mkdtemp(prefix="dpo-pipeline-")
        path = os.path.join(self._temporary, str(len(self._uploads)))
        self._uploads[path] = address
        return path

    def stage_parts(
        self,
        target: str | os.PathLike[str],
        relatives: Sequence[str] | None = None,
        *,
        apart: bool = False,
    ) -> list[Target]:
        """Return where to write a Parquet file, or the parts of a folder; arguments as in `check`.

        `apart` says that two processes may write one part at the same time.
        """
        if is_address(target):
            return [*self._stage_objects(os.fspath(target), relatives)]
        staged = [self.stage(target)] if relatives is None else self.stage_folder(target, relatives)
        return [StagedFile(hidden=hidden, apart=apart) for hidden in staged]

    def _stage_objects(self, target: str, relatives: Sequence[str] | None) -> list[StoredObject]:
        folder, stale, marker = target.rpartition("/")[0], [], None
        names, attempts = [target], joined(folder, ATTEMPTS, secrets.token_hex(8))
        if relatives is None:
            self._check_object(target)
        else:
            target = folder = target.rstrip("/")
            names, attempts = [joined(folder, each) for each in relatives], joined(folder, ATTEMPTS)
            stale = [name for name in self._parts_in_store(folder) if name not in set(names)]
            marker = joined(folder, SUCCESS)
        objects = [StoredObject(address=n, attempts=attempts, access=self._access) for n in names]
        self._folders.append(_Folder(address=target, marker=marker, objects=objects, stale=stale))
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
        """Publish documents, then what lies on this machine, then markers in stores."""
        if check is not None:
            check()
        self._check_objects_read()
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

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        try:
            for folder in self._folders:
                if not (self._done or self._overwrite):
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

    def _check_object(self, address: str) -> Output:
        self._take(address)
        with reading(address):
            found = self._access.identity(address)
        if found and not self._overwrite:
            raise StorageError(
                address, "exists already; pass overwrite (--overwrite) to replace it"
            )
        return Output(path=address, files=None, replaces=bool(found))

    def _parts_in_store(self, folder: str) -> list[str]:
        """Check that a folder can be an output; return the addresses of the parts in it."""
        if any(each.startswith(folder + "/") for each in self._objects_kept):
            raise StorageError(folder, "the output folder holds inputs")
        self._take(folder)
        with reading(folder):
            _, names = self._access.find(folder + "/")
        if joined(folder, SUCCESS) in names and not self._overwrite:
            raise StorageError(folder, "is not empty; pass overwrite (--overwrite) to replace it")
        attempts = joined(folder, ATTEMPTS) + "/"
        parts = [n for n in names if n.endswith(".parquet") and not n.startswith(attempts)]
        for name in parts:
            system, path = self._access.filesystem(name)
            metadata = footer_of(path, name=name, filesystem=system).metadata or {}
            if METADATA_KEY.encode() not in metadata:
                raise StorageError(name, "is in the output folder and no output of this tool")
        return parts

    def _take(self, address: str) -> None:
        if address in self._objects_kept:
            raise StorageError(address, "the output is also an input")
        if address in self._taken:
            raise StorageError(address, "two outputs have this name")
        self._taken.add(address)

    def _check_objects_read(self) -> None:
        known = {address: was for address, was in self._objects_read.items() if was}
        with reading(next(iter(known), "")):
            found = self._access.identities(known)
        for address, was in known.items():
            if found[address] != was:
                raise StorageError(address, "it changed while it was read")

    def _put(self, address: str, content: bytes) -> None:
        system, path = self._access.filesystem(address)
        with reading(address), system.open_output_stream(path) as file:
            file.write(content)

    def _remove(self, address: str) -> None:
        system, path = self._access.filesystem(address)
        with reading(address):
            found = self._access.identity(address)
            if found:
                system.delete_file(path)
