"""`logps`: texts in, the log-probs of their completions out."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from dpo_pipeline.arguments import given
from dpo_pipeline.defaults import OUTPUT_ROWS_PER_GROUP, WIDE_ROWS_PER_GROUP, ZSTD_LEVEL
from dpo_pipeline.engine import Watch
from dpo_pipeline.errors import ColumnError, StorageError, UsageError
from dpo_pipeline.models.loading import (
    Loaded,
    base_of,
    check_models_extra,
    check_vocabulary,
    load,
    tokenizer_facts,
    tokenizer_of,
    versions,
)
from dpo_pipeline.models.parts import Parts, digest_of_rows
from dpo_pipeline.models.scoring_tokens import Scorer
from dpo_pipeline.models.texts import Shape, shape_of
from dpo_pipeline.models.tokenizing import Tokenizer, Tokens
from dpo_pipeline.options import Execution, Models, Outputs, Pairs
from dpo_pipeline.plan import Facts, Input, Output, Plan, planned
from dpo_pipeline.sources import Dataset, checked_parquet_name, open_texts, publication_of
from dpo_pipeline.storage import METADATA_KEY, Access, is_address, reading, writing
from dpo_pipeline.tables import Part, Printable, Sentence, warned, whole

if TYPE_CHECKING:
    from dpo_pipeline.engine import ProgressCallback

_TOKENS_SHOWN: Final = 40
_OF_PART: Final = "dpo_pipeline.part"
"""Metadata of a part: the digest of its input rows, and what was counted in it."""
_MODELS: Final = ("policy", "ref")
_COUNTED: Final = {
    "null": "{:,} rows have no text, and so no log-probs",
    "merged": "in {:,} rows the end of the prompt merges with a completion, which then starts "
    "earlier, as in TRL",
    "cut": "{:,} {} completions are cut short by the longest length",
    "away": "{:,} {} completions are cut away whole: their log-probs are null",
    "dropped": "{:,} rows are left out, as TRL does: their prompt alone has the longest length",
}


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ScoredTexts(Printable):
    """What `logps` wrote.

    Attributes:
        path: The file.
        n_rows: Rows of the input.
        texts: How the texts were read.
        counts: By name: `null` (rows without a text), `merged` (rows whose prompt merges with a
            completion), `cut chosen` and `cut rejected` (completions that the limit cut short),
            `away chosen` and `away rejected` (cut away whole: null), `dropped` (rows that
            `dialect="trl"` left out).
        models: Facts of policy and reference.
        notes: What is to be said about the input.
    """

    path: str
    n_rows: int
    texts: str
    counts: Mapping[str, int]
    models: Mapping[str, Mapping[str, Any]]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        return {
            "path": self.path,
            "rows": self.n_rows,
            "texts": self.texts,
            "counts": dict(self.counts),
            "models": {name: dict(facts) for name, facts in self.models.items()},
            "warnings": list(self.notes),
        }

    def to_frame(self) -> pl.DataFrame:
        """Return it as one row."""
        return pl.DataFrame({"path": [self.path], "rows": [self.n_rows], **self.counts})

    def to_parts(self) -> Iterator[Part]:
        """Yield the file, what was scored, and what was cut."""
        yield Sentence(text=f"{whole(self.path)}: {self.n_rows:,} rows", leads=True)
        yield Sentence(text=self.texts, label="texts")
        for name, facts in self.models.items():
            yield Sentence(text=f"{whole(facts['name'])} ({facts['dtype']})", label=name)
        yield from warned((*said_of(self.counts), *self.notes), "note")


def said_of(counts: Mapping[str, int]) -> list[str]:
    """Say what was counted, a sentence each."""
    return [
        _COUNTED[kind].format(count, side)
        for name, count in counts.items()
        for kind, _, side in [name.partition(" ")]
        if count
    ]


@dataclass(frozen=True, kw_only=True, repr=False)
class LogpsPlan(Plan[ScoredTexts]):
    """What `logps` does."""

    dataset: Dataset
    shape: Shape
    models: Models
    sink: str | os.PathLike[str]
    made: Outputs
    execution: Execution
    options: Mapping[str, Any]
    outputs: tuple[Output, ...]

    @property
    def facts(self) -> Facts:
        """The shape of the texts, and the first row as tokens."""
        files = tuple(Input(path=each.path, rows=each.rows) for each in self.dataset.files)
        return Facts(
            function="logps",
            call="logps",
            source=self.dataset.name,
            inputs=files or (Input(path=self.dataset.name, rows=None),),
            rows=self.dataset.rows,
            columns={name: name for name in self.shape.columns},
            options=self.options,
            notes=(*self.dataset.notes, f"texts are read as {self.shape}", *self._first_row()),
            outputs=self.outputs,
        )

    def _first_row(self) -> Iterator[str]:
        with reading(self.dataset.read_from):
            row = self.dataset.frame.head(1).collect()
        if row.is_empty():
            return
        found = self.texts.row(row.row(0, named=True))
        if found is None:
            yield "the first row has no text"
            return
        for side, each in zip(self.shape.sides, found.sequences, strict=True):
            prompt, own = each.ids[: each.start], each.ids[each.start :]
            more = len(own) > _TOKENS_SHOWN
            yield (
                f"first row, {side}: prompt of {len(prompt):,} tokens, of which the last are "
                f"{self._shown(prompt[-_TOKENS_SHOWN:])}; {len(own):,} tokens are scored: "
                f"{self._shown(own[:_TOKENS_SHOWN])}{' ...' if more else ''}"
            )

    def _shown(self, ids: Sequence[int]) -> str:
        return " ".join(repr(self._tokenizer.decode([each])) for each in ids)

    @cached_property
    def _tokenizer(self) -> Any:
        asked = self.models
        if asked.policy is None:
            return tokenizer_of(asked.reference, asked.tokenizer, asked.reference_revision)
        return tokenizer_of(asked.policy, asked.tokenizer, asked.revision)

    @cached_property
    def texts(self) -> Tokenizer:
        """What turns rows into tokens."""
        return Tokenizer(self._tokenizer, self.shape, max_length=self.models.max_length)

    def run(self) -> ScoredTexts:
        """Score the texts in parts, and make one file of them."""
        tokenizer = self._tokenizer
        loaded = dict(models_of(self.models, tokenizer))
        settings = self._settings(loaded)
        access, parts = Access.of(self.execution), Parts.beside(self.sink)
        watch = Watch(cancel=self.execution.cancel)
        with publication_of(self.made, access, self.dataset) as publication:
            hidden = publication.stage(self.sink)
            parts.begin(settings)
            counts: Counter[str] = Counter()
            n_parts = n_rows = 0
            pace = Pace(self.execution.progress, watch, self._rows_to_score(parts))
            for number, rows in enumerate(self._parts()):
                watch.check()
                digest = digest_of_rows(rows, self.shape.columns)
                if not parts.is_done(number):
                    scored, found = self._score(rows, loaded, pace)
                    facts = {"rows": digest, "counts": found}
                    parts.write(number, scored, {_OF_PART: json.dumps(facts)})
                kept = json.loads(parts.metadata(number)[_OF_PART])
                if kept["rows"] != digest:
                    raise StorageError(
                        parts.folder,
                        f"part {number} was made of other texts: remove the folder to begin anew",
                    )
                counts.update(kept["counts"])
                n_parts, n_rows = number + 1, n_rows + rows.height
            facts = {**settings, "counts": dict(counts)}
            with (
                writing(hidden, self.dataset.name) as out,
                pl.Config(streaming_chunk_size=WIDE_ROWS_PER_GROUP),
            ):
                pl.scan_parquet([parts.path(i) for i in range(n_parts)], glob=False).sink_parquet(
                    out,
                    metadata={METADATA_KEY: json.dumps(facts, sort_keys=True)},
                    compression_level=ZSTD_LEVEL,
                    row_group_size=OUTPUT_ROWS_PER_GROUP,
                    engine="streaming",
                )
            publication.commit(watch.check)
        parts.remove()
        self.dataset.warn(stacklevel=4)
        return ScoredTexts(
            path=os.fspath(self.sink),
            n_rows=n_rows,
            texts=str(self.shape),
            counts=dict(counts),
            models=settings["models"],
            notes=self.dataset.notes,
        )

    def _settings(self, loaded: Mapping[str, Loaded]) -> dict[str, Any]:
        asked = self.models
        return {
            "versions": versions(),
            "models": {name: dict(each.facts) for name, each in loaded.items()},
            "texts": str(self.shape),
            **tokenizer_facts(self._tokenizer),
            "max_length": asked.max_length or None,
            "dialect": asked.dialect,
            "part_rows": asked.part_rows,
            "batch_tokens": asked.batch_tokens,
            "inputs": {name: list(now) for name, now in self.dataset.inputs.items()},
        }

    def _rows_to_score(self, parts: Parts) -> int | None:
        total, size = self.dataset.rows, self.models.part_rows
        if total is None:
            return None
        return sum(
            min(size, total - first)
            for number, first in enumerate(range(0, total, size))
            if not parts.is_done(number)
        )

    def _parts(self) -> Iterator[pl.DataFrame]:
        """Yield consecutive rows, so many at a time; one part at least."""
        size = self.models.part_rows
        if self.dataset.files:
            for shard in self.dataset.shards(size):
                with reading(self.dataset.read_from):
                    rows = shard.frame.collect()
                yield rows
            return
        with reading(self.dataset.read_from):
            held = self.dataset.frame.limit(0).collect()
            is_first = True
            for rows in self.dataset.frame.collect_batches(chunk_size=size):
                held = pl.concat([held, rows])
                while held.height >= size:
                    yield held[:size]
                    held, is_first = held[size:], False
            if held.height or is_first:
                yield held

    def _score(
        self, rows: pl.DataFrame, loaded: Mapping[str, Loaded], pace: Pace
    ) -> tuple[pl.DataFrame, dict[str, int]]:
        tokens = [self.texts.row(row) for row in rows.iter_rows(named=True)]
        counts = _counted(tokens, self.shape, drops=self.models.dialect is not None)
        if self.models.dialect is not None:
            keep = [each is None or not each.is_dropped for each in tokens]
            rows = rows.filter(pl.Series(keep, dtype=pl.Boolean))
            tokens = [each for each, kept in zip(tokens, keep, strict=True) if kept]
        made = scored_columns(
            tokens, self.shape, loaded, pad=pad_of(self._tokenizer), models=self.models, pace=pace
        )
        return rows.with_columns(**made), counts


class Pace:
    """Tells how far the scoring is, after each batch."""

    def __init__(
        self, callback: ProgressCallback | None, watch: Watch, total: int | None = None
    ) -> None:
        self._own = Watch(callback=callback)
        self._watch, self._total = watch, total
        self._done = self._told = 0

    def of(self, n_rows: int, n_sequences: int) -> Callable[[int, int], None]:
        """Return what is called after each batch of a part with so many rows and sequences."""
        begun, done = self._done, 0
        self._done += n_rows

        def after(sequences: int, tokens: int) -> None:
            nonlocal done
            self._watch.check()
            done += sequences
            rows = begun + n_rows * done // max(n_sequences, 1) - self._told
            self._told += rows
            self._own.step("scoring", rows, self._total, tokens=tokens)

        return after


def scored_columns(
    tokens: Sequence[Tokens | None],
    shape: Shape,
    loaded: Mapping[str, Loaded],
    *,
    pad: int,
    models: Models,
    pace: Pace,
) -> dict[str, pl.Series]:
    """Return token counts and log-probs of rows, by the names of the columns that they become."""
    names, there = columns_of(shape, loaded), [each for each in tokens if each is not None]
    made = {}
    for i, count in enumerate(names.counts):
        own = [None if each is None else each.sequences[i].n_tokens or None for each in tokens]
        made[count] = pl.Series(own, dtype=pl.Int64)
    sequences = [each.sequences[i] for i in range(len(shape.sides)) for each in there]
    n_scored = sum(each.n_tokens > 0 for each in sequences)
    after = pace.of(len(tokens), n_scored * len(loaded))
    for model, each in loaded.items():
        with each.in_use() as used:
            scorer = Scorer(used, pad=pad, budget=models.batch_tokens, after=after)
            sums = scorer.sums(sequences)
        for i, name in enumerate(names.logps[model]):
            totals = iter(sums[i * len(there) : (i + 1) * len(there)])
            own_sums = [None if row is None else next(totals) for row in tokens]
            made[name] = pl.Series(own_sums, dtype=pl.Float64)
    return made


def models_of(asked: Models, tokenizer: Any) -> Iterator[tuple[str, Loaded]]:
    """Yield the models; the reference of a policy with adapters is the model below them."""
    how = {"dtype": asked.dtype, "device": asked.device}
    policy = None
    if asked.policy is not None:
        policy = load(asked.policy, revision=asked.revision, **how)
        yield "policy", policy
    if asked.reference is not None:
        reference = load(asked.reference, revision=asked.reference_revision, **how)
        own = None
        if isinstance(asked.reference, (str, os.PathLike)):
            try:
                own = tokenizer_of(asked.reference, None, asked.reference_revision)
            except StorageError:  # it needs none of its own: the policy's is used
                own = None
        check_vocabulary(reference.model, tokenizer, own, str(reference.facts["name"]))
        yield "ref", reference
    elif policy is not None and (base := base_of(policy)) is not None:
        yield "ref", base


def pad_of(tokenizer: Any) -> int:
    """Return what stands after shorter texts of a batch."""
    found = tokenizer.pad_token_id
    return int(found if found is not None else tokenizer.eos_token_id or 0)


@dataclass(frozen=True, slots=True)
class Names:
    """The columns that are added: counts by side, and log-probs by model and side."""

    counts: tuple[str, ...]
    logps: Mapping[str, tuple[str, ...]]


def columns_of(shape: Shape, models: Sequence[str] | Mapping[str, Any] = _MODELS) -> Names:
    """Return the columns that are added to texts of a shape."""
    if len(shape.sides) == 1:
        return Names(("num_tokens",), {model: (f"{model}_logps",) for model in models})
    counts = tuple(f"{side}_num_tokens" for side in shape.sides)
    return Names(
        counts, {model: tuple(f"{model}_{s}_logps" for s in shape.sides) for model in models}
    )


def _counted(
    tokens: Sequence[Tokens | None], shape: Shape, *, drops: bool = False
) -> dict[str, int]:
    there = [each for each in tokens if each is not None]
    found = {
        "null": len(tokens) - len(there),
        "merged": sum(each.n_merged > 0 for each in there),
        "dropped": sum(each.is_dropped for each in there) if drops else 0,
    }
    kept = [each for each in there if not (drops and each.is_dropped)]
    for i, side in enumerate(shape.sides):
        own = [each.sequences[i] for each in kept]
        found[f"cut {side}"] = sum(each.n_cut > 0 and each.n_tokens > 0 for each in own)
        found[f"away {side}"] = sum(each.n_cut > 0 and each.n_tokens == 0 for each in own)
    return found


@planned
def logps(
    data: Any,
    sink: str | os.PathLike[str],
    *,
    policy: Any = None,
    reference: Any = None,
    models: Any = None,
    outputs: Any = None,
    execution: Any = None,
) -> Plan[ScoredTexts]:
    r"""Write texts with the log-probs of their completions, in nats, as TRL computes them.

    DATA has columns `prompt`, `chosen`, `rejected` of text or of conversations; or `chosen` and
    `rejected`, whose common start is the prompt; or `prompt` and `completion`. All columns go
    along. Added are `policy_chosen_logps` and `policy_rejected_logps`, with a reference
    `ref_chosen_logps` and `ref_rejected_logps`, and `chosen_num_tokens` and `rejected_num_tokens`;
    for a row per completion `policy_logps`, `ref_logps` and `num_tokens`. A row without a text, and
    a completion that the longest length cuts away whole, have nulls.

    Rows are scored in parts, hidden beside the sink: a call that was stopped goes on at the next
    part if it is made again.

    Args:
        data: `Pairs`, or their source: files, a folder of `datasets`, or a dataframe.
        sink: The Parquet file to write.
        policy: A folder, the name of a model on a hub, or a loaded model.
        reference: The same. None for a policy with adapters, whose reference is the model below.
        models: `Models` with all options, such as the tokenizer of a loaded model.
        outputs: `Outputs` with `overwrite`.
        execution: `Execution`, without an engine.

    Returns:
        What was written, and how many completions were cut.

    Raises:
        UsageError: torch or transformers is missing, or the models have other tokens.
        ColumnError: There are no texts, or columns that would be added are there.
        StorageError: A file or model cannot be read, the sink exists, or a call with other settings
            was stopped.
        Cancelled: The run was stopped.
    """
    asked = given(Models, models, policy=policy, reference=reference)
    if asked.policy is None and asked.reference is None:
        raise UsageError("policy: missing; give a folder or the name of a model (--policy)")
    source = data if isinstance(data, Pairs) else Pairs(data)
    checked_parquet_name(sink)
    if is_address(os.fspath(sink)):
        raise UsageError(f"{sink}: parts are written beside it: give a file on this machine")
    made, run = given(Outputs, outputs), given(Execution, execution)
    access = Access.of(run)
    dataset, shape = opened_texts(source, access, run)
    names = columns_of(shape)
    added = (*names.counts, *(name for some in names.logps.values() for name in some))
    there = dataset.columns
    twice = tuple(f"{name}: the input has this column already" for name in added if name in there)
    if twice:
        raise ColumnError(dataset.name, twice)
    check_models_extra()
    return LogpsPlan(
        dataset=dataset,
        shape=shape,
        models=asked,
        sink=sink,
        made=made,
        execution=run,
        options={"data": source, "models": asked, "outputs": made, "execution": run},
        outputs=(publication_of(made, access, dataset).check(sink),),
    )


def opened_texts(source: Pairs, access: Access, run: Execution) -> tuple[Dataset, Shape]:
    """Return texts as a dataset, and their shape."""
    dataset = open_texts(source, access=access, cancel=run.cancel)
    dataset.refuse_unread("logps carries all columns: leave them out before")
    with reading(dataset.name):
        schema = dataset.frame.collect_schema()
    return dataset, shape_of(schema, dataset.name)
