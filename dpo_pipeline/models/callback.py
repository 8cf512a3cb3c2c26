"""`LogProbsCallback`: the log-probs of each pair of an evaluation of TRL, which TRL keeps not."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

import polars as pl

from dpo_pipeline.defaults import BATCH_TOKENS
from dpo_pipeline.errors import UsageError
from dpo_pipeline.models.loading import Loaded, base_of, loaded_of, tokenizer_facts, versions
from dpo_pipeline.models.scoring_rows import pad_of
from dpo_pipeline.models.scoring_tokens import Scorer
from dpo_pipeline.models.texts import SIDES
from dpo_pipeline.models.tokenizing import Completion
from dpo_pipeline.storage import METADATA_KEY, writing, written_whole

_REFERENCE: Final = "ref"
_PROMPT: Final = "prompt_ids"
_IDS: Final = tuple(f"{side}_ids" for side in SIDES)


class LogProbsCallback:
    """Writes the log-probs of the evaluated pairs each time that a DPOTrainer of TRL evaluates.

    A callback never sees the log-probs that the trainer computes, so the pairs are scored again,
    with the trainer's own tokens; those of the reference once for all steps, unless it changes too.
    Each process takes its share of the pairs, each of them once, and writes a part of its own,
    `step=1200/rank-00000.parquet`, with all columns of the dataset beside the log-probs: evaluate
    the folder of a step, or compare two. Of several datasets each has a folder below the step's,
    `dataset=NAME`, so that `--by dataset` tells them apart.

    The model must be whole on each process: ZeRO-3 and FSDP are refused.

    Args:
        trainer: The DPOTrainer; add the callback to it (`trainer.add_callback`).
        folder: Where the steps go.
        batch_tokens: Tokens of a batch, padding included.

    Raises:
        UsageError: An evaluated dataset is a stream, of images, or has no tokens of TRL; or the
            weights are shared out among processes.
    """

    def __init__(
        self, trainer: Any, folder: str | os.PathLike[str], *, batch_tokens: int = BATCH_TOKENS
    ) -> None:
        self._trainer = trainer
        self._folder = os.fspath(folder)
        self._budget = batch_tokens
        self._reference: dict[str, tuple[Any, dict[str, pl.Series]]] = {}

    def __getattr__(self, name: str) -> Callable[..., None]:
        """Return what does nothing for all other events: no class of transformers is needed."""
        if not name.startswith("on_"):
            raise AttributeError(name)
        return lambda *_args, **_more: None

    def on_evaluate(
        self,
        args: Any,
        state: Any,
        _control: Any,
        metrics: Mapping[str, float] | None = None,
        **_more: Any,
    ) -> None:
        """Score the pairs of this process, and write them."""
        rank, world = int(args.process_index), int(args.world_size)
        policy = loaded_of(self._trainer.accelerator.unwrap_model(self._trainer.model))
        told = self._told(policy, state.global_step, world)
        for name, dataset in self._evaluated(metrics or {}):
            below = [f"dataset={name}"] if name else []
            folder = os.path.join(self._folder, f"step={state.global_step}", *below)
            os.makedirs(folder, exist_ok=True)
            if rank == 0:
                _remove_ranks(folder, world)
            path = os.path.join(folder, _part(rank))
            n = len(dataset)
            own = dataset.select(range(n * rank // world, n * (rank + 1) // world))
            made = self._made(name, dataset, own, policy)
            there = [each for each in own.column_names if each not in (_PROMPT, *_IDS, *made)]
            rows = pl.DataFrame(pl.from_arrow(own.select_columns(there).with_format("arrow")[:]))
            with written_whole(path) as hidden, writing(hidden, path) as out:
                (rows.with_columns(**made) if there else pl.DataFrame(made)).write_parquet(
                    out, metadata={METADATA_KEY: told}
                )

    def _evaluated(self, metrics: Mapping[str, float]) -> Iterator[tuple[str, Any]]:
        """Yield the names and datasets of this evaluation: of several, each has one of its own."""
        given = self._trainer.eval_dataset
        named = given if isinstance(given, Mapping) else {"": given}
        own = {name: each for name, each in named.items() if f"eval_{name}_loss" in metrics}
        for name, dataset in (own or named).items():
            columns = getattr(dataset, "column_names", None) or ()
            if not (hasattr(dataset, "select") and {_PROMPT, *_IDS} <= set(columns)):
                raise UsageError(
                    "LogProbsCallback scores datasets of pairs of text that DPOTrainer has "
                    f"tokenised, found {type(dataset).__name__} with {', '.join(columns)}"
                )
            yield name, dataset

    def _made(self, name: str, dataset: Any, own: Any, policy: Loaded) -> dict[str, pl.Series]:
        """Return the columns that are added to the pairs of this process."""
        texts = self._texts(own)
        made = {f"{side}_num_tokens": _counts(texts[side]) for side in SIDES}
        made |= self._scored("policy", policy, texts)
        of, reference = self._reference.get(name, (None, {}))
        if of is not dataset or getattr(self._trainer.args, "sync_ref_model", False):
            reference = self._of_reference(policy, own, texts)
            self._reference[name] = dataset, reference
        return made | reference

    def _texts(self, dataset: Any) -> dict[str, list[Completion]]:
        """Return the tokens of each side, cut as the trainer's collator does."""
        asked = self._trainer.args
        if asked.max_length is not None and asked.truncation_mode != "keep_start":
            raise UsageError("LogProbsCallback cuts texts with keep_start alone")
        prompts = dataset[_PROMPT][:]
        return {
            side: [
                Completion((*prompt, *ids)[: asked.max_length], len(prompt))
                for prompt, ids in zip(prompts, dataset[name][:], strict=True)
            ]
            for side, name in zip(SIDES, _IDS, strict=True)
        }

    def _scored(
        self, role: str, loaded: Loaded, texts: Mapping[str, list[Completion]]
    ) -> dict[str, pl.Series]:
        pad = pad_of(self._trainer.processing_class)
        every = [each for side in SIDES for each in texts[side]]
        with loaded.in_use() as used:
            found = Scorer(used, pad=pad, budget=self._budget).sums(every)
        n = len(texts[SIDES[0]])
        return {
            f"{role}_{side}_logps": pl.Series(found[i * n : (i + 1) * n], dtype=pl.Float64)
            for i, side in enumerate(SIDES)
        }

    def _of_reference(
        self, policy: Loaded, dataset: Any, texts: Mapping[str, list[Completion]]
    ) -> dict[str, pl.Series]:
        names = [f"ref_{side}_logps" for side in SIDES]
        if set(names) <= set(dataset.column_names):  # TRL has computed them before
            return {name: pl.Series(dataset[name][:], dtype=pl.Float64) for name in names}
        model = getattr(self._trainer, "ref_model", None)
        if model is not None:
            model = self._trainer.accelerator.unwrap_model(model)
            return self._scored("ref", Loaded(model=model, facts={}), texts)
        base = base_of(policy)
        # Of a policy that had adapters from the start, TRL keeps a copy of them as the reference.
        if base is not None and _REFERENCE in policy.model.peft_config:
            base = replace(base, is_base=False, adapter=_REFERENCE)
        return {} if base is None else self._scored("ref", base, texts)

    def _told(self, policy: Loaded, step: int, processes: int) -> str:
        asked, tokenizer = self._trainer.args, self._trainer.processing_class
        return json.dumps(
            {
                "versions": versions(),
                "models": {"policy": dict(policy.facts)},
                "step": step,
                "processes": processes,
                **tokenizer_facts(tokenizer, with_template=False),
                "max_length": asked.max_length,
                "dialect": "trl",
            }
        )


def _part(rank: int) -> str:
    return f"rank-{rank:05}.parquet"


def _remove_ranks(folder: str, world: int) -> None:
    """Remove what an earlier run on more processes left: its pairs are in the parts that come."""
    for path in glob.glob(os.path.join(glob.escape(folder), "rank-*.parquet")):
        if path not in {os.path.join(folder, _part(each)) for each in range(world)}:
            os.remove(path)


def _counts(texts: list[Completion]) -> pl.Series:
    return pl.Series([each.n_tokens or None for each in texts], dtype=pl.Int64)
