"""What a call takes as pairs: dataframes and files in any format; `convert` writes them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from threading import Event
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import polars as pl

from dpo_pipeline.arguments import given
from dpo_pipeline.columns import PAIR_ID, REF, REF_CHOSEN, REF_REJECTED, did_you_mean, resolve
from dpo_pipeline.engine import Watch
from dpo_pipeline.errors import UsageError
from dpo_pipeline.options import Execution, Outputs, Pairs, Reference
from dpo_pipeline.sources import frames, text_files, token_dumps, trainer_files
from dpo_pipeline.sources.common_schema import Chunks
from dpo_pipeline.sources.dataset import Dataset, PairFile, open_dataset
from dpo_pipeline.sources.files import SourcePath
from dpo_pipeline.sources.formats import (
    CSV,
    FORMATS,
    IPC,
    LM_EVAL,
    NDJSON,
    OPEN_INSTRUCT,
    OPEN_INSTRUCT_AVERAGED,
    PARQUET,
    REWARDBENCH,
    TOKEN_DUMP,
    TRL,
    VLLM,
    guess,
)
from dpo_pipeline.sources.frames import Rows, as_lazy
from dpo_pipeline.sources.keys import checked_on
from dpo_pipeline.storage import (
    METADATA_KEY,
    Access,
    Outputs as Publication,
    is_address,
    reading,
)

Reader: TypeAlias = Callable[[SourcePath, Mapping[str, str] | None], Rows]
"""From files, and from role to column where names do not say it, to rows."""

REFERENCE: Final = (REF_CHOSEN.name, REF_REJECTED.name)
"""What a reference of pairs has."""


TOLD: Final = {
    "tokenizer": "tokenizer",
    "template": "chat template",
    "max_length": "longest length",
    "dialect": "dialect",
}
"""What `logps` writes into the metadata of its files on how texts became tokens, in words."""

_BYTES: Final = 2**20  # of a file that are compared at a time

READERS: Final[Mapping[str, Reader]] = MappingProxyType(
    {
        NDJSON: text_files.ndjson,
        CSV: text_files.csv,
        IPC: frames.ipc,
        TRL: trainer_files.trl,
        REWARDBENCH: trainer_files.rewardbench,
        LM_EVAL: trainer_files.lm_eval,
        OPEN_INSTRUCT: trainer_files.open_instruct,
        OPEN_INSTRUCT_AVERAGED: partial(trainer_files.open_instruct, averaged=True),
        TOKEN_DUMP: token_dumps.token_dump,
        VLLM: token_dumps.token_dump,
    }
)
"""The reader of each format of `FORMATS` but Parquet."""


def read(
    pairs: Any,
    format: str | None = None,  # noqa: A002  as in Pairs
    *,
    as_reference: bool = False,
    as_text: Collection[str] = (),
    execution: Any = None,
) -> pl.LazyFrame:
    r"""Return pairs in one of `FORMATS` as a plan, for Polars or for a call of this library.

    Args:
        pairs: `Pairs`, or their source: a path, a list, a glob, a folder. Names of columns are
            kept; values are not checked.
        format: Their format, if the ending of the name does not tell it.
        as_reference: Whether log-probs that the format ascribes to no model are the reference's.
        as_text: Columns beside `pair_id` and `prompt_id` that are text in CSV, whatever they look
            like: 7 and 07 are two.
        execution: `Execution`, for how an object store is reached.

    Raises:
        UsageError: There is no such format, or it needs what is not installed.
        ColumnError: The columns are not those of the format.
        StorageError: A file cannot be read, or is in another format.

    Examples:
        >>> import dpo_pipeline, os, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     source = os.path.join(folder, "pairs.csv")
        ...     with open(source, "w") as file:
        ...         print("pair_id,policy_chosen_logps", "007,-1.5", sep="\n", file=file)
        ...     dpo_pipeline.read(source).collect().row(0)
        ('007', -1.5)
    """
    source = given(Pairs, pairs if isinstance(pairs, Pairs) else Pairs(pairs), format=format)
    if format_of(source) == PARQUET:
        access = Access.of(given(Execution, execution))
        dataset = open_dataset(source.source, source.columns, access)
    else:
        rows = _rows(source, as_reference=as_reference, as_text=as_text)
        dataset = Dataset(
            name=label_of(source.source),
            frame=rows.frame.drop(trainer_files.LENGTHS, strict=False),
            own_notes=rows.notes,
            unread=rows.unread,
        )
    dataset.refuse_unread("read returns all columns: evaluate and its like skip these")
    dataset.warn(stacklevel=3)
    return dataset.frame


def format_of(pairs: Pairs) -> str:
    """Return the format that pairs are in, by their options or by the ending of their name."""
    name = guess(pairs.source) if pairs.format is None else pairs.format
    if name not in FORMATS:
        there = f"there are {', '.join(FORMATS)}"
        raise UsageError(f"no format is named {name!r}{did_you_mean(name, FORMATS)}; {there}")
    return name


def _rows(pairs: Pairs, *, as_reference: bool, as_text: Collection[str]) -> Rows:
    """Return the rows of files that are not Parquet."""
    name = format_of(pairs)
    if name in (TOKEN_DUMP, VLLM) and as_reference:
        return token_dumps.token_dump(pairs.source, model="ref")
    if name == LM_EVAL and as_reference:
        return trainer_files.lm_eval(pairs.source, model="ref")
    if name == CSV:
        return text_files.csv(pairs.source, pairs.columns, as_text=as_text)
    return READERS[name](pairs.source, pairs.columns)


def open_pairs(
    pairs: Pairs,
    *,
    access: Access,
    keys: Collection[str] = (PAIR_ID.name,),
    name: str = "pairs",
    as_reference: bool | None = False,
    again: bool = False,
    cancel: Event | None = None,
) -> Dataset:
    """Return files or a dataframe as a dataset; Parquet can be read in shards.

    The columns `keys`, by which rows are joined, are text in CSV whatever they look like. `name` is
    what reports call a dataframe. `as_reference` says whether the pairs are a reference's (None if
    they may be either's), and `again` whether rows are read more than once, as for a join. `cancel`
    stops the reading of a format that is one shard.
    """
    source = pairs.source
    if isinstance(source, Dataset):  # what opened it knows its name and its files
        return source
    paths = [source] if isinstance(source, (str, os.PathLike)) else source
    if not isinstance(paths, Sequence) or not all(isinstance(p, (str, os.PathLike)) for p in paths):
        if pairs.format is not None:
            raise UsageError(f"format {pairs.format!r} is of files, and {name} is a dataframe")
        frame = as_lazy(source, pairs.columns, again=again)
        # A plan of the caller's may give its rows in another order each time.
        several = source if isinstance(source, (list, tuple)) else [source]
        is_planned = any(isinstance(each, pl.LazyFrame) for each in several)
        return Dataset(name=name, frame=frame, keeps_order=not is_planned)
    file_format = format_of(pairs)
    if file_format == PARQUET:
        return open_dataset(source, pairs.columns, access)
    if FORMATS[file_format].reference_only and as_reference is False:
        raise _reference_alone(source, file_format)
    rows = _rows(pairs, as_reference=bool(as_reference), as_text=keys)
    if file_format == TRL and as_reference is False:
        roles = resolve(rows.frame.collect_schema().names(), pairs.columns).mapping
        if not any(role.startswith("policy_") for role in roles):
            raise _reference_alone(source, file_format)
    frame = rows.frame if as_reference else rows.frame.drop(trainer_files.LENGTHS, strict=False)
    return _in_one(source, rows._replace(frame=frame), cancel)


def open_texts(pairs: Pairs, *, access: Access, cancel: Event | None = None) -> Dataset:
    """Return texts as a dataset: as `open_pairs`, or what `save_to_disk` of `datasets` wrote."""
    if pairs.format is None and trainer_files.is_saved(pairs.source):
        return _in_one(pairs.source, trainer_files.saved(pairs.source), cancel)
    return open_pairs(pairs, access=access, name="texts", as_reference=None, cancel=cancel)


def _in_one(source: SourcePath, rows: Rows, cancel: Event | None) -> Dataset:
    """Return rows that are read as one shard, watched so that their reading can be stopped."""
    watch = Watch(cancel=cancel)

    def look(part: pl.DataFrame) -> pl.DataFrame:
        watch.check()
        return part

    # Columns that nobody asks for are still not read.
    watched = rows.frame.map_batches(look, streamable=True, projection_pushdown=True)
    return Dataset(
        name=label_of(source),
        frame=watched,
        others=rows.files,
        own_notes=rows.notes,
        unread=rows.unread,
        dump=rows.dump,
    )


def _reference_alone(source: SourcePath, name: str) -> UsageError:
    label = label_of(source)
    return UsageError(
        f"{label}: {name} has the reference's log-probs alone: give it as reference of the "
        f"policy's (--reference {label} --reference-format {name})"
    )


def label_of(source: SourcePath) -> str:
    """Return what reports call a source."""
    return os.fspath(source) if isinstance(source, (str, os.PathLike)) else "the inputs"


def open_reference(reference: Reference, *, access: Access, cancel: Event | None = None) -> Dataset:
    """Return a reference as a dataset."""
    resolve((), reference.columns)  # refuses what is no mapping, or no role
    for role in reference.columns or ():
        if role not in (*REFERENCE, REF.name):
            raise UsageError(f"reference columns: {role!r} is none of {' and '.join(REFERENCE)}")
    pairs = Pairs(reference.source, format=reference.format, columns=reference.columns)
    return open_pairs(
        pairs,
        access=access,
        keys=[checked_on(reference.on)],
        name="reference",
        as_reference=True,
        again=True,
        cancel=cancel,
    )


def tokenised_apart(policy: Dataset, reference: Dataset) -> tuple[str, ...]:
    """Say, if files of `logps` tell it, that a policy and its reference read other tokens.

    The footer of the first file of each is read, if it is on this machine.
    """
    ours, theirs = _tokens_of(policy), _tokens_of(reference)
    other = [name for name, each in ours.items() if each != theirs.get(name)] if theirs else []
    if not other:
        return ()
    what = f"the reference's log-probs ({reference.name}) were made with another"
    return (f"{what} {' and '.join(other)} than the policy's: they are not of the same tokens",)


def _tokens_of(dataset: Dataset) -> dict[str, Any]:
    """Return what a file of `logps` says of its tokens; nothing of other files."""
    path = dataset.files[0].path if dataset.files else ""
    if not path or is_address(path) or dataset.in_batches is not None:
        return {}
    with reading(path):
        kept = pl.read_parquet_metadata(path).get(METADATA_KEY)
    told = json.loads(kept) if kept else {}
    return {words: told.get(name) for name, words in TOLD.items()} if "tokenizer" in told else {}


class EqualColumns:
    """Tells which columns two tables of files have alike, byte by byte, without decoding them."""

    def __init__(self, one: Dataset, other: Dataset) -> None:
        """Look at the footers alone."""
        self._files = list(zip(one.files, other.files, strict=False))
        self._schemas = [each.frame.collect_schema() for each in (one, other)]
        self._are_plain = len(one.files) == len(other.files) and all(
            not (each.has_step or each.in_batches or each.partitions)
            and not each.scanned.get("hive_partitioning")
            for each in (one, other)
        )
        self._chunks: dict[int, list[tuple[Chunks, ...]]] = {}
        self._known: dict[tuple[int, int, str], bool] = {}

    def among(self, names: Iterable[str], first: int, rows: int | None) -> set[str]:
        """Return which of these columns of the files are the same in some rows."""
        if rows is None or not self._are_plain:
            return set()
        groups = list(self._groups(first, first + rows))
        a, b = self._schemas
        return {
            name
            for name in names
            if name in a and a[name] == b.get(name) and all(self._is_same(*g, name) for g in groups)
        }

    def _groups(self, first: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the numbers of the files and of the row groups that have these rows."""
        for i, (one, _) in enumerate(self._files):
            begin = one.first_row
            for group, rows in enumerate(one.row_groups):
                if begin < end and first < begin + rows:
                    yield i, group
                begin += rows

    def _is_same(self, file: int, group: int, name: str) -> bool:
        place = (file, group, name)
        if place not in self._known:
            both = self._files[file]
            if file not in self._chunks:
                is_alike = both[0].row_groups == both[1].row_groups
                self._chunks[file] = [_chunks_of(f) if is_alike else () for f in both]
            found = [each[group].get(name) if each else None for each in self._chunks[file]]
            self._known[place] = are_same([f.path for f in both], found)
        return self._known[place]


def _chunks_of(file: PairFile) -> tuple[Chunks, ...]:
    """Return where the columns of each row group are; a large footer is read once more."""
    if file.chunks or is_address(file.path):
        return file.chunks
    import pyarrow.parquet as pq

    found = pq.read_metadata(file.path)
    columns = [(i, str(found.schema.column(i))) for i in range(len(found.schema))]
    return tuple(
        {
            c.path_in_schema: (
                min(filter(None, (c.data_page_offset, c.dictionary_page_offset))),
                c.total_compressed_size,
                f"{said} {c.compression} {c.num_values}",
            )
            for c, said in ((group.column(i), said) for i, said in columns)
            if "." not in c.path_in_schema
        }
        for group in map(found.row_group, range(found.num_row_groups))
    )


def are_same(paths: Sequence[str], chunks: Sequence[tuple[int, int, str] | None]) -> bool:
    """Return whether two columns of row groups have the same bytes, which mean the same."""
    places = [each for each in chunks if each is not None]
    if len(places) < len(paths) or places[0][1:] != places[1][1:]:
        return False
    left = places[0][1]
    with open(paths[0], "rb", buffering=0) as one, open(paths[1], "rb", buffering=0) as other:
        both = ((one, bytearray(_BYTES)), (other, bytearray(_BYTES)))
        for (file, _), (begin, *_) in zip(both, places, strict=True):
            file.seek(begin)
        while left > 0:
            if left < _BYTES:
                both = ((one, bytearray(left)), (other, bytearray(left)))
            read = {file.readinto(into) for file, into in both}
            if read != {min(left, _BYTES)} or both[0][1] != both[1][1]:
                return False
            left -= _BYTES
    return True


def publication_of(outputs: Outputs, access: Access, *datasets: Dataset) -> Publication:
    """Return what checks and publishes the outputs of a call, guarding all its inputs."""
    inputs: dict[str, tuple[int, ...]] = {}
    for dataset in datasets:
        inputs |= dataset.inputs
    return Publication(
        overwrite=outputs.overwrite, inputs=inputs, access=access, protected=outputs.protected
    )
