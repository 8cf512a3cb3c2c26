"""Where the four columns come from: from texts to scored pairs, with a tiny model made here.

    pip install ".[example]" && python examples/from_text.py

A GPT-2 of a few thousand weights is made on the spot and is the reference; the policy is a copy of
it that saw the chosen completions a few times. With models of your own, `log_probs` stays as it is.
"""

from __future__ import annotations

import copy
from typing import Any

import polars as pl
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import dpo_pipeline
from dpo_pipeline import Outputs

PAIRS = [
    {"prompt": f"How do I {task}?", "chosen": f" {good}.", "rejected": f" {bad}."}
    for task, good, bad in (
        ("boil an egg", "Eight minutes in boiling water, then cold water", "Eggs cannot be boiled"),
        ("fix a flat tyre", "Find the hole, clean it, glue a patch on", "Buy a new bicycle"),
        ("learn to swim", "Take lessons, and start where you can stand", "Jump into the sea"),
        ("write a letter", "Begin with whom it is for and what you want", "Nobody writes letters"),
        ("plant a tree", "Dig twice as wide as the roots, and water it", "Trees plant themselves"),
        ("stay awake", "Sleep well the night before, and take walks", "Just do not sleep, ever"),
        ("save money", "Write down what you spend, and spend less", "Stop eating"),
        ("tune a guitar", "Tune each string to the one before it", "Turn the pegs until it hums"),
    )
]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer that was trained on the texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator((text for pair in PAIRS for text in pair.values()), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<eos>",
        pad_token="<pad>",
    )


def make_models(tokenizer: PreTrainedTokenizerFast) -> tuple[GPT2LMHeadModel, GPT2LMHeadModel]:
    """Return a policy and its reference."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=128,
        n_embd=32,
        n_layer=2,
        n_head=2,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.eos_token_id,
    )
    reference = GPT2LMHeadModel(config).eval()
    policy = copy.deepcopy(reference)
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    for pair in 3 * PAIRS:
        ids, start = encode(tokenizer, pair["prompt"], pair["chosen"])
        optimizer.zero_grad()
        token_logps(policy, ids, start).sum().neg().backward()
        optimizer.step()
    return policy, reference


def encode(tokenizer: Any, prompt: str, completion: str) -> tuple[torch.Tensor, int]:
    """Return the tokens of prompt, completion and end of text, and where the completion begins."""
    start = len(tokenizer(prompt)["input_ids"])
    ids = tokenizer(prompt + completion)["input_ids"] + [tokenizer.eos_token_id]
    return torch.tensor([ids]), start


def token_logps(model: Any, ids: torch.Tensor, start: int) -> torch.Tensor:
    """Return the log-prob of each token of the completion, in nats.

    The logits at a place are those of the next token, and sums are made in Float32 at least.
    """
    logps = model(ids).logits[0, :-1].float().log_softmax(-1)
    return logps.gather(-1, ids[0, 1:, None]).squeeze(-1)[start - 1 :]


def log_probs(policy: Any, reference: Any, tokenizer: Any) -> pl.DataFrame:
    """Return one row a pair: the four log-probs, summed over the completion, and token counts."""
    rows = []
    for number, pair in enumerate(PAIRS):
        row: dict[str, float] = {"pair_id": number}
        for side in ("chosen", "rejected"):
            ids, start = encode(tokenizer, pair["prompt"], pair[side])
            row[f"{side}_num_tokens"] = ids.shape[1] - start
            with torch.no_grad():
                for name, model in (("policy", policy), ("ref", reference)):
                    row[f"{name}_{side}_logps"] = float(token_logps(model, ids, start).sum())
        rows.append(row)
    return pl.DataFrame(rows)


def main() -> None:
    """Go the whole way."""
    tokenizer = make_tokenizer()
    policy, reference = make_models(tokenizer)
    log_probs(policy, reference, tokenizer).write_parquet("from_text.parquet")
    result = dpo_pipeline.score_parquet(
        "from_text.parquet", "from_text.scored.parquet", beta=0.1, outputs=Outputs(overwrite=True)
    )
    print(result)


if __name__ == "__main__":
    main()
