"""Rows of texts to their columns: token counts, and log-probs under one or two models."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from dpo_pipeline.engine import Watch
from dpo_pipeline.errors import StorageError
from dpo_pipeline.models.loading import Loaded, base_of, check_vocabulary, load, tokenizer_of
from dpo_pipeline.models.scoring_tokens import Scorer
from dpo_pipeline.models.texts import Shape
from dpo_pipeline.models.tokenizing import Tokens
from dpo_pipeline.options import Models

if TYPE_CHECKING:
    from dpo_pipeline.engine import ProgressCallback

_MODELS: Final = ("policy", "ref")


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


def tokenizer_for(asked: Models) -> Any:
    """Return the tokenizer whose tokens both models read: the policy's where there is one."""
    if asked.policy is None:
        return tokenizer_of(asked.reference, asked.tokenizer, asked.reference_revision)
    return tokenizer_of(asked.policy, asked.tokenizer, asked.revision)


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


def counts_of(
    tokens: Sequence[Tokens | None], shape: Shape, *, drops: bool = False
) -> dict[str, int]:
    """Count what happened to texts; `drops` says whether rows that TRL drops are left out."""
    there = [each for each in tokens if each is not None]
    found = {
        "null": len(tokens) - len(there),
        "merged": sum(each.n_merged > 0 for each in there),
        "dropped": sum(each.is_dropped for each in there) if drops else 0,
    }
    kept = [each for each in there if not (drops and each.is_dropped)]
    found["first"] = sum(each.sequences[0].start == 0 for each in kept)
    if len(shape.sides) > 1:
        pairs = [each.sequences for each in kept if each.sequences[0].n_tokens]
        found["alike"] = sum(one.ids == other.ids for one, other in pairs)
    for i, side in enumerate(shape.sides):
        own = [each.sequences[i] for each in kept]
        found[f"cut {side}"] = sum(each.n_cut > 0 and each.n_tokens > 0 for each in own)
        found[f"away {side}"] = sum(each.n_cut > 0 and each.n_tokens == 0 for each in own)
        found[f"bare {side}"] = sum(each.n_cut == 0 and each.n_tokens == 0 for each in own)
    return found
