"""`logps`: texts in, the four log-probs of each pair out."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final

import polars as pl

from dpo_pipeline.arguments import given
from dpo_pipeline.defaults import ZSTD_LEVEL
from dpo_pipeline.engine import Watch
from dpo_pipeline.errors import ColumnError, UsageError
from dpo_pipeline.models.loading import Loaded, base_of, load, tokenizer_of
from dpo_pipeline.models.parts import Parts
from dpo_pipeline.models.scoring_tokens import Scorer
from dpo_pipeline.models.texts import Shape, shape_of
from dpo_pipeline.models.tokenizing import Tokenizer, Tokens
from dpo_pipeline.options import Execution, Models, Outputs, Pairs
from dpo_pipeline.plan import Facts, Input, Output, Plan, planned
from dpo_pipeline.sources import Dataset, checked_parquet_name, open_pairs, publication_of
from dpo_pipeline.storage import METADATA_KEY, Access, reading, writing

_TOKENS_SHOWN: Final = 40
_COUNTS_KEY: Final = "dpo_pipeline.counts"
TRL: Final = "trl"
_MODELS: Final = ("policy", "ref")
_SAME: Final = ("tokenizer", "template")
"""Facts of two models that must be equal: else the same text has other tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """What `logps` did.

    Attributes:
        path: The file that was written.
        n_rows: Rows of the input.
        counts: By name: `null` texts, `merged` (rows whose prompt merges with a completion),
            `cut chosen` and `cut rejected` (completions that the limit cut short),
            `away chosen` and `away rejected` (cut away whole: null), `dropped` (rows that TRL
            drops).
        models: The facts of policy and reference.
    """

    path: str
    n_rows: int
    counts: Mapping[str, int]
    models: Mapping[str, Mapping[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        return {
            "path": self.path,
            "rows": self.n_rows,
            "counts": dict(self.counts),
            "models": {name: dict(facts) for name, facts in self.models.items()},
        }

    def __str__(self) -> str:
        """Say it in lines."""
        lines = [f"{self.path}: {self.n_rows:,} rows"]
        words = {
            "null": "rows have no text and no log-probs",
            "merged": "rows whose prompt merges with a completion: it starts earlier, as in TRL",
            "cut": "{} completions were cut short by the longest length",
            "away": "{} completions were cut away whole: their log-probs are null",
            "dropped": "rows were dropped, as TRL does: the prompt alone fills the length",
        }
        for name, count in self.counts.items():
            kind, _, side = name.partition(" ")
            if count:
                lines.append(f"  {count:,} {words[kind].format(side)}")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogpsPlan(Plan[Scored]):
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
        """What the plan tells of itself: the shape of the texts, and the first row as tokens."""
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
        tokenizer = tokenizer_of(self.models.policy, self.models.tokenizer, self.models.revision)
        row = self.dataset.frame.head(1).collect()
        if row.is_empty():
            return
        tokens = Tokenizer(tokenizer, self.shape, max_length=self.models.max_length)
        found = tokens.row(row.row(0, named=True))
        if found is None:
            yield "the first row has no text"
            return
        for side, sequence in zip(self.shape.sides, found.sequences, strict=True):
            prompt, own = sequence.ids[: sequence.start], sequence.ids[sequence.start :]
            shown = " ".join(repr(tokenizer.decode([each])) for each in prompt[-_TOKENS_SHOWN:])
            scored = " ".join(repr(tokenizer.decode([each])) for each in own[:_TOKENS_SHOWN])
            yield (
                f"first row, {side}: prompt of {len(prompt):,} tokens {shown} || "
                f"{len(own):,} scored {scored}"
            )

    def run(self) -> Scored:
        """Score the texts in parts, and make one file of them."""
        loaded = dict(self._loaded())
        parts = Parts.of(self.sink)
        settings = self._settings(loaded)
        access = Access.of(self.execution)
        watch = Watch(callback=self.execution.progress, cancel=self.execution.cancel)
        total = self.dataset.rows
        with publication_of(self.made, access, self.dataset) as publication:
            hidden = publication.stage(self.sink)
            parts.begin(settings)
            n_parts = n_rows = 0
            counts: Counter[str] = Counter()
            for number, rows in enumerate(self._parts()):
                if not parts.is_done(number):
                    scored, found = self._score(rows, loaded)
                    parts.write(number, scored, {_COUNTS_KEY: json.dumps(found)})
                kept = pl.read_parquet_metadata(parts.path(number))
                counts.update(json.loads(kept[_COUNTS_KEY]))
                n_parts, n_rows = number + 1, n_rows + rows.height
                watch.step("writing", rows.height, total)
            facts = {**settings, "counts": dict(counts)}
            with writing(hidden, self.dataset.name) as out:
                pl.scan_parquet([parts.path(i) for i in range(n_parts)], glob=False).sink_parquet(
                    out,
                    metadata={METADATA_KEY: json.dumps(facts, sort_keys=True)},
                    compression_level=ZSTD_LEVEL,
                    engine="streaming",
                )
            publication.commit(watch.check)
        parts.remove()
        self.dataset.warn(stacklevel=4)
        return Scored(
            path=os.fspath(self.sink), n_rows=n_rows, counts=counts, models=settings["models"]
        )

    def _loaded(self) -> Iterator[tuple[str, Loaded]]:
        """Yield the models; the reference of a policy with adapters is the model below them."""
        asked = self.models
        how = {"dtype": asked.dtype, "device": asked.device}
        policy = load(asked.policy, tokenizer=asked.tokenizer, revision=asked.revision, **how)
        yield "policy", policy
        if asked.reference is not None:
            reference = load(
                asked.reference,
                tokenizer=asked.tokenizer,
                revision=asked.reference_revision,
                **how,
            )
            other = [name for name in _SAME if policy.facts[name] != reference.facts[name]]
            if other:
                raise UsageError(
                    f"policy and reference have another {' and '.join(other)}: the same text "
                    "would be other tokens, and their log-probs would not compare"
                )
            yield "ref", reference
        elif (base := base_of(policy)) is not None:
            yield "ref", base

    def _settings(self, loaded: Mapping[str, Loaded]) -> dict[str, Any]:
        asked = self.models
        return {
            "version": version("dpo_pipeline"),
            "models": {name: dict(each.facts) for name, each in loaded.items()},
            "texts": str(self.shape),
            "max_length": asked.max_length,
            "dialect": asked.dialect,
            "part_rows": asked.part_rows,
            "batch_tokens": asked.batch_tokens,
            "inputs": {name: list(now) for name, now in self.dataset.inputs.items()},
        }

    def _parts(self) -> Iterator[pl.DataFrame]:
        """Yield consecutive rows, so many at a time."""
        if self.dataset.files:
            for shard in self.dataset.shards(self.models.part_rows):
                with reading(self.dataset.read_from):
                    yield shard.frame.collect()
            return
        with reading(self.dataset.read_from):
            rows = self.dataset.frame.collect()
        for first in range(0, max(rows.height, 1), self.models.part_rows):
            yield rows.slice(first, self.models.part_rows)

    def _score(
        self, rows: pl.DataFrame, loaded: Mapping[str, Loaded]
    ) -> tuple[pl.DataFrame, dict[str, int]]:
        policy = loaded["policy"]
        tokenizer = Tokenizer(policy.tokenizer, self.shape, max_length=self.models.max_length)
        tokens = [tokenizer.row(row) for row in rows.iter_rows(named=True)]
        counts = _counted(tokens, self.shape)
        if self.models.dialect == TRL:
            keep = [each is None or not each.is_dropped for each in tokens]
            rows = rows.filter(pl.Series(keep, dtype=pl.Boolean))
            tokens = [each for each, kept in zip(tokens, keep, strict=True) if kept]
        pad = policy.tokenizer.pad_token_id or policy.tokenizer.eos_token_id or 0
        names = columns_of(self.shape)
        made = {}
        for place, count in enumerate(names.counts):
            own = [None if each is None else each.sequences[place].n_tokens for each in tokens]
            made[count] = pl.Series([n or None for n in own], dtype=pl.Int64)
        there = [each for each in tokens if each is not None]
        sequences = [each.sequences[i] for i in range(len(self.shape.sides)) for each in there]
        for model, each in loaded.items():
            with each.in_use() as used:
                sums = list(Scorer(used, pad=pad, budget=self.models.batch_tokens).sums(sequences))
            for i in range(len(self.shape.sides)):
                totals = iter(sums[i * len(there) : (i + 1) * len(there)])
                made[names.logps[model][i]] = pl.Series(
                    [None if each is None else next(totals) for each in tokens], dtype=pl.Float64
                )
        return rows.with_columns(**made), counts


@dataclass(frozen=True, slots=True)
class Names:
    """The columns that are added: counts by side, and log-probs by model and side."""

    counts: tuple[str, ...]
    logps: Mapping[str, tuple[str, ...]]


def columns_of(shape: Shape) -> Names:
    """Return the columns that are added to texts of a shape."""
    if len(shape.sides) == 1:
        return Names(("num_tokens",), {model: (f"{model}_logps",) for model in _MODELS})
    counts = tuple(f"{side}_num_tokens" for side in shape.sides)
    return Names(
        counts, {model: tuple(f"{model}_{s}_logps" for s in shape.sides) for model in _MODELS}
    )


def _counted(tokens: Sequence[Tokens | None], shape: Shape) -> dict[str, int]:
    there = [each for each in tokens if each is not None]
    found = {
        "null": len(tokens) - len(there),
        "merged": sum(each.n_merged > 0 for each in there),
        "dropped": sum(each.is_dropped for each in there),
    }
    for i, side in enumerate(shape.sides):
        own = [each.sequences[i] for each in there]
        found[f"cut {side}"] = sum(each.n_cut > 0 and each.n_tokens > 0 for each in own)
        found[f"away {side}"] = sum(each.n_tokens == 0 for each in own)
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
) -> Plan[Scored]:
    r"""Write texts with the log-probs of their completions, in nats, as TRL computes them.

    DATA has columns `prompt`, `chosen`, `rejected` of text or of conversations, or `chosen` and
    `rejected` whose common start is the prompt, or `prompt` and `completion`. All columns go along.
    Added are `policy_chosen_logps` and `policy_rejected_logps`, with a reference `ref_chosen_logps`
    and `ref_rejected_logps`, and `chosen_num_tokens` and `rejected_num_tokens`; for a row per
    completion `policy_logps`, `ref_logps` and `num_tokens`. A text that is null, and a completion
    that is cut away whole, has nulls.

    Rows are scored in parts, and a run that stopped goes on where it was.

    Args:
        data: `Pairs`, or their source: files or a dataframe.
        sink: The Parquet file to write.
        policy: A folder, the name of a model on a hub, or a loaded model.
        reference: The same; None for a policy with adapters, whose reference is the model below.
        models: `Models` with all options.
        outputs: `Outputs` with `overwrite`.
        execution: `Execution`, without an engine.

    Returns:
        What was written, and how many completions were cut.

    Raises:
        UsageError: torch or transformers is missing, or the models have other tokens.
        ColumnError: There are no texts.
        StorageError: A file or model cannot be read, or the sink exists.
        Cancelled: The run was stopped.
    """
    asked = given(Models, models, policy=policy, reference=reference)
    if asked.policy is None:
        raise UsageError("policy: missing; give a folder or the name of a model (--policy)")
    source = data if isinstance(data, Pairs) else Pairs(data)
    checked_parquet_name(sink)
    made, run = given(Outputs, outputs), given(Execution, execution)
    access = Access.of(run)
    dataset = open_pairs(source, access=access, as_reference=None, cancel=run.cancel)
    dataset.refuse_unread("logps carries all columns: leave them out before")
    with reading(dataset.name):
        schema = dataset.frame.collect_schema()
    shape = shape_of(schema, dataset.name)
    names = columns_of(shape)
    added = (*names.counts, *(name for some in names.logps.values() for name in some))
    twice = [name for name in added if name in schema]
    if twice:
        raise ColumnError(
            dataset.name, tuple(f"{name}: the input has this column already" for name in twice)
        )
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
