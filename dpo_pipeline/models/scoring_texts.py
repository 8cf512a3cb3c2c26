"""`logps`: texts in, the log-probs of their completions out."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import polars as pl

from dpo_pipeline.arguments import given
from dpo_pipeline.defaults import OUTPUT_ROWS_PER_GROUP, WIDE_ROWS_PER_GROUP, ZSTD_LEVEL
from dpo_pipeline.engine import Watch
from dpo_pipeline.errors import ColumnError, StorageError, UsageError
from dpo_pipeline.models.loading import (
    Loaded,
    check_models_extra,
    tokenizer_facts,
    versions,
)
from dpo_pipeline.models.parts import Parts, digest_of_rows
from dpo_pipeline.models.scoring_rows import (
    Pace,
    columns_of,
    counts_of,
    models_of,
    pad_of,
    scored_columns,
    tokenizer_for,
)
from dpo_pipeline.models.texts import SIDES, Shape, oddities, shape_of
from dpo_pipeline.models.tokenizing import Tokenizer
from dpo_pipeline.options import Execution, Models, Outputs, Pairs
from dpo_pipeline.plan import Facts, Input, Output, Plan, planned
from dpo_pipeline.sources import Dataset, checked_parquet_name, open_texts, publication_of
from dpo_pipeline.statistics import counted
from dpo_pipeline.storage import METADATA_KEY, Access, is_address, reading, writing
from dpo_pipeline.tables import Part, Printable, Sentence, warned, whole

_TOKENS_SHOWN: Final = 40
_LAST, _FIRST = slice(-_TOKENS_SHOWN, None), slice(_TOKENS_SHOWN)
_OF_PART: Final = "dpo_pipeline.part"
"""Metadata of a part: the digest of its input rows, and what was counted in it."""
_COUNTED: Final = {
    "null": "in {} there is no text, and so no log-prob",
    "written": "in {} conversations are written as JSON: they are scored as that text",
    "first": "in {} nothing stands before the completion: its first token has no log-prob",
    "merged": "in {} the end of the prompt merges with a completion, which then starts earlier, as "
    "in TRL",
    "dropped": "in {} the prompt alone has the longest length: left out, as TRL does",
    "alike": "in {} chosen and rejected are the same tokens: they tell nothing",
    "empty": "in {} the {}completion is empty: its log-prob is that of the end alone",
    "bare": "in {} the {}completion has no token with a log-prob: it is null",
    "cut": "in {} the longest length cuts the {}completion short",
    "away": "in {} the longest length cuts the {}completion away whole: its log-prob is null",
}


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ScoredTexts(Printable):
    """What `logps` wrote.

    Attributes:
        path: The file.
        n_rows: Rows of the input.
        texts: How the texts were read.
        counts: By name: `null` (rows without a text), `written` (conversations as JSON in text),
            `first` (rows with nothing before the completion), `merged` (rows whose prompt merges
            with a completion), `dropped` (rows that `dialect="trl"` left out), `alike` (chosen and
            rejected are the same tokens); of completions, by side, `empty chosen` (no text),
            `bare chosen` (no token with a log-prob: null), `cut chosen` (cut short by the limit),
            `away chosen` (cut away whole: null).
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
        yield Sentence(text=f"{whole(self.path)}: {counted(self.n_rows, 'row')}", leads=True)
        yield Sentence(text=self.texts, label="texts")
        for name, facts in self.models.items():
            at = f" at {facts['revision'][:12]}" if facts["revision"] else ""
            yield Sentence(text=f"{whole(facts['name'])}{at} ({facts['dtype']})", label=name)
        yield from warned((*said_of(self.counts), *self.notes), "note")


def said_of(counts: Mapping[str, int]) -> list[str]:
    """Say what was counted, a sentence each."""
    return [
        _COUNTED[kind].format(counted(count, "row"), f"{side} " if side in SIDES else "")
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
        """What the plan tells of itself, without a model."""
        files = tuple(Input(path=each.path, rows=each.rows) for each in self.dataset.files)
        return Facts(
            function="logps",
            call="logps",
            source=self.dataset.name,
            inputs=files or (Input(path=self.dataset.name, rows=None),),
            rows=self.dataset.rows,
            columns={name: name for name in self.shape.columns},
            options=self.options,
            notes=self.dataset.notes,
            outputs=self.outputs,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data, with the tokens of the first row."""
        return {**super().to_dict(), "texts": str(self.shape), "first_row": self.first_row()}

    def to_parts(self) -> Iterator[Part]:
        """Yield what would be read and written, and the first row as tokens."""
        first, *more = super().to_parts()
        yield first
        yield Sentence(text=str(self.shape), label="texts")
        for side, tokens in self.first_row().items():
            prompt, own = (
                " ".join(map(repr, tokens[name][part]))
                for name, part in (("prompt", _LAST), ("scored", _FIRST))
            )
            n = {name: len(some) for name, some in tokens.items()}
            cut = " ..." if n["scored"] > _TOKENS_SHOWN else ""
            yield Sentence(
                text=f"the prompt has {n['prompt']:,} tokens, and ends {prompt}", label=side
            )
            yield Sentence(text=f"{n['scored']:,} tokens are scored: {own}{cut}", label=side)
        yield from more

    def first_row(self) -> dict[str, dict[str, list[str]]]:
        """Return the tokens of the first row: those of the prompt and those that are scored."""
        with reading(self.dataset.read_from):
            rows = self.dataset.frame.head(1).collect()
        found = self.texts.row(rows.row(0, named=True)) if rows.height else None
        if found is None:
            return {}
        return {
            side: {
                name: [self._tokenizer.decode([each]) for each in some]
                for name, some in (
                    ("prompt", tokens.ids[: tokens.start]),
                    ("scored", tokens.ids[tokens.start :]),
                )
            }
            for side, tokens in zip(self.shape.sides, found.sequences, strict=True)
        }

    @cached_property
    def _tokenizer(self) -> Any:
        return tokenizer_for(self.models)

    @cached_property
    def texts(self) -> Tokenizer:
        """What turns rows into tokens."""
        return Tokenizer(self._tokenizer, self.shape, max_length=self.models.max_length)

    def run(self) -> ScoredTexts:
        """Score the texts in parts, and make one file of them."""
        loaded = dict(models_of(self.models, self._tokenizer))
        settings = self._settings(loaded)
        parts, watch = Parts.beside(self.sink), Watch(cancel=self.execution.cancel)
        access = Access.of(self.execution)
        with publication_of(self.made, access, self.dataset) as publication:
            hidden = publication.stage(self.sink)
            parts.begin(settings)
            heights, counts = self._score_parts(parts, loaded, watch)
            paths = [parts.path(number) for number in range(len(heights))]
            self._join(paths, hidden, {**settings, "counts": counts})
            publication.commit(watch.check)
        parts.remove()
        self.dataset.warn(stacklevel=4)
        return ScoredTexts(
            path=os.fspath(self.sink),
            n_rows=sum(heights),
            texts=str(self.shape),
            counts=counts,
            models=settings["models"],
            notes=self.dataset.notes,
        )

    def _score_parts(
        self, parts: Parts, loaded: Mapping[str, Loaded], watch: Watch
    ) -> tuple[list[int], dict[str, int]]:
        """Score the parts that are missing; return the rows of each, and what was counted."""
        pace = Pace(self.execution.progress, watch, self._rows_to_score(parts))
        counts: Counter[str] = Counter()
        heights = []
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
            heights.append(rows.height)
        return heights, dict(counts)

    def _join(self, paths: list[str], hidden: str, facts: Mapping[str, Any]) -> None:
        """Write the parts as one file."""
        with (
            writing(hidden, self.dataset.name) as out,
            pl.Config(streaming_chunk_size=WIDE_ROWS_PER_GROUP),
        ):
            pl.scan_parquet(paths, glob=False).sink_parquet(
                out,
                metadata={METADATA_KEY: json.dumps(facts, sort_keys=True)},
                compression_level=ZSTD_LEVEL,
                row_group_size=OUTPUT_ROWS_PER_GROUP,
                engine="streaming",
            )

    def _settings(self, loaded: Mapping[str, Loaded]) -> dict[str, Any]:
        asked = self.models
        return {
            "versions": versions(),
            "models": {name: dict(each.facts) for name, each in loaded.items()},
            "texts": str(self.shape),
            **tokenizer_facts(self._tokenizer, with_template=self.shape.is_conversation),
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
        counts = oddities(rows, self.shape)
        counts |= counts_of(tokens, self.shape, drops=self.models.dialect is not None)
        if self.models.dialect is not None:
            keep = [each is None or not each.is_dropped for each in tokens]
            rows = rows.filter(pl.Series(keep, dtype=pl.Boolean))
            tokens = [each for each, kept in zip(tokens, keep, strict=True) if kept]
        made = scored_columns(
            tokens, self.shape, loaded, pad=pad_of(self._tokenizer), models=self.models, pace=pace
        )
        return rows.with_columns(**made), counts


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

    Examples:
        >>> import dpo_pipeline
        >>> dpo_pipeline.logps(  # doctest: +SKIP
        ...     "texts.jsonl", "pairs.parquet", policy="tuned", reference="base")
    """
    asked = asked_models(models, policy, reference)
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


def asked_models(models: Any, policy: Any, reference: Any) -> Models:
    """Return the models that are asked for, one at least, with revisions of hub names alone."""
    asked = given(Models, models, policy=policy, reference=reference)
    if asked.policy is None and asked.reference is None:
        raise UsageError(
            "there is no model: give --policy or --reference, a folder or a name on a hub"
        )
    for role, flag, model, revision in (
        ("policy", "--revision", asked.policy, asked.revision),
        ("reference", "--reference-revision", asked.reference, asked.reference_revision),
    ):
        is_name = isinstance(model, (str, os.PathLike))
        if revision is not None and not (is_name and not os.path.isdir(model)):
            what = "not given" if model is None else "a folder" if is_name else "loaded already"
            raise UsageError(f"{flag} is of a {role} on a hub, and the {role} is {what}")
    return asked


def opened_texts(source: Pairs, access: Access, run: Execution) -> tuple[Dataset, Shape]:
    """Return texts as a dataset, and their shape."""
    dataset = open_texts(source, access=access, cancel=run.cancel)
    dataset.refuse_unread("logps carries all columns: leave them out before")
    with reading(dataset.name):
        schema = dataset.frame.collect_schema()
    return dataset, shape_of(schema, dataset.name)
