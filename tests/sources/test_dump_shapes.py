"""Every shape in which servers answer with log-probs of tokens, in its exact layout.

The answer is the same throughout: the completion's tokens have -2 and -3 if chosen, and -4, -5 and
-6 if rejected; the prompt before it has the tokens 99 and 100, of which the second has -1.
"""

from __future__ import annotations

import json
import math
import re
import warnings

import pytest

from dpo_pipeline import ColumnError, Pairs, Reference, compare, dry_run, evaluate, read
from pair_tools import LOGPS

CHOSEN, REJECTED = (-2.0, -3.0), (-4.0, -5.0, -6.0)
PROMPT = {"prompt_tokens": 2}
EXPECTED = [(0, -5.0, -15.0, 2, 3)]


def ids_of(logps):
    return [99, 100, *range(101, 101 + len(logps))]


def positions(logps, value, *, best=None):
    """vLLM's log-probs of a prompt and its completion; `best` is a likelier token beside each."""
    made = [None]
    for token, logp in zip(ids_of(logps)[1:], (-1.0, *logps), strict=True):
        here = {str(token): value(logp)}
        made.append({"7": value(logp + 0.5), **here} if best else here)
    return made


def as_object(logp):
    return {"logprob": logp, "rank": 1, "decoded_token": "t"}


def vllm_completions(logps):
    choice = {
        "index": 0,
        "text": "k",
        "logprobs": None,
        "finish_reason": "length",
        "stop_reason": None,
        "token_ids": [5],
        "prompt_logprobs": positions(logps, as_object, best=True),
        "prompt_token_ids": ids_of(logps),
    }
    usage = {"prompt_tokens": 2 + len(logps), "completion_tokens": 1, "total_tokens": 0}
    return {"object": "text_completion", "choices": [choice], "usage": usage, **PROMPT}


def vllm_chat(logps):
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "k"},
        "logprobs": None,
        "finish_reason": "length",
        "token_ids": [5],
    }
    return {
        "object": "chat.completion",
        "choices": [choice],
        "usage": {"prompt_tokens": 2 + len(logps), "completion_tokens": 1},
        "prompt_logprobs": positions(logps, as_object),
        "prompt_token_ids": ids_of(logps),
        **PROMPT,
    }


def vllm_offline(logps, value=as_object):
    return {
        "request_id": "3",
        "prompt": "...",
        "prompt_token_ids": ids_of(logps),
        "prompt_logprobs": positions(logps, value, best=True),
        "outputs": [{"index": 0, "text": "k", "token_ids": [5], "logprobs": None}],
        "finished": True,
        **PROMPT,
    }


def vllm_floats(logps):
    return vllm_offline(logps, float)


def vllm_offline_generated(logps):
    ids = ids_of(logps)[2:]
    here = [{"7": as_object(-0.5), str(t): as_object(x)} for t, x in zip(ids, logps, strict=True)]
    output = {"index": 0, "text": "x", "token_ids": ids, "logprobs": here}
    return {"prompt_token_ids": [99, 100], "prompt_logprobs": None, "outputs": [output]}


def openai_echo(logps, generated=()):
    logprobs = [None, -1.0, *logps, *generated]
    n = len(logprobs)
    written = {
        "tokens": ["t"] * n,
        "token_logprobs": logprobs,
        "top_logprobs": [None, *({"t": x} for x in logprobs[1:])],
        "text_offset": list(range(n)),
    }
    choice = {"index": 0, "text": "...", "logprobs": written, "finish_reason": "length"}
    counts = {"prompt_tokens": 2 + len(logps), "completion_tokens": 1}
    return {"object": "text_completion", "choices": [choice], "usage": counts, **PROMPT}


def openai_echo_and_more(logps):
    return openai_echo(logps, generated=(-0.125,))


def openai_echo_without_usage(logps):
    return {name: value for name, value in openai_echo(logps).items() if name != "usage"}


def openai_completions(logps):
    written = {"tokens": ["t"] * len(logps), "token_logprobs": list(logps), "text_offset": [0]}
    choice = {"index": 0, "text": "x", "logprobs": written, "finish_reason": "stop"}
    return {"object": "text_completion", "choices": [choice]}


def openai_content(logps):
    content = [{"token": "t", "logprob": x, "bytes": [116], "top_logprobs": []} for x in logps]
    logprobs = {"content": content, "refusal": None}
    message = {"role": "assistant", "content": "x"}
    choice = {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": "stop"}
    return {"object": "chat.completion", "choices": [choice]}


def sglang(logps, start=0):
    given = [[None, 99, None], *([x, 100 + i, None] for i, x in enumerate((-1.0, *logps)))]
    given[start][0] = None
    meta = {
        "id": "x",
        "finish_reason": {"type": "length", "length": 1},
        "prompt_tokens": 2 + len(logps),
        "completion_tokens": 1,
        "cached_tokens": 0,
        "input_token_logprobs": given[start:],
        "output_token_logprobs": [[-0.125, 5, None]],
    }
    return {"text": "k", "output_ids": [5], "meta_info": meta, **PROMPT}


def sglang_from_the_prompts_end(logps):
    return sglang(logps, start=1)


def sglang_generated(logps):
    meta = {"id": "x", "prompt_tokens": 2, "completion_tokens": len(logps)}
    generated = [[x, 101, "t"] for x in logps]
    return {
        "text": "x",
        "meta_info": meta | {"input_token_logprobs": [], "output_token_logprobs": generated},
    }


GIVEN = (
    *(vllm_completions, vllm_chat, vllm_offline, vllm_floats),
    *(openai_echo, openai_echo_and_more, openai_echo_without_usage),
    *(sglang, sglang_from_the_prompts_end),
)
GENERATED = (vllm_offline_generated, openai_completions, openai_content, sglang_generated)
EACH_SHAPE = pytest.mark.parametrize("shape", [*GIVEN, *GENERATED], ids=lambda s: s.__name__)


def written(path, *rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def dump(path, shape, n=1, more=()):
    rows = [
        {"pair_id": i, "side": side, **shape((*logps, *more))}
        for i in range(n)
        for side, logps in (("chosen", CHOSEN), ("rejected", REJECTED))
    ]
    return written(path, *rows)


@EACH_SHAPE
def test_one_answer_from_every_shape(tmp_path, shape):
    path = dump(tmp_path / "dump.jsonl", shape)
    assert read(path, "token-dump").collect().rows() == EXPECTED
    assert read(path, "vllm").collect().rows() == EXPECTED


@EACH_SHAPE
def test_a_dump_of_completions(tmp_path, shape):
    rows = [
        {"completion_id": f"{i}", "prompt_id": "p", "label": bool(i), "score": i, **shape(logps)}
        for i, logps in enumerate((CHOSEN, REJECTED))
    ]
    found = read(written(tmp_path / "dump.jsonl", *rows), "token-dump").collect()
    assert found.to_dicts() == [
        {
            "completion_id": f"{i}",
            "policy_logps": logp,
            "num_tokens": n,
            "prompt_id": "p",
            "label": bool(i),
            "score": float(i),
        }
        for i, (logp, n) in enumerate([(-5.0, 2), (-15.0, 3)])
    ]
    as_reference = read(tmp_path / "dump.jsonl", "token-dump", as_reference=True).collect()
    assert as_reference["ref_logps"].to_list() == [-5.0, -15.0]


def test_what_is_written_at_once_in_no_order(tmp_path):
    rows = [
        {"pair_id": f"p{i}", "side": side, "prompt_id": i // 2, **openai_content(logps)}
        for side, logps in (("rejected", REJECTED), ("chosen", CHOSEN))
        for i in (3, 1, 2)
    ]
    found = read(written(tmp_path / "dump.jsonl", *rows), "token-dump").collect()
    assert found["pair_id"].to_list() == ["p3", "p1", "p2"]
    assert found["prompt_id"].to_list() == [1, 0, 1]
    assert found.drop("pair_id", "prompt_id").unique().rows() == [EXPECTED[0][1:]]


@EACH_SHAPE
def test_a_plan_tells_whether_the_text_was_given(tmp_path, shape):
    path = dump(tmp_path / "dump.jsonl", shape)
    said = str(dry_run(evaluate, Pairs(path, format="token-dump"), loss="cpo"))
    kind = "of text that was given" if shape in GIVEN else "of generated tokens"
    assert f"{kind}: 2 lists; 5 tokens" in said


def warned(tmp_path, policy, reference, n=3, more=()):
    """The warnings of an evaluation of two dumps, the reference's with further tokens."""
    pairs = Pairs(dump(tmp_path / "policy.jsonl", policy, n), format="token-dump")
    other = dump(tmp_path / "ref.jsonl", reference, n, more)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        evaluate(pairs, reference=Reference(other, format="token-dump"))
    return " ".join(str(each.message) for each in caught)


def test_one_model_of_each_kind_is_a_warning(tmp_path):
    said = (
        r"ref.jsonl has prompt log-probs, of text that was given, and \S*policy.jsonl those of tok"
    )
    assert re.search(said, warned(tmp_path, openai_content, vllm_chat))
    assert "prompt log-probs" not in warned(tmp_path, openai_content, sglang_generated)
    assert "prompt log-probs" not in warned(tmp_path, openai_echo, sglang)
    a, b = (dump(tmp_path / f"{s.__name__}.jsonl", s, 3) for s in (openai_content, vllm_chat))
    pairs = (Pairs(each, format="token-dump") for each in (a, b))
    with warnings.catch_warnings(action="ignore"):
        found = compare(*pairs, loss="cpo").findings
    assert any("vllm_chat.jsonl has prompt log-probs" in text for text in found)


def test_lists_with_the_end_token_against_lists_without_it(tmp_path):
    said = (
        r"ref.jsonl has one token a list more than \S*policy.jsonl \(28 and 20 tokens in 8 lists\)"
    )
    assert re.search(said, warned(tmp_path, vllm_chat, sglang, 4, more=(-0.5,)))
    assert "token a list" not in warned(tmp_path, vllm_chat, sglang, 4)


def test_a_file_of_both_kinds_is_a_warning(tmp_path):
    rows = [
        {"pair_id": 0, "side": side, **shape(logps)}
        for side, shape, logps in (
            ("chosen", vllm_chat, CHOSEN),
            ("rejected", openai_content, REJECTED),
        )
    ]
    path = written(tmp_path / "dump.jsonl", *rows)
    with pytest.warns(
        UserWarning, match="1 completions have prompt log-probs.* and 1 those of tok"
    ):
        assert read(path, "token-dump").collect().rows() == EXPECTED


def without(row, *keys):
    """A line without the value at a path of keys."""
    row = json.loads(json.dumps(row))
    inner = row
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = None
    return row


def changed(row, value, *keys):
    row = json.loads(json.dumps(row))
    inner = row
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    return row


LOGPROBS = ("choices", 0, "logprobs")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        pytest.param({}, "no log-probs: there is no prompt_logprobs", id="nothing"),
        pytest.param(
            without(openai_content(CHOSEN), *LOGPROBS), "choices.*logprobs is null: ask", id="null"
        ),
        pytest.param(
            without(openai_content(CHOSEN), *LOGPROBS, "content"),
            "logprobs has neither content nor token_logprobs",
            id="no content",
        ),
        pytest.param(
            changed(openai_content(CHOSEN), {"token": "t"}, *LOGPROBS, "content", 1),
            r"logprobs.content\[1\] has no log-prob",
            id="no log-prob in content",
        ),
        pytest.param(
            without(openai_echo(CHOSEN), "prompt_tokens"), "prompt_tokens must be", id="echo"
        ),
        pytest.param(
            {**openai_completions(CHOSEN), **PROMPT}, "does not begin with null", id="no echo"
        ),
        pytest.param(
            changed(openai_echo(CHOSEN), 9, "usage", "prompt_tokens"),
            "usage.prompt_tokens is 9, and there are 4 tokens",
            id="usage",
        ),
        pytest.param(
            changed(openai_echo(CHOSEN), None, *LOGPROBS, "token_logprobs", 3),
            r"token_logprobs\[3\] has no log-prob",
            id="hole in echo",
        ),
        pytest.param(
            without(sglang(CHOSEN), "prompt_tokens"), "prompt_tokens must be", id="sglang"
        ),
        pytest.param(
            changed(sglang(CHOSEN), {"prompt_tokens": 4}, "meta_info"),
            "meta_info has neither input_token_logprobs nor output_token_logprobs",
            id="no log-probs in meta_info",
        ),
        pytest.param(
            sglang(CHOSEN, start=2), "begins after the completion: ask with logprob_start_len=0",
            id="begins late",
        ),
        pytest.param(
            without(vllm_floats(CHOSEN), "prompt_token_ids"), "token ids tell", id="floats, no ids"
        ),
        pytest.param(
            changed(vllm_floats(CHOSEN), {"5": -1.0}, "prompt_logprobs", 3),
            r"prompt_logprobs\[3\] has no token 102",
            id="floats of another token",
        ),
        pytest.param(
            without(vllm_offline_generated(CHOSEN), "outputs", 0, "logprobs"),
            r"outputs\[0\].logprobs is missing: ask with logprobs=0",
            id="offline",
        ),
    ],
)  # fmt: skip
def test_what_is_missing_is_named(tmp_path, row, said):
    line = {"pair_id": 0, "side": "chosen", **row}
    with pytest.raises(ColumnError, match=f"line 1: .*{said}"):
        read(written(tmp_path / "dump.jsonl", line), "token-dump")


def test_what_a_server_clamped_is_minus_infinity_in_every_shape(tmp_path):
    for shape in (vllm_floats, vllm_chat, openai_content, openai_echo, sglang):
        rows = [
            {"pair_id": 0, "side": side, **shape((-9999.0, -1.0))}
            for side in ("chosen", "rejected")
        ]
        found = read(written(tmp_path / "dump.jsonl", *rows), "token-dump").collect()
        assert found[LOGPS[0]].item() == -math.inf
