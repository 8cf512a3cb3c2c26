"""Makes the samples beside it, from the real pairs one folder up.

python make.py trl             with datasets (made with 5.2.0)
python make.py open-instruct   with torch (made with 2.13)
python make.py duckdb          with duckdb (made with 2.0.1)
python make.py text            RewardBench's and vLLM's layouts, with nothing but Polars
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import polars as pl

HERE = Path(__file__).parent
PAIRS = pl.read_parquet(HERE.parent / "hh_harmless_policy_a_test.parquet").head(8)
TOKENS = HERE.parent / "hh_harmless_policy_a_test_tokens.parquet"


def duckdb():
    """Parquet with columns of types that Polars does not read, and other writers do not write."""
    import duckdb as db

    pairs = PAIRS.to_arrow()  # noqa: F841  DuckDB finds it by its name
    for name, odd in (("interval", "interval 1 day"), ("variant", "{'a': 1}::variant")):
        to = f"to '{HERE / f'duckdb_{name}.parquet'}'"
        db.sql(f"copy (select *, {odd} as odd from pairs) {to}")


def trl():
    """A dataset as TRL's DPOTrainer leaves it, with the log-probs of a tiny model made here."""
    import tempfile

    import datasets
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers
    from trl import DPOConfig, DPOTrainer

    end, unknown = "[end]", "[unknown]"
    words = [end, unknown, *(f"w{i}" for i in range(30))]
    numbers = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=end, pad_token=end, unk_token=unknown
    )
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=len(words), n_positions=64, n_embd=8, n_layer=1, n_head=1, initializer_range=0.5
    )
    model = transformers.GPT2LMHeadModel(config)
    rows = [
        {
            "prompt": f"w{i} w{i + 1}",
            "chosen": " " + " ".join(f"w{(i * 7 + k) % 30}" for k in range(5 + i)),
            "rejected": " " + " ".join(f"w{(i * 3 + k * k) % 30}" for k in range(9 - i)),
        }
        for i in range(8)
    ]
    with tempfile.TemporaryDirectory() as folder:
        trainer = DPOTrainer(
            model=model,
            args=DPOConfig(
                output_dir=folder,
                precompute_ref_log_probs=True,
                per_device_train_batch_size=3,
                report_to=[],
                use_cpu=True,
                bf16=False,
            ),
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        trainer.get_train_dataloader()
        dataset = trainer.train_dataset
    dataset.save_to_disk(HERE / "trl_dataset", num_shards=2)
    names = ("ref_chosen_logps", "ref_rejected_logps")
    (HERE / "trl_dataset.json").write_text(json.dumps({n: list(dataset[n]) for n in names}))


def open_instruct():
    """As open-instruct's TensorCache.to_disk; index 5 was not computed."""
    import torch

    tensors = {
        f"{side}_logps": torch.tensor(PAIRS[f"ref_{side}_logps"].to_list(), dtype=torch.float32)
        for side in ("chosen", "rejected")
    }
    for tensor in tensors.values():
        tensor[5] = -math.inf
    torch.save(tensors, HERE / "open_instruct.pt")
    counts = {side: PAIRS[f"{side}_num_tokens"].to_list() for side in ("chosen", "rejected")}
    averaged = {f"{s}_logps": tensors[f"{s}_logps"] / torch.tensor(counts[s]) for s in counts}
    torch.save(averaged, HERE / "open_instruct_averaged.pt")


def text():
    """RewardBench's three files of scores, and vLLM's responses for policy and reference."""
    scores = {
        side: (PAIRS[f"policy_{side}_logps"] - PAIRS[f"ref_{side}_logps"]).to_list()
        for side in ("chosen", "rejected")
    }
    columns = {
        "prompt": [f"prompt {i}" for i in range(8)],
        "results": [int(c > r) for c, r in zip(*scores.values(), strict=True)],
        "scores_chosen": scores["chosen"],
        "scores_rejected": scores["rejected"],
        "text_chosen": [f"chosen {i}" for i in range(8)],
        "text_rejected": [f"rejected {i}" for i in range(8)],
        "subset": [f"subset-{i % 3}" for i in range(8)],
        "id": list(range(8)),
    }
    write_lines(
        "rewardbench_outputs.jsonl",
        [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)],
    )
    in_lists = [{s: [scores[s][i]] for s in scores} for i in range(8)]
    write_lines("rewardbench_all.jsonl", in_lists)
    document = {**columns, "model": "a/model", "model_type": "DPO", "chat_template": "tokenizer"}
    document["scores_chosen"] = [[score] for score in scores["chosen"]]
    document["scores_rejected"] = [[score] for score in scores["rejected"]]
    (HERE / "rewardbench_eval_set_scores.json").write_text(
        json.dumps(document, indent=4, sort_keys=True)
    )
    shortest = PAIRS.sort(pl.col("chosen_num_tokens") + pl.col("rejected_num_tokens")).head(3)
    tokens = pl.read_parquet(TOKENS).filter(pl.col("pair_id").is_in(shortest["pair_id"].to_list()))
    for model, name in (("policy", "policy"), ("ref", "reference")):
        write_lines(
            f"vllm_{name}.jsonl",
            [
                response(row["pair_id"], side, row[f"{model}_{side}_token_logps"])
                for side in ("chosen", "rejected")
                for row in tokens.iter_rows(named=True)
            ],
        )


def response(pair, side, logps):
    """A body of /v1/completions with prompt_logprobs=1 and return_token_ids, and three keys."""
    ids = [50256, 11, 12, 13, *range(100, 100 + len(logps))]
    logprobs = [None]
    for position, (token, logp) in enumerate(zip(ids[1:], [-3.5, -2.5, -1.5, *logps], strict=True)):
        rank = 1 + position % 3
        here = {str(token): {"logprob": logp, "rank": rank, "decoded_token": f" t{token}"}}
        if rank > 1:
            here["198"] = {"logprob": logp / 2, "rank": 1, "decoded_token": "\n"}
        logprobs.append(here)
    choice = {
        "index": 0,
        "text": " t",
        "logprobs": None,
        "finish_reason": "length",
        "stop_reason": None,
        "token_ids": [198],
        "prompt_logprobs": logprobs,
        "prompt_token_ids": ids,
    }
    return {
        "pair_id": pair,
        "side": side,
        "prompt_tokens": 4,
        "id": f"cmpl-{pair}-{side}",
        "object": "text_completion",
        "created": 1760000000,
        "model": "a/model",
        "choices": [choice],
        "usage": {
            "prompt_tokens": len(ids),
            "total_tokens": len(ids) + 1,
            "completion_tokens": 1,
            "prompt_tokens_details": None,
        },
        "kv_transfer_params": None,
    }


def write_lines(name, rows):
    """Write JSON lines."""
    (HERE / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    MADE = {"trl": trl, "open-instruct": open_instruct, "duckdb": duckdb, "text": text}
    MADE[sys.argv[1]]()
