"""Publishes outputs whole or not at all: hidden names first, final names last."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

from dpo_pipeline.errors import StorageError
from dpo_pipeline.io_errors import reading

SUCCESS: Final = "_SUCCESS"
"""The marker that a folder of outputs is complete."""

METADATA_KEY: Final = "dpo_pipeline"
"""The key of the run's facts in the Parquet metadata of every output."""


class Publication:
    """Outputs that appear whole or not at all.

    `stage` gives a hidden name beside a target to write to. `commit` makes what was written
    durable and gives each its final name, in the order staged, so the last one staged is the
    commit. Leaving without a commit removes everything that was staged.
    """

    def __init__(self, *, overwrite: bool, inputs: Sequence[str] = ()) -> None:
        self._overwrite = overwrite
        self._inputs = {os.path.realpath(path) for path in inputs}
        self._staged: list[tuple[str, str]] = []
        self._folders: list[str] = []
        self._made: list[str] = []

    def __enter__(self) -> Self:
        return self

    def stage(self, target: str | os.PathLike[str]) -> str:
        """Return where to write what shall become `target`.

        Raises:
            StorageError: The target exists already, is an input, or is no file's place.
        """
        path = os.fspath(target)
        if os.path.realpath(path) in self._inputs:
            raise StorageError(path, "the output is also an input")
        if os.path.realpath(path) in {os.path.realpath(final) for _, final in self._staged}:
            raise StorageError(path, "two outputs have this name")
        if os.path.isdir(path):
            raise StorageError(path, "is a folder, and the output is a file")
        if os.path.lexists(path) and not self._overwrite:
            raise StorageError(path, "exists already; pass overwrite to replace it")
        folder, name = os.path.split(path)
        if folder and not os.path.isdir(folder):
            raise StorageError(path, f"the folder {folder} does not exist")
        hidden = os.path.join(folder, f".{name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
        self._staged.append((hidden, path))
        return hidden

    def stage_folder(self, target: str | os.PathLike[str], relatives: Sequence[str]) -> list[str]:
        """Return where to write the parts of a folder; its marker comes last of all.

        Raises:
            StorageError: The folder holds data already, is an input, or is a file.
        """
        path = os.fspath(target)
        real = os.path.realpath(path)
        if any(i == real or i.startswith(real + os.sep) for i in self._inputs):
            raise StorageError(path, "the output folder holds inputs")
        if os.path.exists(path) and not os.path.isdir(path):
            raise StorageError(path, "is a file, and the output is a folder")
        if os.path.isdir(path) and os.listdir(path) and not self._overwrite:
            raise StorageError(path, "is not empty; pass overwrite to replace it")
        for part in _parts(path):
            if not is_ours(part):
                raise StorageError(part, "is in the output folder and no output of this tool")
        with reading(path):
            for relative in ("", *relatives):
                self._make_folders(os.path.dirname(os.path.join(path, relative)))
        self._folders.append(path)
        return [self.stage(os.path.join(path, relative)) for relative in relatives]

    def _make_folders(self, folder: str) -> None:
        missing = []
        while folder and not os.path.isdir(folder):
            missing.append(folder)
            folder = os.path.dirname(folder)
        for each in reversed(missing):
            os.mkdir(each)
            self._made.append(each)

    def commit(self) -> None:
        """Give every output its final name."""
        for hidden, final in self._staged:
            with reading(final):
                _sync(hidden)
        for folder in self._folders:
            _remove_if_there(os.path.join(folder, SUCCESS))
        touched = set()
        while self._staged:
            hidden, final = self._staged[0]
            with reading(final):
                os.replace(hidden, final)
            self._staged.pop(0)
            touched.add(final)
        self._made.clear()
        for folder in self._folders:
            with reading(folder):
                for stale in set(_parts(folder)) - touched:
                    os.unlink(stale)
                marker = os.path.join(folder, SUCCESS)
                with open(marker, "wb"):
                    pass
                _sync(marker)
        for parent in {os.path.dirname(final) or "." for final in touched}:
            _sync(parent)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for hidden, _ in self._staged:
            _remove_if_there(hidden)
        for folder in reversed(self._made):
            try:
                os.rmdir(folder)
            except OSError:  # somebody else put a file there, which stays
                continue


def _parts(folder: str) -> list[str]:
    return [
        os.path.join(inside, name)
        for inside, _, names in os.walk(folder)
        for name in names
        if name.endswith(".parquet")
    ]


def is_ours(path: str) -> bool:
    """Return whether a Parquet file carries the metadata that this package writes."""
    import pyarrow.parquet as pq

    with reading(path):
        return METADATA_KEY.encode() in (pq.read_metadata(path).metadata or {})


def _remove_if_there(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


def _sync(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
