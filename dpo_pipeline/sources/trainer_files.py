"""Readers of what trainers and benchmarks write: TRL, RewardBench, open-instruct.

Each ends in columns of the contract. TRL's and RewardBench's files are read lazily, by the engine;
open-instruct's is read at once, by torch.
"""

from __future__ import annotations

import codecs
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, Final, Literal

import polars as pl

from dpo_pipeline.columns import (
    COUNT_ROLES,
    PAIR_ID,
    POLICY_CHOSEN,
    POLICY_REJECTED,
    REF_CHOSEN,
    REF_REJECTED,
    resolve,
)
from dpo_pipeline.defaults import AVERAGED_LOGP_FLOOR, PARQUET_ENDINGS
from dpo_pipeline.errors import ColumnError, StorageError, UsageError
from dpo_pipeline.sources.dataset import Dataset, open_dataset
from dpo_pipeline.sources.files import SourcePath, find, identities, kind_of, text_files
from dpo_pipeline.sources.formats import FORMATS, INDEX, NDJSON, OPEN_INSTRUCT_AVERAGED
from dpo_pipeline.sources.frames import Rows, in_batches, ipc, lazily, reading_as
from dpo_pipeline.sources.keys import KEY
from dpo_pipeline.sources.text_files import ndjson
from dpo_pipeline.storage import reading, unpacked

_SIDES: Final = ("chosen", "rejected")
LENGTHS: Final = tuple(f"__dpo_pipeline_{side}_length" for side in _SIDES)
"""Tokens of each completion, beside row numbers that stand for ids."""
_OURS: Final = tuple(f"__dpo_pipeline_{side}_tokens" for side in _SIDES)
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
    `eval-set-scores`. A score may be alone in a list, as some models give it. RewardBench 2 has the
    scores of all completions of a prompt in a list: these are completions. Of Ties the first
    `num_correct` are right, and of other subsets the first; `results` is not read.
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
    if not is_document and any(isinstance(schema.get(n), pl.List) for n in ("subset", "id")):
        # A document on one line: its columns are lists.
        is_document = True
        frame = pl.concat([_of_document(path) for path in paths], how="diagonal_relaxed")
        schema = frame.collect_schema()
    candidates = (("scores_chosen", "scores_rejected"), _SIDES)
    names = next((some for some in candidates if all(name in schema for name in some)), None)
    if names is None and isinstance(schema.get("scores"), pl.List):
        if not is_document:
            frame = ndjson(paths, types={"scores": _scores_type(schema["scores"])}).frame
        _check_ties(frame, paths[0])
        return Rows(_rewardbench2(frame), found.identities, found.notes)
    if names is None:
        problem = (
            "scores_chosen, scores_rejected: missing, and so are chosen, rejected: these are not "
            "RewardBench's scores"
        )
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


def _scores_type(dtype: pl.DataType) -> pl.DataType:
    is_nested = isinstance(dtype, pl.List) and isinstance(dtype.inner, pl.List)
    return pl.List(pl.List(pl.Float64)) if is_nested else pl.List(pl.Float64)


def _check_ties(frame: pl.LazyFrame, name: str) -> None:
    """Raise a ColumnError if it is not known how many completions of each of Ties are right."""
    schema = frame.collect_schema()
    if schema.get("subset") != pl.String:
        return
    ties = frame.filter(pl.col("subset").str.to_lowercase() == "ties")
    if "num_correct" not in schema:
        problem = "missing, and it says how many completions of Ties are right"
        odd = ties.select(pl.len()).collect().item()
    else:
        right, n = pl.col("num_correct").cast(pl.Float64, strict=False), pl.col("scores").list.len()
        is_odd = ~right.is_between(1.0, n).fill_null(value=False)
        named = pl.col("id").cast(pl.String) if "id" in schema else pl.lit("without an id")
        ids = ties.filter(is_odd).select(named.alias("id")).collect()["id"]
        odd, few = len(ids), ", ".join(map(str, ids.head(_SHOWN)))
        more = ", ..." if odd > _SHOWN else ""
        problem = (
            f"not from 1 to the number of scores in {odd:,} rows of Ties: {few}{more}; it says how "
            "many completions are right"
        )
    if odd:
        raise ColumnError(name, (f"num_correct: {problem}",))


_SHOWN: Final = 5
"""Ids that an error lists."""


def _rewardbench2(frame: pl.LazyFrame) -> pl.LazyFrame:
    """Return prompts with lists of completions, from RewardBench 2's columns."""
    schema = frame.collect_schema()
    scores = pl.col("scores")
    if isinstance(_scores_type(schema["scores"]).inner, pl.List):  # type: ignore[attr-defined]
        scores = scores.list.eval(pl.element().list.first())
    n, right = scores.list.len(), pl.lit(1, dtype=pl.UInt32)
    if "num_correct" in schema and "subset" in schema:
        is_ties = pl.col("subset").str.to_lowercase() == "ties"
        right = pl.when(is_ties).then(pl.col("num_correct").cast(pl.UInt32)).otherwise(right)
    right = pl.min_horizontal(right, n)
    labels = [pl.lit(value=True).repeat_by(right), pl.lit(value=False).repeat_by(n - right)]
    made = frame.with_columns(
        policy_logps=scores.cast(pl.List(pl.Float64)), label=pl.concat_list(*labels)
    )
    if "id" in schema:
        made = made.with_columns(prompt_id=pl.col("id").cast(pl.String))
    return made.drop("scores", "results", "num_correct", "id", strict=False)


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


_SAMPLES: Final = re.compile(
    r"samples_(?P<task>.+?)(_\d{4}-\d\d-\d\dT[\d\-.]+)?\.jsonl?(\.gz|\.zst)?"
)
_LM_EVAL_ROWS: Final = 4_096


def lm_eval(
    source: SourcePath,
    columns: Mapping[str, str] | None = None,  # noqa: ARG001
    *,
    model: Literal["policy", "ref"] = "policy",
) -> Rows:
    """Return lm-evaluation-harness's `samples_*.jsonl` as completions: the options of a question.

    Their log-likelihoods are log-probs of `model`; the label says which is the target. The prompt
    is the `doc_id`, with the task before it where the file's name tells it, and the option's number
    after it names the completion.
    """
    found = text_files(source, FORMATS[NDJSON].endings)
    schema = pl.Schema(
        {
            "prompt_id": pl.String(),
            "completion_id": pl.String(),
            f"{model}_logps": pl.Float64(),
            "label": pl.Boolean(),
            "completion": pl.String(),
            "task": pl.String(),
        }
    )

    def parts(names: list[str], _n_rows: int | None) -> Iterator[pl.DataFrame]:
        rows: list[tuple[Any, ...]] = []
        for path in found.paths:
            named = _SAMPLES.fullmatch(os.path.basename(path))
            task = named["task"] if named else None
            with reading(path), unpacked(path) as file:
                for number, line in enumerate(file, 1):
                    if not line.strip():
                        continue
                    try:
                        rows += _options_of(line, task)
                    except (ValueError, KeyError, TypeError, IndexError) as error:
                        told = f"line {number:,}: {error}"
                        raise ColumnError(path, (told,)) from error
                    if len(rows) >= _LM_EVAL_ROWS:
                        yield pl.DataFrame(rows, schema=schema, orient="row").select(names)
                        rows = []
        yield pl.DataFrame(rows, schema=schema, orient="row").select(names)

    next(parts(schema.names(), None))  # a file of another kind is refused before anything is read
    return Rows(lazily(schema, parts), found.identities, found.notes)


def _options_of(line: bytes, task: str | None) -> list[tuple[Any, ...]]:
    row = json.loads(line)
    if not isinstance(row, dict) or "doc_id" not in row or "target" not in row:
        raise ValueError("doc_id or target is missing: this is no line of samples_*.jsonl")
    answers = row.get("filtered_resps", row.get("resps"))
    if not isinstance(answers, list) or not answers:
        raise ValueError("filtered_resps and resps are missing")
    logps = [_log_likelihood(each) for each in answers]
    texts = _continuations(row.get("arguments"), len(logps))
    gold = _gold(row, texts, logps)
    prompt = str(row["doc_id"]) if task is None else f"{task}:{row['doc_id']}"
    return [
        (prompt, f"{prompt}:{i}", logp, i in gold, text, task)
        for i, (logp, text) in enumerate(zip(logps, texts, strict=True))
    ]


def _log_likelihood(answer: Any) -> float:
    """Return the log-likelihood of an option: it comes as text or a number, with "is greedy"."""
    while isinstance(answer, list) and answer and isinstance(answer[0], list):
        answer = answer[0]
    if not (isinstance(answer, list) and len(answer) == 2):  # noqa: PLR2004  and whether it is greedy
        raise ValueError(
            "a response is no log-likelihood with is_greedy: the task is none of multiple choice"
        )
    return float(answer[0])


def _continuations(arguments: Any, n: int) -> list[str | None]:
    """Return the text of each option, if it was logged."""
    found = list(arguments.values()) if isinstance(arguments, dict) else arguments
    if not isinstance(found, list) or len(found) != n:
        return [None] * n
    made: list[str | None] = []
    for each in found:
        pair = list(each.values()) if isinstance(each, dict) else each
        is_text = isinstance(pair, list) and len(pair) > 1 and isinstance(pair[1], str)
        made.append(pair[1] if is_text else None)
    return made


def _gold(row: Mapping[str, Any], texts: list[str | None], logps: list[float]) -> set[int]:
    """Return the options that are right: `target` is a number, several of them, or a text."""
    target = row["target"]
    target = json.loads(target) if isinstance(target, str) and target[:1] == "[" else target
    several = target if isinstance(target, list) else [target]
    made: set[int] = set()
    for each in several:
        by_text = {
            i
            for i, text in enumerate(texts)
            if text is not None and text.strip() == str(each).strip()
        }
        place = int(each) if str(each).lstrip("-").isdigit() else -1
        by_place = {place} if 0 <= place < len(texts) else set()
        if by_text and by_place and by_text != by_place:
            # The accuracy that was logged tells which is meant.
            best = max(range(len(logps)), key=logps.__getitem__)
            fits = [
                some
                for some in (by_place, by_text)
                if "acc" in row and (best in some) == bool(row["acc"])
            ]
            if len(fits) != 1:
                raise ValueError(
                    f"target {each!r} is the number of one option and the text of another"
                )
            by_place = fits[0]
        made |= by_place or by_text
    if not made:
        raise ValueError(f"target {target!r} is the number or the text of no option")
    return made


def prove_row_numbers(
    policy: Dataset, reference: Dataset, key: pl.Expr, columns: Mapping[str, str] | None
) -> None:
    """Raise if the lengths of completions do not show that row numbers name the same pairs."""
    mapping = resolve(policy.frame.collect_schema().names(), columns).mapping
    counts = [mapping.get(role.name) for role in COUNT_ROLES]
    remedy = (
        "carry an id: add a column pair_id to the dataset before TRL precomputes its log-probs, "
        "and write the same ids beside the policy's"
    )
    problem = f"{PAIR_ID.name}: the reference has none, and the number of a row is no identity"
    if None in counts:
        names = " and ".join(role.name for role in COUNT_ROLES)
        raise ColumnError(
            reference.name,
            (f"{problem}; {names} of the policy would prove it by their lengths. Or {remedy}",),
        )
    ours = [
        pl.col(str(name)).cast(pl.Int64).alias(n) for name, n in zip(counts, _OURS, strict=True)
    ]
    both = policy.frame.select(key, *ours).join(
        reference.frame.select(key, *LENGTHS), on=KEY, how="full", coalesce=True
    )
    is_alike = pl.all_horizontal(
        pl.col(one) == pl.col(other) for one, other in zip(_OURS, LENGTHS, strict=True)
    ).fill_null(value=False)
    n, n_other = both.select(pl.len(), is_alike.not_().sum()).collect(engine="streaming").row(0)
    if n_other:
        problem += (
            f": joined by it, {n_other:,} of {n:,} rows have completions of other lengths, or are "
            f"on one side only; {remedy}"
        )
        raise ColumnError(reference.name, (problem,))
