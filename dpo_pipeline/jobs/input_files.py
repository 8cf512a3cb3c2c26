"""Whether the inputs of a job are still those that it was split for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Container, Iterator, Mapping
from typing import Any, Final

from dpo_pipeline.errors import StorageError
from dpo_pipeline.jobs.job_plan import InputFile, JobPlan
from dpo_pipeline.sources import Dataset
from dpo_pipeline.storage import Access, is_address, reading

_TAIL: Final = 8  # bytes: the length of the footer, and the name of the format


def input_files(
    dataset: Dataset, access: Access, of: Container[str] | None = None
) -> Iterator[InputFile]:
    """Yield all files that are read; only the footers of those in `of` are read, if it is given."""
    footers = {file.path for each in _datasets(dataset) for file in each.files}
    for path, identity in dataset.inputs.items():
        size, modified = identity[-2:] if identity else (None, None)
        has_footer = path in footers and identity and (of is None or path in of)
        yield InputFile(
            path=path,
            bytes=size,
            modified=modified,
            footer=_footer_digest(path, access) if has_footer else None,
        )


def check_inputs(
    job: JobPlan, dataset: Dataset, access: Access, of: Container[str] | None = None
) -> None:
    """Raise a StorageError if an input changed since the job was split; `of` as in `input_files`.

    A copy that keeps its time of change is the same file.
    """
    was = {file.path: file for file in job.inputs}
    there = {file.path: file for file in input_files(dataset, access, of)}
    for path in [*was, *there]:
        problem = _problem(path, was, there)
        if problem is not None:
            raise StorageError(path, f"{problem} since {job.folder} was split: split anew")


def _problem(path: str, was: Mapping[str, InputFile], there: Mapping[str, InputFile]) -> str | None:
    if path not in there:
        return "is no input any more, though it was one,"
    if path not in was:
        return "came to the inputs"
    old, new = was[path], there[path]
    is_same = (old.bytes, old.modified) == (new.bytes, new.modified)
    return None if is_same and new.footer in (None, old.footer) else "changed"


def _datasets(dataset: Dataset) -> Iterator[Dataset]:
    yield dataset
    if dataset.reference is not None:
        yield from _datasets(dataset.reference)


def _footer_digest(path: str, access: Access) -> str:
    with reading(path), _opened(path, access) as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(end - _TAIL)
        length = int.from_bytes(file.read(_TAIL)[:4], "little")
        file.seek(end - _TAIL - length)
        return hashlib.sha256(file.read(length)).hexdigest()


def _opened(path: str, access: Access) -> Any:
    if not is_address(path):
        return open(path, "rb")
    system, name = access.filesystem(path)
    return system.open_input_file(name)
