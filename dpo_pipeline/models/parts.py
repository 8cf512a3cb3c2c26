"""A run in parts of consecutive rows: each is written whole, and a run that stopped goes on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

import polars as pl

from dpo_pipeline.errors import StorageError
from dpo_pipeline.storage import reading, writing, written_whole

_SETTINGS: Final = "settings.json"


@dataclass(frozen=True, slots=True)
class Parts:
    """The folder with the parts of an output that is not finished, beside it and hidden."""

    folder: str

    @classmethod
    def beside(cls, out: str | os.PathLike[str]) -> Parts:
        """Return the folder for an output."""
        head, tail = os.path.split(os.path.abspath(os.fspath(out)))
        return cls(os.path.join(head, f".{tail}.parts"))

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Make the folder, or go on in it if it was begun with the same settings.

        Raises:
            StorageError: It was begun with others.
        """
        settings = json.loads(json.dumps(settings))
        path, text = os.path.join(self.folder, _SETTINGS), json.dumps(settings, sort_keys=True)
        with reading(self.folder):
            os.makedirs(self.folder, exist_ok=True)
            if not os.path.exists(path):
                with written_whole(path) as hidden, open(hidden, "w", encoding="utf-8") as file:
                    file.write(text)
                return
            with open(path, encoding="utf-8") as file:
                before = file.read()
        if before != text:
            raise StorageError(
                self.folder,
                f"holds parts of a run with other settings ({_differences(before, settings)}): "
                "give those again, or remove the folder",
            )

    def path(self, number: int) -> str:
        """Return where a part is."""
        return os.path.join(self.folder, f"part-{number:06}.parquet")

    def is_done(self, number: int) -> bool:
        """Return whether a part was written."""
        return os.path.exists(self.path(number))

    def metadata(self, number: int) -> dict[str, str]:
        """Return what a part says of itself."""
        with reading(self.path(number)):
            return pl.read_parquet_metadata(self.path(number))

    def write(self, number: int, rows: pl.DataFrame, metadata: dict[str, str]) -> None:
        """Write a part, whole or not at all."""
        path = self.path(number)
        with written_whole(path) as hidden, writing(hidden, path) as out:
            rows.write_parquet(out, metadata=metadata)

    def remove(self) -> None:
        """Remove the folder with all parts."""
        shutil.rmtree(self.folder, ignore_errors=True)


def digest_of_rows(rows: pl.DataFrame, texts: Collection[str]) -> str:
    """Return what tells rows from others: their texts, and all columns of plain values."""
    kept = [
        name
        for name, dtype in rows.schema.items()
        if name in texts or not (dtype.is_nested() or dtype in (pl.Binary, pl.Object))
    ]
    return hashlib.sha256(rows.select(kept).write_ndjson().encode()).hexdigest()[:32]


def _differences(before: str, settings: Mapping[str, Any]) -> str:
    try:
        old = json.loads(before)
    except ValueError:
        return "its settings cannot be read"
    names = sorted({*old, *settings})
    return ", ".join(name for name in names if old.get(name) != settings.get(name))
