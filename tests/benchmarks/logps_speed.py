"""Tokens a second and peak memory of scoring, beside the loop that people write.

    python tests/benchmarks/logps_speed.py [--device cuda] [--dtype bfloat16] [--size small|large]

Needs torch, and transformers if it is there; Polars is not used. The plain loop pads batches of
rows as they come, and makes the log-softmax of whole batches in Float32.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import time
import types
from importlib.util import find_spec

if find_spec("polars") is None:  # an accelerator's machine may lack it, and this needs none
    sys.modules["polars"] = types.ModuleType("polars")

import torch

from dpo_pipeline.models.scoring_tokens import Scorer
from dpo_pipeline.models.tokenizing import Completion

SIZES = {
    # vocabulary, hidden, layers, heads, texts, longest
    "small": (32_000, 128, 2, 4, 48, 384),
    "large": (128_256, 2048, 16, 32, 2048, 1024),
}


class Plain(torch.nn.Module):
    """A causal transformer with the face of transformers' models, where these are missing."""

    class Output:
        def __init__(self, logits, hidden):
            self.logits, self.hidden = logits, hidden

        def __getitem__(self, _place):
            return self.hidden

    class Body(torch.nn.Module):
        def __init__(self, n_tokens, hidden, layers, heads):
            super().__init__()
            self.words = torch.nn.Embedding(n_tokens, hidden)
            self.layers = torch.nn.ModuleList(
                torch.nn.TransformerEncoderLayer(
                    hidden, heads, 4 * hidden, 0.0, batch_first=True, norm_first=True
                )
                for _ in range(layers)
            )

        def forward(self, input_ids, attention_mask, use_cache):  # noqa: ARG002
            hidden, n = self.words(input_ids), input_ids.shape[1]
            mask = torch.nn.Transformer.generate_square_subsequent_mask(
                n, device=hidden.device, dtype=hidden.dtype
            )
            for layer in self.layers:
                hidden = layer(hidden, src_mask=mask, is_causal=True)
            return Plain.Output(None, hidden)

    def __init__(self, *size):
        super().__init__()
        self.base_model = Plain.Body(*size)
        self.head = torch.nn.Linear(size[1], size[0], bias=False)
        self.config = types.SimpleNamespace()
        self.config.get_text_config = lambda: self.config

    def get_output_embeddings(self):
        return self.head

    def get_input_embeddings(self):
        return self.base_model.words

    def forward(self, **given):
        hidden = self.base_model(**given)[0]
        return Plain.Output(self.head(hidden), hidden)


def make_model(size, device, dtype):
    n_tokens, hidden, layers, heads, *_ = SIZES[size]
    torch.manual_seed(0)
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError:
        return Plain(n_tokens, hidden, layers, heads).to(device, dtype).eval(), "plain"
    config = LlamaConfig(
        vocab_size=n_tokens,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=max(heads // 4, 1),
    )
    with torch.device(device):
        return LlamaForCausalLM(config).to(dtype).eval(), "llama"


def make_texts(size):
    """Return texts whose lengths spread as those of chats: half of it is prompt."""
    n_tokens, _, _, _, n, longest = SIZES[size]
    rng, made = random.Random(0), []
    for _ in range(n):
        length = min(longest, 16 + int(rng.lognormvariate(0, 0.8) * longest / 4))
        ids = tuple(rng.randrange(n_tokens) for _ in range(length))
        made.append(Completion(ids, length // 2))
    return made


def plain_loop(model, texts, device, rows):
    """Score as people do: batches of rows as they come, padded, all logits in Float32."""
    found = []
    with torch.inference_mode():
        for first in range(0, len(texts), rows):
            some = texts[first : first + rows]
            longest = max(len(each.ids) for each in some)
            ids = torch.zeros((len(some), longest), dtype=torch.long)
            mask = torch.zeros_like(ids)
            scored = torch.zeros_like(ids)
            for i, each in enumerate(some):
                ids[i, : len(each.ids)] = torch.tensor(each.ids)
                mask[i, : len(each.ids)] = 1
                scored[i, each.start : len(each.ids)] = 1
            ids, mask, scored = ids.to(device), mask.to(device), scored.to(device)
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            logps = logits[:, :-1].float().log_softmax(-1)
            own = logps.gather(2, ids[:, 1:, None]).squeeze(2) * scored[:, 1:]
            found += own.sum(1).tolist()
    return found


def measured(device, work):
    """Return what a call gives, its seconds, and the memory that it took at most, in MiB."""
    is_far = device != "cpu"
    if is_far:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    clock = time.perf_counter if is_far else time.process_time
    began = clock()
    made = work()
    if is_far:
        torch.cuda.synchronize()
    seconds = clock() - began
    if is_far:
        return made, seconds, (torch.cuda.max_memory_allocated() - before) / 2**20
    return made, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--only", choices=("ours", "loop"))
    parser.add_argument("--rounds", type=int, default=2)
    asked = parser.parse_args()
    dtype = getattr(torch, asked.dtype)
    model, kind = make_model(asked.size, asked.device, dtype)
    texts = make_texts(asked.size)
    n = sum(len(each.ids) for each in texts)
    rows = max(asked.tokens // SIZES[asked.size][-1], 1)
    ways = {
        "ours": lambda: Scorer(model, pad=0, budget=asked.tokens).sums(texts),
        "loop": lambda: plain_loop(model, texts, asked.device, rows),
    }
    ways = {name: way for name, way in ways.items() if asked.only in (None, name)}
    told = {
        "model": kind,
        "weights": sum(each.numel() for each in model.parameters()),
        **vars(asked),
        "texts": len(texts),
        "text_tokens": n,
        "rows_of_the_loop": rows,
    }
    sums = {}
    if asked.device != "cpu":  # its kernels are made ready
        for way in ways.values():
            way()
    for i in range(asked.rounds):
        for name in list(ways) if i % 2 == 0 else list(ways)[::-1]:
            sums[name], seconds, memory = measured(asked.device, ways[name])
            told.setdefault(f"{name}_tokens_per_s", []).append(round(n / seconds))
            told.setdefault(f"{name}_peak_mib", []).append(round(memory))
    if asked.only is None:
        few = texts[:: max(len(texts) // 16, 1)]
        alone = Scorer(model, pad=0, budget=1).sums(few)
        together = Scorer(model, pad=0, budget=asked.tokens).sums(few)
        apart = sorted(abs(a - b) for a, b in zip(alone, together, strict=True))
        told["batched_or_alone_nats"] = {"median": apart[len(apart) // 2], "largest": apart[-1]}
        off = sorted(abs(a - b) for a, b in zip(sums["ours"], sums["loop"], strict=True))
        told["ours_or_loop_nats"] = {"median": off[len(off) // 2], "largest": off[-1]}
        told["median_logp"] = sorted(alone)[len(alone) // 2]
    sys.stdout.write(f"{json.dumps(told)}\n")


if __name__ == "__main__":
    main()
