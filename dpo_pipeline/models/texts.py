"""The shapes that preference texts have, and each row as prompt and completions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import polars as pl

from dpo_pipeline.errors import ColumnError

Text: TypeAlias = "str | Sequence[Mapping[str, Any]]"
"""Plain text, or a conversation: messages with `role` and `content`."""

PROMPT: Final = "prompt"
SIDES: Final = ("chosen", "rejected")
COMPLETION: Final = "completion"


@dataclass(frozen=True, slots=True)
class Shape:
    """How the texts of a table are to be read.

    Attributes:
        sides: The columns of completions: chosen and rejected, or one for a row per completion.
        is_conversation: Whether texts are lists of messages.
        has_prompt: Whether the prompt has its own column; else it is what chosen and rejected
            have in common at their start.
    """

    sides: tuple[str, ...]
    is_conversation: bool
    has_prompt: bool

    def __str__(self) -> str:
        """Say it in words."""
        kind = "conversations" if self.is_conversation else "plain text"
        rows = "pairs" if len(self.sides) > 1 else "one completion a row"
        prompt = (
            f"the prompt in {PROMPT!r}"
            if self.has_prompt
            else "the prompt is the start that chosen and rejected share"
        )
        return f"{rows}, {kind}, {prompt}"

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that hold texts."""
        return (*([PROMPT] if self.has_prompt else []), *self.sides)


def shape_of(schema: pl.Schema, source: str) -> Shape:
    """Return the shape of a table with these columns.

    Raises:
        ColumnError: A column is missing, or holds no texts.
    """
    sides = SIDES if all(name in schema for name in SIDES) else (COMPLETION,)
    has_prompt = PROMPT in schema
    if sides[0] not in schema or (len(sides) == 1 and not has_prompt):
        there = ", ".join(schema)
        problem = (
            "texts are missing: needed are chosen and rejected (with prompt, or with a common "
            f"start), or prompt and completion; the columns are {there}"
        )
        raise ColumnError(source, (problem,))
    shape = Shape(sides, isinstance(schema[sides[0]], (pl.List, pl.Array)), has_prompt)
    kinds = {name: schema[name] for name in shape.columns}
    if not any(_is_text(kinds[sides[0]], is_conversation=each) for each in (True, False)):
        found = f"found {kinds[sides[0]]}"
        problem = f"{sides[0]}: must be text, or lists of messages with role and content, {found}"
        raise ColumnError(source, (problem,))
    wanted = "a conversation" if shape.is_conversation else "text"
    problems = [
        f"{name}: must be {wanted} as {sides[0]} is, found {dtype}"
        for name, dtype in kinds.items()
        if not _is_text(dtype, is_conversation=shape.is_conversation)
    ]
    if problems:
        raise ColumnError(source, tuple(problems))
    return shape


def _is_text(dtype: pl.DataType, *, is_conversation: bool) -> bool:
    if not is_conversation:
        return dtype == pl.String
    inner = getattr(dtype, "inner", None)
    return isinstance(inner, pl.Struct) and {"role", "content"} <= {f.name for f in inner.fields}


def oddities(rows: pl.DataFrame, shape: Shape) -> dict[str, int]:
    """Count texts that are hardly meant: empty completions, and conversations written as text."""
    texts = [pl.col(name) for name in shape.columns]
    if shape.is_conversation:
        empty = {side: pl.col(side).list.len() == 0 for side in shape.sides}
        written = pl.lit(value=False)
    else:
        empty = {side: pl.col(side) == "" for side in shape.sides}
        written = pl.any_horizontal(
            each.str.starts_with("[{") & each.str.contains('"role"', literal=True) for each in texts
        )
    counts = rows.select(
        written.sum().alias("written"),
        **{f"empty {side}": is_empty.sum() for side, is_empty in empty.items()},
    )
    return counts.row(0, named=True)


def parts_of(row: Mapping[str, Any], shape: Shape) -> tuple[Text, ...] | None:
    """Return the prompt and the completions of a row; None where a text is null."""
    found = [row[name] for name in shape.columns]
    if any(each is None for each in found):
        return None
    texts = [without_nulls(each) if shape.is_conversation else each for each in found]
    if shape.has_prompt:
        return tuple(texts)
    cut = common_start(*texts)
    return (texts[0][:cut], *(each[cut:] for each in texts))


def common_start(chosen: Text, rejected: Text) -> int:
    """Return how many characters, or messages, are the prompt of both: TRL's `extract_prompt`.

    A space before the first difference belongs to the completions. Of two texts of which one is
    the start of the other, the last element of the shorter belongs to the completion.
    """
    shorter = min(len(chosen), len(rejected))
    for place in range(shorter):
        if chosen[place] != rejected[place]:
            return place - 1 if place and chosen[place - 1] == " " else place
    return max(shorter - 1, 0)


def without_nulls(value: Any) -> Any:
    """Return messages or tools without what is null: a table has the fields of all of them."""
    if isinstance(value, Mapping):
        return {name: without_nulls(each) for name, each in value.items() if each is not None}
    return [without_nulls(each) for each in value] if isinstance(value, list) else value
