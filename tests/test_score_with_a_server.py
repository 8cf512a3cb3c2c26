"""The recipe that asks a server, against stand-ins that answer as vLLM and SGLang do."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import polars as pl
import pytest

from dpo_pipeline import read
from dpo_pipeline.cli.program import main as dpo_pipeline
from pair_tools import EXAMPLES, LOGPS

TOKENS = ["<s>", "Say", " a", " b", " ", "a", "!", "</s>"]
"""A prompt that ends in a space loses it to the word after it."""
LOGPROBS = {
    "tuned": dict(zip(TOKENS, [None, -7.0, -0.5, -2.0, -3.0, -9.0, -1.25, -0.125], strict=True)),
    "base": dict(zip(TOKENS, [None, -6.0, -1.0, -1.75, -2.5, -8.0, -1.5, -0.25], strict=True)),
}
PAIRS = [
    {"pair_id": "x", "prompt": "Say", "chosen": " a!", "rejected": " b</s>"},
    {"pair_id": "y", "prompt": "Say ", "chosen": "a", "rejected": "!"},
]
# The prompt of y is <s>, Say and a space; with the chosen text it is <s>, Say, " a". So both sides
# begin after Say, and the rejected one counts its space.
SUMS = {
    "tuned": [
        ("x", -0.5 - 1.25 - 0.125, -2.0 - 0.125, 3, 2),
        ("y", -0.5 - 0.125, -3.0 - 1.25 - 0.125, 2, 3),
    ],
    "base": [
        ("x", -1.0 - 1.5 - 0.25, -1.75 - 0.25, 3, 2),
        ("y", -1.0 - 0.25, -2.5 - 1.5 - 0.25, 2, 3),
    ],
}
MERGED = "2 pairs; in 1 the end of the prompt merges with a completion"


def tokenize(text, *, add_special=True):
    found = re.findall("|".join(map(re.escape, sorted(TOKENS, key=len, reverse=True))), text)
    assert "".join(found) == text
    return ["<s>", *found] if add_special else found


def of_tokens(model, tokens):
    """Return the log-probs of tokens, the first one's being null."""
    return [None, *(LOGPROBS[model][token] or -9.5 for token in tokens[1:])]


class Answers(BaseHTTPRequestHandler):
    """Answers as vLLM from 0.10.2 on and SGLang 0.5 do; `server.stand_in` says what goes wrong."""

    def log_message(self, *_):
        pass

    def send(self, code, answer):
        body = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        assert self.path == "/get_model_info"
        self.send(200, {"model_path": self.server.stand_in.model, "is_generation": True})

    def do_POST(self):
        stand_in = self.server.stand_in
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize":  # of SGLang 0.5 and vLLM
            found = tokenize(body["prompt"], add_special=body["add_special_tokens"])
            ids = [TOKENS.index(token) for token in found]
            self.send(200, {"tokens": ids, "count": len(ids), "max_model_len": 4096})
            return
        text = body.get("prompt", body.get("text"))
        if text is None:
            text = "".join(TOKENS[each] for each in body["input_ids"])
            body["add_special_tokens"] = False
        stand_in.asked.append(text)
        if stand_in.failures:
            failure = stand_in.failures.pop()
            if failure == "closed":
                self.close_connection = True
            elif failure == "cut":
                self.wfile.write(b'HTTP/1.0 200 OK\r\n\r\n{"choices": [')
            else:
                self.send(failure, {"error": {"message": "overloaded"}})
        elif text in stand_in.too_long:
            self.send(400, {"error": {"message": "maximum context length is 4 tokens"}})
        else:
            tokens = tokenize(text, add_special=body.get("add_special_tokens", True))
            answer = {"/v1/completions": self.vllm, "/generate": self.sglang}[self.path]
            answer(body, tokens, [TOKENS.index(token) for token in tokens])

    def vllm(self, body, tokens, ids):
        if body["max_tokens"] < 1:
            self.send(400, {"error": {"message": "max_tokens must be at least 1, got 0."}})
            return
        logprobs = [
            value and {str(key): {"logprob": value, "rank": 1, "decoded_token": token}}
            for key, token, value in zip(ids, tokens, of_tokens(body["model"], tokens), strict=True)
        ]
        is_asked = "prompt_logprobs" in body and not self.server.stand_in.is_silent
        choice = {
            "index": 0,
            "text": "a",
            "logprobs": None,
            "finish_reason": "length",
            "stop_reason": None,
            "prompt_logprobs": logprobs if is_asked else None,
            "prompt_token_ids": ids if body.get("return_token_ids") else None,
            "token_ids": [5],
            "routed_experts": None,
        }
        usage = {"prompt_tokens": len(ids), "completion_tokens": 1, "total_tokens": len(ids) + 1}
        answer = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": body["model"]}
        nulls = dict.fromkeys(["service_tier", "system_fingerprint", "kv_transfer_params"])
        self.send(200, {**answer, "choices": [choice], **nulls, "usage": usage})

    def sglang(self, body, tokens, ids):
        stand_in = self.server.stand_in
        meta = {"id": "1", "finish_reason": {"type": "length", "length": 0}}
        meta |= {"prompt_tokens": len(ids), "completion_tokens": 0, "cached_tokens": 0}
        meta |= {"weight_version": "default", "num_retractions": 0, "e2e_latency": 0.01}
        if body.get("return_logprob") and not stand_in.is_silent:
            start = body.get("logprob_start_len", len(ids) - 1)
            values = of_tokens(stand_in.model, tokens)
            scored = [[value, key, None] for value, key in zip(values, ids, strict=True)]
            meta |= {"input_token_logprobs": [[None, ids[start], None], *scored[start + 1 :]]}
            meta |= {"output_token_logprobs": []}
        self.send(200, {"text": "", "output_ids": [], "meta_info": meta})


class StandIn:
    def __init__(self, model):
        self.model, self.asked, self.failures, self.too_long = model, [], [], set()
        self.is_silent = False


@contextmanager
def running(model):
    stand_in = StandIn(model)
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        server.stand_in = stand_in
        stand_in.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield stand_in
        server.shutdown()
        thread.join()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with running("tuned") as stand_in:
        yield stand_in


@pytest.fixture(scope="module")
def recipe():
    path = EXAMPLES / "score_with_a_server.py"
    spec = importlib.util.spec_from_file_location("score_with_a_server", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclass looks for its annotations
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    return path


@pytest.fixture
def ask(recipe, texts, capsys):
    def ask(server, *more, api="vllm", model="tuned", data=texts, name="policy.jsonl"):
        output = texts.parent / name
        given = ["--server", server.url, "--model", model, "--api", api, "--wait", "0"]
        code = recipe.main([str(data), str(output), *given, "--end", "</s>", *more])
        out, err = capsys.readouterr()
        return output, code, out + err

    return ask


def left(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != "pairs.jsonl")


@pytest.mark.parametrize("api", ["vllm", "sglang"])
def test_sums_are_those_of_the_servers_tokens(ask, server, api):
    path, code, said = ask(server, api=api)
    assert (code, said) == (0, f"{path}: {MERGED}\n")
    assert read(path, "token-dump").collect().rows() == SUMS["tuned"]
    assert left(path.parent) == ["policy.jsonl"]


@pytest.mark.parametrize("api", ["vllm", "sglang"])
def test_a_template_puts_the_first_token_into_the_text_and_the_server_does_not(
    ask, server, texts, api
):
    rows = [pair | {"prompt": f"<s>{pair['prompt']}"} for pair in PAIRS]
    texts.write_text("\n".join(map(json.dumps, rows)))
    path, code, said = ask(server, api=api)
    assert code == 1
    assert "pair 'x': the text begins with token 0 twice" in said
    path, code, said = ask(server, "--no-special-tokens", api=api)
    assert (code, said) == (0, f"{path}: {MERGED}\n")
    assert read(path, "token-dump").collect().rows() == SUMS["tuned"]


def test_two_dumps_are_a_verdict(ask, server, capsys):
    policy, code, _ = ask(server)
    assert code == 0
    with running("base") as base:
        reference, code, _ = ask(base, api="sglang", model="base", name="ref.jsonl")
    assert code == 0
    given = ["--format", "token-dump", "--reference-format", "token-dump", "--json", "--quiet"]
    assert dpo_pipeline(["evaluate", str(policy), "--reference", str(reference), *given]) == 0
    found = json.loads(capsys.readouterr().out)["metrics"]
    # Log-ratios: 0.875 and -0.125 of x, 0.625 and -0.125 of y; beta is 0.1.
    expected = {
        "rewards/chosen": 0.075,
        "rewards/rejected": -0.0125,
        "rewards/margins": 0.0875,
        "rewards/accuracies": 1.0,
        "loss": (math.log1p(math.exp(-0.1)) + math.log1p(math.exp(-0.075))) / 2,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)


def test_parquet_and_prompt_ids(ask, server, tmp_path):
    data = tmp_path / "pairs.parquet"
    pl.DataFrame([{**pair, "prompt_id": 7, "note": "n"} for pair in PAIRS]).write_parquet(data)
    path, code, _ = ask(server, data=data)
    assert code == 0
    rows = read(path, "token-dump").collect()
    assert rows.select("pair_id", *LOGPS[:2]).rows() == [row[:3] for row in SUMS["tuned"]]
    assert rows["prompt_id"].to_list() == [7, 7]


@pytest.mark.parametrize("failure", [503, 429, "closed", "cut"])
def test_a_request_that_fails_once_is_tried_again(ask, server, failure):
    server.failures = [failure]
    path, code, said = ask(server)
    assert code == 0, said
    assert read(path, "token-dump").collect().rows() == SUMS["tuned"]
    assert len(server.asked) == 7


def test_tries_end(ask, server):
    server.failures = [500] * 99
    path, code, said = ask(server, "--tries", "3", "--workers", "1")
    assert code == 1
    assert f"no answer from {server.url}/v1/completions in 3 tries: HTTP 500" in said
    assert not path.exists()


@pytest.mark.parametrize(
    ("api", "where"),
    [("vllm", "choices[0].prompt_logprobs"), ("sglang", "meta_info.input_token_logprobs")],
)
def test_a_server_without_log_probs_is_named(ask, server, api, where):
    server.is_silent = True
    path, code, said = ask(server, api=api)
    assert code == 1
    assert f"error: pair 'x': the server answered without log-probs: {where} is missing" in said
    assert not path.exists()


def test_another_model_is_refused(ask, server):
    _, code, said = ask(server, api="sglang", model="base")
    assert (code, said) == (1, "error: the server's model is 'tuned', and not 'base'\n")
    assert not server.asked


def test_a_run_that_stopped_goes_on(ask, server, texts):
    texts.write_text("\n".join(map(json.dumps, reversed(PAIRS))))
    server.too_long = {"Say b</s>"}
    path, code, said = ask(server)
    assert code == 1
    assert "pair 'x': the server refused a request: HTTP 400" in said
    (part,) = left(path.parent)
    assert re.fullmatch(r"\.policy\.jsonl\.[0-9a-f]{12}\.part", part)
    whole = (path.parent / part).read_text()
    assert len(whole.splitlines()) == 2
    # Killed while it wrote the second line of the next pair.
    half = whole.replace('"y"', '"x"')[:-9]
    (path.parent / part).write_text(whole + half)
    server.too_long, server.asked = set(), []
    _, code, said = ask(server)
    resumed = MERGED.replace("pairs;", "pairs, 1 of them of an earlier run;")
    assert (code, said) == (0, f"{path}: {resumed}\n")
    assert server.asked == ["Say", "Say a!</s>", "Say b</s>"]
    assert read(path, "token-dump").collect().rows() == SUMS["tuned"][::-1]
    assert left(path.parent) == ["policy.jsonl"]


def test_a_run_of_another_model_does_not_go_on(ask, server):
    server.too_long = {"Say !</s>"}
    assert ask(server)[1] == 1
    server.too_long = set()
    path, code, said = ask(server, model="base")
    assert (code, said) == (0, f"{path}: {MERGED}\n")
    assert read(path, "token-dump").collect().rows() == SUMS["base"]


def test_an_output_is_replaced_when_it_is_asked_for(ask, server):
    path, _, _ = ask(server, model="base")
    _, code, said = ask(server)
    assert (code, said) == (1, f"error: {path} exists; --overwrite replaces it\n")
    assert ask(server, "--overwrite")[1] == 0
    assert read(path, "token-dump").collect().rows() == SUMS["tuned"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pair_id": None}, "row 1: pair_id must be a number or a string, found None"),
        ({"pair_id": "x"}, "row 1: pair_id 'x' is there a second time"),
        ({"chosen": [{"role": "user"}]}, "pair 'y': chosen must be text, found list"),
        ({"prompt": ""}, "pair 'y': an empty prompt, so that the first token has no log-prob"),
    ],
)
def test_texts_are_checked_before_the_server_is_asked(ask, server, texts, changes, said):
    rows = [PAIRS[0], {**PAIRS[1], **changes}]
    texts.write_text("\n".join(map(json.dumps, rows)))
    _, code, found = ask(server)
    assert (code, found) == (1, f"error: {said}\n")
    assert not server.asked
