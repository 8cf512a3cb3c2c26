"""Reader of what servers of models write: log-probs of tokens, a response a line.

Every shape becomes one: whose completion it is, on which side, and the log-prob of each of its
tokens. It is Python, a line at a time; only sums and counts are kept.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

import polars as pl

from dpo_pipeline.columns import (
    CHOSEN_TOKENS,
    PAIR_ID,
    POLICY_CHOSEN,
    POLICY_REJECTED,
    PROMPT_ID,
    REF_CHOSEN,
    REF_REJECTED,
    REJECTED_TOKENS,
)
from dpo_pipeline.defaults import OFFENDERS_SHOWN, STATISTICS_ROWS
from dpo_pipeline.errors import ColumnError
from dpo_pipeline.sources.files import SourcePath, text_files
from dpo_pipeline.sources.formats import FORMATS, NDJSON
from dpo_pipeline.sources.frames import Dump, Rows
from dpo_pipeline.sources.keys import KEY, OrderedRows, Partitions
from dpo_pipeline.storage import unpacked

_SIDES: Final = ("chosen", "rejected")
_COMPLETION_ID: Final = "completion_id"
_CARRIED: Final = (PROMPT_ID.name, "label", "rank", "score")
"""Keys of a line that become columns: of completions all, of pairs the first."""
_CLAMPED: Final = -9999.0
"""What a server writes for a log-prob of -inf, which JSON has not."""
_QUOTED: Final = 200
"""Characters of a server's error that ours has."""
_LINE, _SIDE, _LOGP, _N, _ROWS = (
    f"__dpo_pipeline_{name}" for name in ("line", "side", "logp", "n_tokens", "rows")
)


class _LineError(Exception):
    """Raised when a line is not of a form that is read."""


class _Tokens(NamedTuple):
    """The log-probs of a completion's tokens."""

    is_given: bool  # of a text that the model was given; else of what it wrote
    logps: list[float]


def token_dump(
    source: SourcePath,
    columns: Mapping[str, str] | None = None,  # noqa: ARG001
    *,
    model: Literal["policy", "ref"] = "policy",
) -> Rows:
    """Return sums of token log-probs over completions; two lines with a `side` become a pair.

    A line is a response with further keys: `pair_id` and `side` ("chosen" or "rejected"), or
    `completion_id`; and, where the prompt was scored too, `prompt_tokens`, how many tokens are the
    prompt's. The shapes are those of vLLM (completions, chat, offline), OpenAI (`echo`, `content`)
    and SGLang. `model` is the one whose log-probs they are.
    """
    found = text_files(source, FORMATS[NDJSON].endings)
    lines = _Lines(found.paths)
    ordered = OrderedRows()
    if lines.is_of_pairs:
        _add_pairs(lines, ordered, model)
    else:
        names = {_LOGP: f"{model}_logps", _N: "num_tokens", KEY: _COMPLETION_ID}
        for rows in lines:
            ordered.add(rows.drop(_LINE, _SIDE).rename(names))
    if not ordered.n_rows:
        raise ColumnError(found.paths[0], ("no line has log-probs",))
    dump = lines.dump
    notes = (*found.notes, *_notes(dump))

    def keep(part: pl.DataFrame, _held: OrderedRows = ordered) -> pl.DataFrame:
        return part  # and with the plan the files that its rows are in

    frame = ordered.rows(0, None).map_batches(keep, streamable=True, projection_pushdown=True)
    return Rows(frame, found.identities, notes, dump=dump)


def _notes(dump: Dump) -> Iterator[str]:
    if dump.n_given and dump.n_generated:
        yield (
            f"{dump.n_given:,} completions have prompt log-probs, of a text that was given, and "
            f"{dump.n_generated:,} those of tokens that the model generated: these are other texts"
        )


class _Lines:
    """The lines of files, parsed once, as rows in chunks."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = paths
        self._begins: list[int] = []  # the number of the first line of each file
        self._n_given = self._n_lists = self._n_tokens = 0
        first = _first_line(paths[0])
        self.is_of_pairs = _COMPLETION_ID not in first or PAIR_ID.name in first
        self.key = PAIR_ID.name if self.is_of_pairs else _COMPLETION_ID
        text = pl.String() if isinstance(first.get(self.key), str) else pl.Int64()
        prompts = pl.String() if isinstance(first.get(PROMPT_ID.name), str) else pl.Int64()
        carried = {PROMPT_ID.name: prompts, **({} if self.is_of_pairs else _LABELS)}
        self.carried = {name: dtype for name, dtype in carried.items() if name in first}
        own = {_LINE: pl.Int64(), KEY: text, _SIDE: pl.String(), _LOGP: pl.Float64()}
        self.schema = pl.Schema({**own, _N: pl.Int64(), **self.carried})

    @property
    def dump(self) -> Dump:
        """What all lines amount to."""
        return Dump(self._n_given, self._n_lists - self._n_given, self._n_tokens)

    def place(self, number: int) -> tuple[str, int]:
        """Return the file of a line, and its number there, from 1."""
        at = bisect_right(self._begins, number) - 1
        return self._paths[at], number - self._begins[at] + 1

    def __iter__(self) -> Iterator[pl.DataFrame]:
        """Yield the rows of `schema`."""
        held: list[tuple[Any, ...]] = []
        total = 0
        for path in self._paths:
            self._begins.append(total)
            with unpacked(path) as file:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        try:
                            held.append((total, *self._row(line)))
                        except (ValueError, _LineError) as error:
                            raise ColumnError(path, (f"line {number}: {error}",)) from error
                        if len(held) == _LINES:
                            yield self._chunk(held, path)
                            held = []
                    total += 1
        yield self._chunk(held, self._paths[-1])

    def _row(self, line: bytes) -> tuple[Any, ...]:
        row = json.loads(line)
        if not isinstance(row, dict):
            raise _LineError("must be an object")
        if row.get("error") is not None:
            error = json.dumps(row["error"])[:_QUOTED]
            raise _LineError(f"the server answered with an error: {error}")
        key, side = row.get(self.key), row.get("side")
        if not isinstance(key, (int, str)) or isinstance(key, bool):
            raise _LineError(f"{self.key} must be a number or a string, {_found(key)}")
        if self.is_of_pairs and side not in _SIDES:
            raise _LineError(f"side must be 'chosen' or 'rejected', {_found(side)}")
        tokens = _tokens(row)
        self._n_lists += 1
        self._n_given += tokens.is_given
        self._n_tokens += len(tokens.logps)
        carried = (row.get(name) for name in self.carried)
        return (key, side, math.fsum(tokens.logps), len(tokens.logps), *carried)

    def _chunk(self, held: list[tuple[Any, ...]], path: str) -> pl.DataFrame:
        made = []
        for i, (name, dtype) in enumerate(self.schema.items()):
            try:
                made.append(pl.Series(name, [row[i] for row in held], dtype=dtype, strict=True))
            except TypeError as error:
                called, kind = (self.key if name == KEY else name), _CALLED[dtype]
                problem = f"{called}: {kind} in some lines, and something else in others"
                raise ColumnError(path, (problem,)) from error
        return pl.DataFrame(made)


_LABELS: Final[Mapping[str, pl.DataType]] = {
    "label": pl.Boolean(),
    "rank": pl.Int64(),
    "score": pl.Float64(),
}
_CALLED: Final[Mapping[pl.DataType, str]] = {
    pl.Int64(): "numbers",
    pl.Float64(): "numbers",
    pl.String(): "strings",
    pl.Boolean(): "true or false",
}
_LINES: Final = 65_536
"""Lines whose sums are held as objects."""


def _first_line(path: str) -> Mapping[str, Any]:
    with unpacked(path) as file:
        line = next((each for each in file if each.strip()), b"{}")
    try:
        first = json.loads(line)
    except ValueError:  # which reading the lines says
        return {}
    return first if isinstance(first, dict) else {}


def _add_pairs(lines: _Lines, ordered: OrderedRows, model: str) -> None:
    """Add a row for each pair, in the order of their first lines."""
    sides = [pl.col(_SIDE) == side for side in _SIDES]
    logps = {"policy": (POLICY_CHOSEN, POLICY_REJECTED), "ref": (REF_CHOSEN, REF_REJECTED)}[model]
    values = {
        role.name: pl.col(name).filter(side).first()
        for name, roles in ((_LOGP, logps), (_N, (CHOSEN_TOKENS, REJECTED_TOKENS)))
        for role, side in zip(roles, sides, strict=True)
    }
    values |= {name: pl.col(name).first() for name in lines.carried}
    values |= {_LINE: pl.col(_LINE).min(), _ROWS: pl.len()}

    def paired(rows: pl.DataFrame) -> pl.DataFrame:
        return rows.group_by(KEY).agg(**values)

    with Partitions({"": lines.schema}) as parts:
        for rows in lines:
            parts.add("", rows)
        # Three lines of a pair have a side twice; two have it, or one of each.
        columns = paired(pl.DataFrame(schema=lines.schema)).schema
        faults = []
        with Partitions({"": columns}, by=pl.col(_LINE) // STATISTICS_ROWS) as in_order:
            for part in parts:
                pairs = paired(part[""])
                whole = pl.all_horizontal(pl.col(role.name).is_not_null() for role in logps)
                is_odd = (pl.col(_ROWS) != len(_SIDES)) | ~whole
                faults.append(part[""].join(pairs.filter(is_odd), on=KEY, how="semi"))
                in_order.add("", pairs)
            _refuse(lines, pl.concat(faults).sort(_LINE))
            for part in in_order:
                rows = part[""].sort(_LINE).drop(_LINE, _ROWS)
                ordered.add(rows.rename({KEY: PAIR_ID.name}))


def _refuse(lines: _Lines, odd: pl.DataFrame) -> None:
    """Raise a ColumnError that names the first side that is there twice, or those missing."""
    seen: dict[Any, set[str]] = {}
    for number, key, side in odd.select(_LINE, KEY, _SIDE).iter_rows():
        if side in seen.setdefault(key, set()):
            path, at = lines.place(number)
            problem = f"line {at}: {side} of pair {key!r} is there a second time"
            raise ColumnError(path, (problem,))
        seen[key].add(side)
    alone = [
        f"{side} of pair {key!r}"
        for key, there in seen.items()
        for side in _SIDES
        if side not in there
    ]
    if alone:
        shown = ", ".join(alone[:OFFENDERS_SHOWN])
        count = f"{len(alone):,} side{'' if len(alone) == 1 else 's'}"
        problem = f"{count} missing: {shown}; ask again, or leave out the pair's other line"
        raise ColumnError(lines.place(0)[0], (problem,))


def _tokens(row: Mapping[str, Any]) -> _Tokens:
    """Return the log-probs of the completion on a line, whichever shape it has."""
    choice = _only(row, "choices") or row
    meta, written = row.get("meta_info"), choice.get("logprobs")
    if isinstance(meta, dict):
        return _of_sglang(row, meta)
    for there in (choice, row):
        if isinstance(there.get("prompt_logprobs"), list):
            logprobs, ids = there["prompt_logprobs"], there.get("prompt_token_ids")
            first = _prompt(row, len(logprobs))
            values = _of_positions("prompt_logprobs", logprobs, ids, first)
            return _Tokens(is_given=True, logps=values)
    if isinstance(written, dict):
        return _of_openai(row, written)
    output = _only(row, "outputs")
    if output is not None:
        logprobs, ids = output.get("logprobs"), output.get("token_ids")
        if not isinstance(logprobs, list):
            raise _LineError("outputs[0].logprobs is missing: ask with logprobs=0")
        return _Tokens(is_given=False, logps=_of_positions("outputs[0].logprobs", logprobs, ids, 0))
    if "choices" in row and "logprobs" in choice:
        raise _LineError("choices[0].logprobs is null: ask the server for logprobs")
    raise _LineError(
        "no log-probs: there is no prompt_logprobs (vLLM: ask the server for it), choices[0]."
        "logprobs (OpenAI), meta_info (SGLang) or outputs (vLLM offline)"
    )


def _only(row: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    """Return the one response of a list of them; None if there is no list."""
    responses = row.get(name)
    if responses is None:
        return None
    if not isinstance(responses, list) or len(responses) != 1 or not isinstance(responses[0], dict):
        raise _LineError(f"{name} must hold one response: ask for one prompt and n=1")
    return responses[0]


def _prompt(row: Mapping[str, Any], n_tokens: int) -> int:
    """Return how many tokens are the prompt's."""
    skipped = row.get("prompt_tokens")
    if not isinstance(skipped, int) or isinstance(skipped, bool) or skipped < 1:
        raise _LineError(f"prompt_tokens must be the prompt's count of tokens, {_found(skipped)}")
    if skipped > n_tokens:
        raise _LineError(f"prompt_tokens is {skipped}, and the response has {n_tokens} tokens")
    return skipped


def _of_sglang(row: Mapping[str, Any], meta: Mapping[str, Any]) -> _Tokens:
    """Return what /generate answers: lists of log-prob, token id and text."""
    for name, is_given in (("input_token_logprobs", True), ("output_token_logprobs", False)):
        tokens = meta.get(name)
        if not isinstance(tokens, list) or not tokens:
            continue
        first = 0
        if is_given:
            n_tokens = meta.get("prompt_tokens", len(tokens))  # of the whole text that was given
            first = _prompt(row, n_tokens) - (n_tokens - len(tokens))
            if first < 1:  # the first that is there has no log-prob
                raise _LineError(
                    f"{name} begins after the completion: ask with logprob_start_len=0"
                )
        values = [each[0] if isinstance(each, list) and each else each for each in tokens[first:]]
        return _Tokens(is_given=is_given, logps=_checked(f"meta_info.{name}", values, first))
    raise _LineError(
        "meta_info has neither input_token_logprobs nor output_token_logprobs: ask with "
        "return_logprob, and for the log-probs of given text with logprob_start_len=0"
    )


def _of_openai(row: Mapping[str, Any], logprobs: Mapping[str, Any]) -> _Tokens:
    """Return what a chat answers (`content`), or completions do (with `echo` or without)."""
    content, tokens = logprobs.get("content"), logprobs.get("token_logprobs")
    if isinstance(content, list):
        values = [each.get("logprob") if isinstance(each, dict) else each for each in content]
        return _Tokens(is_given=False, logps=_checked("logprobs.content", values, 0))
    if not isinstance(tokens, list):
        raise _LineError("choices[0].logprobs has neither content nor token_logprobs")
    if not tokens or tokens[0] is not None:
        if "prompt_tokens" in row:
            raise _LineError(
                "token_logprobs does not begin with null, and so is of the tokens that were "
                "generated: ask with echo, or leave out prompt_tokens"
            )
        return _Tokens(is_given=False, logps=_checked("token_logprobs", tokens, 0))
    # What is generated after the text that was given is no part of it.
    usage = row.get("usage")
    end = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    if isinstance(end, int):
        if end > len(tokens):
            raise _LineError(f"usage.prompt_tokens is {end}, and there are {len(tokens)} tokens")
        tokens = tokens[:end]
    first = _prompt(row, len(tokens))
    return _Tokens(is_given=True, logps=_checked("token_logprobs", tokens[first:], first))


def _checked(name: str, values: list[Any], first: int) -> list[float]:
    """Return log-probs as floats."""
    if {*map(type, values)} <= {float} and _CLAMPED not in values:
        return values
    for position, value in enumerate(values, first):
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise _LineError(f"{name}[{position}] has no log-prob, found {value!r}")
    return [-math.inf if value == _CLAMPED else float(value) for value in values]


def _of_positions(name: str, logprobs: list[Any], ids: list[int] | None, first: int) -> list[float]:
    """Return vLLM's log-probs of the tokens that are there; each position has alternatives too."""
    if ids is not None and len(ids) != len(logprobs):
        raise _LineError(f"{len(ids)} token ids and {len(logprobs)} positions of {name}")
    values: list[Any] = []
    if ids is not None:
        try:
            here = zip(logprobs[first:], ids[first:], strict=True)
            values = [tokens[str(token)] for tokens, token in here]
            if values and isinstance(values[0], dict):
                values = [each["logprob"] for each in values]
        except (TypeError, KeyError):  # which `_slowly` says
            values = []
    if not values or _CLAMPED in values or not {*map(type, values)} <= {float}:
        values = [*_slowly(name, logprobs, ids, first)]
    return values


def _slowly(name: str, logprobs: list[Any], ids: list[int] | None, first: int) -> Iterator[float]:
    for position in range(first, len(logprobs)):
        found = logprobs[position]
        if not isinstance(found, dict) or not found:
            raise _LineError(f"{name}[{position}] must be an object, found {found!r}")
        if ids is None and len(found) > 1:
            raise _LineError(
                f"{name}[{position}] has {len(found)} tokens, and which of them is there only "
                "token ids tell: ask with return_token_ids"
            )
        token = next(iter(found)) if ids is None else str(ids[position])
        if token not in found:
            raise _LineError(f"{name}[{position}] has no token {token}")
        value = found[token].get("logprob") if isinstance(found[token], dict) else found[token]
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise _LineError(f"{name}[{position}] has no logprob of token {token}")
        yield -math.inf if value == _CLAMPED else float(value)


def _found(value: object) -> str:
    return "and is missing" if value is None else f"found {value!r}"
