"""Small models with a byte-level tokenizer that merges, and texts for them, all from seeds."""

from __future__ import annotations

import os
import random
import subprocess
import sys

LINES = [
    "What is the colour of the sky? It is blue. ",
    "Tell me a story about a fox and a dog. Once upon a time ",
    "No, I will not do that. Yes, of course! ",
] * 20
WORDS = sorted({word for line in LINES for word in line.split()})
TEMPLATE = (
    "{% if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def text(rng, fewest, most):
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(fewest, most)))


def plain_pairs(n=24, seed=1):
    """Return pairs of text whose prompts end in a space: it merges with the first word."""
    rng = random.Random(seed)
    return [
        {
            "pair_id": i,
            "prompt": f"{text(rng, 2, 9)} ",
            "chosen": text(rng, 1, 12),
            "rejected": text(rng, 1, 14),
        }
        for i in range(n)
    ]


def implicit_pairs(n=24, seed=1):
    """Return pairs of two whole dialogues, as hh-rlhf has them."""
    return [
        {
            side: f"\n\nHuman: {pair['prompt']}\n\nAssistant: {pair[side]}"
            for side in ("chosen", "rejected")
        }
        for pair in plain_pairs(n, seed)
    ]


def chat_pairs(n=24, seed=1, *, implicit=False):
    """Return pairs of conversations."""
    rng = random.Random(seed)
    made = []
    for _ in range(n):
        ask = [{"role": "user", "content": text(rng, 2, 9)}]
        chosen, rejected = (
            [{"role": "assistant", "content": text(rng, 1, 12)}] for _ in ("chosen", "rejected")
        )
        if implicit:
            made.append({"chosen": ask + chosen, "rejected": ask + rejected})
        else:
            made.append({"prompt": ask, "chosen": chosen, "rejected": rejected})
    return made


def make_tokenizer(kind="gpt2"):
    """Return a tokenizer of some 330 tokens with a ChatML template.

    It is byte-level BPE that merges spaces, as of GPT-2; for `qwen2` with an end of its own; for
    `llama` it is BPE of words with a space in front of each, and a token at the start of all.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    made = Tokenizer(models.BPE())
    if kind == "llama":
        special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        made.decoder = decoders.Metaspace()
        letters = sorted(set("".join(LINES)))
    else:
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=letters)
    made.train_from_iterator(LINES, trainer)
    end = {"llama": "</s>", "qwen2": "<|im_end|>"}.get(kind, special[0])
    begin = special[0] if kind == "llama" else None
    if begin:
        made.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, 0)]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=begin, eos_token=end, pad_token=special[0]
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_model(seed, kind="gpt2", **settings):
    """Return a model of some 50,000 weights, spread widely so that its log-probs differ."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    size = {
        "gpt2": {"n_positions": 256, "n_embd": 32, "n_layer": 2, "n_head": 2},
        "llama": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
        },
        "qwen2": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "tie_word_embeddings": True,
        },
        "gemma2": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 16,
        },
    }[kind]
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        kind,
        vocab_size=336,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        **{"initializer_range": 0.3, **size, **settings},
    )
    return AutoModelForCausalLM.from_config(config).eval()


def save_models(folder, kind="gpt2"):
    """Save a policy and a reference with their tokenizer, and return their folders."""
    made = []
    for name, seed in (("policy", 1), ("ref", 2)):
        make_model(seed, kind).save_pretrained(folder / name)
        make_tokenizer().save_pretrained(folder / name)
        made.append(str(folder / name))
    return made


def by_hand(model, ids, start):
    """Return the log-prob of ids from `start` on, one at a time, by Python's own arithmetic."""
    import math

    import torch

    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0].double().tolist()
    total = 0.0
    for place in range(max(start, 1), len(ids)):
        row = logits[place - 1]
        most = max(row)
        total += row[ids[place]] - most - math.log(sum(math.exp(each - most) for each in row))
    return total


def make_models_of_the_guide(folder):
    """Save what the guide names: `tuned`, a copy of `base` that saw the texts, and the texts."""
    import polars as pl
    import torch

    tokenizer, model = make_tokenizer(), make_model(2, initializer_range=0.05)
    rows = plain_pairs()
    for name in ("base", "tuned"):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        for row in rows:
            losses = []
            for side in ("chosen", "rejected"):
                ids = torch.tensor([tokenizer(row["prompt"] + row[side])["input_ids"]])
                losses.append(model(input_ids=ids, labels=ids).loss)
            optimizer.zero_grad()
            (losses[0] - 0.5 * losses[1]).backward()
            optimizer.step()
    pl.DataFrame(rows).write_ndjson(folder / "texts.jsonl")
    pl.DataFrame(rows).write_parquet(folder / "texts.parquet")


def run_apart(script, arguments, *, processes=1):
    """Run a script with these tools in processes of its own, with gloo where there are several."""
    launch = ["-c", f"import sys; sys.path[:0] = {sys.path!r}\n{script}"]
    if processes > 1:
        path = os.path.join(str(arguments[0]), "script.py")
        with open(path, "w", encoding="utf-8") as file:
            file.write(launch[1])
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        launch += [path]
    done = subprocess.run(
        [sys.executable, *launch, *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
