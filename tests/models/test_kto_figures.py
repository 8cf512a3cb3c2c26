"""Figures of `evaluate` with the loss `kto`, against KTOTrainer.evaluate on a small model.

`python tests/models/test_kto_figures.py` writes what the default tests compare with.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import polars as pl
import pytest

sys.path += [str(Path(__file__).parents[1] / "tools")]  # where this file is run by itself

import model_tools
from dpo_pipeline import Objective, evaluate

pytestmark = [pytest.mark.models, pytest.mark.filterwarnings("default")]

RECORDED = Path(__file__).parents[1] / "data" / "trl_kto.json"
EVAL_BATCH, TRAIN_BATCH, BETA = 4, 3, 0.2
WEIGHTS = {"desirable_weight": 1.5, "undesirable_weight": 0.75}


def run_of_trl(folder, loss="kto"):
    """Return completions with their log-probs, and what KTOTrainer.evaluate says of them.

    The log-probs are made here, from the batches of the trainer, by a forward pass of each model.
    Each batch of four has two desirable completions, so that means of batches are those of rows.
    """
    import datasets
    import torch
    import trl

    rows = [
        {"prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen"}
        for pair in model_tools.plain_pairs(12, seed=5)
        for side in ("chosen", "rejected")
    ]
    made = datasets.Dataset.from_list(rows)
    models = [model_tools.make_model(seed) for seed in SEEDS]
    trainer = trl.KTOTrainer(
        model=models[0],
        ref_model=models[1],
        args=trl.KTOConfig(
            output_dir=str(folder),
            per_device_train_batch_size=TRAIN_BATCH,
            per_device_eval_batch_size=EVAL_BATCH,
            beta=BETA,
            loss_type=loss,
            bf16=False,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            **WEIGHTS,
        ),
        processing_class=model_tools.make_tokenizer(),
        train_dataset=made,
        eval_dataset=made,
    )
    table = []
    for batch in trainer.get_eval_dataloader():
        columns = {"label": [bool(each) for each in batch["label"]]}
        for model, name in ((trainer.model, "policy"), (trainer.ref_model, "ref")):
            model.eval()
            for key, column in (("", f"{name}_logps"), ("KL_", f"kl_{name}_logps")):
                if f"{key}input_ids" not in batch:
                    continue
                ids, mask = batch[f"{key}input_ids"], batch[f"{key}completion_mask"]
                with torch.no_grad():
                    logits = model(
                        input_ids=ids, attention_mask=batch[f"{key}attention_mask"]
                    ).logits
                logps = logits[:, :-1].double().log_softmax(-1)
                tokens = logps.gather(-1, ids[:, 1:, None]).squeeze(-1)
                columns[column] = (tokens * mask[:, 1:]).sum(-1).tolist()
        table += [
            dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
        ]
    return table, trainer.evaluate()


SEEDS = (1, 2)


def our_figures(table, loss="kto"):
    objective = Objective(loss, arguments=WEIGHTS, dialect="trl")
    batches = EVAL_BATCH if loss == "kto" else None
    return evaluate(pl.DataFrame(table), BETA, loss=objective, batches=batches)


@pytest.mark.parametrize("loss", ["kto", "apo_zero_unpaired"])
def test_figures_are_those_of_trl(tmp_path, loss):
    table, theirs = run_of_trl(tmp_path, loss)
    ours = our_figures(table, loss).to_metrics("eval_")
    if loss == "kto":
        assert theirs["eval_kl"] > 0.1
    for name, value in ours.items():
        if value is not None:
            assert theirs[name] == pytest.approx(value, rel=2e-6, abs=2e-6), name


if __name__ == "__main__":
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as place:
        completions, figures = run_of_trl(place)
    asked = [name for name in figures if name.startswith(("eval_rewards", "eval_logps"))]
    kept = {name: figures[name] for name in ["eval_loss", "eval_kl", *asked]}
    recorded = {"beta": BETA, "batch_size": EVAL_BATCH, "arguments": WEIGHTS, "figures": kept}
    RECORDED.write_text(json.dumps({**recorded, "completions": completions}, indent=1) + "\n")
