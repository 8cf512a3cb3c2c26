"""Pairs that repeat or contradict each other: exact duplicates, swaps, cycles.

A completion is known by its text, where the pairs have the columns `chosen` and `rejected`, or by
its log-probs. Within a prompt, each pair says that one completion is better than another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import polars as pl

from dpo_pipeline.columns import (
    CONTRADICTION,
    CONTRADICTION_GROUP,
    POLICY_CHOSEN,
    POLICY_REJECTED,
    PROMPT_ID,
    REF_CHOSEN,
    REF_REJECTED,
)
from dpo_pipeline.selection.row_ranks import ROW
from dpo_pipeline.sources import KEY, Partitions
from dpo_pipeline.statistics import counted, mixed, with_hashes

CHOSEN: Final = "__dpo_pipeline_chosen"
REJECTED: Final = "__dpo_pipeline_rejected"

_TEXTS: Final = {CHOSEN: "chosen", REJECTED: "rejected"}
_LOGPS: Final = {
    CHOSEN: (POLICY_CHOSEN.name, REF_CHOSEN.name),
    REJECTED: (POLICY_REJECTED.name, REF_REJECTED.name),
}
_PROMPT: Final = "__dpo_pipeline_prompt"
_PROMPT_TEXT: Final = "prompt"

DUPLICATE: Final = "duplicate"
SWAP: Final = "swap"
CYCLE: Final = "cycle"
"""What a row may be found to be; of several, all are said."""

EDGES: Final = pl.Schema({ROW: pl.UInt64, KEY: pl.UInt64, CHOSEN: pl.UInt64, REJECTED: pl.UInt64})
FOUND: Final = pl.Schema({ROW: pl.UInt64, CONTRADICTION: pl.String, CONTRADICTION_GROUP: pl.UInt64})


@dataclass(frozen=True, slots=True)
class ContradictionCounts:
    """Pairs by what they are found in; a pair may be in several."""

    duplicates: int = 0
    swaps: int = 0
    cycles: int = 0
    known_by: str = ""  # what completions are known by

    def sentences(self) -> Iterator[str]:
        """Yield what was found."""
        found = {
            "that repeat another pair exactly": self.duplicates,
            "with an exact swap, chosen and rejected exchanged": self.swaps,
            "on a cycle of three or more completions of one prompt": self.cycles,
        }
        for what, n in found.items():
            if n:
                known = f"completions are known by their {self.known_by}"
                yield f"{counted(n, 'pair')} {what}; {known}"


def with_edges(pairs: pl.LazyFrame, columns: Mapping[str, pl.DataType]) -> pl.LazyFrame:
    """Add the prompt (as `KEY`) and the two completions of each pair, as hashes.

    Without a prompt, the two completions stand for it, whichever is chosen.
    """
    by_text = known_by(columns) == "text"
    made = pairs
    for name in (CHOSEN, REJECTED):
        if by_text:
            made = with_hashes(made, _TEXTS[name], columns[_TEXTS[name]], into=name)
            continue
        bits = [
            pl.col(each).cast(pl.Float64).reinterpret(dtype=pl.UInt64)
            for each in _LOGPS[name]
            if each in columns
        ]
        number = mixed(bits[0])
        for more in bits[1:]:
            number = mixed(number ^ more)
        made = made.with_columns(number.alias(name))
    prompt = prompt_column(columns)
    key = mixed(pl.col(CHOSEN)) ^ mixed(pl.col(REJECTED))
    if prompt is not None:
        made = with_hashes(made, prompt, columns[prompt], into=_PROMPT)
        key = pl.col(_PROMPT).fill_null(key)
    return made.with_columns(key.alias(KEY))


def known_by(columns: Mapping[str, pl.DataType]) -> str:
    """Return what completions are known by."""
    is_text = all(columns.get(name) == pl.String for name in _TEXTS.values())
    return "text" if is_text else "log-probs"


def prompt_column(columns: Mapping[str, pl.DataType]) -> str | None:
    """Return the column that says which pairs are of one prompt."""
    there = (name for name in (PROMPT_ID.name, _PROMPT_TEXT) if name in columns)
    found = next(there, None)
    return None if found is None or columns[found].is_nested() else found


def contradictions_in(parts: Partitions) -> Iterator[pl.DataFrame]:
    """Yield the rows that repeat or contradict others, as `FOUND`."""
    last = 0
    for part in parts:
        found = _of_part(part[""])
        if found.height:
            groups = pl.col(CONTRADICTION_GROUP).rank("dense").cast(pl.UInt64) + last
            found = found.with_columns(groups)
            last = int(found[CONTRADICTION_GROUP].max())  # type: ignore[arg-type]
        yield found.select(FOUND.names())


def _of_part(edges: pl.DataFrame) -> pl.DataFrame:
    edge = [KEY, CHOSEN, REJECTED]
    once = edges.unique(edge, keep="first", maintain_order=True)
    back = once.select(KEY, pl.col(CHOSEN).alias(REJECTED), pl.col(REJECTED).alias(CHOSEN))
    swapped = once.filter(pl.col(CHOSEN) != pl.col(REJECTED)).join(back, on=edge, how="semi")
    swapped = swapped.select(*edge, is_swap=pl.lit(value=True))
    low, high = pl.min_horizontal(CHOSEN, REJECTED), pl.max_horizontal(CHOSEN, REJECTED)
    pair = mixed(mixed(pl.col(KEY) ^ mixed(low)) ^ mixed(high))
    is_found = {
        DUPLICATE: pl.len().over(edge) > 1,
        SWAP: pl.col("is_swap").fill_null(value=False),
        CYCLE: pl.col("is_cycle").fill_null(value=False),
    }
    labels = [pl.when(found).then(pl.lit(name)) for name, found in is_found.items()]
    return (
        edges.join(swapped, on=edge, how="left", maintain_order="left")
        .join(_in_components(once), on=edge, how="left", maintain_order="left")
        .select(
            ROW,
            pl.concat_str(labels, separator=", ", ignore_nulls=True).alias(CONTRADICTION),
            pl.coalesce("group", pair).alias(CONTRADICTION_GROUP),
        )
        .filter(pl.col(CONTRADICTION) != "")
    )


def _in_components(edges: pl.DataFrame) -> pl.DataFrame:
    """Return the edges inside strongly connected components.

    With the number of the component, `group`, and `is_cycle`: on a cycle of three or more.
    """
    edge = [KEY, CHOSEN, REJECTED]
    left = edges.select(edge).filter(pl.col(CHOSEN) != pl.col(REJECTED))
    height = -1
    while left.height != height:  # what has no way in or no way out is in none
        height = left.height
        sources = left.select(KEY, pl.col(CHOSEN).alias(REJECTED))
        sinks = left.select(KEY, pl.col(REJECTED).alias(CHOSEN))
        left = left.join(sources, on=[KEY, REJECTED], how="semi")
        left = left.join(sinks, on=[KEY, CHOSEN], how="semi")
    rows: list[tuple[int, int, int, int, bool]] = []
    for (key,), some in left.partition_by(KEY, as_dict=True).items():
        there = some.select(CHOSEN, REJECTED).rows()
        of = _components(there)
        inside = {(a, b) for a, b in there if of[a] == of[b]}
        ways: dict[int, list[int]] = {}
        for a, b in sorted(inside):
            ways.setdefault(a, []).append(b)
        for a, b in inside:
            # Without its swap, an edge of a component is on a cycle of three at least.
            is_cycle = (b, a) not in inside or _leads_back(ways, b, a)
            rows.append((key, a, b, hash((key, of[a])) % 2**64, is_cycle))
    schema = {**dict.fromkeys((*edge, "group"), pl.UInt64), "is_cycle": pl.Boolean}
    return pl.DataFrame(rows, schema=schema, orient="row")


def _leads_back(ways: Mapping[int, list[int]], start: int, end: int) -> bool:
    """Return whether there is a way from one completion to another, but for the direct one."""
    todo, seen = [each for each in ways[start] if each != end], {start}
    while todo:
        node = todo.pop()
        if node == end:
            return True
        if node not in seen:
            seen.add(node)
            todo += ways[node]
    return False


def _components(edges: list[tuple[int, int]]) -> dict[int, int]:
    """Return the strongly connected component of each node (Kosaraju's two passes)."""
    ways: dict[int, list[int]] = {}
    back: dict[int, list[int]] = {}
    for a, b in edges:
        ways.setdefault(a, []).append(b)
        ways.setdefault(b, [])
        back.setdefault(b, []).append(a)
        back.setdefault(a, [])
    done: list[int] = []
    seen: set[int] = set()
    for start, first in ways.items():
        todo = [(start, iter(first))] if start not in seen else []
        seen.add(start)
        while todo:
            node, following = todo[-1]
            step = next((each for each in following if each not in seen), None)
            if step is None:
                done.append(todo.pop()[0])
            else:
                seen.add(step)
                todo.append((step, iter(ways[step])))
    of: dict[int, int] = {}
    for start in reversed(done):
        todo_back = [start] if start not in of else []
        while todo_back:
            node = todo_back.pop()
            if node not in of:
                of[node] = start
                todo_back += [each for each in back[node] if each not in of]
    return of
