"""Reader of what vLLM's server answers: log-probs of prompt tokens, summed over a completion.

It is Python, a line at a time; only sums are kept.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal

import polars as pl

from dpo_pipeline.columns import (
    CHOSEN_TOKENS,
    PAIR_ID,
    POLICY_CHOSEN,
    POLICY_REJECTED,
    REF_CHOSEN,
    REF_REJECTED,
    REJECTED_TOKENS,
)
from dpo_pipeline.defaults import OFFENDERS_SHOWN
from dpo_pipeline.errors import ColumnError
from dpo_pipeline.sources.files import SourcePath, text_files
from dpo_pipeline.sources.formats import FORMATS, NDJSON
from dpo_pipeline.sources.frames import Rows
from dpo_pipeline.storage import unpacked

_SIDES: Final = ("chosen", "rejected")
_COUNTS: Final = (CHOSEN_TOKENS, REJECTED_TOKENS)
_CLAMPED: Final = -9999.0
"""What the server writes for a log-prob of -inf, which JSON has not."""

_QUOTED: Final = 200
"""Characters of a server's error that ours has."""


class _LineError(Exception):
    """Raised when a line is not of the form that `vllm` takes."""


def vllm(
    source: SourcePath,
    columns: Mapping[str, str] | None = None,  # noqa: ARG001
    *,
    model: Literal["policy", "ref"] = "policy",
) -> Rows:
    """Return sums of vLLM's `prompt_logprobs` over completions; two lines become a pair.

    A line is a response of the OpenAI server, asked with `prompt_logprobs` and `return_token_ids`,
    to a prompt with its completion, and three keys more: `pair_id`; `side`, "chosen" or
    "rejected"; `prompt_tokens`, how many tokens are the prompt's. What is of interest in the
    response, `prompt_logprobs` and `prompt_token_ids`, may also stand on the line itself. Without
    token ids there must be one log-prob a token (`prompt_logprobs=0`).

    `model` is the one whose log-probs they are.
    """
    pairs: dict[int | str, dict[str, tuple[float, int]]] = {}
    found = text_files(source, FORMATS[NDJSON].endings)
    for path in found.paths:
        with unpacked(path) as file:
            for number, line in enumerate(file, 1):
                try:
                    pair, side, completion = _completion(line)
                    if side in pairs.setdefault(pair, {}):
                        raise _LineError(f"{side} of pair {pair!r} is there a second time")
                except (ValueError, _LineError) as error:
                    raise ColumnError(path, (f"line {number}: {error}",)) from error
                pairs[pair][side] = math.fsum(completion), len(completion)
    kinds = {type(pair) for pair in pairs}
    if len(kinds) > 1:
        raise ColumnError(path, ("pair_id: numbers in some lines and strings in others",))
    alone = [
        f"{side} of pair {pair!r}"
        for pair, sides in pairs.items()
        for side in _SIDES
        if side not in sides
    ]
    if alone:
        shown = ", ".join(alone[:OFFENDERS_SHOWN])
        count = f"{len(alone):,} side{'' if len(alone) == 1 else 's'}"
        problem = f"{count} missing: {shown}; ask again, or leave out the pair's other line"
        raise ColumnError(path, (problem,))
    logps = {"policy": (POLICY_CHOSEN, POLICY_REJECTED), "ref": (REF_CHOSEN, REF_REJECTED)}[model]
    frame = pl.DataFrame({PAIR_ID.name: list(pairs)})
    for i, (roles, dtype) in enumerate([(logps, pl.Float64), (_COUNTS, pl.Int64)]):
        frame = frame.with_columns(
            pl.Series(role.name, [sides[side][i] for sides in pairs.values()], dtype=dtype)
            for role, side in zip(roles, _SIDES, strict=True)
        )
    return Rows(frame.lazy(), found.identities, found.notes)


def _completion(line: bytes) -> tuple[int | str, str, list[float]]:
    """Return the pair, the side, and the log-prob of each token of the completion."""
    row = json.loads(line)
    if not isinstance(row, dict):
        raise _LineError("must be an object")
    pair, side, skipped = (row.get(name) for name in ("pair_id", "side", "prompt_tokens"))
    if row.get("error") is not None:
        raise _LineError(f"the server answered with an error: {json.dumps(row['error'])[:_QUOTED]}")
    if not isinstance(pair, (int, str)) or isinstance(pair, bool):
        raise _LineError(f"pair_id must be a number or a string, {_found(pair)}")
    if side not in _SIDES:
        raise _LineError(f"side must be 'chosen' or 'rejected', {_found(side)}")
    if not isinstance(skipped, int) or isinstance(skipped, bool) or skipped < 1:
        raise _LineError(f"prompt_tokens must be the prompt's count of tokens, {_found(skipped)}")
    choices = row.get("choices", [row])
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise _LineError("choices must hold one response: ask for one prompt and n=1")
    logprobs, ids = (choices[0].get(name) for name in ("prompt_logprobs", "prompt_token_ids"))
    if not isinstance(logprobs, list):
        raise _LineError("prompt_logprobs is missing: ask the server for it")
    if ids is not None and len(ids) != len(logprobs):
        raise _LineError(f"{len(ids)} prompt_token_ids and {len(logprobs)} prompt_logprobs")
    if skipped > len(logprobs):
        raise _LineError(f"prompt_tokens is {skipped}, and the response has {len(logprobs)} tokens")
    return (
        pair,
        str(side),
        _plain_logps(logprobs, ids, skipped) or [*_logps(logprobs, ids, skipped)],
    )


def _found(value: object) -> str:
    return "and is missing" if value is None else f"found {value!r}"


def _plain_logps(logprobs: list[Any], ids: list[int] | None, first: int) -> list[float]:
    """Return what `_logps` yields, twice as fast; nothing where a value is odd in any way."""
    if ids is None:
        return []
    try:
        pairs = zip(logprobs[first:], ids[first:], strict=True)
        values = [tokens[str(token)]["logprob"] for tokens, token in pairs]
    except (TypeError, KeyError):
        return []
    return [] if _CLAMPED in values or not {*map(type, values)} <= {float} else values


def _logps(logprobs: list[Any], ids: list[int] | None, first: int) -> Iterator[float]:
    for position in range(first, len(logprobs)):
        found = logprobs[position]
        if not isinstance(found, dict) or not found:
            raise _LineError(f"prompt_logprobs[{position}] must be an object, found {found!r}")
        if ids is None and len(found) > 1:
            raise _LineError(
                f"prompt_logprobs[{position}] has {len(found)} tokens, and which of them is there "
                "only prompt_token_ids tell: ask with return_token_ids"
            )
        token = next(iter(found)) if ids is None else str(ids[position])
        if token not in found:
            raise _LineError(f"prompt_logprobs[{position}] has no token {token}")
        value = found[token].get("logprob") if isinstance(found[token], dict) else None
        if not isinstance(value, (int, float)):
            raise _LineError(f"prompt_logprobs[{position}] has no logprob of token {token}")
        yield -math.inf if value == _CLAMPED else float(value)
