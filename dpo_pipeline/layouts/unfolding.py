"""Lists in one row a prompt, unfolded into one row a completion.

A list that is not as long as the log-probs beside it gives nulls, which the contract counts: no
value ever stands beside another completion's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, cast

import polars as pl

from dpo_pipeline.columns import (
    COMPLETION_ID,
    LABEL,
    PAIR_ID,
    POLICY,
    PROMPT_ID,
    ROLES,
    TEXTS,
    TOKENS_OF,
    Role,
    Texts,
    resolve,
)
from dpo_pipeline.sources import Dataset

ANSWERS: Final = ("completion", "response", "text", "output")
"""What the text of a completion can be called."""

Lists = dict[str, tuple[pl.Expr, pl.DataType]]
"""Role, or name of a text, to the list of its values in a row, and the type of that list."""


def made_of(dataset: Dataset, rows: pl.LazyFrame, **changed: Any) -> Dataset:
    """Return a dataset of rows that were made of another's, however many: it has no shards."""
    kept: dict[str, Any] = {
        "name": dataset.name,
        "frame": rows,
        "others": dataset.inputs,
        "own_notes": dataset.own_notes,
        "unread": dataset.unread,
        "keeps_order": dataset.keeps_order,
        "compare_keys": dataset.compare_keys,
        "made": dataset.made,
        "dump": dataset.dump,
        "is_canonical": True,
    }
    return Dataset(**{**kept, **changed})


def unfolded(dataset: Dataset, columns: Mapping[str, str] | None) -> Dataset:
    """Return completions, one a row, if rows hold lists of them; else the dataset as it is."""
    schema = dataset.frame.collect_schema()
    found = resolve(schema.names(), columns).mapping
    lists = _of_completions(found, schema)
    used = {found.get(name) for name in lists}
    if not lists:
        lists, used = _of_sides(found, schema), {*found.values()}
    if not lists:
        return dataset
    prompt = found.get(PROMPT_ID.name, found.get(PAIR_ID.name))
    used |= {*lists, prompt, PROMPT_ID.name}
    frame = dataset.whole if prompt else dataset.whole.with_row_index(PROMPT_ID.name)
    length = next(lists[n][0].list.len() for n in _LOGPS if n in lists)
    length = pl.when(length > 0).then(length)  # an empty list is one row, which is invalid
    rows = frame.select(
        pl.col(prompt or PROMPT_ID.name).alias(PROMPT_ID.name),
        *(name for name in schema.names() if name not in used),
        **{COMPLETION_ID.name: pl.int_ranges(0, length)}
        | {name: _aligned(values, dtype, length) for name, (values, dtype) in lists.items()},
    )
    return made_of(dataset, rows.explode(*dict.fromkeys((COMPLETION_ID.name, *lists))))


_LOGPS: Final = (POLICY.name, TOKENS_OF[POLICY.name].name)
_SEVERAL: Final = {"tokens": 2, "mask": 2}
"""How deep lists of several completions are, by kind of role; 1 for others."""


def _of_completions(found: Mapping[str, str], schema: pl.Schema) -> Lists:
    """Return the lists of rows that hold the completions of a prompt; none if they do not."""
    lists = {
        name: (pl.col(column), schema[column])
        for name, column in found.items()
        if _depth(schema[column]) == _SEVERAL.get(ROLES[name].kind, 1) and name != PROMPT_ID.name
    }
    if not any(name in lists for name in _LOGPS):
        return {}
    texts = {n: (pl.col(n), schema[n]) for n in ANSWERS if _depth(schema.get(n, pl.Null())) == 1}
    return {name: _plain(*each) for name, each in (lists | texts).items()}


def _of_sides(found: Mapping[str, str], schema: pl.Schema) -> Lists:
    """Return the lists of rows with chosen and rejected, one of which may hold several."""
    chosen, rejected = (dict(_columns_of(text)) for text in TEXTS["pair"])
    lists: Lists = {}
    lengths: list[pl.Expr] = []
    for ours, role in _columns_of(TEXTS["completion"][0]):
        names = [found.get(side[ours].name, "") for side in (chosen, rejected)]
        if not all(names):
            continue
        depth = _SEVERAL.get(role.kind, 1)
        sides = [_listed(name, schema[name], depth) for name in names]
        lengths = lengths or [values.list.len() for values, _ in sides]
        both = (
            _aligned(*_plain(values, dtype), length)
            for (values, dtype), length in zip(sides, lengths, strict=True)
        )
        lists[role.name] = pl.concat_list(*both), sides[1][1]
    is_several = any(
        _depth(schema[found[side[ours].name]]) == _SEVERAL.get(side[ours].kind, 1)
        for side in (chosen, rejected)
        for ours in ("policy", "policy_tokens")
        if side[ours].name in found
    )
    if not is_several:
        return {}
    labels = (pl.lit(value=v).repeat_by(n) for v, n in zip((True, False), lengths, strict=True))
    lists[LABEL.name] = pl.concat_list(*labels), pl.List(pl.Boolean())
    return lists


def _columns_of(text: Texts) -> Iterator[tuple[str, Role]]:
    """Yield what the roles of a completion are, those of its log-probs first, and the roles."""
    yield "policy", text.policy
    yield "policy_tokens", TOKENS_OF[text.policy.name]
    yield "ref", text.ref
    yield "ref_tokens", TOKENS_OF[text.ref.name]
    yield "count", text.count
    yield "mask", text.mask


def _depth(dtype: pl.DataType | None) -> int:
    """Return how many lists or one-dimensional arrays are around a value."""
    if isinstance(dtype, pl.List) or (isinstance(dtype, pl.Array) and len(dtype.shape) == 1):
        return 1 + _depth(cast("Any", dtype).inner)
    return 0


def _listed(name: str, dtype: pl.DataType, depth: int) -> tuple[pl.Expr, pl.DataType]:
    """Return a column as a list of values of a completion: of one if it holds one."""
    if _depth(dtype) == depth:
        return pl.col(name), dtype
    return pl.col(name).repeat_by(1), pl.List(dtype)


def _plain(values: pl.Expr, dtype: pl.DataType) -> tuple[pl.Expr, pl.DataType]:
    """Return arrays as lists."""
    if isinstance(dtype, pl.Array):
        return values.arr.to_list(), pl.List(cast("Any", dtype).inner)
    return values, dtype


def _aligned(values: pl.Expr, dtype: pl.DataType, length: pl.Expr) -> pl.Expr:
    """Return lists of this length; one that has another is all null."""
    fits = pl.when(values.list.len() == length).then(values).otherwise(pl.lit([], dtype=dtype))
    return fits.list.gather(pl.int_ranges(0, length), null_on_oob=True)
