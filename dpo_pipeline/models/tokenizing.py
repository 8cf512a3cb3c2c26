"""Texts as tokens, by the rules of TRL 1.x: its figures are what people compare with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from dpo_pipeline.errors import UsageError
from dpo_pipeline.models.texts import Shape, Text, parts_of, without_nulls

TOOLS: Final = "tools"
TEMPLATE_ARGUMENTS: Final = "chat_template_kwargs"


@dataclass(frozen=True, slots=True)
class Completion:
    """Tokens of one prompt and one completion, as a model sees them.

    Attributes:
        ids: Prompt and completion.
        start: Where the completion starts.
        n_cut: Tokens that the limit of the length cut off.
    """

    ids: tuple[int, ...]
    start: int
    n_cut: int = 0

    @property
    def n_tokens(self) -> int:
        """Tokens of the completion that are scored; the first token of all has no log-prob."""
        return max(len(self.ids) - max(self.start, 1), 0)


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of a row.

    Attributes:
        sequences: One for each completion.
        n_merged: Tokens at the end of the prompt that merge with a completion, and so count as
            its own.
        is_dropped: Whether TRL drops the row: its prompt alone fills the length.
    """

    sequences: tuple[Completion, ...]
    n_merged: int
    is_dropped: bool


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many tokens two lists share at their start."""
    shared = 0
    for one, other in zip(a, b, strict=False):
        if one != other:
            break
        shared += 1
    return shared


class Tokenizer:
    """Turns rows into tokens with a tokenizer of transformers, as TRL does."""

    def __init__(self, tokenizer: Any, shape: Shape, *, max_length: int | None) -> None:
        self._tokenizer = tokenizer
        self._shape = shape
        self._max_length = max_length
        if shape.is_conversation and not tokenizer.chat_template:
            raise UsageError(
                "the texts are conversations, and the tokenizer has no chat template: give a "
                "model that has one, or plain text"
            )
        if not shape.is_conversation and tokenizer.eos_token is None:
            raise UsageError("the tokenizer has no end-of-text token, which TRL puts after a text")

    def row(self, row: Mapping[str, Any]) -> Tokens | None:
        """Return the tokens of a row; None where a text is null."""
        texts = parts_of(row, self._shape)
        if texts is None:
            return None
        prompt, *completions = texts
        more = self._template_arguments(row) if self._shape.is_conversation else {}
        alone = self._ids(prompt, add_generation_prompt=True, **more)
        both = [self._ids(self._joined(prompt, each), **more) for each in completions]
        start = min(common_prefix(alone, ids) for ids in both)
        limit = self._max_length or None
        return Tokens(
            sequences=tuple(
                Completion(
                    tuple(ids[:limit]), start, 0 if limit is None else max(len(ids) - limit, 0)
                )
                for ids in both
            ),
            n_merged=len(alone) - start,
            is_dropped=limit is not None and start >= limit,
        )

    def _joined(self, prompt: Text, completion: Text) -> Text:
        if self._shape.is_conversation:
            return [*prompt, *completion]
        eos = self._tokenizer.eos_token
        end = "" if str(completion).endswith(eos) else eos
        return f"{prompt}{completion}{end}"

    def _ids(self, text: Text, **template: Any) -> list[int]:
        if self._shape.is_conversation:
            made = self._tokenizer.apply_chat_template(
                text, tokenize=True, return_dict=True, **template
            )
        else:
            made = self._tokenizer(text=text)
        return list(made["input_ids"])

    def _template_arguments(self, row: Mapping[str, Any]) -> dict[str, Any]:
        tools = row.get(TOOLS)
        given = row.get(TEMPLATE_ARGUMENTS) or {}
        made = json.loads(tools) if isinstance(tools, str) else without_nulls(tools)
        return {TOOLS: made or None, **without_nulls(given)}
