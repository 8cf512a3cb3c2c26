"""Ask a vLLM or SGLang server for the log-probs of pairs of texts, and write a token dump.

    python examples/score_with_a_server.py pairs.jsonl policy.jsonl \
        --server http://localhost:8000 --model tuned --end '<|im_end|>'
    dpo-pipeline evaluate policy.jsonl --format token-dump \
        --reference ref.jsonl --reference-format token-dump

Needs nothing beyond Python (Polars for Parquet). Texts are sent as they are: apply the chat
template first, and give both models the same texts. A server puts the tokenizer's first token
(BOS) before a text; a template has put it into the text already: `--no-special-tokens` then. The
first token of all has no log-prob, so that a prompt must not be empty. Each pair is three
requests: the prompt, and the prompt with each completion. The server returns the tokens of all
three. A completion begins where the tokens leave those of the prompt; of a pair, the earlier of
the two places holds for both sides, as in TRL. Pairs are counted in which the end of the prompt
merges with a completion.

A line is the server's answer with four keys more. The output appears when it is whole. Until then
lines stand in a hidden file beside it; the same command goes on after the last whole pair there.
`SERVER_API_KEY` in the environment is sent as the key of the server.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

SIDES = ("chosen", "rejected")
QUOTED = 300
"""Characters of an answer that an error has."""
FIRST_ERROR, TOO_MANY, SERVER_ERROR = 400, 429, 500
LONGEST_WAIT = 60.0
"""Seconds between two tries, at most."""


class RecipeError(Exception):
    """Raised where the texts or the server's answers are of no use."""


class Scored(NamedTuple):
    """An answer, and the tokens in it."""

    answer: dict[str, Any]
    ids: list[int]


@dataclass(frozen=True)
class Server:
    """A server of a model."""

    url: str
    model: str
    api: str  # vllm or sglang
    adds_special: bool = True  # whether it puts a first token before a text
    tries: int = 5
    wait: float = 1.0  # seconds before the second try, then twice as long each time
    timeout: float = 600.0

    def score(self, text: str) -> Scored:
        """Return the answer to a text, with the log-prob of each of its tokens but the first."""
        if self.api == "vllm":
            # Servers refuse to generate nothing: the reader leaves the one new token out.
            request = {
                "model": self.model,
                "prompt": text,
                "max_tokens": 1,
                "temperature": 0,
                "prompt_logprobs": 0,  # of the tokens that are there, without alternatives
                "return_token_ids": True,
                "add_special_tokens": self.adds_special,
            }
            answer = self.ask("/v1/completions", request)
            return self.checked(Scored(answer, _vllm_ids(answer)))
        request = {
            **self.given(text),
            "sampling_params": {"max_new_tokens": 0, "temperature": 0},
            "return_logprob": True,
            "logprob_start_len": 0,
        }
        answer = self.ask("/generate", request)
        return self.checked(Scored(answer, _sglang_ids(answer)))

    def given(self, text: str) -> dict[str, Any]:
        """Return what SGLang is given: a text gets a first token there, tokens do not."""
        if self.adds_special:
            return {"text": text}
        asked = {"model": self.model, "prompt": text, "add_special_tokens": False}
        return {"input_ids": self.ask("/tokenize", asked).get("tokens")}

    def checked(self, scored: Scored) -> Scored:
        """Refuse tokens that begin with the same one twice: the text had the first already."""
        first = scored.ids[:2]
        if self.adds_special and len(first) > 1 and first[0] == first[1]:
            raise RecipeError(
                f"the text begins with token {first[0]} twice: if a chat template put one of them "
                "there, or both are meant, give --no-special-tokens"
            )
        return scored

    def check_model(self) -> None:
        """Refuse an SGLang server of another model: it has one, and a request does not name it."""
        if self.api == "sglang":
            found = self.ask("/get_model_info").get("model_path")
            if found != self.model:
                raise RecipeError(f"the server's model is {found!r}, and not {self.model!r}")

    def ask(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return an answer; what can be of a moment (no connection, 429, 5xx) is tried again."""
        for number in range(1, self.tries + 1):
            try:
                return self._ask(path, body)
            except urllib.error.HTTPError as error:
                said = error.read().decode(errors="replace")[:QUOTED]
                problem = f"HTTP {error.code}: {said}"
                if FIRST_ERROR <= error.code < SERVER_ERROR and error.code != TOO_MANY:
                    raise RecipeError(f"the server refused a request: {problem}") from error
            except (OSError, http.client.HTTPException, ValueError) as error:
                problem = f"{type(error).__name__}: {error}"
            if number < self.tries:
                time.sleep(min(self.wait * 2 ** (number - 1), LONGEST_WAIT))
        raise RecipeError(f"no answer from {self.url}{path} in {self.tries} tries: {problem}")

    def _ask(self, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("SERVER_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers)  # noqa: S310  `parse` looks
        with urllib.request.urlopen(request, timeout=self.timeout) as response:  # noqa: S310
            answer = json.load(response)
        if not isinstance(answer, dict):
            raise RecipeError(f"the server's answer is no object: {json.dumps(answer)[:QUOTED]}")
        return answer


def _vllm_ids(answer: dict[str, Any]) -> list[int]:
    choices = answer.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else {}
    logprobs, ids = choice.get("prompt_logprobs"), choice.get("prompt_token_ids")
    if not logprobs:
        raise _without(answer, "choices[0].prompt_logprobs")
    if ids is None:
        raise RecipeError("the server answered without prompt_token_ids: vLLM 0.10.2 has them")
    return _checked(ids, logprobs)


def _sglang_ids(answer: dict[str, Any]) -> list[int]:
    meta = answer.get("meta_info") or {}
    tokens = meta.get("input_token_logprobs")
    if not tokens:
        raise _without(answer, "meta_info.input_token_logprobs")
    ids = [token for _, token, *_ in tokens]
    if len(ids) != meta.get("prompt_tokens", len(ids)):
        count = f"{len(ids)} of {meta['prompt_tokens']} tokens"
        raise RecipeError(f"the server answered with log-probs of {count}")
    return _checked(ids, [logprob for logprob, *_ in tokens])


def _checked(ids: list[int], logprobs: Sequence[object]) -> list[int]:
    if len(ids) != len(logprobs):
        raise RecipeError(f"the server answered with {len(ids)} tokens, {len(logprobs)} log-probs")
    if None in logprobs[1:]:
        at = logprobs.index(None, 1)
        raise RecipeError(f"the server answered without the log-prob of token {at}")
    return ids


def _without(answer: dict[str, Any], where: str) -> RecipeError:
    found = json.dumps(answer)[:QUOTED]
    return RecipeError(f"the server answered without log-probs: {where} is missing in {found}")


def shared(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many tokens two lists share at their start."""
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )


def lines_of(pair: dict[str, Any], server: Server, end: str) -> tuple[str, str]:
    """Return the lines of a pair."""
    try:
        prompt = server.score(pair["prompt"])
        texts = [pair["prompt"] + _ended(pair[side], end) for side in SIDES]
        chosen, rejected = (server.score(text) for text in texts)
        begins = min(shared(prompt.ids, each.ids) for each in (chosen, rejected))
        if not begins:
            raise RecipeError("the first token has no log-prob, and is part of the completion")
    except RecipeError as error:
        raise RecipeError(f"pair {pair['pair_id']!r}: {error}") from error
    own = {name: pair[name] for name in ("pair_id", "prompt_id") if name in pair}
    counts = {"prompt_tokens": begins, "merged_tokens": len(prompt.ids) - begins}
    first, second = (
        json.dumps({**own, "side": side, **counts, **each.answer}) + "\n"
        for side, each in zip(SIDES, (chosen, rejected), strict=True)
    )
    return first, second


def _ended(completion: str, end: str) -> str:
    return completion if completion.endswith(end) else completion + end


def _pair(line: str, number: int) -> dict[str, Any]:
    try:
        pair = json.loads(line)
    except ValueError as error:
        raise RecipeError(f"line {number}: {error}") from error
    if not isinstance(pair, dict):
        raise RecipeError(f"line {number}: must be an object")
    return pair


def read_pairs(path: str) -> list[dict[str, Any]]:
    """Return the pairs of a file, checked."""
    if path.endswith((".parquet", ".pq")):
        import polars as pl

        names = pl.read_parquet_schema(path)
        kept = [name for name in ("pair_id", "prompt_id", "prompt", *SIDES) if name in names]
        pairs = pl.read_parquet(path, columns=kept).to_dicts()
    else:
        with open(path, encoding="utf-8") as file:
            pairs = [_pair(line, number) for number, line in enumerate(file, 1) if line.strip()]
    seen = set()
    for row, pair in enumerate(pairs):
        key = pair.get("pair_id")
        if not isinstance(key, (int, str)):
            raise RecipeError(f"row {row}: pair_id must be a number or a string, found {key!r}")
        if key in seen:
            raise RecipeError(f"row {row}: pair_id {key!r} is there a second time")
        seen.add(key)
        for name in ("prompt", *SIDES):
            if not isinstance(pair.get(name), str):
                found = type(pair.get(name)).__name__
                raise RecipeError(f"pair {key!r}: {name} must be text, found {found}")
        if not pair["prompt"]:
            raise RecipeError(
                f"pair {key!r}: an empty prompt, so that the first token has no log-prob"
            )
    return pairs


def part_of(output: Path, pairs: list[dict[str, Any]], server: Server, end: str) -> Path:
    """Return the hidden file of a run: other texts, models or ends have another one."""
    made_of = json.dumps(
        [server.model, server.api, server.adds_special, end, pairs], sort_keys=True
    )
    digest = hashlib.sha256(made_of.encode()).hexdigest()[:12]
    return output.with_name(f".{output.name}.{digest}.part")


def whole_pairs(part: Path) -> Iterator[tuple[str, str]]:
    """Yield the whole pairs of lines that an earlier run left behind."""
    if part.exists():
        with part.open(encoding="utf-8") as file:
            for first in file:
                second = next(file, "")
                if second.endswith("\n"):
                    yield first, second


def answers(
    pairs: list[dict[str, Any]], server: Server, end: str, workers: int
) -> Iterator[tuple[str, str]]:
    """Yield the lines of pairs, in their order; `workers` pairs are asked for at a time."""
    asked: deque[Future[tuple[str, str]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for pair in pairs:
                asked.append(pool.submit(lines_of, pair, server, end))
                if len(asked) > 2 * workers:
                    yield asked.popleft().result()
            while asked:
                yield asked.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def run(pairs: list[dict[str, Any]], output: Path, server: Server, end: str, workers: int) -> str:
    """Write the dump; return what there is to say about it."""
    server.check_model()
    part = part_of(output, pairs, server, end)
    done, merged, size = set(), 0, 0
    for first, second in whole_pairs(part):
        line = json.loads(first)
        done.add(line["pair_id"])
        merged += line["merged_tokens"] > 0
        size += len(first.encode()) + len(second.encode())
    with part.open("ab") as file:
        file.truncate(size)  # half a pair
        todo = [pair for pair in pairs if pair["pair_id"] not in done]
        for lines in answers(todo, server, end, workers):
            merged += json.loads(lines[0])["merged_tokens"] > 0
            file.write("".join(lines).encode())
            file.flush()
        os.fsync(file.fileno())
    part.replace(output)
    resumed = f", {len(done):,} of them of an earlier run" if done else ""
    note = f"; in {merged:,} the end of the prompt merges with a completion" if merged else ""
    return f"{output}: {len(pairs):,} pairs{resumed}{note}"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", help="JSON lines or Parquet: pair_id, prompt, chosen, rejected")
    parser.add_argument("output", type=Path, help="the dump, for --format token-dump")
    parser.add_argument("--server", required=True, help="such as http://localhost:8000")
    parser.add_argument("--model", required=True, help="its name on the server")
    parser.add_argument("--api", choices=("vllm", "sglang"), default="vllm")
    parser.add_argument("--end", default="", help="text of the end token, for completions without")
    parser.add_argument(
        "--no-special-tokens", action="store_true", help="texts have their first token already"
    )
    parser.add_argument("--workers", type=int, default=8, help="pairs asked for at a time")
    parser.add_argument("--tries", type=int, default=5, help="tries of a request")
    parser.add_argument("--wait", type=float, default=1.0, help="seconds before the second try")
    parser.add_argument("--overwrite", action="store_true", help="replace the output")
    args = parser.parse_args(arguments)
    if not args.server.startswith(("http://", "https://")):
        parser.error("--server must begin with http:// or https://")
    if min(args.workers, args.tries) < 1 or args.wait < 0:
        parser.error("--workers and --tries must be at least 1, --wait at least 0")
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """Score the pairs of a file; return the exit code."""
    args = parse(arguments)
    url = args.server.rstrip("/").removesuffix("/v1")
    server = Server(url, args.model, args.api, not args.no_special_tokens, args.tries, args.wait)
    try:
        if args.output.exists() and not args.overwrite:
            raise RecipeError(f"{args.output} exists; --overwrite replaces it")
        print(run(read_pairs(args.data), args.output, server, args.end, args.workers))
    except (RecipeError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
