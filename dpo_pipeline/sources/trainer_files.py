"""Readers of what trainers and benchmarks write: TRL, RewardBench, open-instruct.

Each ends in columns of the contract. TRL's and RewardBench's files are read lazily, by the engine;
open-instruct's is read at once, by torch.
"""

from __future__ import annotations

import codecs
import json
import math
import os
from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final

import polars as pl

from dpo_pipeline.columns import (
    PAIR_ID,
    POLICY_CHOSEN,
    POLICY_REJECTED,
    REF_CHOSEN,
    REF_REJECTED,
    resolve,
)
from dpo_pipeline.defaults import AVERAGED_LOGP_FLOOR, PARQUET_ENDINGS
from dpo_pipeline.errors import ColumnError, StorageError, UsageError
from dpo_pipeline.sources.dataset import open_dataset
from dpo_pipeline.sources.files import SourcePath, find, identities, kind_of, text_files
from dpo_pipeline.sources.formats import OPEN_INSTRUCT_AVERAGED
from dpo_pipeline.sources.frames import Rows, in_batches, ipc, reading_as
from dpo_pipeline.sources.text_files import ndjson
from dpo_pipeline.storage import reading, unpacked

_SIDES: Final = ("chosen", "rejected")
INDEX: Final = "index"
"""What open-instruct calls the number of a row, in its datasets and so of its cache."""
LENGTHS: Final = tuple(f"__dpo_pipeline_{side}_length" for side in _SIDES)
"""Tokens of each completion, beside row numbers that stand for ids."""
_STATE: Final = "state.json"
"""What save_to_disk leaves in a folder."""
_SPLITS: Final = "dataset_dict.json"
"""What it leaves in a folder of several."""


def trl(source: SourcePath, columns: Mapping[str, str] | None = None) -> Rows:
    """Return a dataset with the reference's log-probs, which `precompute_ref_log_probs` adds.

    It is a folder that `save_to_disk` made, `.arrow` files of a cache, or Parquet. Where there is
    no `pair_id`, it is the number of the row, from 0, and
    `LENGTHS` beside it let a join prove that no row was dropped.
    """
    name = os.fspath(source) if isinstance(source, (str, os.PathLike)) else "the dataset"
    rows = saved(source)
    found = resolve(rows.frame.collect_schema().names(), columns)
    wanted = (REF_CHOSEN.name, REF_REJECTED.name)
    problems = [problem for problem in found.problems if problem.startswith(wanted)]
    if problems:
        hint = "TRL adds these columns with precompute_ref_log_probs=True, to its own dataset"
        raise ColumnError(name, (*problems, hint))
    if PAIR_ID.name in found.mapping:
        return rows
    schema, lengths = rows.frame.collect_schema(), {}
    for name, length in zip((f"{side}_ids" for side in _SIDES), LENGTHS, strict=True):
        is_list = isinstance(schema.get(name), pl.List)
        lengths[length] = (pl.col(name).list.len() if is_list else pl.lit(None)).cast(pl.Int64)
    return rows._replace(frame=_numbered(rows.frame, PAIR_ID.name).with_columns(**lengths))


def _numbered(frame: pl.LazyFrame, name: str) -> pl.LazyFrame:
    return frame.with_row_index(name).with_columns(pl.col(name).cast(pl.Int64))


def is_saved(source: Any) -> bool:
    """Return whether a source is a folder that `save_to_disk` of `datasets` made."""
    if not isinstance(source, (str, os.PathLike)):
        return False
    return any(os.path.exists(os.path.join(source, name)) for name in (_STATE, _SPLITS))


def saved(source: SourcePath) -> Rows:
    """Return the rows of a dataset that `datasets` keeps, or of Parquet."""
    if isinstance(source, (str, os.PathLike)) and os.path.isdir(source):
        folder = os.fspath(source)
        if os.path.exists(os.path.join(folder, _SPLITS)):
            splits = ", ".join(_listed(os.path.join(folder, _SPLITS), "splits"))
            raise StorageError(folder, f"holds several splits ({splits}): name the folder of one")
        state = os.path.join(folder, _STATE)
        if os.path.exists(state):
            names = _listed(state, "_data_files", "filename")
            for each in names:
                if os.path.basename(each) != each or each in ("", os.curdir, os.pardir):
                    raise StorageError(state, f"names a file outside its folder: {each!r}")
            if not names:
                raise StorageError(folder, "is a dataset without rows")
            paths = [os.path.join(folder, each) for each in names]
            return in_batches(paths)._replace(files=identities([state, *paths]))
    found = find(source, (".arrow", *PARQUET_ENDINGS))
    if found.paths and kind_of(found.paths[0]) != "Parquet":
        return ipc(found.paths)._replace(notes=found.notes)
    dataset = open_dataset(source)
    return Rows(dataset.frame, dataset.inputs, dataset.notes, dataset.unread)


def _listed(path: str, key: str, of_each: str | None = None) -> list[str]:
    """Return the texts that a JSON document of save_to_disk lists under a key."""
    with reading(path), open(path, "rb") as file:
        text = file.read()
    try:
        found = json.loads(text)[key]
        made = [each if of_each is None else each[of_each] for each in found]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StorageError(path, f"is not as save_to_disk writes it: {error!r}") from error
    if not all(isinstance(each, str) for each in made):
        raise StorageError(path, f"is not as save_to_disk writes it: {key!r} is no list of names")
    return made


def rewardbench(source: SourcePath, columns: Mapping[str, str] | None = None) -> Rows:  # noqa: ARG001
    """Return RewardBench's scores as log-probs of a policy without a reference.

    A score is the log-ratio of policy and reference without beta, or the policy's log-prob where
    the run was without a reference, or whatever a reward model gives. As the policy's "log-prob" of
    a loss without a reference, it gives RewardBench's figures; it can be above 0, so `max_logp` has
    to be raised: `FORMATS["rewardbench"].settings` are the arguments.

    The source is `_outputs.jsonl` or `_all.jsonl` of its command line, or a file of
    `eval-set-scores`. A score may be alone in a list, as some models give it.
    """
    if isinstance(source, (str, os.PathLike)) and os.path.exists(os.path.join(source, _STATE)):
        problem = "is a dataset of save_to_disk, as TRL's are, and not RewardBench's"
        raise StorageError(os.fspath(source), problem)
    found = text_files(source, (".jsonl", ".json"))
    paths = list(found.paths)
    is_document = any(_is_document(path) for path in paths)
    if is_document:
        frame = pl.concat([_of_document(path) for path in paths], how="diagonal_relaxed")
    else:
        frame = ndjson(paths).frame
    schema = frame.collect_schema()
    candidates = (("scores_chosen", "scores_rejected"), _SIDES)
    names = next((some for some in candidates if all(name in schema for name in some)), None)
    if names is None:
        problem = (
            "scores_chosen, scores_rejected: missing, and so are chosen, rejected: these are not "
            "RewardBench's scores"
        )
        if "scores" in schema:
            problem += "; RewardBench 2 has the scores of many completions in a list, and no pairs"
        raise ColumnError(paths[0], (f"{problem}; the columns are {', '.join(schema)}",))
    types = {name: dtype for name in names if (dtype := _score_type(schema[name])) is not None}
    odd = [
        f"{name}: must be a number, or a list of one number, found {schema[name]}"
        for name in names
        if name not in types
    ]
    if odd:
        raise ColumnError(paths[0], tuple(odd))
    if not is_document:  # numbers that are whole in the first rows need not be so later
        frame = ndjson(paths, types=types).frame
    scores = {
        role.name: _score(pl.col(name), schema[name])
        for role, name in zip((POLICY_CHOSEN, POLICY_REJECTED), names, strict=True)
    }
    return Rows(frame.with_columns(**scores).drop(names), found.identities, found.notes)


def _score_type(dtype: pl.DataType) -> pl.DataType | None:
    """Return the type that scores are read as; None if they are no numbers."""
    number = dtype.inner if isinstance(dtype, pl.List) else dtype
    if not (number.is_numeric() or number == pl.Null):
        return None
    return pl.List(pl.Float64) if isinstance(dtype, pl.List) else pl.Float64()


def _score(column: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    if isinstance(dtype, pl.List):
        # A list of none or of several is no score: null, which the contract counts.
        column = pl.when(column.list.len() == 1).then(column.list.first())
    return column.cast(pl.Float64)


def _is_document(path: str) -> bool:
    """Return whether a file is one object over many lines, its columns being lists."""
    with unpacked(path) as file:
        return file.readline(64).removeprefix(codecs.BOM_UTF8).strip() == b"{"


def _of_document(path: str) -> pl.LazyFrame:
    with reading_as(path, "JSON"):
        with unpacked(path) as file:
            # Python reads NaN, which it writes; a document has all its rows in memory anyway.
            row = pl.DataFrame([json.loads(file.read().removeprefix(codecs.BOM_UTF8))])
        lists = [name for name, dtype in row.schema.items() if isinstance(dtype, pl.List)]
        return row.lazy().explode(lists).collect().lazy()


def open_instruct(
    source: SourcePath,
    columns: Mapping[str, str] | None = None,  # noqa: ARG001
    *,
    averaged: bool = False,
) -> Rows:
    """Return open-instruct's cache of the reference's log-probs, with the `INDEX` of each row.

    It is the `.pt` file in `REFERENCE_LOGPROBS_CACHE_PATH`, `averaged` if it was made for a loss
    that averages over tokens. The index is no `pair_id`: it names pairs of the dataset that the
    cache was made for, and only where the policy's rows carry that column. One that was not
    computed, -inf in the cache, has null.
    """
    if not isinstance(source, (str, os.PathLike)):
        raise UsageError("the cache of open-instruct is one file, found a list")
    path = os.fspath(source)
    with reading(path), open(path, "rb"):  # a fault of the file is said before one of torch
        files = identities([path])
    try:
        torch: Any = import_module("torch")
    except ImportError as error:
        problem = "reading open-instruct's cache needs torch: install it"
        raise UsageError(f"{path}: {problem}") from error
    try:
        cache = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever torch raises on what it did not write
        # Its text advises to load the file in a way that runs what is in it.
        raise StorageError(path, "is not a file of torch, or holds more than tensors") from error
    values = _tensors(path, cache)
    logps = {
        role.name: pl.Series(values[side], dtype=pl.Float64).replace(-math.inf, None)
        for role, side in zip((REF_CHOSEN, REF_REJECTED), _SIDES, strict=True)
    }
    lowest = min(
        (v for s in logps.values() if (v := s.drop_nans().min()) is not None), default=None
    )
    if not averaged and isinstance(lowest, float) and lowest > AVERAGED_LOGP_FLOOR:
        problem = (
            f"no log-prob is below {AVERAGED_LOGP_FLOOR:g} nats (the lowest is {lowest:.4g}): they "
            "look averaged over tokens, as open-instruct caches them for dpo_norm and simpo, and "
            f"the DPO loss takes sums. If averages are meant: format {OPEN_INSTRUCT_AVERAGED}"
        )
        raise ColumnError(path, (problem,))
    return Rows(_numbered(pl.LazyFrame(logps), INDEX), files)


def _tensors(path: str, cache: Any) -> dict[str, list[float]]:
    names = {side: f"{side}_logps" for side in _SIDES}
    if not isinstance(cache, dict) or not set(names.values()) <= set(cache):
        found = ", ".join(map(str, cache)) if isinstance(cache, dict) else type(cache).__name__
        problem = f"must be a dictionary with {' and '.join(names.values())}, found {found}"
        raise ColumnError(path, (problem,))
    values = {}
    for side, name in names.items():
        tensor = cache[name]
        shape = getattr(tensor, "shape", None)
        if shape is None or len(shape) != 1 or not tensor.is_floating_point():
            what = type(tensor).__name__ if shape is None else f"{tensor.dtype} of {list(shape)}"
            problem = f"{name}: must be a tensor of floats in one row, found {what}"
            raise ColumnError(path, (problem,))
        values[side] = tensor.tolist()
    chosen, rejected = map(len, values.values())
    if chosen != rejected:
        problem = f"chosen_logps has {chosen:,} values and rejected_logps {rejected:,}"
        raise ColumnError(path, (problem,))
    return values
