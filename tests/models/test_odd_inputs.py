"""What people really hand in: everything that is wrong is said, and nothing is a traceback."""

from __future__ import annotations

import json
import shutil

import polars as pl
import pytest

import model_tools
from dpo_pipeline.cli.program import main

pytestmark = [pytest.mark.models, pytest.mark.filterwarnings("default")]
torch = pytest.importorskip("torch")

ASK, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
OTHER = {"role": "assistant", "content": "no"}
SYSTEM = {"role": "system", "content": "Be kind."}
CALL = {"type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a policy, a reference, and models that lack something."""
    folder = tmp_path_factory.mktemp("odd")
    model_tools.save_models(folder)
    for name in ("no-tokenizer", "no-weights", "half-weights", "no-head", "no-config"):
        shutil.copytree(folder / "policy", folder / name)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / "no-tokenizer" / file).unlink()
    (folder / "no-weights" / "model.safetensors").unlink()
    (folder / "no-config" / "config.json").unlink()
    weights = folder / "half-weights" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:3000])
    from safetensors.torch import load_file, save_file

    whole = load_file(folder / "policy" / "model.safetensors")
    some = {name: each for name, each in whole.items() if "h.1." not in name}
    save_file(some, folder / "no-head" / "model.safetensors", metadata={"format": "pt"})
    model_tools.make_model(2, "llama").save_pretrained(folder / "llama")
    model_tools.make_tokenizer("llama").save_pretrained(folder / "llama")
    return folder


@pytest.fixture
def ask(place, tmp_path, monkeypatch, capsys):
    """Write rows as JSON lines, score them, and return the code, what was said, and the rows."""
    monkeypatch.chdir(place)

    def ask(rows, *more, policy="policy"):
        texts, out = tmp_path / "texts.jsonl", tmp_path / "out.parquet"
        texts.write_text("".join(json.dumps(row) + "\n" for row in rows))
        out.unlink(missing_ok=True)
        words = ["logps", str(texts), str(out), "--policy", policy, *more]
        code = main(words)
        said = " ".join("".join(capsys.readouterr()).split())
        return code, said, pl.read_parquet(out) if out.exists() else None

    return ask


PLAIN = {"prompt": "Tell me", "chosen": " a story", "rejected": " no"}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"chosen": ""},
            "in 1 row the chosen completion is empty: its log-prob is that of the end",
        ),
        ({"chosen": None}, "in 1 row there is no text, and so no log-prob"),
        ({"prompt": ""}, "in 1 row nothing stands before the completion: its first token has no"),
        (
            {"prompt": "", "chosen": ""},
            "in 1 row the chosen completion has no token with a log-prob: it is null",
        ),
        ({"chosen": " no"}, "in 1 row chosen and rejected are the same tokens"),
        ({"prompt": [ASK]}, "in 1 row conversations are written as JSON: they are scored as that"),
        ({"chosen": " dog" * 3000}, "in 1 row the longest length cuts the chosen completion short"),
        (
            {"prompt": "fox " * 3000},
            "in 1 row the longest length cuts the rejected completion away whole",
        ),
    ],
)
def test_what_is_odd_in_a_text_is_said(ask, row, said):
    code, found, rows = ask([PLAIN, PLAIN | row], "--max-length", "200")
    assert code == 0
    assert said in found
    assert rows["policy_rejected_logps"][0] is not None
    if "no token" in said:
        assert rows["policy_chosen_logps"][1] is None


def test_log_probs_of_any_characters_are_those_by_hand(ask):
    """Emoji whose parts stand on both sides of the border, marks, and a null character."""
    rows = [
        {"prompt": "Say 👩‍👩‍👧", "chosen": "👧🏽 yes", "rejected": "‍👧 no"},
        {"prompt": "日本", "chosen": "\u0301x\x00", "rejected": "\ufeffb\u2028"},
    ]
    code, _, made = ask([*rows, *rows])
    assert code == 0
    model, tokenizer = model_tools.make_model(1), model_tools.make_tokenizer()
    for row, found in zip(rows, made.iter_rows(named=True), strict=False):
        prompt = tokenizer(row["prompt"])["input_ids"]
        for side in ("chosen", "rejected"):
            ids = tokenizer(row["prompt"] + row[side] + "<|endoftext|>")["input_ids"]
            expected = model_tools.by_hand(model, ids, len(prompt))
            assert ids[: len(prompt)] == prompt
            assert found[f"policy_{side}_logps"] == pytest.approx(expected, rel=2e-6)
    assert made[0, "policy_chosen_logps"] == pytest.approx(made[2, "policy_chosen_logps"], abs=1e-4)


def test_system_messages_and_tools_are_part_of_the_prompt(ask):
    plain = {"prompt": [ASK], "chosen": [ANSWER], "rejected": [OTHER]}
    call = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    rows = [plain | {"prompt": [SYSTEM, ASK], "tools": TOOLS}, plain | {"rejected": [call]}]
    code, said, made = ask(rows)
    assert (code, "note" in said) == (0, False)
    tokenizer = model_tools.make_tokenizer()
    both = [SYSTEM, ASK, ANSWER]
    ids = tokenizer.apply_chat_template(both, tools=TOOLS)["input_ids"]
    assert "tools" in tokenizer.decode(ids)
    start = len(ids) - made[0, "chosen_num_tokens"]
    expected = model_tools.by_hand(model_tools.make_model(1), ids, start)
    assert made[0, "policy_chosen_logps"] == pytest.approx(expected, rel=2e-6)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([PLAIN | {"chosen": None}], "chosen: must be text, or lists of messages with role and"),
        ([PLAIN | {"chosen": 1}], "chosen: must be text, or lists of messages with role and"),
        ([PLAIN | {"chosen": ["a", "b"]}], "chosen: must be text, or lists of messages with role"),
        (
            [{"chosen": [{"from": "gpt", "value": "a"}], "rejected": [{"from": "gpt"}]}],
            "chosen: must be text, or lists of messages with role and content, found List(Struct",
        ),
        ([PLAIN | {"chosen": [ANSWER]}], "prompt: must be a conversation as chosen is"),
        ([], "there is none"),
        ([PLAIN | {"policy_chosen_logps": -1.0}], "the input has this column already"),
    ],
)
def test_rows_that_are_no_texts_are_refused(ask, rows, said):
    code, found, made = ask(rows)
    assert code in (1, 3)
    assert said in found
    assert made is None


@pytest.mark.parametrize(
    ("models", "code", "said"),
    [
        (["no-tokenizer"], 3, "no-tokenizer: has no tokenizer: its files are missing"),
        (["no-weights"], 3, "no-weights: cannot be loaded as a language model: Error no file"),
        (["half-weights"], 3, "half-weights: cannot be loaded as a language model"),
        (["no-head"], 3, "of its weights, such as transformer.h.1.attn.c_attn.bias, which would"),
        (["no-config"], 3, "no-config: holds no model of transformers: it has no config.json"),
        (["nowhere"], 3, "nowhere: is no folder here, and no model on the hub or in its cache"),
        (["policy", "--reference", "llama"], 2, "it is no reference of this policy"),
        (["policy", "--device", "cuda:77"], 2, "device 'cuda:77' cannot be used"),
    ],
)
def test_models_that_lack_something_are_refused(ask, models, code, said):
    policy, *more = models
    found = ask([PLAIN], *more, policy=policy)
    assert (found[0], found[2]) == (code, None)
    assert said in found[1]
    assert "Traceback" not in found[1]


def test_bfloat16_and_a_reference_without_tokenizer(ask):
    code, said, made = ask([PLAIN], "--dtype", "bfloat16", "--reference", "no-tokenizer")
    assert (code, "policy (bfloat16)" in said) == (0, True)
    assert made["policy_chosen_logps"].to_list() == made["ref_chosen_logps"].to_list()
    exact = ask([PLAIN])[2]["policy_chosen_logps"][0]
    assert 0 < abs(made["policy_chosen_logps"][0] - exact) < 0.3
